//! The kernels tuned for Zen 4.
//!
//! A 512-bit instruction takes two passes of one of four pipes. Cycles for eight dot products (or
//! multiply-adds) and eight other instructions, all independent; the dot products alone take 8:
//!
//! | other instructions | cycles |
//! |---|---|
//! | and, or, add, shift | 8 |
//! | `vpermw`, `vpermb`, `vpshufb` | 10.7 |
//! | broadcasts from memory into registers | 10.7 |
//! | none, but each dot product has a broadcast memory operand (`{1to16}`) | 8 |
//! | `vpternlogd` | 16 |
//!
//! - **Split halves.** A broadcast that two halves of a tile share is an instruction of its own and
//!   occupies a pipe. With one half at a time each broadcast has a single use, which the compiler
//!   makes a memory operand; and the accumulators of twelve vectors, integer and float, fit the
//!   registers. 512 int8 vectors went from 73 to 75% of the `vpdpbusd` rate at 2 bits, from 71 to
//!   74 at 4, from 66 to 72 at 8; 512 float32 vectors from 82 to 84 or 85% of the FMA rate, four of
//!   them from 69 to 84 (4096 × 4096, groups of 32, alternating runs).
//! - **Shuffled levels**: see [`super::levels::Shuffled`].
//! - **Several tiles per call** for few int8 vectors ([`super::stream`]): 4096 × 4096 from memory, one
//!   vector at 4 and 2 bits, 327 and 200 µs tile by tile, 295 and 165 so; two at 8 and 4 bits, 660
//!   and 360 µs tile by tile, 575 and 320 so.
//! - **Look-ups** for one vector of 1-bit weights ([`super::lookup`]): from cache 134 µs by dot
//!   products, 97 by look-ups; from memory 147 and 104.
//!
//! Two tiles at a time ([`super::pairs`]) took 1.07 times as long at 2 and 4 bits, and up to as
//! much in float32; at 8 bits it made no difference.

use super::levels::{Masked, Shuffled};
use super::{Dot, Vnni, f32 as floats, int8, lookup, stream, tables};
use crate::cpu::dispatch::Core;
use crate::cpu::layout::{Layout, ZeroKind};
use crate::cpu::tile::{Int8Acts, Prefetch, StreamFn, Tables, TileKernels};
use crate::quant::Bits;
use std::arch::x86_64::*;

/// [`super::ICE_TABLES`] with the kernels of this module.
pub(in crate::cpu) const ZEN4: TileKernels = TileKernels {
    name: "avx512+vnni+vpopcntdq+tables+zen4",
    cores: &[Core::Zen4],
    splits_halves: SplitHalves::SPLITS_HALVES,
    int8: [
        by_int8_width!(dot_products, 1),
        by_int8_width!(dot_products, 2),
        by_int8_width!(dot_products, 4),
        by_int8_width!(dot_products, 8),
    ],
    stream,
    direct: [
        by_width!(direct, 1),
        by_width!(direct, 2),
        by_width!(direct, 4),
        by_width!(direct, 8),
    ],
    unpack: [unpack::<1>, unpack::<2>, unpack::<4>, unpack::<8>],
    panel: by_width!(panel),
    tables: Some(Tables {
        // Two vectors took 183 µs instead of 209 by dot products, four 303 instead of 378, seven
        // 479 instead of 664 (4096 × 4096 from memory).
        min_vectors: 2,
        ..tables::KERNELS
    }),
    lookups: Some(lookup::KERNELS),
    ..super::ICE_TABLES
};

/// [`ZEN4`] without tables.
#[cfg(test)]
pub(in crate::cpu) const ZEN4_WITHOUT_TABLES: TileKernels = TileKernels {
    name: "avx512+vnni+vpopcntdq+zen4",
    cores: &[],
    tables: None,
    ..ZEN4
};

/// The kernels whose arithmetic takes less time than reading.
fn stream(bits: Bits, vectors: usize) -> Option<StreamFn> {
    match (bits, vectors) {
        (Bits::Two, 1) => Some(stream::multiply::<2, 1>),
        (Bits::Four, 1) => Some(stream::multiply::<4, 1>),
        (Bits::Four, 2) => Some(stream::multiply::<4, 2>),
        (Bits::Eight, 1) => Some(stream::multiply::<8, 1>),
        (Bits::Eight, 2) => Some(stream::multiply::<8, 2>),
        _ => None,
    }
}

/// [`Vnni`] with split halves.
struct SplitHalves;

impl Dot for SplitHalves {
    const ANY_BYTE: bool = Vnni::ANY_BYTE;
    const SPLITS_HALVES: bool = true;

    #[inline(always)]
    unsafe fn dot<const BITS: usize>(acc: __m512i, u: __m512i, s: __m512i) -> __m512i {
        // SAFETY: the caller upholds this contract.
        unsafe { Vnni::dot::<BITS>(acc, u, s) }
    }
}

/// [`int8::tile`].
///
/// # Safety
/// The contract of [`crate::cpu::tile`]; AVX-512 F, BW, VL, DQ and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,avx512vnni")]
unsafe fn dot_products<const BITS: usize, const V: usize>(
    l: &Layout,
    first: usize,
    count: usize,
    tile: *const u8,
    acts: Int8Acts,
    ahead: Prefetch,
    out: *mut f32,
) {
    // SAFETY: the caller upholds this contract.
    unsafe { int8::tile::<SplitHalves, BITS, V>(l, first, count, tile, acts, ahead, out) }
}

/// [`floats::direct_by`], with shuffled levels where the zero points allow.
///
/// # Safety
/// The contract of [`crate::cpu::tile`]; AVX-512 F, BW, VL, DQ.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")]
unsafe fn direct<const BITS: usize, const V: usize>(
    l: &Layout,
    tile: *const u8,
    x: *const f32,
    l2_distance: usize,
    out: *mut f32,
) {
    // SAFETY: the caller upholds this contract.
    unsafe {
        if const { BITS == 8 && V > 1 } {
            floats::direct_by::<Shuffled, BITS, V, true>(l, tile, x, l2_distance, out);
        } else if const { BITS == 8 } {
            // Shuffled levels took 1.09 times as long.
            floats::direct_by::<Masked, BITS, V, true>(l, tile, x, l2_distance, out);
        } else {
            match l.zero {
                ZeroKind::PerGroup => {
                    floats::direct_by::<Masked, BITS, V, true>(l, tile, x, l2_distance, out);
                }
                ZeroKind::Constant(_) => {
                    floats::direct_by::<Shuffled, BITS, V, true>(l, tile, x, l2_distance, out);
                }
            }
        }
    }
}

/// [`floats::unpack_by`], with shuffled levels where the zero points allow.
///
/// # Safety
/// The contract of [`crate::cpu::tile`]; AVX-512 F, BW, VL, DQ.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")]
unsafe fn unpack<const BITS: usize>(
    l: &Layout,
    tile: *const u8,
    first: usize,
    count: usize,
    levels: *mut f32,
    scales: *mut f32,
) {
    // SAFETY: the caller upholds this contract.
    unsafe {
        match l.zero {
            ZeroKind::PerGroup if BITS < 8 => {
                floats::unpack_by::<Masked, BITS>(l, tile, first, count, levels, scales);
            }
            _ => floats::unpack_by::<Shuffled, BITS>(l, tile, first, count, levels, scales),
        }
    }
}

/// [`floats::panel_split_halves`].
///
/// # Safety
/// The contract of [`crate::cpu::tile`]; AVX-512 F.
#[target_feature(enable = "avx512f,fma")]
unsafe fn panel<const V: usize>(
    levels: *const f32,
    scales: *const f32,
    count: usize,
    x: *const f32,
    f: *mut f32,
) {
    // SAFETY: the caller upholds this contract.
    unsafe { floats::panel_split_halves::<V>(levels, scales, count, x, f) }
}
