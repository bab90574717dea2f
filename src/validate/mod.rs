//! Is it still the same model? There are two separate questions, asked for every width, group and
//! kind of activations, on every backend:
//!
//! - *Is the kernel right?* It is compared with the same computation in float64, on the dequantised
//!   weights, and on activations as defined by the C ABI. For a product the tolerance is the
//!   largest rounding error of float32 sums ([`kernel_tolerance`]), relative to `Σ |w x|`; after
//!   several layers it is the effect of errors of that size in every product. Values near the
//!   middle between two int8 codes are rounded one way or the other depending on the last bit, and
//!   such a difference is not an error. The float64 pass therefore quantises the inputs observed
//!   from the kernels, after comparing each of them with its own.
//! - *Is the quantisation good?* It is compared with the float weights. The tolerance is the
//!   theoretical error with a margin: the mean squared error of the best scales, found by an
//!   independent oracle ([`optimum`]), as independent noise. After nonlinear operations there is no
//!   formula for the effect of that noise, so it is simulated: weights from the test channel of
//!   rate-distortion theory ([`channel`]) with that error replace the quantised ones, in float64.
//!
//! Reported in addition is the error that a width is commonly expected to have
//! ([`named_tolerance`]), and whether it is below what any scalar quantiser can achieve on a
//! Gaussian ([`Bits::lloyd_max`]), which no implementation can change.
//!
//! The float reference is PyTorch: its results for the synthetic scenarios are in a file
//! ([`baseline`]), with which the float64 computations here are compared first.
//!
//! | module | responsibility |
//! |---|---|
//! | `scenario`, `numbers` | dense layers, and the numbers they consist of |
//! | `optimum`, `channel` | what theory allows |
//! | `baseline` | the results of PyTorch |
//! | `dense` | both questions for a product |
//! | `network`, `quantised` | a transformer as plain floats; every form of it that is compared |
//! | `forward` | its forward pass in float64 |
//! | `transformer` | both questions for attention, for a layer, for a model layer by layer |
//! | `model` | a model end to end: logits, divergence, perplexity |
//! | `distribution` | how weights are distributed between the codes |
//! | `report` | all results, in the form for programs |

pub mod baseline;
mod channel;
mod dense;
mod distribution;
mod forward;
mod model;
mod network;
mod numbers;
pub mod optimum;
mod quantised;
mod report;
mod scenario;
mod transformer;

pub use baseline::{Baselines, Check};
pub use distribution::Distribution;
pub use model::{Subject, accepts, is_quantised};
pub use report::{Outcome, Report, run};
pub use scenario::{Kind, SCENARIOS, Scenario};

use crate::cpu::Isa;
use crate::error::{Result, Status};
use crate::matmul::Activations;
use crate::quant::Bits;
use crate::runtime::{Backend, BackendChoice, Config, Runtime};

/// The largest ratio of an error over many outputs to its expectation.
pub const MARGIN: f64 = 1.15;

/// The same after the layers of a transformer, where the expectation is itself one sample of the
/// noise.
pub const DEEP_MARGIN: f64 = 1.25;

/// The parameters to be tried in every scenario: each width with each group, kind of activations
/// and backend.
pub struct Plan {
    /// Bits per code.
    pub bits: Vec<Bits>,
    /// Columns per scale; 0: a row.
    pub groups: Vec<usize>,
    /// The precision in which products read their inputs; [`Activations::Sign`] is only for dense
    /// layers at one bit.
    pub activations: Vec<Activations>,
    /// The backends, the best one last, which also quantises and runs a model end to end.
    pub backends: Vec<Runtime>,
}

/// All backends of this machine: each instruction-set level of the processor, the best last, with
/// `threads` threads (0: all), and the first CUDA device if there is one. No other code here
/// depends on which backends there are.
///
/// # Errors
/// Those of [`Runtime::new`].
pub fn backends(threads: usize) -> Result<Vec<Runtime>> {
    let levels = Isa::ALL.into_iter().filter(|isa| isa.available());
    let level = |isa| {
        Runtime::new(Config {
            backend: BackendChoice::Cpu,
            threads,
            isa: Some(isa),
            ..Config::default()
        })
    };
    let mut all = levels.map(level).collect::<Result<Vec<_>>>()?;
    let device = Runtime::new(Config {
        backend: BackendChoice::Cuda,
        threads,
        ..Config::default()
    });
    match device {
        Ok(device) => all.push(device),
        Err(error) if error.status() == Status::Backend => {}
        Err(error) => return Err(error),
    }
    Ok(all)
}

/// The name of a backend in reports, such as `cpu/avx512`.
pub fn backend_name(rt: &Runtime) -> String {
    match rt.resolved().backend() {
        Backend::Cpu => format!("cpu/{}", rt.isa()),
        Backend::Cuda => Backend::Cuda.name().into(),
    }
}

/// The relative error that a width is commonly expected to have.
pub fn named_tolerance(bits: Bits) -> f64 {
    match bits {
        Bits::One => 0.5,
        Bits::Two => 0.2,
        Bits::Four => 0.1,
        Bits::Eight => 0.02,
    }
}

/// The largest rounding error of a product of `cols` columns, relative to `Σ |w x|`. A float32 sum
/// has at most 32 products, and at most 32 such sums are added in float32; with int8 activations it
/// is as many as the row has blocks of 32 columns. 8 more roundings are those of scales, levels and
/// the result. Each contributes at most half a unit in the last place.
pub fn kernel_tolerance(cols: usize) -> f64 {
    (32 + 32 + 8 + cols.div_ceil(32)) as f64 * f64::from(f32::EPSILON / 2.0)
}

/// The backends that can run a model made in memory; devices only run models that are opened.
fn processors(plan: &Plan) -> impl Iterator<Item = &Runtime> {
    let on_cpu = |rt: &&Runtime| rt.resolved().backend() == Backend::Cpu;
    plan.backends.iter().filter(on_cpu)
}

/// The larger one; NaN if either is NaN, so that an error that is NaN never passes.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        return f64::NAN;
    }
    a.max(b)
}

/// `norm(a - b) / norm(b)`
fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "nothing is left out");
    let squares: f64 = b.iter().map(|&b| f64::from(b).powi(2)).sum();
    let differences = a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b));
    (differences.map(|d| d * d).sum::<f64>() / squares.max(f64::MIN_POSITIVE)).sqrt()
}

#[cfg(test)]
mod tests;
