//! The kernel sets that exist, and which of them a processor uses.
//!
//! Apart from [`super::tile`], which every set imports: imports then go one way.

use super::dispatch::Isa;
#[cfg(target_arch = "x86_64")]
use super::dispatch::{Features, permit_amx};
#[cfg(target_arch = "x86_64")]
use super::l2_prefetch::L2Prefetch;
use super::tile::TileKernels;

impl TileKernels {
    /// The best kernels of a level, or `None` where the processor lacks it; with `amx`, and those of AMX, if this process may use it.
    pub fn for_isa(isa: Isa, amx: bool) -> Option<TileKernels> {
        let sets = TileKernels::sets(amx && isa == Isa::Avx512);
        sets.into_iter().rev().find(|k| k.isa == isa)
    }

    /// Every set of kernels that this processor can run, the reference first: a level may have more than one, the best of which is
    /// the last.
    pub fn variants() -> Vec<TileKernels> {
        TileKernels::sets(true)
    }

    /// The same; AMX is asked for if `amx`.
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
                    (features.avx_vnni(), super::avx2::VNNI),
                    (avx512, super::avx512::BASE),
                    (avx512, super::avx512::BASE_PAIRS),
                    (vnni, super::avx512::VNNI),
                    (vnni, super::avx512::VNNI_PAIRS),
                    (ice, super::avx512::ICE_PAIRS),
                    (ice, super::avx512::ICE_TABLES),
                    (ice, super::avx512::ZEN4),
                    // With tables, no test would multiply many vectors of one bit by its dot products.
                    #[cfg(test)]
                    (ice, super::avx512::ZEN4_WITHOUT_TABLES),
                    (amx, super::avx512::AMX),
                ]
                .into_iter()
                .filter(|(has, _)| *has)
                .map(|(_, k)| k),
            );
            // Last those that suit this core. Tables: `vpermw` leaves room for additions beside it on Zen 4 and 5, and lost on an
            // Intel core of the same features (422 Gop/s against 472). Pairs lost on Zen 4 (see `avx512/zen4.rs`).
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
