/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/blend/select.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"
#include "kernels/cpu/cpu_math.h"

/* Rows whose places are written down at once when keys move. */
#define MOVE_ROWS 256u

static int check_span(const struct larder_blend_span *span, uint32_t number, uint64_t at,
                      uint64_t tokens, uint64_t positions_max)
{
    if (span->source > LARDER_BLEND_SUFFIX)
        return larder_fail(-EINVAL, "span %u: source %u is unknown; known are 0..%d", number,
                           span->source, LARDER_BLEND_SUFFIX);
    if (span->count == 0)
        return larder_fail(-EINVAL, "span %u is empty; leave it out", number);
    if (span->first != at)
        return larder_fail(-EINVAL, "span %u begins at token %llu, the one before ends at %llu",
                           number, (unsigned long long)span->first, (unsigned long long)at);
    if (span->count > tokens - at)
        return larder_fail(-EINVAL, "span %u: %llu tokens from %llu on, but there are %llu in all",
                           number, (unsigned long long)span->count, (unsigned long long)at,
                           (unsigned long long)tokens);
    if (span->source == LARDER_BLEND_PREFIX && span->stored_first != span->first)
        return larder_fail(-EINVAL,
                           "span %u is a prefix at token %llu, but stored for position %llu; what "
                           "moves is no prefix",
                           number, (unsigned long long)span->first,
                           (unsigned long long)span->stored_first);
    if (span->source == LARDER_BLEND_MOVED &&
        (span->stored_first > positions_max || span->count > positions_max - span->stored_first))
        return larder_fail(LARDER_ELIMIT,
                           "span %u was stored for %llu positions from %llu on, beyond the %llu "
                           "of the model",
                           number, (unsigned long long)span->count,
                           (unsigned long long)span->stored_first,
                           (unsigned long long)positions_max);
    return 0;
}

int larder_blend_check_spans(const struct larder_blend_span *spans, uint32_t span_count,
                             uint64_t tokens, uint64_t positions_max)
{
    if (tokens == 0)
        return larder_fail(-EINVAL, "a blend of no tokens; at least 1 is needed");
    if (tokens > positions_max)
        return larder_fail(LARDER_ELIMIT, "a blend of %llu tokens is above %llu positions",
                           (unsigned long long)tokens, (unsigned long long)positions_max);
    uint64_t at = 0;
    for (uint32_t i = 0; i < span_count; i++) {
        LARDER_TRY(check_span(&spans[i], i, at, tokens, positions_max));
        if (i > 0 && spans[i].source == LARDER_BLEND_PREFIX &&
            spans[i - 1].source != LARDER_BLEND_PREFIX)
            return larder_fail(-EINVAL, "span %u is a prefix behind one that is none", i);
        at += spans[i].count;
    }
    if (at != tokens)
        return larder_fail(-EINVAL, "spans end at token %llu of %llu", (unsigned long long)at,
                           (unsigned long long)tokens);
    return 0;
}

void larder_blend_move_keys(const struct larder_rope_table *table, const struct larder_tensor *keys,
                            uint32_t from, uint32_t to)
{
    if (from == to)
        return;
    uint32_t places[2][MOVE_ROWS];
    for (uint64_t first = 0; first < keys->shape[0]; first += MOVE_ROWS) {
        uint64_t count = larder_min_u64(MOVE_ROWS, keys->shape[0] - first);
        for (uint32_t i = 0; i < count; i++) {
            places[0][i] = from + (uint32_t)first + i;
            places[1][i] = to + (uint32_t)first + i;
        }
        struct larder_tensor part = *keys;
        part.data = (char *)keys->data + first * keys->stride[0] * larder_dtype_bytes(keys->dtype);
        part.shape[0] = count;
        larder_rope_move(table, &(struct larder_rope_move){
                                    .out = part, .in = part, .from = places[0], .to = places[1]});
    }
}

void larder_blend_deviation(float *scores, const struct larder_tensor *fresh,
                            const struct larder_tensor *stored, const uint32_t *positions)
{
    assert(fresh->dtype == LARDER_F32);
    assert(fresh->shape[1] == stored->shape[1]);
    assert(fresh->shape[2] == stored->shape[2]);
    for (uint64_t row = 0; row < fresh->shape[0]; row++) {
        assert(positions[row] < stored->shape[0]);
        double sum = 0;
        for (uint64_t head = 0; head < fresh->shape[1]; head++) {
            const float *a =
                (const float *)fresh->data + row * fresh->stride[0] + head * fresh->stride[1];
            uint64_t b = positions[row] * stored->stride[0] + head * stored->stride[1];
            float lanes[CPU_LANES] = {0};
            for (uint64_t i = 0; i < fresh->shape[2]; i++) {
                float off = a[i] - load_element(stored->data, stored->dtype, b + i);
                lanes[i % CPU_LANES] += off * off;
            }
            sum += (double)sum_lanes(lanes);
        }
        scores[row] = isfinite(sum) ? (float)sum : INFINITY;
    }
}

struct ranked {
    float score;
    uint32_t index;
};

static int by_rank(const void *left, const void *right)
{
    const struct ranked *a = left;
    const struct ranked *b = right;
    if (a->score != b->score)
        return a->score > b->score ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

int larder_blend_keep_highest(uint8_t *flags, const float *scores, uint32_t flag_count,
                              uint32_t count)
{
    uint32_t flagged = 0;
    for (uint32_t i = 0; i < flag_count; i++)
        flagged += flags[i] != 0;
    if (flagged <= count)
        return 0;
    struct ranked *ranked = larder_alloc(flagged * sizeof(*ranked));
    if (!ranked)
        return larder_fail(-ENOMEM, "no memory to rank %u tokens", flagged);
    uint32_t next = 0;
    for (uint32_t i = 0; i < flag_count; i++)
        if (flags[i])
            ranked[next++] = (struct ranked){isnan(scores[i]) ? INFINITY : scores[i], i};
    qsort(ranked, flagged, sizeof(*ranked), by_rank);
    for (uint32_t i = count; i < flagged; i++)
        flags[ranked[i].index] = 0;
    larder_free(ranked);
    return 0;
}

uint32_t larder_blend_share_of(double share, uint32_t count)
{
    assert(share >= 0);
    assert(share <= 1);
    return (uint32_t)(share * count + 0.5);
}
