//! The vector kernels that a processor uses.

use super::{VectorKernels, scalar};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::cpu::Isa;
#[cfg(target_arch = "x86_64")]
use crate::cpu::dispatch::{Core, Features};

impl VectorKernels {
    /// The kernels of a level, or `None` where the processor lacks it.
    pub fn for_isa(isa: Isa) -> Option<VectorKernels> {
        let table = match isa {
            _ if !isa.available() => return None,
            Isa::Scalar => &scalar::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &avx2::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if Features::detect().core() == Core::Zen4 => &avx512::ZEN4,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &avx512::TABLE,
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => return None,
        };
        Some(VectorKernels { table })
    }

    /// The kernels of every level that the processor has, and of every kind of core.
    #[cfg(test)]
    pub(super) fn variants() -> Vec<VectorKernels> {
        let tables = [
            &scalar::TABLE,
            #[cfg(target_arch = "x86_64")]
            &avx2::TABLE,
            #[cfg(target_arch = "x86_64")]
            &avx512::TABLE,
            #[cfg(target_arch = "x86_64")]
            &avx512::ZEN4,
        ];
        let there = tables.into_iter().filter(|table| table.isa.available());
        there.map(|table| VectorKernels { table }).collect()
    }
}
