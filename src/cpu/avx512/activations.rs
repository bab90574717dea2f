//! Quantising activations to int8.

use crate::quant::{TINY_AMAX, quantize_block};
use std::arch::x86_64::*;

/// One vector, as [`crate::cpu::tile::QuantizeFn`] says.
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
    for (b, (x, q)) in x.chunks(block).zip(codes.chunks_mut(block)).enumerate() {
        // SAFETY: the features are the caller's promise.
        let Some((scale, sum)) = (unsafe { quantize_one(x, q) }) else {
            return false;
        };
        (scales[b], sums[b]) = (scale, sum);
    }
    true
}

/// The first `n` of 16 lanes, or all of them.
#[inline(always)]
fn first(n: usize) -> u16 {
    if n >= 16 { u16::MAX } else { (1 << n) - 1 }
}

/// One block: bit for bit [`quantize_block`], and the sum of the codes; `None` if a value is not finite.
///
/// # Safety
/// AVX-512 F, BW, VL, DQ.
#[inline(always)]
unsafe fn quantize_one(x: &[f32], codes: &mut [i8]) -> Option<(f32, i32)> {
    assert_eq!(x.len(), codes.len());
    // SAFETY: loads and stores are masked to the slices, which are equally long.
    unsafe {
        // The bits of a magnitude order as integers, and what is not finite is largest.
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
            // Half to even, whatever the rounding mode of the calling thread is.
            let q = _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(
                scaled,
            );
            sum = _mm512_add_epi32(sum, q);
            _mm512_mask_cvtepi32_storeu_epi8(codes.as_mut_ptr().add(at).cast(), mask, q);
        }
        Some((amax / 127.0, _mm512_reduce_add_epi32(sum)))
    }
}
