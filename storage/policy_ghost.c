/* SPDX-License-Identifier: Apache-2.0 */
/* policy_ghost.c - keys of what was evicted lately. */
#include "storage/policy_ghost.h"

#include <assert.h>
#include <errno.h>

#include "base/error.h"
#include "base/mem.h"

struct ghost_key {
    uint64_t key;
    uint32_t newer; /* or the next free one */
    uint32_t older;
    uint32_t next_hash;
};

static uint32_t *bucket_of(const struct ghost_list *list, uint64_t key)
{
    return &list->buckets[(key * 0x9E3779B97F4A7C15ull >> 32) & (list->bucket_count - 1)];
}

int ghost_open(struct ghost_list *list, uint32_t count_max)
{
    *list = (struct ghost_list){.count_max = count_max, .bucket_count = 16};
    while (list->bucket_count < count_max)
        list->bucket_count *= 2;
    list->keys = larder_alloc_zero((size_t)count_max + 1, sizeof(*list->keys));
    list->buckets = larder_alloc_zero(list->bucket_count, sizeof(*list->buckets));
    if (!list->keys || !list->buckets) {
        ghost_close(list);
        return larder_fail(-ENOMEM, "eviction policy: no memory for %u keys", count_max);
    }
    for (uint32_t i = count_max; i > 0; i--) {
        list->keys[i].newer = list->free_first;
        list->free_first = i;
    }
    return 0;
}

void ghost_close(struct ghost_list *list)
{
    larder_free(list->keys);
    larder_free(list->buckets);
    *list = (struct ghost_list){0};
}

static void drop(struct ghost_list *list, uint32_t id)
{
    struct ghost_key *ghost = &list->keys[id];
    uint32_t *link = bucket_of(list, ghost->key);
    while (*link != id)
        link = &list->keys[*link].next_hash;
    *link = ghost->next_hash;
    if (ghost->older)
        list->keys[ghost->older].newer = ghost->newer;
    else
        list->oldest = ghost->newer;
    if (ghost->newer)
        list->keys[ghost->newer].older = ghost->older;
    else
        list->newest = ghost->older;
    ghost->newer = list->free_first;
    list->free_first = id;
    list->count--;
}

static uint32_t find(const struct ghost_list *list, uint64_t key)
{
    uint32_t id = *bucket_of(list, key);
    while (id && list->keys[id].key != key)
        id = list->keys[id].next_hash;
    return id;
}

void ghost_drop_oldest(struct ghost_list *list)
{
    if (list->oldest)
        drop(list, list->oldest);
}

void ghost_add(struct ghost_list *list, uint64_t key)
{
    if (list->count_max == 0)
        return;
    ghost_take(list, key);
    if (list->count == list->count_max)
        ghost_drop_oldest(list);
    uint32_t id = list->free_first;
    assert(id);
    struct ghost_key *ghost = &list->keys[id];
    list->free_first = ghost->newer;
    uint32_t *bucket = bucket_of(list, key);
    *ghost = (struct ghost_key){.key = key, .older = list->newest, .next_hash = *bucket};
    *bucket = id;
    if (list->newest)
        list->keys[list->newest].newer = id;
    else
        list->oldest = id;
    list->newest = id;
    list->count++;
}

bool ghost_has(const struct ghost_list *list, uint64_t key)
{
    return find(list, key) != 0;
}

bool ghost_take(struct ghost_list *list, uint64_t key)
{
    uint32_t id = find(list, key);
    if (id)
        drop(list, id);
    return id != 0;
}

size_t ghost_bytes(const struct ghost_list *list)
{
    return ((size_t)list->count_max + 1) * sizeof(*list->keys) +
           list->bucket_count * sizeof(*list->buckets);
}
