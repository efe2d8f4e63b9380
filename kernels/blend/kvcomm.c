/* SPDX-License-Identifier: Apache-2.0 */
/* kvcomm.c - KVCOMM: nothing is computed again; moved segments get offsets from their anchors
 * (anchors.h), by how alike their KV alone and the anchors' are.
 *
 * A token of the segment gets the mean of what its token in each anchor was changed by, weighted by
 * softmax(-mean |difference of K|) over all layers, heads and dims; the same for V with V's
 * weights. A channel of the following text gets the mean of what it was changed by behind each
 * anchor, weighted by softmax(-|difference of the segment's channel|), its norm taken along the
 * segment's tokens; K and V apart again. Layer 0, in which no token has looked at another, stays.
 * The offset is turned with the keys from where the segment was alone to its place in the prompt,
 * in f32, and is added to the moved row before it is rounded.
 */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "kernels/blend/anchors_pool.h"
#include "kernels/blend/method.h"
#include "kernels/blend/select.h"
#include "kernels/cpu/cpu_math.h"

struct offset {
    const struct larder_blend_reuse *reuse;
    const struct anchor *anchors[LARDER_ANCHORS_MAX];
    uint32_t anchor_count;
    double *of_token[2]; /* of K and V: [token][anchor] */
};

struct blend_offsets {
    struct offset *list;
    uint32_t count;
    double *of_channel; /* of the layer and K or V in hand: [channel][anchor] */
    float *rows;        /* what is added to a segment's rows of a layer */
};

void blend_offsets_close(struct blend_offsets *offsets)
{
    if (!offsets)
        return;
    for (uint32_t i = 0; i < offsets->count; i++)
        larder_free(offsets->list[i].of_token[LARDER_K]);
    larder_free(offsets->rows);
    larder_free(offsets->of_channel);
    larder_free(offsets->list);
    larder_free(offsets);
}

/* --- before any work -------------------------------------------------------------------------- */

/* Is [first, first + count) of the prompt moved from row `from` on? */
static int check_place(const struct larder_blend *blend, uint32_t number, uint32_t first,
                       const struct larder_blend_rows *base)
{
    for (uint32_t i = 0; i < blend->span_count; i++) {
        const struct larder_blend_span *span = &blend->spans[i];
        if (first < span->first || first - span->first >= span->count)
            continue;
        uint64_t at = first - span->first;
        if (span->source == LARDER_BLEND_MOVED && base->count <= span->count - at &&
            base->first == span->stored_first + at)
            return 0;
    }
    return larder_fail(-EINVAL,
                       "reuse %u: tokens %u..%llu are not in one span that was moved from where "
                       "the segment was computed, row %u",
                       number, first, (unsigned long long)first + base->count - 1, base->first);
}

static int check_reuse(const struct larder_blend *blend, uint32_t number, uint64_t *end)
{
    const struct larder_blend_reuse *reuse = &blend->options.reuses[number];
    const struct larder_blend_anchors *pool = reuse->anchors;
    LARDER_TRY(anchors_check_base(pool, &reuse->base.own));
    LARDER_TRY(anchors_check_after(pool, &reuse->base.after));
    const struct larder_kv_cache *cache = blend->cache;
    if (cache->layers != pool->layers || cache->kv_heads != pool->kv_heads ||
        cache->k_dims != pool->dims[LARDER_K] || cache->v_dims != pool->dims[LARDER_V] ||
        cache->dtype != pool->dtype)
        return larder_fail(-EINVAL,
                           "reuse %u: its anchors are of another shape or dtype than the "
                           "KV cache",
                           number);
    bool has_after = pool->options.after_count > 0;
    uint64_t own_end = (uint64_t)reuse->first + reuse->base.own.count;
    if (reuse->first < *end || (has_after && reuse->after_first < own_end))
        return larder_fail(-EINVAL, "reuse %u: segments overlap or are not in order", number);
    LARDER_TRY(check_place(blend, number, reuse->first, &reuse->base.own));
    *end = own_end;
    if (has_after) {
        LARDER_TRY(check_place(blend, number, reuse->after_first, &reuse->base.after));
        *end = (uint64_t)reuse->after_first + reuse->base.after.count;
    }
    return 0;
}

/* Adds, per token and anchor, the mean of |difference|, of one layer's share. */
static void add_distances(const struct offset *offset, uint32_t layer, enum larder_kv kv)
{
    const struct larder_blend_anchors *pool = offset->reuse->anchors;
    const struct larder_blend_rows *base = &offset->reuse->base.own;
    uint64_t width = anchors_width(pool, kv);
    struct larder_tensor rows =
        larder_kv_cache_tensor(base->cache, layer, kv, base->first, base->count);
    for (uint32_t i = 0; i < offset->anchor_count; i++) {
        const void *known = anchors_rows(pool, offset->anchors[i], ANCHORS_BASE, layer, kv);
        for (uint64_t token = 0; token < base->count; token++) {
            double sum = 0;
            for (uint64_t k = token * width; k < (token + 1) * width; k++)
                sum += fabs((double)load_element(rows.data, pool->dtype, k) -
                            (double)load_element(known, pool->dtype, k));
            offset->of_token[kv][token * offset->anchor_count + i] +=
                sum / ((double)width * pool->layers);
        }
    }
}

static int weigh_tokens(struct offset *offset)
{
    const struct larder_blend_anchors *pool = offset->reuse->anchors;
    uint64_t tokens = offset->reuse->base.own.count;
    uint64_t count = tokens * offset->anchor_count;
    double *weights = larder_alloc_zero(2 * count, sizeof(*weights));
    if (!weights)
        return larder_fail(-ENOMEM, "no memory for weights of %u anchors", offset->anchor_count);
    offset->of_token[LARDER_K] = weights;
    offset->of_token[LARDER_V] = weights + count;
    for (enum larder_kv kv = LARDER_K; kv <= LARDER_V; kv++) {
        for (uint32_t layer = 0; layer < pool->layers; layer++)
            add_distances(offset, layer, kv);
        for (uint64_t token = 0; token < tokens; token++) {
            double *of_token = offset->of_token[kv] + token * offset->anchor_count;
            anchors_softmax(of_token, of_token, offset->anchor_count);
        }
    }
    return 0;
}

static int open_offset(struct offset *offset, const struct larder_blend_reuse *reuse,
                       uint32_t number)
{
    const struct larder_blend_anchors *pool = reuse->anchors;
    *offset = (struct offset){.reuse = reuse};
    for (uint32_t i = 0; i < pool->count; i++)
        if (pool->list[i].tokens >= reuse->base.own.count)
            offset->anchors[offset->anchor_count++] = &pool->list[i];
    if (offset->anchor_count == 0)
        return larder_fail(-EINVAL,
                           "reuse %u: no anchor is as long as its segment of %u tokens; compute it "
                           "and add one",
                           number, reuse->base.own.count);
    return weigh_tokens(offset);
}

static int open_offsets(struct larder_blend *blend)
{
    uint32_t count = blend->options.reuse_count;
    uint64_t rows_max = 1;
    uint64_t end = 0;
    for (uint32_t i = 0; i < count; i++) {
        LARDER_TRY(check_reuse(blend, i, &end));
        const struct larder_blend_segment *base = &blend->options.reuses[i].base;
        rows_max = larder_max_u64(rows_max, base->own.count);
        rows_max = larder_max_u64(rows_max, blend->options.reuses[i].anchors->options.after_count);
    }
    struct blend_offsets *offsets = larder_alloc_zero(1, sizeof(*offsets));
    if (!offsets)
        return larder_fail(-ENOMEM, "no memory for offsets");
    blend->offsets = offsets; /* closed with the blend */
    const struct larder_kv_cache *cache = blend->cache;
    uint64_t width = (uint64_t)cache->kv_heads * larder_max_u64(cache->k_dims, cache->v_dims);
    offsets->list = larder_alloc_zero(count, sizeof(*offsets->list));
    offsets->of_channel = larder_alloc(width * LARDER_ANCHORS_MAX * sizeof(double));
    offsets->rows = larder_alloc(rows_max * width * sizeof(float));
    if (!offsets->list || !offsets->of_channel || !offsets->rows)
        return larder_fail(-ENOMEM, "no memory for offsets of %llu rows",
                           (unsigned long long)rows_max);
    for (uint32_t i = 0; i < count; i++) {
        offsets->count++;
        LARDER_TRY(open_offset(&offsets->list[i], &blend->options.reuses[i], i));
    }
    return 0;
}

static int choose(struct larder_blend *blend)
{
    if (blend->options.reuse_count > 0)
        return open_offsets(blend);
    if (blend_moved_count(blend) > 0)
        return larder_fail(-EINVAL, "blend method 'kvcomm' needs the anchors of moved segments "
                                    "(kernels/blend/anchors.h)");
    return 0;
}

/* --- offsets of a layer ----------------------------------------------------------------------- */

/* rows += weight of token and anchor x (in the prompt - alone). */
static void sum_own(const struct offset *offset, float *out, uint32_t layer, enum larder_kv kv)
{
    const struct larder_blend_anchors *pool = offset->reuse->anchors;
    uint64_t width = anchors_width(pool, kv);
    uint64_t tokens = offset->reuse->base.own.count;
    memset(out, 0, tokens * width * sizeof(*out));
    for (uint32_t i = 0; i < offset->anchor_count; i++) {
        const void *alone = anchors_rows(pool, offset->anchors[i], ANCHORS_BASE, layer, kv);
        const void *whole = anchors_rows(pool, offset->anchors[i], ANCHORS_WHOLE, layer, kv);
        for (uint64_t token = 0; token < tokens; token++) {
            float weight = (float)offset->of_token[kv][token * offset->anchor_count + i];
            for (uint64_t k = token * width; k < (token + 1) * width; k++)
                out[k] += weight * (load_element(whole, pool->dtype, k) -
                                    load_element(alone, pool->dtype, k));
        }
    }
}

static void weigh_channels(const struct offset *offset, double *out, uint32_t layer,
                           enum larder_kv kv)
{
    const struct larder_blend_anchors *pool = offset->reuse->anchors;
    const struct larder_blend_rows *base = &offset->reuse->base.own;
    uint64_t width = anchors_width(pool, kv);
    struct larder_tensor rows =
        larder_kv_cache_tensor(base->cache, layer, kv, base->first, base->count);
    for (uint64_t channel = 0; channel < width; channel++) {
        double *weights = out + channel * offset->anchor_count;
        for (uint32_t i = 0; i < offset->anchor_count; i++) {
            const void *known = anchors_rows(pool, offset->anchors[i], ANCHORS_BASE, layer, kv);
            double sum = 0;
            for (uint64_t k = channel; k < base->count * width; k += width) {
                double off = (double)load_element(rows.data, pool->dtype, k) -
                             (double)load_element(known, pool->dtype, k);
                sum += off * off;
            }
            weights[i] = sqrt(sum);
        }
        anchors_softmax(weights, weights, offset->anchor_count);
    }
}

static void sum_after(const struct offset *offset, float *out, const double *weights,
                      uint32_t layer, enum larder_kv kv)
{
    const struct larder_blend_anchors *pool = offset->reuse->anchors;
    const struct larder_blend_rows *base = &offset->reuse->base.after;
    uint64_t width = anchors_width(pool, kv);
    struct larder_tensor alone =
        larder_kv_cache_tensor(base->cache, layer, kv, base->first, base->count);
    memset(out, 0, base->count * width * sizeof(*out));
    for (uint32_t i = 0; i < offset->anchor_count; i++) {
        const void *whole = anchors_rows(pool, offset->anchors[i], ANCHORS_AFTER, layer, kv);
        for (uint64_t token = 0; token < base->count; token++)
            for (uint64_t channel = 0; channel < width; channel++) {
                uint64_t k = token * width + channel;
                out[k] += (float)weights[channel * offset->anchor_count + i] *
                          (load_element(whole, pool->dtype, k) -
                           load_element(alone.data, pool->dtype, k));
            }
    }
}

/* Adds offsets, K's still as at the rows alone, to rows of the prompt that are in place. */
static int add_rows(struct larder_blend *blend, float *offsets, uint32_t layer, enum larder_kv kv,
                    const struct larder_blend_rows *base, uint32_t first)
{
    struct larder_kv_cache *cache = blend->cache;
    uint32_t count = base->count;
    /* The prompt's last token may be computed, for its logits. */
    while (count > 0 && !larder_blend_reads(blend, layer, first + count - 1))
        count--;
    if (count == 0)
        return 0;
    struct larder_tensor out = larder_kv_cache_tensor(cache, layer, kv, first, count);
    struct larder_tensor sum =
        larder_cube(offsets, LARDER_F32, count, cache->kv_heads, out.shape[2]);
    if (kv == LARDER_K) {
        const struct larder_rope_table *table;
        LARDER_TRY(larder_llama_rope(blend->model, &table, blend->token_count));
        larder_blend_move_keys(table, &sum, base->first, first);
    }
    for (uint64_t i = 0; i < count * out.shape[1] * out.shape[2]; i++)
        offsets[i] += load_element(out.data, out.dtype, i);
    return cache->device->ops->convert(cache->device, &out, &sum);
}

static int add_offset(struct larder_blend *blend, const struct offset *offset, uint32_t layer,
                      enum larder_kv kv)
{
    const struct larder_blend_reuse *reuse = offset->reuse;
    float *rows = blend->offsets->rows;
    sum_own(offset, rows, layer, kv);
    LARDER_TRY(add_rows(blend, rows, layer, kv, &reuse->base.own, reuse->first));
    if (reuse->anchors->options.after_count == 0)
        return 0;
    weigh_channels(offset, blend->offsets->of_channel, layer, kv);
    sum_after(offset, rows, blend->offsets->of_channel, layer, kv);
    return add_rows(blend, rows, layer, kv, &reuse->base.after, reuse->after_first);
}

static int add_offsets(struct larder_blend *blend, uint32_t layer)
{
    if (layer == 0 || !blend->offsets)
        return 0;
    for (uint32_t i = 0; i < blend->offsets->count; i++)
        for (enum larder_kv kv = LARDER_K; kv <= LARDER_V; kv++)
            LARDER_TRY(add_offset(blend, &blend->offsets->list[i], layer, kv));
    return 0;
}

const struct blend_method blend_kvcomm = {
    .known = {.name = "kvcomm",
              .form = "kvcomm",
              .summary = "nothing is computed again; segments get offsets that anchors of them are "
                         "known to have had (KVCOMM)"},
    .choose = choose,
    .before_layer = add_offsets,
};
