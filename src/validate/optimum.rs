//! The error of the best scales, by an oracle that shares no code with the search of `quant`.

use crate::quant::Bits;

/// The number of scales tried for a group, of each sign.
const TRIED: usize = 64;

/// The largest relative error of rounding to float16.
const HALF_ULP: f64 = 1.0 / 2048.0;

/// A group of weights, and the error of its best scale.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// The number of columns, all of which share a scale.
    pub len: usize,
    /// Σ w²
    pub squares: f64,
    /// Σ (w − w')² with the best of the scales tried.
    pub least: f64,
}

/// The groups of `w` `(rows, cols)`, row by row; `group` columns share a scale, 0: a row. Codes are
/// symmetric.
pub fn groups(w: &[f32], cols: usize, group: usize, bits: Bits) -> Vec<Group> {
    let group = if group == 0 { cols } else { group };
    let rows = w.chunks_exact(cols.max(1));
    rows.flat_map(|row| row.chunks(group))
        .map(|w| Group {
            len: w.len(),
            squares: w.iter().map(|&w| f64::from(w).powi(2)).sum(),
            least: least(w, bits),
        })
        .collect()
}

/// The relative error, `norm(W - W') / norm(W)`, of all groups together.
pub fn relative_error(groups: &[Group]) -> f64 {
    let squares: f64 = groups.iter().map(|g| g.squares).sum();
    let least: f64 = groups.iter().map(|g| g.least).sum();
    (least / squares.max(f64::MIN_POSITIVE)).sqrt()
}

/// The least squared error of a group.
fn least(w: &[f32], bits: Bits) -> f64 {
    let n = w.len() as f64;
    if bits == Bits::One {
        // ±s: the mean magnitude is the best s.
        let mean = w.iter().map(|&w| f64::from(w.abs())).sum::<f64>() / n;
        let error: f64 = w.iter().map(|&w| (f64::from(w.abs()) - mean).powi(2)).sum();
        // Scales are float16: where all magnitudes are equal, their rounding is all there is.
        return error + n * (mean * HALF_ULP).powi(2);
    }
    let half = f64::from(1u32 << (bits.get() - 1));
    let most = w.iter().fold(0.0f64, |m, &w| m.max(f64::from(w.abs())));
    if most == 0.0 {
        return 0.0;
    }
    let error = |scale: f64| -> f64 {
        let inverse = 1.0 / scale;
        let one = |w: &f32| {
            let w = f64::from(*w);
            let level = (w * inverse).round_ties_even().clamp(-half, half - 1.0);
            (w - scale * level).powi(2)
        };
        w.iter().map(one).sum()
    };
    // From clipping at a fifth of the largest weight to no clipping, for either sign.
    let widest = most / (half - 1.0).max(1.0);
    let tried = (1..=TRIED).map(|i| widest * (0.2 + 0.85 * i as f64 / TRIED as f64));
    tried
        .flat_map(|s| [error(s), error(-s)])
        .fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_on_a_grid_cost_nothing_and_two_levels_what_is_known() {
        let w: Vec<f32> = (0..16).map(|i| (i - 8) as f32).collect();
        let found = relative_error(&groups(&w, 16, 0, Bits::Four));
        assert!(found < 0.04, "{found}");
        // Magnitudes 1 and 3 around their mean 2: an error of 1 each.
        let w = [1.0, -3.0, 3.0, -1.0];
        let found = relative_error(&groups(&w, 4, 0, Bits::One));
        assert!((found - (4.0f64 / 20.0).sqrt()).abs() < 1e-6, "{found}");
        // A single magnitude, which float16 cannot represent: the error is that of the scale.
        let found = relative_error(&groups(&[0.0823, -0.0823, 0.0823, 0.0823], 4, 0, Bits::One));
        let stored = f64::from(half::f16::from_f32(0.0823)) / f64::from(0.0823f32);
        assert!((stored - 1.0).abs() <= found && found < 5e-4, "{found}");
        assert_eq!(relative_error(&groups(&[0.0; 8], 4, 2, Bits::Two)), 0.0);
    }
}
