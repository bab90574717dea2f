//! Quantised matrices in the form that crosses the ABI and is stored in files: codes row-major,
//! packed with the first code in the most significant bits, scales and zero points separately.

use half::f16;

use super::shape::{Bits, Per, Shape};
use crate::error::Result;
use crate::memory;

/// How codes are stored in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// One code per byte: `(rows, cols)`.
    Bytes,
    /// First code in the most significant bits, each row padded to whole bytes:
    /// `(rows, ceil(cols * bits / 8))`. The padding bits may hold anything.
    Msb,
}

/// Borrowed scales, in the precision in which they are stored.
#[derive(Clone, Copy, Debug)]
pub enum ScaleValues<'a> {
    /// Given by a caller: kept unchanged.
    F32(&'a [f32]),
    /// Made by this library, or read from a file that stores float16.
    F16(&'a [f16]),
}

impl ScaleValues<'_> {
    /// The value at `i`, widened.
    pub fn get(&self, i: usize) -> f32 {
        match self {
            ScaleValues::F32(v) => v[i],
            ScaleValues::F16(v) => v[i].to_f32(),
        }
    }

    /// The number of values.
    pub fn len(&self) -> usize {
        match self {
            ScaleValues::F32(v) => v.len(),
            ScaleValues::F16(v) => v.len(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A quantised matrix, borrowed.
///
/// Whoever creates one has checked the lengths against the shape: the accessors index and would
/// panic.
#[derive(Clone, Copy, Debug)]
pub struct Codes<'a> {
    /// Rows, columns and groups.
    pub shape: Shape,
    /// Bits per code.
    pub bits: Bits,
    /// How `bytes` holds the codes.
    pub packing: Packing,
    /// The codes: `(rows, cols)` or `(rows, ceil(cols * bits / 8))` by `packing`.
    pub bytes: &'a [u8],
    /// The scales, as many as `scale_per` requires.
    pub scales: ScaleValues<'a>,
    /// What one scale covers.
    pub scale_per: Per,
    /// Zero points and what one of them covers; `None`: `2^(bits-1)` everywhere. Never with one
    /// bit.
    pub zero_points: Option<(&'a [i32], Per)>,
}

impl<'a> Codes<'a> {
    /// The bytes of one row of codes.
    pub fn row_bytes(&self, row: usize) -> &'a [u8] {
        let n = match self.packing {
            Packing::Bytes => self.shape.cols,
            Packing::Msb => packed_row_bytes(self.shape.cols, self.bits),
        };
        &self.bytes[row * n..(row + 1) * n]
    }

    /// The scale of `(row, group)`.
    pub fn scale(&self, row: usize, group: usize) -> f32 {
        self.scales
            .get(self.scale_per.index(row, group, self.shape.groups))
    }

    /// The zero point of `(row, group)`; meaningless for one bit.
    pub fn zero_point(&self, row: usize, group: usize) -> i32 {
        match self.zero_points {
            None => self.bits.default_zero_point(),
            Some((values, per)) => values[per.index(row, group, self.shape.groups)],
        }
    }

    /// The number of scales, and of zero points if there are any, with one per group. A matrix
    /// without columns may come without scales.
    fn group_values(&self) -> usize {
        match self.scales.is_empty() {
            true => 0,
            false => self.shape.rows * self.shape.groups,
        }
    }

    /// Bytes in the form of the library's own files: packed codes, and per group a scale in its
    /// present precision and, unless the matrix is symmetric, a byte for the zero point.
    pub fn stored_bytes(&self) -> usize {
        let scale = match self.scales {
            ScaleValues::F32(_) => size_of::<f32>(),
            ScaleValues::F16(_) => size_of::<f16>(),
        };
        let zero_point = usize::from(self.zero_points.is_some());
        self.shape.rows * packed_row_bytes(self.shape.cols, self.bits)
            + self.group_values() * (scale + zero_point)
    }

    /// A packed copy with a scale and a zero point per group.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub fn to_buf(&self) -> Result<CodesBuf> {
        let Shape {
            rows, cols, groups, ..
        } = self.shape;
        let row_bytes = packed_row_bytes(cols, self.bits);
        let mut bytes = memory::zeroed(rows * row_bytes, "packed codes")?;
        let mut row = memory::filled(if rows == 0 { 0 } else { cols }, 0, "a row of codes")?;
        // Not a loop over the rows: without columns their number may be astronomical.
        for (r, out) in bytes.chunks_exact_mut(row_bytes.max(1)).enumerate() {
            self.row_codes(r, &mut row);
            pack_row(&row, self.bits, out);
        }
        // A matrix without columns needs no scales, whatever it came with.
        let values = if cols == 0 { 0 } else { rows * groups };
        let places = || (0..values).map(|i| (i / groups, i % groups));
        let scales = match self.scales {
            ScaleValues::F32(_) => {
                let mut scales = memory::with_capacity(values, "scales")?;
                scales.extend(places().map(|(r, g)| self.scale(r, g)));
                ScalesBuf::F32(scales)
            }
            ScaleValues::F16(_) => {
                let mut scales = memory::with_capacity(values, "scales")?;
                scales.extend(places().map(|(r, g)| f16::from_f32(self.scale(r, g))));
                ScalesBuf::F16(scales)
            }
        };
        let zero_points = match self.zero_points {
            None => None,
            Some(_) => {
                let mut zero_points = memory::with_capacity(values, "zero points")?;
                zero_points.extend(places().map(|(r, g)| self.zero_point(r, g)));
                Some(zero_points)
            }
        };
        Ok(CodesBuf {
            shape: self.shape,
            bits: self.bits,
            bytes,
            scales,
            zero_points,
        })
    }

    /// The codes of one row, one per byte; `out` is `(cols)`.
    pub fn row_codes(&self, row: usize, out: &mut [u8]) {
        self.codes_from(row, 0, out);
    }

    /// The codes of one row from column `start` on, which is a multiple of 8, as many as `out`
    /// holds.
    fn codes_from(&self, row: usize, start: usize, out: &mut [u8]) {
        let bytes = self.row_bytes(row);
        match self.packing {
            Packing::Bytes => out.copy_from_slice(&bytes[start..][..out.len()]),
            Packing::Msb => unpack_row(&bytes[start / 8 * self.bits.get()..], self.bits, out),
        }
    }

    /// The weights of one row; `out` is `(cols)`. Each is `scale * level` rounded once to float32.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let mut codes = [0; CHUNK];
        for (i, out) in out.chunks_mut(CHUNK).enumerate() {
            let (start, end) = (i * CHUNK, i * CHUNK + out.len());
            let codes = &mut codes[..out.len()];
            self.codes_from(row, start, codes);
            for g in start / self.shape.group..(end - 1) / self.shape.group + 1 {
                let (scale, zero) = (self.scale(row, g), self.zero_point(row, g));
                let columns = self.shape.group_columns(g);
                for c in columns.start.max(start) - start..columns.end.min(end) - start {
                    out[c] = scale * self.bits.level(codes[c], zero) as f32;
                }
            }
        }
    }
}

/// Columns that [`Codes::dequantize_row`] unpacks at a time: at every bit width they begin at a
/// byte boundary.
const CHUNK: usize = 256;

/// Owned scales.
#[derive(Clone, Debug, PartialEq)]
pub enum ScalesBuf {
    /// Float32 scales.
    F32(Vec<f32>),
    /// Float16 scales.
    F16(Vec<f16>),
}

impl ScalesBuf {
    /// A borrowed view.
    pub fn values(&self) -> ScaleValues<'_> {
        match self {
            ScalesBuf::F32(v) => ScaleValues::F32(v),
            ScalesBuf::F16(v) => ScaleValues::F16(v),
        }
    }
}

/// A quantised matrix, owned: packed codes, one scale per group.
#[derive(Clone, Debug, PartialEq)]
pub struct CodesBuf {
    /// Rows, columns and groups.
    pub shape: Shape,
    /// Bits per code.
    pub bits: Bits,
    /// Packed codes: `(rows, ceil(cols * bits / 8))`.
    pub bytes: Vec<u8>,
    /// Scales: `(rows, groups)`.
    pub scales: ScalesBuf,
    /// Zero points: `(rows, groups)`; `None`: `2^(bits-1)` everywhere.
    pub zero_points: Option<Vec<i32>>,
}

impl CodesBuf {
    /// A borrowed view.
    pub fn as_codes(&self) -> Codes<'_> {
        Codes {
            shape: self.shape,
            bits: self.bits,
            packing: Packing::Msb,
            bytes: &self.bytes,
            scales: self.scales.values(),
            scale_per: Per::Group,
            zero_points: self.zero_points.as_deref().map(|z| (z, Per::Group)),
        }
    }
}

/// Bytes of a packed row of `cols` codes.
pub const fn packed_row_bytes(cols: usize, bits: Bits) -> usize {
    // cols * bits could overflow where cols alone does not; a byte holds 8 / bits codes.
    cols.div_ceil(8 / bits.get())
}

/// Packs one row, first code in the most significant bits; the last byte is padded with zeros.
///
/// `codes` is `(cols)`, `out` is `(packed_row_bytes)`. Codes must not exceed `bits.max_code()`.
pub fn pack_row(codes: &[u8], bits: Bits, out: &mut [u8]) {
    let (b, per_byte) = (bits.get(), 8 / bits.get());
    for (byte, chunk) in out.iter_mut().zip(codes.chunks(per_byte)) {
        *byte = chunk
            .iter()
            .enumerate()
            .fold(0, |acc, (i, &c)| acc | c << (8 - b * (i + 1)));
    }
}

/// Unpacks one row; `packed` is `(packed_row_bytes)`, `out` is `(cols)`.
pub fn unpack_row(packed: &[u8], bits: Bits, out: &mut [u8]) {
    let (b, per_byte) = (bits.get(), 8 / bits.get());
    for (chunk, &byte) in out.chunks_mut(per_byte).zip(packed) {
        for (i, c) in chunk.iter_mut().enumerate() {
            *c = byte >> (8 - b * (i + 1)) & bits.max_code();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_code_is_most_significant() {
        let mut out = [0u8; 1];
        pack_row(&[1, 2], Bits::Four, &mut out);
        assert_eq!(out, [0x12]);
        pack_row(&[3, 0, 1], Bits::Two, &mut out);
        assert_eq!(out, [0b1100_0100]);
        pack_row(&[1, 0, 0, 0, 0, 0, 0, 1], Bits::One, &mut out);
        assert_eq!(out, [0x81]);
    }

    #[test]
    fn packing_round_trips_at_every_length() {
        for bits in Bits::ALL {
            for cols in [0usize, 1, 2, 3, 7, 8, 9, 31, 33, 65] {
                let codes: Vec<u8> = (0..cols)
                    .map(|i| (i * 37 + 11) as u8 & bits.max_code())
                    .collect();
                let mut packed = vec![0; packed_row_bytes(cols, bits)];
                pack_row(&codes, bits, &mut packed);
                if let Some(last) = packed.last_mut() {
                    let used = cols * bits.get() % 8;
                    if used != 0 {
                        *last |= 0xff >> used; // padding may hold anything
                    }
                }
                let mut back = vec![0xee; cols];
                unpack_row(&packed, bits, &mut back);
                assert_eq!(back, codes, "{bits:?} {cols}");
            }
        }
    }

    #[test]
    fn dequantised_row() {
        let m = Codes {
            shape: Shape::new(2, 3, 2),
            bits: Bits::Four,
            packing: Packing::Bytes,
            bytes: &[0, 15, 8, 1, 2, 3],
            scales: ScaleValues::F32(&[1.0, 2.0, 0.5, 4.0]),
            scale_per: Per::Group,
            zero_points: Some((&[8, 1], Per::Row)),
        };
        let mut row = [0.0; 3];
        m.dequantize_row(0, &mut row);
        assert_eq!(row, [-8.0, 7.0, 0.0]);
        m.dequantize_row(1, &mut row);
        assert_eq!(row, [0.0, 0.5, 8.0]);
    }

    #[test]
    fn copies_and_what_they_take() {
        let m = Codes {
            shape: Shape::new(2, 3, 2),
            bits: Bits::Four,
            packing: Packing::Bytes,
            bytes: &[0, 15, 8, 1, 2, 3],
            scales: ScaleValues::F32(&[1.0, 2.0]),
            scale_per: Per::Row,
            zero_points: Some((&[7], Per::Tensor)),
        };
        let copy = CodesBuf {
            shape: m.shape,
            bits: m.bits,
            bytes: vec![0x0f, 0x80, 0x12, 0x30],
            scales: ScalesBuf::F32(vec![1.0, 1.0, 2.0, 2.0]),
            zero_points: Some(vec![7; 4]),
        };
        assert_eq!(m.to_buf().unwrap(), copy);
        assert_eq!(copy.as_codes().to_buf().unwrap(), copy);
        assert_eq!(m.stored_bytes(), 4 + 4 * (4 + 1));
        let half = Codes {
            scales: ScaleValues::F16(&[f16::ONE]),
            scale_per: Per::Tensor,
            zero_points: None,
            ..m
        };
        assert_eq!(half.stored_bytes(), 4 + 4 * 2);
        let ones = ScalesBuf::F16(vec![f16::ONE; 4]);
        assert_eq!(half.to_buf().unwrap().scales, ones);
        let empty = Codes {
            shape: Shape::new(usize::MAX, 0, 0),
            bytes: &[],
            scales: ScaleValues::F32(&[]),
            ..half
        };
        assert_eq!(empty.stored_bytes(), 0);
        assert!(empty.to_buf().unwrap().bytes.is_empty());
    }
}
