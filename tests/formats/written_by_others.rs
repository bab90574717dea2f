//! Files that other programs wrote (`tools/make_golden_files.py`), with what these make of them.

use apl_ffi::error::Status;
use apl_ffi::formats::gguf::Value;
use apl_ffi::formats::{MatrixView, WeightFile, open};
use apl_ffi::options::{Source, WeightOptions};
use apl_ffi::quant::{Bits, Packing, ScaleValues};
use apl_ffi::runtime::{Config, Runtime};
use apl_ffi::weights::{self, Home};
use half::{bf16, f16};

use super::{bits_of, data, floats, floats_of, read_f32, skipped};

#[test]
fn every_ggml_type_has_the_values_of_its_reference() {
    for mmap in [true, false] {
        let blocks = open(&data("blocks.gguf"), mmap).unwrap();
        let expected = open(&data("blocks.json"), mmap).unwrap();
        let mut names: Vec<&str> = expected.names().collect();
        assert_eq!(names.len(), 19);
        for name in &names {
            let (rows, cols, found) = floats_of(&blocks, name);
            let wanted = floats_of(&expected, name);
            assert_eq!((rows, cols), (2, 256));
            assert_eq!(bits_of(&found), bits_of(&wanted.2), "{name}");
            // Each tensor has its type for a name.
            let stored = blocks.stored(name).unwrap().unwrap();
            assert_eq!(&stored.kind, name);
        }
        names.push("vector");
        assert_eq!(blocks.names().collect::<Vec<_>>(), names);
    }
}

#[test]
fn exact_types_keep_their_codes() {
    let blocks = open(&data("blocks.gguf"), true).unwrap();
    for (name, bits, group, zero_point) in [
        ("Q8_0", Bits::Eight, 32, 128),
        ("Q4_0", Bits::Four, 32, 8),
        ("Q2_0", Bits::Two, 64, 1),
        ("TQ2_0", Bits::Two, 256, 1),
        ("Q1_0", Bits::One, 128, 1),
    ] {
        let matrix = blocks.matrix(name).unwrap();
        let MatrixView::Codes(view) = &matrix else {
            panic!("{name} is not codes");
        };
        let codes = view.as_codes();
        assert_eq!((codes.bits, codes.shape.group), (bits, group), "{name}");
        assert_eq!(codes.zero_point(1, 0), zero_point, "{name}");
        assert!(matches!(codes.scales, ScaleValues::F16(_)), "{name}");
        assert_eq!(codes.packing, Packing::Msb, "{name}");
        assert!(blocks.stored(name).unwrap().unwrap().codes, "{name}");
    }
}

#[test]
fn metadata_of_every_type() {
    let WeightFile::Gguf(file) = open(&data("blocks.gguf"), true).unwrap() else {
        panic!("not taken for GGUF");
    };
    for (key, value) in [
        ("test.u8", Value::Unsigned(200)),
        ("test.i8", Value::Signed(-100)),
        ("test.u16", Value::Unsigned(60000)),
        ("test.i16", Value::Signed(-30000)),
        ("test.u32", Value::Unsigned(4_000_000_000)),
        ("test.i32", Value::Signed(-2_000_000_000)),
        ("test.u64", Value::Unsigned(1 << 63)),
        ("test.i64", Value::Signed(-(1 << 62))),
        ("test.f32", Value::Float(0.5)),
        ("test.f64", Value::Float(0.1)),
        ("test.bool", Value::Bool(true)),
        ("test.string", Value::Text("⍳10".into())),
    ] {
        assert_eq!(file.metadata(key), Some(&value), "{key}");
    }
    for (key, len, bytes) in [("test.numbers", 3, 12), ("test.strings", 3, 3 * 8 + 4)] {
        let Some(Value::Array(array)) = file.metadata(key) else {
            panic!("{key} is not an array");
        };
        assert_eq!((array.len, array.bytes.len()), (len, bytes), "{key}");
    }
    assert_eq!(file.metadata("test.none"), None);
}

#[test]
fn safetensors_of_every_float_type() {
    let expected = read_f32(&data("small.f32"));
    for mmap in [true, false] {
        let file = open(&data("small.safetensors"), mmap).unwrap();
        let as_f16: Vec<f32> = expected
            .iter()
            .map(|&v| f16::from_f32(v).to_f32())
            .collect();
        let as_bf16: Vec<f32> = expected
            .iter()
            .map(|&v| bf16::from_f32(v).to_f32())
            .collect();
        assert_eq!(floats_of(&file, "f32"), (3, 5, expected.clone()));
        assert_eq!(floats_of(&file, "f16"), (3, 5, as_f16));
        assert_eq!(floats_of(&file, "bf16"), (3, 5, as_bf16));
    }
}

/// Without a width asked for, types of more than 4 bits a weight lose little: they are quantised to 8.
#[test]
fn the_width_that_a_type_gets() {
    let rt = Runtime::new(Config::default()).unwrap();
    let blocks = data("blocks.gguf");
    let opened = |name: &str, options: &str| {
        let options = WeightOptions::from_json(options, Source::File).unwrap();
        weights::open(&rt, &blocks, name, &options, Home::Backend).unwrap()
    };
    for (name, bits) in [
        ("Q8_0", 8),
        ("Q6_K", 8),
        ("Q5_K", 8),
        ("Q5_1", 8),
        ("Q5_0", 8),
        ("Q4_K", 4),
        ("Q4_0", 4),
        ("IQ4_NL", 4),
        ("IQ4_XS", 4),
        ("Q3_K", 4),
        ("TQ2_0", 2),
        ("F16", 4),
    ] {
        assert_eq!(opened(name, "").bits(), bits, "{name}");
        assert_eq!(opened(name, r#"{"bits": 2}"#).bits(), 2, "{name}");
    }
}

#[test]
fn what_is_not_a_matrix_is_refused() {
    let tensors = data("small.safetensors");
    let blocks = data("blocks.gguf");
    let early = data("early/weights.json");
    for (path, name, text) in [
        (
            &tensors,
            "norm",
            "norm: its shape is [5], a matrix has two dimensions",
        ),
        (
            &blocks,
            "vector",
            "vector: its shape is [32], a matrix has two dimensions",
        ),
        (
            &early,
            "norm",
            "norm: its shape is [11], a matrix has two dimensions",
        ),
        (
            &tensors,
            "ids",
            "ids: the type I64 is unsupported; supported are F32, F16, BF16",
        ),
    ] {
        let file = open(path, true).unwrap();
        let e = file.matrix(name).unwrap_err();
        assert_eq!((e.status(), e.message()), (Status::Unsupported, text));
    }
    let e = open(&blocks, true).unwrap().matrix("Q4_2").unwrap_err();
    assert_eq!(e.status(), Status::Format);
    let nearest = "there is no matrix named \"Q4_2\"; the nearest of 20: ";
    assert!(e.message().starts_with(nearest), "{e}");
    assert!(e.message().contains("Q4_0"), "{e}");
}

#[test]
fn sharded_safetensors() {
    let file = open(&data("small.safetensors.index.json"), true).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["f32", "gone", "away"]);
    assert_eq!(floats_of(&file, "f32").2, read_f32(&data("small.f32")));
    let e = file.matrix("gone").unwrap_err();
    assert_eq!(
        (e.status(), e.message()),
        (
            Status::Format,
            "gone is not in small.safetensors, where the index has it"
        )
    );
    let e = file.matrix("away").unwrap_err();
    assert_eq!(e.status(), Status::Io);
    assert!(
        e.message().contains("none.safetensors cannot be opened: "),
        "{e}"
    );
}

#[test]
fn early_manifests() {
    let file = open(&data("early/weights.json"), true).unwrap();
    let expected = read_f32(&data("early/early.f32"));
    let names = ["inside", "signs", "one", "text", "two", "three"];
    for (name, expected) in names.iter().zip(expected.chunks(3 * 11)) {
        let (rows, cols, found) = floats_of(&file, name);
        assert_eq!((rows, cols), (3, 11), "{name}");
        assert_eq!(bits_of(&found), bits_of(expected), "{name}");
    }
}

/// Real models, where they are at hand: every matrix is finite, and they have the shapes of their models.
#[test]
fn real_models() {
    let models = data("../../../shared/models");
    let open_model = |name: &str| match open(&models.join(name), true) {
        Ok(file) => Some(file),
        Err(e) if e.status() == Status::Io => {
            skipped(&format!("no model to read: {e}"));
            None
        }
        Err(e) => panic!("{e}"),
    };
    for (path, name, shape) in [
        (
            "stories260K/stories260K.gguf",
            "blk.0.ffn_down.weight",
            (64, 172),
        ),
        (
            "tinystories-656k/model.safetensors",
            "model.layers.1.mlp.down_proj.weight",
            (128, 384),
        ),
    ] {
        let Some(file) = open_model(path) else { return };
        let (rows, cols, _) = floats_of(&file, name);
        assert_eq!((rows, cols), shape);
        for name in file.names() {
            match file.matrix(name) {
                Ok(m) => assert!(floats(&m).2.iter().all(|w| w.is_finite()), "{name}"),
                Err(e) => assert_eq!(e.status(), Status::Unsupported, "{e}"),
            }
        }
    }
}
