//! Activations in int8: one float32 scale per block, symmetric.

/// Below this largest magnitude, `127 / amax` may overflow, or precision is lost to a subnormal
/// scale.
pub const TINY_AMAX: f32 = f32::from_bits((127 - 100) << 23); // 2^-100

/// Quantises one block of activations and returns its scale: `x[i]` is approximated by
/// `scale * q[i]`.
///
/// `scale = amax / 127` with `amax` the largest magnitude; `q = round_half_even(x * (127 / amax))`,
/// in -127..=127. A block of zeros has scale 0. If `amax < 2^-100`, the quotient `x / scale` is
/// used instead of the product, and clamped. `x` must be finite; `q` is as long as `x`.
pub fn quantize_block(x: &[f32], q: &mut [i8]) -> f32 {
    let amax = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    let scale = amax / 127.0;
    if amax >= TINY_AMAX {
        let inverse = 127.0 / amax;
        for (q, x) in q.iter_mut().zip(x) {
            *q = (x * inverse).round_ties_even() as i8;
        }
    } else {
        for (q, x) in q.iter_mut().zip(x) {
            let quotient = if scale == 0.0 { 0.0 } else { x / scale };
            *q = quotient.round_ties_even().clamp(-127.0, 127.0) as i8;
        }
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(x: &[f32]) -> (f32, Vec<i8>) {
        let mut q = vec![99; x.len()];
        (quantize_block(x, &mut q), q)
    }

    #[test]
    fn the_largest_becomes_127() {
        assert_eq!(block(&[1.0, -2.0, 0.0]), (2.0 / 127.0, vec![64, -127, 0]));
        assert_eq!(block(&[0.0, -0.0]), (0.0, vec![0, 0]));
        assert_eq!(block(&[]), (0.0, vec![]));
    }

    #[test]
    fn half_goes_to_even() {
        assert_eq!(block(&[127.0, 0.5, 1.5, -2.5]).1, [127, 0, 2, -2]);
    }

    #[test]
    fn extremes_stay_in_range() {
        assert_eq!(block(&[f32::MAX, -f32::MAX]).1, [127, -127]);
        let (scale, q) = block(&[1e-38, -6e-39, 0.0]);
        assert_eq!(q, [127, -76, 0]);
        assert!((scale as f64 * 127.0 / 1e-38 - 1.0).abs() < 1e-3);
        assert_eq!(
            block(&[f32::from_bits(1)]).1,
            [0],
            "the scale underflows to 0"
        );
    }

    #[test]
    fn error_is_at_most_half_a_step() {
        let x: Vec<f32> = (0..128)
            .map(|i| ((i * 7919 % 257) as f32 - 128.0) * 0.37)
            .collect();
        let (scale, q) = block(&x);
        for (x, q) in x.iter().zip(q) {
            assert!((x - scale * q as f32).abs() <= 0.5001 * scale);
        }
    }
}
