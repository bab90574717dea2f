//! `apl-ffi inspect`

use std::borrow::Cow;

use clap::Args;
use serde_json::{Value, json};

use apl_ffi::error::printable;
use apl_ffi::formats::{FloatValues, MatrixView, WeightFile};
use apl_ffi::model::source::{Role, Source, TensorSpec, architecture_to_json};

use crate::terminal::{bar, bytes, say, table};
use crate::{Outcome, catalogue};

/// Show what is in a model: its architecture, and every tensor with its shape, bits and size.
#[derive(Args)]
pub struct Arguments {
    /// A manifest, a .gguf file, a folder, or `demo`.
    model: String,
    /// Read everything: every tensor has to be finite, and what has a sha256 and checksums has to be as these say.
    #[arg(long)]
    verify: bool,
    /// As JSON; docs/json.md says what its keys mean.
    #[arg(long)]
    json: bool,
}

/// A tensor as it is stored.
struct Stored {
    name: String,
    shape: Vec<usize>,
    kind: Cow<'static, str>,
    group: Option<usize>,
    bytes: usize,
    /// Of quantising, where the file says.
    error: Option<f64>,
}

/// Prints the architecture, what the conversion measured, and a line for each tensor; reads everything where asked to.
pub fn run(a: &Arguments) -> Outcome {
    let source = Source::open(&catalogue::local(&a.model)?, true)?;
    let tensors = source.tensors();
    let mut stored = Vec::new();
    for spec in &tensors {
        stored.push(match spec.role {
            Role::Vector => Stored {
                kind: "vector".into(),
                ..tensor(&source, spec)?
            },
            Role::Matrix => Stored {
                error: source.relative_error(&spec.name)?,
                ..tensor(&source, spec)?
            },
        });
    }
    if a.verify {
        verify(&source)?;
    }
    let accuracy = match source.weights() {
        WeightFile::Manifest(manifest) => manifest.accuracy(),
        _ => &Value::Null,
    };
    let architecture = source.architecture();
    let total: usize = stored.iter().map(|s| s.bytes).sum();
    let weights: usize = tensors
        .iter()
        .map(|t| t.shape.iter().product::<usize>())
        .sum();
    if a.json {
        let list: Vec<Value> = stored
            .iter()
            .map(|s| json!({"name": s.name, "shape": s.shape, "type": s.kind, "group": s.group, "bytes": s.bytes, "relative_error": s.error}))
            .collect();
        say!(
            "{:#}",
            json!({"path": source.path().to_string_lossy(), "format": source.kind(), "family": architecture.family.name(), "architecture": architecture_to_json(architecture),
                   "weights": weights, "bytes": total, "verified": a.verify, "accuracy": accuracy, "tensors": list})
        )?;
        return Ok(());
    }
    say!(
        "{} ({}, {}): {} layers of {}, {} heads ({} for keys), vocabulary {}, context {}",
        printable(&source.path().display().to_string()),
        source.kind(),
        architecture.family.name(),
        architecture.layers,
        architecture.hidden,
        architecture.heads,
        architecture.kv_heads,
        architecture.vocabulary,
        architecture.context
    )?;
    say!(
        "{:.2} million weights in {}{}",
        weights as f64 / 1e6,
        bytes(total),
        if a.verify { ", verified" } else { "" }
    )?;
    say_accuracy(accuracy)?;
    say!()?;
    let mut heads = vec!["tensor", "shape", "type", "group", "bytes"];
    let with_errors = stored.iter().any(|s| s.error.is_some());
    if with_errors {
        heads.push("relative error");
    }
    let mut rows = vec![heads.into_iter().map(String::from).collect()];
    rows.extend(stored.iter().map(|s| {
        let shape: Vec<String> = s.shape.iter().map(usize::to_string).collect();
        let group = s.group.map_or(String::new(), |g| g.to_string());
        let mut row = vec![
            s.name.clone(),
            shape.join(" x "),
            s.kind.to_string(),
            group,
            s.bytes.to_string(),
        ];
        if with_errors {
            row.push(s.error.map_or(String::new(), |e| format!("{e:.4}")));
        }
        row
    }));
    table(&rows)?;
    Ok(())
}

/// What a conversion measured, as far as the manifest has it.
fn say_accuracy(accuracy: &Value) -> Outcome {
    if let Some(error) = accuracy["relative_error"].as_f64() {
        say!("relative error of the weights {error:.4}")?;
    }
    let compared = &accuracy["compared"];
    if let (Some(perplexity), Some(reference)) = (
        compared["perplexity"].as_f64(),
        compared["reference_perplexity"].as_f64(),
    ) {
        say!("perplexity {perplexity:.2} on a short text, {reference:.2} before it was converted")?;
    }
    Ok(())
}

/// Reads all of it, with a bar.
fn verify(source: &Source) -> Outcome {
    let tensors = source.tensors();
    let bar = bar(
        tensors.len() as u64,
        "{prefix:>9} {bar:30} {percent:>3}% {elapsed:>4} {wide_msg}",
    );
    bar.set_prefix("verify");
    let verified = apl_ffi::convert::verify(source, &mut |name| {
        bar.set_message(name.to_owned());
        bar.inc(1);
        Ok(())
    });
    bar.finish_and_clear();
    Ok(verified?)
}

/// A tensor as the file has it: what readers make of a type that is not ours is not looked at.
fn tensor(source: &Source, spec: &TensorSpec) -> Outcome<Stored> {
    let view = || match spec.role {
        Role::Matrix => source.matrix(&spec.name),
        Role::Vector => source.vector_view(&spec.name),
    };
    let Some(stored) = source.stored(&spec.name)? else {
        return Ok(described(spec, &view()?));
    };
    let kind = match stored.kind {
        "F32" => "float32".into(),
        "F16" => "float16".into(),
        "BF16" => "bfloat16".into(),
        kind => kind.to_owned().into(),
    };
    let group = match stored.codes {
        true => described(spec, &view()?).group,
        false => None,
    };
    Ok(Stored {
        name: spec.name.clone(),
        shape: spec.shape.clone(),
        kind,
        group,
        bytes: stored.bytes,
        error: None,
    })
}

fn described(spec: &TensorSpec, view: &MatrixView<'_>) -> Stored {
    let weights: usize = spec.shape.iter().product();
    let (kind, group, bytes): (Cow<'static, str>, _, _) = match view {
        MatrixView::Codes(c) => {
            let c = c.as_codes();
            let bits = c.bits.get();
            (
                format!("{bits} bit{}", if bits == 1 { "" } else { "s" }).into(),
                Some(c.shape.group),
                c.stored_bytes(),
            )
        }
        MatrixView::Floats(f) => match f.values {
            FloatValues::F32(_) => ("float32".into(), None, 4 * weights),
            FloatValues::F16(_) => ("float16".into(), None, 2 * weights),
            FloatValues::BF16(_) => ("bfloat16".into(), None, 2 * weights),
        },
    };
    Stored {
        name: spec.name.clone(),
        shape: spec.shape.clone(),
        kind,
        group,
        bytes,
        error: None,
    }
}
