/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/golden/chains.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/key.h"
#include "client/larder.h"

#define VOCAB 65536u

static const struct larder_model_desc models[CHAIN_MODELS] = {
    {
        .name = "golden plain",
        .weights = {7},
        .layers = 2,
        .kv_heads = 2,
        .k_dims = 32,
        .v_dims = 32,
        .dtype = LARDER_BF16,
        .vocab = VOCAB,
    },
    {
        .name = "golden rotated",
        .weights = {8, 9},
        .layers = 3,
        .kv_heads = 1,
        .k_dims = 16,
        .v_dims = 16,
        .dtype = LARDER_F16,
        .vocab = VOCAB,
        .rope =
            {
                .kind = LARDER_ROPE_PLAIN,
                .rotary_dims = 16,
                .theta = 10000,
                .factor = 1,
                .attention_factor = 1,
            },
    },
};

uint32_t chain_timeout_ms;

struct session {
    struct larder *larder;
    struct larder_model *model;
    uint32_t tokens[CHAIN_TOKENS_MAX];
    struct larder_prompt prompt;
    struct larder_layout layout;
    uint16_t *kv; /* the layout's memory */
    size_t kv_bytes;
};

static uint64_t mix(uint64_t z)
{
    z += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* Numbers near 1 with a few random bits, so that `exact` has something to save. */
static void fill_kv(const struct chain *chain, uint32_t tokens, uint16_t *kv)
{
    const struct larder_model_desc *desc = &models[chain->model];
    uint32_t row = desc->kv_heads * desc->k_dims;
    uint64_t start = mix(chain->number | (uint64_t)chain->tenant << 32);
    for (uint32_t plane = 0; plane < desc->layers * 2; plane++)
        for (uint32_t token = 0; token < tokens; token++)
            for (uint32_t i = 0; i < row; i++)
                *kv++ = (uint16_t)(0x3f80 |
                                   (mix(start + plane * 1000003ull + token * row + i) & 0x8003));
}

static void session_end(struct session *session)
{
    larder_model_close(session->model);
    larder_close(session->larder);
    free(session->kv);
}

static int session_begin(struct session *session, const struct fixture *fixture,
                         const struct chain *chain, uint32_t tokens)
{
    const struct larder_model_desc *desc = &models[chain->model];
    char socket[96];
    *session = (struct session){0};
    snprintf(socket, sizeof(socket), "%s/other.sock", fixture->directory);
    struct larder_options options = {.socket = chain->tenant ? socket : fixture->socket,
                                     .timeout_ms = chain_timeout_ms};
    session->kv_bytes =
        sizeof(uint16_t) * desc->layers * 2 * desc->kv_heads * desc->k_dims * tokens;
    session->kv = calloc(1, session->kv_bytes);
    int err = session->kv ? larder_connect(&session->larder, &options) : -ENOMEM;
    if (err == 0)
        err = larder_model_open(session->larder, &session->model, desc);
    if (err == 0)
        err = larder_layout_plain(&session->layout, desc, session->kv, tokens);
    for (uint32_t i = 0; i < tokens; i++)
        session->tokens[i] = (uint32_t)mix(chain->number * 1000ull + i) % VOCAB;
    session->prompt = (struct larder_prompt){.tokens = session->tokens, .token_count = tokens};
    if (chain->number % 3 == 0) {
        session->prompt.extra = "adapter";
        session->prompt.extra_bytes = strlen("adapter");
    }
    if (err < 0)
        session_end(session);
    return err;
}

static int put_with(const struct fixture *fixture, const struct chain *chain, uint32_t tokens,
                    const struct larder_put_options *options)
{
    struct session session;
    int err = session_begin(&session, fixture, chain, tokens);
    if (err < 0)
        return err;
    fill_kv(chain, tokens, session.kv);
    struct larder_put_result result = {0};
    err = larder_put(session.model, &result, &session.prompt, &session.layout, options);
    session_end(&session);
    return err < 0 ? err : result.tokens == tokens ? 0 : LARDER_ENOTFOUND;
}

int chain_put(const struct fixture *fixture, const struct chain *chain, uint32_t tokens)
{
    const struct larder_put_options options = {.wait = LARDER_DURABLE,
                                               .recipe = chain->number % 2 ? "exact" : "raw"};
    return put_with(fixture, chain, tokens, &options);
}

int chain_put_lossy(const struct fixture *fixture, const struct chain *chain, uint32_t tokens)
{
    const struct larder_put_options options = {
        .wait = LARDER_DURABLE, .recipe = "kivi4", .flags = LARDER_PUT_BESIDE};
    return put_with(fixture, chain, tokens, &options);
}

int chain_pin(const struct fixture *fixture, const struct chain *chain, uint32_t tokens)
{
    struct session session;
    int err = session_begin(&session, fixture, chain, tokens);
    if (err < 0)
        return err;
    const struct larder_mark mark = {.fields = LARDER_MARK_PIN};
    err = larder_mark(session.model, &session.prompt, tokens, &mark);
    session_end(&session);
    return err;
}

int chain_remove(const struct fixture *fixture, const struct chain *chain, uint32_t tokens)
{
    struct session session;
    int err = session_begin(&session, fixture, chain, tokens);
    if (err < 0)
        return err;
    uint64_t removed;
    err = larder_remove(session.model, &session.prompt, tokens, &removed);
    session_end(&session);
    return err;
}

static int digest_of(char out[CHAIN_DIGEST_TEXT], const void *bytes, size_t count)
{
    struct larder_key digest;
    int err = larder_sha256(&digest, bytes, count);
    for (size_t i = 0; err == 0 && i < sizeof(digest.bytes); i++)
        snprintf(out + 2 * i, 3, "%02x", digest.bytes[i]);
    return err;
}

int64_t chain_get(const struct fixture *fixture, const struct chain *chain, uint32_t tokens,
                  char digest[CHAIN_DIGEST_TEXT])
{
    struct session session;
    int err = session_begin(&session, fixture, chain, tokens);
    if (err < 0)
        return err;
    struct larder_get_result result = {0};
    err = larder_get(session.model, &result, &session.prompt, &session.layout, NULL);
    if (err == 0 && result.tokens == tokens) {
        uint16_t *expected = calloc(1, session.kv_bytes);
        fill_kv(chain, tokens, expected);
        err = memcmp(expected, session.kv, session.kv_bytes) == 0
                  ? digest_of(digest, session.kv, session.kv_bytes)
                  : LARDER_ECORRUPT;
        free(expected);
    } else {
        digest[0] = 0;
    }
    session_end(&session);
    return err < 0 ? err : (int64_t)result.tokens;
}
