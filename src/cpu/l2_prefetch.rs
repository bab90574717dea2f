//! Which small-batch kernels prefetch into L2 as well as into L1, and why not all of them.
//!
//! Prefetches into L1 are limited by its line fill buffers, each of which is occupied until memory
//! answers. An Emerald Rapids core has 16: a loop that alternates reading 192 bytes with
//! multiplications read 12.7 to 13.0 GB/s, and 14.5 to 14.8 when the lines had been prefetched into
//! L2 before (from 8 KB on the distance hardly mattered; reading alone reached 15.5 GB/s). Products
//! of 4096 × 4096 with one int8 vector went from 83 to 90% of read bandwidth to 95 to 100% at 4
//! bits, and from 84% to between 86 and 96% at 2.
//!
//! A Zen 4 core reads 32 GB/s when its hardware prefetchers see a stream, and about 25 when
//! software prefetches into L2 hide it from them. 4096 × 4096, groups of 32, from memory, with and
//! without such prefetches, µs: one int8 vector at 8 bits 683 and 605, at 4 bits 404 and 317. Where
//! the kernel is compute-bound they pay: four vectors at 4 bits 380 and 431, two at 2 bits 205 and
//! 236, one float32 vector at 8 bits 689 and 941, look-ups 104 and 254.

use super::Isa;
#[cfg(target_arch = "x86_64")]
use super::dispatch::Core;
use crate::quant::Bits;

/// The prefetch distance for L2, in bytes.
#[cfg(target_arch = "x86_64")]
const DISTANCE: usize = 16 << 10;

/// Which kernels prefetch into L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum L2Prefetch {
    Never,
    #[cfg(target_arch = "x86_64")]
    Always,
    /// Those that are compute-bound.
    #[cfg(target_arch = "x86_64")]
    ComputeBound,
}

/// A kernel for few vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmallBatchKernel {
    /// int8 by dot products.
    Int8(Bits),
    /// One int8 vector by look-ups.
    Lookups,
    /// float32.
    Float,
    /// float32, short groups.
    Short,
    /// Signs.
    Sign,
}

impl L2Prefetch {
    /// The fastest choice for a core; not measured on AMD cores other than Zen 4.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn of(core: Core) -> L2Prefetch {
        match core {
            Core::Other => L2Prefetch::Always,
            Core::Zen4 => L2Prefetch::ComputeBound,
            Core::Amd => L2Prefetch::Never,
        }
    }

    /// The distance in bytes for a kernel of this level with this many vectors. 0 prefetches the
    /// line that is about to be read, which has no effect.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(unused_variables, reason = "nothing is prefetched there")
    )]
    pub(super) fn distance(self, isa: Isa, kernel: SmallBatchKernel, vectors: usize) -> usize {
        match self {
            L2Prefetch::Never => 0,
            #[cfg(target_arch = "x86_64")]
            L2Prefetch::Always => DISTANCE,
            #[cfg(target_arch = "x86_64")]
            L2Prefetch::ComputeBound => DISTANCE * usize::from(compute_bound(isa, kernel, vectors)),
        }
    }
}

/// Whether a kernel is compute-bound, measured on a Zen 4 core at both levels. Short groups gained
/// 1 to 2% with four vectors and lost 11 to 18% with one at 8 bits (groups of 1).
#[cfg(target_arch = "x86_64")]
fn compute_bound(isa: Isa, kernel: SmallBatchKernel, vectors: usize) -> bool {
    // With AVX2 one int8 vector gained at 4 bits and below (332 to 309 µs at 4 bits) and lost at 8
    // (737 to 914 µs), with kernels that read in parts; those of today do not prefetch into L2. One
    // sign vector gained (293 to 154 µs).
    let factor = if isa == Isa::Avx2 { 4 } else { 1 };
    match kernel {
        SmallBatchKernel::Int8(bits) => bits.get() <= vectors.next_power_of_two() * factor,
        SmallBatchKernel::Sign => vectors * factor > 1,
        SmallBatchKernel::Lookups | SmallBatchKernel::Float => true,
        SmallBatchKernel::Short => false,
    }
}
