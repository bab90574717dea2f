/*
 * apl_ffi: fast products of quantised matrices (1, 2, 4 and 8 bits), for APL, C and C++.
 *
 * Generated from the Rust sources by `make header`; not to be edited.
 *
 * A matrix W has `rows` outputs and `cols` inputs, row-major. A product takes x (cols) to y (rows), or n of them
 * at once, x (n, cols) to y (n, rows).
 *
 *     #include <apl_ffi.h>
 *     #include <stdio.h>
 *
 *     int main(void)
 *     {
 *         const uint8_t codes[] = {0x9A, 0x7F};     // (2, 2) codes of 4 bits: 9 10, 7 15
 *         const float scales[] = {0.5f, 2.0f};      // one a row
 *         const float x[] = {1.0f, 10.0f};
 *         float y[2];                               // scale * (code - 8), times x
 *         char why[256];
 *
 *         if (apl_matmul_q(codes, 2, 4, 1, scales, 2, NULL, 0, x, 2, y, 2, 2, 2, 0) != APL_FFI_OK) {
 *             apl_ffi_last_error(why, (int32_t)sizeof why);
 *             fprintf(stderr, "%s\n", why);
 *             return 1;
 *         }
 *         printf("%g %g\n", y[0], y[1]);            // 10.5 138
 *         return apl_ffi_cleanup();
 *     }
 *
 * Codes. Along a row the columns are cut in groups of `group` (0: the whole row; the last may be short), G of them.
 * With 2, 4 and 8 bits a weight is scale * (code - zero_point), a zero point being 0 to 2^bits-1, and 2^(bits-1) where
 * none is given. With 1 bit it is +scale for bit 1 and -scale for bit 0, and there are no zero points. Scales and zero
 * points are one for the matrix, one a row (rows), or one a group (rows, G), row-major: their length says which.
 *
 * Packing. packing 1: the first code lies in the most significant bits of a byte, and each row begins a new byte, so the
 * codes are (rows, ceil(cols * bits / 8)) bytes; the bits left over may hold anything. packing 0: one code a byte.
 *
 * Lengths. Every array travels with its length in elements, which must be exactly what the shape asks. Length 0 means
 * that the array is absent: its pointer is not read and may be anything. rows, cols and n may be 0.
 *
 * Errors. A status is 0 (APL_FFI_OK) or negative; a function that counts returns the count, 0 or more, or a negative status.
 * apl_ffi_last_error has the sentence. Of several wrong arguments the first of this order is told: handle, scalars,
 * text and options, lengths, NULL, alignment and overlap, contents. Outputs are written on success only. No call
 * unwinds, aborts, prints, or installs a signal handler.
 *
 * Texts are UTF-8 and end with NUL. A function that fills `capacity` bytes of text writes no more than that, ends it
 * with NUL unless capacity is 0, splits no character, and returns the bytes that the whole text needs without the NUL.
 *
 * Ownership. The caller keeps every array; the library keeps no pointer beyond the call. What a handle stands for is the
 * library's, until it is freed or apl_ffi_cleanup ends them all. A handle is positive; 0 never is one. A stale, foreign
 * or made-up handle is APL_FFI_ERR_HANDLE.
 *
 * Threads. Every function may be called from any thread at any time, unless its comment says otherwise, as long as no
 * call writes what another reads. A call that needs the library configured and finds it is not configures it with the
 * defaults. apl_ffi_cleanup waits for the calls that run. The library is of no use in the child of a fork. A call needs
 * 512 KiB of stack. Whatever rounding mode or treatment of subnormal numbers the caller has set, a call calculates by the default ones.
 *
 * Pointers need the alignment of their elements. An output must not overlap another array of the same call.
 */

#ifndef APL_FFI_H
#define APL_FFI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Version and statuses -------------------------------------------------------------------------------- */

/** The version of this ABI. It changes when a name, an argument or a meaning does; new functions leave it alone. */
#define APL_FFI_ABI_VERSION 1

/** Success. */
#define APL_FFI_OK 0

/** A pointer is NULL though its length is not 0. */
#define APL_FFI_ERR_NULL (-1)

/** A length does not agree with the shape; the message gives both. */
#define APL_FFI_ERR_LENGTH (-2)

/** An argument or an element is outside its domain, a pointer is misaligned, or an output overlaps another array. */
#define APL_FFI_ERR_RANGE (-3)

/** Not a live handle, or a handle of another kind. */
#define APL_FFI_ERR_HANDLE (-4)

/** The configuration or option JSON is malformed, or has an unknown key or value. */
#define APL_FFI_ERR_CONFIG (-5)

/** A file cannot be opened, read or written; the message has the path and the system's reason. */
#define APL_FFI_ERR_IO (-6)

/** A file is not what it claims, is truncated, or is inconsistent. */
#define APL_FFI_ERR_FORMAT (-7)

/** Valid, but not something this build, processor or backend can do. */
#define APL_FFI_ERR_UNSUPPORTED (-8)

/** Host or device memory is exhausted. */
#define APL_FFI_ERR_MEMORY (-9)

/** The CUDA backend was demanded and cannot be used, or failed while running. */
#define APL_FFI_ERR_BACKEND (-10)

/** Not possible now: configured otherwise already, no handle is left, the context is full, no logits, or the call was cancelled. */
#define APL_FFI_ERR_STATE (-11)

/** Text is not UTF-8. */
#define APL_FFI_ERR_ENCODING (-12)

/** Not an error: the text of a session ends here. */
#define APL_FFI_END (-100)

/** A bug in the library: a panic was caught; the message has it. */
#define APL_FFI_ERR_INTERNAL (-99)

/* ---- Life cycle, errors, and what the library says about itself ------------------------------------------ */

/**
 * The version of the ABI that this library has; compare it with `APL_FFI_ABI_VERSION`.
 *
 * Never initialises the library.
 */
int32_t apl_ffi_abi_version(void);

/**
 * Configures the library; without it the first call that needs to does so with the defaults.
 *
 * `config`: a JSON object; NULL, "" and "{}" are the defaults. Keys, all optional:
 * - `"backend"`: `"auto"` (default: a CUDA device if there is one that will do, else the CPU without a word),
 *   `"cpu"` or `"cuda"` (or ERR_BACKEND);
 * - `"device"`: the CUDA ordinal, 0 by default; or `"devices"`: an array of ordinals, among which the layers of
 *   a model are shared in this order;
 * - `"threads"`: 0 (default) for the processors that this process may use, or a count;
 * - `"isa"`: `"auto"` (default), `"scalar"`, `"avx2"` or `"avx512"`: may lower what the processor has;
 * - `"amx"`: true (default, or 1) or false (or 0): whether AMX may be used beside AVX-512, where the processor has it and
 *   the system agrees. On Linux the process is then let use it for good: frames of signals grow by 8 KiB on the threads that
 *   multiplied with it, and alternative signal stacks of less than about 12 KiB (AT_MINSIGSTKSZ) are refused; where there is
 *   such a stack already, the library does without AMX.
 *
 * Where a key is absent, the environment variables APL_FFI_BACKEND, APL_FFI_THREADS, APL_FFI_ISA and APL_FFI_AMX
 * (1 or 0) say the same.
 * A configuration that resolves to the same values again is OK.
 *
 * Returns: OK; ERR_ENCODING; ERR_CONFIG; ERR_UNSUPPORTED (an instruction set the processor lacks); ERR_BACKEND
 * (CUDA is demanded and cannot be used; the message has the reason); ERR_MEMORY (a thread is refused); ERR_STATE (configured otherwise: `apl_ffi_cleanup` comes
 * first).
 */
int32_t apl_ffi_init(const char *config);

/**
 * Frees every handle, ends every thread and lets the devices go; `apl_ffi_init` may follow again.
 *
 * Waits for the calls that run in other threads. Handles from before never become valid again. It is no error
 * if the library was not initialised. Leaves the error state alone.
 *
 * Returns: OK.
 */
int32_t apl_ffi_cleanup(void);

/**
 * 1 once the library is initialised, else 0.
 *
 * Never initialises the library and leaves the error state alone.
 */
int32_t apl_ffi_ready(void);

/**
 * What the library is and has chosen, as a JSON object.
 *
 * Keys: `version`, `abi`, `backend`, `backend_reason`, `isa`, `isa_available`, `amx` (whether it is used), `threads`, `cuda` (null, or of
 * the device `name`, `compute_capability`, `memory_total`, `memory_free`, `driver`, and `image`, what its kernels
 * were loaded from), `devices` (the same and `ordinal` of every device in use, of which `cuda` is the first),
 * `handles` (live ones by kind). Before initialisation `backend`, `backend_reason`, `isa`, `amx` and `threads` are null.
 * Handles of other threads may lengthen the text between two calls: give room to spare, or ask again. Never
 * initialises the library and leaves the error state alone.
 *
 * Returns: the bytes that the whole text needs without the NUL; ERR_LENGTH (`capacity` < 0); ERR_NULL.
 */
int32_t apl_ffi_info(char *json, int32_t capacity);

/**
 * The message of this thread's latest failed call or, where it had none since its latest success, of the
 * latest in the process.
 *
 * It names the function, the argument, and what was expected and found: "apl_matmul_q: x_len is 63, expected
 * cols = 64". It is empty if nothing failed. The other threads count because a `⎕NA` call marked `&` runs in
 * another system thread. Leaves the error state alone, so asking for the size and then for the text is safe.
 *
 * Returns: the bytes that the whole text needs without the NUL; ERR_LENGTH (`capacity` < 0); ERR_NULL.
 */
int32_t apl_ffi_last_error(char *text, int32_t capacity);

/**
 * The text of a status: static, never NULL, also for a number that is no status. For C.
 *
 * Never initialises the library and leaves the error state alone.
 */
const char *apl_ffi_status_text(int32_t status);

/**
 * The text of a status, written to a buffer. For APL, which has no use for a pointer.
 *
 * Never initialises the library and leaves the error state alone.
 *
 * Returns: the bytes that the whole text needs without the NUL; ERR_LENGTH (`capacity` < 0); ERR_NULL.
 */
int32_t apl_ffi_status_message(int32_t status, char *text, int32_t capacity);

/**
 * Every function of this library as JSON: its C prototype, its `⎕NA` declaration and one line of
 * documentation.
 *
 * `{"abi":1, "version":"…", "functions":[{"name":"…", "c":"…", "na":"…", "doc":"…"}, …]}`, in the order of
 * this header. In `na`, `%P` stands for the path of the library. Never initialises the library and leaves the
 * error state alone.
 *
 * Returns: the bytes that the whole text needs without the NUL; ERR_LENGTH (`capacity` < 0); ERR_NULL.
 */
int32_t apl_ffi_describe(char *json, int32_t capacity);

/* ---- One-shot products: the weights come with the call --------------------------------------------------- */

/**
 * `y = W x` with 1-bit weights: bit 1 is `+scale`, bit 0 is `-scale`.
 *
 * `packed` (rows, ceil(cols / 8)), first column in the most significant bit; `scales` 1, (rows) or (rows, G);
 * `x` (cols); `y` (rows).
 * `group`: columns a scale covers, 0 for the whole row; `G` = ceil(cols / group).
 * `mode` 0: float activations, exact to float32 rounding in short sums. `mode` 1: each x counts as +1 (x >= 0)
 * or -1, exact in integers before the scale.
 *
 * Returns: OK; ERR_RANGE (a negative dimension, `mode`, a scale that is not finite, misaligned or overlapping
 * arrays); ERR_LENGTH; ERR_NULL; ERR_MEMORY. `y` is written on success only.
 */
int32_t apl_matmul_1bit(const uint8_t *packed, int64_t packed_len, const float *scales, int64_t scales_len,
                        const float *x, int64_t x_len, float *y, int64_t y_len, int64_t rows, int64_t cols,
                        int32_t group, int32_t mode);

/**
 * `y = W x` with 1-bit weights for each of `n` vectors.
 *
 * As `apl_matmul_1bit`, with `x` (n, cols) and `y` (n, rows). The bits of a result do not depend on the batch
 * that its vector travels in.
 *
 * Returns: as `apl_matmul_1bit`.
 */
int32_t apl_matmul_1bit_batch(const uint8_t *packed, int64_t packed_len, const float *scales,
                              int64_t scales_len, const float *x, int64_t x_len, float *y, int64_t y_len,
                              int64_t rows, int64_t cols, int32_t group, int32_t mode, int64_t n);

/**
 * `y = W x` with weights of 2, 4 or 8 bits: `scale * (code - zero_point)`.
 *
 * `codes`: `packing` 1: (rows, ceil(cols * bits / 8)) bytes, first code in the most significant bits;
 * `packing` 0: (rows, cols), one code a byte.
 * `scales` and `zero_points`: 1, (rows) or (rows, G) values each; `zero_points_len` 0 stands for 2^(bits-1).
 * `x` (cols); `y` (rows).
 * `group`: columns a scale covers, 0 for the whole row; `G` = ceil(cols / group).
 *
 * Returns: OK; ERR_RANGE (`bits`, `packing`, a negative dimension, a scale that is not finite, a zero point or
 * an unpacked code beyond 2^bits-1, misaligned or overlapping arrays); ERR_LENGTH; ERR_NULL; ERR_MEMORY. `y`
 * is written on success only.
 */
int32_t apl_matmul_q(const uint8_t *codes, int64_t codes_len, int32_t bits, int32_t packing,
                     const float *scales, int64_t scales_len, const int32_t *zero_points,
                     int64_t zero_points_len, const float *x, int64_t x_len, float *y, int64_t y_len,
                     int64_t rows, int64_t cols, int32_t group);

/**
 * `y = W x` with weights of 2, 4 or 8 bits for each of `n` vectors.
 *
 * As `apl_matmul_q`, with `x` (n, cols) and `y` (n, rows). The bits of a result do not depend on the batch
 * that its vector travels in.
 *
 * Returns: as `apl_matmul_q`.
 */
int32_t apl_matmul_q_batch(const uint8_t *codes, int64_t codes_len, int32_t bits, int32_t packing,
                           const float *scales, int64_t scales_len, const int32_t *zero_points,
                           int64_t zero_points_len, const float *x, int64_t x_len, float *y, int64_t y_len,
                           int64_t rows, int64_t cols, int32_t group, int64_t n);

/* ---- Quantising ------------------------------------------------------------------------------------------ */

/**
 * Quantises a float matrix to codes of 1, 2, 4 or 8 bits, one scale a group.
 *
 * `w` (rows, cols). Outputs: `codes` packed (rows, ceil(cols * bits / 8)); `scales` (rows, G); `zero_points`
 * (rows, G), or length 0 for symmetric codes, whose zero point is 2^(bits-1). `group`: columns a group, 0 for
 * the whole row; `G` = ceil(cols / group).
 * `method` 0: round to nearest, the scale from the extremes of the group (1 bit: the mean absolute value).
 * `method` 1: scale and zero point searched for least squared error. 1-bit codes have no zero points: bit 1 is
 * `+scale`, bit 0 is `-scale`. Scales are float16 numbers where all of them can be.
 *
 * Returns: OK; ERR_RANGE (`bits`, `method`, a negative dimension, a weight that is not finite, misaligned or
 * overlapping arrays); ERR_LENGTH; ERR_NULL; ERR_MEMORY. The outputs are written on success only.
 */
int32_t apl_quantize(const float *w, int64_t w_len, int64_t rows, int64_t cols, int32_t bits, int32_t group,
                     int32_t method, uint8_t *codes, int64_t codes_len, float *scales, int64_t scales_len,
                     int32_t *zero_points, int64_t zero_points_len);

/**
 * The weights that codes of 1, 2, 4 or 8 bits stand for, as floats.
 *
 * `codes`: `packing` 1: (rows, ceil(cols * bits / 8)) bytes, first code in the most significant bits;
 * `packing` 0: (rows, cols), one code a byte.
 * `scales` and `zero_points`: 1, (rows) or (rows, G) values each; `zero_points_len` 0 stands for 2^(bits-1),
 * and is the only one with 1 bit. Output: `w` (rows, cols).
 *
 * Returns: OK; ERR_RANGE (`bits`, `packing`, a negative dimension, a scale that is not finite, a zero point or
 * an unpacked code beyond 2^bits-1, misaligned or overlapping arrays); ERR_LENGTH; ERR_NULL; ERR_MEMORY. `w`
 * is written on success only.
 */
int32_t apl_dequantize(const uint8_t *codes, int64_t codes_len, int32_t bits, int32_t packing,
                       const float *scales, int64_t scales_len, const int32_t *zero_points,
                       int64_t zero_points_len, float *w, int64_t w_len, int64_t rows, int64_t cols,
                       int32_t group);

/* ---- Weight handles: a matrix converted once, then multiplied with often --------------------------------- */

/**
 * Makes a handle of a quantised matrix; the codes are converted, and the caller keeps the arrays.
 *
 * `codes`: `packing` 1: (rows, ceil(cols * bits / 8)) bytes, first code in the most significant bits;
 * `packing` 0: (rows, cols), one code a byte.
 * `bits` 1, 2, 4 or 8. `scales` and `zero_points`: 1, (rows) or (rows, G) values each; `zero_points_len` 0
 * stands for 2^(bits-1), and is the only one with 1 bit. `group`: columns a scale covers, 0 for the whole row.
 * `options`: JSON; NULL or "" for the defaults. Key: `"activations"`: `"f32"` (default), `"int8"`, or `"sign"`
 * with 1 bit.
 * Output: `handle`, to be freed by `apl_weights_free`.
 *
 * Returns: OK; ERR_RANGE (`bits`, `packing`, a negative dimension, a scale that is not finite, a zero point or
 * an unpacked code beyond 2^bits-1, misaligned or overlapping arrays); ERR_ENCODING; ERR_CONFIG; ERR_LENGTH;
 * ERR_NULL; ERR_MEMORY (of the device only where CUDA is demanded: else the CPU keeps the matrix); ERR_BACKEND
 * (the device failed); ERR_STATE (no handle is left).
 */
int32_t apl_weights_from_codes(const uint8_t *codes, int64_t codes_len, int32_t bits, int32_t packing,
                               const float *scales, int64_t scales_len, const int32_t *zero_points,
                               int64_t zero_points_len, int64_t rows, int64_t cols, int32_t group,
                               const char *options, int32_t *handle);

/**
 * Makes a handle of a float32 matrix, quantised as the options say; the caller keeps the array.
 *
 * `w` (rows, cols). `options`: JSON; NULL or "" for the defaults. Keys:
 * - `"bits"`: 1, 2, 4 (default), 8; 32 keeps float32, 16 rounds to float16;
 * - `"group"`: columns a scale, 32 by default, 0 for the whole row; on the CPU groups of 16 and more that are no
 *   multiples of 32 take the memory of the next multiple; rows of shorter ones are padded to a multiple of 32;
 * - `"symmetric"`: true (default): no zero points;
 * - `"method"`: `"nearest"` (default) or `"search"`, slower and with a smaller error;
 * - `"activations"`: `"f32"` (default, exact); `"int8"`: each vector quantised to 8 bits on the fly, faster
 *   (not in groups of less than 16 columns), adds under 1% of error; `"sign"`: with 1 bit only. Float weights (16, 32) always take `"f32"`.
 *
 * Output: `handle`, to be freed by `apl_weights_free`.
 *
 * Returns: OK; ERR_RANGE (a negative dimension, a weight that is not finite or does not fit float16,
 * misaligned or overlapping arrays); ERR_ENCODING; ERR_CONFIG; ERR_LENGTH; ERR_NULL; ERR_MEMORY and ERR_BACKEND
 * as `apl_weights_from_codes`; ERR_STATE (no handle is left).
 */
int32_t apl_weights_from_f32(const float *w, int64_t w_len, int64_t rows, int64_t cols, const char *options,
                             int32_t *handle);

/**
 * Makes a handle of a float64 matrix, each weight rounded to float32 first. As `apl_weights_from_f32`.
 *
 * `w` (rows, cols): a Dyalog array of floats needs no conversion. A weight beyond the range of float32 is
 * ERR_RANGE.
 *
 * Returns: as `apl_weights_from_f32`.
 */
int32_t apl_weights_from_f64(const double *w, int64_t w_len, int64_t rows, int64_t cols, const char *options,
                             int32_t *handle);

/**
 * Makes a handle of one named matrix out of a file: a manifest (.json), a .gguf or a .safetensors file.
 *
 * `path`, `name`: text; a vector in the file is a matrix of one row. `options`: as for `apl_weights_from_f32`,
 * and `"mmap"`: true (default) maps the file, false reads it. Weights that are quantised already are taken as
 * stored, unless `"bits"` is given and differs; floats are quantised by the options.
 * Output: `handle`, to be freed by `apl_weights_free`. A file that is cut short by someone while it is mapped
 * cannot be survived.
 *
 * Returns: OK; ERR_ENCODING; ERR_CONFIG; ERR_NULL; ERR_RANGE (misaligned `handle`, a weight that is not
 * finite); ERR_IO; ERR_FORMAT (also a name that is not there); ERR_UNSUPPORTED; ERR_MEMORY; ERR_BACKEND; ERR_STATE (no
 * handle is left).
 */
int32_t apl_weights_open(const char *path, const char *name, const char *options, int32_t *handle);

/**
 * What a weight handle is, as a JSON object.
 *
 * Keys: `rows`, `cols`, `bits` (1, 2, 4, 8; 16 and 32 are floats), `group` (columns a scale), `symmetric`,
 * `scales` (their type), `activations`, `bytes` (memory it occupies), `path` (how it is multiplied: `"tiles"`,
 * as codes, `"rows"`, as floats, or `"device"`), `backend` (where it lives: `"cpu"` or `"cuda"`),
 * `isa`.
 * `group`, `symmetric` and `scales` are null for float weights.
 *
 * Returns: the bytes that the whole text needs without the NUL; ERR_HANDLE; ERR_LENGTH (`capacity` < 0);
 * ERR_NULL.
 */
int32_t apl_weights_info(int32_t handle, char *json, int32_t capacity);

/**
 * The weights of a handle as floats: what its products multiply with.
 *
 * Output: `w` (rows, cols).
 *
 * Returns: OK; ERR_HANDLE; ERR_LENGTH; ERR_NULL; ERR_RANGE (misaligned); ERR_MEMORY; ERR_BACKEND. `w` is written on success
 * only.
 */
int32_t apl_weights_dequantize(int32_t handle, float *w, int64_t w_len);

/**
 * Saves the weights of a handle under a name: a manifest at `path` (.json), and an .npz beside it.
 *
 * `path`, `name`: text. The .npz is in place before the manifest that names it is, so an interruption leaves
 * the old file or the new one. What the manifest held before is replaced. `apl_weights_open` reads it back.
 *
 * Returns: OK; ERR_HANDLE; ERR_ENCODING; ERR_NULL; ERR_RANGE (`path` does not end in .json, or `name` is empty
 * or beyond 1024 bytes, or has control characters); ERR_IO; ERR_MEMORY; ERR_BACKEND.
 */
int32_t apl_weights_save(int32_t handle, const char *path, const char *name);

/**
 * Frees a weight handle. Safe while other threads use it: the weights live until their calls end.
 *
 * Returns: OK; ERR_HANDLE (also for a handle that is freed already).
 */
int32_t apl_weights_free(int32_t handle);

/**
 * `y = W x` for each of `n` vectors, with the weights of a handle.
 *
 * `x` (n, cols), `y` (n, rows); they must not overlap. On the CPU the bits of a result depend neither on the
 * number of threads nor on the batch that its vector travels in; on a CUDA device the same call gives the same
 * bits each time.
 *
 * Returns: OK; ERR_HANDLE; ERR_RANGE (`n` < 0, a vector that is not finite where activations are `"int8"`,
 * misaligned or overlapping arrays); ERR_LENGTH; ERR_NULL; ERR_MEMORY; ERR_BACKEND (the device failed). `y` is
 * written on success only.
 */
int32_t apl_matmul(int32_t handle, const float *x, int64_t x_len, float *y, int64_t y_len, int64_t n);

/**
 * `apl_matmul` for float64 vectors, which are what APL has: `x` is rounded to float32 first, the sums are
 * widened.
 *
 * `x` (n, cols), `y` (n, rows). An element of `x` that is finite and beyond the range of float32 is ERR_RANGE.
 *
 * Returns: as `apl_matmul`.
 */
int32_t apl_matmul_f64(int32_t handle, const double *x, int64_t x_len, double *y, int64_t y_len, int64_t n);

/* ---- Models: a language model in memory ------------------------------------------------------------------ */

/**
 * Opens a language model: a manifest (.json), a .gguf file, or a folder in the Hugging Face layout.
 *
 * `path`: text. `options`: JSON; NULL or "" for the defaults. Keys: those of `apl_weights_open` (`"bits"`, `"group"`,
 * `"symmetric"`, `"method"`, `"activations"`, `"mmap"`), and `"context"`, the longest context of a session. Weights that are
 * quantised already are taken as stored, unless `"bits"` is given and differs; floats are quantised by the options
 * (4 bits in groups of 32 by default; `"bits": 32` keeps them).
 * Families: llama, mistral, gemma, gemma2, qwen2, qwen3.
 * Output: `model`, to be closed by `apl_model_close`. Any number of sessions and threads use one model at once.
 *
 * Returns: OK; ERR_ENCODING; ERR_CONFIG; ERR_NULL; ERR_RANGE (misaligned `model`, a weight that is not finite, a
 * path of more than 64 KiB); ERR_IO;
 * ERR_FORMAT; ERR_UNSUPPORTED (also an architecture that is not known; the message lists those that are); ERR_MEMORY;
 * ERR_BACKEND; ERR_STATE (no handle is left).
 */
int32_t apl_model_open(const char *path, const char *options, int32_t *model);

/**
 * What a model is, as a JSON object.
 *
 * Keys: `family`, `format`, `layers`, `hidden`, `intermediate`, `heads`, `kv_heads`, `head_dim`, `vocabulary`, `context`,
 * `parameters` (in matrices), `bits` (the widths that occur), `bytes` (of all matrices in memory), `backend` (where it runs: `cpu`,
 * `cuda`, or `cuda+cpu` where the device has the first layers), `backend_reason`, `devices` (the `ordinal` of each that has a part, and how many `layers`), `activations`, `tokenizer` and `chat` (whether it
 * has one, and a chat template), `bos` (its beginning-of-sequence token or null).
 *
 * Returns: the bytes that the whole text needs without the NUL; ERR_HANDLE; ERR_LENGTH (`capacity` < 0); ERR_NULL.
 */
int32_t apl_model_info(int32_t model, char *json, int32_t capacity);

/**
 * Closes a model handle. Sessions that are open go on, and other threads' calls too.
 *
 * Returns: OK; ERR_HANDLE (also for a handle that is closed already).
 */
int32_t apl_model_close(int32_t model);

/**
 * The token ids of a text.
 *
 * `text`: text; special tokens that stand in it (`<|im_end|>` …) are taken as such. `add_bos` not 0: exactly one
 * beginning-of-sequence token comes first, if the model has one (`bos` of `apl_model_info`), whether or not its texts begin with it.
 * Output: `ids`, of which at most `capacity` are written.
 *
 * Returns: the ids that the whole text has; ERR_HANDLE; ERR_ENCODING; ERR_LENGTH (`capacity` < 0); ERR_NULL; ERR_RANGE
 * (misaligned); ERR_UNSUPPORTED (the model has no tokenizer); ERR_MEMORY.
 */
int32_t apl_model_tokenize(int32_t model, const char *text, int32_t add_bos, int32_t *ids, int32_t capacity);

/**
 * The model's chat template over a conversation: the text that asks the model for the next turn.
 *
 * `messages`: JSON, `[{"role": "user", "content": "…"}, …]`; roles are what the template knows (system, user, assistant).
 * Tokenize the text without `add_bos`: where the model wants that token, the template writes it. A template has 64 KiB at most, writes 64 MiB
 * at most, and ends after 400,000 steps; what it keeps to itself is not counted: templates are programs of whoever made the model.
 *
 * Returns: the bytes that the whole text needs without the NUL; ERR_HANDLE; ERR_ENCODING; ERR_CONFIG (not such messages, or the
 * template refuses them); ERR_LENGTH (`capacity` < 0); ERR_NULL; ERR_FORMAT (a malformed template); ERR_UNSUPPORTED (the model
 * has no tokenizer, no template, or one beyond that); ERR_MEMORY.
 */
int32_t apl_model_chat(int32_t model, const char *messages, char *text, int32_t capacity);

/**
 * The text of token ids. Special tokens have none; bytes that make no UTF-8 character become U+FFFD.
 *
 * `ids` (ids_len).
 *
 * Returns: the bytes that the whole text needs without the NUL; ERR_HANDLE; ERR_LENGTH (`ids_len` or `capacity` < 0);
 * ERR_NULL; ERR_RANGE (misaligned, an id that is none of the vocabulary); ERR_UNSUPPORTED (the model has no tokenizer); ERR_MEMORY.
 */
int32_t apl_model_detokenize(int32_t model, const int32_t *ids, int32_t ids_len, char *text,
                             int32_t capacity);

/* ---- Sessions: a conversation with a model --------------------------------------------------------------- */

/**
 * Opens a session: a position, a key/value cache and a sampler of its own.
 *
 * `options`: JSON; NULL or "" for the defaults. Keys: `"context"` (the model's), `"temperature"` 0.8 (0 is greedy), `"top_k"` 40
 * (0: all), `"top_p"` 0.95, `"min_p"` 0.05, `"repeat_penalty"` 1.0 (over the last 64 tokens), `"seed"` 0 (the same seed gives
 * the same text), `"kv"`: `"f16"` (default) or `"f32"`; where the model keeps float32 weights it is `"f32"` whatever is asked for.
 * Output: `session`, to be closed by `apl_session_close`. Calls on one session from several threads come one after the other.
 *
 * Returns: OK; ERR_HANDLE; ERR_ENCODING; ERR_CONFIG; ERR_NULL; ERR_RANGE (misaligned); ERR_MEMORY; ERR_BACKEND; ERR_STATE (no
 * handle is left).
 */
int32_t apl_session_open(int32_t model, const char *options, int32_t *session);

/**
 * Feeds tokens, and gives logits.
 *
 * `ids` (ids_len). Output: `logits`: `logits_len` = V, the vocabulary: those of the last token; `ids_len` * V: of every token
 * (ids_len, V); 0: none. Without tokens, `logits_len` = V gives the latest again.
 *
 * Returns: OK; ERR_HANDLE; ERR_LENGTH; ERR_NULL; ERR_RANGE (an id that is none of the vocabulary, misaligned or
 * overlapping arrays); ERR_STATE (tokens beyond the context, a call that was cancelled, no logits yet); ERR_FORMAT (activations are
 * int8, and one inside the model is not finite); ERR_MEMORY; ERR_BACKEND. Nothing is fed, and `logits` is not written, unless
 * it is OK.
 */
int32_t apl_session_eval(int32_t session, const int32_t *ids, int32_t ids_len, float *logits,
                         int64_t logits_len);

/**
 * Samples one token from the latest logits, feeds it, and gives its text.
 *
 * Output: `id`, and `piece`: whole UTF-8 characters, at most `capacity` bytes with the NUL. Bytes that make no whole character
 * yet, or do not fit, come first in the next piece; where the text ends there is none, and `apl_model_detokenize` has what was held.
 *
 * Returns: the bytes of the piece without the NUL; APL_FFI_END, which is no error, at a token that ends the text (`id` has it; it
 * is not fed) and where the context is full (`id` is -1), with an empty piece; ERR_HANDLE; ERR_LENGTH (`capacity` < 0);
 * ERR_NULL; ERR_RANGE (misaligned); ERR_STATE (no logits: feed something first; or the call was cancelled); ERR_FORMAT (the logits
 * are not finite); ERR_UNSUPPORTED (the model has no tokenizer); ERR_MEMORY; ERR_BACKEND.
 */
int32_t apl_session_next(int32_t session, int32_t *id, char *piece, int32_t capacity);

/**
 * Keeps the first `position` tokens and forgets the others; the logits of the last kept token are the latest again.
 *
 * Where a sliding window has overwritten what those tokens see, they are fed again, which takes as long as it did before.
 *
 * Returns: OK; ERR_HANDLE; ERR_RANGE (`position` is negative or beyond what was fed); ERR_STATE (the call was cancelled); ERR_MEMORY;
 * ERR_BACKEND. Nothing changes unless it is OK.
 */
int32_t apl_session_rewind(int32_t session, int32_t position);

/**
 * What a session is and where it stands, as a JSON object.
 *
 * Keys: `position` (tokens fed), `context`, `logits` (whether there are any to sample from), `backend` (as of the model), `kv`,
 * `kv_bytes`, and the options of the sampler.
 *
 * Returns: the bytes that the whole text needs without the NUL; ERR_HANDLE; ERR_LENGTH (`capacity` < 0); ERR_NULL.
 */
int32_t apl_session_info(int32_t session, char *json, int32_t capacity);

/**
 * Ends the call that another thread has running on a session: it returns ERR_STATE, and nothing was fed by it.
 *
 * It does not wait for that, and does nothing if no call runs.
 *
 * Returns: OK; ERR_HANDLE.
 */
int32_t apl_session_cancel(int32_t session);

/**
 * Closes a session handle. Safe while another thread uses it: the session lives until that call ends.
 *
 * Returns: OK; ERR_HANDLE (also for a handle that is closed already).
 */
int32_t apl_session_close(int32_t session);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* APL_FFI_H */
