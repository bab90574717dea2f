//! Every `apl-ffi` command of the README, as it stands there, in its order.

use std::fs;
use std::path::Path;
use std::process::Command;

/// The words of a command as a shell has them: double quotes, and a comment at the end.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quoted) = (String::new(), false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            '#' if !quoted && word.is_empty() => break,
            ' ' if !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[test]
fn words_as_a_shell_has_them() {
    let found = words("apl-ffi run demo \"One day, # or so\"  # tells a story");
    assert_eq!(found, ["apl-ffi", "run", "demo", "One day, # or so"]);
}

#[cfg(unix)]
#[test]
fn every_command_of_the_readme_runs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let link =
        |name: &str| std::os::unix::fs::symlink(root.join(name), folder.path().join(name)).unwrap();
    fs::create_dir(folder.path().join("models")).unwrap();
    for name in ["README.md", "models/demo", "models/stories"] {
        link(name);
    }
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let mut inside = false;
    let mut verbs = Vec::new();
    for line in readme.lines() {
        if line.starts_with("```") {
            inside = !inside;
        }
        if !inside || !line.starts_with("apl-ffi ") {
            continue;
        }
        let words = words(line);
        let output = Command::new(env!("CARGO_BIN_EXE_apl-ffi"))
            .args(&words[1..])
            .current_dir(folder.path())
            .env("HF_ENDPOINT", "http://127.0.0.1:9")
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {error}");
        verbs.push(words[1].clone());
    }
    for verb in [
        "run",
        "convert",
        "inspect",
        "validate",
        "compare",
        "perplexity",
        "bench",
    ] {
        assert!(
            verbs.iter().any(|v| v == verb),
            "the README shows no {verb}: {verbs:?}"
        );
    }
    for made in [
        "report/accuracy_validation_results.json",
        "report/accuracy_validation_results.html",
        "speed.html",
    ] {
        assert!(folder.path().join(made).is_file(), "{made}");
    }
}
