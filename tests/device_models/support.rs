//! The driver that is none, and models and sessions on it and on the CPU.

use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use apl_ffi::error::{Error, Status};
use apl_ffi::model::{Canceller, Logits, Model, ModelOptions, Session, SessionOptions};
use apl_ffi::runtime::{Config, Runtime};

/// The switches of the driver that is none.
pub struct Driver(libloading::Library);

impl Driver {
    pub fn new() -> Driver {
        // SAFETY: the driver that is none; loading it again runs nothing.
        Driver(
            unsafe { libloading::Library::new("libcuda.so.1") }.expect("the driver that is none"),
        )
    }

    pub fn set(&self, name: &str, value: i64) {
        let name = std::ffi::CString::new(name).unwrap();
        // SAFETY: its type as the driver that is none has it.
        unsafe {
            let set: libloading::Symbol<'_, unsafe extern "C" fn(*const i8, i64)> =
                self.0.get(b"fake_cuda_set").unwrap();
            set(name.as_ptr().cast(), value);
        }
    }

    /// The call of `canceller` at the n-th kernel from now on.
    pub fn cancel_at(&self, nth: i64, canceller: &Canceller) {
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

    pub fn get(&self, name: &str) -> i64 {
        let name = std::ffi::CString::new(name).unwrap();
        // SAFETY: as above.
        unsafe {
            let get: libloading::Symbol<'_, unsafe extern "C" fn(*const i8) -> i64> =
                self.0.get(b"fake_cuda_get").unwrap();
            get(name.as_ptr().cast())
        }
    }
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn runtime(config: &str) -> Runtime {
    Runtime::new(Config::from_json(config).unwrap()).unwrap()
}

pub fn cpu() -> Runtime {
    runtime(r#"{"backend": "cpu", "threads": 1}"#)
}

pub fn cuda() -> Runtime {
    runtime(r#"{"backend": "cuda", "threads": 1}"#)
}

pub fn family(name: &str) -> PathBuf {
    root().join("tests/data/models").join(name)
}

pub fn demo() -> PathBuf {
    root().join("models/demo/stories.json")
}

/// A copy of a family's model, in a folder of this name, with the tensors whose names have these words times such powers of two.
pub fn scaled(family_name: &str, name: &str, factors: &[(&str, i32)]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(family(family_name).join(file), folder.join(file)).unwrap();
    }
    let mut bytes = std::fs::read(family(family_name).join("model.safetensors")).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..data]).unwrap();
    for (tensor, about) in header.as_object().unwrap() {
        let Some((_, power)) = factors.iter().find(|(word, _)| tensor.contains(word)) else {
            continue;
        };
        assert_eq!(about["dtype"], "BF16", "{tensor}");
        let offset = |i: usize| data + about["data_offsets"][i].as_u64().unwrap() as usize;
        for value in bytes[offset(0)..offset(1)].as_chunks_mut::<2>().0 {
            let wide = half::bf16::from_le_bytes(*value).to_f32() * 2f32.powi(*power);
            *value = half::bf16::from_f32(wide).to_le_bytes();
        }
    }
    std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
    folder
}

pub fn open(rt: &Runtime, path: &Path, options: &str) -> Arc<Model> {
    Arc::new(Model::open(rt, path, &ModelOptions::from_json(options).unwrap()).unwrap())
}

pub fn session(rt: &Runtime, model: &Arc<Model>, options: &str) -> Session {
    let options = SessionOptions::from_json(options).unwrap();
    Session::new(rt, model.clone(), &options).unwrap()
}

pub fn ids(model: &Model, count: usize) -> Vec<u32> {
    let vocabulary = model.architecture().vocabulary;
    (0..count)
        .map(|i| ((i * i * 7 + i * 13 + 5) % vocabulary) as u32)
        .collect()
}

pub fn all_logits(rt: &Runtime, s: &mut Session, ids: &[u32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; ids.len() * s.model().architecture().vocabulary];
    s.eval(rt, ids, Logits::All(&mut out)).unwrap();
    out
}

pub fn last_logits(rt: &Runtime, s: &mut Session, ids: &[u32]) -> Result<Vec<f32>, Error> {
    let mut out = vec![f32::NAN; s.model().architecture().vocabulary];
    s.eval(rt, ids, Logits::Last(&mut out))?;
    Ok(out)
}

/// The greatest difference, relative to the greatest logit.
pub fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let top = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    let each = found.iter().zip(expected);
    // Not a number is the worst.
    let worst = each.map(|(f, e)| (f - e).abs());
    worst.fold(0.0, |m: f32, v| if v > m || v.is_nan() { v } else { m }) / top
}

/// Text and ids of up to `most` tokens after a beginning.
pub fn told(rt: &Runtime, s: &mut Session, most: usize) -> (String, Vec<u32>) {
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

/// Tokens that are fed together: a block, two single ones, which are captured steps, and a block.
const PIECES: [usize; 4] = [20, 1, 1, 8];

/// With the n-th launch and then the n-th copy refused, for each of these n: where that is met, an error, nothing fed and no token; and
/// then all goes on, to the logits that are `expected` of the last of 30 `ids`. How many calls failed.
pub fn refused_now_and_then(
    driver: &Driver,
    rt: &Runtime,
    model: &Arc<Model>,
    options: &str,
    (ids, expected): (&[u32], &[f32]),
    which: &[i64],
) -> usize {
    let mut failures = 0;
    for setting in ["FAIL_LAUNCH", "FAIL_COPY"] {
        for &nth in which {
            let mut s = session(rt, model, options);
            driver.set(setting, nth);
            let (mut at, mut latest) = (0, None);
            for piece in PIECES {
                let end = at + piece;
                let fed = last_logits(rt, &mut s, &ids[at..end]);
                let found = fed.unwrap_or_else(|e| {
                    failures += 1;
                    assert_eq!(e.status(), Status::Backend, "{setting} {nth}: {e}");
                    assert_eq!(s.position(), at, "nothing was fed");
                    match &latest {
                        None => assert_eq!(s.next(rt, 9).unwrap_err().status(), Status::State),
                        Some(before) => assert_eq!(last_logits(rt, &mut s, &[]).unwrap(), *before),
                    }
                    let found = last_logits(rt, &mut s, &ids[at..end]).unwrap();
                    assert!(end < ids.len() || worst(&found, expected) < 2e-5);
                    found
                });
                (at, latest) = (end, Some(found));
            }
            driver.set(setting, 0);
            s.rewind(rt, at - 1).unwrap();
            let found = last_logits(rt, &mut s, &ids[at - 1..]).unwrap();
            assert!(worst(&found, expected) < 2e-5, "{setting} {nth}");
        }
    }
    failures
}

/// With the device lost at the n-th kernel: from some token on every call fails, and none gives numbers.
pub fn lost(
    driver: &Driver,
    rt: &Runtime,
    model: &Arc<Model>,
    options: &str,
    ids: &[u32],
    nth: i64,
) {
    let mut s = session(rt, model, options);
    driver.set("LOSE", nth);
    let lost = ids
        .iter()
        .find_map(|&id| last_logits(rt, &mut s, &[id]).err());
    let lost = lost.unwrap_or_else(|| panic!("{nth}: the device was not lost"));
    assert_eq!(lost.status(), Status::Backend, "{lost}");
    let e = last_logits(rt, &mut s, &ids[..1]).unwrap_err();
    assert_eq!(e.status(), Status::Backend, "{e}");
    driver.set("LOSE", 0);
}
