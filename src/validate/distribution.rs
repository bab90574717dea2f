//! How weights are distributed between the codes.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::network::Matrix;
use crate::quant::{Bits, CodesBuf};

/// Weights divided by the scales of their groups, and their codes.
#[derive(Clone, Debug)]
pub struct Distribution {
    /// The layer or the model with these weights.
    pub of: String,
    /// Bits per code.
    pub bits: Bits,
    /// Columns per scale; 0: a row.
    pub group: usize,
    /// Positions `w / scale`, and the density of weights around each.
    pub weights: Vec<(f64, f64)>,
    /// Levels, and the share of weights with each.
    pub codes: Vec<(i32, f64)>,
}

impl Distribution {
    /// Over all matrices, each with its codes; `bits` and `group` are those of most weights.
    pub fn new<'a>(
        of: &str,
        bits: Bits,
        group: usize,
        matrices: impl Iterator<Item = (&'a Matrix, &'a CodesBuf)>,
    ) -> Distribution {
        let half = 1i32 << (bits.get() - 1);
        // Beyond the outer levels there is room for clipped weights; at 8 bits a bin is a level.
        let (reach, bins) = match bits {
            Bits::One => (3.5, 16),
            Bits::Two => (3.5, 16),
            Bits::Four => (10.0, 8),
            Bits::Eight => (130.0, 1),
        };
        let count = (2.0 * reach * f64::from(bins)) as usize;
        let mut weights = vec![0u64; count];
        let levels = (0..1u16 << bits.get()).map(|code| bits.level(code as u8, half));
        let mut codes: BTreeMap<i32, u64> = levels.map(|level| (level, 0)).collect();
        let mut all = 0u64;
        for (w, quantised) in matrices {
            let c = quantised.as_codes();
            let mut row_codes = vec![0u8; w.cols];
            for (r, w) in w.values.chunks_exact(w.cols.max(1)).enumerate() {
                c.row_codes(r, &mut row_codes);
                for g in 0..c.shape.groups {
                    let (scale, zero) = (f64::from(c.scale(r, g)), c.zero_point(r, g));
                    for i in c.shape.group_columns(g) {
                        all += 1;
                        *codes.entry(bits.level(row_codes[i], zero)).or_default() += 1;
                        let at = (f64::from(w[i]) / scale + reach) * f64::from(bins);
                        if at >= 0.0 && (at as usize) < count {
                            weights[at as usize] += 1;
                        }
                    }
                }
            }
        }
        let share = |n: u64| n as f64 / all.max(1) as f64;
        let weights = weights.into_iter().enumerate().map(|(i, n)| {
            let position = (i as f64 + 0.5) / f64::from(bins) - reach;
            (position, share(n) * f64::from(bins))
        });
        let codes = codes.into_iter().map(|(level, n)| (level, share(n)));
        Distribution {
            of: of.to_owned(),
            bits,
            group,
            weights: weights.collect(),
            codes: codes.collect(),
        }
    }

    /// An element of `distributions` in the report: `docs/validation.md`.
    pub fn to_json(&self) -> Value {
        json!({"of": self.of, "bits": self.bits.get(), "group": self.group, "weights": self.weights, "codes": self.codes})
    }
}
