/* SPDX-License-Identifier: Apache-2.0 */
#include "client/get.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"

/* A get of more than this goes past the caches: the second level of today's cores is 1 to 2 MiB. */
#define PAST_CACHE_BYTES (8u << 20)

/* --- stopping -------------------------------------------------------------------------------- */

void get_stop(struct larder_get_op *op, int err)
{
    op->more = false;
    op->stopped = true;
    op->stop_error = err;
    snprintf(op->stop_message, sizeof(op->stop_message), "%s", larder_error_message());
}

void get_cut(struct larder_get_op *op, uint32_t index, int err)
{
    if (index >= op->good)
        return;
    op->good = index;
    get_stop(op, err);
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
        op->tokens_done = get_block_end(op, block);
    }
    get_release(op);
}

/* Windows but the last are of no use layer by layer: each is decoded whole to make room for the
 * next. */
static int finish_windows_before_last(struct larder_get_op *op)
{
    while (op->more && !op->stopped) {
        LARDER_TRY(get_decode(op, op->model->desc.layers - 1));
        if (op->stopped)
            return 0; /* end() counts what is good */
        finish_window(op);
        int err = get_ask(op);
        op->good = op->block_count;
        if (err == -ENOMEM)
            return err;
        /* What the daemon granted before the error is still good. */
        if (err < 0)
            get_stop(op, err);
    }
    return 0;
}

/* --- the calls ------------------------------------------------------------------------------- */

static void free_op(struct larder_get_op *op)
{
    if (op->link) {
        get_release(op);
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
    op->keys_at_once = LARDER_REQUEST_KEYS_MAX;
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
    int err = get_ask(op);
    /* The daemon answered, but has no room to load into: for the caller that is a miss. */
    if (err == LARDER_EFULL) {
        get_stop(op, err);
        err = 0;
    }
    LARDER_TRY(err);
    op->good = op->block_count;
    *tokens =
        op->block_count ? get_block_end(op, &op->blocks[op->block_count - 1]) : op->tokens_done;
    if (op->more)
        LARDER_TRY(get_count_rest(op, tokens));
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
        err = get_decode(op, layer);
    if (err < 0) {
        op->good = 0;
        get_stop(op, err);
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
        err = get_decode(op, layers - 1);
    if (err < 0 || (op->layers_done < layers && op->block_count > 0)) {
        if (op->good > 0)
            get_cut(op, 0,
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
