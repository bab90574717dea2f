//! Kernels for vectors of activations: what a transformer computes apart from products with
//! weights.
//!
//! # Contract
//!
//! Every kernel is written once over 16 *lanes* ([`lanes::Lanes`]), whatever the registers of a
//! level. Every multiply-add is fused, and lanes are summed in one fixed tree. So every level gives
//! the same bits; a processor without fused multiply-add computes it in software.
//!
//! **Attention** processes positions in blocks of [`BLOCK`] and chunks of [`CHUNK`], both aligned
//! to position 0. The keys of a block are transposed, `(head_dim, BLOCK)`, so that a lane is a
//! position and no sum crosses lanes. Values are `(positions, width)`, a lane being an element;
//! `width` is `head_dim` rounded up to a multiple of 16, with zeros as padding. Up to [`ROWS`]
//! *rows*, queries that share keys and values, are processed together, so that keys and values are
//! read and widened once:
//!
//! 1. [`VectorKernels::scores`]: the score of a row and a position is one chain over the elements
//!    of the head;
//! 2. [`VectorKernels::softmax`]: over the positions of a chunk that a row sees, each lane being a
//!    chain over the blocks;
//! 3. [`VectorKernels::mix`]: an element of the output is one chain over the chunk's positions.
//!
//! A row's result for a chunk then depends neither on the other rows, nor on the other chunks, nor
//! on how many positions that it does not see are computed: those have probability 0, which leaves
//! a chain unchanged.
//!
//! Kernels do not allocate, and read nothing beyond the slices they are given. Keys and values are
//! finite.

mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod elementwise;
mod lanes;
mod registry;
mod scalar;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;

use bytemuck::Pod;
use half::f16;

pub use attention::prefetch_beginning;

use super::Isa;

/// Positions whose keys are transposed together; the granularity of attention.
pub const BLOCK: usize = 16;

/// Positions of one softmax.
pub const CHUNK: usize = 256;

/// The most rows that are processed together.
pub const ROWS: usize = 8;

/// The numbers of rows for which kernels exist.
const WIDTHS: [usize; 4] = [1, 2, 4, 8];

type Scores<T> = unsafe fn(&[f32], &[T], usize, &mut [Chunk]);
type Mix<T> = unsafe fn(&[Chunk], usize, &[T], &mut [f32]);

/// The scores, then the unnormalised probabilities, of one row over the positions of a chunk.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Chunk(pub [f32; CHUNK]);

/// One level's functions. They are `unsafe` to call because the processor must have the level.
struct Table {
    isa: Isa,
    scores: ([Scores<f32>; 4], [Scores<f16>; 4]),
    mix: ([Mix<f32>; 4], [Mix<f16>; 4]),
    softmax: unsafe fn(&mut [f32], usize, usize) -> (f32, f32),
    rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    silu_times: unsafe fn(&mut [f32], &[f32]),
    gelu_times: unsafe fn(&mut [f32], &[f32]),
    softcap: unsafe fn(&mut [f32], f32),
    narrow: unsafe fn(&[f32], &mut [f16]),
}

/// An element type of a key/value cache.
pub trait Cached: Pod + Send + Sync {
    #[doc(hidden)]
    fn scores(k: &VectorKernels, width: usize) -> Scores<Self>;
    #[doc(hidden)]
    fn mix(k: &VectorKernels, width: usize) -> Mix<Self>;
    /// Rounds; values out of range become the largest number. Both slices have the same length.
    fn narrow(k: &VectorKernels, from: &[f32], to: &mut [Self]);
}

impl Cached for f32 {
    fn scores(k: &VectorKernels, width: usize) -> Scores<f32> {
        k.table.scores.0[width]
    }

    fn mix(k: &VectorKernels, width: usize) -> Mix<f32> {
        k.table.mix.0[width]
    }

    fn narrow(_: &VectorKernels, from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Cached for f16 {
    fn scores(k: &VectorKernels, width: usize) -> Scores<f16> {
        k.table.scores.1[width]
    }

    fn mix(k: &VectorKernels, width: usize) -> Mix<f16> {
        k.table.mix.1[width]
    }

    fn narrow(k: &VectorKernels, from: &[f32], to: &mut [f16]) {
        assert_eq!(from.len(), to.len());
        // SAFETY: `k` exists, so the processor has the level (`for_isa`).
        unsafe { (k.table.narrow)(from, to) }
    }
}

/// The vector kernels of one level; a value exists only where the processor has the level.
#[derive(Clone, Copy)]
pub struct VectorKernels {
    table: &'static Table,
}

impl fmt::Debug for VectorKernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VectorKernels({})", self.table.isa)
    }
}

/// The index in [`WIDTHS`] of the kernel for this many rows.
fn width(rows: usize) -> usize {
    let fits = WIDTHS.iter().position(|&w| w >= rows);
    fits.expect("at most ROWS rows")
}

impl VectorKernels {
    /// The number of rows that `rows` are padded to: 1, 2, 4 or 8.
    pub fn padded_rows(rows: usize) -> usize {
        WIDTHS[width(rows)]
    }

    /// Scores of rows and positions, from block `at` of a chunk on.
    ///
    /// `q` is `(head_dim, rows)`, `keys` is `(blocks, head_dim, BLOCK)`; `out` has a chunk for each
    /// of the 1, 2, 4 or 8 rows.
    pub fn scores<T: Cached>(&self, q: &[f32], keys: &[T], at: usize, out: &mut [Chunk]) {
        let width = width(out.len());
        assert!(WIDTHS[width] == out.len() && q.len().is_multiple_of(out.len()));
        // SAFETY: `self` exists, so the processor has the level (`for_isa`).
        unsafe { T::scores(self, width)(q, keys, at, out) }
    }

    /// Replaces the scores of the positions `seen`, which is not empty, by `exp(score - largest)`,
    /// and all others by 0; returns the largest score and the sum. The length of `scores` is a
    /// multiple of [`BLOCK`].
    pub fn softmax(&self, scores: &mut [f32], seen: Range<usize>) -> (f32, f32) {
        assert!(seen.start < seen.end && seen.end <= scores.len());
        assert!(scores.len().is_multiple_of(BLOCK));
        // SAFETY: `self` exists, so the processor has the level (`for_isa`).
        unsafe { (self.table.softmax)(scores, seen.start, seen.end) }
    }

    /// Adds values weighted with probabilities: `out[r] += sum of p[r][at + i] * values[i]`.
    ///
    /// `values` is `(positions, width)`, `out` is `(rows, width)`; `width` is a multiple of 16, but
    /// not 0.
    pub fn mix<T: Cached>(&self, p: &[Chunk], at: usize, values: &[T], out: &mut [f32]) {
        let rows = width(p.len());
        assert!(WIDTHS[rows] == p.len() && out.len().is_multiple_of(16 * p.len()));
        assert!(!out.is_empty());
        // SAFETY: `self` exists, so the processor has the level (`for_isa`).
        unsafe { T::mix(self, rows)(p, at, values, out) }
    }

    /// `x / sqrt(mean(x^2) + eps) * weights`; all slices have the same length.
    pub fn rms_norm(&self, x: &[f32], weights: &[f32], eps: f32, out: &mut [f32]) {
        assert!(x.len() == weights.len() && x.len() == out.len());
        // SAFETY: `self` exists, so the processor has the level (`for_isa`).
        unsafe { (self.table.rms_norm)(x, weights, eps, out) }
    }

    /// `gate = gate * sigmoid(gate) * up`.
    pub fn silu_times(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        // SAFETY: `self` exists, so the processor has the level (`for_isa`).
        unsafe { (self.table.silu_times)(gate, up) }
    }

    /// `gate = gelu(gate) * up`, by the tanh approximation.
    pub fn gelu_times(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        // SAFETY: `self` exists, so the processor has the level (`for_isa`).
        unsafe { (self.table.gelu_times)(gate, up) }
    }

    /// `x = cap * tanh(x / cap)`.
    pub fn softcap(&self, x: &mut [f32], cap: f32) {
        // SAFETY: `self` exists, so the processor has the level (`for_isa`).
        unsafe { (self.table.softcap)(x, cap) }
    }
}

/// The kernels for 1, 2, 4 and 8 rows, each with a number of rows and of blocks of 16 processed
/// together. Few rows take several blocks, because a single chain would wait for the latency of
/// every addition. Many rows take as many blocks as registers allow, because each further block
/// reuses what was broadcast. Accumulators that do not fit the registers cost most: with 16
/// registers, 8 rows of a block at once took 1.6 to 2.7 times as long as 4 and then 4.
macro_rules! by_rows {
    ($f:ident, $t:ty, [$(($rows:literal, $blocks:literal)),*]) => {
        by_rows!(@ $f, $t, [1, 2, 4, 8], [$(($rows, $blocks)),*])
    };
    (@ $f:ident, $t:ty, [$($all:literal),*], [$(($rows:literal, $blocks:literal)),*]) => {
        [$($f::<$t, $all, $rows, $blocks>),*]
    };
}

/// The table of a level: each generic kernel wrapped in a function that enables the level's
/// features and into which it is inlined.
macro_rules! vector_table {
    ($isa:expr, $level:ty, $blocks:tt, $proof:expr $(, #[$features:meta])?) => {
        $(#[$features])?
        fn scores<T: lanes::Wide, const R: usize, const S: usize, const B: usize>(
            q: &[f32],
            keys: &[T],
            at: usize,
            out: &mut [Chunk],
        ) {
            attention::scores::<$level, T, R, S, B>($proof, q, keys, at, out)
        }

        $(#[$features])?
        fn mix<T: lanes::Wide, const R: usize, const S: usize, const B: usize>(
            p: &[Chunk],
            at: usize,
            values: &[T],
            out: &mut [f32],
        ) {
            attention::mix::<$level, T, R, S, B>($proof, p, at, values, out)
        }

        $(#[$features])?
        fn softmax(scores: &mut [f32], first: usize, end: usize) -> (f32, f32) {
            attention::softmax($proof, scores, first, end)
        }

        $(#[$features])?
        fn rms_norm(x: &[f32], weights: &[f32], eps: f32, out: &mut [f32]) {
            elementwise::rms_norm($proof, x, weights, eps, out)
        }

        $(#[$features])?
        fn silu_times(gate: &mut [f32], up: &[f32]) {
            elementwise::silu_times($proof, gate, up)
        }

        $(#[$features])?
        fn gelu_times(gate: &mut [f32], up: &[f32]) {
            elementwise::gelu_times($proof, gate, up)
        }

        $(#[$features])?
        fn softcap(x: &mut [f32], cap: f32) {
            elementwise::softcap($proof, x, cap)
        }

        $(#[$features])?
        fn narrow(from: &[f32], to: &mut [f16]) {
            elementwise::narrow($proof, from, to)
        }

        pub(super) const TABLE: Table = Table {
            isa: $isa,
            scores: (by_rows!(scores, f32, $blocks), by_rows!(scores, f16, $blocks)),
            mix: (by_rows!(mix, f32, $blocks), by_rows!(mix, f16, $blocks)),
            softmax,
            rms_norm,
            silu_times,
            gelu_times,
            softcap,
            narrow,
        };
    };
}
use {by_rows, vector_table};
