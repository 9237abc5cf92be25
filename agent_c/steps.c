#include "steps.h"

#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "raw.h"

static long step_umask(const struct step *s, struct step_room *unused) {
    (void)unused;
    return RAW1(umask, s->number[0]) < 0;
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
    return RAW2(sethostname, s->text, strlen(s->text));
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
    return RAW1(chdir, s->text);
}

static long step_no_new_privs(const struct step *s, struct step_room *unused) {
    (void)s, (void)unused;
    return RAW5(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

/* ---- mounts and the terminal's name --------------------------------------------------------------------------- */

#ifndef SYS_open_tree
#define SYS_open_tree 428
#endif
#ifndef SYS_move_mount
#define SYS_move_mount 429
#endif
enum { TREE_CLONE = 1, MOVE_FROM_FD = 4 }; /* OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH: libcs differ in having them */

/* What is mounted from here on stays in the workload's own mount namespace, and what the host mounts stays out. */
static long step_private_mounts(const struct step *s, struct step_room *unused) {
    (void)s, (void)unused;
    return RAW5(mount, NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
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

static bool names_the_terminal(const char *path) {
    struct stat named, ours;
    return RAW4(newfstatat, AT_FDCWD, path, &named, 0) == 0 && RAW4(newfstatat, 0, "", &ours, AT_EMPTY_PATH) == 0 &&
           named.st_dev == ours.st_dev && named.st_ino == ours.st_ino;
}

static bool is_same_directory(const char *path, const struct step_room *room) {
    struct stat there;
    return RAW4(newfstatat, AT_FDCWD, path, &there, 0) == 0 && there.st_dev == room->dev_device &&
           there.st_ino == room->dev_inode;
}

/* As long as the host's /dev/pts is there, the terminal can be taken from it; whoever mounts another one, or another root,
 * needs it later (name_terminal). Where it has no name even now, it will have none. */
static long step_keep_terminal(const struct step *s, struct step_room *room) {
    struct stat dev;
    if (RAW4(newfstatat, AT_FDCWD, "/dev", &dev, 0) == 0) {
        room->dev_device = dev.st_dev;
        room->dev_inode = dev.st_ino;
    }
    long tree = names_the_terminal(s->text) ? RAW3(open_tree, AT_FDCWD, s->text, TREE_CLONE | O_CLOEXEC) : -1;
    room->terminal = (int)tree;
    return 0;
}

/* What container runtimes do: a terminal without a name in the workload's own /dev becomes its /dev/console, where
 * ttyname(3) finds it. It is made there if need be, but not in a /dev that is still the host's. Without one it stays unnamed. */
static long step_name_terminal(const struct step *s, struct step_room *room) {
    if (room->terminal < 0 || names_the_terminal(s->text))
        return 0;
    if (!is_same_directory("/dev", room)) {
        long file = RAW4(openat, AT_FDCWD, "/dev/console", O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
        if (file >= 0)
            (void)RAW1(close, file);
    }
    long result = RAW5(move_mount, room->terminal, "", AT_FDCWD, "/dev/console", MOVE_FROM_FD);
    return result < 0 && result != -ENOMEM && result != -ENOSPC ? 0 : result; /* it is a name, and no more */
}

const struct step_kind step_kinds[] = {
    {"private_mounts", "", STAGE_mount, step_private_mounts},
    {"keep_terminal", "t", STAGE_mount, step_keep_terminal},
    {"controlling_terminal", "", STAGE_stdio, step_controlling_terminal},
    {"umask", "i", STAGE_umask, step_umask},
    {"nice", "i", STAGE_nice, step_nice},
    {"rlimit", "iii", STAGE_rlimit, step_rlimit},
    {"hostname", "t", STAGE_hostname, step_hostname},
    {"name_terminal", "t", STAGE_mount, step_name_terminal},
    {"terminal_owner", "d", STAGE_stdio, step_terminal_owner},
    {"setgroups", "l", STAGE_setgroups, step_setgroups},
    {"setgid", "d", STAGE_setgid, step_setgid},
    {"setuid", "d", STAGE_setuid, step_setuid},
    {"chdir", "t", STAGE_chdir, step_chdir},
    {"no_new_privs", "", STAGE_no_new_privs, step_no_new_privs},
};

const size_t step_kind_count = COUNT_OF(step_kinds);

const struct step_kind *step_kind_find(struct etf_slice name) {
    for (size_t i = 0; i < step_kind_count; i++)
        if (slice_is(name, step_kinds[i].name))
            return &step_kinds[i];
    return NULL;
}
