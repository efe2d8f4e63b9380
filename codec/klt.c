/* SPDX-License-Identifier: Apache-2.0 */
/* klt.c - each head's channels in the basis in which they are uncorrelated and in which every
 * coefficient's error costs the model the same (docs/CODECS.md, "The house recipe"): a
 * Karhunen-Loeve transform under the metric in which errors hurt. Coefficients come in order of
 * falling variance.
 *
 *   y = sum over i of (x[i] - mean[i]) * f[i],  x = mean + sum over c of y[c] * b[c]
 *
 * Reads from the profile, S being k or v:
 *   larder.S.mean     [layer, kv_head, dim]
 *   larder.S.forward  [layer, kv_head, dim, coefficient]   rows f[i]
 *   larder.S.back     [layer, kv_head, coefficient, dim]   rows b[c], the inverse
 *
 * Coefficients that are 0 in four tokens side by side, which at a few bits are most, are passed
 * over. Sums run from the first coefficient to the last, each product and sum rounded once, so that
 * the same bytes give the same bits everywhere. Appends no bytes.
 */
#include "codec/klt.h"

#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"
#include "base/record.h"
#include "codec/node.h"

struct klt {
    uint32_t heads;
    uint32_t dims;
    const float *mean;
    const float *forward;
    const float *back;
};

struct klt_state {
    void *inner;
};

static int klt_bind(void **bound, const struct codec_node *node,
                    const struct larder_profile *profile, uint8_t kind)
{
    (void)node;
    const struct larder_profile_model *model = larder_profile_model(profile);
    uint32_t dims = kind == LARDER_SECTION_K ? model->k_dims : model->v_dims;
    const char *side = kind == LARDER_SECTION_K ? "k" : "v";
    static const char *const names[] = {"mean", "forward", "back"};
    const void *found[LARDER_COUNT_OF(names)];
    for (uint32_t i = 0; i < LARDER_COUNT_OF(names); i++) {
        char name[32];
        snprintf(name, sizeof(name), "larder.%s.%s", side, names[i]);
        uint64_t shape[] = {model->layers, model->kv_heads, dims, dims};
        LARDER_TRY(larder_profile_find(profile, &found[i], name, LARDER_PROFILE_F32, shape,
                                       i == 0 ? 3 : 4));
    }
    struct klt *klt = larder_alloc(sizeof(*klt));
    if (!klt)
        return larder_fail(-ENOMEM, "no memory for a recipe");
    *klt = (struct klt){.heads = model->kv_heads,
                        .dims = dims,
                        .mean = found[0],
                        .forward = found[1],
                        .back = found[2]};
    *bound = klt;
    return 0;
}

static int klt_fits(const struct codec_node *node, const struct codec_size *size)
{
    const struct klt *klt = node->bound;
    if (klt && (size->heads != klt->heads || size->dims != klt->dims))
        return larder_fail(LARDER_EUNSUPPORTED,
                           "klt of %u heads of %u channels stands where there are %u of %u; no "
                           "stage before it may take channels away",
                           klt->heads, klt->dims, size->heads, size->dims);
    return codec_inner_fits(node, size);
}

static uint64_t klt_scratch(const struct codec_node *node, const struct codec_size *size)
{
    return larder_round_up(sizeof(struct klt_state), 64) + codec_scratch(node->inner, size);
}

static bool is_passed_over(const struct klt_sum *sum, uint32_t c)
{
    for (uint32_t token = 0; token < KLT_TOKENS; token++) {
        if (sum->factors[token * sum->dims + c] != 0)
            return false;
    }
    return true;
}

void klt_sum_rest(float *out, const struct klt_sum *sum, uint32_t first)
{
    uint64_t dims = sum->dims;
    for (uint32_t token = 0; token < sum->tokens; token++) {
        for (uint64_t i = first; i < dims; i++)
            out[token * dims + i] = sum->start ? sum->start[i] : 0;
    }
    for (uint32_t c = 0; c < dims && first < dims; c++) {
        if (is_passed_over(sum, c))
            continue;
        for (uint32_t token = 0; token < sum->tokens; token++) {
            float *x = out + token * dims;
            for (uint64_t i = first; i < dims; i++)
                x[i] = fmaf(sum->factors[token * dims + c], sum->matrix[c * dims + i], x[i]);
        }
    }
}

void klt_sum_scalar(float *out, const struct klt_sum *sum)
{
    klt_sum_rest(out, sum, 0);
}

/* Rows of up to KLT_TOKENS tokens, each replaced by start + the sum of its elements times the
 * matrix's rows. */
static void turn_rows(float *x, const float *start, const float *matrix, uint32_t dims,
                      uint32_t tokens)
{
    static _Atomic(klt_sum_function) chosen;
    klt_sum_function add = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (!add) {
        add = klt_sum_avx512();
        if (!add)
            add = klt_sum_avx2();
        if (!add)
            add = klt_sum_scalar;
        atomic_store_explicit(&chosen, add, memory_order_relaxed);
    }
    float factors[KLT_TOKENS * LARDER_HEAD_DIMS_MAX];
    uint64_t count = (uint64_t)tokens * dims;
    memcpy(factors, x, count * sizeof(float));
    memset(factors + count, 0, ((uint64_t)KLT_TOKENS * dims - count) * sizeof(float));
    add(x,
        &(struct klt_sum){
            .dims = dims, .tokens = tokens, .start = start, .factors = factors, .matrix = matrix});
}

static void turn_tile_back(const struct klt *klt, uint32_t layer, struct codec_tile *tile)
{
    uint64_t dims = klt->dims;
    for (uint32_t head = 0; head < klt->heads; head++) {
        uint64_t place = (uint64_t)layer * klt->heads + head;
        float *x = tile->x + head * tile->size.tokens * dims;
        for (uint32_t token = 0; token < tile->size.tokens; token += KLT_TOKENS)
            turn_rows(x + token * dims, klt->mean + place * dims, klt->back + place * dims * dims,
                      klt->dims, (uint32_t)larder_min_u64(tile->size.tokens - token, KLT_TOKENS));
    }
}

CODEC_VECTOR static void subtract(float *restrict x, const float *restrict y, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        x[i] -= y[i];
}

static int klt_encode(const struct codec_node *node, struct codec_run *run, struct codec_tile *tile)
{
    const struct klt *klt = node->bound;
    uint64_t dims = klt->dims;
    for (uint32_t head = 0; head < klt->heads; head++) {
        uint64_t place = (uint64_t)run->layer * klt->heads + head;
        const float *mean = klt->mean + place * dims;
        float *x = tile->x + head * tile->size.tokens * dims;
        for (uint32_t token = 0; token < tile->size.tokens; token += KLT_TOKENS) {
            uint64_t tokens = larder_min_u64(tile->size.tokens - token, KLT_TOKENS);
            for (uint64_t row = token * dims; row < (token + tokens) * dims; row += dims)
                subtract(x + row, mean, dims);
            turn_rows(x + token * dims, NULL, klt->forward + place * dims * dims, klt->dims,
                      (uint32_t)tokens);
        }
    }
    int err = codec_encode(node->inner, run, tile);
    if (err == 0)
        turn_tile_back(klt, run->layer, tile);
    return err;
}

static int klt_decode_begin(const struct codec_node *node, struct codec_run *run,
                            const struct codec_size *size, void **state)
{
    struct klt_state *klt = codec_take_scratch(run, sizeof(*klt));
    *state = klt;
    return codec_decode_begin(node->inner, run, size, &klt->inner);
}

static void klt_decode_rows(const struct codec_node *node, const struct codec_run *run, void *state,
                            uint32_t first, struct codec_tile *tile)
{
    const struct klt *klt = node->bound;
    const struct klt_state *opened = state;
    codec_decode_rows(node->inner, run, opened->inner, first, tile);
    turn_tile_back(klt, run->layer, tile);
}

const struct codec_node_ops codec_node_klt = {
    .name = "klt",
    .summary = "channels of a head in the profile's basis: uncorrelated, errors of equal cost",
    .role = CODEC_TRANSFORM,
    .needs_profile = true,
    .bind = klt_bind,
    .fits = klt_fits,
    .bound = codec_inner_bound,
    .scratch = klt_scratch,
    .encode = klt_encode,
    .decode_begin = klt_decode_begin,
    .decode_rows = klt_decode_rows,
};
