//! The second moments of the inputs of a matrix.

use crate::error::Result;
use crate::matmul::Weights;
use crate::memory;
use crate::model::not_finite;
use crate::runtime::Runtime;

/// `E[x x']` of the inputs `x` of a matrix with `cols` columns.
#[derive(Clone, Debug)]
pub struct Hessian {
    cols: usize,
    /// `sum x x'`: `(cols, cols)`, symmetric but for rounding.
    sums: Vec<f32>,
    /// The number of inputs summed.
    count: usize,
}

impl Hessian {
    /// The sums of no inputs: zeros, `cols * cols * 4` bytes.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub fn new(cols: usize) -> Result<Hessian> {
        Ok(Hessian {
            cols,
            sums: memory::filled(cols.saturating_mul(cols), 0.0, "second moments")?,
            count: 0,
        })
    }

    /// Columns of the matrix.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The number of inputs added, over all calls.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Adds inputs `X` `(n, cols)`: `sums += XᵀX`.
    ///
    /// `XᵀX` is computed by a product of the library, with the columns of `X` both as rows of the
    /// matrix and as vectors; in float32, with one chain of sums per call.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub fn add(&mut self, rt: &Runtime, x: &[f32]) -> Result<()> {
        let cols = self.cols;
        let n = x.len() / cols.max(1);
        if n == 0 {
            return Ok(());
        }
        let mut columns = memory::filled(n * cols, 0.0, "inputs of a product")?;
        for (i, x) in x.chunks_exact(cols).enumerate() {
            for (c, &x) in x.iter().enumerate() {
                columns[c * n + i] = x;
            }
        }
        let matrix = Weights::from_f32(&columns, cols, n, false)?;
        // In bands, to limit the memory that a call takes besides the sums.
        let band = (BAND_ELEMENTS / cols).clamp(1, cols);
        let mut product = memory::filled(band * cols, 0.0, "second moments of a block")?;
        for (sums, columns) in self
            .sums
            .chunks_mut(band * cols)
            .zip(columns.chunks(band * n))
        {
            let product = &mut product[..sums.len()];
            matrix.multiply(rt, columns, product, sums.len() / cols)?;
            for (s, p) in sums.iter_mut().zip(product) {
                *s += *p;
            }
        }
        self.count += n;
        Ok(())
    }

    /// The mean, with a fraction of the mean of its diagonal added to the diagonal. This makes it
    /// positive definite: errors along a direction that no input had cost little, but not nothing.
    /// `(cols, cols)`; the identity if there were no inputs, or all were 0.
    ///
    /// # Errors
    /// `ERR_FORMAT` if an input, or its square, was not finite; `ERR_MEMORY`.
    pub(super) fn damped(&self) -> Result<Vec<f32>> {
        let mut h = memory::with_capacity(self.sums.len(), "second moments")?;
        let diagonal = self.sums.iter().step_by(self.cols + 1);
        let trace: f64 = diagonal.map(|&d| f64::from(d)).sum();
        if !trace.is_finite() {
            return Err(not_finite("the squares of the activations for a text"));
        }
        let mean = trace / self.cols.max(1) as f64;
        // The minimisation depends only on ratios, so values are scaled to where float32 is most
        // precise.
        let unit = if mean > 0.0 { 1.0 / mean } else { 0.0 };
        h.extend(self.sums.iter().map(|&s| (f64::from(s) * unit) as f32));
        let added = if mean > 0.0 { DAMPING } else { 1.0 };
        h.iter_mut()
            .step_by(self.cols + 1)
            .for_each(|d| *d += added);
        Ok(h)
    }
}

/// The summand on the diagonal, relative to its mean, so that directions that do not occur in the
/// text keep a small weight.
const DAMPING: f32 = 0.01;

/// Elements of a band of the product: 16 MB.
const BAND_ELEMENTS: usize = 1 << 22;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Config;
    use crate::testing::Random;

    #[test]
    fn sums_are_those_of_the_definition() {
        let rt = Runtime::new(Config::default()).unwrap();
        let mut r = Random::new(1);
        for (cols, n) in [(1, 1), (3, 5), (33, 7), (70, 130)] {
            let x = r.gaussian(2 * n * cols);
            let mut h = Hessian::new(cols).unwrap();
            h.add(&rt, &x[..n * cols]).unwrap();
            h.add(&rt, &x[n * cols..]).unwrap();
            assert_eq!(h.count(), 2 * n);
            for a in 0..cols {
                for b in 0..cols {
                    let sum: f64 = x
                        .chunks_exact(cols)
                        .map(|x| f64::from(x[a]) * f64::from(x[b]))
                        .sum();
                    let got = f64::from(h.sums[a * cols + b]);
                    assert!(
                        (got - sum).abs() < 1e-4 * n as f64,
                        "{cols} {n}: {got} {sum}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        let rt = Runtime::new(Config::default()).unwrap();
        for x in [[1.0, f32::INFINITY], [f32::NAN, 1.0], [1e30, 1.0]] {
            let mut h = Hessian::new(2).unwrap();
            h.add(&rt, &x).unwrap();
            let e = h.damped().unwrap_err();
            assert_eq!(e.status(), crate::error::Status::Format, "{e}");
        }
    }

    #[test]
    fn nothing_seen_is_the_identity() {
        assert_eq!(
            Hessian::new(2).unwrap().damped().unwrap(),
            [1.0, 0.0, 0.0, 1.0]
        );
        assert!(Hessian::new(0).unwrap().damped().unwrap().is_empty());
    }
}
