//! Codes and scales that minimise the error of products: coordinate descent on
//! `(w - q) H (w - q)'`.
//!
//! It starts from the codes of the search. Given the gradient `g = (w - q) H`, the optimum of one
//! weight with level `l` and scale `s`, all others fixed, is the level nearest to
//! `l + g[j] / (s H[j][j])`; that of the scale of a group with levels `l`, all levels fixed, is
//! `s + (l . g) / (l H l')`. A step is taken only if it lowers the error, so the result is never
//! worse than that of the search. Zero points do not change.
//!
//! The objective is that of OBQ (Frantar and Alistarh, "Optimal Brain Compression", 2022) and of
//! GPTQ (Frantar, Ashkboos, Hoefler and Alistarh, 2022), which quantise each weight once and let
//! later weights compensate for it. Here weights are visited repeatedly until none changes, and
//! scales change too.
//!
//! A step changes the gradient of the whole row. Within a block of columns the gradient is updated
//! immediately; the effect of a block's changes on all columns is one product of the library,
//! `g -= changes H[block]`, for all rows together.

use std::sync::atomic::AtomicBool;

use half::f16;

use super::{Hessian, go_on};
use crate::error::{Error, Result};
use crate::matmul::Weights;
use crate::memory;
use crate::quant::{CodesBuf, Method, ScalesBuf, Shape, Spec, pack_row, packed_row_bytes};
use crate::runtime::Runtime;
use crate::weights;

/// The most sweeps over all columns; it stops earlier if nothing changes.
const SWEEPS: usize = 8;

/// Columns per block; more if a group has more.
const BLOCK: usize = 128;

/// Elements of a band of rows; the working memory of a band is about 5 × 16 MiB.
const BAND_ELEMENTS: usize = 1 << 22;

/// Elements of the rows that a thread processes at a time.
const TASK_ELEMENTS: usize = 1 << 13;

/// Quantises a matrix for inputs with this `hessian`; `w` is `(rows, cols)`.
///
/// Scales are stored as by the search; `spec.method` is ignored.
///
/// # Errors
/// Those of [`weights::quantize`]; `ERR_LENGTH` if the Hessian has another width; `ERR_STATE` once
/// `cancelled` is true.
pub fn quantize(
    rt: &Runtime,
    w: &[f32],
    shape: Shape,
    spec: &Spec,
    hessian: &Hessian,
    cancelled: &AtomicBool,
) -> Result<CodesBuf> {
    let Shape { rows, cols, .. } = shape;
    if hessian.cols() != cols {
        return Err(Error::length(format!(
            "the second moments are those of {} inputs, expected {cols}, the columns of the matrix",
            hessian.cols()
        )));
    }
    let search = Spec {
        method: Method::Search,
        ..*spec
    };
    let mut codes = weights::quantize(rt, w, shape, &search)?;
    if rows == 0 || cols == 0 {
        return Ok(codes);
    }
    let h = hessian.damped()?;
    let moments = Weights::from_f32(&h, cols, cols, false)?;
    let band = (BAND_ELEMENTS / cols).clamp(1, rows);
    for first in (0..rows).step_by(band) {
        let n = band.min(rows - first);
        let w = &w[first * cols..][..n * cols];
        Band::new(&h, first, w, &codes)?.descend(rt, &moments, &mut codes, cancelled)?;
    }
    Ok(codes)
}

/// A band of rows while it is quantised.
struct Band<'a> {
    shape: Shape,
    /// `(cols, cols)`
    h: &'a [f32],
    first: usize,
    rows: Vec<Row<'a>>,
    /// The gradient `(w - q) H`: `(rows, cols)`.
    g: Vec<f32>,
    /// The change of the gradient: `(rows, cols)`.
    change: Vec<f32>,
    /// The change of the weights of a block: `(rows, columns of the block)`.
    moved: Vec<f32>,
}

/// A row while it is quantised.
struct Row<'a> {
    w: &'a [f32],
    /// `(cols)`
    levels: Vec<f32>,
    /// `(groups)`
    scales: Vec<f32>,
    /// The smallest and the largest level of each group: `(groups)`.
    windows: Vec<(f32, f32)>,
    one_bit: bool,
    half: bool,
}

impl<'a> Band<'a> {
    fn new(h: &'a [f32], first: usize, w: &'a [f32], codes: &CodesBuf) -> Result<Band<'a>> {
        let shape = codes.shape;
        let mut rows = memory::with_capacity(w.len() / shape.cols, "rows being quantised")?;
        for (i, w) in w.chunks_exact(shape.cols).enumerate() {
            rows.push(Row::new(w, first + i, codes)?);
        }
        Ok(Band {
            shape,
            h,
            first,
            rows,
            g: memory::filled(w.len(), 0.0, "gradients")?,
            change: memory::filled(w.len(), 0.0, "changes of gradients")?,
            moved: Vec::new(),
        })
    }

    fn descend(
        mut self,
        rt: &Runtime,
        moments: &Weights,
        codes: &mut CodesBuf,
        cancelled: &AtomicBool,
    ) -> Result<()> {
        let Shape { cols, .. } = self.shape;
        let n = self.rows.len();
        for (row, out) in self.rows.iter().zip(self.change.chunks_exact_mut(cols)) {
            row.error(self.shape, out);
        }
        moments.multiply(rt, &self.change, &mut self.g, n)?;
        for _ in 0..SWEEPS {
            let mut moved = false;
            let mut start = 0;
            while start < self.shape.groups {
                go_on(cancelled)?;
                let mut end = start + 1;
                while end < self.shape.groups
                    && self.shape.group_columns(end).end - self.shape.group_columns(start).start
                        <= BLOCK
                {
                    end += 1;
                }
                moved |= self.block(rt, start..end)?;
                start = end;
            }
            if !moved {
                break;
            }
        }
        for (i, row) in self.rows.iter().enumerate() {
            row.store(self.first + i, codes);
        }
        Ok(())
    }

    /// Processes the groups of a block; returns whether anything changed.
    fn block(&mut self, rt: &Runtime, groups: std::ops::Range<usize>) -> Result<bool> {
        let Shape { cols, .. } = self.shape;
        let from = self.shape.group_columns(groups.start).start;
        let to = self.shape.group_columns(groups.end - 1).end;
        let width = to - from;
        let n = self.rows.len();

        // H between the columns of the block, and between all columns and those of the block.
        let mut own = memory::with_capacity(width * width, "second moments of a block")?;
        for r in from..to {
            own.extend_from_slice(&self.h[r * cols + from..r * cols + to]);
        }
        self.moved.clear();
        self.moved.resize(n * width, 0.0);

        let per_task = (TASK_ELEMENTS / width).max(1);
        let tasks = self
            .rows
            .chunks_mut(per_task)
            .zip(self.g.chunks_mut(per_task * cols))
            .zip(self.moved.chunks_mut(per_task * width))
            .collect();
        let shape = self.shape;
        rt.pool().try_for_each(tasks, |((rows, g), moved)| {
            let mut local = memory::filled(width, 0.0, "a gradient")?;
            for ((row, g), moved) in rows
                .iter_mut()
                .zip(g.chunks_exact(cols))
                .zip(moved.chunks_exact_mut(width))
            {
                local.copy_from_slice(&g[from..to]);
                for group in groups.clone() {
                    row.group(shape, group, from, &own, &mut local, moved);
                }
            }
            Ok::<(), Error>(())
        })?;
        if self.moved.iter().all(|&m| m == 0.0) {
            return Ok(false);
        }
        let mut across = memory::with_capacity(cols * width, "second moments of a block")?;
        for r in 0..cols {
            across.extend_from_slice(&self.h[r * cols + from..r * cols + to]);
        }
        let across = Weights::from_f32(&across, cols, width, false)?;
        across.multiply(rt, &self.moved, &mut self.change, n)?;
        for (g, c) in self.g.iter_mut().zip(&self.change) {
            *g -= c;
        }
        Ok(true)
    }
}

impl<'a> Row<'a> {
    fn new(w: &'a [f32], row: usize, codes: &CodesBuf) -> Result<Row<'a>> {
        let Shape { cols, groups, .. } = codes.shape;
        let view = codes.as_codes();
        let mut packed = memory::filled(cols, 0u8, "a row of codes")?;
        view.row_codes(row, &mut packed);
        let mut levels = memory::with_capacity(cols, "a row of levels")?;
        let mut scales = memory::with_capacity(groups, "scales")?;
        let mut windows = memory::with_capacity(groups, "levels of groups")?;
        for group in 0..groups {
            let zero = view.zero_point(row, group);
            let level = |code| codes.bits.level(code, zero) as f32;
            let columns = codes.shape.group_columns(group);
            levels.extend(packed[columns].iter().map(|&code| level(code)));
            scales.push(view.scale(row, group));
            windows.push((level(0), level(codes.bits.max_code())));
        }
        Ok(Row {
            w,
            levels,
            scales,
            windows,
            one_bit: codes.bits.get() == 1,
            half: matches!(codes.scales, ScalesBuf::F16(_)),
        })
    }

    /// `w - q`: `(cols)`.
    fn error(&self, shape: Shape, out: &mut [f32]) {
        for (group, &scale) in self.scales.iter().enumerate() {
            for c in shape.group_columns(group) {
                out[c] = self.w[c] - scale * self.levels[c];
            }
        }
    }

    /// Updates the levels of a group one after the other, then its scale. `own` is `H` of the
    /// block, `g` the gradient there, `moved` the change of its weights: `(width, width)`,
    /// `(width)`, `(width)`. `from` is the first column of the block.
    fn group(
        &mut self,
        shape: Shape,
        group: usize,
        from: usize,
        own: &[f32],
        g: &mut [f32],
        moved: &mut [f32],
    ) {
        let width = g.len();
        let columns = shape.group_columns(group);
        let scale = self.scales[group];
        if scale == 0.0 {
            return; // a group of zeros
        }
        let (low, high) = self.windows[group];
        for c in columns.clone() {
            let j = c - from;
            let row = &own[j * width..][..width];
            let at = self.levels[c] + g[j] / (scale * row[j]);
            let level = match self.one_bit {
                true => at.signum(),
                false => at.round_ties_even().clamp(low, high),
            };
            let step = (level - self.levels[c]) * scale;
            // The nearest level lowers the error, unless it is as near as the present one, or not a
            // number.
            if step != 0.0 && step.is_finite() {
                self.levels[c] = level;
                moved[j] += step;
                axpy(-step, row, g);
            }
        }

        let levels = &self.levels[columns.clone()];
        let own_group = columns.start - from..columns.end - from;
        let (mut along, mut bend) = (0f64, 0f64);
        for (&l, j) in levels.iter().zip(own_group.clone()) {
            if l != 0.0 {
                along += f64::from(l) * f64::from(g[j]);
                let row = &own[j * width..][own_group.clone()];
                bend += f64::from(l) * f64::from(dot(row, levels));
            }
        }
        if bend <= 0.0 {
            return;
        }
        let Some(found) = self.kept(f64::from(scale) + along / bend) else {
            return;
        };
        let step = found - scale;
        // Once rounded to the precision of scales, it may be no better.
        let gain = f64::from(step) * (2.0 * along - f64::from(step) * bend);
        if step != 0.0 && gain > 0.0 {
            self.scales[group] = found;
            for (i, j) in own_group.enumerate() {
                let by = step * self.levels[columns.start + i];
                if by != 0.0 {
                    moved[j] += by;
                    axpy(-by, &own[j * width..][..width], g);
                }
            }
        }
    }

    /// The scale as it would be stored, if that is possible.
    fn kept(&self, scale: f64) -> Option<f32> {
        let scale = scale as f32;
        if self.half {
            let half = f16::from_f32(scale);
            half.is_normal().then(|| half.to_f32())
        } else {
            scale.is_normal().then_some(scale)
        }
    }

    fn store(&self, row: usize, codes: &mut CodesBuf) {
        let Shape { cols, groups, .. } = codes.shape;
        let bits = codes.bits;
        let mut packed = Vec::with_capacity(cols);
        for (group, &(low, _)) in self.windows.iter().enumerate() {
            let levels = &self.levels[codes.shape.group_columns(group)];
            packed.extend(levels.iter().map(|&l| match self.one_bit {
                true => u8::from(l > 0.0),
                false => (l - low) as u8,
            }));
        }
        let bytes = packed_row_bytes(cols, bits);
        pack_row(&packed, bits, &mut codes.bytes[row * bytes..][..bytes]);
        for (group, &scale) in self.scales.iter().enumerate() {
            match &mut codes.scales {
                ScalesBuf::F16(scales) => scales[row * groups + group] = f16::from_f32(scale),
                ScalesBuf::F32(scales) => scales[row * groups + group] = scale,
            }
        }
    }
}

/// `y += a x`
fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

fn dot(x: &[f32], y: &[f32]) -> f32 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Bits, ScalePrecision};
    use crate::runtime::Config;
    use crate::testing::Random;

    /// Of a call that nobody cancels.
    static RUNS: AtomicBool = AtomicBool::new(false);

    fn runtime(threads: usize) -> Runtime {
        let config = Config {
            threads,
            ..Config::default()
        };
        Runtime::new(config).unwrap()
    }

    fn spec(bits: Bits, symmetric: bool, method: Method) -> Spec {
        Spec {
            bits,
            symmetric: symmetric || bits == Bits::One,
            method,
            scales: ScalePrecision::Auto,
        }
    }

    /// `n` inputs with correlated columns of different magnitude.
    fn inputs(r: &mut Random, n: usize, cols: usize) -> Vec<f32> {
        let mut x = Vec::new();
        for _ in 0..n {
            let common = r.gauss();
            x.extend((0..cols).map(|c| (common + 0.7 * r.gauss()) * (1.0 + (c % 5) as f32)));
        }
        x
    }

    /// The sum of `(w - q) H (w - q)'` over all rows in float64, with `h` as the descent uses it.
    fn error(w: &[f32], codes: &CodesBuf, h: &[f32]) -> f64 {
        let cols = codes.shape.cols;
        let mut q = vec![0.0; cols];
        let mut sum = 0.0;
        for (r, w) in w.chunks_exact(cols).enumerate() {
            codes.as_codes().dequantize_row(r, &mut q);
            let d: Vec<f64> = w.iter().zip(&q).map(|(w, q)| f64::from(w - q)).collect();
            for (a, h) in d.iter().zip(h.chunks_exact(cols)) {
                let along: f64 = d.iter().zip(h).map(|(d, &h)| d * f64::from(h)).sum();
                sum += a * along;
            }
        }
        sum
    }

    #[test]
    fn never_worse_than_the_search() {
        let rt = runtime(2);
        let mut r = Random::new(7);
        for (rows, cols, group) in [
            (1, 1, 32),
            (3, 7, 2),
            (5, 70, 32),
            (2, 33, 0),
            (4, 300, 16),
            (3, 300, 200),
        ] {
            let w = r.gaussian(rows * cols);
            let shape = Shape::new(rows, cols, group);
            // No inputs, fewer than columns (the sums are singular), and more.
            for n in [0, cols.div_ceil(3), 3 * cols] {
                let mut hessian = Hessian::new(cols).unwrap();
                hessian.add(&rt, &inputs(&mut r, n, cols)).unwrap();
                let h = hessian.damped().unwrap();
                for bits in Bits::ALL {
                    for symmetric in [true, false] {
                        let what = format!("{rows} {cols} {group} {n} {bits:?} {symmetric}");
                        let searched = spec(bits, symmetric, Method::Search);
                        let before = weights::quantize(&rt, &w, shape, &searched).unwrap();
                        let after = quantize(&rt, &w, shape, &searched, &hessian, &RUNS).unwrap();
                        let (before, after) = (error(&w, &before, &h), error(&w, &after, &h));
                        // Rounding of the gradient, relative to the error of quantising all weights
                        // to zero.
                        let all: f64 = w.iter().map(|w| f64::from(w * w)).sum();
                        let slack = 1e-9 * all * h.iter().map(|&h| f64::from(h.abs())).sum::<f64>();
                        assert!(after <= before * 1.0001 + slack, "{what}: {after} {before}");
                    }
                }
            }
        }
    }

    #[test]
    fn inputs_that_go_together_let_errors_cancel() {
        let rt = runtime(1);
        let mut r = Random::new(8);
        let (rows, cols) = (8, 96);
        let w = r.gaussian(rows * cols);
        let mut hessian = Hessian::new(cols).unwrap();
        hessian.add(&rt, &inputs(&mut r, 400, cols)).unwrap();
        let h = hessian.damped().unwrap();
        for bits in Bits::ALL {
            let s = spec(bits, true, Method::Search);
            let shape = Shape::new(rows, cols, 32);
            let before = error(&w, &weights::quantize(&rt, &w, shape, &s).unwrap(), &h);
            let after = error(
                &w,
                &quantize(&rt, &w, shape, &s, &hessian, &RUNS).unwrap(),
                &h,
            );
            assert!(after < 0.6 * before, "{bits:?}: {after}, searched {before}");
        }
    }

    #[test]
    fn threads_make_no_difference() {
        let mut r = Random::new(9);
        let (rows, cols) = (70, 160);
        let w = r.gaussian(rows * cols);
        let x = inputs(&mut r, 300, cols);
        let made = |threads| {
            let rt = runtime(threads);
            let mut hessian = Hessian::new(cols).unwrap();
            hessian.add(&rt, &x).unwrap();
            let s = spec(Bits::Two, false, Method::Search);
            quantize(&rt, &w, Shape::new(rows, cols, 16), &s, &hessian, &RUNS).unwrap()
        };
        assert_eq!(made(1), made(3));
    }

    #[test]
    fn zeros_and_nothing() {
        let rt = runtime(1);
        for (rows, cols) in [(0, 5), (5, 0), (0, 0), (2, 40)] {
            let w = vec![0.0; rows * cols];
            for bits in Bits::ALL {
                let s = spec(bits, false, Method::Nearest);
                let hessian = Hessian::new(cols).unwrap();
                let q = quantize(&rt, &w, Shape::new(rows, cols, 32), &s, &hessian, &RUNS).unwrap();
                let mut row = vec![1.0; cols];
                for r in 0..rows {
                    q.as_codes().dequantize_row(r, &mut row);
                    assert!(row.iter().all(|&q| q == 0.0));
                }
            }
        }
    }

    #[test]
    fn errors() {
        let rt = runtime(1);
        let hessian = Hessian::new(3).unwrap();
        let s = spec(Bits::Four, true, Method::Search);
        let message = |w: &[f32], shape| {
            let e = quantize(&rt, w, shape, &s, &hessian, &RUNS).unwrap_err();
            e.to_string()
        };
        let wrong = message(&[1.0; 8], Shape::new(2, 4, 2));
        assert!(wrong.contains("3 inputs, expected 4"), "{wrong}");
        let nan = message(&[1.0, f32::NAN, 0.0], Shape::new(1, 3, 2));
        assert!(nan.contains("row 0, column 1"), "{nan}");
    }
}
