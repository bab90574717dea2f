//! What the best scales could do: an oracle that shares nothing with the search of `quant`.

use crate::quant::Bits;

/// Scales that are tried for a group, of each sign.
const TRIED: usize = 160;

/// The relative error, `norm(W - W') / norm(W)`, of symmetric codes whose every group has the best scale of many that are tried
/// one after the other. `w` is `(rows, cols)`; `group` columns share a scale, 0: a row.
pub fn relative_error(w: &[f32], cols: usize, group: usize, bits: Bits) -> f64 {
    let group = if group == 0 { cols } else { group };
    let (mut squares, mut errors) = (0.0, 0.0);
    for row in w.chunks_exact(cols) {
        for w in row.chunks(group) {
            squares += w.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>();
            errors += least(w, bits);
        }
    }
    (errors / squares).sqrt()
}

/// The least squared error of a group.
fn least(w: &[f32], bits: Bits) -> f64 {
    let n = w.len() as f64;
    if bits == Bits::One {
        // ±s: the mean magnitude is the best s.
        let mean = w.iter().map(|&w| f64::from(w.abs())).sum::<f64>() / n;
        return w.iter().map(|&w| (f64::from(w.abs()) - mean).powi(2)).sum();
    }
    let half = f64::from(1u32 << (bits.get() - 1));
    let most = w.iter().fold(0.0f64, |m, &w| m.max(f64::from(w.abs())));
    let error = |scale: f64| -> f64 {
        let one = |w: &f32| {
            let w = f64::from(*w);
            let level = (w / scale).round_ties_even().clamp(-half, half - 1.0);
            (w - scale * level).powi(2)
        };
        w.iter().map(one).sum()
    };
    // From clipping at a fifth of the largest weight to clipping none of them, on either side.
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
        assert!(relative_error(&w, 16, 0, Bits::Four) < 0.02);
        // Magnitudes 1 and 3 about their mean 2: an error of 1 each.
        let w = [1.0, -3.0, 3.0, -1.0];
        let found = relative_error(&w, 4, 0, Bits::One);
        assert!((found - (4.0f64 / 20.0).sqrt()).abs() < 1e-12, "{found}");
    }
}
