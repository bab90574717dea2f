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

/// An empty vector with room for `capacity` elements.
///
/// # Errors
/// `ERR_MEMORY` if the allocator refuses; `what` names the buffer in the message.
pub fn with_capacity<T>(capacity: usize, what: &str) -> Result<Vec<T>> {
    let mut v = Vec::new();
    v.try_reserve_exact(capacity).map_err(|_| {
        Error::memory(format!(
            "no memory for {what}: {capacity} elements of {} bytes",
            size_of::<T>()
        ))
    })?;
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
