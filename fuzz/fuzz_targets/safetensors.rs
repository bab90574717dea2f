//! The safetensors header: any bytes are read or refused, never a panic or a huge allocation.

#![no_main]

use apl_ffi::formats::safetensors::SafeTensors;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(file) = SafeTensors::new(data.to_vec().into()) {
        for name in file.names() {
            let _ = file.matrix(name);
        }
    }
});
