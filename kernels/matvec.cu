// y = W x for few vectors: every weight byte is read once, by one 16-byte load of one lane, and serves V vectors.
//
// A block is 8 warps. `split` of them share the columns of R rows; the others have the next R rows:
//
//       pieces of a row:   0..31    32..63   64..95   96..127  128..    one piece a lane: 32 lanes read 512 bytes (8 bits: 1024)
//       split 2, rows 0..R  warp 0   warp 1   warp 0   warp 1   warp 0
//       rows R..2R          warp 2   warp 3   warp 2   …
//
// Bytes: R * 16 in flight a lane; a piece of x serves R rows, so that the L1 cache gives R times less than it would.
// Operations a slice and row (int8): 8 quads, each a shift, a mask and V dot products of four; then V times one conversion and
// two multiply-adds. At 4.3 TB/s that stays under the issue rate of an H100 for V <= 4; beyond, matmul.cu has tensor cores.
// Sums: a lane adds its slices in order, a warp adds its lanes as a tree, a block adds its warps in order.
#include "weights.cuh"

constexpr uint32_t WARPS = 8;

// Which rows, vectors and pieces a warp has.
struct Share {
    uint32_t lane, warp, part, split;
    size_t row, vector; // the first of R and of V

    template <uint32_t R, uint32_t V> static DEVICE Share of(const Chosen &c) {
        Share s;
        s.lane = threadIdx.x % WARP;
        s.warp = threadIdx.x / WARP;
        s.split = c.matrix.split;
        s.part = s.warp % s.split;
        s.row = (size_t(c.block) * (WARPS / s.split) + s.warp / s.split) * R;
        s.vector = size_t(blockIdx.y) * V;
        return s;
    }
};

// Adds what the lanes of each warp hold, and leaves it in shared memory: (WARPS, R, V), once all have come here.
template <uint32_t R, uint32_t V> DEVICE void collect(const Share &s, const float (&sums)[R][V]) {
#pragma unroll
    for (uint32_t r = 0; r < R; r++)
#pragma unroll
        for (uint32_t v = 0; v < V; v++) {
            const float sum = warp_sum(sums[r][v]);
            if (s.lane == 0)
                shared_floats()[(s.warp * R + r) * V + v] = sum;
        }
    block_sync();
}

// Adds what the lanes and the warps of a share hold, and writes y.
template <uint32_t R, uint32_t V> DEVICE void finish(const MatmulArgs &a, const Matrix &m, const Share &s, const float (&sums)[R][V]) {
    collect<R, V>(s, sums);
    if (s.part != 0 || s.lane >= R * V)
        return;
    float sum = 0.0f;
    for (uint32_t part = 0; part < s.split; part++)
        sum += shared_floats()[(s.warp + part) * R * V + s.lane];
    const size_t row = s.row + s.lane / V, vector = s.vector + s.lane % V;
    if (row < m.rows && vector < a.n)
        out<float>(m.y)[vector * m.rows + row] = sum;
}

// int8 activations: exact in integers inside a slice.
template <int BITS, uint32_t R, uint32_t V> DEVICE void matvec_i8(const MatmulArgs &a) {
    const Chosen c = chosen(a);
    const Matrix &m = c.matrix;
    const Share s = Share::of<R, V>(c);
    const uint32_t slices = a.columns.slices, pieces = slices / Piece<BITS>::SLICES;
    float sums[R][V] = {};
#pragma unroll 1
    for (uint32_t p = s.part * WARP + s.lane; p < pieces; p += WARP * s.split) {
        Piece<BITS> piece[R];
#pragma unroll
        for (uint32_t r = 0; r < R; r++)
            piece[r].load(in<uint32_t>(m.codes) + least(s.row + r, m.rows - 1) * slices * BITS, p);
#pragma unroll 1
        for (uint32_t i = 0; i < Piece<BITS>::SLICES; i++) {
            const uint32_t slice = p * Piece<BITS>::SLICES + i, group = group_of(a.columns, slice);
            float scale[R];
            int32_t zero[R];
#pragma unroll
            for (uint32_t r = 0; r < R; r++) {
                const size_t row = least(s.row + r, m.rows - 1);
                scale[r] = scale_of(m, a.columns, row, group);
                zero[r] = zero_of<BITS>(m, a.columns, row, group);
            }
#pragma unroll
            for (uint32_t v = 0; v < V; v++) {
                const size_t at = least(s.vector + v, a.n - 1) * slices + slice;
                const Words4 *x = in<Words4>(a.x) + at * 2;
                const Words4 low = x[0], high = x[1];
                const float xscale = in<float>(a.xscales)[at];
                const int32_t xsum = in<int32_t>(a.xsums)[at];
#pragma unroll
                for (uint32_t r = 0; r < R; r++) {
                    int32_t dot = 0;
#pragma unroll
                    for (uint32_t q = 0; q < 8; q++)
                        dot = dot4(quad_of<BITS>(piece[r].w, q), q < 4 ? low.w[q] : high.w[q - 4], dot);
                    sums[r][v] += static_cast<float>(centred<BITS>(dot, zero[r], xsum)) * (scale[r] * xscale);
                }
            }
#pragma unroll
            for (uint32_t r = 0; r < R; r++)
                piece[r].advance();
        }
    }
    finish<R, V>(a, m, s, sums);
}

// What levels are counted in: as bits, the float whose last place is that unit.
struct Unit {
    uint32_t base;
    float size, back; // back * size = 1
};
constexpr float TWO_TO_32 = 4294967296.0f;
constexpr Unit ONE = {0x4b000000u, 1.0f, 1.0f};                    // 2^23
constexpr Unit SMALL = {0x3b000000u, 1.0f / TWO_TO_32, TWO_TO_32}; // 2^-9

// What a lane adds up of float32 activations: sums of 32 products, compensated across slices.
template <int BITS, uint32_t R, uint32_t V> 
DEVICE void sums_f32(const MatmulArgs &a, const Matrix &m, const Share &s, Unit unit, float (&sums)[R][V]) {
    const uint32_t slices = a.columns.slices, pieces = slices / Piece<BITS>::SLICES;
    float lost[R][V] = {};
#pragma unroll
    for (uint32_t r = 0; r < R; r++)
#pragma unroll
        for (uint32_t v = 0; v < V; v++)
            sums[r][v] = 0.0f;
#pragma unroll 1
    for (uint32_t p = s.part * WARP + s.lane; p < pieces; p += WARP * s.split) {
        Piece<BITS> piece[R];
#pragma unroll
        for (uint32_t r = 0; r < R; r++)
            piece[r].load(in<uint32_t>(m.codes) + least(s.row + r, m.rows - 1) * slices * BITS, p);
#pragma unroll 1
        for (uint32_t i = 0; i < Piece<BITS>::SLICES; i++) {
            const uint32_t slice = p * Piece<BITS>::SLICES + i, group = group_of(a.columns, slice);
            float scale[R], bias[R], dot[R][V] = {};
#pragma unroll
            for (uint32_t r = 0; r < R; r++) {
                const size_t row = least(s.row + r, m.rows - 1);
                scale[r] = scale_of(m, a.columns, row, group);
                bias[r] = float_of(unit.base) + static_cast<float>(zero_of<BITS>(m, a.columns, row, group)) * unit.size;
            }
#pragma unroll
            for (uint32_t q = 0; q < 8; q++) {
                float w[R][4];
#pragma unroll
                for (uint32_t r = 0; r < R; r++) {
                    uint32_t quad = quad_of<BITS>(piece[r].w, q);
                    if (BITS == 1)
                        quad *= 2; // 0 and 2, less 1
#pragma unroll
                    for (uint32_t b = 0; b < 4; b++)
                        w[r][b] = byte_less(quad, b, unit.base, bias[r]);
                }
#pragma unroll
                for (uint32_t v = 0; v < V; v++) {
                    const size_t at = least(s.vector + v, a.n - 1) * slices + slice;
                    const Floats4 x = in<Floats4>(a.x)[at * 8 + q];
#pragma unroll
                    for (uint32_t r = 0; r < R; r++)
#pragma unroll
                        for (uint32_t b = 0; b < 4; b++)
                            dot[r][v] += w[r][b] * x.f[b];
                }
            }
#pragma unroll
            for (uint32_t r = 0; r < R; r++)
#pragma unroll
                for (uint32_t v = 0; v < V; v++) {
                    const float term = dot[r][v] * scale[r] - lost[r][v];
                    const float sum = sums[r][v] + term;
                    const float error = (sum - sums[r][v]) - term;
                    lost[r][v] = finite(error) ? error : 0.0f; // an infinite sum has lost nothing
                    sums[r][v] = sum;
                }
#pragma unroll
            for (uint32_t r = 0; r < R; r++)
                piece[r].advance();
        }
    }
}

// float32 activations. A chain of 32 products with levels leaves the range of float32 where an activation is beyond 2^115, though
// the products with the weights may not: the sum is then not finite, and it is taken once more with levels 2^32 times smaller, by
// the whole block. Powers of two round nothing, and where all is well this costs a look at the sums.
template <int BITS, uint32_t R, uint32_t V> DEVICE void matvec_f32(const MatmulArgs &a) {
    static_assert(WARPS * R * V <= WARP, "a lane has one output of the block at most");
    const Chosen c = chosen(a);
    const Matrix &m = c.matrix;
    const Share s = Share::of<R, V>(c);
    const uint32_t shares = WARPS / s.split, mine = s.lane / (R * V), element = s.lane % (R * V);
    // Every warp knows all outputs of the block, so that all agree; the first one writes them.
    const size_t row = (size_t(c.block) * shares + mine) * R + element / V, vector = s.vector + element % V;
    const bool writes = s.warp == 0 && mine < shares && row < m.rows && vector < a.n;
    bool wanted = mine < shares;
    Unit unit = ONE;
#pragma unroll 1
    for (;;) {
        float sums[R][V];
        sums_f32<BITS, R, V>(a, m, s, unit, sums);
        collect<R, V>(s, sums);
        float sum = 0.0f;
        for (uint32_t part = 0; mine < shares && part < s.split; part++)
            sum += shared_floats()[(mine * s.split + part) * R * V + element];
        if (writes && wanted)
            out<float>(m.y)[vector * m.rows + row] = sum * unit.back;
        wanted = wanted && !finite(sum);
        if (unit.base == SMALL.base || lanes_where(wanted) == 0)
            return;
        unit = SMALL;
        block_sync();
    }
}

// Signs against signs: the width of a slice less twice the bits that differ. Padding is 0 on both sides, and never differs.
template <uint32_t R, uint32_t V> DEVICE void matvec_sign(const MatmulArgs &a) {
    const Chosen c = chosen(a);
    const Matrix &m = c.matrix;
    const Share s = Share::of<R, V>(c);
    const uint32_t slices = a.columns.slices, pieces = slices / 4;
    float sums[R][V] = {};
#pragma unroll 1
    for (uint32_t p = s.part * WARP + s.lane; p < pieces; p += WARP * s.split) {
        Piece<1> piece[R];
#pragma unroll
        for (uint32_t r = 0; r < R; r++)
            piece[r].load(in<uint32_t>(m.codes) + least(s.row + r, m.rows - 1) * slices, p);
        Piece<1> x[V];
#pragma unroll
        for (uint32_t v = 0; v < V; v++)
            x[v].load(in<uint32_t>(a.x) + least(s.vector + v, a.n - 1) * slices, p);
#pragma unroll 1
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t slice = p * 4 + i, group = group_of(a.columns, slice);
            const int32_t width = static_cast<int32_t>(width_of(a.columns, slice));
#pragma unroll
            for (uint32_t r = 0; r < R; r++) {
                const float scale = scale_of(m, a.columns, least(s.row + r, m.rows - 1), group);
#pragma unroll
                for (uint32_t v = 0; v < V; v++) {
                    const int32_t differ = static_cast<int32_t>(ones(piece[r].w[0] ^ x[v].w[0]));
                    sums[r][v] += static_cast<float>(width - 2 * differ) * scale;
                }
                piece[r].advance();
            }
#pragma unroll
            for (uint32_t v = 0; v < V; v++)
                x[v].advance();
        }
    }
    finish<R, V>(a, m, s, sums);
}

// One vector: three blocks a multiprocessor, where that spills nothing on any architecture. With several matrices to choose from
// ptxas would take a fifth more registers than it needs, and leave room for two.
#define OF_WIDTH(BITS, BLOCKS)                                                                                                   \
    KERNEL_WITH(256, BLOCKS, matmul_i8_b##BITS##_n1, MatmulArgs) { matvec_i8<BITS, 4, 1>(args); }                                \
    KERNEL(256, matmul_i8_b##BITS##_n4, MatmulArgs) { matvec_i8<BITS, 2, 4>(args); }                                             \
    KERNEL_WITH(256, BLOCKS, matmul_f32_b##BITS##_n1, MatmulArgs) { matvec_f32<BITS, 2, 1>(args); }                              \
    KERNEL(256, matmul_f32_b##BITS##_n4, MatmulArgs) { matvec_f32<BITS, 1, 4>(args); }
OF_WIDTH(1, 3)
OF_WIDTH(2, 3)
OF_WIDTH(4, 3)
OF_WIDTH(8, 1)
#undef OF_WIDTH
KERNEL_WITH(256, 3, matmul_sign_n1, MatmulArgs) { matvec_sign<4, 1>(args); }
KERNEL(256, matmul_sign_n4, MatmulArgs) { matvec_sign<2, 4>(args); }
