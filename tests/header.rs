//! The committed C header is what the sources generate, and compilers take it without a warning.
//!
//! `APL_FFI_BLESS=1 cargo test --test header` writes it anew.

#[path = "../build_support/prototypes.rs"]
mod prototypes;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The sections of the header, each from one file.
const SECTIONS: [(&str, &str); 7] = [
    ("Version and statuses", "status"),
    (
        "Life cycle, errors, and what the library says about itself",
        "lifecycle",
    ),
    (
        "One-shot products: the weights come with the call",
        "oneshot",
    ),
    ("Quantising", "quantizing"),
    (
        "Weight handles: a matrix converted once, then multiplied with often",
        "weights",
    ),
    ("Models: a language model in memory", "models"),
    ("Sessions: a conversation with a model", "sessions"),
];

/// The longest line of the header.
const WIDTH: usize = 100;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn committed() -> String {
    fs::read_to_string(root().join("include/apl_ffi.h")).unwrap()
}

fn generate() -> String {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    let section_config = cbindgen::Config {
        header: None,
        trailer: None,
        ..config.clone()
    };
    let mut text = config.header.unwrap().trim_start().to_owned();
    for (title, file) in SECTIONS {
        let mut section = Vec::new();
        cbindgen::Builder::new()
            .with_config(section_config.clone())
            .with_src(root().join(format!("src/abi/{file}.rs")))
            .generate()
            .unwrap()
            .write(&mut section);
        let section = String::from_utf8(section).unwrap();
        text += &format!(
            "\n/* ---- {title} {:-<width$} */\n\n",
            "",
            width = WIDTH - "/* ----   */".len() - title.len()
        );
        text += &tidy(section.trim());
    }
    text + "\n" + config.trailer.unwrap().trim_start()
}

/// What cbindgen has no option for: `#define NAME (-1)`, whose parentheses keep its meaning in any
/// expression, one-line comments on one line, and prototypes wrapped between arguments.
fn tidy(section: &str) -> String {
    let mut text = String::new();
    let mut lines = section.lines().peekable();
    while let Some(line) = lines.next() {
        let comment = lines.next_if(|next| line == "/**" && next.starts_with(" * "));
        if let Some(comment) = comment {
            if lines.next_if_eq(&" */").is_some() {
                text += &format!("/**{} */\n", &comment[2..]);
            } else {
                text += &format!("/**\n{comment}\n");
            }
        } else if let Some((define, digits)) = line.split_once(" -")
            && define.starts_with("#define ")
        {
            text += &format!("{define} (-{digits})\n");
        } else if line.len() > WIDTH && line.ends_with(");") && !line.starts_with(" *") {
            let indent = line.find('(').unwrap() + 1;
            let mut column = 0;
            for argument in line.split_inclusive(", ") {
                if column + argument.trim_end().len() > WIDTH {
                    text.truncate(text.trim_end().len());
                    text += &format!("\n{:indent$}", "");
                    column = indent;
                }
                text += argument;
                column += argument.len();
            }
            text += "\n";
        } else {
            text += line;
            text += "\n";
        }
    }
    text
}

#[test]
fn the_header_is_what_the_sources_generate() {
    let generated = generate();
    if env::var_os("APL_FFI_BLESS").is_some() {
        fs::write(root().join("include/apl_ffi.h"), generated).unwrap();
        return;
    }
    let committed = committed();
    for (i, (new, old)) in generated.lines().zip(committed.lines()).enumerate() {
        assert_eq!(
            new,
            old,
            "include/apl_ffi.h, line {}: run `make header`",
            i + 1
        );
    }
    assert_eq!(generated, committed, "run `make header`");
}

/// The prototypes that checks outside of this project are compiled against.
#[test]
fn the_prototypes_are_those_of_the_contract() {
    let functions = prototypes::functions(&committed()).unwrap();
    let prototypes: Vec<&str> = functions.iter().map(|f| f.c.as_str()).collect();
    let contract: Vec<&str> = include_str!("abi_v1.txt").lines().collect();
    assert_eq!(prototypes, contract);
    for f in functions {
        assert!(f.doc.ends_with('.'), "{}: {}", f.name, f.doc);
    }
}

#[test]
fn declarations_for_apl_follow_from_the_types() {
    let functions = prototypes::functions(&committed()).unwrap();
    let na = |name: &str| {
        functions
            .iter()
            .find(|f| f.name == name)
            .unwrap()
            .na
            .as_str()
    };
    assert_eq!(na("apl_ffi_abi_version"), "I4 %P|apl_ffi_abi_version");
    assert_eq!(na("apl_ffi_init"), "I4 %P|apl_ffi_init <0UTF8[]");
    assert_eq!(na("apl_ffi_info"), "I4 %P|apl_ffi_info >0UTF8[] I4");
    assert_eq!(na("apl_ffi_status_text"), "P %P|apl_ffi_status_text I4");
    assert_eq!(
        na("apl_matmul_q"),
        "I4 %P|apl_matmul_q <U1[] I8 I4 I4 <F4[] I8 <I4[] I8 <F4[] I8 >F4[] I8 I8 I8 I4"
    );
    assert_eq!(
        na("apl_quantize"),
        "I4 %P|apl_quantize <F4[] I8 I8 I8 I4 I4 I4 >U1[] I8 >F4[] I8 >I4[] I8"
    );
    assert_eq!(
        na("apl_weights_from_f64"),
        "I4 %P|apl_weights_from_f64 <F8[] I8 I8 I8 <0UTF8[] >I4"
    );
    assert_eq!(
        na("apl_matmul_f64"),
        "I4 %P|apl_matmul_f64 I4 <F8[] I8 >F8[] I8 I8"
    );
}

#[test]
fn what_the_reader_does_not_know_is_an_error() {
    for bad in [
        "/** d */ int32_t f(size_t n);",
        "/** d */ int32_t f(const float *x, int64_t n);",
        "/** d */ int32_t f(char *text, int32_t n);",
        "/** d */ void *f(void);",
        "/** d */ struct s;",
        "/** */ int32_t f(void);",
        "/** d",
    ] {
        assert!(prototypes::functions(bad).is_err(), "{bad}");
    }
    assert!(prototypes::abi_version("").is_err());
}

fn compiler(variable: &str, default: &str) -> Option<String> {
    let name = env::var(variable).unwrap_or_else(|_| default.to_owned());
    let there = Command::new(&name).arg("--version").output().is_ok();
    if !there {
        eprintln!("SKIPPED: there is no compiler {name}");
    }
    there.then_some(name)
}

fn strict(compiler: &str, standard: &str) -> Command {
    let mut command = Command::new(compiler);
    command
        .arg(format!("-std={standard}"))
        .args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-I"])
        .arg(root().join("include"));
    command
}

fn temporary(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

#[test]
fn compilers_take_it_without_a_warning() {
    for (variable, default, standard) in [
        ("CC", "cc", "c99"),
        ("CC", "cc", "c17"),
        ("CXX", "c++", "c++17"),
    ] {
        let Some(compiler) = compiler(variable, default) else {
            continue;
        };
        let extension = if variable == "CC" { "c" } else { "cpp" };
        let source = temporary(&format!("includes_header.{extension}"));
        fs::write(&source, "#include <apl_ffi.h>\n#include <apl_ffi.h>\n").unwrap();
        let output = strict(&compiler, standard)
            .arg("-fsyntax-only")
            .arg(&source)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{compiler} {standard}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// The programs in the comment at the top of the header.
#[cfg(target_os = "linux")]
fn examples() -> Vec<String> {
    let header = committed();
    let (preamble, _) = header.split_once("*/").unwrap();
    let mut programs: Vec<String> = Vec::new();
    let mut inside = false;
    for line in preamble.lines() {
        let line = line.strip_prefix(" *").unwrap_or("");
        if line == "     #include <apl_ffi.h>" {
            programs.push(String::new());
            inside = true;
        }
        inside &= line.is_empty() || line.starts_with("     ");
        if inside {
            let program = programs.last_mut().unwrap();
            program.push_str(line);
            program.push('\n');
        }
    }
    programs
}

/// Compiles an example and links it with the library beside this test; gives the program.
#[cfg(target_os = "linux")]
fn compiled(compiler: &str, name: &str, example: &str) -> Command {
    let folder = temporary(name);
    fs::create_dir_all(&folder).unwrap();
    let (source, program) = (folder.join("example.c"), folder.join("example"));
    fs::write(&source, example).unwrap();

    let built = env::current_exe().unwrap().with_file_name("libapl_ffi.so");
    let abi = prototypes::abi_version(&committed()).unwrap();
    // The dynamic linker looks for the soname.
    let soname = folder.join(format!("libapl_ffi.so.{abi}"));
    let _ = fs::remove_file(&soname);
    std::os::unix::fs::symlink(&built, &soname).unwrap();

    let output = strict(compiler, "c99")
        .args([&source, &built])
        .arg("-o")
        .arg(&program)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut run = Command::new(&program);
    run.env("LD_LIBRARY_PATH", &folder);
    run
}

/// Runs a program, which must succeed, and gives what it prints.
#[cfg(target_os = "linux")]
fn printed(program: &mut Command) -> String {
    let output = program.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn the_examples_of_the_header_run() {
    let Some(compiler) = compiler("CC", "cc") else {
        return;
    };
    let examples = examples();
    let [product, session] = &examples[..] else {
        panic!("the header has {} examples, expected 2", examples.len());
    };
    assert_eq!(
        printed(&mut compiled(&compiler, "product", product)),
        "10.5 138\n"
    );
    let mut session = compiled(&compiler, "session", session);
    session.arg(root().join("models/demo"));
    let story = printed(session.arg("Once upon a time"));
    assert!(story.starts_with(", there was a "), "{story}");
}

#[test]
fn lines_are_at_most_100_columns() {
    for (i, line) in committed().lines().enumerate() {
        assert!(line.chars().count() <= WIDTH, "line {}: {line}", i + 1);
    }
}
