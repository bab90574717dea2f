//! What the verbs share when they speak to people.

use std::borrow::Cow;
use std::fmt;
use std::fs;
use std::io::{self, IsTerminal, Write, stderr, stdin, stdout};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use apl_ffi::error::printable;
use apl_ffi::model::Canceller;

use crate::{Failure, Outcome, input};

/// Becomes true at Ctrl-C.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether the user is asked for a line: nothing runs that would end by itself.
static ASKING: AtomicBool = AtomicBool::new(false);

/// What the process would leave unfinished.
static LEAVINGS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// What ends the call that runs.
static RUNNING: Mutex<Option<Canceller>> = Mutex::new(None);

/// From now on Ctrl-C is noted, and what runs ends by itself; a second one ends the process, and so does the first while the user
/// is asked for a line.
pub fn watch_interrupts() -> Outcome {
    static WATCHED: AtomicBool = AtomicBool::new(false);
    if WATCHED.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    let noted = || {
        if INTERRUPTED.swap(true, Ordering::SeqCst) || ASKING.load(Ordering::SeqCst) {
            remove_leavings();
            // A terminal that is gone cannot be told.
            let _ = writeln!(stderr(), "\napl-ffi: {}", interruption().message);
            std::process::exit(130);
        }
        // Here the next signal is waited for.
        let _ = thread::Builder::new().spawn(cancel);
    };
    #[cfg(unix)]
    let ignored = ignored();
    ctrlc::set_handler(noted)
        .map_err(|e| Failure::new(1, format!("signals cannot be watched: {e}")))?;
    #[cfg(unix)]
    for signal in ignored {
        // SAFETY: this action is no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    Ok(())
}

/// The signals that would end the process and that it was started without, as by `nohup`: these
/// remain ignored.
#[cfg(unix)]
fn ignored() -> Vec<libc::c_int> {
    let is_ignored = |signal: &libc::c_int| {
        // SAFETY: zeros are an action; the call writes that of a signal that exists.
        let action = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(*signal, std::ptr::null(), &mut action);
            action
        };
        action.sa_sigaction == libc::SIG_IGN
    };
    let ending = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
    ending.into_iter().filter(is_ignored).collect()
}

/// From now on, when the process ends at a signal, these files are removed, and folders that are
/// empty; the innermost come first.
pub fn removed_at_exit(leavings: Vec<PathBuf>) {
    if let Ok(mut all) = LEAVINGS.lock() {
        *all = leavings;
    }
}

fn remove_leavings() {
    let Ok(all) = LEAVINGS.lock() else { return };
    for path in &*all {
        let _ = fs::remove_file(path).or_else(|_| fs::remove_dir(path));
    }
}

/// Ends the call that runs. A call that is about to begin would not hear of it, so that it is told again and again: the process
/// ends soon.
fn cancel() {
    loop {
        if let Ok(Some(canceller)) = RUNNING.lock().as_deref() {
            canceller.cancel();
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Ctrl-C also ends the calls of this session.
pub fn ends_at_interrupt(session: Canceller) {
    if let Ok(mut running) = RUNNING.lock() {
        *running = Some(session);
    }
}

/// Whether Ctrl-C came since [`watch_interrupts`].
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// How a verb ends that Ctrl-C ended.
pub fn interruption() -> Failure {
    Failure::new(130, "interrupted")
}

/// Asks for a line; without one, at the end of the input, it is empty. Only people are prompted.
pub fn ask(prompt: &str) -> Outcome<String> {
    if stdin().is_terminal() && stdout().is_terminal() {
        say_now(prompt)?;
    }
    // A signal does not end a read: its handler ends the process.
    ASKING.store(true, Ordering::SeqCst);
    if interrupted() {
        return Err(interruption());
    }
    let line = input::line();
    ASKING.store(false, Ordering::SeqCst);
    line
}

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
