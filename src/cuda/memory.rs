//! Device memory, and page-locked host memory, which the device copies from and to at full speed.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use cudarc::driver::result;

use super::device::Device;
use super::status::Tried;
use crate::error::Result;
use crate::signals::Blocked;

/// Device memory, 256-byte aligned and not initialised, freed when dropped.
///
/// Freeing waits for the device, so that memory is not freed while work on the device uses it.
pub struct Memory {
    device: Arc<Device>,
    /// 0 if there are no bytes.
    address: u64,
    bytes: usize,
}

impl Memory {
    /// Allocates `bytes`; `what` names them in a message.
    ///
    /// # Errors
    /// `ERR_MEMORY` if there is not enough; `ERR_BACKEND`.
    pub fn new(device: &Arc<Device>, bytes: usize, what: &str) -> Result<Memory> {
        let mut address = 0;
        if bytes > 0 {
            let _signals = Blocked::all();
            let _current = device.enter()?;
            // SAFETY: the call has no preconditions; the contents are not read before they are
            // written.
            address = unsafe { result::malloc_sync(bytes) }
                .tried(|| format!("allocating {bytes} bytes of device memory for {what}"))?;
        }
        Ok(Memory {
            device: Arc::clone(device),
            address,
            bytes,
        })
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The device that it is on.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// All of it.
    pub fn all(&self) -> Part<'_> {
        Part {
            address: self.address,
            bytes: self.bytes,
            memory: PhantomData,
        }
    }

    /// `bytes` of it from `offset` on.
    ///
    /// # Panics
    /// If it is too short.
    pub fn part(&self, offset: usize, bytes: usize) -> Part<'_> {
        self.all().part(offset, bytes)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        if let Ok(_current) = self.device.enter() {
            // SAFETY: it was allocated in this context and is freed once.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// A range of device memory, for kernels and copies: an address that the host never dereferences.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    address: u64,
    bytes: usize,
    memory: PhantomData<&'a Memory>,
}

impl<'a> Part<'a> {
    /// Its start address on the device.
    pub fn address(self) -> u64 {
        self.address
    }

    /// Its length in bytes.
    pub fn bytes(self) -> usize {
        self.bytes
    }

    /// `bytes` of it from `offset` on.
    ///
    /// # Panics
    /// If it is too short.
    pub fn part(self, offset: usize, bytes: usize) -> Part<'a> {
        let end = offset.checked_add(bytes);
        assert!(
            end.is_some_and(|end| end <= self.bytes),
            "{bytes} bytes at {offset} of {} bytes of device memory",
            self.bytes
        );
        Part {
            address: self.address + offset as u64,
            bytes,
            ..self
        }
    }

    /// From `offset` to its end.
    ///
    /// # Panics
    /// If it is too short.
    pub fn from(self, offset: usize) -> Part<'a> {
        self.part(offset, self.bytes.saturating_sub(offset))
    }
}

/// Page-locked host memory, initialised to zeros, freed when dropped.
pub struct Pinned {
    device: Arc<Device>,
    at: NonNull<u8>,
    bytes: usize,
}

// SAFETY: plain memory that this value owns.
unsafe impl Send for Pinned {}
// SAFETY: as above; it is written through `&mut` only.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Allocates `bytes`; `what` names them in a message.
    ///
    /// # Errors
    /// `ERR_MEMORY` if that much cannot be locked; `ERR_BACKEND`.
    pub fn new(device: &Arc<Device>, bytes: usize, what: &str) -> Result<Pinned> {
        let mut at = NonNull::<u64>::dangling().cast::<u8>();
        if bytes > 0 {
            let _signals = Blocked::all();
            let _current = device.enter()?;
            // No flags: write-combined memory, the default of some helpers, is read at a hundredth
            // of the speed.
            // SAFETY: the call has no preconditions.
            let got = unsafe { result::malloc_host(bytes, 0) }
                .tried(|| format!("locking {bytes} bytes of host memory for {what}"))?;
            at = NonNull::new(got.cast()).ok_or_else(|| {
                crate::error::Error::memory(format!("CUDA: no host memory for {what}"))
            })?;
            // SAFETY: `bytes` bytes were allocated there.
            unsafe { at.as_ptr().write_bytes(0, bytes) };
        }
        Ok(Pinned {
            device: Arc::clone(device),
            at,
            bytes,
        })
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `bytes` bytes were allocated there (or none, at a dangling address) and
        // initialised; `&self` excludes writers.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.bytes) }
    }

    /// Its bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, with `&mut self`.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        if let Ok(_current) = self.device.enter() {
            // SAFETY: it was allocated in this context and is freed once.
            let _ = unsafe { result::free_host(self.at.as_ptr().cast()) };
        }
    }
}
