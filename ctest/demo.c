/* Quantises a Gaussian matrix to each width, compares its products with float64, and prints a table
 * of error, size and speed on this machine. Exits with 1 if an error exceeds its bound.
 *
 * usage: demo [rows cols]
 */
#define _POSIX_C_SOURCE 199309L

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "apl_ffi.h"

enum { GROUP = 32, MANY = 64 };

static void fail(const char *what)
{
    char text[512];
    apl_ffi_last_error(text, (int32_t)sizeof text);
    fprintf(stderr, "demo: %s: %s\n", what, text);
    exit(2);
}

static void *allocate(size_t count, size_t size)
{
    void *p = calloc(count ? count : 1, size);
    if (!p) {
        fprintf(stderr, "demo: no memory\n");
        exit(2);
    }
    return p;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A uniform number in (0, 1): the upper bits of a linear congruential generator modulo 2^64. */
static double uniform(void)
{
    static uint64_t state = 1;
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return ((double)(state >> 11) + 0.5) / 9007199254740992.0;
}

static void gaussian(float *v, size_t n)
{
    for (size_t i = 0; i < n; i++)
        v[i] = (float)(sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform()));
}

/* Copies the value of a key of a flat JSON object, without quotes; empty if there is none. */
static void field(const char *json, const char *key, char *value, size_t capacity)
{
    char quoted[64];
    size_t n = 0;
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *p = strstr(json, quoted);
    if (p)
        for (p += strlen(quoted); *p && !strchr(",}", *p) && n + 1 < capacity; p++)
            if (!strchr("\" ", *p))
                value[n++] = *p;
    value[n] = 0;
}

/* y = W x in float64; W (rows, cols). Into `worst`, if given: the largest
 * |y[r] - got[r]| / (|W[r]| |x|). */
static void product(const float *w, const float *x, double *y, int64_t rows, int64_t cols, const float *got,
                    double *worst)
{
    double xx = 0;
    for (int64_t c = 0; c < cols; c++)
        xx += (double)x[c] * x[c];
    for (int64_t r = 0; r < rows; r++) {
        const float *row = w + r * cols;
        double sum = 0, ww = 0;
        for (int64_t c = 0; c < cols; c++) {
            sum += (double)row[c] * x[c];
            ww += (double)row[c] * row[c];
        }
        y[r] = sum;
        if (worst && ww * xx > 0)
            *worst = fmax(*worst, fabs(sum - got[r]) / sqrt(ww * xx));
    }
}

/* |got - want| / |want|. */
static double relative_error(const float *got, const double *want, int64_t n)
{
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        difference += (got[i] - want[i]) * (got[i] - want[i]);
        norm += want[i] * want[i];
    }
    return norm > 0 ? sqrt(difference / norm) : sqrt(difference);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median seconds of a product of n vectors, over calls for 0.2 s, at least three. */
static double median_seconds(int32_t weights, const float *x, float *y, int64_t rows, int64_t cols, int64_t n)
{
    enum { MOST = 4096 };
    static double seconds[MOST];
    int calls = 0;
    double end = now() + 0.2;
    while (calls < 3 || (calls < MOST && now() < end)) {
        double start = now();
        if (apl_matmul(weights, x, n * cols, y, n * rows, n) != APL_FFI_OK)
            fail("apl_matmul");
        seconds[calls++] = now() - start;
    }
    qsort(seconds, (size_t)calls, sizeof *seconds, ascending);
    return seconds[calls / 2];
}

/* Bounds of the relative error of quantising a Gaussian matrix in groups of 32. For comparison, the
 * best quantiser with as many levels (Lloyd-Max): 1 bit 0.603, 2 bits 0.343, 4 bits 0.097, 8 bits
 * 0.005. */
static double quantising_bound(int32_t bits)
{
    switch (bits) {
    case 1: return 0.62;
    case 2: return 0.45;
    case 4: return 0.10;
    default: return 0.007;
    }
}

/* The data of every row of the table. */
typedef struct {
    int64_t rows, cols;
    const float *w;     /* (rows, cols), before quantising */
    const float *x;     /* (MANY, cols) */
    const float *signs; /* (cols): the signs of x[0] */
} Problem;

/* Measures and prints one row of the table; 1 if its errors are within bounds. */
static int measure(const Problem *p, int32_t bits, const char *activations)
{
    const int64_t rows = p->rows, cols = p->cols;
    float *dequantised = allocate((size_t)(rows * cols), sizeof *dequantised);
    float *y = allocate((size_t)(MANY * rows), sizeof *y);
    double *want = allocate((size_t)rows, sizeof *want);
    char options[128], info[1024], stored[32];
    int32_t weights;

    snprintf(options, sizeof options,
             "{\"bits\": %" PRId32 ", \"group\": %d, \"method\": \"%s\", \"activations\": \"%s\"}", bits, GROUP,
             bits < 4 ? "search" : "nearest", activations);
    if (apl_weights_from_f32(p->w, rows * cols, rows, cols, options, &weights))
        fail("apl_weights_from_f32");
    if (apl_weights_info(weights, info, (int32_t)sizeof info) < 0)
        fail("apl_weights_info");
    field(info, "bytes", stored, sizeof stored);
    if (apl_weights_dequantize(weights, dequantised, rows * cols))
        fail("apl_weights_dequantize");

    const float *x = strcmp(activations, "sign") ? p->x : p->signs;
    if (apl_matmul(weights, p->x, cols, y, rows, 1))
        fail("apl_matmul");
    product(p->w, x, want, rows, cols, NULL, NULL);
    const double quantising = relative_error(y, want, rows);
    double worst = 0;
    product(dequantised, x, want, rows, cols, y, &worst);
    const double arithmetic = relative_error(y, want, rows);

    const int int8 = !strcmp(activations, "int8");
    const double added = int8 ? 0.01 : 0;
    const int good = quantising <= quantising_bound(bits) + added && (int8 ? arithmetic <= added : worst <= 1e-5);
    const double one = median_seconds(weights, p->x, y, rows, cols, 1);
    const double many = median_seconds(weights, p->x, y, rows, cols, MANY);
    const double size = strtod(stored, NULL);
    printf("%4" PRId32 "  %-5s %8.2f %7.2f %11.4f %11.1e %9.1f %7.1f %9.1f%s\n", bits, activations,
           size * 8 / (double)(rows * cols), size / 1e6, quantising, arithmetic, one * 1e6, size / one / 1e9,
           2e-9 * (double)(rows * cols) * MANY / many, good ? "" : " !");
    fflush(stdout);

    if (apl_weights_free(weights))
        fail("apl_weights_free");
    free(dequantised);
    free(y);
    free(want);
    return good;
}

int main(int argc, char **argv)
{
    const int64_t rows = argc == 3 ? atoll(argv[1]) : 4096, cols = argc == 3 ? atoll(argv[2]) : 4096;
    if (rows < 1 || cols < 1 || (argc != 1 && argc != 3)) {
        fprintf(stderr, "usage: %s [rows cols]\n", argv[0]);
        return 2;
    }
    char info[4096], version[32], backend[32], isa[32], threads[32];
    if (apl_ffi_init(NULL) || apl_ffi_info(info, (int32_t)sizeof info) < 0)
        fail("apl_ffi_init");
    field(info, "version", version, sizeof version);
    field(info, "backend", backend, sizeof backend);
    field(info, "isa", isa, sizeof isa);
    field(info, "threads", threads, sizeof threads);

    float *w = allocate((size_t)(rows * cols), sizeof *w);
    float *x = allocate((size_t)(MANY * cols), sizeof *x);
    float *signs = allocate((size_t)cols, sizeof *signs);
    gaussian(w, (size_t)(rows * cols));
    gaussian(x, (size_t)(MANY * cols));
    for (int64_t c = 0; c < cols; c++)
        signs[c] = x[c] >= 0 ? 1.0f : -1.0f;
    const Problem problem = {rows, cols, w, x, signs};

    printf("apl_ffi %s: %s, %s, threads: %s\n", version, backend, isa, threads);
    printf("%" PRId64 " x %" PRId64 " Gaussian weights in groups of %d, scales searched below 4 bits;\n", rows,
           cols, GROUP);
    printf("the same matrix again and again, so that caches hold what they can\n\n");
    printf("                stored as          relative error        one vector   %3d vect.\n", MANY);
    printf("bits  x as    bits each      MB  quantising  arithmetic        us    GB/s     Gop/s\n");
    int good = 1;
    static const int32_t widths[] = {8, 4, 2, 1};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        good &= measure(&problem, widths[i], "f32");
        good &= measure(&problem, widths[i], "int8");
        if (widths[i] == 1)
            good &= measure(&problem, 1, "sign");
    }
    printf("\nquantising: y against W x in float64; arithmetic: y against the quantised W.\n");
    if (!good)
        printf("An error exceeds its bound where a line ends in \"!\".\n");

    free(w);
    free(x);
    free(signs);
    if (apl_ffi_cleanup())
        fail("apl_ffi_cleanup");
    return good ? 0 : 1;
}
