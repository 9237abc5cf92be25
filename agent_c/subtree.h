/* Making an end of everything below this process.
 *
 * Theory. This process is a child subreaper (prctl(2)): whatever is orphaned anywhere below becomes its direct child.
 * Only direct children are ever killed, by pid: as nobody but this single-threaded process can reap them, their pids
 * cannot have been reused. A killed child's own children are adopted the moment it dies, so repeating the round reaches
 * every depth, a setsid(2) or a double fork notwithstanding. wait4(2) answering ECHILD is the proof that nothing is left.
 *
 * A fork loop under RLIMIT_NPROC lives on the process slots that reaping frees: as long as one of it lives, each dead one
 * that is reaped can be replaced. So nobody is reaped before a round has met none but the dead. Then nothing below is
 * alive, since an orphan would have been among them. */
#ifndef LINX_SUBTREE_H
#define LINX_SUBTREE_H

#include "util.h"

/* One round: SIGKILLs every direct child that lives and for which `spare` (NULL: none) is not true. `*dead` counts those
 * not spared that are zombies. Returns how many were alive, or -1 if /proc cannot be read. */
int subtree_kill(bool (*spare)(pid_t pid, void *context), void *context, int *dead);

/* Is this child a zombie? */
bool subtree_is_dead(pid_t child);

/* Whether this kernel and this /proc can list a process' children at all. */
bool subtree_supported(void);

/* Has the child (a zombie too) left its forker's program? PF_FORKNOEXEC in the flags of /proc/<pid>/stat says so. */
bool subtree_has_executed(pid_t pid);

#endif
