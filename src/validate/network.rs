//! A transformer as plain floats, by canonical names: a single synthetic layer, or a model that was
//! read.

use std::collections::BTreeMap;

use super::numbers::Numbers;
use crate::error::{Error, Result};
use crate::formats::MatrixView;
use crate::matmul;
use crate::memory;
use crate::model::architecture::{Activation, Architecture, Family, Pairing, Rope, RopeScaling};
use crate::model::source::{Role, Source};
use crate::runtime::Runtime;

/// The embedding matrix.
pub const EMBEDDING: &str = "model.embed_tokens.weight";

/// The largest model, in bytes as float32: several forms of it are in memory at once.
pub const MOST_BYTES: u64 = 1 << 30;

/// A matrix `(rows, cols)`.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// `(rows, cols)`, row-major.
    pub values: Vec<f32>,
    /// Columns per scale if the matrix was quantised, which determine the blocks of int8
    /// activations. `None`: floats, whose activations are floats.
    pub group: Option<usize>,
}

/// A plain Llama in float32.
#[derive(Clone, Debug)]
pub struct Network {
    /// Its architecture.
    pub architecture: Architecture,
    /// By canonical name, such as `model.layers.0.mlp.up_proj.weight`.
    pub matrices: BTreeMap<String, Matrix>,
    /// Norms `(hidden)`, by canonical name.
    pub vectors: BTreeMap<String, Vec<f32>>,
}

/// The number of tokens that the synthetic layer reads.
pub const TOKENS: usize = 32;

/// The width of the synthetic layer: 4 heads of 32, where two share a key/value head; a
/// feed-forward network of twice the width.
const HIDDEN: usize = 128;

impl Network {
    /// The synthetic layer, with the same numbers everywhere. The embedding of each token is a
    /// random vector; the output matrix is the identity, so that the logits are the output of the
    /// last norm.
    pub fn one_layer() -> Network {
        let (heads, kv_heads, intermediate) = (4, 2, 2 * HIDDEN);
        let architecture = Architecture {
            family: Family::Llama,
            layers: 1,
            hidden: HIDDEN,
            intermediate,
            vocabulary: HIDDEN,
            context: TOKENS,
            heads,
            kv_heads,
            head_dim: HIDDEN / heads,
            norm_eps: 1e-5,
            norm_offset: 0.0,
            activation: Activation::Silu,
            rope: Rope {
                theta: 10000.0,
                scaling: RopeScaling::None,
                pairing: Pairing::Halves,
            },
            embedding_scale: 1.0,
            query_scale: 1.0 / ((HIDDEN / heads) as f32).sqrt(),
            windows: vec![None],
            attention_softcap: None,
            final_softcap: None,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            qk_norm: false,
            sandwich: false,
            tied: false,
        };
        let mut numbers = Numbers::new(3);
        // Outputs of a product with normal inputs are then standard normal.
        let mut matrix = |rows: usize, cols: usize, scale: f64| Matrix {
            rows,
            cols,
            values: numbers.normals(rows * cols, scale),
            group: None,
        };
        let unit = |cols: usize| 1.0 / (cols as f64).sqrt();
        let kv = HIDDEN * kv_heads / heads;
        let mut matrices = BTreeMap::from([(EMBEDDING.to_owned(), matrix(HIDDEN, HIDDEN, 1.0))]);
        for (part, rows, cols) in [
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.k_proj", kv, HIDDEN),
            ("self_attn.v_proj", kv, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("mlp.gate_proj", intermediate, HIDDEN),
            ("mlp.up_proj", intermediate, HIDDEN),
            ("mlp.down_proj", HIDDEN, intermediate),
        ] {
            matrices.insert(
                format!("model.layers.0.{part}.weight"),
                matrix(rows, cols, unit(cols)),
            );
        }
        let mut one = vec![0.0; HIDDEN * HIDDEN];
        one.iter_mut().step_by(HIDDEN + 1).for_each(|v| *v = 1.0);
        matrices.insert(
            "lm_head.weight".to_owned(),
            Matrix {
                rows: HIDDEN,
                cols: HIDDEN,
                values: one,
                group: None,
            },
        );
        let norms = [
            "model.layers.0.input_layernorm.weight",
            "model.layers.0.post_attention_layernorm.weight",
            "model.norm.weight",
        ];
        Network {
            architecture,
            matrices,
            vectors: norms
                .map(|name| (name.to_owned(), vec![1.0; HIDDEN]))
                .into(),
        }
    }

    /// Checks that [`Network::read`] supports a model, without reading its tensors.
    ///
    /// # Errors
    /// `ERR_UNSUPPORTED` for one of more than [`MOST_BYTES`], and for what [`super::forward`] does
    /// not compute.
    pub fn accepts(source: &Source) -> Result<()> {
        let specs = source.tensors();
        let bytes: u64 = specs
            .iter()
            .map(|s| 4 * s.shape.iter().map(|&n| n as u64).product::<u64>())
            .sum();
        if bytes > MOST_BYTES {
            return Err(Error::unsupported(format!(
                "the model has {} MiB as float32, at most {} are validated layer by layer: apl-ffi compare takes any size",
                bytes >> 20,
                MOST_BYTES >> 20
            )));
        }
        check(source.architecture())
    }

    /// Reads a model on disk; quantised matrices are dequantised.
    ///
    /// # Errors
    /// `ERR_UNSUPPORTED` for one of more than [`MOST_BYTES`], and for what else
    /// [`Network::accepts`] refuses; those of the files.
    pub fn read(rt: &Runtime, source: &Source) -> Result<Network> {
        Network::accepts(source)?;
        let specs = source.tensors();
        let mut network = Network {
            architecture: source.architecture().clone(),
            matrices: BTreeMap::new(),
            vectors: BTreeMap::new(),
        };
        for spec in specs {
            match spec.role {
                Role::Vector => {
                    let vector = source.vector(&spec.name)?;
                    network.vectors.insert(spec.name, vector);
                }
                Role::Matrix => {
                    let matrix = floats(rt, source.matrix(&spec.name)?)?;
                    network.matrices.insert(spec.name, matrix);
                }
            }
        }
        Ok(network)
    }

    /// The name of the matrix that computes logits.
    pub fn output(&self) -> &'static str {
        match self.architecture.tied {
            true => EMBEDDING,
            false => "lm_head.weight",
        }
    }

    /// The matrix whose input is the output of layer `i`: the query matrix of the next layer, or
    /// that of the logits.
    pub fn reader_of(&self, i: usize) -> String {
        match i + 1 < self.architecture.layers {
            true => format!("model.layers.{}.self_attn.q_proj.weight", i + 1),
            false => self.output().to_owned(),
        }
    }
}

/// Checks that it is what [`super::forward`] computes: Llama, and Mistral within its window.
///
/// # Errors
/// `ERR_UNSUPPORTED`, naming what it has in addition.
fn check(a: &Architecture) -> Result<()> {
    match a.beyond_plain_llama() {
        Some(what) => Err(Error::unsupported(format!(
            "a model of family {} with {what} is not validated layer by layer, plain Llama is: apl-ffi compare takes any",
            a.family.name()
        ))),
        None => Ok(()),
    }
}

/// A matrix of a file as float32.
fn floats(rt: &Runtime, view: MatrixView<'_>) -> Result<Matrix> {
    let (rows, cols) = view.shape();
    let values = match view {
        MatrixView::Floats(view) => view.to_f32()?.into_owned(),
        MatrixView::Codes(view) => {
            let mut w = memory::filled(rows * cols, 0.0, "a matrix as float32")?;
            matmul::dequantize(rt, &view.as_codes(), &mut w)?;
            w
        }
    };
    if let Some(i) = values.iter().position(|v| !v.is_finite()) {
        return Err(Error::format(format!(
            "weight {i} is {}, expected a finite number",
            values[i]
        )));
    }
    Ok(Matrix {
        rows,
        cols,
        values,
        group: None,
    })
}
