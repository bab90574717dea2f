//! 1-bit weights with the signs of activations: XNOR and popcount on row-major bits.
//!
//! Both operands are words of 64 signs in the byte order of a row, the first sign in the most
//! significant bit of the first byte, so that groups of whole bytes are contiguous. Bits after the
//! last column may hold anything: no group reaches them.

use super::SPANS;
use crate::quant::{Codes, Packing};
use bytemuck::Pod;

/// The bits of one row of 1-bit codes as words; `out` is `(ceil(cols / 64))`.
pub fn row_words(codes: &Codes<'_>, row: usize, out: &mut [u64]) {
    let bytes = codes.row_bytes(row);
    match codes.packing {
        Packing::Msb => {
            for (word, chunk) in out.iter_mut().zip(bytes.chunks(8)) {
                let mut bytes = [0; 8];
                bytes[..chunk.len()].copy_from_slice(chunk);
                *word = u64::from_ne_bytes(bytes);
            }
        }
        Packing::Bytes => pack_bits(bytes, out, |&code| code != 0),
    }
}

/// The signs of a vector as words: 1 where `x >= 0`, hence 0 for NaN; `out` is `(ceil(len / 64))`.
pub fn sign_words(x: &[f32], out: &mut [u64]) {
    pack_bits(x, out, |&x| x >= 0.0);
}

fn pack_bits<T>(values: &[T], out: &mut [u64], bit: impl Fn(&T) -> bool) {
    for (word, chunk) in out.iter_mut().zip(values.chunks(64)) {
        let first_highest = |acc, (i, v)| acc | (bit(v) as u64) << (63 - i);
        *word = chunk.iter().enumerate().fold(0, first_highest).to_be();
    }
}

/// The number of differing bits of `w` and `x` in the non-empty range `start..end`.
#[inline(always)]
fn mismatches(w: &[u64], x: &[u64], start: usize, end: usize) -> u64 {
    let (first, last) = (start / 64, (end - 1) / 64);
    let head = (u64::MAX >> (start % 64)).to_be();
    let tail = (u64::MAX << (63 - (end - 1) % 64)).to_be();
    let differ = |i: usize, mask: u64| ((w[i] ^ x[i]) & mask).count_ones() as u64;
    if first == last {
        return differ(first, head & tail);
    }
    let mut count = differ(first, head) + differ(last, tail);
    for (w, x) in w[first + 1..last].iter().zip(&x[first + 1..last]) {
        count += (w ^ x).count_ones() as u64;
    }
    count
}

/// The sum over the non-empty range of columns `start..end`.
#[inline(always)]
fn sum(w: &[u64], x: &[u64], start: usize, end: usize) -> f32 {
    ((end - start) as i64 - 2 * mismatches(w, x, start, end) as i64) as f32
}

/// See [`super::RowKernels::sign`].
///
/// Groups that are a word are counted without masks, those of a span together. With a mask for each
/// of them it took three times as long for groups of 32 columns, and twice as long as the product
/// with float activations.
#[inline(always)]
pub(super) fn product(cols: usize, group: usize, scales: &[f32], w: &[u64], x: &[u64]) -> f32 {
    match group {
        8 => of_words(cols, scales, w, x, |w: u8, x| (w ^ x).count_ones()),
        16 => of_words(cols, scales, w, x, |w: u16, x| (w ^ x).count_ones()),
        32 => of_words(cols, scales, w, x, |w: u32, x| (w ^ x).count_ones()),
        64 => of_words(cols, scales, w, x, |w: u64, x| (w ^ x).count_ones()),
        _ => of_any(cols, group, scales, w, x),
    }
}

/// [`product`] for groups of any size.
#[inline(always)]
fn of_any(cols: usize, group: usize, scales: &[f32], w: &[u64], x: &[u64]) -> f32 {
    let (mut total, mut part) = (0.0f64, 0.0f32);
    let mut start = 0usize;
    for (g, &scale) in scales.iter().enumerate() {
        let end = start.saturating_add(group).min(cols);
        part += scale * sum(w, x, start, end);
        if g % SPANS == SPANS - 1 {
            total += part as f64;
            part = 0.0;
        }
        start = end;
    }
    (total + part as f64) as f32
}

/// [`product`] for groups of one `T` each.
#[inline(always)]
fn of_words<T: Pod>(
    cols: usize,
    scales: &[f32],
    w: &[u64],
    x: &[u64],
    mismatches: impl Fn(T, T) -> u32,
) -> f32 {
    let group = 8 * size_of::<T>();
    let words: (&[T], &[T]) = (bytemuck::cast_slice(w), bytemuck::cast_slice(x));
    let words = words.0.chunks(SPANS).zip(words.1.chunks(SPANS));
    let mut total = 0.0f64;
    let mut sums = [0.0f32; SPANS];
    for (span, (scales, (ws, xs))) in scales.chunks(SPANS).zip(words).enumerate() {
        for ((sum, &w), &x) in sums.iter_mut().zip(ws).zip(xs) {
            *sum = (group as i32 - 2 * mismatches(w, x) as i32) as f32;
        }
        // The last group may be short.
        let last = scales.len() - 1;
        let start = (span * SPANS + last) * group;
        if cols - start < group {
            sums[last] = sum(w, x, start, cols);
        }
        let part = |part, (&scale, &sum)| part + scale * sum;
        total += scales.iter().zip(&sums).fold(0.0f32, part) as f64;
    }
    total as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_most_significant_first() {
        let mut out = [0u64; 2];
        let mut x = [-1.0f32; 65];
        x[0] = 0.0;
        x[2] = -0.0; // minus zero counts as >= 0
        x[3] = f32::NAN;
        x[4] = f32::INFINITY;
        x[64] = 1.0;
        sign_words(&x, &mut out);
        assert_eq!(out.map(u64::to_be), [0b10101 << 59, 1 << 63]);
    }

    #[test]
    fn mismatches_of_every_range() {
        let w = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210, u64::MAX];
        let x = [
            0x5555_aaaa_0f0f_f0f0,
            0x1111_2222_3333_4444,
            0x8000_0000_0000_0001,
        ];
        let bit = |v: &[u64], i: usize| v[i / 64].to_be() >> (63 - i % 64) & 1;
        for start in 0..192 {
            let mut count = 0;
            for end in start + 1..=192 {
                count += bit(&w, end - 1) ^ bit(&x, end - 1);
                assert_eq!(mismatches(&w, &x, start, end), count, "{start}..{end}");
            }
        }
    }
}
