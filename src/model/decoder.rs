//! The forward pass: tokens in, logits out. For the equations of a layer see
//! [`super::architecture`].

use std::sync::{Mutex, PoisonError};

use super::architecture::{Activation, Architecture, MOST_HEAD_DIM};
use super::attention::{Attention, Scratch};
use super::cache::{self, Cache};
use super::cancel::Cancellation;
use super::load::{Layer, Linear, Parameters};
use super::rope::Rotary;
use crate::cpu::vector::{Cached, VectorKernels};
use crate::error::Result;
use crate::matmul::{Floats, Weights, Workspace};
use crate::memory;
use crate::runtime::{Executor, Runtime, Shared};

/// The number of tokens that pass through the layers together. At this size products are most
/// efficient, and the buffers between them stay in the L2 cache of a large core.
pub(super) const BLOCK: usize = 256;

/// Observes the inputs of products, for calibration.
pub trait Observer {
    /// Called before `x` `(n, cols)` is multiplied by the matrix with that canonical name.
    fn input(&mut self, weight: &str, x: &[f32], n: usize);
}

/// Which logits of a sequence to compute.
pub enum Logits<'a> {
    /// None.
    None,
    /// Of the last token: `(vocabulary)`.
    Last(&'a mut [f32]),
    /// Of every token: `(n, vocabulary)`.
    All(&'a mut [f32]),
}

/// The state of a forward pass besides the weights: the KV cache, and buffers for a block of
/// tokens.
pub(super) struct State {
    pub cache: Cache,
    rotary: Rotary,
    attention: Scratch,
    workspace: Workspace,
    /// The residual stream `(n, hidden)`.
    x: Floats,
    /// The norm of `x`, and the outputs of products that are added to `x`: `(n, hidden)`.
    a: Floats,
    b: Floats,
    /// `(n, heads, head_dim)`
    q: Floats,
    /// `(n, kv_heads, head_dim)`
    k: Floats,
    v: Floats,
    /// `(n, heads, head_dim)`
    mixed: Floats,
    /// `(n, intermediate)`
    gate: Floats,
    up: Floats,
    /// The codes of a row of the embedding: `(hidden)`.
    codes: Vec<u8>,
}

impl State {
    /// For sequences of up to `context` tokens on up to `threads` threads.
    pub fn new(a: &Architecture, cache: Cache, context: usize, threads: usize) -> Result<State> {
        let n = BLOCK.min(context);
        let buffer = |width: usize| {
            let len = n.saturating_mul(width);
            Floats::zeros(len, "the buffers of a session")
        };
        let (query, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        Ok(State {
            cache,
            rotary: Rotary::new(&a.rope, a.head_dim, n)?,
            attention: Scratch::new(a, context, threads)?,
            workspace: Workspace::default(),
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

/// A forward pass in progress.
pub(super) struct Pass<'a> {
    pub rt: &'a Runtime,
    pub architecture: &'a Architecture,
    pub parameters: &'a Parameters,
    pub team: &'a dyn Shared,
    pub cancellation: &'a Cancellation,
    pub observer: Option<&'a mut dyn Observer>,
    pub lower: Option<Lower<'a>>,
}

/// The first layers, if they are computed elsewhere.
pub(super) struct Lower<'a> {
    /// The number of these layers.
    pub layers: usize,
    /// Applies them to the residual stream `(n, hidden)` of the tokens from a position on.
    pub run: &'a mut dyn FnMut(usize, &mut [f32]) -> Result<()>,
}

impl Pass<'_> {
    /// Feeds `ids` from position `first` on; for `length` see [`super::engine::Feed::length`].
    ///
    /// # Errors
    /// `ERR_STATE` if it was cancelled, `ERR_RANGE` if activations are int8 and one is not finite,
    /// `ERR_MEMORY`. The cache then still holds what it held before position `first`, except for
    /// positions that a ring buffer has overwritten.
    pub fn run(
        &mut self,
        s: &mut State,
        (first, length): (usize, usize),
        ids: &[u32],
        mut logits: Logits<'_>,
    ) -> Result<()> {
        let vocabulary = self.architecture.vocabulary;
        for (i, block) in ids.chunks(BLOCK).enumerate() {
            let at = i * BLOCK;
            self.block(s, first + at, length, block)?;
            let n = block.len();
            self.cancellation.check()?;
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

    /// Runs the layers for one block of tokens; the result is in `s.x`.
    fn block(&mut self, s: &mut State, first: usize, length: usize, ids: &[u32]) -> Result<()> {
        let a = self.architecture;
        let n = ids.len();
        for (x, &id) in s.x.chunks_exact_mut(a.hidden).zip(ids) {
            self.parameters
                .embedding
                .row(id as usize, &mut s.codes, x)?;
            if a.embedding_scale != 1.0 {
                x.iter_mut().for_each(|x| *x *= a.embedding_scale);
            }
        }
        let mut below = 0;
        if let Some(lower) = &mut self.lower {
            self.cancellation.check()?;
            (lower.run)(first, &mut s.x[..n * a.hidden])?;
            below = lower.layers;
        }
        s.rotary.prepare(first, n, length);
        for (i, layer) in self.parameters.layers.iter().enumerate().skip(below) {
            self.cancellation.check()?;
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
        self.products(
            &mut s.workspace,
            &s.a[..hidden],
            n,
            &mut [
                (&l.q, &mut s.q[..query]),
                (&l.k, &mut s.k[..kv]),
                (&l.v, &mut s.v[..kv]),
            ],
        )?;
        let (q_norm, k_norm) = l
            .qk_norm
            .as_ref()
            .map_or((None, None), |(q, k)| (Some(q), Some(k)));
        self.rotate(&s.rotary, &mut s.q[..query], a.heads, q_norm, a.query_scale);
        self.rotate(&s.rotary, &mut s.k[..kv], a.kv_heads, k_norm, 1.0);
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
                &mut s.attention,
                &mut s.mixed,
            ),
            Cache::F32(layers) => self.attend(
                &mut layers[index],
                &task,
                &s.q,
                &s.k,
                &s.v,
                &mut s.attention,
                &mut s.mixed,
            ),
        }
        let (x, y) = (&s.mixed[..query], &mut s.a[..hidden]);
        self.products(&mut s.workspace, x, n, &mut [(&l.o, y)])?;
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
        scratch: &mut Scratch,
        mixed: &mut [f32],
    ) {
        let a = self.architecture;
        layer.keep(self.kernels(), block.first, &k[..block.kv], &v[..block.kv]);
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
        self.products(
            &mut s.workspace,
            &s.b[..hidden],
            n,
            &mut [(&l.gate, &mut s.gate[..wide]), (&l.up, &mut s.up[..wide])],
        )?;
        let (kernels, up) = (*self.kernels(), &s.up[..wide]);
        let gate = match a.activation {
            Activation::Silu => VectorKernels::silu_times,
            Activation::GeluTanh => VectorKernels::gelu_times,
        };
        self.each(&mut s.gate[..wide], a.intermediate, &|t, row| {
            gate(&kernels, row, &up[t * a.intermediate..][..a.intermediate]);
        });
        let (x, y) = (&s.gate[..wide], &mut s.a[..hidden]);
        self.products(&mut s.workspace, x, n, &mut [(&l.down, y)])?;
        self.add(s, l.post_norms.as_ref().map(|(_, mlp)| mlp), hidden);
        Ok(())
    }

    /// `x = x + a`, or `x = x + norm(a)`, for the first `len` elements.
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

    /// Calls `job(t, row)` for each row of `data` `(n, width)`. Many rows are shared between
    /// threads; few are processed by the calling thread.
    fn each(&self, data: &mut [f32], width: usize, job: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        let n = data.len() / width;
        let workers = self.team.threads();
        if n < SHARED_ROWS || workers == 1 {
            data.chunks_exact_mut(width)
                .enumerate()
                .for_each(|(t, row)| job(t, row));
            return;
        }
        // Four tasks per worker compensate for time that the system takes from one of them.
        let run = n.div_ceil(4 * workers);
        let runs: Vec<_> = data.chunks_mut(run * width).map(Mutex::new).collect();
        self.team.run(runs.len(), &|i| {
            let mut rows = runs[i].lock().unwrap_or_else(PoisonError::into_inner);
            for (t, row) in rows.chunks_exact_mut(width).enumerate() {
                job(i * run + t, row);
            }
        });
    }

    /// Norm of each head, rotary embedding and scale, in place: `heads` `(n, count, head_dim)`.
    fn rotate(
        &self,
        rotary: &Rotary,
        heads: &mut [f32],
        count: usize,
        norm: Option<&Vec<f32>>,
        scale: f32,
    ) {
        let a = self.architecture;
        let kernels = *self.kernels();
        self.each(heads, count * a.head_dim, &|t, heads| {
            for head in heads.chunks_exact_mut(a.head_dim) {
                if let Some(weights) = norm {
                    let mut normed = [0.0; MOST_HEAD_DIM];
                    let normed = &mut normed[..a.head_dim];
                    kernels.rms_norm(head, weights, a.norm_eps, normed);
                    head.copy_from_slice(normed);
                }
                rotary.rotate(t, head);
                if scale != 1.0 {
                    head.iter_mut().for_each(|v| *v *= scale);
                }
            }
        });
    }

    /// The norm of each row of the residual stream.
    fn norms(&self, x: &[f32], weights: &[f32], out: &mut [f32]) {
        let hidden = self.architecture.hidden;
        let (kernels, eps) = (*self.kernels(), self.architecture.norm_eps);
        self.each(out, hidden, &|t, out| {
            kernels.rms_norm(&x[t * hidden..][..hidden], weights, eps, out);
        });
    }

    /// Computes the logits of `n` tokens of the block from `from` on: `out` `(n, vocabulary)`.
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
        let executor = Executor::Team(self.team);
        let x = &s.b[..len];
        let mut output = [(self.parameters.output(), &mut *out)];
        Weights::multiply_all(self.rt, executor, &mut s.workspace, x, n, &mut output)?;
        if let Some(cap) = a.final_softcap {
            self.kernels().softcap(out, cap);
        }
        Ok(())
    }

    /// Multiplies one to three matrices by the same `x`, each into its own `y`.
    fn products<const N: usize>(
        &mut self,
        workspace: &mut Workspace,
        x: &[f32],
        n: usize,
        products: &mut [(&Linear, &mut [f32]); N],
    ) -> Result<()> {
        if let Some(observer) = &mut self.observer {
            for (linear, _) in &*products {
                observer.input(&linear.name, x, n);
            }
        }
        let mut pairs = products
            .each_mut()
            .map(|(linear, y)| (&linear.weights, &mut **y));
        Weights::multiply_all(
            self.rt,
            Executor::Team(self.team),
            workspace,
            x,
            n,
            &mut pairs,
        )?;
        for (linear, y) in products {
            if let Some(bias) = &linear.bias {
                for y in y.chunks_exact_mut(bias.len()) {
                    for (y, b) in y.iter_mut().zip(bias) {
                        *y += b;
                    }
                }
            }
        }
        Ok(())
    }

    fn kernels(&self) -> &VectorKernels {
        &self.rt.kernels().vector
    }
}

/// The number of tokens from which the work between products is shared. Below it, waking the
/// workers and waiting for them costs as much as they save.
const SHARED_ROWS: usize = 16;

/// A block of tokens in one layer.
struct Block {
    index: usize,
    first: usize,
    /// The numbers of elements of queries and of keys.
    query: usize,
    kv: usize,
}
