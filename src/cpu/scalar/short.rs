//! Short groups: the instructions of [`crate::cpu::short`], all rows of a tile side by side.

#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "the contract of `Lanes`: pointers are the caller's"
)]

use super::{Lanes as Rows, scales, zero_points};
use crate::cpu::layout::{Layout, TILE_ROWS};
use crate::cpu::short::{self, Lanes};
use crate::cpu::tile::Int8Acts;

/// # Safety
/// The contract of [`crate::cpu::tile`].
pub(super) unsafe fn int8<const V: usize>(
    l: &Layout,
    tile: *const u8,
    acts: Int8Acts,
    out: *mut f32,
) {
    // SAFETY: the caller's.
    unsafe { short::int8::<Tile, 1, 1, V>(l, tile, acts, out) }
}

/// # Safety
/// The contract of [`crate::cpu::tile`].
pub(super) unsafe fn float<const V: usize>(
    l: &Layout,
    tile: *const u8,
    x: *const f32,
    out: *mut f32,
) {
    // SAFETY: the caller's.
    unsafe { short::float::<Tile, 1, 1, V>(l, tile, x, out) }
}

struct Tile;

fn by_row<A: Copy, B: Copy, C>(a: Rows<A>, b: Rows<B>, f: impl Fn(A, B) -> C) -> Rows<C> {
    std::array::from_fn(|r| f(a[r], b[r]))
}

impl Lanes for Tile {
    const ROWS: usize = TILE_ROWS;
    type Dwords = Rows<i32>;
    type Floats = Rows<f32>;
    type Wide = Rows<f64>;
    type Sums = Rows<i32>;

    unsafe fn splat(value: i32) -> Rows<i32> {
        [value; TILE_ROWS]
    }

    unsafe fn shifted(at: *const u8, right: i32) -> Rows<i32> {
        let dwords = unsafe { *at.cast::<Rows<u32>>() };
        dwords.map(|d| d.rotate_right(right.rem_euclid(32) as u32) as i32)
    }

    unsafe fn and(a: Rows<i32>, b: Rows<i32>) -> Rows<i32> {
        by_row(a, b, |a, b| a & b)
    }

    unsafe fn times_i16(a: Rows<i32>, b: Rows<i32>) -> Rows<i32> {
        by_row(a, b, |a, b| a * b)
    }

    unsafe fn sums(start: Rows<i32>) -> Rows<i32> {
        start
    }

    unsafe fn add(sums: Rows<i32>, u: Rows<i32>, s: Rows<i32>) -> Rows<i32> {
        let dot = by_row(u, s, |u, s| {
            let pairs = u.to_le_bytes().into_iter().zip(s.to_le_bytes());
            pairs.map(|(u, s)| u as i32 * s as i8 as i32).sum::<i32>()
        });
        by_row(sums, dot, |sum, dot| sum + dot)
    }

    unsafe fn total(sums: Rows<i32>) -> Rows<f32> {
        sums.map(|s| s as f32)
    }

    unsafe fn zero() -> Rows<f32> {
        [0.0; TILE_ROWS]
    }

    unsafe fn broadcast(at: *const f32) -> Rows<f32> {
        [unsafe { *at }; TILE_ROWS]
    }

    unsafe fn times(a: Rows<f32>, b: Rows<f32>) -> Rows<f32> {
        by_row(a, b, |a, b| a * b)
    }

    unsafe fn fused(a: Rows<f32>, b: Rows<f32>, c: Rows<f32>) -> Rows<f32> {
        std::array::from_fn(|r| a[r].mul_add(b[r], c[r]))
    }

    unsafe fn multiply_add(a: Rows<f32>, b: Rows<f32>, c: Rows<f32>) -> Rows<f32> {
        std::array::from_fn(|r| a[r] * b[r] + c[r])
    }

    unsafe fn scales(l: &Layout, tail: *const u8, _: usize) -> Rows<f32> {
        unsafe { scales(l, tail) }
    }

    unsafe fn zero_points(l: &Layout, tail: *const u8, _: usize) -> Rows<i32> {
        unsafe { zero_points(l, tail) }
    }

    unsafe fn base(zero_points: Rows<i32>) -> Rows<f32> {
        zero_points.map(|z| z as f32)
    }

    unsafe fn level<const J: usize>(
        quad: Rows<i32>,
        mask: Rows<i32>,
        base: Rows<f32>,
    ) -> Rows<f32> {
        let code = by_row(quad, mask, |quad, mask| quad >> (8 * J) & mask);
        by_row(code, base, |code, base| code as f32 - base)
    }

    unsafe fn zero_wide() -> Rows<f64> {
        [0.0; TILE_ROWS]
    }

    unsafe fn flush(sum: Rows<f64>, more: Rows<f32>) -> Rows<f64> {
        by_row(sum, more, |sum, more| sum + more as f64)
    }

    unsafe fn store(values: Rows<f64>, out: *mut f32) {
        unsafe { out.cast::<Rows<f32>>().write(values.map(|v| v as f32)) }
    }

    unsafe fn prefetch(_: *const u8) {}
}
