//! Products of 1-bit matrices with one int8 vector by look-ups: see [`crate::cpu::tile::Lookups`].

use super::plan::Part;
use super::{Block, Tiles};
use crate::cpu::layout::Layout;
use crate::cpu::tile::{Lookups, TileKernels};
use crate::matmul::activations::Int8;
use crate::matmul::tasks::Output;
use crate::quant::Bits;

/// From how many tiles a thread on look-ups pay: one thread makes the tables, which costs what a tile does, and of a tile they save a third. (256 rows of 4096
/// columns, 8 tiles, took 10.6 µs with dot products and 8.7 with look-ups.) Tests want them for every shape.
const FEWEST_TILES: usize = if cfg!(test) { 1 } else { 4 };

/// The look-ups to multiply `n` vectors with on so many threads, where the kernels have some that pay.
pub fn that_pay(k: &TileKernels, l: &Layout, n: usize, members: usize) -> Option<Lookups> {
    let pay = l.bits == Bits::One && n == 1 && l.tiles() >= FEWEST_TILES * members;
    k.lookups().filter(|_| pay)
}

impl Tiles {
    /// A run of tiles with the one vector, whose tables are made.
    pub(super) fn lookups_task(
        &self,
        k: &Lookups,
        far: usize,
        acts: &Int8,
        (tiles, _): Part,
        out: &Output<'_>,
    ) {
        for t in tiles {
            let mut values = Block::zero();
            let tile = self.tile(t).as_ptr();
            // SAFETY: `k` exists, so the processor has its features; the tile has this layout, for which the activations were made.
            unsafe {
                (k.multiply)(
                    &self.layout,
                    tile,
                    acts.looked_up(),
                    far,
                    values.as_mut_ptr(),
                )
            };
            // SAFETY: tasks have disjoint tiles.
            unsafe { self.store(out, 0, t, &values.0[0]) };
        }
    }
}
