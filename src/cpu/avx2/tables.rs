//! 1-bit weights and int8 activations, by tables: the sums of four columns are looked up, 32 per
//! instruction.
//!
//! `vpshufb` selects 32 bytes from a table of 16. A byte of a 1-bit dword (see
//! [`crate::cpu::layout`]) is two nibbles of four columns each: once bytes `j` of all 32 rows are
//! in one register, a nibble of each is an index. A sum does not fit a byte: its lowest five bits
//! are looked up in one table and the rest in another, and the sums of all eight nibbles of a dword
//! fit bytes again. 32 rows × 32 columns take 54 instructions for each vector, and 24 for the
//! indices of all, where [`super::int8`] needs 80 for each, and 60 to unpack them for every four.
//!
//! Tables hold sums of activations whose signs are the weights (1-bit codes stand for -1 and +1):
//! the integers that [`super::int8`] obtains with corrections, followed by the same order of
//! float32 sums.

use super::{OCTETS, scales};
use crate::cpu::layout::{Layout, SUB_COLS, TILE_ROWS};
use crate::cpu::tile::{
    LOOKUP_BYTES, LookupActs, Lookups, Stream, TABLE_VECTORS, TABLE_WORDS, TableActs, Tables,
};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// The functions for several vectors.
pub(super) const TABLES: Tables = Tables {
    min_vectors: 2,
    build: build_words,
    multiply,
};

/// The functions for one vector.
pub(super) const LOOKUPS: Lookups = Lookups {
    build: build::<true>,
    multiply: multiply_one,
};

/// Bytes of the two tables of a nibble: low parts, high parts.
const NIBBLE_BYTES: usize = 32;

const _: () = assert!(LOOKUP_BYTES == 8 * NIBBLE_BYTES && TABLE_WORDS == LOOKUP_BYTES / 2);

/// The prefetch distance in bytes for one vector.
const PREFETCH_DISTANCE: usize = 5 << 10;

/// The contract of [`crate::cpu::tile::BuildFn`].
///
/// # Safety
/// AVX2; what the contract says.
#[target_feature(enable = "avx2")]
unsafe fn build_words(codes: *const i8, count: usize, tables: *mut i16) {
    // SAFETY: the caller upholds this contract; without prefetches the last argument is not used.
    unsafe { build::<false>(codes, count, tables.cast(), codes.cast()) };
}

/// The contract of [`crate::cpu::tile::LookupBuildFn`].
///
/// A sum of four codes is in -512..=512. Its low part is in 0..=31 and its high part in -16..=15,
/// except that the parts of 512 are 32 and 15, and in the first table 0 and 16. Eight low parts are
/// then at most 255 together, and eight high parts -128 to 121. Tables have low parts minus 16, and
/// those of the upper nibbles have high parts plus 1, so that both sums are signed bytes, and the
/// sum is the low one plus 32 times the high one.
///
/// # Safety
/// AVX2; what the contract says.
#[target_feature(enable = "avx2")]
unsafe fn build<const PREFETCH: bool>(
    codes: *const i8,
    count: usize,
    tables: *mut u8,
    next: *const u8,
) {
    // -1 or 1 for the lower two bits of each of 16 indices, and for the upper two.
    let lower_signs = _mm256_set1_epi64x(0x0101_01FF_FF01_FFFF_u64.cast_signed());
    let upper_signs = _mm256_setr_epi64x(
        0xFFFF_FFFF_FFFF_FFFF_u64.cast_signed(),
        0xFF01_FF01_FF01_FF01_u64.cast_signed(),
        0x01FF_01FF_01FF_01FF,
        0x0101_0101_0101_0101,
    );
    // Codes become unsigned by adding 128, for the instruction that multiplies by signs.
    let offset = _mm256_set1_epi8(-128);
    let of_offset = _mm256_add_epi16(
        _mm256_maddubs_epi16(offset, lower_signs),
        _mm256_maddubs_epi16(offset, upper_signs),
    );
    for i in 0..count {
        // SAFETY: the caller upholds this contract; a prefetch may use any address.
        unsafe {
            for line in 2 * i..2 * (i + usize::from(PREFETCH)) {
                _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(64 * line).cast());
            }
            for nibble in 0..2 {
                let code = _mm_loadu_si128(codes.add(i * SUB_COLS + 16 * nibble).cast());
                let code = _mm256_xor_si256(_mm256_broadcastsi128_si256(code), offset);
                for j in 0..4 {
                    let column = j as i16;
                    // Columns j and 4 + j, 8 + j and 12 + j.
                    let lower = _mm256_set1_epi16(0x0400 + 0x0101 * column);
                    let upper = _mm256_set1_epi16(0x0C08 + 0x0101 * column);
                    let lower = _mm256_shuffle_epi8(code, lower);
                    let upper = _mm256_shuffle_epi8(code, upper);
                    let sums = _mm256_add_epi16(
                        _mm256_maddubs_epi16(lower, lower_signs),
                        _mm256_maddubs_epi16(upper, upper_signs),
                    );
                    let sums = _mm256_sub_epi16(sums, of_offset);
                    let mut low = _mm256_and_si256(sums, _mm256_set1_epi16(31));
                    let mut high = _mm256_srai_epi16::<5>(sums);
                    if (nibble, j) != (0, 0) {
                        let most = _mm256_cmpeq_epi16(sums, _mm256_set1_epi16(512));
                        low = _mm256_or_si256(low, _mm256_and_si256(most, _mm256_set1_epi16(32)));
                        high = _mm256_add_epi16(high, most);
                    }
                    let low = _mm256_sub_epi16(low, _mm256_set1_epi16(16));
                    let high = _mm256_add_epi16(high, _mm256_set1_epi16(nibble as i16));
                    let both = _mm256_packs_epi16(low, high);
                    let both = _mm256_permute4x64_epi64::<0b11_01_10_00>(both);
                    let to = tables.add(i * LOOKUP_BYTES + (4 * nibble + j) * NIBBLE_BYTES);
                    _mm256_store_si256(to.cast(), both);
                }
            }
        }
    }
}

/// The bytes of a 1-bit sub-block by their positions in dwords. In half `h` of a register, byte
/// `4 * o + i` belongs to row `8 * o + 4 * h + i`.
///
/// # Safety
/// AVX2; `sub` points to a 1-bit sub-block.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn transposed(sub: *const u8) -> [__m256i; 4] {
    // In each half the bytes of four rows, by their positions.
    let order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let order = _mm256_broadcastsi128_si256(order);
    let octet = |o: usize| {
        // SAFETY: the octets of a sub-block are 32 bytes each, aligned.
        let dwords = unsafe { _mm256_load_si256(sub.add(32 * o).cast()) };
        _mm256_shuffle_epi8(dwords, order)
    };
    let (a, b, c, d) = (octet(0), octet(1), octet(2), octet(3));
    let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
    [
        _mm256_unpacklo_epi64(ab, cd),
        _mm256_unpackhi_epi64(ab, cd),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// The indices of a 1-bit sub-block: lower nibbles, upper nibbles.
///
/// # Safety
/// As [`transposed`].
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn indices(sub: *const u8) -> [__m256i; 8] {
    let nibble = _mm256_set1_epi8(15);
    // SAFETY: the caller upholds this contract.
    let bytes = unsafe { transposed(sub) };
    let mut all = [_mm256_setzero_si256(); 8];
    for (j, &bytes) in bytes.iter().enumerate() {
        all[j] = _mm256_and_si256(bytes, nibble);
        all[4 + j] = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), nibble);
    }
    all
}

/// The int16 sums of 32 columns, of octets 0 and 1 and of octets 2 and 3. In half `h` of a
/// register, word `4 * o + i` belongs to row `4 * h + i` of octet `o` of the two.
///
/// # Safety
/// AVX2; `tables` are those of the sub-block of these indices.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn look_up(indices: &[__m256i; 8], tables: *const u8) -> [__m256i; 2] {
    let (mut low, mut high) = (_mm256_setzero_si256(), _mm256_setzero_si256());
    for (n, &index) in indices.iter().enumerate() {
        let table = |at: usize| {
            // SAFETY: the tables of a nibble, of 16 bytes each.
            let table = unsafe { _mm_load_si128(tables.add(n * NIBBLE_BYTES + at).cast()) };
            _mm256_broadcastsi128_si256(table)
        };
        low = _mm256_add_epi8(low, _mm256_shuffle_epi8(table(0), index));
        high = _mm256_add_epi8(high, _mm256_shuffle_epi8(table(16), index));
    }
    // low + 32 * high
    let by = _mm256_set1_epi16(0x2001);
    [
        _mm256_maddubs_epi16(by, _mm256_unpacklo_epi8(low, high)),
        _mm256_maddubs_epi16(by, _mm256_unpackhi_epi8(low, high)),
    ]
}

/// These sums as int32, one register per octet.
#[target_feature(enable = "avx2")]
#[inline]
fn octets(sums: [__m256i; 2]) -> [__m256i; OCTETS] {
    // Of a word that occurs twice in a dword, the sum of one of them.
    let once = _mm256_set1_epi32(1);
    let [first, second] = sums;
    [
        _mm256_madd_epi16(_mm256_unpacklo_epi16(first, first), once),
        _mm256_madd_epi16(_mm256_unpackhi_epi16(first, first), once),
        _mm256_madd_epi16(_mm256_unpacklo_epi16(second, second), once),
        _mm256_madd_epi16(_mm256_unpackhi_epi16(second, second), once),
    ]
}

/// Integer sums of the sub-blocks of a block so far, and its scales.
#[repr(C, align(64))]
struct Scratch {
    sums: [MaybeUninit<[i16; TILE_ROWS]>; TABLE_VECTORS],
    scales: [f32; TILE_ROWS],
}

/// The contract of [`crate::cpu::tile::TablesFn`].
///
/// # Safety
/// AVX2, FMA and F16C; what the contract says.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply(
    l: &Layout,
    first: usize,
    count: usize,
    tile: *const u8,
    x: TableActs,
    ahead: isize,
    out: *mut f32,
) {
    let mut scratch = Scratch {
        sums: [MaybeUninit::uninit(); TABLE_VECTORS],
        scales: [0.0; TILE_ROWS],
    };
    let mut x = x;
    let mut left = count;
    let mut sub = first;
    // SAFETY: the caller upholds this contract: `left` sub-blocks follow, in whole blocks, and the
    // tables advance with them.
    unsafe {
        while left > 0 {
            let (group, in_group) = (sub / l.subs, sub % l.subs);
            let block = l.block_subs.min(l.group_subs(group) - in_group);
            let tail = tile.add(l.tail_offset(group));
            for o in 0..OCTETS {
                _mm256_store_ps(scratch.scales.as_mut_ptr().add(8 * o), scales(l, tail, o));
            }
            _mm_prefetch::<_MM_HINT_T1>(tail.wrapping_offset(ahead).cast());
            for s in 0..block {
                let codes = tile.add(l.group_offset(group) + (in_group + s) * l.sub_bytes());
                for line in 0..2 {
                    let at = codes.wrapping_offset(ahead + 64 * line);
                    _mm_prefetch::<_MM_HINT_T1>(at.cast());
                }
                match (s == 0, s + 1 == block) {
                    (true, true) => vectors::<true, true>(codes, x, &mut scratch, out),
                    (true, false) => vectors::<true, false>(codes, x, &mut scratch, out),
                    (false, false) => vectors::<false, false>(codes, x, &mut scratch, out),
                    (false, true) => vectors::<false, true>(codes, x, &mut scratch, out),
                }
                x.tables = x.tables.wrapping_add(x.vectors * TABLE_WORDS);
            }
            x.scales = x.scales.wrapping_add(x.vectors);
            left -= block;
            sub += block;
        }
    }
}

/// A sub-block times all vectors: the `FIRST` one of a block, the `LAST` one, both or neither.
///
/// # Safety
/// As [`multiply`]; `codes` points to the sub-block, and the activations begin with it.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn vectors<const FIRST: bool, const LAST: bool>(
    codes: *const u8,
    x: TableActs,
    scratch: &mut Scratch,
    out: *mut f32,
) {
    // SAFETY: the caller upholds this contract; vectors are at most TABLE_VECTORS; `out` is
    // `(vectors, 32)`, aligned to cache lines as the scratch is. What is read of the sums was
    // written for the first sub-block.
    unsafe {
        let indices = indices(codes);
        for v in 0..x.vectors {
            let mut sums = look_up(&indices, x.tables.add(v * TABLE_WORDS).cast());
            let kept = scratch.sums.as_mut_ptr().add(v).cast::<__m256i>();
            for (i, sums) in sums.iter_mut().enumerate() {
                if !FIRST {
                    *sums = _mm256_add_epi16(*sums, _mm256_load_si256(kept.add(i)));
                }
                if !LAST {
                    _mm256_store_si256(kept.add(i), *sums);
                }
            }
            if LAST {
                let by = _mm256_set1_ps(*x.scales.add(v));
                for (o, sum) in octets(sums).into_iter().enumerate() {
                    let scale = _mm256_load_ps(scratch.scales.as_ptr().add(8 * o));
                    let scale = _mm256_mul_ps(by, scale);
                    let to = out.add(v * TILE_ROWS + 8 * o);
                    let f = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, _mm256_load_ps(to));
                    _mm256_store_ps(to, f);
                }
            }
        }
    }
}

/// The contract of [`crate::cpu::tile::LookupFn`].
///
/// # Safety
/// AVX2, FMA and F16C; what the contract says.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply_one(
    l: &Layout,
    first: usize,
    count: usize,
    stream: Stream,
    x: LookupActs,
    out: *mut f32,
) {
    let mut x = x;
    let mut p = stream.at;
    // After the last group, data continues at `next`.
    let bytes = l.group_offset(first + count).min(l.tile_bytes()) - l.group_offset(first);
    let end = stream.at.wrapping_add(bytes);
    let gap = (stream.next as isize).wrapping_sub(end as isize);
    let ahead = |p: *const u8, distance: usize| {
        let at = p.wrapping_add(distance);
        at.wrapping_offset(if at < end { 0 } else { gap })
    };
    // SAFETY: the caller upholds this contract: `p` passes through the sub-blocks of each group and
    // its tail; there are tables for each sub-block, a scale per block, and 32 sums. Prefetches may
    // use any address.
    unsafe {
        let mut f = [_mm256_setzero_ps(); OCTETS];
        for (o, f) in f.iter_mut().enumerate() {
            *f = _mm256_load_ps(out.add(8 * o));
        }
        for g in first..first + count {
            let mut subs = l.group_subs(g);
            let tail = p.add(subs * l.sub_bytes());
            while subs > 0 {
                let block = l.block_subs.min(subs);
                subs -= block;
                let mut sums = [_mm256_setzero_si256(); 2];
                for _ in 0..block {
                    let near = ahead(p, PREFETCH_DISTANCE);
                    let far = ahead(p, stream.l2_distance);
                    for line in [0, 64] {
                        _mm_prefetch::<_MM_HINT_T0>(near.wrapping_add(line).cast());
                        _mm_prefetch::<_MM_HINT_T1>(far.wrapping_add(line).cast());
                    }
                    let found = look_up(&indices(p), x.tables);
                    for (sum, found) in sums.iter_mut().zip(found) {
                        *sum = _mm256_add_epi16(*sum, found);
                    }
                    p = p.add(l.sub_bytes());
                    x.tables = x.tables.add(LOOKUP_BYTES);
                }
                let by = _mm256_set1_ps(*x.scales);
                for (o, sum) in octets(sums).into_iter().enumerate() {
                    let scale = _mm256_mul_ps(by, scales(l, tail, o));
                    f[o] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, f[o]);
                }
                x.scales = x.scales.add(1);
            }
            _mm_prefetch::<_MM_HINT_T0>(ahead(p, PREFETCH_DISTANCE).cast());
            _mm_prefetch::<_MM_HINT_T1>(ahead(p, stream.l2_distance).cast());
            p = p.add(l.tail_bytes());
        }
        for (o, f) in f.into_iter().enumerate() {
            _mm256_store_ps(out.add(8 * o), f);
        }
    }
}
