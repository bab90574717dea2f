//! int8 activations, few vectors and several tiles: a stream of weights from memory.
//!
//! The arithmetic is that of [`super::int8`] for as many vectors, in loops of their own for
//! [`Layout::plain`] matrices. What differs is what surrounds it. A core reads fastest when nothing
//! but the weights misses its L1 cache, so that the hardware prefetchers see a single stream. A
//! kernel of one tile is called for each; where a tile and the activations exceed L1, the stack,
//! the layout and the output miss at every call, and on Zen 4 one vector at 2 bits, which has the
//! least time to catch up, read 25 GB/s where a loop without such calls read 32. Software prefetches
//! only cost that loop time.
//!
//! [`Layout::plain`]: crate::cpu::layout::Layout::plain

use super::int8::{add_chains, four_columns, in_odd_chain};
use crate::cpu::layout::{SUB_COLS, TILE_ROWS};
use crate::cpu::tile::Int8Acts;
use std::arch::x86_64::*;

/// Bytes of the scales of a group.
const TAIL_BYTES: usize = 2 * TILE_ROWS;

/// The contract of [`crate::cpu::tile::StreamFn`].
///
/// # Safety
/// AVX-512 F, BW, VL, DQ and VNNI; what the contract says.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,avx512vnni")]
pub(super) unsafe fn multiply<const BITS: usize, const V: usize>(
    tile: *const u8,
    tiles: usize,
    groups: usize,
    acts: Int8Acts,
    out: *mut f32,
) {
    // A single vector has two chains per half, to hide the latency of the dot product.
    let two_chains = V == 1;
    let mut p = tile;
    // SAFETY: `p` passes through the sub-blocks of a plain layout, each followed by its float16
    // scales; there are 32 codes, a scale and a correction per vector and group, and 32 floats per
    // vector and tile.
    unsafe {
        for t in 0..tiles {
            let mut f = [[_mm512_setzero_ps(); 2]; V];
            for g in 0..groups {
                let x = acts.codes.add(g * V * SUB_COLS);
                let mut sums = [[_mm512_setzero_si512(); 2]; V];
                for v in 0..V {
                    sums[v] = [_mm512_set1_epi32(*acts.corrections.add(g * V + v)); 2];
                }
                let mut odd = [_mm512_setzero_si512(); 2];
                unroll!(K in 0..8 => {
                    for half in 0..2 {
                        let codes = four_columns::<BITS>(p, K, half, two_chains);
                        for v in 0..V {
                            let four = x.add(v * SUB_COLS + 4 * K).cast::<i32>().read_unaligned();
                            let chain = match two_chains && in_odd_chain(BITS, true, K) {
                                true => &mut odd[half],
                                false => &mut sums[v][half],
                            };
                            *chain = _mm512_dpbusd_epi32(*chain, codes, _mm512_set1_epi32(four));
                        }
                    }
                });
                p = p.add(4 * SUB_COLS * BITS);
                if two_chains {
                    for half in 0..2 {
                        sums[0][half] = add_chains::<BITS>(sums[0][half], odd[half], true);
                    }
                }
                for half in 0..2 {
                    let scale = _mm512_cvtph_ps(_mm256_load_si256(p.add(32 * half).cast()));
                    for v in 0..V {
                        let scale =
                            _mm512_mul_ps(scale, _mm512_set1_ps(*acts.scales.add(g * V + v)));
                        let sum = _mm512_cvtepi32_ps(sums[v][half]);
                        f[v][half] = _mm512_fmadd_ps(sum, scale, f[v][half]);
                    }
                }
                p = p.add(TAIL_BYTES);
            }
            for v in 0..V {
                for half in 0..2 {
                    _mm512_store_ps(out.add((t * V + v) * TILE_ROWS + 16 * half), f[v][half]);
                }
            }
        }
    }
}
