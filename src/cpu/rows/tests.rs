//! Every level against the definitions of `quant` and against float64.

use super::*;
use crate::quant::{Bits, Codes, Packing, Per, ScaleValues, Shape, packed_row_bytes};
use half::f16;

/// The levels that this processor has; one that it lacks is reported.
fn levels() -> Vec<RowKernels> {
    let levels = Isa::ALL.into_iter().filter_map(|isa| {
        let kernels = RowKernels::for_isa(isa);
        if kernels.is_none() {
            eprintln!("SKIPPED: this processor has no {isa}");
        }
        kernels
    });
    levels.collect()
}

#[test]
fn a_level_is_the_one_asked_for() {
    for kernels in levels() {
        assert!(kernels.table.isa.available());
        assert!(kernels.lanes() <= MAX_LANES);
    }
    assert_eq!(
        RowKernels::for_isa(Isa::Scalar).map(|k| k.lanes()),
        Some(16)
    );
}

fn noise(i: usize) -> u64 {
    (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 17
}

/// The span-wise unpacking of a whole row.
fn unpacked(kernels: &RowKernels, source: &RowSource<'_>, row: usize, piece: usize) -> Vec<f32> {
    let padded = source.cols().next_multiple_of(kernels.lanes());
    let mut out = vec![f32::NAN; padded];
    let mut scratch = UnpackScratch::default();
    for (i, out) in out.chunks_mut(piece).enumerate() {
        kernels.unpack(source, row, i * piece, &mut scratch, out);
    }
    out
}

fn assert_row(what: &str, got: &[f32], expected: &[f32]) {
    let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&got[..expected.len()]), bits(expected), "{what}");
    assert!(
        got[expected.len()..].iter().all(|&w| w == 0.0),
        "{what}: beyond the last column"
    );
}

#[test]
fn unpacked_weights_are_the_definition() {
    const ROWS: usize = 2;
    for (case, &cols) in [1, 7, 8, 31, 33, 63, 65, 172, 513, 4097].iter().enumerate() {
        for group in [
            0, 1, 2, 7, 8, 16, 24, 32, 33, 48, 64, 65, 100, 128, 1000, 5000,
        ] {
            let shape = Shape::new(ROWS, cols, group);
            let values = ROWS * shape.groups;
            let f32s: Vec<f32> = (0..values).map(|i| noise(i) as f32 / 3e13 - 1.0).collect();
            let f16s: Vec<f16> = f32s.iter().map(|&s| f16::from_f32(s)).collect();
            for bits in Bits::ALL {
                let max = bits.max_code() as u64;
                let zeros: Vec<i32> = (0..values)
                    .map(|i| (noise(i + 7) % (max + 1)) as i32)
                    .collect();
                for packing in [Packing::Msb, Packing::Bytes] {
                    let (row_bytes, mask) = match packing {
                        Packing::Msb => (packed_row_bytes(cols, bits), 0xff),
                        Packing::Bytes => (cols, max as u8),
                    };
                    let mut bytes = vec![0];
                    bytes.extend((0..ROWS * row_bytes).map(|i| noise(i) as u8 & mask));
                    let (scales, scale_per) = match case % 4 {
                        0 => (ScaleValues::F32(&f32s), Per::Group),
                        1 => (ScaleValues::F16(&f16s), Per::Group),
                        2 => (ScaleValues::F16(&f16s[..ROWS]), Per::Row),
                        _ => (ScaleValues::F32(&f32s[..1]), Per::Tensor),
                    };
                    let zero_points = match (bits, case % 3) {
                        (Bits::One, _) | (_, 0) => None,
                        (_, 1) => Some((&zeros[..], Per::Group)),
                        _ => Some((&zeros[..ROWS], Per::Row)),
                    };
                    let codes = Codes {
                        shape,
                        bits,
                        packing,
                        bytes: &bytes[1..],
                        scales,
                        scale_per,
                        zero_points,
                    };
                    let mut expected = vec![0.0; cols];
                    for row in 0..ROWS {
                        codes.dequantize_row(row, &mut expected);
                        for kernels in levels() {
                            for spans in [1, 4] {
                                let source = RowSource::Codes(codes);
                                let got = unpacked(&kernels, &source, row, spans * kernels.span());
                                let what = format!(
                                    "{kernels:?} {bits:?} {packing:?} {cols} group {group}"
                                );
                                assert_row(&what, &got, &expected);
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn float_weights_are_copied_and_widened() {
    for cols in [1, 7, 8, 16, 33, 513, 4097] {
        let f16s: Vec<f16> = (0..2 * cols)
            .map(|i| f16::from_bits(noise(i) as u16 & 0xbfff))
            .collect();
        let f32s: Vec<f32> = f16s.iter().map(|v| v.to_f32()).collect();
        for kernels in levels() {
            let what = format!("{kernels:?} {cols}");
            let source = RowSource::F16 {
                values: &f16s,
                rows: 2,
                cols,
            };
            assert_row(
                &what,
                &unpacked(&kernels, &source, 1, kernels.span()),
                &f32s[cols..],
            );
            let source = RowSource::F32 {
                values: &f32s,
                rows: 2,
                cols,
            };
            assert_row(
                &what,
                &unpacked(&kernels, &source, 1, kernels.span()),
                &f32s[cols..],
            );
        }
    }
}

/// `dot` over any number of spans and `dot_block` over any block give the sums that the contract
/// describes.
#[test]
fn sums_follow_the_contract() {
    for kernels in levels() {
        let (lanes, span) = (kernels.lanes(), kernels.span());
        let fused = kernels.table.isa != Isa::Scalar;
        for len in [
            lanes,
            3 * lanes,
            span,
            span + lanes,
            3 * span,
            7 * span + 5 * lanes,
        ] {
            let w: Vec<f32> = (0..len).map(|i| noise(i) as f32 / 7e13 - 1.0).collect();
            let x: Vec<f32> = (0..len).map(|i| noise(i + 5) as f32 / 7e13 - 1.0).collect();
            let mut expected = vec![0.5f32; lanes];
            for (w, x) in w.chunks(span).zip(x.chunks(span)) {
                for (l, sum) in expected.iter_mut().enumerate() {
                    let mut chain = 0.0f32;
                    for k in (l..w.len()).step_by(lanes) {
                        chain = if fused {
                            w[k].mul_add(x[k], chain)
                        } else {
                            w[k] * x[k] + chain
                        };
                    }
                    *sum += chain;
                }
            }
            let mut sums = vec![0.5f32; lanes];
            kernels.dot(&w, &x, &mut sums);
            assert_eq!(sums, expected, "{kernels:?} {len}");
            let mut block = vec![0.5f32; lanes];
            for (w, x) in w.chunks(span).zip(x.chunks(span)) {
                kernels.dot_block(w, x, w.len(), &mut block);
            }
            assert_eq!(block, expected, "{kernels:?} {len}");

            let mut totals = [1.0f64];
            kernels.flush(&mut sums, &mut totals);
            let sum: f64 = expected.iter().map(|&s| s as f64).sum();
            assert!(
                (totals[0] - 1.0 - sum).abs() <= 1e-12 * lanes as f64,
                "{kernels:?}"
            );
            assert!(sums.iter().all(|&s| s == 0.0));
        }
    }
}

#[test]
fn a_block_is_its_rows_and_vectors() {
    for kernels in levels() {
        let (lanes, len) = (kernels.lanes(), 5 * kernels.lanes());
        for (rows, vectors) in [(1, 1), (3, 7), (4, 4), (9, 6), (21, 13)] {
            let w: Vec<f32> = (0..rows * len)
                .map(|i| noise(i) as f32 / 7e13 - 1.0)
                .collect();
            let x: Vec<f32> = (0..vectors * len)
                .map(|i| noise(i + 9) as f32 / 7e13 - 1.0)
                .collect();
            let mut sums = vec![0.0f32; rows * vectors * lanes];
            kernels.dot_block(&w, &x, len, &mut sums);
            for r in 0..rows {
                for v in 0..vectors {
                    let mut one = vec![0.0f32; lanes];
                    kernels.dot(&w[r * len..][..len], &x[v * len..][..len], &mut one);
                    let sums = &sums[(r * vectors + v) * lanes..][..lanes];
                    assert_eq!(sums, one, "{kernels:?} ({r}, {v}) of {rows} x {vectors}");
                }
            }
        }
    }
}

#[test]
fn signs_are_exact_and_the_same_at_every_level() {
    for cols in [1, 7, 63, 64, 65, 200, 4097] {
        for group in [0, 1, 7, 8, 16, 32, 33, 64, 100, 128, 192] {
            let shape = Shape::new(1, cols, group);
            // Powers of two: every product and every sum of theirs is exact.
            let scales: Vec<f32> = (0..shape.groups).map(|i| [1.0, 0.5, -2.0][i % 3]).collect();
            let bytes: Vec<u8> = (0..cols.div_ceil(8)).map(|i| noise(i) as u8).collect();
            let codes = Codes {
                shape,
                bits: Bits::One,
                packing: Packing::Msb,
                bytes: &bytes,
                scales: ScaleValues::F32(&scales),
                scale_per: Per::Group,
                zero_points: None,
            };
            let x: Vec<f32> = (0..cols)
                .map(|i| noise(i + 3) as f32 / 7e13 - 1.0)
                .collect();
            let mut weights = vec![0.0; cols];
            codes.dequantize_row(0, &mut weights);
            let expected: f32 = weights
                .iter()
                .zip(&x)
                .map(|(&w, &x)| if x >= 0.0 { w } else { -w })
                .sum();
            let words = cols.div_ceil(64);
            let (mut w, mut signs) = (vec![0; words], vec![0; words]);
            row_words(&codes, 0, &mut w);
            sign_words(&x, &mut signs);
            for kernels in levels() {
                let got = kernels.sign(cols, shape.group, &scales, &w, &signs);
                assert_eq!(got, expected, "{kernels:?} {cols} group {group}");
            }
        }
    }
}
