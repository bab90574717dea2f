//! The arguments of a quantised matrix: codes, scales, zero points and their shape.

use super::args::{Arg, Arrays, Factor, Input, Length, arg, count, one_of};
use crate::error::{Error, Result};
use crate::memory;
use crate::quant::{Bits, Codes, Packing, Per, ScaleValues, Shape, packed_row_bytes};

/// The widths of codes that are unsigned integers.
pub(super) const CODE_BITS: &[(i32, Bits)] = &[(2, Bits::Two), (4, Bits::Four), (8, Bits::Eight)];

/// The same and 1 bit.
pub(super) const ALL_BITS: &[(i32, Bits)] = &[
    (1, Bits::One),
    (2, Bits::Two),
    (4, Bits::Four),
    (8, Bits::Eight),
];

/// The format of a quantised matrix: its scalar arguments, checked.
#[derive(Clone, Copy)]
pub(super) struct Format {
    pub(super) shape: Shape,
    pub(super) bits: Bits,
    pub(super) packing: Packing,
}

impl Format {
    /// From the scalars of a prototype; `widths` are those that the function accepts.
    ///
    /// # Errors
    /// `ERR_RANGE`.
    pub(super) fn new(
        widths: &[(i32, Bits)],
        bits: i32,
        packing: i32,
        rows: i64,
        cols: i64,
        group: i32,
    ) -> Result<Format> {
        let bits = one_of("bits", bits, widths)?;
        let packing = one_of(
            "packing",
            packing,
            &[(0, Packing::Bytes), (1, Packing::Msb)],
        )?;
        let shape = shape(rows, cols, group)?;
        Ok(Format {
            shape,
            bits,
            packing,
        })
    }

    fn codes_len(&self) -> [Factor; 2] {
        let Shape { rows, cols, .. } = self.shape;
        match self.packing {
            Packing::Bytes => [("rows", rows), ("cols", cols)],
            Packing::Msb => packed_len(self.shape, self.bits),
        }
    }
}

/// A shape from the scalars of a prototype.
///
/// # Errors
/// `ERR_RANGE`.
pub(super) fn shape(rows: i64, cols: i64, group: i32) -> Result<Shape> {
    let (rows, cols) = (count("rows", rows)?, count("cols", cols)?);
    let group = count("group", group.into())?;
    Ok(Shape::new(rows, cols, group))
}

/// The length of packed codes.
pub(super) fn packed_len(shape: Shape, bits: Bits) -> [Factor; 2] {
    [
        ("rows", shape.rows),
        ("ceil(cols * bits / 8)", packed_row_bytes(shape.cols, bits)),
    ]
}

/// The arrays of a quantised matrix, unchecked.
#[derive(Clone, Copy)]
pub(super) struct CodeArgs {
    /// `codes`, or `packed` in the 1-bit functions.
    pub(super) codes: Arg<*const u8>,
    pub(super) scales: Arg<*const f32>,
    pub(super) zero_points: Arg<*const i32>,
}

/// The same arrays, declared but not read.
pub(super) struct CodeInputs {
    format: Format,
    codes: Input<u8>,
    scales: Input<f32>,
    zero_points: Input<i32>,
}

impl CodeArgs {
    /// Declares the three arrays. `used` is false for a product of no vectors, in which scales may
    /// be absent.
    pub(super) fn declare(self, arrays: &mut Arrays, format: Format, used: bool) -> CodeInputs {
        let shape = format.shape;
        arrays.addressable::<f32>(&[("rows", shape.rows), ("cols", shape.cols)]);
        let zero_points = if format.bits == Bits::One {
            Length::Absent("1-bit codes have no zero points")
        } else {
            Length::PerShape {
                shape,
                optional: true,
            }
        };
        CodeInputs {
            format,
            codes: arrays.input(self.codes, Length::Product(&format.codes_len())),
            scales: arrays.input(
                self.scales,
                Length::PerShape {
                    shape,
                    optional: !used,
                },
            ),
            zero_points: arrays.input(self.zero_points, zero_points),
        }
    }
}

impl CodeInputs {
    /// Reads and checks the contents of the arrays.
    ///
    /// # Errors
    /// `ERR_RANGE`: a scale that is not finite, a zero point or an unpacked code out of range, a
    /// weight that is not finite; `ERR_MEMORY`.
    ///
    /// # Safety
    /// `Arrays::check` passed; the contract of `abi`; `'a` ends before the call does.
    pub(super) unsafe fn read<'a>(self) -> Result<Codes<'a>> {
        let Format {
            shape,
            bits,
            packing,
        } = self.format;
        // SAFETY: this function's own contract.
        let (bytes, scales, zero_points) = unsafe {
            (
                self.codes.slice(),
                self.scales.slice(),
                self.zero_points.slice(),
            )
        };
        finite("scales", scales)?;
        let max = i32::from(bits.max_code());
        within("zero_points", zero_points, |z| (0..=max).contains(&z), max)?;
        if packing == Packing::Bytes {
            within("codes", bytes, |c| c <= bits.max_code(), max)?;
        }
        let codes = Codes {
            // Without columns there may be no scales; group 1 makes G = 0.
            shape: if shape.cols == 0 {
                Shape::new(shape.rows, 0, 1)
            } else {
                shape
            },
            bits,
            packing,
            bytes,
            scales: ScaleValues::F32(scales),
            // Only a product of no vectors, which reads no scales, can have another number of them.
            scale_per: shape.per(scales.len()).unwrap_or(Per::Group),
            zero_points: match zero_points {
                [] => None,
                some => shape.per(some.len()).map(|per| (some, per)),
            },
        };
        finite_weights(&codes)?;
        Ok(codes)
    }
}

/// Refuses codes whose weights are beyond float32.
///
/// # Errors
/// `ERR_RANGE`, naming the first; `ERR_MEMORY`.
fn finite_weights(codes: &Codes<'_>) -> Result<()> {
    let ScaleValues::F32(scales) = codes.scales else {
        return Ok(());
    };
    if codes.shape.per(scales.len()).is_none() {
        return Ok(());
    }
    // The largest magnitude of a code minus a zero point.
    let most = f32::MAX / f32::from(codes.bits.max_code().max(1));
    if first_outside(scales, |s| s.abs() <= most).is_none() {
        return Ok(());
    }
    let mut row = memory::filled(codes.shape.cols, 0.0, "a row of weights")?;
    for r in 0..codes.shape.rows {
        codes.dequantize_row(r, &mut row);
        if let Some((c, w)) = first_outside(&row, f32::is_finite) {
            return Err(Error::range(format!(
                "the weight at row {r}, column {c} is {w}, expected a scale and a code whose product is finite"
            )));
        }
    }
    Ok(())
}

/// Refuses values that are not finite.
///
/// # Errors
/// `ERR_RANGE`, naming the first.
pub(super) fn finite(name: &str, values: &[f32]) -> Result<()> {
    match first_outside(values, |v| v.is_finite()) {
        None => Ok(()),
        Some((i, v)) => Err(Error::range(format!(
            "{name}[{i}] is {v}, expected a finite number"
        ))),
    }
}

fn within<T: Copy + std::fmt::Display>(
    name: &str,
    values: &[T],
    inside: impl Fn(T) -> bool,
    max: i32,
) -> Result<()> {
    match first_outside(values, inside) {
        None => Ok(()),
        Some((i, v)) => Err(Error::range(format!(
            "{name}[{i}] is {v}, expected 0 to {max}"
        ))),
    }
}

/// The first value outside. Blocks are tested as a whole, without an early exit, so that the test
/// is vectorised and takes little time compared with the product, even for a megabyte of codes.
fn first_outside<T: Copy>(values: &[T], inside: impl Fn(T) -> bool) -> Option<(usize, T)> {
    const BLOCK: usize = 4096;
    for (b, block) in values.chunks(BLOCK).enumerate() {
        if !block.iter().fold(true, |all, &v| all & inside(v)) {
            let i = block.iter().position(|&v| !inside(v))?;
            return Some((b * BLOCK + i, block[i]));
        }
    }
    None
}

/// From the arguments, in the order of the prototypes.
pub(super) fn code_args(
    codes: Arg<*const u8>,
    scales: *const f32,
    scales_len: i64,
    zero_points: *const i32,
    zero_points_len: i64,
) -> CodeArgs {
    CodeArgs {
        codes,
        scales: arg("scales", scales, scales_len),
        zero_points: arg("zero_points", zero_points, zero_points_len),
    }
}
