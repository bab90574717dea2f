//! Fast quantised matrix products with a C ABI.

pub mod error;
pub mod memory;
pub mod quant;
