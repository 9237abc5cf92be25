#include "session.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "monitor.h"

static void command_proceed(struct monitor *m, int64_t unused) {
    (void)unused;
    if (m->phase == PARKED && !m->aborting)
        grant(m);
    else if (m->phase < PARKED && m->wish == WISH_NOTHING)
        m->wish = WISH_PROCEED;
}

static void command_abort(struct monitor *m, int64_t unused) {
    (void)unused;
    if (m->phase == PARKED)
        abort_now(m);
    else if (m->phase < PARKED && m->wish == WISH_NOTHING)
        m->wish = WISH_ABORT;
}

static void command_signal(struct monitor *m, int64_t number) {
    if (number < 1 || number > 64)
        return;
    if (m->phase == RUNNING) {
        signal_leader(m, (int)number);
        return;
    }
    if (m->phase == ENDED)
        return;
    if (m->kept_count == m->kept_size) {
        size_t size = m->kept_size * 2 + 32;
        uint8_t *larger = realloc(m->kept_signals, size);
        if (larger == NULL)
            return;
        m->kept_signals = larger;
        m->kept_size = size;
    }
    m->kept_signals[m->kept_count++] = (uint8_t)number;
}

static void command_kill(struct monitor *m, int64_t unused) {
    (void)unused;
    if (m->phase < EXECUTING)
        abort_now(m);
    else
        kill_all(m);
}

static void command_shutdown(struct monitor *m, int64_t grace_ms) {
    end_gracefully(m, grace_ms < UINT32_MAX ? grace_ms < 0 ? 0 : grace_ms * 1000 : UINT32_MAX * INT64_C(1000));
}

static void command_release(struct monitor *m, int64_t unused) {
    (void)unused;
    m->released = true;
}

static const struct command {
    const char *name;
    bool argument;
    bool port; /* also a port's */
    void (*run)(struct monitor *m, int64_t argument);
} commands[] = {
    {"proceed", false, true, command_proceed}, {"abort", false, true, command_abort},
    {"signal", true, true, command_signal},    {"kill", false, false, command_kill},
    {"shutdown", true, false, command_shutdown}, {"release", false, false, command_release},
};

const char *const monitor_commands[] = {"proceed", "abort", "signal", "kill", "shutdown", "steps", "release", NULL};

/* A batch for the parked child, which parses it itself: through a file, since it may be longer than a message can be. */
static void forward_steps(struct monitor *m, struct etf_slice payload) {
    char what = CHILD_STEPS;
    OWN_FD int file = memfd_create("linx-steps", MFD_CLOEXEC);
    bool written = file >= 0 && write(file, payload.data, payload.length) == (ssize_t)payload.length;
    long sent = written ? send_with_fd(m->control, &what, 1, file) : -errno;
    if (sent != 1) {
        if (written && (sent == -EPIPE || sent == -ECONNRESET))
            return; /* it is dead, and that is what we shall hear of next */
        struct child_message news = {CHILD_REMAINS, (int32_t)-sent, STAGE_request, -1};
        emit_refusal(m, "remains", &news);
    }
}

static bool is_steps(struct etf_slice payload) {
    struct etf_reader r = etf_open(payload.data, payload.length);
    return etf_peek(&r) == ETF_TUPLE && etf_tuple(&r) == 2 && slice_is(etf_atom(&r), "steps");
}

/* An atom, or `{atom, Integer}`. */
static const struct command *command_of(bool port, struct etf_slice payload, int64_t *value) {
    struct etf_reader r = etf_open(payload.data, payload.length);
    bool argument = etf_peek(&r) == ETF_TUPLE;
    if (argument && etf_tuple(&r) != 2)
        return NULL;
    struct etf_slice name = etf_atom(&r);
    *value = argument ? etf_integer(&r) : 0;
    for (size_t i = 0; i < COUNT_OF(commands) && etf_done(&r); i++) {
        const struct command *c = &commands[i];
        if (slice_is(name, c->name) && c->argument == argument && (c->port || !port))
            return c;
    }
    return NULL;
}

static bool obey(struct monitor *m, struct etf_slice payload) {
    int64_t value;
    if (m->quiet) /* somebody listens, after all */
        m->hold_until = 0;
    if (!m->port && is_steps(payload)) {
        if (m->phase == PARKED && !m->aborting)
            forward_steps(m, payload);
        return true;
    }
    const struct command *c = command_of(m->port, payload, &value);
    if (c != NULL)
        c->run(m, value);
    return c != NULL;
}

/* Said to a session that had already ended. */
static bool is_late(const struct monitor *m, struct etf_slice payload) {
    int64_t unused;
    return m->served && (is_steps(payload) || command_of(false, payload, &unused) != NULL);
}

void call_yourself(struct monitor *m, bool spare) {
    if (m->spare != spare)
        (void)prctl(PR_SET_NAME, spare ? "linx-spare" : "linx-monitor", 0, 0, 0);
    m->spare = spare;
}

/* Nonsense ends the session: whoever speaks it cannot be trusted to end it himself. */
void hear_python(struct monitor *m) {
    struct etf_slice payload;
    inbox_fill(&m->in);
    while (m->phase != ENDED && inbox_next(&m->in, &payload)) {
        if (m->phase == AWAITING && is_late(m, payload))
            continue;
        if (m->phase == AWAITING) {
            call_yourself(m, false);
            take_request(m, payload);
        } else if (!obey(m, payload)) {
            m->odd = true, end_gracefully(m, 0);
        }
    }
    if (m->phase == AWAITING && m->in.end > m->in.start) /* the beginning of a request */
        call_yourself(m, false);
    while (m->phase == ENDED && inbox_next(&m->in, &payload))
        m->odd |= !obey(m, payload);
    if (m->in.eof && !m->gone)
        python_is_gone(m);
    if (m->phase != REQUESTED)
        return;
    if (m->aborting) { /* killed before there was anything to kill */
        emit_status(m, "aborted", &m->child_pid, -1);
        m->phase = ENDED;
        m->childless = true;
    } else {
        start_child(m);
    }
}
