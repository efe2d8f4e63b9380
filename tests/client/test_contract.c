/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   a client that asks for a KL gets what was measured to keep it, says what its own KV was
 *         computed on, and stores with the smallest recipe that does; importance and q_max reach
 *         the encoder as they lie in the caller's memory; a block that cannot be encoded is refused
 *         and leaves nothing behind; profiles are fetched by gets.
 * Method: a real larderd, an engine of numbers, measures and a profile given over its control
 *         socket. */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/key.h"
#include "base/mem.h"
#include "client/larder.h"
#include "tests/client/engine.h"
#include "tests/daemon/fixture.h"
#include "tests/daemon/peer.h"

#define BLOCK  16u
#define TOKENS (4u * BLOCK)

static struct fixture fixture;
static struct larder *larder;
static struct larder_model *model;
static struct engine engine;
static struct peer control;
static struct answer answer;
static uint32_t tokens[TOKENS];
static struct larder_prompt prompt;

static void begin_with(const char *config)
{
    for (uint32_t i = 0; i < TOKENS; i++)
        tokens[i] = (i * 7 + 1) % 256;
    prompt = (struct larder_prompt){.tokens = tokens, .token_count = TOKENS};
    engine_open(&engine, ENGINE_PAGED, LARDER_BF16);
    fixture_start(&fixture, config);
    const struct larder_options options = {.socket = fixture.socket, .timeout_ms = 20000};
    ck_assert_int_eq(larder_connect(&larder, &options), 0);
    ck_assert_int_eq(larder_model_open(larder, &model, &engine.desc), 0);
    peer_connect(&control, fixture.control_socket);
    peer_say_hello(&control);
}

static void begin(void)
{
    begin_with(NULL);
}

static void begin_with_long_blocks(void)
{
    begin_with("block_tokens = 64\n");
}

static void end(void)
{
    peer_close(&control);
    larder_model_close(model);
    larder_close(larder);
    fixture_stop(&fixture);
    engine_close(&engine);
}

static void measure(const char *recipe, const uint8_t *profile, float kl, float bits)
{
    const struct wire_admin_measure head = {.count = 1};
    struct wire_measure row = {.kl = kl, .kl_p99 = kl, .top1 = 1, .bits_per_element = bits};
    struct larder_key fingerprint;
    ck_assert_int_eq(larder_model_fingerprint(&fingerprint, &engine.desc), 0);
    memcpy(row.fingerprint, fingerprint.bytes, sizeof(row.fingerprint));
    if (profile)
        memcpy(row.profile, profile, sizeof(row.profile));
    snprintf(row.recipe, sizeof(row.recipe), "%s", recipe);
    uint64_t request =
        peer_send(&control, WIRE_ADMIN_MEASURE, &head, sizeof(head), &row, sizeof(row));
    peer_expect(&control, &answer, WIRE_ADMIN_MEASURE_OK, request);
}

static struct larder_put_result put(const struct larder_put_options *options)
{
    struct larder_put_result result;
    engine_prefill(&engine, tokens, TOKENS);
    int err = larder_put(model, &result, &prompt, &engine.layout, options);
    ck_assert_msg(err == 0, "%s", larder_last_error());
    ck_assert_uint_eq(result.tokens, TOKENS);
    return result;
}

static struct larder_get_result get(enum larder_quality worst, float max_kl)
{
    struct larder_get_result result;
    const struct larder_get_options options = {.worst = worst, .max_kl = max_kl};
    struct larder_lookup_result found;
    engine_scramble(&engine);
    ck_assert_int_eq(larder_lookup_for(model, &found, &prompt, &options), 0);
    int err = larder_get(model, &result, &prompt, &engine.layout, &options);
    ck_assert_msg(err == 0, "%s", larder_last_error());
    if (result.stop_error == 0) {
        ck_assert_uint_eq(found.tokens, result.tokens);
        ck_assert(found.kl == result.kl);
    }
    return result;
}

START_TEST(who_asks_for_a_kl)
{
    struct larder_put_options options = {.recipe = "quant bits=4", .wait = LARDER_DURABLE};
    struct larder_put_result stored = put(&options);
    ck_assert_uint_eq(stored.quality, LARDER_QUALITY_LOSSY);
    ck_assert(isinf(stored.kl));
    ck_assert_str_eq(stored.recipe, "quant bits=4");
    ck_assert_uint_eq(get(LARDER_QUALITY_EXACT, 1000).tokens, 0); /* not measured */
    ck_assert(isinf(get(LARDER_QUALITY_LOSSY, 0).kl));
    measure("quant bits=4", NULL, 0.01f, 5);
    measure("quant bits=2", NULL, 0.1f, 3);
    struct larder_get_result got = get(LARDER_QUALITY_EXACT, 0.01f);
    ck_assert_uint_eq(got.tokens, TOKENS);
    ck_assert(got.kl == 0.01f);
    ck_assert_uint_eq(got.quality, LARDER_QUALITY_LOSSY);
    ck_assert_uint_eq(get(LARDER_QUALITY_EXACT, 0.009f).tokens, 0);
    ck_assert_uint_eq(get(LARDER_QUALITY_EXACT, 0).tokens, 0);

    /* It keeps 0.05 already: nothing is sent. What keeps less is replaced. */
    options = (struct larder_put_options){.max_kl = 0.05f};
    ck_assert_uint_eq(put(&options).tokens_new, 0);
    options.max_kl = 0.001f;
    stored = put(&options);
    ck_assert_uint_eq(stored.tokens_new, TOKENS);
    ck_assert_uint_eq(stored.unmeasured, 1);
    ck_assert_str_eq(stored.recipe, "exact");
    ck_assert(stored.kl == 0);
    got = get(LARDER_QUALITY_EXACT, 0);
    ck_assert_uint_eq(got.tokens, TOKENS);
    ck_assert(got.kl == 0);
    ck_assert(engine_holds(&engine, tokens, 0, TOKENS, ENGINE_LAYERS));

    /* Of several the smallest that keeps it, for who wants that. */
    options = (struct larder_put_options){.recipe = "quant bits=2", .flags = LARDER_PUT_BESIDE};
    put(&options);
    const enum larder_quality smallest = LARDER_QUALITY_SMALLEST;
    ck_assert(get(smallest, 0.1f).kl == 0.1f);
    ck_assert(get(smallest, 0.09f).kl == 0);
    ck_assert(get(LARDER_QUALITY_EXACT, 0.1f).kl == 0);
}
END_TEST

START_TEST(what_it_was_computed_on_is_counted)
{
    measure("quant bits=4", NULL, 0.01f, 5);
    measure("quant bits=8", NULL, 0.001f, 9);
    struct larder_put_options options = {.recipe = "auto",
                                         .max_kl = 0.012f,
                                         .computed_on = LARDER_QUALITY_LOSSY,
                                         .computed_on_kl = 0.01f};
    struct larder_put_result stored = put(&options);
    ck_assert_str_eq(stored.recipe, "quant bits=8");
    ck_assert(stored.kl >= 0.011f && stored.kl < 0.0112f);
    ck_assert_uint_eq(get(LARDER_QUALITY_EXACT, 0.0109f).tokens, 0);
    struct larder_get_result got = get(LARDER_QUALITY_EXACT, 0.012f);
    ck_assert_uint_eq(got.tokens, TOKENS);
    ck_assert(got.kl == stored.kl);
    /* Of what nobody measured nothing can be promised. */
    tokens[0]++;
    options.computed_on_kl = INFINITY;
    stored = put(&options);
    ck_assert_str_eq(stored.recipe, "exact");
    ck_assert_uint_eq(stored.unmeasured, 1);
    ck_assert(isinf(stored.kl));
    ck_assert_uint_eq(get(LARDER_QUALITY_EXACT, 1000).tokens, 0);
    ck_assert_uint_eq(get(LARDER_QUALITY_LOSSY, 0).tokens, TOKENS);
}
END_TEST

START_TEST(options_that_cannot_be)
{
    struct larder_put_result stored;
    struct larder_get_result got;
    struct larder_lookup_result found;
    const float bad[] = {NAN, INFINITY, -1};
    engine_prefill(&engine, tokens, TOKENS);
    for (size_t i = 0; i < LARDER_COUNT_OF(bad); i++) {
        const struct larder_get_options get_options = {.max_kl = bad[i]};
        const struct larder_put_options put_options = {.max_kl = bad[i]};
        ck_assert_int_eq(larder_get(model, &got, &prompt, &engine.layout, &get_options), -EINVAL);
        ck_assert_int_eq(larder_lookup_for(model, &found, &prompt, &get_options), -EINVAL);
        ck_assert_int_eq(larder_put(model, &stored, &prompt, &engine.layout, &put_options),
                         -EINVAL);
    }
    struct larder_put_options options = {.computed_on_kl = NAN};
    ck_assert_int_eq(larder_put(model, &stored, &prompt, &engine.layout, &options), -EINVAL);
    options = (struct larder_put_options){.recipe = "kivi4", .max_kl = 1};
    ck_assert_int_eq(larder_put(model, &stored, &prompt, &engine.layout, &options), -EINVAL);
    options = (struct larder_put_options){.recipe = "auto"};
    ck_assert_int_eq(larder_put(model, &stored, &prompt, &engine.layout, &options), -EINVAL);
    options = (struct larder_put_options){.recipe = "zipcache"};
    ck_assert_int_eq(larder_put(model, &stored, &prompt, &engine.layout, &options), -EINVAL);
    ck_assert_ptr_nonnull(strstr(larder_last_error(), "importance"));
    char long_recipe[1100];
    memset(long_recipe, 'x', sizeof(long_recipe));
    long_recipe[sizeof(long_recipe) - 1] = '\0';
    options = (struct larder_put_options){.recipe = long_recipe};
    ck_assert_int_eq(larder_put(model, &stored, &prompt, &engine.layout, &options), LARDER_ELIMIT);
    options = (struct larder_put_options){.wait = (enum larder_wait)7};
    ck_assert_int_eq(larder_put(model, &stored, &prompt, &engine.layout, &options), -EINVAL);
    options = (struct larder_put_options){.reserved = {1}};
    ck_assert_int_eq(larder_put(model, &stored, &prompt, &engine.layout, &options), -EINVAL);
    options =
        (struct larder_put_options){.recipe = "auto", .max_kl = 1, .profile = (uint8_t[32]){1}};
    ck_assert_int_eq(larder_put(model, &stored, &prompt, &engine.layout, &options), -EINVAL);
    ck_assert_int_eq(larder_lookup_for(model, &found, &prompt, NULL), 0);
    ck_assert_uint_eq(found.tokens, 0);
}
END_TEST

START_TEST(prompts_and_layouts_that_cannot_be)
{
    struct larder_put_result stored;
    struct larder_get_result got;
    struct larder_lookup_result found;
    uint8_t extra[2000] = {0};
    const struct larder_prompt bad[] = {
        {.tokens = tokens, .token_count = (size_t)1 << 40},
        {.tokens = NULL, .token_count = 1},
        {.tokens = tokens, .token_count = TOKENS, .extra = extra, .extra_bytes = sizeof(extra)},
        {.tokens = tokens, .token_count = TOKENS, .extra = NULL, .extra_bytes = 1},
    };
    for (size_t i = 0; i < LARDER_COUNT_OF(bad); i++) {
        ck_assert_int_lt(larder_lookup_for(model, &found, &bad[i], NULL), 0);
        ck_assert_int_lt(larder_get(model, &got, &bad[i], &engine.layout, NULL), 0);
        ck_assert_int_lt(larder_put(model, &stored, &bad[i], &engine.layout, NULL), 0);
    }
    struct larder_layout layout = engine.layout;
    layout.token_capacity = TOKENS - 1;
    ck_assert_int_eq(larder_put(model, &stored, &prompt, &layout, NULL), -EINVAL);
    layout = engine.layout;
    layout.token_first = TOKENS + 1;
    ck_assert_int_eq(larder_get(model, &got, &prompt, &layout, NULL), -EINVAL);
    ck_assert_uint_eq(put(NULL).tokens_new, TOKENS);
}
END_TEST

/* What of the engine's memory is not as a prefill writes it: tokens with an error, as a set. */
static void find_errors(bool wrong[TOKENS], uint32_t layer, uint32_t head)
{
    struct engine right;
    engine_open(&right, ENGINE_PLAIN, LARDER_BF16);
    engine_prefill(&right, tokens, TOKENS);
    for (uint32_t token = 0; token < TOKENS; token++) {
        wrong[token] = false;
        for (uint32_t dim = 0; dim < ENGINE_DIMS; dim++)
            wrong[token] |=
                memcmp(engine_element(&right.layout, layer, 1, token, head, dim),
                       engine_element(&engine.layout, layer, 1, token, head, dim), 2) != 0;
    }
    engine_close(&right);
}

/* V of the tokens that matter stays as it is, of the others it does not: so it shows which scores
 * the encoder was given for which token. */
START_TEST(scores_reach_their_tokens)
{
    static float scores[ENGINE_LAYERS][ENGINE_HEADS][TOKENS];
    const struct larder_put_options options = {
        .recipe = "k{raw} v{split by=class share=0.25{keep}{quant bits=2}}",
        .importance = &scores[0][0][0]};
    for (uint32_t layer = 0; layer < ENGINE_LAYERS; layer++)
        for (uint32_t head = 0; head < ENGINE_HEADS; head++)
            for (uint32_t token = 0; token < TOKENS; token++)
                scores[layer][head][token] = (token + layer) % 4 == 0 ? 1.0f : -1.0f;
    put(&options);
    ck_assert_uint_eq(get(LARDER_QUALITY_LOSSY, 0).tokens, TOKENS);
    for (uint32_t layer = 0; layer < ENGINE_LAYERS; layer++) {
        bool wrong[TOKENS];
        find_errors(wrong, layer, 2);
        for (uint32_t token = 0; token < TOKENS; token++)
            ck_assert_msg(wrong[token] == ((token + layer) % 4 != 0), "layer %u, token %u", layer,
                          token);
    }
}
END_TEST

/* The error of one channel of K over all tokens, as a part of its size. */
static float channel_error(uint32_t layer, uint32_t head, uint32_t dim)
{
    struct engine right;
    float off = 0;
    float all = 0;
    engine_open(&right, ENGINE_PLAIN, LARDER_BF16);
    engine_prefill(&right, tokens, TOKENS);
    for (uint32_t token = 0; token < TOKENS; token++) {
        const struct larder_layout *const layouts[] = {&right.layout, &engine.layout};
        float x[2];
        for (int i = 0; i < 2; i++) {
            uint16_t upper;
            memcpy(&upper, engine_element(layouts[i], layer, 0, token, head, dim), sizeof(upper));
            const uint32_t bits = (uint32_t)upper << 16;
            memcpy(&x[i], &bits, sizeof(bits));
        }
        off += fabsf(x[1] - x[0]);
        all += fabsf(x[0]);
    }
    engine_close(&right);
    return off / all;
}

/* The channel that queries look at is the loudest once it is divided by its factor, and sets the
 * scale of all: it is kept, the others are not. With scores at the same time, each where it is. */
START_TEST(q_max_reaches_its_channels)
{
    static float scores[ENGINE_LAYERS][ENGINE_HEADS][TOKENS];
    static float q_max[ENGINE_LAYERS][ENGINE_HEADS][ENGINE_DIMS];
    const struct larder_put_options options = {
        .recipe = "k{balance | quant bits=4 axis=token group=0} "
                  "v{split by=class share=0.25{keep}{quant bits=2}}",
        .importance = &scores[0][0][0],
        .q_max = &q_max[0][0][0]};
    for (uint32_t layer = 0; layer < ENGINE_LAYERS; layer++) {
        for (uint32_t head = 0; head < ENGINE_HEADS; head++) {
            for (uint32_t token = 0; token < TOKENS; token++)
                scores[layer][head][token] = (token + layer) % 4 == 0 ? 1.0f : -1.0f;
            for (uint32_t dim = 0; dim < ENGINE_DIMS; dim++)
                q_max[layer][head][dim] = dim == 7 * layer + head ? 1000 : 1;
        }
    }
    put(&options);
    ck_assert_uint_eq(get(LARDER_QUALITY_LOSSY, 0).tokens, TOKENS);
    for (uint32_t layer = 0; layer < ENGINE_LAYERS; layer++) {
        bool wrong[TOKENS];
        find_errors(wrong, layer, 1);
        for (uint32_t token = 0; token < TOKENS; token++)
            ck_assert(wrong[token] == ((token + layer) % 4 != 0));
        for (uint32_t head = 0; head < ENGINE_HEADS; head++) {
            for (uint32_t dim = 0; dim < ENGINE_DIMS; dim++) {
                const float error = channel_error(layer, head, dim);
                ck_assert_msg(dim == 7 * layer + head ? error < 0.15f : error > 0.5f,
                              "layer %u, head %u, dim %u: %g", layer, head, dim, (double)error);
            }
        }
    }
    const struct larder_put_options negative = {.recipe = options.recipe,
                                                .importance = options.importance,
                                                .q_max = options.q_max,
                                                .flags = LARDER_PUT_BESIDE};
    struct larder_put_result stored;
    q_max[1][2][3] = -1;
    ck_assert_int_eq(larder_put(model, &stored, &prompt, &engine.layout, &negative), -EINVAL);
}
END_TEST

/* 2 % of 16 tokens are none, of 64 one: only then it shows that no head has 64 channels. */
START_TEST(what_cannot_be_encoded_is_refused)
{
    static float scores[ENGINE_LAYERS][ENGINE_HEADS][TOKENS];
    const struct larder_put_options options = {
        .recipe = "k{raw} v{split by=class share=0.02{hadamard block=64 | quant}{keep}}",
        .importance = &scores[0][0][0],
        .wait = LARDER_DURABLE};
    struct larder_put_result stored;
    engine_prefill(&engine, tokens, TOKENS);
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(larder_put(model, &stored, &prompt, &engine.layout, &options),
                         LARDER_EUNSUPPORTED);
        ck_assert_ptr_nonnull(strstr(larder_last_error(), "cannot encode"));
        ck_assert_uint_eq(stored.tokens, 0);
        ck_assert_uint_eq(get(LARDER_QUALITY_BLENDED, 0).tokens, 0);
        engine_prefill(&engine, tokens, TOKENS);
    }
    const struct larder_put_options good = {.recipe = "raw", .wait = LARDER_DURABLE};
    put(&good);
    ck_assert_uint_eq(get(LARDER_QUALITY_EXACT, 0).tokens, TOKENS);
    ck_assert(engine_holds(&engine, tokens, 0, TOKENS, ENGINE_LAYERS));
}
END_TEST

START_TEST(profiles_are_fetched)
{
    uint8_t name[32];
    uint64_t bytes;
    void *profile = peer_make_profile(&engine.desc, &bytes, name);
    const struct larder_put_options options = {.recipe = "bfp4-ksort", .profile = name};
    struct larder_put_result stored;
    engine_prefill(&engine, tokens, TOKENS);
    ck_assert_int_eq(larder_put(model, &stored, &prompt, &engine.layout, &options),
                     LARDER_ENOPROFILE);

    uint64_t request = peer_upload_profile(&control, profile, bytes, name, false);
    peer_expect(&control, &answer, WIRE_ADMIN_PROFILE_ADD_OK, request);
    larder_free(profile);

    put(&options);
    struct larder_get_result got = get(LARDER_QUALITY_LOSSY, 0);
    ck_assert_uint_eq(got.tokens, TOKENS);
    measure("bfp4-ksort", name, 0.02f, 4.3f);
    ck_assert(get(LARDER_QUALITY_EXACT, 0.02f).kl == 0.02f);
    /* auto knows that it has what the recipe needs. */
    tokens[0]++;
    const struct larder_put_options by_kl = {.max_kl = 0.03f};
    ck_assert_str_eq(put(&by_kl).recipe, "bfp4-ksort");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("contract");
    TCase *tests = tcase_create("contract");
    tcase_set_timeout(tests, 120);
    tcase_add_checked_fixture(tests, begin, end);
    tcase_add_test(tests, who_asks_for_a_kl);
    tcase_add_test(tests, what_it_was_computed_on_is_counted);
    tcase_add_test(tests, options_that_cannot_be);
    tcase_add_test(tests, prompts_and_layouts_that_cannot_be);
    tcase_add_test(tests, scores_reach_their_tokens);
    tcase_add_test(tests, q_max_reaches_its_channels);
    tcase_add_test(tests, profiles_are_fetched);
    suite_add_tcase(suite, tests);
    TCase *long_blocks = tcase_create("long blocks");
    tcase_set_timeout(long_blocks, 120);
    tcase_add_checked_fixture(long_blocks, begin_with_long_blocks, end);
    tcase_add_test(long_blocks, what_cannot_be_encoded_is_refused);
    suite_add_tcase(suite, long_blocks);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
