#include "reaper.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "child.h"
#include "clone.h"
#include "confine.h"
#include "frame.h"
#include "raw.h"
#include "subtree.h"

struct reaper {
    int control;
    int own_proc;        /* or -1 */
    int proc;            /* the one outside, where there is none of its own; init needs neither. Else -1: it is nothing for those
                            inside, who may come to hold its fds (confine.h) */
    int stat;            /* /proc/<workload>/stat of outside */
    pid_t workload;      /* 0: reaped */
    pid_t outside;       /* its pid outside */
    bool told, released; /* the monitor knows of its end; has seen what it wanted */
    bool killing;
    bool init; /* we are pid 1: what is below us is the whole namespace, and ends with us */
};

pid_t pid_of_pidfd(int proc, int pidfd) {
    char path[64], text[512];
    (void)snprintf(path, sizeof path, "%sself/fdinfo/%d", proc == AT_FDCWD ? "/proc/" : "", pidfd);
    if (read_small_file(proc, path, text, sizeof text) < 0)
        return 0;
    const char *line = strstr(text, "\nPid:\t");
    long pid = line != NULL ? strtol(line + 6, NULL, 10) : 0;
    return pid > 0 ? (pid_t)pid : 0;
}

/* ---- killing: by the pids of outside, which the children file has; see subtree.h for the theory -------------------- */

struct round {
    int proc, alive;
};

static void kill_one(pid_t outside, void *context) {
    struct round *r = context;
    struct process_stat stat;
    char path[32];
    (void)snprintf(path, sizeof path, "%d", (int)outside);
    if (subtree_stat(r->proc, outside, &stat) && (stat.state == 'Z' || stat.state == 'X'))
        return;
    r->alive++;
    OWN_FD int process = openat(r->proc, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (process >= 0)
        (void)RAW4(pidfd_send_signal, process, SIGKILL, NULL, 0); /* a directory of /proc does for a pidfd */
}

/* A /proc of our own PID namespace, mounted nowhere, of which nothing can be written: /proc/sys is the machine's. Where that is
 * refused, the one outside has to do. */
static int open_own_proc(void) {
    enum { CLOEXEC = 1, CREATE = 6, RDONLY = 1 }; /* FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC; FSCONFIG_CMD_CREATE; MOUNT_ATTR_RDONLY */
    OWN_FD int context = (int)RAW2(fsopen, "proc", CLOEXEC);
    if (context < 0 || RAW5(fsconfig, context, CREATE, NULL, NULL, 0) < 0)
        return -1;
    return (int)RAW3(fsmount, context, CLOEXEC, RDONLY);
}

/* How many were alive, or -1 if that cannot be told. With pids of our own it takes two calls for each of them, and otherwise
 * six, which whoever forks fast enough outruns for a while. */
static int kill_round(const struct reaper *r) {
    int dead;
    if (r->init) { /* everybody in the namespace but us; the dead count for kill(2) as well, and our own end is that of all */
        (void)RAW2(kill, -1, SIGKILL);
        return 0;
    }
    if (r->own_proc >= 0)
        return subtree_kill_in(r->own_proc, NULL, NULL, &dead);
    struct round round = {r->proc, 0};
    OWN_FD int fd = openat(r->proc, "thread-self/children", O_RDONLY | O_CLOEXEC);
    return fd >= 0 && subtree_visit(fd, kill_one, &round) ? round.alive : -1;
}

/* ---- reaping ------------------------------------------------------------------------------------------------- */

static bool has_executed(const struct reaper *r) {
    struct process_stat stat;
    return subtree_stat_of(r->stat, &stat) && stat.has_executed;
}

static void tell_of_the_end(struct reaper *r) {
    siginfo_t info = {0};
    struct reaper_news news = {0};
    /* The bare call has a fifth argument: what it used, without reaping it. */
    if (r->told || RAW5(waitid, P_PID, r->workload, &info, WEXITED | WNOHANG | WNOWAIT | __WALL, &news.usage) < 0 ||
        info.si_pid == 0)
        return;
    int core = info.si_code == CLD_DUMPED ? 0x80 : 0;
    news.status = info.si_code == CLD_EXITED ? (info.si_status & 0xff) << 8 : info.si_status | core;
    news.has_executed = info.si_code == CLD_EXITED || has_executed(r);
    (void)send_with_fd(r->control, &news, sizeof news, -1);
    r->told = true;
}

/* Reaps all who are dead; the workload not before the monitor allows it. False: there are no children left. */
static bool reap(struct reaper *r) {
    for (;;) {
        siginfo_t info = {0};
        long result = RAW5(waitid, P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT | __WALL, NULL);
        if (result < 0)
            return result != -ECHILD;
        if (info.si_pid == 0)
            return true;
        tell_of_the_end(r);
        if (info.si_pid == r->workload && !r->released)
            return true;
        if (info.si_pid == r->workload && r->init)
            _exit(0); /* our own end is that of all */
        if (info.si_pid == r->workload) {
            r->workload = 0;
            r->killing |= r->control < 0;
        }
        (void)RAW4(wait4, info.si_pid, NULL, __WALL, NULL);
    }
}

static void hear_monitor(struct reaper *r) {
    char permission;
    long got = RAW5(recvfrom, r->control, &permission, 1, MSG_DONTWAIT, NULL);
    if (got == -EAGAIN || got == -EINTR)
        return;
    r->released = true;
    r->killing |= got != 1;
}

/* All are blocked; what a mere reaper gets is not meant for it. */
static int open_signals(bool init) {
    uint64_t watched = init ? UINT64_MAX : UINT64_C(1) << (SIGCHLD - 1);
    return (int)RAW4(signalfd4, -1, &watched, sizeof watched, SFD_NONBLOCK | SFD_CLOEXEC);
}

/* What pid 1 is sent is meant for the workload. */
static void hear_signals(const struct reaper *r, int signals) {
    struct signalfd_siginfo info;
    while (RAW3(read, signals, &info, sizeof info) == (long)sizeof info)
        if (info.ssi_signo != SIGCHLD && r->workload > 0 && !r->told)
            (void)RAW2(kill, r->workload, info.ssi_signo);
}

/* Opens what it needs, and gives up what it does not. */
static struct reaper made_reaper(const struct reaper_request *q, int control, pid_t workload, int pidfd) {
    struct reaper r = {.control = control, .own_proc = -1, .proc = q->proc, .workload = workload, .init = q->init};
    char path[32];
    r.outside = pid_of_pidfd(q->proc, pidfd);
    r.told = r.released = control < 0;
    (void)snprintf(path, sizeof path, "%d/stat", (int)r.outside);
    r.stat = (int)RAW4(openat, q->proc, path, O_RDONLY | O_CLOEXEC, 0);
    if (!q->init)
        r.own_proc = open_own_proc();
    if (q->init || r.own_proc >= 0)
        close_fd(&r.proc);
    (void)RAW1(chdir, "/");
    if (q->confined)
        confine(!q->init);
    return r;
}

/* Without `control` it is the outer one of two: its child is the other one, and when that is gone it makes an end of what that
 * has left. */
static _Noreturn void run(const struct reaper_request *q, int control, pid_t workload, int pidfd) {
    int signals = open_signals(q->init), pause = ROUND_MS, pair = q->init_end;
    struct reaper r = made_reaper(q, control, workload, pidfd);
    close_fd(&pair); /* whoever waits for that may go on */
    for (;;) {
        int alive = r.killing ? kill_round(&r) : 0;
        if (alive < 0)
            (void)RAW4(pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
        if (alive > 0)
            tell_of_the_end(&r);
        else if (!reap(&r))
            _exit(0);
        struct pollfd fds[] = {{r.killing ? -1 : control, POLLIN, 0}, {signals, POLLIN, 0}};
        const long wait[] = {pause / 1000, pause % 1000 * 1000000L}; /* a struct timespec, as that call has it */
        (void)RAW5(ppoll, fds, COUNT_OF(fds), r.killing || signals < 0 ? wait : NULL, NULL, 0);
        if (r.killing && pause < ROUND_LIMIT_MS)
            pause *= 2;
        hear_signals(&r, signals);
        if (fds[0].revents)
            hear_monitor(&r);
    }
}

/* ---- starting ------------------------------------------------------------------------------------------------ */

/* What the workload's side of it needs. */
struct below {
    const struct reaper_request *request;
    int reaper[2]; /* the pair between reaper and monitor */
    int dumpable;  /* as we were */
};

/* The workload's first act: its pid as it sees it, its pidfd, the reaper's other end and the init's pidfd, for the monitor. */
static void introduce(const struct below *below) {
    int control = below->request->control, reaper = below->reaper[1];
    long own = RAW0(getpid), self = RAW2(pidfd_open, own, 0);
    long init = RAW2(pidfd_open, 1, 0); /* not there: everything here ends just now */
    struct child_message news = {CHILD_ADOPTED, 0, 0, (int32_t)own};
    /* Like every other parked child; our forker was a reaper by name already. */
    (void)RAW5(prctl, PR_SET_NAME, "linx-monitor", 0, 0, 0);
    if (self < 0 || init < 0)
        child_refuse(control, self < 0 ? -self : -init, STAGE_clone, -1);
    long told = child_tell_with_fds(control, &news, (const int[]){(int)self, reaper, (int)init}, ADOPTION_FDS);
    if (told < 0)
        child_refuse(control, -told, STAGE_clone, -1);
    const int done_with[] = {(int)self, (int)init, reaper, below->reaper[0], below->request->proc};
    for (size_t i = 0; i < COUNT_OF(done_with); i++)
        (void)RAW1(close, done_with[i]);
}

/* The workload's own memory gets its flag back: else its files in /proc, the id maps among them, would not be its own. */
static int run_below(void *context) {
    const struct below *below = context;
    if (!below->request->shares_memory)
        (void)RAW5(prctl, PR_SET_DUMPABLE, below->dumpable == 1, 0, 0, 0);
    introduce(below);
    return below->request->go_on(below->request->context);
}

static void make_net(int proc, int pair) {
    long result = RAW1(unshare, CLONE_NEWNET);
    if (result == 0)
        result = RAW4(openat, proc, "self/ns/net", O_RDONLY | O_CLOEXEC, 0);
    OWN_FD int made = result < 0 ? -1 : (int)result;
    int32_t error = result < 0 ? (int32_t)-result : 0;
    (void)send_with_fd(pair, &error, sizeof error, made);
}

static void adopt_orphans(const struct reaper_request *q) {
    long result = RAW5(prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    if (result < 0)
        child_refuse(q->control, -result, STAGE_fork, -1);
}

static _Noreturn void reap_for(const struct reaper_request *q, int control, pid_t pid, int pidfd) {
    int kept[] = {q->proc, pidfd, control, q->init_end};
    if (pid < 0)
        child_refuse(q->control, -pid, STAGE_clone, -1);
    child_close_others(kept, COUNT_OF(kept));
    if (q->makes_net)
        make_net(q->proc, q->init_end);
    run(q, control, pid, pidfd);
}

/* Nobody inside may look into us. A workload that is to share our memory sees to that itself, as soon as it has written what
 * only the dumpable may, its id maps: until then nobody is inside who would be less than we are. */
static _Noreturn void reap_workload(const struct reaper_request *q) {
    static struct below below; /* outlives this call, for the child that shares it */
    int pidfd = -1;
    below = (struct below){.request = q, .dumpable = (int)RAW5(prctl, PR_GET_DUMPABLE, 0, 0, 0, 0)};
    long result = RAW4(socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, below.reaper);
    if (result < 0)
        child_refuse(q->control, -result, STAGE_fork, -1);
    adopt_orphans(q);
    if (q->shares_memory) {
        pid_t pid = clone_sharing(CLONE_PIDFD, GRANDCHILDS_STACK, run_below, &below, &pidfd);
        reap_for(q, below.reaper[0], pid, pidfd);
    }
    (void)RAW5(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    pid_t pid = clone_copying(CLONE_PIDFD, SIGCHLD, -1, &pidfd);
    if (pid == 0)
        _exit(run_below(&below));
    reap_for(q, below.reaper[0], pid, pidfd);
}

_Noreturn void reaper_start(const struct reaper_request *q) {
    int pidfd = -1;
    (void)RAW5(prctl, PR_SET_NAME, "linx-reaper", 0, 0, 0); /* before there is anybody who could look */
    if (!q->init) { /* as pid 1 it cannot be killed from inside, and takes all with it when it is from outside */
        adopt_orphans(q);
        pid_t pid = clone_copying(CLONE_PIDFD, SIGCHLD, -1, &pidfd);
        if (pid != 0)
            reap_for(q, -1, pid, pidfd);
        (void)RAW5(prctl, PR_SET_PDEATHSIG, SIGCONT, 0, 0, 0); /* then it is our turn, even if somebody has stopped us */
    }
    reap_workload(q);
}
