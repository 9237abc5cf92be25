#include "privileges.h"

#include <linux/filter.h>
#include <sys/prctl.h>

#include "raw.h"

enum { CAPABILITY_LIMIT = 63, FILTER_MODE = 1 };

#ifndef PR_CAP_AMBIENT
#define PR_CAP_AMBIENT 47
#define PR_CAP_AMBIENT_RAISE 2
#define PR_CAP_AMBIENT_CLEAR_ALL 4
#endif

long privileges_get(struct capability_sets *sets) {
    struct __user_cap_header_struct own = {_LINUX_CAPABILITY_VERSION_3, 0};
    return RAW2(capget, &own, sets->half);
}

long privileges_set(const struct capability_sets *sets) {
    struct __user_cap_header_struct own = {_LINUX_CAPABILITY_VERSION_3, 0};
    return RAW2(capset, &own, sets->half);
}

static bool has(int64_t mask, int capability) { return (mask >> capability & 1) != 0; }

/* What is not there, or not known to this kernel, needs no dropping, which would want CAP_SETPCAP all the same. */
long privileges_drop_bounding(const struct step *s, struct step_room *unused) {
    (void)unused;
    for (int i = 0; i < CAPABILITY_LIMIT; i++) {
        if (!has(s->number[0], i))
            continue;
        long result = RAW5(prctl, PR_CAPBSET_DROP, i, 0, 0, 0);
        if (result < 0 && RAW5(prctl, PR_CAPBSET_READ, i, 0, 0, 0) == 1)
            return result;
    }
    return 0;
}

long privileges_set_thread(const struct step *s, struct step_room *unused) {
    struct capability_sets sets;
    (void)unused;
    for (int half = 0; half < 2; half++) {
        sets.half[half].effective = (uint32_t)(s->number[0] >> 32 * half);
        sets.half[half].permitted = (uint32_t)(s->number[1] >> 32 * half);
        sets.half[half].inheritable = (uint32_t)(s->number[2] >> 32 * half);
    }
    return privileges_set(&sets);
}

long privileges_set_ambient(const struct step *s, struct step_room *unused) {
    (void)unused;
    long result = RAW5(prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    for (int i = 0; i < CAPABILITY_LIMIT && result >= 0; i++)
        if (has(s->number[0], i))
            result = RAW5(prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, i, 0, 0);
    return result;
}

/* Added to those that are set: some may be locked. Keeping capabilities is the only one that needs none itself. */
long privileges_securebits(const struct step *s, struct step_room *unused) {
    enum { KEEP_CAPS = 1 << 4 };
    (void)unused;
    if (s->number[0] == KEEP_CAPS)
        return RAW5(prctl, PR_SET_KEEPCAPS, 1, 0, 0, 0);
    long present = RAW5(prctl, PR_GET_SECUREBITS, 0, 0, 0, 0);
    return present < 0 ? present : RAW5(prctl, PR_SET_SECUREBITS, present | s->number[0], 0, 0, 0);
}

long privileges_keep_filter(const struct step *s, struct step_room *room) {
    if (s->data_length == 0 || s->data_length % sizeof(struct sock_filter) != 0)
        return -EINVAL;
    if (room->filter_count == FILTERS_LIMIT)
        return -ENOSPC;
    room->filters[room->filter_count++] = (struct kept_filter){s->data, s->data_length / sizeof(struct sock_filter), s->number[0]};
    return 0;
}

static long install(const struct kept_filter *filter) {
    struct sock_fprog program = {(unsigned short)filter->length, (struct sock_filter *)(uintptr_t)filter->program};
    return filter->length > BPF_MAXINSNS ? -EINVAL : RAW3(seccomp, FILTER_MODE, filter->flags, &program);
}

/* All of them: of what they decide the kernel takes the strictest (seccomp(2)). The first one says whether no_new_privs is
 * needed: without CAP_SYS_ADMIN the answer is EACCES. */
long privileges_install_filters(const struct step_room *room) {
    long result = 0;
    for (size_t i = 0; i < room->filter_count && result >= 0; i++) {
        result = install(&room->filters[i]);
        if (result == -EACCES && i == 0 && RAW5(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0)
            result = install(&room->filters[i]);
    }
    return result;
}
