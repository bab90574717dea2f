/* Quantising and dequantising: the meaning of codes, their error, and packing. */
#include <string.h>

#include "apl_ffi.h"
#include "check.h"
#include "oracle.h"

static const int32_t widths[] = {1, 2, 4, 8};

/* The result of apl_quantize for `w`, with its codes unpacked; all arrays are allocated. */
struct quantised {
    struct matrix m;
    uint8_t *packed;
    float *dequantised;
};

static struct quantised quantise(const float *w, int64_t rows, int64_t cols, int32_t bits, int32_t group,
                                 int32_t method, int symmetric)
{
    struct quantised q;
    struct matrix *m = &q.m;
    int64_t bytes = rows * packed_row(cols, bits);
    *m = random_matrix(rows, cols, bits, group);
    free(m->codes);
    q.packed = allocate((size_t)bytes, 1);
    q.dequantised = allocate((size_t)(rows * cols), sizeof *q.dequantised);
    if (symmetric)
        m->zero_points_len = 0;
    CHECK_STATUS(APL_FFI_OK, apl_quantize(w, rows * cols, rows, cols, bits, group, method, q.packed, bytes, m->scales,
                                          m->scales_len, m->zero_points, m->zero_points_len));
    m->codes = unpack(q.packed, rows, cols, bits);
    CHECK_STATUS(APL_FFI_OK, apl_dequantize(q.packed, bytes, bits, 1, m->scales, m->scales_len, m->zero_points,
                                            m->zero_points_len, q.dequantised, rows * cols, rows, cols, group));
    return q;
}

static void free_quantised(struct quantised *q)
{
    free_matrix(&q->m);
    free(q->packed);
    free(q->dequantised);
}

static double squared_error(const float *w, const float *v, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += ((double)w[i] - v[i]) * ((double)w[i] - v[i]);
    return sum;
}

/* Dequantising gives the defined value, rounded once, from packed and from unpacked codes; rounding
 * to nearest leaves every weight within half a step. */
static void one_matrix(int64_t rows, int64_t cols, int32_t bits, int32_t group, int32_t method, int symmetric)
{
    float *w = gaussian(rows * cols), *plain = allocate((size_t)(rows * cols), sizeof *plain);
    struct quantised q = quantise(w, rows, cols, bits, group, method, symmetric);
    const struct matrix *m = &q.m;
    int differences = 0, far = 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            double value = weight(m, r, c), step = fabs(m->scales[place(m, m->scales_len, r, c)]);
            differences += q.dequantised[r * cols + c] != (float)value;
            far += bits > 1 && method == 0 && !(fabs(w[r * cols + c] - value) <= 0.5 * step * (1 + 1e-6));
            far += bits == 1 && m->codes[r * cols + c] != (w[r * cols + c] >= 0);
        }
    CHECK(differences == 0);
    CHECK(far == 0);
    CHECK_STATUS(APL_FFI_OK, apl_dequantize(m->codes, rows * cols, bits, 0, m->scales, m->scales_len, m->zero_points,
                                            m->zero_points_len, plain, rows * cols, rows, cols, group));
    CHECK(memcmp(plain, q.dequantised, (size_t)(rows * cols) * sizeof *plain) == 0);
    if (check_failures)
        printf("    %d bits, %dx%d, group %d, method %d, symmetric %d\n", bits, (int)rows, (int)cols, group, method,
               symmetric);
    free_quantised(&q);
    free(w);
    free(plain);
}

static void awkward_shapes(void)
{
    static const int64_t rows[] = {0, 1, 5}, cols[] = {0, 1, 7, 33, 172};
    static const int32_t group[] = {0, 1, 7, 32, 200};
    for (int b = 0; b < 4; b++)
        for (int r = 0; r < 3; r++)
            for (int c = 0; c < 5; c++)
                for (int g = 0; g < 5 && !check_failures; g++)
                    for (int32_t method = 0; method < 2; method++) {
                        one_matrix(rows[r], cols[c], widths[b], group[g], method, 1);
                        if (widths[b] > 1)
                            one_matrix(rows[r], cols[c], widths[b], group[g], method, 0);
                    }
}

/* The scale of least squared error is the mean magnitude, rounded to float16. */
static void one_bit(void)
{
    enum { COLS = 96 };
    float *w = gaussian(COLS);
    struct quantised q = quantise(w, 1, COLS, 1, 32, 0, 1);
    for (int g = 0; g < 3; g++) {
        double mean = 0;
        for (int c = 0; c < 32; c++)
            mean += fabs(w[32 * g + c]) / 32;
        CHECK(fabs(q.m.scales[g] - mean) <= mean / 2048);
    }
    free_quantised(&q);
    free(w);
}

static void errors_on_gaussian_data(void)
{
    enum { ROWS = 64, COLS = 1024 };
    float *w = gaussian(ROWS * COLS), *zero = allocate(ROWS * COLS, sizeof *zero);
    double power = squared_error(w, zero, ROWS * COLS);
    for (int b = 0; b < 4; b++)
        for (int symmetric = widths[b] == 1; symmetric < 2; symmetric++) {
            struct quantised nearest = quantise(w, ROWS, COLS, widths[b], 32, 0, symmetric);
            struct quantised searched = quantise(w, ROWS, COLS, widths[b], 32, 1, symmetric);
            double n = squared_error(w, nearest.dequantised, ROWS * COLS);
            double s = squared_error(w, searched.dequantised, ROWS * COLS);
            CHECK(s <= n);
            CHECK(widths[b] != 4 || sqrt(n / power) < 0.10);
            CHECK(widths[b] != 8 || sqrt(n / power) < 0.007);
            free_quantised(&nearest);
            free_quantised(&searched);
        }
    free(w);
    free(zero);
}

/* A normal float16 number uses 11 of the 24 bits of a float32 significand. */
static int is_half(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return v == 0 || ((bits & 0x1fff) == 0 && fabsf(v) >= ldexpf(1, -14) && fabsf(v) <= 65504);
}

static void scales_are_halves_where_they_can_be(void)
{
    enum { ROWS = 2, COLS = 64, G = 2 };
    float *w = gaussian(ROWS * COLS);
    struct quantised q = quantise(w, ROWS, COLS, 4, 32, 0, 1);
    for (int i = 0; i < ROWS * G; i++)
        CHECK(is_half(q.m.scales[i]));
    free_quantised(&q);
    w[70] = 1e9f; /* one scale beyond the range of float16 */
    q = quantise(w, ROWS, COLS, 4, 32, 0, 1);
    CHECK(fabsf(q.dequantised[70] - 1e9f) <= 1e9f / 16);
    free_quantised(&q);
    free(w);
}

static void weights_on_a_grid_come_back(void)
{
    enum { COLS = 64 };
    float ternary[COLS], sixteen[COLS], zero[COLS] = {0};
    for (int c = 0; c < COLS; c++) {
        ternary[c] = 0.75f * (float)(c % 3 - 1);
        sixteen[c] = 0.5f * (float)(c % 16 - 3);
    }
    struct quantised q = quantise(ternary, 1, COLS, 2, 32, 0, 1);
    CHECK(memcmp(q.dequantised, ternary, sizeof ternary) == 0);
    free_quantised(&q);
    q = quantise(sixteen, 1, COLS, 4, 0, 0, 0);
    CHECK(memcmp(q.dequantised, sixteen, sizeof sixteen) == 0);
    free_quantised(&q);
    for (int b = 0; b < 4; b++) {
        q = quantise(zero, 1, COLS, widths[b], 32, 1, 1);
        for (int c = 0; c < COLS; c++)
            CHECK(q.dequantised[c] == 0);
        free_quantised(&q);
    }
}

int main(void)
{
    test("codes, packing and dequantising of awkward shapes", awkward_shapes);
    test("one bit keeps the signs and the mean magnitude", one_bit);
    test("errors on Gaussian data; the search is never worse", errors_on_gaussian_data);
    test("scales are float16 numbers where they can be", scales_are_halves_where_they_can_be);
    test("weights that are on a grid come back", weights_on_a_grid_come_back);
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
    return finish();
}
