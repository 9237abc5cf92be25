/* Any bytes as a request, of a session or a port, or as a batch of steps for a parked child: accepted, and then whole and
 * within its memory; or refused. Either way every fd is closed in the end, the planned and the superfluous. The first byte
 * of an input says who asks, and with how many fds; the rest is the payload. */
#include "fuzz.h"

#include <fcntl.h>

#include "../request.h"

enum { BATCH = 0x80 };

static struct request q;
static struct inbox in;

static void expect_text(const char *text) {
    EXPECT(text >= q.arena && text < q.arena + q.arena_used);
    EXPECT(memchr(text, '\0', (size_t)(q.arena + q.arena_used - text)) != NULL);
}

static void expect_sound_steps(void) {
    EXPECT(q.steps != NULL || q.step_count == 0);
    for (size_t i = 0; i < q.step_count; i++) {
        const struct step *step = &q.steps[i];
        size_t texts = 0;
        for (const char *type = step->kind != NULL ? step->kind->arguments : ""; *type != '\0'; type++) {
            if (*type == 't')
                expect_text(step->text[texts++]);
            else if (*type == 'b')
                EXPECT(step->data >= q.arena && step->data + step->data_length < q.arena + q.arena_used);
        }
        for (size_t k = 0; k < step->list_length; k++)
            EXPECT(step->list[k] == step->list[k]); /* the sanitizer looks */
    }
}

static void expect_sound(bool port) {
    EXPECT(q.argv != NULL && q.argv[0] != NULL);
    for (char **text = q.argv; *text != NULL; text++)
        expect_text(*text);
    for (char **text = q.envp; text != NULL && *text != NULL; text++)
        expect_text(*text);
    bool has_target = request_fd(&q, FD_TARGET) >= 0;
    EXPECT(q.enters == (has_target || q.target_error != 0));
    EXPECT(!port || q.fd_count == (has_target ? 4 : 3));
    EXPECT(q.enters ? q.namespaces == 0 : q.joins == 0 && !q.joins_all && q.target_error == 0);
    for (size_t i = 0; i < q.fd_count; i++) {
        EXPECT(q.fds[i].target >= FD_CGROUP);
        EXPECT(fcntl(q.fds[i].source, F_GETFD) == FD_CLOEXEC);
        for (size_t j = 0; j < i; j++)
            EXPECT(q.fds[i].target != q.fds[j].target && q.fds[i].source != q.fds[j].source);
    }
    expect_sound_steps();
}

static void take_batch(const uint8_t *data, size_t size) {
    uint8_t *payload = exact_copy(data, size);
    bool ok = request_parse_steps(&q, (struct etf_slice){payload, size});
    free(payload);
    EXPECT(q.arena_used <= q.arena_size);
    if (ok)
        expect_sound_steps();
    for (size_t i = 0; ok && i < q.step_count; i++)
        EXPECT(q.steps[i].kind != NULL); /* there is no second checkpoint */
    request_free(&q);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0)
        return 0;
    if (data[0] & BATCH) {
        take_batch(data + 1, size - 1);
        return 0;
    }
    bool port = data[0] & 1;
    int before = lowest_free_fd();
    in = (struct inbox){.fd = -1};
    for (size_t fds = port ? 0 : data[0] >> 1 & 3; in.fd_count < fds; in.fd_count++)
        in.fds[in.fd_count] = fcntl(2, F_DUPFD_CLOEXEC, 3);
    uint8_t *payload = exact_copy(data + 1, size - 1);
    errno = 0;
    bool ok = request_parse(&q, (struct etf_slice){payload, size - 1}, &in, port);
    free(payload);
    EXPECT(ok || errno != 0);
    EXPECT(q.arena_used <= q.arena_size);
    if (ok)
        expect_sound(port);
    request_close_fds(&q);
    request_free(&q);
    inbox_free(&in);
    EXPECT(lowest_free_fd() == before);
    return 0;
}

/* ---- seeds --------------------------------------------------------------------------------------------------- */

static void put_key(struct etf_writer *w, const char *name) { etf_put_atom(w, name); }

static void session_seed(struct etf_writer *w) {
    put_map(w, 8);
    put_key(w, "argv"), put_binaries(w, "/bin/sh", "-c", "exit 3", NULL);
    put_key(w, "env"), put_binaries(w, "A=1", "PATH=/bin", NULL);
    put_key(w, "namespaces"), put_list(w, 2), etf_put_atom(w, "net"), etf_put_atom(w, "uts"), put_nil(w);
    put_key(w, "fds"), put_list(w, 3), etf_put_integer(w, 0), etf_put_atom(w, "cwd"), etf_put_integer(w, 1000), put_nil(w);
    put_key(w, "steps"), put_list(w, 6);
    etf_put_tuple(w, 2), etf_put_atom(w, "umask"), etf_put_integer(w, 18);
    etf_put_atom(w, "checkpoint");
    etf_put_tuple(w, 2), etf_put_atom(w, "optional");
    etf_put_tuple(w, 4), etf_put_atom(w, "rlimit"), etf_put_integer(w, 7), etf_put_integer(w, 64), etf_put_integer(w, -1);
    etf_put_tuple(w, 2), etf_put_atom(w, "setgroups"), put_list(w, 2), etf_put_integer(w, 5), etf_put_integer(w, 70000), put_nil(w);
    etf_put_tuple(w, 2), etf_put_atom(w, "hostname"), etf_put_binary(w, "box");
    etf_put_tuple(w, 1), etf_put_atom(w, "no_new_privs");
    put_nil(w);
    put_key(w, "orphan"), etf_put_tuple(w, 2), etf_put_atom(w, "kill"), etf_put_integer(w, 5000);
    put_key(w, "auto_proceed"), etf_put_atom(w, "true");
    put_key(w, "new_session"), etf_put_atom(w, "false");
}

static void port_seed(struct etf_writer *w) {
    put_map(w, 7);
    put_key(w, "argv"), put_list(w, 2), put_string(w, "/bin/echo"), put_nil(w), put_nil(w);
    put_key(w, "env"), put_map(w, 1), put_string(w, "A"), etf_put_binary(w, "b");
    put_key(w, "namespaces"), put_list(w, 1), etf_put_binary(w, "user"), put_nil(w);
    put_key(w, "cwd"), put_string(w, "/usr");
    put_key(w, "stdio"), put_list(w, 2);
    etf_put_tuple(w, 2), etf_put_atom(w, "stdin"), etf_put_atom(w, "devnull");
    etf_put_tuple(w, 2), etf_put_atom(w, "stderr"), etf_put_atom(w, "stdout");
    put_nil(w);
    put_key(w, "no_new_privs"), etf_put_atom(w, "true");
    put_key(w, "unknown"), put_list(w, 1), etf_put_tuple(w, 1), put_map(w, 0), etf_put_integer(w, INT64_MAX);
}

static void short_port_seed(struct etf_writer *w) {
    put_map(w, 3);
    put_key(w, "argv"), put_binaries(w, "/bin/true", NULL);
    put_key(w, "env"), put_list(w, 2), etf_put_binary(w, "A=1");
    etf_put_tuple(w, 2), put_string(w, "B"), put_nil(w), put_nil(w);
    put_key(w, "stdio"), put_map(w, 2);
    etf_put_atom(w, "stdout"), etf_put_atom(w, "devnull"), etf_put_atom(w, "stderr"), etf_put_atom(w, "stdout");
}

static void batch_seed(struct etf_writer *w) {
    put_list(w, 4);
    etf_put_tuple(w, 6), etf_put_atom(w, "mount_new"), etf_put_binary(w, "tmpfs"), put_string(w, "none");
    etf_put_binary(w, "/tmp"), put_nil(w), etf_put_integer(w, 2);
    etf_put_tuple(w, 4), etf_put_atom(w, "make_file"), etf_put_binary(w, "/f"), put_bytes(w, "a\0b", 3), etf_put_integer(w, 420);
    etf_put_tuple(w, 4), etf_put_atom(w, "cap_set_thread"), etf_put_integer(w, 1), etf_put_integer(w, 3), etf_put_integer(w, INT64_MAX);
    etf_put_tuple(w, 2), etf_put_atom(w, "optional"), etf_put_tuple(w, 1), etf_put_atom(w, "pivot_root");
    put_nil(w);
}

static void entering_session_seed(struct etf_writer *w) {
    put_map(w, 3);
    put_key(w, "argv"), put_binaries(w, "/bin/true", NULL);
    put_key(w, "fds"), put_list(w, 3), etf_put_atom(w, "cwd"), etf_put_atom(w, "target"), etf_put_atom(w, "cgroup"), put_nil(w);
    put_key(w, "namespaces"), put_list(w, 2), etf_put_atom(w, "user"), etf_put_atom(w, "pid"), put_nil(w);
}

static void entering_port_seed(struct etf_writer *w) {
    put_map(w, 3);
    put_key(w, "argv"), put_binaries(w, "/bin/true", NULL);
    put_key(w, "target"), etf_put_integer(w, 1);
    put_key(w, "namespaces"), etf_put_atom(w, "all");
}

bool fuzz_seed(size_t index, struct term *term) {
    static const struct {
        uint8_t who;
        const char *name;
        void (*put)(struct etf_writer *w);
    } all[] = {
        {3 << 1, "spawn", session_seed},
        {1, "spawn", port_seed},
        {1, "spawn", short_port_seed},
        {3 << 1, "enter", entering_session_seed},
        {1, "enter", entering_port_seed},
        {BATCH, "steps", batch_seed},
    };
    if (index >= COUNT_OF(all))
        return false;
    struct etf_writer *w = term_begin(term);
    w->used = 0;
    put_raw(w, &all[index].who, 1);
    etf_put_version(w);
    etf_put_tuple(w, 2);
    etf_put_atom(w, all[index].name);
    all[index].put(w);
    return true;
}
