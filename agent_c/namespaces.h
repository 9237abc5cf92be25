/* The eight kinds of namespaces(7), in the order in which setns(2) has to join them. */
#ifndef LINX_NAMESPACES_H
#define LINX_NAMESPACES_H

#include "etf.h"

struct namespace_kind {
    const char *name;  /* as in unshare(1) and on the wire */
    uint64_t clone_flag;
};

enum { NAMESPACE_COUNT = 8 };
extern const struct namespace_kind namespace_kinds[NAMESPACE_COUNT];

/* The CLONE_NEW* flag of a name, or 0. */
uint64_t namespace_flag(struct etf_slice name);

#endif
