//! 1-bit weights with the signs of the activations.

use super::Driver;
use crate::cpu::rows::{row_words, sign_words};
use crate::error::Result;
use crate::matmul::tasks::{Output, run, threads_for};
use crate::memory;
use crate::quant::{Codes, Per, ScaleValues};
use half::slice::HalfFloatSliceExt;

/// Words of 64 weights per task, approximately.
const WORDS_PER_TASK: usize = 1 << 13;

/// Products of words that one thread computes per nanosecond, approximately.
const PRODUCTS_PER_NS: usize = 2;

impl Driver<'_> {
    /// `y[v] = W sign(x[v])` for each of `n` vectors, the sign of a number being +1 if it is
    /// `>= 0`, else -1: `codes.bits` is 1, `x` is `(n, cols)`, `y` is `(n, rows)`.
    ///
    /// # Errors
    /// `ERR_MEMORY`; `y` is then unchanged.
    pub fn multiply_sign(
        &self,
        codes: &Codes<'_>,
        x: &[f32],
        y: &mut [f32],
        n: usize,
    ) -> Result<()> {
        let (rows, cols) = (codes.shape.rows, codes.shape.cols);
        if cols == 0 {
            y.fill(0.0);
        }
        if rows == 0 || cols == 0 || n == 0 {
            return Ok(());
        }
        let kernels = &self.kernels;
        let words = cols.div_ceil(64);
        let mut signs = memory::filled(n * words, 0u64, "the signs of the activations")?;
        for (x, signs) in x.chunks_exact(cols).zip(signs.chunks_exact_mut(words)) {
            sign_words(x, signs);
        }
        let y = Output::new(y);
        // With one scale per row, all its groups are one.
        let (group, groups) = match codes.scale_per {
            Per::Group => (codes.shape.group, codes.shape.groups),
            _ => (cols, 1),
        };
        let rows_per_task = (WORDS_PER_TASK / words.saturating_mul(n)).clamp(1, rows);
        let new_scratch = || {
            Ok((
                memory::filled(words, 0u64, "the bits of a row")?,
                memory::filled(groups, 0.0f32, "the scales of a row")?,
            ))
        };
        let products = (rows * words).saturating_mul(n);
        run(
            self.executor,
            threads_for(self.executor, products / PRODUCTS_PER_NS),
            rows.div_ceil(rows_per_task),
            new_scratch,
            |(bits, scales), task| {
                let first = task * rows_per_task;
                for row in first..(first + rows_per_task).min(rows) {
                    row_words(codes, row, bits);
                    row_scales(codes, row, scales);
                    for (v, signs) in signs.chunks_exact(words).enumerate() {
                        y.set(
                            v * rows + row,
                            kernels.sign(cols, group, scales, bits, signs),
                        );
                    }
                }
            },
        )
    }
}

/// The scales of one row, widened; `out` has one element, or one per group.
fn row_scales(codes: &Codes<'_>, row: usize, out: &mut [f32]) {
    let from = codes.scale_per.index(row, 0, codes.shape.groups);
    match codes.scales {
        ScaleValues::F32(values) => out.copy_from_slice(&values[from..][..out.len()]),
        ScaleValues::F16(values) => values[from..][..out.len()].convert_to_f32_slice(out),
    }
}
