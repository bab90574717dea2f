//! Every function of the library, called through `⎕NA`: results against float64, and what goes wrong.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::interpreter::{AplThread, Item, Workspace};
use crate::{filled, header, library, turn, workspace};

/// Statuses.
const OK: f64 = 0.0;
const LENGTH: f64 = -2.0;
const RANGE: f64 = -3.0;
const HANDLE: f64 = -4.0;
const CONFIG: f64 = -5.0;
const IO: f64 = -6.0;
const UNSUPPORTED: f64 = -8.0;
const STATE: f64 = -11.0;

/// An argument of mixed items, as a strand in APL.
macro_rules! strand {
    ($($item:expr),* $(,)?) => { [$(Item::from($item)),*] };
}

fn call(w: &Workspace, name: &str, items: &[Item]) -> Vec<Item> {
    w.call(name, items)
        .unwrap_or_else(|e| panic!("{name}: {e:?}"))
}

/// The status of a call, which for most functions is all that there is.
fn status(w: &Workspace, name: &str, items: &[Item]) -> f64 {
    call(w, name, items)[0].number()
}

fn last_error(w: &Workspace) -> String {
    filled(w, "apl_ffi_last_error", &[])
}

fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        assert!(
            (f - e).abs() <= 1e-5 * (1.0 + e.abs()),
            "{found:?}, expected {expected:?}"
        );
    }
}

/// `W+.×` for each of the vectors in `x`.
fn product(w: &[f64], cols: usize, x: &[f64]) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum();
    x.chunks(cols)
        .flat_map(|x| w.chunks(cols).map(move |row| dot(row, x)))
        .collect()
}

const ROWS: usize = 3;
const COLS: usize = 9;

/// Codes (3, 9) of 4 bits, a scale and a zero point a row, and the weights that they stand for.
fn codes() -> (Vec<u8>, [f32; ROWS], [i32; ROWS], Vec<f64>) {
    let codes: Vec<u8> = (0..ROWS * COLS).map(|i| (i * 7 % 16) as u8).collect();
    let (scales, zeros) = ([0.5, 2.0, -0.25f32], [8, 0, 15]);
    let weight =
        |i: usize| f64::from(scales[i / COLS]) * f64::from(i32::from(codes[i]) - zeros[i / COLS]);
    let weights = (0..ROWS * COLS).map(weight).collect();
    (codes, scales, zeros, weights)
}

/// Two vectors; each number is exact in float32.
fn vectors() -> Vec<f64> {
    (0..2 * COLS).map(|i| (i as f64 - 8.0) / 4.0).collect()
}

/// A Boolean (3, 9) matrix, its bytes as they lie in Dyalog's memory, and its weights. The first byte is 72 in the
/// reference's own example (0 1 0 0 1 0 0 0).
fn booleans() -> (Vec<i8>, Vec<f64>) {
    let bits = ["010010001", "111111110", "100000001"];
    let bytes = bits.iter().flat_map(|row| {
        let padded = format!("{row:0<16}");
        let byte = |at: usize| u8::from_str_radix(&padded[at..at + 8], 2).unwrap() as i8;
        [byte(0), byte(8)]
    });
    let weights = bits
        .iter()
        .flat_map(|row| row.bytes().map(|b| if b == b'1' { 1.0 } else { -1.0 }));
    (bytes.collect(), weights.collect())
}

fn handle(w: &Workspace) -> (f64, Vec<f64>) {
    let (_, _, _, weights) = codes();
    let items = strand![&weights, ROWS * COLS, ROWS, COLS, r#"{"bits":32}"#, 0];
    let made = call(w, "apl_weights_from_f64", &items);
    assert_eq!(made[0].number(), OK, "{}", last_error(w));
    (made[1].number(), weights)
}

/// A path in the scratch folder of the tests.
fn scratch(name: &str) -> String {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("apl");
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(name).to_str().unwrap().to_owned()
}

type Case = (&'static str, fn(&Workspace));

/// A case for each function of the header. Names with a dot before are those that the library declares itself, since
/// the namespace has no use for them.
const CASES: &[Case] = &[
    ("apl_ffi_abi_version", |w| {
        assert_eq!(call(w, "apl_ffi_abi_version", &[]), [Item::from(1)]);
    }),
    ("apl_ffi_init", |w| {
        assert_eq!(
            status(w, "apl_ffi_init", &strand![""]),
            OK,
            "{}",
            last_error(w)
        );
        assert_eq!(status(w, "apl_ffi_init", &strand!["{}"]), OK);
        assert_eq!(
            status(w, "apl_ffi_init", &strand![r#"{"naïve":1}"#]),
            CONFIG
        );
        assert!(last_error(w).contains("naïve"), "{}", last_error(w));
    }),
    ("apl_ffi_cleanup", |w| {
        let (h, _) = handle(w);
        assert_eq!(status(w, "apl_ffi_cleanup", &[]), OK);
        assert_eq!(status(w, "apl_weights_free", &strand![h]), HANDLE);
    }),
    ("apl_ffi_ready", |w| {
        assert_eq!(status(w, "apl_ffi_cleanup", &[]), OK);
        assert_eq!(status(w, "apl_ffi_ready", &[]), 0.0);
        assert_eq!(status(w, "apl_ffi_init", &strand![""]), OK);
        assert_eq!(status(w, "apl_ffi_ready", &[]), 1.0);
    }),
    ("apl_ffi_info", |w| {
        let info: Value = serde_json::from_str(&filled(w, "apl_ffi_info", &[])).unwrap();
        for key in ["version", "abi", "backend", "isa", "threads", "handles"] {
            assert!(info.get(key).is_some(), "{key} in {info}");
        }
        // A capacity of nothing is a buffer of nothing.
        assert_eq!(call(w, "apl_ffi_info", &strand![0, 0])[1].text(), "");
        assert_eq!(call(w, "apl_ffi_info", &strand![1, 1])[1].text(), "");
        assert_eq!(status(w, "apl_ffi_info", &strand![0, -1]), LENGTH);
    }),
    ("apl_ffi_last_error", |w| {
        assert_eq!(status(w, "apl_weights_free", &strand![77]), HANDLE);
        assert!(
            last_error(w).starts_with("apl_weights_free: handle is 77"),
            "{}",
            last_error(w)
        );
    }),
    ("apl_ffi_status_text", |w| {
        assert_ne!(status(w, ".apl_ffi_status_text", &strand![-2]), 0.0);
    }),
    ("apl_ffi_status_message", |w| {
        assert!(filled(w, ".apl_ffi_status_message", &strand![-2]).contains("length"));
    }),
    ("apl_ffi_describe", |w| {
        assert!(filled(w, ".apl_ffi_describe", &[]).contains("apl_matmul_f64"));
    }),
    ("apl_matmul_1bit", |w| {
        let (bytes, weights) = booleans();
        let unsigned: Vec<u8> = bytes.iter().map(|&b| b as u8).collect();
        let x = &vectors()[..COLS];
        let items = strand![
            &unsigned,
            6,
            &vec![0.5],
            1,
            x,
            COLS,
            ROWS,
            ROWS,
            ROWS,
            COLS,
            0,
            0
        ];
        let y = call(w, ".apl_matmul_1bit", &items);
        let expected: Vec<f64> = product(&weights, COLS, x).iter().map(|y| y / 2.0).collect();
        assert_eq!(y[0].number(), OK, "{}", last_error(w));
        close(y[1].numbers(), &expected);
    }),
    ("apl_matmul_1bit_batch", |w| {
        // Booleans as they lie in memory: signed bytes.
        let (bytes, weights) = booleans();
        let x = vectors();
        let batch = |mode: i32, bytes_len: usize| {
            let items = strand![
                &bytes,
                bytes_len,
                &vec![1],
                1,
                &x,
                18,
                6,
                6,
                ROWS,
                COLS,
                0,
                mode,
                2
            ];
            call(w, "apl_matmul_1bit_batch", &items)
        };
        let y = batch(0, 6);
        assert_eq!(y[0].number(), OK, "{}", last_error(w));
        close(y[1].numbers(), &product(&weights, COLS, &x));
        let signs: Vec<f64> = x
            .iter()
            .map(|&x| if x >= 0.0 { 1.0 } else { -1.0 })
            .collect();
        assert_eq!(batch(1, 6)[1].numbers(), product(&weights, COLS, &signs));
        assert_eq!(batch(0, 5)[0].number(), LENGTH);
        assert_eq!(batch(2, 6)[0].number(), RANGE);
    }),
    ("apl_matmul_q", |w| {
        let (codes, scales, zeros, weights) = codes();
        let x = &vectors()[..COLS];
        let items = strand![
            &codes,
            27,
            4,
            0,
            &scales[..],
            3,
            &zeros[..],
            3,
            x,
            9,
            3,
            3,
            3,
            9,
            0
        ];
        let y = call(w, ".apl_matmul_q", &items);
        assert_eq!(y[0].number(), OK, "{}", last_error(w));
        close(y[1].numbers(), &product(&weights, COLS, x));
    }),
    ("apl_matmul_q_batch", |w| {
        let (codes, scales, zeros, weights) = codes();
        let x = vectors();
        let batch = |x_len: usize| {
            let items = strand![
                &codes,
                27,
                4,
                0,
                &scales[..],
                3,
                &zeros[..],
                3,
                &x,
                x_len,
                6,
                6,
                3,
                9,
                0,
                2
            ];
            call(w, "apl_matmul_q_batch", &items)
        };
        let y = batch(18);
        assert_eq!(y[0].number(), OK, "{}", last_error(w));
        close(y[1].numbers(), &product(&weights, COLS, &x));
        assert_eq!(batch(17)[0].number(), LENGTH);
        assert!(last_error(w).contains("x_len is 17"), "{}", last_error(w));
        // Nothing at all: three empty arrays.
        let none = Vec::<f64>::new();
        let items = strand![
            &none, 0, 4, 0, &none, 0, &none, 0, &none, 0, 0, 0, 0, 9, 0, 0
        ];
        let y = call(w, "apl_matmul_q_batch", &items);
        assert_eq!(
            (y[0].number(), y[1].numbers()),
            (OK, &[][..]),
            "{}",
            last_error(w)
        );
    }),
    ("apl_quantize", |w| {
        let (_, _, _, weights) = codes();
        // 8 bits in groups of 4, with zero points: (3, 9) codes, (3, 3) scales and zero points.
        let items = strand![&weights, 27, 3, 9, 8, 4, 0, 27, 27, 9, 9, 9, 9];
        let q = call(w, "apl_quantize", &items);
        assert_eq!(q[0].number(), OK, "{}", last_error(w));
        let (codes, scales, zeros) = (q[1].numbers(), q[2].numbers(), q[3].numbers());
        for (i, weight) in weights.iter().enumerate() {
            let g = i / COLS * 3 + i % COLS / 4;
            assert!((scales[g] * (codes[i] - zeros[g]) - weight).abs() <= scales[g].abs());
        }
        let items = strand![&weights, 27, 3, 9, 3, 4, 0, 27, 27, 9, 9, 0, 0];
        assert_eq!(status(w, "apl_quantize", &items), RANGE);
    }),
    ("apl_dequantize", |w| {
        let (codes, scales, zeros, weights) = codes();
        let items = strand![
            &codes,
            27,
            4,
            0,
            &scales[..],
            3,
            &zeros[..],
            3,
            27,
            27,
            3,
            9,
            0
        ];
        let made = call(w, "apl_dequantize", &items);
        assert_eq!((made[0].number(), made[1].numbers()), (OK, &weights[..]));
        let (bytes, weights) = booleans();
        let items = strand![
            &bytes,
            6,
            1,
            1,
            &vec![1],
            1,
            &Vec::<i32>::new(),
            0,
            27,
            27,
            3,
            9,
            0
        ];
        let made = call(w, "apl_dequantize_bits", &items);
        assert_eq!((made[0].number(), made[1].numbers()), (OK, &weights[..]));
    }),
    ("apl_weights_from_codes", |w| {
        let (codes, scales, zeros, weights) = codes();
        let items = strand![
            &codes,
            27,
            4,
            0,
            &scales[..],
            3,
            &zeros[..],
            3,
            3,
            9,
            0,
            "",
            0
        ];
        let made = call(w, "apl_weights_from_codes", &items);
        assert_eq!(made[0].number(), OK, "{}", last_error(w));
        let h = made[1].number();
        assert_eq!(
            call(w, "apl_weights_dequantize", &strand![h, 27, 27])[1].numbers(),
            weights
        );
        assert_eq!(status(w, "apl_weights_free", &strand![h]), OK);

        let (bytes, weights) = booleans();
        let options = r#"{"activations":"sign"}"#;
        let items = strand![
            &bytes,
            6,
            1,
            1,
            &vec![1],
            1,
            &Vec::<i32>::new(),
            0,
            3,
            9,
            0,
            options,
            0
        ];
        let made = call(w, "apl_weights_from_bits", &items);
        assert_eq!(made[0].number(), OK, "{}", last_error(w));
        let h = made[1].number();
        assert_eq!(
            call(w, "apl_weights_dequantize", &strand![h, 27, 27])[1].numbers(),
            weights
        );
        assert_eq!(status(w, "apl_weights_free", &strand![h]), OK);
    }),
    ("apl_weights_from_f32", |w| {
        let (_, _, _, weights) = codes();
        let items = strand![&weights, 27, 3, 9, r#"{"bits":8}"#, 0];
        let made = call(w, ".apl_weights_from_f32", &items);
        assert_eq!(made[0].number(), OK, "{}", last_error(w));
        assert_eq!(
            status(w, "apl_weights_free", &strand![made[1].number()]),
            OK
        );
    }),
    ("apl_weights_from_f64", |w| {
        let (h, weights) = handle(w);
        assert_eq!(
            call(w, "apl_weights_dequantize", &strand![h, 27, 27])[1].numbers(),
            weights
        );
        let wrong = strand![&weights, 27, 3, 9, r#"{"bits":5}"#, 0];
        assert_eq!(status(w, "apl_weights_from_f64", &wrong), CONFIG);
        let wrong = strand![&vec![1e300], 1, 1, 1, "", 0];
        assert_eq!(status(w, "apl_weights_from_f64", &wrong), RANGE);
        assert_eq!(status(w, "apl_weights_free", &strand![h]), OK);
    }),
    ("apl_weights_open", |w| {
        let (h, weights) = handle(w);
        let path = scratch("open naïve.json");
        assert_eq!(
            status(w, "apl_weights_save", &strand![h, path.as_str(), "Ŵ"]),
            OK,
            "{}",
            last_error(w)
        );
        let opened = call(
            w,
            "apl_weights_open",
            &strand![path.as_str(), "Ŵ", r#"{"bits":32}"#, 0],
        );
        assert_eq!(opened[0].number(), OK, "{}", last_error(w));
        let again = opened[1].number();
        assert_eq!(
            call(w, "apl_weights_dequantize", &strand![again, 27, 27])[1].numbers(),
            weights
        );
        assert_eq!(
            status(w, "apl_weights_open", &strand!["/nowhere.json", "Ŵ", "", 0]),
            IO
        );
        assert!(last_error(w).contains("/nowhere.json"), "{}", last_error(w));
    }),
    ("apl_weights_info", |w| {
        let (h, _) = handle(w);
        let info: Value =
            serde_json::from_str(&filled(w, "apl_weights_info", &strand![h])).unwrap();
        assert_eq!((&info["rows"], &info["cols"]), (&ROWS.into(), &COLS.into()));
        assert_eq!(status(w, "apl_weights_info", &strand![0, 0, 0]), HANDLE);
    }),
    ("apl_weights_dequantize", |w| {
        let (h, weights) = handle(w);
        assert_eq!(
            call(w, "apl_weights_dequantize", &strand![h, 27, 27])[1].numbers(),
            weights
        );
        assert_eq!(
            status(w, "apl_weights_dequantize", &strand![h, 26, 26]),
            LENGTH
        );
    }),
    ("apl_weights_save", |w| {
        let (h, _) = handle(w);
        assert_eq!(
            status(
                w,
                "apl_weights_save",
                &strand![h, scratch("w.txt").as_str(), "w"]
            ),
            RANGE
        );
    }),
    ("apl_weights_free", |w| {
        let (h, _) = handle(w);
        assert_eq!(status(w, "apl_weights_free", &strand![h]), OK);
        assert_eq!(status(w, "apl_weights_free", &strand![h]), HANDLE);
        assert_eq!(status(w, "apl_weights_free", &strand![-1]), HANDLE);
    }),
    ("apl_matmul", |w| {
        let (h, weights) = handle(w);
        let y = call(w, ".apl_matmul", &strand![h, &vectors(), 18, 6, 6, 2]);
        assert_eq!(y[0].number(), OK, "{}", last_error(w));
        close(y[1].numbers(), &product(&weights, COLS, &vectors()));
    }),
    ("apl_matmul_f64", |w| {
        let (h, weights) = handle(w);
        let y = call(w, "apl_matmul_f64", &strand![h, &vectors(), 18, 6, 6, 2]);
        assert_eq!(y[0].number(), OK, "{}", last_error(w));
        close(y[1].numbers(), &product(&weights, COLS, &vectors()));
        assert_eq!(
            status(w, "apl_matmul_f64", &strand![h, &vectors(), 18, 6, 6, 3]),
            LENGTH
        );
        let far = vec![1e300; COLS];
        assert_eq!(
            status(w, "apl_matmul_f64", &strand![h, &far, 9, 3, 3, 1]),
            RANGE
        );
        let y = call(
            w,
            "apl_matmul_f64",
            &strand![h, &Vec::<f64>::new(), 0, 0, 0, 0],
        );
        assert_eq!((y[0].number(), y[1].numbers()), (OK, &[][..]));
    }),
    ("apl_model_open", |w| {
        let (m, _) = model(w);
        assert_eq!(
            status(w, "apl_model_open", &strand!["/nowhere.gguf", "", 0]),
            IO
        );
        assert_eq!(status(w, "apl_model_close", &strand![m]), OK);
    }),
    ("apl_model_info", |w| {
        let (m, _) = model(w);
        let info: Value = serde_json::from_str(&filled(w, "apl_model_info", &strand![m])).unwrap();
        assert_eq!(
            (&info["family"], &info["vocabulary"]),
            (&"llama".into(), &VOCABULARY.into())
        );
    }),
    ("apl_model_close", |w| {
        let (m, _) = model(w);
        assert_eq!(status(w, "apl_model_close", &strand![m]), OK);
        assert_eq!(status(w, "apl_model_close", &strand![m]), HANDLE);
    }),
    ("apl_model_tokenize", |w| {
        let (m, _) = model(w);
        let made = call(w, "apl_model_tokenize", &strand![m, "ab ab", 1, 16, 16]);
        let n = made[0].number();
        assert!(n >= 1.0, "{}", last_error(w));
        assert_eq!(made[1].numbers()[0], 1.0, "the token that begins a text");
        // Less room than the text needs: the count is told all the same.
        assert_eq!(
            call(w, "apl_model_tokenize", &strand![m, "ab ab", 1, 1, 1])[0].number(),
            n
        );
        assert_eq!(
            call(w, "apl_model_tokenize", &strand![m, "", 0, 0, 0])[1].numbers(),
            [0.0; 0]
        );
    }),
    ("apl_model_chat", |w| {
        let (m, _) = model(w);
        let asked = call(w, "apl_model_chat", &strand![m, "no messages", 64, 64]);
        assert!(
            [CONFIG, UNSUPPORTED].contains(&asked[0].number()),
            "{}",
            last_error(w)
        );
    }),
    ("apl_model_detokenize", |w| {
        let (m, _) = model(w);
        let ids = call(w, "apl_model_tokenize", &strand![m, "ab", 0, 16, 16]);
        let n = ids[0].number() as usize;
        let text = filled(
            w,
            "apl_model_detokenize",
            &strand![m, &ids[1].numbers()[..n], n],
        );
        assert!(text.contains("ab"), "{text:?}");
        assert_eq!(
            status(w, "apl_model_detokenize", &strand![m, &vec![9999], 1, 8, 8]),
            RANGE
        );
    }),
    ("apl_session_open", |w| {
        let (_, s) = model(w);
        assert_eq!(
            status(w, "apl_session_open", &strand![s, "", 0]),
            HANDLE,
            "a session is no model"
        );
    }),
    ("apl_session_eval", |w| {
        let (_, s) = model(w);
        let (ids, reference) = reference();
        let all = ids.len() * VOCABULARY;
        let made = call(
            w,
            "apl_session_eval",
            &strand![s, &ids, ids.len(), all, all],
        );
        assert_eq!(made[0].number(), OK, "{}", last_error(w));
        for (found, expected) in made[1].numbers().iter().zip(&reference) {
            assert!(
                (found - expected).abs() < 1e-3,
                "{found}, expected {expected}"
            );
        }
        assert_eq!(
            status(w, "apl_session_eval", &strand![s, &vec![-1], 1, 0, 0]),
            RANGE
        );
        assert_eq!(
            status(w, "apl_session_eval", &strand![s, &vec![1], 1, 3, 3]),
            LENGTH
        );
        let long = vec![1; 200];
        assert_eq!(
            status(w, "apl_session_eval", &strand![s, &long, 200, 0, 0]),
            STATE
        );
    }),
    ("apl_session_next", |w| {
        let (_, s) = model(w);
        assert_eq!(
            status(w, "apl_session_next", &strand![s, 0, 64, 64]),
            STATE,
            "nothing was fed"
        );
        assert_eq!(
            status(w, "apl_session_eval", &strand![s, &vec![1, 43], 2, 0, 0]),
            OK
        );
        let made = call(w, "apl_session_next", &strand![s, 0, 64, 64]);
        let (_, reference) = reference();
        let latest = &reference[VOCABULARY..2 * VOCABULARY];
        let best = (0..VOCABULARY)
            .max_by(|&a, &b| latest[a].total_cmp(&latest[b]))
            .unwrap();
        assert_eq!(made[1].number(), best as f64, "greedy");
        assert!(made[0].number() >= 0.0 && made[2].text().len() <= 64);
    }),
    ("apl_session_rewind", |w| {
        let (_, s) = model(w);
        let (ids, reference) = reference();
        assert_eq!(
            status(w, "apl_session_eval", &strand![s, &ids, ids.len(), 0, 0]),
            OK
        );
        assert_eq!(
            status(w, "apl_session_rewind", &strand![s, 3]),
            OK,
            "{}",
            last_error(w)
        );
        let none = Vec::<i32>::new();
        let made = call(
            w,
            "apl_session_eval",
            &strand![s, &none, 0, VOCABULARY, VOCABULARY],
        );
        assert!((made[1].numbers()[0] - reference[2 * VOCABULARY]).abs() < 1e-3);
        assert_eq!(status(w, "apl_session_rewind", &strand![s, 4]), RANGE);
    }),
    ("apl_session_info", |w| {
        let (_, s) = model(w);
        assert_eq!(
            status(w, "apl_session_eval", &strand![s, &vec![1, 43], 2, 0, 0]),
            OK
        );
        let info: Value =
            serde_json::from_str(&filled(w, "apl_session_info", &strand![s])).unwrap();
        assert_eq!(info["position"], 2);
    }),
    ("apl_session_cancel", |w| {
        let (_, s) = model(w);
        assert_eq!(
            status(w, "apl_session_cancel", &strand![s]),
            OK,
            "nothing to cancel"
        );
        assert_eq!(status(w, "apl_session_cancel", &strand![-3]), HANDLE);
    }),
    ("apl_session_close", |w| {
        let (m, s) = model(w);
        assert_eq!(status(w, "apl_session_close", &strand![s]), OK);
        assert_eq!(status(w, "apl_session_close", &strand![s]), HANDLE);
        assert_eq!(status(w, "apl_model_close", &strand![m]), OK);
    }),
];

/// Of the tiny model that the tests open.
const VOCABULARY: usize = 64;

fn tiny(file: &str) -> std::path::PathBuf {
    crate::root().join("tests/data/models/llama3").join(file)
}

/// The tiny model in float32, and a greedy session.
fn model(w: &Workspace) -> (f64, f64) {
    let path = tiny("");
    let made = call(
        w,
        "apl_model_open",
        &strand![path.to_str().unwrap(), r#"{"bits":32}"#, 0],
    );
    assert_eq!(made[0].number(), OK, "{}", last_error(w));
    let m = made[1].number();
    let session = call(
        w,
        "apl_session_open",
        &strand![m, r#"{"temperature":0,"context":64}"#, 0],
    );
    assert_eq!(session[0].number(), OK, "{}", last_error(w));
    (m, session[1].number())
}

/// Tokens, and the logits that an independent implementation gives after each of them.
fn reference() -> (Vec<i32>, Vec<f64>) {
    let text = std::fs::read_to_string(tiny("reference.json")).unwrap();
    let ids: Value = serde_json::from_str(&text).unwrap();
    let ids = ids["ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i.as_i64().unwrap() as i32)
        .collect();
    let logits = std::fs::read(tiny("reference_logits.f32")).unwrap();
    let logits = logits
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()).into())
        .collect();
    (ids, logits)
}

#[test]
fn every_function_through_its_declaration() {
    let _turn = turn();
    let mut workspace = workspace();
    let describe = "I4 %P|apl_ffi_describe >0UTF8[] I4";
    workspace
        .associate(".apl_ffi_describe", describe, &library())
        .unwrap();
    let described: Value =
        serde_json::from_str(&filled(&workspace, ".apl_ffi_describe", &[])).unwrap();
    for f in described["functions"].as_array().unwrap() {
        let name = format!(".{}", f["name"].as_str().unwrap());
        workspace
            .associate(&name, f["na"].as_str().unwrap(), &library())
            .unwrap();
    }
    let names: BTreeSet<String> = CASES.iter().map(|(name, _)| name.to_string()).collect();
    let functions: BTreeSet<String> = header().into_iter().map(|c| c.name).collect();
    assert_eq!(names, functions, "a case for each function of the header");
    for (name, case) in CASES {
        eprintln!("{name}");
        case(&workspace);
    }
    assert_eq!(status(&workspace, "apl_ffi_cleanup", &[]), OK);
}

/// Eight APL threads with one handle, each `&` call in its own system thread; a failure is told to the thread that had it.
#[test]
fn one_handle_from_eight_threads() {
    let _turn = turn();
    let w = workspace();
    let (h, weights) = handle(&w);
    let expected = product(&weights, COLS, &vectors());
    std::thread::scope(|s| {
        for t in 0..8 {
            let (w, expected) = (&w, &expected);
            s.spawn(move || {
                let apl = AplThread::new();
                let call =
                    |name: &str, items: &[Item]| w.call_in(&apl, name, items.to_vec()).unwrap();
                for _ in 0..50 {
                    let y = call("apl_matmul_f64_T", &strand![h, &vectors(), 18, 6, 6, 2]);
                    assert_eq!(y[0].number(), OK);
                    close(y[1].numbers(), expected);
                    // A length of its own for each thread, so that a sentence of another one would be seen.
                    let wrong = strand![h, &vec![0; 1000 + t], 1000 + t, 6, 6, 2];
                    assert_eq!(call("apl_matmul_f64_T", &wrong)[0].number(), LENGTH);
                    let said = call("apl_ffi_last_error_T", &strand![4096, 4096]);
                    let said = said[1].text();
                    assert!(said.contains(&format!("x_len is {},", 1000 + t)), "{said}");
                }
                let made = call(
                    "apl_weights_from_f64_T",
                    &strand![&vectors(), 18, 2, 9, "", 0],
                );
                assert_eq!(made[0].number(), OK);
                let own = made[1].number();
                let y = call("apl_matmul_f64_T", &strand![own, &vectors(), 18, 4, 4, 2]);
                assert_eq!((y[0].number(), y[1].numbers().len()), (OK, 4));
            });
        }
    });
    assert_eq!(status(&w, "apl_ffi_cleanup", &[]), OK);
}
