//! The command line as a user meets it: what it prints, what it leaves behind, and how it ends.

#[cfg(unix)]
mod beside;
#[cfg(target_os = "linux")]
mod conversing;
mod conversions;
mod downloads;
mod folders;
#[cfg(unix)]
mod installed;
mod measures;
mod prompts;
mod readme;
mod running;
mod usage;
mod validation;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn command(arguments: &[&str]) -> Command {
    let root = env!("CARGO_MANIFEST_DIR");
    let mut command = Command::new(env!("CARGO_BIN_EXE_apl-ffi"));
    command
        .args(arguments)
        .current_dir(root)
        .env_remove("HF_TOKEN")
        .env_remove("APL_FFI_MODELS");
    // No hub answers here, and none is asked by accident.
    command
        .env("HF_ENDPOINT", "http://127.0.0.1:9")
        .env("HF_HOME", std::env::temp_dir().join("apl-ffi-no-hub"));
    command
}

fn apl_ffi(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn succeeds(arguments: &[&str]) -> String {
    let output = apl_ffi(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// The one line that a failure is told in.
fn fails(code: i32, arguments: &[&str]) -> String {
    let output = apl_ffi(arguments);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    error
}

#[test]
fn the_demonstration_tells_a_story() {
    let story = succeeds(&[
        "run",
        "demo",
        "Once upon a time",
        "--temperature",
        "0",
        "-n",
        "60",
    ]);
    assert!(story.starts_with("Once upon a time, "), "{story}");
    assert!(story.split_whitespace().count() > 30, "{story}");
    assert_eq!(
        story,
        succeeds(&[
            "run",
            "demo",
            "Once upon a time",
            "--temperature",
            "0",
            "-n",
            "60",
            "--threads",
            "1"
        ])
    );
    let seeded =
        |seed: &str| succeeds(&["run", "demo", "One day", "--seed", seed, "-n", "30", "-q"]);
    assert_eq!(seeded("1"), seeded("1"));
    assert_ne!(seeded("1"), seeded("2"));
}

#[test]
fn a_conversion_and_a_look_at_it() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let float = measured(&[
        "perplexity",
        "models/stories",
        "models/stories/README.md",
        "--bits",
        "32",
    ]);
    let mut divergence = 0.0;
    for (bits, least, most, worse) in [
        ("8", 8.0, 9.0, 1.01),
        ("4", 4.0, 5.0, 1.3),
        ("2", 2.0, 3.0, 50.0),
        ("1", 1.0, 2.0, 1e4),
    ] {
        let report: Value = serde_json::from_str(&succeeds(&[
            "convert",
            "models/stories",
            "--bits",
            bits,
            "--out",
            out,
            "--json",
        ]))
        .unwrap();
        let true_bits = report["bits_a_weight"].as_f64().unwrap();
        assert!((least..most).contains(&true_bits), "{report}");
        // The same figures in the report, in the manifest, and from the verb that compares.
        let compared = &report["compared"];
        let kl = |v: &Value| v["kl_nats"].as_f64().unwrap();
        let manifest = fs::read_to_string(report["manifest"].as_str().unwrap()).unwrap();
        let manifest: Value = serde_json::from_str(&manifest).unwrap();
        assert_eq!(&manifest["accuracy"]["compared"], compared);
        assert_eq!(
            manifest["accuracy"]["relative_error"],
            report["relative_error"]
        );
        let again = succeeds(&["compare", out, "models/stories", "--json"]);
        let again: Value = serde_json::from_str(&again).unwrap();
        assert!(
            (kl(&again) - kl(compared)).abs() <= 1e-6 * kl(compared),
            "{again} {compared}"
        );
        assert!(
            kl(compared) > divergence,
            "{bits} bits: {compared}, with more bits {divergence}"
        );
        divergence = kl(compared);
        let table = succeeds(&["inspect", out, "--verify"]);
        assert!(
            table.contains("verified") && table.contains("model.layers.4.mlp.down_proj.weight"),
            "{table}"
        );
        assert!(
            table.contains("relative error of the weights") && table.contains("perplexity"),
            "{table}"
        );
        let inspected: Value =
            serde_json::from_str(&succeeds(&["inspect", out, "--json"])).unwrap();
        assert_eq!(inspected["family"], "llama");
        assert_eq!(inspected["accuracy"], manifest["accuracy"]);
        for (tensor, matrix) in inspected["tensors"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|t| t["type"] != "vector")
            .zip(report["matrices"].as_array().unwrap())
        {
            assert_eq!(tensor["relative_error"], matrix["relative_error"]);
        }
        let found = measured(&["perplexity", out, "models/stories/README.md"]);
        assert!(found < worse * float, "{bits} bits: {found}, float {float}");
        // One model, whatever was converted there before.
        let npz = fs::read_dir(out).unwrap().filter(|e| {
            e.as_ref()
                .unwrap()
                .path()
                .extension()
                .is_some_and(|e| e == "npz")
        });
        assert_eq!(npz.count(), 1);
    }
    let bench: Value = serde_json::from_str(&succeeds(&[
        "bench", "--model", out, "--prompt", "8", "--tokens", "4", "--rounds", "1", "--json",
    ]))
    .unwrap();
    assert!(bench["text_tokens_s"].as_f64().unwrap() > 0.0);
    assert!(bench["first_token_s"].as_f64().unwrap() > 0.0);
    assert!(bench["llama.cpp"].is_null());

    // An older manifest has no sha256; the arrays have checksums all the same.
    let manifest = Path::new(out).join("stories.json");
    let mut older: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    older["model"].as_object_mut().unwrap().remove("sha256");
    fs::write(&manifest, older.to_string()).unwrap();
    succeeds(&["inspect", out, "--verify"]);

    // A damaged array is found by --verify, and named.
    let damaged = fs::read_dir(out)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "npz"))
        .unwrap();
    let mut bytes = fs::read(&damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let error = fails(4, &["inspect", out, "--verify"]);
    assert!(error.contains("damaged"), "{error}");
}

fn measured(arguments: &[&str]) -> f64 {
    let mut arguments = arguments.to_vec();
    arguments.extend(["--json", "--window", "64"]);
    let outcome: Value = serde_json::from_str(&succeeds(&arguments)).unwrap();
    outcome["perplexity"].as_f64().unwrap()
}

#[test]
fn every_exit_code() {
    let missing = fails(3, &["run", "no/such/model/at/all"]);
    assert_eq!(
        missing,
        "apl-ffi: there is no folder or file no/such/model/at/all here\n"
    );
    let hint = fails(3, &["run", "tinyllama"]);
    assert!(hint.contains("apl-ffi convert tinyllama"), "{hint}");
    fails(2, &["run"]);
    fails(2, &["convert", "models/stories", "--bits", "3"]);
    fails(2, &["perplexity", "demo", "README.md", "--window", "4096"]);
    fails(3, &["perplexity", "demo", "no/such/text"]);
    fails(4, &["inspect", "README.md"]);
    fails(4, &["inspect", "tests/data"]);
    let chat = fails(4, &["run", "demo", "--chat"]);
    assert!(chat.contains("no chat template"), "{chat}");
    let source = fails(3, &["convert", "nothing-of-that-name"]);
    assert!(source.contains("apl-ffi models"), "{source}");
    let hub = fails(5, &["convert", "nobody/nothing"]);
    assert!(
        hub.contains("nobody/nothing cannot be fetched (is there a network?)"),
        "{hub}"
    );
    for error in [missing, hint, chat, source, hub] {
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn help_teaches() {
    let help = succeeds(&["--help"]);
    for word in [
        "convert",
        "run",
        "inspect",
        "models",
        "compare",
        "validate",
        "perplexity",
        "bench",
        "info",
        "quickstart",
        "Exit codes",
        "Examples",
    ] {
        assert!(help.contains(word), "{word}: {help}");
    }
    assert!(succeeds(&["models"]).contains("TinyLlama/TinyLlama-1.1B-Chat-v1.0"));
    assert!(succeeds(&["info"]).contains("instruction set"));
    let info: Value = serde_json::from_str(&succeeds(&["info", "--json"])).unwrap();
    assert!(info["threads"].as_u64().unwrap() > 0);
}

/// Calibrated conversion and tuning, from the command line to a model that opens.
#[test]
fn a_calibrated_conversion() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let convert = [
        "convert",
        "models/stories",
        "--out",
        out,
        "--json",
        "--bits",
        "2",
    ];
    let text = folder.path().join("text");
    fs::write(
        &text,
        "one two three four five six seven eight nine ten ".repeat(40),
    )
    .unwrap();
    let text = text.to_str().unwrap();
    for extra in [
        &["--calibrate", text][..],
        &["--calibrate", text, "--tune", "1"],
    ] {
        let report: Value =
            serde_json::from_str(&succeeds(&[&convert[..], extra].concat())).unwrap();
        assert!(report["relative_error"].as_f64().unwrap() > 0.0, "{report}");
        let manifest = fs::read_to_string(report["manifest"].as_str().unwrap()).unwrap();
        let manifest: Value = serde_json::from_str(&manifest).unwrap();
        let method = if extra.contains(&"--tune") {
            "calibrated, tuned"
        } else {
            "calibrated"
        };
        assert_eq!(manifest["quantization"]["method"], method);
        succeeds(&["inspect", out, "--verify"]);
    }
    fails(2, &[&convert[..], &["--tune", "1"]].concat());
    let error = fails(
        2,
        &[&convert[..], &["--calibrate", text, "--tune", "0"]].concat(),
    );
    assert!(error.contains("1..="), "{error}");
    // What is taken over as it is cannot be tuned, and norms that were tuned for something else would do harm.
    let other = folder.path().join("other");
    let demo = ["convert", "models/demo", "--out", other.to_str().unwrap()];
    let error = fails(
        2,
        &[&demo[..], &["--calibrate", text, "--tune", "1"]].concat(),
    );
    assert!(error.contains("is quantised already"), "{error}");
    fails(
        3,
        &[&convert[..], &["--calibrate", "no/such/text"]].concat(),
    );
    let short = folder.path().join("short");
    fs::write(&short, "a few words").unwrap();
    let error = fails(
        2,
        &[&convert[..], &["--calibrate", short.to_str().unwrap()]].concat(),
    );
    assert_eq!(error.lines().count(), 1, "{error}");
}

/// A command that a signal interrupts, whatever this process was told to ignore: a shell starts what runs in the background without
/// Ctrl-C, and the command respects that.
#[cfg(unix)]
fn interruptible(arguments: &[&str]) -> Command {
    use std::os::unix::process::CommandExt;

    let mut command = Command::new(env!("CARGO_BIN_EXE_apl-ffi"));
    command
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    let default = || {
        // SAFETY: the default action is no handler.
        unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
        Ok(())
    };
    // SAFETY: the call is one that may be made between fork and exec.
    unsafe { command.pre_exec(default) };
    command
}

/// Ctrl-C is answered between two tensors: the exit code says so, and the folder is as it was.
#[cfg(unix)]
#[test]
fn interrupted_while_converting() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    succeeds(&["convert", "models/stories", "--bits", "8", "--out", out]);
    let mut before = listed(folder.path());
    // Milliseconds at which the signal came too early, and too late; how soon that is depends on what else the machine does.
    let (mut early, mut late, mut answered) = (0.0, 400.0, 0);
    for attempt in 1..80 {
        let child = interruptible(&["convert", "models/stories", "--bits", "4", "--out", out])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // Somewhere between, elsewhere each time.
        let delay = early + (late - early) * (attempt as f64 * 0.618).fract();
        std::thread::sleep(std::time::Duration::from_secs_f64(delay / 1e3));
        // SAFETY: the process is our child and was not waited for, so its number is still its own.
        unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        match output.status.code() {
            // Before anything was begun: the signal itself.
            None => early = delay,
            Some(130) if said == "apl-ffi: interrupted: nothing was changed\n" => answered += 1,
            code => {
                // In place, or so and interrupted while it was checked.
                assert!(
                    code == Some(0) || code == Some(130) && said.contains("is written, and was"),
                    "{said}"
                );
                succeeds(&["inspect", out, "--verify"]);
                before = listed(folder.path());
                late = delay;
            }
        }
        assert_eq!(listed(folder.path()), before);
        if answered == 5 {
            return;
        }
        if late - early < 1.0 {
            (early, late) = (0.0, 2.0 * late.max(400.0));
        }
    }
    assert!(answered > 0, "no Ctrl-C came while it converted");
}

/// The names in a folder and the sizes of their files.
#[cfg(unix)]
fn listed(folder: &Path) -> Vec<(String, u64)> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let mut names: Vec<_> = entries
        .map(|e| {
            (
                e.file_name().into_string().unwrap(),
                e.metadata().unwrap().len(),
            )
        })
        .collect();
    names.sort();
    names
}

/// An end at any moment leaves the model that was there, and the next run removes what was left over.
#[cfg(unix)]
#[test]
fn killed_while_converting() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    succeeds(&["convert", "models/stories", "--bits", "8", "--out", out]);
    for delay in [0, 3, 6, 10, 15, 20, 30, 45, 60, 90] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_apl-ffi"))
            .args(["convert", "models/stories", "--bits", "4", "--out", out])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        let _ = child.kill();
        child.wait().unwrap();
        succeeds(&["inspect", out, "--verify"]);
    }
    succeeds(&["convert", "models/stories", "--bits", "4", "--out", out]);
    let names: Vec<String> = fs::read_dir(Path::new(out))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(!names.iter().any(|n| n.ends_with(".tmp")), "{names:?}");
    assert_eq!(
        names.iter().filter(|n| n.ends_with(".npz")).count(),
        1,
        "{names:?}"
    );
}

#[test]
fn a_model_compared_with_itself_and_with_what_it_is_not() {
    let same: Value = serde_json::from_str(&succeeds(&[
        "compare",
        "models/stories",
        "models/stories",
        "--bits",
        "32",
        "--json",
    ]))
    .unwrap();
    assert_eq!(same["kl_nats"], 0.0, "{same}");
    assert_eq!(same["logits_relative_error"], 0.0);
    assert_eq!(same["same_top"], 1.0);
    assert_eq!(same["perplexity"], same["reference_perplexity"]);
    let told = succeeds(&[
        "compare",
        "demo",
        "models/stories",
        "--text",
        "models/stories/README.md",
    ]);
    assert!(told.contains("same likeliest token"), "{told}");

    let other = "tests/data/models/qwen2.gguf";
    assert!(fails(2, &["compare", "demo", other]).contains("expected two forms of one model"));
    assert!(
        fails(
            3,
            &["compare", "demo", "models/stories", "--text", "no such"]
        )
        .contains("cannot be read")
    );
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.txt");
    fs::write(&empty, "").unwrap();
    let empty = empty.to_str().unwrap();
    assert!(
        fails(2, &["compare", "demo", "models/stories", "--text", empty])
            .contains("expected at least 2")
    );
}
