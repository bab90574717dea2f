//! Keys and values of the positions that were fed.

use bytemuck::Zeroable;
use half::f16;

use super::architecture::Architecture;
use super::options::Precision;
use crate::cpu::vector::Cached;
use crate::error::{Error, Result};

/// The cache of all layers.
///
/// A layer that sees every position has room for the whole context. One with a sliding window is a ring with room for its
/// window and the block that is being fed, so that every query of a block still finds what it may see.
pub(super) enum Cache {
    F16(Vec<Layer<f16>>),
    F32(Vec<Layer<f32>>),
}

/// Keys and values of a layer: `(kv_heads, slots, head_dim)` each.
pub(super) struct Layer<T> {
    pub keys: Vec<T>,
    pub values: Vec<T>,
    pub slots: usize,
}

impl Cache {
    pub fn new(
        a: &Architecture,
        precision: Precision,
        context: usize,
        block: usize,
    ) -> Result<Cache> {
        Ok(match precision {
            Precision::F16 => Cache::F16(layers(a, context, block)?),
            Precision::F32 => Cache::F32(layers(a, context, block)?),
        })
    }

    /// Slots of the layer with the fewest.
    pub fn least_slots(&self) -> usize {
        let slots = match self {
            Cache::F16(layers) => layers.iter().map(|l| l.slots).min(),
            Cache::F32(layers) => layers.iter().map(|l| l.slots).min(),
        };
        slots.unwrap_or(usize::MAX)
    }

    pub fn precision(&self) -> &'static str {
        match self {
            Cache::F16(_) => "f16",
            Cache::F32(_) => "f32",
        }
    }

    pub fn bytes(&self) -> usize {
        match self {
            Cache::F16(layers) => layers.iter().map(|l| 4 * l.keys.len()).sum(),
            Cache::F32(layers) => layers.iter().map(|l| 8 * l.keys.len()).sum(),
        }
    }
}

fn layers<T: Cached + Zeroable>(
    a: &Architecture,
    context: usize,
    block: usize,
) -> Result<Vec<Layer<T>>> {
    let layer = |window: &Option<usize>| {
        let slots = window.map_or(context, |w| context.min(w.saturating_add(block)));
        let len = slots.checked_mul(a.kv_heads * a.head_dim);
        // Zeroed by the system, so that positions that are never fed cost nothing.
        let zeroed = || {
            len.and_then(|len| bytemuck::allocation::try_zeroed_vec(len).ok())
                .ok_or_else(|| {
                    Error::memory(format!(
                        "no memory for keys and values of a context of {context} positions"
                    ))
                })
        };
        Ok(Layer {
            keys: zeroed()?,
            values: zeroed()?,
            slots,
        })
    };
    a.windows.iter().map(layer).collect()
}

impl<T: Cached> Layer<T> {
    /// Keeps the keys and values of the positions from `first` on: `(n, kv_heads, head_dim)` each.
    pub fn keep(&mut self, first: usize, keys: &[f32], values: &[f32], heads: usize, width: usize) {
        for (from, to) in [(keys, &mut self.keys), (values, &mut self.values)] {
            for (t, from) in from.chunks_exact(heads * width).enumerate() {
                let slot = (first + t) % self.slots;
                for (h, from) in from.chunks_exact(width).enumerate() {
                    let to = &mut to[(h * self.slots + slot) * width..][..width];
                    for (to, &from) in to.iter_mut().zip(from) {
                        *to = T::rounded(from);
                    }
                }
            }
        }
    }

    /// The slots of the positions from `first` to before `end`, as at most two runs in order.
    pub fn runs(&self, first: usize, end: usize) -> [std::ops::Range<usize>; 2] {
        let (from, len) = (first % self.slots, end - first);
        let straight = len.min(self.slots - from);
        [from..from + straight, 0..len - straight]
    }
}
