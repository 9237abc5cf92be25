/* Who may run in its parent's memory until it executes (child.c), or as long as it lives.
 *
 * Whoever has made a user namespace may look into all who are in there, and so may anybody of the same user id, with or without
 * the capabilities that would be needed to look into the monitor. So only who has none can share with somebody in a fresh one.
 *
 * Pid 1 stays, so more is shared than what lies in memory: oom_score_adj and coredump_filter, files that the root in there may
 * write, unless they belong, as those of the hidden do, to a root who is nobody in there. And a workload that parks begins as a
 * copy of pid 1's memory, which must be nobody else's: the monitor may be allocating just then. */
#ifndef LINX_SHARING_H
#define LINX_SHARING_H

#include "request.h"

/* Whether the workload has the memory of whom it is cloned by, the monitor or pid 1. To be asked once: what it depends on may
 * change. */
bool shares_memory(const struct request *request);

/* The same of whom the monitor clones, the workload itself or pid 1, and the monitor's memory. Only where shares_memory. */
bool shares_monitors_memory(const struct request *request);

#endif
