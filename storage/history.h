/* SPDX-License-Identifier: Apache-2.0 */
/* history.h - what became of entries that are not stored any more: the latest 65,536 of them, for
 * the operator's question why a lookup missed.
 *
 * A ring of 16 bytes an event: the first 8 bytes of the key, when, what. It holds no tokens and
 * decides nothing. It is kept in DIR/history (docs/FORMAT.md) when the store is closed, and read at
 * the next start; after a kill the events of that life are gone, and a damaged file is passed over.
 *
 * Threads: none of its own; all of it under the store's lock, open and save while nobody else is.
 */
#ifndef LARDER_STORAGE_HISTORY_H
#define LARDER_STORAGE_HISTORY_H

#include <assert.h>
#include <stdint.h>

#include "base/event.h"
#include "base/larder_base.h"

#define HISTORY_EVENTS_MAX 65536u

struct history_event {
    uint64_t print;      /* 00-07  first bytes of the key */
    uint32_t when_s;     /* 08-11  Unix seconds */
    uint8_t what;        /* 12     enum larder_event */
    uint8_t reserved[3]; /* 13-15  0 */
};
static_assert(sizeof(struct history_event) == 16, "on-disk size");

struct history {
    struct history_event *events;      /* HISTORY_EVENTS_MAX; a ring */
    uint64_t noted;                    /* so far; the next one's place, modulo the ring */
    uint64_t counts[LARDER_EVENT_END]; /* since start */
};

/* Empty; -ENOMEM. */
int history_open(struct history *history);
void history_close(struct history *history);

void history_note(struct history *history, const struct larder_key *key, enum larder_event what);

/* The latest events of a key, newest first; how many. */
uint32_t history_find(const struct history *history, struct history_event *out, uint32_t count_max,
                      const struct larder_key *key);

/* From and to DIR/history. What cannot be read or written is logged: nothing depends on it. */
void history_load(struct history *history, const char *directory);
void history_save(struct history *history, const char *directory);

#endif
