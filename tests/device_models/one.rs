//! On one device.

use apl_ffi::error::Status;
use apl_ffi::model::{Logits, Model, ModelOptions, Session, SessionOptions};
use std::sync::Arc;

use crate::support::*;

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
#[ignore = "models_on_the_driver_that_is_none runs it, in a process that finds that driver"]
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

/// A decode step is bound by its launches where a model is small: what can be done together is.
#[test]
#[ignore = "models_on_the_driver_that_is_none runs it, in a process that finds that driver"]
fn the_launches_of_a_step() {
    let driver = Driver::new();
    let cuda = cuda();
    // (q k v), heads, attention in parts, and these together, o, norm, (gate up), gated, down, norm: what is quantised is so in passing,
    // if a head has whole slices of 32 elements.
    let int8 = r#"{"bits": 8, "activations": "int8"}"#;
    for (path, options, a_layer, padded) in [
        (family("llama3"), int8, 11, 0),
        (family("gemma2"), int8, 11, 0),
        (demo(), r#"{"activations": "f32"}"#, 10, 0),
        (demo(), r#"{"activations": "int8"}"#, 10, 0),
        // Rows that are padded on the device cost each of the four inputs of a layer a launch, and that of the output.
        (family("llama3"), r#"{"bits": 8}"#, 14, 1),
        // Signs are not taken in passing: so it is with them.
        (
            family("llama3"),
            r#"{"bits": 1, "activations": "sign"}"#,
            14,
            1,
        ),
    ] {
        let model = open(&cuda, &path, options);
        let a = model.architecture();
        // The embedding, angles, the first norm, the last one, logits, their cap, the greatest of shares, and of all.
        let ends = 7 + usize::from(a.final_softcap.is_some()) + padded;
        let expected = ends + a.layers * a_layer;
        let mut s = session(&cuda, &model, r#"{"temperature": 0}"#);
        s.eval(&cuda, &[1, 5, 6], Logits::None).unwrap();
        s.next(&cuda, 9).unwrap();
        let before = driver.get("LAUNCHES");
        s.next(&cuda, 9).unwrap();
        let found = (driver.get("LAUNCHES") - before) as usize;
        assert_eq!(found, expected, "{} {options}", path.display());
    }
}

/// Powers of two that cancel: what is between them is out of range for sums of products with levels, and the logits are the same.
#[test]
#[ignore = "models_on_the_driver_that_is_none runs it, in a process that finds that driver"]
fn large_activations_stay_in_range() {
    let (cpu, cuda) = (cpu(), cuda());
    let options = r#"{"bits": 8}"#;
    // Both beyond float16, so that scales are kept in the same precision.
    let plain = scaled("llama3", "plain", &[("up_proj", 40), ("down_proj", -30)]);
    let large = scaled("llama3", "large", &[("up_proj", 124), ("down_proj", -114)]);
    let (here, there) = (open(&cpu, &plain, options), open(&cuda, &large, options));
    assert_eq!(there.info()["backend"], "cuda");
    let ids = ids(&here, 12);
    let kv = r#"{"kv": "f32"}"#;
    let expected = all_logits(&cpu, &mut session(&cpu, &here, kv), &ids);
    let found = all_logits(&cuda, &mut session(&cuda, &there, kv), &ids);
    let e = worst(&found, &expected);
    assert!(e < 1e-4, "in a block: {e}");
    let mut s = session(&cuda, &there, kv);
    let vocabulary = here.architecture().vocabulary;
    for (id, expected) in ids.iter().zip(expected.chunks(vocabulary)) {
        let e = worst(&last_logits(&cuda, &mut s, &[*id]).unwrap(), expected);
        assert!(e < 1e-4, "one by one: {e}");
    }
}

/// A greedy session, whose logits stay on the device, does not take a token where one of them is not finite.
#[test]
#[ignore = "models_on_the_driver_that_is_none runs it, in a process that finds that driver"]
fn logits_that_are_not_finite_choose_no_token() {
    let overflows = scaled("llama3", "overflows", &[("model.norm.weight", 127)]);
    for (rt, backend) in [(cpu(), "cpu"), (cuda(), "cuda")] {
        let model = open(&rt, &overflows, r#"{"bits": 8}"#);
        assert_eq!(model.info()["backend"], backend);
        let ids = ids(&model, 5);
        // A block, and a captured step.
        for fed in [&ids[..], &ids[..1]] {
            let mut s = session(&rt, &model, r#"{"temperature": 0}"#);
            s.eval(&rt, fed, Logits::None).unwrap();
            let e = s.next(&rt, 100).unwrap_err();
            assert_eq!(e.status(), Status::Format, "{backend}: {e}");
            assert!(e.message().contains("the logits are not finite"), "{e}");
        }
    }
}

#[test]
#[ignore = "models_on_the_driver_that_is_none runs it, in a process that finds that driver"]
fn the_demonstration_tells_a_story() {
    let (cpu, cuda) = (cpu(), cuda());
    let (here, there) = (open(&cpu, &demo(), ""), open(&cuda, &demo(), ""));
    let driver = Driver::new();
    let tokenizer = here.tokenizer().unwrap();
    let prompt = tokenizer
        .encode("Once upon a time", tokenizer.begins())
        .unwrap();
    let mut s = session(&cuda, &there, r#"{"temperature": 0}"#);
    s.eval(&cuda, &prompt, Logits::None).unwrap();
    let (first, _) = told(&cuda, &mut s, 3);
    let before = (driver.get("ALLOCATIONS"), driver.get("GRAPHS"));
    let (rest, tokens) = told(&cuda, &mut s, 60);
    let text = first + &rest;
    assert_eq!(
        before,
        (driver.get("ALLOCATIONS"), driver.get("GRAPHS")),
        "a step allocates nothing and captures nothing"
    );
    assert!(text.len() > 60, "{text}");

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
#[ignore = "models_on_the_driver_that_is_none runs it, in a process that finds that driver"]
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
#[ignore = "models_on_the_driver_that_is_none runs it, in a process that finds that driver"]
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
#[ignore = "models_on_the_driver_that_is_none runs it, in a process that finds that driver"]
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
    let failures = refused_now_and_then(
        &driver,
        &cuda,
        &there,
        kv,
        (&ids, &expected),
        &[1, 2, 3, 5, 8, 13, 21, 40],
    );
    assert!(failures > 10, "{failures}");
    drop((there, cuda));

    // The device is lost: every call fails, none gives numbers.
    for nth in [1, 7, 60, 200] {
        let cuda = crate::support::cuda();
        let there = open(&cuda, &family("qwen3"), r#"{"bits": 8}"#);
        lost(&driver, &cuda, &there, kv, &ids, nth);
    }
    assert_eq!(driver.get("ALLOCATED"), 0);
}

#[test]
#[ignore = "models_on_the_driver_that_is_none runs it, in a process that finds that driver"]
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
        crate::support::cuda(),
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
#[ignore = "models_on_the_driver_that_is_none runs it, in a process that finds that driver"]
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
#[ignore = "models_on_the_driver_that_is_none runs it, in a process that finds that driver"]
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
