//! The matrices that readers return and the writer takes, borrowed from the file if its bytes can
//! be used in place.

use std::borrow::Cow;

use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::memory;
use crate::quant::{Bits, Codes, Packing, Per, ScaleValues, Shape};

/// One matrix of a file.
#[derive(Clone, Debug)]
pub enum MatrixView<'a> {
    /// Already quantised.
    Codes(CodesView<'a>),
    /// Floats.
    Floats(FloatsView<'a>),
}

/// One matrix to be written.
#[derive(Clone, Debug)]
pub enum MatrixRef<'a> {
    /// Quantised.
    Codes(Codes<'a>),
    /// Floats.
    Floats(FloatsView<'a>),
}

/// A float matrix: `values` is `(rows, cols)`, row-major.
#[derive(Clone, Debug)]
pub struct FloatsView<'a> {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// The weights, in their stored precision. They may be anything, including NaN.
    pub values: FloatValues<'a>,
}

/// Float values in their stored precision.
#[derive(Clone, Debug, PartialEq)]
pub enum FloatValues<'a> {
    /// Float32.
    F32(Cow<'a, [f32]>),
    /// Float16.
    F16(Cow<'a, [f16]>),
    /// Bfloat16.
    BF16(Cow<'a, [bf16]>),
}

impl FloatValues<'_> {
    /// The number of values.
    pub fn len(&self) -> usize {
        match self {
            FloatValues::F32(v) => v.len(),
            FloatValues::F16(v) => v.len(),
            FloatValues::BF16(v) => v.len(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl FloatsView<'_> {
    /// Whether every weight is finite.
    pub fn is_finite(&self) -> bool {
        match &self.values {
            FloatValues::F32(v) => v.iter().all(|v| v.is_finite()),
            FloatValues::F16(v) => v.iter().all(|v| v.is_finite()),
            FloatValues::BF16(v) => v.iter().all(|v| v.is_finite()),
        }
    }

    /// Writes one row as float32; `out` is `(cols)`.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let columns = row * self.cols..(row + 1) * self.cols;
        match &self.values {
            FloatValues::F32(v) => out.copy_from_slice(&v[columns]),
            FloatValues::F16(v) => widen(&v[columns], out),
            FloatValues::BF16(v) => widen(&v[columns], out),
        }
    }

    /// The whole matrix as float32 `(rows, cols)`, borrowed if it is float32 already.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub fn to_f32(&self) -> Result<Cow<'_, [f32]>> {
        if let FloatValues::F32(v) = &self.values {
            return Ok(Cow::Borrowed(v));
        }
        let mut out = memory::filled(self.values.len(), 0.0, "the weights as float32")?;
        for (row, out) in out.chunks_exact_mut(self.cols.max(1)).enumerate() {
            self.row(row, out);
        }
        Ok(Cow::Owned(out))
    }
}

fn widen<T: Copy + Into<f32>>(values: &[T], out: &mut [f32]) {
    for (o, &v) in out.iter_mut().zip(values) {
        *o = v.into();
    }
}

impl MatrixView<'_> {
    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            MatrixView::Codes(c) => (c.shape.rows, c.shape.cols),
            MatrixView::Floats(f) => (f.rows, f.cols),
        }
    }

    /// Writes one row, dequantised or converted to float32; `out` is `(cols)`.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        match self {
            MatrixView::Codes(c) => c.as_codes().dequantize_row(row, out),
            MatrixView::Floats(f) => f.row(row, out),
        }
    }
}

/// The scales of a quantised matrix, in their stored precision.
#[derive(Clone, Debug)]
pub enum ScalesView<'a> {
    /// Float32.
    F32(Cow<'a, [f32]>),
    /// Float16.
    F16(Cow<'a, [f16]>),
}

/// A quantised matrix. Every field has been checked: lengths match the shape, scales are finite,
/// unpacked codes and zero points are in range.
#[derive(Clone, Debug)]
pub struct CodesView<'a> {
    shape: Shape,
    bits: Bits,
    packing: Packing,
    bytes: Cow<'a, [u8]>,
    scales: ScalesView<'a>,
    scale_per: Per,
    zero_points: Option<(Cow<'a, [i32]>, Per)>,
}

impl<'a> CodesView<'a> {
    /// Checks the parts of a matrix for consistency.
    ///
    /// `bytes` is `(rows, cols)` or packed `(rows, ceil(cols * bits / 8))`, as given by `packing`;
    /// `scales` and `zero_points` have one element, `(rows)` or `(rows, groups)`.
    ///
    /// # Errors
    /// `ERR_FORMAT`, naming the part and what was expected.
    pub(super) fn new(
        shape: Shape,
        bits: Bits,
        packing: Packing,
        bytes: Cow<'a, [u8]>,
        scales: ScalesView<'a>,
        zero_points: Option<Cow<'a, [i32]>>,
    ) -> Result<CodesView<'a>> {
        let row_bytes = match packing {
            Packing::Bytes => shape.cols,
            Packing::Msb => crate::quant::packed_row_bytes(shape.cols, bits),
        };
        if shape.rows.checked_mul(row_bytes) != Some(bytes.len()) {
            return Err(Error::format(format!(
                "{} bytes of codes, {} rows of {row_bytes} were expected",
                bytes.len(),
                shape.rows
            )));
        }
        if packing == Packing::Bytes
            && let Some(at) = bytes.iter().position(|&c| c > bits.max_code())
        {
            return Err(Error::format(format!(
                "code {at} is {}, at most {} with {} bits",
                bytes[at],
                bits.max_code(),
                bits.get()
            )));
        }
        let per = |len: usize, what: &str| {
            shape.per(len).ok_or_else(|| {
                Error::format(format!(
                    "{len} {what}; 1, {} or {} x {} were expected",
                    shape.rows, shape.rows, shape.groups
                ))
            })
        };
        let (scale_per, infinite) = match &scales {
            ScalesView::F32(v) => (
                per(v.len(), "scales")?,
                v.iter().position(|s| !s.is_finite()),
            ),
            ScalesView::F16(v) => (
                per(v.len(), "scales")?,
                v.iter().position(|s| !s.is_finite()),
            ),
        };
        if let Some(at) = infinite {
            return Err(Error::format(format!("scale {at} is not finite")));
        }
        let zero_points = match zero_points {
            None => None,
            Some(_) if bits == Bits::One => {
                return Err(Error::format("zero points with codes of 1 bit"));
            }
            Some(z) => {
                let max = i32::from(bits.max_code());
                if let Some(at) = z.iter().position(|z| !(0..=max).contains(z)) {
                    return Err(Error::format(format!(
                        "zero point {at} is {}, expected 0 to {max}",
                        z[at]
                    )));
                }
                let per = per(z.len(), "zero points")?;
                Some((z, per))
            }
        };
        Ok(CodesView {
            shape,
            bits,
            packing,
            bytes,
            scales,
            scale_per,
            zero_points,
        })
    }

    /// Whether every weight is finite as float32. Scales are, but a code times its scale may be too
    /// large.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub fn is_finite(&self) -> Result<bool> {
        let ScalesView::F32(scales) = &self.scales else {
            return Ok(true);
        };
        let largest = scales.iter().fold(0f32, |most, s| most.max(s.abs()));
        if (largest * f32::from(self.bits.max_code())).is_finite() {
            return Ok(true);
        }
        let codes = self.as_codes();
        let mut row = memory::filled(self.shape.cols, 0.0, "a row of weights")?;
        Ok((0..self.shape.rows).all(|r| {
            codes.dequantize_row(r, &mut row);
            row.iter().all(|v| v.is_finite())
        }))
    }

    /// The matrix in the form that the rest of the library uses.
    pub fn as_codes(&self) -> Codes<'_> {
        Codes {
            shape: self.shape,
            bits: self.bits,
            packing: self.packing,
            bytes: &self.bytes,
            scales: match &self.scales {
                ScalesView::F32(v) => ScaleValues::F32(v),
                ScalesView::F16(v) => ScaleValues::F16(v),
            },
            scale_per: self.scale_per,
            zero_points: self.zero_points.as_ref().map(|(z, per)| (&z[..], *per)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(
        packing: Packing,
        bytes: &[u8],
        scales: &[f32],
        zero_points: Option<&[i32]>,
    ) -> Result<Vec<f32>> {
        let v = CodesView::new(
            Shape::new(2, 3, 2),
            Bits::Four,
            packing,
            bytes.into(),
            ScalesView::F32(scales.into()),
            zero_points.map(Into::into),
        )?;
        let mut out = vec![0.0; 6];
        v.as_codes().dequantize_row(0, &mut out[..3]);
        v.as_codes().dequantize_row(1, &mut out[3..]);
        Ok(out)
    }

    #[test]
    fn the_parts_must_agree() {
        let packed = [0x9a, 0xb0, 0x01, 0x20];
        let ok = view(Packing::Msb, &packed, &[1.0, 2.0], Some(&[8])).unwrap();
        assert_eq!(ok, [1.0, 2.0, 3.0, -16.0, -14.0, -12.0]);
        type Case<'a> = (Packing, &'a [u8], &'a [f32], Option<&'a [i32]>, &'a str);
        let cases: [Case; 6] = [
            (
                Packing::Msb,
                &packed[1..],
                &[1.0],
                None,
                "3 bytes of codes, 2 rows of 2 were expected",
            ),
            (
                Packing::Bytes,
                &packed,
                &[1.0],
                None,
                "4 bytes of codes, 2 rows of 3 were expected",
            ),
            (
                Packing::Bytes,
                &[1, 2, 3, 4, 16, 0],
                &[1.0],
                None,
                "code 4 is 16, at most 15 with 4 bits",
            ),
            (
                Packing::Msb,
                &packed,
                &[1.0; 3],
                None,
                "3 scales; 1, 2 or 2 x 2 were expected",
            ),
            (
                Packing::Msb,
                &packed,
                &[1.0, f32::NAN],
                None,
                "scale 1 is not finite",
            ),
            (
                Packing::Msb,
                &packed,
                &[1.0],
                Some(&[3, 16]),
                "zero point 1 is 16, expected 0 to 15",
            ),
        ];
        for (packing, bytes, scales, zero_points, text) in cases {
            let e = view(packing, bytes, scales, zero_points).unwrap_err();
            assert_eq!(e.message(), text);
        }
    }

    #[test]
    fn products_of_finite_scales_may_be_infinite() {
        let is_finite = |bytes: &[u8], scale: f32| {
            let scales = [1.0, scale];
            let view = CodesView::new(
                Shape::new(2, 2, 2),
                Bits::Eight,
                Packing::Bytes,
                bytes.into(),
                ScalesView::F32((&scales[..]).into()),
                None,
            );
            view.unwrap().is_finite().unwrap()
        };
        assert!(is_finite(&[0, 255, 0, 255], 1e36));
        assert!(is_finite(&[0, 255, 127, 128], -3e38));
        assert!(!is_finite(&[0, 255, 127, 131], 3e38));
    }

    #[test]
    fn floats_are_widened_row_by_row() {
        let halves: Vec<f16> = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0].map(f16::from_f32).to_vec();
        let view = FloatsView {
            rows: 2,
            cols: 3,
            values: FloatValues::F16(halves.into()),
        };
        let mut row = [0.0; 3];
        view.row(1, &mut row);
        assert_eq!(row, [4.0, 5.0, 6.0]);
        assert_eq!(&*view.to_f32().unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    }
}
