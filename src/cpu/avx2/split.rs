//! Splitting float32 activations into int8 digits: see [`crate::quant::split_block`].

use crate::cpu::tile::SplitTo;
use crate::quant::{SPLIT_FULL_BLOCK, SPLIT_KEPT, SPLIT_LARGEST, split_scale};
use std::arch::x86_64::*;

/// Floats of a vector.
const LANES: usize = 8;

/// The contract of [`crate::cpu::tile::SplitFn`].
///
/// # Safety
/// AVX2 and POPCNT.
#[target_feature(enable = "avx2,popcnt")]
pub(super) unsafe fn split(x: &[f32], block: usize, to: SplitTo<'_>) -> Option<f32> {
    let SplitTo {
        mut digits,
        scales,
        sums,
    } = to;
    let mut largest = 0f32;
    for (b, x) in x.chunks(block).enumerate() {
        let start = b * block;
        let (whole, rest) = x.as_chunks::<LANES>();
        // Zeros after the last elements do not change what follows.
        let mut last = [0.0; LANES];
        last[..rest.len()].copy_from_slice(rest);
        let last = &[last][..usize::from(!rest.is_empty())];
        // The bits of magnitudes compare as integers, and those of non-finite values are the
        // largest.
        let mut top = _mm256_setzero_si256();
        for eight in whole.iter().chain(last) {
            top = _mm256_max_epi32(top, _mm256_castps_si256(magnitudes(load(eight))));
        }
        let top = lanes(top).into_iter().max().expect("eight of them");
        let top = f32::from_bits(top.cast_unsigned());
        if top.is_nan() || top >= SPLIT_LARGEST {
            return None;
        }
        largest = largest.max(top);
        let scale = split_scale(top);
        let mut state = Block {
            inverse: 1.0 / scale,
            least: SPLIT_KEPT * scale,
            kept: 0,
            nonzero: 0,
            outer: _mm256_setzero_si256(),
            inner: _mm256_setzero_si256(),
        };
        for (i, eight) in whole.iter().enumerate() {
            for (digits, of_eight) in digits.iter_mut().zip(state.split(eight)) {
                digits[start + i * LANES..][..LANES].copy_from_slice(&of_eight);
            }
        }
        for eight in last {
            for (digits, of_eight) in digits.iter_mut().zip(state.split(eight)) {
                let to = &mut digits[start + x.len() - rest.len()..][..rest.len()];
                to.copy_from_slice(&of_eight[..rest.len()]);
            }
        }
        if top >= SPLIT_FULL_BLOCK && 2 * state.kept < state.nonzero {
            return None;
        }
        scales[b] = scale;
        // A lane past the end of the block counts as the 128 of a zero digit.
        let offset = 128 * x.len().next_multiple_of(LANES) as i32;
        let outer = lanes(state.outer).into_iter().sum::<i32>().cast_unsigned();
        sums[0][b] = (outer & 0xffff) as i32 - offset;
        sums[1][b] = lanes(state.inner).into_iter().sum::<i32>() - offset;
        sums[2][b] = (outer >> 16) as i32 - offset;
    }
    Some(largest)
}

/// A block that is being split.
struct Block {
    inverse: f32,
    /// Elements from here on keep eleven bits.
    least: f32,
    kept: u32,
    nonzero: u32,
    /// The sums of low and high bytes, which share a lane: at most 16 of 255 in each.
    outer: __m256i,
    inner: __m256i,
}

impl Block {
    /// The digits of eight elements, the least significant first.
    #[target_feature(enable = "avx2,popcnt")]
    #[inline]
    fn split(&mut self, eight: &[f32; LANES]) -> [[i8; LANES]; 3] {
        let v = load(eight);
        let size = magnitudes(v);
        let least = _mm256_set1_ps(self.least);
        let count = |mask: __m256| _mm256_movemask_ps(mask).count_ones();
        self.kept += count(_mm256_cmp_ps::<_CMP_GE_OQ>(size, least));
        self.nonzero += count(_mm256_cmp_ps::<_CMP_NEQ_OQ>(size, _mm256_setzero_ps()));
        // Half to even, whatever the thread's rounding mode.
        let fixed = _mm256_cvttps_epi32(_mm256_round_ps::<
            { _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC },
        >(_mm256_mul_ps(v, _mm256_set1_ps(self.inverse))));
        let half = _mm256_set1_epi32(0x80_8080);
        let outer_bytes = _mm256_set1_epi32(0xff_00ff);
        let bytes = _mm256_add_epi32(fixed, half);
        self.outer = _mm256_add_epi32(self.outer, _mm256_and_si256(bytes, outer_bytes));
        let second = _mm256_srli_epi32::<8>(bytes);
        self.inner = _mm256_add_epi32(self.inner, _mm256_and_si256(second, outer_bytes));
        // In each half of the register the digits of four elements, by significance.
        let order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let signed = _mm256_xor_si256(bytes, half);
        let signed = _mm256_shuffle_epi8(signed, _mm256_broadcastsi128_si256(order));
        let signed = _mm256_permutevar8x32_epi32(signed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        let mut digits = [[0; LANES]; 4];
        // SAFETY: 32 bytes.
        unsafe { _mm256_storeu_si256(digits.as_mut_ptr().cast(), signed) };
        [digits[0], digits[1], digits[2]]
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn load(eight: &[f32; LANES]) -> __m256 {
    // SAFETY: eight floats.
    unsafe { _mm256_loadu_ps(eight.as_ptr()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn magnitudes(v: __m256) -> __m256 {
    _mm256_andnot_ps(_mm256_set1_ps(-0.0), v)
}

#[target_feature(enable = "avx2")]
#[inline]
fn lanes(v: __m256i) -> [i32; LANES] {
    let mut lanes = [0; LANES];
    // SAFETY: 32 bytes.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), v) };
    lanes
}
