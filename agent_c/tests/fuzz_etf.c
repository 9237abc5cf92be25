/* Any bytes: the reader's typed calls and its skip agree on where a term ends, and neither reads beyond the input. */
#include "fuzz.h"

#include <inttypes.h>

enum { DEPTH = 100 };

/* Reads one term by typed calls. False where it is one that skip accepts and they refuse, rightly. */
static bool walk(struct etf_reader *r, int depth);

static bool walk_many(struct etf_reader *r, size_t count, int depth) {
    for (size_t i = 0; i < count && !r->bad; i++)
        if (!walk(r, depth + 1))
            return false;
    return true;
}

static bool walk_list(struct etf_reader *r, int depth) {
    size_t count = etf_list(r);
    if (!walk_many(r, count, depth))
        return false;
    if (r->bad || r->at == r->end || *r->at != 106)
        return false; /* improper, or cut short; or [1 | [2]], which is a proper list, though nobody writes it so */
    etf_list_end(r);
    return true;
}

static bool walk(struct etf_reader *r, int depth) {
    struct etf_reader before = *r;
    struct etf_slice text = {r->at, 0};
    switch (depth < DEPTH ? etf_peek(r) : ETF_OTHER) {
    case ETF_ATOM:
        text = etf_atom(r);
        break;
    case ETF_INTEGER:
        (void)etf_integer(r);
        if (r->bad && *before.at == 110)
            return false; /* beyond 64 bits */
        break;
    case ETF_TUPLE:
        return walk_many(r, etf_tuple(r), depth);
    case ETF_LIST:
        return walk_list(r, depth);
    case ETF_STRING:
    case ETF_BINARY:
        text = etf_text(r);
        break;
    case ETF_MAP: {
        size_t pairs = etf_map(r);
        return walk_many(r, pairs, depth) && walk_many(r, pairs, depth);
    }
    default:
        etf_skip(r);
    }
    EXPECT(r->at >= before.at && r->at <= r->end);
    EXPECT(r->bad ? text.length == 0 : text.length <= (size_t)(r->at - before.at));
    return true;
}

/* What the writer makes of a number, the reader takes for the same. */
static void round_trip(const uint8_t *data, size_t size) {
    int64_t value = 0;
    uint8_t bytes[16];
    memcpy(&value, data, size < sizeof value ? size : sizeof value);
    if (value == INT64_MIN)
        return; /* see test_etf.c */
    struct etf_writer w = {bytes, sizeof bytes, 0, false};
    etf_put_version(&w);
    etf_put_integer(&w, value);
    struct etf_reader r = etf_open(bytes, w.used);
    EXPECT(etf_integer(&r) == value && etf_done(&r));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t *copy = exact_copy(data, size);
    struct etf_reader skipped = etf_open(copy, size), walked = skipped;
    if (!skipped.bad) {
        etf_skip(&skipped);
        bool comparable = walk(&walked, 0);
        EXPECT(!comparable || skipped.bad == walked.bad);
        EXPECT(!comparable || skipped.bad || skipped.at == walked.at);
        EXPECT(etf_done(&skipped) == (!skipped.bad && skipped.at == copy + size));
    }
    round_trip(copy, size);
    free(copy);
    return 0;
}

bool fuzz_seed(size_t index, struct term *term) {
    static const struct {
        const char *data;
        size_t length;
    } terms[] = {
#define TERM(literal) {literal, sizeof(literal) - 1}
        TERM("h\2w\5spawnt\0\0\0\1w\4argvl\0\0\0\1m\0\0\0\x09/bin/truej"), TERM("h\2w\6signala\x0f"), TERM("w\7proceed"),
        TERM("l\0\0\0\2a\1b\377\377\377\376a\3"), TERM("h\3Xw\1n\0\0\0\1\0\0\0\2\0\0\0\3n\1\1\5k\0\3abc"),
        TERM("c1.50000000000000000000e+00\0\0\0\0\0"), TERM("q\x64\0\1ms\1fa\2"), TERM("Z\0\1w\1n\0\0\0\0\0\0\0\1"),
#undef TERM
    };
    if (index >= COUNT_OF(terms))
        return false;
    put_raw(term_begin(term), terms[index].data, terms[index].length);
    return true;
}
