/* The same product as benches/na_latency.rs, called from C. For each line that it reads it makes a round of calls in each form, and
 * answers with their median nanoseconds as JSON.
 *
 * usage: c_latency LIBRARY ROWS COLS BITS CALLS
 */
#define _POSIX_C_SOURCE 199309L

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

typedef int32_t init_t(const char *);
typedef int32_t from_f64_t(const double *, int64_t, int64_t, int64_t, const char *, int32_t *);
typedef int32_t matmul_f64_t(int32_t, const double *, int64_t, double *, int64_t, int64_t);
typedef int32_t matmul_t(int32_t, const float *, int64_t, float *, int64_t, int64_t);

static int64_t rows, cols;
static double *x, *y;
static float *x4, *y4;
static matmul_f64_t *matmul_f64;
static matmul_t *matmul;

static int32_t doubles(int32_t handle) { return matmul_f64(handle, x, cols, y, rows, 1); }
static int32_t floats(int32_t handle) { return matmul(handle, x4, cols, y4, rows, 1); }

static void fail(const char *what)
{
    fprintf(stderr, "c_latency: %s\n", what);
    exit(2);
}

static void *allocate(int64_t count, size_t size)
{
    void *p = calloc((size_t)count, size);
    if (!p)
        fail("no memory");
    return p;
}

/* ISO C knows no conversion from an object's address to a function's; POSIX asks for one. */
static void symbol(void *library, const char *name, void *to)
{
    void *found = dlsym(library, name);
    if (!found)
        fail(name);
    *(void **)to = found;
}

static int ascending(const void *a, const void *b)
{
    double p = *(const double *)a, q = *(const double *)b;
    return (p > q) - (p < q);
}

static double median(int32_t (*call)(int32_t), int32_t handle, int calls)
{
    double *times = allocate(calls, sizeof *times), middle;
    for (int i = 0; i < calls; i++) {
        struct timespec a, b;
        clock_gettime(CLOCK_MONOTONIC, &a);
        call(handle);
        clock_gettime(CLOCK_MONOTONIC, &b);
        times[i] = 1e9 * (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec);
    }
    qsort(times, (size_t)calls, sizeof *times, ascending);
    middle = times[calls / 2];
    free(times);
    return middle;
}

int main(int argc, char **argv)
{
    char options[32], line[64];
    int32_t handle;
    if (argc != 6)
        fail("usage: c_latency LIBRARY ROWS COLS BITS CALLS");
    void *library = dlopen(argv[1], RTLD_NOW);
    if (!library)
        fail(dlerror());
    init_t *init;
    from_f64_t *from_f64;
    symbol(library, "apl_ffi_init", &init);
    symbol(library, "apl_weights_from_f64", &from_f64);
    symbol(library, "apl_matmul_f64", &matmul_f64);
    symbol(library, "apl_matmul", &matmul);

    rows = atoll(argv[2]);
    cols = atoll(argv[3]);
    int calls = atoi(argv[5]);
    if (rows < 1 || cols < 1 || calls < 1)
        fail("rows, columns and calls are at least 1");
    double *w = allocate(rows * cols, sizeof *w);
    for (int64_t i = 0; i < rows * cols; i++)
        w[i] = (double)(i * 37 % 101 - 50) / 64;
    snprintf(options, sizeof options, "{\"bits\": %d}", atoi(argv[4]));
    if (init("{\"threads\": 1}") || from_f64(w, rows * cols, rows, cols, options, &handle))
        fail("no handle");
    free(w);
    x = allocate(cols, sizeof *x);
    x4 = allocate(cols, sizeof *x4);
    y = allocate(rows, sizeof *y);
    y4 = allocate(rows, sizeof *y4);
    for (int64_t i = 0; i < cols; i++)
        x4[i] = (float)(x[i] = (double)(i * 53 % 97 - 48) / 32);
    if (doubles(handle) || floats(handle))
        fail("the product failed");
    for (int64_t i = 0; i < rows; i++)
        if (y[i] != (double)y4[i])
            fail("the forms disagree");

    /* A handle that is none is refused at once: what is left is the call. */
    while (fgets(line, sizeof line, stdin)) {
        printf("{\"doubles\": %.1f, \"doubles alone\": %.1f, \"floats\": %.1f, \"floats alone\": %.1f}\n",
               median(doubles, handle, calls), median(doubles, 0, calls), median(floats, handle, calls),
               median(floats, 0, calls));
        fflush(stdout);
    }
    return 0;
}
