//! Kernels over vectors of activations: what a transformer does between its products.
//!
//! # Contract
//!
//! Every sum runs over [`LANES`] lanes along the vector, each lane a chain of fused multiply-adds, and the lanes are added in one
//! fixed tree; an element beyond the last whole vector goes to its own lane. So every level gives the same bits: a level is
//! the same source compiled for other registers (`generic.rs`), and where a processor has no fused multiply-add its result is
//! computed in software. Chains are no longer than a head or a hidden state is wide, divided by the lanes.
//!
//! Float16 operands are finite. Kernels do not allocate, and read nothing beyond the slices that they are given.

mod generic;
#[cfg(test)]
mod tests;

use std::fmt;

use half::f16;

use super::Isa;

/// Lanes of a sum.
pub const LANES: usize = 16;

/// One level's functions. They are `unsafe` to call because the processor must have the level.
struct Table {
    isa: Isa,
    dots_f16: unsafe fn(&[f32], &[f16], &mut [f32], usize, usize),
    dots_f32: unsafe fn(&[f32], &[f32], &mut [f32], usize, usize),
    mix_f16: unsafe fn(&mut [f32], &[f32], &[f16], usize),
    mix_f32: unsafe fn(&mut [f32], &[f32], &[f32], usize),
    softmax: unsafe fn(&mut [f32], Option<f32>),
    rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    silu_times: unsafe fn(&mut [f32], &[f32]),
    gelu_times: unsafe fn(&mut [f32], &[f32]),
    softcap: unsafe fn(&mut [f32], f32),
}

/// The vector kernels of one level; one exists only where the processor has the level.
#[derive(Clone, Copy)]
pub struct VectorKernels {
    table: &'static Table,
}

impl fmt::Debug for VectorKernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VectorKernels({})", self.table.isa)
    }
}

/// Compiles the generic kernels for one level.
macro_rules! level {
    ($name:ident, $isa:ident $(, $features:literal)?) => {
        mod $name {
            use super::generic;
            use half::f16;

            $(#[target_feature(enable = $features)])?
            unsafe fn dots_f16(q: &[f32], keys: &[f16], out: &mut [f32], width: usize, stride: usize) {
                generic::dots(q, keys, out, width, stride);
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn dots_f32(q: &[f32], keys: &[f32], out: &mut [f32], width: usize, stride: usize) {
                generic::dots(q, keys, out, width, stride);
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn mix_f16(out: &mut [f32], weights: &[f32], values: &[f16], stride: usize) {
                generic::mix(out, weights, values, stride);
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn mix_f32(out: &mut [f32], weights: &[f32], values: &[f32], stride: usize) {
                generic::mix(out, weights, values, stride);
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn softmax(scores: &mut [f32], cap: Option<f32>) {
                generic::softmax(scores, cap);
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn rms_norm(x: &[f32], weights: &[f32], eps: f32, out: &mut [f32]) {
                generic::rms_norm(x, weights, eps, out);
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn silu_times(gate: &mut [f32], up: &[f32]) {
                generic::silu_times(gate, up);
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn gelu_times(gate: &mut [f32], up: &[f32]) {
                generic::gelu_times(gate, up);
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn softcap(x: &mut [f32], cap: f32) {
                generic::softcap(x, cap);
            }

            pub(super) static TABLE: super::Table = super::Table {
                isa: crate::cpu::Isa::$isa,
                dots_f16,
                dots_f32,
                mix_f16,
                mix_f32,
                softmax,
                rms_norm,
                silu_times,
                gelu_times,
                softcap,
            };
        }
    };
}

level!(scalar, Scalar);
#[cfg(target_arch = "x86_64")]
level!(avx2, Avx2, "avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
level!(
    avx512,
    Avx512,
    "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
);

/// What a key/value cache holds.
pub trait Cached: Copy + Send + Sync + 'static {
    #[doc(hidden)]
    fn dots(
        k: &VectorKernels,
        q: &[f32],
        keys: &[Self],
        out: &mut [f32],
        width: usize,
        stride: usize,
    );
    #[doc(hidden)]
    fn mix(k: &VectorKernels, out: &mut [f32], weights: &[f32], values: &[Self], stride: usize);
    /// Rounded from float32; what does not fit becomes the largest number.
    fn rounded(x: f32) -> Self;
}

impl Cached for f16 {
    fn dots(
        k: &VectorKernels,
        q: &[f32],
        keys: &[f16],
        out: &mut [f32],
        width: usize,
        stride: usize,
    ) {
        // SAFETY: that `k` exists proves that the processor has its level.
        unsafe { (k.table.dots_f16)(q, keys, out, width, stride) }
    }
    fn mix(k: &VectorKernels, out: &mut [f32], weights: &[f32], values: &[f16], stride: usize) {
        // SAFETY: as above.
        unsafe { (k.table.mix_f16)(out, weights, values, stride) }
    }
    fn rounded(x: f32) -> f16 {
        f16::from_f32(x.clamp(-65504.0, 65504.0))
    }
}

impl Cached for f32 {
    fn dots(
        k: &VectorKernels,
        q: &[f32],
        keys: &[f32],
        out: &mut [f32],
        width: usize,
        stride: usize,
    ) {
        // SAFETY: as above.
        unsafe { (k.table.dots_f32)(q, keys, out, width, stride) }
    }
    fn mix(k: &VectorKernels, out: &mut [f32], weights: &[f32], values: &[f32], stride: usize) {
        // SAFETY: as above.
        unsafe { (k.table.mix_f32)(out, weights, values, stride) }
    }
    fn rounded(x: f32) -> f32 {
        x
    }
}

impl VectorKernels {
    /// The kernels of a level, or `None` where the processor lacks it.
    pub fn for_isa(isa: Isa) -> Option<VectorKernels> {
        let table = match isa {
            _ if !isa.available() => return None,
            Isa::Scalar => &scalar::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &avx2::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &avx512::TABLE,
            #[cfg(not(target_arch = "x86_64"))]
            _ => return None,
        };
        Some(VectorKernels { table })
    }

    /// `out[i * stride + j] = q[i] . keys[j]`: `q` is `(m, width)`, `keys` `(n, width)`; `out` has a row of `stride` for each
    /// of `m`, of which the first `n` are written.
    pub fn dots<T: Cached>(
        &self,
        q: &[f32],
        keys: &[T],
        out: &mut [f32],
        width: usize,
        stride: usize,
    ) {
        T::dots(self, q, keys, out, width, stride);
    }

    /// `out[i] += weights[i * stride + j] * values[j]`, summed over `j`: `out` is `(m, width)`, `values` `(n, width)`, `weights`
    /// a row of `stride` for each of `m`, of which the first `n` are read.
    pub fn mix<T: Cached>(&self, out: &mut [f32], weights: &[f32], values: &[T], stride: usize) {
        T::mix(self, out, weights, values, stride);
    }

    /// `softmax(scores)`, after `cap * tanh(score / cap)` if there is a cap.
    pub fn softmax(&self, scores: &mut [f32], cap: Option<f32>) {
        // SAFETY: that this exists proves that the processor has its level.
        unsafe { (self.table.softmax)(scores, cap) }
    }

    /// `x / sqrt(mean(x^2) + eps) * weights`; all of one length.
    pub fn rms_norm(&self, x: &[f32], weights: &[f32], eps: f32, out: &mut [f32]) {
        // SAFETY: as above.
        unsafe { (self.table.rms_norm)(x, weights, eps, out) }
    }

    /// `gate = gate * sigmoid(gate) * up`.
    pub fn silu_times(&self, gate: &mut [f32], up: &[f32]) {
        // SAFETY: as above.
        unsafe { (self.table.silu_times)(gate, up) }
    }

    /// `gate = gelu(gate) * up`, by the tanh formula.
    pub fn gelu_times(&self, gate: &mut [f32], up: &[f32]) {
        // SAFETY: as above.
        unsafe { (self.table.gelu_times)(gate, up) }
    }

    /// `x = cap * tanh(x / cap)`.
    pub fn softcap(&self, x: &mut [f32], cap: f32) {
        // SAFETY: as above.
        unsafe { (self.table.softcap)(x, cap) }
    }
}
