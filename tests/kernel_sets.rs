//! Every set of tile kernels that this processor can run, with the constants that ship: the tests of the library shrink those so that small
//! matrices are cut into several panels and parts, and an application runs the set for its own core alone.

use apl_ffi::cpu::Isa;
use apl_ffi::cpu::tile::TileKernels;
use apl_ffi::matmul::{Activations, Weights};
use apl_ffi::quant::{Bits, CodesBuf, ScalesBuf, Shape};
use apl_ffi::runtime::{Config, Runtime};

/// The last group is short; a tile of 4 bits and more is longer than what of it stays in a cache while vectors pass.
const COLS: usize = 9000;

/// How much of it is multiplied.
struct Extent {
    rows: usize,
    vectors: usize,
}

/// More tiles than a task with unpacked sums has and than tables need, the last of them short; more than two panels of vectors, and a mixture of
/// the widths of the kernels.
const MANY: Extent = Extent {
    rows: 17 * 32 + 5,
    vectors: 2 * 120 + 7,
};

/// More tiles than look-ups take in a run.
const ONE: Extent = Extent {
    rows: 66 * 32 + 5,
    vectors: 1,
};

/// A generator (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// In -1..1.
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

fn matrix(r: &mut Numbers, rows: usize, bits: Bits, group: usize) -> CodesBuf {
    let shape = Shape::new(rows, COLS, group);
    let bytes = rows * (COLS * bits.get()).div_ceil(8);
    CodesBuf {
        shape,
        bits,
        bytes: (0..bytes).map(|_| r.next() as u8).collect(),
        scales: ScalesBuf::F32((0..rows * shape.groups).map(|_| r.float()).collect()),
        zero_points: None,
    }
}

/// The bits of the products of each set, and that a vector alone gives those that it gives among others.
fn products(m: &CodesBuf, a: Activations, x: &[f32]) -> Vec<(TileKernels, Vec<u32>)> {
    let (rows, vectors) = (m.shape.rows, x.len() / COLS);
    let of_set = |k: TileKernels| {
        let config = Config::from_json(r#"{"backend": "cpu", "threads": 1}"#).unwrap();
        let rt = Runtime::new(config).unwrap().with_tiles(k);
        let weights = Weights::from_codes(&rt, &m.as_codes(), a).unwrap();
        let multiply = |x: &[f32]| {
            let n = x.len() / COLS;
            let mut y = vec![f32::NAN; n * rows];
            weights.multiply(&rt, x, &mut y, n).unwrap();
            y.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let y = multiply(x);
        for v in [0, vectors / 2, vectors - 1] {
            let alone = multiply(&x[v * COLS..][..COLS]);
            let name = format!("{} {a:?} {:?}: vector {v}", k.name(), m.bits);
            assert!(alone == y[v * rows..][..rows], "{name}");
        }
        (k, y)
    };
    TileKernels::variants().into_iter().map(of_set).collect()
}

/// One order of summation for all sets; of float32 for all that split activations, and for all others that fuse
/// multiplication and addition.
fn alike(extent: Extent, bits: Bits, group: usize) {
    let mut r = Numbers(bits.get() as u64);
    let m = matrix(&mut r, extent.rows, bits, group);
    let x: Vec<f32> = (0..extent.vectors * COLS).map(|_| r.float()).collect();
    for a in [Activations::Int8, Activations::F32, Activations::Sign] {
        if a == Activations::Sign && bits != Bits::One {
            continue;
        }
        let found = products(&m, a, &x);
        let order = |k: &TileKernels| match a {
            Activations::F32 => (k.isa() == Isa::Scalar, k.splits(bits)),
            _ => (false, false),
        };
        for (i, (k, y)) in found.iter().enumerate() {
            let other = found[..i]
                .iter()
                .rfind(|(other, _)| order(other) == order(k));
            if let Some((other, z)) = other {
                assert!(y == z, "{} and {}: {a:?} {bits:?}", other.name(), k.name());
            }
        }
    }
}

#[test]
fn one_bit() {
    alike(MANY, Bits::One, 32);
}

/// Tables of several blocks of activations at once.
#[test]
fn one_bit_and_few_vectors() {
    let few = Extent { vectors: 7, ..MANY };
    alike(few, Bits::One, 128);
}

/// The same with a scale per row.
#[test]
fn one_bit_and_whole_rows() {
    let few = Extent { vectors: 7, ..MANY };
    alike(few, Bits::One, 0);
}

#[test]
fn one_bit_and_one_vector() {
    alike(ONE, Bits::One, 64);
}

#[test]
fn two_bits() {
    alike(MANY, Bits::Two, 128);
}

#[test]
fn four_bits() {
    alike(MANY, Bits::Four, 32);
}

#[test]
fn eight_bits() {
    alike(MANY, Bits::Eight, 64);
}
