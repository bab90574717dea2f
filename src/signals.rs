//! Signals remain the host's: a thread of the library receives none.
//!
//! A host such as an APL interpreter handles signals on the thread that it chose. A signal
//! delivered to a worker would run the host's handler on a thread that the host has never seen. A
//! new thread inherits the mask of its creator, and there is no other way for it to start with
//! everything blocked, so the creator blocks all signals while it creates the thread.

#[cfg(unix)]
mod imp {
    use std::mem::MaybeUninit;

    /// While it lives, this thread receives no signals, and threads that it starts never will.
    /// Signals that arrive meanwhile stay pending and are delivered at the end.
    #[must_use = "the mask is restored when this is dropped"]
    pub struct Blocked {
        previous: libc::sigset_t,
        // Not `Send`: it restores the mask of the thread that created it.
        thread: std::marker::PhantomData<*const ()>,
    }

    impl Blocked {
        /// Blocks every signal that can be blocked.
        pub fn all() -> Blocked {
            let mut all = MaybeUninit::uninit();
            let mut previous = MaybeUninit::uninit();
            // SAFETY: sigfillset initialises the set it is given, and pthread_sigmask reads that
            // set and writes the old mask into the other. Both pointers are to live locals. The
            // calls fail only for an invalid `how`, and SIG_SETMASK is valid.
            let previous = unsafe {
                libc::sigfillset(all.as_mut_ptr());
                libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), previous.as_mut_ptr());
                previous.assume_init()
            };
            Blocked {
                previous,
                thread: std::marker::PhantomData,
            }
        }
    }

    impl Drop for Blocked {
        fn drop(&mut self) {
            // SAFETY: `previous` is the mask that `all` read on this thread; NULL asks for no old
            // mask.
            unsafe {
                libc::pthread_sigmask(libc::SIG_SETMASK, &self.previous, std::ptr::null_mut());
            }
        }
    }
}

#[cfg(not(unix))]
mod imp {
    /// Signal masks exist on Unix only: elsewhere this does nothing.
    pub struct Blocked;

    impl Blocked {
        /// Does nothing.
        pub fn all() -> Blocked {
            Blocked
        }
    }
}

pub use imp::Blocked;
