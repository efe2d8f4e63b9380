/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/chain_file.h"

#include <math.h>
#include <string.h>

/* For a state on the stack. */
#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/limits.h"

#define PIECE_BYTES (1u << 20)

void chain_file_layout(struct chain_layout *out, const struct chain_head *head)
{
    out->token_bytes = larder_model_kv_bytes(&head->model, 1);
    out->piece_count = ((uint64_t)head->token_count + head->piece_tokens - 1) / head->piece_tokens;
    out->extra = sizeof(*head);
    out->tokens = larder_round_up(out->extra + head->extra_bytes, 4);
    out->checks = larder_round_up(out->tokens + 4ull * head->token_count, 16);
    out->data = larder_round_up(out->checks + 16 * out->piece_count, LARDER_PAGE_BYTES);
    out->bytes = out->data + out->token_bytes * head->token_count;
}

uint32_t chain_file_piece_tokens(const struct larder_model_desc *model)
{
    uint64_t token_bytes = larder_model_kv_bytes(model, 1);
    return token_bytes < PIECE_BYTES ? (uint32_t)(PIECE_BYTES / token_bytes) : 1;
}

/* --- form ------------------------------------------------------------------------------------- */

static int bad(const char *what, uint64_t value, const char *rule)
{
    return larder_fail(LARDER_EFORMAT, "chain file: %s=%llu is not valid: %s", what,
                       (unsigned long long)value, rule);
}

static int check_head(const struct chain_head *head)
{
    if (head->magic != CHAIN_FILE_MAGIC)
        return larder_fail(LARDER_EFORMAT, "this is no file of larder export");
    if (head->version != CHAIN_FILE_VERSION)
        return larder_fail(LARDER_EVERSION, "chain file: version %u, this release knows %u",
                           head->version, CHAIN_FILE_VERSION);
    if (head->reserved2)
        return bad("reserved", head->reserved2, "must be 0");
    if (head->token_count < 1 || head->token_count > LARDER_PROMPT_TOKENS_MAX)
        return bad("token_count", head->token_count, "must be 1 to 4194304");
    if (head->piece_tokens < 1)
        return bad("piece_tokens", head->piece_tokens, "must be at least 1");
    if (head->extra_bytes > LARDER_EXTRA_BYTES_MAX)
        return bad("extra_bytes", head->extra_bytes, "must be at most 1024");
    if (head->quality > LARDER_QUALITY_BLENDED)
        return bad("quality", head->quality, "must be an enum larder_quality");
    if (!isfinite(head->kl) || head->kl < 0 ||
        (head->kl > 0 && head->quality != LARDER_QUALITY_LOSSY))
        return larder_fail(LARDER_EFORMAT,
                           "chain file: kl=%g is not valid: must be a number from 0 on, and 0 of "
                           "what is not lossy",
                           (double)head->kl);
    if (!memchr(head->model.name, 0, sizeof(head->model.name)))
        return bad("model name", 0, "must end with a NUL");
    return larder_model_check(&head->model);
}

int chain_file_parse(struct chain_layout *out, const void *file, uint64_t file_bytes)
{
    struct chain_head head;
    memset(out, 0, sizeof(*out));
    if (file_bytes < sizeof(head))
        return larder_fail(LARDER_EFORMAT, "a file of %llu bytes is no file of larder export",
                           (unsigned long long)file_bytes);
    memcpy(&head, file, sizeof(head));
    LARDER_TRY(check_head(&head));
    /* Limits keep all sums and products far below 2^64: a token has at most 2^32 bytes. */
    struct chain_layout layout;
    chain_file_layout(&layout, &head);
    if (head.data_offset != layout.data || head.data_bytes != layout.bytes - layout.data)
        return bad("data_offset", head.data_offset, "does not follow from the other fields");
    if (file_bytes != layout.bytes)
        return larder_fail(LARDER_EFORMAT,
                           "chain file: %llu bytes, not the %llu that its head says",
                           (unsigned long long)file_bytes, (unsigned long long)layout.bytes);
    const uint8_t *tokens = (const uint8_t *)file + layout.tokens;
    for (uint32_t i = 0; i < head.token_count; i++) {
        uint32_t token;
        memcpy(&token, tokens + 4ull * i, sizeof(token));
        if (token >= head.model.vocab)
            return bad("token", token, "must be below the model's vocabulary");
    }
    *out = layout;
    return 0;
}

/* --- checks ----------------------------------------------------------------------------------- */

static void piece_check(uint8_t out[16], const void *file, const struct chain_layout *layout,
                        uint64_t piece)
{
    struct chain_head head;
    memcpy(&head, file, sizeof(head));
    uint64_t first = piece * head.piece_tokens;
    uint64_t count = larder_min_u64(head.token_count - first, head.piece_tokens);
    /* Bound to its place: pieces that were exchanged fail, too. */
    XXH128_hash_t hash =
        XXH3_128bits_withSeed((const uint8_t *)file + layout->data + first * layout->token_bytes,
                              count * layout->token_bytes, piece);
    memcpy(out, &hash.low64, 8);
    memcpy(out + 8, &hash.high64, 8);
}

static void head_check(uint8_t out[16], const void *file, const struct chain_layout *layout)
{
    XXH3_state_t state;
    XXH3_INITSTATE(&state);
    XXH3_128bits_reset(&state);
    XXH3_128bits_update(&state, file, offsetof(struct chain_head, check));
    XXH3_128bits_update(&state, (const uint8_t *)file + sizeof(struct chain_head),
                        layout->data - sizeof(struct chain_head));
    XXH128_hash_t hash = XXH3_128bits_digest(&state);
    memcpy(out, &hash.low64, 8);
    memcpy(out + 8, &hash.high64, 8);
}

void chain_file_seal_piece(void *file, const struct chain_layout *layout, uint64_t piece)
{
    assert(piece < layout->piece_count);
    piece_check((uint8_t *)file + layout->checks + 16 * piece, file, layout, piece);
}

void chain_file_seal_head(void *file, const struct chain_layout *layout)
{
    head_check((uint8_t *)file + offsetof(struct chain_head, check), file, layout);
}

int chain_file_verify_piece(const void *file, const struct chain_layout *layout, uint64_t piece)
{
    assert(piece < layout->piece_count);
    uint8_t check[16];
    piece_check(check, file, layout, piece);
    if (memcmp(check, (const uint8_t *)file + layout->checks + 16 * piece, sizeof(check)) == 0)
        return 0;
    return larder_fail(LARDER_ECORRUPT, "chain file: the check of piece %llu does not match",
                       (unsigned long long)piece);
}

int chain_file_verify_head(const void *file, const struct chain_layout *layout)
{
    uint8_t check[16];
    head_check(check, file, layout);
    if (memcmp(check, (const uint8_t *)file + offsetof(struct chain_head, check), sizeof(check)) ==
        0)
        return 0;
    return larder_fail(LARDER_ECORRUPT, "chain file: the check of its head does not match");
}
