// Activations, from x float (n, cols) to what the products read: a value a column of every slice, padding 0.
//
// A warp takes one slice (or the `block` slices under one scale), a lane a column of it. Bytes: x is read once, 4 a column;
// written are 4 (spread), 1 + 8/32 (int8) or 1/8 (sign). All of it small beside the weights of a product.
#include "quantize.cuh"

constexpr uint32_t ACTIVATION_WARPS = 4;

// The value of a column of a slice; 0 beyond its width.
DEVICE float activation(const ActivationArgs &a, uint32_t v, uint32_t slice, uint32_t column) {
    if (column >= width_of(a.columns, slice))
        return 0.0f;
    return in<float>(a.x)[size_t(v) * a.columns.cols + first_of(a.columns, slice) + column];
}

KERNEL(128, spread_activations, ActivationArgs) {
    const uint32_t lane = threadIdx.x % WARP;
    const uint32_t slice = blockIdx.x * ACTIVATION_WARPS + threadIdx.x / WARP;
    if (slice >= args.columns.slices)
        return;
    for (uint32_t v = blockIdx.y; v < args.n; v += gridDim.y)
        out<float>(args.out)[(size_t(v) * args.columns.slices + slice) * SLICE + lane] = activation(args, v, slice, lane);
}

KERNEL(128, quantize_activations, QuantizeArgs) {
    const Quantized &to = args.to;
    const uint32_t first = (blockIdx.x * ACTIVATION_WARPS + threadIdx.x / WARP) * to.block;
    if (first >= to.columns.slices)
        return;
    for (uint32_t v = blockIdx.y; v < args.n; v += gridDim.y) {
        const float *x = in<float>(args.x) + size_t(v) * to.columns.cols;
        quantize(to, v, first, [&](uint32_t column) { return x[column]; });
    }
}

KERNEL(128, sign_activations, ActivationArgs) {
    const uint32_t lane = threadIdx.x % WARP;
    const uint32_t slice = blockIdx.x * ACTIVATION_WARPS + threadIdx.x / WARP;
    if (slice >= args.columns.slices)
        return;
    // Bit `lane` of a 1-bit slice is this column: the inverse of 8 * (c % 4) + c / 4.
    const uint32_t column = lane % 8 * 4 + lane / 8;
    for (uint32_t v = blockIdx.y; v < args.n; v += gridDim.y) {
        const bool there = column < width_of(args.columns, slice);
        const uint32_t word = lanes_where(there && activation(args, v, slice, column) >= 0.0f);
        if (lane == 0)
            out<uint32_t>(args.out)[size_t(v) * args.columns.slices + slice] = word;
    }
}
