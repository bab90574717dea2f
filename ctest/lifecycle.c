/* Configuring the library, querying it, and cleaning up.
 *
 * If APL_FFI_SANITIZED is set (to the name of a sanitizer, or valgrind), the test that limits the
 * address space is skipped; with valgrind, also the test of signal masks.
 */
#define _XOPEN_SOURCE 700

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "apl_ffi.h"
#include "check.h"
#include "threads.h"

enum { CAPACITY = 4096 };

/* Whether the JSON of apl_ffi_info contains `part`. */
static int info_has(const char *part)
{
    char json[CAPACITY];
    int32_t size = apl_ffi_info(json, CAPACITY);
    CHECK(size > 0 && size < CAPACITY && (size_t)size == strlen(json));
    if (strstr(json, part))
        return 1;
    printf("    info is %s\n", json);
    return 0;
}

/* Whether the latest error contains `part`. */
static int error_has(const char *part)
{
    char text[CAPACITY];
    apl_ffi_last_error(text, CAPACITY);
    if (strstr(text, part))
        return 1;
    printf("    the last error is \"%s\"\n", text);
    return 0;
}

static int32_t identity(float *y)
{
    const uint8_t codes[] = {0x98, 0x89}; /* (2, 2) codes of 4 bits: 9 8, 8 9 */
    const float scale = 1, x[] = {3, -7};
    return apl_matmul_q(codes, 2, 4, 1, &scale, 1, NULL, 0, x, 2, y, 2, 2, 2, 0);
}

static void nothing_configured(void)
{
    char text[64];
    CHECK_STATUS(APL_FFI_ABI_VERSION, apl_ffi_abi_version());
    CHECK_STATUS(0, apl_ffi_ready());
    CHECK(info_has("\"backend\":null") && info_has("\"amx\":null"));
    CHECK(apl_ffi_describe(NULL, 0) > 0);
    CHECK(apl_ffi_last_error(text, sizeof text) >= 0);
    CHECK(strlen(apl_ffi_status_text(APL_FFI_ERR_HANDLE)) > 0);
    CHECK(apl_ffi_status_message(APL_FFI_ERR_HANDLE, text, sizeof text) > 0);
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
    CHECK_STATUS(0, apl_ffi_ready()); /* none of these calls initialises the library */
    CHECK(library_threads(NULL) == 0);
}

static void the_same_configuration_again(void)
{
    CHECK_STATUS(APL_FFI_OK, apl_ffi_init("{\"threads\": 2, \"isa\": \"scalar\", \"backend\": \"cpu\"}"));
    CHECK_STATUS(1, apl_ffi_ready());
    CHECK(info_has("\"backend\":\"cpu\"") && info_has("\"threads\":2") && info_has("\"isa\":\"scalar\""));
    CHECK_STATUS(APL_FFI_OK, apl_ffi_init("{\"isa\": \"scalar\", \"backend\": \"cpu\", \"threads\": 2}"));
    CHECK_STATUS(APL_FFI_ERR_STATE, apl_ffi_init("{\"threads\": 3, \"isa\": \"scalar\", \"backend\": \"cpu\"}"));
    CHECK(error_has("apl_ffi_init"));
    CHECK(info_has("\"threads\":2"));
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
    CHECK_STATUS(0, apl_ffi_ready());
    CHECK_STATUS(APL_FFI_OK, apl_ffi_init("{\"threads\": 3, \"backend\": \"cpu\"}"));
    CHECK(info_has("\"threads\":3"));
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
}

static void defaults(void)
{
    CHECK_STATUS(APL_FFI_OK, apl_ffi_init(NULL));
    CHECK_STATUS(APL_FFI_OK, apl_ffi_init(""));
    CHECK_STATUS(APL_FFI_OK, apl_ffi_init("{}"));
    CHECK_STATUS(APL_FFI_OK, apl_ffi_init("{\"backend\": \"auto\", \"threads\": 0, \"isa\": \"auto\"}"));
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
}

static void a_product_configures(void)
{
    float y[2] = {0, 0};
    CHECK_STATUS(0, apl_ffi_ready());
    CHECK_STATUS(APL_FFI_OK, identity(y));
    CHECK(y[0] == 3 && y[1] == -7);
    CHECK_STATUS(1, apl_ffi_ready());
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
}

static void wrong_configurations(void)
{
    static const struct {
        const char *config, *named;
    } wrong[] = {
        {"{", "JSON"},
        {"[]", "JSON"},
        {"{\"thread\": 1}", "thread"},
        {"{\"threads\": -1}", "-1"},
        {"{\"threads\": 1025}", "1025"},
        {"{\"threads\": 1.5}", "1.5"},
        {"{\"threads\": \"1\"}", "threads"},
        {"{\"isa\": \"neon\"}", "neon"},
        {"{\"amx\": 2}", "true, false, 1 or 0"},
        {"{\"backend\": \"gpu\"}", "gpu"},
        {"{\"device\": -1}", "device"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        CHECK_STATUS(APL_FFI_ERR_CONFIG, apl_ffi_init(wrong[i].config));
        CHECK(error_has("apl_ffi_init") && error_has(wrong[i].named));
        CHECK_STATUS(0, apl_ffi_ready());
    }
    CHECK_STATUS(APL_FFI_ERR_ENCODING, apl_ffi_init("{\"isa\": \"\xff\"}"));
    CHECK_STATUS(0, apl_ffi_ready());
}

static void instruction_sets(void)
{
    static const char *const isas[] = {"scalar", "avx2", "avx512"};
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        char config[64], found[64];
        snprintf(config, sizeof config, "{\"isa\": \"%s\"}", isas[i]);
        snprintf(found, sizeof found, "\"isa\":\"%s\"", isas[i]);
        int32_t status = apl_ffi_init(config);
        if (status == APL_FFI_OK)
            CHECK(info_has(found)); /* exactly the requested level */
        else
            CHECK_STATUS(APL_FFI_ERR_UNSUPPORTED, status);
        CHECK(i > 0 || status == APL_FFI_OK);
        CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
    }
}

static void the_environment(void)
{
    setenv("APL_FFI_THREADS", "3", 1);
    setenv("APL_FFI_ISA", "scalar", 1);
    CHECK_STATUS(APL_FFI_OK, apl_ffi_init("{\"backend\": \"cpu\"}"));
    CHECK(info_has("\"threads\":3") && info_has("\"isa\":\"scalar\""));
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());

    CHECK_STATUS(APL_FFI_OK, apl_ffi_init("{\"threads\": 2}")); /* a key overrides the variable */
    CHECK(info_has("\"threads\":2"));
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());

    setenv("APL_FFI_THREADS", "many", 1);
    CHECK_STATUS(APL_FFI_ERR_CONFIG, apl_ffi_init(NULL));
    CHECK(error_has("APL_FFI_THREADS") && error_has("many"));
    float y[2] = {1, 2};
    /* A product, which would have to initialise the library, fails in the same way. */
    CHECK_STATUS(APL_FFI_ERR_CONFIG, identity(y));
    CHECK(y[0] == 1 && y[1] == 2);
    CHECK_STATUS(0, apl_ffi_ready());

    setenv("APL_FFI_THREADS", "", 1); /* empty means absent */
    CHECK_STATUS(APL_FFI_OK, apl_ffi_init(NULL));
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
    unsetenv("APL_FFI_THREADS");
    unsetenv("APL_FFI_ISA");
}

#if defined __linux__ && defined __x86_64__
/* Signal frames with AMX state do not fit a small signal stack, so the library does without AMX.
 * Must run before anything else initialises the library. */
static void a_small_signal_stack_comes_first(void)
{
    static char frames[4096];
    stack_t small = {.ss_sp = frames, .ss_size = sizeof frames}, before;
    if (sigaltstack(&small, &before) != 0) {
        CHECK(!"a small signal stack");
        return;
    }
    CHECK_STATUS(APL_FFI_OK, apl_ffi_init("{\"backend\": \"cpu\"}"));
    CHECK(info_has("\"amx\":false"));
    float y[2];
    CHECK_STATUS(APL_FFI_OK, identity(y));
    CHECK(y[0] == 3 && y[1] == -7);
    CHECK(sigaltstack(&before, NULL) == 0);
    /* Without that stack, it is still the same configuration. */
    CHECK_STATUS(APL_FFI_OK, apl_ffi_init("{\"backend\": \"cpu\"}"));
    CHECK(info_has("\"amx\":false"));
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
}

/* Whether /proc/cpuinfo reports AMX. */
static int amx_is_there(void)
{
    char line[8192];
    int there = 0;
    FILE *file = fopen("/proc/cpuinfo", "r");
    while (file && !there && fgets(line, sizeof line, file))
        there = strstr(line, " amx_tile") && strstr(line, " amx_int8");
    if (file)
        fclose(file);
    return there;
}

static void amx_is_used(void)
{
    CHECK_STATUS(APL_FFI_OK, apl_ffi_init("{\"backend\": \"cpu\"}"));
    CHECK(info_has("\"amx\":true"));
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
}
#endif

static void amx_may_be_left_alone(void)
{
    CHECK_STATUS(APL_FFI_OK, apl_ffi_init("{\"amx\": false, \"backend\": \"cpu\"}"));
    CHECK(info_has("\"amx\":false"));
    CHECK_STATUS(APL_FFI_OK, apl_ffi_init("{\"amx\": false, \"backend\": \"cpu\"}"));
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
    setenv("APL_FFI_AMX", "0", 1);
    CHECK_STATUS(APL_FFI_OK, apl_ffi_init("{\"backend\": \"cpu\"}"));
    CHECK(info_has("\"amx\":false"));
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
    setenv("APL_FFI_AMX", "yes", 1);
    CHECK_STATUS(APL_FFI_ERR_CONFIG, apl_ffi_init(NULL));
    CHECK(error_has("APL_FFI_AMX") && error_has("0 or 1"));
    unsetenv("APL_FFI_AMX");
}

static void texts_of_every_capacity(void)
{
    char whole[CAPACITY], part[CAPACITY];
    CHECK_STATUS(APL_FFI_OK, apl_ffi_init("{\"threads\": 1}"));
    int32_t size = apl_ffi_info(whole, CAPACITY);
    CHECK(size > 0 && size < CAPACITY);
    for (int32_t capacity = 0; capacity <= size + 1; capacity++) {
        memset(part, '#', sizeof part);
        CHECK_STATUS(size, apl_ffi_info(capacity ? part : NULL, capacity));
        if (capacity > 0) {
            CHECK(strlen(part) == (size_t)(capacity - 1));
            CHECK(memcmp(part, whole, (size_t)(capacity - 1)) == 0);
        }
        CHECK(part[capacity] == '#');
    }
    CHECK_STATUS(APL_FFI_ERR_LENGTH, apl_ffi_info(part, -1));
    CHECK_STATUS(APL_FFI_ERR_NULL, apl_ffi_info(NULL, 1));
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
}

static void cleanup_ends_handles(void)
{
    const float w[4] = {1, 0, 0, 1}, x[2] = {3, -7};
    float y[2] = {0, 0};
    int32_t old = 0, new = 0;
    CHECK_STATUS(APL_FFI_OK, apl_weights_from_f32(w, 4, 2, 2, "{\"bits\": 8}", &old));
    CHECK(old > 0);
    CHECK(info_has("\"weights\":1"));
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
    CHECK_STATUS(APL_FFI_ERR_HANDLE, apl_matmul(old, x, 2, y, 2, 1));
    CHECK_STATUS(APL_FFI_ERR_HANDLE, apl_weights_free(old));
    CHECK_STATUS(APL_FFI_OK, apl_weights_from_f32(w, 4, 2, 2, "{\"bits\": 8}", &new));
    CHECK(new > 0 && new != old);
    CHECK_STATUS(APL_FFI_ERR_HANDLE, apl_matmul(old, x, 2, y, 2, 1));
    CHECK(y[0] == 0 && y[1] == 0);
    CHECK_STATUS(APL_FFI_OK, apl_matmul(new, x, 2, y, 2, 1));
    CHECK(y[0] != 0 && y[1] != 0);
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
    CHECK(info_has("\"weights\":0"));
}

static void many_lives(void)
{
    for (int life = 0; life < 100; life++) {
        float y[2];
        char config[32];
        snprintf(config, sizeof config, "{\"threads\": %d}", 1 + life % 4);
        CHECK_STATUS(APL_FFI_OK, apl_ffi_init(config));
        CHECK_STATUS(APL_FFI_OK, identity(y));
        CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
    }
}

#ifdef __linux__
static void blocks_every_signal(uint64_t blocked)
{
    /* SIGKILL and SIGSTOP cannot be blocked; 32 to 34 belong to the C library. */
    const uint64_t never = UINT64_C(1) << 8 | UINT64_C(1) << 18 | UINT64_C(7) << 31;
    CHECK((blocked | never) == UINT64_MAX);
}

static void threads_take_no_signal_and_end(void)
{
    sigset_t before, after;
    sigemptyset(&before);
    sigaddset(&before, SIGUSR2);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    CHECK(library_threads(NULL) == 0);
    CHECK_STATUS(APL_FFI_OK, apl_ffi_init("{\"threads\": 4, \"backend\": \"cpu\"}"));
    pthread_sigmask(SIG_SETMASK, NULL, &after);
    for (int signal = 1; signal < 32; signal++)
        CHECK(sigismember(&before, signal) == sigismember(&after, signal));
    CHECK(library_threads_settled(3) == 3); /* the fourth is the calling thread */
    CHECK(library_threads(blocks_every_signal) == 3);
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
    CHECK(library_threads_settled(0) == 0);
    sigemptyset(&before);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* The address space in use, in bytes. */
static rlim_t address_space(void)
{
    char text[64] = "0";
    char id[32];
    snprintf(id, sizeof id, "%ld", (long)getpid());
    thread_status(id, "VmSize", text, sizeof text);
    return (rlim_t)strtoull(text, NULL, 10) * 1024;
}

static void threads_that_cannot_be_started(void)
{
    struct rlimit before, tight;
    CHECK(getrlimit(RLIMIT_AS, &before) == 0);
    tight = before;
    tight.rlim_cur = address_space() + (64 << 20); /* enough for some of the stacks, not for all */
    CHECK(setrlimit(RLIMIT_AS, &tight) == 0);
    int32_t status = apl_ffi_init("{\"threads\": 1024}");
    CHECK(setrlimit(RLIMIT_AS, &before) == 0);
    CHECK_STATUS(APL_FFI_ERR_MEMORY, status);
    CHECK(error_has("thread"));
    CHECK_STATUS(0, apl_ffi_ready());
    CHECK(library_threads_settled(0) == 0);
    CHECK_STATUS(APL_FFI_OK, apl_ffi_init("{\"threads\": 2}"));
    CHECK_STATUS(APL_FFI_OK, apl_ffi_cleanup());
}
#endif

int main(void)
{
    unsetenv("APL_FFI_BACKEND");
    unsetenv("APL_FFI_THREADS");
    unsetenv("APL_FFI_ISA");
    unsetenv("APL_FFI_AMX");
    test("what never initialises does not", nothing_configured);
#if defined __linux__ && defined __x86_64__
    const char *by = getenv("APL_FFI_SANITIZED");
    test("a small signal stack comes first", a_small_signal_stack_comes_first);
    if (!amx_is_there())
        skipped("AMX is used", "this machine has none");
    else if (by && strcmp(by, "valgrind") == 0)
        skipped("AMX is used", "valgrind's processor has none");
    else
        test("AMX is used", amx_is_used);
#endif
    test("the same configuration again, and another one", the_same_configuration_again);
    test("defaults", defaults);
    test("a product configures the library", a_product_configures);
    test("wrong configurations are named", wrong_configurations);
    test("instruction sets", instruction_sets);
    test("AMX may be left alone", amx_may_be_left_alone);
    test("the environment", the_environment);
    test("texts of every capacity", texts_of_every_capacity);
    test("cleanup ends handles", cleanup_ends_handles);
    test("a hundred lives", many_lives);
#ifdef __linux__
    const char *sanitized = getenv("APL_FFI_SANITIZED");
    if (sanitized && strcmp(sanitized, "valgrind") == 0)
        skipped("threads take no signal, and end with cleanup", "valgrind keeps the masks to itself");
    else
        test("threads take no signal, and end with cleanup", threads_take_no_signal_and_end);
    if (sanitized)
        skipped("threads that cannot be started", "a sanitizer needs the address space");
    else
        test("threads that cannot be started", threads_that_cannot_be_started);
#else
    skipped("threads take no signal, and end with cleanup", "needs /proc");
    skipped("threads that cannot be started", "needs /proc");
#endif
    return finish();
}
