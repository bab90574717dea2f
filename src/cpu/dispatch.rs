//! CPU detection: which instruction sets this processor and its operating system offer. No other
//! module detects features.

use std::fmt;
use std::sync::LazyLock;

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

/// Kinds of cores for which different kernels are fastest. Feature bits do not tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Core {
    /// Any other core. Measured: Ice Lake, Emerald Rapids.
    Other,
    /// Zen 4: 512-bit instructions execute as two passes of 256 bits. And Zen 3, which has AVX2 only.
    Zen4,
    /// Other AMD cores. Measured: Zen 5.
    Amd,
}

impl Core {
    /// All of them.
    pub const ALL: &[Core] = &[Core::Other, Core::Zen4, Core::Amd];
}

/// What the processor offers. Only [`Features::detect`] creates a value with any feature set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    avx2: bool,
    avx512: bool,
    avx_vnni: bool,
    avx512_vnni: bool,
    avx512_ice: bool,
    amx: bool,
    core: Core,
}

impl Features {
    /// Asks the processor, once, and the operating system whether it saves the registers.
    pub fn detect() -> Features {
        // In a virtual machine `cpuid` traps to the hypervisor, which takes microseconds.
        static ANSWER: LazyLock<Features> = LazyLock::new(Features::ask);
        *ANSWER
    }

    /// `is_x86_feature_detected!` reads XCR0, which hand-written `cpuid` checks often miss: AVX-512
    /// masked by a hypervisor would then raise an illegal-instruction fault.
    #[cfg(target_arch = "x86_64")]
    fn ask() -> Features {
        use std::arch::is_x86_feature_detected as has;
        let avx2 = has!("avx2") && has!("fma") && has!("f16c") && has!("popcnt");
        let avx512 =
            avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq");
        let avx512_vnni = avx512 && has!("avx512vnni");
        let avx512_ice = avx512_vnni && has!("avx512vbmi") && has!("avx512vpopcntdq");
        Features {
            avx2,
            avx512,
            avx_vnni: avx2 && has!("avxvnni"),
            avx512_vnni,
            avx512_ice,
            amx: avx512_ice && amx(),
            core: core(),
        }
    }

    /// Other architectures use the scalar set.
    #[cfg(not(target_arch = "x86_64"))]
    fn ask() -> Features {
        Features {
            avx2: false,
            avx512: false,
            avx_vnni: false,
            avx512_vnni: false,
            avx512_ice: false,
            amx: false,
            core: Core::Other,
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

    /// What Ice Lake and Zen 4 added: VBMI, VPOPCNTDQ.
    pub fn avx512_ice(&self) -> bool {
        self.avx512_ice
    }

    /// What Sapphire Rapids added: AMX with int8 products, which a process may use once
    /// [`permit_amx`] has returned true.
    pub fn amx(&self) -> bool {
        self.amx
    }

    /// The kind of core.
    pub fn core(&self) -> Core {
        self.core
    }
}

/// Whether the processor has AMX-TILE and AMX-INT8, which no macro of the stable toolchain detects.
#[cfg(target_arch = "x86_64")]
fn amx() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let (tile, int8) = (1 << 24, 1 << 25);
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (tile | int8) == tile | int8
}

/// Asks Linux for permission to use AMX, whose registers it saves only for processes that request
/// it. Returns whether the processor has AMX and the process may use it; false on other systems.
///
/// The permission is permanent and changes the process. The signal frame grows by 8 KiB on every
/// thread that has used AMX since. The system refuses alternative signal stacks (`sigaltstack`)
/// that are too small for that: if one is already set, it refuses the permission; afterwards it
/// refuses such a stack. Threads and forked processes inherit the permission.
pub fn permit_amx() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_ulong = 18;
        // SAFETY: the call takes two integers and accesses no memory of this process.
        let ask = || unsafe {
            libc::syscall(
                libc::SYS_arch_prctl,
                ARCH_REQ_XCOMP_PERM,
                XFEATURE_XTILEDATA,
            )
        };
        Features::detect().amx() && ask() == 0
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

/// Reads the vendor string of `cpuid` (twelve letters) and the family.
#[cfg(target_arch = "x86_64")]
fn core() -> Core {
    use std::arch::x86_64::__cpuid;
    let id = __cpuid(0);
    let maker = [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes);
    core_of(maker.as_flattened(), __cpuid(1).eax)
}

/// The core for a vendor and a version word, which contains the family.
#[cfg(target_arch = "x86_64")]
fn core_of(maker: &[u8], version: u32) -> Core {
    let (family, extended) = (version >> 8 & 0xf, version >> 20 & 0xff);
    match (maker, family + extended) {
        (b"AuthenticAMD", 25) => Core::Zen4,
        (b"AuthenticAMD", _) => Core::Amd,
        _ => Core::Other,
    }
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
    #[cfg(target_arch = "x86_64")]
    fn cores_are_told_by_maker_and_family() {
        // Genoa, Turin, Ice Lake.
        assert_eq!(core_of(b"AuthenticAMD", 0x00a1_0f11), Core::Zen4);
        assert_eq!(core_of(b"AuthenticAMD", 0x00b0_0f21), Core::Amd);
        assert_eq!(core_of(b"GenuineIntel", 0x0006_06a6), Core::Other);
    }

    #[test]
    fn levels_are_ordered() {
        assert!(Isa::Scalar.available());
        assert!(Isa::Scalar < Isa::Avx2 && Isa::Avx2 < Isa::Avx512);
    }
}
