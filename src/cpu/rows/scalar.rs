//! Plain Rust: the reference for the other levels, and the level of other architectures.

use super::level::Level;
use super::{RowSource, Table, UnpackScratch, dot, kernel_table, sign, unpack};
use crate::cpu::Isa;
use half::f16;

const LANES: usize = 16;

/// Every processor has this level.
#[derive(Clone, Copy)]
struct Scalar;

/// The scale, the step and the zero point of a group.
#[derive(Clone, Copy)]
struct Group {
    scale: f32,
    step: f32,
    zero: f32,
}

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    let mut out = a;
    for (o, b) in out.iter_mut().zip(b) {
        *o = f(*o, b);
    }
    out
}

impl Level<LANES> for Scalar {
    type F = [f32; LANES];
    type Group = Group;
    const TABLE_BITS: usize = 0;

    #[inline(always)]
    fn splat(self, v: f32) -> Self::F {
        [v; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        *from
    }

    #[inline(always)]
    fn store(self, v: Self::F, to: &mut [f32; LANES]) {
        *to = v;
    }

    #[inline(always)]
    fn store_from(self, v: Self::F, to: &mut [f32; LANES], first: usize) {
        to[first..].copy_from_slice(&v[first..]);
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }

    // Two roundings: without the FMA instruction `f32::mul_add` is a call to libm per lane.
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        self.add(self.mul(a, b), c)
    }

    #[inline(always)]
    fn mul_sub(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        zip(self.mul(a, b), c, |ab, c| ab - c)
    }

    #[inline(always)]
    fn widen(self, from: &[f16; LANES]) -> Self::F {
        from.map(f16::to_f32)
    }

    #[inline(always)]
    fn pick(self, values: &[f32; LANES], index: &[u32; LANES]) -> Self::F {
        index.map(|i| values[i as usize % LANES])
    }

    #[inline(always)]
    fn sum(self, v: Self::F) -> f64 {
        let mut s = v.map(f64::from);
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                s[i] += s[i + half];
            }
        }
        s[0]
    }

    #[inline(always)]
    fn codes<const BITS: usize>(self, bytes: &[u8]) -> Self::F {
        let mut out = [0.0; LANES];
        for (i, o) in out.iter_mut().enumerate() {
            let below = 8 - BITS - i * BITS % 8;
            *o = (bytes[i * BITS / 8] >> below & (u8::MAX >> (8 - BITS))) as f32;
        }
        out
    }

    #[inline(always)]
    fn group<const BITS: usize>(self, scale: f32, step: f32, zero: f32) -> Group {
        Group { scale, step, zero }
    }

    #[inline(always)]
    fn weights<const BITS: usize>(self, g: Group, bytes: &[u8]) -> Self::F {
        self.codes::<BITS>(bytes)
            .map(|code| g.scale * (g.step * code - g.zero))
    }
}

kernel_table!(Isa::Scalar, Scalar, 16, 2 x 1, Scalar);
