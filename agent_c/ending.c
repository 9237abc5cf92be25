#include "session.h"

#include <signal.h>
#include <sys/socket.h>

#include "cgroup.h"
#include "raw.h"
#include "subtree.h"

void signal_leader(const struct monitor *m, int number) {
    if (m->leader_pidfd >= 0)
        (void)RAW4(pidfd_send_signal, m->leader_pidfd, number, NULL, 0);
    else if (m->leader > 0)
        (void)kill(m->leader, number);
}

/* A reaper is in the cgroup as well, and has still to say how the leader has ended. */
static bool may_kill_cgroup(const struct monitor *m) {
    return m->cgroup >= 0 && !m->may_have_reaper && m->reaper == 0;
}

void kill_all(struct monitor *m) {
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

void abort_now(struct monitor *m) {
    m->aborting = true;
    close_fd(&m->control);
    kill_all(m);
}

void ask_to_end(const struct monitor *m) {
    signal_leader(m, SIGTERM);
    signal_leader(m, SIGCONT);
}

void end_gracefully(struct monitor *m, int64_t grace_us) {
    if (m->phase < EXECUTING) {
        abort_now(m);
    } else if (m->phase == ENDED || grace_us <= 0) {
        kill_all(m);
    } else if (!m->killing) {
        int64_t at = now_us() + grace_us;
        ask_to_end(m);
        m->kill_at = m->kill_at > 0 && m->kill_at < at ? m->kill_at : at;
    }
}

void python_is_gone(struct monitor *m) {
    m->gone = true;
    if (m->phase < SETTING_UP)
        m->phase = ENDED, m->childless = true;
    else if (!m->linger || m->phase < EXECUTING)
        end_gracefully(m, m->orphan_grace_us);
}

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

void end_what_is_due(struct monitor *m) {
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

bool cgroup_is_gone(struct monitor *m) {
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
        m->odd = now_us() >= m->removing_since + CGROUP_US;
        return m->odd;
    }
    return true;
}
