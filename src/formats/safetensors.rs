//! The safetensors format: a length, a JSON header with types, shapes and offsets, then the data;
//! and sets of such files with an index from tensors to files.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::Deserialize;

use super::bytes::{FileBytes, numbers};
use super::cursor::{Cursor, refuse_overlap};
use super::json::{self, Dimensions, Entries};
use super::matrix::{FloatValues, FloatsView, MatrixView};
use super::{Stored, limits};
use crate::error::{Error, Result};

/// An opened safetensors file.
pub struct SafeTensors {
    bytes: FileBytes,
    tensors: Vec<(String, Tensor)>,
    index: HashMap<String, usize>,
}

struct Tensor {
    dtype: String,
    shape: Vec<usize>,
    data: Range<usize>,
}

/// A tensor as described in the header.
#[derive(Deserialize)]
struct Description {
    dtype: String,
    shape: Dimensions,
    data_offsets: [u64; 2],
}

/// The types whose weights are read.
const SUPPORTED: [&str; 3] = ["F32", "F16", "BF16"];

/// Bytes per element, for the types whose size is known.
fn element_bytes(dtype: &str) -> Option<usize> {
    match dtype {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" => Some(1),
        "U16" | "I16" | "F16" | "BF16" => Some(2),
        "U32" | "I32" | "F32" => Some(4),
        "U64" | "I64" | "F64" => Some(8),
        _ => None,
    }
}

impl SafeTensors {
    /// See [`super::WeightFile::forget`].
    pub fn forget(&self, name: &str) {
        if let Some(&i) = self.index.get(name) {
            self.bytes.forget(self.tensors[i].1.data.clone());
        }
    }

    /// Checks the header against the data.
    ///
    /// # Errors
    /// `ERR_FORMAT` for whatever is wrong with it; `ERR_UNSUPPORTED` for an unknown element type.
    pub fn new(bytes: FileBytes) -> Result<SafeTensors> {
        let mut c = Cursor::new(&bytes);
        let len = c.count(limits::JSON_BYTES, 1, "the length of the header")?;
        let header = c.take(len, "the header")?;
        let start = c.position();
        let room = c.remaining() as u64;
        let described: Entries<Description> =
            json::parse_entries(header, "__metadata__", "the header")?;
        let mut tensors = Vec::new();
        let mut index = HashMap::new();
        for (name, description) in described.0 {
            let tensor = description
                .locate(start, room)
                .map_err(|e| e.within(&name))?;
            index.insert(name.clone(), tensors.len());
            tensors.push((name, tensor));
        }
        refuse_overlap(
            tensors
                .iter()
                .map(|(name, t)| (t.data.start as u64, t.data.end as u64, name.as_str()))
                .collect(),
        )?;
        Ok(SafeTensors {
            bytes,
            tensors,
            index,
        })
    }

    /// The names of the tensors, in the order of the header.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|(name, _)| name.as_str())
    }

    /// A tensor of two dimensions; `None` if there is none with that name.
    ///
    /// # Errors
    /// `ERR_UNSUPPORTED` for another number of dimensions, or an element type other than F32, F16
    /// and BF16; `ERR_MEMORY`.
    pub fn matrix(&self, name: &str) -> Option<Result<MatrixView<'_>>> {
        self.seen_as(name, super::rows_and_cols)
    }

    /// A tensor of one dimension, as a matrix of one row; `None` if there is none with that name.
    ///
    /// # Errors
    /// As [`SafeTensors::matrix`].
    pub fn vector(&self, name: &str) -> Option<Result<MatrixView<'_>>> {
        self.seen_as(name, super::one_row)
    }

    /// The shape of a tensor, slowest dimension first.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.tensors[*self.index.get(name)?].1.shape)
    }

    /// How a tensor is stored.
    pub fn stored(&self, name: &str) -> Option<Stored<'_>> {
        let (_, tensor) = &self.tensors[*self.index.get(name)?];
        Some(Stored {
            kind: &tensor.dtype,
            codes: false,
            supported: SUPPORTED.contains(&tensor.dtype.as_str()),
            bytes: tensor.data.len(),
        })
    }

    fn seen_as(&self, name: &str, sides: super::Sides) -> Option<Result<MatrixView<'_>>> {
        let (name, tensor) = &self.tensors[*self.index.get(name)?];
        let view = sides(&tensor.shape).and_then(|sides| self.read(tensor, sides));
        Some(view.map_err(|e| e.within(name)))
    }

    fn read(&self, tensor: &Tensor, (rows, cols): (usize, usize)) -> Result<MatrixView<'_>> {
        let data = &self.bytes[tensor.data.clone()];
        let values = match tensor.dtype.as_str() {
            "F32" => FloatValues::F32(numbers(data)?),
            "F16" => FloatValues::F16(numbers(data)?),
            "BF16" => FloatValues::BF16(numbers(data)?),
            other => {
                return Err(Error::unsupported(format!(
                    "the type {other} is unsupported; supported are {}",
                    SUPPORTED.join(", ")
                )));
            }
        };
        Ok(MatrixView::Floats(FloatsView { rows, cols, values }))
    }
}

impl Description {
    /// The position of the tensor in a file whose data begins at `start` and has `room` bytes.
    fn locate(self, start: usize, room: u64) -> Result<Tensor> {
        let [begin, end] = self.data_offsets;
        let Dimensions(shape) = self.shape;
        let each = element_bytes(&self.dtype).ok_or_else(|| {
            Error::unsupported(format!(
                "the type {:?} is unknown; supported are {}",
                self.dtype,
                SUPPORTED.join(", ")
            ))
        })?;
        if begin > end || end > room {
            return Err(Error::format(format!(
                "its data is at {begin} to {end}, the file has {room} bytes of data"
            )));
        }
        let expected = super::product(&shape).and_then(|n| n.checked_mul(each));
        if expected.map(|n| n as u64) != Some(end - begin) {
            return Err(Error::format(format!(
                "{} bytes of data do not make {} {:?}",
                end - begin,
                self.dtype,
                shape
            )));
        }
        Ok(Tensor {
            dtype: self.dtype,
            shape,
            data: start + begin as usize..start + end as usize,
        })
    }
}

/// A set of safetensors files with an index.
///
/// A shard is opened when one of its tensors is first requested.
pub struct Sharded {
    folder: PathBuf,
    mmap: bool,
    tensors: Vec<(String, usize)>,
    index: HashMap<String, usize>,
    shards: Vec<(String, OnceLock<SafeTensors>)>,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: Entries<String>,
}

impl Sharded {
    /// Reads the index; `folder` contains the shards.
    ///
    /// # Errors
    /// `ERR_FORMAT` for a malformed index.
    pub fn new(bytes: &[u8], folder: &Path, mmap: bool) -> Result<Sharded> {
        let parsed: ShardIndex = json::parse(bytes, "the shard index")?;
        let mut numbers = HashMap::new();
        let mut shards = Vec::new();
        let mut tensors = Vec::new();
        let mut index = HashMap::new();
        for (name, file) in parsed.weight_map.0 {
            let shard = *numbers.entry(file).or_insert_with_key(|file: &String| {
                shards.push((file.clone(), OnceLock::new()));
                shards.len() - 1
            });
            index.insert(name.clone(), shard);
            tensors.push((name, shard));
        }
        Ok(Sharded {
            folder: folder.to_owned(),
            mmap,
            tensors,
            index,
            shards,
        })
    }

    /// The names of the tensors, in the order of the index.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|(name, _)| name.as_str())
    }

    /// A tensor of two dimensions; `None` if there is none with that name.
    ///
    /// # Errors
    /// `ERR_IO` if its shard cannot be opened, and those of [`SafeTensors`].
    pub fn matrix(&self, name: &str) -> Option<Result<MatrixView<'_>>> {
        self.in_shard(name, |shard| shard.matrix(name))
    }

    /// A tensor of one dimension, as a matrix of one row; `None` if there is none with that name.
    ///
    /// # Errors
    /// As [`Sharded::matrix`].
    pub fn vector(&self, name: &str) -> Option<Result<MatrixView<'_>>> {
        self.in_shard(name, |shard| shard.vector(name))
    }

    /// The shape of a tensor, slowest dimension first; `None` if there is none with that name.
    ///
    /// # Errors
    /// `ERR_IO` if its shard cannot be opened, `ERR_FORMAT` if the shard does not contain it.
    pub fn shape(&self, name: &str) -> Option<Result<&[usize]>> {
        self.in_shard(name, |shard| shard.shape(name).map(Ok))
    }

    /// How a tensor is stored; `None` if there is none with that name.
    ///
    /// # Errors
    /// As [`Sharded::shape`].
    pub fn stored(&self, name: &str) -> Option<Result<Stored<'_>>> {
        self.in_shard(name, |shard| shard.stored(name).map(Ok))
    }

    /// See [`super::WeightFile::forget`].
    pub fn forget(&self, name: &str) {
        let shard = self.index.get(name).map(|&i| &self.shards[i].1);
        if let Some(opened) = shard.and_then(OnceLock::get) {
            opened.forget(name);
        }
    }

    fn in_shard<'a, T>(
        &'a self,
        name: &str,
        read: impl FnOnce(&'a SafeTensors) -> Option<Result<T>>,
    ) -> Option<Result<T>> {
        let (file, shard) = &self.shards[*self.index.get(name)?];
        let found = self.open(file, shard).and_then(|opened| {
            read(opened).unwrap_or_else(|| {
                Err(Error::format(format!(
                    "{name} is not in {file}, where the index has it"
                )))
            })
        });
        Some(found)
    }

    fn open<'a>(&'a self, file: &str, shard: &'a OnceLock<SafeTensors>) -> Result<&'a SafeTensors> {
        if let Some(opened) = shard.get() {
            return Ok(opened);
        }
        // In the cache of the Hugging Face hub every file is a symbolic link to another folder.
        let path = super::manifest::beneath(&self.folder, file)?;
        let opened = FileBytes::open(&path, self.mmap)
            .and_then(|bytes| SafeTensors::new(bytes).map_err(|e| e.within(file)))?;
        // Two threads may have opened it; either copy can be used.
        Ok(shard.get_or_init(|| opened))
    }
}
