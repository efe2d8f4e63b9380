/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/eval/measure.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/mem.h"
#include "base/record.h"

/* Shared by the threads of one measurement. */
struct shared {
    struct eval_work *work;
    pthread_mutex_t mutex; /* of the trials' messages */
};

/* A thread's memory. */
struct hand {
    struct shared *shared;
    struct eval_crew *crew;
    struct eval_engine *engine;
    const struct larder_model_desc *model;
    uint8_t *decoded; /* planes of a prefix */
    uint8_t *encoded; /* sections of a block, each at its bound */
    uint64_t encoded_bytes_max;
    void *workspace;
    uint64_t workspace_bytes;
    uint64_t *section_bytes;
    void *tables[EVAL_BLOCKS]; /* of the block's positions: the same for every recipe */
    XXH128_hash_t *seen;       /* [trial] of what it gave for the prefix in hand */
};

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* --- trials ----------------------------------------------------------------------------------- */

int eval_trial_open(struct eval_trial *out, const struct eval_subject *subject, const char *family,
                    const char *name, const char *text)
{
    const struct eval_samples *samples = subject->samples;
    *out = (struct eval_trial){0};
    snprintf(out->name, sizeof(out->name), "%s", name);
    snprintf(out->family, sizeof(out->family), "%s", family);
    size_t predictions = (size_t)samples->text_scored + samples->answer_scored;
    size_t errors = (size_t)samples->count * subject->model->layers * EVAL_PARTS;
    out->outcomes = larder_alloc_zero(samples->count, sizeof(*out->outcomes));
    out->errors = larder_alloc_zero(errors, sizeof(*out->errors));
    out->kl = larder_alloc_zero(predictions, sizeof(*out->kl));
    out->nats = larder_alloc_zero(predictions, sizeof(*out->nats));
    out->agree = larder_alloc_zero(predictions, sizeof(*out->agree));
    if (!out->outcomes || !out->errors || !out->kl || !out->nats || !out->agree) {
        eval_trial_close(out);
        return larder_fail(-ENOMEM, "no memory for the figures of a recipe");
    }
    int err = larder_recipe_open(&out->recipe, text, subject->profile);
    if (err == 0)
        err = larder_recipe_fits(out->recipe, subject->model);
    if (err < 0) {
        snprintf(out->error, sizeof(out->error), "%s", larder_error_message());
        atomic_store(&out->failed, true);
    }
    return 0;
}

void eval_trial_close(struct eval_trial *trial)
{
    larder_recipe_close(trial->recipe);
    larder_free(trial->agree);
    larder_free(trial->nats);
    larder_free(trial->kl);
    larder_free(trial->errors);
    larder_free(trial->outcomes);
    *trial = (struct eval_trial){0};
}

/* --- a recipe on a prefix --------------------------------------------------------------------- */

/* Bytes of the record that a PUT of these sections makes. */
static uint64_t record_bytes(const struct larder_recipe *recipe, const uint64_t *section_bytes,
                             uint32_t section_count)
{
    struct larder_head_layout layout;
    larder_head_layout(&layout, 0, (uint32_t)strlen(larder_recipe_text(recipe)), EVAL_BLOCK_TOKENS,
                       section_count);
    uint64_t bytes = layout.sections;
    for (uint32_t i = 0; i < section_count; i++)
        bytes += larder_round_up(section_bytes[i], LARDER_SECTION_ALIGN);
    return larder_round_up(bytes, LARDER_PAGE_BYTES);
}

static int encode_block(struct hand *hand, const struct eval_trial *trial,
                        struct eval_outcome *outcome, const struct larder_block *block,
                        const uint8_t *planes)
{
    uint32_t count = larder_recipe_section_count(trial->recipe, hand->model);
    uint8_t *out = hand->encoded;
    for (uint32_t i = 0; i < count; i++) {
        struct larder_slice slice;
        struct larder_section_error error;
        uint64_t bound = larder_recipe_bound(trial->recipe, hand->model, i, EVAL_BLOCK_TOKENS);
        larder_recipe_slice(trial->recipe, &slice, hand->model, i);
        LARDER_TRY(larder_recipe_encode(trial->recipe, out, bound, &hand->section_bytes[i], &error,
                                        block, i, planes, hand->workspace, hand->workspace_bytes));
        outcome->section_bytes += hand->section_bytes[i];
        outcome->fell_back += error.fell_back;
        planes += larder_slice_raw_bytes(hand->model, &slice, EVAL_BLOCK_TOKENS);
        out += larder_round_up(bound, 64);
    }
    outcome->record_bytes += record_bytes(trial->recipe, hand->section_bytes, count);
    return 0;
}

static int decode_block(struct hand *hand, const struct eval_trial *trial,
                        const struct larder_block *block, uint8_t *planes)
{
    uint32_t count = larder_recipe_section_count(trial->recipe, hand->model);
    const uint8_t *in = hand->encoded;
    for (uint32_t i = 0; i < count; i++) {
        struct larder_slice slice;
        larder_recipe_slice(trial->recipe, &slice, hand->model, i);
        uint64_t bytes = larder_slice_raw_bytes(hand->model, &slice, EVAL_BLOCK_TOKENS);
        LARDER_TRY(larder_recipe_decode(trial->recipe, planes, bytes, block, i, in,
                                        hand->section_bytes[i], hand->workspace,
                                        hand->workspace_bytes));
        planes += bytes;
        in += larder_round_up(larder_recipe_bound(trial->recipe, hand->model, i, EVAL_BLOCK_TOKENS),
                              64);
    }
    return 0;
}

static int code_prefix(struct hand *hand, const struct eval_trial *trial,
                       struct eval_outcome *outcome)
{
    uint64_t all = eval_engine_planes_bytes(hand->engine);
    const uint8_t *planes = eval_engine_planes(hand->engine);
    const struct eval_inputs *inputs = eval_engine_inputs(hand->engine);
    for (uint32_t i = 0; i < EVAL_BLOCKS; i++) {
        uint64_t first = i * (all / EVAL_BLOCKS);
        struct larder_block block = {.model = hand->model,
                                     .position = (uint64_t)i * EVAL_BLOCK_TOKENS,
                                     .tables = hand->tables[i],
                                     .token_count = EVAL_BLOCK_TOKENS};
        if (inputs) {
            block.importance = eval_inputs_importance(inputs, i);
            block.q_max = eval_inputs_q_max(inputs);
        }
        double started = now_s();
        LARDER_TRY(encode_block(hand, trial, outcome, &block, planes + first));
        double encoded = now_s();
        LARDER_TRY(decode_block(hand, trial, &block, hand->decoded + first));
        outcome->encode_s += encoded - started;
        outcome->decode_s += now_s() - encoded;
    }
    outcome->is_exact = memcmp(planes, hand->decoded, all) == 0;
    outcome->is_coded = true;
    return 0;
}

static struct eval_figures figures_of(const struct hand *hand, const struct eval_trial *trial,
                                      uint32_t prefix)
{
    const struct eval_samples *samples = hand->shared->work->samples;
    size_t first = samples->prefixes[prefix].is_question ? samples->text_scored : 0;
    return (struct eval_figures){
        .kl = trial->kl + first,
        .nats = trial->nats + first,
        .agree = trial->agree + first,
        .error = trial->errors + (size_t)prefix * hand->model->layers * EVAL_PARTS,
    };
}

/* Figures of a recipe that gave the very same planes. */
static void copy_figures(const struct hand *hand, const struct eval_trial *to,
                         const struct eval_trial *from, uint32_t prefix)
{
    const struct eval_prefix *sample = &hand->shared->work->samples->prefixes[prefix];
    struct eval_figures a = figures_of(hand, to, prefix);
    struct eval_figures b = figures_of(hand, from, prefix);
    memcpy(a.error, b.error, hand->model->layers * EVAL_PARTS * sizeof(*a.error));
    for (uint32_t i = 0; i < sample->run_count; i++) {
        size_t place = sample->runs[i].place;
        size_t count = sample->runs[i].count - sample->runs[i].scored;
        memcpy(a.kl + place, b.kl + place, count * sizeof(*a.kl));
        memcpy(a.nats + place, b.nats + place, count * sizeof(*a.nats));
        memcpy(a.agree + place, b.agree + place, count * sizeof(*a.agree));
    }
}

#define TWIN_EVERY 4u

static int run_twin(struct hand *hand, uint32_t index, uint32_t prefix)
{
    struct eval_trial *trial = &hand->shared->work->trials[index];
    struct eval_outcome *outcome = &trial->outcomes[prefix];
    copy_figures(hand, trial, trial - 1, prefix);
    hand->seen[index] = hand->seen[index - 1];
    outcome->is_exact = trial[-1].outcomes[prefix].is_exact;
    if (prefix % TWIN_EVERY != 0)
        return 0;
    LARDER_TRY(code_prefix(hand, trial, outcome));
    XXH128_hash_t hash = XXH3_128bits(hand->decoded, eval_engine_planes_bytes(hand->engine));
    if (!XXH128_isEqual(hash, hand->seen[index]))
        return larder_fail(LARDER_ECORRUPT, "entropy-coded it gives other numbers");
    return 0;
}

static int run_trial(struct hand *hand, uint32_t index, uint32_t prefix)
{
    struct eval_work *work = hand->shared->work;
    struct eval_trial *trial = &work->trials[index];
    uint64_t bytes = eval_engine_planes_bytes(hand->engine);
    struct eval_outcome *outcome = &trial->outcomes[prefix];
    if (trial->is_coded && !atomic_load(&trial[-1].failed))
        return run_twin(hand, index, prefix);
    LARDER_TRY(code_prefix(hand, trial, outcome));
    hand->seen[index] = XXH3_128bits(hand->decoded, bytes);
    for (uint32_t i = 0; i < index; i++) {
        if (!atomic_load(&work->trials[i].failed) &&
            XXH128_isEqual(hand->seen[i], hand->seen[index])) {
            copy_figures(hand, trial, &work->trials[i], prefix);
            return 0;
        }
    }
    struct eval_figures figures = figures_of(hand, trial, prefix);
    return eval_engine_compare(hand->engine, hand->decoded, &figures);
}

/* A recipe that cannot encode this model's KV is left out, and says why. */
static void note_failure(struct shared *shared, struct eval_trial *trial)
{
    pthread_mutex_lock(&shared->mutex);
    if (!trial->error[0])
        snprintf(trial->error, sizeof(trial->error), "%s", larder_error_message());
    pthread_mutex_unlock(&shared->mutex);
    atomic_store(&trial->failed, true);
}

static int run_prefix(void *context, uint32_t prefix)
{
    struct hand *hand = context;
    struct eval_work *work = hand->shared->work;
    uint64_t bytes = eval_engine_planes_bytes(hand->engine);
    size_t energies = (size_t)hand->model->layers * EVAL_PARTS;
    LARDER_TRY(eval_engine_load(hand->engine, &work->samples->prefixes[prefix]));
    memcpy(work->energies + prefix * energies, eval_engine_energy(hand->engine),
           energies * sizeof(*work->energies));
    double started = now_s();
    memcpy(hand->decoded, eval_engine_planes(hand->engine), bytes);
    double copy_s = now_s() - started;
    for (uint32_t i = 0; i < work->trial_count; i++) {
        struct eval_trial *trial = &work->trials[i];
        if (!atomic_load(&trial->failed)) {
            trial->outcomes[prefix].copy_s = copy_s;
            int err = run_trial(hand, i, prefix);
            if (err == -ENOMEM)
                return err;
            if (err < 0)
                note_failure(hand->shared, trial);
        }
        eval_crew_step(hand->crew);
    }
    return 0;
}

/* --- threads ---------------------------------------------------------------------------------- */

static uint64_t encoded_bytes_max(const struct hand *hand, const struct eval_trial *trial)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < larder_recipe_section_count(trial->recipe, hand->model); i++)
        bytes += larder_round_up(
            larder_recipe_bound(trial->recipe, hand->model, i, EVAL_BLOCK_TOKENS), 64);
    return bytes;
}

/* Tables are of positions, not of recipes: the first that needs them fills them for all. */
static int fill_tables(struct hand *hand, const struct eval_trial *trial)
{
    uint64_t bytes = larder_recipe_tables_bytes(trial->recipe, hand->model, EVAL_BLOCK_TOKENS);
    for (uint32_t i = 0; i < EVAL_BLOCKS && bytes > 0 && !hand->tables[i]; i++) {
        hand->tables[i] = larder_alloc_aligned(64, bytes);
        if (!hand->tables[i])
            return larder_fail(-ENOMEM, "no memory for tables of positions");
        LARDER_TRY(larder_recipe_fill_tables(trial->recipe, hand->tables[i], hand->model,
                                             (uint64_t)i * EVAL_BLOCK_TOKENS, EVAL_BLOCK_TOKENS));
    }
    return 0;
}

static int open_memory(struct hand *hand)
{
    const struct eval_work *work = hand->shared->work;
    LARDER_TRY(eval_engine_open(&hand->engine, work->model_directory, 1));
    hand->model = eval_engine_desc(hand->engine);
    uint64_t encoded = 64;
    uint32_t sections = 1;
    hand->workspace_bytes = 64;
    for (uint32_t i = 0; i < work->trial_count; i++) {
        const struct eval_trial *trial = &work->trials[i];
        if (trial->error[0])
            continue;
        encoded = larder_max_u64(encoded, encoded_bytes_max(hand, trial));
        sections = (uint32_t)larder_max_u64(
            sections, larder_recipe_section_count(trial->recipe, hand->model));
        hand->workspace_bytes = larder_max_u64(
            hand->workspace_bytes,
            larder_recipe_workspace_bytes(trial->recipe, hand->model, EVAL_BLOCK_TOKENS));
        LARDER_TRY(fill_tables(hand, trial));
        if (larder_recipe_needs(trial->recipe))
            LARDER_TRY(eval_engine_want_inputs(hand->engine));
    }
    hand->decoded = larder_alloc_aligned(64, eval_engine_planes_bytes(hand->engine));
    hand->encoded = larder_alloc_aligned(64, encoded);
    hand->workspace = larder_alloc_aligned(64, hand->workspace_bytes);
    hand->section_bytes = larder_alloc_zero(sections, sizeof(*hand->section_bytes));
    hand->seen = larder_alloc_zero(work->trial_count, sizeof(*hand->seen));
    if (!hand->decoded || !hand->encoded || !hand->workspace || !hand->section_bytes || !hand->seen)
        return larder_fail(-ENOMEM, "no memory for an evaluation");
    return 0;
}

static void close_hand(void *context)
{
    struct hand *hand = context;
    if (!hand)
        return;
    larder_free(hand->seen);
    larder_free(hand->section_bytes);
    larder_free(hand->workspace);
    larder_free(hand->encoded);
    larder_free(hand->decoded);
    for (uint32_t i = 0; i < EVAL_BLOCKS; i++)
        larder_free(hand->tables[i]);
    eval_engine_close(hand->engine);
    larder_free(hand);
}

static int open_hand(void **out, struct eval_crew *crew, void *context)
{
    struct hand *hand = larder_alloc_zero(1, sizeof(*hand));
    if (!hand)
        return larder_fail(-ENOMEM, "no memory for an evaluation");
    *out = hand;
    hand->shared = context;
    hand->crew = crew;
    return open_memory(hand);
}

int eval_measure(struct eval_work *work)
{
    struct shared shared = {.work = work, .mutex = PTHREAD_MUTEX_INITIALIZER};
    const struct eval_crew_work crew = {
        .open = open_hand,
        .run = run_prefix,
        .close = close_hand,
        .context = &shared,
        .items = work->samples->count,
        .steps_of_item = work->trial_count,
        .jobs = work->jobs,
        .progress = work->progress,
    };
    return eval_crew_run(&crew);
}
