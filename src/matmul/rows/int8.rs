//! int8 activations: a vector is replaced by what is left of it in 8 bits, then multiplied as floats.

use std::ops::Range;

use super::Driver;
use crate::cpu::rows::RowSource;
use crate::error::{Error, Result};
use crate::memory;
use crate::quant::{Codes, Shape, quantize_block};

/// The longest run of columns that shares a scale where the weight group has not 32, 64 or 128.
const RUN: usize = 32;

impl Driver<'_> {
    /// As [`Driver::multiply`], each vector replaced by what is left of it in 8 bits: `scale * round(x / scale)`
    /// over the blocks of [`activation_blocks`].
    ///
    /// # Errors
    /// `ERR_RANGE` for a vector that is not finite; `ERR_MEMORY`. `y` then holds what it held.
    pub fn multiply_int8(
        &self,
        codes: &Codes<'_>,
        x: &[f32],
        y: &mut [f32],
        n: usize,
    ) -> Result<()> {
        let cols = codes.shape.cols;
        if let Some(i) = x[..n * cols].iter().position(|x| !x.is_finite()) {
            return Err(Error::range(format!(
                "x is {} in vector {}, column {}, expected finite numbers: activations are \"int8\"",
                x[i],
                i / cols,
                i % cols
            )));
        }
        let mut rounded = memory::with_capacity(n * cols, "the quantised activations")?;
        for x in x[..n * cols].chunks_exact(cols.max(1)) {
            for block in activation_blocks(&codes.shape) {
                let mut q = [0; 128];
                let q = &mut q[..block.len()];
                let scale = quantize_block(&x[block], q);
                rounded.extend(q.iter().map(|&q| q as f32 * scale));
            }
        }
        self.multiply(&RowSource::Codes(*codes), &rounded, y, n)
    }
}

/// The blocks of a vector that multiplies weights of this shape, in column order.
///
/// They are the weight groups where these have 32, 64 or 128 columns, else runs of at most 32 columns
/// inside a group.
pub(super) fn activation_blocks(shape: &Shape) -> impl Iterator<Item = Range<usize>> {
    let (cols, group) = (shape.cols, shape.group);
    let run = match group {
        32 | 64 | 128 => group,
        _ => RUN,
    };
    let mut start = 0;
    std::iter::from_fn(move || {
        if start >= cols {
            return None;
        }
        let end_of_group = (start / group + 1).saturating_mul(group);
        let block = start..(start + run).min(end_of_group).min(cols);
        start = block.end;
        Some(block)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(cols: usize, group: usize) -> Vec<(usize, usize)> {
        activation_blocks(&Shape::new(1, cols, group))
            .map(|b| (b.start, b.end))
            .collect()
    }

    #[test]
    fn blocks_are_groups_or_runs_inside_groups() {
        assert_eq!(blocks(300, 128), [(0, 128), (128, 256), (256, 300)]);
        assert_eq!(blocks(40, 32), [(0, 32), (32, 40)]);
        assert_eq!(
            blocks(70, 33),
            [(0, 32), (32, 33), (33, 65), (65, 66), (66, 70)]
        );
        assert_eq!(blocks(9, 7), [(0, 7), (7, 9)]);
        assert_eq!(blocks(70, 0), [(0, 32), (32, 64), (64, 70)]);
        assert_eq!(blocks(33, usize::MAX), [(0, 32), (32, 33)]);
        assert_eq!(blocks(0, 0), []);
        // 96 is a multiple of 32 but no block size of its own.
        assert_eq!(blocks(100, 96), [(0, 32), (32, 64), (64, 96), (96, 100)]);
    }
}
