/* The Erlang External Term Format (erl_ext_dist), as much of it as the agent speaks.
 *
 * The reader is a cursor with a sticky error: after the first thing that is not what was asked for, `bad` is set, every
 * further call returns a harmless zero, and the caller looks once at the end. It never allocates and never recurses.
 * The writer is bounded: what does not fit sets `overflow`, and nothing is written past the end. */
#ifndef LINX_ETF_H
#define LINX_ETF_H

#include "util.h"

struct etf_reader {
    const uint8_t *at, *end;
    bool bad;
};

struct etf_slice {
    const uint8_t *data;
    size_t length;
};

enum etf_kind { ETF_BAD, ETF_ATOM, ETF_INTEGER, ETF_TUPLE, ETF_LIST, ETF_STRING, ETF_BINARY, ETF_MAP, ETF_OTHER };

struct etf_reader etf_open(const uint8_t *data, size_t length); /* checks the version byte */
enum etf_kind etf_peek(const struct etf_reader *r);
struct etf_slice etf_atom(struct etf_reader *r);
int64_t etf_integer(struct etf_reader *r);      /* what does not fit into 64 bits is bad */
int64_t etf_between(struct etf_reader *r, int64_t least, int64_t most); /* what is not is bad */
size_t etf_tuple(struct etf_reader *r);         /* arity */
size_t etf_map(struct etf_reader *r);           /* pairs */
size_t etf_list(struct etf_reader *r);          /* elements before the tail; then call etf_list_end */
void etf_list_end(struct etf_reader *r);        /* the proper tail; an improper one is bad */
struct etf_slice etf_text(struct etf_reader *r); /* a binary, or an Erlang string ([] is the empty one) */
void etf_skip(struct etf_reader *r);            /* one whole term of any kind */
bool etf_done(const struct etf_reader *r);      /* all read, nothing bad */

bool slice_is(struct etf_slice slice, const char *name);

struct etf_writer {
    uint8_t *data;
    size_t size, used;
    bool overflow;
};

void etf_put_version(struct etf_writer *w);
void etf_put_tuple(struct etf_writer *w, uint8_t arity);
void etf_put_atom(struct etf_writer *w, const char *name);
void etf_put_integer(struct etf_writer *w, int64_t value);
void etf_put_binary(struct etf_writer *w, const char *text);

#endif
