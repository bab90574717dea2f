//! Dequantising row-major weights.

use super::Driver;
use crate::cpu::rows::{RowSource, UnpackScratch};
use crate::error::Result;
use crate::matmul::aligned::Aligned;
use crate::matmul::tasks::{run_chunks, threads_for};

/// Spans unpacked at a time.
const PIECE: usize = 4;

/// Weights per task, approximately.
const WEIGHTS_PER_TASK: usize = 1 << 16;

/// Weights that one thread writes per nanosecond, approximately: the destination memory is the
/// limit.
const WEIGHTS_PER_NS: usize = 2;

impl Driver<'_> {
    /// The weights as floats, each rounded once to float32; `out` is `(rows, cols)`.
    ///
    /// # Errors
    /// `ERR_MEMORY`; `out` is then unchanged.
    pub fn dequantize(&self, source: &RowSource<'_>, out: &mut [f32]) -> Result<()> {
        let (rows, cols) = (source.rows(), source.cols());
        if rows == 0 || cols == 0 {
            return Ok(());
        }
        let kernels = &self.kernels;
        let piece = PIECE * kernels.span();
        let rows_per_task = (WEIGHTS_PER_TASK / cols).clamp(1, rows);
        let threads = threads_for(self.executor, out.len() / WEIGHTS_PER_NS);
        let new_scratch = || {
            let weights = Aligned::zeros(piece, "a piece of a row of weights")?;
            Ok((UnpackScratch::default(), weights))
        };
        let chunks = (out, rows_per_task * cols);
        run_chunks(
            self.executor,
            threads,
            chunks,
            new_scratch,
            |(scratch, weights), task, out| {
                for (r, out) in out.chunks_exact_mut(cols).enumerate() {
                    for (p, out) in out.chunks_mut(piece).enumerate() {
                        let padded = out.len().next_multiple_of(kernels.lanes());
                        let weights = &mut weights.floats_mut()[..padded];
                        let row = task * rows_per_task + r;
                        kernels.unpack(source, row, p * piece, scratch, weights);
                        out.copy_from_slice(&weights[..out.len()]);
                    }
                }
            },
        )
    }
}
