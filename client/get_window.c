/* SPDX-License-Identifier: Apache-2.0 */
/* Asking the daemon: leases on the blocks of a prompt, and what its answers name. */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/mem.h"
#include "client/get.h"

/* How long to ask again when the host tier is full of what others hold. */
#define FULL_RETRY_NS (100 * 1000000ull)

struct get_answer {
    struct wire_get_ok head;
    char rest[LARDER_REQUEST_KEYS_MAX * sizeof(struct wire_ref) +
              LARDER_TAILS_MAX * sizeof(struct wire_tail)];
};

static bool is_well_formed(const struct get_answer *answer, uint32_t bytes, uint32_t key_count)
{
    const struct wire_get_ok *head = &answer->head;
    return bytes >= sizeof(*head) && head->matched <= key_count &&
           head->ref_count <= head->matched && head->tail_count <= LARDER_TAILS_MAX &&
           head->quality <= LARDER_QUALITY_BLENDED && head->kl >= 0 &&
           head->bytes_host <= head->bytes &&
           bytes == sizeof(*head) + head->ref_count * sizeof(struct wire_ref) +
                        head->tail_count * sizeof(struct wire_tail);
}

/* The array with room for `count` items, or NULL (and the old one stays). */
static void *grow(void *array, uint32_t *capacity, uint32_t count, size_t item_bytes)
{
    if (count <= *capacity)
        return array;
    uint32_t wanted = *capacity ? *capacity : 16;
    while (wanted < count)
        wanted *= 2;
    void *fresh = larder_realloc(array, wanted * item_bytes);
    if (fresh)
        *capacity = wanted;
    else
        (void)larder_fail(-ENOMEM, "no memory for a get of %u blocks", wanted);
    return fresh;
}

/* Adds the blocks behind an answer's refs to the window. */
static int add_blocks(struct larder_get_op *op, const struct get_answer *answer,
                      const struct client_lease *lease, uint64_t token_first, uint32_t block_tokens,
                      const struct larder_key *keys)
{
    const uint32_t count = answer->head.ref_count;
    struct get_block *blocks =
        grow(op->blocks, &op->block_capacity, op->block_count + count, sizeof(*blocks));
    if (!blocks && count > 0)
        return -ENOMEM;
    op->blocks = blocks;
    const struct client_slab *slab = NULL;
    for (uint32_t i = 0; i < count; i++) {
        struct wire_ref ref;
        memcpy(&ref, answer->rest + i * sizeof(ref), sizeof(ref));
        if (!slab || slab->id != ref.slab_id)
            slab = client_find_slab(op->link, ref.slab_id);
        if (!slab || ref.slot >= slab->slot_count)
            return client_malformed(op->link, "GET");
        uint64_t first = token_first + (uint64_t)i * block_tokens;
        op->blocks[op->block_count++] = (struct get_block){
            .slab = slab,
            .slot = client_slab_slot(slab, ref.slot),
            .generation = ref.generation,
            .lease = lease,
            .lease_index = i,
            .token_first = first,
            .token_count =
                (uint32_t)larder_min_u64(block_tokens, op->chain.prompt.token_count - first),
            .key = keys[i],
        };
    }
    return 0;
}

/* One GET of `count` keys behind `parent`, whose blocks start at token_first. */
static int ask(struct larder_get_op *op, struct get_answer *answer, const struct larder_key *parent,
               const struct larder_key *keys, uint32_t count, uint64_t token_first,
               uint32_t block_tokens)
{
    struct wire_keys body = client_wire_keys(op->handle, parent, count, op->accept);
    body.layer_first = (uint16_t)op->layer_first;
    body.layer_count = (uint16_t)op->layer_count;
    const struct client_part parts[] = {{&body, sizeof(body)}, {keys, count * sizeof(*keys)}};
    struct client_lease **leases =
        grow(op->leases, &op->lease_capacity, op->lease_count + 1, sizeof(*leases));
    if (!leases)
        return -ENOMEM;
    op->leases = leases;
    struct client_lease *lease = larder_alloc_zero(1, sizeof(*lease));
    if (!lease)
        return larder_fail(-ENOMEM, "no memory for a lease");
    struct client_call call = {
        .type = WIRE_GET,
        .answer_type = WIRE_GET_OK,
        .answer = answer,
        .answer_capacity = sizeof(*answer),
        .until_ns = op->until_ns,
        .cancel = op->cancel,
    };
    int err = client_call(op->link, &call, lease, parts, 2);
    if (err < 0) {
        larder_free(lease);
        return err;
    }
    op->leases[op->lease_count++] = lease;
    if (!is_well_formed(answer, call.answer_bytes, count))
        return client_malformed(op->link, "GET");
    client_lease_granted(op->link, lease, answer->head.ref_count, answer->head.ready != 0);
    op->bytes_ssd += answer->head.bytes - answer->head.bytes_host;
    if (answer->head.kl > op->kl)
        op->kl = answer->head.kl;
    return add_blocks(op, answer, lease, token_first, block_tokens, keys);
}

/* A shorter stored block behind the last match holds the prompt's next tokens: ask for it too. */
static int ask_for_tail(struct larder_get_op *op, struct get_answer *answer)
{
    struct client_match match = {.tail_count = answer->head.tail_count};
    memcpy(match.tails, answer->rest + answer->head.ref_count * sizeof(struct wire_ref),
           match.tail_count * sizeof(struct wire_tail));
    const uint32_t index = op->key_next;
    struct larder_key key;
    uint32_t token_count;
    LARDER_TRY(client_chain_tail(&op->chain, &match, index, &key, &token_count));
    if (token_count == 0)
        return 0;
    const uint32_t before = op->block_count;
    LARDER_TRY(ask(op, answer, client_chain_parent(&op->chain, index), &key, 1,
                   client_chain_tokens(&op->chain, index), token_count));
    assert(op->block_count <= before + 1);
    return 0;
}

int get_ask(struct larder_get_op *op)
{
    const uint64_t full_until = client_now_ns() + FULL_RETRY_NS;
    struct get_answer answer;
    op->more = false;
    while (op->key_next < op->key_end) {
        const uint32_t first = op->key_next;
        uint32_t count = op->key_end - first;
        if (count > op->keys_at_once)
            count = op->keys_at_once;
        LARDER_TRY(client_chain_hash(&op->chain, first + count));
        int err = ask(op, &answer, client_chain_parent(&op->chain, first), op->chain.keys + first,
                      count, client_chain_tokens(&op->chain, first), op->chain.block_tokens);
        if (err == -EBUSY && op->block_count > 0) {
            op->more = true;
            return 0;
        }
        const bool full =
            err == -EBUSY || (err == 0 && answer.head.matched > 0 && answer.head.ref_count == 0);
        if (full && op->block_count == 0 && count > 1) {
            /* What a request names is held where it already is, so the end of a long chain can
             * take the room that its start needs: ask for less of it. */
            op->keys_at_once = count / 2;
            continue;
        }
        if (full && op->block_count == 0) {
            if (client_now_ns() >= full_until || get_is_late(op) || get_is_cancelled(op))
                return larder_fail(LARDER_EFULL, "the host tier is full of blocks that others "
                                                 "hold; a larger host_bytes helps");
            client_poll(op->link, 1000);
            continue;
        }
        LARDER_TRY(err);
        op->key_next += answer.head.ref_count;
        if (answer.head.ref_count < answer.head.matched) {
            op->more = true;
            return 0;
        }
        if (answer.head.matched < count)
            return ask_for_tail(op, &answer);
    }
    return 0;
}

int get_count_rest(struct larder_get_op *op, uint64_t *tokens)
{
    uint32_t at = op->key_next;
    while (at < op->key_end) {
        uint32_t count = op->key_end - at;
        if (count > LARDER_REQUEST_KEYS_MAX)
            count = LARDER_REQUEST_KEYS_MAX;
        struct client_match match;
        LARDER_TRY(client_chain_lookup(&op->chain, &match, op->handle, at, count, op->accept));
        at += match.matched;
        if (match.matched < count)
            break;
    }
    *tokens = client_chain_tokens(&op->chain, at);
    return 0;
}

void get_release(struct larder_get_op *op)
{
    client_leases_end(op->link, op->leases, op->lease_count);
    for (uint32_t i = 0; i < op->lease_count; i++)
        larder_free(op->leases[i]);
    op->lease_count = 0;
    for (uint32_t i = 0; i < op->block_count; i++)
        larder_free(op->blocks[i].tables);
    op->block_count = 0;
    op->good = 0;
    op->layers_done = op->layer_first;
}

uint32_t get_front(const struct larder_get_op *op)
{
    uint32_t count = 0;
    while (count < op->block_count && op->blocks[count].lease == op->blocks[0].lease)
        count++;
    return count;
}

void get_release_front(struct larder_get_op *op, uint32_t count)
{
    assert(count > 0);
    const struct client_lease *last = op->blocks[count - 1].lease;
    uint32_t leases = 0;
    while (op->leases[leases++] != last)
        continue;
    client_leases_end(op->link, op->leases, leases);
    for (uint32_t i = 0; i < leases; i++)
        larder_free(op->leases[i]);
    for (uint32_t i = 0; i < count; i++)
        larder_free(op->blocks[i].tables);
    op->lease_count -= leases;
    memmove(op->leases, op->leases + leases, op->lease_count * sizeof(*op->leases));
    op->block_count -= count;
    memmove(op->blocks, op->blocks + count, op->block_count * sizeof(*op->blocks));
    op->layers_done = op->layer_first;
}
