//! The version of the ABI, and the statuses as C sees them.

use std::ffi::CStr;

use crate::error::Status;

/// The version of this ABI. It changes when a name, an argument or a meaning changes; new functions
/// do not change it.
pub const APL_FFI_ABI_VERSION: i32 = 1;

/// Success.
pub const APL_FFI_OK: i32 = 0;
/// A pointer is NULL though its length is not 0.
pub const APL_FFI_ERR_NULL: i32 = -1;
/// A length does not agree with the shape; the message gives both.
pub const APL_FFI_ERR_LENGTH: i32 = -2;
/// An argument or an element is outside its domain, a pointer is misaligned, or an output overlaps
/// another array.
pub const APL_FFI_ERR_RANGE: i32 = -3;
/// Not a live handle, or a handle of another kind.
pub const APL_FFI_ERR_HANDLE: i32 = -4;
/// The configuration or option JSON is malformed, or has an unknown key or value.
pub const APL_FFI_ERR_CONFIG: i32 = -5;
/// A file cannot be opened, read or written; the message has the path and the system's reason.
pub const APL_FFI_ERR_IO: i32 = -6;
/// A file is not what it claims to be, is truncated, or is inconsistent.
pub const APL_FFI_ERR_FORMAT: i32 = -7;
/// Valid, but not something that this build, processor or backend can do.
pub const APL_FFI_ERR_UNSUPPORTED: i32 = -8;
/// Host or device memory is exhausted.
pub const APL_FFI_ERR_MEMORY: i32 = -9;
/// The CUDA backend was demanded and cannot be used, or failed while running.
pub const APL_FFI_ERR_BACKEND: i32 = -10;
/// Not possible now: already configured otherwise, no handle is left, the context is full, there
/// are no logits, or the call was cancelled.
pub const APL_FFI_ERR_STATE: i32 = -11;
/// Text is not UTF-8.
pub const APL_FFI_ERR_ENCODING: i32 = -12;
/// A bug in the library: a panic was caught; the message has its text.
pub const APL_FFI_ERR_INTERNAL: i32 = -99;
/// Not an error: the text of a session ends here.
pub const APL_FFI_END: i32 = -100;

/// A status, its number and its text.
struct Row {
    status: Status,
    number: i32,
    text: &'static CStr,
}

const fn row(status: Status, number: i32, text: &'static CStr) -> Row {
    Row {
        status,
        number,
        text,
    }
}

const TABLE: [Row; 14] = [
    row(Status::Ok, APL_FFI_OK, c"success"),
    row(
        Status::Null,
        APL_FFI_ERR_NULL,
        c"a pointer is NULL though its length is not 0",
    ),
    row(
        Status::Length,
        APL_FFI_ERR_LENGTH,
        c"a length does not agree with the shape",
    ),
    row(
        Status::Range,
        APL_FFI_ERR_RANGE,
        c"an argument or an element is outside its domain",
    ),
    row(
        Status::Handle,
        APL_FFI_ERR_HANDLE,
        c"not a live handle, or a handle of another kind",
    ),
    row(
        Status::Config,
        APL_FFI_ERR_CONFIG,
        c"the configuration or option JSON is malformed, or has an unknown key or value",
    ),
    row(
        Status::Io,
        APL_FFI_ERR_IO,
        c"a file cannot be opened, read or written",
    ),
    row(
        Status::Format,
        APL_FFI_ERR_FORMAT,
        c"a file is not what it claims, is truncated, or is inconsistent",
    ),
    row(
        Status::Unsupported,
        APL_FFI_ERR_UNSUPPORTED,
        c"valid, but not something this build, processor or backend can do",
    ),
    row(
        Status::Memory,
        APL_FFI_ERR_MEMORY,
        c"host or device memory is exhausted",
    ),
    row(
        Status::Backend,
        APL_FFI_ERR_BACKEND,
        c"the CUDA backend was demanded and cannot be used, or failed while running",
    ),
    row(
        Status::State,
        APL_FFI_ERR_STATE,
        c"not possible in the present state",
    ),
    row(Status::Encoding, APL_FFI_ERR_ENCODING, c"text is not UTF-8"),
    row(
        Status::Internal,
        APL_FFI_ERR_INTERNAL,
        c"a bug in the library: a panic was caught",
    ),
];

// The numbers are written twice because cbindgen does not evaluate expressions; this compares them.
const _: () = {
    let mut i = 0;
    while i < TABLE.len() {
        assert!(TABLE[i].status as i32 == TABLE[i].number);
        i += 1;
    }
};

/// The text of a status. A number that is not a status has one too.
pub(super) fn text(status: i32) -> &'static CStr {
    if status == APL_FFI_END {
        return c"no error: the text ends";
    }
    TABLE
        .iter()
        .find(|row| row.number == status)
        .map_or(c"not a status of this library", |row| row.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_a_text_of_its_own() {
        for (i, row) in TABLE.iter().enumerate() {
            assert!(!row.text.is_empty() && row.text.to_str().is_ok());
            for other in &TABLE[..i] {
                assert_ne!((row.number, row.text), (other.number, other.text));
            }
            assert_eq!(text(row.number), row.text);
        }
        assert_eq!(text(1), text(-13));
        assert_ne!(text(APL_FFI_END), text(1));
    }
}
