//! The row kernels that a processor uses.

use super::{RowKernels, scalar};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::cpu::Isa;

impl RowKernels {
    /// The kernels of a level, or `None` where the processor lacks it.
    pub fn for_isa(isa: Isa) -> Option<RowKernels> {
        let table = match isa {
            _ if !isa.available() => return None,
            Isa::Scalar => &scalar::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &avx2::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &avx512::TABLE,
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => return None,
        };
        Some(RowKernels { table })
    }
}
