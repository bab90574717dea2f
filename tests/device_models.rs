//! Language models on a CUDA device, against the same models on the CPU: on the driver that is none, which runs the kernels on the
//! processor and fails when told to.
//!
//! The library looks for the driver by its name, so the cases run in a child whose `LD_LIBRARY_PATH` leads to that one.

use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use apl_ffi::error::{Error, Status};
use apl_ffi::model::{Canceller, Logits, Model, ModelOptions, Session, SessionOptions};
use apl_ffi::runtime::{Config, Runtime};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn models_on_the_driver_that_is_none() {
    let folder = root().join("target/fake-cuda-models");
    let built = Command::new(root().join("tests/kernels/fake_cuda.sh"))
        .arg(&folder)
        .status();
    if !built.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no C++ compiler made the driver that is none");
        return;
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--test-threads=1"])
        .env("LD_LIBRARY_PATH", &folder)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{text}");
    assert!(
        text.contains("passed") && !text.contains(" 0 passed"),
        "{text}"
    );
}

/// The switches of the driver that is none.
struct Driver(libloading::Library);

impl Driver {
    fn new() -> Driver {
        // SAFETY: the driver that is none; loading it again runs nothing.
        Driver(
            unsafe { libloading::Library::new("libcuda.so.1") }.expect("the driver that is none"),
        )
    }

    fn set(&self, name: &str, value: i64) {
        let name = std::ffi::CString::new(name).unwrap();
        // SAFETY: its type as the driver that is none has it.
        unsafe {
            let set: libloading::Symbol<'_, unsafe extern "C" fn(*const i8, i64)> =
                self.0.get(b"fake_cuda_set").unwrap();
            set(name.as_ptr().cast(), value);
        }
    }

    /// The call of `canceller` at the n-th kernel from now on.
    fn cancel_at(&self, nth: i64, canceller: &Canceller) {
        unsafe extern "C" fn cancel(canceller: *mut c_void) {
            // SAFETY: what was boxed below; the driver calls once.
            unsafe { Box::from_raw(canceller.cast::<Canceller>()) }.cancel();
        }
        let with = Box::into_raw(Box::new(canceller.clone()));
        type At = unsafe extern "C" fn(i64, unsafe extern "C" fn(*mut c_void), *mut c_void);
        // SAFETY: its type as the driver that is none has it.
        unsafe {
            let at: libloading::Symbol<'_, At> = self.0.get(b"fake_cuda_at").unwrap();
            at(nth, cancel, with.cast());
        }
    }

    fn get(&self, name: &str) -> i64 {
        let name = std::ffi::CString::new(name).unwrap();
        // SAFETY: as above.
        unsafe {
            let get: libloading::Symbol<'_, unsafe extern "C" fn(*const i8) -> i64> =
                self.0.get(b"fake_cuda_get").unwrap();
            get(name.as_ptr().cast())
        }
    }
}

fn runtime(config: &str) -> Runtime {
    Runtime::new(Config::from_json(config).unwrap()).unwrap()
}

fn cpu() -> Runtime {
    runtime(r#"{"backend": "cpu", "threads": 1}"#)
}

fn cuda() -> Runtime {
    runtime(r#"{"backend": "cuda", "threads": 1}"#)
}

fn family(name: &str) -> PathBuf {
    root().join("tests/data/models").join(name)
}

fn open(rt: &Runtime, path: &Path, options: &str) -> Arc<Model> {
    Arc::new(Model::open(rt, path, &ModelOptions::from_json(options).unwrap()).unwrap())
}

fn session(rt: &Runtime, model: &Arc<Model>, options: &str) -> Session {
    let options = SessionOptions::from_json(options).unwrap();
    Session::new(rt, model.clone(), &options).unwrap()
}

fn ids(model: &Model, count: usize) -> Vec<u32> {
    let vocabulary = model.architecture().vocabulary;
    (0..count)
        .map(|i| ((i * i * 7 + i * 13 + 5) % vocabulary) as u32)
        .collect()
}

fn all_logits(rt: &Runtime, s: &mut Session, ids: &[u32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; ids.len() * s.model().architecture().vocabulary];
    s.eval(rt, ids, Logits::All(&mut out)).unwrap();
    out
}

fn last_logits(rt: &Runtime, s: &mut Session, ids: &[u32]) -> Result<Vec<f32>, Error> {
    let mut out = vec![f32::NAN; s.model().architecture().vocabulary];
    s.eval(rt, ids, Logits::Last(&mut out))?;
    Ok(out)
}

/// The greatest difference, relative to the greatest logit.
fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let top = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    let each = found.iter().zip(expected);
    // Not a number is the worst.
    let worst = each.map(|(f, e)| (f - e).abs());
    worst.fold(0.0, |m: f32, v| if v > m || v.is_nan() { v } else { m }) / top
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

#[test]
#[ignore = "runs in the child"]
fn every_family_gives_the_logits_of_the_cpu() {
    let (cpu, cuda) = (cpu(), cuda());
    let (mut seen, mut turn) = (0f32, 0);
    for name in FAMILIES {
        let files = [family(name), family(&format!("{name}.gguf"))];
        for path in files.iter().filter(|p| p.exists()) {
            // Every option for every family would take minutes: one for each, and another in turn.
            let wide = r#"{"kv": "f32"}"#;
            let others = [
                (r#"{"bits": 8}"#, "", 2e-3),
                (r#"{"bits": 2, "group": 16}"#, wide, 2e-5),
                (r#"{"bits": 4, "activations": "int8"}"#, wide, 3e-2),
                (r#"{"bits": 1}"#, wide, 2e-5),
                (r#"{"bits": 1, "activations": "sign"}"#, wide, 3e-2),
            ];
            let first = (r#"{"bits": 4, "symmetric": false}"#, wide, 2e-5);
            let other = others[turn % others.len()];
            turn += 1;
            for (options, kv, tolerance) in [first, other] {
                let what = format!("{} {options} {kv}", path.display());
                let here = open(&cpu, path, options);
                let there = open(&cuda, path, options);
                assert_eq!(there.info()["backend"], "cuda", "{what}");
                let ids = ids(&here, 24);
                let expected = all_logits(&cpu, &mut session(&cpu, &here, kv), &ids);
                let mut s = session(&cuda, &there, kv);
                assert_eq!(s.info()["backend"], "cuda");
                let found = all_logits(&cuda, &mut s, &ids);
                let e = worst(&found, &expected);
                assert!(e < tolerance, "{what}: {e}");
                if tolerance < 1e-4 {
                    seen = seen.max(e);
                }

                // One by one: the captured step. The dynamic embedding depends on what is fed together.
                let mut one = session(&cpu, &here, kv);
                let mut s = session(&cuda, &there, kv);
                for (i, id) in ids.iter().enumerate() {
                    let expected = last_logits(&cpu, &mut one, &[*id]).unwrap();
                    let found = last_logits(&cuda, &mut s, &[*id]).unwrap();
                    let e = worst(&found, &expected);
                    assert!(e < tolerance, "{what}, token {i}: {e}");
                }
            }
        }
    }
    println!("the worst of float32: {seen:e}");
}

fn demo() -> PathBuf {
    root().join("models/demo/stories.json")
}

/// Text and ids of up to `most` tokens after a beginning.
fn told(rt: &Runtime, s: &mut Session, most: usize) -> (String, Vec<u32>) {
    let mut text = String::new();
    for _ in 0..most {
        let step = s.next(rt, 1000).unwrap();
        text.push_str(step.piece);
        if step.end {
            break;
        }
    }
    (text, s.tokens().to_vec())
}

#[test]
#[ignore = "runs in the child"]
fn the_demonstration_tells_a_story() {
    let (cpu, cuda) = (cpu(), cuda());
    let (here, there) = (open(&cpu, &demo(), ""), open(&cuda, &demo(), ""));
    let driver = Driver::new();
    let prompt = here
        .tokenizer()
        .unwrap()
        .encode("Once upon a time", true)
        .unwrap();
    let mut s = session(&cuda, &there, r#"{"temperature": 0}"#);
    s.eval(&cuda, &prompt, Logits::None).unwrap();
    let (first, _) = told(&cuda, &mut s, 3);
    let before = (driver.get("ALLOCATIONS"), driver.get("GRAPHS"));
    let (rest, tokens) = told(&cuda, &mut s, 200);
    let text = first + &rest;
    assert_eq!(
        before,
        (driver.get("ALLOCATIONS"), driver.get("GRAPHS")),
        "a step allocates nothing and captures nothing"
    );
    assert!(text.len() > 200, "{text}");

    // Each of its tokens is one that the CPU finds as likely as any, but for rounding.
    let vocabulary = here.architecture().vocabulary;
    let logits = all_logits(&cpu, &mut session(&cpu, &here, ""), &tokens);
    for (i, row) in logits.chunks(vocabulary).enumerate().skip(prompt.len() - 1) {
        let Some(&next) = tokens.get(i + 1) else {
            break;
        };
        let top = row.iter().fold(f32::MIN, |m, v| m.max(*v));
        assert!(
            top - row[next as usize] < 2e-3 * top.abs(),
            "token {i} of {text}"
        );
    }

    // And with the logits brought back: the same story, since a greedy sampler sees the same.
    let mut s = session(&cuda, &there, r#"{"temperature": 0}"#);
    s.eval(&cuda, &prompt, Logits::None).unwrap();
    let mut own = vec![0.0; vocabulary];
    for &expected in &tokens[prompt.len()..] {
        s.eval(&cuda, &[], Logits::Last(&mut own)).unwrap();
        let best = (0..vocabulary).max_by(|&a, &b| own[a].total_cmp(&own[b]).then(b.cmp(&a)));
        assert_eq!(best, Some(expected as usize));
        assert_eq!(s.next(&cuda, 100).unwrap().id, Some(expected));
    }

    // Sampled, by a seed.
    let sampled = || {
        let mut s = session(&cuda, &there, r#"{"seed": 7}"#);
        s.eval(&cuda, &prompt, Logits::None).unwrap();
        told(&cuda, &mut s, 20).1
    };
    assert_eq!(sampled(), sampled());
}

#[test]
#[ignore = "runs in the child"]
fn a_long_prompt_goes_in_blocks_and_windows_forget() {
    let (cpu, cuda) = (cpu(), cuda());
    for name in ["mistral", "gemma2"] {
        let options = r#"{"bits": 8}"#;
        let (here, there) = (
            open(&cpu, &family(name), options),
            open(&cuda, &family(name), options),
        );
        let kv = r#"{"kv": "f32"}"#;
        let ids = ids(&here, here.context());
        let (mut a, mut b) = (session(&cpu, &here, kv), session(&cuda, &there, kv));
        assert_eq!(a.cache_bytes() > 0, b.cache_bytes() > 0);
        let expected = all_logits(&cpu, &mut a, &ids);
        let found = all_logits(&cuda, &mut b, &ids);
        assert!(worst(&found, &expected) < 2e-5, "{name}");

        let (half, vocabulary) = (ids.len() / 2, here.architecture().vocabulary);
        match (a.rewind(&cpu, half), b.rewind(&cuda, half)) {
            (Ok(()), Ok(())) => {
                let again = all_logits(&cuda, &mut b, &ids[half..]);
                let e = worst(&again, &expected[half * vocabulary..]);
                assert!(e < 2e-5, "{name}: {e}");
            }
            (Err(a), Err(b)) => assert_eq!(a.to_string(), b.to_string()),
            (a, b) => panic!("{name}: {a:?}, {b:?}"),
        }
        b.rewind(&cuda, 0).unwrap();
        assert_eq!(b.next(&cuda, 9).unwrap_err().status(), Status::State);
        assert_eq!(
            all_logits(&cuda, &mut b, &ids),
            found,
            "{name}: the same bits again"
        );
    }
    // More tokens than pass together.
    let (here, there) = (open(&cpu, &demo(), ""), open(&cuda, &demo(), ""));
    let ids = ids(&here, 300.min(here.context()));
    let expected = last_logits(&cpu, &mut session(&cpu, &here, ""), &ids).unwrap();
    let mut s = session(&cuda, &there, "");
    let found = last_logits(&cuda, &mut s, &ids).unwrap();
    let e = worst(&found, &expected);
    assert!(e < 5e-2, "{e}");
}

#[test]
#[ignore = "runs in the child"]
fn sessions_do_not_see_each_other() {
    let cuda = cuda();
    let model = open(&cuda, &demo(), "");
    let run = |start: u32| {
        let mut s = session(&cuda, &model, r#"{"temperature": 0}"#);
        s.eval(&cuda, &[1, start, 30], Logits::None).unwrap();
        told(&cuda, &mut s, 5).1
    };
    let alone: Vec<_> = (0..3).map(|i| run(20 + i)).collect();
    let together: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|i| scope.spawn(move || run(20 + i))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
}

#[test]
#[ignore = "runs in the child"]
fn what_fails_on_the_device_is_an_error_and_no_number() {
    let driver = Driver::new();
    let cpu = cpu();
    let here = open(&cpu, &family("qwen3"), r#"{"bits": 8}"#);
    let ids = ids(&here, 30);
    let kv = r#"{"kv": "f32", "temperature": 0}"#;
    let expected = last_logits(&cpu, &mut session(&cpu, &here, kv), &ids).unwrap();
    // A launch and a copy that are refused, here and there in a prompt and in steps: an error, and then all goes on.
    let cuda = cuda();
    let there = open(&cuda, &family("qwen3"), r#"{"bits": 8}"#);
    let mut failures = 0;
    for setting in ["FAIL_LAUNCH", "FAIL_COPY"] {
        for nth in [1, 2, 3, 5, 8, 13, 21, 40] {
            let mut s = session(&cuda, &there, kv);
            driver.set(setting, nth);
            let mut at = 0;
            for piece in [20, 1, 1, 8] {
                let end = at + piece;
                if let Err(e) = last_logits(&cuda, &mut s, &ids[at..end]) {
                    failures += 1;
                    assert_eq!(e.status(), Status::Backend, "{setting} {nth}: {e}");
                    assert_eq!(s.position(), at, "nothing was fed");
                    assert_eq!(s.next(&cuda, 9).unwrap_err().status(), Status::State);
                    let found = last_logits(&cuda, &mut s, &ids[at..end]).unwrap();
                    assert!(end < 30 || worst(&found, &expected) < 2e-5);
                }
                at = end;
            }
            driver.set(setting, 0);
            s.rewind(&cuda, 29).unwrap();
            let found = last_logits(&cuda, &mut s, &ids[29..]).unwrap();
            assert!(worst(&found, &expected) < 2e-5, "{setting} {nth}");
        }
    }
    assert!(failures > 10, "{failures}");
    drop((there, cuda));

    // The device is lost: every call fails, none gives numbers.
    for nth in [1, 7, 60, 200] {
        let cuda = self::cuda();
        let there = open(&cuda, &family("qwen3"), r#"{"bits": 8}"#);
        let mut s = session(&cuda, &there, kv);
        driver.set("LOSE", nth);
        let mut lost = false;
        for at in 0..30 {
            match last_logits(&cuda, &mut s, &ids[at..at + 1]) {
                Ok(_) => assert!(!lost),
                Err(e) => {
                    lost = true;
                    assert_eq!(e.status(), Status::Backend, "{e}");
                    break;
                }
            }
        }
        assert!(lost, "{nth}");
        let e = last_logits(&cuda, &mut s, &ids[..1]).unwrap_err();
        assert_eq!(e.status(), Status::Backend);
        driver.set("LOSE", 0);
    }
    assert_eq!(driver.get("ALLOCATED"), 0);
}

#[test]
#[ignore = "runs in the child"]
fn without_room_on_the_device_the_cpu_runs_the_model_unless_cuda_is_demanded() {
    let driver = Driver::new();
    let whole = driver.get("MEMORY");
    let cpu = cpu();
    let path = family("llama3");
    let options = r#"{"bits": 8}"#;
    let here = open(&cpu, &path, options);
    let ids = ids(&here, 25);
    let expected = all_logits(&cpu, &mut session(&cpu, &here, ""), &ids);
    let mut backends = std::collections::BTreeSet::new();
    let (auto, demanded) = (
        runtime(r#"{"backend": "auto", "threads": 1}"#),
        self::cuda(),
    );
    let with_room = |room: i64| {
        driver.set("MEMORY", room + driver.get("ALLOCATED"));
        open(&auto, &path, options)
    };
    // The least room in which all of it is on the device; just below, some of it is.
    let (mut too_little, mut enough) = (0, 1 << 28);
    while enough - too_little > 1 {
        let room = (too_little + enough) / 2;
        match with_room(room).info()["backend"] == "cuda" {
            true => enough = room,
            false => too_little = room,
        }
    }
    for room in [0, too_little / 2, too_little, enough] {
        let model = with_room(room);
        let mut s = session(&auto, &model, "");
        let info = s.info();
        let backend = info["backend"].as_str().unwrap().to_owned();
        assert_eq!(model.info()["backend"], backend.as_str());
        let found = all_logits(&auto, &mut s, &ids);
        let e = worst(&found, &expected);
        assert!(e < 2e-3, "{room}, {backend}: {e}");
        // One by one, and back.
        s.rewind(&auto, 10).unwrap();
        for (i, id) in ids.iter().enumerate().skip(10) {
            let found = last_logits(&auto, &mut s, &[*id]).unwrap();
            let vocabulary = found.len();
            let e = worst(&found, &expected[i * vocabulary..][..vocabulary]);
            assert!(e < 4e-3, "{room}, {backend}, token {i}: {e}");
        }
        backends.insert(backend);
        drop((s, model));
    }
    driver.set("MEMORY", whole);
    assert_eq!(
        backends.iter().map(String::as_str).collect::<Vec<_>>(),
        ["cpu", "cuda", "cuda+cpu"]
    );

    let mut outcomes = [0, 0];
    for room in [2_000, 20_000, 60_000, 120_000, 400_000, 800_000, 3_000_000] {
        driver.set("MEMORY", room + driver.get("ALLOCATED"));
        let options = ModelOptions::from_json(options).unwrap();
        let opened = Model::open(&demanded, &path, &options).map(Arc::new);
        let opened = opened
            .and_then(|m| Session::new(&demanded, m, &SessionOptions::from_json("").unwrap()));
        match opened {
            Ok(mut s) => {
                outcomes[0] += 1;
                assert_eq!(s.info()["backend"], "cuda");
                assert!(worst(&all_logits(&demanded, &mut s, &ids), &expected) < 2e-3);
            }
            Err(e) => {
                outcomes[1] += 1;
                assert_eq!(e.status(), Status::Memory, "{room}: {e}");
            }
        }
        driver.set("MEMORY", whole);
    }
    assert!(outcomes[0] > 0 && outcomes[1] > 0, "{outcomes:?}");
}

#[test]
#[ignore = "runs in the child"]
fn float_models_stay_on_the_cpu_and_say_so() {
    let cuda = cuda();
    let model = open(&cuda, &family("llama3"), r#"{"bits": 32}"#);
    let info = model.info();
    assert_eq!(info["backend"], "cpu");
    assert_eq!(
        info["backend_reason"],
        "the CPU multiplies weights of 16 and 32 bits"
    );
    let mut s = session(&cuda, &model, "");
    assert_eq!(s.info()["backend"], "cpu");
    assert!(
        all_logits(&cuda, &mut s, &[1, 2, 3])
            .iter()
            .all(|v| v.is_finite())
    );
}

#[test]
#[ignore = "runs in the child"]
fn a_call_is_cancelled_between_blocks() {
    let cuda = cuda();
    let model = open(&cuda, &demo(), "");
    let mut s = session(&cuda, &model, "");
    let ids = ids(&model, 400.min(model.context()));
    let canceller = s.canceller();
    let (done, stop) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        while stop.try_recv().is_err() {
            canceller.cancel();
            std::thread::yield_now();
        }
    });
    let e = last_logits(&cuda, &mut s, &ids).unwrap_err();
    assert_eq!((e.status(), s.position()), (Status::State, 0), "{e}");
    done.send(()).unwrap();
    thread.join().unwrap();
    last_logits(&cuda, &mut s, &ids[..5]).unwrap();
}

/// With these devices of the driver's three.
fn several(devices: &str) -> Runtime {
    runtime(&format!(
        r#"{{"backend": "cuda", "threads": 1, "devices": {devices}}}"#
    ))
}

/// The ordinals of a model's devices, and how many layers each has.
fn layers_of(model: &Model) -> Vec<(u64, u64)> {
    let info = model.info();
    let devices = info["devices"].as_array().unwrap().iter();
    let numbers = devices.map(|d| {
        (
            d["ordinal"].as_u64().unwrap(),
            d["layers"].as_u64().unwrap(),
        )
    });
    numbers.collect()
}

#[test]
#[ignore = "runs in the child"]
fn layers_on_several_devices_give_the_logits_of_the_cpu() {
    let driver = Driver::new();
    driver.set("DEVICES", 3);
    let cpu = cpu();
    let kv = r#"{"kv": "f32"}"#;
    let mut tied = std::collections::BTreeSet::new();
    for devices in ["[0, 1]", "[2, 0, 1]"] {
        let cuda = several(devices);
        for name in ["gemma2", "llama-dynamic", "mistral", "qwen2", "qwen3"] {
            for (options, tolerance) in [
                (r#"{"bits": 4, "symmetric": false}"#, 2e-5),
                (r#"{"bits": 4, "activations": "int8"}"#, 3e-2),
            ] {
                let what = format!("{name} {devices} {options}");
                let here = open(&cpu, &family(name), options);
                let there = open(&cuda, &family(name), options);
                tied.insert(there.architecture().tied);
                let placed = layers_of(&there);
                assert_eq!(there.info()["backend"], "cuda", "{what}");
                assert!(placed.len() > 1, "{what}: {placed:?}");
                let layers: u64 = placed.iter().map(|(_, layers)| layers).sum();
                assert_eq!(layers, there.architecture().layers as u64, "{what}");
                let ids = ids(&here, 24);
                let expected = all_logits(&cpu, &mut session(&cpu, &here, kv), &ids);
                let found = all_logits(&cuda, &mut session(&cuda, &there, kv), &ids);
                let e = worst(&found, &expected);
                assert!(e < tolerance, "{what}: {e}");
                // A block, then the captured steps.
                let (mut a, mut b) = (session(&cpu, &here, kv), session(&cuda, &there, kv));
                for part in [&ids[..9], &ids[9..10], &ids[10..11], &ids[11..20]] {
                    let expected = last_logits(&cpu, &mut a, part).unwrap();
                    let found = last_logits(&cuda, &mut b, part).unwrap();
                    let e = worst(&found, &expected);
                    assert!(e < tolerance, "{what}, {} tokens: {e}", part.len());
                }
            }
        }
    }
    assert_eq!(
        tied.len(),
        2,
        "outputs with and without a matrix of their own"
    );

    // A greedy story is the one that a single device tells, but for nothing: the kernels are the same.
    let prompt = [1, 20, 30, 7];
    let tell = |rt: &Runtime, options: &str| {
        let model = open(rt, &demo(), "");
        let mut s = session(rt, &model, options);
        s.eval(rt, &prompt, Logits::None).unwrap();
        told(rt, &mut s, 40).1
    };
    let greedy = r#"{"temperature": 0}"#;
    let one = cuda();
    for devices in ["[0, 1]", "[0, 1, 2]"] {
        let cuda = several(devices);
        assert_eq!(tell(&cuda, greedy), tell(&one, greedy), "{devices}");
        // Eight conversations at once.
        let alone = tell(&cuda, r#"{"seed": 3}"#);
        let model = open(&cuda, &demo(), "");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut s = session(&cuda, &model, r#"{"seed": 3}"#);
                    s.eval(&cuda, &prompt, Logits::None).unwrap();
                    assert_eq!(told(&cuda, &mut s, 5).1, alone[..prompt.len() + 5]);
                });
            }
        });
    }
    drop(one);
    driver.set("DEVICES", 1);
    assert_eq!((driver.get("ALLOCATED"), driver.get("CONTEXTS")), (0, 0));
}

#[test]
#[ignore = "runs in the child"]
fn each_of_several_devices_has_what_it_has_room_for() {
    let driver = Driver::new();
    driver.set("DEVICES", 2);
    let cpu = cpu();
    let (path, options) = (family("llama3"), r#"{"bits": 8}"#);
    let here = open(&cpu, &path, options);
    let ids = ids(&here, 25);
    let expected = all_logits(&cpu, &mut session(&cpu, &here, ""), &ids);
    let whole = driver.get("MEMORY");
    let auto = runtime(r#"{"backend": "auto", "threads": 1, "devices": [0, 1]}"#);
    let mut backends = std::collections::BTreeSet::new();
    // What is held back for the driver, and more and more beside.
    for (first, second) in [
        (0, 0),
        (300_000, 0),
        (0, 300_000),
        (400_000, 400_000),
        (700_000, 700_000),
        (8 << 20, 8 << 20),
        (8 << 20, 40 << 20),
    ] {
        driver.set("MEMORY", (64 << 20) + first);
        driver.set("MEMORY_1", (64 << 20) + second);
        let model = open(&auto, &path, options);
        let what = format!(
            "{first} {second} {} {:?}",
            model.info()["backend"],
            layers_of(&model)
        );
        let mut s = session(&auto, &model, "");
        let e = worst(&all_logits(&auto, &mut s, &ids), &expected);
        assert!(e < 2e-3, "{what}: {e}");
        s.rewind(&auto, 10).unwrap();
        for (i, id) in ids.iter().enumerate().skip(10) {
            let found = last_logits(&auto, &mut s, &[*id]).unwrap();
            let vocabulary = found.len();
            let e = worst(&found, &expected[i * vocabulary..][..vocabulary]);
            assert!(e < 4e-3, "{what}, token {i}: {e}");
        }
        println!("{what}");
        backends.insert(model.info()["backend"].as_str().unwrap().to_owned());
    }
    // Less and less of a model of more layers: on both devices and the CPU at some point.
    let prompt = [1, 20, 30, 7, 9];
    let here = open(&cpu, &demo(), "");
    let expected = last_logits(&cpu, &mut session(&cpu, &here, ""), &prompt).unwrap();
    let mut on_all = false;
    for room in (8..=24).map(|i| i * (1 << 18)) {
        driver.set("MEMORY", (64 << 20) + room);
        driver.set("MEMORY_1", (64 << 20) + room);
        let model = open(&auto, &demo(), "");
        let placed = layers_of(&model);
        println!("{room} {} {placed:?}", model.info()["backend"]);
        on_all |= placed.len() == 2 && model.info()["backend"] == "cuda+cpu";
        let found = last_logits(&auto, &mut session(&auto, &model, ""), &prompt).unwrap();
        let e = worst(&found, &expected);
        assert!(e < 5e-2, "{room} {placed:?}: {e}");
    }
    assert!(on_all, "two devices and the CPU");
    driver.set("MEMORY", whole);
    driver.set("MEMORY_1", 0);
    let backends: Vec<_> = backends.into_iter().collect();
    assert_eq!(backends, ["cpu", "cuda", "cuda+cpu"]);
    drop(auto);
    driver.set("DEVICES", 1);
}

#[test]
#[ignore = "runs in the child"]
fn what_fails_on_the_second_device_is_an_error_and_no_number() {
    let driver = Driver::new();
    driver.set("DEVICES", 2);
    driver.set("ONLY", 1);
    let cpu = cpu();
    let (path, options) = (family("qwen3"), r#"{"bits": 8}"#);
    let here = open(&cpu, &path, options);
    let ids = ids(&here, 30);
    let kv = r#"{"kv": "f32", "temperature": 0}"#;
    let expected = last_logits(&cpu, &mut session(&cpu, &here, kv), &ids).unwrap();
    let cuda = several("[0, 1]");

    // Memory for weights, vectors and a session.
    let mut refused = 0;
    for nth in [1, 2, 5, 14, 20, 22, 24, 25, 26] {
        driver.set("FAIL_ALLOC", nth);
        let options = ModelOptions::from_json(options).unwrap();
        let opened = Model::open(&cuda, &path, &options).map(Arc::new);
        let opened =
            opened.and_then(|m| Session::new(&cuda, m, &SessionOptions::from_json(kv).unwrap()));
        match opened {
            Ok(mut s) => {
                assert!(worst(&last_logits(&cuda, &mut s, &ids).unwrap(), &expected) < 2e-5)
            }
            Err(e) => {
                refused += 1;
                assert_eq!(e.status(), Status::Memory, "{nth}: {e}");
            }
        }
        driver.set("FAIL_ALLOC", 0);
    }
    assert!(refused > 3, "{refused}");

    let there = open(&cuda, &path, options);
    let mut failures = 0;
    for setting in ["FAIL_LAUNCH", "FAIL_COPY"] {
        for nth in [1, 2, 3, 5, 8, 13, 21] {
            let mut s = session(&cuda, &there, kv);
            driver.set(setting, nth);
            let mut at = 0;
            for piece in [20, 1, 1, 8] {
                let end = at + piece;
                if let Err(e) = last_logits(&cuda, &mut s, &ids[at..end]) {
                    failures += 1;
                    assert_eq!(e.status(), Status::Backend, "{setting} {nth}: {e}");
                    assert_eq!(s.position(), at, "nothing was fed");
                    assert_eq!(s.next(&cuda, 9).unwrap_err().status(), Status::State);
                    last_logits(&cuda, &mut s, &ids[at..end]).unwrap();
                }
                at = end;
            }
            driver.set(setting, 0);
            s.rewind(&cuda, 29).unwrap();
            let found = last_logits(&cuda, &mut s, &ids[29..]).unwrap();
            assert!(worst(&found, &expected) < 2e-5, "{setting} {nth}");
        }
    }
    assert!(failures > 8, "{failures}");
    drop((there, cuda));

    for nth in [1, 7, 30] {
        let cuda = several("[0, 1]");
        let there = open(&cuda, &path, options);
        let mut s = session(&cuda, &there, kv);
        driver.set("LOSE", nth);
        let lost = (0..30).find_map(|at| last_logits(&cuda, &mut s, &ids[at..at + 1]).err());
        assert_eq!(lost.expect("lost").status(), Status::Backend);
        let e = last_logits(&cuda, &mut s, &ids[..1]).unwrap_err();
        assert_eq!(e.status(), Status::Backend);
        driver.set("LOSE", 0);
    }
    driver.set("ONLY", -1);
    driver.set("DEVICES", 1);
    assert_eq!(
        (driver.get("ALLOCATED"), driver.get("HOST_ALLOCATED")),
        (0, 0)
    );
}

#[test]
#[ignore = "runs in the child"]
fn a_block_is_cancelled_between_layers() {
    let driver = Driver::new();
    driver.set("DEVICES", 2);
    for devices in ["[0]", "[0, 1]"] {
        let cuda = several(devices);
        let model = open(&cuda, &demo(), "");
        let ids = ids(&model, 60);
        let launched = |work: &mut dyn FnMut(&mut Session)| {
            let mut s = session(&cuda, &model, "");
            let before = driver.get("LAUNCHES");
            work(&mut s);
            // What is under way is done when its streams go.
            drop(s);
            driver.get("LAUNCHES") - before
        };
        let all = launched(&mut |s| drop(last_logits(&cuda, s, &ids).unwrap()));
        let a_layer = all / model.architecture().layers as i64;
        let done = launched(&mut |s| {
            // In the first layer, or shortly behind.
            driver.cancel_at(a_layer, &s.canceller());
            let e = last_logits(&cuda, s, &ids).unwrap_err();
            assert_eq!((e.status(), s.position()), (Status::State, 0), "{e}");
        });
        assert!(
            (a_layer..4 * a_layer).contains(&done),
            "{devices}: {done} of {all}"
        );

        // And all goes on.
        let mut s = session(&cuda, &model, "");
        driver.cancel_at(2 * a_layer, &s.canceller());
        let mut own = vec![0.0; ids.len() * model.architecture().vocabulary];
        let e = s.eval(&cuda, &ids, Logits::All(&mut own)).unwrap_err();
        assert_eq!(e.status(), Status::State, "{e}");
        assert!(own.iter().all(|&v| v == 0.0), "nothing was written");
        let expected = last_logits(&cuda, &mut session(&cuda, &model, ""), &ids).unwrap();
        assert_eq!(last_logits(&cuda, &mut s, &ids).unwrap(), expected);
    }
    driver.set("DEVICES", 1);
    assert_eq!((driver.get("ALLOCATED"), driver.get("EVENTS")), (0, 0));
}
