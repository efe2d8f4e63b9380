/* SPDX-License-Identifier: Apache-2.0 */
#include "storage/keeper.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "base/mem.h"

/* A transaction that finds the map full is made again, with a larger one. */
#define ATTEMPTS_MAX 3

struct keeper {
    /* set before the thread starts */
    struct larder_index *index;
    const struct seglog *log;
    void (*done)(void *context);
    void *context;
    pthread_t thread;

    /* under mutex */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct round *given;
    struct round *over;
    bool stopping;

    /* the keeper's thread */
    bool failed; /* K2 */
};

/* --- the index -------------------------------------------------------------------------------- */

static int apply_change(struct larder_index *index, struct index_change *change)
{
    switch (change->kind) {
    case CHANGE_PUT:
        return larder_index_put_entry(index, &change->key, change->variant, &change->value);
    case CHANGE_DELETE:
        return larder_index_delete_entry(index, &change->key, change->variant);
    case CHANGE_PUT_MARK:
        return larder_index_put_mark(index, &change->key, &change->mark);
    case CHANGE_DELETE_MARK:
        return larder_index_delete_mark(index, &change->key);
    default:
        return larder_index_put_model(index, &change->key, change->desc);
    }
}

static int apply_batch(struct keeper *keeper, struct round *round, struct batch *batch)
{
    for (uint32_t i = 0; i < batch->count; i++)
        LARDER_TRY(apply_change(keeper->index, &batch->changes[i]));
    if (batch->segment_id == 0)
        return 0;
    /* With a row of a later segment only: the highest id the index knows is never used again. */
    if (batch == round->batches)
        for (uint32_t i = 0; i < round->gone_count; i++)
            LARDER_TRY(larder_index_delete_segment(keeper->index, round->gone[i]));
    return larder_index_put_segment(keeper->index, batch->segment_id, &batch->row);
}

bool keeper_may_try_again(int commit_err)
{
    return commit_err == -ENOSPC || commit_err == -ENOMEM;
}

static int commit_batch(struct keeper *keeper, struct round *round, struct batch *batch)
{
    int err = -EAGAIN;
    for (int attempt = 0; attempt < ATTEMPTS_MAX && err == -EAGAIN; attempt++) {
        LARDER_TRY(larder_index_begin_few(keeper->index, batch->count + round->gone_count));
        err = apply_batch(keeper, round, batch);
        if (err < 0) {
            larder_index_abort(keeper->index);
        } else {
            err = larder_index_commit(keeper->index, round->next_generation);
            /* What changes nothing before it is a failure like others in a commit. */
            err = keeper_may_try_again(err) ? -EIO : err;
        }
    }
    return err;
}

static int commit_batches(struct keeper *keeper, struct round *round)
{
    for (struct batch *batch = round->batches; batch; batch = batch->next) {
        LARDER_TRY(commit_batch(keeper, round, batch));
        round->committed++;
    }
    return 0;
}

/* --- space ------------------------------------------------------------------------------------ */

static void punch_all(struct keeper *keeper, struct round *round)
{
    for (uint32_t i = 0; i < round->punch_count && round->punch_err != -EOPNOTSUPP; i++) {
        const struct punch *punch = &round->punches[i];
        round->punch_err = seglog_punch(keeper->log, punch->segment, punch->offset, punch->bytes);
    }
}

static int remove_all(struct keeper *keeper, struct round *round)
{
    for (; round->removed < round->remove_count; round->removed++)
        LARDER_TRY(seglog_remove_file(keeper->log, round->removes[round->removed]));
    return 0;
}

static void give_back(struct keeper *keeper, struct round *round)
{
    punch_all(keeper, round);
    round->remove_err = remove_all(keeper, round);
    if (round->remove_err < 0)
        larder_log(LARDER_LOG_WARN, "storage: removing a dead segment: %s", larder_error_message());
}

/* --- rounds ----------------------------------------------------------------------------------- */

static void work(struct keeper *keeper, struct round *round)
{
    if (keeper->failed) {
        round->commit_err = -EIO;
        return;
    }
    round->commit_err = commit_batches(keeper, round);
    if (round->commit_err < 0) {
        keeper->failed = !keeper_may_try_again(round->commit_err);
        round->room_err = round->commit_err;
        return;
    }
    round->room_err = larder_index_reserve(keeper->index);
    give_back(keeper, round);
    if (round->make_id != 0)
        round->make_err = seglog_make_file(keeper->log, &round->made, round->make_id);
}

static void *keeper_thread(void *argument)
{
    struct keeper *keeper = argument;
    pthread_mutex_lock(&keeper->mutex);
    for (;;) {
        while (!keeper->given && !keeper->stopping)
            pthread_cond_wait(&keeper->changed, &keeper->mutex);
        struct round *round = keeper->given;
        if (!round)
            break;
        pthread_mutex_unlock(&keeper->mutex);
        work(keeper, round);
        pthread_mutex_lock(&keeper->mutex);
        keeper->given = NULL;
        keeper->over = round;
        /* Under the mutex: whoever closes finds this call over. */
        keeper->done(keeper->context);
    }
    pthread_mutex_unlock(&keeper->mutex);
    return NULL;
}

int keeper_open(struct keeper **out, struct larder_index *index, const struct seglog *log,
                void (*done)(void *context), void *context)
{
    *out = NULL;
    struct keeper *keeper = larder_alloc_zero(1, sizeof(*keeper));
    if (!keeper)
        return larder_fail(-ENOMEM, "keeper: no memory");
    keeper->index = index;
    keeper->log = log;
    keeper->done = done;
    keeper->context = context;
    pthread_mutex_init(&keeper->mutex, NULL);
    pthread_cond_init(&keeper->changed, NULL);
    int err = pthread_create(&keeper->thread, NULL, keeper_thread, keeper);
    if (err != 0) {
        pthread_cond_destroy(&keeper->changed);
        pthread_mutex_destroy(&keeper->mutex);
        larder_free(keeper);
        return larder_fail(-err, "keeper: thread: %s", strerror(err));
    }
    *out = keeper;
    return 0;
}

void keeper_close(struct keeper *keeper)
{
    pthread_mutex_lock(&keeper->mutex);
    keeper->stopping = true;
    pthread_cond_signal(&keeper->changed);
    pthread_mutex_unlock(&keeper->mutex);
    pthread_join(keeper->thread, NULL);
    pthread_cond_destroy(&keeper->changed);
    pthread_mutex_destroy(&keeper->mutex);
    larder_free(keeper);
}

void keeper_give(struct keeper *keeper, struct round *round)
{
    pthread_mutex_lock(&keeper->mutex);
    assert(!keeper->given);
    assert(!keeper->over);
    keeper->given = round;
    pthread_cond_signal(&keeper->changed);
    pthread_mutex_unlock(&keeper->mutex);
}

struct round *keeper_take(struct keeper *keeper)
{
    pthread_mutex_lock(&keeper->mutex);
    struct round *round = keeper->over;
    keeper->over = NULL;
    pthread_mutex_unlock(&keeper->mutex);
    return round;
}
