/* What is neither a mount nor the host's: directories, files and symbolic links, as steps of the child. */
#include "mounts.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "places.h"

enum { SET_IDS = S_ISUID | S_ISGID };

/* mkdir(2) leaves these bits out. By its name, whatever somebody has put there meanwhile would get them: so it is opened, and has
 * to be what has just been made. */
static long set_ids(long parent, const char *name, int64_t mode) {
    struct stat made;
    long fd = RAW4(openat, parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
    long result = fd < 0 ? fd : RAW4(newfstatat, fd, "", &made, AT_EMPTY_PATH);
    if (result >= 0 && (made.st_uid != (uid_t)RAW0(geteuid) || (made.st_mode & ~(mode_t)S_ISGID) != (S_IFDIR | 0700)))
        result = -EEXIST;
    if (result >= 0)
        result = RAW2(fchmod, fd, mode);
    drop(fd);
    return result;
}

long mount_make_dir(const struct step *s, struct step_room *room) {
    const char *name;
    long parent = place_parent(room, s->text[0], &name);
    if (parent < 0)
        return parent;
    long found = place_makes_first(room, parent) ? -ENOENT : place_open(room, s->text[0], O_PATH | O_DIRECTORY, 0);
    if (found == -ENOENT) {
        bool sets_ids = s->number[0] & SET_IDS;
        long made = *name == '\0' ? -EEXIST : RAW3(mkdirat, parent, name, sets_ids ? 0700 : s->number[0]);
        if (made != -EEXIST)
            return made < 0 || !sets_ids ? made : set_ids(parent, name, s->number[0]);
        found = place_open(room, s->text[0], O_PATH | O_DIRECTORY, 0);
        found = found == -ENOENT ? -EEXIST : found; /* a symlink that leads nowhere */
    }
    drop(found);
    return found < 0 ? found : 0;
}

/* How many names it has, if it is a file. */
static long links_of_file(long fd) {
    struct stat what;
    long result = RAW4(newfstatat, fd, "", &what, AT_EMPTY_PATH);
    if (result < 0 || S_ISREG(what.st_mode))
        return result < 0 ? result : (long)what.st_nlink;
    return S_ISLNK(what.st_mode) ? -ELOOP : S_ISDIR(what.st_mode) ? -EISDIR : -EEXIST;
}

static long create_file(const struct step *s, const struct step_room *room) {
    return place_open(room, s->text[0], O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, (uint64_t)s->number[0]);
}

/* Whoever has filled the root may have put a device there, or a second name of a file that is not in the root: the one is not
 * written to, of the other the name is taken. It is looked at before, since opening is felt by devices and FIFOs; and after,
 * since it may be something else by then. O_CREAT has the kernel refuse what others have left in /tmp (fs.protected_regular);
 * with O_NONBLOCK nobody waits for the reader of a FIFO. */
static long open_to_overwrite(const struct step *s, const struct step_room *room, long parent, const char *name) {
    long fd = place_open(room, s->text[0], O_PATH | O_NOFOLLOW, 0);
    long links = fd < 0 ? fd : links_of_file(fd);
    drop(fd);
    if (links > 1) {
        long result = RAW3(unlinkat, parent, name, 0);
        return result < 0 ? result : create_file(s, room);
    }
    if (links < 0)
        return links;
    fd = place_open(room, s->text[0], O_WRONLY | O_CREAT | O_NOFOLLOW | O_NONBLOCK, (uint64_t)s->number[0]);
    links = fd < 0 ? fd : links_of_file(fd);
    long result = links < 0 ? links : links != 1 ? -EEXIST : RAW2(ftruncate, fd, 0);
    if (result >= 0)
        return fd;
    drop(fd);
    return result;
}

long mount_make_file(const struct step *s, struct step_room *room) {
    const char *name;
    long parent = place_parent(room, s->text[0], &name);
    if (parent < 0)
        return parent;
    long fd = create_file(s, room);
    if (fd == -EEXIST)
        fd = open_to_overwrite(s, room, parent, name);
    if (fd < 0)
        return fd;
    long result = RAW2(fchmod, fd, s->number[0]);
    for (size_t written = 0; written < s->data_length && result >= 0;) {
        result = RAW3(write, fd, s->data + written, s->data_length - written);
        written += result > 0 ? (size_t)result : 0;
    }
    if (result >= 0 && s->number[0] & SET_IDS) /* which write(2) takes away again */
        result = RAW2(fchmod, fd, s->number[0]);
    drop(fd);
    return result < 0 ? result : 0;
}

long mount_make_symlink(const struct step *s, struct step_room *room) {
    char there[4096];
    const char *name;
    long parent = place_parent(room, s->text[1], &name);
    if (parent < 0)
        return parent;
    long result = RAW3(symlinkat, s->text[0], parent, name);
    if (result == -EEXIST) { /* the same one is as good */
        long length = RAW4(readlinkat, parent, name, there, sizeof there);
        if (length == (long)strlen(s->text[0]) && memcmp(there, s->text[0], (size_t)length) == 0)
            result = 0;
    }
    return result;
}
