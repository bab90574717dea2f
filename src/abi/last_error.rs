//! The message of the latest failure: of this thread, else of the process.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

thread_local! {
    /// The latest failure of this thread, unless a success came after it.
    static OF_THREAD: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The latest failure of any thread. A call from APL that is marked `&` runs in another system
/// thread than the call that asks what went wrong.
static OF_PROCESS: Mutex<String> = Mutex::new(String::new());

/// Keeps the message of a failed call.
pub(super) fn record_failure(message: String) {
    // What a caller's text or a file brought in would end the sentence for who reads it up to the NUL.
    let message = match message.contains('\0') {
        true => message.replace('\0', "\u{fffd}"),
        false => message,
    };
    OF_PROCESS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone_from(&message);
    // Gone while the thread's own destructors run; the message of the process is there still.
    let _ = OF_THREAD.try_with(|slot| slot.replace(Some(message)));
}

/// A call succeeded: this thread has no failure since.
pub(super) fn record_success() {
    let _ = OF_THREAD.try_with(|slot| {
        if slot.borrow().is_some() {
            slot.replace(None);
        }
    });
}

/// Calls `f` with the message; it is empty if nothing ever failed.
pub(super) fn with_message<R>(f: impl FnOnce(&str) -> R) -> R {
    let of_thread = OF_THREAD
        .try_with(|slot| slot.borrow().clone())
        .unwrap_or(None);
    match of_thread {
        Some(message) => f(&message),
        None => f(&OF_PROCESS.lock().unwrap_or_else(PoisonError::into_inner)),
    }
}
