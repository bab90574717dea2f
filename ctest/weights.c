/* Weight handles: their weights, the accuracy of products, info, saving and opening. */
#define _XOPEN_SOURCE 700

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "apl_ffi.h"
#include "check.h"
#include "oracle.h"
#include "scratch.h"

/* The error that the contract allows float32 activations, relative to the norms. */
#define BOUND 1e-5

static const int32_t widths[] = {1, 2, 4, 8};

/* Allocates the weights of a handle, as float64. */
static double *kept(int32_t handle, int64_t count)
{
    float *w = allocate((size_t)count, sizeof *w);
    double *wide = allocate((size_t)count, sizeof *wide);
    CHECK_STATUS(APL_FFI_OK, apl_weights_dequantize(handle, w, count));
    for (int64_t i = 0; i < count; i++)
        wide[i] = w[i];
    free(w);
    return wide;
}

/* What the handle says of itself, in `json`. */
static void read_info(int32_t handle, char *json, int32_t room)
{
    int32_t size = apl_weights_info(handle, json, room);
    CHECK(size > 0 && size < room);
}

/* For a CHECK: where it has not, what it has instead is printed. */
static int info_has(int32_t handle, const char *part)
{
    char json[1024];
    read_info(handle, json, sizeof json);
    if (strstr(json, part))
        return 1;
    printf("    info is %s, expected %s\n", json, part);
    return 0;
}

/* For an `if`: no failure either way. */
static int is_on_device(int32_t handle)
{
    char json[1024];
    read_info(handle, json, sizeof json);
    return strstr(json, "\"backend\":\"cuda\"") != NULL;
}

/* Products with float32 activations are within the bound of the weights that the handle reports. */
static void exact(const char *options, int64_t rows, int64_t cols)
{
    enum { N = 4 };
    float *w = gaussian(rows * cols), *x = gaussian(N * cols), *y = allocate((size_t)(N * rows), sizeof *y);
    int32_t handle = 0;
    CHECK_STATUS(APL_FFI_OK, apl_weights_from_f32(w, rows * cols, rows, cols, options, &handle));
    double *wide = kept(handle, rows * cols);
    CHECK_STATUS(APL_FFI_OK, apl_matmul(handle, x, N * cols, y, N * rows, N));
    double error = worst_error(wide, x, y, rows, cols, N);
    if (!(error <= BOUND))
        printf("    %s, %dx%d: error %g\n", options, (int)rows, (int)cols, error);
    CHECK(error <= BOUND);
    CHECK_STATUS(APL_FFI_OK, apl_matmul(handle, NULL, 0, NULL, 0, 0));
    CHECK_STATUS(APL_FFI_OK, apl_weights_free(handle));
    free(w);
    free(x);
    free(y);
    free(wide);
}

static void exact_products(void)
{
    static const int64_t rows[] = {0, 1, 37}, cols[] = {0, 1, 33, 128};
    /* The whole row; short groups; groups padded to a multiple of 32; multiples of 32. */
    static const int groups[] = {0, 1, 7, 15, 16, 33, 48, 32, 64};
    for (int b = 0; b < 4; b++)
        for (int g = 0; g < 9; g++)
            for (int r = 0; r < 3; r++)
                for (int c = 0; c < 4; c++) {
                    char options[80];
                    snprintf(options, sizeof options, "{\"bits\": %d, \"group\": %d, \"symmetric\": %s}",
                             (int)widths[b], groups[g], r % 2 ? "true" : "false");
                    exact(options, rows[r], cols[c]);
                }
    exact("{\"bits\": 16}", 37, 70);
    exact("{\"bits\": 32}", 37, 70);
    exact(NULL, 70, 8200);
    /* Large enough for the vectors to be split into int8 ones, if this processor does that. */
    for (int b = 0; b < 4; b++) {
        static const int long_groups[] = {0, 32, 128, 160};
        for (int g = 0; g < 4; g++) {
            char options[80];
            snprintf(options, sizeof options, "{\"bits\": %d, \"group\": %d}", (int)widths[b], long_groups[g]);
            exact(options, 130, 5000);
        }
    }
}

/* Int8 activations add less than 1% error on Gaussian data; on the CPU, the vectors of a batch have
 * the same bits as alone. */
static void eight_bit_activations(void)
{
    enum { ROWS = 96, COLS = 512, N = 20 };
    float *w = gaussian(ROWS * COLS), *x = gaussian(N * COLS);
    float *y = allocate(N * ROWS, sizeof *y), *alone = allocate(ROWS, sizeof *alone);
    for (int b = 0; b < 4; b++) {
        char options[64];
        int32_t handle = 0;
        snprintf(options, sizeof options, "{\"bits\": %d, \"activations\": \"int8\"}", (int)widths[b]);
        CHECK_STATUS(APL_FFI_OK, apl_weights_from_f32(w, ROWS * COLS, ROWS, COLS, options, &handle));
        CHECK(info_has(handle, "\"activations\":\"int8\""));
        double *wide = kept(handle, ROWS * COLS);
        CHECK_STATUS(APL_FFI_OK, apl_matmul(handle, x, N * COLS, y, N * ROWS, N));
        CHECK(relative_error(wide, x, y, ROWS, COLS, N) < 0.01);
        CHECK_STATUS(APL_FFI_OK, apl_matmul(handle, NULL, 0, NULL, 0, 0));
        for (int v = 0; v < N; v++) {
            CHECK_STATUS(APL_FFI_OK, apl_matmul(handle, x + v * COLS, COLS, alone, ROWS, 1));
            /* A device has other kernels for more than one vector, which sum in other orders. */
            if (is_on_device(handle))
                for (int r = 0; r < ROWS; r++)
                    CHECK(fabs((double)alone[r] - (double)y[v * ROWS + r]) < 1e-3);
            else
                CHECK(memcmp(alone, y + v * ROWS, ROWS * sizeof *y) == 0);
        }
        CHECK_STATUS(APL_FFI_OK, apl_weights_free(handle));
        free(wide);
    }
    free(w);
    free(x);
    free(y);
    free(alone);
}

static void sign_activations(void)
{
    enum { ROWS = 40, COLS = 160, N = 3 };
    float *w = gaussian(ROWS * COLS), *x = gaussian(N * COLS), y[N * ROWS];
    int32_t handle = 0;
    CHECK_STATUS(APL_FFI_OK, apl_weights_from_f32(w, ROWS * COLS, ROWS, COLS,
                                                  "{\"bits\": 1, \"activations\": \"sign\"}", &handle));
    double *wide = kept(handle, ROWS * COLS);
    CHECK_STATUS(APL_FFI_OK, apl_matmul(handle, x, N * COLS, y, N * ROWS, N));
    for (int i = 0; i < N * COLS; i++)
        x[i] = x[i] >= 0 ? 1.0f : -1.0f;
    CHECK(worst_error(wide, x, y, ROWS, COLS, N) <= BOUND);
    CHECK_STATUS(APL_FFI_OK, apl_weights_free(handle));
    free(w);
    free(x);
    free(wide);
}

static void codes_of_the_caller(void)
{
    enum { N = 2 };
    static const int32_t group[] = {0, 7, 32};
    for (int b = 0; b < 4; b++)
        for (int g = 0; g < 3; g++)
            for (int32_t packing = 0; packing < 2; packing++) {
                struct matrix m = random_matrix(33, 70, widths[b], group[g]);
                uint8_t *packed = pack(&m, 0xff);
                double *w = weights(&m);
                float *x = gaussian(N * 70), y[N * 33];
                int32_t handle = 0;
                CHECK_STATUS(APL_FFI_OK,
                             apl_weights_from_codes(packing ? packed : m.codes,
                                                    33 * (packing ? packed_row(70, m.bits) : 70), m.bits, packing,
                                                    m.scales, m.scales_len, m.zero_points, m.zero_points_len, 33, 70,
                                                    m.group, "", &handle));
                double *wide = kept(handle, 33 * 70);
                for (int i = 0; i < 33 * 70; i++)
                    CHECK(wide[i] == (float)w[i]);
                CHECK_STATUS(APL_FFI_OK, apl_matmul(handle, x, N * 70, y, N * 33, N));
                CHECK(worst_error(w, x, y, 33, 70, N) <= BOUND);
                CHECK_STATUS(APL_FFI_OK, apl_weights_free(handle));
                free(packed);
                free(w);
                free(x);
                free(wide);
                free_matrix(&m);
            }
}

/* Float64 weights and float64 vectors give the same sums as float32 ones. */
static void float64(void)
{
    enum { ROWS = 20, COLS = 70, N = 3 };
    float *w = gaussian(ROWS * COLS), *x = gaussian(N * COLS), y[N * ROWS];
    double w64[ROWS * COLS], x64[N * COLS], y64[N * ROWS];
    int32_t narrow = 0, wide = 0;
    for (int i = 0; i < ROWS * COLS; i++)
        w64[i] = w[i];
    for (int i = 0; i < N * COLS; i++)
        x64[i] = x[i];
    CHECK_STATUS(APL_FFI_OK, apl_weights_from_f32(w, ROWS * COLS, ROWS, COLS, NULL, &narrow));
    CHECK_STATUS(APL_FFI_OK, apl_weights_from_f64(w64, ROWS * COLS, ROWS, COLS, NULL, &wide));
    CHECK(narrow > 0 && wide > 0 && narrow != wide);
    CHECK_STATUS(APL_FFI_OK, apl_matmul(narrow, x, N * COLS, y, N * ROWS, N));
    CHECK_STATUS(APL_FFI_OK, apl_matmul_f64(wide, x64, N * COLS, y64, N * ROWS, N));
    for (int i = 0; i < N * ROWS; i++)
        CHECK(y64[i] == y[i]);
    CHECK_STATUS(APL_FFI_OK, apl_weights_free(narrow));
    /* Freeing one handle leaves the other. */
    CHECK_STATUS(APL_FFI_OK, apl_matmul_f64(wide, x64, N * COLS, y64, N * ROWS, N));
    CHECK_STATUS(APL_FFI_OK, apl_weights_free(wide));
    free(w);
    free(x);
}

static void what_a_handle_says(void)
{
    const float w[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    int32_t handle = 0;
    CHECK_STATUS(APL_FFI_OK, apl_weights_from_f32(w, 8, 2, 4, "{\"bits\": 2, \"group\": 0, \"symmetric\": false}",
                                                  &handle));
    CHECK(info_has(handle, "\"rows\":2,\"cols\":4,\"bits\":2,\"group\":4,\"symmetric\":false"));
    CHECK(info_has(handle, "\"scales\":\"float16\"") && info_has(handle, "\"activations\":\"f32\""));
    CHECK(info_has(handle, "\"bytes\":") && info_has(handle, "\"path\":") && info_has(handle, "\"isa\":"));
    CHECK(info_has(handle, "\"backend\":\"cpu\""));
    CHECK_STATUS(APL_FFI_OK, apl_weights_free(handle));
    CHECK_STATUS(APL_FFI_OK, apl_weights_from_f32(w, 8, 2, 4, "{\"bits\": 32}", &handle));
    CHECK(info_has(handle, "\"bits\":32,\"group\":null,\"symmetric\":null,\"scales\":null"));
    CHECK_STATUS(APL_FFI_OK, apl_weights_free(handle));
}

/* Saved and opened again, mapped or read: the same weights, and products with the same bits. */
static void through_a_file(void)
{
    enum { ROWS = 33, COLS = 70 };
    char folder[SCRATCH], path[SCRATCH];
    scratch_make(folder);
    /* Named like the .npz of an earlier save, which would be removed; a folder must not be. */
    scratch_path(path, folder, "m-0123456789ab.npz");
    CHECK(mkdir(path, 0700) == 0);
    scratch_path(path, folder, "m.json");
    float *w = gaussian(ROWS * COLS), *x = gaussian(COLS), y[ROWS], again[ROWS];
    for (int b = 0; b < 6; b++) {
        static const int32_t every[] = {1, 2, 4, 8, 16, 32};
        char options[80];
        int32_t saved = 0, opened = 0;
        snprintf(options, sizeof options, "{\"bits\": %d, \"symmetric\": %s}", (int)every[b],
                 every[b] == 4 ? "false" : "true");
        CHECK_STATUS(APL_FFI_OK, apl_weights_from_f32(w, ROWS * COLS, ROWS, COLS, options, &saved));
        CHECK_STATUS(APL_FFI_OK, apl_weights_save(saved, path, "a matrix"));
        /* Without "bits", the floats of a file are quantised. */
        snprintf(options, sizeof options, "{\"bits\": %d, \"mmap\": %s}", (int)every[b], b % 2 ? "true" : "false");
        CHECK_STATUS(APL_FFI_OK, apl_weights_open(path, "a matrix", every[b] > 8 ? options : NULL, &opened));
        double *before = kept(saved, ROWS * COLS), *after = kept(opened, ROWS * COLS);
        CHECK(memcmp(before, after, ROWS * COLS * sizeof *before) == 0);
        CHECK_STATUS(APL_FFI_OK, apl_matmul(saved, x, COLS, y, ROWS, 1));
        CHECK_STATUS(APL_FFI_OK, apl_matmul(opened, x, COLS, again, ROWS, 1));
        CHECK(memcmp(y, again, sizeof y) == 0);
        CHECK_STATUS(APL_FFI_OK, apl_weights_free(saved));
        CHECK_STATUS(APL_FFI_OK, apl_weights_free(opened));
        free(before);
        free(after);
    }
    scratch_path(path, folder, "m-0123456789ab.npz");
    CHECK(rmdir(path) == 0);
    scratch_remove(folder);
    free(w);
    free(x);
}

int main(void)
{
    test("float32 activations are exact", exact_products);
    test("8-bit activations add less than 1%", eight_bit_activations);
    test("sign activations", sign_activations);
    test("codes of the caller", codes_of_the_caller);
    test("float64 in and out", float64);
    test("what a handle says about itself", what_a_handle_says);
    test("through a file and back", through_a_file);
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
    return finish();
}
