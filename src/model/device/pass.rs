//! The launches of a forward pass. A layer reads as in [`crate::model::architecture`].

use std::sync::atomic::{AtomicBool, Ordering};

use super::stage::{IN_FLIGHT, Kept};
use super::{Span, Vectors};
use crate::cuda::transformer::{
    Added, Gate, Heads, Next, add_norm, advance, angles, attend, embed, gate_up, place_heads,
    softcap,
};
use crate::cuda::{Columns, Mode, Part, Prepared, Stream, multiply, prepare};
use crate::error::{Error, Result};
use crate::matmul::Weights;
use crate::model::architecture::{Activation, Pairing};
use crate::model::load::Layer;

/// One token through what a device has: from its id, where that is the first one, to the token that follows, where it has the output
/// of what passes through it last.
pub(super) fn step(stream: &Stream, k: &Kept) -> Result<()> {
    let pass = Pass {
        stream,
        k,
        n: 1,
        cancelled: None,
    };
    if k.begins {
        pass.embed()?;
    }
    pass.layers()?;
    match k.ends {
        true => pass.last(),
        false => Ok(()),
    }
}

/// One token from the residual stream to the token that follows.
pub(super) fn last_step(stream: &Stream, k: &Kept) -> Result<()> {
    let pass = Pass {
        stream,
        k,
        n: 1,
        cancelled: None,
    };
    pass.last()
}

/// The launches for the `n` tokens of a block.
pub(super) struct Pass<'a> {
    pub stream: &'a Stream,
    pub k: &'a Kept,
    pub n: usize,
    /// Looked at between layers; `None` for what is captured, where nothing may wait.
    pub cancelled: Option<&'a AtomicBool>,
}

impl<'a> Pass<'a> {
    /// From the ids in the control block to the residual stream.
    pub fn embed(&self) -> Result<()> {
        let (k, a, p) = (self.k, self.k.architecture(), self.k.plan());
        let embedding = on_device(&k.parameters().embedding);
        let (x, ids) = (k.part(&p.x), k.part(&p.ids));
        embed(self.stream, embedding, a.embedding_scale, ids, self.n, x)
    }

    /// The residual stream through the layers of the device.
    pub fn layers(&self) -> Result<()> {
        let (k, p) = (self.k, self.k.plan());
        let (frequencies, position) = (k.part(&p.frequencies), k.part(&p.position));
        angles(
            self.stream,
            frequencies,
            k.amplitude,
            position,
            self.n,
            k.part(&p.angles),
        )?;
        let vectors = &k.portion().layers;
        let layers = &k.parameters().layers[k.portion().first..];
        if let Some(first) = vectors.first() {
            self.add(None, Some(first.input_norm))?;
        }
        for (i, (layer, v)) in layers.iter().zip(vectors).enumerate() {
            self.between_layers(i)?;
            self.attention(i, layer, v)?;
            let y = self.added(v.o_bias, v.post_norms[0]);
            self.add(Some(y), Some(v.mlp_norm))?;
            self.feed_forward(layer, v)?;
            let y = self.added(v.down_bias, v.post_norms[1]);
            self.add(Some(y), vectors.get(i + 1).map(|next| next.input_norm))?;
        }
        Ok(())
    }

    /// Ends the pass before layer `i` if the call was cancelled, having waited until no more than [`IN_FLIGHT`] layers are to be done:
    /// what is enqueued can't be taken back. The device has work all the while.
    fn between_layers(&self, i: usize) -> Result<()> {
        let Some(cancelled) = self.cancelled else {
            return Ok(());
        };
        let mark = &self.k.marks[i % IN_FLIGHT];
        if i >= IN_FLIGHT {
            mark.wait()?;
        }
        if cancelled.load(Ordering::Relaxed) {
            return Err(Error::state("the call was cancelled"));
        }
        self.stream.mark(mark)
    }

    /// From the norm in `a` to what is added, in `y`; `index`: of the layer, among those of the device.
    fn attention(&self, index: usize, layer: &Layer, v: &Vectors) -> Result<()> {
        let (k, a, p) = (self.k, self.k.architecture(), self.k.plan());
        let (q, keys, values) = (k.part(&p.q), k.part(&p.k), k.part(&p.v));
        self.products(
            k.part(&p.a),
            self.n,
            &[
                (&layer.q.weights, q),
                (&layer.k.weights, keys),
                (&layer.v.weights, values),
            ],
        )?;
        let vector = |span: Option<Span>| span.map(|span| k.portion().part(span));
        let (shape, cache) = (k.heads(), k.cache(index));
        let position = k.part(&p.position);
        let heads = Heads {
            q,
            k: keys,
            v: values,
            biases: v.qkv_bias.map(vector),
            norms: v.qk_norm.map(vector),
            eps: a.norm_eps,
            angles: k.part(&p.angles),
            neighbours: a.rope.pairing == Pairing::Neighbours,
            query_scale: a.query_scale,
            position,
            out: k.part(&p.placed),
        };
        place_heads(self.stream, shape, self.n, &heads, &cache)?;
        let mixed = k.part(&p.mixed);
        attend(
            self.stream,
            shape,
            self.n,
            k.part(&p.placed),
            &cache,
            position,
            a.windows[k.portion().first + index],
            a.attention_softcap,
            &k.splits(self.n),
            mixed,
        )?;
        self.products(mixed, self.n, &[(&layer.o.weights, k.part(&p.y))])
    }

    /// As [`Pass::attention`].
    fn feed_forward(&self, layer: &Layer, v: &Vectors) -> Result<()> {
        let (k, a, p) = (self.k, self.k.architecture(), self.k.plan());
        let (gate, up) = (k.part(&p.gate), k.part(&p.up));
        let products = [(&layer.gate.weights, gate), (&layer.up.weights, up)];
        self.products(k.part(&p.a), self.n, &products)?;
        let vector = |span: Option<Span>| span.map(|span| k.portion().part(span));
        let act = match a.activation {
            Activation::Silu => Gate::Silu,
            Activation::GeluTanh => Gate::Gelu,
        };
        gate_up(
            self.stream,
            act,
            (self.n, a.intermediate),
            (gate, vector(v.gate_bias)),
            (up, vector(v.up_bias)),
        )?;
        self.products(gate, self.n, &[(&layer.down.weights, k.part(&p.y))])
    }

    /// What a sub-layer has left in `y`.
    fn added(&self, bias: Option<Span>, norm: Option<Span>) -> Added<'a> {
        let vector = |span: Option<Span>| span.map(|span| self.k.portion().part(span));
        Added {
            y: self.k.part(&self.k.plan().y),
            bias: vector(bias),
            norm: vector(norm),
        }
    }

    /// `x = x + added`, and its norm in `a`.
    fn add(&self, added: Option<Added<'_>>, norm: Option<Span>) -> Result<()> {
        let (k, a, p) = (self.k, self.k.architecture(), self.k.plan());
        let norm = norm.map(|span| (k.portion().part(span), k.part(&p.a)));
        let x = k.part(&p.x);
        add_norm(self.stream, (self.n, a.hidden), a.norm_eps, x, added, norm)
    }

    /// The logits of `count` tokens of the block from `first` on: `out` float `(count, vocabulary)`.
    pub fn logits(&self, first: usize, count: usize, out: Part<'_>) -> Result<()> {
        let (k, a, p) = (self.k, self.k.architecture(), self.k.plan());
        let row = a.hidden * 4;
        let x = k.part(&p.x).part(first * row, count * row);
        // Into the beginning of a buffer: a row need not begin where products can read it.
        let normed = k.part(&p.a);
        let norm = Some((k.portion().part(k.portion().norm), normed));
        add_norm(self.stream, (count, a.hidden), a.norm_eps, x, None, norm)?;
        self.products(normed, count, &[(k.parameters().output(), out)])?;
        match a.final_softcap {
            Some(cap) => softcap(self.stream, cap, out, count * a.vocabulary),
            None => Ok(()),
        }
    }

    /// The logits of the last token, and the greatest of them as the next one.
    pub fn last(&self) -> Result<()> {
        let (k, a, p) = (self.k, self.k.architecture(), self.k.plan());
        let logits = k.part(&p.logits);
        self.logits(self.n - 1, 1, logits)?;
        let next = Next {
            token: k.part(&p.token),
            id: k.part(&p.ids),
            position: k.part(&p.position),
        };
        advance(self.stream, logits, a.vocabulary, k.part(&p.best), next)
    }

    /// Products of matrices with the same `x` `(n, cols)`, each with its `y` `(n, rows)`. What of the vectors several matrices
    /// can share is made once.
    fn products(&self, x: Part<'a>, n: usize, products: &[(&Weights, Part<'_>)]) -> Result<()> {
        let p = self.k.plan();
        let (scratch, bad) = (self.k.part(&p.scratch), self.k.part(&p.bad));
        let mut ready: Option<((Mode, Columns), Prepared<'_>)> = None;
        for (weights, y) in products {
            let (w, mode) = (on_device(weights), Mode::from(weights.activations()));
            let form = (mode, w.columns());
            let prepared = match &ready {
                Some((made, prepared)) if *made == form => *prepared,
                _ => {
                    let (mode, columns) = form;
                    prepare(self.stream, mode, columns, x, n, scratch, bad)?
                }
            };
            ready = Some((form, prepared));
            multiply(self.stream, w, &prepared, *y)?;
        }
        Ok(())
    }
}

/// A matrix of a model that lives on the device.
pub(super) fn on_device(weights: &Weights) -> &crate::cuda::Weights {
    weights.on_device().expect("every matrix is on the device")
}
