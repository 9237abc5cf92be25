/* Whether we are still what our zygote was.
 *
 * A workload of our own user can reach its parent: renice(1), taskset(1), choom(1) and prlimit(1) take $PPID, so does a cgroup's
 * file; and with keyctl(2) whoever is in whatever namespaces gives his session keyring to his parent. All of that would be
 * handed on to the next session. So a monitor that finds itself changed ends, and with it what was done to it. (Who can do more,
 * by ptrace(2), can do that to the zygote and to Python as well.) */
#ifndef LINX_SELF_H
#define LINX_SELF_H

#include <stdbool.h>

/* This is how it ought to be: said once, by the zygote. */
void self_note(void);

bool self_is_as_noted(void);

/* Whether somebody has sent us real-time signals. All signals are blocked, so they would stay for ever; and these are queued,
 * where a user has room for so many. */
bool self_has_queued_signals(void);

#endif
