//! `apl-ffi info`

use clap::Args;
use serde_json::{Value, json};

use apl_ffi::cpu::Isa;
use apl_ffi::runtime::Runtime;

use crate::Outcome;
use crate::terminal::say;

/// Show what this build is, and what it uses on this machine.
#[derive(Args)]
pub struct Arguments {
    /// As JSON; docs/json.md says what its keys mean.
    #[arg(long)]
    json: bool,
}

/// Prints the version, the backend, the devices, the instruction set and the number of threads.
pub fn run(rt: &Runtime, a: &Arguments) -> Outcome {
    let r = rt.resolved();
    let available: Vec<&str> = Isa::ALL
        .into_iter()
        .filter(|isa| isa.available())
        .map(Isa::name)
        .collect();
    let devices: Vec<Value> = rt
        .gpus()
        .iter()
        .map(|gpu| gpu.device().describe())
        .collect();
    if a.json {
        say!(
            "{:#}",
            json!({"version": env!("CARGO_PKG_VERSION"), "abi": env!("APL_FFI_ABI").parse::<u32>().ok(), "backend": r.backend().name(), "backend_reason": r.reason, "isa": rt.isa().name(),
                   "isa_available": available, "amx": rt.amx(), "threads": rt.pool().threads(), "cuda": devices.first(), "devices": devices})
        )?;
        return Ok(());
    }
    say!("apl_ffi {}", env!("CARGO_PKG_VERSION"))?;
    say!("backend {} ({})", r.backend().name(), r.reason)?;
    for gpu in rt.gpus() {
        let about = gpu.device().about();
        say!(
            "device {}, {}, kernels for {}",
            about.ordinal,
            about.name,
            about.image
        )?;
    }
    say!(
        "instruction set {}{} (there are {})",
        rt.isa().name(),
        if rt.amx() { " and AMX" } else { "" },
        available.join(", ")
    )?;
    say!("threads {}", rt.pool().threads())?;
    Ok(())
}
