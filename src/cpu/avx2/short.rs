//! Short groups: the instructions of [`crate::cpu::short`], an octet to a register.

#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "the contract of `Lanes`: the caller's processor has AVX2, FMA, F16C and what `E` adds; pointers are the caller's"
)]

use super::{Extensions, OCTETS, scales, zero_points};
use crate::cpu::layout::Layout;
use crate::cpu::short::{self, Lanes, MAGIC};
use crate::cpu::tile::Int8Acts;
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// 8 rows, with what a set has beyond the level.
struct Rows<E>(PhantomData<E>);

/// # Safety
/// The contract of [`crate::cpu::tile`]; the features of `E`.
#[inline(always)]
pub(super) unsafe fn int8<E: Extensions, const V: usize>(
    l: &Layout,
    tile: *const u8,
    acts: Int8Acts,
    out: *mut f32,
) {
    // SAFETY: the caller's.
    unsafe {
        // Chains enough to hide how long one takes, in sixteen registers.
        match V {
            1 => short::int8::<Rows<E>, OCTETS, 4, V>(l, tile, acts, out),
            2 | 4 => short::int8::<Rows<E>, OCTETS, 2, V>(l, tile, acts, out),
            _ => short::int8::<Rows<E>, OCTETS, 1, V>(l, tile, acts, out),
        }
    }
}

/// # Safety
/// The contract of [`crate::cpu::tile`]; the features of `E`.
#[inline(always)]
pub(super) unsafe fn float<E: Extensions, const V: usize>(
    l: &Layout,
    tile: *const u8,
    x: *const f32,
    out: *mut f32,
) {
    // SAFETY: the caller's.
    unsafe {
        match V {
            1 => short::float::<Rows<E>, OCTETS, 4, V>(l, tile, x, out),
            _ => short::float::<Rows<E>, OCTETS, 2, V>(l, tile, x, out),
        }
    }
}

impl<E: Extensions> Lanes for Rows<E> {
    const ROWS: usize = 8;
    type Dwords = __m256i;
    type Floats = __m256;
    type Wide = [__m256d; 2];
    /// What the sums start with goes in at the end.
    type Sums = (__m256i, E::Sums);

    #[inline(always)]
    unsafe fn splat(value: i32) -> __m256i {
        unsafe { _mm256_set1_epi32(value) }
    }

    #[inline(always)]
    unsafe fn shifted(at: *const u8, right: i32) -> __m256i {
        unsafe {
            let v = _mm256_load_si256(at.cast());
            if right < 0 {
                return _mm256_add_epi32(v, v);
            }
            _mm256_srlv_epi32(v, _mm256_set1_epi32(right))
        }
    }

    #[inline(always)]
    unsafe fn and(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_and_si256(a, b) }
    }

    #[inline(always)]
    unsafe fn times_i16(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_madd_epi16(a, b) }
    }

    #[inline(always)]
    unsafe fn sums(start: __m256i) -> (__m256i, E::Sums) {
        (start, unsafe { E::nothing() })
    }

    #[inline(always)]
    unsafe fn add((start, sums): (__m256i, E::Sums), u: __m256i, s: __m256i) -> (__m256i, E::Sums) {
        (start, unsafe { E::add::<8>(sums, u, s) })
    }

    #[inline(always)]
    unsafe fn total((start, sums): (__m256i, E::Sums)) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_add_epi32(start, E::total::<8>(sums))) }
    }

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn broadcast(at: *const f32) -> __m256 {
        unsafe { _mm256_set1_ps(*at) }
    }

    #[inline(always)]
    unsafe fn times(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fused(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn scales(l: &Layout, tail: *const u8, part: usize) -> __m256 {
        unsafe { scales(l, tail, part) }
    }

    #[inline(always)]
    unsafe fn zero_points(l: &Layout, tail: *const u8, part: usize) -> __m256i {
        unsafe { zero_points(l, tail, part) }
    }

    #[inline(always)]
    unsafe fn base(zero_points: __m256i) -> __m256 {
        unsafe {
            let magic = _mm256_castsi256_ps(_mm256_set1_epi32(MAGIC));
            _mm256_add_ps(magic, _mm256_cvtepi32_ps(zero_points))
        }
    }

    #[inline(always)]
    unsafe fn level<const J: usize>(quad: __m256i, mask: __m256i, base: __m256) -> __m256 {
        unsafe {
            let quad = match J {
                0 => quad,
                1 => _mm256_srli_epi32::<8>(quad),
                2 => _mm256_srli_epi32::<16>(quad),
                _ => _mm256_srli_epi32::<24>(quad),
            };
            let code = _mm256_and_si256(quad, mask);
            let f = _mm256_or_si256(code, _mm256_set1_epi32(MAGIC));
            _mm256_sub_ps(_mm256_castsi256_ps(f), base)
        }
    }

    #[inline(always)]
    unsafe fn zero_wide() -> [__m256d; 2] {
        unsafe { [_mm256_setzero_pd(); 2] }
    }

    #[inline(always)]
    unsafe fn flush(sum: [__m256d; 2], more: __m256) -> [__m256d; 2] {
        unsafe {
            let low = _mm256_cvtps_pd(_mm256_castps256_ps128(more));
            let high = _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(more));
            [_mm256_add_pd(sum[0], low), _mm256_add_pd(sum[1], high)]
        }
    }

    #[inline(always)]
    unsafe fn store(values: [__m256d; 2], out: *mut f32) {
        unsafe {
            _mm_storeu_ps(out, _mm256_cvtpd_ps(values[0]));
            _mm_storeu_ps(out.add(4), _mm256_cvtpd_ps(values[1]));
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}
