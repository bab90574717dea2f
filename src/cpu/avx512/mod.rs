//! AVX-512: the tile kernels on 512-bit registers, one half of a tile (16 rows) per register.
//!
//! | set | requires | processors |
//! |---|---|---|
//! | [`BASE`] | F, BW, VL, DQ | Skylake-X |
//! | [`VNNI`] | and VNNI | Cascade Lake |
//! | [`ICE_PAIRS`], [`ICE_TABLES`], [`ZEN4`] | and VBMI and VPOPCNTDQ | Ice Lake, Zen 4 and later |
//! | [`AMX`] | and AMX-INT8 | Sapphire Rapids and later |
//!
//! The traits [`Dot`] and [`Popcount`] name what differs. The generic functions have no
//! `target_feature` and are `inline(always)`, so that they are compiled with the features of the
//! entry point that they are inlined into.

mod activations;
mod amx;
mod f32;
mod int8;
mod levels;
mod lookup;
mod pairs;
mod short;
mod sign;
mod split;
mod stream;
mod tables;
mod zen4;

pub(in crate::cpu) use self::zen4::ZEN4;
#[cfg(test)]
pub(in crate::cpu) use self::zen4::ZEN4_WITHOUT_TABLES;
use super::dispatch::Core;
use super::layout::{Layout, ScaleKind, ZeroKind};
use super::tile::TileKernels;
use std::arch::asm;
use std::arch::x86_64::*;

/// Byte dot products.
trait Dot {
    /// Whether arbitrary bytes are multiplied as fast as codes of few bits.
    const ANY_BYTE: bool;

    /// Whether many vectors process the two halves of a tile separately: see [`zen4`].
    const SPLITS_HALVES: bool;

    /// `acc + dot(u, s)` in each dword: four products of the unsigned bytes of `u` and the signed
    /// bytes of `s`. Where `BITS` is below 8, bytes of `u` are at most 15 unless [`Dot::ANY_BYTE`].
    ///
    /// # Safety
    /// The processor has the extensions of the implementor.
    unsafe fn dot<const BITS: usize>(acc: __m512i, u: __m512i, s: __m512i) -> __m512i;
}

/// Popcount.
trait Popcount {
    /// Set bits of each dword.
    ///
    /// # Safety
    /// The processor has the extensions of the implementor.
    unsafe fn popcount(v: __m512i) -> __m512i;
}

/// F, BW, VL, DQ.
struct Base;
/// And VNNI.
struct Vnni;
/// [`Base`] and VPOPCNTDQ.
struct Vpopcntdq;

impl Dot for Base {
    const ANY_BYTE: bool = false;
    const SPLITS_HALVES: bool = false;

    #[inline(always)]
    unsafe fn dot<const BITS: usize>(acc: __m512i, u: __m512i, s: __m512i) -> __m512i {
        // SAFETY: the caller guarantees AVX-512 BW.
        unsafe {
            let ones = _mm512_set1_epi16(1);
            if BITS < 8 {
                // 2 * 15 * 127 fits 16 bits.
                return _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_maddubs_epi16(u, s), ones));
            }
            // vpmaddubsw saturates at 2 * 255 * 127: the top bit is multiplied separately;
            // `2 * 128 * 127` just fits.
            let top = _mm512_set1_epi8(-128);
            let low = _mm512_maddubs_epi16(_mm512_andnot_si512(top, u), s);
            let high = _mm512_maddubs_epi16(_mm512_and_si512(top, u), s);
            let acc = _mm512_add_epi32(acc, _mm512_madd_epi16(low, ones));
            _mm512_add_epi32(acc, _mm512_madd_epi16(high, ones))
        }
    }
}

impl Popcount for Base {
    #[inline(always)]
    unsafe fn popcount(v: __m512i) -> __m512i {
        // SAFETY: the caller guarantees AVX-512 BW.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_setr_epi8(
                0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
            ));
            let nibble = _mm512_set1_epi8(15);
            let low = _mm512_shuffle_epi8(table, _mm512_and_si512(v, nibble));
            let high =
                _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16::<4>(v), nibble));
            let bytes = _mm512_add_epi8(low, high);
            _mm512_madd_epi16(
                _mm512_maddubs_epi16(bytes, _mm512_set1_epi8(1)),
                _mm512_set1_epi16(1),
            )
        }
    }
}

impl Dot for Vnni {
    const ANY_BYTE: bool = true;
    const SPLITS_HALVES: bool = false;

    #[inline(always)]
    unsafe fn dot<const BITS: usize>(acc: __m512i, u: __m512i, s: __m512i) -> __m512i {
        // SAFETY: the caller guarantees AVX-512 VNNI.
        unsafe { _mm512_dpbusd_epi32(acc, u, s) }
    }
}

impl Popcount for Vnni {
    #[inline(always)]
    unsafe fn popcount(v: __m512i) -> __m512i {
        // SAFETY: the caller guarantees what `Base` requires.
        unsafe { Base::popcount(v) }
    }
}

impl Popcount for Vpopcntdq {
    #[inline(always)]
    unsafe fn popcount(v: __m512i) -> __m512i {
        // SAFETY: the caller guarantees AVX-512 VPOPCNTDQ.
        unsafe { _mm512_popcnt_epi32(v) }
    }
}

/// Prefetches the line at `near` into L1 and that at `far` into L2. The addresses need not be
/// valid.
#[inline(always)]
fn prefetch(near: *const u8, far: *const u8) {
    // SAFETY: a prefetch has no visible effect.
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(far.cast());
        _mm_prefetch::<_MM_HINT_T0>(near.cast());
    }
}

/// The scales of a group, by halves.
///
/// # Safety
/// AVX-512 F; `tail` points to the scales of a group.
#[inline(always)]
unsafe fn scales(l: &Layout, tail: *const u8) -> [__m512; 2] {
    // SAFETY: the caller upholds this contract.
    unsafe { [scales_of_half(l, tail, 0), scales_of_half(l, tail, 1)] }
}

/// One half of the scales of a group.
///
/// # Safety
/// AVX-512 F; `tail` points to the scales of a group.
#[inline(always)]
unsafe fn scales_of_half(l: &Layout, tail: *const u8, half: usize) -> __m512 {
    // SAFETY: the layout puts 32 scales there.
    unsafe {
        match l.scale {
            ScaleKind::F16 => _mm512_cvtph_ps(_mm256_load_si256(tail.add(32 * half).cast())),
            ScaleKind::F32 => _mm512_load_ps(tail.add(64 * half).cast()),
        }
    }
}

/// The zero points of a group as dwords, by halves.
///
/// # Safety
/// AVX-512 F; `tail` points to the scales of a group.
#[inline(always)]
unsafe fn zero_points(l: &Layout, tail: *const u8) -> [__m512i; 2] {
    // SAFETY: the caller upholds this contract.
    unsafe {
        [
            zero_points_of_half(l, tail, 0),
            zero_points_of_half(l, tail, 1),
        ]
    }
}

/// One half of the zero points of a group, as dwords.
///
/// # Safety
/// AVX-512 F; `tail` points to the scales of a group.
#[inline(always)]
unsafe fn zero_points_of_half(l: &Layout, tail: *const u8, half: usize) -> __m512i {
    match l.zero {
        // SAFETY: AVX-512 F.
        ZeroKind::Constant(z) => unsafe { _mm512_set1_epi32(z) },
        // SAFETY: with ZeroKind::PerGroup the layout stores 32 zero points after the scales.
        ZeroKind::PerGroup => unsafe {
            let z = tail.add(l.scale_bytes() + 32 * half);
            _mm512_cvtepi16_epi32(_mm256_load_si256(z.cast()))
        },
    }
}

kernel_set! {
    /// AVX-512 as on Skylake-X.
    BASE, base, Base, Avx512, "avx512", "avx512f,avx512bw,avx512vl,avx512dq,fma,f16c"
}
kernel_set! {
    /// [`VNNI`] without splitting.
    VNNI_UNSPLIT = BASE with vnni, Vnni, "avx512+vnni", "avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,avx512vnni"
}

/// AVX-512 as on Cascade Lake.
pub(in crate::cpu) const VNNI: TileKernels = TileKernels {
    split: Some(split::split),
    ..VNNI_UNSPLIT
};

/// [`BASE`] with pairs of tiles for many float32 vectors.
pub(in crate::cpu) const BASE_PAIRS: TileKernels = TileKernels {
    name: "avx512+pairs",
    cores: &[Core::Other],
    pairs: Some(pairs::BASE),
    ..BASE
};

/// [`VNNI`] with pairs of tiles for many vectors.
pub(in crate::cpu) const VNNI_PAIRS: TileKernels = TileKernels {
    name: "avx512+vnni+pairs",
    cores: &[Core::Other],
    pairs: Some(pairs::VNNI),
    ..VNNI
};

/// [`VNNI_PAIRS`] with VPOPCNTDQ and look-ups: AVX-512 as on Ice Lake.
pub(in crate::cpu) const ICE_PAIRS: TileKernels = TileKernels {
    name: "avx512+vnni+vpopcntdq+pairs",
    sign: by_width!(ice_sign),
    lookups: Some(lookup::KERNELS),
    ..VNNI_PAIRS
};

/// [`ICE_PAIRS`] with AMX for many vectors: Sapphire Rapids and later.
pub(in crate::cpu) const AMX: TileKernels = TileKernels {
    name: "avx512+vnni+vpopcntdq+pairs+amx",
    amx: Some(amx::KERNELS),
    ..ICE_PAIRS
};

/// [`VNNI`] with VPOPCNTDQ, and with tables for many vectors of 1-bit weights: AVX-512 as on AMD
/// processors.
pub(in crate::cpu) const ICE_TABLES: TileKernels = TileKernels {
    name: "avx512+vnni+vpopcntdq+tables",
    cores: &[Core::Amd],
    sign: by_width!(ice_sign),
    tables: Some(tables::KERNELS),
    ..VNNI
};

/// [`sign::tile`] with VPOPCNTDQ.
///
/// # Safety
/// The contract of [`crate::cpu::tile`]; AVX-512 F, BW, VL, DQ and VPOPCNTDQ.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,avx512vpopcntdq")]
unsafe fn ice_sign<const V: usize>(
    l: &Layout,
    tile: *const u8,
    x: *const u32,
    l2_distance: usize,
    out: *mut f32,
) {
    // SAFETY: the caller upholds this contract.
    unsafe { sign::tile::<Vpopcntdq, V>(l, tile, x, l2_distance, out) }
}

/// 0, which the compiler does not know. The value at an address and the value at this offset from it
/// are two memory operands, where two uses of one value would be a broadcast into a register, which
/// occupies a pipe that products need (see [`zen4`]).
#[inline(always)]
fn hidden_zero() -> usize {
    let mut zero = 0;
    // SAFETY: there is no instruction.
    unsafe { asm!("/* {} */", inout(reg) zero, options(pure, nomem, nostack, preserves_flags)) };
    zero
}
