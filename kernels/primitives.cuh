// What the kernels ask of the machine, one function each, with a plain C++ twin under GPU_SHIM: the same kernel sources then
// run on a processor (shim/), where sanitizers and schedules can get at them. Nothing else in this folder has PTX in it.
#ifndef APL_FFI_KERNELS_PRIMITIVES_CUH
#define APL_FFI_KERNELS_PRIMITIVES_CUH

#include "args.h"

#ifdef GPU_SHIM
#include "shim/shim.h"
#else
// `blocks`: of which a multiprocessor has registers for so many at least.
#define KERNEL_WITH(threads, blocks, name, Args) extern "C" __global__ void __launch_bounds__(threads, blocks) name(const Args args)
#define DEVICE __device__ __forceinline__
#endif
// One block, no more: left to itself, ptxas aims at an occupancy and spills a register or two for it.
#define KERNEL(threads, name, Args) KERNEL_WITH(threads, 1, name, Args)

constexpr uint32_t WARP = 32;

struct alignas(16) Words4 {
    uint32_t w[4];
};
struct alignas(8) Words2 {
    uint32_t w[2];
};
struct alignas(8) Floats2 {
    float f[2];
};
struct alignas(8) Halves4 {
    uint16_t h[4];
};
struct alignas(16) Floats4 {
    float f[4];
};

// A buffer named by its address in the argument struct.
template <typename T> DEVICE const T *in(uint64_t address) { return reinterpret_cast<const T *>(address); }
template <typename T> DEVICE T *out(uint64_t address) { return reinterpret_cast<T *>(address); }

#ifdef GPU_SHIM

DEVICE uint32_t bits_of(float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    return bits;
}
DEVICE float float_of(uint32_t bits) {
    float v;
    memcpy(&v, &bits, 4);
    return v;
}
DEVICE void block_sync() { shim::block_sync(); }
DEVICE float *shared_floats() { return static_cast<float *>(shim::shared()); }
DEVICE float xor_lane(float v, uint32_t lanes) { return float_of(shim::exchange(bits_of(v), shim::lane() ^ lanes)); }
DEVICE int32_t xor_lane(int32_t v, uint32_t lanes) {
    return static_cast<int32_t>(shim::exchange(static_cast<uint32_t>(v), shim::lane() ^ lanes));
}
DEVICE uint32_t lanes_where(bool set) { return shim::ballot(set); }
DEVICE Words4 stream(const Words4 *p) { return *p; }
DEVICE int32_t dot4(uint32_t codes, uint32_t x, int32_t sum) {
    for (uint32_t b = 0; b < 4; b++)
        sum += static_cast<int32_t>(codes >> 8 * b & 255) * static_cast<int8_t>(x >> 8 * b & 255);
    return sum;
}
DEVICE uint32_t ones(uint32_t v) { return static_cast<uint32_t>(__builtin_popcount(v)); }
DEVICE float byte_less(uint32_t quad, uint32_t b, uint32_t base, float bias) {
    return float_of(base | (quad >> 8 * b & 255)) - bias;
}
DEVICE float from_half(uint16_t h) {
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    const float size = exponent == 0 ? ldexpf(static_cast<float>(fraction), -24)
                                     : ldexpf(static_cast<float>(fraction + 1024), exponent - 25);
    return h >> 15 ? -size : size;
}
DEVICE uint16_t to_half(float v) {
    const uint32_t bits = bits_of(v), sign = bits >> 16 & 0x8000;
    const float size = fabsf(v);
    if (!(size < 65520.0f))
        return static_cast<uint16_t>(sign | (std::isnan(v) ? 0x7fff : 0x7c00));
    int exponent = 0;
    frexpf(size, &exponent);
    // Units of the last place: 2^-24 for what is subnormal.
    const int last = size < 6.1035156e-5f ? -24 : exponent - 11;
    const float units = nearbyintf(ldexpf(size, -last));
    // A size that rounds up to the next power of two carries into the exponent by itself.
    return static_cast<uint16_t>(sign | (static_cast<uint32_t>(units) + (static_cast<uint32_t>(last + 24) << 10)));
}
DEVICE int32_t nearest(float v) { return static_cast<int32_t>(nearbyintf(v)); }
DEVICE bool finite(float v) { return std::isfinite(v); }
DEVICE void cosine_sine(double turns, double &cosine, double &sine) {
    const double angle = (turns - std::nearbyint(turns)) * 6.283185307179586;
    cosine = std::cos(angle);
    sine = std::sin(angle);
}
// The fragments as the PTX manual draws them, gathered from all lanes and multiplied plainly.
DEVICE void mma_u8s8(int32_t c[4], const uint32_t a[4], const uint32_t b[2]) {
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    uint32_t all[WARP][6];
    shim::gather(mine, 6, &all[0][0]);
    const uint32_t lane = shim::lane();
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t row = lane / 4 + 8 * (i / 2), col = lane % 4 * 2 + i % 2;
        for (uint32_t k = 0; k < 32; k++) {
            const uint32_t aw = all[row % 8 * 4 + k % 16 / 4][row / 8 + 2 * (k / 16)];
            const uint32_t bw = all[col * 4 + k % 16 / 4][4 + k / 16];
            c[i] += static_cast<int32_t>(aw >> 8 * (k % 4) & 255) * static_cast<int8_t>(bw >> 8 * (k % 4) & 255);
        }
    }
}

#else

DEVICE uint32_t bits_of(float v) { return __float_as_uint(v); }
DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }
DEVICE void block_sync() { __syncthreads(); }
DEVICE float *shared_floats() {
    extern __shared__ float shared_memory[];
    return shared_memory;
}
DEVICE float xor_lane(float v, uint32_t lanes) { return __shfl_xor_sync(0xffffffffu, v, lanes); }
DEVICE int32_t xor_lane(int32_t v, uint32_t lanes) { return __shfl_xor_sync(0xffffffffu, v, lanes); }
DEVICE uint32_t lanes_where(bool set) { return __ballot_sync(0xffffffffu, set); }
// Weights are read once: past the first cache, which the activations keep.
DEVICE Words4 stream(const Words4 *p) {
    Words4 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
        : "l"(p));
    return v;
}
// sum + the four products of an unsigned and a signed byte.
DEVICE int32_t dot4(uint32_t codes, uint32_t x, int32_t sum) {
    int32_t r;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(r) : "r"(codes), "r"(x), "r"(sum));
    return r;
}
DEVICE uint32_t ones(uint32_t v) { return __popc(v); }
// Byte b of quad, minus (bias - base), exactly, in units of the last place of `base`: a float, as its bits, with nothing in its lower
// three bytes. The byte becomes the low end of it, which takes one permute where a conversion would run at a quarter of the rate.
DEVICE float byte_less(uint32_t quad, uint32_t b, uint32_t base, float bias) {
    return __uint_as_float(__byte_perm(quad, base, 0x7440u | b)) - bias;
}
DEVICE float from_half(uint16_t h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
// To nearest, ties to even.
DEVICE uint16_t to_half(float v) {
    uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(v));
    return h;
}
DEVICE int32_t nearest(float v) { return __float2int_rn(v); }
DEVICE bool finite(float v) { return fabsf(v) <= 3.402823466e38f; }
// Of an angle in turns: whole turns are taken off exactly, where radians would need the long division of the library's sincos.
DEVICE void cosine_sine(double turns, double &cosine, double &sine) { sincospi(2.0 * turns, &sine, &cosine); }
// c (16, 8) += a (16, 32) b (32, 8), a unsigned and b signed bytes. With g = lane / 4 and t = lane % 4:
//   a[0] row g,     k 4t..4t+3     a[1] row g + 8, the same k     a[2], a[3] the same rows, k + 16
//   b[0] column g,  k 4t..4t+3     b[1] k + 16
//   c[0], c[1] row g, columns 2t, 2t + 1      c[2], c[3] row g + 8
DEVICE void mma_u8s8(int32_t c[4], const uint32_t a[4], const uint32_t b[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    // Turing has the quarter of it; the fragments are those of the whole.
    for (int i = 0; i < 4; i++)
        asm("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
            : "+r"(c[i % 2 * 2]), "+r"(c[i % 2 * 2 + 1])
            : "r"(a[i]), "r"(b[i / 2]));
#endif
}

#endif

// The sum over a warp, the same in every lane, added in the order of a tree.
template <typename T> DEVICE T warp_sum(T v) {
    for (uint32_t lanes = WARP / 2; lanes > 0; lanes /= 2)
        v += xor_lane(v, lanes);
    return v;
}
DEVICE float warp_max(float v) {
    for (uint32_t lanes = WARP / 2; lanes > 0; lanes /= 2)
        v = fmaxf(v, xor_lane(v, lanes));
    return v;
}

#endif
