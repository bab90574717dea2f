//! `apl-ffi run`

mod chat;

use std::io::{IsTerminal, stdin};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;

use apl_ffi::error::{Error, Status};
use apl_ffi::model::source::Source;
use apl_ffi::model::{Logits, Model, ModelOptions, Sampling, Session, SessionOptions};
use apl_ffi::options::{WeightOptions, Width};
use apl_ffi::quant::Bits;
use apl_ffi::runtime::Runtime;

use crate::arguments::{Inputs, count, positive, seed, width};
use crate::interrupts::{ends_at_interrupt, interrupted, interruption, watch_interrupts};
use crate::terminal::{counted, note, say, say_now};
use crate::{Failure, Outcome, catalogue, input};

/// Let a model continue a text, or talk with it.
///
/// Sampling options not given come from the model's generation_config.json, else the defaults shown.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
                  apl-ffi run demo \"Once upon a time\"\n  \
                  apl-ffi run demo --temperature 0 -n 50 < prompt.txt\n  \
                  apl-ffi run models/tiny --chat --system \"You answer in rhymes.\"\n  \
                  apl-ffi run model.gguf --bits 8 --seed 7 \"The capital of France is\"")]
pub struct Arguments {
    /// A manifest, a .gguf file, a folder, or `demo`.
    pub model: String,
    /// The text to continue; `-` reads it from stdin. Without a prompt, stdin is read if it is not a terminal; else the model begins
    /// by itself, if it has a token that texts begin with. With --chat, the first message.
    pub prompt: Option<String>,
    /// Read the text to continue from this file.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,
    /// A conversation, by the model's chat template. An empty line or Ctrl-D ends it. At a terminal, Ctrl-C ends an answer, and lines
    /// are edited as in a shell: with the arrow keys, earlier ones too.
    #[arg(long)]
    pub chat: bool,
    /// What the model is told before a conversation: who it is, how it answers. Not every chat template takes it.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
    /// The most tokens to generate.
    #[arg(long, short = 'n', default_value_t = 400, allow_negative_numbers = true, value_parser = count)]
    pub tokens: usize,
    /// Logits are divided by it; 0: always the most likely token. [0.8]
    #[arg(long, allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Only this many of the most likely tokens; 0: all. [40]
    #[arg(long, allow_negative_numbers = true, value_parser = count)]
    pub top_k: Option<usize>,
    /// Only the most likely tokens that together have this probability. [0.95]
    #[arg(long, allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Only tokens whose probability is at least this fraction of the most likely token's. [0.05]
    #[arg(long, allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Above 1: tokens among the last 64 become less likely. [1]
    #[arg(long, allow_negative_numbers = true)]
    pub repeat_penalty: Option<f32>,
    /// Of the random numbers: the same seed gives the same text.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_parser = seed)]
    pub seed: u64,
    /// Quantise weights to this many bits while loading: 1, 2, 4, 8; 16 and 32 keep floats. Without it, converted models and weights
    /// already in a format this library supports stay as they are; of all others, types of more than 4 bits (Q5_0, Q6_K …) become 8
    /// bits, and floats and the rest (Hugging Face, F16, Q3_K …) 4 bits.
    #[arg(long, allow_negative_numbers = true, value_parser = width)]
    pub bits: Option<Width>,
    /// How products take their inputs.
    #[arg(long, value_enum, default_value_t = Inputs::Int8)]
    pub activations: Inputs,
    /// Tokens of prompt and text at most. [default: what the model takes]
    #[arg(long, allow_negative_numbers = true, value_parser = positive)]
    pub context: Option<usize>,
    /// No figures at the end.
    #[arg(long, short)]
    pub quiet: bool,
}

/// What becomes of weights that are no codes of ours, where no width is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Floats {
    /// They are quantised by the library's default, which is told: for speed.
    Quantised,
    /// They stay floats: for a measurement of the file.
    Kept,
}

/// How a model is opened.
pub struct Opening {
    /// What its weights become; `None`: codes of ours stay, and `floats` says what becomes of all others.
    pub width: Option<Width>,
    pub floats: Floats,
    pub inputs: Inputs,
    /// The longest context of a session; `None`: the model's.
    pub context: Option<usize>,
}

impl Opening {
    /// To measure a model: as its file has it, unless a width is asked for.
    pub fn measured(width: Option<Width>, inputs: Inputs) -> Opening {
        Opening {
            width,
            floats: Floats::Kept,
            inputs,
            context: None,
        }
    }
}

/// Opens a model: a path, or a name of [`catalogue::local`].
pub fn open(rt: &Runtime, model: &str, how: &Opening) -> Outcome<Arc<Model>> {
    let path = catalogue::local(model)?;
    let mut options = ModelOptions {
        context: how.context,
        ..ModelOptions::default()
    };
    options.weights.keep_floats = how.floats == Floats::Kept;
    options.weights.width = how.width;
    options.weights.activations = how.inputs.into();
    if how.width.is_none() && how.floats == Floats::Quantised {
        keep_or_tell(&path, &mut options.weights)?;
    }
    match Model::open(rt, &path, &options) {
        // No argument is out of its range but a width that weights do not fit: the file has weights that are no numbers.
        Err(e) if e.status() == Status::Range && how.width != Some(Width::F16) => {
            Err(Failure::new(4, e.message()))
        }
        Err(e) => Err(
            match e.message().strip_prefix("options has \"context\": ") {
                Some(found) => Failure::new(2, format!("--context is {found}")),
                None => e.into(),
            },
        ),
        Ok(opened) => Ok(Arc::new(opened)),
    }
}

/// What is done with weights that are no codes of ours, if the model has any: floats of our own format were converted to be floats
/// and stay so; what the default does to all others is told.
fn keep_or_tell(path: &Path, options: &mut WeightOptions) -> Outcome {
    let source = Source::open(path, true)?;
    let types = source.float_types()?;
    if source.kind() == "manifest" {
        let is_float16 =
            types.iter().all(|(kind, _)| kind == "F16") && !apl_ffi::validate::is_quantised(path)?;
        match is_float16 {
            true => options.width = Some(Width::F16),
            false => options.keep_floats = true,
        }
        return Ok(());
    }
    let Width::Codes(default) = WeightOptions::DEFAULT_WIDTH else {
        return Ok(());
    };
    for bits in Bits::ALL {
        let of_these: Vec<&str> = types
            .iter()
            .filter(|(_, width)| width.unwrap_or(default) == bits)
            .map(|(kind, _)| kind.as_str())
            .collect();
        if of_these.is_empty() {
            continue;
        }
        let floats = of_these.iter().all(|t| ["F32", "F16", "BF16"].contains(t));
        note!(
            "{} weights {} to {} bits; --bits 32 keeps them",
            of_these.join(", "),
            if floats { "quantised" } else { "requantised" },
            bits.get()
        );
    }
    Ok(())
}

/// Prints the prompt and what the model goes on with, token by token, or holds a conversation; figures go to stderr.
pub fn run(rt: &Runtime, a: &Arguments) -> Outcome {
    sampling(a, &Sampling::default()).check()?;
    let prompt = prompt(a)?;
    let begun = Instant::now();
    let how = Opening {
        width: a.bits,
        floats: Floats::Quantised,
        inputs: a.activations,
        context: a.context,
    };
    let model = open(rt, &a.model, &how)?;
    let opened = begun.elapsed();
    let tokenizer = model.tokenizer()?;
    if a.chat && !tokenizer.has_chat_template() {
        return Err(Failure::new(
            4,
            format!(
                "{} has no chat template: it continues a text, omit --chat",
                a.model
            ),
        ));
    }
    let options = SessionOptions {
        sampling: sampling(a, model.sampling()?),
        ..SessionOptions::default()
    };
    let mut session = Session::new(rt, model.clone(), &options).map_err(|e| match e.status() {
        Status::Memory => Failure::new(1, format!("{}; give a smaller --context", e.message())),
        _ => e.into(),
    })?;
    ends_at_interrupt(session.canceller());
    watch_interrupts()?;
    if a.chat {
        return chat::hold(rt, &mut session, a, prompt);
    }
    let ids = tokenizer.encode(&prompt, tokenizer.begins())?;
    if ids.is_empty() {
        return Err(Failure::new(
            2,
            format!(
                "the prompt has no tokens, and {} has none that texts begin with: give it some text",
                a.model
            ),
        ));
    }
    fits(&ids, &session)?;
    say_now(&prompt)?;
    let told = tell(rt, &mut session, &ids, a.tokens);
    // A message stands on a line of its own.
    say!()?;
    let figures = told?;
    if !a.quiet {
        note!("[opened in {:.2} s; {figures}]", opened.as_secs_f64());
    }
    Ok(())
}

/// The text to continue, from wherever the arguments say.
fn prompt(a: &Arguments) -> Outcome<String> {
    let is_stdin = a.prompt.as_deref() == Some("-") || a.file.as_deref() == Some(Path::new("-"));
    match (&a.prompt, &a.file) {
        _ if is_stdin && a.chat => Err(Failure::new(
            2,
            "the lines of stdin are what is said with --chat, expected a first message or none instead of -",
        )),
        (Some(prompt), _) if prompt != "-" => Ok(prompt.clone()),
        (None, Some(file)) => input::prompt(file),
        (None, None) if a.chat || stdin().is_terminal() => Ok(String::new()),
        _ => input::prompt(Path::new("-")),
    }
}

/// Whether the session has room for a prompt.
fn fits(ids: &[u32], session: &Session) -> Outcome {
    let context = session.context();
    if ids.len() <= context {
        return Ok(());
    }
    let most = session.model().architecture().context;
    let advice = match most > context {
        true => format!("; give a larger --context, up to {most}, or a shorter prompt"),
        false => ", the most of this model; give a shorter prompt".to_owned(),
    };
    Err(Failure::new(
        2,
        format!(
            "the prompt has {}, the context {context}{advice}",
            counted(ids.len(), "token")
        ),
    ))
}

/// What the arguments ask of the sampler, and where they are silent what is advised.
fn sampling(a: &Arguments, advised: &Sampling) -> Sampling {
    Sampling {
        temperature: a.temperature.unwrap_or(advised.temperature),
        top_k: a.top_k.unwrap_or(advised.top_k),
        top_p: a.top_p.unwrap_or(advised.top_p),
        min_p: a.min_p.unwrap_or(advised.min_p),
        repeat_penalty: a.repeat_penalty.unwrap_or(advised.repeat_penalty),
        seed: a.seed,
    }
}

/// Feeds tokens and prints what follows, to the end of the text or `most` tokens; Ctrl-C ends it with 130.
fn tell(rt: &Runtime, session: &mut Session, ids: &[u32], most: usize) -> Outcome<String> {
    const ROOM: usize = 4096;
    let begun = Instant::now();
    let ended = |e: Error| match interrupted() {
        true => interruption(),
        false => e.into(),
    };
    session.eval(rt, ids, Logits::None).map_err(ended)?;
    let fed = begun.elapsed();
    let begun = Instant::now();
    let mut generated = 0;
    while generated < most && !interrupted() {
        let step = session.next(rt, ROOM).map_err(ended)?;
        if step.end {
            break;
        }
        generated += 1;
        say_now(step.piece)?;
    }
    if interrupted() {
        return Err(interruption());
    }
    let rate = |n: usize, time: std::time::Duration| n as f64 / time.as_secs_f64().max(1e-9);
    Ok(format!(
        "prompt: {}, {:.0} a second; text: {}, {:.0} a second",
        counted(ids.len(), "token"),
        rate(ids.len(), fed),
        counted(generated, "token"),
        rate(generated, begun.elapsed())
    ))
}
