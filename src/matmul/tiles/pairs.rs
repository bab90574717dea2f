//! Products with many int8 vectors, two tiles at a time: see [`crate::cpu::tile::Pairs`].
//!
//! For a few sub-blocks of two tiles, unpacked to bytes in the first-level cache, all vectors of a panel.

use super::Tiles;
use super::plan::{Part, Plan};
use crate::cpu::layout::{Layout, SUB_COLS, TILE_ROWS};
use crate::cpu::tile::{Ahead, Bytes, Pairs, PairsInt8, TileKernels, WIDTHS};
use crate::matmul::activations::{Int8, blocks};
use crate::matmul::aligned::Aligned;
use crate::matmul::tasks::Output;

/// Sub-blocks that are unpacked at once: a multiple of every block of activations.
const UNPACKED_SUBS: usize = 8;

/// From how many vectors on pairs pay: weights are unpacked for each panel of them, which 12 do not earn back at 8 bits (0.8 times as fast as
/// one tile at a time; Ice Lake).
const FEWEST_VECTORS: usize = 2 * WIDTHS[0];

/// The floats of a tile's unpacked sub-blocks: codes, scales and zero points.
const CODES: usize = UNPACKED_SUBS * SUB_COLS * TILE_ROWS / size_of::<f32>();
const ROWS: usize = UNPACKED_SUBS * TILE_ROWS;
const SIDE: usize = CODES + 2 * ROWS;

/// The kernels to multiply `n` vectors with two tiles at a time, where there are some that pay.
pub fn that_pay(k: &TileKernels, l: &Layout, n: usize) -> Option<Pairs> {
    let pay = n >= FEWEST_VECTORS && l.tiles() > 1 && !l.short;
    k.pairs().filter(|_| pay)
}

/// Floats that a task works in.
pub fn scratch_floats(plan: &Plan) -> usize {
    2 * SIDE + 2 * plan.panel * TILE_ROWS
}

impl Tiles {
    /// For a panel of vectors, pair after pair of a run of tiles; a tile that is left over by itself.
    pub(super) fn pairs_task(
        &self,
        k: &TileKernels,
        pairs: &PairsInt8,
        acts: &Int8,
        (tiles, vectors): Part,
        scratch: &mut Aligned,
        out: &Output<'_>,
    ) {
        let l = &self.layout;
        let (unpacked, sums) = scratch.floats_mut().split_at_mut(2 * SIDE);
        let row = vectors.len() * TILE_ROWS;
        let sums = &mut sums[..2 * row];
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
        let passes = blocks(&WIDTHS, vectors.clone()).count();
        let mut tile = tiles.start;
        while tile + 2 <= tiles.end {
            sums.fill(0.0);
            for first in (0..l.total_subs()).step_by(UNPACKED_SUBS) {
                let count = UNPACKED_SUBS.min(l.total_subs() - first);
                for (t, side) in (tile..).zip(sides) {
                    let tile = self.tile(t).as_ptr();
                    // SAFETY: `k` exists, so the processor has its features; the tile has these sub-blocks, and a side has room
                    // for UNPACKED_SUBS of them.
                    unsafe { pairs.bytes(l.bits)(l, tile, first, count, side) };
                }
                // Each pass calls for its share of what is unpacked next, be it of the next pair.
                let (from, to) = (l.sub_offset(first), l.sub_offset(first + count));
                let bytes = to - from;
                let next = match first + count < l.total_subs() {
                    true => to,
                    false => 2 * l.tile_bytes(),
                };
                let lines = bytes.div_ceil(64 * count * passes);
                for (pass, (v, width)) in blocks(&WIDTHS, vectors.clone()).enumerate() {
                    let (a, b) = sums.split_at_mut(row);
                    let at = (v - vectors.start) * TILE_ROWS;
                    let sums = [a[at..].as_mut_ptr(), b[at..].as_mut_ptr()];
                    let ahead = [tile, tile + 1].map(|t| Ahead {
                        at: (self.tile(t).as_ptr()).wrapping_add(next + pass * bytes / passes),
                        lines,
                    });
                    // Groups before the last are whole blocks, and so are these sub-blocks.
                    let x = acts.block(v, width, first, first / l.block_subs);
                    // SAFETY: as above; the activations are those of these sub-blocks, and each vector has a row of sums.
                    unsafe { pairs.int8(width)(l, count, sides, x, ahead, sums) };
                }
            }
            let (sums, _) = sums.as_chunks();
            let (a, b) = sums.split_at(vectors.len());
            for (v, (a, b)) in vectors.clone().zip(a.iter().zip(b)) {
                // SAFETY: tasks have disjoint tiles or vectors.
                unsafe {
                    self.store(out, v, tile, a);
                    self.store(out, v, tile + 1, b);
                }
            }
            tile += 2;
        }
        self.int8_tiles(k, acts, (tile..tiles.end, vectors), sums, out);
    }
}
