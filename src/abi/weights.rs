//! Weight handles: a matrix is converted once and then used often.

use std::ffi::c_char;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::args::{self, Arg, Arrays, Length, arg, count, fill, text};
use super::code_args::{ALL_BITS, Format, code_args};
use super::guard::guard;
use super::state::{self, Held};
use super::status::APL_FFI_OK;
use super::tables::WEIGHTS;
use super::vectors::Vectors;
use crate::error::Result;
use crate::matmul::{Weights, narrowed, widen};
use crate::memory;
use crate::options::{Source, WeightOptions, Width};
use crate::runtime::Executor;
use crate::weights::{self, Floats, Home};

/// Makes a weight handle from a quantised matrix; the library keeps a converted copy.
///
/// `codes`: with `packing` 1, (rows, ceil(cols * bits / 8)) bytes, first code in the most
/// significant bits; with `packing` 0, (rows, cols), one code per byte. `bits`: 1, 2, 4 or 8.
/// `scales`, `zero_points`: 1, (rows) or (rows, G) values each; without zero points
/// (`zero_points_len` 0), every zero point is 2^(bits-1). With 1 bit, `zero_points_len` must be 0.
/// `group`: columns per scale, 0 for the whole row.
///
/// `options`: JSON with one key, `"activations"`: `"f32"` (default), `"int8"`, or, with 1 bit,
/// `"sign"`; see `apl_weights_from_f32`.
///
/// Output: `handle`, to be freed with `apl_weights_free`.
///
/// Returns: OK; ERR_RANGE (`bits`, `packing`, a negative dimension, a scale or a
/// weight that is not finite, a zero point or an unpacked code beyond 2^bits-1, misaligned or
/// overlapping arrays); ERR_ENCODING; ERR_CONFIG; ERR_LENGTH; ERR_NULL; ERR_MEMORY (of device
/// memory only if CUDA is demanded: otherwise the matrix stays on the CPU); ERR_BACKEND (the device
/// failed); ERR_STATE (no handle is left).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_weights_from_codes(
    codes: *const u8,
    codes_len: i64,
    bits: i32,
    packing: i32,
    scales: *const f32,
    scales_len: i64,
    zero_points: *const i32,
    zero_points_len: i64,
    rows: i64,
    cols: i64,
    group: i32,
    options: *const c_char,
    handle: *mut i32,
) -> i32 {
    guard("apl_weights_from_codes", || {
        let format = Format::new(ALL_BITS, bits, packing, rows, cols, group)?;
        // SAFETY: the contract of `abi`.
        let options = unsafe { text("options", options)? };
        let options = WeightOptions::from_json(options.unwrap_or_default(), Source::Codes)?;
        options.activations_for(Width::Codes(format.bits))?;

        let mut arrays = Arrays::default();
        let codes = code_args(
            arg("codes", codes, codes_len),
            scales,
            scales_len,
            zero_points,
            zero_points_len,
        )
        .declare(&mut arrays, format, true);
        let handle = arrays.place("handle", handle);
        arrays.check()?;
        // SAFETY: the arrays were checked; the rest is the contract of `abi`.
        let codes = unsafe { codes.read()? };

        let runtime = state::runtime()?;
        let weights = weights::from_codes(&runtime, &codes, &options, Home::Backend)?;
        // SAFETY: as above.
        register(weights, &runtime, unsafe { handle.slice() })
    })
}

/// Makes a weight handle from a float32 matrix, quantised as the options specify.
///
/// `w`: (rows, cols). `options`: JSON; keys, all optional:
/// - `"bits"`: 1, 2, 4 (default) or 8; 32 keeps float32, 16 rounds to float16;
/// - `"group"`: columns per scale, 32 by default, 0 for the whole row. On the CPU, groups of 16
///   columns or more take the memory of the next multiple of 32; with shorter groups, rows are
///   padded to a multiple of 32 instead;
/// - `"symmetric"`: true (default) means no zero points;
/// - `"method"`: `"nearest"` (default) or `"search"`, which is slower and has a smaller error;
/// - `"activations"`: `"f32"` (default) is exact; `"int8"` quantises each vector to 8 bits during
///   the product, which is faster (except with groups of fewer than 16 columns) and adds less than
///   1% of error; `"sign"`, with 1 bit only, takes the signs of the elements. Float weights (16,
///   32) always use `"f32"`.
///
/// Output: `handle`, to be freed with `apl_weights_free`.
///
/// Returns: OK; ERR_RANGE (a negative dimension, a weight that is not finite or does not fit
/// float16, misaligned or overlapping arrays); ERR_ENCODING; ERR_CONFIG; ERR_LENGTH; ERR_NULL;
/// ERR_MEMORY and ERR_BACKEND as for `apl_weights_from_codes`; ERR_STATE (no handle is left).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_weights_from_f32(
    w: *const f32,
    w_len: i64,
    rows: i64,
    cols: i64,
    options: *const c_char,
    handle: *mut i32,
) -> i32 {
    guard("apl_weights_from_f32", || {
        // SAFETY: the contract of `abi`.
        unsafe { from_floats(arg("w", w, w_len), rows, cols, options, handle) }
    })
}

/// Makes a weight handle from a float64 matrix, whose elements are rounded to float32 first.
///
/// As `apl_weights_from_f32`. `w`: (rows, cols); a Dyalog array of floats needs no conversion. A
/// weight beyond the range of float32 is ERR_RANGE.
///
/// Returns: as `apl_weights_from_f32`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_weights_from_f64(
    w: *const f64,
    w_len: i64,
    rows: i64,
    cols: i64,
    options: *const c_char,
    handle: *mut i32,
) -> i32 {
    guard("apl_weights_from_f64", || {
        // SAFETY: the contract of `abi`.
        unsafe { from_floats(arg("w", w, w_len), rows, cols, options, handle) }
    })
}

/// Makes a weight handle from a named matrix in a file: a manifest (.json), .gguf or .safetensors.
///
/// `path`, `name`: text. A vector in the file is a matrix of one row. `options`: as for
/// `apl_weights_from_f32`, and `"mmap"`: true (default) maps the file, false reads it. Weights that
/// are already quantised are taken as stored, unless `"bits"` is given and differs; floats are
/// quantised by the options. Without `"bits"`, the GGUF types Q5_0, Q5_1, Q5_K and Q6_K become
/// 8-bit codes.
///
/// Output: `handle`, to be freed with `apl_weights_free`.
///
/// A mapped file that is truncated while in use ends the process with SIGBUS; `"mmap": false`
/// avoids that.
///
/// Returns: OK; ERR_ENCODING; ERR_CONFIG; ERR_NULL; ERR_RANGE (misaligned `handle`, a weight that
/// is not finite, a path or name of more than 64 KiB); ERR_IO; ERR_FORMAT (including a name that
/// the file does not have); ERR_UNSUPPORTED; ERR_MEMORY; ERR_BACKEND; ERR_STATE (no handle is
/// left).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_weights_open(
    path: *const c_char,
    name: *const c_char,
    options: *const c_char,
    handle: *mut i32,
) -> i32 {
    guard("apl_weights_open", || {
        // SAFETY: the contract of `abi`.
        let (path, name, options) = unsafe {
            (
                args::name("path", path)?,
                args::name("name", name)?,
                text("options", options)?,
            )
        };
        let options = WeightOptions::from_json(options.unwrap_or_default(), Source::File)?;

        let mut arrays = Arrays::default();
        let path = arrays.required("path", path);
        let name = arrays.required("name", name);
        let handle = arrays.place("handle", handle);
        arrays.check()?;

        let runtime = state::runtime()?;
        let weights = weights::open(&runtime, Path::new(path), name, &options, Home::Backend)?;
        // SAFETY: the arrays were checked; the rest is the contract of `abi`.
        register(weights, &runtime, unsafe { handle.slice() })
    })
}

/// Describes a weight handle, as a JSON object.
///
/// Keys: `rows`; `cols`; `bits` (1, 2, 4, 8; 16 and 32 are floats); `group` (columns per scale);
/// `symmetric`; `scales` (their type); `activations`; `bytes` (memory that it occupies); `path`
/// (how it is multiplied: `"tiles"`, as codes; `"rows"`, as floats; or `"device"`); `backend`
/// (where it is: `"cpu"` or `"cuda"`); `isa`. For float weights, `group`, `symmetric` and `scales`
/// are null.
///
/// Returns: the length in bytes of the whole text, excluding the NUL; ERR_HANDLE; ERR_LENGTH
/// (`capacity` < 0); ERR_NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_weights_info(handle: i32, json: *mut c_char, capacity: i32) -> i32 {
    guard("apl_weights_info", || {
        let (runtime, weights) = live(handle)?;
        let info = info(&weights, &runtime);
        // SAFETY: the contract of `abi`.
        unsafe { fill("json", json, capacity, &info) }
    })
}

/// Writes the weights of a handle as floats: those that its products multiply with.
///
/// Output: `w` (rows, cols).
///
/// Returns: OK; ERR_HANDLE; ERR_LENGTH; ERR_NULL; ERR_RANGE (misaligned); ERR_MEMORY; ERR_BACKEND.
/// `w` is written on success only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_weights_dequantize(handle: i32, w: *mut f32, w_len: i64) -> i32 {
    guard("apl_weights_dequantize", || {
        let (runtime, weights) = live(handle)?;
        let mut arrays = Arrays::default();
        let w = arrays.output(
            arg("w", w, w_len),
            Length::Product(&[("rows", weights.rows()), ("cols", weights.cols())]),
        );
        arrays.check()?;
        // SAFETY: the arrays were checked; the rest is the contract of `abi`.
        weights.dequantize(&runtime, unsafe { w.slice() })?;
        Ok(APL_FFI_OK)
    })
}

/// Saves the weights of a handle under a name: a manifest at `path` (.json), and an .npz beside it.
///
/// `path`, `name`: text. The .npz is in place before the manifest that refers to it, so an
/// interruption leaves either the old file or the new one. Whatever the manifest held before is
/// replaced. `apl_weights_open` reads it back; float weights (bits 16, 32) become codes again unless
/// its options have their bits.
///
/// Returns: OK; ERR_HANDLE; ERR_ENCODING; ERR_NULL; ERR_RANGE (`path` does not end in .json or has
/// more than 64 KiB; `name` is empty, has more than 1024 bytes, or has control characters); ERR_IO;
/// ERR_MEMORY; ERR_BACKEND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_weights_save(
    handle: i32,
    path: *const c_char,
    name: *const c_char,
) -> i32 {
    guard("apl_weights_save", || {
        let (runtime, weights) = live(handle)?;
        // SAFETY: the contract of `abi`.
        let (path, name) = unsafe { (args::name("path", path)?, args::name("name", name)?) };
        let mut arrays = Arrays::default();
        let path = arrays.required("path", path);
        let name = arrays.required("name", name);
        arrays.check()?;
        weights::save(&runtime, &weights, Path::new(path), name)?;
        Ok(APL_FFI_OK)
    })
}

/// Frees a weight handle. Safe while other threads use it: the weights live until their calls end.
///
/// Returns: OK; ERR_HANDLE (also for a handle that has been freed already).
#[unsafe(no_mangle)]
pub extern "C" fn apl_weights_free(handle: i32) -> i32 {
    guard("apl_weights_free", || {
        let _held = state::if_initialised();
        drop(WEIGHTS.remove(handle)?);
        Ok(APL_FFI_OK)
    })
}

/// Computes `y = W x` for each of `n` vectors, with the weights of a handle.
///
/// `x`: (n, cols). Output: `y` (n, rows). They must not overlap.
///
/// On the CPU, a result has the same bits for any number of threads and whatever batch its vector
/// is part of. On a CUDA device, the same call gives the same bits each time.
///
/// Returns: OK; ERR_HANDLE; ERR_RANGE (`n` < 0, a vector that is not finite where activations are
/// `"int8"`, misaligned or overlapping arrays); ERR_LENGTH; ERR_NULL; ERR_MEMORY; ERR_BACKEND (the
/// device failed). `y` is written on success only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_matmul(
    handle: i32,
    x: *const f32,
    x_len: i64,
    y: *mut f32,
    y_len: i64,
    n: i64,
) -> i32 {
    guard("apl_matmul", || {
        let (runtime, weights) = live(handle)?;
        let vectors = Vectors::batch(arg("x", x, x_len), arg("y", y, y_len), n)?;
        let n = vectors.count();
        let mut arrays = Arrays::default();
        let (x, y) = vectors.declare(&mut arrays, weights.rows(), weights.cols());
        arrays.check()?;
        // SAFETY: the arrays were checked; the rest is the contract of `abi`.
        let (x, y) = unsafe { (x.slice(), y.slice()) };
        weights.multiply(&runtime, x, y, n)?;
        Ok(APL_FFI_OK)
    })
}

/// Computes `y = W x` for each of `n` float64 vectors, which is what APL has.
///
/// As `apl_matmul`. `x`: (n, cols), rounded to float32 first. Output: `y` (n, rows), the float32
/// results, widened. An element of `x` that is finite and beyond the range of float32 is ERR_RANGE.
///
/// Returns: as `apl_matmul`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_matmul_f64(
    handle: i32,
    x: *const f64,
    x_len: i64,
    y: *mut f64,
    y_len: i64,
    n: i64,
) -> i32 {
    guard("apl_matmul_f64", || {
        let (runtime, weights) = live(handle)?;
        let vectors = Vectors::batch(arg("x", x, x_len), arg("y", y, y_len), n)?;
        let n = vectors.count();
        let mut arrays = Arrays::default();
        let (x, y) = vectors.declare(&mut arrays, weights.rows(), weights.cols());
        arrays.check()?;
        // SAFETY: the arrays were checked; the rest is the contract of `abi`.
        let (x, y) = unsafe { (x.slice(), y.slice()) };
        let executor = Executor::Pool(runtime.pool());
        let x = narrowed(executor, x)?;
        let mut sums = memory::zeroed(y.len(), "the sums in float32")?;
        weights.multiply(&runtime, &x, &mut sums, n)?;
        widen(executor, &sums, y)?;
        Ok(APL_FFI_OK)
    })
}

/// The weights of a live handle, and the library, held.
///
/// # Errors
/// `ERR_HANDLE`. A library that is not initialised has no live handles; this does not initialise
/// it.
fn live(handle: i32) -> Result<(Held, Arc<Weights>)> {
    // Held before the look-up, so that `apl_ffi_cleanup` cannot come between the two and the
    // weights do not outlive their library.
    let held = state::if_initialised();
    let weights = WEIGHTS.get(handle)?;
    Ok((held.ok_or_else(|| WEIGHTS.not_live(handle))?, weights))
}

/// Makes a handle for the weights. `_held` proves that no `apl_ffi_cleanup` is running.
fn register(weights: Weights, _held: &Held, handle: &mut [i32]) -> Result<i32> {
    handle[0] = WEIGHTS.insert(weights)?;
    Ok(APL_FFI_OK)
}

/// # Safety
/// The contract of `abi`.
unsafe fn from_floats<T: Floats>(
    w: Arg<*const T>,
    rows: i64,
    cols: i64,
    options: *const c_char,
    handle: *mut i32,
) -> Result<i32> {
    let (rows, cols) = (count("rows", rows)?, count("cols", cols)?);
    // SAFETY: this function's own contract.
    let options = unsafe { text("options", options)? };
    let options = WeightOptions::from_json(options.unwrap_or_default(), Source::Floats)?;
    options.activations_for(options.width.unwrap_or(WeightOptions::DEFAULT_WIDTH))?;

    let mut arrays = Arrays::default();
    let w = arrays.input(w, Length::Product(&[("rows", rows), ("cols", cols)]));
    let handle = arrays.place("handle", handle);
    arrays.check()?;
    // SAFETY: the arrays were checked; the rest is this function's own contract.
    let (w, handle) = unsafe { (w.slice(), handle.slice()) };

    let runtime = state::runtime()?;
    let weights = weights::from_floats(&runtime, w, rows, cols, &options, Home::Backend)?;
    register(weights, &runtime, handle)
}

fn info(weights: &Weights, runtime: &Held) -> String {
    json!({
        "rows": weights.rows(),
        "cols": weights.cols(),
        "bits": weights.bits(),
        "group": weights.group(),
        "symmetric": weights.symmetric(),
        "scales": weights.scale_type(),
        "activations": weights.activations().name(),
        "bytes": weights.bytes(),
        "path": weights.path(),
        "backend": weights.backend().name(),
        "isa": runtime.isa().name(),
    })
    .to_string()
}
