//! Weight handles through the C ABI: results, every status, the order of checks, hostile handles, threads.

mod abi_support;

use std::ffi::{CStr, c_char};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, Ordering};

use abi_support::{Numbers, assert_close, c, filled, info, last_error, oracle};
use apl_ffi::abi::oneshot::apl_matmul_q;
use apl_ffi::abi::status::*;
use apl_ffi::abi::weights::*;
use serde_json::{Value, json};

const UNTOUCHED: f32 = 12345.5;

fn from_f32(w: &[f32], rows: usize, cols: usize, options: &str) -> Result<i32, i32> {
    let (options, mut handle) = (c(options), -7);
    // SAFETY: lengths are those of the slices.
    let status = unsafe {
        apl_weights_from_f32(
            w.as_ptr(),
            w.len() as i64,
            rows as i64,
            cols as i64,
            options.as_ptr(),
            &mut handle,
        )
    };
    if status == APL_FFI_OK {
        assert!(handle > 0);
        return Ok(handle);
    }
    assert_eq!(handle, -7, "written though it failed");
    Err(status)
}

/// 4 bits, one scale a row, no zero points.
fn from_codes(
    codes: &[u8],
    scales: &[f32],
    rows: usize,
    cols: usize,
    options: &str,
) -> Result<i32, i32> {
    let (options, mut handle) = (c(options), -7);
    // SAFETY: lengths are those of the slices.
    let status = unsafe {
        apl_weights_from_codes(
            codes.as_ptr(),
            codes.len() as i64,
            4,
            1,
            scales.as_ptr(),
            scales.len() as i64,
            null(),
            0,
            rows as i64,
            cols as i64,
            0,
            options.as_ptr(),
            &mut handle,
        )
    };
    if status == APL_FFI_OK {
        return Ok(handle);
    }
    assert_eq!(handle, -7, "written though it failed");
    Err(status)
}

fn matmul(handle: i32, x: &[f32], y: &mut [f32], n: usize) -> i32 {
    // SAFETY: lengths are those of the slices.
    unsafe {
        apl_matmul(
            handle,
            x.as_ptr(),
            x.len() as i64,
            y.as_mut_ptr(),
            y.len() as i64,
            n as i64,
        )
    }
}

fn weights_info(handle: i32) -> Value {
    // SAFETY: `filled` gives as much room as it says.
    serde_json::from_str(&filled(|json, capacity| unsafe {
        apl_weights_info(handle, json, capacity)
    }))
    .unwrap()
}

fn dequantized(handle: i32, len: usize) -> Vec<f32> {
    let mut w = vec![UNTOUCHED; len];
    // SAFETY: the length is that of the vector.
    let status = unsafe { apl_weights_dequantize(handle, w.as_mut_ptr(), len as i64) };
    assert_eq!(status, APL_FFI_OK, "{}", last_error());
    w
}

#[test]
fn products_and_what_is_multiplied_with() {
    let (rows, cols, n) = (37, 70, 3);
    let w = Numbers::new(1).floats(rows * cols);
    let x = Numbers::new(2).floats(n * cols);
    for bits in [1, 2, 4, 8] {
        for group in [0, 1, 7, 15, 16, 32, 33, 48] {
            for symmetric in [true, false] {
                let options =
                    json!({"bits": bits, "group": group, "symmetric": symmetric}).to_string();
                let handle = from_f32(&w, rows, cols, &options)
                    .unwrap_or_else(|_| panic!("{}", last_error()));
                let info = weights_info(handle);
                assert!(info["backend"] != "cpu" || info["path"] == "tiles");
                let kept: Vec<f64> = dequantized(handle, w.len())
                    .iter()
                    .map(|&v| v.into())
                    .collect();
                let mut y = vec![UNTOUCHED; n * rows];
                assert_eq!(
                    matmul(handle, &x, &mut y, n),
                    APL_FFI_OK,
                    "{}",
                    last_error()
                );
                for v in 0..n {
                    let expected = oracle(&kept, &x[v * cols..][..cols], rows, cols);
                    assert_close(&y[v * rows..][..rows], &expected, &options);
                }

                let wide: Vec<f64> = x.iter().map(|&v| v.into()).collect();
                let mut y64 = vec![0f64; n * rows];
                // SAFETY: lengths are those of the vectors.
                let status = unsafe {
                    apl_matmul_f64(
                        handle,
                        wide.as_ptr(),
                        wide.len() as i64,
                        y64.as_mut_ptr(),
                        y64.len() as i64,
                        n as i64,
                    )
                };
                assert_eq!(status, APL_FFI_OK, "{}", last_error());
                assert!(
                    y.iter()
                        .zip(&y64)
                        .all(|(&y, &wide)| f64::from(y).to_bits() == wide.to_bits())
                );
                assert_eq!(apl_weights_free(handle), APL_FFI_OK);
            }
        }
    }
}

#[test]
fn a_handle_of_codes_multiplies_as_the_call_with_codes() {
    let (rows, cols) = (40, 64);
    let mut r = Numbers::new(5);
    let codes: Vec<u8> = (0..rows * cols / 2).map(|_| r.bits() as u8).collect();
    let (scales, x) = (r.floats(rows), r.floats(cols));
    let handle = from_codes(&codes, &scales, rows, cols, "").unwrap();
    let (mut kept, mut once) = (vec![UNTOUCHED; rows], vec![UNTOUCHED; rows]);
    assert_eq!(matmul(handle, &x, &mut kept, 1), APL_FFI_OK);
    // SAFETY: lengths are those of the vectors.
    let status = unsafe {
        apl_matmul_q(
            codes.as_ptr(),
            codes.len() as i64,
            4,
            1,
            scales.as_ptr(),
            scales.len() as i64,
            null(),
            0,
            x.as_ptr(),
            cols as i64,
            once.as_mut_ptr(),
            rows as i64,
            rows as i64,
            cols as i64,
            0,
        )
    };
    assert_eq!(status, APL_FFI_OK);
    let w: Vec<f64> = dequantized(handle, rows * cols)
        .iter()
        .map(|&v| v.into())
        .collect();
    let expected = oracle(&w, &x, rows, cols);
    assert_close(&kept, &expected, "handle");
    assert_close(&once, &expected, "one-shot");
    let (id, i) = (weights_info(handle), weights_info(handle));
    assert_eq!(id, i);
    assert_eq!(
        (i["rows"].as_u64(), i["cols"].as_u64(), i["bits"].as_u64()),
        (Some(40), Some(64), Some(4))
    );
    assert_eq!(
        (&i["symmetric"], &i["scales"], &i["activations"]),
        (&json!(true), &json!("float32"), &json!("f32"))
    );
    assert!(
        i["bytes"].as_u64() >= Some(codes.len() as u64)
            && i["path"].is_string()
            && i["isa"].is_string()
    );
    assert_eq!(i["backend"], abi_support::info()["backend"]);
    assert_eq!(apl_weights_free(handle), APL_FFI_OK);
}

#[test]
fn float64_weights_are_rounded_to_float32() {
    let w: Vec<f32> = Numbers::new(9).floats(5 * 33);
    let mut wide: Vec<f64> = w.iter().map(|&v| v.into()).collect();
    let make = |wide: &[f64]| {
        let mut handle = 0;
        // SAFETY: lengths are those of the vectors; NULL options are the defaults.
        let status =
            unsafe { apl_weights_from_f64(wide.as_ptr(), 165, 5, 33, null(), &mut handle) };
        (status, handle)
    };
    let (status, handle) = make(&wide);
    assert_eq!(status, APL_FFI_OK, "{}", last_error());
    let narrow = from_f32(&w, 5, 33, "").unwrap();
    assert_eq!(dequantized(handle, 165), dequantized(narrow, 165));
    wide[7] = 1e300;
    assert_eq!(make(&wide), (APL_FFI_ERR_RANGE, 0));
    assert!(
        last_error().starts_with("apl_weights_from_f64: w"),
        "{}",
        last_error()
    );
    for h in [handle, narrow] {
        assert_eq!(apl_weights_free(h), APL_FFI_OK);
    }
}

#[test]
fn options_decide_and_are_refused_by_name() {
    let w = Numbers::new(1).floats(4 * 64);
    for (options, key, value) in [
        ("", "bits", json!(4)),
        ("{}", "group", json!(32)),
        (r#"{"group":0}"#, "group", json!(64)),
        (r#"{"symmetric":false}"#, "symmetric", json!(false)),
        (r#"{"bits":8,"method":"search"}"#, "bits", json!(8)),
        (r#"{"activations":"int8"}"#, "activations", json!("int8")),
        (
            r#"{"bits":1,"activations":"sign"}"#,
            "activations",
            json!("sign"),
        ),
    ] {
        let handle = from_f32(&w, 4, 64, options).unwrap_or_else(|_| panic!("{}", last_error()));
        assert_eq!(weights_info(handle)[key], value, "{options}");
        assert_eq!(apl_weights_free(handle), APL_FFI_OK);
    }
    for (options, said) in [
        (r#"{"bits":3}"#, "options has \"bits\": 3, expected"),
        (
            r#"{"bitz":4}"#,
            "options has the unknown key \"bitz\", expected bits",
        ),
        (
            r#"{"mmap":true}"#,
            "options has \"mmap\", which does not apply",
        ),
        (
            r#"{"activations":"sign"}"#,
            "options has \"activations\": \"sign\", expected weights of 1 bit",
        ),
        ("[", "options is not a JSON object"),
    ] {
        assert_eq!(from_f32(&w, 4, 64, options), Err(APL_FFI_ERR_CONFIG));
        assert!(
            last_error().starts_with(&format!("apl_weights_from_f32: {said}")),
            "{}",
            last_error()
        );
    }
    let codes = [0u8; 4 * 32];
    for options in [
        r#"{"bits":4}"#,
        r#"{"group":0}"#,
        r#"{"symmetric":true}"#,
        r#"{"method":"nearest"}"#,
    ] {
        assert_eq!(
            from_codes(&codes, &[1.0], 4, 64, options),
            Err(APL_FFI_ERR_CONFIG),
            "{options}"
        );
    }
}

#[test]
fn of_two_wrong_arguments_the_earlier_check_answers() {
    const NOT_UTF8: &CStr = c"{\"bits\":\xff}";
    struct Raw {
        w: *const f32,
        w_len: i64,
        rows: i64,
        options: *const c_char,
        handle: *mut i32,
    }
    static NAN: [f32; 4] = [0.0, f32::NAN, 0.0, 0.0];
    type Fault = (i32, fn(&mut Raw));
    let faults: &[Fault] = &[
        (APL_FFI_ERR_RANGE, |r| r.rows = -1),
        (APL_FFI_ERR_ENCODING, |r| r.options = NOT_UTF8.as_ptr()),
        (APL_FFI_ERR_CONFIG, |r| r.options = c"{".as_ptr()),
        (APL_FFI_ERR_LENGTH, |r| r.w_len = 5),
        (APL_FFI_ERR_NULL, |r| r.handle = null_mut()),
        (APL_FFI_ERR_RANGE, |r| {
            r.handle = r.handle.wrapping_byte_add(1)
        }),
        (APL_FFI_ERR_RANGE, |r| r.w = NAN.as_ptr()),
    ];
    let w = [0.5f32; 4];
    let mut place = [-7, -7];
    for (i, &(status, earlier)) in faults.iter().enumerate() {
        for &(_, later) in &faults[i..] {
            let mut r = Raw {
                w: w.as_ptr(),
                w_len: 4,
                rows: 2,
                options: null(),
                handle: place.as_mut_ptr(),
            };
            later(&mut r);
            earlier(&mut r);
            // SAFETY: what is wrong must be found before it is read.
            let got = unsafe { apl_weights_from_f32(r.w, r.w_len, r.rows, 2, r.options, r.handle) };
            assert_eq!(got, status, "{}", last_error());
        }
    }
    assert_eq!(place, [-7, -7]);

    let handle = from_f32(&w, 2, 2, "").unwrap();
    let mut y = [UNTOUCHED; 2];
    let x = [1.0f32; 2];
    // SAFETY: what is wrong must be found before it is read.
    unsafe {
        assert_eq!(
            apl_matmul(-handle, null(), -1, null_mut(), -1, -1),
            APL_FFI_ERR_HANDLE
        );
        assert_eq!(
            apl_matmul(handle, null(), -1, null_mut(), -1, -1),
            APL_FFI_ERR_RANGE
        );
        assert_eq!(
            apl_matmul(handle, null(), 2, y.as_mut_ptr(), 3, 1),
            APL_FFI_ERR_LENGTH
        );
        assert_eq!(
            last_error(),
            "apl_matmul: y_len is 3, expected n * rows = 1 * 2 = 2"
        );
        assert_eq!(
            apl_matmul(handle, null(), 2, y.as_mut_ptr(), 2, 1),
            APL_FFI_ERR_NULL
        );
        assert_eq!(
            apl_matmul(handle, y.as_ptr(), 2, y.as_mut_ptr(), 2, 1),
            APL_FFI_ERR_RANGE
        );
        assert_eq!(
            last_error(),
            "apl_matmul: y overlaps x, expected separate arrays"
        );
        assert_eq!(
            apl_matmul(handle, x.as_ptr(), 2, y.as_mut_ptr(), 2, i64::MAX),
            APL_FFI_ERR_LENGTH
        );
        assert_eq!(apl_matmul(handle, null(), 0, null_mut(), 0, 0), APL_FFI_OK);
        assert_eq!(
            apl_weights_dequantize(handle, y.as_mut_ptr(), 2),
            APL_FFI_ERR_LENGTH
        );
        assert_eq!(
            last_error(),
            "apl_weights_dequantize: w_len is 2, expected rows * cols = 2 * 2 = 4"
        );
        assert_eq!(apl_weights_info(handle, null_mut(), -1), APL_FFI_ERR_LENGTH);
        assert_eq!(apl_weights_info(handle, null_mut(), 1), APL_FFI_ERR_NULL);
        assert_eq!(apl_weights_info(0, null_mut(), -1), APL_FFI_ERR_HANDLE);
        let mut wide = [9.0f64; 2];
        assert_eq!(
            apl_matmul_f64(handle, [1.0, 1e39].as_ptr(), 2, wide.as_mut_ptr(), 2, 1),
            APL_FFI_ERR_RANGE
        );
        assert!(
            last_error().starts_with("apl_matmul_f64: x[1] is 1e39, expected"),
            "{}",
            last_error()
        );
        assert_eq!(wide, [9.0; 2]);
    }
    assert_eq!(y, [UNTOUCHED; 2]);
    assert_eq!(apl_weights_free(handle), APL_FFI_OK);
}

#[test]
fn a_vector_that_is_not_finite_is_refused_where_it_is_quantised() {
    let w = Numbers::new(4).floats(8 * 64);
    let handle = from_f32(&w, 8, 64, r#"{"activations":"int8"}"#).unwrap();
    let mut x = Numbers::new(5).floats(3 * 64);
    let mut y = vec![UNTOUCHED; 24];
    assert_eq!(matmul(handle, &x, &mut y, 3), APL_FFI_OK);
    y.fill(UNTOUCHED);
    x[130] = f32::NAN;
    assert_eq!(matmul(handle, &x, &mut y, 3), APL_FFI_ERR_RANGE);
    assert!(y.iter().all(|&v| v == UNTOUCHED));
    assert_eq!(apl_weights_free(handle), APL_FFI_OK);
}

#[test]
fn files_that_cannot_be_opened() {
    let open = |path: *const c_char, name: *const c_char, options: *const c_char| {
        let mut handle = -7;
        // SAFETY: texts end with NUL.
        let status = unsafe { apl_weights_open(path, name, options, &mut handle) };
        assert_eq!(handle, -7);
        status
    };
    let (path, name) = (c"no/such/file.json".as_ptr(), c"w".as_ptr());
    assert_eq!(open(path, name, null()), APL_FFI_ERR_IO);
    assert!(
        last_error().contains("no/such/file.json"),
        "{}",
        last_error()
    );
    assert_eq!(open(null(), name, null()), APL_FFI_ERR_NULL);
    assert_eq!(
        last_error(),
        "apl_weights_open: path is NULL, expected text"
    );
    assert_eq!(
        open(path, null(), c"{\"bits\":5}".as_ptr()),
        APL_FFI_ERR_CONFIG
    );
    assert_eq!(open(null(), c"\xff".as_ptr(), null()), APL_FFI_ERR_ENCODING);
    // SAFETY: texts end with NUL.
    unsafe {
        assert_eq!(
            apl_weights_save(1, null(), c"\xff".as_ptr()),
            APL_FFI_ERR_HANDLE
        );
        let handle = from_f32(&[1.0], 1, 1, "").unwrap();
        assert_eq!(
            apl_weights_save(handle, null(), c"\xff".as_ptr()),
            APL_FFI_ERR_ENCODING
        );
        assert_eq!(apl_weights_save(handle, null(), name), APL_FFI_ERR_NULL);
        assert_eq!(apl_weights_save(handle, path, name), APL_FFI_ERR_IO);
        assert_eq!(apl_weights_free(handle), APL_FFI_OK);
    }
}

fn open(path: &str, name: &str, options: &str) -> Result<i32, i32> {
    let (path, name, options, mut handle) = (c(path), c(name), c(options), -7);
    // SAFETY: texts end with NUL.
    match unsafe { apl_weights_open(path.as_ptr(), name.as_ptr(), options.as_ptr(), &mut handle) } {
        APL_FFI_OK => Ok(handle),
        status => {
            assert_eq!(handle, -7, "written though it failed");
            Err(status)
        }
    }
}

fn save(handle: i32, path: &str, name: &str) -> i32 {
    let (path, name) = (c(path), c(name));
    // SAFETY: texts end with NUL.
    unsafe { apl_weights_save(handle, path.as_ptr(), name.as_ptr()) }
}

#[test]
fn a_vector_of_a_file_is_a_matrix_of_one_row() {
    let path = format!(
        "{}/tests/data/models/mistral/model.safetensors",
        env!("CARGO_MANIFEST_DIR")
    );
    let opened = open(&path, "model.norm.weight", r#"{"bits":32}"#)
        .unwrap_or_else(|_| panic!("{}", last_error()));
    let info = weights_info(opened);
    assert_eq!((&info["rows"], &info["cols"]), (&json!(1), &json!(20)));
    assert!(dequantized(opened, 20).iter().any(|&w| w != 0.0));
    assert_eq!(apl_weights_free(opened), APL_FFI_OK);
}

#[test]
fn saved_and_opened_again() {
    let path = format!("{}/saved.json", env!("CARGO_TARGET_TMPDIR"));
    let w = Numbers::new(41).floats(7 * 70);
    for options in [
        r#"{"bits":1}"#,
        r#"{"bits":2,"group":0}"#,
        r#"{"bits":4,"symmetric":false}"#,
        r#"{"bits":8,"group":7,"method":"search"}"#,
    ] {
        let made = from_f32(&w, 7, 70, options).unwrap();
        assert_eq!(save(made, &path, "blk.0.w"), APL_FFI_OK, "{}", last_error());
        for mmap in ["", r#"{"mmap":false}"#] {
            let opened =
                open(&path, "blk.0.w", mmap).unwrap_or_else(|_| panic!("{}", last_error()));
            assert_eq!(weights_info(opened), weights_info(made), "{options}");
            assert_eq!(
                dequantized(opened, w.len()),
                dequantized(made, w.len()),
                "{options}"
            );
            assert_eq!(apl_weights_free(opened), APL_FFI_OK);
        }
        assert_eq!(apl_weights_free(made), APL_FFI_OK);
    }
    // The last was of 8 bits: taken so where the same is asked, requantised where another width is.
    let stored = open(
        &path,
        "blk.0.w",
        r#"{"bits":8,"group":32,"activations":"int8"}"#,
    )
    .unwrap();
    assert_eq!(weights_info(stored)["group"], 7);
    assert_eq!(weights_info(stored)["activations"], "int8");
    let other = open(&path, "blk.0.w", r#"{"bits":4}"#).unwrap();
    assert_eq!(
        (&weights_info(other)["bits"], &weights_info(other)["group"]),
        (&json!(4), &json!(32))
    );
    let again = from_f32(&dequantized(stored, w.len()), 7, 70, "").unwrap();
    assert_eq!(dequantized(other, w.len()), dequantized(again, w.len()));
    for handle in [stored, other, again] {
        assert_eq!(apl_weights_free(handle), APL_FFI_OK);
    }
    assert_eq!(
        open(&path, "blk.0.w", r#"{"activations":"sign"}"#),
        Err(APL_FFI_ERR_CONFIG)
    );
    assert_eq!(open(&path, "blk.9.w", ""), Err(APL_FFI_ERR_FORMAT));
    assert!(
        last_error().contains("blk.9.w") && last_error().contains("blk.0.w"),
        "{}",
        last_error()
    );
    assert_eq!(
        open(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"), "w", ""),
        Err(APL_FFI_ERR_FORMAT)
    );
}

/// Memory for a size that a caller gives is asked for fallibly. The weights here are pages that nobody ever
/// touches, and so many that their float32 copies do not fit the 128 TiB that a process can address.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
#[test]
fn saving_does_not_count_the_rows_of_a_matrix_without_columns() {
    let path = format!("{}/no_columns.json", env!("CARGO_TARGET_TMPDIR"));
    let handle = from_codes(&[], &[], 1 << 62, 0, "").unwrap();
    assert_eq!(save(handle, &path, "w"), APL_FFI_OK, "{}", last_error());
    assert_eq!(apl_weights_free(handle), APL_FFI_OK);
}

#[test]
fn more_than_memory() {
    let (rows, cols) = (11 << 20, 1 << 20);
    let bytes = rows * cols * size_of::<f64>();
    let (read, flags) = (
        libc::PROT_READ,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
    );
    // SAFETY: a new mapping that overlaps nothing.
    let w = unsafe { libc::mmap(null_mut(), bytes, read, flags, -1, 0) };
    if w == libc::MAP_FAILED {
        eprintln!("SKIPPED: the system maps no {bytes} bytes");
        return;
    }
    let mut handle = -7;
    let options = c"{\"bits\":32}".as_ptr();
    // SAFETY: so many zeros are mapped.
    let status = unsafe {
        apl_weights_from_f64(
            w.cast(),
            (rows * cols) as i64,
            rows as i64,
            cols as i64,
            options,
            &mut handle,
        )
    };
    assert_eq!(
        (status, handle),
        (APL_FFI_ERR_MEMORY, -7),
        "{}",
        last_error()
    );
    // SAFETY: the mapping made above, which nothing refers to any more.
    unsafe { libc::munmap(w, bytes) };
}

#[test]
fn hostile_handles() {
    let handle = from_f32(&[1.0, 2.0], 1, 2, "").unwrap();
    let mut r = Numbers::new(11);
    let made_up = (0..10_000).map(|_| (r.bits() ^ r.bits() << 1) as i32);
    let near = (0..32).flat_map(|bit| [1 << bit, -1 << bit, handle ^ 1 << bit]);
    for bad in near
        .chain([0, -1, i32::MIN, i32::MAX, -handle])
        .chain(made_up)
    {
        // Other tests of this program may have live handles of the next slots: only those of theirs are spared.
        if bad == handle || (bad > 0 && bad >> 16 == handle >> 16) {
            continue;
        }
        let mut y = [UNTOUCHED];
        assert_eq!(
            matmul(bad, &[1.0, 1.0], &mut y, 1),
            APL_FFI_ERR_HANDLE,
            "{bad:#x}"
        );
        assert_eq!(y, [UNTOUCHED]);
    }
    assert_eq!(apl_weights_free(handle), APL_FFI_OK);
    assert_eq!(apl_weights_free(handle), APL_FFI_ERR_HANDLE);
    assert_eq!(
        last_error(),
        format!("apl_weights_free: handle is {handle}, expected a live weights handle")
    );
}

#[test]
fn freed_while_other_threads_use_it() {
    let (rows, cols) = (64, 256);
    let w = Numbers::new(21).floats(rows * cols);
    let x = Numbers::new(22).floats(cols);
    for _ in 0..20 {
        let handle = from_f32(&w, rows, cols, "").unwrap();
        let mut expected = vec![0f32; rows];
        assert_eq!(matmul(handle, &x, &mut expected, 1), APL_FFI_OK);
        let freed = AtomicBool::new(false);
        let user = || {
            loop {
                let mut y = vec![UNTOUCHED; rows];
                let was_freed = freed.load(Ordering::Acquire);
                match matmul(handle, &x, &mut y, 1) {
                    APL_FFI_OK => assert!(!was_freed && y == expected),
                    status => {
                        assert_eq!(status, APL_FFI_ERR_HANDLE);
                        assert!(y.iter().all(|&v| v == UNTOUCHED));
                        break;
                    }
                }
            }
        };
        std::thread::scope(|s| {
            let users = [(); 7].map(|()| s.spawn(user));
            s.spawn(|| {
                std::thread::yield_now();
                assert_eq!(apl_weights_free(handle), APL_FFI_OK);
                freed.store(true, Ordering::Release);
            })
            .join()
            .unwrap();
            // Joined one by one: ThreadSanitizer does not see how a scope waits.
            for user in users {
                user.join().unwrap();
            }
        });
    }
}

#[test]
fn eight_threads_give_the_same_bits() {
    let (rows, cols, n) = (96, 128, 4);
    let w = Numbers::new(31).floats(rows * cols);
    let x = Numbers::new(32).floats(n * cols);
    let one = |options: &str| {
        let handle = from_f32(&w, rows, cols, options).unwrap();
        let mut y = vec![UNTOUCHED; n * rows];
        assert_eq!(matmul(handle, &x, &mut y, n), APL_FFI_OK);
        assert!(info()["handles"]["weights"].as_u64() >= Some(1));
        assert_eq!(apl_weights_free(handle), APL_FFI_OK);
        y
    };
    let options = [
        r#"{"bits":4}"#,
        r#"{"bits":8,"activations":"int8"}"#,
        r#"{"bits":1,"activations":"sign"}"#,
    ];
    let expected = options.map(one);
    std::thread::scope(|s| {
        let threads = [0, 1, 2, 3, 4, 5, 6, 7].map(|t| {
            let (expected, one) = (&expected, &one);
            s.spawn(move || {
                for i in 0..30 {
                    let which = (t + i) % 3;
                    assert_eq!(one(options[which]), expected[which]);
                }
            })
        });
        // Joined one by one: ThreadSanitizer does not see how a scope waits.
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

#[test]
fn a_failure_in_one_thread_is_told_in_another_that_had_none() {
    let said = std::thread::spawn(|| {
        assert_eq!(apl_weights_free(0x7fff_0003), APL_FFI_ERR_HANDLE);
        last_error()
    })
    .join()
    .unwrap();
    assert!(said.contains("2147418115"), "{said}");
    // Other tests fail calls meanwhile, so only that there is a message can be held.
    let fresh = std::thread::spawn(last_error).join().unwrap();
    assert!(fresh.contains(": "), "{fresh}");
}

#[test]
fn a_matrix_without_rows_needs_no_memory_for_its_columns() {
    let mut handle = 0;
    // SAFETY: nothing is read: every length is 0.
    let status = unsafe {
        apl_weights_from_codes(
            std::ptr::null(),
            0,
            4,
            1,
            std::ptr::null(),
            0,
            std::ptr::null(),
            0,
            0,
            1 << 50,
            32,
            c"".as_ptr(),
            &mut handle,
        )
    };
    assert_eq!(status, APL_FFI_OK, "{}", last_error());
    assert_eq!(apl_weights_free(handle), APL_FFI_OK);
}

#[test]
fn float_weights_are_kept_as_they_are() {
    let (rows, cols) = (5, 33);
    let w = Numbers::new(51).floats(rows * cols);
    let x = Numbers::new(52).floats(cols);
    let path = format!("{}/floats.json", env!("CARGO_TARGET_TMPDIR"));
    for bits in [16, 32] {
        // "int8" does not apply to floats: they always take "f32".
        let options = json!({"bits": bits, "activations": "int8"}).to_string();
        let handle =
            from_f32(&w, rows, cols, &options).unwrap_or_else(|_| panic!("{}", last_error()));
        let i = weights_info(handle);
        assert_eq!(
            (&i["bits"], &i["activations"]),
            (&json!(bits), &json!("f32"))
        );
        assert!(i["group"].is_null() && i["symmetric"].is_null() && i["scales"].is_null());
        let kept = dequantized(handle, w.len());
        for (&k, &w) in kept.iter().zip(&w) {
            let rounded = if bits == 16 {
                half::f16::from_f32(w).to_f32()
            } else {
                w
            };
            assert_eq!(k.to_bits(), rounded.to_bits());
        }
        let mut y = vec![UNTOUCHED; rows];
        assert_eq!(matmul(handle, &x, &mut y, 1), APL_FFI_OK);
        let wide: Vec<f64> = kept.iter().map(|&v| v.into()).collect();
        assert_close(&y, &oracle(&wide, &x, rows, cols), &options);

        assert_eq!(save(handle, &path, "w"), APL_FFI_OK, "{}", last_error());
        let opened = open(&path, "w", &options).unwrap_or_else(|_| panic!("{}", last_error()));
        assert_eq!(dequantized(opened, w.len()), kept);
        let by_default = open(&path, "w", "").unwrap();
        assert_eq!(weights_info(by_default)["bits"], 4);
        for h in [handle, opened, by_default] {
            assert_eq!(apl_weights_free(h), APL_FFI_OK);
        }
    }
    for bad in [f32::NAN, f32::INFINITY] {
        assert_eq!(
            from_f32(&[1.0, bad], 1, 2, r#"{"bits":32}"#),
            Err(APL_FFI_ERR_RANGE)
        );
    }
    assert_eq!(
        from_f32(&[1.0, 70000.0], 1, 2, r#"{"bits":16}"#),
        Err(APL_FFI_ERR_RANGE)
    );
}
