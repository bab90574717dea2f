//! Fallible allocation: a size given by a caller or a file must result in `ERR_MEMORY`, never in an
//! abort of the host process. Also how much memory is available.

use std::fs;

use crate::error::{Error, Result};

/// A vector of `len` copies of `value`.
///
/// # Errors
/// `ERR_MEMORY` if the allocator refuses; `what` names the buffer in the message.
pub fn filled<T: Clone>(len: usize, value: T, what: &str) -> Result<Vec<T>> {
    let mut v = with_capacity(len, what)?;
    v.resize(len, value);
    Ok(v)
}

/// A copy of `values`.
///
/// # Errors
/// `ERR_MEMORY` if the allocator refuses; `what` names the buffer in the message.
pub fn copied<T: Copy>(values: &[T], what: &str) -> Result<Vec<T>> {
    let mut v = with_capacity(values.len(), what)?;
    v.extend_from_slice(values);
    Ok(v)
}

/// A vector of `len` zeros; large ones use zero pages from the system.
///
/// # Errors
/// `ERR_MEMORY` if the allocator refuses; `what` names the buffer in the message.
pub fn zeroed<T: bytemuck::Zeroable>(len: usize, what: &str) -> Result<Vec<T>> {
    bytemuck::allocation::try_zeroed_vec(len).map_err(|()| refused::<T>(len, what))
}

/// Checks that about this many bytes can be allocated, before calling a library that aborts the
/// process if the allocator refuses.
///
/// # Errors
/// `ERR_MEMORY`.
pub fn room_for(bytes: usize, what: &str) -> Result<()> {
    with_capacity::<u8>(bytes, what).map(drop)
}

fn refused<T>(len: usize, what: &str) -> Error {
    Error::memory(format!(
        "no memory for {what}: {len} elements of {} bytes",
        size_of::<T>()
    ))
}

/// The bytes of memory available without swapping, also considering the limit of a container;
/// `None` if the system does not report it.
pub fn available() -> Option<u64> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let limits = [
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ];
    let left = limits
        .iter()
        .filter_map(|(most, taken)| Some(number(most)?.saturating_sub(number(taken)?)));
    let system = fs::read_to_string("/proc/meminfo").ok()?;
    let line = system
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    left.chain([1024 * kib]).min()
}

/// An empty vector with room for `capacity` elements.
///
/// # Errors
/// `ERR_MEMORY` if the allocator refuses; `what` names the buffer in the message.
pub fn with_capacity<T>(capacity: usize, what: &str) -> Result<Vec<T>> {
    let mut v = Vec::new();
    v.try_reserve_exact(capacity)
        .map_err(|_| refused::<T>(capacity, what))?;
    Ok(v)
}

/// Makes a reused buffer `len` elements long; the contents are unspecified, and the capacity never
/// shrinks.
///
/// # Errors
/// `ERR_MEMORY` if the allocator refuses; `what` names the buffer in the message.
pub fn resize<T: Clone + Default>(buffer: &mut Vec<T>, len: usize, what: &str) -> Result<()> {
    if len > buffer.capacity() {
        *buffer = with_capacity(len, what)?;
    }
    buffer.resize(len, T::default());
    Ok(())
}
