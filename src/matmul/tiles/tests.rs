//! Every set of kernels that this processor can run, over awkward shapes.

mod splitting;

use super::*;
use crate::quant::{Bits, CodesBuf, Shape, quantize_block};
use crate::runtime::Pool;
use crate::testing::{Kind, Random, assert_product, product, random_codes};

const SHAPES: [(usize, usize, usize); 32] = [
    (1, 1, 0),
    (1, 31, 32),
    (3, 33, 32),
    (5, 64, 64),
    (31, 65, 32),
    (32, 128, 128),
    (33, 172, 64),
    (63, 172, 0),
    (65, 172, 96),
    (64, 300, 128),
    (7, 8, 1000),
    (40, 1100, 32),
    (33, 1900, 256),
    (3, 700, 0),
    (34, 2080, 160),
    (35, 200, 128),
    (2, 4097, 128),
    (33, 148, 64),
    (3, 1108, 64),
    // Padded groups.
    (5, 100, 16),
    (33, 172, 33),
    (3, 70, 17),
    (64, 300, 48),
    (34, 1100, 100),
    // Short groups.
    (1, 2, 1),
    (33, 172, 1),
    (5, 63, 2),
    (3, 4097, 3),
    (65, 172, 7),
    (40, 300, 8),
    (31, 65, 13),
    (2, 1100, 15),
];
/// One, each width of the kernels, the numbers from which on other paths are taken, and mixtures.
const VECTORS: [usize; 13] = [1, 2, 3, 4, 5, 8, 12, 13, 24, 31, 52, 56, 61];

fn tiles(pool: &Pool, m: &CodesBuf) -> Tiles {
    let codes = m.as_codes();
    let layout = Layout::new(&codes).expect("tiles can hold it");
    let buffer = Buffer::zeroed(layout.tiles() * layout.tile_bytes(), "a test").unwrap();
    Tiles::pack(Executor::Pool(pool), layout, &codes, buffer).unwrap()
}

/// Runs `check(name, kernels, matrix, tiles, generator)` for all combinations. Under a sanitizer
/// each shape is tested with a single kind per bit width, a different one at the next.
fn everywhere(bits: &[Bits], check: impl Fn(&str, &TileKernels, &CodesBuf, &Tiles, &mut Random)) {
    let pool = Pool::new(1).unwrap();
    let variants = TileKernels::variants();
    for isa in crate::cpu::Isa::ALL {
        if !isa.available() {
            eprintln!("SKIPPED: this processor lacks {isa}");
        }
    }
    if variants.iter().all(|k| k.amx().is_none()) {
        eprintln!("SKIPPED: this processor lacks AMX, or may not use it");
    }
    let one_kind = std::env::var_os("APL_FFI_SANITIZED").is_some();
    for k in &variants {
        let mut r = Random::new(1);
        for (b, &bits) in bits.iter().enumerate() {
            for (i, (rows, cols, group)) in SHAPES.into_iter().enumerate() {
                for (j, kind) in Kind::ALL.into_iter().enumerate() {
                    if one_kind && j != (i + b) % Kind::ALL.len() {
                        continue;
                    }
                    let m = random_codes(&mut r, Shape::new(rows, cols, group), bits, kind);
                    let name = format!("{} {bits:?} {rows}x{cols}/{group} {kind:?}", k.name());
                    check(&name, k, &m, &tiles(&pool, &m), &mut r);
                }
            }
        }
    }
}

fn run(
    k: &TileKernels,
    t: &Tiles,
    a: Activations,
    x: &[f32],
    n: usize,
    threads: usize,
) -> Vec<f32> {
    let pool = Pool::new(threads).unwrap();
    let mut y = vec![f32::NAN; n * t.layout.shape.rows];
    t.multiply(k, Executor::Pool(&pool), a, x, &mut y, n)
        .unwrap();
    y
}

/// Each vector of a batch gives the bits that it gives alone.
fn assert_batch_invariant(name: &str, k: &TileKernels, t: &Tiles, a: Activations, r: &mut Random) {
    let (rows, cols) = (t.layout.shape.rows, t.layout.shape.cols);
    let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
    let most = VECTORS.into_iter().max().expect("some");
    let x = r.gaussian(most * cols);
    let alone: Vec<_> = x
        .chunks(cols)
        .map(|x| bits(&run(k, t, a, x, 1, 1)))
        .collect();
    for n in VECTORS {
        let y = run(k, t, a, &x[..n * cols], n, 1);
        for (v, (y, alone)) in y.chunks(rows).zip(&alone).enumerate() {
            assert_eq!(bits(y), *alone, "{name} {a:?}: vector {v} of {n}");
        }
    }
}

#[test]
fn float32_is_exact() {
    everywhere(&Bits::ALL, |name, k, m, t, r| {
        let x = r.gaussian(m.shape.cols);
        let y = run(k, t, Activations::F32, &x, 1, 1);
        let x: Vec<f64> = x.iter().map(|&x| x as f64).collect();
        assert_product(name, &y, &product(&m.as_codes(), &x), 1e-5);
        assert_batch_invariant(name, k, t, Activations::F32, r);
    });
}

/// Whether two sets sum float32 products in the same order.
fn sum_alike(a: &TileKernels, b: &TileKernels, bits: Bits) -> bool {
    let fused = |k: &TileKernels| k.isa() != crate::cpu::Isa::Scalar;
    fused(a) == fused(b) && a.splits(bits) == b.splits(bits)
}

#[test]
fn float32_has_the_same_bits_in_all_sets_with_fused_multiply_add_and_in_all_that_split() {
    let variants = TileKernels::variants();
    everywhere(&Bits::ALL, |name, k, m, t, r| {
        let alike = variants.iter().find(|other| sum_alike(other, k, m.bits));
        let first = alike.expect("at least itself");
        if first.name() == k.name() {
            return;
        }
        let short: &[_] = match (t.layout.short, m.bits) {
            (false, _) => &[],
            (true, Bits::One) => &[Activations::Int8, Activations::Sign],
            (true, _) => &[Activations::Int8],
        };
        for n in [1, 3, 13] {
            let x = r.gaussian(n * m.shape.cols);
            for &a in short.iter().chain(&[Activations::F32]) {
                let want = run(first, t, a, &x, n, 1);
                let name = format!("{name}: {n} vectors, {a:?}, {}", first.name());
                assert_eq!(run(k, t, a, &x, n, 1), want, "{name}");
            }
        }
    });
}

#[test]
fn float32_is_exact_on_constant_data_of_any_length() {
    // A float32 chain over a whole row of these exceeds the tolerance by an order of magnitude.
    let pool = Pool::new(1).unwrap();
    for k in TileKernels::variants() {
        for (cols, group) in [(4096, 128), (300_000, 128), (300_000, 15)] {
            let shape = Shape::new(2, cols, group);
            let mut m = random_codes(&mut Random::new(3), shape, Bits::Eight, Kind::ALL[0]);
            m.bytes.fill(200);
            let x = vec![0.1f32; cols];
            let y = run(&k, &tiles(&pool, &m), Activations::F32, &x, 1, 1);
            let want = product(&m.as_codes(), &vec![0.1f32 as f64; cols]);
            assert_product(k.name(), &y, &want, 1e-6);
        }
    }
}

#[test]
fn float32_stays_in_range_where_its_products_do() {
    // A level times an activation, and a sum of such products, would exceed float32 before the
    // scale is applied.
    let pool = Pool::new(1).unwrap();
    for k in TileKernels::variants() {
        for (i, group) in (0..8).map(|i| (i / 2, [32, 7][i % 2])) {
            let (bits, scale) = (Bits::ALL[i], [1e-32, 1e-33, 1e-34, 1e-36][i]);
            let shape = Shape::new(33, 70, group);
            let mut m = random_codes(&mut Random::new(5), shape, bits, Kind::ALL[0]);
            m.scales = ScalesBuf::F32(vec![scale; 33 * shape.groups]);
            let t = tiles(&pool, &m);
            let ordinary = Random::new(6).gaussian(3 * 70);
            let before = run(&k, &t, Activations::F32, &ordinary, 3, 1);
            for (at, top) in [3e38, -3e38, 1e37, f32::MAX].into_iter().enumerate() {
                let mut x = ordinary.clone();
                for x in &mut x[70..140] {
                    *x = (*x / 4.0).clamp(-1.0, 1.0) * top;
                }
                let y = run(&k, &t, Activations::F32, &x, 3, 1);
                let wide: Vec<f64> = x[70..140].iter().map(|&x| x as f64).collect();
                let name = format!("{} {bits:?}/{group} {at}", k.name());
                assert_product(&name, &y[33..66], &product(&m.as_codes(), &wide), 1e-5);
                let alone = run(&k, &t, Activations::F32, &x[70..140], 1, 1);
                assert_eq!(alone, &y[33..66], "{name}");
                let rounded = run(&k, &t, Activations::Int8, &x, 3, 1);
                assert_product(
                    &name,
                    &rounded[33..66],
                    &product(&m.as_codes(), &wide),
                    1e-2,
                );
                assert_eq!(
                    (&y[..33], &y[66..]),
                    (&before[..33], &before[66..]),
                    "{name}"
                );
            }
        }
    }
}

/// The definition of products with int8 activations, bit for bit: exact integers in a block, then
/// float32 in block order.
fn int8_oracle(m: &CodesBuf, x: &[f32]) -> Vec<f32> {
    let s = m.shape;
    let codes = m.as_codes();
    let block = match s.group {
        32 | 64 | 128 => s.group,
        _ => 32,
    };
    let mut q = vec![0i8; s.cols];
    let mut row = vec![0; s.cols];
    (0..s.rows)
        .map(|r| {
            codes.row_codes(r, &mut row);
            let mut f = 0f32;
            for g in 0..s.groups {
                let columns = s.group_columns(g);
                for start in columns.clone().step_by(block) {
                    let block = start..(start + block).min(columns.end);
                    let sx = quantize_block(&x[block.clone()], &mut q[block.clone()]);
                    let level = |c: usize| m.bits.level(row[c], codes.zero_point(r, g));
                    let sum: i32 = block.map(|c| level(c) * q[c] as i32).sum();
                    f = (sum as f32).mul_add(codes.scale(r, g) * sx, f);
                }
            }
            f
        })
        .collect()
}

/// Exact to the bit, except for short groups, which are within the bounds of float32.
#[test]
fn int8_is_what_it_is_defined_to_be_at_every_level() {
    everywhere(&Bits::ALL, |name, k, m, t, r| {
        let x = r.gaussian(m.shape.cols);
        let y = run(k, t, Activations::Int8, &x, 1, 1);
        if t.layout.short {
            // Multiplied as the rounded floats.
            let left = x.chunks(m.shape.group).flat_map(|x| {
                let mut q = vec![0; x.len()];
                let scale = quantize_block(x, &mut q);
                q.into_iter().map(move |q| (scale * q as f32) as f64)
            });
            let left: Vec<f64> = left.collect();
            assert_product(name, &y, &product(&m.as_codes(), &left), 1e-5);
            return assert_batch_invariant(name, k, t, Activations::Int8, r);
        }
        let want = int8_oracle(m, &x);
        for (i, (y, want)) in y.iter().zip(&want).enumerate() {
            assert_eq!(
                y.to_bits(),
                want.to_bits(),
                "{name}: row {i} is {y}, expected {want}"
            );
        }
        assert_batch_invariant(name, k, t, Activations::Int8, r);
    });
}

#[test]
fn int8_extremes() {
    // The largest codes with the largest activations of one sign: 16-bit saturation would show
    // here.
    let pool = Pool::new(1).unwrap();
    for k in TileKernels::variants() {
        for bits in Bits::ALL {
            for fill in [0x00, 0xff] {
                let mut m = random_codes(
                    &mut Random::new(5),
                    Shape::new(32, 256, 128),
                    bits,
                    Kind::ALL[0],
                );
                m.bytes.fill(fill);
                for (x, n) in [(1.0f32, 1), (-1.0, 1), (1.0, 24), (-1.0, 24)] {
                    let x = vec![x; n * 256];
                    let y = run(&k, &tiles(&pool, &m), Activations::Int8, &x, n, 1);
                    let one = int8_oracle(&m, &x[..256]);
                    assert_eq!(y, one.repeat(n), "{} {bits:?} {fill:x} {n}", k.name());
                }
            }
        }
    }
}

#[test]
fn signs_are_exact_in_integers() {
    everywhere(&[Bits::One], |name, k, m, t, r| {
        let mut x = r.gaussian(m.shape.cols);
        x[0] = -0.0; // counts as >= 0
        let y = run(k, t, Activations::Sign, &x, 1, 1);
        let signs: Vec<f64> = x
            .iter()
            .map(|&x| if x >= 0.0 { 1.0 } else { -1.0 })
            .collect();
        assert_product(name, &y, &product(&m.as_codes(), &signs), 1e-6);
        assert_batch_invariant(name, k, t, Activations::Sign, r);
    });
}

#[test]
fn sign_extremes() {
    // Every bit differs, or none, over a group of 4096 columns: counts that do not fit a byte.
    let pool = Pool::new(1).unwrap();
    for k in TileKernels::variants() {
        for (fill, x, want) in [
            (0x00, 1.0f32, -4096.0),
            (0xff, -1.0, -4096.0),
            (0xff, 1.0, 4096.0),
        ] {
            let mut m = random_codes(
                &mut Random::new(6),
                Shape::new(33, 4096, 0),
                Bits::One,
                Kind::ALL[0],
            );
            m.bytes.fill(fill);
            let y = run(
                &k,
                &tiles(&pool, &m),
                Activations::Sign,
                &vec![x; 3 * 4096],
                3,
                1,
            );
            for (i, y) in y.iter().enumerate() {
                assert_eq!(
                    *y,
                    want * m.as_codes().scale(i % 33, 0),
                    "{} {fill:x} {x}",
                    k.name()
                );
            }
        }
    }
}

#[test]
fn activations_are_quantised_alike_at_every_level() {
    let mut r = Random::new(9);
    let special = [
        0.0,
        -0.0,
        1e-40,
        -3e-39,
        1e-31,
        2.5,
        -127.0,
        127.0,
        f32::MAX,
        63.5,
    ];
    for k in TileKernels::variants() {
        for (len, block) in [
            (1, 32),
            (31, 32),
            (32, 32),
            (65, 64),
            (300, 128),
            (0, 32),
            (128, 32),
            (300, 32),
        ] {
            for case in 0..40 {
                let size = 10f32.powi((r.next() % 60) as i32 - 45);
                let mut x: Vec<f32> = (0..len).map(|_| r.gauss() * size).collect();
                if case % 2 == 1 && len > 0 {
                    for _ in 0..3 {
                        x[r.next() as usize % len] = special[r.next() as usize % special.len()];
                    }
                }
                let blocks = len.div_ceil(block);
                let (mut q, mut scales, mut sums) =
                    (vec![0; len], vec![0.0; blocks], vec![0; blocks]);
                // SAFETY: the kernels exist, so the processor has their features.
                assert!(unsafe { k.quantize()(&x, block, &mut q, &mut scales, &mut sums) });
                for (b, x) in x.chunks(block).enumerate() {
                    let mut want = vec![0; x.len()];
                    let scale = quantize_block(x, &mut want);
                    assert_eq!(&q[b * block..][..x.len()], want, "{} {x:?}", k.name());
                    assert_eq!(scales[b].to_bits(), scale.to_bits());
                    assert_eq!(sums[b], want.iter().map(|&q| q as i32).sum::<i32>());
                }
            }
        }
    }
}

#[test]
fn activations_of_short_groups_are_rounded_alike_at_every_level() {
    let mut r = Random::new(12);
    let cols = 33;
    for k in TileKernels::variants() {
        for (width, group) in WIDTHS
            .into_iter()
            .flat_map(|w| [1, 2, 7, 15].map(|g| (w, g)))
        {
            for case in 0..20 {
                // From numbers whose inverse overflows to large ones, including zeros.
                let size = 10f32.powi(10 * (case % 7) - 45);
                let vectors: Vec<Vec<f32>> = (0..width)
                    .map(|_| {
                        let x = (0..cols).map(|_| r.gauss() * size);
                        x.map(|x| if case % 3 == 0 { x.max(0.0) } else { x })
                            .collect()
                    })
                    .collect();
                let mut got: Vec<f32> = (0..cols * width)
                    .map(|i| vectors[i % width][i / width])
                    .collect();
                // SAFETY: the kernels exist, so the processor has their features.
                unsafe { k.short_round(width)(&mut got, group) };
                for (v, x) in vectors.iter().enumerate() {
                    let want = x.chunks(group).flat_map(|x| {
                        let mut q = vec![0; x.len()];
                        let scale = quantize_block(x, &mut q);
                        q.into_iter().map(move |q| scale * q as f32)
                    });
                    for (c, want) in want.enumerate() {
                        let got = got[c * width + v];
                        assert_eq!(got, want, "{} {width}/{group} {v} {c}", k.name());
                    }
                }
            }
        }
    }
}

#[test]
fn activations_that_are_not_finite_are_refused() {
    let pool = Pool::new(1).unwrap();
    let mut r = Random::new(2);
    let matrices = [32, 7, 1].map(|group| {
        let m = random_codes(&mut r, Shape::new(4, 300, group), Bits::Four, Kind::ALL[0]);
        tiles(&pool, &m)
    });
    for (t, k) in
        (matrices.iter()).flat_map(|t| TileKernels::variants().into_iter().map(move |k| (t, k)))
    {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 31, 99, 255, 299] {
                let mut x = vec![1.0; 600];
                x[300 + at] = bad;
                let mut y = vec![7.0; 8];
                let e = t
                    .multiply(&k, Executor::Pool(&pool), Activations::Int8, &x, &mut y, 2)
                    .unwrap_err();
                assert_eq!(e.status(), crate::error::Status::Range);
                assert!(
                    e.message().contains(&format!("vector 1, column {at}")),
                    "{e}"
                );
                assert_eq!(y, [7.0; 8]);
            }
        }
    }
}

#[test]
fn the_largest_float_stays_finite_in_int8() {
    let pool = Pool::new(1).unwrap();
    for group in [1, 2, 7, 32] {
        let shape = Shape::new(3, 4, group);
        let mut m = random_codes(&mut Random::new(2), shape, Bits::Four, Kind::ALL[0]);
        m.scales = ScalesBuf::F32(vec![1e-3; 3 * shape.groups]);
        // A level of 0 among others.
        m.bytes
            .copy_from_slice(&[0x8f, 0x18, 0x00, 0x98, 0x77, 0xff]);
        for k in TileKernels::variants() {
            let x = [f32::MAX, 1.0, -f32::MAX, 0.0];
            let y = run(&k, &tiles(&pool, &m), Activations::Int8, &x, 1, 1);
            assert!(
                y.iter().all(|y| y.is_finite()),
                "{} {group}: {y:?}",
                k.name()
            );
        }
    }
}

#[test]
fn no_vectors_have_no_products() {
    let pool = Pool::new(1).unwrap();
    for k in TileKernels::variants() {
        for group in [32, 7] {
            let shape = Shape::new(40, 70, group);
            let m = random_codes(&mut Random::new(2), shape, Bits::One, Kind::ALL[0]);
            for a in [Activations::F32, Activations::Int8, Activations::Sign] {
                assert!(run(&k, &tiles(&pool, &m), a, &[], 0, 1).is_empty());
            }
        }
    }
}

#[test]
fn not_a_number_comes_through_float32() {
    let pool = Pool::new(1).unwrap();
    for group in [32, 7] {
        let shape = Shape::new(40, 70, group);
        let m = random_codes(&mut Random::new(2), shape, Bits::Two, Kind::ALL[0]);
        for k in TileKernels::variants() {
            let mut x = vec![1.0; 70];
            x[69] = f32::NAN;
            let y = run(&k, &tiles(&pool, &m), Activations::F32, &x, 1, 1);
            assert!(y.iter().all(|y| y.is_nan()));
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    // Not only the best set: AMX, the pairs for one vendor's processors and the tables for
    // another's split tiles into tasks in their own ways.
    let all = TileKernels::variants();
    let last = |has: fn(&TileKernels) -> bool| all.iter().rfind(|k| has(k));
    let sets = [
        last(|k| k.amx().is_some()),
        last(|k| k.pairs().is_some() && k.amx().is_none()),
        last(|k| k.tables().is_some()),
        last(|k| k.pairs().is_none() && k.tables().is_none()),
    ];
    for k in sets.into_iter().flatten() {
        threads_do_not_change_a_bit_of(k);
    }
}

fn threads_do_not_change_a_bit_of(k: &TileKernels) {
    let pool = Pool::new(1).unwrap();
    let mut r = Random::new(4);
    for bits in Bits::ALL {
        // AMX takes 8 bits with the default zero point only.
        let kind = Kind::ALL[usize::from(bits != Bits::Eight)];
        let m = random_codes(&mut r, Shape::new(1000, 1056, 32), bits, kind);
        let short = random_codes(&mut r, Shape::new(1000, 1056, 7), bits, Kind::ALL[1]);
        for (t, n) in [(&m, 1), (&m, 7), (&m, 61), (&short, 1), (&short, 61)] {
            let t = tiles(&pool, t);
            let x = r.gaussian(n * 1056);
            for a in [Activations::F32, Activations::Int8, Activations::Sign] {
                if a == Activations::Sign && bits != Bits::One {
                    continue;
                }
                let one = run(k, &t, a, &x, n, 1);
                for threads in [2, 3, 8] {
                    assert_eq!(
                        run(k, &t, a, &x, n, threads),
                        one,
                        "{} {bits:?} {a:?} {n} {threads}",
                        k.name()
                    );
                }
            }
        }
    }
}
