//! Sign activations: xor and popcount.

use super::{Popcount, prefetch, scales};
use crate::cpu::layout::{Layout, SUB_COLS, TILE_ROWS};
use crate::cpu::tile::FLUSH_SUBS;
use std::arch::x86_64::*;

/// The prefetch distance in bytes.
const PREFETCH_DISTANCE: usize = 4096;

/// One tile times the signs of `V` vectors.
///
/// # Safety
/// The contract of [`crate::cpu::tile`]; the features of `E`.
#[inline(always)]
pub(super) unsafe fn tile<E: Popcount, const V: usize>(
    l: &Layout,
    tile: *const u8,
    x: *const u32,
    l2_distance: usize,
    out: *mut f32,
) {
    // SAFETY: the caller upholds this contract; the second six of twelve vectors follow the first
    // in each sub-block and in `out`.
    unsafe {
        match V {
            12 => {
                walk::<E, V, 6, true>(l, tile, x, l2_distance, out);
                walk::<E, V, 6, false>(l, tile, x.add(6), l2_distance, out.add(6 * TILE_ROWS));
            }
            _ => walk::<E, V, V, true>(l, tile, x, l2_distance, out),
        }
    }
}

/// `VS` of the `V` vectors that `x` interleaves; prefetches if `PREFETCH`.
///
/// # Safety
/// As [`tile`], except that `x` and `out` begin with the first of the `VS` vectors.
#[inline(always)]
unsafe fn walk<E: Popcount, const V: usize, const VS: usize, const PREFETCH: bool>(
    l: &Layout,
    tile: *const u8,
    x: *const u32,
    l2_distance: usize,
    out: *mut f32,
) {
    let sub_bytes = 4 * SUB_COLS;
    let (mut p, mut x) = (tile, x);
    let prefetch_ahead = |at: *const u8| {
        if PREFETCH {
            prefetch(
                at.wrapping_add(PREFETCH_DISTANCE),
                at.wrapping_add(l2_distance),
            );
        }
    };
    // SAFETY: `p` and `x` advance through the tile and the vectors as the contract lays them out.
    // When starting at a later vector, the last step of `x` ends past the vectors, where nothing is
    // read. `out` is (VS, 32).
    unsafe {
        let mut f = [[_mm512_setzero_ps(); 2]; VS];
        let mut sum = [[[_mm512_setzero_pd(); 2]; 2]; VS];
        for g in 0..l.shape.groups {
            let mut differ = [[_mm512_setzero_si512(); 2]; VS];
            for _ in 0..l.group_subs(g) {
                for half in 0..2 {
                    prefetch_ahead(p.wrapping_add(64 * half));
                    let w = _mm512_load_si512(p.add(64 * half).cast());
                    for v in 0..VS {
                        let xor = _mm512_xor_si512(w, _mm512_set1_epi32(*x.add(v) as i32));
                        differ[v][half] = _mm512_add_epi32(differ[v][half], E::popcount(xor));
                    }
                }
                p = p.add(sub_bytes);
                x = x.wrapping_add(V);
            }
            let cols = _mm512_set1_epi32(l.shape.group_columns(g).len() as i32);
            let scale = scales(l, p);
            for v in 0..VS {
                for half in 0..2 {
                    let product = _mm512_sub_epi32(cols, _mm512_slli_epi32::<1>(differ[v][half]));
                    f[v][half] =
                        _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), scale[half], f[v][half]);
                }
                if (g + 1) % FLUSH_SUBS == 0 {
                    super::f32::flush(&mut f[v], &mut sum[v]);
                }
            }
            prefetch_ahead(p);
            p = p.add(l.tail_bytes());
        }
        for v in 0..VS {
            super::f32::flush(&mut f[v], &mut sum[v]);
            super::f32::store(&sum[v], out.add(v * TILE_ROWS));
        }
    }
}
