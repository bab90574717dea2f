//! Is it still the same layer? Two questions, kept apart:
//!
//! - *Is the kernel right?* Its product against the same product in float64 on the weights as they were dequantised, and on the
//!   activations as `abi.md` defines them. The error of an output is taken over `Σ |w x|`, and may be [`KERNEL_TOLERANCE`].
//! - *Is the quantisation good?* The product against that of the float weights. The tolerance is the larger of what the
//!   width is named for ([`named_tolerance`]) and of what the best scales could do for these weights ([`optimum`]), with a
//!   margin for the sample.

pub mod optimum;
mod scenario;

pub use scenario::{SCENARIOS, Scenario};

use serde_json::{Value, json};

use crate::error::Result;
use crate::matmul::{Activations, Weights};
use crate::memory;
use crate::options::WeightOptions;
use crate::quant::{Bits, CodesBuf, Method, ScalePrecision, Shape, Spec, quantize_block};
use crate::runtime::Runtime;
use crate::weights;

/// What rounding may take of `Σ |w x|`.
pub const KERNEL_TOLERANCE: f64 = 1e-5;

/// Vectors that each layer is given.
const VECTORS: usize = 64;

/// How far an error of so many outputs may lie from its expectation.
const MARGIN: f64 = 1.15;

/// What int8 activations may add: half a step of 127 in a block, generously.
const INT8_ERROR: f64 = 0.01;

/// What a width is named for: the relative error that people expect of it.
pub fn named_tolerance(bits: Bits) -> f64 {
    match bits {
        Bits::One => 0.5,
        Bits::Two => 0.2,
        Bits::Four => 0.1,
        Bits::Eight => 0.02,
    }
}

/// One layer at one width, group, kind of activations and set of kernels.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The layer.
    pub scenario: Scenario,
    /// Bits a code.
    pub bits: usize,
    /// Columns a scale; 0: a row.
    pub group: usize,
    /// How the product took its inputs.
    pub activations: Activations,
    /// The kernels, such as `cpu/avx512`.
    pub backend: String,
    /// The largest error of an output over `Σ |w x|`.
    pub kernel_error: f64,
    /// `norm(W - W') / norm(W)`.
    pub weights_error: f64,
    /// What the best scales would have given instead.
    pub optimum: f64,
    /// `norm(y' - y) / norm(y)`, over all vectors, with `y` of the float weights in float64 (with sign activations: of the signs).
    pub relative_error: f64,
    /// What that may be.
    pub tolerance: f64,
    /// The first outputs of the float weights, and of the quantised ones.
    pub samples: [Vec<f32>; 2],
}

impl Outcome {
    /// Whether the kernel computes what it should.
    pub fn kernel_passed(&self) -> bool {
        self.kernel_error <= KERNEL_TOLERANCE
    }

    /// Whether both answers are yes.
    pub fn passed(&self) -> bool {
        self.kernel_passed() && self.relative_error <= self.tolerance
    }

    /// As programs read it: `docs/validation.md`.
    pub fn to_json(&self) -> Value {
        json!({"scenario": self.scenario.name, "bits": self.bits, "group": self.group, "activations": self.activations.name(),
               "backend": self.backend, "relative_error": self.relative_error, "tolerance": self.tolerance,
               "weights_error": self.weights_error, "best_weights_error": self.optimum, "kernel_error": self.kernel_error,
               "kernel_tolerance": KERNEL_TOLERANCE, "passed": self.passed(),
               "baseline": self.samples[0], "quantised": self.samples[1]})
    }
}

/// A layer quantised, and what theory says of it.
pub struct Quantised {
    scenario: Scenario,
    floats: Vec<f32>,
    codes: CodesBuf,
    group: usize,
    weights_error: f64,
    optimum: f64,
}

impl Quantised {
    /// Quantises by searched scales; `group` 0: a scale a row.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub fn new(rt: &Runtime, scenario: &Scenario, bits: Bits, group: usize) -> Result<Quantised> {
        let floats = scenario.weights();
        let spec = Spec {
            bits,
            symmetric: true,
            method: Method::Search,
            scales: ScalePrecision::Auto,
        };
        let shape = Shape::new(scenario.rows, scenario.cols, group);
        let codes = weights::quantize(rt, &floats, shape, &spec)?;
        let back = dequantised(&codes)?;
        Ok(Quantised {
            weights_error: relative(&back, &floats),
            optimum: optimum::relative_error(&floats, scenario.cols, group, bits),
            scenario: *scenario,
            floats,
            codes,
            group,
        })
    }

    /// Multiplies with the kernels of `rt`, and asks both questions.
    ///
    /// # Errors
    /// Those of the product.
    pub fn outcome(&self, rt: &Runtime, activations: Activations) -> Result<Outcome> {
        let (rows, cols) = (self.scenario.rows, self.scenario.cols);
        let x = self.scenario.inputs(VECTORS);
        let options = WeightOptions {
            activations,
            ..WeightOptions::default()
        };
        let handle: Weights = weights::from_codes(rt, &self.codes.as_codes(), &options)?;
        let mut y = memory::filled(VECTORS * rows, 0.0f32, "outputs")?;
        handle.multiply(rt, &x, &mut y, VECTORS)?;

        let taken: Vec<f64> = x
            .chunks_exact(cols)
            .flat_map(|x| as_taken(activations, self.group, x))
            .collect();
        let back = dequantised(&self.codes)?;
        let mut kernel_error = 0.0f64;
        let mut baseline = Vec::with_capacity(y.len());
        for (v, taken) in taken.chunks_exact(cols).enumerate() {
            let x: Vec<f64> = match activations {
                Activations::Sign => taken.to_vec(),
                _ => x[v * cols..][..cols].iter().map(|&x| x.into()).collect(),
            };
            for r in 0..rows {
                let row = r * cols..(r + 1) * cols;
                let (mut exact, mut magnitude) = (0.0, 0.0);
                for (&w, &x) in back[row.clone()].iter().zip(taken) {
                    exact += f64::from(w) * x;
                    magnitude += (f64::from(w) * x).abs();
                }
                let error = (f64::from(y[v * rows + r]) - exact).abs();
                kernel_error = kernel_error.max(error / magnitude.max(f64::MIN_POSITIVE));
                let floats = self.floats[row].iter().zip(&x);
                baseline.push(floats.map(|(&w, &x)| f64::from(w) * x).sum::<f64>() as f32);
            }
        }
        let bits = self.codes.bits;
        let int8 = match activations {
            Activations::Int8 => INT8_ERROR,
            _ => 0.0,
        };
        let first = |y: &[f32]| y[..8.min(y.len())].to_vec();
        Ok(Outcome {
            scenario: self.scenario,
            bits: bits.get(),
            group: self.group,
            activations,
            backend: format!("cpu/{}", rt.isa().name()),
            kernel_error,
            weights_error: self.weights_error,
            optimum: self.optimum,
            relative_error: relative(&y, &baseline),
            tolerance: MARGIN * named_tolerance(bits).max(self.optimum).hypot(int8),
            samples: [first(&baseline), first(&y)],
        })
    }
}

/// The activations as the product takes them, by their definition.
fn as_taken(activations: Activations, group: usize, x: &[f32]) -> Vec<f64> {
    match activations {
        Activations::F32 => x.iter().map(|&x| x.into()).collect(),
        Activations::Sign => x.iter().map(|&x| if x >= 0.0 { 1.0 } else { -1.0 }).collect(),
        Activations::Int8 => {
            // A scale a group of 32, 64 or 128; else one for 32 columns.
            let block = if matches!(group, 64 | 128) { group } else { 32 };
            let mut taken = Vec::with_capacity(x.len());
            for x in x.chunks(block) {
                let mut codes = vec![0; x.len()];
                let scale = f64::from(quantize_block(x, &mut codes));
                taken.extend(codes.iter().map(|&q| scale * f64::from(q)));
            }
            taken
        }
    }
}

fn dequantised(codes: &CodesBuf) -> Result<Vec<f32>> {
    let codes = codes.as_codes();
    let (rows, cols) = (codes.shape.rows, codes.shape.cols);
    let mut out = memory::filled(rows * cols, 0.0, "weights as float32")?;
    for (r, out) in out.chunks_exact_mut(cols).enumerate() {
        codes.dequantize_row(r, out);
    }
    Ok(out)
}

/// `norm(a - b) / norm(b)`
fn relative(a: &[f32], b: &[f32]) -> f64 {
    let squares: f64 = b.iter().map(|&b| f64::from(b).powi(2)).sum();
    let differences = a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b));
    (differences.map(|d| d * d).sum::<f64>() / squares.max(f64::MIN_POSITIVE)).sqrt()
}
