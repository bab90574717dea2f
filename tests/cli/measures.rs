//! What the verbs that measure do to a file before they measure it: nothing, unless asked to.

use serde_json::Value;

use super::{apl_ffi, succeeds};

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&succeeds(&[arguments, &["--json"]].concat())).unwrap()
}

#[test]
fn a_conversion_that_keeps_floats_is_compared_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    // Its weights are float16 in truth.
    for bits in ["32", "16"] {
        let report = json(&["convert", "models/stories", "--bits", bits, "--out", out]);
        assert_eq!(report["compared"]["kl_nats"], 0.0, "{}", report["compared"]);
        let found = json(&["compare", out, "models/stories"]);
        assert_eq!(found, report["compared"]);
    }
}

#[test]
fn a_file_is_measured_as_it_is() {
    let perplexity = |more: &[&str]| {
        let text = [
            "perplexity",
            "models/stories",
            "models/stories/README.md",
            "--window",
            "64",
        ];
        let found = json(&[&text, more].concat());
        found["perplexity"].as_f64().unwrap()
    };
    let kept = perplexity(&[]);
    assert_eq!(kept, perplexity(&["--bits", "32"]));
    assert_ne!(kept, perplexity(&["--bits", "4"]));
    let found = json(&["compare", "models/stories", "models/stories"]);
    assert_eq!(found["kl_nats"], 0.0, "{found}");
    let found = json(&["compare", "models/stories", "models/stories", "--bits", "4"]);
    assert!(found["kl_nats"].as_f64().unwrap() > 0.0, "{found}");
}

#[test]
fn types_are_told_as_the_file_has_them() {
    let found = json(&["inspect", "models/stories"]);
    for tensor in found["tensors"].as_array().unwrap() {
        let matrix = tensor["shape"].as_array().unwrap().len() == 2;
        assert_eq!(tensor["type"], if matrix { "float16" } else { "vector" });
    }
}

#[test]
fn what_running_does_to_floats_is_told() {
    let told = |arguments: &[&str]| {
        let output = apl_ffi(&[&["run"], arguments, &["-n", "1", "-q"]].concat());
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(
        told(&["models/stories"]),
        "F16 weights quantised to 4 bits; --bits 32 keeps them\n"
    );
    assert_eq!(told(&["models/stories", "--bits", "4"]), "");
    assert_eq!(told(&["demo"]), "");
}
