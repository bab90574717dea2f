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

// int8 vectors, as matmul_i8 and matmul_mma read them, and where to say that one cannot be.
struct Quantized {
    uint64_t codes;  // int8    (n, slices * 32)
    uint64_t scales; // float   (n, slices)
    uint64_t sums;   // int32   (n, slices): of the codes
    uint64_t bad;    // uint32  1; set to 1 where a vector is not finite, else left
    Columns columns;
    uint32_t block; // slices that share one scale: 1, 2 or 4
};

// spread_activations, sign_activations.
struct ActivationArgs {
    uint64_t x;   // float   (n, cols)
    uint64_t out; // float   (n, slices * 32), or uint32 (n, slices)
    Columns columns;
    uint32_t n;
};

// quantize_activations.
struct QuantizeArgs {
    uint64_t x; // float   (n, cols)
    Quantized to;
    uint32_t n;
    uint32_t reserved;
};

// One of the matrices that a launch multiplies with.
struct Matrix {
    uint64_t codes;  // bytes    (rows, slices * 4 * bits)
    uint64_t scales; // float16 or float32 (rows, groups)
    uint64_t zeros;  // uint8    (rows, groups), or 0: 2^(bits-1); never read with 1 bit
    uint64_t y;      // float    (n, rows)
    uint32_t rows;
    uint32_t half_scales; // 1: scales are float16; 0: float32
    uint32_t split;       // warps that share the columns of a row: 1, 2, 4 or 8
    uint32_t blocks;      // of the grid along x, behind those of the matrices before
};

// Every matmul_*.
struct MatmulArgs {
    uint64_t x;       // what the activation kernel of the mode made: n vectors
    uint64_t xscales; // float   (n, slices)   matmul_i8 and matmul_mma
    uint64_t xsums;   // int32   (n, slices)   matmul_i8 and matmul_mma
    Columns columns;  // of every matrix
    uint32_t n;
    Matrix matrices[3]; // the first ones; no block of the grid is of another
};

// The structs of transformer.cu and attention.cu; TRANSFORMER.md says what the kernels do with them. n: tokens.

struct EmbedArgs {
    uint64_t codes;  // of the embedding (rows = vocabulary): as in Matrix
    uint64_t scales; // "
    uint64_t zeros;  // "
    uint64_t ids;    // uint32   (n)
    uint64_t out;    // float    (n, cols)
    Columns columns;
    uint32_t n;
    uint32_t bits;        // 1, 2, 4 or 8
    uint32_t half_scales; // as in Matrix
    float factor;         // what embeddings are multiplied with
    uint32_t rows;        // of the embedding: an id beyond is taken as the last
};

struct AngleArgs {
    uint64_t frequencies; // double   (pairs): turns a position
    uint64_t position;    // uint32   1: that of the first token
    uint64_t out;         // float    (n, pairs, 2): cosine, sine
    double amplitude;     // what both are multiplied with
    uint32_t pairs;
    uint32_t n;
};

struct NormArgs {
    uint64_t x;     // float   (n, width)
    uint64_t y;     // float   (n, width), or 0: nothing is added
    uint64_t bias;  // float   (width), added to y, or 0
    uint64_t inner; // float   (width): weights of a norm of y before it is added, or 0
    uint64_t sum;   // float   (n, width): may be x itself; not written where y is 0
    uint64_t outer; // float   (width): weights of the norm of the sum, or 0: no norm
    uint64_t out;   // float   (n, width), or 0
    Quantized quantized; // the same; codes 0: not wanted
    uint32_t width;
    uint32_t n;
    float eps;
    uint32_t reserved;
};

struct HeadArgs {
    uint64_t q;        // float    (n, heads, head_dim)
    uint64_t k;        // float    (n, kv_heads, head_dim)
    uint64_t v;        // float    (n, kv_heads, head_dim)
    uint64_t q_bias;   // float    (heads, head_dim), or 0
    uint64_t k_bias;   // float    (kv_heads, head_dim), or 0
    uint64_t v_bias;   // float    (kv_heads, head_dim), or 0
    uint64_t q_norm;   // float    (head_dim): weights, or 0
    uint64_t k_norm;   // float    (head_dim): weights, or 0
    uint64_t angles;   // float    (n, head_dim / 2, 2)
    uint64_t position; // uint32   1: that of the first token
    uint64_t out;      // float    (n, heads, head_dim)
    uint64_t keys;     // float16 or float   (kv_heads, slots, padded)
    uint64_t values;   // float16 or float   (kv_heads, slots, padded)
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head_dim; // even, at most 256
    uint32_t slots;
    uint32_t n;
    uint32_t neighbours; // 1: elements 2i and 2i + 1 are a pair; 0: i and i + head_dim / 2
    uint32_t half_cache; // 1: the cache is float16
    float eps;
    float query_scale;
    uint32_t reserved;
};

struct AttentionArgs {
    uint64_t q;        // float    (n, heads, head_dim)
    uint64_t keys;     // float16 or float   (kv_heads, slots, padded)
    uint64_t values;   // float16 or float   (kv_heads, slots, padded)
    uint64_t position; // uint32   1: that of the first token
    uint64_t out;      // float    (n, heads, head_dim)
    uint64_t parts;    // float    (n, heads, splits, head_dim), where splits > 1
    uint64_t ends;     // float    (n, heads, splits, 2): the largest score and the sum, where splits > 1
    Quantized quantized; // out (n, heads * head_dim) as that; combine_parts_quantize only
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head_dim; // even, at most 256
    uint32_t slots;
    uint32_t window; // positions that a token sees, itself included; 0: all
    uint32_t n;
    uint32_t splits; // blocks that share the positions of a row
    uint32_t half_cache; // 1: the cache is float16
    float cap;           // cap * tanh(score / cap); 0: as it is
    uint32_t reserved;
};

struct GateArgs {
    uint64_t gate;      // float   (n, width)
    uint64_t up;        // float   (n, width)
    uint64_t gate_bias; // float   (width), or 0
    uint64_t up_bias;   // float   (width), or 0
    uint64_t out;       // float   (n, width): may be gate itself; gate_up only
    Quantized quantized; // the same; gate_up_quantize only
    uint32_t width;
    uint32_t n;
    uint32_t gelu; // 1: GELU by its tanh formula; 0: SiLU
    uint32_t reserved;
};

// softcap, greatest and advance.
struct LogitArgs {
    uint64_t logits;   // float    (count)
    uint64_t parts;    // uint32   (blocks, 2): order of the greatest, its place
    uint64_t token;    // uint32   1: the place of the greatest of all
    uint64_t id;       // uint32   1: the same again
    uint64_t position; // uint32   1: becomes one more
    uint64_t count;
    uint32_t blocks;
    float cap;
};

static_assert(sizeof(Columns) == 20, "Columns");
static_assert(sizeof(Quantized) == 56, "Quantized");
static_assert(sizeof(ActivationArgs) == 40, "ActivationArgs");
static_assert(sizeof(QuantizeArgs) == 72, "QuantizeArgs");
static_assert(sizeof(Matrix) == 48, "Matrix");
static_assert(sizeof(MatmulArgs) == 192, "MatmulArgs");
static_assert(sizeof(EmbedArgs) == 80, "EmbedArgs");
static_assert(sizeof(AngleArgs) == 40, "AngleArgs");
static_assert(sizeof(NormArgs) == 128, "NormArgs");
static_assert(sizeof(HeadArgs) == 144, "HeadArgs");
static_assert(sizeof(AttentionArgs) == 152, "AttentionArgs");
static_assert(sizeof(GateArgs) == 112, "GateArgs");
static_assert(sizeof(LogitArgs) == 56, "LogitArgs");

#endif
