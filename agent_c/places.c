#include "places.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

enum { IN_ROOT = 0x10 /* RESOLVE_IN_ROOT */, LOOKUPS = 1000, TMPFS = 0x01021994 /* TMPFS_MAGIC */ };

static long root_of(const struct step_room *room) {
    return room->root >= 0 ? RAW3(fcntl, room->root, F_DUPFD_CLOEXEC, 3)
                           : RAW4(openat, AT_FDCWD, "/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
}

long place_open(const struct step_room *room, const char *path, uint64_t flags, uint64_t mode) {
    struct {
        uint64_t flags, mode, resolve;
    } how = {flags | O_CLOEXEC, mode, IN_ROOT};
    long root = room->root >= 0 ? room->root : root_of(room);
    if (root < 0)
        return root;
    long fd = -EAGAIN; /* as long as anything on this machine is mounted or renamed while a ".." is crossed */
    for (int i = 0; i < LOOKUPS && fd == -EAGAIN; i++)
        fd = RAW4(openat2, root, path, &how, sizeof how);
    if (room->root < 0)
        drop(root);
    return fd;
}

/* Component by component, each made where it is missing. */
static long make_path(const struct step_room *room, char *path) {
    long parent = root_of(room);
    for (char *name = path + strspn(path, "/"); *name != '\0' && parent >= 0;) {
        char *end = name + strcspn(name, "/"), after = *end;
        *end = '\0';
        long next = place_open(room, path, O_PATH | O_DIRECTORY, 0);
        if (next == -ENOENT) {
            long made = RAW3(mkdirat, parent, name, 0755);
            next = made < 0 && made != -EEXIST ? made : place_open(room, path, O_PATH | O_DIRECTORY, 0);
        }
        drop(parent);
        parent = next;
        *end = after;
        name = end + strspn(end, "/");
    }
    return parent;
}

/* How much of the path leads to the directory that its last component is in. */
static size_t before_last(const char *path, const char **name) {
    size_t at = strlen(path);
    while (at > 0 && path[at - 1] == '/')
        at--;
    while (at > 0 && path[at - 1] != '/')
        at--;
    *name = path + at + (path[at] == '/'); /* nothing but slashes: the root has no name */
    while (at > 0 && path[at - 1] == '/')
        at--;
    return at;
}

void place_forget_parent(struct step_room *room) {
    drop(room->parent);
    room->parent = -1;
}

bool place_is_on_tmpfs(long fd) {
    struct statfs what;
    return RAW2(fstatfs, fd, &what) >= 0 && what.f_type == TMPFS;
}

long place_parent(struct step_room *room, const char *path, const char **name) {
    char directory[4096];
    size_t length = before_last(path, name);
    if (length == 0 && room->root >= 0)
        return room->root;
    if (room->parent >= 0 && room->parent_length == length && memcmp(room->parent_path, path, length) == 0)
        return room->parent;
    place_forget_parent(room);
    if (length >= sizeof directory)
        return -ENAMETOOLONG;
    memcpy(directory, path, length);
    directory[length] = '\0';
    long parent = length == 0 ? root_of(room) : place_open(room, directory, O_PATH | O_DIRECTORY, 0);
    if (parent == -ENOENT)
        parent = make_path(room, directory);
    if (parent < 0)
        return parent;
    room->parent = (int)parent;
    room->parent_is_tmpfs = place_is_on_tmpfs(parent);
    room->parent_path = path;
    room->parent_length = length;
    return parent;
}

bool place_makes_first(const struct step_room *room, long parent) {
    return parent == room->root ? room->root_is_tmpfs : room->parent_is_tmpfs;
}

long place_make(struct step_room *room, const char *path, bool directory, long *parent, const char **name) {
    *parent = place_parent(room, path, name);
    if (*parent < 0)
        return *parent;
    if (**name == '\0')
        return -EEXIST;
    if (!place_makes_first(room, *parent)) {
        long found = place_open(room, path, O_PATH, 0);
        drop(found);
        if (found != -ENOENT)
            return found < 0 ? found : -EEXIST;
    }
    return directory ? RAW3(mkdirat, *parent, *name, 0755) : RAW4(mknodat, *parent, *name, S_IFREG | 0644, 0);
}
