//! On several devices.

use apl_ffi::error::Status;
use apl_ffi::model::{Logits, Model, ModelOptions, Session, SessionOptions};
use apl_ffi::runtime::Runtime;
use std::sync::Arc;

use crate::support::*;

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
#[ignore = "models_on_the_driver_that_is_none runs it, in a process that finds that driver"]
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
        told(rt, &mut s, 16).1
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
#[ignore = "models_on_the_driver_that_is_none runs it, in a process that finds that driver"]
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
#[ignore = "models_on_the_driver_that_is_none runs it, in a process that finds that driver"]
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
    let failures = refused_now_and_then(
        &driver,
        &cuda,
        &there,
        kv,
        (&ids, &expected),
        &[1, 2, 3, 5, 8, 13, 21],
    );
    assert!(failures > 8, "{failures}");
    drop((there, cuda));

    for nth in [1, 7, 30] {
        let cuda = several("[0, 1]");
        let there = open(&cuda, &path, options);
        lost(&driver, &cuda, &there, kv, &ids, nth);
    }
    driver.set("ONLY", -1);
    driver.set("DEVICES", 1);
    assert_eq!(
        (driver.get("ALLOCATED"), driver.get("HOST_ALLOCATED")),
        (0, 0)
    );
}

#[test]
#[ignore = "models_on_the_driver_that_is_none runs it, in a process that finds that driver"]
fn a_block_is_cancelled_between_layers() {
    let driver = Driver::new();
    driver.set("DEVICES", 2);
    for devices in ["[0]", "[0, 1]"] {
        let cuda = several(devices);
        let model = open(&cuda, &demo(), "");
        let ids = ids(&model, 24);
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
