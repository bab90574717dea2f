//! What `apl-ffi convert` says when it is done.

use std::path::Path;

use serde_json::{Value, json};

use apl_ffi::convert::Report;
use apl_ffi::model::source::Source;
use apl_ffi::validate;

use super::Arguments;
use crate::terminal::{bytes, counted, say};
use crate::{Outcome, catalogue, shell};

/// Nats of divergence from which a conversion is told how to come closer.
const FAR: f64 = 0.1;

/// `source` is what was opened, and its path.
pub fn tell(a: &Arguments, report: &Report, (source, path): (&Source, &Path)) -> Outcome {
    if a.json {
        return say!("{:#}", to_json(a, report));
    }
    let weights: usize = report.matrices.iter().map(|m| m.rows * m.cols).sum();
    let size: usize = report.matrices.iter().map(|m| m.bytes).sum();
    say!(
        "{} ({}): {}, {:.1} million weights in {}, {:.2} bits each with their scales",
        report.manifest.display(),
        source.architecture().family.name(),
        counted(report.matrices.len(), "matrix"),
        weights as f64 / 1e6,
        bytes(size),
        report.bits_a_weight
    )?;
    let worst = report
        .matrices
        .iter()
        .max_by(|a, b| a.relative_error.total_cmp(&b.relative_error));
    say!(
        "relative error of the weights {:.4}{}; opened again, every tensor and the sha256 are right",
        report.relative_error,
        worst.map_or(String::new(), |m| format!(
            ", at most {:.4} ({})",
            m.relative_error, m.name
        ))
    )?;
    match report.agreement {
        Some(c) => {
            say!(
                "beside the source on a short text: the same likeliest token at {:.0}% of {}, {:.4} nats of divergence, perplexity {:.2} (source {:.2})",
                100.0 * c.same_top,
                counted(c.tokens, "place"),
                c.kl,
                c.perplexity,
                c.reference_perplexity
            )?;
            if c.kl > FAR && a.calibrate.is_none() {
                say!(
                    "to come closer: more bits, or --calibrate TEXT with a text like that which the model is for"
                )?;
            }
        }
        None if report.tokenizer => {
            say!(
                "not compared with the source: it is large for this machine, its context is too short for a text, or one of the two was replaced meanwhile"
            )?;
        }
        None => say!("not compared with the source, which has no tokenizer")?,
    }
    say!("next: {}", next(a, report, (source, path)).join(", "))
}

/// Commands that work with what was written.
fn next(a: &Arguments, report: &Report, (source, path): (&Source, &Path)) -> Vec<String> {
    let manifest = report.manifest.to_string_lossy();
    let manifest = shell::path(&manifest);
    if !report.tokenizer {
        return vec![format!("apl-ffi inspect {manifest} --verify")];
    }
    let reference = catalogue::name_of_fetched(&a.source, path);
    let reference = shell::path(&reference);
    let quantised = report.matrices.iter().any(|m| m.bits <= 8);
    let beside = match quantised && validate::accepts(source).is_ok() {
        true => format!("apl-ffi validate {manifest} --reference {reference}"),
        false => format!("apl-ffi compare {manifest} {reference}"),
    };
    vec![
        format!("apl-ffi run {manifest} \"Once upon a time\""),
        beside,
    ]
}

fn to_json(a: &Arguments, report: &Report) -> Value {
    let matrices: Vec<_> = report
        .matrices
        .iter()
        .map(|m| json!({"name": m.name, "shape": [m.rows, m.cols], "bits": m.bits, "bytes": m.bytes, "relative_error": m.relative_error}))
        .collect();
    // Of floats there is neither.
    let quantization = &report.quantization;
    json!({"source": a.source, "manifest": report.manifest.to_string_lossy(), "group": quantization["group"], "method": quantization["method"],
           "bits_a_weight": report.bits_a_weight, "relative_error": report.relative_error,
           "compared": report.agreement.map(|a| a.to_json()), "matrices": matrices})
}
