/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   what is put comes back bit for bit, in every layout, and only to whom it belongs; the
 *         longest stored prefix is found; jobs, forks, threads, and a daemon that dies.
 * Method: a real larderd (tests/daemon/fixture.h) and engines of noise (engine.h), whose KV depends
 *         on all tokens before it. */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/record.h"
#include "client/larder.h"
#include "tests/client/engine.h"
#include "tests/daemon/fixture.h"

#define BLOCK      16u /* tokens, of the fixture's daemon */
#define TIMEOUT_MS 20000u

static struct fixture fixture;
static struct larder *larder;
static struct larder_model *model;
static struct engine engine;
static uint32_t tokens[ENGINE_TOKENS];

static double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static struct larder_prompt prompt_of(size_t count)
{
    return (struct larder_prompt){.tokens = tokens, .token_count = count};
}

static struct larder *connect_to(const struct fixture *where, uint32_t threads)
{
    struct larder *connection;
    const struct larder_options options = {
        .socket = where->socket, .timeout_ms = TIMEOUT_MS, .threads = threads};
    ck_assert_msg(larder_connect(&connection, &options) == 0, "%s", larder_last_error());
    return connection;
}

static void open_scene(unsigned layout, uint32_t dtype, uint32_t threads, const char *config)
{
    for (uint32_t i = 0; i < ENGINE_TOKENS; i++)
        tokens[i] = (i * 7 + 1) % 256;
    engine_open(&engine, layout, dtype);
    fixture_start(&fixture, config);
    larder = connect_to(&fixture, threads);
    ck_assert_msg(larder_model_open(larder, &model, &engine.desc) == 0, "%s", larder_last_error());
}

static void close_scene(void)
{
    larder_model_close(model);
    larder_close(larder);
    fixture_stop(&fixture);
    engine_close(&engine);
}

static struct larder_put_result put_with(size_t count, const struct larder_put_options *options)
{
    const struct larder_prompt prompt = prompt_of(count);
    struct larder_put_result result;
    engine_prefill(&engine, tokens, count);
    int err = larder_put(model, &result, &prompt, &engine.layout, options);
    ck_assert_msg(err == 0, "%s", larder_last_error());
    ck_assert_uint_eq(result.tokens, count);
    return result;
}

static struct larder_put_result put(size_t count)
{
    return put_with(count, NULL);
}

/* Gets into memory full of noise, and checks what it says it wrote. */
static struct larder_get_result get_up_to(size_t count, uint64_t tokens_max)
{
    const struct larder_prompt prompt = prompt_of(count);
    struct larder_get_result result;
    engine_scramble(&engine);
    int err = larder_get(model, &result, &prompt, &engine.layout,
                         &(struct larder_get_options){.tokens_max = tokens_max});
    ck_assert_msg(err == 0, "%s", larder_last_error());
    ck_assert(engine_holds(&engine, tokens, 0, result.tokens, ENGINE_LAYERS));
    return result;
}

static uint64_t get(size_t count)
{
    return get_up_to(count, 0).tokens;
}

/* --- round trips ----------------------------------------------------------------------------- */

static void check_round_trip(const char *recipe)
{
    const struct larder_put_options options = {.recipe = recipe};
    struct larder_put_result stored = put_with(ENGINE_TOKENS, &options);
    ck_assert_uint_eq(stored.tokens_new, ENGINE_TOKENS);
    ck_assert_uint_gt(stored.bytes_stored, 0);
    struct larder_get_result result = get_up_to(ENGINE_TOKENS, 0);
    ck_assert_msg(result.tokens == ENGINE_TOKENS, "%s, %s: %lu tokens, %s", engine.name, recipe,
                  (unsigned long)result.tokens, larder_strerror(result.stop_error));
    ck_assert_int_eq(result.stop_status, LARDER_BLOCK_OK);
    ck_assert_uint_eq(result.blocks, (ENGINE_TOKENS + BLOCK - 1) / BLOCK);
    ck_assert_uint_eq(result.quality, LARDER_QUALITY_EXACT);
    ck_assert_uint_gt(result.bytes, 0);
}

/* One daemon for all layouts and dtypes of a recipe: the models differ by dtype and name. */
START_TEST(test_layouts)
{
    static const uint32_t dtypes[] = {LARDER_BF16, LARDER_F16, LARDER_F32};
    const char *recipe = _i == 0 ? "raw" : "exact";
    open_scene(ENGINE_PLAIN, LARDER_BF16, _i == 0 ? 1 : 3, NULL);
    for (size_t d = 0; d < 3; d++)
        for (unsigned layout = 0; layout < engine_layouts; layout++) {
            larder_model_close(model);
            engine_close(&engine);
            engine_open(&engine, layout, dtypes[d]);
            engine.desc.weights[0] = (uint8_t)layout;
            ck_assert_int_eq(larder_model_open(larder, &model, &engine.desc), 0);
            check_round_trip(recipe);
        }
    close_scene();
}
END_TEST

/* What one engine stored in its layout, another reads in its own. */
START_TEST(test_other_layout)
{
    open_scene(2, LARDER_BF16, 1, NULL);
    put(ENGINE_TOKENS);
    engine_close(&engine);
    engine_open(&engine, 6, LARDER_BF16);
    ck_assert_uint_eq(get(ENGINE_TOKENS), ENGINE_TOKENS);
    close_scene();
}
END_TEST

START_TEST(test_durable)
{
    open_scene(ENGINE_PLAIN, LARDER_BF16, 1, NULL);
    const struct larder_put_options durable = {.wait = LARDER_DURABLE};
    put_with(ENGINE_TOKENS, &durable);
    fixture_kill(&fixture);
    fixture_restart(&fixture);
    struct larder_lookup_result found;
    const struct larder_prompt prompt = prompt_of(ENGINE_TOKENS);
    ck_assert_msg(larder_lookup(model, &found, &prompt, LARDER_QUALITY_EXACT) == 0, "%s",
                  larder_last_error());
    ck_assert_uint_eq(found.tokens, ENGINE_TOKENS);
    ck_assert_uint_eq(found.bytes_host, 0);
    ck_assert_uint_gt(found.estimate_us, 0);
    struct larder_get_result result = get_up_to(ENGINE_TOKENS, 0);
    ck_assert_uint_eq(result.tokens, ENGINE_TOKENS);
    ck_assert_uint_eq(result.bytes_ssd, result.bytes);
    ck_assert_uint_eq(get_up_to(ENGINE_TOKENS, 0).bytes_ssd, 0);

    /* Cached first, durable later: the second waits, though nothing new is sent. */
    tokens[0]++;
    put(3 * BLOCK);
    struct larder_put_result again = put_with(3 * BLOCK, &durable);
    ck_assert_uint_eq(again.tokens_new, 0);
    fixture_kill(&fixture);
    fixture_restart(&fixture);
    ck_assert_uint_eq(get(3 * BLOCK), 3 * BLOCK);
    close_scene();
}
END_TEST

/* --- prefixes -------------------------------------------------------------------------------- */

START_TEST(test_prefixes)
{
    open_scene(ENGINE_PLAIN, LARDER_BF16, 1, NULL);
    ck_assert_uint_eq(get(ENGINE_TOKENS), 0);
    ck_assert_int_eq(get_up_to(ENGINE_TOKENS, 0).stop_status, LARDER_BLOCK_MISS);
    const size_t tail = 2 * BLOCK + 5;
    put(tail);
    ck_assert_uint_eq(get(tail), tail);
    ck_assert_uint_eq(get(ENGINE_TOKENS), tail); /* longer: with the shorter tail */
    ck_assert_uint_eq(get(tail + 1), tail);      /* the same, in the tail's block */
    ck_assert_uint_eq(get(tail - 1), 2 * BLOCK); /* shorter: whole blocks */
    ck_assert_uint_eq(get(2 * BLOCK), 2 * BLOCK);
    ck_assert_uint_eq(get(BLOCK + 3), BLOCK);
    ck_assert_uint_eq(get(3), 0);
    ck_assert_uint_eq(get(0), 0);

    /* A prompt that goes apart in the second block, and one in the first token. */
    tokens[BLOCK + 2] ^= 1;
    ck_assert_uint_eq(get(ENGINE_TOKENS), BLOCK);
    put(ENGINE_TOKENS);
    ck_assert_uint_eq(get(ENGINE_TOKENS), ENGINE_TOKENS);
    tokens[BLOCK + 2] ^= 1;
    ck_assert_uint_eq(get(ENGINE_TOKENS), tail);
    tokens[0] ^= 1;
    ck_assert_uint_eq(get(ENGINE_TOKENS), 0);
    tokens[0] ^= 1;

    struct larder_lookup_result found;
    const struct larder_prompt prompt = prompt_of(ENGINE_TOKENS);
    ck_assert_int_eq(larder_lookup(model, &found, &prompt, LARDER_QUALITY_EXACT), 0);
    ck_assert_uint_eq(found.tokens, tail);
    ck_assert_uint_eq(found.blocks, 3);
    ck_assert_uint_eq(found.quality, LARDER_QUALITY_EXACT);
    ck_assert_uint_eq(found.bytes, found.bytes_host);
    close_scene();
}
END_TEST

/* A tail behind the root: prompts shorter than a block. */
START_TEST(test_short_prompts)
{
    open_scene(ENGINE_PLAIN, LARDER_BF16, 1, NULL);
    put(5);
    ck_assert_uint_eq(get(5), 5);
    ck_assert_uint_eq(get(9), 5);
    ck_assert_uint_eq(get(ENGINE_TOKENS), 5);
    put(9);
    ck_assert_uint_eq(get(ENGINE_TOKENS), 9);
    put(1);
    ck_assert_uint_eq(get(ENGINE_TOKENS), 9);
    put(ENGINE_TOKENS);
    ck_assert_uint_eq(get(ENGINE_TOKENS), ENGINE_TOKENS);
    close_scene();
}
END_TEST

/* Dropping is done behind the answer: waits for it. */
static void check_entries(uint64_t entries)
{
    struct larder_stat stat;
    const double start = now_ms();
    do
        ck_assert_int_eq(larder_get_stat(larder, &stat), 0);
    while (stat.entries != entries && now_ms() - start < 5000);
    ck_assert_uint_eq(stat.entries, entries);
}

START_TEST(test_extension_drops_tail)
{
    const struct larder_put_options durable = {.wait = LARDER_DURABLE};
    open_scene(ENGINE_PLAIN, LARDER_BF16, 1, NULL);
    put_with(BLOCK + 4, &durable);
    check_entries(2);
    ck_assert_uint_eq(put_with(BLOCK + 9, &durable).tokens_new, 9);
    check_entries(2);
    put_with(2 * BLOCK, &durable);
    check_entries(2);
    ck_assert_uint_eq(get(ENGINE_TOKENS), 2 * BLOCK);
    close_scene();
}
END_TEST

START_TEST(test_limits_of_a_get)
{
    open_scene(ENGINE_PAGED, LARDER_BF16, 1, NULL);
    put(ENGINE_TOKENS);
    /* All but the last token, which the engine runs itself. */
    struct larder_get_result result = get_up_to(ENGINE_TOKENS, ENGINE_TOKENS - 1);
    ck_assert_uint_eq(result.tokens, ENGINE_TOKENS - 1);
    ck_assert_int_eq(result.stop_status, LARDER_BLOCK_OK);
    ck_assert(!engine_holds(&engine, tokens, ENGINE_TOKENS - 1, ENGINE_TOKENS, ENGINE_LAYERS));
    ck_assert_uint_eq(get_up_to(ENGINE_TOKENS, 3).tokens, 3);
    ck_assert(!engine_holds(&engine, tokens, 3, 4, ENGINE_LAYERS));
    ck_assert_uint_eq(get_up_to(ENGINE_TOKENS, BLOCK).tokens, BLOCK);

    /* Room for less than is stored. */
    engine.layout.token_capacity = BLOCK + 2;
    ck_assert_uint_eq(get(ENGINE_TOKENS), BLOCK + 2);
    ck_assert(!engine_holds(&engine, tokens, BLOCK + 2, BLOCK + 3, ENGINE_LAYERS));
    engine.layout.token_capacity = ENGINE_TOKENS;

    /* The engine has the first tokens already: they stay as they are. */
    const struct larder_prompt prompt = prompt_of(ENGINE_TOKENS);
    engine_scramble(&engine);
    engine.layout.token_first = BLOCK + 3;
    int err = larder_get(model, &result, &prompt, &engine.layout, NULL);
    ck_assert_msg(err == 0, "%s", larder_last_error());
    ck_assert_uint_eq(result.tokens, ENGINE_TOKENS);
    ck_assert(engine_holds(&engine, tokens, BLOCK + 3, ENGINE_TOKENS, ENGINE_LAYERS));
    ck_assert(!engine_holds(&engine, tokens, BLOCK + 2, BLOCK + 3, ENGINE_LAYERS));
    ck_assert(!engine_holds(&engine, tokens, 0, 1, ENGINE_LAYERS));
    close_scene();
}
END_TEST

/* --- variants -------------------------------------------------------------------------------- */

static struct larder_get_result get_worst(enum larder_quality worst)
{
    const struct larder_prompt prompt = prompt_of(ENGINE_TOKENS);
    struct larder_get_result result;
    struct larder_lookup_result found;
    engine_scramble(&engine);
    ck_assert_int_eq(larder_lookup(model, &found, &prompt, worst), 0);
    ck_assert_int_eq(larder_get(model, &result, &prompt, &engine.layout,
                                &(struct larder_get_options){.worst = worst}),
                     0);
    ck_assert(engine_holds(&engine, tokens, 0, result.tokens, ENGINE_LAYERS));
    ck_assert_uint_eq(found.tokens, result.tokens);
    ck_assert_uint_eq(found.bytes, result.bytes);
    ck_assert_uint_eq(found.quality, result.quality);
    return result;
}

START_TEST(test_variants)
{
    open_scene(ENGINE_PLAIN, LARDER_BF16, 1, NULL);
    struct larder_put_options options = {.recipe = "raw", .wait = LARDER_DURABLE};
    const struct larder_put_result raw = put_with(ENGINE_TOKENS, &options);
    /* A worse one, and one that is as good: neither is stored, unless beside. */
    options.recipe = "exact";
    ck_assert_uint_eq(put_with(ENGINE_TOKENS, &options).tokens_new, 0);
    options.flags = LARDER_PUT_BESIDE;
    const struct larder_put_result exact = put_with(ENGINE_TOKENS, &options);
    ck_assert_uint_eq(exact.tokens_new, ENGINE_TOKENS);
    ck_assert_uint_eq(put_with(ENGINE_TOKENS, &options).tokens_new, 0);
    options.computed_on = LARDER_QUALITY_LOSSY;
    ck_assert_uint_eq(put_with(ENGINE_TOKENS, &options).tokens_new, ENGINE_TOKENS);

    ck_assert_uint_eq(get_worst(LARDER_QUALITY_BLENDED).quality, LARDER_QUALITY_EXACT);
    struct larder_get_result result =
        get_worst((enum larder_quality)(LARDER_QUALITY_EXACT | LARDER_QUALITY_SMALLEST));
    ck_assert_uint_eq(result.tokens, ENGINE_TOKENS);
    ck_assert_uint_eq(result.quality, LARDER_QUALITY_EXACT);
    ck_assert_uint_le(result.bytes, raw.bytes_stored);
    struct larder_stat stat;
    ck_assert_int_eq(larder_get_stat(larder, &stat), 0);
    ck_assert_uint_eq(stat.entries % 3, 0);

    /* One of a lossy recipe, for those who accept it and want little. */
    options.computed_on = LARDER_QUALITY_EXACT;
    options.recipe = "kivi2";
    const struct larder_put_result lossy = put_with(ENGINE_TOKENS, &options);
    ck_assert_uint_eq(lossy.tokens_new, ENGINE_TOKENS);
    const struct larder_prompt prompt = prompt_of(ENGINE_TOKENS);
    const struct larder_get_options little = {
        .worst = (enum larder_quality)(LARDER_QUALITY_LOSSY | LARDER_QUALITY_SMALLEST)};
    ck_assert_int_eq(larder_get(model, &result, &prompt, &engine.layout, &little), 0);
    ck_assert_uint_eq(result.tokens, ENGINE_TOKENS);
    if (lossy.bytes_stored < exact.bytes_stored) {
        ck_assert_uint_eq(result.quality, LARDER_QUALITY_LOSSY);
        ck_assert_uint_lt(result.bytes, exact.bytes_stored);
    }
    ck_assert_uint_eq(get_worst(LARDER_QUALITY_LOSSY).quality, LARDER_QUALITY_EXACT);

    struct larder_put_result none;
    options.flags = 1u << 7;
    ck_assert_int_eq(larder_put(model, &none, &prompt, &engine.layout, &options), -EINVAL);
    struct larder_lookup_result found;
    ck_assert_int_eq(
        larder_lookup(model, &found, &prompt, (enum larder_quality)(LARDER_QUALITY_SMALLEST << 1)),
        -EINVAL);
    uint64_t removed;
    ck_assert_int_eq(larder_remove(model, &prompt, ENGINE_TOKENS, &removed), 0);
    ck_assert_uint_eq(removed, 4);
    close_scene();
}
END_TEST

/* --- identity -------------------------------------------------------------------------------- */

START_TEST(test_identity)
{
    open_scene(ENGINE_PLAIN, LARDER_BF16, 1, NULL);
    put(ENGINE_TOKENS);
    struct larder_prompt prompt = prompt_of(ENGINE_TOKENS);
    prompt.extra = "lora-7";
    prompt.extra_bytes = 6;
    struct larder_get_result result;
    ck_assert_int_eq(larder_get(model, &result, &prompt, &engine.layout, NULL), 0);
    ck_assert_uint_eq(result.tokens, 0);
    struct larder_put_result stored;
    engine_prefill(&engine, tokens, ENGINE_TOKENS);
    ck_assert_int_eq(larder_put(model, &stored, &prompt, &engine.layout, NULL), 0);
    ck_assert_uint_eq(stored.tokens_new, ENGINE_TOKENS);
    ck_assert_int_eq(larder_get(model, &result, &prompt, &engine.layout, NULL), 0);
    ck_assert_uint_eq(result.tokens, ENGINE_TOKENS);

    /* K for another place is no prefix: it would be served as one. */
    const struct larder_put_options moved = {.position = 5000};
    ck_assert_int_eq(larder_put(model, &stored, &prompt, &engine.layout, &moved),
                     LARDER_EUNSUPPORTED);
    ck_assert_uint_eq(stored.tokens, 0);
    ck_assert_ptr_nonnull(strstr(larder_last_error(), "5000"));

    /* Other weights: another model. An impossible one is an error, never a miss. */
    struct larder_model *own = model;
    struct larder_model_desc desc = engine.desc;
    desc.weights[31] = 1;
    ck_assert_int_eq(larder_model_open(larder, &model, &desc), 0);
    ck_assert_uint_eq(get(ENGINE_TOKENS), 0);
    larder_model_close(model);
    desc.layers = 0;
    ck_assert_int_eq(larder_model_open(larder, &model, &desc), LARDER_ELIMIT);
    desc = engine.desc;
    desc.rope.kind = 99;
    ck_assert_int_eq(larder_model_open(larder, &model, &desc), LARDER_EUNSUPPORTED);
    ck_assert_ptr_null(model);
    model = own;
    engine.layout.dtype = LARDER_F32;
    ck_assert_int_eq(larder_get(model, &result, &prompt, &engine.layout, NULL), LARDER_EMODEL);
    engine.layout.dtype = LARDER_BF16;
    tokens[1] = 256;
    ck_assert_int_eq(larder_get(model, &result, &prompt, &engine.layout, NULL), -EINVAL);
    ck_assert_ptr_nonnull(strstr(larder_last_error(), "256"));

    struct larder_info info;
    ck_assert_int_eq(larder_get_info(larder, &info), 0);
    ck_assert_uint_eq(info.block_tokens, BLOCK);
    ck_assert_uint_eq(info.protocol_version, 1);
    close_scene();
}
END_TEST

START_TEST(test_quality)
{
    open_scene(ENGINE_PLAIN, LARDER_BF16, 1, NULL);
    const struct larder_put_options lossy = {.wait = LARDER_DURABLE,
                                             .computed_on = LARDER_QUALITY_LOSSY};
    const struct larder_put_options durable = {.wait = LARDER_DURABLE};
    put_with(ENGINE_TOKENS, &lossy);
    ck_assert_uint_eq(get(ENGINE_TOKENS), 0); /* asks for exact */
    const struct larder_prompt prompt = prompt_of(ENGINE_TOKENS);
    struct larder_get_result result;
    ck_assert_int_eq(larder_get(model, &result, &prompt, &engine.layout,
                                &(struct larder_get_options){.worst = LARDER_QUALITY_LOSSY}),
                     0);
    ck_assert_uint_eq(result.tokens, ENGINE_TOKENS);
    ck_assert_uint_eq(result.quality, LARDER_QUALITY_LOSSY);
    /* The better one is stored beside or over it. */
    struct larder_put_result better = put_with(ENGINE_TOKENS, &durable);
    ck_assert_uint_eq(better.tokens_new, ENGINE_TOKENS);
    ck_assert_uint_eq(get(ENGINE_TOKENS), ENGINE_TOKENS);
    const struct larder_put_options bad = {.recipe = "no such recipe"};
    struct larder_put_result none;
    ck_assert_int_eq(larder_put(model, &none, &prompt, &engine.layout, &bad), -EINVAL);
    close_scene();
}
END_TEST

/* --- lossy recipes ---------------------------------------------------------------------------- */

static float kv_number(uint32_t layer, uint32_t kind, uint64_t token, uint32_t head, uint32_t dim)
{
    return sinf((float)(token * 3 + dim * 7 + head * 5 + layer + kind)) * (dim == 3 ? 8 : 1);
}

/* Runs `visit` over every element of tokens first .. end - 1; the sum of what it gives. */
static double over_tokens(uint64_t first, uint64_t end,
                          double (*visit)(char *element, float number))
{
    double sum = 0;
    for (uint32_t layer = 0; layer < ENGINE_LAYERS; layer++)
        for (uint32_t kind = 0; kind < 2; kind++)
            for (uint64_t token = first; token < end; token++)
                for (uint32_t head = 0; head < ENGINE_HEADS; head++)
                    for (uint32_t dim = 0; dim < ENGINE_DIMS; dim++)
                        sum += visit(engine_element(&engine.layout, layer, kind, token, head, dim),
                                     kv_number(layer, kind, token, head, dim));
    return sum;
}

static double write_number(char *element, float number)
{
    memcpy(element, &number, sizeof(number));
    return (double)number * (double)number;
}

static double distance(char *element, float number)
{
    float is;
    memcpy(&is, element, sizeof(is));
    return ((double)is - (double)number) * ((double)is - (double)number);
}

START_TEST(test_lossy)
{
    open_scene(ENGINE_PAGED, LARDER_F32, 2, NULL);
    larder_model_close(model);
    engine.desc.rope = (struct larder_rope){
        .kind = LARDER_ROPE_PLAIN, .rotary_dims = ENGINE_DIMS, .theta = 10000, .factor = 1};
    ck_assert_int_eq(larder_model_open(larder, &model, &engine.desc), 0);
    const struct larder_prompt prompt = prompt_of(ENGINE_TOKENS);
    const struct larder_put_options options = {
        .wait = LARDER_DURABLE,
        .recipe = "k{rope-off | quant bits=8 axis=channel group=16} v{hadamard block=8 | kivi4}"};
    struct larder_put_result stored;
    double energy = over_tokens(0, ENGINE_TOKENS, write_number);
    ck_assert_msg(larder_put(model, &stored, &prompt, &engine.layout, &options) == 0, "%s",
                  larder_last_error());
    ck_assert_uint_eq(stored.tokens_new, ENGINE_TOKENS);

    struct larder_get_result result;
    engine_scramble(&engine);
    ck_assert_int_eq(larder_get(model, &result, &prompt, &engine.layout, NULL), 0);
    ck_assert_uint_eq(result.tokens, 0);
    ck_assert_int_eq(larder_get(model, &result, &prompt, &engine.layout,
                                &(struct larder_get_options){.worst = LARDER_QUALITY_LOSSY}),
                     0);
    ck_assert_uint_eq(result.tokens, ENGINE_TOKENS);
    ck_assert_uint_eq(result.quality, LARDER_QUALITY_LOSSY);
    double error = sqrt(over_tokens(0, ENGINE_TOKENS, distance) / energy);
    ck_assert_msg(error > 1e-6 && error < 0.06, "relative error %g", error);
    /* The short last block is as it was. */
    ck_assert(over_tokens(ENGINE_TOKENS - ENGINE_TOKENS % BLOCK, ENGINE_TOKENS, distance) == 0);

    const struct larder_put_options unfit = {.recipe = "hadamard | quant bits=4"};
    tokens[0]++;
    ck_assert_int_eq(larder_put(model, &stored, &prompt, &engine.layout, &unfit),
                     LARDER_EUNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(larder_last_error(), "power of two"));
    close_scene();
}
END_TEST

/* Kept exact as long as it is short; a longer block of the same recipe takes its place. */
START_TEST(test_short_last_block)
{
    open_scene(ENGINE_PLAIN, LARDER_F32, 1, NULL);
    (void)over_tokens(0, ENGINE_TOKENS, write_number);
    const struct larder_put_options options = {.wait = LARDER_DURABLE,
                                               .recipe = "hadamard block=8 | quant bits=4"};
    const struct larder_get_options lossy = {.worst = LARDER_QUALITY_LOSSY};
    const size_t counts[] = {BLOCK + 4, BLOCK + 9, 2 * BLOCK};
    for (size_t i = 0; i < LARDER_COUNT_OF(counts); i++) {
        const struct larder_prompt prompt = prompt_of(counts[i]);
        struct larder_put_result stored;
        ck_assert_int_eq(larder_put(model, &stored, &prompt, &engine.layout, &options), 0);
        check_entries(2);
        engine_scramble(&engine);
        struct larder_get_result result;
        ck_assert_int_eq(larder_get(model, &result, &prompt, &engine.layout, &lossy), 0);
        ck_assert_uint_eq(result.tokens, counts[i]);
        ck_assert_uint_eq(result.quality, LARDER_QUALITY_LOSSY);
        ck_assert(over_tokens(0, BLOCK, distance) > 0);
        const bool is_whole = counts[i] == 2 * BLOCK;
        ck_assert((over_tokens(BLOCK, counts[i], distance) > 0) == is_whole);
        (void)over_tokens(0, ENGINE_TOKENS, write_number);
    }
    /* Nothing of it counts as what a recipe could not hold. */
    struct larder_stat stat;
    ck_assert_int_eq(larder_get_stat(larder, &stat), 0);
    ck_assert_uint_eq(stat.fell_back, 0);
    close_scene();
}
END_TEST

START_TEST(test_remove)
{
    open_scene(ENGINE_PLAIN, LARDER_BF16, 1, NULL);
    put(ENGINE_TOKENS);
    const struct larder_prompt prompt = prompt_of(ENGINE_TOKENS);
    uint64_t removed;
    ck_assert_int_eq(larder_remove(model, &prompt, 7, &removed), -EINVAL);
    ck_assert_int_eq(larder_remove(model, &prompt, ENGINE_TOKENS, &removed), 0);
    ck_assert_uint_eq(removed, 1);
    ck_assert_int_eq(larder_remove(model, &prompt, 2 * BLOCK, &removed), 0);
    ck_assert_uint_eq(removed, 3);
    ck_assert_uint_eq(get(ENGINE_TOKENS), BLOCK);
    ck_assert_int_eq(larder_remove(model, &prompt, 2 * BLOCK, &removed), LARDER_ENOTFOUND);
    put(ENGINE_TOKENS);
    ck_assert_uint_eq(get(ENGINE_TOKENS), ENGINE_TOKENS);
    close_scene();
}
END_TEST

START_TEST(test_marks)
{
    open_scene(ENGINE_PLAIN, LARDER_BF16, 1, NULL);
    const struct larder_put_options options = {
        .mark = {.fields = LARDER_MARK_PIN | LARDER_MARK_TTL, .pin_s = 1000, .ttl_s = 1000}};
    put_with(ENGINE_TOKENS, &options);
    const struct larder_prompt prompt = prompt_of(ENGINE_TOKENS);
    uint64_t removed;
    ck_assert_int_eq(larder_remove(model, &prompt, BLOCK, &removed), LARDER_EPINNED);
    ck_assert_int_eq(larder_unpin(model, &prompt, ENGINE_TOKENS), 0);
    /* All of it is stored: the pin comes by itself. */
    put_with(ENGINE_TOKENS, &options);
    ck_assert_int_eq(larder_remove(model, &prompt, BLOCK, &removed), LARDER_EPINNED);
    ck_assert_int_eq(larder_unpin(model, &prompt, ENGINE_TOKENS), 0);
    ck_assert_int_eq(larder_pin(model, &prompt, 2 * BLOCK, 0), 0);
    ck_assert_int_eq(larder_remove(model, &prompt, 3 * BLOCK, &removed), 0);
    ck_assert_int_eq(larder_remove(model, &prompt, 2 * BLOCK, &removed), LARDER_EPINNED);
    ck_assert_int_eq(larder_unpin(model, &prompt, 2 * BLOCK), 0);
    ck_assert_int_eq(larder_touch(model, &prompt, 2 * BLOCK, 1), 0);
    for (int i = 0; i < 500 && get(ENGINE_TOKENS) > BLOCK; i++)
        usleep(10000);
    ck_assert_uint_eq(get(ENGINE_TOKENS), BLOCK);
    ck_assert_int_eq(larder_touch(model, &prompt, 2 * BLOCK, 1), LARDER_ENOTFOUND);
    ck_assert_int_eq(larder_pin(model, &prompt, 7, 0), -EINVAL);
    const struct larder_mark bad = {.fields = LARDER_MARK_TTL, .ttl_s = UINT64_MAX};
    ck_assert_int_eq(larder_mark(model, &prompt, BLOCK, &bad), LARDER_ELIMIT);
    const struct larder_put_options unpins = {.mark = {.fields = LARDER_MARK_UNPIN}};
    struct larder_put_result result;
    ck_assert_int_eq(larder_put(model, &result, &prompt, &engine.layout, &unpins), -EINVAL);
    close_scene();
}
END_TEST

/* --- layers ---------------------------------------------------------------------------------- */

START_TEST(test_layers)
{
    open_scene(ENGINE_PAGED, LARDER_BF16, 2, NULL);
    const struct larder_put_options durable = {.wait = LARDER_DURABLE};
    put_with(ENGINE_TOKENS, &durable);
    for (int round = 0; round < 2; round++) {
        const struct larder_prompt prompt = prompt_of(ENGINE_TOKENS);
        struct larder_get_op *op;
        struct larder_get_result result;
        uint64_t expected;
        engine_scramble(&engine);
        int err = larder_get_begin(model, &op, &expected, &prompt, &engine.layout, NULL);
        ck_assert_msg(err == 0, "%s", larder_last_error());
        ck_assert_uint_eq(expected, ENGINE_TOKENS);
        for (uint32_t layer = 0; layer < ENGINE_LAYERS; layer++) {
            ck_assert_int_eq(larder_get_wait_layer(op, layer), 0);
            ck_assert(engine_holds(&engine, tokens, 0, ENGINE_TOKENS, layer + 1));
        }
        ck_assert_int_eq(larder_get_wait_layer(op, ENGINE_LAYERS), -EINVAL);
        ck_assert_int_eq(larder_get_end(op, &result), 0);
        ck_assert_uint_eq(result.tokens, ENGINE_TOKENS);
        /* The second round finds nothing in the host tier. */
        fixture_kill(&fixture);
        fixture_restart(&fixture);
    }
    /* Given up in the middle. */
    const struct larder_prompt prompt = prompt_of(ENGINE_TOKENS);
    struct larder_get_op *op;
    struct larder_get_result result;
    uint64_t expected;
    ck_assert_int_eq(larder_get_begin(model, &op, &expected, &prompt, &engine.layout, NULL), 0);
    ck_assert_int_eq(larder_get_wait_layer(op, 0), 0);
    ck_assert_int_eq(larder_get_end(op, &result), 0);
    ck_assert_uint_eq(result.tokens, 0);
    ck_assert_int_eq(result.stop_status, LARDER_BLOCK_CANCELLED);
    close_scene();
}
END_TEST

/* A lease that timed out: its memory is used for something else, and the get notices. */
START_TEST(test_stale)
{
    open_scene(ENGINE_PLAIN, LARDER_F32, 1,
               "host_bytes = 1M\nslab_bytes = 1M\nlease_ms = 100\nrecipe = raw\n");
    const struct larder_put_options durable = {.wait = LARDER_DURABLE};
    put_with(4 * BLOCK, &durable);
    const struct larder_prompt prompt = prompt_of(4 * BLOCK);
    struct larder_get_op *op;
    struct larder_get_result result;
    uint64_t expected;
    engine_scramble(&engine);
    ck_assert_int_eq(larder_get_begin(model, &op, &expected, &prompt, &engine.layout, NULL), 0);
    ck_assert_uint_eq(expected, 4 * BLOCK);
    ck_assert_int_eq(larder_get_wait_layer(op, 0), 0);
    /* Its last block goes once the lease has run out, and another prompt takes the memory. */
    usleep(400000);
    uint64_t removed;
    ck_assert_int_eq(larder_remove(model, &prompt, 4 * BLOCK, &removed), 0);
    struct engine other;
    engine_open(&other, ENGINE_PLAIN, LARDER_F32);
    uint32_t other_tokens[4 * BLOCK] = {0};
    const struct larder_prompt other_prompt = {.tokens = other_tokens, .token_count = 4 * BLOCK};
    struct larder_put_result stored;
    (void)larder_put(model, &stored, &other_prompt, &other.layout, &durable);
    int err = larder_get_wait_layer(op, 1);
    ck_assert_int_eq(err, LARDER_ESTALE);
    ck_assert_int_eq(larder_get_end(op, &result), 0);
    ck_assert_uint_lt(result.tokens, 4 * BLOCK);
    ck_assert_int_eq(result.stop_status, LARDER_BLOCK_MISS);
    ck_assert_int_eq(result.stop_error, LARDER_ESTALE);
    ck_assert(engine_holds(&engine, tokens, 0, result.tokens, ENGINE_LAYERS));
    engine_close(&other);
    close_scene();
}
END_TEST

/* --- large prompts --------------------------------------------------------------------------- */

/* Puts and gets a prompt of `count` tokens of a one-layer model, whose KV is noise. */
static void check_large(uint32_t count, uint32_t dims, const char *config, bool in_steps)
{
    const struct larder_model_desc desc = {.layers = 2,
                                           .kv_heads = 1,
                                           .k_dims = dims,
                                           .v_dims = dims,
                                           .dtype = LARDER_F32,
                                           .vocab = 1000};
    const size_t bytes = (size_t)count * dims * 4 * 4;
    uint32_t *many = malloc(count * sizeof(*many));
    char *kv = malloc(bytes);
    char *copy = malloc(bytes);
    for (uint32_t i = 0; i < count; i++)
        many[i] = engine_random() % 1000;
    for (size_t i = 0; i < bytes; i++)
        copy[i] = kv[i] = (char)engine_random();
    fixture_start(&fixture, config);
    larder = connect_to(&fixture, 1);
    ck_assert_int_eq(larder_model_open(larder, &model, &desc), 0);
    struct larder_layout layout;
    ck_assert_int_eq(larder_layout_plain(&layout, &desc, kv, count), 0);
    const struct larder_prompt prompt = {.tokens = many, .token_count = count};
    const struct larder_put_options options = {.wait = LARDER_DURABLE, .recipe = "raw"};
    struct larder_put_result stored;
    int err = larder_put(model, &stored, &prompt, &layout, &options);
    ck_assert_msg(err == 0, "%s", larder_last_error());
    ck_assert_uint_eq(stored.tokens_new, count);
    struct larder_lookup_result found;
    ck_assert_int_eq(larder_lookup(model, &found, &prompt, LARDER_QUALITY_EXACT), 0);
    ck_assert_uint_eq(found.tokens, count);

    memset(kv, 0, bytes);
    struct larder_get_result result;
    if (in_steps) {
        struct larder_get_op *op;
        uint64_t expected;
        err = larder_get_begin(model, &op, &expected, &prompt, &layout, NULL);
        ck_assert_msg(err == 0, "%s", larder_last_error());
        ck_assert_uint_eq(expected, count);
        ck_assert_msg(larder_get_wait_layer(op, 0) == 0, "%s", larder_last_error());
        ck_assert(memcmp(kv, copy, bytes / 2) == 0);
        ck_assert_msg(larder_get_wait_layer(op, 1) == 0, "%s", larder_last_error());
        ck_assert_int_eq(larder_get_end(op, &result), 0);
    } else {
        err = larder_get(model, &result, &prompt, &layout, NULL);
        ck_assert_msg(err == 0, "%s", larder_last_error());
    }
    ck_assert_msg(result.tokens == count, "%lu of %u tokens: %s", (unsigned long)result.tokens,
                  count, larder_strerror(result.stop_error));
    ck_assert(memcmp(kv, copy, bytes) == 0);
    larder_model_close(model);
    larder_close(larder);
    fixture_stop(&fixture);
    free(copy);
    free(kv);
    free(many);
}

/* More blocks than one request may name. */
START_TEST(test_many_blocks)
{
    check_large(20005, 4, NULL, _i == 1);
}
END_TEST

/* More than the host tier holds: window after window. */
START_TEST(test_small_host)
{
    check_large(3000, 64, "host_bytes = 1M\nslab_bytes = 1M\n", _i == 1);
}
END_TEST

/* --- what went wrong meanwhile --------------------------------------------------------------- */

START_TEST(test_tokens_stored)
{
    open_scene(ENGINE_PLAIN, LARDER_BF16, 1, NULL);
    /* Not true (any more): the put notices and stores all. */
    const struct larder_put_options wrong = {.tokens_stored = 2 * BLOCK};
    ck_assert_uint_eq(put_with(ENGINE_TOKENS, &wrong).tokens_new, ENGINE_TOKENS);
    ck_assert_uint_eq(get(ENGINE_TOKENS), ENGINE_TOKENS);
    const struct larder_put_options right = {.tokens_stored = ENGINE_TOKENS};
    ck_assert_uint_eq(put_with(ENGINE_TOKENS, &right).tokens_new, 0);
    const struct larder_prompt prompt = prompt_of(BLOCK);
    struct larder_put_result none;
    ck_assert_int_eq(larder_put(model, &none, &prompt, &engine.layout, &right), -EINVAL);
    close_scene();
}
END_TEST

/* Flips a byte in the middle of the record that is `index`th in the first segment. */
static void flip_byte(int index)
{
    char path[160];
    snprintf(path, sizeof(path), "%s/store/segments/00000001.seg", fixture.directory);
    FILE *file = fopen(path, "r+b");
    ck_assert_ptr_nonnull(file);
    struct larder_record record;
    long at = 0;
    for (; fseek(file, at, SEEK_SET) == 0 && fread(&record, sizeof(record), 1, file) == 1;
         at += LARDER_PAGE_BYTES)
        if (record.magic == LARDER_RECORD_MAGIC && record.type == LARDER_RECORD_ENTRY &&
            index-- == 0)
            break;
    ck_assert_int_eq(index, -1);
    at += (long)record.record_bytes / 2;
    ck_assert_int_eq(fseek(file, at, SEEK_SET), 0);
    int byte = fgetc(file);
    ck_assert_int_eq(fseek(file, at, SEEK_SET), 0);
    ck_assert_int_ne(fputc(byte ^ 1, file), EOF);
    fclose(file);
}

START_TEST(test_corrupt)
{
    open_scene(ENGINE_PAGED, LARDER_BF16, 1, NULL);
    const struct larder_put_options durable = {.wait = LARDER_DURABLE};
    put_with(ENGINE_TOKENS, &durable);
    /* Not killed: a start would find it then, in the segment's tail. */
    ck_assert_int_eq(fixture_terminate(&fixture), 0);
    flip_byte(2);
    fixture_restart(&fixture);
    struct larder_get_result result = get_up_to(ENGINE_TOKENS, 0);
    ck_assert_uint_eq(result.tokens, 2 * BLOCK);
    ck_assert_int_eq(result.stop_status, LARDER_BLOCK_CORRUPT);
    ck_assert_int_eq(result.stop_error, LARDER_ECORRUPT);
    /* Gone, counted, and stored anew. */
    ck_assert_uint_eq(get(ENGINE_TOKENS), 2 * BLOCK);
    struct larder_stat stat;
    ck_assert_int_eq(larder_get_stat(larder, &stat), 0);
    ck_assert_uint_eq(stat.corrupt, 1);
    put_with(ENGINE_TOKENS, &durable);
    ck_assert_uint_eq(get(ENGINE_TOKENS), ENGINE_TOKENS);
    close_scene();
}
END_TEST

/* --- jobs ------------------------------------------------------------------------------------ */

START_TEST(test_jobs)
{
    open_scene(ENGINE_PLAIN, LARDER_BF16, 1, NULL);
    const struct larder_prompt prompt = prompt_of(ENGINE_TOKENS);
    const struct larder_put_options durable = {.wait = LARDER_DURABLE};
    struct larder_put_result stored;
    struct larder_get_result result;
    struct larder_job *put_job;
    struct larder_job *get_job;
    struct engine other;
    engine_open(&other, ENGINE_PAGED, LARDER_BF16);
    engine_prefill(&engine, tokens, ENGINE_TOKENS);
    ck_assert_int_eq(larder_put_submit(model, &put_job, &stored, &prompt, &engine.layout, &durable),
                     0);
    ck_assert_int_eq(larder_get_submit(model, &get_job, &result, &prompt, &other.layout, NULL), 0);
    struct pollfd poll_get = {.fd = larder_job_fd(get_job), .events = POLLIN};
    ck_assert_int_eq(poll(&poll_get, 1, TIMEOUT_MS), 1);
    ck_assert_int_eq(larder_job_wait(get_job, 0), 0);
    ck_assert_int_eq(larder_job_wait(put_job, 0), 0); /* first in, first out */
    ck_assert_int_eq(larder_job_end(put_job), 0);
    ck_assert_int_eq(larder_job_end(get_job), 0);
    ck_assert_uint_eq(stored.tokens, ENGINE_TOKENS);
    ck_assert_uint_eq(result.tokens, ENGINE_TOKENS);
    ck_assert(engine_holds(&other, tokens, 0, ENGINE_TOKENS, ENGINE_LAYERS));

    /* A job's failure is told by whoever ends it. */
    struct larder_layout bad = engine.layout;
    bad.base = NULL;
    ck_assert_int_eq(larder_get_submit(model, &get_job, &result, &prompt, &bad, NULL), 0);
    ck_assert_int_eq(larder_job_end(get_job), -EINVAL);
    ck_assert_ptr_nonnull(strstr(larder_last_error(), "base"));

    /* Of many, cancelled at once, each ends: with its result or cancelled. */
    struct larder_job *jobs[20];
    struct larder_get_result results[20];
    for (int i = 0; i < 20; i++)
        ck_assert_int_eq(
            larder_get_submit(model, &jobs[i], &results[i], &prompt, &other.layout, NULL), 0);
    for (int i = 0; i < 20; i++)
        larder_job_cancel(jobs[i]);
    int cancelled = 0;
    for (int i = 0; i < 20; i++) {
        int err = larder_job_end(jobs[i]);
        ck_assert_msg(err == 0 || err == -ECANCELED, "%d", err);
        ck_assert_uint_eq(results[i].tokens, err == 0 ? ENGINE_TOKENS : results[i].tokens);
        cancelled += err == -ECANCELED;
    }
    ck_assert_int_gt(cancelled, 0);

    /* A connection may be closed under its jobs. */
    ck_assert_int_eq(larder_get_submit(model, &get_job, &result, &prompt, &other.layout, NULL), 0);
    larder_close(larder);
    int err = larder_job_end(get_job);
    ck_assert_msg(err == 0 || err == -ECANCELED, "%d", err);
    larder_model_close(model);
    engine_close(&other);
    fixture_stop(&fixture);
    engine_close(&engine);
}
END_TEST

/* --- a daemon that dies ---------------------------------------------------------------------- */

struct killer {
    useconds_t after_us;
};

static void *killer_main(void *argument)
{
    const struct killer *killer = argument;
    usleep(killer->after_us);
    kill(fixture.pid, SIGKILL);
    return NULL;
}

/* SIGKILL at some moment of a loop of puts and gets: nothing hangs, what is said is true, and the
 * same handles work again after a restart. */
START_TEST(test_kill)
{
    open_scene(ENGINE_PAGED, LARDER_BF16, 2, NULL);
    const struct larder_prompt prompt = prompt_of(ENGINE_TOKENS);
    for (int round = 0; round < 6; round++) {
        struct killer killer = {.after_us = (useconds_t)(500 + 3000 * round)};
        pthread_t thread;
        ck_assert_int_eq(pthread_create(&thread, NULL, killer_main, &killer), 0);
        const double start = now_ms();
        int err = 0;
        for (uint32_t i = 0; err == 0 && now_ms() - start < 10000; i++) {
            struct larder_get_result result;
            struct larder_put_result stored;
            const struct larder_put_options options = {.wait =
                                                           i % 2 ? LARDER_DURABLE : LARDER_CACHED};
            tokens[0] = i % 256;
            engine_prefill(&engine, tokens, ENGINE_TOKENS);
            err = larder_put(model, &stored, &prompt, &engine.layout, &options);
            if (err == 0)
                err = larder_get(model, &result, &prompt, &engine.layout, NULL);
            if (err == 0)
                ck_assert(engine_holds(&engine, tokens, 0, result.tokens, ENGINE_LAYERS));
        }
        pthread_join(thread, NULL);
        ck_assert_msg(err == LARDER_EDOWN, "%d: %s", err, larder_last_error());
        ck_assert_msg(now_ms() - start < 5000, "%.0f ms", now_ms() - start);
        /* Down: at once, again and again. */
        const double down = now_ms();
        struct larder_get_result result;
        for (int i = 0; i < 100; i++)
            ck_assert_int_eq(larder_get(model, &result, &prompt, &engine.layout, NULL),
                             LARDER_EDOWN);
        ck_assert_msg(now_ms() - down < 2000, "%.0f ms", now_ms() - down);
        fixture_kill(&fixture);
        fixture_restart(&fixture);
        usleep(50000); /* more than the client waits before it tries again */
        put(ENGINE_TOKENS);
        ck_assert_uint_eq(get(ENGINE_TOKENS), ENGINE_TOKENS);
    }
    close_scene();
}
END_TEST

/* An idle connection does not even notice that the daemon was another one meanwhile. */
START_TEST(test_restart)
{
    open_scene(ENGINE_PLAIN, LARDER_BF16, 1, NULL);
    const struct larder_put_options durable = {.wait = LARDER_DURABLE};
    put_with(ENGINE_TOKENS, &durable);
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(fixture_terminate(&fixture), 0);
        fixture_restart(&fixture);
        ck_assert_uint_eq(get(ENGINE_TOKENS), ENGINE_TOKENS);
    }
    /* Stopped, not dead: calls end in time. */
    struct larder *hasty;
    struct larder_model *hasty_model;
    const struct larder_options options = {.socket = fixture.socket, .timeout_ms = 200};
    ck_assert_int_eq(larder_connect(&hasty, &options), 0);
    ck_assert_int_eq(larder_model_open(hasty, &hasty_model, &engine.desc), 0);
    kill(fixture.pid, SIGSTOP);
    const struct larder_prompt prompt = prompt_of(ENGINE_TOKENS);
    struct larder_lookup_result found;
    const double start = now_ms();
    ck_assert_int_eq(larder_lookup(hasty_model, &found, &prompt, LARDER_QUALITY_EXACT), -ETIMEDOUT);
    ck_assert_int_eq(larder_lookup(hasty_model, &found, &prompt, LARDER_QUALITY_EXACT),
                     LARDER_EDOWN);
    ck_assert_msg(now_ms() - start < 1000, "%.0f ms", now_ms() - start);
    kill(fixture.pid, SIGCONT);
    int err;
    do
        err = larder_lookup(hasty_model, &found, &prompt, LARDER_QUALITY_EXACT);
    while (err < 0 && now_ms() - start < 10000);
    ck_assert_int_eq(err, 0);
    ck_assert_uint_eq(found.tokens, ENGINE_TOKENS);
    larder_model_close(hasty_model);
    larder_close(hasty);
    close_scene();
}
END_TEST

/* --- threads and processes ------------------------------------------------------------------- */

static void *thread_main(void *argument)
{
    const uint32_t number = *(const uint32_t *)argument;
    struct engine own;
    engine_open(&own, number % engine_layouts, LARDER_BF16);
    uint32_t own_tokens[ENGINE_TOKENS];
    memcpy(own_tokens, tokens, sizeof(own_tokens));
    own_tokens[3 * BLOCK] = number;
    const struct larder_prompt prompt = {.tokens = own_tokens, .token_count = ENGINE_TOKENS};
    for (int round = 0; round < 10; round++) {
        struct larder_put_result stored;
        struct larder_get_result result;
        struct larder_lookup_result found;
        engine_prefill(&own, own_tokens, ENGINE_TOKENS);
        int err = larder_put(model, &stored, &prompt, &own.layout, NULL);
        ck_assert_msg(err == 0, "%s", larder_last_error());
        memset(own.memory, 0, own.bytes);
        err = larder_get(model, &result, &prompt, &own.layout, NULL);
        ck_assert_msg(err == 0, "%s", larder_last_error());
        ck_assert_uint_eq(result.tokens, ENGINE_TOKENS);
        ck_assert(engine_holds(&own, own_tokens, 0, ENGINE_TOKENS, ENGINE_LAYERS));
        err = larder_lookup(model, &found, &prompt, LARDER_QUALITY_EXACT);
        ck_assert_msg(err == 0, "%s", larder_last_error());
        ck_assert_uint_eq(found.tokens, ENGINE_TOKENS);
    }
    engine_close(&own);
    return NULL;
}

START_TEST(test_threads)
{
    open_scene(ENGINE_PLAIN, LARDER_BF16, 2, NULL);
    pthread_t threads[6];
    uint32_t numbers[6];
    for (uint32_t i = 0; i < 6; i++) {
        numbers[i] = i;
        ck_assert_int_eq(pthread_create(&threads[i], NULL, thread_main, &numbers[i]), 0);
    }
    for (uint32_t i = 0; i < 6; i++)
        pthread_join(threads[i], NULL);
    close_scene();
}
END_TEST

START_TEST(test_fork)
{
    open_scene(ENGINE_PLAIN, LARDER_BF16, 1, NULL);
    put(ENGINE_TOKENS);
    pid_t child = fork();
    if (child == 0) {
        const struct larder_prompt prompt = prompt_of(ENGINE_TOKENS);
        struct larder_get_result result;
        int err = larder_get(model, &result, &prompt, &engine.layout, NULL);
        int code = err != LARDER_EUNSUPPORTED || !strstr(larder_last_error(), "fork");
        larder_close(larder);
        /* Its own connection works. */
        const struct larder_options options = {.socket = fixture.socket};
        struct larder *own;
        struct larder_model *own_model;
        code |= larder_connect(&own, &options) < 0;
        code |= larder_model_open(own, &own_model, &engine.desc) < 0;
        code |= larder_get(own_model, &result, &prompt, &engine.layout, NULL);
        code |= result.tokens != ENGINE_TOKENS;
        larder_model_close(own_model);
        larder_close(own);
        _exit(code);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
    ck_assert_uint_eq(get(ENGINE_TOKENS), ENGINE_TOKENS);
    close_scene();
}
END_TEST

static int mapped_slabs(void)
{
    FILE *file = fopen("/proc/self/maps", "r");
    ck_assert_ptr_nonnull(file);
    char line[512];
    int count = 0;
    while (fgets(line, sizeof(line), file))
        count += strstr(line, "larder-slab") != NULL;
    fclose(file);
    return count;
}

/* As another connection of the tenant is told: it has nothing mapped. */
static uint64_t retired_bytes(void)
{
    struct larder *other = connect_to(&fixture, 1);
    struct larder_stat stat;
    ck_assert_int_eq(larder_get_stat(other, &stat), 0);
    larder_close(other);
    return stat.bytes_slabs_retired;
}

/* A slab that another tenant took the place of is unmapped: until then its memory is not free, and
 * counts. */
START_TEST(test_retired_slab)
{
    open_scene(ENGINE_PLAIN, LARDER_BF16, 1,
               "host_bytes = 1M\nslab_bytes = 1M\n"
               "tenant blue = socket DIR/blue.sock\n");
    const struct larder_put_options durable = {.wait = LARDER_DURABLE};
    put_with(ENGINE_TOKENS, &durable);
    ck_assert_uint_eq(get(ENGINE_TOKENS), ENGINE_TOKENS);
    ck_assert_int_eq(mapped_slabs(), 1);

    char path[128];
    snprintf(path, sizeof(path), "%s/blue.sock", fixture.directory);
    const struct larder_options options = {.socket = path, .timeout_ms = TIMEOUT_MS, .threads = 1};
    struct larder *own = larder;
    struct larder_model *own_model = model;
    ck_assert_int_eq(larder_connect(&larder, &options), 0);
    ck_assert_int_eq(larder_model_open(larder, &model, &engine.desc), 0);
    put_with(ENGINE_TOKENS, &durable);
    ck_assert_uint_eq(get(ENGINE_TOKENS), ENGINE_TOKENS);
    larder_model_close(model);
    larder_close(larder);
    larder = own;
    model = own_model;

    ck_assert_int_eq(mapped_slabs(), 1);
    ck_assert_uint_eq(retired_bytes(), 1 << 20);
    struct larder_lookup_result match;
    const struct larder_prompt prompt = prompt_of(ENGINE_TOKENS);
    for (int i = 0; i < 2; i++) {
        poll(NULL, 0, 150);
        ck_assert_int_eq(larder_lookup(model, &match, &prompt, LARDER_QUALITY_EXACT), 0);
    }
    ck_assert_int_eq(mapped_slabs(), 0);
    for (int i = 0; i < 3000 && retired_bytes() > 0; i++)
        usleep(10000);
    ck_assert_uint_eq(retired_bytes(), 0);
    ck_assert_uint_eq(get(ENGINE_TOKENS), ENGINE_TOKENS);
    close_scene();
}
END_TEST

START_TEST(test_nobody_there)
{
    struct larder *none;
    const struct larder_options options = {.socket = "/nonexistent/larder.sock"};
    const double start = now_ms();
    ck_assert_int_eq(larder_connect(&none, &options), LARDER_EDOWN);
    ck_assert_ptr_null(none);
    ck_assert_ptr_nonnull(strstr(larder_last_error(), "/nonexistent/larder.sock"));
    ck_assert(now_ms() - start < 1000);
    char path[300];
    memset(path, 'x', sizeof(path));
    path[sizeof(path) - 1] = '\0';
    const struct larder_options longer = {.socket = path};
    ck_assert_int_eq(larder_connect(&none, &longer), -ENAMETOOLONG);
    larder_close(NULL);
    larder_model_close(NULL);
}
END_TEST

/* A case each, so that CK_RUN_CASE=kill runs one. */
static void add_cases(Suite *suite)
{
    const struct {
        const char *name;
        const TTest *test;
        int rounds;
    } cases[] = {
        {"layouts", test_layouts, 2},
        {"other_layout", test_other_layout, 1},
        {"durable", test_durable, 1},
        {"prefixes", test_prefixes, 1},
        {"short_prompts", test_short_prompts, 1},
        {"extension_drops_tail", test_extension_drops_tail, 1},
        {"limits_of_a_get", test_limits_of_a_get, 1},
        {"variants", test_variants, 1},
        {"identity", test_identity, 1},
        {"quality", test_quality, 1},
        {"lossy", test_lossy, 1},
        {"short_last_block", test_short_last_block, 1},
        {"remove", test_remove, 1},
        {"marks", test_marks, 1},
        {"layers", test_layers, 1},
        {"stale", test_stale, 1},
        {"many_blocks", test_many_blocks, 2},
        {"small_host", test_small_host, 2},
        {"tokens_stored", test_tokens_stored, 1},
        {"corrupt", test_corrupt, 1},
        {"jobs", test_jobs, 1},
        {"kill", test_kill, 1},
        {"restart", test_restart, 1},
        {"threads", test_threads, 1},
        {"fork", test_fork, 1},
        {"retired_slab", test_retired_slab, 1},
        {"nobody_there", test_nobody_there, 1},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        TCase *tcase = tcase_create(cases[i].name);
        tcase_set_timeout(tcase, 120);
        tcase_add_loop_test(tcase, cases[i].test, 0, cases[i].rounds);
        suite_add_tcase(suite, tcase);
    }
}

int main(void)
{
    Suite *suite = suite_create("client");
    add_cases(suite);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
