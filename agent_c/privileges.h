/* capabilities(7) and seccomp(2), as steps of the child. */
#ifndef LINX_PRIVILEGES_H
#define LINX_PRIVILEGES_H

#include <linux/capability.h>

#include "steps.h"

/* capget(2) and capset(2) of our own, the lower 32 capabilities first. 0, or a negated errno. */
struct capability_sets {
    struct __user_cap_data_struct half[_LINUX_CAPABILITY_U32S_3];
};
long privileges_get(struct capability_sets *sets);
long privileges_set(const struct capability_sets *sets);

long privileges_drop_bounding(const struct step *step, struct step_room *room);
long privileges_set_thread(const struct step *step, struct step_room *room);
long privileges_set_ambient(const struct step *step, struct step_room *room);
long privileges_securebits(const struct step *step, struct step_room *room);

/* Kept in `room`: it is installed by privileges_install_filter, as the last act before execve(2), since it may forbid whatever
 * the others still need. */
long privileges_keep_filter(const struct step *step, struct step_room *room);
long privileges_install_filters(const struct step_room *room);

#endif
