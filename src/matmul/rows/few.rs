//! One or a few vectors: a single pass over the weights, as one linear stream.

use super::Driver;
use crate::cpu::rows::{MAX_LANES, RowSource, SPANS, UnpackScratch};
use crate::error::Result;
use crate::matmul::aligned::Aligned;
use crate::matmul::tasks::{Output, run, threads_for};

/// Spans unpacked at a time: as many as `RowKernels::dot` interleaves.
const PIECE: usize = 4;
// Lane sums are flushed between pieces.
const _: () = assert!(SPANS.is_multiple_of(PIECE));

/// Weights per task, approximately: enough that claiming a task costs nothing, few enough for load
/// balance.
const WEIGHTS_PER_TASK: usize = 1 << 16;

/// Products that one thread computes per nanosecond, approximately.
const PRODUCTS_PER_NS: usize = 8;

struct Scratch {
    unpack: UnpackScratch,
    /// A piece of a row.
    weights: Aligned,
    /// Lane sums: `(n, lanes)`.
    sums: [f32; super::MANY * MAX_LANES],
    /// `(n)`.
    totals: [f64; super::MANY],
}

impl Driver<'_> {
    /// `y[v] = W x[v]` for fewer than [`super::MANY`] vectors; rows, columns and vectors are not 0.
    pub(super) fn few(
        &self,
        source: &RowSource<'_>,
        x: &[f32],
        y: &Output<'_>,
        n: usize,
    ) -> Result<()> {
        let kernels = &self.kernels;
        let (rows, cols) = (source.rows(), source.cols());
        let (lanes, span) = (kernels.lanes(), kernels.span());
        let padded = cols.next_multiple_of(lanes);
        let mut activations = Aligned::zeros(n * padded, "the padded activations")?;
        for (to, from) in activations
            .floats_mut()
            .chunks_exact_mut(padded)
            .zip(x.chunks_exact(cols))
        {
            to[..cols].copy_from_slice(from);
        }
        let x = activations.floats();

        let rows_per_task = (WEIGHTS_PER_TASK / cols).clamp(1, rows);
        let new_scratch = || {
            Ok(Scratch {
                unpack: UnpackScratch::default(),
                weights: Aligned::zeros(PIECE * span, "a piece of a row of weights")?,
                sums: [0.0; super::MANY * MAX_LANES],
                totals: [0.0; super::MANY],
            })
        };
        let products = rows.saturating_mul(cols).saturating_mul(n);
        run(
            self.executor,
            threads_for(self.executor, products / PRODUCTS_PER_NS),
            rows.div_ceil(rows_per_task),
            new_scratch,
            |scratch, task| {
                let first = task * rows_per_task;
                for row in first..(first + rows_per_task).min(rows) {
                    let sums = &mut scratch.sums[..n * lanes];
                    let totals = &mut scratch.totals[..n];
                    totals.fill(0.0);
                    let mut start = 0;
                    while start < padded {
                        let len = (padded - start).min(PIECE * span);
                        let w = match source {
                            // Whole pieces of float32 weights are multiplied in place.
                            RowSource::F32 { values, .. } if start + len <= cols => {
                                &values[row * cols + start..][..len]
                            }
                            _ => {
                                let w = &mut scratch.weights.floats_mut()[..len];
                                source.prefetch(row + 1, start, len);
                                kernels.unpack(source, row, start, &mut scratch.unpack, w);
                                &*w
                            }
                        };
                        for v in 0..n {
                            let sums = &mut sums[v * lanes..][..lanes];
                            kernels.dot(w, &x[v * padded + start..][..len], sums);
                        }
                        start += len;
                        if start == padded || start / span % SPANS == 0 {
                            kernels.flush(sums, totals);
                        }
                    }
                    for (v, total) in totals.iter().enumerate() {
                        y.set(v * rows + row, *total as f32);
                    }
                }
            },
        )
    }
}
