/* SPDX-License-Identifier: Apache-2.0 */
/* world_priv.h - the world's inside, shared by the files that make it up:
 *
 *   world.c         chance, lives, and what is done in them
 *   world_put.c     what an item holds, and how it is put
 *   world_change.c  removals, demotions, marks, moves, a purge
 *   world_get.c     reads, and the comparison after a start
 *
 * Threads: as world.h.
 */
#ifndef LARDER_TESTS_CRASHING_WORLD_PRIV_H
#define LARDER_TESTS_CRASHING_WORLD_PRIV_H

#include "world.h"

/* Of a chain. */
#define DEPTH_MAX 6u

/* world.c */
/* Under the mutex, until *flag, or *count is 0. A store that does not answer cannot be closed
 * either: the program ends then. */
void world_wait(struct world *world, const bool *flag, const uint32_t *count, const char *what);

/* world_put.c */
/* Is this record a variant of the item as it was put last? */
bool item_is_right(const struct world *world, const struct larder_record *record, uint32_t item);
/* `fresh`: it is stored for the first time since it was removed, and has none. */
void item_forget_marks(struct item *item, bool fresh);
/* The number of a variant, as the store has it; negative: it has none. */
int world_variant_number(struct world *world, uint32_t number, enum larder_quality quality);

/* world_change.c */
/* Behind a start: which of the two a purge that was cut short has come to. */
void world_judge_purge(struct world *world, const uint8_t id_before[16]);

#endif
