//! A matrix in tiles, and the parallel driver of the tile kernels.

mod amx;
mod int8;
mod lookups;
mod pairs;
mod plan;
mod split;
mod stream;
mod tables;

pub use self::int8::MAX_MATRICES;
use self::plan::{Part, Plan, Scratch, UNPACK_SUBS, max_direct_vectors};
use super::activations::{Activations, Prescaled, blocks, interleaved, signs};
use super::aligned::Aligned;
use super::buffer::Buffer;
use super::pack;
use super::tasks::{Output, run, run_chunks, run_with, threads_for};
use super::workspace::Workspace;
use crate::cpu::l2_prefetch::SmallBatchKernel;
use crate::cpu::layout::{Layout, SUB_COLS, ScaleKind, TILE_ROWS, ZeroKind};
use crate::cpu::tile::{FLUSH_SUBS, PairsF32, TileKernels, WIDTHS};
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
    /// See [`split::scales_allow`].
    scales_allow_split: bool,
}

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
        Ok(Tiles {
            layout,
            buffer,
            scales_allow_split: split::scales_allow(codes.scales),
        })
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
        let workspace = &mut Workspace::default();
        let products = [Some((self, y)), None, None];
        Tiles::multiply_together(kernels, executor, activations, workspace, x, n, products)
    }

    /// [`Tiles::multiply`] for several matrices whose layouts differ in rows only. They share the
    /// preparation of the activations, and nothing is allocated that `workspace` already has, for
    /// int8 activations and for float32 ones that are split. Each comes with its `y`.
    ///
    /// # Errors
    /// As [`Tiles::multiply`], except that some results may have been written if there are several.
    ///
    /// # Panics
    /// If there are none.
    pub fn multiply_together(
        kernels: &TileKernels,
        executor: Executor<'_>,
        activations: Activations,
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
        if n == 0 {
            return Ok(());
        }
        match activations {
            Activations::Int8 => Tiles::multiply_int8(kernels, executor, workspace, x, n, products),
            Activations::F32 => {
                Tiles::multiply_float32(kernels, executor, workspace, x, n, products)
            }
            Activations::Sign => products.into_iter().flatten().try_for_each(|(tiles, y)| {
                tiles.multiply_signs(kernels, executor, workspace, x, y, n)
            }),
        }
    }

    /// [`Tiles::multiply`] for the signs of activations.
    fn multiply_signs(
        &self,
        kernels: &TileKernels,
        executor: Executor<'_>,
        workspace: &mut Workspace,
        x: &[f32],
        y: &mut [f32],
        n: usize,
    ) -> Result<()> {
        let (l, activations) = (&self.layout, Activations::Sign);
        if l.short {
            let Workspace { floats, sums, .. } = workspace;
            let x = interleaved(kernels, executor, l, activations, x, n, floats)?;
            return self.multiply_floats(kernels, executor, x, y, n, sums);
        }
        let x = signs(l, x, n)?;
        let threads = threads_for(executor, self.nanoseconds(n));
        let plan = Plan::new(l, activations, n, threads);
        let out = Output::new(y);
        run(executor, threads, plan.tasks(), no_scratch, |(), task| {
            self.sign_task(kernels, &x, &plan, task, &out);
        })
    }

    /// [`Tiles::multiply`] for float32 activations, as floats.
    fn multiply_unsplit(
        &self,
        kernels: &TileKernels,
        executor: Executor<'_>,
        workspace: &mut Workspace,
        x: &[f32],
        y: &mut [f32],
        n: usize,
    ) -> Result<()> {
        let l = &self.layout;
        let Workspace { floats, sums, .. } = workspace;
        let prescaled = Prescaled::new(x, l.shape.cols)?;
        let activations = Activations::F32;
        let x = interleaved(kernels, executor, l, activations, &prescaled.x, n, floats)?;
        self.multiply_floats(kernels, executor, x, y, n, sums)?;
        prescaled.restore(y, l.shape.rows);
        Ok(())
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
        let pairs = pairs::select(kernels, l, n).and_then(|k| k.float());
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
        pairs: Option<PairsF32>,
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
