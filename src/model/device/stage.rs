//! The state of a session on one device: its buffers, the KV cache of the layers there, and the
//! graphs captured over them.

use std::ops::Range;
use std::sync::Arc;

use super::pass::{Pass, last_step, on_device, step};
use super::{Placement, Portion, Resident, heads};
use crate::cuda::transformer::{ADVANCE_BYTES, Cache, HeadShape, Splits, cache_bytes};
use crate::cuda::{Device, Mark, Memory, Mode, Part, Recorded, Stream, prepared_bytes};
use crate::error::{Error, Result};
use crate::matmul::Weights;
use crate::memory;
use crate::model::Model;
use crate::model::architecture::Architecture;
use crate::model::cache::slots_of;
use crate::model::cancel::Cancellation;
use crate::model::decoder::BLOCK;
use crate::model::load::{Layer, Parameters};

/// The most layers of a block that are enqueued but not done: one that is running, and the next
/// one.
pub(super) const IN_FLIGHT: usize = 2;

/// The part of a session on one device.
pub(super) struct Stage {
    pub kept: Arc<Kept>,
    /// Whether the frequencies have been uploaded.
    pub sent: bool,
    /// The graph that takes one token through this device, once captured.
    step: Option<Recorded<Kept>>,
    /// The graph from the residual stream to the next token, if that is not part of `step`, once
    /// captured.
    last: Option<Recorded<Kept>>,
}

/// Everything that the captured graphs refer to.
pub(super) struct Kept {
    model: Arc<Model>,
    /// The index of the model's portion on this device.
    index: usize,
    /// Whether tokens enter here, as ids.
    pub(super) begins: bool,
    /// Whether the next token is found here directly after the layers.
    pub(super) ends: bool,
    pub(super) stream: Stream,
    /// The buffers of [`Plan`].
    memory: Memory,
    /// Keys and values of the device's layers.
    cache: Memory,
    plan: Plan,
    /// Events at the start of the latest layers of a block, used in rotation.
    pub(super) marks: [Mark; IN_FLIGHT],
    /// The factor on cosines and sines.
    pub(super) amplitude: f64,
}

/// A buffer: a byte range of [`Kept::memory`].
pub(super) type Buffer = Range<usize>;

/// The placement of the buffers, for a block of n tokens. Elements are float unless stated
/// otherwise.
pub(super) struct Plan {
    /// uint32: the position of the first token
    pub position: Buffer,
    /// uint32: 1 if a vector to be quantised is not finite
    pub bad: Buffer,
    /// uint32: the arg-max of the logits
    pub token: Buffer,
    /// uint32 `(n)`
    pub ids: Buffer,
    /// double `(head_dim/2)`, rotations per position
    pub frequencies: Buffer,
    /// `(n, head_dim/2, 2)`
    pub angles: Buffer,
    /// The residual stream `(n, hidden)`.
    pub x: Buffer,
    /// Its norm `(n, hidden)`.
    pub a: Buffer,
    /// The summand to be added to it `(n, hidden)`.
    pub y: Buffer,
    /// `(n, heads, head_dim)`
    pub q: Buffer,
    /// `(n, kv_heads, head_dim)`
    pub k: Buffer,
    pub v: Buffer,
    /// The queries in the form that attention reads `(n, heads, head_dim)`.
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
    /// The partial results of attention.
    pub parts: Buffer,
    /// Candidates for the arg-max.
    pub best: Buffer,
    /// The number of thread blocks that share the positions of a single token.
    splits: usize,
    /// For each layer its slots, and the offset of its keys in [`Kept::cache`]; its values follow.
    layers: Vec<(usize, usize)>,
    half: bool,
    total: usize,
}

/// `position`, `bad`, `token` and an unused word, then the ids: uploaded before a block.
const CONTROL_WORDS: usize = 4;

/// Places buffers one after the other.
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
    /// For these layers, and products that need `scratch` bytes. Returns the size of the layers' KV
    /// cache too.
    fn new(
        device: &Device,
        a: &Architecture,
        layers: Range<usize>,
        scratch: usize,
        context: usize,
        half: bool,
    ) -> Result<(Plan, usize)> {
        let n = BLOCK.min(context);
        let heads = &heads(a);
        let (query, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);

        let mut places = memory::with_capacity(layers.len(), "the layers of a cache")?;
        let mut cache = 0usize;
        for window in &a.windows[layers] {
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

/// The scratch bytes that products of `n` vectors with these matrices need.
fn scratch_bytes<'a>(matrices: impl Iterator<Item = &'a Weights>, n: usize) -> usize {
    let bytes = |w: &Weights| {
        let mode = Mode::from(w.activations());
        prepared_bytes(mode, &on_device(w).columns(), n).unwrap_or(usize::MAX)
    };
    matrices.map(bytes).max().unwrap_or(0)
}

/// An upper bound of the device memory, in bytes, of a session of a model with these layers on the
/// device.
pub(super) fn session_bytes(
    device: &Device,
    a: &Architecture,
    layers: Range<usize>,
    context: usize,
) -> usize {
    // The widest vector as floats, its groups padded at worst fourfold.
    let widest = a.hidden.max(a.intermediate).max(a.heads * a.head_dim);
    let scratch = widest.saturating_mul(BLOCK.min(context) * 4 * 4);
    match Plan::new(device, a, layers, scratch, context, true) {
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

    fn resident(&self) -> &Resident {
        match &self.model.placement {
            Placement::Device(resident) => resident,
            Placement::Host(_) => unreachable!("State::new was given a model on the device"),
        }
    }

    pub fn heads(&self) -> &HeadShape {
        &self.resident().heads
    }

    /// The part of the model on this device.
    pub fn portion(&self) -> &Portion {
        &self.resident().portions[self.index]
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn part(&self, buffer: &Buffer) -> Part<'_> {
        self.memory.part(buffer.start, buffer.len())
    }

    pub fn cache(&self, layer: usize) -> Cache<'_> {
        let (slots, at) = self.plan.layers[layer];
        let (half, heads) = (self.plan.half, self.heads());
        let bytes = cache_bytes(heads, slots, half).expect("it was allocated");
        Cache {
            keys: self.cache.part(at, bytes),
            values: self.cache.part(at + bytes.next_multiple_of(256), bytes),
            slots,
            half,
        }
    }

    /// With several tokens there are enough rows to fill the device without splitting.
    pub fn splits(&self, n: usize) -> Splits<'_> {
        Splits {
            count: if n == 1 { self.plan.splits } else { 1 },
            scratch: self.part(&self.plan.parts),
        }
    }
}

impl Stage {
    /// For sequences of up to `context` tokens, with the portion `index` of the model. Keys and
    /// values are float16 if `half`, else float32; cosines and sines are multiplied by `amplitude`.
    ///
    /// # Errors
    /// `ERR_MEMORY`, `ERR_BACKEND`.
    pub fn new(
        model: &Arc<Model>,
        resident: &Resident,
        index: usize,
        (context, half, amplitude): (usize, bool, f64),
    ) -> Result<Stage> {
        let portion = &resident.portions[index];
        let (first, count) = (portion.first, portion.layers.len());
        let layers = first..first + count;
        let head = resident.head == Some(index);
        let output = head.then(|| model.parameters.output());
        let here = model.parameters.layers[layers.clone()].iter();
        let matrices = here.flat_map(Layer::matrices).chain(output);
        let scratch = scratch_bytes(matrices, BLOCK.min(context));
        let device = &portion.device;
        let (plan, cache) = Plan::new(device, &model.architecture, layers, scratch, context, half)?;
        let kept = Kept {
            model: Arc::clone(model),
            index,
            begins: index == 0 && resident.head.is_some(),
            ends: head && index + 1 == resident.portions.len(),
            stream: Stream::new(device)?,
            memory: Memory::new(device, plan.total, "the buffers of a session")?,
            cache: Memory::new(device, cache, "keys and values")?,
            plan,
            marks: [Mark::new(device)?, Mark::new(device)?],
            amplitude,
        };
        Ok(Stage {
            kept: Arc::new(kept),
            sent: false,
            step: None,
            last: None,
        })
    }

    /// The size of keys and values, in bytes.
    pub fn cache_bytes(&self) -> usize {
        self.kept.cache.bytes()
    }

    /// The number of slots of the layer with the fewest.
    pub fn least_slots(&self) -> Option<usize> {
        self.kept.plan.layers.iter().map(|(slots, _)| *slots).min()
    }

    /// Enqueues the work of this device for the `n` tokens of a block; with `last` also the search
    /// for the next token.
    ///
    /// # Errors
    /// `ERR_STATE` if a block of several tokens was cancelled between layers; `ERR_BACKEND`.
    pub fn enqueue(&mut self, cancellation: &Cancellation, n: usize, last: bool) -> Result<()> {
        if n == 1 {
            return replay(&mut self.step, &self.kept, step);
        }
        let k = &*self.kept;
        let pass = Pass {
            stream: &k.stream,
            k,
            n,
            cancellation: Some(cancellation),
        };
        if k.begins {
            pass.embed()?;
        }
        pass.layers()?;
        match k.ends && last {
            true => pass.last(),
            false => Ok(()),
        }
    }

    /// Enqueues the search for the token after the last of `n`, if [`Stage::enqueue`] did not.
    ///
    /// # Errors
    /// `ERR_BACKEND`.
    pub fn enqueue_last(&mut self, n: usize) -> Result<()> {
        if n == 1 {
            return replay(&mut self.last, &self.kept, last_step);
        }
        let k = &*self.kept;
        let pass = Pass {
            stream: &k.stream,
            k,
            n,
            cancellation: None,
        };
        pass.last()
    }

    /// Uploads the control block: the position of the first token of a block, and the ids if the
    /// embedding is here.
    ///
    /// # Errors
    /// `ERR_BACKEND`; `ERR_STATE` for a position that does not fit in 32 bits.
    pub fn send(&self, first: usize, ids: &[u32]) -> Result<()> {
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

    /// Waits, and returns the token that was found here, see [`crate::cuda::transformer::advance`].
    ///
    /// # Errors
    /// `ERR_RANGE` if activations are int8 and one is not finite; `ERR_BACKEND`.
    pub fn found(&self) -> Result<u32> {
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

    /// The residual stream of `n` tokens: float `(n, hidden)`.
    pub fn residual(&self, n: usize) -> Part<'_> {
        let k = &self.kept;
        k.part(&k.plan.x).part(0, n * k.architecture().hidden * 4)
    }
}

/// Enqueues the launches of `work`, captured as a graph the first time and replayed after that.
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
