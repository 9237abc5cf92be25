/* A subreaper inside another PID namespace: what is orphaned there goes to the nearest subreaper of the same namespace, or
 * else to its init, and never to a monitor outside. So the monitor of a workload that enters one has this between the two.
 *
 * It does what it is told, over a SOCK_SEQPACKET pair: it says once that the workload has ended and how, reaps it on
 * permission (one byte), so that the monitor can first look at the zombie, and at the end of the file kills and reaps all
 * that is below it. It exits when it has no children left; pid 1 with the workload, of
 * whose end it has told: the permission for that comes as soon as the monitor knows the workload.
 *
 * Where a namespace is entered there are two of them, one below the other: whoever kills one does not set free what is below,
 * and would have to kill both at the same time. With the option `init` one is pid 1 of a fresh PID namespace. */
#ifndef LINX_REAPER_H
#define LINX_REAPER_H

#include <sys/resource.h>

#include "util.h"

struct reaper_news {
    int32_t status; /* as wait(2) has it */
    int32_t has_executed;
    struct rusage usage;
};

/* Where the workload goes on when it has introduced itself. It does not return; the result is for clone(2)'s sake. */
typedef int going_on(const void *context);

struct reaper_request {
    int control; /* to the monitor, for the workload */
    int proc;    /* the /proc outside; the one inside may be missing */
    /* As pid 1 it passes on the signals that it gets, and the namespace ends with the workload. */
    bool init;
    /* The workload runs in our memory until it executes, and hides it (child.c). */
    bool shares_memory;
    /* It keeps nothing that those inside could have of it: confine.h. */
    bool confined;
    /* A fresh network namespace takes the kernel as long as all others together. So where the workload has something else to do
     * first, pid 1 makes it meanwhile, and hands it over here, or an errno (an int32_t, 0 with the fd). */
    bool makes_net;
    /* Pid 1's end of a pair with the workload, which it closes when it is confined; or -1. */
    int init_end;
    going_on *go_on;
    const void *context;
};

/* Becomes a reaper, with the workload below it. */
_Noreturn void reaper_start(const struct reaper_request *request);

/* A process' pid as the holder of `proc` sees it, by its pidfd; 0 if it is gone. */
pid_t pid_of_pidfd(int proc, int pidfd);

#endif
