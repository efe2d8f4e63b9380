/* SPDX-License-Identifier: Apache-2.0 */
#include "client/chain.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"

/* --- keys ------------------------------------------------------------------------------------ */

static int check_prompt(const struct larder_prompt *prompt, const struct larder_model_desc *desc)
{
    if (prompt->token_count > LARDER_PROMPT_TOKENS_MAX)
        return larder_fail(LARDER_ELIMIT, "prompt: %zu tokens are more than %u",
                           prompt->token_count, LARDER_PROMPT_TOKENS_MAX);
    if (prompt->extra_bytes > LARDER_EXTRA_BYTES_MAX)
        return larder_fail(LARDER_ELIMIT,
                           "prompt: extra of %zu bytes is longer than %u; pass its "
                           "hash",
                           prompt->extra_bytes, LARDER_EXTRA_BYTES_MAX);
    if ((prompt->token_count > 0 && !prompt->tokens) || (prompt->extra_bytes > 0 && !prompt->extra))
        return larder_fail(-EINVAL, "prompt: a count without a pointer");
    uint32_t largest = 0;
    for (size_t i = 0; i < prompt->token_count; i++)
        largest = prompt->tokens[i] > largest ? prompt->tokens[i] : largest;
    if (largest >= desc->vocab)
        return larder_fail(-EINVAL, "prompt: token %u is not below the model's vocabulary of %u",
                           largest, desc->vocab);
    return 0;
}

int client_chain_open(struct client_chain *chain, struct larder_model *model,
                      struct larder_link *link, const struct larder_prompt *prompt)
{
    *chain = (struct client_chain){
        .model = model,
        .link = link,
        .prompt = *prompt,
        .block_tokens = link->hello.block_tokens,
    };
    LARDER_TRY(check_prompt(prompt, &model->desc));
    chain->block_count =
        (uint32_t)((prompt->token_count + chain->block_tokens - 1) / chain->block_tokens);
    if (chain->block_count == 0)
        return 0;
    chain->keys = larder_alloc(chain->block_count * sizeof(*chain->keys));
    if (!chain->keys)
        return larder_fail(-ENOMEM, "no memory for %u keys", chain->block_count);
    int err = client_hasher_take(model, link, &chain->hasher);
    if (err < 0) {
        larder_free(chain->keys);
        chain->keys = NULL;
    }
    return err;
}

int client_chain_open_prefix(struct client_chain *chain, struct larder_model *model,
                             struct larder_link *link, const struct larder_prompt *prompt,
                             uint64_t tokens)
{
    const uint32_t block_tokens = link->hello.block_tokens;
    memset(chain, 0, sizeof(*chain));
    if (tokens == 0 || tokens > prompt->token_count ||
        (tokens % block_tokens != 0 && tokens != prompt->token_count))
        return larder_fail(-EINVAL,
                           "%llu tokens end no block of a prompt of %zu; a multiple of %u, or the "
                           "whole prompt, does",
                           (unsigned long long)tokens, prompt->token_count, block_tokens);
    struct larder_prompt prefix = *prompt;
    prefix.token_count = (size_t)tokens;
    return client_chain_open(chain, model, link, &prefix);
}

void client_chain_close(struct client_chain *chain)
{
    if (chain->hasher)
        client_hasher_give(chain->model, chain->link, chain->hasher);
    larder_free(chain->keys);
    chain->hasher = NULL;
    chain->keys = NULL;
}

const struct larder_key *client_chain_parent(const struct client_chain *chain, uint32_t index)
{
    assert(index <= chain->hashed);
    return index == 0 ? &larder_key_root : &chain->keys[index - 1];
}

int client_chain_hash(struct client_chain *chain, uint32_t count)
{
    assert(count <= chain->block_count);
    const struct larder_prompt *prompt = &chain->prompt;
    for (; chain->hashed < count; chain->hashed++) {
        const uint32_t i = chain->hashed;
        const uint64_t first = client_chain_tokens(chain, i);
        LARDER_TRY(larder_hasher_block(chain->hasher, &chain->keys[i],
                                       client_chain_parent(chain, i), prompt->extra,
                                       prompt->extra_bytes, prompt->tokens + first,
                                       client_chain_tokens(chain, i + 1) - first));
    }
    return 0;
}

/* --- lookup ---------------------------------------------------------------------------------- */

int client_malformed(struct larder_link *link, const char *what)
{
    int err = larder_fail(LARDER_EPROTO, "the daemon's answer to %s is malformed", what);
    client_link_fail(link, err, larder_error_message());
    return err;
}

int client_check_quality(enum larder_quality worst)
{
    if (((unsigned)worst & ~(unsigned)LARDER_QUALITY_SMALLEST) > LARDER_QUALITY_BLENDED)
        return larder_fail(-EINVAL,
                           "quality %d is unknown; known are 0 (exact), 1 (lossy), 2 "
                           "(blended)",
                           (int)worst);
    return 0;
}

int client_check_kl(const char *what, float kl)
{
    if (isfinite(kl) && kl >= 0)
        return 0;
    return larder_fail(-EINVAL, "%s=%g is no KL in nats a token: 0 or more, and finite", what,
                       (double)kl);
}

struct client_accept client_accept_of(const struct larder_get_options *options)
{
    if (!options)
        return (struct client_accept){.worst = LARDER_QUALITY_EXACT};
    return (struct client_accept){.worst = options->worst, .max_kl = options->max_kl};
}

struct wire_keys client_wire_keys(uint32_t handle, const struct larder_key *parent, uint32_t count,
                                  struct client_accept accept)
{
    const unsigned worst = (unsigned)accept.worst;
    const unsigned smallest = worst & LARDER_QUALITY_SMALLEST;
    struct wire_keys body = {
        .model = handle,
        .key_count = count,
        .worst = (uint16_t)(worst - smallest),
        .flags = smallest ? WIRE_KEYS_SMALLEST : 0,
        .max_kl = accept.max_kl,
    };
    memcpy(body.parent, parent->bytes, sizeof(body.parent));
    return body;
}

int client_lookup_keys(struct larder_link *link, struct client_match *out, uint32_t handle,
                       const struct larder_key *parent, const struct larder_key *keys,
                       uint32_t count, struct client_accept accept)
{
    assert(count > 0 && count <= LARDER_REQUEST_KEYS_MAX);
    const struct wire_keys body = client_wire_keys(handle, parent, count, accept);
    const struct client_part parts[] = {{&body, sizeof(body)}, {keys, count * sizeof(*keys)}};
    struct {
        struct wire_lookup_ok head;
        struct wire_tail tails[LARDER_TAILS_MAX];
    } answer;
    struct client_call call = {
        .type = WIRE_LOOKUP,
        .answer_type = WIRE_LOOKUP_OK,
        .answer = &answer,
        .answer_capacity = sizeof(answer),
    };
    LARDER_TRY(client_call(link, &call, NULL, parts, 2));
    const struct wire_lookup_ok *head = &answer.head;
    if (call.answer_bytes < sizeof(*head) || head->tail_count > LARDER_TAILS_MAX ||
        call.answer_bytes != sizeof(*head) + head->tail_count * sizeof(answer.tails[0]) ||
        head->matched > count || head->quality > LARDER_QUALITY_BLENDED || !(head->kl >= 0) ||
        head->bytes_host > head->bytes)
        return client_malformed(link, "LOOKUP");
    out->matched = head->matched;
    out->quality = head->quality;
    out->kl = head->kl;
    out->bytes = head->bytes;
    out->bytes_host = head->bytes_host;
    out->tail_count = head->tail_count;
    memcpy(out->tails, answer.tails, head->tail_count * sizeof(answer.tails[0]));
    return 0;
}

int client_chain_lookup(struct client_chain *chain, struct client_match *out, uint32_t handle,
                        uint32_t first, uint32_t count, struct client_accept accept)
{
    LARDER_TRY(client_chain_hash(chain, first + count));
    return client_lookup_keys(chain->link, out, handle, client_chain_parent(chain, first),
                              chain->keys + first, count, accept);
}

int client_chain_tail(struct client_chain *chain, const struct client_match *match, uint32_t index,
                      struct larder_key *key, uint32_t *token_count)
{
    *token_count = 0;
    const struct larder_prompt *prompt = &chain->prompt;
    const uint64_t first = client_chain_tokens(chain, index);
    for (uint32_t i = 0; i < match->tail_count; i++) {
        const struct wire_tail *tail = &match->tails[i];
        if (tail->token_count <= *token_count || tail->token_count >= chain->block_tokens ||
            tail->token_count > prompt->token_count - first)
            continue;
        struct larder_key own;
        LARDER_TRY(larder_hasher_block(chain->hasher, &own, client_chain_parent(chain, index),
                                       prompt->extra, prompt->extra_bytes, prompt->tokens + first,
                                       tail->token_count));
        if (memcmp(own.bytes, tail->key, sizeof(own.bytes)) == 0) {
            *key = own;
            *token_count = tail->token_count;
        }
    }
    return 0;
}
