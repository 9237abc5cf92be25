/* A test harness in one header. CHECK says where it failed and goes on; the exit status is the verdict. */
#ifndef LINX_TESTS_CHECK_H
#define LINX_TESTS_CHECK_H

#include "common.h"

static int check_failures;
static const char *check_test;

#define CHECK(condition)                                                                             \
    do {                                                                                             \
        if (!(condition)) {                                                                          \
            check_failures++;                                                                        \
            (void)printf("FAIL %s: %s:%d: %s\n", check_test, __FILE__, __LINE__, #condition);        \
        }                                                                                            \
    } while (0)

#define CHECK_INT(got, want)                                                                         \
    do {                                                                                             \
        long long got_ = (long long)(got), want_ = (long long)(want);                                \
        if (got_ != want_) {                                                                         \
            check_failures++;                                                                        \
            (void)printf("FAIL %s: %s:%d: %s is %lld, not %lld\n", check_test, __FILE__, __LINE__, #got, got_, want_); \
        }                                                                                            \
    } while (0)

/* Runs one test, and checks that it has closed every fd that it opened: the lowest free number is what it was. */
#define RUN(test)                                                                                    \
    do {                                                                                             \
        check_test = #test;                                                                          \
        int before_ = check_failures, lowest_ = lowest_free_fd();                                    \
        test();                                                                                      \
        CHECK_INT(lowest_free_fd(), lowest_);                                                        \
        (void)printf("%s %s\n", check_failures == before_ ? "ok  " : "FAIL", #test);                 \
        (void)fflush(stdout);                                                                        \
    } while (0)

static inline int verdict(void) {
    (void)printf("%d failures\n", check_failures);
    return check_failures == 0 ? 0 : 1;
}

#endif
