//! Fast quantised matrix products with a C ABI.

pub mod cpu;
pub mod error;
pub mod formats;
pub mod matmul;
pub mod memory;
pub mod quant;
pub mod runtime;

#[cfg(test)]
mod testing;
