//! Values that several verbs take as arguments.

use clap::ValueEnum;

use apl_ffi::matmul::Activations;
use apl_ffi::options::Width;
use apl_ffi::quant::Bits;

/// How the products of a model take their inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Inputs {
    /// Rounded to 8 bits: fast, an error under 1%.
    Int8,
    /// As float32: exact.
    F32,
}

impl From<Inputs> for Activations {
    fn from(inputs: Inputs) -> Activations {
        match inputs {
            Inputs::Int8 => Activations::Int8,
            Inputs::F32 => Activations::F32,
        }
    }
}

/// A width that weights are kept in: of codes, or of floats.
pub fn width(text: &str) -> Result<Width, String> {
    match text {
        "16" => Ok(Width::F16),
        "32" => Ok(Width::F32),
        _ => codes(text)
            .map(Width::Codes)
            .map_err(|why| format!("{why}; 16 and 32 keep floats")),
    }
}

/// A width of codes.
pub fn codes(text: &str) -> Result<Bits, String> {
    let bits = text.parse().ok().and_then(Bits::new);
    bits.ok_or_else(|| "expected 1, 2, 4 or 8".to_owned())
}

/// A number of things, of which there may be none.
pub fn count(text: &str) -> Result<usize, String> {
    text.parse()
        .map_err(|_| "expected an integer, 0 or more".to_owned())
}

/// What random numbers begin with.
pub fn seed(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| format!("expected an integer from 0 to {}", u64::MAX))
}

/// A number of things, of which there has to be one.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("expected an integer, 1 or more".to_owned()),
    }
}
