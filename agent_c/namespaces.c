#include "namespaces.h"

#include <linux/sched.h>

#define KIND(name, flag, file, own) {#name, flag, "ns/" file, "self/ns/" own, STAGE_open_ns_##name, STAGE_setns_##name}

const struct namespace_kind namespace_kinds[NAMESPACE_COUNT] = {
    KIND(user, CLONE_NEWUSER, "user", "user"),
    KIND(mount, CLONE_NEWNS, "mnt", "mnt"),
    KIND(uts, CLONE_NEWUTS, "uts", "uts"),
    KIND(ipc, CLONE_NEWIPC, "ipc", "ipc"),
    KIND(cgroup, CLONE_NEWCGROUP, "cgroup", "cgroup"),
    KIND(net, CLONE_NEWNET, "net", "net"),
    KIND(time, CLONE_NEWTIME, "time", "time"),
    KIND(pid, CLONE_NEWPID, "pid", "pid_for_children"),
};

uint64_t namespace_flag(struct etf_slice name) {
    for (size_t i = 0; i < NAMESPACE_COUNT; i++)
        if (slice_is(name, namespace_kinds[i].name))
            return namespace_kinds[i].clone_flag;
    return 0;
}
