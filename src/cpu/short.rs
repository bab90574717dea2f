//! The kernels of short groups (see [`super::layout`]), one source for every level.
//!
//! Groups of any length below 16 begin at any quad, so that where a quad lies and how far it is shifted are numbers of the loop, not
//! constants as in the other kernels: one kernel serves all widths of codes. With int8 activations a group is an activation
//! block, and costs a conversion, a scaling and a multiply-add for each vector beside one or a few dot products. With float32
//! activations every weight is scaled once for all vectors, which then is one multiply-add each, however short the groups are.

use super::layout::{Layout, QUAD_COLS, SUB_COLS, SUB_QUADS, TILE_ROWS, ZeroKind};
use super::tile::{FLUSH_SUBS, Int8Acts};
use crate::quant::Bits;

/// The bits of 2^23: or'ed under a code they are the float 2^23 + code.
pub(super) const MAGIC: i32 = (127 + 23) << 23;

/// How far before the codes and scales it works on a kernel calls for the next ones: as the float32 kernels of other groups do, and no
/// other distance was tried.
const AHEAD: usize = 3072;

/// The instructions of a level, on a *part* of the rows of a tile, side by side.
///
/// # Safety
/// Of every function: the processor has the level. Pointers name what the function says.
pub(super) trait Lanes {
    /// Rows of a part.
    const ROWS: usize;
    /// A dword a row.
    type Dwords: Copy;
    /// A float32 a row.
    type Floats: Copy;
    /// A float64 a row.
    type Wide: Copy;
    /// Products of bytes on their way to a dword a row.
    type Sums: Copy;

    /// `value` for every row.
    unsafe fn splat(value: i32) -> Self::Dwords;
    /// The dwords at `at`, each shifted right by -1 to 7 bits; what comes in from the side does not matter.
    unsafe fn shifted(at: *const u8, right: i32) -> Self::Dwords;
    /// Those bits that both have.
    unsafe fn and(a: Self::Dwords, b: Self::Dwords) -> Self::Dwords;
    /// Products of numbers that fit 16 bits.
    unsafe fn times_i16(a: Self::Dwords, b: Self::Dwords) -> Self::Dwords;

    /// `start`, with nothing added.
    unsafe fn sums(start: Self::Dwords) -> Self::Sums;
    /// Adds the four products of the unsigned bytes of `u` with the signed ones of `s`; at most four times.
    unsafe fn add(sums: Self::Sums, u: Self::Dwords, s: Self::Dwords) -> Self::Sums;
    /// The sums, rounded.
    unsafe fn total(sums: Self::Sums) -> Self::Floats;

    /// Nothing.
    unsafe fn zero() -> Self::Floats;
    /// The float at `at` for every row.
    unsafe fn broadcast(at: *const f32) -> Self::Floats;
    /// `a * b`.
    unsafe fn times(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once.
    unsafe fn fused(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded as the level does it fastest.
    unsafe fn multiply_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;

    /// The scales behind a group, of part `part`.
    unsafe fn scales(l: &Layout, tail: *const u8, part: usize) -> Self::Floats;
    /// The zero points behind a group, of part `part`.
    unsafe fn zero_points(l: &Layout, tail: *const u8, part: usize) -> Self::Dwords;
    /// What [`Lanes::level`] takes off for these zero points.
    unsafe fn base(zero_points: Self::Dwords) -> Self::Floats;
    /// Byte `J` of the dwords under a mask for that byte alone, less the zero points.
    unsafe fn level<const J: usize>(
        quad: Self::Dwords,
        mask: Self::Dwords,
        base: Self::Floats,
    ) -> Self::Floats;

    /// No sum.
    unsafe fn zero_wide() -> Self::Wide;
    /// A sum and more.
    unsafe fn flush(sum: Self::Wide, more: Self::Floats) -> Self::Wide;
    /// Writes a part, rounded.
    unsafe fn store(values: Self::Wide, out: *mut f32);
    /// Calls for the line at `at`, which may be any address.
    unsafe fn prefetch(at: *const u8);
}

/// Where the quads of a tile lie.
struct Quads {
    /// Where the dwords of each quad of a sub-block begin in it.
    offsets: [usize; SUB_QUADS],
    /// By how much they are shifted.
    shifts: [i32; SUB_QUADS],
    bits: usize,
    sub_bytes: usize,
    /// The bits of a code in its byte after that.
    mask: u8,
}

impl Quads {
    #[inline(always)]
    fn new(l: &Layout) -> Quads {
        let bits = l.bits.get();
        // One bit is taken as 0 and 2.
        let doubled = (l.bits == Bits::One) as i32;
        Quads {
            offsets: std::array::from_fn(|k| 4 * TILE_ROWS * (k % bits)),
            shifts: std::array::from_fn(|k| (k / bits * bits) as i32 - doubled),
            bits,
            sub_bytes: l.sub_bytes(),
            mask: l.bits.max_code() << doubled,
        }
    }

    /// The codes of quad `k`, of the parts from `first` on, and a call for those that are worked on soon.
    ///
    /// # Safety
    /// That of [`Lanes`]; the tile has the quad.
    #[inline(always)]
    unsafe fn load<L: Lanes, const STEP: usize>(
        &self,
        tile: *const u8,
        k: usize,
        first: usize,
    ) -> [L::Dwords; STEP] {
        let (sub, k) = (k / SUB_QUADS, k % SUB_QUADS);
        // SAFETY: the dwords lie in the tile, those of a part behind each other; prefetches may name any address.
        unsafe {
            let at = tile.add(sub * self.sub_bytes + self.offsets[k] + 4 * L::ROWS * first);
            if k < self.bits {
                // The first of the quads that these dwords hold.
                for line in 0..(4 * L::ROWS * STEP).div_ceil(64) {
                    L::prefetch(at.wrapping_add(AHEAD + 64 * line));
                }
            }
            let mut quad = [L::splat(0); STEP];
            for s in 0..STEP {
                quad[s] = L::shifted(at.add(4 * L::ROWS * s), self.shifts[k]);
            }
            quad
        }
    }
}

/// One tile times `V` int8 vectors; `PARTS` parts make a tile, and `STEP` of them are worked on side by side.
///
/// # Safety
/// The contract of [`super::tile`]; the level of `L`.
#[inline(always)]
pub(super) unsafe fn int8<L: Lanes, const PARTS: usize, const STEP: usize, const V: usize>(
    l: &Layout,
    tile: *const u8,
    acts: Int8Acts,
    out: *mut f32,
) {
    let quads = Quads::new(l);
    let (mut x, mut sx, mut corr) = (acts.codes, acts.scales, acts.corrections);
    let mut at = 0;
    // SAFETY: quads, scales and zero points lie in the tile; activations have V vectors a quad, scales and corrections V a group;
    // `out` is (V, 32).
    unsafe {
        let mut tail = tile.add(l.tail_offset(0));
        let mask = L::splat(i32::from_ne_bytes([quads.mask; 4]));
        let mut f = [[L::zero(); PARTS]; V];
        let mut sum = [[L::zero_wide(); PARTS]; V];
        for g in 0..l.shape.groups {
            let count = l.group_quads(g);
            for line in 0..l.tail_bytes() / 64 {
                L::prefetch(tail.wrapping_add(AHEAD + 64 * line));
            }
            for step in 0..PARTS / STEP {
                let first = step * STEP;
                let mut sums = [[L::sums(L::splat(0)); STEP]; V];
                for v in 0..V {
                    let c = L::splat(*corr.add(v));
                    for s in 0..STEP {
                        sums[v][s] = L::sums(match l.zero {
                            ZeroKind::Constant(_) => c,
                            ZeroKind::PerGroup => {
                                L::times_i16(L::zero_points(l, tail, first + s), c)
                            }
                        });
                    }
                }
                for k in 0..count {
                    let mut w = quads.load::<L, STEP>(tile, at + k, first);
                    for s in 0..STEP {
                        w[s] = L::and(w[s], mask);
                    }
                    for v in 0..V {
                        let four = x.add((k * V + v) * QUAD_COLS).cast::<i32>();
                        let four = L::splat(four.read_unaligned());
                        for s in 0..STEP {
                            sums[v][s] = L::add(sums[v][s], w[s], four);
                        }
                    }
                }
                for s in 0..STEP {
                    let scale = L::scales(l, tail, first + s);
                    for v in 0..V {
                        let both = L::times(scale, L::broadcast(sx.add(v)));
                        let to = &mut f[v][first + s];
                        *to = L::fused(L::total(sums[v][s]), both, *to);
                    }
                }
            }
            at += count;
            x = x.add(count * V * QUAD_COLS);
            (sx, corr) = (sx.add(V), corr.add(V));
            tail = tail.add(l.tail_bytes());
            if (g + 1).is_multiple_of(FLUSH_SUBS) || g + 1 == l.shape.groups {
                flush::<L, PARTS, V>(&mut f, &mut sum);
            }
        }
        for v in 0..V {
            for part in 0..PARTS {
                L::store(sum[v][part], out.add(TILE_ROWS * v + L::ROWS * part));
            }
        }
    }
}

/// Moves float32 sums into float64.
///
/// # Safety
/// The level of `L`.
#[inline(always)]
unsafe fn flush<L: Lanes, const PARTS: usize, const V: usize>(
    f: &mut [[L::Floats; PARTS]; V],
    sum: &mut [[L::Wide; PARTS]; V],
) {
    for v in 0..V {
        for part in 0..PARTS {
            // SAFETY: the caller's.
            unsafe {
                sum[v][part] = L::flush(sum[v][part], f[v][part]);
                f[v][part] = L::zero();
            }
        }
    }
}

/// One tile times `V` float32 vectors; the rest is as in [`int8`].
///
/// # Safety
/// The contract of [`super::tile`]; the level of `L`.
#[inline(always)]
pub(super) unsafe fn float<L: Lanes, const PARTS: usize, const STEP: usize, const V: usize>(
    l: &Layout,
    tile: *const u8,
    x: *const f32,
    out: *mut f32,
) {
    let quads = Quads::new(l);
    let (mut at, mut x) = (0, x);
    // SAFETY: quads, scales and zero points lie in the tile; `x` is (cols, V), `out` (V, 32).
    unsafe {
        let mut tail = tile.add(l.tail_offset(0));
        let mask = L::splat(quads.mask as i32);
        let mut f = [[L::zero(); PARTS]; V];
        let mut sum = [[L::zero_wide(); PARTS]; V];
        let mut chain = 0;
        for g in 0..l.shape.groups {
            let cols = l.shape.group_columns(g).len();
            if chain + cols > SUB_COLS {
                chain = 0;
                flush::<L, PARTS, V>(&mut f, &mut sum);
            }
            chain += cols;
            for line in 0..l.tail_bytes() / 64 {
                L::prefetch(tail.wrapping_add(AHEAD + 64 * line));
            }
            for step in 0..PARTS / STEP {
                let first = step * STEP;
                let mut scale = [L::zero(); STEP];
                let mut base = [L::zero(); STEP];
                for s in 0..STEP {
                    scale[s] = L::scales(l, tail, first + s);
                    base[s] = L::base(L::zero_points(l, tail, first + s));
                }
                for k in 0..cols.div_ceil(QUAD_COLS) {
                    let quad = quads.load::<L, STEP>(tile, at + k, first);
                    unroll!(J in 0..4 => {
                        let col = QUAD_COLS * k + J;
                        if col < cols {
                            let mut w = [L::zero(); STEP];
                            for s in 0..STEP {
                                w[s] = L::times(L::level::<J>(quad[s], mask, base[s]), scale[s]);
                            }
                            for v in 0..V {
                                let x = L::broadcast(x.add(col * V + v));
                                for s in 0..STEP {
                                    f[v][first + s] = L::multiply_add(w[s], x, f[v][first + s]);
                                }
                            }
                        }
                    });
                }
            }
            at += cols.div_ceil(QUAD_COLS);
            x = x.add(cols * V);
            tail = tail.add(l.tail_bytes());
        }
        flush::<L, PARTS, V>(&mut f, &mut sum);
        for v in 0..V {
            for part in 0..PARTS {
                L::store(sum[v][part], out.add(TILE_ROWS * v + L::ROWS * part));
            }
        }
    }
}
