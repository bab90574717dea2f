//! From a model as it was published to one of our own format: quantised, written, and looked at again.
//!
//! Tensors go through one at a time, so that the memory it takes is that of the largest matrix as float32 and its codes.

mod destination;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Map, Value, json};

use crate::agreement::{Agreement, agreement};
use crate::calibrate::{self, Calibration, Known};
use crate::error::{Error, Result};
use crate::formats::{
    self, FloatValues, FloatsView, ManifestWriter, MatrixRef, MatrixView, WeightFile,
};
use crate::matmul;
use crate::memory;
use crate::model::source::{Role, Source, architecture_to_json};
use crate::model::{Model, ModelOptions};
use crate::options::{WeightOptions, Width};
use crate::quant::{Bits, Codes, Method, ScalePrecision, Shape, Spec};
use crate::runtime::Runtime;
use crate::weights;

pub use destination::refuse;

/// The text on which a converted model is compared with its source.
pub const SAMPLE: &str = "Once upon a time there was a small boat that lived in a harbour by the sea. Every morning the \
    fisherman and his daughter took it out to look for fish. One day the wind was strong and the waves were high. \
    \"We should go home,\" said the girl, \"the sky is dark.\" Her father looked up and nodded. They turned the boat and \
    sailed back. When they came to the harbour it began to rain. They were wet and cold, but they were happy to be safe. \
    At home her mother had made a hot soup, and they sat by the fire and told her what they had seen.";

/// The most bytes that a source may have as float32 for a comparison at the end of its conversion: both models are then in memory.
const MOST_COMPARED: u64 = 1 << 30;

/// What happened to one matrix.
#[derive(Clone, Debug)]
pub struct Converted {
    /// Its canonical name.
    pub name: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Bits a code; 16 and 32 are floats.
    pub bits: usize,
    /// Bytes of codes, scales and zero points.
    pub bytes: usize,
    /// The norm of the difference over the norm of the weights; 0 where the file's own codes were taken over.
    pub relative_error: f64,
}

/// What a conversion did.
#[derive(Clone, Debug)]
pub struct Report {
    /// The manifest.
    pub manifest: PathBuf,
    /// Every matrix.
    pub matrices: Vec<Converted>,
    /// The relative error over all matrices together.
    pub relative_error: f64,
    /// Bits a weight in truth, over all matrices: scales and zero points included.
    pub bits_a_weight: f64,
    /// How it compares with its source on [`SAMPLE`]; `None` for a source of more than 1 GiB as float32, and without a tokenizer.
    pub agreement: Option<Agreement>,
}

/// What is told while it goes on.
#[derive(Clone, Debug)]
pub enum Progress<'a> {
    /// So many tensors, with so many weights, are to be done.
    Begin {
        /// Matrices and vectors.
        tensors: usize,
        /// Elements of all of them.
        weights: u64,
    },
    /// This tensor is next.
    Tensor {
        /// Its canonical name.
        name: &'a str,
        /// Its elements.
        weights: u64,
    },
    /// All are done; the files are put in place.
    Writing,
    /// What was written is opened and read.
    Checking,
    /// It and its source read a text.
    Comparing,
}

/// Converts a model: `out` is a folder, which is made if it is absent; `name` names the manifest in it.
///
/// Weights that are quantised already are taken over code by code, unless the options ask for another width. When
/// `cancelled` becomes true it ends at the next tensor. An error, or an end of the process at any moment, leaves the model that was
/// there before or the new one; where the new one has another tokenizer, an end between the last renamings leaves none.
///
/// A tokenizer's files have fixed names: the folder may have other ones only of the model that is replaced, see [`refuse`].
///
/// With a `calibration`, which is of the same source, matrices are quantised for the inputs that it gathers; `options.method` then
/// does not matter.
///
/// # Errors
/// Those of [`refuse`]; `ERR_IO`, `ERR_FORMAT` for a tensor that is not finite or not what was promised, `ERR_MEMORY`, `ERR_STATE`
/// if cancelled.
pub fn convert(
    rt: &Runtime,
    source: &Source,
    (out, name): (&Path, &str),
    options: &WeightOptions,
    mut calibration: Option<&mut Calibration>,
    progress: &mut dyn FnMut(Progress<'_>),
    cancelled: &AtomicBool,
) -> Result<Report> {
    let companions = destination::companions(source)?;
    destination::check(source, (out, name), &companions)?;
    let _made = destination::Made::folders(out)?;
    let manifest = out.join(format!("{name}.json"));
    let mut writer = ManifestWriter::create(&manifest)?;
    // Again, now that other writers wait.
    destination::check(source, (out, name), &companions)?;
    let specs = source.tensors();
    progress(Progress::Begin {
        tensors: specs.len(),
        weights: specs.iter().map(|s| elements(&s.shape)).sum(),
    });
    let mut done = Vec::new();
    let (mut squares, mut differences) = (0.0, 0.0);
    let mut quantization = None;
    // What no product tells anything about is at least searched.
    let method = match calibration {
        Some(_) => Method::Search,
        None => options.method,
    };
    let method_name = match calibration {
        Some(_) => "calibrated",
        None => method.name(),
    };
    for spec in &specs {
        if cancelled.load(Ordering::Relaxed) {
            return Err(Error::state("interrupted: nothing was changed"));
        }
        progress(Progress::Tensor {
            name: &spec.name,
            weights: elements(&spec.shape),
        });
        if spec.role == Role::Vector {
            match calibration.as_ref().and_then(|c| c.norm(&spec.name)) {
                Some(tuned) => writer.vector(&spec.name, tuned)?,
                None => writer.vector(&spec.name, &source.vector(&spec.name)?)?,
            };
            continue;
        }
        let view = source.matrix(&spec.name)?;
        let one = Matrix {
            rt,
            name: &spec.name,
            options,
            method,
            known: match &mut calibration {
                Some(calibration) => calibration.known(rt, &spec.name)?,
                None => Known::Nothing,
            },
        };
        let (converted, norms, said) = one
            .write(&mut writer, view)
            .map_err(|e| e.within(&spec.name))?;
        source.weights().forget();
        squares += norms.0;
        differences += norms.1;
        quantization.get_or_insert(said);
        done.push(converted);
    }
    if cancelled.load(Ordering::Relaxed) {
        return Err(Error::state("interrupted: nothing was changed"));
    }
    progress(Progress::Writing);
    let weights: usize = done.iter().map(|m| m.rows * m.cols).sum();
    let bytes: usize = done.iter().map(|m| m.bytes).sum();
    let mut report = Report {
        agreement: None,
        manifest: manifest.clone(),
        relative_error: (differences / f64::max(squares, f64::MIN_POSITIVE)).sqrt(),
        bits_a_weight: 8.0 * bytes as f64 / weights.max(1) as f64,
        matrices: done,
    };
    let (model, fields) = described(source, method_name, &report, quantization);
    writer.finish(model, fields, &companions)?;
    progress(Progress::Checking);
    verify(&Source::open(&manifest, true)?)?;
    let floats: u64 = specs.iter().map(|s| 4 * elements(&s.shape)).sum();
    if floats <= MOST_COMPARED {
        progress(Progress::Comparing);
        report.agreement = compared(rt, source, &manifest).map_err(|e| {
            e.within(format_args!(
                "{} is written, and compared with its source",
                manifest.display()
            ))
        })?;
    }
    Ok(report)
}

/// Compares what was written with its source, and notes the outcome in the manifest. `None` without a tokenizer.
fn compared(rt: &Runtime, source: &Source, manifest: &Path) -> Result<Option<Agreement>> {
    // What was written as it was written, float or not.
    let open = |path: &Path, width: Option<Width>| {
        let mut options = ModelOptions::default();
        options.weights.width = width;
        options.weights.keep_floats = true;
        Model::open(rt, path, &options).map(Arc::new)
    };
    let model = open(manifest, None)?;
    let Ok(tokenizer) = model.tokenizer() else {
        return Ok(None);
    };
    let mut ids = tokenizer.encode(SAMPLE, tokenizer.begins())?;
    ids.truncate(model.context());
    if ids.len() < 2 {
        return Ok(None);
    }
    let reference = open(origin(source), Some(Width::F32))?;
    let found = agreement(rt, &model, &reference, &ids, ids.len(), &mut |_, _| {})?;
    let more = Map::from_iter([("compared".to_owned(), found.to_json())]);
    formats::amend(manifest, "accuracy", more)?;
    Ok(Some(found))
}

/// What a source is opened by: its folder, or its file.
fn origin(source: &Source) -> &Path {
    match source.kind() {
        "huggingface" => source.path().parent().unwrap_or(source.path()),
        _ => source.path(),
    }
}

fn elements(shape: &[usize]) -> u64 {
    shape.iter().map(|&n| n as u64).product()
}

/// One matrix on its way.
struct Matrix<'a> {
    rt: &'a Runtime,
    name: &'a str,
    options: &'a WeightOptions,
    method: Method,
    known: Known<'a>,
}

/// Squares of the weights, and of their differences, summed.
type Norms = (f64, f64);

impl Matrix<'_> {
    fn write(
        &self,
        writer: &mut ManifestWriter,
        view: MatrixView<'_>,
    ) -> Result<(Converted, Norms, Value)> {
        let (rows, cols) = view.shape();
        finite(&view)?;
        let floats = match view {
            MatrixView::Codes(view) => {
                let codes = view.as_codes();
                if self
                    .options
                    .width
                    .is_none_or(|w| w == Width::Codes(codes.bits))
                {
                    return self.codes(writer, &codes, 0.0).map(|(c, said)| {
                        let norms = (c.relative_error, 0.0);
                        (c, norms, said)
                    });
                }
                let mut w = memory::filled(rows * cols, 0.0, "a matrix as float32")?;
                matmul::dequantize(self.rt, &codes, &mut w)?;
                w
            }
            MatrixView::Floats(view) => view.to_f32()?.into_owned(),
        };
        match self.options.width.unwrap_or(WeightOptions::DEFAULT_WIDTH) {
            Width::Codes(bits) => self.quantised(
                writer,
                &floats,
                Shape::new(rows, cols, self.options.group),
                bits,
            ),
            kept => self.floats(writer, floats, (rows, cols), kept),
        }
    }

    /// Quantises, and measures what that costs.
    fn quantised(
        &self,
        writer: &mut ManifestWriter,
        w: &[f32],
        shape: Shape,
        bits: Bits,
    ) -> Result<(Converted, Norms, Value)> {
        let spec = Spec {
            bits,
            symmetric: self.options.symmetric || bits == Bits::One,
            method: self.method,
            scales: ScalePrecision::Auto,
        };
        let made;
        let codes = match self.known {
            Known::Codes(tuned) if tuned.shape == shape && tuned.bits == bits => tuned.as_codes(),
            Known::Codes(_) => {
                return Err(Error::config(
                    "the scales were tuned for other options, expected those of the conversion",
                ));
            }
            Known::Inputs(hessian) => {
                made = calibrate::quantize(self.rt, w, shape, &spec, hessian)?;
                made.as_codes()
            }
            Known::Nothing => {
                made = weights::quantize(self.rt, w, shape, &spec)?;
                made.as_codes()
            }
        };
        let (mut squares, mut differences) = (0.0, 0.0);
        let mut row = memory::filled(shape.cols, 0.0, "a row of weights")?;
        for (r, w) in w.chunks_exact(shape.cols.max(1)).enumerate() {
            codes.dequantize_row(r, &mut row);
            for (&w, &q) in w.iter().zip(&row) {
                squares += f64::from(w) * f64::from(w);
                differences += (f64::from(w) - f64::from(q)).powi(2);
            }
        }
        let error = (differences / f64::max(squares, f64::MIN_POSITIVE)).sqrt();
        let (converted, said) = self.codes(writer, &codes, error)?;
        Ok((converted, (squares, differences), said))
    }

    fn codes(
        &self,
        writer: &mut ManifestWriter,
        codes: &Codes<'_>,
        relative_error: f64,
    ) -> Result<(Converted, Value)> {
        let Shape {
            rows, cols, groups, ..
        } = codes.shape;
        let said = writer.matrix(
            self.name,
            &MatrixRef::Codes(*codes),
            error_field(relative_error),
        )?;
        let scale_bytes = if said["scale"]["dtype"] == "float16" {
            2
        } else {
            4
        };
        let zero_bytes = usize::from(codes.zero_points.is_some());
        let converted = Converted {
            name: self.name.to_owned(),
            rows,
            cols,
            bits: codes.bits.get(),
            bytes: rows * crate::quant::packed_row_bytes(cols, codes.bits)
                + rows * groups * (scale_bytes + zero_bytes),
            relative_error,
        };
        Ok((converted, said))
    }

    /// Keeps floats: as float32, or rounded to float16.
    fn floats(
        &self,
        writer: &mut ManifestWriter,
        w: Vec<f32>,
        (rows, cols): (usize, usize),
        kept: Width,
    ) -> Result<(Converted, Norms, Value)> {
        let (mut squares, mut differences) = (0.0, 0.0);
        let (values, bits) = if kept == Width::F16 {
            let half: Vec<half::f16> = w.iter().map(|&v| half::f16::from_f32(v)).collect();
            for (&w, h) in w.iter().zip(&half) {
                if !h.is_finite() {
                    return Err(Error::range(format!(
                        "a weight is {w:e}, expected at most 65504, the largest float16"
                    )));
                }
                squares += f64::from(w) * f64::from(w);
                differences += (f64::from(w) - h.to_f64()).powi(2);
            }
            (FloatValues::F16(half.into()), 16)
        } else {
            (FloatValues::F32(w.into()), 32)
        };
        let view = FloatsView { rows, cols, values };
        let relative_error = (differences / f64::max(squares, f64::MIN_POSITIVE)).sqrt();
        let said = writer.matrix(
            self.name,
            &MatrixRef::Floats(view),
            error_field(relative_error),
        )?;
        let converted = Converted {
            name: self.name.to_owned(),
            rows,
            cols,
            bits,
            bytes: rows * cols * bits / 8,
            relative_error,
        };
        Ok((converted, (squares, differences), said))
    }
}

fn error_field(relative_error: f64) -> Map<String, Value> {
    Map::from_iter([("relative_error".to_owned(), json!(relative_error))])
}

/// What the manifest says of the model, and beside its weights.
fn described(
    source: &Source,
    method: &str,
    report: &Report,
    quantization: Option<Value>,
) -> (Map<String, Value>, Map<String, Value>) {
    let a = source.architecture();
    let object = |value: Value| match value {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    let model = object(json!({
        "primary_family": a.family.name(),
        "families": [a.family.name()],
        "source": origin(source).file_name().map(|n| n.to_string_lossy()),
    }));
    let mut quantization = quantization.unwrap_or_default();
    quantization["method"] = json!(method);
    let fields = object(json!({
        "architecture": architecture_to_json(a),
        "quantization": quantization,
        "accuracy": {
            "relative_error": report.relative_error,
            "bits_a_weight": report.bits_a_weight,
        },
    }));
    (model, fields)
}

/// Reads all of a model: every tensor is readable and finite, and the npz of a manifest the one that was written, by its sha256.
///
/// # Errors
/// `ERR_FORMAT` if not; `ERR_UNSUPPORTED` for a type that is not read; `ERR_IO`; `ERR_MEMORY`.
pub fn verify(source: &Source) -> Result<()> {
    if let WeightFile::Manifest(manifest) = source.weights() {
        manifest.verify()?;
    }
    for spec in source.tensors() {
        match spec.role {
            Role::Vector => drop(source.vector(&spec.name)?),
            Role::Matrix => {
                finite(&source.matrix(&spec.name)?).map_err(|e| e.within(&spec.name))?
            }
        }
        source.weights().forget();
    }
    Ok(())
}

/// `ERR_FORMAT` for a matrix with a weight that is no number.
fn finite(view: &MatrixView<'_>) -> Result<()> {
    match view {
        MatrixView::Floats(view) if !view.is_finite() => Err(Error::format(
            "a weight is not finite, expected finite numbers",
        )),
        // The scales of codes were looked at when they were opened.
        _ => Ok(()),
    }
}
