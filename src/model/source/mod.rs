//! Models on disk: their architecture, their tensors by canonical names, and the location of their
//! tokenizer.
//!
//! | module | responsibility |
//! |---|---|
//! | `hf` | `config.json` of the Hugging Face layout |
//! | `gguf` | the metadata of a GGUF file |
//! | `manifest` | the `architecture` object of our own manifest, reading and writing |
//! | `generation` | the sampling options that a model's authors advise |
//! | `fields` | typed fields of a JSON object, with messages that name them |
//! | `names` | the tensors of an architecture, and their names in each format |

mod fields;
mod generation;
mod gguf;
mod hf;
mod manifest;
mod names;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

pub use manifest::to_json as architecture_to_json;
pub use names::{Role, TensorSpec};

use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::architecture::Architecture;
use crate::error::{Error, Result};
use crate::formats::{
    self, FileBytes, FloatValues, MatrixView, Stored, WeightFile, gguf::Gguf, limits,
};
use crate::memory;
use crate::quant::Bits;

/// The embedding matrix.
const EMBEDDING: &str = "model.embed_tokens.weight";

/// The output matrix.
const OUTPUT: &str = "lm_head.weight";

/// An opened model.
pub struct Source {
    architecture: Architecture,
    weights: WeightFile,
    path: PathBuf,
    /// The folder with the weights, where the tokenizer's files may be.
    folder: PathBuf,
}

/// Where the tokenizer of a model is.
pub enum TokenizerSource<'a> {
    /// `tokenizer.json` and related files in this folder; they may be absent.
    Folder(&'a Path),
    /// In the metadata of this file; it may be absent.
    Gguf(&'a Gguf),
}

impl Source {
    /// Opens a folder in the Hugging Face layout, a `.gguf` file, or a manifest (`.json`). A folder
    /// with exactly one manifest, or else exactly one `.gguf` file, stands for that file. With
    /// `mmap` false, files are read instead of mapped.
    ///
    /// Fails unless every tensor that the architecture needs is present with the right shape.
    ///
    /// # Errors
    /// `ERR_IO`; `ERR_FORMAT` for what is missing, misshapen or contradictory; `ERR_UNSUPPORTED`
    /// for an unknown architecture (the message lists the known ones); `ERR_MEMORY`.
    pub fn open(path: &Path, mmap: bool) -> Result<Source> {
        let source = if path.is_dir() {
            Source::open_folder(path, mmap)?
        } else {
            Source::open_file(path, mmap)?
        };
        source
            .check_tensors()
            .map_err(|e| e.within(source.path.display()))?;
        Ok(source)
    }

    /// Opens a model, and what `read` reads of the files beside it. If a writer replaces the model
    /// meanwhile, which may give files of two models, it is opened again.
    ///
    /// # Errors
    /// Those of [`Source::open`] and of `read`.
    pub fn open_with<T>(
        path: &Path,
        mmap: bool,
        read: impl Fn(&Source) -> Result<T>,
    ) -> Result<(Source, T)> {
        loop {
            let source = Source::open(path, mmap)?;
            let beside = read(&source);
            if !source.is_replaced() {
                return Ok((source, beside?));
            }
        }
    }

    /// Whether a writer has replaced the manifest since it was opened, by that of another model: a
    /// conversion adds to the accuracy of its own once it is in place.
    pub fn is_replaced(&self) -> bool {
        let model = |text: &[u8]| {
            let mut manifest: Map<String, Value> = serde_json::from_slice(text).ok()?;
            manifest.remove("accuracy");
            Some(manifest)
        };
        match &self.weights {
            WeightFile::Manifest(file) => fs::read(&self.path)
                .is_ok_and(|now| now != file.text() && model(&now) != model(file.text())),
            _ => false,
        }
    }

    fn open_folder(folder: &Path, mmap: bool) -> Result<Source> {
        let config = folder.join("config.json");
        if !config.is_file() {
            return Source::open_file(&only_model(folder)?, mmap);
        }
        let bytes = FileBytes::open(&config, mmap)?;
        let mut architecture = hf::architecture(&bytes).map_err(|e| e.within(config.display()))?;
        let path = safetensors_in(folder)?;
        let weights = formats::open(&path, mmap)?;
        architecture.tied &=
            !has_output_of_its_own(&weights).map_err(|e| e.within(path.display()))?;
        Ok(Source {
            architecture,
            weights,
            path,
            folder: folder.to_owned(),
        })
    }

    fn open_file(path: &Path, mmap: bool) -> Result<Source> {
        if path.file_name().is_some_and(|name| name == "config.json") && path.is_file() {
            return Err(Error::unsupported(
                "the description of a model without its weights: give the folder that holds both",
            )
            .in_file(path));
        }
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let weights = formats::open(path, mmap)?;
        let architecture = match &weights {
            WeightFile::Gguf(file) => gguf::architecture(file),
            WeightFile::Manifest(file) => manifest::architecture(file.text()),
            WeightFile::SafeTensors(_) | WeightFile::Sharded(_) => Err(Error::unsupported(
                "weights without a description of the model: give the folder that holds config.json as well",
            )),
        };
        Ok(Source {
            architecture: architecture.map_err(|e| e.within(path.display()))?,
            weights,
            path: path.to_owned(),
            folder,
        })
    }

    /// Checks that every tensor of the architecture is present with its shape.
    fn check_tensors(&self) -> Result<()> {
        for spec in self.tensors() {
            let stored = self.stored_name(&spec.name)?;
            let Some(shape) = self.weights.shape(&stored)? else {
                return Err(Error::format(format!(
                    "there is no tensor {stored}, which {} has",
                    self.architecture.family.name()
                )));
            };
            if *shape != spec.shape[..] {
                return Err(Error::format(format!(
                    "{stored} is of shape {shape:?}, {:?} was expected",
                    spec.shape
                )));
            }
        }
        self.check_no_others()
    }

    /// Checks that there is no additional tensor that the computation would have to include: a
    /// bias, a layer. Folders in the Hugging Face layout may have others: `transformers` ignores
    /// tensors unknown to the class, too.
    fn check_no_others(&self) -> Result<()> {
        let known: HashSet<String> = self
            .tensors()
            .iter()
            .map(|spec| self.stored_name(&spec.name))
            .collect::<Result<_>>()?;
        let family = self.architecture.family;
        let other = match &self.weights {
            WeightFile::Gguf(file) => file
                .names()
                .find(|name| !known.contains(*name) && !gguf::expected_besides(name, family)),
            WeightFile::Manifest(file) => file
                .names()
                .find(|name| !known.contains(*name) && name.starts_with("model.layers.")),
            WeightFile::SafeTensors(_) | WeightFile::Sharded(_) => None,
        };
        match other {
            None => Ok(()),
            Some(name) => Err(Error::unsupported(format!(
                "the tensor {name}, which no {} of {} layers has",
                family.name(),
                self.architecture.layers
            ))),
        }
    }

    /// The architecture.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Every tensor that the architecture needs, in the order of the layers.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        names::tensors(&self.architecture)
    }

    /// A matrix by its canonical name.
    ///
    /// # Errors
    /// Those of [`WeightFile::matrix`].
    pub fn matrix(&self, name: &str) -> Result<MatrixView<'_>> {
        let stored = self.stored_name(name)?;
        self.weights.matrix(&stored).map_err(|e| self.within(e))
    }

    /// A failure with the file that has the weights before the message, unless that names it.
    #[must_use]
    pub fn within(&self, e: Error) -> Error {
        e.in_file(&self.path)
    }

    /// The width of a matrix by its canonical name, if it is quantised in a format whose codes are
    /// taken as stored.
    pub fn quantised(&self, name: &str) -> Result<Option<Bits>> {
        Ok(match self.matrix(name)? {
            MatrixView::Codes(view) => Some(view.as_codes().bits),
            MatrixView::Floats(_) => None,
        })
    }

    /// A norm or a bias by its canonical name, as float32.
    ///
    /// # Errors
    /// Those of [`WeightFile::vector`]; `ERR_FORMAT` for a value that is not finite.
    pub fn vector(&self, name: &str) -> Result<Vec<f32>> {
        self.finite_vector(name, Error::format)
    }

    /// As [`Source::vector`]; `not_finite` creates the error for a value that is not finite.
    ///
    /// # Errors
    /// As [`Source::vector`].
    pub fn finite_vector(&self, name: &str, not_finite: fn(String) -> Error) -> Result<Vec<f32>> {
        let view = self.vector_view(name)?;
        let mut out = memory::filled(view.shape().1, 0.0, "a norm or bias")?;
        view.row(0, &mut out);
        match out.iter().position(|v| !v.is_finite()) {
            None => Ok(out),
            Some(i) => Err(self.within(not_finite(format!(
                "{name}: element {i} is {}, expected a finite number",
                out[i]
            )))),
        }
    }

    /// A norm or a bias by its canonical name, as stored in the file.
    pub fn vector_view(&self, name: &str) -> Result<MatrixView<'_>> {
        let stored = self.stored_name(name)?;
        self.weights.vector(&stored).map_err(|e| self.within(e))
    }

    /// Releases the memory of a tensor, by its canonical name; see [`WeightFile::forget`].
    pub fn forget(&self, name: &str) {
        if let Ok(stored) = self.stored_name(name) {
            self.weights.forget(&stored);
        }
    }

    /// How the file stores a tensor, by its canonical name; see [`WeightFile::stored`].
    ///
    /// # Errors
    /// Those of [`WeightFile::stored`].
    pub fn stored(&self, name: &str) -> Result<Option<Stored<'_>>> {
        let stored = self.stored_name(name)?;
        self.weights.stored(&stored).map_err(|e| self.within(e))
    }

    /// The relative error of a matrix, by its canonical name, as measured by its conversion; `None`
    /// if the file does not have it.
    ///
    /// # Errors
    /// Those of [`WeightFile::matrix`].
    pub fn relative_error(&self, name: &str) -> Result<Option<f64>> {
        Ok(match &self.weights {
            WeightFile::Manifest(manifest) => manifest.relative_error(&self.stored_name(name)?),
            _ => None,
        })
    }

    /// The types, as named by the file, of the matrices whose codes are not taken as stored, in the
    /// order of the layers. With each type comes the width that opening the model quantises it to
    /// by default, if that is not the usual default.
    ///
    /// # Errors
    /// Those of [`WeightFile::matrix`]; among them `ERR_UNSUPPORTED` for a type that cannot be read.
    pub fn float_types(&self) -> Result<Vec<(String, Option<Bits>)>> {
        let mut types: Vec<(String, Option<Bits>)> = Vec::new();
        for spec in self.tensors().iter().filter(|s| s.role == Role::Matrix) {
            let (kind, width) = match self.stored(&spec.name)? {
                Some(stored) if stored.codes => continue,
                Some(stored) if !stored.supported => {
                    // Which fails, and says what is supported.
                    self.matrix(&spec.name)?;
                    continue;
                }
                Some(stored) => (stored.kind, stored.width()),
                None => match self.matrix(&spec.name)? {
                    MatrixView::Codes(_) => continue,
                    MatrixView::Floats(f) => match f.values {
                        FloatValues::F32(_) => ("F32", None),
                        FloatValues::F16(_) => ("F16", None),
                        FloatValues::BF16(_) => ("BF16", None),
                    },
                },
            };
            if !types.iter().any(|(t, _)| t == kind) {
                types.push((kind.to_owned(), width));
            }
        }
        Ok(types)
    }

    /// The tensors of the file, whether or not the architecture uses them.
    pub fn weights(&self) -> &WeightFile {
        &self.weights
    }

    /// The location of the tokenizer.
    ///
    /// # Errors
    /// `ERR_IO` if a writer has replaced it since the model was opened.
    pub fn tokenizer(&self) -> Result<TokenizerSource<'_>> {
        Ok(match &self.weights {
            WeightFile::Gguf(file) => TokenizerSource::Gguf(file),
            WeightFile::Manifest(manifest) => TokenizerSource::Folder(manifest.companions()?),
            _ => TokenizerSource::Folder(&self.folder),
        })
    }

    /// The contents of `generation_config.json` beside the weights without token ids; empty if
    /// there is none.
    ///
    /// # Errors
    /// `ERR_IO`, `ERR_FORMAT` if it is not a JSON object.
    pub fn generation(&self) -> Result<Map<String, Value>> {
        match self.weights {
            WeightFile::Gguf(_) => Ok(Map::new()),
            WeightFile::Manifest(ref manifest) => generation::read(manifest.companions()?),
            _ => generation::read(&self.folder),
        }
    }

    /// The folder that contains the weights.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The path to open it by: a folder in the Hugging Face layout, otherwise a file.
    pub fn origin(&self) -> &Path {
        match self.kind() {
            "huggingface" => &self.folder,
            _ => &self.path,
        }
    }

    /// The file that names the weights: a safetensors file or index, a GGUF file, a manifest.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The layout: `"huggingface"`, `"gguf"` or `"manifest"`.
    pub fn kind(&self) -> &'static str {
        match &self.weights {
            WeightFile::Gguf(_) => "gguf",
            WeightFile::Manifest(_) => "manifest",
            WeightFile::SafeTensors(_) | WeightFile::Sharded(_) => "huggingface",
        }
    }

    /// The name of a tensor in the file.
    fn stored_name(&self, name: &str) -> Result<String> {
        if let WeightFile::Gguf(_) = self.weights {
            return Ok(names::gguf(name, self.architecture.sandwich));
        }
        // Of tied matrices some writers store only the output.
        let tied = name == EMBEDDING && self.architecture.tied;
        let is_other =
            tied && self.weights.shape(name)?.is_none() && self.weights.shape(OUTPUT)?.is_some();
        Ok(if is_other { OUTPUT } else { name }.to_owned())
    }
}

/// Whether there is an output that differs from the embedding. They are then not tied, whatever the
/// configuration says, as in `transformers` 5. In many files the output is a copy of the embedding.
fn has_output_of_its_own(weights: &WeightFile) -> Result<bool> {
    if weights.shape(OUTPUT)?.is_none() || weights.shape(EMBEDDING)?.is_none() {
        return Ok(false);
    }
    Ok(
        match (weights.matrix(EMBEDDING)?, weights.matrix(OUTPUT)?) {
            (MatrixView::Floats(a), MatrixView::Floats(b)) => a.values != b.values,
            _ => true,
        },
    )
}

/// The single file with the weights in a folder, or else the index; the file takes precedence, as
/// in `transformers`.
fn safetensors_in(folder: &Path) -> Result<PathBuf> {
    for name in ["model.safetensors", "model.safetensors.index.json"] {
        let path = folder.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    let with = |ending: &str| files_in(folder, |name| name.ends_with(ending));
    match &with(".safetensors")?[..] {
        [one] => Ok(one.clone()),
        [] => Err(Error::format(format!(
            "{} has a config.json and no .safetensors{}",
            folder.display(),
            if with(".bin")?.is_empty() {
                ""
            } else {
                "; weights in .bin files have to be saved as safetensors first"
            }
        ))),
        several => Err(Error::format(format!(
            "{} has {} .safetensors and no model.safetensors.index.json that puts them together",
            folder.display(),
            several.len()
        ))),
    }
}

/// The manifests of a folder, in the order of their names.
///
/// # Errors
/// `ERR_IO` for a folder that cannot be read.
pub fn manifests(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut manifests = files_in(folder, |name| name.ends_with(".json"))?;
    manifests.retain(|path| {
        let small = fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() <= limits::JSON_BYTES);
        small && fs::read(path).is_ok_and(|text| manifest::is_manifest(&text))
    });
    Ok(manifests)
}

/// The only manifest of a folder or, if there is none, its only `.gguf` file.
fn only_model(folder: &Path) -> Result<PathBuf> {
    let several = |what: &str, a: &Path, b: &Path| {
        Err(Error::format(format!(
            "{} has several {what} ({}, {} …): name one",
            folder.display(),
            a.display(),
            b.display()
        )))
    };
    match &manifests(folder)?[..] {
        [one] => return Ok(one.clone()),
        [] => {}
        [a, b, ..] => return several("manifests", a, b),
    }
    match &files_in(folder, |name| name.ends_with(".gguf"))?[..] {
        [one] => Ok(one.clone()),
        [] => Err(damaged(folder)?.unwrap_or_else(|| {
            Error::format(format!(
                "{} has neither a config.json nor a manifest nor a .gguf file",
                folder.display()
            ))
        })),
        [a, b, ..] => several(".gguf files", a, b),
    }
}

/// What is wrong with a `.json` file of a folder that may have been its manifest.
fn damaged(folder: &Path) -> Result<Option<Error>> {
    let files = files_in(folder, |name| name.ends_with(".json"))?;
    Ok(files.iter().find_map(|path| {
        let small = fs::metadata(path).is_ok_and(|m| m.len() <= limits::JSON_BYTES);
        let text = small.then(|| fs::read(path).ok())??;
        let why = serde_json::from_slice::<IgnoredAny>(&text).err()?;
        let why = Error::format(format!("not valid JSON, expected a manifest: {why}"));
        Some(why.in_file(path))
    }))
}

/// The files of a folder whose names are `wanted`, sorted.
fn files_in(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let refused =
        |e: std::io::Error| Error::io(format!("{} cannot be read: {e}", folder.display()));
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(refused)? {
        let entry = entry.map_err(refused)?;
        if entry.file_name().to_str().is_some_and(&wanted) && entry.path().is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests;
