/* SPDX-License-Identifier: Apache-2.0 */
#include "storage/learned.h"

/* For a state on the stack. */
#define XXH_STATIC_LINKING_ONLY

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "base/mem.h"
#include "storage/side_file.h"

#define LEARNED_MAGIC   0x314e524c4452414cull /* "LARDLRN1" */
#define LEARNED_VERSION 1u
/* Far above what the largest state and 2^32 entries of a sound file would take. */
#define STATE_BYTES_MAX (16u << 20)

struct learned_head {
    uint64_t magic;            /* 00-07 */
    uint32_t version;          /* 08-11 */
    uint32_t state_bytes;      /* 12-15 */
    uint32_t entry_count;      /* 16-19 */
    uint32_t capacity_entries; /* 20-23 */
    uint64_t check;            /* 24-31  XXH3-64 of bytes 0-23, the state and the entries */
};
static_assert(sizeof(struct learned_head) == 32, "on-disk size");

void learned_free(struct learned *learned)
{
    larder_free(learned->state);
    larder_free(learned->entries);
    memset(learned, 0, sizeof(*learned));
}

static uint64_t check_of(const struct learned_head *head, const struct learned *learned)
{
    XXH3_state_t state;
    XXH3_INITSTATE(&state);
    XXH3_64bits_reset(&state);
    XXH3_64bits_update(&state, head, offsetof(struct learned_head, check));
    XXH3_64bits_update(&state, learned->state, learned->state_bytes);
    XXH3_64bits_update(&state, learned->entries,
                       sizeof(*learned->entries) * (size_t)learned->entry_count);
    return XXH3_64bits_digest(&state);
}

static bool read_learned(void *context, int fd)
{
    struct learned *learned = context;
    struct learned_head head;
    struct stat status;
    if (!side_file_read(fd, &head, sizeof(head)) || head.magic != LEARNED_MAGIC ||
        head.version != LEARNED_VERSION || head.state_bytes > STATE_BYTES_MAX ||
        fstat(fd, &status) < 0)
        return false;
    size_t entry_bytes = sizeof(*learned->entries) * (size_t)head.entry_count;
    if ((uint64_t)status.st_size != sizeof(head) + head.state_bytes + entry_bytes)
        return false;
    learned->state = larder_alloc(head.state_bytes + 1ul);
    learned->entries = larder_alloc(entry_bytes + 1);
    learned->state_bytes = head.state_bytes;
    learned->entry_count = head.entry_count;
    learned->capacity_entries = head.capacity_entries;
    if (!learned->state || !learned->entries ||
        !side_file_read(fd, learned->state, head.state_bytes) ||
        !side_file_read(fd, learned->entries, entry_bytes) ||
        check_of(&head, learned) != head.check)
        return false;
    for (uint32_t i = 1; i < learned->entry_count; i++) {
        if (learned->entries[i].generation <= learned->entries[i - 1].generation)
            return false;
    }
    return true;
}

void learned_load(struct learned *learned, const char *directory)
{
    memset(learned, 0, sizeof(*learned));
    if (!side_file_load(directory, "learned", read_learned, learned,
                        "eviction begins to learn anew"))
        learned_free(learned);
}

static int by_generation(const void *a, const void *b)
{
    const struct learned_entry *first = a;
    const struct learned_entry *second = b;
    return (first->generation > second->generation) - (first->generation < second->generation);
}

/* A record that was exchanged while the entries were listed may be there twice. */
static void sort_entries(struct learned *learned)
{
    if (learned->entry_count == 0)
        return;
    qsort(learned->entries, learned->entry_count, sizeof(*learned->entries), by_generation);
    uint32_t kept = 1;
    for (uint32_t i = 1; i < learned->entry_count; i++) {
        if (learned->entries[i].generation != learned->entries[kept - 1].generation)
            learned->entries[kept++] = learned->entries[i];
    }
    learned->entry_count = kept;
}

static bool write_learned(void *context, int fd)
{
    const struct learned *learned = context;
    struct learned_head head = {.magic = LEARNED_MAGIC,
                                .version = LEARNED_VERSION,
                                .state_bytes = learned->state_bytes,
                                .entry_count = learned->entry_count,
                                .capacity_entries = learned->capacity_entries};
    head.check = check_of(&head, learned);
    return side_file_write(fd, &head, sizeof(head)) &&
           side_file_write(fd, learned->state, learned->state_bytes) &&
           side_file_write(fd, learned->entries,
                           sizeof(*learned->entries) * (size_t)learned->entry_count);
}

void learned_save(struct learned *learned, const char *directory)
{
    sort_entries(learned);
    side_file_replace(directory, "learned", write_learned, learned,
                      "eviction may have to learn anew");
}

uint64_t learned_recall(struct learned *learned, uint64_t generation)
{
    uint32_t low = learned->next;
    if (low > 0 && learned->entries[low - 1].generation >= generation)
        low = 0; /* not in order: looked for among all */
    uint32_t high = learned->entry_count;
    if (low < high && learned->entries[low].generation >= generation)
        high = low;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (learned->entries[middle].generation < generation)
            low = middle + 1;
        else
            high = middle;
    }
    learned->next = low;
    if (low == learned->entry_count || learned->entries[low].generation != generation)
        return 0;
    learned->next++;
    return learned->entries[low].recalled;
}
