//! 1-bit weights, int8 activations and many vectors, by tables: the sums of four columns are looked
//! up, 32 per instruction.
//!
//! `vpermw` selects 32 words from a table of 32. A 1-bit dword (see [`crate::cpu::layout`]) is two
//! words of 16 bits: four times four columns of one row in the even words, four times four others
//! in the odd ones. A table of four columns therefore has the 16 sums of the even words in its
//! lower half and those of the odd words in its upper half, selected by bit 4 of an index. One
//! look-up and one addition then cover 16 rows × 8 columns, for which `vpdpbusd` is needed twice:
//! that instruction shares two ports with the floating-point arithmetic, which an addition does
//! not, and needs unpacked codes. This pays as long as the tables stay in L1 and are used for many
//! tiles.
//!
//! Tables hold sums of doubled bits, as in [`super::int8`], to which the corrections of the
//! contract are added: the same integers, followed by the same order of float32 sums.

use super::scales;
use crate::cpu::layout::{Layout, SUB_COLS, TILE_ROWS};
use crate::cpu::tile::{TABLE_WORDS, TableActs, Tables, WIDTHS};
use std::arch::x86_64::*;

/// The functions for a kernel set.
pub(super) const KERNELS: Tables = Tables { build, multiply };

/// Bytes of a vector.
#[repr(align(64))]
struct Bytes([u8; 64]);

/// Which two columns a word of a table sums, for the lower and the upper two bits of its index.
static COLUMNS: [[Bytes; 2]; 4] = {
    let mut all = [const { [const { Bytes([0; 64]) }; 2] }; 4];
    let mut i = 0;
    while i < 4 * 2 * 64 {
        let (n, pair, byte) = (i / 128, i / 64 % 2, i % 64);
        let odd = byte / 32;
        // Nibble n of a word: byte j of the dword, and columns 4p + j for the lower or the upper
        // four p.
        let column = 16 * (n % 2) + n / 2 + 2 * odd + 8 * pair + 4 * (byte % 2);
        all[n][pair].0[byte] = column as u8;
        i += 1;
    }
    all
};

/// Twice each of these two bits of the index of a word.
static BITS: [Bytes; 2] = {
    let mut all = [const { Bytes([0; 64]) }; 2];
    let mut i = 0;
    while i < 2 * 64 {
        let (pair, byte) = (i / 64, i % 64);
        let index = byte / 2 % 16;
        all[pair].0[byte] = 2 * ((index >> (2 * pair + byte % 2)) & 1) as u8;
        i += 1;
    }
    all
};

/// The contract of [`crate::cpu::tile::BuildFn`].
///
/// # Safety
/// AVX-512 BW and VBMI; `codes` `(count, 32)`, `tables` `(count, TABLE_WORDS)` aligned to 64 bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
unsafe fn build(codes: *const i8, count: usize, tables: *mut i16) {
    // SAFETY: the statics are vectors; the rest is guaranteed by the caller.
    unsafe {
        let bits = [0, 1].map(|pair: usize| _mm512_load_si512(BITS[pair].0.as_ptr().cast()));
        for i in 0..count {
            let code = _mm256_loadu_si256(codes.add(i * SUB_COLS).cast());
            let code = _mm512_broadcast_i64x4(code);
            for (n, columns) in COLUMNS.iter().enumerate() {
                let [lower, upper] = [0, 1].map(|pair: usize| {
                    let columns = _mm512_load_si512(columns[pair].0.as_ptr().cast());
                    _mm512_maddubs_epi16(bits[pair], _mm512_permutexvar_epi8(columns, code))
                });
                let table = tables.add(i * TABLE_WORDS + 32 * n);
                _mm512_store_si512(table.cast(), _mm512_add_epi16(lower, upper));
            }
        }
    }
}

/// Stage: each sub-block is a block of activations.
const EACH: u8 = 0;
/// Stage: all sub-blocks together are one block.
const WHOLE: u8 = 1;
/// Stage: they are the first ones of a block.
const OPEN: u8 = 2;
/// Stage: they are the last ones of a block whose others were `OPEN`.
const CLOSE: u8 = 3;

/// Integer sums of half a block, kept between `OPEN` and `CLOSE`.
#[repr(align(64))]
struct PartialSums([i16; WIDTHS[0] * 64]);

/// The contract of [`crate::cpu::tile::TablesFn`].
///
/// # Safety
/// AVX-512 with VNNI; what the contract says.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,avx512vnni")]
unsafe fn multiply(
    l: &Layout,
    first: usize,
    count: usize,
    tile: *const u8,
    x: TableActs,
    ahead: isize,
    out: *mut f32,
) {
    let mut carried = PartialSums([0; WIDTHS[0] * 64]);
    let mut sub_blocks = SubBlocks {
        l,
        tile,
        group: first / l.subs,
        sub: first % l.subs,
    };
    let mut pass = VectorPass {
        l,
        x,
        ahead,
        carried: &mut carried.0,
        out,
    };
    let mut left = count;
    // SAFETY: the caller upholds this contract: `left` sub-blocks follow, in whole blocks, and the
    // tables advance with them.
    unsafe {
        while left > 0 {
            let block = l
                .block_subs
                .min(l.group_subs(sub_blocks.group) - sub_blocks.sub);
            left -= block;
            match (l.block_subs, block) {
                (1, _) if left > 0 => {
                    left -= 1;
                    pass.accumulate::<2, EACH>([sub_blocks.next(), sub_blocks.next()]);
                }
                (_, 1) => pass.accumulate::<1, WHOLE>([sub_blocks.next()]),
                (_, 2) => pass.accumulate::<2, WHOLE>([sub_blocks.next(), sub_blocks.next()]),
                (_, 3) => {
                    pass.accumulate::<2, OPEN>([sub_blocks.next(), sub_blocks.next()]);
                    pass.accumulate::<1, CLOSE>([sub_blocks.next()]);
                }
                _ => {
                    pass.accumulate::<2, OPEN>([sub_blocks.next(), sub_blocks.next()]);
                    pass.accumulate::<2, CLOSE>([sub_blocks.next(), sub_blocks.next()]);
                }
            }
        }
    }
}

/// A sub-block, and the tail of its group.
#[derive(Clone, Copy)]
struct Place {
    codes: *const u8,
    tail: *const u8,
}

/// Iterates over the sub-blocks of a tile.
struct SubBlocks<'a> {
    l: &'a Layout,
    tile: *const u8,
    group: usize,
    sub: usize,
}

impl SubBlocks<'_> {
    #[inline(always)]
    fn next(&mut self) -> Place {
        let (subs, bytes) = (self.l.group_subs(self.group), self.l.sub_bytes());
        let group = self.tile.wrapping_add(self.l.group_offset(self.group));
        let place = Place {
            codes: group.wrapping_add(self.sub * bytes),
            tail: group.wrapping_add(subs * bytes),
        };
        self.sub += 1;
        if self.sub == subs {
            (self.group, self.sub) = (self.group + 1, 0);
        }
        place
    }
}

/// Multiplies a few sub-blocks at a time by all vectors.
struct VectorPass<'a> {
    l: &'a Layout,
    /// From the next sub-blocks on.
    x: TableActs,
    ahead: isize,
    carried: &'a mut [i16; WIDTHS[0] * 64],
    out: *mut f32,
}

impl VectorPass<'_> {
    /// The indices of `N` sub-blocks stay in registers, 16 for two, while all vectors pass.
    ///
    /// # Safety
    /// As [`multiply`]; the places are those that come next.
    #[inline(always)]
    unsafe fn accumulate<const N: usize, const STAGE: u8>(&mut self, places: [Place; N]) {
        let vectors = self.x.vectors;
        // SAFETY: 1-bit sub-blocks are two vectors; tables, scales and corrections are as in the
        // contract; `out` is `(vectors, 32)`, and vectors are at most WIDTHS[0]. Prefetches may use
        // any address.
        unsafe {
            let odd = _mm512_set1_epi32(16 << 16);
            let nibble = _mm512_set1_epi16(15);
            let one = _mm512_set1_epi16(1);
            let mut index = [[[_mm512_setzero_si512(); 4]; 2]; N];
            let mut scale = [[_mm512_setzero_ps(); 2]; N];
            for (s, place) in places.iter().enumerate() {
                for half in 0..2 {
                    let v = _mm512_load_si512(place.codes.add(64 * half).cast());
                    let shifted = [
                        v,
                        _mm512_srli_epi16::<4>(v),
                        _mm512_srli_epi16::<8>(v),
                        _mm512_srli_epi16::<12>(v),
                    ];
                    // shifted & nibble | odd
                    index[s][half] = shifted
                        .map(|shifted| _mm512_ternarylogic_epi32::<0xEA>(shifted, nibble, odd));
                    let at = place.codes.wrapping_offset(self.ahead + 64 * half as isize);
                    _mm_prefetch::<_MM_HINT_T0>(at.cast());
                }
                scale[s] = scales(self.l, place.tail);
                _mm_prefetch::<_MM_HINT_T0>(place.tail.wrapping_offset(self.ahead).cast());
            }
            for v in 0..vectors {
                let out = self.out.add(v * TILE_ROWS);
                let carried = self.carried.as_mut_ptr().add(64 * v);
                let mut f = [_mm512_setzero_ps(); 2];
                if STAGE != OPEN {
                    f = [_mm512_load_ps(out), _mm512_load_ps(out.add(16))];
                }
                let mut sums = [_mm512_setzero_si512(); 2];
                if STAGE == CLOSE {
                    sums = [
                        _mm512_load_si512(carried.cast()),
                        _mm512_load_si512(carried.add(32).cast()),
                    ];
                }
                for s in 0..N {
                    if STAGE == EACH {
                        sums = [_mm512_setzero_si512(); 2];
                    }
                    let tables = self.x.tables.add((s * vectors + v) * TABLE_WORDS);
                    for n in 0..4 {
                        let table = _mm512_load_si512(tables.add(32 * n).cast());
                        for half in 0..2 {
                            let found = _mm512_permutexvar_epi16(index[s][half][n], table);
                            sums[half] = _mm512_add_epi16(sums[half], found);
                        }
                    }
                    if STAGE == EACH || (STAGE != OPEN && s + 1 == N) {
                        let block = if STAGE == EACH { s } else { 0 };
                        let at = block * vectors + v;
                        let x = _mm512_set1_ps(*self.x.scales.add(at));
                        let correction = _mm512_set1_epi32(*self.x.corrections.add(at));
                        for half in 0..2 {
                            let sum = _mm512_dpwssd_epi32(correction, sums[half], one);
                            let scale = _mm512_mul_ps(scale[s][half], x);
                            f[half] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, f[half]);
                        }
                    }
                }
                if STAGE == OPEN {
                    _mm512_store_si512(carried.cast(), sums[0]);
                    _mm512_store_si512(carried.add(32).cast(), sums[1]);
                } else {
                    _mm512_store_ps(out, f[0]);
                    _mm512_store_ps(out.add(16), f[1]);
                }
            }
            let blocks = match STAGE {
                EACH => N,
                OPEN => 0,
                _ => 1,
            };
            self.x.tables = self.x.tables.wrapping_add(N * vectors * TABLE_WORDS);
            self.x.scales = self.x.scales.wrapping_add(blocks * vectors);
            self.x.corrections = self.x.corrections.wrapping_add(blocks * vectors);
        }
    }
}
