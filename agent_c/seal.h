/* The agent runs from a copy of its program in memory that nobody can change any more (memfd_create(2), F_ADD_SEALS).
 *
 * A process that enters a container can be reached from inside through /proc/<pid>/exe, and a program there that is a link to
 * /proc/self/exe executes it. If that were a file of the host, root in there could overwrite it, and whoever runs it next
 * would run theirs (CVE-2019-5736). */
#ifndef LINX_SEAL_H
#define LINX_SEAL_H

#include "util.h"

/* Executes `argv` again from a sealed copy, unless that is what runs already. Returns whether it is: the kernel may refuse
 * such a copy (vm.memfd_noexec), and then nobody's namespaces can be entered. */
bool seal_self(char **argv);

/* What seal_self has returned. */
extern bool is_sealed;

#endif
