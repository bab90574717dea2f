//! The definition of every quantised format, in safe scalar Rust.
//!
//! Nothing here is fast on purpose and nothing here is `unsafe`: kernels, packers and file readers
//! are checked against these functions.
//!
//! A weight matrix `W` has `rows` outputs and `cols` inputs, row-major. Along a row the columns are
//! cut in groups of `group`; the last group of a row may be short. A weight is
//!
//! ```text
//! scale[row, group] * level,   level = code - zero_point          (2, 4, 8 bits)
//!                              level = +1 for bit 1, -1 for bit 0 (1 bit)
//! ```

mod activations;
mod codes;
mod grid;
mod nearest;
mod quantize;
mod search;
mod shape;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod theory;

pub use activations::{TINY_AMAX, quantize_block};
pub use codes::{
    Codes, CodesBuf, Packing, ScaleValues, ScalesBuf, pack_row, packed_row_bytes, unpack_row,
};
pub use quantize::{Band, Element, Method, ScalePrecision, Spec, quantize, quantize_in_bands};
pub use shape::{Bits, Per, Shape};
