/* SPDX-License-Identifier: Apache-2.0 */
/* larder_lookup, larder_remove, and the daemon's word about itself. */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "client/chain.h"
#include "client/get.h"

/* Until this connection has loaded something: what a modest SSD and one core give. */
#define NS_PER_BYTE_UNKNOWN 1.0

static void add_match(struct larder_lookup_result *out, const struct client_match *match,
                      uint64_t tokens)
{
    out->tokens += tokens;
    out->blocks += match->matched;
    out->bytes += match->bytes;
    out->bytes_host += match->bytes_host;
    if (match->matched > 0 && match->quality > out->quality)
        out->quality = match->quality;
    if (match->matched > 0 && match->kl > out->kl)
        out->kl = match->kl;
}

static uint64_t estimate_us(struct larder *larder, uint64_t bytes, uint64_t bytes_host)
{
    pthread_mutex_lock(&larder->lock);
    double host = larder->host_ns_per_byte;
    double ssd = larder->ssd_ns_per_byte;
    pthread_mutex_unlock(&larder->lock);
    if (host == 0)
        host = NS_PER_BYTE_UNKNOWN;
    if (ssd == 0)
        ssd = host + NS_PER_BYTE_UNKNOWN;
    return (uint64_t)((host * (double)bytes_host + ssd * (double)(bytes - bytes_host)) / 1000);
}

static int lookup_chain(struct client_chain *chain, uint32_t handle,
                        struct larder_lookup_result *out, struct client_accept accept)
{
    struct client_match match = {0};
    uint32_t at = 0;
    while (at < chain->block_count) {
        uint32_t count = chain->block_count - at;
        if (count > LARDER_REQUEST_KEYS_MAX)
            count = LARDER_REQUEST_KEYS_MAX;
        LARDER_TRY(client_chain_lookup(chain, &match, handle, at, count, accept));
        at += match.matched;
        add_match(out, &match, client_chain_tokens(chain, at) - out->tokens);
        if (match.matched < count)
            break;
    }
    if (at == chain->block_count)
        return 0;
    struct larder_key key;
    uint32_t token_count;
    LARDER_TRY(client_chain_tail(chain, &match, at, &key, &token_count));
    if (token_count == 0)
        return 0;
    LARDER_TRY(client_lookup_keys(chain->link, &match, handle, client_chain_parent(chain, at), &key,
                                  1, accept));
    if (match.matched == 1)
        add_match(out, &match, token_count);
    return 0;
}

int larder_lookup_for(struct larder_model *model, struct larder_lookup_result *out,
                      const struct larder_prompt *prompt, const struct larder_get_options *options)
{
    memset(out, 0, sizeof(*out));
    LARDER_TRY(get_check_options(model, options));
    const struct client_accept accept = client_accept_of(options);
    struct larder_link *link;
    LARDER_TRY(client_link_acquire(model->larder, &link));
    uint32_t handle;
    int err = client_model_handle(model, link, &handle);
    if (err == 0) {
        struct client_chain chain;
        err = client_chain_open(&chain, model, link, prompt);
        if (err == 0)
            err = lookup_chain(&chain, handle, out, accept);
        client_chain_close(&chain);
    }
    client_link_release(link);
    out->estimate_us = estimate_us(model->larder, out->bytes, out->bytes_host);
    return err;
}

int larder_lookup(struct larder_model *model, struct larder_lookup_result *out,
                  const struct larder_prompt *prompt, enum larder_quality worst)
{
    const struct larder_get_options options = {.worst = worst};
    return larder_lookup_for(model, out, prompt, &options);
}

/* --- remove ---------------------------------------------------------------------------------- */

static int remove_key(struct larder_link *link, const struct larder_key *key, uint64_t *removed)
{
    struct wire_remove body;
    memcpy(body.key, key->bytes, sizeof(body.key));
    struct wire_remove_ok answer;
    struct client_call call = {
        .type = WIRE_REMOVE,
        .answer_type = WIRE_REMOVE_OK,
        .answer = &answer,
        .answer_capacity = sizeof(answer),
    };
    const struct client_part part = {&body, sizeof(body)};
    LARDER_TRY(client_call(link, &call, NULL, &part, 1));
    if (call.answer_bytes != sizeof(answer))
        return client_malformed(link, "REMOVE");
    *removed = answer.removed;
    return 0;
}

/* The chain of the first `tokens` tokens ends with the block to remove. */
static int remove_prefix(struct larder_model *model, struct larder_link *link,
                         const struct larder_prompt *prompt, uint64_t tokens, uint64_t *removed)
{
    struct client_chain chain;
    int err = client_chain_open_prefix(&chain, model, link, prompt, tokens);
    if (err == 0)
        err = client_chain_hash(&chain, chain.block_count);
    if (err == 0)
        err = remove_key(link, &chain.keys[chain.block_count - 1], removed);
    client_chain_close(&chain);
    return err;
}

int larder_remove(struct larder_model *model, const struct larder_prompt *prompt, uint64_t tokens,
                  uint64_t *removed)
{
    *removed = 0;
    struct larder_link *link;
    LARDER_TRY(client_link_acquire(model->larder, &link));
    int err = remove_prefix(model, link, prompt, tokens, removed);
    client_link_release(link);
    return err;
}

/* --- about the daemon ------------------------------------------------------------------------ */

int larder_get_info(struct larder *larder, struct larder_info *out)
{
    memset(out, 0, sizeof(*out));
    struct larder_link *link;
    LARDER_TRY(client_link_acquire(larder, &link));
    const struct wire_hello_ok *hello = &link->hello;
    out->block_tokens = hello->block_tokens;
    out->protocol_version = hello->version;
    memcpy(out->tenant_id, hello->tenant_id, sizeof(out->tenant_id));
    static_assert(sizeof(out->tenant_name) == sizeof(hello->tenant_name), "the same text");
    memcpy(out->tenant_name, hello->tenant_name, sizeof(out->tenant_name));
    static_assert(sizeof(out->daemon_version) == sizeof(hello->daemon_version), "the same text");
    memcpy(out->daemon_version, hello->daemon_version, sizeof(out->daemon_version));
    client_link_release(link);
    return 0;
}

int larder_get_stat(struct larder *larder, struct larder_stat *out)
{
    memset(out, 0, sizeof(*out));
    static_assert(sizeof(*out) == sizeof(struct wire_stat_ok), "the same fields");
    struct larder_link *link;
    LARDER_TRY(client_link_acquire(larder, &link));
    struct client_call call = {
        .type = WIRE_STAT,
        .answer_type = WIRE_STAT_OK,
        .answer = out,
        .answer_capacity = sizeof(*out),
    };
    int err = client_call(link, &call, NULL, NULL, 0);
    if (err == 0 && call.answer_bytes != sizeof(*out))
        err = client_malformed(link, "STAT");
    client_link_release(link);
    return err;
}

const char *larder_last_error(void)
{
    return larder_error_message();
}

const char *larder_strerror(int code)
{
    return larder_error_text(code);
}

const char *larder_version(void)
{
    return LARDER_VERSION;
}
