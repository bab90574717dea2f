//! `apl-ffi inspect`

use std::borrow::Cow;

use clap::Args;
use serde_json::{Value, json};

use apl_ffi::formats::{FloatValues, MatrixView};
use apl_ffi::model::source::{Role, Source, architecture_to_json};

use crate::terminal::{bytes, say, table};
use crate::{Outcome, catalogue};

/// Show what is in a model: its architecture, and every tensor with its shape, bits and size.
#[derive(Args)]
pub struct Arguments {
    /// A manifest, a .gguf file, a folder, or `demo`.
    model: String,
    /// Read everything: every tensor has to be finite, and what has a sha256 and checksums has to be as these say.
    #[arg(long)]
    verify: bool,
    /// As JSON.
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
}

/// Does it.
pub fn run(a: &Arguments) -> Outcome {
    let source = Source::open(&catalogue::local(&a.model)?, true)?;
    let tensors = source.tensors();
    let mut stored = Vec::new();
    for spec in &tensors {
        stored.push(match spec.role {
            Role::Vector => Stored {
                name: spec.name.clone(),
                shape: spec.shape.clone(),
                kind: "vector".into(),
                group: None,
                bytes: 4 * spec.shape[0],
            },
            Role::Matrix => matrix(&source, &spec.name, &spec.shape)?,
        });
    }
    if a.verify {
        apl_ffi::convert::verify(&source)?;
    }
    let architecture = source.architecture();
    let total: usize = stored.iter().map(|s| s.bytes).sum();
    let weights: usize = tensors
        .iter()
        .map(|t| t.shape.iter().product::<usize>())
        .sum();
    if a.json {
        let list: Vec<Value> = stored
            .iter()
            .map(|s| json!({"name": s.name, "shape": s.shape, "type": s.kind, "group": s.group, "bytes": s.bytes}))
            .collect();
        say!(
            "{:#}",
            json!({"path": source.path(), "format": source.kind(), "family": architecture.family.name(), "architecture": architecture_to_json(architecture),
                   "weights": weights, "bytes": total, "verified": a.verify, "tensors": list})
        )?;
        return Ok(());
    }
    say!(
        "{} ({}, {}): {} layers of {}, {} heads ({} for keys), vocabulary {}, context {}",
        source.path().display(),
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
        "{:.2} million weights in {}{}\n",
        weights as f64 / 1e6,
        bytes(total),
        if a.verify { ", verified" } else { "" }
    )?;
    let mut rows = vec![
        ["tensor", "shape", "type", "group", "bytes"]
            .map(String::from)
            .to_vec(),
    ];
    rows.extend(stored.iter().map(|s| {
        let shape: Vec<String> = s.shape.iter().map(usize::to_string).collect();
        let group = s.group.map_or(String::new(), |g| g.to_string());
        vec![
            s.name.clone(),
            shape.join(" x "),
            s.kind.to_string(),
            group,
            s.bytes.to_string(),
        ]
    }));
    table(&rows)?;
    Ok(())
}

/// A matrix as the file has it: what readers make of a type that is not ours is not looked at.
fn matrix(source: &Source, name: &str, shape: &[usize]) -> Outcome<Stored> {
    let Some(stored) = source.stored(name)? else {
        return Ok(described(name, shape, &source.matrix(name)?));
    };
    let kind = match stored.kind {
        "F32" => "float32".into(),
        "F16" => "float16".into(),
        "BF16" => "bfloat16".into(),
        kind => kind.to_owned().into(),
    };
    let group = match stored.codes {
        true => described(name, shape, &source.matrix(name)?).group,
        false => None,
    };
    Ok(Stored {
        name: name.to_owned(),
        shape: shape.to_vec(),
        kind,
        group,
        bytes: stored.bytes,
    })
}

fn described(name: &str, shape: &[usize], view: &MatrixView<'_>) -> Stored {
    let weights: usize = shape.iter().product();
    let (kind, group, bytes): (Cow<'static, str>, _, _) = match view {
        MatrixView::Codes(c) => {
            let c = c.as_codes();
            let scale = if matches!(c.scales, apl_ffi::quant::ScaleValues::F16(_)) {
                2
            } else {
                4
            };
            let zero = usize::from(c.zero_points.is_some());
            let groups = c.shape.rows * c.shape.groups;
            let bytes = c.shape.rows * apl_ffi::quant::packed_row_bytes(c.shape.cols, c.bits)
                + groups * (scale + zero);
            let bits = c.bits.get();
            (
                format!("{bits} bit{}", if bits == 1 { "" } else { "s" }).into(),
                Some(c.shape.group),
                bytes,
            )
        }
        MatrixView::Floats(f) => match f.values {
            FloatValues::F32(_) => ("float32".into(), None, 4 * weights),
            FloatValues::F16(_) => ("float16".into(), None, 2 * weights),
            FloatValues::BF16(_) => ("bfloat16".into(), None, 2 * weights),
        },
    };
    Stored {
        name: name.to_owned(),
        shape: shape.to_vec(),
        kind,
        group,
        bytes,
    }
}
