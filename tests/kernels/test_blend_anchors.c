/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: anchors of just this context give back the KV of a prefill; sharing and offsets are what
 * the formulas say; pools keep their limits, and survive being written and read, whole or not.
 * Method: a small model's KV, alone and in a prompt; formulas written out plainly beside the code;
 * files cut at every byte, flipped, and forged with a digest that is right.
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/mem.h"
#include "kernels/blend/blend.h"
#include "kernels/cpu/cpu_math.h"
#include "kernels/llama.h"

#define LEADER  17u /* tokens of the prompt before the segment, BOS among them */
#define SEGMENT 14u
#define AFTER   6u
#define SUFFIX  5u
#define TOTAL   (LEADER + SEGMENT + AFTER + SUFFIX)
#define TEXTS   4u

static const char *const models[] = {
    "tests/reference/models/llama-linear",
    "tests/reference/models/llama-llama3",
    "tests/reference/models/llama-yarn",
    "tests/reference/models/qwen3",
};

/* A prompt whose segment has one of several texts. */
struct stage {
    struct larder_device *device;
    struct larder_llama *model;
    struct larder_model_desc desc;
    const struct larder_rope_table *table;
    struct larder_blend_anchors *pool;
    struct larder_kv_cache *alone[TEXTS];
    struct larder_kv_cache *whole[TEXTS];
    struct larder_kv_cache *after; /* alone */
    struct larder_kv_cache *blended;
    uint32_t tokens[TEXTS][TOTAL];
    uint32_t text; /* whose segment fetch gives */
};

static void forward(struct stage *stage, struct larder_kv_cache **cache, const uint32_t *tokens,
                    uint32_t count)
{
    ck_assert_int_eq(larder_llama_cache_open(stage->model, cache, count, stage->desc.dtype), 0);
    ck_assert_int_eq(
        larder_llama_forward(stage->model, *cache, NULL, LARDER_LOGITS_NONE, tokens, count), 0);
}

static void open_pool(struct stage *stage, uint32_t anchors_max)
{
    larder_blend_anchors_close(stage->pool);
    ck_assert_int_eq(
        larder_blend_anchors_open(&stage->pool, &stage->desc,
                                  &(struct larder_blend_anchors_options){.first = 1,
                                                                         .after_first = 1,
                                                                         .after_count = AFTER,
                                                                         .anchors_max = anchors_max,
                                                                         .gamma = .3}),
        0);
}

static void stage_open(struct stage *stage, const char *directory, uint32_t dtype)
{
    *stage = (struct stage){0};
    ck_assert_int_eq(larder_device_open(&stage->device, "cpu", NULL), 0);
    ck_assert_int_eq(larder_llama_open(&stage->model, stage->device, directory), 0);
    ck_assert_int_eq(larder_llama_describe(stage->model, &stage->desc, dtype), 0);
    ck_assert_int_eq(larder_llama_rope(stage->model, &stage->table, TOTAL), 0);
    uint32_t text[TOTAL];
    for (uint32_t i = 0; i < TEXTS; i++) {
        uint32_t *tokens = stage->tokens[i];
        for (uint32_t j = 0; j < TOTAL; j++) {
            bool own = j >= LEADER && j < LEADER + SEGMENT;
            tokens[j] = (j * j + 7 * j + (own ? 31 * i * (j + 3) : 0)) % stage->desc.vocab;
        }
        text[0] = tokens[0];
        memcpy(text + 1, tokens + LEADER, SEGMENT * sizeof(*text));
        forward(stage, &stage->alone[i], text, 1 + SEGMENT);
        forward(stage, &stage->whole[i], tokens, TOTAL);
    }
    memcpy(text + 1, stage->tokens[0] + LEADER + SEGMENT, AFTER * sizeof(*text));
    forward(stage, &stage->after, text, 1 + AFTER);
    ck_assert_int_eq(
        larder_llama_cache_open(stage->model, &stage->blended, TOTAL, stage->desc.dtype), 0);
    open_pool(stage, LARDER_ANCHORS_MAX);
}

static void stage_close(struct stage *stage)
{
    larder_blend_anchors_close(stage->pool);
    larder_kv_cache_close(stage->blended);
    larder_kv_cache_close(stage->after);
    for (uint32_t i = 0; i < TEXTS; i++) {
        larder_kv_cache_close(stage->whole[i]);
        larder_kv_cache_close(stage->alone[i]);
    }
    larder_llama_close(stage->model);
    larder_device_close(stage->device);
}

static struct larder_blend_segment base_of(const struct stage *stage, uint32_t text, uint32_t count)
{
    return (struct larder_blend_segment){.own = {stage->alone[text], 1, count},
                                         .after = {stage->after, 1, AFTER}};
}

/* The segment's first `count` tokens: its text may be cut short. */
static int try_add(struct stage *stage, uint32_t text, uint32_t count)
{
    struct larder_blend_segment base = base_of(stage, text, count);
    struct larder_blend_segment whole = {.own = {stage->whole[text], LEADER, count},
                                         .after = {stage->whole[text], LEADER + SEGMENT, AFTER}};
    return larder_blend_anchors_add(stage->pool, stage->table, &base, &whole);
}

static void add(struct stage *stage, uint32_t text)
{
    ck_assert_int_eq(try_add(stage, text, SEGMENT), 0);
}

static void copy_rows(const struct larder_kv_cache *to, uint32_t to_first,
                      const struct larder_kv_cache *from, uint32_t from_first, uint32_t layer,
                      uint32_t count)
{
    for (enum larder_kv kv = LARDER_K; kv <= LARDER_V; kv++) {
        uint64_t bytes = kv == LARDER_K ? to->k_token_bytes : to->v_token_bytes;
        memcpy((char *)larder_kv_cache_rows(to, layer, kv) + to_first * bytes,
               (char *)larder_kv_cache_rows(from, layer, kv) + from_first * bytes, count * bytes);
    }
}

static int fetch(void *context, uint32_t layer)
{
    struct stage *stage = context;
    copy_rows(stage->blended, 0, stage->whole[0], 0, layer, LEADER);
    copy_rows(stage->blended, LEADER, stage->alone[stage->text], 1, layer, SEGMENT);
    copy_rows(stage->blended, LEADER + SEGMENT, stage->after, 1, layer, AFTER);
    return 0;
}

static const struct larder_blend_span spans[] = {
    {0, LEADER, 0, LARDER_BLEND_PREFIX, 0},
    {LEADER, SEGMENT, 1, LARDER_BLEND_MOVED, 1},
    {LEADER + SEGMENT, AFTER, 1, LARDER_BLEND_MOVED, 2},
    {LEADER + SEGMENT + AFTER, SUFFIX, 0, LARDER_BLEND_SUFFIX, 3},
};

static struct larder_blend_reuse reuse_of(const struct stage *stage, uint32_t text)
{
    return (struct larder_blend_reuse){.anchors = stage->pool,
                                       .base = base_of(stage, text, SEGMENT),
                                       .first = LEADER,
                                       .after_first = LEADER + SEGMENT};
}

static int try_blend(struct stage *stage, const char *method, uint32_t text,
                     const struct larder_blend_reuse *reuses, uint32_t reuse_count)
{
    struct larder_blend *blend;
    stage->text = text;
    int err = larder_blend_open(
        &blend, stage->model, stage->blended,
        &(struct larder_blend_prompt){stage->tokens[text], spans, TOTAL, LARDER_COUNT_OF(spans)},
        &(struct larder_blend_options){
            .method = method, .reuses = reuses, .reuse_count = reuse_count});
    if (err == 0) {
        err = larder_blend_run(blend, fetch, stage, NULL);
        if (err == 0)
            ck_assert_uint_eq(larder_blend_result(blend)->layers_run[LEADER], 0);
    }
    larder_blend_close(blend);
    return err;
}

static void blend(struct stage *stage, const char *method, uint32_t text)
{
    struct larder_blend_reuse reuse = reuse_of(stage, text);
    int err = try_blend(stage, method, text, &reuse, 1);
    ck_assert_msg(err == 0, "%s", larder_error_message());
}

static double number(const struct larder_kv_cache *cache, uint32_t layer, enum larder_kv kv,
                     uint64_t row, uint64_t channel)
{
    uint64_t width = (uint64_t)cache->kv_heads * (kv == LARDER_K ? cache->k_dims : cache->v_dims);
    return (double)load_element(larder_kv_cache_rows(cache, layer, kv), cache->dtype,
                                row * width + channel);
}

static uint64_t width_of(const struct stage *stage)
{
    return (uint64_t)stage->desc.kv_heads * stage->desc.k_dims;
}

/* The largest difference of moved rows of layers [first, end) to the prefill's, over the largest
 * number there. */
static double worst(const struct stage *stage, uint32_t text, uint32_t first, uint32_t end)
{
    double off = 0;
    double most = 0;
    for (uint32_t layer = first; layer < end; layer++)
        for (enum larder_kv kv = LARDER_K; kv <= LARDER_V; kv++)
            for (uint64_t row = LEADER; row < LEADER + SEGMENT + AFTER; row++)
                for (uint64_t k = 0; k < width_of(stage); k++) {
                    double wanted = number(stage->whole[text], layer, kv, row, k);
                    off = fmax(off, fabs(number(stage->blended, layer, kv, row, k) - wanted));
                    most = fmax(most, fabs(wanted));
                }
    return off / most;
}

/* One anchor, of this very text: its weight is 1, and what it was changed by is what is missing. */
START_TEST(test_same_context)
{
    struct stage stage;
    for (int pass = 0; pass < 2; pass++) {
        stage_open(&stage, models[_i], pass ? LARDER_F32 : LARDER_BF16);
        double small = pass ? 1e-5 : 1.0 / 64;
        uint32_t layers = stage.desc.layers;
        blend(&stage, "none", 1);
        ck_assert_double_gt(worst(&stage, 1, 1, layers), 3 * small);
        struct larder_kv_cache *moved;
        ck_assert_int_eq(larder_llama_cache_open(stage.model, &moved, TOTAL, stage.desc.dtype), 0);
        memcpy(moved->base, stage.blended->base, moved->layer_bytes * layers);

        add(&stage, 1);
        blend(&stage, "kvcomm", 1);
        ck_assert_double_lt(worst(&stage, 1, 0, layers), small);
        /* No bit of layer 0 is touched, some of all others are. */
        for (uint32_t layer = 0; layer < layers; layer++)
            for (enum larder_kv kv = LARDER_K; kv <= LARDER_V; kv++) {
                uint64_t bytes = moved->k_token_bytes;
                int differs =
                    memcmp((char *)larder_kv_cache_rows(moved, layer, kv) + LEADER * bytes,
                           (char *)larder_kv_cache_rows(stage.blended, layer, kv) + LEADER * bytes,
                           (SEGMENT + AFTER) * bytes);
                ck_assert(layer == 0 ? differs == 0 : differs != 0);
            }
        larder_kv_cache_close(moved);
        stage_close(&stage);
    }
}
END_TEST

static void softmax(double *weights, uint32_t count)
{
    double sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += weights[i] = exp(-weights[i]);
    for (uint32_t i = 0; i < count; i++)
        weights[i] /= sum;
}

/* The formulas, one number at a time. K's offsets are compared in the segment's own places: there
 * the prompt's leader is as long as BOS alone, and no key moves. */
static double wanted_number(const struct stage *stage, uint32_t layer, enum larder_kv kv,
                            uint32_t row, uint32_t channel, struct larder_kv_cache *const *turned)
{
    const struct larder_kv_cache *mine = stage->alone[0];
    double weights[TEXTS - 1] = {0};
    double sum = 0;
    bool own = row < SEGMENT;
    for (uint32_t i = 0; i < TEXTS - 1; i++) {
        const struct larder_kv_cache *theirs = stage->alone[i + 1];
        if (own) {
            for (uint32_t l = 0; l < stage->desc.layers; l++)
                for (uint64_t k = 0; k < width_of(stage); k++)
                    weights[i] +=
                        fabs(number(mine, l, kv, 1 + row, k) - number(theirs, l, kv, 1 + row, k));
            weights[i] /= (double)(stage->desc.layers * width_of(stage));
        } else {
            for (uint32_t j = 0; j < SEGMENT; j++)
                weights[i] += pow(number(mine, layer, kv, 1 + j, channel) -
                                      number(theirs, layer, kv, 1 + j, channel),
                                  2);
            weights[i] = sqrt(weights[i]);
        }
    }
    softmax(weights, TEXTS - 1);
    for (uint32_t i = 0; i < TEXTS - 1; i++) {
        double whole = number(turned[i + 1], layer, kv, LEADER + row, channel);
        double alone = own ? number(stage->alone[i + 1], layer, kv, 1 + row, channel)
                           : number(stage->after, layer, kv, 1 + row - SEGMENT, channel);
        sum += weights[i] * (whole - alone);
    }
    double stored = own ? number(mine, layer, kv, 1 + row, channel)
                        : number(stage->after, layer, kv, 1 + row - SEGMENT, channel);
    return layer > 0 ? stored + sum : stored;
}

static void turn_keys(const struct stage *stage, struct larder_kv_cache *cache, uint32_t at,
                      uint32_t count, uint32_t from, uint32_t to)
{
    for (uint32_t layer = 0; layer < cache->layers; layer++)
        for (uint32_t i = 0; i < count; i++) {
            struct larder_tensor key = larder_kv_cache_tensor(cache, layer, LARDER_K, at + i, 1);
            const uint32_t places[2] = {from + i, to + i};
            larder_rope_move(stage->table,
                             &(struct larder_rope_move){key, key, &places[0], &places[1]});
        }
}

START_TEST(test_formulas)
{
    struct stage stage;
    stage_open(&stage, models[_i], LARDER_F32);
    for (uint32_t i = 1; i < TEXTS; i++)
        add(&stage, i);
    struct larder_blend_rows own = {stage.alone[0], 1, SEGMENT};
    struct larder_blend_sharing sharing;
    ck_assert_int_eq(larder_blend_anchors_ask(stage.pool, &own, &sharing), 0);
    double s[TEXTS - 1] = {0};
    double entropy = 0;
    for (uint32_t i = 0; i < TEXTS - 1; i++) {
        for (uint32_t layer = 0; layer < stage.desc.layers; layer++)
            for (uint32_t row = 1; row <= SEGMENT; row++)
                for (uint64_t k = 0; k < width_of(&stage); k++)
                    s[i] += pow(number(stage.alone[0], layer, LARDER_V, row, k) -
                                    number(stage.alone[i + 1], layer, LARDER_V, row, k),
                                2);
        s[i] = sqrt(s[i]);
    }
    softmax(s, TEXTS - 1);
    for (uint32_t i = 0; i < TEXTS - 1; i++)
        entropy -= s[i] * log2(s[i]);
    ck_assert_uint_eq(sharing.anchors, TEXTS - 1);
    ck_assert_double_eq_tol(sharing.entropy, entropy, 1e-9);
    ck_assert_double_eq_tol(sharing.limit, .3 * log2(TEXTS - 1), 1e-12);
    ck_assert(sharing.shares == (entropy <= sharing.limit));

    blend(&stage, "kvcomm", 0);
    turn_keys(&stage, stage.blended, LEADER, SEGMENT, LEADER, 1);
    turn_keys(&stage, stage.blended, LEADER + SEGMENT, AFTER, LEADER + SEGMENT, 1);
    for (uint32_t i = 1; i < TEXTS; i++) {
        turn_keys(&stage, stage.whole[i], LEADER, SEGMENT, LEADER, 1);
        turn_keys(&stage, stage.whole[i], LEADER + SEGMENT, AFTER, LEADER + SEGMENT, 1);
    }
    double most = 0;
    for (uint32_t layer = 0; layer < stage.desc.layers; layer++)
        for (enum larder_kv kv = LARDER_K; kv <= LARDER_V; kv++)
            for (uint32_t row = 0; row < SEGMENT + AFTER; row++)
                for (uint32_t k = 0; k < width_of(&stage); k++) {
                    double off = number(stage.blended, layer, kv, LEADER + row, k) -
                                 wanted_number(&stage, layer, kv, row, k, stage.whole);
                    most = fmax(most, fabs(off));
                }
    ck_assert_double_lt(most, 2e-5);
    stage_close(&stage);
}
END_TEST

static struct larder_blend_sharing ask(struct stage *stage, uint32_t text, uint32_t count)
{
    struct larder_blend_rows own = {stage->alone[text], 1, count};
    struct larder_blend_sharing sharing;
    ck_assert_int_eq(larder_blend_anchors_ask(stage->pool, &own, &sharing), 0);
    return sharing;
}

/* Far apart, so that the softmax knows which is near. */
static void spread(struct stage *stage)
{
    for (uint32_t i = 0; i < TEXTS; i++)
        for (uint32_t layer = 0; layer < stage->desc.layers; layer++) {
            float *v = larder_kv_cache_rows(stage->alone[i], layer, LARDER_V);
            for (uint64_t k = 0; k < (1 + SEGMENT) * width_of(stage); k++)
                v[k] += 4 * (float)i;
        }
}

START_TEST(test_sharing)
{
    struct stage stage;
    stage_open(&stage, models[0], LARDER_F32);
    spread(&stage);
    ck_assert(!ask(&stage, 0, SEGMENT).shares);
    add(&stage, 0);
    /* One anchor says nothing, even of its own text. */
    ck_assert(!ask(&stage, 0, SEGMENT).shares);
    ck_assert_uint_eq(ask(&stage, 0, SEGMENT).anchors, 1);
    ck_assert_int_eq(try_add(&stage, 1, SEGMENT - 4), 0);
    /* A shorter one is no candidate for a longer text. */
    ck_assert_uint_eq(ask(&stage, 0, SEGMENT).anchors, 1);
    struct larder_blend_sharing sharing = ask(&stage, 1, SEGMENT - 4);
    ck_assert_uint_eq(sharing.anchors, 2);
    ck_assert(sharing.shares);
    ck_assert_double_lt(sharing.entropy, 1e-6);
    ck_assert_uint_eq(larder_blend_anchors_info(stage.pool, 0).activations, 0);
    ck_assert_uint_eq(larder_blend_anchors_info(stage.pool, 1).activations, 1);

    /* As near to one as to the other: a bit of entropy, above any gamma below 1. */
    open_pool(&stage, 4);
    add(&stage, 0);
    add(&stage, 2);
    for (uint32_t layer = 0; layer < stage.desc.layers; layer++) {
        const float *a = larder_kv_cache_rows(stage.alone[0], layer, LARDER_V);
        const float *b = larder_kv_cache_rows(stage.alone[2], layer, LARDER_V);
        float *middle = larder_kv_cache_rows(stage.alone[1], layer, LARDER_V);
        for (uint64_t k = 0; k < (1 + SEGMENT) * width_of(&stage); k++)
            middle[k] = (a[k] + b[k]) / 2;
    }
    sharing = ask(&stage, 1, SEGMENT);
    ck_assert(!sharing.shares);
    ck_assert_double_gt(sharing.entropy, .5);
    ck_assert_uint_eq(larder_blend_anchors_info(stage.pool, 0).activations, 0);

    /* What is no number shares nothing and is not taken. */
    float *v = larder_kv_cache_rows(stage.alone[3], 0, LARDER_V);
    v[width_of(&stage) * 2] = NAN;
    ck_assert(!ask(&stage, 3, SEGMENT).shares);
    ck_assert_int_eq(try_add(&stage, 3, SEGMENT), -EINVAL);
    ck_assert_uint_eq(larder_blend_anchors_count(stage.pool), 2);
    stage_close(&stage);
}
END_TEST

/* Texts told apart by their lengths. */
START_TEST(test_eviction)
{
    struct stage stage;
    stage_open(&stage, models[0], LARDER_F32);
    spread(&stage);
    open_pool(&stage, 7);
    for (uint32_t i = 0; i < 7; i++)
        ck_assert_int_eq(try_add(&stage, i % 2, SEGMENT - i), 0);
    ck_assert_uint_eq(larder_blend_anchors_count(stage.pool), 7);
    /* The same again takes its own place. */
    ck_assert_int_eq(try_add(&stage, 1, SEGMENT - 3), 0);
    ck_assert_uint_eq(larder_blend_anchors_count(stage.pool), 7);
    ck_assert_uint_eq(larder_blend_anchors_info(stage.pool, 3).tokens, SEGMENT - 3);

    /* The candidates are 14, 13 and 12 tokens long, the first and the last of one text. */
    struct larder_blend_rows own = {stage.alone[0], 1, SEGMENT - 2};
    struct larder_blend_sharing sharing;
    ck_assert_int_eq(larder_blend_anchors_ask(stage.pool, &own, &sharing), 0);
    ck_assert_uint_eq(sharing.anchors, 3);
    ck_assert(!sharing.shares); /* two say the same: a bit */

    /* Of the oldest five the first goes, for none was activated; then the next. */
    ck_assert_int_eq(try_add(&stage, 2, SEGMENT), 0);
    ck_assert_uint_eq(larder_blend_anchors_info(stage.pool, 0).tokens, SEGMENT - 1);
    ck_assert_uint_eq(larder_blend_anchors_info(stage.pool, 6).tokens, SEGMENT);
    /* Now 13 12 11 10 9 8 14; the first is activated, and the second goes instead. */
    ck_assert(ask(&stage, 1, SEGMENT - 1).shares);
    ck_assert_uint_eq(larder_blend_anchors_info(stage.pool, 0).activations, 1);
    ck_assert_int_eq(try_add(&stage, 3, SEGMENT), 0);
    ck_assert_uint_eq(larder_blend_anchors_info(stage.pool, 0).tokens, SEGMENT - 1);
    ck_assert_uint_eq(larder_blend_anchors_info(stage.pool, 1).tokens, SEGMENT - 3);
    ck_assert_uint_eq(larder_blend_anchors_count(stage.pool), 7);
    stage_close(&stage);
}
END_TEST

static uint8_t *write_pool(const struct larder_blend_anchors *pool, uint64_t *bytes)
{
    *bytes = larder_blend_anchors_bytes(pool);
    uint8_t *file = malloc(*bytes);
    ck_assert_ptr_nonnull(file);
    ck_assert_int_eq(larder_blend_anchors_write(pool, file), 0);
    return file;
}

static int read_copy(const struct stage *stage, const uint8_t *file, uint64_t bytes)
{
    /* Of its own size, so that a sanitizer sees who reads behind it. */
    uint8_t *copy = malloc(bytes + !bytes);
    memcpy(copy, file, bytes);
    struct larder_blend_anchors *pool = NULL;
    int err = larder_blend_anchors_read(&pool, &stage->desc, copy, bytes);
    ck_assert((err == 0) == (pool != NULL));
    larder_blend_anchors_close(pool);
    free(copy);
    return err;
}

static void seal(uint8_t *file, uint64_t bytes)
{
    struct larder_key digest;
    ck_assert_int_eq(larder_sha256(&digest, file, bytes - 32), 0);
    memcpy(file + bytes - 32, digest.bytes, 32);
}

static int read_forged(const struct stage *stage, const uint8_t *file, uint64_t bytes, size_t at,
                       const void *field, size_t field_bytes)
{
    uint8_t *copy = malloc(bytes);
    memcpy(copy, file, bytes);
    memcpy(copy + at, field, field_bytes);
    seal(copy, bytes);
    int err = read_copy(stage, copy, bytes);
    free(copy);
    return err;
}

START_TEST(test_file)
{
    struct stage stage;
    stage_open(&stage, models[0], _i ? LARDER_F32 : LARDER_BF16);
    open_pool(&stage, 3);
    ck_assert_int_eq(try_add(&stage, 0, 2), 0);
    ck_assert_int_eq(try_add(&stage, 1, 3), 0);
    ask(&stage, 1, 2);
    uint64_t bytes;
    uint8_t *file = write_pool(stage.pool, &bytes);
    struct larder_blend_anchors *back;
    ck_assert_int_eq(larder_blend_anchors_read(&back, &stage.desc, file, bytes), 0);
    for (uint32_t i = 0; i < 2; i++) {
        struct larder_blend_anchor_info a = larder_blend_anchors_info(stage.pool, i);
        struct larder_blend_anchor_info b = larder_blend_anchors_info(back, i);
        ck_assert_uint_eq(a.tokens, b.tokens);
        ck_assert_uint_eq(a.activations, b.activations);
    }
    uint64_t again_bytes;
    uint8_t *again = write_pool(back, &again_bytes);
    ck_assert_uint_eq(bytes, again_bytes);
    ck_assert_int_eq(memcmp(file, again, bytes), 0);
    free(again);
    larder_blend_anchors_close(back);

    /* Cut anywhere, with and without a digest that is right. */
    for (uint64_t cut = 0; cut < bytes; cut += cut < 300 ? 1 : 101) {
        ck_assert_int_lt(read_copy(&stage, file, cut), 0);
        if (cut < 128)
            continue;
        uint8_t *copy = malloc(cut);
        memcpy(copy, file, cut);
        memcpy(copy + 48, &cut, sizeof(cut));
        seal(copy, cut);
        ck_assert_int_eq(read_copy(&stage, copy, cut), LARDER_ECORRUPT);
        free(copy);
    }
    for (uint64_t at = 0; at < bytes; at += at < 300 || at > bytes - 40 ? 1 : 37) {
        file[at] ^= (uint8_t)(1 << at % 8);
        int err = read_copy(&stage, file, bytes);
        ck_assert_int_eq(err, at < 8    ? LARDER_EFORMAT
                              : at < 12 ? LARDER_EVERSION
                                        : LARDER_ECORRUPT);
        file[at] ^= (uint8_t)(1 << at % 8);
    }

    /* Forged. */
    static const struct {
        size_t at;
        uint32_t value;
        int err;
    } forged[] = {
        {8, 2, LARDER_EVERSION},
        {12, 1, LARDER_ECORRUPT}, /* fewer anchors */
        {12, 3, LARDER_ECORRUPT},
        {12, 4, LARDER_ECORRUPT},
        {12, UINT32_MAX, LARDER_ECORRUPT},
        {16, 0x5a5a5a5a, LARDER_EMODEL},
        {64, 0, LARDER_ECORRUPT},
        {64, 1u << 22, LARDER_ECORRUPT},
        {64, UINT32_MAX, LARDER_ECORRUPT},
        {68, 0, LARDER_ECORRUPT},
        {68, 21, LARDER_ECORRUPT},
        {76, 0x7ff80000, LARDER_ECORRUPT}, /* gamma: NaN */
        {84, 1, LARDER_ECORRUPT},
        {96, 0, LARDER_ECORRUPT}, /* of the first anchor */
        {96, 3, LARDER_ECORRUPT},
        {96, 1u << 22, LARDER_ECORRUPT},
        {96, UINT32_MAX, LARDER_ECORRUPT},
        {100, 1, LARDER_ECORRUPT},
        {112, 0x7fc07fc0, LARDER_ECORRUPT}, /* no number, in every dtype */
        {60, 7, 0},
        {104, 9, 0},
    };
    for (size_t i = 0; i < LARDER_COUNT_OF(forged); i++)
        ck_assert_msg(read_forged(&stage, file, bytes, forged[i].at, &forged[i].value, 4) ==
                          forged[i].err,
                      "at %zu: %s", forged[i].at, larder_error_message());
    /* Anything, anywhere in the heads: any code, but only those. */
    uint32_t state = 7;
    for (int i = 0; i < 400; i++) {
        uint8_t noise[4];
        for (size_t k = 0; k < sizeof(noise); k++)
            noise[k] = (uint8_t)((state = state * 1664525u + 1013904223u) >> 24);
        size_t at = (state >> 8) % 112;
        int err = read_forged(&stage, file, bytes, at, noise, 1 + (state >> 4) % 4);
        ck_assert(err == 0 || err == LARDER_EFORMAT || err == LARDER_EVERSION ||
                  err == LARDER_ECORRUPT || err == LARDER_EMODEL);
    }
    struct larder_model_desc other = stage.desc;
    other.weights[3] ^= 1;
    ck_assert_int_eq(larder_blend_anchors_read(&back, &other, file, bytes), LARDER_EMODEL);
    ck_assert_ptr_null(back);
    for (uint64_t n = 1; n <= 3; n++) {
        larder_mem_fail_at(n);
        ck_assert_int_eq(larder_blend_anchors_read(&back, &stage.desc, file, bytes), -ENOMEM);
        ck_assert_ptr_null(back);
    }
    larder_mem_fail_at(0);
    free(file);
    stage_close(&stage);
}
END_TEST

static void refuse(struct stage *stage, const struct larder_blend_reuse *reuse, const char *why)
{
    ck_assert_int_eq(try_blend(stage, "kvcomm", 0, reuse, 1), -EINVAL);
    ck_assert_msg(strstr(larder_error_message(), why) != NULL, "%s", larder_error_message());
}

START_TEST(test_refusals)
{
    struct stage stage;
    stage_open(&stage, models[0], LARDER_F32);
    struct larder_blend_reuse reuse = reuse_of(&stage, 0);
    refuse(&stage, &reuse, "no anchor is as long");
    ck_assert_int_eq(try_blend(&stage, "kvcomm", 0, NULL, 0), -EINVAL);
    add(&stage, 1);
    ck_assert_int_eq(try_blend(&stage, "kvcomm", 0, &reuse, 1), 0);
    struct larder_blend_reuse wrong = reuse;
    wrong.first--;
    refuse(&stage, &wrong, "are not in one span");
    wrong.first = TOTAL;
    refuse(&stage, &wrong, "not in order");
    wrong = reuse;
    wrong.after_first--;
    refuse(&stage, &wrong, "not in order");
    wrong.after_first = LEADER + SEGMENT + 1;
    refuse(&stage, &wrong, "are not in one span");
    wrong = reuse;
    wrong.base.own.first = 0;
    refuse(&stage, &wrong, "computed at 0");
    wrong = reuse;
    wrong.base.own.count = SEGMENT + 1;
    refuse(&stage, &wrong, "the KV cache holds");
    wrong.base.own.count = 0;
    refuse(&stage, &wrong, "no tokens");
    wrong = reuse;
    wrong.base.after.count--;
    refuse(&stage, &wrong, "a following text");
    struct larder_blend_reuse twice[2] = {reuse, reuse};
    ck_assert_int_eq(try_blend(&stage, "kvcomm", 0, twice, 2), -EINVAL);

    struct larder_blend_anchors *pool;
    struct larder_blend_anchors_options options = {.anchors_max = 1, .gamma = .3};
    ck_assert_int_eq(larder_blend_anchors_open(&pool, &stage.desc, &options), -EINVAL);
    options.anchors_max = LARDER_ANCHORS_MAX + 1;
    ck_assert_int_eq(larder_blend_anchors_open(&pool, &stage.desc, &options), -EINVAL);
    options = (struct larder_blend_anchors_options){.anchors_max = 2, .gamma = 1.1};
    ck_assert_int_eq(larder_blend_anchors_open(&pool, &stage.desc, &options), -EINVAL);
    ck_assert_ptr_null(pool);

    /* Places beyond the table. */
    struct larder_rope_table little = *stage.table;
    little.positions = LEADER + SEGMENT + AFTER - 1;
    struct larder_blend_segment base = base_of(&stage, 2, SEGMENT);
    struct larder_blend_segment whole = {
        .own = {stage.whole[2], LEADER, SEGMENT},
        .after = {stage.whole[2], LEADER + SEGMENT, AFTER},
    };
    ck_assert_int_eq(larder_blend_anchors_add(stage.pool, &little, &base, &whole), LARDER_ELIMIT);
    whole.own.count--;
    ck_assert_int_eq(larder_blend_anchors_add(stage.pool, stage.table, &base, &whole), -EINVAL);
    larder_mem_fail_at(1);
    ck_assert_int_eq(try_add(&stage, 2, SEGMENT), -ENOMEM);
    larder_mem_fail_at(0);
    ck_assert_uint_eq(larder_blend_anchors_count(stage.pool), 1);
    int err = -ENOMEM;
    for (uint64_t n = 1; err < 0; n++) {
        larder_mem_fail_at(n);
        err = try_blend(&stage, "kvcomm", 0, &reuse, 1);
        ck_assert(err == 0 || err == -ENOMEM);
        ck_assert_uint_lt(n, 200);
    }
    larder_mem_fail_at(0);
    stage_close(&stage);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("blend_anchors");
    TCase *all = tcase_create("blend_anchors");
    tcase_set_timeout(all, 240);
    tcase_add_loop_test(all, test_same_context, 0, LARDER_COUNT_OF(models));
    tcase_add_loop_test(all, test_formulas, 0, LARDER_COUNT_OF(models));
    tcase_add_test(all, test_sharing);
    tcase_add_test(all, test_eviction);
    tcase_add_loop_test(all, test_file, 0, 2);
    tcase_add_test(all, test_refusals);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
