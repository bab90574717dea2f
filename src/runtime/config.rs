//! The configuration: JSON of `apl_ffi_init`, then the environment, then the defaults.

use crate::cpu::Isa;
use crate::error::{Error, Result};

/// Which backend a configuration asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendChoice {
    /// CUDA where it works, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// CUDA or an error.
    Cuda,
}

/// What a configuration asks for; `None` stands for the default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Which backend.
    pub backend: BackendChoice,
    /// The CUDA device ordinal.
    pub device: u32,
    /// Threads, the calling one included; 0: the processors this process may use.
    pub threads: usize,
    /// The instruction set; `None`: the best.
    pub isa: Option<Isa>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            backend: BackendChoice::Auto,
            device: 0,
            threads: 0,
            isa: None,
        }
    }
}

impl Config {
    pub(super) fn resolve_isa(&self) -> Result<Isa> {
        match self.isa {
            None => Ok(Isa::best()),
            Some(isa) if isa.available() => Ok(isa),
            Some(isa) => Err(Error::unsupported(format!(
                "isa is \"{isa}\", this processor offers at most \"{}\"",
                Isa::best()
            ))),
        }
    }

    pub(super) fn resolve_threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n => n,
        }
    }
}
