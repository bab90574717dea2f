//! The message of the latest failure, of this thread or else of the process.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

thread_local! {
    /// The latest failure of this thread, if no call has succeeded since.
    static OF_THREAD: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The latest failure of any thread: a call from APL that is marked `&` runs in another system
/// thread than the call that asks for its error.
static OF_PROCESS: Mutex<String> = Mutex::new(String::new());

/// Records the message of a failed call.
pub(super) fn record_failure(message: String) {
    // A NUL quoted from a caller's text or a file would end the message early.
    let message = match message.contains('\0') {
        true => message.replace('\0', "\u{fffd}"),
        false => message,
    };
    OF_PROCESS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone_from(&message);
    // Not accessible while the destructors of the thread run; the message of the process is.
    let _ = OF_THREAD.try_with(|slot| slot.replace(Some(message)));
}

/// Records that a call of this thread has succeeded.
pub(super) fn record_success() {
    let _ = OF_THREAD.try_with(|slot| {
        if slot.borrow().is_some() {
            slot.replace(None);
        }
    });
}

/// Calls `f` with the message, which is empty if nothing has failed.
pub(super) fn with_message<R>(f: impl FnOnce(&str) -> R) -> R {
    let of_thread = OF_THREAD
        .try_with(|slot| slot.borrow().clone())
        .unwrap_or(None);
    match of_thread {
        Some(message) => f(&message),
        None => f(&OF_PROCESS.lock().unwrap_or_else(PoisonError::into_inner)),
    }
}
