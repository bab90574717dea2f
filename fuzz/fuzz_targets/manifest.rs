//! The manifest's text: any bytes are read or refused. Its arrays would lie in a folder that is not there.

#![no_main]

use std::path::Path;

use apl_ffi::formats::manifest::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(file) = Manifest::new(data, Path::new("no-such-folder"), false) {
        for name in file.names() {
            let _ = file.matrix(name);
        }
    }
});
