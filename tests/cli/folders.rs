//! Where conversions go: no model loses anything to another.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{fails, succeeds};

const STORIES: &str = "models/stories";
const QWEN: &str = "tests/data/models/qwen2";

/// A copy of a model, in a folder of its own that is called `model`.
fn copied(from: &str, to: &Path) -> PathBuf {
    let (from, to) = (
        Path::new(env!("CARGO_MANIFEST_DIR")).join(from),
        to.join("model"),
    );
    fs::create_dir_all(&to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    to
}

/// Every file of a folder.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .filter(|e| e.path().is_file())
        .map(|e| {
            (
                e.file_name().into_string().unwrap(),
                fs::read(e.path()).unwrap(),
            )
        })
        .collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn convert<'a>(source: &'a str, out: &'a Path) -> [&'a str; 8] {
    let out = text(out);
    [
        "convert", source, "--bits", "8", "--group", "8", "--out", out,
    ]
}

/// Asserts that a conversion is refused by a line that says `why`, and that the folder is as it was.
fn refused(source: &str, out: &Path, why: &str) {
    let before = contents(out);
    let error = fails(2, &convert(source, out));
    assert!(error.contains(why), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(
        contents(out) == before,
        "{source} changed {}",
        out.display()
    );
}

#[test]
fn a_second_model_with_another_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path();
    succeeds(&convert(STORIES, out));
    refused(QWEN, out, "has a tokenizer.json of ");
    // Nor does one without a tokenizer take over what is there.
    let without = copied(STORIES, &folder.path().join("source"));
    for file in [
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ] {
        let _ = fs::remove_file(without.join(file));
    }
    let elsewhere = tempfile::tempdir().unwrap();
    succeeds(&convert(STORIES, elsewhere.path()));
    refused(text(&without), elsewhere.path(), "has a tokenizer.json of ");
    // Nor is it given one.
    let bare = tempfile::tempdir().unwrap();
    succeeds(&convert(text(&without), bare.path()));
    refused(STORIES, bare.path(), "a model without the tokenizer.json");
    // One that has the same may lie beside it.
    let same = copied(STORIES, &folder.path().join("same"));
    succeeds(&convert(text(&same), elsewhere.path()));
    assert!(elsewhere.path().join("model.json").is_file());
    assert!(elsewhere.path().join("stories.json").is_file());
}

#[test]
fn files_of_nobody_we_know() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokenizer_config.json");
    fs::write(&file, "{}").unwrap();
    refused(
        STORIES,
        folder.path(),
        "has a tokenizer_config.json of no manifest",
    );
    fs::remove_file(file).unwrap();
    fs::write(folder.path().join("stories.json"), "{}").unwrap();
    refused(
        STORIES,
        folder.path(),
        "has a stories.json that is no manifest",
    );
}

#[test]
fn the_source_and_other_models_as_they_were_published() {
    let folder = tempfile::tempdir().unwrap();
    let source = copied(STORIES, folder.path());
    refused(text(&source), &source, "is the folder of the source");
    refused(QWEN, &source, "of a model in the Hugging Face layout");
    let converted = folder.path().join("converted");
    succeeds(&convert(STORIES, &converted));
    refused(text(&converted), &converted, "is the folder of the source");
}

#[test]
fn a_model_replaced_by_one_with_another_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let (first, second) = (copied(STORIES, &first), copied(QWEN, &second));
    let out = folder.path().join("out");
    succeeds(&convert(text(&first), &out));
    let before = contents(&out);
    // What a crash leaves: the npz, and a tokenizer half replaced.
    fs::remove_file(out.join("model.json")).unwrap();
    fs::write(out.join("tokenizer.json"), "{}").unwrap();
    fs::write(out.join(".tokenizer.json.tmp"), "{}").unwrap();
    succeeds(&convert(text(&first), &out));
    assert_eq!(
        contents(&out).keys().collect::<Vec<_>>(),
        before.keys().collect::<Vec<_>>()
    );
    assert_eq!(contents(&out)["tokenizer.json"], before["tokenizer.json"]);

    succeeds(&convert(text(&second), &out));
    assert_ne!(contents(&out)["tokenizer.json"], before["tokenizer.json"]);
    succeeds(&["inspect", text(&out), "--verify"]);
    // Without one, that of the replaced model goes with it.
    fs::remove_file(second.join("tokenizer.json")).unwrap();
    succeeds(&convert(text(&second), &out));
    let names: Vec<String> = contents(&out).into_keys().collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn a_conversion_that_fails_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let source = copied(STORIES, folder.path());
    let out = folder.path().join("out");
    succeeds(&convert(text(&source), &out));
    let before = contents(&out);
    // Another tokenizer, and no way to write the manifest.
    let config = r#"{"chat_template": "{{ messages[0].content }}"}"#;
    fs::write(source.join("tokenizer_config.json"), config).unwrap();
    let in_the_way = out.join(".model.json.tmp");
    fs::create_dir(&in_the_way).unwrap();
    fails(3, &convert(text(&source), &out));
    assert!(contents(&out) == before);
    fs::remove_dir(in_the_way).unwrap();
    // A weight that is no number.
    let weights = source.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 4..].fill(0xff);
    fs::write(&weights, bytes).unwrap();
    fails(4, &convert(text(&source), &out));
    assert!(contents(&out) == before);
}

#[test]
fn names_that_belong_to_other_files() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("config.gguf");
    fs::copy(Path::new(QWEN).with_extension("gguf"), &source).unwrap();
    let out = folder.path().join("out");
    succeeds(&convert(text(&source), &out));
    assert!(out.join("config-model.json").is_file());
}
