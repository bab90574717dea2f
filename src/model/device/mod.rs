//! A model on CUDA devices, and its forward pass there: of the whole model, or of its first layers
//! if memory does not suffice for more.
//!
//! The pass computes the same as `decoder`, as a sequence of kernel launches
//! ([`crate::cuda::transformer`] and the products) over buffers that never leave the device. The
//! ids and the position of a block of tokens are uploaded; the most likely token is downloaded, or
//! the logits if a caller wants them.
//!
//! ```text
//! a block of tokens   control up ─► embed, angles, layers ─► [norm, logits, advance] ─► found down
//! the next token                    one graph: all of the above for n = 1            ─► found down
//! ```
//!
//! The launches for one token have the same arguments each time, because ids and positions are read
//! from device memory. They are therefore captured as a graph at the first single-token step of a
//! session and replayed from then on. The last launch stores the token it found where the first one
//! reads its id, so a greedy step uploads nothing.
//!
//! If a model does not fit, the CPU has the embedding, the remaining layers and the output; the
//! residual stream is uploaded before the layers of the device and downloaded after them. How many
//! layers fit is determined while they are loaded: as many as leave memory for a session over the
//! whole context ([`Room`]).
//!
//! With several devices, each has a contiguous range of the layers, in the order of the
//! configuration. The ranges are chosen such that the number of matrix elements on a device is
//! proportional to its free memory; equal devices get equal parts. The first device has the
//! embedding, the last one the norm and the output. An output that is tied to the embedding is on
//! the first device. A layer is never split between devices: if the next layer does not fit, it
//! goes to the next device, or after the last one to the CPU. A device may end up with no layer at
//! all.
//!
//! ```text
//! device 0   ids up ─► embed, layers ─► x down ┐
//! device 1              x up ─► layers ─► x down ┘ … ─► [norm, logits, advance] ─► found down
//! ```
//!
//! The residual stream passes through page-locked host memory; no device reads the memory of
//! another. A token passes through one device after the other, each with its own captured graph,
//! and the host sends the position to each.
//!
//! | module | responsibility |
//! |---|---|
//! | here | which models run on devices, and their vectors there |
//! | `room` | which device a matrix goes to |
//! | `state` | the state of a session on all devices, and how tokens pass through them |
//! | `stage` | the state of a session on one device: buffers, KV cache, captured graphs |
//! | `pass` | the kernel launches |

mod pass;
mod room;
mod stage;
mod state;

pub(super) use room::Room;
pub(super) use state::{State, Wanted};

use std::ops::Range;
use std::sync::Arc;

use serde_json::{Value, json};

use super::architecture::Architecture;
use super::load::{Layer, Linear, Parameters};
use crate::cuda::transformer::HeadShape;
use crate::cuda::{Device, Gpu, Memory, Part, Stream};
use crate::error::{Result, Status};
use crate::matmul::Weights;
use crate::memory;
use crate::runtime::Runtime;

/// Where a model's forward pass runs.
pub(super) enum Placement {
    /// On devices: all of it, or the first layers.
    Device(Resident),
    /// On the CPU, for the reason given.
    Host(String),
}

/// A model on devices, or its first layers.
pub(super) struct Resident {
    heads: HeadShape,
    /// The parts of the model, in the order in which a token passes through them; not empty.
    portions: Vec<Portion>,
    /// The portion with the norm and the output; `None`: the CPU has these, the embedding and the
    /// remaining layers.
    head: Option<usize>,
    /// Why it runs there, as a message.
    reason: String,
}

/// The part of a model on one device, besides its matrices.
struct Portion {
    device: Arc<Device>,
    /// The norms and biases of its layers, contiguous.
    memory: Memory,
    /// The index of its first layer.
    first: usize,
    layers: Vec<Vectors>,
    norm: Span,
}

/// A vector of floats in [`Portion::memory`].
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
    /// After attention and after the feed-forward network.
    post_norms: [Option<Span>; 2],
    gate_bias: Option<Span>,
    up_bias: Option<Span>,
    down_bias: Option<Span>,
}

/// Collects vectors that are uploaded together.
#[derive(Default)]
struct Collector(Vec<f32>);

impl Collector {
    fn keep(&mut self, values: &[f32]) -> Span {
        // Each vector is aligned to 16 bytes.
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

/// Why a model of this architecture runs on the CPU regardless of its weights; `None` if it can run
/// on a device.
pub(super) fn unfit(rt: &Runtime, a: &Architecture) -> Option<String> {
    if rt.gpus().is_empty() {
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

/// The device that holds a matrix.
fn device_of(weights: &Weights) -> Option<&Arc<Device>> {
    Some(weights.on_device()?.device())
}

/// The device that holds every matrix of a layer.
fn device_of_layer(layer: &Layer) -> Option<&Arc<Device>> {
    let [first, others @ ..] = layer.matrices();
    let device = device_of(first)?;
    let there = |w: &Weights| device_of(w).is_some_and(|d| Arc::ptr_eq(d, device));
    others.into_iter().all(there).then_some(device)
}

/// The index of a device in the library's list.
fn place_of(gpus: &[Arc<Gpu>], device: &Arc<Device>) -> usize {
    let found = gpus.iter().position(|g| Arc::ptr_eq(g.device(), device));
    found.expect("a device of the library")
}

impl Placement {
    /// Decides where a model runs whose matrices were placed by a [`Room`]. Matrices that are on a
    /// device without being of use there are moved back to the host.
    ///
    /// # Errors
    /// `ERR_MEMORY`, for device memory only if CUDA is required; `ERR_BACKEND`.
    pub fn of(rt: &Runtime, a: &Architecture, parameters: &mut Parameters) -> Result<Placement> {
        if let Some(reason) = unfit(rt, a) {
            return Ok(Placement::Host(reason));
        }
        // The leading layers of which each is on a single device.
        let layers = parameters.layers.iter().map_while(device_of_layer);
        let layers: Vec<usize> = layers.map(|d| place_of(rt.gpus(), d)).collect();
        let ends = [&parameters.embedding, parameters.output()].map(device_of);
        let ends = match ends {
            [Some(embedding), Some(output)] if layers.len() == parameters.layers.len() => {
                Some([embedding, output].map(|d| place_of(rt.gpus(), d)))
            }
            _ => None,
        };
        if ends.is_none() {
            for w in parameters.all_but_layers(layers.len()) {
                bring_home(rt, w)?;
            }
            if layers.is_empty() {
                let reason = match parameters.matrices().any(|w| w.bits() > 8) {
                    true => "the CPU multiplies weights of 16 and 32 bits",
                    false => {
                        "the device has no room, or its kernels do not take the groups of the weights"
                    }
                };
                return Ok(Placement::Host(reason.to_owned()));
            }
        }
        match Resident::new(rt.gpus(), a, parameters, &layers, ends) {
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
            Placement::Device(resident) if resident.head.is_none() => "cuda+cpu",
            Placement::Device(_) => "cuda",
            Placement::Host(_) => "cpu",
        }
    }

    /// The reason, as a sentence.
    pub fn reason(&self) -> &str {
        match self {
            Placement::Device(resident) => &resident.reason,
            Placement::Host(reason) => reason,
        }
    }

    /// The devices and how many layers each has, as `apl_model_info` shows them.
    pub fn devices(&self) -> Vec<Value> {
        let portion =
            |p: &Portion| json!({"ordinal": p.device.about().ordinal, "layers": p.layers.len()});
        match self {
            Placement::Device(resident) => resident.portions.iter().map(portion).collect(),
            Placement::Host(_) => Vec::new(),
        }
    }
}

/// Moves a matrix from a device to the host.
fn bring_home(rt: &Runtime, weights: &mut Weights) -> Result<()> {
    if weights.on_device().is_some()
        && let Some(codes) = weights.to_codes()?
    {
        *weights = Weights::from_codes(rt, &codes.as_codes(), weights.activations())?;
    }
    Ok(())
}

impl Resident {
    /// For the first layers of a model, each on the device given by `layers`; `ends` are the
    /// devices of the embedding and of the output.
    fn new(
        gpus: &[Arc<Gpu>],
        a: &Architecture,
        parameters: &Parameters,
        layers: &[usize],
        ends: Option<[usize; 2]>,
    ) -> Result<Resident> {
        let mut portions = Vec::new();
        let mut head = None;
        for (i, gpu) in gpus.iter().enumerate() {
            let first = layers.partition_point(|&d| d < i);
            let range = first..first + layers[first..].partition_point(|&d| d == i);
            let has_an_end = ends.is_some_and(|ends| ends.contains(&i));
            if range.is_empty() && !has_an_end {
                continue;
            }
            if ends.is_some_and(|[_, output]| output == i) {
                head = Some(portions.len());
            }
            portions.push(Portion::new(gpu.device(), parameters, range)?);
        }
        let (some, all) = (layers.len(), a.layers);
        let reason = match (head, portions.len()) {
            (Some(_), 1) => "every tensor is on the device".to_owned(),
            (Some(_), n) => format!("every tensor is on one of {n} devices"),
            (None, 1) => {
                format!("the device has room for {some} of {all} layers; the CPU has the others")
            }
            (None, _) => {
                format!("the devices have room for {some} of {all} layers; the CPU has the others")
            }
        };
        Ok(Resident {
            heads: heads(a),
            portions,
            head,
            reason,
        })
    }
}

impl Portion {
    /// For this range of a model's layers.
    fn new(device: &Arc<Device>, parameters: &Parameters, range: Range<usize>) -> Result<Portion> {
        let mut c = Collector::default();
        let mut layers = memory::with_capacity(range.len(), "layers")?;
        for l in &parameters.layers[range.clone()] {
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
        let memory = Memory::new(device, bytes.len(), "norms and biases")?;
        Stream::new(device)?.write(memory.all(), bytes)?;
        Ok(Portion {
            device: Arc::clone(device),
            memory,
            first: range.start,
            layers,
            norm,
        })
    }

    fn part(&self, span: Span) -> Part<'_> {
        self.memory.part(span.offset, span.bytes)
    }
}
