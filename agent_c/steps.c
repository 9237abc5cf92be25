#include "steps.h"

#include <grp.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

static int step_umask(const struct step *s) {
    (void)umask((mode_t)s->number[0]);
    return 0;
}

static int step_nice(const struct step *s) { return setpriority(PRIO_PROCESS, 0, (int)s->number[0]); }

static int step_rlimit(const struct step *s) {
    /* -1 is RLIM_INFINITY (getrlimit(2)). The raw call: libcs keep tables of their own for RLIMIT numbers. */
    uint64_t limit[2] = {(uint64_t)s->number[1], (uint64_t)s->number[2]};
    return (int)syscall(SYS_prlimit64, 0, (int)s->number[0], limit, NULL);
}

static int step_hostname(const struct step *s) { return sethostname(s->text, strlen(s->text)); }

/* The raw calls: libc's wrappers would try to tell threads that are not there, and in a child of a bare clone3(2) that
 * is asking for trouble. */
static int step_setgroups(const struct step *s) { return (int)syscall(SYS_setgroups, s->list_length, s->list); }

static int step_setgid(const struct step *s) {
    return (int)syscall(SYS_setresgid, (gid_t)s->number[0], (gid_t)s->number[0], (gid_t)s->number[0]);
}

static int step_setuid(const struct step *s) {
    return (int)syscall(SYS_setresuid, (uid_t)s->number[0], (uid_t)s->number[0], (uid_t)s->number[0]);
}

static int step_chdir(const struct step *s) { return chdir(s->text); }

static int step_no_new_privs(const struct step *s) {
    (void)s;
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

const struct step_kind step_kinds[] = {
    {"umask", "i", STAGE_umask, step_umask},
    {"nice", "i", STAGE_nice, step_nice},
    {"rlimit", "iii", STAGE_rlimit, step_rlimit},
    {"hostname", "t", STAGE_hostname, step_hostname},
    {"setgroups", "l", STAGE_setgroups, step_setgroups},
    {"setgid", "i", STAGE_setgid, step_setgid},
    {"setuid", "i", STAGE_setuid, step_setuid},
    {"chdir", "t", STAGE_chdir, step_chdir},
    {"no_new_privs", "", STAGE_no_new_privs, step_no_new_privs},
};

const size_t step_kind_count = COUNT_OF(step_kinds);

const struct step_kind *step_kind_find(struct etf_slice name) {
    for (size_t i = 0; i < step_kind_count; i++)
        if (slice_is(name, step_kinds[i].name))
            return &step_kinds[i];
    return NULL;
}
