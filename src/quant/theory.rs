//! The table of `docs/quantisation.md`: measured errors on Gaussian weights next to the theoretical
//! limits.
//!
//! `APL_FFI_BLESS=1 cargo test --lib quant::theory` writes the table; otherwise the test compares
//! it.

use std::f64::consts::TAU;
use std::fmt::Write as _;
use std::path::Path;

use super::properties::relative_error;
use super::*;
use crate::testing::Random;

/// Integration limit in standard deviations: what is beyond does not affect 3 digits.
const FAR: f64 = 9.0;

/// The standard Gaussian density.
fn density(x: f64) -> f64 {
    (-0.5 * x * x).exp() / TAU.sqrt()
}

/// The integrals of the density times 1, `x` and `x^2` over `a..b`.
///
/// The first by Simpson's rule with steps of at most 0.02, the others from it:
/// `(x phi)' = phi - x^2 phi`.
fn moments(a: f64, b: f64) -> [f64; 3] {
    let parts = 2 * ((b - a) / 0.04).ceil().max(1.0) as u32;
    let h = (b - a) / f64::from(parts);
    let inner: f64 = (1..parts)
        .map(|i| density(a + h * f64::from(i)) * if i % 2 == 1 { 4.0 } else { 2.0 })
        .sum();
    let mass = h / 3.0 * (density(a) + inner + density(b));
    let first = density(a) - density(b);
    [mass, first, mass + a * density(a) - b * density(b)]
}

/// The mean squared error of rounding a standard Gaussian variable to the nearest of `levels` and
/// of their negatives; `levels` are positive and ascending.
fn gaussian_error(levels: &[f64]) -> f64 {
    cells(levels)
        .map(|(y, m)| 2.0 * (m[2] - 2.0 * y * m[1] + y * y * m[0]))
        .sum()
}

/// Each positive level with the moments of its cell.
fn cells(levels: &[f64]) -> impl Iterator<Item = (f64, [f64; 3])> + '_ {
    levels.iter().enumerate().map(|(i, &y)| {
        let between = |x: f64| (0.5 * (x + y)).min(FAR);
        let low = if i == 0 { 0.0 } else { between(levels[i - 1]) };
        let high = levels.get(i + 1).map_or(FAR, |&next| between(next));
        (y, moments(low, high))
    })
}

/// The least relative error of any `n` levels (Lloyd 1957, Max 1960).
///
/// Levels and cells are improved alternately until they agree. The initial levels are spread by the
/// cube root of the density (Panter and Dite 1951), that is as a Gaussian of variance 3, which is
/// optimal for many levels: from equal spacing 256 levels would take tens of thousands of rounds.
fn lloyd_max(n: usize) -> f64 {
    const ROUNDS: usize = 10_000;
    let half = n / 2;
    let mut levels = Vec::with_capacity(half);
    let (mut x, mut mass) = (0.0, 0.0);
    let step = 1e-4;
    for i in 0..half {
        let target = (i as f64 + 0.5) / n as f64;
        while mass < target {
            mass += step * density((x + 0.5 * step) / 3f64.sqrt()) / 3f64.sqrt();
            x += step;
        }
        levels.push(x);
    }
    for _ in 0..ROUNDS {
        levels = cells(&levels).map(|(_, m)| m[1] / m[0]).collect();
    }
    gaussian_error(&levels).sqrt()
}

/// The least relative error of `n` equally spaced levels around 0 (Max 1960).
fn uniform(n: usize) -> f64 {
    let error = |step: f64| {
        let levels: Vec<f64> = (0..n / 2).map(|i| step * (i as f64 + 0.5)).collect();
        gaussian_error(&levels)
    };
    let (mut low, mut high) = (1.0 / n as f64, 4.0 / (n as f64).sqrt());
    for _ in 0..100 {
        let (a, b) = (low + (high - low) / 3.0, high - (high - low) / 3.0);
        if error(a) < error(b) {
            high = b;
        } else {
            low = a;
        }
    }
    error(low).sqrt()
}

/// Three significant digits.
fn digits(x: f64) -> String {
    let decimals = (2 - x.log10().floor() as i32).max(0) as usize;
    format!("{x:.decimals$}")
}

/// The table, measured on 128 rows of 4096 Gaussian weights.
fn table() -> String {
    const ROWS: usize = 128;
    const COLS: usize = 4096;
    let w = Random::new(1).gaussian(ROWS * COLS);
    let mut out = String::from(
        "| bits | group | bits a weight | nearest | search | asym. bits | asym. nearest | asym. search \
         | Lloyd–Max | uniform | any code |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for bits in Bits::ALL {
        let levels = 1 << bits.get();
        let (best, equal) = (digits(lloyd_max(levels)), digits(uniform(levels)));
        for group in [COLS, 128, 32] {
            let shape = Shape::new(ROWS, COLS, group);
            let measure = |symmetric, method| {
                let spec = Spec {
                    bits,
                    symmetric,
                    method,
                    scales: ScalePrecision::F16,
                };
                digits(relative_error(&w, &quantize(&w, shape, &spec).unwrap()))
            };
            let pair = |symmetric| {
                let [nearest, search] =
                    [Method::Nearest, Method::Search].map(|m| measure(symmetric, m));
                format!("{nearest} | {search}")
            };
            let width = bits.get() as f64;
            let stored = width + 16.0 / group as f64;
            let (wider, asymmetric) = if bits == Bits::One {
                ("–".into(), "– | –".into())
            } else {
                let wider = stored + width / group as f64;
                (format!("{wider:.3}"), pair(false))
            };
            writeln!(
                out,
                "| {width} | {group} | {stored:.3} | {} | {wider} | {asymmetric} | {best} | {equal} | {} |",
                pair(true),
                digits((-stored).exp2()),
            )
            .expect("a String takes everything");
        }
    }
    out
}

#[test]
fn the_documented_table_is_what_the_code_does() {
    const BEGIN: &str = "<!-- table -->\n";
    const END: &str = "<!-- end of table -->";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/quantisation.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the page has a table");
    let (documented, after) = rest.split_once(END).expect("the table ends");
    let measured = table();
    if std::env::var_os("APL_FFI_BLESS").is_some() {
        std::fs::write(&path, [before, BEGIN, &measured, END, after].concat()).unwrap();
    } else {
        assert_eq!(documented, measured, "APL_FFI_BLESS=1 writes the new table");
    }
}

/// The theory itself against the tables of Max (1960), whose last digits are not all right.
#[test]
fn optima_agree_with_max() {
    for (n, lloyd, equal) in [
        (2, 0.3634, 0.3634),
        (4, 0.1175, 0.1188),
        (16, 0.009497, 0.01154),
        (32, 0.002499, 0.003495),
    ] {
        for (found, expected) in [(lloyd_max(n), lloyd), (uniform(n), equal)] {
            let error = found.powi(2);
            assert!((error / expected - 1.0).abs() < 3e-3, "{n} levels: {error}");
        }
    }
    for bits in Bits::ALL {
        let (said, found) = (bits.lloyd_max(), lloyd_max(1 << bits.get()));
        assert!(
            (said / found - 1.0).abs() < 1e-3,
            "{bits:?}: {said}, found {found}"
        );
    }
    // For many levels Panter and Dite: pi * sqrt(3) / 2 / n^2.
    let many = (TAU / 4.0 * 3f64.sqrt()).sqrt() / 256.0;
    let found = lloyd_max(256);
    assert!(
        found < many && found > 0.98 * many,
        "{found} against {many}"
    );
}
