/* SPDX-License-Identifier: Apache-2.0 */
/* Asking the daemon to read what a get will want. */
#include "client/get.h"

/* Asks for `count` keys from block `first` on. */
static int prefetch_keys(struct client_chain *chain, uint32_t *coming, uint32_t handle,
                         uint32_t first, uint32_t count, const struct larder_get_options *options,
                         uint64_t until_ns)
{
    struct wire_prefetch_ok answer;
    LARDER_TRY(client_chain_hash(chain, first + count));
    struct wire_keys body = client_wire_keys(handle, client_chain_parent(chain, first), count,
                                             client_accept_of(options));
    body.layer_first = options ? (uint16_t)options->layer_first : 0;
    body.layer_count = options ? (uint16_t)options->layer_count : 0;
    const struct client_part parts[] = {{&body, sizeof(body)},
                                        {chain->keys + first, count * sizeof(*chain->keys)}};
    struct client_call call = {
        .type = WIRE_PREFETCH,
        .answer_type = WIRE_PREFETCH_OK,
        .answer = &answer,
        .answer_capacity = sizeof(answer),
        .until_ns = until_ns,
    };
    LARDER_TRY(client_call(chain->link, &call, NULL, parts, 2));
    if (call.answer_bytes != sizeof(answer) || answer.matched > count ||
        answer.coming > answer.matched)
        return client_malformed(chain->link, "PREFETCH");
    *coming = answer.coming;
    return 0;
}

static int prefetch_chain(struct client_chain *chain, uint64_t *tokens, uint32_t handle,
                          const struct larder_get_options *options)
{
    uint64_t token_end = chain->prompt.token_count;
    if (options && options->tokens_max > 0)
        token_end = larder_min_u64(token_end, options->tokens_max);
    const uint64_t until_ns = options && options->deadline_ms > 0
                                  ? client_now_ns() + options->deadline_ms * 1000000ull
                                  : 0;
    const uint32_t end = (uint32_t)((token_end + chain->block_tokens - 1) / chain->block_tokens);
    for (uint32_t at = 0; at < end;) {
        const uint32_t count =
            end - at < LARDER_REQUEST_KEYS_MAX ? end - at : LARDER_REQUEST_KEYS_MAX;
        uint32_t coming = 0;
        LARDER_TRY(prefetch_keys(chain, &coming, handle, at, count, options, until_ns));
        at += coming;
        *tokens = larder_min_u64(client_chain_tokens(chain, at), token_end);
        if (coming < count)
            break;
    }
    return 0;
}

int larder_prefetch(struct larder_model *model, uint64_t *tokens,
                    const struct larder_prompt *prompt, const struct larder_get_options *options)
{
    *tokens = 0;
    LARDER_TRY(get_check_options(model, options));
    struct larder_link *link;
    LARDER_TRY(client_link_acquire(model->larder, &link));
    uint32_t handle;
    struct client_chain chain;
    int err = client_model_handle(model, link, &handle);
    if (err == 0)
        err = client_chain_open(&chain, model, link, prompt);
    if (err == 0) {
        err = prefetch_chain(&chain, tokens, handle, options);
        client_chain_close(&chain);
    }
    client_link_release(link);
    return err;
}
