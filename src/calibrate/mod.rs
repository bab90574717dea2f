//! Quantisation that takes the inputs of a matrix into account.
//!
//! The error of the products of a matrix `W` with inputs `x` is
//!
//! ```text
//! E |(W - Q) x|^2 = sum over rows of (w - q) H (w - q)',   H = E[x x']
//! ```
//!
//! so `H`, gathered while the unquantised model reads a text, determines which errors of the
//! weights matter and which cancel. Rows are independent. A matrix is quantised by the search of
//! [`crate::quant`] followed by a descent on this quadratic form ([`descent`]).
//!
//! | module | responsibility |
//! |---|---|
//! | `hessian` | `H` of one input, summed block by block |
//! | `descent` | codes and scales that lower `(w - q) H (w - q)'` |
//! | `gather` | the Hessians of a model, gathered while it reads a text |
//! | `tune` | all scales and norms together, codes fixed; for small models at 1 and 2 bits |
//!
//! Alternatives were tried, measured as the perplexity of stories260K at 4 bits, symmetric groups
//! of 32 (unquantised 5.98 on that sample, search alone 6.59): the diagonal of `H` as weights of
//! the search 6.58; error feedback in the order of the columns (GPTQ) 6.49; that followed by the
//! descent 6.42; the descent from the search 6.38. Hessians of a model whose earlier layers are
//! already quantised gave 6.41, so the simplest variant was the best.

mod descent;
mod gather;
mod hessian;
mod tune;

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

pub use descent::quantize;
pub use gather::{Calibration, Known};
pub use hessian::Hessian;

/// `ERR_STATE` once it is cancelled.
fn go_on(cancelled: &AtomicBool) -> Result<()> {
    match cancelled.load(Ordering::Relaxed) {
        true => Err(Error::state("the calibration was cancelled")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests;
