/*
 * apl_ffi: products of quantised matrices (1, 2, 4 and 8 bits) and inference of language models,
 * for C, C++ and APL.
 *
 * Generated from the Rust sources by `make header`. Do not edit.
 *
 *     apl_ffi_...                       life cycle, errors, what the library says about itself
 *     apl_matmul_1bit, apl_matmul_q     one-shot products: the weights are arguments of the call
 *     apl_quantize, apl_dequantize      floats to codes, and codes to floats
 *     apl_weights_..., apl_matmul       weight handles: a matrix converted once, used often
 *     apl_model_...                     language models: loading, tokens, chat templates
 *     apl_session_...                   text generation: prefill, decode, rewind
 *
 * LIFE CYCLE
 *
 * No set-up is needed: the first call that needs the library initialised initialises it with the
 * defaults, and can then also return any status of apl_ffi_init. To choose the configuration,
 * call apl_ffi_init first. apl_ffi_cleanup waits for running calls, frees every handle and ends
 * every thread; the library may be initialised again afterwards. It cannot be used in the child
 * process of a fork.
 *
 * THREADS
 *
 * Every function may be called from any thread at any time, unless its comment says otherwise, as
 * long as no call writes an array that another call reads or writes. Calls on one session run one
 * after the other; calls on different handles, and on one weight or model handle, run
 * concurrently. Freeing a handle that another thread is using is safe: the object lives until
 * that call ends. The library's own threads block all signals. A call needs 512 KiB of stack. It
 * calculates with the default rounding mode and treatment of subnormal numbers, whatever the
 * caller has set.
 *
 * OWNERSHIP
 *
 * The caller owns every array and every text that it passes; the library keeps no pointer to them
 * after the call returns. An object behind a handle belongs to the library; it lives until the
 * handle is freed (apl_weights_free, apl_model_close, apl_session_close) or apl_ffi_cleanup frees
 * all of them. Handles are positive; 0 is never a handle. A stale, foreign or made-up handle
 * gives APL_FFI_ERR_HANDLE.
 *
 * ARRAYS AND TEXT
 *
 * Every array comes with its length in elements, which must be exactly what the shape requires.
 * Shapes are given as (rows, cols), in row-major order. rows, cols and n may be 0; the product is
 * then empty or zeros. Length 0 means that an array is absent: its pointer is not read and may be
 * anything. Pointers must be aligned for their element type. An output must not overlap another
 * array of the same call.
 *
 * Text is UTF-8 and ends with NUL. A function that fills a buffer of `capacity` bytes writes at
 * most that many, the NUL included; it always writes the NUL if capacity > 0, and never splits a
 * character. It returns the length in bytes of the whole text, excluding the NUL, so a call with
 * capacity 0 asks for the length. (Not with apl_session_next, which always goes on by a token, and
 * returns the length of what it has written.)
 *
 * `config` and `options` are JSON objects of at most 64 KiB; NULL, "" and "{}" are the defaults.
 * An unknown key, a key that comes twice, or a value outside its domain is ERR_CONFIG.
 *
 * ERRORS
 *
 * A function returns a status: APL_FFI_OK (0) or a negative number. A function that counts
 * returns the count, 0 or more, or a negative status. apl_ffi_last_error returns a message that
 * names the function, the argument, what was found and what was expected.
 *
 * In the comments below, statuses are abbreviated: OK is APL_FFI_OK, ERR_X is APL_FFI_ERR_X.
 * Every function that returns a status can return ERR_INTERNAL, which is a bug in the library.
 * Outputs are written on success only. No call unwinds, aborts, prints, or installs a signal
 * handler.
 *
 * If several arguments are invalid, the first in this order is reported:
 *
 *     1. handle                   ERR_HANDLE
 *     2. scalars                  ERR_RANGE
 *     3. text and JSON            ERR_ENCODING, ERR_CONFIG
 *     4. lengths                  ERR_LENGTH
 *     5. NULL                     ERR_NULL
 *     6. alignment, overlap       ERR_RANGE
 *     7. contents of arrays       ERR_RANGE
 *
 * QUANTISED MATRICES
 *
 * A matrix W has `rows` outputs and `cols` inputs. A product maps x (cols) to y (rows), or n
 * vectors at once: x (n, cols) to y (n, rows).
 *
 * Groups: along a row, the columns are divided into groups of `group` columns. 0 makes the whole
 * row one group; the last group may be shorter. G is the number of groups per row: ceil(cols /
 * group), or 1 if group is 0.
 *
 * Codes: with 2, 4 or 8 bits, a weight is scale * (code - zero_point). A zero point is an integer
 * from 0 to 2^bits-1, and 2^(bits-1) if none are given. With 1 bit, a weight is +scale for bit 1
 * and -scale for bit 0, and there are no zero points. There is one scale per matrix (1), per row
 * (rows) or per group (rows, G); the length of the array says which. The same holds for zero
 * points. In a product of no vectors, rows or columns, scales may be absent.
 *
 * Packing: with `packing` 1, the first code is in the most significant bits of a byte and each
 * row begins a new byte, so the codes are (rows, ceil(cols * bits / 8)) bytes; the bits left over
 * may hold anything. With `packing` 0, every code has a byte of its own: (rows, cols).
 *
 * Mind the order of scalars: functions that take codes have `bits` and `packing` after the codes
 * and rows, cols, group at the end; apl_quantize has rows, cols, bits, group, method after `w`.
 *
 * EXAMPLE: A PRODUCT
 *
 *     #include <apl_ffi.h>
 *     #include <stdio.h>
 *
 *     int main(void)
 *     {
 *         const uint8_t codes[] = {0x9A, 0x7F};     // (2, 2) codes of 4 bits: 9 10, 7 15
 *         const float scales[] = {0.5f, 2.0f};      // one per row
 *         const float x[] = {1.0f, 10.0f};
 *         float y[2];                               // scale * (code - 8), times x
 *         char why[256];
 *
 *         if (apl_matmul_q(codes, 2, 4, 1, scales, 2, NULL, 0, x, 2, y, 2, 2, 2, 0)) {
 *             apl_ffi_last_error(why, (int32_t)sizeof why);
 *             fprintf(stderr, "%s\n", why);
 *             return 1;
 *         }
 *         printf("%g %g\n", y[0], y[1]);            // 10.5 138
 *         return apl_ffi_cleanup();
 *     }
 *
 * EXAMPLE: A SESSION THAT STREAMS TEXT
 *
 *     #include <apl_ffi.h>
 *     #include <stdio.h>
 *     #include <stdlib.h>
 *
 *     static int fail(void)
 *     {
 *         char why[1024];
 *         apl_ffi_last_error(why, (int32_t)sizeof why);
 *         fprintf(stderr, "%s\n", why);
 *         return 1;
 *     }
 *
 *     int main(int argc, char **argv)
 *     {
 *         int32_t model, session, count, *ids, id, bytes;
 *         char piece[64];
 *
 *         if (argc != 3) {
 *             fprintf(stderr, "usage: %s MODEL PROMPT\n", argv[0]);
 *             return 2;
 *         }
 *         if (apl_model_open(argv[1], "{\"activations\": \"int8\"}", &model) != APL_FFI_OK ||
 *             apl_session_open(model, "{\"temperature\": 0}", &session) != APL_FFI_OK)
 *             return fail();
 *
 *         count = apl_model_tokenize(model, argv[2], 1, NULL, 0);     // number of ids
 *         if (count < 0)
 *             return fail();
 *         ids = malloc((size_t)count * sizeof *ids + 1);
 *         if (ids == NULL)
 *             return 1;
 *         if (apl_model_tokenize(model, argv[2], 1, ids, count) < 0 ||
 *             apl_session_eval(session, ids, count, NULL, 0) != APL_FFI_OK)   // prefill
 *             return fail();
 *         free(ids);
 *
 *         // Decode, a token per call, up to the end of the text or of the context.
 *         while ((bytes = apl_session_next(session, &id, piece, (int32_t)sizeof piece)) >= 0) {
 *             fwrite(piece, 1, (size_t)bytes, stdout);
 *             fflush(stdout);
 *         }
 *         if (bytes != APL_FFI_END)
 *             return fail();
 *
 *         apl_session_close(session);
 *         apl_model_close(model);
 *         return apl_ffi_cleanup();
 *     }
 */

#ifndef APL_FFI_H
#define APL_FFI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Version and statuses -------------------------------------------------------------------- */

/**
 * The version of this ABI. It changes when a name, an argument or a meaning changes; new functions
 * do not change it.
 */
#define APL_FFI_ABI_VERSION 1

/** Success. */
#define APL_FFI_OK 0

/** A pointer is NULL though its length is not 0. */
#define APL_FFI_ERR_NULL (-1)

/** A length does not agree with the shape; the message gives both. */
#define APL_FFI_ERR_LENGTH (-2)

/**
 * An argument or an element is outside its domain, a pointer is misaligned, or an output overlaps
 * another array.
 */
#define APL_FFI_ERR_RANGE (-3)

/** Not a live handle, or a handle of another kind. */
#define APL_FFI_ERR_HANDLE (-4)

/** The configuration or option JSON is malformed, or has an unknown key or value. */
#define APL_FFI_ERR_CONFIG (-5)

/** A file cannot be opened, read or written; the message has the path and the system's reason. */
#define APL_FFI_ERR_IO (-6)

/** A file is not what it claims to be, is truncated, or is inconsistent. */
#define APL_FFI_ERR_FORMAT (-7)

/** Valid, but not something that this build, processor or backend can do. */
#define APL_FFI_ERR_UNSUPPORTED (-8)

/** Host or device memory is exhausted. */
#define APL_FFI_ERR_MEMORY (-9)

/** The CUDA backend was demanded and cannot be used, or failed while running. */
#define APL_FFI_ERR_BACKEND (-10)

/**
 * Not possible now: already configured otherwise, no handle is left, the context is full, there
 * are no logits, or the call was cancelled.
 */
#define APL_FFI_ERR_STATE (-11)

/** Text is not UTF-8. */
#define APL_FFI_ERR_ENCODING (-12)

/** A bug in the library: a panic was caught; the message has its text. */
#define APL_FFI_ERR_INTERNAL (-99)

/** Not an error: the text of a session ends here. */
#define APL_FFI_END (-100)

/* ---- Life cycle, errors, and what the library says about itself ------------------------------ */

/**
 * Returns the version of the ABI that this library has; compare it with `APL_FFI_ABI_VERSION`.
 *
 * Never initialises the library.
 */
int32_t apl_ffi_abi_version(void);

/**
 * Initialises the library with a configuration.
 *
 * Optional: the first call that needs the library initialised does it with the defaults.
 *
 * `config`: a JSON object; NULL, "" and "{}" are the defaults. Keys, all optional:
 * - `"backend"`: `"auto"` (default) uses a CUDA device if one is usable and the CPU otherwise,
 *   without a message; `"cpu"` does not look for devices; `"cuda"` uses CUDA or fails with
 *   ERR_BACKEND;
 * - `"device"`: the CUDA ordinal, 0 by default; or `"devices"`: an array of ordinals, among which
 *   the layers of a model are shared in this order. Ignored on the CPU;
 * - `"threads"`: the number of threads, the calling one included, up to 1024; 0 (default) is the
 *   number of processors that this process may use;
 * - `"isa"`: `"auto"` (default), `"scalar"`, `"avx2"` or `"avx512"`: restricts what the processor
 *   supports;
 * - `"amx"`: true (default, or 1) or false (or 0): whether AMX may be used in addition to AVX-512,
 *   where the processor and the system support it.
 *
 * Where a key is absent, the environment variables APL_FFI_BACKEND, APL_FFI_THREADS, APL_FFI_ISA
 * and APL_FFI_AMX (1 or 0) supply its value. A configuration that resolves to the same values
 * again is OK.
 *
 * On Linux, the library requests AMX for the process; this cannot be revoked. Signal frames grow
 * by 8 KiB on threads that have multiplied with AMX, and the system refuses alternate signal
 * stacks smaller than about 12 KiB (AT_MINSIGSTKSZ). If such a stack exists already, the library
 * does without AMX.
 *
 * Returns: OK; ERR_ENCODING; ERR_CONFIG; ERR_UNSUPPORTED (an instruction set that the processor
 * lacks); ERR_BACKEND (CUDA is demanded and cannot be used; the message says why); ERR_MEMORY (a
 * thread cannot be started); ERR_STATE (already configured otherwise: call `apl_ffi_cleanup`
 * first).
 */
int32_t apl_ffi_init(const char *config);

/**
 * Frees every handle, ends every thread and releases the devices.
 *
 * Waits for calls that are running in other threads. Handles from before never become valid again.
 * `apl_ffi_init` may follow. Not an error if the library is not initialised. Leaves the error
 * state alone.
 *
 * Returns: OK.
 */
int32_t apl_ffi_cleanup(void);

/**
 * Returns 1 if the library is initialised, else 0.
 *
 * Never initialises the library and leaves the error state alone.
 */
int32_t apl_ffi_ready(void);

/**
 * Describes the library and what it has chosen, as a JSON object.
 *
 * Keys: `version`; `abi`; `backend`; `backend_reason`; `isa`; `isa_available`; `amx` (whether AMX
 * is used); `threads`; `cuda`: null, or of the first device in use `ordinal`, `name`,
 * `compute_capability`, `memory_total`, `memory_free`, `driver` and `image` (what its kernels were
 * loaded from); `devices`: the same of every device in use; `handles`: the live ones by kind.
 * Before initialisation, `backend`, `backend_reason`, `isa`, `amx` and `threads` are null.
 *
 * Handles that other threads make can lengthen the text between two calls: allow some room, or ask
 * again. Never initialises the library and leaves the error state alone.
 *
 * Returns: the length in bytes of the whole text, excluding the NUL; ERR_LENGTH (`capacity` < 0);
 * ERR_NULL.
 */
int32_t apl_ffi_info(char *json, int32_t capacity);

/**
 * Returns the message of the latest failed call.
 *
 * This is the latest failure of the calling thread or, if it has had none since its latest
 * success, of any thread. Failures of other threads are included because a `⎕NA` call marked `&`
 * runs in another system thread. The text is empty if nothing has failed.
 *
 * The message names the function, the argument, and what was found and expected: "apl_matmul_q:
 * x_len is 63, expected cols = 64". Leaves the error state alone, so asking for the size first and
 * then for the text is safe.
 *
 * Returns: the length in bytes of the whole text, excluding the NUL; ERR_LENGTH (`capacity` < 0);
 * ERR_NULL.
 */
int32_t apl_ffi_last_error(char *text, int32_t capacity);

/**
 * Returns the text of a status, for C: static, never NULL, even if `status` is not a status.
 *
 * Never initialises the library and leaves the error state alone.
 */
const char *apl_ffi_status_text(int32_t status);

/**
 * Writes the text of a status to a buffer, for APL, which cannot use the pointer.
 *
 * Never initialises the library and leaves the error state alone.
 *
 * Returns: the length in bytes of the whole text, excluding the NUL; ERR_LENGTH (`capacity` < 0);
 * ERR_NULL.
 */
int32_t apl_ffi_status_message(int32_t status, char *text, int32_t capacity);

/**
 * Describes every function as JSON: its C prototype, its `⎕NA` declaration and its summary.
 *
 * `{"abi":1, "version":"…", "functions":[{"name":"…", "c":"…", "na":"…", "doc":"…"},
 * …]}`, in the order of this header. In `na`, `%P` stands for the path of the library. Never
 * initialises the library and leaves the error state alone.
 *
 * Returns: the length in bytes of the whole text, excluding the NUL; ERR_LENGTH (`capacity` < 0);
 * ERR_NULL.
 */
int32_t apl_ffi_describe(char *json, int32_t capacity);

/* ---- One-shot products: the weights come with the call --------------------------------------- */

/**
 * Computes `y = W x` with 1-bit weights: bit 1 is `+scale`, bit 0 is `-scale`.
 *
 * `packed`: (rows, ceil(cols / 8)), first column in the most significant bit. `scales`: 1, (rows)
 * or (rows, G). `x`: (cols). Output: `y` (rows).
 *
 * `group`: columns per scale, 0 for the whole row. G is the number of groups per row:
 * ceil(cols / group), or 1 if `group` is 0.
 *
 * `mode` 0: float activations; the error of an element of `y` is at most
 * `1e-5 * norm2(row of W) * norm2(x)`, for rows of any length. `mode` 1: each element of `x` is
 * replaced by +1 (if >= 0) or -1; sums are exact integers before they are scaled.
 *
 * Returns: OK; ERR_RANGE (a negative dimension, `mode`, a scale that is not finite, misaligned or
 * overlapping arrays); ERR_LENGTH; ERR_NULL; ERR_MEMORY. `y` is written on success only.
 */
int32_t apl_matmul_1bit(const uint8_t *packed, int64_t packed_len, const float *scales,
                        int64_t scales_len, const float *x, int64_t x_len, float *y, int64_t y_len,
                        int64_t rows, int64_t cols, int32_t group, int32_t mode);

/**
 * Computes `y = W x` with 1-bit weights for each of `n` vectors.
 *
 * As `apl_matmul_1bit`, with `x` (n, cols) and `y` (n, rows). A result has the same bits whatever
 * batch its vector is part of.
 *
 * Returns: as `apl_matmul_1bit`; ERR_RANGE also for `n` < 0.
 */
int32_t apl_matmul_1bit_batch(const uint8_t *packed, int64_t packed_len, const float *scales,
                              int64_t scales_len, const float *x, int64_t x_len, float *y,
                              int64_t y_len, int64_t rows, int64_t cols, int32_t group,
                              int32_t mode, int64_t n);

/**
 * Computes `y = W x` with weights of 2, 4 or 8 bits: `scale * (code - zero_point)`.
 *
 * `codes`: with `packing` 1, (rows, ceil(cols * bits / 8)) bytes, first code in the most
 * significant bits; with `packing` 0, (rows, cols), one code per byte. `scales`, `zero_points`: 1,
 * (rows) or (rows, G) values each; without zero points (`zero_points_len` 0), every zero point is
 * 2^(bits-1). `x`: (cols). Output: `y` (rows).
 *
 * `group`: columns per scale, 0 for the whole row. G is the number of groups per row:
 * ceil(cols / group), or 1 if `group` is 0.
 *
 * The error of an element of `y` is at most `1e-5 * norm2(row of W) * norm2(x)`, for rows of any
 * length.
 *
 * The scalars are in another order than in `apl_quantize`: `bits` and `packing` follow the codes,
 * and `rows`, `cols` and `group` come last.
 *
 * Returns: OK; ERR_RANGE (`bits`, `packing`, a negative dimension, a scale or a
 * weight that is not finite, a zero point or an unpacked code beyond 2^bits-1, misaligned or
 * overlapping arrays); ERR_LENGTH; ERR_NULL; ERR_MEMORY. `y` is written on success only.
 */
int32_t apl_matmul_q(const uint8_t *codes, int64_t codes_len, int32_t bits, int32_t packing,
                     const float *scales, int64_t scales_len, const int32_t *zero_points,
                     int64_t zero_points_len, const float *x, int64_t x_len, float *y,
                     int64_t y_len, int64_t rows, int64_t cols, int32_t group);

/**
 * Computes `y = W x` with weights of 2, 4 or 8 bits for each of `n` vectors.
 *
 * As `apl_matmul_q`, with `x` (n, cols) and `y` (n, rows). A result has the same bits whatever
 * batch its vector is part of.
 *
 * Returns: as `apl_matmul_q`; ERR_RANGE also for `n` < 0.
 */
int32_t apl_matmul_q_batch(const uint8_t *codes, int64_t codes_len, int32_t bits, int32_t packing,
                           const float *scales, int64_t scales_len, const int32_t *zero_points,
                           int64_t zero_points_len, const float *x, int64_t x_len, float *y,
                           int64_t y_len, int64_t rows, int64_t cols, int32_t group, int64_t n);

/* ---- Quantising ------------------------------------------------------------------------------ */

/**
 * Quantises a float matrix to codes of 1, 2, 4 or 8 bits, one scale per group.
 *
 * `w`: (rows, cols). Outputs: `codes`, packed, (rows, ceil(cols * bits / 8)); `scales` (rows, G);
 * `zero_points` (rows, G), or length 0 for symmetric codes, whose zero point is 2^(bits-1). 1-bit
 * codes have no zero points: bit 1 is `+scale`, bit 0 is `-scale`. Scales are rounded to float16
 * if that makes every scale of the matrix a normal number or 0.
 *
 * `group`: columns per group, 0 for the whole row. G is the number of groups per row:
 * ceil(cols / group), or 1 if `group` is 0.
 *
 * `method` 0: round to nearest, the scale from the extremes of the group (with 1 bit, the mean
 * absolute value). `method` 1: scale and zero point are searched for the least squared error.
 *
 * The scalars are in another order than in `apl_matmul_q`: `rows`, `cols`, `bits`, `group` and
 * `method` follow `w`. There is no `packing`: codes are always packed.
 *
 * Returns: OK; ERR_RANGE (`bits`, `method`, a negative dimension, a weight that is not finite,
 * misaligned or overlapping arrays); ERR_LENGTH; ERR_NULL; ERR_MEMORY. The outputs are written on
 * success only.
 */
int32_t apl_quantize(const float *w, int64_t w_len, int64_t rows, int64_t cols, int32_t bits,
                     int32_t group, int32_t method, uint8_t *codes, int64_t codes_len,
                     float *scales, int64_t scales_len, int32_t *zero_points,
                     int64_t zero_points_len);

/**
 * Converts codes of 1, 2, 4 or 8 bits to the float weights that they stand for.
 *
 * `codes`: with `packing` 1, (rows, ceil(cols * bits / 8)) bytes, first code in the most
 * significant bits; with `packing` 0, (rows, cols), one code per byte. `scales`, `zero_points`: 1,
 * (rows) or (rows, G) values each; without zero points (`zero_points_len` 0), every zero point is
 * 2^(bits-1). With 1 bit, `zero_points_len` must be 0. `group`: columns per scale, 0 for the whole
 * row. Output: `w` (rows, cols).
 *
 * Returns: OK; ERR_RANGE (`bits`, `packing`, a negative dimension, a scale or a
 * weight that is not finite, a zero point or an unpacked code beyond 2^bits-1, misaligned or
 * overlapping arrays); ERR_LENGTH; ERR_NULL; ERR_MEMORY. `w` is written on success only.
 */
int32_t apl_dequantize(const uint8_t *codes, int64_t codes_len, int32_t bits, int32_t packing,
                       const float *scales, int64_t scales_len, const int32_t *zero_points,
                       int64_t zero_points_len, float *w, int64_t w_len, int64_t rows, int64_t cols,
                       int32_t group);

/* ---- Weight handles: a matrix converted once, then multiplied with often --------------------- */

/**
 * Makes a weight handle from a quantised matrix; the library keeps a converted copy.
 *
 * `codes`: with `packing` 1, (rows, ceil(cols * bits / 8)) bytes, first code in the most
 * significant bits; with `packing` 0, (rows, cols), one code per byte. `bits`: 1, 2, 4 or 8.
 * `scales`, `zero_points`: 1, (rows) or (rows, G) values each; without zero points
 * (`zero_points_len` 0), every zero point is 2^(bits-1). With 1 bit, `zero_points_len` must be 0.
 * `group`: columns per scale, 0 for the whole row.
 *
 * `options`: JSON with one key, `"activations"`: `"f32"` (default), `"int8"`, or, with 1 bit,
 * `"sign"`; see `apl_weights_from_f32`.
 *
 * Output: `handle`, to be freed with `apl_weights_free`.
 *
 * Returns: OK; ERR_RANGE (`bits`, `packing`, a negative dimension, a scale or a
 * weight that is not finite, a zero point or an unpacked code beyond 2^bits-1, misaligned or
 * overlapping arrays); ERR_ENCODING; ERR_CONFIG; ERR_LENGTH; ERR_NULL; ERR_MEMORY (of device
 * memory only if CUDA is demanded: otherwise the matrix stays on the CPU); ERR_BACKEND (the device
 * failed); ERR_STATE (no handle is left).
 */
int32_t apl_weights_from_codes(const uint8_t *codes, int64_t codes_len, int32_t bits,
                               int32_t packing, const float *scales, int64_t scales_len,
                               const int32_t *zero_points, int64_t zero_points_len, int64_t rows,
                               int64_t cols, int32_t group, const char *options, int32_t *handle);

/**
 * Makes a weight handle from a float32 matrix, quantised as the options specify.
 *
 * `w`: (rows, cols). `options`: JSON; keys, all optional:
 * - `"bits"`: 1, 2, 4 (default) or 8; 32 keeps float32, 16 rounds to float16;
 * - `"group"`: columns per scale, 32 by default, 0 for the whole row. On the CPU, groups of 16
 *   columns or more take the memory of the next multiple of 32; with shorter groups, rows are
 *   padded to a multiple of 32 instead;
 * - `"symmetric"`: true (default) means no zero points;
 * - `"method"`: `"nearest"` (default) or `"search"`, which is slower and has a smaller error;
 * - `"activations"`: `"f32"` (default) is exact; `"int8"` quantises each vector to 8 bits during
 *   the product, which is faster (except with groups of fewer than 16 columns) and adds less than
 *   1% of error; `"sign"`, with 1 bit only, takes the signs of the elements. Float weights (16,
 *   32) always use `"f32"`.
 *
 * Output: `handle`, to be freed with `apl_weights_free`.
 *
 * Returns: OK; ERR_RANGE (a negative dimension, a weight that is not finite or does not fit
 * float16, misaligned or overlapping arrays); ERR_ENCODING; ERR_CONFIG; ERR_LENGTH; ERR_NULL;
 * ERR_MEMORY and ERR_BACKEND as for `apl_weights_from_codes`; ERR_STATE (no handle is left).
 */
int32_t apl_weights_from_f32(const float *w, int64_t w_len, int64_t rows, int64_t cols,
                             const char *options, int32_t *handle);

/**
 * Makes a weight handle from a float64 matrix, whose elements are rounded to float32 first.
 *
 * As `apl_weights_from_f32`. `w`: (rows, cols); a Dyalog array of floats needs no conversion. A
 * weight beyond the range of float32 is ERR_RANGE.
 *
 * Returns: as `apl_weights_from_f32`.
 */
int32_t apl_weights_from_f64(const double *w, int64_t w_len, int64_t rows, int64_t cols,
                             const char *options, int32_t *handle);

/**
 * Makes a weight handle from a named matrix in a file: a manifest (.json), .gguf or .safetensors.
 *
 * `path`, `name`: text. A vector in the file is a matrix of one row. `options`: as for
 * `apl_weights_from_f32`, and `"mmap"`: true (default) maps the file, false reads it. Weights that
 * are already quantised are taken as stored, unless `"bits"` is given and differs; floats are
 * quantised by the options. Without `"bits"`, the GGUF types Q5_0, Q5_1, Q5_K and Q6_K become
 * 8-bit codes.
 *
 * Output: `handle`, to be freed with `apl_weights_free`.
 *
 * A mapped file that is truncated while in use ends the process with SIGBUS; `"mmap": false`
 * avoids that.
 *
 * Returns: OK; ERR_ENCODING; ERR_CONFIG; ERR_NULL; ERR_RANGE (misaligned `handle`, a weight that
 * is not finite, a path or name of more than 64 KiB); ERR_IO; ERR_FORMAT (including a name that
 * the file does not have); ERR_UNSUPPORTED; ERR_MEMORY; ERR_BACKEND; ERR_STATE (no handle is
 * left).
 */
int32_t apl_weights_open(const char *path, const char *name, const char *options, int32_t *handle);

/**
 * Describes a weight handle, as a JSON object.
 *
 * Keys: `rows`; `cols`; `bits` (1, 2, 4, 8; 16 and 32 are floats); `group` (columns per scale);
 * `symmetric`; `scales` (their type); `activations`; `bytes` (memory that it occupies); `path`
 * (how it is multiplied: `"tiles"`, as codes; `"rows"`, as floats; or `"device"`); `backend`
 * (where it is: `"cpu"` or `"cuda"`); `isa`. For float weights, `group`, `symmetric` and `scales`
 * are null.
 *
 * Returns: the length in bytes of the whole text, excluding the NUL; ERR_HANDLE; ERR_LENGTH
 * (`capacity` < 0); ERR_NULL.
 */
int32_t apl_weights_info(int32_t handle, char *json, int32_t capacity);

/**
 * Writes the weights of a handle as floats: those that its products multiply with.
 *
 * Output: `w` (rows, cols).
 *
 * Returns: OK; ERR_HANDLE; ERR_LENGTH; ERR_NULL; ERR_RANGE (misaligned); ERR_MEMORY; ERR_BACKEND.
 * `w` is written on success only.
 */
int32_t apl_weights_dequantize(int32_t handle, float *w, int64_t w_len);

/**
 * Saves the weights of a handle under a name: a manifest at `path` (.json), and an .npz beside it.
 *
 * `path`, `name`: text. The .npz is in place before the manifest that refers to it, so an
 * interruption leaves either the old file or the new one. Whatever the manifest held before is
 * replaced. `apl_weights_open` reads it back; float weights (bits 16, 32) become codes again unless
 * its options have their bits.
 *
 * Returns: OK; ERR_HANDLE; ERR_ENCODING; ERR_NULL; ERR_RANGE (`path` does not end in .json or has
 * more than 64 KiB; `name` is empty, has more than 1024 bytes, or has control characters); ERR_IO;
 * ERR_MEMORY; ERR_BACKEND.
 */
int32_t apl_weights_save(int32_t handle, const char *path, const char *name);

/**
 * Frees a weight handle. Safe while other threads use it: the weights live until their calls end.
 *
 * Returns: OK; ERR_HANDLE (also for a handle that has been freed already).
 */
int32_t apl_weights_free(int32_t handle);

/**
 * Computes `y = W x` for each of `n` vectors, with the weights of a handle.
 *
 * `x`: (n, cols). Output: `y` (n, rows). They must not overlap.
 *
 * On the CPU, a result has the same bits for any number of threads and whatever batch its vector
 * is part of. On a CUDA device, the same call gives the same bits each time.
 *
 * Returns: OK; ERR_HANDLE; ERR_RANGE (`n` < 0, a vector that is not finite where activations are
 * `"int8"`, misaligned or overlapping arrays); ERR_LENGTH; ERR_NULL; ERR_MEMORY; ERR_BACKEND (the
 * device failed). `y` is written on success only.
 */
int32_t apl_matmul(int32_t handle, const float *x, int64_t x_len, float *y, int64_t y_len,
                   int64_t n);

/**
 * Computes `y = W x` for each of `n` float64 vectors, which is what APL has.
 *
 * As `apl_matmul`. `x`: (n, cols), rounded to float32 first. Output: `y` (n, rows), the float32
 * results, widened. An element of `x` that is finite and beyond the range of float32 is ERR_RANGE.
 *
 * Returns: as `apl_matmul`.
 */
int32_t apl_matmul_f64(int32_t handle, const double *x, int64_t x_len, double *y, int64_t y_len,
                       int64_t n);

/* ---- Models: a language model in memory ------------------------------------------------------ */

/**
 * Opens a language model: a manifest (.json), a .gguf file, or a Hugging Face folder.
 *
 * `path`: text. A folder has the Hugging Face layout (config.json, .safetensors files,
 * tokenizer.json) or holds one manifest or one .gguf file. `options`: JSON; keys: those of
 * `apl_weights_open` (`"bits"`, `"group"`, `"symmetric"`, `"method"`, `"activations"`, `"mmap"`),
 * and `"context"`, the longest context of a session. Weights that are already quantised are taken
 * as stored, unless `"bits"` is given and differs; floats are quantised by the options (4 bits in
 * groups of 32 by default; `"bits": 32` keeps them). Without `"bits"`, the GGUF types Q5_0, Q5_1,
 * Q5_K and Q6_K become 8-bit codes. Families: llama, mistral, gemma, gemma2, qwen2, qwen3.
 *
 * Output: `model`, to be closed with `apl_model_close`. Any number of sessions and threads may use
 * one model at once.
 *
 * Returns: OK; ERR_ENCODING; ERR_CONFIG; ERR_NULL; ERR_RANGE (misaligned `model`, a weight that is
 * not finite, a path of more than 64 KiB); ERR_IO; ERR_FORMAT; ERR_UNSUPPORTED (including an
 * unknown architecture; the message lists the known ones); ERR_MEMORY; ERR_BACKEND; ERR_STATE (no
 * handle is left).
 */
int32_t apl_model_open(const char *path, const char *options, int32_t *model);

/**
 * Describes a model, as a JSON object.
 *
 * Keys: `family`; `format`; `layers`; `hidden`; `intermediate`; `heads`; `kv_heads`; `head_dim`;
 * `vocabulary`; `context`; `parameters` (in matrices); `bits` (the widths that occur); `bytes` (of
 * all matrices in memory); `backend` (where it runs: `cpu`, `cuda`, or `cuda+cpu` if only the
 * first layers are on the device); `backend_reason`; `devices` (the `ordinal` of each device that
 * has a part, and its number of `layers`); `activations`; `tokenizer` and `chat` (whether it has a
 * tokenizer and a chat template); `bos` (its beginning-of-sequence token, or null).
 *
 * Returns: the length in bytes of the whole text, excluding the NUL; ERR_HANDLE; ERR_LENGTH
 * (`capacity` < 0); ERR_NULL.
 */
int32_t apl_model_info(int32_t model, char *json, int32_t capacity);

/**
 * Closes a model handle. Open sessions and running calls keep using the model until they end.
 *
 * Returns: OK; ERR_HANDLE (also for a handle that has been closed already).
 */
int32_t apl_model_close(int32_t model);

/**
 * Converts a text to token ids.
 *
 * `text`: text; special tokens in it (`<|im_end|>` …) are recognised as such. If `add_bos` is not
 * 0 and the model has a beginning-of-sequence token (`bos` of `apl_model_info`), exactly one comes
 * first, whether or not the model's own texts begin with it.
 *
 * Output: `ids`, of which at most `capacity` are written.
 *
 * Returns: the number of ids of the whole text; ERR_HANDLE; ERR_ENCODING; ERR_LENGTH
 * (`capacity` < 0); ERR_NULL; ERR_RANGE (misaligned); ERR_FORMAT (the tokenizer cannot encode the
 * text); ERR_UNSUPPORTED (the model has no tokenizer); ERR_MEMORY.
 */
int32_t apl_model_tokenize(int32_t model, const char *text, int32_t add_bos, int32_t *ids,
                           int32_t capacity);

/**
 * Applies the model's chat template to a conversation: the text that asks for the next turn.
 *
 * `messages`: JSON, `[{"role": "user", "content": "…"}, …]`; the roles are those that the template
 * knows (system, user, assistant). Tokenize the text without `add_bos`: if the model needs that
 * token, the template writes it.
 *
 * Templates are programs written by whoever made the model, so they are limited: to 64 KiB, to
 * 400,000 steps, to an output of 64 MiB, to reading and setting attributes of namespaces, and to
 * multiplying (repeating) literal strings. Memory that a template uses without writing it, and the
 * time of a step over a long list, are not limited.
 *
 * Returns: the length in bytes of the whole text, excluding the NUL; ERR_HANDLE; ERR_ENCODING;
 * ERR_CONFIG (`messages` is not of this form, or the template refuses it); ERR_LENGTH
 * (`capacity` < 0); ERR_NULL; ERR_FORMAT (a malformed template); ERR_UNSUPPORTED (the model has no
 * tokenizer, no template, or one that exceeds the limits); ERR_MEMORY.
 */
int32_t apl_model_chat(int32_t model, const char *messages, char *text, int32_t capacity);

/**
 * Converts token ids to text.
 *
 * `ids`: (ids_len). Special tokens have no text; bytes that form no UTF-8 character become U+FFFD.
 *
 * Returns: the length in bytes of the whole text, excluding the NUL; ERR_HANDLE; ERR_LENGTH
 * (`ids_len` or `capacity` < 0); ERR_NULL; ERR_RANGE (misaligned, an id outside the vocabulary);
 * ERR_UNSUPPORTED (the model has no tokenizer); ERR_MEMORY.
 */
int32_t apl_model_detokenize(int32_t model, const int32_t *ids, int32_t ids_len, char *text,
                             int32_t capacity);

/* ---- Sessions: a conversation with a model --------------------------------------------------- */

/**
 * Opens a session: a position, a KV cache and a sampler of its own.
 *
 * `options`: JSON; keys, all optional:
 * - `"context"`: the most tokens, by default and at most those of the model;
 * - `"temperature"`: 0.8 by default; 0 takes the most likely token;
 * - `"top_k"`: 40 by default; 0 for all tokens;
 * - `"top_p"`: 0.95 by default;
 * - `"min_p"`: 0.05 by default;
 * - `"repeat_penalty"`: 1.0 by default, from 0.1 to 10, over the last 64 tokens;
 * - `"seed"`: 0 by default; the same seed gives the same text;
 * - `"kv"`: the type of the KV cache, `"f16"` (default) or `"f32"`. If the model keeps float32
 *   weights, it is always `"f32"`.
 *
 * Output: `session`, to be closed with `apl_session_close`. Calls on one session from several
 * threads run one after the other.
 *
 * Returns: OK; ERR_HANDLE; ERR_ENCODING; ERR_CONFIG; ERR_NULL; ERR_RANGE (misaligned); ERR_MEMORY;
 * ERR_BACKEND; ERR_STATE (no handle is left).
 */
int32_t apl_session_open(int32_t model, const char *options, int32_t *session);

/**
 * Feeds tokens (prefill), and writes logits.
 *
 * `ids`: (ids_len). Output: `logits`, with V the size of the vocabulary: `logits_len` = V for
 * those of the last token; `ids_len` * V for those of every token, (ids_len, V); 0 for none.
 * Without tokens, `logits_len` = V gives the latest logits again.
 *
 * Returns: OK; ERR_HANDLE; ERR_LENGTH; ERR_NULL; ERR_RANGE (an id outside the vocabulary,
 * misaligned or overlapping arrays); ERR_STATE (tokens beyond the context, a cancelled call, no
 * logits yet); ERR_FORMAT (activations are int8, and one inside the model is not finite);
 * ERR_MEMORY; ERR_BACKEND. Unless it returns OK, nothing is fed and `logits` is not written.
 */
int32_t apl_session_eval(int32_t session, const int32_t *ids, int32_t ids_len, float *logits,
                         int64_t logits_len);

/**
 * Samples one token from the latest logits, feeds it, and writes its text (decode).
 *
 * Outputs: `id`; `piece`, whole UTF-8 characters in at most `capacity` bytes, the NUL included.
 * Bytes that do not form a whole character yet, or do not fit, come first in the next piece. When
 * the text ends they are not written; `apl_model_detokenize` gives them.
 *
 * Returns: the length in bytes of the piece, excluding the NUL; APL_FFI_END, which is not an
 * error, with an empty piece, at a token that ends the text (`id` is that token; it is not fed) or
 * if the context is full (`id` is -1); ERR_HANDLE; ERR_LENGTH (`capacity` < 0); ERR_NULL;
 * ERR_RANGE (misaligned); ERR_STATE (no logits: feed something first; or a cancelled call);
 * ERR_FORMAT (the logits are not finite); ERR_UNSUPPORTED (the model has no tokenizer);
 * ERR_MEMORY; ERR_BACKEND.
 */
int32_t apl_session_next(int32_t session, int32_t *id, char *piece, int32_t capacity);

/**
 * Keeps the first `position` tokens and forgets the others.
 *
 * The logits of the last kept token are the latest again. If a sliding window has overwritten what
 * the kept tokens see, they are fed again, which takes as long as the first time.
 *
 * Returns: OK; ERR_HANDLE; ERR_RANGE (`position` is negative or beyond the tokens fed); ERR_STATE
 * (a cancelled call); ERR_FORMAT (activations are int8, and one inside the model is not finite);
 * ERR_MEMORY; ERR_BACKEND. Nothing changes unless it returns OK.
 */
int32_t apl_session_rewind(int32_t session, int32_t position);

/**
 * Describes a session and its position, as a JSON object.
 *
 * Keys: `position` (tokens fed); `context`; `logits` (whether there are any to sample from);
 * `backend` (as of the model); `kv`; `kv_bytes` (of the KV cache); and the options of the sampler.
 *
 * Returns: the length in bytes of the whole text, excluding the NUL; ERR_HANDLE; ERR_LENGTH
 * (`capacity` < 0); ERR_NULL; ERR_STATE (a bug ended an earlier call on the session).
 */
int32_t apl_session_info(int32_t session, char *json, int32_t capacity);

/**
 * Cancels the call that another thread is running on a session.
 *
 * That call returns ERR_STATE and has fed nothing, unless it has passed the last check for
 * cancellation, one of which precedes every layer and the output matrix (on a device, every block
 * of tokens); then it ends normally, and a caller that loops needs a flag of its own. This
 * function does not wait for it, and does nothing if no call is running.
 *
 * Returns: OK; ERR_HANDLE.
 */
int32_t apl_session_cancel(int32_t session);

/**
 * Closes a session handle. Safe while another thread uses it: the session lives until that call
 * ends.
 *
 * Returns: OK; ERR_HANDLE (also for a handle that has been closed already).
 */
int32_t apl_session_close(int32_t session);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* APL_FFI_H */
