//! Sums of products, one generic source for every level. The contract is in [`super`].
//!
//! Loops are plain `for` loops over slices of vectors (`[f32; N]`): a closure passed to an iterator
//! adapter may be compiled as a separate function, without the level's features.

use super::CHAIN;
use super::level::Level;

/// Rows of `dot_block` that stay in L1 while all vectors pass: 12 rows of a 512-column span are 24
/// KB, which leaves 8 KB for four vectors in an L1 cache of 32 KB.
const ROWS_IN_L1: usize = 12;

/// See [`super::RowKernels::dot`].
#[inline(always)]
pub(super) fn dot<const N: usize, L: Level<N>>(l: L, w: &[f32], x: &[f32], sums: &mut [f32]) {
    let (mut w, mut x) = (w.as_chunks::<N>().0, x.as_chunks::<N>().0);
    let sums = &mut sums.as_chunks_mut::<N>().0[0];
    let mut sum = l.load(sums);
    // A chain is a sequence of dependent additions: interleaving several spans hides its latency.
    while w.len() >= 4 * CHAIN {
        sum = chains::<N, L, 4>(l, w, x, CHAIN, sum);
        (w, x) = (&w[4 * CHAIN..], &x[4 * CHAIN..]);
    }
    if w.len() >= 2 * CHAIN {
        sum = chains::<N, L, 2>(l, w, x, CHAIN, sum);
        (w, x) = (&w[2 * CHAIN..], &x[2 * CHAIN..]);
    }
    while !w.is_empty() {
        let len = w.len().min(CHAIN);
        sum = chains::<N, L, 1>(l, w, x, len, sum);
        (w, x) = (&w[len..], &x[len..]);
    }
    l.store(sum, sums);
}

/// `sum` plus the chains of `S` consecutive spans of `len` vectors each.
#[inline(always)]
fn chains<const N: usize, L: Level<N>, const S: usize>(
    l: L,
    w: &[[f32; N]],
    x: &[[f32; N]],
    len: usize,
    mut sum: L::F,
) -> L::F {
    let mut ws = [&w[..0]; S];
    let mut xs = [&x[..0]; S];
    for s in 0..S {
        ws[s] = &w[s * len..][..len];
        xs[s] = &x[s * len..][..len];
    }
    let mut chain = [l.splat(0.0); S];
    for k in 0..len {
        for s in 0..S {
            chain[s] = l.mul_add(l.load(&ws[s][k]), l.load(&xs[s][k]), chain[s]);
        }
    }
    for c in chain {
        sum = l.add(sum, c);
    }
    sum
}

/// See [`super::RowKernels::dot_block`]; `R` × `V` chains are kept in registers.
#[inline(always)]
pub(super) fn dot_block<const N: usize, L: Level<N>, const R: usize, const V: usize>(
    l: L,
    w: &[f32],
    x: &[f32],
    len: usize,
    sums: &mut [f32],
) {
    let len = len / N;
    let (w, x) = (w.as_chunks::<N>().0, x.as_chunks::<N>().0);
    let sums = sums.as_chunks_mut::<N>().0;
    let vectors = x.len() / len;
    let in_l1 = ROWS_IN_L1 / R * R;
    for (w, sums) in w.chunks(in_l1 * len).zip(sums.chunks_mut(in_l1 * vectors)) {
        let rows = w.len() / len;
        let whole = rows / R * R;
        let mut v = 0;
        while v < vectors {
            let wide = if vectors - v >= V { V } else { 1 };
            let x = &x[v * len..][..wide * len];
            for r in (0..whole).step_by(R) {
                let (w, sums) = (&w[r * len..], &mut sums[r * vectors + v..]);
                if wide == V {
                    tile::<N, L, R, V>(l, w, x, len, sums, vectors);
                } else {
                    tile::<N, L, R, 1>(l, w, x, len, sums, vectors);
                }
            }
            for r in whole..rows {
                let (w, sums) = (&w[r * len..], &mut sums[r * vectors + v..]);
                if wide == V {
                    tile::<N, L, 1, V>(l, w, x, len, sums, vectors);
                } else {
                    tile::<N, L, 1, 1>(l, w, x, len, sums, vectors);
                }
            }
            v += wide;
        }
    }
}

/// The chains of `R` rows with `V` vectors over one span of `len` vectors, added to
/// `sums[r * stride + v]`.
#[inline(always)]
fn tile<const N: usize, L: Level<N>, const R: usize, const V: usize>(
    l: L,
    w: &[[f32; N]],
    x: &[[f32; N]],
    len: usize,
    sums: &mut [[f32; N]],
    stride: usize,
) {
    let mut ws = [&w[..0]; R];
    for r in 0..R {
        ws[r] = &w[r * len..][..len];
    }
    let mut xs = [&x[..0]; V];
    for v in 0..V {
        xs[v] = &x[v * len..][..len];
    }
    let mut chain = [[l.splat(0.0); V]; R];
    for k in 0..len {
        let mut xk = [l.splat(0.0); V];
        for v in 0..V {
            xk[v] = l.load(&xs[v][k]);
        }
        for r in 0..R {
            let wk = l.load(&ws[r][k]);
            for v in 0..V {
                chain[r][v] = l.mul_add(wk, xk[v], chain[r][v]);
            }
        }
    }
    for r in 0..R {
        if let Some(sums) = sums[r * stride..].first_chunk_mut::<V>() {
            for v in 0..V {
                l.store(l.add(l.load(&sums[v]), chain[r][v]), &mut sums[v]);
            }
        }
    }
}

/// See [`super::RowKernels::flush`].
#[inline(always)]
pub(super) fn flush<const N: usize, L: Level<N>>(l: L, sums: &mut [f32], totals: &mut [f64]) {
    for (sum, total) in sums.as_chunks_mut::<N>().0.iter_mut().zip(totals) {
        *total += l.sum(l.load(sum));
        *sum = [0.0; N];
    }
}
