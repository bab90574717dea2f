//! Slices: the geometry and the packing of `kernels/README.md`, as defined on the host.

use crate::quant::{Bits, Shape};

/// Columns per slice.
pub(super) const SLICE: usize = 32;

/// The smallest supported group: padded to slices, a smaller one would take more than four times
/// its bytes.
const LEAST_GROUP: usize = 8;

/// The largest 32-bit signed count: rows, columns, scales and padded columns must not exceed it.
const MOST: usize = i32::MAX as usize;

/// The most columns of a block of int8 activations.
const WIDEST_BLOCK: usize = 128;

/// The columns of a matrix in the layout of the device; a part of the argument structs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// The columns of the matrix.
    pub cols: u32,
    /// Columns per scale, at least 1; more than `cols` if a group reaches beyond the row.
    pub group: u32,
    /// Scales per row, at least 1.
    pub groups: u32,
    /// Slices per group.
    pub per_group: u32,
    /// Slices per row, a multiple of 4.
    pub slices: u32,
}

/// Whether the kernels support a quantised matrix of this shape, at any width. A matrix without
/// elements is left to the host.
pub fn supports(shape: &Shape) -> bool {
    shape.rows > 0 && shape.cols > 0 && Columns::new(shape).is_some()
}

impl Columns {
    /// The columns of a shape; `None` if the kernels do not support it.
    pub(super) fn new(shape: &Shape) -> Option<Columns> {
        let (cols, groups) = (shape.cols, shape.groups.max(1));
        // A group that reaches beyond the row determines the blocks of int8 activations: one of 64
        // or 128 columns keeps its size, and a longer one stays longer than 128.
        let group = shape.group.min(cols.max(2 * WIDEST_BLOCK));
        if group.min(cols.max(1)) < LEAST_GROUP
            || shape.rows > MOST
            || cols > MOST
            || shape.rows.checked_mul(groups)? > MOST
        {
            return None;
        }
        let per_group = group.div_ceil(SLICE);
        let last = cols - (groups - 1) * group;
        let used = (groups - 1).checked_mul(per_group)? + last.div_ceil(SLICE);
        let slices = used.next_multiple_of(4);
        (slices.checked_mul(SLICE)? <= MOST).then_some(Columns {
            cols: cols as u32,
            group: group as u32,
            groups: groups as u32,
            per_group: per_group as u32,
            slices: slices as u32,
        })
    }

    /// The number of slices that share a scale of int8 activations: those of a group of 64 or 128
    /// columns, else one.
    pub(super) fn block(&self) -> u32 {
        match self.group {
            64 => 2,
            128 => 4,
            _ => 1,
        }
    }

    /// Whether every run of `width` consecutive columns consists of whole slices, with whole scales
    /// of int8 activations.
    pub(super) fn divides_at(&self, width: usize) -> bool {
        let full = self.groups == 1 || (self.group as usize).is_multiple_of(SLICE);
        full && width.is_multiple_of(SLICE * self.block() as usize)
    }

    /// The elements of a vector on the device, where slices are padded to 32.
    pub fn padded(&self) -> usize {
        self.slices as usize * SLICE
    }

    /// Words per packed row.
    pub(super) fn row_words(&self, bits: Bits) -> usize {
        self.slices as usize * bits.get()
    }

    /// The indices and columns of the slices that have any, in order.
    fn slices(&self) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
        let (cols, group, per) = (
            self.cols as usize,
            self.group as usize,
            self.per_group as usize,
        );
        (0..self.slices as usize).filter_map(move |k| {
            let start = k / per * group + k % per * SLICE;
            let end = (start + SLICE).min((k / per + 1) * group).min(cols);
            (start < end).then_some((k, start..end))
        })
    }

    /// Packs the codes of a row, given one per byte; `codes` is `(cols)`, `words` is
    /// `(slices, bits)`.
    pub(super) fn pack_row(&self, bits: Bits, codes: &[u8], words: &mut [u32]) {
        let b = bits.get();
        words.fill(0);
        for (k, columns) in self.slices() {
            let mut slice = [0u8; SLICE];
            slice[..columns.len()].copy_from_slice(&codes[columns]);
            let words = &mut words[k * b..][..b];
            for (w, quads) in words.iter_mut().zip(slice.chunks_exact(SLICE / b)) {
                for (j, quad) in quads.as_chunks::<4>().0.iter().enumerate() {
                    *w |= u32::from_le_bytes(*quad) << (b * j);
                }
            }
        }
    }

    /// The inverse of [`Columns::pack_row`].
    pub(super) fn unpack_row(&self, bits: Bits, words: &[u32], codes: &mut [u8]) {
        let b = bits.get();
        let mask = u32::from_le_bytes([bits.max_code(); 4]);
        for (k, columns) in self.slices() {
            let mut slice = [0u8; SLICE];
            for (w, quads) in words[k * b..][..b]
                .iter()
                .zip(slice.chunks_exact_mut(SLICE / b))
            {
                for (j, quad) in quads.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    *quad = (w >> (b * j) & mask).to_le_bytes();
                }
            }
            let n = columns.len();
            codes[columns].copy_from_slice(&slice[..n]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    fn columns(cols: usize, group: usize) -> Columns {
        Columns::new(&Shape::new(3, cols, group)).unwrap()
    }

    #[test]
    fn geometry() {
        let c = |cols, group, groups, per_group, slices| Columns {
            cols,
            group,
            groups,
            per_group,
            slices,
        };
        assert_eq!(columns(64, 32), c(64, 32, 2, 1, 4));
        assert_eq!(columns(70, 0), c(70, 70, 1, 3, 4));
        assert_eq!(columns(200, 48), c(200, 48, 5, 2, 12));
        assert_eq!(columns(128, 128), c(128, 128, 1, 4, 4));
        assert_eq!(columns(40, 64), c(40, 64, 1, 2, 4));
        assert_eq!(columns(40, usize::MAX), c(40, 256, 1, 8, 4));
    }

    #[test]
    fn shapes_that_are_refused() {
        let takes = |rows, cols, group| supports(&Shape::new(rows, cols, group));
        assert!(takes(1, 8, 8) && takes(1, 8, 0) && takes(5, 1000, 200));
        assert!(!takes(1, 8, 7) && !takes(1, 7, 0) && !takes(1, 7, 32));
        assert!(!takes(0, 64, 32) && !takes(64, 0, 32));
        let many = 1 << 31;
        assert!(!takes(many, 32, 32) && !takes(1, many, 32) && !takes(many - 1, 64, 32));
        assert!(takes(many - 1, 64, 0));
        assert!(
            !takes(1, many - 1, 0),
            "padded to a multiple of 128 it is too long"
        );
        assert!(!takes(1, many - 200, 8), "padded it is four times as long");
        assert!(!takes(1, usize::MAX, 8) && !takes(usize::MAX, usize::MAX, 8));
    }

    /// The place of a column, derived from the text of `kernels/README.md` only.
    fn place(c: &Columns, bits: usize, column: usize) -> (usize, usize) {
        let group = c.group as usize;
        let slice = column / group * c.per_group as usize + column % group / 32;
        let within = column % group % 32;
        let d = within % (32 / bits);
        (
            slice * bits + within / (32 / bits),
            8 * (d % 4) + bits * (d / 4),
        )
    }

    #[test]
    fn a_row_packed_as_documented_and_back() {
        let mut random = Random::new(7);
        for bits in Bits::ALL {
            for (cols, group) in [
                (8, 8),
                (9, 0),
                (31, 0),
                (33, 32),
                (128, 64),
                (200, 48),
                (300, 0),
                (100, 9),
                (100, 128),
                (40, usize::MAX),
            ] {
                let c = columns(cols, group);
                let codes: Vec<u8> = (0..cols)
                    .map(|_| random.next() as u8 & bits.max_code())
                    .collect();
                let mut words = vec![u32::MAX; c.row_words(bits)];
                c.pack_row(bits, &codes, &mut words);
                let mut expected = vec![0u32; words.len()];
                for (column, &code) in codes.iter().enumerate() {
                    let (word, bit) = place(&c, bits.get(), column);
                    expected[word] |= u32::from(code) << bit;
                }
                assert_eq!(words, expected, "{bits:?} {cols} {group}");
                let mut back = vec![0xee; cols];
                c.unpack_row(bits, &words, &mut back);
                assert_eq!(back, codes, "{bits:?} {cols} {group}");
            }
        }
    }

    #[test]
    fn blocks_of_activations() {
        let block = |group| columns(512, group).block();
        assert_eq!([32, 64, 128, 96, 256, 0].map(block), [1, 2, 4, 1, 1, 1]);
        // Blocks follow the requested group, even if the row is shorter.
        assert_eq!([64, 128, 256].map(|g| columns(100, g).block()), [2, 4, 1]);
        assert_eq!(columns(128, 256).block(), 1);
        let divides = |group, width| columns(512, group).divides_at(width);
        assert!(divides(0, 32) && divides(32, 64) && divides(64, 64) && divides(128, 256));
        assert!(!divides(0, 16) && !divides(64, 32) && !divides(128, 64) && !divides(40, 64));
    }
}
