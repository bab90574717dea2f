//! What the verbs share when they speak to people.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write, stdout};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use apl_ffi::error::printable;

use crate::{Failure, Outcome};

/// Prints on stdout, and fails where that cannot be written.
pub fn print(text: fmt::Arguments<'_>) -> Outcome {
    stdout().write_fmt(text).map_err(unwritten)
}

/// Prints what is not a whole line yet, at once.
pub fn say_now(text: &str) -> Outcome {
    print(format_args!("{text}"))?;
    stdout().flush().map_err(unwritten)
}

fn unwritten(e: io::Error) -> Failure {
    Failure::new(3, format!("the output cannot be written: {e}"))
}

/// Prints a line on stderr: `eprintln!` that does not panic where it cannot, since what was done is worth
/// more than a note about it.
macro_rules! note {
    ($($arg:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}
pub(crate) use note;

/// Prints a line on stdout: `println!` that gives an `Outcome` where the other panics.
macro_rules! say {
    () => { $crate::terminal::print(format_args!("\n")) };
    ($format:literal $($arguments:tt)*) => {
        $crate::terminal::print(format_args!("{}\n", format_args!($format $($arguments)*)))
    };
}
pub(crate) use say;

/// A bar of `len` steps that names what is done; it is drawn on stderr, if that is a terminal.
pub fn bar(len: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(len);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸ "));
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// A number of bytes as people read it.
pub fn bytes(n: usize) -> String {
    indicatif::HumanBytes(n as u64).to_string()
}

/// A number of things, in the singular where there is one.
pub fn counted(n: usize, thing: &str) -> String {
    match (n, thing.strip_suffix('x')) {
        (1, _) => format!("1 {thing}"),
        (_, Some(stem)) => format!("{n} {stem}ces"),
        (_, None) => format!("{n} {thing}s"),
    }
}

/// A table: columns as wide as their widest cell, all but the first aligned to the right.
pub fn table(rows: &[Vec<String>]) -> Outcome {
    // Cells have names of files and from files.
    let rows: Vec<Vec<Cow<'_, str>>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| printable(cell)).collect())
        .collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        rows.iter()
            .filter_map(|r| r.get(c))
            .map(|s| s.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in &rows {
        let cells = row.iter().enumerate().map(|(c, cell)| {
            let pad = " ".repeat(widths[c] - cell.chars().count());
            if c == 0 {
                format!("{cell}{pad}")
            } else {
                format!("{pad}{cell}")
            }
        });
        say!("{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}
