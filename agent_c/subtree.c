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

static uint64_t mix(uint64_t digest, pid_t pid) { return (digest ^ (uint64_t)pid) * 0x100000001b3ULL; } /* FNV-1a */

int subtree_kill(struct kill_round *round, bool (*spare)(pid_t pid, void *context), void *context, bool *settled) {
    OWN_FD int fd = open_children();
    if (fd < 0)
        return -1;
    char text[4096];
    uint64_t digest = 0xcbf29ce484222325ULL;
    pid_t pid = 0; /* the number being read; it may straddle two reads */
    int signalled = 0;
    ssize_t got;
    while ((got = read(fd, text, sizeof text)) > 0 || (got < 0 && errno == EINTR)) {
        for (ssize_t i = 0; i < got; i++) {
            if (text[i] >= '0' && text[i] <= '9') {
                pid = pid * 10 + (text[i] - '0');
                continue;
            }
            if (pid > 0 && (spare == NULL || !spare(pid, context))) {
                (void)kill(pid, SIGKILL);
                digest = mix(digest, pid);
                signalled++;
            }
            pid = 0;
        }
    }
    *settled = digest == round->seen;
    round->seen = digest;
    return signalled;
}

bool subtree_has_executed(pid_t pid) {
    char path[64], text[512];
    (void)snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    if (read_small_file(path, text, sizeof text) < 0) { /* hidepid (proc(5)): then being alive has to do */
        siginfo_t info = {0};
        return waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT | __WALL) == 0 && info.si_pid == 0;
    }
    /* "pid (comm) state ppid pgrp session tty_nr tpgid flags": comm may hold anything, so count from its last ')'. */
    char *field = strrchr(text, ')');
    for (int i = 0; field != NULL && i < 7; i++)
        field = strchr(field + 1, ' ');
    enum { PF_FORKNOEXEC = 0x40 };
    return field != NULL && !(strtoul(field + 1, NULL, 10) & PF_FORKNOEXEC);
}
