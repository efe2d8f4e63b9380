/* SPDX-License-Identifier: Apache-2.0 */
/* load.c - reading records from SSD: into slots for leases, or into a buffer to verify them.
 *
 * Reads of LARDER_IO_BYTES_MAX run in parallel over all loads, oldest load first. As a record's
 * leading bytes arrive, its head is checked against what the index says, then section after section
 * against its tag, and published. Small records that lie side by side are read with one request.
 * One load serves every lease that wants the entry; one that wants other layers makes it longer. A
 * load that nobody wants any more ends with what is in flight, and its slot is dropped.
 *
 * Threads: loads are queued by any thread and run by the storage thread. Between being queued and
 * being finished a load is only touched by the storage thread, but for its list links, its waiters,
 * `wanted` and `keep`, which are under the lock.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "base/mem.h"
#include "storage/planted.h"
#include "storage/store_priv.h"
#include "storage/tag.h"

struct load *load_new(const struct entry *entry, uint32_t slot, struct host_layers wanted)
{
    uint64_t bytes = (uint64_t)entry->variant.record_pages * LARDER_PAGE_BYTES;
    uint32_t chunks = (uint32_t)((bytes + LARDER_IO_BYTES_MAX - 1) / LARDER_IO_BYTES_MAX);
    struct load *load = larder_alloc_zero(1, sizeof(*load) + chunks);
    if (!load)
        return NULL;
    load->slot = slot;
    load->key = entry->key;
    load->variant = entry->variant;
    load->number = entry->number;
    load->bytes = bytes;
    load->chunk_count = chunks;
    load->wanted = wanted;
    load->stage_end = host_layers_are_all(wanted)
                          ? bytes
                          : larder_round_up(entry->variant.head_bytes, LARDER_PAGE_BYTES);
    load->extends = HOST_NONE;
    return load;
}

void load_resume(struct load *load)
{
    const struct larder_slot *shared = load->shared;
    load->head_good = true;
    load->section_first = atomic_load_explicit(&shared->first_section, memory_order_relaxed);
    load->section_end = atomic_load_explicit(&shared->published_sections, memory_order_relaxed);
    load->section_next = load->section_stop = load->section_end;
    load->stage_end = 0;
}

void load_queue_locked(struct larder_store *store, struct load *load)
{
    load->store = store;
    load->next = NULL;
    load->prev = store->loads_end;
    if (store->loads_end)
        store->loads_end->next = load;
    else
        store->loads = load;
    store->loads_end = load;
}

static void unlink_load_locked(struct larder_store *store, struct load *load)
{
    if (load->prev)
        load->prev->next = load->next;
    else
        store->loads = load->next;
    if (load->next)
        load->next->prev = load->prev;
    else
        store->loads_end = load->prev;
}

bool load_takes_dead_locked(struct larder_store *store, const struct dead_extent *extent)
{
    for (struct load *load = store->loads; load; load = load->next) {
        if (load->variant.segment_id == extent->segment_id &&
            load->variant.segment_page == extent->segment_page && !load->dead) {
            load->dead = true;
            store->dying_bytes += load->bytes;
            return true;
        }
    }
    return false;
}

bool load_idle(const struct larder_store *store)
{
    return store->loads == NULL;
}

/* --- what to read next ------------------------------------------------------------------------ */

/* A load goes in stages: runs of pages that are read together. All layers: one stage, the record.
 * Some layers: the head, which says where their sections lie; then those. Pages that were read are
 * never read again, for readers may be in them. */
static void set_stage(struct load *load, uint64_t from, uint64_t end)
{
    load->stage_from = load->submitted = load->reached = from;
    load->stage_end = larder_max_u64(from, end);
    memset(load->arrived, 0, load->chunk_count);
}

static uint64_t head_end(const struct load *load)
{
    return larder_round_up(load->variant.head_bytes, LARDER_PAGE_BYTES);
}

/* The pages of sections first to end - 1, but those of the head. */
static uint64_t first_page_of(const struct load *load, const struct larder_section *sections,
                              uint32_t first)
{
    uint64_t from = sections[first].offset / LARDER_PAGE_BYTES * LARDER_PAGE_BYTES;
    return larder_max_u64(from, head_end(load));
}

static uint64_t last_page_of(const struct load *load, const struct larder_section *sections,
                             uint32_t end)
{
    uint64_t to = sections[end - 1].offset + sections[end - 1].bytes;
    return larder_max_u64(larder_round_up(to, LARDER_PAGE_BYTES), head_end(load));
}

/* The sections that hold something of these layers, and all between them. */
static void sections_of(const struct load *load, struct host_layers layers, uint32_t *first,
                        uint32_t *end)
{
    const struct larder_record *record = load->buffer;
    const struct larder_section *sections = larder_record_directory(record);
    *first = *end = 0;
    for (uint32_t i = 0; i < record->section_count; i++) {
        if (sections[i].layer_first >= layers.end ||
            sections[i].layer_first + sections[i].layer_count <= layers.first)
            continue;
        if (*end == 0)
            *first = i;
        *end = i + 1;
    }
}

/* Sets the next stage towards these layers; false: they are all there. */
static bool plan_stage(struct load *load, struct host_layers layers)
{
    const struct larder_section *sections = larder_record_directory(load->buffer);
    uint32_t first;
    uint32_t end;
    sections_of(load, layers, &first, &end);
    if (first == end)
        return false;
    if (load->section_first == load->section_end) {
        load->section_first = load->section_end = first;
        if (load->shared)
            atomic_store_explicit(&load->shared->first_section, first, memory_order_relaxed);
        load->section_next = first;
        load->section_stop = end;
        set_stage(load, first_page_of(load, sections, first), last_page_of(load, sections, end));
        return true;
    }
    if (end > load->section_end) {
        load->section_next = load->section_end;
        load->section_stop = end;
        set_stage(load, last_page_of(load, sections, load->section_end),
                  last_page_of(load, sections, end));
        return true;
    }
    if (first < load->section_first) {
        load->section_next = load->section_from = first;
        load->section_stop = load->section_first;
        set_stage(load, first_page_of(load, sections, first),
                  first_page_of(load, sections, load->section_first));
        return true;
    }
    return false;
}

/* --- verification of what arrived ------------------------------------------------------------- */

static int check_head(const struct load *load)
{
    struct larder_record *record = load->buffer;
    const struct entry_variant *variant = &load->variant;
    int err = tag_open_head(load->store->seal, record, variant->head_bytes);
    if (err == -EAGAIN)
        return larder_fail(LARDER_ECORRUPT, "record: head of %u bytes, the index says %u",
                           record->head_bytes, variant->head_bytes);
    if (err < 0 && err != -ENOMEM)
        return LARDER_ECORRUPT; /* an unknown version too: the segment said which it holds */
    LARDER_TRY(err);
    if (record->type != LARDER_RECORD_ENTRY || record->head_bytes != variant->head_bytes ||
        record->record_bytes != (uint64_t)variant->record_pages * LARDER_PAGE_BYTES ||
        record->variant != load->number || record->generation != variant->generation ||
        record->segment_id != variant->segment_id ||
        record->segment_page != variant->segment_page ||
        memcmp(record->key, load->key.bytes, sizeof(record->key)) != 0)
        return larder_fail(LARDER_ECORRUPT, "record: not the one that the index names");
    return 0;
}

/* Sections in front of those that are there already are published together, by where they begin;
 * all others one by one, by where they end. */
static void publish(struct load *load)
{
    if (load->section_next > load->section_end) {
        load->section_end = load->section_next;
        if (load->shared)
            atomic_store_explicit(&load->shared->published_sections, load->section_end,
                                  memory_order_release);
    } else if (load->section_next == load->section_first) {
        load->section_first = load->section_from;
        if (load->shared)
            atomic_store_explicit(&load->shared->first_section, load->section_first,
                                  memory_order_release);
    }
}

static void advance(struct load *load)
{
    if (load->err < 0)
        return;
    struct larder_record *record = load->buffer;
    if (!load->head_good) {
        if (load->reached < load->variant.head_bytes)
            return;
        load->err = check_head(load);
        if (load->err < 0)
            return;
        load->head_good = true;
        if (load->stage_end == record->record_bytes)
            load->section_stop = record->section_count;
    }
    const struct larder_section *sections = larder_record_directory(record);
    while (load->section_next < load->section_stop) {
        const struct larder_section *section = &sections[load->section_next];
        if (section->offset + section->bytes > load->reached && load->reached < load->stage_end)
            return;
        load->err = tag_open_section(load->store->seal, record, load->section_next);
        if (load->err < 0)
            return;
        load->section_next++;
        publish(load);
    }
}

/* --- the end of a load ------------------------------------------------------------------------ */

static void tell_waiters_locked(struct larder_store *store, struct load *load)
{
    while (load->waiters) {
        struct lease_ref *ref = load->waiters;
        load->waiters = ref->next;
        lease_ref_done_locked(store, ref, load->err);
    }
}

static void drop_corrupt_locked(struct larder_store *store, const struct load *load)
{
    char hex[17];
    larder_hex(hex, load->key.bytes, 8);
    larder_log(LARDER_LOG_ERROR, "entry %s... in segment %u at page %u is damaged (%s); dropped",
               hex, load->variant.segment_id, load->variant.segment_page, larder_error_message());
    store->stats.corrupt++;
    uint32_t primary = table_find(&store->table, &load->key);
    if (primary == TABLE_NONE)
        return;
    store->tenants[table_entry(&store->table, primary)->tenant].stats.corrupt++;
    /* Replaced meanwhile: the new record is another. Moved: the copy was good. */
    uint32_t id = variant_of_generation(store, &load->key, load->variant.generation);
    if (id == TABLE_NONE)
        return;
    const struct entry_variant *now = &table_entry(&store->table, id)->variant;
    if (now->segment_id == 0 || (now->segment_id == load->variant.segment_id &&
                                 now->segment_page == load->variant.segment_page))
        remove_corrupt_locked(store, id);
}

static void end_slot_locked(struct larder_store *store, struct load *load)
{
    struct host_slot *slot = host_slot(&store->host, load->slot);
    slot->load = NULL;
    if (load->err == 0) {
        const struct larder_record *record = load->buffer;
        bool whole = load->section_first == 0 && load->section_end == record->section_count;
        slot->layers = whole ? HOST_LAYERS_ALL : load->wanted;
        if (slot->state == HOST_SLOT_FILLING)
            host_ready(&store->host, load->slot);
    } else {
        atomic_store_explicit(&slot->shared->failed, load->err, memory_order_release);
        if (!slot->dropped)
            evict_detach_slot_locked(store, slot->entry);
    }
    tell_waiters_locked(store, load);
    host_unpin(&store->host, load->slot);
}

/* Do the tokens of the record that was read begin those of the longer one? */
static bool is_prefix(const struct larder_record *shorter, const struct larder_record *longer)
{
    return shorter->token_count > 0 && shorter->token_count < longer->token_count &&
           shorter->extra_bytes == longer->extra_bytes &&
           memcmp(larder_record_extra(shorter), larder_record_extra(longer),
                  shorter->extra_bytes) == 0 &&
           memcmp(larder_record_tokens(shorter), larder_record_tokens(longer),
                  sizeof(uint32_t) * shorter->token_count) == 0;
}

static void end_tail_check_locked(struct larder_store *store, struct load *load)
{
    uint32_t id = variant_of_generation(store, &load->key, load->variant.generation);
    if (load->head_good && id != TABLE_NONE &&
        is_prefix(load->buffer, host_record(&store->host, load->extends)))
        remove_tail_locked(store, table_primary(&store->table, id));
    host_unpin(&store->host, load->extends);
}

/* More layers may have been asked for meanwhile: then the next stage is set, and it is not over. */
static bool is_over_locked(struct load *load)
{
    if (load->err < 0 || load->slot == HOST_NONE)
        return true;
    while (plan_stage(load, load->wanted)) {
        advance(load);
        if (load->err < 0)
            return true;
        if (load->submitted < load->stage_end)
            return false;
    }
    return true;
}

static void finish_if_over(struct larder_store *store, struct load *load)
{
    if (load->in_flight > 0 || (load->err == 0 && load->reached < load->stage_end))
        return;
    pthread_mutex_lock(&store->lock);
    if (!is_over_locked(load)) {
        pthread_mutex_unlock(&store->lock);
        return;
    }
    unlink_load_locked(store, load);
    if (load->segment)
        load->segment->users--;
    store->stats.bytes_read += load->read_bytes;
    if (load->err == LARDER_ECORRUPT)
        drop_corrupt_locked(store, load);
    if (load->slot != HOST_NONE)
        end_slot_locked(store, load);
    if (load->extends != HOST_NONE)
        end_tail_check_locked(store, load);
    if (load->dead) {
        store->dying_bytes -= load->bytes;
        writer_extent_dead_locked(store, &load->variant);
    }
    if (load->move)
        move_read_locked(store, load);
    if (load->slot == HOST_NONE)
        larder_free(load->buffer);
    if (load->done)
        store_complete_locked(store, &load->completion);
    else
        larder_free(load);
    pthread_mutex_unlock(&store->lock);
}

/* --- reading ---------------------------------------------------------------------------------- */

static void give_request(struct larder_store *store, struct load_request *request)
{
    if (request->merged)
        store->merge_buffers[store->merge_buffer_count++] = request->merged;
    request->merged = NULL;
    request->next = store->free_load_requests;
    store->free_load_requests = request;
}

/* When it failed, each is read again alone: then it is known which of them it is. */
static void merged_done(struct larder_store *store, struct load_request *request)
{
    const uint8_t *at = request->merged;
    for (uint32_t i = 0; i < request->load_count; i++) {
        struct load *load = request->loads[i];
        load->in_flight--;
        if (request->io.result < 0) {
            load->alone = true;
            load->submitted = load->stage_from;
        } else {
            memcpy(load->buffer, at, load->bytes);
            load->read_bytes += load->bytes;
            load->reached = load->stage_end;
            advance(load);
        }
        at += load->bytes;
        finish_if_over(store, load);
    }
    give_request(store, request);
}

static void read_done(struct larder_io_request *io)
{
    struct load_request *request = (struct load_request *)io;
    struct load *load = request->load;
    struct larder_store *store = load->store;
    if (io->result < 0 && io->result != -ENODATA && !request->retried) {
        request->retried = true;
        store->io->ops->submit(store->io, io);
        return;
    }
    if (request->merged) {
        merged_done(store, request);
        return;
    }
    load->in_flight--;
    if (io->result == -ENODATA) {
        load->err = load->err < 0 ? load->err
                                  : larder_fail(LARDER_ECORRUPT, "segment %u ends within a record",
                                                load->variant.segment_id);
    } else if (io->result < 0) {
        load->err = load->err < 0 ? load->err : io->result;
        pthread_mutex_lock(&store->lock);
        store->stats.io_errors++;
        pthread_mutex_unlock(&store->lock);
    } else {
        uint64_t from = (uint64_t)load->variant.segment_page * LARDER_PAGE_BYTES + load->stage_from;
        load->read_bytes += io->bytes;
        load->arrived[(io->offset - from) / LARDER_IO_BYTES_MAX] = 1;
        while (load->reached < load->stage_end &&
               load->arrived[(load->reached - load->stage_from) / LARDER_IO_BYTES_MAX])
            load->reached = larder_min_u64(load->reached + LARDER_IO_BYTES_MAX, load->stage_end);
        advance(load);
    }
    give_request(store, request);
    finish_if_over(store, load);
}

/* A planted bug: readers are let in before the bytes are there. */
static void publish_early(struct larder_store *store, struct load *load)
{
    if (load->slot == HOST_NONE)
        return;
    pthread_mutex_lock(&store->lock);
    atomic_store_explicit(&load->shared->published_sections, LARDER_SECTIONS_MAX,
                          memory_order_release);
    tell_waiters_locked(store, load);
    pthread_mutex_unlock(&store->lock);
}

static void start(struct larder_store *store, struct load *load)
{
    uint64_t end = (uint64_t)load->variant.segment_page * LARDER_PAGE_BYTES + load->bytes;
    load->segment = seglog_find(&store->log, load->variant.segment_id);
    if (!load->segment || end > load->segment->end_bytes) {
        load->segment = NULL;
        load->err = larder_fail(LARDER_ECORRUPT, "segment %u is missing or too short",
                                load->variant.segment_id);
        return;
    }
    if (load->move && !move_is_wanted(store, load->move, load->segment)) {
        load->segment = NULL;
        load->err = -EALREADY;
        return;
    }
    load->segment->users++;
    if (!load->buffer)
        load->buffer = larder_alloc_aligned(LARDER_PAGE_BYTES, load->bytes);
    if (!load->buffer)
        load->err = -ENOMEM;
    else if (LARDER_PLANT(EARLY_PUBLISH))
        publish_early(store, load);
}

static void submit_next(struct larder_store *store, struct load *load)
{
    struct load_request *request = store->free_load_requests;
    store->free_load_requests = request->next;
    uint32_t bytes =
        (uint32_t)larder_min_u64(load->stage_end - load->submitted, LARDER_IO_BYTES_MAX);
    request->load = load;
    request->retried = false;
    request->io = (struct larder_io_request){
        .op = LARDER_IO_READ,
        .file = load->segment->file,
        .buffer = (uint8_t *)load->buffer + load->submitted,
        .offset = (uint64_t)load->variant.segment_page * LARDER_PAGE_BYTES + load->submitted,
        .bytes = bytes,
        .done = read_done,
    };
    load->submitted += bytes;
    load->in_flight++;
    store->io->ops->submit(store->io, &request->io);
}

/* Nobody waits for it, holds its slot or wanted it ahead of time. */
static bool is_unwanted_locked(const struct larder_store *store, const struct load *load)
{
    return load->slot != HOST_NONE && !load->keep && !load->waiters &&
           host_slot(&store->host, load->slot)->leases == 0;
}

/* All of a small record, of which nothing was asked for yet. */
static bool may_merge(const struct load *load)
{
    return !load->alone && load->err == 0 && load->slot != HOST_NONE && load->submitted == 0 &&
           load->in_flight == 0 && load->stage_end == load->bytes &&
           load->bytes <= MERGE_RECORD_BYTES_MAX;
}

/* Loads behind this one in the list, whose records follow its record on SSD. */
static void gather_neighbours(struct larder_store *store, struct load_request *request)
{
    uint64_t bytes = request->loads[0]->bytes;
    pthread_mutex_lock(&store->lock);
    struct load *last = request->loads[0];
    for (struct load *load = last->next; load && request->load_count < MERGE_RECORDS_MAX;
         last = load, load = load->next) {
        bytes += load->bytes;
        if (load->started || !may_merge(load) || is_unwanted_locked(store, load) ||
            load->variant.segment_id != last->variant.segment_id ||
            load->variant.segment_page != last->variant.segment_page + last->variant.record_pages ||
            bytes > LARDER_IO_BYTES_MAX)
            break;
        request->loads[request->load_count++] = load;
    }
    pthread_mutex_unlock(&store->lock);
}

/* Reads it and its neighbours with one request; false when there are none. */
static bool submit_merged(struct larder_store *store, struct load *load)
{
    struct load_request *request = store->free_load_requests;
    if (store->merge_buffer_count == 0 || !may_merge(load))
        return false;
    request->load = load;
    request->loads[0] = load;
    request->load_count = 1;
    gather_neighbours(store, request);
    uint64_t bytes = load->bytes;
    for (uint32_t i = 1; i < request->load_count; i++) {
        struct load *next = request->loads[i];
        start(store, next);
        next->started = true;
        if (next->err < 0) {
            /* It and those behind it have their own turn; its end is met there. */
            request->load_count = i;
            finish_if_over(store, next);
            break;
        }
        bytes += next->bytes;
    }
    if (request->load_count == 1)
        return false;
    for (uint32_t i = 0; i < request->load_count; i++) {
        request->loads[i]->submitted = request->loads[i]->stage_end;
        request->loads[i]->in_flight++;
    }
    store->free_load_requests = request->next;
    request->merged = store->merge_buffers[--store->merge_buffer_count];
    request->retried = true; /* alone, each gets its second attempt */
    request->io = (struct larder_io_request){
        .op = LARDER_IO_READ,
        .file = load->segment->file,
        .buffer = request->merged,
        .offset = (uint64_t)load->variant.segment_page * LARDER_PAGE_BYTES,
        .bytes = (uint32_t)bytes,
        .done = read_done,
    };
    store->io->ops->submit(store->io, &request->io);
    return true;
}

/* Whoever wants the entry from here on reads it anew, into another slot. */
static void give_up_locked(struct larder_store *store, struct load *load)
{
    const struct host_slot *slot = host_slot(&store->host, load->slot);
    load->err = -ECANCELED;
    if (!slot->dropped)
        evict_detach_slot_locked(store, slot->entry);
}

/* The oldest load that has something left to submit, or that is given up here. */
static struct load *next_load(struct larder_store *store)
{
    pthread_mutex_lock(&store->lock);
    struct load *load = store->loads;
    while (load && load->started && (load->err < 0 || load->submitted == load->stage_end))
        load = load->next;
    if (load && is_unwanted_locked(store, load))
        give_up_locked(store, load);
    pthread_mutex_unlock(&store->lock);
    return load;
}

void load_pump(struct larder_store *store)
{
    while (store->free_load_requests) {
        struct load *load = next_load(store);
        if (!load)
            return;
        if (!load->started && load->err == 0)
            start(store, load);
        load->started = true;
        if (load->err == 0 && submit_merged(store, load))
            continue;
        while (load->err == 0 && load->submitted < load->stage_end && store->free_load_requests)
            submit_next(store, load);
        if (load->err < 0 || load->submitted == load->stage_end)
            finish_if_over(store, load);
    }
}

/* --- verification by request ------------------------------------------------------------------ */

static void run_verify(struct larder_store *store, struct completion *completion)
{
    (void)store;
    struct load *load = (struct load *)completion;
    load->done(load->context, load->err);
    larder_free(load);
}

void larder_store_verify(struct larder_store *store, const struct larder_key *key, uint32_t variant,
                         larder_put_done done, void *context)
{
    int err = LARDER_ENOTFOUND;
    pthread_mutex_lock(&store->lock);
    uint32_t id = table_find_variant(&store->table, key, variant);
    const struct entry *entry = id != TABLE_NONE ? table_entry(&store->table, id) : NULL;
    if (entry && find_sees(store, id, entry->tenant) && entry->variant.segment_id != 0) {
        struct load *load = load_new(entry, HOST_NONE, HOST_LAYERS_ALL);
        err = load ? 0 : -ENOMEM;
        if (load) {
            load->completion.run = run_verify;
            load->done = done;
            load->context = context;
            load_queue_locked(store, load);
        }
    }
    pthread_mutex_unlock(&store->lock);
    if (err < 0)
        done(context, err);
    else
        store_wake(store);
}

void load_check_tail_locked(struct larder_store *store, uint32_t tail, uint32_t slot)
{
    const struct entry *entry = table_entry(&store->table, tail);
    if (entry->slot != HOST_NONE &&
        host_slot(&store->host, entry->slot)->state == HOST_SLOT_READY) {
        if (is_prefix(host_record(&store->host, entry->slot), host_record(&store->host, slot)))
            remove_tail_locked(store, tail);
        return;
    }
    /* Never without having compared. Without memory it stays, which costs only its space. */
    struct load *load = load_new(entry, HOST_NONE, HOST_LAYERS_ALL);
    if (!load)
        return;
    load->stage_end = larder_round_up(entry->variant.head_bytes, LARDER_PAGE_BYTES);
    load->extends = slot;
    host_slot(&store->host, slot)->pins++;
    load_queue_locked(store, load);
}
