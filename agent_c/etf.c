#include "etf.h"

#include <string.h>

enum tag {
    TAG_NEW_FLOAT = 70,
    TAG_BIT_BINARY = 77,
    TAG_NEW_PID = 88,
    TAG_NEW_PORT = 89,
    TAG_NEWER_REF = 90,
    TAG_SMALL_INTEGER = 97,
    TAG_INTEGER = 98,
    TAG_FLOAT = 99,
    TAG_ATOM = 100,
    TAG_REF = 101,
    TAG_PORT = 102,
    TAG_PID = 103,
    TAG_SMALL_TUPLE = 104,
    TAG_LARGE_TUPLE = 105,
    TAG_NIL = 106,
    TAG_STRING = 107,
    TAG_LIST = 108,
    TAG_BINARY = 109,
    TAG_SMALL_BIG = 110,
    TAG_LARGE_BIG = 111,
    TAG_NEW_FUN = 112,
    TAG_EXPORT = 113,
    TAG_NEW_REF = 114,
    TAG_SMALL_ATOM = 115,
    TAG_MAP = 116,
    TAG_ATOM_UTF8 = 118,
    TAG_SMALL_ATOM_UTF8 = 119,
    TAG_V4_PORT = 120,
    VERSION = 131,
};

/* ---- reading ------------------------------------------------------------------------------------------------- */

static const uint8_t *take(struct etf_reader *r, size_t count) {
    static const uint8_t zeros[16];
    if (r->bad || (size_t)(r->end - r->at) < count) {
        r->bad = true;
        return zeros; /* enough for every fixed-size field; variable ones look at `bad` */
    }
    const uint8_t *start = r->at;
    r->at += count;
    return start;
}

static uint8_t take8(struct etf_reader *r) { return *take(r, 1); }

static uint16_t take16(struct etf_reader *r) {
    const uint8_t *b = take(r, 2);
    return (uint16_t)(b[0] << 8 | b[1]);
}

static uint32_t take32(struct etf_reader *r) {
    const uint8_t *b = take(r, 4);
    return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
}

static struct etf_slice take_slice(struct etf_reader *r, size_t length) {
    const uint8_t *data = take(r, length);
    return r->bad ? (struct etf_slice){NULL, 0} : (struct etf_slice){data, length};
}

static void fail(struct etf_reader *r) { r->bad = true; }

/* A count of terms that cannot all be there (each takes a byte at least) is a lie told to make us allocate. */
static size_t plausible(struct etf_reader *r, size_t count) {
    if (count > (size_t)(r->end - r->at))
        fail(r);
    return r->bad ? 0 : count;
}

struct etf_reader etf_open(const uint8_t *data, size_t length) {
    struct etf_reader r = {data, data + length, false};
    if (take8(&r) != VERSION)
        fail(&r);
    return r;
}

enum etf_kind etf_peek(const struct etf_reader *r) {
    if (r->bad || r->at == r->end)
        return ETF_BAD;
    switch (*r->at) {
    case TAG_ATOM:
    case TAG_SMALL_ATOM:
    case TAG_ATOM_UTF8:
    case TAG_SMALL_ATOM_UTF8:
        return ETF_ATOM;
    case TAG_SMALL_INTEGER:
    case TAG_INTEGER:
    case TAG_SMALL_BIG:
        return ETF_INTEGER;
    case TAG_SMALL_TUPLE:
    case TAG_LARGE_TUPLE:
        return ETF_TUPLE;
    case TAG_NIL:
    case TAG_LIST:
        return ETF_LIST;
    case TAG_STRING:
        return ETF_STRING;
    case TAG_BINARY:
        return ETF_BINARY;
    case TAG_MAP:
        return ETF_MAP;
    default:
        return ETF_OTHER;
    }
}

struct etf_slice etf_atom(struct etf_reader *r) {
    switch (take8(r)) {
    case TAG_ATOM:
    case TAG_ATOM_UTF8:
        return take_slice(r, take16(r));
    case TAG_SMALL_ATOM:
    case TAG_SMALL_ATOM_UTF8:
        return take_slice(r, take8(r));
    default:
        fail(r);
        return (struct etf_slice){NULL, 0};
    }
}

static int64_t big_integer(struct etf_reader *r, size_t length) {
    bool negative = take8(r) != 0;
    struct etf_slice digits = take_slice(r, length);
    uint64_t magnitude = 0;
    for (size_t i = 0; i < digits.length; i++) {
        if (i >= 8 && digits.data[i] != 0)
            fail(r);
        else if (i < 8)
            magnitude |= (uint64_t)digits.data[i] << (8 * i);
    }
    if (magnitude > (uint64_t)INT64_MAX + negative)
        fail(r);
    if (r->bad || magnitude == 0)
        return 0;
    return negative ? -(int64_t)(magnitude - 1) - 1 : (int64_t)magnitude;
}

int64_t etf_integer(struct etf_reader *r) {
    switch (take8(r)) {
    case TAG_SMALL_INTEGER:
        return take8(r);
    case TAG_INTEGER:
        return (int32_t)take32(r);
    case TAG_SMALL_BIG:
        return big_integer(r, take8(r));
    default:
        fail(r);
        return 0;
    }
}

int64_t etf_between(struct etf_reader *r, int64_t least, int64_t most) {
    int64_t value = etf_integer(r);
    if (value < least || value > most)
        fail(r);
    return r->bad ? 0 : value;
}

size_t etf_tuple(struct etf_reader *r) {
    switch (take8(r)) {
    case TAG_SMALL_TUPLE:
        return plausible(r, take8(r));
    case TAG_LARGE_TUPLE:
        return plausible(r, take32(r));
    default:
        fail(r);
        return 0;
    }
}

size_t etf_map(struct etf_reader *r) {
    if (take8(r) != TAG_MAP)
        fail(r);
    return plausible(r, take32(r));
}

/* An empty list is NIL without a tail of its own: step back, so that etf_list_end finds it. */
size_t etf_list(struct etf_reader *r) {
    switch (take8(r)) {
    case TAG_NIL:
        if (!r->bad)
            r->at--;
        return 0;
    case TAG_LIST:
        return plausible(r, take32(r));
    default:
        fail(r);
        return 0;
    }
}

void etf_list_end(struct etf_reader *r) {
    if (take8(r) != TAG_NIL)
        fail(r);
}

struct etf_slice etf_text(struct etf_reader *r) {
    switch (take8(r)) {
    case TAG_BINARY:
        return take_slice(r, take32(r));
    case TAG_STRING:
        return take_slice(r, take16(r));
    case TAG_NIL:
        return (struct etf_slice){r->at, 0};
    default:
        fail(r);
        return (struct etf_slice){NULL, 0};
    }
}

/* Steps over one tag and its fixed part. Returns how many terms follow that belong to it. */
static size_t skip_head(struct etf_reader *r) {
    switch (take8(r)) {
    case TAG_SMALL_INTEGER:
        return take(r, 1), 0;
    case TAG_INTEGER:
        return take(r, 4), 0;
    case TAG_NEW_FLOAT:
        return take(r, 8), 0;
    case TAG_FLOAT:
        return take_slice(r, 31), 0;
    case TAG_ATOM:
    case TAG_ATOM_UTF8:
    case TAG_STRING:
        return take_slice(r, take16(r)), 0;
    case TAG_SMALL_ATOM:
    case TAG_SMALL_ATOM_UTF8:
        return take_slice(r, take8(r)), 0;
    case TAG_BINARY:
        return take_slice(r, take32(r)), 0;
    case TAG_BIT_BINARY:
        return take_slice(r, (size_t)take32(r) + 1), 0;
    case TAG_SMALL_BIG:
        return take_slice(r, (size_t)take8(r) + 1), 0;
    case TAG_LARGE_BIG:
        return take_slice(r, (size_t)take32(r) + 1), 0;
    case TAG_NIL:
        return 0;
    case TAG_SMALL_TUPLE:
        return plausible(r, take8(r));
    case TAG_LARGE_TUPLE:
        return plausible(r, take32(r));
    case TAG_LIST:
        return plausible(r, (size_t)take32(r)) + 1; /* and the tail */
    case TAG_MAP:
        return 2 * plausible(r, take32(r));
    case TAG_NEW_FUN: /* its size counts itself */
    {
        uint32_t size = take32(r);
        return size < 4 ? (fail(r), (size_t)0) : (take_slice(r, size - 4), (size_t)0);
    }
    case TAG_EXPORT: /* module, function, arity */
        return 3;
    default:
        fail(r);
        return 0;
    }
}

/* What names a node has an atom in front of its numbers: those bytes come after the atom. Zero: no such tag. */
static size_t node_numbers(struct etf_reader *r) {
    switch (take8(r)) {
    case TAG_PID:
        return 9;
    case TAG_NEW_PID:
        return 12;
    case TAG_PORT:
    case TAG_REF:
        return 5;
    case TAG_NEW_PORT:
        return 8;
    case TAG_V4_PORT:
        return 12;
    case TAG_NEW_REF:
        return 1 + 4 * (size_t)take16(r);
    case TAG_NEWER_REF:
        return 4 + 4 * (size_t)take16(r);
    default:
        r->at--;
        return 0;
    }
}

void etf_skip(struct etf_reader *r) {
    for (size_t left = 1; left > 0 && !r->bad; left--) {
        if (r->at == r->end) {
            fail(r);
            return;
        }
        size_t numbers = node_numbers(r);
        if (numbers > 0) {
            (void)etf_atom(r);
            (void)take_slice(r, numbers);
            continue;
        }
        left += skip_head(r);
    }
}

bool etf_done(const struct etf_reader *r) { return !r->bad && r->at == r->end; }

bool slice_is(struct etf_slice slice, const char *name) {
    return slice.data != NULL && slice.length == strlen(name) && memcmp(slice.data, name, slice.length) == 0;
}

/* ---- writing ------------------------------------------------------------------------------------------------- */

static void put(struct etf_writer *w, const void *data, size_t length) {
    if (w->overflow || w->size - w->used < length) {
        w->overflow = true;
        return;
    }
    memcpy(w->data + w->used, data, length);
    w->used += length;
}

static void put8(struct etf_writer *w, uint8_t value) { put(w, &value, 1); }

static void put32(struct etf_writer *w, uint32_t value) {
    uint8_t bytes[4] = {(uint8_t)(value >> 24), (uint8_t)(value >> 16), (uint8_t)(value >> 8), (uint8_t)value};
    put(w, bytes, sizeof bytes);
}

void etf_put_version(struct etf_writer *w) { put8(w, VERSION); }

void etf_put_tuple(struct etf_writer *w, uint8_t arity) {
    put8(w, TAG_SMALL_TUPLE);
    put8(w, arity);
}

void etf_put_atom(struct etf_writer *w, const char *name) {
    size_t length = strlen(name);
    put8(w, TAG_SMALL_ATOM_UTF8);
    put8(w, (uint8_t)length);
    put(w, name, length);
}

void etf_put_integer(struct etf_writer *w, int64_t value) {
    if (value >= 0 && value <= 255) {
        put8(w, TAG_SMALL_INTEGER);
        put8(w, (uint8_t)value);
    } else if (value >= INT32_MIN && value <= INT32_MAX) {
        put8(w, TAG_INTEGER);
        put32(w, (uint32_t)(int32_t)value);
    } else {
        uint64_t magnitude = value < 0 ? -(uint64_t)value : (uint64_t)value;
        uint8_t count = 0, digits[8];
        for (; magnitude > 0; magnitude >>= 8)
            digits[count++] = (uint8_t)magnitude;
        put8(w, TAG_SMALL_BIG);
        put8(w, count);
        put8(w, value < 0);
        put(w, digits, count);
    }
}

void etf_put_binary(struct etf_writer *w, const char *text) {
    size_t length = strlen(text);
    put8(w, TAG_BINARY);
    put32(w, (uint32_t)length);
    put(w, text, length);
}
