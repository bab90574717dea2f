//! What `Cargo.toml` cannot express: the name and the flags of the shared library, and its
//! description of its own functions. The result does not depend on the machine or the network.

#[path = "build_support/prototypes.rs"]
mod prototypes;

use std::env;
use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let header_path = Path::new("include/apl_ffi.h");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build_support/prototypes.rs");
    println!("cargo::rerun-if-changed={}", header_path.display());
    let header = fs::read_to_string(header_path)?;

    let abi = prototypes::abi_version(&header)?;
    // For the command line, which has nothing of `src/abi/`.
    println!("cargo::rustc-env=APL_FFI_ABI={abi}");
    link(abi, &env::var("CARGO_CFG_TARGET_OS")?);

    let mut functions = "&[\n".to_owned();
    for f in prototypes::functions(&header)? {
        writeln!(
            functions,
            "    Function {{ name: {:?}, c: {:?}, na: {:?}, doc: {:?} }},",
            f.name, f.c, f.na, f.doc
        )?;
    }
    functions += "]\n";
    fs::write(
        Path::new(&env::var("OUT_DIR")?).join("functions.rs"),
        functions,
    )?;
    Ok(())
}

/// Puts the number of the ABI into the soname. A version script is not needed: rustc exports the
/// `no_mangle` symbols of a cdylib and hides the others.
fn link(abi: u32, os: &str) {
    let arguments: &[String] = match os {
        "windows" => &[],
        "macos" => &[format!("-Wl,-install_name,@rpath/libapl_ffi.{abi}.dylib")],
        _ => &[
            format!("-Wl,-soname,libapl_ffi.so.{abi}"),
            // APL unloads a library when its last function is erased; if a thread of the library is
            // running then, the process would crash.
            "-Wl,-z,nodelete".to_owned(),
        ],
    };
    for argument in arguments {
        println!("cargo::rustc-cdylib-link-arg={argument}");
    }
}
