//! Files that are not what they claim. Every one has its own sentence.

use std::path::Path;

use apl_ffi::error::{Error, Status};
use apl_ffi::formats::gguf::Gguf;
use apl_ffi::formats::manifest::Manifest;
use apl_ffi::formats::npz::Npz;
use apl_ffi::formats::open;
use apl_ffi::formats::safetensors::SafeTensors;

use super::{data, folder};

/// Asserts that every case is refused with its own text, which begins as given.
fn check<T>(cases: Vec<(Result<T, Error>, Status, &str)>) {
    let mut seen = Vec::new();
    for (i, (result, status, text)) in cases.into_iter().enumerate() {
        let e = result
            .err()
            .unwrap_or_else(|| panic!("case {i} is accepted: {text}"));
        assert!(e.message().starts_with(text), "case {i}: {e}, not {text}");
        assert_eq!(e.status(), status, "case {i}: {e}");
        seen.push(e.message().to_owned());
    }
    let count = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), count, "two cases have one text: {seen:#?}");
}

/// A GGUF file, field by field.
#[derive(Default)]
struct Builder(Vec<u8>);

impl Builder {
    fn gguf(tensors: u64, pairs: u64) -> Builder {
        Builder::default()
            .raw(b"GGUF")
            .u32(3)
            .u64(tensors)
            .u64(pairs)
    }

    fn raw(mut self, bytes: &[u8]) -> Builder {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u32(self, v: u32) -> Builder {
        self.raw(&v.to_le_bytes())
    }

    fn u64(self, v: u64) -> Builder {
        self.raw(&v.to_le_bytes())
    }

    fn text(self, text: &str) -> Builder {
        self.u64(text.len() as u64).raw(text.as_bytes())
    }

    fn tensor(self, name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Builder {
        let mut b = self.text(name).u32(dimensions.len() as u32);
        for &d in dimensions {
            b = b.u64(d);
        }
        b.u32(kind).u64(offset)
    }

    /// Pads to the default alignment and adds `n` bytes of data.
    fn data(mut self, n: usize) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(32) + n, 0);
        self.0
    }
}

#[test]
#[rustfmt::skip] // one case a line
fn gguf() {
    use Status::{Format, Unsupported};
    let opened = |bytes: Vec<u8>| Gguf::new(bytes.into());
    let cut = |n: usize| opened(Builder::gguf(0, 0).0[..n].to_vec());
    let one = |dimensions: &[u64], kind, offset| {
        opened(
            Builder::gguf(1, 0)
                .tensor("t", dimensions, kind, offset)
                .data(64),
        )
    };
    let pair = |kind: u32| Builder::gguf(0, 1).text("k").u32(kind);
    let aligned = |a: u32| {
        Builder::gguf(0, 1)
            .text("general.alignment")
            .u32(4)
            .u32(a)
            .data(0)
    };
    let nested = (0..5).fold(pair(9), |b, _| b.u32(9).u64(1));

    assert!(opened(Builder::gguf(0, 0).0).is_ok());
    assert!(one(&[16], 0, 0).is_ok());
    check(vec![
        (cut(3), Format, "the magic needs 4 bytes at offset 0, 3 are left"),
        (opened(b"GGML____".to_vec()), Format, "a GGUF file begins with \"GGUF\""),
        (cut(7), Format, "the version needs 4 bytes at offset 4, 3 are left"),
        (opened(b"GGUF\x01\0\0\0".to_vec()), Unsupported, "GGUF version 1; 2 and 3 are known"),
        (opened(b"GGUF\0\0\0\0".to_vec()), Unsupported, "GGUF version 0; 2 and 3 are known"),
        (opened(b"GGUF\0\0\0\x03".to_vec()), Unsupported, "a big-endian GGUF file"),
        (cut(12), Format, "the number of tensors needs 8 bytes at offset 8, 4 are left"),
        (cut(20), Format, "the number of metadata pairs needs 8 bytes"),
        (opened(Builder::gguf(u64::MAX, 0).0), Format, "the number of tensors is 18446744073709551615, at most"),
        (opened(Builder::gguf(1 << 20, 0).0), Format, "the number of tensors is 1048576, which cannot fit"),
        (opened(Builder::gguf(0, 1 << 40).0), Format, "the number of metadata pairs is 1099511627776, at most"),
        (opened(Builder::gguf(0, 9).0), Format, "the number of metadata pairs is 9, which cannot fit"),
        (opened(Builder::gguf(0, 1).u64(1 << 60).data(32)), Format, "a metadata key is 1152921504606846976, at most"),
        (opened(Builder::gguf(0, 1).u64(99).data(32)), Format, "a metadata key is 99, which cannot fit"),
        (opened(Builder::gguf(0, 1).u64(1).raw(&[0xff]).data(32)), Format, "a metadata key is not UTF-8"),
        (opened(pair(13).data(32)), Format, "k: unknown metadata type 13"),
        (opened(pair(12).raw(&[0; 7]).0), Format, "k: a metadata value needs 8 bytes"),
        (opened(pair(7).raw(&[2]).data(0)), Format, "k: a boolean is 2"),
        (opened(pair(8).u64(5 << 20).data(0)), Format, "k: a metadata value is 5242880, which cannot fit"),
        (opened(pair(8).u64(1 << 40).data(0)), Format, "k: a metadata value is 1099511627776, at most"),
        (opened(pair(9).u32(5).u64(u64::MAX).data(0)), Format, "k: the length of an array is 18446744073709551615, which cannot fit"),
        (opened(pair(9).u32(8).u64(1).u64(77).0), Format, "k: a text in an array needs 77 bytes"),
        (opened(pair(9).u32(77).u64(0).0), Format, "k: unknown metadata type 77"),
        (opened(nested.data(64)), Format, "k: arrays nested more than 4 deep"),
        (opened(Builder::gguf(0, 2).text("k").u32(7).raw(&[1]).text("k").u32(7).raw(&[1]).0), Format, "two metadata pairs have the key k"),
        (opened(aligned(24)), Format, "general.alignment is 24, expected a power of two"),
        (opened(aligned(1 << 30)), Format, "general.alignment is 1073741824"),
        (one(&[], 0, 0), Format, "t: 0 dimensions, expected 1 to 4"),
        (one(&[1; 5], 0, 0), Format, "t: 5 dimensions, expected 1 to 4"),
        (one(&[32], 5, 0), Unsupported, "t: the type 5 is unknown; supported are F32, F16, Q4_0"),
        (one(&[33], 2, 0), Format, "t: rows of 33 weights, Q4_0 has blocks of 32"),
        (one(&[1 << 32, 1 << 32], 0, 0), Format, "t: its dimensions are too large"),
        (one(&[16], 0, 8), Format, "t: its offset 8 is not a multiple of the alignment 32"),
        (one(&[16], 0, 32), Format, "t: 64 bytes of data at offset 32, beyond the 64 that the file has"),
        (one(&[16], 0, u64::MAX - 31), Format, "t: 64 bytes of data at offset 18446744073709551584, beyond"),
        (one(&[1 << 40, 1 << 20], 0, 0), Format, "t: 4611686018427387904 bytes of data at offset 0, beyond"),
        (opened(Builder::gguf(2, 0).tensor("a", &[16], 0, 0).tensor("b", &[8], 0, 32).data(64)), Format, "the data of a and b overlap"),
        (opened(Builder::gguf(2, 0).tensor("a", &[8], 0, 0).tensor("a", &[8], 0, 32).data(64)), Format, "two tensors are named a"),
    ]);
}

#[test]
fn every_truncation_of_a_gguf_file() {
    let whole = std::fs::read(data("blocks.gguf")).unwrap();
    // The last tensor is followed by padding.
    for n in 0..whole.len() - 31 {
        if let Ok(file) = Gguf::new(whole[..n].to_vec().into()) {
            assert!(
                n > whole.len() - 64 && file.names().count() == 19,
                "{n} bytes"
            );
        }
    }
}

#[test]
fn a_scale_that_is_not_finite() {
    let mut file = Builder::gguf(1, 0).tensor("t", &[32, 2], 8, 0).data(68);
    let at = file.len() - 33;
    file[at] = 0x7c; // the second block's scale is infinite
    let file = Gguf::new(file.into()).unwrap();
    check(vec![(
        file.matrix("t").unwrap(),
        Status::Format,
        "t: scale 1 is not finite",
    )]);
}

#[test]
#[rustfmt::skip] // one case a line
fn safetensors() {
    use Status::{Format, Unsupported};
    let with = |header: &str, data: usize| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        SafeTensors::new(bytes.into())
    };
    let tensor = |name: &str, dtype: &str, shape: &str, offsets: &str| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
    };
    let one = |dtype: &str, shape: &str, offsets: &str| {
        with(&format!("{{{}}}", tensor("t", dtype, shape, offsets)), 8)
    };
    let two = |a: String, b: String| with(&format!("{{{a},{b}}}"), 8);

    assert!(one("F32", "[1,2]", "[0,8]").is_ok());
    assert!(with(r#"{"__metadata__":{"shape":"x"}}"#, 0).is_ok());
    // Nesting is passed over without recursion.
    let deep = ["[".repeat(100_000), "]".repeat(100_000)].concat();
    assert!(with(&format!(r#"{{"__metadata__":{deep}}}"#), 0).is_ok());
    check(vec![
        (SafeTensors::new(vec![1, 2, 3].into()), Format, "the length of the header needs 8 bytes"),
        (SafeTensors::new(vec![0xff; 16].into()), Format, "the length of the header is 18446744073709551615, at most"),
        (SafeTensors::new([&[9][..], &[0; 7], b"{}"].concat().into()), Format, "the length of the header is 9, which cannot fit the 2 bytes left"),
        (with("{", 0), Format, "the header is malformed: EOF"),
        (with("[]", 0), Format, "the header is malformed: invalid type: sequence, expected an object"),
        (with("{} {}", 0), Format, "the header is malformed: trailing characters"),
        (with("{\"\u{1}\":1}", 0), Format, "the header is malformed: control character"),
        (with(r#"{"t":{"dtype":"F32","shape":[1]}}"#, 4), Format, "the header is malformed: missing field `data_offsets`"),
        (one("F32", "[-1]", "[0,4]"), Format, "the header is malformed: invalid value: integer `-1`"),
        (one("F32", "[1,2]", "[0,8,9]"), Format, "the header is malformed: trailing characters at line 1"),
        (one("F4", "[1,2]", "[0,1]"), Unsupported, "t: the type \"F4\" is unknown; supported are F32, F16, BF16"),
        (one("F32", "[1,2]", "[8,0]"), Format, "t: its data is at 8 to 0, the file has 8 bytes"),
        (one("F32", "[1,2]", "[4,12]"), Format, "t: its data is at 4 to 12, the file has 8 bytes"),
        (one("F32", "[1,3]", "[0,8]"), Format, "t: 8 bytes of data do not make F32 [1, 3]"),
        (one("F32", "[4294967296,4294967296]", "[0,0]"), Format, "t: 0 bytes of data do not make"),
        (one("F32", &format!("{:?}", [1; 65]), "[0,4]"), Format, "the header is malformed: more than 64 dimensions"),
        (two(tensor("a", "F16", "[1,3]", "[0,6]"), tensor("b", "F16", "[2]", "[4,8]")), Format, "the data of a and b overlap"),
        (two(tensor("a", "F16", "[2]", "[0,4]"), tensor("a", "F16", "[2]", "[4,8]")), Format, "the header is malformed: the key \"a\" comes twice"),
    ]);
}

#[test]
#[rustfmt::skip] // one case a line
fn manifests() {
    use Status::{Format, Io, Unsupported};
    let early = data("early");
    let with = |text: &str| Manifest::new(text.as_bytes(), &early, true).map(drop);
    let npz = |name: &str| {
        with(&format!(
            r#"{{"format_version":2,"model":{{"source_npz":"{name}"}},"weights":{{"w":{{}}}}}}"#
        ))
    };
    // One weight, whose arrays are those of the early manifest's folder.
    let weight = |entry: &str| {
        let text = format!(
            r#"{{"format_version":2,"model":{{"source_npz":"weights.npz"}},"weights":{{"w":{{{entry}}}}}}}"#
        );
        let manifest = Manifest::new(text.as_bytes(), &early, true)?;
        manifest.matrix("w").unwrap().map(drop)
    };
    let codes = |rest: &str| {
        weight(&format!(
            r#""shape":[3,11],"bit_width":4,"packed":"inside_q4","scales":"inside_q4_scales"{rest}"#
        ))
    };

    // What holds for all weights, here packed codes and others that have a byte each.
    let of_all = |names: &str, weight: &str| {
        let text = format!(
            r#"{{"format_version":2,"model":{{"source_npz":"weights.npz"}},"quantization":{{"packing":{names}}},
               "weights":{{"w":{{"shape":[3,11],{weight}}}}}}}"#
        );
        let manifest = Manifest::new(text.as_bytes(), &early, true)?;
        manifest.matrix("w").unwrap().map(drop)
    };
    let packed = |names: &str| {
        let bytes = r#""bit_width":4,"packed":"inside_q4","scales":"inside_q4_scales""#;
        of_all(names, bytes)?;
        of_all(names, r#""packed":"one_1bit.bin","scales":"one_scales.npy""#)
    };

    codes("").unwrap();
    packed(r#"{"endianness":"msb_first","layout":"row-major"}"#).unwrap();
    packed(r#""msb_first""#).unwrap();
    check(vec![
        (with("{"), Format, "the manifest is malformed: EOF"),
        (with("{}"), Format, "the manifest is malformed: missing field `format_version`"),
        (with("[]"), Format, "the manifest is malformed: invalid length 0, expected an object"),
        (with(r#"{"format_version":2}"#), Format, "the manifest is malformed: missing field `weights`"),
        (with(r#"{"format_version":3,"weights":{}}"#), Unsupported, "format_version 3; 2 is known"),
        (with(r#"{"format_version":2,"weights":{"a":{},"a":{}}}"#), Format, "the manifest is malformed: the key \"a\" comes twice"),
        (with(r#"{"format_version":2,"weights":{"a":{}}}"#), Format, "model.source_npz is missing"),
        (npz("../blocks.npz"), Format, "the path \"../blocks.npz\" leads out of the folder"),
        (npz("/etc/passwd"), Format, "the path \"/etc/passwd\" leads out of the folder"),
        (npz("."), Format, "the path \".\" leads out of the folder"),
        (npz(""), Format, "the path \"\" leads out of the folder"),
        (npz("one_1bit.bin"), Format, "one_1bit.bin: the zip archive is malformed"),
        (npz("none.npz").map_err(|e| Error::io(e.message().rsplit('/').next().unwrap())), Io, "none.npz cannot be opened: "),
        (weight(""), Format, "w: it has no shape"),
        (weight(r#""shape":[3,11]"#), Format, "w: it names no arrays and the npz has none of its name"),
        (weight(r#""shape":[3,11],"packed":"inside_q4","bit_width":4"#), Format, "w: it has codes and no scales"),
        (weight(r#""shape":[3,11],"packed":"inside_q4","scales":"x""#), Format, "w: it has codes and no bit_width"),
        (weight(r#""shape":[3,11],"packed":"inside_q4","scales":"x","bit_width":3"#), Format, "w: bit_width 3, expected 1, 2, 4 or 8"),
        (weight(r#""shape":[3,11],"packed":"x","scales":"y","bit_width":4"#), Format, "w: x is neither a key of the npz nor an .npy file"),
        (weight(r#""shape":[3,11],"packed":"norm_fp32","scales":"y","bit_width":4"#), Unsupported, "w: norm_fp32: codes of type <f4; |u1 are read"),
        (weight(r#""shape":[3,12],"packed":"inside_q4","scales":"inside_q4_scales","bit_width":4"#), Format, "w: 33 bytes of codes, 3 rows of 6 were expected"),
        (weight(r#""shape":[3,11],"packed":"inside_q4","scales":"inside_shape","bit_width":4"#), Unsupported, "w: scales of type <i8; <f2, <f4 and <f8 are read"),
        (weight(r#""shape":[3,11],"packed":"inside_q4","scales":"norm_fp32","bit_width":4"#), Format, "w: 11 scales; 1, 3 or 3 x 1 were expected"),
        (weight(r#""shape":[3,11],"fp32":"norm_fp32""#), Format, "w: 11 weights do not make 3 x 11"),
        (weight(r#""shape":[0,99999999999],"fp32":"inside_q4""#), Format, "w: an empty matrix of shape [0, 99999999999]; its sides may have"),
        (weight(r#""shape":[11,3],"fp32":"inside_q4""#), Format, "w: inside_q4 is of shape [3, 11], 11 rows were expected"),
        (weight(r#""shape":[3,11],"fp32":"inside_q4""#), Unsupported, "w: weights of type |u1; <f2, <f4 and <f8 are read"),
        (weight(r#""shape":[3,11],"packed":"../early/one_1bit.bin","scales":"x""#), Format, "w: the path \"../early/one_1bit.bin\" leads out"),
        (codes(r#","scale_axis":{"index":1}"#), Unsupported, "w: scales along axis 1"),
        (codes(r#","packed_format":"lsb_first""#), Unsupported, "w: codes packed lsb_first"),
        (packed(r#"{"endianness":"lsb","layout":"row-major"}"#), Unsupported, "w: codes packed lsb"),
        (packed(r#"{"endianness":"msb_first","layout":"col-major"}"#), Unsupported, "w: codes packed col-major"),
        (codes(r#","zero_points":"norm_fp32""#), Format, "w: number 0 is out of range"),
        (codes(r#","zero_points":"inside_shape""#), Format, "w: 2 zero points; 1, 3 or 3 x 1 were expected"),
        (codes(r#","bit_width":2"#), Format, "the manifest is malformed: duplicate field `bit_width`"),
        (weight(r#""shape":[3,11],"bit_width":2,"q":"inside_q4","q_scales":"inside_q4_scales""#), Format, "w: code "),
    ]);
}

#[cfg(unix)]
#[test]
fn a_link_out_of_the_folder() {
    let inner = folder("a_link_out_of_the_folder").join("inner");
    std::fs::create_dir(&inner).unwrap();
    std::os::unix::fs::symlink(data("blocks.npz"), inner.join("blocks.npz")).unwrap();
    std::fs::copy(data("blocks.json"), inner.join("blocks.json")).unwrap();
    let e = open(&inner.join("blocks.json"), true).err().unwrap();
    assert_eq!(e.status(), Status::Format);
    assert!(
        e.message()
            .ends_with("the path \"blocks.npz\" leads out of the folder"),
        "{e}"
    );
}

/// Where `pattern` begins in `bytes`, the `nth` time.
fn find(bytes: &[u8], pattern: &[u8], nth: usize) -> usize {
    let found = bytes.windows(pattern.len()).enumerate();
    let mut at = found.filter(|(_, w)| *w == pattern).map(|(i, _)| i);
    at.nth(nth).unwrap()
}

#[test]
#[rustfmt::skip] // one case a line
fn npz_archives() {
    use Status::{Format, Unsupported};
    const CENTRAL: &[u8] = b"PK\x01\x02";
    let stored = std::fs::read(data("early/weights.npz")).unwrap();
    let deflated = std::fs::read(data("blocks.npz")).unwrap();
    // Overwrites bytes of the first entry in the archive's directory.
    let patched = |archive: &[u8], offset: usize, bytes: &[u8]| {
        let mut archive = archive.to_vec();
        let at = find(&archive, CENTRAL, 0) + offset;
        archive[at..at + bytes.len()].copy_from_slice(bytes);
        Npz::new(archive.into()).and_then(|npz| npz.verify())
    };
    let cut = |n: usize| Npz::new(stored[..n].to_vec().into()).map(drop);
    let mut damaged = deflated.clone();
    damaged[200] ^= 0x55;
    let mut flipped = stored.clone();
    let codes = find(&flipped, b"NUMPY", 0) + 130;
    flipped[codes] ^= 1;
    let mut twice = stored.clone();
    let second = find(&twice, CENTRAL, 1);
    let first = find(&twice, CENTRAL, 0);
    twice.copy_within(first + 42..first + 46, second + 42); // both entries at one place

    assert!(patched(&stored, 0, CENTRAL).is_ok());
    check(vec![
        (cut(10), Format, "the zip archive is malformed: "),
        (patched(&stored, 8, &[1, 0]), Unsupported, "inside_q4.npy: an encrypted archive entry"),
        (patched(&stored, 10, &[12, 0]), Unsupported, "inside_q4.npy: compression "),
        (patched(&stored, 24, &[1, 0, 0, 0]), Format, "inside_q4.npy: 161 bytes in the archive cannot hold the 1 that it claims"),
        (patched(&stored, 20, &[0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff, 0x7f]), Format, "inside_q4.npy: 2147483647 bytes at offset "),
        (patched(&deflated, 24, &[0xff, 0xff, 0xff, 0x7f]), Format, "F32.npy: "),
        (Npz::new(damaged.into()).and_then(|npz| npz.verify()), Format, "F32: its deflated data is damaged"),
        (Npz::new(flipped.into()).and_then(|npz| npz.verify()), Format, "inside_q4: its data is damaged"),
        (Npz::new(twice.into()).map(drop), Format, "the data of inside_q4_scales and inside_q4 overlap"),
    ]);
    for n in 0..stored.len() {
        assert!(cut(n).is_err(), "{n} bytes");
    }
}

/// How many damaged copies of each file the next test reads.
const DAMAGED: u32 = 3000;

/// Whatever a few wrong bytes do, they do not panic, and what is accepted can be read.
#[test]
fn damaged_files_never_panic() {
    let mut state = 1u32;
    let mut random = |below: usize| {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as usize % below
    };
    let gguf: fn(Vec<u8>) = |bytes| {
        if let Ok(file) = Gguf::new(bytes.into()) {
            file.names().for_each(|n| drop(file.matrix(n)));
        }
    };
    let safetensors: fn(Vec<u8>) = |bytes| {
        if let Ok(file) = SafeTensors::new(bytes.into()) {
            file.names().for_each(|n| drop(file.matrix(n)));
        }
    };
    let npz: fn(Vec<u8>) = |bytes| {
        if let Ok(file) = Npz::new(bytes.into()) {
            let _ = file.verify();
        }
    };
    let manifest: fn(Vec<u8>) = |bytes| {
        if let Ok(file) = Manifest::new(&bytes, &data("early"), true) {
            file.names().for_each(|n| drop(file.matrix(n)));
        }
    };
    for (name, read) in [
        ("blocks.gguf", gguf),
        ("small.safetensors", safetensors),
        ("early/weights.npz", npz),
        ("blocks.npz", npz),
        ("early/weights.json", manifest),
    ] {
        let whole = std::fs::read(data(name)).unwrap();
        for _ in 0..DAMAGED {
            let mut bytes = whole.clone();
            for _ in 0..1 + random(4) {
                // Headers are what a reader decides by: damage them more often than data.
                let within = if random(2) == 0 {
                    bytes.len()
                } else {
                    bytes.len().min(1500)
                };
                let at = random(within);
                let extremes = [0, 1, 0x7f, 0x80, 0xff, b'"', b'{', random(256) as u8];
                bytes[at] = extremes[random(extremes.len())];
            }
            read(bytes);
        }
    }
}

#[test]
#[rustfmt::skip] // one case a line
fn files_that_are_none_of_ours() {
    let folder = folder("files_that_are_none_of_ours");
    let opened = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        let e = open(&path, true).map(drop);
        e.map_err(|e| {
            let text = e.message().strip_prefix(&format!("{}: ", path.display()));
            Error::format(text.expect("the path comes first"))
        })
    };
    check(vec![
        (opened("a.bin", b"hello"), Status::Format, "neither a manifest (.json), nor .gguf, nor .safetensors"),
        (opened("a.gguf", b""), Status::Format, "the magic needs 4 bytes at offset 0, 0 are left"),
        (opened("a.safetensors", b"x"), Status::Format, "the length of the header needs 8 bytes at offset 0, 1 are left"),
        (opened("a.json", b""), Status::Format, "the manifest is malformed: EOF"),
        (opened("a", b" {\"weight_map\": 1}"), Status::Format, "the shard index is malformed: invalid type"),
        (opened("a.index.json", b"{}"), Status::Format, "the shard index is malformed: missing field"),
    ]);
    let e = open(Path::new("none/at/all.json"), true).err().unwrap();
    assert_eq!(e.status(), Status::Io);
}
