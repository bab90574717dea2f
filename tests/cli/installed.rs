//! The program away from the sources: what `make install` puts in place is enough.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// The program that lies in `prefix/bin`, run elsewhere.
fn run_in(prefix: &Path, arguments: &[&str]) -> Output {
    let elsewhere = tempfile::tempdir().unwrap();
    Command::new(prefix.join("bin/apl-ffi"))
        .args(arguments)
        .current_dir(elsewhere.path())
        .env_remove("APL_FFI_MODELS")
        .output()
        .unwrap()
}

#[test]
fn an_installed_program_has_the_demonstration() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("a prefix");
    // What was built is wherever cargo puts it, and the library of tests has another name there.
    let built = folder.path().join("built");
    fs::create_dir(&built).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_apl-ffi"));
    fs::copy(program, built.join("apl-ffi")).unwrap();
    // As much of the library as is looked at.
    fs::write(built.join("libapl_ffi.so"), "libapl_ffi.so.1").unwrap();
    let install = |built: &Path| {
        let status = Command::new("packaging/install.sh")
            .current_dir(root)
            .env("PREFIX", &prefix)
            .env("LIBDIR", prefix.join("lib"))
            .env("INCLUDEDIR", prefix.join("include"))
            .env("DESTDIR", "")
            .env("RELEASE", built)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&status.stderr);
        assert!(status.status.success(), "{error}");
    };
    install(&built);
    let told = run_in(&prefix, &["run", "demo", "One day", "-n", "3"]);
    assert!(told.status.success() && told.stdout.starts_with(b"One day"));
    let out = folder.path().join("out");
    let converted = run_in(
        &prefix,
        &["convert", "demo", "--out", out.to_str().unwrap()],
    );
    assert!(converted.status.success());

    // Without it, the message says where it was looked for.
    let models = prefix.join("share/apl_ffi/models");
    fs::remove_dir_all(&models).unwrap();
    let missing = run_in(&prefix, &["run", "demo"]);
    let error = String::from_utf8(missing.stderr).unwrap();
    assert_eq!(missing.status.code(), Some(3), "{error}");
    assert!(error.contains(models.to_str().unwrap()), "{error}");

    // The library alone, where nobody built the program.
    fs::remove_dir_all(&prefix).unwrap();
    fs::remove_file(built.join("apl-ffi")).unwrap();
    install(&built);
    assert!(prefix.join("lib/libapl_ffi.so").exists());
    assert!(!prefix.join("bin").exists() && !prefix.join("share").exists());
}
