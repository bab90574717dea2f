//! The error type of the library: a status of the C ABI and a message.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

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

/// A message on one line. Names from files are quoted in it, and a terminal obeys the control
/// characters of whatever is printed: these are escaped, and so are those that reorder a text.
pub fn printable(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{feff}')
            || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match obeyed(c) {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// A message on one line, without its middle if it is too long: beginning and end are what the
/// library says.
fn abridged(message: String) -> String {
    let message = match printable(&message) {
        Cow::Borrowed(_) => message,
        Cow::Owned(escaped) => escaped,
    };
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

    /// The same failure, with the file that it is about before the message, unless that begins with
    /// it: readers name a file where they open it, and callers where they read on.
    #[must_use]
    pub fn in_file(self, path: &Path) -> Error {
        let name = path.display().to_string();
        let named = self.message.strip_prefix(&*printable(&name));
        match named.is_some_and(|rest| rest.starts_with([':', ' ', '/'])) {
            true => self,
            false => self.within(name),
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

    #[test]
    fn a_message_is_one_line_that_no_terminal_obeys() {
        let e = Error::format("é\u{1b}[31m\r\n\u{202e}").within("a\tb");
        assert_eq!(e.message(), "a\\tb: é\\u{1b}[31m\\r\\n\\u{202e}");
        assert_eq!(e.clone().within("x").message(), format!("x: {e}"));
    }

    #[test]
    fn a_file_is_named_once() {
        let path = Path::new("m\n.gguf");
        let e = Error::format("x is missing").in_file(path);
        assert_eq!(e.message(), "m\\n.gguf: x is missing");
        assert_eq!(e.clone().in_file(path), e);
        assert_eq!(
            e.in_file(Path::new("m")).message(),
            "m: m\\n.gguf: x is missing"
        );
    }
}
