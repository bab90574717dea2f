//! The weight object: a matrix converted once for multiplication.

use super::tiles::Tiles;
use crate::cpu::layout::Layout;
use crate::error::{Error, Result};
use crate::quant::{Bits, Codes, CodesBuf, ScaleValues, ScalesBuf, pack_row, packed_row_bytes};
use crate::runtime::Runtime;
use half::f16;

/// How the activations of a product are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// As they are.
    F32,
    /// Quantised to 8 bits, one scale a block.
    Int8,
    /// Their signs (1-bit weights only).
    Sign,
}

/// A matrix converted once for multiplication.
pub struct Weights {
    codes: CodesBuf,
    tiles: Option<Tiles>,
    activations: Activations,
}

impl Weights {
    /// Converts a quantised matrix.
    ///
    /// # Errors
    /// `ERR_CONFIG` for sign activations with more than one bit; `ERR_MEMORY`.
    pub fn from_codes(rt: &Runtime, c: &Codes<'_>, activations: Activations) -> Result<Weights> {
        if activations == Activations::Sign && c.bits != Bits::One {
            return Err(Error::config("activations \"sign\" needs weights of 1 bit"));
        }
        let s = c.shape;
        let n = packed_row_bytes(s.cols, c.bits);
        let mut bytes = vec![0; s.rows * n];
        let mut row = vec![0; s.cols];
        for r in 0..s.rows {
            c.row_codes(r, &mut row);
            pack_row(&row, c.bits, &mut bytes[r * n..(r + 1) * n]);
        }
        let each = || (0..s.rows).flat_map(|r| (0..s.groups).map(move |g| (r, g)));
        let scales = match c.scales {
            ScaleValues::F32(_) => ScalesBuf::F32(each().map(|(r, g)| c.scale(r, g)).collect()),
            ScaleValues::F16(_) => {
                ScalesBuf::F16(each().map(|(r, g)| f16::from_f32(c.scale(r, g))).collect())
            }
        };
        let zero_points = c
            .zero_points
            .map(|_| each().map(|(r, g)| c.zero_point(r, g)).collect());
        let tiles = match Layout::new(c) {
            Some(l) => Some(Tiles::pack(rt.pool(), l, c)?),
            None => None,
        };
        Ok(Weights {
            tiles,
            codes: CodesBuf {
                shape: s,
                bits: c.bits,
                bytes,
                scales,
                zero_points,
            },
            activations,
        })
    }

    /// Keeps float weights: `w` is `(rows, cols)`; `half` rounds them to float16.
    ///
    /// # Errors
    /// `ERR_RANGE` where a weight does not fit float16; `ERR_MEMORY`.
    pub fn from_f32(
        _rt: &Runtime,
        _w: &[f32],
        _rows: usize,
        _cols: usize,
        _half: bool,
    ) -> Result<Weights> {
        Err(Error::unsupported("float weights"))
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.codes.shape.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.codes.shape.cols
    }

    /// Bits a weight: 1, 2, 4, 8; 16 and 32 for floats.
    pub fn bits(&self) -> usize {
        self.codes.bits.get()
    }

    /// Columns a scale; `None` for float weights.
    pub fn group(&self) -> Option<usize> {
        Some(self.codes.shape.group)
    }

    /// Whether every zero point is the constant one; `None` for float weights.
    pub fn symmetric(&self) -> Option<bool> {
        Some(self.codes.zero_points.is_none())
    }

    /// The type of the scales: `"float16"` or `"float32"`; `None` for float weights.
    pub fn scale_type(&self) -> Option<&'static str> {
        Some(match self.codes.scales {
            ScalesBuf::F16(_) => "float16",
            ScalesBuf::F32(_) => "float32",
        })
    }

    /// How it takes activations.
    pub fn activations(&self) -> Activations {
        self.activations
    }

    /// Bytes it occupies: codes, scales, zero points and padding.
    pub fn bytes(&self) -> usize {
        self.tiles
            .as_ref()
            .map_or(self.codes.bytes.len(), |t| t.bytes())
    }

    /// The path that products take, for people: `"tiles"` or `"rows"`.
    pub fn path(&self) -> &'static str {
        "rows"
    }

    /// The matrix in the form of the ABI, exactly as it went in; `None` for float weights.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub fn to_codes(&self) -> Result<Option<CodesBuf>> {
        Ok(Some(self.codes.clone()))
    }

    /// The weights as floats, row-major; `out` is `(rows, cols)`.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub fn dequantize(&self, out: &mut [f32]) -> Result<()> {
        let c = self.codes.as_codes();
        for (r, row) in out.chunks_mut(self.cols().max(1)).enumerate() {
            c.dequantize_row(r, row);
        }
        Ok(())
    }

    /// `y[v] = W x[v]` for each of `n` vectors: `x` is `(n, cols)`, `y` is `(n, rows)`.
    ///
    /// # Errors
    /// `ERR_RANGE` if activations are int8 and a vector is not finite; `ERR_MEMORY`. `y` then holds what it held.
    pub fn multiply(&self, rt: &Runtime, x: &[f32], y: &mut [f32], n: usize) -> Result<()> {
        let (rows, cols) = (self.rows(), self.cols());
        if n == 0 {
            return Ok(());
        }
        if let Some(t) = &self.tiles {
            return t.multiply(rt.tile_kernels(), rt.pool(), self.activations, x, y, n);
        }
        let mut row = vec![0.0f32; cols];
        for r in 0..rows {
            self.codes.as_codes().dequantize_row(r, &mut row);
            for v in 0..n {
                let xs = &x[v * cols..(v + 1) * cols];
                let sum: f64 = row
                    .iter()
                    .zip(xs)
                    .map(|(&w, &x)| {
                        let x = if self.activations == Activations::Sign {
                            if x >= 0.0 { 1.0 } else { -1.0 }
                        } else {
                            x as f64
                        };
                        w as f64 * x
                    })
                    .sum();
                y[v * rows + r] = sum as f32;
            }
        }
        Ok(())
    }
}
