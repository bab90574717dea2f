/* What the test programs share: a line a test, the place of each failed check, an exit status.
 *
 *     static void sums(void) { CHECK(1 + 1 == 2); }
 *     int main(void) { test("sums", sums); return finish(); }
 *
 * For one thread: what other threads find is checked where they are joined.
 */
#ifndef APL_FFI_CHECK_H
#define APL_FFI_CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static int check_failures; /* in the test that runs */
static int check_exit;     /* 1 once a test has failed */

/* Notes a failure where `condition` is false, and goes on. */
#define CHECK(condition) ((condition) ? (void)0 : check_fail(__FILE__, __LINE__, #condition))

/* Notes a failure where `call` does not give `expected`, both int32_t, and goes on. */
#define CHECK_STATUS(expected, call) check_status(__FILE__, __LINE__, #call, (expected), (call))

static inline void check_fail(const char *file, int line, const char *what)
{
    check_failures++;
    printf("%s:%d: %s\n", file, line, what);
}

static inline void check_status(const char *file, int line, const char *what, int32_t expected, int32_t found)
{
    if (found == expected)
        return;
    check_fail(file, line, what);
    printf("    gives %d, expected %d\n", (int)found, (int)expected);
}

/* Runs one test and prints its line. */
static inline void test(const char *name, void (*body)(void))
{
    check_failures = 0;
    body();
    if (check_failures)
        check_exit = 1;
    printf("%s - %s\n", check_failures ? "not ok" : "ok", name);
    fflush(stdout);
}

/* The line of a test that cannot be run here. */
static inline void skipped(const char *name, const char *why)
{
    printf("ok - %s # skipped: %s\n", name, why);
}

/* What `main` returns; a check that failed after the last test counts. */
static inline int finish(void)
{
    return check_exit || check_failures;
}

/* `count` elements of `size` bytes, zeroed; ends the program where there is no memory. */
static inline void *allocate(size_t count, size_t size)
{
    void *p = calloc(count ? count : 1, size);
    if (!p) {
        fprintf(stderr, "no memory for %zu elements of %zu bytes\n", count, size);
        exit(2);
    }
    return p;
}

#endif
