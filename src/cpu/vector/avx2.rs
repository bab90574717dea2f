//! AVX2, FMA, F16C: 16 lanes are two registers.

use std::arch::x86_64::*;

use half::f16;

use super::lanes::{self, Lanes};
use super::{Chunk, Table, attention, by_rows, elementwise, vector_table};
use crate::cpu::Isa;

/// Exists only inside functions that enable the features of this level.
#[derive(Clone, Copy)]
struct Avx2(());

/// An expression of intrinsics, given a value that proves that the processor can execute them.
macro_rules! with {
    ($proof:expr, $e:expr) => {{
        let Avx2(()) = $proof;
        // SAFETY: the proof was created in a function that enables avx2, fma and f16c, whose
        // callers know that the processor has them; the memory operands are references to whole
        // vectors, except those of prefetches, which may use any address.
        unsafe { $e }
    }};
}

type Pair = [__m256; 2];

impl Lanes for Avx2 {
    type F = Pair;

    #[inline(always)]
    fn splat(self, v: f32) -> Pair {
        with!(self, [_mm256_set1_ps(v); 2])
    }

    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> Pair {
        let (low, high) = from.split_at(8);
        with!(
            self,
            [
                _mm256_loadu_ps(low.as_ptr()),
                _mm256_loadu_ps(high.as_ptr())
            ]
        )
    }

    #[inline(always)]
    fn widen(self, from: &[f16; 16]) -> Pair {
        let (low, high) = from.split_at(8);
        with!(
            self,
            [
                _mm256_cvtph_ps(_mm_loadu_si128(low.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(high.as_ptr().cast()))
            ]
        )
    }

    #[inline(always)]
    fn store(self, v: Pair, to: &mut [f32; 16]) {
        let (low, high) = to.split_at_mut(8);
        with!(self, {
            _mm256_storeu_ps(low.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(high.as_mut_ptr(), v[1]);
        })
    }

    #[inline(always)]
    fn narrow(self, v: Pair, to: &mut [f16; 16]) {
        let (low, high) = to.split_at_mut(8);
        with!(self, {
            let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[0]);
            _mm_storeu_si128(low.as_mut_ptr().cast(), half);
            let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[1]);
            _mm_storeu_si128(high.as_mut_ptr().cast(), half);
        })
    }

    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        with!(self, [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        with!(self, [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn div(self, a: Pair, b: Pair) -> Pair {
        with!(self, [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn mul_add(self, a: Pair, b: Pair, c: Pair) -> Pair {
        with!(
            self,
            [
                _mm256_fmadd_ps(a[0], b[0], c[0]),
                _mm256_fmadd_ps(a[1], b[1], c[1])
            ]
        )
    }

    #[inline(always)]
    fn max(self, a: Pair, b: Pair) -> Pair {
        with!(self, [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn min(self, a: Pair, b: Pair) -> Pair {
        with!(self, [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn round(self, v: Pair) -> Pair {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        with!(
            self,
            [
                _mm256_round_ps::<NEAREST>(v[0]),
                _mm256_round_ps::<NEAREST>(v[1])
            ]
        )
    }

    #[inline(always)]
    fn power_of_two(self, n: Pair) -> Pair {
        with!(self, {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_add_epi32(_mm256_cvtps_epi32(n[0]), bias);
            let high = _mm256_add_epi32(_mm256_cvtps_epi32(n[1]), bias);
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(high)),
            ]
        })
    }

    #[inline(always)]
    fn unless_below(self, a: Pair, b: Pair, v: Pair) -> Pair {
        with!(self, {
            let low = _mm256_cmp_ps::<_CMP_NLT_UQ>(a[0], b[0]);
            let high = _mm256_cmp_ps::<_CMP_NLT_UQ>(a[1], b[1]);
            [_mm256_and_ps(low, v[0]), _mm256_and_ps(high, v[1])]
        })
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        with!(self, _mm_prefetch::<_MM_HINT_T0>(at.cast()))
    }
}

vector_table!(
    Isa::Avx2,
    Avx2,
    [(1, 4), (2, 2), (4, 1), (4, 1)],
    Avx2(()),
    #[target_feature(enable = "avx2,fma,f16c,popcnt")]
);
