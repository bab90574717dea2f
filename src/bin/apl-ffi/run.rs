//! `apl-ffi run`

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde_json::json;

use apl_ffi::error::{Error, Status};
use apl_ffi::model::source::Source;
use apl_ffi::model::{Logits, Model, ModelOptions, Sampling, Session, SessionOptions};
use apl_ffi::options::{WeightOptions, Width};
use apl_ffi::quant::Bits;
use apl_ffi::runtime::Runtime;

use crate::arguments::{Inputs, width};
use crate::terminal::{
    ask, ends_at_interrupt, interrupted, interruption, say, say_now, watch_interrupts,
};
use crate::{Failure, Outcome, catalogue};

/// Let a model go on with a text, or talk with it.
#[derive(Args)]
pub struct Arguments {
    /// A manifest, a .gguf file, a folder, or `demo`.
    pub model: String,
    /// The text to go on with; without it, the model begins by itself, if it has a token that texts begin with.
    #[arg(default_value = "")]
    pub prompt: String,
    /// A conversation, by the model's chat template. An empty line or Ctrl-D ends it.
    #[arg(long)]
    pub chat: bool,
    /// The most tokens to generate.
    #[arg(long, short = 'n', default_value_t = 400)]
    pub tokens: usize,
    /// 0: always the likeliest token. Where this or one of the next four is not given, it is what the model's
    /// generation_config.json advises, else 0.8.
    #[arg(long, allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Only so many of the likeliest tokens; 0: all. [40]
    #[arg(long)]
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together have this probability. [0.95]
    #[arg(long, allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Only tokens that are at least so likely as a share of the likeliest. [0.05]
    #[arg(long, allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Above 1: tokens of the last 64 become less likely. [1]
    #[arg(long, allow_negative_numbers = true)]
    pub repeat_penalty: Option<f32>,
    /// The same seed tells the same story.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Quantise weights to so many bits while loading: 1, 2, 4, 8; 16 and 32 keep floats. Without it, codes of a width of ours stay
    /// as they are, and all others (Hugging Face, F16, Q5_0, K-quants …) become 4 bits.
    #[arg(long, value_parser = width)]
    pub bits: Option<Width>,
    /// How products take their inputs.
    #[arg(long, value_enum, default_value_t = Inputs::Int8)]
    pub activations: Inputs,
    /// The longest context.
    #[arg(long)]
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
        tell_requantised(&path)?;
    }
    match Model::open(rt, &path, &options) {
        // No argument is out of its range but a width that weights do not fit: the file has weights that are no numbers.
        Err(e) if e.status() == Status::Range && how.width != Some(Width::F16) => {
            Err(Failure::new(4, e.message()))
        }
        opened => Ok(Arc::new(opened?)),
    }
}

/// Says what the default does to weights that are no codes of ours, if the model has any.
fn tell_requantised(path: &Path) -> Outcome {
    let types = Source::open(path, true)?.float_types()?;
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
        eprintln!(
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
    let begun = Instant::now();
    let how = Opening {
        width: a.bits,
        floats: Floats::Quantised,
        inputs: a.activations,
        context: a.context,
    };
    let model = open(rt, &a.model, &how)?;
    let opened = begun.elapsed();
    if a.chat && !model.tokenizer()?.has_chat_template() {
        return Err(Failure::new(
            4,
            format!(
                "{} has no chat template: it goes on with a text, leave --chat away",
                a.model
            ),
        ));
    }
    let options = SessionOptions {
        sampling: sampling(a, model.sampling()?),
        ..SessionOptions::default()
    };
    let mut session = Session::new(rt, model.clone(), &options)?;
    ends_at_interrupt(session.canceller());
    watch_interrupts()?;
    if a.chat {
        return chat(rt, &mut session, a);
    }
    let tokenizer = model.tokenizer()?;
    let ids = tokenizer.encode(&a.prompt, tokenizer.begins())?;
    if ids.is_empty() {
        return Err(Failure::new(
            2,
            format!(
                "the prompt has no tokens, and {} has none that texts begin with: give it some text",
                a.model
            ),
        ));
    }
    say_now(&a.prompt)?;
    let figures = tell(rt, &mut session, &ids, a.tokens)?;
    say!()?;
    if !a.quiet {
        eprintln!("[opened in {:.2} s; {figures}]", opened.as_secs_f64());
    }
    Ok(())
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
        say!()?;
        return Err(interruption());
    }
    let rate = |n: usize, time: std::time::Duration| n as f64 / time.as_secs_f64().max(1e-9);
    Ok(format!(
        "prompt: {} tokens, {:.0} a second; text: {generated} tokens, {:.0} a second",
        ids.len(),
        rate(ids.len(), fed),
        rate(generated, begun.elapsed())
    ))
}

/// Turns, each through the template over the whole conversation; only what is new is fed.
fn chat(rt: &Runtime, session: &mut Session, a: &Arguments) -> Outcome {
    let model = session.model().clone();
    let tokenizer = model.tokenizer()?;
    let mut messages = Vec::new();
    let mut line = a.prompt.clone();
    loop {
        if line.is_empty() {
            line = ask("> ")?;
        }
        let text = line.trim();
        if text.is_empty() {
            return Ok(());
        }
        messages.push(json!({"role": "user", "content": text}));
        let ids = tokenizer.encode(&tokenizer.chat(&json!(messages).to_string())?, None)?;
        if ids.is_empty() {
            return Err(Failure::new(
                4,
                format!("the chat template of {} writes nothing", a.model),
            ));
        }
        let common = ids
            .iter()
            .zip(session.tokens())
            .take_while(|(a, b)| a == b)
            .count();
        let common = common.min(ids.len() - 1);
        if session.rewind(rt, common).is_err() {
            session.rewind(rt, 0)?;
        }
        let from = session.position();
        let before = ids.len();
        let figures = tell(rt, session, &ids[from..], a.tokens)?;
        say!()?;
        if !a.quiet {
            eprintln!("[{figures}]");
        }
        let answer = tokenizer.decode(&session.tokens()[before..])?;
        messages.push(json!({"role": "assistant", "content": answer}));
        line.clear();
    }
}
