//! Activations in the forms that the tile kernels read (see [`crate::cpu::tile`]), for any number
//! of vectors; those as int8 are in [`super::int8`].
//!
//! The vectors are split into blocks of the widths of the kernels. In every buffer here, a block
//! that begins at vector `v` begins at `v` times the size of one vector, whatever the widths before
//! it.

use super::tasks::{run_chunks, threads_for};
use crate::cpu::layout::{Layout, SUB_COLS, interleave};
use crate::cpu::tile::{TileKernels, WIDTHS};
use crate::error::{Error, Result};
use crate::memory;
use crate::runtime::Executor;
use std::borrow::Cow;
use std::ops::Range;

/// How a product represents its activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// Unchanged.
    F32,
    /// Quantised to 8 bits, one scale per block.
    Int8,
    /// Their signs (1-bit weights only).
    Sign,
}

impl Activations {
    /// The spelling in options.
    pub fn name(self) -> &'static str {
        match self {
            Activations::F32 => "f32",
            Activations::Int8 => "int8",
            Activations::Sign => "sign",
        }
    }
}

/// The blocks of `vectors`: first vector and width of each. `widths` are in descending order. Six
/// vectors are a block only if no others are left: seven are faster as four and three.
pub fn blocks(widths: &[usize], vectors: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
    let mut at = vectors.start;
    std::iter::from_fn(move || {
        let left = vectors.end - at;
        let fits = |&w: &usize| w <= left && (w != 6 || left == 6);
        let width = widths.iter().copied().find(fits)?;
        at += width;
        Some((at - width, width))
    })
}

/// Activations that a thread interleaves per nanosecond, approximately.
const INTERLEAVED_PER_NS: usize = 1;

/// # Errors
/// `ERR_RANGE`, naming the vector and the column, if a value is not finite.
pub fn all_finite(x: &[f32], cols: usize) -> Result<()> {
    // Without an early exit, so that the loop is vectorised.
    if x.iter().fold(true, |all, x| all & x.is_finite()) {
        return Ok(());
    }
    match x.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(i) => Err(Error::range(format!(
            "x is {} at vector {}, column {}: int8 activations must be finite",
            x[i],
            i / cols,
            i % cols
        ))),
    }
}

/// Float32 activations scaled so that chains stay in range. A kernel sums `level * x` over up to
/// [`SUB_COLS`] columns before it applies the scale. That can overflow float32 although the
/// products with the scaled weights do not.
///
/// With short groups the weights are scaled first, so that chains stay in range if the weights and
/// the results do, cancellation aside. Their activations are prescaled nevertheless.
///
/// A vector that comes near the limit is scaled down by 2^32, and its results are scaled back up.
/// Both are powers of two, so that nothing is rounded except elements 2^200 times smaller than the
/// largest. Each vector is judged by itself, so that results do not depend on the batch.
pub struct Prescaled<'a> {
    /// `(n, cols)`.
    pub x: Cow<'a, [f32]>,
    /// The vectors that were scaled down.
    scaled: Vec<usize>,
}

impl<'a> Prescaled<'a> {
    const FACTOR: f32 = (1u64 << 32) as f32;

    /// The largest magnitude that cannot overflow: 255 levels times 32 columns are less than 2^13.
    const LARGEST: f32 = f32::MAX / (1 << 13) as f32;

    /// `x` is `(n, cols)`, `cols` at least 1.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub fn new(x: &'a [f32], cols: usize) -> Result<Prescaled<'a>> {
        let mut prescaled = Prescaled {
            x: Cow::Borrowed(x),
            scaled: Vec::new(),
        };
        for (v, vector) in x.chunks_exact(cols).enumerate() {
            // Without an early exit, so that the loop is vectorised.
            if !vector
                .iter()
                .fold(false, |any, x| any | (x.abs() > Self::LARGEST))
            {
                continue;
            }
            if prescaled.scaled.is_empty() {
                let mut copy = memory::with_capacity(x.len(), "activations taken smaller")?;
                copy.extend_from_slice(x);
                prescaled.x = Cow::Owned(copy);
                prescaled.scaled = memory::with_capacity(x.len() / cols - v, "their numbers")?;
            }
            prescaled.scaled.push(v);
            for x in &mut prescaled.x.to_mut()[v * cols..(v + 1) * cols] {
                *x /= Self::FACTOR;
            }
        }
        Ok(prescaled)
    }

    /// Scales the results back; `y` is `(n, rows)`.
    pub fn restore(&self, y: &mut [f32], rows: usize) {
        for &v in &self.scaled {
            for y in &mut y[v * rows..(v + 1) * rows] {
                *y *= Self::FACTOR;
            }
        }
    }
}

/// `n` vectors as float32 in blocks of `(columns, width)`, the columns padded to whole sub-blocks.
/// With short groups they are rounded as int8 quantisation rounds them, or are 1 and -1 for their
/// signs (NaN counts as negative), as `activations` says. `x` is `(n, cols)`, and finite for int8.
/// `to` receives the result unless `x` already has this form.
///
/// # Errors
/// `ERR_MEMORY`.
pub fn interleaved<'a>(
    k: &TileKernels,
    executor: Executor<'_>,
    l: &Layout,
    activations: Activations,
    x: &'a [f32],
    n: usize,
    to: &'a mut Vec<f32>,
) -> Result<&'a [f32]> {
    let (cols, padded) = (l.shape.cols, l.padded_cols());
    if n == 1 && cols == padded && activations == Activations::F32 {
        return Ok(x);
    }
    memory::resize(to, n * padded, "interleaved activations")?;
    let value = |x: f32| match activations {
        Activations::Sign => [-1.0, 1.0][(x >= 0.0) as usize],
        _ => x,
    };
    let some = |first: usize, to: &mut [f32]| {
        if cols != padded {
            to.fill(0.0);
        }
        for (v, width) in blocks(&WIDTHS, 0..to.len() / padded) {
            let x = &x[(first + v) * cols..][..width * cols];
            let block = &mut to[v * padded..][..width * padded];
            for (columns, at) in l.runs() {
                for (c, to) in columns.zip(block[at * width..].chunks_exact_mut(width)) {
                    for (to, x) in to.iter_mut().zip(x[c..].iter().step_by(cols)) {
                        *to = value(*x);
                    }
                }
            }
            if activations == Activations::Int8 {
                // SAFETY: `k` exists, so the processor has its features.
                unsafe { k.short_round(width)(&mut block[..cols * width], l.shape.group) };
            }
        }
    };
    if n == 1 {
        some(0, to);
    } else {
        let threads = threads_for(executor, x.len() / INTERLEAVED_PER_NS);
        let chunks = (&mut to[..], WIDTHS[0] * padded);
        let none = || Ok(());
        run_chunks(executor, threads, chunks, none, |(), i, to| {
            some(i * WIDTHS[0], to)
        })?;
    }
    Ok(to)
}

/// The signs of `n` vectors in blocks of `(subs, width)` dwords; `x` is `(n, cols)`. NaN counts as
/// negative.
///
/// # Errors
/// `ERR_MEMORY`.
pub fn signs(l: &Layout, x: &[f32], n: usize) -> Result<Vec<u32>> {
    let (cols, subs) = (l.shape.cols, l.total_subs());
    let mut out = memory::filled(n * subs, 0, "activation signs")?;
    for (first, width) in blocks(&WIDTHS, 0..n) {
        for v in 0..width {
            let x = &x[(first + v) * cols..][..cols];
            let sub_columns = l.runs().flat_map(|(columns, at)| {
                (x[columns].chunks(SUB_COLS).enumerate()).map(move |(s, x)| (at / SUB_COLS + s, x))
            });
            for (s, x) in sub_columns {
                let bits = x
                    .iter()
                    .enumerate()
                    .fold(0u32, |d, (c, &x)| d | ((x >= 0.0) as u32) << (31 - c));
                out[first * subs + s * width + v] = interleave::<1>(&bits.to_be_bytes())[0];
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::tile::{INT8_WIDTHS, SHORT_WIDTHS};

    #[test]
    fn blocks_cover_every_number() {
        for n in 0..60 {
            for widths in [&WIDTHS[..], &SHORT_WIDTHS, &INT8_WIDTHS, &[12, 6, 3, 2, 1]] {
                let mut at = 3;
                for (first, width) in blocks(widths, 3..3 + n) {
                    assert!(first == at && widths.contains(&width));
                    at += width;
                }
                assert_eq!(at, 3 + n);
            }
        }
    }
}
