//! The operations that the vector kernels need from an instruction set.

use half::f16;

/// Sixteen floats at one instruction-set level; a value proves that the processor has it.
///
/// The kernels are written once over this trait, in safe Rust. Every method is `#[inline(always)]`,
/// because it must be inlined into the function that enables the features.
pub(super) trait Lanes: Copy {
    /// 16 floats.
    type F: Copy;

    /// `v` in every lane.
    fn splat(self, v: f32) -> Self::F;
    /// From memory.
    fn load(self, from: &[f32; 16]) -> Self::F;
    /// Float16 numbers, widened.
    fn widen(self, from: &[f16; 16]) -> Self::F;
    /// To memory.
    fn store(self, v: Self::F, to: &mut [f32; 16]);
    /// To memory as float16, rounded to nearest, ties to even.
    fn narrow(self, v: Self::F, to: &mut [f16; 16]);
    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger; `b` if either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller; `b` if either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// Rounded to the nearest integer.
    fn round(self, v: Self::F) -> Self::F;
    /// `2^n`, for integers -126 to 127.
    fn power_of_two(self, n: Self::F) -> Self::F;
    /// `v` where `a >= b` or either is NaN, else 0.
    fn unless_below(self, a: Self::F, b: Self::F, v: Self::F) -> Self::F;

    /// Prefetches a cache line; the address need not be valid.
    #[inline(always)]
    fn prefetch(self, _at: *const u8) {}

    /// `a - b`.
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        self.mul_add(b, self.splat(-1.0), a)
    }

    /// The first `from.len()` lanes from memory, 0 in the others.
    #[inline(always)]
    fn load_first(self, from: &[f32]) -> Self::F {
        let mut all = [0.0; 16];
        all[..from.len()].copy_from_slice(from);
        self.load(&all)
    }

    /// The first `to.len()` lanes to memory.
    #[inline(always)]
    fn store_first(self, v: Self::F, to: &mut [f32]) {
        let mut all = [0.0; 16];
        self.store(v, &mut all);
        to.copy_from_slice(&all[..to.len()]);
    }

    /// The sum of the lanes, by a tree of halves.
    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        let mut all = [0.0; 16];
        self.store(v, &mut all);
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                all[i] += all[i + half];
            }
        }
        all[0]
    }

    /// The largest lane, ignoring NaN.
    #[inline(always)]
    fn largest(self, v: Self::F) -> f32 {
        let mut all = [0.0; 16];
        self.store(v, &mut all);
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                all[i] = all[i].max(all[i + half]);
            }
        }
        all[0]
    }

    /// `e^v` within 2 units in the last place; 0 below -87.
    ///
    /// `2^n e^r` with `|r| <= ln(2)/2`: the polynomial of Cephes' `expf`.
    #[inline(always)]
    fn exp(self, v: Self::F) -> Self::F {
        let (lowest, highest) = (self.splat(-87.0), self.splat(88.0));
        // NaN passes through.
        let x = self.min(highest, self.max(lowest, v));
        let n = self.round(self.mul(x, self.splat(std::f32::consts::LOG2_E)));
        let r = self.mul_add(n, self.splat(-0.693_359_4), x);
        let r = self.mul_add(n, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.987_569_2e-4);
        for c in [
            1.398_199_9e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_5e-1,
            0.5,
        ] {
            p = self.mul_add(p, r, self.splat(c));
        }
        let e = self.add(self.mul_add(p, self.mul(r, r), r), self.splat(1.0));
        self.unless_below(v, lowest, self.mul(e, self.power_of_two(n)))
    }

    /// `1 / (1 + e^-v)`.
    #[inline(always)]
    fn sigmoid(self, v: Self::F) -> Self::F {
        let one = self.splat(1.0);
        self.div(one, self.add(one, self.exp(self.mul(v, self.splat(-1.0)))))
    }
}

/// What the kernels load as 16 floats.
pub(super) trait Wide: Copy {
    /// From memory.
    fn load<L: Lanes>(l: L, from: &[Self; 16]) -> L::F;
}

impl Wide for f32 {
    #[inline(always)]
    fn load<L: Lanes>(l: L, from: &[f32; 16]) -> L::F {
        l.load(from)
    }
}

impl Wide for f16 {
    #[inline(always)]
    fn load<L: Lanes>(l: L, from: &[f16; 16]) -> L::F {
        l.widen(from)
    }
}
