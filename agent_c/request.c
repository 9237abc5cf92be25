#include "request.h"

#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "namespaces.h"

/* ---- text and arrays ----------------------------------------------------------------------------------------- */

/* Room for the usual request: what malloc(3) would get from the kernel for each of them, and give back, costs more than all the
 * parsing. There is one request at a time. Text fills it from the front, and what points to it from the back. */
static _Alignas(16) char usual_arena[32768];
static bool usual_is_taken;

static bool arena_make(struct request *q, size_t size) {
    q->arena_size = size;
    q->arrays_at = sizeof usual_arena;
    if (!usual_is_taken && size <= sizeof usual_arena) {
        usual_is_taken = true;
        q->arena = usual_arena;
    } else {
        q->arena = malloc(size);
    }
    return q->arena != NULL;
}

static void arena_free(struct request *q) {
    if (q->arena == NULL)
        return;
    explicit_bzero(q->arena, q->arena_used);
    if (q->arena == usual_arena)
        usual_is_taken = false;
    else
        free(q->arena);
}

/* Like calloc(3). */
static void *array_make(struct request *q, size_t count, size_t size) {
    size_t room = q->arena == usual_arena ? (q->arrays_at - q->arena_size) & ~(size_t)15 : 0;
    if (count > room / size)
        return calloc(count, size);
    size_t taken = (count * size + 15) & ~(size_t)15;
    q->arrays_at -= taken;
    return memset(usual_arena + q->arrays_at, 0, taken);
}

static void array_free(const void *array) {
    if ((uintptr_t)array - (uintptr_t)usual_arena >= sizeof usual_arena)
        free((void *)(uintptr_t)array);
}

static char *arena_add(struct request *q, struct etf_slice slice) {
    char *text = q->arena + q->arena_used;
    memcpy(text, slice.data, slice.length);
    q->arena_used += slice.length;
    q->arena[q->arena_used++] = '\0';
    return text;
}

/* A string for the kernel: NUL would end it early, so it is refused rather than cut. */
static const char *take_text(struct request *q, struct etf_reader *r) {
    struct etf_slice slice = etf_text(r);
    if (r->bad || memchr(slice.data, '\0', slice.length) != NULL) {
        r->bad = true;
        return "";
    }
    return arena_add(q, slice);
}

/* `<<"K=V">>`, or `{K, V}` as Erlang's own environment lists have it. */
static char *take_assignment(struct request *q, struct etf_reader *r, bool pair) {
    if (!pair && etf_peek(r) == ETF_TUPLE) {
        if (etf_tuple(r) != 2)
            r->bad = true;
        pair = true;
    }
    char *text = (char *)(uintptr_t)take_text(q, r);
    if (pair && !r->bad) {
        q->arena[q->arena_used - 1] = '=';
        (void)take_text(q, r);
    }
    return text;
}

static char **take_strings(struct request *q, struct etf_reader *r, bool assignments) {
    bool map = assignments && etf_peek(r) == ETF_MAP;
    size_t count = map ? etf_map(r) : etf_list(r);
    char **strings = array_make(q, count + 1, sizeof *strings);
    if (strings == NULL) {
        r->bad = true;
        return NULL;
    }
    for (size_t i = 0; i < count && !r->bad; i++)
        strings[i] = assignments ? take_assignment(q, r, map) : (char *)(uintptr_t)take_text(q, r);
    if (!map)
        etf_list_end(r);
    return strings;
}

/* ---- the keys ------------------------------------------------------------------------------------------------ */

static bool take_bool(struct etf_reader *r) {
    struct etf_slice atom = etf_atom(r);
    if (!slice_is(atom, "true") && !slice_is(atom, "false"))
        r->bad = true;
    return slice_is(atom, "true");
}

static void key_argv(struct request *q, struct etf_reader *r) {
    if (q->argv == NULL)
        q->argv = take_strings(q, r, false);
    else
        r->bad = true;
}

static void key_env(struct request *q, struct etf_reader *r) {
    if (q->envp == NULL)
        q->envp = take_strings(q, r, true);
    else
        r->bad = true;
}

static void key_namespaces(struct request *q, struct etf_reader *r) {
    if (q->enters && etf_peek(r) == ETF_ATOM) {
        r->bad |= !slice_is(etf_atom(r), "all");
        return;
    }
    q->joins_all = false;
    size_t count = etf_list(r);
    for (size_t i = 0; i < count && !r->bad; i++) {
        uint64_t flag = namespace_flag(etf_peek(r) == ETF_ATOM ? etf_atom(r) : etf_text(r));
        if (flag == 0)
            r->bad = true;
        if (q->enters)
            q->joins |= flag;
        else
            q->namespaces |= flag;
    }
    etf_list_end(r);
}

static const struct {
    const char *name;
    int target;
} special_fds[] = {{"cwd", FD_CWD}, {"target", FD_TARGET}, {"cgroup", FD_CGROUP}, {"cgroup_parent", FD_CGROUP_PARENT}};

static int special_target(struct etf_slice name) {
    for (size_t i = 0; i < COUNT_OF(special_fds); i++)
        if (slice_is(name, special_fds[i].name))
            return special_fds[i].target;
    return 0;
}

/* The targets of the frame's fds, in their order; and among them `{null, N}`, for which none has come. */
static void key_fds(struct request *q, struct etf_reader *r) {
    size_t count = etf_list(r);
    for (size_t i = 0; i < count && !r->bad; i++) {
        int64_t target;
        bool null = etf_peek(r) == ETF_TUPLE;
        if (null)
            r->bad |= etf_tuple(r) != 2 || !slice_is(etf_atom(r), "null");
        if (!null && etf_peek(r) == ETF_ATOM)
            r->bad |= (target = special_target(etf_atom(r))) == 0;
        else if ((target = etf_integer(r)) < 0 || target > INT32_MAX)
            r->bad = true;
        for (size_t j = 0; j < q->fd_count; j++)
            r->bad |= q->fds[j].target == target;
        if (q->fd_count == FDS_LIMIT)
            r->bad = true;
        if (!r->bad)
            q->fds[q->fd_count++] = (struct planned_fd){null ? SOURCE_NULL : -1, (int)target};
    }
    etf_list_end(r);
}

static void take_step(struct request *q, struct etf_reader *r, struct step *step) {
    if (etf_peek(r) == ETF_ATOM) {
        r->bad |= !slice_is(etf_atom(r), "checkpoint");
        return;
    }
    size_t arity = etf_tuple(r);
    struct etf_slice name = etf_atom(r);
    if (slice_is(name, "optional") && arity == 2) {
        step->optional = true;
        arity = etf_tuple(r);
        name = etf_atom(r);
    }
    step->kind = r->bad ? NULL : step_kind_find(name);
    if (step->kind == NULL || strlen(step->kind->arguments) + 1 != arity) {
        r->bad = true;
        return;
    }
    size_t numbers = 0, texts = 0;
    for (const char *type = step->kind->arguments; *type != '\0' && !r->bad; type++) {
        if (*type == 'i') {
            step->number[numbers++] = etf_integer(r);
        } else if (*type == 'd') { /* -1 would mean "as it is" */
            step->number[numbers++] = etf_between(r, 0, (gid_t)-2);
        } else if (*type == 't') {
            step->text[texts++] = take_text(q, r);
        } else if (*type == 'b') {
            struct etf_slice data = etf_text(r);
            step->data = r->bad ? "" : arena_add(q, data);
            step->data_length = data.length;
        } else {
            gid_t *list = NULL;
            step->list_length = etf_list(r);
            if (step->list_length > 0 && (list = array_make(q, step->list_length, sizeof *list)) == NULL)
                r->bad = true;
            for (size_t i = 0; i < step->list_length && !r->bad; i++)
                list[i] = (gid_t)etf_between(r, 0, (gid_t)-2);
            etf_list_end(r);
            step->list = list;
        }
    }
}

static void key_steps(struct request *q, struct etf_reader *r) {
    size_t count = etf_list(r);
    r->bad |= q->steps != NULL; /* twice */
    if (count > 0 && !r->bad && (q->steps = array_make(q, count, sizeof *q->steps)) == NULL)
        r->bad = true;
    size_t checkpoints = 0;
    for (size_t i = 0; i < count && !r->bad; i++) {
        take_step(q, r, &q->steps[i]);
        q->step_count = i + 1;
        checkpoints += q->steps[i].kind == NULL;
    }
    if (checkpoints > 1)
        r->bad = true;
    etf_list_end(r);
}

static void key_orphan(struct request *q, struct etf_reader *r) {
    if (etf_peek(r) == ETF_ATOM) {
        r->bad |= !slice_is(etf_atom(r), "linger");
        q->linger = true;
        return;
    }
    r->bad |= etf_tuple(r) != 2;
    r->bad |= !slice_is(etf_atom(r), "kill");
    q->orphan_grace_us = etf_between(r, 0, UINT32_MAX) * 1000;
}

static void key_auto_proceed(struct request *q, struct etf_reader *r) { q->auto_proceed = take_bool(r); }

static void key_quiet(struct request *q, struct etf_reader *r) { q->quiet = take_bool(r); }

static void key_init(struct request *q, struct etf_reader *r) { q->init = take_bool(r); }

static void key_own_cgroup(struct request *q, struct etf_reader *r) {
    const char *name = take_text(q, r);
    size_t length = strlen(name);
    r->bad |= q->own_cgroup != NULL || length == 0 || length > NAME_MAX || strchr(name, '/') != NULL || name[0] == '.';
    q->own_cgroup = name;
}

static void key_new_session(struct request *q, struct etf_reader *r) { q->new_session = take_bool(r); }

/* A port says cwd, stdio and no_new_privs in words of its own (they are steps and fds in a session). */
static void add_step(struct request *q, struct etf_reader *r, const char *name, const char *text) {
    struct etf_slice slice = {(const uint8_t *)name, strlen(name)};
    struct step *larger = realloc(q->steps, (q->step_count + 1) * sizeof *q->steps);
    if (larger == NULL) {
        r->bad = true;
        return;
    }
    q->steps = larger;
    q->steps[q->step_count++] = (struct step){.kind = step_kind_find(slice), .text = {text}};
}

static void key_cwd(struct request *q, struct etf_reader *r) { add_step(q, r, "chdir", take_text(q, r)); }

static void key_no_new_privs(struct request *q, struct etf_reader *r) {
    if (take_bool(r))
        add_step(q, r, "no_new_privs", NULL);
}

static void take_stdio(struct request *q, struct etf_reader *r, int first, int last) {
    struct etf_slice how = etf_atom(r);
    bool devnull = slice_is(how, "devnull"), merge = slice_is(how, "stdout") && first == 2;
    if (!devnull && !merge && !slice_is(how, "inherit"))
        r->bad = true;
    q->stderr_to_stdout |= merge;
    for (int fd = first; fd <= last && devnull && !r->bad; fd++) {
        close_fd(&q->fds[fd].source);
        q->fds[fd].source = open("/dev/null", O_RDWR | O_CLOEXEC);
        r->bad |= q->fds[fd].source < 0;
    }
}

/* A port's target is a pid. It is pinned here, at once: everything about it is opened below this directory. */
static void key_target(struct request *q, struct etf_reader *r) {
    char path[32];
    int64_t pid = etf_between(r, 1, INT32_MAX);
    r->bad |= !q->enters || request_fd(q, FD_TARGET) >= 0 || q->target_error != 0 || q->fd_count == FDS_LIMIT;
    if (r->bad)
        return;
    (void)snprintf(path, sizeof path, "/proc/%d", (int)pid);
    int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        q->target_error = errno;
    else
        q->fds[q->fd_count++] = (struct planned_fd){fd, FD_TARGET};
}

static int stdio_number(struct etf_slice name) {
    return slice_is(name, "stdin") ? 0 : slice_is(name, "stdout") ? 1 : slice_is(name, "stderr") ? 2 : -1;
}

static void key_stdio(struct request *q, struct etf_reader *r) {
    if (etf_peek(r) == ETF_ATOM) {
        take_stdio(q, r, 0, 2);
        return;
    }
    bool map = etf_peek(r) == ETF_MAP;
    size_t count = map ? etf_map(r) : etf_list(r);
    for (size_t i = 0; i < count && !r->bad; i++) {
        if (!map && etf_tuple(r) != 2)
            r->bad = true;
        int number = stdio_number(etf_atom(r));
        if (number < 0)
            r->bad = true;
        else
            take_stdio(q, r, number, number);
    }
    if (!map)
        etf_list_end(r);
    if (q->stderr_to_stdout && !r->bad) { /* at the end: a map may name stderr first */
        close_fd(&q->fds[2].source);
        q->fds[2].source = fcntl(q->fds[1].source, F_DUPFD_CLOEXEC, 5);
    }
}

/* ---- the whole ----------------------------------------------------------------------------------------------- */

struct key {
    const char *name;
    void (*take)(struct request *q, struct etf_reader *r);
};

static const struct key session_keys[] = {
    {"argv", key_argv},     {"env", key_env},       {"namespaces", key_namespaces},     {"fds", key_fds},
    {"steps", key_steps},   {"orphan", key_orphan}, {"auto_proceed", key_auto_proceed}, {"new_session", key_new_session},
    {"quiet", key_quiet},   {"init", key_init},     {"own_cgroup", key_own_cgroup},
};

static const struct key port_keys[] = {
    {"argv", key_argv}, {"env", key_env},     {"namespaces", key_namespaces},
    {"cwd", key_cwd},   {"stdio", key_stdio}, {"no_new_privs", key_no_new_privs},
    {"target", key_target},
};

static void take_map(struct request *q, struct etf_reader *r, bool port) {
    const struct key *keys = port ? port_keys : session_keys;
    size_t key_count = port ? COUNT_OF(port_keys) : COUNT_OF(session_keys);
    size_t pairs = etf_map(r);
    for (size_t i = 0; i < pairs && !r->bad; i++) {
        const struct key *known = NULL;
        if (etf_peek(r) == ETF_ATOM) {
            struct etf_slice name = etf_atom(r);
            for (size_t k = 0; k < key_count; k++)
                if (slice_is(name, keys[k].name))
                    known = &keys[k];
        } else {
            etf_skip(r);
        }
        if (known == NULL && port)
            etf_skip(r);
        else if (known == NULL)
            r->bad = true;
        else
            known->take(q, r);
    }
}

/* Every fd that came is in the plan, and the plan has no other; a port's three are its own. */
static bool take_fds(struct request *q, struct inbox *in, bool port) {
    if (port)
        return true;
    size_t planned = 0, taken = 0;
    for (size_t i = 0; i < q->fd_count; i++)
        planned += q->fds[i].source != SOURCE_NULL;
    if (in->fd_count != planned) {
        errno = in->fds_lost ? EMFILE : EINVAL;
        return false;
    }
    for (size_t i = 0; i < q->fd_count; i++)
        if (q->fds[i].source != SOURCE_NULL)
            q->fds[i].source = steal_fd(&in->fds[taken++]);
    in->fd_count = 0;
    return true;
}

bool request_open_nulls(struct request *q, int *target) {
    for (size_t i = 0; i < q->fd_count; i++) {
        *target = q->fds[i].target;
        if (q->fds[i].source == SOURCE_NULL && (q->fds[i].source = open("/dev/null", O_RDWR | O_CLOEXEC)) < 0)
            return false;
    }
    return true;
}

bool request_has_step(const struct request *q, bool (*is_it)(const struct step *step)) {
    for (size_t i = 0; i < q->step_count; i++)
        if (q->steps[i].kind != NULL && is_it(&q->steps[i]))
            return true;
    return false;
}

int request_fd(const struct request *q, int target) {
    for (size_t i = 0; i < q->fd_count; i++)
        if (q->fds[i].target == target)
            return q->fds[i].source;
    return -1;
}

static bool cgroups_fit(const struct request *q) {
    bool own = q->own_cgroup != NULL;
    return own == (request_fd(q, FD_CGROUP_PARENT) >= 0) && (!own || request_fd(q, FD_CGROUP) >= 0);
}

static bool target_fits(const struct request *q) {
    if (q->init && (q->enters || !(q->namespaces & CLONE_NEWPID)))
        return false;
    return q->enters == (request_fd(q, FD_TARGET) >= 0 || q->target_error != 0);
}

bool request_parse_steps(struct request *q, struct etf_slice payload) {
    struct etf_reader r = etf_open(payload.data, payload.length);
    memset(q, 0, sizeof *q);
    if (!arena_make(q, payload.length * 2 + 16) || etf_tuple(&r) != 2 || !slice_is(etf_atom(&r), "steps"))
        return false;
    key_steps(q, &r);
    for (size_t i = 0; i < q->step_count; i++)
        r.bad |= q->steps[i].kind == NULL; /* the checkpoint is behind us */
    return etf_done(&r);
}

bool request_parse(struct request *q, struct etf_slice payload, struct inbox *in, bool port) {
    memset(q, 0, sizeof *q);
    q->new_session = true;
    q->orphan_grace_us = 5000000;
    errno = ENOMEM;
    if (!arena_make(q, payload.length * 2 + 16)) /* every text costs its tag: room for each NUL and '=' */
        return false;
    for (int fd = 0; port && fd < 3; fd++)
        q->fds[q->fd_count++] = (struct planned_fd){fcntl(fd, F_DUPFD_CLOEXEC, 5), fd};
    struct etf_reader r = etf_open(payload.data, payload.length);
    errno = EINVAL;
    bool pair = etf_tuple(&r) == 2;
    struct etf_slice what = etf_atom(&r);
    q->enters = q->joins_all = slice_is(what, "enter");
    if (!pair || (!q->enters && !slice_is(what, "spawn")))
        return false;
    take_map(q, &r, port);
    errno = EINVAL;
    return etf_done(&r) && q->argv != NULL && q->argv[0] != NULL && take_fds(q, in, port) && target_fits(q) &&
           cgroups_fit(q);
}

void request_close_fds(struct request *q) {
    for (size_t i = 0; i < q->fd_count; i++) {
        int source = q->fds[i].source; /* the child, if it shares our memory, still reads the number */
        close_fd(&source);
    }
}

void request_free(struct request *q) {
    for (size_t i = 0; i < q->step_count; i++)
        array_free(q->steps[i].list);
    array_free(q->steps);
    array_free(q->argv);
    array_free(q->envp);
    arena_free(q);
    memset(q, 0, sizeof *q);
}
