#include "mounts.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "places.h"

enum {
    TREE_CLONE = 1,
    RECURSIVELY = 0x8000, /* AT_RECURSIVE */
    FD_TO_NAME = 0x4,     /* MOVE_MOUNT_F_EMPTY_PATH */
    FD_TO_FD = 0x4 | 0x40, /* and MOVE_MOUNT_T_EMPTY_PATH */
    SET_FLAG = 0, SET_STRING = 1, CREATE = 6, /* fsconfig(2) */
    CLOEXEC = 1,          /* of fsopen(2) and fsmount(2) */
    STRING_LIMIT = 255,   /* of fsconfig(2) */
    PAGE_LIMIT = 4095,    /* of mount(2), which cuts what is longer without a word */
};

struct attributes { /* struct mount_attr */
    uint64_t set, clear, propagation, user_namespace;
};

/* mount(2), umount2(2) and pivot_root(2) take paths only. "." is one that needs no /proc, in which we might not be. */
static long work_in(long directory) {
    long before = RAW4(openat, AT_FDCWD, ".", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    long result = before < 0 ? before : RAW1(fchdir, directory);
    if (result >= 0)
        return before;
    drop(before);
    return result;
}

static void work_again_in(long directory) {
    (void)RAW1(fchdir, directory);
    drop(directory);
}

/* ---- mounting ------------------------------------------------------------------------------------------------ */

static long set_attributes(long mount, int64_t set, int64_t clear, int64_t propagation, bool recursively) {
    struct attributes attributes = {(uint64_t)set, (uint64_t)clear, (uint64_t)propagation, 0};
    long flags = AT_EMPTY_PATH | (recursively ? RECURSIVELY : 0);
    return RAW5(mount_setattr, mount, "", flags, &attributes, sizeof attributes);
}

/* The target's fd is ours to close. */
static long move_onto(long mount, long target) {
    long result = target < 0 ? target : RAW5(move_mount, mount, "", target, "", FD_TO_FD);
    drop(target);
    return result;
}

/* What has just been made there is named and not opened again; no symlink in its place would be followed. */
static long move_to(struct step_room *room, long mount, const char *path, bool directory) {
    const char *name;
    long parent, result = place_make(room, path, directory, &parent, &name);
    if (result >= 0)
        result = RAW5(move_mount, mount, "", parent, name, FD_TO_NAME);
    else if (result == -EEXIST)
        result = move_onto(mount, place_open(room, path, O_PATH, 0));
    if (directory) /* paths lead elsewhere now */
        place_forget_parent(room);
    return result;
}

static long take_tree(const char *source, bool recursively) {
    return RAW3(open_tree, AT_FDCWD, source, TREE_CLONE | O_CLOEXEC | (recursively ? RECURSIVELY : 0));
}

long mount_bind(const struct step *s, struct step_room *room) {
    struct stat what;
    bool recursively = s->number[1] != 0;
    long tree = take_tree(s->text[0], recursively);
    if (tree < 0)
        return tree;
    long result = s->number[0] != 0 ? set_attributes(tree, s->number[0], 0, 0, recursively) : 0;
    if (result >= 0)
        result = RAW4(newfstatat, tree, "", &what, AT_EMPTY_PATH);
    if (result >= 0)
        result = move_to(room, tree, s->text[1], S_ISDIR(what.st_mode));
    drop(tree);
    return result;
}

/* The options are separated by commas; a comma in one has a backslash before it. `take` gets each, without backslashes. */
static long each_option(const char *options, long context, long (*take)(long context, char *option)) {
    char option[4096];
    long result = 0;
    while (*options != '\0' && result >= 0) {
        size_t used = 0;
        for (; *options != '\0' && *options != ','; options++) {
            if (*options == '\\' && options[1] != '\0')
                options++;
            if (used + 1 == sizeof option)
                return -ENAMETOOLONG;
            option[used++] = *options;
        }
        option[used] = '\0';
        options += *options == ',';
        result = take(context, option);
    }
    return result;
}

static long configure(long context, char *option) {
    char *value = strchr(option, '=');
    if (value == NULL)
        return RAW5(fsconfig, context, SET_FLAG, option, NULL, 0);
    *value++ = '\0';
    return RAW5(fsconfig, context, SET_STRING, option, value, 0);
}

static bool has_long_option(const char *options) {
    for (; *options != '\0'; options += strcspn(options, ",") + (options[strcspn(options, ",")] == ','))
        if (strcspn(options, ",") > STRING_LIMIT)
            return true;
    return false;
}

/* fsconfig(2) takes no long values, of which overlayfs has some. mount(2) does. */
static long mount_the_old_way(const struct step *s, struct step_room *room) {
    const char *name;
    long parent;
    if (strlen(s->text[3]) > PAGE_LIMIT)
        return -E2BIG;
    long made = place_make(room, s->text[2], true, &parent, &name);
    place_forget_parent(room);
    long target = made < 0 && made != -EEXIST ? made : place_open(room, s->text[2], O_PATH, 0);
    long before = target < 0 ? target : work_in(target);
    drop(target);
    if (before < 0)
        return before;
    long result = RAW5(mount, s->text[1], ".", s->text[0], s->number[0], s->text[3]);
    work_again_in(before);
    return result;
}

static long new_mount(const struct step *s) {
    long context = RAW2(fsopen, s->text[0], CLOEXEC);
    if (context < 0)
        return context;
    long result = s->text[1][0] != '\0' ? RAW5(fsconfig, context, SET_STRING, "source", s->text[1], 0) : 0;
    if (result >= 0)
        result = each_option(s->text[3], context, configure);
    if (result >= 0)
        result = RAW5(fsconfig, context, CREATE, NULL, NULL, 0);
    if (result >= 0)
        result = RAW3(fsmount, context, CLOEXEC, s->number[0]);
    drop(context);
    return result;
}

/* MOUNT_ATTR_RDONLY, NOSUID, NODEV and NOEXEC are the same bits as MS_*. */
long mount_new(const struct step *s, struct step_room *room) {
    if (has_long_option(s->text[3]))
        return mount_the_old_way(s, room);
    long mount = new_mount(s);
    if (mount < 0)
        return mount;
    long result = move_to(room, mount, s->text[2], true);
    drop(mount);
    return result;
}

long mount_remount(const struct step *s, struct step_room *room) {
    long mount = place_open(room, s->text[0], O_PATH, 0);
    if (mount < 0)
        return mount;
    long result = set_attributes(mount, s->number[0], s->number[1], 0, s->number[2] != 0);
    drop(mount);
    return result;
}

enum { HARMLESS = 1 | 2 | 4 | 8 }; /* MOUNT_ATTR_RDONLY, NOSUID, NODEV, NOEXEC */

/* What is there becomes a mount of its own, and read-only. What is not there needs no protection. */
long mount_protect(const struct step *s, struct step_room *room) {
    long place = place_open(room, s->text[0], O_PATH, 0);
    if (place < 0)
        return place == -ENOENT ? 0 : place;
    long tree = RAW3(open_tree, place, "", TREE_CLONE | O_CLOEXEC | AT_EMPTY_PATH | RECURSIVELY);
    long result = tree < 0 ? tree : set_attributes(tree, HARMLESS, 0, 0, true);
    if (result >= 0)
        result = move_onto(tree, place);
    else
        drop(place);
    drop(tree);
    place_forget_parent(room);
    return result;
}

static long new_cover(bool directory) {
    static const struct step empty = {.text = {"tmpfs", "tmpfs", "", "size=4k,mode=555"}, .number = {HARMLESS}};
    long cover = directory ? new_mount(&empty) : take_tree("/dev/null", false);
    if (cover < 0 || directory)
        return cover;
    long result = set_attributes(cover, 1 | 2 | 8, 0, 0, false); /* all of HARMLESS but NODEV: it is a device */
    if (result >= 0)
        return cover;
    drop(cover);
    return result;
}

/* There are many of them as a rule, and one cover can be in several places. The first one is kept to be cloned once it is
 * mounted; before that, older kernels would not. */
static long put_cover(int *kept, bool directory, long place) {
    bool first = *kept < 0;
    long cover = first ? new_cover(directory) : RAW3(open_tree, *kept, "", TREE_CLONE | O_CLOEXEC | AT_EMPTY_PATH);
    long result = cover < 0 ? cover : RAW5(move_mount, cover, "", place, "", FD_TO_FD);
    if (first && result >= 0)
        *kept = (int)cover;
    else
        drop(cover);
    return result;
}

/* What is there is covered: a directory by an empty one, a file by the null device. */
long mount_mask(const struct step *s, struct step_room *room) {
    struct stat what;
    long place = place_open(room, s->text[0], O_PATH, 0);
    if (place < 0)
        return place == -ENOENT ? 0 : place;
    long result = RAW4(newfstatat, place, "", &what, AT_EMPTY_PATH);
    bool directory = S_ISDIR(what.st_mode);
    if (result >= 0)
        result = put_cover(directory ? &room->empty_directory : &room->null_device, directory, place);
    drop(place);
    if (directory)
        place_forget_parent(room);
    return result;
}

void mounts_forget(struct step_room *room) {
    place_forget_parent(room);
    drop(room->empty_directory);
    drop(room->null_device);
    room->empty_directory = room->null_device = -1;
}

long mount_propagation(const struct step *s, struct step_room *room) {
    long mount = place_open(room, s->text[0], O_PATH, 0);
    if (mount < 0)
        return mount;
    long result = set_attributes(mount, 0, 0, s->number[0], s->number[1] != 0);
    drop(mount);
    if (result >= 0 && strcmp(s->text[0], "/") == 0)
        room->root_is_unbindable = false;
    return result;
}

/* What is mounted from here on stays in the workload's own mount namespace, and what the host mounts stays out. */
long mount_private(const struct step *s, struct step_room *unused) {
    (void)s, (void)unused;
    return RAW5(mount, NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
}

long mount_move(const struct step *s, struct step_room *room) {
    struct stat what;
    long mount = place_open(room, s->text[0], O_PATH, 0);
    long result = mount < 0 ? mount : RAW4(newfstatat, mount, "", &what, AT_EMPTY_PATH);
    if (result >= 0)
        result = move_to(room, mount, s->text[1], S_ISDIR(what.st_mode));
    drop(mount);
    place_forget_parent(room); /* where it was, paths lead elsewhere as well */
    return result;
}

/* By its path alone: an fd of the mount would keep it busy. The root is our own by now, so no symlink leads out of it. */
long mount_umount(const struct step *s, struct step_room *room) {
    place_forget_parent(room);
    return room->root >= 0 ? -EINVAL : RAW2(umount2, s->text[0], s->number[0]);
}

/* ---- the root ------------------------------------------------------------------------------------------------ */

/* `path` becomes a mount of its own, as pivot_root(2) wants it. No path: an empty tmpfs, on top of "/"; our own root is below
 * it, so that we see all that we saw. */
long mount_root(const struct step *s, struct step_room *room) {
    static const struct step empty = {.text = {"tmpfs", "tmpfs", "", "mode=755"}, .number = {MS_NOSUID | MS_NODEV}};
    bool fresh = s->text[0][0] == '\0';
    const char *path = fresh ? "/" : s->text[0];
    long mount = fresh ? new_mount(&empty) : take_tree(path, true);
    if (mount < 0)
        return mount;
    long target = RAW4(openat, AT_FDCWD, path, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    long result = target < 0 ? target : RAW5(move_mount, mount, "", target, "", FD_TO_FD);
    drop(target);
    if (result >= 0) /* what is bound from "/" or thereabouts is without it */
        result = set_attributes(mount, 0, 0, MS_UNBINDABLE, false);
    if (result < 0) {
        drop(mount);
        return result;
    }
    place_forget_parent(room);
    drop(room->root);
    room->root = (int)mount;
    room->root_is_tmpfs = place_is_on_tmpfs(mount);
    room->root_is_unbindable = true;
    return 0;
}

long mount_pivot_root(const struct step *s, struct step_room *room) {
    (void)s;
    if (room->root < 0)
        return -EINVAL;
    long result = room->root_is_unbindable ? set_attributes(room->root, 0, 0, MS_PRIVATE, false) : 0;
    long before = result < 0 ? result : work_in(room->root);
    place_forget_parent(room);
    drop(room->root);
    room->root = -1;
    if (before < 0)
        return before;
    result = RAW2(pivot_root, ".", "."); /* the old root is on top of the new one now … */
    if (result < 0) {
        work_again_in(before);
        return result;
    }
    drop(before);
    result = RAW2(umount2, ".", MNT_DETACH); /* … and gone */
    return result < 0 ? result : RAW1(chdir, "/");
}

/* ---- the terminal's name ------------------------------------------------------------------------------------- */

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
 * needs it later (mount_name_terminal). Where it has no name even now, it will have none. */
long mount_keep_terminal(const struct step *s, struct step_room *room) {
    struct stat dev;
    if (RAW4(newfstatat, AT_FDCWD, "/dev", &dev, 0) == 0) {
        room->dev_device = dev.st_dev;
        room->dev_inode = dev.st_ino;
    }
    room->terminal = names_the_terminal(s->text[0]) ? (int)take_tree(s->text[0], false) : -1;
    return 0;
}

/* What container runtimes do: a terminal without a name in the workload's own /dev becomes its /dev/console, where
 * ttyname(3) finds it. It is made there if need be, but not in a /dev that is still the host's. Without one it stays unnamed. */
long mount_name_terminal(const struct step *s, struct step_room *room) {
    if (room->terminal < 0 || names_the_terminal(s->text[0]))
        return 0;
    if (!is_same_directory("/dev", room)) {
        long file = RAW4(openat, AT_FDCWD, "/dev/console", O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
        drop(file);
    }
    long result = RAW5(move_mount, room->terminal, "", AT_FDCWD, "/dev/console", 0x4); /* MOVE_MOUNT_F_EMPTY_PATH */
    return result < 0 && result != -ENOMEM && result != -ENOSPC ? 0 : result; /* it is a name, and no more */
}
