//! The rounding mode and the treatment of subnormal numbers, which are per-thread state. The
//! library's results must not depend on what its caller has set; a host library compiled with
//! `-ffast-math`, for example, changes them when it is loaded.

#[cfg(target_arch = "x86_64")]
pub use x86_64::Ieee;

#[cfg(not(target_arch = "x86_64"))]
/// The modes of other processors are left as they are.
pub struct Ieee;

#[cfg(not(target_arch = "x86_64"))]
impl Ieee {
    /// Does nothing here.
    pub fn enter() -> Ieee {
        Ieee
    }
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::asm;
    use std::marker::PhantomData;

    /// The initial MXCSR of a process: round to nearest, subnormal numbers kept, exceptions masked.
    const DEFAULT: u32 = 0x1f80;

    /// The exception flags: status, not control.
    const FLAGS: u32 = 0x3f;

    /// While it lives, this thread calculates in the default mode of IEEE 754.
    #[must_use = "the mode ends when this is dropped"]
    pub struct Ieee {
        /// The caller's mode, if it was another one.
        outer: Option<u32>,
        // Not `Send`: it restores the state of the thread that created it.
        thread: PhantomData<*const ()>,
    }

    impl Ieee {
        /// Sets the default mode, if another one is in effect.
        pub fn enter() -> Ieee {
            let found = read();
            let other = found & !FLAGS != DEFAULT;
            if other {
                write(DEFAULT);
            }
            Ieee {
                outer: other.then_some(found),
                thread: PhantomData,
            }
        }
    }

    impl Drop for Ieee {
        fn drop(&mut self) {
            if let Some(outer) = self.outer {
                write(outer);
            }
        }
    }

    fn read() -> u32 {
        let mut mxcsr = 0u32;
        // SAFETY: it stores four bytes in `mxcsr`.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr, options(nostack, preserves_flags)) };
        mxcsr
    }

    fn write(mxcsr: u32) {
        // SAFETY: the value is the default or one that was read, so no reserved bit is set. Rust
        // assumes the default mode, which holds from the first to the last statement of a call; the
        // caller's mode is restored when only the caller's code runs. (Rust does not specify the
        // behaviour of code that runs in another mode, which is the caller's responsibility.)
        unsafe {
            asm!("ldmxcsr [{}]", in(reg) &raw const mxcsr, options(nostack, preserves_flags))
        };
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_callers_mode_is_set_aside_and_restored() {
            let before = read();
            for caller in [DEFAULT, DEFAULT | 0x8040, DEFAULT | 0x6000, DEFAULT | 1] {
                write(caller);
                let inside = Ieee::enter();
                let found = read();
                let nested = Ieee::enter();
                drop(nested);
                let still = read();
                drop(inside);
                let after = read();
                write(before);
                assert_eq!((found & !FLAGS, still & !FLAGS), (DEFAULT, DEFAULT));
                assert_eq!(after, caller);
            }
        }
    }
}
