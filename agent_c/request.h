/* A session's one request, `{spawn, #{…}}`, parsed into what the kernel wants: NULL-terminated arrays, flags, fds.
 *
 * All text is copied into one arena, so that the frame can go and everything is freed in two calls. */
#ifndef LINX_REQUEST_H
#define LINX_REQUEST_H

#include "frame.h"
#include "steps.h"

enum { FD_CWD = -1 }; /* the target "number" of the fd that is the caller's working directory */

struct planned_fd {
    int source; /* owned */
    int target; /* the number the workload sees it by, or FD_CWD */
};

struct request {
    char **argv, **envp; /* envp NULL: the agent's own (ports only) */
    uint64_t namespaces; /* CLONE_NEW* */
    struct step *steps;
    size_t step_count;
    struct planned_fd fds[FDS_LIMIT];
    size_t fd_count;
    bool auto_proceed, new_session;
    bool quiet;                /* nobody waits for `running`: it may be held back like the events before it */
    bool stderr_to_stdout;     /* a port's `stderr => stdout` */
    bool linger;               /* orphan policy: leave it running, or … */
    int64_t orphan_grace_us;   /* … SIGTERM, wait, SIGKILL */
    char *arena;
    size_t arena_used, arena_size;
};

/* Fills `request`. The frame's fds are taken from `in`. False: the term is no request, errno says what kind of no. In a
 * port unknown map keys are skipped; in a session they are refused, because what is asked for is done or refused. */
bool request_parse(struct request *request, struct etf_slice payload, struct inbox *in, bool port);

void request_close_fds(struct request *request);
void request_free(struct request *request);

#endif
