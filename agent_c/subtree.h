/* Making an end of everything below this process.
 *
 * Theory. This process is a child subreaper (prctl(2)): whatever is orphaned anywhere below becomes its direct child.
 * Only direct children are ever killed, by pid: as nobody but this single-threaded process can reap them, their pids
 * cannot have been reused. A killed child's own children are adopted the moment it dies, so repeating the round reaches
 * every depth, a setsid(2) or a double fork notwithstanding. wait4(2) answering ECHILD is the proof that nothing is left.
 *
 * A fork loop under RLIMIT_NPROC lives on the process slots that reaping frees. So the dead are left unreaped, and hold
 * their slots, as long as each round still meets processes that the last one had not seen. */
#ifndef LINX_SUBTREE_H
#define LINX_SUBTREE_H

#include "util.h"

struct kill_round {
    uint64_t seen; /* a digest of the children met by the last round */
};

/* SIGKILLs every direct child for which `spare` (NULL: none) is not true. Returns how many were signalled; `*settled`
 * says whether they are the same as in the round before, and the dead may be reaped. -1: /proc cannot be read. */
int subtree_kill(struct kill_round *round, bool (*spare)(pid_t pid, void *context), void *context, bool *settled);

/* Whether this kernel and this /proc can list a process' children at all. */
bool subtree_supported(void);

/* Has the child (a zombie too) left its forker's program? PF_FORKNOEXEC in the flags of /proc/<pid>/stat says so. */
bool subtree_has_executed(pid_t pid);

#endif
