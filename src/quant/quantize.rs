//! Quantising float matrices: from rows of weights to packed codes, scales and zero points.

use std::fmt::LowerExp;

use half::f16;

use super::codes::{CodesBuf, ScalesBuf, pack_row, packed_row_bytes};
use super::grid::{Grid, Precision};
use super::nearest;
use super::search::Search;
use super::shape::{Bits, Shape};
use crate::error::{Error, Result};
use crate::memory;

/// How the scale (and zero point) of a group is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// From the largest weights of the group.
    Nearest,
    /// Searched for least squared error; never worse than `Nearest` in any group.
    Search,
}

impl Method {
    /// The spelling in options and manifests.
    pub fn name(self) -> &'static str {
        match self {
            Method::Nearest => "nearest",
            Method::Search => "search",
        }
    }
}

/// The precision in which scales are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScalePrecision {
    /// Float16; `ERR_RANGE` if a scale would not be a normal float16 number.
    F16,
    /// Float32.
    F32,
    /// Float16 if every scale of the matrix is then a normal number or 0, else float32 for all of
    /// them.
    Auto,
}

/// How a matrix is to be quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Bits per code.
    pub bits: Bits,
    /// Zero point `2^(bits-1)` everywhere; otherwise one per group. One bit is always symmetric.
    pub symmetric: bool,
    /// How scales are found.
    pub method: Method,
    /// The precision of the scales.
    pub scales: ScalePrecision,
}

/// An element type of the weights of a caller.
pub trait Element: Copy + LowerExp + Sync {
    /// The weight rounded to float32; not finite where it is beyond float32.
    fn to_f32(self) -> f32;
}

impl Element for f32 {
    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for f64 {
    fn to_f32(self) -> f32 {
        self as f32
    }
}

/// Consecutive rows of a matrix and where their results go: what one thread quantises.
pub struct Band<'a, T> {
    spec: &'a Spec,
    shape: Shape,
    precision: Precision,
    first_row: usize,
    /// `(rows of the band, cols)`
    w: &'a [T],
    /// `(rows of the band, packed_row_bytes)`
    bytes: &'a mut [u8],
    /// `(rows of the band, groups)`
    scales: &'a mut [f32],
    /// `(rows of the band, groups)`, empty if there are none
    zero_points: &'a mut [i32],
}

impl<T: Element> Band<'_, T> {
    /// Quantises the rows; returns `false` as soon as a scale cannot be represented in the current
    /// precision.
    ///
    /// # Errors
    /// `ERR_RANGE` for a weight that is not finite as float32; `ERR_MEMORY`.
    pub fn quantize(self) -> Result<bool> {
        let Shape { cols, groups, .. } = self.shape;
        let bits = self.spec.bits;
        let row_bytes = packed_row_bytes(cols, bits);
        let mut row: Vec<f32> = memory::with_capacity(cols, "a row of weights")?;
        let mut codes = memory::filled(cols, 0u8, "a row of codes")?;
        let mut search = match self.spec.method {
            Method::Search => Some(Search::new(self.shape.group.min(cols))?),
            Method::Nearest => None,
        };
        for (r, w) in self.w.chunks_exact(cols).enumerate() {
            load_row(w, self.first_row + r, &mut row)?;
            for g in 0..groups {
                let columns = self.shape.group_columns(g);
                let (w, codes) = (&row[columns.clone()], &mut codes[columns]);
                let scale = if bits == Bits::One {
                    let Some(scale) = nearest::sign_scale(w, self.precision) else {
                        return Ok(false);
                    };
                    for (code, &w) in codes.iter_mut().zip(w) {
                        *code = u8::from(w >= 0.0);
                    }
                    scale
                } else {
                    let Some(grid) = fit(w, self.spec, self.precision, search.as_mut()) else {
                        return Ok(false);
                    };
                    grid.codes(w, codes);
                    if let Some(zero) = self.zero_points.get_mut(r * groups + g) {
                        *zero = grid.zero_point();
                    }
                    grid.scale
                };
                self.scales[r * groups + g] = scale;
            }
            pack_row(&codes, bits, &mut self.bytes[r * row_bytes..][..row_bytes]);
        }
        Ok(true)
    }
}

/// One row as float32; `row` becomes `(cols)`. `r` is its number, for the message.
fn load_row<T: Element>(w: &[T], r: usize, row: &mut Vec<f32>) -> Result<()> {
    row.clear();
    row.extend(w.iter().map(|w| w.to_f32()));
    match row.iter().position(|w| !w.is_finite()) {
        None => Ok(()),
        Some(c) => Err(Error::range(format!(
            "w at row {r}, column {c} is {:e}, expected a finite float32 number",
            w[c]
        ))),
    }
}

/// The grid of one group of more than one bit; `None` if rounding to nearest has no scale in this
/// precision.
///
/// Because only `nearest` decides this, the precision of a matrix is the same for both methods, and
/// the search is compared with the very grid that it replaces.
fn fit(w: &[f32], spec: &Spec, precision: Precision, search: Option<&mut Search>) -> Option<Grid> {
    let bits = spec.bits;
    let grid = if spec.symmetric {
        nearest::symmetric(w, bits, precision)?
    } else {
        nearest::asymmetric(w, bits, precision)?
    };
    let found = match search {
        Some(search) if grid.scale != 0.0 => {
            if spec.symmetric {
                search.symmetric(w, bits, precision)
            } else {
                search.asymmetric(w, bits, grid.zero_point(), precision)
            }
        }
        _ => None,
    };
    Some(found.map_or(grid, |found| grid.or_better(found, w)))
}

/// Quantises a matrix on the calling thread; `w` is `(rows, cols)`.
///
/// # Errors
/// As `quantize_in_bands`.
pub fn quantize<T: Element>(w: &[T], shape: Shape, spec: &Spec) -> Result<CodesBuf> {
    quantize_in_bands(w, shape, spec, shape.rows, |bands| {
        bands
            .into_iter()
            .try_fold(true, |fits, band| Ok(fits && band.quantize()?))
    })
}

/// Quantises a matrix divided into bands of `rows_per_band` rows; `w` is `(rows, cols)`.
///
/// `run` calls `Band::quantize` on every band, in any order and on any threads, and returns whether
/// all of them returned `true`, or an error of one of them. It is called again if float16 could not
/// represent every scale. The result does not depend on the bands.
///
/// # Errors
/// `ERR_LENGTH` if `w` is not `rows * cols` long; `ERR_RANGE` for a weight that is not finite as
/// float32, or with `ScalePrecision::F16` a scale that is not a normal float16 number;
/// `ERR_MEMORY`.
pub fn quantize_in_bands<T: Element>(
    w: &[T],
    shape: Shape,
    spec: &Spec,
    rows_per_band: usize,
    run: impl Fn(Vec<Band<'_, T>>) -> Result<bool>,
) -> Result<CodesBuf> {
    let Shape {
        rows, cols, groups, ..
    } = shape;
    if rows.checked_mul(cols) != Some(w.len()) {
        return Err(Error::length(format!(
            "w has {} elements, expected rows * cols = {rows} * {cols}",
            w.len()
        )));
    }
    // rows * row_bytes <= rows * cols, and rows * groups <= rows * max(cols, 1): neither overflows.
    // Without columns there may be any number of rows, whose zeros are never touched.
    let row_bytes = packed_row_bytes(cols, spec.bits);
    let mut bytes = memory::zeroed(rows * row_bytes, "codes")?;
    let mut scales: Vec<f32> = memory::zeroed(rows * groups, "scales")?;
    let mut zero_points = None;
    if !spec.symmetric && spec.bits != Bits::One {
        zero_points = Some(memory::zeroed(rows * groups, "zero points")?);
    }

    let mut pass = |precision| -> Result<bool> {
        let rows_per_band = rows_per_band.max(1);
        let mut bands = memory::with_capacity(rows.div_ceil(rows_per_band), "bands of rows")?;
        let mut bytes = bytes.as_mut_slice();
        let mut scales = scales.as_mut_slice();
        let mut zero_points = zero_points.as_deref_mut().unwrap_or_default();
        for first_row in (0..rows).step_by(rows_per_band) {
            let n = rows_per_band.min(rows - first_row);
            bands.push(Band {
                spec,
                shape,
                precision,
                first_row,
                w: &w[first_row * cols..][..n * cols],
                bytes: bytes.split_off_mut(..n * row_bytes).unwrap_or_default(),
                scales: scales.split_off_mut(..n * groups).unwrap_or_default(),
                zero_points: zero_points.split_off_mut(..n * groups).unwrap_or_default(),
            });
        }
        run(bands)
    };
    let half = spec.scales != ScalePrecision::F32 && (cols == 0 || pass(Precision::Half)?);
    if !half && cols > 0 {
        if spec.scales == ScalePrecision::F16 {
            return Err(Error::range(
                "w: a group's scale is not a normal float16 number, expected 2^-14 to 65504, or 0",
            ));
        }
        pass(Precision::Single)?;
    }

    let scales = if half && cols == 0 {
        ScalesBuf::F16(memory::zeroed(rows * groups, "scales")?)
    } else if half {
        let mut short = memory::with_capacity(scales.len(), "scales")?;
        short.extend(scales.iter().map(|&s| f16::from_f32(s)));
        ScalesBuf::F16(short)
    } else {
        ScalesBuf::F32(scales)
    };
    Ok(CodesBuf {
        shape,
        bits: spec.bits,
        bytes,
        scales,
        zero_points,
    })
}
