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
    // Versions 2 and 1 of control groups, whose names of the page cache differ.
    let limits = [
        ("", "memory.max", "memory.current", ""),
        (
            "memory/",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_",
        ),
    ];
    let left = limits.iter().filter_map(|(folder, most, used, total)| {
        let file = |name: &str| format!("/sys/fs/cgroup/{folder}{name}");
        let (most, used) = (number(&file(most))?, number(&file(used))?);
        // The page cache counts as used, and is given up on demand.
        let stat = fs::read_to_string(file("memory.stat")).ok()?;
        let cache =
            ["inactive_file", "active_file"].map(|key| field(&stat, &format!("{total}{key}")));
        let cache: u64 = cache.into_iter().flatten().sum();
        Some(most.saturating_sub(used.saturating_sub(cache)))
    });
    let system = fs::read_to_string("/proc/meminfo").ok()?;
    let kib = field(&system, "MemAvailable:")?;
    left.chain([1024 * kib]).min()
}

/// The number behind a key at the beginning of a line.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(key)).then(|| words.next()?.parse().ok())?
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_system() {
        let stat = "anon 5\ninactive_file 12\nworkingset 3\n";
        assert_eq!(field(stat, "inactive_file"), Some(12));
        assert_eq!(field(stat, "file"), None);
        assert_eq!(field("MemAvailable:   77 kB\n", "MemAvailable:"), Some(77));
        #[cfg(target_os = "linux")]
        assert!(available().unwrap() > 0);
    }
}
