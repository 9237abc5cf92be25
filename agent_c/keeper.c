/* Theory. A workload's namespaces end with it, and all that is in them. What Python makes elsewhere does not: a bridge in the
 * host's own network namespace, a cgroup. Python undoes it when its block is left, but it may be killed. So a monitor without a
 * workload, the keeper, holds what that takes, and for each thing a will: what is to be done when the socket is at its end.
 * Python revokes a will once it has done that by itself.
 *
 *   {keep, netlink} + a netlink socket        the will is a message for it
 *   {keep, cgroup}  + a cgroup's directory    the will is the name of one below, which is killed and removed
 *
 *   {will, Number, Bytes}    {revoke, Number}
 *
 * The last will is executed first: what was made last may stand on what was made before. */
#include "keeper.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "cgroup.h"

enum { TRIES = 100, PAUSE_MS = 50, MESSAGE_LIMIT = 4096 };

const char *const keeper_words[] = {"netlink", "cgroup", "will", "revoke", NULL};

struct will {
    int64_t number;
    size_t length;
    uint8_t *data; /* followed by NUL */
};

struct keeper {
    int fd;
    bool cgroups;
    struct will *wills; /* in the order in which they came */
    size_t count, size;
};

static bool kind_of(struct etf_slice payload, bool *cgroups) {
    struct etf_reader r = etf_open(payload.data, payload.length);
    if (etf_peek(&r) != ETF_TUPLE || etf_tuple(&r) != 2 || !slice_is(etf_atom(&r), "keep"))
        return false;
    struct etf_slice kind = etf_atom(&r);
    *cgroups = slice_is(kind, "cgroup");
    return etf_done(&r) && (*cgroups || slice_is(kind, "netlink"));
}

bool keeper_wanted(struct etf_slice payload) {
    bool unused;
    return kind_of(payload, &unused);
}

static void revoke_will(struct keeper *k, int64_t number) {
    for (size_t i = 0; i < k->count; i++) {
        if (k->wills[i].number != number)
            continue;
        free(k->wills[i].data);
        memmove(&k->wills[i], &k->wills[i + 1], (--k->count - i) * sizeof *k->wills);
        return;
    }
}

static void take_will(struct keeper *k, int64_t number, struct etf_slice bytes) {
    if (k->count == k->size) {
        size_t size = k->size * 2 + 16;
        struct will *larger = realloc(k->wills, size * sizeof *larger);
        if (larger == NULL)
            return;
        k->wills = larger;
        k->size = size;
    }
    uint8_t *data = malloc(bytes.length + 1);
    if (data == NULL)
        return;
    memcpy(data, bytes.data, bytes.length);
    data[bytes.length] = '\0';
    k->wills[k->count++] = (struct will){number, bytes.length, data};
}

/* False: nonsense. */
static bool obey(struct keeper *k, struct etf_slice payload) {
    struct etf_reader r = etf_open(payload.data, payload.length);
    size_t arity = etf_peek(&r) == ETF_TUPLE ? etf_tuple(&r) : 0;
    struct etf_slice name = etf_atom(&r);
    int64_t number = etf_integer(&r);
    if (arity == 2 && slice_is(name, "revoke") && etf_done(&r)) {
        revoke_will(k, number);
        return true;
    }
    struct etf_slice bytes = etf_text(&r);
    if (arity != 3 || !slice_is(name, "will") || !etf_done(&r) || bytes.length > MESSAGE_LIMIT)
        return false;
    revoke_will(k, number);
    take_will(k, number, bytes);
    return true;
}

static void remove_cgroup(int parent, const char *name) {
    if (strchr(name, '/') != NULL || name[0] == '.' || name[0] == '\0')
        return;
    for (int tries = 0; !cgroup_remove(parent, name) && tries < TRIES; tries++) {
        OWN_FD int directory = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (directory >= 0)
            (void)cgroup_kill(directory);
        (void)poll(NULL, 0, tries == 0 ? 1 : PAUSE_MS);
    }
}

static void execute_wills(struct keeper *k) {
    while (k->count > 0) {
        struct will *will = &k->wills[--k->count];
        if (k->cgroups)
            remove_cgroup(k->fd, (const char *)will->data);
        else
            (void)send(k->fd, will->data, will->length, MSG_DONTWAIT | MSG_NOSIGNAL);
        free(will->data);
    }
    free(k->wills);
}

void keeper_run(struct inbox *in, struct etf_slice payload) {
    struct keeper k = {.fd = in->fd_count > 0 ? in->fds[0] : -1};
    if (!kind_of(payload, &k.cgroups))
        return;
    (void)prctl(PR_SET_NAME, "linx-keeper", 0, 0, 0); /* no session's monitor */
    for (;;) {
        struct etf_slice said;
        while (inbox_next(in, &said))
            in->eof |= !obey(&k, said); /* who speaks nonsense cannot be trusted to say more */
        if (in->eof)
            break;
        struct pollfd p = {in->fd, POLLIN, 0};
        (void)poll(&p, 1, -1);
        inbox_fill(in);
    }
    execute_wills(&k);
}
