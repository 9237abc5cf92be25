/* The child's error policy: report {errno, stage, index} and _exit.
 *
 * Unless it is going to park it shares its parent's memory (CLONE_VM without CLONE_VFORK), the monitor's or that of our pid 1,
 * and runs beside it on a stack of its own: copying page tables, and the faults that follow, would cost more than all the rest
 * up to execve(2). So it only reads what it is given, writes to nothing but its stack, and makes its system calls without libc
 * (raw.h), whose errno is its parent's. The same holds for pid 1, which may share the monitor's memory as long as it lives. */
#include "child.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "clone.h"
#include "enter.h"
#include "frame.h"
#include "mounts.h"
#include "namespaces.h"
#include "privileges.h"
#include "raw.h"
#include "reaper.h"
#include "sharing.h"

_Noreturn void child_leave(void) {
    (void)RAW1(exit_group, 127);
    for (;;) /* a filter refuses that */
        __builtin_trap();
}

void child_say(int control, const struct child_message *message) {
    while (RAW5(sendto, control, message, sizeof *message, MSG_NOSIGNAL, NULL) == -EINTR)
        continue;
}

static void tell(int control, enum child_news news, long error, enum stage stage, int index) {
    struct child_message m = {news, (int32_t)error, (int32_t)stage, index};
    child_say(control, &m);
}

_Noreturn void child_refuse(int control, long error, enum stage stage, int index) {
    tell(control, CHILD_REFUSED, error, stage, index);
    child_leave();
}

long child_tell_with_fds(int control, const struct child_message *message, const int *fds, size_t count) {
    return send_with_fds(control, message, sizeof *message, fds, count, MSG_NOSIGNAL);
}

/* Dies with the monitor. The monitor is single-threaded, so its death is the death of the thread that prctl(2) means.
 * It may have died before the call: then the far end of the pair is closed. Any change of ids clears the setting. */
static void die_with_monitor(int control) {
    struct pollfd p = {control, 0, 0};
    struct timespec now = {0, 0};
    (void)RAW5(prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if (RAW5(ppoll, &p, 1, &now, NULL, 8) != 0 && (p.revents & POLLHUP))
        child_leave();
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

static bool is_among(int fd, const int *kept, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (kept[i] == fd)
            return true;
    return false;
}

/* Range by range: the next kept number above `from` ends a range. */
void child_close_others(const int *kept, size_t count) {
    int from = 0;
    for (;;) {
        while (is_among(from, kept, count))
            from++;
        int next = -1;
        for (size_t i = 0; i < count; i++)
            if (kept[i] > from && (next < 0 || kept[i] < next))
                next = kept[i];
        (void)RAW3(close_range, from, next < 0 ? ~0U : (unsigned)next - 1, 0);
        if (next < 0)
            return;
        from = next;
    }
}

/* Puts the fds where the workload expects them and closes all others. Returns the control fd's new number. */
static int place_fds(const struct request *q, int control, int *init_end) {
    int floor = range_without_targets(q, 2 * (int)q->fd_count + 16);
    long moved[FDS_LIMIT];
    long new_control = RAW3(fcntl, control, F_DUPFD_CLOEXEC, floor);
    if (new_control < 0)
        child_refuse(control, -new_control, STAGE_stdio, -1);
    if (*init_end >= 0)
        *init_end = (int)RAW3(fcntl, *init_end, F_DUPFD_CLOEXEC, floor); /* if not, who needs it says so */
    for (size_t i = 0; i < q->fd_count; i++) {
        moved[i] = q->fds[i].source;
        if (moved[i] < 0 || q->fds[i].target < 0)
            continue;
        moved[i] = RAW3(fcntl, moved[i], F_DUPFD_CLOEXEC, floor);
        if (moved[i] < 0)
            child_refuse(control, -moved[i], STAGE_stdio, q->fds[i].target);
    }
    for (size_t i = 0; i < q->fd_count; i++) {
        long placed = moved[i] >= 0 && q->fds[i].target >= 0 ? RAW3(dup3, moved[i], q->fds[i].target, 0) : 0;
        if (placed < 0)
            child_refuse((int)new_control, -placed, STAGE_stdio, q->fds[i].target);
    }
    int kept[FDS_LIMIT + 2] = {(int)new_control, *init_end};
    size_t kept_count = *init_end >= 0 ? 2 : 1;
    for (size_t i = 0; i < q->fd_count; i++)
        if (q->fds[i].source >= 0 && q->fds[i].target >= 0)
            kept[kept_count++] = q->fds[i].target;
    child_close_others(kept, kept_count);
    return (int)new_control;
}

/* ---- steps and the checkpoint -------------------------------------------------------------------------------- */

/* Memory that we share is that of somebody who may do more than we are going to, and then whoever may look into us must not
 * look into that. Undumpable, it is open to nobody without rights over its user namespace; but then our own files in /proc are not
 * ours either, the id maps among them. The monitor's stays open to the caller as long as we have its rights; pid 1's is nobody's
 * business, and it is not alone any more as soon as somebody enters. Where that is the monitor's too, it is open again when
 * the session is over (monitor.c). */
static void hide_memory(struct step_room *room) {
    if (room->shares_memory && !room->hidden)
        room->hidden = RAW5(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0) == 0;
}

/* Up to the checkpoint or the end, or up to the first that is refused: its result, and its index. */
static long run_steps(const struct request *q, size_t *i, struct step_room *room, int control) {
    long result = 0;
    room->umask = (mode_t)RAW1(umask, 0);
    for (; *i < q->step_count && q->steps[*i].kind != NULL; (*i)++) {
        const struct step *step = &q->steps[*i];
        if (q->init ? !step_writes_own_map(step) : step_drops_rights(step))
            hide_memory(room);
        result = step->kind->run(step, room);
        if (result < 0 && !step->optional)
            break;
        if (result < 0)
            tell(control, CHILD_DEGRADED, -result, step->kind->stage, (int)*i);
        result = 0;
    }
    mounts_forget(room);
    (void)RAW1(umask, room->umask);
    return result;
}

static void run_own_steps(const struct request *q, size_t from, struct step_room *room, int control) {
    size_t i = from;
    long result = run_steps(q, &i, room, control);
    if (result < 0)
        child_refuse(control, -result, q->steps[i].kind->stage, (int)i);
}

/* A batch that came later. Only a child with memory of its own gets one: it allocates. What is kept of it (the filter) lives
 * in its arena, which is therefore never freed. */
static void run_batch(int file, struct step_room *room, int control) {
    struct request batch;
    struct stat status;
    size_t i = 0;
    OWN_FD int fd = file;
    uint8_t *payload = fstat(fd, &status) == 0 ? malloc((size_t)status.st_size + 1) : NULL;
    ssize_t got = payload != NULL ? pread(fd, payload, (size_t)status.st_size, 0) : -1;
    close_fd(&fd);
    if (got < 0 || !request_parse_steps(&batch, (struct etf_slice){payload, (size_t)got})) {
        tell(control, CHILD_REMAINS, got < 0 ? ENOMEM : EINVAL, STAGE_request, -1);
        return;
    }
    long result = run_steps(&batch, &i, room, control);
    OWN_FD int opened = steal_fd(&room->opened);
    if (result >= 0 && opened >= 0) {
        struct child_message news = {CHILD_OPENED, 0, 0, -1};
        (void)child_tell_with_fds(control, &news, &opened, 1);
    }
    if (result < 0)
        tell(control, CHILD_REMAINS, -result, batch.steps[i].kind->stage, (int)i);
    else
        tell(control, CHILD_DONE, 0, STAGE_request, -1);
}

static size_t checkpoint_index(const struct request *q) {
    for (size_t i = 0; i < q->step_count; i++)
        if (q->steps[i].kind == NULL)
            return i;
    return q->step_count;
}

/* Waits for the permission to go on, and takes steps meanwhile; end of file says that the session was aborted, or that the
 * monitor is dead. */
static void park(int control, struct step_room *room) {
    for (;;) {
        char what = 0;
        int fd = -1;
        long got = receive_waiting(control, &what, 1, &fd);
        if (got == 1 && what == CHILD_GO)
            return;
        if (what != CHILD_STEPS)
            child_leave();
        if (fd >= 0)
            run_batch(fd, room, control);
        else /* lost on the way: RLIMIT_NOFILE */
            tell(control, CHILD_REMAINS, EMFILE, STAGE_request, -1);
    }
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
    child_refuse(control, error, STAGE_execve, -1);
}

/* A starter that is on its way into other namespaces, or to be pid 1, holds nothing that is not the workload's. */
static void hold_only_the_workloads(const struct request *q, int control) {
    int kept[FDS_LIMIT + 1] = {control};
    size_t count = 1;
    for (size_t i = 0; i < q->fd_count; i++)
        kept[count++] = q->fds[i].source;
    child_close_others(kept, count);
}

/* Whether pid 1 gives up what it could be made to use by those inside: confine.h. */
static bool is_confined(const struct request *q) { return q->init && !(q->namespaces & CLONE_NEWUSER); }

struct start {
    const struct request *request;
    int control;
    bool shares_memory; /* with whom has cloned it */
};

/* What steps write may be more than the workload's RLIMIT_FSIZE: then they are to be told EFBIG. */
static void set_sigxfsz(uintptr_t handler) {
    const uintptr_t action[8] = {handler}; /* the kernel's struct sigaction: no flags, no mask */
    (void)RAW4(rt_sigaction, SIGXFSZ, action, NULL, 8);
}

/* Pid 1 must be confined before anybody is inside. */
static void await_init(const struct request *q, struct step_room *room, int control) {
    char nothing;
    int fd = -1;
    if (is_confined(q) && room->init_end < 0)
        child_refuse(control, EMFILE, STAGE_stdio, -1);
    if (is_confined(q))
        (void)receive_waiting(room->init_end, &nothing, 1, &fd);
    close_fd(&room->init_end);
}

static _Noreturn void workload_main(const struct start *start, int init_end) {
    const struct request *q = start->request;
    int control = start->control;
    uint64_t none = 0;
    (void)RAW4(rt_sigprocmask, SIG_SETMASK, &none, NULL, sizeof none);
    /* Its own process group in any case: `kill 0` in a script reaches that workload only. */
    long result = q->new_session ? RAW0(setsid) : RAW2(setpgid, 0, 0);
    if (result < 0)
        child_refuse(control, -result, STAGE_new_session, -1);
    set_sigxfsz((uintptr_t)SIG_IGN);
    control = place_fds(q, control, &init_end); /* from here on the monitor's end of the pair is the monitor's alone */
    die_with_monitor(control);
    size_t checkpoint = checkpoint_index(q);
    bool early = checkpoint < q->step_count;
    struct step_room room = {.terminal = -1, .root = -1, .parent = -1, .empty_directory = -1, .null_device = -1,
                             .init_end = init_end, .opened = -1, .shares_memory = start->shares_memory};
    if (early)
        run_own_steps(q, 0, &room, control);
    await_init(q, &room, control);
    tell(control, CHILD_PARKED, 0, STAGE_request, -1);
    park(control, &room);
    run_own_steps(q, early ? checkpoint + 1 : 0, &room, control);
    die_with_monitor(control);
    room.hidden = false; /* pid 1's in any case; and again, for other ids may have undone it (fs.suid_dumpable) */
    if (q->init)
        hide_memory(&room);
    set_sigxfsz((uintptr_t)SIG_DFL);
    result = privileges_install_filters(&room);
    if (result < 0)
        child_refuse(control, -result, STAGE_seccomp_install, -1);
    execute(q, control);
}

struct below_init {
    const struct start *start;
    int pair[2]; /* with pid 1: reaper.h; or -1 */
};

static int below_init(const void *context) {
    const struct below_init *below = context;
    if (below->pair[0] >= 0)
        (void)RAW1(close, below->pair[0]); /* pid 1 alone has it: its end is the end of the file */
    workload_main(below->start, below->pair[1]);
}

/* We are pid 1 of the fresh namespace: the workload is below us. */
static _Noreturn void be_init(const struct start *start) {
    static struct below_init below; /* outlives this call, for the child that shares it */
    const struct request *q = start->request;
    int control = start->control;
    bool makes_net = request_has_step(q, step_is_of_init), confined = is_confined(q);
    below = (struct below_init){start, {-1, -1}};
    long proc = RAW4(openat, AT_FDCWD, "/proc", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    if (proc < 0)
        child_refuse(control, -proc, STAGE_fork, -1);
    long result = makes_net || confined ? RAW4(socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, below.pair) : 0;
    if (result < 0)
        child_refuse(control, -result, STAGE_fork, -1);
    reaper_start(&(struct reaper_request){.control = control, .proc = (int)proc, .init = true, .confined = confined,
                                          .makes_net = makes_net, .init_end = below.pair[0], .shares_memory = start->shares_memory,
                                          .go_on = below_init, .context = &below});
}

static int begin_workload(const void *context) {
    workload_main(context, -1);
}

static int child_main(void *context) {
    const struct start *start = context;
    const struct request *q = start->request;
    if (q->enters || q->init)
        hold_only_the_workloads(q, start->control);
    if (q->enters)
        return enter_namespaces(q, start->control, begin_workload, start);
    if (q->init)
        be_init(start);
    return begin_workload(start);
}

/* ---- clone --------------------------------------------------------------------------------------------------- */

pid_t child_start(const struct request *request, int control, int *pidfd) {
    static struct start start; /* outlives this call, for the child that shares it */
    start = (struct start){request, control, shares_memory(request)};
    uint64_t flags = request->namespaces | CLONE_PIDFD;
    if (start.shares_memory && shares_monitors_memory(request))
        return clone_sharing(flags, CHILDS_STACK, child_main, &start, pidfd);
    pid_t pid = clone_copying(flags, SIGCHLD, request_fd(request, FD_CGROUP), pidfd);
    if (pid == 0)
        _exit(child_main(&start));
    return pid;
}
