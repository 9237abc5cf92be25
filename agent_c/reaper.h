/* A subreaper inside another PID namespace: what is orphaned there goes to the nearest subreaper of the same namespace, or
 * else to its init, and never to a monitor outside. So the monitor of a workload that enters one has this between the two.
 *
 * It does what it is told, over a SOCK_SEQPACKET pair: it says once that the workload has ended and how, reaps it on
 * permission (one byte), so that the monitor can first look at the zombie, and at the end of the file kills and reaps all
 * that is below it. It exits when it has no children left.
 *
 * There are two of them, one below the other: whoever kills one does not set free what is below, and would have to kill both
 * at the same time. */
#ifndef LINX_REAPER_H
#define LINX_REAPER_H

#include <sys/resource.h>

#include "util.h"

struct reaper_news {
    int32_t status; /* as wait(2) has it */
    int32_t has_executed;
    struct rusage usage;
};

/* Becomes the reaper of `workload`, which is its child. Without `control` it is the outer one of two: its child is the other
 * one, and when that is gone it makes an end of what it has left. `proc` is an fd of the /proc outside: the one inside may be missing. */
_Noreturn void reaper_run(int control, int proc, pid_t workload, int pidfd);

/* A process' pid as the holder of `proc` sees it, by its pidfd; 0 if it is gone. */
pid_t pid_of_pidfd(int proc, int pidfd);

#endif
