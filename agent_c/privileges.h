/* capabilities(7) and seccomp(2), as steps of the child. */
#ifndef LINX_PRIVILEGES_H
#define LINX_PRIVILEGES_H

#include "steps.h"

long privileges_drop_bounding(const struct step *step, struct step_room *room);
long privileges_set_thread(const struct step *step, struct step_room *room);
long privileges_set_ambient(const struct step *step, struct step_room *room);
long privileges_securebits(const struct step *step, struct step_room *room);

/* Kept in `room`: it is installed by privileges_install_filter, as the last act before execve(2), since it may forbid whatever
 * the others still need. */
long privileges_keep_filter(const struct step *step, struct step_room *room);
long privileges_install_filters(const struct step_room *room);

#endif
