//! Plain Rust: the reference for the other levels, and the level of other architectures.

use half::f16;

use super::lanes::{self, Lanes};
use super::{Chunk, Table, attention, by_rows, elementwise, vector_table};
use crate::cpu::Isa;

/// Every processor has this level.
#[derive(Clone, Copy)]
struct Scalar;

#[inline(always)]
fn zip(a: [f32; 16], b: [f32; 16], f: impl Fn(f32, f32) -> f32) -> [f32; 16] {
    let mut out = a;
    for (o, b) in out.iter_mut().zip(b) {
        *o = f(*o, b);
    }
    out
}

impl Lanes for Scalar {
    type F = [f32; 16];

    #[inline(always)]
    fn splat(self, v: f32) -> Self::F {
        [v; 16]
    }

    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> Self::F {
        *from
    }

    #[inline(always)]
    fn widen(self, from: &[f16; 16]) -> Self::F {
        from.map(f16::to_f32)
    }

    #[inline(always)]
    fn store(self, v: Self::F, to: &mut [f32; 16]) {
        *to = v;
    }

    #[inline(always)]
    fn narrow(self, v: Self::F, to: &mut [f16; 16]) {
        *to = v.map(f16::from_f32);
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }

    // On x86-64 this is a call to libm per lane: the price of the same bits at every level.
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn round(self, v: Self::F) -> Self::F {
        // Adding and subtracting 1.5 * 2^23 rounds any magnitude below 2^22 to the nearest integer.
        const SHIFT: f32 = 12_582_912.0;
        v.map(|v| (v + SHIFT) - SHIFT)
    }

    #[inline(always)]
    fn power_of_two(self, n: Self::F) -> Self::F {
        n.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    fn unless_below(self, a: Self::F, b: Self::F, v: Self::F) -> Self::F {
        let mut out = v;
        for i in 0..16 {
            if a[i] < b[i] {
                out[i] = 0.0;
            }
        }
        out
    }
}

vector_table!(
    Isa::Scalar,
    Scalar,
    [(1, 1), (2, 1), (4, 1), (8, 1)],
    Scalar
);
