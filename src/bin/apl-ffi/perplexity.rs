//! `apl-ffi perplexity`

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use apl_ffi::options::Width;
use apl_ffi::runtime::Runtime;

use crate::arguments::{Inputs, count, positive, width};
use crate::terminal::{bar, counted, say};
use crate::{Outcome, input, run};

/// Measure how well a model predicts a text: less is better.
///
/// The text is cut in windows that do not overlap; each begins with the beginning-of-sequence token, and its second half is
/// scored, as llama.cpp's tool does it.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
                  apl-ffi perplexity models/tiny text.txt\n  \
                  apl-ffi perplexity model.gguf text.txt --window 512 --bytes 200000")]
pub struct Arguments {
    /// A manifest, a .gguf file, a folder, or `demo`.
    model: String,
    /// A file of UTF-8 text.
    text: PathBuf,
    /// Tokens of a window.
    #[arg(long, default_value_t = 256, allow_negative_numbers = true, value_parser = positive)]
    window: usize,
    /// Only this many bytes from its beginning.
    #[arg(long, allow_negative_numbers = true, value_parser = count)]
    bytes: Option<usize>,
    /// Quantise weights to this many bits while loading. Without it the file is measured as it is: codes as they are, all others
    /// as the floats that they stand for.
    #[arg(long, allow_negative_numbers = true, value_parser = width)]
    bits: Option<Width>,
    /// How products take their inputs.
    #[arg(long, value_enum, default_value_t = Inputs::F32)]
    activations: Inputs,
    /// As JSON; docs/json.md says what its keys mean.
    #[arg(long)]
    json: bool,
}

/// Reads the text with the model and prints the perplexity, with a bar of windows on stderr.
pub fn run(rt: &Runtime, a: &Arguments) -> Outcome {
    let text = input::text(&a.text, a.bytes)?;
    let how = run::Opening::measured(a.bits, a.activations);
    let model = run::open(rt, &a.model, &how)?;
    let bar = bar(0, "{bar:30} {pos} of {len} windows {elapsed:>4}");
    let mut progress = |done: usize, all: usize| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    };
    let p = apl_ffi::perplexity::perplexity(rt, &model, &text, a.window, &mut progress)?;
    bar.finish_and_clear();
    if a.json {
        say!(
            "{}",
            json!({"perplexity": p.value(), "nll": p.nll, "tokens": p.tokens})
        )?;
    } else {
        say!(
            "perplexity {:.4} on {}",
            p.value(),
            counted(p.tokens, "token")
        )?;
    }
    Ok(())
}
