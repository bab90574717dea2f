//! The npz container and its arrays: any bytes are read or refused, never a panic or a huge allocation.

#![no_main]

use apl_ffi::formats::npz::Npz;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(file) = Npz::new(data.to_vec().into()) {
        let _ = file.verify();
    }
});
