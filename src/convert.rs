//! Converts a published model to our own format: quantises it, writes it, and checks the result.
//!
//! Tensors are processed one at a time, so the memory needed is that of the largest matrix as
//! float32 and its codes.

mod check;
mod destination;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Map, Value, json};

use crate::agreement::Agreement;
use crate::calibrate::{self, Calibration, Known};
use crate::error::{Error, Result};
use crate::formats::{FloatValues, FloatsView, ManifestWriter, MatrixRef, MatrixView};
use crate::matmul;
use crate::memory;
use crate::model::source::{Role, Source, architecture_to_json};
use crate::options::{WeightOptions, Width};
use crate::quant::{Bits, Codes, Method, ScalePrecision, Shape, Spec};
use crate::runtime::Runtime;
use crate::weights;

pub use check::{SAMPLE, verify};
pub use destination::refuse;

/// The result for one matrix.
#[derive(Clone, Debug)]
pub struct Converted {
    /// Its canonical name.
    pub name: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Bits per code; 16 and 32 are floats.
    pub bits: usize,
    /// The size of codes, scales and zero points, in bytes.
    pub bytes: usize,
    /// The norm of the difference over the norm of the weights; 0 if the file's codes were taken as
    /// stored.
    pub relative_error: f64,
}

/// The result of a conversion.
#[derive(Clone, Debug)]
pub struct Report {
    /// The manifest.
    pub manifest: PathBuf,
    /// Every matrix.
    pub matrices: Vec<Converted>,
    /// The relative error over all matrices together.
    pub relative_error: f64,
    /// Effective bits per weight over all matrices, including scales and zero points.
    pub bits_a_weight: f64,
    /// Whether the model has a tokenizer.
    pub tokenizer: bool,
    /// The comparison with the source on [`SAMPLE`]; `None` without a tokenizer, for a source that
    /// takes more than half of the available memory as float32, or 12 GiB, and if either was
    /// replaced meanwhile.
    pub agreement: Option<Agreement>,
    /// The manifest's description of the quantisation, an object; null if nothing is quantised.
    pub quantization: Value,
}

/// A step that is reported while a conversion runs.
#[derive(Clone, Debug)]
pub enum Progress<'a> {
    /// The start, with the number of tensors and weights to be converted.
    Begin {
        /// Matrices and vectors.
        tensors: usize,
        /// Elements of all of them.
        weights: u64,
    },
    /// The next tensor.
    Tensor {
        /// Its canonical name.
        name: &'a str,
        /// Its elements.
        weights: u64,
    },
    /// All tensors are done, and the files are put in place.
    Writing,
    /// The result is opened and read.
    Checking,
    /// The result and its source read a text, to be compared.
    Comparing,
}

/// The destination of a converted model.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The folder, which is created if it does not exist.
    pub folder: &'a Path,
    /// The name of its manifest, without `.json`.
    pub name: &'a str,
}

impl Target<'_> {
    /// The path of the manifest.
    pub fn manifest(&self) -> PathBuf {
        self.folder.join(format!("{}.json", self.name))
    }
}

/// Converts a model.
///
/// Weights that are already quantised are taken as stored, code by code, unless the options ask for
/// another width. When `cancelled` becomes true, the conversion ends at the next tensor, and within
/// one while it calibrates. An error, or the end of the process at any moment, leaves the previous
/// model or the new one.
///
/// A tokenizer's files have fixed names, so the folder may contain different ones only for the
/// model that is replaced, see [`refuse`].
///
/// With a `calibration`, which must be for the same source, matrices are quantised for the inputs
/// that it gathers; `options.method` is then ignored.
///
/// # Errors
/// Those of [`refuse`]; `ERR_IO`, `ERR_FORMAT` for a tensor that is not finite or malformed,
/// `ERR_MEMORY`, `ERR_STATE` if cancelled.
pub fn convert(
    rt: &Runtime,
    source: &Source,
    target: Target<'_>,
    options: &WeightOptions,
    calibration: Option<&mut Calibration<'_>>,
    progress: &mut dyn FnMut(Progress<'_>),
    cancelled: &AtomicBool,
) -> Result<Report> {
    let companions = destination::companions(source)?;
    destination::check(source, target, &companions)?;
    let _made = destination::Made::folders(target.folder)?;
    let mut writer = ManifestWriter::create(&target.manifest())?;
    let mut steps = Steps {
        progress,
        cancelled,
    };
    // At once: from here on there is a file that a caller who ends the process has to remove.
    let specs = source.tensors();
    (steps.progress)(Progress::Begin {
        tensors: specs.len(),
        weights: specs.iter().map(|s| elements(&s.shape)).sum(),
    });
    // Checked again, now that other writers are locked out.
    destination::check(source, target, &companions)?;
    let tensors = Tensors {
        rt,
        source,
        options,
    };
    let Written {
        matrices,
        norms,
        said,
    } = tensors.write(&mut writer, calibration, &mut steps)?;
    steps.go_on(UNCHANGED)?;
    (steps.progress)(Progress::Writing);
    let weights: usize = matrices.iter().map(|m| m.rows * m.cols).sum();
    let bytes: usize = matrices.iter().map(|m| m.bytes).sum();
    let mut report = Report {
        tokenizer: companions.iter().any(|c| c.text.is_some()),
        agreement: None,
        quantization: Value::Null,
        manifest: target.manifest(),
        relative_error: norms.relative_error(),
        bits_a_weight: 8.0 * bytes as f64 / weights.max(1) as f64,
        matrices,
    };
    let (model, fields) = described(source, &report, said);
    report.quantization = fields["quantization"].clone();
    let sha256 = writer.finish(model, fields, &companions)?;
    report.agreement = looked_at(rt, source, &report.manifest, &sha256, &mut steps)?;
    Ok(report)
}

/// Opens and reads the result, and compares it with its source if that is not too large; see
/// [`Report::agreement`].
fn looked_at(
    rt: &Runtime,
    source: &Source,
    manifest: &Path,
    sha256: &str,
    steps: &mut Steps<'_>,
) -> Result<Option<Agreement>> {
    (steps.progress)(Progress::Checking);
    let unchecked = format!("{} is written, and was not checked", manifest.display());
    let written = check::written(manifest, sha256)?;
    check::verify(&written, &mut |_| steps.go_on(&unchecked))?;
    let mut agreement = None;
    if check::is_compared(&source.tensors()) {
        (steps.progress)(Progress::Comparing);
        agreement = match check::compared(rt, source, manifest, sha256, steps.cancelled) {
            // It may have been another model, in part, that was compared.
            Err(_) if source.is_replaced() || written.is_replaced() => None,
            outcome => outcome.map_err(|e| {
                e.within(format_args!(
                    "{} is written, and compared with its source",
                    manifest.display()
                ))
            })?,
        };
    }
    if agreement.is_none() {
        steps.go_on(&format!(
            "{} is written, and was not compared with its source",
            manifest.display()
        ))?;
    }
    Ok(agreement)
}

/// What a conversion leaves that ends early.
const UNCHANGED: &str = "nothing was changed";

/// The callbacks of the caller, which report progress and may cancel.
struct Steps<'a> {
    progress: &'a mut dyn FnMut(Progress<'_>),
    cancelled: &'a AtomicBool,
}

impl Steps<'_> {
    /// Why the conversion ends before anything is put in place: `e`, unless that is because it was
    /// cancelled.
    fn reason(&self, e: Error) -> Error {
        self.go_on(UNCHANGED).err().unwrap_or(e)
    }

    /// `ERR_STATE` if it was cancelled, with what is left on disk.
    fn go_on(&self, left: &str) -> Result<()> {
        match self.cancelled.load(Ordering::Relaxed) {
            true => Err(Error::state(format!("interrupted: {left}"))),
            false => Ok(()),
        }
    }
}

/// The tensors of a model to be converted.
struct Tensors<'a> {
    rt: &'a Runtime,
    source: &'a Source,
    options: &'a WeightOptions,
}

/// The results for the tensors.
#[derive(Default)]
struct Written {
    matrices: Vec<Converted>,
    /// Over all matrices.
    norms: Norms,
    /// The manifest's description of the quantisation of each matrix.
    said: Vec<Value>,
}

impl Tensors<'_> {
    /// Writes the tensors one after the other.
    fn write(
        &self,
        writer: &mut ManifestWriter,
        mut calibration: Option<&mut Calibration<'_>>,
        steps: &mut Steps<'_>,
    ) -> Result<Written> {
        let mut written = Written::default();
        // With a calibration, matrices without gathered inputs are quantised by the search.
        let method = match calibration {
            Some(_) => Method::Search,
            None => self.options.method,
        };
        for spec in &self.source.tensors() {
            steps.go_on(UNCHANGED)?;
            (steps.progress)(Progress::Tensor {
                name: &spec.name,
                weights: elements(&spec.shape),
            });
            if spec.role == Role::Vector {
                match calibration.as_ref().and_then(|c| c.norm(&spec.name)) {
                    Some(tuned) => writer.vector(&spec.name, tuned)?,
                    None => writer.vector(&spec.name, &self.source.vector(&spec.name)?)?,
                };
                continue;
            }
            let view = self.source.matrix(&spec.name)?;
            let known = match &mut calibration {
                Some(calibration) => {
                    let known = calibration.known(self.rt, &spec.name);
                    known.map_err(|e| steps.reason(e))?
                }
                None => Known::Nothing,
            };
            let stored = match known {
                // The scales were tuned for the options as given.
                Known::Codes(_) => None,
                _ => self.source.stored(&spec.name)?,
            };
            let options = weights::options_for(stored, self.options);
            let one = Matrix {
                rt: self.rt,
                name: &spec.name,
                options: &options,
                method,
                known,
                cancelled: steps.cancelled,
            };
            let (converted, norms, said) = one
                .write(writer, view)
                .map_err(|e| steps.reason(self.source.within(e.within(&spec.name))))?;
            self.source.forget(&spec.name);
            written.norms.add(norms);
            written.said.push(said);
            written.matrices.push(converted);
        }
        Ok(written)
    }
}

fn elements(shape: &[usize]) -> u64 {
    shape.iter().map(|&n| n as u64).product()
}

/// One matrix to be converted.
struct Matrix<'a> {
    rt: &'a Runtime,
    name: &'a str,
    options: &'a WeightOptions,
    method: Method,
    known: Known<'a>,
    cancelled: &'a AtomicBool,
}

/// The name of the method for codes taken as stored.
const COPIED: &str = "copied";

/// Sums over weights `w` and their quantised values `q`.
#[derive(Clone, Copy, Default)]
struct Norms {
    /// `Σ w²`
    squares: f64,
    /// `Σ (w - q)²`
    differences: f64,
}

impl Norms {
    /// Adds a weight.
    fn weight(&mut self, w: f32, q: f32) {
        let (w, q) = (f64::from(w), f64::from(q));
        self.squares += w * w;
        self.differences += (w - q) * (w - q);
    }

    fn add(&mut self, other: Norms) {
        self.squares += other.squares;
        self.differences += other.differences;
    }

    fn relative_error(&self) -> f64 {
        (self.differences / self.squares.max(f64::MIN_POSITIVE)).sqrt()
    }
}

/// The norms of codes taken as stored: there is no loss.
fn norms_of(codes: &Codes<'_>) -> Result<Norms> {
    let mut norms = Norms::default();
    let cols = codes.shape.cols;
    let rows = if cols == 0 { 0 } else { codes.shape.rows };
    let mut row = memory::filled(cols, 0.0, "a row of weights")?;
    for r in 0..rows {
        codes.dequantize_row(r, &mut row);
        row.iter().for_each(|&w| norms.weight(w, w));
    }
    Ok(norms)
}

impl Matrix<'_> {
    fn write(
        &self,
        writer: &mut ManifestWriter,
        view: MatrixView<'_>,
    ) -> Result<(Converted, Norms, Value)> {
        let (rows, cols) = view.shape();
        check::finite(&view)?;
        let floats = match view {
            MatrixView::Codes(view) => {
                let codes = view.as_codes();
                if self
                    .options
                    .width
                    .is_none_or(|w| w == Width::Codes(codes.bits))
                {
                    let (converted, said) = self.codes(writer, &codes, COPIED, 0.0)?;
                    return Ok((converted, norms_of(&codes)?, said));
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

    /// Quantises a matrix and measures the error.
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
        let method = match self.known {
            Known::Nothing => self.method.name(),
            Known::Inputs(_) => "calibrated",
            Known::Codes(_) => "calibrated, tuned",
        };
        let codes = match self.known {
            Known::Codes(tuned) if tuned.shape == shape && tuned.bits == bits => tuned.as_codes(),
            Known::Codes(_) => {
                return Err(Error::config(
                    "the scales were tuned for other options, expected those of the conversion",
                ));
            }
            Known::Inputs(hessian) => {
                made = calibrate::quantize(self.rt, w, shape, &spec, hessian, self.cancelled)?;
                made.as_codes()
            }
            Known::Nothing => {
                made = weights::quantize(self.rt, w, shape, &spec)?;
                made.as_codes()
            }
        };
        let mut norms = Norms::default();
        let mut row = memory::filled(shape.cols, 0.0, "a row of weights")?;
        for (r, w) in w.chunks_exact(shape.cols.max(1)).enumerate() {
            codes.dequantize_row(r, &mut row);
            w.iter().zip(&row).for_each(|(&w, &q)| norms.weight(w, q));
        }
        let (converted, said) = self.codes(writer, &codes, method, norms.relative_error())?;
        Ok((converted, norms, said))
    }

    fn codes(
        &self,
        writer: &mut ManifestWriter,
        codes: &Codes<'_>,
        method: &str,
        relative_error: f64,
    ) -> Result<(Converted, Value)> {
        let mut said = writer.matrix(
            self.name,
            &MatrixRef::Codes(*codes),
            error_field(relative_error),
        )?;
        said["method"] = json!(method);
        let converted = Converted {
            name: self.name.to_owned(),
            rows: codes.shape.rows,
            cols: codes.shape.cols,
            bits: codes.bits.get(),
            bytes: codes.stored_bytes(),
            relative_error,
        };
        Ok((converted, said))
    }

    /// Writes floats, as float32 or rounded to float16.
    fn floats(
        &self,
        writer: &mut ManifestWriter,
        w: Vec<f32>,
        (rows, cols): (usize, usize),
        kept: Width,
    ) -> Result<(Converted, Norms, Value)> {
        let mut norms = Norms::default();
        let (values, bits) = if kept == Width::F16 {
            let half: Vec<half::f16> = w.iter().map(|&v| half::f16::from_f32(v)).collect();
            for (&w, h) in w.iter().zip(&half) {
                if !h.is_finite() {
                    return Err(Error::range(format!(
                        "a weight is {w:e}, expected at most 65504, the largest float16"
                    )));
                }
                norms.weight(w, h.to_f32());
            }
            (FloatValues::F16(half.into()), 16)
        } else {
            w.iter().for_each(|&w| norms.weight(w, w));
            (FloatValues::F32(w.into()), 32)
        };
        let view = FloatsView { rows, cols, values };
        let relative_error = norms.relative_error();
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
        Ok((converted, norms, said))
    }
}

fn error_field(relative_error: f64) -> Map<String, Value> {
    Map::from_iter([("relative_error".to_owned(), json!(relative_error))])
}

/// The manifest's description of the model, and the fields outside of it.
fn described(
    source: &Source,
    report: &Report,
    quantizations: Vec<Value>,
) -> (Map<String, Value>, Map<String, Value>) {
    let a = source.architecture();
    let object = |value: Value| match value {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    let model = object(json!({
        "primary_family": a.family.name(),
        "families": [a.family.name()],
        "source": source.origin().file_name().map(|n| n.to_string_lossy()),
    }));
    // The description of a matrix that was quantised here, if any was, else that of the source.
    let done = quantizations
        .iter()
        .position(|q| q["method"] != COPIED && !q["method"].is_null());
    let quantization = quantizations.into_iter().nth(done.unwrap_or(0));
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

#[cfg(test)]
mod tests;
