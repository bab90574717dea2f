//! Activations as int8 vectors: quantised, or float32 ones split into digits
//! ([`crate::quant::split_block`]).

use super::activations::{all_finite, blocks};
use super::aligned::Aligned;
use super::tasks::{lock, run, threads_for};
use crate::cpu::Isa;
use crate::cpu::layout::{Layout, SUB_COLS, ZeroKind};
use crate::cpu::tile::{
    AMX_VECTORS, AmxActs, INT8_WIDTHS, Int8Acts, LOOKUP_BYTES, LookupActs, Lookups, SplitTo,
    TileKernels, WIDTHS,
};
use crate::error::Result;
use crate::memory;
use crate::quant::{DIGIT_BASE, DIGITS, SPLIT_SMALLEST};
use crate::runtime::Executor;
use std::ops::Range;
use std::sync::Mutex;

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
    pub fn of(k: &TileKernels) -> Interleave {
        Interleave {
            // With the sixteen registers of AVX2, six vectors were slower than four and two.
            widths: match k.isa() {
                Isa::Avx2 => &WIDTHS,
                _ => &INT8_WIDTHS,
            },
            columns: SUB_COLS,
        }
    }

    /// The same for split vectors: a block has all digits of its vectors.
    pub const SPLIT: Interleave = Interleave {
        widths: &[12, 6, 3],
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

/// int8 activations; buffers are reused from one product to the next. A vector that is split
/// becomes [`DIGITS`] int8 vectors, the most significant digits last.
#[derive(Default)]
pub struct Int8 {
    /// Bytes. Aligned, because AMX loads rows of them, which should not straddle cache lines.
    codes: Aligned,
    scales: Vec<f32>,
    corrections: Vec<i32>,
    /// Bytes: `(subs, LOOKUP_BYTES)` of one vector, if its tables were built.
    tables: Aligned,
    widths: &'static [usize],
    vector_codes: usize,
    vector_blocks: usize,
    /// Int8 vectors per vector.
    digits: usize,
    /// Sub-blocks of a block.
    block_subs: usize,
    /// Per vector, whether it could not be represented.
    refused: Vec<bool>,
    /// The digits of a single vector, before they are interleaved.
    one: OneVector,
}

/// The buffers of a [`Flat`].
#[derive(Default)]
struct OneVector {
    codes: Vec<i8>,
    scales: Vec<f32>,
    corrections: Vec<i32>,
}

impl OneVector {
    /// Makes room for int8 vectors of `padded` columns and `blocks` blocks.
    fn resize(&mut self, int8: usize, padded: usize, blocks: usize) -> Result<()> {
        memory::resize(&mut self.codes, int8 * padded, "an activation vector")?;
        memory::resize(&mut self.scales, int8 * blocks, "the scales of a vector")?;
        memory::resize(&mut self.corrections, int8 * blocks, "the sums of a vector")
    }

    fn as_flat(&mut self) -> Flat<'_> {
        Flat {
            codes: &mut self.codes,
            scales: &mut self.scales,
            corrections: &mut self.corrections,
        }
    }
}

/// Activations that a thread quantises per nanosecond, approximately.
const QUANTIZED_PER_NS: usize = 4;

/// Activations that a thread splits per nanosecond, approximately.
const SPLIT_PER_NS: usize = 2;

/// The int8 vectors of a vector, for matrices of one layout; or of several, interleaved.
struct Flat<'a> {
    /// `(int8 vectors, padded columns)`, 0 in padding columns.
    codes: &'a mut [i8],
    /// `(int8 vectors, blocks)`.
    scales: &'a mut [f32],
    /// `(int8 vectors, blocks)`.
    corrections: &'a mut [i32],
}

/// Represents vectors as int8 vectors.
trait Represent: Sync {
    /// How many int8 vectors a vector becomes.
    const DIGITS: usize;

    /// How many activations a thread represents per nanosecond, approximately.
    const PER_NS: usize;

    /// Represents one vector. `corrections` receives the sums of codes. Returns false, with
    /// unspecified outputs, if the vector cannot be represented.
    fn vector(&self, l: &Layout, x: &[f32], to: &mut Flat<'_>) -> bool;
}

/// By quantising to int8; vectors must be finite.
struct Quantize<'a>(&'a TileKernels);

impl Represent for Quantize<'_> {
    const DIGITS: usize = 1;
    const PER_NS: usize = QUANTIZED_PER_NS;

    fn vector(&self, l: &Layout, x: &[f32], to: &mut Flat<'_>) -> bool {
        let block = l.block_cols();
        for (columns, at) in l.runs() {
            let (x, first) = (&x[columns], at / block);
            let blocks = first..first + x.len().div_ceil(block);
            let codes = &mut to.codes[at..at + x.len()];
            let (scales, sums) = (&mut to.scales[blocks.clone()], &mut to.corrections[blocks]);
            // SAFETY: the kernels exist, so the processor has their features.
            if !unsafe { self.0.quantize()(x, block, codes, scales, sums) } {
                return false;
            }
        }
        true
    }
}

/// By splitting into digits, which not every vector allows. The kernels can split.
struct Split<'a>(&'a TileKernels);

impl Represent for Split<'_> {
    const DIGITS: usize = DIGITS;
    const PER_NS: usize = SPLIT_PER_NS;

    fn vector(&self, l: &Layout, x: &[f32], to: &mut Flat<'_>) -> bool {
        let split = self.0.split().expect("the kernels can split");
        let block = l.block_cols();
        let (padded, per) = (to.codes.len() / DIGITS, to.scales.len() / DIGITS);
        let mut largest = 0f32;
        for (columns, at) in l.runs() {
            let (x, first) = (&x[columns], at / block);
            let blocks = first..first + x.len().div_ceil(block);
            let mut codes = to.codes.chunks_exact_mut(padded);
            let mut sums = to.corrections.chunks_exact_mut(per);
            let to = SplitTo {
                digits: std::array::from_fn(|_| {
                    &mut codes.next().expect("one a digit")[at..at + x.len()]
                }),
                scales: &mut to.scales[blocks.clone()],
                sums: std::array::from_fn(|_| {
                    &mut sums.next().expect("one a digit")[blocks.clone()]
                }),
            };
            // SAFETY: the kernels exist, so the processor has their features.
            match unsafe { split(x, block, to) } {
                Some(of_run) => largest = largest.max(of_run),
                None => return false,
            }
        }
        for digit in 1..DIGITS {
            let (lower, this) = to.scales.split_at_mut(digit * per);
            for (scale, lower) in this.iter_mut().zip(&lower[(digit - 1) * per..]) {
                *scale = lower * DIGIT_BASE;
            }
        }
        largest == 0.0 || largest >= SPLIT_SMALLEST
    }
}

/// [`Represent::vector`], complete: padding, and corrections as kernels add them. What cannot be
/// represented becomes zeros.
fn represent<R: Represent>(by: &R, l: &Layout, x: &[f32], to: &mut Flat<'_>) -> bool {
    to.codes.fill(0);
    if !by.vector(l, x, to) {
        to.codes.fill(0);
        to.scales.fill(0.0);
        to.corrections.fill(0);
        return false;
    }
    let factor = match l.zero {
        ZeroKind::Constant(z) => -z,
        ZeroKind::PerGroup => -1,
    };
    for c in to.corrections.iter_mut() {
        *c *= factor;
    }
    true
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
        self.fill(&Quantize(k), executor, l, order, x, n)?;
        match self.refused().next() {
            None => Ok(()),
            Some(_) => all_finite(x, l.shape.cols),
        }
    }

    /// Splits `n` vectors; `x` is `(n, cols)`. Those that cannot be split ([`Int8::refused`] then
    /// has their numbers) become zeros.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    ///
    /// # Panics
    /// If the kernels cannot split.
    pub fn split(
        &mut self,
        k: &TileKernels,
        executor: Executor<'_>,
        l: &Layout,
        order: Interleave,
        x: &[f32],
        n: usize,
    ) -> Result<()> {
        self.fill(&Split(k), executor, l, order, x, n)
    }

    /// The vectors that could not be represented.
    pub fn refused(&self) -> impl Iterator<Item = usize> {
        let refused = self.refused.iter().enumerate();
        refused.filter(|(_, refused)| **refused).map(|(v, _)| v)
    }

    /// How many int8 vectors a vector has become.
    pub fn digits(&self) -> usize {
        self.digits
    }

    /// The layout of a matrix, with the blocks of these activations.
    pub fn layout(&self, of_matrix: &Layout) -> Layout {
        Layout {
            block_subs: self.block_subs,
            ..*of_matrix
        }
    }

    /// The blocks that `vectors` are interleaved in; `vectors` begins with a block.
    pub fn blocks(&self, vectors: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
        blocks(self.widths, vectors)
    }

    fn fill<R: Represent>(
        &mut self,
        by: &R,
        executor: Executor<'_>,
        l: &Layout,
        order: Interleave,
        x: &[f32],
        n: usize,
    ) -> Result<()> {
        let (padded, per) = (l.padded_cols().next_multiple_of(order.columns), l.blocks());
        (self.vector_codes, self.vector_blocks) = (padded, per);
        (self.widths, self.digits) = (order.widths, R::DIGITS);
        self.block_subs = l.block_subs;
        let vectors = n * R::DIGITS;
        let floats = (vectors * padded).div_ceil(size_of::<f32>());
        self.codes.at_least(floats, "int8 activations")?;
        memory::resize(&mut self.scales, vectors * per, "activation scales")?;
        memory::resize(&mut self.corrections, vectors * per, "activation sums")?;
        memory::resize(&mut self.refused, n, "the list of vectors")?;
        let codes: &mut [i8] = bytemuck::cast_slice_mut(self.codes.floats_mut());
        let mut to = Flat {
            codes: &mut codes[..vectors * padded],
            scales: &mut self.scales,
            corrections: &mut self.corrections,
        };
        if vectors == 1 {
            self.refused[0] = !represent(by, l, x, &mut to);
            return Ok(());
        }
        if n == 1 {
            self.one.resize(R::DIGITS, padded, per)?;
            fill_blocks(by, l, order, x, &mut self.one, &mut to, &mut self.refused);
            return Ok(());
        }
        fill_many(by, executor, l, order, x, to, &mut self.refused)
    }

    /// Builds the tables of the only vector; `weights` will be read then.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub fn build_tables(&mut self, k: &Lookups, weights: &[u8]) -> Result<()> {
        let subs = self.vector_codes / SUB_COLS;
        let floats = subs * LOOKUP_BYTES / size_of::<f32>();
        self.tables
            .at_least(floats, "tables of an activation vector")?;
        let codes = self.codes().as_ptr();
        let tables = self.tables.floats_mut().as_mut_ptr().cast();
        // SAFETY: `k` exists, so the processor has its features; the vector has codes for that many
        // sub-blocks, for which there is room.
        unsafe { (k.build)(codes, subs, tables, weights.as_ptr()) };
        Ok(())
    }

    /// The tables of the only vector, built by [`Int8::build_tables`], from sub-block `sub` and
    /// activation block `block` on.
    pub fn lookup_acts(&self, sub: usize, block: usize) -> LookupActs {
        let tables: &[u8] = bytemuck::cast_slice(self.tables.floats());
        LookupActs {
            tables: tables[sub * LOOKUP_BYTES..].as_ptr(),
            scales: self.scales[block..].as_ptr(),
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

    /// The codes of sub-block `sub` in the block of `width` vectors that begins at vector `first`:
    /// `(width, 32)`.
    pub fn sub_codes(&self, first: usize, width: usize, sub: usize) -> &[i8] {
        let at = first * self.vector_codes + sub * width * SUB_COLS;
        &self.codes()[at..at + width * SUB_COLS]
    }

    /// The scales of activation block `block` in such a block of vectors: `(width)`.
    pub fn block_scales(&self, first: usize, width: usize, block: usize) -> &[f32] {
        let at = first * self.vector_blocks + block * width;
        &self.scales[at..at + width]
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

/// Represents several vectors on the threads of `executor`.
fn fill_many<R: Represent>(
    by: &R,
    executor: Executor<'_>,
    l: &Layout,
    order: Interleave,
    x: &[f32],
    to: Flat<'_>,
    refused: &mut [bool],
) -> Result<()> {
    let (n, cols, per) = (refused.len(), l.shape.cols, l.blocks());
    let padded = to.codes.len() / (n * R::DIGITS);
    // As many vectors as the widest block, so that a task writes whole blocks of int8 vectors.
    let vectors = order.widths[0];
    let int8 = vectors * R::DIGITS;
    let inputs = x.chunks(vectors * cols);
    let mut tasks = memory::with_capacity(inputs.len(), "the list of tasks")?;
    tasks.extend(
        (to.codes.chunks_mut(int8 * padded))
            .zip(to.scales.chunks_mut(int8 * per))
            .zip(to.corrections.chunks_mut(int8 * per))
            .zip(refused.chunks_mut(vectors))
            .zip(inputs)
            .map(|((((codes, scales), corrections), refused), x)| {
                let to = Flat {
                    codes,
                    scales,
                    corrections,
                };
                Mutex::new((to, refused, x))
            }),
    );
    let one = || {
        let mut one = OneVector::default();
        one.resize(R::DIGITS, padded, per).map(|()| one)
    };
    let threads = threads_for(executor, x.len() / R::PER_NS);
    run(executor, threads, tasks.len(), one, |one, task| {
        let (to, refused, x) = &mut *lock(&tasks[task]);
        fill_blocks(by, l, order, x, one, to, refused);
    })
}

/// Represents vectors and interleaves them in blocks.
fn fill_blocks<R: Represent>(
    by: &R,
    l: &Layout,
    order: Interleave,
    x: &[f32],
    one: &mut OneVector,
    to: &mut Flat<'_>,
    refused: &mut [bool],
) {
    let (cols, per) = (l.shape.cols, l.blocks());
    let padded = one.codes.len() / R::DIGITS;
    for (first, width) in blocks(order.widths, 0..refused.len() * R::DIGITS) {
        let codes = &mut to.codes[first * padded..(first + width) * padded];
        let scales = &mut to.scales[first * per..(first + width) * per];
        let corrections = &mut to.corrections[first * per..(first + width) * per];
        for v in 0..width {
            let (vector, digit) = ((first + v) / R::DIGITS, (first + v) % R::DIGITS);
            if digit == 0 {
                let x = &x[vector * cols..][..cols];
                refused[vector] = !represent(by, l, x, &mut one.as_flat());
            }
            let from = &one.codes[digit * padded..][..padded];
            match order.columns {
                SUB_COLS => scatter::<SUB_COLS>(from, codes, v, width),
                _ => scatter::<{ 2 * SUB_COLS }>(from, codes, v, width),
            }
            for b in 0..per {
                scales[b * width + v] = one.scales[digit * per + b];
                corrections[b * width + v] = one.corrections[digit * per + b];
            }
        }
    }
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
