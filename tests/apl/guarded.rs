//! Memory of exactly the size asked for, with an inaccessible page behind it.

use std::ptr::{null_mut, write_bytes};
use std::slice;

/// What lies before a buffer, up to its page, and what an output holds before the call.
pub const UNTOUCHED: u8 = 0xA5;

/// `len` bytes that end where an inaccessible page begins: whoever reads or writes one byte beyond them is killed by the
/// system. What is written before them is found by [`Guarded::intact`].
pub struct Guarded {
    mapping: *mut u8,
    mapped: usize,
    /// Of the mapping, where the buffer begins.
    start: usize,
    len: usize,
}

// SAFETY: a mapping belongs to the process, and the value is its one owner.
unsafe impl Send for Guarded {}

impl Guarded {
    pub fn new(len: usize) -> Guarded {
        // SAFETY: asks for a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let room = len.next_multiple_of(page);
        let mapped = room + page;
        // SAFETY: a fresh private mapping; its result is checked below.
        let mapping = unsafe {
            libc::mmap(
                null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(mapping, libc::MAP_FAILED, "{mapped} bytes");
        let mapping = mapping.cast::<u8>();
        // SAFETY: the first `room` bytes are mapped and writable, and the page behind them is ours.
        unsafe {
            write_bytes(mapping, UNTOUCHED, room);
            assert_eq!(
                libc::mprotect(mapping.add(room).cast(), page, libc::PROT_NONE),
                0
            );
        }
        Guarded {
            mapping,
            mapped,
            start: room - len,
            len,
        }
    }

    pub fn from_bytes(bytes: &[u8]) -> Guarded {
        let mut buffer = Guarded::new(bytes.len());
        buffer.bytes_mut().copy_from_slice(bytes);
        buffer
    }

    pub fn pointer(&self) -> *mut u8 {
        // SAFETY: `start` lies in the mapping.
        unsafe { self.mapping.add(self.start) }
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the buffer is mapped, initialised by `new`, and borrowed through `self`.
        unsafe { slice::from_raw_parts(self.pointer(), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and the borrow is exclusive.
        unsafe { slice::from_raw_parts_mut(self.pointer(), self.len) }
    }

    /// Whether nothing was written before the buffer.
    pub fn intact(&self) -> bool {
        // SAFETY: the bytes from the mapping's begin to the buffer are mapped and initialised.
        let before = unsafe { slice::from_raw_parts(self.mapping, self.start) };
        before.iter().all(|&b| b == UNTOUCHED)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the whole mapping is ours, and nothing borrows from it any more.
        unsafe { libc::munmap(self.mapping.cast(), self.mapped) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_where_the_inaccessible_page_begins() {
        for len in [0, 1, 8, 4095, 4096, 4097] {
            let mut buffer = Guarded::new(len);
            assert_eq!(buffer.pointer() as usize % 4096, (4096 - len % 4096) % 4096);
            assert!(buffer.bytes().iter().all(|&b| b == UNTOUCHED) && buffer.intact());
            buffer.bytes_mut().fill(1);
            assert!(buffer.intact());
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            let end = format!("{:x}-", buffer.pointer() as usize + len);
            let guard = maps
                .lines()
                .find(|l| l.starts_with(&end))
                .unwrap_or_else(|| panic!("{end}"));
            assert_eq!(guard.split(' ').nth(1), Some("---p"));
        }
    }

    #[test]
    fn a_byte_before_it_is_seen() {
        let buffer = Guarded::new(8);
        // SAFETY: one byte before the buffer is in its mapping.
        unsafe { *buffer.pointer().sub(1) = 0 };
        assert!(!buffer.intact());
    }
}
