//! Fallible allocation: a size that a caller or a file gives must come back as `ERR_MEMORY`,
//! never as an abort of the host process. And how much memory there is.

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

/// A copy of some elements.
///
/// # Errors
/// `ERR_MEMORY` if the allocator refuses; `what` names the buffer in the message.
pub fn copied<T: Copy>(values: &[T], what: &str) -> Result<Vec<T>> {
    let mut v = with_capacity(values.len(), what)?;
    v.extend_from_slice(values);
    Ok(v)
}

/// A vector of `len` zeros, which the system makes where it is large.
///
/// # Errors
/// `ERR_MEMORY` if the allocator refuses; `what` names the buffer in the message.
pub fn zeroed<T: bytemuck::Zeroable>(len: usize, what: &str) -> Result<Vec<T>> {
    bytemuck::allocation::try_zeroed_vec(len).map_err(|()| refused::<T>(len, what))
}

/// Checks that about so many bytes can be allocated, before a library is called that aborts the process where the allocator refuses.
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

/// The bytes of memory that may still be taken without swapping, within the limit of a container too; `None` where the system does not say.
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

/// Makes a buffer `len` elements long, of any contents, that is written again and again: it never shrinks.
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
