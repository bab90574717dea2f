//! What a decoder-only transformer computes, as plain data. It is read from a `config.json`, the
//! metadata of a GGUF file or a manifest, and the forward pass depends on nothing else.
//!
//! Names and conventions are those of Hugging Face `transformers`. A layer is
//!
//! ```text
//! a = norm(x, input_layernorm)
//! q, k, v = W_q a, W_k a, W_v a  (+ biases; norm of each head with qk_norm; then rotary embedding)
//! x = x + [norm] W_o attention(q, k, v)
//! b = norm(x, post_attention_layernorm; with `sandwich` pre_feedforward_layernorm)
//! x = x + [norm] W_down (act(W_gate b) * W_up b)
//! ```
//!
//! where `[norm]` is present with `sandwich` only.

use crate::error::{Error, Result};

/// The supported model families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 1 to 3, Code Llama, TinyLlama, DeepSeek's distillations of Llama.
    Llama,
    /// Mistral: Llama with a sliding window.
    Mistral,
    /// Gemma 1.
    Gemma,
    /// Gemma 2.
    Gemma2,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3 (dense).
    Qwen3,
}

/// The gate of the feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`: SwiGLU.
    Silu,
    /// Gaussian error linear unit, tanh approximation: GeGLU.
    GeluTanh,
}

/// Which two elements of a head the rotary embedding rotates as a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// `i` and `i + head_dim/2`: Hugging Face.
    Halves,
    /// `2i` and `2i + 1`: GGUF files of Llama and Mistral, whose query and key rows are permuted to
    /// match.
    Neighbours,
}

/// How the rotary embedding is extended to contexts longer than the one trained on.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// No scaling.
    None,
    /// Positions are divided by the factor.
    Linear {
        /// The ratio of the extended context to the original one.
        factor: f64,
    },
    /// NTK-aware: the base grows once a sequence is longer than `original_context`.
    Dynamic {
        /// The ratio of the extended context to the original one.
        factor: f64,
        /// The context trained on, in tokens.
        original_context: usize,
    },
    /// YaRN: high frequencies unchanged, low ones divided, and the attention logits sharpened.
    Yarn {
        /// The ratio of the extended context to the original one.
        factor: f64,
        /// The context trained on, in tokens.
        original_context: usize,
        /// Frequencies with more rotations than this over the original context are unchanged.
        beta_fast: f64,
        /// Frequencies with fewer rotations than this are divided by the factor.
        beta_slow: f64,
        /// The factor on cosines and sines; `None` means `0.1 ln(factor) + 1`.
        attention_factor: Option<f64>,
        /// Whether the two ends of the ramp between `beta_fast` and `beta_slow` are rounded
        /// outwards to whole pairs.
        truncate: bool,
    },
    /// Llama 3: low frequencies divided, high ones unchanged, interpolated smoothly in between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths beyond `original_context / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are unchanged.
        high_freq_factor: f64,
        /// The context trained on, in tokens.
        original_context: usize,
    },
    /// A divisor for each frequency (`rope_freqs.weight` of GGUF files): `(head_dim/2)`.
    Divisors(Vec<f32>),
}

/// The rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// The base of the frequencies: `theta^(-2i/head_dim)`.
    pub theta: f64,
    /// The scaling to longer contexts.
    pub scaling: RopeScaling,
    /// Which elements form a pair.
    pub pairing: Pairing,
}

/// A decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// The family; everything that it determines is in the fields below.
    pub family: Family,
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward network.
    pub intermediate: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// The longest supported context, in tokens.
    pub context: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Added to the mean square in a norm.
    pub norm_eps: f32,
    /// Added to the weights of every norm: 1 for Gemma in the Hugging Face layout, else 0.
    pub norm_offset: f32,
    /// The activation of the gate.
    pub activation: Activation,
    /// The rotary embedding.
    pub rope: Rope,
    /// The factor on embeddings: `sqrt(hidden)` for Gemma, else 1.
    pub embedding_scale: f32,
    /// The factor on dot products of queries and keys, usually `1/sqrt(head_dim)`.
    pub query_scale: f32,
    /// For each layer the number of positions it attends to, the current one included; `None`: all.
    /// `(layers)`
    pub windows: Vec<Option<usize>>,
    /// `cap * tanh(score / cap)` on attention scores.
    pub attention_softcap: Option<f32>,
    /// The same on logits.
    pub final_softcap: Option<f32>,
    /// Biases on queries, keys and values.
    pub qkv_bias: bool,
    /// A bias on the output of attention.
    pub output_bias: bool,
    /// Biases in the feed-forward network.
    pub mlp_bias: bool,
    /// A norm on each head of queries and keys, before the rotary embedding.
    pub qk_norm: bool,
    /// Additional norms after attention and after the feed-forward network (Gemma 2).
    pub sandwich: bool,
    /// Whether the output matrix is the embedding.
    pub tied: bool,
}

impl Family {
    /// Every family.
    pub const ALL: [Family; 6] = [
        Family::Llama,
        Family::Mistral,
        Family::Gemma,
        Family::Gemma2,
        Family::Qwen2,
        Family::Qwen3,
    ];

    /// The name in configurations, GGUF files and manifests.
    pub fn name(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Gemma => "gemma",
            Family::Gemma2 => "gemma2",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
        }
    }
}

impl Activation {
    /// The activation with this name in `transformers`.
    ///
    /// # Errors
    /// `ERR_UNSUPPORTED` for any other name.
    pub fn of(name: &str) -> Result<Activation> {
        match name {
            "silu" | "swish" | "swiglu" => Ok(Activation::Silu),
            "gelu_pytorch_tanh" | "gelu_new" | "gelu_tanh" => Ok(Activation::GeluTanh),
            _ => Err(Error::unsupported(format!(
                "activation {name:?}; silu and gelu_pytorch_tanh are known"
            ))),
        }
    }

    /// The name in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Silu => "swiglu",
            Activation::GeluTanh => "gelu_tanh",
        }
    }
}

/// The `ERR_UNSUPPORTED` for an unknown architecture, listing the known ones.
pub fn unsupported(found: &str) -> Error {
    const SHOWN: usize = 60;
    let known: Vec<&str> = Family::ALL.iter().map(|f| f.name()).collect();
    let found = &found[..found.floor_char_boundary(SHOWN)];
    Error::unsupported(format!(
        "the architecture is {found:?}; supported are {}",
        known.join(", ")
    ))
}

impl Architecture {
    /// What this architecture computes beyond a plain Llama, if anything, for forward passes that
    /// implement only that. Windows, which matter only for texts longer than they are, and the
    /// embedding scale are not considered.
    pub fn beyond_plain_llama(&self) -> Option<&'static str> {
        let more = [
            (self.qkv_bias || self.output_bias || self.mlp_bias, "biases"),
            (self.qk_norm, "norms of heads"),
            (self.sandwich, "norms behind products"),
            (
                self.attention_softcap.is_some() || self.final_softcap.is_some(),
                "soft caps",
            ),
            (
                self.activation != Activation::Silu,
                "another gate than SiLU",
            ),
            (self.norm_offset != 0.0, "norms with an offset"),
            (
                self.rope.scaling != RopeScaling::None,
                "a stretched rotary embedding",
            ),
        ];
        more.into_iter().find(|(has, _)| *has).map(|(_, what)| what)
    }

    /// Checks that the numbers are consistent.
    ///
    /// # Errors
    /// `ERR_FORMAT`, naming the inconsistent ones; `ERR_UNSUPPORTED` for heads that are too wide.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::format(what));
        if self.vocabulary == 0 || self.vocabulary > MOST_VOCABULARY {
            return wrong(format!(
                "a vocabulary of {}, expected 1 to {MOST_VOCABULARY}",
                self.vocabulary
            ));
        }
        if self.norm_eps.is_nan() || self.norm_eps <= 0.0 {
            return wrong(format!(
                "the epsilon of norms is {}, expected a float32 above 0",
                self.norm_eps
            ));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return wrong(format!(
                "{} query heads cannot share {} key/value heads",
                self.heads, self.kv_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) || self.head_dim == 0 {
            return wrong(format!(
                "a head has {} elements, an even number was expected",
                self.head_dim
            ));
        }
        if self.head_dim > MOST_HEAD_DIM {
            return Err(Error::unsupported(format!(
                "heads of {} elements, at most {MOST_HEAD_DIM} are supported",
                self.head_dim
            )));
        }
        if self.layers > MOST_LAYERS {
            return wrong(format!(
                "{} layers, at most {MOST_LAYERS} were expected",
                self.layers
            ));
        }
        for (what, width) in [
            ("query heads", self.heads),
            ("key/value heads", self.kv_heads),
        ] {
            if width.saturating_mul(self.head_dim) > MOST_WIDTH {
                return wrong(format!("{width} {what} of {} elements", self.head_dim));
            }
        }
        if let RopeScaling::Divisors(d) = &self.rope.scaling
            && (d.len() != self.head_dim / 2 || d.iter().any(|d| !(d.is_finite() && *d > 0.0)))
        {
            return wrong(format!(
                "{} divisors of frequencies, expected {} numbers above 0",
                d.len(),
                self.head_dim / 2
            ));
        }
        if self.windows.len() != self.layers {
            return wrong(format!(
                "{} windows for {} layers",
                self.windows.len(),
                self.layers
            ));
        }
        // A session tracks which positions the ring buffers have overwritten for a single window
        // size.
        let mut widths = self.windows.iter().flatten();
        if let Some(first) = widths.next()
            && let Some(other) = widths.find(|w| *w != first)
        {
            return wrong(format!(
                "sliding windows of {first} and {other}, expected one width"
            ));
        }
        Ok(())
    }
}

/// The largest supported head width; models have 64 to 256.
pub const MOST_HEAD_DIM: usize = 1024;

/// Far above real models: the deepest have some 130 layers.
const MOST_LAYERS: usize = 1 << 12;

/// Elements of all heads together; far above real models.
const MOST_WIDTH: usize = 1 << 24;

/// The most tokens of a vocabulary.
const MOST_VOCABULARY: usize = 1 << 24;
