/* Small things that every other file uses: one owner per fd, time, and the stages at which something can fail. */
#ifndef LINX_UTIL_H
#define LINX_UTIL_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <unistd.h>

#include "raw.h"

enum stage {
#define STAGE(name) STAGE_##name,
#include "stages.def"
#undef STAGE
    STAGE_COUNT
};

extern const char *const stage_names[STAGE_COUNT];

/* A closed fd is -1; closing it again is harmless. EINTR from close(2) is not retried: on Linux the fd is gone. */
static inline void close_fd(int *fd) {
    if (*fd >= 0) {
        (void)RAW1(close, *fd); /* errno stays as it is */
        *fd = -1;
    }
}

static inline int steal_fd(int *fd) {
    int taken = *fd;
    *fd = -1;
    return taken;
}

#define OWN_FD __attribute__((cleanup(close_fd)))
#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

/* CLOCK_MONOTONIC in microseconds. */
int64_t now_us(void);

/* Reads a small file of /proc into `text`, NUL-terminated; `path` is below the directory `dir`, or AT_FDCWD's. Returns its
 * length or a negated errno. For those, too, that share their parent's memory (child.c). */
ssize_t read_small_file(int dir, const char *path, char *text, size_t size);

#endif
