//! 1-bit weights, int8 activations and one vector: the sum of four columns is looked up, 64 bytes
//! per instruction.
//!
//! `vpermb` selects 64 bytes from a table of 64. A byte of a 1-bit dword (see
//! [`crate::cpu::layout`]) is two nibbles of four columns each. Byte `j` of all dwords has its own
//! table of 16 sums; the four tables make one of 64, and bits 4 and 5 of an index select among
//! them. A sum does not fit a byte: its lowest seven bits are looked up in one table and the rest
//! in another. One dot product adds those of four bytes for `128 * high`, another for `low`. Unlike
//! masked bits, looked-up sums need no dot product per four columns: 11 instructions, loads aside,
//! for 16 rows × 32 columns, where dot products take 21. Building the tables costs as much as one
//! tile.
//!
//! Tables hold sums of activations whose signs are the weights (1-bit codes stand for -1 and +1):
//! the integers that [`super::int8`] obtains with corrections, followed by the same order of
//! float32 sums.

use super::{hidden_zero, prefetch, scales_of_half};
use crate::cpu::layout::{Layout, SUB_COLS};
use crate::cpu::tile::{LOOKUP_BYTES, LookupActs, Lookups, Stream};
use std::arch::x86_64::*;
use std::ops::Range;

/// The functions for a kernel set.
pub(super) const KERNELS: Lookups = Lookups { build, multiply };

/// The prefetch distance in bytes.
const PREFETCH_DISTANCE: usize = 5 << 10;

/// Bytes of a vector.
#[repr(align(64))]
struct Bytes([u8; 64]);

/// Nibbles of a byte.
const NIBBLES: usize = 2;

/// For each nibble, the columns of the lower two bits of an index and those of the upper two,
/// alternating: 16 bytes for each byte of a dword.
static COLUMNS: [[Bytes; 2]; NIBBLES] = {
    let mut all = [const { [const { Bytes([0; 64]) }; 2] }; NIBBLES];
    let mut i = 0;
    while i < NIBBLES * 2 * 64 {
        let (nibble, pair, byte) = (i / 128, i / 64 % 2, i % 64);
        let (j, bit) = (byte / 16, 4 * nibble + 2 * pair + byte % 2);
        all[nibble][pair].0[byte] = (4 * bit + j) as u8;
        i += 1;
    }
    all
};

/// -1 or 1 for each of the lower two bits of the eight indices below 8; then for the upper two bits
/// of these, and of the other eight.
static SIGNS: [Bytes; 3] = {
    let mut all = [const { Bytes([0; 64]) }; 3];
    let mut i = 0;
    while i < 3 * 64 {
        let (which, byte) = (i / 64, i % 64);
        let index = byte / 2 % 8 + if which == 2 { 8 } else { 0 };
        let shift = byte % 2 + if which == 0 { 0 } else { 2 };
        all[which].0[byte] = if (index >> shift) & 1 == 1 { 1 } else { 0xFF };
        i += 1;
    }
    all
};

/// The contract of [`crate::cpu::tile::LookupBuildFn`].
///
/// # Safety
/// AVX-512 BW and VBMI; `codes` `(count, 32)`, `tables` `(count, LOOKUP_BYTES)` aligned to 64
/// bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
unsafe fn build(codes: *const i8, count: usize, tables: *mut u8, next: *const u8) {
    // SAFETY: the statics are vectors; the rest is guaranteed by the caller.
    unsafe {
        let vector = |bytes: &Bytes| _mm512_load_si512(bytes.0.as_ptr().cast());
        let lowest = _mm512_set1_epi16(127);
        // Codes become unsigned by adding 128, for the instruction that multiplies by signs.
        let offset = _mm512_set1_epi8(-128);
        let signs = [vector(&SIGNS[0]), vector(&SIGNS[1]), vector(&SIGNS[2])];
        let of_lower = _mm512_maddubs_epi16(offset, signs[0]);
        let of_few = _mm512_add_epi16(of_lower, _mm512_maddubs_epi16(offset, signs[1]));
        let of_many = _mm512_add_epi16(of_lower, _mm512_maddubs_epi16(offset, signs[2]));
        for i in 0..count {
            // Memory would be idle: 83.2 to 84.5% of read bandwidth for texts on Zen 4, and 18.3 to
            // 17.2 µs for 1024 × 2048.
            for line in 4 * i..4 * (i + 1) {
                _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(64 * line).cast());
            }
            let code = _mm256_loadu_si256(codes.add(i * SUB_COLS).cast());
            let code = _mm512_xor_si512(_mm512_broadcast_i64x4(code), offset);
            for (nibble, [lower, upper]) in COLUMNS.iter().enumerate() {
                let lower = _mm512_permutexvar_epi8(vector(lower), code);
                let upper = _mm512_permutexvar_epi8(vector(upper), code);
                let lower = _mm512_maddubs_epi16(lower, signs[0]);
                // Sums of the indices below 8 of each j, and of the others.
                let few = _mm512_add_epi16(lower, _mm512_maddubs_epi16(upper, signs[1]));
                let few = _mm512_sub_epi16(few, of_few);
                let many = _mm512_add_epi16(lower, _mm512_maddubs_epi16(upper, signs[2]));
                let many = _mm512_sub_epi16(many, of_many);
                let low = _mm512_packus_epi16(
                    _mm512_and_si512(few, lowest),
                    _mm512_and_si512(many, lowest),
                );
                let high =
                    _mm512_packs_epi16(_mm512_srai_epi16::<7>(few), _mm512_srai_epi16::<7>(many));
                let table = tables.add(i * LOOKUP_BYTES + 128 * nibble);
                _mm512_store_si512(table.cast(), low);
                _mm512_store_si512(table.add(64).cast(), high);
            }
        }
    }
}

/// The contract of [`crate::cpu::tile::LookupFn`].
///
/// # Safety
/// AVX-512 with VNNI and VBMI; what the contract says.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,avx512vnni,avx512vbmi")]
unsafe fn multiply(
    l: &Layout,
    first: usize,
    count: usize,
    stream: Stream,
    x: LookupActs,
    out: *mut f32,
) {
    let group_bytes = l.group_offset(1);
    // After the last group, data continues at `next`. Prefetches are redirected there for whole
    // groups at a time, so that a few may fall just before `next`.
    let bytes = l.group_offset(first + count).min(l.tile_bytes()) - l.group_offset(first);
    let gap = (stream.next as isize).wrapping_sub(stream.at.wrapping_add(bytes) as isize);
    let last = first + count;
    let inside = |ahead: usize| last - count.min(ahead.div_ceil(group_bytes));
    let (near, far) = (PREFETCH_DISTANCE as isize, stream.l2_distance as isize);
    let farther = if far == 0 { 0 } else { far.wrapping_add(gap) };
    let (a, b) = (
        inside(stream.l2_distance.max(PREFETCH_DISTANCE)),
        inside(PREFETCH_DISTANCE),
    );
    let stretches = [
        (first..a, near, far),
        (a..b, near, farther),
        (b..last, near.wrapping_add(gap), farther),
    ];
    // SAFETY: the caller upholds this contract: `out` is 32 floats, aligned, and the stretches are
    // the groups of the weights and the activations, in order.
    unsafe {
        let mut pass = Pass {
            l,
            p: stream.at,
            x,
            zero: hidden_zero(),
            f: [_mm512_load_ps(out), _mm512_load_ps(out.add(16))],
        };
        for (groups, near, far) in stretches {
            match l.subs {
                1 => pass.groups::<true>(groups, near, far),
                _ => pass.groups::<false>(groups, near, far),
            }
        }
        let f = pass.f;
        _mm512_store_ps(out, f[0]);
        _mm512_store_ps(out.add(16), f[1]);
    }
}

/// Where the product of a tile has got to.
struct Pass<'a> {
    l: &'a Layout,
    /// The next group.
    p: *const u8,
    /// From the next group on.
    x: LookupActs,
    zero: usize,
    f: [__m512; 2],
}

impl Pass<'_> {
    /// Multiplies some groups; if `ONE`, each of them is a single sub-block.
    ///
    /// # Safety
    /// As [`multiply`]; the groups are those that come next.
    #[inline(always)]
    unsafe fn groups<const ONE: bool>(&mut self, groups: Range<usize>, near: isize, far: isize) {
        let l = self.l;
        let mut p = self.p;
        let mut x = self.x;
        let mut f = self.f;
        // SAFETY: every pointer advances through what the contract describes, in its order: the
        // sub-blocks of a group, which are two vectors each, its tail, the next group; four vectors
        // of tables per sub-block; a scale per block. Prefetches may use any address.
        unsafe {
            for g in groups {
                let mut subs = if ONE { 1 } else { l.group_subs(g) };
                let tail = p.add(subs * l.sub_bytes());
                while subs > 0 {
                    let block = if ONE { 1 } else { subs.min(l.block_subs) };
                    subs -= block;
                    let mut sums = [_mm512_setzero_si512(); 2];
                    for _ in 0..block {
                        let mut tables = [_mm512_setzero_si512(); 4];
                        for (i, table) in tables.iter_mut().enumerate() {
                            *table = _mm512_load_si512(x.tables.add(64 * i).cast());
                        }
                        for half in 0..2 {
                            let at = p.wrapping_add(64 * half);
                            prefetch(at.wrapping_offset(near), at.wrapping_offset(far));
                            let codes = _mm512_load_si512(at.cast());
                            sums[half] = look_up(codes, &tables, sums[half]);
                        }
                        p = p.add(l.sub_bytes());
                        x.tables = x.tables.add(LOOKUP_BYTES);
                    }
                    let scales = [x.scales, x.scales.add(self.zero)];
                    for half in 0..2 {
                        let by = _mm512_set1_ps(*scales[half]);
                        let scale = _mm512_mul_ps(scales_of_half(l, tail, half), by);
                        f[half] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[half]), scale, f[half]);
                    }
                    x.scales = x.scales.add(1);
                }
                prefetch(p.wrapping_offset(near), p.wrapping_offset(far));
                p = p.add(l.tail_bytes());
            }
        }
        (self.p, self.x, self.f) = (p, x, f);
    }
}

/// Adds the products of 16 rows × 32 columns to `sums`.
///
/// # Safety
/// AVX-512 BW, VNNI and VBMI.
#[inline(always)]
unsafe fn look_up(codes: __m512i, tables: &[__m512i; 4], sums: __m512i) -> __m512i {
    // SAFETY: the caller upholds this contract.
    unsafe {
        let nibble = _mm512_set1_epi8(15);
        let table_of_byte = _mm512_set1_epi32(0x3020_1000);
        // v & nibble | table
        let index = |v| _mm512_ternarylogic_epi32::<0xEA>(v, nibble, table_of_byte);
        let (first, second) = (index(codes), index(_mm512_srli_epi16::<4>(codes)));
        let low = _mm512_add_epi8(
            _mm512_permutexvar_epi8(first, tables[0]),
            _mm512_permutexvar_epi8(second, tables[2]),
        );
        let high = _mm512_add_epi8(
            _mm512_permutexvar_epi8(first, tables[1]),
            _mm512_permutexvar_epi8(second, tables[3]),
        );
        let sums = _mm512_dpbusd_epi32(sums, low, _mm512_set1_epi8(1));
        _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(-128), high)
    }
}
