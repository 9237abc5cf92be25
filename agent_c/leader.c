#include "session.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "cgroup.h"
#include "raw.h"
#include "reaper.h"
#include "subtree.h"

void grant(struct monitor *m) {
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

/* Whether something was told, or is to be told, that is out of the ordinary. */
static bool has_told(const struct monitor *m) { return m->told || m->out.sent > 0; }

static void workload_runs(struct monitor *m) {
    m->phase = RUNNING;
    m->ran = true;
    m->hold_until = m->quiet ? m->hold_until : 0;
    if (m->port || has_told(m))
        emit_status(m, "running", NULL, -1);
    else
        emit_began(m, m->leader);
    for (size_t i = 0; i < m->kept_count; i++)
        signal_leader(m, m->kept_signals[i]);
    m->kept_count = 0;
}

void leader_known(struct monitor *m, pid_t pid, int pidfd, int64_t child_pid) {
    int64_t host_pid = pid;
    m->leader = pid;
    m->child_pid = child_pid;
    if (m->port)
        close_fd(&pidfd);
    emit_status(m, "spawned", &host_pid, pidfd);
    if (m->kill_at > 0)
        ask_to_end(m);
}

static void permit_reaping(const struct monitor *m) {
    char permission = 'r';
    (void)send(m->reaper_control, &permission, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void leader_adopted(struct monitor *m, int64_t child_pid, int fds[ADOPTION_FDS]) {
    OWN_FD int pidfd = steal_fd(&fds[0]), reaper = steal_fd(&fds[1]), init = steal_fd(&fds[2]);
    pid_t pid = pidfd >= 0 ? pid_of_pidfd(AT_FDCWD, pidfd) : 0;
    if (pid == 0 && m->init && RAW4(pidfd_send_signal, pidfd, 0, NULL, 0) == -ESRCH)
        return; /* pid 1 has been killed, which is the end of all: of that we are about to hear */
    if (pid == 0 || reaper < 0) { /* it is dead already, or there was no room for the fds: then the reaper ends, and so do we */
        kill_all(m);
        return;
    }
    m->reaper_control = steal_fd(&reaper);
    m->init_pidfd = steal_fd(&init);
    m->leader_pidfd = fcntl(pidfd, F_DUPFD_CLOEXEC, 0);
    if (m->init && m->leader_pidfd >= 0) /* from now on it may go as soon as the workload has ended */
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
        m->told = true;
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
    bool known = subtree_stat(AT_FDCWD, m->leader, &stat);
    if (m->reaper > 0 && (!known || RAW4(pidfd_send_signal, m->leader_pidfd, 0, NULL, 0) == -ESRCH))
        return ASK_REAPER; /* it may be dead and gone by now, and its number another one's */
    if (known)
        return stat.has_executed ? YES : NO;
    return m->leader_pidfd < 0 && !subtree_is_dead(m->leader) ? YES : NO; /* hidepid (proc(5)): being alive has to do */
}

void hear_child(struct monitor *m, enum whether has_executed) {
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
    pid_t pid = m->leader;
    m->leader = 0;
    m->phase = ENDED;
    /* With pid 1, which is about to go, too, all is over: one wake-up for both. */
    m->hold_until = m->init && m->reaper > 0 ? now_us() + (m->quiet ? QUIET_HOLD_US : HOLD_US) : 0;
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
    } else if (m->quiet && ran && !has_told(m) && !WIFSIGNALED(status)) {
        emit_ran(m, pid, (int)code, usage);
    } else if (ran && !m->port && !WIFSIGNALED(status)) {
        emit_over(m, (int)code, usage);
    } else {
        if (!m->port)
            emit_usage(m, status, usage, ran);
        emit_status(m, WIFSIGNALED(status) ? "signaled" : "exited", &code, -1);
    }
    if (m->port || m->kill_at > 0 || (m->gone && !m->linger))
        kill_all(m);
}

void hear_reaper(struct monitor *m) {
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
void reap_one(struct monitor *m, pid_t pid, bool exited) {
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

void reap_all(struct monitor *m) {
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
