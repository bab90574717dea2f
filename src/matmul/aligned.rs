//! Buffers of floats for kernels, aligned so that vectors do not straddle cache lines.

use crate::error::Result;
use crate::memory;

/// One cache line of floats.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A buffer of floats that is aligned to a cache line.
#[derive(Default)]
pub struct Aligned {
    lines: Vec<Line>,
}

impl Aligned {
    /// At least `len` zeros: `len` rounded up to whole cache lines.
    ///
    /// # Errors
    /// `ERR_MEMORY`; `what` names the buffer in the message.
    pub fn zeros(len: usize, what: &str) -> Result<Aligned> {
        Ok(Aligned {
            lines: memory::filled(len.div_ceil(16), Line([0.0; 16]), what)?,
        })
    }

    /// Makes a reused buffer at least `len` floats long; its contents are unspecified, and it never
    /// shrinks.
    ///
    /// # Errors
    /// `ERR_MEMORY`; `what` names the buffer in the message.
    pub fn at_least(&mut self, len: usize, what: &str) -> Result<()> {
        if self.floats().len() < len {
            *self = Aligned::zeros(len, what)?;
        }
        Ok(())
    }

    /// The floats.
    pub fn floats(&self) -> &[f32] {
        // SAFETY: `Line` is `repr(C)` with 16 floats in 64 bytes, so that `lines` is an array of
        // floats without padding, borrowed as long as `self` is.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * 16) }
    }

    /// The floats, to be written.
    pub fn floats_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `floats`; `self` is borrowed mutably.
        unsafe {
            std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * 16)
        }
    }
}
