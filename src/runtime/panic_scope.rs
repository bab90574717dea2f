//! Whether this thread is running the library's code, and panics in it that print nothing.
//!
//! A call never prints, but a panic prints through the process-wide hook, which belongs to the
//! host. So we install a hook in front of it that determines whose panic it is: the text of ours is
//! kept for whoever catches it, any other panic goes to the previous hook.

use std::any::Any;
use std::cell::Cell;
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

thread_local! {
    // `const` and without a destructor, so that it can be read at any time of a thread's life, even
    // by a panic while other thread-locals are being destroyed.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, this thread runs the library's code. Scopes nest.
#[must_use = "the scope ends when this is dropped"]
pub(crate) struct InLibrary {
    outer: bool,
    // Not `Send`: it restores the state of the thread that created it.
    thread: PhantomData<*const ()>,
}

/// Marks the following code on this thread as the library's.
pub(crate) fn enter_library() -> InLibrary {
    InLibrary {
        outer: INSIDE.replace(true),
        thread: PhantomData,
    }
}

/// Whether this thread is inside the library.
pub(super) fn in_library() -> bool {
    INSIDE.get()
}

/// Runs `body` as the library's code. A panic in it is caught and prints nothing; `Err` contains
/// its message and location.
///
/// The caller is responsible for state that `body` leaves half changed.
pub(crate) fn quietly<T>(body: impl FnOnce() -> T) -> Result<T, String> {
    silence_own_panics();
    let _inside = enter_library();
    panic::catch_unwind(AssertUnwindSafe(body)).map_err(explain)
}

/// The messages and locations of the latest panics inside the library.
///
/// The hook runs on the thread that panicked, which may be one of the pool's; the payload is caught
/// on the caller's thread. So locations are kept per process, and the message tells which one
/// belongs to a caught payload. Several are kept, because several callers may hit a bug at once.
static LATEST_PANICS: Mutex<VecDeque<(String, String)>> = Mutex::new(VecDeque::new());

const PANICS_KEPT: usize = 16;

/// Installs the hook: a panic inside the library must not print; any other goes to the previous
/// hook.
fn silence_own_panics() {
    static INSTALLED: Once = Once::new();
    // A destructor of the host may call us while its thread unwinds. The hook cannot be changed
    // then; a later call will do it.
    if std::thread::panicking() {
        return;
    }
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
        // A payload of an unknown type may panic again when it is dropped.
        std::mem::forget(payload);
    }
    format!("{text}{place}")
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

impl Drop for InLibrary {
    fn drop(&mut self) {
        INSIDE.set(self.outer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a destructor of the host does while its thread unwinds. The hook must not be installed
    /// yet, so this runs in a process of its own.
    #[test]
    fn a_call_while_the_host_unwinds() {
        const CHILD: &str = "APL_FFI_TEST_UNWINDS";
        struct Calls;
        impl Drop for Calls {
            fn drop(&mut self) {
                assert_eq!(quietly(|| 5), Ok(5));
            }
        }
        if std::env::var_os(CHILD).is_some() {
            let unwound = std::panic::catch_unwind(|| {
                let _calls = Calls;
                panic!("the host's");
            });
            assert!(unwound.is_err());
            // The hook is installed afterwards.
            let caught = quietly(|| panic!("ours")).unwrap_err();
            assert!(caught.starts_with("ours (src"), "{caught}");
            return;
        }
        let itself = std::env::current_exe().unwrap();
        let name = concat!(module_path!(), "::a_call_while_the_host_unwinds");
        let (_, name) = name.split_once("::").unwrap();
        let child = std::process::Command::new(itself)
            .args(["--exact", name])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(
            child.status.success() && said.contains("1 passed"),
            "{said}"
        );
    }

    #[test]
    fn scopes_nest_and_end_with_a_panic() {
        // In a thread of its own: the flag is per thread, and the harness may reuse this one.
        std::thread::spawn(|| {
            assert!(!in_library());
            {
                let _outer = enter_library();
                drop(enter_library());
                assert!(in_library());
            }
            assert!(!in_library());
            let _ = std::panic::catch_unwind(|| {
                let _scope = enter_library();
                std::panic::resume_unwind(Box::new(())) // without the hook
            });
            assert!(!in_library());
        })
        .join()
        .unwrap();
    }
}
