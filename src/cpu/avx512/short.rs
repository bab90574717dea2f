//! Short groups: the instructions of [`crate::cpu::short`], a half of a tile to a register.

#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "the contract of `Lanes`: the caller's processor has AVX-512 F, BW, VL, DQ and what `E` adds; pointers are the caller's"
)]

use super::{Dot, f32::widen, scales_of_half, zero_points_of_half};
use crate::cpu::layout::Layout;
use crate::cpu::short::{self, Lanes, MAGIC};
use crate::cpu::tile::Int8Acts;
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// 16 rows, with what a set has beyond the level.
struct Rows<E>(PhantomData<E>);

/// Both halves of a tile side by side.
const HALVES: usize = 2;

/// # Safety
/// The contract of [`crate::cpu::tile`]; the features of `E`.
#[inline(always)]
pub(super) unsafe fn int8<E: Dot, const V: usize>(
    l: &Layout,
    tile: *const u8,
    acts: Int8Acts,
    out: *mut f32,
) {
    // SAFETY: the caller's.
    unsafe { short::int8::<Rows<E>, HALVES, HALVES, V>(l, tile, acts, out) }
}

/// # Safety
/// The contract of [`crate::cpu::tile`]; the features of `E`.
#[inline(always)]
pub(super) unsafe fn float<E: Dot, const V: usize>(
    l: &Layout,
    tile: *const u8,
    x: *const f32,
    out: *mut f32,
) {
    // SAFETY: the caller's.
    unsafe { short::float::<Rows<E>, HALVES, HALVES, V>(l, tile, x, out) }
}

impl<E: Dot> Lanes for Rows<E> {
    const ROWS: usize = 16;
    type Dwords = __m512i;
    type Floats = __m512;
    type Wide = [__m512d; 2];
    type Sums = __m512i;

    #[inline(always)]
    unsafe fn splat(value: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    unsafe fn shifted(at: *const u8, right: i32) -> __m512i {
        unsafe { _mm512_rorv_epi32(_mm512_load_si512(at.cast()), _mm512_set1_epi32(right)) }
    }

    #[inline(always)]
    unsafe fn and(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(a, b) }
    }

    #[inline(always)]
    unsafe fn times_i16(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_madd_epi16(a, b) }
    }

    #[inline(always)]
    unsafe fn sums(start: __m512i) -> __m512i {
        start
    }

    #[inline(always)]
    unsafe fn add(sums: __m512i, u: __m512i, s: __m512i) -> __m512i {
        unsafe { E::dot::<8>(sums, u, s) }
    }

    #[inline(always)]
    unsafe fn total(sums: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(sums) }
    }

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn broadcast(at: *const f32) -> __m512 {
        unsafe { _mm512_set1_ps(*at) }
    }

    #[inline(always)]
    unsafe fn times(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fused(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn scales(l: &Layout, tail: *const u8, part: usize) -> __m512 {
        unsafe { scales_of_half(l, tail, part) }
    }

    #[inline(always)]
    unsafe fn zero_points(l: &Layout, tail: *const u8, part: usize) -> __m512i {
        unsafe { zero_points_of_half(l, tail, part) }
    }

    #[inline(always)]
    unsafe fn base(zero_points: __m512i) -> __m512 {
        unsafe {
            let magic = _mm512_castsi512_ps(_mm512_set1_epi32(MAGIC));
            _mm512_add_ps(magic, _mm512_cvtepi32_ps(zero_points))
        }
    }

    #[inline(always)]
    unsafe fn level<const J: usize>(quad: __m512i, mask: __m512i, base: __m512) -> __m512 {
        unsafe {
            let quad = match J {
                0 => quad,
                1 => _mm512_srli_epi32::<8>(quad),
                2 => _mm512_srli_epi32::<16>(quad),
                _ => _mm512_srli_epi32::<24>(quad),
            };
            // (quad & mask) | magic
            let magic = _mm512_set1_epi32(MAGIC);
            let f = _mm512_ternarylogic_epi32::<0xea>(quad, mask, magic);
            _mm512_sub_ps(_mm512_castsi512_ps(f), base)
        }
    }

    #[inline(always)]
    unsafe fn zero_wide() -> [__m512d; 2] {
        unsafe { [_mm512_setzero_pd(); 2] }
    }

    #[inline(always)]
    unsafe fn flush(sum: [__m512d; 2], more: __m512) -> [__m512d; 2] {
        unsafe {
            let [low, high] = widen(more);
            [_mm512_add_pd(sum[0], low), _mm512_add_pd(sum[1], high)]
        }
    }

    #[inline(always)]
    unsafe fn store(values: [__m512d; 2], out: *mut f32) {
        unsafe {
            _mm256_storeu_ps(out, _mm512_cvtpd_ps(values[0]));
            _mm256_storeu_ps(out.add(8), _mm512_cvtpd_ps(values[1]));
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}
