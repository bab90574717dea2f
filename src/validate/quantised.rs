//! Every form of a network that is compared: its codes, the weights they represent, and weights
//! with random noise of the same size.

use std::collections::BTreeMap;

use super::channel;
use super::network::{Matrix, Network};
use super::optimum::{self, Group};
use crate::error::Result;
use crate::matmul::{Activations, Weights};
use crate::memory;
use crate::model::Tensors;
use crate::options::WeightOptions;
use crate::quant::{Bits, Codes, CodesBuf, Method, ScalePrecision, Shape, Spec};
use crate::runtime::Runtime;
use crate::weights::{self, Home};

/// A network at one width.
pub struct Quantised {
    /// Bits per code; for mixed widths that of most weights.
    pub bits: Bits,
    /// Columns per scale; 0: a row.
    pub group: usize,
    /// By name; matrices not in here stay floats.
    pub codes: BTreeMap<String, CodesBuf>,
    /// The weights that the codes represent.
    pub dequantised: Network,
    /// The weights with noise instead of quantisation.
    pub noisy: Network,
    /// `norm(W - W') / norm(W)` over all quantised matrices.
    pub weights_error: f64,
    /// `weights_error` for the best scales.
    pub best: f64,
    /// Effective bits per weight, over all quantised matrices.
    pub bits_a_weight: f64,
}

impl Quantised {
    /// Quantises all matrices except `exempt`, with searched symmetric scales.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub fn new(
        rt: &Runtime,
        floats: &Network,
        exempt: &[&str],
        bits: Bits,
        group: usize,
    ) -> Result<Quantised> {
        let mut codes = BTreeMap::new();
        for (name, w) in &floats.matrices {
            if !exempt.contains(&name.as_str()) {
                codes.insert(name.clone(), searched(rt, w, bits, group)?);
            }
        }
        Quantised::of(floats, floats, codes)
    }

    /// From existing codes. `rest` has everything else: norms, which tuning changes as well, and
    /// matrices that were left as floats.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub fn of(
        floats: &Network,
        rest: &Network,
        codes: BTreeMap<String, CodesBuf>,
    ) -> Result<Quantised> {
        let (mut dequantised, mut noisy) = (rest.clone(), floats.clone());
        let (mut lost, mut squares, mut bytes, mut weights) = (0.0, 0.0, 0, 0);
        let mut all: Vec<Group> = Vec::new();
        let mut widths: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        for (seed, (name, codes)) in codes.iter().enumerate() {
            let w = &floats.matrices[name];
            let group = group_of(codes);
            let groups = optimum::groups(&w.values, w.cols, group, codes.bits);
            let back = Matrix {
                values: dequantised_values(&codes.as_codes())?,
                // Not `group`: one longer than a row keeps the blocks of activations at 32 columns.
                group: Some(codes.shape.group),
                ..*w
            };
            for (w, b) in w.values.iter().zip(&back.values) {
                squares += f64::from(*w).powi(2);
                lost += (f64::from(*w) - f64::from(*b)).powi(2);
            }
            let mut noise = channel::through(w, group, &groups, 100 + seed as u64);
            noise.group = Some(codes.shape.group);
            noisy.matrices.insert(name.clone(), noise);
            dequantised.matrices.insert(name.clone(), back);
            all.extend(groups);
            bytes += codes.as_codes().stored_bytes();
            weights += w.values.len();
            *widths.entry((codes.bits.get(), group)).or_default() += w.values.len();
        }
        let most = widths.into_iter().max_by_key(|(_, n)| *n);
        let (bits, group) = most.map_or((32, 0), |(key, _)| key);
        Ok(Quantised {
            bits: Bits::new(bits as i64).unwrap_or(Bits::Eight),
            group,
            codes,
            dequantised,
            noisy,
            weights_error: (lost / f64::max(squares, f64::MIN_POSITIVE)).sqrt(),
            best: optimum::relative_error(&all),
            bits_a_weight: 8.0 * bytes as f64 / weights.max(1) as f64,
        })
    }

    /// The tensors of a model that multiplies by the codes and takes the rest from
    /// [`Quantised::dequantised`].
    pub fn tensors<'a>(&'a self, rt: &'a Runtime, activations: Activations) -> Given<'a> {
        Given {
            rt,
            network: &self.dequantised,
            codes: Some(&self.codes),
            activations,
        }
    }
}

/// The codes of a matrix, with searched symmetric scales.
///
/// # Errors
/// `ERR_MEMORY`.
pub fn searched(rt: &Runtime, w: &Matrix, bits: Bits, group: usize) -> Result<CodesBuf> {
    let spec = Spec {
        bits,
        symmetric: true,
        method: Method::Search,
        scales: ScalePrecision::Auto,
    };
    weights::quantize(rt, &w.values, Shape::new(w.rows, w.cols, group), &spec)
}

/// Columns per scale; 0: a row.
fn group_of(codes: &CodesBuf) -> usize {
    match codes.shape.groups {
        1 => 0,
        _ => codes.shape.group,
    }
}

/// The weights `(rows, cols)` that codes represent, by definition.
///
/// # Errors
/// `ERR_MEMORY`.
pub fn dequantised_values(codes: &Codes<'_>) -> Result<Vec<f32>> {
    let (rows, cols) = (codes.shape.rows, codes.shape.cols);
    let mut out = memory::filled(rows * cols, 0.0, "weights as float32")?;
    for (r, out) in out.chunks_exact_mut(cols.max(1)).enumerate() {
        codes.dequantize_row(r, out);
    }
    Ok(out)
}

/// A provider of the tensors of a model in memory.
pub struct Given<'a> {
    /// Converts the weights.
    pub rt: &'a Runtime,
    /// Everything that is not in `codes`.
    pub network: &'a Network,
    /// The matrices to be multiplied as codes; `None`: all are floats.
    pub codes: Option<&'a BTreeMap<String, CodesBuf>>,
    /// The precision in which products with codes read their inputs.
    pub activations: Activations,
}

impl Tensors for Given<'_> {
    fn matrix(&self, name: &str) -> Result<Weights> {
        if let Some(codes) = self.codes.and_then(|codes| codes.get(name)) {
            let options = WeightOptions {
                activations: self.activations,
                ..WeightOptions::default()
            };
            return weights::from_codes(self.rt, &codes.as_codes(), &options, Home::Backend);
        }
        let w = &self.network.matrices[name];
        Weights::from_f32(&w.values, w.rows, w.cols, false)
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.network.vectors[name].clone())
    }
}
