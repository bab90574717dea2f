//! The searched grid: scale and zero point of least squared error, as near as a bounded search
//! gets.
//!
//! For a fixed window of levels the squared error as a function of the step is piecewise smooth
//! with many shallow minima, because it bends wherever a weight changes level. So the step is first
//! searched on a geometric grid that spans every sensible clipping, then on a finer one around the
//! best, and last by alternating the two closed forms (levels given the step, step given the
//! levels) until nothing improves. Windows, that is zero points, are found by hill climbing from
//! the one that rounding to nearest uses; climbing from the two symmetric ones as well made no
//! difference for Gaussian or heavy-tailed weights.
//!
//! The search works in float32 on a copy of the group scaled by a power of two, so that neither
//! sums nor steps overflow or underflow. It only proposes: the caller compares the proposal with
//! rounding to nearest by the true squared error.

use super::grid::{Grid, Precision, Window};
use super::shape::Bits;
use crate::error::Result;
use crate::memory;

/// Steps are tried at `2^COARSE_LOG` ratios of the longest for each window, then at `2^FINE_LOG`
/// between the best of these and each of its neighbours.
///
/// Measured on Gaussian weights: 32 coarse steps take half as long again and lower no error by
/// 0.1%, 8 raise it by up to 0.2%; 16 fine steps improve 8 bits in groups of 32 by 1% and nothing
/// else.
const COARSE_LOG: u32 = 4;
const FINE_LOG: u32 = 3;
/// Alternations of levels and step at the end; few groups need more than two.
const ALTERNATIONS: usize = 4;

/// Lanes of the inner loop, which the compiler vectorises.
const LANES: usize = 8;
/// Columns whose sums are accumulated in float32 before they are added in float64.
const BLOCK: usize = 512;

/// The working memory of a search: one group, scaled so that its largest magnitude is in 1..2.
pub(super) struct Search {
    /// `(columns of the group, rounded up to LANES)`, padded with zeros, which add no error.
    u: Vec<f32>,
}

/// A step, and the squared error of its levels after refitting the step to them.
#[derive(Clone, Copy)]
struct Trial {
    /// The step that determined the levels.
    step: f64,
    /// The step that fits these levels best.
    refit: f64,
    /// The squared error of these levels with the refitted step.
    error: f64,
}

impl Trial {
    fn better(self, other: Trial) -> Trial {
        if other.error < self.error {
            other
        } else {
            self
        }
    }
}

impl Search {
    /// Working memory for groups of up to `columns` columns.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub fn new(columns: usize) -> Result<Search> {
        let room = columns.saturating_add(LANES);
        Ok(Search {
            u: memory::with_capacity(room, "a group being searched")?,
        })
    }

    /// The best symmetric grid found for a group that is not all zeros.
    ///
    /// Both signs of the scale are tried. `None` if the scale cannot be represented in this
    /// precision.
    pub fn symmetric(&mut self, w: &[f32], bits: Bits, precision: Precision) -> Option<Grid> {
        let unit = self.load(w);
        let zero = bits.default_zero_point();
        let range = Range::of(&self.u, w.len());
        // The window of a negative scale is the mirrored one of a positive scale.
        let (window, mirrored) = (Window::new(bits, zero), Window::new(bits, zero - 1));
        let plain = self.coarse(range, window);
        let other = self.coarse(range, mirrored);
        let step = if other.error < plain.error {
            -self.polish(range, mirrored, other)
        } else {
            self.polish(range, window, plain)
        };
        Some(Grid::new(bits, precision.nearest(step * unit)?, zero))
    }

    /// The best grid found with any zero point for a group that is not all zeros.
    ///
    /// `start` is the zero point of rounding to nearest. `None` as for `symmetric`.
    pub fn asymmetric(
        &mut self,
        w: &[f32],
        bits: Bits,
        start: i32,
        precision: Precision,
    ) -> Option<Grid> {
        let unit = self.load(w);
        let range = Range::of(&self.u, w.len());
        let last = i32::from(bits.max_code());
        let window = |zero| Window::new(bits, zero);

        let mut zero = start;
        let mut best = self.coarse(range, window(zero));
        // At 8 bits one level is too small a stride to begin with.
        let strides: &[i32] = match bits {
            Bits::Eight => &[16, 4, 1],
            _ => &[1],
        };
        for &stride in strides {
            for step in [stride, -stride] {
                while (0..=last).contains(&(zero + step)) {
                    let trial = self.coarse(range, window(zero + step));
                    if trial.error >= best.error {
                        break;
                    }
                    best = trial;
                    zero += step;
                }
            }
        }
        let step = self.polish(range, window(zero), best);
        Some(Grid::new(bits, precision.nearest(step * unit)?, zero))
    }

    /// Copies a group, divided by the power of two that is returned.
    fn load(&mut self, w: &[f32]) -> f64 {
        let largest = w.iter().fold(0f32, |m, w| m.max(w.abs()));
        const EXPONENT: u64 = 0x7ff0_0000_0000_0000;
        // Float32 numbers are normal in float64, so the exponent alone is the power of two below.
        let unit = f64::from_bits(f64::from(largest).to_bits() & EXPONENT);
        self.u.clear();
        self.u
            .extend(w.iter().map(|&w| (f64::from(w) / unit) as f32));
        self.u.resize(w.len().next_multiple_of(LANES), 0.0);
        unit
    }

    /// The best step of the coarse grid.
    fn coarse(&self, range: Range, window: Window) -> Trial {
        let (longest, ratio) = range.steps(window);
        let mut step = longest;
        let mut best = self.try_step(window, step);
        for _ in 0..1 << COARSE_LOG {
            step *= ratio;
            best = best.better(self.try_step(window, step));
        }
        best
    }

    /// The step that the fine grid and the alternation find from the best coarse one.
    fn polish(&self, range: Range, window: Window, coarse: Trial) -> f64 {
        let (_, ratio) = range.steps(window);
        let fine = (0..FINE_LOG).fold(ratio, |r, _| r.sqrt());
        let mut best = coarse;
        let (mut down, mut up) = (coarse.step, coarse.step);
        for _ in 1..1 << FINE_LOG {
            down *= fine;
            up /= fine;
            best = best.better(self.try_step(window, down));
            best = best.better(self.try_step(window, up));
        }
        for _ in 0..ALTERNATIONS {
            let next = self.try_step(window, best.refit);
            if next.error >= best.error {
                break;
            }
            best = next;
        }
        best.refit
    }

    /// Rounds the group with one step and refits the step to the levels.
    ///
    /// With `x = u / step`, level `q` and residue `r = x - q`, the step that fits the levels best
    /// is `step * (1 + sum(r q) / sum(q^2))`, and its error is
    /// `step^2 * (sum(r^2) - sum(r q)^2 / sum(q^2))`. Sums of residues keep their precision in
    /// float32; sums of `u q` would lose the error at 8 bits.
    fn try_step(&self, window: Window, step: f64) -> Trial {
        let inverse = (1.0 / step) as f32;
        let (low, high) = (window.low as f32, window.high as f32);
        let (mut rr, mut rq, mut qq) = (0f64, 0f64, 0f64);
        for block in self.u.chunks(BLOCK) {
            let sums = block_sums(block, inverse, low, high);
            rr += f64::from(total(sums[0]));
            rq += f64::from(total(sums[1]));
            qq += f64::from(total(sums[2]));
        }
        let shift = if qq == 0.0 { 0.0 } else { rq / qq };
        Trial {
            step,
            refit: step * (1.0 + shift),
            error: step * step * (rr - shift * rq),
        }
    }
}

/// `sum(r^2)`, `sum(r q)` and `sum(q^2)` of a block, in lanes; `u` is a multiple of `LANES` long.
///
/// Not inlined: together with the horizontal sums that follow, the compiler pairs lanes in an order
/// that costs a shuffle per operation, and the loop takes twice as long.
#[inline(never)]
fn block_sums(u: &[f32], inverse: f32, low: f32, high: f32) -> [[f32; LANES]; 3] {
    let (mut rr, mut rq, mut qq) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
    for lane in u.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            let x = lane[i] * inverse;
            let q = round_even(x.clamp(low, high));
            let r = x - q;
            rr[i] += r * r;
            rq[i] += r * q;
            qq[i] += q * q;
        }
    }
    [rr, rq, qq]
}

/// The sum of the lanes, as a tree: a chain would cost more than the loop over a group of 32.
fn total(s: [f32; LANES]) -> f32 {
    ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))
}

/// `x` rounded to an integer, ties to even; `|x| < 2^22`. As in `grid`, for float32.
fn round_even(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT) - SHIFT
}

/// What bounds the steps worth trying for a group.
#[derive(Clone, Copy)]
struct Range {
    /// The magnitude of the most negative weight.
    below: f64,
    /// The largest positive weight.
    above: f64,
    /// The mean magnitude.
    mean: f64,
}

impl Range {
    /// The range of a padded group of `len` weights.
    fn of(u: &[f32], len: usize) -> Range {
        let (mut low, mut high, mut sum) = (0f32, 0f32, 0f64);
        for &u in u {
            low = low.min(u);
            high = high.max(u);
            sum += f64::from(u.abs());
        }
        Range {
            below: (-low).into(),
            above: high.into(),
            mean: sum / len as f64,
        }
    }

    /// The longest step to try, and the ratio between one step and the next.
    ///
    /// The longest clips nothing. At the shortest, the mean magnitude is already at the last level:
    /// a shorter one would clip half of the weights.
    fn steps(self, window: Window) -> (f64, f64) {
        let (low, high) = (f64::from(-window.low), f64::from(window.high));
        let longest = (self.below / low.max(1.0)).max(self.above / high.max(1.0));
        let shortest = self.mean / low.max(high);
        let ratio = (0..COARSE_LOG).fold((shortest / longest).min(1.0), |r, _| r.sqrt());
        (longest, ratio)
    }
}
