//! Macros for the kernels: the tables of [`super::tile::TileKernels`] from generic functions, and
//! loops that must be unrolled.

/// A row of a kernel table: one instance for each of [`super::tile::WIDTHS`].
macro_rules! by_width {
    ($f:ident) => {
        [$f::<12>, $f::<8>, $f::<4>, $f::<2>, $f::<1>]
    };
    ($f:ident, $bits:literal) => {
        [
            $f::<$bits, 12>,
            $f::<$bits, 8>,
            $f::<$bits, 4>,
            $f::<$bits, 2>,
            $f::<$bits, 1>,
        ]
    };
}

/// The same for each of [`super::tile::INT8_WIDTHS`].
macro_rules! by_int8_width {
    ($f:ident) => {
        [
            $f::<12>, $f::<8>, $f::<6>, $f::<4>, $f::<3>, $f::<2>, $f::<1>,
        ]
    };
    ($f:ident, $bits:literal) => {
        [
            $f::<$bits, 12>,
            $f::<$bits, 8>,
            $f::<$bits, 6>,
            $f::<$bits, 4>,
            $f::<$bits, 3>,
            $f::<$bits, 2>,
            $f::<$bits, 1>,
        ]
    };
}

/// The same for each of [`super::tile::SHORT_WIDTHS`].
macro_rules! by_short_width {
    ($f:ident) => {
        [$f::<4>, $f::<2>, $f::<1>]
    };
}

const _: () = {
    let [a, b, c, d, e] = super::tile::WIDTHS;
    assert!(
        a == 12 && b == 8 && c == 4 && d == 2 && e == 1,
        "by_width! lists WIDTHS"
    );
    let [a, b, c, d, e, f, g] = super::tile::INT8_WIDTHS;
    assert!(
        a == 12 && b == 8 && c == 6 && d == 4 && e == 3 && f == 2 && g == 1,
        "by_int8_width! lists INT8_WIDTHS"
    );
    let [a, b, c] = super::tile::SHORT_WIDTHS;
    assert!(
        a == 4 && b == 2 && c == 1,
        "by_short_width! lists SHORT_WIDTHS"
    );
};

/// Repeats a block with `$i` a constant. Shifts and masks that depend on it become immediates, and
/// accumulators stay in registers where the optimiser would otherwise keep a loop of eight
/// iterations (it did, and spilled, with twelve vectors).
macro_rules! unroll {
    ($i:ident in 0..4 => $body:block) => {
        unroll!(@ $i $body 0 1 2 3)
    };
    ($i:ident in 0..8 => $body:block) => {
        unroll!(@ $i $body 0 1 2 3 4 5 6 7)
    };
    ($i:ident in 0..16 => $body:block) => {
        unroll!(@ $i $body 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $i:ident $body:block $($n:literal)*) => {
        $({ const $i: usize = $n; $body })*
    };
}

/// Defines a set of kernels: entry points with the `target_feature` of the set, each of which calls
/// a generic `inline(always)` function of the sibling modules `int8`, `sign`, `short`, `f32` and
/// `activations`.
#[cfg(target_arch = "x86_64")]
macro_rules! kernel_set {
    ($(#[$doc:meta])* $set:ident, $module:ident, $ext:ident, $isa:ident, $name:literal, $features:literal) => {
        mod $module {
            use super::super::layout::Layout;
            use super::super::tile::TileKernels;

            integer_kernels!($ext, $features);

            #[target_feature(enable = $features)]
            unsafe fn direct<const BITS: usize, const V: usize>(
                l: &Layout, tile: *const u8, x: *const f32, l2_distance: usize, out: *mut f32,
            ) {
                // SAFETY: the caller upholds the contract of `tile` and guarantees the features of
                // this set.
                unsafe { super::f32::direct::<BITS, V>(l, tile, x, l2_distance, out) }
            }

            #[target_feature(enable = $features)]
            unsafe fn unpack<const BITS: usize>(
                l: &Layout, tile: *const u8, first: usize, count: usize,
                levels: *mut f32, scales: *mut f32,
            ) {
                // SAFETY: as above.
                unsafe { super::f32::unpack::<BITS>(l, tile, first, count, levels, scales) }
            }

            #[target_feature(enable = $features)]
            unsafe fn panel<const V: usize>(
                levels: *const f32, scales: *const f32, count: usize, x: *const f32, f: *mut f32,
            ) {
                // SAFETY: as above.
                unsafe { super::f32::panel::<V>(levels, scales, count, x, f) }
            }

            #[target_feature(enable = $features)]
            unsafe fn short_direct<const V: usize>(
                l: &Layout, tile: *const u8, x: *const f32, l2_distance: usize, out: *mut f32,
            ) {
                // SAFETY: as above.
                unsafe { super::short::direct::<V>(l, tile, x, l2_distance, out) }
            }

            #[target_feature(enable = $features)]
            unsafe fn short_unpack(
                l: &Layout, tile: *const u8, first: usize, count: usize,
                levels: *mut f32, scales: *mut f32,
            ) {
                // SAFETY: as above.
                unsafe { super::short::unpack(l, tile, first, count, levels, scales) }
            }

            #[target_feature(enable = $features)]
            unsafe fn short_round<const V: usize>(x: &mut [f32], group: usize) {
                super::super::short::round::<V>(x, group);
            }

            #[target_feature(enable = $features)]
            unsafe fn quantize(
                x: &[f32], block: usize, codes: &mut [i8], scales: &mut [f32], sums: &mut [i32],
            ) -> bool {
                // SAFETY: as above.
                unsafe { super::activations::quantize(x, block, codes, scales, sums) }
            }

            pub(super) const KERNELS: TileKernels = TileKernels {
                name: $name,
                isa: $crate::cpu::Isa::$isa,
                cores: $crate::cpu::Core::ALL,
                one_vector_distance: $crate::cpu::tile::L1_DISTANCE,
                l2_prefetch: $crate::cpu::l2_prefetch::L2Prefetch::Never,
                splits_halves: false,
                max_direct_vectors: super::f32::MAX_DIRECT_VECTORS,
                int8: INT8,
                direct: [by_width!(direct, 1), by_width!(direct, 2), by_width!(direct, 4), by_width!(direct, 8)],
                unpack: [unpack::<1>, unpack::<2>, unpack::<4>, unpack::<8>],
                panel: by_width!(panel),
                sign: SIGN,
                short_direct: by_short_width!(short_direct),
                short_unpack,
                short_round: by_width!(short_round),
                quantize,
                split: None,
                max_split_bits: 8,
                stream: |_, _| None,
                lookups: None,
                tables: None,
                pairs: None,
                amx: None,
            };
        }
        $(#[$doc])*
        pub(in crate::cpu) const $set: $crate::cpu::tile::TileKernels = $module::KERNELS;
    };
    // A set that adds integer instructions to another; the floating-point kernels are those of that
    // set.
    ($(#[$doc:meta])* $set:ident = $base:ident with $module:ident, $ext:ident, $name:literal, $features:literal) => {
        mod $module {
            use super::super::layout::Layout;
            use super::super::tile::TileKernels;

            integer_kernels!($ext, $features);

            pub(super) const KERNELS: TileKernels = TileKernels {
                name: $name,
                int8: INT8,
                sign: SIGN,
                ..super::$base
            };
        }
        $(#[$doc])*
        pub(in crate::cpu) const $set: $crate::cpu::tile::TileKernels = $module::KERNELS;
    };
}

/// The entry points of the integer kernels, and their tables.
#[cfg(target_arch = "x86_64")]
macro_rules! integer_kernels {
    ($ext:ident, $features:literal) => {
        use super::super::tile::{INT8_WIDTHS, Int8Acts, Int8Fn, Prefetch, SignFn, WIDTHS};
        use super::$ext as Ext;

        #[target_feature(enable = $features)]
        unsafe fn int8<const BITS: usize, const V: usize>(
            l: &Layout,
            first: usize,
            count: usize,
            tile: *const u8,
            acts: Int8Acts,
            ahead: Prefetch,
            out: *mut f32,
        ) {
            // SAFETY: the caller upholds the contract of `tile` and guarantees the features of this
            // set.
            unsafe { super::int8::tile::<Ext, BITS, V>(l, first, count, tile, acts, ahead, out) }
        }

        #[target_feature(enable = $features)]
        unsafe fn sign<const V: usize>(
            l: &Layout,
            tile: *const u8,
            x: *const u32,
            l2_distance: usize,
            out: *mut f32,
        ) {
            // SAFETY: as above.
            unsafe { super::sign::tile::<Ext, V>(l, tile, x, l2_distance, out) }
        }

        const INT8: [[Int8Fn; INT8_WIDTHS.len()]; 4] = [
            by_int8_width!(int8, 1),
            by_int8_width!(int8, 2),
            by_int8_width!(int8, 4),
            by_int8_width!(int8, 8),
        ];
        const SIGN: [SignFn; WIDTHS.len()] = by_width!(sign);
    };
}
