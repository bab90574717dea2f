//! Products of 1-bit matrices with one int8 vector by look-ups: see [`crate::cpu::tile::Lookups`].

use super::Tiles;
use super::plan::{Part, Plan};
use crate::cpu::layout::{Layout, TILE_ROWS};
use crate::cpu::tile::{Lookups, Stream, TileKernels};
use crate::matmul::int8::Int8;
use crate::matmul::tasks::Output;
use crate::quant::Bits;

/// The fewest tiles per thread for which look-ups pay: one thread builds the tables, which costs as
/// much as one tile, and look-ups save a third of a tile. (256 rows of 4096 columns, 8 tiles, took
/// 10.6 µs with dot products and 8.7 with look-ups.) 1 in tests, for every shape.
const MIN_TILES: usize = if cfg!(test) { 1 } else { 4 };

/// The most sub-blocks whose tables a run of tiles uses at a time (at least one group): 16 KiB,
/// which stay in L1 beside what is read and prefetched. The 32 KiB for 4096 columns did not with an
/// L1 cache of 48 KiB: 4096 × 4096 from memory took 233 µs, 84 to 85% of read bandwidth, and 217 in
/// two parts, 90% (5632 columns, in three parts, 322 and 301; 2048, which are one part, were at 91
/// to 93%). Three parts were no better, and four worse.
const TABLED_SUBS: usize = if cfg!(test) { 4 } else { 64 };

/// Tiles of a run, whose sums stay in a cache.
const RUN_TILES: usize = if cfg!(test) { 2 } else { 64 };

/// The look-up kernels for `n` vectors on this many threads, if the set has them and they pay.
pub fn select(k: &TileKernels, l: &Layout, n: usize, threads: usize) -> Option<Lookups> {
    let pay = l.bits == Bits::One && n == 1 && l.tiles() >= MIN_TILES * threads;
    k.lookups().filter(|_| pay)
}

/// Floats of scratch that a task needs.
pub fn scratch_floats(plan: &Plan) -> usize {
    plan.tiles_per_task.min(RUN_TILES) * TILE_ROWS
}

impl Tiles {
    /// Multiplies a run of tiles by the only vector, whose tables have been built. Loops over parts
    /// of the groups, whose tables stay in L1, and over all tiles of the run.
    pub(super) fn lookups_task(
        &self,
        k: &Lookups,
        l2_distance: usize,
        acts: &Int8,
        (tiles, _): Part,
        sums: &mut [f32],
        out: &Output<'_>,
    ) {
        let l = &self.layout;
        let groups = l.shape.groups;
        let step = groups.div_ceil(l.total_subs().div_ceil(TABLED_SUBS));
        // Do not prefetch more of the next tile than the groups that will be read.
        let l2_distance = match step < groups {
            true => l2_distance.min(l.group_offset(step)),
            false => l2_distance,
        };
        for start in tiles.clone().step_by(RUN_TILES) {
            let tiles = start..tiles.end.min(start + RUN_TILES);
            let sums = &mut sums.as_chunks_mut::<TILE_ROWS>().0[..tiles.len()];
            sums.as_flattened_mut().fill(0.0);
            for first in (0..groups).step_by(step) {
                let end = groups.min(first + step);
                let x = acts.lookup_acts(first * l.subs, first * l.group_blocks());
                for (t, sums) in tiles.clone().zip(&mut *sums) {
                    // After the last tile the first one is read again, from the next groups on.
                    let (next, from) = match (t + 1 < tiles.end, end < groups) {
                        (false, true) => (tiles.start, end),
                        (false, false) => (t + 1, 0),
                        (true, _) => (t + 1, first),
                    };
                    let stream = Stream {
                        at: self.tile(t)[l.group_offset(first)..].as_ptr(),
                        next: (self.tile(0).as_ptr())
                            .wrapping_add(next * l.tile_bytes() + l.group_offset(from)),
                        l2_distance,
                    };
                    // SAFETY: `k` exists, so the processor has its features; the tile has this
                    // layout, for which the activations were made; there are 32 sums per tile,
                    // aligned to cache lines.
                    unsafe { (k.multiply)(l, first, end - first, stream, x, sums.as_mut_ptr()) };
                }
            }
            for (t, sums) in tiles.zip(&*sums) {
                // SAFETY: tasks write disjoint tiles.
                unsafe { self.store(out, 0, t, sums) };
            }
        }
    }
}
