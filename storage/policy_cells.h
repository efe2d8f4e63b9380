/* SPDX-License-Identifier: Apache-2.0 */
/* policy_cells.h - the leaves of one group's chains, in cells by class and worth (together: a lane)
 * and span of time of their last use, so that the least valuable one is found without looking at
 * each. Spans are finer the younger; cells of one lane and span are one list through the nodes.
 *
 * Threads: see policy.h.
 */
#ifndef LARDER_STORAGE_POLICY_CELLS_H
#define LARDER_STORAGE_POLICY_CELLS_H

#include "storage/policy_priv.h"
#include "storage/policy_reuse.h"

#define CELLS_SPANS_MAX  96u
#define CELLS_WORTHS     4u /* classes of worth, octaves apart */
#define CELLS_LANES      (REUSE_CLASSES * CELLS_WORTHS)
#define CELLS_LANE_WORDS ((CELLS_LANES + 63) / 64)
static_assert(CELLS_LANES <= UINT8_MAX, "a node's list is its lane");

struct cells_span;

struct cell {
    uint32_t span; /* CELLS_SPANS_MAX: none */
    uint32_t lane;
    float value;
};

struct cells {
    const struct reuse *reuse;
    struct cells_span *spans[CELLS_SPANS_MAX]; /* oldest first; made when first needed */
    uint32_t span_count;
    uint32_t leaf_count;
    struct cell best; /* of least value; `none` when it has to be looked for */
    uint32_t best_at; /* `now` of the calls below for which it is that */
};

int cells_open(struct cells **out, const struct reuse *reuse);
void cells_close(struct cells *cells);
size_t cells_bytes(const struct cells *cells);

/* A span that begins now, if the newest is not too young. Without memory two older ones are made
 * one; -ENOMEM when there are none. */
int cells_open_span(struct larder_policy *policy, struct cells *cells);
/* Spans for leaves of all ages: before leaves of the past come. */
int cells_spread(struct cells *cells);

/* `now`: a number that changes whenever values may have changed. The node's `used` and `list`, its
 * lane, say where it belongs. */
void cells_add(struct larder_policy *policy, struct cells *cells, uint32_t id, uint32_t now);
void cells_remove(struct larder_policy *policy, struct cells *cells, uint32_t id);

/* The cell of least value that holds leaves. */
const struct cell *cells_best(struct cells *cells, uint32_t now);
/* The leaf of least value that may go, LARDER_POLICY_NONE: none; *value: its cell's. */
uint32_t cells_victim(struct larder_policy *policy, struct cells *cells, uint32_t now, float *value,
                      bool (*may_go)(void *context, uint32_t id), void *context);
/* The last of a list that may go. */
uint32_t cells_last(const struct larder_policy *policy, const struct policy_list *list,
                    bool (*may_go)(void *context, uint32_t id), void *context);

#endif
