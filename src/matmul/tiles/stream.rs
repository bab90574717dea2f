//! One int8 vector and several tiles per call of a kernel.

use super::Tiles;
use super::plan::{Part, Plan};
use crate::cpu::layout::{Layout, TILE_ROWS};
use crate::cpu::tile::{StreamFn, TileKernels};
use crate::matmul::int8::Int8;
use crate::matmul::tasks::Output;

/// Tiles per call, whose sums stay in L1.
const RUN_TILES: usize = if cfg!(test) { 2 } else { 16 };

/// The kernel for `n` vectors, if the set has one for this layout.
pub fn select(k: &TileKernels, l: &Layout, n: usize) -> Option<StreamFn> {
    k.stream(l.bits).filter(|_| n == 1 && l.plain())
}

/// Floats of scratch that a task needs.
pub fn scratch_floats(plan: &Plan) -> usize {
    plan.tiles_per_task.min(RUN_TILES) * TILE_ROWS
}

impl Tiles {
    /// Multiplies a run of tiles by the only vector.
    pub(super) fn stream_task(
        &self,
        multiply: StreamFn,
        acts: &Int8,
        (tiles, _): Part,
        sums: &mut [f32],
        out: &Output<'_>,
    ) {
        let (groups, bytes) = (self.layout.shape.groups, self.layout.tile_bytes());
        let x = acts.block(0, 1, 0, 0);
        for start in tiles.clone().step_by(RUN_TILES) {
            let tiles = start..tiles.end.min(start + RUN_TILES);
            let weights = &self.buffer.as_slice()[start * bytes..tiles.end * bytes];
            let sums = &mut sums.as_chunks_mut::<TILE_ROWS>().0[..tiles.len()];
            let to = sums.as_flattened_mut().as_mut_ptr();
            // SAFETY: a set that has the kernel exists, so the processor has its features; the
            // tiles have this layout, which is plain and for which the activations were made; there
            // are 32 sums per tile, aligned to cache lines.
            unsafe { multiply(weights.as_ptr(), tiles.len(), groups, x, to) };
            for (t, sums) in tiles.zip(&*sums) {
                // SAFETY: tasks write disjoint tiles.
                unsafe { self.store(out, 0, t, sums) };
            }
        }
    }
}
