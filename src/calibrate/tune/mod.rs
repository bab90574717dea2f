//! Tuning of what a quantised model keeps as floats, scales and norms, with fixed codes.
//!
//! The descent minimises the error of each matrix's products, one matrix at a time. At 1 and 2 bits
//! the remaining errors accumulate over the layers. Here all scales and norms are optimised
//! together, by gradient descent on the Kullback-Leibler divergence of the model's predictions from
//! those of the unquantised one on the calibration text, using Adam (Kingma and Ba, 2014) with a
//! cosine learning-rate schedule. The file does not grow, and the model runs no slower. It needs
//! several copies of the model as float32, so it is for small models.

mod network;

use std::collections::HashMap;
use std::f64::consts::PI;

use half::f16;

use super::{Calibration, go_on};
use crate::error::{Error, Result};
use crate::memory;
use crate::model::source::{Role, Source};
use crate::options::{WeightOptions, Width};
use crate::perplexity::log_sum_exp;
use crate::quant::{Bits, CodesBuf, Method, ScalePrecision, ScalesBuf, Shape, Spec};
use crate::runtime::Runtime;
use crate::weights;
use network::Network;

/// Weights of the largest model that can be tuned: ten copies of them as float32 take 2.6 GB.
const MOST_WEIGHTS: usize = 1 << 26;

/// Windows per step.
const BATCH: usize = 4;

/// The most windows that are read to measure the divergence, spread evenly over the text.
const MEASURED: usize = 32;

/// Adam's learning rates: the most that a step changes a scale, relative to the mean magnitude in
/// its matrix; and a norm.
const SCALE_RATE: f32 = 0.015;
const NORM_RATE: f32 = 0.004;

/// The tuned tensors of a model, by canonical name.
pub(super) struct Tuned {
    pub matrices: HashMap<String, CodesBuf>,
    pub vectors: HashMap<String, Vec<f32>>,
    /// The mean divergence, in nats per token, before and after, over the same windows.
    pub divergence: (f64, f64),
}

/// Quantises every matrix for its inputs, then tunes in `steps` steps.
///
/// # Errors
/// `ERR_UNSUPPORTED` for a model that is too large or not a plain Llama, or a width that is not one
/// of codes; `ERR_CONFIG` for codes that would be taken as stored, which tuning could not change;
/// those of quantising.
pub(super) fn tune(
    rt: &Runtime,
    source: &Source,
    calibration: &mut Calibration<'_>,
    options: &WeightOptions,
    steps: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Tuned> {
    let specs = source.tensors();
    let weights: usize = specs
        .iter()
        .map(|s| s.shape.iter().product::<usize>())
        .sum();
    if weights > MOST_WEIGHTS {
        return Err(Error::unsupported(format!(
            "tuning of scales is for small models: this one has {weights} weights, at most {MOST_WEIGHTS} are supported"
        )));
    }
    let Width::Codes(bits) = options.width.unwrap_or(WeightOptions::DEFAULT_WIDTH) else {
        return Err(Error::unsupported(
            "tuning of scales needs 1, 2, 4 or 8 bits",
        ));
    };
    for spec in specs.iter().filter(|s| s.role == Role::Matrix) {
        let stored = source.stored(&spec.name)?;
        if let Some(stored) = stored.filter(|s| options.width.is_none() && s.width().is_some()) {
            return Err(Error::config(format!(
                "{} is of type {}, whose default is 8 bits: to tune it, ask for a width",
                spec.name, stored.kind
            )));
        }
        let width = source.quantised(&spec.name)?;
        if width.is_some_and(|w| w == bits || options.width.is_none()) {
            return Err(Error::config(format!(
                "{} is quantised already and would be taken over as it is: to tune it, ask for another width",
                spec.name
            )));
        }
    }
    let index = |name: &str| {
        specs
            .iter()
            .position(|s| s.name == name)
            .unwrap_or(usize::MAX)
    };
    let network = Network::new(source.architecture(), calibration.window(), &index)?;

    let cancelled = calibration.cancelled;
    let mut teacher = memory::with_capacity(specs.len(), "tensors")?;
    let mut tensors = memory::with_capacity(specs.len(), "tensors")?;
    for spec in &specs {
        if spec.role == Role::Vector {
            let values = source.vector(&spec.name)?;
            tensors.push(Tensor::norm(&values)?);
            teacher.push(values);
            continue;
        }
        let view = source.matrix(&spec.name)?;
        let (rows, cols) = view.shape();
        let mut w = memory::filled(rows * cols, 0.0, "a matrix as float32")?;
        for (r, row) in w.chunks_exact_mut(cols.max(1)).enumerate() {
            view.row(r, row);
        }
        let shape = Shape::new(rows, cols, options.group);
        let spec = (
            &spec.name,
            Spec {
                bits,
                symmetric: options.symmetric || bits == Bits::One,
                method: Method::Search,
                scales: ScalePrecision::Auto,
            },
        );
        let codes = match calibration.hessian(rt, spec.0)? {
            Some(hessian) => super::quantize(rt, &w, shape, &spec.1, hessian, cancelled)?,
            None => weights::quantize(rt, &w, shape, &spec.1)?,
        };
        tensors.push(Tensor::matrix(codes)?);
        teacher.push(w);
    }
    let mut tuner = Tuner {
        rt,
        network,
        teacher,
        student: tensors.iter().map(Tensor::values).collect(),
        tensors,
    };
    let before = tuner.divergence(calibration)?;
    tuner.run(calibration, steps, progress)?;
    tuner.round()?;
    let mut tuned = Tuned {
        matrices: HashMap::new(),
        vectors: HashMap::new(),
        divergence: (before, tuner.divergence(calibration)?),
    };
    for (tensor, spec) in tuner.tensors.into_iter().zip(specs) {
        match tensor.codes {
            Some(codes) => drop(tuned.matrices.insert(spec.name, codes)),
            None => drop(tuned.vectors.insert(spec.name, tensor.free)),
        }
    }
    Ok(tuned)
}

/// Codes with new scales, where these can be stored; a scale that cannot keeps its old value.
fn kept(mut codes: CodesBuf, scales: &[f32]) -> CodesBuf {
    match &mut codes.scales {
        ScalesBuf::F16(own) => {
            for (own, &s) in own.iter_mut().zip(scales) {
                let s = f16::from_f32(s);
                if s.is_normal() {
                    *own = s;
                }
            }
        }
        ScalesBuf::F32(own) => {
            for (own, &s) in own.iter_mut().zip(scales) {
                if s.is_normal() {
                    *own = s;
                }
            }
        }
    }
    codes
}

/// A tensor and its free parameters.
struct Tensor {
    /// `None` for a norm.
    codes: Option<CodesBuf>,
    /// `(rows, cols)`; empty for a norm.
    levels: Vec<f32>,
    /// Scales `(rows, groups)`, or the norm.
    free: Vec<f32>,
    /// Adam's running means of gradients and of their squares, as long as `free`.
    mean: Vec<f32>,
    square: Vec<f32>,
    rate: f32,
}

impl Tensor {
    fn new(codes: Option<CodesBuf>, levels: Vec<f32>, free: Vec<f32>, rate: f32) -> Result<Tensor> {
        let magnitude: f32 = free.iter().map(|f| f.abs()).sum::<f32>() / free.len().max(1) as f32;
        Ok(Tensor {
            codes,
            levels,
            mean: memory::filled(free.len(), 0.0, "means of gradients")?,
            square: memory::filled(free.len(), 0.0, "squares of gradients")?,
            free,
            rate: rate * magnitude,
        })
    }

    fn norm(values: &[f32]) -> Result<Tensor> {
        Tensor::new(None, Vec::new(), values.to_vec(), NORM_RATE)
    }

    fn matrix(codes: CodesBuf) -> Result<Tensor> {
        let Shape {
            rows, cols, groups, ..
        } = codes.shape;
        let view = codes.as_codes();
        let mut row = memory::filled(cols, 0u8, "a row of codes")?;
        let mut levels = memory::with_capacity(rows * cols, "levels")?;
        let mut scales = memory::with_capacity(rows * groups, "scales")?;
        for r in 0..rows {
            view.row_codes(r, &mut row);
            for g in 0..groups {
                let zero = view.zero_point(r, g);
                let codes = &row[codes.shape.group_columns(g)];
                levels.extend(codes.iter().map(|&c| view.bits.level(c, zero) as f32));
                scales.push(view.scale(r, g));
            }
        }
        Tensor::new(Some(codes), levels, scales, SCALE_RATE)
    }

    /// The weights, or the norm.
    fn values(&self) -> Vec<f32> {
        let Some(codes) = &self.codes else {
            return self.free.clone();
        };
        let mut out = self.levels.clone();
        let rows = out.chunks_exact_mut(codes.shape.cols.max(1));
        for (row, scales) in rows.zip(self.free.chunks_exact(codes.shape.groups.max(1))) {
            for (weights, s) in row.chunks_mut(codes.shape.group).zip(scales) {
                weights.iter_mut().for_each(|w| *w *= s);
            }
        }
        out
    }

    /// The gradient of the free parameters, given that of the weights.
    fn gradient(&self, d: &[f32]) -> Vec<f32> {
        let Some(codes) = &self.codes else {
            return d.to_vec();
        };
        let mut out = Vec::with_capacity(self.free.len());
        let cols = codes.shape.cols.max(1);
        for (d, l) in d.chunks_exact(cols).zip(self.levels.chunks_exact(cols)) {
            let groups = d.chunks(codes.shape.group).zip(l.chunks(codes.shape.group));
            out.extend(groups.map(|(d, l)| d.iter().zip(l).map(|(d, l)| d * l).sum::<f32>()));
        }
        out
    }

    /// A step of Adam against `gradient`, which is as long as `free`; `step` counts from 1, `part`
    /// is a factor on the learning rate.
    fn step(&mut self, gradient: &[f32], step: usize, part: f32) {
        const MEAN: f32 = 0.9;
        const SQUARE: f32 = 0.99;
        let (m_due, v_due) = (1.0 - MEAN.powi(step as i32), 1.0 - SQUARE.powi(step as i32));
        for (i, &d) in gradient.iter().enumerate() {
            self.mean[i] = MEAN * self.mean[i] + (1.0 - MEAN) * d;
            self.square[i] = SQUARE * self.square[i] + (1.0 - SQUARE) * d * d;
            let v = (self.square[i] / v_due).sqrt();
            if v > 0.0 {
                self.free[i] -= part * self.rate * (self.mean[i] / m_due) / v;
            }
        }
    }
}

struct Tuner<'a> {
    rt: &'a Runtime,
    network: Network<'a>,
    /// The unquantised tensors, and the current ones.
    teacher: Vec<Vec<f32>>,
    student: Vec<Vec<f32>>,
    tensors: Vec<Tensor>,
}

impl Tuner<'_> {
    fn run(
        &mut self,
        calibration: &Calibration<'_>,
        steps: usize,
        progress: &mut dyn FnMut(usize),
    ) -> Result<()> {
        let mut windows = calibration.windows().cycle();
        for step in 1..=steps {
            go_on(calibration.cancelled)?;
            let batch: Vec<_> = windows.by_ref().take(BATCH).collect();
            let gradients = self.gradients(&batch)?;
            let part = 0.5 * (1.0 + (PI * (step - 1) as f64 / steps as f64).cos());
            for (i, tensor) in self.tensors.iter_mut().enumerate() {
                tensor.step(&tensor.gradient(&gradients[i]), step, part as f32);
                self.student[i] = tensor.values();
            }
            progress(step);
        }
        Ok(())
    }

    /// Makes the scales those that can be stored.
    fn round(&mut self) -> Result<()> {
        for (tensor, student) in self.tensors.iter_mut().zip(&mut self.student) {
            if let Some(codes) = tensor.codes.take() {
                *tensor = Tensor::matrix(kept(codes, &tensor.free))?;
                *student = tensor.values();
            }
        }
        Ok(())
    }

    /// The mean divergence of the predictions from the unquantised model's, in nats per token.
    fn divergence(&self, calibration: &Calibration<'_>) -> Result<f64> {
        let windows: Vec<_> = calibration.windows().collect();
        let taken = windows.len().min(MEASURED);
        let mut parts = vec![0.0; taken];
        let ids = (0..taken).map(|i| windows[i * windows.len() / taken]);
        let tasks = ids.zip(&mut parts).collect();
        self.rt
            .pool()
            .try_for_each(tasks, |(ids, part): (_, &mut f64)| {
                go_on(calibration.cancelled)?;
                let wanted = self.network.forward(&self.teacher, ids).logits;
                let found = self.network.forward(&self.student, ids).logits;
                *part = divergence(&wanted, &found, ids.len(), |_, _| {});
                Ok::<(), Error>(())
            })?;
        Ok(parts.iter().sum::<f64>() / calibration.window() as f64 / taken as f64)
    }

    /// The gradients of the mean divergence over some windows, of all tensors.
    fn gradients(&self, batch: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let mut parts: Vec<_> = batch.iter().map(|_| Vec::new()).collect();
        let tasks = batch.iter().zip(parts.iter_mut()).collect();
        self.rt.pool().try_for_each(tasks, |(ids, part)| {
            *part = self.window(ids, batch.len());
            Ok::<(), Error>(())
        })?;
        // In the order of the windows, whichever threads processed them.
        let mut parts = parts.into_iter();
        let Some(mut sum) = parts.next() else {
            return Ok(Vec::new());
        };
        for gradients in parts {
            for (sum, d) in sum.iter_mut().zip(&gradients) {
                sum.iter_mut().zip(d).for_each(|(s, d)| *s += d);
            }
        }
        Ok(sum)
    }

    /// The contribution of a window to the gradients, in a batch of this size.
    fn window(&self, ids: &[u32], batch: usize) -> Vec<Vec<f32>> {
        let wanted = self.network.forward(&self.teacher, ids).logits;
        let trace = self.network.forward(&self.student, ids);
        let share = 1.0 / (ids.len() * batch) as f64;
        // `d/dlogits Σ p (ln p - ln q)` is `q - p`.
        let mut d = Vec::with_capacity(trace.logits.len());
        divergence(&wanted, &trace.logits, ids.len(), |p, q| {
            d.push((share * (q - p)) as f32);
        });
        let mut gradients: Vec<_> = self.student.iter().map(|w| vec![0.0; w.len()]).collect();
        self.network
            .backward(&self.student, ids, &trace, &d, &mut gradients);
        gradients
    }
}

/// `Σ p (ln p - ln q)` of the probabilities `p` and `q` that the logits `(places, vocabulary)` of
/// two models give; `each` gets every pair of probabilities, in their order.
fn divergence(wanted: &[f32], found: &[f32], places: usize, mut each: impl FnMut(f64, f64)) -> f64 {
    let vocabulary = wanted.len() / places;
    let mut sum = 0.0;
    let found = found.chunks_exact(vocabulary);
    for (wanted, found) in wanted.chunks_exact(vocabulary).zip(found) {
        let (p_sum, q_sum) = (log_sum_exp(wanted), log_sum_exp(found));
        for (&wanted, &found) in wanted.iter().zip(found) {
            let (log_p, log_q) = (f64::from(wanted) - p_sum, f64::from(found) - q_sum);
            let p = log_p.exp();
            sum += p * (log_p - log_q);
            each(p, log_q.exp());
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_that_cannot_be_kept_stay() {
        let found = [3.0, f32::NAN, f32::INFINITY, 0.0, 1e-40, -1e-30, 1e30];
        let codes = |scales| CodesBuf {
            shape: Shape::new(found.len(), 1, 0),
            bits: Bits::Four,
            bytes: vec![0; found.len()],
            scales,
            zero_points: None,
        };
        let own = vec![1.0f32; found.len()];
        let f32s = kept(codes(ScalesBuf::F32(own)), &found).scales;
        assert_eq!(
            f32s,
            ScalesBuf::F32(vec![3.0, 1.0, 1.0, 1.0, 1.0, -1e-30, 1e30])
        );
        let f16s = kept(codes(ScalesBuf::F16(vec![f16::ONE; found.len()])), &found).scales;
        let mut expected = vec![f16::ONE; found.len()];
        expected[0] = f16::from_f32(3.0);
        assert_eq!(f16s, ScalesBuf::F16(expected));
    }
}
