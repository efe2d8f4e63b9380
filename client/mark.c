/* SPDX-License-Identifier: Apache-2.0 */
/* larder_mark, larder_pin, larder_unpin: what an owner says of a stored block. */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "client/chain.h"
#include "client/operations.h"

int client_mark_key(struct larder_link *link, const struct larder_key *key,
                    const struct larder_mark *mark)
{
    struct wire_mark body = {.mark = *mark};
    memcpy(body.key, key->bytes, sizeof(body.key));
    uint8_t nothing;
    struct client_call call = {
        .type = WIRE_MARK,
        .answer_type = WIRE_MARK_OK,
        .answer = &nothing,
        .answer_capacity = sizeof(nothing),
    };
    const struct client_part part = {&body, sizeof(body)};
    LARDER_TRY(client_call(link, &call, NULL, &part, 1));
    return call.answer_bytes == 0 ? 0 : client_malformed(link, "MARK");
}

static int mark_last(struct larder_model *model, struct larder_link *link,
                     const struct larder_prompt *prompt, uint64_t tokens,
                     const struct larder_mark *mark)
{
    struct client_chain chain;
    int err = client_chain_open_prefix(&chain, model, link, prompt, tokens);
    if (err == 0)
        err = client_chain_hash(&chain, chain.block_count);
    if (err == 0)
        err = client_mark_key(link, &chain.keys[chain.block_count - 1], mark);
    client_chain_close(&chain);
    return err;
}

int larder_mark(struct larder_model *model, const struct larder_prompt *prompt, uint64_t tokens,
                const struct larder_mark *mark)
{
    struct larder_link *link;
    LARDER_TRY(client_link_acquire(model->larder, &link));
    int err = mark_last(model, link, prompt, tokens, mark);
    client_link_release(link);
    return err;
}

int larder_pin(struct larder_model *model, const struct larder_prompt *prompt, uint64_t tokens,
               uint64_t seconds)
{
    const struct larder_mark mark = {.fields = LARDER_MARK_PIN, .pin_s = seconds};
    return larder_mark(model, prompt, tokens, &mark);
}

int larder_unpin(struct larder_model *model, const struct larder_prompt *prompt, uint64_t tokens)
{
    const struct larder_mark mark = {.fields = LARDER_MARK_UNPIN};
    return larder_mark(model, prompt, tokens, &mark);
}

int larder_touch(struct larder_model *model, const struct larder_prompt *prompt, uint64_t tokens,
                 uint64_t seconds)
{
    const struct larder_mark mark = {.fields = LARDER_MARK_TTL, .ttl_s = seconds};
    return larder_mark(model, prompt, tokens, &mark);
}
