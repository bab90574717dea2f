//! Calibration of a real model, from its files to its perplexity.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Calibration, Known, quantize};
use crate::convert::{Target, convert};
use crate::error::Status;
use crate::model::source::Source;
use crate::model::{Model, ModelOptions};
use crate::options::{WeightOptions, Width};
use crate::perplexity::perplexity;
use crate::quant::{Bits, Method, ScalePrecision, Shape, Spec};
use crate::runtime::{Config, Runtime};
use crate::testing::skipped;

/// Of calls that nobody cancels.
static RUNS: AtomicBool = AtomicBool::new(false);

const STORIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/stories");

fn shared() -> Option<(PathBuf, String)> {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let text = shared.join("corpus/tinystories.txt");
    if !text.is_file() {
        skipped(format_args!("{} is not here", text.display()));
        return None;
    }
    let text = std::fs::read(text).unwrap();
    let model = shared.join("models/stories260K/stories260K.gguf");
    Some((model, String::from_utf8_lossy(&text).into_owned()))
}

#[test]
fn the_perplexity_of_a_model_falls() {
    let Some((model, text)) = shared() else {
        return;
    };
    let rt = Runtime::new(Config::default()).unwrap();
    let source = Source::open(&model, true).unwrap();
    let (scored, read) = (&text[..12_000], &text[text.len() - 60_000..]);
    let folder = tempfile::tempdir().unwrap();
    // Calibrated if it is given, and tuned in that many steps.
    let measured = |bits, calibrated: Option<usize>| {
        let options = WeightOptions {
            width: Some(Width::Codes(bits)),
            method: Method::Search,
            ..WeightOptions::default()
        };
        let mut calibration = calibrated.map(|steps| {
            let mut calibration = Calibration::new(&rt, &source, read, &RUNS).unwrap();
            if steps > 0 {
                let told = calibration.tune(&rt, &source, &options, steps, &mut |_| {});
                let (before, after) = told.unwrap();
                assert!(after < before, "{bits:?}: {before} {after}");
            }
            calibration
        });
        let report = convert(
            &rt,
            &source,
            Target {
                folder: folder.path(),
                name: "model",
            },
            &options,
            calibration.as_mut(),
            &mut |_| {},
            &RUNS,
        );
        let report = report.unwrap();
        let quantised = Model::open(&rt, &report.manifest, &ModelOptions::default()).unwrap();
        let p = perplexity(&rt, &Arc::new(quantised), scored, 256, &mut |_, _| {});
        (p.unwrap().value(), report.relative_error)
    };
    for bits in [Bits::Four, Bits::Two, Bits::One] {
        let (searched, calibrated) = (measured(bits, None), measured(bits, Some(0)));
        eprintln!("{bits:?}: searched {searched:?}, calibrated {calibrated:?}");
        assert!(
            calibrated.0 < searched.0,
            "{bits:?}: {calibrated:?} {searched:?}"
        );
        // The price: the weights themselves are farther from the original ones.
        assert!(calibrated.1 > searched.1);
        if bits != Bits::Four {
            let tuned = measured(bits, Some(30));
            eprintln!("{bits:?}: tuned {tuned:?}");
            assert!(tuned.0 < 0.9 * calibrated.0, "{bits:?}: {tuned:?}");
        }
    }
}

#[test]
fn a_text_that_is_too_short() {
    let Some((model, _)) = shared() else { return };
    let rt = Runtime::new(Config::default()).unwrap();
    let source = Source::open(&model, true).unwrap();
    let Err(e) = Calibration::new(&rt, &source, "Once upon a time", &RUNS) else {
        panic!("a few words were taken for a calibration text");
    };
    assert_eq!(e.status(), Status::Range);
    assert!(e.to_string().contains("expected at least 256"), "{e}");
}

/// At 8 bits there is little to gain, and a single step at the full rate loses more.
#[test]
fn tuning_that_makes_it_worse_is_discarded() {
    let rt = Runtime::new(Config::default()).unwrap();
    let source = Source::open(Path::new(STORIES), true).unwrap();
    let text = "Once upon a time there was a girl who had a dog. ".repeat(40);
    let mut calibration = Calibration::new(&rt, &source, &text, &RUNS).unwrap();
    let options = WeightOptions {
        width: Some(Width::Codes(Bits::Eight)),
        ..WeightOptions::default()
    };
    let told = calibration.tune(&rt, &source, &options, 1, &mut |_| {});
    let (before, after) = told.unwrap();
    assert!(0.0 < before && before < after, "{before} {after}");
    assert!(calibration.norm("model.norm.weight").is_none());
    let name = "model.layers.0.mlp.down_proj.weight";
    let known = calibration.known(&rt, name).unwrap();
    assert!(matches!(known, Known::Inputs(_)), "{known:?}");
}

/// Whatever it was about to do, it does not do.
#[test]
fn a_calibration_can_be_cancelled() {
    let rt = Runtime::new(Config::default()).unwrap();
    let source = Source::open(Path::new(STORIES), true).unwrap();
    let text = "Once upon a time there was a girl who had a dog. ".repeat(40);
    let cancelled = AtomicBool::new(false);
    let mut calibration = Calibration::new(&rt, &source, &text, &cancelled).unwrap();
    let name = "model.layers.0.mlp.down_proj.weight";
    let hessian = calibration.hessian(&rt, name).unwrap().unwrap().clone();
    let mut calibration = Calibration::new(&rt, &source, &text, &cancelled).unwrap();
    cancelled.store(true, Ordering::Relaxed);
    let w = vec![1.0; hessian.cols()];
    let shape = Shape::new(1, hessian.cols(), 32);
    let spec = Spec {
        bits: Bits::Two,
        symmetric: true,
        method: Method::Search,
        scales: ScalePrecision::Auto,
    };
    let quantised = quantize(&rt, &w, shape, &spec, &hessian, &cancelled);
    let options = WeightOptions::default();
    let tuned = calibration.tune(&rt, &source, &options, 1, &mut |_| {});
    let gathered = calibration.hessian(&rt, name).map(drop);
    for e in [
        quantised.unwrap_err(),
        tuned.unwrap_err(),
        gathered.unwrap_err(),
    ] {
        assert_eq!(e.status(), Status::State, "{e}");
    }
}
