/* One fuzz target, two engines. clang's libFuzzer calls LLVMFuzzerTestOneInput itself. Compiled with -DSTANDALONE by any
 * compiler, the target is a program:
 *
 *   fuzz_x SECONDS [SEED] [FILE …]     mutates its own seeds and the files', pseudo-randomly: the same seed, the same inputs
 *   fuzz_x replay FILE …               runs each file once
 *   fuzz_x seeds DIRECTORY             writes its own seeds there, for libFuzzer
 *
 * An input that ends the program is printed in hexadecimal first (run with abort_on_error=1 in ASAN_OPTIONS and
 * UBSAN_OPTIONS). There is no feedback from coverage: it finds what a few hundred thousand inputs a second meet by chance. */
#ifndef LINX_TESTS_FUZZ_H
#define LINX_TESTS_FUZZ_H

#include "common.h"

#include <signal.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The target's own seeds: fills `term` with number `index`, false when there are no more. */
bool fuzz_seed(size_t index, struct term *term);

/* An expectation that does not hold is a crash. */
#define EXPECT(condition)                                                                            \
    do {                                                                                             \
        if (!(condition)) {                                                                          \
            (void)fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);            \
            abort();                                                                                 \
        }                                                                                            \
    } while (0)

#ifdef STANDALONE

enum { SEEDS_LIMIT = 1024, INPUT_LIMIT = 1 << 16 };

struct seed {
    uint8_t *data;
    size_t length;
};

static struct seed seeds[SEEDS_LIMIT];
static size_t seed_count;
static uint8_t current[INPUT_LIMIT];
static size_t current_length;
static uint64_t state;

static uint64_t chance(uint64_t below) { /* xorshift64*; the bias does not matter here */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return below > 0 ? (state * 0x2545f4914f6cdd1dULL >> 16) % below : 0;
}

static void print_current(int number) {
    static const char digits[] = "0123456789abcdef";
    static char text[2 * INPUT_LIMIT + 1];
    size_t used = 0;
    for (size_t i = 0; i < current_length; i++) {
        text[used++] = digits[current[i] >> 4];
        text[used++] = digits[current[i] & 15];
    }
    text[used++] = '\n';
    (void)!write(2, "input: ", 7);
    (void)!write(2, text, used);
    (void)signal(number, SIG_DFL);
    (void)raise(number);
}

static void add_seed(const uint8_t *data, size_t length) {
    if (seed_count < SEEDS_LIMIT && length <= INPUT_LIMIT)
        seeds[seed_count++] = (struct seed){exact_copy(data, length), length};
}

static bool read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        return false;
    current_length = fread(current, 1, sizeof current, file);
    (void)fclose(file);
    return true;
}

/* Removes `removed` bytes at `at` and puts `added` ones there. */
static void replace(size_t at, size_t removed, const uint8_t *added, size_t count) {
    if (at > current_length)
        return;
    if (removed > current_length - at)
        removed = current_length - at;
    if (current_length - removed + count > INPUT_LIMIT)
        return;
    memmove(current + at + count, current + at + removed, current_length - at - removed);
    if (count > 0)
        memcpy(current + at, added, count);
    current_length += count - removed;
}

static void mutate(void) {
    static const uint8_t tags[] = {70, 77, 88, 97, 98, 99, 100, 104, 105, 106, 107, 108, 109, 110, 111, 112, 113, 115, 116, 119};
    static const uint8_t counts[][4] = {{0, 0, 0, 0}, {0, 0, 0, 1}, {0, 0, 0, 2}, {255, 255, 255, 255}, {127, 255, 255, 255},
                                        {128, 0, 0, 0}, {0, 0, 255, 255}, {0, 1, 0, 0}};
    const struct seed *other = &seeds[chance(seed_count)];
    size_t at = chance(current_length + 1), from = chance(other->length + 1);
    uint8_t byte = (uint8_t)chance(256);
    switch (chance(8)) {
    case 0:
        if (at < current_length)
            current[at] ^= (uint8_t)(1U << chance(8));
        break;
    case 1:
        replace(at, 1, &byte, 1);
        break;
    case 2:
        replace(at, 1, &tags[chance(COUNT_OF(tags))], 1);
        break;
    case 3:
        replace(at, 4, counts[chance(COUNT_OF(counts))], 4);
        break;
    case 4:
        replace(at, chance(8), NULL, 0);
        break;
    case 5:
        replace(at, 0, &byte, 1);
        break;
    case 6:
        replace(at, chance(16), other->data + from, chance(other->length - from + 1));
        break;
    default:
        if (chance(8) == 0)
            current_length = at;
        else
            replace(at, 0, current + chance(at + 1), 0);
    }
}

static int write_seeds(const char *directory) {
    static struct term term;
    for (size_t i = 0; fuzz_seed(i, &term); i++) {
        char path[4096];
        (void)snprintf(path, sizeof path, "%s/seed-%zu", directory, i);
        FILE *file = fopen(path, "wb");
        if (file == NULL || fwrite(term.data, 1, term.w.used, file) != term.w.used || fclose(file) != 0)
            return 1;
    }
    return 0;
}

static void fuzz(double seconds) {
    int64_t until = now_us() + (int64_t)(seconds * 1e6);
    uint64_t count = 0;
    for (; count % 64 != 0 || now_us() < until; count++) {
        const struct seed *seed = &seeds[chance(seed_count)];
        memcpy(current, seed->data, seed->length);
        current_length = seed->length;
        for (uint64_t changes = count < seed_count ? 0 : 1 + chance(6); changes > 0; changes--)
            mutate();
        (void)LLVMFuzzerTestOneInput(current, current_length);
    }
    (void)printf("ok   %llu inputs from %zu seeds\n", (unsigned long long)count, seed_count);
}

int main(int argc, char **argv) {
    static struct term term;
    (void)signal(SIGABRT, print_current);
    if (argc < 2)
        return 64;
    if (strcmp(argv[1], "seeds") == 0)
        return argc == 3 ? write_seeds(argv[2]) : 64;
    bool replay = strcmp(argv[1], "replay") == 0;
    for (int i = replay ? 2 : 3; i < argc; i++) {
        if (!read_file(argv[i]))
            return 66;
        if (replay)
            (void)LLVMFuzzerTestOneInput(current, current_length);
        else
            add_seed(current, current_length);
    }
    if (replay)
        return 0;
    for (size_t i = 0; fuzz_seed(i, &term); i++)
        add_seed(term.data, term.w.used);
    state = (argc > 2 ? strtoull(argv[2], NULL, 10) : 1) * 0x9e3779b97f4a7c15ULL + 1;
    fuzz(atof(argv[1]));
    for (size_t i = 0; i < seed_count; i++)
        free(seeds[i].data);
    return 0;
}

#endif

#endif
