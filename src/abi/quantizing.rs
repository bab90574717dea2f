//! Quantising and its inverse, into the caller's own arrays.

use super::args::{Arrays, Length, arg, one_of};
use super::code_args::{ALL_BITS, Format, code_args, packed_len, shape};
use super::guard::guard;
use super::state;
use super::status::APL_FFI_OK;
use crate::matmul;
use crate::quant::{Bits, Method, ScalePrecision, Spec};
use crate::weights;

/// Quantises a float matrix to codes of 1, 2, 4 or 8 bits, one scale per group.
///
/// `w`: (rows, cols). Outputs: `codes`, packed, (rows, ceil(cols * bits / 8)); `scales` (rows, G);
/// `zero_points` (rows, G), or length 0 for symmetric codes, whose zero point is 2^(bits-1). 1-bit
/// codes have no zero points: bit 1 is `+scale`, bit 0 is `-scale`. Scales are rounded to float16
/// if that makes every scale of the matrix a normal number or 0.
///
/// `group`: columns per group, 0 for the whole row. G is the number of groups per row:
/// ceil(cols / group), or 1 if `group` is 0.
///
/// `method` 0: round to nearest, the scale from the extremes of the group (with 1 bit, the mean
/// absolute value). `method` 1: scale and zero point are searched for the least squared error.
///
/// The scalars are in another order than in `apl_matmul_q`: `rows`, `cols`, `bits`, `group` and
/// `method` follow `w`. There is no `packing`: codes are always packed.
///
/// Returns: OK; ERR_RANGE (`bits`, `method`, a negative dimension, a weight that is not finite,
/// misaligned or overlapping arrays); ERR_LENGTH; ERR_NULL; ERR_MEMORY. The outputs are written on
/// success only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_quantize(
    w: *const f32,
    w_len: i64,
    rows: i64,
    cols: i64,
    bits: i32,
    group: i32,
    method: i32,
    codes: *mut u8,
    codes_len: i64,
    scales: *mut f32,
    scales_len: i64,
    zero_points: *mut i32,
    zero_points_len: i64,
) -> i32 {
    guard("apl_quantize", || {
        let shape = shape(rows, cols, group)?;
        let bits = one_of("bits", bits, ALL_BITS)?;
        let method = one_of(
            "method",
            method,
            &[(0, Method::Nearest), (1, Method::Search)],
        )?;

        let mut arrays = Arrays::default();
        let per_group = [("rows", shape.rows), ("G", shape.groups)];
        let w = arrays.input(
            arg("w", w, w_len),
            Length::Product(&[("rows", shape.rows), ("cols", shape.cols)]),
        );
        let codes = arrays.output(
            arg("codes", codes, codes_len),
            Length::Product(&packed_len(shape, bits)),
        );
        let scales = arrays.output(
            arg("scales", scales, scales_len),
            if shape.cols == 0 {
                Length::ProductOrNone(&per_group)
            } else {
                Length::Product(&per_group)
            },
        );
        let zero_points = arrays.output(
            arg("zero_points", zero_points, zero_points_len),
            if bits == Bits::One {
                Length::Absent("1-bit codes have no zero points")
            } else {
                Length::ProductOrNone(&per_group)
            },
        );
        arrays.check()?;
        // SAFETY: the arrays were checked; the rest is the contract of `abi`.
        let (w, codes, scales, zero_points) = unsafe {
            (
                w.slice(),
                codes.slice(),
                scales.slice(),
                zero_points.slice(),
            )
        };

        let spec = Spec {
            bits,
            symmetric: zero_points.is_empty(),
            method,
            scales: ScalePrecision::Auto,
        };
        let runtime = state::runtime()?;
        if shape.cols == 0 {
            scales.fill(0.0);
            zero_points.fill(0);
            return Ok(APL_FFI_OK);
        }
        let quantised = weights::quantize(&runtime, w, shape, &spec)?;
        codes.copy_from_slice(&quantised.bytes);
        for (i, scale) in scales.iter_mut().enumerate() {
            *scale = quantised.scales.values().get(i);
        }
        if let Some(found) = quantised.zero_points {
            zero_points.copy_from_slice(&found);
        }
        Ok(APL_FFI_OK)
    })
}

/// Converts codes of 1, 2, 4 or 8 bits to the float weights that they stand for.
///
/// `codes`: with `packing` 1, (rows, ceil(cols * bits / 8)) bytes, first code in the most
/// significant bits; with `packing` 0, (rows, cols), one code per byte. `scales`, `zero_points`: 1,
/// (rows) or (rows, G) values each; without zero points (`zero_points_len` 0), every zero point is
/// 2^(bits-1). With 1 bit, `zero_points_len` must be 0. `group`: columns per scale, 0 for the whole
/// row. Output: `w` (rows, cols).
///
/// Returns: OK; ERR_RANGE (`bits`, `packing`, a negative dimension, a scale or a
/// weight that is not finite, a zero point or an unpacked code beyond 2^bits-1, misaligned or
/// overlapping arrays); ERR_LENGTH; ERR_NULL; ERR_MEMORY. `w` is written on success only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_dequantize(
    codes: *const u8,
    codes_len: i64,
    bits: i32,
    packing: i32,
    scales: *const f32,
    scales_len: i64,
    zero_points: *const i32,
    zero_points_len: i64,
    w: *mut f32,
    w_len: i64,
    rows: i64,
    cols: i64,
    group: i32,
) -> i32 {
    guard("apl_dequantize", || {
        let format = Format::new(ALL_BITS, bits, packing, rows, cols, group)?;
        let shape = format.shape;

        let mut arrays = Arrays::default();
        let codes = code_args(
            arg("codes", codes, codes_len),
            scales,
            scales_len,
            zero_points,
            zero_points_len,
        )
        .declare(&mut arrays, format, true);
        let w = arrays.output(
            arg("w", w, w_len),
            Length::Product(&[("rows", shape.rows), ("cols", shape.cols)]),
        );
        arrays.check()?;
        // SAFETY: the arrays were checked; the rest is the contract of `abi`.
        let (codes, w) = unsafe { (codes.read()?, w.slice()) };

        matmul::dequantize(&*state::runtime()?, &codes, w)?;
        Ok(APL_FFI_OK)
    })
}
