//! The kernels, written once: arrays of [`LANES`] that the compiler keeps in the registers of a level.
//!
//! `inline(always)` without `target_feature`: each ends up in the entry point of a level and takes on its features.

use half::f16;

use super::LANES;

type Lanes = [f32; LANES];

/// A number that is widened to float32, in vectors.
pub(super) trait Widen: Copy {
    fn widen(self) -> f32;
}

impl Widen for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Widen for f16 {
    /// Exponent and mantissa moved to their places, then the difference of the biases as a product, which also
    /// normalises subnormal numbers. For finite numbers exactly what `to_f32` gives, without a branch.
    #[inline(always)]
    fn widen(self) -> f32 {
        const BIASES: f32 = f32::from_bits((127 + 112) << 23);
        let bits = u32::from(self.to_bits());
        let magnitude = f32::from_bits((bits & 0x7fff) << 13) * BIASES;
        f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
    }
}

#[inline(always)]
fn load<T: Widen>(from: &[T; LANES]) -> Lanes {
    std::array::from_fn(|l| from[l].widen())
}

/// A last vector that is not whole, padded with zeros.
#[inline(always)]
fn load_rest<T: Widen>(from: &[T]) -> Lanes {
    let mut lanes = [0.0; LANES];
    for (l, v) in lanes.iter_mut().zip(from) {
        *l = v.widen();
    }
    lanes
}

#[inline(always)]
fn fma(a: &Lanes, b: &Lanes, sum: &mut Lanes) {
    for l in 0..LANES {
        sum[l] = a[l].mul_add(b[l], sum[l]);
    }
}

/// The sum of the lanes, as a tree.
#[inline(always)]
fn total(mut lanes: Lanes) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn dot<T: Widen>(a: &[f32], b: &[T]) -> f32 {
    let mut sum = [0.0; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks(), b.as_chunks());
    for (a, b) in a.iter().zip(b) {
        fma(a, &load(b), &mut sum);
    }
    if !a_rest.is_empty() {
        fma(&load_rest(a_rest), &load_rest(b_rest), &mut sum);
    }
    total(sum)
}

/// As [`super::VectorKernels::dots`].
#[inline(always)]
pub(super) fn dots<T: Widen>(q: &[f32], keys: &[T], out: &mut [f32], width: usize, stride: usize) {
    for (j, key) in keys.chunks_exact(width).enumerate() {
        for (i, q) in q.chunks_exact(width).enumerate() {
            out[i * stride + j] = dot(q, key);
        }
    }
}

/// As [`super::VectorKernels::mix`].
#[inline(always)]
pub(super) fn mix<T: Widen>(out: &mut [f32], weights: &[f32], values: &[T], stride: usize) {
    if stride == 0 {
        return;
    }
    let width = out.len() / weights.len().div_ceil(stride);
    for (out, weights) in out.chunks_exact_mut(width).zip(weights.chunks(stride)) {
        let n = values.len() / width;
        // A strip of lanes at a time stays in registers while all values pass.
        let mut at = 0;
        while at + 4 * LANES <= width {
            strip::<T, 4>(out, &weights[..n], values, width, at);
            at += 4 * LANES;
        }
        while at + LANES <= width {
            strip::<T, 1>(out, &weights[..n], values, width, at);
            at += LANES;
        }
        for c in at..width {
            let mut sum = out[c];
            for (j, w) in weights[..n].iter().enumerate() {
                sum = w.mul_add(values[j * width + c].widen(), sum);
            }
            out[c] = sum;
        }
    }
}

#[inline(always)]
fn strip<T: Widen, const N: usize>(
    out: &mut [f32],
    weights: &[f32],
    values: &[T],
    width: usize,
    at: usize,
) {
    let out = &mut out[at..at + N * LANES].as_chunks_mut::<LANES>().0;
    let mut sums: [Lanes; N] = std::array::from_fn(|i| out[i]);
    for (w, row) in weights.iter().zip(values.chunks_exact(width)) {
        let row = row[at..at + N * LANES].as_chunks::<LANES>().0;
        for i in 0..N {
            fma(&[*w; LANES], &load(&row[i]), &mut sums[i]);
        }
    }
    for i in 0..N {
        out[i] = sums[i];
    }
}

/// `exp(x)` to 2 units in the last place for -87 to 88, the ends beyond: `2^n * e^r`, the polynomial of Cephes.
#[inline(always)]
#[expect(clippy::excessive_precision, reason = "as published")]
fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.3, 88.3);
    // Rounding to an integer by adding 1.5 * 2^23: in vectors at every level.
    const ROUND: f32 = 12582912.0;
    let n = x.mul_add(std::f32::consts::LOG2_E, ROUND) - ROUND;
    let r = n.mul_add(-0.693359375, x);
    let r = n.mul_add(2.12194440e-4, r);
    let mut p = 1.9875691500e-4f32;
    p = p.mul_add(r, 1.3981999507e-3);
    p = p.mul_add(r, 8.3334519073e-3);
    p = p.mul_add(r, 4.1665795894e-2);
    p = p.mul_add(r, 1.6666665459e-1);
    p = p.mul_add(r, 5.0000001201e-1);
    let e = p.mul_add(r * r, r) + 1.0;
    // n is -126 to 128; two factors, so that 2^128 is not needed.
    let half = (n as i32) >> 1;
    let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
    e * power(half) * power(n as i32 - half)
}

/// `tanh(x) = 1 - 2 / (e^2x + 1)`, by its series where that cancels.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let far = 1.0 - 2.0 / (exp(2.0 * x) + 1.0);
    let s = x * x;
    let near = x
        * (s.mul_add(
            s.mul_add(s.mul_add(-17.0 / 315.0, 2.0 / 15.0), -1.0 / 3.0),
            1.0,
        ));
    if x.abs() < 0.15 { near } else { far }
}

/// As [`super::VectorKernels::softmax`].
#[inline(always)]
pub(super) fn softmax(scores: &mut [f32], cap: Option<f32>) {
    if let Some(cap) = cap {
        softcap(scores, cap);
    }
    let mut greatest = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = scores.as_chunks::<LANES>();
    for s in whole {
        for l in 0..LANES {
            greatest[l] = if s[l] > greatest[l] {
                s[l]
            } else {
                greatest[l]
            };
        }
    }
    let greatest = greatest
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, f32::max);
    let mut sum = [0.0; LANES];
    let (whole, rest) = scores.as_chunks_mut::<LANES>();
    for s in whole {
        for l in 0..LANES {
            s[l] = exp(s[l] - greatest);
            sum[l] += s[l];
        }
    }
    for (s, sum) in rest.iter_mut().zip(&mut sum) {
        *s = exp(*s - greatest);
        *sum += *s;
    }
    let factor = 1.0 / total(sum);
    for s in scores {
        *s *= factor;
    }
}

/// As [`super::VectorKernels::rms_norm`].
#[inline(always)]
pub(super) fn rms_norm(x: &[f32], weights: &[f32], eps: f32, out: &mut [f32]) {
    let square = dot(x, x);
    let factor = 1.0 / (square / x.len() as f32 + eps).sqrt();
    for ((out, x), w) in out.iter_mut().zip(x).zip(weights) {
        *out = x * factor * w;
    }
}

/// As [`super::VectorKernels::silu_times`].
#[inline(always)]
pub(super) fn silu_times(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = *g / (1.0 + exp(-*g)) * u;
    }
}

/// As [`super::VectorKernels::gelu_times`].
#[inline(always)]
pub(super) fn gelu_times(gate: &mut [f32], up: &[f32]) {
    // sqrt(2/pi)
    const A: f32 = 0.797_884_6;
    for (g, u) in gate.iter_mut().zip(up) {
        let x = *g;
        let inner = A * (0.044715 * x * x).mul_add(x, x);
        // 0.5 (1 + tanh(y)) = 1 / (1 + e^-2y)
        *g = x / (1.0 + exp(-2.0 * inner)) * u;
    }
}

/// As [`super::VectorKernels::softcap`].
#[inline(always)]
pub(super) fn softcap(x: &mut [f32], cap: f32) {
    let inverse = 1.0 / cap;
    for x in x {
        *x = cap * tanh(*x * inverse);
    }
}
