/* SPDX-License-Identifier: Apache-2.0 */
/* recover_mark.c - marks that were read before all entries were known: which of them hold, of which
 * record, and what the index must learn of them.
 * Threads: the one that opens the store.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "storage/recover_priv.h"

int recovery_mark(struct recovery *recovery, const struct recovered_mark *mark)
{
    if (recovery->mark_count == recovery->mark_capacity) {
        uint32_t capacity = recovery->mark_capacity ? recovery->mark_capacity * 2 : 256;
        struct recovered_mark *marks =
            larder_realloc(recovery->marks, sizeof(*marks) * (size_t)capacity);
        if (!marks)
            return larder_fail(-ENOMEM, "recovery: no memory");
        recovery->marks = marks;
        recovery->mark_capacity = capacity;
    }
    recovery->marks[recovery->mark_count++] = *mark;
    return 0;
}

int recovery_marks(struct recovery *recovery, const struct larder_record *record)
{
    const struct larder_record_mark *marks = (const void *)larder_record_extra(record);
    uint32_t count = record->extra_bytes / (uint32_t)sizeof(*marks);
    for (uint32_t i = 0; i < count; i++) {
        if (!mark_is_valid(&marks[i].value))
            continue;
        if (marks[i].value.generation > recovery->generation)
            recovery->generation = marks[i].value.generation;
        struct recovered_mark mark = {.value = marks[i].value, .segment_id = record->segment_id};
        memcpy(mark.key.bytes, marks[i].key, sizeof(mark.key.bytes));
        LARDER_TRY(recovery_mark(recovery, &mark));
    }
    return 0;
}

int recovery_carry_marks(struct recovery *recovery, uint64_t generation, uint64_t since)
{
    if (since >= generation)
        return 0;
    if (recovery->carried_count == recovery->carried_capacity) {
        uint32_t capacity = recovery->carried_capacity ? recovery->carried_capacity * 2 : 256;
        struct carried_mark *carried =
            larder_realloc(recovery->carried, sizeof(*carried) * (size_t)capacity);
        if (!carried)
            return larder_fail(-ENOMEM, "recovery: no memory");
        recovery->carried = carried;
        recovery->carried_capacity = capacity;
    }
    recovery->carried[recovery->carried_count++] =
        (struct carried_mark){.generation = generation, .since = since};
    return 0;
}

static int compare_carried(const void *a, const void *b)
{
    uint64_t left = ((const struct carried_mark *)a)->generation;
    uint64_t right = ((const struct carried_mark *)b)->generation;
    return left < right ? -1 : left > right;
}

/* From which generation on a mark may be the entry's; as far back as this one wants to know. */
static uint64_t marked_since(const struct recovery *recovery, uint32_t id, uint64_t wanted)
{
    uint64_t since = table_entry(&recovery->store->table, id)->variant.generation;
    while (since > wanted && recovery->carried_count > 0) {
        const struct carried_mark key = {.generation = since};
        const struct carried_mark *found =
            bsearch(&key, recovery->carried, recovery->carried_count, sizeof(key), compare_carried);
        if (!found)
            break;
        since = found->since;
    }
    return since;
}

static int raise_marks(struct recovery *recovery)
{
    struct larder_store *store = recovery->store;
    for (uint32_t i = 0; i < recovery->mark_count; i++) {
        uint32_t id = table_find(&store->table, &recovery->marks[i].key);
        int raised = id == TABLE_NONE ? 0 : mark_raise(store, id);
        LARDER_TRY(raised);
        if (raised)
            LARDER_TRY(recovery_changed(recovery, &recovery->marks[i].key, CHANGED_MARK));
    }
    return 0;
}

int recovery_set_marks(struct recovery *recovery)
{
    struct larder_store *store = recovery->store;
    if (recovery->carried_count > 0)
        qsort(recovery->carried, recovery->carried_count, sizeof(*recovery->carried),
              compare_carried);
    for (uint32_t i = 0; i < recovery->mark_count; i++) {
        const struct recovered_mark *mark = &recovery->marks[i];
        uint32_t id = table_find(&store->table, &mark->key);
        int holds = id == TABLE_NONE
                        ? 0
                        : mark_recovered(store, id, &mark->value, mark->segment_id,
                                         marked_since(recovery, id, mark->value.generation));
        LARDER_TRY(holds);
        if (holds != mark->in_index)
            LARDER_TRY(recovery_changed(recovery, &mark->key, CHANGED_MARK));
    }
    mark_recovered_all(store);
    return raise_marks(recovery);
}
