//! The interleaved tile: how weights are laid out in memory when a handle is created.
//!
//! # The contract
//!
//! A tile is 32 rows, two *halves* of 16. Tiles follow each other in row order, so that a thread
//! which owns a range of rows reads one linear stream. Within a tile the groups of columns follow
//! each other; a group is
//!
//! ```text
//! [sub-block 0] … [sub-block subs-1] [scales: 32 × f16 or f32] [zero points: 32 × i16, or nothing]
//! ```
//!
//! A sub-block is 32 columns × 32 rows, `128 * bits` bytes, made of `2 * bits` vectors of 64 bytes.
//! Vector `(q, half)` is at offset `(2 * q + half) * 64`. Its dword `lane` (little endian) belongs
//! to row `16 * half + lane` of the tile and holds `32 / bits` codes. In a dword, the code at bit
//! `8 * j + bits * p` (`j` in 0..4, `p` in 0..8/bits) is that of column
//!
//! ```text
//! 4 * (q + bits * p) + j
//! ```
//!
//! so that at 8 bits a dword is four consecutive columns, and at every width one shift by
//! `bits * p` and a mask leave four consecutive columns in the four bytes of a dword: the operand
//! of `vpdpbusd`, whose other operand is four bytes of activations.
//!
//! # Short groups
//!
//! Groups of fewer than 16 columns would more than double in size if padded to sub-blocks of their
//! own. They share sub-blocks: column `c` of the row is column `c % 32` of sub-block `c / 32`.
//! Their scales and zero points follow the codes of all groups, as if the tile were one group:
//!
//! ```text
//! [sub-block 0] … [scales of group 0] [zero points of group 0, or nothing] [scales of group 1] …
//! ```
//!
//! # Both forms
//!
//! - Every part is a multiple of 64 bytes and aligned to 64.
//! - A group whose number of columns is not a multiple of 32 (with short groups: a row) ends in a
//!   partly filled sub-block. Padding columns hold code 0; kernels see activations of 0 there or do
//!   not read them. Padding rows hold code 0 and scale 0; their results are not read.
//! - Zero point `i` of a group belongs to row `i` of the tile; 1-bit matrices have none.

use crate::quant::{Bits, Codes, ScaleValues, Shape};
use std::ops::Range;

/// Rows of a tile.
pub const TILE_ROWS: usize = 32;
/// Columns of a sub-block, and of the longest float32 chain.
pub const SUB_COLS: usize = 32;
/// Columns of a quad, the four bytes of a dword after one shift: what one byte dot product
/// consumes.
pub const QUAD_COLS: usize = 4;
/// The most columns that a short group has.
pub const SHORT_COLS: usize = SUB_COLS / 2 - 1;
/// Quads of a sub-block.
pub const SUB_QUADS: usize = SUB_COLS / QUAD_COLS;

/// How the scales of a group are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleKind {
    /// 64 bytes per tile and group.
    F16,
    /// 128 bytes per tile and group.
    F32,
}

/// Where zero points come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroKind {
    /// One for the whole matrix. With one bit: 1, for codes that kernels double to 0 and 2.
    Constant(i32),
    /// Stored after the scales of each group, 64 bytes per tile and group.
    PerGroup,
}

/// The geometry of a matrix in tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Rows, columns and groups.
    pub shape: Shape,
    /// Bits per code.
    pub bits: Bits,
    /// How scales are stored.
    pub scale: ScaleKind,
    /// Where zero points come from.
    pub zero: ZeroKind,
    /// Whether groups are short.
    pub short: bool,
    /// Sub-blocks of every group but the last; with short groups, of a tile.
    pub subs: usize,
    /// Sub-blocks of the last group; with short groups, of a tile.
    pub last_subs: usize,
    /// Sub-blocks of an activation block (int8): 1, 2 or 4.
    pub block_subs: usize,
}

impl Layout {
    /// The layout for a matrix, or `None` if it is empty.
    pub fn new(codes: &Codes<'_>) -> Option<Layout> {
        let s = codes.shape;
        if s.rows == 0 || s.cols == 0 {
            return None;
        }
        let whole_row = s.groups == 1;
        let short = !whole_row && s.group <= SHORT_COLS;
        let last = s.group_columns(s.groups - 1).len();
        let tile_subs = s.cols.div_ceil(SUB_COLS);
        Some(Layout {
            shape: s,
            bits: codes.bits,
            scale: match codes.scales {
                ScaleValues::F16(_) => ScaleKind::F16,
                ScaleValues::F32(_) => ScaleKind::F32,
            },
            zero: match codes.zero_points {
                _ if codes.bits == Bits::One => ZeroKind::Constant(1),
                None => ZeroKind::Constant(codes.bits.default_zero_point()),
                Some((values, _)) if values.iter().all(|&z| z == values[0]) => {
                    ZeroKind::Constant(values[0])
                }
                Some(_) => ZeroKind::PerGroup,
            },
            short,
            subs: match (short, whole_row) {
                (true, _) => tile_subs,
                (_, true) => last.div_ceil(SUB_COLS),
                _ => s.group.div_ceil(SUB_COLS),
            },
            last_subs: if short {
                tile_subs
            } else {
                last.div_ceil(SUB_COLS)
            },
            block_subs: match s.group {
                64 => 2,
                128 => 4,
                _ => 1,
            },
        })
    }

    /// Whether groups are single sub-blocks, scales are float16, and there is one zero point: what
    /// `quantize` makes in groups of 32, unless asymmetric.
    pub fn plain(&self) -> bool {
        self.subs == 1
            && !self.short
            && self.scale == ScaleKind::F16
            && self.zero != ZeroKind::PerGroup
    }

    /// Whether every code minus its zero point is in -128..=127.
    pub fn levels_fit_bytes(&self) -> bool {
        self.bits != Bits::Eight || self.zero == ZeroKind::Constant(128)
    }

    /// Whether the sign kernels can sum every group in int32, as they do.
    pub fn signs_fit(&self) -> bool {
        i32::try_from(self.shape.group_columns(0).len()).is_ok()
    }

    /// Tiles of the matrix.
    pub fn tiles(&self) -> usize {
        self.shape.rows.div_ceil(TILE_ROWS)
    }

    /// Sub-blocks of a tile.
    pub fn total_subs(&self) -> usize {
        if self.short {
            return self.subs;
        }
        (self.shape.groups - 1) * self.subs + self.last_subs
    }

    /// Columns of a row including padding.
    pub fn padded_cols(&self) -> usize {
        self.total_subs() * SUB_COLS
    }

    /// Columns of a group before the last including padding, if groups are not short.
    fn padded_group(&self) -> usize {
        self.shape.group.next_multiple_of(SUB_COLS)
    }

    /// Whether groups before the last end in padding columns.
    pub fn has_gaps(&self) -> bool {
        !self.short && self.shape.groups > 1 && self.padded_group() != self.shape.group
    }

    /// Runs of columns without padding between them: the columns of each, and the padded column at
    /// which it begins.
    pub fn runs(&self) -> impl Iterator<Item = (Range<usize>, usize)> {
        let layout = *self;
        let runs = if self.has_gaps() {
            self.shape.groups
        } else {
            1
        };
        (0..runs).map(move |g| match runs {
            1 => (0..layout.shape.cols, 0),
            _ => (layout.shape.group_columns(g), g * layout.padded_group()),
        })
    }

    /// The columns of sub-block `s` of group `g`, if groups are not short.
    pub fn sub_columns(&self, g: usize, s: usize) -> Range<usize> {
        debug_assert!(!self.short);
        let group = self.shape.group_columns(g);
        let start = group.start + s * SUB_COLS;
        start..group.end.min(start + SUB_COLS)
    }

    /// Sub-blocks of group `g`, if groups are not short.
    #[inline(always)]
    pub fn group_subs(&self, g: usize) -> usize {
        debug_assert!(!self.short);
        if g + 1 == self.shape.groups {
            self.last_subs
        } else {
            self.subs
        }
    }

    /// The offset of sub-block `sub` in a tile, if groups are not short; for the one after the
    /// last, that of the next tile.
    pub fn sub_offset(&self, sub: usize) -> usize {
        debug_assert!(!self.short);
        if sub == self.total_subs() {
            return self.tile_bytes();
        }
        self.sub_and_tail(sub).0
    }

    /// The offsets in a tile of sub-block `sub` and of the tail of its group (scales and zero
    /// points), if groups are not short.
    #[inline(always)]
    pub fn sub_and_tail(&self, sub: usize) -> (usize, usize) {
        debug_assert!(!self.short);
        let (g, s) = (sub / self.subs, sub % self.subs);
        (
            self.group_offset(g) + s * self.sub_bytes(),
            self.tail_offset(g),
        )
    }

    /// Columns of an activation block (int8) other than the last of a group, if groups are not
    /// short.
    pub fn block_cols(&self) -> usize {
        debug_assert!(!self.short);
        self.block_subs * SUB_COLS
    }

    /// Sub-blocks that one AMX multiplication takes: two where blocks of activations have at least
    /// two.
    pub fn amx_subs(&self) -> usize {
        self.block_subs.min(2)
    }

    /// Activation blocks of a row (int8), if groups are not short.
    pub fn blocks(&self) -> usize {
        debug_assert!(!self.short);
        (self.shape.groups - 1) * self.group_blocks() + self.last_subs.div_ceil(self.block_subs)
    }

    /// Activation blocks of every group but the last (int8).
    pub fn group_blocks(&self) -> usize {
        self.subs.div_ceil(self.block_subs)
    }

    /// Bytes of a sub-block.
    pub fn sub_bytes(&self) -> usize {
        4 * SUB_COLS * self.bits.get()
    }

    /// Bytes of the scales and zero points of a group.
    #[inline(always)]
    pub fn tail_bytes(&self) -> usize {
        self.scale_bytes()
            + if self.zero == ZeroKind::PerGroup {
                64
            } else {
                0
            }
    }

    /// Bytes of the scales of a group.
    #[inline(always)]
    pub fn scale_bytes(&self) -> usize {
        match self.scale {
            ScaleKind::F16 => 64,
            ScaleKind::F32 => 128,
        }
    }

    /// Bytes of a tile.
    pub fn tile_bytes(&self) -> usize {
        self.total_subs() * self.sub_bytes() + self.shape.groups * self.tail_bytes()
    }

    /// The offset of group `g` in a tile, if groups are not short.
    pub fn group_offset(&self, g: usize) -> usize {
        debug_assert!(!self.short);
        g * (self.subs * self.sub_bytes() + self.tail_bytes())
    }

    /// The offset in a tile of the scales of group `g`.
    #[inline(always)]
    pub fn tail_offset(&self, g: usize) -> usize {
        if self.short {
            return self.subs * self.sub_bytes() + g * self.tail_bytes();
        }
        self.group_offset(g) + self.group_subs(g) * self.sub_bytes()
    }
}

/// The dwords of one row in one sub-block, in the order of `q`, from 32 codes packed most
/// significant first; `packed` is `4 * BITS` bytes.
#[inline(always)]
pub fn interleave<const BITS: usize>(packed: &[u8]) -> [u32; BITS] {
    let packed = &packed[..4 * BITS];
    let mut out = [0; BITS];
    match BITS {
        8 => {
            for (o, p) in out.iter_mut().zip(packed.as_chunks().0) {
                *o = u32::from_le_bytes(*p);
            }
        }
        4 => {
            // Columns 0 to 15 go to the low nibbles, 16 to 31 to the high ones. Fixed-size byte
            // loops, so that eight bytes are processed at once.
            let (below, above) = packed.split_at(8);
            let mut bytes = [0u8; 16];
            for i in 0..8 {
                bytes[2 * i] = below[i] >> 4 | above[i] & 0xf0;
                bytes[2 * i + 1] = below[i] & 0x0f | above[i] << 4;
            }
            for (o, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                *o = u32::from_le_bytes(*b);
            }
        }
        2 => {
            // Byte 2p + q holds the codes for bits 2p of the bytes of dword q: 2-bit fields at 16p
            // + 8q + 2f, f being 0 for the last code of a byte. Transposing p and f, a 4 × 4 matrix
            // of fields, gives both dwords: exchange every other field, then pairs of fields.
            let packed = packed.first_chunk().expect("8 bytes");
            let mut x = u64::from_le_bytes(*packed);
            for (by, mask) in [(14, 0x0000_cccc_0000_cccc), (28, 0x0000_0000_f0f0_f0f0)] {
                let differ = (x >> by ^ x) & mask;
                x ^= differ | differ << by;
            }
            let b = x.to_le_bytes();
            for (q, o) in out.iter_mut().enumerate() {
                *o = u32::from_le_bytes([b[6 + q], b[4 + q], b[2 + q], b[q]]);
            }
        }
        _ => {
            // Moves column 4p + j from bit 4p + j to bit 8j + p: a permutation of the binary digits
            // of the bit index, by exchanging two at a time.
            let packed = packed.first_chunk().expect("4 bytes");
            let mut x = u32::from_be_bytes(*packed).reverse_bits();
            let swaps = [
                (14, 0x0000_cccc),
                (7, 0x00aa_00aa),
                (2, 0x0c0c_0c0c),
                (1, 0x2222_2222),
            ];
            for (by, mask) in swaps {
                let differ = (x >> by ^ x) & mask;
                x ^= differ | differ << by;
            }
            out[0] = x;
        }
    }
    out
}

/// The 32 codes of one row in one sub-block, one code per byte: the inverse of [`interleave`].
pub fn deinterleave(bits: Bits, dwords: &[u32]) -> [u8; SUB_COLS] {
    let b = bits.get();
    let mut out = [0; SUB_COLS];
    for (q, &d) in dwords.iter().enumerate().take(b) {
        for p in 0..8 / b {
            for j in 0..4 {
                out[4 * (q + b * p) + j] = (d >> (8 * j + b * p)) as u8 & bits.max_code();
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Packing, Per, pack_row};

    #[test]
    fn interleave_and_back() {
        for bits in Bits::ALL {
            let codes: Vec<u8> = (0..32)
                .map(|i| (i * 73 + 5) as u8 & bits.max_code())
                .collect();
            let mut packed = vec![0; 4 * bits.get()];
            pack_row(&codes, bits, &mut packed);
            let dwords = match bits {
                Bits::One => interleave::<1>(&packed).to_vec(),
                Bits::Two => interleave::<2>(&packed).to_vec(),
                Bits::Four => interleave::<4>(&packed).to_vec(),
                Bits::Eight => interleave::<8>(&packed).to_vec(),
            };
            assert_eq!(deinterleave(bits, &dwords).as_slice(), codes, "{bits:?}");
        }
    }

    #[test]
    fn a_shift_leaves_four_neighbouring_columns() {
        // 4 bits: the high nibbles of dword 1 are columns 16 + 4 .. 16 + 8.
        let codes: Vec<u8> = (0..32).map(|i| (i % 16) as u8).collect();
        let mut packed = [0; 16];
        pack_row(&codes, Bits::Four, &mut packed);
        assert_eq!(interleave::<4>(&packed)[1] >> 4 & 0x0f0f0f0f, 0x07060504);
    }

    fn layout(rows: usize, cols: usize, group: usize, bits: Bits) -> Option<Layout> {
        Layout::new(&Codes {
            shape: Shape::new(rows, cols, group),
            bits,
            packing: Packing::Msb,
            bytes: &[],
            scales: ScaleValues::F32(&[1.0]),
            scale_per: Per::Tensor,
            zero_points: None,
        })
    }

    #[test]
    fn groups_padded_to_sub_blocks() {
        let padded = |cols, group| layout(5, cols, group, Bits::Two);
        let l = padded(70, 33).unwrap();
        assert!(l.has_gaps());
        assert_eq!(
            (l.subs, l.last_subs, l.total_subs(), l.blocks()),
            (2, 1, 5, 5)
        );
        let columns = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)].map(|(g, s)| l.sub_columns(g, s));
        assert_eq!(columns, [0..32, 32..33, 33..65, 65..66, 66..70]);
        let runs: Vec<_> = l.runs().collect();
        assert_eq!(runs, [(0..33, 0), (33..66, 64), (66..70, 128)]);
        assert_eq!(padded(70, 16).unwrap().total_subs(), 5);
        let l = padded(70, 64).unwrap();
        assert!(!l.has_gaps());
        assert_eq!(l.runs().collect::<Vec<_>>(), [(0..70, 0)]);
        assert!(!padded(15, 15).unwrap().has_gaps());
    }

    #[test]
    fn short_groups_share_sub_blocks() {
        let l = layout(5, 70, 7, Bits::Two).unwrap();
        assert!(l.short && !l.has_gaps());
        assert_eq!((l.total_subs(), l.padded_cols()), (3, 96));
        assert_eq!(l.tile_bytes(), 3 * 256 + 10 * 128);
        assert_eq!(l.tail_offset(2), 3 * 256 + 2 * 128);
        assert_eq!(l.runs().collect::<Vec<_>>(), [(0..70, 0)]);
        assert!(!layout(5, 15, 15, Bits::Eight).unwrap().short);
        assert!(!layout(5, 33, 16, Bits::Eight).unwrap().short);
    }

    #[test]
    fn geometry() {
        let l = layout(33, 172, 64, Bits::Four).unwrap();
        assert_eq!(
            (l.tiles(), l.subs, l.last_subs, l.total_subs(), l.blocks()),
            (2, 2, 2, 6, 3)
        );
        assert_eq!(l.tile_bytes(), 6 * 512 + 3 * 128);
        assert_eq!(l.group_offset(2), 2 * (2 * 512 + 128));
        let l = layout(5, 172, 0, Bits::One).unwrap();
        assert_eq!(
            (l.subs, l.last_subs, l.blocks(), l.tile_bytes()),
            (6, 6, 6, 6 * 128 + 128)
        );
        let l = layout(5, 70, 128, Bits::One).unwrap();
        assert_eq!(
            (l.subs, l.last_subs, l.block_subs, l.blocks()),
            (3, 3, 4, 1)
        );
        assert_eq!(layout(5, 33, 33, Bits::One).unwrap().last_subs, 2);
        for (cols, group, fit) in [
            (1 << 31, 0, false),
            (1 << 31, 1 << 30, true),
            ((1 << 31) - 1, 0, true),
        ] {
            assert_eq!(
                layout(5, cols, group, Bits::One).unwrap().signs_fit(),
                fit,
                "{cols}"
            );
        }
        assert_eq!(layout(0, 70, 32, Bits::One), None);
    }
}
