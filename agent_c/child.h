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

/* Runs in the new process, with `control` its end of the pair; never returns. */
_Noreturn void child_main(const struct request *request, int control);

#endif
