/* packet-4 frames, in and out, with the fds that travel beside them (unix(7), SCM_RIGHTS).
 *
 * Neither side ever blocks: reading stops at EAGAIN, what cannot be written waits in the outbox for POLLOUT. A session
 * is one socket; an Erlang port is two pipes, where no fd can travel. */
#ifndef LINX_FRAME_H
#define LINX_FRAME_H

#include "etf.h"

enum {
    FRAME_LIMIT = 16 << 20, /* a request with the largest argv and env that execve(2) takes is well below */
    FDS_LIMIT = 253,        /* SCM_MAX_FD */
    SENT_FDS_LIMIT = 3,     /* the most that we send with one message */
    OUTBOX_SIZE = 1024,     /* a session's events are a dozen, of some fifty bytes … */
    FRAME_ROOM = 128,       /* … and none is longer than this */
    INBOX_SIZE = 4096,      /* to begin with: most requests fit */
};

struct inbox {
    int fd;
    bool is_socket;
    bool eof;      /* the far side is gone, or what it sent is no frame */
    bool fds_lost; /* some did not fit under RLIMIT_NOFILE */
    uint8_t *data; /* owned, unless it is the buffer that the inbox was given to begin with */
    bool data_owned;
    size_t size, start, end, fd_count;
    int fds[FDS_LIMIT];
};

struct outbox {
    int fd;
    bool is_socket;
    bool broken; /* nobody reads any more: what is put here is dropped */
    bool congested; /* too many fds are under way in this machine (unix(7)): to be tried again after a while */
    size_t sent, used;
    int passenger; /* an fd to travel with the byte at `passenger_at`, or -1; owned */
    size_t passenger_at;
    uint8_t data[OUTBOX_SIZE];
};

/* Reads all that is there. */
void inbox_fill(struct inbox *in);

/* The next whole frame's payload, valid until the next inbox_fill; false where there is none yet. */
bool inbox_next(struct inbox *in, struct etf_slice *payload);

void inbox_free(struct inbox *in);

/* Wipes what has been taken. */
void inbox_forget(struct inbox *in);

/* A writer for one frame at the outbox' end; frame_end makes it part of the stream. An event that does not fit into the
 * box any more (the reader has been asleep for dozens of them) breaks the stream rather than leaving a hole in it. */
struct etf_writer frame_begin(struct outbox *out);
void frame_end(struct outbox *out, const struct etf_writer *w, int passenger);

/* Drops what the far side has not taken yet, which must be whole frames. Their fd, if there is one, is the caller's then. */
int outbox_take_back(struct outbox *out);

/* Writes what the far side takes now. */
void outbox_flush(struct outbox *out);

static inline bool outbox_empty(const struct outbox *out) { return out->broken || out->sent == out->used; }

/* sendmsg(2) with at most SENT_FDS_LIMIT fds. It returns a negated errno, and leaves errno alone (raw.h). */
long send_with_fds(int socket, const void *data, size_t length, const int *fds, size_t count, int flags);

/* sendmsg/recvmsg with fds, shared with the zygote. Both set close-on-exec and never block or raise SIGPIPE. The first is
 * send_with_fds, with one fd or with none (-1). */
long send_with_fd(int socket, const void *data, size_t length, int fd);
ssize_t receive_with_fds(int socket, void *data, size_t size, int *fds, size_t fds_size, size_t *fd_count,
                         bool *fds_lost);

/* Waits for a message, which may come with one fd (else `*fd` stays as it is). What recvmsg(2) says, or a negated errno: it is
 * for a child that shares its parent's memory (raw.h). */
long receive_waiting(int socket, void *data, size_t size, int *fd);

#endif
