/* A session as its monitor sees it.
 *
 *   AWAITING ──request──▶ REQUESTED ──clone3──▶ SETTING_UP ──parked──▶ PARKED ──proceed──▶ EXECUTING ──▶ RUNNING ──▶ ENDED
 *
 * Three ways lead out, from any phase: the workload ends by itself; Python says `kill` or `shutdown`; or the socket is at
 * its end, which means that Python is gone, and the orphan policy rules. All three end in `killing`, the rounds of
 * subtree.h, until wait4(2) says that there are no children left. Then the monitor exits; or, after a workload that has run
 * and with Python still there, it says `idle`, and is as it was before: AWAITING the next request.
 *
 * A session that enters the namespaces of another process starts with a child that joins them (enter.c). It becomes the
 * workload itself, or, where a PID namespace is joined, it leaves us a reaper with the workload below it (reaper.h). Then
 * the workload is no child of ours: what wait4(2) would say of it the reaper says, and signals go by pidfd. */
#ifndef LINX_SESSION_H
#define LINX_SESSION_H

#include <limits.h>
#include <sys/resource.h>

#include "child.h"

enum phase { AWAITING, REQUESTED, SETTING_UP, PARKED, EXECUTING, RUNNING, ENDED };
enum whether { NO, YES, ASK_PROC, ASK_REAPER };
enum wish { WISH_NOTHING, WISH_PROCEED, WISH_ABORT }; /* said before the checkpoint; the first one counts */

enum {
    HOLD_US = 3000,       /* the first events travel together if they are that close: one wake-up for all */
    QUIET_HOLD_US = 10000, /* nobody waits for any but the last */
    EXIT_LOST = 70,       /* told to Python by the zygote */
    CGROUP_US = 5000000,  /* how long the session's own cgroup may take to become empty */
    KEPT_INBOX_SIZE = 64 << 10, /* after a larger request the monitor goes, and its memory with it */
    REAPER_US = 2000000,  /* how long a reaper may take to clear up before we do its work, and then kill it too */
};

struct monitor {
    /* What is the same for all its sessions. */
    struct inbox in;
    struct outbox out;
    int signals;  /* signalfd(2) */
    bool port;
    bool spare;   /* goes by the name of one that waits for a session */
    bool served;  /* has had one already: of that one, Python may have said more than there was to hear */
    int dumpable; /* PR_GET_DUMPABLE, as it has always been */

    /* The session. */
    struct request request;
    enum phase phase;
    enum wish wish;
    enum whether executed;
    int control; /* our end of the child's pair */
    pid_t leader;         /* unreaped as long as it is not 0, so that its number is safe to signal; with `init` by pidfd */
    int64_t child_pid;    /* the leader's pid as it sees itself */
    pid_t starter;        /* whom we have cloned: the leader, or who brings it into other namespaces */
    int starter_pidfd;
    pid_t reaper;         /* the leader's parent, where that is not us */
    pid_t early;          /* a reaper that we have reaped before the starter could say which it is */
    int reaper_control, leader_pidfd; /* with a reaper */
    int init_pidfd;                   /* that of its PID namespace */
    bool cleared;         /* nothing lives below the reaper any more */
    bool lost;            /* somebody has killed the reaper: what was below it may have got away */
    uint8_t *kept_signals;
    size_t kept_count, kept_size;
    bool refused, aborting, gone, childless, may_have_reaper, init, ran, idle;
    bool odd; /* something has been said or left that ought not to be: no other session in this process */
    struct child_message refusal;
    bool linger;
    bool quiet;
    bool told; /* Python knows something of it already, or is to be told what `ran` does not say */
    int64_t orphan_grace_us, granted_at, hold_until;
    bool killing;
    int64_t kill_at;      /* when the grace is over; 0: none is running */
    int64_t killing_since;
    int round_ms;
    int cgroup, cgroup_parent; /* the session's own, which we remove; or -1 */
    char cgroup_name[NAME_MAX + 1];
    bool released;             /* Python has read what it wants of it */
    int64_t removing_since;
};

/* ---- events.c: what Python is told --------------------------------------------------------------------------- */

void emit_status(struct monitor *m, const char *name, const int64_t *argument, int passenger);
void emit_refusal(struct monitor *m, const char *name, const struct child_message *news);
void emit_usage(struct monitor *m, int status, const struct rusage *usage, bool ran);
void emit_error(struct monitor *m, int error, enum stage stage, int index);

/* What comes together, in one event: the beginning, the end, or all of an ordinary session. The first and the last take the
 * place of what has not been told yet. */
void emit_began(struct monitor *m, pid_t pid);
void emit_over(struct monitor *m, int code, const struct rusage *usage);
void emit_ran(struct monitor *m, pid_t pid, int code, const struct rusage *usage);

/* The session failed before there was a child. */
void fail(struct monitor *m, int error, enum stage stage);
void fail_at(struct monitor *m, int error, enum stage stage, int index);

/* ---- orders.c: what Python says ------------------------------------------------------------------------------ */

void hear_python(struct monitor *m);

/* Goes by the name of one that waits for a session, or of one that has one. */
void call_yourself(struct monitor *m, bool spare);

/* ---- start.c: from the request to the child ------------------------------------------------------------------ */

void take_request(struct monitor *m, struct etf_slice payload);
void start_child(struct monitor *m);

/* ---- leader.c: the workload, its starter and its reaper ------------------------------------------------------ */

/* Lets the parked child go on. */
void grant(struct monitor *m);

/* The leader is there. Consumes the pidfd. */
void leader_known(struct monitor *m, pid_t pid, int pidfd, int64_t child_pid);

/* All that the child had to say. End of file means executed or dead. A child that `has_executed` for sure has exited by
 * itself without a word, which only a program does; of others /proc knows. */
void hear_child(struct monitor *m, enum whether has_executed);

/* How the leader has ended, by its reaper; it stays a zombie until we permit its reaping, unless that is pid 1. */
void hear_reaper(struct monitor *m);

/* Reaps a child that is dead, or all of them. */
void reap_one(struct monitor *m, pid_t pid, bool exited);
void reap_all(struct monitor *m);

/* ---- ending.c: making an end of it --------------------------------------------------------------------------- */

void signal_leader(const struct monitor *m, int number);
void kill_all(struct monitor *m);
void abort_now(struct monitor *m);

/* SIGTERM. A stopped workload could not react, so it is woken. */
void ask_to_end(const struct monitor *m);

/* The same, wait, SIGKILL. A leader that is not known yet is asked when it is. */
void end_gracefully(struct monitor *m, int64_t grace_us);
void python_is_gone(struct monitor *m);

/* What the time has come for; in the rounds of `killing` that is a round. */
void end_what_is_due(struct monitor *m);

/* With a cgroup of its own a session is over when that is gone. It stays until Python has looked at its numbers, or is gone
 * itself: so there is no moment at which nobody would remove it. */
bool cgroup_is_gone(struct monitor *m);

#endif
