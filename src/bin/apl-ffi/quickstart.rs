//! `apl-ffi quickstart`

use std::io::{IsTerminal, stdin};

use clap::{Args, Parser};
use inquire::{Confirm, Select, Text};

use apl_ffi::model::source::Source;

use crate::terminal::say;
use crate::{Cli, Failure, Machine, Outcome, catalogue, perform, shell};

/// A guided first tour: what this machine has, a model converted, looked at and validated, a story told.
#[derive(Args)]
pub struct Arguments {}

/// Asks for a model, a width and a folder, and runs the verbs of the tour in this process; Esc ends it with exit code 130.
pub fn run(machine: &Machine, _: &Arguments) -> Outcome {
    if !stdin().is_terminal() {
        return Err(Failure::new(
            2,
            "the tour asks questions, and stdin is not a terminal: run it in one",
        ));
    }
    say!(
        "Five steps: this machine, a conversion, a look inside, a validation, a story. Esc leaves at any time.\n"
    )?;
    step(machine, "info", &[], &[])?;
    // One with float weights, which can be validated; an installation may have the demonstration only.
    let mut with_floats = ["models/stories", "stories"].into_iter();
    let shipped = with_floats.find(|model| catalogue::local(model).is_ok());
    let shipped = shipped.unwrap_or("demo");
    let source = Text::new("Which model? A folder, a .gguf file, OWNER/NAME, or a short name:")
        .with_default(shipped)
        .prompt()
        .map_err(left)?;
    let bits = Select::new("How many bits per weight?", vec!["4", "8", "2", "1"])
        .prompt()
        .map_err(left)?;
    let out = Text::new("Where to?")
        .with_default("models/quickstart")
        .prompt()
        .map_err(left)?;
    let options = [("--bits", Some(bits)), ("--out", Some(out.as_str()))];
    step(machine, "convert", &options, &[&source])?;
    if Confirm::new("Look at its tensors?")
        .with_default(true)
        .prompt()
        .map_err(left)?
    {
        step(machine, "inspect", &[("--verify", None)], &[&out])?;
    }
    validation(machine, &source, &out)?;
    let prompt = Text::new("What shall it continue?")
        .with_default("Once upon a time")
        .prompt()
        .map_err(left)?;
    step(machine, "run", &[], &[&out, &prompt])
}

/// Beside its source, if that is what `validate` takes. What does not pass is told, and the tour goes on.
fn validation(machine: &Machine, source: &str, out: &str) -> Outcome {
    let path = match catalogue::fetched(source) {
        Ok(path) => path,
        Err(failure) => return say!("\nNo validation: {}", failure.message),
    };
    if let Err(e) = apl_ffi::validate::accepts(&Source::open(&path, true)?) {
        return say!("\nNo validation: {}", e.message());
    }
    let question = "Is it still the same model? Validate it beside its source, layer by layer:";
    if !Confirm::new(question)
        .with_default(true)
        .prompt()
        .map_err(left)?
    {
        return Ok(());
    }
    // Not into the folder of the model, which holds one JSON file.
    let report = format!("{}-validation", out.trim_end_matches('/'));
    let reference = catalogue::name_of_fetched(source, &path);
    let options = [
        ("--reference", Some(reference.as_str())),
        ("--out", Some(report.as_str())),
    ];
    match step(machine, "validate", &options, &[out]) {
        Err(failure) => say!("{}", failure.message),
        Ok(()) => Ok(()),
    }
}

/// Shows a command and runs it.
fn step(
    machine: &Machine,
    verb: &str,
    options: &[(&str, Option<&str>)],
    arguments: &[&str],
) -> Outcome {
    let words = shell::words(verb, options, arguments);
    let shown: Vec<_> = words.iter().map(|word| shell::quoted(word)).collect();
    say!("\n$ apl-ffi {}", shown.join(" "))?;
    let words = words.iter().map(String::as_str);
    let parsed = Cli::try_parse_from(["apl-ffi"].into_iter().chain(words));
    let cli = parsed.map_err(|e| Failure {
        code: 2,
        message: e.to_string(),
    })?;
    perform(machine, &cli.verb)
}

fn left(e: inquire::InquireError) -> Failure {
    Failure::new(130, format!("the tour ends here: {e}"))
}
