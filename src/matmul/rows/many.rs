//! Many vectors: blocks of rows × vectors, one span of columns at a time.

use super::Driver;
use crate::cpu::rows::{RowSource, SPANS, UnpackScratch};
use crate::error::Result;
use crate::matmul::aligned::Aligned;
use crate::matmul::tasks::{Output, run, threads_for};
use crate::memory;

/// Rows and vectors of a block: each weight is unpacked once for so many vectors, each activation
/// copied once for so many rows. With spans of 512 columns the weights of a block are 192 KB, its
/// vectors 120 KB and its lane sums 360 KB: together two thirds of an L2 cache of 1 MB. With 60
/// vectors and not 64 the sums of consecutive rows are not 4 KB apart, where they would map to the
/// same lines of L1.
const BLOCK_ROWS: usize = 96;
const BLOCK_VECTORS: usize = 60;

/// Prefetch distance in rows: a block reads a few hundred bytes of each row, far apart, which the
/// hardware prefetchers do not predict. Without it 512 vectors take 17% longer; prefetching the
/// activations likewise gained nothing.
const PREFETCH_ROWS: usize = 4;

/// Products that one thread computes per nanosecond, approximately.
const PRODUCTS_PER_NS: usize = 32;

struct Scratch {
    unpack: UnpackScratch,
    /// One span of the block's weights: `(rows, len)`.
    weights: Aligned,
    /// One span of the block's vectors: `(vectors, len)`.
    vectors: Aligned,
    /// Lane sums: `(rows, vectors, lanes)`.
    sums: Aligned,
    /// `(rows, vectors)`.
    totals: Vec<f64>,
}

impl Driver<'_> {
    /// `y[v] = W x[v]` for any number of vectors; rows, columns and vectors are not 0.
    pub(super) fn many(
        &self,
        source: &RowSource<'_>,
        x: &[f32],
        y: &Output<'_>,
        n: usize,
    ) -> Result<()> {
        let kernels = &self.kernels;
        let (rows, cols) = (source.rows(), source.cols());
        let (lanes, span) = (kernels.lanes(), kernels.span());
        let (block_rows, block_vectors) = (BLOCK_ROWS.min(rows), BLOCK_VECTORS.min(n));
        let longest = cols.next_multiple_of(lanes).min(span);
        let new_scratch = || {
            let outputs = block_rows * block_vectors;
            Ok(Scratch {
                unpack: UnpackScratch::default(),
                weights: Aligned::zeros(block_rows * longest, "a block of weights")?,
                vectors: Aligned::zeros(block_vectors * longest, "a block of activations")?,
                sums: Aligned::zeros(outputs * lanes, "the sums of a block")?,
                totals: memory::filled(outputs, 0.0, "the totals of a block")?,
            })
        };
        let row_blocks = rows.div_ceil(block_rows);
        let products = rows.saturating_mul(cols).saturating_mul(n);
        run(
            self.executor,
            threads_for(self.executor, products / PRODUCTS_PER_NS),
            row_blocks * n.div_ceil(block_vectors),
            new_scratch,
            |scratch, task| {
                let (first_row, first_vector) = (
                    task % row_blocks * block_rows,
                    task / row_blocks * block_vectors,
                );
                let rows_here = (rows - first_row).min(block_rows);
                let vectors_here = (n - first_vector).min(block_vectors);
                let sums = &mut scratch.sums.floats_mut()[..rows_here * vectors_here * lanes];
                let totals = &mut scratch.totals[..rows_here * vectors_here];
                totals.fill(0.0);
                for (s, start) in (0..cols).step_by(span).enumerate() {
                    let count = (cols - start).min(span);
                    let len = count.next_multiple_of(lanes);
                    let weights = &mut scratch.weights.floats_mut()[..rows_here * len];
                    for (r, w) in weights.chunks_exact_mut(len).enumerate() {
                        source.prefetch(first_row + r + PREFETCH_ROWS, start, span);
                        kernels.unpack(source, first_row + r, start, &mut scratch.unpack, w);
                    }
                    let vectors = &mut scratch.vectors.floats_mut()[..vectors_here * len];
                    for (v, to) in vectors.chunks_exact_mut(len).enumerate() {
                        let from = &x[(first_vector + v) * cols + start..][..count];
                        to[..count].copy_from_slice(from);
                        to[count..].fill(0.0);
                    }
                    kernels.dot_block(weights, vectors, len, sums);
                    if start + count == cols || s % SPANS == SPANS - 1 {
                        kernels.flush(sums, totals);
                    }
                }
                for v in 0..vectors_here {
                    let y_at = (first_vector + v) * rows + first_row;
                    for r in 0..rows_here {
                        y.set(y_at + r, totals[r * vectors_here + v] as f32);
                    }
                }
            },
        )
    }
}
