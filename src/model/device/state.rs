//! The state of a session on the devices of its model, and how tokens pass through them.

use std::sync::Arc;

use super::Placement;
use super::pass::Pass;
use super::stage::{Kept, Stage};
use crate::cuda::{Memory, Pinned};
use crate::error::Result;
use crate::memory;
use crate::model::Model;
use crate::model::cancel::Cancellation;
use crate::model::decoder::BLOCK;
use crate::model::engine::Feed;
use crate::model::options::Precision;
use crate::model::rope::Rotary;

/// The number of tokens whose logits are computed together if the logits of every token are wanted.
const ROWS: usize = 16;

/// The wanted result of feeding tokens.
pub(in crate::model) enum Wanted<'a> {
    /// The most likely token; the logits stay on the device.
    Greatest,
    /// The logits of the last token: `(vocabulary)`.
    Last(&'a mut [f32]),
    /// Of every token: `(n, vocabulary)`.
    All(&'a mut [f32]),
}

/// A session's forward pass on devices.
pub(in crate::model) struct State {
    /// In the order in which tokens pass through them; not empty.
    stages: Vec<Stage>,
    /// The stage with the output; `None`: the CPU has it.
    head: Option<usize>,
    rotary: Rotary,
    /// The residual stream between devices: float `(n, hidden)`; empty with a single device.
    between: Pinned,
    half: bool,
    /// The position and the id with which a single device continues without an upload.
    ahead: Option<(usize, u32)>,
    /// float `(ROWS, vocabulary)`, allocated on first use
    rows: Option<Memory>,
}

impl State {
    /// For sequences of up to `context` tokens; `None` if the model is not on a device.
    ///
    /// # Errors
    /// `ERR_MEMORY`, `ERR_BACKEND`.
    pub fn new(model: &Arc<Model>, precision: Precision, context: usize) -> Result<Option<State>> {
        let Placement::Device(resident) = &model.placement else {
            return Ok(None);
        };
        let a = &model.architecture;
        let rotary = Rotary::new(&a.rope, a.head_dim, 0)?;
        let half = precision == Precision::F16;
        let shape = (context, half, rotary.amplitude());
        let stages = (0..resident.portions.len()).map(|i| Stage::new(model, resident, i, shape));
        let between = match resident.portions.len() {
            1 => 0,
            _ => BLOCK.min(context) * a.hidden * 4,
        };
        let device = &resident.portions[0].device;
        Ok(Some(State {
            stages: stages.collect::<Result<_>>()?,
            head: resident.head,
            rotary,
            between: Pinned::new(device, between, "the residual stream")?,
            half,
            ahead: None,
            rows: None,
        }))
    }

    /// The size of keys and values, in bytes.
    pub fn cache_bytes(&self) -> usize {
        self.stages.iter().map(Stage::cache_bytes).sum()
    }

    pub fn precision(&self) -> &'static str {
        match self.half {
            true => "f16",
            false => "f32",
        }
    }

    /// The number of slots of the layer with the fewest.
    pub fn least_slots(&self) -> usize {
        let slots = self.stages.iter().filter_map(Stage::least_slots);
        slots.min().unwrap_or(usize::MAX)
    }

    /// Feeds tokens and returns the most likely next token, unless the logits of every token are
    /// wanted.
    ///
    /// # Errors
    /// `ERR_STATE` if it was cancelled; `ERR_RANGE` if activations are int8 and one is not finite;
    /// `ERR_MEMORY`, `ERR_BACKEND`. The cache then still holds what it held before position
    /// `first`, except for positions that a ring buffer has overwritten.
    pub fn feed(&mut self, f: &Feed<'_>, mut wanted: Wanted<'_>) -> Result<Option<u32>> {
        let (first, ids) = (f.first, f.ids);
        let vocabulary = self.head().architecture().vocabulary;
        let mut found = None;
        for (i, block) in ids.chunks(BLOCK).enumerate() {
            if ids.len() > 1 {
                f.cancellation.check()?;
            }
            let at = i * BLOCK;
            let last = at + block.len() == ids.len() && !matches!(wanted, Wanted::All(_));
            found = self.block(f, first + at, block, last)?;
            if let Wanted::All(out) = &mut wanted {
                let out = &mut out[at * vocabulary..(at + block.len()) * vocabulary];
                self.every(block.len(), out)?;
            }
        }
        match wanted {
            Wanted::All(_) => return Ok(None),
            Wanted::Last(out) => self.logits(out)?,
            Wanted::Greatest => {}
        }
        Ok(found)
    }

    /// Reads the logits of the last token, if its next token was searched for.
    ///
    /// # Errors
    /// `ERR_BACKEND`.
    pub fn logits(&self, out: &mut [f32]) -> Result<()> {
        let head = self.head();
        let logits = head.part(&head.plan().logits);
        head.stream.read(bytemuck::cast_slice_mut(out), logits)
    }

    /// Runs the layers on the devices of a model that is only partly there. `x` `(n, hidden)` is
    /// the residual stream of the tokens from position `first` on.
    ///
    /// # Errors
    /// As [`State::feed`].
    pub fn lower(&mut self, f: &Feed<'_>, first: usize, x: &mut [f32]) -> Result<()> {
        let n = x.len() / self.stages[0].kept.architecture().hidden;
        // No ids are needed: none of the kernels that run here reads them.
        self.send(first, &[])?;
        self.send_frequencies(f.length)?;
        let stage = &self.stages[0];
        stage
            .kept
            .stream
            .write(stage.residual(n), bytemuck::cast_slice(x))?;
        self.pass(f.cancellation, n, false)?;
        let stage = self.stages.last().expect("there is a device");
        stage.found()?;
        let (stream, residual) = (&stage.kept.stream, stage.residual(n));
        stream.read(bytemuck::cast_slice_mut(x), residual)
    }

    /// The number of layers on the devices.
    pub fn layers(&self) -> usize {
        self.stages
            .iter()
            .map(|s| s.kept.portion().layers.len())
            .sum()
    }

    /// Whether the whole model is on the devices.
    pub fn whole(&self) -> bool {
        self.head.is_some()
    }

    /// The stage with the output.
    fn head(&self) -> &Kept {
        let head = self.head.expect("the devices have the whole model");
        &self.stages[head].kept
    }

    /// Feeds one block of tokens; with `last`, the next token is searched for.
    fn block(
        &mut self,
        f: &Feed<'_>,
        first: usize,
        ids: &[u32],
        last: bool,
    ) -> Result<Option<u32>> {
        let ahead = self.ahead.take();
        if ids.len() > 1 || ahead != Some((first, ids[0])) {
            self.send(first, ids)?;
        }
        self.send_frequencies(f.length)?;
        self.pass(f.cancellation, ids.len(), last)?;
        let head = self.head.expect("the devices have the whole model");
        let behind = self.stages.len() - 1;
        // An output tied to the embedding is on the first device.
        if head != behind {
            self.cross(behind, head, ids.len())?;
            if last || ids.len() == 1 {
                self.stages[head].enqueue_last(ids.len())?;
            }
        }
        let token = self.stages[head].found()?;
        if ids.len() == 1 && behind == 0 {
            self.ahead = Some((first + 1, token));
        }
        Ok((ids.len() == 1 || last).then_some(token))
    }

    /// Passes tokens through the layers of every device.
    fn pass(&mut self, cancellation: &Cancellation, n: usize, last: bool) -> Result<()> {
        for i in 0..self.stages.len() {
            if i > 0 {
                cancellation.check()?;
                self.cross(i - 1, i, n)?;
            }
            self.stages[i].enqueue(cancellation, n, last)?;
        }
        Ok(())
    }

    /// Copies the residual stream of `n` tokens from one device to another, once it has been
    /// computed.
    ///
    /// Waits for both copies, so `between` is free when this returns, even with an error.
    fn cross(&mut self, from: usize, to: usize, n: usize) -> Result<()> {
        let (from, to) = (&self.stages[from], &self.stages[to]);
        // A vector that is not finite must not be passed on.
        from.found()?;
        // SAFETY: the next line waits for it, whether it was enqueued or refused.
        let down = unsafe {
            from.kept
                .stream
                .download(&mut self.between, from.residual(n))
        };
        from.kept.stream.synchronize().and(down)?;
        // SAFETY: as above.
        let up = unsafe { to.kept.stream.upload(to.residual(n), &self.between) };
        to.kept.stream.synchronize().and(up)
    }

    /// Computes the logits of every token of the last block: `out` `(n, vocabulary)`.
    fn every(&mut self, n: usize, out: &mut [f32]) -> Result<()> {
        let head = self.head.expect("the devices have the whole model");
        let kept = &self.stages[head].kept;
        let vocabulary = kept.architecture().vocabulary;
        let rows = match &self.rows {
            Some(rows) => rows,
            None => {
                let bytes = (ROWS * 4).saturating_mul(vocabulary);
                let device = kept.stream.device();
                let rows = Memory::new(device, bytes, "the logits of every token")?;
                self.rows.insert(rows)
            }
        };
        let pass = Pass {
            stream: &kept.stream,
            k: kept,
            n,
            cancellation: None,
        };
        for (i, out) in out.chunks_mut(ROWS * vocabulary).enumerate() {
            let count = out.len() / vocabulary;
            let logits = rows.part(0, count * vocabulary * 4);
            pass.logits(i * ROWS, count, logits)?;
            kept.stream.read(bytemuck::cast_slice_mut(out), logits)?;
        }
        // The vectors that the output itself was multiplied by may not be finite either.
        self.stages[head].found().map(drop)
    }

    /// Uploads the control block to every device; only the first one reads the ids.
    fn send(&self, first: usize, ids: &[u32]) -> Result<()> {
        let ids = |stage: &Stage| if stage.kept.begins { ids } else { &[] };
        self.stages.iter().try_for_each(|s| s.send(first, ids(s)))
    }

    /// Uploads the frequencies of a sequence of this length, if they have changed.
    fn send_frequencies(&mut self, length: usize) -> Result<()> {
        let (frequencies, changed) = self.rotary.grow(length);
        if changed {
            self.stages.iter_mut().for_each(|s| s.sent = false);
        }
        if self.stages.iter().all(|s| s.sent) {
            return Ok(());
        }
        let mut turns = memory::with_capacity(frequencies.len(), "frequencies")?;
        turns.extend(frequencies.iter().map(|f| f / std::f64::consts::TAU));
        for stage in self.stages.iter_mut().filter(|s| !s.sent) {
            let kept = &stage.kept;
            let to = kept.part(&kept.plan().frequencies);
            kept.stream.write(to, bytemuck::cast_slice(&turns))?;
            stage.sent = true;
        }
        Ok(())
    }
}
