//! 1-bit weights, int8 activations and several vectors, by tables: the sums of four columns are
//! looked up, 32 per instruction.
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
//! Tables hold sums of activations whose signs are the weights (1-bit codes stand for -1 and +1):
//! the integers that [`super::int8`] obtains with corrections, followed by the same order of
//! float32 sums.

use super::{hidden_zero, scales};
use crate::cpu::layout::{Layout, SUB_COLS, TILE_ROWS};
use crate::cpu::tile::{TABLE_VECTORS, TABLE_WORDS, TableActs, Tables};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// The functions for a kernel set. They have only been measured on Zen 4, whose set takes them for
/// fewer vectors ([`super::zen4`]).
pub(super) const KERNELS: Tables = Tables {
    min_vectors: 8,
    build,
    multiply,
};

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

/// -1 or 1 for each of these two bits of the index of a word.
static SIGNS: [Bytes; 2] = {
    let mut all = [const { Bytes([0; 64]) }; 2];
    let mut i = 0;
    while i < 2 * 64 {
        let (pair, byte) = (i / 64, i % 64);
        let index = byte / 2 % 16;
        all[pair].0[byte] = if (index >> (2 * pair + byte % 2)) & 1 == 1 {
            1
        } else {
            0xFF
        };
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
        let load = |bytes: &Bytes| _mm512_load_si512(bytes.0.as_ptr().cast());
        // Codes become unsigned by adding 128, for the instruction that multiplies by signs.
        let offset = _mm512_set1_epi8(-128);
        let signs = [load(&SIGNS[0]), load(&SIGNS[1])];
        let of_offsets = _mm512_add_epi16(
            _mm512_maddubs_epi16(offset, signs[0]),
            _mm512_maddubs_epi16(offset, signs[1]),
        );
        for i in 0..count {
            let code = _mm256_loadu_si256(codes.add(i * SUB_COLS).cast());
            let code = _mm512_xor_si512(_mm512_broadcast_i64x4(code), offset);
            for (n, columns) in COLUMNS.iter().enumerate() {
                let lower = _mm512_permutexvar_epi8(load(&columns[0]), code);
                let lower = _mm512_maddubs_epi16(lower, signs[0]);
                let upper = _mm512_permutexvar_epi8(load(&columns[1]), code);
                let upper = _mm512_maddubs_epi16(upper, signs[1]);
                let sums = _mm512_sub_epi16(_mm512_add_epi16(lower, upper), of_offsets);
                let table = tables.add(i * TABLE_WORDS + 32 * n);
                _mm512_store_si512(table.cast(), sums);
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
struct PartialSums([MaybeUninit<i16>; TABLE_VECTORS * 64]);

/// The contract of [`crate::cpu::tile::TablesFn`].
///
/// # Safety
/// AVX-512; what the contract says.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")]
unsafe fn multiply(
    l: &Layout,
    first: usize,
    count: usize,
    tile: *const u8,
    x: TableActs,
    ahead: isize,
    out: *mut f32,
) {
    let mut kept = PartialSums([MaybeUninit::uninit(); TABLE_VECTORS * 64]);
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
        kept: &mut kept.0,
        out,
        zero: hidden_zero(),
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
                    pass.process::<2, EACH>([sub_blocks.next(), sub_blocks.next()]);
                }
                (_, 1) => pass.process::<1, WHOLE>([sub_blocks.next()]),
                (_, 2) => pass.process::<2, WHOLE>([sub_blocks.next(), sub_blocks.next()]),
                (_, 3) => {
                    pass.process::<2, OPEN>([sub_blocks.next(), sub_blocks.next()]);
                    pass.process::<1, CLOSE>([sub_blocks.next()]);
                }
                _ => {
                    pass.process::<2, OPEN>([sub_blocks.next(), sub_blocks.next()]);
                    pass.process::<2, CLOSE>([sub_blocks.next(), sub_blocks.next()]);
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
    /// Written by `OPEN`.
    kept: &'a mut [MaybeUninit<i16>; TABLE_VECTORS * 64],
    out: *mut f32,
    zero: usize,
}

impl VectorPass<'_> {
    /// The indices of `N` sub-blocks stay in registers, 16 for two, while all vectors pass.
    ///
    /// # Safety
    /// As [`multiply`]; the places are those that come next.
    #[inline(always)]
    unsafe fn process<const N: usize, const STAGE: u8>(&mut self, places: [Place; N]) {
        let vectors = self.x.vectors;
        // SAFETY: 1-bit sub-blocks are two vectors; tables and scales are as in the contract; `out`
        // is `(vectors, 32)`, and vectors are at most TABLE_VECTORS. Prefetches may use any address.
        unsafe {
            let odd = _mm512_set1_epi32(16 << 16);
            let nibble = _mm512_set1_epi16(15);
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
                    for (index, shifted) in index[s][half].iter_mut().zip(shifted) {
                        // shifted & nibble | odd
                        *index = _mm512_ternarylogic_epi32::<0xEA>(shifted, nibble, odd);
                    }
                    let at = place.codes.wrapping_offset(self.ahead + 64 * half as isize);
                    _mm_prefetch::<_MM_HINT_T1>(at.cast());
                }
                scale[s] = scales(self.l, place.tail);
                _mm_prefetch::<_MM_HINT_T1>(place.tail.wrapping_offset(self.ahead).cast());
            }
            let few = Few { index, scale };
            let mut sums = self.look_up::<N, STAGE>(&few, 0);
            for v in 1..vectors {
                let next = self.look_up::<N, STAGE>(&few, v);
                self.accumulate::<N, STAGE>(&few, v - 1, sums);
                sums = next;
            }
            self.accumulate::<N, STAGE>(&few, vectors - 1, sums);
            let blocks = match STAGE {
                EACH => N,
                OPEN => 0,
                _ => 1,
            };
            self.x.tables = self.x.tables.wrapping_add(N * vectors * TABLE_WORDS);
            self.x.scales = self.x.scales.wrapping_add(blocks * vectors);
        }
    }

    /// The sums of a vector: for `EACH` those of each sub-block, otherwise the sum of all (`OPEN`
    /// keeps it, `CLOSE` begins with what was kept).
    ///
    /// # Safety
    /// As [`VectorPass::process`]; `v` is less than the number of vectors.
    #[inline(always)]
    unsafe fn look_up<const N: usize, const STAGE: u8>(
        &mut self,
        few: &Few<N>,
        v: usize,
    ) -> [[__m512i; 2]; N] {
        // SAFETY: the caller upholds this contract.
        unsafe {
            let kept = self.kept.as_mut_ptr().add(64 * v);
            let mut sums = [[_mm512_setzero_si512(); 2]; N];
            if STAGE == CLOSE {
                sums[0] = [
                    _mm512_load_si512(kept.cast()),
                    _mm512_load_si512(kept.add(32).cast()),
                ];
            }
            for s in 0..N {
                let tables = (self.x.tables).add((s * self.x.vectors + v) * TABLE_WORDS);
                let sums = &mut sums[if STAGE == EACH { s } else { 0 }];
                for n in 0..4 {
                    let table = _mm512_load_si512(tables.add(32 * n).cast());
                    for half in 0..2 {
                        let found = _mm512_permutexvar_epi16(few.index[s][half][n], table);
                        sums[half] = _mm512_add_epi16(sums[half], found);
                    }
                }
            }
            if STAGE == OPEN {
                _mm512_store_si512(kept.cast(), sums[0][0]);
                _mm512_store_si512(kept.add(32).cast(), sums[0][1]);
            }
            sums
        }
    }

    /// Adds the sums of a vector, scaled, to `out`; not for `OPEN`.
    ///
    /// # Safety
    /// As [`VectorPass::look_up`].
    #[inline(always)]
    unsafe fn accumulate<const N: usize, const STAGE: u8>(
        &mut self,
        few: &Few<N>,
        v: usize,
        sums: [[__m512i; 2]; N],
    ) {
        if STAGE == OPEN {
            return;
        }
        // SAFETY: the caller upholds this contract.
        unsafe {
            let one = _mm512_set1_epi16(1);
            let out = self.out.add(v * TILE_ROWS);
            let mut f = [_mm512_load_ps(out), _mm512_load_ps(out.add(16))];
            // The last sub-block of each block, whose group is that of the others.
            let blocks = if STAGE == EACH { 0..N } else { N - 1..N };
            for (block, s) in blocks.enumerate() {
                let x = self.x.scales.add(block * self.x.vectors + v);
                let x = [x, x.add(self.zero)];
                for half in 0..2 {
                    let sum = _mm512_madd_epi16(sums[block][half], one);
                    let scale = _mm512_mul_ps(few.scale[s][half], _mm512_set1_ps(*x[half]));
                    f[half] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, f[half]);
                }
            }
            _mm512_store_ps(out, f[0]);
            _mm512_store_ps(out.add(16), f[1]);
        }
    }
}

/// A few sub-blocks: the indices of their codes, for each half and nibble, and their scales.
struct Few<const N: usize> {
    index: [[[__m512i; 4]; 2]; N],
    scale: [[__m512; 2]; N],
}
