/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/blend/anchors.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/mem.h"
#include "kernels/blend/anchors_pool.h"
#include "kernels/blend/select.h"
#include "kernels/cpu/cpu_math.h"

/* Anchors that make up so much of the softmax were used. */
#define ACTIVE_MASS .9
/* Of so many of the oldest one goes. */
#define OLDEST 5u

static int check_options(const struct larder_blend_anchors_options *options)
{
    if (options->anchors_max < 2 || options->anchors_max > LARDER_ANCHORS_MAX)
        return larder_fail(-EINVAL, "anchors_max=%u is outside 2..%u", options->anchors_max,
                           LARDER_ANCHORS_MAX);
    if (!(options->gamma >= 0 && options->gamma <= 1))
        return larder_fail(-EINVAL, "gamma=%g of anchors is outside 0..1", options->gamma);
    if (options->after_count > LARDER_PROMPT_TOKENS_MAX)
        return larder_fail(-EINVAL, "the text behind a segment has %u tokens, above %u",
                           options->after_count, LARDER_PROMPT_TOKENS_MAX);
    return 0;
}

int larder_blend_anchors_open(struct larder_blend_anchors **out,
                              const struct larder_model_desc *model,
                              const struct larder_blend_anchors_options *options)
{
    *out = NULL;
    LARDER_TRY(check_options(options));
    LARDER_TRY(larder_model_check(model));
    struct larder_key fingerprint;
    LARDER_TRY(larder_model_fingerprint(&fingerprint, model));
    struct larder_blend_anchors *pool = larder_alloc_zero(1, sizeof(*pool));
    if (!pool)
        return larder_fail(-ENOMEM, "no memory for a pool of anchors");
    *pool = (struct larder_blend_anchors){
        .options = *options,
        .model = fingerprint,
        .layers = model->layers,
        .kv_heads = model->kv_heads,
        .dims = {model->k_dims, model->v_dims},
        .dtype = model->dtype,
    };
    *out = pool;
    return 0;
}

void larder_blend_anchors_close(struct larder_blend_anchors *pool)
{
    if (!pool)
        return;
    for (uint32_t i = 0; i < pool->count; i++)
        larder_free(pool->list[i].numbers);
    larder_free(pool);
}

uint32_t larder_blend_anchors_count(const struct larder_blend_anchors *pool)
{
    return pool->count;
}

struct larder_blend_anchor_info larder_blend_anchors_info(const struct larder_blend_anchors *pool,
                                                          uint32_t index)
{
    assert(index < pool->count);
    return (struct larder_blend_anchor_info){.tokens = pool->list[index].tokens,
                                             .activations = pool->list[index].activations};
}

/* --- numbers ---------------------------------------------------------------------------------- */

/* Bytes of one part with so many tokens. */
static uint64_t part_bytes(const struct larder_blend_anchors *pool, uint64_t tokens)
{
    uint64_t row = anchors_width(pool, LARDER_K) + anchors_width(pool, LARDER_V);
    return pool->layers * tokens * row * larder_dtype_bytes(pool->dtype);
}

uint64_t anchors_numbers_bytes(const struct larder_blend_anchors *pool, uint64_t tokens)
{
    assert(tokens <= LARDER_PROMPT_TOKENS_MAX);
    return 2 * part_bytes(pool, tokens) + part_bytes(pool, pool->options.after_count);
}

void *anchors_rows(const struct larder_blend_anchors *pool, const struct anchor *anchor,
                   enum anchors_part part, uint32_t layer, enum larder_kv kv)
{
    assert(layer < pool->layers);
    uint64_t tokens = part == ANCHORS_AFTER ? pool->options.after_count : anchor->tokens;
    uint64_t k_bytes = tokens * anchors_width(pool, LARDER_K) * larder_dtype_bytes(pool->dtype);
    return anchor->numbers + (uint64_t)part * part_bytes(pool, anchor->tokens) +
           layer * (part_bytes(pool, tokens) / pool->layers) + (kv == LARDER_V ? k_bytes : 0);
}

bool anchors_are_finite(const struct larder_blend_anchors *pool, const struct anchor *anchor)
{
    uint64_t count = anchors_numbers_bytes(pool, anchor->tokens) / larder_dtype_bytes(pool->dtype);
    for (uint64_t i = 0; i < count; i++)
        if (!isfinite(load_element(anchor->numbers, pool->dtype, i)))
            return false;
    return true;
}

void anchors_softmax(double *weights, const double *distances, uint32_t count)
{
    double least = INFINITY;
    double sum = 0;
    for (uint32_t i = 0; i < count; i++)
        least = fmin(least, distances[i]);
    for (uint32_t i = 0; i < count; i++) {
        weights[i] = exp(least - distances[i]);
        sum += weights[i];
    }
    for (uint32_t i = 0; i < count; i++)
        weights[i] = isfinite(sum) ? weights[i] / sum : 0;
}

/* --- rows that a caller shows ----------------------------------------------------------------- */

static int check_rows(const struct larder_blend_anchors *pool, const struct larder_blend_rows *rows)
{
    const struct larder_kv_cache *cache = rows->cache;
    if (cache->layers != pool->layers || cache->kv_heads != pool->kv_heads ||
        cache->k_dims != pool->dims[LARDER_K] || cache->v_dims != pool->dims[LARDER_V] ||
        cache->dtype != pool->dtype)
        return larder_fail(-EINVAL, "a KV cache of another shape or dtype than the anchors'");
    if (rows->count == 0)
        return larder_fail(-EINVAL, "a segment of no tokens; at least 1 is needed");
    if (rows->first > cache->count || rows->count > cache->count - rows->first)
        return larder_fail(-EINVAL, "%u rows from row %u on, but the KV cache holds %u",
                           rows->count, rows->first, cache->count);
    return 0;
}

int anchors_check_base(const struct larder_blend_anchors *pool, const struct larder_blend_rows *own)
{
    LARDER_TRY(check_rows(pool, own));
    if (own->first != pool->options.first)
        return larder_fail(-EINVAL, "a segment that was computed at %u, the anchors' at %u",
                           own->first, pool->options.first);
    return 0;
}

int anchors_check_after(const struct larder_blend_anchors *pool,
                        const struct larder_blend_rows *after)
{
    const struct larder_blend_anchors_options *options = &pool->options;
    if (options->after_count == 0)
        return 0;
    LARDER_TRY(check_rows(pool, after));
    if (after->first != options->after_first || after->count != options->after_count)
        return larder_fail(-EINVAL,
                           "a following text of %u tokens computed at %u, the anchors' has %u at "
                           "%u",
                           after->count, after->first, options->after_count, options->after_first);
    return 0;
}

/* --- sharing ---------------------------------------------------------------------------------- */

/* The distance of all of V. */
static double distance(const struct larder_blend_anchors *pool, const struct anchor *anchor,
                       const struct larder_blend_rows *base)
{
    uint64_t count = base->count * anchors_width(pool, LARDER_V);
    double sum = 0;
    for (uint32_t layer = 0; layer < pool->layers; layer++) {
        struct larder_tensor v =
            larder_kv_cache_tensor(base->cache, layer, LARDER_V, base->first, base->count);
        const void *known = anchors_rows(pool, anchor, ANCHORS_BASE, layer, LARDER_V);
        for (uint64_t i = 0; i < count; i++) {
            double off = (double)load_element(v.data, pool->dtype, i) -
                         (double)load_element(known, pool->dtype, i);
            sum += off * off;
        }
    }
    return sqrt(sum);
}

/* Counts those of the largest weights, of equals the oldest, until they are enough. */
static void activate(struct anchor *const *anchors, double *weights, uint32_t count)
{
    for (double mass = 0; mass < ACTIVE_MASS;) {
        uint32_t largest = 0;
        for (uint32_t i = 1; i < count; i++)
            if (weights[i] > weights[largest])
                largest = i;
        /* All were taken, and rounding left them short. */
        if (weights[largest] < 0)
            return;
        mass += weights[largest];
        weights[largest] = -1;
        anchors[largest]->activations++;
    }
}

int larder_blend_anchors_ask(struct larder_blend_anchors *pool,
                             const struct larder_blend_rows *base, struct larder_blend_sharing *out)
{
    *out = (struct larder_blend_sharing){0};
    LARDER_TRY(anchors_check_base(pool, base));
    struct anchor *anchors[LARDER_ANCHORS_MAX];
    double weights[LARDER_ANCHORS_MAX];
    for (uint32_t i = 0; i < pool->count; i++)
        if (pool->list[i].tokens >= base->count)
            anchors[out->anchors++] = &pool->list[i];
    if (out->anchors < 2)
        return 0;
    double sum = 0;
    for (uint32_t i = 0; i < out->anchors; i++)
        weights[i] = distance(pool, anchors[i], base);
    anchors_softmax(weights, weights, out->anchors);
    for (uint32_t i = 0; i < out->anchors; i++) {
        sum += weights[i];
        if (weights[i] > 0)
            out->entropy -= weights[i] * log2(weights[i]);
    }
    out->limit = pool->options.gamma * log2(out->anchors);
    /* No weight at all: the segment's V is no number. */
    out->shares = sum > 0 && out->entropy <= out->limit;
    if (out->shares)
        activate(anchors, weights, out->anchors);
    return 0;
}

/* --- adding ----------------------------------------------------------------------------------- */

/* Rows of a cache into a part; K, if it stood elsewhere, turned to where it was alone. */
static void take_rows(const struct larder_blend_anchors *pool, const struct anchor *anchor,
                      enum anchors_part part, const struct larder_rope_table *table,
                      const struct larder_blend_rows *rows, uint32_t to)
{
    for (uint32_t layer = 0; layer < pool->layers; layer++)
        for (enum larder_kv kv = LARDER_K; kv <= LARDER_V; kv++) {
            struct larder_tensor from =
                larder_kv_cache_tensor(rows->cache, layer, kv, rows->first, rows->count);
            struct larder_tensor taken =
                larder_cube(anchors_rows(pool, anchor, part, layer, kv), pool->dtype, rows->count,
                            pool->kv_heads, pool->dims[kv]);
            memcpy(taken.data, from.data,
                   rows->count * anchors_width(pool, kv) * larder_dtype_bytes(pool->dtype));
            if (kv == LARDER_K)
                larder_blend_move_keys(table, &taken, rows->first, to);
        }
}

static void drop_one(struct larder_blend_anchors *pool)
{
    uint32_t least = 0;
    for (uint32_t i = 1; i < OLDEST && i < pool->count; i++)
        if (pool->list[i].activations < pool->list[least].activations)
            least = i;
    larder_free(pool->list[least].numbers);
    pool->count--;
    memmove(&pool->list[least], &pool->list[least + 1],
            (pool->count - least) * sizeof(*pool->list));
}

/* The anchor of just this text, if there is one. */
static struct anchor *find_same(struct larder_blend_anchors *pool, const struct anchor *anchor)
{
    for (uint32_t i = 0; i < pool->count; i++)
        if (pool->list[i].tokens == anchor->tokens &&
            memcmp(pool->list[i].numbers, anchor->numbers, part_bytes(pool, anchor->tokens)) == 0)
            return &pool->list[i];
    return NULL;
}

static int check_pair(const struct larder_blend_anchors *pool,
                      const struct larder_rope_table *table,
                      const struct larder_blend_segment *base,
                      const struct larder_blend_segment *whole)
{
    LARDER_TRY(anchors_check_base(pool, &base->own));
    LARDER_TRY(anchors_check_after(pool, &base->after));
    LARDER_TRY(check_rows(pool, &whole->own));
    uint64_t positions = larder_max_u64(whole->own.first, base->own.first) + base->own.count;
    bool has_after = pool->options.after_count > 0;
    if (has_after) {
        LARDER_TRY(check_rows(pool, &whole->after));
        positions = larder_max_u64(
            positions, larder_max_u64(whole->after.first, base->after.first) + base->after.count);
    }
    if (whole->own.count != base->own.count ||
        (has_after && whole->after.count != base->after.count))
        return larder_fail(-EINVAL, "a segment of %u tokens alone and %u in its prompt",
                           base->own.count, whole->own.count);
    if (base->own.count > LARDER_PROMPT_TOKENS_MAX || positions > table->positions)
        return larder_fail(LARDER_ELIMIT, "an anchor up to position %llu, the table has %u",
                           (unsigned long long)positions, table->positions);
    return 0;
}

int larder_blend_anchors_add(struct larder_blend_anchors *pool,
                             const struct larder_rope_table *table,
                             const struct larder_blend_segment *base,
                             const struct larder_blend_segment *whole)
{
    LARDER_TRY(check_pair(pool, table, base, whole));
    struct anchor anchor = {.tokens = base->own.count};
    anchor.numbers = larder_alloc(anchors_numbers_bytes(pool, anchor.tokens));
    if (!anchor.numbers)
        return larder_fail(-ENOMEM, "no memory for an anchor of %u tokens", anchor.tokens);
    take_rows(pool, &anchor, ANCHORS_BASE, table, &base->own, base->own.first);
    take_rows(pool, &anchor, ANCHORS_WHOLE, table, &whole->own, base->own.first);
    if (pool->options.after_count > 0)
        take_rows(pool, &anchor, ANCHORS_AFTER, table, &whole->after, base->after.first);
    if (!anchors_are_finite(pool, &anchor)) {
        larder_free(anchor.numbers);
        return larder_fail(-EINVAL, "a segment whose KV holds what is no number");
    }
    struct anchor *same = find_same(pool, &anchor);
    if (same) {
        larder_free(same->numbers);
        same->numbers = anchor.numbers;
        return 0;
    }
    if (pool->count == pool->options.anchors_max)
        drop_one(pool);
    pool->list[pool->count++] = anchor;
    return 0;
}
