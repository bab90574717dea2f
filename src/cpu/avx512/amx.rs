//! Many vectors with AMX: see [`crate::cpu::tile::Amx`].
//!
//! AMX has eight registers of up to 16 rows of 64 bytes, and an instruction that multiplies two of them and adds to a third: here `(vectors, bytes)`
//! of activations by `(bytes, 16 weight rows)`, which come four bytes of a row at a time, as a sub-block of 8 bits has them. The sums
//! `(vectors, 16)` go through the L1 cache, the only way from there to other registers.
//!
//! What was measured, on an Emerald Rapids core, out of the L1 cache: a multiplication takes 16 cycles, whether its 16 vectors have 32 bytes
//! or 64; zeroing, loading of both factors and storing make that 24, if no store waits for the sum it stores. Within some 180 cycles of any such
//! instruction the second of the two 512-bit units for floats is off, so that conversion, scaling and sum of 16 vectors and 16 rows take 48 cycles
//! instead of 24. All together take 52 with blocks of 32 columns, 1.2 times the `vpdpbusd` rate (64 cycles, to which that would add
//! conversions), and 22 for as many products with blocks of 128, 3.0 times. Phases without AMX in between, in which both units are on, took 7%
//! longer at 32 (prototypes, 59 and 55 cycles), and a store right behind its multiplication 11% (61).

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
/// Bytes from four columns of a half of a tile to the next four: the other half is between them.
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
        // SAFETY: the tile has sub-block `first + i`, the outputs have room for `count` of them.
        unsafe {
            let (sub, tail) = (tile.add(sub), tile.add(tail));
            let zero = zero_points(l, tail).map(|z| _mm512_shuffle_epi8(z, four_times));
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
/// What it says; AVX-512 F, and AMX-INT8, which this process may use.
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
        // Begun with the first sixteen, and once more for the few that are left.
        if at == 0 || vectors < AMX_VECTORS {
            // SAFETY: the caller's.
            unsafe { configure(l, vectors) };
        }
        let codes = at * x.vector_codes + first * vectors * SUB_COLS;
        let scales = at * x.vector_blocks + first / l.block_subs * vectors;
        // SAFETY: the caller's: where a block of vectors has its activations from `first` on, and its rows of sums.
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
    // SAFETY: as above. It gives the registers up, which would be saved with the thread otherwise.
    unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Shapes the registers: 0 and 1 sums of so many vectors, 4 and 5 activations, 6 and 7 levels.
///
/// # Safety
/// AMX, which this process may use.
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
    // SAFETY: it reads the 64 bytes of `shapes`. The state it sets is as much the thread's own as the registers: no code of the compiler's
    // uses it, and `multiply` gives it up before it returns.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(readonly, nostack, preserves_flags));
    }
}

/// Activations of up to sixteen vectors from some sub-block on.
#[derive(Clone, Copy)]
struct Block {
    codes: *const i8,
    scales: *const f32,
    vectors: usize,
}

/// The sums of two blocks of activations: `(vectors, 16)` each, on their way.
#[repr(C, align(64))]
struct Sums([[i32; AMX_VECTORS * HALF]; 2]);

/// One tile times a block of vectors; whether there are [`AMX_VECTORS`] of them (`ALL`), whose float32 sums are then in registers.
///
/// Half after half, and in each half block of activations after block, in one pipeline: while the sums of a block are converted, those of the
/// next are stored, and those of the one behind it are begun. A store that came right after its multiplication would wait for it.
///
/// # Safety
/// [`configure`] was called for these vectors; the levels and `x` are those of `count` sub-blocks; `out` is `(vectors, 32)`; AVX-512 F.
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
    let mut multiply_stage = MultiplyStage::new(l, count, levels.codes, x.codes, vectors);
    // SAFETY: the caller's; the multiply_stage begins each of the `2 * blocks` blocks once, each is stored when it has begun, and read when it is stored.
    unsafe {
        let mut accumulate = AccumulateStage::<ALL>::new(l, levels.scales, x, out);
        multiply_stage.start::<0>();
        multiply_stage.start::<1>();
        store::<0>(first);
        for two in 0..blocks {
            for _ in 0..ahead.lines {
                _mm_prefetch::<_MM_HINT_T1>(ahead.at.cast());
                ahead.at = ahead.at.wrapping_add(64);
            }
            let more = two + 1 < blocks;
            if more {
                multiply_stage.start::<0>();
            }
            store::<1>(second);
            if 2 * two == blocks {
                accumulate.start_second_half(levels.scales);
            }
            accumulate.add(first);
            if more {
                multiply_stage.start::<1>();
                store::<0>(first);
            }
            if 2 * two + 1 == blocks {
                accumulate.start_second_half(levels.scales);
            }
            accumulate.add(second);
        }
        accumulate.store();
    }
}

/// Where the conversions are, and their float32 sums `(vectors, 16)`.
struct AccumulateStage<const ALL: bool> {
    f: [__m512; AMX_VECTORS],
    x: Block,
    rows: *const f32,
    rows_step: usize,
    scales: *const f32,
    out: *mut f32,
}

impl<const ALL: bool> AccumulateStage<ALL> {
    /// For the first half.
    ///
    /// # Safety
    /// As [`walk`].
    #[inline(always)]
    unsafe fn new(l: &Layout, rows: *const f32, x: Block, out: *mut f32) -> AccumulateStage<ALL> {
        // SAFETY: the caller's.
        unsafe {
            let mut accumulate = AccumulateStage {
                f: [_mm512_setzero_ps(); AMX_VECTORS],
                x,
                rows,
                rows_step: l.block_subs * TILE_ROWS,
                scales: x.scales,
                out,
            };
            accumulate.load();
            accumulate
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
            // SAFETY: the caller's.
            self.f[v] = unsafe { _mm512_load_ps(self.out.add(v * TILE_ROWS)) };
        }
    }

    /// # Safety
    /// As [`walk`].
    #[inline(always)]
    unsafe fn store(&self) {
        for v in 0..self.vectors() {
            // SAFETY: the caller's.
            unsafe { _mm512_store_ps(self.out.add(v * TILE_ROWS), self.f[v]) };
        }
    }

    /// Goes on with the second half; `rows` are the scales of the first.
    ///
    /// # Safety
    /// As [`walk`].
    #[inline(always)]
    unsafe fn start_second_half(&mut self, rows: *const f32) {
        // SAFETY: the caller's.
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
        // SAFETY: the caller's.
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

/// Where the multiplications are.
struct MultiplyStage {
    x: *const i8,
    w: *const i8,
    /// Multiplications left of this half.
    left: usize,
    /// Those of a half, and of a block of activations.
    of_half: usize,
    of_block: usize,
    /// Bytes of a row of activations, and of all rows.
    x_row: usize,
    x_rows: usize,
    w_rows: usize,
}

impl MultiplyStage {
    fn new(l: &Layout, count: usize, w: *const i8, x: *const i8, vectors: usize) -> MultiplyStage {
        let step = l.amx_subs();
        let of_half = count.div_ceil(step);
        MultiplyStage {
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

    /// Begins the sums of the next block of activations, in register `T`.
    ///
    /// # Safety
    /// [`configure`] was called for these vectors, and there is a block left in this half or the next.
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
        // SAFETY: the caller's. Registers are named as changed whichever is; they keep what they hold from one of these blocks of instructions to
        // the next, since nothing else in this function uses them. A last step of one sub-block where others have two multiplies zeros with whatever follows its levels.
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
/// They were begun; `to` has room for them.
#[inline(always)]
unsafe fn store<const T: usize>(to: *mut i32) {
    // SAFETY: the caller's.
    unsafe {
        asm!("tilestored [{to} + {s}], tmm{t}", t = const T, to = in(reg) to, s = in(reg) ROW,
            options(nostack, preserves_flags));
    }
}
