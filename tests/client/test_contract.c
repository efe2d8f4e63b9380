/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   a client that asks for a KL gets what was measured to keep it, says what its own KV was
 *         computed on, and stores with the smallest recipe that does; importance and q_max reach
 *         the encoder as they lie in the caller's memory; profiles are fetched by gets.
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

static void begin(void)
{
    for (uint32_t i = 0; i < TOKENS; i++)
        tokens[i] = (i * 7 + 1) % 256;
    prompt = (struct larder_prompt){.tokens = tokens, .token_count = TOKENS};
    engine_open(&engine, ENGINE_PAGED, LARDER_BF16);
    fixture_start(&fixture, NULL);
    const struct larder_options options = {.socket = fixture.socket, .timeout_ms = 20000};
    ck_assert_int_eq(larder_connect(&larder, &options), 0);
    ck_assert_int_eq(larder_model_open(larder, &model, &engine.desc), 0);
    peer_connect(&control, fixture.control_socket);
    peer_say_hello(&control);
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
    ck_assert_int_eq(larder_lookup_for(model, &found, &prompt, NULL), 0);
    ck_assert_uint_eq(found.tokens, 0);
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
    tcase_add_test(tests, scores_reach_their_tokens);
    tcase_add_test(tests, profiles_are_fetched);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
