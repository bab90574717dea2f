//! Kernels behind one contract, and the one place that asks what the processor can do.

#[macro_use]
mod kernel_set;

mod dispatch;
pub mod layout;
pub mod rows;
mod scalar;
pub mod tile;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

pub use dispatch::{Features, Isa};
