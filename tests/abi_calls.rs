//! The one-shot calls and the quantising ones through the C ABI: results, every status, the order of checks,
//! outputs untouched on failure.

mod abi_support;

use std::ptr::null;

use abi_support::{Numbers, assert_close, last_error, oracle};
use apl_ffi::abi::oneshot::*;
use apl_ffi::abi::quantizing::*;
use apl_ffi::abi::status::*;

const UNTOUCHED: f32 = 12345.5;

/// A matrix with vectors, owned, from which raw arguments are made.
struct Case {
    bits: i32,
    packing: i32,
    rows: usize,
    cols: usize,
    group: i32,
    n: usize,
    /// One a byte, whatever the packing.
    plain: Vec<u8>,
    codes: Vec<u8>,
    scales: Vec<f32>,
    zero_points: Vec<i32>,
    x: Vec<f32>,
    y: Vec<f32>,
}

/// The definition of the packing, written again.
fn pack(plain: &[u8], cols: usize, bits: i32, padding: u8) -> Vec<u8> {
    let per_byte = 8 / bits as usize;
    let mut packed = Vec::new();
    for row in plain.chunks(cols.max(1)) {
        for codes in row.chunks(per_byte) {
            let mut byte = 0u8;
            for i in 0..per_byte {
                let code = codes
                    .get(i)
                    .copied()
                    .unwrap_or(padding & (0xff >> (8 - bits)) as u8);
                byte |= code << (8 - bits as usize * (i + 1));
            }
            packed.push(byte);
        }
    }
    packed
}

impl Case {
    fn new(bits: i32, packing: i32, rows: usize, cols: usize, group: i32, n: usize) -> Case {
        let mut r = Numbers::new((rows * 1000 + cols * 10 + n) as u64);
        let plain: Vec<u8> = (0..rows * cols).map(|_| r.below(1 << bits) as u8).collect();
        let groups = if group == 0 {
            1
        } else {
            cols.div_ceil(group as usize)
        };
        let scales = r.floats(rows * groups);
        let zero_points = if bits == 1 {
            Vec::new()
        } else {
            (0..rows * groups)
                .map(|_| r.below(1 << bits) as i32)
                .collect()
        };
        Case {
            codes: if packing == 1 {
                pack(&plain, cols, bits, 0xff)
            } else {
                plain.clone()
            },
            x: r.floats(n * cols),
            y: vec![UNTOUCHED; n * rows],
            bits,
            packing,
            rows,
            cols,
            group,
            n,
            plain,
            scales,
            zero_points,
        }
    }

    /// The weights in float64. `scales` and `zero_points` may have any of the three forms.
    fn weights(&self) -> Vec<f64> {
        let group = if self.group == 0 {
            self.cols.max(1)
        } else {
            self.group as usize
        };
        let groups = if self.group == 0 {
            1
        } else {
            self.cols.div_ceil(group)
        };
        let at = |len: usize, r: usize, c: usize| match len {
            1 => 0,
            len if len == self.rows => r,
            _ => r * groups + c / group,
        };
        let mut w = Vec::new();
        for r in 0..self.rows {
            for c in 0..self.cols {
                let code = f64::from(self.plain[r * self.cols + c]);
                let scale = f64::from(self.scales[at(self.scales.len(), r, c)]);
                w.push(match (self.bits, self.zero_points.len()) {
                    (1, _) => scale * (2.0 * code - 1.0),
                    (bits, 0) => scale * (code - f64::from(1 << (bits - 1))),
                    (_, len) => scale * (code - f64::from(self.zero_points[at(len, r, c)])),
                });
            }
        }
        w
    }

    fn expected(&self, x: &[f32]) -> Vec<(f64, f64)> {
        let w = self.weights();
        (0..self.n)
            .flat_map(|v| oracle(&w, &x[v * self.cols..][..self.cols], self.rows, self.cols))
            .collect()
    }

    fn raw(&mut self) -> Raw {
        Raw {
            codes: self.codes.as_ptr(),
            codes_len: self.codes.len() as i64,
            bits: self.bits,
            packing: self.packing,
            scales: self.scales.as_ptr(),
            scales_len: self.scales.len() as i64,
            zero_points: self.zero_points.as_ptr(),
            zero_points_len: self.zero_points.len() as i64,
            x: self.x.as_ptr(),
            x_len: self.x.len() as i64,
            y: self.y.as_mut_ptr(),
            y_len: self.y.len() as i64,
            rows: self.rows as i64,
            cols: self.cols as i64,
            group: self.group,
            mode: 0,
            n: self.n as i64,
        }
    }
}

/// The arguments as C passes them.
#[derive(Clone, Copy)]
struct Raw {
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
    mode: i32,
    n: i64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Function {
    OneBit,
    OneBitBatch,
    Q,
    QBatch,
    /// With y as w.
    Dequantize,
}

impl Raw {
    fn call(self, f: Function) -> i32 {
        let Raw {
            codes,
            codes_len,
            bits,
            packing,
            scales,
            scales_len,
            zero_points,
            ..
        } = self;
        let Raw {
            zero_points_len,
            x,
            x_len,
            y,
            y_len,
            rows,
            cols,
            group,
            mode,
            n,
            ..
        } = self;
        // SAFETY: pointers and lengths are those of a case, or a length or pointer among them is wrong in a way
        // that the function must find before it reads.
        unsafe {
            match f {
                Function::OneBit => apl_matmul_1bit(
                    codes, codes_len, scales, scales_len, x, x_len, y, y_len, rows, cols, group,
                    mode,
                ),
                Function::OneBitBatch => apl_matmul_1bit_batch(
                    codes, codes_len, scales, scales_len, x, x_len, y, y_len, rows, cols, group,
                    mode, n,
                ),
                Function::Q => apl_matmul_q(
                    codes,
                    codes_len,
                    bits,
                    packing,
                    scales,
                    scales_len,
                    zero_points,
                    zero_points_len,
                    x,
                    x_len,
                    y,
                    y_len,
                    rows,
                    cols,
                    group,
                ),
                Function::QBatch => apl_matmul_q_batch(
                    codes,
                    codes_len,
                    bits,
                    packing,
                    scales,
                    scales_len,
                    zero_points,
                    zero_points_len,
                    x,
                    x_len,
                    y,
                    y_len,
                    rows,
                    cols,
                    group,
                    n,
                ),
                Function::Dequantize => apl_dequantize(
                    codes,
                    codes_len,
                    bits,
                    packing,
                    scales,
                    scales_len,
                    zero_points,
                    zero_points_len,
                    y,
                    y_len,
                    rows,
                    cols,
                    group,
                ),
            }
        }
    }
}

#[test]
fn products_of_awkward_shapes() {
    for bits in [1, 2, 4, 8] {
        for packing in [0, 1] {
            for (rows, cols) in [(0, 5), (5, 0), (1, 1), (3, 7), (5, 33), (33, 64), (2, 130)] {
                for group in [0, 1, 7, 32, 200] {
                    for n in [0, 1, 3] {
                        if bits == 1 && packing == 0 {
                            continue;
                        }
                        let f = if bits == 1 {
                            Function::OneBitBatch
                        } else {
                            Function::QBatch
                        };
                        let what = format!(
                            "{f:?} {bits} bits, packing {packing}, {rows}x{cols}/{group}, n {n}"
                        );
                        let mut case = Case::new(bits, packing, rows, cols, group, n);
                        assert_eq!(case.raw().call(f), APL_FFI_OK, "{what}: {}", last_error());
                        assert_close(&case.y, &case.expected(&case.x), &what);
                        if n == 1 {
                            let one = if bits == 1 {
                                Function::OneBit
                            } else {
                                Function::Q
                            };
                            let batch = std::mem::replace(&mut case.y, vec![UNTOUCHED; rows]);
                            assert_eq!(case.raw().call(one), APL_FFI_OK);
                            assert_eq!(case.y, batch, "{what}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn scales_and_zero_points_in_every_form() {
    for scales_len in [1, 3, 9] {
        for zero_points_len in [0, 1, 3, 9] {
            let mut case = Case::new(4, 1, 3, 70, 32, 2);
            case.scales.truncate(scales_len);
            case.zero_points.truncate(zero_points_len);
            assert_eq!(
                case.raw().call(Function::QBatch),
                APL_FFI_OK,
                "{}",
                last_error()
            );
            assert_close(&case.y, &case.expected(&case.x), "forms");
        }
    }
}

#[test]
fn signs_of_activations() {
    let mut case = Case::new(1, 1, 9, 70, 32, 2);
    case.x[0] = 0.0;
    case.x[1] = -0.0;
    case.x[2] = f32::NAN;
    let mut raw = case.raw();
    raw.mode = 1;
    assert_eq!(raw.call(Function::OneBitBatch), APL_FFI_OK);
    let signs: Vec<f32> = case
        .x
        .iter()
        .map(|&x| if x >= 0.0 { 1.0 } else { -1.0 })
        .collect();
    assert_close(&case.y, &case.expected(&signs), "signs");
}

#[test]
fn nothing_to_scale_needs_no_scales() {
    for (rows, cols, n) in [(0, 8, 2), (4, 0, 2), (4, 8, 0)] {
        for group in [0, 4] {
            let mut case = Case::new(4, 1, rows, cols, group, n);
            let mut raw = case.raw();
            (raw.scales, raw.scales_len) = (null(), 0);
            (raw.zero_points, raw.zero_points_len) = (null(), 0);
            assert_eq!(raw.call(Function::QBatch), APL_FFI_OK, "{}", last_error());
            assert!(case.y.iter().all(|&y| y == 0.0));
        }
    }
}

type Fault = (&'static str, i32, fn(&mut Raw));

static NOT_FINITE: [f32; 6] = [1.0, f32::INFINITY, 1.0, 1.0, 1.0, 1.0];
static ZERO_POINT_16: [i32; 6] = [0, 15, 16, 0, 0, 0];
static CODE_16: [u8; 3 * 64] = [16; 3 * 64];

/// One way each to be wrong, in the order of the contract: scalars, lengths, NULL, alignment, contents.
const FAULTS: &[Fault] = &[
    ("bits is 3, expected 2 or 4 or 8", APL_FFI_ERR_RANGE, |r| {
        r.bits = 3
    }),
    ("packing is 2, expected 0 or 1", APL_FFI_ERR_RANGE, |r| {
        r.packing = 2
    }),
    ("rows is -1, expected 0 or more", APL_FFI_ERR_RANGE, |r| {
        r.rows = -1
    }),
    ("cols is -7, expected 0 or more", APL_FFI_ERR_RANGE, |r| {
        r.cols = -7
    }),
    ("group is -1, expected 0 or more", APL_FFI_ERR_RANGE, |r| {
        r.group = -1
    }),
    ("n is -1, expected 0 or more", APL_FFI_ERR_RANGE, |r| {
        r.n = -1
    }),
    (
        "codes_len is 191, expected rows * cols = 3 * 64 = 192",
        APL_FFI_ERR_LENGTH,
        |r| r.codes_len = 191,
    ),
    (
        "scales_len is 5, expected 1, rows = 3 or rows * G = 3 * 2",
        APL_FFI_ERR_LENGTH,
        |r| r.scales_len = 5,
    ),
    (
        "zero_points_len is -1, expected 0, 1, rows = 3 or rows * G = 3 * 2",
        APL_FFI_ERR_LENGTH,
        |r| r.zero_points_len = -1,
    ),
    (
        "x_len is 127, expected n * cols = 2 * 64 = 128",
        APL_FFI_ERR_LENGTH,
        |r| r.x_len = 127,
    ),
    (
        "y_len is 7, expected n * rows = 2 * 3 = 6",
        APL_FFI_ERR_LENGTH,
        |r| r.y_len = 7,
    ),
    (
        "codes is NULL, expected 192 elements",
        APL_FFI_ERR_NULL,
        |r| r.codes = null(),
    ),
    (
        "scales is NULL, expected 6 elements",
        APL_FFI_ERR_NULL,
        |r| r.scales = null(),
    ),
    (
        "zero_points is NULL, expected 6 elements",
        APL_FFI_ERR_NULL,
        |r| r.zero_points = null(),
    ),
    ("x is NULL, expected 128 elements", APL_FFI_ERR_NULL, |r| {
        r.x = null()
    }),
    ("y is NULL, expected 6 elements", APL_FFI_ERR_NULL, |r| {
        r.y = std::ptr::null_mut()
    }),
    ("scales is at address ", APL_FFI_ERR_RANGE, |r| {
        r.scales = r.scales.wrapping_byte_add(1)
    }),
    ("zero_points is at address ", APL_FFI_ERR_RANGE, |r| {
        r.zero_points = r.zero_points.wrapping_byte_add(2)
    }),
    ("x is at address ", APL_FFI_ERR_RANGE, |r| {
        r.x = r.x.wrapping_byte_add(3)
    }),
    ("y is at address ", APL_FFI_ERR_RANGE, |r| {
        r.y = r.y.wrapping_byte_add(1)
    }),
    (
        "y overlaps x, expected separate arrays",
        APL_FFI_ERR_RANGE,
        |r| r.y = r.x.cast_mut().wrapping_add(122),
    ),
    (
        "scales[1] is inf, expected a finite number",
        APL_FFI_ERR_RANGE,
        |r| r.scales = NOT_FINITE.as_ptr(),
    ),
    (
        "zero_points[2] is 16, expected 0 to 15",
        APL_FFI_ERR_RANGE,
        |r| r.zero_points = ZERO_POINT_16.as_ptr(),
    ),
    ("codes[0] is 16, expected 0 to 15", APL_FFI_ERR_RANGE, |r| {
        r.codes = CODE_16.as_ptr()
    }),
];

fn fault_case() -> Case {
    Case::new(4, 0, 3, 64, 32, 2)
}

#[test]
fn one_wrong_argument_has_one_answer() {
    for &(message, status, fault) in FAULTS {
        let mut case = fault_case();
        let mut raw = case.raw();
        fault(&mut raw);
        assert_eq!(raw.call(Function::QBatch), status, "{message}");
        let said = last_error();
        assert!(
            said.starts_with(&format!("apl_matmul_q_batch: {message}")),
            "{said} / {message}"
        );
        assert!(case.y.iter().all(|&y| y == UNTOUCHED));
    }
}

#[test]
fn of_two_wrong_arguments_the_earlier_check_answers() {
    for (i, &(earlier_message, status, earlier)) in FAULTS.iter().enumerate() {
        for &(later_message, _, later) in &FAULTS[i + 1..] {
            let mut case = fault_case();
            let mut raw = case.raw();
            later(&mut raw);
            earlier(&mut raw);
            let what = format!("{earlier_message} / {later_message}");
            assert_eq!(
                raw.call(Function::QBatch),
                status,
                "{what}: {}",
                last_error()
            );
            assert!(case.y.iter().all(|&y| y == UNTOUCHED), "{what}");
        }
    }
}

#[test]
fn the_single_calls_name_their_own_arguments() {
    let mut case = Case::new(4, 1, 3, 64, 32, 1);
    let mut raw = case.raw();
    raw.x_len = 63;
    assert_eq!(raw.call(Function::Q), APL_FFI_ERR_LENGTH);
    assert_eq!(
        last_error(),
        "apl_matmul_q: x_len is 63, expected cols = 64"
    );
    let mut raw = case.raw();
    raw.codes_len = 1;
    assert_eq!(raw.call(Function::Q), APL_FFI_ERR_LENGTH);
    assert_eq!(
        last_error(),
        "apl_matmul_q: codes_len is 1, expected rows * ceil(cols * bits / 8) = 3 * 32 = 96"
    );
    let mut case = Case::new(1, 1, 3, 64, 32, 1);
    let mut raw = case.raw();
    raw.codes_len = 1;
    assert_eq!(raw.call(Function::OneBit), APL_FFI_ERR_LENGTH);
    assert!(last_error().starts_with("apl_matmul_1bit: packed_len is 1, expected rows * "));
    let mut raw = case.raw();
    raw.mode = 2;
    assert_eq!(raw.call(Function::OneBit), APL_FFI_ERR_RANGE);
    assert_eq!(last_error(), "apl_matmul_1bit: mode is 2, expected 0 or 1");
}

#[test]
fn products_of_sizes_that_overflow() {
    let huge = 1i64 << 62;
    for (rows, cols, n) in [
        (huge, huge, 0),
        (i64::MAX, 2, 0),
        (0, i64::MAX, i64::MAX),
        (i64::MAX, 0, i64::MAX),
        (huge, 1, 0),
        (i64::MAX, i64::MAX, i64::MAX),
    ] {
        for packing in [0, 1] {
            for f in [
                Function::Q,
                Function::QBatch,
                Function::OneBitBatch,
                Function::Dequantize,
            ] {
                if f == Function::Dequantize && rows == 0 {
                    continue; // has no n: empty, and right
                }
                let mut case = fault_case();
                let mut raw = case.raw();
                (raw.rows, raw.cols, raw.n, raw.packing) = (rows, cols, n, packing);
                assert_eq!(raw.call(f), APL_FFI_ERR_LENGTH, "{f:?} {rows} {cols} {n}");
                // Lengths as the shape asks, modulo 2^64, which unchecked arithmetic would let pass.
                raw.codes_len = rows.wrapping_mul(cols);
                raw.x_len = n.wrapping_mul(cols);
                raw.y_len = n.wrapping_mul(rows);
                (raw.scales_len, raw.zero_points_len) = (1, 0);
                assert_eq!(raw.call(f), APL_FFI_ERR_LENGTH, "{f:?} {rows} {cols} {n}");
            }
        }
    }
}

#[test]
fn dequantising_is_the_definition() {
    for bits in [1, 2, 4, 8] {
        for packing in [0, 1] {
            for (rows, cols, group) in [(0, 3, 0), (3, 0, 0), (1, 1, 1), (3, 33, 7), (5, 64, 32)] {
                let mut case = Case::new(bits, packing, rows, cols, group, 1);
                case.y = vec![UNTOUCHED; rows * cols];
                assert_eq!(
                    case.raw().call(Function::Dequantize),
                    APL_FFI_OK,
                    "{}",
                    last_error()
                );
                let expected: Vec<f32> = case.weights().iter().map(|&w| w as f32).collect();
                assert_eq!(
                    case.y, expected,
                    "{bits} bits, packing {packing}, {rows}x{cols}/{group}"
                );
            }
        }
    }
    let mut case = Case::new(1, 1, 3, 8, 0, 1);
    case.y = vec![UNTOUCHED; 24];
    let mut raw = case.raw();
    (raw.zero_points, raw.zero_points_len) = (ZERO_POINT_16.as_ptr(), 1);
    assert_eq!(raw.call(Function::Dequantize), APL_FFI_ERR_LENGTH);
    assert_eq!(
        last_error(),
        "apl_dequantize: zero_points_len is 1, expected 0: 1-bit codes have no zero points"
    );
    let mut case = Case::new(1, 0, 1, 8, 0, 1);
    case.y = vec![UNTOUCHED; 8];
    case.codes[3] = 2;
    assert_eq!(case.raw().call(Function::Dequantize), APL_FFI_ERR_RANGE);
    assert_eq!(
        last_error(),
        "apl_dequantize: codes[3] is 2, expected 0 to 1"
    );
}

/// The arguments of `apl_quantize`.
#[derive(Clone, Copy)]
struct RawQuantize {
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
}

impl RawQuantize {
    fn call(self) -> i32 {
        // SAFETY: as for `Raw::call`.
        unsafe {
            apl_quantize(
                self.w,
                self.w_len,
                self.rows,
                self.cols,
                self.bits,
                self.group,
                self.method,
                self.codes,
                self.codes_len,
                self.scales,
                self.scales_len,
                self.zero_points,
                self.zero_points_len,
            )
        }
    }
}

#[test]
fn quantising_there_and_back() {
    let (rows, cols, group, groups) = (70, 70, 32, 3);
    let w = Numbers::new(7).floats(rows * cols);
    // Largest error of weights of -1 to 1: one step of the code, two at 2 bits symmetric; 1 bit keeps signs only.
    for (bits, bound) in [(1, 1.0), (2, 0.7), (4, 0.15), (8, 0.01)] {
        for method in [0, 1] {
            for zero_points_len in [0, rows * groups] {
                if bits == 1 && zero_points_len > 0 {
                    continue;
                }
                let mut case = Case::new(bits, 1, rows, cols, group, 0);
                case.zero_points = vec![-1; zero_points_len];
                let raw = RawQuantize {
                    w: w.as_ptr(),
                    w_len: w.len() as i64,
                    rows: rows as i64,
                    cols: cols as i64,
                    bits,
                    group,
                    method,
                    codes: case.codes.as_mut_ptr(),
                    codes_len: case.codes.len() as i64,
                    scales: case.scales.as_mut_ptr(),
                    scales_len: case.scales.len() as i64,
                    zero_points: case.zero_points.as_mut_ptr(),
                    zero_points_len: zero_points_len as i64,
                };
                assert_eq!(raw.call(), APL_FFI_OK, "{}", last_error());
                case.y = vec![UNTOUCHED; rows * cols];
                assert_eq!(
                    case.raw().call(Function::Dequantize),
                    APL_FFI_OK,
                    "{}",
                    last_error()
                );
                for (back, w) in case.y.iter().zip(&w) {
                    assert!(
                        (back - w).abs() < bound,
                        "{bits} bits, method {method}: {w} became {back}"
                    );
                }
            }
        }
    }
}

#[test]
fn quantising_refuses() {
    let mut w = Numbers::new(3).floats(3 * 64);
    let (mut codes, mut scales, mut zero_points) =
        (vec![7u8; 96], vec![UNTOUCHED; 6], vec![-5i32; 6]);
    let good = RawQuantize {
        w: w.as_ptr(),
        w_len: 192,
        rows: 3,
        cols: 64,
        bits: 4,
        group: 32,
        method: 0,
        codes: codes.as_mut_ptr(),
        codes_len: 96,
        scales: scales.as_mut_ptr(),
        scales_len: 6,
        zero_points: zero_points.as_mut_ptr(),
        zero_points_len: 6,
    };
    type Fault = (&'static str, i32, fn(&mut RawQuantize));
    let faults: &[Fault] = &[
        ("rows is -1", APL_FFI_ERR_RANGE, |r| r.rows = -1),
        ("group is -1", APL_FFI_ERR_RANGE, |r| r.group = -1),
        (
            "bits is 16, expected 1 or 2 or 4 or 8",
            APL_FFI_ERR_RANGE,
            |r| r.bits = 16,
        ),
        ("method is 2, expected 0 or 1", APL_FFI_ERR_RANGE, |r| {
            r.method = 2
        }),
        ("w_len is 191", APL_FFI_ERR_LENGTH, |r| r.w_len = 191),
        ("codes_len is 97", APL_FFI_ERR_LENGTH, |r| r.codes_len = 97),
        (
            "scales_len is 3, expected rows * G = 3 * 2 = 6",
            APL_FFI_ERR_LENGTH,
            |r| r.scales_len = 3,
        ),
        (
            "zero_points_len is 1, expected rows * G",
            APL_FFI_ERR_LENGTH,
            |r| r.zero_points_len = 1,
        ),
        ("w is NULL", APL_FFI_ERR_NULL, |r| r.w = null()),
        ("zero_points is NULL", APL_FFI_ERR_NULL, |r| {
            r.zero_points = std::ptr::null_mut()
        }),
        ("scales is at address", APL_FFI_ERR_RANGE, |r| {
            r.scales = r.scales.wrapping_byte_add(1)
        }),
        ("zero_points overlaps scales", APL_FFI_ERR_RANGE, |r| {
            r.zero_points = r.scales.cast()
        }),
    ];
    for &(message, status, fault) in faults {
        let mut raw = good;
        fault(&mut raw);
        assert_eq!(raw.call(), status, "{message}");
        let said = last_error();
        assert!(
            said.starts_with(&format!("apl_quantize: {message}")),
            "{said}"
        );
    }
    let mut one_bit = good;
    (one_bit.bits, one_bit.codes_len) = (1, 24);
    assert_eq!(one_bit.call(), APL_FFI_ERR_LENGTH);
    w[100] = f32::NAN;
    assert_eq!(
        RawQuantize {
            w: w.as_ptr(),
            ..good
        }
        .call(),
        APL_FFI_ERR_RANGE
    );
    assert!(codes.iter().all(|&c| c == 7) && zero_points.iter().all(|&z| z == -5));
    assert!(scales.iter().all(|&s| s == UNTOUCHED));
}
