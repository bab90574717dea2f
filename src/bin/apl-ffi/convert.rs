//! `apl-ffi convert`

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use serde_json::json;

use apl_ffi::calibrate::Calibration;
use apl_ffi::convert::{Progress, Report, Target};
use apl_ffi::error::Status;
use apl_ffi::model::source::Source;
use apl_ffi::options::{WeightOptions, Width};
use apl_ffi::quant::Method;
use apl_ffi::runtime::Runtime;

use crate::arguments::width;
use crate::terminal::{self, INTERRUPTED, bar, bytes, say};
use crate::{Failure, Outcome, catalogue};

/// Convert a model: fetch it if need be, quantise, write a manifest and its npz, check what was written.
#[derive(Args)]
pub struct Arguments {
    /// A folder in the Hugging Face layout, a .gguf file, OWNER/NAME on the hub, or a short name (`apl-ffi models`).
    source: String,
    /// Bits a weight. Without it 4; weights of a GGUF file that are quantised in a way of ours are then taken over as they are.
    #[arg(long, value_parser = width)]
    bits: Option<Width>,
    /// Weights that share a scale; 0: a whole row.
    #[arg(long, default_value_t = 32)]
    group: usize,
    /// How scales are chosen: from the largest weight of a group, or searched for the least error (slower, better).
    #[arg(long, value_enum, default_value_t = Chosen::Search)]
    method: Chosen,
    /// With zero points: a byte a group more, and less error at 2 and 4 bits.
    #[arg(long)]
    asymmetric: bool,
    /// A text file that the unquantised model reads, so that each matrix is quantised for the inputs that it meets: slower, and
    /// best at 4 bits and fewer. A few hundred kB of text like that which the model is for.
    #[arg(long, value_name = "TEXT")]
    calibrate: Option<PathBuf>,
    /// After that, tune scales and norms of all matrices together in so many steps (120 were enough for 260,000 weights): for models of a few million
    /// weights, at 1 and 2 bits above all.
    #[arg(long, value_name = "STEPS", requires = "calibrate", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    tune: Option<u32>,
    /// The folder to write to. Without it, models/NAME. A folder that has a model with another tokenizer is refused, unless it has
    /// no other than the one that is replaced; so is one with a model in the Hugging Face layout, that of the source above all.
    #[arg(long)]
    out: Option<PathBuf>,
    /// The report as JSON on stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Chosen {
    Nearest,
    Search,
}

/// Fetches, calibrates and tunes as asked, converts with a bar on stderr, and prints the report; Ctrl-C ends it with exit code 130.
pub fn run(rt: &Runtime, a: &Arguments) -> Outcome {
    let path = catalogue::fetched(&a.source)?;
    let name = name_of(&a.source);
    let out = a
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from("models").join(&name));
    let target = Target {
        folder: &out,
        name: &name,
    };
    let source = Source::open(&path, true)?;
    if a.calibrate.is_some() {
        // Before hours of reading; a conversion begins with it anyway.
        apl_ffi::convert::refuse(&source, target)?;
    }
    let options = WeightOptions {
        width: a.bits,
        group: a.group,
        symmetric: !a.asymmetric,
        method: match a.method {
            Chosen::Nearest => Method::Nearest,
            Chosen::Search => Method::Search,
        },
        ..WeightOptions::default()
    };
    let mut calibration = match &a.calibrate {
        Some(path) => Some(calibration(rt, &source, path)?),
        None => None,
    };
    if let (Some(calibration), Some(steps)) = (&mut calibration, a.tune) {
        tune(rt, &source, calibration, &options, steps as usize)?;
    }
    // Nothing was written so far, and Ctrl-C just ended the process.
    terminal::watch_interrupts()?;
    let mut shown: Option<ProgressBar> = None;
    let mut before = 0;
    let mut progress = |step: Progress<'_>| match (&shown, step) {
        (_, Progress::Begin { weights, .. }) => {
            shown = Some(bar(
                weights,
                "{prefix:>9} {bar:30} {percent:>3}% {elapsed:>4} {wide_msg}",
            ));
            if let Some(bar) = &shown {
                bar.set_prefix("quantise");
            }
        }
        (Some(bar), Progress::Tensor { name, weights }) => {
            bar.set_message(name.to_owned());
            bar.inc(before);
            before = weights;
        }
        (Some(bar), Progress::Writing) => {
            bar.inc(before);
            bar.set_prefix("write");
            bar.set_message("");
        }
        (Some(bar), Progress::Checking) => bar.set_prefix("check"),
        (Some(bar), Progress::Comparing) => bar.set_prefix("compare"),
        (None, _) => {}
    };
    let report = apl_ffi::convert::convert(
        rt,
        &source,
        target,
        &options,
        calibration.as_mut(),
        &mut progress,
        &INTERRUPTED,
    );
    if let Some(bar) = &shown {
        bar.finish_and_clear();
    }
    let report = match report {
        Err(e) if terminal::interrupted() && e.status() == Status::State => {
            return Err(Failure::new(130, e.message().to_owned()));
        }
        report => report?,
    };
    tell(a, &report, &source)
}

/// Opens the model for reading the calibration text.
fn calibration(rt: &Runtime, source: &Source, path: &Path) -> Result<Calibration, Failure> {
    let text = std::fs::read(path)
        .map_err(|e| Failure::new(3, format!("{} cannot be read: {e}", path.display())))?;
    Ok(Calibration::new(
        rt,
        source,
        &String::from_utf8_lossy(&text),
    )?)
}

/// Tunes, with a bar.
fn tune(
    rt: &Runtime,
    source: &Source,
    calibration: &mut Calibration,
    options: &WeightOptions,
    steps: usize,
) -> Outcome {
    let bar = bar(
        steps as u64,
        "     tune {bar:30} {percent:>3}% {elapsed:>4}",
    );
    let told = calibration.tune(rt, source, options, steps, &mut |step| {
        bar.set_position(step as u64);
    });
    bar.finish_and_clear();
    let (before, after) = told?;
    eprintln!(
        "tuned: {before:.3} nats a token from the unquantised model at first, {after:.3} at last"
    );
    Ok(())
}

/// The name of the manifest: what the source is called, in letters that every file system takes, and none of the names that files
/// beside a manifest have.
fn name_of(source: &str) -> String {
    let last = source
        .trim_end_matches(['/', '\\'])
        .rsplit(['/', '\\'])
        .next()
        .unwrap_or("model");
    let last = last
        .strip_suffix(".gguf")
        .or(last.strip_suffix(".json"))
        .unwrap_or(last);
    let safe: String = last
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                c
            } else {
                '-'
            }
        })
        .collect();
    let safe = safe.to_lowercase();
    match safe.as_str() {
        "config" | "tokenizer" | "tokenizer_config" | "generation_config" => {
            format!("{safe}-model")
        }
        _ if safe.trim_matches('.').is_empty() => "model".to_owned(),
        _ => safe,
    }
}

/// Nats of divergence from which a conversion is told how to come closer.
const FAR: f64 = 0.1;

fn tell(a: &Arguments, report: &Report, source: &Source) -> Outcome {
    let weights: usize = report.matrices.iter().map(|m| m.rows * m.cols).sum();
    let size: usize = report.matrices.iter().map(|m| m.bytes).sum();
    if a.json {
        let matrices: Vec<_> = report
            .matrices
            .iter()
            .map(|m| json!({"name": m.name, "shape": [m.rows, m.cols], "bits": m.bits, "bytes": m.bytes, "relative_error": m.relative_error}))
            .collect();
        say!(
            "{:#}",
            json!({"manifest": report.manifest, "bits_a_weight": report.bits_a_weight, "relative_error": report.relative_error,
                   "compared": report.agreement.map(|a| a.to_json()), "matrices": matrices})
        )?;
        return Ok(());
    }
    say!(
        "{} ({}): {} matrices, {:.1} million weights in {}, {:.2} bits each with their scales",
        report.manifest.display(),
        source.architecture().family.name(),
        report.matrices.len(),
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
                "beside the source on a short text: the same likeliest token at {:.0}% of {} places, {:.4} nats of divergence, perplexity {:.2} for {:.2}",
                100.0 * c.same_top,
                c.tokens,
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
        None => say!(
            "not compared with the source, which is large for this machine or has no tokenizer: apl-ffi compare {} {}",
            report.manifest.display(),
            a.source
        )?,
    }
    say!(
        "next: apl-ffi run {0} \"Once upon a time\", apl-ffi validate {0} --reference {1}",
        report.manifest.display(),
        a.source
    )?;
    Ok(())
}
