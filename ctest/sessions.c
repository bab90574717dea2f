/* Sessions: evaluating, sampling, rewinding, ending, cancelling, concurrent sessions. */
#define _XOPEN_SOURCE 700

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "apl_ffi.h"
#include "check.h"

#define MODELS "tests/data/models/"
enum { V = 64, THREADS = 8 };

static const int32_t prompt[] = {1, 47, 60, 56, 34, 60, 62, 62, 7, 30, 40, 20};
enum { PROMPT = sizeof prompt / sizeof prompt[0] };

static int32_t opened(const char *path, const char *options)
{
    int32_t model = 0;
    CHECK_STATUS(APL_FFI_OK, apl_model_open(path, options, &model));
    return model;
}

static int32_t session_of(int32_t model, const char *options)
{
    int32_t session = 0;
    CHECK_STATUS(APL_FFI_OK, apl_session_open(model, options, &session));
    return session;
}

static int info_has(int32_t session, const char *part)
{
    char json[1024];
    int32_t size = apl_session_info(session, json, sizeof json);
    CHECK(size > 0 && size < (int32_t)sizeof json);
    if (strstr(json, part))
        return 1;
    printf("    info is %s, expected %s\n", json, part);
    return 0;
}

static void feeding(void)
{
    int32_t model = opened(MODELS "mistral", "{\"bits\": 32}"), a = session_of(model, ""), b = session_of(model, "");
    float all[PROMPT * V], last[V], one[V];
    /* A session keeps its model alive. */
    CHECK_STATUS(APL_FFI_OK, apl_model_close(model));
    CHECK_STATUS(APL_FFI_OK, apl_session_eval(a, prompt, PROMPT, all, PROMPT * V));
    for (int i = 0; i < PROMPT; i++) {
        CHECK_STATUS(APL_FFI_OK, apl_session_eval(b, prompt + i, 1, one, V));
        CHECK(memcmp(one, all + i * V, sizeof one) == 0);
    }
    CHECK(info_has(a, "\"position\":12") && info_has(b, "\"position\":12"));
    CHECK_STATUS(APL_FFI_OK, apl_session_eval(a, NULL, 0, last, V));
    CHECK(memcmp(last, one, sizeof last) == 0);
    CHECK_STATUS(APL_FFI_OK, apl_session_eval(a, prompt, 1, NULL, 0));
    /* Rewinding brings back the same logits. */
    CHECK_STATUS(APL_FFI_OK, apl_session_rewind(a, PROMPT));
    CHECK_STATUS(APL_FFI_OK, apl_session_eval(a, NULL, 0, last, V));
    CHECK(memcmp(last, one, sizeof last) == 0);
    CHECK_STATUS(APL_FFI_OK, apl_session_rewind(a, 0));
    CHECK(info_has(a, "\"position\":0") && info_has(a, "\"top_p\":0.95,"));
    CHECK_STATUS(APL_FFI_ERR_STATE, apl_session_eval(a, NULL, 0, last, V));
    CHECK_STATUS(APL_FFI_OK, apl_session_close(a));
    CHECK_STATUS(APL_FFI_OK, apl_session_close(b));
}

/* Generates up to the end, or `most` tokens; returns their number. */
static int generated(int32_t session, int32_t *ids, int most, char *text, size_t room)
{
    char piece[64];
    int n = 0;
    text[0] = 0;
    for (; n < most; n++) {
        int32_t size = apl_session_next(session, &ids[n], piece, sizeof piece);
        if (size == APL_FFI_END)
            break;
        CHECK(size >= 0 && (size_t)size == strlen(piece));
        strncat(text, piece, room - strlen(text) - 1);
    }
    return n;
}

static void generating(void)
{
    int32_t model = opened(MODELS "qwen3", "{\"bits\": 8}"), first[40], again[40];
    char text[400], other[400];
    for (int seed = 0; seed < 3; seed++) {
        char options[80];
        snprintf(options, sizeof options, "{\"seed\": %d, \"context\": 40}", seed);
        int32_t a = session_of(model, options), b = session_of(model, options);
        CHECK_STATUS(APL_FFI_OK, apl_session_eval(a, prompt, PROMPT, NULL, 0));
        CHECK_STATUS(APL_FFI_OK, apl_session_eval(b, prompt, PROMPT, NULL, 0));
        int n = generated(a, first, 40, text, sizeof text), m = generated(b, again, 40, other, sizeof other);
        CHECK(n == m && n <= 40 - PROMPT && memcmp(first, again, (size_t)n * sizeof *first) == 0);
        CHECK(strcmp(text, other) == 0);
        /* The concatenated pieces are the text of the ids. */
        char whole[400];
        CHECK_STATUS((int32_t)strlen(text), apl_model_detokenize(model, first, n, whole, sizeof whole));
        CHECK(strcmp(whole, text) == 0);
        CHECK_STATUS(APL_FFI_OK, apl_session_close(a));
        CHECK_STATUS(APL_FFI_OK, apl_session_close(b));
    }
    CHECK_STATUS(APL_FFI_OK, apl_model_close(model));
}

/* A piece never exceeds its buffer; what did not fit comes next. */
static void small_pieces(void)
{
    int32_t model = opened(MODELS "qwen3", ""), a = session_of(model, "{\"temperature\": 0, \"context\": 30}");
    int32_t b = session_of(model, "{\"temperature\": 0, \"context\": 30}"), ids[30], id = 0;
    char text[400], joined[400] = "", piece[2] = {9, 9};
    CHECK_STATUS(APL_FFI_OK, apl_session_eval(a, prompt, 3, NULL, 0));
    CHECK_STATUS(APL_FFI_OK, apl_session_eval(b, prompt, 3, NULL, 0));
    int n = generated(a, ids, 30, text, sizeof text);
    CHECK_STATUS(0, apl_session_next(b, &id, NULL, 0));
    CHECK(id == ids[0]);
    for (int i = 1; i < n; i++) {
        int32_t size = apl_session_next(b, &id, piece, sizeof piece);
        CHECK(size >= 0 && size <= 1 && piece[size] == 0 && id == ids[i]);
        strcat(joined, piece);
    }
    CHECK(strncmp(joined, text, strlen(joined)) == 0);
    /* A full context ends the text without a token, on every call. */
    if (n == 27) {
        CHECK_STATUS(APL_FFI_END, apl_session_next(b, &id, piece, sizeof piece));
        CHECK(id == -1 && piece[0] == 0);
        CHECK_STATUS(APL_FFI_ERR_STATE, apl_session_eval(b, prompt, 1, NULL, 0));
    }
    CHECK_STATUS(APL_FFI_OK, apl_session_close(a));
    CHECK_STATUS(APL_FFI_OK, apl_session_close(b));
    CHECK_STATUS(APL_FFI_OK, apl_model_close(model));
}

static void refused(void)
{
    int32_t model = opened(MODELS "mistral", ""), s = session_of(model, "{\"context\": 8}"), id = -9, other = -9;
    float logits[V], before[V];
    char piece[8] = "same";
    CHECK_STATUS(APL_FFI_ERR_CONFIG, apl_session_open(model, "{\"top_p\": 2}", &other));
    CHECK_STATUS(APL_FFI_ERR_CONFIG, apl_session_open(model, "{\"context\": 1000}", &other));
    CHECK_STATUS(APL_FFI_ERR_HANDLE, apl_session_open(s, "", &other));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_session_open(model, "", NULL));
    CHECK_STATUS(APL_FFI_ERR_ENCODING, apl_session_open(model, "\xff", &other));
    CHECK(other == -9);

    memset(before, 0x55, sizeof before);
    memcpy(logits, before, sizeof logits);
    CHECK_STATUS(APL_FFI_ERR_STATE, apl_session_next(s, &id, piece, sizeof piece));
    CHECK_STATUS(APL_FFI_ERR_LENGTH, apl_session_eval(s, prompt, 2, logits, V + 1));
    CHECK_STATUS(APL_FFI_ERR_LENGTH, apl_session_eval(s, prompt, -1, logits, V));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_session_eval(s, NULL, 2, logits, V));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_session_eval(s, prompt, 2, NULL, V));
    CHECK_STATUS(APL_FFI_ERR_STATE, apl_session_eval(s, prompt, 9, logits, V));
    const int32_t wrong[] = {1, -1, V};
    CHECK_STATUS(APL_FFI_ERR_RANGE, apl_session_eval(s, wrong, 2, logits, V));
    CHECK_STATUS(APL_FFI_ERR_RANGE, apl_session_eval(s, wrong + 2, 1, logits, V));
    CHECK_STATUS(APL_FFI_ERR_RANGE, apl_session_rewind(s, 1));
    CHECK_STATUS(APL_FFI_ERR_RANGE, apl_session_rewind(s, -1));
    CHECK(info_has(s, "\"position\":0") && memcmp(logits, before, sizeof logits) == 0);
    CHECK_STATUS(APL_FFI_OK, apl_session_eval(s, prompt, 2, logits, V));
    CHECK_STATUS(APL_FFI_ERR_LENGTH, apl_session_next(s, &id, piece, -1));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_session_next(s, &id, NULL, 8));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_session_next(s, NULL, piece, 8));
    CHECK(id == -9 && strcmp(piece, "same") == 0 && info_has(s, "\"position\":2"));
    CHECK_STATUS(APL_FFI_OK, apl_session_cancel(s));
    CHECK_STATUS(APL_FFI_OK, apl_session_close(s));
    CHECK_STATUS(APL_FFI_ERR_HANDLE, apl_session_close(s));
    CHECK_STATUS(APL_FFI_ERR_HANDLE, apl_session_cancel(s));
    CHECK_STATUS(APL_FFI_ERR_HANDLE, apl_session_info(s, piece, sizeof piece));
    CHECK_STATUS(APL_FFI_OK, apl_model_close(model));
}

struct run {
    int32_t session, status;
    float logits[V];
    atomic_int *done;
};

static void *evaluated(void *argument)
{
    struct run *run = argument;
    int32_t ids[120];
    for (int i = 0; i < 120; i++)
        ids[i] = prompt[i % PROMPT];
    run->status = apl_session_eval(run->session, ids, 120, run->logits, V);
    if (run->done)
        atomic_store(run->done, 1);
    return NULL;
}

static void from_many_threads(void)
{
    int32_t model = opened(MODELS "gemma2", "{\"bits\": 4, \"activations\": \"int8\"}");
    struct run runs[THREADS + 1];
    pthread_t threads[THREADS];
    memset(runs, 0, sizeof runs);
    for (int i = 0; i <= THREADS; i++)
        runs[i].session = session_of(model, "");
    evaluated(&runs[THREADS]);
    CHECK_STATUS(APL_FFI_OK, runs[THREADS].status);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, evaluated, &runs[i]) == 0);
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        CHECK_STATUS(APL_FFI_OK, runs[i].status);
        CHECK(memcmp(runs[i].logits, runs[THREADS].logits, sizeof runs[i].logits) == 0);
    }
    for (int i = 0; i <= THREADS; i++)
        CHECK_STATUS(APL_FFI_OK, apl_session_close(runs[i].session));
    CHECK_STATUS(APL_FFI_OK, apl_model_close(model));
}

/* Cancels from another thread until a call is caught; that call has fed nothing. */
static void cancelled(void)
{
    int32_t model = opened(MODELS "gemma2", "");
    int caught = 0;
    for (int tries = 0; tries < 2000 && !caught; tries++) {
        struct run run = {.session = session_of(model, "")};
        atomic_int done = 0;
        pthread_t thread;
        run.done = &done;
        CHECK(pthread_create(&thread, NULL, evaluated, &run) == 0);
        while (!atomic_load(&done))
            apl_session_cancel(run.session);
        CHECK(pthread_join(thread, NULL) == 0);
        if (run.status == APL_FFI_ERR_STATE) {
            caught = 1;
            CHECK(info_has(run.session, "\"position\":0"));
            run.done = NULL;
            evaluated(&run);
        }
        CHECK_STATUS(APL_FFI_OK, run.status);
        CHECK_STATUS(APL_FFI_OK, apl_session_close(run.session));
    }
    CHECK(caught);
    CHECK_STATUS(APL_FFI_OK, apl_model_close(model));
}

static void *cleaned(void *argument)
{
    (void)argument;
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
    return NULL;
}

/*
 * A call that apl_ffi_cleanup is waiting for can be cancelled. The pauses differ from try to try:
 * no fixed ones suit every machine, whose calls take 100 us or milliseconds.
 */
static void cancelled_before_cleanup(void)
{
    int caught = 0;
    for (int tries = 0; tries < 1024 && !caught; tries++) {
        struct timespec before = {0, 20000 * (tries % 16)}, after = {0, 20000 * (tries / 16 % 16)};
        int32_t model = opened(MODELS "gemma2", "");
        struct run run = {.session = session_of(model, "")};
        atomic_int done = 0;
        pthread_t running, cleaning;
        run.done = &done;
        CHECK(pthread_create(&running, NULL, evaluated, &run) == 0);
        nanosleep(&before, NULL);
        CHECK(pthread_create(&cleaning, NULL, cleaned, NULL) == 0);
        nanosleep(&after, NULL);
        while (!atomic_load(&done))
            apl_session_cancel(run.session);
        CHECK(pthread_join(running, NULL) == 0);
        CHECK(pthread_join(cleaning, NULL) == 0);
        caught = run.status == APL_FFI_ERR_STATE;
        CHECK(caught || run.status == APL_FFI_OK || run.status == APL_FFI_ERR_HANDLE);
    }
    CHECK(caught);
}

int main(void)
{
    test("feeding one by one, together, and again after going back", feeding);
    test("the same seed, the same text", generating);
    test("pieces that are small", small_pieces);
    test("what is refused", refused);
    test("a session a thread", from_many_threads);
    test("cancelled by another thread", cancelled);
    test("cancelled while cleanup waits", cancelled_before_cleanup);
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
    return finish();
}
