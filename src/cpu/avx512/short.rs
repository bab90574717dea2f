//! Short groups: the operations of [`crate::cpu::short`] on one half of a tile per register.

use super::{f32::widen, scales_of_half, zero_points_of_half};
use crate::cpu::layout::Layout;
use crate::cpu::short::{self, Lanes, MAGIC};
use std::arch::x86_64::*;

/// 16 rows.
struct Half;

/// Both halves of a tile are processed together.
const HALVES: usize = 2;

/// # Safety
/// The contract of [`crate::cpu::tile`]; AVX-512 F, BW, VL, DQ.
#[inline(always)]
pub(super) unsafe fn direct<const V: usize>(
    l: &Layout,
    tile: *const u8,
    x: *const f32,
    l2_distance: usize,
    out: *mut f32,
) {
    // SAFETY: the caller upholds this contract.
    unsafe { short::direct::<Half, HALVES, HALVES, V>(l, tile, x, l2_distance, out) }
}

/// # Safety
/// The contract of [`crate::cpu::tile`]; AVX-512 F, BW, VL, DQ.
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
    unsafe { short::unpack::<Half, HALVES, HALVES>(l, tile, first, count, levels, scales) }
}

/// The dwords, shifted so that byte `J` is lowest.
///
/// # Safety
/// AVX-512 F.
#[inline(always)]
unsafe fn byte<const J: usize>(quad: __m512i) -> __m512i {
    // SAFETY: the caller upholds this contract.
    unsafe {
        match J {
            0 => quad,
            1 => _mm512_srli_epi32::<8>(quad),
            2 => _mm512_srli_epi32::<16>(quad),
            _ => _mm512_srli_epi32::<24>(quad),
        }
    }
}

impl Lanes for Half {
    const ROWS: usize = 16;
    type Dwords = __m512i;
    type Floats = __m512;
    type Wide = [__m512d; 2];

    #[inline(always)]
    unsafe fn shifted(at: *const u8, right: u32) -> __m512i {
        // SAFETY: the caller guarantees the level; `at` is a vector of the tile, 64-byte aligned.
        unsafe {
            _mm512_srl_epi32(
                _mm512_load_si512(at.cast()),
                _mm_cvtsi32_si128(right as i32),
            )
        }
    }

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: the caller guarantees the level.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn broadcast(at: *const f32) -> __m512 {
        // SAFETY: the caller guarantees the level; `at` is a readable float.
        unsafe { _mm512_set1_ps(*at) }
    }

    #[inline(always)]
    unsafe fn plus(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller guarantees the level.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn times(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller guarantees the level.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the caller guarantees the level.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn write(values: __m512, to: *mut f32) {
        // SAFETY: the caller guarantees the level; `to` is 16 floats, 64-byte aligned.
        unsafe { _mm512_store_ps(to, values) }
    }

    #[inline(always)]
    unsafe fn scales(l: &Layout, tail: *const u8, part: usize) -> __m512 {
        // SAFETY: the caller guarantees the level; `tail` points to the scales of a group.
        unsafe { scales_of_half(l, tail, part) }
    }

    #[inline(always)]
    unsafe fn base(l: &Layout, tail: *const u8, part: usize) -> __m512 {
        // SAFETY: the caller guarantees the level; `tail` points to the scales of a group.
        unsafe {
            let magic = _mm512_castsi512_ps(_mm512_set1_epi32(MAGIC));
            _mm512_add_ps(
                magic,
                _mm512_cvtepi32_ps(zero_points_of_half(l, tail, part)),
            )
        }
    }

    #[inline(always)]
    unsafe fn level<const J: usize>(quad: __m512i, mask: u8, base: __m512) -> __m512 {
        // SAFETY: the caller guarantees the level.
        unsafe {
            let (mask, magic) = (_mm512_set1_epi32(mask.into()), _mm512_set1_epi32(MAGIC));
            // (byte & mask) | magic
            let f = _mm512_ternarylogic_epi32::<0xea>(byte::<J>(quad), mask, magic);
            _mm512_sub_ps(_mm512_castsi512_ps(f), base)
        }
    }

    #[inline(always)]
    unsafe fn signed<const J: usize>(quad: __m512i, scale: __m512) -> __m512 {
        // SAFETY: the caller guarantees the level.
        unsafe {
            let top = match J {
                0 => _mm512_slli_epi32::<31>(quad),
                1 => _mm512_slli_epi32::<23>(quad),
                2 => _mm512_slli_epi32::<15>(quad),
                _ => _mm512_slli_epi32::<7>(quad),
            };
            let sign = _mm512_set1_epi32(i32::MIN);
            // scale ^ (!top & sign)
            let w = _mm512_ternarylogic_epi32::<0xd2>(_mm512_castps_si512(scale), top, sign);
            _mm512_castsi512_ps(w)
        }
    }

    #[inline(always)]
    unsafe fn zero_wide() -> [__m512d; 2] {
        // SAFETY: the caller guarantees the level.
        unsafe { [_mm512_setzero_pd(); 2] }
    }

    #[inline(always)]
    unsafe fn flush(sum: [__m512d; 2], more: __m512) -> [__m512d; 2] {
        // SAFETY: the caller guarantees the level.
        unsafe {
            let [low, high] = widen(more);
            [_mm512_add_pd(sum[0], low), _mm512_add_pd(sum[1], high)]
        }
    }

    #[inline(always)]
    unsafe fn store(values: [__m512d; 2], out: *mut f32) {
        // SAFETY: the caller guarantees the level; `out` is 16 floats.
        unsafe {
            _mm256_storeu_ps(out, _mm512_cvtpd_ps(values[0]));
            _mm256_storeu_ps(out.add(8), _mm512_cvtpd_ps(values[1]));
        }
    }

    #[inline(always)]
    fn prefetch(near: *const u8, far: *const u8) {
        super::prefetch(near, far)
    }
}
