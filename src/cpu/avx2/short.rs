//! Short groups: the operations of [`crate::cpu::short`] on an octet per register.

use super::{OCTETS, scales, zero_points};
use crate::cpu::layout::Layout;
use crate::cpu::short::{self, Lanes, MAGIC};
use std::arch::x86_64::*;

/// 8 rows.
struct Octet;

/// # Safety
/// The contract of [`crate::cpu::tile`]; AVX2, FMA, F16C.
#[inline(always)]
pub(super) unsafe fn direct<const V: usize>(
    l: &Layout,
    tile: *const u8,
    x: *const f32,
    l2_distance: usize,
    out: *mut f32,
) {
    // SAFETY: the caller upholds this contract.
    unsafe {
        // Enough chains to hide the latency of one, and few enough to fit the registers: the octets
        // take two passes where one pass would have too many chains.
        match V {
            1 => short::direct::<Octet, OCTETS, 4, V>(l, tile, x, l2_distance, out),
            _ => short::direct::<Octet, OCTETS, 2, V>(l, tile, x, l2_distance, out),
        }
    }
}

/// # Safety
/// The contract of [`crate::cpu::tile`]; AVX2, FMA, F16C.
#[inline(always)]
pub(super) unsafe fn unpack(
    l: &Layout,
    tile: *const u8,
    first: usize,
    count: usize,
    levels: *mut f32,
    scales: *mut f32,
) {
    // SAFETY: the caller upholds this contract.
    unsafe { short::unpack::<Octet, OCTETS, 2>(l, tile, first, count, levels, scales) }
}

impl Lanes for Octet {
    const ROWS: usize = 8;
    type Dwords = __m256i;
    type Floats = __m256;
    type Wide = [__m256d; 2];

    #[inline(always)]
    unsafe fn shifted(at: *const u8, right: u32) -> __m256i {
        // SAFETY: the caller guarantees the level; `at` is an octet of the tile, 32-byte aligned.
        unsafe {
            _mm256_srl_epi32(
                _mm256_load_si256(at.cast()),
                _mm_cvtsi32_si128(right as i32),
            )
        }
    }

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: the caller guarantees the level.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn broadcast(at: *const f32) -> __m256 {
        // SAFETY: the caller guarantees the level; `at` is a readable float.
        unsafe { _mm256_set1_ps(*at) }
    }

    #[inline(always)]
    unsafe fn plus(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller guarantees the level.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn times(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller guarantees the level.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the caller guarantees the level.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn write(values: __m256, to: *mut f32) {
        // SAFETY: the caller guarantees the level; `to` is 8 floats, 32-byte aligned.
        unsafe { _mm256_store_ps(to, values) }
    }

    #[inline(always)]
    unsafe fn scales(l: &Layout, tail: *const u8, part: usize) -> __m256 {
        // SAFETY: the caller guarantees the level; `tail` points to the scales of a group.
        unsafe { scales(l, tail, part) }
    }

    #[inline(always)]
    unsafe fn base(l: &Layout, tail: *const u8, part: usize) -> __m256 {
        // SAFETY: the caller guarantees the level; `tail` points to the scales of a group.
        unsafe {
            let magic = _mm256_castsi256_ps(_mm256_set1_epi32(MAGIC));
            _mm256_add_ps(magic, _mm256_cvtepi32_ps(zero_points(l, tail, part)))
        }
    }

    #[inline(always)]
    unsafe fn level<const J: usize>(quad: __m256i, mask: u8, base: __m256) -> __m256 {
        // SAFETY: the caller guarantees the level.
        unsafe {
            let byte = match J {
                0 => quad,
                1 => _mm256_srli_epi32::<8>(quad),
                2 => _mm256_srli_epi32::<16>(quad),
                _ => _mm256_srli_epi32::<24>(quad),
            };
            let code = _mm256_and_si256(byte, _mm256_set1_epi32(mask.into()));
            let f = _mm256_or_si256(code, _mm256_set1_epi32(MAGIC));
            _mm256_sub_ps(_mm256_castsi256_ps(f), base)
        }
    }

    #[inline(always)]
    unsafe fn signed<const J: usize>(quad: __m256i, scale: __m256) -> __m256 {
        // SAFETY: the caller guarantees the level.
        unsafe {
            let top = match J {
                0 => _mm256_slli_epi32::<31>(quad),
                1 => _mm256_slli_epi32::<23>(quad),
                2 => _mm256_slli_epi32::<15>(quad),
                _ => _mm256_slli_epi32::<7>(quad),
            };
            let minus = _mm256_andnot_si256(top, _mm256_set1_epi32(i32::MIN));
            _mm256_xor_ps(scale, _mm256_castsi256_ps(minus))
        }
    }

    #[inline(always)]
    unsafe fn zero_wide() -> [__m256d; 2] {
        // SAFETY: the caller guarantees the level.
        unsafe { [_mm256_setzero_pd(); 2] }
    }

    #[inline(always)]
    unsafe fn flush(sum: [__m256d; 2], more: __m256) -> [__m256d; 2] {
        // SAFETY: the caller guarantees the level.
        unsafe {
            let low = _mm256_cvtps_pd(_mm256_castps256_ps128(more));
            let high = _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(more));
            [_mm256_add_pd(sum[0], low), _mm256_add_pd(sum[1], high)]
        }
    }

    #[inline(always)]
    unsafe fn store(values: [__m256d; 2], out: *mut f32) {
        // SAFETY: the caller guarantees the level; `out` is 8 floats.
        unsafe {
            _mm_storeu_ps(out, _mm256_cvtpd_ps(values[0]));
            _mm_storeu_ps(out.add(4), _mm256_cvtpd_ps(values[1]));
        }
    }

    #[inline(always)]
    fn prefetch(near: *const u8, far: *const u8) {
        super::prefetch(near, far, 64)
    }
}
