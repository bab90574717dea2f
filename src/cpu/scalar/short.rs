//! Short groups: the operations of [`crate::cpu::short`] on all 32 rows of a tile at once.

use super::{Lanes as Rows, scales, zero_points};
use crate::cpu::layout::{Layout, TILE_ROWS};
use crate::cpu::short::{self, Lanes};

/// # Safety
/// The contract of [`crate::cpu::tile`].
pub(super) unsafe fn direct<const V: usize>(
    l: &Layout,
    tile: *const u8,
    x: *const f32,
    l2_distance: usize,
    out: *mut f32,
) {
    // SAFETY: the caller upholds this contract.
    unsafe { short::direct::<Tile, 1, 1, V>(l, tile, x, l2_distance, out) }
}

/// # Safety
/// The contract of [`crate::cpu::tile`].
pub(super) unsafe fn unpack(
    l: &Layout,
    tile: *const u8,
    first: usize,
    count: usize,
    levels: *mut f32,
    scales: *mut f32,
) {
    // SAFETY: the caller upholds this contract.
    unsafe { short::unpack::<Tile, 1, 1>(l, tile, first, count, levels, scales) }
}

/// # Safety
/// None; the signature is that of the table.
pub(super) unsafe fn round<const V: usize>(x: &mut [f32], group: usize) {
    short::round::<V>(x, group);
}

struct Tile;

fn by_row<A: Copy, B: Copy, C>(a: Rows<A>, b: Rows<B>, f: impl Fn(A, B) -> C) -> Rows<C> {
    std::array::from_fn(|r| f(a[r], b[r]))
}

impl Lanes for Tile {
    const ROWS: usize = TILE_ROWS;
    type Dwords = Rows<u32>;
    type Floats = Rows<f32>;
    type Wide = Rows<f64>;

    unsafe fn shifted(at: *const u8, right: u32) -> Rows<u32> {
        // SAFETY: `at` is 32 dwords of the tile, 64-byte aligned.
        unsafe { *at.cast::<Rows<u32>>() }.map(|d| d >> right)
    }

    unsafe fn zero() -> Rows<f32> {
        [0.0; TILE_ROWS]
    }

    unsafe fn broadcast(at: *const f32) -> Rows<f32> {
        // SAFETY: `at` is a readable float.
        [unsafe { *at }; TILE_ROWS]
    }

    unsafe fn plus(a: Rows<f32>, b: Rows<f32>) -> Rows<f32> {
        by_row(a, b, |a, b| a + b)
    }

    unsafe fn times(a: Rows<f32>, b: Rows<f32>) -> Rows<f32> {
        by_row(a, b, |a, b| a * b)
    }

    unsafe fn multiply_add(a: Rows<f32>, b: Rows<f32>, c: Rows<f32>) -> Rows<f32> {
        std::array::from_fn(|r| a[r] * b[r] + c[r])
    }

    unsafe fn write(values: Rows<f32>, to: *mut f32) {
        // SAFETY: `to` is 32 floats.
        unsafe { to.cast::<Rows<f32>>().write(values) }
    }

    unsafe fn scales(l: &Layout, tail: *const u8, _: usize) -> Rows<f32> {
        // SAFETY: `tail` points to the scales of a group.
        unsafe { scales(l, tail) }
    }

    unsafe fn base(l: &Layout, tail: *const u8, _: usize) -> Rows<f32> {
        // SAFETY: `tail` points to the scales of a group.
        unsafe { zero_points(l, tail) }.map(|z| z as f32)
    }

    unsafe fn level<const J: usize>(quad: Rows<u32>, mask: u8, base: Rows<f32>) -> Rows<f32> {
        by_row(quad, base, |quad, base| {
            let code = quad.to_le_bytes()[J] & mask;
            code as f32 - base
        })
    }

    unsafe fn signed<const J: usize>(quad: Rows<u32>, scale: Rows<f32>) -> Rows<f32> {
        by_row(quad, scale, |quad, scale| match quad.to_le_bytes()[J] & 1 {
            1 => scale,
            _ => -scale,
        })
    }

    unsafe fn zero_wide() -> Rows<f64> {
        [0.0; TILE_ROWS]
    }

    unsafe fn flush(sum: Rows<f64>, more: Rows<f32>) -> Rows<f64> {
        by_row(sum, more, |sum, more| sum + more as f64)
    }

    unsafe fn store(values: Rows<f64>, out: *mut f32) {
        // SAFETY: `out` is 32 floats.
        unsafe { out.cast::<Rows<f32>>().write(values.map(|v| v as f32)) }
    }

    fn prefetch(_: *const u8, _: *const u8) {}
}
