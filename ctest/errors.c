/* Statuses, messages, and untouched outputs, for every kind of invalid argument.
 *
 * APL_FFI_ERR_INTERNAL is a bug and cannot be provoked from C. APL_FFI_ERR_UNSUPPORTED for an
 * instruction set that the processor lacks is tested by lifecycle and oneshot; an unknown
 * instruction set is APL_FFI_ERR_CONFIG on every machine.
 *
 * If APL_FFI_SANITIZED is set (to the name of a sanitizer, or valgrind), the test that limits the
 * address space is skipped.
 */
#define _XOPEN_SOURCE 700

#include <string.h>
#include <sys/resource.h>

#include "apl_ffi.h"
#include "check.h"
#include "oracle.h"
#include "scratch.h"

/* Whether the latest error begins with the name of the function and contains `said`. */
static int error_is(const char *function, const char *said)
{
    char text[1024];
    size_t name = strlen(function);
    int32_t size = apl_ffi_last_error(text, sizeof text);
    CHECK(size >= 0 && (size_t)size == strlen(text));
    if (strncmp(text, function, name) == 0 && strncmp(text + name, ": ", 2) == 0 && strstr(text + name + 2, said))
        return 1;
    printf("    the last error is \"%s\", expected \"%s: ... %s\"\n", text, function, said);
    return 0;
}

/* ---- Calls that take codes and floats ---- */

enum { ROWS = 3, COLS = 64, GROUP = 32, G = 2, N = 2 };

/* The arguments of all of these functions. */
struct arguments {
    const uint8_t *codes;
    int64_t codes_len;
    int32_t bits, packing;
    const float *scales;
    int64_t scales_len;
    const int32_t *zero_points;
    int64_t zero_points_len;
    const float *x;
    int64_t x_len;
    float *y;
    int64_t y_len, rows, cols;
    int32_t group, mode;
    int64_t n;
    const char *options;
    int32_t *handle;
};

/* The arrays behind the arguments. */
static uint8_t codes[ROWS * COLS];
static float scales[ROWS * G], x[N * COLS], y[ROWS * COLS];
static int32_t zero_points[ROWS * G], handle[2];

static void fill_outputs(void)
{
    memset(y, 0x5a, sizeof y);
    memset(handle, 0x5a, sizeof handle);
}

static int outputs_untouched(void)
{
    for (size_t i = 0; i < sizeof y; i++)
        if (((unsigned char *)y)[i] != 0x5a)
            return 0;
    return handle[0] == 0x5a5a5a5a && handle[1] == 0x5a5a5a5a;
}

static struct arguments good(void)
{
    for (int i = 0; i < ROWS * COLS; i++)
        codes[i] = (uint8_t)(i % 16);
    for (int i = 0; i < ROWS * G; i++) {
        scales[i] = 0.5f;
        zero_points[i] = i;
    }
    for (int i = 0; i < N * COLS; i++)
        x[i] = 1;
    fill_outputs();
    return (struct arguments){codes, ROWS * COLS, 4, 0, scales, ROWS * G, zero_points, ROWS * G, x, N * COLS,
                              y, N * ROWS, ROWS, COLS, GROUP, 0, N, NULL, handle};
}

static int32_t q_batch(const struct arguments *a)
{
    return apl_matmul_q_batch(a->codes, a->codes_len, a->bits, a->packing, a->scales, a->scales_len, a->zero_points,
                              a->zero_points_len, a->x, a->x_len, a->y, a->y_len, a->rows, a->cols, a->group, a->n);
}

static int32_t q(const struct arguments *a)
{
    return apl_matmul_q(a->codes, a->codes_len, a->bits, a->packing, a->scales, a->scales_len, a->zero_points,
                        a->zero_points_len, a->x, a->x_len == N * COLS ? COLS : a->x_len, a->y,
                        a->y_len == N * ROWS ? ROWS : a->y_len, a->rows, a->cols, a->group);
}

/* The same arguments as packed 1-bit codes: an eighth of the bytes. */
static int32_t one_bit_batch(const struct arguments *a)
{
    return apl_matmul_1bit_batch(a->codes, a->codes_len / 8, a->scales, a->scales_len, a->x, a->x_len, a->y, a->y_len,
                                 a->rows, a->cols, a->group, a->mode, a->n);
}

static int32_t one_bit(const struct arguments *a)
{
    return apl_matmul_1bit(a->codes, a->codes_len / 8, a->scales, a->scales_len, a->x,
                           a->x_len == N * COLS ? COLS : a->x_len, a->y, a->y_len == N * ROWS ? ROWS : a->y_len,
                           a->rows, a->cols, a->group, a->mode);
}

/* The output is the weights, for which y is large enough. */
static int32_t dequantize(const struct arguments *a)
{
    return apl_dequantize(a->codes, a->codes_len, a->bits, a->packing, a->scales, a->scales_len, a->zero_points,
                          a->zero_points_len, a->y, a->y_len == N * ROWS ? ROWS * COLS : a->y_len, a->rows, a->cols,
                          a->group);
}

static int32_t from_codes(const struct arguments *a)
{
    return apl_weights_from_codes(a->codes, a->codes_len, a->bits, a->packing, a->scales, a->scales_len,
                                  a->zero_points, a->zero_points_len, a->rows, a->cols, a->group, a->options,
                                  a->handle);
}

enum { Q = 1, Q_BATCH = 2, ONE_BIT = 4, ONE_BIT_BATCH = 8, DEQUANTIZE = 16, FROM_CODES = 32 };
enum { PRODUCTS = Q | Q_BATCH | ONE_BIT | ONE_BIT_BATCH, CODES = Q | Q_BATCH | DEQUANTIZE | FROM_CODES };
enum { BATCHES = Q_BATCH | ONE_BIT_BATCH, EVERY = PRODUCTS | CODES };

static const struct {
    const char *name;
    int32_t (*call)(const struct arguments *);
    int bit;
} functions[] = {
    {"apl_matmul_q", q, Q},
    {"apl_matmul_q_batch", q_batch, Q_BATCH},
    {"apl_matmul_1bit", one_bit, ONE_BIT},
    {"apl_matmul_1bit_batch", one_bit_batch, ONE_BIT_BATCH},
    {"apl_dequantize", dequantize, DEQUANTIZE},
    {"apl_weights_from_codes", from_codes, FROM_CODES},
};

/* A misaligned pointer, which C cannot form by pointer arithmetic, from an address. */
#define MISALIGNED(type, pointer) ((type *)((uintptr_t)(pointer) + 1))

static void bits_3(struct arguments *a) { a->bits = 3; }
static void bits_16(struct arguments *a) { a->bits = 16; }
static void packing_2(struct arguments *a) { a->packing = 2; }
static void mode_2(struct arguments *a) { a->mode = 2; }
static void negative_rows(struct arguments *a) { a->rows = -1; }
static void negative_cols(struct arguments *a) { a->cols = INT64_MIN; }
static void negative_group(struct arguments *a) { a->group = -1; }
static void negative_n(struct arguments *a) { a->n = -1; }
static void options_not_utf8(struct arguments *a) { a->options = "{\"activations\": \"\xc3\"}"; }
static void options_malformed(struct arguments *a) { a->options = "{\"activations\": \"f32\""; }
static void options_unknown_key(struct arguments *a) { a->options = "{\"activation\": \"f32\"}"; }
static void options_unknown_value(struct arguments *a) { a->options = "{\"activations\": \"f16\"}"; }
static void options_that_do_not_apply(struct arguments *a) { a->options = "{\"bits\": 4}"; }
static void short_codes(struct arguments *a) { a->codes_len = ROWS * COLS - 8; }
static void long_codes(struct arguments *a) { a->codes_len = ROWS * COLS + 8; }
static void negative_codes(struct arguments *a) { a->codes_len = -8; }
static void short_scales(struct arguments *a) { a->scales_len = ROWS * G - 1; }
static void no_scales(struct arguments *a) { a->scales_len = 0; }
static void short_zero_points(struct arguments *a) { a->zero_points_len = ROWS * G - 1; }
static void negative_zero_points(struct arguments *a) { a->zero_points_len = -1; }
static void short_x(struct arguments *a) { a->x_len = COLS - 1; }
static void long_y(struct arguments *a) { a->y_len = N * ROWS + 1; }
static void huge_y(struct arguments *a) { a->y_len = INT64_MAX; }
static void huge_rows(struct arguments *a) { a->rows = INT64_MAX; }
static void huge_shape(struct arguments *a)
{
    a->rows = INT64_C(1) << 32;
    a->cols = INT64_C(1) << 32;
}
static void huge_n(struct arguments *a) { a->n = INT64_MAX / 2; }
static void null_codes(struct arguments *a) { a->codes = NULL; }
static void null_scales(struct arguments *a) { a->scales = NULL; }
static void null_zero_points(struct arguments *a) { a->zero_points = NULL; }
static void null_x(struct arguments *a) { a->x = NULL; }
static void null_y(struct arguments *a) { a->y = NULL; }
static void null_handle(struct arguments *a) { a->handle = NULL; }
static void misaligned_scales(struct arguments *a) { a->scales = MISALIGNED(const float, scales); }
static void misaligned_zero_points(struct arguments *a) { a->zero_points = MISALIGNED(const int32_t, zero_points); }
static void misaligned_x(struct arguments *a) { a->x = MISALIGNED(const float, x); }
static void misaligned_y(struct arguments *a) { a->y = MISALIGNED(float, y); }
static void misaligned_handle(struct arguments *a) { a->handle = MISALIGNED(int32_t, handle); }
static void y_is_x(struct arguments *a) { a->x = y; }
static void scale_infinite(struct arguments *a) { (void)a, scales[1] = INFINITY; }
static void scale_nan(struct arguments *a) { (void)a, scales[5] = NAN; }
static void weight_infinite(struct arguments *a) { (void)a, scales[1] = 3e38f; }
static void zero_point_16(struct arguments *a) { (void)a, zero_points[2] = 16; }
static void zero_point_negative(struct arguments *a) { (void)a, zero_points[0] = -1; }
static void code_16(struct arguments *a) { (void)a, codes[100] = 16; }

/* In the contract's order of checks, so that the first of two faults is the one reported. */
static const struct fault {
    void (*spoil)(struct arguments *);
    int32_t status;
    const char *said;
    int functions;
} faults[] = {
    {bits_3, APL_FFI_ERR_RANGE, "bits is 3", CODES},
    {bits_16, APL_FFI_ERR_RANGE, "bits is 16", CODES},
    {packing_2, APL_FFI_ERR_RANGE, "packing is 2", CODES},
    {mode_2, APL_FFI_ERR_RANGE, "mode is 2", ONE_BIT | ONE_BIT_BATCH},
    {negative_rows, APL_FFI_ERR_RANGE, "rows is -1", EVERY},
    {negative_cols, APL_FFI_ERR_RANGE, "cols is -9223372036854775808", EVERY},
    {negative_group, APL_FFI_ERR_RANGE, "group is -1", EVERY},
    {negative_n, APL_FFI_ERR_RANGE, "n is -1", BATCHES},
    {options_not_utf8, APL_FFI_ERR_ENCODING, "options", FROM_CODES},
    {options_malformed, APL_FFI_ERR_CONFIG, "options is not a JSON object", FROM_CODES},
    {options_unknown_key, APL_FFI_ERR_CONFIG, "\"activation\"", FROM_CODES},
    {options_unknown_value, APL_FFI_ERR_CONFIG, "\"f16\"", FROM_CODES},
    {options_that_do_not_apply, APL_FFI_ERR_CONFIG, "\"bits\"", FROM_CODES},
    {huge_rows, APL_FFI_ERR_LENGTH, "rows", EVERY},
    {huge_shape, APL_FFI_ERR_LENGTH, "rows", EVERY},
    {huge_n, APL_FFI_ERR_LENGTH, "n * cols", BATCHES},
    {short_codes, APL_FFI_ERR_LENGTH, "_len is ", EVERY},
    {long_codes, APL_FFI_ERR_LENGTH, "_len is ", EVERY},
    {negative_codes, APL_FFI_ERR_LENGTH, "_len is -", EVERY},
    {short_scales, APL_FFI_ERR_LENGTH, "scales_len is 5", EVERY},
    {no_scales, APL_FFI_ERR_LENGTH, "scales_len is 0", EVERY},
    {short_zero_points, APL_FFI_ERR_LENGTH, "zero_points_len is 5", CODES},
    {negative_zero_points, APL_FFI_ERR_LENGTH, "zero_points_len is -1", CODES},
    {short_x, APL_FFI_ERR_LENGTH, "x_len is 63", PRODUCTS},
    {long_y, APL_FFI_ERR_LENGTH, "_len is 7", PRODUCTS | DEQUANTIZE},
    {huge_y, APL_FFI_ERR_LENGTH, "_len is 9223372036854775807", PRODUCTS | DEQUANTIZE},
    {null_codes, APL_FFI_ERR_NULL, " is NULL", EVERY},
    {null_scales, APL_FFI_ERR_NULL, "scales is NULL", EVERY},
    {null_zero_points, APL_FFI_ERR_NULL, "zero_points is NULL", CODES},
    {null_x, APL_FFI_ERR_NULL, "x is NULL", PRODUCTS},
    {null_y, APL_FFI_ERR_NULL, " is NULL", PRODUCTS | DEQUANTIZE},
    {null_handle, APL_FFI_ERR_NULL, "handle is NULL", FROM_CODES},
    {misaligned_scales, APL_FFI_ERR_RANGE, "scales is at address", EVERY},
    {misaligned_zero_points, APL_FFI_ERR_RANGE, "zero_points is at address", CODES},
    {misaligned_x, APL_FFI_ERR_RANGE, "x is at address", PRODUCTS},
    {misaligned_y, APL_FFI_ERR_RANGE, " is at address", PRODUCTS | DEQUANTIZE},
    {misaligned_handle, APL_FFI_ERR_RANGE, "handle is at address", FROM_CODES},
    {y_is_x, APL_FFI_ERR_RANGE, "y overlaps x", PRODUCTS},
    {scale_infinite, APL_FFI_ERR_RANGE, "scales[1] is inf", EVERY},
    {scale_nan, APL_FFI_ERR_RANGE, "scales[5] is NaN", EVERY},
    {zero_point_16, APL_FFI_ERR_RANGE, "zero_points[2] is 16", CODES},
    {zero_point_negative, APL_FFI_ERR_RANGE, "zero_points[0] is -1", CODES},
    {code_16, APL_FFI_ERR_RANGE, "codes[100] is 16", CODES},
    {weight_infinite, APL_FFI_ERR_RANGE, "the weight at row 0, column 35 is inf", CODES},
};
enum { FUNCTIONS = sizeof functions / sizeof *functions, FAULTS = sizeof faults / sizeof *faults };

static void one_wrong_argument(void)
{
    for (int f = 0; f < FUNCTIONS; f++) {
        struct arguments a = good();
        CHECK_STATUS(APL_FFI_OK, functions[f].call(&a));
        CHECK(!outputs_untouched());
        if (functions[f].bit == FROM_CODES)
            CHECK_STATUS(APL_FFI_OK, apl_weights_free(handle[0]));
        for (int i = 0; i < FAULTS; i++) {
            if (!(faults[i].functions & functions[f].bit))
                continue;
            a = good();
            faults[i].spoil(&a);
            CHECK_STATUS(faults[i].status, functions[f].call(&a));
            CHECK(error_is(functions[f].name, faults[i].said));
            CHECK(outputs_untouched());
        }
    }
}

/* Two faults may concern one argument; the status is still that of the earlier check. */
static void two_wrong_arguments(void)
{
    for (int f = 0; f < FUNCTIONS; f++)
        for (int i = 0; i < FAULTS; i++)
            for (int j = i + 1; j < FAULTS; j++) {
                if (!(faults[i].functions & faults[j].functions & functions[f].bit))
                    continue;
                struct arguments a = good();
                faults[j].spoil(&a);
                faults[i].spoil(&a);
                CHECK_STATUS(faults[i].status, functions[f].call(&a));
                CHECK(outputs_untouched());
            }
}

/* ---- Quantising and weights from floats ---- */

static void quantising(void)
{
    float w[6] = {1, 2, 3, 4, 5, 6}, scale[2] = {7, 7};
    uint8_t code[4] = {7, 7, 7, 7};
    int32_t zero[2] = {7, 7};
    static const struct {
        int64_t w_len, rows, cols;
        int32_t bits, group, method;
        int64_t codes_len, scales_len, zero_points_len;
        int32_t status;
        const char *said;
    } cases[] = {
        {6, 2, 3, 3, 0, 0, 4, 2, 2, APL_FFI_ERR_RANGE, "bits is 3"},
        {6, 2, 3, 4, -1, 0, 4, 2, 2, APL_FFI_ERR_RANGE, "group is -1"},
        {6, 2, 3, 4, 0, 2, 4, 2, 2, APL_FFI_ERR_RANGE, "method is 2"},
        {6, 2, -3, 4, 0, 0, 4, 2, 2, APL_FFI_ERR_RANGE, "cols is -3"},
        {5, 2, 3, 4, 0, 0, 4, 2, 2, APL_FFI_ERR_LENGTH, "w_len is 5"},
        {6, 2, 3, 4, 0, 0, 3, 2, 2, APL_FFI_ERR_LENGTH, "codes_len is 3"},
        {6, 2, 3, 4, 0, 0, 4, 1, 2, APL_FFI_ERR_LENGTH, "scales_len is 1"},
        {6, 2, 3, 4, 0, 0, 4, 2, 1, APL_FFI_ERR_LENGTH, "zero_points_len is 1"},
        {6, 2, 3, 1, 0, 0, 2, 2, 2, APL_FFI_ERR_LENGTH, "zero_points_len is 2"},
        {6, INT64_MAX, 3, 4, 0, 0, 4, 2, 2, APL_FFI_ERR_LENGTH, "rows"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        CHECK_STATUS(cases[i].status, apl_quantize(w, cases[i].w_len, cases[i].rows, cases[i].cols, cases[i].bits,
                                                   cases[i].group, cases[i].method, code, cases[i].codes_len, scale,
                                                   cases[i].scales_len, zero, cases[i].zero_points_len));
        CHECK(error_is("apl_quantize", cases[i].said));
    }
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_quantize(NULL, 6, 2, 3, 4, 0, 0, code, 4, scale, 2, zero, 2));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_quantize(w, 6, 2, 3, 4, 0, 0, NULL, 4, scale, 2, zero, 2));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_quantize(w, 6, 2, 3, 4, 0, 0, code, 4, NULL, 2, zero, 2));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_quantize(w, 6, 2, 3, 4, 0, 0, code, 4, scale, 2, NULL, 2));
    CHECK_STATUS(APL_FFI_ERR_RANGE,
                 apl_quantize(w, 6, 2, 3, 4, 0, 0, code, 4, MISALIGNED(float, scale), 2, zero, 2));
    CHECK_STATUS(APL_FFI_ERR_RANGE, apl_quantize(w, 6, 2, 3, 4, 0, 0, (uint8_t *)w, 4, scale, 2, zero, 2));
    CHECK(error_is("apl_quantize", "overlaps"));
    w[4] = -INFINITY;
    CHECK_STATUS(APL_FFI_ERR_RANGE, apl_quantize(w, 6, 2, 3, 4, 0, 0, code, 4, scale, 2, zero, 2));
    CHECK(error_is("apl_quantize", "w at row 1, column 1 is -inf"));
    for (int i = 0; i < 2; i++)
        CHECK(scale[i] == 7 && zero[i] == 7 && code[i] == 7 && code[2 + i] == 7);
}

static void weights_from_floats(void)
{
    float w[4] = {1, 2, 3, 4};
    double wide[4] = {1, 2, 3, 1e39};
    int32_t out[2] = {7, 7};
    static const char *const wrong[] = {"[1]", "{", "4", "{\"bits\": 3}", "{\"bits\": \"4\"}", "{\"bitz\": 4}",
                                        "{\"group\": -1}", "{\"symmetric\": 1}", "{\"method\": \"best\"}",
                                        "{\"activations\": \"bf16\"}", "{\"activations\": \"sign\"}",
                                        "{\"mmap\": true}"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        CHECK_STATUS(APL_FFI_ERR_CONFIG, apl_weights_from_f32(w, 4, 2, 2, wrong[i], out));
        CHECK(error_is("apl_weights_from_f32", "options"));
        CHECK_STATUS(APL_FFI_ERR_CONFIG, apl_weights_from_f64(wide, 4, 2, 2, wrong[i], out));
        CHECK(error_is("apl_weights_from_f64", "options"));
    }
    CHECK_STATUS(APL_FFI_ERR_ENCODING, apl_weights_from_f32(w, 4, 2, 2, "{\"\xff\": 4}", out));
    CHECK_STATUS(APL_FFI_ERR_RANGE, apl_weights_from_f32(w, 4, -2, 2, NULL, out));
    CHECK_STATUS(APL_FFI_ERR_LENGTH, apl_weights_from_f32(w, 3, 2, 2, NULL, out));
    CHECK(error_is("apl_weights_from_f32", "w_len is 3, expected rows * cols = 2 * 2 = 4"));
    CHECK_STATUS(APL_FFI_ERR_LENGTH, apl_weights_from_f32(w, 4, INT64_C(1) << 62, 4, NULL, out));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_weights_from_f32(NULL, 4, 2, 2, NULL, out));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_weights_from_f64(NULL, 4, 2, 2, NULL, out));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_weights_from_f32(w, 4, 2, 2, NULL, NULL));
    CHECK_STATUS(APL_FFI_ERR_RANGE, apl_weights_from_f32(w, 4, 2, 2, NULL, MISALIGNED(int32_t, out)));
    CHECK_STATUS(APL_FFI_ERR_RANGE, apl_weights_from_f32(MISALIGNED(const float, w), 2, 1, 2, NULL, out));
    /* 1e39 is beyond float32, 70000 beyond float16. */
    CHECK_STATUS(APL_FFI_ERR_RANGE, apl_weights_from_f64(wide, 4, 2, 2, NULL, out));
    w[1] = 70000;
    CHECK_STATUS(APL_FFI_ERR_RANGE, apl_weights_from_f32(w, 4, 2, 2, "{\"bits\": 16}", out));
    w[1] = NAN;
    CHECK_STATUS(APL_FFI_ERR_RANGE, apl_weights_from_f32(w, 4, 2, 2, NULL, out));
    CHECK(error_is("apl_weights_from_f32", "w at row 0, column 1 is NaN"));
    CHECK(out[0] == 7 && out[1] == 7);
}

/* ---- Handles ---- */

/* Every function that takes a weight handle refuses this one and does nothing. */
static void refused(int32_t h)
{
    float a[2] = {7, 7}, in[2] = {1, 2};
    double b[2] = {7, 7}, in64[2] = {1, 2};
    char json[8] = "7777777";
    CHECK_STATUS(APL_FFI_ERR_HANDLE, apl_matmul(h, in, 2, a, 2, 1));
    CHECK(error_is("apl_matmul", "handle"));
    CHECK_STATUS(APL_FFI_ERR_HANDLE, apl_matmul_f64(h, in64, 2, b, 2, 1));
    CHECK_STATUS(APL_FFI_ERR_HANDLE, apl_weights_info(h, json, 8));
    CHECK_STATUS(APL_FFI_ERR_HANDLE, apl_weights_dequantize(h, a, 2));
    CHECK_STATUS(APL_FFI_ERR_HANDLE, apl_weights_save(h, "no-such-folder/m.json", "w"));
    CHECK_STATUS(APL_FFI_ERR_HANDLE, apl_weights_free(h));
    CHECK(a[0] == 7 && a[1] == 7 && b[0] == 7 && b[1] == 7 && strcmp(json, "7777777") == 0);
}

/* Made-up numbers, and a live handle with any one bit flipped, among them those of the kind. */
static void handles(void)
{
    static const int32_t never[] = {0, -1, 1, 12345, INT32_MAX, INT32_MIN};
    const float w[4] = {1, 2, 3, 4}, in[2] = {1, 2};
    float out[2];
    int32_t first = 0, second = 0;
    CHECK_STATUS(APL_FFI_OK, apl_weights_from_f32(w, 4, 2, 2, NULL, &first));
    for (size_t i = 0; i < sizeof never / sizeof *never; i++)
        if (never[i] != first)
            refused(never[i]);
    refused(-first);
    for (int bit = 0; bit < 31; bit++)
        refused(first ^ (int32_t)(1u << bit));
    CHECK_STATUS(APL_FFI_OK, apl_weights_free(first));
    refused(first);
    CHECK_STATUS(APL_FFI_OK, apl_weights_from_f32(w, 4, 2, 2, NULL, &second));
    CHECK(second != first);
    refused(first); /* even if its slot is in use again */
    CHECK_STATUS(APL_FFI_OK, apl_matmul(second, in, 2, out, 2, 1));
    CHECK_STATUS(APL_FFI_OK, apl_weights_free(second));
}

static void products_of_a_handle(void)
{
    const float w[6] = {1, 2, 3, 4, 5, 6};
    float in[3] = {1, 2, 3}, out[3] = {7, 7, 7};
    double in64[3] = {1, 2, 1e39}, out64[2] = {7, 7};
    int32_t h = 0;
    CHECK_STATUS(APL_FFI_OK, apl_weights_from_f32(w, 6, 2, 3, "{\"bits\": 8, \"activations\": \"int8\"}", &h));
    CHECK_STATUS(APL_FFI_ERR_RANGE, apl_matmul(h, in, 3, out, 2, -1));
    CHECK_STATUS(APL_FFI_ERR_LENGTH, apl_matmul(h, in, 2, out, 2, 1));
    CHECK(error_is("apl_matmul", "x_len is 2, expected n * cols = 1 * 3 = 3"));
    CHECK_STATUS(APL_FFI_ERR_LENGTH, apl_matmul(h, in, 3, out, 3, 1));
    CHECK_STATUS(APL_FFI_ERR_LENGTH, apl_matmul(h, in, 3, out, 2, INT64_MAX));
    CHECK_STATUS(APL_FFI_ERR_LENGTH, apl_matmul(h, in, -3, out, 2, 1));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_matmul(h, NULL, 3, out, 2, 1));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_matmul(h, in, 3, NULL, 2, 1));
    CHECK_STATUS(APL_FFI_ERR_RANGE, apl_matmul(h, MISALIGNED(const float, in), 3, out, 2, 1));
    CHECK_STATUS(APL_FFI_ERR_RANGE, apl_matmul(h, in, 3, in, 2, 1));
    in[1] = NAN; /* which 8-bit activations cannot represent */
    CHECK_STATUS(APL_FFI_ERR_RANGE, apl_matmul(h, in, 3, out, 2, 1));
    CHECK_STATUS(APL_FFI_ERR_RANGE, apl_matmul_f64(h, in64, 3, out64, 2, 1));
    CHECK(error_is("apl_matmul_f64", "x[2] is 1e39"));
    CHECK_STATUS(APL_FFI_ERR_LENGTH, apl_matmul_f64(h, in64, 2, out64, 2, 1));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_matmul_f64(h, NULL, 3, out64, 2, 1));
    CHECK_STATUS(APL_FFI_ERR_LENGTH, apl_weights_dequantize(h, out, 3));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_weights_dequantize(h, NULL, 6));
    CHECK(out[0] == 7 && out[1] == 7 && out[2] == 7 && out64[0] == 7 && out64[1] == 7);
    CHECK_STATUS(APL_FFI_OK, apl_weights_free(h));
}

/* ---- Files ---- */

static void open_gives(int32_t status, const char *path, const char *name, const char *options, const char *said)
{
    int32_t h = 7;
    CHECK_STATUS(status, apl_weights_open(path, name, options, &h));
    CHECK(h == 7);
    CHECK(error_is("apl_weights_open", said));
}

/* A safetensors file with a tensor "w", (1, 2), of the given element type, and 8 bytes of data. */
static void write_safetensors(const char *path, const char *dtype)
{
    char file[256] = {0};
    int size = snprintf(file + 8, sizeof file - 8,
                        "{\"w\":{\"dtype\":\"%s\",\"shape\":[1,2],\"data_offsets\":[0,8]}}", dtype);
    file[0] = (char)size;
    scratch_write(path, file, 8 + (size_t)size + 8);
}

static void files(void)
{
    char folder[SCRATCH], path[SCRATCH], missing[SCRATCH];
    int32_t h = 0;
    scratch_make(folder);
    scratch_path(path, folder, "w.safetensors");
    scratch_path(missing, folder, "missing.json");
    write_safetensors(path, "F32");
    CHECK_STATUS(APL_FFI_OK, apl_weights_open(path, "w", NULL, &h));

    open_gives(APL_FFI_ERR_IO, missing, "w", NULL, missing);
    open_gives(APL_FFI_ERR_IO, "", "w", NULL, "");
    open_gives(APL_FFI_ERR_FORMAT, path, "v", NULL, "v");
    open_gives(APL_FFI_ERR_CONFIG, path, "w", "{\"mmap\": 1}", "mmap");
    open_gives(APL_FFI_ERR_ENCODING, path, "\xf0\x9f", NULL, "name");
    open_gives(APL_FFI_ERR_ENCODING, "\xff.json", "w", NULL, "path");
    open_gives(APL_FFI_ERR_NULL, NULL, "w", NULL, "path is NULL");
    open_gives(APL_FFI_ERR_NULL, path, NULL, NULL, "name is NULL");
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_weights_open(path, "w", NULL, NULL));
    write_safetensors(path, "I32");
    open_gives(APL_FFI_ERR_UNSUPPORTED, path, "w", NULL, "I32");
    scratch_write(path, "\377\377\377\377\377\377\377\177{}", 10);
    open_gives(APL_FFI_ERR_FORMAT, path, "w", NULL, path);
    scratch_path(path, folder, "w.gguf");
    scratch_write(path, "GGUF\1\0\0", 8);
    open_gives(APL_FFI_ERR_UNSUPPORTED, path, "w", NULL, "version 1");
    scratch_write(path, "GGUF\3", 5);
    open_gives(APL_FFI_ERR_FORMAT, path, "w", NULL, path);
    scratch_write(missing, "{", 1);
    open_gives(APL_FFI_ERR_FORMAT, missing, "w", NULL, missing);

    CHECK_STATUS(APL_FFI_ERR_NULL, apl_weights_save(h, NULL, "w"));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_weights_save(h, missing, NULL));
    CHECK_STATUS(APL_FFI_ERR_ENCODING, apl_weights_save(h, "\x80.json", "w"));
    CHECK_STATUS(APL_FFI_ERR_RANGE, apl_weights_save(h, path, "w")); /* not .json */
    CHECK_STATUS(APL_FFI_ERR_RANGE, apl_weights_save(h, missing, ""));
    scratch_path(path, folder, "no/such/folder.json");
    CHECK_STATUS(APL_FFI_ERR_IO, apl_weights_save(h, path, "w"));
    CHECK(error_is("apl_weights_save", folder));
    CHECK_STATUS(APL_FFI_OK, apl_weights_free(h));
    scratch_remove(folder);
}

/* ---- Configuration, memory, texts ---- */

static void configuration(void)
{
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
    CHECK_STATUS(APL_FFI_ERR_CONFIG, apl_ffi_init("{\"isa\": \"avx1024\"}"));
    CHECK(error_is("apl_ffi_init", "avx1024"));
    CHECK_STATUS(APL_FFI_ERR_CONFIG, apl_ffi_init("{\"isas\": \"auto\"}"));
    CHECK_STATUS(APL_FFI_ERR_ENCODING, apl_ffi_init("{\"isa\": \"\xc0\xaf\"}"));
    /* An ordinal that no machine has. */
    CHECK_STATUS(APL_FFI_ERR_BACKEND, apl_ffi_init("{\"backend\": \"cuda\", \"device\": 2147483647}"));
    CHECK(error_is("apl_ffi_init", "cuda"));
    CHECK_STATUS(0, apl_ffi_ready());
    CHECK_STATUS(APL_FFI_OK, apl_ffi_init("{\"threads\": 1}"));
    CHECK_STATUS(APL_FFI_ERR_STATE, apl_ffi_init("{\"threads\": 2}"));
    CHECK(error_is("apl_ffi_init", "configured otherwise"));
}

static void memory(void)
{
    enum { COUNT = 16 << 20 };
    struct rlimit before, none;
    float *w = allocate(COUNT, sizeof *w);
    int32_t h = 7;
    CHECK(getrlimit(RLIMIT_AS, &before) == 0);
    none = before;
    none.rlim_cur = 1 << 20; /* less than is in use: large allocations fail */
    CHECK(setrlimit(RLIMIT_AS, &none) == 0);
    int32_t status = apl_weights_from_f32(w, COUNT, 4096, 4096, "{\"bits\": 32}", &h);
    CHECK(setrlimit(RLIMIT_AS, &before) == 0);
    CHECK_STATUS(APL_FFI_ERR_MEMORY, status);
    CHECK(h == 7 && error_is("apl_weights_from_f32", "memory"));
    CHECK_STATUS(APL_FFI_OK, apl_weights_from_f32(w, COUNT, 4096, 4096, "{\"bits\": 32}", &h));
    CHECK_STATUS(APL_FFI_OK, apl_weights_free(h));
    free(w);
}

/* Whether the bytes are whole UTF-8 characters, judged by the first byte of each. */
static int whole_characters(const char *text)
{
    const unsigned char *p = (const unsigned char *)text;
    while (*p) {
        int length = *p < 0x80 ? 1 : *p < 0xe0 ? 2 : *p < 0xf0 ? 3 : 4;
        if (*p >= 0x80 && *p < 0xc2)
            return 0;
        for (p++; --length > 0; p++)
            if ((*p & 0xc0) != 0x80)
                return 0;
    }
    return 1;
}

/* The last error quotes the key, which has characters of one to four bytes. */
static void characters_are_not_cut(void)
{
    char whole[512], part[512];
    float w[1] = {1};
    int32_t h, cut = 0;
    CHECK_STATUS(APL_FFI_ERR_CONFIG,
                 apl_weights_from_f32(w, 1, 1, 1, "{\"a\xc3\xa9\xe2\x8e\x95\xf0\x9f\x90\xa7z\": 1}", &h));
    int32_t size = apl_ffi_last_error(whole, sizeof whole);
    CHECK(size > 0 && size < (int32_t)sizeof whole && strstr(whole, "a\xc3\xa9\xe2\x8e\x95\xf0\x9f\x90\xa7z"));
    for (int32_t capacity = 0; capacity <= size + 1; capacity++) {
        memset(part, '#', sizeof part);
        CHECK_STATUS(size, apl_ffi_last_error(capacity ? part : NULL, capacity));
        CHECK(part[capacity] == '#');
        if (capacity == 0)
            continue;
        size_t length = strlen(part);
        CHECK(length < (size_t)capacity && (size_t)capacity - length <= 4);
        CHECK(memcmp(part, whole, length) == 0 && whole_characters(part));
        cut += length + 1 < (size_t)capacity && capacity <= size;
    }
    CHECK(cut == 1 + 2 + 3);
}

static void texts(void)
{
    char text[256] = "#";
    const float w[1] = {1};
    int32_t h = 0;
    CHECK_STATUS(APL_FFI_OK, apl_weights_from_f32(w, 1, 1, 1, NULL, &h));
    CHECK(apl_weights_info(h, NULL, 0) > 0 && apl_ffi_info(NULL, 0) > 0 && apl_ffi_describe(NULL, 0) > 0);
    CHECK(apl_ffi_status_message(APL_FFI_ERR_IO, NULL, 0) > 0 && apl_ffi_last_error(NULL, 0) >= 0);
    CHECK_STATUS(APL_FFI_ERR_LENGTH, apl_weights_info(h, text, -1));
    CHECK_STATUS(APL_FFI_ERR_LENGTH, apl_ffi_info(text, -1));
    CHECK_STATUS(APL_FFI_ERR_LENGTH, apl_ffi_describe(text, INT32_MIN));
    CHECK_STATUS(APL_FFI_ERR_LENGTH, apl_ffi_last_error(text, -1));
    CHECK_STATUS(APL_FFI_ERR_LENGTH, apl_ffi_status_message(0, text, -1));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_weights_info(h, NULL, 1));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_ffi_info(NULL, 1));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_ffi_describe(NULL, 1));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_ffi_last_error(NULL, 1));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_ffi_status_message(0, NULL, 1));
    CHECK(strcmp(text, "#") == 0);
    CHECK_STATUS(APL_FFI_OK, apl_weights_free(h));
}

/* Each status has a text of its own; so has a number that is not a status. */
static void every_status_has_a_text(void)
{
    static const int32_t statuses[] = {
        APL_FFI_OK, APL_FFI_ERR_NULL, APL_FFI_ERR_LENGTH, APL_FFI_ERR_RANGE, APL_FFI_ERR_HANDLE, APL_FFI_ERR_CONFIG,
        APL_FFI_ERR_IO, APL_FFI_ERR_FORMAT, APL_FFI_ERR_UNSUPPORTED, APL_FFI_ERR_MEMORY, APL_FFI_ERR_BACKEND,
        APL_FFI_ERR_STATE, APL_FFI_ERR_ENCODING, APL_FFI_ERR_INTERNAL, 12345};
    enum { COUNT = sizeof statuses / sizeof *statuses };
    for (int i = 0; i < COUNT; i++) {
        char text[256];
        const char *constant = apl_ffi_status_text(statuses[i]);
        CHECK(apl_ffi_status_message(statuses[i], text, sizeof text) == (int32_t)strlen(constant));
        CHECK(strcmp(text, constant) == 0 && *text);
        for (int j = 0; j < i; j++)
            CHECK(strcmp(constant, apl_ffi_status_text(statuses[j])) != 0);
    }
}

int main(void)
{
    test("one wrong argument has one answer", one_wrong_argument);
    test("of two wrong arguments the earlier check answers", two_wrong_arguments);
    test("quantising", quantising);
    test("weights from floats", weights_from_floats);
    test("handles that are none, or not any more", handles);
    test("products of a handle", products_of_a_handle);
    test("files", files);
    test("configuration", configuration);
    if (getenv("APL_FFI_SANITIZED"))
        skipped("memory that cannot be had", "a sanitizer needs the address space");
    else
        test("memory that cannot be had", memory);
    test("a text is not cut within a character", characters_are_not_cut);
    test("texts without room", texts);
    test("every status has a text", every_status_has_a_text);
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
    return finish();
}
