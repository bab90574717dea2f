//! Memory that weights and the activations of a model live in: aligned to cache lines, in huge pages where the system grants
//! them (Linux).

use crate::error::{Error, Result};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};
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
    len: usize,
    origin: Origin,
}

/// Where the bytes came from.
enum Origin {
    /// The allocator, which wants this back.
    Heap(Layout),
    /// The system: so many bytes from there on. Memory of its own, because the allocator zeroes what it aligns by writing to it,
    /// and a page that was written to before the advice is a small one for good (a model of 0.6 GB had 16 MB in huge pages).
    #[cfg(target_os = "linux")]
    Mapped(NonNull<u8>, usize),
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
        #[cfg(target_os = "linux")]
        let buffer = match len >= HUGE_PAGE / 2 {
            true => Buffer::mapped(len),
            false => Buffer::allocated(len),
        };
        #[cfg(not(target_os = "linux"))]
        let buffer = Buffer::allocated(len);
        buffer.ok_or_else(|| Error::memory(format!("no memory for {what}: {len} bytes")))
    }

    fn allocated(len: usize) -> Option<Buffer> {
        let layout = Layout::from_size_align(len.max(1), LINE).ok()?;
        // SAFETY: the size of `layout` is not zero.
        let ptr = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let origin = Origin::Heap(layout);
        Some(Buffer { ptr, len, origin })
    }

    #[cfg(target_os = "linux")]
    fn mapped(len: usize) -> Option<Buffer> {
        // Whole huge pages, because the advice makes an area that ends where it ends, and a huge page lies in one area. And one more:
        // the system aligns to small ones.
        let whole = len.checked_next_multiple_of(HUGE_PAGE)?;
        let total = whole.checked_add(HUGE_PAGE)?;
        // SAFETY: a private anonymous map at an address of the system's choice touches nothing that exists.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                total,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return None;
        }
        let base = NonNull::new(map.cast::<u8>())?;
        let before = base.as_ptr().align_offset(HUGE_PAGE);
        // SAFETY: `before < HUGE_PAGE`, so that `whole` bytes from there lie in the map.
        let ptr = unsafe { base.add(before) };
        // A refusal costs speed and nothing else.
        // SAFETY: pages that we own, from a page's beginning on; the advice changes no contents.
        unsafe { libc::madvise(ptr.as_ptr().cast(), whole, libc::MADV_HUGEPAGE) };
        let origin = Origin::Mapped(base, total);
        Some(Buffer { ptr, len, origin })
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
        match self.origin {
            // SAFETY: allocated in `allocated` with this layout.
            Origin::Heap(layout) => unsafe { dealloc(self.ptr.as_ptr(), layout) },
            #[cfg(target_os = "linux")]
            // SAFETY: mapped in `mapped`, and nobody borrows what is dropped.
            Origin::Mapped(base, total) => unsafe {
                libc::munmap(base.as_ptr().cast(), total);
            },
        }
    }
}

/// Floats in such memory.
pub struct Floats(Buffer);

impl Floats {
    /// `len` zeros.
    ///
    /// # Errors
    /// `ERR_MEMORY`; `what` names the buffer in the message.
    pub fn zeros(len: usize, what: &str) -> Result<Floats> {
        let bytes = len.saturating_mul(size_of::<f32>());
        Ok(Floats(Buffer::zeroed(bytes, what)?))
    }
}

impl Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(self.0.as_slice())
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(self.0.as_mut_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_and_zero() {
        for len in [0, 1, 63, 64, HUGE_PAGE / 2, HUGE_PAGE, 3 * HUGE_PAGE + 7] {
            let mut b = Buffer::zeroed(len, "a test").unwrap();
            let align = if len >= HUGE_PAGE / 2 && cfg!(target_os = "linux") {
                HUGE_PAGE
            } else {
                LINE
            };
            assert_eq!(b.as_slice().as_ptr() as usize % align, 0);
            assert_eq!(b.len(), len);
            assert!(b.as_slice().iter().all(|&x| x == 0));
            b.as_mut_slice().fill(1);
        }
    }

    #[test]
    fn too_much_is_an_error() {
        for len in [isize::MAX as usize - HUGE_PAGE, usize::MAX] {
            let e = Buffer::zeroed(len, "a test").err().unwrap();
            assert_eq!(e.status(), crate::error::Status::Memory);
        }
    }

    /// Where the system grants huge pages on advice, a large buffer that was written to lies in them, one smaller than such a page too.
    #[cfg(target_os = "linux")]
    #[test]
    fn huge_pages() {
        let granted = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        if !granted.is_ok_and(|g| g.contains("[madvise]") || g.contains("[always]")) {
            eprintln!("SKIPPED: the system grants no huge pages");
            return;
        }
        for len in [HUGE_PAGE / 2, 3 * HUGE_PAGE / 2, 16 * HUGE_PAGE] {
            let got: Vec<_> = (0..4).map(|_| kilobytes(len).unwrap()).collect();
            // A huge page lies in one area, the last one of a buffer too.
            let whole = len.next_multiple_of(HUGE_PAGE) / 1024;
            assert!(got.iter().all(|&(area, _)| area >= whole), "{len}: {got:?}");
            // The system may run out of whole ones; never any for a length is a mistake of ours.
            assert!(got.iter().any(|&(_, huge)| huge > 0), "{len}: {got:?}");
        }
    }

    /// Of the area of a buffer of so many bytes that was written to, and of the huge pages in it.
    #[cfg(target_os = "linux")]
    fn kilobytes(len: usize) -> Option<(usize, usize)> {
        let mut b = Buffer::zeroed(len, "a test").unwrap();
        b.as_mut_slice().fill(1);
        let address = format!("{:x}-", b.as_slice().as_ptr() as usize);
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        // The advice makes an area of its own, from the first aligned byte on.
        let area = maps.split(&address).nth(1)?;
        let of = |key: &str| {
            let line = area.lines().find(|l| l.starts_with(key))?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        Some((of("Size:")?, of("AnonHugePages:")?))
    }
}
