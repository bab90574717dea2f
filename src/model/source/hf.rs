//! `config.json` of the Hugging Face layout, as `transformers` 4 and 5 write it.

use serde_json::{Map, Value};

use super::fields::{Fields, MOST};
use crate::error::{Error, Result};
use crate::formats::limits;
use crate::model::architecture::{Activation, Architecture, Family, Pairing, Rope, RopeScaling};
use crate::model::rope::yarn_attention_factor;

/// Reads the architecture out of a `config.json`.
pub(super) fn architecture(bytes: &[u8]) -> Result<Architecture> {
    if bytes.len() as u64 > limits::JSON_BYTES {
        return Err(Error::format(format!("it has {} bytes", bytes.len())));
    }
    let object: Map<String, Value> = serde_json::from_slice(bytes)
        .map_err(|e| Error::format(format!("it is not a JSON object: {e}")))?;
    let f = Fields::new(&object);
    let family = family(&f)?;
    let gemma = matches!(family, Family::Gemma | Family::Gemma2);
    let (layers, hidden) = (
        f.need_count("num_hidden_layers")?,
        f.need_count("hidden_size")?,
    );
    let heads = f.need_count("num_attention_heads")?;
    let head_dim = match f.count("head_dim")? {
        Some(d) => d,
        // What their classes in `transformers` have for a default.
        None if gemma => 256,
        None if family == Family::Qwen3 => 128,
        None => hidden / heads,
    };
    let context = f.need_count("max_position_embeddings")?;
    let query_scale = match f.positive("query_pre_attn_scalar")? {
        Some(s) if family == Family::Gemma2 => s.powf(-0.5),
        _ if family == Family::Gemma2 => 256f64.powf(-0.5),
        _ => (head_dim as f64).powf(-0.5),
    };
    let rope = rope(&f, context)?;
    // What is said of these may be of the model before it was stretched, as Qwen's documentation does it for YaRN.
    let stretched = |from: usize, factor: f64| ((from as f64 * factor) as usize).min(MOST);
    let context = match rope.scaling {
        RopeScaling::Dynamic { factor, .. } => stretched(context, factor),
        RopeScaling::Yarn {
            factor,
            original_context,
            ..
        } => context.max(stretched(original_context, factor)),
        _ => context,
    };
    let attention_bias = f.flag("attention_bias")?.unwrap_or(false);
    let architecture = Architecture {
        family,
        layers,
        hidden,
        intermediate: f.need_count("intermediate_size")?,
        vocabulary: f.need_count("vocab_size")?,
        context,
        heads,
        kv_heads: f.count("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        norm_eps: f.positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        norm_offset: if gemma { 1.0 } else { 0.0 },
        activation: activation(&f, gemma)?,
        rope,
        embedding_scale: if gemma { (hidden as f32).sqrt() } else { 1.0 },
        query_scale: query_scale as f32,
        windows: windows(&f, family, layers)?,
        attention_softcap: softcap(&f, "attn_logit_softcapping", family, 50.0)?,
        final_softcap: softcap(&f, "final_logit_softcapping", family, 30.0)?,
        qkv_bias: attention_bias || family == Family::Qwen2,
        output_bias: attention_bias && family != Family::Qwen2,
        mlp_bias: f.flag("mlp_bias")?.unwrap_or(false),
        qk_norm: family == Family::Qwen3,
        sandwich: family == Family::Gemma2,
        tied: f.flag("tie_word_embeddings")?.unwrap_or(gemma),
    };
    architecture.check()?;
    Ok(architecture)
}

fn family(f: &Fields<'_>) -> Result<Family> {
    let class = f.texts("architectures")?.and_then(|a| a.first().copied());
    let class = class.or(f.text("model_type")?).unwrap_or("none");
    Family::ALL
        .into_iter()
        .find(|family| {
            let name = family.name();
            class == name
                || class
                    .strip_suffix("ForCausalLM")
                    .is_some_and(|c| c.eq_ignore_ascii_case(name))
        })
        .ok_or_else(|| super::super::architecture::unsupported(class))
}

fn activation(f: &Fields<'_>, gemma: bool) -> Result<Activation> {
    // Gemma's first files said "gelu" in `hidden_act` and meant its tanh formula.
    let name = match f.text("hidden_activation")? {
        Some(name) => name,
        None if gemma => "gelu_pytorch_tanh",
        None => f.text("hidden_act")?.unwrap_or("silu"),
    };
    Activation::of(name)
}

fn softcap(f: &Fields<'_>, key: &str, family: Family, default: f64) -> Result<Option<f32>> {
    // Absent is the default of the class; null is none.
    if family != Family::Gemma2 || f.is_null(key) {
        return Ok(None);
    }
    Ok(Some(f.positive(key)?.unwrap_or(default) as f32))
}

/// What each layer sees.
fn windows(f: &Fields<'_>, family: Family, layers: usize) -> Result<Vec<Option<usize>>> {
    let width = match (family, f.count("sliding_window")?) {
        (Family::Gemma2, None) => Some(4096),
        (_, width) => width,
    };
    let slides = |layer: usize| -> Result<bool> {
        Ok(match family {
            Family::Llama | Family::Gemma => false,
            Family::Mistral => true,
            Family::Gemma2 => layer.is_multiple_of(2),
            Family::Qwen2 | Family::Qwen3 => {
                f.flag("use_sliding_window")?.unwrap_or(false)
                    && layer >= f.natural("max_window_layers")?.unwrap_or(28)
            }
        })
    };
    let types = f.texts("layer_types")?;
    if let Some(types) = &types
        && types.len() != layers
    {
        return Err(Error::format(format!(
            "layer_types has {} entries, expected num_hidden_layers = {layers}",
            types.len()
        )));
    }
    (0..layers)
        .map(|layer| {
            let slides = match types.as_ref().map(|t| t[layer]) {
                None => slides(layer)?,
                Some("sliding_attention") => true,
                Some("full_attention") => false,
                Some(other) => {
                    return Err(Error::unsupported(format!(
                        "layer_types has {other:?}; sliding_attention and full_attention are known"
                    )));
                }
            };
            Ok(width.filter(|_| slides))
        })
        .collect()
}

fn rope(f: &Fields<'_>, context: usize) -> Result<Rope> {
    // `transformers` 5 puts everything in one object.
    let parameters = f.object("rope_parameters")?;
    let scaling = match &parameters {
        Some(p) => Some(p),
        None => None,
    };
    let older = f.object("rope_scaling")?;
    let s = scaling.or(older.as_ref());
    let theta = match &parameters {
        Some(p) => p.positive("rope_theta")?,
        None => None,
    };
    let theta = match theta {
        Some(theta) => theta,
        None => f.positive("rope_theta")?.unwrap_or(10000.0),
    };
    let scaling = match s {
        None => RopeScaling::None,
        Some(s) => scaling_of(s, f, context)?,
    };
    Ok(Rope {
        theta,
        scaling,
        pairing: Pairing::Halves,
    })
}

fn scaling_of(s: &Fields<'_>, f: &Fields<'_>, context: usize) -> Result<RopeScaling> {
    let kind = match s.text("rope_type")? {
        Some(kind) => kind,
        None => s.text("type")?.unwrap_or("default"),
    };
    let original = match s.count("original_max_position_embeddings")? {
        Some(n) => Some(n),
        None => f.count("original_max_position_embeddings")?,
    };
    let original_context = original.unwrap_or(context);
    Ok(match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear {
            factor: s.need_positive("factor")?,
        },
        "dynamic" => RopeScaling::Dynamic {
            factor: s.need_positive("factor")?,
            original_context,
        },
        "yarn" => {
            let factor = s.need_positive("factor")?;
            let scales = (s.positive("mscale")?, s.positive("mscale_all_dim")?);
            RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast: s.positive("beta_fast")?.unwrap_or(32.0),
                beta_slow: s.positive("beta_slow")?.unwrap_or(1.0),
                attention_factor: match (s.positive("attention_factor")?, scales) {
                    (None, (Some(scale), Some(of_all))) => Some(
                        yarn_attention_factor(factor, scale)
                            / yarn_attention_factor(factor, of_all),
                    ),
                    (given, _) => given,
                },
            }
        }
        "llama3" => RopeScaling::Llama3 {
            factor: s.need_positive("factor")?,
            low_freq_factor: s.need_positive("low_freq_factor")?,
            high_freq_factor: s.need_positive("high_freq_factor")?,
            original_context: original.ok_or_else(|| {
                Error::format("rope_scaling.original_max_position_embeddings is missing")
            })?,
        },
        other => {
            return Err(Error::unsupported(format!(
                "rotary scaling {other:?}; default, linear, dynamic, yarn and llama3 are known"
            )));
        }
    })
}
