//! The driver of the row-major path: products with weights in place, without conversion.
//!
//! [`Driver::multiply`] takes one of two paths by the number of vectors. *Few* (`few.rs`) reads the
//! weights as one linear stream, row by row, and multiplies each piece by every vector while it is
//! in L1. *Many* (`many.rs`) works in blocks of rows × vectors × one span of columns. Both sum in
//! the order of `cpu::rows`, so that an output has the same bits either way.

mod dequantize;
mod few;
mod many;
mod sign;
#[cfg(test)]
mod tests;

use super::tasks::Output;
use crate::cpu::rows::{RowKernels, RowSource};
use crate::error::Result;
use crate::runtime::{Executor, Runtime};

/// From this number of vectors on, blocks are faster. At 4096 × 4096, 4 bits, one thread, the
/// linear stream takes 1.8 ms plus 0.6 ms for each further vector, blocks take 3.4 ms for four
/// vectors plus 0.3 ms for each further one.
const MANY: usize = 4;

/// What executes products: the kernels of one level, and threads.
pub struct Driver<'a> {
    kernels: RowKernels,
    executor: Executor<'a>,
}

impl<'a> Driver<'a> {
    /// The kernels of a runtime, and those of its threads that are free.
    pub fn new(rt: &'a Runtime) -> Driver<'a> {
        Driver::with(rt, Executor::Pool(rt.pool()))
    }

    /// The kernels of a runtime, and these threads.
    pub fn with(rt: &'a Runtime, executor: Executor<'a>) -> Driver<'a> {
        Driver {
            kernels: rt.kernels().rows,
            executor,
        }
    }

    /// `y[v] = W x[v]` for each of `n` vectors, with float activations: `x` is `(n, cols)`, `y` is
    /// `(n, rows)`.
    ///
    /// # Errors
    /// `ERR_MEMORY`; `y` is then unchanged.
    pub fn multiply(
        &self,
        source: &RowSource<'_>,
        x: &[f32],
        y: &mut [f32],
        n: usize,
    ) -> Result<()> {
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
