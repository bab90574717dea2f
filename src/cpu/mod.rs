//! Kernels behind common contracts, and the detection of CPU features.

#[macro_use]
mod kernel_set;

mod dispatch;
mod float_mode;
pub mod l2_prefetch;
pub mod layout;
mod registry;
pub mod rows;
mod scalar;
mod short;
pub mod tile;
pub mod vector;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

pub use dispatch::{Core, Features, Isa, permit_amx};
pub use float_mode::Ieee;

/// The kernels of one level; a value proves that the processor has it.
#[derive(Clone, Copy)]
pub struct Kernels {
    /// Kernels for interleaved tiles.
    pub tiles: tile::TileKernels,
    /// Kernels for row-major weights.
    pub rows: rows::RowKernels,
    /// Kernels for vectors of activations.
    pub vector: vector::VectorKernels,
}

impl Kernels {
    /// The kernels of a level, or `None` where the processor lacks it. With `amx` they include the
    /// AMX kernels, if this process may use AMX.
    pub fn for_isa(isa: Isa, amx: bool) -> Option<Kernels> {
        Some(Kernels {
            tiles: tile::TileKernels::for_isa(isa, amx)?,
            rows: rows::RowKernels::for_isa(isa)?,
            vector: vector::VectorKernels::for_isa(isa)?,
        })
    }
}

/// Prefetches the cache line at an address, which need not be valid, into L2. No effect on other
/// architectures.
#[inline(always)]
pub fn prefetch_line<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has the instruction, and a prefetch never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
