//! The rounding mode and the treatment of subnormal numbers, which belong to a thread: the library's results must not depend on what its
//! caller has set. A library that was compiled with `-ffast-math` sets them when it is loaded.

#[cfg(target_arch = "x86_64")]
pub use x86_64::Ieee;

#[cfg(not(target_arch = "x86_64"))]
/// Nothing is known of other processors' modes: they stay as they are.
pub struct Ieee;

#[cfg(not(target_arch = "x86_64"))]
impl Ieee {
    /// See there.
    pub fn enter() -> Ieee {
        Ieee
    }
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::asm;
    use std::marker::PhantomData;

    /// MXCSR as a process begins with it: to nearest, subnormal numbers are numbers, exceptions are masked.
    const DEFAULT: u32 = 0x1f80;

    /// The bits that say what happened, not what is to happen.
    const FLAGS: u32 = 0x3f;

    /// While it lives, this thread calculates as IEEE 754 has it by default.
    #[must_use = "the mode ends when this is dropped"]
    pub struct Ieee {
        /// What the caller had, if that was another mode.
        outer: Option<u32>,
        // It restores a value of the thread that made it, so it stays there.
        thread: PhantomData<*const ()>,
    }

    impl Ieee {
        /// Sets the mode, where it is another one.
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
        // SAFETY: it stores four bytes there.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr, options(nostack, preserves_flags)) };
        mxcsr
    }

    fn write(mxcsr: u32) {
        // SAFETY: the value is the default, or one that was read: no reserved bit is set. Rust assumes the default mode: it holds from the
        // first statement of a call to the last, and the caller's own is back when only the caller's code runs. (Rust does not
        // specify what becomes of code that runs in another mode, which is that caller's business.)
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
