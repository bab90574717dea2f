use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use super::*;
use crate::error::Status;
use crate::runtime::Config;
use crate::testing::{copy_of, skipped};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models")
}

fn shared() -> Option<PathBuf> {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/models");
    if !shared.is_dir() {
        skipped(format_args!("{} is not here", shared.display()));
        return None;
    }
    Some(shared)
}

fn runtime(config: &str) -> Runtime {
    Runtime::new(Config::from_json(config).unwrap()).unwrap()
}

fn floats(path: &Path) -> PathBuf {
    path.join("reference_logits.f32")
}

fn read_floats(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    bytes
        .as_chunks()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect()
}

fn open(rt: &Runtime, path: &Path, options: &str) -> Arc<Model> {
    Arc::new(Model::open(rt, path, &ModelOptions::from_json(options).unwrap()).unwrap())
}

fn session(rt: &Runtime, model: &Arc<Model>, options: &str) -> Session {
    Session::new(
        rt,
        model.clone(),
        &SessionOptions::from_json(options).unwrap(),
    )
    .unwrap()
}

/// The largest difference, relative to the spread of the logits.
fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let top = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    let each = found.iter().zip(expected);
    each.map(|(f, e)| (f - e).abs()).fold(0.0, f32::max) / top
}

const FAMILIES: [&str; 9] = [
    "gemma",
    "gemma2",
    "llama-dynamic",
    "llama-linear",
    "llama-yarn",
    "llama3",
    "mistral",
    "qwen2",
    "qwen3",
];

fn reference_ids(folder: &Path) -> Vec<u32> {
    let text = std::fs::read(folder.join("reference.json")).unwrap();
    let reference: Value = serde_json::from_slice(&text).unwrap();
    let ids = reference["ids"].as_array().unwrap();
    ids.iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

#[test]
fn every_family_gives_the_logits_of_transformers() {
    let rt = runtime(r#"{"threads": 2}"#);
    for name in FAMILIES {
        let folder = data().join(name);
        let expected = read_floats(&floats(&folder));
        let ids = reference_ids(&folder);
        let files = [folder.clone(), data().join(format!("{name}.gguf"))];
        for path in files.iter().filter(|p| p.exists()) {
            let model = open(&rt, path, r#"{"bits": 32}"#);
            let mut s = session(&rt, &model, "");
            let mut logits = vec![0.0; expected.len()];
            s.eval(&rt, &ids, Logits::All(&mut logits)).unwrap();
            let e = worst(&logits, &expected);
            assert!(e < 1e-5, "{}: {e}", path.display());

            // Token by token, which takes other paths of products and of the cache. With dynamic
            // scaling the frequencies depend on the length of what is fed together, so there only
            // the logits before it sets in are equal.
            let mut s = session(&rt, &model, "");
            let vocabulary = model.architecture().vocabulary;
            let same = if name == "llama-dynamic" {
                16
            } else {
                ids.len()
            };
            for (i, &id) in ids[..same].iter().enumerate() {
                let mut one = vec![0.0; vocabulary];
                s.eval(&rt, &[id], Logits::Last(&mut one)).unwrap();
                let together = &logits[i * vocabulary..][..vocabulary];
                if name != "llama-dynamic" {
                    assert_eq!(one, together, "{} at {i}", path.display());
                }
            }
        }
    }
}

#[test]
fn every_width_is_near_the_float_model() {
    let rt = runtime(r#"{"threads": 1}"#);
    for name in ["llama-linear", "qwen2", "gemma2"] {
        let folder = data().join(name);
        let (expected, ids) = (read_floats(&floats(&folder)), reference_ids(&folder));
        for (options, tolerance) in [
            (r#"{"bits": 8}"#, 0.15),
            (r#"{"bits": 8, "activations": "int8"}"#, 0.2),
            (r#"{"bits": 16}"#, 0.01),
            (r#"{"bits": 4, "group": 8}"#, 0.9),
        ] {
            let model = open(&rt, &folder, options);
            let mut s = session(&rt, &model, "");
            let mut logits = vec![0.0; expected.len()];
            s.eval(&rt, &ids, Logits::All(&mut logits)).unwrap();
            let e = worst(&logits, &expected);
            assert!(e < tolerance, "{name} {options}: {e}");
        }
    }
}

fn greedy(rt: &Runtime, s: &mut Session, room: usize) -> String {
    let mut text = String::new();
    loop {
        let step = s.next(rt, room).unwrap();
        if step.end {
            return text;
        }
        text.push_str(step.piece);
    }
}

#[test]
fn the_models_of_others() {
    let Some(shared) = shared() else { return };
    let rt = runtime(r#"{"threads": 2}"#);
    for (path, folder) in [
        ("stories260K/stories260K.gguf", "stories260K"),
        ("tinystories-656k", "tinystories-656k"),
    ] {
        let model = open(&rt, &shared.join(path), r#"{"bits": 32}"#);
        let expected = read_floats(&floats(&shared.join(folder)));
        let text =
            std::fs::read_to_string(shared.join(folder).join("reference_logits.txt")).unwrap();
        let (_, ids) = text.lines().next().unwrap().split_once("ids").unwrap();
        let ids = ids.split(|c: char| !c.is_ascii_digit());
        let ids: Vec<u32> = ids.filter_map(|w| w.parse().ok()).collect();
        let mut logits = vec![0.0; expected.len()];
        session(&rt, &model, "")
            .eval(&rt, &ids, Logits::All(&mut logits))
            .unwrap();
        let e = worst(&logits, &expected);
        assert!(e < 1e-5, "{path}: {e}");
    }
    let model = open(
        &rt,
        &shared.join("stories260K/stories260K.gguf"),
        r#"{"bits": 32}"#,
    );
    let expected =
        std::fs::read_to_string(shared.join("stories260K/reference_greedy.txt")).unwrap();
    for room in [3, 1000] {
        let mut s = session(&rt, &model, r#"{"temperature": 0, "context": 257}"#);
        s.eval(
            &rt,
            &[model.tokenizer().unwrap().bos().unwrap()],
            Logits::None,
        )
        .unwrap();
        let text = greedy(&rt, &mut s, room);
        assert!(
            expected.trim_end().starts_with(text.trim_end()),
            "{text}\n---\n{expected}"
        );
        assert!(
            room == 3 || text.len() + 8 > expected.trim_end().len(),
            "{text}"
        );
    }
}

#[test]
fn the_demonstration_tells_what_transformers_has_it_tell() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/stories");
    let rt = runtime(r#"{"threads": 2}"#);
    let model = open(&rt, &folder, r#"{"bits": 32}"#);
    let expected = std::fs::read_to_string(folder.join("reference_greedy.txt")).unwrap();
    let mut s = session(&rt, &model, r#"{"temperature": 0}"#);
    let prompt = "Once upon a time";
    let ids = model
        .tokenizer()
        .unwrap()
        .encode(prompt, model.tokenizer().unwrap().begins())
        .unwrap();
    s.eval(&rt, &ids, Logits::None).unwrap();
    let told = format!("{prompt}{}", greedy(&rt, &mut s, 1000));
    assert_eq!(told, expected.trim_end());
}

#[test]
fn rewinding_gives_the_same_again() {
    let rt = runtime(r#"{"threads": 1}"#);
    for name in ["mistral", "gemma2", "qwen3"] {
        let folder = data().join(name);
        let ids = reference_ids(&folder);
        let model = open(&rt, &folder, r#"{"bits": 8}"#);
        let vocabulary = model.architecture().vocabulary;
        let mut s = session(&rt, &model, "");
        let mut all = vec![0.0; ids.len() * vocabulary];
        s.eval(&rt, &ids, Logits::All(&mut all)).unwrap();
        let half = ids.len() / 2;
        s.rewind(&rt, half).unwrap();
        assert_eq!((s.position(), s.tokens()), (half, &ids[..half]));
        let mut rest = vec![0.0; (ids.len() - half) * vocabulary];
        s.eval(&rt, &ids[half..], Logits::All(&mut rest)).unwrap();
        assert_eq!(rest, all[half * vocabulary..], "{name}");
        s.rewind(&rt, 0).unwrap();
        assert_eq!(s.next(&rt, 9).unwrap_err().status(), Status::State);
        let mut again = vec![0.0; all.len()];
        s.eval(&rt, &ids, Logits::All(&mut again)).unwrap();
        assert_eq!(again, all, "{name}");
        let e = s.rewind(&rt, ids.len() + 1).unwrap_err();
        assert_eq!(e.status(), Status::Range);
    }
}

#[test]
fn text_that_is_held_back_goes_out_whatever_is_fed_meanwhile() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/stories");
    let rt = runtime(r#"{"threads": 1}"#);
    let model = open(&rt, &folder, "");
    let tokenizer = model.tokenizer().unwrap();
    let ids = tokenizer
        .encode("Once upon a time", tokenizer.begins())
        .unwrap();
    let mut s = session(&rt, &model, r#"{"temperature": 0}"#);
    s.eval(&rt, &ids, Logits::None).unwrap();
    let mut expected = Vec::new();
    for _ in 0..3 {
        let step = s.next(&rt, 0).unwrap();
        assert_eq!(step.piece, "");
        expected.extend(step.id);
    }
    // Fed by the caller, who already has its text.
    let name = tokenizer.encode("Tom", None).unwrap();
    s.eval(&rt, &name, Logits::None).unwrap();
    let step = s.next(&rt, 1000).unwrap();
    expected.extend(step.id);
    let (end, piece) = (step.end, step.piece.to_owned());
    assert!(!end);
    let before = tokenizer.decode(&ids).unwrap();
    let all = tokenizer.decode(&[&ids[..], &expected].concat()).unwrap();
    assert_eq!(piece, all[before.len()..]);
    // Rewinding discards it.
    s.next(&rt, 0).unwrap();
    s.rewind(&rt, ids.len()).unwrap();
    let step = s.next(&rt, 1000).unwrap();
    let first = tokenizer.decode(&[&ids[..], &expected[..1]].concat());
    assert_eq!(step.piece, &first.unwrap()[before.len()..]);
}

#[test]
fn a_text_begins_the_same_after_going_back() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/stories");
    let rt = runtime(r#"{"threads": 1}"#);
    let model = open(&rt, &folder, "");
    let bos = model.tokenizer().unwrap().bos().unwrap();
    let mut s = session(&rt, &model, r#"{"temperature": 0}"#);
    s.eval(&rt, &[bos], Logits::None).unwrap();
    let first = s.next(&rt, 1000).unwrap().piece.to_owned();
    assert!(!first.starts_with(' '), "{first:?}");
    s.rewind(&rt, 1).unwrap();
    assert_eq!(s.next(&rt, 1000).unwrap().piece, first);
    s.rewind(&rt, 0).unwrap();
    s.eval(&rt, &[bos], Logits::None).unwrap();
    assert_eq!(s.next(&rt, 1000).unwrap().piece, first);
}

#[test]
fn what_a_session_refuses() {
    let rt = runtime(r#"{"threads": 1}"#);
    let model = open(&rt, &data().join("mistral"), "");
    let mut s = session(&rt, &model, r#"{"context": 5}"#);
    let refuse = |s: &mut Session, ids: &[u32]| s.eval(&rt, ids, Logits::None).unwrap_err();
    let e = refuse(&mut s, &[1, 64]);
    assert_eq!(
        (e.status(), e.message()),
        (Status::Range, "ids[1] is 64, expected 0 to 63")
    );
    let e = refuse(&mut s, &[1; 6]);
    assert_eq!(
        e.message(),
        "6 tokens at position 0, expected at most 5: the context has 5"
    );
    assert_eq!((e.status(), s.position()), (Status::State, 0));
    s.eval(&rt, &[1; 5], Logits::None).unwrap();
    let step = s.next(&rt, 100).unwrap();
    assert!(step.end && step.piece.is_empty());
    let more = SessionOptions::from_json(r#"{"context": 129}"#).unwrap();
    let e = Session::new(&rt, model.clone(), &more).err().unwrap();
    assert_eq!(
        e.message(),
        "options has \"context\": 129, expected at most 128, that of the model"
    );
}

/// The test model with sliding windows, with a longer context.
fn long_windows(name: &str, window: usize) -> tempfile::TempDir {
    let folder = copy_of(data().join(name));
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["max_position_embeddings"] = 4096.into();
    config["sliding_window"] = window.into();
    std::fs::write(&path, config.to_string()).unwrap();
    folder
}

/// Cancels the call after this number of products.
struct After(usize, Canceller);

impl Observer for After {
    fn input(&mut self, _: &str, _: &[f32], _: usize) {
        match self.0 {
            0 => self.1.cancel(),
            _ => self.0 -= 1,
        }
    }
}

/// With many tokens, logits take as long as some layers do.
#[test]
fn a_call_is_cancelled_before_its_logits() {
    let rt = runtime(r#"{"threads": 1}"#);
    let model = open(&rt, &data().join("qwen3"), "");
    let mut s = session(&rt, &model, "");
    let mut logits = vec![7.0; 3 * model.architecture().vocabulary];
    let last = 7 * model.architecture().layers - 1;
    let mut after = After(last, s.canceller());
    let wanted = Logits::All(&mut logits);
    let e = s.eval_observed(&rt, &[1, 2, 3], wanted, Some(&mut after));
    assert_eq!(e.unwrap_err().status(), Status::State);
    assert_eq!((s.position(), after.0), (0, 0));
    assert!(logits.iter().all(|l| *l == 7.0));
}

#[test]
fn a_cancelled_call_leaves_what_a_window_sees() {
    let rt = runtime(r#"{"threads": 2}"#);
    for name in ["mistral", "gemma2"] {
        let folder = long_windows(name, 100);
        let model = open(&rt, folder.path(), "");
        let ids: Vec<u32> = (0..2000).map(|i| 1 + i * 7 % 63).collect();
        let vocabulary = model.architecture().vocabulary;
        let logits = |s: &mut Session, ids: &[u32]| {
            let mut out = vec![0.0; vocabulary];
            s.eval(&rt, ids, Logits::Last(&mut out)).unwrap();
            out
        };
        let mut whole = session(&rt, &model, "");
        let at_700 = logits(&mut whole, &ids[..700]);
        let at_701 = logits(&mut whole, &ids[700..701]);

        let mut s = session(&rt, &model, "");
        logits(&mut s, &ids[..700]);
        // In the fourth block of 256, when the first blocks have overwritten positions in the
        // window.
        let products = 7 * model.architecture().layers;
        let mut after = After(3 * products + 2, s.canceller());
        let e = s.eval_observed(&rt, &ids[700..], Logits::None, Some(&mut after));
        assert_eq!(e.unwrap_err().status(), Status::State);
        assert_eq!(s.position(), 700);
        assert_eq!(logits(&mut s, &[]), at_700, "{name}: the latest logits");
        assert_eq!(logits(&mut s, &ids[700..701]), at_701, "{name}");

        // Rewinding to a position that the window has overwritten takes as long as feeding did, and
        // can be cancelled.
        let at_end = logits(&mut s, &ids[701..]);
        let mut caught = 0;
        // More than twenty times only where a busy machine cancels too early or too late.
        for attempt in 0..400 {
            if attempt >= 20 && caught > 0 {
                break;
            }
            let delay = attempt % 40;
            let canceller = s.canceller();
            let cancelled = std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_micros(300 * delay));
                canceller.cancel();
            });
            let back = s.rewind(&rt, 700);
            cancelled.join().unwrap();
            match back {
                Ok(()) => logits(&mut s, &ids[700..]),
                Err(e) => {
                    caught += 1;
                    assert_eq!((e.status(), s.position()), (Status::State, 2000));
                    logits(&mut s, &[])
                }
            };
            assert_eq!(logits(&mut s, &[]), at_end, "{name}, after {delay}");
        }
        assert!(caught > 0);
        s.rewind(&rt, 700).unwrap();
        assert_eq!(logits(&mut s, &[]), at_700, "{name}");
        assert_eq!(logits(&mut s, &ids[700..701]), at_701, "{name}");
    }
}

/// A text that is cancelled and continued repeatedly equals one that is never cancelled: nothing of
/// a cancelled call remains, not even its random draws.
#[test]
fn a_text_under_fire() {
    let rt = runtime(r#"{"threads": 1}"#);
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo");
    let model = open(&rt, Path::new(demo), "");
    let begin = || {
        let mut s = session(
            &rt,
            &model,
            r#"{"temperature": 1.5, "top_k": 0, "seed": 3}"#,
        );
        let ids = model.tokenizer().unwrap().encode("Once", None).unwrap();
        s.eval(&rt, &ids, Logits::None).unwrap();
        s
    };
    let mut left = begin();
    let expected: Vec<_> = (0..60).map(|_| left.next(&rt, 64).unwrap().id).collect();

    // On a busy machine the other thread may miss all of one text.
    let mut cancelled = 0;
    for _ in 0..100 {
        let mut s = begin();
        let canceller = s.canceller();
        let (done, armed) = (AtomicBool::new(false), AtomicBool::new(false));
        let mut found = Vec::new();
        /// Ends the other thread, also if an assertion fails here.
        struct Done<'a>(&'a AtomicBool);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        std::thread::scope(|scope| {
            let _done = Done(&done);
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    if armed.load(Ordering::Relaxed) {
                        canceller.cancel();
                    }
                    std::thread::yield_now();
                }
            });
            while found.len() < expected.len() {
                // Only the first attempt at a token is under fire, so that a slow machine finishes
                // too. The thread may have looked just before it was disarmed.
                armed.store(true, Ordering::Relaxed);
                let mut step = s.next(&rt, 64).map(|step| step.id);
                armed.store(false, Ordering::Relaxed);
                while let Err(e) = step {
                    assert_eq!(e.status(), Status::State);
                    cancelled += 1;
                    step = s.next(&rt, 64).map(|step| step.id);
                }
                found.extend(step);
            }
        });
        assert_eq!(found, expected);
        if cancelled > 0 {
            return;
        }
    }
    panic!("no call was cancelled");
}

/// A model opens whatever sampling its authors advise; errors in the advice are reported to callers
/// who ask for it.
#[test]
fn advice_that_no_sampler_takes() {
    let rt = runtime("{}");
    let folder = tempfile::tempdir().unwrap();
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo");
    for entry in std::fs::read_dir(demo).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    for (advice, named) in [
        (r#"{"top_p": 2}"#, "\"top_p\": 2"),
        (r#"{"top_k": 50.5}"#, "\"top_k\": 50.5"),
    ] {
        std::fs::write(folder.path().join("generation_config.json"), advice).unwrap();
        let model = open(&rt, folder.path(), "");
        let e = model.sampling().unwrap_err();
        assert_eq!(e.status(), Status::Format);
        assert!(e.message().contains(named), "{e}");
        session(&rt, &model, "");
    }
}

/// A copy of a model whose frequencies depend on the length of the sequence beyond 16 positions, up
/// to `16 * factor`.
fn dynamic(name: &str, factor: usize) -> tempfile::TempDir {
    let folder = long_windows(name, 100);
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["max_position_embeddings"] = 16.into();
    config["rope_scaling"] = serde_json::json!({"rope_type": "dynamic", "factor": factor});
    std::fs::write(&path, config.to_string()).unwrap();
    folder
}

#[test]
fn frequencies_follow_the_length_of_a_call() {
    let rt = runtime(r#"{"threads": 2}"#);
    let folder = dynamic("llama-dynamic", 32);
    let model = open(&rt, folder.path(), r#"{"bits": 32}"#);
    let vocabulary = model.architecture().vocabulary;
    let ids: Vec<u32> = (0..300).map(|i| 1 + i * 7 % 63).collect();
    let all = |s: &mut Session, ids: &[u32]| {
        let mut out = vec![0.0; ids.len() * vocabulary];
        s.eval(&rt, ids, Logits::All(&mut out)).unwrap();
        out
    };
    let mut s = session(&rt, &model, "");
    let found = all(&mut s, &ids);
    // The same as the base for 300 positions without scaling, however the tokens were split into
    // blocks (emozilla's formula).
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let head_dim = model.architecture().head_dim as f64;
    let grown = 32.0 * 300.0 / 16.0 - 31.0;
    let theta = 100.0 * f64::powf(grown, head_dim / (head_dim - 2.0));
    config["rope_theta"] = theta.into();
    config["rope_scaling"] = Value::Null;
    config["max_position_embeddings"] = 512.into();
    std::fs::write(&path, config.to_string()).unwrap();
    let plain = open(&rt, folder.path(), r#"{"bits": 32}"#);
    let expected = all(&mut session(&rt, &plain, ""), &ids);
    let e = worst(&found, &expected);
    assert!(e < 1e-5, "{e}");
    // After rewinding, the keys, the logits and what follows are those of the call that fed the
    // tokens.
    let row = |position: usize| &found[position * vocabulary..][..vocabulary];
    for position in [250, 100, 7] {
        s.rewind(&rt, position).unwrap();
        let mut latest = vec![0.0; vocabulary];
        s.eval(&rt, &[], Logits::Last(&mut latest)).unwrap();
        assert_eq!(latest, row(position - 1), "{position}");
    }
    let again = all(&mut s, &ids[7..]);
    assert_eq!(again, found[7 * vocabulary..]);
}

/// Tokens are fed one by one and rewound to positions that the window has overwritten: each is
/// re-fed with the frequencies that it had.
#[test]
fn frequencies_that_a_window_forgot() {
    let rt = runtime(r#"{"threads": 2}"#);
    let folder = dynamic("mistral", 256);
    let model = open(&rt, folder.path(), r#"{"bits": 32}"#);
    let mut s = session(&rt, &model, "");
    let mut logits = vec![vec![0.0; model.architecture().vocabulary]; 1200];
    for (i, out) in logits.iter_mut().enumerate() {
        let id = 1 + i as u32 * 7 % 63;
        s.eval(&rt, &[id], Logits::Last(out)).unwrap();
    }
    for position in [900, 300] {
        s.rewind(&rt, position).unwrap();
        let mut latest = vec![0.0; logits[0].len()];
        s.eval(&rt, &[], Logits::Last(&mut latest)).unwrap();
        assert_eq!(latest, logits[position - 1], "{position}");
    }
}

/// A norm with a value that is not finite is refused, as a matrix is.
#[test]
fn a_norm_that_is_not_finite() {
    let rt = runtime("{}");
    let folder = long_windows("llama3", 100);
    let path = folder.path().join("model.safetensors");
    let mut file = std::fs::read(&path).unwrap();
    let data = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..data]).unwrap();
    let norm = &header["model.norm.weight"];
    assert_eq!(norm["dtype"], "BF16");
    let at = data + norm["data_offsets"][0].as_u64().unwrap() as usize;
    file[at..at + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    std::fs::write(&path, file).unwrap();
    let e = Model::open(&rt, folder.path(), &ModelOptions::default());
    let e = e.map(drop).unwrap_err();
    assert_eq!(e.status(), Status::Range);
    assert!(
        e.message().contains("model.norm.weight: element 0 is NaN"),
        "{e}"
    );
}
