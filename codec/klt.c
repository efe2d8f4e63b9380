/* SPDX-License-Identifier: Apache-2.0 */
/* klt.c - each head's channels in the basis in which they are uncorrelated and in which every
 * coefficient's error costs the model the same (docs/CODECS.md, "The house recipe"): a
 * Karhunen-Loeve transform under the metric in which errors hurt. Coefficients come in order of
 * falling variance.
 *
 *   y = F (x - mean),  x = mean + sum over c of y[c] * b[c]
 *
 * Reads from the profile, S being k or v:
 *   larder.S.mean     [layer, kv_head, dim]
 *   larder.S.forward  [layer, kv_head, coefficient, dim]   F
 *   larder.S.back     [layer, kv_head, coefficient, dim]   rows b[c], F's inverse transposed
 *
 * Coefficients that are 0, which at a few bits are most, add nothing and are passed over. Sums run
 * from the first coefficient to the last, each product and sum rounded once, so that the same
 * bytes give the same bits everywhere. Appends no bytes.
 */
#include <errno.h>
#include <math.h>
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
    return larder_round_up(sizeof(struct klt_state), 64) +
           larder_round_up((uint64_t)size->dims * sizeof(float), 64) +
           codec_scratch(node->inner, size);
}

/* out[c] = sum over i of m[c][i] * x[i], in 16 sums side by side that are added in pairs. */
#define SUMS 16u
CODEC_VECTOR static void turn_row(float *restrict out, const float *restrict m,
                                  const float *restrict x, uint64_t dims)
{
    for (uint64_t c = 0; c < dims; c++, m += dims) {
        float sums[SUMS] = {0};
        uint64_t i = 0;
        for (; i + SUMS <= dims; i += SUMS) {
            for (uint64_t lane = 0; lane < SUMS; lane++)
                sums[lane] = fmaf(m[i + lane], x[i + lane], sums[lane]);
        }
        for (; i < dims; i++)
            sums[i % SUMS] = fmaf(m[i], x[i], sums[i % SUMS]);
        for (uint64_t half = SUMS / 2; half > 0; half /= 2) {
            for (uint64_t lane = 0; lane < half; lane++)
                sums[lane] += sums[lane + half];
        }
        out[c] = sums[0];
    }
}

CODEC_VECTOR static void add_scaled(float *restrict x, const float *restrict row, uint64_t dims,
                                    float factor)
{
    for (uint64_t i = 0; i < dims; i++)
        x[i] = fmaf(factor, row[i], x[i]);
}

static void turn_back(float *x, float *row, const float *mean, const float *back, uint32_t dims)
{
    memcpy(row, x, dims * sizeof(float));
    memcpy(x, mean, dims * sizeof(float));
    for (uint32_t c = 0; c < dims; c++) {
        if (row[c] != 0)
            add_scaled(x, back + (uint64_t)c * dims, dims, row[c]);
    }
}

static void turn_tile_back(const struct klt *klt, float *row, uint32_t layer,
                           struct codec_tile *tile)
{
    uint64_t dims = klt->dims;
    for (uint32_t head = 0; head < klt->heads; head++) {
        uint64_t place = (uint64_t)layer * klt->heads + head;
        float *x = tile->x + head * tile->size.tokens * dims;
        for (uint32_t token = 0; token < tile->size.tokens; token++, x += dims)
            turn_back(x, row, klt->mean + place * dims, klt->back + place * dims * dims, klt->dims);
    }
}

static int klt_encode(const struct codec_node *node, struct codec_run *run, struct codec_tile *tile)
{
    const struct klt *klt = node->bound;
    uint8_t *mark = run->scratch;
    uint64_t dims = klt->dims;
    float *row = codec_take_scratch(run, dims * sizeof(float));
    for (uint32_t head = 0; head < klt->heads; head++) {
        uint64_t place = (uint64_t)run->layer * klt->heads + head;
        const float *mean = klt->mean + place * dims;
        float *x = tile->x + head * tile->size.tokens * dims;
        for (uint32_t token = 0; token < tile->size.tokens; token++, x += dims) {
            for (uint64_t i = 0; i < dims; i++)
                row[i] = x[i] - mean[i];
            turn_row(x, klt->forward + place * dims * dims, row, dims);
        }
    }
    int err = codec_encode(node->inner, run, tile);
    if (err == 0)
        turn_tile_back(klt, row, run->layer, tile);
    run->scratch = mark;
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
    float row[LARDER_HEAD_DIMS_MAX];
    codec_decode_rows(node->inner, run, opened->inner, first, tile);
    turn_tile_back(klt, row, run->layer, tile);
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
