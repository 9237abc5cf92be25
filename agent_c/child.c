/* The child's error policy: report {errno, stage, index} and _exit. It is a copy of the monitor made by a bare
 * clone3(2): it allocates nothing, calls nothing of libc that keeps state, and touches no lock. */
#include "child.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

static void tell(int control, enum child_news news, int error, enum stage stage, int index) {
    struct child_message m = {news, error, (int32_t)stage, index};
    while (send(control, &m, sizeof m, MSG_NOSIGNAL) < 0 && errno == EINTR)
        continue;
}

static _Noreturn void refuse(int control, int error, enum stage stage, int index) {
    tell(control, CHILD_REFUSED, error, stage, index);
    _exit(127);
}

/* Dies with the monitor. The monitor is single-threaded, so its death is the death of the thread that prctl(2) means.
 * It may have died before the call: then the far end of the pair is closed. Any change of ids clears the setting. */
static void die_with_monitor(int control) {
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    struct pollfd p = {control, 0, 0};
    if (poll(&p, 1, 0) != 0 && (p.revents & POLLHUP))
        _exit(127);
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
        (void)syscall(SYS_close_range, (unsigned)from, next < 0 ? ~0U : (unsigned)next - 1, 0U);
        if (next < 0)
            return;
        from = next;
    }
}

/* Puts the fds where the workload expects them and closes all others. Returns the control fd's new number. */
static int place_fds(const struct request *q, int control) {
    int floor = range_without_targets(q, 2 * (int)q->fd_count + 16), moved[FDS_LIMIT];
    int new_control = fcntl(control, F_DUPFD_CLOEXEC, floor);
    if (new_control < 0)
        refuse(control, errno, STAGE_stdio, -1);
    for (size_t i = 0; i < q->fd_count; i++) {
        moved[i] = q->fds[i].source;
        if (moved[i] < 0 || q->fds[i].target < 0)
            continue;
        moved[i] = fcntl(moved[i], F_DUPFD_CLOEXEC, floor);
        if (moved[i] < 0)
            refuse(control, errno, STAGE_stdio, q->fds[i].target);
    }
    for (size_t i = 0; i < q->fd_count; i++)
        if (moved[i] >= 0 && q->fds[i].target >= 0 && dup2(moved[i], q->fds[i].target) < 0)
            refuse(new_control, errno, STAGE_stdio, q->fds[i].target);
    close_the_rest(q, new_control);
    return new_control;
}

/* ---- steps and the checkpoint -------------------------------------------------------------------------------- */

static size_t run_steps(const struct request *q, size_t from, int control) {
    size_t i = from;
    for (; i < q->step_count && q->steps[i].kind != NULL; i++) {
        const struct step *step = &q->steps[i];
        if (step->kind->run(step) == 0)
            continue;
        int error = errno;
        if (!step->optional)
            refuse(control, error, step->kind->stage, (int)i);
        tell(control, CHILD_DEGRADED, error, step->kind->stage, (int)i);
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
    ssize_t got;
    do
        got = recv(control, &permission, 1, 0);
    while (got < 0 && errno == EINTR);
    if (got != 1)
        _exit(127);
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
static int search_and_execute(char *const *argv, char *const *envp) {
    const char *name = argv[0], *path = path_of(envp);
    size_t name_length = strlen(name);
    int error = ENOENT;
    for (;;) {
        size_t length = strcspn(path, ":");
        char full[4096];
        if (length + 1 + name_length + 1 <= sizeof full) {
            memcpy(full, path, length);
            full[length] = '/';
            memcpy(full + length + (length > 0), name, name_length + 1); /* an empty entry is the cwd */
            (void)execve(full, argv, envp);
            if (errno == EACCES)
                error = EACCES;
            else if (errno != ENOENT && errno != ENOTDIR && errno != ELOOP && errno != ENAMETOOLONG)
                return errno;
        }
        if (path[length] == '\0')
            return error;
        path += length + 1;
    }
}

static _Noreturn void execute(const struct request *q, int control) {
    char *const *envp = q->envp != NULL ? q->envp : environ;
    int error;
    if (q->argv[0][0] == '\0') {
        error = ENOENT;
    } else if (strchr(q->argv[0], '/') != NULL) {
        (void)execve(q->argv[0], q->argv, envp);
        error = errno;
    } else {
        error = search_and_execute(q->argv, envp);
    }
    refuse(control, error, STAGE_execve, -1);
}

_Noreturn void child_main(const struct request *q, int control) {
    sigset_t none;
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    /* Its own process group in any case: `kill 0` in a script reaches that workload only. */
    if (q->new_session ? setsid() < 0 : setpgid(0, 0) < 0)
        refuse(control, errno, STAGE_new_session, -1);
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
