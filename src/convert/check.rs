//! The checks of a conversion once its files are in place.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Map;

use super::elements;
use crate::agreement::{Agreement, agreement};
use crate::error::{Error, Result};
use crate::formats::{self, MatrixView, WeightFile};
use crate::memory;
use crate::model::source::{Role, Source, TensorSpec};
use crate::model::{Model, ModelOptions};
use crate::options::Width;
use crate::runtime::Runtime;

/// The text on which a converted model is compared with its source.
pub const SAMPLE: &str = "Once upon a time there was a small boat that lived in a harbour by the sea. Every morning the \
    fisherman and his daughter took it out to look for fish. One day the wind was strong and the waves were high. \
    \"We should go home,\" said the girl, \"the sky is dark.\" Her father looked up and nodded. They turned the boat and \
    sailed back. When they came to the harbour it began to rain. They were wet and cold, but they were happy to be safe. \
    At home her mother had made a hot soup, and they sat by the fire and told her what they had seen.";

/// The largest source that is compared, in bytes as float32, if there is memory: 3 billion weights,
/// which take about 10 seconds of one core.
const MOST_COMPARED: u64 = 12 << 30;

/// The same if the available memory is unknown.
const COMPARED_BLINDLY: u64 = 1 << 30;

/// What is compared in any case: the conversion itself took more.
const ALWAYS_COMPARED: u64 = 64 << 20;

/// Whether a model with these tensors is compared with its source, which is then in memory as
/// float32: only if that takes at most half of the available memory.
pub(super) fn is_compared(specs: &[TensorSpec]) -> bool {
    let floats: u64 = specs.iter().map(|s| 4 * elements(&s.shape)).sum();
    let most = memory::available().map_or(COMPARED_BLINDLY, |bytes| bytes / 2);
    floats <= most.clamp(ALWAYS_COMPARED, MOST_COMPARED)
}

/// Opens the result.
///
/// # Errors
/// Those of [`Source::open`]; `ERR_IO` if the manifest is no longer that of the npz with this
/// SHA-256, but of another conversion to the same target.
pub(super) fn written(manifest: &Path, sha256: &str) -> Result<Source> {
    let source = Source::open(manifest, true)?;
    match source.weights() {
        WeightFile::Manifest(file) if file.sha256() == Some(sha256) => Ok(source),
        _ => Err(source.within(Error::io(
            "it was written, and replaced by another conversion before it was checked",
        ))),
    }
}

/// Compares the result with its source, and records the outcome in the manifest. `None` without a
/// tokenizer, if it was cancelled, and if the source was replaced, or the manifest, which is no
/// longer that of the npz with this SHA-256.
pub(super) fn compared(
    rt: &Runtime,
    source: &Source,
    manifest: &Path,
    sha256: &str,
    cancelled: &AtomicBool,
) -> Result<Option<Agreement>> {
    // The result as written, whether floats or codes.
    let open = |path: &Path, width: Option<Width>| {
        let mut options = ModelOptions::default();
        options.weights.width = width;
        options.weights.keep_floats = true;
        Model::open(rt, path, &options).map(Arc::new)
    };
    let model = open(manifest, None)?;
    let Ok(tokenizer) = model.tokenizer() else {
        return Ok(None);
    };
    let mut ids = tokenizer.encode(SAMPLE, tokenizer.begins())?;
    ids.truncate(model.context());
    if ids.len() < 2 {
        return Ok(None);
    }
    if cancelled.load(Ordering::Relaxed) {
        return Ok(None);
    }
    let reference = open(source.origin(), Some(Width::F32))?;
    if cancelled.load(Ordering::Relaxed) || source.is_replaced() {
        return Ok(None);
    }
    let found = agreement(rt, &model, &reference, &ids, ids.len(), &mut |_, _| {})?;
    let more = Map::from_iter([("compared".to_owned(), found.to_json())]);
    let amended = formats::amend(manifest, sha256, "accuracy", more)?;
    Ok(amended.then_some(found))
}

/// Reads a whole model and checks that every tensor is readable and finite, and that the npz of a
/// manifest is the one that was written, by its SHA-256. `next` is called with the name of each
/// tensor before it is read.
///
/// # Errors
/// Those of `next`; `ERR_FORMAT` if a check fails; `ERR_UNSUPPORTED` for a type that cannot be
/// read; `ERR_IO`; `ERR_MEMORY`.
pub fn verify(source: &Source, next: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    if let WeightFile::Manifest(manifest) = source.weights() {
        manifest.verify().map_err(|e| source.within(e))?;
    }
    for spec in source.tensors() {
        next(&spec.name)?;
        match spec.role {
            Role::Vector => drop(source.vector(&spec.name)?),
            Role::Matrix => {
                finite(&source.matrix(&spec.name)?)
                    .map_err(|e| source.within(e.within(&spec.name)))?;
            }
        }
        source.forget(&spec.name);
    }
    Ok(())
}

/// `ERR_FORMAT` for a matrix with a weight that is not finite; `ERR_MEMORY`.
pub(super) fn finite(view: &MatrixView<'_>) -> Result<()> {
    let is_finite = match view {
        MatrixView::Floats(view) => view.is_finite(),
        MatrixView::Codes(view) => view.is_finite()?,
    };
    match is_finite {
        true => Ok(()),
        false => Err(Error::format(
            "a weight is not finite, expected finite numbers",
        )),
    }
}
