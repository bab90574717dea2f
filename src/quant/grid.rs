//! A group's grid: the scale and the window of integer levels to which its weights are rounded.

use half::f16;

use super::shape::Bits;

/// The precision in which the scales of a matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Normal float16 numbers, and 0.
    Half,
    /// Float32 numbers.
    Single,
}

impl Precision {
    /// The nearest scale that can be represented, or `None` if there is none.
    ///
    /// Rounds through float32, so that the result does not depend on the processor's conversions.
    pub(super) fn nearest(self, scale: f64) -> Option<f32> {
        let single = scale as f32;
        match self {
            Precision::Single => single.is_finite().then_some(single),
            Precision::Half if scale == 0.0 => Some(single),
            Precision::Half => {
                let half = f16::from_f32(single);
                half.is_normal().then(|| half.to_f32())
            }
        }
    }

    /// The nearest scale that can be represented and is not smaller in magnitude, or `None` if
    /// there is none.
    ///
    /// A step chosen so that no weight is more than half a step away must not shrink, and a
    /// subnormal float32 step must not become 0. This costs 0.05% of error in float16.
    pub(super) fn at_least(self, scale: f64) -> Option<f32> {
        let up = |near: f32| {
            if f64::from(near).abs() < scale.abs() {
                f32::from_bits(near.to_bits() + 1)
            } else {
                near
            }
        };
        match self {
            Precision::Single => Some(up(scale as f32)).filter(|s| s.is_finite()),
            Precision::Half if scale == 0.0 => Some(scale as f32),
            Precision::Half => {
                let half = f16::from_f32(scale as f32);
                let half = if half.to_f64().abs() < scale.abs() {
                    f16::from_bits(half.to_bits() + 1)
                } else {
                    half
                };
                half.is_normal().then(|| half.to_f32())
            }
        }
    }
}

/// `x` rounded to an integer, ties to even; `|x| < 2^51`.
///
/// Adding 1.5 * 2^52 leaves no bits for a fraction, and the sum is rounded to even. The intrinsic
/// is a call to libm where SSE4.1 cannot be assumed, which prevents vectorisation of the loops
/// around it.
fn round_even(x: f64) -> f64 {
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    (x + SHIFT) - SHIFT
}

/// The integer levels `low..=high` that codes represent; 0 is always among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// The smallest level, at most 0.
    pub low: i32,
    /// The largest level, at least 0.
    pub high: i32,
}

impl Window {
    /// The levels of `bits`-bit codes with this zero point; `bits` is at least 2.
    pub fn new(bits: Bits, zero_point: i32) -> Window {
        Window {
            low: -zero_point,
            high: i32::from(bits.max_code()) - zero_point,
        }
    }
}

/// The values to which the weights of one group are rounded: `scale * level`.
///
/// The scale may be negative: then the longer side of an even number of levels is the positive one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Grid {
    pub scale: f32,
    pub window: Window,
}

impl Grid {
    /// The grid of `bits`-bit codes with this scale and zero point; `bits` is at least 2.
    pub fn new(bits: Bits, scale: f32, zero_point: i32) -> Grid {
        Grid {
            scale,
            window: Window::new(bits, zero_point),
        }
    }

    /// The zero point of the codes.
    pub fn zero_point(&self) -> i32 {
        -self.window.low
    }

    /// A function from a weight to its level: the nearest one in the window, ties to the even
    /// level.
    ///
    /// If the scale is near the end of float32, levels whose product is not finite are excluded.
    fn rounder(&self) -> impl Fn(f32) -> f64 + use<> {
        let scale = f64::from(self.scale);
        let finite = (f64::from(f32::MAX) / scale.abs()).floor();
        let low = f64::from(self.window.low).max(-finite);
        let high = f64::from(self.window.high).min(finite);
        // With a scale of 0 every level gives 0; any divisor will do.
        let divisor = if scale == 0.0 { f64::INFINITY } else { scale };
        move |w| round_even((f64::from(w) / divisor).clamp(low, high))
    }

    /// The codes of a group; both slices are `(columns of the group)`.
    pub fn codes(&self, w: &[f32], codes: &mut [u8]) {
        let level = self.rounder();
        let zero = f64::from(self.zero_point());
        for (code, &w) in codes.iter_mut().zip(w) {
            *code = (level(w) + zero) as u8;
        }
    }

    /// The sum of `(w - dequantised w)^2` over a group, in float64.
    pub fn squared_error(&self, w: &[f32]) -> f64 {
        let level = self.rounder();
        w.iter()
            .map(|&w| {
                let rounded = self.scale * level(w) as f32;
                (f64::from(w) - f64::from(rounded)).powi(2)
            })
            .sum()
    }

    /// The better of two grids for a group; `self` if they are equal.
    pub fn or_better(self, other: Grid, w: &[f32]) -> Grid {
        if other != self && other.squared_error(w) < self.squared_error(w) {
            other
        } else {
            self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_agrees_with_the_intrinsic() {
        for i in -2048..2048 {
            let x = f64::from(i) / 8.0;
            assert_eq!(round_even(x), x.round_ties_even());
        }
    }

    #[test]
    fn scales_that_can_be_kept() {
        let half = Precision::Half;
        let single = Precision::Single;
        assert_eq!(half.nearest(0.0), Some(0.0));
        assert_eq!(half.nearest(1.0 + 2f64.powi(-12)), Some(1.0));
        assert_eq!(half.at_least(1.0 + 2f64.powi(-12)), Some(1.0009766));
        assert_eq!(half.at_least(-1.0 - 2f64.powi(-12)), Some(-1.0009766));
        assert_eq!(half.at_least(0.5), Some(0.5));
        // Smallest normal, and below it.
        let tiny = 2f64.powi(-14);
        assert_eq!(half.at_least(tiny), Some(tiny as f32));
        assert_eq!(half.nearest(tiny * 0.9), None);
        assert_eq!(half.at_least(tiny * 0.9), None);
        // Largest, and above it.
        assert_eq!(half.at_least(65504.0), Some(65504.0));
        assert_eq!(half.at_least(65505.0), None);
        assert_eq!(half.nearest(65520.0), None);
        // Subnormal float32 scales do not vanish, but may be rounded to 0 if the nearest is
        // requested.
        let least = f64::from(f32::from_bits(1));
        assert_eq!(single.at_least(least / 7.0), Some(f32::from_bits(1)));
        assert_eq!(single.nearest(least / 7.0), Some(0.0));
        assert_eq!(single.nearest(1e300), None);
    }

    #[test]
    fn levels_that_would_overflow_are_left_out() {
        let grid = Grid::new(Bits::Two, f32::MAX / 1.5, 2);
        let mut codes = [9; 3];
        grid.codes(&[-f32::MAX, 0.0, f32::MAX], &mut codes);
        assert_eq!(codes, [1, 2, 3]);
        assert!(grid.squared_error(&[-f32::MAX]).is_finite());
    }

    #[test]
    fn a_scale_of_zero_gives_the_zero_point() {
        let grid = Grid::new(Bits::Four, 0.0, 8);
        let mut codes = [9; 2];
        grid.codes(&[0.0, -0.0], &mut codes);
        assert_eq!(codes, [8, 8]);
        assert_eq!(grid.squared_error(&[0.0, -0.0]), 0.0);
    }
}
