//! Many vectors, two tiles at a time: fewer loads.
//!
//! An accumulator block `H` tile halves high and `V` vectors wide needs `H + V` register loads for
//! `H * V` multiply-adds. Intel cores execute two multiply-adds per cycle, and one 512-bit load or
//! store (measured on Ice Lake), a broadcast of four bytes included. Two halves and six vectors
//! need 8 loads for 12 multiply-adds and are load-bound; four halves need 10 for 24. The 24
//! accumulators of a block of columns fill the registers, so that the sums over the blocks are kept
//! in L1, and weights are unpacked beforehand: to bytes, in the order of 8 bits, or to floats.

use super::int8::four_columns;
use super::{scales, zero_points};
use crate::cpu::layout::{Layout, SUB_COLS, TILE_ROWS, ZeroKind};
use crate::cpu::tile::{Bytes, Int8Acts, Pairs, PairsF32, PairsInt8, Prefetch, WIDTHS};
use std::arch::x86_64::*;
use std::sync::atomic::{Ordering, compiler_fence};

/// Halves of two tiles.
const HALVES: usize = 4;

/// For AVX-512 as on Skylake-X: float32 only, because without VNNI a byte dot product takes two
/// multiplications above 4 bits.
///
/// Weights are unpacked for each panel, which 12 vectors do not earn back at 8 bits (0.8 times as
/// fast as one tile at a time; Ice Lake).
pub(super) const BASE: Pairs = Pairs {
    min_vectors: [2 * WIDTHS[0]; 4],
    float: Some(PairsF32 {
        float: by_width!(float),
    }),
    int8: None,
};

/// With VNNI: int8 too.
pub(super) const VNNI: Pairs = Pairs {
    int8: Some(PairsInt8 {
        bytes: [bytes::<1>, bytes::<2>, bytes::<4>, bytes::<8>],
        int8: by_int8_width!(int8),
    }),
    ..BASE
};

/// Keeps accumulators that are stored in memory there. The optimiser would otherwise carry them
/// through the loop in registers that it does not have, and spill others (without this float32 fell
/// from 91 to 62% of peak, int8 from 66 to 43%).
#[inline(always)]
fn sums_stay_in_memory() {
    compiler_fence(Ordering::SeqCst);
}

/// The contract of [`crate::cpu::tile::BytesFn`].
///
/// # Safety
/// What it says; AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,f16c")]
unsafe fn bytes<const BITS: usize>(
    l: &Layout,
    tile: *const u8,
    first: usize,
    count: usize,
    to: Bytes,
) {
    for i in 0..count {
        let (sub, tail) = l.sub_and_tail(first + i);
        // SAFETY: the tile has sub-block `first + i`, and the outputs have room for `count` of
        // them.
        unsafe {
            let (sub, tail) = (tile.add(sub), tile.add(tail));
            let codes = to.codes.add(i * SUB_COLS * TILE_ROWS);
            unroll!(K in 0..8 => {
                for half in 0..2 {
                    let four = four_columns::<BITS>(sub, K, half, false);
                    _mm512_store_si512(codes.add((2 * K + half) * 64).cast(), four);
                }
            });
            let scale = scales(l, tail);
            for half in 0..2 {
                let at = i * TILE_ROWS + 16 * half;
                _mm512_store_ps(to.scales.add(at), scale[half]);
                if l.zero == ZeroKind::PerGroup {
                    let zero = zero_points(l, tail)[half];
                    _mm512_store_si512(to.zeros.add(at).cast(), zero);
                }
            }
        }
    }
}

/// The contract of [`crate::cpu::tile::PairInt8Fn`].
///
/// # Safety
/// What it says; AVX-512 F, BW and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,fma")]
unsafe fn int8<const V: usize>(
    l: &Layout,
    count: usize,
    tiles: [Bytes; 2],
    x: Int8Acts,
    ahead: [Prefetch; 2],
    out: [*mut f32; 2],
) {
    let from = |v: usize| Int8Acts {
        codes: x.codes.wrapping_add(v * SUB_COLS),
        scales: x.scales.wrapping_add(v),
        corrections: x.corrections.wrapping_add(v),
    };
    let to = |v: usize| out.map(|out| out.wrapping_add(v * TILE_ROWS));
    // SAFETY: the caller upholds this contract; the second half of the vectors follows the first in
    // each sub-block, block and output.
    unsafe {
        match V {
            12 => {
                int8_walk::<V, 6, true>(l, count, tiles, x, ahead, out);
                int8_walk::<V, 6, false>(l, count, tiles, from(6), ahead, to(6));
            }
            8 => {
                int8_walk::<V, 4, true>(l, count, tiles, x, ahead, out);
                int8_walk::<V, 4, false>(l, count, tiles, from(4), ahead, to(4));
            }
            _ => int8_walk::<V, V, true>(l, count, tiles, x, ahead, out),
        }
    }
}

/// `VS` of the `V` vectors that the activations interleave.
///
/// # Safety
/// As [`int8`], except that activations and outputs begin with the first of the `VS` vectors.
#[inline(always)]
unsafe fn int8_walk<const V: usize, const VS: usize, const PREFETCH: bool>(
    l: &Layout,
    count: usize,
    tiles: [Bytes; 2],
    x: Int8Acts,
    ahead: [Prefetch; 2],
    out: [*mut f32; 2],
) {
    let mut left = count;
    let (mut codes, mut scales) = (tiles.map(|t| t.codes), tiles.map(|t| t.scales));
    let mut zeros = tiles.map(|t| t.zeros);
    let (mut x, mut sx, mut corr) = (x.codes, x.scales, x.corrections);
    let mut next = ahead.map(|a| a.at);
    // SAFETY: every pointer advances through what the contract describes, block after block. When
    // starting at a later vector, the last step of the activation pointers ends past the buffers,
    // where nothing is read.
    unsafe {
        while left > 0 {
            let block = l.block_subs.min(left);
            left -= block;
            let mut sums = [[_mm512_setzero_si512(); HALVES]; VS];
            for v in 0..VS {
                let c = _mm512_set1_epi32(*corr.add(v));
                for h in 0..HALVES {
                    sums[v][h] = match l.zero {
                        ZeroKind::Constant(_) => c,
                        // Both factors fit 16 bits, and the high words of the zero points are 0.
                        ZeroKind::PerGroup => {
                            let zero = zeros[h / 2].add(16 * (h % 2));
                            _mm512_madd_epi16(_mm512_load_si512(zero.cast()), c)
                        }
                    };
                }
            }
            for _ in 0..block {
                if PREFETCH {
                    for side in 0..2 {
                        for _ in 0..ahead[side].lines {
                            _mm_prefetch::<_MM_HINT_T1>(next[side].cast());
                            next[side] = next[side].wrapping_add(64);
                        }
                    }
                }
                unroll!(K in 0..8 => {
                    let mut w = [_mm512_setzero_si512(); HALVES];
                    for h in 0..HALVES {
                        let at = codes[h / 2].add((2 * K + h % 2) * 64);
                        w[h] = _mm512_load_si512(at.cast());
                    }
                    for v in 0..VS {
                        let four = x.add(v * SUB_COLS + 4 * K).cast::<i32>().read_unaligned();
                        let four = _mm512_set1_epi32(four);
                        for h in 0..HALVES {
                            sums[v][h] = _mm512_dpbusd_epi32(sums[v][h], w[h], four);
                        }
                    }
                });
                codes = codes.map(|codes| codes.add(SUB_COLS * TILE_ROWS));
                x = x.wrapping_add(V * SUB_COLS);
            }
            let mut scale = [_mm512_setzero_ps(); HALVES];
            for h in 0..HALVES {
                scale[h] = _mm512_load_ps(scales[h / 2].add(16 * (h % 2)));
            }
            for v in 0..VS {
                let s = _mm512_set1_ps(*sx.add(v));
                for h in 0..HALVES {
                    let at = out[h / 2].add(v * TILE_ROWS + 16 * (h % 2));
                    let sum = _mm512_cvtepi32_ps(sums[v][h]);
                    let s = _mm512_mul_ps(scale[h], s);
                    _mm512_store_ps(at, _mm512_fmadd_ps(sum, s, _mm512_load_ps(at)));
                }
            }
            sums_stay_in_memory();
            sx = sx.wrapping_add(V);
            corr = corr.wrapping_add(V);
            scales = scales.map(|scales| scales.add(block * TILE_ROWS));
            zeros = zeros.map(|zeros| zeros.wrapping_add(block * TILE_ROWS));
        }
    }
}

/// The contract of [`crate::cpu::tile::PairF32Fn`].
///
/// # Safety
/// What it says; AVX-512 F.
#[target_feature(enable = "avx512f,fma")]
unsafe fn float<const V: usize>(
    levels: [*const f32; 2],
    scales: [*const f32; 2],
    count: usize,
    x: *const f32,
    f: [*mut f32; 2],
) {
    let to = |v: usize| f.map(|f| f.wrapping_add(v * TILE_ROWS));
    // SAFETY: the caller upholds this contract; the second half of the vectors follows the first in
    // each column and output.
    unsafe {
        match V {
            12 => {
                float_walk::<V, 6>(levels, scales, count, x, f);
                float_walk::<V, 6>(levels, scales, count, x.add(6), to(6));
            }
            8 => {
                float_walk::<V, 4>(levels, scales, count, x, f);
                float_walk::<V, 4>(levels, scales, count, x.add(4), to(4));
            }
            _ => float_walk::<V, V>(levels, scales, count, x, f),
        }
    }
}

/// `VS` of the `V` vectors that `x` interleaves.
///
/// # Safety
/// As [`float`], except that `x` and `f` begin with the first of the `VS` vectors.
#[inline(always)]
unsafe fn float_walk<const V: usize, const VS: usize>(
    levels: [*const f32; 2],
    scales: [*const f32; 2],
    count: usize,
    x: *const f32,
    f: [*mut f32; 2],
) {
    let (mut w, mut scales, mut x) = (levels, scales, x);
    // SAFETY: `levels` are (count * 32, 32), `scales` (count, 32), `x` (count * 32, V), `f` (VS,
    // 32). When starting at a later vector, the last step of `x` ends past the buffer, where
    // nothing is read.
    unsafe {
        for _ in 0..count {
            for _ in 0..2 {
                let mut chain = [[_mm512_setzero_ps(); HALVES]; VS];
                for _ in 0..16 {
                    let mut column = [_mm512_setzero_ps(); HALVES];
                    for h in 0..HALVES {
                        column[h] = _mm512_load_ps(w[h / 2].add(16 * (h % 2)));
                    }
                    for v in 0..VS {
                        let xv = _mm512_set1_ps(*x.add(v));
                        for h in 0..HALVES {
                            chain[v][h] = _mm512_fmadd_ps(column[h], xv, chain[v][h]);
                        }
                    }
                    w = w.map(|w| w.add(TILE_ROWS));
                    x = x.wrapping_add(V);
                }
                let mut scale = [_mm512_setzero_ps(); HALVES];
                for h in 0..HALVES {
                    scale[h] = _mm512_load_ps(scales[h / 2].add(16 * (h % 2)));
                }
                for v in 0..VS {
                    for h in 0..HALVES {
                        let at = f[h / 2].add(v * TILE_ROWS + 16 * (h % 2));
                        let sum = _mm512_fmadd_ps(chain[v][h], scale[h], _mm512_load_ps(at));
                        _mm512_store_ps(at, sum);
                    }
                }
                sums_stay_in_memory();
            }
            scales = scales.map(|scales| scales.add(TILE_ROWS));
        }
    }
}
