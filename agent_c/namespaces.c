#include "namespaces.h"

#include <linux/sched.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif

const struct namespace_kind namespace_kinds[NAMESPACE_COUNT] = {
    {"user", CLONE_NEWUSER}, {"mount", CLONE_NEWNS}, {"uts", CLONE_NEWUTS}, {"ipc", CLONE_NEWIPC},
    {"cgroup", CLONE_NEWCGROUP}, {"net", CLONE_NEWNET}, {"time", CLONE_NEWTIME}, {"pid", CLONE_NEWPID},
};

uint64_t namespace_flag(struct etf_slice name) {
    for (size_t i = 0; i < NAMESPACE_COUNT; i++)
        if (slice_is(name, namespace_kinds[i].name))
            return namespace_kinds[i].clone_flag;
    return 0;
}
