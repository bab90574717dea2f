//! The kernels for short groups (see [`super::layout`]), one source for every level.
//!
//! A group of a few columns is too short for an integer sum that is converted and scaled once: the
//! conversion and the scaling would cost more than the products. Instead every weight is scaled
//! once for all vectors, and costs one multiply-add per vector however short the groups are. Groups
//! begin at any column: which scale applies to a column is a loop variable, and one kernel serves
//! all bit widths.

use super::layout::{Layout, QUAD_COLS, SHORT_COLS, SUB_COLS, SUB_QUADS, TILE_ROWS, ZeroKind};
use super::tile::FLUSH_SUBS;
use crate::quant::{Bits, TINY_AMAX, quantize_block};
use std::ops::Range;

/// The bits of 2^23: combined with a code by a bitwise or, they are the float 2^23 + code.
#[cfg(target_arch = "x86_64")]
pub(super) const MAGIC: i32 = (127 + 23) << 23;

/// The prefetch distance in bytes: that of the float32 kernels for longer groups; no other was
/// tried.
const PREFETCH_DISTANCE: usize = 3072;

/// Quads of a chain; a sub-block has two chains.
const CHAIN_QUADS: usize = SUB_QUADS / 2;

/// The operations of a level, on a *part* of the rows of a tile, one row per lane.
///
/// # Safety
/// Every function requires that the processor has the level, and that pointers are valid for what
/// the function accesses.
pub(super) trait Lanes {
    /// Rows of a part.
    const ROWS: usize;
    /// One dword per row.
    type Dwords: Copy;
    /// One float32 per row.
    type Floats: Copy;
    /// One float64 per row.
    type Wide: Copy;

    /// The dwords at `at`, each shifted right by less than 8 bits; the bits shifted in are
    /// unspecified.
    unsafe fn shifted(at: *const u8, right: u32) -> Self::Dwords;

    /// Zeros.
    unsafe fn zero() -> Self::Floats;
    /// The float at `at` in every row.
    unsafe fn broadcast(at: *const f32) -> Self::Floats;
    /// `a + b`.
    unsafe fn plus(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b`.
    unsafe fn times(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded as the panel kernel of the level rounds it.
    unsafe fn multiply_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// Writes a part.
    unsafe fn write(values: Self::Floats, to: *mut f32);

    /// The scales of part `part` in the tail of a group.
    unsafe fn scales(l: &Layout, tail: *const u8, part: usize) -> Self::Floats;
    /// What [`Lanes::level`] subtracts for the zero points of part `part` in the tail of a group.
    unsafe fn base(l: &Layout, tail: *const u8, part: usize) -> Self::Floats;
    /// The level: byte `J` of each dword, masked with `mask`, minus the zero point.
    unsafe fn level<const J: usize>(
        quad: Self::Dwords,
        mask: u8,
        base: Self::Floats,
    ) -> Self::Floats;
    /// `scale` where the lowest bit of byte `J` of the dwords is 1, else `-scale`.
    unsafe fn signed<const J: usize>(quad: Self::Dwords, scale: Self::Floats) -> Self::Floats;

    /// Zeros.
    unsafe fn zero_wide() -> Self::Wide;
    /// `sum + more`.
    unsafe fn flush(sum: Self::Wide, more: Self::Floats) -> Self::Wide;
    /// Writes a part, rounded to float32.
    unsafe fn store(values: Self::Wide, out: *mut f32);
    /// Prefetches the line at `near` into L1 and that at `far` into L2; the addresses need not be
    /// valid.
    fn prefetch(near: *const u8, far: *const u8);
}

/// Receives scaled weights, column after column.
///
/// # Safety
/// Every function requires that the processor has the level of `L`, and that there is memory for
/// that many columns.
trait ColumnSink<L: Lanes, const STEP: usize> {
    /// Takes a column of `STEP` parts.
    unsafe fn column(&mut self, w: [L::Floats; STEP]);
    /// A chain ends behind the last column.
    unsafe fn end_chain(&mut self);
}

/// Passes to `to` the scaled weights of `columns`, which begin at a sub-block and end at the end of
/// one or of the row, for `STEP` parts from `first` on. `ONE_BIT` says whether the layout has one
/// bit; `l2_distance` is as for [`super::tile::DirectFn`].
///
/// # Safety
/// The processor has the level of `L`; the tile has the columns; the requirements of `to`.
#[inline(always)]
unsafe fn for_each_column<L: Lanes, const STEP: usize, const ONE_BIT: bool>(
    l: &Layout,
    tile: *const u8,
    first: usize,
    columns: Range<usize>,
    l2_distance: usize,
    to: &mut impl ColumnSink<L, STEP>,
) {
    let (bits, group) = (l.bits.get(), l.shape.group);
    let mask = l.bits.max_code();
    let tail_bytes = l.tail_bytes();
    let zeros = l.zero == ZeroKind::PerGroup;
    let g = columns.start / group;
    let mut left = (g + 1) * group - columns.start;
    // SAFETY: the quads, scales and zero points of the columns lie in the tile; prefetches may use
    // any address.
    unsafe {
        let prefetch_ahead = |at: *const u8| {
            L::prefetch(
                at.wrapping_add(PREFETCH_DISTANCE),
                at.wrapping_add(l2_distance),
            )
        };
        let mut tail = tile.add(l.tail_offset(g));
        let mut scale = [L::zero(); STEP];
        let mut base = [L::zero(); STEP];
        for s in 0..STEP {
            base[s] = L::base(l, tail, first + s);
        }
        macro_rules! read_tail {
            () => {
                prefetch_ahead(tail);
                for s in 0..STEP {
                    scale[s] = L::scales(l, tail, first + s);
                }
                if tail_bytes > 64 {
                    prefetch_ahead(tail.wrapping_add(64));
                    prefetch_ahead(tail.wrapping_add(128));
                }
                if zeros {
                    for s in 0..STEP {
                        base[s] = L::base(l, tail, first + s);
                    }
                }
            };
        }
        read_tail!();
        for quad in columns.start / QUAD_COLS..columns.end.div_ceil(QUAD_COLS) {
            let (sub, k) = (quad / SUB_QUADS, quad % SUB_QUADS);
            // k % bits: the compiler does not know that `bits` is a power of two.
            let q = k & (bits - 1);
            let at = sub * l.sub_bytes() + 4 * (TILE_ROWS * q + L::ROWS * first);
            let at = tile.add(at);
            if k < bits {
                // The first quad of these dwords: prefetch their lines once.
                for line in 0..(4 * L::ROWS * STEP).div_ceil(64) {
                    prefetch_ahead(at.wrapping_add(64 * line));
                }
            }
            let right = (k - q) as u32;
            let mut dwords = [L::shifted(at, right); STEP];
            for s in 1..STEP {
                dwords[s] = L::shifted(at.add(4 * L::ROWS * s), right);
            }
            macro_rules! column {
                ($J:ident) => {
                    let mut w = scale;
                    for s in 0..STEP {
                        w[s] = if ONE_BIT {
                            L::signed::<$J>(dwords[s], scale[s])
                        } else {
                            L::times(L::level::<$J>(dwords[s], mask, base[s]), scale[s])
                        };
                    }
                    to.column(w);
                };
            }
            let here = QUAD_COLS.min(columns.end - QUAD_COLS * quad);
            if left >= QUAD_COLS && here == QUAD_COLS {
                unroll!(J in 0..4 => { column!(J); });
                left -= QUAD_COLS;
            } else {
                unroll!(J in 0..4 => {
                    if J < here {
                        if left == 0 {
                            left = group;
                            tail = tail.add(tail_bytes);
                            read_tail!();
                        }
                        left -= 1;
                        column!(J);
                    }
                });
            }
            if (quad + 1).is_multiple_of(CHAIN_QUADS) {
                to.end_chain();
            }
        }
    }
}

/// Multiplies by `V` vectors.
struct Chains<L: Lanes, const STEP: usize, const V: usize> {
    /// `(columns, V)`, from the next column on.
    x: *const f32,
    chain: [[L::Floats; STEP]; V],
    f: [[L::Floats; STEP]; V],
}

impl<L: Lanes, const STEP: usize, const V: usize> ColumnSink<L, STEP> for Chains<L, STEP, V> {
    #[inline(always)]
    unsafe fn column(&mut self, w: [L::Floats; STEP]) {
        // SAFETY: the caller upholds this contract; `x` has `V` floats for the column.
        unsafe {
            for v in 0..V {
                let x = L::broadcast(self.x.add(v));
                for s in 0..STEP {
                    self.chain[v][s] = L::multiply_add(w[s], x, self.chain[v][s]);
                }
            }
        }
        self.x = self.x.wrapping_add(V);
    }

    #[inline(always)]
    unsafe fn end_chain(&mut self) {
        for v in 0..V {
            for s in 0..STEP {
                // SAFETY: the caller upholds this contract.
                unsafe {
                    self.f[v][s] = L::plus(self.chain[v][s], self.f[v][s]);
                    self.chain[v][s] = L::zero();
                }
            }
        }
    }
}

/// Stores the scaled weights.
struct Weights {
    /// `(columns, 32)`, from the next column and the first part on.
    to: *mut f32,
}

impl<L: Lanes, const STEP: usize> ColumnSink<L, STEP> for Weights {
    #[inline(always)]
    unsafe fn column(&mut self, w: [L::Floats; STEP]) {
        for s in 0..STEP {
            // SAFETY: the caller upholds this contract; `to` has room for the column.
            unsafe { L::write(w[s], self.to.add(L::ROWS * s)) };
        }
        self.to = self.to.wrapping_add(TILE_ROWS);
    }

    #[inline(always)]
    unsafe fn end_chain(&mut self) {}
}

/// One tile times `V` float32 vectors, fused dequantise. A tile is `PARTS` parts, of which `STEP`
/// are processed together.
///
/// # Safety
/// The contract of [`super::tile`]; the level of `L`.
#[inline(always)]
pub(super) unsafe fn direct<L: Lanes, const PARTS: usize, const STEP: usize, const V: usize>(
    l: &Layout,
    tile: *const u8,
    x: *const f32,
    l2_distance: usize,
    out: *mut f32,
) {
    const FLUSH_COLS: usize = FLUSH_SUBS * SUB_COLS;
    for step in 0..PARTS / STEP {
        let first = STEP * step;
        // SAFETY: the caller upholds this contract; `x` is (cols, V), `out` (V, 32).
        unsafe {
            let mut chains = Chains::<L, STEP, V> {
                x,
                chain: [[L::zero(); STEP]; V],
                f: [[L::zero(); STEP]; V],
            };
            let mut sum = [[L::zero_wide(); STEP]; V];
            for start in (0..l.shape.cols).step_by(FLUSH_COLS) {
                let columns = start..l.shape.cols.min(start + FLUSH_COLS);
                match l.bits {
                    Bits::One => for_each_column::<L, STEP, true>(
                        l,
                        tile,
                        first,
                        columns,
                        l2_distance,
                        &mut chains,
                    ),
                    _ => for_each_column::<L, STEP, false>(
                        l,
                        tile,
                        first,
                        columns,
                        l2_distance,
                        &mut chains,
                    ),
                }
                chains.end_chain();
                for v in 0..V {
                    for s in 0..STEP {
                        sum[v][s] = L::flush(sum[v][s], chains.f[v][s]);
                        chains.f[v][s] = L::zero();
                    }
                }
            }
            for v in 0..V {
                for s in 0..STEP {
                    L::store(sum[v][s], out.add(TILE_ROWS * v + L::ROWS * (first + s)));
                }
            }
        }
    }
}

/// Unpacks sub-blocks of a tile to scaled weights, with scales of 1; the parameters are as in
/// [`direct`].
///
/// # Safety
/// The contract of [`super::tile::UnpackFn`]; the level of `L`.
#[inline(always)]
pub(super) unsafe fn unpack<L: Lanes, const PARTS: usize, const STEP: usize>(
    l: &Layout,
    tile: *const u8,
    first: usize,
    count: usize,
    levels: *mut f32,
    scales: *mut f32,
) {
    let start = first * SUB_COLS;
    let end = start + count * SUB_COLS;
    let columns = start..end.min(l.shape.cols);
    // SAFETY: the tile has the columns; `levels` has room for 32 floats for each of them and for
    // each padding column, `scales` for 32 per sub-block.
    unsafe {
        for step in 0..PARTS / STEP {
            let part = STEP * step;
            let mut to = Weights {
                to: levels.add(L::ROWS * part),
            };
            match l.bits {
                Bits::One => {
                    for_each_column::<L, STEP, true>(l, tile, part, columns.clone(), 0, &mut to)
                }
                _ => for_each_column::<L, STEP, false>(l, tile, part, columns.clone(), 0, &mut to),
            }
        }
        let missing = levels.add(columns.len() * TILE_ROWS);
        missing.write_bytes(0, (end - columns.end) * TILE_ROWS);
        for i in 0..count * TILE_ROWS {
            *scales.add(i) = 1.0;
        }
    }
}

/// [`super::tile::RoundFn`], vectorised for the caller's level.
#[inline(always)]
pub(super) fn round<const V: usize>(x: &mut [f32], group: usize) {
    for rows in x.chunks_mut(group * V) {
        let rows = rows.as_chunks_mut::<V>().0;
        let mut amax = [0f32; V];
        for row in &*rows {
            for v in 0..V {
                amax[v] = amax[v].max(row[v].abs());
            }
        }
        if amax.iter().any(|&amax| amax > 0.0 && amax < TINY_AMAX) {
            for v in 0..V {
                round_by_quotient(rows, v);
            }
            continue;
        }
        let (mut inverse, mut scale) = ([0f32; V], [0f32; V]);
        for v in 0..V {
            inverse[v] = if amax[v] > 0.0 { 127.0 / amax[v] } else { 0.0 };
            scale[v] = amax[v] / 127.0;
        }
        for row in rows {
            for v in 0..V {
                row[v] = (row[v] * inverse[v]).round_ties_even() * scale[v];
            }
        }
    }
}

/// One vector of a group, for values of any magnitude.
fn round_by_quotient<const V: usize>(rows: &mut [[f32; V]], v: usize) {
    let (mut x, mut codes) = ([0f32; SHORT_COLS], [0i8; SHORT_COLS]);
    let (x, codes) = (&mut x[..rows.len()], &mut codes[..rows.len()]);
    for (x, row) in x.iter_mut().zip(&*rows) {
        *x = row[v];
    }
    let scale = quantize_block(x, codes);
    for (row, code) in rows.iter_mut().zip(codes) {
        row[v] = scale * *code as f32;
    }
}
