//! `apl-ffi quickstart`

use clap::{Args, Parser};
use inquire::{Confirm, Select, Text};

use apl_ffi::runtime::Runtime;

use crate::terminal::say;
use crate::{Cli, Failure, Outcome, catalogue, perform};

/// A guided first tour: what this machine has, a model converted, looked at and validated, a story told.
#[derive(Args)]
pub struct Arguments {}

/// Asks for a model, a width and a folder, and runs the verbs of the tour in this process; Esc ends it with exit code 130.
pub fn run(rt: &Runtime, _: &Arguments) -> Outcome {
    say!(
        "Five steps: this machine, a conversion, a look inside, a validation, a story. Esc leaves at any time.\n"
    )?;
    step(rt, &["info"])?;
    let source = Text::new("Which model? A folder, a .gguf file, OWNER/NAME, or a short name:")
        .with_default("models/stories")
        .prompt()
        .map_err(left)?;
    let bits = Select::new("How many bits a weight?", vec!["4", "8", "2", "1"])
        .prompt()
        .map_err(left)?;
    let out = Text::new("Where to?")
        .with_default("models/quickstart")
        .prompt()
        .map_err(left)?;
    step(rt, &["convert", &source, "--bits", bits, "--out", &out])?;
    if Confirm::new("Look at its tensors?")
        .with_default(true)
        .prompt()
        .map_err(left)?
    {
        step(rt, &["inspect", "--verify", &out])?;
    }
    if Confirm::new("Is it still the same model? Validate it beside its source, layer by layer:")
        .with_default(true)
        .prompt()
        .map_err(left)?
    {
        // Not into the folder of the model, which holds one JSON file. What does not pass is told, and the tour goes on.
        let report = format!("{}-validation", out.trim_end_matches('/'));
        let validated = catalogue::fetched(&source).and_then(|source| {
            let source = source.to_string_lossy();
            step(
                rt,
                &["validate", &out, "--reference", &source, "--out", &report],
            )
        });
        if let Err(failure) = validated {
            say!("{}", failure.message)?;
        }
    }
    let prompt = Text::new("What shall it go on with?")
        .with_default("Once upon a time")
        .prompt()
        .map_err(left)?;
    step(rt, &["run", &out, &prompt])
}

/// Shows a command and runs it.
fn step(rt: &Runtime, arguments: &[&str]) -> Outcome {
    say!("\n$ apl-ffi {}", arguments.join(" "))?;
    let parsed = Cli::try_parse_from(["apl-ffi"].iter().chain(arguments));
    let cli = parsed.map_err(|e| Failure::new(2, e.to_string()))?;
    perform(rt, &cli.verb)
}

fn left(e: inquire::InquireError) -> Failure {
    Failure::new(130, format!("the tour ends here: {e}"))
}
