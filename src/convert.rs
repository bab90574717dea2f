//! From a model as it was published to one of our own format: quantised, written, and looked at again.
//!
//! Tensors go through one at a time, so that the memory it takes is that of the largest matrix as float32 and its codes.

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
    /// How it compares with its source on [`SAMPLE`]; `None` without a tokenizer, and for a source that takes more than half of the
    /// available memory as float32, or 12 GiB.
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
    let go_on = |left: &str| match cancelled.load(Ordering::Relaxed) {
        true => Err(Error::state(format!("interrupted: {left}"))),
        false => Ok(()),
    };
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
    let mut quantizations = Vec::new();
    // What no product tells anything about is at least searched.
    let method = match calibration {
        Some(_) => Method::Search,
        None => options.method,
    };
    for spec in &specs {
        go_on("nothing was changed")?;
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
        source.forget(&spec.name);
        squares += norms.0;
        differences += norms.1;
        quantizations.push(said);
        done.push(converted);
    }
    go_on("nothing was changed")?;
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
    let (model, fields) = described(source, &report, quantizations);
    writer.finish(model, fields, &companions)?;
    progress(Progress::Checking);
    let unchecked = format!("{} is written, and was not checked", manifest.display());
    check::verify(&Source::open(&manifest, true)?, &mut |_| go_on(&unchecked))?;
    if check::is_compared(&specs) {
        progress(Progress::Comparing);
        report.agreement = check::compared(rt, source, &manifest, cancelled).map_err(|e| {
            e.within(format_args!(
                "{} is written, and compared with its source",
                manifest.display()
            ))
        })?;
    }
    if report.agreement.is_none() {
        go_on(&format!(
            "{} is written, and was not compared with its source",
            manifest.display()
        ))?;
    }
    Ok(report)
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

/// The method of codes that were taken over.
const COPIED: &str = "copied";

/// Squares of the weights, and of their differences, summed.
type Norms = (f64, f64);

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
                    return Ok((converted, (0.0, 0.0), said));
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
        let (converted, said) = self.codes(writer, &codes, method, error)?;
        Ok((converted, (squares, differences), said))
    }

    fn codes(
        &self,
        writer: &mut ManifestWriter,
        codes: &Codes<'_>,
        method: &str,
        relative_error: f64,
    ) -> Result<(Converted, Value)> {
        let Shape {
            rows, cols, groups, ..
        } = codes.shape;
        let mut said = writer.matrix(
            self.name,
            &MatrixRef::Codes(*codes),
            error_field(relative_error),
        )?;
        said["method"] = json!(method);
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
        "source": origin(source).file_name().map(|n| n.to_string_lossy()),
    }));
    // What was done here, if anything was; else how the source has it.
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
