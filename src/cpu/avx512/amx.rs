//! Many vectors with AMX: see [`crate::cpu::tile::Amx`].
//!
//! AMX has eight registers of up to 16 rows of 64 bytes, and an instruction that multiplies two of
//! them and adds to a third: here activations `(vectors, bytes)` by levels
//! `(bytes, 16 weight rows)`, in units of four bytes of a row, as in an 8-bit sub-block. The sums
//! `(vectors, 16)` go through L1, the only path from AMX to other registers.
//!
//! Measured on an Emerald Rapids core, from L1. A multiplication takes 16 cycles, whether its 16
//! vectors have 32 or 64 bytes; with zeroing, loading both factors and storing it takes 24, if no
//! store waits for the sum that it stores. For some 180 cycles after any such instruction the
//! second of the two 512-bit floating-point units is off, so that converting, scaling and
//! accumulating 16 vectors and 16 rows takes 48 cycles instead of 24. All together take 52 cycles
//! with blocks of 32 columns, 1.2 times the `vpdpbusd` rate (64 cycles, plus conversions), and 22
//! for as many products with blocks of 128, 3.0 times. Phases without AMX, in which both units are
//! on, took 7% longer at 32 (prototypes, 59 and 55 cycles); a store right after its multiplication
//! took 11% longer (61).

use super::int8::four_columns;
use super::{scales, zero_points};
use crate::cpu::layout::{Layout, QUAD_COLS, SUB_COLS, TILE_ROWS};
use crate::cpu::tile::{AMX_VECTORS, Amx, AmxActs, Levels, Prefetch};
use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// The kernels.
pub(super) const KERNELS: Amx = Amx {
    levels: [levels::<1>, levels::<2>, levels::<4>, levels::<8>],
    multiply,
};

/// Bytes of a row of an AMX register: four columns of a half of a tile.
const ROW: usize = 64;
/// Bytes from four columns of a tile half to the next four: the other half is between them.
const STRIDE: usize = 2 * ROW;
/// Bytes of a sub-block of levels.
const SUB: usize = SUB_COLS * TILE_ROWS;
/// Rows of a half of a tile.
const HALF: usize = TILE_ROWS / 2;

/// The contract of [`crate::cpu::tile::LevelsFn`].
///
/// # Safety
/// What it says; AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,f16c")]
unsafe fn levels<const BITS: usize>(
    l: &Layout,
    tile: *const u8,
    first: usize,
    count: usize,
    to: Levels,
) {
    let four_times = _mm512_broadcast_i32x4(_mm_setr_epi8(
        0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12,
    ));
    for i in 0..count {
        let (sub, tail) = l.sub_and_tail(first + i);
        // SAFETY: the tile has sub-block `first + i`, and the outputs have room for `count` of
        // them.
        unsafe {
            let (sub, tail) = (tile.add(sub), tile.add(tail));
            let [zero, of_other_half] = zero_points(l, tail);
            let zero = [
                _mm512_shuffle_epi8(zero, four_times),
                _mm512_shuffle_epi8(of_other_half, four_times),
            ];
            let codes = to.codes.add(i * SUB);
            unroll!(K in 0..8 => {
                for half in 0..2 {
                    let four = four_columns::<BITS>(sub, K, half, false);
                    let four = _mm512_sub_epi8(four, zero[half]);
                    _mm512_store_si512(codes.add(K * STRIDE + half * ROW).cast(), four);
                }
            });
            let scale = scales(l, tail);
            for half in 0..2 {
                _mm512_store_ps(to.scales.add(i * TILE_ROWS + HALF * half), scale[half]);
            }
        }
    }
}

/// The contract of [`crate::cpu::tile::AmxFn`].
///
/// # Safety
/// What it says; AVX-512 F, and AMX-INT8 with permission to use it.
#[target_feature(enable = "avx512f,fma")]
unsafe fn multiply(
    l: &Layout,
    first: usize,
    count: usize,
    levels: Levels,
    x: AmxActs,
    ahead: Prefetch,
    out: *mut f32,
) {
    let mut ahead = ahead;
    let mut at = 0;
    while at < x.vectors {
        let vectors = AMX_VECTORS.min(x.vectors - at);
        // Configured for the first sixteen, and again for a smaller last block.
        if at == 0 || vectors < AMX_VECTORS {
            // SAFETY: the caller upholds this contract.
            unsafe { configure(l, vectors) };
        }
        let codes = at * x.vector_codes + first * vectors * SUB_COLS;
        let scales = at * x.vector_blocks + first / l.block_subs * vectors;
        // SAFETY: the caller upholds this contract; these are the offsets of the block's
        // activations from `first` on, and of its rows of sums.
        unsafe {
            let block = Block {
                codes: x.codes.add(codes),
                scales: x.scales.add(scales),
                vectors,
            };
            let out = out.add(at * TILE_ROWS);
            match vectors {
                AMX_VECTORS => walk::<true>(l, count, levels, block, &mut ahead, out),
                _ => walk::<false>(l, count, levels, block, &mut ahead, out),
            }
        }
        at += vectors;
    }
    // SAFETY: as above. It releases the registers, which would otherwise be saved with the thread.
    unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
}

/// The operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Configures the registers: 0 and 1 for the sums of this many vectors, 4 and 5 for activations, 6
/// and 7 for levels.
///
/// # Safety
/// AMX, with permission to use it.
#[inline(always)]
unsafe fn configure(l: &Layout, vectors: usize) {
    let cols = l.amx_subs() * SUB_COLS;
    let (m, sums) = (vectors as u8, ROW as u16);
    let (x, w) = (cols as u16, (cols / QUAD_COLS) as u8);
    let shapes = Configuration {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [sums, sums, 0, 0, x, x, sums, sums, 0, 0, 0, 0, 0, 0, 0, 0],
        rows: [m, m, 0, 0, m, m, w, w, 0, 0, 0, 0, 0, 0, 0, 0],
    };
    // SAFETY: it reads the 64 bytes of `shapes`. The state that it sets belongs to the thread, as
    // the registers do: no compiled code uses it, and `multiply` releases it before it returns.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(readonly, nostack, preserves_flags));
    }
}

/// Activations of up to sixteen vectors from a sub-block on.
#[derive(Clone, Copy)]
struct Block {
    codes: *const i8,
    scales: *const f32,
    vectors: usize,
}

/// The sums of two blocks of activations in transit: `(vectors, 16)` each.
#[repr(C, align(64))]
struct Sums([[i32; AMX_VECTORS * HALF]; 2]);

/// One tile times a block of vectors. `ALL` says whether there are [`AMX_VECTORS`] of them, whose
/// float32 accumulators then stay in registers.
///
/// A software pipeline over one half of the tile after the other, and within each over the blocks
/// of activations: while the sums of a block are converted, those of the next are stored and the
/// multiplications of the one after that are started. A store right after its multiplication would
/// wait for it.
#[inline(always)]
unsafe fn walk<const ALL: bool>(
    l: &Layout,
    count: usize,
    levels: Levels,
    x: Block,
    ahead: &mut Prefetch,
    out: *mut f32,
) {
    let vectors = if ALL { AMX_VECTORS } else { x.vectors };
    let blocks = count.div_ceil(l.block_subs);
    let mut sums = MaybeUninit::<Sums>::uninit();
    let first = sums.as_mut_ptr().cast::<i32>();
    let second = first.wrapping_add(AMX_VECTORS * HALF);
    let mut feed = Feed::new(l, count, levels.codes, x.codes, vectors);
    // SAFETY: the caller upholds this contract; `feed` starts each of the `2 * blocks`
    // blocks once, and each is stored after it has been started and read after it has been stored.
    unsafe {
        let mut total = Total::<ALL>::new(l, levels.scales, x, out);
        feed.start::<0>();
        feed.start::<1>();
        store::<0>(first);
        for two in 0..blocks {
            for _ in 0..ahead.lines {
                _mm_prefetch::<_MM_HINT_T1>(ahead.at.cast());
                ahead.at = ahead.at.wrapping_add(64);
            }
            let more = two + 1 < blocks;
            if more {
                feed.start::<0>();
            }
            store::<1>(second);
            if 2 * two == blocks {
                total.turn(levels.scales);
            }
            total.add(first);
            if more {
                feed.start::<1>();
                store::<0>(first);
            }
            if 2 * two + 1 == blocks {
                total.turn(levels.scales);
            }
            total.add(second);
        }
        total.store();
    }
}

/// The stage that converts and scales sums: its position and its float32 accumulators
/// `(vectors, 16)`.
struct Total<const ALL: bool> {
    f: [__m512; AMX_VECTORS],
    x: Block,
    rows: *const f32,
    rows_step: usize,
    scales: *const f32,
    out: *mut f32,
}

impl<const ALL: bool> Total<ALL> {
    /// The stage at the first half.
    ///
    /// # Safety
    /// As [`walk`].
    #[inline(always)]
    unsafe fn new(l: &Layout, rows: *const f32, x: Block, out: *mut f32) -> Total<ALL> {
        // SAFETY: the caller upholds this contract.
        unsafe {
            let mut total = Total {
                f: [_mm512_setzero_ps(); AMX_VECTORS],
                x,
                rows,
                rows_step: l.block_subs * TILE_ROWS,
                scales: x.scales,
                out,
            };
            total.load();
            total
        }
    }

    #[inline(always)]
    fn vectors(&self) -> usize {
        if ALL { AMX_VECTORS } else { self.x.vectors }
    }

    /// # Safety
    /// As [`walk`].
    #[inline(always)]
    unsafe fn load(&mut self) {
        for v in 0..self.vectors() {
            // SAFETY: the caller upholds this contract.
            self.f[v] = unsafe { _mm512_load_ps(self.out.add(v * TILE_ROWS)) };
        }
    }

    /// # Safety
    /// As [`walk`].
    #[inline(always)]
    unsafe fn store(&self) {
        for v in 0..self.vectors() {
            // SAFETY: the caller upholds this contract.
            unsafe { _mm512_store_ps(self.out.add(v * TILE_ROWS), self.f[v]) };
        }
    }

    /// Moves to the second half; `rows` are the scales of the first.
    ///
    /// # Safety
    /// As [`walk`].
    #[inline(always)]
    unsafe fn turn(&mut self, rows: *const f32) {
        // SAFETY: the caller upholds this contract.
        unsafe {
            self.store();
            (self.rows, self.scales) = (rows.add(HALF), self.x.scales);
            self.out = self.out.add(HALF);
            self.load();
        }
    }

    /// Adds the next block of activations.
    ///
    /// # Safety
    /// As [`walk`]; `sums` is `(vectors, 16)`.
    #[inline(always)]
    unsafe fn add(&mut self, sums: *const i32) {
        // SAFETY: the caller upholds this contract.
        unsafe {
            let of_rows = _mm512_load_ps(self.rows);
            for v in 0..self.vectors() {
                let sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums.add(v * HALF).cast()));
                let s = _mm512_mul_ps(of_rows, _mm512_set1_ps(*self.scales.add(v)));
                self.f[v] = _mm512_fmadd_ps(sum, s, self.f[v]);
            }
        }
        self.rows = self.rows.wrapping_add(self.rows_step);
        self.scales = self.scales.wrapping_add(self.vectors());
    }
}

/// The stage that issues multiplications: its position.
struct Feed {
    x: *const i8,
    w: *const i8,
    /// Multiplications left in this half.
    left: usize,
    /// Multiplications per half, and per block of activations.
    of_half: usize,
    of_block: usize,
    /// Bytes of a row of activations, and of all rows.
    x_row: usize,
    x_rows: usize,
    w_rows: usize,
}

impl Feed {
    fn new(l: &Layout, count: usize, w: *const i8, x: *const i8, vectors: usize) -> Feed {
        let step = l.amx_subs();
        let of_half = count.div_ceil(step);
        Feed {
            x,
            w,
            left: of_half,
            of_half,
            of_block: l.block_subs.div_ceil(step),
            x_row: step * SUB_COLS,
            x_rows: step * SUB_COLS * vectors,
            w_rows: step * SUB,
        }
    }

    /// Starts the sums of the next block of activations in register `T`.
    ///
    /// # Safety
    /// [`configure`] was called for these vectors, and there is a block left in this half or the
    /// next.
    #[inline(always)]
    unsafe fn start<const T: usize>(&mut self) {
        if self.left == 0 {
            self.x = self.x.wrapping_sub(self.of_half * self.x_rows);
            self.w = self
                .w
                .wrapping_sub(self.of_half * self.w_rows)
                .wrapping_add(ROW);
            self.left = self.of_half;
        }
        let steps = self.of_block.min(self.left);
        self.left -= steps;
        // SAFETY: the caller upholds this contract. All registers are declared clobbered, whichever
        // is used. They keep their contents from one asm block to the next, since nothing else in
        // this function uses them. A last step of one sub-block where others have two multiplies
        // zeros by whatever follows its levels.
        unsafe {
            asm!("tilezero tmm{t}", t = const T, out("tmm0") _, out("tmm1") _, options(nomem, nostack, preserves_flags));
            for _ in 0..steps {
                asm!(
                    "tileloadd tmm{a}, [{x} + {xs}]",
                    "tileloadd tmm{b}, [{w} + {ws}]",
                    "tdpbssd tmm{t}, tmm{a}, tmm{b}",
                    t = const T, a = const T + 4, b = const T + 6,
                    x = in(reg) self.x, xs = in(reg) self.x_row,
                    w = in(reg) self.w, ws = in(reg) STRIDE,
                    out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(readonly, nostack, preserves_flags),
                );
                self.x = self.x.wrapping_add(self.x_rows);
                self.w = self.w.wrapping_add(self.w_rows);
            }
        }
    }
}

/// Stores the sums in register `T`: `(vectors, 16)`.
///
/// # Safety
/// The sums were started; `to` has room for them.
#[inline(always)]
unsafe fn store<const T: usize>(to: *mut i32) {
    // SAFETY: the caller upholds this contract.
    unsafe {
        asm!("tilestored [{to} + {s}], tmm{t}", t = const T, to = in(reg) to, s = in(reg) ROW,
            options(nostack, preserves_flags));
    }
}
