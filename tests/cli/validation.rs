//! `apl-ffi validate`: what it finds, what it writes, and how bad input ends.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use super::{fails, succeeds};

const COMMITTED: &str = "tests/data/validation/baselines.safetensors";

fn report(arguments: &[&str]) -> Value {
    serde_json::from_str(&succeeds(&[arguments, &["--json"]].concat())).unwrap()
}

#[test]
fn a_quick_look_writes_a_report_and_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("report");
    let told = succeeds(&["validate", "--quick", "--out", out.to_str().unwrap()]);
    assert!(
        told.contains("results passed") && told.contains("perplexity"),
        "{told}"
    );
    let json = fs::read_to_string(out.join("accuracy_validation_results.json")).unwrap();
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["passed"], true);
    assert_eq!(report["model"], "stories");
    let results = report["results"].as_array().unwrap();
    let scenarios: BTreeSet<&str> = results
        .iter()
        .map(|r| r["scenario"].as_str().unwrap())
        .collect();
    for name in [
        "dense 32x64, Gaussian",
        "dense 256x512, Gaussian",
        "dense 256x512, outlier columns",
        "dense 256x512, heavy tails",
        "multi-head attention",
        "transformer layer",
        "stories, layer 1",
        "stories, layer 5",
        "stories, logits",
        "stories, end to end",
    ] {
        assert!(scenarios.contains(name), "{name}: {scenarios:?}");
    }
    // PyTorch read the same model.
    let checks = report["baselines"].as_array().unwrap();
    assert!(
        checks
            .iter()
            .any(|c| c["scenario"] == "stories, logits" && c["passed"] == true)
    );
    for r in results {
        let number = |key: &str| r[key].as_f64().unwrap();
        assert!(number("relative_error") <= number("tolerance"), "{r}");
        assert!(number("kernel_error") <= number("kernel_tolerance"), "{r}");
        assert_ne!(r["baseline"], r["quantised"], "{r}");
        if r["scenario"].as_str().unwrap().ends_with("Gaussian") {
            assert_eq!(r["within_named"], true, "{r}");
        }
    }
    let end = results
        .iter()
        .find(|r| r["scenario"] == "stories, end to end" && r["bits"] == 8)
        .unwrap();
    assert!(end["model"]["same_top"].as_f64().unwrap() > 0.98, "{end}");

    let page = fs::read_to_string(out.join("accuracy_validation_results.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    assert!(page.matches("<svg viewBox").count() > 10);
    // Nothing is fetched and nothing runs.
    for word in ["http://", "https://", "<script", "src=", "url(", "NaN"] {
        assert!(!page.contains(word), "the page has {word}");
    }
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
}

#[test]
fn a_converted_model_beside_its_source() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let good = report(&[
        "validate",
        "demo",
        "--reference",
        "models/stories",
        "--activations",
        "int8",
        "--out",
        out,
    ]);
    let of_model = |r: &&Value| r["scenario"].as_str().unwrap().ends_with("end to end");
    let ends: Vec<&Value> = good["results"]
        .as_array()
        .unwrap()
        .iter()
        .filter(of_model)
        .collect();
    assert_eq!(ends.len(), 1, "one form, one kind of inputs");
    assert_eq!(
        (ends[0]["bits"].as_u64(), ends[0]["group"].as_u64()),
        (Some(8), Some(32))
    );

    // What rounds worse than the best scales do is told from them.
    let model = folder.path().join("nearest");
    let model = model.to_str().unwrap();
    succeeds(&[
        "convert",
        "models/stories",
        "--bits",
        "2",
        "--group",
        "128",
        "--method",
        "nearest",
        "--out",
        model,
    ]);
    let error = fails(
        1,
        &[
            "validate",
            model,
            "--reference",
            "models/stories",
            "--activations",
            "f32",
            "--bits",
            "8",
            "--group",
            "32",
            "--out",
            out,
        ],
    );
    assert!(error.contains("results did not pass"), "{error}");
}

#[test]
fn bad_input_is_one_line_and_an_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let out = folder.path().to_str().unwrap();
    let committed = fs::read(COMMITTED).unwrap();
    let mut damaged = committed.clone();
    damaged[200_000] ^= 1;
    let damaged = file("damaged", &damaged);
    let short = file("short", &committed[..5000]);
    let (empty, blank) = (file("empty.txt", b""), file("blank.txt", b" \n\n"));
    let taken = file("taken", b"");
    let below = format!("{taken}/below");
    let plain = ["validate", "--out", out];
    for (code, arguments, said) in [
        (
            4,
            &["--no-model", "--baselines", &damaged][..],
            "damaged: the sha256",
        ),
        (
            4,
            &["--no-model", "--baselines", &short],
            "damaged: the sha256",
        ),
        (
            4,
            &["--no-model", "--baselines", "README.md"],
            "not a file of baselines",
        ),
        (
            3,
            &["--no-model", "--baselines", "no/such/file"],
            "cannot be read",
        ),
        (
            3,
            &["no/such/model"],
            "there is no folder or file no/such/model here",
        ),
        (4, &["README.md"], "README.md"),
        (4, &["tests/data"], "tests/data"),
        (2, &["--text", &empty], "is empty, expected a text"),
        (2, &["--text", &blank], "is empty, expected a text"),
        (3, &["--text", "no/such/text"], "cannot be read"),
        (2, &["demo"], "--reference says which float model"),
        (2, &["demo", "--reference", "demo"], "is quantised already"),
        (
            2,
            &["models/stories", "--reference", "models/stories"],
            "none of its matrices is quantised",
        ),
        (
            2,
            &["demo", "--reference", "tests/data/models/llama-linear"],
            "stretched rotary",
        ),
        (
            2,
            &["--backend", "cpu/abacus"],
            "this machine has cpu/scalar",
        ),
        (
            3,
            &["--no-model", "--quick", "--out", &taken],
            "is a file, expected a folder",
        ),
        (
            3,
            &["--no-model", "--quick", "--out", &below],
            "cannot be made",
        ),
    ] {
        let code = if said == "stretched rotary" { 4 } else { code };
        let all = match arguments.contains(&"--out") {
            true => [&plain[..1], arguments].concat(),
            false => [&plain[..], arguments].concat(),
        };
        let error = fails(code, &all);
        assert!(error.contains(said), "{arguments:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    // What the arguments themselves say, as clap tells it.
    let error = fails(2, &["validate", "--bits", "3"]);
    assert!(error.contains("expected 1, 2, 4 or 8"), "{error}");
    fails(2, &["validate", "--reference", "models/stories"]);
    fails(2, &["validate", "--no-model", "--text", "README.md"]);
}
