/* What undoes what Python has made outside of any workload, if Python does not come to it. */
#ifndef LINX_KEEPER_H
#define LINX_KEEPER_H

#include "frame.h"

extern const char *const keeper_words[]; /* its kinds and commands */

/* Whether this request, `{keep, Kind}`, is for a keeper. */
bool keeper_wanted(struct etf_slice payload);

/* Is one until the inbox is at its end, and then executes the wills that are left. */
void keeper_run(struct inbox *in, struct etf_slice payload);

#endif
