/* One session's monitor: the workload's parent, and the one who sees to it that nothing of the session is left. */
#ifndef LINX_MONITOR_H
#define LINX_MONITOR_H

#include "util.h"

/* Serves the session on `in` and `out` (one socket, or a port's two pipes) and returns the exit status. SIGCHLD, like
 * every signal, is blocked, and arrives on `signals`, a signalfd(2). */
int monitor_run(int in, int out, int signals, bool port);

/* The commands and events of the vocabulary, for --describe; NULL-terminated. */
extern const char *const monitor_commands[];
extern const char *const monitor_events[];

#endif
