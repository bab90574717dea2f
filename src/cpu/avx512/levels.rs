//! Codes to floats, exactly: their levels, `code - zero_point`.

use crate::cpu::layout::{Layout, ZeroKind};
use std::arch::x86_64::*;

/// Converts the dwords of a sub-block to levels (see [`crate::cpu::layout`] for the layout).
pub(super) trait Levels: Copy {
    /// For a matrix.
    ///
    /// # Safety
    /// AVX-512 F and BW.
    unsafe fn of_matrix<const BITS: usize>(l: &Layout) -> Self;

    /// For a group with these zero points of 16 rows.
    ///
    /// # Safety
    /// AVX-512 F.
    unsafe fn of_group<const BITS: usize>(self, zeros: __m512i) -> Self;

    /// The levels of column `col` of a sub-block, whose dword `q = (col / 4) % BITS` is `dword`.
    ///
    /// # Safety
    /// AVX-512 F and BW.
    unsafe fn level<const BITS: usize>(&self, dword: __m512i, col: usize) -> __m512;
}

/// Converts a field of a dword to a float without a conversion instruction: masked into the
/// mantissa of `2^(23 - shift)` it *is* that number plus the code, and subtracting
/// `2^(23 - shift) + zero_point` leaves the level. On Zen 5 the masking runs on any of four pipes
/// and the subtraction alongside the multiply-adds. With one bit, the bit is moved into the sign of
/// 1.0 instead.
#[derive(Clone, Copy)]
pub(super) struct Masked {
    /// `2^(23 - shift) + zero_point` for the four positions of a field in a 16-bit half.
    base: [__m512; 4],
}

/// Field positions that need no shift of the dword: bit offsets `0, BITS, 2 BITS, 3 BITS`, or 0 and
/// 8 at 8 bits.
const fn places(bits: usize) -> usize {
    if bits == 8 { 2 } else { 4 }
}

impl Masked {
    /// The bits of `2^(23 - shift)`.
    ///
    /// # Safety
    /// AVX-512 F.
    #[inline(always)]
    unsafe fn magic<const BITS: usize>(place: usize) -> __m512i {
        let exponent = 23 - BITS * place;
        // SAFETY: AVX-512 F.
        unsafe { _mm512_set1_epi32(((127 + exponent) << 23) as i32) }
    }
}

impl Levels for Masked {
    #[inline(always)]
    unsafe fn of_matrix<const BITS: usize>(_: &Layout) -> Masked {
        // SAFETY: AVX-512 F.
        let base = unsafe { [_mm512_setzero_ps(); 4] };
        Masked { base }
    }

    #[inline(always)]
    unsafe fn of_group<const BITS: usize>(self, zeros: __m512i) -> Masked {
        // SAFETY: AVX-512 F.
        unsafe {
            let zero = _mm512_cvtepi32_ps(zeros);
            let mut base = [zero; 4];
            let mut i = 0;
            while i < places(BITS) {
                base[i] = _mm512_add_ps(_mm512_castsi512_ps(Self::magic::<BITS>(i)), zero);
                i += 1;
            }
            Masked { base }
        }
    }

    #[inline(always)]
    unsafe fn level<const BITS: usize>(&self, dword: __m512i, col: usize) -> __m512 {
        let bit = 8 * (col % 4) + BITS * (col / 4 / BITS);
        let window = BITS * places(BITS);
        let place = bit % window / BITS;
        // SAFETY: AVX-512 F.
        unsafe {
            if BITS == 1 {
                let top = _mm512_sll_epi32(dword, _mm_cvtsi32_si128(31 - bit as i32));
                let sign = _mm512_set1_epi32(i32::MIN);
                let one = _mm512_castps_si512(_mm512_set1_ps(1.0));
                // one | (!top & sign)
                return _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<0xae>(top, sign, one));
            }
            let shift = _mm_cvtsi32_si128((bit - bit % window) as i32);
            let v = if bit < window {
                dword
            } else {
                _mm512_srl_epi32(dword, shift)
            };
            let mask = _mm512_set1_epi32(((1 << BITS) - 1) << (BITS * place));
            // (v & mask) | magic
            let f = _mm512_ternarylogic_epi32::<0xea>(v, mask, Self::magic::<BITS>(place));
            _mm512_sub_ps(_mm512_castsi512_ps(f), self.base[place])
        }
    }
}

/// Levels from a table, two columns per look-up, for constant zero points. `vpermw` returns the
/// upper half of the float, whose lower half is zero, for the code in the low bits of each half of
/// the dword; the table is repeated, so that the index bits above the code do not matter. At 8
/// bits, bytes are moved into the mantissa of `2^23` by `vpshufb` and an or; zero points may then
/// vary.
///
/// On Zen 4 a three-operand instruction such as the masking of [`Masked`] and a multiply-add
/// contend with each other (see [`super::zen4`]). One vector, masked and shuffled, µs: 678 and 570
/// at 2 bits, 659 and 564 at 4, 586 and 571 at 1 (4096 × 4096, from cache, two alternating runs);
/// at 8 bits 665 and 725.
#[derive(Clone, Copy)]
pub(super) struct Shuffled {
    /// The table; at 8 bits `2^23 + zero_point`.
    of_codes: __m512i,
}

/// The bits of `2^23`.
const MANTISSA: i32 = (127 + 23) << 23;

impl Levels for Shuffled {
    #[inline(always)]
    unsafe fn of_matrix<const BITS: usize>(l: &Layout) -> Shuffled {
        let ZeroKind::Constant(zero) = l.zero else {
            // SAFETY: AVX-512 F.
            let of_codes = unsafe { _mm512_setzero_si512() };
            return Shuffled { of_codes };
        };
        // SAFETY: AVX-512 F and BW.
        unsafe {
            let code = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let code = _mm512_and_si512(code, _mm512_set1_epi32((1 << BITS) - 1));
            // With one bit, the zero point refers to doubled codes.
            let level = match BITS {
                1 => _mm512_sub_epi32(_mm512_add_epi32(code, code), _mm512_set1_epi32(zero)),
                _ => _mm512_sub_epi32(code, _mm512_set1_epi32(zero)),
            };
            let level = _mm512_castps_si512(_mm512_cvtepi32_ps(level));
            let upper = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(level));
            let of_codes = _mm512_broadcast_i64x4(upper);
            Shuffled { of_codes }
        }
    }

    #[inline(always)]
    unsafe fn of_group<const BITS: usize>(self, zeros: __m512i) -> Shuffled {
        if BITS < 8 {
            return self;
        }
        // SAFETY: AVX-512 F.
        unsafe {
            let of_codes = _mm512_add_ps(
                _mm512_castsi512_ps(_mm512_set1_epi32(MANTISSA)),
                _mm512_cvtepi32_ps(zeros),
            );
            let of_codes = _mm512_castps_si512(of_codes);
            Shuffled { of_codes }
        }
    }

    #[inline(always)]
    unsafe fn level<const BITS: usize>(&self, dword: __m512i, col: usize) -> __m512 {
        let bit = 8 * (col % 4) + BITS * (col / 4 / BITS);
        // SAFETY: AVX-512 F and BW.
        unsafe {
            if BITS == 8 {
                // Byte col % 4 of each dword, zero-extended.
                let index = _mm512_set4_epi32(12, 8, 4, 0);
                let index = _mm512_or_si512(
                    _mm512_add_epi32(index, _mm512_set1_epi32((col % 4) as i32)),
                    _mm512_set1_epi32(0x8080_8000_u32 as i32),
                );
                let code = _mm512_shuffle_epi8(dword, index);
                let f = _mm512_or_si512(code, _mm512_set1_epi32(MANTISSA));
                return _mm512_sub_ps(_mm512_castsi512_ps(f), _mm512_castsi512_ps(self.of_codes));
            }
            let index = match bit % 16 {
                0 => dword,
                shift => _mm512_srl_epi16(dword, _mm_cvtsi32_si128(shift as i32)),
            };
            let two = _mm512_permutexvar_epi16(index, self.of_codes);
            _mm512_castsi512_ps(match bit / 16 {
                0 => _mm512_slli_epi32::<16>(two),
                _ => _mm512_and_si512(two, _mm512_set1_epi32(!0xffff)),
            })
        }
    }
}
