use super::*;
use crate::testing::Random;

fn levels() -> Vec<VectorKernels> {
    if !Isa::Avx512.available() {
        eprintln!("SKIPPED: levels beyond {}", Isa::best());
    }
    VectorKernels::variants()
}

/// The greatest difference, relative to `1 + |expected|`.
fn error(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let each = found.iter().zip(expected);
    each.map(|(f, e)| (f64::from(*f) - e).abs() / (1.0 + e.abs()))
        .fold(0.0, f64::max)
}

/// `len` numbers as a cache holds them, and the same widened.
fn kept<T: Cached + Default>(
    k: &VectorKernels,
    r: &mut Random,
    len: usize,
    widen: impl Fn(T) -> f32,
) -> (Vec<T>, Vec<f32>) {
    let mut kept = vec![T::default(); len];
    T::narrow(k, &r.gaussian(len), &mut kept);
    let wide = kept.iter().map(|&v| widen(v)).collect();
    (kept, wide)
}

fn scores_and_mixes<T: Cached + Default>(widen: impl Fn(T) -> f32 + Copy) {
    let mut r = Random::new(1);
    for dim in [2, 6, 8, 16, 30, 64, 130] {
        for rows in [1, 2, 4, 8] {
            for (blocks, at) in [(1, 0), (2, 13), (5, 3), (16, 0)] {
                for k in levels() {
                    let q = r.gaussian(dim * rows);
                    let (keys, wide) = kept(&k, &mut r, blocks * dim * BLOCK, widen);
                    let mut out = vec![Chunk([7.0; CHUNK]); rows];
                    k.scores(&q, &keys, at, &mut out);
                    for (i, out) in out.iter().enumerate() {
                        let positions = at * BLOCK..(at + blocks) * BLOCK;
                        let expected: Vec<f64> = (0..blocks * BLOCK)
                            .map(|p| {
                                let key = &wide[p / BLOCK * dim * BLOCK + p % BLOCK..];
                                let products = (0..dim).map(|d| {
                                    f64::from(q[d * rows + i]) * f64::from(key[d * BLOCK])
                                });
                                products.sum()
                            })
                            .collect();
                        let e = error(&out.0[positions.clone()], &expected);
                        assert!(e < 1e-5, "{k:?} {dim} {rows}");
                        assert!(out.0[..positions.start].iter().all(|&s| s == 7.0));
                        assert!(out.0[positions.end..].iter().all(|&s| s == 7.0));
                    }

                    // Of the magnitude of probabilities, so that the sums have the magnitude of
                    // values.
                    let smaller = |s: &mut f32| *s /= 16.0 * dim as f32;
                    out.iter_mut()
                        .for_each(|c| c.0.iter_mut().for_each(smaller));
                    let (width, n) = (dim.next_multiple_of(16), blocks * BLOCK - 1);
                    let (values, wide) = kept(&k, &mut r, n * width, widen);
                    let start = r.gaussian(rows * width);
                    let mut mixed = start.clone();
                    k.mix(&out, at * BLOCK + 1, &values, &mut mixed);
                    let expected: Vec<f64> = (0..rows * width)
                        .map(|i| {
                            let products = (0..n).map(|p| {
                                let weight = out[i / width].0[at * BLOCK + 1 + p];
                                f64::from(weight) * f64::from(wide[p * width + i % width])
                            });
                            f64::from(start[i]) + products.sum::<f64>()
                        })
                        .collect();
                    assert!(error(&mixed, &expected) < 1e-5, "{k:?} {dim} {rows}");
                }
            }
        }
    }
}

#[test]
fn scores_and_mixes_of_float32() {
    scores_and_mixes::<f32>(|v| v);
}

#[test]
fn scores_and_mixes_of_float16() {
    scores_and_mixes::<f16>(f16::to_f32);
}

#[test]
fn a_row_is_the_same_whatever_is_beside_it() {
    let mut r = Random::new(7);
    let (dim, blocks) = (24, 6);
    for k in levels() {
        let (keys, _) = kept::<f16>(&k, &mut r, blocks * dim * BLOCK, f16::to_f32);
        let (values, _) = kept::<f16>(&k, &mut r, blocks * BLOCK * 32, f16::to_f32);
        let queries: Vec<Vec<f32>> = (0..8).map(|_| r.gaussian(dim)).collect();
        let run = |rows: usize| {
            let q: Vec<f32> = (0..dim * rows)
                .map(|i| queries[i % rows][i / rows])
                .collect();
            let mut chunks = vec![Chunk([0.0; CHUNK]); rows];
            k.scores(&q, &keys, 0, &mut chunks);
            let ends: Vec<_> = chunks
                .iter_mut()
                .map(|c| k.softmax(&mut c.0, 3..70))
                .collect();
            let mut mixed = vec![0.0; rows * 32];
            // More positions than the row sees, then exactly those that it sees.
            match rows {
                1 => k.mix(&chunks, 3, &values[3 * 32..70 * 32], &mut mixed),
                _ => k.mix(&chunks, 0, &values, &mut mixed),
            }
            (ends[0], mixed[..32].to_vec())
        };
        for rows in [2, 4, 8] {
            assert_eq!(run(rows), run(1), "{k:?} {rows}");
        }
    }
}

#[test]
fn halves_are_rounded_and_kept_in_range() {
    let mut r = Random::new(4);
    let mut x: Vec<f32> = r.gaussian(37).iter().map(|v| v * 1e-3).collect();
    x.extend([0.0, -0.0, 65504.0, 65520.0, -1e30, f32::INFINITY, 1e-8]);
    for k in levels() {
        let mut halves = vec![f16::ONE; x.len()];
        f16::narrow(&k, &x, &mut halves);
        for (x, half) in x.iter().zip(&halves) {
            let expected = f16::from_f32(x.clamp(-65504.0, 65504.0));
            assert_eq!(half.to_bits(), expected.to_bits(), "{k:?} {x}");
        }
    }
}

#[test]
fn a_softmax_over_what_is_seen() {
    let mut r = Random::new(5);
    for seen in [
        0..1,
        0..256,
        255..256,
        3..4,
        16..32,
        5..100,
        17..250,
        31..33,
    ] {
        let mut scores = Chunk([f32::NAN; CHUNK]);
        let gauss = r.gaussian(seen.len());
        for (s, g) in scores.0[seen.clone()].iter_mut().zip(&gauss) {
            *s = g * 6.0;
        }
        let wide: Vec<f64> = scores.0[seen.clone()].iter().map(|&s| s.into()).collect();
        let top = wide.iter().copied().fold(f64::MIN, f64::max);
        let expected: Vec<f64> = wide.iter().map(|s| (s - top).exp()).collect();
        for k in levels() {
            let mut p = scores;
            let (largest, sum) = k.softmax(&mut p.0, seen.clone());
            assert_eq!(f64::from(largest), top);
            assert!(
                error(&p.0[seen.clone()], &expected) < 1e-6,
                "{k:?} {seen:?}"
            );
            assert!(
                error(&[sum], &[expected.iter().sum()]) < 1e-6,
                "{k:?} {seen:?}"
            );
            assert!(p.0[..seen.start].iter().all(|&v| v == 0.0));
            assert!(p.0[seen.end..].iter().all(|&v| v == 0.0));
        }
    }
    for k in levels() {
        let mut lost = Chunk([f32::NEG_INFINITY; CHUNK]);
        assert_eq!(k.softmax(&mut lost.0, 0..9).1, 0.0);
        let mut wrong = Chunk([f32::NAN; CHUNK]);
        assert!(k.softmax(&mut wrong.0, 0..9).1.is_nan());
    }
}

#[test]
fn the_functions() {
    let mut r = Random::new(2);
    for n in [1, 2, 15, 16, 31, 33, 100, 1000] {
        let x: Vec<f32> = r.gaussian(n).iter().map(|v| v * 6.0).collect();
        let up = r.gaussian(n);
        let wide: Vec<f64> = x.iter().map(|&v| v.into()).collect();
        for k in levels() {
            let mut g = x.clone();
            k.silu_times(&mut g, &up);
            let expected: Vec<f64> = wide
                .iter()
                .zip(&up)
                .map(|(v, u)| v / (1.0 + (-v).exp()) * f64::from(*u))
                .collect();
            assert!(error(&g, &expected) < 2e-6, "silu {k:?}");
            let mut g = x.clone();
            k.gelu_times(&mut g, &up);
            let gelu = |v: f64| {
                0.5 * v
                    * (1.0
                        + ((2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v * v * v)).tanh())
            };
            let expected: Vec<f64> = wide
                .iter()
                .zip(&up)
                .map(|(v, u)| gelu(*v) * f64::from(*u))
                .collect();
            assert!(
                error(&g, &expected) < 4e-6,
                "gelu {k:?} {}",
                error(&g, &expected)
            );
            let mut out = vec![0.0; n];
            k.rms_norm(&x, &up, 1e-5, &mut out);
            let mean = wide.iter().map(|v| v * v).sum::<f64>() / n as f64;
            let expected: Vec<f64> = wide
                .iter()
                .zip(&up)
                .map(|(v, w)| v / (mean + 1e-5).sqrt() * f64::from(*w))
                .collect();
            assert!(error(&out, &expected) < 1e-6, "norm {k:?}");
        }
    }
}

#[test]
fn exponentials_over_the_whole_range() {
    for k in levels() {
        for i in -9000..=0 {
            let x = i as f32 * 0.01;
            let mut s = Chunk([x; CHUNK]);
            s.0[0] = 0.0;
            k.softmax(&mut s.0, 0..20);
            let (found, expected) = (f64::from(s.0[19]), f64::from(x).exp());
            assert!(
                (found - expected).abs() <= 3e-7 * expected + 2e-38,
                "{x}: {found} {expected}"
            );
        }
        let mut small: Vec<f32> = (-400..400).map(|i| i as f32 * 0.002).collect();
        let expected: Vec<f64> = small
            .iter()
            .map(|&v| 3.0 * (f64::from(v) / 3.0).tanh())
            .collect();
        k.softcap(&mut small, 3.0);
        assert!(error(&small, &expected) < 1e-6);
        let mut large = [-1e30, -500.0, -7.0, 7.0, 500.0, 1e30, f32::INFINITY];
        k.softcap(&mut large, 3.0);
        for (found, expected) in large
            .iter()
            .zip([-3.0f32, -3.0, -2.944_6, 2.944_6, 3.0, 3.0, 3.0])
        {
            assert!((found - expected).abs() < 1e-3, "{found} {expected}");
        }
        let mut wrong = [f32::NAN];
        k.softcap(&mut wrong, 3.0);
        assert!(wrong[0].is_nan());
    }
}

#[test]
fn every_level_gives_the_same_bits() {
    let mut r = Random::new(3);
    let (x, up) = (r.gaussian(333), r.gaussian(333));
    let all = levels();
    let run = |k: &VectorKernels| {
        let (mut a, mut b, mut c) = (x.clone(), x.clone(), vec![0.0; 333]);
        k.gelu_times(&mut a, &up);
        k.softcap(&mut a, 0.7);
        k.silu_times(&mut b, &up);
        k.rms_norm(&x, &up, 1e-6, &mut c);
        let keys: Vec<f16> = x[..320].iter().map(|&v| f16::from_f32(v)).collect();
        let mut chunks = [Chunk([0.0; CHUNK]); 2];
        k.scores(&up[..40], &keys, 0, &mut chunks);
        k.softmax(&mut chunks[0].0, 1..15);
        k.mix(&chunks, 0, &keys[..256], &mut a[..32]);
        [a, b, c]
            .concat()
            .iter()
            .map(|v| v.to_bits())
            .collect::<Vec<_>>()
    };
    for k in &all[1..] {
        assert_eq!(run(k), run(&all[0]), "{k:?}");
    }
}

#[test]
fn mixing_stays_within_a_chunk() {
    let chunks = [Chunk([1.0; CHUNK])];
    let values = vec![1.0f32; 2 * 16];
    for k in levels() {
        let mut out = vec![0.0; 16];
        k.mix(&chunks, CHUNK - 2, &values, &mut out);
        assert_eq!(out, [2.0; 16], "{k:?}");
        let beyond = || k.mix(&chunks, CHUNK - 1, &values, &mut [0.0; 16]);
        assert!(std::panic::catch_unwind(beyond).is_err(), "{k:?}");
    }
}
