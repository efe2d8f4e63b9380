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
    case LARDER_ENOPROFILE:
        return LARDER_BLOCK_NO_PROFILE;
    case -ETIMEDOUT:
        return LARDER_BLOCK_TIMEOUT;
    case -ECANCELED:
        return LARDER_BLOCK_CANCELLED;
    default:
        return LARDER_BLOCK_IO;
    }
}

/* Counts the first blocks of the window, which are decoded in all layers. */
static void count_blocks(struct larder_get_op *op, uint32_t count)
{
    struct larder_get_result *result = &op->result;
    for (uint32_t i = 0; i < count; i++) {
        const struct get_block *block = &op->blocks[i];
        result->blocks += block->token_first + block->token_count <= op->token_end;
        result->bytes += block->bytes;
        if (block->quality > result->quality)
            result->quality = block->quality;
        op->tokens_done = get_block_end(op, block);
    }
}

/* Windows but the last are of no use layer by layer. */
static int finish_windows_before_last(struct larder_get_op *op)
{
    while (op->more && !op->stopped) {
        op->front = get_front(op);
        int err = get_decode(op, op->layer_end - 1);
        const uint32_t count = op->front;
        op->front = 0;
        LARDER_TRY(err);
        if (op->stopped)
            return 0; /* end() counts what is good */
        count_blocks(op, count);
        get_release_front(op, count);
        /* Leases of half the room from here on: one is decoded while the other is read. */
        if (op->keys_at_once > 1 && count > 1 && op->keys_at_once > count / 2)
            op->keys_at_once = count / 2;
        err = get_ask(op);
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

int get_check_options(const struct larder_model *model, const struct larder_get_options *options)
{
    const uint32_t layers = model->desc.layers;
    if (!options)
        return 0;
    if (!larder_all_zero(options->reserved, sizeof(options->reserved)))
        return larder_fail(-EINVAL, "get: reserved bytes of the options are not zero");
    if (options->layer_first >= layers || options->layer_count > layers - options->layer_first)
        return larder_fail(-EINVAL,
                           "get: layer_first=%u and layer_count=%u leave the model's %u layers",
                           options->layer_first, options->layer_count, layers);
    LARDER_TRY(client_check_kl("get: max_kl", options->max_kl));
    return client_check_quality(options->worst);
}

static int set_options(struct larder_get_op *op, const struct larder_get_options *options)
{
    op->started_ns = client_now_ns();
    op->layer_end = op->model->desc.layers;
    LARDER_TRY(get_check_options(op->model, options));
    op->accept = client_accept_of(options);
    if (!options)
        return 0;
    op->layer_first = op->layers_done = options->layer_first;
    op->layer_count = options->layer_count;
    if (options->layer_count > 0)
        op->layer_end = options->layer_first + options->layer_count;
    if (options->deadline_ms > 0)
        op->until_ns = op->started_ns + options->deadline_ms * 1000000ull;
    return 0;
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
                 const struct larder_layout *layout, const struct larder_get_options *options)
{
    struct larder_model *model = op->model;
    LARDER_TRY(set_options(op, options));
    LARDER_TRY(layout_open(&op->view, layout, &model->desc));
    LARDER_TRY(client_link_acquire(model->larder, &op->link));
    LARDER_TRY(client_model_handle(model, op->link, &op->handle));
    LARDER_TRY(client_chain_open(&op->chain, model, op->link, prompt));
    LARDER_TRY(set_range(op, prompt, layout, options ? options->tokens_max : 0));
    int err = get_ask(op);
    /* The daemon answered, but has no room to load into: for the caller that is a miss. So is what
     * could not be asked for in time. */
    const bool left = (err == -ETIMEDOUT && get_is_late(op)) || err == -ECANCELED;
    if (err == LARDER_EFULL || left) {
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
                     const struct larder_get_options *options, const atomic_bool *cancel)
{
    *out = NULL;
    *tokens = 0;
    struct larder_get_op *op = larder_alloc_zero(1, sizeof(*op));
    if (!op)
        return larder_fail(-ENOMEM, "no memory for a get");
    op->model = model;
    op->cancel = cancel;
    int err = begin(op, tokens, prompt, layout, options);
    if (err < 0) {
        free_op(op);
        return err;
    }
    *out = op;
    return 0;
}

int larder_get_begin(struct larder_model *model, struct larder_get_op **out, uint64_t *tokens,
                     const struct larder_prompt *prompt, const struct larder_layout *layout,
                     const struct larder_get_options *options)
{
    return begin_get(model, out, tokens, prompt, layout, options, NULL);
}

int larder_get_wait_layer(struct larder_get_op *op, uint32_t layer)
{
    if (layer < op->layer_first || layer >= op->layer_end)
        return larder_fail(-EINVAL, "layer %u of a get of layers %u to %u", layer, op->layer_first,
                           op->layer_end - 1);
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
    const uint32_t layers = op->layer_end;
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
    count_blocks(op, op->good);
    get_release(op);
    op->result.tokens = op->tokens_done;
    op->result.bytes_ssd = larder_min_u64(op->bytes_ssd, op->result.bytes);
    op->result.kl = op->result.quality == LARDER_QUALITY_EXACT ? 0 : op->kl;
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
               const struct larder_get_options *options, const atomic_bool *cancel)
{
    memset(result, 0, sizeof(*result));
    struct larder_get_op *op;
    uint64_t tokens;
    LARDER_TRY(begin_get(model, &op, &tokens, prompt, layout, options, cancel));
    /* What it returns, end() says in the result. */
    (void)larder_get_wait_layer(op, op->layer_end - 1);
    LARDER_TRY(larder_get_end(op, result));
    return result->stop_error == -ECANCELED || result->stop_error == -ENOMEM ? result->stop_error
                                                                             : 0;
}

int larder_get(struct larder_model *model, struct larder_get_result *result,
               const struct larder_prompt *prompt, const struct larder_layout *layout,
               const struct larder_get_options *options)
{
    return client_get(model, result, prompt, layout, options, NULL);
}
