//! Calls into the second-level cache by kernels of few vectors, and where they pay.
//!
//! Calls into the first level are as many as that has buffers for lines on their way, and each holds one as long as memory takes: 16
//! on an Emerald Rapids core, where a loop that reads 192 bytes and multiplies beside it read 12.7 to 13.0 GB/s, and 14.5 to 14.8 when lines had
//! been called into the second level before (from 8 KB on it hardly mattered how far; reading alone was 15.5 GB/s). Products of 4096 × 4096 with one int8
//! vector went from 83 to 90% of reading to 95 to 100 at 4 bits, from 84 to between 86 and 96 at 2.
//!
//! A Zen 4 core reads 32 GB/s when its own prefetchers see a stream, and about 25 when such calls hide it from them (4096 × 4096, groups of
//! 32, from memory, with calls and without, µs): one int8 vector of 8 and 4 bits 683 and 605, 404 and 317. Where arithmetic takes longer than that they pay:
//! four vectors of 4 bits 380 and 431, two of 2 bits 205 and 236, one float32 vector of 8 bits 689 and 941, look-ups 104 and 254.

use super::Isa;
#[cfg(target_arch = "x86_64")]
use super::dispatch::Core;
use crate::quant::Bits;

/// How far before what it works on a kernel calls for bytes into the second-level cache.
#[cfg(target_arch = "x86_64")]
const FAR: usize = 16 << 10;

/// Where that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Far {
    Nowhere,
    #[cfg(target_arch = "x86_64")]
    Everywhere,
    /// Where arithmetic takes longer than reading does.
    #[cfg(target_arch = "x86_64")]
    Busy,
}

/// A kernel of few vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Few {
    /// int8 by dot products.
    Int8(Bits),
    /// One int8 vector by look-ups.
    Lookups,
    /// float32.
    Float,
    /// float32, of short groups.
    Short,
    /// Signs.
    Sign,
}

impl Far {
    /// Where it pays on a core; not measured on AMD's others.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn of(core: Core) -> Far {
        match core {
            Core::Other => Far::Everywhere,
            Core::Zen4 => Far::Busy,
            Core::Amd => Far::Nowhere,
        }
    }

    /// How far a kernel of this level is to call, with so many vectors. 0: it calls for what it works on, which changes nothing.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(unused_variables, reason = "nothing is called for there")
    )]
    pub(super) fn distance(self, isa: Isa, kernel: Few, vectors: usize) -> usize {
        match self {
            Far::Nowhere => 0,
            #[cfg(target_arch = "x86_64")]
            Far::Everywhere => FAR,
            #[cfg(target_arch = "x86_64")]
            Far::Busy => FAR * usize::from(busy(isa, kernel, vectors)),
        }
    }
}

/// Whether arithmetic takes longer than reading, as far as a Zen 4 core showed at both levels. Short groups gained 1 to 2% with four vectors and lost 11 to 18
/// with one of 8 bits (groups of 1).
#[cfg(target_arch = "x86_64")]
fn busy(isa: Isa, kernel: Few, vectors: usize) -> bool {
    // With AVX2 one int8 vector gained at 4 bits and less (332 to 309 µs at 4) and lost at 8 (737 to 914), and one of signs gained (293 to 154).
    let factor = if isa == Isa::Avx2 { 4 } else { 1 };
    match kernel {
        Few::Int8(bits) => bits.get() <= vectors * factor,
        Few::Sign => vectors * factor > 1,
        Few::Lookups | Few::Float => true,
        Few::Short => false,
    }
}
