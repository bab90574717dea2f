//! `apl-ffi bench` beside llama.cpp.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use serde_json::Value;

/// `bench` beside a `llama-bench` that is a script of ours, first on the PATH.
fn bench_beside(script: &str, page: Option<&str>) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("llama-bench");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap();
    Command::new(env!("CARGO_BIN_EXE_apl-ffi"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("PATH", format!("{}:{path}", folder.path().display()))
        .args([
            "bench",
            "--model",
            "tests/data/models/qwen2.gguf",
            "--threads",
            "1",
        ])
        .args(["--prompt", "7", "--tokens", "3", "--rounds", "2", "--json"])
        .args(page.map(|page| ["--html", page]).into_iter().flatten())
        .output()
        .unwrap()
}

#[test]
fn a_bench_beside_llama_cpp() {
    let asked = "-m tests/data/models/qwen2.gguf -p 7 -n 3 -t 1 -ngl 0 -r 1 -o json";
    let answer = r#"[{"n_prompt": 7, "n_gen": 0, "avg_ts": 0.5}, {"n_prompt": 0, "n_gen": 3, "avg_ts": 0.25}]"#;
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("speed.html");
    let script = format!("test \"$*\" = '{asked}' && echo '{answer}'");
    let output = bench_beside(&script, page.to_str());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let peer = &report["llama.cpp"];
    assert_eq!(peer["prompt_tokens_s"], 0.5, "{report}");
    assert_eq!(peer["text_tokens_s"], 0.25);
    let ratio = peer["text_ratio"].as_f64().unwrap();
    assert!((ratio - 4.0 * report["text_tokens_s"].as_f64().unwrap()).abs() < 1e-6 * ratio);

    assert_eq!(peer["rounds"].as_array().unwrap().len(), 2);
    assert_eq!(report["rounds"].as_array().unwrap().len(), 2);
    for key in [
        "weight_bytes",
        "bits_a_weight",
        "peak_memory_bytes",
        "first_token_s",
        "opened_s",
    ] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{key}: {report}");
    }
    let page = fs::read_to_string(page).unwrap();
    assert!(
        page.contains("llama.cpp, round 2: 0.5 tokens a second"),
        "{page}"
    );
    assert!(
        !page.contains("NaN") && !page.contains("https://"),
        "{page}"
    );

    // One that fails, or says something else, is left out with a line.
    for (script, said) in [
        ("echo no such device >&2; exit 3", "no such device"),
        ("echo hello", "expected n_prompt, n_gen and avg_ts"),
    ] {
        let output = bench_beside(script, None);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.success() && error.contains("llama-bench is left out"),
            "{error}"
        );
        assert!(error.contains(said), "{error}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report["llama.cpp"].is_null());
    }
}
