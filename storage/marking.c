/* SPDX-License-Identifier: Apache-2.0 */
/* marking.c - marks in the store: applied at once, then written behind what they are about
 * (mark_disk.c).
 *
 * A pin holds its entry and all ancestors (ENTRY_HELD): they are not evicted, do not expire, and a
 * removal by request is refused. What has expired is a miss at once; larder_store_expire() removes
 * it, with all behind it, as a request would.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/mem.h"
#include "storage/store_priv.h"

/* What one call of larder_store_expire() looks at: the lock is held. */
#define EXPIRE_MAX 256u
/* A removal that could not be written is tried again after this. */
#define RETRY_S 60u

/* --- pins hold chains ------------------------------------------------------------------------- */

struct mark *mark_of(const struct larder_store *store, uint32_t id)
{
    if (!(table_entry(&store->table, id)->flags & ENTRY_MARKED))
        return NULL;
    return marks_find(&store->marks, id);
}

static void set_held_locked(struct larder_store *store, uint32_t id, bool held)
{
    struct entry *entry = table_entry(&store->table, id);
    stats_leave_locked(store, id);
    entry->flags = held ? entry->flags | ENTRY_HELD : entry->flags & (uint16_t)~ENTRY_HELD;
    stats_enter_locked(store, id);
    tiers_held_locked(store, id);
    /* It may have been over for long. */
    struct mark *mark = held ? NULL : mark_of(store, id);
    if (mark)
        marks_schedule(&store->marks, mark, mark_due_s(&mark->value, clock_now_s(&store->clock)));
}

static bool has_held_child(const struct larder_store *store, const struct entry *entry)
{
    uint32_t child = entry->first_child;
    while (child != TABLE_NONE) {
        const struct entry *below = table_entry(&store->table, child);
        if (below->flags & ENTRY_HELD)
            return true;
        child = below->next_sibling;
    }
    return false;
}

/* What the entry's own mark says of it and its ancestors. */
static void hold_locked(struct larder_store *store, uint32_t id)
{
    const struct mark *mark = mark_of(store, id);
    bool pinned = mark && mark_is_pinned(&mark->value, clock_now_s(&store->clock));
    const struct entry *entry = table_entry(&store->table, id);
    while (!(entry->flags & ENTRY_ROOT)) {
        bool held = pinned || has_held_child(store, entry);
        if (held == ((entry->flags & ENTRY_HELD) != 0))
            return;
        set_held_locked(store, id, held);
        id = entry->parent;
        entry = table_entry(&store->table, id);
        mark = mark_of(store, id);
        /* One that holds makes all above it hold. */
        pinned = held || (mark && mark_is_pinned(&mark->value, clock_now_s(&store->clock)));
    }
}

/* --- in memory -------------------------------------------------------------------------------- */

int mark_set_locked(struct larder_store *store, uint32_t id, const struct larder_mark_value *value)
{
    struct entry *entry = table_entry(&store->table, id);
    struct mark *mark = mark_of(store, id);
    if (mark_is_empty(value)) {
        if (mark)
            mark_forget_locked(store, id);
        return 0;
    }
    if (!mark)
        mark = marks_add(&store->marks, id);
    if (!mark)
        return larder_fail(-ENOMEM, "marks: no memory");
    entry->flags |= ENTRY_MARKED;
    bool weighs = mark->value.priority != value->priority;
    mark->value = *value;
    if (weighs)
        tiers_weigh_locked(store, id);
    marks_schedule(&store->marks, mark, mark_due_s(value, clock_now_s(&store->clock)));
    hold_locked(store, id);
    return 0;
}

void mark_forget_locked(struct larder_store *store, uint32_t id)
{
    struct entry *entry = table_entry(&store->table, id);
    struct mark *mark = mark_of(store, id);
    if (!mark)
        return;
    marks_remove(&store->marks, mark);
    entry->flags &= (uint16_t)~ENTRY_MARKED;
    hold_locked(store, id);
}

bool mark_expired_locked(const struct larder_store *store, uint32_t id)
{
    id = table_primary(&store->table, id);
    const struct mark *mark = mark_of(store, id);
    return mark && !(table_entry(&store->table, id)->flags & ENTRY_HELD) &&
           mark_is_over(&mark->value, clock_now_s(&store->clock));
}

int mark_priority_locked(const struct larder_store *store, uint32_t id)
{
    const struct mark *mark = mark_of(store, table_primary(&store->table, id));
    if (!mark)
        return 0;
    uint64_t end_s = mark->value.priority_expires_s;
    return end_s == 0 || end_s > clock_now_s(&store->clock) ? mark->value.priority : 0;
}

void mark_describe_locked(const struct larder_store *store, uint32_t id,
                          struct larder_entry_info *out)
{
    id = table_primary(&store->table, id);
    out->held = (table_entry(&store->table, id)->flags & ENTRY_HELD) != 0;
    const struct mark *mark = mark_of(store, id);
    if (!mark)
        return;
    out->pinned = mark_is_pinned(&mark->value, clock_now_s(&store->clock));
    out->pin_expires_s = out->pinned ? mark->value.pin_expires_s : 0;
    out->expires_s = mark->value.expires_s;
    out->priority = (int8_t)mark_priority_locked(store, id);
    out->priority_expires_s = out->priority ? mark->value.priority_expires_s : 0;
}

/* --- changes ---------------------------------------------------------------------------------- */

static int check_seconds(const char *name, uint64_t seconds)
{
    if (seconds > LARDER_MARK_SECONDS_MAX)
        return larder_fail(LARDER_ELIMIT, "%s of %llu seconds is above %llu; 0 is without end",
                           name, (unsigned long long)seconds,
                           (unsigned long long)LARDER_MARK_SECONDS_MAX);
    return 0;
}

int mark_check(const struct larder_mark *mark)
{
    const uint32_t both = LARDER_MARK_PIN | LARDER_MARK_UNPIN;
    if (mark->fields & ~(both | LARDER_MARK_TTL | LARDER_MARK_PRIORITY) ||
        (mark->fields & both) == both)
        return larder_fail(-EINVAL, "mark: fields=%#x is unknown, or pins and unpins",
                           mark->fields);
    if (mark->priority < -LARDER_PRIORITY_MAX || mark->priority > LARDER_PRIORITY_MAX)
        return larder_fail(LARDER_ELIMIT, "priority=%d is not %d to %d", mark->priority,
                           -LARDER_PRIORITY_MAX, LARDER_PRIORITY_MAX);
    LARDER_TRY(check_seconds("pin", mark->pin_s));
    LARDER_TRY(check_seconds("ttl", mark->ttl_s));
    return check_seconds("priority", mark->priority_s);
}

static uint64_t end_of(uint64_t now_s, uint64_t seconds)
{
    return seconds ? now_s + seconds : 0;
}

/* What the entry's mark is after the change. */
static struct larder_mark_value changed_value(struct larder_store *store, uint32_t id,
                                              const struct larder_mark *change)
{
    const struct mark *mark = mark_of(store, id);
    struct larder_mark_value value = mark ? mark->value : (struct larder_mark_value){0};
    uint64_t now_s = clock_now_s(&store->clock);
    value.pinned = mark_is_pinned(&value, now_s);
    if (change->fields & (LARDER_MARK_PIN | LARDER_MARK_UNPIN)) {
        value.pinned = (change->fields & LARDER_MARK_PIN) != 0;
        value.pin_expires_s = value.pinned ? end_of(now_s, change->pin_s) : 0;
    }
    if (change->fields & LARDER_MARK_TTL)
        value.expires_s = end_of(now_s, change->ttl_s);
    if (change->fields & LARDER_MARK_PRIORITY) {
        value.priority = (int8_t)change->priority;
        value.priority_expires_s = change->priority ? end_of(now_s, change->priority_s) : 0;
    }
    value.generation = store->next_generation++;
    value.boot = store->clock.boot;
    value.epoch_s = store->clock.epoch_s;
    return value;
}

/* Its entry became durable, or will not. */
static void entry_is_durable(void *context, int err)
{
    struct mark_write *write = context;
    struct larder_store *store = write->store;
    if (err < 0) {
        write->done(write->context, err);
        larder_free(write);
        return;
    }
    pthread_mutex_lock(&store->lock);
    mark_queue_locked(store, write);
    pthread_mutex_unlock(&store->lock);
    store_wake(store);
}

/* The change is made in memory; `write` carries it to disk. */
static int apply_locked(struct larder_store *store, struct mark_write *write, uint32_t tenant,
                        const struct larder_mark *change, bool *durable)
{
    uint32_t id = table_find(&store->table, &write->key);
    if (!find_sees(store, id, tenant))
        return larder_fail(LARDER_ENOTFOUND, "no entry of this key is stored");
    if (store->read_only)
        return larder_fail(LARDER_EREADONLY, "store is read-only after a failed sync; restart it");
    write->value = changed_value(store, id, change);
    LARDER_TRY(mark_set_locked(store, id, &write->value));
    *durable = (table_entry(&store->table, id)->flags & ENTRY_DURABLE) != 0;
    if (*durable)
        mark_queue_locked(store, write);
    return 0;
}

void larder_store_mark(struct larder_store *store, uint32_t tenant, const struct larder_key *key,
                       const struct larder_mark *change, larder_put_done done, void *context)
{
    struct mark_write *write = NULL;
    bool durable = false;
    int err = mark_check(change);
    if (err == 0) {
        write = mark_new_write(key, tenant);
        err = write ? 0 : larder_fail(-ENOMEM, "marks: no memory");
    }
    if (err == 0) {
        write->store = store;
        write->done = done;
        write->context = context;
        pthread_mutex_lock(&store->lock);
        err = apply_locked(store, write, tenant, change, &durable);
        pthread_mutex_unlock(&store->lock);
    }
    if (err < 0) {
        larder_free(write);
        done(context, err);
    } else if (durable) {
        store_wake(store);
    } else {
        larder_store_when(store, tenant, key, LARDER_QUALITY_BLENDED, LARDER_DURABLE,
                          entry_is_durable, write);
    }
}

int mark_prepare_put(struct mark_write **out, const struct larder_put_desc *desc, bool marked)
{
    *out = NULL;
    LARDER_TRY(mark_check(&desc->mark));
    if (desc->mark.fields == 0 && !marked)
        return 0;
    *out = mark_new_write(&desc->key, desc->tenant);
    return *out ? 0 : larder_fail(-ENOMEM, "marks: no memory");
}

void mark_published_locked(struct larder_store *store, uint32_t id, struct mark_write **write,
                           const struct larder_mark *change)
{
    id = table_primary(&store->table, id);
    if (change->fields == 0 && !mark_of(store, id))
        return;
    if (!*write)
        *write = mark_new_write(&table_entry(&store->table, id)->key,
                                table_entry(&store->table, id)->tenant);
    if (!*write)
        return; /* an older mark of it ends with the daemon */
    (*write)->is_before_put = true;
    (*write)->value = changed_value(store, id, change);
    if (mark_set_locked(store, id, &(*write)->value) < 0)
        return;
    mark_queue_locked(store, *write);
    *write = NULL;
}

/* --- expiry ----------------------------------------------------------------------------------- */

/* The highest of its ancestors that are over too goes, with all below it. */
static uint32_t top_of_expired(const struct larder_store *store, uint32_t id)
{
    uint32_t top = id;
    for (; !(table_entry(&store->table, id)->flags & ENTRY_ROOT);
         id = table_entry(&store->table, id)->parent) {
        if (mark_expired_locked(store, id))
            top = id;
    }
    return top;
}

static void expire_locked(struct larder_store *store, struct mark *mark, uint64_t now_s)
{
    uint32_t id = mark->entry;
    uint64_t due_s = now_s + RETRY_S;
    if (!mark_is_over(&mark->value, now_s))
        due_s = mark_due_s(&mark->value, now_s);
    marks_schedule(&store->marks, mark, due_s);
    hold_locked(store, id); /* its own pin may be over */
    const struct entry *entry = table_entry(&store->table, id);
    if (entry->flags & ENTRY_HELD) {
        /* Looked at again when it is let go, or when its own pin ends. */
        mark = marks_find(&store->marks, id);
        due_s = mark->value.pin_expires_s > now_s ? mark->value.pin_expires_s : 0;
        marks_schedule(&store->marks, mark, due_s);
    } else if (mark_expired_locked(store, id) && !(entry->flags & ENTRY_DOOMED)) {
        remove_expired_locked(store, top_of_expired(store, id));
    }
}

void larder_store_expire(struct larder_store *store)
{
    uint32_t count = 0;
    pthread_mutex_lock(&store->lock);
    uint64_t now_s = clock_now_s(&store->clock);
    struct mark *mark;
    while (!store->read_only && count < EXPIRE_MAX && (mark = marks_due(&store->marks, now_s))) {
        expire_locked(store, mark, now_s);
        count++;
    }
    pthread_mutex_unlock(&store->lock);
    if (count > 0)
        store_wake(store);
}

/* --- start ------------------------------------------------------------------------------------ */

/* Times by another life's clock, as this life's clock reads them. */
static void read_times(const struct clock *clock, struct larder_mark_value *value)
{
    if (value->boot != 0 && value->boot == clock->boot) {
        uint64_t *times[] = {&value->expires_s, &value->pin_expires_s, &value->priority_expires_s};
        for (unsigned i = 0; i < LARDER_COUNT_OF(times); i++) {
            if (*times[i] == 0)
                continue;
            uint64_t since_boot_s = *times[i] > value->epoch_s ? *times[i] - value->epoch_s : 0;
            *times[i] = clock->epoch_s + since_boot_s;
        }
    }
    value->boot = clock->boot;
    value->epoch_s = clock->epoch_s;
}

int mark_recovered(struct larder_store *store, uint32_t id, const struct larder_mark_value *stored,
                   uint32_t segment_id, uint64_t since)
{
    struct entry *entry = table_entry(&store->table, id);
    struct mark *mark = mark_of(store, id);
    if (stored->generation < since || (mark && mark->value.generation >= stored->generation))
        return 0;
    if (!mark)
        mark = marks_add(&store->marks, id);
    if (!mark)
        return larder_fail(-ENOMEM, "marks: no memory");
    entry->flags |= ENTRY_MARKED;
    mark->value = *stored;
    marks_settle(&store->marks, mark, segment_id);
    read_times(&store->clock, &mark->value);
    return 1;
}

void mark_recovered_all(struct larder_store *store)
{
    uint32_t at = 0;
    for (struct mark *mark; (mark = marks_next(&store->marks, &at));) {
        struct larder_mark_value value = mark->value;
        uint32_t id = mark->entry;
        (void)mark_set_locked(store, id, &value); /* it has its memory */
    }
}

int mark_raise(struct larder_store *store, uint32_t id)
{
    struct mark *mark = mark_of(store, id);
    if (!mark || mark->value.generation >= table_entry(&store->table, id)->variant.generation)
        return 0;
    struct mark_write *write = mark_new_write(&table_entry(&store->table, id)->key,
                                              table_entry(&store->table, id)->tenant);
    if (!write)
        return larder_fail(-ENOMEM, "marks: no memory");
    mark->value.generation = store->next_generation++;
    write->value = mark->value;
    write->is_moved = true;
    mark_queue_locked(store, write);
    return 1;
}

bool mark_stored_locked(const struct larder_store *store, uint32_t id, struct index_mark *out)
{
    const struct mark *mark = mark_of(store, id);
    if (!mark || mark_is_empty(&mark->value))
        return false;
    *out = (struct index_mark){.value = mark->value, .segment_id = mark->segment_id};
    return true;
}
