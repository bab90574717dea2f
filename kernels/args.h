// The arguments of every kernel: one struct each, passed by value as the only parameter.
// The twins in Rust are `#[repr(C)]`; sizes and offsets are asserted on both sides.
// A pointer is 64 bits wide on both sides; 0 is "absent" where the field says so.
#ifndef APL_FFI_KERNELS_ARGS_H
#define APL_FFI_KERNELS_ARGS_H

#ifdef __CUDACC_RTC__
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#else
#include <stdint.h>
#endif

// The columns of a matrix as the device sees them; README.md, "Slices".
struct Columns {
    uint32_t cols;      // of the matrix
    uint32_t group;     // columns a scale, never 0: the whole row is group = max(cols, 1)
    uint32_t groups;    // max(1, ceil(cols / group))
    uint32_t per_group; // slices a group: ceil(group / 32)
    uint32_t slices;    // a row, padded to a multiple of 4
};

// spread_activations, quantize_activations, sign_activations.
struct ActivationArgs {
    uint64_t x;      // float   (n, cols)
    uint64_t out;    // float   (n, slices * 32), int8 (n, slices * 32), or uint32 (n, slices)
    uint64_t scales; // float   (n, slices)   quantize_activations only
    uint64_t sums;   // int32   (n, slices)   quantize_activations only
    uint64_t bad;    // uint32  1; set to 1 where x is not finite, else left; quantize_activations only
    Columns columns;
    uint32_t n;
    uint32_t block; // slices that share one activation scale: 1, 2 or 4; quantize_activations only
    uint32_t reserved;
};

// Every matmul_*.
struct MatmulArgs {
    uint64_t codes;  // bytes    (rows, slices * 4 * bits)
    uint64_t scales; // float16 or float32 (rows, groups)
    uint64_t zeros;  // uint8    (rows, groups), or 0: 2^(bits-1); never read with 1 bit
    uint64_t x;      // what the activation kernel of the mode made: n vectors
    uint64_t xscales; // float   (n, slices)   matmul_i8 and matmul_mma
    uint64_t xsums;   // int32   (n, slices)   matmul_i8 and matmul_mma
    uint64_t y;       // float   (n, rows)
    Columns columns;
    uint32_t rows;
    uint32_t n;
    uint32_t half_scales; // 1: scales are float16; 0: float32
    uint32_t split;       // warps that share the columns of a row: 1, 2, 4 or 8
    uint32_t reserved;
};

static_assert(sizeof(Columns) == 20, "Columns");
static_assert(sizeof(ActivationArgs) == 72, "ActivationArgs");
static_assert(sizeof(MatmulArgs) == 96, "MatmulArgs");

#endif
