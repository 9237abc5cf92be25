/* linx-agent: the part of linx-trio that a threaded Python must never do itself.
 *
 *   Python ── zygote ──┬── monitor ── workload …       linx-agent --zygote FD     started by the package
 *                      └── monitor ── workload …
 *   Erlang ─────────────── monitor ── workload …       linx-agent --port          one session on fds 3 and 4
 *
 * Three roles, three error policies: the zygote loses one session, never itself; the monitor never exits while something
 * of its session lives; the child reports {errno, stage} and _exits. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "frame.h"
#include "keeper.h"
#include "monitor.h"
#include "namespaces.h"
#include "raw.h"
#include "seal.h"
#include "steps.h"
#include "subtree.h"
#include "zygote.h"

#ifndef LINX_VERSION
#define LINX_VERSION "unknown"
#endif
#ifndef LINX_SOURCE_HASH
#define LINX_SOURCE_HASH "unknown"
#endif

enum { EXIT_USAGE = 64, EXIT_SYSTEM = 71 };

/* Every signal at its default and blocked: the workload starts with default dispositions (Python's ignored SIGPIPE ends
 * here), and a stray SIGINT or SIGTERM cannot cut a session's clean-up short. */
static int take_signals(void) {
    /* The bare calls: libcs keep the first real-time signals to themselves, and leave them out of "all". */
    const uint64_t default_action[4] = {0}, all = ~UINT64_C(0);
    for (int number = 1; number <= 64; number++)
        (void)RAW4(rt_sigaction, number, default_action, NULL, sizeof all);
    (void)RAW4(rt_sigprocmask, SIG_SETMASK, &all, NULL, sizeof all);
    return subtree_watch();
}

/* The zygote holds nothing of its starter's: no fd but `control`, no terminal's foreground, no directory. Its limit of open
 * files is raised as far as it goes, since it keeps one for each live session; workloads get the caller's. */
static int prepare_zygote(int control) {
    OWN_FD int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0 || fcntl(control, F_SETFD, FD_CLOEXEC) < 0)
        return -1;
    for (int fd = 0; fd <= 2; fd++)
        if (dup2(null, fd) < 0)
            return -1;
    int kept = fcntl(control, F_DUPFD_CLOEXEC, 3);
    if (kept < 0 || dup2(kept, 3) < 0)
        return -1;
    (void)syscall(SYS_close_range, 4U, ~0U, 0U);
    (void)steal_fd(&null);
    (void)fcntl(3, F_SETFD, FD_CLOEXEC);
    (void)setpgid(0, 0);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
    return chdir("/");
}

/* `{hello, Version, Hash, Supported}`: the starter compares, and says how to mend it. */
static void greet(int control) {
    uint8_t text[256];
    struct etf_writer w = {text, sizeof text, 0, false};
    etf_put_version(&w);
    etf_put_tuple(&w, 4);
    etf_put_atom(&w, "hello");
    etf_put_binary(&w, LINX_VERSION);
    etf_put_binary(&w, LINX_SOURCE_HASH);
    etf_put_atom(&w, subtree_supported() ? "true" : "false");
    (void)send_with_fd(control, text, w.used, -1);
}

static int zygote_main(const char *number) {
    char *end;
    long control = strtol(number, &end, 10);
    if (*number == '\0' || *end != '\0' || control < 3 || control > 65536) {
        (void)fprintf(stderr, "linx-agent: --zygote wants the number of a socket, not '%s'\n", number);
        return EXIT_USAGE;
    }
    if (prepare_zygote((int)control) < 0)
        return EXIT_SYSTEM;
    int signals = take_signals();
    if (signals < 0)
        return EXIT_SYSTEM;
    greet(3);
    return zygote_run(3, signals);
}

static int port_main(void) {
    for (int fd = 3; fd <= 4; fd++) {
        int flags = fcntl(fd, F_GETFL);
        if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) {
            (void)fprintf(stderr, "linx-agent: --port serves a session on fds 3 (in) and 4 (out), and %d is not open\n", fd);
            return EXIT_USAGE;
        }
    }
    int signals = take_signals();
    if (signals < 0)
        return EXIT_SYSTEM;
    (void)prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    (void)prctl(PR_SET_NAME, "linx-agent", 0, 0, 0);
    return monitor_run(3, 4, signals, true);
}

static void print_words(const char *key, const char *const *words) {
    (void)printf("%s:", key);
    for (; *words != NULL; words++)
        (void)printf(" %s", *words);
    (void)printf("\n");
}

/* The vocabulary, one line a kind; the Python side is compared with it. */
static int describe(void) {
    const char *words[STAGE_COUNT + 16];
    (void)printf("version: %s\nhash: %s\n", LINX_VERSION, LINX_SOURCE_HASH);
    print_words("commands", monitor_commands);
    print_words("keeper", keeper_words);
    print_words("events", monitor_events);
    size_t count = 0;
    for (; count < STAGE_COUNT; count++)
        words[count] = stage_names[count];
    words[count] = NULL;
    print_words("stages", words);
    for (count = 0; count < step_kind_count; count++)
        words[count] = step_kinds[count].name;
    words[count] = NULL;
    print_words("steps", words);
    for (count = 0; count < NAMESPACE_COUNT; count++)
        words[count] = namespace_kinds[count].name;
    words[count] = NULL;
    print_words("namespaces", words);
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 1 && (strcmp(argv[1], "--zygote") == 0 || strcmp(argv[1], "--port") == 0))
        (void)seal_self(argv);
    if (argc == 3 && strcmp(argv[1], "--zygote") == 0)
        return zygote_main(argv[2]);
    if (argc == 2 && strcmp(argv[1], "--port") == 0)
        return port_main();
    if (argc == 2 && strcmp(argv[1], "--describe") == 0)
        return describe();
    (void)fprintf(stderr, "usage: linx-agent --describe | --port | --zygote FD\n");
    return EXIT_USAGE;
}
