/* Between clone(2) and execve(2): the parked child. */
#ifndef LINX_CHILD_H
#define LINX_CHILD_H

#include "request.h"

/* What the child tells the monitor, one message each over a SOCK_SEQPACKET pair. End of file there means that it has
 * executed, or has died; /proc says which. */
enum child_news { CHILD_PARKED, CHILD_REFUSED, CHILD_DEGRADED };

struct child_message {
    int32_t news;
    int32_t error; /* errno */
    int32_t stage;
    int32_t index; /* of the step, or -1 */
};

/* Clones it: it runs `request`, with `control` its end of the pair, while this goes on. `request` must stay as it is until
 * the far end of the pair is closed. Returns its pid and its pidfd, or a negated errno. */
pid_t child_start(const struct request *request, int control, int *pidfd);

#endif
