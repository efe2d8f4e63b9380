/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/put.h"

#include <assert.h>
#include <errno.h>
#include <float.h>
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
    const struct larder_recipe *recipe; /* chosen.recipe */
    float *inputs;                      /* copies of importance, q_max */
    struct larder_key key;
    uint8_t *copy; /* of extra, padded to 4, and tokens */
    struct larder_put_desc desc;
    struct larder_put *slot;
    uint8_t *payload;
    uint64_t payload_offset; /* in the record */
    struct larder_section *directory;
    uint32_t section_count;
    bool in_place;    /* one worker alone: sections follow each other from the start */
    uint64_t *places; /* of sections in the payload: room for the bound of each */
    struct larder_section_error *errors;
    void *tables; /* larder_recipe_fill_tables(); NULL when the recipe needs none */
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
    assert(!operation->recipe);
    larder_free(operation->inputs);
    larder_free(operation->copy);
    larder_free(operation->places);
    larder_free(operation->errors);
    larder_free(operation->tables);
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
    if (operation->recipe)
        recipes_give(operation->put.session->daemon->recipes, operation->recipe);
    operation->recipe = NULL;
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

/* Canonical planes of a slice as they lie in staging: layer-major, K before V. */
static void gather(const struct operation *operation, void *out, const struct larder_slice *slice)
{
    const struct put *put = &operation->put;
    const struct larder_model_desc *model = &put->model->info.desc;
    struct put_region region;
    put_region(&region, model, &put->wire);
    uint64_t element = larder_dtype_bytes(model->dtype);
    uint64_t k_head = (uint64_t)put->wire.token_count * model->k_dims * element;
    uint64_t v_head = (uint64_t)put->wire.token_count * model->v_dims * element;
    uint64_t layer_bytes = model->kv_heads * (k_head + v_head);
    bool is_v = slice->kind == LARDER_SECTION_V;
    uint64_t head_bytes = is_v ? v_head : k_head;
    uint64_t plane = is_v ? model->kv_heads * k_head : 0;

    const volatile uint8_t *planes =
        put->session->staging.memory + put->wire.staging_offset + region.planes;
    uint8_t *to = out;
    for (uint32_t i = 0; i < slice->layer_count; i++) {
        uint64_t from =
            (slice->layer_first + i) * layer_bytes + plane + slice->head_first * head_bytes;
        memcpy(to, (const void *)(uintptr_t)(planes + from), slice->head_count * head_bytes);
        to += slice->head_count * head_bytes;
    }
}

/* Where copy_inputs() put them. */
static void set_inputs(const struct operation *operation, struct larder_block *block)
{
    const struct put *put = &operation->put;
    struct put_region region;
    put_region(&region, &put->model->info.desc, &put->wire);
    if (region.importance_bytes > 0)
        block->importance = operation->inputs;
    if (region.q_max_bytes > 0)
        block->q_max = operation->inputs + region.importance_bytes / sizeof(float);
}

/* What overflows an f32 is as bad as its largest number. */
static float relative_rms(double error_energy, double signal_energy)
{
    if (error_energy == 0)
        return 0;
    return signal_energy > 0 ? (float)fmin(sqrt(error_energy / signal_energy), FLT_MAX) : 1;
}

/* The last block of its chain, for now: kept exact by every recipe. */
static bool is_short(const struct put *put)
{
    return put->wire.token_count < put->session->daemon->config.block_tokens;
}

static int encode(struct operation *operation, uint32_t index, uint64_t place,
                  struct scratch *scratch)
{
    const struct put *put = &operation->put;
    const struct larder_model_desc *model = &put->model->info.desc;
    uint32_t token_count = put->wire.token_count;
    struct larder_section *section = &operation->directory[index];
    struct larder_slice slice;
    larder_recipe_slice(operation->recipe, &slice, model, index);
    uint64_t raw_bytes = larder_slice_raw_bytes(model, &slice, token_count);
    uint64_t bytes = raw_bytes;
    uint8_t *out = operation->payload + place;

    if (larder_recipe_is_raw(operation->recipe)) {
        gather(operation, out, &slice);
    } else {
        uint64_t workspace_bytes =
            larder_recipe_workspace_bytes(operation->recipe, model, token_count);
        uint64_t copy_bytes = larder_round_up(raw_bytes, 64);
        uint8_t *memory = scratch_reserve(scratch, copy_bytes + workspace_bytes + 64);
        if (!memory)
            return larder_fail(-ENOMEM, "no memory to encode %llu bytes",
                               (unsigned long long)raw_bytes);
        gather(operation, memory, &slice);
        uint64_t bound = larder_recipe_bound(operation->recipe, model, index, token_count);
        struct larder_block block = {.model = model,
                                     .position = put->wire.position,
                                     .tables = operation->tables,
                                     .token_count = token_count,
                                     .keep_bits = is_short(put)};
        set_inputs(operation, &block);
        LARDER_TRY(larder_recipe_encode(operation->recipe, out, bound, &bytes,
                                        &operation->errors[index], &block, index, memory,
                                        memory + copy_bytes, workspace_bytes));
        assert(bytes <= bound);
    }
    *section = (struct larder_section){
        .layer_first = slice.layer_first,
        .layer_count = slice.layer_count,
        .head_first = slice.head_first,
        .head_count = slice.head_count,
        .kind = slice.kind,
        .flags = operation->errors[index].fell_back ? LARDER_SECTION_FELL_BACK : 0,
        .offset = operation->payload_offset + place,
        .bytes = bytes,
    };
    larder_section_set_error(section, relative_rms(operation->errors[index].error_energy,
                                                   operation->errors[index].signal_energy));
    return 0;
}

/* Closes the gaps that bounds left, zeroes the padding; returns the payload's length. */
static uint64_t close_gaps(struct operation *operation)
{
    uint64_t used = 0;
    for (uint32_t i = 0; i < operation->section_count; i++) {
        struct larder_section *section = &operation->directory[i];
        uint64_t place = section->offset - operation->payload_offset;
        assert(place >= used);
        if (place != used)
            memmove(operation->payload + used, operation->payload + place, section->bytes);
        section->offset = operation->payload_offset + used;
        uint64_t end = used + section->bytes;
        used = larder_round_up(end, LARDER_SECTION_ALIGN);
        memset(operation->payload + end, 0, used - end);
    }
    return used;
}

static void tell_errors(struct operation *operation)
{
    double error[2] = {0, 0};
    double signal[2] = {0, 0};
    for (uint32_t i = 0; i < operation->section_count; i++) {
        bool is_v = operation->directory[i].kind == LARDER_SECTION_V;
        error[is_v] += operation->errors[i].error_energy;
        signal[is_v] += operation->errors[i].signal_energy;
        operation->put.fell_back += operation->errors[i].fell_back;
    }
    larder_put_set_errors(operation->slot, relative_rms(error[0], signal[0]),
                          relative_rms(error[1], signal[1]));
}

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
    uint64_t payload_bytes = close_gaps(operation);
    tell_errors(operation);
    operation->put.stored_bytes =
        larder_round_up(operation->payload_offset + payload_bytes, LARDER_PAGE_BYTES);
    larder_store_put_commit(store, operation->slot, operation->section_count, payload_bytes,
                            (enum larder_wait)operation->put.wire.wait, committed, operation);
    give_recipe(operation);
    /* `answer` may have run, but `idle` has not: the operation is still there. */
    post_idle(operation);
}

static void encode_sections(struct operation *operation, struct scratch *scratch)
{
    uint32_t count = operation->section_count;
    uint64_t place = 0;
    for (;;) {
        uint32_t index =
            atomic_fetch_add_explicit(&operation->section_next, 1, memory_order_relaxed);
        if (index >= count)
            return;
        if (atomic_load_explicit(&operation->section_err, memory_order_relaxed) == 0) {
            if (!operation->in_place)
                place = operation->places[index];
            int err = encode(operation, index, place, scratch);
            if (err < 0)
                atomic_store_explicit(&operation->section_err, err, memory_order_relaxed);
            else
                place += larder_round_up(operation->directory[index].bytes, LARDER_SECTION_ALIGN);
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
    operation->recipe = operation->chosen.recipe;
    put->kl = operation->chosen.kl;
    put->unmeasured = operation->chosen.unmeasured;
    const char *text = larder_recipe_text(operation->recipe);
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

static int fill_tables(struct operation *operation)
{
    const struct larder_model_desc *model = &operation->put.model->info.desc;
    const struct wire_put *wire = &operation->put.wire;
    uint64_t bytes = larder_recipe_tables_bytes(operation->recipe, model, wire->token_count);
    if (bytes == 0)
        return 0;
    operation->tables = larder_alloc(bytes);
    if (!operation->tables)
        return larder_fail(-ENOMEM, "no memory for tables of %u positions", wire->token_count);
    return larder_recipe_fill_tables(operation->recipe, operation->tables, model, wire->position,
                                     wire->token_count);
}

/* Where each section may go at most, and how long all may become. */
static int plan_sections(struct operation *operation, uint64_t *payload_bytes_max)
{
    const struct larder_model_desc *model = &operation->put.model->info.desc;
    uint32_t token_count = operation->put.wire.token_count;
    LARDER_TRY(fill_tables(operation));
    uint32_t count = larder_recipe_section_count(operation->recipe, model);
    if (count == 0 || count > LARDER_SECTIONS_MAX)
        return larder_fail(LARDER_ELIMIT, "recipe '%s' makes %u sections, at most %u fit a record",
                           larder_recipe_text(operation->recipe), count, LARDER_SECTIONS_MAX);
    operation->places = larder_alloc(count * sizeof(operation->places[0]));
    operation->errors = larder_alloc_zero(count, sizeof(operation->errors[0]));
    if (!operation->places || !operation->errors)
        return larder_fail(-ENOMEM, "no memory for %u sections", count);
    uint64_t used = 0;
    for (uint32_t i = 0; i < count; i++) {
        operation->places[i] = used;
        used += larder_round_up(larder_recipe_bound(operation->recipe, model, i, token_count),
                                LARDER_SECTION_ALIGN);
    }
    if (used > LARDER_RECORD_BYTES_MAX)
        return larder_fail(LARDER_ELIMIT,
                           "a block of %u tokens may become %llu bytes, a record has at most %llu; "
                           "use smaller blocks",
                           token_count, (unsigned long long)used,
                           (unsigned long long)LARDER_RECORD_BYTES_MAX);
    operation->section_count = count;
    *payload_bytes_max = used;
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
    enum larder_quality quality = larder_recipe_quality(operation->recipe);
    enum larder_quality computed_on = (enum larder_quality)operation->put.wire.computed_on;
    return quality < computed_on ? computed_on : quality;
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
        .recipe = larder_recipe_text(operation->recipe),
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
    larder_recipe_profile_name(operation->recipe, desc->profile);
    LARDER_TRY(plan_sections(operation, &desc->payload_bytes_max));
    desc->section_count_max = operation->section_count;
    LARDER_TRY(larder_store_put_reserve(put->session->daemon->store, &operation->slot, desc));
    operation->payload = larder_put_payload(operation->slot, &operation->payload_offset);
    operation->directory = larder_put_directory(operation->slot);
    return 0;
}

static void call_helpers(struct operation *operation)
{
    struct workers *workers = operation->put.session->daemon->workers;
    uint32_t count = workers_count(workers) - 1;
    if (count > operation->section_count - 1)
        count = operation->section_count - 1;
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
    atomic_store_explicit(&operation->section_left, operation->section_count, memory_order_relaxed);
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
