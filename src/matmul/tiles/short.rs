//! Products of short groups (see [`crate::cpu::layout`]): for each tile, all vectors of a panel, a few at a time.

use super::plan::Plan;
use super::{Block, Tiles, no_scratch};
use crate::cpu::tile::{SHORT_WIDTHS, TileKernels};
use crate::error::Result;
use crate::matmul::activations::{InRange, Int8, blocks, interleaved, rounded};
use crate::matmul::tasks::{Output, members, run};
use crate::matmul::weights::Activations;
use crate::matmul::workspace::Workspace;
use crate::runtime::Hands;

impl Tiles {
    /// [`Tiles::multiply`] of short groups. Signs are int8 activations of 1 and -1 here.
    pub(super) fn multiply_short(
        &self,
        kernels: &TileKernels,
        hands: Hands<'_>,
        activations: Activations,
        x: &[f32],
        y: &mut [f32],
        n: usize,
    ) -> Result<()> {
        match activations {
            Activations::F32 => self.short_floats(kernels, hands, x, y, n),
            Activations::Int8 if self.takes_int8() => {
                let products = [Some((self, y)), None, None];
                Tiles::multiply_int8(kernels, hands, &mut Workspace::default(), x, n, products)
            }
            Activations::Int8 => {
                let x = rounded(kernels, x, self.layout.shape.cols)?;
                self.short_floats(kernels, hands, &x, y, n)
            }
            Activations::Sign => {
                let mut acts = Int8::default();
                acts.set_signs(kernels, hands, &self.layout, x, n)?;
                let members = members(hands, self.nanoseconds(n));
                let plan = Plan::new(&self.layout, Activations::Int8, n, members);
                let out = Output::new(y);
                run(hands, members, plan.tasks(), no_scratch, |(), task| {
                    self.short_int8_task(kernels, &acts, &plan, task, &out);
                })
            }
        }
    }

    fn short_floats(
        &self,
        kernels: &TileKernels,
        hands: Hands<'_>,
        x: &[f32],
        y: &mut [f32],
        n: usize,
    ) -> Result<()> {
        let cols = self.layout.shape.cols;
        let held = InRange::new(x, cols)?;
        let x = interleaved(&self.layout, &held.x, n)?;
        let members = members(hands, self.nanoseconds(n));
        let plan = Plan::new(&self.layout, Activations::F32, n, members);
        let out = Output::new(y);
        run(hands, members, plan.tasks(), no_scratch, |(), task| {
            self.short_task(&plan, task, &out, |tile, first, width, values| {
                let x = x[first * cols..].as_ptr();
                // SAFETY: `kernels` exists, so the processor has its features; the tile has this layout; `x` is in blocks of
                // (cols, width).
                unsafe { kernels.short_f32(width)(&self.layout, tile, x, values.as_mut_ptr()) };
            });
        })?;
        held.restore(y, self.layout.shape.rows);
        Ok(())
    }

    /// A task of int8 activations.
    pub(super) fn short_int8_task(
        &self,
        kernels: &TileKernels,
        acts: &Int8,
        plan: &Plan,
        task: usize,
        out: &Output<'_>,
    ) {
        self.short_task(plan, task, out, |tile, first, width, values| {
            let acts = acts.block(first, width, 0, 0);
            // SAFETY: as above; the activations were made for this layout.
            unsafe { kernels.short_int8(width)(&self.layout, tile, acts, values.as_mut_ptr()) };
        });
    }

    /// The products of a task by `kernel(tile, first vector, width, out)`.
    fn short_task(
        &self,
        plan: &Plan,
        task: usize,
        out: &Output<'_>,
        kernel: impl Fn(*const u8, usize, usize, &mut Block),
    ) {
        let (tiles, vectors) = plan.task(task);
        for t in tiles {
            let tile = self.tile(t).as_ptr();
            for (first, width) in blocks(&SHORT_WIDTHS, vectors.clone()) {
                let mut values = Block::zero();
                kernel(tile, first, width, &mut values);
                // SAFETY: tasks have disjoint tiles or vectors.
                unsafe { self.store_block(out, first, width, t, &values) };
            }
        }
    }
}
