//! The rotary position embedding: rotates pairs of elements of a head by angles proportional to the
//! position.

use super::architecture::{Pairing, Rope, RopeScaling};
use crate::error::Result;
use crate::memory;

/// Frequencies, and the cosines and sines for the positions of a block.
pub(super) struct Rotary {
    /// Radians per position, for each pair: `(head_dim/2)`
    frequencies: Vec<f64>,
    /// The factor on cosines and sines.
    amplitude: f64,
    /// `Some((theta, factor, original context))` if frequencies depend on the length of the
    /// sequence.
    dynamic: Option<(f64, f64, f64)>,
    pairing: Pairing,
    /// `(n, head_dim/2)` for the prepared block.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// YaRN's factor on cosines and sines for a context extended by `factor`:
/// `0.1 scale ln(factor) + 1` (Peng et al. 2023, equation 22, where `scale` is 1).
pub(super) fn yarn_attention_factor(factor: f64, scale: f64) -> f64 {
    0.1 * scale * factor.max(1.0).ln() + 1.0
}

impl Rotary {
    /// `block`: the most positions that are prepared at once.
    pub fn new(rope: &Rope, head_dim: usize, block: usize) -> Result<Rotary> {
        let pairs = head_dim / 2;
        let plain = |theta: f64| -> Vec<f64> {
            (0..pairs)
                .map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64))
                .collect()
        };
        let mut frequencies = plain(rope.theta);
        let (mut amplitude, mut dynamic) = (1.0, None);
        match &rope.scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => frequencies.iter_mut().for_each(|f| *f /= factor),
            &RopeScaling::Dynamic {
                factor,
                original_context,
            } => dynamic = Some((rope.theta, factor, original_context as f64)),
            RopeScaling::Divisors(divisors) => {
                for (f, d) in frequencies.iter_mut().zip(divisors) {
                    *f /= f64::from(*d);
                }
            }
            &RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                for f in &mut frequencies {
                    let turns = original_context as f64 * *f / std::f64::consts::TAU;
                    let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let smooth = smooth.clamp(0.0, 1.0);
                    *f *= (1.0 - smooth) / factor + smooth;
                }
            }
            &RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate,
            } => {
                // The (fractional) pair that makes `beta` rotations over the original context.
                let pair = |beta: f64| {
                    let turns = original_context as f64 / (beta * std::f64::consts::TAU);
                    head_dim as f64 * turns.ln() / (2.0 * rope.theta.ln())
                };
                let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                for (i, f) in frequencies.iter_mut().enumerate() {
                    let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    *f *= divided / factor + (1.0 - divided);
                }
                amplitude = attention_factor.unwrap_or(yarn_attention_factor(factor, 1.0));
            }
        }
        Ok(Rotary {
            frequencies,
            amplitude,
            dynamic,
            pairing: rope.pairing,
            cos: memory::filled(block * pairs, 0.0, "rotary cosines")?,
            sin: memory::filled(block * pairs, 0.0, "rotary sines")?,
        })
    }

    /// Whether frequencies depend on the length of the sequence.
    pub fn is_dynamic(rope: &Rope) -> bool {
        matches!(rope.scaling, RopeScaling::Dynamic { .. })
    }

    /// Prepares the `n` positions from `first` on, for a sequence of this length.
    pub fn prepare(&mut self, first: usize, n: usize, length: usize) {
        self.grow(length);
        let pairs = self.frequencies.len();
        for t in 0..n {
            for (i, f) in self.frequencies.iter().enumerate() {
                let (sin, cos) = ((first + t) as f64 * f).sin_cos();
                self.cos[t * pairs + i] = (self.amplitude * cos) as f32;
                self.sin[t * pairs + i] = (self.amplitude * sin) as f32;
            }
        }
    }

    /// The frequencies for a sequence of this length, in radians per position `(head_dim/2)`, and
    /// whether they have changed, which happens only with [`RopeScaling::Dynamic`].
    pub fn grow(&mut self, length: usize) -> (&[f64], bool) {
        let pairs = self.frequencies.len();
        let mut changed = false;
        if let Some((theta, factor, original)) = self.dynamic {
            let length = (length as f64).max(original);
            let width = 2.0 * pairs as f64;
            let grown = factor * length / original - (factor - 1.0);
            let base = theta * grown.powf(width / (width - 2.0));
            for (i, f) in self.frequencies.iter_mut().enumerate() {
                let new = base.powf(-2.0 * i as f64 / width);
                changed |= *f != new;
                *f = new;
            }
        }
        (&self.frequencies, changed)
    }

    /// The factor on cosines and sines.
    pub fn amplitude(&self) -> f64 {
        self.amplitude
    }

    /// Rotates one head `(head_dim)` by the angles of the prepared position `t`.
    pub fn rotate(&self, t: usize, head: &mut [f32]) {
        let pairs = self.frequencies.len();
        let (cos, sin) = (
            &self.cos[t * pairs..][..pairs],
            &self.sin[t * pairs..][..pairs],
        );
        match self.pairing {
            Pairing::Halves => {
                let (a, b) = head.split_at_mut(pairs);
                for i in 0..pairs {
                    let (x, y) = (a[i], b[i]);
                    a[i] = x * cos[i] - y * sin[i];
                    b[i] = y * cos[i] + x * sin[i];
                }
            }
            Pairing::Neighbours => {
                for (i, pair) in head.chunks_exact_mut(2).enumerate() {
                    let (x, y) = (pair[0], pair[1]);
                    pair[0] = x * cos[i] - y * sin[i];
                    pair[1] = y * cos[i] + x * sin[i];
                }
            }
        }
    }
}
