//! The guard around every exported function, which turns a `Result` or a panic into a status.

use super::last_error;
use crate::cpu::Ieee;
use crate::error::{Error, Result};
use crate::runtime::quietly;

/// Runs the body of `function`; returns its value, or the status of its error.
///
/// Records the result for `apl_ffi_last_error`, with the name of the function before the message.
pub(super) fn guard(function: &str, body: impl FnOnce() -> Result<i32>) -> i32 {
    let _floats = Ieee::enter();
    match catch(body) {
        Ok(value) => {
            last_error::record_success();
            value
        }
        Err(error) => {
            last_error::record_failure(format!("{function}: {error}"));
            error.status() as i32
        }
    }
}

/// The same for functions that leave the error state alone, so that asking for the last error (the
/// size first, then the text) does not change it.
pub(super) fn guard_unrecorded(body: impl FnOnce() -> Result<i32>) -> i32 {
    let _floats = Ieee::enter();
    catch(body).unwrap_or_else(|error| error.status() as i32)
}

/// The same for a result that is not a status; a panic gives `otherwise`.
pub(super) fn guard_or<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    let _floats = Ieee::enter();
    catch(|| Ok(body())).unwrap_or(otherwise)
}

fn catch<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    // Unwind safety: a body writes the caller's buffers only as its last step. Locks are taken even
    // if poisoned, because what they protect changes by single assignments, except a session's: a
    // poisoned session is refused.
    quietly(body).unwrap_or_else(|said| Err(Error::internal(format!("a panic was caught: {said}"))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;
    use crate::runtime::enter_library;

    extern "C" fn panics(kind: i32) -> i32 {
        guard("panics", || match kind {
            0 => panic!("deliberate"),
            1 => std::panic::panic_any(7u8),
            2 => panic!("item {} of {}", 3, 4),
            _ => Ok(kind),
        })
    }

    fn message() -> String {
        last_error::with_message(str::to_owned)
    }

    #[test]
    fn a_panic_becomes_a_status_with_text_and_place() {
        assert_eq!(panics(0), Status::Internal as i32);
        assert!(
            message().starts_with("panics: a panic was caught: deliberate (src/abi/guard.rs:"),
            "{}",
            message()
        );
        assert_eq!(panics(2), Status::Internal as i32);
        assert!(message().contains("item 3 of 4"), "{}", message());
        assert_eq!(panics(1), Status::Internal as i32);
        assert!(message().contains("no text"), "{}", message());
        assert_eq!(panics(5), 5);
    }

    #[test]
    fn a_panic_on_another_thread_of_the_library_keeps_its_place() {
        let status = guard("outer", || {
            let worker = std::thread::spawn(|| {
                let _inside = enter_library();
                panic!("deep inside");
            });
            match worker.join() {
                Err(payload) => std::panic::resume_unwind(payload),
                Ok(()) => Ok(0),
            }
        });
        assert_eq!(status, Status::Internal as i32);
        assert!(
            message().contains("deep inside (src/abi/guard.rs:"),
            "{}",
            message()
        );
    }

    #[test]
    fn unrecorded_and_plain_results() {
        assert_eq!(guard("f", || Err(Error::range("x"))), Status::Range as i32);
        assert_eq!(message(), "f: x");
        assert_eq!(
            guard_unrecorded(|| Err(Error::length("y"))),
            Status::Length as i32
        );
        assert_eq!(
            guard_unrecorded(|| panic!("quiet")),
            Status::Internal as i32
        );
        assert_eq!(guard_or(3, || panic!("quiet")), 3);
        assert_eq!(message(), "f: x");
        assert_eq!(guard("f", || Ok(0)), 0);
    }
}
