//! Quantising activations to int8.

use crate::quant::{TINY_AMAX, quantize_block};
use std::arch::x86_64::*;

/// One vector, as [`crate::cpu::tile::QuantizeFn`] says.
///
/// # Safety
/// AVX2.
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
        let Some((scale, sum)) = (unsafe { quantize_one(x, q) }) else { return false };
        (scales[b], sums[b]) = (scale, sum);
    }
    true
}

/// One block: bit for bit [`quantize_block`], and the sum of the codes; `None` if a value is not finite.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn quantize_one(x: &[f32], codes: &mut [i8]) -> Option<(f32, i32)> {
    assert_eq!(x.len(), codes.len());
    let (eights, rest) = x.as_chunks::<8>();
    // The last values with zeros behind them, which change neither the largest magnitude nor the sum.
    let mut last = [0f32; 8];
    last[..rest.len()].copy_from_slice(rest);
    let eights = eights.iter().chain(std::iter::once(&last));
    // SAFETY: the features are the caller's promise; loads and stores are of whole arrays of eight.
    unsafe {
        // The bits of a magnitude order as integers, and what is not finite is largest.
        let magnitude = _mm256_set1_epi32(i32::MAX);
        let mut amax = _mm256_setzero_si256();
        for eight in eights.clone() {
            let v = _mm256_and_si256(_mm256_loadu_si256(eight.as_ptr().cast()), magnitude);
            amax = _mm256_max_epi32(amax, v);
        }
        let mut lanes = [0u32; 8];
        _mm256_storeu_si256(lanes.as_mut_ptr().cast(), amax);
        let amax = f32::from_bits(lanes.into_iter().fold(0, u32::max));
        if !amax.is_finite() {
            return None;
        }
        if amax < TINY_AMAX {
            let scale = quantize_block(x, codes);
            return Some((scale, codes.iter().map(|&q| q as i32).sum()));
        }
        let inverse = _mm256_set1_ps(127.0 / amax);
        let mut sum = _mm256_setzero_si256();
        for (eight, codes) in eights.zip(codes.chunks_mut(8)) {
            let scaled = _mm256_mul_ps(_mm256_loadu_ps(eight.as_ptr()), inverse);
            // Half to even, whatever the rounding mode of the calling thread is.
            const HALF_TO_EVEN: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            let q = _mm256_cvttps_epi32(_mm256_round_ps::<HALF_TO_EVEN>(scaled));
            sum = _mm256_add_epi32(sum, q);
            let words = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256::<1>(q));
            let mut bytes = [0i8; 8];
            _mm_storel_epi64(bytes.as_mut_ptr().cast(), _mm_packs_epi16(words, words));
            codes.copy_from_slice(&bytes[..codes.len()]);
        }
        let mut lanes = [0i32; 8];
        _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum);
        Some((amax / 127.0, lanes.into_iter().sum()))
    }
}
