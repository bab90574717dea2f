//! What a transformer computes between its products, enqueued on a stream. The launches are sound
//! because this folder keeps the contract of the kernels, `kernels/TRANSFORMER.md`.
//!
//! Everything is on the device, including the ids of the tokens and the position of the first one,
//! so that the launches can be captured once and replayed for every token ([`super::Recorded`]).
//! Nothing allocates or waits. Buffers are parts of device memory that are at least as long as
//! their documented shape, and begin at multiples of 16 bytes; a shorter one causes a panic.

mod args;
mod attention;

pub use attention::{Cache, HeadShape, Heads, Splits, attend, cache_bytes, place_heads};

use self::args::{AngleArgs, EmbedArgs, GateArgs, LogitArgs, NormArgs};
use super::kernels::{Kernel, Quantized};
use super::memory::Part;
use super::product::Operand;
use super::stream::{Grid, Stream};
use super::weights::Weights;
use crate::error::Result;

/// The most tokens per launch.
pub const MOST_TOKENS: usize = 65535;

/// The address of the first `count` values of 4 bytes.
///
/// # Panics
/// If there are fewer.
fn values(part: Part<'_>, count: usize) -> u64 {
    part.part(0, count.checked_mul(4).expect("a buffer's length"))
        .address()
}

/// As [`values`]; 0 for none.
fn values_or_none(part: Option<Part<'_>>, count: usize) -> u64 {
    part.map_or(0, |part| values(part, count))
}

/// A count as the kernels take it; all counts here are of buffers, or checked before.
fn count(n: usize) -> u32 {
    u32::try_from(n).expect("a count of 32 bits")
}

fn grid(blocks_x: usize, blocks_y: usize, threads: u32, shared: usize) -> Grid {
    assert!(blocks_y <= MOST_TOKENS);
    Grid {
        blocks: (count(blocks_x), count(blocks_y)),
        threads,
        shared: count(shared),
    }
}

/// The destinations of `(n, cols)` vectors, as floats and quantised; 0 for the one that is not
/// used.
fn addresses(out: &Operand<'_>, n: usize, cols: usize) -> (u64, Quantized) {
    match out {
        Operand::Floats(out) => (values(*out, n * cols), Quantized::default()),
        Operand::Quantized(out) => (0, out.for_quantizing(n, cols)),
    }
}

/// Enqueues rows of an embedding, multiplied by `factor`: `ids` uint32 `(n)`, `out` float
/// `(n, cols)`.
///
/// # Errors
/// `ERR_BACKEND` if the driver refuses the launch.
pub fn embed(
    stream: &Stream,
    embedding: &Weights,
    factor: f32,
    ids: Part<'_>,
    n: usize,
    out: Part<'_>,
) -> Result<()> {
    const EMBED: Kernel = Kernel::named("embed_rows");
    if n == 0 {
        return Ok(());
    }
    let (shape, (scales, half)) = (embedding.shape(), embedding.scales());
    let args = EmbedArgs {
        codes: embedding.codes().address(),
        scales: scales.address(),
        zeros: embedding.zeros().map_or(0, Part::address),
        ids: values(ids, n),
        out: values(out, n * shape.cols),
        columns: embedding.columns(),
        n: count(n),
        bits: count(embedding.bits().get()),
        half_scales: half.into(),
        factor,
        rows: count(shape.rows),
    };
    let grid = grid(shape.cols.div_ceil(128), n.min(MOST_TOKENS), 128, 0);
    // SAFETY: the arguments and the grid are those of TRANSFORMER.md; every buffer was cut to its
    // shape, and the kernel replaces an id beyond the rows by the last one. Parts belong to memory
    // that waits for the device before it is freed.
    unsafe { stream.launch(EMBED, grid, &args) }
}

/// Enqueues the cosines and sines of `n` positions: `frequencies` double `(pairs)`, in rotations
/// per position; `position` uint32, that of the first; `out` float `(n, pairs, 2)`, multiplied by
/// `amplitude`.
///
/// # Errors
/// `ERR_BACKEND` if the driver refuses the launch.
pub fn angles(
    stream: &Stream,
    frequencies: Part<'_>,
    amplitude: f64,
    position: Part<'_>,
    n: usize,
    out: Part<'_>,
) -> Result<()> {
    const ANGLES: Kernel = Kernel::named("rotary_angles");
    let pairs = frequencies.bytes() / 8;
    if n * pairs == 0 {
        return Ok(());
    }
    let args = AngleArgs {
        frequencies: frequencies.address(),
        position: values(position, 1),
        out: values(out, n * pairs * 2),
        amplitude,
        pairs: count(pairs),
        n: count(n),
    };
    let grid = grid((n * pairs).div_ceil(128), 1, 128, 0);
    // SAFETY: as in `embed`.
    unsafe { stream.launch(ANGLES, grid, &args) }
}

/// The summand of a sub-layer for the residual stream.
#[derive(Clone, Copy, Debug)]
pub struct Added<'a> {
    /// float `(n, width)`
    pub y: Part<'a>,
    /// A bias on it: float `(width)`
    pub bias: Option<Part<'a>>,
    /// The weights of a norm applied to it: float `(width)`
    pub norm: Option<Part<'a>>,
}

/// Enqueues `x = x + [norm](y + bias)` and then `out = norm(x)`. `x` is float `(n, width)`; `norm`
/// is the weights, float `(width)`, and `out` `(n, width)`. Without `added`, x is unchanged.
///
/// # Errors
/// `ERR_BACKEND` if the driver refuses the launch.
pub fn add_norm(
    stream: &Stream,
    (n, width): (usize, usize),
    eps: f32,
    x: Part<'_>,
    added: Option<Added<'_>>,
    norm: Option<(Part<'_>, Operand<'_>)>,
) -> Result<()> {
    const ADD_NORM: Kernel = Kernel::named("add_norm");
    if n * width == 0 {
        return Ok(());
    }
    let all = n * width;
    let (outer, out) = norm.unzip();
    let (out, quantized) = out.map_or((0, Quantized::default()), |out| addresses(&out, n, width));
    let args = NormArgs {
        x: values(x, all),
        y: values_or_none(added.map(|a| a.y), all),
        bias: values_or_none(added.and_then(|a| a.bias), width),
        inner: values_or_none(added.and_then(|a| a.norm), width),
        sum: values(x, all),
        outer: values_or_none(outer, width),
        out,
        quantized,
        width: count(width),
        n: count(n),
        eps,
        reserved: 0,
    };
    // Two sums over the block, each with a float per warp.
    let grid = grid(n, 1, 256, 2 * 8 * 4);
    // SAFETY: as in `embed`.
    unsafe { stream.launch(ADD_NORM, grid, &args) }
}

/// The activation of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `x * sigmoid(x)`
    Silu,
    /// GELU, tanh approximation.
    Gelu,
}

/// Enqueues `out = act(gate + bias) * (up + bias)`: `gate` and `up` float `(n, width)`, biases
/// float `(width)`, `out` `(n, width)`, which may be `gate` itself.
///
/// # Errors
/// `ERR_BACKEND` if the driver refuses the launch.
pub fn gate_up(
    stream: &Stream,
    act: Gate,
    (n, width): (usize, usize),
    (gate, gate_bias): (Part<'_>, Option<Part<'_>>),
    (up, up_bias): (Part<'_>, Option<Part<'_>>),
    out: Operand<'_>,
) -> Result<()> {
    const GATE_UP: Kernel = Kernel::named("gate_up");
    const QUANTIZE: Kernel = Kernel::named("gate_up_quantize");
    if n * width == 0 {
        return Ok(());
    }
    let (floats, quantized) = addresses(&out, n, width);
    let args = GateArgs {
        gate: values(gate, n * width),
        up: values(up, n * width),
        gate_bias: values_or_none(gate_bias, width),
        up_bias: values_or_none(up_bias, width),
        out: floats,
        quantized,
        width: count(width),
        n: count(n),
        gelu: (act == Gate::Gelu).into(),
        reserved: 0,
    };
    // A thread per element, or a warp for the slices with one scale.
    let (kernel, blocks) = match out {
        Operand::Floats(_) => (GATE_UP, width.div_ceil(256)),
        Operand::Quantized(_) => {
            let scales = quantized.columns.slices.div_ceil(quantized.block);
            (QUANTIZE, scales.div_ceil(8) as usize)
        }
    };
    // SAFETY: as in `embed`.
    unsafe { stream.launch(kernel, grid(blocks, n.min(MOST_TOKENS), 256, 0), &args) }
}

/// Enqueues `logits = cap * tanh(logits / cap)`; `logits` is float `(len)`.
///
/// # Errors
/// `ERR_BACKEND` if the driver refuses the launch.
pub fn softcap(stream: &Stream, cap: f32, logits: Part<'_>, len: usize) -> Result<()> {
    const SOFTCAP: Kernel = Kernel::named("softcap");
    if len == 0 {
        return Ok(());
    }
    let args = LogitArgs {
        logits: values(logits, len),
        parts: 0,
        token: 0,
        id: 0,
        position: 0,
        count: len as u64,
        blocks: 0,
        cap,
    };
    let grid = grid(len.div_ceil(256).min(4096), 1, 256, 0);
    // SAFETY: as in `embed`.
    unsafe { stream.launch(SOFTCAP, grid, &args) }
}

/// The number of blocks that search for the largest logit.
const SHARES: usize = 64;

/// The result of [`advance`] if a logit is not finite.
pub const NOT_FINITE: u32 = u32::MAX;

/// The scratch bytes that [`advance`] needs.
pub const ADVANCE_BYTES: usize = SHARES * 8;

/// Where a step stores the inputs of the next one: uint32 each.
#[derive(Clone, Copy, Debug)]
pub struct Next<'a> {
    /// The token found, for the host.
    pub token: Part<'a>,
    /// The same, where the next step reads its id.
    pub id: Part<'a>,
    /// The position, which is incremented.
    pub position: Part<'a>,
}

/// Enqueues the choice of the next token: the arg-max of the `len` logits, the first of equals;
/// [`NOT_FINITE`] if any is not finite. `scratch`: [`ADVANCE_BYTES`].
///
/// # Errors
/// `ERR_BACKEND` if the driver refuses a launch.
///
/// # Panics
/// If there are no logits, or 2^31 or more.
pub fn advance(
    stream: &Stream,
    logits: Part<'_>,
    len: usize,
    scratch: Part<'_>,
    next: Next<'_>,
) -> Result<()> {
    const GREATEST: Kernel = Kernel::named("greatest");
    const ADVANCE: Kernel = Kernel::named("advance");
    assert!(0 < len && len < 1 << 31, "{len} logits");
    let blocks = len.div_ceil(256).min(SHARES);
    let args = LogitArgs {
        logits: values(logits, len),
        parts: scratch.part(0, blocks * 8).address(),
        token: values(next.token, 1),
        id: values(next.id, 1),
        position: values(next.position, 1),
        count: len as u64,
        blocks: count(blocks),
        cap: 0.0,
    };
    // SAFETY: as in `embed`; the second kernel reads what the first one, before it on the stream,
    // has written.
    unsafe {
        stream.launch(GREATEST, grid(blocks, 1, 256, 64), &args)?;
        stream.launch(ADVANCE, grid(1, 1, 32, 0), &args)
    }
}
