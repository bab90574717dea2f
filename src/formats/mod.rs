//! Files: hostile bytes in, plain structs out.
//!
//! | module | contents |
//! |---|---|
//! | `manifest`, `npz`, `npy` | our own format: a JSON manifest and the arrays it names |
//! | `save` | the writer of that format |
//! | `safetensors` | single files and sharded sets |
//! | `gguf`, `ggml_blocks` | the GGUF container, and the blocks of its tensor types |
//! | `bytes`, `cursor`, `json`, `limits` | reading bytes: mapped or not, checked, limited |
//!
//! A reader checks the whole container when it opens it: bounds, sizes, alignment, overlap. Readers
//! know nothing of models or kernels.

mod bytes;
mod cursor;
mod ggml_blocks;
pub mod gguf;
pub(crate) mod json;
pub mod limits;
pub mod manifest;
mod matrix;
mod npy;
pub mod npz;
pub mod safetensors;
mod save;

pub use bytes::FileBytes;
pub use matrix::{CodesView, FloatValues, FloatsView, MatrixRef, MatrixView};
pub use save::{Companion, ManifestWriter, amend, has_arrays, save_manifest, sha256, unfinished};

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use crate::error::{Error, Result, Status};
use crate::quant::Bits;
use gguf::Gguf;
use manifest::Manifest;
use safetensors::{SafeTensors, Sharded};

/// A file with named matrices.
pub enum WeightFile {
    /// Our own format.
    Manifest(Manifest),
    /// One safetensors file.
    SafeTensors(SafeTensors),
    /// The index of a set of safetensors files.
    Sharded(Sharded),
    /// A GGUF file.
    Gguf(Gguf),
}

/// How a file stores a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored<'a> {
    /// The file's name of the type, such as `Q5_1` or `BF16`.
    pub kind: &'a str,
    /// Whether its codes are taken as stored; otherwise readers return floats.
    pub codes: bool,
    /// Whether its weights can be read.
    pub supported: bool,
    /// Its size in the file.
    pub bytes: usize,
}

impl Stored<'_> {
    /// The width that these weights are quantised to unless another is asked for: 8 bits for
    /// quantised types of more than 4 bits; `None` if the type does not determine it.
    pub fn width(&self) -> Option<Bits> {
        let more_than_4 = ["Q5_0", "Q5_1", "Q5_K", "Q6_K"].contains(&self.kind);
        more_than_4.then_some(Bits::Eight)
    }
}

/// Opens a manifest, a safetensors file, the index of a sharded set of them, or a GGUF file, as
/// determined by the contents. With `mmap` false, files are read instead of mapped.
///
/// # Errors
/// `ERR_IO` with the path and the system's reason, `ERR_FORMAT` for a malformed file,
/// `ERR_UNSUPPORTED` for an unknown version, `ERR_MEMORY`.
pub fn open(path: &Path, mmap: bool) -> Result<WeightFile> {
    // A writer may replace both files after the manifest has been read and before its npz is
    // opened, and others after it: as long as the manifest is another one, it is opened again.
    let mut before = None;
    loop {
        match open_once(path, mmap) {
            Err(e) if e.status() == Status::Io => match small_text(path) {
                Some(now) if before.as_ref() != Some(&now) => before = Some(now),
                _ => return Err(e),
            },
            outcome => return outcome,
        }
    }
}

/// The bytes of a file that may be a manifest.
fn small_text(path: &Path) -> Option<Vec<u8>> {
    let small = fs::metadata(path).is_ok_and(|m| m.len() <= limits::JSON_BYTES);
    small.then(|| fs::read(path).ok())?
}

fn open_once(path: &Path, mmap: bool) -> Result<WeightFile> {
    let bytes = FileBytes::open(path, mmap)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let opened = match Kind::of(&bytes, path) {
        Some(Kind::Gguf) => Gguf::new(bytes).map(WeightFile::Gguf),
        Some(Kind::SafeTensors) => SafeTensors::new(bytes).map(WeightFile::SafeTensors),
        Some(Kind::Index) => Sharded::new(&bytes, folder, mmap).map(WeightFile::Sharded),
        Some(Kind::Manifest) => Manifest::new(&bytes, folder, mmap).map(WeightFile::Manifest),
        None => Err(Error::format(
            "neither a manifest (.json), nor .gguf, nor .safetensors",
        )),
    };
    opened.map_err(|e| e.within(path.display()))
}

/// The kind of a file.
enum Kind {
    Gguf,
    SafeTensors,
    Index,
    Manifest,
}

impl Kind {
    /// By the contents, or by the name if the file is too damaged for that.
    fn of(bytes: &[u8], path: &Path) -> Option<Kind> {
        if bytes.starts_with(b"GGUF") {
            return Some(Kind::Gguf);
        }
        // The eight bytes of header length are a small number in any real file, so no JSON text
        // looks like this.
        if let Some((len, header)) = bytes.split_first_chunk::<8>()
            && u64::from_le_bytes(*len) <= limits::JSON_BYTES
            && header.first() == Some(&b'{')
        {
            return Some(Kind::SafeTensors);
        }
        let name = path.file_name()?.to_str()?;
        if bytes.trim_ascii_start().starts_with(b"{") || name.ends_with(".json") {
            let is_index = json::has_key(bytes, "weight_map")
                || name.ends_with(".index.json") && !json::has_key(bytes, "format_version");
            return Some(if is_index {
                Kind::Index
            } else {
                Kind::Manifest
            });
        }
        match path.extension()?.to_str()? {
            "gguf" => Some(Kind::Gguf),
            "safetensors" => Some(Kind::SafeTensors),
            _ => None,
        }
    }
}

impl WeightFile {
    /// The names of the tensors in the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let names: Box<dyn Iterator<Item = &str>> = match self {
            WeightFile::Manifest(f) => Box::new(f.names()),
            WeightFile::SafeTensors(f) => Box::new(f.names()),
            WeightFile::Sharded(f) => Box::new(f.names()),
            WeightFile::Gguf(f) => Box::new(f.names()),
        };
        names
    }

    /// The matrix with that name.
    ///
    /// # Errors
    /// `ERR_FORMAT` if there is none, with similar names, and if its parts are inconsistent;
    /// `ERR_UNSUPPORTED` unless it has two dimensions and a type that can be read; `ERR_IO` if it
    /// is in another file that cannot be opened; `ERR_MEMORY`.
    pub fn matrix(&self, name: &str) -> Result<MatrixView<'_>> {
        let found = match self {
            WeightFile::Manifest(f) => f.matrix(name),
            WeightFile::SafeTensors(f) => f.matrix(name),
            WeightFile::Sharded(f) => f.matrix(name),
            WeightFile::Gguf(f) => f.matrix(name),
        };
        found.unwrap_or_else(|| Err(self.none("matrix", name)))
    }

    /// The tensor of one dimension (a norm, a bias) with that name, as a matrix of one row.
    ///
    /// # Errors
    /// As [`WeightFile::matrix`].
    pub fn vector(&self, name: &str) -> Result<MatrixView<'_>> {
        let found = match self {
            WeightFile::Manifest(f) => f.vector(name),
            WeightFile::SafeTensors(f) => f.vector(name),
            WeightFile::Sharded(f) => f.vector(name),
            WeightFile::Gguf(f) => f.vector(name),
        };
        found.unwrap_or_else(|| Err(self.none("vector", name)))
    }

    /// The shape of a tensor, slowest dimension first; `None` if there is none with that name.
    ///
    /// # Errors
    /// `ERR_IO` if it is in another file that cannot be opened; `ERR_FORMAT` if its entry has no
    /// shape.
    pub fn shape(&self, name: &str) -> Result<Option<Cow<'_, [usize]>>> {
        match self {
            WeightFile::Manifest(f) => f.shape(name).transpose(),
            WeightFile::SafeTensors(f) => Ok(f.shape(name).map(Cow::Borrowed)),
            WeightFile::Sharded(f) => Ok(f.shape(name).transpose()?.map(Cow::Borrowed)),
            WeightFile::Gguf(f) => Ok(f.shape(name).map(Cow::Borrowed)),
        }
    }

    /// How the file stores a tensor, if it has a named type for it; `None` if there is none with
    /// that name, and for manifests, whose arrays describe themselves.
    ///
    /// # Errors
    /// As [`WeightFile::shape`].
    pub fn stored(&self, name: &str) -> Result<Option<Stored<'_>>> {
        match self {
            WeightFile::Manifest(_) => Ok(None),
            WeightFile::SafeTensors(f) => Ok(f.stored(name)),
            WeightFile::Sharded(f) => f.stored(name).transpose(),
            WeightFile::Gguf(f) => Ok(f.stored(name)),
        }
    }

    /// Releases the memory that a tensor takes in a mapped file, for callers that read a file once.
    pub fn forget(&self, name: &str) {
        match self {
            WeightFile::Manifest(f) => f.forget(name),
            WeightFile::SafeTensors(f) => f.forget(name),
            WeightFile::Sharded(f) => f.forget(name),
            WeightFile::Gguf(f) => f.forget(name),
        }
    }

    fn none(&self, what: &str, name: &str) -> Error {
        Error::format(format!(
            "there is no {what} named {name:?}; {}",
            resembling(name, self.names())
        ))
    }
}

/// A clause that lists the few names most similar to `name`.
fn resembling<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> String {
    const SHOWN: usize = 4;
    let mut ranked: Vec<(usize, &str)> = names.map(|n| (common_affixes(name, n), n)).collect();
    ranked.sort_by_key(|&(common, _)| std::cmp::Reverse(common));
    let shown: Vec<&str> = ranked.iter().take(SHOWN).map(|&(_, n)| n).collect();
    match ranked.len() {
        0 => "the file has none at all".to_owned(),
        n => format!("the nearest of {n}: {}", shown.join(", ")),
    }
}

/// The length in bytes of the longest common prefix plus suffix. Tensor names are paths of words
/// and numbers, so a typo leaves a beginning and an end intact. It takes linear time; a file may
/// have a million names.
fn common_affixes(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let same = |(x, y): &(&u8, &u8)| x.eq_ignore_ascii_case(y);
    let prefix = a.iter().zip(b).take_while(same).count();
    let suffix = a[prefix..].iter().rev().zip(b[prefix..].iter().rev());
    prefix + suffix.take_while(same).count()
}

/// The product of dimensions, or `None` on overflow.
fn product(dimensions: &[usize]) -> Option<usize> {
    dimensions.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

/// How a shape is interpreted as rows and columns, if it can be.
type Sides = fn(&[usize]) -> Result<(usize, usize)>;

/// A tensor of one dimension, as one row.
fn one_row(shape: &[usize]) -> Result<(usize, usize)> {
    match shape {
        &[len] => Ok((1, len)),
        _ => Err(Error::unsupported(format!(
            "its shape is {shape:?}, a vector has one dimension"
        ))),
    }
}

/// The rows and columns of a matrix of this shape, slowest dimension first.
fn rows_and_cols(shape: &[usize]) -> Result<(usize, usize)> {
    let &[rows, cols] = shape else {
        return Err(Error::unsupported(format!(
            "its shape is {shape:?}, a matrix has two dimensions"
        )));
    };
    if rows.min(cols) == 0 && rows.max(cols) as u64 > limits::EMPTY_SIDE {
        return Err(Error::format(format!(
            "an empty matrix of shape {shape:?}; its sides may have {} at most",
            limits::EMPTY_SIDE
        )));
    }
    Ok((rows, cols))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_json() {
        let manifest = br#"{"format_version": 2, "weights": {}}"#;
        let index = br#"{"weight_map": {}}"#;
        let kind = |bytes: &[u8], name: &str| Kind::of(bytes, Path::new(name));
        for name in ["model.json", "model.safetensors.index.json"] {
            assert!(
                matches!(kind(manifest, name), Some(Kind::Manifest)),
                "{name}"
            );
            assert!(matches!(kind(index, name), Some(Kind::Index)), "{name}");
        }
        // Too damaged to tell.
        assert!(matches!(kind(b"{", "model.json"), Some(Kind::Manifest)));
        let damaged = kind(b"{", "model.safetensors.index.json");
        assert!(matches!(damaged, Some(Kind::Index)));
    }

    #[test]
    fn near_names() {
        let names = [
            "blk.0.attn_q.weight",
            "blk.11.attn_q.weight",
            "output.weight",
        ];
        assert_eq!(
            resembling("blk.1.attn_q.weight", names.into_iter()),
            "the nearest of 3: blk.11.attn_q.weight, blk.0.attn_q.weight, output.weight"
        );
        assert_eq!(resembling("x", [].into_iter()), "the file has none at all");
    }
}
