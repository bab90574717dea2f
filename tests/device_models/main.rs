//! Language models on a CUDA device, against the same models on the CPU: on the driver that is none, which runs the kernels on the
//! processor and fails when told to.
//!
//! The library looks for the driver by its name, so the cases run in children whose `LD_LIBRARY_PATH` leads to that one.

mod made;
mod one;
mod several;
mod support;

use std::process::{Command, Stdio};

use support::root;

#[test]
fn models_on_the_driver_that_is_none() {
    let folder = root().join("target/fake-cuda");
    let built = Command::new(root().join("tests/kernels/fake_cuda.sh"))
        .arg(&folder)
        .status();
    if !built.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no C++ compiler made the driver that is none");
        return;
    }
    let run = |module: &str| {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--test-threads=1", &format!("{module}::")])
            .env("LD_LIBRARY_PATH", &folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        child.unwrap()
    };
    // A process each: the driver's faults are of a process.
    let children = ["made", "one", "several"].map(run);
    let ended = children.map(|child| child.wait_with_output().unwrap());
    let (mut passed, mut all) = (0, 0);
    for child in ended {
        let text = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "{text}");
        let count = |what| {
            let before = text.split(what).next().unwrap();
            let number = before.split_whitespace().last().unwrap();
            number.parse::<usize>().expect(&text)
        };
        passed += count(" passed;");
        all = count(" passed;") + count(" filtered out;");
    }
    assert_eq!(passed + 1, all, "all but this one are run");
}
