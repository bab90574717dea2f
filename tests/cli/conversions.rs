//! `apl-ffi convert`: options that would change nothing, what it suggests, and what becomes of floats that were kept.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{apl_ffi, command, fails, succeeds};

/// Letters are letters, whatever the alphabet: two such models do not get the same name.
#[test]
fn names_of_other_alphabets() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    for name in ["模型", "Модель 2"] {
        let source = folder.path().join(name);
        fs::create_dir(&source).unwrap();
        for file in ["config.json", "model.safetensors"] {
            let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/stories");
            fs::copy(from.join(file), source.join(file)).unwrap();
        }
        let [source, out] = [&source, &out].map(|path| path.to_str().unwrap());
        succeeds(&["convert", source, "--method", "nearest", "--out", out]);
    }
    assert!(out.join("模型.json").is_file());
    assert!(out.join("модель-2.json").is_file());
}

#[test]
fn options_that_would_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let convert = |source: &'static str, more: &[&'static str]| {
        let all = ["convert", source, "--out", out.to_str().unwrap()];
        [&all[..], more]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let refused = |source: &'static str, more: &[&'static str]| {
        let all = convert(source, more);
        let error = fails(2, &all.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(!out.exists(), "{more:?}");
        error
    };
    // 8 bits in groups of 32, symmetric.
    for more in [
        &["--group", "64"][..],
        &["--group", "0", "--bits", "8"],
        &["--asymmetric"],
        &["--method", "nearest"],
        &["--calibrate", "README.md"],
    ] {
        let error = refused("models/demo", more);
        assert!(
            error.contains("is quantised already") && error.contains(more[0]),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    for (bits, more) in [
        ("1", &["--asymmetric"][..]),
        ("16", &["--asymmetric"]),
        ("32", &["--group", "8"]),
        ("16", &["--method", "search"]),
        ("32", &["--calibrate", "README.md"]),
    ] {
        let error = refused("models/stories", &[&["--bits", bits], more].concat());
        let said = format!("{} means nothing with --bits {bits}", more[0]);
        assert!(error.contains(&said), "{error}");
    }
    refused(
        "models/stories",
        &["--calibrate", "README.md", "--method", "search"],
    );
    for more in [
        &["--group", "32"][..],
        &["--bits", "2", "--group", "16", "--asymmetric"],
    ] {
        let all = convert("models/demo", more);
        succeeds(&all.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[test]
fn a_report_says_how() {
    let folder = tempfile::tempdir().unwrap();
    let report = |more: &[&str]| {
        let all = [
            "convert",
            "--out",
            folder.path().to_str().unwrap(),
            "--json",
        ];
        let report: Value = serde_json::from_str(&succeeds(&[&all[..], more].concat())).unwrap();
        report
    };
    let found = report(&[
        "models/stories",
        "--bits",
        "8",
        "--group",
        "16",
        "--method",
        "nearest",
    ]);
    assert_eq!(found["source"], "models/stories");
    assert_eq!(
        (&found["group"], &found["method"]),
        (&16.into(), &"nearest".into())
    );
    let found = report(&["demo"]);
    assert_eq!(
        (&found["group"], &found["method"]),
        (&32.into(), &"copied".into())
    );
    let found = report(&["models/stories", "--bits", "16"]);
    assert_eq!(
        (&found["group"], &found["method"]),
        (&Value::Null, &Value::Null)
    );
}

/// Each command of the last line runs, as it stands there.
#[cfg(unix)]
#[test]
fn what_is_suggested_works() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let models = root.join("tests/data/models");
    let folder = tempfile::tempdir().unwrap();
    let spaced = folder.path().join("it's a model");
    let silent = folder.path().join("silent");
    for (from, to) in [
        (root.join("models/stories"), &spaced),
        (models.join("mistral"), &silent),
    ] {
        fs::create_dir(to).unwrap();
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    fs::remove_file(silent.join("tokenizer.json")).unwrap();
    for (source, more, beside) in [
        (spaced.clone(), &["--bits", "4"][..], "validate"),
        (spaced, &["--bits", "16"], "compare"),
        (root.join("models/demo"), &["--bits", "8"], "compare"),
        (models.join("qwen2.gguf"), &[], "compare"),
        (silent, &[], "inspect"),
    ] {
        let out = folder.path().join("out of it");
        let convert = [
            "convert",
            source.to_str().unwrap(),
            "--out",
            out.to_str().unwrap(),
        ];
        let told = succeeds(&[&convert[..], more].concat());
        let next = told.lines().last().unwrap().strip_prefix("next: ").unwrap();
        let commands: Vec<&str> = next.split(", ").collect();
        assert!(
            commands
                .last()
                .unwrap()
                .starts_with(&format!("apl-ffi {beside} ")),
            "{told}"
        );
        for line in commands {
            let rest = line.strip_prefix("apl-ffi ").unwrap();
            let output = std::process::Command::new("sh")
                .args([
                    "-c",
                    &format!("\"$0\" {rest}"),
                    env!("CARGO_BIN_EXE_apl-ffi"),
                ])
                .current_dir(folder.path())
                .output()
                .unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{line}: {error}");
        }
        fs::remove_dir_all(out).unwrap();
    }
}

/// They were asked for: running does not quantise them.
#[test]
fn floats_that_were_kept_stay() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    for (bits, size) in [("16", 2.0), ("32", 4.0)] {
        succeeds(&["convert", "models/stories", "--bits", bits, "--out", out]);
        let run = ["run", out, "Once", "-n", "1", "-q"];
        let output = apl_ffi(&run);
        assert!(output.status.success() && output.stderr.is_empty());
        let bench = [
            "bench", "--prompt", "2", "--tokens", "1", "--rounds", "1", "--json",
        ];
        let found = succeeds(&[&bench[..], &["--model", out]].concat());
        let found: Value = serde_json::from_str(&found).unwrap();
        assert_eq!(
            found["bits_a_weight"].as_f64().unwrap().round(),
            8.0 * size,
            "{found}"
        );
    }
}

/// A name in a folder of models, wherever that is.
#[test]
fn a_model_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("mine");
    succeeds(&["convert", "demo", "--out", out.to_str().unwrap()]);
    let output = command(&["inspect", "mine"])
        .env("APL_FFI_MODELS", folder.path())
        .output()
        .unwrap();
    assert!(output.status.success());
    fails(3, &["inspect", "mine"]);
}
