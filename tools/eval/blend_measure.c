/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/eval/blend_measure.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>

#include "base/error.h"
#include "base/mem.h"
#include "tools/eval/coder.h"

/* Shared by the threads of one measurement. */
struct shared {
    struct eval_blend_work *work;
    pthread_mutex_t mutex; /* of the trials' messages */
};

/* A thread's memory. */
struct hand {
    struct shared *shared;
    struct eval_crew *crew;
    struct eval_blender *blender;
    struct eval_facts facts;
};

int eval_blend_trial_open(struct eval_blend_trial *out, const struct eval_blend_work *work,
                          const char *family, const char *method,
                          const struct eval_blend_recipe *chunks)
{
    *out = (struct eval_blend_trial){.family = family, .chunks = chunks};
    eval_blend_fill(out->method, method, work->check_layer);
    out->answers = larder_alloc_zero(work->samples, sizeof(*out->answers));
    if (!out->answers)
        return larder_fail(-ENOMEM, "no memory for the answers of %u samples", work->samples);
    return 0;
}

void eval_blend_trial_close(struct eval_blend_trial *trial)
{
    larder_free(trial->answers);
    trial->answers = NULL;
}

static void note_failure(struct shared *shared, struct eval_blend_trial *trial)
{
    pthread_mutex_lock(&shared->mutex);
    if (!trial->error[0])
        snprintf(trial->error, sizeof(trial->error), "%s", larder_error_message());
    pthread_mutex_unlock(&shared->mutex);
    atomic_store(&trial->failed, true);
}

/* Chunks as they come back from a recipe. A recipe that cannot take them fails its trials. */
static int store_chunks(struct hand *hand, const struct eval_blend_recipe *chunks)
{
    if (!chunks->recipe)
        return eval_blender_store(hand->blender, NULL);
    struct eval_coder *coder;
    LARDER_TRY(eval_coder_open(&coder, chunks->recipe, eval_blender_desc(hand->blender),
                               eval_blender_chunk_tokens(hand->blender)));
    int err = eval_blender_store(hand->blender, coder);
    eval_coder_close(coder);
    return err;
}

static int run_sample(void *context, uint32_t sample)
{
    struct hand *hand = context;
    struct eval_blend_work *work = hand->shared->work;
    struct eval_source source = {.state = (work->seed << 32) + sample};
    eval_facts_make(&hand->facts, &source, work->people);
    LARDER_TRY(eval_blender_load(hand->blender, &hand->facts, &work->references[sample]));
    const struct eval_blend_recipe *chunks = NULL;
    int stored = 0;
    for (uint32_t i = 0; i < work->trial_count; i++) {
        struct eval_blend_trial *trial = &work->trials[i];
        if (trial->chunks != chunks)
            stored = store_chunks(hand, trial->chunks);
        chunks = trial->chunks;
        int err = stored;
        if (err == 0 && !atomic_load(&trial->failed))
            err = eval_blender_run(hand->blender, trial->method, sample, &trial->answers[sample]);
        if (err == -ENOMEM)
            return err;
        if (err < 0)
            note_failure(hand->shared, trial);
        eval_crew_step(hand->crew);
    }
    return 0;
}

static void close_hand(void *context)
{
    struct hand *hand = context;
    if (!hand)
        return;
    eval_blender_close(hand->blender);
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
    const struct eval_blend_work *work = hand->shared->work;
    return eval_blender_open(&hand->blender,
                             &(struct eval_blender_options){.model = work->model,
                                                            .people_max = work->people,
                                                            .turns = work->turns});
}

int eval_blend_measure(struct eval_blend_work *work)
{
    struct shared shared = {.work = work, .mutex = PTHREAD_MUTEX_INITIALIZER};
    const struct eval_crew_work crew = {
        .open = open_hand,
        .run = run_sample,
        .close = close_hand,
        .context = &shared,
        .items = work->samples,
        .steps_of_item = work->trial_count,
        .jobs = work->jobs,
        .progress = work->progress,
    };
    return eval_crew_run(&crew);
}
