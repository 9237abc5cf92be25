#include "frame.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "raw.h"

long send_with_fds(int socket, const void *data, size_t length, const int *fds, size_t count, int flags) {
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(SENT_FDS_LIMIT * sizeof(int))];
    } control;
    struct iovec iov = {(void *)(uintptr_t)data, length};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    if (count > 0) {
        memset(&control, 0, sizeof control);
        msg.msg_control = &control;
        msg.msg_controllen = sizeof control; /* so that an analyser sees that there is a first one */
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(count * sizeof *fds);
        memcpy(CMSG_DATA(c), fds, count * sizeof *fds);
        msg.msg_controllen = CMSG_SPACE(count * sizeof *fds);
    }
    long sent;
    do
        sent = RAW3(sendmsg, socket, &msg, flags);
    while (sent == -EINTR);
    return sent;
}

long send_with_fd(int socket, const void *data, size_t length, int fd) {
    return send_with_fds(socket, data, length, &fd, fd >= 0, MSG_DONTWAIT | MSG_NOSIGNAL);
}

ssize_t receive_with_fds(int socket, void *data, size_t size, int *fds, size_t fds_size, size_t *fd_count,
                         bool *fds_lost) {
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(FDS_LIMIT * sizeof(int))];
    } control;
    struct iovec iov = {data, size};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t got;
    do
        got = recvmsg(socket, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return got;
    *fds_lost |= (msg.msg_flags & MSG_CTRUNC) != 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c != NULL; c = CMSG_NXTHDR(&msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            if (*fd_count < fds_size)
                fds[(*fd_count)++] = fd;
            else
                close_fd(&fd);
        }
    }
    return got;
}

long receive_waiting(int socket, void *data, size_t size, int *fd) {
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } with;
    struct iovec iov = {data, size};
    struct msghdr msg;
    long got;
    do {
        msg = (struct msghdr){.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &with, .msg_controllen = sizeof with};
        got = RAW3(recvmsg, socket, &msg, MSG_CMSG_CLOEXEC);
    } while (got == -EINTR);
    const struct cmsghdr *c = got >= 0 ? CMSG_FIRSTHDR(&msg) : NULL;
    if (c != NULL)
        memcpy(fd, CMSG_DATA(c), sizeof *fd);
    return got;
}

/* ---- in ------------------------------------------------------------------------------------------------------ */

static uint32_t big_endian(const uint8_t *b) {
    return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
}

/* Room for at least the rest of the frame at `start`, so that a large request is read in few calls. */
static bool make_room(struct inbox *in) {
    size_t pending = in->end - in->start;
    if (in->start > 0) {
        memmove(in->data, in->data + in->start, pending);
        in->start = 0;
        in->end = pending;
    }
    size_t want = INBOX_SIZE;
    if (pending >= 4 && big_endian(in->data) + (size_t)4 > want)
        want = big_endian(in->data) + (size_t)4;
    if (want <= in->size)
        return true;
    uint8_t *larger = malloc(want);
    if (larger == NULL)
        return false;
    if (pending > 0)
        memcpy(larger, in->data, pending);
    if (in->data != NULL) /* what is left behind here nobody would wipe afterwards */
        explicit_bzero(in->data, in->size);
    if (in->data_owned)
        free(in->data);
    in->data = larger;
    in->data_owned = true;
    in->size = want;
    return true;
}

void inbox_fill(struct inbox *in) {
    while (!in->eof) {
        if (in->end - in->start >= 4 && big_endian(in->data + in->start) > FRAME_LIMIT) {
            in->eof = true;
            return;
        }
        if (!make_room(in)) {
            in->eof = true;
            return;
        }
        size_t room = in->size - in->end, fds_before = in->fd_count;
        if (room == 0) /* a whole frame waits to be taken */
            return;
        ssize_t got = in->is_socket ? receive_with_fds(in->fd, in->data + in->end, room, in->fds, FDS_LIMIT, &in->fd_count,
                                                    &in->fds_lost)
                                    : read(in->fd, in->data + in->end, room);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EAGAIN)
            return;
        if (got <= 0) {
            in->eof = true;
            return;
        }
        in->end += (size_t)got;
        if ((size_t)got < room && in->is_socket && in->fd_count == fds_before)
            return; /* drained; a read that brought fds ends at their boundary, and more may wait behind it */
    }
}

bool inbox_next(struct inbox *in, struct etf_slice *payload) {
    size_t pending = in->end - in->start;
    if (pending < 4)
        return false;
    size_t length = big_endian(in->data + in->start);
    in->eof |= length > FRAME_LIMIT; /* now: nothing more may ever come */
    if (length > FRAME_LIMIT || pending - 4 < length)
        return false;
    *payload = (struct etf_slice){in->data + in->start + 4, length};
    in->start += 4 + length;
    return true;
}

void inbox_free(struct inbox *in) {
    if (in->data_owned)
        free(in->data);
    in->data = NULL;
    in->data_owned = false;
    in->size = in->start = in->end = 0;
    for (size_t i = 0; i < in->fd_count; i++)
        close_fd(&in->fds[i]);
    in->fd_count = 0;
}

void inbox_forget(struct inbox *in) {
    explicit_bzero(in->data, in->start);
    explicit_bzero(in->data + in->end, in->size - in->end);
}

/* ---- out ----------------------------------------------------------------------------------------------------- */

struct etf_writer frame_begin(struct outbox *out) {
    if (sizeof out->data - out->used < FRAME_ROOM) /* make room, held back or not */
        outbox_flush(out);
    if (out->sent == out->used)
        out->sent = out->used = 0;
    struct etf_writer w = {out->data, sizeof out->data, out->used + 4, false};
    if (w.used > w.size)
        w.overflow = true;
    etf_put_version(&w);
    return w;
}

void frame_end(struct outbox *out, const struct etf_writer *w, int passenger) {
    OWN_FD int fd = passenger;
    if (out->broken || w->overflow) {
        out->broken = true;
        return;
    }
    size_t length = w->used - out->used - 4;
    uint8_t *head = out->data + out->used;
    head[0] = (uint8_t)(length >> 24);
    head[1] = (uint8_t)(length >> 16);
    head[2] = (uint8_t)(length >> 8);
    head[3] = (uint8_t)length;
    if (fd >= 0) {
        out->passenger = steal_fd(&fd);
        out->passenger_at = out->used;
    }
    out->used = w->used;
}

int outbox_take_back(struct outbox *out) {
    out->sent = out->used = 0;
    return steal_fd(&out->passenger);
}

void outbox_flush(struct outbox *out) {
    while (!outbox_empty(out)) {
        bool boards = out->passenger >= 0 && out->sent == out->passenger_at;
        size_t until = out->passenger >= 0 && !boards ? out->passenger_at : out->used;
        const uint8_t *from = out->data + out->sent;
        long sent = out->is_socket ? send_with_fd(out->fd, from, until - out->sent, boards ? out->passenger : -1)
                                   : RAW3(write, out->fd, from, until - out->sent);
        if (sent == -EINTR)
            continue;
        out->congested = sent == -ETOOMANYREFS || sent == -ENOBUFS || sent == -ENOMEM;
        if (out->congested || sent == -EAGAIN)
            return;
        if (sent < 0) {
            out->broken = true;
            close_fd(&out->passenger);
            return;
        }
        if (boards)
            close_fd(&out->passenger);
        out->sent += (size_t)sent;
    }
}
