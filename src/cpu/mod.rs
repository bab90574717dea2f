//! Kernels behind one contract, and the one place that asks what the processor can do.

mod dispatch;

pub use dispatch::{Features, Isa};
