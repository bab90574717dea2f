// Vectors quantised to int8, by whichever kernel has them in hand: README.md, "Activations on the device".
#ifndef APL_FFI_KERNELS_QUANTIZE_CUH
#define APL_FFI_KERNELS_QUANTIZE_CUH

#include "weights.cuh"

// The slices under one scale, from slice `first` on, of vector `v`: `value` gives its elements by their columns. A warp does it, a
// lane a column of each slice.
template <typename Value> DEVICE void quantize(const Quantized &to, size_t v, uint32_t first, Value value) {
    constexpr uint32_t MOST = 4;
    const uint32_t lane = threadIdx.x % WARP;
    float x[MOST];
    float largest = 0.0f;
    bool good = true;
#pragma unroll
    for (uint32_t i = 0; i < MOST; i++) {
        const bool there = i < to.block && lane < width_of(to.columns, first + i);
        x[i] = there ? value(first_of(to.columns, first + i) + lane) : 0.0f;
        good = good && finite(x[i]);
        largest = fmaxf(largest, fabsf(x[i]));
    }
    if (!good)
        *out<uint32_t>(to.bad) = 1; // whoever writes, writes the same
    const float scale = warp_max(largest) / 127.0f;
#pragma unroll
    for (uint32_t i = 0; i < MOST; i++) {
        if (i >= to.block)
            break;
        // A scale so small that it is rounded could push a code past 127.
        const float ratio = scale > 0.0f && good ? x[i] / scale : 0.0f;
        const int32_t code = nearest(fminf(fmaxf(ratio, -127.0f), 127.0f));
        const size_t at = v * to.columns.slices + first + i;
        out<int8_t>(to.codes)[at * SLICE + lane] = static_cast<int8_t>(code);
        const int32_t sum = warp_sum(code);
        if (lane == 0) {
            out<float>(to.scales)[at] = scale;
            out<int32_t>(to.sums)[at] = sum;
        }
    }
}

#endif
