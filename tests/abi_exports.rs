//! What the shared library shows, needs and promises to the loader, and that every entry point is guarded.

#[allow(dead_code, reason = "this program takes the names alone")]
#[path = "../build_support/prototypes.rs"]
mod prototypes;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use syn::{Expr, Item, Lit, ReturnType, Stmt, Visibility};

fn header_functions() -> BTreeSet<String> {
    let functions = prototypes::functions(include_str!("../include/apl_ffi.h")).unwrap();
    functions.into_iter().map(|f| f.name).collect()
}

/// Every function with the C calling convention, and the file it is in.
fn entry_points() -> Vec<(String, syn::ItemFn)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/abi");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let file = syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap();
        for item in file.items {
            if let Item::Fn(f) = item
                && f.sig.abi.is_some()
            {
                found.push((path.display().to_string(), f));
            }
        }
    }
    found
}

#[test]
fn every_entry_point_is_one_call_of_the_guard() {
    let mut names = BTreeSet::new();
    for (path, f) in entry_points() {
        let name = f.sig.ident.to_string();
        let what = format!("{name} in {path}");
        assert!(matches!(f.vis, Visibility::Public(_)), "{what}");
        let [Stmt::Expr(Expr::Call(call), None)] = &f.block.stmts[..] else {
            panic!("{what}: its body is not one call");
        };
        let Expr::Path(guard) = &*call.func else {
            panic!("{what}: calls no path");
        };
        let guard = guard
            .path
            .get_ident()
            .map(|i| i.to_string())
            .unwrap_or_default();
        match guard.as_str() {
            "guard" => {
                // The name is what the messages begin with.
                let Some(Expr::Lit(literal)) = call.args.first() else {
                    panic!("{what}: the guard gets no name");
                };
                assert!(
                    matches!(&literal.lit, Lit::Str(s) if s.value() == name),
                    "{what}"
                );
            }
            "guard_or" | "guard_unrecorded" => {}
            other => panic!("{what}: its body is a call of {other}"),
        }
        assert!(matches!(call.args.last(), Some(Expr::Closure(_))), "{what}");
        assert!(matches!(f.sig.output, ReturnType::Type(..)), "{what}");
        assert!(names.insert(name));
    }
    assert_eq!(names, header_functions());
}

/// The library that cargo built beside this test.
#[cfg(target_os = "linux")]
fn library() -> Vec<u8> {
    let path = std::env::current_exe()
        .unwrap()
        .with_file_name("libapl_ffi.so");
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[cfg(target_os = "linux")]
#[test]
fn it_exports_the_functions_of_the_header_and_nothing_else() {
    use object::{Object, ObjectSymbol};
    let bytes = library();
    let file = object::File::parse(&*bytes).unwrap();
    let exported: BTreeSet<String> = file
        .dynamic_symbols()
        .filter(|s| s.is_definition() && s.is_global())
        .map(|s| s.name().unwrap().to_owned())
        .collect();
    assert_eq!(exported, header_functions());
}

#[cfg(target_os = "linux")]
#[test]
fn it_needs_nothing_but_the_system_and_stays_loaded() {
    use object::elf::{DF_1_NODELETE, DT_FLAGS_1, DT_NEEDED, DT_SONAME, FileHeader64};
    use object::read::elf::{Dyn, FileHeader};
    let bytes = library();
    let header = FileHeader64::<object::Endianness>::parse(&*bytes).unwrap();
    let endian = header.endian().unwrap();
    let sections = header.sections(endian, &*bytes).unwrap();
    let (dynamic, link) = sections.dynamic(endian, &*bytes).unwrap().unwrap();
    let strings = sections.strings(endian, &*bytes, link).unwrap();
    let text = |d: &object::elf::Dyn64<object::Endianness>| {
        String::from_utf8(d.string(endian, strings).unwrap().to_vec()).unwrap()
    };
    let all = |tag| dynamic.iter().filter(move |d| d.tag(endian) == tag);

    for needed in all(DT_NEEDED).map(text) {
        let system = ["libc.so", "libm.so", "libgcc_s.so", "ld-linux"];
        assert!(
            system.iter().any(|s| needed.starts_with(s)),
            "needs {needed}"
        );
    }
    let abi = prototypes::abi_version(include_str!("../include/apl_ffi.h")).unwrap();
    let sonames: Vec<String> = all(DT_SONAME).map(text).collect();
    assert_eq!(sonames, [format!("libapl_ffi.so.{abi}")]);
    let flags = all(DT_FLAGS_1).next().map_or(0, |d| d.d_val.get(endian));
    assert_eq!(flags & DF_1_NODELETE.0, DF_1_NODELETE.0);
}

/// An intrinsic that is called has been left in a function without its features, such as a closure
/// for `array::map`, and its kernel takes a multiple of the time.
#[cfg(all(target_os = "linux", target_arch = "x86_64", not(debug_assertions)))]
#[test]
fn every_intrinsic_is_inlined() {
    use object::{Object, ObjectSymbol};
    let bytes = library();
    let file = object::File::parse(&*bytes).unwrap();
    let names: Vec<&str> = file.symbols().map(|s| s.name().unwrap()).collect();
    assert!(
        names.iter().any(|name| name.contains("avx2")),
        "there are no symbols"
    );
    let called: Vec<_> = (names.into_iter())
        .filter(|name| name.contains("core_arch") && name.contains("__mm"))
        .collect();
    assert!(called.is_empty(), "{called:#?}");
}
