#include "self.h"

#include <fcntl.h>
#include <string.h>
#include <sys/prctl.h>

#include "raw.h"
#include "util.h"

enum { LIMITS = 16, FIRST_REAL_TIME = 31, IOPRIO_WHO_PROCESS = 1, KEYCTL_GET_KEYRING_ID = 0, KEY_SPEC_SESSION_KEYRING = -3 };

/* Compared as a whole, so its gaps are zeros. */
struct self {
    uint8_t scheduling[64]; /* struct sched_attr: policy, nice, priority, … */
    uint8_t affinity[128];
    long io_priority, keyring, timer_slack;
    uint64_t limits[LIMITS][2];
    char oom_score_adj[16], coredump_filter[16], cgroup[1024];
};

static struct self noted;

static void look(struct self *s) {
    memset(s, 0, sizeof *s);
    (void)RAW4(sched_getattr, 0, s->scheduling, sizeof s->scheduling, 0);
    (void)RAW3(sched_getaffinity, 0, sizeof s->affinity, s->affinity);
    s->io_priority = RAW2(ioprio_get, IOPRIO_WHO_PROCESS, 0);
    s->keyring = RAW3(keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0);
    s->timer_slack = RAW1(prctl, PR_GET_TIMERSLACK);
    for (int i = 0; i < LIMITS; i++)
        (void)RAW4(prlimit64, 0, i, NULL, s->limits[i]);
    (void)read_small_file(AT_FDCWD, "/proc/self/oom_score_adj", s->oom_score_adj, sizeof s->oom_score_adj);
    (void)read_small_file(AT_FDCWD, "/proc/self/coredump_filter", s->coredump_filter, sizeof s->coredump_filter);
    (void)read_small_file(AT_FDCWD, "/proc/self/cgroup", s->cgroup, sizeof s->cgroup);
}

void self_note(void) { look(&noted); }

bool self_is_as_noted(void) {
    struct self now;
    look(&now);
    return memcmp(&now, &noted, sizeof now) == 0;
}

bool self_has_queued_signals(void) {
    uint64_t pending = 0;
    (void)RAW2(rt_sigpending, &pending, sizeof pending);
    return pending >> FIRST_REAL_TIME != 0;
}
