/* Between clone(2) and execve(2): the parked child. */
#ifndef LINX_CHILD_H
#define LINX_CHILD_H

#include "request.h"

/* What the child tells the monitor, one message each over a SOCK_SEQPACKET pair. End of file there means that it has
 * executed, or has died; /proc says which. */
enum child_news {
    CHILD_PARKED,
    CHILD_REFUSED,
    CHILD_DEGRADED,
    CHILD_OPENED,        /* with an fd that a step of the batch has opened, for Python */
    CHILD_DONE,          /* a batch of steps that it was told while parked */
    CHILD_REMAINS,       /* one of such a batch was refused; it is still parked */
    CHILD_JOINED,        /* it has joined the namespaces, and is itself the workload */
    CHILD_STEPPED_ASIDE, /* there is a reaper: `index` is its pid */
    CHILD_ADOPTED,       /* the workload under a reaper: `index` is its own pid as it sees it; with its pidfd, the reaper's socket, the pidfd of the init there */
};

struct child_message {
    int32_t news;
    int32_t error; /* errno */
    int32_t stage;
    int32_t index; /* of the step, or -1 */
};

/* What the monitor tells a parked child: one byte. CHILD_STEPS comes with an fd: a file with the batch's payload in it. */
enum { CHILD_GO = 'g', CHILD_STEPS = 's' };

/* Clones it: it runs `request`, with `control` its end of the pair, while this goes on. `request` must stay as it is until
 * the far end of the pair is closed. Returns its pid and its pidfd, or a negated errno. */
pid_t child_start(const struct request *request, int control, int *pidfd);

/* ---- inside the child ---------------------------------------------------------------------------------------- */

void child_say(int control, const struct child_message *message);
enum { ADOPTION_FDS = SENT_FDS_LIMIT }; /* what travels with CHILD_ADOPTED */
/* What sendmsg(2) says, or a negated errno. */
long child_tell_with_fds(int control, const struct child_message *message, const int *fds, size_t count);

/* CHILD_REFUSED, and the end of the process. `error` is an errno. */
_Noreturn void child_refuse(int control, long error, enum stage stage, int index);
_Noreturn void child_leave(void);

/* Closes all fds but these. */
void child_close_others(const int *kept, size_t count);

#endif
