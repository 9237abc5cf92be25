/* frame.c over real socket pairs and pipes: frames cut anywhere, fds beside them, readers that are slow or gone. */
#include "check.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>

#include "../frame.h"

struct wire {
    int near, far; /* `near` is the inbox' or outbox' end */
    struct inbox in;
    struct outbox out;
};

static void nonblocking(int fd) { CHECK(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) == 0); }

static struct wire *wire_open(bool is_socket, bool inward) {
    struct wire *w = calloc(1, sizeof *w);
    int pair[2];
    if (w == NULL || (is_socket ? socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) : pipe2(pair, O_CLOEXEC)) < 0)
        abort();
    w->near = pair[inward ? 0 : 1];
    w->far = pair[inward ? 1 : 0];
    nonblocking(w->near);
    nonblocking(w->far);
    w->in = (struct inbox){.fd = w->near, .is_socket = is_socket};
    w->out = (struct outbox){.fd = w->near, .is_socket = is_socket, .passenger = -1};
    return w;
}

static void wire_close(struct wire *w) {
    inbox_free(&w->in);
    close_fd(&w->out.passenger);
    close_fd(&w->near);
    close_fd(&w->far);
    free(w);
}

/* Blocks on nothing: where the socket is full, the inbox makes room. */
static void feed(struct wire *w, const void *data, size_t length) {
    const uint8_t *at = data;
    while (length > 0) {
        ssize_t sent = write(w->far, at, length);
        if (sent < 0 && errno != EAGAIN)
            abort();
        if (sent < 0) {
            inbox_fill(&w->in);
            continue;
        }
        at += sent;
        length -= (size_t)sent;
    }
}

/* A frame of `length` bytes, each of value `fill`; freed by the caller. */
static uint8_t *frame_of(size_t length, uint8_t fill) {
    uint8_t *frame = malloc(length + 4);
    if (frame == NULL)
        abort();
    for (int i = 0; i < 4; i++)
        frame[i] = (uint8_t)(length >> (24 - 8 * i));
    memset(frame + 4, fill, length);
    return frame;
}

static void feed_frame(struct wire *w, size_t length, uint8_t fill) {
    uint8_t *frame = frame_of(length, fill);
    feed(w, frame, length + 4);
    free(frame);
}

/* Takes the next frame and checks it. */
static void expect_frame(struct wire *w, size_t length, uint8_t fill) {
    struct etf_slice got;
    CHECK(inbox_next(&w->in, &got));
    CHECK_INT(got.length, length);
    size_t same = 0;
    while (same < got.length && got.data[same] == fill)
        same++;
    CHECK_INT(same, length);
}

static bool nothing_more(struct wire *w) {
    struct etf_slice got;
    inbox_fill(&w->in);
    return !inbox_next(&w->in, &got);
}

/* ---- in ------------------------------------------------------------------------------------------------------ */

static void frames_come_in(bool is_socket) {
    static const size_t lengths[] = {0, 1, 2, 100, 16379, 16380, 16381, 16384, 70000, 1 << 20};
    for (size_t i = 0; i < COUNT_OF(lengths); i++) {
        struct wire *w = wire_open(is_socket, true);
        CHECK(nothing_more(w));
        feed_frame(w, lengths[i], 'a');
        feed_frame(w, 3, 'b');
        inbox_fill(&w->in);
        expect_frame(w, lengths[i], 'a');
        inbox_fill(&w->in); /* a whole frame in the way had left no room */
        expect_frame(w, 3, 'b');
        CHECK(nothing_more(w) && !w->in.eof);
        wire_close(w);
    }
}

static void frames_from_a_socket(void) { frames_come_in(true); }

static void frames_from_a_pipe(void) { frames_come_in(false); }

static void byte_by_byte(void) {
    struct wire *w = wire_open(true, true);
    uint8_t *frame = frame_of(9, 'x');
    for (size_t i = 0; i < 13; i++) {
        CHECK(nothing_more(w));
        feed(w, frame + i, 1);
    }
    inbox_fill(&w->in);
    expect_frame(w, 9, 'x');
    free(frame);
    wire_close(w);
}

static void many_in_one_write(void) {
    struct wire *w = wire_open(false, true);
    for (uint8_t i = 0; i < 200; i++)
        feed_frame(w, i, i);
    for (uint8_t i = 0; i < 200; i++) {
        inbox_fill(&w->in);
        expect_frame(w, i, i);
    }
    CHECK(nothing_more(w));
    wire_close(w);
}

static void the_largest_frame(void) {
    struct wire *w = wire_open(true, true);
    feed_frame(w, FRAME_LIMIT, 'l');
    inbox_fill(&w->in);
    CHECK(!w->in.eof);
    expect_frame(w, FRAME_LIMIT, 'l');
    wire_close(w);
}

/* Refused as soon as its four bytes are there: nothing else may ever come, and then nobody would look again. */
static void a_frame_that_is_too_long(bool is_socket, bool behind_another) {
    static const uint8_t head[] = {0x01, 0x00, 0x00, 0x01};
    struct wire *w = wire_open(is_socket, true);
    if (behind_another)
        feed_frame(w, 5, 'o');
    feed(w, head, sizeof head);
    inbox_fill(&w->in);
    if (behind_another)
        expect_frame(w, 5, 'o');
    struct etf_slice got;
    CHECK(!inbox_next(&w->in, &got));
    CHECK(w->in.eof);
    inbox_fill(&w->in);
    CHECK(w->in.eof);
    CHECK(!inbox_next(&w->in, &got));
    wire_close(w);
}

static void too_long_on_a_socket(void) { a_frame_that_is_too_long(true, false); }

static void too_long_on_a_pipe(void) { a_frame_that_is_too_long(false, false); }

static void too_long_behind_another_on_a_socket(void) { a_frame_that_is_too_long(true, true); }

static void too_long_behind_another_on_a_pipe(void) { a_frame_that_is_too_long(false, true); }

static void the_end_of_the_stream(void) {
    struct wire *w = wire_open(true, true);
    feed_frame(w, 7, 'e');
    feed(w, "\0\0\0\x09half", 8);
    close_fd(&w->far);
    inbox_fill(&w->in);
    inbox_fill(&w->in);
    CHECK(w->in.eof);
    expect_frame(w, 7, 'e'); /* what had come is not lost */
    CHECK(nothing_more(w));
    wire_close(w);
}

/* ---- fds ----------------------------------------------------------------------------------------------------- */

static void send_fds(int socket, const void *data, size_t length, size_t count) {
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(FDS_LIMIT * sizeof(int))];
    } control;
    memset(&control, 0, sizeof control);
    struct iovec iov = {(void *)(uintptr_t)data, length};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = CMSG_SPACE(count * sizeof(int))};
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(count * sizeof(int));
    for (size_t i = 0; i < count; i++)
        memcpy(CMSG_DATA(c) + i * sizeof(int), &(int){1}, sizeof(int));
    CHECK_INT(sendmsg(socket, &msg, 0), length);
}

static void fds_arrive(void) {
    struct wire *w = wire_open(true, true);
    send_fds(w->far, "\0\0\0\x02hi", 6, 3);
    inbox_fill(&w->in);
    CHECK_INT(w->in.fd_count, 3);
    for (size_t i = 0; i < w->in.fd_count; i++)
        CHECK(fcntl(w->in.fds[i], F_GETFD) == FD_CLOEXEC);
    send_fds(w->far, "\0\0\0\x02ho", 6, 2); /* behind what has been read already */
    inbox_fill(&w->in);
    CHECK_INT(w->in.fd_count, 5);
    wire_close(w); /* and with it the fds: RUN looks */
}

static void too_many_fds(void) {
    struct wire *w = wire_open(true, true);
    send_fds(w->far, "\0\0\0\x01" "a", 5, FDS_LIMIT);
    send_fds(w->far, "\0\0\0\x01" "b", 5, 20);
    for (int i = 0; i < 4; i++)
        inbox_fill(&w->in);
    CHECK_INT(w->in.fd_count, FDS_LIMIT);
    expect_frame(w, 1, 'a');
    expect_frame(w, 1, 'b');
    wire_close(w);
}

static void fds_for_somebody_with_less_room(void) {
    struct wire *w = wire_open(true, true);
    send_fds(w->far, "abc", 3, 10);
    char text[8];
    int fds[4];
    size_t count = 0;
    CHECK_INT(receive_with_fds(w->near, text, sizeof text, fds, COUNT_OF(fds), &count, &(bool){false}), 3);
    CHECK_INT(count, 4);
    for (size_t i = 0; i < count; i++)
        close_fd(&fds[i]);
    CHECK_INT(receive_with_fds(w->near, text, sizeof text, fds, COUNT_OF(fds), &count, &(bool){false}), -1);
    CHECK_INT(errno, EAGAIN);
    wire_close(w);
}

/* ---- out ----------------------------------------------------------------------------------------------------- */

static void say(struct wire *w, const char *name, int64_t number, int passenger) {
    struct etf_writer e = frame_begin(&w->out);
    etf_put_tuple(&e, 2);
    etf_put_atom(&e, name);
    etf_put_integer(&e, number);
    frame_end(&w->out, &e, passenger);
}

/* Reads a frame at the far end and compares. Returns how many fds came with its bytes. */
static size_t expect_said(struct wire *w, const char *name, int64_t number) {
    uint8_t head[4], data[256];
    int fds[4];
    size_t fd_count = 0;
    CHECK_INT(receive_with_fds(w->far, head, 4, fds, COUNT_OF(fds), &fd_count, &(bool){false}), 4);
    size_t length = (size_t)head[2] << 8 | head[3];
    CHECK(head[0] == 0 && head[1] == 0 && length <= sizeof data);
    CHECK_INT(receive_with_fds(w->far, data, length, fds, COUNT_OF(fds), &fd_count, &(bool){false}), length);
    struct etf_reader r = etf_open(data, length);
    CHECK_INT(etf_tuple(&r), 2);
    CHECK(slice_is(etf_atom(&r), name));
    CHECK_INT(etf_integer(&r), number);
    CHECK(etf_done(&r));
    for (size_t i = 0; i < fd_count; i++)
        close_fd(&fds[i]);
    return fd_count;
}

static void events_go_out(void) {
    struct wire *w = wire_open(true, false);
    CHECK(outbox_empty(&w->out));
    say(w, "spawned", 4711, dup(1));
    say(w, "ready", 1, -1);
    CHECK(!outbox_empty(&w->out));
    outbox_flush(&w->out);
    CHECK(outbox_empty(&w->out) && w->out.passenger == -1);
    CHECK_INT(expect_said(w, "spawned", 4711), 1);
    CHECK_INT(expect_said(w, "ready", 1), 0);
    wire_close(w);
}

/* An fd that boards behind other events arrives with its own event, and not with theirs. */
static void the_passenger_keeps_its_seat(void) {
    struct wire *w = wire_open(true, false);
    say(w, "first", 1, -1);
    say(w, "second", -70000, -1);
    say(w, "third", 3, dup(1));
    say(w, "fourth", 4, -1);
    outbox_flush(&w->out);
    CHECK_INT(expect_said(w, "first", 1), 0);
    CHECK_INT(expect_said(w, "second", -70000), 0);
    CHECK_INT(expect_said(w, "third", 3), 1);
    CHECK_INT(expect_said(w, "fourth", 4), 0);
    wire_close(w);
}

static size_t fill_up(int fd) {
    static const uint8_t zeros[4096];
    size_t total = 0;
    for (size_t chunk = sizeof zeros; chunk > 0; chunk /= 2)
        for (ssize_t sent; (sent = write(fd, zeros, chunk)) > 0;)
            total += (size_t)sent;
    return total;
}

static void drain(int fd, size_t count) {
    uint8_t bytes[4096];
    while (count > 0) {
        ssize_t got = read(fd, bytes, count < sizeof bytes ? count : sizeof bytes);
        CHECK(got > 0);
        if (got <= 0)
            return;
        count -= (size_t)got;
    }
}

static void a_reader_that_sleeps(bool is_socket) {
    struct wire *w = wire_open(is_socket, false);
    size_t junk = fill_up(w->near);
    for (int i = 0; i < 50; i++)
        say(w, "event", i, -1);
    outbox_flush(&w->out);
    CHECK(!outbox_empty(&w->out) && !w->out.broken);
    drain(w->far, junk);
    outbox_flush(&w->out);
    CHECK(outbox_empty(&w->out) && !w->out.broken);
    if (is_socket)
        for (int i = 0; i < 50; i++)
            CHECK_INT(expect_said(w, "event", i), 0);
    wire_close(w);
}

static void a_sleeper_at_a_socket(void) { a_reader_that_sleeps(true); }

static void a_sleeper_at_a_pipe(void) { a_reader_that_sleeps(false); }

/* Space comes back a little at a time: what is before the fd goes first, the fd's own frame waits for more. None of the
 * bytes is lost or doubled. (Neither a pipe nor a socket cuts anything as small as the outbox: see PIPE_BUF.) */
static void partial_writes(void) {
    enum { COUNT = 20, BOARDING = 10 };
    struct wire *w = wire_open(true, false);
    CHECK(setsockopt(w->near, SOL_SOCKET, SO_SNDBUF, &(int){1}, sizeof(int)) == 0);
    size_t junk = 0;
    while (write(w->near, "z", 1) == 1)
        junk++;
    for (int i = 0; i < COUNT; i++)
        say(w, "event", i, i == BOARDING ? dup(1) : -1);
    outbox_flush(&w->out);
    CHECK(w->out.sent == 0 && !outbox_empty(&w->out));
    bool halfway = false;
    for (; junk > 0; junk--) {
        drain(w->far, 1);
        outbox_flush(&w->out);
        halfway |= w->out.sent > 0 && !outbox_empty(&w->out);
    }
    CHECK(halfway);
    for (int i = 0; i < COUNT; i++) {
        CHECK_INT(expect_said(w, "event", i), i == BOARDING);
        outbox_flush(&w->out);
    }
    CHECK(outbox_empty(&w->out) && !w->out.broken);
    wire_close(w);
}

/* Once it is full the stream is broken: nothing is half there, later events and their fds are dropped. */
static void the_outbox_overflows(void) {
    struct wire *w = wire_open(true, false);
    CHECK(setsockopt(w->near, SOL_SOCKET, SO_SNDBUF, &(int){1}, sizeof(int)) == 0);
    while (write(w->near, "z", 1) == 1) /* or the box would be emptied into the socket in time */
        continue;
    int said = 0;
    for (; said < OUTBOX_SIZE && !w->out.broken; said++)
        say(w, "event", said, -1);
    CHECK(w->out.broken && said > OUTBOX_SIZE / 32);
    CHECK(w->out.used <= sizeof w->out.data);
    CHECK(outbox_empty(&w->out));
    say(w, "late", 1, dup(1));
    CHECK(w->out.passenger == -1);
    outbox_flush(&w->out);
    uint8_t byte;
    while (read(w->far, &byte, 1) == 1)
        CHECK(byte == 'z');
    CHECK(errno == EAGAIN);
    wire_close(w);
}

/* Every remainder of the box, to the byte: the last frame fits or breaks the stream, and writes nothing behind its end. */
static void the_last_frame(void) {
    char name[128];
    for (size_t length = 1; length < sizeof name; length++) {
        struct wire *w = wire_open(true, false);
        memset(name, 'n', length);
        name[length] = '\0';
        size_t used = 0;
        while (!w->out.broken) {
            used = w->out.used;
            say(w, name, 1, -1);
        }
        CHECK(sizeof w->out.data - used < 4 + 1 + 2 + 2 + length + 2);
        wire_close(w);
    }
}

static void a_reader_that_is_gone(bool is_socket) {
    struct wire *w = wire_open(is_socket, false);
    close_fd(&w->far);
    say(w, "spawned", 1, is_socket ? dup(1) : -1);
    outbox_flush(&w->out); /* no SIGPIPE: a socket is told so, and of a pipe's the agent has it blocked */
    CHECK(w->out.broken && outbox_empty(&w->out) && w->out.passenger == -1);
    wire_close(w);
}

static void gone_from_a_socket(void) { a_reader_that_is_gone(true); }

static void gone_from_a_pipe(void) {
    sigset_t sigpipe;
    sigemptyset(&sigpipe);
    sigaddset(&sigpipe, SIGPIPE);
    CHECK(sigprocmask(SIG_BLOCK, &sigpipe, NULL) == 0);
    a_reader_that_is_gone(false);
    CHECK(sigtimedwait(&sigpipe, NULL, &(struct timespec){0, 0}) == SIGPIPE);
    CHECK(sigprocmask(SIG_UNBLOCK, &sigpipe, NULL) == 0);
}

int main(void) {
    RUN(frames_from_a_socket);
    RUN(frames_from_a_pipe);
    RUN(byte_by_byte);
    RUN(many_in_one_write);
    RUN(the_largest_frame);
    RUN(too_long_on_a_socket);
    RUN(too_long_on_a_pipe);
    RUN(too_long_behind_another_on_a_socket);
    RUN(too_long_behind_another_on_a_pipe);
    RUN(the_end_of_the_stream);
    RUN(fds_arrive);
    RUN(too_many_fds);
    RUN(fds_for_somebody_with_less_room);
    RUN(events_go_out);
    RUN(the_passenger_keeps_its_seat);
    RUN(a_sleeper_at_a_socket);
    RUN(a_sleeper_at_a_pipe);
    RUN(partial_writes);
    RUN(the_outbox_overflows);
    RUN(the_last_frame);
    RUN(gone_from_a_socket);
    RUN(gone_from_a_pipe);
    return verdict();
}
