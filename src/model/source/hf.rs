//! The architecture from `config.json` in the Hugging Face layout, as `transformers` 4 and 5 write
//! it.

use super::fields::{Fields, MOST};
use crate::error::{Error, Result};
use crate::formats::json;
use crate::model::architecture::{Activation, Architecture, Family, Pairing, Rope, RopeScaling};
use crate::model::rope::yarn_attention_factor;

/// The defaults of a family's class in `transformers` for fields that `config.json` lacks.
struct Defaults {
    context: usize,
    /// `None`: the number of query heads.
    kv_heads: Option<usize>,
    /// `None`: the hidden size divided by the number of heads.
    head_dim: Option<usize>,
    /// The width of sliding windows, for classes that have them.
    window: Option<usize>,
    tied: bool,
}

impl Defaults {
    fn of(family: Family) -> Defaults {
        let (context, kv_heads, head_dim, window, tied) = match family {
            Family::Llama => (2048, None, None, None, false),
            Family::Mistral => (131_072, Some(8), None, Some(4096), false),
            Family::Gemma => (8192, Some(16), Some(256), None, true),
            Family::Gemma2 => (8192, Some(4), Some(256), Some(4096), true),
            Family::Qwen2 => (32_768, Some(32), None, Some(4096), false),
            Family::Qwen3 => (32_768, Some(32), Some(128), Some(4096), false),
        };
        Defaults {
            context,
            kv_heads,
            head_dim,
            window,
            tied,
        }
    }
}

/// Reads the architecture from a `config.json`.
pub(super) fn architecture(bytes: &[u8]) -> Result<Architecture> {
    let object = json::object(bytes, "it", |_| true)?;
    let f = Fields::new(&object);
    let family = family(&f)?;
    let gemma = matches!(family, Family::Gemma | Family::Gemma2);
    let default = Defaults::of(family);
    let (layers, hidden) = (
        f.need_count("num_hidden_layers")?,
        f.need_count("hidden_size")?,
    );
    let heads = f.need_count("num_attention_heads")?;
    let kv_heads = match f.count("num_key_value_heads")? {
        Some(n) => n,
        None if f.is_null("num_key_value_heads") => heads,
        None => default.kv_heads.unwrap_or(heads),
    };
    let head_dim = match f.count("head_dim")? {
        Some(d) => d,
        None => default.head_dim.unwrap_or(hidden / heads),
    };
    let context = f
        .count("max_position_embeddings")?
        .unwrap_or(default.context);
    let query_scale = match f.positive("query_pre_attn_scalar")? {
        Some(s) if family == Family::Gemma2 => s.powf(-0.5),
        _ if family == Family::Gemma2 => 256f64.powf(-0.5),
        _ => (head_dim as f64).powf(-0.5),
    };
    let rope = rope(&f, context)?;
    // With these scalings the stated context may be that before the extension, as in Qwen's
    // documentation for YaRN.
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
    // Qwen 2 always has biases on queries, keys and values; Mistral has none, whatever the file
    // says.
    let attention_bias = match family {
        Family::Mistral | Family::Qwen2 => false,
        _ => f.flag("attention_bias")?.unwrap_or(false),
    };
    let architecture = Architecture {
        family,
        layers,
        hidden,
        intermediate: f.need_count("intermediate_size")?,
        vocabulary: f.need_count("vocab_size")?,
        context,
        heads,
        kv_heads,
        head_dim,
        norm_eps: f.positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        norm_offset: if gemma { 1.0 } else { 0.0 },
        activation: activation(&f, family)?,
        rope,
        embedding_scale: if gemma { (hidden as f32).sqrt() } else { 1.0 },
        query_scale: query_scale as f32,
        windows: windows(&f, family, default.window, layers)?,
        attention_softcap: softcap(&f, "attn_logit_softcapping", family, 50.0)?,
        final_softcap: softcap(&f, "final_logit_softcapping", family, 30.0)?,
        qkv_bias: attention_bias || family == Family::Qwen2,
        output_bias: attention_bias,
        mlp_bias: family == Family::Llama && f.flag("mlp_bias")?.unwrap_or(false),
        qk_norm: family == Family::Qwen3,
        sandwich: family == Family::Gemma2,
        tied: f.flag("tie_word_embeddings")?.unwrap_or(default.tied),
    };
    architecture.check()?;
    Ok(architecture)
}

/// The family, by `model_type` as for the Auto classes of `transformers`; by the name of the class
/// only if that is missing.
fn family(f: &Fields<'_>) -> Result<Family> {
    let class = f.texts("architectures")?.and_then(|a| a.first().copied());
    let named = f.text("model_type")?;
    let of_class = |family: &Family| {
        class
            .and_then(|c| c.strip_suffix("ForCausalLM"))
            .is_some_and(|c| c.eq_ignore_ascii_case(family.name()))
    };
    let mut families = Family::ALL.into_iter();
    match named {
        Some(name) => families.find(|family| family.name() == name),
        None => families.find(of_class),
    }
    .ok_or_else(|| super::super::architecture::unsupported(named.or(class).unwrap_or("none")))
}

fn activation(f: &Fields<'_>, family: Family) -> Result<Activation> {
    let key = match family {
        Family::Gemma2 => "hidden_activation",
        _ => "hidden_act",
    };
    Activation::of(match (family, f.text(key)?) {
        // The first files of Gemma say "gelu" and mean its tanh approximation.
        (Family::Gemma, None | Some("gelu")) | (Family::Gemma2, None) => "gelu_pytorch_tanh",
        (_, None) => "silu",
        (_, Some(name)) => name,
    })
}

fn softcap(f: &Fields<'_>, key: &str, family: Family, default: f64) -> Result<Option<f32>> {
    // An absent field means the default of the class; null means none.
    if family != Family::Gemma2 || f.is_null(key) {
        return Ok(None);
    }
    Ok(Some(f.positive(key)?.unwrap_or(default) as f32))
}

/// The window of each layer. `default` is the width if the file has none. A null width means that
/// no layer has a sliding window.
fn windows(
    f: &Fields<'_>,
    family: Family,
    default: Option<usize>,
    layers: usize,
) -> Result<Vec<Option<usize>>> {
    let width = match f.count("sliding_window")? {
        None if f.is_null("sliding_window") => None,
        width => width.or(default),
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
    // The other classes ignore this field.
    let types = match family {
        Family::Gemma2 | Family::Qwen2 | Family::Qwen3 => f.texts("layer_types")?,
        _ => None,
    };
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

/// `transformers` 5 has everything in `rope_parameters`, 4 had `rope_scaling` and `rope_theta`. If
/// both are present, the older object takes precedence, including the base in it.
fn rope(f: &Fields<'_>, context: usize) -> Result<Rope> {
    let parameters = match f.object("rope_scaling")? {
        Some(older) if !older.is_empty() => Some(older),
        _ => f.object("rope_parameters")?,
    };
    let theta = match &parameters {
        Some(p) => p.positive("rope_theta")?,
        None => None,
    };
    let theta = match theta {
        Some(theta) => theta,
        None => f.positive("rope_theta")?.unwrap_or(10000.0),
    };
    let scaling = match &parameters {
        None => RopeScaling::None,
        Some(p) => scaling_of(p, f, context)?,
    };
    Ok(Rope {
        theta,
        scaling,
        pairing: Pairing::Halves,
    })
}

fn scaling_of(s: &Fields<'_>, f: &Fields<'_>, context: usize) -> Result<RopeScaling> {
    for kind in ["full_attention", "sliding_attention"] {
        if s.object(kind)?.is_some() {
            return Err(Error::unsupported(format!(
                "{} for each kind of layer; one for all layers is supported",
                s.name(kind)
            )));
        }
    }
    let kind = match s.text("rope_type")? {
        Some(kind) => kind,
        None => s.text("type")?.unwrap_or("default"),
    };
    // The field beside the object takes precedence over the one inside it.
    let original_context = match f.count("original_max_position_embeddings")? {
        Some(n) => n,
        None => s
            .count("original_max_position_embeddings")?
            .unwrap_or(context),
    };
    Ok(match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear {
            factor: s.need_positive("factor")?,
        },
        // The frequencies follow the length of the sequence once it exceeds the whole context.
        "dynamic" => RopeScaling::Dynamic {
            factor: s.need_positive("factor")?,
            original_context: context,
        },
        "yarn" => {
            let factor = match s.positive("factor")? {
                None if s.is_null("factor") => context as f64 / original_context as f64,
                None => s.need_positive("factor")?,
                Some(factor) => factor,
            };
            // `transformers` treats 0 as absent here.
            let scales = (
                s.not_negative("mscale")?.filter(|m| *m > 0.0),
                s.not_negative("mscale_all_dim")?.filter(|m| *m > 0.0),
            );
            let beta = |key: &str, default: f64| -> Result<f64> {
                Ok(s.not_negative(key)?.filter(|b| *b > 0.0).unwrap_or(default))
            };
            RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast: beta("beta_fast", 32.0)?,
                beta_slow: beta("beta_slow", 1.0)?,
                attention_factor: match (s.positive("attention_factor")?, scales) {
                    (None, (Some(scale), Some(of_all))) => Some(
                        yarn_attention_factor(factor, scale)
                            / yarn_attention_factor(factor, of_all),
                    ),
                    (given, _) => given,
                },
                truncate: s.flag("truncate")?.unwrap_or(true),
            }
        }
        "llama3" => RopeScaling::Llama3 {
            factor: s.need_positive("factor")?,
            low_freq_factor: s.need_positive("low_freq_factor")?,
            high_freq_factor: s.need_positive("high_freq_factor")?,
            original_context,
        },
        other => {
            return Err(Error::unsupported(format!(
                "rotary scaling {other:?}; default, linear, dynamic, yarn and llama3 are known"
            )));
        }
    })
}
