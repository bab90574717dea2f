//! int8 activations: exact int32 sums within each block, float32 across the blocks.

use super::{Extensions, OCTETS, in_order, prefetch, scales, zero_points};
use crate::cpu::layout::{Layout, SUB_COLS, TILE_ROWS, ZeroKind};
use crate::cpu::tile::{Int8Acts, Prefetch};
use std::arch::x86_64::*;

/// The codes of four columns, `4k..4k + 4` of the sub-block, for an octet of rows: unsigned bytes,
/// 1-bit codes as 0 or 2.
///
/// # Safety
/// AVX2; `octet` points to the dwords `q = 0` of an octet in a sub-block of `BITS`.
#[inline(always)]
pub(super) unsafe fn four_columns<const BITS: usize>(octet: *const u8, k: usize) -> __m256i {
    let (q, p) = (k % BITS, k / BITS);
    // SAFETY: the dwords q of this octet lie in the sub-block, 32-byte aligned.
    unsafe {
        let v = _mm256_load_si256(octet.add(128 * q).cast());
        let right = |by: usize| _mm256_srl_epi16(v, _mm_cvtsi32_si128(by as i32));
        match (BITS, p) {
            (8, _) => v,
            (1, 0) => _mm256_and_si256(_mm256_add_epi8(v, v), _mm256_set1_epi8(2)),
            (1, 1) => _mm256_and_si256(v, _mm256_set1_epi8(2)),
            (1, _) => _mm256_and_si256(right(p - 1), _mm256_set1_epi8(2)),
            (_, 0) => _mm256_and_si256(v, _mm256_set1_epi8((1 << BITS) - 1)),
            _ => _mm256_and_si256(right(BITS * p), _mm256_set1_epi8((1 << BITS) - 1)),
        }
    }
}

/// One tile times `V` vectors.
///
/// # Safety
/// The contract of [`crate::cpu::tile`]; the features of `E`.
#[inline(always)]
pub(super) unsafe fn tile<E: Extensions, const BITS: usize, const V: usize>(
    l: &Layout,
    first: usize,
    count: usize,
    tile: *const u8,
    acts: Int8Acts,
    ahead: Prefetch,
    out: *mut f32,
) {
    // SAFETY: the caller upholds this contract.
    unsafe {
        match V {
            // Order matters less for four vectors, most of whose time is not spent waiting for memory;
            // with several sub-blocks per block it still does.
            4 if const { E::SPLITS_BYTES && BITS == 8 } && l.block_subs > 1 => {
                in_order::tile::<BITS, V>(l, first, count, tile, acts, ahead, out)
            }
            1 | 2 if const { E::SPLITS_BYTES } => {
                in_order::tile::<BITS, V>(l, first, count, tile, acts, ahead, out)
            }
            // Eight accumulator registers. Before sums were pinned, the optimiser spilled with
            // twelve: 12 vectors at 4 bits, weights in cache, ran at 127 instead of 178 Gop/s (with
            // AVX-VNNI, whose sums are not, 165 instead of 212).
            12 | 8 | 4 if const { !(E::SPLITS_BYTES && BITS == 8) } => {
                tile_in_passes::<E, BITS, V, 4, 2>(l, first, count, tile, acts, ahead, out)
            }
            6 | 3 if const { !(E::SPLITS_BYTES && BITS == 8) } => {
                tile_in_passes::<E, BITS, V, 3, 2>(l, first, count, tile, acts, ahead, out)
            }
            12 | 8 | 6 | 4 | 2 => {
                tile_in_passes::<E, BITS, V, 2, 2>(l, first, count, tile, acts, ahead, out)
            }
            _ => tile_in_passes::<E, BITS, V, 1, 4>(l, first, count, tile, acts, ahead, out),
        }
    }
}

/// The input of a pass: one activation block.
#[derive(Clone, Copy)]
struct Block {
    /// The first sub-block.
    codes: *const u8,
    /// The tail of the group.
    tail: *const u8,
    /// Activations of the block.
    acts: Int8Acts,
    /// What a pass over several sub-blocks prefetches into L1.
    ahead: *const u8,
    /// Bytes of it beside every sub-block.
    share: usize,
}

impl Block {
    /// Whether the passes over several sub-blocks prefetch beside each of them, and not what comes
    /// next all at once. See [`tile_in_passes`]; with AVX-VNNI this has not been measured.
    const fn spreads<E: Extensions>() -> bool {
        E::SPLITS_BYTES
    }
}

/// One tile times `V` vectors, in passes of `VS` vectors × `OS` octets over each block.
///
/// `out` holds the float32 accumulators: a pass reads and writes each once per block, for 8 to 32
/// products.
///
/// # Safety
/// The contract of [`crate::cpu::tile`]; the features of `E`.
#[inline(always)]
unsafe fn tile_in_passes<
    E: Extensions,
    const BITS: usize,
    const V: usize,
    const VS: usize,
    const OS: usize,
>(
    l: &Layout,
    first: usize,
    count: usize,
    tile: *const u8,
    acts: Int8Acts,
    ahead: Prefetch,
    out: *mut f32,
) {
    // SAFETY: the caller upholds this contract.
    unsafe {
        // The common case of one sub-block, as a constant, needs no registers for settled sums.
        match l.block_subs {
            1 => blocks::<E, BITS, V, VS, OS, true>(l, first, count, tile, acts, ahead, out),
            _ => blocks::<E, BITS, V, VS, OS, false>(l, first, count, tile, acts, ahead, out),
        }
    }
}

/// [`tile_in_passes`]; `SINGLE`: a block is one sub-block.
///
/// # Safety
/// As [`tile_in_passes`].
#[inline(always)]
unsafe fn blocks<
    E: Extensions,
    const BITS: usize,
    const V: usize,
    const VS: usize,
    const OS: usize,
    const SINGLE: bool,
>(
    l: &Layout,
    first: usize,
    count: usize,
    tile: *const u8,
    acts: Int8Acts,
    ahead: Prefetch,
    out: *mut f32,
) {
    debug_assert!(V.is_multiple_of(VS) && OCTETS.is_multiple_of(OS));
    let sub_bytes = 4 * SUB_COLS * BITS;
    let tail_bytes = l.tail_bytes();
    let (mut p, mut next) = (tile.wrapping_add(l.group_offset(first)), ahead.at);
    let mut acts = acts;
    // SAFETY: every pointer advances through what the contract describes, in its order: the
    // sub-blocks of a group, its tail, the next group; codes of V vectors per sub-block; V scales
    // and corrections per block. `out` is (V, 32).
    unsafe {
        for g in first..first + count {
            let mut subs = l.group_subs(g);
            let tail = p.add(subs * sub_bytes);
            while subs > 0 {
                let block_subs = if SINGLE { 1 } else { subs.min(l.block_subs) };
                subs -= block_subs;
                let bytes = block_subs * ahead.lines * 64;
                if SINGLE || !Block::spreads::<E>() {
                    // All lines of a block at once: spreading them over the columns of one vector's
                    // pass gained up to 15% from memory without AVX-VNNI and lost as much with it.
                    prefetch(next, p.wrapping_add(ahead.l2_distance), bytes);
                }
                let passes = (OCTETS / OS) * (V / VS);
                let mut block = Block {
                    codes: p,
                    tail,
                    acts,
                    ahead: next,
                    share: ahead.lines * 64 / passes,
                };
                next = next.wrapping_add(bytes);
                for octet in (0..OCTETS).step_by(OS) {
                    for v in (0..V).step_by(VS) {
                        pass::<E, BITS, V, VS, OS, SINGLE>(l, &block, block_subs, octet, v, out);
                        block.ahead = block.ahead.wrapping_add(block_subs * block.share);
                    }
                }
                p = p.add(block_subs * sub_bytes);
                acts.codes = acts.codes.add(block_subs * V * SUB_COLS);
                acts.scales = acts.scales.add(V);
                acts.corrections = acts.corrections.add(V);
            }
            prefetch(next, p.wrapping_add(ahead.l2_distance), tail_bytes);
            next = next.wrapping_add(tail_bytes);
            p = p.add(tail_bytes);
        }
    }
}

/// Adds one block to the sums of octets `octet..octet + OS` and vectors `v..v + VS`.
///
/// # Safety
/// The features of `E`; `block` is of a tile of `l`, with `count` sub-blocks and activations of `V`
/// vectors; `out` is `(V, 32)`.
#[inline(always)]
unsafe fn pass<
    E: Extensions,
    const BITS: usize,
    const V: usize,
    const VS: usize,
    const OS: usize,
    const SINGLE: bool,
>(
    l: &Layout,
    block: &Block,
    count: usize,
    octet: usize,
    v: usize,
    out: *mut f32,
) {
    // SAFETY: sub-blocks, activations, scales and sums are where the contract puts them. The last
    // step of `p` and `x` may end past them, where nothing is read.
    unsafe {
        let mut sums = [[E::nothing(); OS]; VS];
        let mut p = block.codes.add(32 * octet);
        let mut x = block.acts.codes.add(v * SUB_COLS);
        let mut ahead = block.ahead;
        for s in 0..if SINGLE { 1 } else { count } {
            if s > 0 {
                for sums in sums.as_flattened_mut() {
                    *sums = E::settle::<BITS>(*sums);
                }
            }
            if !SINGLE && Block::spreads::<E>() {
                for line in (0..block.share).step_by(64) {
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(line).cast());
                }
                ahead = ahead.wrapping_add(block.share);
            }
            unroll!(K in 0..8 => {
                let mut w = [_mm256_setzero_si256(); OS];
                for (o, w) in w.iter_mut().enumerate() {
                    *w = four_columns::<BITS>(p.add(32 * o), K);
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let four = x.add(i * SUB_COLS + 4 * K).cast::<i32>().read_unaligned();
                    let four = _mm256_set1_epi32(four);
                    for (sums, &w) in sums.iter_mut().zip(&w) {
                        *sums = E::add::<BITS>(*sums, w, four);
                    }
                }
            });
            p = p.wrapping_add(4 * SUB_COLS * BITS);
            x = x.wrapping_add(V * SUB_COLS);
        }
        let mut scale = [_mm256_setzero_ps(); OS];
        let mut zero = [_mm256_setzero_si256(); OS];
        for o in 0..OS {
            scale[o] = scales(l, block.tail, octet + o);
            zero[o] = zero_points(l, block.tail, octet + o);
        }
        for (i, sums) in sums.iter().enumerate() {
            let c = _mm256_set1_epi32(*block.acts.corrections.add(v + i));
            let sx = _mm256_set1_ps(*block.acts.scales.add(v + i));
            for o in 0..OS {
                let correction = match l.zero {
                    ZeroKind::Constant(_) => c,
                    // Both factors fit 16 bits, and the high words of the zero points are 0.
                    ZeroKind::PerGroup => _mm256_madd_epi16(zero[o], c),
                };
                let sum = _mm256_add_epi32(E::total::<BITS>(sums[o]), correction);
                let at = out.add((v + i) * TILE_ROWS + 8 * (octet + o));
                let scale = _mm256_mul_ps(scale[o], sx);
                let f = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, _mm256_loadu_ps(at));
                _mm256_storeu_ps(at, f);
            }
        }
    }
}
