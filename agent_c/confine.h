/* What a reaper, or pid 1, gives up when it has become one.
 *
 * Theory. Whoever is inside is kept from looking into it, since it is not dumpable; but that does not hold for those who have
 * CAP_SYS_PTRACE over the user namespace to which its memory belongs, and a workload without a user namespace of its own may
 * have that. It could then make us do what it may not do itself: with the capabilities that were taken from it, without its
 * filter, and in the directory of whom we were cloned from. So nothing is left that would be worth it: it keeps CAP_KILL, the
 * system calls of its loop, and "/", which pivot_root(2) takes along.
 *
 * Pid 1 of a workload with a user namespace of its own need not do that: our memory belongs to the one outside. */
#ifndef LINX_CONFINE_H
#define LINX_CONFINE_H

#include <stdbool.h>

/* Capabilities and system calls. It cannot be undone. `opens_files`: the one who finds its children in /proc. */
void confine(bool opens_files);

#endif
