//! Texts that verbs read, in files and on stdin.

use std::fs::File;
use std::io::{self, BufRead, Read, stdin};
use std::path::Path;

use crate::{Failure, Outcome};

/// The most bytes of a text that is not a file on a disk: far more than any context, and reading ends where a device or a pipe
/// does not.
const MOST: usize = 64 << 20;

/// The text of a file, or of so many of its first bytes; a character that these cut is left out.
pub fn text(path: &Path, most: Option<usize>) -> Outcome<String> {
    let name = path.display().to_string();
    let read = File::open(path).and_then(|file| {
        let all = match file.metadata()?.is_file() {
            true => usize::MAX,
            false => MOST,
        };
        limited(file, most.unwrap_or(all))
    });
    let (bytes, cut) = read.map_err(|e| Failure::new(3, format!("{name} cannot be read: {e}")))?;
    if cut && most.is_none() {
        return Err(too_long(&name));
    }
    decoded(bytes, cut, &name)
}

/// A prompt out of a file, or out of stdin where that is `-`; the end of its last line is no part of it.
pub fn prompt(path: &Path) -> Outcome<String> {
    let mut text = match path.as_os_str() == "-" {
        false => text(path, None)?,
        true => match limited(stdin().lock(), MOST).map_err(unread)? {
            (_, true) => return Err(too_long("stdin")),
            (bytes, false) => decoded(bytes, false, "stdin")?,
        },
    };
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

/// The next line of stdin with its end; empty at the end of the input.
pub fn line() -> Outcome<String> {
    let mut bytes = Vec::new();
    let mut limited = stdin().lock().take(MOST as u64 + 1);
    limited.read_until(b'\n', &mut bytes).map_err(unread)?;
    match bytes.len() > MOST {
        true => Err(too_long("a line of stdin")),
        false => decoded(bytes, false, "a line of stdin"),
    }
}

/// So many bytes at most, and whether there are more.
fn limited(from: impl Read, most: usize) -> io::Result<(Vec<u8>, bool)> {
    let mut bytes = Vec::new();
    from.take((most as u64).saturating_add(1))
        .read_to_end(&mut bytes)?;
    let cut = bytes.len() > most;
    bytes.truncate(most);
    Ok((bytes, cut))
}

fn unread(e: io::Error) -> Failure {
    Failure::new(3, format!("stdin cannot be read: {e}"))
}

fn too_long(name: &str) -> Failure {
    let most = MOST >> 20;
    Failure::new(
        4,
        format!("{name} has more than {most} MiB, expected a text of at most that"),
    )
}

/// Text without the mark that some editors begin a file with, which a model would read as a word.
fn decoded(bytes: Vec<u8>, cut: bool, name: &str) -> Outcome<String> {
    match String::from_utf8(bytes) {
        Ok(text) => Ok(match text.strip_prefix('\u{feff}') {
            Some(unmarked) => unmarked.to_owned(),
            None => text,
        }),
        Err(e) => {
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
        }
    }
}
