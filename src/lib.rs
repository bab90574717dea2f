//! Fast quantised matrix products with a C ABI.

pub mod abi;
pub mod agreement;
pub mod calibrate;
pub mod convert;
pub mod cpu;
pub mod cuda;
pub mod error;
pub mod formats;
pub mod matmul;
mod members;
pub mod memory;
pub mod model;
pub mod options;
pub mod perplexity;
pub mod quant;
pub mod runtime;
mod signals;
pub mod tokenizer;
pub mod validate;
pub mod weights;

#[cfg(test)]
mod testing;
