/* What the parked child does to itself, in the order it is told: a tuple `{name, Arg, …}` each.
 *
 * The child is single-threaded and inside its namespaces, so it has rights there that nobody outside has. The steps
 * before the element `checkpoint` run before the session is ready, those behind it when it is told to proceed. */
#ifndef LINX_STEPS_H
#define LINX_STEPS_H

#include "etf.h"

struct step;

/* What one step leaves for a later one. On the child's stack: its other memory may be the monitor's (child.c). */
struct step_room {
    int terminal; /* the terminal's mount, kept by its name, or -1 */
    dev_t dev_device; /* the host's /dev, where nothing is to be made */
    ino_t dev_inode;
};

struct step_kind {
    const char *name;
    const char *arguments; /* one letter each: i integer, d uid or gid, t text, l list of gids */
    enum stage stage;      /* where a refusal is reported */
    long (*run)(const struct step *step, struct step_room *room); /* 0 or more, or a negated errno: raw.h */
};

struct step {
    const struct step_kind *kind; /* NULL: the checkpoint */
    bool optional;                /* a refusal is reported and lived with */
    int64_t number[3];
    const char *text;
    const gid_t *list;
    size_t list_length;
};

extern const struct step_kind step_kinds[];
extern const size_t step_kind_count;

const struct step_kind *step_kind_find(struct etf_slice name);

#endif
