//! Products of quantised matrices with vectors.

mod activations;
mod aligned;
mod buffer;
mod device;
mod doubles;
mod int8;
mod pack;
mod rows;
mod tasks;
mod tiles;
mod weights;
mod workspace;

pub use activations::Activations;
pub use buffer::{Arena, Array, Floats};
pub use doubles::{narrowed, widen};
pub use tasks::Output;
pub use weights::Weights;
pub use workspace::Workspace;

use crate::cpu::rows::RowSource;
use crate::error::Result;
use crate::quant::Codes;
use crate::runtime::Runtime;

/// The one-shot product with float activations: `y[v] = W x[v]` for each of `n` vectors.
///
/// `x` is `(n, cols)`, `y` is `(n, rows)`; the weights are neither converted nor kept.
///
/// # Errors
/// `ERR_MEMORY`; `y` is then unchanged.
pub fn product(rt: &Runtime, codes: &Codes<'_>, x: &[f32], y: &mut [f32], n: usize) -> Result<()> {
    rows::Driver::new(rt).multiply(&RowSource::Codes(*codes), x, y, n)
}

/// The one-shot product of 1-bit codes with the signs of the activations, exact in integers before
/// the scale.
///
/// `codes.bits` is 1; `x` is `(n, cols)`, `y` is `(n, rows)`.
///
/// # Errors
/// `ERR_MEMORY`; `y` is then unchanged.
pub fn sign_product(
    rt: &Runtime,
    codes: &Codes<'_>,
    x: &[f32],
    y: &mut [f32],
    n: usize,
) -> Result<()> {
    rows::Driver::new(rt).multiply_sign(codes, x, y, n)
}

/// The dequantised weights, each rounded once to float32; `out` is `(rows, cols)`.
///
/// # Errors
/// `ERR_MEMORY`; `out` is then unchanged.
pub fn dequantize(rt: &Runtime, codes: &Codes<'_>, out: &mut [f32]) -> Result<()> {
    rows::Driver::new(rt).dequantize(&RowSource::Codes(*codes), out)
}
