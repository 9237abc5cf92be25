/* Processes, and whose memory they run in. */
#ifndef LINX_CLONE_H
#define LINX_CLONE_H

#include "raw.h"
#include "util.h"

#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x00001000
#endif

#if defined(__SANITIZE_ADDRESS__)
#define SHARES_MEMORY 0 /* it watches the stack that it knows */
#else
#define SHARES_MEMORY RAW_SYSCALLS
#endif

/* fork(2) with `flags`; the child gets a copy of our memory, and begins in `cgroup` unless that is -1. Its pid, 0 in it, or a
 * negated errno. */
pid_t clone_copying(uint64_t flags, uint64_t exit_signal, int cgroup, int *pidfd);

enum stack { CHILDS_STACK, GRANDCHILDS_STACK, STACK_COUNT };

/* The child runs `entry`, which never returns, in our memory and beside us, on that stack, which is its own until it has
 * executed or is dead. Only where SHARES_MEMORY. What `entry` may do there, child.c says. Its pid, or a negated errno. */
pid_t clone_sharing(uint64_t flags, enum stack stack, int (*entry)(void *context), void *context, int *pidfd);

/* Wipes the stacks, when nobody uses them. */
void clone_forget(void);

#endif
