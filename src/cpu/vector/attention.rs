//! Attention of a few rows over part of a chunk.
//!
//! In decode, each key and value is read once per token, from memory: the caches of a layer are
//! used far apart in time. The kernels prefetch them; on a Zen 4 core, alongside other work, that
//! took the scores of 544 positions from 1.4 to 0.7 ms per token of 22 layers.

use super::lanes::{Lanes, Wide};
use super::{BLOCK, CHUNK, Chunk};
use crate::cpu::prefetch_line;

/// The prefetch distance in bytes: less than 2 KB comes too late, and what is prefetched beyond the
/// last position is wasted.
const PREFETCH_DISTANCE: usize = 4096;

const LINE: usize = 64;

/// Prefetches the first `PREFETCH_DISTANCE` bytes of the keys, or of the values, that a kernel
/// will read: the kernel itself only prefetches at that distance.
pub fn prefetch_beginning<T>(of: &[T]) {
    let lines = of.iter().step_by(LINE / size_of::<T>());
    lines
        .take(PREFETCH_DISTANCE / LINE)
        .for_each(|v| prefetch_line(v));
}

/// See [`super::VectorKernels::scores`]; `B` blocks of keys and `S` rows at a time.
#[inline(always)]
pub(super) fn scores<L: Lanes, T: Wide, const R: usize, const S: usize, const B: usize>(
    l: L,
    q: &[f32],
    keys: &[T],
    at: usize,
    out: &mut [Chunk],
) {
    let q = q.as_chunks::<R>().0;
    let out: &mut [Chunk; R] = out.first_chunk_mut().expect("a chunk for each row");
    let size = q.len() * BLOCK;
    let blocks = keys.len() / size;
    let mut b = 0;
    while b + B <= blocks {
        let keys = std::array::from_fn(|i| &keys[(b + i) * size..][..size]);
        for row in (0..R).step_by(S) {
            products::<L, T, R, S, B>(l, q, row, keys, at + b, out);
        }
        b += B;
    }
    while b < blocks {
        for row in (0..R).step_by(S) {
            products::<L, T, R, S, 1>(l, q, row, [&keys[b * size..][..size]], at + b, out);
        }
        b += 1;
    }
}

/// The products of the rows from `row` on; `keys` are consecutive blocks.
#[inline(always)]
fn products<L: Lanes, T: Wide, const R: usize, const S: usize, const B: usize>(
    l: L,
    q: &[[f32; R]],
    row: usize,
    keys: [&[T]; B],
    at: usize,
    out: &mut [Chunk; R],
) {
    // A column of all `B` blocks. The distance is a whole number of runs of `B` blocks, because the
    // blocks of a run are read side by side.
    let step = B * BLOCK * size_of::<T>();
    let ahead = PREFETCH_DISTANCE.next_multiple_of(q.len() * step);
    let next = keys[0].as_ptr().cast::<u8>().wrapping_add(ahead);
    let keys = keys.map(|k| &k.as_chunks::<BLOCK>().0[..q.len()]);
    let mut sums = [[l.splat(0.0); S]; B];
    for (d, q) in q.iter().enumerate() {
        for line in (0..step).step_by(LINE) {
            l.prefetch(next.wrapping_add(d * step + line));
        }
        for b in 0..B {
            let k = T::load(l, &keys[b][d]);
            for r in 0..S {
                sums[b][r] = l.mul_add(l.splat(q[row + r]), k, sums[b][r]);
            }
        }
    }
    for b in 0..B {
        for r in 0..S {
            let to = &mut out[row + r].0[(at + b) * BLOCK..];
            l.store(sums[b][r], to.first_chunk_mut().expect("a block"));
        }
    }
}

/// See [`super::VectorKernels::softmax`].
#[inline(always)]
pub(super) fn softmax<L: Lanes>(l: L, s: &mut [f32], first: usize, end: usize) -> (f32, f32) {
    let blocks = first / BLOCK..end.div_ceil(BLOCK);
    s[..blocks.start * BLOCK].fill(0.0);
    s[blocks.start * BLOCK..first].fill(f32::NEG_INFINITY);
    s[end..blocks.end * BLOCK].fill(f32::NEG_INFINITY);
    s[blocks.end * BLOCK..].fill(0.0);
    let s = &mut s.as_chunks_mut::<BLOCK>().0[blocks];
    let mut largest = l.splat(f32::NEG_INFINITY);
    for s in s.iter() {
        largest = l.max(l.load(s), largest);
    }
    // If all were minus infinity, the difference would be NaN.
    let largest = l.largest(largest).max(f32::MIN);
    let (mut sum, shift) = (l.splat(0.0), l.splat(-largest));
    for s in s {
        let p = l.exp(l.add(l.load(s), shift));
        sum = l.add(sum, p);
        l.store(p, s);
    }
    (largest, l.sum(sum))
}

/// See [`super::VectorKernels::mix`]; `B` times 16 elements and `S` rows at a time.
///
/// Processes a few positions at a time: their values then stay in L1 for all elements and rows,
/// while the values needed next are prefetched. With all positions at a time the first pass was
/// memory-bound, and the remaining passes computed while memory was idle.
#[inline(always)]
pub(super) fn mix<L: Lanes, T: Wide, const R: usize, const S: usize, const B: usize>(
    l: L,
    p: &[Chunk],
    at: usize,
    values: &[T],
    out: &mut [f32],
) {
    let width = out.len() / R;
    let positions = (PREFETCH_DISTANCE / (width * size_of::<T>())).max(1);
    for (i, values) in values.chunks(positions * width).enumerate() {
        let at = at + i * positions;
        for row in (0..R).step_by(S) {
            // The first rows prefetch what all rows will read. The others prefetch the line they
            // are working on, which has no effect.
            let ahead = if row == 0 { PREFETCH_DISTANCE } else { 0 };
            let p: &[Chunk; S] = p[row..].first_chunk().expect("a chunk for each row");
            let out = &mut out[row * width..][..S * width];
            let mut c = 0;
            while c + 16 * B <= width {
                columns::<L, T, S, B>(l, p, at, values, c, ahead, out);
                c += 16 * B;
            }
            while c < width {
                columns::<L, T, S, 1>(l, p, at, values, c, ahead, out);
                c += 16;
            }
        }
    }
}

/// The columns from `c` on.
#[inline(always)]
fn columns<L: Lanes, T: Wide, const S: usize, const B: usize>(
    l: L,
    p: &[Chunk; S],
    at: usize,
    values: &[T],
    c: usize,
    ahead: usize,
    out: &mut [f32],
) {
    let width = out.len() / S;
    let mut sums = [[l.splat(0.0); S]; B];
    for b in 0..B {
        for r in 0..S {
            let from = &out[r * width + c + 16 * b..];
            sums[b][r] = l.load(from.first_chunk().expect("16 elements"));
        }
    }
    // Bounds are checked here, once, and rows are at fixed distances. With a slice per row, each
    // had its own bounds check and its pointer was reloaded from the stack, which took a third
    // longer (eight rows, Ice Lake).
    let positions = at..at + values.len() / width;
    assert!(positions.end <= CHUNK);
    for (i, values) in positions.zip(values.chunks_exact(width)) {
        let values: &[[T; 16]] = values[c..c + 16 * B].as_chunks().0;
        let next = values.as_ptr().cast::<u8>().wrapping_add(ahead);
        for line in (0..16 * B * size_of::<T>()).step_by(LINE) {
            l.prefetch(next.wrapping_add(line));
        }
        for b in 0..B {
            let v = T::load(l, &values[b]);
            for r in 0..S {
                sums[b][r] = l.mul_add(l.splat(p[r].0[i]), v, sums[b][r]);
            }
        }
    }
    for b in 0..B {
        for r in 0..S {
            let to = &mut out[r * width + c + 16 * b..];
            l.store(sums[b][r], to.first_chunk_mut().expect("16 elements"));
        }
    }
}
