//! The contract of the tile kernels, and the table through which they are reached.
//!
//! Every kernel is a leaf: it neither allocates, locks, spawns nor fails. It multiplies **one tile** (32 rows, see
//! [`super::layout`]) with `V` vectors. `V` is one of [`WIDTHS`]; the driver cuts any number of vectors into those.
//!
//! # What a vector looks like
//!
//! Columns come in the order of the sub-blocks ([`Layout::runs`]), and what stands for one that does not exist is 0. For matrices of short
//! groups there are float32 vectors alone.
//!
//! - int8: codes `(subs, V, 32)` i8; one scale a block `(blocks, V)` f32; one
//!   correction a block `(blocks, V)` i32, with `S` the sum of the codes of the block: `-zero_point * S` where the zero
//!   point is constant, else `-S`, which fits the 16 bits that the kernels multiply.
//! - float32: `(subs * 32, V)`.
//! - sign: one dword a sub-block `(subs, V)` u32 in the order of a 1-bit dword (bit `8j + p` is column `4p + j`), 1 where
//!   x >= 0. Columns that do not exist have 0 as their codes have, and count as equal. For layouts of which [`Layout::signs_fit`].
//!
//! # What comes out
//!
//! `(V, 32)` f32 at `out`, one row of 32 a vector, overwritten unless said otherwise. `out`, and the float buffers between [`UnpackFn`] and
//! [`PanelFn`], are aligned to 64 bytes.
//!
//! # Order
//!
//! An output is summed in the same order whatever `V`: see "Orders of summation" in ARCHITECTURE.md. For float32 this is:
//! two chains over the columns 0..16 and 16..32 of a sub-block, each starting at 0, each then
//! `f = fma(chain, scale, f)`; after every [`FLUSH_SUBS`] sub-blocks of the row `f` goes into a float64 sum. For short groups
//! the scale is in the level, rounded to float32, and `f = f + chain`.
//!
//! # What is read
//!
//! Exactly the tile and the activations described. Prefetches may name any address.

use super::dispatch::{Core, Isa};
use super::l2_prefetch::{L2Prefetch, SmallBatchKernel};
use super::layout::Layout;
use crate::quant::Bits;

/// The numbers of vectors that a kernel takes at once, widest first. Twelve fill 24 of 32 vector registers with sums.
pub const WIDTHS: [usize; 5] = [12, 8, 4, 2, 1];

/// The same for short groups straight from the codes, whose sums share the registers with a chain each.
pub const SHORT_WIDTHS: [usize; 3] = [4, 2, 1];

/// Sub-blocks after which a float32 sum moves into float64.
pub const FLUSH_SUBS: usize = 32;

/// Activations of `V` vectors in int8, as the contract says.
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
    /// The first of them.
    pub at: *const u8,
    /// Cache lines to prefetch at each sub-block.
    pub lines: usize,
    /// As for [`DirectFn`], in kernels of up to four vectors; with AVX2, of any number.
    pub l2_distance: usize,
}

/// From how many int8 vectors on kernels that take the halves of a tile one after the other do so.
pub const SPLIT_HALVES_VECTORS: usize = 8;

/// int8: `(layout, first, count, tile, activations, ahead, out)`: groups `first..first + count` of the tile, whose activations
/// begin with those groups, **added** to `out`. A driver with many vectors keeps some groups of a tile in a cache while all of
/// them pass.
pub type Int8Fn = unsafe fn(&Layout, usize, usize, *const u8, Int8Acts, Prefetch, *mut f32);

/// float32, `V` vectors, straight from the codes: `(layout, tile, x, l2_distance, out)`. It prefetches into the L2 cache at that distance in bytes.
pub type DirectFn = unsafe fn(&Layout, *const u8, *const f32, usize, *mut f32);

/// Unpacks sub-blocks `first..first + count` of a tile: `(layout, tile, first, count, levels, scales)` with
/// levels `(count * 32, 32)`, a column of 32 rows after the other, and scales `(count, 32)`. Of short groups levels are weights and
/// scales 1.
pub type UnpackFn = unsafe fn(&Layout, *const u8, usize, usize, *mut f32, *mut f32);

/// float32, `V` vectors, on unpacked sub-blocks: `(levels, scales, count, x, f)`; adds to `f` `(V, 32)`.
/// `x` is `(count * 32, V)`.
pub type PanelFn = unsafe fn(*const f32, *const f32, usize, *const f32, *mut f32);

/// sign: `(layout, tile, x, l2_distance, out)`, `l2_distance` as for [`DirectFn`].
pub type SignFn = unsafe fn(&Layout, *const u8, *const u32, usize, *mut f32);

/// Rounds `V` float32 vectors to what int8 activations leave over of them: `(x, group)`; `x` is `(cols, V)` and finite, and no vector
/// comes near the largest float. The code times the scale of [`crate::quant::quantize_block`], for each group, but for the sign of zero.
pub type RoundFn = unsafe fn(&mut [f32], usize);

/// int16 sums that a vector can look up in a sub-block: four tables of 32.
pub const TABLE_WORDS: usize = 128;

/// Makes tables for sub-blocks of vectors: `(codes, count, tables)`; `codes` is `(count, 32)`, `tables` `(count, TABLE_WORDS)`
/// aligned to 64 bytes. What is in them is between the two functions of [`Tables`].
pub type BuildFn = unsafe fn(*const i8, usize, *mut i16);

/// Activations of `vectors` vectors, at most the widest of [`WIDTHS`], in tables.
#[derive(Clone, Copy)]
pub struct TableActs {
    /// How many.
    pub vectors: usize,
    /// `(subs, vectors, TABLE_WORDS)`.
    pub tables: *const i16,
    /// `(blocks, vectors)`.
    pub scales: *const f32,
    /// `(blocks, vectors)`.
    pub corrections: *const i32,
}

/// int8 by tables: `(layout, first, count, tile, activations, ahead, out)`: sub-blocks `first..first + count` of the tile, which
/// are whole blocks of activations and with which the activations begin, **added** to `out`. What the caller wants next lies `ahead` bytes
/// from what it wants now.
pub type TablesFn = unsafe fn(&Layout, usize, usize, *const u8, TableActs, isize, *mut f32);

/// One bit with int8 activations by tables of what groups of columns can sum to, for many vectors and many tiles: the bits of
/// [`Int8Fn`], sooner.
#[derive(Clone, Copy)]
pub struct Tables {
    /// Makes them.
    pub build: BuildFn,
    /// Multiplies with them.
    pub multiply: TablesFn,
}

/// Bytes that a vector can look up in a sub-block: four tables of 64.
pub const LOOKUP_BYTES: usize = 256;

/// Makes tables for the sub-blocks of a vector: `(codes, count, tables)`; `codes` is `(count, 32)`, `tables` `(count, LOOKUP_BYTES)` aligned
/// to 64 bytes. What is in them is between the two functions of [`Lookups`].
pub type LookupBuildFn = unsafe fn(*const i8, usize, *mut u8);

/// Activations of one vector, in tables.
#[derive(Clone, Copy)]
pub struct LookupActs {
    /// `(subs, LOOKUP_BYTES)`.
    pub tables: *const u8,
    /// `(blocks)`.
    pub scales: *const f32,
    /// `(blocks)`.
    pub corrections: *const i32,
}

/// What a kernel reads, and what the caller wants after that.
#[derive(Clone, Copy)]
pub struct Stream {
    /// The first byte.
    pub at: *const u8,
    /// What comes behind the last one.
    pub next: *const u8,
    /// As for [`DirectFn`].
    pub l2_distance: usize,
}

/// int8 by look-ups, one vector: `(layout, first, count, stream, activations, out)`: groups `first..first + count` of a tile, which `stream` has
/// and with which the activations begin, **added** to the 32 sums of `out`, which is aligned to 64 bytes.
pub type LookupFn = unsafe fn(&Layout, usize, usize, Stream, LookupActs, *mut f32);

/// One bit with int8 activations by tables of what four columns can sum to, for one vector and many tiles: the bits of [`Int8Fn`],
/// sooner.
#[derive(Clone, Copy)]
pub struct Lookups {
    /// Makes them.
    pub build: LookupBuildFn,
    /// Multiplies with them.
    pub multiply: LookupFn,
}

/// Sub-blocks of one tile as bytes: where they are.
#[derive(Clone, Copy)]
pub struct Bytes {
    /// `(count, 16, 64)`: what a sub-block of 8 bits is (see [`super::layout`]); one bit is 0/2.
    pub codes: *mut u8,
    /// `(count, 32)`: the scales of its group, for each sub-block.
    pub scales: *mut f32,
    /// `(count, 32)`: the zero points of its group, for each sub-block; nothing where the zero point is constant.
    pub zeros: *mut i32,
}

/// Unpacks sub-blocks `first..first + count` of a tile to bytes: `(layout, tile, first, count, to)`; all of `to` is aligned to 64 bytes.
pub type BytesFn = unsafe fn(&Layout, *const u8, usize, usize, Bytes);

/// int8, `V` vectors and two tiles: `(layout, count, tiles, activations, ahead, out)`: `count` sub-blocks, which are whole blocks of
/// activations and with which the activations begin, **added** to the `(V, 32)` of each tile. What the caller wants of each tile next is
/// prefetched.
pub type PairInt8Fn = unsafe fn(&Layout, usize, [Bytes; 2], Int8Acts, [Prefetch; 2], [*mut f32; 2]);

/// float32, `V` vectors and two tiles: as [`PanelFn`], of each tile its own levels, scales and sums.
pub type PairF32Fn = unsafe fn([*const f32; 2], [*const f32; 2], usize, *const f32, [*mut f32; 2]);

/// Two tiles at a time with many vectors: the bits of [`Int8Fn`] and [`PanelFn`], sooner where loads are what counts.
#[derive(Clone, Copy)]
pub struct Pairs {
    pub(super) float: [PairF32Fn; WIDTHS.len()],
    pub(super) int8: Option<PairsInt8>,
}

/// Those for int8 activations.
#[derive(Clone, Copy)]
pub struct PairsInt8 {
    pub(super) bytes: [BytesFn; 4],
    pub(super) int8: [PairInt8Fn; WIDTHS.len()],
}

impl Pairs {
    /// The float32 kernel for a number of vectors.
    pub fn float(&self, width: usize) -> PairF32Fn {
        self.float[by_width(&WIDTHS, width)]
    }

    /// Those for int8 activations, where this set has some.
    pub fn int8(&self) -> Option<PairsInt8> {
        self.int8
    }
}

impl PairsInt8 {
    /// The unpacker for [`PairsInt8::int8`].
    pub fn bytes(&self, bits: Bits) -> BytesFn {
        self.bytes[by_bits(bits)]
    }

    /// The int8 kernel for a number of vectors.
    pub fn int8(&self, width: usize) -> PairInt8Fn {
        self.int8[by_width(&WIDTHS, width)]
    }
}

/// The vectors that [`Amx`] takes at once.
pub const AMX_VECTORS: usize = 16;

/// Sub-blocks of one tile as levels, codes less zero points: where they are.
#[derive(Clone, Copy)]
pub struct Levels {
    /// `(count, 16, 64)` in the order of a sub-block of 8 bits (see [`super::layout`]); of one bit 1 and -1. An odd count has one more behind
    /// it, of any values.
    pub codes: *mut i8,
    /// `(count, 32)`: the scales of its group, for each sub-block.
    pub scales: *mut f32,
}

/// Unpacks sub-blocks `first..first + count` of a tile to levels: `(layout, tile, first, count, to)`; all of `to` is aligned to 64 bytes. For layouts
/// of which [`Layout::levels_fit_bytes`].
pub type LevelsFn = unsafe fn(&Layout, *const u8, usize, usize, Levels);

/// Activations of any number of vectors for [`Amx`], in blocks of [`AMX_VECTORS`] and a last one of what is left, `V`.
#[derive(Clone, Copy)]
pub struct AmxActs {
    /// How many vectors, at least one.
    pub vectors: usize,
    /// Of a block `(subs, V, 32)`, or `(subs / 2, V, 64)` where blocks of activations are longer than a sub-block; vector `v` is the first of a
    /// block that begins at `v * vector_codes`.
    pub codes: *const i8,
    /// Codes of a vector.
    pub vector_codes: usize,
    /// Of a block `(blocks, V)`.
    pub scales: *const f32,
    /// Scales of a vector.
    pub vector_blocks: usize,
}

/// int8 with AMX: `(layout, first, count, levels, activations, ahead, out)`: the levels of sub-blocks `first..first + count`, which are
/// whole blocks of activations, **added** to the `(vectors, 32)` of `out`. For every 16 vectors and block, what the caller wants next is called
/// for.
pub type AmxFn = unsafe fn(&Layout, usize, usize, Levels, AmxActs, Prefetch, *mut f32);

/// One tile with many vectors by AMX: the bits of [`Int8Fn`], sooner.
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

/// Quantises one vector in blocks of `block` columns, the last one short: `(x, block, codes, scales, sums)`, with `sums` those
/// of the codes of each block. `codes` is as long as `x`, `scales` and `sums` have an element a block. Bit for bit
/// [`crate::quant::quantize_block`]; false, and anything in the outputs, if a value is not finite.
pub type QuantizeFn = unsafe fn(&[f32], usize, &mut [i8], &mut [f32], &mut [i32]) -> bool;

/// The tile kernels of one level. That a value exists proves that the processor has the level: only
/// [`TileKernels::for_isa`] and [`TileKernels::variants`] hand them out.
#[derive(Clone, Copy)]
pub struct TileKernels {
    pub(super) name: &'static str,
    pub(super) isa: Isa,
    /// The cores that it is for: of the sets of a level, the last one in [`TileKernels::sets`] that is for a core is the fastest there.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "they have the scalar set only")
    )]
    pub(super) cores: &'static [Core],
    pub(super) l2_prefetch: L2Prefetch,
    /// Whether int8 kernels of [`SPLIT_HALVES_VECTORS`] and more take the halves of a tile one after the other.
    pub(super) splits_halves: bool,
    /// See [`TileKernels::max_direct_vectors`].
    pub(super) max_direct_vectors: [usize; 4],
    pub(super) int8: [[Int8Fn; WIDTHS.len()]; 4],
    pub(super) direct: [[DirectFn; WIDTHS.len()]; 4],
    pub(super) unpack: [UnpackFn; 4],
    pub(super) panel: [PanelFn; WIDTHS.len()],
    pub(super) sign: [SignFn; WIDTHS.len()],
    pub(super) short_direct: [DirectFn; SHORT_WIDTHS.len()],
    pub(super) short_unpack: UnpackFn,
    pub(super) short_round: [RoundFn; WIDTHS.len()],
    pub(super) quantize: QuantizeFn,
    pub(super) lookups: Option<Lookups>,
    pub(super) tables: Option<Tables>,
    pub(super) pairs: Option<Pairs>,
    pub(super) amx: Option<Amx>,
}

/// The row of a table by bits: 1, 2, 4, 8.
const fn by_bits(bits: Bits) -> usize {
    bits.get().trailing_zeros() as usize
}

/// The column of a table by number of vectors.
fn by_width(widths: &[usize], width: usize) -> usize {
    let column = widths.iter().position(|&w| w == width);
    column.expect("a width of the kernels")
}

impl TileKernels {
    /// The name of the set, for people: the level, and what it uses beyond it.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The level.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The distance in bytes at which a kernel of few vectors is to prefetch into the L2 cache: see [`super::l2_prefetch`].
    pub fn l2_distance(&self, kernel: SmallBatchKernel, vectors: usize) -> usize {
        self.l2_prefetch.distance(self.isa, kernel, vectors)
    }

    /// The int8 kernel for a width of codes and a number of vectors.
    pub fn int8(&self, bits: Bits, width: usize) -> Int8Fn {
        self.int8[by_bits(bits)][by_width(&WIDTHS, width)]
    }

    /// Whether its int8 kernel for so many vectors passes over a tile twice, and prefetches half of [`Prefetch::lines`] each time. Below 8 bits it passes twice and prefetches in
    /// one: with so much to do for each byte the first pass need not wait for memory. (On Zen 4 prefetches in both took 0 to 4% longer
    /// there, and 25% and 7% less at 8 bits with 8 and 12 vectors.)
    pub fn prefetches_twice(&self, bits: Bits, width: usize) -> bool {
        self.splits_halves && width >= SPLIT_HALVES_VECTORS && bits == Bits::Eight
    }

    /// Up to how many float32 vectors are best multiplied straight from the codes, by [`TileKernels::direct`], unless groups are short.
    pub fn max_direct_vectors(&self, bits: Bits) -> usize {
        self.max_direct_vectors[by_bits(bits)]
    }

    /// The float32 kernel for few vectors.
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

    /// The float32 kernel for few vectors and short groups, for a number of vectors of [`SHORT_WIDTHS`].
    pub fn short_direct(&self, width: usize) -> DirectFn {
        self.short_direct[by_width(&SHORT_WIDTHS, width)]
    }

    /// The unpacker of short groups for [`TileKernels::panel`].
    pub fn short_unpack(&self) -> UnpackFn {
        self.short_unpack
    }

    /// The int8 activations of short groups, for a number of vectors.
    pub fn short_round(&self, width: usize) -> RoundFn {
        self.short_round[by_width(&WIDTHS, width)]
    }

    /// The product of one vector by look-ups, where this set has one.
    pub fn lookups(&self) -> Option<Lookups> {
        self.lookups
    }

    /// The product by tables, where this set has one.
    pub fn tables(&self) -> Option<Tables> {
        self.tables
    }

    /// The products of two tiles at a time, where this set has them.
    pub fn pairs(&self) -> Option<Pairs> {
        self.pairs
    }

    /// The products by AMX, where this set has them.
    pub fn amx(&self) -> Option<Amx> {
        self.amx
    }

    /// The activation quantiser.
    pub fn quantize(&self) -> QuantizeFn {
        self.quantize
    }
}
