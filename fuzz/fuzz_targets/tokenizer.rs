//! A tokenizer: any bytes are read or refused, and what is read encodes and decodes, never a panic or a huge allocation.

#![no_main]

use apl_ffi::tokenizer::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(tokenizer) = Tokenizer::from_json(data) {
        if let Ok(ids) = tokenizer.encode("Once upon a time, naïve ⎕NA\n", tokenizer.begins()) {
            let _ = tokenizer.decode(&ids);
        }
        let all: Vec<u32> = (0..tokenizer.vocabulary().min(64) as u32).collect();
        let _ = tokenizer.decode(&all);
    }
});
