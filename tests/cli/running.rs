//! `apl-ffi run`: its arguments, how Ctrl-C ends it, and what becomes of output that nobody takes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{apl_ffi, command, fails, succeeds};

#[test]
fn sampling_outside_its_domain() {
    for (option, value) in [
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--temperature", "inf"),
        ("--top-p", "-1"),
        ("--top-p", "1.5"),
        ("--min-p", "2"),
        ("--repeat-penalty", "0"),
        ("--top-k", "-1"),
    ] {
        let error = fails(2, &["run", "demo", "One", option, value]);
        if option != "--top-k" {
            assert!(error.contains(", expected a number from 0"), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
    succeeds(&["run", "demo", "One", "-n", "1", "--repeat-penalty", "0.1"]);
}

/// The demonstration with this chat template.
pub fn chatting(folder: &Path, template: &str) -> String {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    for entry in fs::read_dir(demo).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let path = folder.join("tokenizer_config.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["chat_template"] = template.into();
    fs::write(path, config.to_string()).unwrap();
    folder.to_str().unwrap().to_owned()
}

#[test]
fn chat_templates_that_say_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for (template, expected) in [
        ("", "has no chat template"),
        (" \n", "has no chat template"),
        ("{% if false %}x{% endif %}", "writes nothing"),
    ] {
        let model = chatting(folder.path(), template);
        let error = fails(4, &["run", &model, "Hello", "--chat"]);
        assert!(error.contains(expected), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

/// A model without a token that texts begin with cannot begin by itself, and goes on with a text.
#[test]
fn nothing_to_begin_with() {
    let folder = tempfile::tempdir().unwrap();
    let model = chatting(folder.path(), "");
    let path = folder.path().join("tokenizer_config.json");
    fs::write(path, r#"{"add_bos_token": false}"#).unwrap();
    let error = fails(2, &["run", &model]);
    assert!(error.contains("give it some text"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    let told = succeeds(&["run", &model, "One", "-n", "1"]);
    assert!(told.starts_with("One"), "{told}");
}

/// Generation goes to the end of the context, and no prompt beyond it; what stands already is not glued to a message.
#[test]
fn prompts_and_the_context() {
    let many = "one ".repeat(200);
    let output = apl_ffi(&["run", "demo", &many, "--context", "50"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.starts_with("apl-ffi: the prompt has ")
            && error.ends_with(
                " tokens, the context 50; give a larger --context, up to 512, or a shorter prompt\n"
            ),
        "{error}"
    );
    let error = fails(2, &["run", "demo", &"one ".repeat(600)]);
    let most = "the context 512, the most of this model; give a shorter prompt\n";
    assert!(error.ends_with(most), "{error}");
    let error = fails(2, &["run", "demo", "One", "--context", "513"]);
    let most = "apl-ffi: --context is 513, expected at most 512, that of the model\n";
    assert_eq!(error, most);
    succeeds(&["run", "demo", "One day", "--context", "50"]);
    // Nothing is begun that cannot be ended: this model has no tokenizer.
    let folder = tempfile::tempdir().unwrap();
    let model = chatting(folder.path(), "");
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let output = apl_ffi(&["run", &model, "One"]);
    assert!(!output.status.success() && output.stdout.is_empty());
    let error = String::from_utf8(output.stderr).unwrap();
    let said = format!("apl-ffi: {model}: the model has no tokenizer");
    assert!(error.starts_with(&said), "{error}");
}

#[test]
fn figures_in_the_singular() {
    let output = apl_ffi(&["run", "demo", "", "-n", "1"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("prompt: 1 token, ") && error.contains("text: 1 token, "),
        "{error}"
    );
}

#[test]
fn a_conversation_ends_where_the_context_does() {
    let folder = tempfile::tempdir().unwrap();
    let template = "{% for m in messages %}{{ m.content }} {% endfor %}";
    let model = chatting(folder.path(), template);
    let text = folder.path().join("lines");
    fs::write(&text, "Once upon a time\n".repeat(50)).unwrap();
    let chat = ["run", &model, "--chat", "--context", "100", "-n", "20"];
    let output = command(&chat)
        .stdin(fs::File::open(&text).unwrap())
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{error}");
    assert_eq!(
        error.lines().last(),
        Some("the context of 100 tokens is full: the conversation ends here")
    );
    // A first message that is too long for it is a mistake.
    let many = "one ".repeat(200);
    let error = fails(2, &[&chat[..], &[&many]].concat());
    assert!(error.contains("the prompt has "), "{error}");
}

/// A full disk is told in one line.
#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written() {
    for arguments in [
        &["models"][..],
        &["models", "--json"],
        &["info"],
        &["info", "--json"],
        &["inspect", "demo"],
        &["inspect", "demo", "--json"],
        &["completions", "bash"],
        &["run", "demo", "One"],
        &["compare", "demo", "models/stories"],
        &["perplexity", "demo", "README.md"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_apl-ffi"))
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdout(fs::File::create("/dev/full").unwrap())
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {error}");
        assert!(error.contains("the output cannot be written"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

/// What was done is worth more than a note about it.
#[cfg(target_os = "linux")]
#[test]
fn notes_that_cannot_be_written() {
    let output = command(&["run", "demo", "One", "-n", "3"])
        .stderr(fs::File::create("/dev/full").unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{:?}", output.status);
    assert!(output.stdout.starts_with(b"One"), "{:?}", output.stdout);
}

#[cfg(unix)]
mod interrupted {
    use std::io::Read;
    use std::process::{Child, Stdio};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::interruptible;

    fn spawn(arguments: &[&str]) -> Child {
        interruptible(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn interrupt(child: &Child) {
        // SAFETY: the process is our child and was not waited for, so its number is still its own.
        unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    }

    /// How it ends, and what it says.
    fn end(mut child: Child) -> (Option<i32>, String) {
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(20), "it does not end");
            thread::sleep(Duration::from_millis(5));
        }
        let output = child.wait_with_output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    }

    #[test]
    fn while_it_tells() {
        // Without ends of texts, to the end of the context.
        let folder = tempfile::tempdir().unwrap();
        let model = chatting(folder.path(), "");
        for file in ["tokenizer_config.json", "generation_config.json"] {
            fs::write(folder.path().join(file), "{}").unwrap();
        }
        for _ in 0..20 {
            let mut child = spawn(&["run", &model, "One", "-n", "500", "--threads", "1"]);
            let mut first = [0; 8];
            child
                .stdout
                .as_mut()
                .unwrap()
                .read_exact(&mut first)
                .unwrap();
            interrupt(&child);
            let (code, said) = end(child);
            // All of it takes less time than a busy machine may let pass before the signal.
            if code == Some(0) {
                continue;
            }
            assert_eq!(code, Some(130), "{said}");
            assert_eq!(said, "apl-ffi: interrupted\n");
            return;
        }
        panic!("no Ctrl-C came while it told");
    }

    #[test]
    fn while_it_asks() {
        let folder = tempfile::tempdir().unwrap();
        let model = chatting(folder.path(), "{{ messages[0].content }}");
        let mut child = spawn(&["run", &model, "Hello", "--chat", "-n", "1", "-q"]);
        // The end of the answer, after which it asks. No prompt is shown where nobody types.
        let (mut answer, mut byte) = (Vec::new(), [0]);
        while byte != *b"\n" {
            child
                .stdout
                .as_mut()
                .unwrap()
                .read_exact(&mut byte)
                .unwrap();
            answer.extend(byte);
        }
        assert!(!answer.contains(&b'>'), "{answer:?}");
        interrupt(&child);
        let (code, said) = end(child);
        assert_eq!(code, Some(130), "{said}");
        // On a line of its own where it already waits for one, which it does a moment after the answer.
        assert_eq!(said.trim_start(), "apl-ffi: interrupted\n");
    }

    /// A conversion that takes long, because it reads a text first, and the file that it writes to.
    fn calibrated(folder: &Path) -> (Vec<String>, PathBuf) {
        let text = folder.join("text.txt");
        fs::write(
            &text,
            "Once upon a time there was a girl who had a dog. ".repeat(8000),
        )
        .unwrap();
        let out = folder.join("out");
        let words = ["convert", "models/stories", "--bits", "4", "--calibrate"];
        let words =
            words
                .into_iter()
                .chain([text.to_str().unwrap(), "--out", out.to_str().unwrap()]);
        (
            words.map(str::to_owned).collect(),
            out.join(".stories.npz.tmp"),
        )
    }

    fn wait_for(path: &Path) {
        let begun = Instant::now();
        while !path.exists() {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "{}",
                path.display()
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn while_it_calibrates() {
        let folder = tempfile::tempdir().unwrap();
        let (words, unfinished) = calibrated(folder.path());
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let child = spawn(&words);
        wait_for(&unfinished);
        interrupt(&child);
        let (code, said) = end(child);
        assert_eq!(code, Some(130), "{said}");
        assert_eq!(said, "apl-ffi: interrupted: nothing was changed\n");
        assert!(!folder.path().join("out").exists());
    }

    #[test]
    fn twice() {
        let folder = tempfile::tempdir().unwrap();
        let (words, unfinished) = calibrated(folder.path());
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        for _ in 0..10 {
            let child = spawn(&words);
            wait_for(&unfinished);
            interrupt(&child);
            thread::sleep(Duration::from_millis(1));
            interrupt(&child);
            let (code, said) = end(child);
            assert_eq!(code, Some(130), "{said}");
            assert!(!folder.path().join("out").exists(), "{said}");
        }
    }

    /// As `nohup` starts it.
    #[test]
    fn by_a_signal_that_it_ignores() {
        use std::os::unix::process::CommandExt;

        let folder = tempfile::tempdir().unwrap();
        let (words, unfinished) = calibrated(folder.path());
        let mut command = Command::new(env!("CARGO_BIN_EXE_apl-ffi"));
        command.args(&words).current_dir(env!("CARGO_MANIFEST_DIR"));
        let ignore = || {
            // SAFETY: the action is no handler.
            unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
            Ok(())
        };
        // SAFETY: the call is one that may be made between fork and exec.
        let command = unsafe { command.pre_exec(ignore) };
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for(&unfinished);
        // SAFETY: as in `interrupt`.
        unsafe { libc::kill(child.id() as i32, libc::SIGHUP) };
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{said}");
    }

    #[test]
    fn while_it_converts_into_folders_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let outer = folder.path().join("a");
        let inner = outer.join("b");
        let out = inner.to_str().unwrap();
        for _ in 0..20 {
            let child = spawn(&["convert", "models/stories", "--bits", "4", "--out", out]);
            while !inner.exists() {
                thread::sleep(Duration::from_millis(1));
            }
            interrupt(&child);
            let (code, said) = end(child);
            if code == Some(130) && said.contains("nothing") {
                assert_eq!(said, "apl-ffi: interrupted: nothing was changed\n");
                assert!(!outer.exists());
                return;
            }
            fs::remove_dir_all(&outer).unwrap();
        }
        panic!("no Ctrl-C came while it converted");
    }
}
