#include "util.h"

#include <fcntl.h>
#include <time.h>

const char *const stage_names[STAGE_COUNT] = {
#define STAGE(name) [STAGE_##name] = #name,
#include "stages.def"
#undef STAGE
};

int64_t now_us(void) {
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

ssize_t read_small_file(int dir, const char *path, char *text, size_t size) {
    OWN_FD int fd = (int)RAW4(openat, dir, path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return fd;
    size_t used = 0;
    while (used + 1 < size) {
        ssize_t got = RAW3(read, fd, text + used, size - 1 - used);
        if (got == -EINTR)
            continue;
        if (got < 0)
            return got;
        if (got == 0)
            break;
        used += (size_t)got;
    }
    text[used] = '\0';
    return (ssize_t)used;
}
