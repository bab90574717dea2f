//! Loads a model from disk into the form in which products read weights.

use super::architecture::Architecture;
use super::device::Room;
use super::source::Source;
use crate::error::{Error, Result};
use crate::matmul::Weights;
use crate::options::WeightOptions;
use crate::runtime::Runtime;
use crate::weights::{self, Home};

/// `y = W x + bias`.
pub(super) struct Linear {
    /// The canonical name of its matrix.
    pub name: String,
    /// `(rows, cols)`
    pub weights: Weights,
    /// `(rows)`
    pub bias: Option<Vec<f32>>,
}

/// A layer; names as in [`super::architecture`].
pub(super) struct Layer {
    pub input_norm: Vec<f32>,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    /// Norms of the heads of queries and keys: `(head_dim)` each.
    pub qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    /// Before the feed-forward network.
    pub mlp_norm: Vec<f32>,
    /// After attention and after the feed-forward network.
    pub post_norms: Option<(Vec<f32>, Vec<f32>)>,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

impl Layer {
    /// Its matrices.
    pub fn matrices(&self) -> [&Weights; 7] {
        [
            &self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down,
        ]
        .map(|l| &l.weights)
    }
}

/// Everything that a forward pass reads.
pub(super) struct Parameters {
    /// `(vocabulary, hidden)`
    pub embedding: Weights,
    pub layers: Vec<Layer>,
    pub norm: Vec<f32>,
    /// `(vocabulary, hidden)`; `None` if it is the embedding.
    pub output: Option<Weights>,
}

/// A provider of the tensors of a model, by canonical names.
pub trait Tensors {
    /// A matrix.
    ///
    /// # Errors
    /// If there is none.
    fn matrix(&self, name: &str) -> Result<Weights>;

    /// Announces that the next matrices are those of this layer, or with `None` the output.
    ///
    /// # Errors
    /// If they are not available.
    fn begin(&self, layer: Option<usize>) -> Result<()> {
        let _ = layer;
        Ok(())
    }

    /// A norm or a bias.
    ///
    /// # Errors
    /// If there is none.
    fn vector(&self, name: &str) -> Result<Vec<f32>>;
}

/// The tensors of a model on disk: quantised ones as stored, unless the options ask for another
/// width.
pub(super) struct FromDisk<'a> {
    pub rt: &'a Runtime,
    pub source: &'a Source,
    pub options: &'a WeightOptions,
    /// Where its matrices go.
    pub room: Room<'a>,
}

impl Tensors for FromDisk<'_> {
    fn matrix(&self, name: &str) -> Result<Weights> {
        let make = |home: Home<'_>| {
            let view = self.source.matrix(name)?;
            let options = weights::options_for(self.source.stored(name)?, self.options);
            weights::from_view(self.rt, view, &options, home)
                .map_err(|e| self.source.within(e.within(name)))
        };
        let made = self.room.place(make);
        // Each tensor is read once. If its pages of the file stayed mapped in, a model would take
        // twice the memory.
        self.source.forget(name);
        made
    }

    fn begin(&self, layer: Option<usize>) -> Result<()> {
        match layer {
            Some(layer) => self.room.begin_layer(layer),
            None => self.room.begin_output(),
        }
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>> {
        // The same status as for a weight of a matrix.
        self.source.finite_vector(name, Error::range)
    }
}

impl Parameters {
    /// Loads every tensor of an architecture.
    pub fn load(a: &Architecture, tensors: &dyn Tensors) -> Result<Parameters> {
        let reader = Reader { tensors, a };
        let layers = (0..a.layers).map(|i| reader.layer(i));
        Ok(Parameters {
            embedding: tensors.matrix("model.embed_tokens.weight")?,
            layers: layers.collect::<Result<_>>()?,
            norm: reader.norm("model.norm")?,
            output: match a.tied {
                true => None,
                false => {
                    tensors.begin(None)?;
                    Some(tensors.matrix("lm_head.weight")?)
                }
            },
        })
    }

    /// The matrix that computes logits.
    pub fn output(&self) -> &Weights {
        self.output.as_ref().unwrap_or(&self.embedding)
    }

    /// Every matrix.
    pub fn matrices(&self) -> impl Iterator<Item = &Weights> {
        let layers = self.layers.iter().flat_map(Layer::matrices);
        layers.chain([&self.embedding]).chain(&self.output)
    }

    /// Every matrix except those of the first layers.
    pub fn all_but_layers(&mut self, first: usize) -> impl Iterator<Item = &mut Weights> {
        let layers = self.layers[first..].iter_mut().flat_map(|l| {
            [
                &mut l.q,
                &mut l.k,
                &mut l.v,
                &mut l.o,
                &mut l.gate,
                &mut l.up,
                &mut l.down,
            ]
        });
        layers
            .map(|l| &mut l.weights)
            .chain([&mut self.embedding])
            .chain(&mut self.output)
    }
}

struct Reader<'a> {
    tensors: &'a dyn Tensors,
    a: &'a Architecture,
}

impl Reader<'_> {
    fn layer(&self, i: usize) -> Result<Layer> {
        let a = self.a;
        self.tensors.begin(Some(i))?;
        let at = |part: &str| format!("model.layers.{i}.{part}");
        let norm = |part: &str| self.norm(&at(part));
        let linear = |part: &str, bias: bool| self.linear(&at(part), bias);
        Ok(Layer {
            input_norm: norm("input_layernorm")?,
            q: linear("self_attn.q_proj", a.qkv_bias)?,
            k: linear("self_attn.k_proj", a.qkv_bias)?,
            v: linear("self_attn.v_proj", a.qkv_bias)?,
            o: linear("self_attn.o_proj", a.output_bias)?,
            qk_norm: match a.qk_norm {
                true => Some((norm("self_attn.q_norm")?, norm("self_attn.k_norm")?)),
                false => None,
            },
            mlp_norm: norm(if a.sandwich {
                "pre_feedforward_layernorm"
            } else {
                "post_attention_layernorm"
            })?,
            post_norms: match a.sandwich {
                true => Some((
                    norm("post_attention_layernorm")?,
                    norm("post_feedforward_layernorm")?,
                )),
                false => None,
            },
            gate: linear("mlp.gate_proj", a.mlp_bias)?,
            up: linear("mlp.up_proj", a.mlp_bias)?,
            down: linear("mlp.down_proj", a.mlp_bias)?,
        })
    }

    fn linear(&self, name: &str, bias: bool) -> Result<Linear> {
        let weight = format!("{name}.weight");
        Ok(Linear {
            weights: self.tensors.matrix(&weight)?,
            bias: match bias {
                true => Some(self.tensors.vector(&format!("{name}.bias"))?),
                false => None,
            },
            name: weight,
        })
    }

    /// The weights of a norm, with the family's offset added.
    fn norm(&self, name: &str) -> Result<Vec<f32>> {
        let mut weights = self.tensors.vector(&format!("{name}.weight"))?;
        for w in &mut weights {
            *w += self.a.norm_offset;
        }
        Ok(weights)
    }
}
