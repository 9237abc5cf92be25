#include "reaper.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "raw.h"
#include "subtree.h"

#ifndef SYS_fsopen
#define SYS_fsopen 430
#define SYS_fsconfig 431
#define SYS_fsmount 432
#endif

struct reaper {
    int control, proc;
    int own_proc;        /* or -1 */
    pid_t workload;      /* 0: reaped */
    pid_t outside;       /* its pid outside */
    bool told, released; /* the monitor knows of its end; has seen what it wanted */
    bool killing;
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

/* A /proc of our own PID namespace, mounted nowhere. Where that is refused, the one outside has to do. */
static int open_own_proc(void) {
    enum { CLOEXEC = 1, CREATE = 6 }; /* FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC; FSCONFIG_CMD_CREATE */
    OWN_FD int context = (int)RAW2(fsopen, "proc", CLOEXEC);
    if (context < 0 || RAW5(fsconfig, context, CREATE, NULL, NULL, 0) < 0)
        return -1;
    return (int)RAW3(fsmount, context, CLOEXEC, 0);
}

/* How many were alive, or -1 if that cannot be told. With pids of our own it takes two calls for each of them, and otherwise
 * six, which whoever forks fast enough outruns for a while. */
static int kill_round(const struct reaper *r) {
    int dead;
    if (r->own_proc >= 0)
        return subtree_kill_in(r->own_proc, NULL, NULL, &dead);
    struct round round = {r->proc, 0};
    OWN_FD int fd = openat(r->proc, "thread-self/children", O_RDONLY | O_CLOEXEC);
    return fd >= 0 && subtree_visit(fd, kill_one, &round) ? round.alive : -1;
}

/* ---- reaping ------------------------------------------------------------------------------------------------- */

static void tell_of_the_end(struct reaper *r) {
    siginfo_t info = {0};
    struct reaper_news news = {0};
    struct process_stat stat = {0};
    /* The bare call has a fifth argument: what it used, without reaping it. */
    if (r->told || RAW5(waitid, P_PID, r->workload, &info, WEXITED | WNOHANG | WNOWAIT | __WALL, &news.usage) < 0 ||
        info.si_pid == 0)
        return;
    int core = info.si_code == CLD_DUMPED ? 0x80 : 0;
    news.status = info.si_code == CLD_EXITED ? (info.si_status & 0xff) << 8 : info.si_status | core;
    news.has_executed = info.si_code == CLD_EXITED || (subtree_stat(r->proc, r->outside, &stat) && stat.has_executed);
    (void)send(r->control, &news, sizeof news, MSG_DONTWAIT | MSG_NOSIGNAL);
    r->told = true;
}

/* Reaps all who are dead; the workload not before the monitor allows it. False: there are no children left. */
static bool reap(struct reaper *r) {
    for (;;) {
        siginfo_t info = {0};
        if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT | __WALL) < 0)
            return errno != ECHILD;
        if (info.si_pid == 0)
            return true;
        tell_of_the_end(r);
        if (info.si_pid == r->workload && !r->released)
            return true;
        if (info.si_pid == r->workload) {
            r->workload = 0;
            r->killing |= r->control < 0;
        }
        (void)waitpid(info.si_pid, NULL, __WALL);
    }
}

static void hear_monitor(struct reaper *r) {
    char permission;
    ssize_t got = recv(r->control, &permission, 1, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    r->released = true;
    r->killing |= got != 1;
}

_Noreturn void reaper_run(int control, int proc, pid_t workload, int pidfd) {
    struct reaper r = {.control = control, .proc = proc, .workload = workload, .outside = pid_of_pidfd(proc, pidfd)};
    r.own_proc = open_own_proc();
    r.told = r.released = control < 0;
    int signals = subtree_watch(), pause = ROUND_MS;
    for (;;) {
        int alive = r.killing ? kill_round(&r) : 0;
        if (alive < 0)
            (void)RAW4(pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
        if (alive > 0)
            tell_of_the_end(&r);
        else if (!reap(&r))
            _exit(0);
        struct pollfd fds[] = {{r.killing ? -1 : control, POLLIN, 0}, {signals, POLLIN, 0}};
        (void)poll(fds, COUNT_OF(fds), r.killing || signals < 0 ? pause : -1);
        if (r.killing && pause < ROUND_LIMIT_MS)
            pause *= 2;
        subtree_drain(signals);
        if (fds[0].revents)
            hear_monitor(&r);
    }
}
