//! The Hessians of a model, gathered while it reads a text.

use std::collections::HashMap;
use std::sync::Arc;

use super::Hessian;
use super::tune::{Tuned, tune};
use crate::error::{Error, Result};
use crate::memory;
use crate::model::source::{Role, Source};
use crate::model::{Logits, Model, ModelOptions, Observer, Session, SessionOptions};
use crate::options::{WeightOptions, Width};
use crate::quant::{Bits, CodesBuf};
use crate::runtime::Runtime;

/// Tokens of a window of the text; the contexts of a model's first tokens are seen often enough with it.
const WINDOW: usize = 256;

/// Windows that are read at most, spread evenly over the text: 65,536 tokens.
const MOST_WINDOWS: usize = 256;

/// What Hessians may take at a time; a model that needs more reads the text several times.
const MOST_BYTES: usize = 3 << 30;

/// A model with more weights than this reads as 8-bit codes: 2 GB as float32.
const MOST_FLOATS: usize = 1 << 29;

/// A model and the text that it reads, for the second moments of what its matrices are multiplied with.
pub struct Calibration {
    model: Arc<Model>,
    /// Windows of tokens: `(windows, window)`.
    ids: Vec<u32>,
    window: usize,
    /// What the matrices that share an input are called together, in the order of the layers, with their columns.
    inputs: Vec<(String, usize)>,
    /// Those of the inputs that were gathered last.
    hessians: HashMap<String, Hessian>,
    tuned: Option<Tuned>,
}

/// What is known of a matrix that is to be quantised.
#[derive(Clone, Copy, Debug)]
pub enum Known<'a> {
    /// Nothing: it is multiplied with nothing.
    Nothing,
    /// The second moments `(cols, cols)` of its inputs.
    Inputs(&'a Hessian),
    /// The codes that it is quantised to, with scales that were tuned.
    Codes(&'a CodesBuf),
}

impl Calibration {
    /// Opens the model of `source` for reading `text`, float weights as float32; a large model as 8-bit codes.
    ///
    /// # Errors
    /// Those of [`Model::open`]; `ERR_UNSUPPORTED` if it has no tokenizer; `ERR_RANGE` if the text has fewer tokens than a window.
    pub fn new(rt: &Runtime, source: &Source, text: &str) -> Result<Calibration> {
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
        let model = Model::open_on_cpu(rt, source.origin(), &options)?;
        let window = WINDOW.min(model.context());
        let ids = windows(&model, text, window)?;
        let tied = source.architecture().tied;
        let mut inputs: Vec<(String, usize)> = Vec::new();
        for t in &matrices {
            let key = shared_input(&t.name);
            // An embedding is looked up. Where it makes the logits as well, its inputs are those of the output.
            let multiplied = tied || t.name != EMBEDDING;
            if multiplied && inputs.iter().all(|(k, _)| *k != key) {
                inputs.push((key, t.shape[1]));
            }
        }
        Ok(Calibration {
            model: Arc::new(model),
            ids,
            window,
            inputs,
            hessians: HashMap::new(),
            tuned: None,
        })
    }

    /// Quantises the model by the options and tunes scales and norms in so many steps, of which each is told; what
    /// [`Calibration::known`] and [`Calibration::norm`] give afterwards is the result. Returns the mean divergence from the
    /// unquantised model at the beginning and at the end, in nats a token.
    ///
    /// # Errors
    /// `ERR_UNSUPPORTED` for a model of more than 67 million weights or not a plain Llama, and for options that quantise nothing;
    /// those of [`super::quantize`].
    pub fn tune(
        &mut self,
        rt: &Runtime,
        source: &Source,
        options: &WeightOptions,
        steps: usize,
        progress: &mut dyn FnMut(usize),
    ) -> Result<(f64, f64)> {
        let tuned = tune(rt, source, self, options, steps, progress)?;
        let divergence = tuned.divergence;
        self.tuned = Some(tuned);
        Ok(divergence)
    }

    /// What is known of a matrix by its canonical name.
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

    /// The tuned values `(hidden)` of a norm by its canonical name; `None` before [`Calibration::tune`].
    pub fn norm(&self, name: &str) -> Option<&[f32]> {
        let norm = self.tuned.as_ref()?.vectors.get(name)?;
        Some(norm)
    }

    /// The windows of the text, each of as many tokens.
    pub(super) fn windows(&self) -> std::slice::ChunksExact<'_, u32> {
        self.ids.chunks_exact(self.window)
    }

    /// Tokens of a window.
    pub(super) fn window(&self) -> usize {
        self.window
    }

    /// Tokens that are read: those of all windows, which of a long text are a part of it.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// The Hessian of a matrix by its canonical name; `None` if it is multiplied with nothing.
    ///
    /// Those of as many following matrices as memory is meant for are gathered with it, so matrices are best asked for in the
    /// order of the layers.
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

    /// Reads the text for the inputs from `at` on.
    fn gather(&mut self, rt: &Runtime, at: usize) -> Result<()> {
        self.hessians.clear();
        let mut bytes = 0usize;
        for (key, cols) in &self.inputs[at..] {
            bytes = bytes.saturating_add(cols.saturating_mul(*cols).saturating_mul(4));
            if bytes > MOST_BYTES && !self.hessians.is_empty() {
                break;
            }
            self.hessians.insert(key.clone(), Hessian::new(*cols)?);
        }
        let output = self.hessians.contains_key(OUTPUT) || self.hessians.contains_key(EMBEDDING);
        let options = SessionOptions {
            context: Some(self.window),
            ..SessionOptions::default()
        };
        let mut session = Session::new(rt, self.model.clone(), &options)?;
        let vocabulary = self.model.architecture().vocabulary;
        let len = if output { self.window * vocabulary } else { 0 };
        let mut logits = memory::filled(len, 0.0, "the logits of a window")?;
        let mut seen = Seen {
            wanted: self
                .hessians
                .keys()
                .map(|k| (k.clone(), Vec::new()))
                .collect(),
        };
        for ids in self.ids.chunks_exact(self.window) {
            session.rewind(rt, 0)?;
            let wanted = match output {
                true => Logits::All(&mut logits),
                false => Logits::None,
            };
            session.eval_observed(rt, ids, wanted, Some(&mut seen))?;
            // Not in the observer: there, the threads are busy with the model.
            for (key, x) in &mut seen.wanted {
                if let Some(hessian) = self.hessians.get_mut(key) {
                    hessian.add(rt, x)?;
                }
                x.clear();
            }
        }
        Ok(())
    }
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const OUTPUT: &str = "lm_head.weight";

/// The matrix that stands for all those with the same inputs: the queries' for keys and values, the gate's for up.
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

/// Keeps the inputs of a window.
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

/// The text as windows of tokens that begin as texts do; at most [`MOST_WINDOWS`], spread evenly.
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
