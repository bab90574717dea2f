//! Float32 vectors that are split into int8 ones, and those that cannot be.

use super::*;
use crate::cpu::tile::SplitTo;
use crate::quant::{DIGIT_BASE, DIGITS, SPLIT_SMALLEST, split_block};

/// The definition of products with split vectors, bit for bit: exact integers in a block, float32
/// in each part of the columns, float64 across parts. `None` if the vector is not split.
fn split_oracle(l: &Layout, m: &CodesBuf, x: &[f32]) -> Option<Vec<f32>> {
    let s = m.shape;
    let codes = m.as_codes();
    let block = split::split_layout(l).block_cols();
    let group_blocks = |g| {
        let columns = s.group_columns(g);
        let starts = columns.clone().step_by(block);
        starts.map(move |start| start..(start + block).min(columns.end))
    };
    let mut digits = [(); DIGITS].map(|()| vec![0i8; s.cols]);
    let mut scales = vec![0f32; s.cols];
    for block in (0..s.groups).flat_map(group_blocks) {
        let of_block = digits.each_mut().map(|d| &mut d[block.clone()]);
        scales[block.start] = split_block(&x[block.clone()], of_block)?;
    }
    let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
    if largest != 0.0 && largest < SPLIT_SMALLEST {
        return None;
    }
    let mut row = vec![0; s.cols];
    let y = (0..s.rows).map(|r| {
        codes.row_codes(r, &mut row);
        let mut total = 0f64;
        for part in split::parts(&split::split_layout(l), DIGITS) {
            let mut f = [0f32; DIGITS];
            for g in part {
                for block in group_blocks(g) {
                    for (k, (f, digits)) in f.iter_mut().zip(&digits).enumerate() {
                        let level = |c: usize| m.bits.level(row[c], codes.zero_point(r, g));
                        let columns = block.clone();
                        let sum: i32 = columns.map(|c| level(c) * digits[c] as i32).sum();
                        let scale = scales[block.start] * DIGIT_BASE.powi(k as i32);
                        *f = (sum as f32).mul_add(codes.scale(r, g) * scale, *f);
                    }
                }
            }
            total += (f[0] + f[1] + f[2]) as f64;
        }
        total as f32
    });
    Some(y.collect())
}

#[test]
fn split_products_are_what_they_are_defined_to_be() {
    everywhere(&Bits::ALL, |name, k, m, t, r| {
        if !k.splits(m.bits) || !t.split_pays() {
            return;
        }
        let x = r.gaussian(m.shape.cols);
        let y = run(k, t, Activations::F32, &x, 1, 1);
        let want = split_oracle(&t.layout, m, &x).expect("elements of one distribution");
        for (i, (y, want)) in y.iter().zip(&want).enumerate() {
            assert_eq!(y.to_bits(), want.to_bits(), "{name}: row {i}");
        }
    });
}

/// Sums of columns with the digit -128 are larger than those of any quantised activations: bytes of
/// tables have to hold eight of them.
#[test]
fn the_largest_sums_of_digits_are_exact() {
    let pool = Pool::new(1).unwrap();
    // 64 * 65536 + 1 * 256 - 128
    let element = 0x40_0080 as f32;
    for k in TileKernels::variants() {
        for case in 0..4 * 4 * 3 {
            let (bits, kind) = (Bits::ALL[case % 4], Kind::ALL[case / 4 % 4]);
            let shape = Shape::new(33, 256, [32, 64, 128][case / 16]);
            let mut m = random_codes(&mut Random::new(1), shape, bits, kind);
            for code in [0, 0xFF] {
                m.bytes.fill(code);
                for n in [1, 5, 40] {
                    let x = vec![element; n * 256];
                    let y = run(&k, &tiles(&pool, &m), Activations::F32, &x, n, 1);
                    let want = product(&m.as_codes(), &[element as f64; 256]);
                    for (i, y) in y.iter().enumerate() {
                        let name = format!("{} {bits:?} {kind:?} {code} {n} vectors", k.name());
                        let (want, norms) = want[i % 33];
                        assert!((*y as f64 - want).abs() <= 1e-6 * norms, "{name}: {y}");
                    }
                }
            }
        }
    }
}

/// What becomes of the element of a column.
type Change = fn(usize, f32) -> f32;

#[test]
fn vectors_that_cannot_be_split_are_multiplied_as_floats() {
    let pool = Pool::new(1).unwrap();
    let all = TileKernels::variants();
    let fused = all.iter().find(|k| k.isa() != crate::cpu::Isa::Scalar);
    let mut r = Random::new(21);
    for k in all.iter().filter(|k| k.split().is_some()) {
        for bits in Bits::ALL.into_iter().filter(|&bits| k.splits(bits)) {
            let shape = Shape::new(40, 200, 32);
            let m = random_codes(&mut r, shape, bits, Kind::ALL[0]);
            let t = tiles(&pool, &m);
            assert!(t.split_pays());
            let cols = shape.cols;
            let n = 20;
            let mut x = r.gaussian(n * cols);
            let special: [(usize, Change); 6] = [
                (1, |c, x| if c == 7 { f32::NAN } else { x }),
                (4, |c, x| if c == 199 { f32::INFINITY } else { x }),
                (5, |_, x| x * 1e30),
                (9, |_, x| x * 1e-30),
                // Of one block only a few elements are as large as the largest.
                (10, |c, x| if c == 100 { 1e6 } else { x }),
                (19, |c, x| if c % 9 == 0 { x * 1e9 } else { x }),
            ];
            for (v, change) in special {
                for (c, x) in x[v * cols..(v + 1) * cols].iter_mut().enumerate() {
                    *x = change(c, *x);
                }
            }
            let y = run(k, &t, Activations::F32, &x, n, 1);
            for (v, (x, y)) in x.chunks(cols).zip(y.chunks(40)).enumerate() {
                let name = format!("{} {bits:?} vector {v}", k.name());
                let expected = match split_oracle(&t.layout, &m, x) {
                    Some(expected) => expected,
                    None => run(
                        fused.expect("split sets are"),
                        &t,
                        Activations::F32,
                        x,
                        1,
                        1,
                    ),
                };
                let is_special = special.iter().any(|(at, _)| *at == v);
                assert_eq!(
                    split_oracle(&t.layout, &m, x).is_none(),
                    is_special,
                    "{name}"
                );
                // A NaN is one whatever its bits.
                let bits_of = |y: &[f32]| {
                    let bits = y.iter().map(|y| (!y.is_nan()).then(|| y.to_bits()));
                    bits.collect::<Vec<_>>()
                };
                assert_eq!(bits_of(y), bits_of(&expected), "{name}");
            }
        }
    }
}

#[test]
fn float32_is_exact_whatever_the_magnitudes() {
    let pool = Pool::new(1).unwrap();
    let mut r = Random::new(22);
    for k in TileKernels::variants() {
        for case in 0..60 {
            let shape = Shape::new(35, 333, [32, 64, 128, 0][case % 4]);
            let mut m = random_codes(&mut r, shape, Bits::ALL[case / 4 % 4], Kind::ALL[case % 4]);
            let spread = [0, 4, 12, 20, 30, 60][case % 6] as f32;
            if let ScalesBuf::F32(scales) = &mut m.scales {
                let size = 10f32.powi((r.next() % 24) as i32 - 12);
                scales.iter_mut().for_each(|s| *s *= size);
            }
            let t = tiles(&pool, &m);
            let middle = (r.unit() as f32 - 0.5) * 40.0;
            let x: Vec<f32> = (0..3 * 333)
                .map(|_| r.gauss() * 2f32.powf(middle + (r.unit() as f32 - 0.5) * spread))
                .collect();
            let y = run(&k, &t, Activations::F32, &x, 3, 1);
            for (x, y) in x.chunks(333).zip(y.chunks(35)) {
                let wide: Vec<f64> = x.iter().map(|&x| x as f64).collect();
                let name = format!("{} case {case}", k.name());
                assert_product(&name, y, &product(&m.as_codes(), &wide), 1e-5);
            }
        }
    }
}

#[test]
fn small_integers_are_multiplied_without_error() {
    let pool = Pool::new(1).unwrap();
    let mut r = Random::new(23);
    for k in TileKernels::variants() {
        for bits in Bits::ALL {
            let shape = Shape::new(33, 96, 32);
            let mut m = random_codes(&mut r, shape, bits, Kind::ALL[0]);
            m.scales = ScalesBuf::F32(vec![0.25; 33 * 3]);
            let x: Vec<f32> = (0..96).map(|_| (r.next() % 201) as f32 - 100.0).collect();
            let y = run(&k, &tiles(&pool, &m), Activations::F32, &x, 1, 1);
            let wide: Vec<f64> = x.iter().map(|&x| x as f64).collect();
            let want = product(&m.as_codes(), &wide);
            for (y, want) in y.iter().zip(&want) {
                assert_eq!(*y as f64, want.0, "{} {bits:?}", k.name());
            }
        }
    }
}

#[test]
fn activations_are_split_as_defined() {
    let mut r = Random::new(24);
    for k in TileKernels::variants() {
        let Some(split) = k.split() else { continue };
        let (mut whole, mut refused) = (0, 0);
        for (len, block) in [
            (1, 32),
            (31, 32),
            (32, 32),
            (65, 64),
            (300, 128),
            (0, 32),
            (300, 32),
        ] {
            for case in 0..120 {
                let size = 2f32.powi((r.next() % 180) as i32 - 100);
                let spread = [0.0, 8.0, 24.0][case % 3];
                let mut x: Vec<f32> = (0..len)
                    .map(|_| r.gauss() * size * 2f32.powf(r.unit() as f32 * spread))
                    .collect();
                for _ in 0..case % 4 {
                    let special = [
                        0.0,
                        -0.0,
                        1e-40,
                        f32::MAX,
                        f32::NAN,
                        f32::NEG_INFINITY,
                        size,
                    ];
                    if len > 0 {
                        x[r.next() as usize % len] = special[r.next() as usize % special.len()];
                    }
                }
                let blocks = len.div_ceil(block);
                let mut digits = [(); DIGITS].map(|()| vec![0i8; len]);
                let mut sums = [(); DIGITS].map(|()| vec![0i32; blocks]);
                let mut scales = vec![0f32; blocks];
                let to = SplitTo {
                    digits: digits.each_mut().map(|d| &mut d[..]),
                    scales: &mut scales,
                    sums: sums.each_mut().map(|s| &mut s[..]),
                };
                // SAFETY: the kernels exist, so the processor has their features.
                let largest = unsafe { split(&x, block, to) };
                let mut expected = [(); DIGITS].map(|()| vec![0i8; len]);
                let of_blocks: Option<Vec<f32>> = (x.chunks(block).enumerate())
                    .map(|(b, x)| {
                        let columns = b * block..b * block + x.len();
                        split_block(x, expected.each_mut().map(|d| &mut d[columns.clone()]))
                    })
                    .collect();
                let Some(of_blocks) = of_blocks else {
                    assert_eq!(largest, None, "{} {x:?}", k.name());
                    refused += 1;
                    continue;
                };
                whole += 1;
                let top = x.iter().fold(0f32, |m, x| m.max(x.abs()));
                assert_eq!(largest, Some(top), "{} {x:?}", k.name());
                assert_eq!(digits, expected, "{} {x:?}", k.name());
                assert_eq!(scales, of_blocks, "{} {x:?}", k.name());
                for (sums, digits) in sums.iter().zip(&digits) {
                    let want = digits
                        .chunks(block)
                        .map(|d| d.iter().map(|&d| d as i32).sum());
                    assert_eq!(*sums, want.collect::<Vec<i32>>());
                }
            }
        }
        assert!(whole > 100 && refused > 100, "{whole} split, {refused} not");
    }
}
