//! What tests share: a generator, random matrices in every form, and a product in float64 written naively.

use crate::quant::{Bits, Codes, CodesBuf, ScalesBuf, Shape, pack_row, packed_row_bytes};
use half::f16;
use std::fmt::Display;
use std::io::Write;
use std::path::Path;
use tempfile::TempDir;

/// Says that a test could not do its work, where the test runner does not swallow it.
pub fn skipped(why: impl Display) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// A copy of a folder of files.
pub fn copy_of(folder: impl AsRef<Path>) -> TempDir {
    let copy = TempDir::new().unwrap();
    for file in std::fs::read_dir(folder).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    copy
}

/// A small generator (splitmix64): the same numbers everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Uniform in 0..1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box–Muller).
    pub fn gauss(&mut self) -> f32 {
        let r = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        (r * (std::f64::consts::TAU * self.unit()).cos()) as f32
    }

    pub fn gaussian(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.gauss()).collect()
    }
}

/// How the scales and zero points of a random matrix are made.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub f16_scales: bool,
    pub zero_points: ZeroPoints,
}

#[derive(Clone, Copy, Debug)]
pub enum ZeroPoints {
    Default,
    /// One for the matrix, another one.
    Constant,
    Groups,
}

impl Kind {
    pub const ALL: [Kind; 4] = [
        Kind {
            f16_scales: true,
            zero_points: ZeroPoints::Default,
        },
        Kind {
            f16_scales: false,
            zero_points: ZeroPoints::Groups,
        },
        Kind {
            f16_scales: true,
            zero_points: ZeroPoints::Groups,
        },
        Kind {
            f16_scales: false,
            zero_points: ZeroPoints::Constant,
        },
    ];
}

/// A random matrix: uniform codes, scales around 0.01 and one in eight around -0.01.
pub fn random_codes(r: &mut Random, shape: Shape, bits: Bits, kind: Kind) -> CodesBuf {
    let row_bytes = packed_row_bytes(shape.cols, bits);
    let mut bytes = vec![0; shape.rows * row_bytes];
    for row in 0..shape.rows {
        let codes: Vec<u8> = (0..shape.cols)
            .map(|_| r.next() as u8 & bits.max_code())
            .collect();
        pack_row(
            &codes,
            bits,
            &mut bytes[row * row_bytes..(row + 1) * row_bytes],
        );
    }
    let values = shape.rows * shape.groups;
    let scales = (0..values).map(|_| {
        let size = (0.005 + 0.01 * r.unit()) as f32;
        if r.next().is_multiple_of(8) {
            -size
        } else {
            size
        }
    });
    let scales = if kind.f16_scales {
        ScalesBuf::F16(scales.map(f16::from_f32).collect())
    } else {
        ScalesBuf::F32(scales.collect())
    };
    let max = bits.max_code() as u64;
    let zero_points = match kind.zero_points {
        _ if bits == Bits::One => None,
        ZeroPoints::Default => None,
        ZeroPoints::Constant => {
            let other = bits.default_zero_point() as u64 + 1 + r.next() % max;
            Some(vec![(other & max) as i32; values])
        }
        ZeroPoints::Groups => Some((0..values).map(|_| (r.next() & max) as i32).collect()),
    };
    // As matrices are read back.
    let default = bits.default_zero_point();
    let zero_points = zero_points.filter(|values: &Vec<i32>| values.iter().any(|&z| z != default));
    CodesBuf {
        shape,
        bits,
        bytes,
        scales,
        zero_points,
    }
}

/// `W x` in float64 for one vector, and what errors are measured against: `norm2(row) * norm2(x)`.
pub fn product(codes: &Codes<'_>, x: &[f64]) -> Vec<(f64, f64)> {
    let norm_x = x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let mut row_codes = vec![0; codes.shape.cols];
    (0..codes.shape.rows)
        .map(|r| {
            codes.row_codes(r, &mut row_codes);
            let (mut sum, mut squares) = (0.0, 0.0);
            for g in 0..codes.shape.groups {
                let (scale, zero) = (codes.scale(r, g) as f64, codes.zero_point(r, g));
                for c in codes.shape.group_columns(g) {
                    let w = scale * codes.bits.level(row_codes[c], zero) as f64;
                    sum += w * x[c];
                    squares += w * w;
                }
            }
            (sum, squares.sqrt() * norm_x)
        })
        .collect()
}

/// Asserts that `y` is within `tolerance` times the norms of the product, and names the worst element if not.
pub fn assert_product(what: &str, y: &[f32], expected: &[(f64, f64)], tolerance: f64) {
    assert_eq!(y.len(), expected.len(), "{what}");
    let error = |i: usize| {
        let (want, norms) = expected[i];
        if y[i] as f64 == want {
            0.0
        } else {
            (y[i] as f64 - want).abs() / norms
        }
    };
    let worst = (0..y.len()).max_by(|&a, &b| error(a).total_cmp(&error(b)));
    if let Some(i) = worst {
        let e = error(i);
        assert!(
            e <= tolerance,
            "{what}: element {i} is {}, expected {} (error {e:.2e} of the norms, at most {tolerance:.2e})",
            y[i],
            expected[i].0
        );
    }
}
