//! `apl-ffi compare`

use std::path::PathBuf;

use clap::Args;

use apl_ffi::agreement::{Agreement, agreement};
use apl_ffi::options::Width;
use apl_ffi::runtime::Runtime;

use crate::arguments::{Inputs, positive, width};
use crate::terminal::{bar, say, table};
use crate::{Failure, Outcome, input, run};

/// Compare a quantised model with its source: what both predict, token by token of a text.
///
/// Reports logit error, KL divergence, top-token agreement and both perplexities (every token counts here; `apl-ffi perplexity`
/// scores as llama.cpp's tool does).
#[derive(Args)]
#[command(after_help = "Example:\n  apl-ffi compare demo models/stories --text README.md")]
pub struct Arguments {
    /// A manifest, a .gguf file, a folder, or `demo`.
    model: String,
    /// The same, unquantised: it runs with its weights as they are, and exact activations.
    reference: String,
    /// A file of UTF-8 text; without it, a short English text.
    #[arg(long)]
    text: Option<PathBuf>,
    /// Tokens of a window. [default: 256, or what both models take]
    #[arg(long, allow_negative_numbers = true, value_parser = positive)]
    window: Option<usize>,
    /// Quantise the weights of the model to this many bits while loading. Without it the model is compared as it is: codes as they
    /// are, all others as the floats that they stand for.
    #[arg(long, allow_negative_numbers = true, value_parser = width)]
    bits: Option<Width>,
    /// How products of the model take their inputs.
    #[arg(long, value_enum, default_value_t = Inputs::F32)]
    activations: Inputs,
    /// As JSON; docs/json.md says what its keys mean.
    #[arg(long)]
    json: bool,
}

/// Reads the text with both models and prints the figures of [`Agreement`].
pub fn run(rt: &Runtime, a: &Arguments) -> Outcome {
    let text = match &a.text {
        Some(path) => input::text(path, None)?,
        None => apl_ffi::convert::SAMPLE.into(),
    };
    let how = run::Opening::measured(a.bits, a.activations);
    let model = run::open(rt, &a.model, &how)?;
    let exact = run::Opening::measured(Some(Width::F32), Inputs::F32);
    let reference = run::open(rt, &a.reference, &exact)?;
    let tokenizer = model.tokenizer()?;
    let ids = tokenizer.encode(&text, tokenizer.begins())?;
    let bar = bar(0, "{bar:30} {pos} of {len} windows {elapsed:>4}");
    let mut progress = |done: usize, all: usize| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    };
    let most = model.context().min(reference.context());
    let window = match a.window {
        Some(window) if window > most => {
            return Err(Failure::new(
                2,
                format!("--window is {window}, expected at most {most}, the context"),
            ));
        }
        window => window.unwrap_or(256.min(most)),
    };
    let found = agreement(rt, &model, &reference, &ids, window, &mut progress)?;
    bar.finish_and_clear();
    if a.json {
        say!("{:#}", found.to_json())?;
    } else {
        print(&found)?;
    }
    Ok(())
}

fn print(a: &Agreement) -> Outcome {
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    table(&[
        row("tokens compared", a.tokens.to_string()),
        row(
            "relative error of the logits",
            format!("{:.2e}", a.relative_error),
        ),
        row("Kullback-Leibler divergence, nats", format!("{:.2e}", a.kl)),
        row(
            "same likeliest token",
            format!("{:.1}%", 100.0 * a.same_top),
        ),
        row("perplexity", format!("{:.3}", a.perplexity)),
        row(
            "perplexity of the reference",
            format!("{:.3}", a.reference_perplexity),
        ),
    ])
}
