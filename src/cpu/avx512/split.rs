//! Splitting float32 activations into int8 digits: see [`crate::quant::split_block`].

use super::activations::first;
use crate::cpu::tile::SplitTo;
use crate::quant::{SPLIT_FULL_BLOCK, SPLIT_KEPT, SPLIT_LARGEST, split_scale};
use std::arch::x86_64::*;

/// The contract of [`crate::cpu::tile::SplitFn`].
///
/// # Safety
/// AVX-512 F, BW, VL, DQ and POPCNT.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,popcnt")]
pub(super) unsafe fn split(x: &[f32], block: usize, to: SplitTo<'_>) -> Option<f32> {
    let SplitTo {
        digits: [low, middle, high],
        scales,
        sums: [low_sums, middle_sums, high_sums],
    } = to;
    assert!([low.len(), middle.len(), high.len()] == [x.len(); 3]);
    let mut largest = 0f32;
    for (b, x) in x.chunks(block).enumerate() {
        let start = b * block;
        // SAFETY: loads and stores are masked to the block, which lies within each slice of digits.
        unsafe {
            // The bits of magnitudes compare as integers, and those of non-finite values are the
            // largest.
            let mut top = _mm512_setzero_si512();
            for at in (0..x.len()).step_by(16) {
                let v = _mm512_maskz_loadu_ps(first(x.len() - at), x.as_ptr().add(at));
                top = _mm512_max_epu32(top, _mm512_castps_si512(_mm512_abs_ps(v)));
            }
            let top = f32::from_bits(_mm512_reduce_max_epu32(top));
            if top.is_nan() || top >= SPLIT_LARGEST {
                return None;
            }
            largest = largest.max(top);
            let scale = split_scale(top);
            let inverse = _mm512_set1_ps(1.0 / scale);
            let least = _mm512_set1_ps(SPLIT_KEPT * scale);
            let half = _mm512_set1_epi32(0x80_8080);
            let outer_bytes = _mm512_set1_epi32(0xff_00ff);
            let (mut kept, mut nonzero) = (0, 0);
            // The sums of low and high bytes share a register: at most 8 of 255 in each lane.
            let (mut outer, mut inner) = (_mm512_setzero_si512(), _mm512_setzero_si512());
            for at in (0..x.len()).step_by(16) {
                let mask = first(x.len() - at);
                let v = _mm512_maskz_loadu_ps(mask, x.as_ptr().add(at));
                let size = _mm512_abs_ps(v);
                kept += _mm512_cmp_ps_mask::<_CMP_GE_OQ>(size, least).count_ones();
                nonzero +=
                    _mm512_cmp_ps_mask::<_CMP_NEQ_OQ>(size, _mm512_setzero_ps()).count_ones();
                // Half to even, whatever the thread's rounding mode.
                let fixed = _mm512_cvt_roundps_epi32::<
                    { _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC },
                >(_mm512_mul_ps(v, inverse));
                let bytes = _mm512_add_epi32(fixed, half);
                outer = _mm512_add_epi32(outer, _mm512_and_si512(bytes, outer_bytes));
                let second = _mm512_srli_epi32::<8>(bytes);
                inner = _mm512_add_epi32(inner, _mm512_and_si512(second, outer_bytes));
                let signed = _mm512_xor_si512(bytes, half);
                let at = start + at;
                let low = low.as_mut_ptr().add(at);
                _mm512_mask_cvtepi32_storeu_epi8(low.cast(), mask, signed);
                let middle = middle.as_mut_ptr().add(at);
                _mm512_mask_cvtepi32_storeu_epi8(
                    middle.cast(),
                    mask,
                    _mm512_srli_epi32::<8>(signed),
                );
                let high = high.as_mut_ptr().add(at);
                _mm512_mask_cvtepi32_storeu_epi8(
                    high.cast(),
                    mask,
                    _mm512_srli_epi32::<16>(signed),
                );
            }
            if top >= SPLIT_FULL_BLOCK && 2 * kept < nonzero {
                return None;
            }
            scales[b] = scale;
            // A lane past the end of the block counts as the 128 of a zero digit.
            let lanes = x.len().next_multiple_of(16) as i32;
            let outer = _mm512_reduce_add_epi32(outer) as u32;
            low_sums[b] = (outer & 0xffff) as i32 - 128 * lanes;
            middle_sums[b] = _mm512_reduce_add_epi32(inner) - 128 * lanes;
            high_sums[b] = (outer >> 16) as i32 - 128 * lanes;
        }
    }
    Some(largest)
}
