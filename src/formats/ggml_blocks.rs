//! The tensor types of GGML: weights per block, layout and meaning of the bytes.
//!
//! A row of a tensor is a sequence of blocks. Fields are byte arrays, so that a block can be viewed
//! at any address; `d` is always a float16 scale. Types whose codes are equal to ours up to their
//! arrangement (`ExactBlock`) are converted code by code; the others are dequantised to float32 in
//! the order of operations of GGML's reference, with bit-identical results.

use std::borrow::Cow;

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::matrix::{CodesView, ScalesView};
use crate::error::Result;
use crate::memory;
use crate::quant::{Bits, Packing, Shape, pack_row};

/// A tensor type: its number in files, its name, and its block format.
pub(super) struct GgmlType {
    pub id: u32,
    pub name: &'static str,
    /// Weights per block.
    pub weights: usize,
    /// Bytes per block.
    pub bytes: usize,
    pub content: Content,
}

/// How this library reads the blocks of a type.
#[derive(Clone, Copy)]
pub(super) enum Content {
    F32,
    F16,
    BF16,
    /// Codes and float16 scales: `(tensor bytes, rows, cols)`.
    Codes(fn(&[u8], usize, usize) -> Result<CodesView<'static>>),
    /// Blocks to be dequantised to float32: `(tensor bytes, out)`.
    Floats(fn(&[u8], &mut [f32])),
    /// Only the size is known.
    Other,
}

impl GgmlType {
    /// The type with this number.
    pub fn of(id: u32) -> Option<&'static GgmlType> {
        TYPES.iter().find(|t| t.id == id)
    }

    /// The names of the types whose weights can be read.
    pub fn supported() -> String {
        let read = TYPES
            .iter()
            .filter(|t| !matches!(t.content, Content::Other));
        read.map(|t| t.name).collect::<Vec<_>>().join(", ")
    }

    const fn plain(id: u32, name: &'static str, bytes: usize, content: Content) -> GgmlType {
        GgmlType {
            id,
            name,
            weights: 1,
            bytes,
            content,
        }
    }

    const fn codes<B: ExactBlock>(id: u32, name: &'static str) -> GgmlType {
        GgmlType {
            id,
            name,
            weights: B::WEIGHTS,
            bytes: size_of::<B>(),
            content: Content::Codes(take_over::<B>),
        }
    }

    const fn floats<B: FloatBlock>(id: u32, name: &'static str) -> GgmlType {
        GgmlType {
            id,
            name,
            weights: B::WEIGHTS,
            bytes: size_of::<B>(),
            content: Content::Floats(dequantize::<B>),
        }
    }

    const fn other(id: u32, name: &'static str, weights: usize, bytes: usize) -> GgmlType {
        GgmlType {
            id,
            name,
            weights,
            bytes,
            content: Content::Other,
        }
    }
}

static TYPES: [GgmlType; 35] = [
    GgmlType::plain(0, "F32", 4, Content::F32),
    GgmlType::plain(1, "F16", 2, Content::F16),
    GgmlType::codes::<Q4_0>(2, "Q4_0"),
    GgmlType::floats::<Q4_1>(3, "Q4_1"),
    GgmlType::floats::<Q5_0>(6, "Q5_0"),
    GgmlType::floats::<Q5_1>(7, "Q5_1"),
    GgmlType::codes::<Q8_0>(8, "Q8_0"),
    GgmlType::other(9, "Q8_1", 32, 40),
    GgmlType::floats::<Q2K>(10, "Q2_K"),
    GgmlType::floats::<Q3K>(11, "Q3_K"),
    GgmlType::floats::<Q4K>(12, "Q4_K"),
    GgmlType::floats::<Q5K>(13, "Q5_K"),
    GgmlType::floats::<Q6K>(14, "Q6_K"),
    GgmlType::other(15, "Q8_K", 256, 292),
    GgmlType::other(16, "IQ2_XXS", 256, 66),
    GgmlType::other(17, "IQ2_XS", 256, 74),
    GgmlType::other(18, "IQ3_XXS", 256, 98),
    GgmlType::other(19, "IQ1_S", 256, 50),
    GgmlType::floats::<Iq4Nl>(20, "IQ4_NL"),
    GgmlType::other(21, "IQ3_S", 256, 110),
    GgmlType::other(22, "IQ2_S", 256, 82),
    GgmlType::floats::<Iq4Xs>(23, "IQ4_XS"),
    GgmlType::plain(24, "I8", 1, Content::Other),
    GgmlType::plain(25, "I16", 2, Content::Other),
    GgmlType::plain(26, "I32", 4, Content::Other),
    GgmlType::plain(27, "I64", 8, Content::Other),
    GgmlType::plain(28, "F64", 8, Content::Other),
    GgmlType::other(29, "IQ1_M", 256, 56),
    GgmlType::plain(30, "BF16", 2, Content::BF16),
    GgmlType::floats::<Tq1_0>(34, "TQ1_0"),
    GgmlType::codes::<Tq2_0>(35, "TQ2_0"),
    GgmlType::other(39, "MXFP4", 32, 17),
    GgmlType::other(40, "NVFP4", 64, 36),
    GgmlType::codes::<Q1_0>(41, "Q1_0"),
    GgmlType::codes::<Q2_0>(42, "Q2_0"),
];

/// A block whose weights are `d * level`, with levels of one of our widths.
trait ExactBlock: Pod {
    const WEIGHTS: usize;
    const BITS: Bits;
    /// The zero point, if it is not the default of the width.
    const ZERO_POINT: Option<i32> = None;

    fn d(&self) -> [u8; 2];

    /// Writes the codes in column order, packed most significant first; `packed` is
    /// `(WEIGHTS * BITS / 8)`.
    fn pack(&self, packed: &mut [u8]);
}

/// A block that is dequantised to float32.
trait FloatBlock: Pod {
    const WEIGHTS: usize;

    /// Writes the weights, in column order; `out` is `(WEIGHTS)`.
    fn weights(&self, out: &mut [f32]);
}

/// Weights of the largest block.
const QK_K: usize = 256;

fn half(bytes: [u8; 2]) -> f32 {
    f16::from_le_bytes(bytes).to_f32()
}

fn take_over<B: ExactBlock>(bytes: &[u8], rows: usize, cols: usize) -> Result<CodesView<'static>> {
    let blocks: &[B] = bytemuck::cast_slice(bytes);
    let packed_bytes = B::WEIGHTS * B::BITS.get() / 8;
    let mut packed = memory::filled(blocks.len() * packed_bytes, 0, "the codes of a tensor")?;
    let mut scales = memory::with_capacity(blocks.len(), "the scales of a tensor")?;
    // A block fills whole bytes at every width, so rows need no padding.
    for (block, packed) in blocks.iter().zip(packed.chunks_exact_mut(packed_bytes)) {
        block.pack(packed);
        scales.push(f16::from_le_bytes(block.d()));
    }
    CodesView::new(
        Shape::new(rows, cols, B::WEIGHTS),
        B::BITS,
        Packing::Msb,
        Cow::Owned(packed),
        ScalesView::F16(Cow::Owned(scales)),
        B::ZERO_POINT.map(|z| Cow::Owned(vec![z])),
    )
}

fn dequantize<B: FloatBlock>(bytes: &[u8], out: &mut [f32]) {
    let blocks: &[B] = bytemuck::cast_slice(bytes);
    for (block, out) in blocks.iter().zip(out.chunks_exact_mut(B::WEIGHTS)) {
        block.weights(out);
    }
}

macro_rules! blocks {
    ($($(#[$doc:meta])* $name:ident, $bytes:literal bytes { $($field:ident: $type:ty),* })*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Clone, Copy, Pod, Zeroable)]
            struct $name { $($field: $type),* }
            const _: () = assert!(size_of::<$name>() == $bytes && align_of::<$name>() == 1);
        )*
    };
}

blocks! {
    /// 32 signed weights of 8 bits.
    Q8_0, 34 bytes { d: [u8; 2], qs: [u8; 32] }
    /// 32 weights of 4 bits: the first half in the low nibbles, the second in the high ones.
    Q4_0, 18 bytes { d: [u8; 2], qs: [u8; 16] }
    /// As `Q4_0`, with a minimum `m` instead of the fixed zero point.
    Q4_1, 20 bytes { d: [u8; 2], m: [u8; 2], qs: [u8; 16] }
    /// 32 weights of 5 bits: as `Q4_0`; the fifth bit of weight `i` is bit `i` of `qh`.
    Q5_0, 22 bytes { d: [u8; 2], qh: [u8; 4], qs: [u8; 16] }
    /// As `Q5_0`, with a minimum.
    Q5_1, 24 bytes { d: [u8; 2], m: [u8; 2], qh: [u8; 4], qs: [u8; 16] }
    /// 128 weights of 1 bit; weight `j` is bit `j % 8` of byte `j / 8`.
    Q1_0, 18 bytes { d: [u8; 2], qs: [u8; 16] }
    /// 64 weights of 2 bits, four per byte from the least significant on; the weight is
    /// `d * (q - 1)`.
    Q2_0, 18 bytes { d: [u8; 2], qs: [u8; 16] }
    /// 32 weights that are indices into a table of 16 unevenly spaced levels; nibbles as in `Q4_0`.
    Iq4Nl, 18 bytes { d: [u8; 2], qs: [u8; 16] }
    /// 256 such indices; the 6-bit scales of 8 sub-blocks, minus 32: the low four bits in nibbles of
    /// `scales_l`, the high two in `scales_h`, each from the least significant on.
    Iq4Xs, 136 bytes { d: [u8; 2], scales_h: [u8; 2], scales_l: [u8; 4], qs: [u8; 128] }
    /// 256 weights of -1, 0, 1 in base 3, five per byte (four in `qh`). The first is the most
    /// significant ternary digit of the byte taken as a fraction of 256.
    Tq1_0, 54 bytes { qs: [u8; 48], qh: [u8; 4], d: [u8; 2] }
    /// 256 weights of 2 bits in two runs of 128; the first 32 of a run are in bits 0 and 1 of its
    /// 32 bytes.
    Tq2_0, 66 bytes { qs: [u8; 64], d: [u8; 2] }
    /// 256 weights of 2 bits, arranged as in `Tq2_0`; 16 sub-blocks with 4-bit scales (low) and
    /// minima (high).
    Q2K, 84 bytes { scales: [u8; 16], qs: [u8; 64], d: [u8; 2], dmin: [u8; 2] }
    /// 256 weights of 3 bits, minus 4: the low two as in `Q2K`, the third of weight `i` in bit
    /// `i / 32` of `hmask[i % 32]`; 16 sub-blocks with 6-bit scales.
    Q3K, 110 bytes { hmask: [u8; 32], qs: [u8; 64], scales: [u8; 12], d: [u8; 2] }
    /// 256 weights of 4 bits; 8 sub-blocks with 6-bit scales and minima.
    Q4K, 144 bytes { d: [u8; 2], dmin: [u8; 2], scales: [u8; 12], qs: [u8; 128] }
    /// As `Q4K` with a fifth bit: for weight `i` bit `i / 32` of `qh[i % 32]`.
    Q5K, 176 bytes { d: [u8; 2], dmin: [u8; 2], scales: [u8; 12], qh: [u8; 32], qs: [u8; 128] }
    /// 256 weights of 6 bits, low four in `ql`, high two in `qh`; 16 sub-blocks with signed 8-bit
    /// scales.
    Q6K, 210 bytes { ql: [u8; 128], qh: [u8; 64], scales: [u8; 16], d: [u8; 2] }
}

/// Unpacks values of `bits` bits: each run of `run` bytes holds `run` values in its lowest bits,
/// the next `run` values in the bits above, and so on.
// Inlined so that `run` and `bits` are constants and the loops are vectorised: all types then take
// 0.1 to 0.7 ns per weight on one core (Q5_1: 1.9), compared with several when an index was
// computed for each weight.
#[inline(always)]
fn unpacked<const N: usize>(bytes: &[u8], run: usize, bits: usize) -> [u8; N] {
    let mut values = [0; N];
    let mask = (1 << bits) - 1;
    let runs = values.chunks_exact_mut(run * 8 / bits);
    for (bytes, values) in bytes.chunks_exact(run).zip(runs) {
        for (k, values) in values.chunks_exact_mut(run).enumerate() {
            for (v, b) in values.iter_mut().zip(bytes) {
                *v = b >> (k * bits) & mask;
            }
        }
    }
    values
}

impl ExactBlock for Q8_0 {
    const WEIGHTS: usize = 32;
    const BITS: Bits = Bits::Eight;

    fn d(&self) -> [u8; 2] {
        self.d
    }

    fn pack(&self, packed: &mut [u8]) {
        for (o, &q) in packed.iter_mut().zip(&self.qs) {
            *o = q ^ 0x80; // two's complement q, plus 128
        }
    }
}

impl ExactBlock for Q4_0 {
    const WEIGHTS: usize = 32;
    const BITS: Bits = Bits::Four;

    fn d(&self) -> [u8; 2] {
        self.d
    }

    fn pack(&self, packed: &mut [u8]) {
        pack_row(&unpacked::<32>(&self.qs, 16, 4), Self::BITS, packed);
    }
}

impl ExactBlock for Q1_0 {
    const WEIGHTS: usize = 128;
    const BITS: Bits = Bits::One;

    fn d(&self) -> [u8; 2] {
        self.d
    }

    /// Packing one weight at a time took a second per billion weights, most of the time of opening
    /// a model.
    fn pack(&self, packed: &mut [u8]) {
        for (packed, bits) in packed.iter_mut().zip(self.qs) {
            *packed = bits.reverse_bits();
        }
    }
}

impl ExactBlock for Q2_0 {
    const WEIGHTS: usize = 64;
    const BITS: Bits = Bits::Two;
    const ZERO_POINT: Option<i32> = Some(1);

    fn d(&self) -> [u8; 2] {
        self.d
    }

    fn pack(&self, packed: &mut [u8]) {
        pack_row(&unpacked::<64>(&self.qs, 1, 2), Self::BITS, packed);
    }
}

impl ExactBlock for Tq2_0 {
    const WEIGHTS: usize = QK_K;
    const BITS: Bits = Bits::Two;
    const ZERO_POINT: Option<i32> = Some(1);

    fn d(&self) -> [u8; 2] {
        self.d
    }

    fn pack(&self, packed: &mut [u8]) {
        pack_row(&unpacked::<QK_K>(&self.qs, 32, 2), Self::BITS, packed);
    }
}

impl FloatBlock for Q4_1 {
    const WEIGHTS: usize = 32;

    fn weights(&self, out: &mut [f32]) {
        let (d, m) = (half(self.d), half(self.m));
        for (o, q) in out.iter_mut().zip(unpacked::<32>(&self.qs, 16, 4)) {
            *o = d * f32::from(q) + m;
        }
    }
}

/// The five-bit values of `Q5_0` and `Q5_1`.
fn five_bits(qs: &[u8; 16], qh: &[u8; 4]) -> [u8; 32] {
    let mut values = unpacked::<32>(qs, 16, 4);
    for (v, high) in values.iter_mut().zip(unpacked::<32>(qh, 1, 1)) {
        *v |= high << 4;
    }
    values
}

impl FloatBlock for Q5_0 {
    const WEIGHTS: usize = 32;

    fn weights(&self, out: &mut [f32]) {
        let d = half(self.d);
        for (o, q) in out.iter_mut().zip(five_bits(&self.qs, &self.qh)) {
            *o = d * (f32::from(q) - 16.0);
        }
    }
}

impl FloatBlock for Q5_1 {
    const WEIGHTS: usize = 32;

    fn weights(&self, out: &mut [f32]) {
        let (d, m) = (half(self.d), half(self.m));
        for (o, q) in out.iter_mut().zip(five_bits(&self.qs, &self.qh)) {
            *o = d * f32::from(q) + m;
        }
    }
}

/// The levels of `Iq4Nl` and `Iq4Xs`.
const LEVELS: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

impl FloatBlock for Iq4Nl {
    const WEIGHTS: usize = 32;

    fn weights(&self, out: &mut [f32]) {
        let d = half(self.d);
        for (o, q) in out.iter_mut().zip(unpacked::<32>(&self.qs, 16, 4)) {
            *o = d * f32::from(LEVELS[usize::from(q)]);
        }
    }
}

impl FloatBlock for Iq4Xs {
    const WEIGHTS: usize = QK_K;

    fn weights(&self, out: &mut [f32]) {
        let d = half(self.d);
        let high = u16::from_le_bytes(self.scales_h);
        let qs = unpacked::<QK_K>(&self.qs, 16, 4);
        for (j, (qs, out)) in qs
            .chunks_exact(32)
            .zip(out.chunks_exact_mut(32))
            .enumerate()
        {
            let low = self.scales_l[j / 2] >> (j % 2 * 4) & 15;
            let high = (high >> (2 * j) & 3) as u8;
            let scale = d * (f32::from(low | high << 4) - 32.0);
            for (o, q) in out.iter_mut().zip(qs) {
                *o = scale * f32::from(LEVELS[usize::from(*q)]);
            }
        }
    }
}

impl FloatBlock for Tq1_0 {
    const WEIGHTS: usize = QK_K;

    fn weights(&self, out: &mut [f32]) {
        const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
        let d = half(self.d);
        // Each run of n bytes holds its n first digits, then its n second digits, and so on.
        let runs = [(&self.qs[..32], 5), (&self.qs[32..], 5), (&self.qh[..], 4)];
        let mut out = out.iter_mut();
        for (bytes, digits) in runs {
            for power in &POWERS[..digits] {
                for (&byte, o) in bytes.iter().zip(&mut out) {
                    // The multiplication modulo 256 drops the preceding digits; the digit is what
                    // multiplying the rest by 3 carries into the ninth bit and above.
                    let digit = (u16::from(byte.wrapping_mul(*power)) * 3) >> 8;
                    *o = d * (f32::from(digit) - 1.0);
                }
            }
        }
    }
}

/// Sub-blocks of `N` weights, zipped with their values, in order.
fn sub_blocks<'a, const N: usize>(
    values: &'a [u8; QK_K],
    out: &'a mut [f32],
) -> impl Iterator<Item = (usize, impl Iterator<Item = (&'a mut f32, f32)>)> {
    let pairs = values.chunks_exact(N).zip(out.chunks_exact_mut(N));
    pairs.enumerate().map(|(j, (values, out))| {
        let values = values.iter().map(|&q| f32::from(q));
        (j, out.iter_mut().zip(values))
    })
}

impl FloatBlock for Q2K {
    const WEIGHTS: usize = QK_K;

    fn weights(&self, out: &mut [f32]) {
        let (d, dmin) = (half(self.d), half(self.dmin));
        for (j, weights) in sub_blocks::<16>(&unpacked(&self.qs, 32, 2), out) {
            let scale = d * f32::from(self.scales[j] & 15);
            let min = dmin * f32::from(self.scales[j] >> 4);
            weights.for_each(|(o, q)| *o = scale * q - min);
        }
    }
}

impl FloatBlock for Q3K {
    const WEIGHTS: usize = QK_K;

    fn weights(&self, out: &mut [f32]) {
        let d = half(self.d);
        let mut values = unpacked(&self.qs, 32, 2);
        for (v, high) in values.iter_mut().zip(unpacked::<QK_K>(&self.hmask, 32, 1)) {
            *v |= high << 2;
        }
        for (j, weights) in sub_blocks::<16>(&values, out) {
            // Six-bit scales: the low nibbles of 0..8 and then of 8..16 in bytes 0..8; the high two
            // bits of scale j in bits 2 * (j / 4) of byte 8 + j % 4.
            let low = self.scales[j % 8] >> (j / 8 * 4) & 15;
            let high = self.scales[8 + j % 4] >> (j / 4 * 2) & 3;
            let scale = d * (f32::from(low | high << 4) - 32.0);
            weights.for_each(|(o, q)| *o = scale * (q - 4.0));
        }
    }
}

/// The 6-bit scale and minimum of sub-block `j` of `Q4K` and `Q5K`. For 0..4 they are the low bits
/// of bytes 0..4 and 4..8; for 4..8 their low nibbles are in bytes 8..12 and their high two bits
/// above those of 0..4.
fn scale_and_min(scales: &[u8; 12], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (scales[j] & 63, scales[j + 4] & 63)
    } else {
        (
            scales[j + 4] & 15 | scales[j - 4] >> 6 << 4,
            scales[j + 4] >> 4 | scales[j] >> 6 << 4,
        )
    };
    (f32::from(scale), f32::from(min))
}

impl FloatBlock for Q4K {
    const WEIGHTS: usize = QK_K;

    fn weights(&self, out: &mut [f32]) {
        let (d, dmin) = (half(self.d), half(self.dmin));
        for (j, weights) in sub_blocks::<32>(&unpacked(&self.qs, 32, 4), out) {
            let (scale, min) = scale_and_min(&self.scales, j);
            let (scale, min) = (d * scale, dmin * min);
            weights.for_each(|(o, q)| *o = scale * q - min);
        }
    }
}

impl FloatBlock for Q5K {
    const WEIGHTS: usize = QK_K;

    fn weights(&self, out: &mut [f32]) {
        let (d, dmin) = (half(self.d), half(self.dmin));
        let mut values = unpacked(&self.qs, 32, 4);
        for (v, high) in values.iter_mut().zip(unpacked::<QK_K>(&self.qh, 32, 1)) {
            *v |= high << 4;
        }
        for (j, weights) in sub_blocks::<32>(&values, out) {
            let (scale, min) = scale_and_min(&self.scales, j);
            let (scale, min) = (d * scale, dmin * min);
            weights.for_each(|(o, q)| *o = scale * q - min);
        }
    }
}

impl FloatBlock for Q6K {
    const WEIGHTS: usize = QK_K;

    fn weights(&self, out: &mut [f32]) {
        let d = half(self.d);
        let mut values = unpacked(&self.ql, 64, 4);
        for (v, high) in values.iter_mut().zip(unpacked::<QK_K>(&self.qh, 32, 2)) {
            *v |= high << 4;
        }
        for (j, weights) in sub_blocks::<16>(&values, out) {
            let scale = d * f32::from(self.scales[j] as i8);
            weights.for_each(|(o, q)| *o = scale * (q - 32.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_unique() {
        for (i, t) in TYPES.iter().enumerate() {
            assert!(TYPES[..i].iter().all(|u| u.id < t.id && u.name != t.name));
        }
        assert!(GgmlType::of(4).is_none());
        assert_eq!(GgmlType::of(14).unwrap().bytes, 210);
    }

    /// The types that NumPy dequantisers do not cover, with values written out by hand.
    #[test]
    fn one_and_two_bits() {
        let one = |bytes: &[u8], cols| match GgmlType::of(41).unwrap().content {
            Content::Codes(take) => take(bytes, 1, cols).unwrap(),
            _ => unreachable!("Q1_0 is codes"),
        };
        let mut block = vec![0x00, 0x38]; // 0.5
        block.extend([0b0000_0101].into_iter().chain([0; 14]).chain([0x80]));
        let mut row = [0.0; 128];
        one(&block, 128).as_codes().dequantize_row(0, &mut row);
        for (j, w) in row.into_iter().enumerate() {
            assert_eq!(w, if [0, 2, 127].contains(&j) { 0.5 } else { -0.5 }, "{j}");
        }

        let two = match GgmlType::of(42).unwrap().content {
            Content::Codes(take) => take,
            _ => unreachable!("Q2_0 is codes"),
        };
        let mut block = vec![0x00, 0xc0]; // -2
        block.extend([0b11_10_01_00].into_iter().chain([0x55; 15]));
        let mut row = [0.0; 64];
        two(&block, 1, 64)
            .unwrap()
            .as_codes()
            .dequantize_row(0, &mut row);
        assert_eq!(row[..4], [2.0, 0.0, -2.0, -4.0]);
        assert!(row[4..].iter().all(|&w| w == 0.0));
    }
}
