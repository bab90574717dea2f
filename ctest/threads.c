/* Eight threads call every function: the same bits as from one thread, errors per thread, handles
 * freed during use, cleanup during use. */
#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <string.h>

#include "apl_ffi.h"
#include "check.h"

/* Fewer and smaller products with the emulated driver of make test-fake-gpu, on which each takes
 * milliseconds. */
#ifdef SLOW_DEVICE
enum { ROUNDS = 1, LARGE = 64 };
#else
enum { ROUNDS = 5, LARGE = 768 };
#endif
enum { CALLERS = 8, ROWS = 96, COLS = 160, GROUP = 32, GROUPS = COLS / GROUP, N = 5 };

/* The data. Products of size LARGE are shared among the threads of the library. */
static float w[ROWS * COLS], x[N * COLS], large[LARGE * LARGE], large_x[N * LARGE];
static double x64[N * COLS];

static const char *const options[] = {
    "{\"bits\": 1}",
    "{\"bits\": 1, \"activations\": \"sign\"}",
    "{\"bits\": 2, \"activations\": \"int8\"}",
    "{\"bits\": 4}",
    "{\"bits\": 4, \"activations\": \"int8\", \"symmetric\": false}",
    "{\"bits\": 8, \"group\": 7}",
    "{\"bits\": 8, \"activations\": \"int8\", \"method\": \"search\"}",
    "{\"bits\": 16}",
    "{\"bits\": 32}",
};
enum { OPTIONS = sizeof options / sizeof *options };

/* Every output of one caller. They are compared as bytes: there is no padding between members. */
struct outputs {
    float one_bit[N * ROWS], one_bit_single[ROWS], signs[N * ROWS];
    float product[4][N * ROWS], product_single[4][ROWS];
    float scales[4][ROWS * GROUPS], dequantised[4][ROWS * COLS];
    float handle[OPTIONS][N * ROWS], handle_single[OPTIONS][ROWS], handle_weights[OPTIONS][ROWS * COLS];
    float shared[OPTIONS][N * LARGE];
    double handle_f64[OPTIONS][N * ROWS];
    int32_t zero_points[4][ROWS * GROUPS];
    uint8_t codes[4][ROWS * COLS];
};

static int32_t shared[OPTIONS]; /* handles of `large`, which every caller uses */

/* Returns the first status that is not OK. */
#define TRY(call)                                                                                                     \
    do {                                                                                                              \
        int32_t status_ = (call);                                                                                     \
        if (status_ != APL_FFI_OK)                                                                                    \
            return status_;                                                                                           \
    } while (0)

static int32_t one_shot(struct outputs *o)
{
    static const int32_t widths[4] = {1, 2, 4, 8};
    const int64_t count = (int64_t)ROWS * COLS, groups = (int64_t)ROWS * GROUPS;
    for (int i = 0; i < 4; i++) {
        const int64_t bytes = count * widths[i] / 8, zeros = i ? groups : 0;
        TRY(apl_quantize(w, count, ROWS, COLS, widths[i], GROUP, i % 2, o->codes[i], bytes, o->scales[i], groups,
                         o->zero_points[i], zeros));
        TRY(apl_dequantize(o->codes[i], bytes, widths[i], 1, o->scales[i], groups, o->zero_points[i], zeros,
                           o->dequantised[i], count, ROWS, COLS, GROUP));
        if (i == 0)
            continue;
        TRY(apl_matmul_q(o->codes[i], bytes, widths[i], 1, o->scales[i], groups, o->zero_points[i], zeros, x, COLS,
                         o->product_single[i], ROWS, ROWS, COLS, GROUP));
        TRY(apl_matmul_q_batch(o->codes[i], bytes, widths[i], 1, o->scales[i], groups, o->zero_points[i], zeros, x,
                               N * COLS, o->product[i], N * ROWS, ROWS, COLS, GROUP, N));
    }
    TRY(apl_matmul_1bit(o->codes[0], count / 8, o->scales[0], groups, x, COLS, o->one_bit_single, ROWS, ROWS, COLS,
                        GROUP, 0));
    TRY(apl_matmul_1bit_batch(o->codes[0], count / 8, o->scales[0], groups, x, N * COLS, o->one_bit, N * ROWS, ROWS,
                              COLS, GROUP, 0, N));
    return apl_matmul_1bit_batch(o->codes[0], count / 8, o->scales[0], groups, x, N * COLS, o->signs, N * ROWS, ROWS,
                                 COLS, GROUP, 1, N);
}

static int32_t with_handle(struct outputs *o, int i)
{
    char json[1024];
    int32_t handle = 0;
    TRY(apl_weights_from_f32(w, ROWS * COLS, ROWS, COLS, options[i], &handle));
    TRY(apl_matmul(handle, x, COLS, o->handle_single[i], ROWS, 1));
    TRY(apl_matmul(handle, x, N * COLS, o->handle[i], N * ROWS, N));
    TRY(apl_matmul_f64(handle, x64, N * COLS, o->handle_f64[i], N * ROWS, N));
    TRY(apl_weights_dequantize(handle, o->handle_weights[i], ROWS * COLS));
    if (apl_weights_info(handle, json, sizeof json) <= 0 || apl_ffi_info(json, sizeof json) <= 0)
        return APL_FFI_ERR_INTERNAL;
    TRY(apl_weights_free(handle));
    return apl_matmul(shared[i], large_x, N * LARGE, o->shared[i], N * LARGE, N);
}

static int32_t everything(struct outputs *o)
{
    memset(o, 0, sizeof *o);
    TRY(one_shot(o));
    for (int i = 0; i < OPTIONS; i++)
        TRY(with_handle(o, i));
    return APL_FFI_OK;
}

static void configure(const char *config)
{
    CHECK_STATUS(APL_FFI_OK, apl_ffi_init(config));
    for (int i = 0; i < OPTIONS; i++)
        CHECK_STATUS(APL_FFI_OK,
                     apl_weights_from_f32(large, (int64_t)LARGE * LARGE, LARGE, LARGE, options[i], &shared[i]));
}

/* One thread: its input and its findings. */
struct caller {
    pthread_t thread;
    int number;
    const struct outputs *expected;
    int32_t status; /* the first unexpected one */
    int differences;
    char message[256];
};

static void run_callers(struct caller *callers, void *(*body)(void *))
{
    for (int i = 0; i < CALLERS; i++) {
        callers[i].number = i;
        CHECK(pthread_create(&callers[i].thread, NULL, body, &callers[i]) == 0);
    }
    for (int i = 0; i < CALLERS; i++) {
        CHECK(pthread_join(callers[i].thread, NULL) == 0);
        if (callers[i].status != APL_FFI_OK || callers[i].message[0])
            printf("    caller %d: %d %s\n", i, (int)callers[i].status, callers[i].message);
        CHECK_STATUS(APL_FFI_OK, callers[i].status);
        CHECK(callers[i].differences == 0);
    }
}

static void *compare_bits(void *argument)
{
    struct caller *me = argument;
    struct outputs *found = allocate(1, sizeof *found);
    for (int round = 0; round < ROUNDS && me->status == APL_FFI_OK; round++) {
        me->status = everything(found);
        me->differences += memcmp(found, me->expected, sizeof *found) != 0;
    }
    if (me->status != APL_FFI_OK)
        apl_ffi_last_error(me->message, sizeof me->message);
    free(found);
    return NULL;
}

static void the_same_bits(void)
{
    struct outputs *expected = allocate(1, sizeof *expected);
    configure("{\"threads\": 1}");
    CHECK_STATUS(APL_FFI_OK, everything(expected));
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
    static const char *const configurations[] = {"{\"threads\": 1}", "{\"threads\": 2}", "{\"threads\": 5}"};
    for (int i = 0; i < 3 && !check_failures; i++) {
        struct caller callers[CALLERS];
        memset(callers, 0, sizeof callers);
        for (int c = 0; c < CALLERS; c++)
            callers[c].expected = expected;
        configure(configurations[i]);
        run_callers(callers, compare_bits);
        CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
    }
    free(expected);
}

/* Each caller makes an error of its own and must read its message, not that of another caller. */
static void *read_own_errors(void *argument)
{
    struct caller *me = argument;
    for (int round = 0; round < 1000 && !me->message[0]; round++) {
        char text[256], expected[32];
        float y[1];
        int64_t x_len = 1000 + me->number * 1000 + round;
        snprintf(expected, sizeof expected, "x_len is %d", (int)x_len);
        int32_t status = apl_matmul(shared[0], large_x, x_len, y, 1, 1);
        apl_ffi_last_error(text, sizeof text);
        if (status != APL_FFI_ERR_LENGTH || !strstr(text, expected)) {
            me->status = status ? status : APL_FFI_ERR_INTERNAL;
            snprintf(me->message, sizeof me->message, "expected \"%s\", found \"%.100s\"", expected, text);
        }
    }
    return NULL;
}

static void errors_of_a_thread(void)
{
    struct caller callers[CALLERS];
    memset(callers, 0, sizeof callers);
    configure("{\"threads\": 2}");
    run_callers(callers, read_own_errors);
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
}

/* Callers share a handle that one of them frees and makes anew; a product is right, or reports a
 * stale handle. */
static int32_t passed_on; /* read and written with the mutex */
static pthread_mutex_t passing = PTHREAD_MUTEX_INITIALIZER;

static int32_t current(void)
{
    pthread_mutex_lock(&passing);
    int32_t handle = passed_on;
    pthread_mutex_unlock(&passing);
    return handle;
}

static void *use_while_freed(void *argument)
{
    struct caller *me = argument;
    float *y = allocate(ROWS, sizeof *y);
    for (int round = 0; round < 300; round++) {
        int32_t handle = current();
        if (me->number == 0) {
            int32_t fresh = 0;
            int32_t made = apl_weights_from_f32(w, ROWS * COLS, ROWS, COLS, NULL, &fresh);
            pthread_mutex_lock(&passing);
            passed_on = fresh;
            pthread_mutex_unlock(&passing);
            int32_t freed = apl_weights_free(handle);
            if (made != APL_FFI_OK || freed != APL_FFI_OK)
                me->status = made ? made : freed;
            continue;
        }
        int32_t status = apl_matmul(handle, x, COLS, y, ROWS, 1);
        if (status == APL_FFI_OK)
            me->differences += memcmp(y, me->expected->handle_single[0], ROWS * sizeof *y) != 0;
        else if (status != APL_FFI_ERR_HANDLE)
            me->status = status;
    }
    free(y);
    return NULL;
}

static void freed_during_use(void)
{
    struct caller callers[CALLERS];
    struct outputs *expected = allocate(1, sizeof *expected);
    memset(callers, 0, sizeof callers);
    CHECK_STATUS(APL_FFI_OK, apl_ffi_init("{\"threads\": 2}"));
    CHECK_STATUS(APL_FFI_OK, apl_weights_from_f32(w, ROWS * COLS, ROWS, COLS, NULL, &passed_on));
    CHECK_STATUS(APL_FFI_OK, apl_matmul(passed_on, x, COLS, expected->handle_single[0], ROWS, 1));
    for (int c = 0; c < CALLERS; c++)
        callers[c].expected = expected;
    run_callers(callers, use_while_freed);
    CHECK_STATUS(APL_FFI_OK, apl_weights_free(passed_on));
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
    free(expected);
}

/* One caller cleans up repeatedly; all that the others may see is stale handles. */
static void *use_while_cleaned(void *argument)
{
    struct caller *me = argument;
    float *y = allocate(ROWS, sizeof *y);
    for (int round = 0; round < 100; round++) {
        int32_t handle = 0, status;
        if (me->number == 0) {
            status = apl_ffi_cleanup();
        } else {
            status = apl_weights_from_f32(w, ROWS * COLS, ROWS, COLS, NULL, &handle);
            if (status == APL_FFI_OK)
                status = apl_matmul(handle, x, COLS, y, ROWS, 1);
            if (status == APL_FFI_OK)
                me->differences += memcmp(y, me->expected->handle_single[0], ROWS * sizeof *y) != 0;
        }
        if (status != APL_FFI_OK && status != APL_FFI_ERR_HANDLE)
            me->status = status;
    }
    free(y);
    return NULL;
}

static void cleaned_during_use(void)
{
    struct caller callers[CALLERS];
    struct outputs *expected = allocate(1, sizeof *expected);
    int32_t handle = 0;
    memset(callers, 0, sizeof callers);
    CHECK_STATUS(APL_FFI_OK, apl_weights_from_f32(w, ROWS * COLS, ROWS, COLS, NULL, &handle));
    CHECK_STATUS(APL_FFI_OK, apl_matmul(handle, x, COLS, expected->handle_single[0], ROWS, 1));
    for (int c = 0; c < CALLERS; c++)
        callers[c].expected = expected;
    run_callers(callers, use_while_cleaned);
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
    free(expected);
}

/* Numbers of both signs that no width represents exactly. */
static void fill(float *v, size_t count)
{
    uint32_t state = 12345;
    for (size_t i = 0; i < count; i++) {
        state = state * 1664525u + 1013904223u;
        v[i] = (float)((int32_t)(state >> 8) - (1 << 23)) / (1 << 22);
    }
}

int main(void)
{
    fill(w, ROWS * COLS);
    fill(x, N * COLS);
    fill(large, (size_t)LARGE * LARGE);
    fill(large_x, N * LARGE);
    for (int i = 0; i < N * COLS; i++)
        x64[i] = x[i];
    test("eight threads give the bits of one", the_same_bits);
    test("each thread reads its own errors", errors_of_a_thread);
    test("a handle is freed while others use it", freed_during_use);
    test("cleanup while others call", cleaned_during_use);
    return finish();
}
