//! The `architecture` object of our own manifest, reading and writing.
//!
//! Fields in the format's example keep their names. Those that it lacks (scaling of the rotary
//! embedding, windows of single layers, biases, soft caps) have keys of their own, each absent
//! where it does not apply. See `docs/manifest.md`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::fields::Fields;
use crate::error::{Error, Result};
use crate::formats::json;
use crate::members::shortest;
use crate::model::architecture::{
    self, Activation, Architecture, Family, Pairing, Rope, RopeScaling,
};

#[derive(Deserialize)]
struct Mark {
    #[serde(rename = "format_version")]
    _version: u64,
    #[serde(rename = "weights")]
    _weights: serde::de::IgnoredAny,
}

/// Whether a JSON text is a manifest.
pub(super) fn is_manifest(text: &[u8]) -> bool {
    serde_json::from_slice::<Mark>(text).is_ok()
}

/// Reads the architecture from a manifest.
pub(super) fn architecture(bytes: &[u8]) -> Result<Architecture> {
    // Its thousands of weights are skipped.
    let root = json::object(bytes, "the manifest", |key| {
        matches!(key, "model" | "architecture")
    })?;
    let described = match root.get("architecture") {
        Some(Value::Object(described)) => described,
        None | Some(Value::Null) => {
            return Err(Error::unsupported(
                "a manifest of weights without an architecture is not a model",
            ));
        }
        Some(_) => return Err(Error::format("architecture is not an object")),
    };
    let name = match Fields::new(&root).object("model")? {
        Some(model) => model.text("primary_family")?,
        None => None,
    };
    let name = name.ok_or_else(|| Error::format("model.primary_family is missing"))?;
    let family = Family::ALL.into_iter().find(|f| f.name() == name);
    let family = family.ok_or_else(|| architecture::unsupported(name))?;
    read(family, &Fields::new(described)).map_err(|e| e.within("architecture"))
}

fn read(family: Family, f: &Fields<'_>) -> Result<Architecture> {
    let attention = f.need_object("attention")?;
    known(f, "norm", &["rmsnorm"])?;
    known(&attention, "variant", &["mha", "gqa", "mqa"])?;
    let (layers, hidden) = (f.need_count("num_layers")?, f.need_count("hidden_size")?);
    let heads = attention.need_count("num_heads")?;
    let head_dim = attention.count("head_dim")?.unwrap_or(hidden / heads);
    let flag = |f: &Fields<'_>, key: &str| Ok::<bool, Error>(f.flag(key)?.unwrap_or(false));
    let number = |f: &Fields<'_>, key: &str, default: f64| {
        Ok::<f32, Error>(f.positive(key)?.unwrap_or(default) as f32)
    };
    let architecture = Architecture {
        family,
        layers,
        hidden,
        intermediate: f.need_count("intermediate_size")?,
        vocabulary: f.need_count("vocab_size")?,
        context: f.need_count("context_length")?,
        heads,
        kv_heads: attention.count("kv_groups")?.unwrap_or(heads),
        head_dim,
        norm_eps: number(f, "norm_eps", 1e-6)?,
        norm_offset: if flag(f, "norm_plus_one")? { 1.0 } else { 0.0 },
        activation: Activation::of(f.text("activation")?.unwrap_or("swiglu"))?,
        rope: rope(f)?,
        embedding_scale: number(f, "embedding_scale", 1.0)?,
        query_scale: number(&attention, "query_scale", (head_dim as f64).powf(-0.5))?,
        windows: windows(&attention, layers)?,
        attention_softcap: attention.positive("softcap")?.map(|c| c as f32),
        final_softcap: f.positive("final_softcap")?.map(|c| c as f32),
        qkv_bias: flag(&attention, "qkv_bias")?,
        output_bias: flag(&attention, "output_bias")?,
        mlp_bias: flag(f, "mlp_bias")?,
        qk_norm: flag(&attention, "qk_norm")?,
        sandwich: flag(f, "sandwich_norms")?,
        tied: flag(f, "tie_word_embeddings")?,
    };
    architecture.check()?;
    Ok(architecture)
}

/// `ERR_UNSUPPORTED` for a field that names something other than what is computed.
fn known(f: &Fields<'_>, key: &str, names: &[&str]) -> Result<()> {
    match f.text(key)? {
        Some(name) if !names.contains(&name) => Err(Error::unsupported(format!(
            "{} is {name:?}; {} is supported",
            f.name(key),
            names.join(", ")
        ))),
        _ => Ok(()),
    }
}

/// `window_size` applies to the layers listed in `window_layers`, or to all.
fn windows(attention: &Fields<'_>, layers: usize) -> Result<Vec<Option<usize>>> {
    let width = attention.count("window_size")?;
    let Some(listed) = attention.list("window_layers")? else {
        return Ok(vec![width; layers]);
    };
    let mut windows = vec![None; layers];
    for layer in listed {
        let slot = layer
            .as_u64()
            .and_then(|i| windows.get_mut(usize::try_from(i).ok()?));
        *slot.ok_or_else(|| {
            Error::format(format!("window_layers has {layer} of {layers} layers"))
        })? = width;
    }
    Ok(windows)
}

fn rope(f: &Fields<'_>) -> Result<Rope> {
    let Some(r) = f.object("rope")? else {
        return Ok(Rope {
            theta: 10000.0,
            scaling: RopeScaling::None,
            pairing: Pairing::Halves,
        });
    };
    let scaling = match (r.object("scaling")?, r.positive("scale")?) {
        (Some(s), _) => scaling(&s)?,
        (None, Some(factor)) if factor != 1.0 => RopeScaling::Linear { factor },
        (None, _) => RopeScaling::None,
    };
    let pairing = match r.text("pairing")?.unwrap_or("halves") {
        "halves" => Pairing::Halves,
        "neighbours" => Pairing::Neighbours,
        other => {
            return Err(Error::format(format!(
                "rope.pairing is {other:?}, expected halves or neighbours"
            )));
        }
    };
    Ok(Rope {
        theta: r.positive("base_theta")?.unwrap_or(10000.0),
        scaling,
        pairing,
    })
}

fn scaling(s: &Fields<'_>) -> Result<RopeScaling> {
    Ok(match s.text("type")?.unwrap_or("none") {
        "none" => RopeScaling::None,
        "linear" => RopeScaling::Linear {
            factor: s.need_positive("factor")?,
        },
        "dynamic" => RopeScaling::Dynamic {
            factor: s.need_positive("factor")?,
            original_context: s.need_count("original_context")?,
        },
        "yarn" => RopeScaling::Yarn {
            factor: s.need_positive("factor")?,
            original_context: s.need_count("original_context")?,
            beta_fast: s.need_positive("beta_fast")?,
            beta_slow: s.need_positive("beta_slow")?,
            attention_factor: s.positive("attention_factor")?,
            truncate: s.flag("truncate")?.unwrap_or(true),
        },
        "llama3" => RopeScaling::Llama3 {
            factor: s.need_positive("factor")?,
            low_freq_factor: s.need_positive("low_freq_factor")?,
            high_freq_factor: s.need_positive("high_freq_factor")?,
            original_context: s.need_count("original_context")?,
        },
        "divisors" => {
            let list = s.list("divisors")?.unwrap_or_default();
            RopeScaling::Divisors(
                list.iter()
                    .map(|v| v.as_f64().unwrap_or(f64::NAN) as f32)
                    .collect(),
            )
        }
        other => {
            return Err(Error::unsupported(format!("rotary scaling {other:?}")));
        }
    })
}

/// The `architecture` object of a manifest.
pub fn to_json(a: &Architecture) -> Value {
    let variant = match a.kv_heads {
        1 => "mqa",
        k if k == a.heads => "mha",
        _ => "gqa",
    };
    let mut attention = json!({
        "variant": variant,
        "num_heads": a.heads,
        "kv_groups": a.kv_heads,
        "head_dim": a.head_dim,
        "window_size": a.windows.iter().flatten().next(),
    });
    let sliding: Vec<usize> = (0..a.layers).filter(|&i| a.windows[i].is_some()).collect();
    if !sliding.is_empty() && sliding.len() < a.layers {
        attention["window_layers"] = json!(sliding);
    }
    if a.query_scale != (a.head_dim as f64).powf(-0.5) as f32 {
        attention["query_scale"] = json!(shortest(a.query_scale));
    }
    if let Some(cap) = a.attention_softcap {
        attention["softcap"] = json!(shortest(cap));
    }
    set_flags(
        &mut attention,
        &[
            ("qkv_bias", a.qkv_bias),
            ("output_bias", a.output_bias),
            ("qk_norm", a.qk_norm),
        ],
    );
    let linear = match a.rope.scaling {
        RopeScaling::Linear { factor } => factor,
        _ => 1.0,
    };
    let mut rope = json!({"base_theta": a.rope.theta, "scale": linear});
    if let Some(scaling) = scaling_to_json(&a.rope.scaling) {
        rope["scaling"] = scaling;
    }
    if a.rope.pairing == Pairing::Neighbours {
        rope["pairing"] = json!("neighbours");
    }
    let mut object = json!({
        "num_layers": a.layers,
        "hidden_size": a.hidden,
        "intermediate_size": a.intermediate,
        "vocab_size": a.vocabulary,
        "context_length": a.context,
        "attention": attention,
        "activation": a.activation.name(),
        "norm": "rmsnorm",
        "norm_eps": shortest(a.norm_eps),
        "rope": rope,
        "tie_word_embeddings": a.tied,
    });
    if a.embedding_scale != 1.0 {
        object["embedding_scale"] = json!(shortest(a.embedding_scale));
    }
    if let Some(cap) = a.final_softcap {
        object["final_softcap"] = json!(shortest(cap));
    }
    set_flags(
        &mut object,
        &[
            ("norm_plus_one", a.norm_offset == 1.0),
            ("mlp_bias", a.mlp_bias),
            ("sandwich_norms", a.sandwich),
        ],
    );
    object
}

fn set_flags(object: &mut Value, flags: &[(&str, bool)]) {
    for &(key, _) in flags.iter().filter(|(_, set)| *set) {
        object[key] = json!(true);
    }
}

fn scaling_to_json(scaling: &RopeScaling) -> Option<Value> {
    Some(match scaling {
        RopeScaling::None | RopeScaling::Linear { .. } => return None,
        RopeScaling::Dynamic {
            factor,
            original_context,
        } => json!({"type": "dynamic", "factor": factor, "original_context": original_context}),
        RopeScaling::Yarn {
            factor,
            original_context,
            beta_fast,
            beta_slow,
            attention_factor,
            truncate,
        } => json!({
            "type": "yarn", "factor": factor, "original_context": original_context,
            "beta_fast": beta_fast, "beta_slow": beta_slow, "attention_factor": attention_factor,
            "truncate": truncate,
        }),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context,
        } => json!({
            "type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor, "original_context": original_context,
        }),
        RopeScaling::Divisors(d) => {
            let divisors: Vec<f64> = d.iter().copied().map(shortest).collect();
            json!({"type": "divisors", "divisors": divisors})
        }
    })
}
