//! What a session has on the device.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::pass::{Pass, lower_step, on_device, step};
use super::{Placement, Resident, heads};
use crate::cuda::transformer::{ADVANCE_BYTES, Cache, Splits, cache_bytes};
use crate::cuda::{Device, Memory, Mode, Part, Recorded, Stream, prepared_bytes};
use crate::error::{Error, Result};
use crate::matmul::Weights;
use crate::memory;
use crate::model::Model;
use crate::model::architecture::Architecture;
use crate::model::cache::slots_of;
use crate::model::decoder::BLOCK;
use crate::model::load::{Layer, Parameters};
use crate::model::options::Precision;
use crate::model::rope::Rotary;

/// Tokens whose logits are computed together where those of every token are wanted.
const ROWS: usize = 16;

/// What is wanted of a sequence, besides that it is fed.
pub(in crate::model) enum Wanted<'a> {
    /// The token with the greatest logit; the logits stay on the device.
    Greatest,
    /// The logits of the last token: `(vocabulary)`.
    Last(&'a mut [f32]),
    /// Of every token: `(n, vocabulary)`.
    All(&'a mut [f32]),
}

/// A session's forward pass on the device.
pub(in crate::model) struct State {
    kept: Arc<Kept>,
    rotary: Rotary,
    /// Whether the device has the frequencies.
    sent: bool,
    /// One token through everything, once it has been captured.
    step: Option<Recorded<Kept>>,
    /// The position and the id that the device goes on with by itself.
    ahead: Option<(usize, u32)>,
    /// float `(ROWS, vocabulary)`, once it was needed
    rows: Option<Memory>,
}

/// All that the captured step names.
pub(super) struct Kept {
    model: Arc<Model>,
    stream: Stream,
    /// The buffers of [`Plan`].
    memory: Memory,
    /// Keys and values of all layers.
    cache: Memory,
    plan: Plan,
    /// What cosines and sines are multiplied with.
    pub(super) amplitude: f64,
}

/// A buffer: bytes of [`Kept::memory`].
pub(super) type Buffer = Range<usize>;

/// Where the buffers are, for a block of n tokens; all are float unless it says so.
pub(super) struct Plan {
    /// uint32: the position of the first token
    pub position: Buffer,
    /// uint32: 1 where a vector that is quantised is not finite
    pub bad: Buffer,
    /// uint32: the token of the greatest logit
    pub token: Buffer,
    /// uint32 `(n)`
    pub ids: Buffer,
    /// double `(head_dim/2)`, turns a position
    pub frequencies: Buffer,
    /// `(n, head_dim/2, 2)`
    pub angles: Buffer,
    /// The residual stream `(n, hidden)`.
    pub x: Buffer,
    /// Its norm `(n, hidden)`.
    pub a: Buffer,
    /// What is added to it `(n, hidden)`.
    pub y: Buffer,
    /// `(n, heads, head_dim)`
    pub q: Buffer,
    /// `(n, kv_heads, head_dim)`
    pub k: Buffer,
    pub v: Buffer,
    /// The queries as attention takes them `(n, heads, head_dim)`.
    pub placed: Buffer,
    /// `(n, heads, head_dim)`
    pub mixed: Buffer,
    /// `(n, intermediate)`
    pub gate: Buffer,
    pub up: Buffer,
    /// `(vocabulary)`
    pub logits: Buffer,
    /// Vectors in the form that products read.
    pub scratch: Buffer,
    /// The parts of attention.
    pub parts: Buffer,
    /// Candidates for the greatest logit.
    pub best: Buffer,
    /// Blocks that share the positions of a single token.
    splits: usize,
    /// Slots of each layer, and where its keys begin in [`Kept::cache`]; its values follow.
    layers: Vec<(usize, usize)>,
    half: bool,
    total: usize,
}

/// `position`, `bad`, `token` and a word of nothing, then the ids: what goes up before a block.
const CONTROL_WORDS: usize = 4;

/// Lays buffers out one behind the other.
struct Layout {
    total: usize,
}

impl Layout {
    fn take(&mut self, bytes: usize) -> Buffer {
        let start = self.total;
        self.total = start.saturating_add(bytes).saturating_add(255) & !255;
        start..start.saturating_add(bytes)
    }
}

impl Plan {
    /// For the first `layers` layers, and products that need `scratch` bytes; and the bytes of their cache.
    fn new(
        device: &Device,
        a: &Architecture,
        layers: usize,
        scratch: usize,
        context: usize,
        half: bool,
    ) -> Result<(Plan, usize)> {
        let n = BLOCK.min(context);
        let heads = &heads(a);
        let (query, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);

        let mut places = memory::with_capacity(layers, "the layers of a cache")?;
        let mut cache = 0usize;
        for window in &a.windows[..layers] {
            let slots = slots_of(*window, context, BLOCK);
            let bytes = slots.and_then(|slots| Some((slots, cache_bytes(heads, slots, half)?)));
            let after = bytes.and_then(|(slots, bytes)| {
                places.push((slots, cache));
                cache.checked_add(bytes.checked_next_multiple_of(256)?.checked_mul(2)?)
            });
            cache = after.ok_or_else(|| {
                Error::memory(format!(
                    "no memory for keys and values of a context of {context} positions"
                ))
            })?;
        }
        let most_slots = places.iter().map(|(slots, _)| *slots).max().unwrap_or(1);
        let splits = Splits::for_one_token(device, heads, most_slots);

        let mut layout = Layout { total: 0 };
        let control = layout.take((CONTROL_WORDS + n) * 4);
        let word = |i: usize| control.start + 4 * i..control.start + 4 * i + 4;
        let mut floats = |width: usize| layout.take(n * 4 * width);
        let plan = Plan {
            position: word(0),
            bad: word(1),
            token: word(2),
            ids: word(CONTROL_WORDS).start..control.end,
            angles: floats(a.head_dim),
            x: floats(a.hidden),
            a: floats(a.hidden),
            y: floats(a.hidden),
            q: floats(query),
            k: floats(kv),
            v: floats(kv),
            placed: floats(query),
            mixed: floats(query),
            gate: floats(a.intermediate),
            up: floats(a.intermediate),
            frequencies: layout.take(a.head_dim / 2 * 8),
            logits: layout.take(a.vocabulary * 4),
            scratch: layout.take(scratch),
            parts: layout.take(Splits::bytes(heads, 1, splits)),
            best: layout.take(ADVANCE_BYTES),
            splits,
            layers: places,
            half,
            total: layout.total,
        };
        Ok((plan, cache))
    }
}

/// Bytes of scratch that the products of `n` vectors with these matrices need.
fn scratch_bytes<'a>(matrices: impl Iterator<Item = &'a Weights>, n: usize) -> usize {
    let bytes = |w: &Weights| {
        let mode = Mode::from(w.activations());
        prepared_bytes(mode, &on_device(w).columns(), n).unwrap_or(usize::MAX)
    };
    matrices.map(bytes).max().unwrap_or(0)
}

/// Bytes of device memory that a session of a model needs at most, if all of it is there.
pub(super) fn session_bytes(device: &Device, a: &Architecture, context: usize) -> usize {
    // The widest vector, as floats, its groups padded fourfold at worst.
    let widest = a.hidden.max(a.intermediate).max(a.heads * a.head_dim);
    let scratch = widest.saturating_mul(BLOCK.min(context) * 4 * 4);
    match Plan::new(device, a, a.layers, scratch, context, true) {
        Ok((plan, cache)) => plan.total.saturating_add(cache),
        Err(_) => usize::MAX,
    }
}

impl Kept {
    pub fn architecture(&self) -> &Architecture {
        &self.model.architecture
    }

    pub fn parameters(&self) -> &Parameters {
        &self.model.parameters
    }

    pub fn resident(&self) -> &Resident {
        match &self.model.placement {
            Placement::Device(resident) => resident,
            Placement::Host(_) => unreachable!("State::new was given a model on the device"),
        }
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn part(&self, buffer: &Buffer) -> Part<'_> {
        self.memory.part(buffer.start, buffer.len())
    }

    pub fn cache(&self, layer: usize) -> Cache<'_> {
        let (slots, at) = self.plan.layers[layer];
        let (half, heads) = (self.plan.half, &self.resident().heads);
        let bytes = cache_bytes(heads, slots, half).expect("it was allocated");
        Cache {
            keys: self.cache.part(at, bytes),
            values: self.cache.part(at + bytes.next_multiple_of(256), bytes),
            slots,
            half,
        }
    }

    /// Several tokens are enough rows to fill the device by themselves.
    pub fn splits(&self, n: usize) -> Splits<'_> {
        Splits {
            count: if n == 1 { self.plan.splits } else { 1 },
            scratch: self.part(&self.plan.parts),
        }
    }
}

impl State {
    /// For sequences of up to `context` tokens; `None` if the model is not on the device.
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
        let (device, layers) = (resident.gpu.device(), resident.layers.len());
        let n = BLOCK.min(context);
        let scratch = match resident.whole {
            true => scratch_bytes(model.parameters.matrices(), n),
            false => {
                let layers = &model.parameters.layers[..layers];
                scratch_bytes(layers.iter().flat_map(Layer::matrices), n)
            }
        };
        let (plan, cache) = Plan::new(device, a, layers, scratch, context, half)?;
        let kept = Kept {
            model: Arc::clone(model),
            stream: Stream::new(device)?,
            memory: Memory::new(device, plan.total, "the buffers of a session")?,
            cache: Memory::new(device, cache, "keys and values")?,
            plan,
            amplitude: rotary.amplitude(),
        };
        Ok(Some(State {
            kept: Arc::new(kept),
            rotary,
            sent: false,
            step: None,
            ahead: None,
            rows: None,
        }))
    }

    /// Bytes of keys and values.
    pub fn cache_bytes(&self) -> usize {
        self.kept.cache.bytes()
    }

    pub fn precision(&self) -> &'static str {
        match self.kept.plan.half {
            true => "f16",
            false => "f32",
        }
    }

    /// Slots of the layer with the fewest.
    pub fn least_slots(&self) -> usize {
        let slots = self.kept.plan.layers.iter().map(|(slots, _)| *slots);
        slots.min().unwrap_or(usize::MAX)
    }

    /// Feeds `ids` from position `first` on, and gives the token of the greatest logit of the last one, unless those of every token
    /// are wanted.
    ///
    /// # Errors
    /// `ERR_STATE` if it was cancelled; `ERR_RANGE` if activations are int8 and one is not finite; `ERR_MEMORY`, `ERR_BACKEND`.
    /// The cache then holds what it held before position `first`, as far as it is a window's.
    pub fn feed(
        &mut self,
        cancelled: &AtomicBool,
        first: usize,
        ids: &[u32],
        mut wanted: Wanted<'_>,
    ) -> Result<Option<u32>> {
        let vocabulary = self.kept.architecture().vocabulary;
        let mut found = None;
        for (i, block) in ids.chunks(BLOCK).enumerate() {
            if cancelled.load(Ordering::Relaxed) {
                return Err(Error::state("the call was cancelled"));
            }
            let at = i * BLOCK;
            let last = at + block.len() == ids.len() && !matches!(wanted, Wanted::All(_));
            found = self.block(first + at, block, last)?;
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

    /// The logits of the last token, where a token was found.
    ///
    /// # Errors
    /// `ERR_BACKEND`.
    pub fn logits(&self, out: &mut [f32]) -> Result<()> {
        let logits = self.kept.part(&self.kept.plan.logits);
        self.kept.stream.read(bytemuck::cast_slice_mut(out), logits)
    }

    /// The layers that the device has of a model that is not wholly there: `x` `(n, hidden)`, the residual stream of the tokens
    /// from position `first` on.
    ///
    /// # Errors
    /// As [`State::feed`].
    pub fn lower(&mut self, first: usize, x: &mut [f32]) -> Result<()> {
        let n = x.len() / self.kept.architecture().hidden;
        // There are no ids: none of the kernels that run here reads them.
        self.send(first, &[])?;
        self.send_frequencies(first + n)?;
        let kept = &self.kept;
        let stream_of_tokens = kept.part(&kept.plan.x).part(0, size_of_val(x));
        kept.stream
            .write(stream_of_tokens, bytemuck::cast_slice(x))?;
        if n == 1 {
            replay(&mut self.step, kept, lower_step)?;
        } else {
            let pass = Pass {
                stream: &kept.stream,
                k: kept,
                n,
            };
            pass.layers()?;
        }
        self.found()?;
        kept.stream
            .read(bytemuck::cast_slice_mut(x), stream_of_tokens)
    }

    /// The layers that the device has.
    pub fn layers(&self) -> usize {
        self.kept.plan.layers.len()
    }

    /// Whether the device has the whole model.
    pub fn whole(&self) -> bool {
        self.kept.resident().whole
    }

    /// Waits, and gives the token that was found.
    fn found(&self) -> Result<u32> {
        let (kept, mut words) = (&self.kept, [0u32; 2]);
        let found = kept.part(&(kept.plan.bad.start..kept.plan.token.end));
        kept.stream
            .read(bytemuck::cast_slice_mut(&mut words), found)?;
        match words {
            [0, token] => Ok(token),
            _ => Err(Error::range(
                "an activation of the model is not finite, int8 activations must be",
            )),
        }
    }

    /// One block of tokens; `last`: the token that follows is wanted.
    fn block(&mut self, first: usize, ids: &[u32], last: bool) -> Result<Option<u32>> {
        let ahead = self.ahead.take();
        if ids.len() > 1 || ahead != Some((first, ids[0])) {
            self.send(first, ids)?;
        }
        self.send_frequencies(first + ids.len())?;
        let kept = &self.kept;
        if ids.len() == 1 {
            replay(&mut self.step, kept, step)?;
        } else {
            let pass = Pass {
                stream: &kept.stream,
                k: kept,
                n: ids.len(),
            };
            pass.embed()?;
            pass.layers()?;
            if last {
                pass.last()?;
            }
        }
        let token = self.found()?;
        if ids.len() == 1 {
            self.ahead = Some((first + 1, token));
        }
        Ok((ids.len() == 1 || last).then_some(token))
    }

    /// The logits of every token of the block that was fed last: `out` `(n, vocabulary)`.
    fn every(&mut self, n: usize, out: &mut [f32]) -> Result<()> {
        let kept = &self.kept;
        let vocabulary = kept.architecture().vocabulary;
        let rows = match &self.rows {
            Some(rows) => rows,
            None => {
                let bytes = (ROWS * 4).saturating_mul(vocabulary);
                let rows = Memory::new(kept.memory.device(), bytes, "the logits of every token")?;
                self.rows.insert(rows)
            }
        };
        let pass = Pass {
            stream: &kept.stream,
            k: kept,
            n,
        };
        for (i, out) in out.chunks_mut(ROWS * vocabulary).enumerate() {
            let count = out.len() / vocabulary;
            let logits = rows.part(0, count * vocabulary * 4);
            pass.logits(i * ROWS, count, logits)?;
            kept.stream.read(bytemuck::cast_slice_mut(out), logits)?;
        }
        Ok(())
    }

    /// The control block up.
    fn send(&self, first: usize, ids: &[u32]) -> Result<()> {
        let mut words = [0u32; CONTROL_WORDS + BLOCK];
        words[0] = u32::try_from(first).map_err(|_| {
            Error::state(format!("position {first} is beyond what the device counts"))
        })?;
        let words = &mut words[..CONTROL_WORDS + ids.len()];
        words[CONTROL_WORDS..].copy_from_slice(ids);
        let (p, bytes) = (&self.kept.plan, bytemuck::cast_slice(words));
        let to = self.kept.part(&(p.position.start..p.ids.end));
        self.kept.stream.write(to.part(0, bytes.len()), bytes)
    }

    /// The frequencies of a sequence of this length up, if they are others than before.
    fn send_frequencies(&mut self, length: usize) -> Result<()> {
        let (frequencies, changed) = self.rotary.grow(length);
        if self.sent && !changed {
            return Ok(());
        }
        self.sent = false;
        let mut turns = memory::with_capacity(frequencies.len(), "frequencies")?;
        turns.extend(frequencies.iter().map(|f| f / std::f64::consts::TAU));
        let to = self.kept.part(&self.kept.plan.frequencies);
        self.kept.stream.write(to, bytemuck::cast_slice(&turns))?;
        self.sent = true;
        Ok(())
    }
}

/// Enqueues what `work` enqueues, which is captured the first time.
fn replay(
    step: &mut Option<Recorded<Kept>>,
    kept: &Arc<Kept>,
    work: fn(&Stream, &Kept) -> Result<()>,
) -> Result<()> {
    let step = match step {
        Some(step) => step,
        empty => empty.insert(Recorded::new(&kept.stream, kept, work)?),
    };
    step.replay(&kept.stream)
}
