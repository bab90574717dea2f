/* One-shot products at every instruction set, compared with the definition in float64. */
#include <string.h>

#include "apl_ffi.h"
#include "check.h"
#include "oracle.h"

/* The error that the contract allows, relative to the norms. */
#define BOUND 1e-5
#define UNTOUCHED 12345.5f

static const int32_t widths[] = {1, 2, 4, 8};

static float *untouched(int64_t count)
{
    float *y = allocate((size_t)count, sizeof *y);
    for (int64_t i = 0; i < count; i++)
        y[i] = UNTOUCHED;
    return y;
}

/* `n` products with the codes of `m`, packed or not; n = 0 calls the function for one vector. */
static int32_t call(const struct matrix *m, int32_t packing, uint8_t padding, int32_t mode, const float *x, float *y,
                    int64_t n)
{
    uint8_t *packed = pack(m, padding);
    const uint8_t *codes = packing ? packed : m->codes;
    int64_t codes_len = m->rows * (packing ? packed_row(m->cols, m->bits) : m->cols);
    int64_t vectors = n ? n : 1, x_len = vectors * m->cols, y_len = vectors * m->rows;
    int32_t status;
    if (m->bits == 1 && n)
        status = apl_matmul_1bit_batch(codes, codes_len, m->scales, m->scales_len, x, x_len, y, y_len, m->rows,
                                       m->cols, m->group, mode, n);
    else if (m->bits == 1)
        status = apl_matmul_1bit(codes, codes_len, m->scales, m->scales_len, x, x_len, y, y_len, m->rows, m->cols,
                                 m->group, mode);
    else if (n)
        status = apl_matmul_q_batch(codes, codes_len, m->bits, packing, m->scales, m->scales_len, m->zero_points,
                                    m->zero_points_len, x, x_len, y, y_len, m->rows, m->cols, m->group, n);
    else
        status = apl_matmul_q(codes, codes_len, m->bits, packing, m->scales, m->scales_len, m->zero_points,
                              m->zero_points_len, x, x_len, y, y_len, m->rows, m->cols, m->group);
    free(packed);
    return status;
}

/* A batch agrees with the oracle, whatever the padding bits are, and each of its vectors has the
 * same bits as in a call of its own. */
static void shape(int64_t rows, int64_t cols, int32_t bits, int32_t group, int32_t packing)
{
    enum { N = 3 };
    struct matrix m = random_matrix(rows, cols, bits, group);
    double *w = weights(&m);
    float *x = gaussian(N * cols), *y = untouched(N * rows), *again = untouched(N * rows);
    CHECK_STATUS(APL_FFI_OK, call(&m, packing, 0x00, 0, x, y, N));
    double error = worst_error(w, x, y, rows, cols, N);
    if (!(error <= BOUND))
        printf("    %d bits, packing %d, %dx%d, group %d: error %g\n", bits, packing, (int)rows, (int)cols, group,
               error);
    CHECK(error <= BOUND);
    for (int v = 0; v < N; v++)
        CHECK_STATUS(APL_FFI_OK, call(&m, packing, 0xff, 0, x + v * cols, again + v * rows, 0));
    CHECK(memcmp(y, again, (size_t)(N * rows) * sizeof *y) == 0);
    free(w);
    free(x);
    free(y);
    free(again);
    free_matrix(&m);
}

static void awkward_shapes(void)
{
    static const int64_t rows[] = {0, 1, 5, 33}, cols[] = {0, 1, 7, 33, 64, 172};
    static const int32_t group[] = {0, 1, 7, 32, 200};
    for (int b = 0; b < 4; b++)
        for (int r = 0; r < 4; r++)
            for (int c = 0; c < 6; c++)
                for (int g = 0; g < 5; g++) {
                    shape(rows[r], cols[c], widths[b], group[g], 1);
                    if (widths[b] > 1)
                        shape(rows[r], cols[c], widths[b], group[g], 0);
                }
}

static void long_rows(void)
{
    for (int b = 0; b < 4; b++) {
        shape(3, 20001, widths[b], 0, 1);
        shape(65, 4097, widths[b], 32, 1);
    }
}

/* A long float32 sum loses most accuracy on a constant row. */
static void constant_data(void)
{
    enum { COLS = 40000 };
    struct matrix m = random_matrix(1, COLS, 8, 0);
    memset(m.codes, 255, COLS);
    m.scales[0] = 0.1f;
    m.zero_points[0] = 3;
    double *w = weights(&m);
    float *x = allocate(COLS, sizeof *x), y = UNTOUCHED;
    for (int c = 0; c < COLS; c++)
        x[c] = 1.1f;
    CHECK_STATUS(APL_FFI_OK, call(&m, 1, 0, 0, x, &y, 0));
    CHECK(worst_error(w, x, &y, 1, COLS, 1) <= BOUND);
    free(w);
    free(x);
    free_matrix(&m);
}

static void forms_of_scales(void)
{
    enum { ROWS = 3, COLS = 70, N = 2 };
    static const int64_t lengths[] = {1, ROWS, ROWS * 3}, zero_lengths[] = {0, 1, ROWS, ROWS * 3};
    float *x = gaussian(N * COLS);
    for (int s = 0; s < 3; s++)
        for (int z = 0; z < 4; z++) {
            struct matrix m = random_matrix(ROWS, COLS, 4, 32);
            float y[N * ROWS];
            m.scales_len = lengths[s];
            m.zero_points_len = zero_lengths[z];
            double *w = weights(&m);
            CHECK_STATUS(APL_FFI_OK, call(&m, 1, 0, 0, x, y, N));
            CHECK(worst_error(w, x, y, ROWS, COLS, N) <= BOUND);
            free(w);
            free_matrix(&m);
        }
    free(x);
}

/* With one scale per row, the result is a float32 product of that scale and an integer. */
static void signs(void)
{
    enum { ROWS = 9, COLS = 1030, N = 3 };
    struct matrix m = random_matrix(ROWS, COLS, 1, 0);
    float *x = gaussian(N * COLS), y[N * ROWS];
    x[0] = 0.0f;
    x[1] = -0.0f;
    x[2] = NAN;
    x[3] = -INFINITY;
    CHECK_STATUS(APL_FFI_OK, call(&m, 1, 0xff, 1, x, y, N));
    for (int v = 0; v < N; v++)
        for (int r = 0; r < ROWS; r++) {
            int sum = 0;
            for (int c = 0; c < COLS; c++)
                sum += (m.codes[r * COLS + c] ? 1 : -1) * (x[v * COLS + c] >= 0 ? 1 : -1);
            CHECK(y[v * ROWS + r] == (float)((double)m.scales[r] * sum));
        }
    free(x);
    free_matrix(&m);

    /* With groups, it is a sum of such products. */
    m = random_matrix(ROWS, COLS, 1, 32);
    x = gaussian(N * COLS);
    for (int i = 0; i < N * COLS; i++)
        x[i] = x[i] >= 0 ? 1.0f : -1.0f;
    double *w = weights(&m);
    CHECK_STATUS(APL_FFI_OK, call(&m, 1, 0, 1, x, y, N));
    CHECK(worst_error(w, x, y, ROWS, COLS, N) <= BOUND);
    free(w);
    free(x);
    free_matrix(&m);
}

static void nothing_to_multiply(void)
{
    const uint8_t codes[2] = {0x12, 0x34};
    const float scale = 1, x[2] = {1, 2};
    float y[4] = {UNTOUCHED, UNTOUCHED, UNTOUCHED, UNTOUCHED};
    /* No columns give zeros. Arrays of length 0 may have any pointer. */
    CHECK_STATUS(APL_FFI_OK, apl_matmul_q_batch(NULL, 0, 4, 1, NULL, 0, NULL, 0, NULL, 0, y, 2, 2, 0, 32, 1));
    CHECK(y[0] == 0 && y[1] == 0 && y[2] == UNTOUCHED);
    /* No vectors or no rows give nothing. */
    CHECK_STATUS(APL_FFI_OK, apl_matmul_q_batch(codes, 2, 4, 1, &scale, 1, NULL, 0, x, 0, y, 0, 2, 2, 0, 0));
    CHECK_STATUS(APL_FFI_OK, apl_matmul_1bit_batch(NULL, 0, NULL, 0, x, 2, NULL, 0, 0, 2, 0, 0, 1));
    CHECK_STATUS(APL_FFI_OK, apl_matmul_1bit(NULL, 0, NULL, 0, x, 2, (float *)1, 0, 0, 2, 0, 1));
    CHECK(y[2] == UNTOUCHED && y[3] == UNTOUCHED);
}

static void infinities(void)
{
    enum { ROWS = 2, COLS = 70 };
    struct matrix m = random_matrix(ROWS, COLS, 4, 32);
    float x[COLS] = {0}, y[ROWS];
    m.codes[40] = m.codes[COLS + 40] = 9;
    for (int i = 0; i < ROWS * 3; i++) {
        m.zero_points[i] = 8;
        m.scales[i] = i < 3 ? 1.0f : -1.0f;
    }
    x[40] = INFINITY;
    /* The other elements of x are 0, and their weights are finite. */
    CHECK_STATUS(APL_FFI_OK, call(&m, 1, 0, 0, x, y, 0));
    CHECK(isinf(y[0]) && y[0] > 0 && isinf(y[1]) && y[1] < 0);
    x[41] = NAN;
    CHECK_STATUS(APL_FFI_OK, call(&m, 1, 0, 0, x, y, 0));
    CHECK(isnan(y[0]) && isnan(y[1]));
    free_matrix(&m);
}

/* Byte arrays need no alignment. */
static void bytes_at_any_address(void)
{
    enum { ROWS = 4, COLS = 64 };
    struct matrix m = random_matrix(ROWS, COLS, 4, 32);
    uint8_t *packed = pack(&m, 0), *room = allocate(ROWS * COLS / 2 + 8, 1);
    float *x = gaussian(COLS), y[ROWS], moved[ROWS];
    CHECK_STATUS(APL_FFI_OK, call(&m, 1, 0, 0, x, y, 0));
    for (int offset = 0; offset < 8; offset++) {
        memcpy(room + offset, packed, ROWS * COLS / 2);
        CHECK_STATUS(APL_FFI_OK,
                     apl_matmul_q(room + offset, ROWS * COLS / 2, 4, 1, m.scales, m.scales_len, m.zero_points,
                                  m.zero_points_len, x, COLS, moved, ROWS, ROWS, COLS, 32));
        CHECK(memcmp(y, moved, sizeof y) == 0);
    }
    free(packed);
    free(room);
    free(x);
    free_matrix(&m);
}

/* Every test at one instruction set, if the processor has it; the library must report that one. */
static void at_level(const char *isa)
{
    char name[80], config[64], info[4096], found[64];
    snprintf(config, sizeof config, "{\"isa\": \"%s\", \"threads\": 2}", isa);
    snprintf(found, sizeof found, "\"isa\":\"%s\"", isa);
    if (apl_ffi_init(config) == APL_FFI_ERR_UNSUPPORTED) {
        snprintf(name, sizeof name, "products at %s", isa);
        skipped(name, "the processor lacks it");
        return;
    }
    apl_ffi_info(info, sizeof info);
    if (!strstr(info, found)) {
        fprintf(stderr, "asked for %s, found %s\n", isa, info);
        exit(2);
    }
    static const struct {
        const char *name;
        void (*body)(void);
    } tests[] = {
        {"awkward shapes", awkward_shapes},
        {"long rows", long_rows},
        {"a long row of constants", constant_data},
        {"every form of scales and zero points", forms_of_scales},
        {"sign activations are exact", signs},
        {"nothing to multiply", nothing_to_multiply},
        {"infinities and NaN", infinities},
        {"bytes at any address", bytes_at_any_address},
    };
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        snprintf(name, sizeof name, "%s: %s", isa, tests[i].name);
        test(name, tests[i].body);
    }
    apl_ffi_cleanup();
}

int main(void)
{
    at_level("scalar");
    at_level("avx2");
    at_level("avx512");
    return finish();
}
