//! The GGUF container and its blocks: any bytes are read or refused, never a panic or a huge allocation.

#![no_main]

use apl_ffi::formats::gguf::Gguf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(file) = Gguf::new(data.to_vec().into()) {
        for name in file.names() {
            let _ = file.matrix(name);
        }
    }
});
