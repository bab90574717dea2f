//! AVX2: the tile kernels on 256-bit registers, one *octet* (8 of the 32 rows of a tile) per
//! register.
//!
//! The layout is that of [`super::layout`]: a 64-byte vector `(q, half)` is two octets, so that
//! octet `o` of the dwords `q` is at `128 * q + 32 * o`, and its scales and zero points at `o`
//! quarters of theirs.
//!
//! There are 16 registers, not 32. Where an AVX-512 kernel keeps the accumulators of all its
//! vectors and rows, these kernels process a group in passes of a few octets × a few vectors and
//! unpack the weights, which are then in L1, again in each pass.
//!
//! Two sets share the source of most kernels: [`BASE`] needs AVX2, FMA, F16C and POPCNT, [`VNNI`]
//! also AVX-VNNI. [`BASE_PAIRS`] and [`BASE_TABLES`] add others to the former.
//! The trait [`Extensions`] names what differs. The generic functions have no `target_feature` and
//! are `inline(always)`, so that they are compiled with the features of the entry point that they
//! are inlined into.

mod activations;
mod f32;
mod in_order;
mod int8;
mod pairs;
mod short;
mod sign;
mod split;
mod tables;

use super::layout::{Layout, ScaleKind, TILE_ROWS, ZeroKind};
use std::arch::asm;
use std::arch::x86_64::*;

/// Octets of a tile.
const OCTETS: usize = TILE_ROWS / 8;

/// What differs between the sets: how byte products are summed.
trait Extensions {
    /// Accumulators for an octet of rows, to be reduced to 8 int32.
    type Sums: Copy;

    /// Whether the accumulators of an octet take two registers at 8 bits, and one otherwise.
    const SPLITS_BYTES: bool;

    /// Zeros.
    ///
    /// # Safety
    /// The processor has the extensions of the implementor.
    unsafe fn nothing() -> Self::Sums;

    /// Adds in each dword the four products of the bytes of `u`, codes of `BITS` (one bit: 0 or 2),
    /// and the signed bytes of `s`. At most one sub-block (8 calls) may be added before
    /// [`Extensions::settle`].
    ///
    /// # Safety
    /// The processor has the extensions of the implementor.
    unsafe fn add<const BITS: usize>(sums: Self::Sums, u: __m256i, s: __m256i) -> Self::Sums;

    /// Makes room for another sub-block, for up to four in all.
    ///
    /// # Safety
    /// The processor has the extensions of the implementor.
    unsafe fn settle<const BITS: usize>(sums: Self::Sums) -> Self::Sums;

    /// The sums, one int32 per row.
    ///
    /// # Safety
    /// The processor has the extensions of the implementor.
    unsafe fn total<const BITS: usize>(sums: Self::Sums) -> __m256i;

    /// `acc` plus the four unsigned bytes of each dword.
    ///
    /// # Safety
    /// The processor has the extensions of the implementor.
    unsafe fn add_bytes(acc: __m256i, bytes: __m256i) -> __m256i;
}

/// AVX2: `vpmaddubsw` sums pairs of products in int16.
struct Base;
/// And AVX-VNNI: `vpdpbusd` adds four products to an int32.
struct Vnni;

/// Accumulators of [`Base`]. Sums stay in int16 as long as they fit, because a `vpmaddwd` and an
/// addition per `vpmaddubsw` would double the work. A lane adds two products at a time, 16 per
/// sub-block:
///
/// - 4 bits: `16 * 15 * 128 = 30720`, one sub-block.
/// - 2 bits: `16 * 3 * 128 = 6144`, four sub-blocks (24576).
/// - 1 bit: `16 * 2 * 128 = 4096`, four sub-blocks.
/// - 8 bits: `vpmaddubsw` itself saturates at `2 * 255 * 127`. The two nibbles are summed
///   separately, each as at 4 bits.
#[derive(Clone, Copy)]
struct Int16Sums {
    /// int16: codes, or low nibbles.
    low: __m256i,
    /// int16: high nibbles, at 8 bits only.
    high: __m256i,
    /// int32: sums of earlier sub-blocks.
    settled: __m256i,
}

impl Extensions for Base {
    type Sums = Int16Sums;

    const SPLITS_BYTES: bool = true;

    #[inline(always)]
    unsafe fn nothing() -> Int16Sums {
        // SAFETY: the caller guarantees AVX2.
        let zero = unsafe { _mm256_setzero_si256() };
        Int16Sums {
            low: zero,
            high: zero,
            settled: zero,
        }
    }

    #[inline(always)]
    unsafe fn add<const BITS: usize>(sums: Int16Sums, u: __m256i, s: __m256i) -> Int16Sums {
        // SAFETY: the caller guarantees AVX2.
        unsafe {
            if BITS < 8 {
                let low = pin(_mm256_add_epi16(sums.low, _mm256_maddubs_epi16(u, s)));
                return Int16Sums { low, ..sums };
            }
            let nibble = _mm256_set1_epi8(15);
            let low = _mm256_and_si256(u, nibble);
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(u), nibble);
            Int16Sums {
                low: pin(_mm256_add_epi16(sums.low, _mm256_maddubs_epi16(low, s))),
                high: pin(_mm256_add_epi16(sums.high, _mm256_maddubs_epi16(high, s))),
                settled: sums.settled,
            }
        }
    }

    #[inline(always)]
    unsafe fn settle<const BITS: usize>(sums: Int16Sums) -> Int16Sums {
        if BITS < 4 {
            return sums;
        }
        // SAFETY: the caller upholds this contract.
        unsafe {
            Int16Sums {
                settled: Self::total::<BITS>(sums),
                ..Self::nothing()
            }
        }
    }

    #[inline(always)]
    unsafe fn total<const BITS: usize>(sums: Int16Sums) -> __m256i {
        // SAFETY: the caller guarantees AVX2.
        unsafe {
            let low = _mm256_madd_epi16(sums.low, _mm256_set1_epi16(1));
            let total = _mm256_add_epi32(sums.settled, low);
            if BITS < 8 {
                return total;
            }
            _mm256_add_epi32(total, _mm256_madd_epi16(sums.high, _mm256_set1_epi16(16)))
        }
    }

    #[inline(always)]
    unsafe fn add_bytes(acc: __m256i, bytes: __m256i) -> __m256i {
        // SAFETY: the caller guarantees AVX2.
        unsafe {
            let pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1));
            _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }
}

impl Extensions for Vnni {
    type Sums = __m256i;

    const SPLITS_BYTES: bool = false;

    #[inline(always)]
    unsafe fn nothing() -> __m256i {
        // SAFETY: the caller guarantees AVX2.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn add<const BITS: usize>(sums: __m256i, u: __m256i, s: __m256i) -> __m256i {
        // SAFETY: the caller guarantees AVX-VNNI.
        unsafe { _mm256_dpbusd_avx_epi32(sums, u, s) }
    }

    #[inline(always)]
    unsafe fn settle<const BITS: usize>(sums: __m256i) -> __m256i {
        sums
    }

    #[inline(always)]
    unsafe fn total<const BITS: usize>(sums: __m256i) -> __m256i {
        sums
    }

    #[inline(always)]
    unsafe fn add_bytes(acc: __m256i, bytes: __m256i) -> __m256i {
        // SAFETY: the caller guarantees AVX-VNNI.
        unsafe { _mm256_dpbusd_avx_epi32(acc, bytes, _mm256_set1_epi8(1)) }
    }
}

/// Computes a sum at this point of the program. The optimiser would reorder additions, which takes
/// more registers than there are, and spill.
#[target_feature(enable = "avx2")]
#[inline]
fn pin(sum: __m256i) -> __m256i {
    let mut sum = sum;
    // SAFETY: there is no instruction.
    unsafe { asm!("/* {} */", inout(ymm_reg) sum, options(pure, nomem, nostack, preserves_flags)) };
    sum
}

/// As [`pin`]: the optimiser keeps the order of floating-point additions, but would compute later
/// operands first.
#[target_feature(enable = "avx2")]
#[inline]
fn pin_ps(sum: __m256) -> __m256 {
    let mut sum = sum;
    // SAFETY: there is no instruction.
    unsafe { asm!("/* {} */", inout(ymm_reg) sum, options(pure, nomem, nostack, preserves_flags)) };
    sum
}

/// The scales of an octet.
///
/// # Safety
/// AVX2 and F16C; `tail` points to the scales of a group.
#[inline(always)]
unsafe fn scales(l: &Layout, tail: *const u8, octet: usize) -> __m256 {
    // SAFETY: the layout puts 32 scales there, aligned to 64 bytes.
    unsafe {
        match l.scale {
            ScaleKind::F16 => _mm256_cvtph_ps(_mm_load_si128(tail.add(16 * octet).cast())),
            ScaleKind::F32 => _mm256_load_ps(tail.add(32 * octet).cast()),
        }
    }
}

/// The zero points of an octet, as dwords.
///
/// # Safety
/// AVX2; `tail` points to the scales of a group.
#[inline(always)]
unsafe fn zero_points(l: &Layout, tail: *const u8, octet: usize) -> __m256i {
    match l.zero {
        // SAFETY: AVX2.
        ZeroKind::Constant(z) => unsafe { _mm256_set1_epi32(z) },
        // SAFETY: with ZeroKind::PerGroup the layout stores 32 zero points after the scales.
        ZeroKind::PerGroup => unsafe {
            let z = tail.add(l.scale_bytes() + 16 * octet);
            _mm256_cvtepi16_epi32(_mm_load_si128(z.cast()))
        },
    }
}

/// Prefetches `bytes` bytes from `near` on into L1, a line at a time, and as many from `far` on
/// into L2. The addresses need not be valid.
#[inline(always)]
fn prefetch(near: *const u8, far: *const u8, bytes: usize) {
    for line in (0..bytes).step_by(64) {
        // SAFETY: a prefetch has no visible effect.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(far.wrapping_add(line).cast());
            _mm_prefetch::<_MM_HINT_T0>(near.wrapping_add(line).cast());
        }
    }
}

kernel_set! {
    /// AVX2 with FMA, F16C and POPCNT.
    BASE, base, Base, Avx2, "avx2", "avx2,fma,f16c,popcnt"
}
kernel_set! {
    /// [`BASE`] with AVX-VNNI.
    VNNI = BASE with vnni, Vnni, "avx2+vnni", "avx2,fma,f16c,popcnt,avxvnni"
}

/// [`BASE`] with weights unpacked for many int8 vectors.
pub(in crate::cpu) const BASE_PAIRS: super::tile::TileKernels = super::tile::TileKernels {
    name: "avx2+pairs",
    // 4096 × 4096 from memory on Zen 3, µs with 1.5 and 5 KB: 1098 and 1238 at 8 bits; with groups of
    // 128, 1037 and 1140 at 8 bits, 584 and 605 at 4. With two vectors there was no difference.
    one_vector_distance: 1536,
    pairs: Some(pairs::KERNELS),
    split: Some(split::split),
    max_split_bits: 4,
    ..BASE
};

/// [`BASE_PAIRS`] with tables for 1-bit weights.
pub(in crate::cpu) const BASE_TABLES: super::tile::TileKernels = super::tile::TileKernels {
    name: "avx2+pairs+tables",
    lookups: Some(tables::LOOKUPS),
    tables: Some(tables::TABLES),
    ..BASE_PAIRS
};

/// [`BASE`] with the fused kernels for more vectors than pay: otherwise no test would cover them
/// with that many.
#[cfg(test)]
pub(in crate::cpu) const BASE_DIRECT: super::tile::TileKernels = super::tile::TileKernels {
    name: "avx2+direct",
    cores: &[],
    max_direct_vectors: [48; 4],
    ..BASE
};
