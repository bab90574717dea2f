//! Sign activations: xor and popcount.

use super::{Extensions, OCTETS, prefetch, scales};
use crate::cpu::layout::{Layout, SUB_COLS, TILE_ROWS};
use crate::cpu::tile::FLUSH_SUBS;
use std::arch::x86_64::*;

/// Sub-blocks whose popcounts, at most 8 per byte, fit a byte.
const BYTE_SUBS: usize = 31;

/// Set bits of each byte.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn popcount(v: __m256i) -> __m256i {
    // SAFETY: AVX2.
    unsafe {
        let table = _mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
        let table = _mm256_broadcastsi128_si256(table);
        let nibble = _mm256_set1_epi8(15);
        let low = _mm256_and_si256(v, nibble);
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(v), nibble);
        _mm256_add_epi8(
            _mm256_shuffle_epi8(table, low),
            _mm256_shuffle_epi8(table, high),
        )
    }
}

/// One tile times the signs of `V` vectors.
///
/// The vectors process a group one after the other: the group is in L1, and the bits need no
/// unpacking.
///
/// # Safety
/// The contract of [`crate::cpu::tile`]; the features of `E`.
#[inline(always)]
pub(super) unsafe fn tile<E: Extensions, const V: usize>(
    l: &Layout,
    tile: *const u8,
    x: *const u32,
    l2_distance: usize,
    out: *mut f32,
) {
    let sub_bytes = 4 * SUB_COLS;
    let (mut p, mut x) = (tile, x);
    // SAFETY: `p` and `x` advance through the tile and the vectors as the contract lays them out;
    // `out` is (V, 32).
    unsafe {
        let mut f = [[_mm256_setzero_ps(); OCTETS]; V];
        let mut sum = [[[_mm256_setzero_pd(); 2]; OCTETS]; V];
        for g in 0..l.shape.groups {
            let subs = l.group_subs(g);
            let bytes = subs * sub_bytes + l.tail_bytes();
            prefetch(p.wrapping_add(4096), p.wrapping_add(l2_distance), bytes);
            let cols = _mm256_set1_epi32(l.shape.group_columns(g).len() as i32);
            let tail = p.add(subs * sub_bytes);
            for v in 0..V {
                let differ = differences::<E, V>(p, x.add(v), subs);
                for o in 0..OCTETS {
                    let product = _mm256_sub_epi32(cols, _mm256_add_epi32(differ[o], differ[o]));
                    let scale = scales(l, tail, o);
                    f[v][o] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(product), scale, f[v][o]);
                }
                if (g + 1) % FLUSH_SUBS == 0 {
                    super::f32::flush(&mut f[v], &mut sum[v]);
                }
            }
            p = p.add(bytes);
            x = x.add(subs * V);
        }
        for v in 0..V {
            super::f32::flush(&mut f[v], &mut sum[v]);
            super::f32::store(&sum[v], out.add(v * TILE_ROWS));
        }
    }
}

/// The number of columns in which each row of a group differs from one of `V` vectors.
///
/// # Safety
/// The features of `E`; `p` points to a group of `subs` 1-bit sub-blocks, `x` to the vector's dword
/// of the first of them.
#[inline(always)]
unsafe fn differences<E: Extensions, const V: usize>(
    p: *const u8,
    x: *const u32,
    subs: usize,
) -> [__m256i; OCTETS] {
    let (mut p, mut x) = (p, x);
    // SAFETY: sub-blocks of 128 bytes, 32-byte aligned octets; the vector's dwords are V apart.
    unsafe {
        let mut differ = [_mm256_setzero_si256(); OCTETS];
        let mut left = subs;
        while left > 0 {
            let run = left.min(BYTE_SUBS);
            left -= run;
            let mut bytes = [_mm256_setzero_si256(); OCTETS];
            for _ in 0..run {
                let signs = _mm256_set1_epi32(*x as i32);
                for (o, bytes) in bytes.iter_mut().enumerate() {
                    let w = _mm256_load_si256(p.add(32 * o).cast());
                    *bytes = _mm256_add_epi8(*bytes, popcount(_mm256_xor_si256(w, signs)));
                }
                p = p.add(4 * SUB_COLS);
                x = x.wrapping_add(V);
            }
            for (differ, bytes) in differ.iter_mut().zip(bytes) {
                *differ = E::add_bytes(*differ, bytes);
            }
        }
        differ
    }
}
