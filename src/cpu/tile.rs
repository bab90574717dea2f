//! The contract of the tile kernels, and the table of functions through which they are called.
//!
//! Every kernel is a leaf function: it does not allocate, lock, spawn or fail. It multiplies **one
//! tile** (32 rows, see [`super::layout`]) by `V` vectors. `V` is one of [`WIDTHS`], for int8 one of
//! [`INT8_WIDTHS`]; the driver splits any number of vectors into blocks of those widths.
//!
//! # Layout of the activations
//!
//! Columns are in the order of the sub-blocks ([`Layout::runs`]); padding columns hold 0. Matrices
//! with short groups take float32 vectors only.
//!
//! - int8: codes `(subs, V, 32)` i8; scales `(blocks, V)` f32; corrections `(blocks, V)` i32. With
//!   `S` the sum of the codes of a block, its correction is `-zero_point * S` where the zero point
//!   is constant, else `-S`, which fits the 16 bits that the kernels multiply.
//! - float32: `(subs * 32, V)`.
//! - sign: `(subs, V)` u32, one dword per sub-block in the bit order of a 1-bit dword (bit `8j + p`
//!   is column `4p + j`), 1 where x >= 0. Padding columns hold 0, as their codes do, and so count
//!   as equal. Only for layouts for which [`Layout::signs_fit`].
//!
//! # Output
//!
//! `(V, 32)` f32 at `out`, one row of 32 per vector, overwritten unless stated otherwise. `out`,
//! and the float buffers passed from [`UnpackFn`] to [`PanelFn`], are aligned to 64 bytes.
//!
//! # Order of summation
//!
//! An output is summed in the same order whatever `V`: see "Order of summation" in ARCHITECTURE.md.
//! For float32 this is: two chains over the columns 0..16 and 16..32 of a sub-block, each starting
//! at 0, each followed by `f = fma(chain, scale, f)`; after every [`FLUSH_SUBS`] sub-blocks of the
//! row `f` is added to a float64 sum. With short groups the levels are already scaled and rounded
//! to float32, and `f = f + chain`.
//!
//! # Memory accesses
//!
//! Kernels read exactly the tile and the activations described above. Prefetches may use any
//! address.

use super::dispatch::{Core, Isa};
use super::l2_prefetch::{L2Prefetch, SmallBatchKernel};
use super::layout::Layout;
use crate::quant::{Bits, DIGITS};

/// The numbers of vectors that a kernel takes at once, widest first. With twelve, 24 of the 32
/// vector registers hold accumulators.
pub const WIDTHS: [usize; 5] = [12, 8, 4, 2, 1];

/// The same for int8 vectors. Multiples of three, for float32 vectors that are split into three
/// ([`crate::quant::split_block`]).
pub const INT8_WIDTHS: [usize; 7] = [12, 8, 6, 4, 3, 2, 1];

/// The same for the fused kernels of short groups, which need registers for a chain and an
/// accumulator per vector.
pub const SHORT_WIDTHS: [usize; 3] = [4, 2, 1];

/// Sub-blocks after which a float32 sum is flushed to float64.
pub const FLUSH_SUBS: usize = 32;

/// int8 activations of `V` vectors; see the [module documentation](self).
#[derive(Clone, Copy)]
pub struct Int8Acts {
    /// `(subs, V, 32)`.
    pub codes: *const i8,
    /// `(blocks, V)`.
    pub scales: *const f32,
    /// `(blocks, V)`.
    pub corrections: *const i32,
}

/// What a kernel prefetches while it works: the bytes that this thread will read next.
#[derive(Clone, Copy)]
pub struct Prefetch {
    /// The first byte.
    pub at: *const u8,
    /// Cache lines to prefetch at each sub-block.
    pub lines: usize,
    /// As for [`DirectFn`]; used by kernels of up to four vectors, with AVX-VNNI of any number, with
    /// AVX2 alone of three or more where a block is one sub-block.
    pub l2_distance: usize,
}

/// [`TileKernels::l1_distance`] unless a set has another for one vector.
///
/// One thread on Zen 5, 4096 × 4096 from memory, medians of alternating runs alongside other work,
/// µs at 1, 2, 4 and 8 bits: 3 KB 111, 192, 335 and 637; 4 KB 113, 171, 292 and 589; 5 KB 99, 164,
/// 291 and 561; 6 KB 99, 160, 303 and 588.
pub(super) const L1_DISTANCE: usize = 5 << 10;

/// Whether kernels that can process the two halves of a tile separately do so for this many int8
/// vectors.
pub const fn halves_pay(bits: usize, vectors: usize) -> bool {
    vectors >= if bits == 8 { 6 } else { 8 }
}

/// int8: `(layout, first, count, tile, activations, ahead, out)`. Processes groups
/// `first..first + count` of the tile; the activations begin with those groups. The products are
/// **added** to `out`, so that a driver with many vectors can keep some groups of a tile in a cache
/// while all vectors pass.
pub type Int8Fn = unsafe fn(&Layout, usize, usize, *const u8, Int8Acts, Prefetch, *mut f32);

/// int8, `V` vectors and several consecutive tiles: `(tile, tiles, groups, activations, out)`, with
/// the first of the tiles and the number of groups of each. Only for layouts that are
/// [`Layout::plain`]. `out` is `(tiles, V, 32)`, overwritten. The same bits as [`Int8Fn`].
pub type StreamFn = unsafe fn(*const u8, usize, usize, Int8Acts, *mut f32);

/// float32, `V` vectors, fused dequantise: `(layout, tile, x, l2_distance, out)`. Prefetches into
/// L2 at a distance of `l2_distance` bytes.
pub type DirectFn = unsafe fn(&Layout, *const u8, *const f32, usize, *mut f32);

/// Unpacks sub-blocks `first..first + count` of a tile:
/// `(layout, tile, first, count, levels, scales)`, with levels `(count * 32, 32)`, one column of 32
/// rows after the other, and scales `(count, 32)`. With short groups the levels are scaled weights
/// and the scales are 1.
pub type UnpackFn = unsafe fn(&Layout, *const u8, usize, usize, *mut f32, *mut f32);

/// float32, `V` vectors, on unpacked sub-blocks: `(levels, scales, count, x, f)`. `x` is
/// `(count * 32, V)`; the products are added to `f` `(V, 32)`.
pub type PanelFn = unsafe fn(*const f32, *const f32, usize, *const f32, *mut f32);

/// sign: `(layout, tile, x, l2_distance, out)`, `l2_distance` as for [`DirectFn`].
pub type SignFn = unsafe fn(&Layout, *const u8, *const u32, usize, *mut f32);

/// Rounds `V` float32 vectors to the values that int8 quantisation represents: `(x, group)`. `x` is
/// `(cols, V)`, finite, with no vector near the largest float. Each element becomes code times
/// scale, as by [`crate::quant::quantize_block`] on each group, except for the sign of zero.
pub type RoundFn = unsafe fn(&mut [f32], usize);

/// The size of the tables of a sub-block and vector, in words of 16 bits.
pub const TABLE_WORDS: usize = 128;

/// The most vectors of [`TableActs`].
pub const TABLE_VECTORS: usize = 24;

// Panels of that many begin where a block of interleaved vectors does, and hold all digits of a
// float32 vector.
const _: () = assert!(TABLE_VECTORS.is_multiple_of(INT8_WIDTHS[0]));
const _: () = assert!(TABLE_VECTORS.is_multiple_of(DIGITS));

/// Builds tables: `(codes, count, tables)`; `codes` is `(count, 32)`, `tables`
/// `(count, TABLE_WORDS)`, aligned to 64 bytes. The contents are private to the two functions of
/// [`Tables`].
pub type BuildFn = unsafe fn(*const i8, usize, *mut i16);

/// Activations of `vectors` vectors as tables.
#[derive(Clone, Copy)]
pub struct TableActs {
    /// How many: at most [`TABLE_VECTORS`].
    pub vectors: usize,
    /// `(subs, vectors, TABLE_WORDS)`.
    pub tables: *const i16,
    /// `(blocks, vectors)`.
    pub scales: *const f32,
}

/// int8 by tables: `(layout, first, count, tile, activations, ahead, out)`. Processes sub-blocks
/// `first..first + count` of the tile, which form whole blocks of activations and with which the
/// activations begin; the products are **added** to `out`. The data needed next is `ahead` bytes
/// after the data read now, and is prefetched.
pub type TablesFn = unsafe fn(&Layout, usize, usize, *const u8, TableActs, isize, *mut f32);

/// 1-bit weights with int8 activations, by tables of the possible sums of groups of columns, for
/// several vectors and many tiles: the same bits as [`Int8Fn`], faster.
#[derive(Clone, Copy)]
pub struct Tables {
    /// The fewest vectors for which they pay.
    pub min_vectors: usize,
    /// Builds the tables.
    pub build: BuildFn,
    /// Multiplies with them.
    pub multiply: TablesFn,
}

/// The size of the tables of a sub-block of a vector, in bytes.
pub const LOOKUP_BYTES: usize = 256;

/// Builds the tables of one vector: `(codes, count, tables, next)`; `codes` is `(count, 32)`,
/// `tables` `(count, LOOKUP_BYTES)`, aligned to 64 bytes. The contents are private to the two
/// functions of [`Lookups`]. What will be read after that, from `next` on, is prefetched.
pub type LookupBuildFn = unsafe fn(*const i8, usize, *mut u8, *const u8);

/// Activations of one vector as tables.
#[derive(Clone, Copy)]
pub struct LookupActs {
    /// `(subs, LOOKUP_BYTES)`.
    pub tables: *const u8,
    /// `(blocks)`.
    pub scales: *const f32,
}

/// The weights that a kernel reads, and those that the caller needs next.
#[derive(Clone, Copy)]
pub struct Stream {
    /// The first byte.
    pub at: *const u8,
    /// The byte that will be read after the last one.
    pub next: *const u8,
    /// As for [`DirectFn`].
    pub l2_distance: usize,
}

/// int8 by look-ups, one vector: `(layout, first, count, stream, activations, out)`. Processes
/// groups `first..first + count` of a tile, which are at `stream` and with which the activations
/// begin; the products are **added** to the 32 sums of `out`, which is aligned to 64 bytes.
pub type LookupFn = unsafe fn(&Layout, usize, usize, Stream, LookupActs, *mut f32);

/// 1-bit weights with int8 activations, by tables of the possible sums of four columns, for one
/// vector and many tiles: the same bits as [`Int8Fn`], faster.
#[derive(Clone, Copy)]
pub struct Lookups {
    /// Builds the tables.
    pub build: LookupBuildFn,
    /// Multiplies with them.
    pub multiply: LookupFn,
}

/// The most sub-blocks that [`PairsInt8`] unpack at once: a multiple of every block of activations.
pub const PAIR_SUBS: usize = 8;

/// Sub-blocks of one tile unpacked to bytes.
#[derive(Clone, Copy)]
pub struct Bytes {
    /// `(count, 16, 64)`: codes in the order of an 8-bit sub-block (see [`super::layout`]); 1-bit
    /// codes as 0 and 2.
    pub codes: *mut u8,
    /// `(count, 32)`: for each sub-block the scales of its group.
    pub scales: *mut f32,
    /// `(count, 32)`: for each sub-block the zero points of its group; unused where the zero point
    /// is constant.
    pub zeros: *mut i32,
}

/// Unpacks sub-blocks `first..first + count` of a tile to bytes:
/// `(layout, tile, first, count, to)`; the buffers of `to` are aligned to 64 bytes.
pub type BytesFn = unsafe fn(&Layout, *const u8, usize, usize, Bytes);

/// int8, `V` vectors and two tiles: `(layout, count, tiles, activations, ahead, out)`. Processes
/// `count` sub-blocks, at most [`PAIR_SUBS`], which form whole blocks of activations and with which
/// the activations begin; the products are **added** to the `(V, 32)` of each tile. `ahead` says
/// what to prefetch of each tile.
pub type PairInt8Fn = unsafe fn(&Layout, usize, [Bytes; 2], Int8Acts, [Prefetch; 2], [*mut f32; 2]);

/// float32, `V` vectors and two tiles: as [`PanelFn`], with levels, scales and sums per tile.
pub type PairF32Fn = unsafe fn([*const f32; 2], [*const f32; 2], usize, *const f32, [*mut f32; 2]);

/// Two tiles at a time, for many vectors: the same bits as [`Int8Fn`] and [`PanelFn`], faster where
/// loads are the bottleneck, or where registers hold too few sums for unpacking once to wait.
#[derive(Clone, Copy)]
pub struct Pairs {
    /// By bit width, the fewest vectors for which they pay.
    pub(super) min_vectors: [usize; 4],
    pub(super) float: Option<PairsF32>,
    pub(super) int8: Option<PairsInt8>,
}

/// The pair kernels for float32 activations.
#[derive(Clone, Copy)]
pub struct PairsF32 {
    pub(super) float: [PairF32Fn; WIDTHS.len()],
}

/// The pair kernels for int8 activations.
#[derive(Clone, Copy)]
pub struct PairsInt8 {
    pub(super) bytes: [BytesFn; 4],
    pub(super) int8: [PairInt8Fn; INT8_WIDTHS.len()],
}

impl Pairs {
    /// The fewest vectors for which they pay.
    pub fn min_vectors(&self, bits: Bits) -> usize {
        self.min_vectors[by_bits(bits)]
    }

    /// The kernels for float32 activations, if this set has them.
    pub fn float(&self) -> Option<PairsF32> {
        self.float
    }

    /// The kernels for int8 activations, if this set has them.
    pub fn int8(&self) -> Option<PairsInt8> {
        self.int8
    }
}

impl PairsF32 {
    /// The kernel for a number of vectors.
    pub fn float(&self, width: usize) -> PairF32Fn {
        self.float[by_width(&WIDTHS, width)]
    }
}

impl PairsInt8 {
    /// The unpacker for [`PairsInt8::int8`].
    pub fn bytes(&self, bits: Bits) -> BytesFn {
        self.bytes[by_bits(bits)]
    }

    /// The int8 kernel for a number of vectors.
    pub fn int8(&self, width: usize) -> PairInt8Fn {
        self.int8[by_width(&INT8_WIDTHS, width)]
    }
}

/// Vectors that an AMX register holds.
pub const AMX_VECTORS: usize = 16;

/// Sub-blocks of one tile unpacked to levels: codes minus zero points.
#[derive(Clone, Copy)]
pub struct Levels {
    /// `(count, 16, 64)` in the order of an 8-bit sub-block (see [`super::layout`]); 1-bit codes as
    /// 1 and -1. If `count` is odd, there is room for one more sub-block after the last, with any
    /// contents.
    pub codes: *mut i8,
    /// `(count, 32)`: for each sub-block the scales of its group.
    pub scales: *mut f32,
}

/// Unpacks sub-blocks `first..first + count` of a tile to levels:
/// `(layout, tile, first, count, to)`; the buffers of `to` are aligned to 64 bytes. Only for
/// layouts for which [`Layout::levels_fit_bytes`].
pub type LevelsFn = unsafe fn(&Layout, *const u8, usize, usize, Levels);

/// Activations of any number of vectors for [`Amx`], in blocks of [`AMX_VECTORS`] and a last block
/// of the remaining `V`.
#[derive(Clone, Copy)]
pub struct AmxActs {
    /// How many vectors, at least one.
    pub vectors: usize,
    /// Per block `(subs, V, 32)`, or `(subs / 2, V, 64)` where blocks of activations are longer
    /// than a sub-block. A block whose first vector is `v` begins at `v * vector_codes`.
    pub codes: *const i8,
    /// Codes per vector.
    pub vector_codes: usize,
    /// Per block of vectors `(blocks, V)`.
    pub scales: *const f32,
    /// Scales per vector.
    pub vector_blocks: usize,
}

/// int8 with AMX: `(layout, first, count, levels, activations, ahead, out)`. Processes the levels
/// of sub-blocks `first..first + count`, which form whole blocks of activations; the products are
/// **added** to `out` `(vectors, 32)`. The lines of `ahead` are prefetched once per 16 vectors and
/// block.
pub type AmxFn = unsafe fn(&Layout, usize, usize, Levels, AmxActs, Prefetch, *mut f32);

/// One tile with many vectors by AMX: the same bits as [`Int8Fn`], faster.
#[derive(Clone, Copy)]
pub struct Amx {
    pub(super) levels: [LevelsFn; 4],
    pub(super) multiply: AmxFn,
}

impl Amx {
    /// The unpacker for [`Amx::multiply`].
    pub fn levels(&self, bits: Bits) -> LevelsFn {
        self.levels[by_bits(bits)]
    }

    /// The kernel.
    pub fn multiply(&self) -> AmxFn {
        self.multiply
    }
}

/// Quantises one vector in blocks of `block` columns, the last of which may be shorter:
/// `(x, block, codes, scales, sums)`, with `sums` the sums of the codes of each block. `codes` is
/// as long as `x`; `scales` and `sums` have one element per block. Gives the same bits as
/// [`crate::quant::quantize_block`]. Returns false, with unspecified outputs, if a value is not
/// finite.
pub type QuantizeFn = unsafe fn(&[f32], usize, &mut [i8], &mut [f32], &mut [i32]) -> bool;

/// Splits one vector into digits, in blocks of `block` columns, the last of which may be shorter:
/// `(x, block, to)`. Gives the same bits as [`crate::quant::split_block`]. Returns the largest
/// magnitude, or `None`, with unspecified outputs, if a block cannot be split.
pub type SplitFn = unsafe fn(&[f32], usize, SplitTo<'_>) -> Option<f32>;

/// Where [`SplitFn`] writes.
pub struct SplitTo<'a> {
    /// The digits, the least significant first, each as long as `x`.
    pub digits: [&'a mut [i8]; DIGITS],
    /// For each block the scale of its least significant digits.
    pub scales: &'a mut [f32],
    /// For each block the sums of its digits.
    pub sums: [&'a mut [i32]; DIGITS],
}

/// The tile kernels of one level. A value proves that the processor has the level: only
/// [`TileKernels::for_isa`] and [`TileKernels::variants`] return one.
#[derive(Clone, Copy)]
pub struct TileKernels {
    pub(super) name: &'static str,
    pub(super) isa: Isa,
    /// The cores that the set is meant for. Of the sets of a level, the last one in the registry
    /// that lists a core is the fastest there.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "they have the scalar set only")
    )]
    pub(super) cores: &'static [Core],
    /// [`TileKernels::l1_distance`] for one vector.
    pub(super) one_vector_distance: usize,
    pub(super) l2_prefetch: L2Prefetch,
    /// Whether int8 kernels process the two halves of a tile separately where [`halves_pay`].
    pub(super) splits_halves: bool,
    /// See [`TileKernels::max_direct_vectors`].
    pub(super) max_direct_vectors: [usize; 4],
    pub(super) int8: [[Int8Fn; INT8_WIDTHS.len()]; 4],
    pub(super) stream: fn(Bits, usize) -> Option<StreamFn>,
    pub(super) direct: [[DirectFn; WIDTHS.len()]; 4],
    pub(super) unpack: [UnpackFn; 4],
    pub(super) panel: [PanelFn; WIDTHS.len()],
    pub(super) sign: [SignFn; WIDTHS.len()],
    pub(super) short_direct: [DirectFn; SHORT_WIDTHS.len()],
    pub(super) short_unpack: UnpackFn,
    pub(super) short_round: [RoundFn; WIDTHS.len()],
    pub(super) quantize: QuantizeFn,
    pub(super) split: Option<SplitFn>,
    /// See [`TileKernels::splits`].
    pub(super) max_split_bits: usize,
    pub(super) lookups: Option<Lookups>,
    pub(super) tables: Option<Tables>,
    pub(super) pairs: Option<Pairs>,
    pub(super) amx: Option<Amx>,
}

/// The row of a table for a bit width: 1, 2, 4, 8.
const fn by_bits(bits: Bits) -> usize {
    bits.get().trailing_zeros() as usize
}

/// The column of a table for a number of vectors.
fn by_width(widths: &[usize], width: usize) -> usize {
    let column = widths.iter().position(|&w| w == width);
    column.expect("a width of the kernels")
}

impl TileKernels {
    /// The name of the set, for display: the level, and the extensions used beyond it.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The level.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The distance in bytes at which the int8 kernel for a number of vectors should prefetch into L1
    /// where weights are read once.
    pub fn l1_distance(&self, width: usize) -> usize {
        match width {
            1 => self.one_vector_distance,
            _ => L1_DISTANCE,
        }
    }

    /// The distance in bytes at which a small-batch kernel should prefetch into L2: see
    /// [`super::l2_prefetch`].
    pub fn l2_distance(&self, kernel: SmallBatchKernel, vectors: usize) -> usize {
        self.l2_prefetch.distance(self.isa, kernel, vectors)
    }

    /// The int8 kernel for a bit width and a number of vectors.
    pub fn int8(&self, bits: Bits, width: usize) -> Int8Fn {
        self.int8[by_bits(bits)][by_width(&INT8_WIDTHS, width)]
    }

    /// The kernel for this many int8 vectors and several tiles, if there is a faster one than
    /// [`TileKernels::int8`].
    pub fn stream(&self, bits: Bits, vectors: usize) -> Option<StreamFn> {
        (self.stream)(bits, vectors)
    }

    /// Whether the int8 kernel for this many vectors makes two passes over a tile and prefetches
    /// half of [`Prefetch::lines`] in each. Below 8 bits it makes two passes and prefetches in one:
    /// with that much arithmetic per byte the first pass does not wait for memory. (On Zen 4,
    /// prefetching in both took 0 to 4% longer there; at 8 bits it took 25% and 7% less time with 8
    /// and 12 vectors.)
    pub fn prefetches_twice(&self, bits: Bits, width: usize) -> bool {
        self.splits_halves && halves_pay(8, width) && bits == Bits::Eight
    }

    /// The largest number of float32 vectors for which [`TileKernels::direct`] is the fastest path,
    /// unless groups are short.
    pub fn max_direct_vectors(&self, bits: Bits) -> usize {
        self.max_direct_vectors[by_bits(bits)]
    }

    /// The float32 kernel for few vectors (fused dequantise).
    pub fn direct(&self, bits: Bits, width: usize) -> DirectFn {
        self.direct[by_bits(bits)][by_width(&WIDTHS, width)]
    }

    /// The unpacker for [`TileKernels::panel`].
    pub fn unpack(&self, bits: Bits) -> UnpackFn {
        self.unpack[by_bits(bits)]
    }

    /// The float32 kernel for many vectors.
    pub fn panel(&self, width: usize) -> PanelFn {
        self.panel[by_width(&WIDTHS, width)]
    }

    /// The sign kernel.
    pub fn sign(&self, width: usize) -> SignFn {
        self.sign[by_width(&WIDTHS, width)]
    }

    /// The same for short groups, for a number of vectors of [`SHORT_WIDTHS`].
    pub fn short_direct(&self, width: usize) -> DirectFn {
        self.short_direct[by_width(&SHORT_WIDTHS, width)]
    }

    /// The unpacker of short groups for [`TileKernels::panel`].
    pub fn short_unpack(&self) -> UnpackFn {
        self.short_unpack
    }

    /// The rounding of int8 activations for short groups, for a number of vectors.
    pub fn short_round(&self, width: usize) -> RoundFn {
        self.short_round[by_width(&WIDTHS, width)]
    }

    /// The look-up kernels for one vector, if this set has them.
    pub fn lookups(&self) -> Option<Lookups> {
        self.lookups
    }

    /// The table kernels, if this set has them.
    pub fn tables(&self) -> Option<Tables> {
        self.tables
    }

    /// The kernels for two tiles at a time, if this set has them.
    pub fn pairs(&self) -> Option<Pairs> {
        self.pairs
    }

    /// The AMX kernels, if this set has them.
    pub fn amx(&self) -> Option<Amx> {
        self.amx
    }

    /// Whether products of matrices of this width with int8 activations are so much faster that
    /// three of them are the best way to multiply float32 activations. [`TileKernels::split`] is
    /// then present.
    pub fn splits(&self, bits: Bits) -> bool {
        self.split.is_some() && bits.get() <= self.max_split_bits
    }

    /// The function that splits float32 activations, if there is a width for which this pays.
    pub fn split(&self) -> Option<SplitFn> {
        self.split
    }

    /// The activation quantiser.
    pub fn quantize(&self) -> QuantizeFn {
        self.quantize
    }
}
