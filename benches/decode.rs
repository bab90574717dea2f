//! Tokens per second of a model in the shape of TinyLlama-1.1B with random weights: prefill of 512
//! tokens, and decode.
//!
//! `cargo bench --bench decode [-- OPTIONS]`, with the options `--threads N`, `--bits 8,4,2,1`,
//! `--activations int8|f32`, `--tokens N` and `--context N`: decode begins at a context of N
//! tokens, at most the 512 of the prompt.
//!
//! With `--open PATH` instead: the time to open a model, and the peak memory after opening it and
//! after a prompt of 512 and some decoded tokens.
//!
//! Each decoded token reads every matrix but the embedding once. The table gives those bytes per
//! second as a share of what the same threads read from memory, in alternating samples. Of both
//! rates the 90th percentile is taken: samples that another process interrupted say nothing about
//! this one.

#[path = "matmul/ceilings.rs"]
#[expect(dead_code, reason = "the ceilings of arithmetic are for products")]
mod ceilings;
#[path = "matmul/stats.rs"]
mod stats;

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use apl_ffi::error::Result;
use apl_ffi::matmul::{Activations, Arena, Weights};
use apl_ffi::model::architecture::{Activation, Architecture, Family, Pairing, Rope, RopeScaling};
use apl_ffi::model::{Logits, Model, ModelOptions, Session, SessionOptions, Tensors};
use apl_ffi::quant::{Bits, Codes, Packing, Per, ScaleValues, Shape, packed_row_bytes};
use apl_ffi::runtime::{Config, Runtime};

use ceilings::Ceilings;
use stats::median;

fn tinyllama() -> Architecture {
    let layers = 22;
    Architecture {
        family: Family::Llama,
        layers,
        hidden: 2048,
        intermediate: 5632,
        vocabulary: 32000,
        context: 2048,
        heads: 32,
        kv_heads: 4,
        head_dim: 64,
        norm_eps: 1e-5,
        norm_offset: 0.0,
        activation: Activation::Silu,
        rope: Rope {
            theta: 10000.0,
            scaling: RopeScaling::None,
            pairing: Pairing::Halves,
        },
        embedding_scale: 1.0,
        query_scale: 0.125,
        windows: vec![None; layers],
        attention_softcap: None,
        final_softcap: None,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        qk_norm: false,
        sandwich: false,
        tied: false,
    }
}

/// Random codes with one scale per group of 32, of a magnitude for which a layer's output is as
/// large as its input.
struct Random<'a> {
    rt: &'a Runtime,
    bits: Bits,
    activations: Activations,
    arena: Arena,
    state: RefCell<u64>,
}

impl Random<'_> {
    fn bytes(&self, len: usize) -> Vec<u8> {
        let mut state = self.state.borrow_mut();
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            *state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            bytes.extend_from_slice(&(*state ^ *state >> 29).to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    fn shape(name: &str) -> (usize, usize) {
        let a = tinyllama();
        let kv = a.kv_heads * a.head_dim;
        match name.trim_end_matches(".weight").rsplit('.').next() {
            Some("q_proj" | "o_proj") => (a.hidden, a.hidden),
            Some("k_proj" | "v_proj") => (kv, a.hidden),
            Some("gate_proj" | "up_proj") => (a.intermediate, a.hidden),
            Some("down_proj") => (a.hidden, a.intermediate),
            _ => (a.vocabulary, a.hidden),
        }
    }
}

impl Tensors for Random<'_> {
    fn matrix(&self, name: &str) -> Result<Weights> {
        let (rows, cols) = Random::shape(name);
        let shape = Shape::new(rows, cols, 32);
        let bytes = self.bytes(rows * packed_row_bytes(cols, self.bits));
        let levels = (1 << self.bits.get()) as f32;
        let size = half::f16::from_f32(1.7 / levels / (cols as f32).sqrt());
        let scales = vec![size; rows * shape.groups];
        let codes = Codes {
            shape,
            bits: self.bits,
            packing: Packing::Msb,
            bytes: &bytes,
            scales: ScaleValues::F16(&scales),
            scale_per: Per::Group,
            zero_points: None,
        };
        Weights::from_codes_in(&self.arena, self.rt, &codes, self.activations)
    }

    fn vector(&self, _: &str) -> Result<Vec<f32>> {
        Ok(vec![1.0; tinyllama().hidden])
    }
}

fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

/// Tokens in the prompt.
const PROMPT: usize = 512;

/// Measures prefill of [`PROMPT`] tokens, and decode from a context on.
fn measure(
    rt: &Runtime,
    bits: Bits,
    activations: Activations,
    (context, tokens): (usize, usize),
    ceilings: &mut Ceilings,
) -> Result<()> {
    let random = Random {
        rt,
        bits,
        activations,
        arena: Arena::default(),
        state: RefCell::new(1),
    };
    let model = Arc::new(Model::new(tinyllama(), &random)?);
    let options = SessionOptions::from_json(r#"{"context": 1024, "temperature": 0}"#)?;
    let mut session = Session::new(rt, model.clone(), &options)?;
    let prompt: Vec<u32> = (0..PROMPT as u32).map(|i| i * 61 % 32000).collect();
    let mut prefill = Vec::new();
    for _ in 0..3 {
        session.rewind(rt, 0)?;
        let mut outcome = Ok(());
        prefill.push(PROMPT as f64 / seconds(|| outcome = session.eval(rt, &prompt, Logits::None)));
        outcome?;
    }
    session.rewind(rt, context)?;
    let threads = rt.pool().threads();
    let bytes = model.weight_bytes().1 as f64;
    let (mut rates, mut readings) = (Vec::new(), Vec::new());
    for i in 0..tokens {
        let mut outcome = Ok(());
        rates.push(1.0 / seconds(|| outcome = session.eval(rt, &[i as u32], Logits::None)));
        outcome?;
        readings.push(ceilings.read_memory(threads));
    }
    let (decode, fast, reading) = (
        median(&mut rates),
        fastest(&mut rates),
        fastest(&mut readings),
    );
    println!(
        "{:>2} bits  prefill {:>6.1}  decode {:>6.1} tokens/s, the fastest tenth {:>6.1}: {:>5.1}% of reading {:.0} MB at {:.1} GB/s",
        bits.get(),
        median(&mut prefill),
        decode,
        fast,
        100.0 * fast * bytes / reading,
        bytes / 1e6,
        reading / 1e9,
    );
    Ok(())
}

/// The 90th percentile of the rates.
fn fastest(rates: &mut [f64]) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[(rates.len() - 1) * 9 / 10]
}

/// The peak resident memory so far.
fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    peak.unwrap_or(" unknown").trim().to_owned()
}

fn open(rt: &Runtime, path: &Path, tokens: usize) -> Result<()> {
    let mut model = None;
    let seconds = seconds(|| model = Some(Model::open(rt, path, &ModelOptions::default())));
    let model = Arc::new(model.expect("opened")?);
    let bytes = model.weight_bytes().0 as f64 / 1e6;
    println!(
        "{seconds:.3} s for {bytes:.0} MB of weights; at most {} resident",
        peak()
    );
    let (context, vocabulary) = (
        model.architecture().context,
        model.architecture().vocabulary,
    );
    let mut session = Session::new(rt, model, &SessionOptions::default())?;
    // Any ids: they affect neither time nor memory.
    let id = |i: usize| (i % vocabulary) as u32;
    let tokens = tokens.min(context / 2);
    let prompt: Vec<u32> = (0..(context - tokens).min(512)).map(id).collect();
    session.eval(rt, &prompt, Logits::None)?;
    for i in 0..tokens {
        session.eval(rt, &[id(i)], Logits::None)?;
    }
    println!(
        "a prompt of {} and {tokens} tokens: at most {}",
        prompt.len(),
        peak()
    );
    Ok(())
}

fn value<'a>(words: &'a [String], key: &str) -> Option<&'a str> {
    let at = words.iter().position(|w| w == key)?;
    words.get(at + 1).map(String::as_str)
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().collect();
    let number = |key, default| {
        value(&words, key)
            .and_then(|v| v.parse().ok())
            .unwrap_or(default)
    };
    let activations = match value(&words, "--activations") {
        Some("f32") => Activations::F32,
        _ => Activations::Int8,
    };
    let rt = Runtime::new(Config {
        threads: number("--threads", 2),
        ..Config::default()
    })?;
    if let Some(path) = value(&words, "--open") {
        return open(&rt, path.as_ref(), number("--tokens", 64));
    }
    let mut ceilings = Ceilings::new(rt.isa(), 512 << 20);
    let widths = value(&words, "--bits").unwrap_or("8,4,2,1");
    for bits in widths.split(',').filter_map(|b| Bits::new(b.parse().ok()?)) {
        measure(
            &rt,
            bits,
            activations,
            (
                number("--context", PROMPT).min(PROMPT),
                number("--tokens", 64),
            ),
            &mut ceilings,
        )?;
    }
    Ok(())
}
