/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: a blend computes what its method says and no other token, gives the bits of a prefill where
 * all is computed, moves keys exactly, and refuses what makes no sense.
 * Method: chunks computed apart, blended and compared with a prefill, byte for byte; rows that are
 * not read are spoiled; keys of every RoPE kind moved as far as 2^20.
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "kernels/blend/select.h"
#include "kernels/cpu/cpu_math.h"
#include "tests/kernels/blend_scene.h"

#define TINY "tests/models/tiny"

static const char *const models[] = {
    TINY,
    "tests/reference/models/llama-linear",
    "tests/reference/models/llama-llama3",
    "tests/reference/models/llama-yarn",
    "tests/reference/models/qwen3",
};

static bool same_row(const struct scene *scene, uint32_t layer, uint32_t token)
{
    for (int kv = LARDER_K; kv <= LARDER_V; kv++)
        if (memcmp(scene_row(scene->cache, layer, kv, token),
                   scene_row(scene->whole, layer, kv, token), scene->cache->k_token_bytes) != 0)
            return false;
    return true;
}

/* Whatever computes all gives the bits of a prefill. */
START_TEST(test_everything_is_a_prefill)
{
    static const char *const methods[] = {"full",
                                          "cacheblend r=1",
                                          "cacheblend r=1 check=paper",
                                          "cacheblend r=1,1 score=k layer=0",
                                          "random r=1",
                                          "link k=110"};
    struct scene scene;
    for (int pass = 0; pass < 2; pass++) {
        scene_open(&scene, models[_i], pass ? LARDER_F32 : LARDER_BF16);
        for (size_t i = 0; i < LARDER_COUNT_OF(methods); i++) {
            const struct larder_blend_result *result = scene_run(&scene, methods[i]);
            ck_assert(result->whole);
            for (uint32_t layer = 0; layer < result->layers; layer++)
                for (uint32_t token = 0; token < scene.token_count; token++)
                    ck_assert_msg(same_row(&scene, layer, token), "%s: layer %u, token %u",
                                  methods[i], layer, token);
            ck_assert_int_eq(memcmp(scene.logits, scene.wanted, scene.vocab * sizeof(float)), 0);
            larder_blend_close(scene.blend);
        }
        scene_close(&scene);
    }
}
END_TEST

/* Stored rows are what was stored, K moved; layer 0's are what a prefill makes. */
START_TEST(test_none)
{
    struct scene scene;
    scene_open(&scene, models[_i], LARDER_F32);
    const struct larder_blend_result *result = scene_run(&scene, "none");
    ck_assert(!result->whole);
    ck_assert_uint_eq(result->sources[LARDER_BLEND_SUFFIX], SCENE_SUFFIX);
    uint64_t dims = scene.cache->k_token_bytes / sizeof(float);
    uint32_t computed = 0;
    for (uint32_t i = 0; i < scene.span_count; i++) {
        const struct larder_blend_span *span = &scene.spans[i];
        computed += span->source >= LARDER_BLEND_MISSING ? (uint32_t)span->count : 0;
        for (uint32_t t = (uint32_t)span->first; t < span->first + span->count; t++) {
            ck_assert_uint_eq(result->layers_run[t],
                              span->source >= LARDER_BLEND_MISSING ? result->layers : 0);
            const float *k = scene_row(scene.cache, 0, LARDER_K, t);
            const float *fresh = scene_row(scene.whole, 0, LARDER_K, t);
            double length = 0;
            for (uint64_t j = 0; j < dims; j++)
                length += (double)fresh[j] * (double)fresh[j];
            for (uint64_t j = 0; j < dims; j++)
                ck_assert_double_le(fabs((double)k[j] - (double)fresh[j]), 4e-6 * sqrt(length));
            if (span->source == LARDER_BLEND_MOVED)
                for (uint32_t layer = 0; layer < result->layers; layer++)
                    ck_assert_int_eq(memcmp(scene_row(scene.cache, layer, LARDER_V, t),
                                            scene_row(scene.stored[span->piece], layer, LARDER_V,
                                                      span->stored_first + t - span->first),
                                            scene.cache->v_token_bytes),
                                     0);
        }
    }
    for (uint32_t layer = 0; layer < result->layers; layer++)
        ck_assert_uint_eq(result->layer_rows[layer], computed);
    uint32_t context = scene.token_count - SCENE_SUFFIX;
    ck_assert_double_eq_tol(result->recomputed_share, (double)(computed - SCENE_SUFFIX) / context,
                            1e-9);
    larder_blend_close(scene.blend);

    /* Behind it the model goes on. */
    ck_assert_int_eq(larder_llama_forward(scene.model, scene.cache, scene.logits,
                                          LARDER_LOGITS_LAST, scene.tokens, 1),
                     0);
    scene_close(&scene);
}
END_TEST

static uint32_t rows_of(struct scene *scene, const char *method, double *share)
{
    const struct larder_blend_result *result = scene_run(scene, method);
    uint32_t rows = 0;
    for (uint32_t layer = 0; layer < result->layers; layer++)
        rows += result->layer_rows[layer];
    *share = result->recomputed_share;
    larder_blend_close(scene->blend);
    return rows;
}

/* The tokens that run are those that the method names; more share, more rows. */
START_TEST(test_rows)
{
    struct scene scene;
    scene_open(&scene, TINY, 0);
    const struct larder_blend_result *result = scene_run(&scene, "link k=3");
    for (uint32_t i = 0; i < scene.span_count; i++)
        for (uint32_t j = 0; j < scene.spans[i].count; j++) {
            bool runs = scene.spans[i].source >= LARDER_BLEND_MISSING ||
                        (scene.spans[i].source == LARDER_BLEND_MOVED && j < 3);
            ck_assert_uint_eq(result->layers_run[scene.spans[i].first + j],
                              runs ? result->layers : 0);
        }
    larder_blend_close(scene.blend);

    uint32_t moved = SCENE_CHUNK + 100 + 30;
    uint32_t forced = 32 + SCENE_SUFFIX;
    result = scene_run(&scene, "cacheblend r=.25 layer=2");
    ck_assert_uint_eq(result->layer_rows[0], moved + forced);
    ck_assert_uint_eq(result->layer_rows[1], moved + forced);
    for (uint32_t layer = 2; layer < result->layers; layer++)
        ck_assert_uint_eq(result->layer_rows[layer], moved / 4 + forced);
    larder_blend_close(scene.blend);
    result = scene_run(&scene, "cacheblend r=.5,.25,.1 score=k check=paper");
    static const double shares[] = {1, .5, .25, .1, .1, .1};
    for (uint32_t layer = 0; layer < result->layers; layer++)
        ck_assert_uint_eq(result->layer_rows[layer],
                          larder_blend_share_of(shares[layer], moved) + forced);
    larder_blend_close(scene.blend);

    static const char *const names[] = {"random", "cacheblend", "cacheblend check=paper"};
    for (size_t i = 0; i < LARDER_COUNT_OF(names); i++) {
        uint32_t before = 0;
        double share_before = -1;
        for (double r = 0; r <= 1; r += 0.125) {
            char method[64];
            double share;
            snprintf(method, sizeof(method), "%s r=%g", names[i], r);
            uint32_t rows = rows_of(&scene, method, &share);
            ck_assert_uint_gt(rows, before);
            ck_assert_double_gt(share, share_before);
            ck_assert_double_le(share, 1);
            before = rows;
            share_before = share;
        }
    }
    scene_close(&scene);
}
END_TEST

/* What is let go at a check layer: strict, as stored from there on; paper, its K and V of that
 * layer computed. What goes on is what deviates most. */
START_TEST(test_check_forms)
{
    struct scene scene;
    scene_open(&scene, TINY, LARDER_F32);
    for (int form = 0; form < 2; form++) {
        const struct larder_blend_result *result =
            scene_run(&scene, form ? "cacheblend r=.2 check=paper" : "cacheblend r=.2");
        for (uint32_t i = 0; i < scene.span_count; i++) {
            const struct larder_blend_span *span = &scene.spans[i];
            if (span->source != LARDER_BLEND_MOVED)
                continue;
            for (uint64_t j = 0; j < span->count; j++) {
                uint32_t token = (uint32_t)(span->first + j);
                bool goes_on = result->layers_run[token] == result->layers;
                ck_assert_uint_eq(result->layers_run[token], goes_on ? result->layers : 1);
                for (uint32_t layer = 0; layer < result->layers; layer++) {
                    const void *stored = scene_row(scene.stored[span->piece], layer, LARDER_V,
                                                   span->stored_first + j);
                    bool is_stored = memcmp(scene_row(scene.cache, layer, LARDER_V, token), stored,
                                            scene.cache->v_token_bytes) == 0;
                    if (layer > 0)
                        ck_assert_int_eq(is_stored, !goes_on && layer > (form ? 1 : 0));
                    if (layer <= 1 && (goes_on || form || layer == 0))
                        ck_assert(same_row(&scene, layer, token));
                }
            }
        }
        larder_blend_close(scene.blend);
    }
    scene_close(&scene);
}
END_TEST

/* Changing a token changes no row before it, whatever runs. */
START_TEST(test_no_later_token)
{
    static const char *const methods[] = {"none", "full", "link k=8", "random r=.4",
                                          "cacheblend r=1 check=paper"};
    struct scene scene;
    scene_open(&scene, TINY, 0);
    uint32_t changed = (uint32_t)scene.spans[2].first + 5; /* of those that are missing */
    struct larder_kv_cache *before;
    ck_assert_int_eq(larder_llama_cache_open(scene.model, &before, scene.cache->capacity, 0), 0);
    for (size_t i = 0; i < LARDER_COUNT_OF(methods); i++) {
        scene_run(&scene, methods[i]);
        larder_blend_close(scene.blend);
        memcpy(before->base, scene.cache->base, before->layers * before->layer_bytes);
        scene.tokens[changed] ^= 0x15;
        scene_run(&scene, methods[i]);
        larder_blend_close(scene.blend);
        scene.tokens[changed] ^= 0x15;
        for (uint32_t layer = 0; layer < before->layers; layer++)
            for (int kv = LARDER_K; kv <= LARDER_V; kv++) {
                ck_assert_int_eq(memcmp(scene_row(before, layer, kv, 0),
                                        scene_row(scene.cache, layer, kv, 0),
                                        changed * before->k_token_bytes),
                                 0);
                ck_assert_int_ne(memcmp(scene_row(before, layer, kv, changed),
                                        scene_row(scene.cache, layer, kv, changed),
                                        before->k_token_bytes),
                                 0);
            }
    }
    larder_kv_cache_close(before);
    scene_close(&scene);
}
END_TEST

static void check_refused(struct scene *scene, int code, const char *method, const char *named)
{
    ck_assert_msg(scene_try(scene, method, false) == code, "%s", method);
    ck_assert_msg(strstr(larder_error_message(), named) != NULL, "%s: %s", method,
                  larder_error_message());
}

START_TEST(test_wrong_methods)
{
    struct scene scene;
    scene_open(&scene, "tests/reference/models/qwen3", 0); /* 2 layers */
    check_refused(&scene, -EINVAL, "", "known are none, full");
    check_refused(&scene, -EINVAL, "blend", "'blend' is not known");
    check_refused(&scene, -EINVAL, "cacheblend r=1.1", "r=1.1 is not a number in 0..1");
    check_refused(&scene, -EINVAL, "cacheblend r=-.1", "r=-.1");
    check_refused(&scene, -EINVAL, "cacheblend r=nan", "r=nan");
    check_refused(&scene, -EINVAL, "cacheblend r=", "r= is not");
    check_refused(&scene, -EINVAL, "cacheblend r", "r has no value");
    check_refused(&scene, -EINVAL, "cacheblend r=.2 r=.3", "r stands twice");
    check_refused(&scene, -EINVAL, "cacheblend r=.1,.2 layer=0", "never rise");
    check_refused(&scene, -EINVAL, "cacheblend layer=2", "layers 0..1");
    check_refused(&scene, -EINVAL, "cacheblend r=.3,.2", "layers 0..1");
    check_refused(&scene, -EINVAL, "cacheblend layer=1.5", "whole number");
    check_refused(&scene, -EINVAL, "cacheblend score=q", "none of: v k");
    check_refused(&scene, -EINVAL, "cacheblend k=3", "written 'cacheblend r=");
    check_refused(&scene, -EINVAL, "link k=-1", "k=-1");
    check_refused(&scene, -EINVAL, "link k=2.5", "whole number");
    check_refused(&scene, -EINVAL, "none k=1", "knows no 'k'");
    char longest[400];
    memset(longest, 'a', sizeof(longest));
    longest[sizeof(longest) - 1] = 0;
    check_refused(&scene, -EINVAL, longest, "399 bytes");
    for (uint32_t i = 0; larder_blend_method(i); i++) {
        ck_assert_int_eq(larder_blend_check_method(larder_blend_method(i)->form, 24), 0);
        ck_assert_int_eq(larder_blend_check_method(larder_blend_method(i)->name, 24), 0);
    }
    ck_assert_int_eq(larder_blend_check_method(LARDER_BLEND_METHOD_DEFAULT, 2), 0);
    scene_close(&scene);
}
END_TEST

START_TEST(test_wrong_spans)
{
    struct scene scene;
    scene_open(&scene, TINY, 0);
    struct larder_blend_span good[SCENE_CHUNKS + 2];
    memcpy(good, scene.spans, sizeof(good));
#define WITH(change, code, named)                                                                  \
    do {                                                                                           \
        change;                                                                                    \
        check_refused(&scene, (code), "none", (named));                                            \
        memcpy(scene.spans, good, sizeof(good));                                                   \
    } while (0)
    WITH(scene.spans[2].first++, -EINVAL, "span 2 begins at token");
    WITH(scene.spans[2].first--, -EINVAL, "span 2 begins at token");
    WITH(scene.spans[1].count++, -EINVAL, "span 2 begins at token");
    WITH(scene.spans[1].count = 0, -EINVAL, "span 1 is empty");
    WITH(scene.spans[5].count--, -EINVAL, "spans end at token");
    WITH(scene.spans[5].count++, -EINVAL, "in all");
    WITH(scene.spans[5].count = UINT64_MAX, -EINVAL, "in all");
    WITH(scene.spans[1].source = 4, -EINVAL, "source 4 is unknown");
    WITH(scene.spans[0].stored_first = 1, -EINVAL, "what moves is no prefix");
    WITH((scene.spans[1].source = LARDER_BLEND_PREFIX,
          scene.spans[1].stored_first = scene.spans[1].first,
          scene.spans[0].source = LARDER_BLEND_MOVED),
         -EINVAL, "span 1 is a prefix behind one that is none");
    WITH(scene.spans[1].stored_first = 1u << 20, LARDER_ELIMIT, "beyond the");
    WITH(scene.spans[1].stored_first = UINT64_MAX - 5, LARDER_ELIMIT, "beyond the");
#undef WITH
    scene.span_count = 0;
    check_refused(&scene, -EINVAL, "none", "spans end at token 0");
    scene.token_count = 0;
    check_refused(&scene, -EINVAL, "none", "no tokens");

    /* More tokens than the cache, than the model. */
    struct larder_blend_span one = {.count = 900, .source = LARDER_BLEND_SUFFIX};
    static uint32_t many[900];
    struct larder_blend *blend;
    struct larder_blend_options options = {.method = "none"};
    ck_assert_int_eq(larder_blend_open(&blend, scene.model, scene.cache,
                                       &(struct larder_blend_prompt){many, &one, 900, 1}, &options),
                     LARDER_ELIMIT);
    one.count = 1u << 30;
    ck_assert_int_eq(larder_blend_open(&blend, scene.model, scene.cache,
                                       &(struct larder_blend_prompt){many, &one, 1u << 30, 1},
                                       &options),
                     LARDER_ELIMIT);
    scene_close(&scene);
}
END_TEST

/* A fetch that fails, a token that is none, no memory: the cache does not claim more than it had.
 * */
START_TEST(test_failures)
{
    struct scene scene;
    scene_open(&scene, TINY, 0);
    for (scene.fail_at = 0; scene.fail_at < scene.cache->layers; scene.fail_at++) {
        scene.cache->count = 60;
        ck_assert_int_eq(scene_try(&scene, "cacheblend", true), 0);
        ck_assert_int_eq(larder_blend_run(scene.blend, scene_fetch, &scene, scene.logits),
                         LARDER_ENOTFOUND);
        ck_assert_uint_eq(scene.cache->count, 60);
        larder_blend_close(scene.blend);
    }
    scene.fail_at = UINT32_MAX;
    scene.cache->count = 200;
    scene.tokens[scene.token_count - 1] = scene.vocab;
    ck_assert_int_eq(scene_try(&scene, "none", true), 0);
    ck_assert_int_eq(larder_blend_run(scene.blend, scene_fetch, &scene, scene.logits), -EINVAL);
    ck_assert_uint_eq(scene.cache->count, 60);
    larder_blend_close(scene.blend);
    scene.tokens[scene.token_count - 1] = 0;

    int err = -ENOMEM;
    for (uint64_t n = 1; err < 0; n++) {
        ck_assert_uint_lt(n, 40);
        larder_mem_fail_at(n);
        err = scene_try(&scene, "cacheblend", true);
        if (err == 0) {
            err = larder_blend_run(scene.blend, scene_fetch, &scene, scene.logits);
            larder_blend_close(scene.blend);
        }
        ck_assert(err == 0 || err == -ENOMEM);
    }
    larder_mem_fail_at(0);
    scene_close(&scene);
}
END_TEST

enum { ROWS = 40, HEADS = 2, DIMS = 80 };

/* Rows of every kind, as fresh at their new place: f32 to 4e-6 of the key's length, bf16 to 2 units
 * in the last place of the pair's. */
static void check_moves(const struct larder_rope_table *table, uint32_t dtype,
                        struct larder_device *device)
{
    static const uint32_t places[][2] = {
        {0, 1u << 20}, {1u << 20, 0}, {1, 777}, {777777, 4321}, {(1u << 20) - 9, 1u << 19}, {5, 5}};
    const struct larder_rope *rope = &table->rope;
    static float plain[ROWS * HEADS * DIMS];
    static float turned[2][ROWS * HEADS * DIMS];
    static float stored[2][ROWS * HEADS * DIMS]; /* of the dtype */
    for (size_t i = 0; i < LARDER_COUNT_OF(plain); i++)
        plain[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    for (size_t p = 0; p < LARDER_COUNT_OF(places); p++) {
        for (int side = 0; side < 2; side++) {
            uint32_t positions[ROWS];
            for (uint32_t i = 0; i < ROWS; i++)
                positions[i] = places[p][side] + i;
            memcpy(turned[side], plain, sizeof(plain));
            struct larder_tensor x = larder_cube(turned[side], LARDER_F32, ROWS, HEADS, DIMS);
            struct larder_rotation rotation = {
                .cos = larder_matrix(table->cos, LARDER_F32, table->positions, table->pairs),
                .sin = larder_matrix(table->sin, LARDER_F32, table->positions, table->pairs),
                .positions = positions,
                .interleaved = rope->interleaved,
            };
            ck_assert_int_eq(device->ops->rope(device, &x, &rotation), 0);
            struct larder_tensor to = larder_cube(stored[side], dtype, ROWS, HEADS, DIMS);
            ck_assert_int_eq(device->ops->convert(device, &to, &x), 0);
        }
        struct larder_tensor keys = larder_cube(stored[0], dtype, ROWS, HEADS, DIMS);
        larder_blend_move_keys(table, &keys, places[p][0], places[p][1]);
        for (uint64_t head = 0; head < ROWS * HEADS; head++) {
            const float *fresh = turned[1] + head * DIMS;
            double length = 0;
            for (uint64_t i = 0; i < DIMS; i++)
                length += (double)fresh[i] * (double)fresh[i];
            for (uint32_t i = 0; i < DIMS; i++) {
                uint32_t pairs = table->pairs;
                uint32_t other = i >= 2 * pairs      ? i
                                 : rope->interleaved ? i ^ 1
                                 : i < pairs         ? i + pairs
                                                     : i - pairs;
                double pair = hypot((double)fresh[i], (double)fresh[other]);
                double limit =
                    dtype == LARDER_F32 ? 4e-6 * sqrt(length) : 2 * exp2(floor(log2(pair)) - 7);
                double got = (double)load_element(stored[0], dtype, head * DIMS + i);
                double want = (double)load_element(stored[1], dtype, head * DIMS + i);
                ck_assert_msg(fabs(got - want) <= limit, "kind %u, %u to %u: %.9g, not %.9g",
                              rope->kind, places[p][0], places[p][1], got, want);
            }
        }
    }
}

START_TEST(test_moves)
{
    static const struct larder_rope kinds[] = {
        {.kind = LARDER_ROPE_PLAIN, .theta = 10000, .factor = 1, .attention_factor = 1},
        {.kind = LARDER_ROPE_LINEAR, .theta = 10000, .factor = 4, .attention_factor = 1},
        {.kind = LARDER_ROPE_LLAMA3,
         .theta = 500000,
         .factor = 8,
         .low_freq_factor = 1,
         .high_freq_factor = 4,
         .original_max_position = 8192,
         .attention_factor = 1},
        {.kind = LARDER_ROPE_YARN,
         .theta = 1000000,
         .factor = 4,
         .beta_fast = 32,
         .beta_slow = 1,
         .attention_factor = 1.1386,
         .original_max_position = 32768},
    };
    struct larder_device *device;
    ck_assert_int_eq(larder_device_open(&device, "cpu", NULL), 0);
    srand(3);
    for (int form = 0; form < 4; form++) {
        struct larder_rope rope = kinds[_i];
        rope.interleaved = form & 1;
        rope.rotary_dims = form & 2 ? 32 : 80; /* in part, whole */
        struct larder_rope_table *table;
        ck_assert_int_eq(larder_rope_table_open(&table, &rope, DIMS), 0);
        ck_assert_int_eq(larder_rope_table_grow(table, (1u << 20) + ROWS), 0);
        check_moves(table, LARDER_F32, device);
        check_moves(table, LARDER_BF16, device);
        larder_rope_table_close(table);
    }
    larder_device_close(device);
}
END_TEST

START_TEST(test_keep_highest)
{
    static const float scores[] = {1, 5, NAN, 5, 0, -3, 5, 2};
    struct {
        uint32_t count;
        const char *kept;
    } cases[] = {{0, "00000000"}, {1, "00100000"}, {2, "01100000"}, {3, "01110000"},
                 {5, "01110011"}, {7, "11111011"}, {8, "11111111"}, {99, "11111111"}};
    for (size_t i = 0; i < LARDER_COUNT_OF(cases); i++) {
        uint8_t flags[] = {1, 1, 1, 1, 1, 1, 1, 1};
        ck_assert_int_eq(larder_blend_keep_highest(flags, scores, 8, cases[i].count), 0);
        for (int j = 0; j < 8; j++)
            ck_assert_int_eq(flags[j], cases[i].kept[j] - '0');
    }
    uint8_t flags[] = {0, 1, 0, 0, 1, 1, 1, 1};
    ck_assert_int_eq(larder_blend_keep_highest(flags, scores, 8, 2), 0);
    ck_assert_int_eq(memcmp(flags, (uint8_t[]){0, 1, 0, 0, 0, 0, 1, 0}, 8), 0);
    larder_mem_fail_at(1);
    ck_assert_int_eq(larder_blend_keep_highest(flags, scores, 8, 1), -ENOMEM);
    larder_mem_fail_at(0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("blend");
    TCase *all = tcase_create("blend");
    tcase_set_timeout(all, 240);
    tcase_add_loop_test(all, test_everything_is_a_prefill, 0, LARDER_COUNT_OF(models));
    tcase_add_loop_test(all, test_none, 0, LARDER_COUNT_OF(models));
    tcase_add_test(all, test_rows);
    tcase_add_test(all, test_check_forms);
    tcase_add_test(all, test_no_later_token);
    tcase_add_test(all, test_wrong_methods);
    tcase_add_test(all, test_wrong_spans);
    tcase_add_test(all, test_failures);
    tcase_add_loop_test(all, test_moves, 0, 4);
    tcase_add_test(all, test_keep_highest);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
