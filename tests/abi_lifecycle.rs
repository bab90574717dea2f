//! The life cycle through the C ABI. The state belongs to the process, so these tests take turns.

mod abi_support;

use std::ffi::CStr;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use abi_support::{c, filled, info, last_error};
use apl_ffi::abi::lifecycle::*;
use apl_ffi::abi::quantizing::*;
use apl_ffi::abi::status::*;
use apl_ffi::abi::weights::*;
use serde_json::{Value, json};

fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(apl_ffi_cleanup(), APL_FFI_OK);
    turn
}

fn init(config: &str) -> i32 {
    let config = c(config);
    // SAFETY: the text ends with NUL.
    unsafe { apl_ffi_init(config.as_ptr()) }
}

fn a_handle() -> i32 {
    let mut handle = 0;
    let w = [1.0f32, 2.0];
    // SAFETY: lengths are those of the arrays.
    let status = unsafe { apl_weights_from_f32(w.as_ptr(), 2, 1, 2, null(), &mut handle) };
    assert_eq!(status, APL_FFI_OK, "{}", last_error());
    handle
}

#[test]
fn configured_once() {
    let _turn = turn();
    assert_eq!(
        init(r#"{"threads":2,"isa":"scalar","backend":"cpu"}"#),
        APL_FFI_OK,
        "{}",
        last_error()
    );
    assert_eq!(
        init(r#"{"backend":"cpu","isa":"scalar","threads":2}"#),
        APL_FFI_OK
    );
    assert_eq!(
        init(r#"{"threads":1,"isa":"scalar","backend":"cpu"}"#),
        APL_FFI_ERR_STATE
    );
    assert!(
        last_error().starts_with("apl_ffi_init: "),
        "{}",
        last_error()
    );
    let i = info();
    assert_eq!(
        (&i["isa"], &i["threads"], &i["backend"]),
        (&json!("scalar"), &json!(2), &json!("cpu"))
    );
    assert_eq!(apl_ffi_cleanup(), APL_FFI_OK);
    assert_eq!(init(r#"{"threads":1}"#), APL_FFI_OK);
    assert_eq!(info()["threads"], 1);
}

#[test]
fn the_defaults_in_every_spelling() {
    let _turn = turn();
    // SAFETY: NULL is the defaults.
    let status = unsafe { apl_ffi_init(null()) };
    assert_eq!(status, APL_FFI_OK, "{}", last_error());
    assert_eq!((init(""), init("{}")), (APL_FFI_OK, APL_FFI_OK));
}

#[test]
fn configurations_that_are_refused_leave_it_unconfigured() {
    let _turn = turn();
    // SAFETY: the text ends with NUL.
    let status = unsafe { apl_ffi_init(c"{\"isa\":\"\xff\"}".as_ptr()) };
    assert_eq!(status, APL_FFI_ERR_ENCODING);
    for config in [
        "{",
        "[]",
        r#"{"thread":2}"#,
        r#"{"threads":-1}"#,
        r#"{"isa":"sse9"}"#,
        r#"{"backend":"tpu"}"#,
    ] {
        assert_eq!(init(config), APL_FFI_ERR_CONFIG, "{config}");
        assert!(
            last_error().starts_with("apl_ffi_init: "),
            "{}",
            last_error()
        );
    }
    // An ordinal that no machine has.
    let none = r#"{"backend":"cuda","device":2147483647}"#;
    assert_eq!(init(none), APL_FFI_ERR_BACKEND);
    assert_eq!(apl_ffi_ready(), 0);
}

#[test]
fn an_instruction_set_that_the_processor_lacks() {
    let _turn = turn();
    let available = info()["isa_available"].as_array().unwrap().len();
    match ["scalar", "avx2", "avx512"].get(available) {
        Some(more) => assert_eq!(
            init(&json!({"isa": more}).to_string()),
            APL_FFI_ERR_UNSUPPORTED
        ),
        None => eprintln!("SKIPPED: this processor has every instruction set"),
    }
}

#[test]
fn functions_that_never_initialise_and_leave_the_error_state_alone() {
    let _turn = turn();
    assert_eq!(apl_weights_free(0), APL_FFI_ERR_HANDLE);
    let said = last_error();
    assert!(said.starts_with("apl_weights_free: handle is 0"), "{said}");
    let ask = || {
        assert_eq!(apl_ffi_abi_version(), APL_FFI_ABI_VERSION);
        assert_eq!(apl_ffi_ready(), 0);
        // SAFETY: nothing is written without room.
        unsafe {
            assert!(apl_ffi_info(null_mut(), 0) > 0);
            assert!(apl_ffi_describe(null_mut(), 0) > 0);
            assert!(apl_ffi_status_message(-1, null_mut(), 0) > 0);
            assert_eq!(apl_ffi_info(null_mut(), -1), APL_FFI_ERR_LENGTH);
            assert_eq!(apl_ffi_info(null_mut(), 1), APL_FFI_ERR_NULL);
            assert_eq!(apl_ffi_last_error(null_mut(), -1), APL_FFI_ERR_LENGTH);
            assert_eq!(apl_ffi_describe(null_mut(), 7), APL_FFI_ERR_NULL);
            assert_eq!(
                apl_ffi_status_message(0, null_mut(), -1),
                APL_FFI_ERR_LENGTH
            );
        }
        assert!(!apl_ffi_status_text(3).is_null());
        assert_eq!(apl_ffi_cleanup(), APL_FFI_OK);
    };
    ask();
    assert_eq!(last_error(), said);
    assert_eq!(apl_ffi_ready(), 0);
    let before = info();
    assert!(before["backend"].is_null() && before["isa"].is_null() && before["cuda"].is_null());
    assert_eq!(
        before["handles"],
        json!({"weights": 0, "models": 0, "sessions": 0})
    );
    assert_eq!(before["abi"], APL_FFI_ABI_VERSION);
    assert_eq!(before["isa_available"][0], "scalar");
}

#[test]
fn a_call_that_needs_it_initialises_and_a_wrong_call_does_not() {
    let _turn = turn();
    let mut handle = 0;
    // SAFETY: refused before anything is read.
    let status = unsafe { apl_weights_from_f32(null(), 1, 1, 2, null(), &mut handle) };
    assert_eq!(status, APL_FFI_ERR_LENGTH);
    assert_eq!(apl_ffi_ready(), 0);
    let handle = a_handle();
    assert_eq!(apl_ffi_ready(), 1);
    let i = info();
    assert_eq!(i["handles"]["weights"], 1);
    assert!(i["backend_reason"].is_string() && i["threads"].as_u64() >= Some(1));
    assert_eq!(apl_weights_free(handle), APL_FFI_OK);
}

#[test]
fn success_clears_the_threads_own_error_and_the_latest_of_the_process_remains() {
    let _turn = turn();
    let handle = a_handle();
    assert_eq!(apl_weights_free(handle), APL_FFI_OK);
    assert_eq!(apl_weights_free(handle), APL_FFI_ERR_HANDLE);
    let own = last_error();
    let other = std::thread::spawn(|| {
        assert_eq!(apl_weights_free(-5), APL_FFI_ERR_HANDLE);
        last_error()
    })
    .join()
    .unwrap();
    assert!(other.contains("-5"), "{other}");
    assert_eq!(last_error(), own, "this thread had no success since");
    assert_eq!(init(""), APL_FFI_OK);
    assert_eq!(last_error(), other);
}

#[test]
fn cleanup_ends_handles_for_good() {
    let _turn = turn();
    let handle = a_handle();
    assert_eq!(apl_ffi_cleanup(), APL_FFI_OK);
    assert_eq!(apl_ffi_ready(), 0);
    assert_eq!(apl_weights_free(handle), APL_FFI_ERR_HANDLE);
    assert_eq!(
        apl_ffi_ready(),
        0,
        "a handle is not worth an initialisation"
    );
    let again = a_handle();
    assert_ne!(again, handle);
    assert_eq!(apl_weights_free(handle), APL_FFI_ERR_HANDLE);
}

#[test]
fn cleanup_among_running_calls() {
    let _turn = turn();
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let handle = a_handle();
                    let (x, mut y) = ([3.0f32, 4.0], [0f32]);
                    // SAFETY: lengths are those of the arrays.
                    match unsafe { apl_matmul(handle, x.as_ptr(), 2, y.as_mut_ptr(), 1, 1) } {
                        APL_FFI_OK => assert!((y[0] - 11.0).abs() < 0.5, "{}", y[0]),
                        status => assert_eq!((status, y), (APL_FFI_ERR_HANDLE, [0.0])),
                    }
                }
            });
        }
        for _ in 0..100 {
            assert_eq!(apl_ffi_cleanup(), APL_FFI_OK);
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(apl_ffi_cleanup(), APL_FFI_OK);
    assert_eq!(info()["handles"]["weights"], 0);
}

#[test]
fn statuses_have_texts() {
    for status in (-12..=0).chain([-99, -100, 1, i32::MIN, i32::MAX]) {
        // SAFETY: static text that ends with NUL.
        let text = unsafe { CStr::from_ptr(apl_ffi_status_text(status)) }
            .to_str()
            .unwrap();
        // SAFETY: `filled` gives as much room as it says.
        let message =
            filled(|text, capacity| unsafe { apl_ffi_status_message(status, text, capacity) });
        assert!(!text.is_empty() && text == message, "{status}");
    }
}

#[test]
fn the_library_describes_itself() {
    // SAFETY: `filled` gives as much room as it says.
    let text = filled(|json, capacity| unsafe { apl_ffi_describe(json, capacity) });
    let description: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(description["abi"], APL_FFI_ABI_VERSION);
    assert_eq!(description["version"], env!("CARGO_PKG_VERSION"));
    let functions = description["functions"].as_array().unwrap();
    let contract: Vec<&str> = include_str!("abi_v1.txt").lines().collect();
    assert_eq!(functions.len(), contract.len());
    for (f, prototype) in functions.iter().zip(contract) {
        assert_eq!(f["c"], prototype);
        let name = f["name"].as_str().unwrap();
        assert!(prototype.contains(&format!("{name}(")));
        assert!(f["na"].as_str().unwrap().contains(&format!(" %P|{name}")));
        assert!(f["doc"].as_str().unwrap().ends_with('.'), "{}", f["doc"]);
    }
}

/// Rows without columns are any number: nothing is there that would take memory.
#[test]
fn quantising_rows_without_columns() {
    let _turn = turn();
    let mut zero_points = [7; 3];
    let mut scales = [7.0; 3];
    for rows in [3, 1 << 40] {
        let n = if rows == 3 { 3 } else { 0 };
        let (s, z) = (scales.as_mut_ptr(), zero_points.as_mut_ptr());
        // SAFETY: lengths are those of the arrays, or 0.
        let status =
            unsafe { apl_quantize(null(), 0, rows, 0, 4, 0, 0, null_mut(), 0, s, n, z, n) };
        assert_eq!(status, APL_FFI_OK, "{}", last_error());
    }
    assert_eq!((scales, zero_points), ([0.0; 3], [0; 3]));
}
