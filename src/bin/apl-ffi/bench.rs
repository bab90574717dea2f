//! `apl-ffi bench`

use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde_json::json;

use apl_ffi::model::{Logits, Model, Session, SessionOptions};
use apl_ffi::runtime::Runtime;

use crate::terminal::bytes;
use crate::{Outcome, run};

/// Measure a model on this machine: tokens a second for a prompt and for text, memory, time to open.
#[derive(Args)]
pub struct Arguments {
    /// A manifest, a .gguf file, a folder, or `demo`.
    #[arg(long, default_value = "demo")]
    model: String,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 256)]
    prompt: usize,
    /// Tokens of the text.
    #[arg(long, default_value_t = 64)]
    tokens: usize,
    /// Times; the median is told.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Quantise float weights to so many bits while loading; 32 for none.
    #[arg(long)]
    bits: Option<u8>,
    /// int8 or f32 (exact).
    #[arg(long, default_value = "int8", value_parser = ["int8", "f32"])]
    activations: String,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Does it.
pub fn run(rt: &Runtime, a: &Arguments) -> Outcome {
    let begun = Instant::now();
    let model = run::open(rt, &a.model, a.bits, &a.activations, None)?;
    let opened = begun.elapsed().as_secs_f64();
    let (mut prompts, mut texts) = (Vec::new(), Vec::new());
    for _ in 0..a.rounds.max(1) {
        let (prompt, text) = round(rt, &model, a)?;
        prompts.push(prompt);
        texts.push(text);
    }
    let (prompt, text) = (median(&mut prompts), median(&mut texts));
    let (all, read) = model.weight_bytes();
    let info = model.info();
    if a.json {
        println!(
            "{:#}",
            json!({"model": a.model, "opened_s": opened, "prompt_tokens_s": prompt, "text_tokens_s": text, "weight_bytes": all,
                   "bytes_a_token": read, "read_gb_s": text * read as f64 / 1e9, "bits": info["bits"], "activations": a.activations,
                   "threads": rt.pool().threads(), "isa": rt.isa().name()})
        );
        return Ok(());
    }
    println!(
        "{}: {} bits, {} activations, {} threads, {}",
        a.model,
        info["bits"],
        a.activations,
        rt.pool().threads(),
        rt.isa().name()
    );
    println!("opened in {opened:.3} s; weights {}", bytes(all));
    println!(
        "prompt of {} tokens: {prompt:.0} tokens a second",
        a.prompt.min(model.context())
    );
    println!(
        "text: {text:.1} tokens a second, {:.1} GB/s of weights",
        text * read as f64 / 1e9
    );
    Ok(())
}

/// Tokens a second, of the prompt and of the text.
fn round(rt: &Runtime, model: &Arc<Model>, a: &Arguments) -> Outcome<(f64, f64)> {
    let mut session = Session::new(rt, model.clone(), &SessionOptions::default())?;
    let vocabulary = model.architecture().vocabulary as u32;
    let prompt = a.prompt.clamp(1, model.context().saturating_sub(1).max(1));
    let ids: Vec<u32> = (0..prompt as u32)
        .map(|i| i.wrapping_mul(2654435761) % vocabulary)
        .collect();
    let begun = Instant::now();
    session.eval(rt, &ids, Logits::None)?;
    let fed = prompt as f64 / begun.elapsed().as_secs_f64();
    let tokens = a.tokens.min(model.context() - prompt).max(1);
    let begun = Instant::now();
    for &id in ids.iter().cycle().take(tokens) {
        session.eval(rt, &[id], Logits::None)?;
    }
    Ok((fed, tokens as f64 / begun.elapsed().as_secs_f64()))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
