//! What the tests of the C ABI share.
#![allow(dead_code, reason = "each test program uses its part")]

use std::ffi::{CString, c_char};

use apl_ffi::abi::lifecycle::{apl_ffi_info, apl_ffi_last_error};
use serde_json::Value;

/// A text from a function that fills a buffer: asks for the size, then for the text, and again where other threads have
/// made it longer meanwhile.
pub fn filled(fill: impl Fn(*mut c_char, i32) -> i32) -> String {
    let mut needed = fill(std::ptr::null_mut(), 0);
    loop {
        assert!(needed >= 0, "status {needed}");
        let mut bytes = vec![0x55u8; needed as usize + 1];
        let capacity = needed + 1;
        needed = fill(bytes.as_mut_ptr().cast(), capacity);
        if needed < capacity {
            bytes.truncate(needed as usize + 1);
            assert_eq!(bytes.pop(), Some(0));
            return String::from_utf8(bytes).unwrap();
        }
    }
}

pub fn last_error() -> String {
    // SAFETY: `filled` gives as much room as it says.
    filled(|text, capacity| unsafe { apl_ffi_last_error(text, capacity) })
}

pub fn info() -> Value {
    // SAFETY: as above.
    let text = filled(|json, capacity| unsafe { apl_ffi_info(json, capacity) });
    serde_json::from_str(&text).unwrap()
}

pub fn c(text: &str) -> CString {
    CString::new(text).unwrap()
}

/// Numbers that look random and are the same every time: a linear congruential generator.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed.wrapping_mul(2) + 1)
    }

    pub fn bits(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }

    /// Of -1 to 1.
    pub fn float(&mut self) -> f32 {
        self.bits() as f32 / (1u64 << 30) as f32 - 1.0
    }

    pub fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }

    pub fn below(&mut self, end: u32) -> u32 {
        self.bits() % end
    }
}

/// `W x` in float64 for one vector: each value and the bound on its error that the contract gives.
pub fn oracle(w: &[f64], x: &[f32], rows: usize, cols: usize) -> Vec<(f64, f64)> {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
    let x_norm = norm(&mut x.iter().map(|&v| v.into()));
    (0..rows)
        .map(|r| {
            let row = &w[r * cols..(r + 1) * cols];
            let sum = row.iter().zip(x).map(|(w, &x)| w * f64::from(x)).sum();
            (sum, 1e-5 * norm(&mut row.iter().copied()) * x_norm)
        })
        .collect()
}

/// Holds a result to its oracle.
pub fn assert_close(y: &[f32], expected: &[(f64, f64)], what: &str) {
    assert_eq!(y.len(), expected.len());
    for (i, (&y, &(e, bound))) in y.iter().zip(expected).enumerate() {
        let error = (f64::from(y) - e).abs();
        assert!(
            error <= bound,
            "{what}: y[{i}] is {y}, expected {e}, off by {error:e} > {bound:e}"
        );
    }
}
