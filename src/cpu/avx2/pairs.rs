//! Many int8 vectors, with weights unpacked to bytes beforehand.
//!
//! With sixteen registers, a pass over a sub-block takes four vectors and two octets, and
//! unpacking four columns of an octet costs as many instructions as multiplying them by one vector:
//! many vectors unpack once instead. Above four bits, where `vpmaddubsw` would saturate, bytes and
//! activations are extended to int16 and multiplied by `vpmaddwd`.
//!
//! Tiles come in pairs because the driver is that of [`super::super::avx512`]; nothing here needs
//! two of them.

use super::int8::four_columns;
use super::{OCTETS, pin, scales, zero_points};
use crate::cpu::layout::{Layout, SUB_COLS, TILE_ROWS, ZeroKind};
use crate::cpu::tile::{Bytes, INT8_WIDTHS, Int8Acts, PAIR_SUBS, Pairs, PairsInt8, Prefetch};
use crate::quant::Bits;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// The kernels for a set without VNNI.
pub(super) const KERNELS: Pairs = Pairs {
    min_vectors: [24, 24, 24, 8],
    float: None,
    int8: Some(PairsInt8 {
        bytes: [bytes::<1>, bytes::<2>, bytes::<4>, bytes::<8>],
        int8: by_int8_width!(int8),
    }),
};

/// The contract of [`crate::cpu::tile::BytesFn`].
///
/// # Safety
/// What it says; AVX2 and F16C.
#[target_feature(enable = "avx2,f16c")]
unsafe fn bytes<const BITS: usize>(
    l: &Layout,
    tile: *const u8,
    first: usize,
    count: usize,
    to: Bytes,
) {
    for i in 0..count {
        let (sub, tail) = l.sub_and_tail(first + i);
        // SAFETY: the tile has sub-block `first + i`, and the outputs have room for `count` of
        // them.
        unsafe {
            let (sub, tail) = (tile.add(sub), tile.add(tail));
            let codes = to.codes.add(i * SUB_COLS * TILE_ROWS);
            for o in 0..OCTETS {
                unroll!(K in 0..8 => {
                    let four = four_columns::<BITS>(sub.add(32 * o), K);
                    _mm256_store_si256(codes.add(128 * K + 32 * o).cast(), four);
                });
                let at = i * TILE_ROWS + 8 * o;
                _mm256_store_ps(to.scales.add(at), scales(l, tail, o));
                if l.zero == ZeroKind::PerGroup {
                    _mm256_store_si256(to.zeros.add(at).cast(), zero_points(l, tail, o));
                }
            }
        }
    }
}

/// Activations of [`PAIR_SUBS`] sub-blocks as int16: for each sub-block and vector the even
/// columns, then the odd ones.
#[repr(align(64))]
struct Words([MaybeUninit<i16>; PAIR_SUBS * INT8_WIDTHS[0] * SUB_COLS]);

/// The contract of [`crate::cpu::tile::PairInt8Fn`].
///
/// # Safety
/// What it says; AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
unsafe fn int8<const V: usize>(
    l: &Layout,
    count: usize,
    tiles: [Bytes; 2],
    x: Int8Acts,
    ahead: [Prefetch; 2],
    out: [*mut f32; 2],
) {
    let mut words = Words([MaybeUninit::uninit(); PAIR_SUBS * INT8_WIDTHS[0] * SUB_COLS]);
    let words: *mut i16 = words.0.as_mut_ptr().cast();
    // SAFETY: the caller upholds this contract; there are at most PAIR_SUBS sub-blocks, and V is at
    // most the first of INT8_WIDTHS.
    unsafe {
        if l.bits == Bits::Eight {
            extend(x.codes, count * V, words);
        }
        for side in 0..2 {
            let place = Place {
                bytes: tiles[side],
                x,
                words,
                out: out[side],
            };
            match l.bits {
                Bits::Eight => walk::<8, V>(l, count, place, ahead[side]),
                Bits::Four => walk::<4, V>(l, count, place, ahead[side]),
                Bits::Two | Bits::One => walk::<2, V>(l, count, place, ahead[side]),
            }
        }
    }
}

/// Extends `runs` times 32 codes to int16, the even ones of each run first.
///
/// # Safety
/// AVX2; `codes` `(runs, 32)`, `words` `(runs, 32)` aligned to 32 bytes.
#[target_feature(enable = "avx2")]
unsafe fn extend(codes: *const i8, runs: usize, words: *mut i16) {
    for i in 0..runs {
        // SAFETY: the caller upholds this contract.
        unsafe {
            let code = _mm256_loadu_si256(codes.add(i * SUB_COLS).cast());
            let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(code));
            let odd = _mm256_srai_epi16::<8>(code);
            let to = words.add(i * SUB_COLS);
            _mm256_store_si256(to.cast(), even);
            _mm256_store_si256(to.add(SUB_COLS / 2).cast(), odd);
        }
    }
}

/// Lines to prefetch into L2 beside the passes over a block: at 8 bits, where few vectors wait for
/// memory, and with several sub-blocks per block, so that these lines are many. µs, 4096 × 4096 from
/// memory on Zen 3, 8 vectors, all of a block at once and so: 3386 and 2583 with groups of 128, 3242
/// and 2787 with 64. At 4 and 2 bits, where there are 24 vectors or more, there was nothing to gain.
struct Ahead {
    at: *const u8,
    /// Those left for this block.
    lines: usize,
    /// Those of one pass.
    share: usize,
}

impl Ahead {
    #[inline(always)]
    fn pass(&mut self) {
        let lines = self.share.min(self.lines);
        self.lines -= lines;
        self.at = prefetch(self.at, lines);
    }
}

/// Prefetches lines into L2, and returns the address of the next.
#[inline(always)]
fn prefetch(at: *const u8, lines: usize) -> *const u8 {
    let mut at = at;
    for _ in 0..lines {
        // SAFETY: a prefetch has no visible effect.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
        at = at.wrapping_add(64);
    }
    at
}

/// Where the operands of the next block are.
#[derive(Clone, Copy)]
struct Place {
    bytes: Bytes,
    x: Int8Acts,
    words: *const i16,
    out: *mut f32,
}

/// One tile times `V` vectors.
///
/// # Safety
/// As [`int8`]; the codes have `BITS`, or 1 if that is 2.
#[inline(always)]
unsafe fn walk<const BITS: usize, const V: usize>(
    l: &Layout,
    count: usize,
    place: Place,
    ahead: Prefetch,
) {
    let mut left = count;
    let (mut at, mut next) = (place, ahead.at);
    // SAFETY: every pointer advances through what the contract describes, block after block.
    unsafe {
        while left > 0 {
            let subs = l.block_subs.min(left);
            left -= subs;
            let lines = subs * ahead.lines;
            let mut spread = None;
            if BITS == 8 && subs > 1 {
                let share = lines.div_ceil(OCTETS / 2 * V.div_ceil(4));
                let at = next;
                spread = Some(Ahead { at, lines, share });
                next = next.wrapping_add(64 * lines);
            } else {
                next = prefetch(next, lines);
            }
            for octet in (0..OCTETS).step_by(2) {
                // The common case of one sub-block, as a constant, needs no registers for totals.
                match (subs, &mut spread) {
                    (1, _) => block::<BITS, V>(l, 1, &at, octet, None),
                    (_, spread) => block::<BITS, V>(l, subs, &at, octet, spread.as_mut()),
                }
            }
            at.bytes.codes = at.bytes.codes.add(subs * SUB_COLS * TILE_ROWS);
            at.bytes.scales = at.bytes.scales.add(subs * TILE_ROWS);
            at.bytes.zeros = at.bytes.zeros.wrapping_add(subs * TILE_ROWS);
            at.x.codes = at.x.codes.add(subs * V * SUB_COLS);
            at.words = at.words.wrapping_add(subs * V * SUB_COLS);
            at.x.scales = at.x.scales.add(V);
            at.x.corrections = at.x.corrections.add(V);
        }
    }
}

/// One block and two octets times all vectors.
///
/// # Safety
/// As [`walk`]; the block has `subs` sub-blocks.
#[inline(always)]
unsafe fn block<const BITS: usize, const V: usize>(
    l: &Layout,
    subs: usize,
    at: &Place,
    octet: usize,
    ahead: Option<&mut Ahead>,
) {
    // SAFETY: the caller upholds this contract.
    unsafe {
        match V {
            12 | 8 | 4 => passes::<BITS, V, 4>(l, subs, at, octet, ahead),
            6 | 3 => passes::<BITS, V, 3>(l, subs, at, octet, ahead),
            2 => passes::<BITS, V, 2>(l, subs, at, octet, ahead),
            _ => passes::<BITS, V, 1>(l, subs, at, octet, ahead),
        }
    }
}

/// One block and two octets times all vectors, `VS` at a time.
///
/// # Safety
/// As [`walk`]; the block has `subs` sub-blocks.
#[inline(always)]
unsafe fn passes<const BITS: usize, const V: usize, const VS: usize>(
    l: &Layout,
    subs: usize,
    at: &Place,
    octet: usize,
    mut ahead: Option<&mut Ahead>,
) {
    debug_assert!(V.is_multiple_of(VS));
    for v in (0..V).step_by(VS) {
        if let Some(ahead) = &mut ahead {
            ahead.pass();
        }
        // SAFETY: the caller upholds this contract; vectors `v..v + VS` exist.
        unsafe {
            let sums = match BITS {
                8 => multiply_words::<V, VS>(l, subs, at, octet, v),
                _ => multiply_bytes::<BITS, V, VS>(l, subs, at, octet, v),
            };
            for (i, sums) in sums.iter().enumerate() {
                let x = _mm256_set1_ps(*at.x.scales.add(v + i));
                for (o, &sum) in sums.iter().enumerate() {
                    let rows = 8 * (octet + o);
                    let scale = _mm256_mul_ps(x, _mm256_load_ps(at.bytes.scales.add(rows)));
                    let to = at.out.add((v + i) * TILE_ROWS + rows);
                    let f = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, _mm256_load_ps(to));
                    _mm256_store_ps(to, f);
                }
            }
        }
    }
}

/// What is added to the sums of an octet for the zero points.
///
/// # Safety
/// As [`passes`].
#[inline(always)]
unsafe fn correction(l: &Layout, at: &Place, octet: usize, v: usize) -> __m256i {
    // SAFETY: the caller upholds this contract.
    unsafe {
        let c = _mm256_set1_epi32(*at.x.corrections.add(v));
        match l.zero {
            ZeroKind::Constant(_) => c,
            // Both factors fit 16 bits, and the high words of the zero points are 0.
            ZeroKind::PerGroup => {
                let zero = _mm256_load_si256(at.bytes.zeros.add(8 * octet).cast());
                _mm256_madd_epi16(zero, c)
            }
        }
    }
}

/// The integer sums of a block by `vpmaddubsw`: see [`super::Int16Sums`].
///
/// # Safety
/// As [`passes`].
#[inline(always)]
unsafe fn multiply_bytes<const BITS: usize, const V: usize, const VS: usize>(
    l: &Layout,
    subs: usize,
    at: &Place,
    octet: usize,
    v: usize,
) -> [[__m256i; 2]; VS] {
    // SAFETY: the caller upholds this contract.
    unsafe {
        let one = _mm256_set1_epi16(1);
        let mut total = [[_mm256_setzero_si256(); 2]; VS];
        let mut sums = [[_mm256_setzero_si256(); 2]; VS];
        for s in 0..subs {
            let w = at.bytes.codes.add(s * SUB_COLS * TILE_ROWS + 32 * octet);
            let x = at.x.codes.add((s * V + v) * SUB_COLS);
            unroll!(K in 0..8 => {
                let w = two_octets(w.add(128 * K));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let four = x.add(i * SUB_COLS + 4 * K).cast::<i32>().read_unaligned();
                    let four = _mm256_set1_epi32(four);
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum = pin(_mm256_add_epi16(*sum, _mm256_maddubs_epi16(w, four)));
                    }
                }
            });
            if BITS == 4 || s + 1 == subs {
                for (total, sums) in total
                    .as_flattened_mut()
                    .iter_mut()
                    .zip(sums.as_flattened_mut())
                {
                    *total = _mm256_add_epi32(*total, _mm256_madd_epi16(*sums, one));
                    *sums = _mm256_setzero_si256();
                }
            }
        }
        for (i, total) in total.iter_mut().enumerate() {
            for (o, total) in total.iter_mut().enumerate() {
                *total = _mm256_add_epi32(*total, correction(l, at, octet + o, v + i));
            }
        }
        total
    }
}

/// The bytes of four columns of an octet of rows, and of the next octet.
///
/// # Safety
/// AVX2; `w` points to 64 bytes aligned to 32.
#[inline(always)]
unsafe fn two_octets(w: *const u8) -> [__m256i; 2] {
    // SAFETY: the caller upholds this contract.
    unsafe {
        [
            _mm256_load_si256(w.cast()),
            _mm256_load_si256(w.add(32).cast()),
        ]
    }
}

/// The integer sums of a block by `vpmaddwd`.
///
/// # Safety
/// As [`passes`].
#[inline(always)]
unsafe fn multiply_words<const V: usize, const VS: usize>(
    l: &Layout,
    subs: usize,
    at: &Place,
    octet: usize,
    v: usize,
) -> [[__m256i; 2]; VS] {
    // SAFETY: the caller upholds this contract.
    unsafe {
        let low = _mm256_set1_epi16(0xFF);
        let mut sums = [[_mm256_setzero_si256(); 2]; VS];
        for (i, sums) in sums.iter_mut().enumerate() {
            for (o, sum) in sums.iter_mut().enumerate() {
                *sum = correction(l, at, octet + o, v + i);
            }
        }
        for s in 0..subs {
            let w = at.bytes.codes.add(s * SUB_COLS * TILE_ROWS + 32 * octet);
            let x = at.words.add((s * V + v) * SUB_COLS);
            unroll!(K in 0..8 => {
                let [a, b] = two_octets(w.add(128 * K));
                let even = [_mm256_and_si256(a, low), _mm256_and_si256(b, low)];
                let odd = [_mm256_srli_epi16::<8>(a), _mm256_srli_epi16::<8>(b)];
                for (i, sums) in sums.iter_mut().enumerate() {
                    let x = x.add(i * SUB_COLS + 2 * K);
                    for (w, x) in [(even, x), (odd, x.add(SUB_COLS / 2))] {
                        let two = _mm256_set1_epi32(x.cast::<i32>().read());
                        for (sum, w) in sums.iter_mut().zip(w) {
                            *sum = pin(_mm256_add_epi32(*sum, _mm256_madd_epi16(w, two)));
                        }
                    }
                }
            });
        }
        sums
    }
}
