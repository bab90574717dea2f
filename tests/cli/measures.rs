//! What the verbs that measure do to a file before they measure it: nothing, unless asked to.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{apl_ffi, fails, succeeds};

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
        let sides = tensor["shape"].as_array().unwrap().iter();
        let elements: u64 = sides.map(|n| n.as_u64().unwrap()).product();
        assert_eq!(tensor["bytes"], 2 * elements, "{tensor}");
    }
    // The vectors of a manifest are float32.
    let found = json(&["inspect", "demo"]);
    let tensors = found["tensors"].as_array().unwrap();
    for vector in tensors.iter().filter(|t| t["type"] == "vector") {
        assert_eq!(vector["bytes"], 4 * vector["shape"][0].as_u64().unwrap());
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

/// The float model with a tensor whose values are all this one, of bfloat16.
fn damaged(folder: &Path, tensor: &str, value: u16) -> String {
    let model = folder.join("damaged");
    fs::create_dir_all(&model).unwrap();
    let stories = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/stories");
    for entry in fs::read_dir(stories).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let path = model.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..data]).unwrap();
    assert_eq!(header[tensor]["dtype"], "F16");
    header[tensor]["dtype"] = "BF16".into();
    let offset = |i: usize| header[tensor]["data_offsets"][i].as_u64().unwrap() as usize;
    let (begin, end) = (offset(0), offset(1));
    let header = header.to_string();
    let len = (header.len() as u64).to_le_bytes();
    let mut bytes = [&len, header.as_bytes(), &bytes[data..]].concat();
    for element in bytes[8 + header.len()..][begin..end].chunks_exact_mut(2) {
        element.copy_from_slice(&value.to_le_bytes());
    }
    fs::write(&path, bytes).unwrap();
    model.to_str().unwrap().to_owned()
}

#[test]
fn weights_that_are_no_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let model = &damaged(folder.path(), "model.layers.1.mlp.up_proj.weight", 0x7fc0);
    let out = folder.path().join("out");
    succeeds(&["inspect", model]);
    for arguments in [
        &["inspect", model, "--verify"][..],
        &["run", model],
        &["run", model, "--bits", "32"],
        &["perplexity", model, "README.md"],
        &["compare", model, "demo"],
        &["convert", model, "--out", out.to_str().unwrap()],
        &[
            "convert",
            model,
            "--out",
            out.to_str().unwrap(),
            "--calibrate",
            "README.md",
        ],
    ] {
        let error = fails(4, arguments);
        assert!(error.contains("finite"), "{error}");
        assert_eq!(error.lines().last().unwrap().matches("apl-ffi").count(), 1);
    }
    assert!(!out.exists());
}

/// Finite weights whose products are not.
#[test]
fn logits_that_are_no_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let model = &damaged(folder.path(), "model.norm.weight", 0x7f00);
    let out = folder.path().join("out");
    succeeds(&["inspect", model, "--verify"]);
    for arguments in [
        &["run", model, "Once"][..],
        &["run", model, "Once", "--activations", "f32"],
        &["perplexity", model, "README.md"],
        &["compare", model, model],
        &["convert", model, "--out", out.to_str().unwrap()],
    ] {
        let error = fails(4, arguments);
        assert!(error.contains("not finite"), "{error}");
    }
    // The message does not continue the line of the prompt.
    assert_eq!(apl_ffi(&["run", model, "Once"]).stdout, b"Once\n");
}

/// The keys in docs/json.md, in the first table of each command's section, are those that it prints.
#[test]
fn keys_of_json_as_documented() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let text = "models/stories/README.md";
    let commands: [&[&str]; 7] = [
        &["inspect", "demo"],
        &["convert", "models/demo", "--out", out],
        &["compare", "demo", "models/stories", "--text", text],
        &["perplexity", "demo", text, "--window", "64"],
        &["bench", "--prompt", "4", "--tokens", "2", "--rounds", "1"],
        &["models"],
        &["info"],
    ];
    let documented = include_str!("../../docs/json.md");
    for command in commands {
        let printed = json(command);
        let object = printed.get(0).unwrap_or(&printed).as_object().unwrap();
        let heading = format!("\n## `apl-ffi {}`\n", command[0]);
        let (_, section) = documented.split_once(&heading).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let names = |line: &str| -> Vec<String> {
            let cell = line.split('|').nth(1).unwrap_or("");
            let spans = cell.split('`').skip(1).step_by(2);
            spans.map(|key| key.trim_matches('"').into()).collect()
        };
        let mut expected: Vec<String> = section.lines().flat_map(names).collect();
        let mut found: Vec<String> = object.keys().cloned().collect();
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "{command:?}");
    }
}

/// Nothing is told of weights of a type that is not read but that, once, with the file and what is read.
#[test]
fn types_that_are_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let stories = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/stories");
    for entry in fs::read_dir(stories).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let weights = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    for i in 8..header - 5 {
        if &bytes[i..i + 5] == b"\"F16\"" {
            bytes[i + 1] = b'I';
        }
    }
    fs::write(&weights, bytes).unwrap();
    let model = folder.path().to_str().unwrap();
    let out = folder.path().join("out");
    let convert = ["convert", model, "--out", out.to_str().unwrap()];
    for arguments in [&["run", model, "One"][..], &convert] {
        let error = fails(4, arguments);
        let named = format!("apl-ffi: {}: ", weights.display());
        assert!(error.starts_with(&named), "{error}");
        assert!(
            error.ends_with(": the type I16 is unsupported; supported are F32, F16, BF16\n"),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
