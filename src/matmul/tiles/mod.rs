//! A matrix in tiles, and the parallel driver of the tile kernels.

mod amx;
mod lookups;
mod pairs;
mod plan;
mod tables;

use self::plan::{Part, Plan, Scratch, UNPACK_SUBS, max_direct_vectors};
use super::activations::{
    Activations, Int8, Interleave, Prescaled, all_finite, blocks, interleaved, signs,
};
use super::aligned::Aligned;
use super::buffer::Buffer;
use super::pack;
use super::tasks::{Output, run, run_chunks, run_with, threads_for};
use super::workspace::Workspace;
use crate::cpu::l2_prefetch::SmallBatchKernel;
use crate::cpu::layout::{Layout, SUB_COLS, ScaleKind, TILE_ROWS, ZeroKind};
use crate::cpu::tile::{
    Amx, FLUSH_SUBS, Lookups, Pairs, PairsInt8, Prefetch, Tables, TileKernels, WIDTHS,
};
use crate::error::Result;
use crate::memory;
use crate::quant::{Codes, CodesBuf, ScalesBuf, pack_row, packed_row_bytes};
use crate::runtime::Executor;
use half::f16;
use std::sync::Mutex;

/// A matrix in tiles.
pub struct Tiles {
    layout: Layout,
    buffer: Buffer,
}

/// The most matrices that [`Tiles::multiply_int8`] takes: queries, keys and values are three.
pub const MAX_MATRICES: usize = 3;

/// Bytes of tiles that a thread reads per nanosecond, approximately, once per four vectors.
const READ_PER_NS: usize = 32;

/// Bytes of tiles that a thread packs per nanosecond, approximately.
const PACKED_PER_NS: usize = 8;

impl Tiles {
    /// Packs a matrix, in parallel, into a zeroed buffer of the size of its tiles.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub fn pack(
        executor: Executor<'_>,
        layout: Layout,
        codes: &Codes<'_>,
        mut buffer: Buffer,
    ) -> Result<Tiles> {
        let tile_bytes = layout.tile_bytes();
        assert_eq!(buffer.len(), layout.tiles() * tile_bytes);
        let threads = threads_for(executor, buffer.len() / PACKED_PER_NS);
        let chunks = (buffer.as_mut_slice(), tile_bytes);
        run_chunks(
            executor,
            threads,
            chunks,
            || Ok(()),
            |(), t, tile| pack::pack_tile(&layout, codes, t, tile),
        )?;
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

    /// The matrix in the form of the ABI, with the values that it was made of.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub fn to_codes(&self) -> Result<CodesBuf> {
        let l = &self.layout;
        let s = l.shape;
        let row_bytes = packed_row_bytes(s.cols, l.bits);
        let mut bytes = memory::zeroed(s.rows * row_bytes, "codes")?;
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

    /// The weights as floats, row-major; `out` is `(rows, cols)`. Each is rounded once, as by
    /// [`Codes::dequantize_row`].
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub fn dequantize(&self, executor: Executor<'_>, out: &mut [f32]) -> Result<()> {
        let l = &self.layout;
        let cols = l.shape.cols;
        let threads = threads_for(executor, out.len());
        let chunks = (out, TILE_ROWS * cols);
        let row_codes = || memory::filled(cols, 0, "a row of codes");
        run_chunks(executor, threads, chunks, row_codes, |codes, t, out| {
            for (r, out) in out.chunks_exact_mut(cols).enumerate() {
                self.row(t * TILE_ROWS + r, codes, out);
            }
        })
    }

    /// One row as floats, each weight rounded once; `codes` and `out` are `(cols)`.
    pub fn row(&self, row: usize, codes: &mut [u8], out: &mut [f32]) {
        let l = &self.layout;
        let (tile, r) = (self.tile(row / TILE_ROWS), row % TILE_ROWS);
        pack::tile_row_codes(l, tile, r, codes);
        for g in 0..l.shape.groups {
            let scale = pack::tile_scale(l, tile, r, g);
            let zero = pack::tile_zero_point(l, tile, r, g);
            for c in l.shape.group_columns(g) {
                out[c] = scale * l.bits.level(codes[c], zero) as f32;
            }
        }
    }

    /// Tile `t`.
    pub fn tile(&self, t: usize) -> &[u8] {
        let n = self.layout.tile_bytes();
        &self.buffer.as_slice()[t * n..(t + 1) * n]
    }

    /// `y[v] = W x[v]`: `x` is `(n, cols)`, `y` is `(n, rows)`.
    ///
    /// # Errors
    /// `ERR_RANGE` for int8 activations that are not finite; `ERR_MEMORY`. `y` is then unchanged.
    pub fn multiply(
        &self,
        kernels: &TileKernels,
        executor: Executor<'_>,
        activations: Activations,
        x: &[f32],
        y: &mut [f32],
        n: usize,
    ) -> Result<()> {
        assert!(x.len() == n * self.layout.shape.cols && y.len() == n * self.layout.shape.rows);
        let l = &self.layout;
        let mut workspace = Workspace::default();
        match activations {
            Activations::Int8 => {
                let products = [Some((self, y)), None, None];
                Tiles::multiply_int8(kernels, executor, &mut workspace, x, n, products)
            }
            Activations::Sign if !l.short => {
                let x = signs(l, x, n)?;
                let threads = threads_for(executor, self.nanoseconds(n));
                let plan = Plan::new(l, activations, n, threads);
                let out = Output::new(y);
                run(executor, threads, plan.tasks(), no_scratch, |(), task| {
                    self.sign_task(kernels, &x, &plan, task, &out);
                })
            }
            Activations::Sign => {
                let Workspace { floats, sums, .. } = &mut workspace;
                let x = interleaved(kernels, executor, l, activations, x, n, floats)?;
                self.multiply_floats(kernels, executor, x, y, n, sums)
            }
            Activations::F32 => {
                let Workspace { floats, sums, .. } = &mut workspace;
                let prescaled = Prescaled::new(x, l.shape.cols)?;
                let x = interleaved(kernels, executor, l, activations, &prescaled.x, n, floats)?;
                self.multiply_floats(kernels, executor, x, y, n, sums)?;
                prescaled.restore(y, l.shape.rows);
                Ok(())
            }
        }
    }

    /// [`Tiles::multiply`] for float32 activations that are [`interleaved`]. With few vectors
    /// nothing is allocated that `scratch` already has.
    fn multiply_floats(
        &self,
        kernels: &TileKernels,
        executor: Executor<'_>,
        x: &[f32],
        y: &mut [f32],
        n: usize,
        scratch: &mut Vec<Mutex<Aligned>>,
    ) -> Result<()> {
        let l = &self.layout;
        let threads = threads_for(executor, self.nanoseconds(n));
        let plan = Plan::new(l, Activations::F32, n, threads);
        let pairs = pairs::select(kernels, l, n);
        let out = Output::new(y);
        if n <= max_direct_vectors(kernels, l) && pairs.is_none() {
            let none = Workspace::sums(scratch, threads, 0)?;
            run_with(executor, none, plan.tasks(), |_, task| {
                self.direct_task(kernels, x, plan.task(task), &out);
            });
            return Ok(());
        }
        let plan = plan.with_unpacked_sums();
        let plan = match pairs {
            Some(_) => plan.in_pairs(),
            None => plan,
        };
        let scratch = || Scratch::new(&plan, pairs.map_or(1, |_| 2));
        run(executor, threads, plan.tasks(), scratch, |scratch, task| {
            self.f32_task(kernels, pairs, x, plan.task(task), scratch, &out);
        })
    }

    /// [`Tiles::multiply_int8`] for short groups, whose weights are multiplied as floats: one
    /// product after the other with the rounded activations.
    fn multiply_rounded(
        kernels: &TileKernels,
        executor: Executor<'_>,
        workspace: &mut Workspace,
        x: &[f32],
        n: usize,
        products: [Option<(&Tiles, &mut [f32])>; MAX_MATRICES],
    ) -> Result<()> {
        let Workspace { floats, sums, .. } = workspace;
        let layout = products[0].as_ref().expect("at least one").0.layout;
        all_finite(x, layout.shape.cols)?;
        let prescaled = Prescaled::new(x, layout.shape.cols)?;
        let int8 = Activations::Int8;
        let x = interleaved(kernels, executor, &layout, int8, &prescaled.x, n, floats)?;
        for (tiles, y) in products.into_iter().flatten() {
            tiles.multiply_floats(kernels, executor, x, y, n, sums)?;
            prescaled.restore(y, tiles.layout.shape.rows);
        }
        Ok(())
    }

    /// [`Tiles::multiply`] with int8 activations for several matrices whose layouts differ in rows
    /// only. The activations are quantised once, and the matrices share one run of tasks, unless
    /// groups are short. Each comes with its `y`.
    ///
    /// # Errors
    /// As [`Tiles::multiply`].
    ///
    /// # Panics
    /// If there are none.
    pub fn multiply_int8(
        kernels: &TileKernels,
        executor: Executor<'_>,
        workspace: &mut Workspace,
        x: &[f32],
        n: usize,
        products: [Option<(&Tiles, &mut [f32])>; MAX_MATRICES],
    ) -> Result<()> {
        let layout = products[0].as_ref().expect("at least one").0.layout;
        assert_eq!(x.len(), n * layout.shape.cols);
        assert!(products.iter().flatten().all(|(tiles, y)| {
            y.len() == n * tiles.layout.shape.rows && tiles.shares_activations(&layout)
        }));
        if layout.short {
            return Tiles::multiply_rounded(kernels, executor, workspace, x, n, products);
        }
        let time = products.iter().flatten().map(|(t, _)| t.nanoseconds(n));
        let threads = threads_for(executor, time.fold(0, usize::saturating_add));
        let Workspace {
            activations, sums, ..
        } = workspace;
        // Its order of activations is of no use to other kernels.
        let fit = (products.iter().flatten()).all(|(t, _)| t.layout.levels_fit_bytes());
        let amx = amx::select(kernels, n).filter(|_| fit);
        let order = match amx {
            Some(_) => Interleave::amx(&layout),
            None => Interleave::KERNELS,
        };
        activations.set(kernels, executor, &layout, order, x, n)?;

        let mut tasks = 0;
        let parts = products.map(|product| {
            let (tiles, y) = product?;
            let by = match amx {
                Some(k) => Int8Path::Amx(k),
                None => Int8Path::best(kernels, &tiles.layout, n, threads),
            };
            let plan = by.plan(&tiles.layout, n, threads);
            let first = tasks;
            tasks += plan.tasks();
            Some((first, plan, by, tiles, Output::new(y)))
        });
        let parts = &parts;
        let looks_up = parts.iter().flatten().find_map(|(_, _, by, ..)| match by {
            Int8Path::Lookups(k) => Some(k),
            _ => None,
        });
        if let Some(k) = looks_up {
            activations.build_tables(k)?;
        }
        let activations = &*activations;
        let scratch = parts.iter().flatten();
        let scratch = scratch.map(|(_, plan, by, ..)| by.scratch_floats(plan));
        let sums = Workspace::sums(sums, threads, scratch.max().unwrap_or(0))?;
        run_with(executor, sums, tasks, |sums, task| {
            let mut begun = parts.iter().flatten().rev();
            let part = begun.find(|(first, ..)| *first <= task);
            let (first, plan, by, tiles, out) = part.expect("the first begins at 0");
            let task = task - first;
            match by {
                Int8Path::Amx(k) => tiles.amx_task(k, activations, plan.task(task), sums, out),
                Int8Path::Lookups(k) => {
                    let part = plan.task(task);
                    let sums = sums.floats_mut();
                    let l2_distance = kernels.l2_distance(SmallBatchKernel::Lookups, 1);
                    tiles.lookups_task(k, l2_distance, activations, part, sums, out);
                }
                Int8Path::Tables(k) => tiles.tables_task(k, activations, plan, task, sums, out),
                Int8Path::Pairs(k) => {
                    tiles.pairs_task(kernels, k, activations, plan.task(task), sums, out);
                }
                Int8Path::Tiles => {
                    let sums = sums.floats_mut();
                    tiles.int8_tiles(kernels, activations, plan.task(task), sums, out);
                }
            }
        });
        Ok(())
    }

    /// Whether activations quantised for `other` fit this matrix.
    pub fn shares_activations(&self, other: &Layout) -> bool {
        let l = &self.layout;
        l.shape.cols == other.shape.cols
            && l.shape.group == other.shape.group
            && l.block_subs == other.block_subs
            && l.zero == other.zero
    }

    /// The time that one thread takes for `n` vectors, approximately.
    fn nanoseconds(&self, n: usize) -> usize {
        self.bytes().saturating_mul(n.div_ceil(4)) / READ_PER_NS
    }

    /// Writes the rows of tile `t` for vector `v`.
    ///
    /// # Safety
    /// No other task writes these elements.
    unsafe fn store(&self, out: &Output<'_>, v: usize, t: usize, values: &[f32; TILE_ROWS]) {
        let (row, rows) = (t * TILE_ROWS, self.layout.shape.rows);
        match rows - row {
            // SAFETY: the caller upholds this contract.
            TILE_ROWS.. => unsafe { out.store(v * rows + row, values) },
            left => out.store_few(v * rows + row, &values[..left]),
        }
    }

    /// Writes the rows of tile `t` for `width` vectors from `first` on.
    ///
    /// # Safety
    /// No other task writes these elements.
    unsafe fn store_block(
        &self,
        out: &Output<'_>,
        first: usize,
        width: usize,
        t: usize,
        values: &Block,
    ) {
        for (v, values) in values.0.iter().enumerate().take(width) {
            // SAFETY: the caller upholds this contract.
            unsafe { self.store(out, first + v, t, values) };
        }
    }

    /// Loops over tiles, a few groups at a time, and all vectors of a panel.
    fn int8_tiles(
        &self,
        k: &TileKernels,
        acts: &Int8,
        (tiles, vectors): Part,
        sums: &mut [f32],
        out: &Output<'_>,
    ) {
        let l = &self.layout;
        let passes = blocks(&WIDTHS, vectors.clone()).count();
        let lines = l.sub_bytes() / 64;
        let prefetches_twice = passes == 1 && k.prefetches_twice(l.bits, vectors.len());
        let step = match passes == 1 && !prefetches_twice {
            true => l.shape.groups,
            // Parts of equal size, because what is prefetched is as large as the current part.
            false => {
                let steps = (l.shape.groups * l.group_offset(1)).div_ceil(CACHED_BYTES);
                l.shape.groups.div_ceil(steps)
            }
        };
        for t in tiles {
            let tile = self.tile(t);
            let sums = &mut sums[..vectors.len() * TILE_ROWS];
            sums.fill(0.0);
            for first in (0..l.shape.groups).step_by(step) {
                let count = step.min(l.shape.groups - first);
                let bytes = count * l.group_offset(1);
                for (pass, (v, width)) in blocks(&WIDTHS, vectors.clone()).enumerate() {
                    // A single pass prefetches a little ahead of itself. Of several passes, or of a
                    // kernel that makes two, each prefetches its share of the next groups.
                    let ahead = if prefetches_twice {
                        Prefetch {
                            at: tile.as_ptr().wrapping_add(l.group_offset(first) + bytes),
                            lines: l.group_offset(1).div_ceil(64 * l.subs),
                            l2_distance: 0,
                        }
                    } else if passes == 1 {
                        Prefetch {
                            at: tile.as_ptr().wrapping_add(INT8_PREFETCH_DISTANCE),
                            lines,
                            l2_distance: k.l2_distance(SmallBatchKernel::Int8(l.bits), width),
                        }
                    } else {
                        let at = l.group_offset(first) + bytes + pass * bytes / passes;
                        Prefetch {
                            at: tile.as_ptr().wrapping_add(at),
                            lines: lines.div_ceil(passes),
                            l2_distance: 0,
                        }
                    };
                    // SAFETY: `k` exists, so the processor has its features; the tile has this
                    // layout, for which the activations were made; there is a row of sums per
                    // vector.
                    unsafe {
                        k.int8(l.bits, width)(
                            l,
                            first,
                            count,
                            tile.as_ptr(),
                            acts.block(v, width, first * l.subs, first * l.group_blocks()),
                            ahead,
                            sums[(v - vectors.start) * TILE_ROWS..].as_mut_ptr(),
                        );
                    }
                }
            }
            for (v, sums) in vectors.clone().zip(sums.as_chunks().0) {
                // SAFETY: tasks write disjoint tiles or vectors.
                unsafe { self.store(out, v, t, sums) };
            }
        }
    }

    fn sign_task(&self, k: &TileKernels, x: &[u32], plan: &Plan, task: usize, out: &Output<'_>) {
        let (tiles, vectors) = plan.task(task);
        let subs = self.layout.total_subs();
        for t in tiles {
            for (first, width) in blocks(&WIDTHS, vectors.clone()) {
                let mut values = Block::zero();
                let x = x[first * subs..].as_ptr();
                let tile = self.tile(t).as_ptr();
                let l2_distance = k.l2_distance(SmallBatchKernel::Sign, width);
                // SAFETY: as in `int8_tiles`.
                unsafe { k.sign(width)(&self.layout, tile, x, l2_distance, values.as_mut_ptr()) };
                // SAFETY: tasks write disjoint tiles or vectors.
                unsafe { self.store_block(out, first, width, t, &values) };
            }
        }
    }

    /// Loops over tiles and vectors, fused dequantise.
    fn direct_task(&self, k: &TileKernels, x: &[f32], (tiles, vectors): Part, out: &Output<'_>) {
        let l = &self.layout;
        for t in tiles {
            for (first, width) in blocks(&WIDTHS, vectors.clone()) {
                let mut values = Block::zero();
                let tile = self.tile(t).as_ptr();
                let x = x[first * l.padded_cols()..].as_ptr();
                let (kernel, few) = match l.short {
                    true => (k.short_direct(width), SmallBatchKernel::Short),
                    false => (k.direct(l.bits, width), SmallBatchKernel::Float),
                };
                let l2_distance = k.l2_distance(few, width);
                // SAFETY: as in `int8_tiles`; `x` is in blocks of (columns, width), padded to whole
                // sub-blocks.
                unsafe { kernel(l, tile, x, l2_distance, values.as_mut_ptr()) };
                // SAFETY: tasks write disjoint tiles or vectors.
                unsafe { self.store_block(out, first, width, t, &values) };
            }
        }
    }

    /// Loops over `FLUSH_SUBS` sub-blocks at a time, whose activations then stay in L2; over tiles
    /// or pairs of tiles; over a few sub-blocks at a time, unpacked into L1; and over all vectors
    /// of a panel.
    fn f32_task(
        &self,
        k: &TileKernels,
        pairs: Option<Pairs>,
        x: &[f32],
        (tiles, vectors): Part,
        scratch: &mut Scratch,
        out: &Output<'_>,
    ) {
        let l = &self.layout;
        let unpack = match l.short {
            true => k.short_unpack(),
            false => k.unpack(l.bits),
        };
        let padded = l.padded_cols();
        let cells = vectors.len() * TILE_ROWS;
        let at_a_time = pairs.map_or(1, |_| 2);
        let unpack_subs = UNPACK_SUBS / at_a_time;
        let levels = scratch.levels.floats_mut().as_mut_ptr();
        let scales = scratch.scales.floats_mut().as_mut_ptr();
        let levels =
            [0, 1].map(|side| levels.wrapping_add(side * unpack_subs * SUB_COLS * TILE_ROWS));
        let scales = [0, 1].map(|side| scales.wrapping_add(side * unpack_subs * TILE_ROWS));
        scratch.sum.fill(0.0);
        for chunk in (0..l.total_subs()).step_by(FLUSH_SUBS) {
            let end = (chunk + FLUSH_SUBS).min(l.total_subs());
            let of_tiles = tiles.clone().step_by(at_a_time);
            for (t, sum) in of_tiles.zip(scratch.sum.chunks_mut(at_a_time * cells)) {
                let pair = pairs.filter(|_| t + 1 < tiles.end);
                let sides = pair.map_or(1, |_| 2);
                let f = &mut scratch.f.floats_mut()[..sides * cells];
                f.fill(0.0);
                for s in (chunk..end).step_by(unpack_subs) {
                    let count = unpack_subs.min(end - s);
                    for side in 0..sides {
                        let tile = self.tile(t + side).as_ptr();
                        // SAFETY: as in `int8_tiles`; a side of the scratch holds `unpack_subs`
                        // sub-blocks.
                        unsafe { unpack(l, tile, s, count, levels[side], scales[side]) };
                    }
                    for (first, width) in blocks(&WIDTHS, vectors.clone()) {
                        let x = x[first * padded + s * SUB_COLS * width..].as_ptr();
                        let f = f[(first - vectors.start) * TILE_ROWS..].as_mut_ptr();
                        let (w, scales) = (
                            levels.map(|w| w.cast_const()),
                            scales.map(|s| s.cast_const()),
                        );
                        // SAFETY: as above; `x` is in blocks of (columns, width), and each side of
                        // `f` has a row of 32 per vector.
                        unsafe {
                            match pair {
                                Some(k) => k.float(width)(w, scales, count, x, [f, f.add(cells)]),
                                None => k.panel(width)(w[0], scales[0], count, x, f),
                            }
                        }
                    }
                }
                for (sum, &f) in sum.iter_mut().zip(&*f) {
                    *sum += f as f64;
                }
            }
        }
        for (t, sum) in tiles.zip(scratch.sum.chunks_exact(cells)) {
            for (v, sum) in vectors.clone().zip(sum.chunks_exact(TILE_ROWS)) {
                // SAFETY: tasks write disjoint tiles or vectors.
                unsafe { self.store(out, v, t, &std::array::from_fn(|r| sum[r] as f32)) };
            }
        }
    }
}

/// The kernels for a product with int8 activations.
enum Int8Path {
    Amx(Amx),
    Lookups(Lookups),
    Tables(Tables),
    Pairs(PairsInt8),
    Tiles,
}

impl Int8Path {
    /// The best for `n` vectors on this many threads, apart from AMX.
    fn best(k: &TileKernels, l: &Layout, n: usize, threads: usize) -> Int8Path {
        if let Some(k) = lookups::select(k, l, n, threads) {
            return Int8Path::Lookups(k);
        }
        if let Some(k) = tables::select(k, l, n) {
            return Int8Path::Tables(k);
        }
        match pairs::select(k, l, n).and_then(|k| k.int8()) {
            Some(k) => Int8Path::Pairs(k),
            None => Int8Path::Tiles,
        }
    }

    fn plan(&self, l: &Layout, n: usize, threads: usize) -> Plan {
        match self {
            Int8Path::Amx(_) => Plan::for_amx(l, n, threads),
            Int8Path::Tables(_) => Plan::for_tables(l, n, threads),
            Int8Path::Pairs(_) => Plan::new(l, Activations::Int8, n, threads).in_pairs(),
            Int8Path::Lookups(_) | Int8Path::Tiles => Plan::new(l, Activations::Int8, n, threads),
        }
    }

    /// Floats of scratch that a task needs.
    fn scratch_floats(&self, plan: &Plan) -> usize {
        match self {
            Int8Path::Amx(_) => amx::scratch_floats(plan),
            Int8Path::Lookups(_) => lookups::scratch_floats(plan),
            Int8Path::Tables(_) => tables::scratch_floats(plan),
            Int8Path::Pairs(_) => pairs::scratch_floats(plan),
            Int8Path::Tiles => plan.panel * TILE_ROWS,
        }
    }
}

/// Bytes of a tile that stay in L2 while a panel of vectors passes.
///
/// Twelve vectors need the 1.4 KB of an 8-bit sub-block and its activations in some 200 cycles,
/// which L2 easily supplies; switching to other vectors costs about 800 cycles. 512 vectors
/// reached, in % of the `vpdpbusd` rate at 8, 4 and 2 bits: with 16 KB, which L1 holds, 62, 67 and
/// 70; with 64 KB 66, 69 and 72; with 128 KB 66, 70 and 72; with 256 KB 66 at 8 bits (Zen 4 with 1
/// MB of L2 per core, 4096 × 4096, groups of 32, alternating runs). Where L2 is smaller than a
/// panel of activations, these come from L3 in any case. Smaller in tests, so that a tile has
/// several parts.
const CACHED_BYTES: usize = if cfg!(test) { 8 << 10 } else { 128 << 10 };

/// The prefetch distance in bytes, with one pass over the weights.
///
/// One thread on Zen 5, 4096 × 4096 from memory, medians of alternating runs alongside other work,
/// µs at 1, 2, 4 and 8 bits: 3 KB 111, 192, 335 and 637; 4 KB 113, 171, 292 and 589; 5 KB 99, 164,
/// 291 and 561; 6 KB 99, 160, 303 and 588.
const INT8_PREFETCH_DISTANCE: usize = 5 << 10;

/// The output of one kernel call, aligned: kernels accumulate here, and unaligned every vector
/// would straddle two cache lines (aligning took products with 512 vectors from about 40 to 45% of
/// peak).
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

/// For products that need no scratch.
fn no_scratch() -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests;
