//! Memory for weights and the activations of a model: aligned to cache lines, in huge pages where
//! the system grants them (Linux).

use crate::error::{Error, Result};
use bytemuck::Pod;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
#[cfg(target_os = "linux")]
use std::sync::{Arc, Mutex, PoisonError};

/// The huge page size of x86-64 and of most other architectures.
#[cfg(any(test, target_os = "linux"))]
const HUGE_PAGE: usize = 2 << 20;
/// The size of a cache line, and of the widest vector.
const LINE: usize = 64;

/// Zeroed bytes, aligned to 64 bytes; from 1 MiB on aligned to 2 MiB and advised into huge pages.
///
/// A product that streams 16 MB of weights touches 4096 pages of 4 KiB, or 8 huge ones: the page
/// walks of the former cost more than a tenth of the time.
pub struct Buffer {
    ptr: NonNull<u8>,
    len: usize,
    origin: Origin,
}

/// Where the bytes came from.
enum Origin {
    /// The allocator, which needs the layout back.
    Heap(Layout),
    /// A shared mapping, kept alive by the buffers in it. Not from the allocator, which zeroes
    /// aligned memory by writing to it: a page that was written to before the advice stays a small
    /// one (of a model of 0.6 GB, 16 MB were in huge pages).
    #[cfg(target_os = "linux")]
    #[cfg_attr(not(test), expect(dead_code, reason = "held, not read"))]
    Map(Arc<Map>),
}

// SAFETY: a Buffer owns its bytes as a Vec<u8> does.
unsafe impl Send for Buffer {}
// SAFETY: a shared reference only gives out shared slices.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `len` zero bytes.
    ///
    /// # Errors
    /// `ERR_MEMORY` if the allocator refuses; `what` names the buffer in the message.
    pub fn zeroed(len: usize, what: &str) -> Result<Buffer> {
        #[cfg(target_os = "linux")]
        let buffer = match len >= HUGE_PAGE / 2 {
            true => Block::new(len).and_then(|mut block| block.take(len)),
            false => Buffer::allocated(len),
        };
        #[cfg(not(target_os = "linux"))]
        let buffer = Buffer::allocated(len);
        buffer.ok_or_else(|| no_memory(len, what))
    }

    fn allocated(len: usize) -> Option<Buffer> {
        let layout = Layout::from_size_align(len.max(1), LINE).ok()?;
        // SAFETY: the size of `layout` is not zero.
        let ptr = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let origin = Origin::Heap(layout);
        Some(Buffer { ptr, len, origin })
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` bytes, initialised, owned; a shared borrow of self.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// The bytes, mutably.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: `len` bytes, initialised, owned; an exclusive borrow of self.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }

    /// The number of bytes.
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
            Origin::Map(_) => {}
        }
    }
}

fn no_memory(len: usize, what: &str) -> Error {
    Error::memory(format!("no memory for {what}: {len} bytes"))
}

/// Buffers that are used together and freed together, such as the matrices of a model. They are
/// placed side by side, however small, so that all of them are in huge pages, which they share. The
/// memory is returned to the system with the last of them.
///
/// With a mapping for each matrix of 1 MiB or more, rounded up to huge pages, and the allocator for
/// the others, a model of 619 MB at 4 bits took 858 MB, one of 155 MB at 1 bit 208.
pub struct Arena {
    /// Bytes to map at a time. Untouched pages take no memory.
    #[cfg(target_os = "linux")]
    block_bytes: usize,
    /// The block from which the next buffers are taken, if any.
    #[cfg(target_os = "linux")]
    block: Mutex<Option<Block>>,
}

impl Default for Arena {
    fn default() -> Arena {
        Arena::of(usize::MAX)
    }
}

impl Arena {
    /// An arena for about this many bytes in total; with few, there is no huge page to share.
    #[cfg_attr(
        not(target_os = "linux"),
        expect(unused_variables, reason = "the allocator serves one by one")
    )]
    pub fn of(bytes: usize) -> Arena {
        Arena {
            #[cfg(target_os = "linux")]
            block_bytes: bytes.min(BLOCK),
            #[cfg(target_os = "linux")]
            block: Mutex::new(None),
        }
    }

    /// `len` zero bytes, as [`Buffer::zeroed`].
    ///
    /// # Errors
    /// As there.
    #[cfg(target_os = "linux")]
    pub fn zeroed(&self, len: usize, what: &str) -> Result<Buffer> {
        if self.block_bytes < HUGE_PAGE / 2 {
            return Buffer::zeroed(len, what);
        }
        let mut block = self.block.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(buffer) = block.as_mut().and_then(|block| block.take(len)) {
            return Ok(buffer);
        }
        let new = Block::new(len.max(self.block_bytes)).or_else(|| Block::new(len));
        let mut new = new.ok_or_else(|| no_memory(len, what))?;
        let buffer = new.take(len).ok_or_else(|| no_memory(len, what))?;
        // The block with more room serves the next request.
        if block.as_ref().is_none_or(|old| old.room() < new.room()) {
            *block = Some(new);
        }
        Ok(buffer)
    }

    /// `len` zero bytes, as [`Buffer::zeroed`].
    ///
    /// # Errors
    /// As there.
    #[cfg(not(target_os = "linux"))]
    pub fn zeroed(&self, len: usize, what: &str) -> Result<Buffer> {
        Buffer::zeroed(len, what)
    }
}

/// The most bytes that an arena maps at a time.
#[cfg(target_os = "linux")]
const BLOCK: usize = 64 << 20;

/// A mapping advised into huge pages, and how much of it is in use.
#[cfg(target_os = "linux")]
struct Block {
    map: Arc<Map>,
    taken: usize,
}

#[cfg(target_os = "linux")]
impl Block {
    /// A block with room for at least `len` bytes.
    fn new(len: usize) -> Option<Block> {
        let map = Arc::new(Map::new(len)?);
        Some(Block { map, taken: 0 })
    }

    /// Unused bytes.
    fn room(&self) -> usize {
        self.map.len - self.taken
    }

    /// Takes `len` zeroed bytes, if there are as many.
    fn take(&mut self, len: usize) -> Option<Buffer> {
        if len > self.room() {
            return None;
        }
        // SAFETY: `taken` is at most the length of the mapping.
        let ptr = unsafe { self.map.aligned.add(self.taken) };
        // The mapping ends at a line boundary, so that a rounded length fits too.
        self.taken += len.next_multiple_of(LINE);
        let origin = Origin::Map(Arc::clone(&self.map));
        Some(Buffer { ptr, len, origin })
    }
}

/// Whole huge pages of a private anonymous mapping.
#[cfg(target_os = "linux")]
struct Map {
    aligned: NonNull<u8>,
    len: usize,
    /// What the system returned: the base and the number of bytes.
    all: (NonNull<u8>, usize),
}

// SAFETY: a Map is only addresses and lengths; the memory belongs to the buffers.
#[cfg(target_os = "linux")]
unsafe impl Send for Map {}
// SAFETY: as above.
#[cfg(target_os = "linux")]
unsafe impl Sync for Map {}

#[cfg(target_os = "linux")]
impl Map {
    /// `len` zero bytes, rounded up to huge pages.
    fn new(len: usize) -> Option<Map> {
        // Whole huge pages, because the advice creates a kernel memory area of exactly this extent,
        // and a huge page must lie within one area. One more is mapped because the system only
        // aligns to small pages.
        let len = len.checked_next_multiple_of(HUGE_PAGE)?;
        let total = len.checked_add(HUGE_PAGE)?;
        // SAFETY: a private anonymous mapping at an address chosen by the system affects no
        // existing memory.
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
        // SAFETY: `before < HUGE_PAGE`, so that `len` bytes from there lie in the mapping.
        let aligned = unsafe { base.add(before) };
        // SAFETY: pages that we own, from a page boundary on; the advice does not change contents.
        // A refusal only costs speed.
        unsafe { libc::madvise(aligned.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        let all = (base, total);
        Some(Map { aligned, len, all })
    }
}

#[cfg(target_os = "linux")]
impl Drop for Map {
    fn drop(&mut self) {
        let (base, total) = self.all;
        // SAFETY: mapped in `new`, and no buffer refers to a mapping that is dropped.
        unsafe { libc::munmap(base.as_ptr().cast(), total) };
    }
}

/// An array of numbers in such memory.
pub struct Array<T> {
    bytes: Buffer,
    of: PhantomData<T>,
}

/// An array of activations.
pub type Floats = Array<f32>;

impl<T: Pod> Array<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// `ERR_MEMORY`; `what` names the array in the message.
    pub fn zeros(len: usize, what: &str) -> Result<Array<T>> {
        Ok(Array::new(Buffer::zeroed(Array::<T>::bytes(len), what)?))
    }

    /// `len` zeros in an arena.
    ///
    /// # Errors
    /// As [`Array::zeros`].
    pub fn zeros_in(arena: &Arena, len: usize, what: &str) -> Result<Array<T>> {
        Ok(Array::new(arena.zeroed(Array::<T>::bytes(len), what)?))
    }

    fn bytes(len: usize) -> usize {
        len.saturating_mul(size_of::<T>())
    }

    fn new(bytes: Buffer) -> Array<T> {
        let of = PhantomData;
        Array { bytes, of }
    }
}

impl<T: Pod> Deref for Array<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(self.bytes.as_slice())
    }
}

impl<T: Pod> DerefMut for Array<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.bytes.as_mut_slice())
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
    fn an_arena_gives_zeros_side_by_side() {
        let arena = Arena::default();
        // More than a block in total, and one buffer that is larger than a block.
        let lens = [100, 0, 64, 5 << 20, 40 << 20, 70 << 20, 30 << 20, 1];
        let mut buffers = lens.map(|len| arena.zeroed(len, "a test").unwrap());
        drop(arena);
        for (buffer, len) in buffers.iter_mut().zip(lens) {
            assert_eq!(buffer.as_slice().as_ptr() as usize % LINE, 0);
            assert_eq!(buffer.len(), len);
            assert!(buffer.as_slice().iter().all(|&x| x == 0));
            buffer.as_mut_slice().fill(1);
        }
        if cfg!(target_os = "linux") {
            let at = |i: usize| buffers[i].as_slice().as_ptr() as usize;
            // Of two blocks the one with more room serves the next.
            assert_eq!(at(7), at(6) + (30 << 20));
            assert_eq!(
                [at(2), at(3), at(4)],
                [at(0) + 128, at(0) + 192, at(3) + (5 << 20)]
            );
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_arena_for_little_maps_nothing_huge() {
        for (bytes, mapped) in [
            (1000, None),
            (3 << 20, Some(4 << 20)),
            (1 << 40, Some(BLOCK)),
        ] {
            let arena = Arena::of(bytes);
            let buffer = arena.zeroed(1000, "a test").unwrap();
            let found = match &buffer.origin {
                Origin::Heap(_) => None,
                Origin::Map(map) => Some(map.len),
            };
            assert_eq!(found, mapped, "{bytes}");
        }
    }

    #[test]
    fn too_much_is_an_error() {
        for len in [isize::MAX as usize - HUGE_PAGE, usize::MAX] {
            for e in [
                Buffer::zeroed(len, "a test"),
                Arena::default().zeroed(len, "a test"),
            ] {
                assert_eq!(e.err().unwrap().status(), crate::error::Status::Memory);
            }
        }
    }

    /// Where the system grants huge pages on advice, a large buffer that was written to is in huge
    /// pages, even one smaller than such a page.
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
            // A huge page lies within one area, including the last one of a buffer.
            let whole = len.next_multiple_of(HUGE_PAGE) / 1024;
            assert!(got.iter().all(|&(area, _)| area >= whole), "{len}: {got:?}");
            // The system may run out of huge pages; getting none for any buffer of a length is our
            // mistake.
            assert!(got.iter().any(|&(_, huge)| huge > 0), "{len}: {got:?}");
        }
    }

    /// For a buffer of this many bytes that was written to: the size of its memory area, and of the
    /// huge pages in it, in kB.
    #[cfg(target_os = "linux")]
    fn kilobytes(len: usize) -> Option<(usize, usize)> {
        let mut b = Buffer::zeroed(len, "a test").unwrap();
        b.as_mut_slice().fill(1);
        let address = format!("{:x}-", b.as_slice().as_ptr() as usize);
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        // The advice creates a separate area, from the first aligned byte on.
        let area = maps.split(&address).nth(1)?;
        let of = |key: &str| {
            let line = area.lines().find(|l| l.starts_with(key))?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        Some((of("Size:")?, of("AnonHugePages:")?))
    }
}
