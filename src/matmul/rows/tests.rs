//! The driver against float64, at every level and over awkward shapes.

use super::*;
use crate::cpu::Isa;
use crate::cpu::rows::RowKernels;
use crate::quant::{Bits, Codes, Packing, Per, ScaleValues, Shape, packed_row_bytes};
use crate::runtime::{Config, Pool};
use half::f16;

const ROWS: [usize; 6] = [0, 1, 3, 5, 63, 65];
const COLS: [usize; 12] = [0, 1, 7, 8, 31, 33, 63, 65, 172, 513, 4097, 20000];
const GROUPS: [usize; 8] = [0, 1, 7, 32, 33, 64, 128, 30000];

fn threads(count: usize) -> Pool {
    Pool::new(count).expect("threads")
}

fn driver(isa: Isa, pool: &Pool) -> Driver<'_> {
    let kernels = RowKernels::for_isa(isa).expect("an available level");
    Driver {
        kernels,
        executor: Executor::Pool(pool),
    }
}

fn levels() -> Vec<Isa> {
    let (have, lack): (Vec<Isa>, _) = Isa::ALL.into_iter().partition(|isa| isa.available());
    for isa in lack {
        eprintln!("SKIPPED: this processor has no {isa}");
    }
    have
}

/// Uniform in -1..1; the same for the same seed.
fn noise(seed: usize, len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| {
            let bits = ((seed << 32 | i) as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let bits = (bits ^ bits >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40;
            bits as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// A random quantised matrix, its codes at an odd address.
struct Matrix {
    shape: Shape,
    bits: Bits,
    bytes: Vec<u8>,
    scales: Vec<f32>,
    zero_points: Vec<i32>,
}

impl Matrix {
    fn new(rows: usize, cols: usize, group: usize, bits: Bits) -> Matrix {
        let shape = Shape::new(rows, cols, group);
        let values = rows * shape.groups;
        let code = |v: &f32| ((v + 1.0) * 0.5 * (bits.max_code() as f32 + 0.999)) as i32;
        Matrix {
            shape,
            bits,
            bytes: noise(1, 1 + rows * packed_row_bytes(cols, bits))
                .iter()
                .map(|v| (v * 127.9) as i8 as u8)
                .collect(),
            scales: noise(2, values),
            zero_points: noise(3, values).iter().map(code).collect(),
        }
    }

    fn codes(&self) -> Codes<'_> {
        Codes {
            shape: self.shape,
            bits: self.bits,
            packing: Packing::Msb,
            bytes: &self.bytes[1..],
            scales: ScaleValues::F32(&self.scales),
            scale_per: Per::Group,
            zero_points: match self.bits {
                Bits::One => None,
                _ => Some((&self.zero_points, Per::Group)),
            },
        }
    }

    /// The weights, unrounded: `(rows, cols)`.
    fn weights(&self) -> Vec<f64> {
        let (codes, shape) = (self.codes(), self.shape);
        let mut row_codes = vec![0; shape.cols];
        let mut weights = Vec::new();
        for r in 0..shape.rows {
            codes.row_codes(r, &mut row_codes);
            for g in 0..shape.groups {
                let (scale, zero) = (codes.scale(r, g) as f64, codes.zero_point(r, g));
                let levels = shape
                    .group_columns(g)
                    .map(|c| codes.bits.level(row_codes[c], zero));
                weights.extend(levels.map(|l| scale * l as f64));
            }
        }
        weights
    }
}

fn norm(v: impl Iterator<Item = f64>) -> f64 {
    v.map(|v| v * v).sum::<f64>().sqrt()
}

/// Asserts `|y - W x| <= 1e-5 * norm2(row of W) * norm2(x)`, and names the worst element.
fn assert_close(what: &str, weights: &[f64], cols: usize, x: &[f32], y: &[f32], n: usize) {
    let rows = y.len() / n;
    let mut worst = (0.0f64, String::new());
    for v in 0..n {
        let x = &x[v * cols..][..cols];
        let x_norm = norm(x.iter().map(|&x| x as f64));
        for r in 0..rows {
            let w = &weights[r * cols..][..cols];
            let exact: f64 = w.iter().zip(x).map(|(&w, &x)| w * x as f64).sum();
            let got = y[v * rows + r] as f64;
            let allowed = 1e-5 * norm(w.iter().copied()) * x_norm;
            let share = if got == exact {
                0.0
            } else {
                (got - exact).abs() / allowed
            };
            // A NaN is worse than anything, and stays the worst: nothing compares greater.
            if share > worst.0 || share.is_nan() {
                worst = (
                    share,
                    format!("y[{v}, {r}] is {got}, expected {exact} +- {allowed:e}"),
                );
            }
        }
    }
    assert!(worst.0 <= 1.0, "{what}: {}", worst.1);
}

#[test]
fn every_shape_at_every_level() {
    for isa in levels() {
        let pool = threads(2);
        let d = driver(isa, &pool);
        let mut case = 0;
        for cols in COLS {
            for group in GROUPS {
                for bits in Bits::ALL {
                    case += 1;
                    let rows = ROWS[case % if cols > 1000 { 4 } else { 6 }];
                    let n = [1, 2, 3, 4, 9][case % 5];
                    let m = Matrix::new(rows, cols, group, bits);
                    let x = noise(4, 1 + n * cols);
                    let mut y = vec![f32::NAN; 1 + n * rows];
                    let (x, y) = (&x[1..], &mut y[1..]);
                    d.multiply(&RowSource::Codes(m.codes()), x, y, n).unwrap();
                    let what = format!("{isa} {rows} x {cols} group {group} {bits:?} n {n}");
                    assert_close(&what, &m.weights(), cols, x, y, n);
                }
            }
        }
    }
}

#[test]
fn float_weights() {
    for isa in levels() {
        let pool = threads(1);
        let d = driver(isa, &pool);
        for (rows, cols) in [(5, 0), (1, 1), (3, 65), (65, 172), (5, 4097), (3, 20000)] {
            for n in [1, 3, 7] {
                let w = noise(5, 1 + rows * cols);
                let halves: Vec<f16> = w.iter().map(|&w| f16::from_f32(w)).collect();
                let x = noise(6, n * cols);
                let mut y = vec![f32::NAN; n * rows];
                let what = format!("{isa} {rows} x {cols} n {n}");

                let values = &w[1..];
                d.multiply(&RowSource::F32 { values, rows, cols }, &x, &mut y, n)
                    .unwrap();
                let weights: Vec<f64> = values.iter().map(|&w| w as f64).collect();
                assert_close(&what, &weights, cols, &x, &y, n);

                let values = &halves[1..];
                d.multiply(&RowSource::F16 { values, rows, cols }, &x, &mut y, n)
                    .unwrap();
                let weights: Vec<f64> = values.iter().map(|w| w.to_f64()).collect();
                assert_close(&what, &weights, cols, &x, &y, n);
            }
        }
    }
}

#[test]
fn dequantised_in_any_number_of_tasks() {
    for isa in levels() {
        for (rows, cols) in [(0, 5), (3, 0), (5, 33), (70, 4097), (3, 70_000)] {
            let pool = threads(3);
            let d = driver(isa, &pool);
            let m = Matrix::new(rows, cols, 33, Bits::Four);
            let mut out = vec![f32::NAN; rows * cols];
            d.dequantize(&RowSource::Codes(m.codes()), &mut out)
                .unwrap();
            let rounded: Vec<f32> = m.weights().iter().map(|&w| w as f32).collect();
            assert_eq!(bits(&out), bits(&rounded), "{isa} {rows} x {cols}");
        }
    }
}

#[test]
fn through_a_runtime() {
    let config = Config {
        threads: 1,
        isa: Some(Isa::Scalar),
        ..Config::default()
    };
    let rt = Runtime::new(config).expect("a runtime");
    let m = Matrix::new(3, 50, 7, Bits::Two);
    let x = noise(12, 4 * 50);
    let mut y = [f32::NAN; 12];
    let d = Driver::new(&rt);
    d.multiply(&RowSource::Codes(m.codes()), &x, &mut y, 4)
        .unwrap();
    assert_close("scalar", &m.weights(), 50, &x, &y, 4);
}

/// A plain float32 sum fails here: every addition rounds in the same direction.
#[test]
fn constant_data_of_any_length() {
    for isa in levels() {
        let pool = threads(1);
        let d = driver(isa, &pool);
        let (cols, n) = (300_000, 5);
        let w = vec![0.1f32; cols];
        let x = vec![0.7f32; n * cols];
        let source = RowSource::F32 {
            values: &w,
            rows: 1,
            cols,
        };
        let weights = vec![0.1f32 as f64; cols];
        let mut y = vec![0.0; n];
        d.multiply(&source, &x, &mut y, n).unwrap();
        assert_close(isa.name(), &weights, cols, &x, &y, n);
        let mut one = [0.0];
        d.multiply(&source, &x[..cols], &mut one, 1).unwrap();
        assert_eq!(one[0].to_bits(), y[0].to_bits());
    }
}

/// Magnitudes from 1e-18 to 1e18 in one row, with cancellation.
#[test]
fn huge_dynamic_range() {
    for isa in levels() {
        let pool = threads(1);
        let d = driver(isa, &pool);
        let (cols, n) = (5000, 4);
        let m = Matrix::new(3, cols, 7, Bits::Eight);
        let x: Vec<f32> = noise(7, n * cols)
            .iter()
            .enumerate()
            .map(|(i, v)| v * 10f32.powi((i * 7 % 37) as i32 - 18))
            .collect();
        let mut y = vec![0.0; 3 * n];
        d.multiply(&RowSource::Codes(m.codes()), &x, &mut y, n)
            .unwrap();
        assert_close(isa.name(), &m.weights(), cols, &x, &y, n);
    }
}

fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|y| y.to_bits()).collect()
}

/// One vector at a time, in batches of every size and with any number of threads: the same bits.
#[test]
fn bits_do_not_depend_on_batch_or_threads() {
    for isa in levels() {
        // More rows and vectors than a block has, more columns than one lane sum takes.
        for (rows, cols, group) in [(101, 700, 33), (3, 20000, 7), (67, 530, 32)] {
            let n = 70;
            let m = Matrix::new(rows, cols, group, Bits::Four);
            let source = RowSource::Codes(m.codes());
            let x = noise(8, n * cols);
            let mut expected = vec![0.0; n * rows];
            let pool = threads(1);
            let d = driver(isa, &pool);
            for (x, y) in x.chunks(cols).zip(expected.chunks_mut(rows)) {
                d.multiply(&source, x, y, 1).unwrap();
            }
            for threads in [1, 2, 3, 7] {
                let pool = self::threads(threads);
                let d = driver(isa, &pool);
                for batch in [1, 2, 3, 4, 5, 16, 61, 70] {
                    if threads > 1 && batch != 2 && batch != 70 {
                        continue;
                    }
                    let mut y = vec![f32::NAN; n * rows];
                    for (x, y) in x.chunks(batch * cols).zip(y.chunks_mut(batch * rows)) {
                        d.multiply(&source, x, y, x.len() / cols).unwrap();
                    }
                    let what = format!("{isa} {rows} x {cols} batch {batch} threads {threads}");
                    assert_eq!(bits(&y), bits(&expected), "{what}");
                }
            }
        }
    }
}

#[test]
fn infinities_and_nans_are_those_of_the_columns_that_exist() {
    for isa in levels() {
        let pool = threads(1);
        let d = driver(isa, &pool);
        for (cols, n) in [(1, 1), (33, 1), (33, 6), (530, 1), (530, 6)] {
            // Weights alternate between 0 and 1 along the rows.
            let values: Vec<f32> = (0..2 * cols).map(|i| (i / cols) as f32).collect();
            let source = RowSource::F32 {
                values: &values,
                rows: 2,
                cols,
            };
            let mut x = vec![1.0f32; n * cols];
            x[cols - 1] = f32::NEG_INFINITY;
            let mut y = vec![0.0; 2 * n];
            d.multiply(&source, &x, &mut y, n).unwrap();
            assert!(y[0].is_nan(), "{isa}: 0 * infinity is {}", y[0]);
            assert_eq!(y[1], f32::NEG_INFINITY, "{isa}");
            x[0] = f32::NAN;
            d.multiply(&source, &x, &mut y, n).unwrap();
            assert!(y[0].is_nan() && y[1].is_nan(), "{isa}");
            // The first vector does not affect the others of the batch.
            for y in y[2..].chunks(2) {
                assert_eq!(y, [0.0, cols as f32], "{isa}");
            }
        }
    }
}

/// The integer sums are exact: the same bits at every level, for every batch and number of threads.
#[test]
fn signs() {
    for (rows, cols, group) in [
        (0, 5, 0),
        (3, 0, 0),
        (5, 65, 7),
        (65, 172, 33),
        (63, 4097, 1),
        (5, 20000, 0),
    ] {
        let m = Matrix::new(rows, cols, group, Bits::One);
        let n = 3;
        let mut x = noise(11, n * cols);
        if let Some(x) = x.first_mut() {
            *x = f32::NAN; // not >= 0: -1
        }
        let signs: Vec<f32> = x
            .iter()
            .map(|&x| if x >= 0.0 { 1.0 } else { -1.0 })
            .collect();
        let mut all = Vec::new();
        for isa in levels() {
            for threads in [1, 3] {
                let pool = self::threads(threads);
                let d = driver(isa, &pool);
                let mut y = vec![f32::NAN; n * rows];
                d.multiply_sign(&m.codes(), &x, &mut y, n).unwrap();
                let what = format!("{isa} {rows} x {cols} group {group}");
                assert_close(&what, &m.weights(), cols, &signs, &y, n);
                for (v, y) in y.chunks(rows.max(1)).enumerate() {
                    let mut one = vec![f32::NAN; rows];
                    d.multiply_sign(&m.codes(), &x[v * cols..][..cols], &mut one, 1)
                        .unwrap();
                    assert_eq!(bits(&one), bits(y), "{what}");
                }
                all.push(bits(&y));
            }
        }
        assert!(
            all.windows(2).all(|w| w[0] == w[1]),
            "{rows} x {cols} group {group}"
        );
    }
}
