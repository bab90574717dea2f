//! `apl-ffi convert`

mod options;
mod told;

use std::mem;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use indicatif::ProgressBar;

use apl_ffi::calibrate::Calibration;
use apl_ffi::convert::{Progress, Target};
use apl_ffi::error::Status;
use apl_ffi::formats::unfinished;
use apl_ffi::model::source::Source;
use apl_ffi::options::{WeightOptions, Width};
use apl_ffi::quant::Method;
use apl_ffi::runtime::Runtime;

use crate::arguments::{count, width};
use crate::interrupts::{self, INTERRUPTED};
use crate::terminal::{bar, note};
use crate::{Failure, Outcome, catalogue, input};

/// Convert a model: download it if need be, quantise, write a manifest and its npz, check what was written.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
                  apl-ffi convert ./TinyLlama-1.1B --bits 4 --out models/tiny\n  \
                  apl-ffi convert model.gguf --bits 2 --group 16 --calibrate text.txt\n  \
                  apl-ffi convert Qwen/Qwen3-0.6B --bits 8")]
pub struct Arguments {
    /// A folder in the Hugging Face layout, a .gguf file, OWNER/NAME on the hub, or a short name (`apl-ffi models`).
    pub source: String,
    /// Bits per weight: 1, 2, 4 or 8; 16 and 32 store floats. Without it, weights already in a format this library supports are
    /// copied unchanged, quantised types of more than 4 bits become 8 bits, and all others 4.
    #[arg(long, allow_negative_numbers = true, value_parser = width)]
    pub bits: Option<Width>,
    /// Weights that share a scale; 0: a whole row. [default: 32]
    #[arg(long, allow_negative_numbers = true, value_parser = count)]
    pub group: Option<usize>,
    /// How scales are chosen: from the largest weight of a group, or searched for the least error (slower, better). [default:
    /// search]
    #[arg(long, value_enum, conflicts_with = "calibrate")]
    pub method: Option<Chosen>,
    /// With zero points: a byte a group more; lower weight error at 4 and 8 bits, none at 2 with search. Measure before use.
    #[arg(long)]
    pub asymmetric: bool,
    /// Quantise each matrix for the inputs it meets while the unquantised model reads this text file: slower, and of most use at
    /// 4 bits and fewer. Give a few hundred kB of text like that which the model is for.
    #[arg(long, value_name = "TEXT")]
    pub calibrate: Option<PathBuf>,
    /// After calibrating, tune the scales and norms of all matrices together in this many steps (120 were enough for 260,000
    /// weights): for models of a few million weights, at 1 and 2 bits above all.
    #[arg(long, value_name = "STEPS", requires = "calibrate", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    tune: Option<u32>,
    /// The folder to write to. [default: models/NAME] A folder holding a model with a different tokenizer is refused, unless that
    /// is its only model and is being replaced; so is a folder in the Hugging Face layout.
    #[arg(long)]
    out: Option<PathBuf>,
    /// The report as JSON on stdout; docs/json.md says what its keys mean.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Chosen {
    Nearest,
    Search,
}

/// Fetches, calibrates and tunes as asked, converts with a bar on stderr, and prints the report; Ctrl-C ends it with exit code 130.
pub fn run(rt: &Runtime, a: &Arguments) -> Outcome {
    options::check(a)?;
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
    options::check_beside(a, &source)?;
    if a.calibrate.is_some() {
        // Before hours of reading; a conversion begins with it anyway.
        apl_ffi::convert::refuse(&source, target)?;
    }
    let options = WeightOptions {
        width: a.bits,
        group: a.group.unwrap_or(WeightOptions::default().group),
        symmetric: !a.asymmetric,
        method: match a.method {
            Some(Chosen::Nearest) => Method::Nearest,
            Some(Chosen::Search) | None => Method::Search,
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
    interrupts::watch_interrupts()?;
    let new = out.ancestors().take_while(|folder| !folder.exists());
    let new = new.filter(|folder| !folder.as_os_str().is_empty());
    let mut leavings = vec![unfinished(&target.manifest())?];
    leavings.extend(new.map(Path::to_owned));
    let mut shown: Option<ProgressBar> = None;
    let mut before = 0;
    let mut progress = |step: Progress<'_>| match (&shown, step) {
        (_, Progress::Begin { weights, .. }) => {
            // Only now are these its own: before, it waits for other writers in the folder.
            interrupts::removed_at_exit(mem::take(&mut leavings));
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
    interrupts::removed_at_exit(Vec::new());
    if let Some(bar) = &shown {
        bar.finish_and_clear();
    }
    let report = match report {
        Err(e) if interrupts::interrupted() && e.status() == Status::State => {
            return Err(Failure::new(130, e.message().to_owned()));
        }
        report => report?,
    };
    told::tell(a, &report, (&source, &path))
}

/// Opens the model for reading the calibration text.
fn calibration(rt: &Runtime, source: &Source, path: &Path) -> Outcome<Calibration<'static>> {
    let text = input::text(path, None)?;
    Ok(Calibration::new(rt, source, &text, &INTERRUPTED)?)
}

/// Tunes, with a bar.
fn tune(
    rt: &Runtime,
    source: &Source,
    calibration: &mut Calibration<'_>,
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
    let change =
        format!("{before:.4} nats a token from the unquantised model before, {after:.4} after");
    match after < before {
        true => note!("tuned: {change}"),
        false => note!(
            "the tuning is discarded, as it did not make the model better: {change}; there is little to gain at 4 and 8 bits"
        ),
    }
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
            if c.is_alphanumeric() || "-_.".contains(c) {
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
