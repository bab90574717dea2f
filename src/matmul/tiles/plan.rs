//! How a product of tiles is cut into tasks, and what a task with many float32 vectors works in.

use crate::cpu::layout::{Layout, SUB_COLS, TILE_ROWS};
use crate::cpu::tile::{AMX_VECTORS, FLUSH_SUBS, SHORT_WIDTHS, TileKernels, WIDTHS};
use crate::error::Result;
use crate::matmul::activations::Activations;
use crate::matmul::aligned::Aligned;
use crate::memory;
use std::ops::Range;

/// Vectors that go through the kernels together, so that their activations stay in the L2 cache
/// while a tile passes: this many bytes of them. 896 KiB gained nothing where that cache has 1.25 MB (prompts of 512 at 8 and 1
/// bits, pairs of tiles, Ice Lake). Tests want several panels of few vectors.
const PANEL_BYTES: usize = if cfg!(test) { 32 << 10 } else { 512 << 10 };

/// The same by AMX, which comes with 2 MB of that cache: fewer readings of the weights.
const AMX_PANEL_BYTES: usize = 2 * PANEL_BYTES;

/// Sub-blocks unpacked at once for float32 and many vectors: 128 columns, 16 KiB of levels. Two and four times as many changed nothing at 4
/// bits and lost 1 to 3% at 8 (Zen 4, 512 vectors).
pub const UNPACK_SUBS: usize = 4;

/// Up to how many float32 vectors are multiplied straight from the codes where groups are short, whose weights are scaled besides: as many as one pass
/// takes. A column of 32 rows in groups of 7 took 10 cycles a pass of four vectors, 16 a pass of eight; unpacked, 5 and 11 for eight (4 bits, from a
/// near cache, Ice Lake).
const MAX_SHORT_DIRECT_VECTORS: usize = SHORT_WIDTHS[0];

/// Up to how many float32 vectors are multiplied straight from the codes.
pub fn max_direct_vectors(k: &TileKernels, l: &Layout) -> usize {
    match l.short {
        true => MAX_SHORT_DIRECT_VECTORS,
        false => k.max_direct_vectors(l.bits),
    }
}

/// Tiles of a task with float32 and many vectors at most.
const MAX_UNPACKED_TILES: usize = 16;

/// Tiles of a task by tables at most: 192 KiB of sums of twelve vectors.
const MAX_TABLE_TILES: usize = 128;

/// The tiles and the vectors of a task.
pub type Part = (Range<usize>, Range<usize>);

/// How a product is cut into tasks: runs of tiles × panels of vectors.
pub struct Plan {
    tiles: usize,
    /// Tiles a task, at most.
    pub tiles_per_task: usize,
    vectors: usize,
    /// Vectors a panel.
    pub panel: usize,
}

impl Plan {
    /// For `n` vectors and so many threads.
    pub fn new(l: &Layout, activations: Activations, n: usize, threads: usize) -> Plan {
        let vector_bytes = match activations {
            Activations::Sign => l.total_subs() * 4,
            Activations::Int8 => l.padded_cols() + l.blocks() * 8,
            Activations::F32 => l.total_subs().min(FLUSH_SUBS) * SUB_COLS * 4,
        };
        Plan::with_panels(l, n, threads, WIDTHS[0], PANEL_BYTES / vector_bytes)
    }

    /// For `n` vectors by AMX.
    pub fn for_amx(l: &Layout, n: usize, threads: usize) -> Plan {
        let vector_bytes = l.padded_cols() + l.blocks() * 4;
        Plan::with_panels(l, n, threads, AMX_VECTORS, AMX_PANEL_BYTES / vector_bytes)
    }

    /// With at most so many vectors a panel, or `widest`, of which panels are multiples.
    fn with_panels(l: &Layout, n: usize, threads: usize, widest: usize, most: usize) -> Plan {
        // Panels of one size: a short last one would pay for its tiles with few vectors.
        let most = (most / widest * widest).max(widest);
        let panel = n.div_ceil(n.div_ceil(most).max(1));
        let panel = panel.next_multiple_of(widest).clamp(1, n.max(1));
        // Four tasks a member even out what the machine takes from one of them.
        let chunks = if threads == 1 { 1 } else { 4 * threads };
        Plan {
            tiles: l.tiles(),
            tiles_per_task: l.tiles().div_ceil(chunks),
            vectors: n,
            panel,
        }
    }

    /// For `n` vectors by tables. A task is a block of vectors, whose tables exist once, and as many tiles as the
    /// L2 cache has room for the sums of; fewer only where threads would be idle.
    pub fn for_tables(l: &Layout, n: usize, threads: usize) -> Plan {
        let panel = WIDTHS[0].min(n);
        let chunks = if threads == 1 { 1 } else { 4 * threads };
        let runs = chunks.div_ceil(n.div_ceil(panel));
        Plan {
            tiles: l.tiles(),
            tiles_per_task: l.tiles().div_ceil(runs).min(MAX_TABLE_TILES),
            vectors: n,
            panel,
        }
    }

    /// With so few tiles in a task that their sums in float64 stay in the L2 cache.
    pub fn with_unpacked_sums(self) -> Plan {
        Plan {
            tiles_per_task: self.tiles_per_task.min(MAX_UNPACKED_TILES),
            ..self
        }
    }

    /// With whole pairs of tiles in every task but the last.
    pub fn in_pairs(self) -> Plan {
        Plan {
            tiles_per_task: self.tiles_per_task.next_multiple_of(2),
            ..self
        }
    }

    fn tile_runs(&self) -> usize {
        self.tiles.div_ceil(self.tiles_per_task)
    }

    /// How many there are.
    pub fn tasks(&self) -> usize {
        self.tile_runs() * self.vectors.div_ceil(self.panel)
    }

    /// The tiles and the vectors of one.
    pub fn task(&self, task: usize) -> Part {
        let (panel, run) = (task / self.tile_runs(), task % self.tile_runs());
        let (t, v) = (run * self.tiles_per_task, panel * self.panel);
        (
            t..(t + self.tiles_per_task).min(self.tiles),
            v..(v + self.panel).min(self.vectors),
        )
    }
}

/// What one thread needs for float32 and many vectors, one tile or two at a time.
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
    /// For the tasks of a plan.
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
