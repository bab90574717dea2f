//! int8 activations: exact int32 sums in each block, float32 across the blocks.

use super::{Extensions, scales, zero_points};
use crate::cpu::layout::{Layout, SUB_COLS, TILE_ROWS, ZeroKind};
use crate::cpu::tile::Int8Acts;
use std::arch::x86_64::*;

/// The codes of four columns, `4k..4k + 4` of the sub-block, for the 16 rows of a half: unsigned bytes, one bit as 0/2.
///
/// # Safety
/// The features of `E`; `sub` points to a sub-block of `BITS`.
#[inline(always)]
unsafe fn four_columns<E: Extensions, const BITS: usize>(
    sub: *const u8,
    k: usize,
    half: usize,
) -> __m512i {
    let (q, p) = (k % BITS, k / BITS);
    // SAFETY: vector (q, half) lies in the sub-block, 64-byte aligned.
    unsafe {
        let v = _mm512_load_si512(sub.add((2 * q + half) * 64).cast());
        match BITS {
            1 => E::doubled_bit(v, p),
            8 => v,
            _ => {
                let mask = _mm512_set1_epi8((1 << BITS) - 1);
                let shift = _mm_cvtsi32_si128((BITS * p) as i32);
                _mm512_and_si512(if p == 0 { v } else { _mm512_srl_epi16(v, shift) }, mask)
            }
        }
    }
}

/// One tile times `V` vectors.
///
/// Integer sums of all vectors stay in registers (24 of 32 for twelve vectors); the codes of four columns are unpacked
/// once for all of them. One vector has two chains a half instead, to hide the latency of the dot product.
///
/// # Safety
/// The contract of [`crate::cpu::tile`]; the features of `E`.
#[inline(always)]
pub(super) unsafe fn tile<E: Extensions, const BITS: usize, const V: usize>(
    l: &Layout,
    tile: *const u8,
    acts: Int8Acts,
    ahead: *const u8,
    out: *mut f32,
) {
    let sub_bytes = 4 * SUB_COLS * BITS;
    let tail_bytes = l.tail_bytes();
    let (mut p, mut ahead) = (tile, ahead);
    let (mut x, mut sx, mut corr) = (acts.codes, acts.scales, acts.corrections);
    // SAFETY: every pointer walks through what the contract describes, in its order: the sub-blocks of a group, its
    // tail, the next group; codes of V vectors a sub-block; V scales and corrections a block. `out` is (V, 32).
    unsafe {
        let mut f = [[_mm512_setzero_ps(); 2]; V];
        for g in 0..l.shape.groups {
            let mut subs = l.group_subs(g);
            let tail = p.add(subs * sub_bytes);
            let zero = zero_points(l, tail);
            while subs > 0 {
                let block = subs.min(l.block_subs);
                subs -= block;
                let mut sums = [[_mm512_setzero_si512(); 2]; V];
                for v in 0..V {
                    let c = _mm512_set1_epi32(*corr.add(v));
                    sums[v] = match l.zero {
                        ZeroKind::Constant(_) => [c; 2],
                        // Both factors fit 16 bits, and the high words of the zero points are 0.
                        ZeroKind::PerGroup => {
                            [_mm512_madd_epi16(zero[0], c), _mm512_madd_epi16(zero[1], c)]
                        }
                    };
                }
                let mut second = [_mm512_setzero_si512(); 2];
                for _ in 0..block {
                    for line in 0..2 * BITS {
                        _mm_prefetch::<_MM_HINT_T0>(ahead.add(64 * line).cast());
                    }
                    for k in 0..8 {
                        let w = [
                            four_columns::<E, BITS>(p, k, 0),
                            four_columns::<E, BITS>(p, k, 1),
                        ];
                        for v in 0..V {
                            let four = x.add(v * SUB_COLS + 4 * k).cast::<i32>().read_unaligned();
                            let four = _mm512_set1_epi32(four);
                            for half in 0..2 {
                                let sum =
                                    if V == 1 && k % 2 == 1 { &mut second[half] } else { &mut sums[v][half] };
                                *sum = E::dot::<BITS>(*sum, w[half], four);
                            }
                        }
                    }
                    p = p.add(sub_bytes);
                    ahead = ahead.add(sub_bytes);
                    x = x.add(V * SUB_COLS);
                }
                if V == 1 {
                    sums[0] = [
                        _mm512_add_epi32(sums[0][0], second[0]),
                        _mm512_add_epi32(sums[0][1], second[1]),
                    ];
                }
                let scale = scales(l, tail);
                for v in 0..V {
                    let s = _mm512_set1_ps(*sx.add(v));
                    for half in 0..2 {
                        let sum = _mm512_cvtepi32_ps(sums[v][half]);
                        f[v][half] = _mm512_fmadd_ps(sum, _mm512_mul_ps(scale[half], s), f[v][half]);
                    }
                }
                sx = sx.add(V);
                corr = corr.add(V);
            }
            p = p.add(tail_bytes);
            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
            ahead = ahead.add(tail_bytes);
        }
        for v in 0..V {
            _mm512_storeu_ps(out.add(v * TILE_ROWS), f[v][0]);
            _mm512_storeu_ps(out.add(v * TILE_ROWS + 16), f[v][1]);
        }
    }
}
