/* The zygote's error policy: it loses one session, never itself.
 *
 * It keeps a copy of each session's socket until it has reaped that session's monitor. So end of file on Python's side
 * means that not even the monitor's zombie is left. Where a monitor died by force, what it had been guarding is orphaned to
 * us, a subreaper too: all of that is killed first, then `{lost, Status}` is said on the socket, then it is closed. */
#include "zygote.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "frame.h"
#include "monitor.h"
#include "raw.h"
#include "self.h"
#include "subtree.h"

struct entry {
    pid_t monitor; /* 0: reaped, but its orphans may live */
    int session;
    int status;
    uint64_t number; /* by which Python knows the session here */
};

/* What Python says on the control socket: one of these a message. */
struct order {
    uint64_t number;
    uint64_t what;
};

enum { ORDER_START = 1, ORDER_KILL = 2 };
enum { REAPER_US = 1000000 };

struct zygote {
    int control, signals;
    struct entry *entries;
    size_t count, size; /* as many as fit into `first` need no allocation, whose pages each fork would have to copy */
    struct entry first[32];
    size_t lost; /* entries whose monitor died by force */
    int64_t lost_since;
};

struct lost_round {
    const struct zygote *z;
    bool patient;
    int reapers;
};

static void send_frame(int session, const char *name, int64_t first, const char *atom) {
    struct outbox out = {.fd = session, .is_socket = true, .passenger = -1};
    struct etf_writer w = frame_begin(&out);
    etf_put_tuple(&w, atom != NULL ? 4 : 2);
    etf_put_atom(&w, name);
    etf_put_integer(&w, first);
    if (atom != NULL) {
        etf_put_atom(&w, atom);
        etf_put_integer(&w, -1);
    }
    frame_end(&out, &w, -1);
    outbox_flush(&out);
}

static void forget(struct zygote *z, size_t i) {
    close_fd(&z->entries[i].session);
    z->entries[i] = z->entries[--z->count];
}

static bool reserve(struct zygote *z) {
    if (z->count < z->size)
        return true;
    size_t size = z->size * 2;
    bool owned = z->entries != z->first;
    struct entry *larger = realloc(owned ? z->entries : NULL, size * sizeof *larger);
    if (larger == NULL)
        return false;
    if (!owned)
        memcpy(larger, z->first, sizeof z->first);
    z->entries = larger;
    z->size = size;
    return true;
}

static void start_monitor(struct zygote *z, int session, uint64_t number) {
    OWN_FD int owned = session;
    /* The bare call: libc's fork(3) would prepare for threads that are not there, and dirty pages that we share. */
    pid_t pid = reserve(z) ? (pid_t)RAW5(clone, SIGCHLD, 0, 0, 0, 0) : -ENOMEM;
    if (pid < 0) {
        send_frame(session, "error", -pid, stage_names[STAGE_fork]);
        return;
    }
    if (pid == 0) {
        (void)prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        (void)prctl(PR_SET_NAME, "linx-spare", 0, 0, 0); /* until it has a request */
        close_fd(&z->control);
        for (size_t i = 0; i < z->count; i++)
            close_fd(&z->entries[i].session);
        _exit(monitor_run(session, session, z->signals, false));
    }
    z->entries[z->count++] = (struct entry){pid, steal_fd(&owned), 0, number};
}

/* Somebody has stopped this monitor, and it does nothing of what it is told: the way of the lost ones is left. */
static void kill_monitor(const struct zygote *z, uint64_t number) {
    for (size_t i = 0; i < z->count; i++)
        if (z->entries[i].number == number && z->entries[i].monitor > 0)
            (void)kill(z->entries[i].monitor, SIGKILL);
}

/* Takes all the orders that wait. False at the end of file. */
static bool hear_python(struct zygote *z) {
    for (;;) {
        struct order order = {0, 0};
        int fds[4];
        size_t fd_count = 0;
        bool lost = false; /* then its far side is closed, unread, which tells */
        ssize_t got = receive_with_fds(z->control, &order, sizeof order, fds, COUNT_OF(fds), &fd_count, &lost);
        if (got < 0 && errno == EAGAIN)
            return true;
        if (got <= 0)
            return false;
        if (order.what == ORDER_KILL)
            kill_monitor(z, order.number);
        for (size_t i = 0; i < fd_count; i++) {
            if (i == 0 && order.what == ORDER_START)
                start_monitor(z, fds[i], order.number);
            else
                close_fd(&fds[i]);
        }
    }
}

static void monitor_ended(struct zygote *z, size_t i, int status) {
    if (status == 0) {
        forget(z, i);
        return;
    }
    z->entries[i].monitor = 0;
    z->entries[i].status = WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
    z->lost++;
    z->lost_since = now_us();
}

static size_t entry_of(const struct zygote *z, pid_t pid) {
    size_t i = 0;
    while (i < z->count && z->entries[i].monitor != pid)
        i++;
    return i;
}

/* One that died waiting for a request had nothing to guard. So there is nothing to be said: who had just sent it one learns
 * from ECONNRESET that nobody has read it, and may ask another. */
static bool was_waiting(pid_t monitor) {
    char path[32], name[16];
    (void)snprintf(path, sizeof path, "/proc/%d/comm", (int)monitor);
    return read_small_file(AT_FDCWD, path, name, sizeof name) > 0 && strcmp(name, "linx-spare\n") == 0;
}

/* One of those who are dead: any child, or that one. False: there is none. */
static bool reap_one(struct zygote *z, idtype_t which, pid_t pid) {
    siginfo_t info = {0};
    int status;
    if (waitid(which, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT | __WALL) < 0 || info.si_pid == 0)
        return false;
    size_t i = entry_of(z, info.si_pid);
    bool waiting = i < z->count && info.si_code != CLD_EXITED && was_waiting(info.si_pid);
    (void)wait4(info.si_pid, &status, __WALL, NULL);
    if (i < z->count)
        monitor_ended(z, i, waiting ? 0 : status);
    return true;
}

static void reap_all(struct zygote *z) {
    while (reap_one(z, P_ALL, 0))
        ;
}

static void reap_monitors(struct zygote *z) {
    for (size_t i = z->count; i-- > 0;)
        if (z->entries[i].monitor > 0)
            (void)reap_one(z, P_PID, z->entries[i].monitor);
}

/* Monitors are spared; and a lost one's reaper, which clears up by itself what only it can reach (reaper.h); when
 * its time is over, until we have done that. */
static bool is_spared(pid_t pid, void *context) {
    struct lost_round *round = context;
    if (entry_of(round->z, pid) < round->z->count)
        return true;
    if (subtree_is_dead(pid) || !subtree_is_nested(pid) || (!round->patient && subtree_kill_below(pid) <= 0))
        return false;
    (void)kill(pid, SIGCONT);
    round->reapers++;
    return true;
}

/* Kills what the lost sessions left to us. When a round meets nobody but monitors, they are at their end. */
static void clear_lost(struct zygote *z) {
    size_t lost = z->lost;
    struct lost_round round = {z, now_us() < z->lost_since + REAPER_US, 0};
    int dead = 0, alive = subtree_kill(is_spared, &round, &dead);
    if (alive > 0 || round.reapers > 0) { /* the others' dead have to wait: see subtree.h */
        reap_monitors(z);
        return;
    }
    reap_all(z);
    if (dead > 0 || z->lost > lost) /* a monitor lost since: this round has not seen its orphans */
        return;
    for (size_t i = z->count; i-- > 0;) {
        if (z->entries[i].monitor != 0)
            continue;
        send_frame(z->entries[i].session, "lost", z->entries[i].status, NULL);
        forget(z, i);
        z->lost--;
    }
}

int zygote_run(int control, int signals) {
    static struct zygote z;
    z = (struct zygote){.control = control, .signals = signals, .size = COUNT_OF(z.first)};
    z.entries = z.first;
    (void)prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    (void)prctl(PR_SET_NAME, "linx-zygote", 0, 0, 0);
    self_note();
    (void)now_us(); /* libc looks for the vDSO's clock the first time: once for all monitors, not in each */
    while (z.control >= 0 || z.count > 0) {
        struct pollfd fds[] = {{z.control, POLLIN, 0}, {z.signals, POLLIN, 0}};
        if (poll(fds, COUNT_OF(fds), z.lost > 0 ? 1 : -1) < 0)
            continue;
        if (fds[1].revents) {
            subtree_drain(z.signals);
            if (z.lost == 0) /* else clear_lost decides when the dead may go */
                reap_all(&z);
        }
        if (fds[0].revents && !hear_python(&z))
            close_fd(&z.control);
        if (z.lost > 0)
            clear_lost(&z);
    }
    return 0;
}
