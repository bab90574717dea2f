//! Products on a device, if there is one: a GPU, or the emulated driver (`make test-fake-gpu`).

use super::*;
use crate::error::Status;
use crate::quant::{Bits, CodesBuf, Shape};
use crate::runtime::enter_library;
use crate::testing::{Kind, Random, assert_product, product, random_codes, skipped};

fn gpu() -> Option<Arc<Gpu>> {
    let _inside = enter_library();
    match open(0) {
        Ok(gpu) => Some(gpu),
        Err(why) => {
            // A run that is meant to test CUDA must not pass by skipping.
            let demanded = std::env::var_os("APL_FFI_BACKEND").is_some_and(|b| b == "cuda");
            assert!(!demanded, "CUDA is demanded: {why}");
            skipped(&why);
            None
        }
    }
}

fn upload(gpu: &Gpu, codes: &CodesBuf) -> Weights {
    let alone = |tasks: usize, job: &(dyn Fn(usize) + Sync)| (0..tasks).for_each(job);
    gpu.upload(&codes.as_codes(), &alone).unwrap()
}

/// A vector in the precision of a mode, in float64. int8 follows the rule of `include/apl_ffi.h`: a
/// block is a whole group of 32, 64 or 128 columns, else at most 32 columns of a group.
fn taken(mode: Mode, shape: &Shape, x: &[f32]) -> Vec<f64> {
    let mut taken: Vec<f64> = x.iter().map(|&x| x.into()).collect();
    match mode {
        Mode::F32 => {}
        Mode::Sign => taken
            .iter_mut()
            .for_each(|x| *x = if *x >= 0.0 { 1.0 } else { -1.0 }),
        Mode::Int8 => {
            let run = if matches!(shape.group, 64 | 128) {
                shape.group
            } else {
                32
            };
            for group in 0..shape.groups {
                let columns = shape.group_columns(group);
                for start in columns.clone().step_by(run) {
                    let block = start..(start + run).min(columns.end);
                    let scale = x[block.clone()].iter().fold(0f32, |m, x| m.max(x.abs())) / 127.0;
                    for i in block {
                        let ratio = if scale > 0.0 { x[i] / scale } else { 0.0 };
                        taken[i] = f64::from(ratio.round_ties_even()) * f64::from(scale);
                    }
                }
            }
        }
    }
    taken
}

const MODES: [Mode; 3] = [Mode::F32, Mode::Int8, Mode::Sign];

#[test]
fn products_are_those_of_float64() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(1);
    for bits in Bits::ALL {
        for (rows, cols, group, n) in [
            (1, 8, 8, 1),
            (5, 33, 32, 1),
            (70, 256, 64, 1),
            (9, 200, 48, 2),
            (33, 100, 0, 3),
            (17, 130, 128, 5),
            (6, 100, 128, 1),
            (7, 128, 256, 3),
            (18, 40, 64, 20),
            (65, 96, 32, 9),
            (3, 64, 32, 18),
            (2, 128, 32, 70),
        ] {
            let shape = Shape::new(rows, cols, group);
            let kind = Kind::ALL[(rows + bits.get()) % Kind::ALL.len()];
            let codes = random_codes(&mut random, shape, bits, kind);
            let weights = upload(&gpu, &codes);
            let x = random.gaussian(n * cols);
            for mode in MODES {
                if mode == Mode::Sign && bits != Bits::One {
                    continue;
                }
                let mut y = vec![f32::NAN; n * rows];
                gpu.multiply(&weights, mode, &x, &mut y, n).unwrap();
                for (v, (x, y)) in x.chunks(cols).zip(y.chunks(rows)).enumerate() {
                    let what = format!(
                        "{mode:?} {bits:?} {rows} x {cols}, group {group}, vector {v} of {n}"
                    );
                    let expected = product(&codes.as_codes(), &taken(mode, &shape, x));
                    assert_product(&what, y, &expected, 1e-6);
                }
            }
        }
    }
}

#[test]
fn the_same_call_gives_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(2);
    let codes = random_codes(
        &mut random,
        Shape::new(40, 96, 32),
        Bits::Four,
        Kind::ALL[2],
    );
    let weights = upload(&gpu, &codes);
    let x = random.gaussian(6 * 96);
    for mode in [Mode::F32, Mode::Int8] {
        let run = || {
            let mut y = vec![0f32; 6 * 40];
            gpu.multiply(&weights, mode, &x, &mut y, 6).unwrap();
            y.iter().map(|y| y.to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(run(), run(), "{mode:?}");
    }
}

#[test]
fn what_goes_to_the_device_comes_back() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(3);
    for bits in Bits::ALL {
        for (rows, cols, group) in [(1, 9, 0), (300, 700, 32), (31, 100, 9)] {
            for kind in Kind::ALL {
                let codes = random_codes(&mut random, Shape::new(rows, cols, group), bits, kind);
                let weights = upload(&gpu, &codes);
                assert_eq!(
                    gpu.to_codes(&weights).unwrap(),
                    codes,
                    "{bits:?} {rows} {cols} {kind:?}"
                );
                let (mut row, mut expected) = (vec![0.0; cols], vec![0.0; cols]);
                gpu.row(&weights, rows - 1, &mut row).unwrap();
                codes.as_codes().dequantize_row(rows - 1, &mut expected);
                assert_eq!(row, expected, "{bits:?} {rows} {cols} {kind:?}");
            }
        }
    }
}

#[test]
fn large_and_infinite_vectors() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(4);
    let shape = Shape::new(4, 64, 32);
    let mut codes = random_codes(&mut random, shape, Bits::Eight, Kind::ALL[1]);
    // The largest codes and the largest x, with a scale that brings the product back into range.
    codes.bytes.fill(0xff);
    codes.zero_points = None;
    codes.scales = crate::quant::ScalesBuf::F32(vec![1e-6; 8]);
    let weights = upload(&gpu, &codes);
    let mut x = vec![3e38f32; 64];
    x.extend(random.gaussian(64));
    let mut y = vec![0f32; 8];
    gpu.multiply(&weights, Mode::F32, &x, &mut y, 2).unwrap();
    for (x, y) in x.chunks(64).zip(y.chunks(4)) {
        let x: Vec<f64> = x.iter().map(|&x| x.into()).collect();
        assert_product("large", y, &product(&codes.as_codes(), &x), 1e-6);
    }
    x[70] = f32::INFINITY;
    gpu.multiply(&weights, Mode::F32, &x, &mut y, 2).unwrap();
    assert!(y[..4].iter().all(|y| y.is_finite()) && y[4..].iter().all(|&y| y == f32::INFINITY));

    let before = y.clone();
    let e = gpu
        .multiply(&weights, Mode::Int8, &x, &mut y, 2)
        .unwrap_err();
    assert_eq!(e.status(), Status::Range);
    assert_eq!(
        e.message(),
        "x is inf at vector 1, column 6: int8 activations must be finite"
    );
    assert_eq!(y, before);
}

/// Matrices that share launches get the same bits as separately.
#[test]
fn products_together() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(6);
    let (cols, group) = (200, 32);
    // The last one has a different width.
    let matrices: Vec<_> = [(40, 1), (3, 1), (17, 1), (1, 1), (9, 4)]
        .into_iter()
        .map(|(rows, bits)| {
            let (shape, bits) = (Shape::new(rows, cols, group), Bits::new(bits).unwrap());
            upload(
                &gpu,
                &random_codes(&mut random, shape, bits, Kind::ALL[rows % Kind::ALL.len()]),
            )
        })
        .collect();
    let stream = Stream::new(gpu.device()).unwrap();
    let memory = |bytes| Memory::new(gpu.device(), bytes, "a test").unwrap();
    let (columns, bad) = (matrices[0].columns(), memory(4));
    stream.zero(bad.all()).unwrap();
    for mode in MODES {
        let matrices = match mode {
            Mode::Sign => &matrices[..4],
            _ => &matrices[..],
        };
        for n in [1, 3, 9, 70] {
            let values = random.gaussian(n * cols);
            let x = memory(n * cols * 4);
            stream
                .write(x.all(), bytemuck::cast_slice(&values))
                .unwrap();
            let scratch = memory(prepared_bytes(mode, &columns, n).unwrap());
            let vectors =
                prepare(&stream, mode, columns, x.all(), n, scratch.all(), bad.all()).unwrap();
            let outputs: Vec<_> = matrices
                .iter()
                .map(|m| memory(n * m.shape().rows * 4))
                .collect();
            let products: Vec<_> = matrices
                .iter()
                .zip(&outputs)
                .map(|(m, y)| (m, y.all()))
                .collect();
            multiply(&stream, &vectors, &products).unwrap();
            for (product, y) in products.iter().zip(&outputs) {
                let alone = memory(y.bytes());
                multiply(&stream, &vectors, &[(product.0, alone.all())]).unwrap();
                let read = |y: &Memory| {
                    let mut bytes = vec![0; y.bytes()];
                    stream.read(&mut bytes, y.all()).unwrap();
                    bytes
                };
                let what = format!("{mode:?}, {n} vectors, {:?}", product.0.shape());
                assert_eq!(read(y), read(&alone), "{what}");
            }
        }
    }
}

/// A sequence on the device is captured and replayed with other vectors: it contains nothing of the
/// host.
#[test]
fn a_captured_product_is_replayed() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(5);
    let (rows, cols, n) = (20, 70, 2);
    let shape = Shape::new(rows, cols, 32);
    let codes = random_codes(&mut random, shape, Bits::Four, Kind::ALL[0]);
    let weights = upload(&gpu, &codes);
    let columns = weights.columns();
    let stream = Stream::new(gpu.device()).unwrap();
    let memory = |bytes| Memory::new(gpu.device(), bytes, "a test").unwrap();
    let scratch = memory(prepared_bytes(Mode::Int8, &columns, n).unwrap());
    let (x, y, bad) = (memory(n * cols * 4), memory(n * rows * 4), memory(4));
    let enqueue = || {
        stream.zero(bad.all())?;
        let vectors = prepare(
            &stream,
            Mode::Int8,
            columns,
            x.all(),
            n,
            scratch.all(),
            bad.all(),
        )?;
        multiply(&stream, &vectors, &[(&weights, y.all())])
    };
    let mut graph = stream.capture(enqueue).unwrap();
    for _ in 0..3 {
        let values = random.gaussian(n * cols);
        stream
            .write(x.all(), bytemuck::cast_slice(&values))
            .unwrap();
        // SAFETY: all memory that the graph refers to lives to the end of this function.
        unsafe { stream.replay(&mut graph).unwrap() };
        let mut sums = vec![0f32; n * rows];
        stream
            .read(bytemuck::cast_slice_mut(&mut sums), y.all())
            .unwrap();
        for (x, y) in values.chunks(cols).zip(sums.chunks(rows)) {
            assert_product(
                "replayed",
                y,
                &product(&codes.as_codes(), &taken(Mode::Int8, &shape, x)),
                1e-6,
            );
        }
    }
    // Work that cannot be captured gives an error, and the stream stays usable.
    let e = stream.capture(|| stream.synchronize()).err().unwrap();
    assert_eq!(e.status(), Status::Backend);
    enqueue().unwrap();
    stream.synchronize().unwrap();
}

#[test]
fn parts_of_memory_are_checked() {
    let Some(gpu) = gpu() else { return };
    let memory = Memory::new(gpu.device(), 64, "a test").unwrap();
    assert_eq!(memory.part(16, 48).from(8).bytes(), 40);
    for (offset, bytes) in [(0, 65), (64, 1), (65, 0), (usize::MAX, 2)] {
        let part = || memory.part(offset, bytes).bytes();
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(part)).is_err());
    }
    assert!(
        Memory::new(gpu.device(), usize::MAX / 2, "a test")
            .is_err_and(|e| e.status() == Status::Memory)
    );
}
