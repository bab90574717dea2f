//! A model whose every tensor is on a CUDA device, and its forward pass there.
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
//! | module | one reason to exist |
//! |---|---|
//! | here | which models live on the device, and their vectors there |
//! | `state` | what a session has there: buffers, cache, the captured step |
//! | `pass` | the launches |

mod pass;
mod state;

pub(super) use state::{State, Wanted};

use std::sync::Arc;

use super::architecture::Architecture;
use super::load::{Linear, Parameters};
use crate::cuda::transformer::HeadShape;
use crate::cuda::{Gpu, Memory, Part, Stream};
use crate::error::{Result, Status};
use crate::memory;
use crate::runtime::Runtime;

/// Where a model's forward pass runs.
pub(super) enum Placement {
    /// On the device.
    Device(Resident),
    /// On the CPU, for this reason.
    Host(String),
}

/// What a model has on the device beside its matrices.
pub(super) struct Resident {
    gpu: Arc<Gpu>,
    heads: HeadShape,
    /// The norms and biases of all layers, one behind the other.
    memory: Memory,
    layers: Vec<Vectors>,
    norm: Span,
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
    /// Where a model runs whose matrices were placed where the backend wants them.
    ///
    /// # Errors
    /// `ERR_MEMORY` where CUDA is demanded; `ERR_BACKEND`.
    pub fn of(rt: &Runtime, a: &Architecture, parameters: &Parameters) -> Result<Placement> {
        if let Some(reason) = unfit(rt, a) {
            return Ok(Placement::Host(reason));
        }
        let gpu = rt.gpu().expect("unfit looked");
        let all = parameters.matrices().count();
        let there = parameters.matrices().filter(|w| w.on_device().is_some());
        let there = there.count();
        if parameters.matrices().any(|w| w.bits() > 8) {
            return Ok(Placement::Host(
                "the CPU multiplies weights of 16 and 32 bits".to_owned(),
            ));
        }
        if there < all {
            return Ok(Placement::Host(format!(
                "only {there} of {all} matrices are on the device: it has no room for the others, or its kernels do not take their shape"
            )));
        }
        match Resident::new(gpu, a, parameters) {
            Ok(resident) => Ok(Placement::Device(resident)),
            Err(e) if e.status() == Status::Memory && !rt.resolved().demanded => Ok(
                Placement::Host("the device has no room beside the matrices".to_owned()),
            ),
            Err(e) => Err(e),
        }
    }

    /// `"cuda"` or `"cpu"`.
    pub fn name(&self) -> &'static str {
        match self {
            Placement::Device(_) => "cuda",
            Placement::Host(_) => "cpu",
        }
    }

    /// Why, in a sentence.
    pub fn reason(&self) -> &str {
        match self {
            Placement::Device(_) => "every tensor is on the device",
            Placement::Host(reason) => reason,
        }
    }
}

impl Resident {
    fn new(gpu: &Arc<Gpu>, a: &Architecture, parameters: &Parameters) -> Result<Resident> {
        let mut c = Collector::default();
        let mut layers = memory::with_capacity(parameters.layers.len(), "layers")?;
        for l in &parameters.layers {
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
        })
    }

    fn part(&self, span: Span) -> Part<'_> {
        self.memory.part(span.offset, span.bytes)
    }
}
