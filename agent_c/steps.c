#include "steps.h"

#include <fcntl.h>
#include <sched.h>
#include <linux/netlink.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "frame.h"
#include "mounts.h"
#include "namespaces.h"
#include "places.h"
#include "privileges.h"
#include "raw.h"

static long step_umask(const struct step *s, struct step_room *room) {
    room->umask = (mode_t)s->number[0];
    return 0;
}

static long step_nice(const struct step *s, struct step_room *unused) {
    (void)unused;
    return RAW3(setpriority, PRIO_PROCESS, 0, s->number[0]);
}

static long step_rlimit(const struct step *s, struct step_room *unused) {
    (void)unused;
    uint64_t limit[2] = {(uint64_t)s->number[1], (uint64_t)s->number[2]}; /* -1 is RLIM_INFINITY (getrlimit(2)) */
    return RAW4(prlimit64, 0, s->number[0], limit, NULL);
}

static long step_hostname(const struct step *s, struct step_room *unused) {
    (void)unused;
    return RAW2(sethostname, s->text[0], strlen(s->text[0]));
}

static long step_setgroups(const struct step *s, struct step_room *unused) {
    (void)unused;
    return RAW2(setgroups, s->list_length, s->list);
}

static long step_setgid(const struct step *s, struct step_room *unused) {
    (void)unused;
    return RAW3(setresgid, s->number[0], s->number[0], s->number[0]);
}

static long step_setuid(const struct step *s, struct step_room *unused) {
    (void)unused;
    return RAW3(setresuid, s->number[0], s->number[0], s->number[0]);
}

static long step_chdir(const struct step *s, struct step_room *unused) {
    (void)unused;
    return RAW1(chdir, s->text[0]);
}

/* To where we are, by its name: what has been mounted there, or above it, is not in our way as long as we stay. */
static long step_chdir_again(const struct step *s, struct step_room *unused) {
    char path[4096];
    (void)s, (void)unused;
    long result = RAW2(getcwd, path, sizeof path);
    if (result >= 0 && path[0] != '/') /* "(unreachable)" */
        return -ENOENT;
    return result < 0 ? result : RAW1(chdir, path);
}

static long step_no_new_privs(const struct step *s, struct step_room *unused) {
    (void)s, (void)unused;
    return RAW5(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

/* All of it or nothing: of a value that it understands in part, "1 x", the kernel takes the part, and says how much that was. */
static bool write_file(const char *path, const void *data, size_t length, long *result) {
    long fd = RAW4(openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0);
    *result = fd < 0 ? fd : RAW3(write, fd, data, length);
    if (fd >= 0)
        (void)RAW1(close, fd);
    if (*result >= 0 && (size_t)*result != length)
        *result = -EINVAL;
    return *result >= 0;
}

/* What unshare(1) -r does: the one line that user_namespaces(7) lets everybody write, from inside. Text: "<inside> <outside> 1". */
static long step_own_uid_map(const struct step *s, struct step_room *unused) {
    (void)unused;
    long result;
    return write_file("/proc/self/uid_map", s->text[0], strlen(s->text[0]), &result) ? 0 : result;
}

static long step_own_gid_map(const struct step *s, struct step_room *unused) {
    (void)unused;
    long result;
    return write_file("/proc/self/setgroups", "deny", 4, &result) &&
                   write_file("/proc/self/gid_map", s->text[0], strlen(s->text[0]), &result)
               ? 0
               : result;
}

/* The name below /proc/sys has been checked by Python: no dots lead out of there. */
static long step_sysctl(const struct step *s, struct step_room *unused) {
    (void)unused;
    char path[512] = "/proc/sys/";
    size_t length = strlen(s->text[0]);
    long result;
    if (length + sizeof "/proc/sys/" > sizeof path)
        return -ENAMETOOLONG;
    memcpy(path + sizeof "/proc/sys/" - 1, s->text[0], length + 1);
    return write_file(path, s->text[1], strlen(s->text[1]), &result) ? 0 : result;
}

/* O_NONBLOCK: what is no namespace may be a FIFO, which shall not hold us up. */
static long join(const char *path, uint64_t flag) {
    long fd = RAW4(openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0);
    long result = fd < 0 ? fd : RAW2(setns, fd, flag);
    if (fd >= 0)
        (void)RAW1(close, fd);
    return result;
}

/* A time namespace is one's own from the next fork(2) on, and its offsets are fixed from the first process in it on: so it is
 * made, given its offsets, and then joined, which time_namespaces(7) lets a process do that has a single thread. */
static long step_time_offsets(const struct step *s, struct step_room *unused) {
    (void)unused;
    long result = RAW1(unshare, CLONE_NEWTIME);
    if (result < 0 || !write_file("/proc/self/timens_offsets", s->text[0], strlen(s->text[0]), &result))
        return result;
    return join("/proc/self/ns/time_for_children", CLONE_NEWTIME);
}

static uint64_t flag_of(const char *kind) { return namespace_flag((struct etf_slice){(const uint8_t *)kind, strlen(kind)}); }

/* For a child that has joined another process' namespaces: a fresh one of a kind that a process may change for itself. */
static long step_unshare(const struct step *s, struct step_room *room) {
    place_forget_parent(room); /* a directory of other mounts */
    return RAW1(unshare, flag_of(s->text[0]));
}

/* The one that pid 1 has made while we were at the steps before. It says how that went. */
static long step_net_of_init(const struct step *s, struct step_room *room) {
    (void)s;
    int32_t error = ECONNRESET; /* it has been killed, and we shall be */
    int fd = -1;
    if (room->init_end < 0)
        return -EINVAL;
    (void)receive_waiting(room->init_end, &error, sizeof error, &fd);
    long result = error != 0 ? -error : fd < 0 ? -EMFILE : RAW2(setns, fd, CLONE_NEWNET);
    if (fd >= 0)
        (void)RAW1(close, fd);
    return result;
}

/* A namespace that has a name: what ip-netns(8) or `mount --bind` keeps. */
static long step_setns(const struct step *s, struct step_room *room) {
    place_forget_parent(room);
    return join(s->text[1], flag_of(s->text[0]));
}

/* A socket belongs to the network namespace that it is made in, whoever uses it. */
static long step_netlink(const struct step *s, struct step_room *room) {
    long fd = RAW3(socket, AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, s->number[0]);
    if (fd >= 0) {
        close_fd(&room->opened);
        room->opened = (int)fd;
    }
    return fd;
}

static long step_oom_score_adj(const struct step *s, struct step_room *unused) {
    (void)unused;
    long result;
    return write_file("/proc/self/oom_score_adj", s->text[0], strlen(s->text[0]), &result) ? 0 : result;
}

static long step_cpu_affinity(const struct step *s, struct step_room *unused) {
    (void)unused;
    return RAW3(sched_setaffinity, 0, s->data_length, s->data);
}

static long step_domainname(const struct step *s, struct step_room *unused) {
    (void)unused;
    return RAW2(setdomainname, s->text[0], strlen(s->text[0]));
}

/* What has entered a container is closed to those inside. Where nobody is inside but its own kind, it may be entered in turn. */
static long step_dumpable(const struct step *s, struct step_room *unused) {
    (void)s, (void)unused;
    return RAW5(prctl, PR_SET_DUMPABLE, 1, 0, 0, 0);
}

/* TIOCSCTTY: the session leader that we are takes the terminal at fd 0. */
static long step_controlling_terminal(const struct step *s, struct step_room *unused) {
    (void)s, (void)unused;
    return RAW3(ioctl, 0, TIOCSCTTY, 0);
}

/* So that the workload can open its terminal by name too. Where ids are not mapped it stays somebody else's. */
static long step_terminal_owner(const struct step *s, struct step_room *unused) {
    (void)unused;
    long result = RAW3(fchown, 0, s->number[0], -1);
    return result == -EPERM || result == -EINVAL || result == -EROFS ? 0 : result;
}

/* One argument more than strictly needed would be refused as nonsense: `arguments` is the whole of it. */
const struct step_kind step_kinds[] = {
    {"own_uid_map", "t", STAGE_uid_map, step_own_uid_map},
    {"own_gid_map", "t", STAGE_gid_map, step_own_gid_map},
    {"unshare", "t", STAGE_unshare, step_unshare},
    {"setns", "tt", STAGE_setns_net, step_setns},
    {"net_of_init", "", STAGE_clone, step_net_of_init},
    {"time_offsets", "t", STAGE_time_offsets, step_time_offsets},
    {"private_mounts", "", STAGE_mount, mount_private},
    {"keep_terminal", "t", STAGE_mount, mount_keep_terminal},
    {"controlling_terminal", "", STAGE_stdio, step_controlling_terminal},
    {"umask", "i", STAGE_umask, step_umask},
    {"nice", "i", STAGE_nice, step_nice},
    {"rlimit", "iii", STAGE_rlimit, step_rlimit},
    {"oom_score_adj", "t", STAGE_oom_score_adj, step_oom_score_adj},
    {"cpu_affinity", "b", STAGE_cpu_affinity, step_cpu_affinity},
    {"hostname", "t", STAGE_hostname, step_hostname},
    {"domainname", "t", STAGE_domainname, step_domainname},
    {"sysctl", "tt", STAGE_sysctl, step_sysctl},
    {"mount_root", "t", STAGE_mount, mount_root},
    {"mount_bind", "ttii", STAGE_mount, mount_bind},
    {"mount_new", "tttti", STAGE_mount, mount_new},
    {"mount_remount", "tiii", STAGE_mount, mount_remount},
    {"mount_move", "tt", STAGE_mount, mount_move},
    {"mount_umount", "ti", STAGE_mount, mount_umount},
    {"mount_protect", "t", STAGE_mount, mount_protect},
    {"mount_mask", "t", STAGE_mount, mount_mask},
    {"mount_propagation", "tii", STAGE_mount, mount_propagation},
    {"make_dir", "ti", STAGE_mount, mount_make_dir},
    {"make_file", "tbi", STAGE_mount, mount_make_file},
    {"make_symlink", "tt", STAGE_mount, mount_make_symlink},
    {"pivot_root", "", STAGE_pivot_root, mount_pivot_root},
    {"name_terminal", "t", STAGE_mount, mount_name_terminal},
    {"terminal_owner", "d", STAGE_stdio, step_terminal_owner},
    {"dumpable", "", STAGE_unshare, step_dumpable},
    {"netlink", "i", STAGE_netlink, step_netlink},
    {"cap_drop_bounding", "i", STAGE_cap_drop_bounding, privileges_drop_bounding},
    {"securebits", "i", STAGE_cap_set_thread, privileges_securebits},
    {"setgroups", "l", STAGE_setgroups, step_setgroups},
    {"setgid", "d", STAGE_setgid, step_setgid},
    {"setuid", "d", STAGE_setuid, step_setuid},
    {"cap_set_thread", "iii", STAGE_cap_set_thread, privileges_set_thread},
    {"cap_set_ambient", "i", STAGE_cap_set_ambient, privileges_set_ambient},
    {"chdir", "t", STAGE_chdir, step_chdir},
    {"chdir_again", "", STAGE_chdir, step_chdir_again},
    {"no_new_privs", "", STAGE_no_new_privs, step_no_new_privs},
    {"seccomp", "bi", STAGE_seccomp_install, privileges_keep_filter},
};

const size_t step_kind_count = COUNT_OF(step_kinds);

/* As a rule steps come in the table's order, or many of a kind: so it goes on where it has been. */
const struct step_kind *step_kind_find(struct etf_slice name) {
    static size_t last;
    for (size_t i = 0; i < step_kind_count; i++) {
        size_t at = (last + i) % step_kind_count;
        if (slice_is(name, step_kinds[at].name)) {
            last = at;
            return &step_kinds[at];
        }
    }
    return NULL;
}

bool step_is_of_init(const struct step *step) { return step->kind->run == step_net_of_init; }

bool step_writes_own_map(const struct step *step) {
    return step->kind->run == step_own_uid_map || step->kind->run == step_own_gid_map;
}

bool step_changes_ids(const struct step *step) { return step->kind->run == step_setgid || step->kind->run == step_setuid; }

bool step_drops_rights(const struct step *step) {
    long (*const those[])(const struct step *, struct step_room *) = {
        step_setgroups, privileges_drop_bounding, privileges_set_thread,
    };
    for (size_t i = 0; i < COUNT_OF(those); i++)
        if (step->kind->run == those[i])
            return true;
    return step_changes_ids(step);
}

bool step_needs_own_memory(const struct step *step) {
    return step->kind->run == step_oom_score_adj || step->kind->run == step_time_offsets ||
           (step->kind->run == step_setns && flag_of(step->text[0]) == CLONE_NEWTIME);
}
