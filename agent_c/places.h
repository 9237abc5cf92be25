/* Where the child mounts and makes things.
 *
 * A place is named as seen from the root that is being built, and looked up with openat2(2) and RESOLVE_IN_ROOT: no symlink
 * leads out of it, whoever made what is in there. All results are 0 or more, or a negated errno: raw.h. */
#ifndef LINX_PLACES_H
#define LINX_PLACES_H

#include "raw.h"
#include "steps.h"

static inline void drop(long fd) {
    if (fd >= 0)
        (void)RAW1(close, fd);
}

long place_open(const struct step_room *room, const char *path, uint64_t flags, uint64_t mode);

/* The directory that the path's last component is in, made where it is missing; the component itself in `*name`. It is the
 * room's: the same one is asked for again and again. Whoever changes where paths lead forgets it. */
long place_parent(struct step_room *room, const char *path, const char **name);
void place_forget_parent(struct step_room *room);

/* Whether what is missing in a directory that place_parent gave may be made there without having been looked for. That is so in a
 * tmpfs, of which a fresh root is made: there mkdir(2) and the like say EEXIST and no more. Elsewhere they may wait for a file
 * system that is frozen, or be refused by one that is read-only or an automounter's, all of which have what is looked for. */
bool place_makes_first(const struct step_room *room, long parent);

bool place_is_on_tmpfs(long fd);

/* Makes something to mount on, if need be: a directory, or a file for a file. 0: it is there now, as `*name` in `*parent`;
 * -EEXIST: something has been there before. */
long place_make(struct step_room *room, const char *path, bool directory, long *parent, const char **name);

#endif
