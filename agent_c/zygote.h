/* The zygote: one per Python process. Receives session sockets, forks a monitor for each, knows nothing else. */
#ifndef LINX_ZYGOTE_H
#define LINX_ZYGOTE_H

#include "util.h"

/* Serves `control` (SOCK_SEQPACKET) until its end and until the last monitor is gone. */
int zygote_run(int control, int signals);

#endif
