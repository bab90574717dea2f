//! Norms, gates, caps and rounding.

use half::f16;

use super::lanes::Lanes;

/// `x = f(x, y)`, 16 elements at a time; the last vector is padded with zeros. A macro, because a
/// closure need not be inlined, and would then lack the features.
macro_rules! map {
    ($l:ident, $x:expr, $y:expr, |$a:ident, $b:ident| $f:expr) => {
        let (x, x_rest) = $x.as_chunks_mut::<16>();
        let (y, y_rest) = $y.as_chunks::<16>();
        for (x, y) in x.iter_mut().zip(y) {
            let ($a, $b) = ($l.load(x), $l.load(y));
            $l.store($f, x);
        }
        if !x_rest.is_empty() {
            let ($a, $b) = ($l.load_first(x_rest), $l.load_first(y_rest));
            $l.store_first($f, x_rest);
        }
    };
}

/// See [`super::VectorKernels::rms_norm`].
#[inline(always)]
pub(super) fn rms_norm<L: Lanes>(l: L, x: &[f32], weights: &[f32], eps: f32, out: &mut [f32]) {
    let (whole, rest) = x.as_chunks::<16>();
    // Four independent chains: a single one would wait for the latency of every addition.
    let mut squares = [l.splat(0.0); 4];
    let (fours, last) = whole.as_chunks::<4>();
    for four in fours {
        for i in 0..4 {
            let x = l.load(&four[i]);
            squares[i] = l.mul_add(x, x, squares[i]);
        }
    }
    for (x, squares) in last.iter().zip(&mut squares) {
        let x = l.load(x);
        *squares = l.mul_add(x, x, *squares);
    }
    let rest = l.load_first(rest);
    squares[3] = l.mul_add(rest, rest, squares[3]);
    let [a, b, c, d] = squares;
    let total = l.sum(l.add(l.add(a, b), l.add(c, d)));
    let factor = l.splat(1.0 / (total / x.len() as f32 + eps).sqrt());
    let (weights, last_weights) = weights.as_chunks::<16>();
    let (out, last) = out.as_chunks_mut::<16>();
    for ((x, w), out) in whole.iter().zip(weights).zip(out) {
        l.store(l.mul(l.mul(l.load(x), factor), l.load(w)), out);
    }
    if !last.is_empty() {
        l.store_first(l.mul(l.mul(rest, factor), l.load_first(last_weights)), last);
    }
}

/// See [`super::VectorKernels::silu_times`].
#[inline(always)]
pub(super) fn silu_times<L: Lanes>(l: L, gate: &mut [f32], up: &[f32]) {
    map!(l, gate, up, |x, up| l.mul(l.mul(x, l.sigmoid(x)), up));
}

/// See [`super::VectorKernels::gelu_times`].
#[inline(always)]
pub(super) fn gelu_times<L: Lanes>(l: L, gate: &mut [f32], up: &[f32]) {
    // 0.5 (1 + tanh(u)) = sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3).
    const A: f32 = 1.595_769;
    let (a, b) = (l.splat(A), l.splat(A * 0.044_715));
    map!(l, gate, up, |x, up| {
        let twice = l.mul(x, l.mul_add(l.mul(x, x), b, a));
        l.mul(l.mul(x, l.sigmoid(twice)), up)
    });
}

/// See [`super::VectorKernels::softcap`].
#[inline(always)]
pub(super) fn softcap<L: Lanes>(l: L, x: &mut [f32], cap: f32) {
    let (whole, rest) = x.as_chunks_mut::<16>();
    for x in whole {
        l.store(capped(l, l.load(x), cap), x);
    }
    if !rest.is_empty() {
        l.store_first(capped(l, l.load_first(rest), cap), rest);
    }
}

/// `cap * tanh(x / cap)`, with `tanh(v) = 2 sigmoid(2v) - 1`, or by its series where that suffers
/// from cancellation.
#[inline(always)]
fn capped<L: Lanes>(l: L, x: L::F, cap: f32) -> L::F {
    const NEAR: f32 = 0.15;
    let v = l.mul(x, l.splat(1.0 / cap));
    let far = l.mul_add(l.splat(2.0), l.sigmoid(l.add(v, v)), l.splat(-1.0));
    let small = l.min(l.splat(NEAR), l.max(l.splat(-NEAR), v));
    let s = l.mul(small, small);
    let mut p = l.splat(-17.0 / 315.0);
    for c in [2.0 / 15.0, -1.0 / 3.0, 1.0] {
        p = l.mul_add(p, s, l.splat(c));
    }
    let near = l.mul(small, p);
    // Select one of the two, the other being 0.
    let (s, limit) = (l.mul(v, v), l.splat(NEAR * NEAR));
    let (far, not_near) = (
        l.unless_below(s, limit, far),
        l.unless_below(s, limit, near),
    );
    l.mul(l.add(l.sub(near, not_near), far), l.splat(cap))
}

/// To float16; values out of range become its largest number.
#[inline(always)]
pub(super) fn narrow<L: Lanes>(l: L, from: &[f32], to: &mut [f16]) {
    let (from, rest) = from.as_chunks::<16>();
    let (to, to_rest) = to.as_chunks_mut::<16>();
    let (least, most) = (l.splat(-65504.0), l.splat(65504.0));
    for (from, to) in from.iter().zip(to) {
        l.narrow(l.min(most, l.max(least, l.load(from))), to);
    }
    if !rest.is_empty() {
        let mut last = [f16::ZERO; 16];
        l.narrow(l.min(most, l.max(least, l.load_first(rest))), &mut last);
        to_rest.copy_from_slice(&last[..rest.len()]);
    }
}
