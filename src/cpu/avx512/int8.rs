//! int8 activations: exact int32 sums within each block, float32 across the blocks.

use super::{Dot, prefetch, scales_of_half, zero_points_of_half};
use crate::cpu::layout::{Layout, SUB_COLS, TILE_ROWS, ZeroKind};
use crate::cpu::tile::{Int8Acts, Prefetch, halves_pay};
use std::arch::x86_64::*;

/// Whether columns `4k..4k + 4` of a sub-block are summed in the odd one of the two chains of a
/// single vector: that is every other code of a byte. With `in_place`, the codes of this chain are
/// not shifted, and are `2^bits` times too large.
pub(super) const fn in_odd_chain(bits: usize, in_place: bool, k: usize) -> bool {
    match in_place && bits < 8 {
        true => k / bits % 2 == 1,
        false => k % 2 == 1,
    }
}

/// The codes of four columns, `4k..4k + 4` of the sub-block, for the 16 rows of a half: unsigned
/// bytes. 1-bit codes are 0/2; with `in_place` they are 0/1, and codes of the [odd
/// chain](in_odd_chain) are `2^BITS` times too large.
///
/// # Safety
/// AVX-512 BW; `sub` points to a sub-block of `BITS`.
#[inline(always)]
pub(super) unsafe fn four_columns<const BITS: usize>(
    sub: *const u8,
    k: usize,
    half: usize,
    in_place: bool,
) -> __m512i {
    let (q, p) = (k % BITS, k / BITS);
    let right = |v, by: usize| match by {
        0 => v,
        // SAFETY: the caller upholds this contract.
        _ => unsafe { _mm512_srl_epi16(v, _mm_cvtsi32_si128(by as i32)) },
    };
    let mask = (1 << BITS) - 1;
    // SAFETY: vector (q, half) lies in the sub-block, 64-byte aligned.
    unsafe {
        let v = _mm512_load_si512(sub.add((2 * q + half) * 64).cast());
        match BITS {
            8 => v,
            _ if in_place => {
                let left = p % 2 * BITS;
                let mask = _mm512_set1_epi8((mask << left) as i8);
                _mm512_and_si512(right(v, BITS * p - left), mask)
            }
            1 if p == 0 => _mm512_and_si512(_mm512_slli_epi16::<1>(v), _mm512_set1_epi8(2)),
            1 => _mm512_and_si512(right(v, p - 1), _mm512_set1_epi8(2)),
            _ => _mm512_and_si512(right(v, BITS * p), _mm512_set1_epi8(mask as i8)),
        }
    }
}

/// The sum of the two chains of a single vector.
///
/// # Safety
/// AVX-512 F.
#[inline(always)]
pub(super) unsafe fn add_chains<const BITS: usize>(
    even: __m512i,
    odd: __m512i,
    in_place: bool,
) -> __m512i {
    // SAFETY: the caller upholds this contract.
    unsafe {
        let (even, odd) = match BITS {
            1 => (_mm512_add_epi32(even, even), odd),
            2 => (even, _mm512_srai_epi32::<2>(odd)),
            4 if in_place => (even, _mm512_srai_epi32::<4>(odd)),
            _ => (even, odd),
        };
        _mm512_add_epi32(even, odd)
    }
}

/// With few vectors the tile is streamed from memory, and is prefetched into L1 too.
const fn few(v: usize) -> bool {
    v <= 4
}

/// Whether the float32 accumulators of `v` vectors and this many halves fit in registers beside the
/// integer accumulators.
const fn in_registers(v: usize, halves: usize) -> bool {
    v * halves <= 12
}

/// One tile times `V` vectors.
///
/// Twelve vectors below 8 bits are two passes of six, whose float32 accumulators stay in registers:
/// 512 vectors went from 54 to 60 to 62% of the `vpdpbusd` rate at 4, 2 and 1 bits (Zen 5, 4096 ×
/// 4096, groups of 32). At 8 bits the second pass costs more than it gains (45 to 56% became 41%),
/// and so do two passes of four for eight vectors (0.8 of the rate). With [`Dot::SPLITS_HALVES`]
/// a pass processes one half of the tile and all vectors, where [`halves_pay`].
///
/// # Safety
/// The contract of [`crate::cpu::tile`]; the features of `E`.
#[inline(always)]
pub(super) unsafe fn tile<E: Dot, const BITS: usize, const V: usize>(
    l: &Layout,
    first: usize,
    count: usize,
    tile: *const u8,
    acts: Int8Acts,
    ahead: Prefetch,
    out: *mut f32,
) {
    // SAFETY: the caller upholds this contract; the second six of twelve vectors follow the first
    // in each sub-block, block and `out`.
    unsafe {
        // `const`, so that only the variant in use is instantiated for each bit width and number of
        // vectors. Otherwise the unused ones would be two thirds of the code of this file before
        // optimisation.
        if const { halves_pay(BITS, V) && E::SPLITS_HALVES } {
            // At 8 bits each pass prefetches its share: see
            // [`crate::cpu::tile::TileKernels::prefetches_twice`].
            let lines = match BITS {
                8 => ahead.lines.div_ceil(2),
                _ => ahead.lines,
            };
            let here = Prefetch { lines, ..ahead };
            let then = Prefetch {
                at: ahead.at.wrapping_add(64 * lines * count * l.subs),
                lines: ahead.lines - lines,
                ..ahead
            };
            pass::<E, BITS, V, V, 0, 1, true>(l, first, count, tile, acts, here, out);
            pass::<E, BITS, V, V, 1, 1, true>(l, first, count, tile, acts, then, out);
        } else if const { V == 12 && BITS < 8 } {
            pass::<E, BITS, V, 6, 0, 2, true>(l, first, count, tile, acts, ahead, out);
            let acts = Int8Acts {
                codes: acts.codes.add(6 * SUB_COLS),
                scales: acts.scales.add(6),
                corrections: acts.corrections.add(6),
            };
            let out = out.add(6 * TILE_ROWS);
            pass::<E, BITS, V, 6, 0, 2, false>(l, first, count, tile, acts, ahead, out);
        } else {
            pass::<E, BITS, V, V, 0, 2, true>(l, first, count, tile, acts, ahead, out);
        }
    }
}

/// `HALVES` of a tile from `FROM` on, times `VS` of the `V` vectors that the activations
/// interleave; prefetches the bytes of `ahead` if `PREFETCH`.
///
/// The integer accumulators of all `VS` vectors stay in registers (24 of 32 for twelve), and the
/// codes of four columns are unpacked once for all of them. Float32 accumulators that do not fit in
/// registers are kept in `out`, in L1, and are accessed once per block.
///
/// A single vector has two chains per half, to hide the latency of the dot product. The codes of
/// one chain stay in place in their bytes, which saves a shift: 1.15 times as fast at 2 bits and
/// 1.09 at 4 from the L2 cache of an Emerald Rapids core, and 1.27 at 1 bit from the L3 cache of a
/// Zen 4 core (where available, [`super::lookup`] is used for 1 bit now). An earlier version
/// unpacked the bits of few vectors with one GFNI instruction, which shares its ports with the dot
/// product there: four vectors reached 64% of the `vpdpbusd` rate with it, 73% with a shift and a
/// mask.
///
/// # Safety
/// The contract of [`crate::cpu::tile`], except that activations and `out` begin with the first of
/// the `VS` vectors; the features of `E`.
#[inline(always)]
unsafe fn pass<
    E: Dot,
    const BITS: usize,
    const V: usize,
    const VS: usize,
    const FROM: usize,
    const HALVES: usize,
    const PREFETCH: bool,
>(
    l: &Layout,
    first: usize,
    count: usize,
    tile: *const u8,
    acts: Int8Acts,
    ahead: Prefetch,
    out: *mut f32,
) {
    // In-place codes of more than two bits would exceed the range of `vpmaddubsw`.
    let in_place = V == 1 && (E::ANY_BYTE || BITS <= 2);
    let sub_bytes = 4 * SUB_COLS * BITS;
    let tail_bytes = l.tail_bytes();
    let mut p = tile.wrapping_add(l.group_offset(first));
    let mut next = ahead.at;
    let (mut x, mut sx, mut corr) = (acts.codes, acts.scales, acts.corrections);
    // SAFETY: every pointer advances through what the contract describes, in its order: the
    // sub-blocks of a group, its tail, the next group; codes of V vectors per sub-block; V scales
    // and corrections per block. When starting at a later vector, the last step of the activation
    // pointers ends past the buffers, where nothing is read. `out` is (VS, 32). Prefetches may use
    // any address.
    unsafe {
        let mut f = [[_mm512_setzero_ps(); HALVES]; VS];
        if in_registers(VS, HALVES) {
            for v in 0..VS {
                for h in 0..HALVES {
                    f[v][h] = _mm512_load_ps(out.add(v * TILE_ROWS + 16 * (FROM + h)));
                }
            }
        }
        for g in first..first + count {
            let mut subs = l.group_subs(g);
            let tail = p.add(subs * sub_bytes);
            let mut zero = [_mm512_setzero_si512(); HALVES];
            for h in 0..HALVES {
                zero[h] = zero_points_of_half(l, tail, FROM + h);
            }
            while subs > 0 {
                let block = subs.min(l.block_subs);
                subs -= block;
                let mut sums = [[_mm512_setzero_si512(); HALVES]; VS];
                for v in 0..VS {
                    let c = _mm512_set1_epi32(*corr.add(v));
                    for h in 0..HALVES {
                        sums[v][h] = match l.zero {
                            ZeroKind::Constant(_) => c,
                            // Both factors fit 16 bits, and the high words of the zero points are
                            // 0.
                            ZeroKind::PerGroup => _mm512_madd_epi16(zero[h], c),
                        };
                    }
                }
                // The odd chain of a single vector. With one bit the even chain is doubled at the
                // end, so that this chain starts with the corrections.
                let mut odd = [_mm512_setzero_si512(); HALVES];
                if V == 1 && BITS == 1 {
                    std::mem::swap(&mut sums[0], &mut odd);
                }
                for _ in 0..block {
                    // With one half, all prefetches at once: between the loads they kept the
                    // compiler from making broadcasts memory operands, and it spilled (8 bits).
                    if PREFETCH && HALVES == 1 {
                        for line in 0..ahead.lines {
                            _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(64 * line).cast());
                        }
                    }
                    unroll!(K in 0..8 => {
                        // With both halves they are spread: all at the start of a sub-block cost a
                        // sixth or more.
                        let lines = K * BITS / 4..(K + 1) * BITS / 4;
                        for line in if PREFETCH && HALVES == 2 { lines } else { 0..0 } {
                            let at = next.wrapping_add(64 * line);
                            if few(V) {
                                prefetch(at, p.wrapping_add(ahead.l2_distance + 64 * line));
                            } else if line < ahead.lines {
                                _mm_prefetch::<_MM_HINT_T1>(at.cast());
                            }
                        }
                        let mut w = [_mm512_setzero_si512(); HALVES];
                        for h in 0..HALVES {
                            w[h] = four_columns::<BITS>(p, K, FROM + h, in_place);
                        }
                        for v in 0..VS {
                            let four = x.add(v * SUB_COLS + 4 * K).cast::<i32>().read_unaligned();
                            let four = _mm512_set1_epi32(four);
                            for h in 0..HALVES {
                                let sum = if V == 1 && in_odd_chain(BITS, in_place, K) {
                                    &mut odd[h]
                                } else {
                                    &mut sums[v][h]
                                };
                                *sum = E::dot::<BITS>(*sum, w[h], four);
                            }
                        }
                    });
                    next = next.wrapping_add(if few(V) { sub_bytes } else { 64 * ahead.lines });
                    p = p.add(sub_bytes);
                    x = x.wrapping_add(V * SUB_COLS);
                }
                if V == 1 {
                    for (sum, odd) in sums[0].iter_mut().zip(odd) {
                        *sum = add_chains::<BITS>(*sum, odd, in_place);
                    }
                }
                let mut scale = [_mm512_setzero_ps(); HALVES];
                for h in 0..HALVES {
                    scale[h] = scales_of_half(l, tail, FROM + h);
                }
                for v in 0..VS {
                    let s = _mm512_set1_ps(*sx.add(v));
                    for h in 0..HALVES {
                        let sum = _mm512_cvtepi32_ps(sums[v][h]);
                        let s = _mm512_mul_ps(scale[h], s);
                        if !in_registers(VS, HALVES) {
                            let at = out.add(v * TILE_ROWS + 16 * (FROM + h));
                            _mm512_store_ps(at, _mm512_fmadd_ps(sum, s, _mm512_load_ps(at)));
                        } else {
                            f[v][h] = _mm512_fmadd_ps(sum, s, f[v][h]);
                        }
                    }
                }
                sx = sx.wrapping_add(V);
                corr = corr.wrapping_add(V);
            }
            p = p.add(tail_bytes);
            if PREFETCH && (few(V) || ahead.lines == 2 * BITS) {
                // The scales are a line of the stream too.
                if few(V) {
                    prefetch(next, tail.wrapping_add(ahead.l2_distance));
                } else {
                    _mm_prefetch::<_MM_HINT_T0>(next.cast());
                }
                next = next.wrapping_add(tail_bytes);
            }
        }
        if in_registers(VS, HALVES) {
            for v in 0..VS {
                for h in 0..HALVES {
                    _mm512_store_ps(out.add(v * TILE_ROWS + 16 * (FROM + h)), f[v][h]);
                }
            }
        }
    }
}
