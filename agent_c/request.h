/* A session's one request, `{spawn, #{…}}`, parsed into what the kernel wants: NULL-terminated arrays, flags, fds.
 *
 * All text is copied into one arena, so that the frame can go. */
#ifndef LINX_REQUEST_H
#define LINX_REQUEST_H

#include "frame.h"
#include "steps.h"

/* The target "numbers" of the fds that are no fds of the workload: the caller's working directory, the directory
 * /proc/<pid> of the process whose namespaces are entered, the cgroup to be born into, and the one that this is below. */
enum { FD_CWD = -1, FD_TARGET = -2, FD_CGROUP = -3, FD_CGROUP_PARENT = -4 };

enum { SOURCE_NULL = -2 }; /* /dev/null, which is still to be opened */

struct planned_fd {
    int source; /* owned */
    int target; /* the number the workload sees it by, or one of those above */
};

struct request {
    char **argv, **envp; /* envp NULL: the agent's own (ports only) */
    uint64_t namespaces; /* CLONE_NEW*, to be created */
    bool enters;         /* it joins namespaces of a target … */
    uint64_t joins;      /* … of these kinds, CLONE_NEW* … */
    bool joins_all;      /* … or of all that there are */
    int target_error;    /* a port's target that could not be opened: errno */
    struct step *steps;
    size_t step_count;
    struct planned_fd fds[FDS_LIMIT];
    size_t fd_count;
    bool auto_proceed, new_session;
    bool quiet;                /* nobody waits for `running`: it may be held back like the events before it */
    bool init;                 /* with a fresh PID namespace: a reaper of ours is pid 1, and the workload its child */
    const char *own_cgroup;    /* the name, below FD_CGROUP_PARENT, of an FD_CGROUP that is this session's alone; or NULL */
    bool stderr_to_stdout;     /* a port's `stderr => stdout` */
    bool linger;               /* orphan policy: leave it running, or … */
    int64_t orphan_grace_us;   /* … SIGTERM, wait, SIGKILL */
    char *arena;
    size_t arena_used, arena_size, arrays_at;
};

/* Fills `request`. The frame's fds are taken from `in`. False: the term is no request, errno says what kind of no. In a
 * port unknown map keys are skipped; in a session they are refused, because what is asked for is done or refused. */
bool request_parse(struct request *request, struct etf_slice payload, struct inbox *in, bool port);

/* `{steps, List}`, said to a parked child: into a request that has nothing but steps. */
bool request_parse_steps(struct request *request, struct etf_slice payload);

/* Opens all the null devices. False: errno, and for which of the workload's fds. */
bool request_open_nulls(struct request *request, int *target);

bool request_has_step(const struct request *request, bool (*is_it)(const struct step *step));

/* The fd with one of the FD_* targets, or -1. */
int request_fd(const struct request *request, int target);

void request_close_fds(struct request *request);
void request_free(struct request *request);

#endif
