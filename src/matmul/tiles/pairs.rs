//! Products with many int8 vectors, two tiles at a time: see [`crate::cpu::tile::Pairs`].
//!
//! Loops over a few sub-blocks of two tiles at a time, unpacked to bytes in L1, and over all
//! vectors of a panel.

use super::Tiles;
use super::plan::{Part, Plan};
use super::split::{Sums, parts, sub_blocks};
use crate::cpu::layout::{Layout, SUB_COLS, TILE_ROWS};
use crate::cpu::tile::{Bytes, PAIR_SUBS, Pairs, PairsInt8, Prefetch, TileKernels};
use crate::matmul::aligned::Aligned;
use crate::matmul::int8::Int8;
use crate::matmul::tasks::Output;

/// The floats of a tile's unpacked sub-blocks: codes, scales and zero points.
const CODES: usize = PAIR_SUBS * SUB_COLS * TILE_ROWS / size_of::<f32>();
const ROWS: usize = PAIR_SUBS * TILE_ROWS;
const SIDE: usize = CODES + 2 * ROWS;
/// The kernels load and store whole lines of all of these, which follow each other from an aligned
/// address on.
const _: () =
    assert!(CODES.is_multiple_of(16) && ROWS.is_multiple_of(16) && TILE_ROWS.is_multiple_of(16));

/// The pair kernels for `n` vectors, if the set has them and they pay.
pub fn select(k: &TileKernels, l: &Layout, n: usize) -> Option<Pairs> {
    k.pairs()
        .filter(|k| n >= k.min_vectors(l.bits) && l.tiles() > 1)
}

/// Floats of scratch that a task needs.
pub fn scratch_floats(plan: &Plan, digits: usize) -> usize {
    2 * SIDE + Sums::floats(2 * plan.panel, digits)
}

impl Tiles {
    /// Multiplies a run of tiles by a panel of vectors, pair after pair, and a remaining tile by
    /// itself.
    pub(super) fn pairs_task(
        &self,
        k: &TileKernels,
        pairs: &PairsInt8,
        acts: &Int8,
        (tiles, vectors): Part,
        scratch: &mut Aligned,
        out: &Output<'_>,
    ) {
        let l = &acts.layout(&self.layout);
        let (unpacked, sums) = scratch.floats_mut().split_at_mut(2 * SIDE);
        let (sides, _) = unpacked.as_chunks_mut::<SIDE>();
        let sides: &mut [[f32; SIDE]; 2] = sides.try_into().expect("two of them");
        let sides = sides.each_mut().map(|side| {
            let (codes, rows) = side.split_at_mut(CODES);
            let (scales, zeros) = rows.split_at_mut(ROWS);
            Bytes {
                codes: codes.as_mut_ptr().cast(),
                scales: scales.as_mut_ptr(),
                zeros: zeros.as_mut_ptr().cast(),
            }
        });
        let passes = acts.blocks(vectors.clone()).count();
        let chunks = l.total_subs().div_ceil(PAIR_SUBS);
        let digits = acts.digits();
        let mut tile = tiles.start;
        while tile + 2 <= tiles.end {
            let pair = [self.tile(tile).as_ptr(), self.tile(tile + 1).as_ptr()];
            let mut sums = Sums::new(sums, 2 * vectors.len(), digits);
            sums.clear();
            let mut chunk = 0;
            for part in parts(l, digits) {
                let part = sub_blocks(l, &part);
                for first in part.clone().step_by(PAIR_SUBS) {
                    let count = PAIR_SUBS.min(part.end - first);
                    for (tile, side) in pair.into_iter().zip(sides) {
                        // SAFETY: `k` exists, so the processor has its features; the tile has these
                        // sub-blocks, and a side has room for PAIR_SUBS of them, in whole
                        // lines.
                        unsafe { pairs.bytes(l.bits)(l, tile, first, count, side) };
                    }
                    let last = first + count == l.total_subs();
                    // Each pass prefetches its share of what is unpacked next, which may be of the
                    // next pair.
                    let (from, to) = (l.sub_offset(first), l.sub_offset(first + count));
                    let next = if last { 2 * l.tile_bytes() } else { to };
                    let share = (to - from).div_ceil(passes);
                    let lines = share.div_ceil(64 * count);
                    for (pass, (v, width)) in acts.blocks(vectors.clone()).enumerate() {
                        // The sums of a block: its vectors with one tile, then with the other.
                        let at = 2 * (v - vectors.start);
                        // Groups before the last are whole blocks, and so are these sub-blocks.
                        let x = acts.block(v, width, first, first / l.block_subs);
                        let ahead = |tile: *const u8| Prefetch {
                            at: tile.wrapping_add(next + pass * share),
                            lines,
                            l2_distance: 0,
                        };
                        let ahead = [ahead(pair[0]), ahead(pair[1])];
                        // Rows of the output are far apart and not in L1 or L2: prefetch those of a
                        // different part of the vectors with each chunk.
                        for i in (chunk..width / digits).step_by(chunks) {
                            let at = (v / digits + i) * l.shape.rows + tile * TILE_ROWS;
                            out.prefetch(at, 2 * TILE_ROWS);
                        }
                        let to = sums.row(at);
                        let to = [to, to.wrapping_add(width * TILE_ROWS)];
                        // SAFETY: as above; the activations are those of these sub-blocks, and each
                        // vector has a row of sums, in whole lines.
                        unsafe { pairs.int8(width)(l, count, sides, x, ahead, to) };
                        if first + count == part.end {
                            sums.end_part(at..at + 2 * width);
                        }
                        if last {
                            let of_block = v..v + width;
                            // SAFETY: tasks write disjoint tiles or vectors.
                            unsafe {
                                self.store_sums(out, of_block.clone(), tile, &sums, at);
                                self.store_sums(out, of_block, tile + 1, &sums, at + width);
                            }
                        }
                    }
                    chunk += 1;
                }
            }
            tile += 2;
        }
        self.int8_tiles(k, acts, (tile..tiles.end, vectors), sums, out);
    }
}
