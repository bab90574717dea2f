//! Quantisation that knows what a matrix is multiplied with.
//!
//! A matrix `W` that meets inputs `x` errs in its products by
//!
//! ```text
//! E |(W - Q) x|^2 = sum over rows of (w - q) H (w - q)',   H = E[x x']
//! ```
//!
//! so `H`, gathered while the unquantised model reads a text, says which errors of the weights matter and which cancel. Rows are
//! independent. Quantising is the search of [`crate::quant`] and then a descent in that form ([`descent`]).
//!
//! | module | one reason to exist |
//! |---|---|
//! | `hessian` | `H` of one input, summed block by block |
//! | `descent` | codes and scales that lower `(w - q) H (w - q)'` |
//! | `gather` | the Hessians of a model, by letting it read |
//! | `tune` | scales and norms of all matrices together, codes as they are; for small models at 1 and 2 bits |
//!
//! What was tried instead, in perplexity of stories260K at 4 bits, symmetric groups of 32 (unquantised 5.98 on that sample, search
//! alone 6.59): the diagonal of `H` as weights of the search 6.58; error feedback in the order of the columns (GPTQ) 6.49; the
//! same and then the descent 6.42; the descent from the search 6.38. Hessians of a model whose earlier layers are
//! quantised already gave 6.41: what is simplest is best.

mod descent;
mod gather;
mod hessian;
mod tune;

pub use descent::quantize;
pub use gather::{Calibration, Known};
pub use hessian::Hessian;

#[cfg(test)]
mod tests;
