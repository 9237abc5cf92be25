#include "sharing.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/prctl.h>

#include "clone.h"
#include "privileges.h"

/* Who takes other ids can then be looked into by others of those ids. The default is that nobody can. */
static bool is_open_with_other_ids(void) {
    char text[16];
    return read_small_file(AT_FDCWD, "/proc/sys/fs/suid_dumpable", text, sizeof text) < 0 || text[0] == '1';
}

/* A child that parks is there to be worked on from outside: its oom_score_adj, or a signal that dumps core, must not be its
 * parent's as well, as they are for processes that share their memory. And CLONE_NEWTIME, which lies in clone(2)'s byte for the
 * exit signal, takes effect only for a child with memory of its own. */
bool shares_memory(const struct request *q) {
    bool is_copied = q->enters || (request_fd(q, FD_CGROUP) >= 0 && !q->init); /* clone(2) knows no cgroups */
    return SHARES_MEMORY && q->auto_proceed && !is_copied && !(q->namespaces & CLONE_NEWTIME) &&
           !request_has_step(q, step_needs_own_memory) && !(request_has_step(q, step_changes_ids) && is_open_with_other_ids());
}

static bool is_capable(void) {
    struct capability_sets sets = {0};
    return privileges_get(&sets) < 0 || (sets.half[0].permitted | sets.half[1].permitted) != 0;
}

/* Before Linux 5.14 nobody who hides can look into its own /proc/self/fdinfo, which the monitor must. */
static bool may_hide(void) {
    static enum { UNKNOWN, MAY, MAY_NOT } known;
    if (known == UNKNOWN) {
        int dumpable = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
        (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
        OWN_FD int own = open("/proc/self/fdinfo", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        known = own >= 0 ? MAY : MAY_NOT;
        (void)prctl(PR_SET_DUMPABLE, dumpable == 1, 0, 0, 0);
    }
    return known == MAY;
}

bool shares_monitors_memory(const struct request *q) {
    bool user = q->namespaces & CLONE_NEWUSER;
    if (user && is_capable())
        return false;
    return !q->init || (user && geteuid() != 0 && request_fd(q, FD_CGROUP) < 0 && may_hide());
}
