/* What the units and the fuzz targets share: terms built piece by piece, and a look at this process' fds. */
#ifndef LINX_TESTS_COMMON_H
#define LINX_TESTS_COMMON_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../etf.h"

/* Rises when a test leaks an fd. */
static inline int lowest_free_fd(void) {
    int fd = dup(1);
    if (fd >= 0)
        (void)close(fd);
    return fd;
}

enum { TERM_SIZE = 1 << 17 };

/* A term under construction: the writer's calls for what it has, `put_raw` for everything else. */
struct term {
    struct etf_writer w;
    uint8_t data[TERM_SIZE];
};

static inline struct etf_writer *term_begin(struct term *t) {
    t->w = (struct etf_writer){t->data, sizeof t->data, 0, false};
    etf_put_version(&t->w);
    return &t->w;
}

static inline void put_raw(struct etf_writer *w, const void *data, size_t length) {
    if (w->size - w->used < length)
        abort();
    if (length > 0)
        memcpy(w->data + w->used, data, length);
    w->used += length;
}

static inline void put_tag32(struct etf_writer *w, uint8_t tag, uint32_t value) {
    uint8_t bytes[] = {tag, (uint8_t)(value >> 24), (uint8_t)(value >> 16), (uint8_t)(value >> 8), (uint8_t)value};
    put_raw(w, bytes, sizeof bytes);
}

static inline void put_list(struct etf_writer *w, uint32_t count) { put_tag32(w, 108, count); }

static inline void put_map(struct etf_writer *w, uint32_t pairs) { put_tag32(w, 116, pairs); }

static inline void put_nil(struct etf_writer *w) { put_raw(w, "\x6a", 1); }

static inline void put_bytes(struct etf_writer *w, const void *data, uint32_t length) {
    put_tag32(w, 109, length);
    put_raw(w, data, length);
}

/* STRING_EXT, Erlang's way to write a list of small integers: "text" in its source. */
static inline void put_string(struct etf_writer *w, const char *text) {
    size_t length = strlen(text);
    uint8_t head[] = {107, (uint8_t)(length >> 8), (uint8_t)length};
    put_raw(w, head, sizeof head);
    put_raw(w, text, length);
}

/* A proper list of binaries; the texts end with NULL. */
static inline void put_binaries(struct etf_writer *w, ...) {
    va_list texts;
    uint32_t count = 0;
    size_t at = w->used;
    put_list(w, 0);
    va_start(texts, w);
    for (const char *text; (text = va_arg(texts, const char *)) != NULL; count++)
        etf_put_binary(w, text);
    va_end(texts);
    put_nil(w);
    size_t end = w->used;
    w->used = at;
    put_list(w, count);
    w->used = end;
}

/* A copy that ends where its memory ends, so that the sanitizer sees the first byte read too far. */
static inline uint8_t *exact_copy(const void *data, size_t length) {
    uint8_t *copy = malloc(length > 0 ? length : 1);
    if (copy == NULL)
        abort();
    if (length > 0)
        memcpy(copy, data, length);
    return copy;
}

#endif
