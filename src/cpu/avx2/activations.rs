//! Quantising activations to int8.

use crate::quant::{TINY_AMAX, quantize_block};
use std::arch::x86_64::*;

/// One vector: see [`crate::cpu::tile::QuantizeFn`].
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
        // SAFETY: the caller guarantees the features.
        let Some((scale, sum)) = (unsafe { quantize_one(x, q) }) else {
            return false;
        };
        (scales[b], sums[b]) = (scale, sum);
    }
    true
}

/// One block, with the same bits as [`quantize_block`], and the sum of its codes; `None` if a value
/// is not finite.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn quantize_one(x: &[f32], codes: &mut [i8]) -> Option<(f32, i32)> {
    assert_eq!(x.len(), codes.len());
    let (eights, rest) = x.as_chunks::<8>();
    // The last values padded with zeros, which change neither the largest magnitude nor the sum.
    let mut last = [0f32; 8];
    last[..rest.len()].copy_from_slice(rest);
    // SAFETY: the caller guarantees the features.
    unsafe {
        // The bits of magnitudes compare as integers, and those of non-finite values are the
        // largest.
        let mut amax = magnitudes(&last);
        for eight in eights {
            amax = _mm256_max_epi32(amax, magnitudes(eight));
        }
        let amax = f32::from_bits(largest(amax) as u32);
        if !amax.is_finite() {
            return None;
        }
        if amax < TINY_AMAX {
            let scale = quantize_block(x, codes);
            return Some((scale, codes.iter().map(|&q| q as i32).sum()));
        }
        let inverse = _mm256_set1_ps(127.0 / amax);
        let (to, to_rest) = codes.as_chunks_mut::<8>();
        let mut sum = _mm256_setzero_si256();
        for (eight, to) in eights.iter().zip(to) {
            let q = rounded(eight, inverse);
            sum = _mm256_add_epi32(sum, q);
            *to = narrowed(q);
        }
        if !rest.is_empty() {
            let q = rounded(&last, inverse);
            sum = _mm256_add_epi32(sum, q);
            to_rest.copy_from_slice(&narrowed(q)[..rest.len()]);
        }
        Some((amax / 127.0, total(sum)))
    }
}

/// The bits of eight magnitudes.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn magnitudes(x: &[f32; 8]) -> __m256i {
    // SAFETY: AVX2.
    unsafe {
        _mm256_and_si256(
            _mm256_loadu_si256(x.as_ptr().cast()),
            _mm256_set1_epi32(i32::MAX),
        )
    }
}

/// `x * inverse`, rounded half to even whatever the thread's rounding mode.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn rounded(x: &[f32; 8], inverse: __m256) -> __m256i {
    const HALF_TO_EVEN: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    // SAFETY: AVX2.
    unsafe {
        let scaled = _mm256_mul_ps(_mm256_loadu_ps(x.as_ptr()), inverse);
        _mm256_cvttps_epi32(_mm256_round_ps::<HALF_TO_EVEN>(scaled))
    }
}

/// Eight int32 in -128..=127 as bytes.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn narrowed(q: __m256i) -> [i8; 8] {
    // SAFETY: AVX2.
    unsafe {
        let words = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256::<1>(q));
        _mm_cvtsi128_si64(_mm_packs_epi16(words, words))
            .to_le_bytes()
            .map(|b| b as i8)
    }
}

/// The largest of eight int32.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn largest(v: __m256i) -> i32 {
    // SAFETY: AVX2.
    unsafe {
        let v = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
        let v = _mm_max_epi32(v, _mm_shuffle_epi32::<0b01_00_11_10>(v));
        let v = _mm_max_epi32(v, _mm_shuffle_epi32::<0b10_11_00_01>(v));
        _mm_cvtsi128_si32(v)
    }
}

/// The sum of eight int32.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn total(v: __m256i) -> i32 {
    // SAFETY: AVX2.
    unsafe {
        let v = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
        let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0b01_00_11_10>(v));
        let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0b10_11_00_01>(v));
        _mm_cvtsi128_si32(v)
    }
}
