#include "session.h"

#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>

#include "keeper.h"
#include "seal.h"

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

void start_child(struct monitor *m) {
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
    m->quiet = q->quiet;
    m->hold_until = now_us() + (q->quiet ? QUIET_HOLD_US : HOLD_US);
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

void take_request(struct monitor *m, struct etf_slice payload) {
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
