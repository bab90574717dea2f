//! AVX2, FMA, F16C: 8 lanes.

use std::arch::x86_64::*;

use super::level::Level;
use super::{RowSource, Table, UnpackScratch, dot, kernel_table, sign, unpack};
use crate::cpu::Isa;
use half::f16;

const LANES: usize = 8;

/// Exists only inside functions that enable the features of this level.
#[derive(Clone, Copy)]
struct Avx2(());

/// 1 and 2 bits: a table of the weights of all codes, repeated to 8 entries: the permutation uses
/// three bits of the index, so that no mask is needed. Wider: the scale, the step and the zero
/// point.
#[derive(Clone, Copy)]
struct Group {
    table: __m256,
    scale: __m256,
    step: __m256,
    zero: __m256,
}

/// An expression of intrinsics, given a value that proves that the processor can execute them.
macro_rules! with {
    ($proof:expr, $e:expr) => {{
        let Avx2(()) = $proof;
        // SAFETY: the proof was created in a function that enables avx2, fma and f16c, whose
        // callers know that the processor has them; the memory operands are references to whole
        // vectors.
        unsafe { $e }
    }};
}

impl Avx2 {
    /// One dword per lane with its code in the low bits; the bits above belong to other codes.
    #[inline(always)]
    fn shifted<const BITS: usize>(self, bytes: &[u8]) -> __m256i {
        match BITS {
            1 => with!(self, {
                let by = _mm256_setr_epi32(7, 6, 5, 4, 3, 2, 1, 0);
                _mm256_srlv_epi32(_mm256_set1_epi32(bytes[0] as i32), by)
            }),
            2 => {
                let v = u16::from_le_bytes([bytes[0], bytes[1]]) as i32;
                with!(self, {
                    let by = _mm256_setr_epi32(6, 4, 2, 0, 14, 12, 10, 8);
                    _mm256_srlv_epi32(_mm256_set1_epi32(v), by)
                })
            }
            4 => {
                let v = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                with!(self, {
                    let by = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
                    _mm256_srlv_epi32(_mm256_set1_epi32(v), by)
                })
            }
            _ => {
                let bytes: &[u8; 8] = bytes.first_chunk().expect("8 codes of 8 bits");
                with!(
                    self,
                    _mm256_cvtepu8_epi32(_mm_loadl_epi64(bytes.as_ptr().cast()))
                )
            }
        }
    }
}

impl Level<LANES> for Avx2 {
    type F = __m256;
    type Group = Group;
    const TABLE_BITS: usize = 2;

    #[inline(always)]
    fn splat(self, v: f32) -> __m256 {
        with!(self, _mm256_set1_ps(v))
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m256 {
        with!(self, _mm256_loadu_ps(from.as_ptr()))
    }

    #[inline(always)]
    fn store(self, v: __m256, to: &mut [f32; LANES]) {
        with!(self, _mm256_storeu_ps(to.as_mut_ptr(), v))
    }

    #[inline(always)]
    fn store_from(self, v: __m256, to: &mut [f32; LANES], first: usize) {
        let old = self.load(to);
        let merged = with!(self, {
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let before = _mm256_cmpgt_epi32(_mm256_set1_epi32(first as i32), lane);
            _mm256_blendv_ps(v, old, _mm256_castsi256_ps(before))
        });
        self.store(merged, to);
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        with!(self, _mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        with!(self, _mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        with!(self, _mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn mul_sub(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        with!(self, _mm256_fmsub_ps(a, b, c))
    }

    #[inline(always)]
    fn widen(self, from: &[f16; LANES]) -> __m256 {
        with!(self, _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())))
    }

    #[inline(always)]
    fn pick(self, values: &[f32; LANES], index: &[u32; LANES]) -> __m256 {
        let values = self.load(values);
        with!(self, {
            let index = _mm256_loadu_si256(index.as_ptr().cast());
            _mm256_permutevar8x32_ps(values, index)
        })
    }

    #[inline(always)]
    fn sum(self, v: __m256) -> f64 {
        with!(self, {
            let low = _mm256_cvtps_pd(_mm256_castps256_ps128(v));
            let high = _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(v));
            let s = _mm256_add_pd(low, high);
            let s = _mm_add_pd(_mm256_castpd256_pd128(s), _mm256_extractf128_pd::<1>(s));
            _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)))
        })
    }

    #[inline(always)]
    fn codes<const BITS: usize>(self, bytes: &[u8]) -> __m256 {
        let v = self.shifted::<BITS>(bytes);
        with!(self, {
            let mask = _mm256_set1_epi32((1 << BITS) - 1);
            _mm256_cvtepi32_ps(_mm256_and_si256(v, mask))
        })
    }

    #[inline(always)]
    fn group<const BITS: usize>(self, scale: f32, step: f32, zero: f32) -> Group {
        let (scale, step, zero) = (self.splat(scale), self.splat(step), self.splat(zero));
        let codes = with!(self, {
            let i = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_cvtepi32_ps(_mm256_and_si256(i, _mm256_set1_epi32((1 << BITS) - 1)))
        });
        Group {
            table: self.mul(self.mul_sub(codes, step, zero), scale),
            scale,
            step,
            zero,
        }
    }

    #[inline(always)]
    fn weights<const BITS: usize>(self, g: Group, bytes: &[u8]) -> __m256 {
        if BITS > Self::TABLE_BITS {
            self.mul(
                self.mul_sub(self.codes::<BITS>(bytes), g.step, g.zero),
                g.scale,
            )
        } else {
            let v = self.shifted::<BITS>(bytes);
            with!(self, _mm256_permutevar8x32_ps(g.table, v))
        }
    }
}

kernel_table!(
    Isa::Avx2,
    Avx2,
    8,
    4 x 3,
    Avx2(()),
    #[target_feature(enable = "avx2,fma,f16c,popcnt")]
);
