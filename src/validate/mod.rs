//! Is it still the same model? Two questions, kept apart, and asked of every width, group and kind of activations, on everything
//! that multiplies here:
//!
//! - *Is the kernel right?* Against the same computation in float64 on the weights as they were dequantised, and on activations
//!   as the C ABI defines them. The tolerance is what float32 sums can lose ([`kernel_tolerance`]), for a product over
//!   `Σ |w x|`; behind several layers it is what losses of that size in every product make of the outcome. int8 rounds what is
//!   near the middle of two codes this way or that by the last bit, and such a turn is no error: the float64 pass therefore
//!   rounds the inputs that the kernels were seen to read, after holding each of them against its own.
//! - *Is the quantisation good?* Against the float weights. The tolerance is theory with a margin: the mean squared error of the
//!   best scales, found by an oracle of its own ([`optimum`]), as independent noise. Behind what is not linear no formula says
//!   what becomes of it, so the noise itself is sent through: weights from the test channel of rate-distortion theory
//!   ([`channel`]) with that error, in float64, take the place of the quantised ones.
//!
//! Beside that stands what a width is named for ([`named_tolerance`]), and where that lies under what any scalar quantiser can do
//! to a Gaussian ([`Bits::lloyd_max`]), which no implementation can change.
//!
//! The float side is PyTorch's: its outcomes for the synthetic scenarios are in a file ([`baseline`]), which the float64
//! computations here are held against first.
//!
//! | module | one reason to exist |
//! |---|---|
//! | `scenario`, `numbers` | dense layers, and the numbers they are made of |
//! | `optimum`, `channel` | what theory allows |
//! | `baseline` | what PyTorch found |
//! | `dense` | both questions of a product |
//! | `network`, `quantised` | a transformer as plain floats; every form of it that is compared |
//! | `forward` | its forward pass in float64 |
//! | `transformer` | both questions of attention, of a layer, of a model layer by layer |
//! | `model` | a model to the end: logits, divergence, perplexity |
//! | `distribution` | where weights lie between the codes |
//! | `report` | the whole of it, as programs read it |

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

/// How far an error of so many outputs may lie from its expectation.
pub const MARGIN: f64 = 1.15;

/// The same behind a transformer's layers, where the expectation is itself one draw of the noise.
pub const DEEP_MARGIN: f64 = 1.25;

/// What is asked of every scenario: each width with each group, kind of activations and backend.
pub struct Plan {
    /// Bits a code.
    pub bits: Vec<Bits>,
    /// Columns a scale; 0: a row.
    pub groups: Vec<usize>,
    /// How products take their inputs; [`Activations::Sign`] is for dense layers at one bit.
    pub activations: Vec<Activations>,
    /// What multiplies, the best last: it quantises, and runs a model to its end.
    pub backends: Vec<Runtime>,
}

/// Everything that multiplies on this machine: each instruction-set level of the processor, the best last, with so many
/// threads (0: all), and the first CUDA device if there is one. Nothing else here knows what multiplies.
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

/// What a backend is called in reports, such as `cpu/avx512`.
pub fn backend_name(rt: &Runtime) -> String {
    match rt.resolved().backend() {
        Backend::Cpu => format!("cpu/{}", rt.isa()),
        Backend::Cuda => Backend::Cuda.name().into(),
    }
}

/// What a width is named for: the relative error that people expect of it.
pub fn named_tolerance(bits: Bits) -> f64 {
    match bits {
        Bits::One => 0.5,
        Bits::Two => 0.2,
        Bits::Four => 0.1,
        Bits::Eight => 0.02,
    }
}

/// What rounding may take of `Σ |w x|` in a product of `cols` columns: float32 sums are at most 32 products long and at most
/// 32 of them are added in float32, with int8 activations as many as the row has blocks of 32 columns; 8 more roundings
/// make scales, levels and the result. Each takes at most half a unit in the last place.
pub fn kernel_tolerance(cols: usize) -> f64 {
    (32 + 32 + 8 + cols.div_ceil(32)) as f64 * f64::from(f32::EPSILON / 2.0)
}

/// The backends that run a model which was made in memory: devices run those that are opened.
fn processors(plan: &Plan) -> impl Iterator<Item = &Runtime> {
    let on_cpu = |rt: &&Runtime| rt.resolved().backend() == Backend::Cpu;
    plan.backends.iter().filter(on_cpu)
}

/// The larger one; NaN if either is, so that no error of it passes.
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
