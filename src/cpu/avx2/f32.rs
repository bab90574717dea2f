//! float32 activations, exact.
//!
//! Converts a field of a dword to a float without a conversion instruction: masked into the
//! mantissa of `2^(23 - shift)` it *is* that number plus the code, and subtracting
//! `2^(23 - shift) + zero_point` leaves the level, exactly. With one bit, the bit is moved into the
//! sign of 1.0 instead. The order of summation, and with it every bit of the results, is that of
//! AVX-512.

use super::{OCTETS, pin_ps, prefetch, scales, zero_points};
use crate::cpu::layout::{Layout, SUB_COLS, TILE_ROWS, ZeroKind};
use crate::cpu::tile::FLUSH_SUBS;
use std::arch::x86_64::*;

/// Converts the dwords of a sub-block to levels.
#[derive(Clone, Copy)]
struct Fields {
    /// `2^(23 - shift) + zero_point` for the four positions of a field in a 16-bit half.
    base: [__m256; 4],
}

/// Field positions that need no shift of the dword: bit offsets `0, BITS, 2 BITS, 3 BITS`, or 0 and
/// 8 at 8 bits.
const fn places(bits: usize) -> usize {
    if bits == 8 { 2 } else { 4 }
}

impl Fields {
    /// # Safety
    /// AVX2.
    #[inline(always)]
    unsafe fn new<const BITS: usize>(zero: __m256i) -> Fields {
        // SAFETY: AVX2.
        unsafe {
            let zero = _mm256_cvtepi32_ps(zero);
            let mut base = [zero; 4];
            for (place, base) in base.iter_mut().enumerate().take(places(BITS)) {
                *base = _mm256_add_ps(_mm256_castsi256_ps(Self::magic::<BITS>(place)), zero);
            }
            Fields { base }
        }
    }

    /// The bits of `2^(23 - shift)`.
    ///
    /// # Safety
    /// AVX2.
    #[inline(always)]
    unsafe fn magic<const BITS: usize>(place: usize) -> __m256i {
        let exponent = 23 - BITS * place;
        // SAFETY: AVX2.
        unsafe { _mm256_set1_epi32(((127 + exponent) << 23) as i32) }
    }

    /// The levels of column `col` of an octet, whose first dwords are at `octet`.
    ///
    /// # Safety
    /// AVX2; `octet` points to the dwords `q = 0` of an octet in a sub-block of `BITS`.
    #[inline(always)]
    unsafe fn column<const BITS: usize>(&self, octet: *const u8, col: usize) -> __m256 {
        // SAFETY: the dwords of this column lie in the sub-block, 32-byte aligned.
        unsafe {
            let dword = _mm256_load_si256(octet.add(128 * (col / 4 % BITS)).cast());
            self.level::<BITS>(dword, col)
        }
    }

    /// The levels of column `col` of a sub-block, whose dword `q = (col / 4) % BITS` is `dword`.
    ///
    /// # Safety
    /// AVX2.
    #[inline(always)]
    unsafe fn level<const BITS: usize>(&self, dword: __m256i, col: usize) -> __m256 {
        let bit = 8 * (col % 4) + BITS * (col / 4 / BITS);
        let window = BITS * places(BITS);
        let place = bit % window / BITS;
        // SAFETY: AVX2.
        unsafe {
            if BITS == 1 {
                let top = _mm256_sll_epi32(dword, _mm_cvtsi32_si128(31 - bit as i32));
                let sign = _mm256_andnot_si256(top, _mm256_set1_epi32(i32::MIN));
                return _mm256_or_ps(_mm256_castsi256_ps(sign), _mm256_set1_ps(1.0));
            }
            let shift = _mm_cvtsi32_si128((bit - bit % window) as i32);
            let v = if bit < window {
                dword
            } else {
                _mm256_srl_epi32(dword, shift)
            };
            let mask = _mm256_set1_epi32(((1 << BITS) - 1) << (BITS * place));
            let f = _mm256_or_si256(_mm256_and_si256(v, mask), Self::magic::<BITS>(place));
            _mm256_sub_ps(_mm256_castsi256_ps(f), self.base[place])
        }
    }
}

/// Flushes the float32 accumulators of 32 rows to float64.
///
/// # Safety
/// AVX2.
#[inline(always)]
pub(super) unsafe fn flush(f: &mut [__m256; OCTETS], sum: &mut [[__m256d; 2]; OCTETS]) {
    for (f, sum) in f.iter_mut().zip(sum) {
        // SAFETY: AVX2.
        unsafe {
            sum[0] = _mm256_add_pd(sum[0], _mm256_cvtps_pd(_mm256_castps256_ps128(*f)));
            sum[1] = _mm256_add_pd(sum[1], _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(*f)));
            *f = _mm256_setzero_ps();
        }
    }
}

/// Rounds the sums of 32 rows to float32.
///
/// # Safety
/// AVX2; `out` is (32).
#[inline(always)]
pub(super) unsafe fn store(sum: &[[__m256d; 2]; OCTETS], out: *mut f32) {
    for (four, &sum) in sum.as_flattened().iter().enumerate() {
        // SAFETY: 4 of the 32 floats of `out`.
        unsafe { _mm_storeu_ps(out.add(4 * four), _mm256_cvtpd_ps(sum)) };
    }
}

/// By bit width, the largest number of vectors for which [`direct`] is no slower than [`unpack`]
/// and [`panel`]: unpacking is shared by all vectors there, by four here. µs per vector, fused and
/// unpacked (Zen 4 at this level, 4096 × 4096 from memory, groups of 32). 8 bits: 2 vectors 859 and
/// 945, 4 524 and 625, 5 635 and 571, 12 547 and 449. 4 bits: 2 833 and 728, 3 943 and 628, 4 533
/// and 528, 8 542 and 434. 1 bit: 2 853 and 666, 4 486 and 500, 8 492 and 421.
pub(super) const MAX_DIRECT_VECTORS: [usize; 4] = [1, 1, 1, 4];

/// One tile times `V` vectors, fused dequantise, in passes of at most four vectors: four chains at
/// a time, of one vector and four octets, two and two, or four and one. Processing groups of four
/// vectors one after the other within each sub-block took 1.5 times as long for eight and twelve:
/// the compiler spilled the levels for the next four.
///
/// # Safety
/// The contract of [`crate::cpu::tile`]; AVX2, FMA and F16C.
#[inline(always)]
pub(super) unsafe fn direct<const BITS: usize, const V: usize>(
    l: &Layout,
    tile: *const u8,
    x: *const f32,
    l2_distance: usize,
    out: *mut f32,
) {
    // SAFETY: the caller upholds this contract.
    unsafe {
        match V {
            1 => direct_by::<BITS, V, 1, 4>(l, tile, x, l2_distance, out),
            2 => direct_by::<BITS, V, 2, 2>(l, tile, x, l2_distance, out),
            _ => {
                for first in (0..V).step_by(4) {
                    let (x, out) = (x.add(first), out.add(first * TILE_ROWS));
                    direct_by::<BITS, V, 4, 1>(l, tile, x, l2_distance, out);
                }
            }
        }
    }
}

/// `VS` of the `V` vectors that `x` interleaves.
///
/// # Safety
/// As [`direct`], except that `x` and `out` begin with the first of the `VS` vectors.
#[inline(always)]
unsafe fn direct_by<const BITS: usize, const V: usize, const VS: usize, const OS: usize>(
    l: &Layout,
    tile: *const u8,
    x: *const f32,
    l2_distance: usize,
    out: *mut f32,
) {
    let sub_bytes = 4 * SUB_COLS * BITS;
    let ahead = 4096;
    let (mut p, mut x) = (tile, x);
    let mut until_flush = FLUSH_SUBS;
    // SAFETY: `p` and `x` advance through the tile and the vectors as the contract lays them out.
    // When starting at a later vector, the last step of `x` ends past the vectors, where nothing is
    // read.
    unsafe {
        let zero = _mm256_setzero_ps();
        let mut f = [[zero; OCTETS]; VS];
        let mut sum = [[[_mm256_setzero_pd(); 2]; OCTETS]; VS];
        for g in 0..l.shape.groups {
            let subs = l.group_subs(g);
            let tail = p.add(subs * sub_bytes);
            for _ in 0..subs {
                prefetch(
                    p.wrapping_add(ahead),
                    p.wrapping_add(l2_distance),
                    sub_bytes,
                );
                for octet in (0..OCTETS).step_by(OS) {
                    let of_octets = |o: usize| Fields::new::<BITS>(zero_points(l, tail, octet + o));
                    let mut fields = [of_octets(0); OS];
                    if l.zero == ZeroKind::PerGroup {
                        for (o, fields) in fields.iter_mut().enumerate().skip(1) {
                            *fields = of_octets(o);
                        }
                    }
                    let mut scale = [zero; OS];
                    for (o, scale) in scale.iter_mut().enumerate() {
                        *scale = scales(l, tail, octet + o);
                    }
                    let weights = p.add(32 * octet);
                    for half in 0..2 {
                        let x = x.add(half * SUB_COLS / 2 * V);
                        let chains = match half {
                            0 => chains::<BITS, V, VS, OS, 0>(weights, &fields, x),
                            _ => chains::<BITS, V, VS, OS, 16>(weights, &fields, x),
                        };
                        for (o, chains) in chains.into_iter().enumerate() {
                            for (v, chain) in chains.into_iter().enumerate() {
                                let f = &mut f[v][octet + o];
                                *f = _mm256_fmadd_ps(chain, scale[o], *f);
                            }
                        }
                    }
                }
                p = p.add(sub_bytes);
                x = x.wrapping_add(SUB_COLS * V);
                until_flush -= 1;
                if until_flush == 0 {
                    for (f, sum) in f.iter_mut().zip(&mut sum) {
                        flush(f, sum);
                    }
                    until_flush = FLUSH_SUBS;
                }
            }
            prefetch(
                p.wrapping_add(ahead),
                p.wrapping_add(l2_distance),
                l.tail_bytes(),
            );
            p = p.add(l.tail_bytes());
        }
        for (v, (f, sum)) in f.iter_mut().zip(&mut sum).enumerate() {
            flush(f, sum);
            store(sum, out.add(TILE_ROWS * v));
        }
    }
}

/// The sums of 16 columns from `FROM` on of `OS` octets, for `VS` of the `V` vectors that `x`
/// interleaves. The columns of a half need two masks and offsets, those of a sub-block four, for
/// which there are no registers.
///
/// # Safety
/// AVX2 and FMA; `octets` points to the first octet in a sub-block of `BITS`, `x` to column `FROM`.
#[inline(always)]
unsafe fn chains<
    const BITS: usize,
    const V: usize,
    const VS: usize,
    const OS: usize,
    const FROM: usize,
>(
    octets: *const u8,
    fields: &[Fields; OS],
    x: *const f32,
) -> [[__m256; VS]; OS] {
    // SAFETY: the caller upholds this contract.
    unsafe {
        let mut chains = [[_mm256_setzero_ps(); VS]; OS];
        unroll!(I in 0..16 => {
            let mut xs = [_mm256_setzero_ps(); VS];
            for (v, xs) in xs.iter_mut().enumerate() {
                *xs = _mm256_set1_ps(*x.add(I * V + v));
            }
            for (o, chains) in chains.iter_mut().enumerate() {
                let level = fields[o].column::<BITS>(octets.add(32 * o), FROM + I);
                for (chain, x) in chains.iter_mut().zip(xs) {
                    *chain = pin_ps(_mm256_fmadd_ps(level, x, *chain));
                }
            }
        });
        chains
    }
}

/// Unpacks sub-blocks for [`panel`], and prefetches those that the next call will unpack: without
/// that, twelve vectors at 8 bits from memory took 1008 µs each, with it 449 (Zen 4, 4096 × 4096).
///
/// # Safety
/// The contract of [`crate::cpu::tile`]; AVX2, FMA and F16C.
#[inline(always)]
pub(super) unsafe fn unpack<const BITS: usize>(
    l: &Layout,
    tile: *const u8,
    first: usize,
    count: usize,
    levels: *mut f32,
    scales_out: *mut f32,
) {
    for i in 0..count {
        let (sub, tail) = l.sub_and_tail(first + i);
        let (next, _) = l.sub_and_tail(first + i + count);
        for line in 0..2 * BITS + 1 {
            // SAFETY: a prefetch may use any address.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(tile.wrapping_add(next + 64 * line).cast()) };
        }
        // SAFETY: the tile has sub-block first + i, and the outputs hold `count` of them.
        unsafe {
            let (sub, tail) = (tile.add(sub), tile.add(tail));
            for o in 0..OCTETS {
                let out = levels.add(i * SUB_COLS * TILE_ROWS + 8 * o);
                _mm256_storeu_ps(scales_out.add(i * TILE_ROWS + 8 * o), scales(l, tail, o));
                let octet = sub.add(32 * o);
                let fields = Fields::new::<BITS>(zero_points(l, tail, o));
                unroll!(I in 0..16 => {
                    let w = fields.column::<BITS>(octet, I);
                    _mm256_storeu_ps(out.add(I * TILE_ROWS), w);
                    let w = fields.column::<BITS>(octet, I + 16);
                    _mm256_storeu_ps(out.add((I + 16) * TILE_ROWS), w);
                });
            }
        }
    }
}

/// Unpacked sub-blocks times `V` vectors, added to `f`.
///
/// # Safety
/// The contract of [`crate::cpu::tile`]; AVX2 and FMA.
#[inline(always)]
pub(super) unsafe fn panel<const V: usize>(
    levels: *const f32,
    scales: *const f32,
    count: usize,
    x: *const f32,
    f: *mut f32,
) {
    // SAFETY: the caller upholds this contract.
    unsafe {
        match V {
            // At most twelve chains per pass; weights and activations take three registers.
            12 => passes::<V, 6, 2>(levels, scales, count, x, f),
            8 => passes::<V, 4, 2>(levels, scales, count, x, f),
            4 => passes::<V, 4, 2>(levels, scales, count, x, f),
            2 => passes::<V, 2, 4>(levels, scales, count, x, f),
            _ => passes::<V, 1, 4>(levels, scales, count, x, f),
        }
    }
}

/// [`panel`] in passes of `VS` vectors × `OS` octets over each half of a sub-block.
///
/// # Safety
/// That of [`panel`].
#[inline(always)]
unsafe fn passes<const V: usize, const VS: usize, const OS: usize>(
    levels: *const f32,
    scales: *const f32,
    count: usize,
    x: *const f32,
    f: *mut f32,
) {
    debug_assert!(V.is_multiple_of(VS) && OCTETS.is_multiple_of(OS));
    const CHAIN: usize = SUB_COLS / 2;
    for chain in 0..2 * count {
        for o in (0..OCTETS).step_by(OS) {
            for v in (0..V).step_by(VS) {
                // SAFETY: `levels` is (count * 32, 32), `scales` (count, 32), `x` (count * 32, V),
                // `f` (V, 32). The last step of `w` and `x` may end past the buffers, where nothing
                // is read.
                unsafe {
                    let mut sums = [[_mm256_setzero_ps(); OS]; VS];
                    let mut w = levels.add(chain * CHAIN * TILE_ROWS + 8 * o);
                    let mut x = x.add(chain * CHAIN * V + v);
                    for _ in 0..CHAIN {
                        let mut column = [_mm256_setzero_ps(); OS];
                        for (i, column) in column.iter_mut().enumerate() {
                            *column = _mm256_loadu_ps(w.add(8 * i));
                        }
                        for (i, sums) in sums.iter_mut().enumerate() {
                            let x = _mm256_set1_ps(*x.add(i));
                            for (sum, &column) in sums.iter_mut().zip(&column) {
                                *sum = _mm256_fmadd_ps(column, x, *sum);
                            }
                        }
                        w = w.wrapping_add(TILE_ROWS);
                        x = x.wrapping_add(V);
                    }
                    for (i, sums) in sums.iter().enumerate() {
                        for (j, &sum) in sums.iter().enumerate() {
                            let octet = 8 * (o + j);
                            let scale = _mm256_loadu_ps(scales.add(chain / 2 * TILE_ROWS + octet));
                            let at = f.add((v + i) * TILE_ROWS + octet);
                            _mm256_storeu_ps(at, _mm256_fmadd_ps(sum, scale, _mm256_loadu_ps(at)));
                        }
                    }
                }
            }
        }
    }
}
