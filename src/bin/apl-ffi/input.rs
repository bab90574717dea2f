//! Texts that verbs read, in files and on stdin.

use std::io::{Read, stdin};
use std::path::Path;

use crate::{Failure, Outcome};

/// The text of a file, or of so many of its first bytes; a character that these cut is left out.
pub fn text(path: &Path, most: Option<usize>) -> Outcome<String> {
    let name = path.display();
    let mut bytes =
        std::fs::read(path).map_err(|e| Failure::new(3, format!("{name} cannot be read: {e}")))?;
    let cut = most.is_some_and(|most| most < bytes.len());
    bytes.truncate(most.unwrap_or(usize::MAX));
    decoded(bytes, cut, &name.to_string())
}

/// A prompt out of a file, or out of stdin where that is `-`; the end of its last line is no part of it.
pub fn prompt(path: &Path) -> Outcome<String> {
    let mut text = match path.as_os_str() == "-" {
        false => text(path, None)?,
        true => {
            let mut bytes = Vec::new();
            let read = stdin().lock().read_to_end(&mut bytes);
            read.map_err(|e| Failure::new(3, format!("stdin cannot be read: {e}")))?;
            decoded(bytes, false, "stdin")?
        }
    };
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

fn decoded(bytes: Vec<u8>, cut: bool, name: &str) -> Outcome<String> {
    String::from_utf8(bytes).or_else(|e| {
        let why = e.utf8_error();
        let valid = why.valid_up_to();
        if !cut || why.error_len().is_some() {
            return Err(Failure::new(
                4,
                format!("{name} is not UTF-8 text: the byte at offset {valid} is wrong"),
            ));
        }
        let mut bytes = e.into_bytes();
        bytes.truncate(valid);
        decoded(bytes, false, name)
    })
}
