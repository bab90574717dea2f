// What a transformer computes between its products; TRANSFORMER.md has the shapes and the launches.
//
// Everything here is small beside the weights: at one token a launch costs more than what it moves, so a kernel does all that
// can be done between two products. What changes from token to token, the id and the position, is read from device memory:
// the launches of a step then have the same arguments for every token, and are captured once.
#include "quantize.cuh"

// A row of the embedding for each token, dequantised: a thread a column.
KERNEL(128, embed_rows, EmbedArgs) {
    const Columns &c = args.columns;
    const uint32_t column = blockIdx.x * 128 + threadIdx.x;
    if (column >= c.cols)
        return;
    const uint32_t group = column / c.group, within = column - group * c.group;
    const size_t slice = size_t(group) * c.per_group + within / SLICE;
    const uint32_t a_word = 32 / args.bits, place = within % SLICE, digit = place % a_word;
    const uint32_t shift = 8 * (digit % 4) + args.bits * (digit / 4);
#pragma unroll 1
    for (uint32_t t = blockIdx.y; t < args.n; t += gridDim.y) {
        const size_t row = least(in<uint32_t>(args.ids)[t], args.rows - 1), at = row * c.groups + group;
        const uint32_t word = in<uint32_t>(args.codes)[(row * c.slices + slice) * args.bits + place / a_word];
        const int32_t code = static_cast<int32_t>(word >> shift & ((1u << args.bits) - 1));
        const int32_t zero = args.zeros ? in<uint8_t>(args.zeros)[at] : 1 << (args.bits - 1);
        const float scale = args.half_scales ? from_half(in<uint16_t>(args.scales)[at]) : in<float>(args.scales)[at];
        const int32_t level = args.bits == 1 ? 2 * code - 1 : code - zero;
        out<float>(args.out)[size_t(t) * c.cols + column] = static_cast<float>(level) * scale * args.factor;
    }
}

// The cosine and the sine of each pair at each position, from float64 angles. A thread a pair.
KERNEL(128, rotary_angles, AngleArgs) {
    const size_t i = size_t(blockIdx.x) * 128 + threadIdx.x;
    if (i >= size_t(args.n) * args.pairs)
        return;
    const uint32_t position = *in<uint32_t>(args.position) + static_cast<uint32_t>(i / args.pairs);
    double cosine, sine;
    cosine_sine(static_cast<double>(position) * in<double>(args.frequencies)[i % args.pairs], cosine, sine);
    out<Floats2>(args.out)[i] = {{static_cast<float>(args.amplitude * cosine), static_cast<float>(args.amplitude * sine)}};
}

constexpr uint32_t NORM_WARPS = 8;

// The sum over a block, the same in every thread: a warp's lanes as a tree, then the warps in order. Each use in a kernel has
// its own `turn`: no barrier stands between the readers of one and the writers of the next.
DEVICE float block_sum(float v, uint32_t turn) {
    float *shared = shared_floats() + turn * NORM_WARPS; // (turns, NORM_WARPS)
    const float sum = warp_sum(v);
    if (threadIdx.x % WARP == 0)
        shared[threadIdx.x / WARP] = sum;
    block_sync();
    float all = 0.0f;
    for (uint32_t w = 0; w < NORM_WARPS; w++)
        all += shared[w];
    return all;
}

DEVICE float norm_factor(float squares, const NormArgs &a) {
    return 1.0f / sqrtf(squares / static_cast<float>(a.width) + a.eps);
}

// sum = x + [norm](y + bias), out = norm(sum): the residual stream past a sub-layer and the input of the next one, quantised where
// that is how the products take it. A block a token. Rows are read again rather than kept: they lie in the L1 cache, and no width is too large.
KERNEL(256, add_norm, NormArgs) {
    const size_t row = size_t(blockIdx.x) * args.width;
    const float *x = in<float>(args.x) + row, *y = in<float>(args.y) + row;
    const float *bias = in<float>(args.bias), *inner = in<float>(args.inner), *outer = in<float>(args.outer);
    const auto added = [&](uint32_t i) { return bias ? y[i] + bias[i] : y[i]; };
    float factor = 1.0f;
    if (args.y && inner) {
        float squares = 0.0f;
#pragma unroll 2
        for (uint32_t i = threadIdx.x; i < args.width; i += 256)
            squares += added(i) * added(i);
        factor = norm_factor(block_sum(squares, 0), args);
    }
    float squares = 0.0f;
#pragma unroll 2
    for (uint32_t i = threadIdx.x; i < args.width; i += 256) {
        float v = x[i];
        if (args.y) {
            v += inner ? added(i) * factor * inner[i] : added(i);
            out<float>(args.sum)[row + i] = v;
        }
        squares += v * v;
    }
    if (!outer)
        return;
    factor = norm_factor(block_sum(squares, 1), args);
    // What was written before the barrier of the sum over the block.
    const float *sum = args.y ? in<float>(args.sum) + row : x;
    const auto normed = [&](uint32_t i) { return sum[i] * factor * outer[i]; };
    if (args.out) {
#pragma unroll 2
        for (uint32_t i = threadIdx.x; i < args.width; i += 256)
            out<float>(args.out)[row + i] = normed(i);
    }
    if (args.quantized.codes) {
        const Quantized &to = args.quantized;
#pragma unroll 1
        for (uint32_t first = threadIdx.x / WARP * to.block; first < to.columns.slices; first += NORM_WARPS * to.block)
            quantize(to, blockIdx.x, first, normed);
    }
}

// One number of the cache. Float16 is kept finite: a score with an infinite key would be lost.
DEVICE void keep(uint64_t cache, size_t at, float v, uint32_t half) {
    if (half) {
        const float inside = fminf(fmaxf(v, -65504.0f), 65504.0f);
        out<uint16_t>(cache)[at] = to_half(v == v ? inside : v);
    } else {
        out<float>(cache)[at] = v;
    }
}

// Queries and keys: bias, norm of the head, rotary embedding, scale; keys and values into the cache. A warp a head.
KERNEL(128, place_heads, HeadArgs) {
    constexpr uint32_t MOST = 4; // pairs a lane
    const uint32_t lane = threadIdx.x % WARP, t = blockIdx.y;
    uint32_t head = blockIdx.x * 4 + threadIdx.x / WARP;
    if (head >= args.heads + 2 * args.kv_heads)
        return;
    const bool query = head < args.heads, value = head >= args.heads + args.kv_heads;
    head -= query ? 0 : value ? args.heads + args.kv_heads : args.heads;
    const uint32_t count = query ? args.heads : args.kv_heads, pairs = args.head_dim / 2;
    const float *from = in<float>(query ? args.q : value ? args.v : args.k) + (size_t(t) * count + head) * args.head_dim;
    const float *bias = in<float>(query ? args.q_bias : value ? args.v_bias : args.k_bias);
    const float *weights = in<float>(query ? args.q_norm : value ? 0 : args.k_norm);

    // The elements of a lane's pairs.
    const auto first = [&](uint32_t i) { return args.neighbours ? 2 * i : i; };
    const auto second = [&](uint32_t i) { return args.neighbours ? 2 * i + 1 : i + pairs; };
    float a[MOST], b[MOST], squares = 0.0f;
#pragma unroll
    for (uint32_t j = 0; j < MOST; j++) {
        const uint32_t i = lane + WARP * j;
        a[j] = b[j] = 0.0f;
        if (i >= pairs)
            continue;
        a[j] = from[first(i)];
        b[j] = from[second(i)];
        if (bias) {
            a[j] += bias[head * args.head_dim + first(i)];
            b[j] += bias[head * args.head_dim + second(i)];
        }
        squares += a[j] * a[j] + b[j] * b[j];
    }
    const float factor = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(args.head_dim) + args.eps);

    const uint32_t padded = (args.head_dim + 3) / 4 * 4;
    const uint32_t slot = (*in<uint32_t>(args.position) + t) % args.slots;
    const size_t line = (size_t(head) * args.slots + slot) * padded;
#pragma unroll
    for (uint32_t j = 0; j < MOST; j++) {
        const uint32_t i = lane + WARP * j;
        if (i >= pairs)
            continue;
        if (weights) {
            a[j] *= factor * weights[first(i)];
            b[j] *= factor * weights[second(i)];
        }
        if (!value) {
            const Floats2 angle = in<Floats2>(args.angles)[size_t(t) * pairs + i];
            const float x = a[j], y = b[j];
            a[j] = x * angle.f[0] - y * angle.f[1];
            b[j] = y * angle.f[0] + x * angle.f[1];
        }
        if (query) {
            float *to = out<float>(args.out) + (size_t(t) * args.heads + head) * args.head_dim;
            to[first(i)] = a[j] * args.query_scale;
            to[second(i)] = b[j] * args.query_scale;
        } else {
            const uint64_t cache = value ? args.values : args.keys;
            keep(cache, line + first(i), a[j], args.half_cache);
            keep(cache, line + second(i), b[j], args.half_cache);
        }
    }
    if (!query && lane < padded - args.head_dim)
        keep(value ? args.values : args.keys, line + args.head_dim + lane, 0.0f, args.half_cache);
}

DEVICE float sigmoid(float v) { return 1.0f / (1.0f + expf(-v)); }

// An element of act(gate) * up.
DEVICE float gated(const GateArgs &a, uint32_t t, uint32_t i) {
    const size_t at = size_t(t) * a.width + i;
    const float x = in<float>(a.gate)[at] + (a.gate_bias ? in<float>(a.gate_bias)[i] : 0.0f);
    const float up = in<float>(a.up)[at] + (a.up_bias ? in<float>(a.up_bias)[i] : 0.0f);
    // 0.5 (1 + tanh(u)) = sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3).
    const float inner = a.gelu ? x * (1.595769f + 1.595769f * 0.044715f * x * x) : x;
    return x * sigmoid(inner) * up;
}

// As floats. A thread an element.
KERNEL(256, gate_up, GateArgs) {
    const uint32_t i = blockIdx.x * 256 + threadIdx.x;
    if (i >= args.width)
        return;
#pragma unroll 1
    for (uint32_t t = blockIdx.y; t < args.n; t += gridDim.y)
        out<float>(args.out)[size_t(t) * args.width + i] = gated(args, t, i);
}

// Quantised. A warp the slices under one scale.
KERNEL(256, gate_up_quantize, GateArgs) {
    const Quantized &to = args.quantized;
    const uint32_t first = (blockIdx.x * 8 + threadIdx.x / WARP) * to.block;
    if (first >= to.columns.slices)
        return;
#pragma unroll 1
    for (uint32_t t = blockIdx.y; t < args.n; t += gridDim.y)
        quantize(to, t, first, [&](uint32_t i) { return gated(args, t, i); });
}

// logits = cap * tanh(logits / cap).
KERNEL(256, softcap, LogitArgs) {
#pragma unroll 2
    for (size_t i = size_t(blockIdx.x) * 256 + threadIdx.x; i < args.count; i += size_t(gridDim.x) * 256) {
        float *v = out<float>(args.logits) + i;
        *v = args.cap * tanhf(*v / args.cap);
    }
}

// A logit's rank among all floats (IEEE totalOrder, as the sampler of the host has it), and its place.
struct Candidate {
    int32_t rank;
    int32_t place;
};

DEVICE Candidate better(Candidate a, Candidate b) {
    return b.rank > a.rank || (b.rank == a.rank && b.place < a.place) ? b : a;
}

DEVICE Candidate warp_best(Candidate c) {
    for (uint32_t lanes = WARP / 2; lanes > 0; lanes /= 2)
        c = better(c, {xor_lane(c.rank, lanes), xor_lane(c.place, lanes)});
    return c;
}

constexpr Candidate NOBODY = {-2147483647 - 1, 2147483647};

// Above that of every finite number.
constexpr int32_t NOT_FINITE = 2147483647;

// The greatest logit of a block's share, of equals the one that comes first; one that is not finite is greater than any other.
KERNEL(256, greatest, LogitArgs) {
    Candidate best = NOBODY;
#pragma unroll 2
    for (size_t i = size_t(blockIdx.x) * 256 + threadIdx.x; i < args.count; i += size_t(gridDim.x) * 256) {
        const int32_t bits = static_cast<int32_t>(bits_of(in<float>(args.logits)[i]));
        const int32_t rank = (bits & 0x7f800000) == 0x7f800000 ? NOT_FINITE : bits < 0 ? bits ^ 0x7fffffff : bits;
        best = better(best, {rank, static_cast<int32_t>(i)});
    }
    best = warp_best(best);
    Candidate *shared = reinterpret_cast<Candidate *>(shared_floats()); // (8)
    if (threadIdx.x % WARP == 0)
        shared[threadIdx.x / WARP] = best;
    block_sync();
    if (threadIdx.x != 0)
        return;
    for (uint32_t w = 1; w < 8; w++)
        best = better(best, shared[w]);
    out<Candidate>(args.parts)[blockIdx.x] = best;
}

// The greatest of all becomes the next token, and the position moves on. The host is told of no token where a logit is not finite; the
// id stays one of the vocabulary.
KERNEL(32, advance, LogitArgs) {
    Candidate best = NOBODY;
    for (uint32_t i = threadIdx.x; i < args.blocks; i += WARP)
        best = better(best, in<Candidate>(args.parts)[i]);
    best = warp_best(best);
    if (threadIdx.x != 0)
        return;
    *out<uint32_t>(args.token) = best.rank == NOT_FINITE ? 0xffffffffu : static_cast<uint32_t>(best.place);
    *out<uint32_t>(args.id) = static_cast<uint32_t>(best.place);
    *out<uint32_t>(args.position) += 1;
}
