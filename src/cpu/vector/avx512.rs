//! AVX-512 F, BW, VL, DQ: 16 lanes are one register.

use std::arch::x86_64::*;

use half::f16;

use super::lanes::{self, Lanes};
use super::{Chunk, Table, attention, by_rows, elementwise, vector_table};
use crate::cpu::Isa;

/// Exists only inside functions that enable the features of this level.
#[derive(Clone, Copy)]
struct Avx512(());

/// An expression of intrinsics, given a value that proves that the processor can execute them.
macro_rules! with {
    ($proof:expr, $e:expr) => {{
        let Avx512(()) = $proof;
        // SAFETY: the proof was created in a function that enables avx512f/bw/vl/dq, whose callers
        // know that the processor has them; the memory operands are references to whole vectors,
        // except those of prefetches, which may use any address.
        unsafe { $e }
    }};
}

impl Lanes for Avx512 {
    type F = __m512;

    #[inline(always)]
    fn splat(self, v: f32) -> __m512 {
        with!(self, _mm512_set1_ps(v))
    }

    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> __m512 {
        with!(self, _mm512_loadu_ps(from.as_ptr()))
    }

    #[inline(always)]
    fn widen(self, from: &[f16; 16]) -> __m512 {
        with!(
            self,
            _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast()))
        )
    }

    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32; 16]) {
        with!(self, _mm512_storeu_ps(to.as_mut_ptr(), v))
    }

    #[inline(always)]
    fn narrow(self, v: __m512, to: &mut [f16; 16]) {
        with!(self, {
            let half = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), half)
        })
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        with!(self, _mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        with!(self, _mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        with!(self, _mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        with!(self, _mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        with!(self, _mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        with!(self, _mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn round(self, v: __m512) -> __m512 {
        with!(
            self,
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v)
        )
    }

    #[inline(always)]
    fn power_of_two(self, n: __m512) -> __m512 {
        with!(self, {
            let n = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(n))
        })
    }

    #[inline(always)]
    fn unless_below(self, a: __m512, b: __m512, v: __m512) -> __m512 {
        with!(
            self,
            _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(a, b), v)
        )
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        with!(self, _mm_prefetch::<_MM_HINT_T0>(at.cast()))
    }
}

vector_table!(
    Isa::Avx512,
    Avx512,
    [(1, 4), (2, 4), (4, 4), (8, 2)],
    Avx512(()),
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,popcnt")]
);

/// On Zen 4 a broadcast is free as the memory operand of the only multiply-add that uses it, and
/// otherwise occupies a pipe: hence one block at a time for eight rows. Prefill of 512 tokens at 1
/// bit was 1.02 to 1.03 times as fast, and so was decode after it.
pub(super) const ZEN4: Table = Table {
    scores: (
        by_rows!(scores, f32, [(1, 4), (2, 4), (4, 4), (8, 1)]),
        by_rows!(scores, f16, [(1, 4), (2, 4), (4, 4), (8, 1)]),
    ),
    mix: (
        by_rows!(mix, f32, [(1, 4), (2, 4), (4, 4), (8, 1)]),
        by_rows!(mix, f16, [(1, 4), (2, 4), (4, 4), (8, 1)]),
    ),
    ..TABLE
};
