/* The monitor's error policy: it never exits while something of its session lives, and it blocks on nothing but the one
 * poll(2) of monitor_run, in every phase: sockets are non-blocking, waits are WNOHANG, and what may hang (a set-up step, an
 * execve on a dead file server) happens in the child.
 *
 *   AWAITING ──request──▶ REQUESTED ──clone3──▶ SETTING_UP ──parked──▶ PARKED ──proceed──▶ EXECUTING ──▶ RUNNING ──▶ ENDED
 *
 * Three ways lead out, from any phase: the workload ends by itself; Python says `kill` or `shutdown`; or the socket is at
 * its end, which means that Python is gone, and the orphan policy rules. All three end in `killing`, the rounds of
 * subtree.h, until wait4(2) says that there are no children left. Then the monitor exits; or, after a workload that has run
 * and with Python still there, it says `idle`, and is as it was before: AWAITING the next request.
 *
 * A session that enters the namespaces of another process starts with a child that joins them (enter.c). It becomes the
 * workload itself, or, where a PID namespace is joined, it leaves us a reaper with the workload below it (reaper.h). Then
 * the workload is no child of ours: what wait4(2) would say of it the reaper says, and signals go by pidfd. */
#include "monitor.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "cgroup.h"
#include "child.h"
#include "keeper.h"
#include "raw.h"
#include "reaper.h"
#include "seal.h"
#include "subtree.h"

enum phase { AWAITING, REQUESTED, SETTING_UP, PARKED, EXECUTING, RUNNING, ENDED };
enum whether { NO, YES, ASK_PROC, ASK_REAPER };
enum wish { WISH_NOTHING, WISH_PROCEED, WISH_ABORT }; /* said before the checkpoint; the first one counts */

enum {
    HOLD_US = 3000,       /* the first events travel together if they are that close: one wake-up for all */
    EXIT_LOST = 70,       /* told to Python by the zygote */
    CGROUP_US = 5000000,  /* how long the session's own cgroup may take to become empty */
    KEPT_INBOX_SIZE = 64 << 10, /* after a larger request the monitor goes, and its memory with it */
    REAPER_US = 2000000,  /* how long a reaper may take to clear up before we do its work, and then kill it too */
};

struct monitor {
    struct inbox in;
    struct outbox out;
    struct request request;
    bool port;
    bool spare;  /* waits for a session that is to come */
    bool served; /* has had one already: of that one, Python may have said more than there was to hear */
    bool ran, idle, init;
    enum whether executed;
    int dumpable; /* PR_GET_DUMPABLE, as it has always been */
    int signals, control; /* signalfd; our end of the child's pair */
    enum phase phase;
    enum wish wish;
    pid_t leader;         /* unreaped as long as it is not 0, so that its number is safe to signal */
    int64_t child_pid;    /* the leader's pid as it sees itself */
    pid_t starter;        /* whom we have cloned: the leader, or who brings it into other namespaces */
    int starter_pidfd;
    pid_t reaper;         /* the leader's parent, where that is not us */
    pid_t early;          /* a reaper that we have reaped before the starter could say which it is */
    int reaper_control, leader_pidfd; /* with a reaper */
    int init_pidfd;                   /* that of its PID namespace */
    bool cleared;         /* nothing lives below the reaper any more */
    bool lost;            /* somebody has killed the reaper: what was below it may have got away */
    uint8_t *kept_signals;
    size_t kept_count, kept_size;
    bool refused, aborting, gone, childless, may_have_reaper;
    struct child_message refusal;
    bool linger;
    bool quiet;
    int64_t orphan_grace_us, granted_at, hold_until;
    bool killing;
    int64_t kill_at;      /* when the grace is over; 0: none is running */
    int64_t killing_since;
    int round_ms;
    int cgroup, cgroup_parent; /* the session's own, which we remove; or -1 */
    char cgroup_name[NAME_MAX + 1];
    bool released;             /* Python has read what it wants of it */
    int64_t removing_since;
};

/* ---- events -------------------------------------------------------------------------------------------------- */

const char *const monitor_events[] = {"spawned", "ready", "opened", "stepped",  "running", "exited", "signaled", "aborted",
                                      "idle",    "error",   "remains", "degraded", "usage",   "lost",   NULL};

static void emit_status(struct monitor *m, const char *name, const int64_t *argument, int passenger) {
    struct etf_writer w = frame_begin(&m->out);
    etf_put_tuple(&w, argument != NULL ? 3 : 2);
    etf_put_atom(&w, "status");
    etf_put_atom(&w, name);
    if (argument != NULL)
        etf_put_integer(&w, *argument);
    frame_end(&m->out, &w, passenger);
}

/* A port's error is a triple; a session's also says which step it was. */
static void emit_refusal(struct monitor *m, const char *name, const struct child_message *news) {
    struct etf_writer w = frame_begin(&m->out);
    etf_put_tuple(&w, m->port ? 3 : 4);
    etf_put_atom(&w, name);
    etf_put_integer(&w, news->error);
    etf_put_atom(&w, stage_names[news->stage]);
    if (!m->port)
        etf_put_integer(&w, news->index);
    frame_end(&m->out, &w, -1);
}

static int64_t microseconds(struct timeval t) { return (int64_t)t.tv_sec * 1000000 + t.tv_usec; }

static void emit_usage(struct monitor *m, int status, const struct rusage *usage, bool ran) {
    struct etf_writer w = frame_begin(&m->out);
    etf_put_tuple(&w, 6);
    etf_put_atom(&w, "usage");
    etf_put_integer(&w, microseconds(usage->ru_utime));
    etf_put_integer(&w, microseconds(usage->ru_stime));
    etf_put_integer(&w, ran ? now_us() - m->granted_at : 0);
    etf_put_integer(&w, (int64_t)usage->ru_maxrss * 1024);
    etf_put_atom(&w, WIFSIGNALED(status) && WCOREDUMP(status) ? "true" : "false");
    frame_end(&m->out, &w, -1);
}

static void emit_error(struct monitor *m, int error, enum stage stage, int index) {
    struct child_message news = {CHILD_REFUSED, error, (int32_t)stage, index};
    emit_refusal(m, "error", &news);
}

/* The session failed before there was a child. */
static void fail_at(struct monitor *m, int error, enum stage stage, int index) {
    emit_error(m, error, stage, index);
    m->phase = ENDED;
    m->childless = true;
}

static void fail(struct monitor *m, int error, enum stage stage) { fail_at(m, error, stage, -1); }

/* ---- ending it ----------------------------------------------------------------------------------------------- */

static void signal_leader(const struct monitor *m, int number) {
    if (m->leader_pidfd >= 0)
        (void)RAW4(pidfd_send_signal, m->leader_pidfd, number, NULL, 0);
    else if (m->leader > 0)
        (void)kill(m->leader, number);
}

/* A reaper is in the cgroup as well, and has still to say how the leader has ended. */
static bool may_kill_cgroup(const struct monitor *m) {
    return m->cgroup >= 0 && !m->may_have_reaper && m->reaper == 0;
}

static void kill_all(struct monitor *m) {
    m->kill_at = 0;
    if (!m->killing) {
        if (may_kill_cgroup(m))
            (void)cgroup_kill(m->cgroup);
        m->round_ms = ROUND_MS;
        m->killing_since = now_us();
        if (m->reaper_control >= 0) /* it can still say how the leader has ended */
            (void)shutdown(m->reaper_control, SHUT_WR);
    }
    m->killing = true;
}

static void abort_now(struct monitor *m) {
    m->aborting = true;
    close_fd(&m->control);
    kill_all(m);
}

/* SIGTERM, wait, SIGKILL. A stopped workload could not react, so it is woken. */
static void end_gracefully(struct monitor *m, int64_t grace_us) {
    if (m->phase < EXECUTING) {
        abort_now(m);
    } else if (m->phase == ENDED || grace_us <= 0) {
        kill_all(m);
    } else if (!m->killing) {
        int64_t at = now_us() + grace_us;
        signal_leader(m, SIGTERM);
        signal_leader(m, SIGCONT);
        m->kill_at = m->kill_at > 0 && m->kill_at < at ? m->kill_at : at;
    }
}

static void python_is_gone(struct monitor *m) {
    m->gone = true;
    if (m->phase < SETTING_UP)
        m->phase = ENDED, m->childless = true;
    else if (!m->linger || m->phase < EXECUTING)
        end_gracefully(m, m->orphan_grace_us);
}

/* ---- the child ----------------------------------------------------------------------------------------------- */

static void grant(struct monitor *m) {
    char go = CHILD_GO;
    (void)send(m->control, &go, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    m->phase = EXECUTING;
    m->granted_at = now_us();
}

static void child_parked(struct monitor *m) {
    if (m->leader == 0)
        return; /* it was dead before we got to know it, and had said this before */
    emit_status(m, "ready", &m->child_pid, -1);
    if (m->phase == EXECUTING) /* auto_proceed */
        return;
    m->phase = PARKED;
    m->hold_until = 0;
    if (m->wish == WISH_ABORT)
        abort_now(m);
    else if (m->wish == WISH_PROCEED)
        grant(m);
}

static void workload_runs(struct monitor *m) {
    m->phase = RUNNING;
    m->ran = true;
    m->hold_until = m->quiet ? m->hold_until : 0;
    emit_status(m, "running", NULL, -1);
    for (size_t i = 0; i < m->kept_count; i++)
        signal_leader(m, m->kept_signals[i]);
    m->kept_count = 0;
}

/* The leader is there. Consumes the pidfd. */
static void leader_known(struct monitor *m, pid_t pid, int pidfd, int64_t child_pid) {
    int64_t host_pid = pid;
    m->leader = pid;
    m->child_pid = child_pid;
    if (m->port)
        close_fd(&pidfd);
    emit_status(m, "spawned", &host_pid, pidfd);
}

static void permit_reaping(const struct monitor *m) {
    char permission = 'r';
    (void)send(m->reaper_control, &permission, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void leader_adopted(struct monitor *m, int64_t child_pid, int fds[ADOPTION_FDS]) {
    OWN_FD int pidfd = steal_fd(&fds[0]), reaper = steal_fd(&fds[1]), init = steal_fd(&fds[2]);
    pid_t pid = pidfd >= 0 ? pid_of_pidfd(AT_FDCWD, pidfd) : 0;
    if (pid == 0 || reaper < 0) { /* it is dead already, or there was no room for the fds: then the reaper ends, and so do we */
        kill_all(m);
        return;
    }
    m->reaper_control = steal_fd(&reaper);
    m->init_pidfd = steal_fd(&init);
    m->leader_pidfd = fcntl(pidfd, F_DUPFD_CLOEXEC, 0);
    if (m->init) /* from now on it may go as soon as the workload has ended */
        permit_reaping(m);
    leader_known(m, pid, steal_fd(&pidfd), child_pid);
    if (m->killing)
        (void)shutdown(m->reaper_control, SHUT_WR);
}

static void obey_child(struct monitor *m, const struct child_message *news, int fds[ADOPTION_FDS]) {
    switch ((enum child_news)news->news) {
    case CHILD_PARKED:
        child_parked(m);
        break;
    case CHILD_DEGRADED:
        if (!m->port)
            emit_refusal(m, "degraded", news);
        break;
    case CHILD_OPENED:
        if (fds[0] >= 0) /* else there was no room for it: Python misses it */
            emit_status(m, "opened", NULL, steal_fd(&fds[0]));
        break;
    case CHILD_DONE:
        emit_status(m, "stepped", NULL, -1);
        break;
    case CHILD_REMAINS:
        emit_refusal(m, "remains", news);
        break;
    case CHILD_REFUSED:
        m->refused = true;
        m->refusal = *news;
        break;
    case CHILD_JOINED:
        m->may_have_reaper = false; /* there will be no reaper */
        leader_known(m, m->starter, steal_fd(&m->starter_pidfd), m->starter);
        break;
    case CHILD_STEPPED_ASIDE:
        m->reaper = news->index;
        break;
    case CHILD_ADOPTED:
        leader_adopted(m, news->index, fds);
        break;
    }
}

static enum whether leader_has_executed(const struct monitor *m) {
    struct process_stat stat;
    if (subtree_stat(AT_FDCWD, m->leader, &stat))
        return stat.has_executed ? YES : NO;
    if (m->reaper > 0) /* it may be dead and gone by now */
        return ASK_REAPER;
    return m->leader_pidfd < 0 && !subtree_is_dead(m->leader) ? YES : NO; /* hidepid (proc(5)): being alive has to do */
}

/* All that the child had to say. End of file means executed or dead. A child that `has_executed` for sure has exited by
 * itself without a word, which only a program does; of others /proc knows. */
static void hear_child(struct monitor *m, enum whether has_executed) {
    while (m->control >= 0) {
        struct child_message news;
        int fds[ADOPTION_FDS] = {-1, -1, -1};
        size_t fd_count = 0;
        bool lost = false; /* leader_adopted sees it */
        ssize_t got = receive_with_fds(m->control, &news, sizeof news, fds, COUNT_OF(fds), &fd_count, &lost);
        /* A child that has ended without reading its permission leaves ECONNRESET, once, before what it has said. */
        if (got < 0 && (errno == EINTR || errno == ECONNRESET))
            continue;
        if (got < 0 && errno == EAGAIN && has_executed == ASK_PROC)
            return; /* else it is dead, and has said all: a starter or a reaper on its way out holds the far end as well */
        if (got == (ssize_t)sizeof news) {
            obey_child(m, &news, fds);
            continue;
        }
        close_fd(&m->control);
        request_free(&m->request); /* the child has executed, or is dead */
        if (m->phase >= EXECUTING && !m->refused && !m->aborting && m->leader > 0)
            m->executed = has_executed == ASK_PROC ? leader_has_executed(m) : has_executed;
        if (m->executed == YES)
            workload_runs(m);
        return;
    }
}

static void leader_ended(struct monitor *m, int status, const struct rusage *usage) {
    int64_t code = WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
    bool ran = m->phase == RUNNING;
    bool known = m->leader > 0;
    m->leader = 0;
    m->phase = ENDED;
    m->hold_until = m->quiet && m->init && m->reaper > 0 ? now_us() + HOLD_US : 0; /* pid 1 is about to go, too */
    close_fd(&m->control);
    close_fd(&m->leader_pidfd);
    close_fd(&m->init_pidfd);
    if (m->aborting || (m->killing && !known && !m->refused)) {
        emit_status(m, "aborted", &m->child_pid, -1);
    } else if (m->refused) {
        emit_refusal(m, "error", &m->refusal);
    } else if (!known) { /* killed on its way into the namespaces */
        emit_error(m, ESRCH, STAGE_clone, -1);
    } else if (!ran && !WIFSIGNALED(status)) { /* it saw end of file where we are alive: nobody can explain that */
        emit_error(m, EPROTO, STAGE_execve, -1);
    } else {
        if (!m->port)
            emit_usage(m, status, usage, ran);
        emit_status(m, WIFSIGNALED(status) ? "signaled" : "exited", &code, -1);
    }
    if (m->port || m->kill_at > 0 || (m->gone && !m->linger))
        kill_all(m);
}

/* How the leader has ended, by its reaper; it stays a zombie until we permit its reaping, unless that is pid 1. */
static void hear_reaper(struct monitor *m) {
    struct reaper_news news;
    ssize_t got = m->reaper_control < 0 ? -1 : recv(m->reaper_control, &news, sizeof news, MSG_DONTWAIT);
    if (got == 0)
        close_fd(&m->reaper_control); /* it has ended */
    if (got != (ssize_t)sizeof news || m->leader == 0)
        return;
    hear_child(m, news.has_executed ? YES : NO);
    if (m->executed == ASK_REAPER && news.has_executed)
        workload_runs(m);
    if (m->aborting) /* whoever aborts is told when it has been reaped: reaper_ended */
        return;
    leader_ended(m, news.status, &news.usage);
    if (!m->init)
        permit_reaping(m);
}

/* Whether the whole PID namespace that was joined is ending: SIGKILL to all of it is the kernel's own. Its init stays a
 * process until the last one is reaped, the reaper among them. */
static bool namespace_ends(const struct monitor *m) {
    struct process_stat stat;
    struct pollfd ended = {m->init_pidfd, POLLIN, 0};
    if (m->init_pidfd < 0)
        return false;
    if (poll(&ended, 1, 0) == 1)
        return true;
    pid_t init = pid_of_pidfd(AT_FDCWD, m->init_pidfd);
    return init > 0 && subtree_stat(AT_FDCWD, init, &stat) && stat.exiting;
}

/* It ends after its last child, and before that only by force. What it has said last is still there to be heard. */
static void reaper_ended(struct monitor *m, bool all, const struct rusage *usage) {
    hear_child(m, ASK_PROC);
    hear_reaper(m);
    m->reaper = 0;
    all |= m->leader == 0; /* it had not come to cloning it */
    if (m->phase == ENDED || m->aborting || m->refused || all)
        close_fd(&m->reaper_control);
    if (m->phase == ENDED)
        return;
    if (m->aborting || m->refused || all) { /* ended before it could say anything */
        leader_ended(m, SIGKILL, usage);
        return;
    }
    signal_leader(m, SIGKILL);
    close_fd(&m->control);
    m->lost = true;
    m->phase = ENDED;
    kill_all(m); /* the inner one hears of it, if it is the one who lives */
}

/* Reaps a child that is dead. What the leader said last is heard, and /proc asked about it, while it is still a zombie. The
 * reaper may be dead before the starter has come to say which it is: that is its end too, when the starter has ended. */
static void reap_one(struct monitor *m, pid_t pid, bool exited) {
    int status;
    struct rusage usage;
    bool stranger = m->may_have_reaper && m->reaper == 0 && pid != m->leader && pid != m->starter;
    if (pid == m->leader || pid == m->starter || stranger)
        hear_child(m, exited && pid == m->leader ? YES : ASK_PROC);
    /* One that exits has nothing left below it. And nobody gets away from a cgroup: it is not left before it is empty. */
    bool all = pid == m->reaper && (m->cleared || (m->killing && exited) || namespace_ends(m) ||
                                    (m->cgroup >= 0 && cgroup_kill(m->cgroup)));
    if (wait4(pid, &status, __WALL, &usage) != pid)
        return;
    if (pid == m->reaper)
        reaper_ended(m, all, &usage);
    else if (pid == m->leader || (pid == m->starter && m->reaper == 0 && m->phase != ENDED))
        leader_ended(m, status, &usage);
    if (stranger && m->reaper == 0)
        m->early = pid;
    if (pid == m->starter) {
        m->starter = 0;
        if (m->reaper > 0 && m->reaper == m->early)
            reaper_ended(m, namespace_ends(m), &usage);
    }
}

static void reap_all(struct monitor *m) {
    for (;;) {
        siginfo_t info = {0};
        if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT | __WALL) < 0) {
            m->childless |= errno == ECHILD;
            return;
        }
        if (info.si_pid == 0)
            return;
        reap_one(m, info.si_pid, info.si_code == CLD_EXITED);
    }
}

/* ---- the request --------------------------------------------------------------------------------------------- */

/* The caller's directory must be ours when the child is cloned: then a new mount namespace translates it for the child. We
 * do not stay there, lest we keep a file system busy. */
static bool enter_cwd(const struct request *q) {
    for (size_t i = 0; i < q->fd_count; i++)
        if (q->fds[i].target == FD_CWD)
            return fchdir(q->fds[i].source) == 0;
    return true;
}

/* What clone3(2) says of CLONE_INTO_CGROUP alone. */
static bool is_about_cgroups(const struct request *q, int error) {
    return request_fd(q, FD_CGROUP) >= 0 && (error == EACCES || error == EBUSY || error == ENODEV || error == EOPNOTSUPP ||
                                             error == EBADF || error == ENOENT);
}

static void start_child(struct monitor *m) {
    struct request *q = &m->request;
    int pair[2], pidfd = -1, number;
    if (q->enters && !is_sealed) {
        fail(m, ENOSYS, STAGE_request);
        return;
    }
    if (q->target_error != 0) {
        fail(m, q->target_error, STAGE_open_ns_user);
        return;
    }
    if (!request_open_nulls(q, &number)) {
        fail_at(m, errno, STAGE_stdio, number);
        return;
    }
    if (!enter_cwd(q)) {
        fail(m, errno, STAGE_chdir);
        return;
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
        fail(m, errno, STAGE_fork);
        return;
    }
    OWN_FD int child_end = pair[1];
    m->control = pair[0];
    q->auto_proceed &= m->wish != WISH_ABORT;
    if (q->auto_proceed)
        grant(m);
    pid_t pid = child_start(q, child_end, &pidfd);
    (void)!chdir("/");
    if (pid < 0) {
        fail(m, -pid, is_about_cgroups(q, -pid) ? STAGE_cgroup : STAGE_clone);
        return;
    }
    m->childless = false; /* it may have been said of a former session's, once more */
    m->starter = pid;
    m->starter_pidfd = pidfd;
    request_close_fds(q);
    m->phase = q->auto_proceed ? EXECUTING : SETTING_UP;
    m->hold_until = now_us() + HOLD_US;
    m->quiet = q->quiet;
    m->init = q->init;
    m->reaper = q->init ? pid : 0; /* to tell us would only take a CPU from the workload, which is just being cloned */
    m->may_have_reaper = q->enters || q->init;
    if (!m->may_have_reaper)
        leader_known(m, pid, steal_fd(&m->starter_pidfd), q->namespaces & CLONE_NEWPID ? 1 : pid);
}

static void adopt_cgroup(struct monitor *m) {
    if (m->request.own_cgroup == NULL)
        return;
    m->cgroup = fcntl(request_fd(&m->request, FD_CGROUP), F_DUPFD_CLOEXEC, 0);
    m->cgroup_parent = fcntl(request_fd(&m->request, FD_CGROUP_PARENT), F_DUPFD_CLOEXEC, 0);
    memcpy(m->cgroup_name, m->request.own_cgroup, strlen(m->request.own_cgroup) + 1);
}

static void take_request(struct monitor *m, struct etf_slice payload) {
    if (!m->port && keeper_wanted(payload)) {
        keeper_run(&m->in, payload);
        m->phase = ENDED;
        m->childless = true;
        return;
    }
    if (!request_parse(&m->request, payload, &m->in, m->port)) {
        fail(m, errno, STAGE_request);
        return;
    }
    adopt_cgroup(m);
    m->phase = REQUESTED;
    m->linger = m->request.linger && !m->port;
    m->orphan_grace_us = m->port ? 0 : m->request.orphan_grace_us;
}

/* ---- commands ------------------------------------------------------------------------------------------------ */

static void command_proceed(struct monitor *m, int64_t unused) {
    (void)unused;
    if (m->phase == PARKED && !m->aborting)
        grant(m);
    else if (m->phase < PARKED && m->wish == WISH_NOTHING)
        m->wish = WISH_PROCEED;
}

static void command_abort(struct monitor *m, int64_t unused) {
    (void)unused;
    if (m->phase == PARKED)
        abort_now(m);
    else if (m->phase < PARKED && m->wish == WISH_NOTHING)
        m->wish = WISH_ABORT;
}

static void command_signal(struct monitor *m, int64_t number) {
    if (number < 1 || number > 64)
        return;
    if (m->phase == RUNNING) {
        signal_leader(m, (int)number);
        return;
    }
    if (m->phase == ENDED)
        return;
    if (m->kept_count == m->kept_size) {
        size_t size = m->kept_size * 2 + 32;
        uint8_t *larger = realloc(m->kept_signals, size);
        if (larger == NULL)
            return;
        m->kept_signals = larger;
        m->kept_size = size;
    }
    m->kept_signals[m->kept_count++] = (uint8_t)number;
}

static void command_kill(struct monitor *m, int64_t unused) {
    (void)unused;
    if (m->phase < EXECUTING)
        abort_now(m);
    else
        kill_all(m);
}

static void command_shutdown(struct monitor *m, int64_t grace_ms) {
    end_gracefully(m, grace_ms < UINT32_MAX ? grace_ms < 0 ? 0 : grace_ms * 1000 : UINT32_MAX * INT64_C(1000));
}

static void command_release(struct monitor *m, int64_t unused) {
    (void)unused;
    m->released = true;
}

static const struct command {
    const char *name;
    bool argument;
    bool port; /* also a port's */
    void (*run)(struct monitor *m, int64_t argument);
} commands[] = {
    {"proceed", false, true, command_proceed}, {"abort", false, true, command_abort},
    {"signal", true, true, command_signal},    {"kill", false, false, command_kill},
    {"shutdown", true, false, command_shutdown}, {"release", false, false, command_release},
};

const char *const monitor_commands[] = {"proceed", "abort", "signal", "kill", "shutdown", "steps", "release", NULL};

/* A batch for the parked child, which parses it itself: through a file, since it may be longer than a message can be. */
static void forward_steps(struct monitor *m, struct etf_slice payload) {
    char what = CHILD_STEPS;
    OWN_FD int file = memfd_create("linx-steps", MFD_CLOEXEC);
    bool written = file >= 0 && write(file, payload.data, payload.length) == (ssize_t)payload.length;
    if (!written || send_with_fd(m->control, &what, 1, file) != 1) {
        if (written && (errno == EPIPE || errno == ECONNRESET))
            return; /* it is dead, and that is what we shall hear of next */
        struct child_message news = {CHILD_REMAINS, errno, STAGE_request, -1};
        emit_refusal(m, "remains", &news);
    }
}

static bool is_steps(struct etf_slice payload) {
    struct etf_reader r = etf_open(payload.data, payload.length);
    return etf_peek(&r) == ETF_TUPLE && etf_tuple(&r) == 2 && slice_is(etf_atom(&r), "steps");
}

/* An atom, or `{atom, Integer}`. */
static const struct command *command_of(bool port, struct etf_slice payload, int64_t *value) {
    struct etf_reader r = etf_open(payload.data, payload.length);
    bool argument = etf_peek(&r) == ETF_TUPLE;
    if (argument && etf_tuple(&r) != 2)
        return NULL;
    struct etf_slice name = etf_atom(&r);
    *value = argument ? etf_integer(&r) : 0;
    for (size_t i = 0; i < COUNT_OF(commands) && etf_done(&r); i++) {
        const struct command *c = &commands[i];
        if (slice_is(name, c->name) && c->argument == argument && (c->port || !port))
            return c;
    }
    return NULL;
}

static bool obey(struct monitor *m, struct etf_slice payload) {
    int64_t value;
    if (!m->port && is_steps(payload)) {
        if (m->phase == PARKED && !m->aborting)
            forward_steps(m, payload);
        return true;
    }
    const struct command *c = command_of(m->port, payload, &value);
    if (c != NULL)
        c->run(m, value);
    return c != NULL;
}

/* Said to a session that had already ended. */
static bool is_late(const struct monitor *m, struct etf_slice payload) {
    int64_t unused;
    return m->served && (is_steps(payload) || command_of(false, payload, &unused) != NULL);
}

static void call_yourself(struct monitor *m, bool spare) {
    if (m->spare != spare)
        (void)prctl(PR_SET_NAME, spare ? "linx-spare" : "linx-monitor", 0, 0, 0);
    m->spare = spare;
}

/* Nonsense ends the session: whoever speaks it cannot be trusted to end it himself. */
static void hear_python(struct monitor *m) {
    struct etf_slice payload;
    inbox_fill(&m->in);
    if (!m->port && m->in.end > m->in.start)
        call_yourself(m, false);
    while (m->phase != ENDED && inbox_next(&m->in, &payload)) {
        if (m->phase == AWAITING && is_late(m, payload))
            call_yourself(m, m->in.end == m->in.start);
        else if (m->phase == AWAITING)
            take_request(m, payload);
        else if (!obey(m, payload))
            end_gracefully(m, 0);
    }
    while (m->phase == ENDED && inbox_next(&m->in, &payload))
        (void)obey(m, payload);
    if (m->in.eof && !m->gone)
        python_is_gone(m);
    if (m->phase != REQUESTED)
        return;
    if (m->aborting) { /* killed before there was anything to kill */
        emit_status(m, "aborted", &m->child_pid, -1);
        m->phase = ENDED;
        m->childless = true;
    } else {
        start_child(m);
    }
}

/* ---- the one poll -------------------------------------------------------------------------------------------- */

/* A reaper clears up by itself what only it can reach; also one that has not been announced yet. When its time is over we
 * do that, and it goes last: what is below it must never outlive it. */
static bool is_spared(pid_t pid, void *context) {
    struct monitor *m = context;
    if (m->reaper > 0 ? pid != m->reaper : !m->may_have_reaper || !subtree_is_nested(pid))
        return false;
    (void)kill(pid, SIGCONT);
    if (now_us() < m->killing_since + REAPER_US)
        return true;
    int below = subtree_kill_below(pid);
    m->cleared = below == 0;
    return below > 0;
}

static void end_what_is_due(struct monitor *m) {
    if (m->kill_at > 0 && now_us() >= m->kill_at)
        kill_all(m);
    if (!m->killing || m->childless)
        return;
    int dead = 0, alive = subtree_kill(m->may_have_reaper ? is_spared : NULL, m, &dead);
    if (alive < 0 && m->leader > 0)
        signal_leader(m, SIGKILL); /* no /proc any more: at least the leader */
    if (alive <= 0)
        reap_all(m);
    else if (m->leader > 0 && subtree_is_dead(m->leader))
        reap_one(m, m->leader, false); /* one slot, once; and its end is news */
}

/* With a cgroup of its own a session is over when that is gone. It stays until Python has looked at its numbers, or is gone
 * itself: so there is no moment at which nobody would remove it. */
static bool cgroup_is_gone(struct monitor *m) {
    if (m->cgroup_parent < 0)
        return true;
    if (!m->released && !m->gone)
        return false;
    if (m->removing_since == 0) {
        m->removing_since = now_us();
        m->round_ms = ROUND_MS;
    }
    if (!cgroup_remove(m->cgroup_parent, m->cgroup_name)) { /* a stranger, who was put there */
        (void)cgroup_kill(m->cgroup);
        return now_us() >= m->removing_since + CGROUP_US;
    }
    return true;
}

static int until(int64_t when) {
    int64_t left = when - now_us();
    return left <= 0 ? 0 : left > 60000000 ? 60000 : (int)((left + 999) / 1000);
}

static int poll_timeout(struct monitor *m) {
    if ((m->killing && !m->childless) || m->removing_since > 0) {
        int pause = m->round_ms;
        m->round_ms = m->round_ms < ROUND_LIMIT_MS ? m->round_ms * 2 : ROUND_LIMIT_MS;
        return pause;
    }
    if (m->hold_until > 0)
        return until(m->hold_until);
    if (m->lost)
        return until(m->killing_since + REAPER_US);
    return m->kill_at > 0 ? until(m->kill_at) : -1;
}

static bool is_over(struct monitor *m) {
    bool awaiting = m->lost && m->reaper_control >= 0 && now_us() < m->killing_since + REAPER_US;
    return m->phase == ENDED && m->childless && !awaiting && cgroup_is_gone(m);
}

/* After what went its ordinary way, as a rule: anything else ends the monitor, and all that might have gone wrong in it. */
static void offer_again(struct monitor *m) {
    bool ordinary = m->ran && !m->lost && m->in.size <= KEPT_INBOX_SIZE && m->in.fd_count == 0;
    if (m->port || m->idle || m->in.eof || !ordinary)
        return;
    m->idle = true;
    call_yourself(m, true);
    emit_status(m, "idle", NULL, -1);
}

static void begin(struct monitor *m) {
    m->cgroup = m->cgroup_parent = -1;
    m->control = m->starter_pidfd = m->reaper_control = m->leader_pidfd = m->init_pidfd = -1;
    hear_python(m); /* the request may be there before we are */
}

static void begin_again(struct monitor *m) {
    struct monitor fresh = {.in = m->in, .out = m->out, .signals = m->signals, .spare = m->spare, .dumpable = m->dumpable,
                            .served = true};
    int *const fds[] = {&m->control, &m->starter_pidfd, &m->reaper_control, &m->leader_pidfd, &m->init_pidfd, &m->cgroup,
                        &m->cgroup_parent};
    for (size_t i = 0; i < COUNT_OF(fds); i++)
        close_fd(fds[i]);
    free(m->kept_signals);
    request_free(&m->request);
    if (prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) != m->dumpable) /* setuid(2) by a child that shared our memory */
        (void)prctl(PR_SET_DUMPABLE, m->dumpable, 0, 0, 0);
    *m = fresh;
    begin(m);
}

int monitor_run(int in, int out, int signals, bool port) {
    static uint8_t buffer[INBOX_SIZE];
    struct monitor m = {.in = {.fd = in, .is_socket = !port, .data = buffer, .size = sizeof buffer},
                        .out = {.fd = out, .is_socket = !port, .passenger = -1}};
    m.signals = signals;
    m.port = port;
    m.spare = !port;
    m.dumpable = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
    begin(&m);
    for (;;) {
        if (m.hold_until > 0 && now_us() >= m.hold_until)
            m.hold_until = 0;
        end_what_is_due(&m);
        bool over = is_over(&m);
        if (over) {
            offer_again(&m);
            m.hold_until = 0;
        }
        if (m.hold_until == 0)
            outbox_flush(&m.out);
        if (over && outbox_empty(&m.out)) {
            if (!m.idle)
                return m.lost ? EXIT_LOST : 0;
            begin_again(&m);
            continue;
        }
        /* With auto_proceed nobody waits for `parked`, and with quiet nor for its end. */
        bool holding = m.phase == EXECUTING && m.hold_until > 0 && m.leader > 0;
        struct pollfd fds[] = {
            {m.in.eof ? -1 : m.in.fd, POLLIN, 0},
            {m.signals, POLLIN, 0},
            {holding && m.quiet ? -1 : m.control, holding ? 0 : POLLIN, 0},
            {outbox_empty(&m.out) || m.hold_until > 0 ? -1 : m.out.fd, POLLOUT, 0},
            {m.reaper_control, POLLIN, 0},
        };
        if (poll(fds, COUNT_OF(fds), poll_timeout(&m)) < 0)
            continue;
        if (fds[0].revents)
            hear_python(&m);
        if (fds[2].revents)
            hear_child(&m, ASK_PROC);
        if (fds[4].revents)
            hear_reaper(&m);
        if (fds[1].revents) {
            subtree_drain(m.signals);
            if (!m.killing)
                reap_all(&m);
        }
    }
}
