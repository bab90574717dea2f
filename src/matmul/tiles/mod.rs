//! A matrix in tiles, and the parallel driver of the tile kernels.

use super::activations::{InRange, Int8, blocks, interleaved, padded, signs};
use super::buffer::Buffer;
use super::pack;
use super::weights::Activations;
use crate::cpu::layout::{Layout, SUB_COLS, ScaleKind, TILE_ROWS, ZeroKind};
use crate::cpu::tile::{Ahead, FLUSH_SUBS, TileKernels, WIDTHS};
use crate::error::Result;
use crate::memory;
use crate::quant::{Codes, CodesBuf, ScalesBuf, pack_row, packed_row_bytes};
use crate::runtime::{Pool, Team};
use half::f16;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

/// A matrix in tiles.
pub struct Tiles {
    layout: Layout,
    buffer: Buffer,
}

/// Below this many bytes of tiles to read (counted once for four vectors) a product stays on the calling thread.
const SERIAL_BYTES: usize = 256 << 10;

/// Vectors that go through the kernels together, so that their activations stay in the second-level cache
/// while a tile passes: this many bytes of them.
const PANEL_BYTES: usize = 512 << 10;

/// Sub-blocks unpacked at once for float32 and many vectors: 128 columns, 16 KiB of levels.
const UNPACK_SUBS: usize = 4;

/// The output, shared by tasks that write disjoint parts of it.
struct Output {
    y: *mut f32,
    len: usize,
    rows: usize,
}

// SAFETY: tasks write disjoint (vector, tile) cells; see `store`.
unsafe impl Sync for Output {}

impl Output {
    /// Writes the rows of tile `t` of vector `v`.
    ///
    /// # Safety
    /// No other task writes this cell.
    unsafe fn store(&self, v: usize, t: usize, values: &[f32; TILE_ROWS]) {
        let row = t * TILE_ROWS;
        let count = TILE_ROWS.min(self.rows - row);
        let at = v * self.rows + row;
        assert!(at + count <= self.len);
        // SAFETY: inside the output, which is exclusively ours, and this cell is this task's.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.y.add(at), count) }
    }
}

impl Tiles {
    /// Packs a matrix, in parallel.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub fn pack(pool: &Pool, layout: Layout, codes: &Codes<'_>) -> Result<Tiles> {
        let tile_bytes = layout.tile_bytes();
        let mut buffer = Buffer::zeroed(layout.tiles() * tile_bytes, "weights")?;
        let mut tiles = memory::with_capacity(layout.tiles(), "the turns at tiles")?;
        let each = buffer.as_mut_slice().chunks_exact_mut(tile_bytes);
        tiles.extend(each.map(Mutex::new));
        let job = |t: usize| {
            let mut tile = tiles[t].lock().unwrap_or_else(|e| e.into_inner());
            pack::pack_tile(&layout, codes, t, &mut tile);
        };
        if layout.tiles() * tile_bytes < SERIAL_BYTES / 4 {
            Team::alone().run(layout.tiles(), &job);
        } else {
            pool.team(|team| team.run(layout.tiles(), &job));
        }
        drop(tiles);
        Ok(Tiles { layout, buffer })
    }

    /// The geometry.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Bytes of the tiles.
    pub fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Whether every zero point is the constant `2^(bits-1)`.
    pub fn symmetric(&self) -> bool {
        self.layout.zero == ZeroKind::Constant(self.layout.bits.default_zero_point())
    }

    /// Whether scales are float16.
    pub fn half_scales(&self) -> bool {
        self.layout.scale == ScaleKind::F16
    }

    /// The matrix in the form of the ABI, its values as they went in.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub fn to_codes(&self) -> Result<CodesBuf> {
        let l = &self.layout;
        let s = l.shape;
        let row_bytes = packed_row_bytes(s.cols, l.bits);
        let mut bytes = memory::filled(s.rows * row_bytes, 0, "codes")?;
        let mut codes = memory::filled(s.cols, 0, "a row of codes")?;
        for (r, out) in bytes.chunks_exact_mut(row_bytes).enumerate() {
            pack::tile_row_codes(l, self.tile(r / TILE_ROWS), r % TILE_ROWS, &mut codes);
            pack_row(&codes, l.bits, out);
        }
        let groups = || (0..s.rows).flat_map(|r| (0..s.groups).map(move |g| (r, g)));
        let scale = |(r, g)| pack::tile_scale(l, self.tile(r / TILE_ROWS), r % TILE_ROWS, g);
        let scales = match l.scale {
            ScaleKind::F16 => {
                let mut v = memory::with_capacity(s.rows * s.groups, "scales")?;
                v.extend(groups().map(|at| f16::from_f32(scale(at))));
                ScalesBuf::F16(v)
            }
            ScaleKind::F32 => {
                let mut v = memory::with_capacity(s.rows * s.groups, "scales")?;
                v.extend(groups().map(scale));
                ScalesBuf::F32(v)
            }
        };
        let zero_points = if self.symmetric() {
            None
        } else {
            let mut v = memory::with_capacity(s.rows * s.groups, "zero points")?;
            v.extend(groups().map(|(r, g)| {
                pack::tile_zero_point(l, self.tile(r / TILE_ROWS), r % TILE_ROWS, g)
            }));
            Some(v)
        };
        Ok(CodesBuf {
            shape: s,
            bits: l.bits,
            bytes,
            scales,
            zero_points,
        })
    }

    /// The weights as floats, row-major; `out` is `(rows, cols)`. Each is rounded once, as
    /// [`Codes::dequantize_row`] rounds it.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub fn dequantize(&self, out: &mut [f32]) -> Result<()> {
        let l = &self.layout;
        let mut codes = memory::filled(l.shape.cols, 0, "a row of codes")?;
        for (r, out) in out.chunks_exact_mut(l.shape.cols).enumerate() {
            let (tile, r) = (self.tile(r / TILE_ROWS), r % TILE_ROWS);
            pack::tile_row_codes(l, tile, r, &mut codes);
            for g in 0..l.shape.groups {
                let scale = pack::tile_scale(l, tile, r, g);
                let zero = pack::tile_zero_point(l, tile, r, g);
                for c in l.shape.group_columns(g) {
                    out[c] = scale * l.bits.level(codes[c], zero) as f32;
                }
            }
        }
        Ok(())
    }

    /// Tile `t`.
    pub fn tile(&self, t: usize) -> &[u8] {
        let n = self.layout.tile_bytes();
        &self.buffer.as_slice()[t * n..(t + 1) * n]
    }

    /// `y[v] = W x[v]`: `x` is `(n, cols)`, `y` is `(n, rows)`.
    ///
    /// # Errors
    /// `ERR_RANGE` for int8 activations that are not finite; `ERR_MEMORY`. `y` then holds what it held.
    pub fn multiply(
        &self,
        kernels: &TileKernels,
        pool: &Pool,
        activations: Activations,
        x: &[f32],
        y: &mut [f32],
        n: usize,
    ) -> Result<()> {
        assert!(x.len() == n * self.layout.shape.cols && y.len() == n * self.layout.shape.rows);
        let work = self.bytes().saturating_mul(n.div_ceil(4));
        let members = if work < SERIAL_BYTES {
            1
        } else {
            pool.threads()
        };
        let out = Output {
            y: y.as_mut_ptr(),
            len: y.len(),
            rows: self.layout.shape.rows,
        };
        let plan = Plan::new(&self.layout, activations, n, members);
        let run = |job: &(dyn Fn(usize) + Sync)| {
            if members == 1 {
                Team::alone().run(plan.tasks(), job)
            } else {
                pool.team(|team| team.run(plan.tasks(), job))
            }
        };
        match activations {
            Activations::Int8 => {
                let acts = Int8::new(kernels, &self.layout, x, n)?;
                let sums = Slots::new(members, || Aligned::zeroed(plan.panel, "sums"))?;
                run(&|task| self.int8_task(kernels, &acts, &plan, task, &mut sums.take(), &out));
            }
            Activations::Sign => {
                let x = signs(&self.layout, x, n)?;
                run(&|task| self.sign_task(kernels, &x, &plan, task, &out));
            }
            Activations::F32 => {
                let held = InRange::new(x, self.layout.shape.cols)?;
                if n == 1 {
                    let x = padded(&self.layout, &held.x)?;
                    run(&|task| self.f32_one_task(kernels, &x, &plan, task, &out));
                } else {
                    let x = interleaved(&self.layout, &held.x, n)?;
                    let scratch = Slots::new(members, || Scratch::new(&plan))?;
                    run(&|task| self.f32_task(kernels, &x, &plan, task, &mut scratch.take(), &out));
                }
                held.restore(y, self.layout.shape.rows);
            }
        }
        Ok(())
    }

    /// For a panel of vectors: for each tile, for a few groups at a time, all vectors.
    fn int8_task(
        &self,
        k: &TileKernels,
        acts: &Int8,
        plan: &Plan,
        task: usize,
        sums: &mut Aligned,
        out: &Output,
    ) {
        let l = &self.layout;
        let (tiles, vectors) = plan.task(task);
        let passes = blocks(vectors.clone()).count();
        let lines = l.sub_bytes() / 64;
        let step = if passes == 1 {
            l.shape.groups
        } else {
            CACHED_BYTES.div_ceil(l.group_offset(1))
        };
        for t in tiles {
            let tile = self.tile(t);
            sums.0.fill(AlignedRow::ZERO);
            for first in (0..l.shape.groups).step_by(step) {
                let count = step.min(l.shape.groups - first);
                let bytes = count * l.group_offset(1);
                for (pass, (v, width)) in blocks(vectors.clone()).enumerate() {
                    // One pass wants what lies a little ahead of it; of several passes, each calls for its share of the
                    // groups that follow.
                    let ahead = if passes == 1 {
                        Ahead {
                            at: tile.as_ptr().wrapping_add(INT8_AHEAD),
                            lines,
                        }
                    } else {
                        let at = l.group_offset(first) + bytes + pass * bytes / passes;
                        Ahead {
                            at: tile.as_ptr().wrapping_add(at),
                            lines: lines.div_ceil(passes),
                        }
                    };
                    // SAFETY: `k` exists, so the processor has its features; the tile has this layout; the
                    // activations were made for it; a row of sums a vector.
                    unsafe {
                        k.int8(l.bits, width)(
                            l,
                            first,
                            count,
                            tile.as_ptr(),
                            acts.block(v, width, first * l.subs, first * l.group_blocks()),
                            ahead,
                            sums.0[v - vectors.start..].as_mut_ptr().cast(),
                        );
                    }
                }
            }
            for (v, sums) in vectors.clone().zip(&sums.0) {
                // SAFETY: tasks have disjoint tiles or vectors.
                unsafe { out.store(v, t, &sums.0) };
            }
        }
    }

    fn sign_task(&self, k: &TileKernels, x: &[u32], plan: &Plan, task: usize, out: &Output) {
        let (tiles, vectors) = plan.task(task);
        let subs = self.layout.total_subs();
        for t in tiles {
            for (first, width) in blocks(vectors.clone()) {
                let mut values = Block::zero();
                let x = x[first * subs..].as_ptr();
                let tile = self.tile(t).as_ptr();
                // SAFETY: as in `int8_task`.
                unsafe { k.sign(width)(&self.layout, tile, x, values.as_mut_ptr()) };
                store_block(out, first, width, t, &values);
            }
        }
    }

    fn f32_one_task(&self, k: &TileKernels, x: &[f32], plan: &Plan, task: usize, out: &Output) {
        for t in plan.task(task).0 {
            let mut values = Block::zero();
            let tile = self.tile(t).as_ptr();
            // SAFETY: as in `int8_task`; `x` is padded to whole sub-blocks.
            unsafe {
                k.f32_one(self.layout.bits)(&self.layout, tile, x.as_ptr(), values.as_mut_ptr())
            };
            store_block(out, 0, 1, t, &values);
        }
    }

    /// For a panel of vectors: for `FLUSH_SUBS` sub-blocks at a time, whose activations then stay in the second-level
    /// cache, for each tile, for a few sub-blocks unpacked into the first-level cache, all vectors.
    fn f32_task(
        &self,
        k: &TileKernels,
        x: &[f32],
        plan: &Plan,
        task: usize,
        scratch: &mut Scratch,
        out: &Output,
    ) {
        let l = &self.layout;
        let (tiles, vectors) = plan.task(task);
        let padded = l.total_subs() * SUB_COLS;
        let cells = vectors.len() * TILE_ROWS;
        scratch.sum.fill(0.0);
        for chunk in (0..l.total_subs()).step_by(FLUSH_SUBS) {
            let end = (chunk + FLUSH_SUBS).min(l.total_subs());
            for (t, sum) in tiles.clone().zip(scratch.sum.chunks_exact_mut(cells)) {
                let tile = self.tile(t).as_ptr();
                scratch.f.0.fill(AlignedRow::ZERO);
                for s in (chunk..end).step_by(UNPACK_SUBS) {
                    let count = UNPACK_SUBS.min(end - s);
                    let (levels, scales) =
                        (scratch.levels.as_mut_ptr(), scratch.scales.as_mut_ptr());
                    // SAFETY: as in `int8_task`; the scratch holds UNPACK_SUBS sub-blocks.
                    unsafe { k.unpack(l.bits)(l, tile, s, count, levels, scales) };
                    for (first, width) in blocks(vectors.clone()) {
                        let x = x[first * padded + s * SUB_COLS * width..].as_ptr();
                        let f = scratch.f.0[first - vectors.start..].as_mut_ptr().cast();
                        // SAFETY: as above; `x` is in blocks of (columns, width), `f` has a row of 32 a vector.
                        unsafe { k.panel(width)(levels, scales, count, x, f) };
                    }
                }
                for (sum, f) in sum.chunks_exact_mut(TILE_ROWS).zip(&scratch.f.0) {
                    for (sum, &f) in sum.iter_mut().zip(&f.0) {
                        *sum += f as f64;
                    }
                }
            }
        }
        for (t, sum) in tiles.zip(scratch.sum.chunks_exact(cells)) {
            for (v, sum) in vectors.clone().zip(sum.chunks_exact(TILE_ROWS)) {
                // SAFETY: tasks have disjoint tiles or vectors.
                unsafe { out.store(v, t, &std::array::from_fn(|r| sum[r] as f32)) };
            }
        }
    }
}

/// Bytes of a tile that stay in the first-level cache while a panel of vectors passes.
const CACHED_BYTES: usize = 16 << 10;

/// How far before the bytes it works on a thread calls for the next ones, with one pass over the weights.
const INT8_AHEAD: usize = 3072;

/// The output of one kernel call, aligned: kernels keep sums here, and a vector that straddles two cache lines costs a
/// third of the speed of a product with many vectors.
#[repr(C, align(64))]
struct Block([[f32; TILE_ROWS]; WIDTHS[0]]);

impl Block {
    fn zero() -> Block {
        Block([[0.0; TILE_ROWS]; WIDTHS[0]])
    }

    fn as_mut_ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }
}

fn store_block(out: &Output, first: usize, width: usize, t: usize, values: &Block) {
    for (v, values) in values.0.iter().enumerate().take(width) {
        // SAFETY: tasks have disjoint tiles or vectors.
        unsafe { out.store(first + v, t, values) };
    }
}

/// How a product is cut into tasks: runs of tiles × panels of vectors.
struct Plan {
    tiles: usize,
    tiles_a_task: usize,
    vectors: usize,
    /// Vectors a panel.
    panel: usize,
}

impl Plan {
    fn new(l: &Layout, activations: Activations, n: usize, members: usize) -> Plan {
        let vector_bytes = match activations {
            Activations::Sign => l.total_subs() * 4,
            Activations::Int8 => l.total_subs() * SUB_COLS + l.blocks() * 8,
            Activations::F32 => l.total_subs().min(FLUSH_SUBS) * SUB_COLS * 4,
        };
        let widest = WIDTHS[0];
        let panel = (PANEL_BYTES / vector_bytes / widest * widest)
            .max(widest)
            .min(n.max(1));
        // Four tasks a member even out what the machine takes from one of them.
        let chunks = if members == 1 { 1 } else { 4 * members };
        let tiles_a_task = l.tiles().div_ceil(chunks);
        let tiles_a_task = match activations {
            // Their sums in float64 stay in the second-level cache.
            Activations::F32 if n > 1 => tiles_a_task.min(16),
            _ => tiles_a_task,
        };
        Plan {
            tiles: l.tiles(),
            tiles_a_task,
            vectors: n,
            panel,
        }
    }

    fn tile_runs(&self) -> usize {
        self.tiles.div_ceil(self.tiles_a_task)
    }

    fn tasks(&self) -> usize {
        self.tile_runs() * self.vectors.div_ceil(self.panel)
    }

    fn task(&self, task: usize) -> (Range<usize>, Range<usize>) {
        let (panel, run) = (task / self.tile_runs(), task % self.tile_runs());
        let (t, v) = (run * self.tiles_a_task, panel * self.panel);
        (
            t..(t + self.tiles_a_task).min(self.tiles),
            v..(v + self.panel).min(self.vectors),
        )
    }
}

/// Working memory of a product, one for each thread that may take part.
struct Slots<T>(Vec<Mutex<T>>);

impl<T> Slots<T> {
    fn new(members: usize, make: impl Fn() -> Result<T>) -> Result<Slots<T>> {
        (0..members)
            .map(|_| make().map(Mutex::new))
            .collect::<Result<_>>()
            .map(Slots)
    }

    /// One that is free. A task holds one while it runs, and no more tasks run at once than there are members.
    fn take(&self) -> MutexGuard<'_, T> {
        self.0
            .iter()
            .find_map(|s| s.try_lock().ok())
            .expect("a free slot for each member")
    }
}

/// What one thread needs for float32 and many vectors.
struct Scratch {
    /// `(UNPACK_SUBS * 32, 32)`.
    levels: Aligned,
    /// `(UNPACK_SUBS, 32)`.
    scales: Aligned,
    /// `(panel, 32)`.
    f: Aligned,
    /// `(tiles of a task, panel, 32)`.
    sum: Vec<f64>,
}

impl Scratch {
    fn new(plan: &Plan) -> Result<Scratch> {
        Ok(Scratch {
            levels: Aligned::zeroed(UNPACK_SUBS * SUB_COLS, "unpacked weights")?,
            scales: Aligned::zeroed(UNPACK_SUBS, "unpacked scales")?,
            f: Aligned::zeroed(plan.panel, "sums")?,
            sum: memory::filled(plan.tiles_a_task * plan.panel * TILE_ROWS, 0.0, "sums")?,
        })
    }
}

/// Rows of 32 floats, aligned to cache lines.
struct Aligned(Vec<AlignedRow>);

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct AlignedRow([f32; TILE_ROWS]);

impl AlignedRow {
    const ZERO: AlignedRow = AlignedRow([0.0; TILE_ROWS]);
}

impl Aligned {
    fn zeroed(rows: usize, what: &str) -> Result<Aligned> {
        Ok(Aligned(memory::filled(rows, AlignedRow::ZERO, what)?))
    }

    fn as_mut_ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }
}

#[cfg(test)]
mod tests;
