/* An independent implementation of the formats and of products, in float64; random data; and the
 * error of a result.
 */
#ifndef APL_FFI_ORACLE_H
#define APL_FFI_ORACLE_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "check.h"

/* ---- Random numbers, the same in every run ---- */

/* The upper bits of a linear congruential generator modulo 2^64. */
static inline uint32_t random_bits(void)
{
    static uint64_t state = 1;
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(state >> 32);
}

static inline double random_uniform(void)
{
    return (random_bits() + 0.5) / 4294967296.0;
}

/* Allocates `count` Gaussian numbers. */
static inline float *gaussian(int64_t count)
{
    float *v = allocate((size_t)count, sizeof *v);
    for (int64_t i = 0; i < count; i++)
        v[i] = (float)(sqrt(-2 * log(random_uniform())) * cos(6.283185307179586 * random_uniform()));
    return v;
}

/* ---- Codes ---- */

/* A quantised matrix. `codes`: (rows, cols), one code per byte. `scales`, `zero_points`: 1, rows or
 * rows * G values; `zero_points` may have none. */
struct matrix {
    int64_t rows, cols;
    int32_t bits, group;
    uint8_t *codes;
    float *scales;
    int64_t scales_len;
    int32_t *zero_points;
    int64_t zero_points_len;
};

/* G, the number of groups per row. */
static inline int64_t groups(int64_t cols, int32_t group)
{
    return group == 0 ? 1 : (cols + group - 1) / group;
}

static inline int64_t packed_row(int64_t cols, int32_t bits)
{
    return (cols * bits + 7) / 8;
}

/* The index of the value for element (r, c) in an array of 1, rows or rows * G values. */
static inline int64_t place(const struct matrix *m, int64_t len, int64_t r, int64_t c)
{
    if (len == 1)
        return 0;
    if (len == m->rows)
        return r;
    return r * groups(m->cols, m->group) + (m->group == 0 ? 0 : c / m->group);
}

static inline double weight(const struct matrix *m, int64_t r, int64_t c)
{
    double code = m->codes[r * m->cols + c], scale = m->scales[place(m, m->scales_len, r, c)];
    if (m->bits == 1)
        return code == 1 ? scale : -scale;
    if (m->zero_points_len == 0)
        return scale * (code - (1 << (m->bits - 1)));
    return scale * (code - m->zero_points[place(m, m->zero_points_len, r, c)]);
}

/* Allocates the weights, (rows, cols). */
static inline double *weights(const struct matrix *m)
{
    double *w = allocate((size_t)(m->rows * m->cols), sizeof *w);
    for (int64_t r = 0; r < m->rows; r++)
        for (int64_t c = 0; c < m->cols; c++)
            w[r * m->cols + c] = weight(m, r, c);
    return w;
}

/* Random codes, with a scale and (except for 1 bit) a zero point per group. */
static inline struct matrix random_matrix(int64_t rows, int64_t cols, int32_t bits, int32_t group)
{
    struct matrix m = {.rows = rows, .cols = cols, .bits = bits, .group = group};
    m.scales_len = rows * groups(cols, group);
    m.zero_points_len = bits == 1 ? 0 : m.scales_len;
    m.scales = gaussian(m.scales_len);
    m.codes = allocate((size_t)(rows * cols), 1);
    m.zero_points = allocate((size_t)m.zero_points_len, sizeof *m.zero_points);
    for (int64_t i = 0; i < rows * cols; i++)
        m.codes[i] = (uint8_t)(random_bits() >> (32 - bits));
    for (int64_t i = 0; i < m.zero_points_len; i++)
        m.zero_points[i] = (int32_t)(random_bits() >> (32 - bits));
    return m;
}

static inline void free_matrix(struct matrix *m)
{
    free(m->codes);
    free(m->scales);
    free(m->zero_points);
}

/* Allocates the packed codes, (rows, packed_row), first code in the most significant bits. The bits
 * left over at the end of a row are those of `padding`. */
static inline uint8_t *pack(const struct matrix *m, uint8_t padding)
{
    int64_t bytes = packed_row(m->cols, m->bits);
    uint8_t *packed = allocate((size_t)(m->rows * bytes), 1);
    for (int64_t r = 0; r < m->rows; r++)
        for (int64_t bit = 0; bit < bytes * 8; bit++) {
            int64_t c = bit / m->bits, shift = m->bits - 1 - bit % m->bits;
            int one = c < m->cols ? m->codes[r * m->cols + c] >> shift & 1 : padding >> (7 - bit % 8) & 1;
            packed[r * bytes + bit / 8] |= (uint8_t)(one << (7 - bit % 8));
        }
    return packed;
}

/* Allocates the unpacked codes, (rows, cols), one per byte. */
static inline uint8_t *unpack(const uint8_t *packed, int64_t rows, int64_t cols, int32_t bits)
{
    int64_t bytes = packed_row(cols, bits);
    uint8_t *codes = allocate((size_t)(rows * cols), 1);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t bit = 0; bit < cols * bits; bit++) {
            uint8_t *code = &codes[r * cols + bit / bits];
            *code = (uint8_t)(*code << 1 | (packed[r * bytes + bit / 8] >> (7 - bit % 8) & 1));
        }
    return codes;
}

/* ---- Products ---- */

/* The largest |y - W x| / (|row of W| |x|) over `n` vectors: W (rows, cols), x (n, cols),
 * y (n, rows). Infinite if a result is not finite, or if an error exceeds the norms, which may be
 * zero. */
static inline double worst_error(const double *w, const float *x, const float *y, int64_t rows, int64_t cols, int64_t n)
{
    double worst = 0;
    for (int64_t v = 0; v < n; v++)
        for (int64_t r = 0; r < rows; r++) {
            double sum = 0, ww = 0, xx = 0;
            for (int64_t c = 0; c < cols; c++) {
                double a = w[r * cols + c], b = x[v * cols + c];
                sum += a * b;
                ww += a * a;
                xx += b * b;
            }
            double error = fabs(y[v * rows + r] - sum), norms = sqrt(ww * xx);
            /* Negated, so that it also catches NaN. */
            if (!(error <= norms))
                return HUGE_VAL;
            if (norms > 0)
                worst = fmax(worst, error / norms);
        }
    return worst;
}

/* |y - W x| / |W x|, with norms over all `n` vectors. */
static inline double relative_error(const double *w, const float *x, const float *y, int64_t rows, int64_t cols,
                                    int64_t n)
{
    double difference = 0, norm = 0;
    for (int64_t v = 0; v < n; v++)
        for (int64_t r = 0; r < rows; r++) {
            double sum = 0;
            for (int64_t c = 0; c < cols; c++)
                sum += w[r * cols + c] * x[v * cols + c];
            difference += (y[v * rows + r] - sum) * (y[v * rows + r] - sum);
            norm += sum * sum;
        }
    return sqrt(difference / norm);
}

#endif
