//! A model on a CUDA device, and its forward pass there: all of it, or its first layers where there is no room for more.
//!
//! What the pass computes is what `decoder` computes; here it is a sequence of launches ([`crate::cuda::transformer`] and the
//! products) over buffers that never leave the device. Up go the ids and the position of a block of tokens, down comes the token of
//! the greatest logit, or the logits where somebody wants them.
//!
//! ```text
//! a block of tokens   control up ─► embed, angles, layers ─► [norm, logits, advance] ─► found down
//! the next token                    one graph: all of the above for n = 1            ─► found down
//! ```
//!
//! The launches for one token have the same arguments each time, because ids and positions are read from device memory. So
//! they are captured at the first such step of a session and replayed ever after; and since the last of them puts the token it
//! found where the first reads its id, a greedy step sends nothing up at all.
//!
//! Of a model that does not fit, the CPU has the embedding, the layers behind, and the output; the residual stream goes up before
//! the device's layers and comes down behind them. Which layers fit is found out while they are loaded: as many as leave room for
//! a session over the whole context ([`Room`]).
//!
//! | module | one reason to exist |
//! |---|---|
//! | here | which models live on the device, and their vectors there |
//! | `state` | what a session has there: buffers, cache, the captured step |
//! | `pass` | the launches |

mod pass;
mod state;

pub(super) use state::{State, Wanted};

use std::cell::Cell;
use std::sync::Arc;

use super::architecture::Architecture;
use super::load::{Layer, Linear, Parameters};
use crate::cuda::transformer::HeadShape;
use crate::cuda::{Gpu, Memory, Part, Stream};
use crate::error::{Result, Status};
use crate::matmul::Weights;
use crate::memory;
use crate::runtime::Runtime;
use crate::weights::Home;

/// Where a model's forward pass runs.
pub(super) enum Placement {
    /// On the device: all of it, or the first layers.
    Device(Resident),
    /// On the CPU, for this reason.
    Host(String),
}

/// Decides, matrix by matrix as they are loaded, whether the next one goes to the device.
pub(super) struct Room<'a> {
    rt: &'a Runtime,
    /// Bytes that are to stay free.
    reserve: usize,
    closed: Cell<bool>,
}

/// What the driver takes for itself as it goes: graphs, and memory that is cut in pages.
const SLACK: usize = 64 << 20;

impl<'a> Room<'a> {
    /// For a model whose sessions are of `context` tokens. Where CUDA is demanded nothing is held back: what does not fit is an
    /// error then.
    pub fn new(rt: &'a Runtime, a: &Architecture, context: usize) -> Room<'a> {
        let fits = unfit(rt, a).is_none();
        let reserve = match rt.gpu() {
            Some(gpu) if fits && !rt.resolved().demanded => {
                state::session_bytes(gpu.device(), a, context).saturating_add(SLACK)
            }
            _ => 0,
        };
        Room {
            rt,
            reserve,
            closed: Cell::new(!fits),
        }
    }

    /// The matrix that `make` makes, on the device while there is room. Behind the first one that is not there everything stays on
    /// the host: what a pass needs is whole layers from the first one on.
    ///
    /// # Errors
    /// Those of `make`; `ERR_BACKEND`.
    pub fn place(&self, make: impl Fn(Home) -> Result<Weights>) -> Result<Weights> {
        if !self.closed.get() {
            let made = make(Home::Backend)?;
            let there = made.on_device().is_some();
            let free = match self.rt.gpu() {
                Some(gpu) if there => gpu.device().memory_free()?,
                _ => usize::MAX,
            };
            if there && free >= self.reserve {
                return Ok(made);
            }
            self.closed.set(true);
            if !there {
                return Ok(made);
            }
        }
        make(Home::Host)
    }
}

/// What a model has on the device beside its matrices.
pub(super) struct Resident {
    gpu: Arc<Gpu>,
    heads: HeadShape,
    /// The norms and biases of its layers, one behind the other.
    memory: Memory,
    /// Of the layers that it has: all, or the first.
    layers: Vec<Vectors>,
    norm: Span,
    /// Whether it has the embedding, every layer and the output.
    whole: bool,
    /// For people.
    reason: String,
}

/// A vector of floats in [`Resident::memory`].
#[derive(Clone, Copy)]
struct Span {
    offset: usize,
    bytes: usize,
}

/// The vectors of a layer; names as in [`super::load::Layer`].
struct Vectors {
    input_norm: Span,
    qkv_bias: [Option<Span>; 3],
    qk_norm: [Option<Span>; 2],
    o_bias: Option<Span>,
    mlp_norm: Span,
    /// Behind attention and behind the feed-forward network.
    post_norms: [Option<Span>; 2],
    gate_bias: Option<Span>,
    up_bias: Option<Span>,
    down_bias: Option<Span>,
}

/// Collects vectors, to be sent together.
#[derive(Default)]
struct Collector(Vec<f32>);

impl Collector {
    fn keep(&mut self, values: &[f32]) -> Span {
        // Each begins at a multiple of 16 bytes.
        self.0.resize(self.0.len().next_multiple_of(4), 0.0);
        let offset = size_of_val(self.0.as_slice());
        self.0.extend_from_slice(values);
        Span {
            offset,
            bytes: size_of_val(values),
        }
    }

    fn bias(&mut self, linear: &Linear) -> Option<Span> {
        linear.bias.as_deref().map(|bias| self.keep(bias))
    }
}

fn heads(a: &Architecture) -> HeadShape {
    HeadShape {
        heads: a.heads,
        kv_heads: a.kv_heads,
        head_dim: a.head_dim,
    }
}

/// Why a model of this architecture would run on the CPU whatever its weights are; `None`: it would not.
pub(super) fn unfit(rt: &Runtime, a: &Architecture) -> Option<String> {
    if rt.gpu().is_none() {
        return Some(format!(
            "the library runs on the CPU: {}",
            rt.resolved().reason
        ));
    }
    let shape = heads(a);
    (!shape.supported()).then(|| {
        format!(
            "the CUDA kernels take no {} heads of {} elements on {} of keys and values",
            shape.heads, shape.head_dim, shape.kv_heads
        )
    })
}

impl Placement {
    /// Where a model runs whose matrices were placed by a [`Room`]. What is of no use to the device there comes back.
    ///
    /// # Errors
    /// `ERR_MEMORY`, of the device only where CUDA is demanded; `ERR_BACKEND`.
    pub fn of(rt: &Runtime, a: &Architecture, parameters: &mut Parameters) -> Result<Placement> {
        if let Some(reason) = unfit(rt, a) {
            return Ok(Placement::Host(reason));
        }
        let gpu = rt.gpu().expect("unfit looked");
        let there = |w: &Weights| w.on_device().is_some();
        let whole = parameters.matrices().all(there);
        let layers = parameters.layers.iter();
        let complete = |l: &Layer| l.matrices().into_iter().all(there);
        let first = match whole {
            true => parameters.layers.len(),
            false => layers.take_while(|l| complete(l)).count(),
        };
        if !whole {
            for w in parameters.all_but_layers(first) {
                bring_home(rt, w)?;
            }
        }
        if first == 0 {
            let reason = match parameters.matrices().any(|w| w.bits() > 8) {
                true => "the CPU multiplies weights of 16 and 32 bits",
                false => {
                    "the device has no room, or its kernels do not take the groups of the weights"
                }
            };
            return Ok(Placement::Host(reason.to_owned()));
        }
        match Resident::new(gpu, a, parameters, first, whole) {
            Ok(resident) => Ok(Placement::Device(resident)),
            Err(e) if e.status() == Status::Memory && !rt.resolved().demanded => {
                for w in parameters.all_but_layers(0) {
                    bring_home(rt, w)?;
                }
                Ok(Placement::Host("the device has no room".to_owned()))
            }
            Err(e) => Err(e),
        }
    }

    /// `"cuda"`, `"cpu"` or `"cuda+cpu"`.
    pub fn name(&self) -> &'static str {
        match self {
            Placement::Device(resident) if !resident.whole => "cuda+cpu",
            Placement::Device(_) => "cuda",
            Placement::Host(_) => "cpu",
        }
    }

    /// Why, in a sentence.
    pub fn reason(&self) -> &str {
        match self {
            Placement::Device(resident) => &resident.reason,
            Placement::Host(reason) => reason,
        }
    }
}

/// A matrix of the device made one of the host.
fn bring_home(rt: &Runtime, weights: &mut Weights) -> Result<()> {
    if weights.on_device().is_some()
        && let Some(codes) = weights.to_codes()?
    {
        *weights = Weights::from_codes(rt, &codes.as_codes(), weights.activations())?;
    }
    Ok(())
}

impl Resident {
    /// With the first layers of a model.
    fn new(
        gpu: &Arc<Gpu>,
        a: &Architecture,
        parameters: &Parameters,
        first: usize,
        whole: bool,
    ) -> Result<Resident> {
        let mut c = Collector::default();
        let mut layers = memory::with_capacity(first, "layers")?;
        for l in &parameters.layers[..first] {
            let (q_norm, k_norm) = l.qk_norm.as_ref().map(|(q, k)| (q, k)).unzip();
            let (post_attention, post_mlp) = l.post_norms.as_ref().map(|(a, m)| (a, m)).unzip();
            layers.push(Vectors {
                input_norm: c.keep(&l.input_norm),
                qkv_bias: [c.bias(&l.q), c.bias(&l.k), c.bias(&l.v)],
                qk_norm: [q_norm, k_norm].map(|norm| norm.map(|v| c.keep(v))),
                o_bias: c.bias(&l.o),
                mlp_norm: c.keep(&l.mlp_norm),
                post_norms: [post_attention, post_mlp].map(|norm| norm.map(|v| c.keep(v))),
                gate_bias: c.bias(&l.gate),
                up_bias: c.bias(&l.up),
                down_bias: c.bias(&l.down),
            });
        }
        let norm = c.keep(&parameters.norm);
        let bytes: &[u8] = bytemuck::cast_slice(&c.0);
        let memory = Memory::new(gpu.device(), bytes.len(), "norms and biases")?;
        Stream::new(gpu.device())?.write(memory.all(), bytes)?;
        Ok(Resident {
            gpu: Arc::clone(gpu),
            heads: heads(a),
            memory,
            layers,
            norm,
            whole,
            reason: match whole {
                true => "every tensor is on the device".to_owned(),
                false => format!(
                    "the device has room for {first} of {} layers; the CPU has the others",
                    a.layers
                ),
            },
        })
    }

    fn part(&self, span: Span) -> Part<'_> {
        self.memory.part(span.offset, span.bytes)
    }
}
