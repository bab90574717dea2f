//! One-shot products: the weights come with the call.
//!
//! They run on the CPU, whatever the backend. The codes would have to be copied to a device first,
//! which reads them from memory once; that is all the CPU needs to multiply one vector, and the bus
//! is slower than the memory (64 GB/s against 100 GB/s and more). Weight handles are for codes that
//! are used again.

use super::args::{Arrays, arg, one_of};
use super::code_args::{ALL_BITS, CODE_BITS, CodeArgs, Format, code_args};
use super::guard::guard;
use super::state;
use super::status::APL_FFI_OK;
use super::vectors::Vectors;
use crate::error::Result;
use crate::matmul;

/// Computes `y = W x` with 1-bit weights: bit 1 is `+scale`, bit 0 is `-scale`.
///
/// `packed`: (rows, ceil(cols / 8)), first column in the most significant bit. `scales`: 1, (rows)
/// or (rows, G). `x`: (cols). Output: `y` (rows).
///
/// `group`: columns per scale, 0 for the whole row. G is the number of groups per row:
/// ceil(cols / group), or 1 if `group` is 0.
///
/// `mode` 0: float activations; the error of an element of `y` is at most
/// `1e-5 * norm2(row of W) * norm2(x)`, for rows of any length. `mode` 1: each element of `x` is
/// replaced by +1 (if >= 0) or -1; sums are exact integers before they are scaled.
///
/// Returns: OK; ERR_RANGE (a negative dimension, `mode`, a scale that is not finite, misaligned or
/// overlapping arrays); ERR_LENGTH; ERR_NULL; ERR_MEMORY. `y` is written on success only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_matmul_1bit(
    packed: *const u8,
    packed_len: i64,
    scales: *const f32,
    scales_len: i64,
    x: *const f32,
    x_len: i64,
    y: *mut f32,
    y_len: i64,
    rows: i64,
    cols: i64,
    group: i32,
    mode: i32,
) -> i32 {
    guard("apl_matmul_1bit", || {
        let codes = one_bit_args(packed, packed_len, scales, scales_len);
        let format = Format::new(ALL_BITS, 1, 1, rows, cols, group)?;
        let mode = mode_of(mode)?;
        let vectors = Vectors::one(arg("x", x, x_len), arg("y", y, y_len));
        // SAFETY: the contract of `abi`.
        unsafe { product(codes, format, mode, vectors) }
    })
}

/// Computes `y = W x` with 1-bit weights for each of `n` vectors.
///
/// As `apl_matmul_1bit`, with `x` (n, cols) and `y` (n, rows). A result has the same bits whatever
/// batch its vector is part of.
///
/// Returns: as `apl_matmul_1bit`; ERR_RANGE also for `n` < 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_matmul_1bit_batch(
    packed: *const u8,
    packed_len: i64,
    scales: *const f32,
    scales_len: i64,
    x: *const f32,
    x_len: i64,
    y: *mut f32,
    y_len: i64,
    rows: i64,
    cols: i64,
    group: i32,
    mode: i32,
    n: i64,
) -> i32 {
    guard("apl_matmul_1bit_batch", || {
        let codes = one_bit_args(packed, packed_len, scales, scales_len);
        let format = Format::new(ALL_BITS, 1, 1, rows, cols, group)?;
        let mode = mode_of(mode)?;
        let vectors = Vectors::batch(arg("x", x, x_len), arg("y", y, y_len), n)?;
        // SAFETY: the contract of `abi`.
        unsafe { product(codes, format, mode, vectors) }
    })
}

/// Computes `y = W x` with weights of 2, 4 or 8 bits: `scale * (code - zero_point)`.
///
/// `codes`: with `packing` 1, (rows, ceil(cols * bits / 8)) bytes, first code in the most
/// significant bits; with `packing` 0, (rows, cols), one code per byte. `scales`, `zero_points`: 1,
/// (rows) or (rows, G) values each; without zero points (`zero_points_len` 0), every zero point is
/// 2^(bits-1). `x`: (cols). Output: `y` (rows).
///
/// `group`: columns per scale, 0 for the whole row. G is the number of groups per row:
/// ceil(cols / group), or 1 if `group` is 0.
///
/// The error of an element of `y` is at most `1e-5 * norm2(row of W) * norm2(x)`, for rows of any
/// length.
///
/// The scalars are in another order than in `apl_quantize`: `bits` and `packing` follow the codes,
/// and `rows`, `cols` and `group` come last.
///
/// Returns: OK; ERR_RANGE (`bits`, `packing`, a negative dimension, a scale or a
/// weight that is not finite, a zero point or an unpacked code beyond 2^bits-1, misaligned or
/// overlapping arrays); ERR_LENGTH; ERR_NULL; ERR_MEMORY. `y` is written on success only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_matmul_q(
    codes: *const u8,
    codes_len: i64,
    bits: i32,
    packing: i32,
    scales: *const f32,
    scales_len: i64,
    zero_points: *const i32,
    zero_points_len: i64,
    x: *const f32,
    x_len: i64,
    y: *mut f32,
    y_len: i64,
    rows: i64,
    cols: i64,
    group: i32,
) -> i32 {
    guard("apl_matmul_q", || {
        let codes = code_args(
            arg("codes", codes, codes_len),
            scales,
            scales_len,
            zero_points,
            zero_points_len,
        );
        let format = Format::new(CODE_BITS, bits, packing, rows, cols, group)?;
        let vectors = Vectors::one(arg("x", x, x_len), arg("y", y, y_len));
        // SAFETY: the contract of `abi`.
        unsafe { product(codes, format, Mode::Float, vectors) }
    })
}

/// Computes `y = W x` with weights of 2, 4 or 8 bits for each of `n` vectors.
///
/// As `apl_matmul_q`, with `x` (n, cols) and `y` (n, rows). A result has the same bits whatever
/// batch its vector is part of.
///
/// Returns: as `apl_matmul_q`; ERR_RANGE also for `n` < 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_matmul_q_batch(
    codes: *const u8,
    codes_len: i64,
    bits: i32,
    packing: i32,
    scales: *const f32,
    scales_len: i64,
    zero_points: *const i32,
    zero_points_len: i64,
    x: *const f32,
    x_len: i64,
    y: *mut f32,
    y_len: i64,
    rows: i64,
    cols: i64,
    group: i32,
    n: i64,
) -> i32 {
    guard("apl_matmul_q_batch", || {
        let codes = code_args(
            arg("codes", codes, codes_len),
            scales,
            scales_len,
            zero_points,
            zero_points_len,
        );
        let format = Format::new(CODE_BITS, bits, packing, rows, cols, group)?;
        let vectors = Vectors::batch(arg("x", x, x_len), arg("y", y, y_len), n)?;
        // SAFETY: the contract of `abi`.
        unsafe { product(codes, format, Mode::Float, vectors) }
    })
}

/// How a one-shot product takes its activations.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Float,
    Sign,
}

fn mode_of(mode: i32) -> Result<Mode> {
    one_of("mode", mode, &[(0, Mode::Float), (1, Mode::Sign)])
}

fn one_bit_args(
    packed: *const u8,
    packed_len: i64,
    scales: *const f32,
    scales_len: i64,
) -> CodeArgs {
    code_args(
        arg("packed", packed, packed_len),
        scales,
        scales_len,
        std::ptr::null(),
        0,
    )
}

/// The four functions, once their scalars have been checked.
///
/// # Safety
/// The contract of `abi`, for every array.
unsafe fn product(
    codes: CodeArgs,
    format: Format,
    mode: Mode,
    vectors: Vectors<f32>,
) -> Result<i32> {
    let mut arrays = Arrays::default();
    let n = vectors.count();
    let codes = codes.declare(&mut arrays, format, n > 0);
    let (x, y) = vectors.declare(&mut arrays, format.shape.rows, format.shape.cols);
    arrays.check()?;
    // SAFETY: the arrays were checked; the rest is this function's own contract.
    let (codes, x, y) = unsafe { (codes.read()?, x.slice(), y.slice()) };
    if n > 0 {
        let runtime = state::runtime()?;
        match mode {
            Mode::Float => matmul::product(&runtime, &codes, x, y, n)?,
            Mode::Sign => matmul::sign_product(&runtime, &codes, x, y, n)?,
        }
    }
    Ok(APL_FFI_OK)
}
