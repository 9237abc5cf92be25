/* etf.c: every kind of term that the agent reads, every way to cut one short, and what the writer does at its edge. */
#include "check.h"

#include <inttypes.h>

/* A reader over the bytes of a literal. The copy is kept until the next call. */
static uint8_t *kept;

static struct etf_reader over(const void *data, size_t length) {
    free(kept);
    kept = exact_copy(data, length);
    return etf_open(kept, length);
}

#define OVER(literal) over(literal, sizeof(literal) - 1)

static void version(void) {
    struct etf_reader r = OVER("\x83\x6a");
    CHECK(!r.bad);
    CHECK(etf_peek(&r) == ETF_LIST);
    r = OVER("");
    CHECK(r.bad && etf_peek(&r) == ETF_BAD && !etf_done(&r));
    r = OVER("\x82\x6a");
    CHECK(r.bad);
    r = OVER("\x83");
    CHECK(!r.bad && etf_peek(&r) == ETF_BAD);
}

static void atoms(void) {
    static const struct {
        const char *data;
        size_t length;
    } ok[] = {{"\x83\x64\x00\x02ok", 6}, {"\x83\x73\x02ok", 5}, {"\x83\x76\x00\x02ok", 6}, {"\x83\x77\x02ok", 5}};
    for (size_t i = 0; i < COUNT_OF(ok); i++) {
        struct etf_reader r = over(ok[i].data, ok[i].length);
        CHECK(etf_peek(&r) == ETF_ATOM);
        CHECK(slice_is(etf_atom(&r), "ok"));
        CHECK(etf_done(&r));
        for (size_t cut = 1; cut < ok[i].length; cut++) {
            r = over(ok[i].data, cut);
            CHECK(!slice_is(etf_atom(&r), "ok"));
            CHECK(r.bad && !etf_done(&r));
        }
    }
    struct etf_reader r = OVER("\x83\x77\x00");
    CHECK(slice_is(etf_atom(&r), "") && etf_done(&r));
    r = OVER("\x83\x6d\x00\x00\x00\x02ok");
    CHECK(etf_atom(&r).data == NULL && r.bad);
    CHECK(!slice_is((struct etf_slice){NULL, 0}, ""));
    CHECK(!slice_is((struct etf_slice){(const uint8_t *)"okay", 4}, "ok"));
    CHECK(!slice_is((struct etf_slice){(const uint8_t *)"o", 1}, "ok"));
}

static void integers_round_trip(void) {
    static const int64_t values[] = {
        0,          1,           127,        128,          255,           256,           -1,
        -255,       -256,        INT32_MAX,  INT32_MIN,    INT64_C(1) << 31, -(INT64_C(1) << 31) - 1, UINT32_MAX,
        INT64_C(1) << 32, -(INT64_C(1) << 40), INT64_MAX, INT64_MAX - 1, -INT64_MAX, INT64_C(1) << 62,
    };
    for (size_t i = 0; i < COUNT_OF(values); i++) {
        uint8_t data[32];
        struct etf_writer w = {data, sizeof data, 0, false};
        etf_put_version(&w);
        etf_put_integer(&w, values[i]);
        CHECK(!w.overflow);
        struct etf_reader r = over(data, w.used);
        CHECK(etf_peek(&r) == ETF_INTEGER);
        CHECK_INT(etf_integer(&r), values[i]);
        CHECK(etf_done(&r));
        for (size_t cut = 1; cut < w.used; cut++) {
            r = over(data, cut);
            CHECK_INT(etf_integer(&r), 0);
            CHECK(r.bad);
        }
    }
}

/* -2^63 fits into 64 bits: the header promises that only what does not fit is bad. */
static void the_smallest_integer(void) {
    uint8_t data[32];
    struct etf_writer w = {data, sizeof data, 0, false};
    etf_put_version(&w);
    etf_put_integer(&w, INT64_MIN);
    struct etf_reader r = over(data, w.used);
    CHECK(etf_integer(&r) == INT64_MIN);
    CHECK(etf_done(&r));
}

static void big_integers(void) {
    struct etf_reader r = OVER("\x83\x6e\x08\x00\x00\x00\x00\x00\x00\x00\x00\x80"); /* 2^63 */
    CHECK_INT(etf_integer(&r), 0);
    CHECK(r.bad);
    r = OVER("\x83\x6e\x09\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01"); /* 2^64 + 1 */
    (void)etf_integer(&r);
    CHECK(r.bad);
    r = OVER("\x83\x6e\x0a\x01\x05\x00\x00\x00\x00\x00\x00\x00\x00\x00"); /* -5, with leading zeros */
    CHECK_INT(etf_integer(&r), -5);
    CHECK(etf_done(&r));
    r = OVER("\x83\x6e\x00\x00"); /* no digits at all */
    CHECK_INT(etf_integer(&r), 0);
    CHECK(etf_done(&r));
    r = OVER("\x83\x6f\x00\x00\x00\x01\x00\x05"); /* LARGE_BIG never holds what fits */
    (void)etf_integer(&r);
    CHECK(r.bad);
}

static void tuples_and_maps(void) {
    struct etf_reader r = OVER("\x83\x68\x02\x61\x01\x61\x02");
    CHECK(etf_peek(&r) == ETF_TUPLE);
    CHECK_INT(etf_tuple(&r), 2);
    CHECK_INT(etf_integer(&r), 1);
    CHECK_INT(etf_integer(&r), 2);
    CHECK(etf_done(&r));
    r = OVER("\x83\x69\x00\x00\x00\x02\x61\x01\x61\x02");
    CHECK_INT(etf_tuple(&r), 2);
    CHECK(!r.bad);
    r = OVER("\x83\x69\xff\xff\xff\xff\x61\x01");
    CHECK_INT(etf_tuple(&r), 0);
    CHECK(r.bad);
    r = OVER("\x83\x74\x00\x00\x00\x01\x77\x01k\x61\x07");
    CHECK(etf_peek(&r) == ETF_MAP);
    CHECK_INT(etf_map(&r), 1);
    CHECK(slice_is(etf_atom(&r), "k"));
    CHECK_INT(etf_integer(&r), 7);
    CHECK(etf_done(&r));
    r = OVER("\x83\x74\x80\x00\x00\x00");
    CHECK_INT(etf_map(&r), 0);
    CHECK(r.bad);
    r = OVER("\x83\x6a");
    CHECK_INT(etf_map(&r), 0);
    CHECK(r.bad);
}

static void lists(void) {
    struct etf_reader r = OVER("\x83\x6a");
    CHECK_INT(etf_list(&r), 0);
    etf_list_end(&r);
    CHECK(etf_done(&r));
    r = OVER("\x83\x6c\x00\x00\x00\x01\x61\x05\x6a");
    CHECK_INT(etf_list(&r), 1);
    CHECK_INT(etf_integer(&r), 5);
    CHECK(!etf_done(&r));
    etf_list_end(&r);
    CHECK(etf_done(&r));
    r = OVER("\x83\x6c\x00\x00\x00\x01\x61\x05\x61\x06"); /* [5 | 6] */
    CHECK_INT(etf_list(&r), 1);
    (void)etf_integer(&r);
    etf_list_end(&r);
    CHECK(r.bad);
    r = OVER("\x83\x6c\x00\xff\xff\xff\x61\x05\x6a");
    CHECK_INT(etf_list(&r), 0);
    CHECK(r.bad);
    r = OVER("\x83");
    CHECK_INT(etf_list(&r), 0);
    CHECK(r.bad);
}

static void texts(void) {
    struct etf_reader r = OVER("\x83\x6d\x00\x00\x00\x03" "abc");
    CHECK(etf_peek(&r) == ETF_BINARY);
    CHECK(slice_is(etf_text(&r), "abc") && etf_done(&r));
    r = OVER("\x83\x6b\x00\x03" "abc");
    CHECK(etf_peek(&r) == ETF_STRING);
    CHECK(slice_is(etf_text(&r), "abc") && etf_done(&r));
    r = OVER("\x83\x6a");
    CHECK(slice_is(etf_text(&r), "") && etf_done(&r));
    r = OVER("\x83\x6d\x00\x00\x00\x00");
    CHECK(slice_is(etf_text(&r), "") && etf_done(&r));
    r = OVER("\x83\x6d\xff\xff\xff\xff" "abc");
    CHECK(etf_text(&r).data == NULL && r.bad);
    r = OVER("\x83\x6c\x00\x00\x00\x01\x62\x00\x00\x20\xac\x6a"); /* "€": a list, no byte string */
    CHECK(etf_text(&r).data == NULL && r.bad);
}

/* Whole terms of every kind; each of their proper prefixes is bad, and nothing but the term is skipped. */
static void skipping(void) {
    static const struct {
        const char *data;
        size_t length;
    } terms[] = {
#define TERM(literal) {literal, sizeof(literal) - 1}
        TERM("\x61\x01"), TERM("\x62\xff\xff\xff\xff"), TERM("\x46\x3f\xf0\x00\x00\x00\x00\x00\x00"),
        TERM("\x63" "1.00000000000000000000e+00\x00\x00\x00\x00\x00"), TERM("\x64\x00\x01" "a"), TERM("\x73\x01" "a"),
        TERM("\x76\x00\x01" "a"), TERM("\x77\x01" "a"), TERM("\x6b\x00\x02" "ab"), TERM("\x6d\x00\x00\x00\x01" "a"),
        TERM("\x4d\x00\x00\x00\x01\x03\xe0"), TERM("\x6e\x01\x00\x01"), TERM("\x6f\x00\x00\x00\x01\x00\x01"), TERM("\x6a"),
        TERM("\x68\x00"), TERM("\x68\x01\x6a"), TERM("\x69\x00\x00\x00\x01\x6a"), TERM("\x6c\x00\x00\x00\x01\x6a\x6a"),
        TERM("\x6c\x00\x00\x00\x01\x6a\x61\x01"), TERM("\x74\x00\x00\x00\x00"), TERM("\x74\x00\x00\x00\x01\x6a\x68\x01\x6a"),
        TERM("\x58\x77\x01n\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x03"), TERM("\x67\x77\x01n\x00\x00\x00\x01\x00\x00\x00\x02\x03"),
        TERM("\x59\x77\x01n\x00\x00\x00\x01\x00\x00\x00\x02"), TERM("\x66\x77\x01n\x00\x00\x00\x01\x02"),
        TERM("\x78\x77\x01n\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x02"), TERM("\x65\x77\x01n\x00\x00\x00\x01\x02"),
        TERM("\x72\x00\x01\x77\x01n\x00\x00\x00\x00\x01"), TERM("\x5a\x00\x01\x77\x01n\x00\x00\x00\x00\x00\x00\x00\x01"),
        TERM("\x70\x00\x00\x00\x06\x00\x01"), TERM("\x71\x77\x01m\x77\x01" "f\x61\x02"),
#undef TERM
    };
    for (size_t i = 0; i < COUNT_OF(terms); i++) {
        struct term t;
        struct etf_writer *w = term_begin(&t);
        put_raw(w, terms[i].data, terms[i].length);
        etf_put_integer(w, 42);
        struct etf_reader r = over(t.data, w->used);
        etf_skip(&r);
        CHECK_INT(etf_integer(&r), 42);
        CHECK(etf_done(&r));
        for (size_t cut = 0; cut < terms[i].length; cut++) {
            r = over(t.data, 1 + cut);
            etf_skip(&r);
            CHECK(r.bad);
        }
    }
    struct etf_reader r = OVER("\x83\x50\x00\x00\x00\x01"); /* compressed */
    etf_skip(&r);
    CHECK(r.bad);
    r = OVER("\x83\x70\x00\x00\x00\x03\x00\x00"); /* a fun that is shorter than its own size */
    etf_skip(&r);
    CHECK(r.bad);
    r = OVER("\x83\x68\xff\x6a");
    etf_skip(&r);
    CHECK(r.bad);
}

/* A skip does not recurse: a list in a list in a list … as deep as the bytes go is no deeper a stack. */
static void skipping_the_deepest(void) {
    enum { DEPTH = 1 << 20 };
    uint8_t *data = malloc((size_t)DEPTH * 2 + 2);
    if (data == NULL)
        abort();
    data[0] = 131;
    for (size_t i = 0; i < DEPTH; i++)
        memcpy(data + 1 + 2 * i, "\x68\x01", 2);
    data[1 + 2 * (size_t)DEPTH] = 106;
    struct etf_reader r = over(data, (size_t)DEPTH * 2 + 2);
    free(data);
    etf_skip(&r);
    CHECK(etf_done(&r));
}

/* After the first error nothing moves, and every call gives a harmless zero. */
static void errors_stick(void) {
    struct etf_reader r = OVER("\x83\x61\x01\x61\x02");
    (void)etf_atom(&r);
    CHECK(r.bad);
    CHECK_INT(etf_integer(&r), 0);
    CHECK_INT(etf_list(&r), 0);
    CHECK_INT(etf_map(&r), 0);
    CHECK_INT(etf_tuple(&r), 0);
    CHECK(etf_text(&r).length == 0 && etf_atom(&r).length == 0);
    etf_list_end(&r);
    etf_skip(&r);
    CHECK(etf_peek(&r) == ETF_BAD && !etf_done(&r));
}

/* Into every size that is too small: overflow is set, and no byte behind the end is written (the sanitizer looks). */
static void the_writer_is_bounded(void) {
    for (size_t size = 0; size < 64; size++) {
        uint8_t *data = malloc(size > 0 ? size : 1);
        if (data == NULL)
            abort();
        struct etf_writer w = {data, size, 0, false};
        etf_put_version(&w);
        etf_put_tuple(&w, 4);
        etf_put_atom(&w, "status");
        etf_put_integer(&w, INT64_MAX);
        etf_put_integer(&w, -70000);
        etf_put_binary(&w, "bytes");
        bool fits = size >= 1 + 2 + 8 + 11 + 5 + 10;
        CHECK(w.overflow == !fits);
        CHECK(w.used <= size);
        if (fits) {
            struct etf_reader r = over(data, w.used);
            etf_skip(&r);
            CHECK(etf_done(&r));
        }
        free(data);
    }
}

int main(void) {
    RUN(version);
    RUN(atoms);
    RUN(integers_round_trip);
    RUN(the_smallest_integer);
    RUN(big_integers);
    RUN(tuples_and_maps);
    RUN(lists);
    RUN(texts);
    RUN(skipping);
    RUN(skipping_the_deepest);
    RUN(errors_stick);
    RUN(the_writer_is_bounded);
    free(kept);
    return verdict();
}
