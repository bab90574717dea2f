//! Attention of a few rows over a part of a chunk.

use super::lanes::{Lanes, Wide};
use super::{BLOCK, Chunk};

/// See [`super::VectorKernels::scores`]; `B` blocks of keys at a time.
#[inline(always)]
pub(super) fn scores<L: Lanes, T: Wide, const R: usize, const B: usize>(
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
        products::<L, T, R, B>(l, q, keys, at + b, out);
        b += B;
    }
    while b < blocks {
        products::<L, T, R, 1>(l, q, [&keys[b * size..][..size]], at + b, out);
        b += 1;
    }
}

#[inline(always)]
fn products<L: Lanes, T: Wide, const R: usize, const B: usize>(
    l: L,
    q: &[[f32; R]],
    keys: [&[T]; B],
    at: usize,
    out: &mut [Chunk; R],
) {
    let keys = keys.map(|k| &k.as_chunks::<BLOCK>().0[..q.len()]);
    let mut sums = [[l.splat(0.0); R]; B];
    for (d, q) in q.iter().enumerate() {
        for b in 0..B {
            let k = T::load(l, &keys[b][d]);
            for r in 0..R {
                sums[b][r] = l.mul_add(l.splat(q[r]), k, sums[b][r]);
            }
        }
    }
    for b in 0..B {
        for r in 0..R {
            let to = &mut out[r].0[(at + b) * BLOCK..];
            l.store(sums[b][r], to.first_chunk_mut().expect("a block"));
        }
    }
}

/// See [`super::VectorKernels::softmax`].
#[inline(always)]
pub(super) fn softmax<L: Lanes>(l: L, chunk: &mut Chunk, first: usize, end: usize) -> (f32, f32) {
    let blocks = first / BLOCK..end.div_ceil(BLOCK);
    let s = &mut chunk.0;
    s[..blocks.start * BLOCK].fill(0.0);
    s[blocks.start * BLOCK..first].fill(f32::NEG_INFINITY);
    s[end..blocks.end * BLOCK].fill(f32::NEG_INFINITY);
    s[blocks.end * BLOCK..].fill(0.0);
    let s = &mut s.as_chunks_mut::<BLOCK>().0[blocks];
    let mut largest = l.splat(f32::NEG_INFINITY);
    for s in s.iter() {
        largest = l.max(l.load(s), largest);
    }
    // Were all of them minus infinity, the difference would be no number.
    let largest = l.largest(largest).max(f32::MIN);
    let (mut sum, shift) = (l.splat(0.0), l.splat(-largest));
    for s in s {
        let p = l.exp(l.add(l.load(s), shift));
        sum = l.add(sum, p);
        l.store(p, s);
    }
    (largest, l.sum(sum))
}

/// See [`super::VectorKernels::mix`]; `B` times 16 elements at a time.
#[inline(always)]
pub(super) fn mix<L: Lanes, T: Wide, const R: usize, const B: usize>(
    l: L,
    p: &[Chunk],
    at: usize,
    values: &[T],
    out: &mut [f32],
) {
    let width = out.len() / R;
    let n = values.len() / width;
    let p: &[Chunk; R] = p.first_chunk().expect("a chunk for each row");
    let p = p.each_ref().map(|p| &p.0[at..at + n]);
    let mut c = 0;
    while c + 16 * B <= width {
        columns::<L, T, R, B>(l, p, values, width, c, out);
        c += 16 * B;
    }
    while c < width {
        columns::<L, T, R, 1>(l, p, values, width, c, out);
        c += 16;
    }
}

#[inline(always)]
fn columns<L: Lanes, T: Wide, const R: usize, const B: usize>(
    l: L,
    p: [&[f32]; R],
    values: &[T],
    width: usize,
    c: usize,
    out: &mut [f32],
) {
    let mut sums = [[l.splat(0.0); R]; B];
    for b in 0..B {
        for r in 0..R {
            let from = &out[r * width + c + 16 * b..];
            sums[b][r] = l.load(from.first_chunk().expect("16 elements"));
        }
    }
    let n = p[0].len();
    let p = p.map(|p| &p[..n]);
    for (i, values) in values.chunks_exact(width).take(n).enumerate() {
        let values: &[[T; 16]] = values[c..c + 16 * B].as_chunks().0;
        for b in 0..B {
            let v = T::load(l, &values[b]);
            for r in 0..R {
                sums[b][r] = l.mul_add(l.splat(p[r][i]), v, sums[b][r]);
            }
        }
    }
    for b in 0..B {
        for r in 0..R {
            let to = &mut out[r * width + c + 16 * b..];
            l.store(sums[b][r], to.first_chunk_mut().expect("16 elements"));
        }
    }
}
