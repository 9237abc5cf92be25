#include "steps.h"

#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "raw.h"

static long step_umask(const struct step *s) { return RAW1(umask, s->number[0]) < 0; }

static long step_nice(const struct step *s) { return RAW3(setpriority, PRIO_PROCESS, 0, s->number[0]); }

static long step_rlimit(const struct step *s) {
    uint64_t limit[2] = {(uint64_t)s->number[1], (uint64_t)s->number[2]}; /* -1 is RLIM_INFINITY (getrlimit(2)) */
    return RAW4(prlimit64, 0, s->number[0], limit, NULL);
}

static long step_hostname(const struct step *s) { return RAW2(sethostname, s->text, strlen(s->text)); }

static long step_setgroups(const struct step *s) { return RAW2(setgroups, s->list_length, s->list); }

static long step_setgid(const struct step *s) { return RAW3(setresgid, s->number[0], s->number[0], s->number[0]); }

static long step_setuid(const struct step *s) { return RAW3(setresuid, s->number[0], s->number[0], s->number[0]); }

static long step_chdir(const struct step *s) { return RAW1(chdir, s->text); }

static long step_no_new_privs(const struct step *s) {
    (void)s;
    return RAW5(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

const struct step_kind step_kinds[] = {
    {"umask", "i", STAGE_umask, step_umask},
    {"nice", "i", STAGE_nice, step_nice},
    {"rlimit", "iii", STAGE_rlimit, step_rlimit},
    {"hostname", "t", STAGE_hostname, step_hostname},
    {"setgroups", "l", STAGE_setgroups, step_setgroups},
    {"setgid", "d", STAGE_setgid, step_setgid},
    {"setuid", "d", STAGE_setuid, step_setuid},
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
