/* Joining the namespaces of another process, in the child and before anything else that it does. */
#ifndef LINX_ENTER_H
#define LINX_ENTER_H

#include "request.h"

/* Returns in the process that becomes the workload, inside of the namespaces; the others that it needs on the way end by
 * themselves. What is refused is told over `control` (child.h). */
void enter_namespaces(const struct request *request, int control);

#endif
