//! The definition of every quantised format, in safe scalar Rust.
//!
//! Nothing here is optimised or `unsafe`: kernels, packers and file readers are tested against
//! these functions.
//!
//! A weight matrix `W` has `rows` outputs and `cols` inputs, row-major. The columns of a row are
//! divided into groups of `group`; the last group of a row may be shorter. A weight is
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
mod split;

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
pub use split::{
    DIGIT_BASE, DIGITS, SPLIT_FULL_BLOCK, SPLIT_KEPT, SPLIT_LARGEST, SPLIT_SCALES, SPLIT_SMALLEST,
    split_block, split_scale,
};
