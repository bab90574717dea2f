//! The guarantees of quantising, checked over awkward shapes and values against naive float64
//! arithmetic.

use proptest::prelude::*;

use super::*;
use crate::error::Status;
use crate::testing::Random;

const METHODS: [Method; 2] = [Method::Nearest, Method::Search];

fn spec(bits: Bits, symmetric: bool, method: Method) -> Spec {
    Spec {
        bits,
        symmetric,
        method,
        scales: ScalePrecision::Auto,
    }
}

fn every_spec() -> impl Iterator<Item = Spec> {
    Bits::ALL.into_iter().flat_map(|bits| {
        [true, false]
            .into_iter()
            .flat_map(move |symmetric| METHODS.map(|m| spec(bits, symmetric, m)))
    })
}

/// The dequantised weights of `q`, `(rows, cols)`.
fn dequantized(q: &CodesBuf) -> Vec<f32> {
    let mut out = vec![0.0; q.shape.rows * q.shape.cols];
    for (r, row) in out.chunks_mut(q.shape.cols.max(1)).enumerate() {
        q.as_codes().dequantize_row(r, row);
    }
    out
}

/// The squared error of every group, `(rows, groups)`.
fn group_errors(w: &[f32], q: &CodesBuf) -> Vec<f64> {
    let (shape, back) = (q.shape, dequantized(q));
    let mut errors = Vec::new();
    for r in 0..shape.rows {
        for g in 0..shape.groups {
            let error = shape
                .group_columns(g)
                .map(|c| r * shape.cols + c)
                .map(|i| (f64::from(w[i]) - f64::from(back[i])).powi(2))
                .sum();
            errors.push(error);
        }
    }
    errors
}

/// The relative error in the Frobenius norm.
pub(super) fn relative_error(w: &[f32], q: &CodesBuf) -> f64 {
    let norm: f64 = w.iter().map(|&w| f64::from(w).powi(2)).sum();
    (group_errors(w, q).iter().sum::<f64>() / norm).sqrt()
}

/// Every guarantee for each weight of a quantised matrix.
fn check(w: &[f32], q: &CodesBuf, spec: &Spec) {
    let (shape, c) = (q.shape, q.as_codes());
    let top = i32::from(spec.bits.max_code());
    assert_eq!(c.scales.len(), shape.rows * shape.groups);
    assert_eq!(
        q.bytes.len(),
        shape.rows * packed_row_bytes(shape.cols, spec.bits)
    );
    assert_eq!(
        q.zero_points.is_some(),
        !spec.symmetric && spec.bits != Bits::One
    );
    if let ScalesBuf::F16(scales) = &q.scales {
        assert!(scales.iter().all(|s| s.is_normal() || s.to_f32() == 0.0));
    }
    let back = dequantized(q);
    let mut codes = vec![0; shape.cols];
    for r in 0..shape.rows {
        c.row_codes(r, &mut codes);
        for g in 0..shape.groups {
            let (scale, zero) = (f64::from(c.scale(r, g)), c.zero_point(r, g));
            assert!(scale.is_finite() && (0..=top).contains(&zero));
            for col in shape.group_columns(g) {
                let x = f64::from(w[r * shape.cols + col]);
                let error =
                    |code: i32| (x - scale * f64::from(spec.bits.level(code as u8, zero))).abs();
                let mine = error(codes[col].into());
                let place =
                    format!("{spec:?} row {r} column {col}: w {x}, scale {scale}, zero {zero}");
                assert!(back[r * shape.cols + col].is_finite(), "{place}");
                // Levels beyond float32 are excluded, so nearest levels are guaranteed only away
                // from its end.
                if scale.abs() < 1e30 {
                    let least = (0..=top).map(error).fold(f64::INFINITY, f64::min);
                    assert!(
                        mine <= least * (1.0 + 1e-12),
                        "{place}: not the nearest code"
                    );
                    if spec.method == Method::Nearest && spec.bits != Bits::One {
                        assert!(
                            mine <= 0.5 * scale.abs() * (1.0 + 1e-12),
                            "{place}: beyond half a step"
                        );
                    }
                }
            }
        }
    }
}

/// Quantising the result again, on the same grids, gives the same codes.
fn check_idempotent(q: &CodesBuf) {
    let (shape, c) = (q.shape, q.as_codes());
    let back = dequantized(q);
    let mut codes = vec![0; shape.cols];
    for r in 0..shape.rows {
        c.row_codes(r, &mut codes);
        for g in 0..shape.groups {
            let columns = shape.group_columns(g);
            let grid = grid::Grid::new(q.bits, c.scale(r, g), c.zero_point(r, g));
            if q.bits == Bits::One || grid.scale == 0.0 {
                continue;
            }
            let mut again = vec![0; columns.len()];
            grid.codes(&back[r * shape.cols..][columns.clone()], &mut again);
            assert_eq!(again, codes[columns]);
        }
    }
}

fn weight() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -4f32..4f32,
        2 => (-4i8..5).prop_map(|i| f32::from(i) * 0.25),
        1 => Just(0.0f32),
        1 => Just(-0.0f32),
        1 => -1e-3f32..1e-3,
        1 => -300f32..300.0,
    ]
}

/// A factor for a whole matrix: for float16 scales, too small for them, too large, and near the
/// ends of float32.
fn magnitude() -> impl Strategy<Value = f32> {
    prop::sample::select(vec![1.0, 1.0, 1.0, 1e-5, 1e6, 1e-38, 1e-44, 1e36])
}

prop_compose! {
    fn matrix()(
        rows in prop::sample::select(vec![0usize, 1, 2, 3, 5]),
        cols in prop::sample::select(vec![0usize, 1, 2, 7, 8, 31, 33, 65]),
        group in prop::sample::select(vec![0usize, 1, 3, 7, 32, 100]),
    )(
        w in prop::collection::vec(weight(), rows * cols),
        factor in magnitude(),
        shape in Just(Shape::new(rows, cols, group)),
    ) -> (Vec<f32>, Shape) {
        (w.into_iter().map(|w| w * factor).collect(), shape)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn promises((w, shape) in matrix()) {
        for spec in every_spec() {
            let q = quantize(&w, shape, &spec).unwrap();
            check(&w, &q, &spec);
            check_idempotent(&q);
        }
    }

    #[test]
    fn search_is_never_worse_in_any_group((w, shape) in matrix()) {
        for bits in Bits::ALL {
            for symmetric in [true, false] {
                let [nearest, search] =
                    METHODS.map(|m| quantize(&w, shape, &spec(bits, symmetric, m)).unwrap());
                let pairs = group_errors(&w, &nearest).into_iter().zip(group_errors(&w, &search));
                for (g, (nearest, search)) in pairs.enumerate() {
                    prop_assert!(search <= nearest, "{bits:?} group {g}: {search} > {nearest}");
                }
            }
        }
    }

    #[test]
    fn bands_and_float64_change_nothing((w, shape) in matrix(), rows_per_band in 0usize..4) {
        let wide: Vec<f64> = w.iter().map(|&w| w.into()).collect();
        for spec in every_spec() {
            let whole = quantize(&w, shape, &spec).unwrap();
            let backwards = quantize_in_bands(&wide, shape, &spec, rows_per_band, |bands| {
                bands.into_iter().rev().try_fold(true, |fits, b| Ok(b.quantize()? && fits))
            });
            prop_assert_eq!(&whole, &backwards.unwrap());
        }
    }

    #[test]
    fn automatic_scales_are_float16_exactly_where_they_can_be((w, shape) in matrix()) {
        for spec in every_spec() {
            let auto = quantize(&w, shape, &spec).unwrap();
            match quantize(&w, shape, &Spec { scales: ScalePrecision::F16, ..spec }) {
                Ok(half) => prop_assert_eq!(half, auto),
                Err(e) => {
                    prop_assert_eq!(e.status(), Status::Range);
                    let single = Spec { scales: ScalePrecision::F32, ..spec };
                    prop_assert_eq!(quantize(&w, shape, &single).unwrap(), auto);
                }
            }
        }
    }
}

#[test]
fn extreme_groups() {
    let least = f32::from_bits(1);
    let max = f32::MAX;
    let groups: [&[f32]; 10] = [
        &[0.0, -0.0, 0.0],
        &[max, -max, max],
        &[max, 1.0, -max / 3.0],
        &[max; 3],
        &[-max; 3],
        &[least, -least, 0.0],
        &[least * 5.0, -least * 11.0, least],
        &[max, least, -1.0],
        &[-2.5; 3],
        &[7.0],
    ];
    for w in groups {
        for spec in every_spec() {
            let q = quantize(w, Shape::new(1, w.len(), 0), &spec).unwrap();
            check(w, &q, &spec);
        }
    }
}

#[test]
fn a_group_of_zeros_has_scale_zero_and_keeps_float16() {
    let w = [0.0, -0.0, 0.0, 1.0, 0.5, -1.0];
    for spec in every_spec() {
        let q = quantize(&w, Shape::new(2, 3, 0), &spec).unwrap();
        let ScalesBuf::F16(scales) = &q.scales else {
            panic!("{spec:?}: scales are float32");
        };
        assert_eq!(scales[0].to_bits(), 0, "{spec:?}");
        assert!(dequantized(&q)[..3].iter().all(|&w| w == 0.0));
    }
}

#[test]
fn weights_on_a_grid_come_back_exactly() {
    let mut random = Random::new(3);
    let shape = Shape::new(4, 96, 32);
    let levels = |low: i32, high: i32, random: &mut Random| -> Vec<f32> {
        let mut w: Vec<f32> = random
            .gaussian(shape.rows * shape.cols)
            .iter()
            .map(|x| {
                0.125
                    * (x * high as f32 * 0.7)
                        .round()
                        .clamp(low as f32, high as f32)
            })
            .collect();
        for group in w.chunks_mut(shape.group) {
            group[5] = 0.125 * low as f32;
            group[9] = 0.125 * high as f32;
        }
        w
    };
    for (bits, low, high) in [
        (Bits::Two, -2, 1),
        (Bits::Two, -1, 2),
        (Bits::Two, -1, 1),
        (Bits::Four, -8, 7),
        (Bits::Four, -7, 8),
        (Bits::Four, -7, 7),
        (Bits::Eight, -127, 127),
    ] {
        let w = levels(low, high, &mut random);
        for method in METHODS {
            let q = quantize(&w, shape, &spec(bits, true, method)).unwrap();
            assert_eq!(dequantized(&q), w, "{bits:?} {low}..{high} {method:?}");
        }
    }
    // An asymmetric grid represents any window of levels around 0.
    for (low, high) in [(0, 15), (-3, 12), (-11, 4)] {
        let w = levels(low, high, &mut random);
        for method in METHODS {
            let q = quantize(&w, shape, &spec(Bits::Four, false, method)).unwrap();
            assert_eq!(dequantized(&q), w, "{low}..{high} {method:?}");
        }
    }
}

/// The least squared error of any uniform grid for a group, by trying 2000 steps of every window in
/// float64.
fn exhaustive(
    w: &[f32],
    bits: Bits,
    zero_points: std::ops::RangeInclusive<i32>,
    mirror: bool,
) -> f64 {
    let largest = w.iter().fold(0f32, |m, w| m.max(w.abs()));
    let top = i32::from(bits.max_code());
    let mut least = f64::INFINITY;
    for zero in zero_points {
        let (low, high) = (f64::from(-zero), f64::from(top - zero));
        for i in 1..=2000 {
            let step = f64::from(largest) * f64::from(i) / 2000.0;
            for step in [step, if mirror { -step } else { step }] {
                let error = w
                    .iter()
                    .map(|&w| {
                        let w = f64::from(w);
                        (w - step * (w / step).round_ties_even().clamp(low, high)).powi(2)
                    })
                    .sum();
                least = least.min(error);
            }
        }
    }
    least
}

#[test]
fn search_comes_close_to_exhaustive_search() {
    let mut random = Random::new(11);
    let (rows, cols) = (24, 32);
    let mut w = random.gaussian(rows * cols);
    // Heavy tails too: every third row has one large outlier.
    for row in w.chunks_mut(cols).step_by(3) {
        row[7] *= 20.0;
    }
    for bits in [Bits::Two, Bits::Four] {
        for symmetric in [true, false] {
            let spec = Spec {
                scales: ScalePrecision::F32,
                ..spec(bits, symmetric, Method::Search)
            };
            let q = quantize(&w, Shape::new(rows, cols, 0), &spec).unwrap();
            let zero = bits.default_zero_point();
            let zeros = if symmetric {
                zero..=zero
            } else {
                0..=i32::from(bits.max_code())
            };
            let (mut all_found, mut all_best) = (0.0, 0.0);
            for (row, found) in w.chunks(cols).zip(group_errors(&w, &q)) {
                let best = exhaustive(row, bits, zeros.clone(), symmetric);
                assert!(found <= 1.2 * best, "{spec:?}: {found} against {best}");
                all_found += found;
                all_best += best;
            }
            assert!(
                all_found <= 1.002 * all_best,
                "{spec:?}: {all_found} against {all_best}"
            );
        }
    }
}

#[test]
fn one_bit_scale_is_the_best_one() {
    let w = Random::new(5).gaussian(64);
    let shape = Shape::new(2, 32, 0);
    let q = quantize(&w, shape, &spec(Bits::One, true, Method::Search)).unwrap();
    for (r, (row, found)) in w.chunks(32).zip(group_errors(&w, &q)).enumerate() {
        for i in 1..2000 {
            let scale = f64::from(i) / 1000.0;
            let error: f64 = row
                .iter()
                .map(|&w| (f64::from(w.abs()) - scale).powi(2))
                .sum();
            assert!(
                found <= error * 1.00001,
                "row {r}: {found} > {error} with scale {scale}"
            );
        }
    }
}

#[test]
fn errors_promised_for_gaussian_weights() {
    let w = Random::new(1).gaussian(64 * 4096);
    let error = |bits, group, symmetric| {
        let spec = spec(bits, symmetric, Method::Nearest);
        relative_error(
            &w,
            &quantize(&w, Shape::new(64, 4096, group), &spec).unwrap(),
        )
    };
    for symmetric in [true, false] {
        assert!(error(Bits::Four, 32, symmetric) < 0.10);
        for group in [32, 64, 128, 256] {
            assert!(error(Bits::Eight, group, symmetric) < 0.007);
        }
        assert!(error(Bits::Eight, 0, symmetric) < 0.009);
    }
}

#[test]
fn what_is_refused() {
    let shape = Shape::new(2, 3, 0);
    let four = spec(Bits::Four, true, Method::Nearest);
    let mut w = [1f64; 6];
    for (bad, shown) in [
        (f64::NAN, "NaN"),
        (f64::NEG_INFINITY, "-inf"),
        (1e300, "1e300"),
    ] {
        w[5] = bad;
        let e = quantize(&w, shape, &four).unwrap_err();
        assert_eq!(e.status(), Status::Range);
        let expected = format!("w at row 1, column 2 is {shown}, expected a finite float32 number");
        assert_eq!(e.message(), expected);
    }
    let e = quantize(&[0f32; 5], shape, &four).unwrap_err();
    assert_eq!(e.status(), Status::Length);
    assert_eq!(
        e.message(),
        "w has 5 elements, expected rows * cols = 2 * 3"
    );
    let huge = Shape::new(isize::MAX as usize, 0, 0);
    let e = quantize::<f32>(&[], huge, &four).unwrap_err();
    assert_eq!(e.status(), Status::Memory);
}
