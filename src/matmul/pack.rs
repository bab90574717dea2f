//! Between the form of the ABI and tiles, both ways, a tile at a time so that threads can share the work.

use crate::cpu::layout::{
    Layout, SUB_COLS, ScaleKind, TILE_ROWS, ZeroKind, deinterleave, interleave,
};
use crate::quant::{Bits, Codes, Packing, ScaleValues, pack_row};
use half::f16;
use std::ops::Range;

/// Writes tile `t` of `codes`; `tile` is `(tile_bytes)` and zero.
///
/// The tile is written from its first byte to its last, and its rows are read side by side: 32 streams, which the cache holds a line
/// each of. Row by row every line of the tile would be fetched 32 times, from the second-level cache where rows are long.
pub fn pack_tile(l: &Layout, codes: &Codes<'_>, t: usize, tile: &mut [u8]) {
    let first = t * TILE_ROWS;
    let rows = TILE_ROWS.min(l.shape.rows - first);
    let bytes: [&[u8]; TILE_ROWS] = std::array::from_fn(|r| {
        if r < rows {
            codes.row_bytes(first + r)
        } else {
            &[]
        }
    });
    for g in 0..l.shape.groups {
        let (subs, tail) = tile[l.group_offset(g)..].split_at_mut(l.group_subs(g) * l.sub_bytes());
        for (s, sub) in subs.chunks_exact_mut(l.sub_bytes()).enumerate() {
            let columns = l.sub_columns(g, s);
            for (r, bytes) in bytes[..rows].iter().enumerate() {
                pack_sub(l, codes.packing, bytes, columns.clone(), r, sub);
            }
        }
        pack_scales(l, codes, first..first + rows, g, tail);
    }
}

/// Where the dwords of row `r` of a tile lie in a vector pair.
fn lane_offset(r: usize) -> usize {
    r / 16 * 64 + r % 16 * 4
}

/// At most 32 `columns` of row `r`, whose codes are `bytes`.
fn pack_sub(
    l: &Layout,
    packing: Packing,
    bytes: &[u8],
    columns: Range<usize>,
    r: usize,
    sub: &mut [u8],
) {
    let bits = l.bits.get();
    let per_byte = 8 / bits;
    let (from, cols) = (columns.start, columns.len());
    let mut padded = [0u8; 4 * 8];
    // Codes of a byte that stand before the first column too, where groups do not begin with a byte.
    let mut one_a_byte = [0u8; SUB_COLS + 7];
    let packed: &[u8] = match packing {
        Packing::Msb if cols == SUB_COLS && from % per_byte == 0 => {
            &bytes[from / per_byte..][..4 * bits]
        }
        Packing::Msb => {
            let before = from % per_byte;
            let codes = &mut one_a_byte[..before + cols];
            crate::quant::unpack_row(&bytes[from / per_byte..], l.bits, codes);
            repack(&codes[before..], l.bits, &mut padded)
        }
        Packing::Bytes => repack(&bytes[columns], l.bits, &mut padded),
    };
    for (q, dword) in interleave(l.bits, packed).iter().take(bits).enumerate() {
        sub[q * 128 + lane_offset(r)..][..4].copy_from_slice(&dword.to_le_bytes());
    }
}

/// Packs at most 32 codes and zeros behind them into 4 * bits bytes.
fn repack<'a>(codes: &[u8], bits: Bits, out: &'a mut [u8; 32]) -> &'a [u8] {
    let out = &mut out[..4 * bits.get()];
    pack_row(codes, bits, out);
    out
}

/// The scales and zero points of group `g`, behind its codes.
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

/// The codes of row `r` of a tile, one a byte; `out` is `(cols)`.
pub fn tile_row_codes(l: &Layout, tile: &[u8], r: usize, out: &mut [u8]) {
    for (g, s) in (0..l.shape.groups).flat_map(|g| (0..l.group_subs(g)).map(move |s| (g, s))) {
        let out = &mut out[l.sub_columns(g, s)];
        let sub = &tile[l.group_offset(g) + s * l.sub_bytes()..];
        let mut dwords = [0u32; 8];
        for (q, d) in dwords.iter_mut().enumerate().take(l.bits.get()) {
            let at = q * 128 + lane_offset(r);
            *d = u32::from_le_bytes(sub[at..at + 4].try_into().expect("four bytes"));
        }
        out.copy_from_slice(&deinterleave(l.bits, &dwords)[..out.len()]);
    }
}

/// The scale of row `r` of a tile in group `g`, widened.
pub fn tile_scale(l: &Layout, tile: &[u8], r: usize, g: usize) -> f32 {
    let tail = &tile[l.group_offset(g) + l.group_subs(g) * l.sub_bytes()..];
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
            let at = l.group_offset(g) + l.group_subs(g) * l.sub_bytes() + l.scale_bytes() + 2 * r;
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
        let l = Layout::padded(&codes).unwrap();
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
