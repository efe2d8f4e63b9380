/* SPDX-License-Identifier: Apache-2.0 */
/* policy_ghost.h - keys of what was evicted lately, the oldest forgotten first. 20 bytes a key, all
 * of them allocated when opened.
 */
#ifndef LARDER_STORAGE_POLICY_GHOST_H
#define LARDER_STORAGE_POLICY_GHOST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ghost_key;

struct ghost_list {
    struct ghost_key *keys; /* 1 .. count_max */
    uint32_t *buckets;
    uint32_t bucket_count;
    uint32_t count_max;
    uint32_t count;
    uint32_t oldest;
    uint32_t newest;
    uint32_t free_first;
};

int ghost_open(struct ghost_list *list, uint32_t count_max);
void ghost_close(struct ghost_list *list);
/* Forgets the oldest when full. */
void ghost_add(struct ghost_list *list, uint64_t key);
bool ghost_has(const struct ghost_list *list, uint64_t key);
/* Whether it was there; it is not any more. */
bool ghost_take(struct ghost_list *list, uint64_t key);
void ghost_drop_oldest(struct ghost_list *list);
size_t ghost_bytes(const struct ghost_list *list);

#endif
