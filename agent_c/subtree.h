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

enum {
    ROUND_MS = 1,        /* pause between killing rounds, at first … */
    ROUND_LIMIT_MS = 64, /* … and when something cannot die (uninterruptible sleep) */
};

/* A signalfd(2) that says when a child has died, where SIGCHLD is blocked; and its being read. One signal may stand for many. */
int subtree_watch(void);
void subtree_drain(int signals);

/* One round: SIGKILLs every direct child that lives and for which `spare` (NULL: none) is not true. `*dead` counts those
 * not spared that are zombies. Returns how many were alive, or -1 if /proc cannot be read. */
/* `proc` is as with subtree_stat. */
int subtree_kill_in(int proc, bool (*spare)(pid_t pid, void *context), void *context, int *dead);
int subtree_kill(bool (*spare)(pid_t pid, void *context), void *context, int *dead);

/* Is this child a zombie? */
bool subtree_is_dead(pid_t child);

/* Whether this kernel and this /proc can list a process' children at all. */
bool subtree_supported(void);

/* What /proc/<pid>/stat says of a process, a zombie too. */
struct process_stat {
    char state;        /* as in proc(5): R S D Z X … */
    pid_t parent;
    bool has_executed; /* it has left its forker's program: PF_FORKNOEXEC is not among its flags */
    bool exiting;      /* PF_EXITING: an init that has it is taking its PID namespace with it */
};

/* `proc` is an fd of the directory /proc, or AT_FDCWD for the one that is mounted here. False: it cannot be read. */
bool subtree_stat(int proc, pid_t pid, struct process_stat *stat);

/* The same of the open file /proc/<pid>/stat. */
bool subtree_stat_of(int file, struct process_stat *stat);

/* One round on the living children of our child `reaper`, a subreaper that does not get on (stopped, or in a frozen cgroup):
 * as long as it stands, whatever is orphaned below stays its. Returns how many were alive, or -1 if /proc cannot be read. */
int subtree_kill_below(pid_t reaper);

/* Is it in a PID namespace below ours without being its init? Then its orphans go to that init, and not to us. */
bool subtree_is_nested(pid_t pid);

/* Calls `visit` for each pid in the children file `fd` (proc(5)). False: it cannot be read. */
bool subtree_visit(int fd, void (*visit)(pid_t pid, void *context), void *context);

#endif
