//! Fallible allocation: a size that a caller or a file gives must come back as `ERR_MEMORY`,
//! never as an abort of the host process.

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

/// Refuses what there is no memory for: before a library that aborts where the allocator refuses is given something that makes it take about so many bytes.
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
