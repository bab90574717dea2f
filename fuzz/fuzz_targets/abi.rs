//! Every function of the C ABI with arguments out of the fuzzer's bytes: no crash, nothing written on failure, and a
//! sentence for every failure.
//!
//! Arrays are as long as they claim to be, each an allocation of its own, so that AddressSanitizer sees one element
//! too many. The claims themselves may be anything; the contract has them checked before anything is read. Where a
//! claim exceeds what is allocated here, no shape agrees with it.

#![no_main]

use std::ffi::{CString, c_char};
use std::ptr;

use apl_ffi::abi::lifecycle::*;
use apl_ffi::abi::oneshot::*;
use apl_ffi::abi::quantizing::*;
use apl_ffi::abi::status::*;
use apl_ffi::abi::weights::*;
use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;

/// The longest array that is allocated.
const LONGEST: i128 = 1 << 14;

/// What an output holds before a call.
const UNTOUCHED: u8 = 0x5a;

/// An array with the length that the call is told.
struct Array<T> {
    values: Box<[T]>,
    claimed: i64,
    null: bool,
}

impl<T: Copy + PartialEq> Array<T> {
    /// `accepted`: the lengths that agree with the shape, one of which is usually claimed.
    fn new(
        u: &mut Unstructured<'_>,
        accepted: &[i128],
        mut value: impl FnMut(&mut Unstructured<'_>) -> Result<T>,
    ) -> Result<Array<T>> {
        let mut claimed = match u.int_in_range(0..=15)? {
            0 => i64::arbitrary(u)?,
            1 => i64::from(i8::arbitrary(u)?),
            _ => i64::try_from(*u.choose(accepted)?).unwrap_or(i64::MAX),
        };
        // A length that agrees has to be there; one beyond what is allocated would have to agree to be read.
        if i128::from(claimed) > LONGEST && accepted.contains(&i128::from(claimed)) {
            claimed = 0;
        }
        let len = i128::from(claimed).clamp(0, LONGEST) as usize;
        let values = (0..len).map(|_| value(u)).collect::<Result<_>>()?;
        Ok(Array {
            values,
            claimed,
            null: u.ratio(1, 32)?,
        })
    }

    fn ptr(&self) -> *const T {
        if self.null {
            ptr::null()
        } else {
            self.values.as_ptr()
        }
    }

    fn ptr_mut(&mut self) -> *mut T {
        if self.null {
            ptr::null_mut()
        } else {
            self.values.as_mut_ptr()
        }
    }
}

/// An output; its elements are all of the bytes [`UNTOUCHED`].
fn output<T: Copy + PartialEq>(
    u: &mut Unstructured<'_>,
    accepted: &[i128],
    untouched: T,
) -> Result<Array<T>> {
    Array::new(u, accepted, |_| Ok(untouched))
}

fn untouched_f32() -> f32 {
    f32::from_ne_bytes([UNTOUCHED; 4])
}

fn untouched_f64() -> f64 {
    f64::from_ne_bytes([UNTOUCHED; 8])
}

fn untouched_i32() -> i32 {
    i32::from_ne_bytes([UNTOUCHED; 4])
}

/// A dimension: mostly small, sometimes negative or more than any machine has. What lies between, such as a row of 2^31
/// columns in a matrix without rows, is memory that the library may ask for, and the fuzzer has not.
fn dimension(u: &mut Unstructured<'_>) -> Result<i64> {
    Ok(match u.int_in_range(0..=31)? {
        0 => i64::arbitrary(u)? | 1 << 48,
        1 => u.int_in_range(64..=300)?,
        _ => u.int_in_range(0..=70)?,
    })
}

fn small(u: &mut Unstructured<'_>, usual: &[i32]) -> Result<i32> {
    if u.ratio(1, 24)? {
        i32::arbitrary(u)
    } else {
        Ok(*u.choose(usual)?)
    }
}

fn float(u: &mut Unstructured<'_>) -> Result<f32> {
    if u.ratio(1, 250)? {
        f32::arbitrary(u)
    } else {
        Ok(f32::from(i8::arbitrary(u)?) / 16.0)
    }
}

/// Text of options: one of those that mean something, or any bytes.
fn options(u: &mut Unstructured<'_>) -> Result<CString> {
    const USUAL: &[&str] = &[
        "",
        r#"{"bits":8}"#,
        r#"{"bits":1,"activations":"sign"}"#,
        r#"{"bits":2,"group":7,"symmetric":false}"#,
        r#"{"bits":4,"activations":"int8","method":"search"}"#,
        r#"{"activations":"int8"}"#,
        r#"{"bits":16}"#,
        r#"{"bits":32,"group":0}"#,
    ];
    let bytes = if u.ratio(1, 8)? {
        <Vec<u8>>::arbitrary(u)?
            .into_iter()
            .filter(|&b| b != 0)
            .collect()
    } else {
        u.choose(USUAL)?.as_bytes().to_vec()
    };
    Ok(CString::new(bytes).expect("no NUL is left"))
}

/// A shape, and the arrays of codes that go with it.
struct Codes {
    rows: i64,
    cols: i64,
    bits: i32,
    packing: i32,
    group: i32,
    codes: Array<u8>,
    scales: Array<f32>,
    zero_points: Array<i32>,
}

struct Lengths {
    packed: i128,
    plain: i128,
    groups: i128,
}

fn lengths(rows: i64, cols: i64, bits: i32, group: i32) -> Lengths {
    let (rows, cols, group) = (i128::from(rows), i128::from(cols), i128::from(group));
    let groups = match group {
        0 => 1,
        _ => (cols + group - 1) / group,
    };
    Lengths {
        packed: rows.saturating_mul((cols * i128::from(bits) + 7).div_euclid(8)),
        plain: rows.saturating_mul(cols),
        groups: rows.saturating_mul(groups),
    }
}

impl Codes {
    fn new(u: &mut Unstructured<'_>, bits: &[i32]) -> Result<Codes> {
        let (rows, cols) = (dimension(u)?, dimension(u)?);
        let bits = small(u, bits)?;
        let packing = small(u, &[0, 1, 1])?;
        let group = small(u, &[0, 1, 7, 32, 64, 300])?;
        let needed = lengths(rows, cols, bits, group);
        let max_code = if packing == 0 && (1..8).contains(&bits) {
            ((1 << bits) - 1) as u8
        } else {
            255
        };
        let masked = !u.ratio(1, 16)?;
        Ok(Codes {
            codes: Array::new(
                u,
                &[if packing == 0 {
                    needed.plain
                } else {
                    needed.packed
                }],
                |u| Ok(u8::arbitrary(u)? & if masked { max_code } else { 255 }),
            )?,
            scales: Array::new(u, &[1, rows.into(), needed.groups, 0], float)?,
            zero_points: Array::new(u, &[0, 0, 1, rows.into(), needed.groups], |u| {
                small(u, &[0, 1, 2, 3])
            })?,
            rows,
            cols,
            bits,
            packing,
            group,
        })
    }
}

/// Vectors in and out, for `n` of them.
fn vectors(
    u: &mut Unstructured<'_>,
    rows: i64,
    cols: i64,
    n: i64,
) -> Result<(Array<f32>, Array<f32>)> {
    let times = |d: i64| i128::from(n).saturating_mul(d.into());
    Ok((
        Array::new(u, &[times(cols)], float)?,
        output(u, &[times(rows)], untouched_f32())?,
    ))
}

/// A failure has a sentence, and left the outputs alone.
fn judge(status: i32, untouched: bool) {
    assert_ne!(status, APL_FFI_ERR_INTERNAL, "{}", last_error());
    if status < 0 {
        assert!(untouched, "written on failure: {}", last_error());
        assert!(!last_error().is_empty());
    }
}

fn last_error() -> String {
    let mut text = [0u8; 1024];
    // SAFETY: the capacity is the array's.
    unsafe { apl_ffi_last_error(text.as_mut_ptr().cast::<c_char>(), 1024) };
    let end = text.iter().position(|&b| b == 0).expect("a NUL");
    std::str::from_utf8(&text[..end]).expect("UTF-8").to_owned()
}

fn all<T: PartialEq>(array: &Array<T>, untouched: T) -> bool {
    array.values.iter().all(|v| *v == untouched)
}

fn products(u: &mut Unstructured<'_>) -> Result<()> {
    let one_bit = u.ratio(1, 3)?;
    let c = Codes::new(u, if one_bit { &[1] } else { &[2, 4, 8] })?;
    let batch = bool::arbitrary(u)?;
    let n = if batch { u.int_in_range(-1..=9)? } else { 1 };
    let mode = small(u, &[0, 1])?;
    let (x, mut y) = vectors(u, c.rows, c.cols, n)?;
    // SAFETY: arrays are as long as they claim to be, or claim what agrees with no shape.
    let status = unsafe {
        let (codes, codes_len) = (c.codes.ptr(), c.codes.claimed);
        let (scales, scales_len) = (c.scales.ptr(), c.scales.claimed);
        let (zeros, zeros_len) = (c.zero_points.ptr(), c.zero_points.claimed);
        let (x, x_len, y, y_len) = (x.ptr(), x.claimed, y.ptr_mut(), y.claimed);
        // The 1-bit calls have no `bits` and no `packing`: they read their codes as if these were 1.
        if one_bit && (c.bits, c.packing) != (1, 1) {
            return Ok(());
        }
        match (one_bit, batch) {
            (true, true) => apl_matmul_1bit_batch(
                codes, codes_len, scales, scales_len, x, x_len, y, y_len, c.rows, c.cols, c.group,
                mode, n,
            ),
            (true, false) => apl_matmul_1bit(
                codes, codes_len, scales, scales_len, x, x_len, y, y_len, c.rows, c.cols, c.group,
                mode,
            ),
            (false, true) => apl_matmul_q_batch(
                codes, codes_len, c.bits, c.packing, scales, scales_len, zeros, zeros_len, x,
                x_len, y, y_len, c.rows, c.cols, c.group, n,
            ),
            (false, false) => apl_matmul_q(
                codes, codes_len, c.bits, c.packing, scales, scales_len, zeros, zeros_len, x,
                x_len, y, y_len, c.rows, c.cols, c.group,
            ),
        }
    };
    judge(status, all(&y, untouched_f32()));
    Ok(())
}

fn dequantize(u: &mut Unstructured<'_>) -> Result<()> {
    let c = Codes::new(u, &[1, 2, 4, 8])?;
    let needed = lengths(c.rows, c.cols, c.bits, c.group);
    let mut w = output(u, &[needed.plain], untouched_f32())?;
    // SAFETY: as in `products`.
    let status = unsafe {
        apl_dequantize(
            c.codes.ptr(),
            c.codes.claimed,
            c.bits,
            c.packing,
            c.scales.ptr(),
            c.scales.claimed,
            c.zero_points.ptr(),
            c.zero_points.claimed,
            w.ptr_mut(),
            w.claimed,
            c.rows,
            c.cols,
            c.group,
        )
    };
    judge(status, all(&w, untouched_f32()));
    Ok(())
}

fn quantize(u: &mut Unstructured<'_>) -> Result<()> {
    let (rows, cols) = (dimension(u)?, dimension(u)?);
    let bits = small(u, &[1, 2, 4, 8])?;
    let group = small(u, &[0, 1, 7, 32, 64, 300])?;
    let method = small(u, &[0, 0, 1])?;
    let needed = lengths(rows, cols, bits, group);
    let w = Array::new(u, &[needed.plain], float)?;
    let mut codes = output(u, &[needed.packed], UNTOUCHED)?;
    let mut scales = output(u, &[needed.groups], untouched_f32())?;
    let mut zeros = output(u, &[0, needed.groups], untouched_i32())?;
    // SAFETY: as in `products`.
    let status = unsafe {
        apl_quantize(
            w.ptr(),
            w.claimed,
            rows,
            cols,
            bits,
            group,
            method,
            codes.ptr_mut(),
            codes.claimed,
            scales.ptr_mut(),
            scales.claimed,
            zeros.ptr_mut(),
            zeros.claimed,
        )
    };
    let untouched =
        all(&codes, UNTOUCHED) && all(&scales, untouched_f32()) && all(&zeros, untouched_i32());
    judge(status, untouched);
    Ok(())
}

fn weights(u: &mut Unstructured<'_>) -> Result<()> {
    let options = options(u)?;
    let mut handle = untouched_i32();
    let source = u.int_in_range(0..=2)?;
    let (rows, cols, status);
    if source == 0 {
        let c = Codes::new(u, &[1, 2, 4, 8])?;
        (rows, cols) = (c.rows, c.cols);
        // SAFETY: as in `products`; the options end with NUL and the handle is a variable.
        status = unsafe {
            apl_weights_from_codes(
                c.codes.ptr(),
                c.codes.claimed,
                c.bits,
                c.packing,
                c.scales.ptr(),
                c.scales.claimed,
                c.zero_points.ptr(),
                c.zero_points.claimed,
                rows,
                cols,
                c.group,
                options.as_ptr(),
                &mut handle,
            )
        };
    } else {
        (rows, cols) = (dimension(u)?, dimension(u)?);
        let plain = lengths(rows, cols, 8, 0).plain;
        // SAFETY: as above.
        status = unsafe {
            if source == 1 {
                let w = Array::new(u, &[plain], float)?;
                apl_weights_from_f32(
                    w.ptr(),
                    w.claimed,
                    rows,
                    cols,
                    options.as_ptr(),
                    &mut handle,
                )
            } else {
                let w = Array::new(u, &[plain], |u| float(u).map(f64::from))?;
                apl_weights_from_f64(
                    w.ptr(),
                    w.claimed,
                    rows,
                    cols,
                    options.as_ptr(),
                    &mut handle,
                )
            }
        };
    }
    judge(status, handle == untouched_i32());
    if status != APL_FFI_OK {
        return Ok(());
    }
    let used = use_weights(u, handle, rows, cols);
    assert_eq!(apl_weights_free(handle), APL_FFI_OK);
    assert_eq!(apl_weights_free(handle), APL_FFI_ERR_HANDLE);
    used
}

fn use_weights(u: &mut Unstructured<'_>, handle: i32, rows: i64, cols: i64) -> Result<()> {
    // Now and then another number.
    let h = small(u, &[handle])?;
    let n = u.int_in_range(-1..=20)?;
    let (x, mut y) = vectors(u, rows, cols, n)?;
    let wide: Box<[f64]> = x.values.iter().map(|&v| v.into()).collect();
    let mut wide_y = output(
        u,
        &[i128::from(n).saturating_mul(rows.into())],
        untouched_f64(),
    )?;
    let mut w = output(u, &[lengths(rows, cols, 8, 0).plain], untouched_f32())?;
    let mut json = vec![UNTOUCHED; u.int_in_range(0..=300)?].into_boxed_slice();
    // SAFETY: as in `products`; `wide` is as long as `x`, `json` as its capacity.
    unsafe {
        let status = apl_matmul(h, x.ptr(), x.claimed, y.ptr_mut(), y.claimed, n);
        judge(status, all(&y, untouched_f32()));
        let status = apl_matmul_f64(
            h,
            wide.as_ptr(),
            x.claimed,
            wide_y.ptr_mut(),
            wide_y.claimed,
            n,
        );
        judge(status, all(&wide_y, untouched_f64()));
        let status = apl_weights_dequantize(h, w.ptr_mut(), w.claimed);
        judge(status, all(&w, untouched_f32()));
        let status = apl_weights_info(h, json.as_mut_ptr().cast(), json.len() as i32);
        judge(status, json.iter().all(|&b| b == UNTOUCHED));
        if status >= 0 && !json.is_empty() {
            let end = json.iter().position(|&b| b == 0).expect("a NUL");
            assert_eq!(end, (status as usize).min(json.len() - 1));
        }
    }
    Ok(())
}

fn life(u: &mut Unstructured<'_>) -> Result<()> {
    const CONFIGS: &[&str] = &[
        r#"{"threads":1,"isa":"scalar"}"#,
        r#"{"threads":2,"isa":"avx2"}"#,
        r#"{"threads":2}"#,
        r#"{"threads":3,"backend":"cpu"}"#,
        r#"{"threads":2,"amx":false}"#,
    ];
    let usual = CString::new(*u.choose(CONFIGS)?).expect("no NUL");
    let config = if u.ratio(1, 4)? {
        options(u)?
    } else {
        usual.clone()
    };
    // Up to a thousand threads may be asked for, which would find nothing and take long.
    let many = config != usual && config.to_bytes().windows(7).any(|w| w == b"threads");
    if !many {
        apl_ffi_cleanup();
        // SAFETY: the text ends with NUL.
        judge(unsafe { apl_ffi_init(config.as_ptr()) }, true);
    }
    Ok(())
}

/// The functions that fill a text: the size of the whole, NUL and UTF-8 at every capacity.
fn texts(u: &mut Unstructured<'_>) -> Result<()> {
    let capacity = u.int_in_range(0..=2000)?;
    let mut text = vec![UNTOUCHED; capacity].into_boxed_slice();
    let status = i32::arbitrary(u)?;
    let (p, capacity) = (text.as_mut_ptr().cast::<c_char>(), capacity as i32);
    // SAFETY: the capacity is the buffer's.
    let size = unsafe {
        match u.int_in_range(0..=3)? {
            0 => apl_ffi_info(p, capacity),
            1 => apl_ffi_describe(p, capacity),
            2 => apl_ffi_last_error(p, capacity),
            _ => apl_ffi_status_message(status, p, capacity),
        }
    };
    assert!(size >= 0);
    if capacity > 0 {
        let end = text.iter().position(|&b| b == 0).expect("a NUL");
        assert!(end <= size as usize && (end as i32 == size || end + 4 >= text.len()));
        assert!(std::str::from_utf8(&text[..end]).is_ok());
    }
    Ok(())
}

/// Paths and names of any bytes, in a folder that is not there.
fn files(u: &mut Unstructured<'_>) -> Result<()> {
    let bytes = <Vec<u8>>::arbitrary(u)?;
    let tail: Vec<u8> = bytes.into_iter().filter(|&b| b != 0 && b != b'/').collect();
    let path =
        CString::new([b"no-such-folder/".as_slice(), &tail].concat()).expect("no NUL is left");
    let name = CString::new(tail).expect("no NUL is left");
    let options = options(u)?;
    let (mut handle, mut own) = (untouched_i32(), 0);
    // SAFETY: the texts end with NUL, the handles are variables, and the weight is one.
    unsafe {
        let opened = apl_weights_open(path.as_ptr(), name.as_ptr(), options.as_ptr(), &mut handle);
        assert!(opened < 0);
        judge(opened, handle == untouched_i32());
        if apl_weights_from_f32(&1.0, 1, 1, 1, ptr::null(), &mut own) == APL_FFI_OK {
            let saved = apl_weights_save(own, path.as_ptr(), name.as_ptr());
            assert!(saved < 0);
            judge(saved, true);
            assert_eq!(apl_weights_free(own), APL_FFI_OK);
        }
    }
    Ok(())
}

fn calls(u: &mut Unstructured<'_>) -> Result<()> {
    while !u.is_empty() {
        match u.int_in_range(0..=15)? {
            0 => life(u)?,
            1..=5 => products(u)?,
            6..=7 => dequantize(u)?,
            8..=9 => quantize(u)?,
            10 => texts(u)?,
            11 => files(u)?,
            _ => weights(u)?,
        }
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    // Where the bytes end, so do the calls.
    let _ = calls(&mut Unstructured::new(data));
});
