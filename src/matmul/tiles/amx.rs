//! Products with many int8 vectors by AMX: see [`crate::cpu::tile::Amx`].
//!
//! Loops over a few sub-blocks of a tile at a time, unpacked to levels in L1, and over all vectors
//! of a panel.

use super::Tiles;
use super::plan::{Part, Plan};
use super::split::{Sums, parts, sub_blocks};
use crate::cpu::layout::{SUB_COLS, TILE_ROWS};
use crate::cpu::tile::{AMX_VECTORS, Amx, Levels, Prefetch, TileKernels};
use crate::matmul::aligned::Aligned;
use crate::matmul::int8::Int8;
use crate::matmul::tasks::Output;

/// Sub-blocks that are unpacked at once: a multiple of every block of activations.
const UNPACKED_SUBS: usize = 16;

/// The fewest vectors for which AMX pays. Lower in tests, to cover all numbers.
const MIN_VECTORS: usize = if cfg!(test) { 2 } else { 16 };

/// The floats of unpacked sub-blocks: levels and scales.
const LEVELS: usize = UNPACKED_SUBS * SUB_COLS * TILE_ROWS / size_of::<f32>();
const SCALES: usize = UNPACKED_SUBS * TILE_ROWS;

/// The AMX kernels for `n` vectors, if the set has them and they pay.
pub fn select(k: &TileKernels, n: usize) -> Option<Amx> {
    k.amx().filter(|_| n >= MIN_VECTORS)
}

/// Floats of scratch that a task needs.
pub fn scratch_floats(plan: &Plan, digits: usize) -> usize {
    LEVELS + SCALES + Sums::floats(plan.panel, digits)
}

impl Tiles {
    /// Multiplies a run of tiles by a panel of vectors, tile after tile.
    pub(super) fn amx_task(
        &self,
        k: &Amx,
        acts: &Int8,
        (tiles, vectors): Part,
        scratch: &mut Aligned,
        out: &Output<'_>,
    ) {
        let l = &acts.layout(&self.layout);
        let (unpacked, sums) = scratch.floats_mut().split_at_mut(LEVELS + SCALES);
        let (codes, scales) = unpacked.split_at_mut(LEVELS);
        let levels = Levels {
            codes: codes.as_mut_ptr().cast(),
            scales: scales.as_mut_ptr(),
        };
        let mut sums = Sums::new(sums, vectors.len(), acts.digits());
        let x = acts.amx(vectors.clone());
        let calls = vectors.len().div_ceil(AMX_VECTORS);
        let chunks = l.total_subs().div_ceil(UNPACKED_SUBS);
        let outputs = vectors.start / acts.digits()..vectors.end / acts.digits();
        for t in tiles {
            let tile = self.tile(t).as_ptr();
            sums.clear();
            let mut chunk = 0;
            for part in parts(l, acts.digits()) {
                let part = sub_blocks(l, &part);
                for first in part.clone().step_by(UNPACKED_SUBS) {
                    let count = UNPACKED_SUBS.min(part.end - first);
                    // SAFETY: `k` exists, so the processor has its features and the process may use
                    // them; the tile has these sub-blocks, and there is room for UNPACKED_SUBS of
                    // them, in whole lines.
                    unsafe { k.levels(l.bits)(l, tile, first, count, levels) };
                    // Rows of the output are far apart and not in L1 or L2: prefetch those of a
                    // different part of the vectors with each chunk.
                    for v in outputs.clone().skip(chunk).step_by(chunks) {
                        out.prefetch(v * l.shape.rows + t * TILE_ROWS, TILE_ROWS);
                    }
                    chunk += 1;
                    let (from, to) = (l.sub_offset(first), l.sub_offset(first + count));
                    let blocks = count.div_ceil(l.block_subs);
                    let ahead = Prefetch {
                        at: tile.wrapping_add(to),
                        lines: (to - from).div_ceil(64 * blocks * calls),
                        l2_distance: 0,
                    };
                    // SAFETY: as above; the activations are those of this layout, and each vector
                    // has a row of sums, in whole lines.
                    unsafe { k.multiply()(l, first, count, levels, x, ahead, sums.row(0)) };
                }
                sums.end_part(0..vectors.len());
            }
            // SAFETY: tasks write disjoint tiles or vectors.
            unsafe { self.store_sums(out, vectors.clone(), t, &sums, 0) };
        }
    }
}
