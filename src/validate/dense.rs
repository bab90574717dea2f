//! Both questions for a dense layer.

use super::forward::{as_taken, dot};
use super::network::Matrix;
use super::optimum::{self, Group};
use super::quantised::{dequantised_values, searched};
use super::report::Outcome;
use super::scenario::{Scenario, VECTORS};
use super::{
    Baselines, Check, MARGIN, Plan, backend_name, kernel_tolerance, named_tolerance, relative,
    worse,
};
use crate::error::Result;
use crate::matmul::Activations;
use crate::memory;
use crate::options::WeightOptions;
use crate::quant::{Bits, CodesBuf};
use crate::runtime::Runtime;
use crate::weights::{self, Home};

/// A layer, its inputs, and PyTorch's results for it.
pub struct Dense<'a> {
    scenario: &'static Scenario,
    w: Matrix,
    /// `(VECTORS, cols)`
    x: Vec<f32>,
    /// `W x` and `W sign(x)`: `(VECTORS, rows)` each.
    baselines: [&'a [f32]; 2],
}

impl<'a> Dense<'a> {
    /// # Errors
    /// Those of [`Baselines::get`].
    pub fn new(scenario: &'static Scenario, baselines: &'a Baselines) -> Result<Dense<'a>> {
        let (key, shape) = (scenario.key, [VECTORS, scenario.rows]);
        Ok(Dense {
            scenario,
            w: Matrix {
                rows: scenario.rows,
                cols: scenario.cols,
                values: scenario.weights(),
                group: None,
            },
            x: scenario.inputs(),
            baselines: [
                baselines.get(key, shape)?,
                baselines.get(&format!("{key}.sign"), shape)?,
            ],
        })
    }

    /// The float weights `(rows, cols)`.
    pub fn weights(&self) -> &Matrix {
        &self.w
    }

    /// Compares the float64 computation with PyTorch's results.
    pub fn check(&self) -> Vec<Check> {
        let modes = [
            (Activations::F32, ""),
            (Activations::Sign, ", signs of inputs"),
        ];
        let each = modes.into_iter().zip(self.baselines);
        each.map(|((activations, suffix), baseline)| {
            let taken = self.taken(activations, 0);
            let y: Vec<f32> = products(&self.w.values, &taken, self.w.cols)
                .map(|(y, _)| y as f32)
                .collect();
            Check::new(format!("{}{suffix}", self.scenario.name), &y, baseline)
        })
        .collect()
    }

    /// Every kind of activations on every backend, for one width and group.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub fn outcomes(&self, plan: &Plan, bits: Bits, group: usize) -> Result<Vec<Outcome>> {
        let Some(rt) = plan.backends.last() else {
            return Ok(Vec::new());
        };
        let codes = searched(rt, &self.w, bits, group)?;
        let back = dequantised_values(&codes.as_codes())?;
        let groups = optimum::groups(&self.w.values, self.w.cols, group, bits);
        let mut found = Vec::new();
        for &activations in &plan.activations {
            if activations == Activations::Sign && bits != Bits::One {
                continue;
            }
            let taken = self.taken(activations, group);
            let exact: Vec<(f64, f64)> = products(&back, &taken, self.w.cols).collect();
            let baseline = match activations {
                Activations::Sign => self.baselines[1],
                _ => self.baselines[0],
            };
            let expected = self.expected(activations, &groups, group, &taken, baseline);
            for rt in &plan.backends {
                let y = self.product(rt, &codes, activations)?;
                let error = |(y, (exact, size)): (&f32, &(f64, f64))| {
                    (f64::from(*y) - exact).abs() / size.max(f64::MIN_POSITIVE)
                };
                let sample = |y: &[f32]| y[..8.min(y.len())].to_vec();
                found.push(Outcome {
                    scenario: self.scenario.name.to_owned(),
                    bits,
                    group,
                    activations,
                    backend: backend_name(rt),
                    kernel_error: y.iter().zip(&exact).map(error).fold(0.0, worse),
                    kernel_tolerance: kernel_tolerance(self.w.cols),
                    relative_error: relative(&y, baseline),
                    expected,
                    tolerance: MARGIN * expected,
                    named_tolerance: named_tolerance(bits),
                    weights_error: relative(&back, &self.w.values),
                    best_weights_error: optimum::relative_error(&groups),
                    bits_a_weight: 8.0 * codes.as_codes().stored_bytes() as f64
                        / self.w.values.len() as f64,
                    baseline: sample(baseline),
                    quantised: sample(&y),
                    agreement: None,
                });
            }
        }
        Ok(found)
    }

    /// Inputs in the precision in which the product reads them.
    fn taken(&self, activations: Activations, group: usize) -> Vec<f64> {
        let x = self.x.chunks_exact(self.w.cols);
        x.flat_map(|x| as_taken(activations, group, x)).collect()
    }

    fn product(
        &self,
        rt: &Runtime,
        codes: &CodesBuf,
        activations: Activations,
    ) -> Result<Vec<f32>> {
        let options = WeightOptions {
            activations,
            ..WeightOptions::default()
        };
        let handle = weights::from_codes(rt, &codes.as_codes(), &options, Home::Backend)?;
        let mut y = memory::filled(VECTORS * self.w.rows, 0.0f32, "outputs")?;
        handle.multiply(rt, &self.x, &mut y, VECTORS)?;
        Ok(y)
    }

    /// The relative error expected by theory: each weight has the mean squared error of the best
    /// scale of its group, each input the error of int8, all of them independent.
    fn expected(
        &self,
        activations: Activations,
        groups: &[Group],
        group: usize,
        taken: &[f64],
        baseline: &[f32],
    ) -> f64 {
        let cols = self.w.cols;
        let width = if group == 0 { cols } else { group };
        let in_row = cols.div_ceil(width);
        let mut variance = 0.0;
        for (v, taken) in taken.chunks_exact(cols).enumerate() {
            // Σ x² of each group of columns.
            let squares: Vec<f64> = taken
                .chunks(width)
                .map(|x| x.iter().map(|x| x * x).sum())
                .collect();
            for (i, g) in groups.iter().enumerate() {
                variance += g.least / g.len as f64 * squares[i % in_row];
            }
            if activations == Activations::Int8 {
                let x = &self.x[v * cols..][..cols];
                let off: Vec<f64> = x
                    .iter()
                    .zip(taken)
                    .map(|(&x, t)| (f64::from(x) - t).powi(2))
                    .collect();
                for w in self.w.values.chunks_exact(cols) {
                    variance += w
                        .iter()
                        .zip(&off)
                        .map(|(&w, o)| f64::from(w).powi(2) * o)
                        .sum::<f64>();
                }
            }
        }
        let size: f64 = baseline.iter().map(|&y| f64::from(y).powi(2)).sum();
        (variance / size.max(f64::MIN_POSITIVE)).sqrt()
    }
}

/// `W x` in float64 for one vector after the other, and `Σ |w x|` of each output.
fn products(w: &[f32], x: &[f64], cols: usize) -> impl Iterator<Item = (f64, f64)> {
    x.chunks_exact(cols).flat_map(move |x| {
        let size: Vec<f64> = x.iter().map(|x| x.abs()).collect();
        w.chunks_exact(cols).map(move |w| {
            let sizes = w.iter().zip(&size).map(|(&w, x)| f64::from(w.abs()) * x);
            (dot(w, x), sizes.sum())
        })
    })
}
