//! The GGUF container, versions 2 and 3: metadata, tensor descriptions, tensor data.
//!
//! Everything about the container is checked when it is opened: counts, lengths, types, alignment,
//! bounds, overlap. `ggml_blocks` defines the contents of the blocks.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use super::bytes::{FileBytes, numbers};
use super::cursor::{Cursor, refuse_overlap};
use super::ggml_blocks::{Content, GgmlType};
use super::matrix::{FloatValues, FloatsView, MatrixView};
use super::{Stored, limits};
use crate::error::{Error, Result};
use crate::{members, memory};

/// An opened GGUF file.
pub struct Gguf {
    bytes: FileBytes,
    metadata: HashMap<String, Value>,
    tensors: Vec<Tensor>,
    index: HashMap<String, usize>,
}

/// A metadata value; numbers are widened.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of 8, 16, 32 or 64 bits in the file.
    Unsigned(u64),
    /// Of 8, 16, 32 or 64 bits in the file.
    Signed(i64),
    /// Of 32 or 64 bits in the file.
    Float(f64),
    /// One byte, 0 or 1.
    Bool(bool),
    /// UTF-8.
    Text(String),
    /// Left in the file, because a vocabulary has hundreds of thousands of elements.
    Array(Array),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Unsigned(n) => n.fmt(f),
            Value::Signed(n) => n.fmt(f),
            Value::Float(x) => x.fmt(f),
            Value::Bool(b) => b.fmt(f),
            Value::Text(text) => write!(f, "\"{}\"", members::abridged(text)),
            Value::Array(array) => write!(f, "an array of {}", array.len),
        }
    }
}

/// An array in the metadata, checked to be complete.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// The number of the element type, as in the file.
    pub element: u32,
    /// The number of elements.
    pub len: usize,
    /// The byte range of the elements in the file.
    pub bytes: Range<usize>,
}

struct Tensor {
    name: String,
    /// Slowest dimension first: `[rows, cols]` for a matrix. In the file the order is reversed.
    shape: Vec<usize>,
    kind: &'static GgmlType,
    data: Range<usize>,
}

/// The smallest description of a tensor: name length, dimension count, type, offset.
const TENSOR_BYTES: u64 = 8 + 4 + 4 + 8;
/// The smallest key-value pair: key length, type, one byte.
const PAIR_BYTES: u64 = 8 + 4 + 1;

const TEXT: u32 = 8;
const ARRAY: u32 = 9;

impl Gguf {
    /// See [`super::WeightFile::forget`].
    pub fn forget(&self, name: &str) {
        if let Some(&i) = self.index.get(name) {
            self.bytes.forget(self.tensors[i].data.clone());
        }
    }

    /// Checks the container.
    ///
    /// # Errors
    /// `ERR_FORMAT` for whatever is wrong with it; `ERR_UNSUPPORTED` for another version or byte
    /// order, and for an unknown tensor type.
    pub fn new(bytes: FileBytes) -> Result<Gguf> {
        let mut c = Cursor::new(&bytes);
        if c.take(4, "the magic")? != b"GGUF" {
            return Err(Error::format("a GGUF file begins with \"GGUF\""));
        }
        match c.u32("the version")? {
            2 | 3 => {}
            v if (1..=3).contains(&v.swap_bytes()) => {
                return Err(Error::unsupported("a big-endian GGUF file"));
            }
            v => {
                return Err(Error::unsupported(format!(
                    "GGUF version {v}; 2 and 3 are known"
                )));
            }
        }
        let tensors = c.count(limits::TENSORS, TENSOR_BYTES, "the number of tensors")?;
        let pairs = c.count(
            limits::METADATA_PAIRS,
            PAIR_BYTES,
            "the number of metadata pairs",
        )?;
        let metadata = read_metadata(&mut c, pairs)?;
        let alignment = alignment(&metadata)?;
        let mut described = memory::with_capacity(tensors as usize, "tensor descriptions")?;
        for _ in 0..tensors {
            described.push(Description::read(&mut c)?);
        }
        let start = (c.position() as u64).next_multiple_of(alignment);
        let len = bytes.len() as u64;
        let tensors = described
            .into_iter()
            .map(|d| d.locate(start, len, alignment))
            .collect::<Result<Vec<Tensor>>>()?;
        refuse_overlap(
            tensors
                .iter()
                .map(|t| (t.data.start as u64, t.data.end as u64, t.name.as_str()))
                .collect(),
        )?;
        let mut index = HashMap::new();
        for (i, t) in tensors.iter().enumerate() {
            if index.insert(t.name.clone(), i).is_some() {
                return Err(Error::format(format!("two tensors are named {}", t.name)));
            }
        }
        Ok(Gguf {
            bytes,
            metadata,
            tensors,
            index,
        })
    }

    /// A metadata value.
    pub fn metadata(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// The names of the tensors, in the order of the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|t| t.name.as_str())
    }

    /// A tensor of two dimensions; `None` if there is none with that name.
    ///
    /// # Errors
    /// `ERR_UNSUPPORTED` for another number of dimensions or a type of which only the size is
    /// known; `ERR_FORMAT` for a scale that is not finite; `ERR_MEMORY`.
    pub fn matrix(&self, name: &str) -> Option<Result<MatrixView<'_>>> {
        self.seen_as(name, super::rows_and_cols)
    }

    /// A tensor of one dimension, as a matrix of one row; `None` if there is none with that name.
    ///
    /// # Errors
    /// As [`Gguf::matrix`].
    pub fn vector(&self, name: &str) -> Option<Result<MatrixView<'_>>> {
        self.seen_as(name, super::one_row)
    }

    /// The shape of a tensor, slowest dimension first.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.tensors[*self.index.get(name)?].shape)
    }

    /// How a tensor is stored.
    pub fn stored(&self, name: &str) -> Option<Stored<'_>> {
        let tensor = &self.tensors[*self.index.get(name)?];
        Some(Stored {
            kind: tensor.kind.name,
            codes: matches!(tensor.kind.content, Content::Codes(_)),
            supported: !matches!(tensor.kind.content, Content::Other),
            bytes: tensor.data.len(),
        })
    }

    /// The elements of an array of texts.
    ///
    /// # Errors
    /// `ERR_FORMAT` if it is an array of something else, or an element is not UTF-8; `ERR_MEMORY`.
    pub fn texts(&self, array: &Array) -> Result<Vec<&str>> {
        if array.element != TEXT {
            return Err(Error::format(format!(
                "an array of elements of type {}, texts were expected",
                array.element
            )));
        }
        let mut c = Cursor::new(&self.bytes[array.bytes.clone()]);
        let mut out = memory::with_capacity(array.len, "the elements of an array")?;
        for _ in 0..array.len {
            out.push(c.text(limits::TEXT_BYTES, "a text in an array")?);
        }
        Ok(out)
    }

    /// The elements of an array of numbers, integers and floats alike.
    ///
    /// # Errors
    /// `ERR_FORMAT` if it is an array of something else; `ERR_MEMORY`.
    pub fn numbers(&self, array: &Array) -> Result<Vec<f64>> {
        let mut c = Cursor::new(&self.bytes[array.bytes.clone()]);
        let mut out = memory::with_capacity(array.len, "the elements of an array")?;
        for _ in 0..array.len {
            out.push(match read_value(&mut c, array.element)? {
                Value::Unsigned(v) => v as f64,
                Value::Signed(v) => v as f64,
                Value::Float(v) => v,
                other => {
                    return Err(Error::format(format!(
                        "an array with {other}, numbers were expected"
                    )));
                }
            });
        }
        Ok(out)
    }

    fn seen_as(&self, name: &str, sides: super::Sides) -> Option<Result<MatrixView<'_>>> {
        let tensor = &self.tensors[*self.index.get(name)?];
        let view = sides(&tensor.shape).and_then(|sides| self.read(tensor, sides));
        Some(view.map_err(|e| e.within(name)))
    }

    fn read(&self, tensor: &Tensor, (rows, cols): (usize, usize)) -> Result<MatrixView<'_>> {
        let data = &self.bytes[tensor.data.clone()];
        let values = match tensor.kind.content {
            Content::F32 => FloatValues::F32(numbers(data)?),
            Content::F16 => FloatValues::F16(numbers(data)?),
            Content::BF16 => FloatValues::BF16(numbers(data)?),
            Content::Codes(take_over) => return take_over(data, rows, cols).map(MatrixView::Codes),
            Content::Floats(dequantize) => {
                let mut out = memory::filled(rows * cols, 0.0, "a dequantised tensor")?;
                dequantize(data, &mut out);
                FloatValues::F32(out.into())
            }
            Content::Other => {
                return Err(Error::unsupported(format!(
                    "the type {} is unsupported; supported are {}",
                    tensor.kind.name,
                    GgmlType::supported()
                )));
            }
        };
        Ok(MatrixView::Floats(FloatsView { rows, cols, values }))
    }
}

/// The description of a tensor as stored in the file.
struct Description {
    name: String,
    shape: Vec<usize>,
    kind: &'static GgmlType,
    bytes: u64,
    offset: u64,
}

impl Description {
    fn read(c: &mut Cursor<'_>) -> Result<Description> {
        let name = c.text(limits::NAME_BYTES, "a tensor's name")?.to_owned();
        let (shape, kind, bytes) = read_extent(c).map_err(|e| e.within(&name))?;
        Ok(Description {
            name,
            shape,
            kind,
            bytes,
            offset: c.u64("the offset of a tensor")?,
        })
    }

    /// The position of the data in a file of `len` bytes whose tensor data begins at `start`.
    fn locate(self, start: u64, len: u64, alignment: u64) -> Result<Tensor> {
        if !self.offset.is_multiple_of(alignment) {
            return Err(Error::format(format!(
                "{}: its offset {} is not a multiple of the alignment {alignment}",
                self.name, self.offset
            )));
        }
        let begin = start.checked_add(self.offset);
        let end = begin.and_then(|b| b.checked_add(self.bytes));
        match (begin, end) {
            (Some(begin), Some(end)) if end <= len => Ok(Tensor {
                name: self.name,
                shape: self.shape,
                kind: self.kind,
                data: begin as usize..end as usize,
            }),
            _ => Err(Error::format(format!(
                "{}: {} bytes of data at offset {}, beyond the {} that the file has",
                self.name,
                self.bytes,
                self.offset,
                len.saturating_sub(start)
            ))),
        }
    }
}

/// The shape and the type of a tensor, and its size in bytes.
fn read_extent(c: &mut Cursor<'_>) -> Result<(Vec<usize>, &'static GgmlType, u64)> {
    let n = u64::from(c.u32("the number of dimensions")?);
    if !(1..=limits::GGUF_DIMENSIONS).contains(&n) {
        return Err(Error::format(format!(
            "{n} dimensions, expected 1 to {}",
            limits::GGUF_DIMENSIONS
        )));
    }
    let mut shape = Vec::new();
    for _ in 0..n {
        let d = c.u64("a dimension")?;
        shape.push(usize::try_from(d).map_err(|_| too_large())?);
    }
    // In the file, the dimension along a row comes first.
    let row = shape[0];
    shape.reverse();
    let id = c.u32("the type of a tensor")?;
    let kind = GgmlType::of(id).ok_or_else(|| {
        Error::unsupported(format!(
            "the type {id} is unknown; supported are {}",
            GgmlType::supported()
        ))
    })?;
    if !row.is_multiple_of(kind.weights) {
        return Err(Error::format(format!(
            "rows of {row} weights, {} has blocks of {}",
            kind.name, kind.weights
        )));
    }
    let bytes = super::product(&shape)
        .and_then(|weights| (weights / kind.weights).checked_mul(kind.bytes))
        .ok_or_else(too_large)?;
    Ok((shape, kind, bytes as u64))
}

fn too_large() -> Error {
    Error::format("its dimensions are too large")
}

fn alignment(metadata: &HashMap<String, Value>) -> Result<u64> {
    match metadata.get("general.alignment") {
        None => Ok(32),
        Some(&Value::Unsigned(a))
            if a.is_power_of_two() && (8..=limits::GGUF_ALIGNMENT).contains(&a) =>
        {
            Ok(a)
        }
        Some(other) => Err(Error::format(format!(
            "general.alignment is {other}, expected a power of two from 8 to {}",
            limits::GGUF_ALIGNMENT
        ))),
    }
}

fn read_metadata(c: &mut Cursor<'_>, pairs: u64) -> Result<HashMap<String, Value>> {
    let mut metadata = HashMap::new();
    for _ in 0..pairs {
        let key = c.text(limits::METADATA_KEY_BYTES, "a metadata key")?;
        let kind = c.u32("the type of a metadata value")?;
        let value = read_value(c, kind).map_err(|e| e.within(key))?;
        if metadata.insert(key.to_owned(), value).is_some() {
            return Err(Error::format(format!(
                "two metadata pairs have the key {key}"
            )));
        }
    }
    Ok(metadata)
}

fn read_value(c: &mut Cursor<'_>, kind: u32) -> Result<Value> {
    const FIELD: &str = "a metadata value";
    Ok(match kind {
        TEXT => Value::Text(c.text(limits::TEXT_BYTES, FIELD)?.to_owned()),
        ARRAY => Value::Array(read_array(c, 1)?),
        _ => {
            let bytes = c.take(scalar_bytes(kind)?, FIELD)?;
            let mut wide = [0; 8];
            wide[..bytes.len()].copy_from_slice(bytes);
            let bits = u64::from_le_bytes(wide);
            match kind {
                0 | 2 | 4 | 10 => Value::Unsigned(bits),
                1 => Value::Signed(i64::from(bits as i8)),
                3 => Value::Signed(i64::from(bits as i16)),
                5 => Value::Signed(i64::from(bits as i32)),
                11 => Value::Signed(bits as i64),
                6 => Value::Float(f64::from(f32::from_bits(bits as u32))),
                12 => Value::Float(f64::from_bits(bits)),
                _ if bits <= 1 => Value::Bool(bits == 1),
                _ => return Err(Error::format(format!("a boolean is {bits}"))),
            }
        }
    })
}

/// The bytes of a value that is neither text nor an array.
fn scalar_bytes(kind: u32) -> Result<u64> {
    match kind {
        0 | 1 | 7 => Ok(1),
        2 | 3 => Ok(2),
        4..=6 => Ok(4),
        10..=12 => Ok(8),
        _ => Err(Error::format(format!("unknown metadata type {kind}"))),
    }
}

/// Skips an array, checking that it is complete.
fn read_array(c: &mut Cursor<'_>, depth: usize) -> Result<Array> {
    const LENGTH: &str = "the length of an array";
    if depth > limits::ARRAY_NESTING {
        return Err(Error::format(format!(
            "arrays nested more than {} deep",
            limits::ARRAY_NESTING
        )));
    }
    let element = c.u32("the type of an array")?;
    let (each, len);
    match element {
        TEXT => (each, len) = (None, c.count(u64::MAX, 8, LENGTH)?),
        ARRAY => (each, len) = (None, c.count(u64::MAX, 12, LENGTH)?),
        _ => {
            let bytes = scalar_bytes(element)?;
            (each, len) = (Some(bytes), c.count(u64::MAX, bytes, LENGTH)?);
        }
    }
    let start = c.position();
    match each {
        Some(bytes) => {
            c.take(len * bytes, "an array")?;
        }
        None if element == TEXT => {
            for _ in 0..len {
                let n = c.u64("the length of a text")?;
                c.take(n, "a text in an array")?;
            }
        }
        None => {
            for _ in 0..len {
                read_array(c, depth + 1)?;
            }
        }
    }
    Ok(Array {
        element,
        len: len as usize,
        bytes: start..c.position(),
    })
}
