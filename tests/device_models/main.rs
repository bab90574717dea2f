//! Language models on a CUDA device, against the same models on the CPU: on the driver that is none, which runs the kernels on the
//! processor and fails when told to.
//!
//! The library looks for the driver by its name, so the cases run in a child whose `LD_LIBRARY_PATH` leads to that one.

mod made;
mod one;
mod several;
mod support;

use std::process::Command;

use support::root;

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
        // All but this one were run, and none left out.
        !text.contains(" 0 passed") && text.contains("0 ignored; 0 measured; 1 filtered out"),
        "{text}"
    );
}
