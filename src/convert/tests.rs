use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::{Progress, Target, convert, verify};
use crate::calibrate::Calibration;
use crate::error::{Result, Status};
use crate::formats::{ManifestWriter, MatrixRef, MatrixView};
use crate::model::source::{Role, Source, architecture_to_json};
use crate::model::{Logits, Model, ModelOptions, Session, SessionOptions};
use crate::options::{WeightOptions, Width};
use crate::quant::{Bits, Method, ScalePrecision, Shape, Spec};
use crate::runtime::{Config, Runtime};
use crate::testing::copy_of;

const STORIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/stories");
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo");

fn model_in(folder: &Path) -> Target<'_> {
    Target {
        folder,
        name: "model",
    }
}

/// Runs a conversion that is cancelled at the step selected by `at`.
fn cancelled_at(out: &Path, at: fn(&Progress<'_>) -> bool) -> Result<()> {
    let rt = Runtime::new(Config::default())?;
    let cancelled = AtomicBool::new(false);
    let mut progress = |step: Progress<'_>| {
        if at(&step) {
            cancelled.store(true, Ordering::Relaxed);
        }
    };
    let options = WeightOptions {
        method: Method::Nearest,
        ..WeightOptions::default()
    };
    let source = Source::open(Path::new(STORIES), true)?;
    let out = model_in(out);
    convert(&rt, &source, out, &options, None, &mut progress, &cancelled).map(drop)
}

/// A cancelled conversion reports what is left on disk, at every step, and the report is true.
#[test]
fn cancelled_at_every_step() {
    let said = |e: crate::error::Error| {
        assert_eq!(e.status(), Status::State, "{e}");
        e.to_string()
    };
    let folder = TempDir::new().unwrap();
    for early in [
        |s: &Progress<'_>| matches!(s, Progress::Begin { .. }),
        |s: &Progress<'_>| matches!(s, Progress::Tensor { name, .. } if name.contains("layers.3")),
    ] {
        let e = said(cancelled_at(folder.path(), early).unwrap_err());
        assert_eq!(e, "interrupted: nothing was changed");
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }
    for (late, what) in [
        (
            (|s| matches!(s, Progress::Checking)) as fn(&Progress<'_>) -> bool,
            "model.json is written, and was not checked",
        ),
        (
            |s| matches!(s, Progress::Comparing),
            "model.json is written, and was not compared with its source",
        ),
    ] {
        let folder = TempDir::new().unwrap();
        let e = said(cancelled_at(folder.path(), late).unwrap_err());
        assert!(e.starts_with("interrupted: ") && e.ends_with(what), "{e}");
        let written = Source::open(&folder.path().join("model.json"), true).unwrap();
        verify(&written, &mut |_| Ok(())).unwrap();
    }
}

/// What converting a model into a new folder gives; nothing is left there if it fails.
fn refusal(source: &Source) -> crate::error::Error {
    let rt = Runtime::new(Config::default()).unwrap();
    let out = TempDir::new().unwrap();
    let options = WeightOptions::default();
    let (target, go_on) = (model_in(out.path()), AtomicBool::new(false));
    let e = convert(&rt, source, target, &options, None, &mut |_| {}, &go_on).unwrap_err();
    assert_eq!(out.path().read_dir().unwrap().count(), 0);
    e
}

/// Many models were given a token for padding, and no row for it.
#[test]
fn a_tokenizer_with_an_added_token_that_the_model_lacks() {
    let rt = Runtime::new(Config::default()).unwrap();
    let folder = copy_of(STORIES);
    let path = folder.path().join("tokenizer.json");
    let text = fs::read_to_string(&path).unwrap();
    let added = r#""added_tokens":[{"id":512,"content":"<pad>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},"#;
    fs::write(&path, text.replace(r#""added_tokens":["#, added)).unwrap();
    let source = Source::open(folder.path(), true).unwrap();
    let out = TempDir::new().unwrap();
    let (target, go_on) = (model_in(out.path()), AtomicBool::new(false));
    let options = WeightOptions::default();
    let report = convert(&rt, &source, target, &options, None, &mut |_| {}, &go_on).unwrap();
    assert!(report.agreement.is_some());
    let model = Model::open(&rt, &report.manifest, &ModelOptions::default()).unwrap();
    let ids = model.tokenizer().unwrap().encode("<pad>", None).unwrap();
    assert_eq!(ids, [512]);
    let mut session = Session::new(&rt, model.into(), &SessionOptions::default()).unwrap();
    let e = session.eval(&rt, &ids, Logits::None).unwrap_err();
    assert_eq!(e.to_string(), "ids[0] is 512, expected 0 to 511");
}

/// What could not be opened afterwards is not written.
#[test]
fn a_tokenizer_with_more_tokens_than_the_model() {
    let folder = copy_of(STORIES);
    let path = folder.path().join("tokenizer.json");
    let text = fs::read_to_string(&path).unwrap();
    let more = r#""vocab":{"more":512,"#;
    assert_eq!(text.matches(r#""vocab":{"#).count(), 1);
    fs::write(&path, text.replace(r#""vocab":{"#, more)).unwrap();
    let e = refusal(&Source::open(folder.path(), true).unwrap());
    assert_eq!(e.status(), Status::Format);
    let message = e.to_string();
    assert!(
        message.ends_with("the tokenizer has 513 tokens, the model 512"),
        "{message}"
    );
}

/// A source that was replaced would give the weights of one model and the tokenizer of another.
#[test]
fn a_source_that_was_replaced() {
    let folder = copy_of(DEMO);
    let source = Source::open(folder.path(), true).unwrap();
    let manifest = folder.path().join("stories.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(
        &manifest,
        text.replace("\"vocab_size\"", "\"vocabulary_size\""),
    )
    .unwrap();
    // Its tokenizer may be damaged, or another.
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    let e = refusal(&source);
    assert_eq!(e.status(), Status::Io);
    assert!(e.to_string().contains("replaced"), "{e}");
}

/// Of a result that another conversion has replaced, and against a source that was replaced, nothing
/// is reported or recorded.
#[test]
fn what_is_replaced_is_not_measured() {
    let rt = Runtime::new(Config::default()).unwrap();
    let change = |manifest: &Path, from: &str, to: &str| {
        let text = fs::read_to_string(manifest).unwrap();
        assert!(text.contains(from));
        fs::write(manifest, text.replacen(from, to, 1)).unwrap();
    };
    let converted = |at: fn(&Progress<'_>) -> bool, replaces_source: bool| {
        let (folder, out) = (copy_of(DEMO), TempDir::new().unwrap());
        let source = Source::open(folder.path(), true).unwrap();
        let target = model_in(out.path());
        let replaced = match replaces_source {
            true => folder.path().join("stories.json"),
            false => target.manifest(),
        };
        let mut progress = |step: Progress<'_>| {
            if at(&step) {
                change(&replaced, "\"sha256\": \"", "\"sha256\": \"0");
            }
        };
        let (options, go_on) = (WeightOptions::default(), AtomicBool::new(false));
        let report = convert(&rt, &source, target, &options, None, &mut progress, &go_on);
        let written = fs::read(target.manifest()).unwrap();
        let written: Value = serde_json::from_slice(&written).unwrap();
        assert_eq!(written["accuracy"]["compared"], Value::Null);
        report
    };
    let checking: fn(&Progress<'_>) -> bool = |s| matches!(s, Progress::Checking);
    let comparing: fn(&Progress<'_>) -> bool = |s| matches!(s, Progress::Comparing);
    let e = converted(checking, false).unwrap_err();
    assert_eq!(e.status(), Status::Io);
    assert!(
        e.to_string().contains("replaced by another conversion"),
        "{e}"
    );
    for replaces_source in [false, true] {
        let report = converted(comparing, replaces_source).unwrap();
        assert!(report.tokenizer && report.agreement.is_none());
    }
}

/// The manifest has the method by which codes were chosen, or that they were taken as stored.
#[test]
fn the_method_that_a_manifest_names() {
    let rt = Runtime::new(Config::default()).unwrap();
    let runs = AtomicBool::new(false);
    let text = "one two three four five six seven eight nine ten ".repeat(40);
    for (model, width, calibrated, method) in [
        (STORIES, Some(Width::Codes(Bits::Two)), false, "search"),
        (STORIES, Some(Width::Codes(Bits::Two)), true, "calibrated"),
        (DEMO, None, false, "copied"),
        (DEMO, None, true, "copied"),
        (DEMO, Some(Width::Codes(Bits::Four)), true, "calibrated"),
    ] {
        let source = Source::open(Path::new(model), true).unwrap();
        let mut calibration =
            calibrated.then(|| Calibration::new(&rt, &source, &text, &runs).unwrap());
        let options = WeightOptions {
            width,
            method: Method::Search,
            ..WeightOptions::default()
        };
        let folder = TempDir::new().unwrap();
        let report = convert(
            &rt,
            &source,
            model_in(folder.path()),
            &options,
            calibration.as_mut(),
            &mut |_| {},
            &AtomicBool::new(false),
        );
        let manifest = fs::read(report.unwrap().manifest).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(
            manifest["quantization"]["method"], method,
            "{model} {width:?} {calibrated}"
        );
    }
}

/// A model whose matrices are floats, except one with codes.
fn mixed(rt: &Runtime, folder: &Path, quantised: &str) -> Source {
    let source = Source::open(Path::new(STORIES), true).unwrap();
    let path = folder.join("mixed.json");
    let mut writer = ManifestWriter::create(&path).unwrap();
    for tensor in source.tensors() {
        let name = &tensor.name;
        if tensor.role == Role::Vector {
            writer.vector(name, &source.vector(name).unwrap()).unwrap();
            continue;
        }
        let MatrixView::Floats(floats) = source.matrix(name).unwrap() else {
            panic!("{name} is quantised");
        };
        let made;
        let matrix = if name == quantised {
            let spec = Spec {
                bits: Bits::Eight,
                symmetric: true,
                method: Method::Nearest,
                scales: ScalePrecision::Auto,
            };
            let shape = Shape::new(floats.rows, floats.cols, 32);
            let w = floats.to_f32().unwrap();
            made = crate::weights::quantize(rt, &w, shape, &spec).unwrap();
            MatrixRef::Codes(made.as_codes())
        } else {
            MatrixRef::Floats(floats)
        };
        writer.matrix(name, &matrix, Map::new()).unwrap();
    }
    let object = |value: Value| value.as_object().unwrap().clone();
    let model = object(json!({"primary_family": "llama"}));
    let architecture = architecture_to_json(source.architecture());
    let fields = object(json!({ "architecture": architecture }));
    writer.finish(model, fields, &[]).unwrap();
    Source::open(&path, true).unwrap()
}

/// The error of a model covers all of its matrices, including those taken as stored without loss.
#[test]
fn the_error_of_a_model_that_is_quantised_in_part() {
    let rt = Runtime::new(Config::default()).unwrap();
    let folder = TempDir::new().unwrap();
    let source = mixed(&rt, folder.path(), "model.embed_tokens.weight");
    let out = folder.path().join("out");
    let options = WeightOptions {
        method: Method::Nearest,
        ..WeightOptions::default()
    };
    let report = convert(
        &rt,
        &source,
        model_in(&out),
        &options,
        None,
        &mut |_| {},
        &AtomicBool::new(false),
    );
    let report = report.unwrap();
    let written = Source::open(&report.manifest, true).unwrap();
    let (mut squares, mut differences) = (0.0, 0.0);
    for spec in source.tensors().iter().filter(|s| s.role == Role::Matrix) {
        let (before, after) = (
            source.matrix(&spec.name).unwrap(),
            written.matrix(&spec.name).unwrap(),
        );
        let (rows, cols) = before.shape();
        let (mut w, mut q) = (vec![0.0; cols], vec![0.0; cols]);
        for r in 0..rows {
            before.row(r, &mut w);
            after.row(r, &mut q);
            for (&w, &q) in w.iter().zip(&q) {
                squares += f64::from(w).powi(2);
                differences += (f64::from(w) - f64::from(q)).powi(2);
            }
        }
    }
    let expected = f64::sqrt(differences / squares);
    let widths: Vec<usize> = report.matrices.iter().map(|m| m.bits).collect();
    assert!(widths.contains(&8) && widths.contains(&4), "{widths:?}");
    assert!(
        (report.relative_error / expected - 1.0).abs() < 1e-9,
        "{} {expected}",
        report.relative_error
    );
}
