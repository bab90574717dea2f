//! Kernels for row-major weights, with lanes along the columns.
//!
//! # Contract
//!
//! A *span* is [`CHAIN`] products per lane: `CHAIN * lanes` columns of a row. An output is summed
//! as follows:
//!
//! 1. in a span, lane `l` adds the products of columns `l, l + lanes, l + 2 lanes, …` to a float32
//!    chain that starts at 0 ([`RowKernels::dot`], [`RowKernels::dot_block`]);
//! 2. the chains of at most [`SPANS`] spans are added, in order, to one float32 accumulator per
//!    lane, the *lane sums* (`sums` below);
//! 3. the lane sums are added in float64, in one fixed order, to the *total*
//!    ([`RowKernels::flush`]).
//!
//! No float32 value is then the result of more than `CHAIN + SPANS` rounded additions, whatever the
//! length: the error is below `64 * 2^-24 * sum |w x|` = 3.8e-6 of the product of the norms, plus
//! two roundings, of the weight itself and of the product.
//!
//! Buffers that a kernel multiplies hold whole vectors: their length is a multiple of the lanes,
//! and the padding after the last column is 0 **in both operands**, so that an infinity among the
//! activations never meets a padding column.
//!
//! Kernels do not allocate, and read nothing beyond the slices they are given.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod dot;
mod level;
mod registry;
mod scalar;
mod sign;
mod source;
#[cfg(test)]
mod tests;
mod unpack;

use std::fmt;

pub use sign::{row_words, sign_words};
pub use source::RowSource;
pub use unpack::UnpackScratch;

use super::Isa;

/// Products in a lane's float32 chain.
pub const CHAIN: usize = 32;
/// Spans that are added to a float32 lane sum before it is flushed to float64.
pub const SPANS: usize = 32;
/// The most lanes that a level has.
pub const MAX_LANES: usize = 16;

type Sign = unsafe fn(usize, usize, &[f32], &[u64], &[u64]) -> f32;
type Unpack = unsafe fn(&RowSource<'_>, usize, usize, &mut UnpackScratch, &mut [f32]);

/// One level's functions. They are `unsafe` to call because the processor must have the level.
struct Table {
    isa: Isa,
    lanes: usize,
    unpack: Unpack,
    dot: unsafe fn(&[f32], &[f32], &mut [f32]),
    dot_block: unsafe fn(&[f32], &[f32], usize, &mut [f32]),
    flush: unsafe fn(&mut [f32], &mut [f64]),
    sign: Sign,
}

/// The row kernels of one level; a value exists only where the processor has the level.
#[derive(Clone, Copy)]
pub struct RowKernels {
    table: &'static Table,
}

impl fmt::Debug for RowKernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RowKernels({})", self.table.isa)
    }
}

impl RowKernels {
    /// Float32 lanes of a vector register.
    pub fn lanes(&self) -> usize {
        self.table.lanes
    }

    /// Columns in a span.
    pub fn span(&self) -> usize {
        CHAIN * self.table.lanes
    }

    /// The weights of `row` from column `start` on, as floats; zeros after the last column.
    ///
    /// Each is `scale * level`, rounded once. The length of `out` is a multiple of the lanes, and
    /// `start` a multiple of the span.
    pub fn unpack(
        &self,
        source: &RowSource<'_>,
        row: usize,
        start: usize,
        scratch: &mut UnpackScratch,
        out: &mut [f32],
    ) {
        debug_assert!(out.len().is_multiple_of(self.lanes()) && start.is_multiple_of(self.span()));
        // SAFETY: `self` exists, so the processor has the level (`for_isa`).
        unsafe { (self.table.unpack)(source, row, start, scratch, out) }
    }

    /// Adds the chains of one row with one vector, span by span, to `sums` (`(lanes)`).
    ///
    /// `w` and `x` start at a span and have the same length, at most the [`SPANS`] spans between
    /// two flushes.
    pub fn dot(&self, w: &[f32], x: &[f32], sums: &mut [f32]) {
        assert_eq!(w.len(), x.len());
        // SAFETY: `self` exists, so the processor has the level (`for_isa`).
        unsafe { (self.table.dot)(w, x, sums) }
    }

    /// Adds the chains of one span, each row with each vector, to `sums`
    /// (`(rows, vectors, lanes)`).
    ///
    /// `w` is `(rows, len)` and `x` is `(vectors, len)`, where `len` is a span, or less at the end
    /// of a row. The same bits as [`RowKernels::dot`].
    pub fn dot_block(&self, w: &[f32], x: &[f32], len: usize, sums: &mut [f32]) {
        let (rows, vectors) = (w.len() / len, x.len() / len);
        assert_eq!(sums.len(), rows * vectors * self.lanes());
        // SAFETY: `self` exists, so the processor has the level (`for_isa`).
        unsafe { (self.table.dot_block)(w, x, len, sums) }
    }

    /// Flushes lane sums to totals: `sums` is `(outputs, lanes)` and zeroed, `totals` is
    /// `(outputs)`.
    pub fn flush(&self, sums: &mut [f32], totals: &mut [f64]) {
        assert_eq!(sums.len(), totals.len() * self.lanes());
        // SAFETY: `self` exists, so the processor has the level (`for_isa`).
        unsafe { (self.table.flush)(sums, totals) }
    }

    /// One row of 1-bit codes times one vector of signs. `w` and `x` come from [`row_words`] and
    /// [`sign_words`]; `scales` has one value for each `group` of the `cols` columns, of which
    /// there is at least one.
    ///
    /// Exact in integers over a group; then `f += scale * sum` in float32 over at most [`SPANS`]
    /// groups at a time, whose sums are added in float64. The same bits at every level.
    pub fn sign(&self, cols: usize, group: usize, scales: &[f32], w: &[u64], x: &[u64]) -> f32 {
        assert!(group > 0 && scales.len() == cols.div_ceil(group));
        // SAFETY: `self` exists, so the processor has the level (`for_isa`).
        unsafe { (self.table.sign)(cols, group, scales, w, x) }
    }
}

/// The table of a level: each generic kernel wrapped in a function that enables the level's
/// features and into which it is inlined. `$rows` × `$vectors` is the register block of
/// `dot_block`.
macro_rules! kernel_table {
    ($isa:expr, $level:ty, $lanes:literal, $rows:literal x $vectors:literal, $proof:expr $(, #[$features:meta])?) => {
        $(#[$features])?
        fn unpack(
            source: &RowSource<'_>,
            row: usize,
            start: usize,
            scratch: &mut UnpackScratch,
            out: &mut [f32],
        ) {
            unpack::unpack::<$lanes, $level>($proof, source, row, start, scratch, out)
        }

        $(#[$features])?
        fn dot(w: &[f32], x: &[f32], sums: &mut [f32]) {
            dot::dot::<$lanes, $level>($proof, w, x, sums)
        }

        $(#[$features])?
        fn dot_block(w: &[f32], x: &[f32], len: usize, sums: &mut [f32]) {
            dot::dot_block::<$lanes, $level, $rows, $vectors>($proof, w, x, len, sums)
        }

        $(#[$features])?
        fn flush(sums: &mut [f32], totals: &mut [f64]) {
            dot::flush::<$lanes, $level>($proof, sums, totals)
        }

        $(#[$features])?
        fn sign(cols: usize, group: usize, scales: &[f32], w: &[u64], x: &[u64]) -> f32 {
            sign::product(cols, group, scales, w, x)
        }

        pub(super) static TABLE: Table = Table {
            isa: $isa,
            lanes: $lanes,
            unpack,
            dot,
            dot_block,
            flush,
            sign,
        };
    };
}
use kernel_table;
