//! Float32 activations as three int8 vectors, so that integer products give float32 accuracy.
//!
//! A block is rounded to a fixed-point number per element, of 24 bits relative to the largest
//! magnitude, whose three bytes are the *digits*: the product of a matrix with the block is the sum
//! of its exact integer products with the digits, times powers of two. (Ozaki, Ogita, Oishi and
//! Rump, "Error-free transformations of matrix multiplication by using fast routines of matrix
//! multiplication and its applications", Numerical Algorithms 59, 2012, with a fixed number of
//! slices.)
//!
//! The scale of a block is a power of two and at most `1.01 * 2^-22` of its largest magnitude, and
//! the rounding error of an element at most half of it. The error of a product of `w` with a block
//! `x` of `b` columns is therefore at most `1.01 * 2^-23 * sqrt(b) * norm2(w) * norm2(x)`: 0.7e-6
//! of the norms for 32 columns, 1.4e-6 for 128. Multiples of the scale, such as integers below
//! 2^21, are not rounded.
//!
//! What fixed point represents badly is not split, and has to be multiplied as floats: a vector
//! that is not finite or outside of [`SPLIT_SMALLEST`] and [`SPLIT_LARGEST`], or whose elements
//! differ so much that more than half of the nonzero elements of a block would keep less than
//! eleven bits.

/// The number of digits.
pub const DIGITS: usize = 3;

/// The ratio between the scales of two consecutive digits.
pub const DIGIT_BASE: f32 = 256.0;

/// Vectors are split if their largest magnitude is 0, or at least [`SPLIT_SMALLEST`] and less than
/// this.
pub const SPLIT_LARGEST: f32 = pow2(64);

/// See [`SPLIT_LARGEST`].
pub const SPLIT_SMALLEST: f32 = pow2(-30);

/// Matrices are multiplied by split vectors if their scales are 0, or have magnitudes in this
/// range: then the products of their scales with those of blocks are normal float32 numbers, and
/// sums stay in range.
pub const SPLIT_SCALES: std::ops::RangeInclusive<f32> = pow2(-58)..=pow2(40);

/// The exponent of the smallest scale. Blocks below [`SPLIT_FULL_BLOCK`], which is 2^16 times
/// smaller than the largest magnitude of any vector that is split, are rounded to multiples of it.
const SMALLEST_EXPONENT: i32 = -68;

/// The magnitude from which a block keeps all of its digits.
pub const SPLIT_FULL_BLOCK: f32 = pow2(SMALLEST_EXPONENT + 22);

/// The largest magnitude of a block exceeds the scale by 22 bits, or by 21 if it would not fit
/// three digits, which reach 0x7f7f7f: this, added to the bits of a float, then carries into the
/// exponent.
const CARRY: u32 = 0x80_0000 - 0x7e_feff;

/// Elements of at least this many times the scale keep eleven bits.
pub const SPLIT_KEPT: f32 = pow2(10);

/// `2^exponent`, a normal number.
const fn pow2(exponent: i32) -> f32 {
    f32::from_bits(((127 + exponent) as u32) << 23)
}

/// The scale of a block with this largest magnitude, which is finite: a power of two.
#[inline(always)]
pub fn split_scale(largest: f32) -> f32 {
    let exponent = ((largest.to_bits() + CARRY) >> 23) as i32 - 127;
    pow2((exponent - 22).max(SMALLEST_EXPONENT))
}

/// Splits one block and returns the scale of the least significant digit, or `None`, with
/// unspecified digits, if its elements differ too much, or are too large or not finite (see the
/// module): `x[i]` is approximated by `scale * (d[0][i] + 256 * d[1][i] + 65536 * d[2][i])`.
///
/// The digits are those of `round_half_even(x / scale)`, in -128..=127.
pub fn split_block(x: &[f32], mut digits: [&mut [i8]; DIGITS]) -> Option<f32> {
    let largest = x.iter().fold(0, |m, x| m.max(x.abs().to_bits()));
    let largest = f32::from_bits(largest);
    if largest.is_nan() || largest >= SPLIT_LARGEST {
        return None;
    }
    let scale = split_scale(largest);
    let kept = x.iter().filter(|x| x.abs() >= SPLIT_KEPT * scale).count();
    if largest >= SPLIT_FULL_BLOCK && 2 * kept < x.iter().filter(|&&x| x != 0.0).count() {
        return None;
    }
    for (i, x) in x.iter().enumerate() {
        let fixed = (x * (1.0 / scale)).round_ties_even() as i32;
        let bytes = (fixed + 0x80_8080).to_le_bytes();
        for (digits, byte) in digits.iter_mut().zip(bytes) {
            digits[i] = (byte ^ 0x80) as i8;
        }
    }
    Some(scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    fn split(x: &[f32]) -> Option<(f32, Vec<i32>)> {
        let mut digits = [(); DIGITS].map(|()| vec![0i8; x.len()]);
        let scale = split_block(x, digits.each_mut().map(|d| &mut d[..]))?;
        let whole = |i: usize| digits.iter().rev().fold(0, |w, d| 256 * w + d[i] as i32);
        Some((scale, (0..x.len()).map(whole).collect()))
    }

    #[test]
    fn digits_make_up_the_element() {
        assert_eq!(
            split(&[1.0, -0.5, 0.0]),
            Some((pow2(-22), vec![1 << 22, -(1 << 21), 0]))
        );
        assert_eq!(split(&[]), Some((pow2(SMALLEST_EXPONENT), vec![])));
        assert_eq!(
            split(&[-0.0, 0.0]),
            Some((pow2(SMALLEST_EXPONENT), vec![0, 0]))
        );
        // The largest that fits 22 bits above the scale, and the next one.
        let fits = f32::from_bits(0x3f80_0000 + 0x7e_fefe);
        assert_eq!(split(&[fits]), Some((pow2(-22), vec![0x7f_7f7f])));
        let next = f32::from_bits(fits.to_bits() + 1);
        assert_eq!(split(&[-next]), Some((pow2(-21), vec![-0x3f_bfc0])));
        assert_eq!(
            split(&[3.0, -7.0]),
            Some((pow2(-20), vec![3 << 20, -7 << 20]))
        );
    }

    #[test]
    fn the_error_is_at_most_half_a_step_of_the_largest() {
        let mut r = Random::new(1);
        for case in 0..200 {
            let size = 2f32.powi(case % 100 - 40);
            let x: Vec<f32> = r.gaussian(32).into_iter().map(|x| x * size).collect();
            let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
            let (scale, fixed) = split(&x).expect("elements of one distribution");
            assert!(scale <= largest * pow2(-21));
            for (x, fixed) in x.iter().zip(fixed) {
                assert!((*x as f64 - fixed as f64 * scale as f64).abs() <= scale as f64 / 2.0);
            }
        }
    }

    #[test]
    fn what_fixed_point_represents_badly_is_not_split() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::MAX, SPLIT_LARGEST] {
            assert_eq!(split(&[1.0, bad, 1.0]), None, "{bad}");
        }
        let below = f32::from_bits(SPLIT_LARGEST.to_bits() - 1);
        assert!(split(&[below, below]).is_some());
        // Of 1 and the others, more than half are too small.
        let small = pow2(-13);
        assert_eq!(split(&[1.0, small, small]), None);
        assert!(split(&[1.0, small, 2.0 * small]).is_some());
        assert!(split(&[1.0, small, 0.0, 0.0]).is_some());
        // Nothing of a tiny block matters beside the rest of its vector.
        assert!(split(&[pow2(-47), pow2(-90), pow2(-91), pow2(-92)]).is_some());
    }
}
