//! What a configured library is: the resolved configuration, the instruction set and the threads.

mod config;
mod pool;

pub use config::{BackendChoice, Config};
pub use pool::{Pool, Team};

use crate::cpu::Isa;
use crate::error::Result;

/// A configured library. Everything that multiplies takes one by reference.
pub struct Runtime {
    config: Config,
    isa: Isa,
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
        let pool = Pool::new(config.resolve_threads())?;
        Ok(Runtime { config, isa, pool })
    }

    /// The configuration it was made from.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The instruction-set level in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The threads.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }
}
