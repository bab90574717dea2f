//! `apl-ffi bench`

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};

use apl_ffi::matmul::Activations;
use apl_ffi::model::{Logits, Model, Session, SessionOptions};
use apl_ffi::options::Width;
use apl_ffi::runtime::Runtime;

use crate::arguments::{Inputs, positive, width};
use crate::peer::{self, Peer};
use crate::terminal::{bar, bytes, counted, note, say, table};
use crate::{Failure, Outcome, bench_page, catalogue, run};

/// Measure a model on this machine: size, memory, time to the first token, tokens a second of prompt and of text.
///
/// A .gguf file is also run by llama.cpp's `llama-bench`, if that is on the PATH, in turn with ours and with as many threads.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
                  apl-ffi bench\n  \
                  apl-ffi bench --model models/tiny --prompt 512 --tokens 128\n  \
                  apl-ffi bench --model model.gguf --threads 4 --json")]
pub struct Arguments {
    /// A manifest, a .gguf file, a folder, or `demo`.
    #[arg(long, default_value = "demo")]
    model: String,
    /// Tokens of the prompt. [default: 256, or what the context takes]
    #[arg(long, allow_negative_numbers = true, value_parser = positive)]
    prompt: Option<usize>,
    /// Tokens of the text. [default: 64, or what the context takes]
    #[arg(long, allow_negative_numbers = true, value_parser = positive)]
    tokens: Option<usize>,
    /// Rounds, whose median is reported.
    #[arg(long, default_value_t = 5, allow_negative_numbers = true, value_parser = positive)]
    rounds: usize,
    /// Quantise weights to this many bits while loading; 16 and 32 keep floats. Without it, converted models and weights already in a
    /// format this library supports stay as they are, quantised types of more than 4 bits become 8 bits, and all others 4.
    #[arg(long, allow_negative_numbers = true, value_parser = width)]
    bits: Option<Width>,
    /// How products take their inputs.
    #[arg(long, value_enum, default_value_t = Inputs::Int8)]
    activations: Inputs,
    /// As JSON; docs/json.md says what its keys mean.
    #[arg(long)]
    json: bool,
    /// Also a page with plots of every round, written to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// What one round measured.
struct Round {
    /// Tokens a second of the prompt.
    prompt: f64,
    /// Tokens a second of the text, which begins in an empty session.
    text: f64,
    /// Seconds from nothing but the open model to the logits that give the first token of the answer.
    first: f64,
}

/// Runs the rounds and prints their medians, in tokens a second; the page has every round.
pub fn run(rt: &Runtime, a: &Arguments) -> Outcome {
    if let Some(page) = &a.html {
        // Before anything is measured.
        let folder = page.parent().filter(|f| !f.as_os_str().is_empty());
        if page.is_dir() || folder.is_some_and(|f| !f.is_dir()) {
            return Err(Failure::new(
                3,
                format!(
                    "{} cannot be written: expected a file in a folder that exists",
                    page.display()
                ),
            ));
        }
    }
    let begun = Instant::now();
    let how = run::Opening {
        width: a.bits,
        floats: run::Floats::Quantised,
        inputs: a.activations,
        context: None,
    };
    let model = run::open(rt, &a.model, &how)?;
    let opened = begun.elapsed().as_secs_f64();
    let shape = Shape {
        prompt: length("--prompt", a.prompt, 256, model.context())?,
        text: length("--tokens", a.tokens, 64, model.context())?,
        threads: rt.pool().threads(),
    };
    let path = catalogue::local(&a.model)?;
    let mut peer = Peer::find(&path);
    let (mut rounds, mut peers) = (Vec::new(), Vec::new());
    let progress = bar(a.rounds as u64, "measuring {bar:24} {pos}/{len}");
    for _ in 0..a.rounds {
        rounds.push(round(rt, &model, &shape)?);
        if let Some(found) = &peer {
            match found.round(&path, shape.prompt, shape.text, shape.threads) {
                Ok(round) => peers.push(round),
                Err(why) => {
                    progress.suspend(|| note!("llama-bench is left out: {why}"));
                    peer = None;
                    peers.clear();
                }
            }
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    let of_rounds = |r: &Round| (r.prompt, r.text);
    let report = Report {
        rounds: rounds.iter().map(of_rounds).collect(),
        peers: peers.iter().map(|r| (r.prompt, r.text)).collect(),
        opened,
        prompt: median(rounds.iter().map(|r| r.prompt)),
        text: median(rounds.iter().map(|r| r.text)),
        first: median(rounds.iter().map(|r| r.first)),
        peer: peer.map(|_| {
            let of = |pick: fn(&peer::Round) -> f64| median(peers.iter().map(pick));
            (of(|r| r.prompt), of(|r| r.text))
        }),
    };
    let json = report.to_json(rt, a, &model, &shape);
    if a.json {
        say!("{json:#}")?;
    } else {
        report.print(rt, a, &model, &shape)?;
    }
    if let Some(path) = &a.html {
        std::fs::write(path, bench_page::page(&json))
            .map_err(|e| Failure::new(3, format!("{} cannot be written: {e}", path.display())))?;
    }
    Ok(())
}

/// How many tokens are run: what is asked for, if the context takes it.
fn length(option: &str, asked: Option<usize>, default: usize, context: usize) -> Outcome<usize> {
    match asked {
        Some(n) if n > context => Err(Failure::new(
            2,
            format!("{option} is {n}, expected at most {context}, the context of the model"),
        )),
        asked => Ok(asked.unwrap_or(default.min(context))),
    }
}

/// What each round runs, ours and llama.cpp's.
struct Shape {
    /// Tokens of the prompt.
    prompt: usize,
    /// Tokens of the text.
    text: usize,
    threads: usize,
}

/// Medians over the rounds.
struct Report {
    /// Seconds.
    opened: f64,
    /// Tokens a second.
    prompt: f64,
    text: f64,
    /// Seconds to the first token.
    first: f64,
    /// Of llama.cpp: prompt and text, tokens a second.
    peer: Option<(f64, f64)>,
    /// Prompt and text of every round, of ours and of llama.cpp.
    rounds: Vec<(f64, f64)>,
    peers: Vec<(f64, f64)>,
}

impl Report {
    fn to_json(&self, rt: &Runtime, a: &Arguments, model: &Model, shape: &Shape) -> Value {
        let (all, read) = model.weight_bytes();
        let info = model.info();
        let rounds = |all: &[(f64, f64)]| -> Vec<Value> {
            let one = |(prompt, text): &(f64, f64)| json!({"prompt_tokens_s": prompt, "text_tokens_s": text});
            all.iter().map(one).collect()
        };
        let peer = self.peer.map(|(prompt, text)| {
            json!({"prompt_tokens_s": prompt, "text_tokens_s": text,
                   "prompt_ratio": self.prompt / prompt, "text_ratio": self.text / text, "rounds": rounds(&self.peers)})
        });
        json!({"version": env!("CARGO_PKG_VERSION"), "model": a.model, "prompt_tokens": shape.prompt, "text_tokens": shape.text, "opened_s": self.opened, "first_token_s": self.first, "prompt_tokens_s": self.prompt,
               "text_tokens_s": self.text, "weight_bytes": all, "bits_a_weight": bits_a_weight(model),
               "peak_memory_bytes": peak_memory(), "bytes_a_token": read, "read_gb_s": self.text * read as f64 / 1e9,
               "bits": info["bits"], "activations": Activations::from(a.activations).name(), "threads": rt.pool().threads(),
               "isa": rt.isa().name(), "rounds": rounds(&self.rounds), "llama.cpp": peer})
    }

    fn print(&self, rt: &Runtime, a: &Arguments, model: &Model, shape: &Shape) -> Outcome {
        let (all, read) = model.weight_bytes();
        say!(
            "{}: {:.1} million weights, {} activations, {}, {}",
            a.model,
            model.info()["parameters"].as_f64().unwrap_or(0.0) / 1e6,
            Activations::from(a.activations).name(),
            counted(shape.threads, "thread"),
            rt.isa().name()
        )?;
        say!(
            "weights {} ({:.2} bits a weight in memory, with scales and padding), peak memory {}",
            bytes(all),
            bits_a_weight(model),
            peak_memory().map_or("unknown".into(), bytes)
        )?;
        say!(
            "opened in {:.3} s, first token {:.1} ms after a prompt of {}\n",
            self.opened,
            1e3 * self.first,
            shape.prompt
        )?;
        let mut rows = vec![vec![String::new(), "tokens a second".into()]];
        rows.push(vec![
            format!("prompt of {}", shape.prompt),
            format!("{:.0}", self.prompt),
        ]);
        rows.push(vec![
            format!("text of {}", shape.text),
            format!("{:.1}", self.text),
        ]);
        if let Some((prompt, text)) = self.peer {
            rows[0].extend(["llama.cpp".into(), "ours / llama.cpp".into()]);
            rows[1].extend([
                format!("{prompt:.0}"),
                format!("{:.2}", self.prompt / prompt),
            ]);
            rows[2].extend([format!("{text:.1}"), format!("{:.2}", self.text / text)]);
        }
        table(&rows)?;
        say!(
            "\nThe text reads {:.1} GB/s of weights: {} a token.",
            self.text * read as f64 / 1e9,
            bytes(read)
        )?;
        Ok(())
    }
}

/// Bits that a weight of the matrices takes in truth, scales and padding included.
fn bits_a_weight(model: &Model) -> f64 {
    let weights = model.info()["parameters"].as_f64().unwrap_or(0.0);
    8.0 * model.weight_bytes().0 as f64 / weights.max(1.0)
}

/// The most memory that this process has had resident, in bytes.
#[cfg(target_os = "linux")]
fn peak_memory() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Only Linux tells it in a file.
#[cfg(not(target_os = "linux"))]
fn peak_memory() -> Option<usize> {
    None
}

fn round(rt: &Runtime, model: &Arc<Model>, shape: &Shape) -> Outcome<Round> {
    let vocabulary = model.architecture().vocabulary as u32;
    let ids: Vec<u32> = (0..shape.prompt.max(shape.text) as u32)
        .map(|i| i.wrapping_mul(2654435761) % vocabulary)
        .collect();
    let begun = Instant::now();
    let mut session = Session::new(rt, model.clone(), &SessionOptions::default())?;
    let made = begun.elapsed().as_secs_f64();
    session.eval(rt, &ids[..shape.prompt], Logits::None)?;
    let first = begun.elapsed().as_secs_f64();
    let mut session = Session::new(rt, model.clone(), &SessionOptions::default())?;
    let begun = Instant::now();
    for &id in &ids[..shape.text] {
        session.eval(rt, &[id], Logits::None)?;
    }
    Ok(Round {
        prompt: shape.prompt as f64 / (first - made),
        text: shape.text as f64 / begun.elapsed().as_secs_f64(),
        first,
    })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
