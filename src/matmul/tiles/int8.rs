//! Products with int8 vectors, which may be the digits of float32 ones: see [`super::split`].

use super::plan::{Part, Plan};
use super::split::{Sums, parts};
use super::{Tiles, amx, lookups, pairs, stream, tables};
use crate::cpu::l2_prefetch::SmallBatchKernel;
use crate::cpu::layout::Layout;
use crate::cpu::tile::{Amx, Lookups, PairsInt8, Prefetch, StreamFn, Tables, TileKernels};
use crate::error::Result;
use crate::matmul::activations::{Activations, Prescaled, all_finite, interleaved};
use crate::matmul::int8::{Int8, Interleave};
use crate::matmul::tasks::{Output, run_with, threads_for};
use crate::matmul::workspace::Workspace;
use crate::runtime::Executor;

/// The most matrices that [`Tiles::multiply_together`] takes: queries, keys and values are three.
pub const MAX_MATRICES: usize = 3;

impl Tiles {
    /// [`Tiles::multiply_int8`] for short groups, whose weights are multiplied as floats: one
    /// product after the other with the rounded activations.
    fn multiply_rounded(
        kernels: &TileKernels,
        executor: Executor<'_>,
        workspace: &mut Workspace,
        x: &[f32],
        n: usize,
        products: [Product<'_>; MAX_MATRICES],
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

    /// [`Tiles::multiply_together`] with int8 activations. They are quantised once, and the
    /// matrices share one run of tasks, unless groups are short.
    ///
    /// # Errors
    /// As [`Tiles::multiply_together`].
    pub(super) fn multiply_int8(
        kernels: &TileKernels,
        executor: Executor<'_>,
        workspace: &mut Workspace,
        x: &[f32],
        n: usize,
        products: [Product<'_>; MAX_MATRICES],
    ) -> Result<()> {
        let layout = products[0].as_ref().expect("at least one").0.layout;
        if layout.short {
            return Tiles::multiply_rounded(kernels, executor, workspace, x, n, products);
        }
        let matrices = products.iter().flatten().map(|(tiles, _)| *tiles);
        let run = Int8Run::new(kernels, executor, n, matrices);
        let order = match run.amx {
            Some(_) => Interleave::amx(&layout),
            None => Interleave::of(kernels),
        };
        let Workspace { activations, .. } = workspace;
        activations.set(kernels, executor, &layout, order, x, n)?;
        run.multiply(workspace, products)
    }

    /// Loops over tiles, a few groups at a time, and all vectors of a panel.
    pub(super) fn int8_tiles(
        &self,
        k: &TileKernels,
        acts: &Int8,
        (tiles, vectors): Part,
        scratch: &mut [f32],
        out: &Output<'_>,
    ) {
        let l = &acts.layout(&self.layout);
        let passes = acts.blocks(vectors.clone()).count();
        let lines = l.sub_bytes() / 64;
        let prefetches_twice = passes == 1 && k.prefetches_twice(l.bits, vectors.len());
        let mut sums = Sums::new(scratch, vectors.len(), acts.digits());
        for t in tiles {
            let tile = self.tile(t);
            sums.clear();
            for part in parts(l, acts.digits()) {
                let step = match passes == 1 && !prefetches_twice {
                    true => part.len(),
                    // Of equal size, because what is prefetched is as large as what is multiplied.
                    false => {
                        let steps = (part.len() * l.group_offset(1)).div_ceil(CACHED_BYTES);
                        part.len().div_ceil(steps)
                    }
                };
                for first in part.clone().step_by(step) {
                    let count = step.min(part.end - first);
                    let bytes = count * l.group_offset(1);
                    for (pass, (v, width)) in acts.blocks(vectors.clone()).enumerate() {
                        // A single pass prefetches a little ahead of itself. Of several passes, or
                        // of a kernel that makes two, each prefetches its share of the next groups.
                        let ahead = if prefetches_twice {
                            Prefetch {
                                at: tile.as_ptr().wrapping_add(l.group_offset(first) + bytes),
                                lines: l.group_offset(1).div_ceil(64 * l.subs),
                                l2_distance: 0,
                            }
                        } else if passes == 1 {
                            Prefetch {
                                at: (tile.as_ptr())
                                    .wrapping_add(l.group_offset(first) + k.l1_distance(width)),
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
                                sums.row(v - vectors.start),
                            );
                        }
                    }
                }
                sums.end_part(0..vectors.len());
            }
            // SAFETY: tasks write disjoint tiles or vectors.
            unsafe { self.store_sums(out, vectors.clone(), t, &sums, 0) };
        }
    }
}

/// A matrix, and the output of its product.
pub(super) type Product<'a> = Option<(&'a Tiles, &'a mut [f32])>;

/// How the products of several matrices with int8 vectors are computed.
pub(super) struct Int8Run<'a> {
    kernels: &'a TileKernels,
    executor: Executor<'a>,
    /// Int8 vectors.
    n: usize,
    threads: usize,
    /// The AMX kernels if all products use them: their order of activations is of no use to other
    /// kernels.
    pub amx: Option<Amx>,
}

impl<'a> Int8Run<'a> {
    /// For `n` int8 vectors.
    pub fn new(
        kernels: &'a TileKernels,
        executor: Executor<'a>,
        n: usize,
        matrices: impl Iterator<Item = &'a Tiles> + Clone,
    ) -> Int8Run<'a> {
        let time = matrices.clone().map(|t| t.nanoseconds(n));
        let fit = matrices.into_iter().all(|t| t.layout.levels_fit_bytes());
        Int8Run {
            kernels,
            executor,
            n,
            threads: threads_for(executor, time.fold(0, usize::saturating_add)),
            amx: amx::select(kernels, n).filter(|_| fit),
        }
    }

    /// Multiplies by the activations of the workspace. If these are digits, an output has a row for
    /// each float32 vector.
    ///
    /// # Errors
    /// `ERR_MEMORY`; the outputs are then unchanged.
    pub fn multiply(
        &self,
        workspace: &mut Workspace,
        products: [Product<'_>; MAX_MATRICES],
    ) -> Result<()> {
        let (kernels, n, threads) = (self.kernels, self.n, self.threads);
        let Workspace {
            activations, sums, ..
        } = workspace;
        let digits = activations.digits();
        let mut tasks = 0;
        let parts = products.map(|product| {
            let (tiles, y) = product?;
            let by = match self.amx {
                Some(k) => Int8Path::Amx(k),
                None => Int8Path::best(kernels, &tiles.layout, n, threads),
            };
            let plan = by.plan(&tiles.layout, n, threads, digits);
            let first = tasks;
            tasks += plan.tasks();
            Some((first, plan, by, tiles, Output::new(y)))
        });
        let parts = &parts;
        let looks_up = parts.iter().flatten().find_map(|(.., by, t, _)| match by {
            Int8Path::Lookups(k) => Some((k, t.buffer.as_slice())),
            _ => None,
        });
        if let Some((k, weights)) = looks_up {
            activations.build_tables(k, weights)?;
        }
        let activations = &*activations;
        let scratch = parts.iter().flatten();
        let scratch = scratch.map(|(_, plan, by, ..)| by.scratch_floats(plan, digits));
        let sums = Workspace::sums(sums, threads, scratch.max().unwrap_or(0))?;
        run_with(self.executor, sums, tasks, |sums, task| {
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
                Int8Path::Stream(k) => {
                    tiles.stream_task(*k, activations, plan.task(task), sums.floats_mut(), out);
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
}

/// The kernels for a product with int8 activations.
enum Int8Path {
    Amx(Amx),
    Lookups(Lookups),
    Stream(StreamFn),
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
        if let Some(k) = stream::select(k, l, n) {
            return Int8Path::Stream(k);
        }
        if let Some(k) = tables::select(k, l, n, threads) {
            return Int8Path::Tables(k);
        }
        match pairs::select(k, l, n).and_then(|k| k.int8()) {
            Some(k) => Int8Path::Pairs(k),
            None => Int8Path::Tiles,
        }
    }

    fn plan(&self, l: &Layout, n: usize, threads: usize, digits: usize) -> Plan {
        match self {
            Int8Path::Amx(_) => Plan::for_amx(l, n, threads, digits),
            Int8Path::Tables(_) => Plan::for_tables(l, n, threads),
            Int8Path::Pairs(_) => Plan::new(l, Activations::Int8, n, threads).in_pairs(),
            Int8Path::Lookups(_) | Int8Path::Stream(_) | Int8Path::Tiles => {
                Plan::new(l, Activations::Int8, n, threads)
            }
        }
    }

    /// Floats of scratch that a task needs.
    fn scratch_floats(&self, plan: &Plan, digits: usize) -> usize {
        match self {
            Int8Path::Amx(_) => amx::scratch_floats(plan, digits),
            Int8Path::Lookups(_) => lookups::scratch_floats(plan),
            Int8Path::Stream(_) => stream::scratch_floats(plan),
            Int8Path::Tables(_) => tables::scratch_floats(plan, digits),
            Int8Path::Pairs(_) => pairs::scratch_floats(plan, digits),
            Int8Path::Tiles => Sums::floats(plan.panel, digits),
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
