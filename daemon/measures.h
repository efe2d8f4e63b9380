/* SPDX-License-Identifier: Apache-2.0 */
/* measures.h - what larder-eval measured of recipes on models, as the operator gave it: kept in
 * DIR/measures (docs/FORMAT.md), told to the store, and asked when a recipe is to be chosen.
 * Owns:    the table.
 * Threads: any but for _set(), which waits for the disk. One lock of its own; the store's is taken
 *          under it.
 */
#ifndef LARDER_DAEMON_MEASURES_H
#define LARDER_DAEMON_MEASURES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/wire.h"

struct larder_key;
struct larder_store;
struct measures_table;

/* Reads the file, if there is one, and tells the store. A damaged one is passed over with a
 * warning: then nothing is measured, and what asks for a KL gets exact KV. */
int measures_open(struct measures_table **out, struct larder_store *store,
                  const char *store_directory);
void measures_close(struct measures_table *table);

/* Takes these rows in, durably, each in the place of one for the same model, recipe and profile.
 * -EINVAL, with nothing changed, for a row that cannot be. */
int measures_set(struct measures_table *table, const struct wire_measure *rows, uint32_t count);
/* index = 0, 1, ...; false at the end. */
bool measures_at(struct measures_table *table, struct wire_measure *out, uint32_t index);

/* The KL of exactly this; infinity: it was not measured. */
float measures_kl(struct measures_table *table, const struct larder_key *fingerprint,
                  const char *recipe, const uint8_t profile[32]);

/* Of the recipes that `may` allows the one of the fewest bits whose KL on this model is at most
 * `max_kl`; false: none is. `may` is called under the lock. */
bool measures_pick(struct measures_table *table, struct wire_measure *out,
                   const struct larder_key *fingerprint, float max_kl,
                   bool (*may)(void *context, const struct wire_measure *row), void *context);

#endif
