//! int8 activations, few vectors: weights in the order of their addresses.
//!
//! The kernels of [`super::int8`] process a part of the rows of a block, then the next part. Where
//! everything waits for memory, that is slow at 8 bits, where the parts are every other cache line, and
//! with several sub-blocks per block. The sums of two vectors (of one at 8 bits) fit the registers for
//! all four octets, so that these kernels read in order, and prefetch the same number of lines beside
//! every step. µs, 4096 × 4096 from memory on Zen 3, in parts and in order, one vector: 1398 and 959 at 8
//! bits; with groups of 128, 1850 and 1025 at 8, 842 and 496 at 4. Two vectors take as long
//! as one at 8 and 4 bits.

use super::int8::four_columns;
use super::{OCTETS, scales, zero_points};
use crate::cpu::layout::{Layout, SUB_COLS, TILE_ROWS, ZeroKind};
use crate::cpu::tile::{Int8Acts, Prefetch};
use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

/// What to prefetch into L1.
struct Ahead {
    at: *const u8,
    /// Bytes for every 64 that are read: fewer where this is one of several passes over a tile, each
    /// of which prefetches its share. Three and five vectors, the last of which has a pass of its own,
    /// took 1.3 to 1.4 times as long at 8 bits when that prefetched as much as it read.
    step: usize,
}

impl Ahead {
    /// Prefetches beside the next 64 bytes. The address need not be valid.
    #[inline(always)]
    fn line(&mut self) {
        // SAFETY: a prefetch has no visible effect.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(self.at.cast()) };
        self.at = self.at.wrapping_add(self.step);
    }
}

/// [`super::int8::tile`] without AVX-VNNI.
///
/// # Safety
/// The contract of [`crate::cpu::tile`]; AVX2, FMA and F16C.
#[inline(always)]
pub(super) unsafe fn tile<const BITS: usize, const V: usize>(
    l: &Layout,
    first: usize,
    count: usize,
    tile: *const u8,
    acts: Int8Acts,
    ahead: Prefetch,
    out: *mut f32,
) {
    let tile = tile.wrapping_add(l.group_offset(first));
    let ahead = Ahead {
        at: ahead.at,
        step: 64 * ahead.lines / (2 * BITS),
    };
    let groups = first..first + count;
    // SAFETY: the caller upholds this contract.
    unsafe {
        match l.plain() {
            true => multiply::<BITS, V, true>(l, groups, tile, acts, ahead, out),
            false => multiply::<BITS, V, false>(l, groups, tile, acts, ahead, out),
        }
    }
}

/// [`tile`], from the first of some groups on. `PLAIN` is [`Layout::plain`], known at compile time:
/// one vector took 3.1 instead of 3.4 µs (128 × 1024 at 4 bits, from cache).
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn multiply<const BITS: usize, const V: usize, const PLAIN: bool>(
    l: &Layout,
    groups: Range<usize>,
    mut p: *const u8,
    mut acts: Int8Acts,
    mut ahead: Ahead,
    out: *mut f32,
) {
    // SAFETY: every pointer advances through what the contract describes, in its order: the
    // sub-blocks of a group, its tail, the next group; 32 codes of each vector per sub-block; a
    // scale and a correction of each per block. `out` is (V, 32).
    unsafe {
        let mut f = [[_mm256_setzero_ps(); OCTETS]; V];
        for (i, f) in f.as_flattened_mut().iter_mut().enumerate() {
            *f = _mm256_load_ps(out.add(8 * i));
        }
        for g in groups {
            let mut subs = if PLAIN { 1 } else { l.group_subs(g) };
            let tail = p.add(subs * 4 * SUB_COLS * BITS);
            while subs > 0 {
                let block_subs = if PLAIN { 1 } else { subs.min(l.block_subs) };
                subs -= block_subs;
                let mut sums = [[_mm256_setzero_si256(); OCTETS]; V];
                for s in 0..block_subs {
                    let of_sub = match BITS {
                        8 => bytes::<V>(p, acts.codes, &mut ahead),
                        _ => codes::<BITS, V>(p, acts.codes, &mut ahead),
                    };
                    let of_sub = of_sub.as_flattened();
                    for (sum, of_sub) in sums.as_flattened_mut().iter_mut().zip(of_sub) {
                        *sum = match s {
                            0 => *of_sub,
                            _ => _mm256_add_epi32(*sum, *of_sub),
                        };
                    }
                    p = p.add(4 * SUB_COLS * BITS);
                    acts.codes = acts.codes.add(V * SUB_COLS);
                }
                for o in 0..OCTETS {
                    let scale = match PLAIN {
                        true => _mm256_cvtph_ps(_mm_load_si128(tail.add(16 * o).cast())),
                        false => scales(l, tail, o),
                    };
                    for v in 0..V {
                        let correction = _mm256_set1_epi32(*acts.corrections.add(v));
                        let sx = _mm256_set1_ps(*acts.scales.add(v));
                        let correction = match l.zero {
                            ZeroKind::PerGroup if !PLAIN => {
                                // Both factors fit 16 bits, and the high words of the zero points are 0.
                                _mm256_madd_epi16(zero_points(l, tail, o), correction)
                            }
                            _ => correction,
                        };
                        let sum = _mm256_cvtepi32_ps(_mm256_add_epi32(sums[v][o], correction));
                        f[v][o] = _mm256_fmadd_ps(sum, _mm256_mul_ps(scale, sx), f[v][o]);
                    }
                }
                acts.scales = acts.scales.add(V);
                acts.corrections = acts.corrections.add(V);
            }
            let tail_bytes = if PLAIN { 2 * TILE_ROWS } else { l.tail_bytes() };
            for _ in 0..tail_bytes / 64 {
                ahead.line();
            }
            p = p.add(tail_bytes);
        }
        for (i, &f) in f.as_flattened().iter().enumerate() {
            _mm256_store_ps(out.add(8 * i), f);
        }
    }
}

/// A sub-block of `BITS` below 8 times its activations.
///
/// # Safety
/// AVX2; there are a sub-block at `p` and 32 codes of every vector at `x`.
#[inline(always)]
unsafe fn codes<const BITS: usize, const V: usize>(
    p: *const u8,
    x: *const i8,
    ahead: &mut Ahead,
) -> [[__m256i; OCTETS]; V] {
    // SAFETY: columns `4k..4k + 4` are in the sub-block and among the codes.
    unsafe {
        // `Int16Sums` says why the sums fit.
        let mut sums = [[_mm256_setzero_si256(); OCTETS]; V];
        unroll!(I in 0..8 => {
            // In the order of the dwords that hold them.
            let (q, in_byte) = (I / (8 / BITS), I % (8 / BITS));
            if in_byte == 0 {
                ahead.line();
                ahead.line();
            }
            let k = q + BITS * in_byte;
            for o in 0..OCTETS {
                let w = four_columns::<BITS>(p.add(32 * o), k);
                for (v, sums) in sums.iter_mut().enumerate() {
                    let x = four(x.add(v * SUB_COLS), k);
                    sums[o] = computed(_mm256_add_epi16(sums[o], _mm256_maddubs_epi16(w, x)));
                }
            }
        });
        for sum in sums.as_flattened_mut() {
            *sum = _mm256_madd_epi16(*sum, _mm256_set1_epi16(1));
        }
        sums
    }
}

/// A sub-block of 8 bits times its activations, from memory with the first vector and from cache with
/// the others.
///
/// # Safety
/// As [`codes`].
#[inline(always)]
unsafe fn bytes<const V: usize>(
    p: *const u8,
    x: *const i8,
    ahead: &mut Ahead,
) -> [[__m256i; OCTETS]; V] {
    // SAFETY: the caller upholds this contract.
    unsafe {
        let mut sums = [[_mm256_setzero_si256(); OCTETS]; V];
        for (v, sums) in sums.iter_mut().enumerate() {
            let x = x.add(v * SUB_COLS);
            *sums = match v {
                0 => bytes_of_one(p, x, Some(ahead)),
                _ => bytes_of_one(p, x, None),
            };
        }
        sums
    }
}

/// [`bytes`] for one vector.
///
/// The products of bytes do not fit the int16 of `vpmaddubsw`, so that one factor must be split.
/// Nibbles of the weights take three instructions for every 32 weights; here each activation is
/// `16 * high + low` with both digits from -8 to 8, which costs nothing for the weights. A sum of
/// 16 products is at most `16 * 255 * 8 = 32640`.
///
/// # Safety
/// As [`codes`].
#[inline(always)]
unsafe fn bytes_of_one(
    p: *const u8,
    x: *const i8,
    mut ahead: Option<&mut Ahead>,
) -> [__m256i; OCTETS] {
    // SAFETY: the dwords `k` of the octets are in the sub-block, and codes `4k..4k + 4` among the 32.
    unsafe {
        let codes = _mm256_loadu_si256(x.cast());
        let eight = _mm256_set1_epi8(8);
        let low = _mm256_and_si256(_mm256_add_epi8(codes, eight), _mm256_set1_epi8(15));
        // The rounding average with 0 of the upper five bits of x + 128.
        let upper = _mm256_xor_si256(codes, _mm256_set1_epi8(i8::MIN));
        let upper = _mm256_and_si256(_mm256_srli_epi16::<3>(upper), _mm256_set1_epi8(31));
        let high = _mm256_avg_epu8(upper, _mm256_setzero_si256());
        // In memory, from where a broadcast occupies no pipe that the products need. The compiler
        // knows what is there and would shuffle registers, of which there are not enough.
        let digits = [_mm256_sub_epi8(low, eight), _mm256_sub_epi8(high, eight)];
        let mut low: *const i8 = digits.as_ptr().cast();
        asm!("/* {} */", inout(reg) low, options(nostack, preserves_flags));
        let high = low.add(SUB_COLS);
        let mut sums = [[_mm256_setzero_si256(); 2]; OCTETS];
        unroll!(K in 0..8 => {
            if let Some(ahead) = &mut ahead {
                ahead.line();
                ahead.line();
            }
            let x = [four(low, K), four(high, K)];
            for (o, sums) in sums.iter_mut().enumerate() {
                let w = four_columns::<8>(p.add(32 * o), K);
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = computed(_mm256_add_epi16(*sum, _mm256_maddubs_epi16(w, x)));
                }
            }
        });
        let mut totals = [_mm256_setzero_si256(); OCTETS];
        for (total, [low, high]) in totals.iter_mut().zip(sums) {
            let low = _mm256_madd_epi16(low, _mm256_set1_epi16(1));
            let high = _mm256_madd_epi16(high, _mm256_set1_epi16(16));
            *total = _mm256_add_epi32(low, high);
        }
        totals
    }
}

/// Four bytes in each dword.
///
/// # Safety
/// AVX2; there are bytes `4k..4k + 4` at `x`.
#[inline(always)]
unsafe fn four(x: *const i8, k: usize) -> __m256i {
    // SAFETY: the caller upholds this contract.
    unsafe { _mm256_set1_epi32(x.add(4 * k).cast::<i32>().read_unaligned()) }
}

/// Computes a sum at this point of the program. [`super::pin`] keeps additions in order among
/// themselves; this also keeps them where they are among prefetches and other sums, without which the
/// optimiser multiplied octet by octet, as slowly as [`super::int8`].
#[target_feature(enable = "avx2")]
#[inline]
fn computed(sum: __m256i) -> __m256i {
    let mut sum = sum;
    // SAFETY: there is no instruction.
    unsafe { asm!("/* {} */", inout(ymm_reg) sum, options(nomem, nostack, preserves_flags)) };
    sum
}
