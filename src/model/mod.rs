//! Language models: decoder-only transformers similar to Llama.
//!
//! | module | responsibility |
//! |---|---|
//! | `architecture` | what a model computes, as plain data |
//! | `source` | models on disk: architecture, tensors, tokenizer |
//! | `load` | from there to weights in the form that products read |
//! | `decoder` | the forward pass |
//! | `rope`, `attention`, `cache` | its parts that are not products |
//! | `device` | the same pass on CUDA devices |
//! | `engine` | which of the two a session uses |
//! | `session` | a conversation: position, KV cache, sampler |
//! | `sampler` | the choice of the next token |
//! | `options` | the option JSON of models and sessions |

pub mod architecture;
mod attention;
mod cache;
mod cancel;
mod decoder;
mod device;
mod engine;
mod load;
mod options;
mod rope;
mod sampler;
mod session;
pub mod source;

pub use cancel::Canceller;
pub use decoder::{Logits, Observer};
pub use load::Tensors;
pub use options::{ModelOptions, Precision, Sampling, SessionOptions};
pub(crate) use session::not_finite;
pub use session::{Session, Step};

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::runtime::Runtime;
use crate::tokenizer::Tokenizer;
use architecture::Architecture;
use device::{Placement, Room};
use load::{FromDisk, Parameters};
use source::{Source, TokenizerSource};

/// A model in memory.
pub struct Model {
    architecture: Architecture,
    parameters: Parameters,
    /// `None` if the files have none; then there are only ids.
    tokenizer: Option<Tokenizer>,
    /// The longest context of a session.
    context: usize,
    /// Whether the weights are float32.
    floats: bool,
    sampling: Result<Sampling>,
    kind: &'static str,
    /// What it was opened from; `None`: made in memory.
    path: Option<PathBuf>,
    placement: Placement,
}

impl Model {
    /// Opens a folder in the Hugging Face layout, a `.gguf` file or a manifest. Weights that are
    /// already quantised are taken as stored, unless the options ask for another width; floats are
    /// quantised by the options.
    ///
    /// # Errors
    /// Those of [`Source::open`] and of the tokenizer; `ERR_RANGE` for a weight that is not finite;
    /// `ERR_CONFIG` for a context longer than the model's; `ERR_MEMORY`.
    pub fn open(rt: &Runtime, path: &Path, options: &ModelOptions) -> Result<Model> {
        Model::open_where(rt, path, options, true)
    }

    /// The same on the CPU, where the inputs of products can be observed.
    ///
    /// # Errors
    /// Those of [`Model::open`].
    pub fn open_on_cpu(rt: &Runtime, path: &Path, options: &ModelOptions) -> Result<Model> {
        Model::open_where(rt, path, options, false)
    }

    fn open_where(
        rt: &Runtime,
        path: &Path,
        options: &ModelOptions,
        devices: bool,
    ) -> Result<Model> {
        let beside = |source: &Source| Ok((open_tokenizer(source)?, source.generation()?));
        let (source, (tokenizer, advised)) = Source::open_with(path, options.weights.mmap, beside)?;
        let architecture = source.architecture().clone();
        let context = options.context.unwrap_or(architecture.context);
        if context > architecture.context {
            return Err(Error::config(format!(
                "options has \"context\": {context}, expected at most {}, that of the model",
                architecture.context
            )));
        }
        let tensors = FromDisk {
            rt,
            source: &source,
            options: &options.weights,
            room: Room::new(rt, &architecture, context, devices)?,
        };
        let mut parameters =
            Parameters::load(&architecture, &tensors).map_err(|e| source.within(e))?;
        let placement = match devices {
            true => Placement::of(rt, &architecture, &mut parameters),
            false => Ok(Placement::Host("it was opened for the CPU".to_owned())),
        };
        let floats = parameters.embedding.bits() == 32;
        // Only advice, so an error in it is reported only to callers who ask for it.
        let sampling = Sampling::advised(&advised);
        Ok(Model {
            sampling: sampling.map_err(|e| e.within(path.display())),
            placement: placement.map_err(|e| e.within(path.display()))?,
            architecture,
            parameters,
            tokenizer,
            context,
            floats,
            kind: source.kind(),
            path: Some(path.to_owned()),
        })
    }

    /// A model without a tokenizer whose tensors come from any provider; it runs on the CPU.
    ///
    /// # Errors
    /// `ERR_FORMAT` for an inconsistent architecture; those of `tensors`.
    ///
    /// # Panics
    /// If the shape of a tensor differs from that required by the architecture.
    pub fn new(architecture: Architecture, tensors: &dyn Tensors) -> Result<Model> {
        architecture.check()?;
        let parameters = Parameters::load(&architecture, tensors)?;
        Ok(Model {
            context: architecture.context,
            floats: parameters.embedding.bits() == 32,
            sampling: Ok(Sampling::default()),
            placement: Placement::Host("it was made in memory".to_owned()),
            architecture,
            parameters,
            tokenizer: None,
            kind: "memory",
            path: None,
        })
    }

    /// The architecture.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The longest context of a session.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The sampling options of `generation_config.json`, with the defaults of sessions for those it
    /// does not mention. Sessions use them only if they are given as options.
    ///
    /// # Errors
    /// `ERR_FORMAT` for a value outside its domain.
    pub fn sampling(&self) -> Result<&Sampling> {
        self.sampling.as_ref().map_err(Clone::clone)
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// `ERR_UNSUPPORTED` if its files have none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| self.no_tokenizer())
    }

    fn no_tokenizer(&self) -> Error {
        let e = Error::unsupported("the model has no tokenizer: only ids go in and out of it");
        match &self.path {
            Some(path) => e.in_file(path),
            None => e,
        }
    }

    /// The bytes of all matrices, and of those that every token is multiplied by: an embedding that
    /// is only looked up is not counted there.
    pub fn weight_bytes(&self) -> (usize, usize) {
        let all = self.parameters.matrices().map(|w| w.bytes()).sum();
        let looked_up = match self.parameters.output {
            Some(_) => self.parameters.embedding.bytes(),
            None => 0,
        };
        (all, all - looked_up)
    }

    /// A description of the model.
    pub fn info(&self) -> Value {
        let a = &self.architecture;
        let mut bits: Vec<usize> = self.parameters.matrices().map(|w| w.bits()).collect();
        bits.sort_unstable();
        bits.dedup();
        let matrices = self.parameters.matrices();
        let parameters: usize = matrices.map(|w| w.rows() * w.cols()).sum();
        let first = &self.parameters.layers.first().map(|l| &l.q.weights);
        json!({
            "family": a.family.name(),
            "format": self.kind,
            "layers": a.layers,
            "hidden": a.hidden,
            "intermediate": a.intermediate,
            "heads": a.heads,
            "kv_heads": a.kv_heads,
            "head_dim": a.head_dim,
            "vocabulary": a.vocabulary,
            "context": self.context,
            "parameters": parameters,
            "bits": bits,
            "bytes": self.weight_bytes().0,
            "backend": self.placement.name(),
            "backend_reason": self.placement.reason(),
            "devices": self.placement.devices(),
            "activations": first.map(|w| w.activations().name()),
            "tokenizer": self.tokenizer.is_some(),
            "chat": self.tokenizer.as_ref().is_some_and(Tokenizer::has_chat_template),
            "bos": self.tokenizer.as_ref().and_then(Tokenizer::bos),
        })
    }
}

/// The tokenizer of a model, if its files have one.
///
/// # Errors
/// Those of [`Source::tokenizer`], [`Tokenizer::from_folder`] and [`Tokenizer::from_gguf`];
/// those of [`Tokenizer::check_rows`].
pub fn open_tokenizer(source: &Source) -> Result<Option<Tokenizer>> {
    let tokenizer = match source.tokenizer()? {
        TokenizerSource::Folder(folder) if folder.join("tokenizer.json").is_file() => {
            Tokenizer::from_folder(folder)?
        }
        TokenizerSource::Gguf(file) if file.metadata("tokenizer.ggml.model").is_some() => {
            Tokenizer::from_gguf(file).map_err(|e| source.within(e))?
        }
        TokenizerSource::Folder(_) | TokenizerSource::Gguf(_) => return Ok(None),
    };
    tokenizer
        .check_rows(source.architecture().vocabulary)
        .map_err(|e| source.within(e))?;
    Ok(Some(tokenizer))
}

#[cfg(test)]
mod tests;
