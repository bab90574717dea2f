//! The complete reference set: the contract of [`super::tile`] in plain Rust, with the lanes in the
//! innermost loops so that the compiler can vectorise for the target's baseline. Other
//! architectures use it.

mod short;

use self::short::{direct as short_direct, round as short_round, unpack as short_unpack};
use super::dispatch::{Core, Isa};
use super::l2_prefetch::L2Prefetch;
use super::layout::{Layout, SUB_COLS, ScaleKind, TILE_ROWS, ZeroKind};
use super::tile::{FLUSH_SUBS, Int8Acts, L1_DISTANCE, Prefetch, TileKernels};
use crate::quant::{Bits, quantize_block};
use half::f16;

pub(super) const KERNELS: TileKernels = TileKernels {
    name: "scalar",
    isa: Isa::Scalar,
    cores: Core::ALL,
    one_vector_distance: L1_DISTANCE,
    l2_prefetch: L2Prefetch::Never,
    splits_halves: false,
    // 1 to 12 vectors took as long with unpacking (4 bits).
    max_direct_vectors: [48; 4],
    int8: [
        by_int8_width!(int8, 1),
        by_int8_width!(int8, 2),
        by_int8_width!(int8, 4),
        by_int8_width!(int8, 8),
    ],
    direct: [
        by_width!(direct, 1),
        by_width!(direct, 2),
        by_width!(direct, 4),
        by_width!(direct, 8),
    ],
    unpack: [unpack::<1>, unpack::<2>, unpack::<4>, unpack::<8>],
    panel: by_width!(panel),
    sign: by_width!(sign),
    short_direct: by_short_width!(short_direct),
    short_unpack,
    short_round: by_width!(short_round),
    quantize,
    split: None,
    max_split_bits: 0,
    stream: |_, _| None,
    lookups: None,
    tables: None,
    pairs: None,
    amx: None,
};

type Lanes<T> = [T; TILE_ROWS];

/// The rows' codes in column `col` of a sub-block; 1-bit codes are doubled to 0 and 2.
///
/// # Safety
/// `sub` points to a sub-block of `BITS`.
unsafe fn column<const BITS: usize>(sub: *const u8, col: usize) -> Lanes<i32> {
    let (j, s) = (col % 4, col / 4);
    let (q, p) = (s % BITS, s / BITS);
    let mask = (1 << BITS) - 1;
    std::array::from_fn(|row| {
        let (half, lane) = (row / 16, row % 16);
        // SAFETY: the layout puts byte j of this row's dword q there, inside the sub-block.
        let byte = unsafe { *sub.add((2 * q + half) * 64 + 4 * lane + j) } as i32;
        let code = byte >> (BITS * p) & mask;
        if BITS == 1 { 2 * code } else { code }
    })
}

/// The scales of a group.
///
/// # Safety
/// `tail` points to the scales of a group.
unsafe fn scales(l: &Layout, tail: *const u8) -> Lanes<f32> {
    // SAFETY: the layout puts 32 scales there, 64-byte aligned.
    unsafe {
        match l.scale {
            ScaleKind::F16 => (*tail.cast::<Lanes<f16>>()).map(f16::to_f32),
            ScaleKind::F32 => *tail.cast::<Lanes<f32>>(),
        }
    }
}

/// The zero points of a group.
///
/// # Safety
/// `tail` points to the scales of a group.
unsafe fn zero_points(l: &Layout, tail: *const u8) -> Lanes<i32> {
    match l.zero {
        ZeroKind::Constant(z) => [z; TILE_ROWS],
        // SAFETY: with ZeroKind::PerGroup the layout stores 32 zero points after the scales.
        ZeroKind::PerGroup => unsafe {
            (*tail.add(l.scale_bytes()).cast::<Lanes<i16>>()).map(i32::from)
        },
    }
}

/// # Safety
/// The contract of [`super::tile`].
unsafe fn int8<const BITS: usize, const V: usize>(
    l: &Layout,
    first: usize,
    count: usize,
    tile: *const u8,
    acts: Int8Acts,
    _ahead: Prefetch,
    out: *mut f32,
) {
    // SAFETY: `out` is (V, 32).
    let f = unsafe { &mut *out.cast::<[Lanes<f32>; V]>() };
    let (mut sub_index, mut block) = (0, 0);
    for g in first..first + count {
        // SAFETY: the group lies in the tile, and its tail follows its sub-blocks.
        let (base, scale, zero) = unsafe {
            let base = tile.add(l.group_offset(g));
            let tail = base.add(l.group_subs(g) * l.sub_bytes());
            (base, scales(l, tail), zero_points(l, tail))
        };
        let mut s = 0;
        while s < l.group_subs(g) {
            let end = (s + l.block_subs).min(l.group_subs(g));
            let mut sums = [[0i32; TILE_ROWS]; V];
            for v in 0..V {
                // SAFETY: one correction per block and vector.
                let c = unsafe { *acts.corrections.add(block * V + v) };
                sums[v] = match l.zero {
                    ZeroKind::Constant(_) => [c; TILE_ROWS],
                    ZeroKind::PerGroup => zero.map(|z| z * c),
                };
            }
            for sub in s..end {
                for col in 0..SUB_COLS {
                    // SAFETY: the sub-block lies in the group.
                    let codes = unsafe { column::<BITS>(base.add(sub * l.sub_bytes()), col) };
                    for (v, sums) in sums.iter_mut().enumerate() {
                        // SAFETY: 32 codes per sub-block and vector.
                        let x = unsafe {
                            *acts
                                .codes
                                .add(((sub_index + sub - s) * V + v) * SUB_COLS + col)
                        } as i32;
                        for (sum, code) in sums.iter_mut().zip(codes) {
                            *sum += code * x;
                        }
                    }
                }
            }
            for v in 0..V {
                // SAFETY: one scale per block and vector.
                let sx = unsafe { *acts.scales.add(block * V + v) };
                for r in 0..TILE_ROWS {
                    f[v][r] = (sums[v][r] as f32).mul_add(scale[r] * sx, f[v][r]);
                }
            }
            sub_index += end - s;
            block += 1;
            s = end;
        }
    }
}

/// # Safety
/// The contract of [`super::tile`].
unsafe fn direct<const BITS: usize, const V: usize>(
    l: &Layout,
    tile: *const u8,
    x: *const f32,
    _far: usize,
    out: *mut f32,
) {
    let mut levels = [0f32; SUB_COLS * TILE_ROWS];
    let mut scale = [0f32; TILE_ROWS];
    let mut f = [[0f32; TILE_ROWS]; V];
    let mut sum = [[0f64; TILE_ROWS]; V];
    for s in 0..l.total_subs() {
        // SAFETY: the tile has this sub-block, the vectors its 32 columns.
        unsafe {
            unpack::<BITS>(l, tile, s, 1, levels.as_mut_ptr(), scale.as_mut_ptr());
            panel::<V>(
                levels.as_ptr(),
                scale.as_ptr(),
                1,
                x.add(s * SUB_COLS * V),
                f.as_mut_ptr().cast(),
            );
        }
        if (s + 1) % FLUSH_SUBS == 0 {
            for (sum, f) in sum.as_flattened_mut().iter_mut().zip(f.as_flattened_mut()) {
                *sum += std::mem::take(f) as f64;
            }
        }
    }
    for (i, (sum, f)) in sum.as_flattened().iter().zip(f.as_flattened()).enumerate() {
        // SAFETY: `out` is (V, 32).
        unsafe { *out.add(i) = (sum + *f as f64) as f32 };
    }
}

/// # Safety
/// The contract of [`super::tile`].
unsafe fn unpack<const BITS: usize>(
    l: &Layout,
    tile: *const u8,
    first: usize,
    count: usize,
    levels: *mut f32,
    scale_out: *mut f32,
) {
    for i in 0..count {
        let (sub, tail) = l.sub_and_tail(first + i);
        // SAFETY: the tile has sub-block first + i; the outputs hold `count` of them.
        unsafe {
            let (sub, tail) = (tile.add(sub), tile.add(tail));
            let zero = zero_points(l, tail);
            *scale_out.add(i * TILE_ROWS).cast::<Lanes<f32>>() = scales(l, tail);
            for col in 0..SUB_COLS {
                let codes = column::<BITS>(sub, col);
                let out = levels
                    .add((i * SUB_COLS + col) * TILE_ROWS)
                    .cast::<Lanes<f32>>();
                *out = std::array::from_fn(|r| (codes[r] - zero[r]) as f32);
            }
        }
    }
}

/// # Safety
/// The contract of [`super::tile`].
unsafe fn panel<const V: usize>(
    levels: *const f32,
    scales: *const f32,
    count: usize,
    x: *const f32,
    f: *mut f32,
) {
    for s in 0..count {
        for half in 0..2 {
            for v in 0..V {
                let mut chain = [0f32; TILE_ROWS];
                for col in half * 16..half * 16 + 16 {
                    let k = s * SUB_COLS + col;
                    // SAFETY: `levels` is (count * 32, 32), `x` is (count * 32, V).
                    let (w, x) = unsafe {
                        (
                            *levels.add(k * TILE_ROWS).cast::<Lanes<f32>>(),
                            *x.add(k * V + v),
                        )
                    };
                    for (c, w) in chain.iter_mut().zip(w) {
                        *c += w * x;
                    }
                }
                // SAFETY: `scales` is (count, 32), `f` is (V, 32).
                let (scale, f) = unsafe {
                    (
                        *scales.add(s * TILE_ROWS).cast::<Lanes<f32>>(),
                        &mut *f.add(v * TILE_ROWS).cast::<Lanes<f32>>(),
                    )
                };
                for r in 0..TILE_ROWS {
                    f[r] += chain[r] * scale[r];
                }
            }
        }
    }
}

/// # Safety
/// The contract of [`super::tile`].
unsafe fn sign<const V: usize>(
    l: &Layout,
    tile: *const u8,
    x: *const u32,
    _far: usize,
    out: *mut f32,
) {
    debug_assert_eq!(l.bits, Bits::One);
    let mut f = [[0f32; TILE_ROWS]; V];
    let mut sum = [[0f64; TILE_ROWS]; V];
    for g in 0..l.shape.groups {
        let cols = l.shape.group_columns(g).len() as i64;
        // SAFETY: the group lies in the tile, and its tail follows its sub-blocks.
        let (base, scale) = unsafe {
            let base = tile.add(l.group_offset(g));
            (base, scales(l, base.add(l.group_subs(g) * l.sub_bytes())))
        };
        let mut differ = [[0u32; TILE_ROWS]; V];
        for s in 0..l.group_subs(g) {
            for (v, differ) in differ.iter_mut().enumerate() {
                // SAFETY: a 1-bit sub-block is 32 dwords in row order; one dword of signs per
                // sub-block and vector.
                let (w, x) = unsafe {
                    (
                        *base.add(s * l.sub_bytes()).cast::<Lanes<u32>>(),
                        *x.add((g * l.subs + s) * V + v),
                    )
                };
                for (d, w) in differ.iter_mut().zip(w) {
                    *d += (w ^ x).count_ones();
                }
            }
        }
        for v in 0..V {
            for r in 0..TILE_ROWS {
                let product = cols - 2 * differ[v][r] as i64;
                f[v][r] = (product as f32).mul_add(scale[r], f[v][r]);
                if (g + 1) % FLUSH_SUBS == 0 {
                    sum[v][r] += std::mem::take(&mut f[v][r]) as f64;
                }
            }
        }
    }
    for v in 0..V {
        for r in 0..TILE_ROWS {
            // SAFETY: `out` is (V, 32).
            unsafe { *out.add(v * TILE_ROWS + r) = (sum[v][r] + f[v][r] as f64) as f32 };
        }
    }
}

/// # Safety
/// None; the signature is that of the table.
unsafe fn quantize(
    x: &[f32],
    block: usize,
    codes: &mut [i8],
    scales: &mut [f32],
    sums: &mut [i32],
) -> bool {
    if x.iter().any(|v| !v.is_finite()) {
        return false;
    }
    for (b, (x, q)) in x.chunks(block).zip(codes.chunks_mut(block)).enumerate() {
        scales[b] = quantize_block(x, q);
        sums[b] = q.iter().map(|&q| q as i32).sum();
    }
    true
}
