/* Theory. A process joins each namespace by itself, but a PID namespace by its children only. So:
 *
 *   monitor ── starter ─joins─▶ is the workload itself                                    without a PID namespace
 *   monitor ── starter ─joins─▶ clone ─▶ reapers ── workload;   the starter exits         with one
 *
 * The outer reaper is cloned with CLONE_PARENT: a child of the monitor, which has stayed where it is (reaper.h says why there
 * must be any, and why there are two).
 *
 * All namespaces are opened before the first is joined: afterwards /proc is another one, or the rights to open are gone. They
 * are opened below one directory fd of /proc/<pid>, which cannot come to mean another process.
 *
 * The user namespace comes first where that gives the rights for the others (rootless), and must come last where it takes
 * them away (root joining namespaces that belong to the host's user namespace). So the others are tried without it; what is
 * refused with EPERM is tried again behind it.
 *
 * From the first join on somebody inside may look at us. We are not dumpable, so without CAP_SYS_PTRACE outside of their user
 * namespace they can neither read our memory nor follow our fds and our executable; and that is a sealed copy in memory, of
 * which nothing can be overwritten (seal.h). */
#include "enter.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "child.h"
#include "namespaces.h"
#include "raw.h"
#include "reaper.h"

struct joining {
    const struct request *request;
    int control, proc;
    int fd[NAMESPACE_COUNT]; /* -1: not asked for, ours already, or joined */
};

static bool is_same(int fd, int proc, const char *own) {
    struct stat theirs, ours;
    return fstat(fd, &theirs) == 0 && fstatat(proc, own, &ours, 0) == 0 && theirs.st_dev == ours.st_dev &&
           theirs.st_ino == ours.st_ino;
}

static void open_namespaces(struct joining *j) {
    int target = request_fd(j->request, FD_TARGET);
    for (size_t i = 0; i < NAMESPACE_COUNT; i++) {
        const struct namespace_kind *kind = &namespace_kinds[i];
        struct stat ours;
        j->fd[i] = -1;
        if (!j->request->joins_all && !(j->request->joins & kind->clone_flag))
            continue;
        bool exists = fstatat(j->proc, kind->own, &ours, 0) == 0;
        if (j->request->joins_all && !exists)
            continue; /* this kernel is built without them */
        j->fd[i] = openat(target, kind->file, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO shall not hold us up */
        if (j->fd[i] < 0 && exists && (errno == ENOENT || errno == ESRCH)) /* our kernel has the kind: then the target is gone */
            child_refuse(j->control, ENOENT, STAGE_open_ns_user, -1);
        if (j->fd[i] < 0)
            child_refuse(j->control, errno, kind->open_stage, -1);
        if (is_same(j->fd[i], j->proc, kind->own))
            close_fd(&j->fd[i]);
    }
}

/* Whether it has joined. */
static bool join(struct joining *j, size_t i, bool again) {
    if (j->fd[i] < 0)
        return false;
    if (setns(j->fd[i], (int)namespace_kinds[i].clone_flag) == 0) {
        close_fd(&j->fd[i]);
        return true;
    }
    if (errno != EPERM || !again)
        child_refuse(j->control, errno, namespace_kinds[i].join_stage, -1);
    return false;
}

/* Root inside, as nsenter(1) has it: our ids of outside mean nothing there, and the groups nothing good. Where there is no
 * root, or setgroups(2) is denied, it stays as it is; the request's own ids come later, as steps. */
static void take_ids(void) {
    (void)RAW2(setgroups, 0, NULL);
    (void)RAW3(setresgid, 0, 0, 0);
    (void)RAW3(setresuid, 0, 0, 0);
}

/* Whether a PID namespace was joined: by those whom we clone from now on. */
static bool join_all(struct joining *j) {
    enum { USER = 0, PID = NAMESPACE_COUNT - 1 };
    bool has_user = j->fd[USER] >= 0, has_pid = false;
    for (size_t i = USER + 1; i < NAMESPACE_COUNT; i++)
        has_pid |= join(j, i, has_user) && i == PID;
    if (join(j, USER, false)) {
        take_ids();
        (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); /* other ids may have made us so again (fs.suid_dumpable) */
    }
    for (size_t i = USER + 1; i < NAMESPACE_COUNT; i++)
        has_pid |= join(j, i, false) && i == PID;
    return has_pid;
}

static pid_t clone_plainly(uint64_t flags, uint64_t exit_signal, int *pidfd) {
    struct clone_request args = {.flags = flags, .pidfd = (uint64_t)(uintptr_t)pidfd, .exit_signal = exit_signal};
    return (pid_t)RAW2(clone3, &args, CLONE_REQUEST_SIZE);
}

/* The workload's first act inside: its pid there, its pidfd, the reaper's other end and the init's pidfd, for the monitor. */
static void introduce(int control, int reaper_end) {
    OWN_FD int reaper = reaper_end;
    OWN_FD int self = (int)RAW2(pidfd_open, RAW0(getpid), 0);
    struct child_message news = {CHILD_ADOPTED, 0, 0, (int32_t)RAW0(getpid)};
    (void)prctl(PR_SET_NAME, "linx-monitor", 0, 0, 0); /* like every other parked child; our forker was a reaper by name already */
    OWN_FD int init = (int)RAW2(pidfd_open, 1, 0); /* not there: everything here ends just now */
    if (self < 0 || init < 0)
        child_refuse(control, self < 0 ? -self : -init, STAGE_clone, -1);
    if (child_tell_with_fds(control, &news, (const int[]){self, reaper, init}) < 0)
        child_refuse(control, errno, STAGE_clone, -1);
}

/* Clones; the parent is a reaper from then on, with `line` to the monitor (-1: the outer one has none). Returns in the child. */
static void reap_for(const struct joining *j, int line) {
    int pidfd = -1;
    if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0)
        child_refuse(j->control, errno, STAGE_fork, -1);
    pid_t pid = clone_plainly(CLONE_PIDFD, SIGCHLD, &pidfd);
    if (pid < 0)
        child_refuse(j->control, -pid, STAGE_clone, -1);
    if (pid == 0)
        return;
    int kept[] = {line, j->proc, pidfd};
    child_close_others(kept, COUNT_OF(kept));
    reaper_run(line, j->proc, pid, pidfd);
}

/* Inside the PID namespace: both reapers, and below them the workload, in which it returns. */
static void start_workload(const struct joining *j) {
    int pair[2];
    (void)prctl(PR_SET_NAME, "linx-reaper", 0, 0, 0); /* before there is anybody who could look */
    reap_for(j, -1);
    (void)prctl(PR_SET_PDEATHSIG, SIGCONT, 0, 0, 0); /* then it is our turn, even if somebody has stopped us */
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        child_refuse(j->control, errno, STAGE_fork, -1);
    reap_for(j, pair[0]);
    (void)close(pair[0]);
    introduce(j->control, pair[1]);
}

void enter_namespaces(const struct request *request, int control) {
    struct joining j = {.request = request, .control = control};
    struct child_message news = {CHILD_JOINED, 0, 0, 0};
    j.proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (j.proc < 0)
        child_refuse(control, errno, STAGE_fork, -1);
    open_namespaces(&j);
    (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    if (join_all(&j)) {
        pid_t reaper = clone_plainly(CLONE_PARENT, 0, NULL);
        if (reaper < 0)
            child_refuse(control, -reaper, STAGE_clone, -1);
        if (reaper > 0) {
            news = (struct child_message){CHILD_STEPPED_ASIDE, 0, 0, reaper};
            child_say(control, &news);
            child_leave();
        }
        start_workload(&j);
    } else {
        child_say(control, &news);
    }
    close_fd(&j.proc);
}
