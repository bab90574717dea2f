//! Whether this thread is running the library's code.
//!
//! A call never prints, and a panic prints through the process-wide hook, which belongs to the host.
//! The boundary's hook asks here whose panic it is: ours is turned into a status without a word, any
//! other goes to the hook that was there before.

use std::cell::Cell;
use std::marker::PhantomData;

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
pub(crate) fn in_library() -> bool {
    INSIDE.get()
}

impl Drop for InLibrary {
    fn drop(&mut self) {
        INSIDE.set(self.outer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
