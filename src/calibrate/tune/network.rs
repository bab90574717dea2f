//! A plain Llama network with gradients: float32, one window of tokens at a time, one thread.
//!
//! Names and equations are those of [`crate::model::architecture`]. The forward pass keeps
//! everything that the backward pass needs.

use crate::error::{Error, Result};
use crate::model::architecture::{Architecture, Pairing};

/// The indices of a network's tensors in a list of tensors.
pub(super) struct Network<'a> {
    a: &'a Architecture,
    /// Cosines and sines of the rotary embedding: `(positions, head_dim / 2)`.
    rotations: Vec<(f32, f32)>,
    /// The index of the embedding, the last norm and the output.
    embedding: usize,
    norm: usize,
    output: usize,
    layers: Vec<Layer>,
}

struct Layer {
    input_norm: usize,
    q: usize,
    k: usize,
    v: usize,
    o: usize,
    mlp_norm: usize,
    gate: usize,
    up: usize,
    down: usize,
}

/// The values of a layer that are kept for a window of `n` tokens.
#[derive(Default)]
struct Kept {
    /// `(n, hidden)`: the residual stream before attention and its norm, before the feed-forward
    /// network and its norm.
    x: Vec<f32>,
    a: Vec<f32>,
    y: Vec<f32>,
    b: Vec<f32>,
    /// Queries and keys after the rotary embedding, values, the output of attention:
    /// `(n, heads, head_dim)`, `(n, kv_heads, head_dim)`.
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    mixed: Vec<f32>,
    /// Probabilities of attention: `(heads, n, n)`.
    p: Vec<f32>,
    /// `(n, intermediate)`; `h` is `silu(gate) * up`.
    gate: Vec<f32>,
    up: Vec<f32>,
    h: Vec<f32>,
}

/// The values of a forward pass that a backward pass needs.
pub(super) struct Trace {
    layers: Vec<Kept>,
    /// `(n, hidden)`: the residual stream at the end, and its norm.
    x: Vec<f32>,
    z: Vec<f32>,
    /// `(n, vocabulary)`
    pub logits: Vec<f32>,
}

impl<'a> Network<'a> {
    /// The network whose tensors have the indices that `index` gives for canonical names, for
    /// windows of up to `positions` tokens.
    ///
    /// # Errors
    /// `ERR_UNSUPPORTED` for anything that a plain Llama does not have.
    pub fn new(
        a: &'a Architecture,
        positions: usize,
        index: &dyn Fn(&str) -> usize,
    ) -> Result<Network<'a>> {
        let slides = a.windows.iter().flatten().any(|&w| w < positions);
        let slides = slides.then_some("a window shorter than those of the text");
        if let Some(what) = a.beyond_plain_llama().or(slides) {
            return Err(Error::unsupported(format!(
                "tuning of scales is for plain Llama models, this one of family {} has {what}",
                a.family.name()
            )));
        }
        let half = a.head_dim / 2;
        let rotations = (0..positions * half).map(|i| {
            let frequency = a
                .rope
                .theta
                .powf(-2.0 * (i % half) as f64 / a.head_dim as f64);
            let (sin, cos) = ((i / half) as f64 * frequency).sin_cos();
            (cos as f32, sin as f32)
        });
        let layer = |i: usize| {
            let at = |part: &str| index(&format!("model.layers.{i}.{part}.weight"));
            Layer {
                input_norm: at("input_layernorm"),
                q: at("self_attn.q_proj"),
                k: at("self_attn.k_proj"),
                v: at("self_attn.v_proj"),
                o: at("self_attn.o_proj"),
                mlp_norm: at("post_attention_layernorm"),
                gate: at("mlp.gate_proj"),
                up: at("mlp.up_proj"),
                down: at("mlp.down_proj"),
            }
        };
        let embedding = index("model.embed_tokens.weight");
        Ok(Network {
            a,
            rotations: rotations.collect(),
            embedding,
            norm: index("model.norm.weight"),
            output: if a.tied {
                embedding
            } else {
                index("lm_head.weight")
            },
            layers: (0..a.layers).map(layer).collect(),
        })
    }

    /// The forward pass, with the logits of every token; `w` are the tensors.
    pub fn forward(&self, w: &[Vec<f32>], ids: &[u32]) -> Trace {
        let (n, hidden) = (ids.len(), self.a.hidden);
        let mut x = Vec::with_capacity(n * hidden);
        for &id in ids {
            let row = &w[self.embedding][id as usize * hidden..][..hidden];
            x.extend(row.iter().map(|w| self.a.embedding_scale * w));
        }
        let mut layers = Vec::with_capacity(self.layers.len());
        for l in &self.layers {
            let mut s = Kept {
                a: self.normed(&x, &w[l.input_norm]),
                x: x.clone(),
                ..Kept::default()
            };
            s.q = product(&s.a, &w[l.q], n);
            s.k = product(&s.a, &w[l.k], n);
            s.v = product(&s.a, &w[l.v], n);
            self.rotate(&mut s.q, self.a.heads, 1.0);
            self.rotate(&mut s.k, self.a.kv_heads, 1.0);
            self.attend(&mut s, n);
            add(&mut x, &product(&s.mixed, &w[l.o], n));
            s.b = self.normed(&x, &w[l.mlp_norm]);
            s.y.clone_from(&x);
            s.gate = product(&s.b, &w[l.gate], n);
            s.up = product(&s.b, &w[l.up], n);
            let silu = s.gate.iter().map(|&g| g * sigmoid(g));
            s.h = silu.zip(&s.up).map(|(s, u)| s * u).collect();
            add(&mut x, &product(&s.h, &w[l.down], n));
            layers.push(s);
        }
        let z = self.normed(&x, &w[self.norm]);
        let logits = product(&z, &w[self.output], n);
        Trace {
            layers,
            x,
            z,
            logits,
        }
    }

    /// Adds to `dw`, the gradients of the tensors, the contribution of the gradient `d`
    /// `(n, vocabulary)` of the logits.
    pub fn backward(&self, w: &[Vec<f32>], ids: &[u32], t: &Trace, d: &[f32], dw: &mut [Vec<f32>]) {
        let (n, hidden) = (ids.len(), self.a.hidden);
        let dz = back(d, &t.z, &w[self.output], n, &mut dw[self.output]);
        let mut dx = vec![0.0; n * hidden];
        self.back_norm(&dz, &t.x, &w[self.norm], &mut dx, &mut dw[self.norm]);
        for (l, s) in self.layers.iter().zip(&t.layers).rev() {
            let dh = back(&dx, &s.h, &w[l.down], n, &mut dw[l.down]);
            let mut dgate = Vec::with_capacity(dh.len());
            let mut dup = Vec::with_capacity(dh.len());
            for ((&dh, &g), &u) in dh.iter().zip(&s.gate).zip(&s.up) {
                let o = sigmoid(g);
                dup.push(dh * g * o);
                dgate.push(dh * u * o * (1.0 + g * (1.0 - o)));
            }
            let mut db = back(&dgate, &s.b, &w[l.gate], n, &mut dw[l.gate]);
            add(&mut db, &back(&dup, &s.b, &w[l.up], n, &mut dw[l.up]));
            self.back_norm(&db, &s.y, &w[l.mlp_norm], &mut dx, &mut dw[l.mlp_norm]);

            let dmixed = back(&dx, &s.mixed, &w[l.o], n, &mut dw[l.o]);
            let (mut dq, mut dk, dv) = self.back_attend(s, &dmixed, n);
            self.rotate(&mut dq, self.a.heads, -1.0);
            self.rotate(&mut dk, self.a.kv_heads, -1.0);
            let mut da = back(&dq, &s.a, &w[l.q], n, &mut dw[l.q]);
            add(&mut da, &back(&dk, &s.a, &w[l.k], n, &mut dw[l.k]));
            add(&mut da, &back(&dv, &s.a, &w[l.v], n, &mut dw[l.v]));
            self.back_norm(&da, &s.x, &w[l.input_norm], &mut dx, &mut dw[l.input_norm]);
        }
        for (&id, dx) in ids.iter().zip(dx.chunks_exact(hidden)) {
            let row = &mut dw[self.embedding][id as usize * hidden..][..hidden];
            axpy(self.a.embedding_scale, dx, row);
        }
    }

    /// `x / rms(x) * weights` for each row of the residual stream.
    fn normed(&self, x: &[f32], weights: &[f32]) -> Vec<f32> {
        let mut out = Vec::with_capacity(x.len());
        for x in x.chunks_exact(self.a.hidden) {
            let r = self.inverse_rms(x);
            out.extend(x.iter().zip(weights).map(|(x, w)| x * r * w));
        }
        out
    }

    fn inverse_rms(&self, x: &[f32]) -> f32 {
        1.0 / (dot(x, x) / x.len() as f32 + self.a.norm_eps).sqrt()
    }

    /// Adds to `dx` and `dweights` the contributions of the gradient `d` of a norm's output.
    fn back_norm(
        &self,
        d: &[f32],
        x: &[f32],
        weights: &[f32],
        dx: &mut [f32],
        dweights: &mut [f32],
    ) {
        let hidden = self.a.hidden;
        let vectors = d.chunks_exact(hidden).zip(x.chunks_exact(hidden));
        for ((d, x), dx) in vectors.zip(dx.chunks_exact_mut(hidden)) {
            let r = self.inverse_rms(x);
            let mut along = 0.0;
            for c in 0..hidden {
                dweights[c] += d[c] * x[c] * r;
                along += d[c] * weights[c] * x[c];
            }
            let pull = along * r * r * r / hidden as f32;
            for c in 0..hidden {
                dx[c] += d[c] * weights[c] * r - pull * x[c];
            }
        }
    }

    /// Applies the rotary embedding to `(n, count, head_dim)`; `way` -1 inverts it.
    fn rotate(&self, heads: &mut [f32], count: usize, way: f32) {
        let half = self.a.head_dim / 2;
        for (i, head) in heads.chunks_exact_mut(self.a.head_dim).enumerate() {
            let rotations = &self.rotations[i / count * half..][..half];
            for (j, &(cos, sin)) in rotations.iter().enumerate() {
                let (a, b) = match self.a.rope.pairing {
                    Pairing::Halves => (j, j + half),
                    Pairing::Neighbours => (2 * j, 2 * j + 1),
                };
                let (x, y, sin) = (head[a], head[b], sin * way);
                head[a] = x * cos - y * sin;
                head[b] = x * sin + y * cos;
            }
        }
    }

    /// Computes `mixed` and `p` from `q`, `k`, `v`.
    fn attend(&self, s: &mut Kept, n: usize) {
        let (heads, d) = (self.a.heads, self.a.head_dim);
        let (kv, shared) = (self.a.kv_heads, heads / self.a.kv_heads);
        s.p = vec![0.0; heads * n * n];
        s.mixed = vec![0.0; n * heads * d];
        for head in 0..heads {
            for i in 0..n {
                let p = &mut s.p[(head * n + i) * n..][..=i];
                let q = &s.q[(i * heads + head) * d..][..d];
                for (j, p) in p.iter_mut().enumerate() {
                    *p = dot(q, &s.k[(j * kv + head / shared) * d..][..d]) * self.a.query_scale;
                }
                softmax(p);
                let mixed = &mut s.mixed[(i * heads + head) * d..][..d];
                for (j, &p) in p.iter().enumerate() {
                    axpy(p, &s.v[(j * kv + head / shared) * d..][..d], mixed);
                }
            }
        }
    }

    /// The gradients of the rotated queries and keys, and of the values, given that of the output
    /// of attention.
    fn back_attend(&self, s: &Kept, dmixed: &[f32], n: usize) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (heads, d) = (self.a.heads, self.a.head_dim);
        let (kv, shared) = (self.a.kv_heads, heads / self.a.kv_heads);
        let mut dq = vec![0.0; s.q.len()];
        let (mut dk, mut dv) = (vec![0.0; s.k.len()], vec![0.0; s.v.len()]);
        let mut dp = vec![0.0; n];
        for head in 0..heads {
            for i in 0..n {
                let p = &s.p[(head * n + i) * n..][..=i];
                let at = (i * heads + head) * d;
                let dm = &dmixed[at..][..d];
                let mut mean = 0.0;
                for (j, &p) in p.iter().enumerate() {
                    let key = (j * kv + head / shared) * d;
                    dp[j] = dot(dm, &s.v[key..][..d]);
                    mean += p * dp[j];
                    axpy(p, dm, &mut dv[key..][..d]);
                }
                for (j, &p) in p.iter().enumerate() {
                    let key = (j * kv + head / shared) * d;
                    let ds = p * (dp[j] - mean) * self.a.query_scale;
                    axpy(ds, &s.k[key..][..d], &mut dq[at..][..d]);
                    axpy(ds, &s.q[at..][..d], &mut dk[key..][..d]);
                }
            }
        }
        (dq, dk, dv)
    }
}

/// `x W'`: `x` `(n, cols)`, `w` `(rows, cols)`, the result `(n, rows)`.
fn product(x: &[f32], w: &[f32], n: usize) -> Vec<f32> {
    let cols = x.len() / n;
    let mut y = Vec::with_capacity(n * (w.len() / cols));
    for x in x.chunks_exact(cols) {
        y.extend(w.chunks_exact(cols).map(|w| dot(x, w)));
    }
    y
}

/// Given the gradient `dy` `(n, rows)` of a product, returns that of its inputs and adds that of
/// the matrix to `dw`.
fn back(dy: &[f32], x: &[f32], w: &[f32], n: usize, dw: &mut [f32]) -> Vec<f32> {
    let (rows, cols) = (dy.len() / n, x.len() / n);
    let mut dx = vec![0.0; x.len()];
    let vectors = dy.chunks_exact(rows).zip(x.chunks_exact(cols));
    for ((dy, x), dx) in vectors.zip(dx.chunks_exact_mut(cols)) {
        for (r, &dy) in dy.iter().enumerate() {
            axpy(dy, &w[r * cols..][..cols], dx);
            axpy(dy, x, &mut dw[r * cols..][..cols]);
        }
    }
    dx
}

/// `p = softmax(p)`
fn softmax(p: &mut [f32]) {
    let top = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    p.iter_mut().for_each(|p| *p = (*p - top).exp());
    let sum: f32 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= sum);
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn add(y: &mut [f32], x: &[f32]) {
    axpy(1.0, x, y);
}

fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

/// Separate lanes, so that the compiler vectorises it.
fn dot(x: &[f32], y: &[f32]) -> f32 {
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in x.iter().zip(y) {
        for i in 0..LANES {
            sums[i] += x[i] * y[i];
        }
    }
    let rest: f32 = x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;
    use crate::model::architecture::{Activation, Family, Rope, RopeScaling};
    use crate::testing::Random;

    /// Two layers, two query heads per key head, and no powers of two where they can be avoided.
    fn architecture(tied: bool, pairing: Pairing) -> Architecture {
        Architecture {
            family: Family::Llama,
            layers: 2,
            hidden: 10,
            intermediate: 13,
            vocabulary: 11,
            context: 8,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            norm_eps: 1e-5,
            norm_offset: 0.0,
            activation: Activation::Silu,
            rope: Rope {
                theta: 100.0,
                scaling: RopeScaling::None,
                pairing,
            },
            embedding_scale: if tied { 1.0 } else { 3.0 },
            query_scale: 0.5,
            windows: vec![None; 2],
            attention_softcap: None,
            final_softcap: None,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            qk_norm: false,
            sandwich: false,
            tied,
        }
    }

    /// Compares every gradient with the difference of two forward passes.
    #[test]
    fn gradients_are_slopes() {
        for (tied, pairing) in [(true, Pairing::Halves), (false, Pairing::Neighbours)] {
            let a = architecture(tied, pairing);
            let mut names = vec!["model.embed_tokens", "model.norm"];
            let mut sizes = vec![11 * 10, 10];
            if !tied {
                names.push("lm_head");
                sizes.push(11 * 10);
            }
            let mut names: Vec<String> = names.iter().map(|n| format!("{n}.weight")).collect();
            for i in 0..2 {
                for (part, size) in [
                    ("input_layernorm", 10),
                    ("self_attn.q_proj", 8 * 10),
                    ("self_attn.k_proj", 4 * 10),
                    ("self_attn.v_proj", 4 * 10),
                    ("self_attn.o_proj", 10 * 8),
                    ("post_attention_layernorm", 10),
                    ("mlp.gate_proj", 13 * 10),
                    ("mlp.up_proj", 13 * 10),
                    ("mlp.down_proj", 10 * 13),
                ] {
                    names.push(format!("model.layers.{i}.{part}.weight"));
                    sizes.push(size);
                }
            }
            let index = |name: &str| names.iter().position(|n| n == name).unwrap();
            let net = Network::new(&a, 6, &index).unwrap();
            let mut r = Random::new(3);
            let mut w: Vec<Vec<f32>> = sizes
                .iter()
                .map(|&n| r.gaussian(n).iter().map(|v| 0.5 * v + 0.1).collect())
                .collect();
            let ids = [1, 5, 5, 0, 10, 7];
            let d = r.gaussian(ids.len() * 11);
            let loss = |w: &[Vec<f32>]| -> f64 {
                let logits = net.forward(w, &ids).logits;
                let pairs = logits.iter().zip(&d);
                pairs.map(|(l, d)| f64::from(*l) * f64::from(*d)).sum()
            };
            let mut dw: Vec<Vec<f32>> = w.iter().map(|w| vec![0.0; w.len()]).collect();
            net.backward(&w, &ids, &net.forward(&w, &ids), &d, &mut dw);
            for t in 0..w.len() {
                let norm =
                    dw[t].iter().map(|d| d * d).sum::<f32>().sqrt() / (dw[t].len() as f32).sqrt();
                for i in (0..w[t].len()).step_by(7) {
                    const STEP: f32 = 1e-2;
                    let kept = w[t][i];
                    w[t][i] = kept + STEP;
                    let above = loss(&w);
                    w[t][i] = kept - STEP;
                    let below = loss(&w);
                    w[t][i] = kept;
                    let slope = ((above - below) / f64::from(2.0 * STEP)) as f32;
                    let miss = (slope - dw[t][i]).abs();
                    assert!(
                        miss < 0.02 * (norm + slope.abs()),
                        "{} {i}: {}, the slope is {slope}",
                        names[t],
                        dw[t][i]
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_no_plain_llama_is_refused() {
        let refused = |change: fn(&mut Architecture)| {
            let mut a = architecture(true, Pairing::Halves);
            change(&mut a);
            let e = Network::new(&a, 6, &|_| 0).err()?;
            assert_eq!(e.status(), Status::Unsupported);
            Some(e.message().to_owned())
        };
        for (change, what) in [
            (
                (|a| a.output_bias = true) as fn(&mut Architecture),
                "biases",
            ),
            (|a| a.qk_norm = true, "norms of heads"),
            (|a| a.final_softcap = Some(30.0), "soft caps"),
            (|a| a.windows[1] = Some(5), "a window shorter"),
        ] {
            let said = refused(change).unwrap();
            assert!(
                said.contains("plain Llama") && said.contains(what),
                "{said}"
            );
        }
        assert_eq!(refused(|a| a.windows[1] = Some(6)), None);
    }
}
