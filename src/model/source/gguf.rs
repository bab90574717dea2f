//! The architecture from the metadata of a GGUF file.

use crate::error::{Error, Result};
use crate::formats::gguf::{Gguf, Value};
use crate::model::architecture::{
    self, Activation, Architecture, Family, Pairing, Rope, RopeScaling,
};
use crate::model::rope::yarn_attention_factor;
use crate::model::source::fields::MOST;

/// Metadata with the prefix of the architecture, such as `llama.block_count`.
struct Keys<'a> {
    file: &'a Gguf,
    name: &'a str,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.file.metadata(&format!("{}.{key}", self.name))
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = match self.get(key) {
            None => "missing".to_owned(),
            Some(value) => value.to_string(),
        };
        Error::format(format!(
            "{}.{key} is {found}, expected {expected}",
            self.name
        ))
    }

    /// A number. An array, which has one element per layer, counts as a number if its elements are
    /// equal.
    fn number(&self, key: &str) -> Result<Option<f64>> {
        Ok(match self.get(key) {
            None => None,
            Some(&Value::Unsigned(n)) => Some(n as f64),
            Some(&Value::Signed(n)) => Some(n as f64),
            Some(Value::Array(array)) => {
                let numbers = self.file.numbers(array)?;
                match numbers.split_first() {
                    Some((first, others)) if others.iter().all(|n| n == first) => Some(*first),
                    _ => {
                        return Err(Error::unsupported(format!(
                            "{}.{key} differs between layers",
                            self.name
                        )));
                    }
                }
            }
            Some(_) => Some(f64::NAN),
        })
    }

    fn count(&self, key: &str) -> Result<Option<usize>> {
        match self.number(key)? {
            None => Ok(None),
            Some(n) if n.fract() == 0.0 && (1.0..=MOST as f64).contains(&n) => Ok(Some(n as usize)),
            Some(_) => Err(self.wrong(key, &format!("an integer from 1 to {MOST}"))),
        }
    }

    fn unsupported(&self, key: &str, known: &str) -> Error {
        Error::unsupported(format!("{}.{key}: only {known} is supported", self.name))
    }

    fn need_count(&self, key: &str) -> Result<usize> {
        self.count(key)?
            .ok_or_else(|| Error::format(format!("{}.{key} is missing", self.name)))
    }

    fn positive(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::Float(x)) if x > 0.0 && x.is_finite() => Ok(Some(x)),
            Some(_) => Err(self.wrong(key, "a number above 0")),
        }
    }
}

/// `ERR_UNSUPPORTED` for one file of a model that is split into several.
fn refuse_part(file: &Gguf) -> Result<()> {
    match file.metadata("split.count") {
        Some(&Value::Unsigned(files)) if files > 1 => Err(Error::unsupported(format!(
            "one of the {files} files of a split model: join them first (llama-gguf-split --merge)"
        ))),
        _ => Ok(()),
    }
}

/// Reads the architecture from the metadata.
pub(super) fn architecture(file: &Gguf) -> Result<Architecture> {
    refuse_part(file)?;
    let name = match file.metadata("general.architecture") {
        Some(Value::Text(name)) => name,
        _ => return Err(Error::format("general.architecture is missing")),
    };
    let family = Family::ALL.into_iter().find(|f| f.name() == name);
    let family = family.ok_or_else(|| architecture::unsupported(name))?;
    let gemma = matches!(family, Family::Gemma | Family::Gemma2);
    let keys = Keys { file, name };

    if !matches!(
        keys.get("expert_count"),
        None | Some(Value::Unsigned(0) | Value::Signed(0))
    ) {
        return Err(Error::unsupported("a mixture of experts"));
    }
    let (layers, hidden) = (
        keys.need_count("block_count")?,
        keys.need_count("embedding_length")?,
    );
    let heads = keys.need_count("attention.head_count")?;
    let head_dim = keys
        .count("attention.key_length")?
        .unwrap_or(hidden / heads);
    if keys
        .count("attention.value_length")?
        .is_some_and(|v| v != head_dim)
    {
        return Err(Error::unsupported("values of another width than keys"));
    }
    if keys
        .count("rope.dimension_count")?
        .is_some_and(|d| d != head_dim)
    {
        return Err(Error::unsupported(
            "a rotary embedding of a part of each head",
        ));
    }
    let embedding = file.shape("token_embd.weight");
    let &[vocabulary, _] = embedding.unwrap_or_default() else {
        return Err(Error::format("there is no matrix token_embd.weight"));
    };
    let context = keys.need_count("context_length")?;
    // Gemma 2 27B scales queries by the hidden size per head, the others by the width of a head.
    let query_width = if family == Family::Gemma2 && layers == 46 {
        hidden / heads
    } else {
        head_dim
    };
    let window = match keys.get("attention.sliding_window") {
        None if family == Family::Gemma2 => Some(4096),
        Some(Value::Unsigned(0) | Value::Signed(0)) => None,
        _ => keys.count("attention.sliding_window")?,
    };
    refuse_unknown_attention(&keys)?;
    let softcap = |key: &str, default: f64| -> Result<Option<f32>> {
        if family != Family::Gemma2 {
            return Ok(None);
        }
        Ok(Some(keys.positive(key)?.unwrap_or(default) as f32))
    };
    let has = |tensor: &str| file.shape(tensor).is_some();
    // If one layer has a bias, all layers need it; a missing one is reported later.
    let any = |endings: &[&str]| {
        let mut names = file.names();
        names.any(|name| endings.iter().any(|ending| name.ends_with(ending)))
    };
    let architecture = Architecture {
        family,
        layers,
        hidden,
        intermediate: keys.need_count("feed_forward_length")?,
        vocabulary,
        context,
        heads,
        kv_heads: keys.count("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        norm_eps: keys
            .positive("attention.layer_norm_rms_epsilon")?
            .unwrap_or(1e-6) as f32,
        // Files of Gemma already include the 1 in the weights.
        norm_offset: 0.0,
        activation: if gemma {
            Activation::GeluTanh
        } else {
            Activation::Silu
        },
        rope: rope(file, &keys, family, context)?,
        embedding_scale: if gemma { (hidden as f32).sqrt() } else { 1.0 },
        query_scale: (query_width as f32).powf(-0.5),
        windows: (0..layers)
            .map(|layer| match family {
                Family::Gemma2 => window.filter(|_| layer % 2 == 0),
                _ => window,
            })
            .collect(),
        attention_softcap: softcap("attn_logit_softcapping", 50.0)?,
        final_softcap: softcap("final_logit_softcapping", 30.0)?,
        // llama.cpp also accepts a Qwen 2 without them.
        qkv_bias: any(&[".attn_q.bias", ".attn_k.bias", ".attn_v.bias"]),
        output_bias: any(&[".attn_output.bias"]),
        mlp_bias: any(&[".ffn_gate.bias", ".ffn_up.bias", ".ffn_down.bias"]),
        qk_norm: family == Family::Qwen3,
        sandwich: family == Family::Gemma2,
        tied: !has("output.weight"),
    };
    architecture.check()?;
    Ok(architecture)
}

/// `ERR_UNSUPPORTED` for settings that change which positions are visible and are not implemented.
fn refuse_unknown_attention(keys: &Keys<'_>) -> Result<()> {
    if keys.get("attention.causal") == Some(&Value::Bool(false)) {
        return Err(Error::unsupported("attention to later positions"));
    }
    let pattern = keys.number("attention.sliding_window_pattern")?;
    if pattern.is_some_and(|p| p != 2.0) {
        return Err(keys.unsupported("attention.sliding_window_pattern", "2"));
    }
    let base = keys.positive("rope.freq_base")?.unwrap_or(10000.0);
    if keys
        .positive("rope.freq_base_swa")?
        .is_some_and(|b| b != base)
    {
        return Err(keys.unsupported("rope.freq_base_swa", "the base of the other layers"));
    }
    Ok(())
}

/// The divisors of the rotary frequencies.
const DIVISORS: &str = "rope_freqs.weight";

fn divisors(file: &Gguf) -> Result<Option<Vec<f32>>> {
    let Some(divisors) = file.vector(DIVISORS) else {
        return Ok(None);
    };
    let divisors = divisors?;
    let mut values = crate::memory::filled(divisors.shape().1, 0.0, "rope_freqs")?;
    divisors.row(0, &mut values);
    Ok(Some(values))
}

/// Whether a tensor that belongs to no layer is one that a model of this family may have, or one
/// that may be ignored.
pub(super) fn expected_besides(name: &str, family: Family) -> bool {
    let llama = matches!(family, Family::Llama | Family::Mistral);
    // Old files have the unscaled rotary frequencies in every layer.
    name == DIVISORS && llama || name.contains(".attn_rot_embd.")
}

fn rope(file: &Gguf, keys: &Keys<'_>, family: Family, context: usize) -> Result<Rope> {
    let factor = match keys.positive("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        // Files written before the scaling had a type of its own.
        None => keys.positive("rope.scale_linear")?,
    };
    let kind = match keys.get("rope.scaling.type") {
        None if factor.is_some_and(|f| f != 1.0) => "linear",
        None => "none",
        Some(Value::Text(kind)) => kind,
        Some(_) => return Err(keys.wrong("rope.scaling.type", "text")),
    };
    let need_factor = || factor.ok_or_else(|| Error::format("rope.scaling.factor is missing"));
    let attention = keys.positive("rope.scaling.attn_factor")?;
    if kind != "yarn" && attention.is_some_and(|a| a != 1.0) {
        return Err(Error::unsupported(
            "rope.scaling.attn_factor without yarn, which alone is known with it",
        ));
    }
    let scaling = match kind {
        "none" => match divisors(file)? {
            None => RopeScaling::None,
            Some(values) => RopeScaling::Divisors(values),
        },
        "linear" => match (need_factor()?, divisors(file)?) {
            (factor, None) => RopeScaling::Linear { factor },
            (factor, Some(values)) => {
                let all = values.iter().map(|d| (f64::from(*d) * factor) as f32);
                RopeScaling::Divisors(all.collect())
            }
        },
        "yarn" if file.shape(DIVISORS).is_some() => {
            return Err(Error::unsupported(format!("{DIVISORS} together with yarn")));
        }
        "yarn" => RopeScaling::Yarn {
            factor: need_factor()?,
            original_context: keys
                .count("rope.scaling.original_context_length")?
                .unwrap_or(context),
            beta_fast: keys
                .positive("rope.scaling.yarn_beta_fast")?
                .unwrap_or(32.0),
            beta_slow: keys.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            // In GGUF files this factor is applied on top of YaRN's own.
            attention_factor: match attention {
                None => None,
                Some(a) => Some(a * yarn_attention_factor(need_factor()?, 1.0)),
            },
            truncate: true,
        },
        other => {
            return Err(Error::unsupported(format!(
                "rotary scaling {other:?}; none, linear and yarn are known"
            )));
        }
    };
    Ok(Rope {
        theta: keys.positive("rope.freq_base")?.unwrap_or(10000.0),
        scaling,
        // llama.cpp's converter permutes the query and key rows of these families.
        pairing: match family {
            Family::Llama | Family::Mistral => Pairing::Neighbours,
            _ => Pairing::Halves,
        },
    })
}
