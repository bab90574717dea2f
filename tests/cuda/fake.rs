//! The driver that is none, and a small library around the C ABI for the tests that use it.

use std::ffi::{CString, c_char, c_long};
use std::sync::{Mutex, MutexGuard, PoisonError};

use apl_ffi::abi::lifecycle::*;
use apl_ffi::abi::status::*;
use apl_ffi::abi::weights::*;
use libloading::os::unix::{Library, RTLD_NOW};
use serde_json::{Value, json};

use crate::abi_support::{Numbers, c, filled, last_error};

/// The driver with its settings as they were, and the library not initialised; one test at a time has it.
pub struct Fake {
    library: Library,
    changed: Vec<(&'static str, i64)>,
    _turn: MutexGuard<'static, ()>,
}

/// The driver, or `None`, with a line, where there is none or a real one.
///
/// # Panics
/// If there is none though the environment demands CUDA: a run that was meant to test it must not pass by skipping.
pub fn fake() -> Option<Fake> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(apl_ffi_cleanup(), APL_FFI_OK);
    // SAFETY: loads what the library itself would.
    let found = unsafe { Library::open(Some("libcuda.so.1"), RTLD_NOW) }
        .ok()
        // SAFETY: only looked for.
        .filter(|library| unsafe { library.get::<fn()>(b"fake_cuda_set") }.is_ok());
    let Some(library) = found else {
        eprintln!(
            "SKIPPED: LD_LIBRARY_PATH does not lead to the driver that is none: make test-fake-gpu"
        );
        return None;
    };
    Some(Fake {
        library,
        changed: Vec::new(),
        _turn: turn,
    })
}

impl Fake {
    pub fn get(&self, name: &str) -> i64 {
        let name = CString::new(name).unwrap();
        // SAFETY: the type is that of tests/kernels/fake_cuda.cpp.
        let get = unsafe {
            self.library
                .get::<extern "C" fn(*const c_char) -> c_long>(b"fake_cuda_get")
        };
        get.unwrap()(name.as_ptr())
    }

    /// Until the test is over.
    pub fn set(&mut self, name: &'static str, value: i64) {
        self.changed.push((name, self.get(name)));
        self.put(name, value);
    }

    fn put(&self, name: &str, value: i64) {
        let name = CString::new(name).unwrap();
        // SAFETY: as above.
        let set = unsafe {
            self.library
                .get::<extern "C" fn(*const c_char, c_long)>(b"fake_cuda_set")
        };
        set.unwrap()(name.as_ptr(), value);
    }

    /// A function of the driver.
    pub fn symbol<F: Copy>(&self, name: &str) -> F {
        // SAFETY: the caller gives the type of the driver's manual.
        unsafe { *self.library.get::<F>(name.as_bytes()).unwrap() }
    }

    /// Nothing of the library's is left in the driver.
    pub fn assert_empty(&self) {
        for what in [
            "ALLOCATED",
            "HOST_ALLOCATED",
            "STREAMS",
            "EVENTS",
            "GRAPHS",
            "MODULES",
            "CONTEXTS",
        ] {
            assert_eq!(self.get(what), 0, "{what}");
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        apl_ffi_cleanup();
        for &(name, value) in self.changed.iter().rev() {
            self.put(name, value);
        }
    }
}

pub fn init(config: Value) -> i32 {
    let config = c(&config.to_string());
    // SAFETY: the text ends with NUL.
    unsafe { apl_ffi_init(config.as_ptr()) }
}

/// With CUDA, or the test fails.
pub fn init_cuda() {
    assert_eq!(
        init(json!({"backend": "cuda"})),
        APL_FFI_OK,
        "{}",
        last_error()
    );
}

/// A matrix and vectors, and what their product is.
pub struct Case {
    pub rows: usize,
    pub cols: usize,
    pub n: usize,
    pub options: Value,
    pub w: Vec<f32>,
    pub x: Vec<f32>,
}

impl Case {
    pub fn new(rows: usize, cols: usize, n: usize, options: Value) -> Case {
        let mut numbers = Numbers::new((rows * cols + n) as u64);
        Case {
            rows,
            cols,
            n,
            options,
            w: numbers.floats(rows * cols),
            x: numbers.floats(n * cols),
        }
    }

    /// A handle, or the status; the place of the handle is not written then.
    pub fn weights(&self) -> Result<i32, i32> {
        let (options, mut handle) = (c(&self.options.to_string()), -7);
        // SAFETY: lengths are those of the slices.
        let status = unsafe {
            apl_weights_from_f32(
                self.w.as_ptr(),
                self.w.len() as i64,
                self.rows as i64,
                self.cols as i64,
                options.as_ptr(),
                &mut handle,
            )
        };
        match status {
            APL_FFI_OK => Ok(handle),
            status => {
                assert_eq!(handle, -7);
                Err(status)
            }
        }
    }

    /// The product, or the status; `y` is not written then.
    pub fn multiply(&self, handle: i32) -> Result<Vec<f32>, i32> {
        const UNTOUCHED: f32 = 12345.5;
        let mut y = vec![UNTOUCHED; self.n * self.rows];
        // SAFETY: lengths are those of the slices.
        let status = unsafe {
            apl_matmul(
                handle,
                self.x.as_ptr(),
                self.x.len() as i64,
                y.as_mut_ptr(),
                y.len() as i64,
                self.n as i64,
            )
        };
        match status {
            APL_FFI_OK => Ok(y),
            status => {
                assert!(
                    y.iter().all(|&y| y == UNTOUCHED),
                    "written though it failed"
                );
                Err(status)
            }
        }
    }

    /// What the handle's weights give in float64; the greatest error that a product may have, as a share of the norms, is 1e-2
    /// for int8 activations and 1e-5 for others.
    pub fn assert_right(&self, handle: i32, y: &[f32]) {
        let mut w = vec![0f32; self.w.len()];
        // SAFETY: the length is that of the vector.
        let status = unsafe { apl_weights_dequantize(handle, w.as_mut_ptr(), w.len() as i64) };
        assert_eq!(status, APL_FFI_OK, "{}", last_error());
        let share = if self.options["activations"] == "int8" {
            1e-2
        } else {
            1e-5
        };
        let norm = |v: &[f32]| v.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        for (x, y) in self.x.chunks(self.cols).zip(y.chunks(self.rows)) {
            for (w, &y) in w.chunks(self.cols).zip(y) {
                let sum: f64 = w
                    .iter()
                    .zip(x)
                    .map(|(&w, &x)| f64::from(w) * f64::from(x))
                    .sum();
                let error = (sum - f64::from(y)).abs();
                assert!(error <= share * norm(w) * norm(x), "{y}, expected {sum}");
            }
        }
    }
}

pub fn weights_info(handle: i32) -> Value {
    // SAFETY: `filled` gives as much room as it says.
    let text = filled(|json, capacity| unsafe { apl_weights_info(handle, json, capacity) });
    serde_json::from_str(&text).unwrap()
}
