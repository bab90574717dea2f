//! Whether this thread is running the library's code, and panics in it that print nothing.
//!
//! A call never prints, and a panic prints through the process-wide hook, which belongs to the host.
//! So there is a hook of ours before it that asks whose panic it is: ours is kept for the one that catches it, any
//! other goes to the hook that was there before.

use std::any::Any;
use std::cell::Cell;
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

thread_local! {
    // `const` and without a destructor, so that reading it is safe at any time of a thread's life,
    // even from a panic while other thread-locals are being destroyed.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, this thread runs the library's code. Scopes nest.
#[must_use = "the scope ends when this is dropped"]
pub(crate) struct InLibrary {
    outer: bool,
    // It restores a value of the thread that made it, so it stays there.
    thread: PhantomData<*const ()>,
}

/// Marks the code that follows on this thread as the library's.
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

/// Runs `body` as the library's code. A panic in it is caught and prints nothing; `Err` has what it said, and where.
///
/// Whoever calls answers for what `body` leaves half changed.
pub(crate) fn quietly<T>(body: impl FnOnce() -> T) -> Result<T, String> {
    silence_own_panics();
    let _inside = enter_library();
    panic::catch_unwind(AssertUnwindSafe(body)).map_err(explain)
}

/// What the latest panics inside the library said, and where they were.
///
/// The hook runs on the thread that panicked, which may be one of the pool's; the payload is caught on the
/// caller's thread. So the places are kept for the process, and the text tells which
/// belongs to the payload caught. Several callers may meet a bug at once, hence more than one.
static LATEST_PANICS: Mutex<VecDeque<(String, String)>> = Mutex::new(VecDeque::new());

const PANICS_KEPT: usize = 16;

/// A panic inside the library must not print; any other goes to the hook that was there before.
fn silence_own_panics() {
    static INSTALLED: Once = Once::new();
    // A destructor of the host that calls while its thread unwinds: the hook cannot be changed then, which a later call does.
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
        // A payload of a type that nobody here knows may panic again where it is dropped.
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

    /// What a destructor of the host does while its thread unwinds; the hook must not be installed yet, so this is a process of its own.
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
            // And the hook is there afterwards.
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
        // A thread of its own: the flag is per thread, and the harness may reuse this one.
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
