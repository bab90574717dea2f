//! The operations that the row kernels need from an instruction set.

use half::f16;

/// One instruction-set level, as a value whose existence proves that the processor has it.
///
/// The kernels of `dot.rs` and `unpack.rs` are written once over this trait, `N` lanes wide, in
/// safe Rust; an implementation provides arithmetic on `N` lanes and the extraction of `N` codes.
/// Every method is `#[inline(always)]`, because it must be inlined into the function that enables
/// the features.
pub(super) trait Level<const N: usize>: Copy {
    /// `N` floats.
    type F: Copy;
    /// What converts the codes of one group to weights: its scale and zero point, or a table of all
    /// its weights.
    type Group: Copy;

    /// The widest codes for which [`Level::weights`] uses a table of all weights.
    const TABLE_BITS: usize;

    /// `v` in every lane.
    fn splat(self, v: f32) -> Self::F;
    /// `N` floats from memory.
    fn load(self, from: &[f32; N]) -> Self::F;
    /// `N` floats to memory.
    fn store(self, v: Self::F, to: &mut [f32; N]);
    /// Stores lanes `first..`; `first` is below `N`.
    fn store_from(self, v: Self::F, to: &mut [f32; N], first: usize);
    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once where the level has a fused instruction, else twice.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a * b - c`; used where every intermediate is a small integer, so that nothing is rounded.
    fn mul_sub(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `N` float16 numbers, widened.
    fn widen(self, from: &[f16; N]) -> Self::F;
    /// Lane `l` is `values[index[l]]`; the indices are below `N`.
    fn pick(self, values: &[f32; N], index: &[u32; N]) -> Self::F;
    /// The sum of the lanes in float64, always in the same order.
    fn sum(self, v: Self::F) -> f64;

    /// `N` codes of `BITS` bits as floats; `bytes` is exactly `N * BITS / 8` long, with the first
    /// code in the most significant bits.
    fn codes<const BITS: usize>(self, bytes: &[u8]) -> Self::F;
    /// A group whose weights are `scale * (step * code - zero)`.
    fn group<const BITS: usize>(self, scale: f32, step: f32, zero: f32) -> Self::Group;
    /// The weights of `N` codes of one group; `bytes` as in [`Level::codes`].
    fn weights<const BITS: usize>(self, group: Self::Group, bytes: &[u8]) -> Self::F;
}
