//! The test channel of rate-distortion theory (Cover and Thomas, Elements of Information Theory,
//! chapter 10): noise of the size that quantisation must cause.

use super::network::Matrix;
use super::numbers::Numbers;
use super::optimum::Group;

/// `W' = (1 - D) W + sqrt(D (1 - D)) rms(W) N` in each group, with `D` its least squared error over
/// its sum of squares and `N` standard normal: `E |W' - W|² = D |W|²` and `E |W'|² = (1 - D) |W|²`,
/// as for the best quantiser, and independent of everything else.
pub fn through(w: &Matrix, group: usize, groups: &[Group], seed: u64) -> Matrix {
    let mut numbers = Numbers::new(seed);
    let group = if group == 0 { w.cols } else { group };
    let mut values = Vec::with_capacity(w.values.len());
    let rows = w.values.chunks_exact(w.cols.max(1));
    for (w, g) in rows.flat_map(|row| row.chunks(group)).zip(groups) {
        let d = (g.least / g.squares.max(f64::MIN_POSITIVE)).min(1.0);
        let noise = (d * (1.0 - d) * g.squares / g.len as f64).sqrt();
        values.extend(
            w.iter()
                .map(|&w| ((1.0 - d) * f64::from(w) + noise * numbers.normal()) as f32),
        );
    }
    Matrix { values, ..*w }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Bits;
    use crate::validate::{optimum, relative};

    #[test]
    fn it_loses_what_it_is_told_to() {
        let w = Matrix {
            rows: 64,
            cols: 128,
            values: Numbers::new(3).normals(64 * 128, 0.1),
            group: None,
        };
        for bits in Bits::ALL {
            let groups = optimum::groups(&w.values, w.cols, 32, bits);
            let made = through(&w, 32, &groups, 5);
            let (found, expected) = (
                relative(&made.values, &w.values),
                optimum::relative_error(&groups),
            );
            assert!(
                (found / expected - 1.0).abs() < 0.05,
                "{bits:?}: {found}, expected {expected}"
            );
            let squares = |w: &[f32]| w.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>();
            let kept = squares(&made.values) / squares(&w.values);
            assert!(
                (kept - 1.0 + expected.powi(2)).abs() < 0.03,
                "{bits:?}: {kept}"
            );
        }
    }
}
