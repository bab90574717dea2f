//! A driver that works: what is chosen, where weights live, what is left behind.

use std::ffi::{c_int, c_void};
use std::fs;

use apl_ffi::abi::lifecycle::apl_ffi_cleanup;
use apl_ffi::abi::status::*;
use apl_ffi::abi::weights::apl_weights_free;
use apl_ffi::cuda::transformer::softcap;
use apl_ffi::cuda::{Memory, Stream};
use serde_json::json;

use crate::abi_support::{info, last_error};
use crate::fake::{Case, fake, init, init_cuda, weights_info};

#[test]
fn info_tells_of_the_device() {
    let Some(mut fake) = fake() else { return };
    fake.set("DEVICES", 2);
    assert_eq!(init(json!({"backend": "auto", "device": 1})), APL_FFI_OK);
    let i = info();
    assert_eq!(
        (&i["backend"], &i["backend_reason"]),
        (&json!("cuda"), &json!("a CUDA device is there"))
    );
    let cuda = &i["cuda"];
    assert_eq!(cuda["name"], "Fake GPU 1");
    assert_eq!(
        (&cuda["compute_capability"], &cuda["driver"]),
        (&json!("9.0"), &json!("12.4"))
    );
    assert_eq!(cuda["memory_total"], 1u64 << 30);
    assert!(cuda["memory_free"].as_u64() <= Some(1 << 30));
    assert_eq!(apl_ffi_cleanup(), APL_FFI_OK);

    assert_eq!(init(json!({"backend": "cpu"})), APL_FFI_OK);
    let i = info();
    assert!(i["backend"] == "cpu" && i["cuda"].is_null());
    fake.assert_empty();
}

#[test]
fn configurations_that_come_to_the_same() {
    let Some(mut fake) = fake() else { return };
    fake.set("DEVICES", 2);
    init_cuda();
    assert_eq!(init(json!({"backend": "cuda", "device": 0})), APL_FFI_OK);
    // Another device; and one that may leave weights to the CPU.
    for other in [
        json!({"backend": "cuda", "device": 1}),
        json!({"backend": "auto"}),
        json!({"backend": "cpu"}),
    ] {
        assert_eq!(init(other), APL_FFI_ERR_STATE);
    }
    assert_eq!(
        init(json!({"backend": "cuda", "device": 2})),
        APL_FFI_ERR_BACKEND
    );
    assert_eq!(
        last_error(),
        "apl_ffi_init: backend is \"cuda\", there is no CUDA device 2: they are 0 to 1"
    );
    assert_eq!(info()["cuda"]["name"], "Fake GPU 0");
    apl_ffi_cleanup();
    fake.assert_empty();
}

/// The image is that of the capability; where the driver is told to compile, or has to, the PTX.
#[test]
fn the_kernels_for_each_capability() {
    let Some(mut fake) = fake() else { return };
    let case = Case::new(3, 40, 1, json!({}));
    for (capability, force, version, image) in [
        (75, 0, 12000, "sm_75"),
        (87, 0, 12000, "sm_86"),
        (89, 0, 12040, "sm_89"),
        (90, 0, 12040, "sm_90"),
        (90, 1, 12040, "compute_75"),
        (103, 0, 12080, "sm_100"),
        // A cubin that only a later driver reads.
        (100, 0, 12040, "compute_75"),
        (110, 0, 13000, "compute_75"),
        (120, 0, 13000, "sm_120"),
    ] {
        fake.set("CAPABILITY", capability);
        fake.set("FORCE_PTX", force);
        fake.set("VERSION", version);
        init_cuda();
        assert_eq!(info()["cuda"]["image"], image, "{capability}");
        let handle = case.weights().unwrap();
        case.assert_right(handle, &case.multiply(handle).unwrap());
        apl_ffi_cleanup();
    }
    fake.set("DISABLE_PTX", 1);
    fake.set("CAPABILITY", 110);
    assert_eq!(init(json!({"backend": "cuda"})), APL_FFI_ERR_BACKEND);
    assert!(last_error().contains("the kernels cannot be loaded on the CUDA device Fake GPU 0"));
    fake.assert_empty();
}

#[test]
fn weights_live_where_the_kernels_take_them() {
    let Some(_fake) = fake() else { return };
    init_cuda();
    for (cols, options, backend) in [
        (64, json!({}), "cuda"),
        (64, json!({"bits": 8, "group": 8}), "cuda"),
        (
            64,
            json!({"bits": 1, "group": 0, "activations": "sign"}),
            "cuda",
        ),
        (64, json!({"bits": 8, "group": 7}), "cpu"),
        (7, json!({}), "cpu"),
        (64, json!({"bits": 16}), "cpu"),
        (64, json!({"bits": 32}), "cpu"),
    ] {
        let case = Case::new(5, cols, 3, options.clone());
        let handle = case.weights().unwrap();
        let info = weights_info(handle);
        assert_eq!(info["backend"], backend, "{options}");
        assert_eq!(info["path"] == "device", backend == "cuda", "{options}");
        let y = case.multiply(handle).unwrap();
        if options["activations"] != "sign" {
            case.assert_right(handle, &y);
        }
        assert_eq!(apl_weights_free(handle), APL_FFI_OK);
    }
}

#[test]
fn the_steady_state_allocates_nothing() {
    let Some(fake) = fake() else { return };
    init_cuda();
    let cases = ["f32", "int8"].map(|a| Case::new(40, 70, 3, json!({"activations": a})));
    let handles = cases.each_ref().map(|case| case.weights().unwrap());
    let round = || {
        for (case, &handle) in cases.iter().zip(&handles) {
            case.multiply(handle).unwrap();
        }
    };
    round();
    let (before, streams) = (fake.get("ALLOCATIONS"), fake.get("STREAMS"));
    for _ in 0..10 {
        round();
    }
    assert_eq!(
        (fake.get("ALLOCATIONS"), fake.get("STREAMS")),
        (before, streams)
    );
}

#[test]
fn nothing_is_left_behind() {
    let Some(fake) = fake() else { return };
    let case = Case::new(33, 100, 2, json!({"bits": 2, "symmetric": false}));
    for _ in 0..20 {
        init_cuda();
        let freed = case.weights().unwrap();
        let before = fake.get("ALLOCATED");
        let kept = case.weights().unwrap();
        assert!(fake.get("ALLOCATED") > before);
        case.assert_right(kept, &case.multiply(kept).unwrap());
        assert_eq!(apl_weights_free(freed), APL_FFI_OK);
        assert_eq!(apl_ffi_cleanup(), APL_FFI_OK);
        fake.assert_empty();
    }
}

#[test]
fn eight_threads() {
    let Some(fake) = fake() else { return };
    init_cuda();
    let shared = Case::new(50, 130, 2, json!({"activations": "int8"}));
    let handle = shared.weights().unwrap();
    let expected = shared.multiply(handle).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (shared, expected) = (&shared, &expected);
            scope.spawn(move || {
                let own = Case::new(10 + thread, 64, 1, json!({"bits": 8}));
                for _ in 0..5 {
                    assert_eq!(shared.multiply(handle).unwrap(), *expected);
                    let mine = own.weights().unwrap();
                    own.assert_right(mine, &own.multiply(mine).unwrap());
                    assert_eq!(apl_weights_free(mine), APL_FFI_OK);
                }
            });
        }
    });
    assert!(
        (1..=9).contains(&fake.get("STREAMS")),
        "a stream a call at once"
    );
    apl_ffi_cleanup();
    fake.assert_empty();
}

/// What the driver starts inherits a mask in which everything is blocked; the caller's own mask is as before.
#[test]
fn threads_of_the_driver_take_no_signals() {
    let Some(mut fake) = fake() else { return };
    fake.set("THREADS", 1);
    let blocked = |task: &str| {
        let status =
            fs::read_to_string(format!("/proc/self/task/{task}/status")).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        mask.map(|mask| u64::from_str_radix(mask.trim(), 16).unwrap())
    };
    // SAFETY: asks for a number.
    let me = unsafe { libc::gettid() }.to_string();
    let before = blocked(&me).unwrap();
    init_cuda();
    let case = Case::new(5, 64, 1, json!({}));
    let handle = case.weights().unwrap();
    case.multiply(handle).unwrap();
    assert_eq!(blocked(&me), Some(before));
    // SIGKILL and SIGSTOP, and the two that glibc keeps for itself, cannot be blocked.
    let never: u64 = 1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1) | 0b11 << 31;
    let mut found = 0;
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().file_name().into_string().unwrap();
        let name = fs::read_to_string(format!("/proc/self/task/{task}/comm")).unwrap_or_default();
        if name.trim_end() == "fake_cuda" {
            found += 1;
            assert_eq!(
                blocked(&task).map(|mask| mask | never),
                Some(u64::MAX),
                "{task}"
            );
        }
    }
    assert!(found >= 3, "the driver has started {found} threads");
}

/// The context that the host program made current is current after every call.
#[test]
fn the_context_of_the_host_stays() {
    let Some(mut fake) = fake() else { return };
    fake.set("DEVICES", 2);
    type Retain = unsafe extern "C" fn(*mut *mut c_void, c_int) -> c_int;
    type Current = unsafe extern "C" fn(*mut *mut c_void) -> c_int;
    let retain: Retain = fake.symbol("cuDevicePrimaryCtxRetain");
    let set: unsafe extern "C" fn(*mut c_void) -> c_int = fake.symbol("cuCtxSetCurrent");
    let get: Current = fake.symbol("cuCtxGetCurrent");
    let release: unsafe extern "C" fn(c_int) -> c_int = fake.symbol("cuDevicePrimaryCtxRelease_v2");
    let start: unsafe extern "C" fn(u32) -> c_int = fake.symbol("cuInit");
    let mut hosts = std::ptr::null_mut();
    // SAFETY: as the driver's manual has them.
    unsafe {
        assert_eq!(start(0), 0);
        assert_eq!(retain(&mut hosts, 1), 0);
        assert_eq!(set(hosts), 0);
    }
    let still = |what: &str| {
        let mut now = std::ptr::null_mut();
        // SAFETY: as above.
        assert_eq!(unsafe { get(&mut now) }, 0);
        assert_eq!(now, hosts, "{what}");
    };
    init_cuda();
    still("init");
    let case = Case::new(5, 64, 1, json!({}));
    let handle = case.weights().unwrap();
    still("weights");
    case.assert_right(handle, &case.multiply(handle).unwrap());
    still("product");
    apl_weights_free(handle);
    still("free");
    apl_ffi_cleanup();
    still("cleanup");
    // SAFETY: as above.
    unsafe {
        set(std::ptr::null_mut());
        assert_eq!(release(1), 0);
    }
    fake.assert_empty();
}

#[test]
fn several_devices() {
    let Some(mut fake) = fake() else { return };
    fake.set("DEVICES", 3);
    assert_eq!(
        init(json!({"backend": "cuda", "devices": [2, 0]})),
        APL_FFI_OK
    );
    let i = info();
    assert_eq!(i["cuda"], i["devices"][0]);
    let ordinals = |i: &serde_json::Value| {
        let devices = i["devices"].as_array().unwrap().iter();
        devices.map(|d| d["ordinal"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(ordinals(&i), [2, 0]);
    assert_eq!(fake.get("CONTEXTS"), 2);
    // Another order is another configuration.
    for (other, status) in [
        (json!({"backend": "cuda", "devices": [2, 0]}), APL_FFI_OK),
        (
            json!({"backend": "cuda", "devices": [0, 2]}),
            APL_FFI_ERR_STATE,
        ),
        (json!({"backend": "cuda", "device": 2}), APL_FFI_ERR_STATE),
        (
            json!({"backend": "auto", "devices": [2, 0]}),
            APL_FFI_ERR_STATE,
        ),
        (
            json!({"backend": "cuda", "devices": []}),
            APL_FFI_ERR_CONFIG,
        ),
        (json!({"devices": [0], "device": 0}), APL_FFI_ERR_CONFIG),
        (
            json!({"backend": "cuda", "devices": [0, 3]}),
            APL_FFI_ERR_BACKEND,
        ),
    ] {
        assert_eq!(init(other.clone()), status, "{other}");
    }
    assert_eq!(
        last_error(),
        "apl_ffi_init: backend is \"cuda\", there is no CUDA device 3: they are 0 to 2"
    );
    // Weights go where most is free: to each in turn, as these are of one size.
    let case = Case::new(40, 64, 3, json!({"activations": "int8"}));
    let handles: Vec<i32> = (0..4).map(|_| case.weights().unwrap()).collect();
    for &handle in &handles {
        case.assert_right(handle, &case.multiply(handle).unwrap());
    }
    assert!(fake.get("ALLOCATED_0") > 0 && fake.get("ALLOCATED_2") > 0);
    assert_eq!(fake.get("ALLOCATED_1"), 0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for &handle in &handles {
                    case.assert_right(handle, &case.multiply(handle).unwrap());
                }
            });
        }
    });
    apl_ffi_cleanup();
    fake.assert_empty();

    for _ in 0..10 {
        assert_eq!(
            init(json!({"backend": "cuda", "devices": [0, 1, 2]})),
            APL_FFI_OK
        );
        let handle = case.weights().unwrap();
        case.assert_right(handle, &case.multiply(handle).unwrap());
        apl_ffi_cleanup();
        fake.assert_empty();
    }
    // One that cannot be used leaves none.
    assert_eq!(
        init(json!({"backend": "auto", "devices": [0, 7]})),
        APL_FFI_OK
    );
    let i = info();
    assert_eq!(
        (&i["backend"], &i["backend_reason"], &i["devices"]),
        (
            &json!("cpu"),
            &json!("there is no CUDA device 7: they are 0 to 2"),
            &json!([])
        )
    );
    fake.assert_empty();
}

/// What the tests of models on several devices rest on: the driver tells memory of one device from that of another.
#[test]
fn memory_of_another_device_is_refused() {
    let Some(mut fake) = fake() else { return };
    fake.set("DEVICES", 2);
    let gpus = [0, 1].map(|ordinal| apl_ffi::cuda::open(ordinal).unwrap());
    let [own, other] = gpus
        .each_ref()
        .map(|gpu| Memory::new(gpu.device(), 64, "a test").unwrap());
    let stream = Stream::new(gpus[0].device()).unwrap();
    stream.write(own.all(), &[7; 64]).unwrap();
    assert!(stream.write(other.all(), &[7; 64]).is_err());
    assert!(stream.copy(other.all(), own.all()).is_err());
    assert!(stream.copy(own.part(0, 32), own.part(32, 32)).is_ok());
    // A kernel that is given it faults.
    softcap(&stream, 1.0, own.all(), 16).unwrap();
    stream.synchronize().unwrap();
    softcap(&stream, 1.0, other.all(), 16).unwrap();
    assert!(stream.synchronize().is_err());
    drop((own, other, stream, gpus));
    fake.assert_empty();
}
