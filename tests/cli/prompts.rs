//! Texts that are no arguments: prompts on stdin and in files, and what is no text.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use super::{command, fails, succeeds};

/// What `run` prints with this on stdin.
fn told(arguments: &[&str], stdin: &[u8]) -> String {
    let mut child = command(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Where it reads no stdin it may have ended already.
    if let Err(e) = child.stdin.take().unwrap().write_all(stdin) {
        assert_eq!(e.kind(), std::io::ErrorKind::BrokenPipe);
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

const RUN: [&str; 7] = ["run", "demo", "-n", "5", "--temperature", "0", "-q"];

#[test]
fn a_prompt_on_stdin_or_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    fs::write(&file, "One day\n").unwrap();
    let file = file.to_str().unwrap();
    fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
        [&RUN[..], more].concat()
    }
    let expected = succeeds(&with(&["One day"]));
    assert!(expected.starts_with("One day"), "{expected}");
    for stdin in ["One day", "One day\n", "One day\r\n", "\u{feff}One day"] {
        assert_eq!(told(&RUN, stdin.as_bytes()), expected);
    }
    assert_eq!(told(&with(&["-"]), b"One day"), expected);
    assert_eq!(told(&with(&["--file", file]), b"not this"), expected);
    assert_eq!(told(&with(&["One day"]), b"not this"), expected);
    assert_eq!(told(&with(&["--file", "-"]), b"One day"), expected);
    fails(2, &with(&["One day", "--file", file]));
    fails(2, &with(&["-", "--chat"]));
    fails(3, &with(&["--file", "no/such/file"]));
}

#[test]
fn bytes_that_are_no_text() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let words = "one two three four five ".repeat(20);
    let wrong = file(
        "wrong",
        &[words.as_bytes(), b"\xff", words.as_bytes()].concat(),
    );
    let cut = file("cut", &[words.as_bytes(), b"\xc3"].concat());
    let out = folder.path().join("out");
    let out = out.to_str().unwrap();
    for text in [&wrong, &cut] {
        for arguments in [
            &["perplexity", "demo", text, "--window", "64"][..],
            &["compare", "demo", "models/stories", "--text", text],
            &[
                "convert",
                "models/stories",
                "--calibrate",
                text,
                "--out",
                out,
            ],
            &["validate", "--text", text, "--out", out],
            &["run", "demo", "--file", text],
        ] {
            let error = fails(4, arguments);
            let place = format!(
                "{text} is not UTF-8 text: the byte at offset {} ",
                words.len()
            );
            assert!(error.contains(&place), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
    // A limit may fall into a character.
    let umlauts = file("umlauts", "äöü äöü äöü ".repeat(50).as_bytes());
    let perplexity = |bytes: &str| {
        let text = ["perplexity", "demo", &umlauts, "--window", "32", "--bytes"];
        succeeds(&[&text[..], &[bytes]].concat())
    };
    assert_eq!(perplexity("201"), perplexity("200"));
}

/// Lines of a conversation are texts as well.
#[test]
fn a_line_that_is_no_text() {
    let folder = tempfile::tempdir().unwrap();
    let model = super::running::chatting(folder.path(), "{{ messages[0].content }}");
    let lines = folder.path().join("lines");
    fs::write(&lines, b"a\xffb\n").unwrap();
    let output = command(&["run", &model, "--chat"])
        .stdin(fs::File::open(lines).unwrap())
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(4), "{error}");
    assert!(output.stdout.is_empty());
    assert_eq!(
        error,
        "apl-ffi: a line of stdin is not UTF-8 text: the byte at offset 1 is wrong\n"
    );
}

/// Reading ends where a device does not.
#[cfg(unix)]
#[test]
fn texts_without_an_end() {
    let stdin = |arguments: &[&str]| {
        let output = command(arguments)
            .stdin(fs::File::open("/dev/zero").unwrap())
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(4), "{error}");
        error
    };
    let folder = tempfile::tempdir().unwrap();
    let model = super::running::chatting(folder.path(), "{{ messages[0].content }}");
    let most = "has more than 64 MiB, expected a text of at most that\n";
    assert_eq!(stdin(&["run", "demo"]), format!("apl-ffi: stdin {most}"));
    assert_eq!(
        stdin(&["run", &model, "--chat"]),
        format!("apl-ffi: a line of stdin {most}")
    );
    for arguments in [
        &["run", "demo", "--file", "/dev/zero"][..],
        &["perplexity", "demo", "/dev/zero"],
    ] {
        assert_eq!(fails(4, arguments), format!("apl-ffi: /dev/zero {most}"));
    }
}
