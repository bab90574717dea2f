//! Activations in the forms that the tile kernels read (see [`crate::cpu::tile`]), for any number
//! of vectors.
//!
//! The vectors are split into blocks of the widths of the kernels. In every buffer here, a block
//! that begins at vector `v` begins at `v` times the size of one vector, whatever the widths before
//! it.

use super::aligned::Aligned;
use super::tasks::{lock, run, run_chunks, threads_for};
use crate::cpu::layout::{Layout, SUB_COLS, ZeroKind, interleave};
use crate::cpu::tile::{
    AMX_VECTORS, AmxActs, Int8Acts, LOOKUP_BYTES, LookupActs, Lookups, TileKernels, WIDTHS,
};
use crate::error::{Error, Result};
use crate::memory;
use crate::runtime::Executor;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// How a product represents its activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// Unchanged.
    F32,
    /// Quantised to 8 bits, one scale per block.
    Int8,
    /// Their signs (1-bit weights only).
    Sign,
}

impl Activations {
    /// The spelling in options.
    pub fn name(self) -> &'static str {
        match self {
            Activations::F32 => "f32",
            Activations::Int8 => "int8",
            Activations::Sign => "sign",
        }
    }
}

/// The blocks of `vectors`: first vector and width of each. `widths` are in descending order.
pub fn blocks(widths: &[usize], vectors: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
    let mut at = vectors.start;
    std::iter::from_fn(move || {
        let width = widths.iter().copied().find(|&w| w <= vectors.end - at)?;
        at += width;
        Some((at - width, width))
    })
}

/// How the codes of int8 vectors are interleaved.
#[derive(Clone, Copy)]
pub struct Interleave {
    /// The widths of the blocks that vectors are split into, widest first.
    pub widths: &'static [usize],
    /// Consecutive columns of one vector: those of a sub-block or of two.
    pub columns: usize,
}

impl Interleave {
    /// The order of [`crate::cpu::tile::Int8Acts`].
    pub const KERNELS: Interleave = Interleave {
        widths: &WIDTHS,
        columns: SUB_COLS,
    };

    /// The order of [`AmxActs`].
    pub fn amx(l: &Layout) -> Interleave {
        Interleave {
            widths: &AMX_BLOCKS,
            columns: l.amx_subs() * SUB_COLS,
        }
    }
}

/// The remainder after blocks of [`AMX_VECTORS`] is a block too, whatever its width.
const AMX_BLOCKS: [usize; AMX_VECTORS] = {
    let mut widths = [0; AMX_VECTORS];
    let mut i = 0;
    while i < AMX_VECTORS {
        widths[i] = AMX_VECTORS - i;
        i += 1;
    }
    widths
};

/// int8 activations; buffers are reused from one product to the next.
#[derive(Default)]
pub struct Int8 {
    /// Bytes. Aligned, because AMX loads rows of them, which should not straddle cache lines.
    codes: Aligned,
    scales: Vec<f32>,
    corrections: Vec<i32>,
    /// Bytes: `(subs, LOOKUP_BYTES)` of one vector, if its tables were built.
    tables: Aligned,
    vector_codes: usize,
    vector_blocks: usize,
}

/// Activations that a thread quantises per nanosecond, approximately.
const QUANTIZED_PER_NS: usize = 4;

/// Activations that a thread interleaves per nanosecond, approximately.
const INTERLEAVED_PER_NS: usize = 1;

/// Quantises single vectors for matrices of one layout.
struct Quantizer<'a> {
    k: &'a TileKernels,
    l: &'a Layout,
}

impl Quantizer<'_> {
    /// `codes` is 0 in padding columns. Returns false, with unspecified outputs, if a value is not
    /// finite.
    fn vector(
        &self,
        x: &[f32],
        codes: &mut [i8],
        scales: &mut [f32],
        corrections: &mut [i32],
    ) -> bool {
        let (l, block) = (self.l, self.l.block_cols());
        codes.fill(0);
        for (columns, at) in l.runs() {
            let (x, first) = (&x[columns], at / block);
            let blocks = first..first + x.len().div_ceil(block);
            let codes = &mut codes[at..at + x.len()];
            let (scales, sums) = (&mut scales[blocks.clone()], &mut corrections[blocks]);
            // SAFETY: `k` exists, so the processor has its features.
            if !unsafe { self.k.quantize()(x, block, codes, scales, sums) } {
                return false;
            }
        }
        let factor = match self.l.zero {
            ZeroKind::Constant(z) => -z,
            ZeroKind::PerGroup => -1,
        };
        for c in corrections {
            *c *= factor;
        }
        true
    }
}

impl Int8 {
    /// Quantises `n` vectors; `x` is `(n, cols)`.
    ///
    /// # Errors
    /// `ERR_RANGE`, naming the vector and the column, if a value is not finite; `ERR_MEMORY`.
    pub fn set(
        &mut self,
        k: &TileKernels,
        executor: Executor<'_>,
        l: &Layout,
        order: Interleave,
        x: &[f32],
        n: usize,
    ) -> Result<()> {
        match self.fill(&Quantizer { k, l }, executor, order, x, n)? {
            true => Ok(()),
            false => all_finite(x, l.shape.cols),
        }
    }

    /// Returns whether all values are finite.
    fn fill(
        &mut self,
        quantize: &Quantizer<'_>,
        executor: Executor<'_>,
        order: Interleave,
        x: &[f32],
        n: usize,
    ) -> Result<bool> {
        let (padded, per) = (quantize.l.padded_cols(), quantize.l.blocks());
        let padded = padded.next_multiple_of(order.columns);
        (self.vector_codes, self.vector_blocks) = (padded, per);
        let floats = (n * padded).div_ceil(size_of::<f32>());
        self.codes.at_least(floats, "int8 activations")?;
        memory::resize(&mut self.scales, n * per, "activation scales")?;
        memory::resize(&mut self.corrections, n * per, "activation sums")?;
        let codes: &mut [i8] = bytemuck::cast_slice_mut(self.codes.floats_mut());
        let outputs = (
            &mut codes[..n * padded],
            &mut self.scales[..],
            &mut self.corrections[..],
        );
        if n != 1 {
            return set_many(quantize, executor, order, x, padded, outputs);
        }
        Ok(quantize.vector(x, outputs.0, outputs.1, outputs.2))
    }

    /// Builds the tables of the only vector.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub fn build_tables(&mut self, k: &Lookups) -> Result<()> {
        let subs = self.vector_codes / SUB_COLS;
        let floats = subs * LOOKUP_BYTES / size_of::<f32>();
        self.tables
            .at_least(floats, "tables of an activation vector")?;
        let codes = self.codes().as_ptr();
        // SAFETY: `k` exists, so the processor has its features; the vector has codes for that many
        // sub-blocks, for which there is room.
        unsafe { (k.build)(codes, subs, self.tables.floats_mut().as_mut_ptr().cast()) };
        Ok(())
    }

    /// The tables of the only vector, built by [`Int8::build_tables`], from sub-block `sub` and
    /// activation block `block` on.
    pub fn lookup_acts(&self, sub: usize, block: usize) -> LookupActs {
        let tables: &[u8] = bytemuck::cast_slice(self.tables.floats());
        LookupActs {
            tables: tables[sub * LOOKUP_BYTES..].as_ptr(),
            scales: self.scales[block..].as_ptr(),
            corrections: self.corrections[block..].as_ptr(),
        }
    }

    fn codes(&self) -> &[i8] {
        bytemuck::cast_slice(self.codes.floats())
    }

    /// `vectors` for AMX, the first of which begins a block.
    pub fn amx(&self, vectors: Range<usize>) -> AmxActs {
        AmxActs {
            vectors: vectors.len(),
            codes: self.codes()[vectors.start * self.vector_codes..].as_ptr(),
            vector_codes: self.vector_codes,
            scales: self.scales[vectors.start * self.vector_blocks..].as_ptr(),
            vector_blocks: self.vector_blocks,
        }
    }

    /// The block of `width` vectors that begins at vector `first`, from sub-block `sub` and
    /// activation block `block` on.
    pub fn block(&self, first: usize, width: usize, sub: usize, block: usize) -> Int8Acts {
        let at = first * self.vector_blocks + block * width;
        Int8Acts {
            codes: self.codes()[first * self.vector_codes + sub * width * SUB_COLS..].as_ptr(),
            scales: self.scales[at..].as_ptr(),
            corrections: self.corrections[at..].as_ptr(),
        }
    }
}

/// Quantises several vectors on the threads of `executor`; returns whether all are finite.
fn set_many(
    quantize: &Quantizer<'_>,
    executor: Executor<'_>,
    order: Interleave,
    x: &[f32],
    padded: usize,
    (codes, scales, corrections): (&mut [i8], &mut [f32], &mut [i32]),
) -> Result<bool> {
    let (per, cols) = (quantize.l.blocks(), quantize.l.shape.cols);
    // The widest block, so that what a task writes is contiguous.
    let vectors = order.widths[0];
    let inputs = x.chunks(vectors * cols);
    let mut outputs = memory::with_capacity(inputs.len(), "the list of tasks")?;
    outputs.extend(
        (codes.chunks_mut(vectors * padded))
            .zip(scales.chunks_mut(vectors * per))
            .zip(corrections.chunks_mut(vectors * per))
            .map(|((codes, scales), corrections)| Mutex::new((codes, scales, corrections))),
    );
    let one = || {
        Ok((
            memory::filled(padded, 0i8, "an activation vector")?,
            memory::filled(per, 0f32, "the scales of a vector")?,
            memory::filled(per, 0i32, "the sums of a vector")?,
        ))
    };
    let finite = AtomicBool::new(true);
    let threads = threads_for(executor, x.len() / QUANTIZED_PER_NS);
    run(executor, threads, outputs.len(), one, |one, task| {
        let x = &x[task * vectors * cols..];
        let x = &x[..x.len().min(vectors * cols)];
        let (codes, scales, corrections) = &mut *lock(&outputs[task]);
        for (first, width) in blocks(order.widths, 0..x.len() / cols) {
            for v in 0..width {
                let x = &x[(first + v) * cols..][..cols];
                if !quantize.vector(x, &mut one.0, &mut one.1, &mut one.2) {
                    finite.store(false, Ordering::Relaxed);
                }
                let to = &mut codes[first * padded..(first + width) * padded];
                match order.columns {
                    SUB_COLS => scatter::<SUB_COLS>(&one.0, to, v, width),
                    _ => scatter::<{ 2 * SUB_COLS }>(&one.0, to, v, width),
                }
                for b in 0..per {
                    scales[first * per + b * width + v] = one.1[b];
                    corrections[first * per + b * width + v] = one.2[b];
                }
            }
        }
    })?;
    Ok(finite.into_inner())
}

/// Writes vector `v` of the `width` vectors that `to` interleaves, `COLS` columns at a time.
fn scatter<const COLS: usize>(from: &[i8], to: &mut [i8], v: usize, width: usize) {
    let to = to
        .as_chunks_mut::<COLS>()
        .0
        .iter_mut()
        .skip(v)
        .step_by(width);
    for (to, from) in to.zip(from.as_chunks().0) {
        *to = *from;
    }
}

/// # Errors
/// `ERR_RANGE`, naming the vector and the column, if a value is not finite.
pub fn all_finite(x: &[f32], cols: usize) -> Result<()> {
    // Without an early exit, so that the loop is vectorised.
    if x.iter().fold(true, |all, x| all & x.is_finite()) {
        return Ok(());
    }
    match x.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(i) => Err(Error::range(format!(
            "x is {} at vector {}, column {}: int8 activations must be finite",
            x[i],
            i / cols,
            i % cols
        ))),
    }
}

/// Float32 activations scaled so that chains stay in range. A kernel sums `level * x` over up to
/// [`SUB_COLS`] columns before it applies the scale. That can overflow float32 although the
/// products with the scaled weights do not.
///
/// With short groups the weights are scaled first, so that chains stay in range if the weights and
/// the results do, cancellation aside. Their activations are prescaled nevertheless.
///
/// A vector that comes near the limit is scaled down by 2^32, and its results are scaled back up.
/// Both are powers of two, so that nothing is rounded except elements 2^200 times smaller than the
/// largest. Each vector is judged by itself, so that results do not depend on the batch.
pub struct Prescaled<'a> {
    /// `(n, cols)`.
    pub x: Cow<'a, [f32]>,
    /// The vectors that were scaled down.
    scaled: Vec<usize>,
}

impl<'a> Prescaled<'a> {
    const FACTOR: f32 = (1u64 << 32) as f32;

    /// The largest magnitude that cannot overflow: 255 levels times 32 columns are less than 2^13.
    const LARGEST: f32 = f32::MAX / (1 << 13) as f32;

    /// `x` is `(n, cols)`, `cols` at least 1.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub fn new(x: &'a [f32], cols: usize) -> Result<Prescaled<'a>> {
        let mut prescaled = Prescaled {
            x: Cow::Borrowed(x),
            scaled: Vec::new(),
        };
        for (v, vector) in x.chunks_exact(cols).enumerate() {
            // Without an early exit, so that the loop is vectorised.
            if !vector
                .iter()
                .fold(false, |any, x| any | (x.abs() > Self::LARGEST))
            {
                continue;
            }
            if prescaled.scaled.is_empty() {
                let mut copy = memory::with_capacity(x.len(), "activations taken smaller")?;
                copy.extend_from_slice(x);
                prescaled.x = Cow::Owned(copy);
                prescaled.scaled = memory::with_capacity(x.len() / cols - v, "their numbers")?;
            }
            prescaled.scaled.push(v);
            for x in &mut prescaled.x.to_mut()[v * cols..(v + 1) * cols] {
                *x /= Self::FACTOR;
            }
        }
        Ok(prescaled)
    }

    /// Scales the results back; `y` is `(n, rows)`.
    pub fn restore(&self, y: &mut [f32], rows: usize) {
        for &v in &self.scaled {
            for y in &mut y[v * rows..(v + 1) * rows] {
                *y *= Self::FACTOR;
            }
        }
    }
}

/// `n` vectors as float32 in blocks of `(columns, width)`, the columns padded to whole sub-blocks.
/// With short groups they are rounded as int8 quantisation rounds them, or are 1 and -1 for their
/// signs (NaN counts as negative), as `activations` says. `x` is `(n, cols)`, and finite for int8.
/// `to` receives the result unless `x` already has this form.
///
/// # Errors
/// `ERR_MEMORY`.
pub fn interleaved<'a>(
    k: &TileKernels,
    executor: Executor<'_>,
    l: &Layout,
    activations: Activations,
    x: &'a [f32],
    n: usize,
    to: &'a mut Vec<f32>,
) -> Result<&'a [f32]> {
    let (cols, padded) = (l.shape.cols, l.padded_cols());
    if n == 1 && cols == padded && activations == Activations::F32 {
        return Ok(x);
    }
    memory::resize(to, n * padded, "interleaved activations")?;
    let value = |x: f32| match activations {
        Activations::Sign => [-1.0, 1.0][(x >= 0.0) as usize],
        _ => x,
    };
    let some = |first: usize, to: &mut [f32]| {
        if cols != padded {
            to.fill(0.0);
        }
        for (v, width) in blocks(&WIDTHS, 0..to.len() / padded) {
            let x = &x[(first + v) * cols..][..width * cols];
            let block = &mut to[v * padded..][..width * padded];
            for (columns, at) in l.runs() {
                for (c, to) in columns.zip(block[at * width..].chunks_exact_mut(width)) {
                    for (to, x) in to.iter_mut().zip(x[c..].iter().step_by(cols)) {
                        *to = value(*x);
                    }
                }
            }
            if activations == Activations::Int8 {
                // SAFETY: `k` exists, so the processor has its features.
                unsafe { k.short_round(width)(&mut block[..cols * width], l.shape.group) };
            }
        }
    };
    if n == 1 {
        some(0, to);
    } else {
        let threads = threads_for(executor, x.len() / INTERLEAVED_PER_NS);
        let chunks = (&mut to[..], WIDTHS[0] * padded);
        let none = || Ok(());
        run_chunks(executor, threads, chunks, none, |(), i, to| {
            some(i * WIDTHS[0], to)
        })?;
    }
    Ok(to)
}

/// The signs of `n` vectors in blocks of `(subs, width)` dwords; `x` is `(n, cols)`. NaN counts as
/// negative.
///
/// # Errors
/// `ERR_MEMORY`.
pub fn signs(l: &Layout, x: &[f32], n: usize) -> Result<Vec<u32>> {
    let (cols, subs) = (l.shape.cols, l.total_subs());
    let mut out = memory::filled(n * subs, 0, "activation signs")?;
    for (first, width) in blocks(&WIDTHS, 0..n) {
        for v in 0..width {
            let x = &x[(first + v) * cols..][..cols];
            let sub_columns = l.runs().flat_map(|(columns, at)| {
                (x[columns].chunks(SUB_COLS).enumerate()).map(move |(s, x)| (at / SUB_COLS + s, x))
            });
            for (s, x) in sub_columns {
                let bits = x
                    .iter()
                    .enumerate()
                    .fold(0u32, |d, (c, &x)| d | ((x >= 0.0) as u32) << (31 - c));
                out[first * subs + s * width + v] = interleave::<1>(&bits.to_be_bytes())[0];
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::tile::SHORT_WIDTHS;

    #[test]
    fn blocks_cover_every_number() {
        for n in 0..60 {
            for widths in [&WIDTHS[..], &SHORT_WIDTHS] {
                let mut at = 3;
                for (first, width) in blocks(widths, 3..3 + n) {
                    assert!(first == at && widths.contains(&width));
                    at += width;
                }
                assert_eq!(at, 3 + n);
            }
        }
    }
}
