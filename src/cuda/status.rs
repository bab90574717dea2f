//! The driver's status as an error of the library.
//!
//! cudarc reads the status as an enumeration, which lacks values introduced later. A status is
//! therefore only compared with success, converted to its number and shown.

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

use crate::error::{Error, Result};

/// Converts a failure of the driver, with the operation that failed.
pub(super) trait Tried<T> {
    /// # Errors
    /// `ERR_MEMORY` if memory is exhausted, else `ERR_BACKEND`: "CUDA: `what` failed: …".
    fn tried(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Tried<T> for std::result::Result<T, DriverError> {
    fn tried(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| {
            let message = format!("CUDA: {} failed: {}", what(), words(e));
            match e.0 {
                CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::memory(message),
                _ => Error::backend(message),
            }
        })
    }
}

/// The driver's description of an error, with its number.
pub(super) fn words(e: DriverError) -> String {
    let number = e.0 as u32;
    match e.error_string() {
        Ok(text) => format!("{} (CUDA error {number})", text.to_string_lossy()),
        Err(_) => format!("CUDA error {number}"),
    }
}
