//! `apl-ffi run --chat` at a terminal.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::process::{Child, Stdio};
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use super::interruptible;
use super::running::chatting;

/// The longest that anything may take, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);

/// A terminal, and the program that runs in it.
struct Terminal {
    /// Where a person sits: what is written here is typed, and what is read here is shown.
    outside: File,
    child: Child,
    /// What is on the screen, after what was waited for.
    seen: String,
}

impl Terminal {
    fn chat(template: &str, more: &[&str]) -> (tempfile::TempDir, Terminal) {
        let folder = tempfile::tempdir().unwrap();
        let model = chatting(folder.path(), template);
        // Answers go on for longer than a busy machine lets pass before a signal.
        let path = folder.path().join("tokenizer_config.json");
        let config = fs::read_to_string(&path).unwrap();
        fs::write(&path, config.replace("\"eos_token\"", "\"no_eos_token\"")).unwrap();
        fs::write(folder.path().join("generation_config.json"), "{}").unwrap();
        let path = folder.path().join("stories.json");
        let manifest = fs::read_to_string(&path).unwrap();
        let (before, context) = ("\"context_length\": 512", "\"context_length\": 20000");
        assert!(manifest.contains(before));
        fs::write(&path, manifest.replace(before, context)).unwrap();
        let (mut outside, mut inside) = (0, 0);
        // Neither a name, nor settings, nor a size.
        let (name, settings, size) = (null_mut(), null_mut(), null_mut());
        // SAFETY: both are written, or the call fails.
        let opened = unsafe { libc::openpty(&mut outside, &mut inside, name, settings, size) };
        assert_eq!(opened, 0);
        // SAFETY: they were opened above, and each is owned once.
        let (outside, inside) = unsafe { (File::from_raw_fd(outside), File::from_raw_fd(inside)) };
        let standard = || Stdio::from(inside.try_clone().unwrap());
        let child = interruptible(&["run", &model, "--chat"])
            .args(more)
            .env("TERM", "xterm")
            .stdin(standard())
            .stdout(standard())
            .stderr(standard())
            .spawn()
            .unwrap();
        let seen = String::new();
        let terminal = Terminal {
            outside,
            child,
            seen,
        };
        (folder, terminal)
    }

    fn types(&mut self, keys: &str) {
        self.outside.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until a text is on the screen, after what was waited for before.
    fn shows(&mut self, text: &str) {
        let begun = Instant::now();
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "no {text:?} after {:?}",
                self.seen
            );
            let mut outside = libc::pollfd {
                fd: self.outside.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: it is one.
            if unsafe { libc::poll(&mut outside, 1, 100) } == 1 {
                let mut bytes = [0; 4096];
                let len = self.outside.read(&mut bytes).unwrap_or(0);
                assert!(len > 0, "it ended, no {text:?} after {:?}", self.seen);
                self.seen += &String::from_utf8_lossy(&bytes[..len]);
            }
        }
    }

    /// Sends a signal in the middle of an answer, whose first words are awaited.
    fn signal_in_an_answer(&mut self, signal: libc::c_int) {
        self.shows("\n");
        self.shows(" ");
        self.signal(signal);
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: the process is a child that was not waited for.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    fn ends(mut self) -> Option<i32> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether lines are edited by the terminal itself, as a shell expects it.
    fn is_as_before(&self) -> bool {
        // SAFETY: zeros are settings, and the call writes others.
        let settings = unsafe {
            let mut settings: libc::termios = std::mem::zeroed();
            assert_eq!(libc::tcgetattr(self.outside.as_raw_fd(), &mut settings), 0);
            settings
        };
        settings.c_lflag & (libc::ICANON | libc::ECHO) == libc::ICANON | libc::ECHO
    }
}

const ANY: &str = "{% for m in messages %}{{ m.content }} {% endfor %}";

#[test]
fn lines_are_edited_and_come_back() {
    let template = "{% for m in messages %}{% if m.role == 'user' and m.content != 'Hello' %}\
        {{ raise_exception('not Hello but ' + m.content) }}{% endif %}{{ m.content }} {% endfor %}";
    let (_folder, mut terminal) = Terminal::chat(template, &["-n", "3"]);
    terminal.shows("> ");
    // Backspace, the beginning of the line, and a letter there; then the key for the line before.
    terminal.types("ellox\x7f\x01H\r");
    terminal.shows("text: 3 tokens");
    terminal.shows("> ");
    terminal.types("\x1b[A\r");
    terminal.shows("text: 3 tokens");
    terminal.shows("> ");
    terminal.types("Bye\r");
    terminal.shows("not Hello but Bye");
    assert_eq!(terminal.ends(), Some(2));
}

#[test]
fn what_the_model_is_told_before() {
    let template = "{% for m in messages %}{{ m.role }} {% endfor %}{{ messages|length }}{% if messages|length != 2 %}\
        {{ raise_exception(messages[0].role + ':' + messages[0].content + ' ' + messages|length|string) }}{% endif %}";
    let (_folder, mut terminal) = Terminal::chat(template, &["-n", "3", "--system", "Be brief."]);
    terminal.shows("> ");
    terminal.types("Hello\r");
    terminal.shows("text: 3 tokens");
    terminal.shows("> ");
    terminal.types("Hello\r");
    // With the answer in between.
    terminal.shows("system:Be brief. 4");
    assert_eq!(terminal.ends(), Some(2));
    let error = super::fails(2, &["run", "demo", "--system", "Be brief."]);
    assert!(error.contains("--chat"), "{error}");
}

#[test]
fn ctrl_c_ends_an_answer_and_not_the_conversation() {
    let (_folder, mut terminal) = Terminal::chat(ANY, &["-n", "20000"]);
    for _ in 0..2 {
        terminal.shows("> ");
        terminal.types("Once upon a time\r");
        terminal.signal_in_an_answer(libc::SIGINT);
        terminal.shows("[stopped]");
    }
    terminal.shows("> ");
    terminal.types("On\x03");
    terminal.shows("[Ctrl-D ends the conversation]");
    terminal.shows("> ");
    terminal.types("\x04");
    assert_eq!(terminal.ends(), Some(0));
}

#[test]
fn other_signals_end_the_process() {
    let (_folder, mut terminal) = Terminal::chat(ANY, &["-n", "20000"]);
    terminal.shows("> ");
    terminal.types("Once upon a time\r");
    terminal.signal_in_an_answer(libc::SIGTERM);
    terminal.shows("apl-ffi: interrupted");
    assert_eq!(terminal.ends(), Some(130));
    // While it asks, the terminal has other settings.
    let (_folder, mut terminal) = Terminal::chat(ANY, &[]);
    terminal.shows("> ");
    terminal.signal(libc::SIGTERM);
    terminal.shows("apl-ffi: interrupted");
    assert!(terminal.is_as_before());
    assert_eq!(terminal.ends(), Some(130));
}

#[test]
fn ctrl_d_ends_the_conversation() {
    let (_folder, mut terminal) = Terminal::chat(ANY, &[]);
    terminal.shows("> ");
    terminal.types("\x04");
    assert_eq!(terminal.ends(), Some(0));
}
