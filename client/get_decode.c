/* SPDX-License-Identifier: Apache-2.0 */
/* From slots to the engine's memory: heads are checked, sections decoded and scattered.
 *
 * What lies in a slab may change at any time, when a lease is revoked. So a head, a place in the
 * directory, and a section that is to be decoded are copied, each byte read once, and only the
 * copies are looked at. Sections of raw bytes are scattered as they lie: whatever they hold, that
 * is well defined, and the slot's generation tells afterwards whether it was what was asked for.
 */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "client/get.h"
#include "client/workers.h"
#include "codec/codec.h"

/* Between two looks at a slot that is being loaded. */
#define POLL_US_MIN 20u
#define POLL_US_MAX 500u

/* --- heads ----------------------------------------------------------------------------------- */

/* Copies the record's head out of the slab. */
static int copy_head(struct larder_get_op *op, struct get_block *block,
                     const struct larder_record **out)
{
    const uint64_t offset = block->slot->offset;
    const uint64_t bytes = block->slot->record_bytes;
    if (offset < block->slab->data_offset || offset > block->slab->bytes ||
        bytes > block->slab->bytes - offset || offset % LARDER_SECTION_ALIGN != 0 ||
        bytes < sizeof(struct larder_record))
        return larder_fail(LARDER_ECORRUPT,
                           "slab %u: a slot of %llu bytes at %llu leaves the slab of %llu bytes",
                           block->slab->id, (unsigned long long)bytes, (unsigned long long)offset,
                           (unsigned long long)block->slab->bytes);
    const char *record = block->slab->map + offset;
    struct larder_record header;
    memcpy(&header, record, sizeof(header));
    if (header.head_bytes < sizeof(header) || header.head_bytes > bytes ||
        header.record_bytes > bytes)
        return larder_fail(LARDER_ECORRUPT, "slab %u: a record of %llu bytes does not fit its slot",
                           block->slab->id, (unsigned long long)header.record_bytes);
    if (header.head_bytes > op->head_capacity) {
        char *head = larder_realloc(op->head, header.head_bytes);
        if (!head)
            return larder_fail(-ENOMEM, "no memory for a head of %u bytes", header.head_bytes);
        op->head = head;
        op->head_capacity = header.head_bytes;
    }
    memcpy(op->head, &header, sizeof(header));
    memcpy(op->head + sizeof(header), record + sizeof(header), header.head_bytes - sizeof(header));
    LARDER_TRY(larder_record_check(op->head, header.head_bytes));
    block->record = record;
    block->record_bytes = header.record_bytes;
    *out = (const struct larder_record *)(const void *)op->head;
    return 0;
}

/* What was measured of a recipe the daemon knows alone. */
static bool is_accepted(const struct larder_get_op *op, const struct larder_record *head)
{
    const unsigned worst = (unsigned)op->accept.worst & ~(unsigned)LARDER_QUALITY_SMALLEST;
    return head->quality <= worst ||
           (op->accept.max_kl > 0 && head->quality == LARDER_QUALITY_LOSSY);
}

/* Is it the block that was asked for? The tokens themselves are compared: a hash alone is not
 * trusted. */
static int check_identity(const struct larder_get_op *op, const struct get_block *block,
                          const struct larder_record *head)
{
    const struct larder_prompt *prompt = &op->chain.prompt;
    if (head->type != LARDER_RECORD_ENTRY || !is_accepted(op, head) ||
        memcmp(head->key, block->key.bytes, sizeof(head->key)) != 0 ||
        memcmp(head->model, op->model->fingerprint.bytes, sizeof(head->model)) != 0 ||
        memcmp(head->tenant, op->link->hello.tenant_id, sizeof(head->tenant)) != 0)
        return larder_fail(LARDER_EMISMATCH, "the daemon gave another entry than was asked for");
    if (head->extra_bytes != prompt->extra_bytes ||
        (head->extra_bytes > 0 &&
         memcmp(larder_record_extra(head), prompt->extra, head->extra_bytes) != 0))
        return larder_fail(LARDER_EMISMATCH, "the stored block's extra differs from the caller's");
    if (head->token_count != block->token_count ||
        memcmp(larder_record_tokens(head), prompt->tokens + block->token_first,
               head->token_count * sizeof(uint32_t)) != 0)
        return larder_fail(LARDER_EMISMATCH,
                           "the stored tokens of the block at token %llu differ "
                           "from the prompt's",
                           (unsigned long long)block->token_first);
    /* Keys do not hold it, and K is rotated for it: at another place it would be wrong K. */
    if (head->position != block->token_first)
        return larder_fail(
            LARDER_EMISMATCH, "the stored block at token %llu was computed for position %llu",
            (unsigned long long)block->token_first, (unsigned long long)head->position);
    return 0;
}

static int fill_tables(const struct larder_get_op *op, struct get_block *block)
{
    const struct larder_model_desc *desc = &op->model->desc;
    uint64_t bytes = larder_recipe_tables_bytes(block->recipe, desc, block->token_count);
    if (bytes == 0)
        return 0;
    block->tables = larder_alloc(bytes);
    if (!block->tables)
        return larder_fail(-ENOMEM, "no memory for tables of %u positions", block->token_count);
    return larder_recipe_fill_tables(block->recipe, block->tables, desc, block->token_first,
                                     block->token_count);
}

/* Those that hold something of the layers asked for. */
static void set_sections(const struct larder_get_op *op, struct get_block *block)
{
    struct larder_slice slice;
    block->section_next = 0;
    block->section_stop = block->section_count;
    for (; block->section_next < block->section_count; block->section_next++) {
        larder_recipe_slice(block->recipe, &slice, &op->model->desc, block->section_next);
        if ((uint32_t)slice.layer_first + slice.layer_count > op->layer_first)
            break;
    }
    for (; block->section_stop > block->section_next; block->section_stop--) {
        larder_recipe_slice(block->recipe, &slice, &op->model->desc, block->section_stop - 1);
        if (slice.layer_first < op->layer_end)
            break;
    }
    const bool all = block->section_stop - block->section_next == block->section_count;
    block->bytes = all ? block->record_bytes : 0;
}

/* What was encoded with a profile is decoded with that one only. */
static int find_recipe(struct larder_get_op *op, struct get_block *block,
                       const struct larder_record *head)
{
    const struct client_call limits = {.until_ns = op->until_ns, .cancel = op->cancel};
    uint8_t name[sizeof(head->profile)];
    LARDER_TRY(client_recipe(op->link, &block->recipe, larder_record_recipe(head),
                             head->recipe_bytes, head->profile, &limits));
    LARDER_TRY(larder_recipe_fits(block->recipe, &op->model->desc));
    larder_recipe_profile_name(block->recipe, name);
    if (memcmp(name, head->profile, sizeof(name)) == 0)
        return 0;
    return larder_fail(LARDER_ECORRUPT,
                       "a record of recipe %s names a profile that it does not read",
                       larder_recipe_text(block->recipe));
}

static int read_head(struct larder_get_op *op, struct get_block *block)
{
    const struct larder_record *head;
    LARDER_TRY(copy_head(op, block, &head));
    int err = check_identity(op, block, head);
    if (err == 0)
        err = find_recipe(op, block, head);
    if (err == 0 &&
        head->section_count != larder_recipe_section_count(block->recipe, &op->model->desc))
        err = larder_fail(LARDER_ECORRUPT, "a record of recipe %s has %u sections",
                          larder_recipe_text(block->recipe), head->section_count);
    if (err == 0)
        err = fill_tables(op, block);
    if (err < 0) {
        block->record = NULL;
        return err;
    }
    block->directory = (uint64_t)((const char *)larder_record_directory(head) - op->head);
    block->section_count = head->section_count;
    set_sections(op, block);
    block->quality = head->quality;
    return 0;
}

/* --- sections -------------------------------------------------------------------------------- */

/* Copies a section's place out of the slab and checks it against the recipe's own slice. */
static int take_section(const struct larder_get_op *op, const struct get_block *block,
                        struct get_item *item, const struct larder_slice *slice)
{
    memcpy(&item->at, block->record + block->directory + item->section * sizeof(item->at),
           sizeof(item->at));
    const struct larder_section *at = &item->at;
    if (at->layer_first != slice->layer_first || at->layer_count != slice->layer_count ||
        at->head_first != slice->head_first || at->head_count != slice->head_count ||
        at->kind != slice->kind || at->offset % LARDER_SECTION_ALIGN != 0 ||
        at->offset > block->record_bytes || at->bytes > block->record_bytes - at->offset)
        return larder_fail(LARDER_ECORRUPT, "section %u of a record is not where it should be",
                           item->section);
    if (larder_recipe_is_raw(block->recipe) &&
        at->bytes != larder_slice_raw_bytes(&op->model->desc, slice, block->token_count))
        return larder_fail(LARDER_ECORRUPT, "section %u of a raw record is %llu bytes",
                           item->section, (unsigned long long)at->bytes);
    const uint64_t bound =
        larder_recipe_bound(block->recipe, &op->model->desc, item->section, block->token_count);
    if (at->bytes > bound)
        return larder_fail(LARDER_ECORRUPT,
                           "section %u of a record is %llu bytes, recipe %s makes at most %llu",
                           item->section, (unsigned long long)at->bytes,
                           larder_recipe_text(block->recipe), (unsigned long long)bound);
    return 0;
}

/* A worker's scratch for a section: its bytes, its planes, the decoder's workspace. */
struct scratch_layout {
    uint64_t planes;
    uint64_t planes_bytes;
    uint64_t workspace;
    uint64_t workspace_bytes;
    uint64_t bytes; /* of all */
};

static void lay_out_scratch(struct scratch_layout *out, const struct larder_get_op *op,
                            const struct get_item *item)
{
    const struct get_block *block = &op->blocks[item->block];
    const struct larder_model_desc *desc = &op->model->desc;
    struct larder_slice slice;
    larder_recipe_slice(block->recipe, &slice, desc, item->section);
    out->planes = larder_round_up(item->at.bytes, 64);
    out->planes_bytes = larder_slice_raw_bytes(desc, &slice, block->token_count);
    out->workspace = out->planes + larder_round_up(out->planes_bytes, 64);
    out->workspace_bytes = larder_recipe_workspace_bytes(block->recipe, desc, block->token_count);
    out->bytes = out->workspace + out->workspace_bytes;
}

/* Only the layers asked for: a section may hold more. */
static void scatter(const struct larder_get_op *op, const char *planes, struct layout_move *move)
{
    struct larder_slice *slice = &move->slice;
    uint32_t end = (uint32_t)slice->layer_first + slice->layer_count;
    if (end > op->layer_end)
        end = op->layer_end;
    if (slice->layer_first < op->layer_first) {
        const uint64_t plane_bytes =
            larder_slice_raw_bytes(&op->model->desc, slice, move->plane_tokens) /
            slice->layer_count;
        planes += (op->layer_first - slice->layer_first) * plane_bytes;
        slice->layer_first = (uint16_t)op->layer_first;
    }
    slice->layer_count = (uint16_t)(end - slice->layer_first);
    layout_scatter(&op->view, planes, move);
}

/* On a worker. */
static void decode_item(void *context, uint32_t index, void *scratch)
{
    struct larder_get_op *op = context;
    struct get_item *item = &op->items[index];
    const struct get_block *block = &op->blocks[item->block];
    const struct larder_model_desc *desc = &op->model->desc;
    const void *encoded = block->record + item->at.offset;
    const uint64_t first =
        block->token_first > op->token_first ? block->token_first : op->token_first;
    const uint64_t end = get_block_end(op, block);
    struct layout_move move = {
        .plane_tokens = block->token_count,
        .row_first = (uint32_t)(first - block->token_first),
        .row_count = end > first ? (uint32_t)(end - first) : 0,
        .token_first = first,
        .past_cache = op->past_cache,
    };
    if (move.row_count == 0)
        return;
    larder_recipe_slice(block->recipe, &move.slice, desc, item->section);
    if (larder_recipe_is_raw(block->recipe)) {
        scatter(op, encoded, &move);
        return;
    }
    struct scratch_layout at;
    lay_out_scratch(&at, op, item);
    char *planes = (char *)scratch + at.planes;
    memcpy(scratch, encoded, item->at.bytes);
    const struct larder_block stored = {.model = desc,
                                        .position = block->token_first,
                                        .tables = block->tables,
                                        .token_count = block->token_count};
    item->err = larder_recipe_decode(block->recipe, planes, at.planes_bytes, &stored, item->section,
                                     scratch, item->at.bytes, (char *)scratch + at.workspace,
                                     at.workspace_bytes);
    if (item->err == 0)
        scatter(op, planes, &move);
}

static bool is_stale(const struct get_block *block)
{
    /* Orders the reads of the slot's bytes before this one: pairs with the daemon's release when it
     * takes the memory for something else. */
    atomic_thread_fence(memory_order_acquire);
    return atomic_load_explicit(&block->slot->generation, memory_order_relaxed) !=
           block->generation;
}

static int stale(const struct get_block *block)
{
    return larder_fail(LARDER_ESTALE,
                       "the lease on the block at token %llu ended before it was "
                       "read",
                       (unsigned long long)block->token_first);
}

static int decode_items(struct larder_get_op *op, uint32_t count)
{
    uint64_t scratch_bytes = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct get_block *block = &op->blocks[op->items[i].block];
        if (larder_recipe_is_raw(block->recipe))
            continue;
        struct scratch_layout at;
        lay_out_scratch(&at, op, &op->items[i]);
        if (at.bytes > scratch_bytes)
            scratch_bytes = at.bytes;
    }
    LARDER_TRY(
        client_workers_run(op->model->larder->workers, decode_item, op, count, scratch_bytes));
    for (uint32_t i = 0; i < count; i++) {
        const struct get_item *item = &op->items[i];
        const struct get_block *block = &op->blocks[item->block];
        /* Staleness first: bytes that changed underneath may look corrupt. */
        if (is_stale(block))
            get_cut(op, item->block, stale(block));
        else if (item->err < 0)
            get_cut(op, item->block,
                    larder_fail(item->err, "section %u of the block at token %llu: %s",
                                item->section, (unsigned long long)block->token_first,
                                larder_error_text(item->err)));
    }
    return 0;
}

/* Why will nothing more of this block be published? 0 while it may. */
static int why_ended(struct larder_get_op *op, const struct get_block *block)
{
    int32_t failed = atomic_load_explicit(&block->slot->failed, memory_order_acquire);
    if (failed < 0)
        return larder_fail(failed, "loading the block at token %llu failed: %s",
                           (unsigned long long)block->token_first, larder_error_text(failed));
    struct client_lease lease = client_lease_state(op->link, block->lease);
    if (!lease.ended)
        return 0;
    if (block->lease_index >= lease.loaded)
        return larder_fail(lease.err < 0 ? lease.err : LARDER_EPROTO,
                           "loading the block at token %llu ended: %s",
                           (unsigned long long)block->token_first,
                           larder_error_text(lease.err < 0 ? lease.err : LARDER_EPROTO));
    return larder_fail(LARDER_EPROTO,
                       "the daemon says that the block at token %llu is loaded, but "
                       "it is not published",
                       (unsigned long long)block->token_first);
}

static bool is_done(const struct get_block *block)
{
    return block->record && block->section_next == block->section_stop;
}

/* Adds a block's published sections up to `layer`. *pending: some are still to come. */
static int collect_block(struct larder_get_op *op, uint32_t index, uint32_t layer, uint32_t *count,
                         bool *pending)
{
    struct get_block *block = &op->blocks[index];
    if (is_done(block))
        return 0;
    if (atomic_load_explicit(&block->slot->generation, memory_order_acquire) != block->generation)
        return stale(block);
    const uint32_t published =
        atomic_load_explicit(&block->slot->published_sections, memory_order_acquire);
    if (published > 0 && !block->record) {
        int err = read_head(op, block);
        if (err < 0)
            return is_stale(block) ? stale(block) : err;
    }
    const uint32_t first = atomic_load_explicit(&block->slot->first_section, memory_order_acquire);
    while (block->record && block->section_next < block->section_stop) {
        struct larder_slice slice;
        larder_recipe_slice(block->recipe, &slice, &op->model->desc, block->section_next);
        if (slice.layer_first > layer)
            return 0;
        if (block->section_next >= published || block->section_next < first)
            break;
        if (*count == GET_ITEMS_MAX) {
            *pending = true;
            return 0;
        }
        struct get_item *item = &op->items[*count];
        *item = (struct get_item){.block = index, .section = block->section_next};
        int err = take_section(op, block, item, &slice);
        if (err < 0)
            return is_stale(block) ? stale(block) : err;
        block->section_next++;
        if (block->bytes < block->record_bytes)
            block->bytes += item->at.bytes;
        (*count)++;
    }
    if (is_done(block))
        return 0;
    *pending = true;
    int ended = why_ended(op, block);
    /* What was published before the end may have been missed above: then look again. */
    if (ended < 0 &&
        atomic_load_explicit(&block->slot->published_sections, memory_order_acquire) <= published &&
        atomic_load_explicit(&block->slot->first_section, memory_order_acquire) >= first)
        return ended;
    return 0;
}

/* Only what is decoded in all layers stays. */
static void cut_unfinished(struct larder_get_op *op, int err)
{
    uint32_t done = 0;
    while (done < op->good && is_done(&op->blocks[done]))
        done++;
    get_cut(op, done, err);
}

int get_decode(struct larder_get_op *op, uint32_t layer)
{
    const uint64_t timeout_ns = op->model->larder->timeout_ms * 1000000ull;
    uint64_t progress_ns = client_now_ns();
    uint32_t wait_us = POLL_US_MIN;
    for (;;) {
        uint32_t count = 0;
        bool pending = false;
        if (get_is_cancelled(op))
            cut_unfinished(op, larder_fail(-ECANCELED, "the get was cancelled"));
        else if (get_is_late(op))
            cut_unfinished(op, larder_fail(-ETIMEDOUT, "the deadline passed"));
        uint32_t first_pending = op->good;
        const uint32_t end = op->front ? op->front : op->good;
        for (uint32_t i = 0; i < end && i < op->good && count < GET_ITEMS_MAX; i++) {
            bool block_pending = false;
            int err = collect_block(op, i, layer, &count, &block_pending);
            if (err == -ENOMEM)
                return err;
            if (err < 0)
                get_cut(op, i, err);
            else if (block_pending && first_pending > i)
                first_pending = i;
            pending |= block_pending;
        }
        if (count > 0) {
            LARDER_TRY(decode_items(op, count));
            progress_ns = client_now_ns();
            wait_us = POLL_US_MIN;
            continue;
        }
        if (!pending || first_pending >= op->good)
            break;
        if (client_now_ns() - progress_ns >= timeout_ns) {
            get_cut(op, first_pending,
                    larder_fail(-ETIMEDOUT, "nothing was loaded for %u ms",
                                op->model->larder->timeout_ms));
            continue;
        }
        client_poll(op->link, wait_us);
        if (wait_us < POLL_US_MAX)
            wait_us *= 2;
    }
    op->layers_done = layer + 1;
    return 0;
}
