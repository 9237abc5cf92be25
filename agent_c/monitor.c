/* The monitor's error policy: it never exits while something of its session lives, and it blocks on nothing but the one
 * poll(2) of monitor_run, in every phase: sockets are non-blocking, waits are WNOHANG, and what may hang (a set-up step, an
 * execve on a dead file server) happens in the child.
 *
 *   AWAITING ──request──▶ REQUESTED ──clone3──▶ SETTING_UP ──parked──▶ PARKED ──proceed──▶ EXECUTING ──▶ RUNNING ──▶ ENDED
 *
 * Three ways lead out, from any phase: the workload ends by itself; Python says `kill` or `shutdown`; or the socket is at
 * its end, which means that Python is gone, and the orphan policy rules. All three end in `killing`, the rounds of
 * subtree.h, and the monitor exits when wait4(2) says that there are no children left. */
#include "monitor.h"

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "child.h"
#include "subtree.h"

enum phase { AWAITING, REQUESTED, SETTING_UP, PARKED, EXECUTING, RUNNING, ENDED };
enum wish { WISH_NOTHING, WISH_PROCEED, WISH_ABORT }; /* said before the checkpoint; the first one counts */

enum {
    HOLD_US = 3000,       /* the first events travel together if they are that close: one wake-up for all */
    ROUND_MS = 1,         /* pause between killing rounds, at first … */
    ROUND_LIMIT_MS = 64,  /* … and when something cannot die (uninterruptible sleep) */
};

struct monitor {
    struct inbox in;
    struct outbox out;
    struct request request;
    bool port;
    int signals, control; /* signalfd; our end of the child's pair */
    enum phase phase;
    enum wish wish;
    pid_t leader;         /* unreaped as long as it is not 0, so that its number is safe to signal */
    int64_t child_pid;    /* the leader's pid as it sees itself */
    uint8_t *kept_signals;
    size_t kept_count, kept_size;
    bool refused, aborting, gone, childless;
    struct child_message refusal;
    bool linger;
    bool quiet;
    int64_t orphan_grace_us, granted_at, hold_until;
    bool killing;
    int64_t kill_at;      /* when the grace is over; 0: none is running */
    int round_ms;
};

/* ---- events -------------------------------------------------------------------------------------------------- */

const char *const monitor_events[] = {"spawned", "ready",    "running", "exited", "signaled", "aborted",
                                      "error",   "degraded", "usage",   "lost",   NULL};

static void emit_status(struct monitor *m, const char *name, const int64_t *argument, int passenger) {
    struct etf_writer w = frame_begin(&m->out);
    etf_put_tuple(&w, argument != NULL ? 3 : 2);
    etf_put_atom(&w, "status");
    etf_put_atom(&w, name);
    if (argument != NULL)
        etf_put_integer(&w, *argument);
    frame_end(&m->out, &w, passenger);
}

/* A port's error is the seeds' triple; a session's also says which step it was. */
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

static void emit_error(struct monitor *m, int error, enum stage stage) {
    struct child_message news = {CHILD_REFUSED, error, (int32_t)stage, -1};
    emit_refusal(m, "error", &news);
}

/* The session failed before there was a child. */
static void fail(struct monitor *m, int error, enum stage stage) {
    emit_error(m, error, stage);
    m->phase = ENDED;
    m->childless = true;
}

/* ---- ending it ----------------------------------------------------------------------------------------------- */

static void kill_all(struct monitor *m) {
    m->kill_at = 0;
    if (!m->killing)
        m->round_ms = ROUND_MS;
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
        (void)kill(m->leader, SIGTERM);
        (void)kill(m->leader, SIGCONT);
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
    char go = 'g';
    (void)send(m->control, &go, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    m->phase = EXECUTING;
    m->granted_at = now_us();
}

static void child_parked(struct monitor *m) {
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
    m->hold_until = m->quiet ? m->hold_until : 0;
    emit_status(m, "running", NULL, -1);
    for (size_t i = 0; i < m->kept_count; i++)
        (void)kill(m->leader, m->kept_signals[i]);
    m->kept_count = 0;
}

/* All that the child had to say. End of file means executed or dead. A child that is `known_to_have_executed` has exited by
 * itself without a word, which only a program does; of others /proc knows. */
static void hear_child(struct monitor *m, bool known_to_have_executed) {
    while (m->control >= 0) {
        struct child_message news;
        ssize_t got = recv(m->control, &news, sizeof news, MSG_DONTWAIT);
        /* A child that has ended without reading its permission leaves ECONNRESET, once, before what it has said. */
        if (got < 0 && (errno == EINTR || errno == ECONNRESET))
            continue;
        if (got < 0 && errno == EAGAIN)
            return;
        if (got != (ssize_t)sizeof news) {
            close_fd(&m->control);
            request_free(&m->request); /* the child has executed, or is dead */
            if (!m->refused && !m->aborting && (known_to_have_executed || subtree_has_executed(m->leader)))
                workload_runs(m);
            return;
        }
        if (news.news == CHILD_PARKED) {
            child_parked(m);
        } else if (news.news == CHILD_DEGRADED) {
            if (!m->port)
                emit_refusal(m, "degraded", &news);
        } else {
            m->refused = true;
            m->refusal = news;
        }
    }
}

static void leader_ended(struct monitor *m, int status, const struct rusage *usage) {
    int64_t code = WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
    bool ran = m->phase == RUNNING;
    m->leader = 0;
    m->phase = ENDED;
    m->hold_until = 0;
    close_fd(&m->control);
    if (m->aborting) {
        emit_status(m, "aborted", &m->child_pid, -1);
    } else if (m->refused) {
        emit_refusal(m, "error", &m->refusal);
    } else if (!ran && !WIFSIGNALED(status)) { /* it saw end of file where we are alive: nobody can explain that */
        emit_error(m, EPROTO, STAGE_execve);
    } else {
        if (!m->port)
            emit_usage(m, status, usage, ran);
        emit_status(m, WIFSIGNALED(status) ? "signaled" : "exited", &code, -1);
    }
    if (m->port || m->kill_at > 0 || (m->gone && !m->linger))
        kill_all(m);
}

/* Reaps a child that is dead. What the leader said last is heard, and /proc asked about it, while it is still a zombie. */
static void reap_one(struct monitor *m, pid_t pid, bool exited) {
    int status;
    struct rusage usage;
    if (pid == m->leader)
        hear_child(m, exited);
    if (wait4(pid, &status, __WALL, &usage) == m->leader)
        leader_ended(m, status, &usage);
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

static void start_child(struct monitor *m) {
    struct request *q = &m->request;
    int pair[2], pidfd = -1;
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
        fail(m, -pid, STAGE_clone);
        return;
    }
    m->leader = pid;
    request_close_fds(q);
    m->phase = q->auto_proceed ? EXECUTING : SETTING_UP;
    m->hold_until = now_us() + HOLD_US;
    m->quiet = q->quiet;
    m->child_pid = q->namespaces & CLONE_NEWPID ? 1 : m->leader;
    int64_t host_pid = m->leader;
    if (m->port)
        close_fd(&pidfd);
    emit_status(m, "spawned", &host_pid, pidfd);
}

static void take_request(struct monitor *m, struct etf_slice payload) {
    if (!request_parse(&m->request, payload, &m->in, m->port)) {
        fail(m, errno, STAGE_request);
        return;
    }
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
        (void)kill(m->leader, (int)number);
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

static const struct command {
    const char *name;
    bool argument;
    bool port; /* also a port's */
    void (*run)(struct monitor *m, int64_t argument);
} commands[] = {
    {"proceed", false, true, command_proceed}, {"abort", false, true, command_abort},
    {"signal", true, true, command_signal},    {"kill", false, false, command_kill},
    {"shutdown", true, false, command_shutdown},
};

const char *const monitor_commands[] = {"proceed", "abort", "signal", "kill", "shutdown", NULL};

/* An atom, or `{atom, Integer}`. */
static bool obey(struct monitor *m, struct etf_slice payload) {
    struct etf_reader r = etf_open(payload.data, payload.length);
    bool argument = etf_peek(&r) == ETF_TUPLE;
    if (argument && etf_tuple(&r) != 2)
        return false;
    struct etf_slice name = etf_atom(&r);
    int64_t value = argument ? etf_integer(&r) : 0;
    for (size_t i = 0; i < COUNT_OF(commands) && etf_done(&r); i++) {
        const struct command *c = &commands[i];
        if (slice_is(name, c->name) && c->argument == argument && (c->port || !m->port)) {
            c->run(m, value);
            return true;
        }
    }
    return false;
}

/* Nonsense ends the session: whoever speaks it cannot be trusted to end it himself. */
static void hear_python(struct monitor *m) {
    struct etf_slice payload;
    inbox_fill(&m->in);
    while (m->phase != ENDED && inbox_next(&m->in, &payload)) {
        if (m->phase == AWAITING)
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

static void end_what_is_due(struct monitor *m) {
    if (m->kill_at > 0 && now_us() >= m->kill_at)
        kill_all(m);
    if (!m->killing || m->childless)
        return;
    int dead = 0, alive = subtree_kill(NULL, NULL, &dead);
    if (alive < 0 && m->leader > 0)
        (void)kill(m->leader, SIGKILL); /* no /proc any more: at least the leader */
    if (alive <= 0)
        reap_all(m);
    else if (m->leader > 0 && subtree_is_dead(m->leader))
        reap_one(m, m->leader, false); /* one slot, once; and its end is news */
}

static int until(int64_t when) {
    int64_t left = when - now_us();
    return left <= 0 ? 0 : left > 60000000 ? 60000 : (int)((left + 999) / 1000);
}

static int poll_timeout(struct monitor *m) {
    if (m->killing && !m->childless) {
        int pause = m->round_ms;
        m->round_ms = m->round_ms < ROUND_LIMIT_MS ? m->round_ms * 2 : ROUND_LIMIT_MS;
        return pause;
    }
    if (m->hold_until > 0)
        return until(m->hold_until);
    return m->kill_at > 0 ? until(m->kill_at) : -1;
}

static void drain_signals(int signals) {
    struct signalfd_siginfo info;
    (void)!read(signals, &info, sizeof info); /* SIGCHLD is one, however many have died */
}

int monitor_run(int in, int out, int signals, bool port) {
    static uint8_t buffer[INBOX_SIZE];
    struct monitor m = {.in = {.fd = in, .is_socket = !port, .data = buffer, .size = sizeof buffer},
                        .out = {.fd = out, .is_socket = !port, .passenger = -1}};
    m.signals = signals;
    m.port = port;
    m.control = -1;
    hear_python(&m); /* the request is there before we are */
    for (;;) {
        if (m.hold_until > 0 && now_us() >= m.hold_until)
            m.hold_until = 0;
        end_what_is_due(&m);
        if (m.hold_until == 0)
            outbox_flush(&m.out);
        if (m.phase == ENDED && m.childless && outbox_empty(&m.out))
            return 0;
        /* With auto_proceed nobody waits for `parked`, and with quiet nor for its end. */
        bool holding = m.phase == EXECUTING && m.hold_until > 0;
        struct pollfd fds[] = {
            {m.in.eof ? -1 : m.in.fd, POLLIN, 0},
            {m.signals, POLLIN, 0},
            {holding && m.quiet ? -1 : m.control, holding ? 0 : POLLIN, 0},
            {outbox_empty(&m.out) || m.hold_until > 0 ? -1 : m.out.fd, POLLOUT, 0},
        };
        if (poll(fds, COUNT_OF(fds), poll_timeout(&m)) < 0)
            continue;
        if (fds[0].revents)
            hear_python(&m);
        if (fds[2].revents)
            hear_child(&m, false);
        if (fds[1].revents) {
            drain_signals(m.signals);
            if (!m.killing)
                reap_all(&m);
        }
    }
}
