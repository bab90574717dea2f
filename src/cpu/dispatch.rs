//! The one detector: which instruction sets this processor (and its operating system) offers.

use std::fmt;

/// An instruction-set level. A level includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust; the reference, and what other architectures run.
    Scalar,
    /// AVX2, FMA, F16C and POPCNT; AVX-VNNI where present.
    Avx2,
    /// AVX-512 F, BW, VL, DQ; VNNI, VBMI and VPOPCNTDQ where present.
    Avx512,
}

impl Isa {
    /// Every level, lowest first.
    pub const ALL: [Isa; 3] = [Isa::Scalar, Isa::Avx2, Isa::Avx512];

    /// The name that the configuration and `apl_ffi_info` use.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }

    /// The level with this name.
    pub fn from_name(name: &str) -> Option<Isa> {
        Isa::ALL.into_iter().find(|isa| isa.name() == name)
    }

    /// The highest level that this processor offers.
    pub fn best() -> Isa {
        Features::detect().isa()
    }

    /// Whether this processor offers this level.
    pub fn available(self) -> bool {
        self <= Isa::best()
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the processor offers, by name. Only [`Features::detect`] makes one with anything in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    avx2: bool,
    avx512: bool,
    avx_vnni: bool,
    avx512_vnni: bool,
    avx512_ice: bool,
    amd: bool,
}

impl Features {
    /// Asks the processor; the answer of the operating system (does it save these registers?) included.
    ///
    /// `is_x86_feature_detected!` reads XCR0, which a hand-made `cpuid` forgets: AVX-512 masked by a
    /// hypervisor would be an illegal instruction later.
    #[cfg(target_arch = "x86_64")]
    pub fn detect() -> Features {
        use std::arch::is_x86_feature_detected as has;
        let avx2 = has!("avx2") && has!("fma") && has!("f16c") && has!("popcnt");
        let avx512 =
            avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq");
        let avx512_vnni = avx512 && has!("avx512vnni");
        Features {
            avx2,
            avx512,
            avx_vnni: avx2 && has!("avxvnni"),
            avx512_vnni,
            avx512_ice: avx512_vnni && has!("avx512vbmi") && has!("avx512vpopcntdq"),
            amd: vendor() == *b"AuthenticAMD",
        }
    }

    /// Other architectures run the scalar set.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn detect() -> Features {
        Features {
            avx2: false,
            avx512: false,
            avx_vnni: false,
            avx512_vnni: false,
            avx512_ice: false,
            amd: false,
        }
    }

    /// The highest level.
    pub fn isa(&self) -> Isa {
        match (self.avx512, self.avx2) {
            (true, _) => Isa::Avx512,
            (_, true) => Isa::Avx2,
            _ => Isa::Scalar,
        }
    }

    /// AVX-VNNI: `vpdpbusd` on 256 bits.
    pub fn avx_vnni(&self) -> bool {
        self.avx_vnni
    }

    /// AVX-512 VNNI: `vpdpbusd` on 512 bits.
    pub fn avx512_vnni(&self) -> bool {
        self.avx512_vnni
    }

    /// What came with Ice Lake and Zen 4 besides: VBMI, VPOPCNTDQ.
    pub fn avx512_ice(&self) -> bool {
        self.avx512_ice
    }

    /// Whether it is made by AMD: no feature bit tells what a core is good at.
    pub fn amd(&self) -> bool {
        self.amd
    }
}

/// Who made this processor: the twelve letters of `cpuid`.
#[cfg(target_arch = "x86_64")]
fn vendor() -> [u8; 12] {
    let id = std::arch::x86_64::__cpuid(0);
    let mut name = [0; 12];
    for (to, from) in name.chunks_exact_mut(4).zip([id.ebx, id.edx, id.ecx]) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for isa in Isa::ALL {
            assert_eq!(Isa::from_name(isa.name()), Some(isa));
        }
        assert_eq!(Isa::from_name("AVX2"), None);
    }

    #[test]
    fn levels_are_ordered() {
        assert!(Isa::Scalar.available());
        assert!(Isa::Scalar < Isa::Avx2 && Isa::Avx2 < Isa::Avx512);
    }
}
