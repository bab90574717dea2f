//! The APL side, proved as far as it can be without Dyalog: the source is checked, its `⎕NA` declarations are held
//! against the C header, and the shared library is called through them the way the interpreter does.

mod c_header;
mod calls;
mod checker;
mod declaration;
mod guarded;
mod interpreter;
mod loading;
mod source;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use c_header::{Prototype, disagreements, prototypes};
use declaration::Declaration;
use interpreter::{Item, Workspace};
use source::Namespace;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The library that cargo built beside this test.
fn library() -> String {
    let path = std::env::current_exe()
        .unwrap()
        .with_file_name("libapl_ffi.so");
    path.to_str().expect("a path in UTF-8").to_owned()
}

fn namespace_text() -> String {
    fs::read_to_string(root().join("apl/AplFfi.apln")).unwrap()
}

fn namespace() -> Namespace {
    Namespace::parse(&namespace_text()).unwrap_or_else(|e| panic!("apl/AplFfi.apln, {e}"))
}

fn header() -> Vec<Prototype> {
    prototypes(&fs::read_to_string(root().join("include/apl_ffi.h")).unwrap())
}

/// The state of the library belongs to the process, and an interpreter makes one plain call at a time.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A workspace in which `Init` has associated all that the source declares.
fn workspace() -> Workspace {
    let mut workspace = Workspace::default();
    for (name, declaration, _) in namespace().declarations() {
        workspace
            .associate(&name, &declaration, &library())
            .unwrap();
    }
    workspace
}

/// The text of a function that fills a buffer, asked for as the namespace does it.
fn filled(workspace: &Workspace, name: &str, first: &[Item]) -> String {
    let ask = |room: usize| {
        let items: Vec<Item> = first
            .iter()
            .cloned()
            .chain([room.into(), room.into()])
            .collect();
        workspace.call(name, &items).unwrap()
    };
    let answer = ask(16);
    let needed = answer[0].number();
    assert!(needed >= 0.0, "{name} gave {needed}");
    if needed < 16.0 {
        return answer[1].text().to_owned();
    }
    let again = ask(needed as usize + 1);
    assert_eq!(again[0].number(), needed);
    assert_eq!(again[1].text().len(), needed as usize);
    again[1].text().to_owned()
}

#[test]
fn the_source_has_no_fault() {
    let mut found = Vec::new();
    let mut seen = 0;
    let mut folders: Vec<PathBuf> = vec![root().join("apl")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let is_apl = path
                .extension()
                .is_some_and(|e| ["apln", "aplf", "apls"].iter().any(|a| e == *a));
            if is_apl {
                seen += 1;
                let bytes = fs::read(&path).unwrap();
                let text = String::from_utf8_lossy(&bytes);
                // The first line of a script is the system's.
                let text = match text.strip_prefix("#!") {
                    Some(script) => format!("⍝{script}"),
                    None => text.into_owned(),
                };
                let faults = checker::text_faults(text.as_bytes());
                for fault in faults.into_iter().chain(checker::structure_faults(&text)) {
                    found.push(format!("{}: {fault}", path.display()));
                }
            }
        }
    }
    assert!(seen >= 1);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_namespace_is_consistent() {
    let space = namespace();
    let declared = space
        .declarations()
        .into_iter()
        .map(|(name, ..)| name)
        .collect();
    let faults = checker::namespace_faults(&space, &declared);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Names, numbers of arguments, widths, signs, directions, constness; and the prototype that stands above.
#[test]
fn every_declaration_is_what_the_header_says() {
    let header = header();
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (name, text, comment) in namespace().declarations() {
        let d = Declaration::parse(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(d.library, "%P", "{name}");
        assert_eq!(d.threaded, name.ends_with("_T"), "{name}");
        let Some(c) = header.iter().find(|c| c.name == d.function) else {
            wrong.push(format!("{name}: the header has no {}", d.function));
            continue;
        };
        if comment != c.text {
            wrong.push(format!(
                "{name}: the comment says {comment}, the header {}",
                c.text
            ));
        }
        let said = disagreements(&d, c);
        wrong.extend(said.into_iter().map(|what| format!("{name}: {what}")));
        checked += 1;
    }
    assert!(checked > 20);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What `apl_ffi_describe` gives, read through `⎕NA` as APL would, agrees with the header too.
#[test]
fn so_is_what_the_library_says_of_itself() {
    let _turn = turn();
    let mut workspace = workspace();
    workspace
        .associate("describe", "I4 %P|apl_ffi_describe >0UTF8[] I4", &library())
        .unwrap();
    let described: serde_json::Value =
        serde_json::from_str(&filled(&workspace, "describe", &[])).unwrap();
    let described = described["functions"].as_array().unwrap();
    let header = header();
    assert_eq!(described.len(), header.len());
    for (f, c) in described.iter().zip(&header) {
        let text = |key: &str| f[key].as_str().unwrap();
        assert_eq!(
            (text("name"), text("c")),
            (c.name.as_str(), c.text.as_str())
        );
        let d = Declaration::parse(text("na")).unwrap();
        assert_eq!(disagreements(&d, c), [""; 0], "{}", text("na"));
        workspace
            .associate(text("name"), text("na"), &library())
            .unwrap();
    }
}

/// The manual has a row for each function that a user calls, which are those that signal, and for no other.
#[test]
fn the_manual_lists_every_function() {
    let manual = fs::read_to_string(root().join("apl/README.md")).unwrap();
    let (_, section) = manual.split_once("\n## Functions\n").unwrap();
    let rows: Vec<&str> = section
        .lines()
        .take_while(|line| !line.starts_with("## "))
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .filter(|name| name.chars().all(|c| c.is_ascii_alphanumeric()))
        .collect();
    let space = namespace();
    let public: Vec<&str> = space
        .functions
        .iter()
        .filter(|f| f.uses_system("⎕SIGNAL"))
        .map(|f| f.name.as_str())
        .collect();
    let sorted = |mut names: Vec<&str>| -> Vec<String> {
        names.sort_unstable();
        names.into_iter().map(str::to_owned).collect()
    };
    assert_eq!(sorted(rows), sorted(public));
}

/// What Tatin asks of a package: the keys that it requires, files that are there, the version of the crate.
#[test]
fn the_package_is_what_tatin_asks() {
    let text = fs::read_to_string(root().join("apl/apl-package.json")).unwrap();
    let value = |key: &str| -> String {
        let line = text
            .lines()
            .find_map(|l| l.trim().strip_prefix(&format!("{key}: ")));
        let line = line.unwrap_or_else(|| panic!("{key} is missing"));
        line.trim_end_matches(',').trim_matches('"').to_owned()
    };
    for required in ["description", "tags", "group", "name", "license"] {
        assert!(!value(required).is_empty(), "{required}");
    }
    assert_eq!(value("version"), env!("CARGO_PKG_VERSION"));
    assert_eq!((value("io"), value("ml")), ("0".to_owned(), "1".to_owned()));
    for file in [value("source"), value("assets"), value("documentation")] {
        assert!(root().join("apl").join(&file).exists(), "{file}");
    }
    assert!(namespace_text().contains("⎕IO←0 ⋄ ⎕ML←1"));
}
