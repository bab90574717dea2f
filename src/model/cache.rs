//! Keys and values of the positions that were fed.

use std::ops::Range;

use bytemuck::Zeroable;
use half::f16;

use super::architecture::Architecture;
use super::options::Precision;
use crate::cpu::vector::{BLOCK, Cached, VectorKernels};
use crate::error::{Error, Result};
use crate::memory;

/// The cache of all layers.
///
/// A layer that sees every position has room for the whole context. One with a sliding window is a ring with room for its
/// window and the tokens that are fed together, so that each of them still finds what it may see.
pub(super) enum Cache {
    F16(Vec<Layer<f16>>),
    F32(Vec<Layer<f32>>),
}

/// Keys and values of a layer, in the form that the kernels read (see [`crate::cpu::vector`]).
///
/// A position's slot is the position modulo the number of slots, a multiple of [`BLOCK`]: a block of positions is a block of
/// slots.
pub(super) struct Layer<T> {
    /// `(kv_heads, slots / BLOCK, head_dim, BLOCK)`
    keys: Vec<T>,
    /// `(kv_heads, slots, width)`
    values: Vec<T>,
    slots: usize,
    head_dim: usize,
    /// A head of values, rounded up to whole vectors.
    width: usize,
    /// `(head_dim)`
    narrowed: Vec<T>,
}

impl Cache {
    /// For sequences of up to `context` tokens, fed `block` at a time at most. The first `elsewhere` layers have none here.
    pub fn new(
        a: &Architecture,
        precision: Precision,
        context: usize,
        block: usize,
        elsewhere: usize,
    ) -> Result<Cache> {
        Ok(match precision {
            Precision::F16 => Cache::F16(layers(a, context, block, elsewhere)?),
            Precision::F32 => Cache::F32(layers(a, context, block, elsewhere)?),
        })
    }

    /// Slots of the layer with the fewest.
    pub fn least_slots(&self) -> usize {
        let here = |slots: &usize| *slots > 0;
        let slots = match self {
            Cache::F16(layers) => layers.iter().map(|l| l.slots).filter(here).min(),
            Cache::F32(layers) => layers.iter().map(|l| l.slots).filter(here).min(),
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
            Cache::F16(layers) => layers.iter().map(Layer::bytes).sum(),
            Cache::F32(layers) => layers.iter().map(Layer::bytes).sum(),
        }
    }
}

/// Slots of a layer: for its window and the tokens that are fed together, or for the whole context; a multiple of [`BLOCK`]. `None`:
/// more than can be counted.
pub(super) fn slots_of(window: Option<usize>, context: usize, block: usize) -> Option<usize> {
    let slots = window.map_or(context, |w| context.min(w.saturating_add(block)));
    slots.checked_next_multiple_of(BLOCK)
}

fn layers<T: Cached + Zeroable>(
    a: &Architecture,
    context: usize,
    block: usize,
    elsewhere: usize,
) -> Result<Vec<Layer<T>>> {
    let width = a.head_dim.next_multiple_of(16);
    let layer = |(i, window): (usize, &Option<usize>)| {
        let slots = match i < elsewhere {
            true => Some(0),
            false => slots_of(*window, context, block),
        };
        // Zeroed by the system, so that positions that are never fed cost nothing.
        let zeroed = |width: usize| {
            slots
                .and_then(|slots| slots.checked_mul(a.kv_heads * width))
                .and_then(|len| bytemuck::allocation::try_zeroed_vec(len).ok())
                .ok_or_else(|| {
                    Error::memory(format!(
                        "no memory for keys and values of a context of {context} positions"
                    ))
                })
        };
        Ok(Layer {
            keys: zeroed(a.head_dim)?,
            values: zeroed(width)?,
            slots: slots.expect("there was memory for so many"),
            head_dim: a.head_dim,
            width,
            narrowed: memory::filled(a.head_dim, T::zeroed(), "a narrowed key")?,
        })
    };
    a.windows.iter().enumerate().map(layer).collect()
}

impl<T: Cached> Layer<T> {
    fn bytes(&self) -> usize {
        size_of_val(self.keys.as_slice()) + size_of_val(self.values.as_slice())
    }

    /// Keeps the keys and values of the positions from `first` on: `(n, kv_heads, head_dim)` each.
    pub fn keep(&mut self, k: &VectorKernels, first: usize, keys: &[f32], values: &[f32]) {
        let (dim, heads) = (self.head_dim, self.values.len() / (self.slots * self.width));
        for (i, (key, value)) in keys
            .chunks_exact(dim)
            .zip(values.chunks_exact(dim))
            .enumerate()
        {
            let (slot, head) = ((first + i / heads) % self.slots, i % heads);
            let to = &mut self.values[(head * self.slots + slot) * self.width..][..dim];
            T::narrow(k, value, to);
            T::narrow(k, key, &mut self.narrowed);
            let at = (head * self.slots + slot / BLOCK * BLOCK) * dim + slot % BLOCK;
            let to = self.keys[at..].iter_mut().step_by(BLOCK);
            for (to, &key) in to.zip(&self.narrowed) {
                *to = key;
            }
        }
    }

    /// Keys of a head: those of the blocks of positions in `blocks`, which are at most as many as there are slots for, in
    /// at most two parts, with the number of blocks before each.
    pub fn keys(&self, head: usize, blocks: Range<usize>) -> [(usize, &[T]); 2] {
        let size = BLOCK * self.head_dim;
        let keys = &self.keys[head * self.slots * self.head_dim..][..self.slots * self.head_dim];
        parts(keys, size, blocks)
    }

    /// Values of a head, as [`Layer::keys`], by positions.
    pub fn values(&self, head: usize, positions: Range<usize>) -> [(usize, &[T]); 2] {
        let values = &self.values[head * self.slots * self.width..][..self.slots * self.width];
        parts(values, self.width, positions)
    }

    /// The width of a head of values.
    pub fn width(&self) -> usize {
        self.width
    }
}

/// The items of `range` in a ring of items of `size` elements.
fn parts<T>(ring: &[T], size: usize, range: Range<usize>) -> [(usize, &[T]); 2] {
    let slots = ring.len() / size;
    let from = range.start % slots;
    let straight = range.len().min(slots - from);
    let rest = range.len() - straight;
    [
        (0, &ring[from * size..(from + straight) * size]),
        (straight, &ring[..rest * size]),
    ]
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn a_ring_is_read_in_at_most_two_parts() {
        let ring: Vec<usize> = (0..10).collect();
        for start in 0..12 {
            for len in 0..=5 {
                let [(zero, a), (before, b)] = parts(&ring, 2, start..start + len);
                assert_eq!((zero, before * 2), (0, a.len()));
                let expected: Vec<usize> = (start * 2..(start + len) * 2).map(|i| i % 10).collect();
                assert_eq!([a, b].concat(), expected);
            }
        }
    }
}
