/* The child's error policy: report {errno, stage, index} and _exit.
 *
 * Unless it is going to park it shares the monitor's memory (CLONE_VM without CLONE_VFORK) and runs beside it on a stack of its own: copying page
 * tables, and the faults that follow, would cost more than all the rest up to execve(2). So it only reads what it is given,
 * writes to nothing but its stack, and makes its system calls without libc (raw.h), whose errno is the monitor's. */
#include "child.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "raw.h"

#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x00001000
#endif
#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif

static _Noreturn void leave(void) {
    for (;;)
        (void)RAW1(exit_group, 127);
}

static void tell(int control, enum child_news news, long error, enum stage stage, int index) {
    struct child_message m = {news, (int32_t)error, (int32_t)stage, index};
    while (RAW5(sendto, control, &m, sizeof m, MSG_NOSIGNAL, NULL) == -EINTR)
        continue;
}

static _Noreturn void refuse(int control, long error, enum stage stage, int index) {
    tell(control, CHILD_REFUSED, error, stage, index);
    leave();
}

/* Dies with the monitor. The monitor is single-threaded, so its death is the death of the thread that prctl(2) means.
 * It may have died before the call: then the far end of the pair is closed. Any change of ids clears the setting. */
static void die_with_monitor(int control) {
    struct pollfd p = {control, 0, 0};
    struct timespec now = {0, 0};
    (void)RAW5(prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if (RAW5(ppoll, &p, 1, &now, NULL, 8) != 0 && (p.revents & POLLHUP))
        leave();
}

/* ---- fds ----------------------------------------------------------------------------------------------------- */

/* Sources may sit on each other's targets. So all move first to a range where no target is: `room` free numbers in a
 * row, looked for from 3 up (each target that is in the way moves the start behind it). */
static int range_without_targets(const struct request *q, int room) {
    int floor = 3;
    bool moved = true;
    while (moved) {
        moved = false;
        for (size_t i = 0; i < q->fd_count; i++)
            if (q->fds[i].target >= floor && q->fds[i].target < floor + room) {
                floor = q->fds[i].target + 1;
                moved = true;
            }
    }
    return floor;
}

static bool is_kept(const struct request *q, int fd, int control) {
    bool kept = fd == control;
    for (size_t i = 0; i < q->fd_count; i++)
        kept |= q->fds[i].target == fd && q->fds[i].source >= 0;
    return kept;
}

/* Closes everything but the targets and `control`, range by range: the next kept number above `from` ends a range. */
static void close_the_rest(const struct request *q, int control) {
    int from = 0;
    for (;;) {
        while (is_kept(q, from, control))
            from++;
        int next = control > from ? control : -1;
        for (size_t i = 0; i < q->fd_count; i++) {
            int target = q->fds[i].target;
            if (q->fds[i].source >= 0 && target > from && (next < 0 || target < next))
                next = target;
        }
        (void)RAW3(close_range, from, next < 0 ? ~0U : (unsigned)next - 1, 0);
        if (next < 0)
            return;
        from = next;
    }
}

/* Puts the fds where the workload expects them and closes all others. Returns the control fd's new number. */
static int place_fds(const struct request *q, int control) {
    int floor = range_without_targets(q, 2 * (int)q->fd_count + 16);
    long moved[FDS_LIMIT];
    long new_control = RAW3(fcntl, control, F_DUPFD_CLOEXEC, floor);
    if (new_control < 0)
        refuse(control, -new_control, STAGE_stdio, -1);
    for (size_t i = 0; i < q->fd_count; i++) {
        moved[i] = q->fds[i].source;
        if (moved[i] < 0 || q->fds[i].target < 0)
            continue;
        moved[i] = RAW3(fcntl, moved[i], F_DUPFD_CLOEXEC, floor);
        if (moved[i] < 0)
            refuse(control, -moved[i], STAGE_stdio, q->fds[i].target);
    }
    for (size_t i = 0; i < q->fd_count; i++) {
        long placed = moved[i] >= 0 && q->fds[i].target >= 0 ? RAW3(dup3, moved[i], q->fds[i].target, 0) : 0;
        if (placed < 0)
            refuse((int)new_control, -placed, STAGE_stdio, q->fds[i].target);
    }
    close_the_rest(q, (int)new_control);
    return (int)new_control;
}

/* ---- steps and the checkpoint -------------------------------------------------------------------------------- */

static size_t run_steps(const struct request *q, size_t from, int control) {
    size_t i = from;
    for (; i < q->step_count && q->steps[i].kind != NULL; i++) {
        const struct step *step = &q->steps[i];
        long result = step->kind->run(step);
        if (result >= 0)
            continue;
        if (!step->optional)
            refuse(control, -result, step->kind->stage, (int)i);
        tell(control, CHILD_DEGRADED, -result, step->kind->stage, (int)i);
    }
    return i;
}

static size_t checkpoint_index(const struct request *q) {
    for (size_t i = 0; i < q->step_count; i++)
        if (q->steps[i].kind == NULL)
            return i;
    return q->step_count;
}

/* One byte is the permission to go on; end of file says that the session was aborted, or that the monitor is dead. */
static void park(int control) {
    char permission;
    long got;
    do
        got = RAW5(recvfrom, control, &permission, 1, 0, NULL);
    while (got == -EINTR);
    if (got != 1)
        leave();
}

/* ---- execve -------------------------------------------------------------------------------------------------- */

static const char *path_of(char *const *envp) {
    for (; envp != NULL && *envp != NULL; envp++)
        if (strncmp(*envp, "PATH=", 5) == 0)
            return *envp + 5;
    return "/usr/local/bin:/usr/bin:/bin"; /* what execvp(3) does without PATH, and a little more */
}

/* execvp(3)'s search, in the workload's own PATH and root, but without its fall-back to sh(1) and without allocating:
 * what cannot be entered is skipped, a file that may not be executed is remembered in case nothing better comes. */
static long search_and_execute(char *const *argv, char *const *envp) {
    const char *name = argv[0], *path = path_of(envp);
    size_t name_length = strlen(name);
    long error = ENOENT;
    for (;;) {
        size_t length = strcspn(path, ":");
        char full[4096];
        if (length + 1 + name_length + 1 <= sizeof full) {
            memcpy(full, path, length);
            full[length] = '/';
            memcpy(full + length + (length > 0), name, name_length + 1); /* an empty entry is the cwd */
            long why = -RAW3(execve, full, argv, envp);
            if (why == EACCES)
                error = EACCES;
            else if (why != ENOENT && why != ENOTDIR && why != ELOOP && why != ENAMETOOLONG)
                return why;
        }
        if (path[length] == '\0')
            return error;
        path += length + 1;
    }
}

static _Noreturn void execute(const struct request *q, int control) {
    char *const *envp = q->envp != NULL ? q->envp : environ;
    long error = ENOENT;
    if (strchr(q->argv[0], '/') != NULL)
        error = -RAW3(execve, q->argv[0], q->argv, envp);
    else if (q->argv[0][0] != '\0')
        error = search_and_execute(q->argv, envp);
    refuse(control, error, STAGE_execve, -1);
}

static _Noreturn void child_main(const struct request *q, int control) {
    uint64_t none = 0;
    (void)RAW4(rt_sigprocmask, SIG_SETMASK, &none, NULL, sizeof none);
    /* Its own process group in any case: `kill 0` in a script reaches that workload only. */
    long result = q->new_session ? RAW0(setsid) : RAW2(setpgid, 0, 0);
    if (result < 0)
        refuse(control, -result, STAGE_new_session, -1);
    control = place_fds(q, control); /* from here on the monitor's end of the pair is the monitor's alone */
    die_with_monitor(control);
    size_t checkpoint = checkpoint_index(q);
    bool early = checkpoint < q->step_count;
    if (early)
        (void)run_steps(q, 0, control);
    tell(control, CHILD_PARKED, 0, STAGE_request, -1);
    park(control);
    (void)run_steps(q, early ? checkpoint + 1 : 0, control);
    die_with_monitor(control);
    execute(q, control);
}

/* ---- clone --------------------------------------------------------------------------------------------------- */

#if defined(__SANITIZE_ADDRESS__)
#define SHARES_MEMORY 0 /* it watches the stack that it knows */
#else
#define SHARES_MEMORY RAW_SYSCALLS
#endif

struct start {
    const struct request *request;
    int control;
};

static int run_child(void *argument) {
    const struct start *start = argument;
    child_main(start->request, start->control);
}

/* clone3(2) for what the older call cannot say; the child gets a copy of our memory, as with fork(2). */
static pid_t clone_copied(const struct start *start, uint64_t flags, int *pidfd) {
    struct {
        uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
    } args = {.flags = flags, .pidfd = (uint64_t)(uintptr_t)pidfd, .exit_signal = SIGCHLD};
    long pid = RAW2(clone3, &args, sizeof args);
    if (pid == 0)
        (void)run_child((void *)(uintptr_t)start);
    return (pid_t)pid;
}

pid_t child_start(const struct request *request, int control, int *pidfd) {
    static _Alignas(16) char stack[32768];
    static struct start start; /* outlives this call, for the child that shares it */
    start = (struct start){request, control};
    uint64_t flags = request->namespaces | CLONE_PIDFD;
    /* CLONE_NEWTIME lies in clone(2)'s byte for the exit signal, and takes effect only for a child with memory of its own.
     * And a child that parks is there to be worked on from outside: its oom_score_adj, or a signal that dumps core, must not
     * be the monitor's as well, as they are for processes that share their memory. */
    if (!SHARES_MEMORY || !request->auto_proceed || (flags & CLONE_NEWTIME))
        return clone_copied(&start, flags, pidfd);
    pid_t pid = clone(run_child, stack + sizeof stack, (int)(flags | CLONE_VM | SIGCHLD), &start, pidfd);
    return pid < 0 ? -errno : pid;
}
