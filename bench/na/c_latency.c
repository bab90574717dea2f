/* The same products as benches/na_latency.rs, called from C. For each line that it reads it makes a round of calls in each form, and
 * answers with the median nanoseconds with each handle as JSON.
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

/* By float32 and by int8 activations, and none, which is refused at once: what is left is the call. */
enum { FLOAT32, INT8, NONE, HANDLES };
static int32_t handles[HANDLES];

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

static void round_of(int32_t (*call)(int32_t), int calls)
{
    printf("[%.1f, %.1f, %.1f]", median(call, handles[FLOAT32], calls), median(call, handles[INT8], calls),
           median(call, handles[NONE], calls));
}

int main(int argc, char **argv)
{
    static const char *const activations[] = {"f32", "int8"};
    char options[64], line[64];
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
    if (init("{\"threads\": 1}"))
        fail("no library");
    for (int i = FLOAT32; i <= INT8; i++) {
        snprintf(options, sizeof options, "{\"bits\": %d, \"activations\": \"%s\"}", atoi(argv[4]), activations[i]);
        if (from_f64(w, rows * cols, rows, cols, options, &handles[i]))
            fail("no handle");
    }
    free(w);
    x = allocate(cols, sizeof *x);
    x4 = allocate(cols, sizeof *x4);
    y = allocate(rows, sizeof *y);
    y4 = allocate(rows, sizeof *y4);
    for (int64_t i = 0; i < cols; i++)
        x4[i] = (float)(x[i] = (double)(i * 53 % 97 - 48) / 32);
    for (int i = FLOAT32; i <= INT8; i++) {
        if (doubles(handles[i]) || floats(handles[i]))
            fail("the product failed");
        for (int64_t r = 0; r < rows; r++)
            if (y[r] != (double)y4[r])
                fail("the forms disagree");
    }

    while (fgets(line, sizeof line, stdin)) {
        printf("{\"doubles\": ");
        round_of(doubles, calls);
        printf(", \"floats\": ");
        round_of(floats, calls);
        printf("}\n");
        fflush(stdout);
    }
    return 0;
}
