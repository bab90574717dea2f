//! The forward pass: tokens in, logits out. A layer reads as in [`super::architecture`].

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::architecture::{Activation, Architecture};
use super::attention::{Attention, Scratch};
use super::cache::{self, Cache};
use super::load::{Layer, Linear, Parameters};
use super::rope::Rotary;
use crate::cpu::vector::{Cached, VectorKernels};
use crate::error::{Error, Result};
use crate::memory;
use crate::runtime::{Hands, Runtime, Shared};

/// Tokens that pass through the layers together. Products with many vectors are then at their best, and what lies between
/// them stays in the second-level cache of a big core.
pub(super) const BLOCK: usize = 256;

/// Sees the inputs of products, for calibration.
pub trait Observer {
    /// `x` `(n, cols)` is about to be multiplied with the matrix of that canonical name.
    fn input(&mut self, weight: &str, x: &[f32], n: usize);
}

/// The logits that are wanted of a sequence.
pub enum Logits<'a> {
    /// None.
    None,
    /// Of the last token: `(vocabulary)`.
    Last(&'a mut [f32]),
    /// Of every token: `(n, vocabulary)`.
    All(&'a mut [f32]),
}

/// What a forward pass needs beside the weights: the cache, and buffers for a block of tokens.
pub(super) struct State {
    pub cache: Cache,
    rotary: Rotary,
    attention: Vec<Mutex<Scratch>>,
    /// The residual stream `(n, hidden)`.
    x: Vec<f32>,
    /// Its norm, and the outputs of products that are added to it `(n, hidden)`.
    a: Vec<f32>,
    b: Vec<f32>,
    /// `(n, heads, head_dim)`
    q: Vec<f32>,
    /// `(n, kv_heads, head_dim)`
    k: Vec<f32>,
    v: Vec<f32>,
    /// `(n, heads, head_dim)`
    mixed: Vec<f32>,
    /// `(n, intermediate)`
    gate: Vec<f32>,
    up: Vec<f32>,
    /// A row of codes of the embedding `(hidden)`.
    codes: Vec<u8>,
}

impl State {
    /// For sequences of up to `context` tokens on up to `threads` threads.
    pub fn new(a: &Architecture, cache: Cache, context: usize, threads: usize) -> Result<State> {
        let n = BLOCK.min(context);
        let buffer = |width: usize| {
            let len = n.saturating_mul(width);
            memory::filled(len, 0.0f32, "the buffers of a session")
        };
        let (query, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let mut attention = Vec::new();
        for _ in 0..threads {
            attention.push(Mutex::new(Scratch::new(a, context, n)?));
        }
        Ok(State {
            cache,
            rotary: Rotary::new(&a.rope, a.head_dim, n)?,
            attention,
            x: buffer(a.hidden)?,
            a: buffer(a.hidden)?,
            b: buffer(a.hidden)?,
            q: buffer(query)?,
            k: buffer(kv)?,
            v: buffer(kv)?,
            mixed: buffer(query)?,
            gate: buffer(a.intermediate)?,
            up: buffer(a.intermediate)?,
            codes: memory::filled(a.hidden, 0, "a row of codes")?,
        })
    }
}

/// A forward pass under way.
pub(super) struct Pass<'a> {
    pub rt: &'a Runtime,
    pub architecture: &'a Architecture,
    pub parameters: &'a Parameters,
    pub team: &'a dyn Shared,
    pub cancelled: &'a AtomicBool,
    pub observer: Option<&'a mut dyn Observer>,
}

impl Pass<'_> {
    /// Feeds `ids` from position `first` on.
    ///
    /// # Errors
    /// `ERR_STATE` if it was cancelled, `ERR_RANGE` if activations are int8 and one is not finite, `ERR_MEMORY`; the cache then
    /// holds what it held before position `first`, as far as it is a window's.
    pub fn run(
        &mut self,
        s: &mut State,
        first: usize,
        ids: &[u32],
        mut logits: Logits<'_>,
    ) -> Result<()> {
        let vocabulary = self.architecture.vocabulary;
        for (i, block) in ids.chunks(BLOCK).enumerate() {
            let at = i * BLOCK;
            self.block(s, first + at, block)?;
            let n = block.len();
            match &mut logits {
                Logits::All(out) => {
                    let out = &mut out[at * vocabulary..(at + n) * vocabulary];
                    self.logits(s, 0, n, out)?;
                }
                Logits::Last(out) if at + n == ids.len() => self.logits(s, n - 1, 1, out)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The layers for one block of tokens; the result is in `s.x`.
    fn block(&mut self, s: &mut State, first: usize, ids: &[u32]) -> Result<()> {
        let a = self.architecture;
        let n = ids.len();
        for (x, &id) in s.x.chunks_exact_mut(a.hidden).zip(ids) {
            self.parameters.embedding.row(id as usize, &mut s.codes, x);
            if a.embedding_scale != 1.0 {
                x.iter_mut().for_each(|x| *x *= a.embedding_scale);
            }
        }
        s.rotary.prepare(first, n);
        for (i, layer) in self.parameters.layers.iter().enumerate() {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(Error::state("the call was cancelled"));
            }
            self.attention(s, i, layer, first, n)?;
            self.feed_forward(s, layer, n)?;
        }
        Ok(())
    }

    /// `x = x + [norm] W_o attention(norm(x))`
    fn attention(
        &mut self,
        s: &mut State,
        index: usize,
        l: &Layer,
        first: usize,
        n: usize,
    ) -> Result<()> {
        let a = self.architecture;
        let (hidden, query, kv) = (
            n * a.hidden,
            n * a.heads * a.head_dim,
            n * a.kv_heads * a.head_dim,
        );
        self.norms(&s.x[..hidden], &l.input_norm, &mut s.a[..hidden]);
        self.product(&l.q, &s.a[..hidden], &mut s.q[..query], n)?;
        self.product(&l.k, &s.a[..hidden], &mut s.k[..kv], n)?;
        self.product(&l.v, &s.a[..hidden], &mut s.v[..kv], n)?;
        let (q_norm, k_norm) = l
            .qk_norm
            .as_ref()
            .map_or((None, None), |(q, k)| (Some(q), Some(k)));
        self.turn(&s.rotary, &mut s.q[..query], a.heads, q_norm, a.query_scale);
        self.turn(&s.rotary, &mut s.k[..kv], a.kv_heads, k_norm, 1.0);
        let task = Block {
            index,
            first,
            query,
            kv,
        };
        match &mut s.cache {
            Cache::F16(layers) => self.attend(
                &mut layers[index],
                &task,
                &s.q,
                &s.k,
                &s.v,
                &s.attention,
                &mut s.mixed,
            ),
            Cache::F32(layers) => self.attend(
                &mut layers[index],
                &task,
                &s.q,
                &s.k,
                &s.v,
                &s.attention,
                &mut s.mixed,
            ),
        }
        self.product(&l.o, &s.mixed[..query], &mut s.a[..hidden], n)?;
        self.add(
            s,
            l.post_norms.as_ref().map(|(attention, _)| attention),
            hidden,
        );
        Ok(())
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "fields of one state, borrowed apart"
    )]
    fn attend<T: Cached>(
        &self,
        layer: &mut cache::Layer<T>,
        block: &Block,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        scratch: &[Mutex<Scratch>],
        mixed: &mut [f32],
    ) {
        let a = self.architecture;
        layer.keep(
            block.first,
            &k[..block.kv],
            &v[..block.kv],
            a.kv_heads,
            a.head_dim,
        );
        Attention {
            kernels: self.kernels(),
            architecture: a,
            layer,
            window: a.windows[block.index],
            first: block.first,
            queries: &q[..block.query],
        }
        .run(self.team, scratch, &mut mixed[..block.query]);
    }

    /// `x = x + [norm] W_down (act(W_gate b) * W_up b)` with `b = norm(x)`
    fn feed_forward(&mut self, s: &mut State, l: &Layer, n: usize) -> Result<()> {
        let a = self.architecture;
        let (hidden, wide) = (n * a.hidden, n * a.intermediate);
        self.norms(&s.x[..hidden], &l.mlp_norm, &mut s.b[..hidden]);
        self.product(&l.gate, &s.b[..hidden], &mut s.gate[..wide], n)?;
        self.product(&l.up, &s.b[..hidden], &mut s.up[..wide], n)?;
        match a.activation {
            Activation::Silu => self
                .kernels()
                .silu_times(&mut s.gate[..wide], &s.up[..wide]),
            Activation::GeluTanh => self
                .kernels()
                .gelu_times(&mut s.gate[..wide], &s.up[..wide]),
        }
        self.product(&l.down, &s.gate[..wide], &mut s.a[..hidden], n)?;
        self.add(s, l.post_norms.as_ref().map(|(_, mlp)| mlp), hidden);
        Ok(())
    }

    /// `x = x + a`, or `x + norm(a)`; the first `len` elements.
    fn add(&self, s: &mut State, norm: Option<&Vec<f32>>, len: usize) {
        let mut from = &s.a;
        if let Some(weights) = norm {
            self.norms(&s.a[..len], weights, &mut s.b[..len]);
            from = &s.b;
        }
        for (x, a) in s.x[..len].iter_mut().zip(&from[..len]) {
            *x += a;
        }
    }

    /// Norm of each head, rotary embedding, scale: `heads` `(n, count, head_dim)`.
    fn turn(
        &self,
        rotary: &Rotary,
        heads: &mut [f32],
        count: usize,
        norm: Option<&Vec<f32>>,
        scale: f32,
    ) {
        let a = self.architecture;
        let mut normed = [0.0; MOST_HEAD_DIM];
        for (i, head) in heads.chunks_exact_mut(a.head_dim).enumerate() {
            if let Some(weights) = norm {
                let normed = &mut normed[..a.head_dim];
                self.kernels().rms_norm(head, weights, a.norm_eps, normed);
                head.copy_from_slice(normed);
            }
            rotary.turn(i / count, head);
            if scale != 1.0 {
                head.iter_mut().for_each(|v| *v *= scale);
            }
        }
    }

    /// The norm of each vector of the residual stream.
    fn norms(&self, x: &[f32], weights: &[f32], out: &mut [f32]) {
        let hidden = self.architecture.hidden;
        for (x, out) in x.chunks_exact(hidden).zip(out.chunks_exact_mut(hidden)) {
            self.kernels()
                .rms_norm(x, weights, self.architecture.norm_eps, out);
        }
    }

    /// The logits of `n` tokens of the block from `from` on: `out` `(n, vocabulary)`.
    fn logits(&mut self, s: &mut State, from: usize, n: usize, out: &mut [f32]) -> Result<()> {
        let a = self.architecture;
        let (from, len) = (from * a.hidden, n * a.hidden);
        self.norms(
            &s.x[from..from + len],
            &self.parameters.norm,
            &mut s.b[..len],
        );
        let name = if a.tied {
            "model.embed_tokens.weight"
        } else {
            "lm_head.weight"
        };
        if let Some(observer) = &mut self.observer {
            observer.input(name, &s.b[..len], n);
        }
        let hands = Hands::Team(self.team);
        self.parameters
            .output()
            .multiply_by(self.rt, hands, &s.b[..len], out, n)?;
        if let Some(cap) = a.final_softcap {
            self.kernels().softcap(out, cap);
        }
        Ok(())
    }

    fn product(&mut self, linear: &Linear, x: &[f32], y: &mut [f32], n: usize) -> Result<()> {
        if let Some(observer) = &mut self.observer {
            observer.input(&linear.name, x, n);
        }
        linear
            .weights
            .multiply_by(self.rt, Hands::Team(self.team), x, y, n)?;
        if let Some(bias) = &linear.bias {
            for y in y.chunks_exact_mut(bias.len()) {
                for (y, b) in y.iter_mut().zip(bias) {
                    *y += b;
                }
            }
        }
        Ok(())
    }

    fn kernels(&self) -> &VectorKernels {
        &self.rt.kernels().vector
    }
}

/// A block of tokens in a layer.
struct Block {
    index: usize,
    first: usize,
    /// Elements of queries, and of keys.
    query: usize,
    kv: usize,
}

/// The widest head there is room for; models have 64 to 256.
pub const MOST_HEAD_DIM: usize = 1024;
