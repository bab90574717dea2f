//! Products of 1-bit matrices with several int8 vectors by tables: see [`crate::cpu::tile::Tables`].
//!
//! The loops are interchanged compared with dot products: the tables of a panel of vectors stay in
//! L1 while a run of tiles passes, whose float32 accumulators stay in L2. They are those of 128
//! columns, or of more with fewer vectors, so that there is time to prefetch the next tile.

use super::Tiles;
use super::plan::Plan;
use super::split::{Sums, parts, sub_blocks};
use crate::cpu::layout::Layout;
use crate::cpu::tile::{TABLE_VECTORS, TABLE_WORDS, TableActs, Tables, TileKernels};
use crate::matmul::aligned::Aligned;
use crate::matmul::int8::Int8;
use crate::matmul::tasks::Output;
use crate::quant::Bits;
use std::ops::Range;

/// The most tables, of a sub-block and a vector, that exist at once: 24 KiB.
const TABLES: usize = 4 * TABLE_VECTORS;

/// The most sub-blocks whose tables exist at once: fewer in tests, so that rows have several parts.
const MAX_SUBS: usize = if cfg!(test) { 4 } else { TABLES };

/// The size of the tables in floats.
const TABLE_FLOATS: usize = TABLES * TABLE_WORDS / 2;

/// The fewest tiles of a task for which tables pay. Building them costs as much as two tiles, which
/// two vectors gain back over ten: 512 × 4096, 16 tiles, took 25.1 µs instead of 28.0 (Zen 4). 1 in
/// tests, for every shape.
const MIN_TILES: usize = if cfg!(test) { 1 } else { 10 };

/// The table kernels for `n` vectors on this many threads, if the set has them and they pay.
pub fn select(k: &TileKernels, l: &Layout, n: usize, threads: usize) -> Option<Tables> {
    let tables = k
        .tables()
        .filter(|tables| l.bits == Bits::One && n >= tables.min_vectors)?;
    (Plan::for_tables(l, n, threads).tiles_per_task >= MIN_TILES).then_some(tables)
}

/// Floats of scratch that a task needs.
pub fn scratch_floats(plan: &Plan, digits: usize) -> usize {
    TABLE_FLOATS + TABLES + Sums::floats(plan.tiles_per_task * plan.panel, digits)
}

impl Tiles {
    /// Multiplies a run of tiles by a panel of vectors: loops over a few sub-blocks at a time, all
    /// tiles, and all vectors.
    pub(super) fn tables_task(
        &self,
        k: &Tables,
        acts: &Int8,
        plan: &Plan,
        task: usize,
        scratch: &mut Aligned,
        out: &Output<'_>,
    ) {
        let l = &acts.layout(&self.layout);
        let (tiles, vectors) = plan.task(task);
        let (tables, rest) = scratch.floats_mut().split_at_mut(TABLE_FLOATS);
        let (scales, sums) = rest.split_at_mut(TABLES);
        let tables: &mut [i16] = bytemuck::cast_slice_mut(tables);
        let n = vectors.len();
        let mut sums = Sums::new(sums, tiles.len() * n, acts.digits());
        sums.clear();
        // A multiple of four, and so of every block of activations.
        let subs = (TABLES / n / 4 * 4).min(MAX_SUBS);
        let next_tile = l.tile_bytes() as isize;
        for part in parts(l, acts.digits()) {
            let part = sub_blocks(l, &part);
            for first in part.clone().step_by(subs) {
                let count = subs.min(part.end - first);
                // After the last tile the first one is read again, from the next columns on.
                let columns = count * l.group_offset(1) / l.subs;
                let next_columns = columns as isize - (tiles.len() - 1) as isize * next_tile;
                build(
                    k,
                    l,
                    acts,
                    first..first + count,
                    vectors.clone(),
                    tables,
                    scales,
                );
                let x = TableActs {
                    vectors: n,
                    tables: tables.as_ptr(),
                    scales: scales.as_ptr(),
                };
                for (i, t) in tiles.clone().enumerate() {
                    let ahead = if t + 1 < tiles.end {
                        next_tile
                    } else {
                        next_columns
                    };
                    let tile = self.tile(t).as_ptr();
                    let out = sums.row(i * n);
                    // SAFETY: `k` exists, so the processor has its features; the tile has this
                    // layout, the tables and activations are those of its sub-blocks from `first`
                    // on, and each vector has a row of sums.
                    unsafe { (k.multiply)(l, first, count, tile, x, ahead, out) };
                }
            }
            sums.end_part(0..tiles.len() * n);
        }
        for (i, t) in tiles.enumerate() {
            // SAFETY: tasks write disjoint tiles or vectors.
            unsafe { self.store_sums(out, vectors.clone(), t, &sums, i * n) };
        }
    }
}

/// Builds the tables of these sub-blocks, which are whole blocks of activations, `(subs, vectors,
/// TABLE_WORDS)`, and copies the scales, `(blocks, vectors)`.
fn build(
    k: &Tables,
    l: &Layout,
    acts: &Int8,
    subs: Range<usize>,
    vectors: Range<usize>,
    tables: &mut [i16],
    scales: &mut [f32],
) {
    let n = vectors.len();
    // Groups before the last are whole blocks.
    let blocks = subs.start / l.block_subs..subs.end.div_ceil(l.block_subs);
    for (v, width) in acts.blocks(vectors.clone()) {
        let v_in_panel = v - vectors.start;
        for (i, sub) in subs.clone().enumerate() {
            let codes = acts.sub_codes(v, width, sub);
            let tables = &mut tables[(i * n + v_in_panel) * TABLE_WORDS..][..width * TABLE_WORDS];
            // SAFETY: `k` exists, so the processor has its features; there are `width` runs of 32
            // codes, and a table for each.
            unsafe { (k.build)(codes.as_ptr(), width, tables.as_mut_ptr()) };
        }
        for (i, block) in blocks.clone().enumerate() {
            let scales = &mut scales[i * n + v_in_panel..][..width];
            scales.copy_from_slice(acts.block_scales(v, width, block));
        }
    }
}
