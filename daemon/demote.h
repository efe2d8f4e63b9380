/* SPDX-License-Identifier: Apache-2.0 */
/* demote.h - which blocks are kept smaller as they age, and as what: the part of a pass of scrub.h
 * that knows the configuration's demote lines.
 *
 * A block's age is the time since any of its records was used; each step of priority doubles the
 * ages of its line. What is pinned, or before what is, stays as it is, and so does a short last
 * block, which is stored exact by every recipe.
 *
 * Threads: event thread.
 */
#ifndef LARDER_DAEMON_DEMOTE_H
#define LARDER_DAEMON_DEMOTE_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/demotion.h"

/* Of how many recipes on models it is remembered how small they make blocks. */
#define DEMOTE_SIZES_MAX 64u

struct larderd;

/* The smallest record that was seen, for one byte of raw KV. */
struct demote_size {
    uint64_t recipe; /* hash of its text; 0: none yet */
    uint32_t model;
    float share;
};

struct demote {
    struct larderd *daemon;
    uint64_t demoted; /* blocks, in this pass */
    uint64_t saved_bytes;
    uint64_t demoted_all; /* since the daemon started */
    uint64_t saved_bytes_all;
    uint64_t failed_all;
    bool told; /* why the first of the pass failed */
    struct demote_size sizes[DEMOTE_SIZES_MAX];
    uint32_t size_next;
    struct demotion demotion;
};

/* Whether some line asks for something; *pause_s: how long a pass is rested from then. */
bool demote_is_wanted(const struct larderd *daemon, uint32_t *pause_s);
void demote_begin_pass(struct demote *demote, struct larderd *daemon);
/* Whether something is to be done about this entry: then it stands in demote->demotion, not begun.
 */
bool demote_prepare(struct demote *demote, const struct larder_entry_info *entry);

enum demote_outcome {
    DEMOTE_DONE,    /* or there was nothing to do */
    DEMOTE_BUSY,    /* memory is short: slower */
    DEMOTE_FAILED,  /* this one */
    DEMOTE_NO_ROOM, /* and so would the others: the pass is to end */
};
/* Of what has just ended with `err`. */
enum demote_outcome demote_note(struct demote *demote, int err);

#endif
