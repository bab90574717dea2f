//! Arguments: numbers outside their domain, names of models that are none, the environment, and what is told about all of it.

use std::fs;

use serde_json::Value;

use super::{command, fails, succeeds};

#[test]
fn counts_outside_their_domain() {
    for (arguments, said) in [
        (&["run", "demo", "One", "-n", "-1"][..], "0 or more"),
        (&["run", "demo", "One", "--top-k", "-1"], "0 or more"),
        (&["run", "demo", "One", "--context", "0"], "1 or more"),
        (&["run", "demo", "--seed", "-1"], "an integer from 0 to "),
        (&["run", "demo", "--bits", "-4"], "expected 1, 2, 4 or 8; "),
        (&["validate", "--bits", "-4"], "expected 1, 2, 4 or 8"),
        (
            &["convert", "models/stories", "--bits", "-4"],
            "expected 1, 2, 4 or 8; ",
        ),
        (&["convert", "models/stories", "--group", "-1"], "0 or more"),
        (&["validate", "--group", "-1"], "0 or more"),
        (
            &["perplexity", "demo", "README.md", "--window", "0"],
            "1 or more",
        ),
        (&["models", "--threads", "-1"], "0 or more"),
        (&["bench", "--rounds", "0"], "1 or more"),
        (&["bench", "--tokens", "0"], "1 or more"),
        (&["bench", "--prompt", "0"], "1 or more"),
        (
            &["bench", "--prompt", "600"],
            "--prompt is 600, expected at most 512",
        ),
        (
            &["bench", "--tokens", "600"],
            "--tokens is 600, expected at most 512",
        ),
        (
            &["compare", "demo", "models/stories", "--window", "600"],
            "--window is 600, expected at most 512",
        ),
    ] {
        let error = fails(2, arguments);
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
}

#[test]
fn a_report_says_what_was_run() {
    let bench = ["bench", "--prompt", "9", "--tokens", "3", "--rounds", "1"];
    let found: Value =
        serde_json::from_str(&succeeds(&[&bench[..], &["--json"]].concat())).unwrap();
    assert_eq!(found["prompt_tokens"], 9);
    assert_eq!(found["text_tokens"], 3);
    assert_eq!(found["version"], env!("CARGO_PKG_VERSION"));
    let told = succeeds(&[&bench[..], &["--threads", "1"]].concat());
    assert!(told.contains(" 1 thread, "), "{told}");
    let info: Value = serde_json::from_str(&succeeds(&["info", "--json"])).unwrap();
    let header = include_str!("../../include/apl_ffi.h");
    let abi = format!("#define APL_FFI_ABI_VERSION {}\n", info["abi"]);
    assert!(header.contains(&abi), "{info}");
}

#[test]
fn numbers_are_told_as_they_were_written() {
    let list = succeeds(&["models", "--json"]);
    assert!(list.contains("\"billions\": 1.1,"), "{list}");
    let shown = succeeds(&["inspect", "models/stories", "--json"]);
    assert!(shown.contains("\"norm_eps\": 0.00001,"), "{shown}");
}

/// What is no model here is not looked for elsewhere, unless it can be a name there.
#[test]
fn paths_and_names_that_are_none() {
    let typo = "models/storis";
    let said = |verb: &str, name: &str| fails(3, &[verb, name]);
    for verb in ["convert", "run", "inspect"] {
        assert_eq!(
            said(verb, typo),
            format!(
                "apl-ffi: there is no folder or file {typo} here; for OWNER/NAME on the hub give https://huggingface.co/{typo}\n"
            )
        );
        for path in [
            "./nothing",
            "nothing/model.gguf",
            "nothing.json",
            "~/nothing",
        ] {
            assert_eq!(
                said(verb, path),
                format!("apl-ffi: there is no folder or file {path} here\n")
            );
        }
        let error = said(verb, "demmo");
        assert!(
            error.contains("no model of that name in models, ")
                && error.contains("`apl-ffi models`"),
            "{error}"
        );
    }
    for name in ["some-owner/some-name", "qwen3-0.6b"] {
        let error = said("run", name);
        assert!(
            error.contains(&format!("apl-ffi convert {name}")),
            "{error}"
        );
    }
    let error = fails(5, &["convert", "https://huggingface.co/models/storis"]);
    assert!(error.contains("models/storis cannot be fetched"), "{error}");
}

#[test]
fn a_folder_with_a_gguf_file() {
    let folder = tempfile::tempdir().unwrap();
    let qwen = "tests/data/models/qwen2.gguf";
    fs::copy(qwen, folder.path().join("a.gguf")).unwrap();
    let model = folder.path().to_str().unwrap();
    let found = succeeds(&["inspect", model]);
    assert!(found.contains("a.gguf (gguf, qwen2)"), "{found}");
    fs::copy(qwen, folder.path().join("b.gguf")).unwrap();
    let error = fails(4, &["inspect", model]);
    assert!(
        error.contains("several .gguf files (")
            && error.contains("a.gguf, ")
            && error.contains("name one"),
        "{error}"
    );
}

/// What is nearly a model: the message names the file and says what would be one.
#[test]
fn files_that_are_no_models() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let whole = include_bytes!("../../models/demo/stories.json");
    for (text, why) in [
        (&whole[..whole.len() / 2], "EOF while parsing "),
        (&[], "EOF while parsing a value at line 1 column 0"),
    ] {
        fs::write(path("m.json"), text).unwrap();
        let error = fails(4, &["inspect", folder.path().to_str().unwrap()]);
        let said = format!(
            "apl-ffi: {}: not valid JSON, expected a manifest: {why}",
            path("m.json")
        );
        assert!(error.starts_with(&said), "{error}");
    }
    let error = fails(4, &["inspect", "models/stories/config.json"]);
    assert!(error.contains("give the folder that holds both"), "{error}");
    let file = path("m.json");
    let error = fails(2, &["convert", "models/stories", "--out", &file]);
    assert!(error.contains("is a file, expected a folder"), "{error}");
    let below = path("m.json/below");
    let error = fails(3, &["convert", "models/stories", "--out", &below]);
    assert!(error.contains("below cannot be made: "), "{error}");
}

#[test]
fn the_environment() {
    // As if it were not there.
    let output = command(&["info"])
        .env("APL_FFI_THREADS", "")
        .output()
        .unwrap();
    assert!(output.status.success());
    let threads = |arguments: &[&str]| {
        let output = command(&[&["info", "--json"], arguments].concat())
            .env("APL_FFI_THREADS", "3")
            .output()
            .unwrap();
        let info: Value = serde_json::from_slice(&output.stdout).unwrap();
        info["threads"].as_u64().unwrap()
    };
    assert_eq!(threads(&[]), 3);
    assert_eq!(threads(&["--threads", "2"]), 2);
    let output = command(&["info"])
        .env("APL_FFI_THREADS", "many")
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("APL_FFI_THREADS"), "{error}");
    // Nothing is computed by these: the environment of computing does not matter.
    for arguments in [
        &["models"][..],
        &["inspect", "demo"],
        &["completions", "fish"],
    ] {
        let output = command(arguments)
            .env("APL_FFI_BACKEND", "none")
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}");
    }
    let output = command(&["info"])
        .env("APL_FFI_BACKEND", "none")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn help_shows_how() {
    for verb in [
        "convert",
        "run",
        "validate",
        "compare",
        "perplexity",
        "bench",
    ] {
        let help = succeeds(&[verb, "--help"]);
        assert!(help.contains("Example"), "{help}");
        assert!(help.contains(&format!("  apl-ffi {verb}")), "{help}");
    }
    let help = succeeds(&["--help"]);
    for name in [
        "APL_FFI_MODELS",
        "APL_FFI_THREADS",
        "APL_FFI_BACKEND",
        "HF_TOKEN",
    ] {
        assert!(help.contains(name), "{help}");
    }
    let version = format!("apl-ffi {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(succeeds(&["--version"]), version);
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let script = succeeds(&["completions", shell]);
        assert!(
            script.contains("apl-ffi") && script.contains("perplexity"),
            "{shell}"
        );
    }
}

#[test]
fn a_tour_wants_a_terminal() {
    let error = fails(2, &["quickstart"]);
    assert_eq!(
        error,
        "apl-ffi: the tour asks questions, and stdin is not a terminal: run it in one\n"
    );
}
