/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/put.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/key.h"
#include "base/mem.h"
#include "base/record.h"
#include "codec/codec.h"
#include "daemon/completions.h"
#include "daemon/encode.h"
#include "daemon/put_recipe.h"
#include "daemon/recipes.h"
#include "daemon/workers.h"

/* Workers that may help with the sections of one PUT. */
#define HELPERS_MAX 16u
/* Of KV: below it a helper takes longer to wake than it saves. */
#define HELP_BYTES_MIN (64u << 10)

struct operation;

struct helper {
    struct job job;
    struct operation *operation;
};

struct operation {
    struct put put; /* first: what others see */
    struct job job;
    struct completion idle;
    struct completion answer;
    void (*idle_done)(struct put *put);
    void (*answer_done)(struct put *put);
    /* `idle`, `answer`, and every helper that has not ended. The last one frees. */
    _Atomic uint32_t refs;

    /* the first worker; the others read */
    struct put_recipe chosen;
    float *inputs; /* copies of importance, q_max */
    struct larder_key key;
    uint8_t *copy; /* of extra, padded to 4, and tokens */
    struct larder_put_desc desc;
    struct larder_put *slot;
    struct encoding encoding; /* its recipe is chosen.recipe until that is given back */
    bool in_place;            /* one worker alone: sections follow each other from the start */
    struct helper helpers[HELPERS_MAX];

    /* Sections are taken with an atomic add, which orders nothing. Acquire-release on the second
     * counter: whoever ends the last section sees what the others wrote. */
    _Atomic uint32_t section_next;
    _Atomic uint32_t section_left;
    _Atomic int32_t section_err;
};

static struct operation *operation_of(struct put *put)
{
    return (struct operation *)put;
}

static void unref(struct operation *operation)
{
    if (atomic_fetch_sub_explicit(&operation->refs, 1, memory_order_acq_rel) != 1)
        return;
    assert(!operation->encoding.recipe);
    larder_free(operation->inputs);
    larder_free(operation->copy);
    encode_free(&operation->encoding);
    larder_free(operation);
}

void put_region(struct put_region *out, const struct larder_model_desc *model,
                const struct wire_put *wire)
{
    const uint64_t heads = (uint64_t)model->layers * model->kv_heads;
    *out = (struct put_region){.tokens = larder_round_up(wire->extra_bytes, 4)};
    out->planes = larder_round_up(out->tokens + 4ull * wire->token_count, 64);
    out->bytes = out->planes + larder_model_kv_bytes(model, wire->token_count);
    if (wire->flags & WIRE_PUT_IMPORTANCE) {
        out->importance = larder_round_up(out->bytes, 64);
        out->importance_bytes = heads * wire->token_count * sizeof(float);
        out->bytes = out->importance + out->importance_bytes;
    }
    if (wire->flags & WIRE_PUT_Q_MAX) {
        out->q_max = larder_round_up(out->bytes, 64);
        out->q_max_bytes = heads * model->k_dims * sizeof(float);
        out->bytes = out->q_max + out->q_max_bytes;
    }
}

/* --- the two ends ----------------------------------------------------------------------------- */

static void post_answer(struct operation *operation)
{
    completions_post(operation->put.session->daemon->completions, &operation->answer);
}

static void post_idle(struct operation *operation)
{
    completions_post(operation->put.session->daemon->completions, &operation->idle);
}

static void idle_run(struct completion *completion)
{
    struct operation *operation =
        (struct operation *)((char *)completion - offsetof(struct operation, idle));
    operation->idle_done(&operation->put);
    unref(operation);
}

static void answer_run(struct completion *completion)
{
    struct operation *operation =
        (struct operation *)((char *)completion - offsetof(struct operation, answer));
    operation->answer_done(&operation->put);
    unref(operation);
}

/* The message of another thread is not this one's: what the code says must do. */
static void set_error_text(struct operation *operation, int err, const char *what)
{
    operation->put.err = err;
    snprintf(operation->put.message, sizeof(operation->put.message), "%s: %s", what,
             larder_error_text(err));
}

static void set_error(struct operation *operation, int err, const char *message)
{
    operation->put.err = err;
    snprintf(operation->put.message, sizeof(operation->put.message), "%s", message);
}

/* Nothing is encoded any more. Not on the event thread, which may not wait for one that is opened.
 */
static void give_recipe(struct operation *operation)
{
    if (operation->encoding.recipe)
        recipes_give(operation->put.session->daemon->recipes, operation->encoding.recipe);
    operation->encoding.recipe = NULL;
}

/* Before the commit, with the thread's last message. */
static void give_up(struct operation *operation, int err)
{
    give_recipe(operation);
    set_error(operation, err, larder_error_message());
    post_answer(operation);
    post_idle(operation);
}

/* From the store, on whatever thread. */
static void committed(void *context, int err)
{
    struct operation *operation = context;
    if (err < 0)
        set_error_text(operation, err, "the block did not become durable");
    post_answer(operation);
}

static void existing_marked(void *context, int err)
{
    struct operation *operation = context;
    if (err < 0)
        set_error_text(operation, err, "the block is stored, but its mark is not");
    post_answer(operation);
}

/* Of an entry that another PUT stores or has stored. */
static void existing(void *context, int err)
{
    struct operation *operation = context;
    const struct put *put = &operation->put;
    operation->put.existed = 1;
    if (err == 0 && put->wire.mark.fields != 0) {
        larder_store_mark(put->session->daemon->store, put->session->tenant.index, &operation->key,
                          &put->wire.mark, existing_marked, operation);
        return;
    }
    if (err == LARDER_ENOTFOUND)
        set_error(operation, -EBUSY,
                  "another put of the same block was given up meanwhile; put it again");
    else if (err < 0)
        set_error_text(operation, err, "the block, put before, did not become durable");
    post_answer(operation);
}

/* --- sections --------------------------------------------------------------------------------- */

/* By the worker that ended the last section. */
static void finish(struct operation *operation)
{
    struct larder_store *store = operation->put.session->daemon->store;
    int err = atomic_load_explicit(&operation->section_err, memory_order_relaxed);
    if (err < 0) {
        larder_store_put_abort(store, operation->slot);
        larder_fail(err, "cannot encode: %s", larder_error_text(err));
        give_up(operation, err);
        return;
    }
    struct encoding *encoding = &operation->encoding;
    uint64_t payload_bytes = encode_finish(encoding, operation->slot, &operation->put.fell_back);
    operation->put.stored_bytes =
        larder_round_up(encoding->payload_offset + payload_bytes, LARDER_PAGE_BYTES);
    larder_store_put_commit(store, operation->slot, encoding->section_count, payload_bytes,
                            (enum larder_wait)operation->put.wire.wait, committed, operation);
    give_recipe(operation);
    /* `answer` may have run, but `idle` has not: the operation is still there. */
    post_idle(operation);
}

static void encode_sections(struct operation *operation, struct scratch *scratch)
{
    struct encoding *encoding = &operation->encoding;
    uint32_t count = encoding->section_count;
    uint64_t place = 0;
    for (;;) {
        uint32_t index =
            atomic_fetch_add_explicit(&operation->section_next, 1, memory_order_relaxed);
        if (index >= count)
            return;
        if (atomic_load_explicit(&operation->section_err, memory_order_relaxed) == 0) {
            if (!operation->in_place)
                place = encoding->places[index];
            int err = encode_section(encoding, index, place, scratch);
            if (err < 0)
                atomic_store_explicit(&operation->section_err, err, memory_order_relaxed);
            else
                place += larder_round_up(encoding->directory[index].bytes, LARDER_SECTION_ALIGN);
        }
        if (atomic_fetch_sub_explicit(&operation->section_left, 1, memory_order_acq_rel) == 1) {
            finish(operation);
            return;
        }
    }
}

static void help(struct job *job, struct scratch *scratch)
{
    struct operation *operation = ((struct helper *)job)->operation;
    encode_sections(operation, scratch);
    unref(operation);
}

/* --- the first worker ------------------------------------------------------------------------- */

/* Copies extra and tokens, then checks them: against the vocabulary, and the key against them. */
static int check_key(struct operation *operation)
{
    struct put *put = &operation->put;
    const struct wire_put *wire = &put->wire;
    struct put_region region;
    put_region(&region, &put->model->info.desc, wire);
    uint64_t bytes = region.tokens + 4ull * wire->token_count;
    operation->copy = larder_alloc(bytes);
    if (!operation->copy)
        return larder_fail(-ENOMEM, "no memory for %u tokens", wire->token_count);
    memcpy(operation->copy,
           (const void *)(uintptr_t)(put->session->staging.memory + wire->staging_offset), bytes);

    const uint32_t *tokens = (const uint32_t *)(operation->copy + region.tokens);
    uint32_t vocab = put->model->info.desc.vocab;
    for (uint32_t i = 0; i < wire->token_count; i++) {
        if (tokens[i] >= vocab)
            return larder_fail(-EINVAL, "token %u is %u, the model's vocab is %u", i, tokens[i],
                               vocab);
    }
    struct larder_key parent;
    struct larder_key key;
    memcpy(parent.bytes, wire->parent, sizeof(parent.bytes));
    LARDER_TRY(larder_hasher_block(put->model->hasher, &key, &parent, operation->copy,
                                   wire->extra_bytes, tokens, wire->token_count));
    memcpy(operation->key.bytes, wire->key, sizeof(operation->key.bytes));
    if (!larder_key_equal(&key, &operation->key))
        return larder_fail(LARDER_EMISMATCH,
                           "the key is not the hash of parent, extra and the "
                           "%u tokens in staging",
                           wire->token_count);
    return 0;
}

static int choose_recipe(struct operation *operation)
{
    struct put *put = &operation->put;
    LARDER_TRY(put_recipe_choose(&operation->chosen, put->session->daemon, put->model, &put->wire));
    operation->encoding.recipe = operation->chosen.recipe;
    put->kl = operation->chosen.kl;
    put->unmeasured = operation->chosen.unmeasured;
    const char *text = larder_recipe_text(operation->chosen.recipe);
    const int room = sizeof(put->recipe) - 1;
    snprintf(put->recipe, sizeof(put->recipe), strlen(text) > (size_t)room ? "%.*s..." : "%.*s",
             strlen(text) > (size_t)room ? room - 3 : room, text);
    return 0;
}

/* Importance and q_max, each byte read once. */
static int copy_inputs(struct operation *operation)
{
    const struct put *put = &operation->put;
    const struct wire_put *wire = &put->wire;
    struct put_region region;
    put_region(&region, &put->model->info.desc, wire);
    const uint64_t bytes = region.importance_bytes + region.q_max_bytes;
    if (bytes == 0)
        return 0;
    operation->inputs = larder_alloc(bytes);
    if (!operation->inputs)
        return larder_fail(-ENOMEM, "no memory for a put's importance and q_max");
    const volatile uint8_t *from = put->session->staging.memory + wire->staging_offset;
    memcpy(operation->inputs, (const void *)(uintptr_t)(from + region.importance),
           region.importance_bytes);
    memcpy((uint8_t *)operation->inputs + region.importance_bytes,
           (const void *)(uintptr_t)(from + region.q_max), region.q_max_bytes);
    for (uint64_t i = 0; i < bytes / sizeof(float); i++) {
        const bool is_q = i >= region.importance_bytes / sizeof(float);
        if (!isfinite(operation->inputs[i]) || (is_q && operation->inputs[i] < 0))
            return larder_fail(-EINVAL, "%s of a put has a number that is %g",
                               is_q ? "q_max" : "importance", (double)operation->inputs[i]);
    }
    return 0;
}

/* Keys do not hold the position and K is rotated for it, so that a block may only stand where its
 * chain puts it: nobody could be given it elsewhere. A parent that is not there, or of another
 * tenant, is for the store to refuse. */
static int check_position(const struct operation *operation)
{
    const struct put *put = &operation->put;
    struct larder_key parent;
    uint64_t place = 0;
    memcpy(parent.bytes, put->wire.parent, sizeof(parent.bytes));
    if (!larder_key_equal(&parent, &larder_key_root)) {
        struct larder_entry_info info;
        if (larder_store_find(put->session->daemon->store, &info, &parent) < 0 ||
            info.tenant != put->session->tenant.index)
            return 0;
        place = info.position + info.token_count;
    }
    if (put->wire.position == place)
        return 0;
    return larder_fail(LARDER_EUNSUPPORTED,
                       "position=%llu of a block that stands at %llu of its chain; K must be "
                       "rotated for that place",
                       (unsigned long long)put->wire.position, (unsigned long long)place);
}

static enum larder_quality quality_of(const struct operation *operation)
{
    enum larder_quality quality = larder_recipe_quality(operation->encoding.recipe);
    enum larder_quality computed_on = (enum larder_quality)operation->put.wire.computed_on;
    return quality < computed_on ? computed_on : quality;
}

/* The last block of its chain, for now: kept exact by every recipe. */
static bool is_short(const struct put *put)
{
    return put->wire.token_count < put->session->daemon->config.block_tokens;
}

static void set_block(struct operation *operation, const struct put_region *region)
{
    const struct put *put = &operation->put;
    struct larder_block *block = &operation->encoding.block;
    *block = (struct larder_block){.model = &put->model->info.desc,
                                   .position = put->wire.position,
                                   .token_count = put->wire.token_count,
                                   .keep_bits = is_short(put)};
    /* Where copy_inputs() put them. */
    if (region->importance_bytes > 0)
        block->importance = operation->inputs;
    if (region->q_max_bytes > 0)
        block->q_max = operation->inputs + region->importance_bytes / sizeof(float);
    operation->encoding.planes =
        put->session->staging.memory + put->wire.staging_offset + region->planes;
}

static int reserve(struct operation *operation)
{
    struct put *put = &operation->put;
    const struct wire_put *wire = &put->wire;
    struct put_region region;
    put_region(&region, &put->model->info.desc, wire);
    struct larder_put_desc *desc = &operation->desc;
    *desc = (struct larder_put_desc){
        .tenant = put->session->tenant.index,
        .model = put->model->info.index,
        .key = operation->key,
        .extra = operation->copy,
        .extra_bytes = wire->extra_bytes,
        .tokens = (const uint32_t *)(operation->copy + region.tokens),
        .token_count = wire->token_count,
        .position = wire->position,
        .recipe = larder_recipe_text(operation->encoding.recipe),
        .quality = quality_of(operation),
        .computed_on = (enum larder_quality)wire->computed_on,
        .computed_on_kl = wire->computed_on_kl,
        .max_kl = operation->chosen.max_kl,
        .raw_bytes = larder_model_kv_bytes(&put->model->info.desc, wire->token_count),
        .beside = (wire->flags & WIRE_PUT_BESIDE) != 0,
        .mark = wire->mark,
    };
    put->quality = desc->quality;
    memcpy(desc->parent.bytes, wire->parent, sizeof(desc->parent.bytes));
    larder_recipe_profile_name(operation->encoding.recipe, desc->profile);
    set_block(operation, &region);
    LARDER_TRY(encode_plan(&operation->encoding, &desc->payload_bytes_max));
    desc->section_count_max = operation->encoding.section_count;
    LARDER_TRY(larder_store_put_reserve(put->session->daemon->store, &operation->slot, desc));
    encode_into(&operation->encoding, operation->slot);
    return 0;
}

static void call_helpers(struct operation *operation)
{
    struct workers *workers = operation->put.session->daemon->workers;
    uint32_t count = workers_count(workers) - 1;
    if (count > operation->encoding.section_count - 1)
        count = operation->encoding.section_count - 1;
    if (count > HELPERS_MAX)
        count = HELPERS_MAX;
    if (operation->desc.raw_bytes < HELP_BYTES_MIN)
        count = 0;
    operation->in_place = count == 0;
    atomic_fetch_add_explicit(&operation->refs, count, memory_order_relaxed);
    for (uint32_t i = 0; i < count; i++) {
        operation->helpers[i].operation = operation;
        operation->helpers[i].job.run = help;
        workers_submit(workers, operation->put.session->tenant.index, &operation->helpers[i].job);
    }
}

static void put_run(struct job *job, struct scratch *scratch)
{
    struct operation *operation =
        (struct operation *)((char *)job - offsetof(struct operation, job));
    struct put *put = &operation->put;
    int err = check_key(operation);
    if (err == 0)
        err = check_position(operation);
    if (err == 0)
        err = choose_recipe(operation);
    if (err == 0)
        err = copy_inputs(operation);
    if (err == 0)
        err = reserve(operation);
    if (err == LARDER_EEXISTS) {
        larder_store_when_put(put->session->daemon->store, &operation->desc,
                              (enum larder_wait)put->wire.wait, existing, operation);
        give_recipe(operation);
        post_idle(operation);
        return;
    }
    if (err < 0) {
        give_up(operation, err);
        return;
    }
    atomic_store_explicit(&operation->section_left, operation->encoding.section_count,
                          memory_order_relaxed);
    /* A helper may end the last section, and with it the operation, before this returns. */
    atomic_fetch_add_explicit(&operation->refs, 1, memory_order_relaxed);
    call_helpers(operation);
    encode_sections(operation, scratch);
    unref(operation);
}

struct put *put_new(struct session *session, struct session_model *model, uint64_t request,
                    const struct wire_put *wire, void (*idle)(struct put *put),
                    void (*answer)(struct put *put))
{
    struct operation *operation = larder_alloc_zero(1, sizeof(*operation));
    if (!operation)
        return NULL;
    operation->put.session = session;
    operation->put.model = model;
    operation->put.request = request;
    operation->put.wire = *wire;
    operation->job.run = put_run;
    operation->idle.run = idle_run;
    operation->idle_done = idle;
    operation->answer.run = answer_run;
    operation->answer_done = answer;
    atomic_init(&operation->refs, 2);
    return &operation->put;
}

void put_start(struct put *put)
{
    workers_submit(put->session->daemon->workers, put->session->tenant.index,
                   &operation_of(put)->job);
}
