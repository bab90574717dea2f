use super::*;
use crate::testing::Random;

fn levels() -> Vec<VectorKernels> {
    let all = [Isa::Scalar, Isa::Avx2, Isa::Avx512];
    let there: Vec<_> = all.into_iter().filter_map(VectorKernels::for_isa).collect();
    if there.len() < all.len() {
        eprintln!("SKIPPED: levels beyond {:?}", there.last());
    }
    there
}

/// The greatest difference, relative to `1 + |expected|`.
fn error(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let each = found.iter().zip(expected);
    each.map(|(f, e)| (f64::from(*f) - e).abs() / (1.0 + e.abs()))
        .fold(0.0, f64::max)
}

const WIDTHS: [usize; 10] = [2, 6, 8, 15, 16, 17, 64, 80, 128, 130];

#[test]
fn dots_and_mixes() {
    let mut r = Random::new(1);
    for width in WIDTHS {
        for (m, n) in [(1, 1), (1, 7), (3, 5), (8, 33)] {
            let (q, stride) = (r.gaussian(m * width), n + 2);
            let keys32 = r.gaussian(n * width);
            let keys16: Vec<f16> = keys32.iter().map(|&k| f16::from_f32(k)).collect();
            let wide: Vec<f32> = keys16.iter().map(|k| k.to_f32()).collect();
            let weights = r.gaussian(m * stride);
            let start = r.gaussian(m * width);
            for k in levels() {
                for (keys, half) in [(&keys32, false), (&wide, true)] {
                    let mut out = vec![7.0; m * stride];
                    let mut mixed = start.clone();
                    if half {
                        k.dots(&q, &keys16, &mut out, width, stride);
                        k.mix(&mut mixed, &weights, &keys16, stride);
                    } else {
                        k.dots(&q, &keys32, &mut out, width, stride);
                        k.mix(&mut mixed, &weights, &keys32, stride);
                    }
                    for i in 0..m {
                        let expected: Vec<f64> = (0..n)
                            .map(|j| {
                                (0..width)
                                    .map(|c| {
                                        f64::from(q[i * width + c]) * f64::from(keys[j * width + c])
                                    })
                                    .sum()
                            })
                            .collect();
                        assert!(
                            error(&out[i * stride..][..n], &expected) < 1e-5,
                            "{k:?} {width}"
                        );
                        assert_eq!(out[i * stride + n..][..2], [7.0, 7.0]);
                        let expected: Vec<f64> = (0..width)
                            .map(|c| {
                                let products = (0..n).map(|j| {
                                    f64::from(weights[i * stride + j])
                                        * f64::from(keys[j * width + c])
                                });
                                f64::from(start[i * width + c]) + products.sum::<f64>()
                            })
                            .collect();
                        assert!(
                            error(&mixed[i * width..][..width], &expected) < 1e-5,
                            "{k:?} {width} {n}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn every_finite_half_is_widened_exactly() {
    use generic::Widen;
    for bits in 0..=u16::MAX {
        let half = f16::from_bits(bits);
        if half.is_finite() {
            assert_eq!(half.widen().to_bits(), half.to_f32().to_bits(), "{bits:#x}");
        }
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
            for cap in [None, Some(5.0f32)] {
                let mut s = x.clone();
                k.softmax(&mut s, cap);
                let capped: Vec<f64> = wide
                    .iter()
                    .map(|v| cap.map_or(*v, |c| f64::from(c) * (v / f64::from(c)).tanh()))
                    .collect();
                let top = capped.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = capped.iter().map(|v| (v - top).exp()).sum();
                let expected: Vec<f64> = capped.iter().map(|v| (v - top).exp() / sum).collect();
                assert!(error(&s, &expected) < 1e-6, "softmax {k:?} {n} {cap:?}");
            }
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
            let mut s = [0.0, x];
            k.softmax(&mut s, None);
            let e = f64::from(x).exp();
            let expected = e / (1.0 + e);
            let found = f64::from(s[1]);
            assert!(
                (found - expected).abs() <= 1e-6 * expected + 2e-38,
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
    }
}

#[test]
fn every_level_gives_the_same_bits() {
    let mut r = Random::new(3);
    let (x, up) = (r.gaussian(333), r.gaussian(333));
    let all = levels();
    let run = |k: &VectorKernels| {
        let (mut a, mut b, mut c) = (x.clone(), x.clone(), vec![0.0; 333]);
        k.softmax(&mut a, Some(2.0));
        k.silu_times(&mut b, &up);
        k.rms_norm(&x, &up, 1e-6, &mut c);
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
