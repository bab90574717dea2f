//! Memory that weights live in: aligned to cache lines, in huge pages where the system grants them.

use crate::error::{Error, Result};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// A huge page of x86-64 and of most others.
const HUGE_PAGE: usize = 2 << 20;
/// A cache line, and the widest vector.
const LINE: usize = 64;

/// Zeroed bytes, aligned to 64; to 2 MiB, and advised into huge pages, from 1 MiB on.
///
/// A product that streams 16 MB of weights touches 4096 pages of 4 KiB but 8 huge ones: the page walks of the former cost
/// more than a tenth of the time.
pub struct Buffer {
    ptr: NonNull<u8>,
    layout: Layout,
    len: usize,
}

// SAFETY: a Buffer owns its bytes as a Vec<u8> does.
unsafe impl Send for Buffer {}
// SAFETY: shared access gives out shared slices only.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `len` zero bytes.
    ///
    /// # Errors
    /// `ERR_MEMORY` if the allocator refuses; `what` names the buffer in the message.
    pub fn zeroed(len: usize, what: &str) -> Result<Buffer> {
        let refused = || Error::memory(format!("no memory for {what}: {len} bytes"));
        let huge = len >= HUGE_PAGE / 2;
        let align = if huge { HUGE_PAGE } else { LINE };
        let layout = Layout::from_size_align(len.max(1), align)
            .ok()
            .and_then(|l| l.align_to(align).ok())
            .map(|l| l.pad_to_align())
            .ok_or_else(refused)?;
        // SAFETY: the size of `layout` is not zero.
        let ptr = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(refused)?;
        if huge {
            advise_huge(ptr, layout.size());
        }
        Ok(Buffer { ptr, layout, len })
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` bytes, initialised, owned; a shared borrow of self.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// The bytes, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: `len` bytes, initialised, owned; an exclusive borrow of self.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.ptr.as_ptr(), self.layout) }
    }
}

#[cfg(target_os = "linux")]
fn advise_huge(ptr: NonNull<u8>, len: usize) {
    // A refusal costs speed and nothing else.
    // SAFETY: whole pages that we own; the advice changes no contents.
    unsafe { libc::madvise(ptr.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise_huge(_ptr: NonNull<u8>, _len: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_and_zero() {
        for len in [0, 1, 63, 64, HUGE_PAGE, 3 * HUGE_PAGE + 7] {
            let mut b = Buffer::zeroed(len, "a test").unwrap();
            assert_eq!(b.as_slice().as_ptr() as usize % LINE, 0);
            assert_eq!(b.len(), len);
            assert!(b.as_slice().iter().all(|&x| x == 0));
            b.as_mut_slice().fill(1);
        }
    }

    #[test]
    fn too_much_is_an_error() {
        let e = Buffer::zeroed(isize::MAX as usize - HUGE_PAGE, "a test")
            .err()
            .unwrap();
        assert_eq!(e.status(), crate::error::Status::Memory);
    }
}
