/* Joining the namespaces of another process, in the child and before anything else that it does. */
#ifndef LINX_ENTER_H
#define LINX_ENTER_H

#include "reaper.h"
#include "request.h"

/* The process that becomes the workload goes on inside of the namespaces; the others that it needs on the way end by
 * themselves. What is refused is told over `control` (child.h). */
int enter_namespaces(const struct request *request, int control, going_on *go_on, const void *context);

#endif
