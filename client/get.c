/* SPDX-License-Identifier: Apache-2.0 */
/* GET: leases, slots, decode into the engine's layout.
 *
 * The blocks of a prompt are held a window at a time: as many as the host tier has room for, mostly
 * all. Within a window, sections are decoded as the daemon publishes them; `good` is the number of
 * leading blocks nothing has spoken against yet, and only falls. A window before the last is done
 * in all layers, released, and counted in `tokens_done`.
 *
 * I1  What is read from a slab is copied before it is checked, so that what was checked is what is
 *     used: a daemon may be hostile, and a slot may be used anew at any time.
 * I2  A block counts only if its slot's generation was still the one of the lease after its last
 *     section was decoded.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/record.h"
#include "client/chain.h"
#include "client/layout.h"
#include "client/operations.h"
#include "client/workers.h"
#include "codec/codec.h"

/* Sections decoded in one run: enough for many threads, few enough to notice a cancel. */
#define ITEMS_MAX 256u
/* Between two looks at a slot that is being loaded. */
#define POLL_US_MIN 20u
#define POLL_US_MAX 500u
/* A get of more than this goes past the caches: the second level of today's cores is 1 to 2 MiB. */
#define PAST_CACHE_BYTES (8u << 20)
/* How long to ask again when the host tier is full of what others hold. */
#define FULL_RETRY_NS (100 * 1000000ull)

struct get_block {
    const struct client_slab *slab;
    const struct larder_slot *slot;
    uint64_t generation;
    const struct client_lease *lease;
    uint32_t lease_index; /* among the lease's refs */
    uint32_t token_count;
    uint64_t token_first;
    struct larder_key key;
    /* once its head was read */
    const char *record;    /* NULL: not yet */
    uint64_t record_bytes; /* checked against the slab */
    uint64_t directory;    /* from the record's start */
    const struct larder_recipe *recipe;
    uint32_t section_count;
    uint32_t section_next; /* sections before it were handed to decode */
    uint8_t quality;
};

/* A section to decode. */
struct get_item {
    uint32_t block;
    uint32_t section;
    struct larder_section at; /* private copy, checked */
    int err;
};

struct larder_get_op {
    struct larder_model *model;
    struct larder_link *link;
    struct client_chain chain;
    struct layout_view view;
    enum larder_quality worst;
    uint32_t handle;
    const atomic_bool *cancel;
    uint64_t started_ns;
    uint64_t token_first; /* the engine has what is before */
    uint64_t token_end;   /* nothing from here on is written */
    uint32_t key_end;     /* keys worth asking for */
    bool past_cache;      /* more is written than caches hold */

    /* the window */
    uint32_t key_next; /* the first key not asked for or not granted */
    bool more;         /* the host tier was full: another window follows */
    struct get_block *blocks;
    uint32_t block_count;
    uint32_t block_capacity;
    uint32_t good;
    struct client_lease **leases;
    uint32_t lease_count;
    uint32_t lease_capacity;
    uint32_t layers_done;

    /* over all windows */
    uint64_t tokens_done;
    struct larder_get_result result; /* of finished windows */
    uint64_t bytes_ssd;
    bool stopped;
    int stop_error;
    char stop_message[LARDER_MESSAGE_BYTES_MAX];

    char *head; /* a record's head, copied for checking */
    uint64_t head_capacity;
    struct get_item items[ITEMS_MAX];
};

/* --- stopping -------------------------------------------------------------------------------- */

/* The get ends with this window, for `err`. */
static void stop(struct larder_get_op *op, int err)
{
    op->more = false;
    op->stopped = true;
    op->stop_error = err;
    snprintf(op->stop_message, sizeof(op->stop_message), "%s", larder_error_message());
}

/* Block `index` of the window will not be valid, for `err`. */
static void cut(struct larder_get_op *op, uint32_t index, int err)
{
    if (index >= op->good)
        return;
    op->good = index;
    stop(op, err);
}

static enum larder_block_status status_of(int err)
{
    switch (err) {
    case 0:
    case LARDER_ESTALE:
    case LARDER_ENOTFOUND:
    case LARDER_EFULL:
    case -EBUSY:
        return LARDER_BLOCK_MISS;
    case LARDER_ECORRUPT:
    case LARDER_EVERSION:
        return LARDER_BLOCK_CORRUPT;
    case LARDER_EMISMATCH:
        return LARDER_BLOCK_MISMATCH;
    case -ETIMEDOUT:
        return LARDER_BLOCK_TIMEOUT;
    case -ECANCELED:
        return LARDER_BLOCK_CANCELLED;
    default:
        return LARDER_BLOCK_IO;
    }
}

static bool is_cancelled(const struct larder_get_op *op)
{
    return op->cancel && atomic_load_explicit(op->cancel, memory_order_relaxed);
}

/* --- asking the daemon ----------------------------------------------------------------------- */

struct get_answer {
    struct wire_get_ok head;
    char rest[LARDER_REQUEST_KEYS_MAX * sizeof(struct wire_ref) +
              LARDER_TAILS_MAX * sizeof(struct wire_tail)];
};

static bool is_well_formed(const struct get_answer *answer, uint32_t bytes, uint32_t key_count)
{
    const struct wire_get_ok *head = &answer->head;
    return bytes >= sizeof(*head) && head->matched <= key_count &&
           head->ref_count <= head->matched && head->tail_count <= LARDER_TAILS_MAX &&
           head->quality <= LARDER_QUALITY_BLENDED && head->bytes_host <= head->bytes &&
           bytes == sizeof(*head) + head->ref_count * sizeof(struct wire_ref) +
                        head->tail_count * sizeof(struct wire_tail);
}

/* The array with room for `count` items, or NULL (and the old one stays). */
static void *grow(void *array, uint32_t *capacity, uint32_t count, size_t item_bytes)
{
    if (count <= *capacity)
        return array;
    uint32_t wanted = *capacity ? *capacity : 16;
    while (wanted < count)
        wanted *= 2;
    void *fresh = larder_realloc(array, wanted * item_bytes);
    if (fresh)
        *capacity = wanted;
    else
        (void)larder_fail(-ENOMEM, "no memory for a get of %u blocks", wanted);
    return fresh;
}

/* Adds the blocks behind an answer's refs to the window. */
static int add_blocks(struct larder_get_op *op, const struct get_answer *answer,
                      const struct client_lease *lease, uint64_t token_first, uint32_t block_tokens,
                      const struct larder_key *keys)
{
    const uint32_t count = answer->head.ref_count;
    struct get_block *blocks =
        grow(op->blocks, &op->block_capacity, op->block_count + count, sizeof(*blocks));
    if (!blocks && count > 0)
        return -ENOMEM;
    op->blocks = blocks;
    const struct client_slab *slab = NULL;
    for (uint32_t i = 0; i < count; i++) {
        struct wire_ref ref;
        memcpy(&ref, answer->rest + i * sizeof(ref), sizeof(ref));
        if (!slab || slab->id != ref.slab_id)
            slab = client_find_slab(op->link, ref.slab_id);
        if (!slab || ref.slot >= slab->slot_count)
            return client_malformed(op->link, "GET");
        uint64_t first = token_first + (uint64_t)i * block_tokens;
        op->blocks[op->block_count++] = (struct get_block){
            .slab = slab,
            .slot = client_slab_slot(slab, ref.slot),
            .generation = ref.generation,
            .lease = lease,
            .lease_index = i,
            .token_first = first,
            .token_count =
                (uint32_t)larder_min_u64(block_tokens, op->chain.prompt.token_count - first),
            .key = keys[i],
        };
    }
    return 0;
}

/* One GET of `count` keys behind `parent`, whose blocks start at token_first. */
static int ask(struct larder_get_op *op, struct get_answer *answer, const struct larder_key *parent,
               const struct larder_key *keys, uint32_t count, uint64_t token_first,
               uint32_t block_tokens)
{
    struct wire_keys body = {.model = op->handle, .key_count = count, .worst = op->worst};
    memcpy(body.parent, parent->bytes, sizeof(body.parent));
    const struct client_part parts[] = {{&body, sizeof(body)}, {keys, count * sizeof(*keys)}};
    struct client_lease **leases =
        grow(op->leases, &op->lease_capacity, op->lease_count + 1, sizeof(*leases));
    if (!leases)
        return -ENOMEM;
    op->leases = leases;
    struct client_lease *lease = larder_alloc_zero(1, sizeof(*lease));
    if (!lease)
        return larder_fail(-ENOMEM, "no memory for a lease");
    struct client_call call = {
        .type = WIRE_GET,
        .answer_type = WIRE_GET_OK,
        .answer = answer,
        .answer_capacity = sizeof(*answer),
    };
    int err = client_call(op->link, &call, lease, parts, 2);
    if (err < 0) {
        larder_free(lease);
        return err;
    }
    op->leases[op->lease_count++] = lease;
    if (!is_well_formed(answer, call.answer_bytes, count))
        return client_malformed(op->link, "GET");
    client_lease_granted(op->link, lease, answer->head.ref_count, answer->head.ready != 0);
    op->bytes_ssd += answer->head.bytes - answer->head.bytes_host;
    return add_blocks(op, answer, lease, token_first, block_tokens, keys);
}

/* A shorter stored block behind the last match holds the prompt's next tokens: ask for it too. */
static int ask_for_tail(struct larder_get_op *op, struct get_answer *answer)
{
    struct client_match match = {.tail_count = answer->head.tail_count};
    memcpy(match.tails, answer->rest + answer->head.ref_count * sizeof(struct wire_ref),
           match.tail_count * sizeof(struct wire_tail));
    const uint32_t index = op->key_next;
    struct larder_key key;
    uint32_t token_count;
    LARDER_TRY(client_chain_tail(&op->chain, &match, index, &key, &token_count));
    if (token_count == 0)
        return 0;
    const uint32_t before = op->block_count;
    LARDER_TRY(ask(op, answer, client_chain_parent(&op->chain, index), &key, 1,
                   client_chain_tokens(&op->chain, index), token_count));
    assert(op->block_count <= before + 1);
    return 0;
}

/* Fills the window with what is stored and fits the host tier now. */
static int ask_for_window(struct larder_get_op *op)
{
    const uint64_t full_until = client_now_ns() + FULL_RETRY_NS;
    struct get_answer answer;
    op->more = false;
    while (op->key_next < op->key_end) {
        const uint32_t first = op->key_next;
        uint32_t count = op->key_end - first;
        if (count > LARDER_REQUEST_KEYS_MAX)
            count = LARDER_REQUEST_KEYS_MAX;
        LARDER_TRY(client_chain_hash(&op->chain, first + count));
        int err = ask(op, &answer, client_chain_parent(&op->chain, first), op->chain.keys + first,
                      count, client_chain_tokens(&op->chain, first), op->chain.block_tokens);
        if (err == -EBUSY && op->block_count > 0) {
            op->more = true;
            return 0;
        }
        const bool full =
            err == -EBUSY || (err == 0 && answer.head.matched > 0 && answer.head.ref_count == 0);
        if (full && op->block_count == 0) {
            if (client_now_ns() >= full_until || is_cancelled(op))
                return larder_fail(LARDER_EFULL, "the host tier is full of blocks that others "
                                                 "hold; a larger host_bytes helps");
            client_poll(op->link, 1000);
            continue;
        }
        LARDER_TRY(err);
        op->key_next += answer.head.ref_count;
        if (answer.head.ref_count < answer.head.matched) {
            op->more = true;
            return 0;
        }
        if (answer.head.matched < count)
            return ask_for_tail(op, &answer);
    }
    return 0;
}

/* How many tokens are there beyond a window that the host tier had no room for? */
static int count_rest(struct larder_get_op *op, uint64_t *tokens)
{
    uint32_t at = op->key_next;
    while (at < op->key_end) {
        uint32_t count = op->key_end - at;
        if (count > LARDER_REQUEST_KEYS_MAX)
            count = LARDER_REQUEST_KEYS_MAX;
        struct client_match match;
        LARDER_TRY(client_chain_lookup(&op->chain, &match, op->handle, at, count, op->worst));
        at += match.matched;
        if (match.matched < count)
            break;
    }
    *tokens = client_chain_tokens(&op->chain, at);
    return 0;
}

static uint64_t block_end(const struct larder_get_op *op, const struct get_block *block)
{
    return larder_min_u64(op->token_end, block->token_first + block->token_count);
}

static void release_window(struct larder_get_op *op)
{
    client_leases_end(op->link, op->leases, op->lease_count);
    for (uint32_t i = 0; i < op->lease_count; i++)
        larder_free(op->leases[i]);
    op->lease_count = 0;
    op->block_count = 0;
    op->good = 0;
    op->layers_done = 0;
}

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

/* Is it the block that was asked for? The tokens themselves are compared: a hash alone is not
 * trusted. */
static int check_identity(const struct larder_get_op *op, const struct get_block *block,
                          const struct larder_record *head)
{
    const struct larder_prompt *prompt = &op->chain.prompt;
    if (head->type != LARDER_RECORD_ENTRY || head->quality > op->worst ||
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
    return 0;
}

static int read_head(struct larder_get_op *op, struct get_block *block)
{
    const struct larder_record *head;
    LARDER_TRY(copy_head(op, block, &head));
    int err = check_identity(op, block, head);
    if (err == 0)
        err = client_recipe(op->model->larder, &block->recipe, larder_record_recipe(head),
                            head->recipe_bytes);
    if (err == 0 &&
        head->section_count != larder_recipe_section_count(block->recipe, &op->model->desc))
        err = larder_fail(LARDER_ECORRUPT, "a record of recipe %s has %u sections",
                          larder_recipe_text(block->recipe), head->section_count);
    if (err < 0) {
        block->record = NULL;
        return err;
    }
    block->directory = (uint64_t)((const char *)larder_record_directory(head) - op->head);
    block->section_count = head->section_count;
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
    return 0;
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
    const uint64_t end = block_end(op, block);
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
        layout_scatter(&op->view, encoded, &move);
        return;
    }
    const uint64_t planes_bytes = larder_slice_raw_bytes(desc, &move.slice, block->token_count);
    char *workspace = (char *)scratch + larder_round_up(planes_bytes, 64);
    item->err = larder_recipe_decode(
        block->recipe, scratch, planes_bytes, desc, item->section, encoded, item->at.bytes,
        block->token_count, workspace,
        larder_recipe_workspace_bytes(block->recipe, desc, block->token_count));
    if (item->err == 0)
        layout_scatter(&op->view, scratch, &move);
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
        struct larder_slice slice;
        larder_recipe_slice(block->recipe, &slice, &op->model->desc, op->items[i].section);
        uint64_t bytes =
            larder_round_up(larder_slice_raw_bytes(&op->model->desc, &slice, block->token_count),
                            64) +
            larder_recipe_workspace_bytes(block->recipe, &op->model->desc, block->token_count);
        if (bytes > scratch_bytes)
            scratch_bytes = bytes;
    }
    LARDER_TRY(
        client_workers_run(op->model->larder->workers, decode_item, op, count, scratch_bytes));
    for (uint32_t i = 0; i < count; i++) {
        const struct get_item *item = &op->items[i];
        const struct get_block *block = &op->blocks[item->block];
        /* Staleness first: bytes that changed underneath may look corrupt. */
        if (is_stale(block))
            cut(op, item->block, stale(block));
        else if (item->err < 0)
            cut(op, item->block,
                larder_fail(item->err, "section %u of the block at token %llu: %s", item->section,
                            (unsigned long long)block->token_first, larder_error_text(item->err)));
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

/* Adds a block's published sections up to `layer`. *pending: some are still to come. */
static int collect_block(struct larder_get_op *op, uint32_t index, uint32_t layer, uint32_t *count,
                         bool *pending)
{
    struct get_block *block = &op->blocks[index];
    if (block->record && block->section_next == block->section_count)
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
    while (block->record && block->section_next < block->section_count) {
        struct larder_slice slice;
        larder_recipe_slice(block->recipe, &slice, &op->model->desc, block->section_next);
        if (slice.layer_first > layer)
            return 0;
        if (block->section_next >= published)
            break;
        if (*count == ITEMS_MAX) {
            *pending = true;
            return 0;
        }
        struct get_item *item = &op->items[*count];
        *item = (struct get_item){.block = index, .section = block->section_next};
        int err = take_section(op, block, item, &slice);
        if (err < 0)
            return is_stale(block) ? stale(block) : err;
        block->section_next++;
        (*count)++;
    }
    if (block->record && block->section_next == block->section_count)
        return 0;
    *pending = true;
    int ended = why_ended(op, block);
    /* What was published before the end may have been missed above: then look again. */
    if (ended < 0 &&
        atomic_load_explicit(&block->slot->published_sections, memory_order_acquire) <= published)
        return ended;
    return 0;
}

/* Decodes the window up to and with `layer`, as it is published. Negative only for trouble of our
 * own (no memory); everything else lowers op->good. */
static int decode_window(struct larder_get_op *op, uint32_t layer)
{
    const uint64_t timeout_ns = op->model->larder->timeout_ms * 1000000ull;
    uint64_t progress_ns = client_now_ns();
    uint32_t wait_us = POLL_US_MIN;
    for (;;) {
        uint32_t count = 0;
        bool pending = false;
        if (is_cancelled(op))
            cut(op, 0, larder_fail(-ECANCELED, "the get was cancelled"));
        uint32_t first_pending = op->good;
        for (uint32_t i = 0; i < op->good && count < ITEMS_MAX; i++) {
            bool block_pending = false;
            int err = collect_block(op, i, layer, &count, &block_pending);
            if (err == -ENOMEM)
                return err;
            if (err < 0)
                cut(op, i, err);
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
            cut(op, first_pending,
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

/* Counts the window, whose good blocks are decoded in all layers, and gives it back. */
static void finish_window(struct larder_get_op *op)
{
    struct larder_get_result *result = &op->result;
    for (uint32_t i = 0; i < op->good; i++) {
        const struct get_block *block = &op->blocks[i];
        result->blocks += block->token_first + block->token_count <= op->token_end;
        result->bytes += block->record_bytes;
        if (block->quality > result->quality)
            result->quality = block->quality;
        op->tokens_done = block_end(op, block);
    }
    release_window(op);
}

/* Windows but the last are of no use layer by layer: each is decoded whole to make room for the
 * next. */
static int finish_windows_before_last(struct larder_get_op *op)
{
    while (op->more && !op->stopped) {
        LARDER_TRY(decode_window(op, op->model->desc.layers - 1));
        if (op->stopped)
            return 0; /* end() counts what is good */
        finish_window(op);
        int err = ask_for_window(op);
        op->good = op->block_count;
        if (err == -ENOMEM)
            return err;
        /* What the daemon granted before the error is still good. */
        if (err < 0)
            stop(op, err);
    }
    return 0;
}

/* --- the calls ------------------------------------------------------------------------------- */

static void free_op(struct larder_get_op *op)
{
    if (op->link) {
        release_window(op);
        client_chain_close(&op->chain);
        client_link_release(op->link);
    }
    larder_free(op->leases);
    larder_free(op->blocks);
    larder_free(op->head);
    larder_free(op);
}

/* Limits of what is asked for and written. */
static int set_range(struct larder_get_op *op, const struct larder_prompt *prompt,
                     const struct larder_layout *layout, uint64_t tokens_max)
{
    if (layout->token_first > prompt->token_count)
        return larder_fail(-EINVAL, "layout: token_first=%llu is behind the prompt's %zu tokens",
                           (unsigned long long)layout->token_first, prompt->token_count);
    op->token_first = layout->token_first;
    op->token_end = larder_min_u64(prompt->token_count, op->view.token_capacity);
    if (tokens_max > 0)
        op->token_end = larder_min_u64(op->token_end, tokens_max);
    op->tokens_done = larder_min_u64(op->token_first, op->token_end);
    const uint32_t block_tokens = op->chain.block_tokens;
    op->key_next = (uint32_t)(op->token_first / block_tokens);
    op->key_end = (uint32_t)((op->token_end + block_tokens - 1) / block_tokens);
    if (op->token_first >= op->token_end)
        op->key_next = op->key_end;
    return client_chain_hash(&op->chain, op->key_next);
}

static int begin(struct larder_get_op *op, uint64_t *tokens, const struct larder_prompt *prompt,
                 const struct larder_layout *layout, uint64_t tokens_max)
{
    struct larder_model *model = op->model;
    LARDER_TRY(client_check_quality(op->worst));
    LARDER_TRY(layout_open(&op->view, layout, &model->desc));
    LARDER_TRY(client_link_acquire(model->larder, &op->link));
    LARDER_TRY(client_model_handle(model, op->link, &op->handle));
    LARDER_TRY(client_chain_open(&op->chain, model, op->link, prompt));
    LARDER_TRY(set_range(op, prompt, layout, tokens_max));
    int err = ask_for_window(op);
    /* The daemon answered, but has no room to load into: for the caller that is a miss. */
    if (err == LARDER_EFULL) {
        stop(op, err);
        err = 0;
    }
    LARDER_TRY(err);
    op->good = op->block_count;
    *tokens = op->block_count ? block_end(op, &op->blocks[op->block_count - 1]) : op->tokens_done;
    if (op->more)
        LARDER_TRY(count_rest(op, tokens));
    *tokens = larder_min_u64(*tokens, op->token_end);
    op->past_cache = (*tokens - op->tokens_done) * model->token_bytes >= PAST_CACHE_BYTES;
    return 0;
}

static int begin_get(struct larder_model *model, struct larder_get_op **out, uint64_t *tokens,
                     const struct larder_prompt *prompt, const struct larder_layout *layout,
                     enum larder_quality worst, uint64_t tokens_max, const atomic_bool *cancel)
{
    *out = NULL;
    *tokens = 0;
    struct larder_get_op *op = larder_alloc_zero(1, sizeof(*op));
    if (!op)
        return larder_fail(-ENOMEM, "no memory for a get");
    op->model = model;
    op->worst = worst;
    op->cancel = cancel;
    op->started_ns = client_now_ns();
    int err = begin(op, tokens, prompt, layout, tokens_max);
    if (err < 0) {
        free_op(op);
        return err;
    }
    *out = op;
    return 0;
}

int larder_get_begin(struct larder_model *model, struct larder_get_op **out, uint64_t *tokens,
                     const struct larder_prompt *prompt, const struct larder_layout *layout,
                     enum larder_quality worst, uint64_t tokens_max)
{
    return begin_get(model, out, tokens, prompt, layout, worst, tokens_max, NULL);
}

int larder_get_wait_layer(struct larder_get_op *op, uint32_t layer)
{
    if (layer >= op->model->desc.layers)
        return larder_fail(-EINVAL, "layer %u of a model of %u layers", layer,
                           op->model->desc.layers);
    int err = finish_windows_before_last(op);
    if (err == 0 && layer >= op->layers_done)
        err = decode_window(op, layer);
    if (err < 0) {
        op->good = 0;
        stop(op, err);
    }
    return op->stopped ? larder_fail(op->stop_error, "%s", op->stop_message) : 0;
}

/* What this load tells about the next ones. */
static void learn_rate(struct larder_get_op *op)
{
    const struct larder_get_result *result = &op->result;
    if (result->bytes == 0 || op->stopped)
        return;
    struct larder *larder = op->model->larder;
    const double ns = (double)(client_now_ns() - op->started_ns) / (double)result->bytes;
    pthread_mutex_lock(&larder->lock);
    double *rate = result->bytes_ssd > result->bytes / 2 ? &larder->ssd_ns_per_byte
                                                         : &larder->host_ns_per_byte;
    *rate = *rate == 0 ? ns : 0.75 * *rate + 0.25 * ns;
    pthread_mutex_unlock(&larder->lock);
}

int larder_get_end(struct larder_get_op *op, struct larder_get_result *result)
{
    const uint32_t layers = op->model->desc.layers;
    int err = 0;
    /* After a failure the shorter prefix is completed; without one, an end before the last layer
     * means that the caller gave up. */
    if (op->stopped && op->good > 0 && op->layers_done < layers)
        err = decode_window(op, layers - 1);
    if (err < 0 || (op->layers_done < layers && op->block_count > 0)) {
        if (op->good > 0)
            cut(op, 0,
                err < 0 ? err
                        : larder_fail(-ECANCELED, "the get ended before its last "
                                                  "layer"));
    }
    finish_window(op);
    op->result.tokens = op->tokens_done;
    op->result.bytes_ssd = larder_min_u64(op->bytes_ssd, op->result.bytes);
    op->result.stop_error = op->stop_error;
    op->result.stop_status =
        op->tokens_done == op->token_end ? LARDER_BLOCK_OK : status_of(op->stop_error);
    learn_rate(op);
    *result = op->result;
    if (op->stopped)
        (void)larder_fail(op->stop_error, "%s", op->stop_message);
    free_op(op);
    return err;
}

int client_get(struct larder_model *model, struct larder_get_result *result,
               const struct larder_prompt *prompt, const struct larder_layout *layout,
               enum larder_quality worst, uint64_t tokens_max, const atomic_bool *cancel)
{
    memset(result, 0, sizeof(*result));
    struct larder_get_op *op;
    uint64_t tokens;
    LARDER_TRY(begin_get(model, &op, &tokens, prompt, layout, worst, tokens_max, cancel));
    /* What it returns, end() says in the result. */
    (void)larder_get_wait_layer(op, model->desc.layers - 1);
    LARDER_TRY(larder_get_end(op, result));
    return result->stop_error == -ECANCELED || result->stop_error == -ENOMEM ? result->stop_error
                                                                             : 0;
}

int larder_get(struct larder_model *model, struct larder_get_result *result,
               const struct larder_prompt *prompt, const struct larder_layout *layout,
               enum larder_quality worst, uint64_t tokens_max)
{
    return client_get(model, result, prompt, layout, worst, tokens_max, NULL);
}
