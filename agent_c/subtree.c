#include "subtree.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

#include "raw.h"

static int open_children(int proc) {
    return openat(proc, proc == AT_FDCWD ? "/proc/thread-self/children" : "thread-self/children", O_RDONLY | O_CLOEXEC);
}

int subtree_watch(void) {
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    return signalfd(-1, &child, SFD_NONBLOCK | SFD_CLOEXEC);
}

void subtree_drain(int signals) {
    struct signalfd_siginfo info;
    (void)!read(signals, &info, sizeof info);
}

bool subtree_supported(void) {
    OWN_FD int fd = open_children(AT_FDCWD);
    return fd >= 0;
}

bool subtree_is_dead(pid_t child) {
    siginfo_t info = {0};
    return waitid(P_PID, (id_t)child, &info, WEXITED | WNOHANG | WNOWAIT | __WALL) == 0 && info.si_pid == child;
}

bool subtree_visit(int fd, void (*visit)(pid_t pid, void *context), void *context) {
    char text[1024];
    pid_t pid = 0; /* the number being read; it may straddle two reads */
    ssize_t got;
    while ((got = read(fd, text, sizeof text)) > 0 || (got < 0 && errno == EINTR)) {
        for (ssize_t i = 0; i < got; i++) {
            if (text[i] >= '0' && text[i] <= '9') {
                pid = pid * 10 + (text[i] - '0');
                continue;
            }
            if (pid > 0)
                visit(pid, context);
            pid = 0;
        }
    }
    return got == 0;
}

struct round {
    bool (*spare)(pid_t pid, void *context);
    void *context;
    int alive, dead;
};

static void kill_one(pid_t pid, void *context) {
    struct round *r = context;
    if (r->spare != NULL && r->spare(pid, r->context))
        return;
    if (subtree_is_dead(pid)) {
        r->dead++;
        return;
    }
    (void)kill(pid, SIGKILL);
    r->alive++;
}

int subtree_kill(bool (*spare)(pid_t pid, void *context), void *context, int *dead) {
    return subtree_kill_in(AT_FDCWD, spare, context, dead);
}

int subtree_kill_in(int proc, bool (*spare)(pid_t pid, void *context), void *context, int *dead) {
    OWN_FD int fd = open_children(proc);
    struct round r = {.spare = spare, .context = context};
    bool read = fd >= 0 && subtree_visit(fd, kill_one, &r);
    *dead = r.dead;
    return read ? r.alive : -1;
}

static bool parse_stat(char *text, struct process_stat *stat) {
    /* "pid (comm) state ppid pgrp session tty_nr tpgid flags": comm may hold anything, so count from its last ')'. */
    char *field = strrchr(text, ')');
    if (field == NULL || field[1] != ' ')
        return false;
    stat->state = field[2];
    stat->parent = (pid_t)strtol(field + 3, NULL, 10);
    for (int i = 0; field != NULL && i < 7; i++)
        field = strchr(field + 1, ' ');
    enum { PF_EXITING = 0x4, PF_FORKNOEXEC = 0x40 };
    unsigned long flags = field != NULL ? strtoul(field + 1, NULL, 10) : PF_FORKNOEXEC;
    stat->has_executed = !(flags & PF_FORKNOEXEC);
    stat->exiting = flags & PF_EXITING;
    return true;
}

static bool stat_at(int dir, const char *path, struct process_stat *stat) {
    char text[512];
    return read_small_file(dir, path, text, sizeof text) >= 0 && parse_stat(text, stat);
}

bool subtree_stat_of(int file, struct process_stat *stat) {
    char text[512];
    ssize_t got = RAW3(lseek, file, 0, SEEK_SET) < 0 ? -1 : RAW3(read, file, text, sizeof text - 1);
    if (got <= 0)
        return false;
    text[got] = '\0';
    return parse_stat(text, stat);
}

bool subtree_stat(int proc, pid_t pid, struct process_stat *stat) {
    char path[64];
    (void)snprintf(path, sizeof path, "%s%d/stat", proc == AT_FDCWD ? "/proc/" : "", (int)pid);
    return stat_at(proc, path, stat);
}

struct below {
    pid_t reaper, last;
    int alive;
};

/* The reaper may reap it meanwhile, and its number be another's: so it is pinned first, and looked at then. */
static void kill_one_below(pid_t pid, void *context) {
    struct below *b = context;
    struct process_stat stat;
    char path[32];
    (void)snprintf(path, sizeof path, "/proc/%d", (int)pid);
    OWN_FD int process = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool known = process >= 0 && stat_at(process, "stat", &stat) && stat.parent == b->reaper;
    b->last = pid;
    if (known && (stat.state == 'Z' || stat.state == 'X'))
        return;
    b->alive++; /* also who has gone meanwhile: it may have left a child that is not in the list */
    if (known)
        (void)RAW4(pidfd_send_signal, process, SIGKILL, NULL, 0);
}

static void note_last(pid_t pid, void *context) { *(pid_t *)context = pid; }

/* Orphans are appended to the list: it is believed that all were dead only if nobody has come since it was read. */
int subtree_kill_below(pid_t reaper) {
    struct below b = {.reaper = reaper};
    pid_t last = 0;
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)reaper, (int)reaper);
    OWN_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || !subtree_visit(fd, kill_one_below, &b))
        return -1;
    if (b.alive == 0 && (lseek(fd, 0, SEEK_SET) < 0 || !subtree_visit(fd, note_last, &last) || (last > 0 && last != b.last)))
        return 1;
    return b.alive;
}

bool subtree_is_nested(pid_t pid) {
    char path[64], text[4096];
    (void)snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    if (read_small_file(AT_FDCWD, path, text, sizeof text) < 0)
        return false;
    /* "NSpid:\t<here>\t<one level down>…\n": its pid in each namespace from that of /proc to its own. */
    char *line = strstr(text, "\nNSpid:\t");
    if (line == NULL)
        return false;
    char *end = strchr(line + 1, '\n');
    if (end != NULL)
        *end = '\0';
    char *innermost = strrchr(line, '\t');
    return innermost != strchr(line, '\t') && strcmp(innermost, "\t1") != 0;
}
