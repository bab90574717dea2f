//! The error type of the library: a status of the C ABI and a message.

use std::fmt;

/// The result of a call, with its number in the C ABI.
///
/// A number never changes its meaning; new ones are appended.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Success.
    Ok = 0,
    /// A pointer is NULL though its length is not 0.
    Null = -1,
    /// A length does not agree with the shape.
    Length = -2,
    /// A scalar argument or an element is outside its domain.
    Range = -3,
    /// Not a live handle, or a handle of another kind.
    Handle = -4,
    /// The configuration or option JSON is malformed, or has an unknown key or value.
    Config = -5,
    /// A file cannot be opened, read or written.
    Io = -6,
    /// A file is not what it claims to be, is truncated, or is inconsistent.
    Format = -7,
    /// Valid, but not something that this build, processor or backend can do.
    Unsupported = -8,
    /// Host or device memory is exhausted.
    Memory = -9,
    /// The CUDA backend was demanded and cannot be used, or failed while running.
    Backend = -10,
    /// Not possible now.
    State = -11,
    /// Text is not UTF-8.
    Encoding = -12,
    /// A bug in the library: a panic was caught.
    Internal = -99,
}

/// A failed call: the status that the caller gets, and a message.
///
/// The message names the argument, what was found and what was expected
/// (`x_len is 63, expected cols = 64`); the C ABI puts the name of the function before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    status: Status,
    message: String,
}

/// The result of every fallible function of the library.
pub type Result<T> = std::result::Result<T, Error>;

/// The most bytes of a message. Messages of the library are far shorter, but they quote names from
/// files, which may have megabytes.
const MOST_BYTES: usize = 2048;

/// A message without its middle, if it is too long: beginning and end are what the library says.
fn abridged(message: String) -> String {
    if message.len() <= MOST_BYTES {
        return message;
    }
    let head = message.floor_char_boundary(MOST_BYTES / 2);
    let tail = message.ceil_char_boundary(message.len() - MOST_BYTES / 4);
    format!("{} … {}", &message[..head], &message[tail..])
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $status:ident;)*) => {
        $($(#[$doc])*
        #[cold]
        pub fn $name(message: impl Into<String>) -> Error {
            Error { status: Status::$status, message: abridged(message.into()) }
        })*
    };
}

impl Error {
    constructors! {
        /// A required pointer is NULL.
        null => Null;
        /// A length does not agree with the shape.
        length => Length;
        /// A value is outside its domain.
        range => Range;
        /// A handle is not live, or of another kind.
        handle => Handle;
        /// Configuration or options are wrong.
        config => Config;
        /// The system refused a file operation.
        io => Io;
        /// The contents of a file are wrong.
        format => Format;
        /// Valid, but not possible with this build or machine.
        unsupported => Unsupported;
        /// Memory is exhausted.
        memory => Memory;
        /// The CUDA backend cannot be used.
        backend => Backend;
        /// Not possible in the present state.
        state => State;
        /// Text is not UTF-8.
        encoding => Encoding;
        /// A bug was caught.
        internal => Internal;
    }

    /// The same failure, with its place before the message: `"model.gguf: tensor …"`.
    #[must_use]
    pub fn within(self, place: impl fmt::Display) -> Error {
        Error {
            message: abridged(format!("{place}: {}", self.message)),
            ..self
        }
    }

    /// The status.
    pub fn status(&self) -> Status {
        self.status
    }

    /// The message, without the name of the function that failed.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_megabytes_is_abridged() {
        let name = "é".repeat(5 << 20);
        let e = Error::format(format!("{name} is no name")).within(format!("the file {name}"));
        assert!(e.message().len() < MOST_BYTES, "{}", e.message().len());
        assert!(e.message().starts_with("the file éé"));
        assert!(e.message().ends_with("éé is no name"));
        assert_eq!(Error::format("short").message(), "short");
    }
}
