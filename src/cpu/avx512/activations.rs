//! Quantising activations to int8.

use crate::quant::{TINY_AMAX, quantize_block};
use std::arch::x86_64::*;

/// One vector: see [`crate::cpu::tile::QuantizeFn`].
///
/// # Safety
/// AVX-512 F, BW, VL, DQ.
#[inline(always)]
pub(super) unsafe fn quantize(
    x: &[f32],
    block: usize,
    codes: &mut [i8],
    scales: &mut [f32],
    sums: &mut [i32],
) -> bool {
    let mut b = 0;
    // The end of the last four blocks that could not be quantised together.
    let mut alone = 0;
    while b * block < x.len() {
        let (x, codes) = (&x[b * block..], &mut codes[b * block..]);
        let (scales, sums) = (&mut scales[b..], &mut sums[b..]);
        if block == BLOCK
            && b >= alone
            && let Some(x) = x.first_chunk()
        {
            let codes = codes.first_chunk_mut().expect("as long as x");
            let scales = scales.first_chunk_mut().expect("one a block");
            let sums = sums.first_chunk_mut().expect("one a block");
            // SAFETY: the caller guarantees the features.
            if unsafe { quantize_four(x, codes, scales, sums) } {
                b += 4;
                continue;
            }
            alone = b + 4;
        }
        let cols = block.min(x.len());
        // SAFETY: as above.
        let Some((scale, sum)) = (unsafe { quantize_one(&x[..cols], &mut codes[..cols]) }) else {
            return false;
        };
        (scales[0], sums[0]) = (scale, sum);
        b += 1;
    }
    true
}

/// The block length for which four blocks are quantised together.
const BLOCK: usize = 32;

/// Reduces each of four registers of dwords with `$op`: lane `i` of the result is the reduction of
/// register `i`.
macro_rules! of_lanes {
    ($op:ident, $op256:ident, $op128:ident, $m:expr) => {{
        let [a, b, c, d] = $m;
        let ab = $op(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let cd = $op(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        let all = $op(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
        let half = $op256(
            _mm512_castsi512_si256(all),
            _mm512_extracti64x4_epi64::<1>(all),
        );
        $op128(
            _mm256_castsi256_si128(half),
            _mm256_extracti128_si256::<1>(half),
        )
    }};
}

/// Four blocks, with the same bits as [`quantize_one`], sharing cross-lane reductions and
/// divisions. Returns false, with nothing written, if a value is not finite or a block is so small
/// that it needs the quotient ([`TINY_AMAX`]).
///
/// # Safety
/// AVX-512 F, BW, VL, DQ.
#[inline(always)]
unsafe fn quantize_four(
    x: &[f32; 4 * BLOCK],
    codes: &mut [i8; 4 * BLOCK],
    scales: &mut [f32; 4],
    sums: &mut [i32; 4],
) -> bool {
    // SAFETY: the caller guarantees the features; loads and stores are within the arrays.
    unsafe {
        let mut v = [[_mm512_setzero_ps(); 2]; 4];
        let mut amax = [_mm512_setzero_si512(); 4];
        for b in 0..4 {
            for half in 0..2 {
                v[b][half] = _mm512_loadu_ps(x.as_ptr().add(BLOCK * b + 16 * half));
            }
            let [low, high] = v[b];
            amax[b] = _mm512_max_epu32(
                _mm512_castps_si512(_mm512_abs_ps(low)),
                _mm512_castps_si512(_mm512_abs_ps(high)),
            );
        }
        let amax = of_lanes!(_mm512_max_epu32, _mm256_max_epu32, _mm_max_epu32, amax);
        let amax = _mm_castsi128_ps(amax);
        let finite = _mm_cmp_ps_mask::<_CMP_LT_OQ>(amax, _mm_set1_ps(f32::INFINITY));
        let ordinary = _mm_cmp_ps_mask::<_CMP_GE_OQ>(amax, _mm_set1_ps(TINY_AMAX));
        if finite & ordinary != 0b1111 {
            return false;
        }
        let inverse = _mm512_castps128_ps512(_mm_div_ps(_mm_set1_ps(127.0), amax));
        let mut q = [[_mm512_setzero_si512(); 2]; 4];
        let mut sum = [_mm512_setzero_si512(); 4];
        for b in 0..4 {
            let inverse = _mm512_permutexvar_ps(_mm512_set1_epi32(b as i32), inverse);
            for half in 0..2 {
                let scaled = _mm512_mul_ps(v[b][half], inverse);
                // Half to even, whatever the thread's rounding mode.
                q[b][half] = _mm512_cvt_roundps_epi32::<
                    { _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC },
                >(scaled);
            }
            sum[b] = _mm512_add_epi32(q[b][0], q[b][1]);
        }
        // Packing works within 128-bit lanes: each holds four codes of either half of two blocks.
        let quarters = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        for two in 0..2 {
            let [first, second] = [q[2 * two], q[2 * two + 1]];
            let packed = _mm512_packs_epi16(
                _mm512_packs_epi32(first[0], first[1]),
                _mm512_packs_epi32(second[0], second[1]),
            );
            let packed = _mm512_permutexvar_epi32(quarters, packed);
            _mm512_storeu_si512(codes.as_mut_ptr().add(2 * BLOCK * two).cast(), packed);
        }
        _mm_storeu_ps(scales.as_mut_ptr(), _mm_div_ps(amax, _mm_set1_ps(127.0)));
        let sum = of_lanes!(_mm512_add_epi32, _mm256_add_epi32, _mm_add_epi32, sum);
        _mm_storeu_si128(sums.as_mut_ptr().cast(), sum);
        true
    }
}

/// A mask of the first `n` of 16 lanes, or of all of them.
#[inline(always)]
pub(super) fn first(n: usize) -> u16 {
    if n >= 16 { u16::MAX } else { (1 << n) - 1 }
}

/// One block, with the same bits as [`quantize_block`], and the sum of its codes; `None` if a value
/// is not finite.
///
/// # Safety
/// AVX-512 F, BW, VL, DQ.
#[inline(always)]
unsafe fn quantize_one(x: &[f32], codes: &mut [i8]) -> Option<(f32, i32)> {
    assert_eq!(x.len(), codes.len());
    // SAFETY: loads and stores are masked to the slices, which are equally long.
    unsafe {
        // The bits of magnitudes compare as integers, and those of non-finite values are the
        // largest.
        let mut amax = _mm512_setzero_si512();
        for at in (0..x.len()).step_by(16) {
            let v = _mm512_maskz_loadu_ps(first(x.len() - at), x.as_ptr().add(at));
            amax = _mm512_max_epu32(amax, _mm512_castps_si512(_mm512_abs_ps(v)));
        }
        let amax = f32::from_bits(_mm512_reduce_max_epu32(amax));
        if !amax.is_finite() {
            return None;
        }
        if amax < TINY_AMAX {
            let scale = quantize_block(x, codes);
            return Some((scale, codes.iter().map(|&q| q as i32).sum()));
        }
        let inverse = _mm512_set1_ps(127.0 / amax);
        let mut sum = _mm512_setzero_si512();
        for at in (0..x.len()).step_by(16) {
            let mask = first(x.len() - at);
            let v = _mm512_maskz_loadu_ps(mask, x.as_ptr().add(at));
            let scaled = _mm512_mul_ps(v, inverse);
            // Half to even, whatever the thread's rounding mode.
            let q = _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(
                scaled,
            );
            sum = _mm512_add_epi32(sum, q);
            _mm512_mask_cvtepi32_storeu_epi8(codes.as_mut_ptr().add(at).cast(), mask, q);
        }
        Some((amax / 127.0, _mm512_reduce_add_epi32(sum)))
    }
}
