/* The monitor's error policy: it never exits while something of its session lives, and it blocks on nothing but the one
 * poll(2) of monitor_run, in every phase: sockets are non-blocking, waits are WNOHANG, and what may hang (a set-up step, an
 * execve on a dead file server) happens in the child. */
#include "monitor.h"

#include <poll.h>
#include <stdlib.h>
#include <sys/prctl.h>

#include "clone.h"
#include "self.h"
#include "session.h"
#include "subtree.h"

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

/* After what went its ordinary way: anything else ends the monitor, and all that might have gone wrong in it. With `init` the
 * workload's parent was pid 1. */
static void offer_again(struct monitor *m) {
    bool ordinary = m->ran && !m->lost && !m->odd && !m->out.broken && m->in.size <= KEPT_INBOX_SIZE && m->in.fd_count == 0;
    if (m->port || m->idle || m->in.eof || !ordinary || self_has_queued_signals() || (!m->init && !self_is_as_noted()))
        return;
    if (prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) != m->dumpable) /* setuid(2) by a child that shared our memory */
        (void)prctl(PR_SET_DUMPABLE, m->dumpable, 0, 0, 0);
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
    int *const fds[] = {&m->control, &m->starter_pidfd, &m->reaper_control, &m->leader_pidfd, &m->init_pidfd, &m->cgroup,
                        &m->cgroup_parent};
    for (size_t i = 0; i < COUNT_OF(fds); i++)
        close_fd(fds[i]);
    free(m->kept_signals);
    request_free(&m->request);
    inbox_forget(&m->in); /* one session's environment is none of another's business */
    clone_forget();
    *m = (struct monitor){.in = m->in, .out = m->out, .signals = m->signals, .spare = m->spare, .dumpable = m->dumpable,
                          .served = true};
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
        if (m.hold_until == 0) {
            m.told |= !outbox_empty(&m.out);
            outbox_flush(&m.out);
        }
        if (m.out.congested)
            m.hold_until = now_us() + HOLD_US;
        if (over && outbox_empty(&m.out)) {
            if (!m.idle)
                return m.lost ? EXIT_LOST : 0;
            begin_again(&m);
            continue;
        }
        /* With auto_proceed nobody waits for `parked`, nor, below pid 1, for who it is; and with quiet nor for its end. */
        bool holding = m.phase == EXECUTING && m.hold_until > 0 && (m.leader > 0 || (m.init && !m.quiet));
        /* Pid 1's own end comes right behind its last words, and is a signal. */
        bool awaiting_signal = m.init && !m.lost && (m.phase == ENDED || (m.quiet && m.hold_until > 0));
        struct pollfd fds[] = {
            {m.in.eof ? -1 : m.in.fd, POLLIN, 0},
            {m.signals, POLLIN, 0},
            {holding && m.quiet ? -1 : m.control, holding ? 0 : POLLIN, 0},
            {outbox_empty(&m.out) || m.hold_until > 0 ? -1 : m.out.fd, POLLOUT, 0},
            {awaiting_signal ? -1 : m.reaper_control, POLLIN, 0},
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
