/* SPDX-License-Identifier: Apache-2.0 */
/* PUT: gathers blocks into the daemon's staging memory and sends them, several in flight, so that
 * the daemon encodes one while the next is gathered.
 *
 * I1  A region of staging is the daemon's from its PUT until the answer: it is written again only
 *     after that.
 * I2  Every call that was sent is waited for before the run ends.
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

/* Blocks in flight: one that is gathered, one that is encoded, and some that wait for the disk. */
#define FLIGHT_MAX 8u
/* Asked for at once, so that small blocks do not make staging grow step by step. */
#define STAGING_BYTES_LEAST (1u << 20)

/* A block on its way. */
struct put_flight {
    struct client_call call;
    struct wire_put_ok answer;
    uint32_t block;
};

struct put_run {
    struct larder_model *model;
    struct larder_link *link;
    struct client_chain chain;
    struct layout_view view;
    const struct larder_put_options *options;
    const char *recipe;
    const atomic_bool *cancel;
    struct larder_put_result *result;
    struct client_accept accept; /* of what is stored already and need not be sent */
    uint32_t handle;
    uint64_t region_bytes;
    uint32_t flight_max;
    struct put_flight flights[FLIGHT_MAX]; /* a ring: block % flight_max */
};

/* --- staging --------------------------------------------------------------------------------- */

/* Bytes before the planes in a region. */
static uint64_t planes_offset(const struct put_run *run, uint32_t token_count)
{
    return larder_round_up(larder_round_up(run->chain.prompt.extra_bytes, 4) + 4ull * token_count,
                           64);
}

/* Where the parts behind the planes begin; without one it takes no bytes. */
struct put_inputs {
    uint64_t importance;
    uint64_t q_max;
    uint64_t bytes; /* of the region */
};

static struct put_inputs inputs_of(const struct put_run *run, uint32_t token_count)
{
    const struct larder_model_desc *desc = &run->model->desc;
    const uint64_t heads = (uint64_t)desc->layers * desc->kv_heads;
    struct put_inputs at = {.bytes = planes_offset(run, token_count) +
                                     token_count * run->model->token_bytes};
    if (run->options->importance) {
        at.importance = larder_round_up(at.bytes, 64);
        at.bytes = at.importance + heads * token_count * sizeof(float);
    }
    if (run->options->q_max) {
        at.q_max = larder_round_up(at.bytes, 64);
        at.bytes = at.q_max + heads * desc->k_dims * sizeof(float);
    }
    return at;
}

/* Makes room for as many blocks as are to be sent, within reason. */
static int prepare_staging(struct put_run *run, uint32_t blocks)
{
    struct larder_link *link = run->link;
    const uint64_t limit = link->hello.staging_bytes_max;
    const uint32_t tokens =
        (uint32_t)larder_min_u64(run->chain.block_tokens, run->chain.prompt.token_count);
    run->region_bytes = larder_round_up(inputs_of(run, tokens).bytes, 64);
    if (run->region_bytes > limit)
        return larder_fail(LARDER_ELIMIT,
                           "a block of %u tokens needs %llu bytes of staging, the daemon gives "
                           "%llu; raise staging_bytes_max or lower block_tokens in larderd.conf",
                           tokens, (unsigned long long)run->region_bytes,
                           (unsigned long long)limit);
    uint64_t wanted = run->region_bytes * (blocks < FLIGHT_MAX ? blocks : FLIGHT_MAX);
    if (wanted < STAGING_BYTES_LEAST)
        wanted = STAGING_BYTES_LEAST;
    wanted = larder_min_u64(wanted, limit);
    LARDER_TRY(client_staging(link, wanted));
    run->flight_max = (uint32_t)larder_min_u64(FLIGHT_MAX, link->staging_bytes / run->region_bytes);
    assert(run->flight_max > 0);
    return 0;
}

/* --- one block ------------------------------------------------------------------------------- */

struct gather {
    const struct put_run *run;
    char *planes;
    uint64_t token_first;
    uint32_t token_count;
};

/* On a worker: K or V of one layer; the index counts them layer-major, K before V. */
static void gather_plane(void *context, uint32_t index, void *scratch)
{
    (void)scratch;
    const struct gather *gather = context;
    const struct put_run *run = gather->run;
    const struct larder_model_desc *desc = &run->model->desc;
    struct layout_move move = {
        .slice = {.layer_first = (uint16_t)(index / 2),
                  .layer_count = 1,
                  .head_count = (uint16_t)desc->kv_heads,
                  .kind = (uint8_t)(index % 2)},
        .plane_tokens = gather->token_count,
        .row_count = gather->token_count,
        .token_first = gather->token_first,
    };
    const uint64_t head_bytes =
        (uint64_t)gather->token_count * desc->kv_heads * larder_dtype_bytes(desc->dtype);
    char *planes = gather->planes + (index / 2) * head_bytes * (desc->k_dims + desc->v_dims);
    if (index % 2 == LARDER_SECTION_V)
        planes += head_bytes * desc->k_dims;
    layout_gather(&run->view, planes, &move);
}

/* The block's tokens of each head's scores, and q_max as it is. */
static void fill_inputs(const struct put_run *run, char *region, uint64_t token_first,
                        uint32_t token_count)
{
    const struct larder_model_desc *desc = &run->model->desc;
    const struct larder_put_options *options = run->options;
    const uint64_t heads = (uint64_t)desc->layers * desc->kv_heads;
    const struct put_inputs at = inputs_of(run, token_count);
    for (uint64_t head = 0; options->importance && head < heads; head++)
        memcpy(region + at.importance + head * token_count * sizeof(float),
               options->importance + head * run->chain.prompt.token_count + token_first,
               token_count * sizeof(float));
    if (options->q_max)
        memcpy(region + at.q_max, options->q_max, heads * desc->k_dims * sizeof(float));
}

static int fill_region(struct put_run *run, char *region, uint64_t token_first,
                       uint32_t token_count)
{
    const struct larder_prompt *prompt = &run->chain.prompt;
    const uint64_t tokens_offset = larder_round_up(prompt->extra_bytes, 4);
    const uint64_t offset = planes_offset(run, token_count);
    /* The gaps are zeroed: an earlier block's bytes are nobody's business. */
    memset(region, 0, offset);
    if (prompt->extra_bytes > 0)
        memcpy(region, prompt->extra, prompt->extra_bytes);
    memcpy(region + tokens_offset, prompt->tokens + token_first, 4ull * token_count);
    fill_inputs(run, region, token_first, token_count);
    struct gather gather = {
        .run = run,
        .planes = region + offset,
        .token_first = token_first,
        .token_count = token_count,
    };
    return client_workers_run(run->model->larder->workers, gather_plane, &gather,
                              2 * run->model->desc.layers, 0);
}

static int send_block(struct put_run *run, uint32_t block)
{
    const struct larder_put_options *options = run->options;
    const uint64_t first = client_chain_tokens(&run->chain, block);
    const uint32_t count = (uint32_t)(client_chain_tokens(&run->chain, block + 1) - first);
    const uint64_t offset = run->region_bytes * (block % run->flight_max);
    LARDER_TRY(client_chain_hash(&run->chain, block + 1));
    LARDER_TRY(fill_region(run, run->link->staging + offset, first, count));
    struct wire_put body = {
        .model = run->handle,
        .wait = options->wait,
        .staging_offset = offset,
        .staging_bytes = inputs_of(run, count).bytes,
        .position = first,
        .token_count = count,
        .extra_bytes = (uint32_t)run->chain.prompt.extra_bytes,
        .computed_on = options->computed_on,
        .recipe_bytes = (uint32_t)strlen(run->recipe),
        .flags = (options->flags & LARDER_PUT_BESIDE ? (uint32_t)WIRE_PUT_BESIDE : 0) |
                 (options->importance ? (uint32_t)WIRE_PUT_IMPORTANCE : 0) |
                 (options->q_max ? (uint32_t)WIRE_PUT_Q_MAX : 0),
        .computed_on_kl = options->computed_on_kl,
        .max_kl = options->max_kl,
    };
    if (options->profile)
        memcpy(body.profile, options->profile, sizeof(body.profile));
    memcpy(body.key, run->chain.keys[block].bytes, sizeof(body.key));
    memcpy(body.parent, client_chain_parent(&run->chain, block)->bytes, sizeof(body.parent));
    memcpy(body.recipe, run->recipe, body.recipe_bytes);
    body.mark = options->mark;
    /* A pin holds all that is before it. */
    if (block + 1 < run->chain.block_count)
        body.mark.fields &= ~(uint32_t)LARDER_MARK_PIN;
    struct put_flight *flight = &run->flights[block % run->flight_max];
    flight->block = block;
    flight->call = (struct client_call){
        .type = WIRE_PUT,
        .answer_type = WIRE_PUT_OK,
        .answer = &flight->answer,
        .answer_capacity = sizeof(flight->answer),
    };
    const struct client_part part = {&body, sizeof(body)};
    return client_send(run->link, &flight->call, NULL, &part, 1);
}

static int collect_block(struct put_run *run, uint32_t block)
{
    struct put_flight *flight = &run->flights[block % run->flight_max];
    assert(flight->block == block);
    LARDER_TRY(client_wait(run->link, &flight->call));
    if (flight->call.answer_bytes != sizeof(flight->answer))
        return client_malformed(run->link, "PUT");
    run->result->quality = flight->answer.quality;
    run->result->kl = flight->answer.kl;
    run->result->unmeasured = flight->answer.unmeasured;
    static_assert(sizeof(run->result->recipe) == sizeof(flight->answer.recipe), "the same text");
    memcpy(run->result->recipe, flight->answer.recipe, sizeof(run->result->recipe));
    run->result->recipe[sizeof(run->result->recipe) - 1] = '\0';
    if (!flight->answer.existed) {
        const uint64_t tokens =
            client_chain_tokens(&run->chain, block + 1) - client_chain_tokens(&run->chain, block);
        run->result->tokens_new += tokens;
        run->result->bytes_raw += tokens * run->model->token_bytes;
        run->result->bytes_stored += flight->answer.stored_bytes;
    }
    return 0;
}

/* --- a run of blocks ------------------------------------------------------------------------- */

static bool is_cancelled(const struct put_run *run)
{
    return run->cancel && atomic_load_explicit(run->cancel, memory_order_relaxed);
}

/* Sends blocks from *at on until all are stored or one is not; *at is then the first that is not.
 * The first failure is the one to tell: what was sent behind it fails for want of a parent. */
static int put_blocks(struct put_run *run, uint32_t *at)
{
    uint32_t sent = *at;
    uint32_t waited = *at;
    int err = 0;
    while (err == 0 && waited < run->chain.block_count) {
        if (sent < run->chain.block_count && sent - waited < run->flight_max) {
            err = is_cancelled(run) ? larder_fail(-ECANCELED, "the put was cancelled")
                                    : send_block(run, sent);
            sent += err == 0;
        } else {
            err = collect_block(run, waited++);
            *at += err == 0;
        }
    }
    if (err == 0)
        return 0;
    char message[LARDER_MESSAGE_BYTES_MAX];
    snprintf(message, sizeof(message), "%s", larder_error_message());
    for (; waited < sent; waited++)
        if (collect_block(run, waited) == 0 && *at == waited)
            (*at)++;
    return larder_fail(err, "%s", message);
}

/* Leading blocks that are stored at the quality this put would give. */
static int count_stored(struct put_run *run, uint32_t *blocks)
{
    *blocks = 0;
    while (*blocks < run->chain.block_count) {
        uint32_t count = run->chain.block_count - *blocks;
        if (count > LARDER_REQUEST_KEYS_MAX)
            count = LARDER_REQUEST_KEYS_MAX;
        struct client_match match;
        LARDER_TRY(
            client_chain_lookup(&run->chain, &match, run->handle, *blocks, count, run->accept));
        *blocks += match.matched;
        if (match.matched < count)
            break;
    }
    /* Stored is not yet durable. The last one is sent again: its answer waits for the disk, and
     * what was written before it is there then too. */
    if (run->options->wait == LARDER_DURABLE && *blocks > 0)
        (*blocks)--;
    return 0;
}

/* Where to start. What a lookup finds may be other variants than this put's. */
static int first_block(struct put_run *run, uint32_t *at)
{
    const uint64_t stored = run->options->tokens_stored;
    /* The last block is sent whatever a lookup finds: see count_stored(). */
    const bool sent_anyway = run->options->wait == LARDER_DURABLE && run->chain.block_count == 1;
    if (stored == 0 && !sent_anyway && !(run->options->flags & LARDER_PUT_BESIDE))
        return count_stored(run, at);
    *at = stored == run->chain.prompt.token_count ? run->chain.block_count
                                                  : (uint32_t)(stored / run->chain.block_tokens);
    return client_chain_hash(&run->chain, *at);
}

/* Nothing was left to be put: the pin goes by itself. */
static int pin_stored(struct put_run *run)
{
    const struct larder_mark pin = {.fields = LARDER_MARK_PIN, .pin_s = run->options->mark.pin_s};
    if (!(run->options->mark.fields & LARDER_MARK_PIN) || run->chain.block_count == 0)
        return 0;
    return client_mark_key(run->link, &run->chain.keys[run->chain.block_count - 1], &pin);
}

static int put_chain(struct put_run *run)
{
    uint32_t at;
    LARDER_TRY(first_block(run, &at));
    run->result->tokens = client_chain_tokens(&run->chain, at);
    if (at == run->chain.block_count)
        return pin_stored(run);
    LARDER_TRY(prepare_staging(run, run->chain.block_count - at));

    const uint64_t timeout_ns = run->model->larder->timeout_ms * 1000000ull;
    uint64_t progress_ns = client_now_ns();
    bool looked_again = false;
    for (;;) {
        const uint32_t before = at;
        int err = put_blocks(run, &at);
        run->result->tokens = client_chain_tokens(&run->chain, at);
        if (at > before)
            progress_ns = client_now_ns();
        if (err == LARDER_ENOPARENT && at > 0 && !looked_again) {
            /* What was stored has been evicted since: start where the chain ends now. */
            looked_again = true;
            if (run->options->flags & LARDER_PUT_BESIDE)
                at = 0;
            else
                LARDER_TRY(count_stored(run, &at));
            run->result->tokens = client_chain_tokens(&run->chain, at);
        } else if (err == -EBUSY && run->options->wait == LARDER_DURABLE &&
                   client_now_ns() - progress_ns < timeout_ns) {
            /* Who waits for the disk can as well wait for room. */
            client_poll(run->link, 1000);
        } else {
            return err;
        }
    }
}

/* --- the call -------------------------------------------------------------------------------- */

static int check_options(struct put_run *run)
{
    const struct larder_put_options *options = run->options;
    if ((unsigned)options->wait > LARDER_DURABLE)
        return larder_fail(-EINVAL, "put: wait=%d is unknown; known are 0 (cached), 1 (durable)",
                           (int)options->wait);
    if (!larder_all_zero(options->reserved, sizeof(options->reserved)))
        return larder_fail(-EINVAL, "put: reserved bytes are not zero");
    if (options->flags & ~(uint32_t)LARDER_PUT_BESIDE)
        return larder_fail(-EINVAL, "put: flags=0x%x are not bits of enum larder_put_flag",
                           options->flags);
    if (options->position != 0)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "put: position=%llu, but a block is stored at its place in its own "
                           "chain; give K as rotated from 0 on, and position=0",
                           (unsigned long long)options->position);
    if (options->mark.fields & LARDER_MARK_UNPIN)
        return larder_fail(-EINVAL, "put: a mark that unpins; larder_unpin() does that");
    LARDER_TRY(client_check_quality(options->computed_on));
    LARDER_TRY(client_check_kl("put: max_kl", options->max_kl));
    if (!(options->computed_on_kl >= 0))
        return larder_fail(-EINVAL, "put: computed_on_kl=%g is no KL; give that of the get, or 0",
                           (double)options->computed_on_kl);
    run->recipe = options->recipe ? options->recipe : "";
    const size_t bytes = strlen(run->recipe);
    if (bytes > LARDER_RECIPE_BYTES_MAX)
        return larder_fail(LARDER_ELIMIT, "put: a recipe of %zu bytes is longer than %u", bytes,
                           LARDER_RECIPE_BYTES_MAX);
    return 0;
}

static bool is_auto(const char *recipe)
{
    return strncmp(recipe, "auto", 4) == 0 && (recipe[4] == '\0' || recipe[4] == ' ');
}

/* What a stored block must be at least, so that this put would not better it. */
static int set_accept(struct put_run *run)
{
    static const uint8_t no_profile[32];
    const struct larder_put_options *options = run->options;
    const struct larder_recipe *recipe;
    enum larder_quality quality = LARDER_QUALITY_EXACT;
    if (options->max_kl > 0) {
        run->accept.max_kl = options->max_kl;
    } else if (!run->recipe[0]) {
        quality = run->model->quality;
        run->accept.max_kl = run->model->max_kl;
    } else if (!is_auto(run->recipe)) {
        LARDER_TRY(
            client_recipe(run->link, &recipe, run->recipe, strlen(run->recipe), no_profile, NULL));
        quality = larder_recipe_quality(recipe);
    }
    /* What it was computed on counts in what a KL is to be kept of; else it is the least. */
    if (run->accept.max_kl == 0 && options->computed_on > quality)
        quality = options->computed_on;
    run->accept.worst = quality;
    return 0;
}

static int put(struct put_run *run, const struct larder_prompt *prompt,
               const struct larder_layout *layout)
{
    struct larder_model *model = run->model;
    LARDER_TRY(check_options(run));
    LARDER_TRY(layout_open(&run->view, layout, &model->desc));
    if (prompt->token_count > run->view.token_capacity)
        return larder_fail(-EINVAL, "put: the prompt has %zu tokens, the layout room for %llu",
                           prompt->token_count, (unsigned long long)run->view.token_capacity);
    if (run->options->tokens_stored > prompt->token_count)
        return larder_fail(-EINVAL, "put: tokens_stored=%llu of a prompt of %zu tokens",
                           (unsigned long long)run->options->tokens_stored, prompt->token_count);
    LARDER_TRY(client_link_acquire(model->larder, &run->link));
    LARDER_TRY(client_model_handle(model, run->link, &run->handle));
    LARDER_TRY(set_accept(run));
    LARDER_TRY(client_chain_open(&run->chain, model, run->link, prompt));
    /* Staging is the connection's: puts take turns. */
    pthread_mutex_lock(&model->larder->put_turn);
    int err = put_chain(run);
    pthread_mutex_unlock(&model->larder->put_turn);
    return err;
}

int client_put(struct larder_model *model, struct larder_put_result *result,
               const struct larder_prompt *prompt, const struct larder_layout *layout,
               const struct larder_put_options *options, const atomic_bool *cancel)
{
    static const struct larder_put_options defaults;
    memset(result, 0, sizeof(*result));
    struct put_run *run = larder_alloc_zero(1, sizeof(*run));
    if (!run)
        return larder_fail(-ENOMEM, "no memory for a put");
    run->model = model;
    run->options = options ? options : &defaults;
    run->cancel = cancel;
    run->result = result;
    int err = put(run, prompt, layout);
    if (run->link) {
        client_chain_close(&run->chain);
        client_link_release(run->link);
    }
    larder_free(run);
    return err;
}

int larder_put(struct larder_model *model, struct larder_put_result *result,
               const struct larder_prompt *prompt, const struct larder_layout *layout,
               const struct larder_put_options *options)
{
    return client_put(model, result, prompt, layout, options, NULL);
}
