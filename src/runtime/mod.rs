//! A configured library: the resolved configuration, the devices, the instruction set and the
//! threads.

mod config;
mod fork_join;
mod panic_scope;
mod pool;

pub use config::{Backend, BackendChoice, Config, MAX_THREADS, Resolved};
pub(crate) use panic_scope::{enter_library, quietly};
pub use pool::{Executor, Pool, Shared, Team};

use std::sync::Arc;

use crate::cpu::tile::TileKernels;
use crate::cpu::{Isa, Kernels};
use crate::cuda::Gpu;
use crate::error::Result;

/// A configured library. Everything that multiplies takes a reference to one.
pub struct Runtime {
    resolved: Resolved,
    kernels: Kernels,
    pool: Pool,
}

impl Runtime {
    /// Resolves `config` and starts its threads.
    ///
    /// # Errors
    /// `ERR_UNSUPPORTED` for an instruction set the processor lacks, `ERR_BACKEND` if CUDA is
    /// demanded and cannot be used, `ERR_MEMORY` if a thread cannot be started.
    pub fn new(config: Config) -> Result<Runtime> {
        Runtime::from_resolved(config.resolve(&[])?)
    }

    /// Starts the threads of a resolved configuration.
    ///
    /// # Errors
    /// `ERR_MEMORY` if a thread cannot be started.
    pub fn from_resolved(resolved: Resolved) -> Result<Runtime> {
        let kernels = Kernels::for_isa(resolved.isa, resolved.amx);
        let kernels = kernels.expect("resolve asked the processor");
        let pool = Pool::new(resolved.threads)?;
        Ok(Runtime {
            resolved,
            kernels,
            pool,
        })
    }

    /// Replaces the tile kernels, by those meant for another core: for tests and measurements.
    pub fn with_tiles(self, tiles: TileKernels) -> Runtime {
        let kernels = Kernels {
            tiles,
            ..self.kernels
        };
        Runtime { kernels, ..self }
    }

    /// The resolved configuration. Two configurations request the same library if they resolve to
    /// equal ones.
    pub fn resolved(&self) -> &Resolved {
        &self.resolved
    }

    /// The devices in use, in the order of the configuration; none on the CPU.
    pub fn gpus(&self) -> &[Arc<Gpu>] {
        &self.resolved.gpus
    }

    /// The instruction-set level in use.
    pub fn isa(&self) -> Isa {
        self.resolved.isa
    }

    /// Whether AMX is used too.
    pub fn amx(&self) -> bool {
        self.kernels.tiles.amx().is_some()
    }

    /// The kernels in use.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// The threads.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }
}
