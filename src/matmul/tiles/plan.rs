//! How a product of tiles is split into tasks, and the scratch of a task with many float32 vectors.

use crate::cpu::layout::{Layout, SUB_COLS, TILE_ROWS};
use crate::cpu::tile::{AMX_VECTORS, FLUSH_SUBS, SHORT_WIDTHS, TABLE_VECTORS, TileKernels, WIDTHS};
use crate::error::Result;
use crate::matmul::activations::Activations;
use crate::matmul::aligned::Aligned;
use crate::memory;
use std::ops::Range;

/// Bytes of activations per panel: vectors are processed in panels, so that their activations stay
/// in L2 while a tile passes. 896 KiB gained nothing with an L2 cache of 1.25 MB (prompts of 512 at
/// 8 and 1 bits, pairs of tiles, Ice Lake). Smaller in tests, so that few vectors make several
/// panels.
const PANEL_BYTES: usize = if cfg!(test) { 32 << 10 } else { 512 << 10 };

/// The same for AMX, whose processors have 2 MB of L2: fewer passes over the weights.
const AMX_PANEL_BYTES: usize = 2 * PANEL_BYTES;

/// Sub-blocks unpacked at once for many float32 vectors: 128 columns, 16 KiB of levels. Two and
/// four times as many changed nothing at 4 bits and lost 1 to 3% at 8 (Zen 4, 512 vectors).
pub const UNPACK_SUBS: usize = 4;

/// The most float32 vectors that the fused kernels take with short groups, whose weights must also
/// be scaled: as many as one pass takes. A column of 32 rows in groups of 7 took 10 cycles per pass
/// of four vectors and 16 per pass of eight; once unpacked, four vectors took 5 and eight took 11
/// (4 bits, from a near cache, Ice Lake).
const MAX_SHORT_DIRECT_VECTORS: usize = SHORT_WIDTHS[0];

/// The most float32 vectors that the fused kernels take.
pub fn max_direct_vectors(k: &TileKernels, l: &Layout) -> usize {
    match l.short {
        true => MAX_SHORT_DIRECT_VECTORS,
        false => k.max_direct_vectors(l.bits),
    }
}

/// The most tiles of a task with many float32 vectors.
const MAX_UNPACKED_TILES: usize = 16;

/// What building the tables of a task costs, in tiles.
const TABLES_COST: usize = 2;

/// The most tiles of a task by tables: 384 KiB of accumulators for 24 int8 vectors, and 256 KiB of
/// totals if these are digits.
const MAX_TABLE_TILES: usize = 128;

/// The tiles and the vectors of a task.
pub type Part = (Range<usize>, Range<usize>);

/// How a product is split into tasks: runs of tiles × panels of vectors.
pub struct Plan {
    tiles: usize,
    /// The most tiles per task.
    pub tiles_per_task: usize,
    vectors: usize,
    /// Vectors per panel.
    pub panel: usize,
}

impl Plan {
    /// A plan for `n` vectors on this many threads.
    pub fn new(l: &Layout, activations: Activations, n: usize, threads: usize) -> Plan {
        let vector_bytes = match activations {
            Activations::Sign => l.total_subs() * 4,
            Activations::Int8 => l.padded_cols() + l.blocks() * 8,
            Activations::F32 => l.total_subs().min(FLUSH_SUBS) * SUB_COLS * 4,
        };
        Plan::with_panels(l, n, threads, WIDTHS[0], PANEL_BYTES / vector_bytes)
    }

    /// A plan for `n` vectors with AMX, which are `digits` for each float32 vector: all of them are
    /// in the same panel.
    pub fn for_amx(l: &Layout, n: usize, threads: usize, digits: usize) -> Plan {
        let vector_bytes = l.padded_cols() + l.blocks() * 4;
        let widest = AMX_VECTORS * digits;
        Plan::with_panels(l, n, threads, widest, AMX_PANEL_BYTES / vector_bytes)
    }

    /// With at most `most` vectors per panel, but at least `widest`, of which panels are multiples.
    fn with_panels(l: &Layout, n: usize, threads: usize, widest: usize, most: usize) -> Plan {
        // Panels of equal size: a short last one would read all tiles for few vectors.
        let most = (most / widest * widest).max(widest);
        let panel = n.div_ceil(n.div_ceil(most).max(1));
        let panel = panel.next_multiple_of(widest).clamp(1, n.max(1));
        // Four tasks per thread even out interruptions of one of them.
        let chunks = if threads == 1 { 1 } else { 4 * threads };
        Plan {
            tiles: l.tiles(),
            tiles_per_task: l.tiles().div_ceil(chunks),
            vectors: n,
            panel,
        }
    }

    /// A plan for `n` vectors by tables. A task is a panel of vectors, whose tables are built once,
    /// and as many tiles as L2 has room for the accumulators of.
    ///
    /// Several threads get the number of tasks with which the busiest one has the least to do, and
    /// a quarter of a task more for interruptions: fewer, larger tasks than above, as each builds
    /// tables. Two threads took 801 µs instead of 865 for 24 vectors, 4096 × 4096, with four tasks
    /// instead of eight, and 138 instead of 187 with 512 × 4096 and two (Zen 4).
    pub fn for_tables(l: &Layout, n: usize, threads: usize) -> Plan {
        let panel = TABLE_VECTORS.min(n);
        let plan = |runs: usize| Plan {
            tiles: l.tiles(),
            tiles_per_task: l.tiles().div_ceil(runs),
            vectors: n,
            panel,
        };
        let quarters = |plan: &Plan| {
            let tiles = plan.tiles_per_task;
            4 * plan.tasks().div_ceil(threads) * (tiles + TABLES_COST) + tiles
        };
        let fewest = l.tiles().div_ceil(MAX_TABLE_TILES);
        let most = if threads == 1 { 1 } else { 4 * threads };
        let plans = (fewest..=most.max(fewest)).map(plan);
        plans.min_by_key(quarters).expect("at least one")
    }

    /// Limits the tiles of a task so that their float64 sums stay in L2.
    pub fn with_unpacked_sums(self) -> Plan {
        Plan {
            tiles_per_task: self.tiles_per_task.min(MAX_UNPACKED_TILES),
            ..self
        }
    }

    /// Makes the tiles of every task but the last whole pairs.
    pub fn in_pairs(self) -> Plan {
        Plan {
            tiles_per_task: self.tiles_per_task.next_multiple_of(2),
            ..self
        }
    }

    fn tile_runs(&self) -> usize {
        self.tiles.div_ceil(self.tiles_per_task)
    }

    /// The number of tasks.
    pub fn tasks(&self) -> usize {
        self.tile_runs() * self.vectors.div_ceil(self.panel)
    }

    /// The tiles and the vectors of one task.
    pub fn task(&self, task: usize) -> Part {
        let (panel, run) = (task / self.tile_runs(), task % self.tile_runs());
        let (t, v) = (run * self.tiles_per_task, panel * self.panel);
        (
            t..(t + self.tiles_per_task).min(self.tiles),
            v..(v + self.panel).min(self.vectors),
        )
    }
}

/// The scratch of one thread for many float32 vectors, one or two tiles at a time.
pub struct Scratch {
    /// `(tiles at a time, UNPACK_SUBS * 32, 32)`.
    pub levels: Aligned,
    /// `(tiles at a time, UNPACK_SUBS, 32)`.
    pub scales: Aligned,
    /// `(tiles at a time, panel, 32)`.
    pub f: Aligned,
    /// `(tiles of a task, panel, 32)`.
    pub sum: Vec<f64>,
}

impl Scratch {
    /// Scratch for the tasks of a plan.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub fn new(plan: &Plan, at_a_time: usize) -> Result<Scratch> {
        let levels = at_a_time * UNPACK_SUBS * SUB_COLS * TILE_ROWS;
        let scales = at_a_time * UNPACK_SUBS * TILE_ROWS;
        Ok(Scratch {
            levels: Aligned::zeros(levels, "unpacked weights")?,
            scales: Aligned::zeros(scales, "unpacked scales")?,
            f: Aligned::zeros(at_a_time * plan.panel * TILE_ROWS, "sums")?,
            sum: memory::filled(plan.tiles_per_task * plan.panel * TILE_ROWS, 0.0, "sums")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Bits, CodesBuf, ScalesBuf, Shape};

    /// The busiest thread has at most a quarter more to do, tables included, than if the tiles were
    /// shared evenly.
    #[test]
    fn tasks_by_tables_are_balanced() {
        let codes = CodesBuf {
            shape: Shape::new(1, 32, 32),
            bits: Bits::One,
            bytes: vec![0; 4],
            scales: ScalesBuf::F32(vec![1.0]),
            zero_points: None,
        };
        let mut l = Layout::new(&codes.as_codes()).expect("not empty");
        for threads in 1..=16 {
            for tiles in 32 * threads..600 {
                l.shape.rows = tiles * TILE_ROWS;
                for n in [2, 24, 25, 50, 512] {
                    let plan = Plan::for_tables(&l, n, threads);
                    assert!(plan.tiles_per_task <= MAX_TABLE_TILES);
                    let busiest =
                        plan.tasks().div_ceil(threads) * (plan.tiles_per_task + TABLES_COST);
                    let evenly = (tiles * n.div_ceil(plan.panel)).div_ceil(threads);
                    assert!(
                        4 * busiest <= 5 * evenly,
                        "{threads} threads, {tiles} tiles, {n} vectors: {busiest}, not {evenly}"
                    );
                }
            }
        }
    }
}
