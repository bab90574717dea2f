// Causal attention of n queries over the cache: grouped queries, sliding windows, soft caps.
//
// The queries that share a key/value head, of all tokens, are its rows: row r is token r / group, query head r % group of those. A
// block takes R rows and walks the positions that any of them sees, 32 at a time; keys, then values, of a step pass through
// shared memory:
//
//       scores   a warp is a row, a lane a position, so that no sum goes across lanes
//       mix      a thread is an element of the head, for all R rows
//
// With a softmax on the fly: the largest score so far, and what was summed under a smaller one scaled down when it grows.
//
// One token alone has few rows: `splits` blocks share their positions, in runs of whole steps, and combine_parts puts the parts
// together in order. Bytes: keys and values are read once for R rows. Steps begin at multiples of 32 positions, and one that a row
// sees nothing of leaves it as it is: without splits a row gets the same bits whatever rows are beside it, and whatever R.
#include "quantize.cuh"

constexpr uint32_t STEP = 32;      // positions: one a lane
constexpr uint32_t THREADS = 256;  // of a block: at most 8 rows, heads of at most 256 elements

DEVICE float minus_infinity() { return float_of(0xff800000u); }

// Four numbers of the cache, widened, `at` of them from its beginning.
DEVICE Floats4 four_of(const AttentionArgs &a, uint64_t cache, size_t at) {
    if (!a.half_cache)
        return in<Floats4>(cache)[at];
    const Halves4 h = in<Halves4>(cache)[at];
    return {{from_half(h.h[0]), from_half(h.h[1]), from_half(h.h[2]), from_half(h.h[3])}};
}

// The positions that a token sees begin here; they end with itself.
DEVICE uint32_t least_seen(const AttentionArgs &a, uint32_t position) {
    return a.window != 0 && position + 1 > a.window ? position + 1 - a.window : 0;
}

// Shared memory of a block. A line of the tile has an odd number of fours: lanes that read the same element of 32 lines then
// meet in no bank.
struct Shared {
    uint32_t quads, stride; // fours of a head, and from line to line of the tile
    Floats4 *queries;       // (R, quads)
    Floats4 *tile;          // (STEP, stride)
    float *chances;         // (R, STEP)
    float *factors;         // (R)

    template <uint32_t R> static DEVICE Shared of(const AttentionArgs &a) {
        Shared s;
        s.quads = (a.head_dim + 3) / 4;
        s.stride = s.quads | 1;
        s.queries = reinterpret_cast<Floats4 *>(shared_floats());
        s.tile = s.queries + R * s.quads;
        s.chances = reinterpret_cast<float *>(s.tile + STEP * s.stride);
        s.factors = s.chances + R * STEP;
        return s;
    }

    // The lines of positions first..first + STEP; zeros from `end` on, where nothing may have been written yet.
    DEVICE void load(const AttentionArgs &a, uint64_t cache, uint32_t first, uint32_t end) const {
        const size_t before = size_t(blockIdx.y % a.kv_heads) * a.slots;
        uint32_t line = threadIdx.x / quads, quad = threadIdx.x % quads;
#pragma unroll 1
        while (line < STEP) {
            Floats4 four = {};
            if (first + line < end)
                four = four_of(a, cache, (before + (first + line) % a.slots) * quads + quad);
            tile[line * stride + quad] = four;
            line += THREADS / quads;
            quad += THREADS % quads;
            if (quad >= quads) {
                quad -= quads;
                line++;
            }
        }
    }
};

template <uint32_t R> DEVICE void attend(const AttentionArgs &a) {
    const Shared s = Shared::of<R>(a);
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const uint32_t head = blockIdx.y % a.kv_heads, split = blockIdx.y / a.kv_heads;
    const uint32_t group = a.heads / a.kv_heads, rows = a.n * group, first_row = blockIdx.x * R;
    const uint32_t here = *in<uint32_t>(a.position);
    // Where the row's head of a (n, heads, …) buffer is.
    const auto head_of = [&](uint32_t row) { return size_t(row / group) * a.heads + head * group + row % group; };

#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < R * s.quads * 4; i += THREADS) {
        const uint32_t row = first_row + i / (s.quads * 4), element = i % (s.quads * 4);
        const bool there = row < rows && element < a.head_dim;
        reinterpret_cast<float *>(s.queries)[i] = there ? in<float>(a.q)[head_of(row) * a.head_dim + element] : 0.0f;
    }

    // The positions that any of the rows sees, and the part of them that is this block's.
    const uint32_t last_row = first_row + R < rows ? first_row + R - 1 : rows - 1;
    const uint32_t start = least_seen(a, here + first_row / group) / STEP * STEP, end = here + last_row / group + 1;
    const uint32_t steps = (end - start + STEP - 1) / STEP, share = (steps + a.splits - 1) / a.splits;
    const uint32_t from = start + split * share * STEP;
    const uint32_t to = from + share * STEP < end ? from + share * STEP : end;

    // The positions that this warp's row sees; none, where there is no such row.
    const uint32_t row = first_row + warp, mine = here + row / group, least = least_seen(a, mine);
    const bool has_row = warp < R && row < rows;
    const bool has_element = threadIdx.x < a.head_dim;
    const float *const values = reinterpret_cast<const float *>(s.tile) + threadIdx.x;

    float top = minus_infinity(), sum = 0.0f, mixed[R] = {};
#pragma unroll 1
    for (uint32_t at = from; at < to; at += STEP) {
        s.load(a, a.keys, at, end);
        block_sync();
        if (warp < R) {
            float score = 0.0f;
#pragma unroll 4
            for (uint32_t quad = 0; quad < s.quads; quad++) {
                const Floats4 q = s.queries[warp * s.quads + quad], k = s.tile[lane * s.stride + quad];
                score += q.f[0] * k.f[0];
                score += q.f[1] * k.f[1];
                score += q.f[2] * k.f[2];
                score += q.f[3] * k.f[3];
            }
            if (a.cap > 0.0f)
                score = a.cap * tanhf(score / a.cap);
            const uint32_t position = at + lane;
            if (!has_row || position > mine || position < least)
                score = minus_infinity();
            const float now = fmaxf(top, warp_max(score));
            const float chance = now == minus_infinity() ? 0.0f : expf(score - now);
            const float factor = now == minus_infinity() ? 0.0f : expf(top - now);
            top = now;
            sum = sum * factor + warp_sum(chance);
            s.chances[warp * STEP + lane] = chance;
            if (lane == 0)
                s.factors[warp] = factor;
        }
        block_sync();
        s.load(a, a.values, at, end);
        block_sync();
        if (has_element) {
#pragma unroll
            for (uint32_t r = 0; r < R; r++)
                mixed[r] *= s.factors[r];
#pragma unroll 4
            for (uint32_t p = 0; p < STEP; p++) {
                const float v = values[p * s.stride * 4];
#pragma unroll
                for (uint32_t r = 0; r < R; r++)
                    mixed[r] += s.chances[r * STEP + p] * v;
            }
        }
        block_sync();
    }

    // What is in the factors now divides the row; with several splits that is left to who puts them together.
    if (lane == 0 && warp < R) {
        s.factors[warp] = 1.0f / sum;
        if (a.splits > 1 && has_row)
            out<Floats2>(a.ends)[head_of(row) * a.splits + split] = {{top, sum}};
    }
    block_sync();
    if (!has_element)
        return;
#pragma unroll
    for (uint32_t r = 0; r < R; r++) {
        if (first_row + r >= rows)
            break;
        const size_t at = head_of(first_row + r);
        if (a.splits == 1)
            out<float>(a.out)[at * a.head_dim + threadIdx.x] = mixed[r] * s.factors[r];
        else
            out<float>(a.parts)[(at * a.splits + split) * a.head_dim + threadIdx.x] = mixed[r];
    }
}

KERNEL(256, attend_r1, AttentionArgs) { attend<1>(args); }
KERNEL(256, attend_r4, AttentionArgs) { attend<4>(args); }
KERNEL(256, attend_r8, AttentionArgs) { attend<8>(args); }

// The parts of a head of a token put together, in their order: each counts by how far its largest score is below that of all.
struct Parts {
    const float *mixed; // (splits, head_dim)
    const Floats2 *ends; // (splits)
    uint32_t splits, head_dim;
    float top, sum;

    // `at`: of the head among those of all tokens.
    static DEVICE Parts of(const AttentionArgs &a, size_t at) {
        Parts p = {in<float>(a.parts) + at * a.splits * a.head_dim, in<Floats2>(a.ends) + at * a.splits, a.splits, a.head_dim,
                   minus_infinity(), 0.0f};
#pragma unroll 1
        for (uint32_t i = 0; i < p.splits; i++)
            p.top = fmaxf(p.top, p.ends[i].f[0]);
        // A part that saw nothing has a largest score of minus infinity, and counts nothing.
#pragma unroll 1
        for (uint32_t i = 0; i < p.splits; i++)
            p.sum += p.ends[i].f[1] * expf(p.ends[i].f[0] - p.top);
        return p;
    }

    DEVICE float together(uint32_t element) const {
        float all = 0.0f;
#pragma unroll 4
        for (uint32_t i = 0; i < splits; i++)
            all += mixed[size_t(i) * head_dim + element] * expf(ends[i].f[0] - top);
        return all * (1.0f / sum);
    }
};

// As floats. A block a head.
KERNEL(128, combine_parts, AttentionArgs) {
    const Parts parts = Parts::of(args, blockIdx.x);
#pragma unroll 1
    for (uint32_t element = threadIdx.x; element < args.head_dim; element += 128)
        out<float>(args.out)[size_t(blockIdx.x) * args.head_dim + element] = parts.together(element);
}

// Quantised, where no slices under one scale are of two heads. A block a head, a warp the slices under one scale; the last head has
// those behind all too, which are padding.
KERNEL(128, combine_parts_quantize, AttentionArgs) {
    const Quantized &to = args.quantized;
    const Parts parts = Parts::of(args, blockIdx.x);
    const uint32_t head = blockIdx.x % args.heads, before = head * args.head_dim;
    const uint32_t end = head + 1 == args.heads ? to.columns.slices : (before + args.head_dim) / SLICE;
#pragma unroll 1
    for (uint32_t first = before / SLICE + threadIdx.x / WARP * to.block; first < end; first += 4 * to.block)
        quantize(to, blockIdx.x / args.heads, first, [&](uint32_t column) { return parts.together(column - before); });
}
