/* SPDX-License-Identifier: Apache-2.0 */
#include "storage/policy_cells.h"

#include <assert.h>
#include <errno.h>
#include <float.h>

#include "base/error.h"
#include "base/mem.h"

#define SPAN_TICKS 32u /* half a second; older spans are longer */

/* A leaf stands in the last span that starts no later than its last use: so a span starts after
 * all that was used before it was made. */
struct cells_span {
    uint32_t start_ticks;
    uint32_t last_ticks; /* no leaf of it was used later */
    uint32_t leaf_count;
    uint64_t occupied[CELLS_LANE_WORDS]; /* a bit for each list that is not empty */
    struct policy_list lists[CELLS_LANES];
};

static const struct cell no_cell = {.span = CELLS_SPANS_MAX};

int cells_open(struct cells **out, const struct reuse *reuse)
{
    *out = larder_alloc_zero(1, sizeof(**out));
    if (!*out)
        return larder_fail(-ENOMEM, "eviction policy: no memory");
    (*out)->reuse = reuse;
    (*out)->best = no_cell;
    return 0;
}

void cells_close(struct cells *cells)
{
    if (!cells)
        return;
    for (uint32_t i = 0; i < CELLS_SPANS_MAX; i++)
        larder_free(cells->spans[i]);
    larder_free(cells);
}

size_t cells_bytes(const struct cells *cells)
{
    size_t bytes = sizeof(*cells);
    for (uint32_t i = 0; i < CELLS_SPANS_MAX && cells->spans[i]; i++)
        bytes += sizeof(*cells->spans[i]);
    return bytes;
}

/* --- spans ----------------------------------------------------------------------------------- */

static uint32_t span_of(const struct cells *cells, uint32_t ticks)
{
    uint32_t low = 0;
    uint32_t high = cells->span_count;
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (cells->spans[middle]->start_ticks <= ticks)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static void join(struct larder_policy *policy, struct policy_list *into, struct policy_list *from)
{
    if (from->count == 0)
        return;
    if (into->count == 0) {
        *into = *from;
    } else {
        policy_node(policy, into->last)->next = from->first;
        policy_node(policy, from->first)->prev = into->last;
        into->last = from->last;
        into->count += from->count;
    }
    *from = (struct policy_list){0};
}

/* The younger of the two neighbours that differ least for their age goes into the older one. */
static void merge_spans(struct larder_policy *policy, struct cells *cells)
{
    uint32_t now_ticks = reuse_now(cells->reuse);
    uint32_t least = 1;
    double least_ratio = DBL_MAX;
    for (uint32_t i = 1; i < cells->span_count; i++) {
        const struct cells_span *older = cells->spans[i - 1];
        const struct cells_span *younger = cells->spans[i];
        double ratio = (double)(younger->last_ticks - older->start_ticks) /
                       (1.0 + now_ticks - younger->last_ticks);
        if (older->leaf_count == 0 || younger->leaf_count == 0)
            ratio = 0;
        if (ratio < least_ratio) {
            least = i;
            least_ratio = ratio;
        }
    }
    struct cells_span *older = cells->spans[least - 1];
    struct cells_span *younger = cells->spans[least];
    for (uint32_t lane = 0; younger->leaf_count > 0 && lane < CELLS_LANES; lane++)
        join(policy, &older->lists[lane], &younger->lists[lane]);
    for (uint32_t word = 0; word < CELLS_LANE_WORDS; word++) {
        older->occupied[word] |= younger->occupied[word];
        younger->occupied[word] = 0;
    }
    if (older->leaf_count == 0)
        older->start_ticks = younger->start_ticks;
    if (younger->leaf_count > 0)
        older->last_ticks = younger->last_ticks;
    older->leaf_count += younger->leaf_count;
    younger->leaf_count = 0;
    for (uint32_t i = least; i + 1 < cells->span_count; i++)
        cells->spans[i] = cells->spans[i + 1];
    cells->spans[--cells->span_count] = younger;
}

/* Room for one more at the end of the list; spans beyond span_count are free ones. */
static bool has_free_span(struct cells *cells)
{
    if (cells->span_count == CELLS_SPANS_MAX)
        return false;
    struct cells_span **span = &cells->spans[cells->span_count];
    if (!*span)
        *span = larder_alloc_zero(1, sizeof(**span));
    return *span != NULL;
}

static void append_span(struct cells *cells, uint32_t ticks)
{
    struct cells_span *span = cells->spans[cells->span_count++];
    span->start_ticks = ticks;
    span->last_ticks = ticks;
}

int cells_open_span(struct larder_policy *policy, struct cells *cells)
{
    uint32_t now_ticks = reuse_now(cells->reuse);
    if (cells->span_count > 0) {
        struct cells_span *newest = cells->spans[cells->span_count - 1];
        /* After a restart, leaves that were used in this very tick stand in it. */
        if (now_ticks - newest->start_ticks < SPAN_TICKS || newest->last_ticks == now_ticks) {
            newest->last_ticks = now_ticks;
            return 0;
        }
    }
    if (!has_free_span(cells)) {
        if (cells->span_count == 0)
            return larder_fail(-ENOMEM, "eviction policy: no memory");
        if (cells->span_count == 1) {
            cells->spans[0]->last_ticks = now_ticks;
            return 0;
        }
        merge_spans(policy, cells);
    }
    append_span(cells, now_ticks);
    return 0;
}

int cells_spread(struct cells *cells)
{
    uint32_t now_ticks = reuse_now(cells->reuse);
    /* Every other class of age has one. */
    for (uint32_t age = REUSE_AGES; age > 0; age -= 2) {
        uint32_t start = reuse_age_start(age - 1);
        if (start > now_ticks)
            continue;
        if (!has_free_span(cells))
            return cells->span_count > 0 ? 0 : larder_fail(-ENOMEM, "eviction policy: no memory");
        append_span(cells, now_ticks - start);
    }
    return 0;
}

/* --- leaves ---------------------------------------------------------------------------------- */

static float cell_value(const struct cells *cells, uint32_t span_index, uint32_t lane)
{
    const struct cells_span *span = cells->spans[span_index];
    uint32_t middle = span->start_ticks / 2 + span->last_ticks / 2;
    uint32_t age = reuse_age(reuse_now(cells->reuse) - middle);
    return reuse_density(cells->reuse, lane / CELLS_WORTHS, age) *
           (float)(1u << lane % CELLS_WORTHS);
}

void cells_add(struct larder_policy *policy, struct cells *cells, uint32_t id, uint32_t now)
{
    const struct larder_policy_node *node = policy_node(policy, id);
    uint32_t index = span_of(cells, node->used);
    struct cells_span *span = cells->spans[index];
    policy_list_append(policy, &span->lists[node->list], id);
    span->leaf_count++;
    cells->leaf_count++;
    if (node->used > span->last_ticks)
        span->last_ticks = node->used;
    span->occupied[node->list / 64] |= 1ull << node->list % 64;
    if (cells->best.span < CELLS_SPANS_MAX && cells->best_at == now) {
        float value = cell_value(cells, index, node->list);
        if (value < cells->best.value)
            cells->best = (struct cell){index, node->list, value};
    }
}

void cells_remove(struct larder_policy *policy, struct cells *cells, uint32_t id)
{
    const struct larder_policy_node *node = policy_node(policy, id);
    struct cells_span *span = cells->spans[span_of(cells, node->used)];
    assert(span->lists[node->list].count > 0);
    policy_list_remove(policy, &span->lists[node->list], id);
    span->leaf_count--;
    cells->leaf_count--;
    if (span->lists[node->list].count == 0)
        span->occupied[node->list / 64] &= ~(1ull << node->list % 64);
}

static bool comes_after(const struct cell *cell, const struct cell *before)
{
    if (cell->value != before->value)
        return cell->value > before->value;
    return cell->span != before->span ? cell->span > before->span : cell->lane > before->lane;
}

/* The cell of least value among those that come after `after` by (value, span, lane). */
static struct cell next_cell(const struct cells *cells, const struct cell *after)
{
    struct cell best = no_cell;
    for (uint32_t i = 0; i < cells->span_count; i++) {
        if (cells->spans[i]->leaf_count == 0)
            continue;
        for (uint32_t word = 0; word < CELLS_LANE_WORDS; word++) {
            for (uint64_t left = cells->spans[i]->occupied[word]; left; left &= left - 1) {
                struct cell cell = {.span = i, .lane = word * 64 + (uint32_t)__builtin_ctzll(left)};
                cell.value = cell_value(cells, i, cell.lane);
                if (after && !comes_after(&cell, after))
                    continue;
                if (best.span == CELLS_SPANS_MAX || cell.value < best.value)
                    best = cell;
            }
        }
    }
    return best;
}

const struct cell *cells_best(struct cells *cells, uint32_t now)
{
    if (cells->best_at != now || cells->best.span == CELLS_SPANS_MAX ||
        cells->spans[cells->best.span]->lists[cells->best.lane].count == 0) {
        cells->best = next_cell(cells, NULL);
        cells->best_at = now;
    }
    return &cells->best;
}

uint32_t cells_last(const struct larder_policy *policy, const struct policy_list *list,
                    bool (*may_go)(void *context, uint32_t id), void *context)
{
    uint32_t id = list->last;
    while (id != LARDER_POLICY_NONE && !policy_may_go(policy, id, may_go, context))
        id = policy_node(policy, id)->prev;
    return id;
}

uint32_t cells_victim(struct larder_policy *policy, struct cells *cells, uint32_t now, float *value,
                      bool (*may_go)(void *context, uint32_t id), void *context)
{
    struct cell cell = *cells_best(cells, now);
    /* The best one's value may be of a while ago: the others are gone through by values of now. */
    for (bool first = true; cell.span < CELLS_SPANS_MAX; first = false) {
        const struct policy_list *list = &cells->spans[cell.span]->lists[cell.lane];
        uint32_t id = cells_last(policy, list, may_go, context);
        if (id != LARDER_POLICY_NONE) {
            *value = cell.value;
            return id;
        }
        cell = next_cell(cells, first ? NULL : &cell);
    }
    return LARDER_POLICY_NONE;
}
