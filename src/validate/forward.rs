//! The forward pass of a plain Llama in float64, written from its equations; it shares no code with
//! `model`.

use std::collections::HashMap;

use super::network::{EMBEDDING, Matrix, Network};
use super::numbers::Numbers;
use super::{kernel_tolerance, relative, worse};
use crate::error::{Error, Result};
use crate::matmul::Activations;
use crate::model::architecture::Pairing;
use crate::quant::quantize_block;
use crate::runtime::Runtime;

/// The observed values of a forward pass of `n` tokens.
#[derive(Clone, Debug, Default)]
pub struct Taps {
    /// For each layer the output of attention before the output matrix: `(n, heads, head_dim)`.
    pub attention: Vec<Vec<f32>>,
    /// For each layer its output after the norm that the next layer applies: `(n, hidden)`.
    pub layers: Vec<Vec<f32>>,
    /// `(n, vocabulary)`
    pub logits: Vec<f32>,
    /// The largest relative difference of a computed input of a product from the one in
    /// [`Forward::heard`].
    pub apart: f64,
}

/// The inputs of products, by the names of their matrices: `(n, cols)`.
pub type Inputs = HashMap<String, Vec<f32>>;

/// A forward pass in float64.
#[derive(Clone, Copy)]
pub struct Forward<'a> {
    /// Its threads share the rows of products.
    pub rt: &'a Runtime,
    /// The weights, as float32.
    pub network: &'a Network,
    /// The precision in which products with quantised matrices read their inputs.
    pub activations: Activations,
    /// Whether a random sign times the largest error of float32 is added to each product.
    pub shaken: bool,
    /// Inputs that products with quantised matrices read instead of the computed ones.
    pub heard: Option<&'a Inputs>,
}

impl Forward<'_> {
    /// Reads `ids`, `(n)`, from the beginning of a context, all at once.
    ///
    /// # Errors
    /// None: the `Result` is that of the pool.
    pub fn run(&self, ids: &[u32]) -> Result<Taps> {
        let a = &self.network.architecture;
        let n = ids.len();
        let embedding = &self.network.matrices[EMBEDDING];
        let scale = f64::from(a.embedding_scale);
        let rows = ids
            .iter()
            .flat_map(|&id| &embedding.values[id as usize * a.hidden..][..a.hidden]);
        let mut x: Vec<f64> = rows.map(|&v| scale * f64::from(v)).collect();
        let mut taps = Taps::default();
        for i in 0..a.layers {
            let at = |part: &str| format!("model.layers.{i}.{part}.weight");
            let h = self.norm(&x, &at("input_layernorm"));
            let mut q = self.product(&mut taps, &h, &at("self_attn.q_proj"))?;
            let mut k = self.product(&mut taps, &h, &at("self_attn.k_proj"))?;
            let v = self.product(&mut taps, &h, &at("self_attn.v_proj"))?;
            self.rotate(&mut q, a.heads);
            self.rotate(&mut k, a.kv_heads);
            let mixed = self.attention(&q, &k, &v, n, a.windows[i]);
            add(
                &mut x,
                &self.product(&mut taps, &mixed, &at("self_attn.o_proj"))?,
            );
            taps.attention.push(narrow(&mixed));
            let h = self.norm(&x, &at("post_attention_layernorm"));
            let mut gate = self.product(&mut taps, &h, &at("mlp.gate_proj"))?;
            let up = self.product(&mut taps, &h, &at("mlp.up_proj"))?;
            for (g, u) in gate.iter_mut().zip(up) {
                *g = *g / (1.0 + (-*g).exp()) * u;
            }
            add(
                &mut x,
                &self.product(&mut taps, &gate, &at("mlp.down_proj"))?,
            );
            let next = match i + 1 < a.layers {
                true => format!("model.layers.{}.input_layernorm.weight", i + 1),
                false => "model.norm.weight".to_owned(),
            };
            taps.layers.push(narrow(&self.norm(&x, &next)));
        }
        let h = self.norm(&x, "model.norm.weight");
        taps.logits = narrow(&self.product(&mut taps, &h, self.network.output())?);
        Ok(taps)
    }

    /// `y = W x` for the rows of `x` `(n, cols)`.
    fn product(&self, taps: &mut Taps, x: &[f64], name: &str) -> Result<Vec<f64>> {
        let w = &self.network.matrices[name];
        let n = x.len() / w.cols;
        let heard = self.heard.filter(|_| w.group.is_some());
        let heard = heard.and_then(|heard| heard.get(name));
        let widened: Vec<f64>;
        let x = match heard {
            Some(heard) => {
                taps.apart = worse(taps.apart, relative(heard, &narrow(x)));
                widened = heard.iter().map(|&x| x.into()).collect();
                &widened
            }
            None => x,
        };
        let mut y = vec![0.0; n * w.rows];
        let seed = fnv1a(name);
        let work = y
            .chunks_mut(w.rows)
            .zip(x.chunks(w.cols))
            .enumerate()
            .collect();
        self.rt.pool().try_for_each(work, |(t, (y, x))| {
            let taken = self.taken(w, x);
            let mut numbers = Numbers::new(seed.wrapping_add(t as u64));
            let loss = kernel_tolerance(w.cols);
            for (y, w) in y.iter_mut().zip(w.values.chunks_exact(w.cols)) {
                *y = dot(w, &taken);
                if self.shaken {
                    let terms = w
                        .iter()
                        .zip(&taken)
                        .map(|(&w, &x)| (f64::from(w) * x).abs());
                    *y += numbers.sign() * loss * terms.sum::<f64>();
                }
            }
            Ok::<(), Error>(())
        })?;
        Ok(y)
    }

    /// An input in the precision in which its product reads it.
    fn taken(&self, w: &Matrix, x: &[f64]) -> Vec<f64> {
        match w.group {
            Some(group) if self.activations != Activations::F32 => {
                as_taken(self.activations, group, &narrow(x))
            }
            _ => x.to_vec(),
        }
    }

    fn norm(&self, x: &[f64], name: &str) -> Vec<f64> {
        let weights = &self.network.vectors[name];
        let eps = f64::from(self.network.architecture.norm_eps);
        let mut out = Vec::with_capacity(x.len());
        for x in x.chunks_exact(weights.len()) {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            let factor = 1.0 / (mean + eps).sqrt();
            out.extend(
                x.iter()
                    .zip(weights)
                    .map(|(x, &w)| x * factor * f64::from(w)),
            );
        }
        out
    }

    /// Applies the rotary embedding of position `t` to each head of `x` `(n, heads, head_dim)`.
    fn rotate(&self, x: &mut [f64], heads: usize) {
        let a = &self.network.architecture;
        let half = a.head_dim / 2;
        for (t, x) in x.chunks_exact_mut(heads * a.head_dim).enumerate() {
            for head in x.chunks_exact_mut(a.head_dim) {
                for i in 0..half {
                    let angle = t as f64 * a.rope.theta.powf(-2.0 * i as f64 / a.head_dim as f64);
                    let (first, second) = match a.rope.pairing {
                        Pairing::Halves => (i, i + half),
                        Pairing::Neighbours => (2 * i, 2 * i + 1),
                    };
                    let (sin, cos) = angle.sin_cos();
                    let (p, q) = (head[first], head[second]);
                    head[first] = p * cos - q * sin;
                    head[second] = q * cos + p * sin;
                }
            }
        }
    }

    /// Causal softmax attention: `q` `(n, heads, head_dim)`, `k` and `v` `(n, kv_heads, head_dim)`.
    fn attention(
        &self,
        q: &[f64],
        k: &[f64],
        v: &[f64],
        n: usize,
        window: Option<usize>,
    ) -> Vec<f64> {
        let a = &self.network.architecture;
        let (d, shared) = (a.head_dim, a.heads / a.kv_heads);
        let mut out = vec![0.0; n * a.heads * d];
        for t in 0..n {
            let first = window.map_or(0, |w| (t + 1).saturating_sub(w));
            for h in 0..a.heads {
                let head = |x: &'_ [f64], s: usize| -> Vec<f64> {
                    x[(s * a.kv_heads + h / shared) * d..][..d].to_vec()
                };
                let q = &q[(t * a.heads + h) * d..][..d];
                let scores: Vec<f64> = (first..=t)
                    .map(|s| {
                        let product: f64 = q.iter().zip(head(k, s)).map(|(q, k)| q * k).sum();
                        product * f64::from(a.query_scale)
                    })
                    .collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let out = &mut out[(t * a.heads + h) * d..][..d];
                for (s, w) in weights.iter().enumerate() {
                    for (out, v) in out.iter_mut().zip(head(v, first + s)) {
                        *out += w / sum * v;
                    }
                }
            }
        }
        out
    }
}

/// Activations in the precision in which a product reads them, by definition. `group` is the
/// columns per scale of the weights; 0: a row.
pub fn as_taken(activations: Activations, group: usize, x: &[f32]) -> Vec<f64> {
    match activations {
        Activations::F32 => x.iter().map(|&x| x.into()).collect(),
        Activations::Sign => x
            .iter()
            .map(|&x| if x >= 0.0 { 1.0 } else { -1.0 })
            .collect(),
        Activations::Int8 => {
            // One scale per group of 32, 64 or 128 columns, else one for at most 32 columns within
            // a group.
            let group = if group == 0 { x.len() } else { group };
            let block = if matches!(group, 64 | 128) { group } else { 32 };
            let mut taken = Vec::with_capacity(x.len());
            for x in x.chunks(group.max(1)).flat_map(|x| x.chunks(block)) {
                let mut codes = vec![0; x.len()];
                let scale = f64::from(quantize_block(x, &mut codes));
                taken.extend(codes.iter().map(|&q| scale * f64::from(q)));
            }
            taken
        }
    }
}

/// Eight separate sums, so that the compiler vectorises it.
pub fn dot(w: &[f32], x: &[f64]) -> f64 {
    let (w, w_rest) = w.as_chunks::<8>();
    let (x, x_rest) = x.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (w, x) in w.iter().zip(x) {
        for (sum, (&w, &x)) in sums.iter_mut().zip(w.iter().zip(x)) {
            *sum += f64::from(w) * x;
        }
    }
    let rest = w_rest.iter().zip(x_rest).map(|(&w, &x)| f64::from(w) * x);
    sums.iter().sum::<f64>() + rest.sum::<f64>()
}

/// The 64-bit FNV-1a hash of a name, the seed of a matrix's random numbers, equal on every machine.
fn fnv1a(name: &str) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let bytes = name.bytes().map(u64::from);
    bytes.fold(BASIS, |hash, byte| (hash ^ byte).wrapping_mul(PRIME))
}

fn add(x: &mut [f64], y: &[f64]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

fn narrow(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&x| x as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::backends;

    fn forward<'a>(rt: &'a Runtime, network: &'a Network) -> Forward<'a> {
        Forward {
            rt,
            network,
            activations: Activations::F32,
            shaken: false,
            heard: None,
        }
    }

    #[test]
    fn published_hashes() {
        assert_eq!(fnv1a(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a("foobar"), 0x8594_4171_f739_67e8);
    }

    /// The signs of the errors added to the outputs of equal matrices do not depend on the length
    /// of their names.
    #[test]
    fn matrices_are_shaken_independently() {
        let rt = &backends(1).unwrap()[0];
        let mut network = Network::one_layer();
        let names = ["a.q_proj.weight", "a.k_proj.weight"];
        let w = network.matrices[EMBEDDING].clone();
        for name in names {
            network.matrices.insert(name.to_owned(), w.clone());
        }
        let x: Vec<f64> = (0..w.cols).map(|i| (i % 7) as f64 - 3.0).collect();
        let exact = forward(rt, &network);
        let shaken = Forward {
            shaken: true,
            ..exact
        };
        let up = names.map(|name| -> Vec<bool> {
            let of = |pass: &Forward<'_>| pass.product(&mut Taps::default(), &x, name).unwrap();
            let pairs = of(&exact).into_iter().zip(of(&shaken));
            pairs.map(|(y, moved)| moved > y).collect()
        });
        let same = up[0].iter().zip(&up[1]).filter(|(a, b)| a == b).count();
        // For this number of fair coins, six standard deviations around the half.
        let (n, spread) = (w.rows as f64, 3.0 * (w.rows as f64).sqrt());
        assert!((same as f64 - n / 2.0).abs() < spread, "{same} of {n}");
    }

    /// An input that is not finite is reported as different, whatever comes before and after it.
    #[test]
    fn what_is_no_number_is_seen() {
        let rt = &backends(1).unwrap()[0];
        let mut network = Network::one_layer();
        let names = ["a", "b", "c"].map(|part| format!("{part}.weight"));
        let w = Matrix {
            group: Some(32),
            ..network.matrices[EMBEDDING].clone()
        };
        let x = vec![1.0; w.cols];
        let mut heard = Inputs::new();
        for (name, value) in names.iter().zip([1.5, f32::NAN, 1.5]) {
            network.matrices.insert(name.clone(), w.clone());
            heard.insert(name.clone(), vec![value; w.cols]);
        }
        let pass = Forward {
            heard: Some(&heard),
            ..forward(rt, &network)
        };
        let mut taps = Taps::default();
        for name in &names {
            pass.product(&mut taps, &x, name).unwrap();
        }
        assert!(taps.apart.is_nan(), "{}", taps.apart);
    }
}
