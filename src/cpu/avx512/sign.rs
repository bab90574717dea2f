//! Sign activations: exclusive or and popcount.

use super::{Popcount, prefetch, scales};
use crate::cpu::layout::{Layout, SUB_COLS, TILE_ROWS};
use crate::cpu::tile::FLUSH_SUBS;
use std::arch::x86_64::*;

/// How far before what it works on the kernel calls for bytes.
const AHEAD: usize = 4096;

/// One tile times the signs of `V` vectors.
///
/// # Safety
/// The contract of [`crate::cpu::tile`]; the features of `E`.
#[inline(always)]
pub(super) unsafe fn tile<E: Popcount, const V: usize>(
    l: &Layout,
    tile: *const u8,
    x: *const u32,
    far: usize,
    out: *mut f32,
) {
    let sub_bytes = 4 * SUB_COLS;
    let (mut p, mut x) = (tile, x);
    // SAFETY: `p` and `x` walk through the tile and the vectors as the contract lays them out; `out` is (V, 32).
    unsafe {
        let mut f = [[_mm512_setzero_ps(); 2]; V];
        let mut sum = [[[_mm512_setzero_pd(); 2]; 2]; V];
        for g in 0..l.shape.groups {
            let mut differ = [[_mm512_setzero_si512(); 2]; V];
            for _ in 0..l.group_subs(g) {
                for half in 0..2 {
                    let at = p.wrapping_add(64 * half);
                    prefetch(at.wrapping_add(AHEAD), at.wrapping_add(far));
                    let w = _mm512_load_si512(p.add(64 * half).cast());
                    for v in 0..V {
                        let xor = _mm512_xor_si512(w, _mm512_set1_epi32(*x.add(v) as i32));
                        differ[v][half] = _mm512_add_epi32(differ[v][half], E::popcount(xor));
                    }
                }
                p = p.add(sub_bytes);
                x = x.add(V);
            }
            let cols = _mm512_set1_epi32(l.shape.group_columns(g).len() as i32);
            let scale = scales(l, p);
            for v in 0..V {
                for half in 0..2 {
                    let product = _mm512_sub_epi32(cols, _mm512_slli_epi32::<1>(differ[v][half]));
                    f[v][half] =
                        _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), scale[half], f[v][half]);
                }
                if (g + 1) % FLUSH_SUBS == 0 {
                    super::f32::flush(&mut f[v], &mut sum[v]);
                }
            }
            prefetch(p.wrapping_add(AHEAD), p.wrapping_add(far));
            p = p.add(l.tail_bytes());
        }
        for v in 0..V {
            super::f32::flush(&mut f[v], &mut sum[v]);
            super::f32::store(&sum[v], out.add(v * TILE_ROWS));
        }
    }
}
