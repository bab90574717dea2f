//! Creates weight objects as the options specify: from codes, from floats, from a file.

use std::borrow::Cow;
use std::path::Path;

use half::f16;

use crate::error::{Error, Result};
use crate::formats::{self, FloatValues, FloatsView, MatrixRef, MatrixView, Stored};
use crate::matmul::{self, Activations, Arena, Weights};
use crate::memory;
use crate::options::{WeightOptions, Width};
use crate::quant::{self, Bits, Codes, CodesBuf, Element, ScalePrecision, Shape, Spec};
use crate::runtime::Runtime;

/// Where weights are stored.
#[derive(Clone, Copy)]
pub enum Home<'a> {
    /// In host memory, together with others in this arena, multiplied by the CPU.
    Host(&'a Arena),
    /// Where the library's backend prefers: see [`Weights::placed`].
    Backend,
    /// On this device of the library, if its kernels support the shape.
    Device(usize),
}

impl Home<'_> {
    fn place(self, rt: &Runtime, codes: &Codes<'_>, activations: Activations) -> Result<Weights> {
        match self {
            Home::Host(arena) => Weights::from_codes_in(arena, rt, codes, activations),
            Home::Backend => Weights::placed(rt, codes, activations, None),
            Home::Device(device) => Weights::placed(rt, codes, activations, Some(device)),
        }
    }
}

/// Weights from codes, unchanged.
///
/// # Errors
/// `ERR_CONFIG` if the activations do not match the width; `ERR_MEMORY`; `ERR_BACKEND`.
pub fn from_codes(
    rt: &Runtime,
    codes: &Codes<'_>,
    options: &WeightOptions,
    home: Home<'_>,
) -> Result<Weights> {
    let activations = options.activations_for(Width::Codes(codes.bits))?;
    home.place(rt, codes, activations)
}

/// The element types of callers' weights.
pub trait Floats: Element {
    /// The weights as float32, borrowed if they are float32 already; not finite if beyond its
    /// range.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    fn as_f32(w: &[Self]) -> Result<Cow<'_, [f32]>>;
}

impl Floats for f32 {
    fn as_f32(w: &[f32]) -> Result<Cow<'_, [f32]>> {
        Ok(Cow::Borrowed(w))
    }
}

impl Floats for f64 {
    fn as_f32(w: &[f64]) -> Result<Cow<'_, [f32]>> {
        let mut narrow = memory::with_capacity(w.len(), "the weights in float32")?;
        narrow.extend(w.iter().map(|&v| v as f32));
        Ok(Cow::Owned(narrow))
    }
}

/// Weights from floats, `w` (rows, cols), quantised by the options.
///
/// # Errors
/// `ERR_RANGE` for a weight that is not finite, or does not fit in float16 if that is requested;
/// `ERR_CONFIG` if the activations do not match the width; `ERR_MEMORY`; `ERR_BACKEND`.
pub fn from_floats<T: Floats>(
    rt: &Runtime,
    w: &[T],
    rows: usize,
    cols: usize,
    options: &WeightOptions,
    home: Home<'_>,
) -> Result<Weights> {
    let width = options.width.unwrap_or(WeightOptions::DEFAULT_WIDTH);
    let activations = options.activations_for(width)?;
    match width {
        Width::F32 | Width::F16 => {
            let w = T::as_f32(w)?;
            if let Some(i) = w.iter().position(|v| !v.is_finite()) {
                return Err(Error::range(format!(
                    "w at row {}, column {} is {:e}, expected a finite float32 number",
                    i / cols,
                    i % cols,
                    w[i]
                )));
            }
            Weights::from_f32(&w, rows, cols, width == Width::F16)
        }
        Width::Codes(bits) => {
            let spec = Spec {
                bits,
                symmetric: options.symmetric || bits == Bits::One,
                method: options.method,
                scales: ScalePrecision::Auto,
            };
            let shape = Shape::new(rows, cols, options.group);
            let codes = quantize(rt, w, shape, &spec)?;
            home.place(rt, &codes.as_codes(), activations)
        }
    }
}

/// Quantises on all threads of the library; `w` is (rows, cols).
///
/// # Errors
/// Those of [`quant::quantize`].
pub fn quantize<T: Element>(rt: &Runtime, w: &[T], shape: Shape, spec: &Spec) -> Result<CodesBuf> {
    // A band is large enough to be worth waking a thread, and small enough to balance threads of
    // unequal speed.
    const WEIGHTS_PER_BAND: usize = 1 << 16;
    let rows_per_band = (WEIGHTS_PER_BAND / shape.cols.max(1)).max(1);
    if shape.rows <= rows_per_band {
        return quant::quantize(w, shape, spec);
    }
    quant::quantize_in_bands(w, shape, spec, rows_per_band, |bands| {
        // `Err` ends the pass: with an error, or with `None` if a scale does not fit the precision
        // tried.
        let pass = rt.pool().try_for_each(bands, |band| match band.quantize() {
            Ok(true) => Ok(()),
            Ok(false) => Err(None),
            Err(e) => Err(Some(e)),
        });
        match pass {
            Ok(()) => Ok(true),
            Err(None) => Ok(false),
            Err(Some(e)) => Err(e),
        }
    })
}

/// One named matrix of a file; a vector is a matrix of one row. Weights that are already quantised
/// are taken as stored, unless the options ask for another width; floats are quantised by the
/// options.
///
/// # Errors
/// Those of [`formats::open`], [`formats::WeightFile::matrix`] and [`from_floats`].
pub fn open(
    rt: &Runtime,
    path: &Path,
    name: &str,
    options: &WeightOptions,
    home: Home<'_>,
) -> Result<Weights> {
    let file = formats::open(path, options.mmap)?;
    let read = || {
        let is_vector = file.shape(name)?.is_some_and(|shape| shape.len() == 1);
        let found = match is_vector {
            true => file.vector(name)?,
            false => file.matrix(name)?,
        };
        Ok((found, file.stored(name)?))
    };
    let (found, stored) = read().map_err(|e: Error| e.in_file(path))?;
    from_view(rt, found, &options_for(stored, options), home)
}

/// The options for weights stored like this: for some GGUF types the default width differs.
pub fn options_for<'a>(
    stored: Option<Stored<'_>>,
    options: &'a WeightOptions,
) -> Cow<'a, WeightOptions> {
    let default = stored.and_then(|s| s.width());
    match default {
        Some(bits) if options.width.is_none() && !options.keep_floats => {
            Cow::Owned(WeightOptions {
                width: Some(Width::Codes(bits)),
                ..options.clone()
            })
        }
        _ => Cow::Borrowed(options),
    }
}

/// A matrix of a file, by the rules of [`open`].
///
/// # Errors
/// Those of [`from_floats`].
pub fn from_view(
    rt: &Runtime,
    view: MatrixView<'_>,
    options: &WeightOptions,
    home: Home<'_>,
) -> Result<Weights> {
    match view {
        MatrixView::Codes(view) => {
            let codes = view.as_codes();
            let stored = Width::Codes(codes.bits);
            if options.width.is_none_or(|asked| asked == stored) {
                return from_codes(rt, &codes, options, home);
            }
            let Shape { rows, cols, .. } = codes.shape;
            // If the product overflows, the saturated length cannot be allocated.
            let len = rows.saturating_mul(cols);
            let mut w = memory::filled(len, 0f32, "the weights in float32")?;
            matmul::dequantize(rt, &codes, &mut w)?;
            from_floats(rt, &w, rows, cols, options, home)
        }
        MatrixView::Floats(view) => {
            let kept = options.keep_floats.then_some(Width::F32);
            let options = WeightOptions {
                width: options.width.or(kept),
                ..options.clone()
            };
            from_floats(rt, &view.to_f32()?, view.rows, view.cols, &options, home)
        }
    }
}

/// Saves weights under a name as a manifest at `path` and its npz, in the precision they are stored
/// in.
///
/// # Errors
/// Those of [`formats::save_manifest`].
pub fn save(rt: &Runtime, weights: &Weights, path: &Path, name: &str) -> Result<()> {
    if let Some(codes) = weights.to_codes()? {
        return formats::save_manifest(path, name, &MatrixRef::Codes(codes.as_codes()));
    }
    let (rows, cols) = (weights.rows(), weights.cols());
    let mut w = memory::filled(rows * cols, 0f32, "the weights in float32")?;
    weights.dequantize(rt, &mut w)?;
    let values = if weights.bits() == 16 {
        let mut half = memory::with_capacity(w.len(), "the weights in float16")?;
        half.extend(w.iter().map(|&v| f16::from_f32(v)));
        FloatValues::F16(Cow::Owned(half))
    } else {
        FloatValues::F32(Cow::Owned(w))
    };
    formats::save_manifest(
        path,
        name,
        &MatrixRef::Floats(FloatsView { rows, cols, values }),
    )
}
