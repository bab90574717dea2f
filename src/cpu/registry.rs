//! The sets of tile kernels, and which of them a processor uses.
//!
//! Separate from [`super::tile`], which every set imports, so that imports go one way.

use super::dispatch::Isa;
#[cfg(target_arch = "x86_64")]
use super::dispatch::{Features, permit_amx};
#[cfg(target_arch = "x86_64")]
use super::l2_prefetch::L2Prefetch;
use super::tile::TileKernels;

impl TileKernels {
    /// The best kernels of a level, or `None` where the processor lacks it. With `amx` they include
    /// the AMX kernels, if this process may use AMX.
    pub fn for_isa(isa: Isa, amx: bool) -> Option<TileKernels> {
        let sets = TileKernels::sets(amx && isa == Isa::Avx512);
        sets.into_iter().rev().find(|k| k.isa == isa)
    }

    /// Every set of kernels that this processor can run, the reference first. A level may have
    /// several sets, of which the last is the best.
    pub fn variants() -> Vec<TileKernels> {
        TileKernels::sets(true)
    }

    /// As [`TileKernels::variants`]; permission to use AMX is requested only if `amx`.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(unused_variables, unused_mut, reason = "they have the scalar set only")
    )]
    fn sets(amx: bool) -> Vec<TileKernels> {
        let mut all = vec![super::scalar::KERNELS];
        #[cfg(target_arch = "x86_64")]
        {
            let features = Features::detect();
            let avx512 = features.isa() >= Isa::Avx512;
            let (vnni, ice) = (features.avx512_vnni(), features.avx512_ice());
            let amx = amx && permit_amx();
            all.extend(
                [
                    (features.isa() >= Isa::Avx2, super::avx2::BASE),
                    #[cfg(test)]
                    (features.isa() >= Isa::Avx2, super::avx2::BASE_DIRECT),
                    (features.isa() >= Isa::Avx2, super::avx2::BASE_PAIRS),
                    (features.isa() >= Isa::Avx2, super::avx2::BASE_TABLES),
                    (features.avx_vnni(), super::avx2::VNNI),
                    (avx512, super::avx512::BASE),
                    (avx512, super::avx512::BASE_PAIRS),
                    (vnni, super::avx512::VNNI),
                    (vnni, super::avx512::VNNI_PAIRS),
                    (ice, super::avx512::ICE_PAIRS),
                    (ice, super::avx512::ICE_TABLES),
                    (ice, super::avx512::ZEN4),
                    // The sets with tables never use dot products for many vectors of 1-bit
                    // weights; this one tests those.
                    #[cfg(test)]
                    (ice, super::avx512::ZEN4_WITHOUT_TABLES),
                    (amx, super::avx512::AMX),
                ]
                .into_iter()
                .filter(|(has, _)| *has)
                .map(|(_, k)| k),
            );
            // Sets meant for this core come last. With AVX2 those with pairs and tables are meant for
            // all cores, and have only been measured on Zen 3. With AVX-512, tables: on Zen 4
            // `vpermw` leaves issue slots for the additions, and on Zen 5 it should (not measured);
            // on an Intel core with the same features tables were slower (422 Gop/s against 472).
            // Pairs were slower on Zen 4 (see `avx512/zen4.rs`).
            let core = features.core();
            all.sort_by_key(|k| (k.isa, k.cores.contains(&core)));
            for k in all.iter_mut().filter(|k| k.isa != Isa::Scalar) {
                k.l2_prefetch = L2Prefetch::of(core);
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Core;

    #[test]
    fn the_best_set_of_a_level_is_the_one_for_this_core() {
        for isa in Isa::ALL {
            let best = TileKernels::for_isa(isa, true).map(|k| k.name);
            assert_eq!(best.is_some(), isa.available(), "{isa}");
        }
        let features = crate::cpu::Features::detect();
        if !features.avx512_ice() {
            eprintln!("SKIPPED: a processor whose AVX-512 has sets for several cores");
            return;
        }
        let wants = match features.core() {
            Core::Other => "pairs",
            Core::Zen4 => "zen4",
            Core::Amd => "tables",
        };
        let best = TileKernels::for_isa(Isa::Avx512, true).expect("it is there");
        let parts: Vec<_> = best.name.split('+').collect();
        assert_eq!(best.tables.is_some(), features.core() != Core::Other);
        assert!(
            parts.contains(&wants),
            "{} on {:?}",
            best.name,
            features.core()
        );
    }
}
