//! float32 activations, exact.

use super::levels::{Levels, Masked};
use super::{prefetch, scales, zero_points};
use crate::cpu::layout::{Layout, SUB_COLS, TILE_ROWS};
use crate::cpu::tile::FLUSH_SUBS;
use std::arch::x86_64::*;
use std::sync::atomic::{Ordering, compiler_fence};

/// The prefetch distance in bytes. At 8 bits, where the kernel reads most per unit of time, one
/// vector from memory reached 73 and 97% of read bandwidth with 3 KB, and 102 and 99% with 6 KB
/// (two alternating runs, Zen 4, 4096 × 4096).
const fn prefetch_distance(bits: usize) -> usize {
    if bits == 8 { 6144 } else { 3072 }
}

/// The dword vectors of a half of a sub-block, in the order of `q`.
///
/// # Safety
/// AVX-512 F; `sub` points to a sub-block of `BITS`.
#[inline(always)]
unsafe fn dwords<const BITS: usize>(sub: *const u8, half: usize) -> [__m512i; BITS] {
    // SAFETY: vector (q, half) lies in the sub-block, 64-byte aligned.
    unsafe {
        let mut v = [_mm512_setzero_si512(); BITS];
        for (q, v) in v.iter_mut().enumerate() {
            *v = _mm512_load_si512(sub.add((2 * q + half) * 64).cast());
        }
        v
    }
}

/// Flushes the float32 accumulators of 32 rows to float64.
///
/// # Safety
/// AVX-512 F.
#[inline(always)]
pub(super) unsafe fn flush(f: &mut [__m512; 2], sum: &mut [[__m512d; 2]; 2]) {
    for half in 0..2 {
        // SAFETY: AVX-512 F.
        unsafe {
            let [low, high] = widen(f[half]);
            sum[half] = [
                _mm512_add_pd(sum[half][0], low),
                _mm512_add_pd(sum[half][1], high),
            ];
            f[half] = _mm512_setzero_ps();
        }
    }
}

/// The low and the high eight floats as float64.
///
/// # Safety
/// AVX-512 F and DQ.
#[inline(always)]
pub(super) unsafe fn widen(v: __m512) -> [__m512d; 2] {
    // SAFETY: AVX-512 F and DQ.
    unsafe {
        [
            _mm512_cvtps_pd(_mm512_castps512_ps256(v)),
            _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(v)),
        ]
    }
}

/// Rounds the sums of 32 rows to float32.
///
/// # Safety
/// AVX-512 F; `out` is (32).
#[inline(always)]
pub(super) unsafe fn store(sum: &[[__m512d; 2]; 2], out: *mut f32) {
    for half in 0..2 {
        for part in 0..2 {
            // SAFETY: 8 of the 32 floats of `out`.
            unsafe {
                let rounded = _mm512_cvtpd_ps(sum[half][part]);
                _mm256_storeu_ps(out.add(16 * half + 8 * part), rounded);
            }
        }
    }
}

/// By bit width, the largest number of vectors for the fused kernel [`direct`]. It unpacks the
/// codes again for each block of vectors, but reads the tile as one stream and stores no levels.
/// Against unpacking once into the cache, with one thread on Zen 5, 4096 × 4096 from memory, fused
/// and unpacked, ms at 8 and at 4 bits: 4 vectors 0.87 and 3.5, 0.78 and 2.6; 8: 1.6 and 4.3, 1.4
/// and 3.1; 16: 3.1 and 5.9, 3.0 and 4.4; 64: 13.0 and 13.7, 13.0 and 12.0; 512: 99 and 102, 97 and
/// 93.
pub(super) const MAX_DIRECT_VECTORS: [usize; 4] = [48; 4];

/// [`direct_by`] with [`Masked`] levels.
///
/// # Safety
/// That of [`direct_by`].
#[inline(always)]
pub(super) unsafe fn direct<const BITS: usize, const V: usize>(
    l: &Layout,
    tile: *const u8,
    x: *const f32,
    l2_distance: usize,
    out: *mut f32,
) {
    // SAFETY: the caller upholds this contract.
    unsafe { direct_by::<Masked, BITS, V, false>(l, tile, x, l2_distance, out) }
}

/// One tile times `V` vectors, fused dequantise.
///
/// With one vector all four chains of a sub-block are interleaved: two at a time are bound by
/// latency, and took 1.3 times as long at 4 bits, 1.5 times at 2 and 1.05 times at 8 (Zen 4, from
/// cache). With more vectors there are enough chains, and those of the two runs of 16 columns are
/// computed one after the other so that they stay in registers. Either way a chain is the same sum.
/// With `SPLIT_HALVES`, two or more vectors process one half of the tile after the other.
///
/// # Safety
/// The contract of [`crate::cpu::tile`]; AVX-512 F, BW, VL, DQ.
#[inline(always)]
pub(super) unsafe fn direct_by<
    L: Levels,
    const BITS: usize,
    const V: usize,
    const SPLIT_HALVES: bool,
>(
    l: &Layout,
    tile: *const u8,
    x: *const f32,
    l2_distance: usize,
    out: *mut f32,
) {
    let sub_bytes = 4 * SUB_COLS * BITS;
    let (mut p, mut x) = (tile, x);
    // SAFETY: AVX-512 F and BW.
    let levels = unsafe { L::of_matrix::<BITS>(l) };
    let mut until_flush = FLUSH_SUBS;
    // SAFETY: `p` and `x` advance through the tile and the vectors as the contract lays them out.
    unsafe {
        let mut f = [[_mm512_setzero_ps(); 2]; V];
        let mut sum = [[[_mm512_setzero_pd(); 2]; 2]; V];
        for g in 0..l.shape.groups {
            let subs = l.group_subs(g);
            let tail = p.add(subs * sub_bytes);
            let (scale, zeros) = (scales(l, tail), zero_points(l, tail));
            let levels = [
                levels.of_group::<BITS>(zeros[0]),
                levels.of_group::<BITS>(zeros[1]),
            ];
            for _ in 0..subs {
                if const { V == 1 } {
                    sub_of_one::<L, BITS>(p, x, &scale, &levels, l2_distance, &mut f[0]);
                } else if const { V >= 2 && SPLIT_HALVES } {
                    for line in 0..2 * BITS {
                        let at = p.wrapping_add(64 * line);
                        prefetch(
                            at.wrapping_add(prefetch_distance(BITS)),
                            at.wrapping_add(l2_distance),
                        );
                    }
                    half_sub_of_few::<L, BITS, V, 0>(p, x, &scale, &levels, &mut f);
                    reload_barrier();
                    half_sub_of_few::<L, BITS, V, 1>(p, x, &scale, &levels, &mut f);
                } else {
                    sub_of_few::<L, BITS, V>(p, x, &scale, &levels, l2_distance, &mut f);
                }
                p = p.add(sub_bytes);
                x = x.add(SUB_COLS * V);
                until_flush -= 1;
                if until_flush == 0 {
                    for v in 0..V {
                        flush(&mut f[v], &mut sum[v]);
                    }
                    until_flush = FLUSH_SUBS;
                }
            }
            prefetch(
                p.wrapping_add(prefetch_distance(BITS)),
                p.wrapping_add(l2_distance),
            );
            p = p.add(l.tail_bytes());
        }
        for v in 0..V {
            flush(&mut f[v], &mut sum[v]);
            store(&sum[v], out.add(TILE_ROWS * v));
        }
    }
}

/// A sub-block times one vector, added to `f`.
///
/// # Safety
/// AVX-512 F; `p` is a sub-block, `x` its 32 activations.
#[inline(always)]
unsafe fn sub_of_one<L: Levels, const BITS: usize>(
    p: *const u8,
    x: *const f32,
    scale: &[__m512; 2],
    levels: &[L; 2],
    l2_distance: usize,
    f: &mut [__m512; 2],
) {
    // SAFETY: the caller upholds this contract.
    unsafe {
        let v = [dwords::<BITS>(p, 0), dwords::<BITS>(p, 1)];
        let mut chain = [[_mm512_setzero_ps(); 2]; 2];
        unroll!(I in 0..16 => {
            const Q: usize = I / 4;
            // Two lines every 16 / BITS columns: spread out, as in the int8 kernel.
            if I.is_multiple_of(16 / BITS) {
                for line in 0..2 {
                    let at = p.wrapping_add(8 * BITS * I + 64 * line);
                    prefetch(at.wrapping_add(prefetch_distance(BITS)), at.wrapping_add(l2_distance));
                }
            }
            let x = [_mm512_set1_ps(*x.add(I)), _mm512_set1_ps(*x.add(I + 16))];
            for half in 0..2 {
                let w = levels[half].level::<BITS>(v[half][Q % BITS], I);
                chain[0][half] = _mm512_fmadd_ps(w, x[0], chain[0][half]);
                let w = levels[half].level::<BITS>(v[half][(Q + 4) % BITS], I + 16);
                chain[1][half] = _mm512_fmadd_ps(w, x[1], chain[1][half]);
            }
        });
        for half in 0..2 {
            f[half] = _mm512_fmadd_ps(chain[0][half], scale[half], f[half]);
            f[half] = _mm512_fmadd_ps(chain[1][half], scale[half], f[half]);
        }
    }
}

/// A sub-block times `V` vectors, added to `f`.
///
/// # Safety
/// AVX-512 F; `p` is a sub-block, `x` `(32, V)`.
#[inline(always)]
unsafe fn sub_of_few<L: Levels, const BITS: usize, const V: usize>(
    p: *const u8,
    x: *const f32,
    scale: &[__m512; 2],
    levels: &[L; 2],
    l2_distance: usize,
    f: &mut [[__m512; 2]; V],
) {
    // SAFETY: the caller upholds this contract.
    unsafe {
        let dword = |q: usize, half: usize| _mm512_load_si512(p.add((2 * q + half) * 64).cast());
        macro_rules! chain {
            ($from:literal) => {
                let mut chain = [[_mm512_setzero_ps(); 2]; V];
                unroll!(I in 0..16 => {
                    const COL: usize = I + $from;
                    if I.is_multiple_of(16 / BITS) {
                        let line = $from / 16 * BITS + I * BITS / 16;
                        let at = p.wrapping_add(64 * line);
                        prefetch(at.wrapping_add(prefetch_distance(BITS)), at.wrapping_add(l2_distance));
                    }
                    let q = COL / 4 % BITS;
                    let w = [
                        levels[0].level::<BITS>(dword(q, 0), COL),
                        levels[1].level::<BITS>(dword(q, 1), COL),
                    ];
                    for v in 0..V {
                        let xv = _mm512_set1_ps(*x.add(COL * V + v));
                        for half in 0..2 {
                            chain[v][half] = _mm512_fmadd_ps(w[half], xv, chain[v][half]);
                        }
                    }
                });
                for v in 0..V {
                    for half in 0..2 {
                        f[v][half] = _mm512_fmadd_ps(chain[v][half], scale[half], f[v][half]);
                    }
                }
            };
        }
        chain!(0);
        chain!(16);
    }
}

/// One half of a sub-block times `V` vectors, added to its part of `f`.
///
/// # Safety
/// As for [`sub_of_few`].
#[inline(always)]
unsafe fn half_sub_of_few<L: Levels, const BITS: usize, const V: usize, const HALF: usize>(
    p: *const u8,
    x: *const f32,
    scale: &[__m512; 2],
    levels: &[L; 2],
    f: &mut [[__m512; 2]; V],
) {
    // SAFETY: the caller upholds this contract.
    unsafe {
        macro_rules! chain {
            ($from:literal) => {
                let mut chain = [_mm512_setzero_ps(); V];
                unroll!(I in 0..16 => {
                    const COL: usize = I + $from;
                    let q = COL / 4 % BITS;
                    let dword = _mm512_load_si512(p.add((2 * q + HALF) * 64).cast());
                    let w = levels[HALF].level::<BITS>(dword, COL);
                    for v in 0..V {
                        let xv = _mm512_set1_ps(*x.add(COL * V + v));
                        chain[v] = _mm512_fmadd_ps(w, xv, chain[v]);
                    }
                });
                for v in 0..V {
                    f[v][HALF] = _mm512_fmadd_ps(chain[v], scale[HALF], f[v][HALF]);
                }
            };
        }
        chain!(0);
        chain!(16);
    }
}

/// After this barrier, values are loaded again, as a memory operand of each multiply-add that uses
/// them.
#[inline(always)]
fn reload_barrier() {
    compiler_fence(Ordering::SeqCst);
}

/// [`unpack_by`] with [`Masked`] levels.
///
/// # Safety
/// That of [`unpack_by`].
#[inline(always)]
pub(super) unsafe fn unpack<const BITS: usize>(
    l: &Layout,
    tile: *const u8,
    first: usize,
    count: usize,
    levels: *mut f32,
    scales: *mut f32,
) {
    // SAFETY: the caller upholds this contract.
    unsafe { unpack_by::<Masked, BITS>(l, tile, first, count, levels, scales) }
}

/// Unpacks sub-blocks for [`panel`], and prefetches those that the next call will unpack: they
/// arrive while all vectors pass. Without that a cold tile took a tenth of the product (Zen 4, 512
/// vectors).
///
/// # Safety
/// The contract of [`crate::cpu::tile`]; AVX-512 F, BW, VL, DQ.
#[inline(always)]
pub(super) unsafe fn unpack_by<L: Levels, const BITS: usize>(
    l: &Layout,
    tile: *const u8,
    first: usize,
    count: usize,
    levels_out: *mut f32,
    scales_out: *mut f32,
) {
    // SAFETY: AVX-512 F and BW.
    let levels = unsafe { L::of_matrix::<BITS>(l) };
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
            let (scale, zeros) = (scales(l, tail), zero_points(l, tail));
            let out = levels_out.add(i * SUB_COLS * TILE_ROWS);
            for half in 0..2 {
                _mm512_store_ps(scales_out.add(i * TILE_ROWS + 16 * half), scale[half]);
                let v = dwords::<BITS>(sub, half);
                let levels = levels.of_group::<BITS>(zeros[half]);
                unroll!(I in 0..16 => {
                    const Q: usize = I / 4;
                    let w = levels.level::<BITS>(v[Q % BITS], I);
                    _mm512_store_ps(out.add(I * TILE_ROWS + 16 * half), w);
                    let w = levels.level::<BITS>(v[(Q + 4) % BITS], I + 16);
                    _mm512_store_ps(out.add((I + 16) * TILE_ROWS + 16 * half), w);
                });
            }
        }
    }
}

/// Unpacked sub-blocks times `V` vectors, added to `f`.
///
/// Twelve vectors are two passes of six and eight are two of four, whose accumulators `f` stay in
/// registers beside the chains. In one pass `f` was kept in L1, and its stores, two cycles each on
/// Zen 4, were not hidden behind the multiply-adds: 28.5 cycles per column of 24 of them, against
/// 26.1 in two passes (25.5 is the minimum: 17 multiply-adds for 16 columns).
///
/// # Safety
/// The contract of [`crate::cpu::tile`]; AVX-512 F.
#[inline(always)]
pub(super) unsafe fn panel<const V: usize>(
    levels: *const f32,
    scales: *const f32,
    count: usize,
    x: *const f32,
    f: *mut f32,
) {
    // SAFETY: the caller upholds this contract; the second half of the vectors follows the first in
    // each column, and in `f`.
    unsafe {
        match V {
            12 => {
                panel_pass::<V, 6, 0, 2>(levels, scales, count, x, f);
                panel_pass::<V, 6, 0, 2>(levels, scales, count, x.add(6), f.add(6 * TILE_ROWS));
            }
            8 => {
                panel_pass::<V, 4, 0, 2>(levels, scales, count, x, f);
                panel_pass::<V, 4, 0, 2>(levels, scales, count, x.add(4), f.add(4 * TILE_ROWS));
            }
            _ => panel_pass::<V, V, 0, 2>(levels, scales, count, x, f),
        }
    }
}

/// One half after the other of unpacked sub-blocks times `V` vectors, added to `f`.
///
/// # Safety
/// That of [`panel`].
#[inline(always)]
pub(super) unsafe fn panel_split_halves<const V: usize>(
    levels: *const f32,
    scales: *const f32,
    count: usize,
    x: *const f32,
    f: *mut f32,
) {
    // SAFETY: the caller upholds this contract.
    unsafe {
        if const { V < 4 } {
            return panel::<V>(levels, scales, count, x, f);
        }
        panel_pass::<V, V, 0, 1>(levels, scales, count, x, f);
        panel_pass::<V, V, 1, 1>(levels, scales, count, x, f);
    }
}

/// `HALVES` of unpacked sub-blocks from `FROM` on, times `VS` of the `V` vectors that `x`
/// interleaves.
///
/// # Safety
/// The contract of [`crate::cpu::tile`], except that `x` and `f` begin with the first of the `VS`
/// vectors; AVX-512 F.
#[inline(always)]
unsafe fn panel_pass<const V: usize, const VS: usize, const FROM: usize, const HALVES: usize>(
    levels: *const f32,
    scales: *const f32,
    count: usize,
    x: *const f32,
    f: *mut f32,
) {
    let (mut w, mut x) = (levels, x);
    // SAFETY: `levels` is (count * 32, 32), `scales` (count, 32), `x` (count * 32, V), `f` (VS,
    // 32). When starting at a later vector, the last step of `x` ends past the buffer, where
    // nothing is read.
    unsafe {
        let at = |v: usize, h: usize| f.add(v * TILE_ROWS + 16 * (FROM + h));
        let mut sums = [[_mm512_setzero_ps(); HALVES]; VS];
        for v in 0..VS {
            for h in 0..HALVES {
                sums[v][h] = _mm512_load_ps(at(v, h));
            }
        }
        // A single loop: with an inner loop of two, the compiler would keep the chains of both
        // until the end, and move accumulators out of registers.
        for i in 0..2 * count {
            let mut chain = [[_mm512_setzero_ps(); HALVES]; VS];
            for _ in 0..16 {
                let mut column = [_mm512_setzero_ps(); HALVES];
                for h in 0..HALVES {
                    column[h] = _mm512_load_ps(w.add(16 * (FROM + h)));
                }
                for v in 0..VS {
                    let xv = _mm512_set1_ps(*x.add(v));
                    for h in 0..HALVES {
                        chain[v][h] = _mm512_fmadd_ps(column[h], xv, chain[v][h]);
                    }
                }
                w = w.add(TILE_ROWS);
                x = x.wrapping_add(V);
            }
            for h in 0..HALVES {
                let scale = scales.add(i / 2 * TILE_ROWS + 16 * (FROM + h));
                let scale = _mm512_load_ps(scale);
                for v in 0..VS {
                    sums[v][h] = _mm512_fmadd_ps(chain[v][h], scale, sums[v][h]);
                }
            }
        }
        for v in 0..VS {
            for h in 0..HALVES {
                _mm512_store_ps(at(v, h), sums[v][h]);
            }
        }
    }
}
