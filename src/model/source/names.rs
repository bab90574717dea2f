//! The tensors of an architecture by canonical names (those of Hugging Face), and their names in
//! GGUF files.

use crate::model::architecture::Architecture;

/// The use of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A matrix that vectors are multiplied by, which is quantised.
    Matrix,
    /// A norm or a bias, kept as float32.
    Vector,
}

/// A tensor that an architecture needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its canonical name.
    pub name: String,
    /// `[rows, cols]` or `[len]`.
    pub shape: Vec<usize>,
    /// The use of the tensor.
    pub role: Role,
}

/// Every tensor of the architecture, in the order of the layers.
pub(super) fn tensors(a: &Architecture) -> Vec<TensorSpec> {
    let mut list = List(Vec::new());
    let (query, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
    list.matrix("model.embed_tokens.weight", a.vocabulary, a.hidden);
    for i in 0..a.layers {
        let at = |part: &str| format!("model.layers.{i}.{part}");
        list.vector(&at("input_layernorm.weight"), a.hidden);
        for (part, rows, cols, bias) in [
            ("self_attn.q_proj", query, a.hidden, a.qkv_bias),
            ("self_attn.k_proj", kv, a.hidden, a.qkv_bias),
            ("self_attn.v_proj", kv, a.hidden, a.qkv_bias),
            ("self_attn.o_proj", a.hidden, query, a.output_bias),
            ("mlp.gate_proj", a.intermediate, a.hidden, a.mlp_bias),
            ("mlp.up_proj", a.intermediate, a.hidden, a.mlp_bias),
            ("mlp.down_proj", a.hidden, a.intermediate, a.mlp_bias),
        ] {
            list.matrix(&at(&format!("{part}.weight")), rows, cols);
            if bias {
                list.vector(&at(&format!("{part}.bias")), rows);
            }
        }
        if a.qk_norm {
            list.vector(&at("self_attn.q_norm.weight"), a.head_dim);
            list.vector(&at("self_attn.k_norm.weight"), a.head_dim);
        }
        list.vector(&at("post_attention_layernorm.weight"), a.hidden);
        if a.sandwich {
            list.vector(&at("pre_feedforward_layernorm.weight"), a.hidden);
            list.vector(&at("post_feedforward_layernorm.weight"), a.hidden);
        }
    }
    list.vector("model.norm.weight", a.hidden);
    if !a.tied {
        list.matrix("lm_head.weight", a.vocabulary, a.hidden);
    }
    list.0
}

struct List(Vec<TensorSpec>);

impl List {
    fn matrix(&mut self, name: &str, rows: usize, cols: usize) {
        self.push(name, vec![rows, cols], Role::Matrix);
    }

    fn vector(&mut self, name: &str, len: usize) {
        self.push(name, vec![len], Role::Vector);
    }

    fn push(&mut self, name: &str, shape: Vec<usize>, role: Role) {
        self.0.push(TensorSpec {
            name: name.to_owned(),
            shape,
            role,
        });
    }
}

/// The GGUF name for a canonical one. With `sandwich` the norm after attention has a name of its
/// own; otherwise `post_attention_layernorm` is the norm before the feed-forward network.
pub(super) fn gguf(name: &str, sandwich: bool) -> String {
    match name {
        "model.embed_tokens.weight" => return "token_embd.weight".to_owned(),
        "model.norm.weight" => return "output_norm.weight".to_owned(),
        "lm_head.weight" => return "output.weight".to_owned(),
        _ => {}
    }
    let layer = name.strip_prefix("model.layers.").and_then(|rest| {
        let (layer, rest) = rest.split_once('.')?;
        let (part, ending) = rest.rsplit_once('.')?;
        let part = match part {
            "input_layernorm" => "attn_norm",
            "self_attn.q_proj" => "attn_q",
            "self_attn.k_proj" => "attn_k",
            "self_attn.v_proj" => "attn_v",
            "self_attn.o_proj" => "attn_output",
            "self_attn.q_norm" => "attn_q_norm",
            "self_attn.k_norm" => "attn_k_norm",
            "mlp.gate_proj" => "ffn_gate",
            "mlp.up_proj" => "ffn_up",
            "mlp.down_proj" => "ffn_down",
            "post_attention_layernorm" if sandwich => "post_attention_norm",
            "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
            "post_feedforward_layernorm" => "post_ffw_norm",
            _ => return None,
        };
        Some(format!("blk.{layer}.{part}.{ending}"))
    });
    layer.unwrap_or_else(|| name.to_owned())
}
