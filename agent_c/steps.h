/* What the parked child does to itself, in the order it is told: a tuple `{name, Arg, …}` each.
 *
 * The child is single-threaded and inside its namespaces, so it has rights there that nobody outside has. The steps
 * before the element `checkpoint` run before the session is ready, those behind it when it is told to proceed. */
#ifndef LINX_STEPS_H
#define LINX_STEPS_H

#include "etf.h"

struct step;

enum { FILTERS_LIMIT = 16 };

struct kept_filter {
    const void *program; /* an array of struct sock_filter, in the request's arena */
    size_t length;       /* of these */
    int64_t flags;
};

/* What one step leaves for a later one. On the child's stack: its other memory may be the monitor's (child.c). */
struct step_room {
    int terminal;            /* the terminal's mount, kept by its name, or -1 */
    dev_t dev_device; /* the host's /dev, where nothing is to be made */
    ino_t dev_inode;
    int root;                /* the root that mount points are below, until it is pivoted into; -1: "/" */
    bool root_is_unbindable; /* until then, unless something else was asked for */
    bool root_is_tmpfs, parent_is_tmpfs; /* see places.h */
    int parent;              /* the directory where something was made last, or -1 */
    const char *parent_path; /* which begins with its path, of that length; a step's text */
    size_t parent_length;
    int empty_directory, null_device; /* mounts that mask something, or -1 */
    int init_end;            /* of a pair with pid 1, or -1: reaper.h */
    int opened;              /* for Python, or -1 */
    bool shares_memory, hidden; /* with whom has cloned us; and it is not dumpable now */
    mode_t umask;            /* the workload's; while steps are taken it is 0, and what they make has the mode that they say */
    struct kept_filter filters[FILTERS_LIMIT]; /* for seccomp(2), in the order in which they came */
    size_t filter_count;
};

struct step_kind {
    const char *name;
    const char *arguments; /* one letter each: i integer, d uid or gid, t text, b bytes, l list of gids */
    enum stage stage;      /* where a refusal is reported */
    long (*run)(const struct step *step, struct step_room *room); /* 0 or more, or a negated errno: raw.h */
};

struct step {
    const struct step_kind *kind; /* NULL: the checkpoint */
    bool optional;                /* a refusal is reported and lived with */
    int64_t number[4];
    const char *text[4];
    const char *data;
    size_t data_length;
    const gid_t *list;
    size_t list_length;
};

extern const struct step_kind step_kinds[];
extern const size_t step_kind_count;

const struct step_kind *step_kind_find(struct etf_slice name);

/* Of a step that is not the checkpoint. The network namespace is made by pid 1 meanwhile: see reaper.h. */
bool step_is_of_init(const struct step *step);

/* What only a dumpable process may write, unless it is root. */
bool step_writes_own_map(const struct step *step);

/* After which we may do less than who has cloned us. */
bool step_drops_rights(const struct step *step);

/* After which we are somebody else. */
bool step_changes_ids(const struct step *step);

/* The same of steps that only memory of one's own can take: what they change is shared with whom one shares it. */
bool step_needs_own_memory(const struct step *step);

#endif
