//! Round to nearest: a group's scale from its extreme weights only.

use super::grid::{Grid, Precision};
use super::shape::Bits;

/// The smallest and the largest weight of a group, in an interval extended to contain 0.
fn extremes(w: &[f32]) -> (f64, f64) {
    let (low, high) = w
        .iter()
        .fold((0f32, 0f32), |(l, h), &w| (l.min(w), h.max(w)));
    (low.into(), high.into())
}

/// The scale of 1-bit codes: the mean magnitude, which is the one of least squared error.
///
/// `sum (|w| - s)^2` is least at the mean of `|w|`, and each weight takes its own sign. `None` if
/// the scale cannot be represented in this precision.
pub(super) fn sign_scale(w: &[f32], precision: Precision) -> Option<f32> {
    let sum: f64 = w.iter().map(|w| f64::from(w.abs())).sum();
    precision.nearest(sum / w.len() as f64)
}

/// The symmetric grid (zero point `2^(bits-1)`) from the largest magnitude; `bits` is at least 2.
///
/// With `L = 2^(bits-1)` the levels `-L..=L-1` allow two rules, of which the better is taken:
///
/// - *full range*: the weight of largest magnitude becomes level `-L` exactly, so the scale has the
///   opposite sign; the step is widened if the largest weight on the other side would be more than
///   half a step beyond level `L-1`. This suits random weights: the step is `1/L` of the largest
///   weight.
/// - *restricted range*: the largest magnitude becomes level `L-1`, and `-L` is not used. This
///   reproduces weights that are already on a balanced grid exactly (above all ternary ones in 2
///   bits).
///
/// Both keep every weight within half a step. `None` if a scale cannot be represented in this
/// precision.
pub(super) fn symmetric(w: &[f32], bits: Bits, precision: Precision) -> Option<Grid> {
    let zero_point = bits.default_zero_point();
    let levels = f64::from(zero_point);
    let (low, high) = extremes(w);
    let (sign, longer, shorter) = if high > -low {
        (-1.0, high, -low)
    } else {
        (1.0, -low, high)
    };
    if longer == 0.0 {
        return Some(Grid::new(bits, 0.0, zero_point));
    }
    let full = sign * (longer / levels).max(shorter / (levels - 0.5));
    let full = Grid::new(bits, precision.at_least(full)?, zero_point);
    let restricted = longer / (levels - 1.0);
    let restricted = Grid::new(bits, precision.at_least(restricted)?, zero_point);
    Some(full.or_better(restricted, w))
}

/// The asymmetric grid from the smallest and the largest weight, the range extended to contain 0;
/// `bits` is at least 2.
///
/// Every weight is within half a step. `None` if the scale cannot be represented in this precision.
pub(super) fn asymmetric(w: &[f32], bits: Bits, precision: Precision) -> Option<Grid> {
    let (low, high) = extremes(w);
    let scale = precision.at_least((high - low) / f64::from(bits.max_code()))?;
    let zero_point = if scale == 0.0 {
        0
    } else {
        (-low / f64::from(scale)).round_ties_even() as i32
    };
    Some(Grid::new(bits, scale, zero_point))
}

#[cfg(test)]
mod tests {
    use super::super::grid::Window;
    use super::*;

    fn grid(scale: f32, low: i32, high: i32) -> Option<Grid> {
        Some(Grid {
            scale,
            window: Window { low, high },
        })
    }

    #[test]
    fn full_range_puts_the_largest_weight_on_the_longer_side() {
        let two = |w: &[f32]| symmetric(w, Bits::Two, Precision::Half);
        assert_eq!(two(&[-2.0, 1.0, 0.0]), grid(1.0, -2, 1));
        assert_eq!(two(&[2.0, -1.0, 0.0]), grid(-1.0, -2, 1));
        let four = |w: &[f32]| symmetric(w, Bits::Four, Precision::Half);
        assert_eq!(four(&[-8.0, 7.0, 3.0]), grid(1.0, -8, 7));
        assert_eq!(four(&[8.0, -7.0, 3.0]), grid(-1.0, -8, 7));
    }

    #[test]
    fn ternary_weights_take_the_restricted_range() {
        assert_eq!(
            symmetric(&[0.5, -0.5, 0.0, 0.5], Bits::Two, Precision::Half),
            grid(0.5, -2, 1)
        );
    }

    #[test]
    fn asymmetric_ranges_hold_zero() {
        let four = |w: &[f32]| asymmetric(w, Bits::Four, Precision::Half);
        assert_eq!(four(&[3.0, 15.0]), grid(1.0, 0, 15));
        assert_eq!(four(&[-3.0, -15.0]), grid(1.0, -15, 0));
        assert_eq!(four(&[-5.0, 10.0]), grid(1.0, -5, 10));
        assert_eq!(four(&[0.0, -0.0]), grid(0.0, 0, 15));
    }

    #[test]
    fn one_bit_takes_the_mean_magnitude() {
        assert_eq!(sign_scale(&[1.0, -3.0], Precision::Half), Some(2.0));
        assert_eq!(
            sign_scale(&[f32::MAX, -f32::MAX], Precision::Single),
            Some(f32::MAX)
        );
        assert_eq!(sign_scale(&[1e-9], Precision::Half), None);
    }
}
