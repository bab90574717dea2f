//! Few int8 vectors and several tiles per call of a kernel.

use super::Tiles;
use super::plan::{Part, Plan};
use crate::cpu::layout::{Layout, TILE_ROWS};
use crate::cpu::tile::{StreamFn, TileKernels};
use crate::matmul::int8::Int8;
use crate::matmul::tasks::Output;

/// Rows of sums per call, one per tile and vector: 2 KiB, which stay in L1.
const RUN_SUMS: usize = if cfg!(test) { 4 } else { 16 };

/// The kernel for `n` vectors, if the set has one for this layout.
pub fn select(k: &TileKernels, l: &Layout, n: usize) -> Option<StreamFn> {
    k.stream(l.bits, n).filter(|_| l.plain())
}

/// Floats of scratch that a task needs.
pub fn scratch_floats(plan: &Plan) -> usize {
    (plan.tiles_per_task * plan.panel).min(RUN_SUMS) * TILE_ROWS
}

impl Tiles {
    /// Multiplies a run of tiles by all vectors, which a kernel takes at once.
    pub(super) fn stream_task(
        &self,
        multiply: StreamFn,
        acts: &Int8,
        (tiles, vectors): Part,
        sums: &mut [f32],
        out: &Output<'_>,
    ) {
        let (groups, bytes) = (self.layout.shape.groups, self.layout.tile_bytes());
        let n = vectors.len();
        let x = acts.block(0, n, 0, 0);
        for start in tiles.clone().step_by(RUN_SUMS / n) {
            let tiles = start..tiles.end.min(start + RUN_SUMS / n);
            let weights = &self.buffer.as_slice()[start * bytes..tiles.end * bytes];
            let sums = &mut sums.as_chunks_mut::<TILE_ROWS>().0[..tiles.len() * n];
            let to = sums.as_flattened_mut().as_mut_ptr();
            // SAFETY: a set that has the kernel exists, so the processor has its features; the
            // tiles have this layout, which is plain and for which the activations were made; there
            // are 32 sums per tile and vector, aligned to cache lines.
            unsafe { multiply(weights.as_ptr(), tiles.len(), groups, x, to) };
            for (t, sums) in tiles.zip(sums.chunks_exact(n)) {
                for (v, sums) in vectors.clone().zip(sums) {
                    // SAFETY: tasks write disjoint tiles.
                    unsafe { self.store(out, v, t, sums) };
                }
            }
        }
    }
}
