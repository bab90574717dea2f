//! The README and the documents say what is: its C example compiles and prints what the text says, its table of statuses is the header's, and
//! the targets it names exist.

use std::fs;
use std::path::Path;
use std::process::Command;

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The first code block of a language.
fn block<'a>(text: &'a str, language: &str) -> &'a str {
    let start = text
        .find(&format!("```{language}\n"))
        .expect("a code block")
        + language.len()
        + 4;
    &text[start..start + text[start..].find("```").expect("its end")]
}

#[cfg(unix)]
#[test]
fn the_example_prints_what_the_text_says() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("readme");
    fs::create_dir_all(&folder).unwrap();
    let (source, program) = (folder.join("example.c"), folder.join("example"));
    fs::write(&source, block(&read("README.md"), "c")).unwrap();

    // Beside the test program; the program asks for it by its soname.
    let built = std::env::current_exe()
        .unwrap()
        .with_file_name("libapl_ffi.so");
    let soname = folder.join("libapl_ffi.so.1");
    let _ = fs::remove_file(&soname);
    std::os::unix::fs::symlink(&built, &soname).unwrap();

    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let compiled = Command::new(compiler)
        .args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("include"))
        .args([&source, &built])
        .arg("-o")
        .arg(&program)
        .output()
        .expect("a C compiler");
    assert!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    let run = Command::new(&program)
        .env("LD_LIBRARY_PATH", &folder)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&run.stdout);
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines, ["-0.5 1.5", "-1.0 0.0"]);
    let sentence = format!("It prints `{}` and `{}`", lines[0], lines[1]);
    assert!(
        read("README.md").contains(&sentence),
        "the README does not say: {sentence}"
    );
}

#[test]
fn the_table_of_statuses_is_that_of_the_header() {
    let header = read("include/apl_ffi.h");
    let in_header: Vec<(String, String)> = header
        .lines()
        .filter_map(|line| line.strip_prefix("#define APL_FFI_"))
        .filter(|line| line.starts_with("OK") || line.starts_with("ERR_"))
        .map(|line| {
            let (name, value) = line.split_once(' ').unwrap();
            (
                format!("`APL_FFI_{name}`"),
                value.trim_matches(['(', ')']).to_owned(),
            )
        })
        .collect();
    assert_eq!(in_header.len(), 14);
    let readme = read("README.md");
    for (name, value) in in_header {
        let row = format!("| {value} | {name} |");
        assert!(readme.contains(&row), "the README lacks: {row}");
    }
}

#[test]
fn the_targets_it_names_exist() {
    let (readme, makefile) = (read("README.md"), read("Makefile"));
    let named = readme.split("make ").skip(1).filter_map(|rest| {
        rest.split(|c: char| !c.is_ascii_lowercase())
            .next()
            .filter(|word| !word.is_empty())
    });
    let mut seen = 0;
    for target in named {
        assert!(
            makefile.contains(&format!("\n{target}:")),
            "the Makefile has no {target}"
        );
        seen += 1;
    }
    assert!(seen >= 5, "the README names its commands");
}

#[test]
fn documents_show_the_committed_results() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let run = Command::new("python3")
        .args(["tools/render_results.py", "--check"])
        .current_dir(root)
        .output();
    match run {
        Ok(run) => {
            let (said, error) = (
                String::from_utf8_lossy(&run.stdout),
                String::from_utf8_lossy(&run.stderr),
            );
            assert!(run.status.success(), "{error}");
            assert!(said.contains("tables are those of bench/results"), "{said}");
        }
        Err(e) => eprintln!("SKIPPED: python3 is not here ({e}), and the tables were not rendered"),
    }
}
