// A weight matrix on the device, as README.md lays it out: where a slice lies, its codes, its scale and its zero point.
#ifndef APL_FFI_KERNELS_WEIGHTS_CUH
#define APL_FFI_KERNELS_WEIGHTS_CUH

#include "primitives.cuh"

// Columns of a slice.
constexpr uint32_t SLICE = 32;

// A lane's share of a row at a time: whole slices, at least 16 bytes.
template <int BITS> struct Piece {
    static constexpr uint32_t SLICES = BITS >= 4 ? 1 : 4 / BITS;
    static constexpr uint32_t WORDS = SLICES * BITS; // 4; 8 bits: 8
    uint32_t w[WORDS];

    DEVICE void load(const uint32_t *row, uint32_t piece) {
        const Words4 *at = reinterpret_cast<const Words4 *>(row + size_t(piece) * WORDS);
#pragma unroll
        for (uint32_t i = 0; i < WORDS / 4; i++) {
            const Words4 four = stream(at + i);
#pragma unroll
            for (uint32_t j = 0; j < 4; j++)
                w[4 * i + j] = four.w[j];
        }
    }

    // Makes the next slice the one at w[0..BITS]. Moving words lets the loop over slices be a loop: unrolled, with every index
    // a constant, the 1-bit kernels were four times the size.
    DEVICE void advance() {
#pragma unroll
        for (uint32_t i = 0; i + BITS < WORDS; i++)
            w[i] = w[i + BITS];
    }
};

// Codes 4q..4q+3 of a slice, a byte each; `slice` points at its BITS words.
template <int BITS> DEVICE uint32_t quad_of(const uint32_t *slice, uint32_t q) {
    constexpr uint32_t A_WORD = 8 / BITS;
    constexpr uint32_t MASK = 0x01010101u * ((1u << BITS) - 1);
    return slice[q / A_WORD] >> BITS * (q % A_WORD) & MASK;
}

DEVICE uint32_t group_of(const Columns &c, uint32_t slice) {
    const uint32_t g = c.per_group == 1 ? slice : slice / c.per_group;
    return g < c.groups ? g : c.groups - 1;
}

// Columns that a slice has: 32, or fewer at the end of a group.
DEVICE uint32_t width_of(const Columns &c, uint32_t slice) {
    const uint32_t g = group_of(c, slice);
    const uint32_t first = g * c.group + (slice - g * c.per_group) * SLICE;
    const uint32_t end = g + 1 == c.groups ? c.cols : (g + 1) * c.group;
    return first >= end ? 0 : end - first < SLICE ? end - first : SLICE;
}

// The first column of a slice, where its width is not 0.
DEVICE uint32_t first_of(const Columns &c, uint32_t slice) {
    const uint32_t g = group_of(c, slice);
    return g * c.group + (slice - g * c.per_group) * SLICE;
}

// The matrix that a block of the grid is for, and which of its blocks that is. A launch of several is all their launches in one:
// each has its blocks, and its results, as if it were alone.
struct Chosen {
    Matrix matrix;
    uint32_t block;
};

// Without an index: what is indexed while the kernel runs would be copied to memory first.
DEVICE Chosen chosen(const MatmulArgs &a) {
    uint32_t block = blockIdx.x;
    if (block < a.matrices[0].blocks)
        return {a.matrices[0], block};
    block -= a.matrices[0].blocks;
    if (block < a.matrices[1].blocks)
        return {a.matrices[1], block};
    return {a.matrices[2], block - a.matrices[1].blocks};
}

DEVICE float scale_of(const Matrix &m, const Columns &c, size_t row, uint32_t group) {
    const size_t i = row * c.groups + group;
    return m.half_scales ? from_half(in<uint16_t>(m.scales)[i]) : in<float>(m.scales)[i];
}

template <int BITS> DEVICE int32_t zero_of(const Matrix &m, const Columns &c, size_t row, uint32_t group) {
    if (BITS == 1)
        return 1;
    return m.zeros ? in<uint8_t>(m.zeros)[row * c.groups + group] : 1 << (BITS - 1);
}

// The integer sum of weight times activation, from the sum of code times activation and the sum of activations.
// One bit stands for -1 and +1, that is 2 * code - 1.
template <int BITS> DEVICE int32_t centred(int32_t dot, int32_t zero, int32_t sum) {
    return (BITS == 1 ? 2 * dot : dot) - zero * sum;
}

DEVICE size_t least(size_t a, size_t b) { return a < b ? a : b; }

#endif
