#include "subtree.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

static int open_children(void) {
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/self/task/%d/children", (int)getpid());
    return open(path, O_RDONLY | O_CLOEXEC);
}

bool subtree_supported(void) {
    OWN_FD int fd = open_children();
    return fd >= 0;
}

bool subtree_is_dead(pid_t child) {
    siginfo_t info = {0};
    return waitid(P_PID, (id_t)child, &info, WEXITED | WNOHANG | WNOWAIT | __WALL) == 0 && info.si_pid == child;
}

int subtree_kill(bool (*spare)(pid_t pid, void *context), void *context, int *dead) {
    OWN_FD int fd = open_children();
    if (fd < 0)
        return -1;
    char text[1024];
    pid_t pid = 0; /* the number being read; it may straddle two reads */
    int alive = 0;
    ssize_t got;
    *dead = 0;
    while ((got = read(fd, text, sizeof text)) > 0 || (got < 0 && errno == EINTR)) {
        for (ssize_t i = 0; i < got; i++) {
            if (text[i] >= '0' && text[i] <= '9') {
                pid = pid * 10 + (text[i] - '0');
                continue;
            }
            bool ours = pid > 0 && (spare == NULL || !spare(pid, context));
            if (ours && subtree_is_dead(pid)) {
                (*dead)++;
            } else if (ours) {
                (void)kill(pid, SIGKILL);
                alive++;
            }
            pid = 0;
        }
    }
    return alive;
}

bool subtree_has_executed(pid_t pid) {
    char path[64], text[512];
    (void)snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    if (read_small_file(path, text, sizeof text) < 0)
        return !subtree_is_dead(pid); /* hidepid (proc(5)): then being alive has to do */
    /* "pid (comm) state ppid pgrp session tty_nr tpgid flags": comm may hold anything, so count from its last ')'. */
    char *field = strrchr(text, ')');
    for (int i = 0; field != NULL && i < 7; i++)
        field = strchr(field + 1, ' ');
    enum { PF_FORKNOEXEC = 0x40 };
    return field != NULL && !(strtoul(field + 1, NULL, 10) & PF_FORKNOEXEC);
}
