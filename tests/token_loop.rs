//! A warm token loop allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use apl_ffi::model::{Logits, Model, ModelOptions, Session, SessionOptions};
use apl_ffi::runtime::{Config, Runtime};

/// The system's allocator, counted.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is one of the system's allocator, with the arguments as they came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn a_warm_token_loop_allocates_nothing() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models");
    let rt = Runtime::new(Config::from_json(r#"{"threads": 1}"#).unwrap()).unwrap();
    for (name, text) in [
        ("mistral", r#"{"bits": 4, "activations": "int8"}"#),
        ("gemma2", r#"{"bits": 8, "activations": "int8"}"#),
        ("qwen3", r#"{"bits": 1, "activations": "int8"}"#),
        ("qwen2", r#"{"bits": 2, "group": 0, "activations": "int8"}"#),
        ("qwen2", r#"{"bits": 4, "group": 8, "activations": "int8"}"#),
    ] {
        let options = ModelOptions::from_json(text).unwrap();
        let model = Arc::new(Model::open(&rt, &data.join(name), &options).unwrap());
        let options = r#"{"repeat_penalty": 1.1, "kv": "f16", "seed": 5}"#;
        let options = SessionOptions::from_json(options).unwrap();
        let mut session = Session::new(&rt, model, &options).unwrap();
        session.eval(&rt, &[1, 9, 5], Logits::None).unwrap();
        for _ in 0..3 {
            session.next(&rt, 100).unwrap();
        }
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for _ in 0..40 {
            session.next(&rt, 100).unwrap();
        }
        let made = ALLOCATIONS.load(Ordering::Relaxed) - before;
        assert_eq!(made, 0, "{name} {text}");
    }
}
