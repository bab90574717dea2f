//! A writer that dies at any of its steps leaves the old model or the new one.

use std::cell::Cell;
use std::fs;
use std::path::Path;

use serde_json::Map;
use tempfile::TempDir;

use super::{Companion, ManifestWriter};
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
    writer.finish(Map::new(), Map::new(), &model.files.map(companion))
}

/// Whether what the manifest leads to is this model.
fn is(folder: &Path, model: &Model) -> bool {
    let file = formats::open(&folder.join("m.json"), false).expect("there is always a model");
    let WeightFile::Manifest(manifest) = &file else {
        panic!("not a manifest")
    };
    let MatrixView::Floats(weight) = file.vector("v").expect("its arrays are there") else {
        panic!("not floats")
    };
    *weight.to_f32().unwrap() == [model.weight]
        && (model.files.iter()).all(|(name, text)| {
            fs::read_to_string(manifest.companions().join(name))
                .ok()
                .as_deref()
                == *text
        })
}

#[test]
fn whenever_the_writer_dies_there_is_the_old_model_or_the_new_one() {
    let (mut old, mut new) = (0, 0);
    for steps in 0.. {
        let folder = TempDir::new().unwrap();
        write(folder.path(), &OLD).unwrap();
        LEFT.set(steps);
        let died = write(folder.path(), &NEW).is_err();
        LEFT.set(usize::MAX);
        match (is(folder.path(), &OLD), is(folder.path(), &NEW)) {
            (true, false) => old += 1,
            (false, true) => new += 1,
            neither => panic!("after {steps} steps: {neither:?}"),
        }
        // Whatever is left, the next writer completes, in either direction.
        for next in [&NEW, &OLD] {
            let copy = TempDir::new().unwrap();
            copy_folder(folder.path(), copy.path());
            write(copy.path(), next).unwrap();
            assert!(is(copy.path(), next), "after {steps} steps");
            let mut names: Vec<_> = (copy.path().read_dir().unwrap())
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.retain(|name| !name.ends_with(".npz"));
            names.sort();
            let mut wanted: Vec<_> = (next.files.iter())
                .filter_map(|(name, text)| text.map(|_| *name))
                .collect();
            wanted.push("m.json");
            wanted.sort_unstable();
            assert_eq!(names, wanted, "after {steps} steps");
        }
        if !died {
            break;
        }
    }
    assert!(old >= 3 && new >= 5, "{old} and {new}");
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
