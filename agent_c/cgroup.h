/* A session's own cgroup (v2): killed at one stroke, and removed when nothing of the session is left. */
#ifndef LINX_CGROUP_H
#define LINX_CGROUP_H

#include "util.h"

/* SIGKILL to all that is in the cgroup of this directory and below it, those who fork right now among them. Before Linux 5.14
 * only to those who are in it itself and do not fork: then somebody has to try again. False: it cannot be done. */
bool cgroup_kill(int directory);

/* Removes the cgroup `name` below `parent`, with those that were made below it. False: somebody still lives there. */
bool cgroup_remove(int parent, const char *name);

#endif
