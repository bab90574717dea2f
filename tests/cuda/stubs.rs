//! Drivers that will not do: the CPU serves, and the reason is told; where CUDA is demanded, the same reason is the error.
//!
//! Each is a small shared object, and each is met by a process of its own: a driver once loaded stays.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// Every symbol that the library asks for, out of its own list.
fn symbols() -> Vec<&'static str> {
    let source = include_str!("../../src/cuda/probe.rs");
    let list = source.split("const SYMBOLS: &[&str] = &[").nth(1).unwrap();
    let list = list.split("];").next().unwrap();
    list.split('"').skip(1).step_by(2).collect()
}

/// A driver that has every symbol but `without`; `init`, `version` and `devices` are what the first calls give, `more` is C.
fn source(without: &str, init: i32, version: i32, devices: i32, more: &str) -> String {
    let mut text = String::new();
    for name in symbols().into_iter().filter(|&s| s != without) {
        text += &match name {
            "cuInit" => format!("int cuInit(unsigned f) {{ return {init}; }}\n"),
            "cuDriverGetVersion" => format!("int {name}(int *v) {{ *v = {version}; return 0; }}\n"),
            "cuDeviceGetCount" => format!("int {name}(int *n) {{ *n = {devices}; return 0; }}\n"),
            "cuGetErrorString" => format!(
                "int {name}(int e, const char **s) {{ *s = e == 803 ? \"system mismatch\" : 0; return e != 803; }}\n"
            ),
            _ => format!("int {name}(void) {{ return 999; }}\n"),
        };
    }
    text + more
}

fn build(folder: &Path, source: &str) {
    let c = folder.join("stub.c");
    fs::write(&c, source).unwrap();
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let built = Command::new(compiler)
        .args(["-w", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"])
        .args([&folder.join("libcuda.so.1"), &c])
        .output()
        .unwrap();
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
}

fn info(folder: &Path, backend: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_apl-ffi"))
        .args(["info", "--json"])
        .env("LD_LIBRARY_PATH", folder)
        .env("APL_FFI_BACKEND", backend)
        .output()
        .unwrap()
}

/// The backend and the reason that `auto` comes to; nothing is said on stderr, and `cuda` fails with the same reason.
fn verdict(folder: &Path) -> (String, String) {
    let auto = info(folder, "auto");
    assert!(auto.status.success() && auto.stderr.is_empty(), "{auto:?}");
    let told: Value = serde_json::from_slice(&auto.stdout).unwrap();
    let text = |key: &str| told[key].as_str().unwrap().to_owned();
    let (backend, reason) = (text("backend"), text("backend_reason"));
    if backend == "cpu" {
        let demanded = info(folder, "cuda");
        assert_eq!(demanded.status.code(), Some(1), "{demanded:?}");
        let said = String::from_utf8(demanded.stderr).unwrap();
        assert_eq!(said, format!("apl-ffi: backend is \"cuda\", {reason}\n"));
    }
    (backend, reason)
}

fn refused(source: &str, expected: &str) {
    let folder = TempDir::new().unwrap();
    build(folder.path(), source);
    let (backend, reason) = verdict(folder.path());
    assert_eq!(backend, "cpu");
    assert!(
        reason.contains(expected),
        "{reason:?}, expected {expected:?}"
    );
    // The off-switch: the driver is not even looked for.
    let off = info(folder.path(), "cpu");
    let told: Value = serde_json::from_slice(&off.stdout).unwrap();
    assert_eq!(told["backend_reason"], "the configuration asks for it");
}

#[test]
fn no_driver() {
    let folder = TempDir::new().unwrap();
    let (backend, reason) = verdict(folder.path());
    if backend == "cuda" {
        eprintln!("SKIPPED: this machine has a CUDA driver");
        return;
    }
    assert!(
        reason.starts_with("no CUDA driver: ") || reason.contains("the CUDA driver"),
        "{reason}"
    );
}

#[test]
fn libraries_that_are_no_driver() {
    refused("", "the CUDA driver libcuda.so.1 has no cu");
    // Under lazy binding this would end the process at the first call.
    let unresolved = "int nobody_has_this(void); int also(void) { return nobody_has_this(); }\n";
    refused(&source("", 0, 12040, 1, unresolved), "no CUDA driver: ");
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("libcuda.so.1"), b"not a library").unwrap();
    assert!(verdict(folder.path()).1.starts_with("no CUDA driver: "));
}

#[test]
fn drivers_that_lack_a_symbol() {
    for name in [
        "cuCtxGetCurrent",
        "cuGraphLaunch",
        "cuMemHostAlloc",
        "cuInit",
        "cuStreamSynchronize",
    ] {
        let expected = format!("the CUDA driver libcuda.so.1 has no {name}");
        refused(&source(name, 0, 12040, 1, ""), &expected);
    }
}

#[test]
fn drivers_that_do_not_start() {
    for (status, text) in [
        (100, "an unknown error"),
        (999, "an unknown error"),
        (803, "system mismatch"),
        (12345, "an unknown error"),
    ] {
        let expected = format!("the CUDA driver does not work: cuInit gives {status}, {text}");
        refused(&source("", status, 12040, 1, ""), &expected);
    }
}

#[test]
fn drivers_that_are_too_old_or_see_nothing() {
    refused(
        &source("", 0, 11040, 1, ""),
        "the CUDA driver serves CUDA 11.4, expected 12.0 or newer",
    );
    refused(
        &source("", 0, 12040, 0, ""),
        "the CUDA driver sees no device",
    );
    // Every call after the first ones fails.
    refused(
        &source("", 0, 12040, 1, ""),
        "the CUDA driver does not work: cuDeviceGet gives",
    );
}

/// A toolkit's stub has the name that is looked for first.
#[test]
fn another_library_of_the_name_without_a_number() {
    let folder = TempDir::new().unwrap();
    build(folder.path(), &source("", 0, 12040, 1, ""));
    fs::rename(
        folder.path().join("libcuda.so.1"),
        folder.path().join("libcuda.so"),
    )
    .unwrap();
    build(folder.path(), &source("", 0, 12040, 1, "\nint another;\n"));
    let (backend, reason) = verdict(folder.path());
    assert_eq!(backend, "cpu");
    assert_eq!(
        reason,
        "libcuda.so is another library than the CUDA driver libcuda.so.1"
    );
}
