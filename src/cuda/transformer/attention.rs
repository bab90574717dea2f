//! Placing heads (queries to a buffer, keys and values into the KV cache), and attention over the
//! cache.

use super::args::{AttentionArgs, HeadArgs};
use super::{addresses, count, grid, values, values_or_none};
use crate::cuda::device::Device;
use crate::cuda::kernels::Kernel;
use crate::cuda::layout::Columns;
use crate::cuda::memory::Part;
use crate::cuda::product::Operand;
use crate::cuda::stream::Stream;
use crate::error::Result;

/// The heads of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
}

impl HeadShape {
    /// Whether the kernels support these heads.
    pub fn supported(&self) -> bool {
        const MOST_HEAD_DIM: usize = 256;
        // The y dimension of the grid has a block for each head and split.
        const MOST_KV_HEADS: usize = 65535 / Splits::MOST;
        self.head_dim.is_multiple_of(2)
            && (1..=MOST_HEAD_DIM).contains(&self.head_dim)
            && (1..=MOST_KV_HEADS).contains(&self.kv_heads)
            && self.heads.is_multiple_of(self.kv_heads)
            && (1..=1 << 20).contains(&self.heads)
    }

    /// Elements of a head in the cache, including padding.
    fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(4)
    }

    /// Query heads per key/value head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// The size in bytes of a layer's keys, which is also that of its values. `None` on overflow.
pub fn cache_bytes(shape: &HeadShape, slots: usize, half: bool) -> Option<usize> {
    let size = if half { 2 } else { 4 };
    slots.checked_mul(shape.kv_heads * shape.padded() * size)
}

/// The keys and values of a layer; position p is in slot `p % slots`.
#[derive(Clone, Copy, Debug)]
pub struct Cache<'a> {
    /// float16 or float `(kv_heads, slots, head_dim rounded up to 4)`
    pub keys: Part<'a>,
    /// As `keys`.
    pub values: Part<'a>,
    /// At least the window, if there is one, plus the tokens that are fed together.
    pub slots: usize,
    /// Whether it is float16.
    pub half: bool,
}

impl Cache<'_> {
    /// The addresses of keys and values.
    ///
    /// # Panics
    /// If either is too short, or not aligned to 16 bytes, the width of the loads.
    fn addresses(&self, shape: &HeadShape) -> (u64, u64) {
        let bytes = cache_bytes(shape, self.slots, self.half).expect("it was allocated");
        let address = |part: Part<'_>| {
            let address = part.part(0, bytes).address();
            assert!(address.is_multiple_of(16), "{part:?}");
            address
        };
        (address(self.keys), address(self.values))
    }
}

/// The operands of [`place_heads`].
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// Queries: float `(n, heads, head_dim)`
    pub q: Part<'a>,
    /// Keys: float `(n, kv_heads, head_dim)`
    pub k: Part<'a>,
    /// Values: float `(n, kv_heads, head_dim)`
    pub v: Part<'a>,
    /// For queries, keys and values, each as long as one token's.
    pub biases: [Option<Part<'a>>; 3],
    /// Weights of the norms of queries and keys: float `(head_dim)`
    pub norms: [Option<Part<'a>>; 2],
    /// Added to the mean square in a norm.
    pub eps: f32,
    /// float `(n, head_dim / 2, 2)`, from [`super::angles`]
    pub angles: Part<'a>,
    /// Whether elements 2i and 2i + 1 are rotated as a pair, rather than i and i + head_dim / 2.
    pub neighbours: bool,
    /// The factor on queries.
    pub query_scale: f32,
    /// uint32: the position of the first token.
    pub position: Part<'a>,
    /// The queries in the form that attention reads: float `(n, heads, head_dim)`
    pub out: Part<'a>,
}

/// Enqueues biases, norms and the rotary embedding for the heads of `n` tokens; keys and values are
/// written to the cache.
///
/// # Errors
/// `ERR_BACKEND` if the driver refuses the launch.
///
/// # Panics
/// If the heads are not supported.
pub fn place_heads(
    stream: &Stream,
    shape: &HeadShape,
    n: usize,
    h: &Heads<'_>,
    cache: &Cache<'_>,
) -> Result<()> {
    const PLACE: Kernel = Kernel::named("place_heads");
    assert!(shape.supported(), "{shape:?}");
    if n == 0 {
        return Ok(());
    }
    let (query, kv) = (
        shape.heads * shape.head_dim,
        shape.kv_heads * shape.head_dim,
    );
    let (keys, cached) = cache.addresses(shape);
    let args = HeadArgs {
        q: values(h.q, n * query),
        k: values(h.k, n * kv),
        v: values(h.v, n * kv),
        q_bias: values_or_none(h.biases[0], query),
        k_bias: values_or_none(h.biases[1], kv),
        v_bias: values_or_none(h.biases[2], kv),
        q_norm: values_or_none(h.norms[0], shape.head_dim),
        k_norm: values_or_none(h.norms[1], shape.head_dim),
        angles: values(h.angles, n * shape.head_dim),
        position: values(h.position, 1),
        out: values(h.out, n * query),
        keys,
        values: cached,
        heads: count(shape.heads),
        kv_heads: count(shape.kv_heads),
        head_dim: count(shape.head_dim),
        slots: count(cache.slots),
        n: count(n),
        neighbours: h.neighbours.into(),
        half_cache: cache.half.into(),
        eps: h.eps,
        query_scale: h.query_scale,
        reserved: 0,
    };
    let grid = grid((shape.heads + 2 * shape.kv_heads).div_ceil(4), n, 128, 0);
    // SAFETY: the arguments and the grid are those of TRANSFORMER.md; every buffer was cut to its
    // shape, and a slot is below `slots` whatever the position. Parts belong to memory that waits
    // for the device before it is freed.
    unsafe { stream.launch(PLACE, grid, &args) }
}

/// The number of blocks that share the positions of a row, and the buffer for their partial
/// results.
#[derive(Clone, Copy, Debug)]
pub struct Splits<'a> {
    /// At least 1, at most [`Splits::MOST`].
    pub count: usize,
    /// [`Splits::bytes`] of scratch.
    pub scratch: Part<'a>,
}

impl Splits<'_> {
    /// The largest supported number.
    pub const MOST: usize = 32;

    /// The number that fills the device twice for a single token that attends to a cache with this
    /// number of slots.
    pub fn for_one_token(device: &Device, shape: &HeadShape, slots: usize) -> usize {
        let blocks = shape.kv_heads * shape.group().div_ceil(rows_of_block(shape.group()));
        let wanted = 2 * device.about().multiprocessors as usize;
        // For a split of fewer than two steps of 32 positions, combining the parts costs more than
        // it saves.
        let most = slots.div_ceil(64).clamp(1, Splits::MOST);
        wanted.div_ceil(blocks).clamp(1, most)
    }

    /// The scratch bytes for `n` tokens.
    pub fn bytes(shape: &HeadShape, n: usize, count: usize) -> usize {
        if count == 1 {
            return 0;
        }
        n * shape.heads * count * (shape.head_dim + 2) * 4
    }

    /// Whether the output can be quantised while the parts are combined, for products with matrices
    /// of these columns.
    pub fn quantize(&self, shape: &HeadShape, columns: &Columns) -> bool {
        self.count > 1 && columns.divides_at(shape.head_dim)
    }
}

/// The rows that a block processes, if a key/value head has this number.
fn rows_of_block(rows: usize) -> usize {
    match rows {
        0..=1 => 1,
        2..=4 => 4,
        _ => 8,
    }
}

/// Enqueues the attention of `n` tokens, whose keys and values are in the cache: `q` float and
/// `out` are `(n, heads, head_dim)`, `position` is uint32, that of the first token. `window` is the
/// number of positions visible from a token, `cap` the soft cap of scores.
///
/// # Errors
/// `ERR_BACKEND` if the driver refuses a launch.
///
/// # Panics
/// If the heads are not supported, or `out` is to be quantised although that is impossible
/// ([`Splits::quantize`]).
#[expect(clippy::too_many_arguments, reason = "an equation of as many operands")]
pub fn attend(
    stream: &Stream,
    shape: &HeadShape,
    n: usize,
    q: Part<'_>,
    cache: &Cache<'_>,
    position: Part<'_>,
    window: Option<usize>,
    cap: Option<f32>,
    splits: &Splits<'_>,
    out: Operand<'_>,
) -> Result<()> {
    const ROWS: [(usize, Kernel); 3] = [
        (1, Kernel::named("attend_r1")),
        (4, Kernel::named("attend_r4")),
        (8, Kernel::named("attend_r8")),
    ];
    const COMBINE: Kernel = Kernel::named("combine_parts");
    const QUANTIZE: Kernel = Kernel::named("combine_parts_quantize");
    assert!(shape.supported(), "{shape:?}");
    assert!((1..=Splits::MOST).contains(&splits.count));
    if n == 0 {
        return Ok(());
    }
    let all = n * shape.heads * shape.head_dim;
    let (keys, cached) = cache.addresses(shape);
    let scratch = splits.scratch;
    let (parts, ends) = match splits.count {
        1 => (0, 0),
        splits => {
            let mixed = scratch.part(0, all * splits * 4);
            let ends = scratch.part(mixed.bytes(), n * shape.heads * splits * 8);
            (mixed.address(), ends.address())
        }
    };
    let (floats, quantized) = addresses(&out, n, shape.heads * shape.head_dim);
    let combine = match out {
        Operand::Floats(_) => COMBINE,
        Operand::Quantized(_) => {
            assert!(splits.quantize(shape, &quantized.columns));
            QUANTIZE
        }
    };
    let args = AttentionArgs {
        q: values(q, all),
        keys,
        values: cached,
        position: values(position, 1),
        out: floats,
        parts,
        ends,
        quantized,
        heads: count(shape.heads),
        kv_heads: count(shape.kv_heads),
        head_dim: count(shape.head_dim),
        slots: count(cache.slots),
        // A window that does not fit in 32 bits covers everything.
        window: window.map_or(0, |w| u32::try_from(w).unwrap_or(0)),
        n: count(n),
        splits: count(splits.count),
        half_cache: cache.half.into(),
        cap: cap.unwrap_or(0.0),
        reserved: 0,
    };
    let rows = n * shape.group();
    let r = rows_of_block(rows);
    let kernel = ROWS.iter().find(|(rows, _)| *rows == r).expect("1, 4 or 8");
    let quads = shape.head_dim.div_ceil(4);
    let shared = 16 * (r * quads + 32 * (quads | 1)) + 4 * 33 * r;
    let blocks = grid(rows.div_ceil(r), shape.kv_heads * splits.count, 256, shared);
    // SAFETY: as in `place_heads`; the second kernel reads what the first one, before it on the
    // stream, has written.
    unsafe {
        stream.launch(kernel.1, blocks, &args)?;
        if splits.count > 1 {
            stream.launch(combine, grid(n * shape.heads, 1, 128, 0), &args)?;
        }
    }
    Ok(())
}
