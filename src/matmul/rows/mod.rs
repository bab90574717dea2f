//! The driver of the row-major path: products with weights where they lie, nothing converted.
//!
//! [`multiply`] takes one of two ways by the number of vectors. *Few* (`few.rs`) reads the weights as
//! one linear stream, row by row, and multiplies each piece with every vector while it is in the
//! level-1 cache. *Many* (`many.rs`) works in blocks of rows × vectors × one span of columns. Both
//! sum in the order of `cpu::rows`, so that an output has the same bits either way.

mod few;
mod int8;
mod many;
mod sign;
mod tasks;
#[cfg(test)]
mod tests;

pub use int8::multiply_int8;
pub use sign::multiply_sign;

use crate::cpu::rows::RowSource;
use crate::error::Result;
use crate::memory;
use crate::runtime::Runtime;
use tasks::{Driver, Output};

/// From this number of vectors on, blocks win. At 4096 × 4096, 4 bits, one thread, the linear stream takes
/// 1.8 ms and 0.6 ms for each further vector, blocks take 3.4 ms for four and 0.3 ms for each further one.
const MANY: usize = 4;

/// `y[v] = W x[v]` for each of `n` vectors, float activations: `x` is `(n, cols)`, `y` is `(n, rows)`.
///
/// # Errors
/// `ERR_MEMORY`; `y` then holds what it held.
pub fn multiply(
    rt: &Runtime,
    source: &RowSource<'_>,
    x: &[f32],
    y: &mut [f32],
    n: usize,
) -> Result<()> {
    Driver::new(rt)?.multiply(source, x, y, n)
}

impl Driver<'_> {
    /// See [`multiply`].
    fn multiply(&self, source: &RowSource<'_>, x: &[f32], y: &mut [f32], n: usize) -> Result<()> {
        let (rows, cols) = (source.rows(), source.cols());
        if cols == 0 {
            y.fill(0.0);
        }
        if rows == 0 || cols == 0 || n == 0 {
            return Ok(());
        }
        let y = Output::new(y);
        if n < MANY {
            self.few(source, x, &y, n)
        } else {
            self.many(source, x, &y, n)
        }
    }
}

/// One cache line of floats: what buffers are made of, so that vectors do not straddle lines.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A buffer of floats that starts at a cache line.
struct Aligned {
    lines: Vec<Line>,
}

impl Aligned {
    /// At least `len` zeros.
    fn zeros(len: usize, what: &str) -> Result<Aligned> {
        Ok(Aligned {
            lines: memory::filled(len.div_ceil(16), Line([0.0; 16]), what)?,
        })
    }

    fn floats(&self) -> &[f32] {
        // SAFETY: `Line` is `repr(C)` around 16 floats and 64 bytes large: `lines` is an array of floats
        // without gaps, borrowed as long as `self` is.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * 16) }
    }

    fn floats_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `floats`; `self` is borrowed mutably.
        unsafe {
            std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * 16)
        }
    }
}
