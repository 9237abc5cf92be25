/*
 * The floor that linx-trio is measured against: sessions made by the fewest system calls that do the job.
 *
 *     raw_clone3 [--namespaces] COUNT WARMUP PROGRAM [ARG...]
 *
 * runs WARMUP sessions untimed, then COUNT timed ones, one after the other, and prints nanoseconds per
 * session. One session is:
 *
 *     parent                                   child
 *     socketpair, clone3(CLONE_PIDFD, NEW*)
 *                          <-- 'P' parked --   parked at its checkpoint
 *     (host-side work would go here)
 *                          --- 'G' go ----->
 *                                              execve
 *                          <-- EOF, or errno   the socket is close-on-exec
 *     waitid(P_PIDFD), close
 *
 * EOF alone says "exec'd or died". A child that died without running the program has no exit status 0, and
 * the loop accepts nothing else, so waitid settles the doubt and no further call is needed.
 *
 * Left out on purpose, because a floor is wanted: signal reset, setsid, fd sweeping, orphan adoption, private
 * mount propagation, a second process that survives the caller. Their cost is part of what the ratio shows.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

extern char **environ;

static _Noreturn void die(const char *stage, int error)
{
    fprintf(stderr, "raw_clone3: %s: %s\n", stage, strerror(error));
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static _Noreturn void child(int fd, char **argv)
{
    char go = 0;
    if (send(fd, "P", 1, MSG_NOSIGNAL) != 1 || recv(fd, &go, 1, 0) != 1 || go != 'G')
        _exit(126);
    execve(argv[0], argv, environ);
    int error = errno;
    if (send(fd, &error, sizeof error, MSG_NOSIGNAL) < 0)
        _exit(126);
    _exit(127);
}

/* SOCK_SEQPACKET keeps the one-byte messages and the errno apart without a length. */
static void session(uint64_t namespaces, char **argv)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        die("socketpair", errno);

    int pidfd = -1;
    struct clone_args args = {
        .flags = CLONE_PIDFD | namespaces,
        .pidfd = (uint64_t)(uintptr_t)&pidfd,
        .exit_signal = SIGCHLD,
    };
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid < 0)
        die("clone3", errno);
    if (pid == 0)
        child(pair[1], argv);
    close(pair[1]);

    char parked = 0;
    if (recv(pair[0], &parked, 1, 0) != 1 || parked != 'P')
        die("checkpoint", EPROTO);
    if (send(pair[0], "G", 1, MSG_NOSIGNAL) != 1)
        die("go", errno);
    int error = 0;
    ssize_t n = recv(pair[0], &error, sizeof error, 0);
    if (n != 0)
        die("execve", n == (ssize_t)sizeof error ? error : EPROTO);

    siginfo_t end = {0};
    if (waitid((idtype_t)P_PIDFD, (id_t)pidfd, &end, WEXITED) < 0)
        die("waitid", errno);
    if (end.si_code != CLD_EXITED || end.si_status != 0) {
        fprintf(stderr, "raw_clone3: %s: code %d, status %d\n", argv[0], end.si_code, end.si_status);
        exit(1);
    }
    close(pidfd);
    close(pair[0]);
}

static long number(const char *text)
{
    char *end = NULL;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < 0)
        die(text, EINVAL);
    return value;
}

int main(int argc, char **argv)
{
    uint64_t namespaces = 0;
    if (argc > 1 && strcmp(argv[1], "--namespaces") == 0) {
        namespaces = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC;
        argc--;
        argv++;
    }
    if (argc < 4) {
        fputs("usage: raw_clone3 [--namespaces] COUNT WARMUP PROGRAM [ARG...]\n", stderr);
        return 2;
    }
    long count = number(argv[1]);
    if (count == 0)
        die("COUNT", EINVAL);
    for (long i = number(argv[2]); i > 0; i--)
        session(namespaces, argv + 3);
    uint64_t start = now_ns();
    for (long i = 0; i < count; i++)
        session(namespaces, argv + 3);
    printf("%.1f\n", (double)(now_ns() - start) / (double)count);
    return 0;
}
