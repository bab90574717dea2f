//! A writer that dies at any of its steps leaves the old model or the new one.

use std::cell::Cell;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::{Companion, ManifestWriter, amend};
use crate::error::{Error, Result};
use crate::formats::{self, MatrixView, WeightFile};

thread_local! {
    /// The steps until the writer dies.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// A step that other processes see; fails when none is left.
pub(super) fn step(path: &Path) -> Result<()> {
    let left = LEFT.get().checked_sub(1);
    let left = left.ok_or_else(|| Error::io(format!("died before {}", path.display())))?;
    LEFT.set(left);
    Ok(())
}

/// The removal of a folder, of which each file is a step.
pub(super) fn remove_slowly(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        step(&entry.path())?;
        fs::remove_file(entry.path()).expect("it was there");
    }
    step(path)
}

/// A model's weight, and the files beside it.
struct Model {
    weight: f32,
    files: [(&'static str, Option<&'static str>); 3],
}

const OLD: Model = Model {
    weight: 1.0,
    files: [
        ("tokenizer.json", Some("old words")),
        ("tokenizer_config.json", Some("old template")),
        ("generation_config.json", None),
    ],
};

const NEW: Model = Model {
    weight: 2.0,
    files: [
        ("tokenizer.json", Some("new words")),
        ("tokenizer_config.json", None),
        ("generation_config.json", Some("new temperature")),
    ],
};

fn write(folder: &Path, model: &Model) -> Result<()> {
    let mut writer = ManifestWriter::create(&folder.join("m.json"))?;
    writer.vector("v", &[model.weight])?;
    let companion = |(name, text): (&'static str, Option<&str>)| Companion {
        name,
        text: text.map(str::to_owned),
    };
    let files = model.files.map(companion);
    writer.finish(Map::new(), Map::new(), &files).map(drop)
}

/// Whether what the manifest leads to is this model.
fn is(folder: &Path, model: &Model) -> bool {
    let file = formats::open(&folder.join("m.json"), false).expect("there is always a model");
    let WeightFile::Manifest(manifest) = &file else {
        panic!("not a manifest")
    };
    let beside = manifest.companions().expect("they are there");
    let MatrixView::Floats(weight) = file.vector("v").expect("its arrays are there") else {
        panic!("not floats")
    };
    *weight.to_f32().unwrap() == [model.weight]
        && (model.files.iter())
            .all(|(name, text)| fs::read_to_string(beside.join(name)).ok().as_deref() == *text)
}

#[test]
fn whenever_the_writer_dies_there_is_the_old_model_or_the_new_one() {
    let (mut old, mut new) = (0, 0);
    for steps in 0.. {
        let folder = TempDir::new().unwrap();
        write(folder.path(), &OLD).unwrap();
        let died = dies_after(steps, || write(folder.path(), &NEW));
        match (is(folder.path(), &OLD), is(folder.path(), &NEW)) {
            (true, false) => old += 1,
            (false, true) => new += 1,
            neither => panic!("after {steps} steps: {neither:?}"),
        }
        // The next writers may die too, in either direction; one that does not completes its model.
        for next in [[&NEW, &OLD], [&OLD, &NEW]] {
            for more in 0.. {
                let copy = TempDir::new().unwrap();
                copy_folder(folder.path(), copy.path());
                let died = dies_after(more, || write(copy.path(), next[0]));
                let name = format!("after {steps} and {more} steps");
                assert!(is(copy.path(), &OLD) || is(copy.path(), &NEW), "{name}");
                write(copy.path(), next[1]).unwrap();
                assert!(is(copy.path(), next[1]), "{name}");
                assert_eq!(names(copy.path()), names_of(next[1]), "{name}");
                if !died {
                    break;
                }
            }
        }
        if !died {
            break;
        }
    }
    assert!(old >= 3 && new >= 5, "{old} and {new}");
}

/// Whether the writer ended early.
fn dies_after(steps: usize, write: impl FnOnce() -> Result<()>) -> bool {
    LEFT.set(steps);
    let died = write().is_err();
    let died = died || LEFT.get() == 0;
    LEFT.set(usize::MAX);
    died
}

#[test]
fn companions_that_are_gone_are_missed() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), &OLD).unwrap();
    let path = folder.path().join("m.json");
    let text = fs::read_to_string(&path).unwrap();
    let named = text.replace("\"sha256\"", "\"companions\": \"gone\", \"sha256\"");
    fs::write(&path, named).unwrap();
    let error = formats::open(&path, false).err().expect("they are gone");
    assert!(error.to_string().contains("gone"), "{error}");
}

/// What is measured of a model is not written into the manifest of another one.
#[test]
fn only_the_model_that_was_measured_is_amended() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), &OLD).unwrap();
    let path = folder.path().join("m.json");
    let read = || -> Value { serde_json::from_slice(&fs::read(&path).unwrap()).unwrap() };
    let before = read();
    let sha256 = before["model"]["sha256"].as_str().unwrap();
    let more = Map::from_iter([("perplexity".to_owned(), json!(2.5))]);
    write(folder.path(), &NEW).unwrap();
    let other = read();
    assert!(!amend(&path, sha256, "accuracy", more.clone()).unwrap());
    assert_eq!(read(), other);
    fs::write(&path, "{}").unwrap();
    assert!(!amend(&path, sha256, "accuracy", more.clone()).unwrap());
    write(folder.path(), &OLD).unwrap();
    assert!(amend(&path, sha256, "accuracy", more).unwrap());
    assert_eq!(read()["accuracy"], json!({"perplexity": 2.5}));
}

/// The files of a folder except arrays, sorted.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = (folder.read_dir().unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".npz"))
        .collect();
    names.sort();
    names
}

/// The files that a model has there.
fn names_of(model: &Model) -> Vec<String> {
    let files = model.files.iter();
    let files = files.filter_map(|(name, text)| text.map(|_| (*name).to_owned()));
    let mut names: Vec<_> = files.chain(["m.json".to_owned()]).collect();
    names.sort();
    names
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in from.read_dir().unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir(&to).unwrap();
            copy_folder(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}
