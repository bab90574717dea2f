//! The guard around every exported function: a `Result` or a panic goes in, a status comes out.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use super::last_error;
use crate::cpu::Ieee;
use crate::error::{Error, Result};
use crate::runtime::{enter_library, in_library};

/// Runs the body of `function` and gives what the caller sees: its value, or the status of its error.
///
/// The outcome is recorded for `apl_ffi_last_error`, with the function's name before the message.
pub(super) fn guard(function: &str, body: impl FnOnce() -> Result<i32>) -> i32 {
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

/// The same for the functions that leave the error state alone, so that asking what went wrong
/// (first for the size, then for the text) does not change the answer.
pub(super) fn guard_unrecorded(body: impl FnOnce() -> Result<i32>) -> i32 {
    catch(body).unwrap_or_else(|error| error.status() as i32)
}

/// The same for a result that is no status: `otherwise` is what a panic gives.
pub(super) fn guard_or<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    catch(|| Ok(body())).unwrap_or(otherwise)
}

/// What the latest panics inside the library said, and where they were.
///
/// The hook runs on the thread that panicked, which may be one of the pool's; the boundary catches
/// the payload on the caller's thread. So the places are kept for the process, and the text tells which
/// belongs to the payload caught. Several callers may meet a bug at once, hence more than one.
static LATEST_PANICS: Mutex<VecDeque<(String, String)>> = Mutex::new(VecDeque::new());

const PANICS_KEPT: usize = 16;

fn catch<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    silence_own_panics();
    let _inside = enter_library();
    // Threads that a call starts begin with its mode.
    let _floats = Ieee::enter();
    // Unwind safety: a body writes the caller's buffers only as its last step, and every lock of the library is
    // taken whether poisoned or not, because what it protects is changed by single assignments.
    panic::catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|payload| Err(Error::internal(explain(payload))))
}

/// A panic inside the library becomes a status and must not print; any other goes to the hook that was there before.
fn silence_own_panics() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !in_library() {
                return previous(info);
            }
            let place = info.location().map_or_else(String::new, |l| l.to_string());
            let mut latest = latest_panics();
            latest.truncate(PANICS_KEPT - 1);
            latest.push_front((text_of(info.payload()).to_owned(), place));
        }));
    });
}

fn explain(payload: Box<dyn Any + Send>) -> String {
    let text = text_of(&*payload).to_owned();
    let mut latest = latest_panics();
    let place = latest
        .iter()
        .position(|(said, _)| *said == text)
        .and_then(|i| latest.remove(i))
        .map_or_else(String::new, |(_, place)| format!(" ({place})"));
    if !payload.is::<&str>() && !payload.is::<String>() {
        // A payload of a type that nobody here knows may panic again where it is dropped.
        std::mem::forget(payload);
    }
    format!("a panic was caught: {text}{place}")
}

fn latest_panics() -> MutexGuard<'static, VecDeque<(String, String)>> {
    LATEST_PANICS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn text_of(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

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
                Err(payload) => panic::resume_unwind(payload),
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
