/* dlopen, use, dlclose, a hundred times, like a host that unloads a library with its last function.
 *
 * usage: loadunload [LIBRARY]
 */
#define _POSIX_C_SOURCE 200809L

#include <dlfcn.h>
#include <string.h>
#include <time.h>

#include "apl_ffi.h"
#include "check.h"
#include "threads.h"

enum { ROUNDS = 100, THREADS = 3, ROWS = 512, COLS = 512, BATCH = 8 };

static const char *library = "libapl_ffi.so.1";

/* With the types that the header declares. */
static __typeof__(apl_ffi_init) *p_init;
static __typeof__(apl_ffi_cleanup) *p_cleanup;
static __typeof__(apl_ffi_ready) *p_ready;
static __typeof__(apl_weights_from_f32) *p_from_f32;
static __typeof__(apl_matmul) *p_matmul;

static void *load(void)
{
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        fprintf(stderr, "%s\n", dlerror());
        exit(2);
    }
    /* ISO C cannot convert an object pointer to a function pointer; POSIX recommends this. */
    *(void **)&p_init = dlsym(handle, "apl_ffi_init");
    *(void **)&p_cleanup = dlsym(handle, "apl_ffi_cleanup");
    *(void **)&p_ready = dlsym(handle, "apl_ffi_ready");
    *(void **)&p_from_f32 = dlsym(handle, "apl_weights_from_f32");
    *(void **)&p_matmul = dlsym(handle, "apl_matmul");
    CHECK(p_init && p_cleanup && p_ready && p_from_f32 && p_matmul);
    return handle;
}

/* A product large enough to use every thread. */
static void use(const float *w, const float *x, float *y)
{
    int32_t weights = 0;
    CHECK_STATUS(APL_FFI_OK, p_init("{\"threads\": 3, \"backend\": \"cpu\"}"));
    CHECK_STATUS(1, p_ready());
    CHECK_STATUS(APL_FFI_OK, p_from_f32(w, (int64_t)ROWS * COLS, ROWS, COLS, NULL, &weights));
    CHECK_STATUS(APL_FFI_OK, p_matmul(weights, x, BATCH * COLS, y, BATCH * ROWS, BATCH));
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Some rounds clean up before dlclose; the others leave threads running and handles live. */
static void rounds(void)
{
    float *w = allocate((size_t)ROWS * COLS, sizeof *w);
    float *x = allocate((size_t)BATCH * COLS, sizeof *x);
    float *first = allocate((size_t)BATCH * ROWS, sizeof *first);
    float *y = allocate((size_t)BATCH * ROWS, sizeof *y);
    for (int i = 0; i < ROWS * COLS; i++)
        w[i] = (float)(i * 37 % 101 - 50) / 64;
    for (int i = 0; i < BATCH * COLS; i++)
        x[i] = (float)(i * 53 % 97 - 48) / 32;

    for (int round = 0; round < ROUNDS && !check_failures; round++) {
        void *handle = load();
        memset(y, 0, (size_t)BATCH * ROWS * sizeof *y);
        use(w, x, round ? y : first);
        CHECK(round == 0 || memcmp(y, first, (size_t)BATCH * ROWS * sizeof *y) == 0);
        if (round % 3 != 0) {
            CHECK_STATUS(APL_FFI_OK, p_cleanup());
            CHECK_STATUS(0, p_ready());
        }
        CHECK(dlclose(handle) == 0);
        CHECK(library_threads(NULL) < THREADS); /* threads do not accumulate */
    }

    void *handle = load();
    CHECK_STATUS(APL_FFI_OK, p_cleanup());
    CHECK(library_threads_settled(0) == 0);
    CHECK(dlclose(handle) == 0);
    free(w);
    free(x);
    free(first);
    free(y);
}

/* The first load in the process: relocation and initialisation, with the file in the page cache. */
static void first_load(void)
{
    double start = now();
    void *handle = load();
    CHECK_STATUS(APL_FFI_OK, p_init(NULL));
    printf("dlopen and apl_ffi_init: %.2f ms\n", (now() - start) * 1e3);
    CHECK_STATUS(APL_FFI_OK, p_cleanup());
    CHECK(dlclose(handle) == 0);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        library = argv[1];
    test("the first load", first_load);
    test("dlopen, use, dlclose, 100 times", rounds);
    return finish();
}
