/* SPDX-License-Identifier: Apache-2.0 */
/* request.c - a blend's region of staging, read once: what stands in it is its client's word. */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "daemon/worker/worker.h"

static int too_short(uint64_t needed, uint64_t bytes)
{
    return larder_fail(-EINVAL, "blend: the request takes %llu bytes, its region has %llu",
                       (unsigned long long)needed, (unsigned long long)bytes);
}

/* The table of pieces; the sums of what it names. */
static int read_table(struct worker_request *out, const uint8_t *region,
                      const struct wire_blend *wire, uint64_t *extra_bytes)
{
    uint64_t tokens = wire->suffix_tokens;
    *extra_bytes = larder_round_up(wire->extra_bytes, 4);
    for (uint32_t i = 0; i < wire->piece_count; i++) {
        uint32_t row[2];
        memcpy(row, region + 8ull * i, sizeof(row));
        if (row[0] == 0 || row[1] > LARDER_EXTRA_BYTES_MAX)
            return larder_fail(-EINVAL,
                               "blend: piece %u has %u tokens and %u bytes of extra; at least 1, "
                               "and at most %u",
                               i, row[0], row[1], LARDER_EXTRA_BYTES_MAX);
        out->pieces[i].token_count = row[0];
        out->pieces[i].extra_bytes = row[1];
        tokens += row[0];
        *extra_bytes += larder_round_up(row[1], 4);
    }
    if (tokens != wire->token_count)
        return larder_fail(-EINVAL, "blend: the pieces and the suffix have %llu tokens, not %u",
                           (unsigned long long)tokens, wire->token_count);
    return 0;
}

static void point(struct worker_request *out, const struct wire_blend *wire)
{
    const uint8_t *extra = out->extras;
    const uint32_t *tokens = out->tokens;
    out->blend.suffix.extra = extra;
    out->blend.suffix.extra_bytes = wire->extra_bytes;
    extra += larder_round_up(wire->extra_bytes, 4);
    for (uint32_t i = 0; i < wire->piece_count; i++) {
        out->pieces[i].extra = extra;
        extra += larder_round_up(out->pieces[i].extra_bytes, 4);
        out->pieces[i].tokens = tokens;
        tokens += out->pieces[i].token_count;
    }
    out->blend.suffix.tokens = tokens;
    out->blend.suffix.token_count = wire->suffix_tokens;
}

static int read_region(struct worker_request *out, const uint8_t *region,
                       const struct wire_blend *wire)
{
    const uint64_t table_bytes = 8ull * wire->piece_count;
    uint64_t extra_bytes;
    if (wire->staging_bytes < table_bytes)
        return too_short(table_bytes, wire->staging_bytes);
    out->pieces = larder_alloc_zero(wire->piece_count, sizeof(*out->pieces));
    if (!out->pieces)
        return larder_fail(-ENOMEM, "no memory for %u pieces", wire->piece_count);
    LARDER_TRY(read_table(out, region, wire, &extra_bytes));
    const uint64_t needed = table_bytes + extra_bytes + 4ull * wire->token_count;
    if (wire->staging_bytes < needed)
        return too_short(needed, wire->staging_bytes);
    out->extras = larder_alloc(extra_bytes + 1);
    out->tokens = larder_alloc(4ull * wire->token_count);
    if (!out->extras || !out->tokens)
        return larder_fail(-ENOMEM, "no memory for %u tokens", wire->token_count);
    memcpy(out->extras, region + table_bytes, extra_bytes);
    memcpy(out->tokens, region + table_bytes + extra_bytes, 4ull * wire->token_count);
    out->token_count = wire->token_count;
    point(out, wire);
    return 0;
}

int worker_request_read(struct worker_request *out, const struct worker *worker,
                        const struct wire_blend *wire)
{
    memset(out, 0, sizeof(*out));
    LARDER_TRY(read_region(out, worker->staging + wire->staging_offset, wire));
    const int64_t bos = worker->config->bos;
    struct larder_blend_request *blend = &out->blend;
    blend->pieces = out->pieces;
    blend->piece_count = wire->piece_count;
    blend->method = wire->method[0] ? wire->method : worker->options->method;
    blend->worst = (enum larder_quality)(
        wire->worst | (wire->flags & WIRE_BLEND_SMALLEST ? LARDER_QUALITY_SMALLEST : 0));
    blend->max_kl = wire->max_kl;
    blend->seed = wire->seed;
    blend->start_token = wire->start == WIRE_TOKEN_MODEL ? (uint32_t)bos : wire->start;
    blend->start = wire->start == WIRE_TOKEN_NONE || (wire->start == WIRE_TOKEN_MODEL && bos < 0)
                       ? LARDER_START_NONE
                       : LARDER_START_TOKEN;
    return 0;
}

void worker_request_free(struct worker_request *request)
{
    larder_free(request->pieces);
    larder_free(request->extras);
    larder_free(request->tokens);
}
