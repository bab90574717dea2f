use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use tempfile::TempDir;

use super::{Progress, convert, verify};
use crate::calibrate::Calibration;
use crate::error::{Result, Status};
use crate::model::source::Source;
use crate::options::{WeightOptions, Width};
use crate::quant::{Bits, Method};
use crate::runtime::{Config, Runtime};

const STORIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/stories");
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo");

/// Converts, and is cancelled at the step that `at` names.
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
    let out = (out, "model");
    convert(&rt, &source, out, &options, None, &mut progress, &cancelled).map(drop)
}

/// Whatever it was doing, a conversion that is cancelled says what there is now, and that is so.
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

/// The manifest tells how its codes were chosen, and of codes that were there before that they were.
#[test]
fn the_method_that_a_manifest_names() {
    let rt = Runtime::new(Config::default()).unwrap();
    let text = "one two three four five six seven eight nine ten ".repeat(40);
    for (model, width, calibrated, method) in [
        (STORIES, Some(Width::Codes(Bits::Two)), false, "search"),
        (STORIES, Some(Width::Codes(Bits::Two)), true, "calibrated"),
        (DEMO, None, false, "copied"),
        (DEMO, None, true, "copied"),
        (DEMO, Some(Width::Codes(Bits::Four)), true, "calibrated"),
    ] {
        let source = Source::open(Path::new(model), true).unwrap();
        let mut calibration = calibrated.then(|| Calibration::new(&rt, &source, &text).unwrap());
        let options = WeightOptions {
            width,
            method: Method::Search,
            ..WeightOptions::default()
        };
        let folder = TempDir::new().unwrap();
        let report = convert(
            &rt,
            &source,
            (folder.path(), "model"),
            &options,
            calibration.as_mut(),
            &mut |_| {},
            &AtomicBool::new(false),
        );
        let manifest = std::fs::read(report.unwrap().manifest).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(
            manifest["quantization"]["method"], method,
            "{model} {width:?} {calibrated}"
        );
    }
}
