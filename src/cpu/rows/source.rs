//! Row-major weights in place.

use crate::quant::{Codes, Packing, Per, ScaleValues};
use half::f16;

/// A borrowed row-major matrix, in any of the forms that the row kernels multiply.
///
/// Whoever creates one has checked the lengths: the kernels index the slices and would panic.
#[derive(Clone, Copy, Debug)]
pub enum RowSource<'a> {
    /// Codes with scales.
    Codes(Codes<'a>),
    /// Float32 weights.
    F32 {
        /// The weights: `(rows, cols)`.
        values: &'a [f32],
        /// Outputs.
        rows: usize,
        /// Inputs.
        cols: usize,
    },
    /// Float16 weights.
    F16 {
        /// The weights: `(rows, cols)`.
        values: &'a [f16],
        /// Outputs.
        rows: usize,
        /// Inputs.
        cols: usize,
    },
}

impl RowSource<'_> {
    /// Outputs.
    pub fn rows(&self) -> usize {
        match self {
            RowSource::Codes(c) => c.shape.rows,
            RowSource::F32 { rows, .. } | RowSource::F16 { rows, .. } => *rows,
        }
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        match self {
            RowSource::Codes(c) => c.shape.cols,
            RowSource::F32 { cols, .. } | RowSource::F16 { cols, .. } => *cols,
        }
    }

    /// Prefetches the columns `start..start + len` of a row; no effect beyond the matrix.
    pub fn prefetch(&self, row: usize, start: usize, len: usize) {
        let end = (start + len).min(self.cols());
        if row < self.rows() && start < end {
            match self {
                RowSource::Codes(c) => {
                    let per_byte = match c.packing {
                        Packing::Bytes => 1,
                        Packing::Msb => 8 / c.bits.get(),
                    };
                    prefetch(&c.row_bytes(row)[start / per_byte..end.div_ceil(per_byte)]);
                    let (group, first) = (c.shape.group, row * c.shape.groups);
                    let groups = first + start / group..first + (end - 1) / group + 1;
                    if c.scale_per == Per::Group {
                        match c.scales {
                            ScaleValues::F32(values) => prefetch(&values[groups.clone()]),
                            ScaleValues::F16(values) => prefetch(&values[groups.clone()]),
                        }
                    }
                    if let Some((values, Per::Group)) = c.zero_points {
                        prefetch(&values[groups]);
                    }
                }
                RowSource::F32 { values, cols, .. } => prefetch(&values[row * cols..][start..end]),
                RowSource::F16 { values, cols, .. } => prefetch(&values[row * cols..][start..end]),
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn prefetch<T>(values: &[T]) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    for line in values.chunks(64 / size_of::<T>()) {
        // SAFETY: SSE is part of x86-64, and a prefetch has no visible effect.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn prefetch<T>(_: &[T]) {}
