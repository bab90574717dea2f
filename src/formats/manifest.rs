//! Our own format: a JSON manifest, version 2, that names its weights and the arrays of each.
//!
//! Current manifests keep every array in one .npz beside them. Earlier ones are read too: one code
//! per byte with a scale per row, and arrays in separate files (`.npy`, rows of `numpy.packbits` in
//! `.bin`, scales as text in `.txt`). No path in a manifest leads out of its folder.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::bytes::FileBytes;
use super::json::{self, Dimensions, Entries};
use super::matrix::{CodesView, FloatsView, MatrixView, ScalesView};
use super::npy::{self, Array, Dtype};
use super::npz::Npz;
use crate::error::{Error, Result};
use crate::memory;
use crate::quant::{Bits, Packing, Shape, packed_row_bytes};

/// An opened manifest.
pub struct Manifest {
    text: Vec<u8>,
    folder: PathBuf,
    npz: Option<Npz>,
    sha256: Option<String>,
    companions: Option<PathBuf>,
    weights: Vec<(String, Weight)>,
    index: HashMap<String, usize>,
    defaults: Quantization,
    accuracy: Value,
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Root {
    format_version: u64,
    #[serde(default)]
    model: Model,
    #[serde(default)]
    quantization: Quantization,
    #[serde(default, deserialize_with = "json::small")]
    accuracy: Value,
    weights: Entries<Weight>,
}

/// The error for a folder of companions that is gone.
fn no_companions(path: &Path) -> Error {
    Error::io(format!(
        "{} is gone, which has the tokenizer: open the model again if it was just being replaced",
        path.display()
    ))
}

#[derive(Default, Deserialize)]
#[serde(expecting = "an object")]
struct Model {
    source_npz: Option<String>,
    sha256: Option<String>,
    companions: Option<String>,
}

fn boxed<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Box<Value>, D::Error> {
    json::small(d).map(Box::new)
}

/// The defaults for fields that a weight does not have.
#[derive(Default, Deserialize)]
#[serde(expecting = "an object")]
struct Quantization {
    bit_width: Option<u8>,
    group: Option<usize>,
    /// How packed codes lie where a weight has no `packed_format`: `layout` and `endianness`.
    #[serde(default, deserialize_with = "boxed")]
    packing: Box<Value>,
}

/// A weight: its shape, and the references to its arrays (keys of the npz, or names of files).
#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Weight {
    shape: Option<Dimensions>,
    bit_width: Option<u8>,
    group: Option<usize>,
    scale_axis: Option<ScaleAxis>,
    packed_format: Option<String>,
    packed: Option<String>,
    scales: Option<String>,
    scales_txt: Option<String>,
    zero_points: Option<String>,
    q: Option<String>,
    q_scales: Option<String>,
    q_zero_point: Option<String>,
    fp32: Option<String>,
    fp16: Option<String>,
    #[serde(default, deserialize_with = "json::number")]
    relative_error: Option<f64>,
}

#[derive(Deserialize)]
struct ScaleAxis {
    index: u64,
}

/// The arrays of a weight.
enum Stored<'a> {
    Codes {
        codes: Cow<'a, str>,
        bits: Bits,
        /// The packing of the codes, if their number permits both.
        packing: Packing,
        scales: Cow<'a, str>,
        zero_points: Option<Cow<'a, str>>,
    },
    Floats(Cow<'a, str>),
}

impl Manifest {
    /// See [`super::WeightFile::forget`].
    pub fn forget(&self, name: &str) {
        let (Some(npz), Some(&i)) = (&self.npz, self.index.get(name)) else {
            return;
        };
        let (name, weight) = &self.weights[i];
        match self.stored(name, weight) {
            Ok(Stored::Floats(key)) => npz.forget(&key),
            Ok(Stored::Codes {
                codes,
                scales,
                zero_points,
                ..
            }) => {
                let keys = [Some(codes), Some(scales), zero_points];
                keys.iter().flatten().for_each(|key| npz.forget(key));
            }
            Err(_) => {}
        }
    }

    /// Parses a manifest in `folder`, and opens the npz that it names.
    ///
    /// # Errors
    /// `ERR_FORMAT` for a malformed text or npz, `ERR_UNSUPPORTED` for another version, `ERR_IO` if
    /// the npz cannot be opened.
    pub fn new(bytes: &[u8], folder: &Path, mmap: bool) -> Result<Manifest> {
        let root: Root = json::parse(bytes, "the manifest")?;
        if root.format_version != 2 {
            return Err(Error::unsupported(format!(
                "format_version {}; 2 is known",
                root.format_version
            )));
        }
        let weights = root.weights.0;
        // Early manifests name the npz that they were made from, which may be anywhere.
        let needs_npz = weights.iter().any(|(_, w)| w.needs_npz());
        let npz = match root.model.source_npz {
            Some(name) if needs_npz => {
                let path = inside(folder, &name)?;
                let opened = FileBytes::open(&path, mmap)
                    .and_then(|bytes| Npz::new(bytes).map_err(|e| e.within(&name)))?;
                Some(opened)
            }
            None if needs_npz => {
                return Err(Error::format("model.source_npz is missing"));
            }
            _ => None,
        };
        let companions = match root.model.companions {
            Some(name) => {
                let path = inside(folder, &name)?;
                if !path.is_dir() {
                    return Err(no_companions(&path));
                }
                Some(path)
            }
            None => None,
        };
        let index = weights.iter().enumerate();
        let index = index.map(|(i, (name, _))| (name.clone(), i)).collect();
        Ok(Manifest {
            text: memory::copied(bytes, "a manifest")?,
            folder: folder.to_owned(),
            npz,
            sha256: root.model.sha256,
            companions,
            weights,
            index,
            defaults: root.quantization,
            accuracy: root.accuracy,
        })
    }

    /// The SHA-256 of the npz, as the manifest has it.
    pub fn sha256(&self) -> Option<&str> {
        self.sha256.as_deref()
    }

    /// The text that was parsed.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// Reads the whole npz and checks its checksums and its SHA-256 in the manifest, which opening
    /// does not. Older manifests have no SHA-256.
    ///
    /// # Errors
    /// `ERR_FORMAT` if something differs.
    pub fn verify(&self) -> Result<()> {
        let Some(npz) = &self.npz else { return Ok(()) };
        npz.verify()?;
        let Some(expected) = self.sha256.as_deref() else {
            return Ok(());
        };
        match npz.sha256() {
            found if found == expected => Ok(()),
            found => Err(Error::format(format!(
                "its npz has the sha256 {found}, the manifest says {expected}"
            ))),
        }
    }

    /// The folder with the files of the tokenizer: that of the manifest, except while a writer
    /// replaces them.
    ///
    /// # Errors
    /// `ERR_IO` if a writer has replaced them since the manifest was opened.
    pub fn companions(&self) -> Result<&Path> {
        match &self.companions {
            Some(path) if !path.is_dir() => Err(no_companions(path)),
            Some(path) => Ok(path),
            None => Ok(&self.folder),
        }
    }

    /// The accuracy of the whole model as measured by the conversion; null if the manifest does not
    /// have it, or has more than [`super::limits::SMALL_TREE_BYTES`] of it.
    pub fn accuracy(&self) -> &Value {
        &self.accuracy
    }

    /// The norm of the quantisation error of a weight over the norm of the weight; `None` if the
    /// manifest does not have it.
    pub fn relative_error(&self, name: &str) -> Option<f64> {
        let (_, weight) = &self.weights[*self.index.get(name)?];
        weight.relative_error
    }

    /// The names of the weights, in the order of the manifest.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.weights.iter().map(|(name, _)| name.as_str())
    }

    /// A weight of two dimensions; `None` if there is none with that name.
    ///
    /// # Errors
    /// `ERR_UNSUPPORTED` for another number of dimensions; `ERR_FORMAT` if its arrays are
    /// inconsistent; `ERR_IO` if they are in a file that cannot be opened; `ERR_MEMORY`.
    pub fn matrix(&self, name: &str) -> Option<Result<MatrixView<'_>>> {
        self.seen_as(name, super::rows_and_cols)
    }

    /// A weight of one dimension, as a matrix of one row; `None` if there is none with that name.
    ///
    /// # Errors
    /// As [`Manifest::matrix`].
    pub fn vector(&self, name: &str) -> Option<Result<MatrixView<'_>>> {
        self.seen_as(name, super::one_row)
    }

    /// The shape of a weight; `None` if there is none with that name.
    ///
    /// # Errors
    /// `ERR_FORMAT` if it has none.
    pub fn shape(&self, name: &str) -> Option<Result<Cow<'_, [usize]>>> {
        let (name, weight) = &self.weights[*self.index.get(name)?];
        Some(self.shape_of(name, weight).map_err(|e| e.within(name)))
    }

    fn seen_as(&self, name: &str, sides: super::Sides) -> Option<Result<MatrixView<'_>>> {
        let (name, weight) = &self.weights[*self.index.get(name)?];
        let shape = self.shape_of(name, weight);
        let view = shape
            .and_then(|shape| sides(&shape))
            .and_then(|sides| self.read(name, weight, sides));
        Some(view.map_err(|e| e.within(name)))
    }

    fn read<'a>(
        &'a self,
        name: &str,
        weight: &'a Weight,
        (rows, cols): (usize, usize),
    ) -> Result<MatrixView<'a>> {
        let (codes, bits, packing, scales, zero_points) = match self.stored(name, weight)? {
            Stored::Floats(reference) => {
                let values = self.array(&reference, rows)?.floats()?;
                if rows.checked_mul(cols) != Some(values.len()) {
                    return Err(Error::format(format!(
                        "{} weights do not make {rows} x {cols}",
                        values.len()
                    )));
                }
                return Ok(MatrixView::Floats(FloatsView { rows, cols, values }));
            }
            Stored::Codes {
                codes,
                bits,
                packing,
                scales,
                zero_points,
            } => (codes, bits, packing, scales, zero_points),
        };
        if let Some(axis) = weight.scale_axis.as_ref().filter(|a| a.index != 0) {
            return Err(Error::unsupported(format!(
                "scales along axis {}",
                axis.index
            )));
        }
        let codes = self.codes(&codes, rows)?;
        let group = weight.group.or(self.defaults.group).unwrap_or(0);
        let packing = packing_of(codes.len(), rows, cols, bits, packing);
        let default = &self.defaults.packing;
        let orders = match (&weight.packed_format, packing) {
            (Some(order), _) => [Some(order.as_str()), None],
            (None, Packing::Msb) => [default["endianness"].as_str(), default["layout"].as_str()],
            (None, Packing::Bytes) => [None, None],
        };
        let other = |order: &&str| {
            ["lsb", "column-major", "col-major"]
                .iter()
                .any(|wrong| order.contains(wrong))
        };
        if let Some(order) = orders.into_iter().flatten().find(other) {
            return Err(Error::unsupported(format!("codes packed {order}")));
        }
        let zero_points = zero_points
            .map(|reference| self.array(&reference, rows)?.integers())
            .transpose()?;
        CodesView::new(
            Shape::new(rows, cols, group),
            bits,
            packing,
            codes,
            self.scales(&scales, rows)?,
            zero_points,
        )
        .map(MatrixView::Codes)
    }

    fn shape_of<'a>(&self, name: &str, weight: &'a Weight) -> Result<Cow<'a, [usize]>> {
        if let Some(Dimensions(shape)) = &weight.shape {
            return Ok(Cow::Borrowed(shape));
        }
        let key = format!("{name}_shape");
        let stored = self.npz.as_ref().and_then(|npz| npz.array(&key));
        let values = stored
            .ok_or_else(|| Error::format("it has no shape"))??
            .integers()?;
        let shape = values.iter().map(|&n| usize::try_from(n));
        shape
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| Error::format("a dimension is negative"))
    }

    /// The arrays of the weight; if there are several forms, quantised ones take precedence.
    fn stored<'a>(&self, name: &str, w: &'a Weight) -> Result<Stored<'a>> {
        let width = w.bit_width.or(self.defaults.bit_width);
        let bits = || {
            let width = width.ok_or_else(|| Error::format("it has codes and no bit_width"))?;
            Bits::new(width.into())
                .ok_or_else(|| Error::format(format!("bit_width {width}, expected 1, 2, 4 or 8")))
        };
        let no_scales = || Error::format("it has codes and no scales");
        // Early manifests have 1-bit rows in addition to the codes of the stated width.
        let wide = width.is_some_and(|b| b > 1) && w.q.is_some();
        if let Some(codes) = w.packed.as_deref().filter(|p| !(wide && is_one_bit(p))) {
            let scales = w.scales.as_deref().or(w.scales_txt.as_deref());
            return Ok(Stored::Codes {
                codes: codes.into(),
                bits: if is_one_bit(codes) {
                    Bits::One
                } else {
                    bits()?
                },
                packing: Packing::Msb,
                scales: scales.ok_or_else(no_scales)?.into(),
                zero_points: w.zero_points.as_deref().map(Cow::from),
            });
        }
        if let Some(codes) = w.q.as_deref() {
            let scales = w.q_scales.as_deref().or(w.scales.as_deref());
            return Ok(Stored::Codes {
                codes: codes.into(),
                bits: bits()?,
                packing: Packing::Bytes,
                scales: scales.ok_or_else(no_scales)?.into(),
                zero_points: w.q_zero_point.as_deref().map(Cow::from),
            });
        }
        if let Some(floats) = w.fp32.as_deref().or(w.fp16.as_deref()) {
            return Ok(Stored::Floats(floats.into()));
        }
        self.stored_by_key(name)
            .ok_or_else(|| Error::format("it names no arrays and the npz has none of its name"))
    }

    /// The arrays of a weight whose entry names none, found by the keys of the npz.
    fn stored_by_key(&self, name: &str) -> Option<Stored<'static>> {
        let npz = self.npz.as_ref()?;
        let present = |key: String| npz.contains(&key).then_some(Cow::Owned(key));
        for bits in Bits::ALL {
            let (codes, scales) = if bits == Bits::One {
                (format!("{name}_1bit"), format!("{name}_scales"))
            } else {
                let codes = format!("{name}_q{}", bits.get());
                let scales = format!("{codes}_scales");
                (codes, scales)
            };
            let zero_points = present(format!("{codes}_zero_point"));
            if let Some(codes) = present(codes) {
                return Some(Stored::Codes {
                    codes,
                    bits,
                    packing: Packing::Bytes,
                    scales: scales.into(),
                    zero_points,
                });
            }
        }
        let floats = present(format!("{name}_fp32")).or_else(|| present(format!("{name}_fp16")));
        floats.map(Stored::Floats)
    }

    /// The array that a reference names: a key of the npz, or an .npy file. An array of several
    /// dimensions must have `rows` rows, because a transposed one has the right size too.
    fn array(&self, reference: &str, rows: usize) -> Result<Array<'_>> {
        let array = match self.npz.as_ref().and_then(|npz| npz.array(reference)) {
            Some(array) => array?,
            None if reference.ends_with(".npy") => {
                Array::parse(Cow::Owned(self.file(reference)?)).map_err(|e| e.within(reference))?
            }
            None => {
                return Err(Error::format(format!(
                    "{reference} is neither a key of the npz nor an .npy file"
                )));
            }
        };
        match &array.shape[..] {
            [first, _, ..] if *first != rows => Err(Error::format(format!(
                "{reference} is of shape {:?}, {rows} rows were expected",
                array.shape
            ))),
            _ => Ok(array),
        }
    }

    /// The bytes of codes, packed or not.
    fn codes(&self, reference: &str, rows: usize) -> Result<Cow<'_, [u8]>> {
        if reference.ends_with(".bin") {
            return self.file(reference).map(Cow::Owned);
        }
        let array = self.array(reference, rows)?;
        if array.dtype != Dtype::U8 {
            return Err(npy::unread("codes", array.dtype, "|u1").within(reference));
        }
        Ok(array.data)
    }

    fn scales(&self, reference: &str, rows: usize) -> Result<ScalesView<'_>> {
        if !reference.ends_with(".txt") {
            return self.array(reference, rows)?.scales();
        }
        let text = self.file(reference)?;
        let text = std::str::from_utf8(&text)
            .map_err(|_| Error::format(format!("{reference} is not UTF-8")))?;
        let mut scales = memory::with_capacity(text.split_whitespace().count(), "scales")?;
        for word in text.split_whitespace() {
            let scale: f32 = word
                .parse()
                .map_err(|_| Error::format(format!("{reference}: {word:?} is not a number")))?;
            scales.push(scale);
        }
        Ok(ScalesView::F32(scales.into()))
    }

    /// The contents of a file beside the manifest. It is read rather than mapped, because only
    /// early manifests have such files, with small arrays.
    fn file(&self, name: &str) -> Result<Vec<u8>> {
        FileBytes::open(&inside(&self.folder, name)?, false)?.into_vec()
    }
}

impl Weight {
    /// Whether its arrays are in the npz.
    fn needs_npz(&self) -> bool {
        let mut references = [&self.packed, &self.q, &self.fp32, &self.fp16]
            .into_iter()
            .flatten()
            .peekable();
        references.peek().is_none()
            || references.any(|r| !(r.ends_with(".npy") || r.ends_with(".bin")))
    }
}

/// Whether codes with that reference have 1 bit, whatever width the manifest states: rows of
/// `numpy.packbits`, or the key of 1-bit codes.
fn is_one_bit(reference: &str) -> bool {
    reference.ends_with(".bin") || reference.ends_with("_1bit")
}

/// The packing of codes in `len` bytes: `preferred`, unless only the other one fits.
fn packing_of(len: usize, rows: usize, cols: usize, bits: Bits, preferred: Packing) -> Packing {
    let fits = |packing| {
        let row = match packing {
            Packing::Bytes => cols,
            Packing::Msb => packed_row_bytes(cols, bits),
        };
        rows.checked_mul(row) == Some(len)
    };
    let other = match preferred {
        Packing::Bytes => Packing::Msb,
        Packing::Msb => Packing::Bytes,
    };
    if !fits(preferred) && fits(other) {
        other
    } else {
        preferred
    }
}

/// The path of a file named by a manifest in `folder`, if it stays there.
///
/// # Errors
/// Those of [`beneath`], and `ERR_FORMAT` for a symbolic link that leads out.
fn inside(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = beneath(folder, name)?;
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    match (folder.canonicalize(), path.canonicalize()) {
        (Ok(folder), Ok(target)) if !target.starts_with(&folder) => Err(leads_out(name)),
        // A missing file is reported when it is opened.
        _ => Ok(path),
    }
}

/// The path of a file that another file in `folder` names, checked by the name alone. The file may
/// be a symbolic link to anywhere, because links in the folder were not made by the author of the
/// name.
///
/// # Errors
/// `ERR_FORMAT` for an absolute path and one with `..`.
pub(super) fn beneath(folder: &Path, name: &str) -> Result<PathBuf> {
    let mut parts = Path::new(name).components().peekable();
    if parts.peek().is_none() || !parts.all(|p| matches!(p, Component::Normal(_))) {
        return Err(leads_out(name));
    }
    Ok(folder.join(name))
}

fn leads_out(name: &str) -> Error {
    Error::format(format!("the path {name:?} leads out of the folder"))
}
