//! Ctrl-C, and other signals that end the process.

use std::fs;
use std::io::{Write, stderr};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use apl_ffi::model::Canceller;

use crate::{Failure, Outcome};

/// The exit code of an interrupted verb, that of shells for a program that SIGINT ended.
pub const CODE: u8 = 130;

/// Becomes true at Ctrl-C.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether the user is asked for a line: nothing runs that would end by itself.
static ASKING: AtomicBool = AtomicBool::new(false);

/// Whether lines are typed by a person who goes on after Ctrl-C.
static GOES_ON: AtomicBool = AtomicBool::new(false);

/// What the process would leave unfinished.
static LEAVINGS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// What ends the call that runs.
static RUNNING: Mutex<Option<Canceller>> = Mutex::new(None);

/// From now on Ctrl-C is noted, and what runs ends by itself; a second one ends the process, and so does the first while the user
/// is asked for a line, unless it goes on after that ([`go_on_after_interrupts`]).
pub fn watch_interrupts() -> Outcome {
    static WATCHED: AtomicBool = AtomicBool::new(false);
    if WATCHED.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    let noted = || {
        let asking = ASKING.load(Ordering::SeqCst);
        if asking && GOES_ON.load(Ordering::SeqCst) && !is_terminated() {
            // The key came a moment before the next question, and what it was to end has ended.
            return;
        }
        if INTERRUPTED.swap(true, Ordering::SeqCst) || asking {
            remove_leavings();
            #[cfg(unix)]
            unix::restore_settings();
            // A terminal that is gone cannot be told.
            let _ = writeln!(stderr(), "\napl-ffi: {}", interruption().message);
            std::process::exit(CODE.into());
        }
        // Here the next signal is waited for.
        let _ = thread::Builder::new().spawn(cancel);
    };
    #[cfg(unix)]
    let ignored = unix::ignored();
    #[cfg(unix)]
    unix::keep_settings();
    ctrlc::set_handler(noted)
        .map_err(|e| Failure::new(1, format!("signals cannot be watched: {e}")))?;
    #[cfg(unix)]
    unix::distinguish(&ignored);
    Ok(())
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
/// ends soon, or goes on by [`forget`].
fn cancel() {
    while interrupted() {
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

/// From now on Ctrl-C does not end the process while the user is asked for a line.
pub fn go_on_after_interrupts() {
    GOES_ON.store(true, Ordering::SeqCst);
}

/// Whether a signal came that is not Ctrl-C.
fn is_terminated() -> bool {
    #[cfg(unix)]
    {
        // The handler of signals wakes who asks this before it notes which it was.
        thread::sleep(Duration::from_millis(1));
        unix::TERMINATED.load(Ordering::SeqCst)
    }
    #[cfg(not(unix))]
    false
}

/// Forgets a Ctrl-C, which has ended what ran, where the user goes on after it; a process that something else than Ctrl-C is to end
/// does not. Then [`ends_at_interrupt`] wants a session again.
pub fn forget() -> bool {
    if is_terminated() {
        return false;
    }
    if let Ok(mut running) = RUNNING.lock() {
        *running = None;
    }
    INTERRUPTED.store(false, Ordering::SeqCst);
    true
}

/// How a verb ends that Ctrl-C ended.
pub fn interruption() -> Failure {
    Failure::new(CODE, "interrupted")
}

/// Has the user asked for a line. A signal does not end a read: until there is one, the first of them ends the process.
pub fn asking<T>(line: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    ASKING.store(true, Ordering::SeqCst);
    if interrupted() {
        return Err(interruption());
    }
    let line = line();
    ASKING.store(false, Ordering::SeqCst);
    line
}

#[cfg(unix)]
mod unix {
    use std::sync::atomic::AtomicBool;
    use std::sync::{Arc, LazyLock, OnceLock};

    use signal_hook::flag;

    /// Whether a signal came that is not Ctrl-C.
    pub static TERMINATED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

    /// The settings that the terminal had; one who edits a line has others, with which a shell is of no use.
    static SETTINGS: OnceLock<libc::termios> = OnceLock::new();

    pub fn keep_settings() {
        // SAFETY: zeros are settings; the call writes those of a terminal, or fails.
        let found = unsafe {
            let mut settings: libc::termios = std::mem::zeroed();
            (libc::tcgetattr(libc::STDIN_FILENO, &mut settings) == 0).then_some(settings)
        };
        if let Some(settings) = found {
            let _ = SETTINGS.set(settings);
        }
    }

    pub fn restore_settings() {
        if let Some(settings) = SETTINGS.get() {
            // SAFETY: they are those of a terminal; where it is gone, the call fails.
            unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, settings) };
        }
    }

    /// The signals that would end the process and that it was started without, as by `nohup`: these
    /// remain ignored.
    pub fn ignored() -> Vec<libc::c_int> {
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

    /// Once signals are watched: those ignored before are ignored again, and the others known from Ctrl-C.
    pub fn distinguish(ignored: &[libc::c_int]) {
        for signal in ignored {
            // SAFETY: this action is no handler.
            unsafe { libc::signal(*signal, libc::SIG_IGN) };
        }
        for signal in [libc::SIGTERM, libc::SIGHUP] {
            if !ignored.contains(&signal) {
                // It also calls the handler before it. Without it, both are as Ctrl-C.
                let _ = flag::register(signal, TERMINATED.clone());
            }
        }
    }
}
