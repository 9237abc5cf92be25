#include "clone.h"

#include <sched.h>
#include <signal.h>
#include <string.h>

#ifndef CLONE_INTO_CGROUP
#define CLONE_INTO_CGROUP 0x200000000ULL
#endif

/* clone3(2)'s argument as of Linux 5.7. */
struct clone_request {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};
enum { SIZE_WITHOUT_CGROUP = 64 }; /* up to and with `tls`, as of Linux 5.3 */

/* A container's seccomp filter cannot see clone3(2)'s flags, which lie in memory, and so says ENOSYS to it (Docker's does,
 * unless the container has CAP_SYS_ADMIN): then the older call will do, but for what only the newer one can say. */
pid_t clone_copying(uint64_t flags, uint64_t exit_signal, int cgroup, int *pidfd) {
    struct clone_request args = {.flags = flags, .pidfd = (uint64_t)(uintptr_t)pidfd, .exit_signal = exit_signal};
    if (cgroup >= 0) {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = (uint64_t)cgroup;
    }
    long pid = RAW2(clone3, &args, cgroup >= 0 ? sizeof args : SIZE_WITHOUT_CGROUP);
    if (pid != -ENOSYS || (args.flags & (CLONE_INTO_CGROUP | CLONE_NEWTIME)))
        return (pid_t)pid;
#if defined(__s390__)
    return (pid_t)RAW5(clone, 0, flags | exit_signal, pidfd, 0, 0);
#else
    return (pid_t)RAW5(clone, flags | exit_signal, 0, pidfd, 0, 0);
#endif
}

static _Alignas(16) void *stacks[STACK_COUNT][4096];

pid_t clone_sharing(uint64_t flags, enum stack stack, int (*entry)(void *context), void *context, int *pidfd) {
    void **from = stacks[stack] + COUNT_OF(stacks[stack]) - 2;
    from[0] = (void *)entry;
    from[1] = context;
    return (pid_t)raw_clone(flags | CLONE_VM | SIGCHLD, from, pidfd);
}

void clone_forget(void) { explicit_bzero(stacks, sizeof stacks); }
