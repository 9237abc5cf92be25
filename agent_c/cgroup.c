#include "cgroup.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>

#include "subtree.h"

enum { DEPTH_LIMIT = 64 };

static void kill_member(pid_t pid, void *unused) {
    (void)unused;
    (void)kill(pid, SIGKILL);
}

bool cgroup_kill(int directory) {
    OWN_FD int switch_fd = openat(directory, "cgroup.kill", O_WRONLY | O_CLOEXEC);
    if (switch_fd >= 0)
        return write(switch_fd, "1", 1) == 1;
    OWN_FD int members = openat(directory, "cgroup.procs", O_RDONLY | O_CLOEXEC);
    return members >= 0 && subtree_visit(members, kill_member, NULL);
}

static void remove_below(int parent, const char *name, int depth);

static void remove_children(int directory, int depth) {
    DIR *listing = fdopendir(directory); /* which owns it from now on */
    if (listing == NULL) {
        close_fd(&directory);
        return;
    }
    for (struct dirent *entry; (entry = readdir(listing)) != NULL;)
        if (entry->d_type == DT_DIR && strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            remove_below(dirfd(listing), entry->d_name, depth);
    (void)closedir(listing);
}

static void remove_below(int parent, const char *name, int depth) {
    if (depth > DEPTH_LIMIT || unlinkat(parent, name, AT_REMOVEDIR) == 0 || errno != EBUSY)
        return;
    int directory = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (directory >= 0)
        remove_children(directory, depth + 1);
    (void)unlinkat(parent, name, AT_REMOVEDIR);
}

bool cgroup_remove(int parent, const char *name) {
    remove_below(parent, name, 0);
    return faccessat(parent, name, F_OK, AT_SYMLINK_NOFOLLOW) < 0 && errno == ENOENT;
}
