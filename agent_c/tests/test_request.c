/* request.c: what a session and a port may ask for, what is refused, and who owns the fds either way. */
#include "check.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/sched.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "../request.h"

static struct term term;
static struct request q;
static struct inbox in;
static uint8_t *payload;

static struct etf_writer *begin(uint32_t pairs) {
    struct etf_writer *w = term_begin(&term);
    etf_put_tuple(w, 2);
    etf_put_atom(w, "spawn");
    put_map(w, pairs);
    return w;
}

static void put_argv(struct etf_writer *w) {
    etf_put_atom(w, "argv");
    put_binaries(w, "/bin/true", NULL);
}

/* Parses what has been built, with `fds` fds beside it. `done` must follow, whatever the answer. */
static bool parse(size_t fds, bool port) {
    payload = exact_copy(term.data, term.w.used);
    in = (struct inbox){.fd = -1};
    for (; in.fd_count < fds; in.fd_count++)
        in.fds[in.fd_count] = fcntl(1, F_DUPFD_CLOEXEC, 3);
    errno = 0;
    bool ok = request_parse(&q, (struct etf_slice){payload, term.w.used}, &in, port);
    CHECK(ok || errno == EINVAL);
    CHECK(q.arena_used <= q.arena_size);
    CHECK(q.steps != NULL || q.step_count == 0);
    if (q.steps == NULL)
        q.step_count = 0; /* request_free would crash, and the other tests not be run */
    free(payload);        /* the request keeps nothing of the frame */
    return ok;
}

static void done(void) {
    request_close_fds(&q);
    request_free(&q);
    inbox_free(&in);
}

static bool accepted(bool port) {
    bool ok = parse(0, port);
    done();
    return ok;
}

/* ---- what both understand ------------------------------------------------------------------------------------ */

static void the_least(void) {
    for (int port = 0; port <= 1; port++) {
        put_argv(begin(1));
        CHECK(parse(0, port));
        CHECK(strcmp(q.argv[0], "/bin/true") == 0 && q.argv[1] == NULL);
        CHECK(q.envp == NULL && q.namespaces == 0 && q.step_count == 0);
        CHECK(q.new_session && !q.auto_proceed && !q.linger);
        CHECK_INT(q.orphan_grace_us, 5000000);
        CHECK_INT(q.fd_count, port ? 3 : 0);
        done();
    }
}

static void argv_in_every_form(void) {
    struct etf_writer *w = begin(1);
    etf_put_atom(w, "argv");
    put_list(w, 5);
    etf_put_binary(w, "/bin/sh");
    put_string(w, "-c");
    put_nil(w); /* "" is [] */
    etf_put_binary(w, "");
    put_bytes(w, "\xff\x01\n=", 4);
    put_nil(w);
    CHECK(parse(0, true));
    static const char *const want[] = {"/bin/sh", "-c", "", "", "\xff\x01\n="};
    for (size_t i = 0; i < COUNT_OF(want); i++)
        CHECK(strcmp(q.argv[i], want[i]) == 0);
    CHECK(q.argv[COUNT_OF(want)] == NULL);
    done();
}

static void env_in_every_form(void) {
    for (int form = 0; form < 3; form++) {
        struct etf_writer *w = begin(2);
        put_argv(w);
        etf_put_atom(w, "env");
        if (form == 0) {
            put_binaries(w, "A=1", "B=", "C=x=y", NULL);
        } else if (form == 1) {
            put_list(w, 3);
            etf_put_tuple(w, 2), put_string(w, "A"), put_string(w, "1");
            etf_put_tuple(w, 2), etf_put_binary(w, "B"), put_nil(w);
            put_tag32(w, 105, 2), etf_put_binary(w, "C"), etf_put_binary(w, "x=y");
            put_nil(w);
        } else {
            put_map(w, 3);
            etf_put_binary(w, "A"), etf_put_binary(w, "1");
            put_string(w, "B"), etf_put_binary(w, "");
            etf_put_binary(w, "C"), put_string(w, "x=y");
        }
        CHECK(parse(0, true));
        static const char *const want[] = {"A=1", "B=", "C=x=y"};
        for (size_t i = 0; i < COUNT_OF(want); i++)
            CHECK(strcmp(q.envp[i], want[i]) == 0);
        CHECK(q.envp[COUNT_OF(want)] == NULL);
        done();
    }
}

static void an_empty_env_is_no_inherited_one(void) {
    for (int as_map = 0; as_map <= 1; as_map++) {
        struct etf_writer *w = begin(2);
        put_argv(w);
        etf_put_atom(w, "env");
        as_map ? put_map(w, 0) : put_nil(w);
        CHECK(parse(0, true));
        CHECK(q.envp != NULL && q.envp[0] == NULL);
        done();
    }
}

static void namespaces(void) {
    static const struct {
        const char *name;
        uint64_t flag;
    } kinds[] = {
        {"user", CLONE_NEWUSER}, {"mount", CLONE_NEWNS},      {"uts", CLONE_NEWUTS}, {"ipc", CLONE_NEWIPC},
        {"net", CLONE_NEWNET},   {"cgroup", CLONE_NEWCGROUP}, {"pid", CLONE_NEWPID}, {"time", 0x80},
    };
    uint64_t all = 0;
    for (size_t i = 0; i <= COUNT_OF(kinds); i++) {
        struct etf_writer *w = begin(2);
        put_argv(w);
        etf_put_atom(w, "namespaces");
        size_t from = i < COUNT_OF(kinds) ? i : 0, until = i < COUNT_OF(kinds) ? i + 1 : i;
        put_list(w, (uint32_t)(until - from));
        for (size_t k = from; k < until; k++)
            k % 2 ? etf_put_atom(w, kinds[k].name) : etf_put_binary(w, kinds[k].name);
        put_nil(w);
        CHECK(parse(0, i % 2 == 0));
        if (i < COUNT_OF(kinds))
            all |= kinds[i].flag;
        CHECK(q.namespaces == (i < COUNT_OF(kinds) ? kinds[i].flag : all));
        done();
    }
}

/* ---- what both refuse ---------------------------------------------------------------------------------------- */

/* A request whose one pair is `key` and the bytes of `value`, beside a good argv. */
static bool accepts(const char *key, const void *value, size_t length, bool port) {
    struct etf_writer *w = begin(2);
    put_argv(w);
    etf_put_atom(w, key);
    put_raw(w, value, length);
    return accepted(port);
}

#define REFUSED(key, value, port) CHECK(!accepts(key, value, sizeof(value) - 1, port))
#define ACCEPTED(key, value, port) CHECK(accepts(key, value, sizeof(value) - 1, port))

static void no_requests(void) {
    static const struct {
        const char *data;
        size_t length;
    } terms[] = {
#define TERM(literal) {literal, sizeof(literal) - 1}
        TERM(""), TERM("\x83"), TERM("\x82\x6a"), TERM("\x83\x6a"), TERM("\x83\x77\x05spawn"), TERM("\x83\x68\x01\x77\x05spawn"),
        TERM("\x83\x68\x02\x77\x05spawn\x6a"), TERM("\x83\x68\x02\x77\x05spawn\x74\x00\x00\x00\x00"),
        TERM("\x83\x68\x02\x77\x05spawn\x74\x7f\xff\xff\xff"), TERM("\x83\x68\x02\x77\x05span!\x74\x00\x00\x00\x00"),
        TERM("\x83\x68\x02\x6d\x00\x00\x00\x05spawn\x74\x00\x00\x00\x00"), TERM("\x83\x68\x00"),
        TERM("\x83\x74\x00\x00\x00\x01\x77\x05spawn\x6a"),
#undef TERM
    };
    for (size_t i = 0; i < COUNT_OF(terms); i++)
        for (int port = 0; port <= 1; port++) {
            (void)term_begin(&term);
            term.w.used = 0;
            put_raw(&term.w, terms[i].data, terms[i].length);
            CHECK(!accepted(port));
        }
}

static struct etf_writer *begin_enter(uint32_t pairs) {
    struct etf_writer *w = term_begin(&term);
    etf_put_tuple(w, 2);
    etf_put_atom(w, "enter");
    put_map(w, pairs);
    put_argv(w);
    return w;
}

/* A session brings its target as an fd, a port as a pid. */
static bool parse_enter(bool port) {
    struct etf_writer *w = &term.w;
    if (port) {
        etf_put_atom(w, "target"), etf_put_integer(w, getpid());
    } else {
        etf_put_atom(w, "fds"), put_list(w, 1), etf_put_atom(w, "target"), put_nil(w);
    }
    return parse(port ? 0 : 1, port);
}

static void enter_joins_all_by_default(void) {
    for (int port = 0; port <= 1; port++) {
        (void)begin_enter(2);
        CHECK(parse_enter(port));
        CHECK(q.enters && q.joins_all && q.joins == 0 && q.namespaces == 0);
        CHECK_INT(q.target_error, 0);
        CHECK_INT(q.fd_count, port ? 4 : 1);
        CHECK(request_fd(&q, FD_TARGET) >= 0 && fcntl(request_fd(&q, FD_TARGET), F_GETFD) == FD_CLOEXEC);
        CHECK_INT(request_fd(&q, FD_CGROUP), -1);
        CHECK_INT(request_fd(&q, FD_CWD), -1);
        done();
    }
}

static void enter_joins_what_it_is_told(void) {
    for (int port = 0; port <= 1; port++)
        for (int count = -1; count <= 2; count++) { /* -1: `all` */
            struct etf_writer *w = begin_enter(3);
            etf_put_atom(w, "namespaces");
            if (count < 0)
                etf_put_atom(w, "all");
            if (count > 0)
                put_list(w, (uint32_t)count), etf_put_atom(w, "net");
            if (count > 1)
                etf_put_binary(w, "time");
            if (count >= 0)
                put_nil(w);
            CHECK(parse_enter(port));
            CHECK(q.enters && q.joins_all == (count < 0) && q.namespaces == 0);
            CHECK(q.joins == (count == 2 ? CLONE_NEWNET | 0x80 : count == 1 ? CLONE_NEWNET : 0));
            done();
        }
}

static void spawn_joins_nothing(void) {
    for (int port = 0; port <= 1; port++) {
        put_argv(begin(1));
        CHECK(parse(0, port));
        CHECK(!q.enters && !q.joins_all && q.joins == 0 && q.target_error == 0);
        CHECK_INT(request_fd(&q, FD_TARGET), -1);
        done();
        REFUSED("namespaces", "\x77\x03" "all", port);
    }
}

static void a_target_and_entering_go_together(void) {
    (void)begin_enter(1); /* nobody */
    CHECK(!accepted(false));
    (void)begin_enter(1);
    CHECK(!accepted(true));
    put_argv(begin(2)); /* a spawn with one */
    CHECK(!parse_enter(false));
    done();
    put_argv(begin(2));
    CHECK(!parse_enter(true));
    done();
    struct etf_writer *w = begin_enter(2); /* a session names it by an fd only */
    etf_put_atom(w, "target"), etf_put_integer(w, getpid());
    CHECK(!accepted(false));
    w = begin_enter(2); /* and a port has no fds */
    etf_put_atom(w, "fds"), put_list(w, 1), etf_put_atom(w, "target"), put_nil(w);
    CHECK(!parse(1, true));
    done();
}

static void a_cgroup_beside_the_target(void) {
    struct etf_writer *w = begin_enter(2);
    etf_put_atom(w, "fds"), put_list(w, 4);
    etf_put_integer(w, 1), etf_put_atom(w, "target"), etf_put_atom(w, "cwd"), etf_put_atom(w, "cgroup"), put_nil(w);
    CHECK(parse(4, false));
    int cgroup = request_fd(&q, FD_CGROUP), target = request_fd(&q, FD_TARGET), cwd = request_fd(&q, FD_CWD);
    CHECK(cgroup >= 0 && target >= 0 && cwd >= 0 && cgroup != target && target != cwd && cgroup != cwd);
    CHECK_INT(q.fds[0].target, 1);
    done();
    static const char *const twice[] = {"target", "cgroup"};
    for (size_t i = 0; i < COUNT_OF(twice); i++) {
        w = begin_enter(2);
        etf_put_atom(w, "fds"), put_list(w, 3);
        etf_put_atom(w, "target"), etf_put_atom(w, twice[i]), etf_put_atom(w, twice[i]), put_nil(w);
        CHECK(!parse(3, false));
        done();
    }
}

static bool own_cgroup_fits(const char *name, size_t fds) {
    static const char *const targets[] = {"cgroup", "cgroup_parent"};
    struct etf_writer *w = begin(name != NULL ? 3 : 2);
    put_argv(w);
    etf_put_atom(w, "fds"), put_list(w, (uint32_t)fds);
    for (size_t i = 0; i < fds; i++)
        etf_put_atom(w, targets[i]);
    put_nil(w);
    if (name != NULL)
        etf_put_atom(w, "own_cgroup"), etf_put_binary(w, name);
    bool ok = parse(fds, false);
    CHECK(!ok || name == NULL || strcmp(q.own_cgroup, name) == 0);
    done();
    return ok;
}

static void a_cgroup_of_its_own(void) {
    char longest[NAME_MAX + 2] = {0};
    memset(longest, 'x', NAME_MAX);
    CHECK(own_cgroup_fits("linx.1", 2) && own_cgroup_fits(longest, 2) && own_cgroup_fits(NULL, 1));
    CHECK(!own_cgroup_fits("linx.1", 1) && !own_cgroup_fits("linx.1", 0) && !own_cgroup_fits(NULL, 2));
    longest[NAME_MAX] = 'x';
    static const char *const wrong[] = {"", ".", "..", "a/b", "/"};
    for (size_t i = 0; i < COUNT_OF(wrong); i++)
        CHECK(!own_cgroup_fits(wrong[i], 2));
    CHECK(!own_cgroup_fits(longest, 2));
}

static void a_ports_target(void) {
    static const struct {
        int64_t pid;
        bool ok;
        int error;
    } cases[] = {{1, true, 0}, {99999999, true, ENOENT}, {INT32_MAX, true, ENOENT}, {0, false, 0}, {-1, false, 0},
                 {INT64_C(1) << 31, false, 0}, {(INT64_C(1) << 32) + 1, false, 0}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct etf_writer *w = begin_enter(2);
        etf_put_atom(w, "target"), etf_put_integer(w, cases[i].pid);
        CHECK(parse(0, true) == cases[i].ok);
        CHECK_INT(q.target_error, cases[i].error);
        CHECK(!cases[i].ok || (request_fd(&q, FD_TARGET) >= 0) == (cases[i].error == 0));
        done();
        for (int twice = 0; twice < 2 && cases[i].ok; twice++) {
            w = begin_enter(3);
            etf_put_atom(w, "target"), etf_put_integer(w, twice ? cases[i].pid : 1);
            etf_put_atom(w, "target"), etf_put_integer(w, twice ? 1 : cases[i].pid);
            CHECK(!accepted(true));
        }
    }
}

static void bad_argvs(void) {
    static const struct {
        const char *data;
        size_t length;
    } values[] = {
#define VALUE(literal) {literal, sizeof(literal) - 1}
        VALUE("\x6a"),                                                    /* [] */
        VALUE("\x77\x01" "a"),                                            /* an atom */
        VALUE("\x6b\x00\x02" "ab"),                                       /* "ab" is a list of numbers */
        VALUE("\x6c\x00\x00\x00\x01\x61\x01\x6a"),                        /* [1] */
        VALUE("\x6c\x00\x00\x00\x01\x77\x01" "a\x6a"),                    /* [a] */
        VALUE("\x6c\x00\x00\x00\x01\x6d\x00\x00\x00\x01" "a\x6d\x00\x00\x00\x01" "b"), /* [<<"a">> | <<"b">>] */
        VALUE("\x6c\x00\x00\x00\x01\x6d\x00\x00\x00\x03" "a\0b\x6a"),     /* a NUL byte */
        VALUE("\x6c\x00\x00\x00\x01\x6b\x00\x01\x00\x6a"),                /* [0] as a string */
        VALUE("\x6c\xff\xff\xff\xff\x6a"),                                /* a count that is a lie */
        VALUE("\x6c\x00\x00\x00\x02\x6d\x00\x00\x00\x01" "a\x6a"),        /* a count one too high: the tail becomes "" */
        VALUE("\x6c\x00\x00\x00\x01\x6d\x7f\xff\xff\xff" "a\x6a"),
#undef VALUE
    };
    for (size_t i = 0; i < COUNT_OF(values); i++)
        for (int port = 0; port <= 1; port++) {
            struct etf_writer *w = begin(1);
            etf_put_atom(w, "argv");
            put_raw(w, values[i].data, values[i].length);
            CHECK(!accepted(port));
        }
}

static void bad_values(void) {
    for (int port = 0; port <= 1; port++) {
        REFUSED("env", "\x6c\x00\x00\x00\x01\x61\x01\x6a", port);
        REFUSED("env", "\x6c\x00\x00\x00\x01\x68\x01\x6a\x6a", port);
        REFUSED("env", "\x6c\x00\x00\x00\x01\x68\x02\x6b\x00\x01\x41\x77\x05" "false\x6a", port);
        REFUSED("env", "\x6c\x00\x00\x00\x01\x68\x02\x6b\x00\x01\x41\x6b\x00\x01\x00\x6a", port);
        REFUSED("env", "\x6c\x00\x00\x00\x01\x68\x02\x6b\x00\x01\x00\x6b\x00\x01\x41\x6a", port);
        REFUSED("env", "\x77\x04none", port);
        REFUSED("namespaces", "\x6c\x00\x00\x00\x01\x77\x04typo\x6a", port);
        REFUSED("namespaces", "\x6c\x00\x00\x00\x01\x61\x07\x6a", port);
        REFUSED("namespaces", "\x6c\x00\x00\x00\x01\x77\x03net\x77\x03uts", port);
        REFUSED("namespaces", "\x77\x03net", port);
    }
}

static void what_follows_the_term(void) {
    struct etf_writer *w = begin(1);
    put_argv(w);
    put_nil(w);
    CHECK(!accepted(true));
}

static void every_prefix(void) {
    for (int port = 0; port <= 1; port++) {
        struct etf_writer *w = begin(3);
        put_argv(w);
        etf_put_atom(w, "env");
        put_binaries(w, "A=1", NULL);
        etf_put_atom(w, "namespaces");
        put_list(w, 1), etf_put_atom(w, "uts"), put_nil(w);
        size_t whole = w->used;
        for (; term.w.used > 0; term.w.used--)
            CHECK(accepted(port) == (term.w.used == whole));
    }
}

static void a_key_twice(void) {
    static const char *const keys[] = {"argv", "env", "steps"};
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        struct etf_writer *w = begin(3);
        put_argv(w);
        for (int twice = 0; twice < 2; twice++) {
            etf_put_atom(w, keys[i]);
            put_list(w, 1), strcmp(keys[i], "steps") == 0 ? etf_put_atom(w, "checkpoint") : etf_put_binary(w, "A=1"), put_nil(w);
        }
        CHECK(!accepted(false));
    }
}

/* The second one is empty, and must not take the first one's memory and leave its count. */
static void steps_twice(void) {
    struct etf_writer *w = begin(3);
    put_argv(w);
    etf_put_atom(w, "steps");
    put_list(w, 1), etf_put_atom(w, "checkpoint"), put_nil(w);
    etf_put_atom(w, "steps");
    put_nil(w);
    CHECK(!accepted(false));
}

/* ---- a session ----------------------------------------------------------------------------------------------- */

/* A reaper as pid 1 is for a fresh PID namespace. */
static void init_needs_a_pid_namespace(void) {
    for (int which = 0; which < 3; which++) {
        struct etf_writer *w = begin(3);
        put_argv(w);
        etf_put_atom(w, "init"), etf_put_atom(w, which == 2 ? "false" : "true");
        etf_put_atom(w, "namespaces"), put_list(w, 1), etf_put_atom(w, which == 0 ? "pid" : "uts"), put_nil(w);
        CHECK(parse(0, false) == (which != 1));
        CHECK(which == 1 || q.init == (which == 0));
        done();
    }
    REFUSED("init", "\x61\x01", false);
    ACCEPTED("init", "\x77\x04true", true); /* a port does not know it */
}

static void unknown_keys_are_refused_in_a_session(void) {
    REFUSED("cwd", "\x6b\x00\x01/", false);
    REFUSED("stdio", "\x77\x07" "devnull", false);
    REFUSED("typo", "\x6a", false);
    struct etf_writer *w = begin(2);
    put_argv(w);
    etf_put_binary(w, "env"), put_nil(w);
    CHECK(!accepted(false));
}

static void put_fds(struct etf_writer *w, const int64_t *targets, size_t count) {
    etf_put_atom(w, "fds");
    put_list(w, (uint32_t)count);
    for (size_t i = 0; i < count; i++)
        targets[i] == FD_CWD ? etf_put_atom(w, "cwd") : etf_put_integer(w, targets[i]);
    put_nil(w);
}

static void fds_find_their_targets(void) {
    static const int64_t targets[] = {2, FD_CWD, 0, 700};
    put_argv(begin(2));
    put_fds(&term.w, targets, COUNT_OF(targets));
    CHECK(parse(4, false));
    CHECK_INT(q.fd_count, 4);
    CHECK_INT(in.fd_count, 0);
    for (size_t i = 0; i < q.fd_count; i++) {
        CHECK_INT(q.fds[i].target, targets[i]);
        CHECK(fcntl(q.fds[i].source, F_GETFD) == FD_CLOEXEC);
    }
    done(); /* closes them: RUN looks */
}

/* Fewer or more fds than the plan has; either way none stays open, and the request is refused. */
static void fds_are_counted(void) {
    static const int64_t targets[] = {0, 1, 2};
    for (size_t fds = 0; fds <= 6; fds++) {
        put_argv(begin(2));
        put_fds(&term.w, targets, COUNT_OF(targets));
        CHECK(parse(fds, false) == (fds == 3));
        done();
    }
}

static void bad_fds(void) {
    static const int64_t twice[] = {0, 1, 0}, negative[] = {-2}, large[] = {INT64_C(1) << 31}, larger[] = {INT64_C(1) << 32};
    static const struct {
        const int64_t *targets;
        size_t count;
    } plans[] = {{twice, 3}, {negative, 1}, {large, 1}, {larger, 1}};
    for (size_t i = 0; i < COUNT_OF(plans); i++) {
        put_argv(begin(2));
        put_fds(&term.w, plans[i].targets, plans[i].count);
        CHECK(!parse(plans[i].count, false));
        done();
    }
    int64_t many[FDS_LIMIT + 1];
    for (int i = 0; i <= FDS_LIMIT; i++)
        many[i] = i;
    put_argv(begin(2));
    put_fds(&term.w, many, FDS_LIMIT + 1);
    CHECK(!parse(FDS_LIMIT, false));
    done();
    put_argv(begin(2));
    put_fds(&term.w, many, FDS_LIMIT);
    CHECK(parse(FDS_LIMIT, false));
    done();
    REFUSED("fds", "\x6c\x00\x00\x00\x01\x77\x03" "cwt\x6a", false);
}

static void steps(void) {
    struct etf_writer *w = begin(2);
    put_argv(w);
    etf_put_atom(w, "steps");
    put_list(w, 6);
    etf_put_tuple(w, 2), etf_put_atom(w, "umask"), etf_put_integer(w, 18);
    etf_put_tuple(w, 2), etf_put_atom(w, "optional");
    etf_put_tuple(w, 4), etf_put_atom(w, "rlimit"), etf_put_integer(w, 7), etf_put_integer(w, -1), etf_put_integer(w, INT64_MAX);
    etf_put_atom(w, "checkpoint");
    etf_put_tuple(w, 2), etf_put_atom(w, "setgroups"), put_list(w, 2), etf_put_integer(w, 5), etf_put_integer(w, 70000), put_nil(w);
    etf_put_tuple(w, 2), etf_put_atom(w, "hostname"), etf_put_binary(w, "box");
    etf_put_tuple(w, 1), etf_put_atom(w, "no_new_privs");
    put_nil(w);
    CHECK(parse(0, false));
    CHECK_INT(q.step_count, 6);
    static const char *const names[] = {"umask", "rlimit", NULL, "setgroups", "hostname", "no_new_privs"};
    for (size_t i = 0; i < COUNT_OF(names) && i < q.step_count; i++) {
        CHECK((q.steps[i].kind == NULL) == (names[i] == NULL));
        CHECK(names[i] == NULL || (q.steps[i].kind != NULL && strcmp(q.steps[i].kind->name, names[i]) == 0));
        CHECK(q.steps[i].optional == (i == 1));
    }
    CHECK_INT(q.steps[0].number[0], 18);
    CHECK(q.steps[1].number[1] == -1 && q.steps[1].number[2] == INT64_MAX);
    CHECK(q.steps[3].list_length == 2 && q.steps[3].list[0] == 5 && q.steps[3].list[1] == 70000);
    CHECK(strcmp(q.steps[4].text[0], "box") == 0);
    done();
}

static void bad_steps(void) {
    REFUSED("steps", "\x6c\x00\x00\x00\x01\x77\x04typo\x6a", false);
    REFUSED("steps", "\x6c\x00\x00\x00\x01\x68\x00\x6a", false);
    REFUSED("steps", "\x6c\x00\x00\x00\x01\x68\x01\x77\x04typo\x6a", false);
    REFUSED("steps", "\x6c\x00\x00\x00\x01\x68\x01\x77\x05umask\x6a", false);
    REFUSED("steps", "\x6c\x00\x00\x00\x01\x68\x03\x77\x05umask\x61\x01\x61\x01\x6a", false);
    REFUSED("steps", "\x6c\x00\x00\x00\x01\x68\x02\x77\x05umask\x77\x01" "a\x6a", false);
    REFUSED("steps", "\x6c\x00\x00\x00\x01\x68\x02\x77\x05" "chdir\x6b\x00\x01\x00\x6a", false);
    REFUSED("steps", "\x6c\x00\x00\x00\x01\x68\x02\x77\x09setgroups\x6c\x00\x00\x00\x01\x61\x01\x61\x02\x6a", false);
    REFUSED("steps", "\x6c\x00\x00\x00\x01\x68\x02\x77\x08optional\x77\x0a" "checkpoint\x6a", false);
    REFUSED("steps", "\x6c\x00\x00\x00\x01\x68\x02\x77\x08optional\x68\x02\x77\x08optional\x68\x01\x77\x0cno_new_privs\x6a", false);
    REFUSED("steps", "\x6c\x00\x00\x00\x02\x77\x0a" "checkpoint\x77\x0a" "checkpoint\x6a", false);
    REFUSED("steps", "\x6c\x00\x00\x00\x01\x77\x0a" "checkpoint\x77\x0a" "checkpoint", false);
    ACCEPTED("steps", "\x6a", false);
    ACCEPTED("steps", "\x6c\x00\x00\x00\x01\x68\x02\x77\x09setgroups\x6a\x6a", false);
}

/* Several texts and numbers in one step, each in its place; bytes may have zeros, and be empty. */
static void arguments_of_steps(void) {
    struct etf_writer *w = begin(2);
    put_argv(w);
    etf_put_atom(w, "steps");
    put_list(w, 4);
    etf_put_tuple(w, 5), etf_put_atom(w, "mount_bind"), etf_put_binary(w, "/usr"), etf_put_binary(w, "/mnt");
    etf_put_integer(w, 5), etf_put_integer(w, 1);
    etf_put_tuple(w, 6), etf_put_atom(w, "mount_new"), etf_put_binary(w, "tmpfs"), put_string(w, "none");
    etf_put_binary(w, "/tmp"), put_nil(w), etf_put_integer(w, -1);
    etf_put_tuple(w, 4), etf_put_atom(w, "make_file"), etf_put_binary(w, "/f"), put_bytes(w, "a\0b", 3), etf_put_integer(w, 420);
    etf_put_tuple(w, 3), etf_put_atom(w, "seccomp"), put_bytes(w, "", 0), etf_put_integer(w, INT64_MAX);
    put_nil(w);
    CHECK(parse(0, false));
    CHECK_INT(q.step_count, 4);
    const struct step *bind = &q.steps[0], *new = &q.steps[1], *file = &q.steps[2], *filter = &q.steps[3];
    CHECK(strcmp(bind->text[0], "/usr") == 0 && strcmp(bind->text[1], "/mnt") == 0);
    CHECK(bind->number[0] == 5 && bind->number[1] == 1);
    CHECK(strcmp(new->text[0], "tmpfs") == 0 && strcmp(new->text[1], "none") == 0);
    CHECK(strcmp(new->text[2], "/tmp") == 0 && strcmp(new->text[3], "") == 0 && new->number[0] == -1);
    CHECK(strcmp(file->text[0], "/f") == 0 && file->number[0] == 420);
    CHECK(file->data_length == 3 && memcmp(file->data, "a\0b", 3) == 0);
    CHECK(filter->data != NULL && filter->data_length == 0 && filter->number[0] == INT64_MAX);
    done();
}

static void bad_arguments_of_steps(void) {
    REFUSED("steps", "\x6c\x00\x00\x00\x01\x68\x03\x77\x07seccomp\x77\x01" "a\x61\x00\x6a", false);       /* an atom for bytes */
    REFUSED("steps", "\x6c\x00\x00\x00\x01\x68\x03\x77\x07seccomp\x61\x07\x61\x00\x6a", false);            /* a number */
    REFUSED("steps", "\x6c\x00\x00\x00\x01\x68\x02\x77\x07seccomp\x6a\x6a", false);                        /* one too few */
    REFUSED("steps", "\x6c\x00\x00\x00\x01\x68\x03\x77\x06sysctl\x6b\x00\x01" "a\x6b\x00\x02" "a\0\x6a", false); /* a NUL in a text */
    REFUSED("steps", "\x6c\x00\x00\x00\x01\x68\x02\x77\x0c" "cpu_affinity\x6d\xff\xff\xff\xff\x6a", false); /* longer than all */
    REFUSED("steps", "\x6c\x00\x00\x00\x01\x68\x02\x77\x11" "cap_drop_bounding\x6e\x08\x00\xff\xff\xff\xff\xff\xff\xff\xff\x6a", false);
    ACCEPTED("steps", "\x6c\x00\x00\x00\x01\x68\x03\x77\x07seccomp\x6a\x61\x00\x6a", false);
}

/* Every kind takes exactly what its letters say: nothing of it is lost, and the room in `struct step` suffices. */
static void every_kind_of_step(void) {
    for (size_t k = 0; k < step_kind_count; k++)
        for (int surplus = -1; surplus <= 1; surplus++) {
            const struct step_kind *kind = &step_kinds[k];
            int arguments = (int)strlen(kind->arguments) + surplus, texts = 0, numbers = 0;
            if (arguments < 0)
                continue;
            struct etf_writer *w = begin(2);
            put_argv(w);
            etf_put_atom(w, "steps");
            put_list(w, 1);
            etf_put_tuple(w, (uint32_t)arguments + 1);
            etf_put_atom(w, kind->name);
            for (int i = 0; i < arguments; i++) {
                char type = kind->arguments[i < (int)strlen(kind->arguments) ? i : 0];
                char text[2] = {(char)('a' + texts), '\0'};
                if (type == 'i' || type == 'd')
                    etf_put_integer(w, 40 + numbers++);
                else if (type == 't')
                    etf_put_binary(w, text), texts++;
                else if (type == 'b')
                    etf_put_binary(w, "bytes");
                else
                    put_nil(w);
            }
            put_nil(w);
            bool ok = parse(0, false);
            CHECK(ok == (surplus == 0));
            const struct step *step = ok && q.step_count == 1 ? &q.steps[0] : NULL;
            CHECK(step == NULL || (step->kind == kind && texts <= (int)COUNT_OF(step->text) && numbers <= (int)COUNT_OF(step->number)));
            for (int i = 0; step != NULL && i < texts; i++)
                CHECK(step->text[i][0] == 'a' + i);
            for (int i = 0; step != NULL && i < numbers; i++)
                CHECK_INT(step->number[i], 40 + i);
            CHECK(step == NULL || strchr(kind->arguments, 'b') == NULL || step->data_length == 5);
            done();
        }
}

/* ---- a batch for a parked child ------------------------------------------------------------------------------ */

static bool parse_batch(void) {
    uint8_t *copy = exact_copy(term.data, term.w.used);
    bool ok = request_parse_steps(&q, (struct etf_slice){copy, term.w.used});
    CHECK(q.arena_used <= q.arena_size);
    free(copy);
    return ok;
}

static struct etf_writer *begin_batch(const char *name, uint32_t count) {
    struct etf_writer *w = term_begin(&term);
    etf_put_tuple(w, 2);
    etf_put_atom(w, name);
    put_list(w, count);
    return w;
}

static void a_batch(void) {
    struct etf_writer *w = begin_batch("steps", 3);
    etf_put_tuple(w, 2), etf_put_atom(w, "umask"), etf_put_integer(w, 18);
    etf_put_tuple(w, 2), etf_put_atom(w, "optional");
    etf_put_tuple(w, 2), etf_put_atom(w, "hostname"), etf_put_binary(w, "box");
    etf_put_tuple(w, 3), etf_put_atom(w, "seccomp"), put_bytes(w, "\6\0\0\0\0\0\xff\x7f", 8), etf_put_integer(w, 2);
    put_nil(w);
    size_t whole = w->used;
    CHECK(parse_batch());
    CHECK_INT(q.step_count, 3);
    CHECK(!q.steps[0].optional && q.steps[1].optional && q.steps[2].data_length == 8);
    CHECK(q.argv == NULL && q.fd_count == 0);
    request_free(&q);
    for (term.w.used = 0; term.w.used < whole; term.w.used++) {
        CHECK(!parse_batch());
        request_free(&q);
    }
    put_nil(term_begin(&term)); /* no tuple at all */
    CHECK(!parse_batch());
    request_free(&q);
}

static void an_empty_batch(void) {
    struct etf_writer *w = term_begin(&term);
    etf_put_tuple(w, 2), etf_put_atom(w, "steps"), put_nil(w);
    CHECK(parse_batch());
    CHECK_INT(q.step_count, 0);
    request_free(&q);
    put_nil(w); /* something behind it */
    CHECK(!parse_batch());
    request_free(&q);
}

static void bad_batches(void) {
    static const char *const names[] = {"spawn", "step", "Steps"};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        struct etf_writer *w = begin_batch(names[i], 1);
        etf_put_tuple(w, 1), etf_put_atom(w, "no_new_privs"), put_nil(w);
        CHECK(!parse_batch());
        request_free(&q);
    }
    struct etf_writer *w = begin_batch("steps", 2); /* the checkpoint is behind it */
    etf_put_tuple(w, 1), etf_put_atom(w, "no_new_privs");
    etf_put_atom(w, "checkpoint"), put_nil(w);
    CHECK(!parse_batch());
    request_free(&q);
    w = begin_batch("steps", 1);
    etf_put_tuple(w, 1), etf_put_atom(w, "typo"), put_nil(w);
    CHECK(!parse_batch());
    request_free(&q);
}

/* A number that does not fit what the kernel takes must not be cut until it does: uid 2^32 is not root. */
static void ids_are_not_cut(void) {
    static const char *const names[] = {"setuid", "setgid"};
    for (size_t i = 0; i < COUNT_OF(names); i++)
        for (int negative = 0; negative <= 1; negative++) {
            struct etf_writer *w = begin(2);
            put_argv(w);
            etf_put_atom(w, "steps");
            put_list(w, 1);
            etf_put_tuple(w, 2), etf_put_atom(w, names[i]), etf_put_integer(w, negative ? -1 : INT64_C(1) << 32);
            put_nil(w);
            CHECK(!accepted(false));
        }
    struct etf_writer *w = begin(2);
    put_argv(w);
    etf_put_atom(w, "steps");
    put_list(w, 1);
    etf_put_tuple(w, 2), etf_put_atom(w, "setgroups"), put_list(w, 1), etf_put_integer(w, INT64_C(1) << 32), put_nil(w);
    put_nil(w);
    CHECK(!accepted(false));
}

static void the_orphan_policy(void) {
    struct etf_writer *w = begin(2);
    put_argv(w);
    etf_put_atom(w, "orphan");
    etf_put_tuple(w, 2), etf_put_atom(w, "kill"), etf_put_integer(w, 250);
    CHECK(parse(0, false));
    CHECK(!q.linger);
    CHECK_INT(q.orphan_grace_us, 250000);
    done();
    w = begin(2);
    put_argv(w);
    etf_put_atom(w, "orphan"), etf_put_atom(w, "linger");
    CHECK(parse(0, false));
    CHECK(q.linger);
    done();
    REFUSED("orphan", "\x77\x05linge", false);
    REFUSED("orphan", "\x68\x01\x77\x04kill", false);
    REFUSED("orphan", "\x68\x02\x77\x04kill\x77\x04soon", false);
}

/* Milliseconds whose microseconds are beyond 64 bits: refused, and no overflow (which the sanitizer would report). */
static void an_endless_grace(void) {
    struct etf_writer *w = begin(2);
    put_argv(w);
    etf_put_atom(w, "orphan");
    etf_put_tuple(w, 2), etf_put_atom(w, "kill"), etf_put_integer(w, INT64_MAX);
    CHECK(!accepted(false));
}

static void booleans(void) {
    struct etf_writer *w = begin(3);
    put_argv(w);
    etf_put_atom(w, "auto_proceed"), etf_put_atom(w, "true");
    etf_put_atom(w, "new_session"), etf_put_atom(w, "false");
    CHECK(parse(0, false));
    CHECK(q.auto_proceed && !q.new_session);
    done();
    REFUSED("auto_proceed", "\x61\x01", false);
    REFUSED("auto_proceed", "\x77\x03yes", false);
    REFUSED("new_session", "\x77\x00", false);
}

/* ---- a port -------------------------------------------------------------------------------------------------- */

static void unknown_keys_are_skipped_in_a_port(void) {
    ACCEPTED("typo", "\x6a", true);
    ACCEPTED("typo", "\x46\x3f\xf0\x00\x00\x00\x00\x00\x00", true);
    ACCEPTED("typo", "\x74\x00\x00\x00\x01\x68\x00\x6c\x00\x00\x00\x01\x6e\x01\x00\x01\x61\x01", true);
    ACCEPTED("fds", "\x6c\x00\x00\x00\x01\x61\x07\x6a", true);
    ACCEPTED("auto_proceed", "\x77\x04true", true);
    ACCEPTED("steps", "\x77\x04none", true);
    REFUSED("typo", "\x6c\x00\x00\x00\x02\x6a", true); /* no term at all */
    REFUSED("typo", "", true);
    struct etf_writer *w = begin(3);
    etf_put_integer(w, 1), etf_put_integer(w, 2);
    etf_put_binary(w, "argv"), put_nil(w);
    put_argv(w);
    CHECK(accepted(true));
}

static void cwd_and_no_new_privs_are_steps(void) {
    struct etf_writer *w = begin(3);
    put_argv(w);
    etf_put_atom(w, "cwd"), put_string(w, "/usr");
    etf_put_atom(w, "no_new_privs"), etf_put_atom(w, "true");
    CHECK(parse(0, true));
    CHECK_INT(q.step_count, 2);
    CHECK(strcmp(q.steps[0].kind->name, "chdir") == 0 && strcmp(q.steps[0].text[0], "/usr") == 0);
    CHECK(strcmp(q.steps[1].kind->name, "no_new_privs") == 0);
    done();
    ACCEPTED("no_new_privs", "\x77\x05" "false", true);
    REFUSED("no_new_privs", "\x61\x01", true);
    REFUSED("cwd", "\x77\x01/", true);
    REFUSED("cwd", "\x6b\x00\x02/\0", true);
    REFUSED("cwd", "\x61\x07", true);
}

/* What a planned fd is: `n` for the null device, else the digit of our own fd that it is a copy of. */
static char kind_of(int fd) {
    struct stat it, own;
    if (fstat(fd, &it) < 0)
        return '?';
    if (S_ISCHR(it.st_mode) && it.st_rdev == makedev(1, 3))
        return 'n';
    for (int number = 0; number <= 2; number++)
        if (fstat(number, &own) == 0 && own.st_dev == it.st_dev && own.st_ino == it.st_ino)
            return (char)('0' + number);
    return '?';
}

/* Gives fds 0, 1 and 2 three different files, none of them the null device; what is printed still goes where it went. */
static void stand_on_three_files(int kept[3]) {
    (void)fflush(stdout);
    for (int fd = 0; fd <= 2; fd++) {
        int pair[2];
        kept[fd] = fcntl(fd, F_DUPFD_CLOEXEC, 100);
        if (pipe2(pair, O_CLOEXEC) < 0 || dup2(pair[fd == 0 ? 0 : 1], fd) < 0)
            abort();
        close_fd(&pair[0]);
        close_fd(&pair[1]);
    }
}

static void step_back(int kept[3]) {
    for (int fd = 0; fd <= 2; fd++) {
        if (kept[fd] >= 0 && dup2(kept[fd], fd) < 0)
            abort();
        close_fd(&kept[fd]);
    }
}

static void stdio(void) {
    static const struct {
        const char *value;
        size_t length;
        char want[4];
    } cases[] = {
#define CASE(value, want) {value, sizeof(value) - 1, want}
        CASE("\x77\x07inherit", "012"),
        CASE("\x77\x07" "devnull", "nnn"),
        CASE("\x6a", "012"),
        CASE("\x74\x00\x00\x00\x00", "012"),
        CASE("\x6c\x00\x00\x00\x01\x68\x02\x77\x06stdout\x77\x07" "devnull\x6a", "0n2"),
        CASE("\x74\x00\x00\x00\x01\x77\x05stdin\x77\x07" "devnull", "n12"),
        CASE("\x74\x00\x00\x00\x01\x77\x06stderr\x77\x06stdout", "011"),
        CASE("\x74\x00\x00\x00\x02\x77\x06stderr\x77\x06stdout\x77\x06stdout\x77\x07" "devnull", "0nn"),
        CASE("\x6c\x00\x00\x00\x02\x68\x02\x77\x06stderr\x77\x07inherit\x68\x02\x77\x05stdin\x77\x07" "devnull\x6a", "n12"),
#undef CASE
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct etf_writer *w = begin(2);
        put_argv(w);
        etf_put_atom(w, "stdio");
        put_raw(w, cases[i].value, cases[i].length);
        int kept[3];
        stand_on_three_files(kept);
        bool ok = parse(0, true);
        char got[4] = "";
        bool closed = true;
        for (size_t fd = 0; fd < 3 && fd < q.fd_count; fd++) {
            got[fd] = kind_of(q.fds[fd].source);
            closed &= fcntl(q.fds[fd].source, F_GETFD) == FD_CLOEXEC;
        }
        done();
        step_back(kept);
        CHECK(ok && closed && strcmp(got, cases[i].want) == 0);
    }
}

static void bad_stdio(void) {
    REFUSED("stdio", "\x77\x04null", true);
    REFUSED("stdio", "\x77\x06stdout", true);
    REFUSED("stdio", "\x61\x01", true);
    REFUSED("stdio", "\x6c\x00\x00\x00\x01\x77\x06stdout\x6a", true);
    REFUSED("stdio", "\x6c\x00\x00\x00\x01\x68\x02\x77\x06stdouT\x77\x07" "devnull\x6a", true);
    REFUSED("stdio", "\x6c\x00\x00\x00\x01\x68\x02\x77\x06stdout\x77\x06stdout\x6a", true);
    REFUSED("stdio", "\x6c\x00\x00\x00\x01\x68\x02\x77\x05stdin\x77\x07" "devnull\x61\x01", true);
    REFUSED("stdio", "\x74\x00\x00\x00\x01\x61\x01\x77\x07" "devnull", true);
}

/* ---- the arena ----------------------------------------------------------------------------------------------- */

/* Texts that cost most beside what they bring: each a tag of one byte, and in the arena a NUL. */
static void the_arena_suffices(void) {
    enum { COUNT = 20000 };
    struct etf_writer *w = begin(2);
    put_argv(w);
    etf_put_atom(w, "env");
    put_list(w, COUNT);
    for (int i = 0; i < COUNT; i++)
        etf_put_tuple(w, 2), put_nil(w), put_nil(w);
    put_nil(w);
    CHECK(parse(0, true));
    CHECK(q.arena_used <= term.w.used);
    CHECK(strcmp(q.envp[COUNT - 1], "=") == 0 && q.envp[COUNT] == NULL);
    done();
}

int main(void) {
    RUN(the_least);
    RUN(argv_in_every_form);
    RUN(env_in_every_form);
    RUN(an_empty_env_is_no_inherited_one);
    RUN(namespaces);
    RUN(no_requests);
    RUN(enter_joins_all_by_default);
    RUN(enter_joins_what_it_is_told);
    RUN(spawn_joins_nothing);
    RUN(a_target_and_entering_go_together);
    RUN(a_cgroup_beside_the_target);
    RUN(a_cgroup_of_its_own);
    RUN(a_ports_target);
    RUN(bad_argvs);
    RUN(bad_values);
    RUN(what_follows_the_term);
    RUN(every_prefix);
    RUN(a_key_twice);
    RUN(steps_twice);
    RUN(unknown_keys_are_refused_in_a_session);
    RUN(fds_find_their_targets);
    RUN(fds_are_counted);
    RUN(bad_fds);
    RUN(steps);
    RUN(bad_steps);
    RUN(arguments_of_steps);
    RUN(bad_arguments_of_steps);
    RUN(every_kind_of_step);
    RUN(a_batch);
    RUN(an_empty_batch);
    RUN(bad_batches);
    RUN(init_needs_a_pid_namespace);
    RUN(ids_are_not_cut);
    RUN(the_orphan_policy);
    RUN(booleans);
    RUN(unknown_keys_are_skipped_in_a_port);
    RUN(cwd_and_no_new_privs_are_steps);
    RUN(stdio);
    RUN(bad_stdio);
    RUN(the_arena_suffices);
    RUN(an_endless_grace); /* the last one: where it overflows, the sanitizer ends the program */
    return verdict();
}
