//! AVX-512 F, BW, VL, DQ: 16 lanes.

use std::arch::x86_64::*;

use super::level::Level;
use super::{RowSource, Table, UnpackScratch, dot, kernel_table, sign, unpack};
use crate::cpu::Isa;
use half::f16;

const LANES: usize = 16;

/// Exists only inside functions that enable the features of this level.
#[derive(Clone, Copy)]
struct Avx512(());

/// Up to 4 bits: a table of the weights of all codes, repeated to 16 entries: the permutation uses
/// four bits of the index, so that no mask is needed. 8 bits: the scale, the step and the zero
/// point.
#[derive(Clone, Copy)]
struct Group {
    table: __m512,
    scale: __m512,
    step: __m512,
    zero: __m512,
}

/// An expression of intrinsics, given a value that proves that the processor can execute them.
macro_rules! with {
    ($proof:expr, $e:expr) => {{
        let Avx512(()) = $proof;
        // SAFETY: the proof was created in a function that enables avx512f/bw/vl/dq, whose callers
        // know that the processor has them; the memory operands are references to whole vectors.
        unsafe { $e }
    }};
}

impl Avx512 {
    /// One dword per lane with its code in the low bits; the bits above belong to other codes.
    #[inline(always)]
    fn shifted<const BITS: usize>(self, bytes: &[u8]) -> __m512i {
        match BITS {
            1 => {
                let v = u16::from_be_bytes([bytes[0], bytes[1]]) as i32;
                with!(self, {
                    let by =
                        _mm512_setr_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
                    _mm512_srlv_epi32(_mm512_set1_epi32(v), by)
                })
            }
            2 => {
                let v = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                with!(self, {
                    let by = _mm512_setr_epi32(
                        6, 4, 2, 0, 14, 12, 10, 8, 22, 20, 18, 16, 30, 28, 26, 24,
                    );
                    _mm512_srlv_epi32(_mm512_set1_epi32(v), by)
                })
            }
            4 => {
                let v = i64::from_le_bytes([
                    bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7],
                ]);
                with!(self, {
                    let by =
                        _mm512_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24);
                    let half = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
                    let v = _mm512_permutexvar_epi32(half, _mm512_set1_epi64(v));
                    _mm512_srlv_epi32(v, by)
                })
            }
            _ => {
                let bytes: &[u8; 16] = bytes.first_chunk().expect("16 codes of 8 bits");
                with!(
                    self,
                    _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()))
                )
            }
        }
    }
}

impl Level<LANES> for Avx512 {
    type F = __m512;
    type Group = Group;
    const TABLE_BITS: usize = 4;

    #[inline(always)]
    fn splat(self, v: f32) -> __m512 {
        with!(self, _mm512_set1_ps(v))
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        with!(self, _mm512_loadu_ps(from.as_ptr()))
    }

    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32; LANES]) {
        with!(self, _mm512_storeu_ps(to.as_mut_ptr(), v))
    }

    #[inline(always)]
    fn store_from(self, v: __m512, to: &mut [f32; LANES], first: usize) {
        let lanes = u16::MAX << first;
        with!(self, _mm512_mask_storeu_ps(to.as_mut_ptr(), lanes, v))
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
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        with!(self, _mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn mul_sub(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        with!(self, _mm512_fmsub_ps(a, b, c))
    }

    #[inline(always)]
    fn widen(self, from: &[f16; LANES]) -> __m512 {
        with!(
            self,
            _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast()))
        )
    }

    #[inline(always)]
    fn pick(self, values: &[f32; LANES], index: &[u32; LANES]) -> __m512 {
        let values = self.load(values);
        with!(self, {
            let index = _mm512_loadu_si512(index.as_ptr().cast());
            _mm512_permutexvar_ps(index, values)
        })
    }

    #[inline(always)]
    fn sum(self, v: __m512) -> f64 {
        with!(self, {
            let low = _mm512_cvtps_pd(_mm512_castps512_ps256(v));
            let high = _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(v));
            let s = _mm512_add_pd(low, high);
            let s = _mm256_add_pd(_mm512_castpd512_pd256(s), _mm512_extractf64x4_pd::<1>(s));
            let s = _mm_add_pd(_mm256_castpd256_pd128(s), _mm256_extractf128_pd::<1>(s));
            _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)))
        })
    }

    #[inline(always)]
    fn codes<const BITS: usize>(self, bytes: &[u8]) -> __m512 {
        let v = self.shifted::<BITS>(bytes);
        with!(self, {
            let mask = _mm512_set1_epi32((1 << BITS) - 1);
            _mm512_cvtepi32_ps(_mm512_and_si512(v, mask))
        })
    }

    #[inline(always)]
    fn group<const BITS: usize>(self, scale: f32, step: f32, zero: f32) -> Group {
        let (scale, step, zero) = (self.splat(scale), self.splat(step), self.splat(zero));
        let codes = with!(self, {
            let i = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            _mm512_cvtepi32_ps(_mm512_and_si512(i, _mm512_set1_epi32((1 << BITS) - 1)))
        });
        Group {
            table: self.mul(self.mul_sub(codes, step, zero), scale),
            scale,
            step,
            zero,
        }
    }

    #[inline(always)]
    fn weights<const BITS: usize>(self, g: Group, bytes: &[u8]) -> __m512 {
        if BITS > Self::TABLE_BITS {
            self.mul(
                self.mul_sub(self.codes::<BITS>(bytes), g.step, g.zero),
                g.scale,
            )
        } else {
            let v = self.shifted::<BITS>(bytes);
            with!(self, _mm512_permutexvar_ps(v, g.table))
        }
    }
}

kernel_table!(
    Isa::Avx512,
    Avx512,
    16,
    6 x 4,
    Avx512(()),
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,popcnt")]
);
