//! What a configured library is: the resolved configuration, the instruction set and the threads.

mod config;
mod crew;
mod panic_scope;
mod pool;
mod signals;

pub use config::{BackendChoice, Config};
pub use pool::{Pool, Team};

use crate::cpu::Isa;
use crate::cpu::tile::TileKernels;
use crate::error::Result;

/// A configured library. Everything that multiplies takes one by reference.
pub struct Runtime {
    config: Config,
    kernels: TileKernels,
    pool: Pool,
}

impl Runtime {
    /// Starts the threads that `config` asks for.
    ///
    /// # Errors
    /// `ERR_UNSUPPORTED` for an instruction set the processor lacks, `ERR_BACKEND` if CUDA is demanded,
    /// `ERR_MEMORY` if a thread cannot be started.
    pub fn new(config: Config) -> Result<Runtime> {
        let isa = config.resolve_isa()?;
        let kernels = TileKernels::for_isa(isa).expect("resolve_isa asked the processor");
        let pool = Pool::new(config.resolve_threads())?;
        Ok(Runtime { config, kernels, pool })
    }

    /// The configuration it was made from.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The instruction-set level in use.
    pub fn isa(&self) -> Isa {
        self.kernels.isa()
    }

    /// The kernels in use.
    pub fn tile_kernels(&self) -> &TileKernels {
        &self.kernels
    }

    /// The threads.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }
}
