//! Kernels behind one contract, and the one place that asks what the processor can do.

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

/// The kernels of one level; that a value exists proves that the processor has it.
#[derive(Clone, Copy)]
pub struct Kernels {
    /// Those of the interleaved tiles.
    pub tiles: tile::TileKernels,
    /// Those of row-major weights.
    pub rows: rows::RowKernels,
    /// Those of vectors of activations.
    pub vector: vector::VectorKernels,
}

impl Kernels {
    /// The kernels of a level, or `None` where the processor lacks it; with `amx`, and those of AMX, if this process may use it.
    pub fn for_isa(isa: Isa, amx: bool) -> Option<Kernels> {
        Some(Kernels {
            tiles: tile::TileKernels::for_isa(isa, amx)?,
            rows: rows::RowKernels::for_isa(isa)?,
            vector: vector::VectorKernels::for_isa(isa)?,
        })
    }
}

/// Prefetches the cache line at an address, which may be any; without effect where the processor has no such instruction.
#[inline(always)]
pub fn prefetch_line<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has it, and it reads nothing.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
