/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/client/blend_world.h"

#include <check.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "client/cache_layout.h"

#define MODEL "tests/models/tiny"

static void sleep_ms(int ms)
{
    struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
    nanosleep(&time, NULL);
}

static void read_text(struct world *world)
{
    FILE *file = fopen(MODEL "/heldout.txt", "re");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fread(world->text, 1, sizeof(world->text), file), sizeof(world->text));
    fclose(file);
}

void world_wait_ready(struct world *world)
{
    const uint32_t token = 'a';
    const struct larder_prompt piece = {.tokens = &token, .token_count = 1};
    const struct larder_blend_request request = {
        .pieces = &piece, .piece_count = 1, .suffix = piece};
    for (int waited = 0; waited < 60000; waited += 10) {
        struct larder_blend_plan plan;
        int err = larder_blend_plan(world->model, &plan, &request);
        const bool ready = err == 0 && plan.ready;
        larder_blend_plan_free(&plan);
        if (ready)
            return;
        ck_assert_msg(err == 0 || err == -EBUSY, "%s", larder_last_error());
        sleep_ms(10);
    }
    ck_abort_msg("the worker is not ready after 60 s");
}

void world_open(struct world *world, const char *config)
{
    char folder[PATH_MAX], text[PATH_MAX + 512];
    memset(world, 0, sizeof(*world));
    read_text(world);
    ck_assert_ptr_nonnull(realpath(MODEL, folder));
    snprintf(text, sizeof(text), "model tiny = %s method=link k=5\nworker_threads = 1\n%s", folder,
             config);
    fixture_start(&world->fixture, text);
    ck_assert_int_eq(
        larder_device_open(&world->device, "cpu", &(struct larder_device_options){.threads = 1}),
        0);
    ck_assert_int_eq(larder_llama_open(&world->llama, world->device, MODEL), 0);
    ck_assert_int_eq(larder_llama_describe(world->llama, &world->desc, 0), 0);
    const struct larder_options options = {.socket = world->fixture.socket, .timeout_ms = 60000};
    ck_assert_int_eq(larder_connect(&world->larder, &options), 0);
    ck_assert_int_eq(larder_model_open(world->larder, &world->model, &world->desc), 0);
    world_wait_ready(world);
}

void world_close(struct world *world)
{
    larder_model_close(world->model);
    larder_close(world->larder);
    larder_llama_close(world->llama);
    larder_device_close(world->device);
    fixture_stop(&world->fixture);
}

pid_t world_worker(const struct world *world)
{
    char path[64];
    int pid = 0;
    snprintf(path, sizeof(path), "/proc/%d/task/%d/children", world->fixture.pid,
             world->fixture.pid);
    FILE *file = fopen(path, "re");
    if (file && fscanf(file, "%d", &pid) != 1)
        pid = 0;
    if (file)
        fclose(file);
    return pid;
}

uint32_t world_tokens(const struct world *world, uint32_t *out, uint32_t first, uint32_t count,
                      bool start)
{
    uint32_t at = 0;
    if (start)
        out[at++] = WORLD_BOS;
    for (uint32_t i = 0; i < count; i++)
        out[at++] = (unsigned char)world->text[first + i];
    return at;
}

struct larder_kv_cache *world_prefill(struct world *world, const uint32_t *tokens, uint32_t count,
                                      float *logits)
{
    struct larder_kv_cache *cache;
    ck_assert_int_eq(larder_llama_cache_open(world->llama, &cache, count, 0), 0);
    ck_assert_int_eq(larder_llama_forward(world->llama, cache, logits,
                                          logits ? LARDER_LOGITS_LAST : LARDER_LOGITS_NONE, tokens,
                                          count),
                     0);
    return cache;
}

void world_store(struct world *world, const uint32_t *tokens, uint32_t count)
{
    struct larder_kv_cache *cache = world_prefill(world, tokens, count, NULL);
    const struct larder_layout layout = larder_cache_layout(cache);
    const struct larder_prompt prompt = {.tokens = tokens, .token_count = count};
    struct larder_put_result stored;
    int err = larder_put(world->model, &stored, &prompt, &layout, NULL);
    ck_assert_msg(err == 0, "%s", larder_last_error());
    larder_kv_cache_close(cache);
}

void world_prompt(const struct world *world, struct world_prompt *out, const uint32_t *firsts,
                  const uint32_t *counts, uint32_t suffix)
{
    memset(out, 0, sizeof(*out));
    for (uint32_t i = 0; i < WORLD_PIECES; i++) {
        out->firsts[i] = out->count;
        out->count += world_tokens(world, out->tokens + out->count, firsts[i], counts[i], i == 0);
        out->pieces[i].tokens = out->tokens + out->firsts[i];
        out->pieces[i].token_count = out->count - out->firsts[i];
    }
    out->firsts[WORLD_PIECES] = out->count;
    out->count += world_tokens(world, out->tokens + out->count, 8000, suffix, false);
    ck_assert_uint_le(out->count, WORLD_TOKENS_MAX);
    out->request = (struct larder_blend_request){
        .pieces = out->pieces,
        .piece_count = WORLD_PIECES,
        .suffix = {.tokens = out->tokens + out->firsts[WORLD_PIECES], .token_count = suffix},
    };
}

void world_store_pieces(struct world *world, const struct world_prompt *prompt)
{
    uint32_t chunk[WORLD_TOKENS_MAX] = {WORLD_BOS};
    for (uint32_t i = 0; i < WORLD_PIECES; i++) {
        const struct larder_prompt *piece = &prompt->pieces[i];
        const uint32_t lead = piece->tokens[0] != WORLD_BOS;
        memcpy(chunk + lead, piece->tokens, piece->token_count * sizeof(*chunk));
        world_store(world, chunk, (uint32_t)piece->token_count + lead);
    }
}

bool world_same_rows(const struct larder_kv_cache *a, const struct larder_kv_cache *b,
                     uint32_t kinds, uint32_t first, uint32_t end)
{
    for (uint32_t layer = 0; layer < a->layers; layer++) {
        for (uint32_t kv = 0; kv < 2; kv++) {
            const uint64_t bytes = kv == LARDER_K ? a->k_token_bytes : a->v_token_bytes;
            if ((kinds & 1u << kv) &&
                memcmp((char *)larder_kv_cache_rows(a, layer, kv) + first * bytes,
                       (char *)larder_kv_cache_rows(b, layer, kv) + first * bytes,
                       (end - first) * bytes) != 0)
                return false;
        }
    }
    return true;
}
