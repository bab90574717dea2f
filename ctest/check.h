/* A small test framework: one line per test, the place of each failed check, an exit status.
 *
 *     static void sums(void) { CHECK(1 + 1 == 2); }
 *     int main(void) { test("sums", sums); return finish(); }
 *
 * Not thread-safe: what other threads find is checked after they are joined.
 */
#ifndef APL_FFI_CHECK_H
#define APL_FFI_CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static int check_failures; /* in the running test */
static int check_exit;     /* 1 if a test has failed */

/* Records a failure if `condition` is false, and continues. */
#define CHECK(condition) ((condition) ? (void)0 : check_fail(__FILE__, __LINE__, #condition))

/* Records a failure if `call` does not return `expected`, both int32_t, and continues. */
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

/* Runs a test and prints its result. */
static inline void test(const char *name, void (*body)(void))
{
    check_failures = 0;
    body();
    if (check_failures)
        check_exit = 1;
    printf("%s - %s\n", check_failures ? "not ok" : "ok", name);
    fflush(stdout);
}

/* Prints the line of a test that cannot run here. */
static inline void skipped(const char *name, const char *why)
{
    printf("ok - %s # skipped: %s\n", name, why);
}

/* The exit status; includes checks that failed after the last test. */
static inline int finish(void)
{
    return check_exit || check_failures;
}

/* Allocates `count` zeroed elements of `size` bytes; ends the program if there is no memory. */
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
