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
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include "child.h"
#include "clone.h"
#include "namespaces.h"
#include "raw.h"

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

int enter_namespaces(const struct request *request, int control, going_on *go_on, const void *context) {
    struct joining j = {.request = request, .control = control};
    struct child_message news = {CHILD_JOINED, 0, 0, 0};
    j.proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (j.proc < 0)
        child_refuse(control, errno, STAGE_fork, -1);
    open_namespaces(&j);
    (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    if (join_all(&j)) {
        pid_t reaper = clone_copying(CLONE_PARENT, 0, -1, NULL);
        if (reaper < 0)
            child_refuse(control, -reaper, STAGE_clone, -1);
        if (reaper > 0) {
            news = (struct child_message){CHILD_STEPPED_ASIDE, 0, 0, reaper};
            child_say(control, &news);
            child_leave();
        }
        reaper_start(&(struct reaper_request){.control = control, .proc = j.proc, .confined = true, .init_end = -1, .go_on = go_on, .context = context});
    }
    child_say(control, &news);
    close_fd(&j.proc);
    return go_on(context);
}
