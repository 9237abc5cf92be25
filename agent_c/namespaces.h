/* The kinds of namespaces(7), in the order in which they are opened and joined. */
#ifndef LINX_NAMESPACES_H
#define LINX_NAMESPACES_H

#include "etf.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif

enum { NAMESPACE_COUNT = 8 };

struct namespace_kind {
    const char *name;
    uint64_t clone_flag;
    const char *file; /* below /proc/<pid>/ns */
    const char *own;  /* our own there, to compare with: pid namespaces are joined by the children */
    enum stage open_stage, join_stage;
};

extern const struct namespace_kind namespace_kinds[NAMESPACE_COUNT];

/* The CLONE_NEW* flag of a kind, or 0. */
uint64_t namespace_flag(struct etf_slice name);

#endif
