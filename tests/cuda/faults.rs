//! A driver that fails while it runs: an error or the CPU, never a wrong number, and nothing is written.

use apl_ffi::abi::lifecycle::apl_ffi_cleanup;
use apl_ffi::abi::status::*;
use apl_ffi::abi::weights::{apl_weights_dequantize, apl_weights_free};
use serde_json::json;

use crate::abi_support::{info, last_error};
use crate::fake::{Case, fake, init, init_cuda, weights_info};

fn case() -> Case {
    Case::new(
        20,
        70,
        3,
        json!({"symmetric": false, "activations": "int8"}),
    )
}

/// Codes, scales and zero points are three allocations: each is refused in turn.
#[test]
fn device_memory_is_refused_to_weights() {
    let Some(mut fake) = fake() else { return };
    let case = case();
    for nth in 1..=3 {
        init_cuda();
        let before = fake.get("ALLOCATED");
        fake.set("FAIL_ALLOC", nth);
        assert_eq!(case.weights(), Err(APL_FFI_ERR_MEMORY), "{nth}");
        assert!(
            last_error().contains("bytes of device memory"),
            "{}",
            last_error()
        );
        assert_eq!(fake.get("ALLOCATED"), before);
        let handle = case.weights().unwrap();
        case.assert_right(handle, &case.multiply(handle).unwrap());
        apl_ffi_cleanup();

        assert_eq!(init(json!({"backend": "auto"})), APL_FFI_OK);
        fake.set("FAIL_ALLOC", nth);
        let handle = case.weights().unwrap();
        assert_eq!(
            (&weights_info(handle)["backend"], &info()["backend"]),
            (&json!("cpu"), &json!("cuda"))
        );
        case.assert_right(handle, &case.multiply(handle).unwrap());
        apl_ffi_cleanup();
        fake.assert_empty();
    }
}

#[test]
fn a_device_that_is_full() {
    let Some(mut fake) = fake() else { return };
    fake.set("MEMORY", 100_000);
    init_cuda();
    let (small, large) = (
        Case::new(8, 64, 1, json!({})),
        Case::new(1000, 256, 1, json!({"bits": 8})),
    );
    let handle = small.weights().unwrap();
    assert_eq!(large.weights(), Err(APL_FFI_ERR_MEMORY));
    // A product needs room too: the step of a lane is more than is left after weights of 30 kB.
    small.assert_right(handle, &small.multiply(handle).unwrap());
    apl_ffi_cleanup();
    assert_eq!(init(json!({"backend": "auto"})), APL_FFI_OK);
    let handle = large.weights().unwrap();
    assert_eq!(weights_info(handle)["backend"], "cpu");
    large.assert_right(handle, &large.multiply(handle).unwrap());
}

/// The first product allocates a block of device memory and two of page-locked memory.
#[test]
fn memory_is_refused_to_a_product() {
    let Some(mut fake) = fake() else { return };
    let case = case();
    for (what, nth) in [
        ("FAIL_ALLOC", 1),
        ("FAIL_HOST_ALLOC", 1),
        ("FAIL_HOST_ALLOC", 2),
    ] {
        init_cuda();
        let handle = case.weights().unwrap();
        fake.set(what, nth);
        assert_eq!(
            case.multiply(handle),
            Err(APL_FFI_ERR_MEMORY),
            "{what} {nth}"
        );
        assert!(
            last_error().starts_with("apl_matmul: CUDA: "),
            "{}",
            last_error()
        );
        case.assert_right(handle, &case.multiply(handle).unwrap());
        apl_ffi_cleanup();
        fake.assert_empty();
    }
}

/// Something that a product enqueues is refused. The vectors go, two kernels are launched, the sums come.
#[test]
fn a_launch_or_a_copy_is_refused() {
    let Some(mut fake) = fake() else { return };
    let case = case();
    init_cuda();
    let handle = case.weights().unwrap();
    let expected = case.multiply(handle).unwrap();
    for (what, nth, said) in [
        (
            "FAIL_LAUNCH",
            1,
            "launching quantize_activations failed: too many resources requested for launch (CUDA error 701)",
        ),
        ("FAIL_LAUNCH", 2, "launching matmul_i8_b4_n4 failed"),
        (
            "FAIL_COPY",
            1,
            "copying to the device failed: unknown error (CUDA error 999)",
        ),
        ("FAIL_COPY", 2, "copying from the device failed"),
    ] {
        fake.set(what, nth);
        assert_eq!(
            case.multiply(handle),
            Err(APL_FFI_ERR_BACKEND),
            "{what} {nth}"
        );
        assert!(last_error().contains(said), "{}", last_error());
        assert_eq!(
            case.multiply(handle).unwrap(),
            expected,
            "after {what} {nth}"
        );
    }
    apl_ffi_cleanup();
    fake.assert_empty();
}

#[test]
fn a_copy_of_weights_is_refused() {
    let Some(mut fake) = fake() else { return };
    let case = case();
    // Scales, zero points, codes.
    for nth in 1..=3 {
        for backend in ["cuda", "auto"] {
            assert_eq!(init(json!({"backend": backend})), APL_FFI_OK);
            fake.set("FAIL_COPY", nth);
            assert_eq!(case.weights(), Err(APL_FFI_ERR_BACKEND), "{nth}");
            let handle = case.weights().unwrap();
            fake.set("FAIL_COPY", nth);
            let mut w = vec![7f32; case.w.len()];
            // SAFETY: the length is that of the vector.
            let status = unsafe { apl_weights_dequantize(handle, w.as_mut_ptr(), w.len() as i64) };
            assert_eq!(status, APL_FFI_ERR_BACKEND);
            assert!(w.iter().all(|&w| w == 7.0));
            case.assert_right(handle, &case.multiply(handle).unwrap());
            apl_ffi_cleanup();
            fake.assert_empty();
        }
    }
}

/// The device is gone in the middle of a product: that one fails, everything after it does, and after `cleanup` all is well.
#[test]
fn a_device_that_is_lost() {
    let Some(mut fake) = fake() else { return };
    let case = case();
    for nth in [1, 2] {
        init_cuda();
        let (handle, freed) = (case.weights().unwrap(), case.weights().unwrap());
        let expected = case.multiply(handle).unwrap();
        fake.set("LOSE", nth);
        assert_eq!(case.multiply(handle), Err(APL_FFI_ERR_BACKEND));
        assert_eq!(
            last_error(),
            "apl_matmul: CUDA: the work on the device failed: unspecified launch failure (CUDA error 719)"
        );
        assert_eq!(case.multiply(handle), Err(APL_FFI_ERR_BACKEND));
        assert_eq!(case.weights(), Err(APL_FFI_ERR_BACKEND));
        let mut w = vec![0f32; case.w.len()];
        // SAFETY: the length is that of the vector.
        let status = unsafe { apl_weights_dequantize(handle, w.as_mut_ptr(), w.len() as i64) };
        assert_eq!(status, APL_FFI_ERR_BACKEND);
        assert_eq!(apl_weights_free(freed), APL_FFI_OK);
        assert!(info()["cuda"]["memory_free"].is_null());

        assert_eq!(apl_ffi_cleanup(), APL_FFI_OK);
        fake.assert_empty();
        init_cuda();
        let handle = case.weights().unwrap();
        assert_eq!(case.multiply(handle).unwrap(), expected);
        apl_ffi_cleanup();
    }
}

/// The first stream, and the first of each call at once, is refused.
#[test]
fn a_stream_is_refused() {
    let Some(mut fake) = fake() else { return };
    fake.set("FAIL_STREAM", 1);
    assert_eq!(init(json!({"backend": "cuda"})), APL_FFI_ERR_BACKEND);
    assert!(
        last_error().contains("making a stream failed: out of memory"),
        "{}",
        last_error()
    );
    fake.assert_empty();
    fake.set("FAIL_STREAM", 1);
    assert_eq!(init(json!({"backend": "auto"})), APL_FFI_OK);
    assert_eq!(info()["backend"], "cpu");
}

/// Eight callers while the device goes away: each gets the right numbers or an error.
#[test]
fn a_device_that_is_lost_by_many() {
    let Some(mut fake) = fake() else { return };
    let case = case();
    init_cuda();
    let handle = case.weights().unwrap();
    let expected = case.multiply(handle).unwrap();
    fake.set("LOSE", 40);
    let outcomes: Vec<Result<Vec<f32>, i32>> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| (0..8).map(|_| case.multiply(handle)).collect::<Vec<_>>()))
            .collect();
        callers
            .into_iter()
            .flat_map(|c| c.join().unwrap())
            .collect()
    });
    let mut failed = 0;
    for outcome in outcomes {
        match outcome {
            Ok(y) => assert_eq!(y, expected),
            Err(status) => {
                assert_eq!(status, APL_FFI_ERR_BACKEND);
                failed += 1;
            }
        }
    }
    assert!((1..64).contains(&failed), "{failed} of 64 failed");
    apl_ffi_cleanup();
    fake.assert_empty();
}
