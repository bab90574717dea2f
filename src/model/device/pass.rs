//! The launches of a forward pass. For the equations of a layer see [`crate::model::architecture`].

use super::stage::{IN_FLIGHT, Kept};
use super::{Span, Vectors};
use crate::cuda::transformer::{
    Added, Gate, Heads, Next, add_norm, advance, angles, attend, embed, gate_up, place_heads,
    softcap,
};
use crate::cuda::{Columns, Mode, Operand, Part, Prepared, Stream, multiply, prepare};
use crate::error::Result;
use crate::matmul::Weights;
use crate::model::architecture::{Activation, Pairing};
use crate::model::cancel::Cancellation;
use crate::model::load::Layer;

/// One token through the layers of a device: from its id if this is the first device, and to the
/// next token if the last layers and the output are here.
pub(super) fn step(stream: &Stream, k: &Kept) -> Result<()> {
    let pass = Pass {
        stream,
        k,
        n: 1,
        cancellation: None,
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

/// One token from the residual stream to the next token.
pub(super) fn last_step(stream: &Stream, k: &Kept) -> Result<()> {
    let pass = Pass {
        stream,
        k,
        n: 1,
        cancellation: None,
    };
    pass.last()
}

/// The launches for the `n` tokens of a block.
pub(super) struct Pass<'a> {
    pub stream: &'a Stream,
    pub k: &'a Kept,
    pub n: usize,
    /// Checked between layers; `None` while capturing, when nothing may wait.
    pub cancellation: Option<&'a Cancellation>,
}

impl<'a> Pass<'a> {
    /// From the ids in the control block to the residual stream.
    pub fn embed(&self) -> Result<()> {
        let (k, a, p) = (self.k, self.k.architecture(), self.k.plan());
        let embedding = on_device(&k.parameters().embedding);
        let (x, ids) = (k.part(&p.x), k.part(&p.ids));
        embed(self.stream, embedding, a.embedding_scale, ids, self.n, x)
    }

    /// Passes the residual stream through the layers of the device.
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
        let readers = |i: usize| [&layers[i].q, &layers[i].k, &layers[i].v].map(|l| &l.weights);
        let Some(first) = vectors.first() else {
            return Ok(());
        };
        let mut input = self.norm(None, first.input_norm, &readers(0))?;
        for (i, (layer, v)) in layers.iter().zip(vectors).enumerate() {
            self.between_layers(i)?;
            self.attention(i, layer, v, input)?;
            let y = self.added(v.o_bias, v.post_norms[0]);
            let gate_up = [&layer.gate.weights, &layer.up.weights];
            let normed = self.norm(Some(y), v.mlp_norm, &gate_up)?;
            self.feed_forward(layer, v, normed)?;
            let y = self.added(v.down_bias, v.post_norms[1]);
            match vectors.get(i + 1) {
                Some(next) => input = self.norm(Some(y), next.input_norm, &readers(i + 1))?,
                None => self.add(y)?,
            }
        }
        Ok(())
    }

    /// Ends the pass before layer `i` if the call was cancelled, after waiting until at most
    /// [`IN_FLIGHT`] layers remain to be done, because enqueued work cannot be withdrawn. The
    /// device is never idle meanwhile.
    fn between_layers(&self, i: usize) -> Result<()> {
        let Some(cancellation) = self.cancellation else {
            return Ok(());
        };
        let mark = &self.k.marks[i % IN_FLIGHT];
        if i >= IN_FLIGHT {
            mark.wait()?;
        }
        cancellation.check()?;
        self.stream.mark(mark)
    }

    /// From the norm of the residual stream to the summand in `y`. `index` is that of the layer
    /// among those of the device.
    fn attention(
        &self,
        index: usize,
        layer: &Layer,
        v: &Vectors,
        normed: Operand<'a>,
    ) -> Result<()> {
        let (k, a, p) = (self.k, self.k.architecture(), self.k.plan());
        let (q, keys, values) = (k.part(&p.q), k.part(&p.k), k.part(&p.v));
        let products = [
            (&layer.q.weights, q),
            (&layer.k.weights, keys),
            (&layer.v.weights, values),
        ];
        self.products(normed, self.n, &products)?;
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
        let splits = k.splits(self.n);
        let mixed = match self.operand(k.part(&p.mixed), self.n, &[&layer.o.weights]) {
            Operand::Quantized(_) if !splits.quantize(shape, &form(&layer.o.weights).1) => {
                Operand::Floats(k.part(&p.mixed))
            }
            mixed => mixed,
        };
        attend(
            self.stream,
            shape,
            self.n,
            k.part(&p.placed),
            &cache,
            position,
            a.windows[k.portion().first + index],
            a.attention_softcap,
            &splits,
            mixed,
        )?;
        let products = [(&layer.o.weights, k.part(&p.y))];
        self.products(mixed, self.n, &products)
    }

    /// As [`Pass::attention`].
    fn feed_forward(&self, layer: &Layer, v: &Vectors, normed: Operand<'a>) -> Result<()> {
        let (k, a, p) = (self.k, self.k.architecture(), self.k.plan());
        let (gate, up) = (k.part(&p.gate), k.part(&p.up));
        let products = [(&layer.gate.weights, gate), (&layer.up.weights, up)];
        self.products(normed, self.n, &products)?;
        let vector = |span: Option<Span>| span.map(|span| k.portion().part(span));
        let act = match a.activation {
            Activation::Silu => Gate::Silu,
            Activation::GeluTanh => Gate::Gelu,
        };
        let gated = self.operand(gate, self.n, &[&layer.down.weights]);
        gate_up(
            self.stream,
            act,
            (self.n, a.intermediate),
            (gate, vector(v.gate_bias)),
            (up, vector(v.up_bias)),
            gated,
        )?;
        self.products(gated, self.n, &[(&layer.down.weights, k.part(&p.y))])
    }

    /// The summand that a sub-layer has left in `y`.
    fn added(&self, bias: Option<Span>, norm: Option<Span>) -> Added<'a> {
        let vector = |span: Option<Span>| span.map(|span| self.k.portion().part(span));
        Added {
            y: self.k.part(&self.k.plan().y),
            bias: vector(bias),
            norm: vector(norm),
        }
    }

    /// `x = x + added`.
    fn add(&self, added: Added<'_>) -> Result<()> {
        let (k, a) = (self.k, self.k.architecture());
        let (x, shape) = (k.part(&k.plan().x), (self.n, a.hidden));
        add_norm(self.stream, shape, a.norm_eps, x, Some(added), None)
    }

    /// `x = x + added`, and the norm of `x` for the products that read it.
    fn norm(
        &self,
        added: Option<Added<'_>>,
        weights: Span,
        readers: &[&Weights],
    ) -> Result<Operand<'a>> {
        let (k, a, p) = (self.k, self.k.architecture(), self.k.plan());
        let (x, shape) = (k.part(&p.x), (self.n, a.hidden));
        let normed = self.operand(k.part(&p.a), self.n, readers);
        let norm = Some((k.portion().part(weights), normed));
        add_norm(self.stream, shape, a.norm_eps, x, added, norm)?;
        Ok(normed)
    }

    /// The destination of the `n` vectors that these matrices read: `floats`, unless all of them
    /// read the same int8 vectors.
    fn operand(&self, floats: Part<'a>, n: usize, readers: &[&Weights]) -> Operand<'a> {
        let (mode, columns) = form(readers[0]);
        if mode != Mode::Int8 || readers.iter().any(|w| form(w) != (mode, columns)) {
            return Operand::Floats(floats);
        }
        let (k, p) = (self.k, self.k.plan());
        let (scratch, bad) = (k.part(&p.scratch), k.part(&p.bad));
        Operand::Quantized(Prepared::quantized(columns, n, scratch, bad))
    }

    /// Computes the logits of `count` tokens of the block from `first` on: `out` float
    /// `(count, vocabulary)`.
    pub fn logits(&self, first: usize, count: usize, out: Part<'_>) -> Result<()> {
        let (k, a, p) = (self.k, self.k.architecture(), self.k.plan());
        let row = a.hidden * 4;
        let x = k.part(&p.x).part(first * row, count * row);
        // Written to the beginning of a buffer, because a row may start where products cannot read
        // it.
        let output = k.parameters().output();
        let normed = self.operand(k.part(&p.a), count, &[output]);
        let norm = Some((k.portion().part(k.portion().norm), normed));
        add_norm(self.stream, (count, a.hidden), a.norm_eps, x, None, norm)?;
        self.products(normed, count, &[(output, out)])?;
        match a.final_softcap {
            Some(cap) => softcap(self.stream, cap, out, count * a.vocabulary),
            None => Ok(()),
        }
    }

    /// Computes the logits of the last token, and the arg-max of them as the next token.
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

    /// Multiplies matrices by the same `n` vectors, each into its own `y` `(n, rows)`. Consecutive
    /// products share prepared vectors and launches where they can.
    fn products<const N: usize>(
        &self,
        x: Operand<'a>,
        n: usize,
        products: &[(&Weights, Part<'_>); N],
    ) -> Result<()> {
        let p = self.k.plan();
        let (scratch, bad) = (self.k.part(&p.scratch), self.k.part(&p.bad));
        let there = products.map(|(w, y)| (on_device(w), y));
        let mut rest = there.as_slice();
        for alike in products.chunk_by(|(a, _), (b, _)| form(a) == form(b)) {
            let prepared = match x {
                Operand::Quantized(prepared) => prepared,
                Operand::Floats(x) => {
                    let (mode, columns) = form(alike[0].0);
                    prepare(self.stream, mode, columns, x, n, scratch, bad)?
                }
            };
            let (now, behind) = rest.split_at(alike.len());
            multiply(self.stream, &prepared, now)?;
            rest = behind;
        }
        Ok(())
    }
}

/// The form in which the products of a matrix read vectors.
fn form(weights: &Weights) -> (Mode, Columns) {
    (
        Mode::from(weights.activations()),
        on_device(weights).columns(),
    )
}

/// The device copy of a matrix of a model on the device.
pub(super) fn on_device(weights: &Weights) -> &crate::cuda::Weights {
    weights.on_device().expect("every matrix is on the device")
}
