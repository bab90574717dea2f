//! Codes to float weights, one generic source for every level. The contract is in [`super`].
//!
//! Four paths, by the arrangement of the groups: one group (or one scale) for all columns; groups
//! of whole vectors, whose scale is broadcast once; other groups of more than [`MAX_PATTERN_GROUP`]
//! columns, which are processed one after the other; and other groups up to that length, where each
//! lane selects the scale of its group.

use super::level::Level;
use super::{CHAIN, MAX_LANES, RowSource};
use crate::quant::{Bits, Codes, Packing, Per, ScaleValues};
use half::f16;
use std::ops::Range;

/// Columns whose scales are gathered at once: the longest span.
const BLOCK: usize = CHAIN * MAX_LANES;

/// The longest group whose lanes select their scales by a pattern. A longer group has more than
/// four vectors of its own between those that it shares with neighbours, so that one scale at a
/// time costs less than a pattern per vector.
const MAX_PATTERN_GROUP: usize = 64;

/// Working memory of [`super::RowKernels::unpack`].
pub struct UnpackScratch {
    /// One scale for each group of a block, plus one vector of padding.
    scales: [f32; BLOCK + MAX_LANES],
    /// One zero point for each group, likewise.
    zeros: [f32; BLOCK + MAX_LANES],
    /// Which group each lane of a vector belongs to.
    patterns: Patterns,
}

impl Default for UnpackScratch {
    fn default() -> Self {
        UnpackScratch {
            scales: [0.0; BLOCK + MAX_LANES],
            zeros: [0.0; BLOCK + MAX_LANES],
            patterns: Patterns {
                of: (0, 0),
                lanes: [[0; MAX_LANES]; MAX_PATTERN_GROUP],
                groups: [0; MAX_PATTERN_GROUP],
            },
        }
    }
}

/// Which groups the lanes of consecutive vectors of a row belong to. With groups of `size` columns
/// this repeats after `size` vectors, which are as many groups as a vector has lanes.
struct Patterns {
    /// The group size and the number of lanes that the patterns are for; (0, 0): none yet.
    of: (usize, usize),
    /// For each vector of the period, the group of each lane, relative to that of the first lane.
    lanes: [[u32; MAX_LANES]; MAX_PATTERN_GROUP],
    /// For each vector of the period, the group of the first lane.
    groups: [usize; MAX_PATTERN_GROUP],
}

impl Patterns {
    /// Computes the patterns for groups of `size` columns, at most [`MAX_PATTERN_GROUP`], and
    /// vectors of `lanes` lanes.
    fn set(&mut self, size: usize, lanes: usize) {
        if self.of != (size, lanes) {
            self.of = (size, lanes);
            for v in 0..size {
                let column = v * lanes;
                self.groups[v] = column / size;
                for (l, group) in self.lanes[v].iter_mut().enumerate() {
                    *group = ((column % size + l) / size) as u32;
                }
            }
        }
    }
}

/// See [`super::RowKernels::unpack`].
#[inline(always)]
pub(super) fn unpack<const N: usize, L: Level<N>>(
    l: L,
    source: &RowSource<'_>,
    row: usize,
    start: usize,
    scratch: &mut UnpackScratch,
    out: &mut [f32],
) {
    let len = out.len().min(source.cols() - start);
    let (out, beyond) = out.split_at_mut(len.next_multiple_of(N));
    match source {
        RowSource::F32 { values, cols, .. } => {
            out[..len].copy_from_slice(&values[row * cols + start..][..len]);
            out[len..].fill(0.0);
        }
        RowSource::F16 { values, cols, .. } => {
            widen(l, &values[row * cols + start..][..len], out);
        }
        RowSource::Codes(codes) => match (codes.packing, codes.bits) {
            (Packing::Msb, Bits::One) => {
                unpack_codes::<N, L, 1>(l, codes, row, start, len, scratch, out)
            }
            (Packing::Msb, Bits::Two) => {
                unpack_codes::<N, L, 2>(l, codes, row, start, len, scratch, out)
            }
            (Packing::Msb, Bits::Four) => {
                unpack_codes::<N, L, 4>(l, codes, row, start, len, scratch, out)
            }
            _ => unpack_codes::<N, L, 8>(l, codes, row, start, len, scratch, out),
        },
    }
    beyond.fill(0.0);
}

/// `out` is `from` widened, with zeros up to a whole vector.
#[inline(always)]
fn widen<const N: usize, L: Level<N>>(l: L, from: &[f16], out: &mut [f32]) {
    let (whole, rest) = from.as_chunks::<N>();
    let (out, last) = out.as_chunks_mut::<N>().0.split_at_mut(whole.len());
    for (o, f) in out.iter_mut().zip(whole) {
        l.store(l.widen(f), o);
    }
    if let (Some(last), false) = (last.first_mut(), rest.is_empty()) {
        let mut padded = [f16::ZERO; N];
        padded[..rest.len()].copy_from_slice(rest);
        l.store(l.widen(&padded), last);
    }
}

/// Unpacks the columns `start..start + len` of a row; `out` is `len` rounded up to whole vectors.
#[inline(always)]
fn unpack_codes<const N: usize, L: Level<N>, const BITS: usize>(
    l: L,
    codes: &Codes<'_>,
    row: usize,
    start: usize,
    len: usize,
    scratch: &mut UnpackScratch,
    out: &mut [f32],
) {
    // 1 bit: 2 * code - 1. Others: 1 * code - zero point.
    let step = if codes.bits == Bits::One { 2.0 } else { 1.0 };
    let one_scale = codes.scale_per != Per::Group || codes.shape.groups == 1;
    let one_zero = match codes.zero_points {
        Some((_, Per::Group)) => codes.bits == Bits::One || codes.shape.groups == 1,
        _ => true,
    };
    let zero = match codes.bits {
        Bits::One => 1.0,
        _ if one_zero => codes.zero_point(row, 0) as f32,
        _ => 0.0, // not used: each group has its own
    };
    let bytes = &codes.row_bytes(row)[start / 8 * BITS..];
    if one_scale && one_zero {
        let group = l.group::<BITS>(codes.scale(row, 0), step, zero);
        return one_group::<N, L, BITS>(l, group, bytes, len, out);
    }
    let size = codes.shape.group;
    let mut at = 0;
    while at < len {
        let columns = Columns {
            first: start + at,
            count: (len - at).min(BLOCK),
            size,
        };
        let bytes = &bytes[at / 8 * BITS..];
        let out = &mut out[at..][..columns.count.next_multiple_of(N)];
        let k = columns.groups().len();
        group_scales(l, codes, row, &columns, &mut scratch.scales);
        if size.is_multiple_of(N) || size > MAX_PATTERN_GROUP {
            if one_zero {
                scratch.zeros[..k].fill(zero);
            } else {
                group_zeros(codes, row, &columns, &mut scratch.zeros);
            }
            let (scales, zeros) = (&scratch.scales[..k], &scratch.zeros[..k]);
            if size.is_multiple_of(N) {
                whole_groups::<N, L, BITS>(l, &columns, scales, zeros, step, bytes, out);
            } else {
                long_groups::<N, L, BITS>(l, &columns, scales, zeros, step, bytes, out);
            }
        } else {
            scratch.patterns.set(size, N);
            if one_zero {
                short_groups::<N, L, BITS, false>(l, &columns, scratch, step, zero, bytes, out);
            } else {
                group_zeros(codes, row, &columns, &mut scratch.zeros);
                short_groups::<N, L, BITS, true>(l, &columns, scratch, step, zero, bytes, out);
            }
        }
        at += columns.count;
    }
}

/// At most [`BLOCK`] columns of a row with groups of `size` columns.
struct Columns {
    first: usize,
    count: usize,
    size: usize,
}

impl Columns {
    /// The groups that the columns belong to.
    #[inline(always)]
    fn groups(&self) -> Range<usize> {
        self.first / self.size..(self.first + self.count - 1) / self.size + 1
    }
}

/// The scale of each group, widened, into `out`.
#[inline(always)]
fn group_scales<const N: usize, L: Level<N>>(
    l: L,
    codes: &Codes<'_>,
    row: usize,
    columns: &Columns,
    out: &mut [f32; BLOCK + MAX_LANES],
) {
    let groups = columns.groups();
    if codes.scale_per != Per::Group {
        return out[..groups.len()].fill(codes.scale(row, 0));
    }
    let from = row * codes.shape.groups + groups.start;
    match codes.scales {
        ScaleValues::F32(values) => {
            out[..groups.len()].copy_from_slice(&values[from..][..groups.len()]);
        }
        ScaleValues::F16(values) => {
            let out = &mut out[..groups.len().next_multiple_of(N)];
            widen(l, &values[from..][..groups.len()], out);
        }
    }
}

/// The zero point of each group, where groups have their own, into `out`.
#[inline(always)]
fn group_zeros(
    codes: &Codes<'_>,
    row: usize,
    columns: &Columns,
    out: &mut [f32; BLOCK + MAX_LANES],
) {
    if let Some((values, _)) = codes.zero_points {
        let groups = columns.groups();
        let values = &values[row * codes.shape.groups + groups.start..][..groups.len()];
        for (o, &v) in out.iter_mut().zip(values) {
            *o = v as f32;
        }
    }
}

/// `count` columns of one group.
#[inline(always)]
fn one_group<const N: usize, L: Level<N>, const BITS: usize>(
    l: L,
    group: L::Group,
    bytes: &[u8],
    count: usize,
    out: &mut [f32],
) {
    let (whole, last) = out.as_chunks_mut::<N>().0.split_at_mut(count / N);
    for (o, b) in whole.iter_mut().zip(bytes.chunks_exact(N * BITS / 8)) {
        l.store(l.weights::<BITS>(group, b), o);
    }
    if let Some(last) = last.first_mut() {
        let b = last_bytes::<N, BITS>(bytes, count);
        l.store(l.weights::<BITS>(group, &b[..N * BITS / 8]), last);
        last[count % N..].fill(0.0);
    }
}

/// The bytes of the last, incomplete vector of `count` columns, padded to a whole vector.
#[inline(always)]
fn last_bytes<const N: usize, const BITS: usize>(bytes: &[u8], count: usize) -> [u8; MAX_LANES] {
    let from = count / N * (N * BITS / 8);
    let to = (count * BITS).div_ceil(8);
    let mut b = [0; MAX_LANES];
    b[..to - from].copy_from_slice(&bytes[from..to]);
    b
}

/// Columns in groups of whole vectors.
#[inline(always)]
fn whole_groups<const N: usize, L: Level<N>, const BITS: usize>(
    l: L,
    columns: &Columns,
    scales: &[f32],
    zeros: &[f32],
    step: f32,
    bytes: &[u8],
    out: &mut [f32],
) {
    let size = columns.size;
    let (mut bytes, mut out, mut left) = (bytes, out, columns.count);
    let mut i = 0;
    if !columns.first.is_multiple_of(size) {
        let count = left.min(size - columns.first % size);
        let here;
        (here, out) = out.split_at_mut(count.next_multiple_of(N));
        let group = l.group::<BITS>(scales[0], step, zeros[0]);
        one_group::<N, L, BITS>(l, group, bytes, count, here);
        bytes = &bytes[(count * BITS).div_ceil(8)..];
        left -= count;
        i += 1;
    }
    let whole = left / size;
    let (here, last) = out.split_at_mut(whole * size);
    let (bytes, last_bytes) = bytes.split_at(whole * size / 8 * BITS);
    let (scales, last_scale) = scales[i..].split_at(whole);
    let (zeros, last_zero) = zeros[i..].split_at(whole);
    // With a literal size the inner loop is unrolled.
    match size {
        32 => full_groups::<N, L, BITS>(l, 32, scales, zeros, step, bytes, here),
        64 => full_groups::<N, L, BITS>(l, 64, scales, zeros, step, bytes, here),
        128 => full_groups::<N, L, BITS>(l, 128, scales, zeros, step, bytes, here),
        _ => full_groups::<N, L, BITS>(l, size, scales, zeros, step, bytes, here),
    }
    if left > whole * size {
        let group = l.group::<BITS>(last_scale[0], step, last_zero[0]);
        one_group::<N, L, BITS>(l, group, last_bytes, left - whole * size, last);
    }
}

/// Complete groups of `size` columns.
#[inline(always)]
fn full_groups<const N: usize, L: Level<N>, const BITS: usize>(
    l: L,
    size: usize,
    scales: &[f32],
    zeros: &[f32],
    step: f32,
    bytes: &[u8],
    out: &mut [f32],
) {
    let groups = out.chunks_exact_mut(size);
    for (((out, bytes), &s), &z) in groups
        .zip(bytes.chunks_exact(size / 8 * BITS))
        .zip(scales)
        .zip(zeros)
    {
        let group = l.group::<BITS>(s, step, z);
        let out = out.as_chunks_mut::<N>().0;
        for (o, b) in out.iter_mut().zip(bytes.chunks_exact(N * BITS / 8)) {
            l.store(l.weights::<BITS>(group, b), o);
        }
    }
}

/// Columns in groups longer than a vector and not of whole vectors. A vector that two groups share
/// is written in full by the first, then from the second's first column on by the second.
#[inline(always)]
fn long_groups<const N: usize, L: Level<N>, const BITS: usize>(
    l: L,
    columns: &Columns,
    scales: &[f32],
    zeros: &[f32],
    step: f32,
    bytes: &[u8],
    out: &mut [f32],
) {
    let vector = N * BITS / 8;
    let whole = columns.count / N;
    let last = last_bytes::<N, BITS>(bytes, columns.count);
    let out = out.as_chunks_mut::<N>().0;
    let mut start = 0;
    let mut end = columns.size - columns.first % columns.size;
    for (&s, &z) in scales.iter().zip(zeros) {
        let group = l.group::<BITS>(s, step, z);
        let (first, beyond) = (start / N, end.min(columns.count).div_ceil(N));
        if start % N != 0 {
            let b = match first < whole {
                true => &bytes[first * vector..][..vector],
                false => &last[..vector],
            };
            l.store_from(l.weights::<BITS>(group, b), &mut out[first], start % N);
        }
        let own = start.div_ceil(N)..beyond.min(whole);
        if !own.is_empty() {
            let bytes = bytes[own.start * vector..].chunks_exact(vector);
            for (o, b) in out[own].iter_mut().zip(bytes) {
                l.store(l.weights::<BITS>(group, b), o);
            }
        }
        if beyond > whole && start.div_ceil(N) <= whole {
            l.store(l.weights::<BITS>(group, &last[..vector]), &mut out[whole]);
        }
        (start, end) = (end, end + columns.size);
    }
    if let Some(padded) = out.get_mut(whole) {
        padded[columns.count % N..].fill(0.0);
    }
}

/// Columns in groups of at most [`MAX_PATTERN_GROUP`] columns; without `ZEROS` all have the zero
/// point `zero`.
#[inline(always)]
fn short_groups<const N: usize, L: Level<N>, const BITS: usize, const ZEROS: bool>(
    l: L,
    columns: &Columns,
    scratch: &UnpackScratch,
    step: f32,
    zero: f32,
    bytes: &[u8],
    out: &mut [f32],
) {
    let vector = N * BITS / 8;
    let size = columns.size;
    let levels = Levels {
        step: l.splat(step),
        zero: l.splat(zero),
        unit: l.group::<BITS>(1.0, step, zero),
    };
    let patterns = &scratch.patterns;
    // `at` is the next vector of the period; `passed` counts the groups before the period began,
    // less those before the first column.
    let mut at = columns.first / N % size;
    let first_group = patterns.groups[at];
    let mut passed = 0;
    let (mut whole, last) = out.as_chunks_mut::<N>().0.split_at_mut(columns.count / N);
    let mut left = bytes;
    while !whole.is_empty() {
        let run = whole.len().min(size - at);
        let (here, later) = whole.split_at_mut(run);
        let lanes = &patterns.lanes[at..][..run];
        let groups = &patterns.groups[at..][..run];
        let codes = left.chunks_exact(vector);
        for (((o, b), pattern), &group) in here.iter_mut().zip(codes).zip(lanes).zip(groups) {
            let group = passed + group - first_group;
            let w = picked::<N, L, BITS, ZEROS>(l, &levels, scratch, pattern, group, b);
            l.store(w, o);
        }
        (whole, left) = (later, &left[run * vector..]);
        at += run;
        if at == size {
            at = 0;
            passed += N;
        }
    }
    if let Some(last) = last.first_mut() {
        let b = last_bytes::<N, BITS>(bytes, columns.count);
        let group = passed + patterns.groups[at] - first_group;
        let (pattern, b) = (&patterns.lanes[at], &b[..vector]);
        let w = picked::<N, L, BITS, ZEROS>(l, &levels, scratch, pattern, group, b);
        l.store(w, last);
        last[columns.count % N..].fill(0.0);
    }
}

/// Converts codes to levels where all columns have one zero point.
struct Levels<const N: usize, L: Level<N>> {
    step: L::F,
    zero: L::F,
    /// A group with the scale 1: its weights are levels.
    unit: L::Group,
}

/// The weights of `N` codes whose lanes belong to groups by `pattern`, relative to `group`.
#[inline(always)]
fn picked<const N: usize, L: Level<N>, const BITS: usize, const ZEROS: bool>(
    l: L,
    levels: &Levels<N, L>,
    scratch: &UnpackScratch,
    pattern: &[u32; MAX_LANES],
    group: usize,
    bytes: &[u8],
) -> L::F {
    let pattern = pattern.first_chunk().expect("at most MAX_LANES lanes");
    let level = if ZEROS {
        let zeros = scratch.zeros[group..].first_chunk().expect("room beyond");
        l.mul_sub(l.codes::<BITS>(bytes), levels.step, l.pick(zeros, pattern))
    } else if BITS <= L::TABLE_BITS {
        l.weights::<BITS>(levels.unit, bytes)
    } else {
        l.mul_sub(l.codes::<BITS>(bytes), levels.step, levels.zero)
    };
    let scales = scratch.scales[group..].first_chunk().expect("room beyond");
    l.mul(level, l.pick(scales, pattern))
}
