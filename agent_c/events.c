#include "session.h"

#include <sys/wait.h>

#include "monitor.h"

const char *const monitor_events[] = {"spawned", "ready", "opened", "stepped",  "running", "exited", "signaled", "aborted",
                                      "idle",    "error",   "remains", "degraded", "usage",   "began",  "over",     "ran",
                                      "lost",    NULL};

void emit_status(struct monitor *m, const char *name, const int64_t *argument, int passenger) {
    struct etf_writer w = frame_begin(&m->out);
    etf_put_tuple(&w, argument != NULL ? 3 : 2);
    etf_put_atom(&w, "status");
    etf_put_atom(&w, name);
    if (argument != NULL)
        etf_put_integer(&w, *argument);
    frame_end(&m->out, &w, passenger);
}

/* A port's error is a triple; a session's also says which step it was. */
void emit_refusal(struct monitor *m, const char *name, const struct child_message *news) {
    struct etf_writer w = frame_begin(&m->out);
    etf_put_tuple(&w, m->port ? 3 : 4);
    etf_put_atom(&w, name);
    etf_put_integer(&w, news->error);
    etf_put_atom(&w, stage_names[news->stage]);
    if (!m->port)
        etf_put_integer(&w, news->index);
    frame_end(&m->out, &w, -1);
}

static int64_t microseconds(struct timeval t) { return (int64_t)t.tv_sec * 1000000 + t.tv_usec; }

static void put_amounts(struct etf_writer *w, const struct monitor *m, const struct rusage *usage, bool ran) {
    etf_put_integer(w, microseconds(usage->ru_utime));
    etf_put_integer(w, microseconds(usage->ru_stime));
    etf_put_integer(w, ran ? now_us() - m->granted_at : 0);
    etf_put_integer(w, (int64_t)usage->ru_maxrss * 1024);
}

void emit_usage(struct monitor *m, int status, const struct rusage *usage, bool ran) {
    struct etf_writer w = frame_begin(&m->out);
    etf_put_tuple(&w, 6);
    etf_put_atom(&w, "usage");
    put_amounts(&w, m, usage, ran);
    etf_put_atom(&w, WIFSIGNALED(status) && WCOREDUMP(status) ? "true" : "false");
    frame_end(&m->out, &w, -1);
}

void emit_began(struct monitor *m, pid_t pid) {
    OWN_FD int pidfd = outbox_take_back(&m->out);
    struct etf_writer w = frame_begin(&m->out);
    etf_put_tuple(&w, 3);
    etf_put_atom(&w, "began");
    etf_put_integer(&w, pid);
    etf_put_integer(&w, m->child_pid);
    frame_end(&m->out, &w, steal_fd(&pidfd));
}

void emit_over(struct monitor *m, int code, const struct rusage *usage) {
    struct etf_writer w = frame_begin(&m->out);
    etf_put_tuple(&w, 6);
    etf_put_atom(&w, "over");
    etf_put_integer(&w, code);
    put_amounts(&w, m, usage, true);
    frame_end(&m->out, &w, -1);
}

void emit_ran(struct monitor *m, pid_t pid, int code, const struct rusage *usage) {
    OWN_FD int pidfd = outbox_take_back(&m->out); /* of a process that is gone */
    (void)pidfd;
    struct etf_writer w = frame_begin(&m->out);
    etf_put_tuple(&w, 8);
    etf_put_atom(&w, "ran");
    etf_put_integer(&w, pid);
    etf_put_integer(&w, m->child_pid);
    etf_put_integer(&w, code);
    put_amounts(&w, m, usage, true);
    frame_end(&m->out, &w, -1);
}

void emit_error(struct monitor *m, int error, enum stage stage, int index) {
    struct child_message news = {CHILD_REFUSED, error, (int32_t)stage, index};
    emit_refusal(m, "error", &news);
}

void fail_at(struct monitor *m, int error, enum stage stage, int index) {
    emit_error(m, error, stage, index);
    m->phase = ENDED;
    m->childless = true;
}

void fail(struct monitor *m, int error, enum stage stage) { fail_at(m, error, stage, -1); }
