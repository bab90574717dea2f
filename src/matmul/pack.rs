//! Conversion between the form of the ABI and tiles, one tile at a time so that threads can share
//! the work.

use crate::cpu::layout::{
    Layout, SUB_COLS, ScaleKind, TILE_ROWS, ZeroKind, deinterleave, interleave,
};
use crate::cpu::prefetch_line;
use crate::quant::{Bits, Codes, Packing, ScaleValues, pack_row, unpack_row};
use half::f16;
use std::ops::Range;

/// Writes tile `t` of `codes`; `tile` is `(tile_bytes)`, initially zero.
///
/// The tile is written from its first byte to its last, and its rows are read side by side: 32
/// streams, for each of which L1 holds a line. Row by row, every line of the tile would be fetched
/// 32 times, from L2 where rows are long.
pub fn pack_tile(l: &Layout, codes: &Codes<'_>, t: usize, tile: &mut [u8]) {
    match l.bits {
        Bits::One => pack_tile_of::<1>(l, codes, t, tile),
        Bits::Two => pack_tile_of::<2>(l, codes, t, tile),
        Bits::Four => pack_tile_of::<4>(l, codes, t, tile),
        Bits::Eight => pack_tile_of::<8>(l, codes, t, tile),
    }
}

fn pack_tile_of<const BITS: usize>(l: &Layout, codes: &Codes<'_>, t: usize, tile: &mut [u8]) {
    let rows = t * TILE_ROWS..l.shape.rows.min((t + 1) * TILE_ROWS);
    let mut bytes: [&[u8]; TILE_ROWS] = [&[]; TILE_ROWS];
    for (bytes, row) in bytes.iter_mut().zip(rows.clone()) {
        *bytes = codes.row_bytes(row);
    }
    let bytes = &bytes[..rows.len()];
    if l.short {
        let (subs, tails) = tile.split_at_mut(l.tail_offset(0));
        for (s, sub) in subs.chunks_exact_mut(l.sub_bytes()).enumerate() {
            let columns = s * SUB_COLS..l.shape.cols.min((s + 1) * SUB_COLS);
            pack_sub::<BITS>(l.bits, codes.packing, bytes, columns, sub);
        }
        for (g, tail) in tails.chunks_exact_mut(l.tail_bytes()).enumerate() {
            pack_scales(l, codes, rows.clone(), g, tail);
        }
        return;
    }
    for g in 0..l.shape.groups {
        let (subs, tail) = tile[l.group_offset(g)..].split_at_mut(l.group_subs(g) * l.sub_bytes());
        for (s, sub) in subs.chunks_exact_mut(l.sub_bytes()).enumerate() {
            pack_sub::<BITS>(l.bits, codes.packing, bytes, l.sub_columns(g, s), sub);
        }
        pack_scales(l, codes, rows.clone(), g, tail);
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// Writes a sub-block, or its `columns` only where there are fewer; `rows` are the bytes of whole
/// rows.
fn pack_sub<const BITS: usize>(
    bits: Bits,
    packing: Packing,
    rows: &[&[u8]],
    columns: Range<usize>,
    sub: &mut [u8],
) {
    let dwords = sub.as_chunks_mut().0;
    // Writes the dwords of row `r`, which has a lane in each pair of vectors.
    let mut write = |r: usize, row: [u32; BITS]| {
        for (q, dword) in row.into_iter().enumerate() {
            dwords[q * TILE_ROWS + r] = dword.to_le_bytes();
        }
    };
    let whole = columns.len() == SUB_COLS && columns.start.is_multiple_of(8 / BITS);
    if packing == Packing::Msb && whole {
        let at = columns.start / (8 / BITS);
        for (r, bytes) in rows.iter().enumerate() {
            // Prefetches the line at the same position of the next tile, if rows are contiguous:
            // the hardware prefetchers do not follow 32 streams. Opening 619 MB at 4 bits took
            // 0.376 s without and 0.359 with this (medians of ten alternating runs).
            if at.is_multiple_of(LINE) {
                prefetch_line(bytes.as_ptr().wrapping_add(at + TILE_ROWS * bytes.len()));
            }
            write(r, interleave(&bytes[at..at + 4 * BITS]));
        }
    } else {
        for (r, bytes) in rows.iter().enumerate() {
            write(
                r,
                interleave(&repacked(bits, packing, bytes, columns.clone())),
            );
        }
    }
}

/// At most 32 `columns` of a row whose codes are `bytes`, repacked to begin at a byte boundary and
/// padded with zeros.
fn repacked(bits: Bits, packing: Packing, bytes: &[u8], columns: Range<usize>) -> [u8; 32] {
    let mut codes = [0; SUB_COLS];
    let codes = &mut codes[..columns.len()];
    unpack_columns(bits, packing, bytes, columns, codes);
    let mut out = [0; 32];
    pack_row(codes, bits, &mut out);
    out
}

/// At most 32 `columns` of a row whose codes are `bytes`, one code per byte; `out` is as long.
fn unpack_columns(
    bits: Bits,
    packing: Packing,
    bytes: &[u8],
    columns: Range<usize>,
    out: &mut [u8],
) {
    match packing {
        Packing::Bytes => out.copy_from_slice(&bytes[columns]),
        Packing::Msb => {
            let per_byte = 8 / bits.get();
            let before = columns.start % per_byte;
            let mut codes = [0; SUB_COLS + 7];
            let codes = &mut codes[..before + columns.len()];
            unpack_row(&bytes[columns.start / per_byte..], bits, codes);
            out.copy_from_slice(&codes[before..]);
        }
    }
}

/// The scales and zero points of group `g`.
fn pack_scales(l: &Layout, codes: &Codes<'_>, rows: Range<usize>, g: usize, tail: &mut [u8]) {
    for (r, row) in rows.enumerate() {
        let scale = codes.scale_per.index(row, g, l.shape.groups);
        match codes.scales {
            ScaleValues::F16(v) => tail[2 * r..][..2].copy_from_slice(&v[scale].to_le_bytes()),
            ScaleValues::F32(v) => tail[4 * r..][..4].copy_from_slice(&v[scale].to_le_bytes()),
        }
        if l.zero == ZeroKind::PerGroup {
            let zero = codes.zero_point(row, g) as i16;
            tail[l.scale_bytes() + 2 * r..][..2].copy_from_slice(&zero.to_le_bytes());
        }
    }
}

/// The codes of row `r` of a tile, one per byte; `out` is `(cols)`.
pub fn tile_row_codes(l: &Layout, tile: &[u8], r: usize, out: &mut [u8]) {
    if l.short {
        let subs = tile.chunks_exact(l.sub_bytes());
        for (out, sub) in out.chunks_mut(SUB_COLS).zip(subs) {
            out.copy_from_slice(&sub_codes(l, sub, r)[..out.len()]);
        }
        return;
    }
    for (g, s) in (0..l.shape.groups).flat_map(|g| (0..l.group_subs(g)).map(move |s| (g, s))) {
        let out = &mut out[l.sub_columns(g, s)];
        let sub = &tile[l.group_offset(g) + s * l.sub_bytes()..];
        out.copy_from_slice(&sub_codes(l, sub, r)[..out.len()]);
    }
}

/// The codes of row `r` in the sub-block at the start of `sub`.
fn sub_codes(l: &Layout, sub: &[u8], r: usize) -> [u8; SUB_COLS] {
    let mut dwords = [0u32; 8];
    for (q, d) in dwords.iter_mut().enumerate().take(l.bits.get()) {
        let at = 4 * (q * TILE_ROWS + r);
        *d = u32::from_le_bytes(sub[at..at + 4].try_into().expect("four bytes"));
    }
    deinterleave(l.bits, &dwords)
}

/// The scale of row `r` of a tile in group `g`, widened.
pub fn tile_scale(l: &Layout, tile: &[u8], r: usize, g: usize) -> f32 {
    let tail = &tile[l.tail_offset(g)..];
    match l.scale {
        ScaleKind::F16 => f16::from_le_bytes([tail[2 * r], tail[2 * r + 1]]).to_f32(),
        ScaleKind::F32 => {
            f32::from_le_bytes(tail[4 * r..4 * r + 4].try_into().expect("four bytes"))
        }
    }
}

/// The zero point of row `r` of a tile in group `g`.
pub fn tile_zero_point(l: &Layout, tile: &[u8], r: usize, g: usize) -> i32 {
    match l.zero {
        ZeroKind::Constant(z) => z,
        ZeroKind::PerGroup => {
            let at = l.tail_offset(g) + l.scale_bytes() + 2 * r;
            i16::from_le_bytes([tile[at], tile[at + 1]]) as i32
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Per, Shape, packed_row_bytes};

    #[test]
    fn what_goes_into_a_tile_comes_out() {
        for bits in Bits::ALL {
            for (rows, cols, group) in [
                (1, 1, 0),
                (33, 172, 64),
                (64, 70, 32),
                (5, 33, 0),
                (3, 40, 128),
                (3, 70, 33),
                (2, 100, 17),
                (33, 45, 1),
                (3, 70, 7),
                (34, 71, 8),
                (2, 100, 15),
            ] {
                for packing in [Packing::Bytes, Packing::Msb] {
                    round_trip(bits, Shape::new(rows, cols, group), packing);
                }
            }
        }
    }

    fn round_trip(bits: Bits, shape: Shape, packing: Packing) {
        let code = |r: usize, c: usize| (r * 31 + c * 7 + r * c) as u8 & bits.max_code();
        let mut bytes = Vec::new();
        for r in 0..shape.rows {
            let row: Vec<u8> = (0..shape.cols).map(|c| code(r, c)).collect();
            match packing {
                Packing::Bytes => bytes.extend(row),
                Packing::Msb => {
                    let at = bytes.len();
                    bytes.resize(at + packed_row_bytes(shape.cols, bits), 0);
                    pack_row(&row, bits, &mut bytes[at..]);
                }
            }
        }
        let values = shape.rows * shape.groups;
        let scales: Vec<f32> = (0..values).map(|i| 0.1 + i as f32).collect();
        let zeros: Vec<i32> = (0..values)
            .map(|i| i as i32 & bits.max_code() as i32)
            .collect();
        let codes = Codes {
            shape,
            bits,
            packing,
            bytes: &bytes,
            scales: ScaleValues::F32(&scales),
            scale_per: Per::Group,
            zero_points: (bits != Bits::One).then_some((&zeros, Per::Group)),
        };
        let l = Layout::new(&codes).unwrap();
        for t in 0..l.tiles() {
            let mut tile = vec![0; l.tile_bytes()];
            pack_tile(&l, &codes, t, &mut tile);
            for r in 0..TILE_ROWS.min(shape.rows - t * TILE_ROWS) {
                let row = t * TILE_ROWS + r;
                let mut got = vec![0; shape.cols];
                tile_row_codes(&l, &tile, r, &mut got);
                let want: Vec<u8> = (0..shape.cols).map(|c| code(row, c)).collect();
                assert_eq!(got, want, "{bits:?} {shape:?} {packing:?} row {row}");
                for g in 0..shape.groups {
                    assert_eq!(tile_scale(&l, &tile, r, g), codes.scale(row, g));
                    assert!(
                        bits == Bits::One
                            || tile_zero_point(&l, &tile, r, g) == codes.zero_point(row, g)
                    );
                }
            }
        }
    }
}
