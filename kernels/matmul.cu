// y = x Wᵀ for many vectors with int8 activations, on the tensor cores: weights are the 16 rows of a product, vectors its 8 columns.
//
// A block is 4 warps, a warp 16 rows × V vectors. It walks the slices; a slice is exactly the depth (32) of one instruction.
// Which of the 32 columns an instruction takes as its k-th does not matter so long as weights and activations agree. So lane
// t = lane % 4 takes columns 8t..8t+7 of the slice, the first four as k = 4t.. and the others as k = 16 + 4t..:
//
//       columns of a slice:   0..7   8..15   16..23   24..31
//       lane t:                 0      1        2        3       8 bytes of x in one load; 1 word of codes at 4 bits
//
// and the packed codes become fragments with one shift and one mask each, for every width, without a shuffle.
//
// Bytes: weights are read once for V vectors; x comes from the L2 cache rows / 64 times. Operations a slice: V / 8
// instructions, and four conversions and multiply-adds a lane after each, since every slice may have a scale of its own.
#include "weights.cuh"

// The quads 2t and 2t + 1 of a slice: 8 columns.
template <int BITS> DEVICE Words2 fragment(const uint32_t *slice, uint32_t t) {
    constexpr uint32_t MASK = 0x01010101u * ((1u << BITS) - 1);
    if (BITS == 8)
        return reinterpret_cast<const Words2 *>(slice)[t];
    const uint32_t word = slice[t * BITS / 4] >> 2 * t * BITS % 8;
    return {{word & MASK, word >> BITS % 8 & MASK}};
}

template <int BITS, uint32_t V> DEVICE void matmul_mma(const MatmulArgs &a) {
    constexpr uint32_t TILES = V / 8;
    const uint32_t lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const Chosen c = chosen(a);
    const Matrix &m = c.matrix;
    const size_t first_row = size_t(c.block) * 64 + threadIdx.x / WARP * 16 + g;
    const size_t first_vector = size_t(blockIdx.y) * V;
    const uint32_t slices = a.columns.slices;
    const size_t row[2] = {least(first_row, m.rows - 1), least(first_row + 8, m.rows - 1)};

    float sums[TILES][4] = {};
#pragma unroll 1
    for (uint32_t slice = 0; slice < slices; slice++) {
        const uint32_t group = group_of(a.columns, slice);
        uint32_t w[4];
        float scale[2];
        int32_t zero[2];
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            const Words2 f = fragment<BITS>(in<uint32_t>(m.codes) + (row[h] * slices + slice) * BITS, t);
            w[h] = f.w[0];
            w[h + 2] = f.w[1];
            scale[h] = scale_of(m, a.columns, row[h], group);
            zero[h] = zero_of<BITS>(m, a.columns, row[h], group);
        }
#pragma unroll
        for (uint32_t tile = 0; tile < TILES; tile++) {
            const size_t vector = first_vector + tile * 8;
            const Words2 x = in<Words2>(a.x)[(least(vector + g, a.n - 1) * slices + slice) * 4 + t];
            int32_t dot[4] = {};
            mma_u8s8(dot, w, x.w);
#pragma unroll
            for (uint32_t j = 0; j < 2; j++) {
                const size_t at = least(vector + 2 * t + j, a.n - 1) * slices + slice;
                const float xscale = in<float>(a.xscales)[at];
                const int32_t xsum = in<int32_t>(a.xsums)[at];
#pragma unroll
                for (uint32_t h = 0; h < 2; h++)
                    sums[tile][2 * h + j] +=
                        static_cast<float>(centred<BITS>(dot[2 * h + j], zero[h], xsum)) * (scale[h] * xscale);
            }
        }
    }
#pragma unroll
    for (uint32_t tile = 0; tile < TILES; tile++)
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const size_t y_row = first_row + i / 2 * 8, vector = first_vector + tile * 8 + 2 * t + i % 2;
            if (y_row < m.rows && vector < a.n)
                out<float>(m.y)[vector * m.rows + y_row] = sums[tile][i];
        }
}

#define OF_WIDTH(BITS)                                                                                                           \
    KERNEL(128, matmul_mma_b##BITS##_n8, MatmulArgs) { matmul_mma<BITS, 8>(args); }                                              \
    KERNEL(128, matmul_mma_b##BITS##_n64, MatmulArgs) { matmul_mma<BITS, 64>(args); }
OF_WIDTH(1)
OF_WIDTH(2)
OF_WIDTH(4)
OF_WIDTH(8)
#undef OF_WIDTH
