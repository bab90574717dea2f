//! Products with float32 activations as products with their digits, and the sums of either: see
//! [`crate::quant::split_block`].
//!
//! The sums of the products with the digits of a vector are float32 for each digit, over *parts* of
//! the columns. The sums of a part are added, the least significant first, to float64 totals. Parts
//! depend on the layout only, so that every path computes the same bits.

use super::Tiles;
use super::int8::{Int8Run, MAX_MATRICES, Product};
use crate::cpu::layout::{Layout, TILE_ROWS};
use crate::cpu::tile::TileKernels;
use crate::error::Result;
use crate::matmul::int8::Interleave;
use crate::matmul::tasks::Output;
use crate::matmul::workspace::Workspace;
use crate::memory;
use crate::quant::{DIGITS, SPLIT_SCALES, ScaleValues};
use crate::runtime::Executor;
use std::ops::Range;

/// The most activation blocks of a part, unless a single group has more. Each block, and adding the
/// digits up, adds a rounding error of at most `2^-24` of the magnitudes summed so far to the sum
/// of each digit, and the norm of the magnitudes of all digits together is at most 1.10 times that
/// of the vector (128 columns; 1.06 with 32): by the inequality of Cauchy and Schwarz 4.3e-6 of the
/// norms.
const PART_BLOCKS: usize = if cfg!(test) { 4 } else { 64 };

/// The most activation blocks of a group. The error of its sums is then at most 8.5e-6 of the
/// norms, that of rounding the vector 1.4e-6, and both together 9.9e-6: one more would not do.
const MAX_GROUP_BLOCKS: usize = if cfg!(test) { 8 } else { 128 };

/// The fewest tiles, and the fewest sub-blocks of all tiles together, for which splitting pays: 256
/// × 256 took as long either way.
const MIN_TILES: usize = if cfg!(test) { 1 } else { 4 };
/// See [`MIN_TILES`].
const MIN_SUBS: usize = if cfg!(test) { 1 } else { 64 };

/// The layout of a matrix for split vectors. In long groups their blocks are longer than those of
/// int8 activations: 128 columns.
pub fn split_layout(l: &Layout) -> Layout {
    let long = l.subs >= 4 && (l.shape.groups == 1 || l.subs.is_multiple_of(4) && !l.has_gaps());
    Layout {
        block_subs: if long { 4 } else { l.block_subs },
        ..*l
    }
}

/// The parts of the columns, as ranges of groups: those of digits, or a single one.
pub fn parts(l: &Layout, digits: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let groups = l.shape.groups;
    let len = match digits {
        1 => groups,
        _ => {
            let most = (PART_BLOCKS / l.group_blocks()).max(1);
            groups.div_ceil(groups.div_ceil(most))
        }
    };
    (0..groups)
        .step_by(len)
        .map(move |g| g..(g + len).min(groups))
}

/// The sub-blocks of a range of groups.
pub fn sub_blocks(l: &Layout, groups: &Range<usize>) -> Range<usize> {
    groups.start * l.subs..(groups.end * l.subs).min(l.total_subs())
}

/// Whether the scales of a matrix allow its products to be split.
pub fn scales_allow(scales: ScaleValues<'_>) -> bool {
    match scales {
        // Every finite one is in the range.
        ScaleValues::F16(_) => true,
        ScaleValues::F32(values) => {
            (values.iter()).all(|&scale| scale == 0.0 || SPLIT_SCALES.contains(&scale.abs()))
        }
    }
}

/// The sums of products with int8 vectors, a row of [`TILE_ROWS`] for each vector and tile; if the
/// vectors are digits, those of a vector follow each other.
pub struct Sums<'a> {
    rows: &'a mut [f32],
    /// A row for each vector that was split and tile; empty if none was.
    totals: &'a mut [f64],
}

impl<'a> Sums<'a> {
    /// Floats of scratch for `rows` rows.
    pub fn floats(rows: usize, digits: usize) -> usize {
        let totals = match digits {
            1 => 0,
            _ => rows / digits,
        };
        (rows + 2 * totals) * TILE_ROWS
    }

    /// `rows` rows, with any contents, in scratch that is aligned to cache lines.
    pub fn new(scratch: &'a mut [f32], rows: usize, digits: usize) -> Sums<'a> {
        let scratch = &mut scratch[..Sums::floats(rows, digits)];
        let (rows, totals) = scratch.split_at_mut(rows * TILE_ROWS);
        let totals = bytemuck::cast_slice_mut(totals);
        Sums { rows, totals }
    }

    /// Sets everything to zero.
    pub fn clear(&mut self) {
        self.rows.fill(0.0);
        self.totals.fill(0.0);
    }

    /// A row, and those after it.
    pub fn row(&mut self, row: usize) -> *mut f32 {
        self.rows[row * TILE_ROWS..].as_mut_ptr()
    }

    /// After the last sub-block of a part: adds digits up, and sets their rows to zero.
    pub fn end_part(&mut self, rows: Range<usize>) {
        if self.totals.is_empty() {
            return;
        }
        let totals = rows.start / DIGITS * TILE_ROWS..rows.end / DIGITS * TILE_ROWS;
        let rows = &mut self.rows[rows.start * TILE_ROWS..rows.end * TILE_ROWS];
        let totals = self.totals[totals].as_chunks_mut::<TILE_ROWS>().0;
        for (digits, total) in rows
            .as_chunks_mut::<{ DIGITS * TILE_ROWS }>()
            .0
            .iter_mut()
            .zip(totals)
        {
            for r in 0..TILE_ROWS {
                let sum = digits[r] + digits[TILE_ROWS + r] + digits[2 * TILE_ROWS + r];
                total[r] += sum as f64;
            }
            digits.fill(0.0);
        }
    }
}

impl Tiles {
    /// Writes the rows of tile `t` for `vectors`, whose sums begin at row `first`.
    ///
    /// # Safety
    /// No other task writes these elements.
    pub(super) unsafe fn store_sums(
        &self,
        out: &Output<'_>,
        vectors: Range<usize>,
        t: usize,
        sums: &Sums<'_>,
        first: usize,
    ) {
        if sums.totals.is_empty() {
            let rows = sums.rows[first * TILE_ROWS..].as_chunks().0;
            for (v, row) in vectors.zip(rows) {
                // SAFETY: the caller upholds this contract.
                unsafe { self.store(out, v, t, row) };
            }
            return;
        }
        let totals = sums.totals[first / DIGITS * TILE_ROWS..]
            .as_chunks::<TILE_ROWS>()
            .0;
        for (v, total) in (vectors.start / DIGITS..vectors.end / DIGITS).zip(totals) {
            // SAFETY: as above.
            unsafe { self.store(out, v, t, &total.map(|total| total as f32)) };
        }
    }

    /// Whether splitting float32 activations pays, with kernels that can.
    pub(super) fn split_pays(&self) -> bool {
        let l = &self.layout;
        self.scales_allow_split
            && !l.short
            && split_layout(l).group_blocks() <= MAX_GROUP_BLOCKS
            && l.tiles() >= MIN_TILES
            && l.tiles() * l.total_subs() >= MIN_SUBS
    }

    /// [`Tiles::multiply`] with float32 activations for several matrices whose layouts differ in
    /// rows only. If splitting pays for all of them, the activations are split once, and the
    /// matrices share one run of tasks; vectors that cannot be split are multiplied as floats.
    ///
    /// # Errors
    /// `ERR_MEMORY`; the outputs are unchanged if there is one, else some may have been written.
    pub(super) fn multiply_float32(
        kernels: &TileKernels,
        executor: Executor<'_>,
        workspace: &mut Workspace,
        x: &[f32],
        n: usize,
        mut products: [Product<'_>; MAX_MATRICES],
    ) -> Result<()> {
        let matrices = || products.iter().flatten().map(|(tiles, _)| *tiles);
        let splits = |tiles: &Tiles| kernels.splits(tiles.layout.bits) && tiles.split_pays();
        if !matrices().all(splits) {
            return (products.iter_mut().flatten()).try_for_each(|(tiles, y)| {
                if splits(tiles) {
                    let product = [Some((*tiles, &mut **y)), None, None];
                    return Tiles::multiply_float32(kernels, executor, workspace, x, n, product);
                }
                tiles.multiply_unsplit(kernels, executor, workspace, x, y, n)
            });
        }
        let layout = split_layout(matrices().next().expect("at least one").layout());
        let run = Int8Run::new(kernels, executor, n * DIGITS, matrices());
        let order = match run.amx {
            Some(_) => Interleave::amx(&layout),
            None => Interleave::SPLIT,
        };
        (workspace.activations).split(kernels, executor, &layout, order, x, n)?;
        let refused = workspace.activations.refused().count();
        if refused == n {
            return (products.iter_mut().flatten()).try_for_each(|(tiles, y)| {
                tiles.multiply_unsplit(kernels, executor, workspace, x, y, n)
            });
        }
        // Before anything is written, because it can fail.
        let mut others = [const { Vec::new() }; MAX_MATRICES];
        if refused > 0 {
            for (y, (tiles, _)) in others.iter_mut().zip(products.iter().flatten()) {
                *y = tiles.multiply_refused(kernels, executor, workspace, x, refused)?;
            }
        }
        let again = products
            .each_mut()
            .map(|p| p.as_mut().map(|(t, y)| (*t, &mut **y)));
        run.multiply(workspace, again)?;
        for ((tiles, y), others) in products.iter_mut().flatten().zip(&others) {
            let rows = tiles.layout.shape.rows;
            for (v, other) in workspace
                .activations
                .refused()
                .zip(others.chunks_exact(rows))
            {
                y[v * rows..(v + 1) * rows].copy_from_slice(other);
            }
        }
        Ok(())
    }

    /// The products with the vectors that the activations of the workspace refused, `count` of
    /// them.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    fn multiply_refused(
        &self,
        kernels: &TileKernels,
        executor: Executor<'_>,
        workspace: &mut Workspace,
        x: &[f32],
        count: usize,
    ) -> Result<Vec<f32>> {
        let (rows, cols) = (self.layout.shape.rows, self.layout.shape.cols);
        let mut those = memory::with_capacity(count * cols, "vectors that are not split")?;
        for v in workspace.activations.refused() {
            those.extend_from_slice(&x[v * cols..(v + 1) * cols]);
        }
        let mut y = memory::filled(count * rows, 0.0, "their products")?;
        self.multiply_unsplit(kernels, executor, workspace, &those, &mut y, count)?;
        Ok(y)
    }
}
