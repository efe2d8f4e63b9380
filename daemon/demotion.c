/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/demotion.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/key.h"
#include "base/mem.h"
#include "base/record.h"
#include "daemon/larderd.h"
#include "daemon/measures.h"
#include "daemon/put_recipe.h"
#include "daemon/recipes.h"

/* What is not larger than this, beside what was seen of the recipe, is not worth trying. */
#define GAIN_MIN 1.0625f

static struct demotion *demotion_of(struct job *job)
{
    return (struct demotion *)((char *)job - offsetof(struct demotion, job));
}

static void post(struct demotion *demotion)
{
    completions_post(demotion->daemon->completions, &demotion->completion);
}

/* With the thread's message. */
static void fail(struct demotion *demotion, int err)
{
    demotion->err = err;
    snprintf(demotion->message, sizeof(demotion->message), "%s", larder_error_message());
    demotion->stage = DEMOTION_END;
}

/* From the store, on whatever thread: only the code is known. */
static void settle(struct demotion *demotion, int err, const char *what)
{
    if (err < 0) {
        larder_fail(err, "%s: %s", what, larder_error_text(err));
        fail(demotion, err);
    }
    post(demotion);
}

/* --- what there is ---------------------------------------------------------------------------- */

/* The best record to make another of: the least was lost, and then the largest. */
static const struct larder_entry_info *find_source(const struct larder_entry_info *all,
                                                   uint32_t count)
{
    const struct larder_entry_info *best = &all[0];
    for (uint32_t i = 1; i < count; i++) {
        const struct larder_entry_info *at = &all[i];
        if (at->quality != best->quality           ? at->quality < best->quality
            : at->computed_on != best->computed_on ? at->computed_on < best->computed_on
                                                   : at->record_bytes > best->record_bytes)
            best = at;
    }
    return best;
}

bool demotion_is_small(const struct larder_entry_info *entry, float expected)
{
    return expected > 0 &&
           (float)entry->record_bytes <= expected * GAIN_MIN * (float)entry->raw_bytes;
}

/* The smallest durable one of the recipe that is as good as one made of the best would be; NULL:
 * none. One that was computed on blended KV does not stand for what was not. */
static const struct larder_entry_info *find_kept(const struct larder_entry_info *all,
                                                 uint32_t count, const char *recipe)
{
    const struct larder_entry_info *kept = NULL;
    if (count == 0)
        return NULL;
    uint8_t worst = find_source(all, count)->quality;
    worst = worst > LARDER_QUALITY_LOSSY ? worst : LARDER_QUALITY_LOSSY;
    for (uint32_t i = 0; i < count; i++) {
        if (all[i].durable && all[i].quality <= worst && larder_store_is_recipe(&all[i], recipe) &&
            (!kept || all[i].record_bytes < kept->record_bytes))
            kept = &all[i];
    }
    return kept;
}

static uint64_t bytes_of(const struct larder_entry_info *all, uint32_t count)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < count; i++)
        bytes += all[i].durable ? all[i].record_bytes : 0;
    return bytes;
}

/* It was in nobody's way when the pass listed it; since then it may have been used. */
static bool may_go(const struct demotion *demotion, const struct larder_entry_info *all,
                   uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (all[i].held || all[i].idle_s < demotion->idle_s || all[i].tenant != demotion->tenant)
            return false;
    }
    return count > 0;
}

static int take_target(struct demotion *demotion)
{
    LARDER_TRY(larder_store_model_at(demotion->daemon->store, &demotion->info, demotion->model));
    return put_recipe_take(&demotion->target, demotion->daemon, &demotion->info.desc,
                           demotion->recipe);
}

/* --- reading ---------------------------------------------------------------------------------- */

static void lease_settled(struct demotion *demotion)
{
    if (atomic_fetch_sub(&demotion->waits, 1) != 1)
        return;
    if (demotion->err < 0)
        demotion->stage = DEMOTION_END;
    else if (demotion->loaded > 0)
        demotion->stage = DEMOTION_DECODE;
    else
        demotion->stage = DEMOTION_END; /* it has gone */
    post(demotion);
}

static void loaded(void *context, uint32_t loaded, int err)
{
    struct demotion *demotion = context;
    demotion->loaded = loaded;
    if (loaded == 0 && err < 0 && err != LARDER_ENOTFOUND) {
        larder_fail(err, "its record cannot be read: %s", larder_error_text(err));
        fail(demotion, err);
    }
    lease_settled(demotion);
}

static void take_lease(struct demotion *demotion)
{
    uint32_t count = 0;
    bool ready = false;
    const struct larder_want want = {.tenant = demotion->tenant,
                                     .keys = &demotion->key,
                                     .key_count = 1,
                                     .peek = true,
                                     .own = true,
                                     .variant = demotion->source_variant};
    atomic_store(&demotion->waits, 2);
    int err = larder_store_lease(demotion->daemon->store, &demotion->lease, &demotion->ref, &count,
                                 &ready, &want, loaded, demotion);
    if (err < 0)
        fail(demotion, err);
    if (err < 0 || count == 0 || ready) { /* loaded() is not called */
        demotion->loaded = err == 0 && ready ? count : 0;
        lease_settled(demotion);
    }
    lease_settled(demotion);
}

static void plan_run(struct job *job, struct scratch *scratch)
{
    struct demotion *demotion = demotion_of(job);
    struct larder_entry_info all[LARDER_VARIANTS_MAX];
    uint32_t count;
    (void)scratch;
    larder_store_variants(demotion->daemon->store, all, &count, &demotion->key);
    demotion->bytes_before = demotion->bytes_after = bytes_of(all, count);
    demotion->stage = DEMOTION_END;
    if (!may_go(demotion, all, count)) {
        post(demotion);
        return;
    }
    const struct larder_entry_info *kept = find_kept(all, count, demotion->recipe);
    if (kept) {
        /* A step that was interrupted, or somebody else's record. */
        demotion->stage = DEMOTION_TAKE;
        post(demotion);
        return;
    }
    const struct larder_entry_info *source = find_source(all, count);
    if (demotion_is_small(source, demotion->expected)) {
        post(demotion);
        return;
    }
    demotion->source_variant = source->variant;
    demotion->source_bytes = source->record_bytes;
    int err = take_target(demotion);
    if (err < 0) {
        fail(demotion, err);
        post(demotion);
        return;
    }
    take_lease(demotion);
}

/* --- decoding --------------------------------------------------------------------------------- */

static const struct larder_record *record_of(const struct demotion *demotion)
{
    return larder_store_ref_record(demotion->daemon->store, demotion->tenant, &demotion->ref);
}

/* The record is what its recipe makes of a block of its model. */
static int check_source(const struct demotion *demotion, const struct larder_record *record)
{
    const struct larder_model_desc *model = &demotion->info.desc;
    const struct larder_section *sections = larder_record_directory(record);
    const uint32_t count = larder_recipe_section_count(demotion->source, model);
    bool fits = record->token_count > 0 && record->section_count == count &&
                record->raw_bytes == larder_model_kv_bytes(model, record->token_count);
    for (uint32_t i = 0; fits && i < count; i++) {
        struct larder_slice slice;
        larder_recipe_slice(demotion->source, &slice, model, i);
        fits = slice.layer_first == sections[i].layer_first &&
               slice.layer_count == sections[i].layer_count &&
               slice.head_first == sections[i].head_first &&
               slice.head_count == sections[i].head_count && slice.kind == sections[i].kind;
    }
    return fits ? 0 : larder_fail(LARDER_ECORRUPT, "its sections are not those of its recipe");
}

static int take_source(struct demotion *demotion, const struct larder_record *record)
{
    char text[LARDER_RECIPE_BYTES_MAX + 1];
    memcpy(text, larder_record_recipe(record), record->recipe_bytes);
    text[record->recipe_bytes] = 0;
    const bool profiled = !larder_all_zero(record->profile, sizeof(record->profile));
    LARDER_TRY(recipes_take(demotion->daemon->recipes, &demotion->source, text,
                            profiled ? record->profile : NULL));
    LARDER_TRY(larder_recipe_fits(demotion->source, &demotion->info.desc));
    LARDER_TRY(check_source(demotion, record));
    demotion->planes = larder_alloc_aligned(64, record->raw_bytes);
    const uint64_t tables_bytes =
        larder_recipe_tables_bytes(demotion->source, &demotion->info.desc, record->token_count);
    demotion->tables = larder_alloc(tables_bytes + 1);
    if (!demotion->planes || !demotion->tables)
        return larder_fail(-ENOMEM, "no memory for a block of %llu bytes",
                           (unsigned long long)record->raw_bytes);
    if (tables_bytes > 0)
        LARDER_TRY(larder_recipe_fill_tables(demotion->source, demotion->tables,
                                             &demotion->info.desc, record->position,
                                             record->token_count));
    demotion->bytes_moved += record->record_bytes;
    return 0;
}

/* What the new record is, beside its sections. */
static int describe(struct demotion *demotion, const struct larder_record *record)
{
    struct larder_put_desc *desc = &demotion->desc;
    const uint64_t tokens_at = larder_round_up(record->extra_bytes, 4);
    demotion->head = larder_alloc(tokens_at + 4ull * record->token_count);
    if (!demotion->head)
        return larder_fail(-ENOMEM, "no memory for %u tokens", record->token_count);
    memcpy(demotion->head, larder_record_extra(record), record->extra_bytes);
    memcpy(demotion->head + tokens_at, larder_record_tokens(record), 4ull * record->token_count);

    float kl = larder_record_computed_on_kl(record);
    uint8_t computed_on = record->computed_on;
    if (larder_recipe_quality(demotion->source) != LARDER_QUALITY_EXACT) {
        kl += measures_kl(demotion->daemon->measures, &demotion->info.fingerprint,
                          larder_recipe_text(demotion->source), record->profile);
        if (computed_on == LARDER_QUALITY_EXACT)
            computed_on = LARDER_QUALITY_LOSSY;
    }
    uint8_t quality = (uint8_t)larder_recipe_quality(demotion->target);
    *desc = (struct larder_put_desc){
        .tenant = demotion->tenant,
        .model = demotion->model,
        .key = demotion->key,
        .extra = demotion->head,
        .extra_bytes = record->extra_bytes,
        .tokens = (const uint32_t *)(const void *)(demotion->head + tokens_at),
        .token_count = record->token_count,
        .position = record->position,
        .recipe = larder_recipe_text(demotion->target),
        .quality = (enum larder_quality)(quality > computed_on ? quality : computed_on),
        .computed_on = (enum larder_quality)computed_on,
        .computed_on_kl = kl,
        .raw_bytes = record->raw_bytes,
        .beside = true,
        .made_of = record->generation,
        .idle_s = (uint32_t)larder_min_u64(demotion->idle_s, UINT32_MAX),
    };
    memcpy(desc->parent.bytes, record->parent, sizeof(desc->parent.bytes));
    larder_recipe_profile_name(demotion->target, desc->profile);
    demotion->encoding.recipe = demotion->target;
    demotion->encoding.planes = demotion->planes;
    demotion->encoding.block = (struct larder_block){.model = &demotion->info.desc,
                                                     .position = record->position,
                                                     .token_count = record->token_count};
    return 0;
}

static int decode_section(struct demotion *demotion, const struct larder_record *record,
                          struct scratch *scratch)
{
    const struct larder_model_desc *model = &demotion->info.desc;
    const struct larder_section *section = &larder_record_directory(record)[demotion->next];
    struct larder_slice slice;
    larder_recipe_slice(demotion->source, &slice, model, demotion->next);
    const uint64_t raw_bytes = larder_slice_raw_bytes(model, &slice, record->token_count);
    const uint64_t copy_bytes = larder_round_up(raw_bytes, 64);
    const uint64_t workspace_bytes =
        larder_recipe_workspace_bytes(demotion->source, model, record->token_count);
    uint8_t *memory = scratch_reserve(scratch, copy_bytes + workspace_bytes + 64);
    if (!memory)
        return larder_fail(-ENOMEM, "no memory to decode %llu bytes",
                           (unsigned long long)raw_bytes);
    const struct larder_block block = {.model = model,
                                       .position = record->position,
                                       .tables = demotion->tables,
                                       .token_count = record->token_count};
    LARDER_TRY(larder_recipe_decode(demotion->source, memory, raw_bytes, &block, demotion->next,
                                    (const uint8_t *)record + section->offset, section->bytes,
                                    memory + copy_bytes, workspace_bytes));
    encode_scatter(demotion->planes, memory, &slice, model, record->token_count);
    return 0;
}

static void decode_run(struct job *job, struct scratch *scratch)
{
    struct demotion *demotion = demotion_of(job);
    const struct larder_record *record = record_of(demotion);
    int err = 0;
    if (!demotion->source)
        err = take_source(demotion, record);
    if (err == 0)
        err = decode_section(demotion, record, scratch);
    if (err == 0 && ++demotion->next == record->section_count) {
        err = describe(demotion, record);
        larder_store_release(demotion->daemon->store, demotion->lease);
        demotion->lease = NULL;
        demotion->next = 0;
        demotion->stage = DEMOTION_ENCODE;
    }
    if (err < 0)
        fail(demotion, err);
    post(demotion);
}

/* --- encoding --------------------------------------------------------------------------------- */

static void stored(void *context, int err)
{
    settle(context, err, "its smaller record did not become durable");
}

static int reserve(struct demotion *demotion)
{
    struct larder_put_desc *desc = &demotion->desc;
    LARDER_TRY(encode_plan(&demotion->encoding, &desc->payload_bytes_max));
    desc->section_count_max = demotion->encoding.section_count;
    LARDER_TRY(larder_store_put_reserve(demotion->daemon->store, &demotion->slot, desc));
    encode_into(&demotion->encoding, demotion->slot);
    return 0;
}

/* All sections are encoded. False: it was not worth it. */
static bool commit(struct demotion *demotion)
{
    struct encoding *encoding = &demotion->encoding;
    struct larder_put *slot = demotion->slot;
    uint32_t fell_back;
    const uint64_t payload_bytes = encode_finish(encoding, slot, &fell_back);
    const uint64_t bytes =
        larder_round_up(encoding->payload_offset + payload_bytes, LARDER_PAGE_BYTES);
    demotion->slot = NULL;
    demotion->made = (float)bytes / (float)demotion->desc.raw_bytes;
    if (bytes >= demotion->source_bytes) {
        larder_store_put_abort(demotion->daemon->store, slot);
        return false;
    }
    demotion->bytes_moved += bytes;
    demotion->stage = DEMOTION_STORE;
    larder_store_put_commit(demotion->daemon->store, slot, encoding->section_count, payload_bytes,
                            LARDER_DURABLE, stored, demotion);
    return true;
}

/* False: somebody else posts the completion. */
static bool encode_step(struct demotion *demotion, struct scratch *scratch)
{
    struct encoding *encoding = &demotion->encoding;
    int err = demotion->slot ? 0 : reserve(demotion);
    if (err == LARDER_EEXISTS) {
        /* It is there, but was not durable when this was planned. */
        demotion->stage = DEMOTION_STORE;
        larder_store_when_put(demotion->daemon->store, &demotion->desc, LARDER_DURABLE, stored,
                              demotion);
        return false;
    }
    if (err == 0)
        err = encode_section(encoding, demotion->next, demotion->place, scratch);
    if (err == 0)
        demotion->place +=
            larder_round_up(encoding->directory[demotion->next].bytes, LARDER_SECTION_ALIGN);
    if (err == 0 && ++demotion->next == encoding->section_count) {
        if (commit(demotion))
            return false;
        demotion->stage = DEMOTION_END;
    }
    if (err < 0)
        fail(demotion, err);
    return true;
}

static void encode_run(struct job *job, struct scratch *scratch)
{
    struct demotion *demotion = demotion_of(job);
    if (encode_step(demotion, scratch))
        post(demotion);
}

/* --- the end ---------------------------------------------------------------------------------- */

static void give_back(struct demotion *demotion)
{
    struct larderd *daemon = demotion->daemon;
    if (demotion->lease)
        larder_store_release(daemon->store, demotion->lease);
    if (demotion->slot)
        larder_store_put_abort(daemon->store, demotion->slot);
    if (demotion->source)
        recipes_give(daemon->recipes, demotion->source);
    if (demotion->target)
        recipes_give(daemon->recipes, demotion->target);
    encode_free(&demotion->encoding);
    larder_free(demotion->planes);
    larder_free(demotion->tables);
    larder_free(demotion->head);
    demotion->lease = NULL;
    demotion->slot = NULL;
    demotion->source = demotion->target = NULL;
    demotion->planes = demotion->head = NULL;
    demotion->tables = NULL;
}

/* Recipes are given back on a worker, as they may be waited for. */
static void end_run(struct job *job, struct scratch *scratch)
{
    struct demotion *demotion = demotion_of(job);
    (void)scratch;
    give_back(demotion);
    post(demotion);
}

/* The record that was made, or found: what is larger than it goes. */
static void taken(void *context, int err, uint64_t removed)
{
    struct demotion *demotion = context;
    (void)removed;
    /* Nothing larger is left, or somebody wants it: no fault. */
    if (err < 0)
        demotion->stage = DEMOTION_END;
    const bool fault = err < 0 && err != LARDER_ENOTFOUND && err != -EBUSY && err != LARDER_EPINNED;
    settle(demotion, fault ? err : 0, "its larger record did not go");
}

static void take_larger(struct demotion *demotion)
{
    struct larder_entry_info all[LARDER_VARIANTS_MAX];
    uint32_t count;
    larder_store_variants(demotion->daemon->store, all, &count, &demotion->key);
    const struct larder_entry_info *kept = find_kept(all, count, demotion->recipe);
    larder_store_demote(demotion->daemon->store, demotion->tenant, &demotion->key,
                        kept ? kept->variant : LARDER_VARIANTS_MAX, demotion->idle_s, taken,
                        demotion);
}

/* --- from step to step ------------------------------------------------------------------------ */

static void submit(struct demotion *demotion, void (*run)(struct job *, struct scratch *))
{
    demotion->job.run = run;
    workers_submit(demotion->daemon->workers, WORKERS_OWN, &demotion->job);
}

static void ended(struct completion *completion)
{
    struct demotion *demotion =
        (struct demotion *)((char *)completion - offsetof(struct demotion, completion));
    struct larder_entry_info all[LARDER_VARIANTS_MAX];
    uint32_t count;
    larder_store_variants(demotion->daemon->store, all, &count, &demotion->key);
    demotion->bytes_after = bytes_of(all, count);
    demotion->running = false;
    demotion->done(demotion->context, demotion->err);
}

static void step_done(struct completion *completion)
{
    struct demotion *demotion =
        (struct demotion *)((char *)completion - offsetof(struct demotion, completion));
    /* demotion_stop() gives back what there is. */
    if (!demotion->daemon->workers)
        return;
    if (demotion->daemon->stopping)
        demotion->stage = DEMOTION_END;
    switch (demotion->stage) {
    case DEMOTION_PLAN:
        assert(0 && "it has been planned");
        return;
    case DEMOTION_DECODE:
        submit(demotion, decode_run);
        return;
    case DEMOTION_ENCODE:
        submit(demotion, encode_run);
        return;
    case DEMOTION_STORE:
        demotion->stage = DEMOTION_TAKE;
        take_larger(demotion);
        return;
    case DEMOTION_TAKE:
        take_larger(demotion);
        return;
    case DEMOTION_END:
        demotion->completion.run = ended;
        submit(demotion, end_run);
        return;
    }
}

void demotion_start(struct demotion *demotion)
{
    demotion->running = true;
    demotion->stage = DEMOTION_PLAN;
    demotion->completion.run = step_done;
    submit(demotion, plan_run);
}

void demotion_stop(struct demotion *demotion)
{
    if (demotion->running)
        give_back(demotion);
    demotion->running = false;
}
