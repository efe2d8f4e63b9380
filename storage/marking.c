/* SPDX-License-Identifier: Apache-2.0 */
/* marking.c - marks in the store: applied at once, then written behind what they are about.
 *
 * A pin holds its entry and all ancestors (ENTRY_HELD): they are not evicted, do not expire, and a
 * removal by request is refused. What has expired is a miss at once; larder_store_expire() removes
 * it, with all behind it, as a request would.
 *
 * On disk a mark is a record of its own, written in a group as everything else is. Of the marks of
 * a key the highest generation holds, and only for a record that is older than it: so a mark never
 * outlives its entry into another one of the same key, and an entry that is replaced has its mark
 * written again. A mark that says nothing takes the ones before it away, as a tombstone does an
 * entry; so a segment with marks stays until no older one is left (seglog.h, S2), and the marks of
 * the oldest one that still hold are written again before it goes.
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
/* Of one batch for the index. */
#define ROWS_MAX 400u

/* --- pins hold chains ------------------------------------------------------------------------- */

static struct mark *mark_of(const struct larder_store *store, uint32_t id)
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

static void run_write(struct larder_store *store, struct completion *completion)
{
    (void)store;
    struct mark_write *write = (struct mark_write *)completion;
    if (write->done)
        write->done(write->context, write->err);
    larder_free(write);
}

static struct mark_write *new_write(const struct larder_key *key)
{
    struct mark_write *write = larder_alloc_zero(1, sizeof(*write));
    if (!write)
        return NULL;
    write->completion.run = run_write;
    write->key = *key;
    return write;
}

static void queue_write_locked(struct larder_store *store, struct mark_write *write)
{
    write->next = NULL;
    *store->mark_queue_end = write;
    store->mark_queue_end = &write->next;
    store->mark_moves += write->is_moved;
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
    queue_write_locked(store, write);
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
        queue_write_locked(store, write);
    return 0;
}

void larder_store_mark(struct larder_store *store, uint32_t tenant, const struct larder_key *key,
                       const struct larder_mark *change, larder_put_done done, void *context)
{
    struct mark_write *write = NULL;
    bool durable = false;
    int err = mark_check(change);
    if (err == 0) {
        write = new_write(key);
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
    *out = new_write(&desc->key);
    return *out ? 0 : larder_fail(-ENOMEM, "marks: no memory");
}

void mark_published_locked(struct larder_store *store, uint32_t id, struct mark_write **write,
                           const struct larder_mark *change)
{
    id = table_primary(&store->table, id);
    if (change->fields == 0 && !mark_of(store, id))
        return;
    if (!*write)
        *write = new_write(&table_entry(&store->table, id)->key);
    if (!*write)
        return; /* an older mark of it ends with the daemon */
    (*write)->value = changed_value(store, id, change);
    if (mark_set_locked(store, id, &(*write)->value) < 0)
        return;
    queue_write_locked(store, *write);
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

/* --- to disk: storage thread ------------------------------------------------------------------ */

/* A record whose mark was not written may not be either: the mark that is on disk is older than it,
 * and would not hold for it. */
static void refuse_put_locked(struct larder_store *store, const struct mark_write *write, int err)
{
    for (struct larder_put *put = store->put_queue; put; put = put->next)
        if (larder_key_equal(&put->key, &write->key))
            put->refused = err;
}

static void finish_write_locked(struct larder_store *store, struct mark_write *write, int err)
{
    if (err < 0 && !write->is_moved)
        refuse_put_locked(store, write, err);
    write->err = err;
    store->mark_moves -= write->is_moved;
    store_complete_locked(store, &write->completion);
}

static struct mark_write *pop_write_locked(struct larder_store *store)
{
    struct mark_write *write = store->mark_queue;
    store->mark_queue = write->next;
    if (!store->mark_queue)
        store->mark_queue_end = &store->mark_queue;
    return write;
}

void mark_give_up_locked(struct larder_store *store, int err)
{
    while (store->mark_queue)
        finish_write_locked(store, pop_write_locked(store), err);
}

/* Its entry is there, and nothing newer was said of it if it is only moved. */
static bool is_wanted_locked(const struct larder_store *store, const struct mark_write *write)
{
    uint32_t id = table_find(&store->table, &write->key);
    if (id == TABLE_NONE || (table_entry(&store->table, id)->flags & ENTRY_DOOMED))
        return false;
    const struct mark *mark = mark_of(store, id);
    return !write->is_moved || (mark && mark->value.generation == write->value.generation);
}

/* What holds by now: changes that waited for one entry come in any order, and the index keeps what
 * it learned last. */
static void say_newest_locked(struct larder_store *store, struct mark_write *write)
{
    const struct mark *mark = mark_of(store, table_find(&store->table, &write->key));
    if (mark)
        write->value = mark->value;
    else if (!mark_is_empty(&write->value))
        write->value = (struct larder_mark_value){.generation = store->next_generation++,
                                                  .boot = store->clock.boot,
                                                  .epoch_s = store->clock.epoch_s};
}

static struct larder_record *new_record(struct larder_store *store)
{
    struct larder_record *record = larder_alloc_aligned(LARDER_PAGE_BYTES, LARDER_PAGE_BYTES);
    if (!record)
        return NULL;
    memset(record, 0, LARDER_PAGE_BYTES);
    record->magic = LARDER_RECORD_MAGIC;
    record->version = LARDER_RECORD_VERSION;
    record->type = LARDER_RECORD_MARK;
    record->tag_kind = LARDER_TAG_XXH3_128;
    record->record_bytes = LARDER_PAGE_BYTES;
    record->created_s = (uint64_t)time(NULL);
    record->generation = store->next_generation++;
    return record;
}

struct mark_batch *mark_take_batch_locked(struct larder_store *store)
{
    struct mark_batch *batch = larder_alloc_zero(1, sizeof(*batch));
    struct larder_record *record = new_record(store);
    if (!batch || !record) {
        larder_free(batch);
        larder_free(record);
        return NULL;
    }
    struct larder_record_mark *marks = (void *)(record + 1);
    struct mark_write **end = &batch->writes;
    while (store->mark_queue && batch->count < LARDER_MARKS_MAX) {
        struct mark_write *write = pop_write_locked(store);
        if (!is_wanted_locked(store, write)) {
            finish_write_locked(store, write, LARDER_ENOTFOUND);
            continue;
        }
        say_newest_locked(store, write);
        memcpy(marks[batch->count].key, write->key.bytes, sizeof(write->key.bytes));
        marks[batch->count].value = write->value;
        batch->count++;
        write->next = NULL;
        *end = write;
        end = &write->next;
    }
    struct larder_head_layout layout;
    record->extra_bytes = batch->count * (uint32_t)sizeof(*marks);
    larder_head_layout(&layout, record->extra_bytes, 0, 0, 0);
    record->head_bytes = layout.head_bytes;
    batch->append.record = record;
    batch->append.bytes = LARDER_PAGE_BYTES;
    return batch;
}

void mark_row_dead_locked(struct larder_store *store, uint32_t id)
{
    if (store->mark_row_count == store->mark_row_capacity) {
        uint32_t capacity = store->mark_row_capacity ? store->mark_row_capacity * 2 : 64;
        struct larder_key *rows = larder_realloc(store->mark_rows, sizeof(*rows) * capacity);
        if (!rows)
            return; /* it goes at the next start */
        store->mark_rows = rows;
        store->mark_row_capacity = capacity;
    }
    store->mark_rows[store->mark_row_count++] = table_entry(&store->table, id)->key;
}

void mark_forget_rows(struct larder_store *store)
{
    for (;;) {
        pthread_mutex_lock(&store->lock);
        bool any = store->mark_row_count > 0;
        pthread_mutex_unlock(&store->lock);
        struct batch *batch = any ? batch_new() : NULL;
        if (!batch)
            return;
        pthread_mutex_lock(&store->lock);
        while (store->mark_row_count > 0 && batch->count < ROWS_MAX) {
            const struct larder_key *key = &store->mark_rows[--store->mark_row_count];
            uint32_t id = table_find(&store->table, key);
            /* Stored again, and marked: its row is that of the new mark. */
            if (id == TABLE_NONE || !mark_of(store, id))
                batch_delete_mark(batch, key);
        }
        pthread_mutex_unlock(&store->lock);
        if (batch->count > 0)
            commit_add(store, batch);
        else
            larder_free(batch);
    }
}

void mark_note(struct batch *into, const struct mark_batch *batch, uint32_t segment_id)
{
    for (; batch; batch = batch->next) {
        for (const struct mark_write *write = batch->writes; write; write = write->next) {
            const struct index_mark row = {.value = write->value, .segment_id = segment_id};
            if (mark_is_empty(&write->value))
                batch_delete_mark(into, &write->key);
            else
                batch_put_mark(into, &write->key, &row);
        }
    }
}

void mark_batch_done_locked(struct larder_store *store, struct mark_batch *batch,
                            uint32_t segment_id, int err)
{
    while (batch->writes) {
        struct mark_write *write = batch->writes;
        batch->writes = write->next;
        uint32_t id = table_find(&store->table, &write->key);
        struct mark *mark = id != TABLE_NONE ? mark_of(store, id) : NULL;
        if (err == 0 && mark && mark->value.generation == write->value.generation)
            mark->segment_id = segment_id;
        finish_write_locked(store, write, err);
    }
}

/* --- segments that hold marks ----------------------------------------------------------------- */

void mark_count_homes_locked(struct larder_store *store)
{
    for (uint32_t i = 0; i < store->log.count; i++)
        store->log.segments[i]->mark_count = 0;
    uint32_t at = 0;
    for (const struct mark *mark; (mark = marks_next(&store->marks, &at));) {
        struct segment *segment =
            mark->segment_id ? seglog_find(&store->log, mark->segment_id) : NULL;
        if (segment)
            segment->mark_count++;
    }
}

void mark_move_out_locked(struct larder_store *store, uint32_t segment_id)
{
    if (store->mark_moves > 0)
        return;
    uint32_t at = 0;
    for (const struct mark *mark; (mark = marks_next(&store->marks, &at));) {
        if (mark->segment_id != segment_id)
            continue;
        struct mark_write *write = new_write(&table_entry(&store->table, mark->entry)->key);
        if (!write)
            return; /* the segment stays, and is looked at again */
        write->value = mark->value;
        write->is_moved = true;
        queue_write_locked(store, write);
    }
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
    mark->segment_id = segment_id;
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
    struct mark_write *write = new_write(&table_entry(&store->table, id)->key);
    if (!write)
        return larder_fail(-ENOMEM, "marks: no memory");
    mark->value.generation = store->next_generation++;
    write->value = mark->value;
    write->is_moved = true;
    queue_write_locked(store, write);
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
