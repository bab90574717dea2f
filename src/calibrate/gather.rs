//! The Hessians of a model, gathered while it reads a text.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::tune::{Tuned, tune};
use super::{Hessian, go_on};
use crate::error::{Error, Result, Status};
use crate::memory;
use crate::model::source::{Role, Source};
use crate::model::{Logits, Model, ModelOptions, Observer, Session, SessionOptions};
use crate::options::{WeightOptions, Width};
use crate::quant::{Bits, CodesBuf};
use crate::runtime::Runtime;

/// Tokens per window of the text, few enough that early positions, which have little context, occur
/// often enough.
const WINDOW: usize = 256;

/// The most windows that are read, spread evenly over the text: 65,536 tokens.
const MOST_WINDOWS: usize = 256;

/// The memory for Hessians, in bytes; for a model that needs more, the text is read several times.
const MOST_BYTES: usize = 3 << 30;

/// A model with more weights than this is run with 8-bit codes: 2 GB as float32.
const MOST_FLOATS: usize = 1 << 29;

/// A model and a text that it reads, for the second moments of the inputs of its matrices.
///
/// Once `cancelled` is true, what it does ends with `ERR_STATE` at the next window of the text or
/// step of tuning.
pub struct Calibration<'a> {
    pub(super) cancelled: &'a AtomicBool,
    model: Arc<Model>,
    /// Windows of tokens: `(windows, window)`.
    ids: Vec<u32>,
    window: usize,
    /// The key of each set of matrices that share an input, in the order of the layers, with the
    /// number of columns.
    inputs: Vec<(String, usize)>,
    /// The Hessians of the inputs gathered last.
    hessians: HashMap<String, Hessian>,
    tuned: Option<Tuned>,
}

/// The information for quantising a matrix.
#[derive(Clone, Copy, Debug)]
pub enum Known<'a> {
    /// Nothing: no inputs are multiplied by it.
    Nothing,
    /// The second moments `(cols, cols)` of its inputs.
    Inputs(&'a Hessian),
    /// The codes that it is quantised to, with tuned scales.
    Codes(&'a CodesBuf),
}

impl<'a> Calibration<'a> {
    /// Opens the model of `source` for reading `text`, with float weights as float32, or as 8-bit
    /// codes if the model is large.
    ///
    /// # Errors
    /// Those of [`Model::open`], but `ERR_FORMAT` for weights that are not finite; `ERR_UNSUPPORTED`
    /// if it has no tokenizer; `ERR_RANGE` if the text has fewer tokens than a window.
    pub fn new(
        rt: &Runtime,
        source: &Source,
        text: &str,
        cancelled: &'a AtomicBool,
    ) -> Result<Calibration<'a>> {
        let matrices: Vec<_> = source
            .tensors()
            .into_iter()
            .filter(|t| t.role == Role::Matrix)
            .collect();
        let weights: usize = matrices.iter().map(|t| t.shape[0] * t.shape[1]).sum();
        let mut options = ModelOptions::default();
        options.weights.width = Some(match weights <= MOST_FLOATS {
            true => Width::F32,
            false => Width::Codes(Bits::Eight),
        });
        let model = Model::open_on_cpu(rt, source.origin(), &options);
        let model = model.map_err(|e| match e.status() {
            // Weights that are not finite: here they are not an argument, but those of a file.
            Status::Range => Error::format(e.message()),
            _ => e,
        })?;
        let window = WINDOW.min(model.context());
        let ids = windows(&model, text, window)?;
        let tied = source.architecture().tied;
        let mut inputs: Vec<(String, usize)> = Vec::new();
        for t in &matrices {
            let key = shared_input(&t.name);
            // An embedding is only looked up. If it also computes the logits, its inputs are those
            // of the output.
            let multiplied = tied || t.name != EMBEDDING;
            if multiplied && inputs.iter().all(|(k, _)| *k != key) {
                inputs.push((key, t.shape[1]));
            }
        }
        Ok(Calibration {
            cancelled,
            model: Arc::new(model),
            ids,
            window,
            inputs,
            hessians: HashMap::new(),
            tuned: None,
        })
    }

    /// Quantises the model by the options and tunes scales and norms in the given number of steps,
    /// each of which is reported to `progress`. Returns the mean divergence from the unquantised
    /// model before and after, in nats per token over the same part of the text. If it is lower
    /// afterwards, [`Calibration::known`] and [`Calibration::norm`] then return the result.
    ///
    /// # Errors
    /// `ERR_UNSUPPORTED` for a model with more than 67 million weights or other than a plain Llama,
    /// and for options without quantisation; those of [`super::quantize`].
    pub fn tune(
        &mut self,
        rt: &Runtime,
        source: &Source,
        options: &WeightOptions,
        steps: usize,
        progress: &mut dyn FnMut(usize),
    ) -> Result<(f64, f64)> {
        let tuned = tune(rt, source, self, options, steps, progress)?;
        let (before, after) = tuned.divergence;
        self.tuned = (after < before).then_some(tuned);
        Ok((before, after))
    }

    /// The information for quantising a matrix, by its canonical name.
    ///
    /// # Errors
    /// Those of [`Calibration::hessian`].
    pub fn known(&mut self, rt: &Runtime, name: &str) -> Result<Known<'_>> {
        // Looked up twice because of a borrow-checker limitation (Polonius problem case #3).
        if self
            .tuned
            .as_ref()
            .is_some_and(|t| t.matrices.contains_key(name))
        {
            let tuned = self.tuned.as_ref().and_then(|t| t.matrices.get(name));
            return Ok(tuned.map_or(Known::Nothing, Known::Codes));
        }
        Ok(self
            .hessian(rt, name)?
            .map_or(Known::Nothing, Known::Inputs))
    }

    /// The tuned values `(hidden)` of a norm, by its canonical name; `None` if
    /// [`Calibration::tune`] has not improved it.
    pub fn norm(&self, name: &str) -> Option<&[f32]> {
        let norm = self.tuned.as_ref()?.vectors.get(name)?;
        Some(norm)
    }

    /// The windows of the text, all of the same length.
    pub(super) fn windows(&self) -> std::slice::ChunksExact<'_, u32> {
        self.ids.chunks_exact(self.window)
    }

    /// Tokens per window.
    pub(super) fn window(&self) -> usize {
        self.window
    }

    /// The number of tokens in all windows, which cover only a part of a long text.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// The Hessian of a matrix, by its canonical name; `None` if no inputs are multiplied by it.
    ///
    /// The Hessians of the following matrices are gathered together with it, as far as the memory
    /// allows, so matrices should be requested in the order of the layers.
    ///
    /// # Errors
    /// Those of [`Session::eval`]; `ERR_MEMORY`.
    pub fn hessian(&mut self, rt: &Runtime, name: &str) -> Result<Option<&Hessian>> {
        let key = shared_input(name);
        let Some(at) = self.inputs.iter().position(|(k, _)| *k == key) else {
            return Ok(None);
        };
        if !self.hessians.contains_key(&key) {
            self.gather(rt, at)?;
        }
        Ok(self.hessians.get(&key))
    }

    /// Reads the text to gather the inputs from `at` on.
    fn gather(&mut self, rt: &Runtime, at: usize) -> Result<()> {
        // Frees the previous ones first.
        self.hessians.clear();
        let mut hessians = HashMap::new();
        let mut bytes = 0usize;
        for (key, cols) in &self.inputs[at..] {
            bytes = bytes.saturating_add(cols.saturating_mul(*cols).saturating_mul(4));
            if bytes > MOST_BYTES && !hessians.is_empty() {
                break;
            }
            hessians.insert(key.clone(), Hessian::new(*cols)?);
        }
        let output = hessians.contains_key(OUTPUT) || hessians.contains_key(EMBEDDING);
        let options = SessionOptions {
            context: Some(self.window),
            ..SessionOptions::default()
        };
        let mut session = Session::new(rt, self.model.clone(), &options)?;
        let vocabulary = self.model.architecture().vocabulary;
        let len = if output { self.window * vocabulary } else { 0 };
        let mut logits = memory::filled(len, 0.0, "the logits of a window")?;
        let mut seen = Seen {
            wanted: hessians.keys().map(|k| (k.clone(), Vec::new())).collect(),
        };
        for ids in self.ids.chunks_exact(self.window) {
            go_on(self.cancelled)?;
            session.rewind(rt, 0)?;
            let wanted = match output {
                true => Logits::All(&mut logits),
                false => Logits::None,
            };
            session.eval_observed(rt, ids, wanted, Some(&mut seen))?;
            // Not in the observer, where the threads are busy with the model.
            for (key, x) in &mut seen.wanted {
                if let Some(hessian) = hessians.get_mut(key) {
                    hessian.add(rt, x)?;
                }
                x.clear();
            }
        }
        self.hessians = hessians;
        Ok(())
    }
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const OUTPUT: &str = "lm_head.weight";

/// The key of the matrices with the same inputs: the query matrix for keys and values, the gate for
/// up.
fn shared_input(name: &str) -> String {
    let first = [
        ("k_proj", "q_proj"),
        ("v_proj", "q_proj"),
        ("up_proj", "gate_proj"),
    ];
    for (own, shared) in first {
        let ending = format!("{own}.weight");
        if let Some(layer) = name.strip_suffix(&ending) {
            return format!("{layer}{shared}.weight");
        }
    }
    name.to_owned()
}

/// Collects the inputs of a window.
struct Seen {
    /// By matrix: `(n, cols)`.
    wanted: HashMap<String, Vec<f32>>,
}

impl Observer for Seen {
    fn input(&mut self, weight: &str, x: &[f32], _n: usize) {
        if let Some(kept) = self.wanted.get_mut(weight) {
            kept.extend_from_slice(x);
        }
    }
}

/// The text as windows of tokens, each beginning as a text does; at most [`MOST_WINDOWS`], spread
/// evenly.
fn windows(model: &Model, text: &str, window: usize) -> Result<Vec<u32>> {
    let tokenizer = model.tokenizer()?;
    let ids = tokenizer.encode(text, tokenizer.begins())?;
    let all = ids.len() / window;
    if all == 0 {
        return Err(Error::range(format!(
            "the calibration text has {} tokens, expected at least {window}",
            ids.len()
        )));
    }
    let taken = all.min(MOST_WINDOWS);
    let mut out = memory::with_capacity(taken * window, "the tokens to read")?;
    for i in 0..taken {
        let start = out.len();
        out.extend_from_slice(&ids[i * all / taken * window..][..window]);
        if let Some(bos) = tokenizer.begins() {
            out[start] = bos;
        }
    }
    Ok(out)
}
