//! Products enqueued on a stream: `y = x Wᵀ` with everything on the device. The launches are sound
//! because this file keeps the contract of the kernels, `kernels/README.md`.
//!
//! Activations are first brought into the form that the kernels read, by [`prepare`] or by the
//! kernel that computes them ([`Operand`]). Matrices with the same division of columns share that,
//! and a launch. Neither step allocates or waits.

use super::kernels::{ActivationArgs, Kernel, MatmulArgs, Matrix, QuantizeArgs, Quantized};
use super::layout::Columns;
use super::memory::Part;
use super::stream::{Grid, Stream};
use super::weights::Weights;
use crate::error::Result;
use crate::quant::Bits;

/// The precision of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Float32.
    F32,
    /// Quantised to 8 bits.
    Int8,
    /// Their signs, for 1-bit weights.
    Sign,
}

/// The most thread blocks along y.
const MOST_Y: usize = 65535;

/// The alignment of parts of a scratch buffer, in bytes; the kernels need 16.
const ALIGN: usize = 256;

/// Vectors in the form that the products with a mode read.
#[derive(Clone, Copy, Debug)]
pub struct Prepared<'a> {
    mode: Mode,
    columns: Columns,
    n: usize,
    /// The output of the mode's kernel, see [`x_bytes`].
    x: Part<'a>,
    int8: Option<Int8<'a>>,
}

/// The additional data of int8 vectors.
#[derive(Clone, Copy, Debug)]
struct Int8<'a> {
    /// float `(n, slices)`
    scales: Part<'a>,
    /// int32 `(n, slices)`
    sums: Part<'a>,
    /// uint32: 1 if a vector is not finite
    bad: Part<'a>,
}

impl<'a> Prepared<'a> {
    /// The destination of `n` vectors for a kernel that quantises what it computes. `scratch` and
    /// `bad` are as for [`prepare`].
    ///
    /// # Panics
    /// If a part is too short or misaligned.
    pub fn quantized(columns: Columns, n: usize, scratch: Part<'a>, bad: Part<'a>) -> Prepared<'a> {
        let scratch = aligned(scratch);
        let x = scratch.part(0, n * x_bytes(Mode::Int8, &columns));
        let bytes = n * columns.slices as usize * 4;
        let at = x.bytes().next_multiple_of(ALIGN);
        let after = at + bytes.next_multiple_of(ALIGN);
        let int8 = Int8 {
            scales: scratch.part(at, bytes),
            sums: scratch.part(after, bytes),
            bad: bad.part(0, 4),
        };
        Prepared {
            mode: Mode::Int8,
            columns,
            n,
            x,
            int8: Some(int8),
        }
    }

    /// The arguments for a kernel that quantises `n` vectors of `cols` elements.
    ///
    /// # Panics
    /// Unless it was made for that many int8 vectors of that size.
    pub(super) fn for_quantizing(&self, n: usize, cols: usize) -> Quantized {
        let int8 = self.int8.expect("room for int8 vectors");
        assert_eq!((self.n, self.columns.cols as usize), (n, cols));
        Quantized {
            codes: self.x.address(),
            scales: int8.scales.address(),
            sums: int8.sums.address(),
            bad: int8.bad.address(),
            columns: self.columns,
            block: self.columns.block(),
        }
    }
}

/// Vectors passed from the kernel that computes them to the products.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// float `(n, cols)`, to be prepared.
    Floats(Part<'a>),
    /// Quantised by the kernel that computes them: [`Prepared::quantized`].
    Quantized(Prepared<'a>),
}

/// The size in bytes of one vector as the products read it.
fn x_bytes(mode: Mode, columns: &Columns) -> usize {
    match mode {
        Mode::F32 => columns.padded() * 4,
        Mode::Int8 => columns.padded(),
        Mode::Sign => columns.slices as usize * 4,
    }
}

/// Whether the products read float vectors unchanged, because nothing is padded.
fn as_they_are(mode: Mode, columns: &Columns) -> bool {
    mode == Mode::F32 && columns.padded() == columns.cols as usize
}

/// The scratch bytes that [`prepare`] needs for `n` vectors; `None` on overflow.
pub fn prepared_bytes(mode: Mode, columns: &Columns, n: usize) -> Option<usize> {
    if as_they_are(mode, columns) {
        return Some(0);
    }
    let x = x_bytes(mode, columns).checked_mul(n)?;
    if mode != Mode::Int8 {
        return Some(x);
    }
    let per_slice = (columns.slices as usize * 4).checked_mul(n)?;
    let part = |bytes: usize| bytes.checked_next_multiple_of(ALIGN);
    part(x)?
        .checked_add(part(per_slice)?)?
        .checked_add(per_slice)
}

/// Enqueues the preparation of `n` vectors for products in a mode with matrices of these columns.
///
/// `x`: float `(n, cols)`, aligned to 16 bytes. `scratch`: at least [`prepared_bytes`], aligned to
/// 16 bytes; it is in use until the last product with these vectors is done. `bad`: 4 bytes, set to
/// 1 by int8 if a value is not finite, and otherwise unchanged.
///
/// # Errors
/// `ERR_BACKEND` if the driver refuses the launch.
///
/// # Panics
/// If a part is too short or misaligned, or `n` does not fit in 32 bits.
pub fn prepare<'a>(
    stream: &Stream,
    mode: Mode,
    columns: Columns,
    x: Part<'a>,
    n: usize,
    scratch: Part<'a>,
    bad: Part<'a>,
) -> Result<Prepared<'a>> {
    const SPREAD: Kernel = Kernel::named("spread_activations");
    const QUANTIZE: Kernel = Kernel::named("quantize_activations");
    const SIGN: Kernel = Kernel::named("sign_activations");
    let x = aligned(x.part(0, n * columns.cols as usize * 4));
    let floats = |x| Prepared {
        mode,
        columns,
        n,
        x,
        int8: None,
    };
    if as_they_are(mode, &columns) {
        return Ok(floats(x));
    }
    let ready = match mode {
        Mode::Int8 => Prepared::quantized(columns, n, scratch, bad),
        _ => floats(aligned(scratch).part(0, n * x_bytes(mode, &columns))),
    };
    if n == 0 || columns.slices == 0 {
        return Ok(ready);
    }
    let count = u32::try_from(n).expect("a batch that the staging cuts");
    let grid = |block: u32| Grid {
        blocks: (
            columns.slices.div_ceil(block).div_ceil(4),
            n.min(MOST_Y) as u32,
        ),
        threads: 128,
        shared: 0,
    };
    let args = ActivationArgs {
        x: x.address(),
        out: ready.x.address(),
        columns,
        n: count,
    };
    // The grids are those of "Activations on the device"; parts belong to memory that waits for the
    // device before it is freed.
    match mode {
        // SAFETY: reads the `n * cols` floats of `x`, writes the `n * slices * 32` floats of
        // `ready.x`; both were cut to that length.
        Mode::F32 => unsafe { stream.launch(SPREAD, grid(1), &args)? },
        // SAFETY: reads the `n * cols` floats of `x`, writes the `n * slices` words of `ready.x`;
        // both were cut to that length.
        Mode::Sign => unsafe { stream.launch(SIGN, grid(1), &args)? },
        Mode::Int8 => {
            let args = QuantizeArgs {
                x: x.address(),
                to: ready.for_quantizing(n, columns.cols as usize),
                n: count,
                reserved: 0,
            };
            // SAFETY: reads the `n * cols` floats that `x` was cut to; writes codes, scales, sums
            // and `bad`, which `quantized` has cut.
            unsafe { stream.launch(QUANTIZE, grid(columns.block()), &args)? };
        }
    }
    Ok(ready)
}

/// The most matrices per launch.
const MATRICES: usize = 3;

/// Enqueues `y = x Wᵀ` for several matrices with the same `x`; each `y` is float `(n, rows)`. Up to
/// three consecutive matrices of one width share a launch, with the same bits as separately.
///
/// # Errors
/// `ERR_BACKEND` if the driver refuses a launch.
///
/// # Panics
/// If the vectors were prepared for other columns, or as signs and weights have more than one bit,
/// or a `y` is too short.
pub fn multiply(
    stream: &Stream,
    x: &Prepared<'_>,
    products: &[(&Weights, Part<'_>)],
) -> Result<()> {
    let multiprocessors = stream.device().about().multiprocessors;
    let (x_bytes, slices) = (x_bytes(x.mode, &x.columns), x.columns.slices as usize);
    let alike = products.chunk_by(|(a, _), (b, _)| a.bits() == b.bits());
    for products in alike.flat_map(|alike| alike.chunks(MATRICES)) {
        let bits = products[0].0.bits();
        assert!(x.mode != Mode::Sign || bits == Bits::One);
        let plan_of = |weights: &Weights| {
            assert_eq!(x.columns, weights.columns());
            let rows = weights.shape().rows;
            Plan::new(x.mode, bits, rows, x.columns.slices, x.n, multiprocessors)
        };
        let shared = plan_of(products[0].0);
        for first in (0..x.n).step_by(shared.most) {
            let n = shared.most.min(x.n - first);
            let slice_values =
                |part: Part<'_>| part.part(first * slices * 4, n * slices * 4).address();
            let mut matrices = [Matrix::default(); MATRICES];
            for (matrix, (weights, y)) in matrices.iter_mut().zip(products) {
                let plan = plan_of(weights);
                // The choice of kernel depends only on what the matrices have in common.
                assert_eq!(plan.kernel, shared.kernel);
                let rows = weights.shape().rows;
                let (scales, half) = weights.scales();
                *matrix = Matrix {
                    codes: weights.codes().address(),
                    scales: scales.address(),
                    zeros: weights.zeros().map_or(0, Part::address),
                    y: y.part(first * rows * 4, n * rows * 4).address(),
                    rows: rows as u32,
                    half_scales: half.into(),
                    split: plan.split,
                    blocks: plan.blocks_x,
                };
            }
            let args = MatmulArgs {
                x: x.x.part(first * x_bytes, n * x_bytes).address(),
                xscales: x.int8.map_or(0, |int8| slice_values(int8.scales)),
                xsums: x.int8.map_or(0, |int8| slice_values(int8.sums)),
                columns: x.columns,
                n: n as u32,
                matrices,
            };
            let grid = shared.grid(matrices.iter().map(|m| m.blocks).sum(), n);
            // SAFETY: the arguments and the grid are those of "Products"; the weights were packed
            // for these columns, the vectors prepared for them, and parts belong to memory that
            // waits for the device before it is freed.
            unsafe { stream.launch(shared.kernel, grid, &args)? };
        }
    }
    Ok(())
}

/// The kernel, and the shape of its launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    kernel: Kernel,
    /// Vectors per row of the grid.
    v: usize,
    /// The most vectors per launch.
    most: usize,
    /// Warps that share the columns of a row.
    split: u32,
    blocks_x: u32,
    threads: u32,
    shared: u32,
}

impl Plan {
    fn new(
        mode: Mode,
        bits: Bits,
        rows: usize,
        slices: u32,
        n: usize,
        multiprocessors: u32,
    ) -> Plan {
        if mode == Mode::Int8 && n > 4 {
            let v = if n <= 16 { 8 } else { 64 };
            return Plan {
                kernel: of_width(if v == 8 { &MMA_8 } else { &MMA_64 }, bits),
                v,
                most: MOST_Y * v,
                split: 1,
                blocks_x: rows.div_ceil(64) as u32,
                threads: 128,
                shared: 0,
            };
        }
        let v = if n == 1 { 1 } else { 4 };
        let kernel = match (mode, v) {
            (Mode::F32, 1) => of_width(&F32_1, bits),
            (Mode::F32, _) => of_width(&F32_4, bits),
            (Mode::Int8, 1) => of_width(&I8_1, bits),
            (Mode::Int8, _) => of_width(&I8_4, bits),
            (Mode::Sign, 1) => Kernel::named("matmul_sign_n1"),
            (Mode::Sign, _) => Kernel::named("matmul_sign_n4"),
        };
        let r = match (mode, v) {
            (Mode::F32, 1) => 2,
            (Mode::F32, _) => 1,
            (_, 1) => 4,
            _ => 2,
        };
        let blocks_x = |split: usize| rows.div_ceil(WARPS / split * r);
        // A piece is what a lane processes at a time; a warp without a piece would be idle.
        let piece = match (mode, bits) {
            (Mode::Sign, _) | (_, Bits::One) => 4,
            (_, Bits::Two) => 2,
            _ => 1,
        };
        let most_split = (slices as usize).div_ceil(32 * piece);
        let enough = 4 * multiprocessors as usize;
        let mut split = 1;
        while split < WARPS
            && split * 2 <= most_split
            && blocks_x(split) * n.div_ceil(v).min(MOST_Y) < enough
        {
            split *= 2;
        }
        Plan {
            kernel,
            v,
            most: MOST_Y * v,
            split: split as u32,
            blocks_x: blocks_x(split) as u32,
            threads: 32 * WARPS as u32,
            shared: (WARPS * r * v * 4) as u32,
        }
    }

    /// The grid for `n` vectors, at most `most`, with `blocks_x` blocks along x, for this and other
    /// matrices.
    fn grid(&self, blocks_x: u32, n: usize) -> Grid {
        Grid {
            blocks: (blocks_x, n.div_ceil(self.v) as u32),
            threads: self.threads,
            shared: self.shared,
        }
    }
}

/// Warps per block in the kernels for few vectors.
const WARPS: usize = 8;

/// The kernels of a family, for 1, 2, 4 and 8 bits.
type ByWidth = [Kernel; 4];

macro_rules! by_width {
    ($before:literal, $after:literal) => {
        [
            Kernel::named(concat!($before, "1", $after)),
            Kernel::named(concat!($before, "2", $after)),
            Kernel::named(concat!($before, "4", $after)),
            Kernel::named(concat!($before, "8", $after)),
        ]
    };
}

static F32_1: ByWidth = by_width!("matmul_f32_b", "_n1");
static F32_4: ByWidth = by_width!("matmul_f32_b", "_n4");
static I8_1: ByWidth = by_width!("matmul_i8_b", "_n1");
static I8_4: ByWidth = by_width!("matmul_i8_b", "_n4");
static MMA_8: ByWidth = by_width!("matmul_mma_b", "_n8");
static MMA_64: ByWidth = by_width!("matmul_mma_b", "_n64");

fn of_width(family: &ByWidth, bits: Bits) -> Kernel {
    family[bits.get().trailing_zeros() as usize]
}

/// # Panics
/// Unless it is aligned to 16 bytes, the width of the kernels' loads.
fn aligned(part: Part<'_>) -> Part<'_> {
    assert!(part.address().is_multiple_of(16), "{part:?}");
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of "Products" in `kernels/README.md`, for a device with 4 multiprocessors, which
    /// 16 blocks fill.
    #[test]
    fn kernels_and_grids() {
        for (mode, bits, rows, slices, n, kernel, split, blocks, threads, shared) in [
            (
                Mode::F32,
                Bits::Four,
                70,
                8,
                1,
                "matmul_f32_b4_n1",
                1,
                (5, 1),
                256,
                64,
            ),
            (
                Mode::F32,
                Bits::One,
                70,
                8,
                7,
                "matmul_f32_b1_n4",
                1,
                (9, 2),
                256,
                128,
            ),
            (
                Mode::Int8,
                Bits::Eight,
                33,
                8,
                1,
                "matmul_i8_b8_n1",
                1,
                (2, 1),
                256,
                128,
            ),
            (
                Mode::Int8,
                Bits::Two,
                33,
                8,
                4,
                "matmul_i8_b2_n4",
                1,
                (3, 1),
                256,
                256,
            ),
            (
                Mode::Int8,
                Bits::Two,
                65,
                8,
                5,
                "matmul_mma_b2_n8",
                1,
                (2, 1),
                128,
                0,
            ),
            (
                Mode::Int8,
                Bits::Four,
                65,
                8,
                16,
                "matmul_mma_b4_n8",
                1,
                (2, 2),
                128,
                0,
            ),
            (
                Mode::Int8,
                Bits::Four,
                65,
                8,
                130,
                "matmul_mma_b4_n64",
                1,
                (2, 3),
                128,
                0,
            ),
            (
                Mode::Sign,
                Bits::One,
                40,
                8,
                1,
                "matmul_sign_n1",
                1,
                (2, 1),
                256,
                128,
            ),
            // Columns are shared if there are few rows, and pieces for another warp.
            (
                Mode::Int8,
                Bits::Eight,
                64,
                256,
                1,
                "matmul_i8_b8_n1",
                8,
                (16, 1),
                256,
                128,
            ),
            (
                Mode::Int8,
                Bits::Eight,
                256,
                256,
                1,
                "matmul_i8_b8_n1",
                2,
                (16, 1),
                256,
                128,
            ),
            (
                Mode::Int8,
                Bits::Eight,
                1024,
                256,
                1,
                "matmul_i8_b8_n1",
                1,
                (32, 1),
                256,
                128,
            ),
            (
                Mode::Int8,
                Bits::Eight,
                1,
                96,
                1,
                "matmul_i8_b8_n1",
                2,
                (1, 1),
                256,
                128,
            ),
            (
                Mode::Int8,
                Bits::One,
                1,
                256,
                1,
                "matmul_i8_b1_n1",
                2,
                (1, 1),
                256,
                128,
            ),
            (
                Mode::Sign,
                Bits::One,
                1,
                1024,
                3,
                "matmul_sign_n4",
                8,
                (1, 1),
                256,
                256,
            ),
        ] {
            let plan = Plan::new(mode, bits, rows, slices, n, 4);
            let grid = Grid {
                blocks,
                threads,
                shared,
            };
            let found = (plan.kernel.name(), plan.split, plan.grid(plan.blocks_x, n));
            assert_eq!(
                found,
                (kernel, split, grid),
                "{mode:?} {bits:?} {rows} {slices} {n}"
            );
        }
    }

    /// A large batch is split into launches that a grid can hold.
    #[test]
    fn launches_of_a_large_batch() {
        for (mode, n) in [
            (Mode::F32, 1 << 20),
            (Mode::Int8, 1 << 24),
            (Mode::Sign, 1 << 20),
        ] {
            let plan = Plan::new(mode, Bits::One, 5, 4, n, 100);
            assert!(plan.most < n && plan.grid(1, plan.most).blocks.1 == 65535);
        }
    }

    #[test]
    fn scratch_is_counted() {
        let columns = |cols| Columns::new(&crate::quant::Shape::new(1, cols, 32)).unwrap();
        let bytes = |mode, cols, n| prepared_bytes(mode, &columns(cols), n);
        assert_eq!(bytes(Mode::F32, 128, 1 << 40), Some(0));
        assert_eq!(bytes(Mode::F32, 100, 3), Some(3 * 128 * 4));
        assert_eq!(bytes(Mode::Sign, 100, 3), Some(3 * 4 * 4));
        // 3 * 128 codes, 3 * 4 scales and as many sums, each part at a multiple of 256.
        assert_eq!(bytes(Mode::Int8, 100, 3), Some(512 + 256 + 48));
        assert_eq!(bytes(Mode::F32, 100, usize::MAX / 256), None);
    }
}
