//! Kernels behind one contract, and the one place that asks what the processor can do.

#[macro_use]
mod kernel_set;

mod dispatch;
pub mod layout;
pub mod rows;
mod scalar;
mod short;
pub mod tile;
pub mod vector;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

pub use dispatch::{Features, Isa};

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
    /// The kernels of a level, or `None` where the processor lacks it.
    pub fn for_isa(isa: Isa) -> Option<Kernels> {
        Some(Kernels {
            tiles: tile::TileKernels::for_isa(isa)?,
            rows: rows::RowKernels::for_isa(isa)?,
            vector: vector::VectorKernels::for_isa(isa)?,
        })
    }
}
