/* SPDX-License-Identifier: Apache-2.0 */
/* policy_value.c - the default: the entry goes first whose stay is worth least: what computing it
 * again costs, times the uses to be had per second of stay, by the byte.
 *
 * The uses to be had are learned (policy_reuse.h) by class: how many turns the conversation has
 * behind it that used the entry last, and how far from its start it stands; whether conversations
 * that differ share it; whether it is a short last block, which the next turn replaces. Entries
 * stand in cells by class, worth and span of time of their last use; the victim is a leaf of the
 * cell of least value. When a leaf goes, its parent stands in its place: a chain goes from its end.
 *
 * Only leaves stand in cells; the others come back when their last child goes. Entries of the
 * request that has not ended wait aside: their class is known at its end.
 */
#include <errno.h>
#include <float.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "storage/policy_priv.h"
#include "storage/policy_reuse.h"

#define SPANS_MAX     96u
#define SPAN_TICKS    32u /* half a second; older spans are longer */
#define WORTHS        4u  /* classes of worth, octaves apart */
#define LANES         (REUSE_CLASSES * WORTHS)
#define LANE_WORDS    ((LANES + 63) / 64)
#define TURN_MAX      200u
#define POSITIONS     3u
#define FOLLOW_FACTOR 16u /* capacities that pass through while an entry is followed */

enum {
    CLASS_TAIL = 0,
    CLASS_SHARED = 1, /* and the next three, by uses */
    CLASS_TURN = 5,   /* and the next, by turn and position */
};

struct span {
    uint32_t start_ticks;
    uint32_t last_ticks;
    uint32_t leaf_count;
    uint64_t occupied[LANE_WORDS]; /* a bit for each list that is not empty */
    struct policy_list lists[LANES];
};

struct cell {
    uint32_t span; /* SPANS_MAX: none */
    uint32_t lane;
    float value;
};

struct policy_value {
    struct reuse *reuse;
    struct span *spans[SPANS_MAX]; /* oldest first */
    uint32_t span_count;
    uint64_t base_ms; /* when ticks began */
    bool base_known;
    uint32_t now_ticks;
    struct cell best; /* of least value; `none` when it has to be looked for */
    int worth_base;
    bool worth_known;
    uint32_t token_count_max;
    /* the request */
    struct policy_list pending;
    bool came_back; /* something of it was there, or was followed */
    uint32_t deepest;
    uint32_t deepest_turn;
    bool branched; /* the deepest that was there had gone on otherwise before */
};

struct state_head {
    uint64_t magic;           /* 00-07 */
    uint64_t base_ms;         /* 08-15 */
    uint32_t version;         /* 16-19  of classes and what an entry recalls */
    int32_t worth_base;       /* 20-23 */
    uint32_t token_count_max; /* 24-27 */
    uint32_t worth_known;     /* 28-31  0 or 1 */
};
static_assert(sizeof(struct state_head) == 32, "saved size");
#define STATE_MAGIC   0x3165756C61762D4Cull /* "L-value1" */
#define STATE_VERSION 1u

/* What an entry recalls, in eight bytes. */
struct recalled {
    uint32_t used_ticks;
    uint16_t uses;
    uint8_t turn;
    uint8_t flags; /* GREW, SHARED */
};
static_assert(sizeof(struct recalled) == 8, "saved size");

static const struct cell no_cell = {.span = SPANS_MAX};

static int value_open(struct larder_policy *policy)
{
    struct policy_value *value = larder_alloc_zero(1, sizeof(*value));
    if (!value)
        return larder_fail(-ENOMEM, "eviction policy: no memory");
    policy->value = value;
    int err = reuse_open(&value->reuse, (uint64_t)policy->capacity_entries * FOLLOW_FACTOR);
    for (uint32_t i = 0; err == 0 && i < SPANS_MAX; i++) {
        value->spans[i] = larder_alloc_zero(1, sizeof(struct span));
        if (!value->spans[i])
            err = larder_fail(-ENOMEM, "eviction policy: no memory");
    }
    value->best = no_cell;
    if (err < 0)
        policy_value_ops.close(policy);
    return err;
}

static void value_close(struct larder_policy *policy)
{
    struct policy_value *value = policy->value;
    for (uint32_t i = 0; i < SPANS_MAX; i++)
        larder_free(value->spans[i]);
    reuse_close(value->reuse);
    larder_free(value);
}

/* --- cells ----------------------------------------------------------------------------------- */

static float cell_value(const struct policy_value *value, uint32_t span_index, uint32_t lane)
{
    const struct span *span = value->spans[span_index];
    uint32_t age = reuse_age(value->now_ticks - (span->start_ticks / 2 + span->last_ticks / 2));
    return reuse_density(value->reuse, lane / WORTHS, age) * (float)(1u << lane % WORTHS);
}

static uint32_t span_of(const struct policy_value *value, uint32_t ticks)
{
    uint32_t low = 0;
    uint32_t high = value->span_count;
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (value->spans[middle]->start_ticks <= ticks)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static void cell_add(struct larder_policy *policy, uint32_t id)
{
    struct policy_value *value = policy->value;
    const struct policy_node *node = policy_node(policy, id);
    uint32_t index = span_of(value, node->used_ticks);
    policy_list_append(policy, &value->spans[index]->lists[node->lane], id);
    value->spans[index]->leaf_count++;
    value->spans[index]->occupied[node->lane / 64] |= 1ull << node->lane % 64;
    if (value->best.span < SPANS_MAX) {
        float worth = cell_value(value, index, node->lane);
        if (worth < value->best.value)
            value->best = (struct cell){index, node->lane, worth};
    }
}

static void cell_remove(struct larder_policy *policy, uint32_t id)
{
    struct policy_value *value = policy->value;
    const struct policy_node *node = policy_node(policy, id);
    struct span *span = value->spans[span_of(value, node->used_ticks)];
    policy_list_remove(policy, &span->lists[node->lane], id);
    span->leaf_count--;
    if (span->lists[node->lane].count == 0)
        span->occupied[node->lane / 64] &= ~(1ull << node->lane % 64);
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
static void merge_spans(struct larder_policy *policy)
{
    struct policy_value *value = policy->value;
    uint32_t least = 1;
    double least_ratio = DBL_MAX;
    for (uint32_t i = 1; i < value->span_count; i++) {
        const struct span *older = value->spans[i - 1];
        const struct span *younger = value->spans[i];
        double ratio = (double)(younger->last_ticks - older->start_ticks) /
                       (1.0 + value->now_ticks - younger->last_ticks);
        if (older->leaf_count == 0 || younger->leaf_count == 0)
            ratio = 0;
        if (ratio < least_ratio) {
            least = i;
            least_ratio = ratio;
        }
    }
    struct span *older = value->spans[least - 1];
    struct span *younger = value->spans[least];
    for (uint32_t lane = 0; lane < LANES; lane++)
        join(policy, &older->lists[lane], &younger->lists[lane]);
    for (uint32_t word = 0; word < LANE_WORDS; word++) {
        older->occupied[word] |= younger->occupied[word];
        younger->occupied[word] = 0;
    }
    if (older->leaf_count == 0)
        older->start_ticks = younger->start_ticks;
    if (younger->leaf_count > 0)
        older->last_ticks = younger->last_ticks;
    older->leaf_count += younger->leaf_count;
    younger->leaf_count = 0;
    for (uint32_t i = least; i + 1 < value->span_count; i++)
        value->spans[i] = value->spans[i + 1];
    value->spans[--value->span_count] = younger;
}

static void open_span(struct larder_policy *policy)
{
    struct policy_value *value = policy->value;
    if (value->span_count > 0 &&
        value->now_ticks - value->spans[value->span_count - 1]->start_ticks < SPAN_TICKS) {
        value->spans[value->span_count - 1]->last_ticks = value->now_ticks;
        return;
    }
    if (value->span_count == SPANS_MAX)
        merge_spans(policy);
    struct span *span = value->spans[value->span_count++];
    span->start_ticks = value->now_ticks;
    span->last_ticks = value->now_ticks;
}

static bool comes_after(const struct cell *cell, const struct cell *before)
{
    if (cell->value != before->value)
        return cell->value > before->value;
    return cell->span != before->span ? cell->span > before->span : cell->lane > before->lane;
}

/* The cell of least value among those that come after `after` by (value, span, lane). */
static struct cell next_cell(const struct policy_value *value, const struct cell *after)
{
    struct cell best = no_cell;
    for (uint32_t i = 0; i < value->span_count; i++) {
        if (value->spans[i]->leaf_count == 0)
            continue;
        for (uint32_t word = 0; word < LANE_WORDS; word++) {
            for (uint64_t left = value->spans[i]->occupied[word]; left; left &= left - 1) {
                struct cell cell = {.span = i, .lane = word * 64 + (uint32_t)__builtin_ctzll(left)};
                cell.value = cell_value(value, i, cell.lane);
                if (after && !comes_after(&cell, after))
                    continue;
                if (best.span == SPANS_MAX || cell.value < best.value)
                    best = cell;
            }
        }
    }
    return best;
}

static void find_best(struct policy_value *value)
{
    if (value->best.span == SPANS_MAX ||
        value->spans[value->best.span]->lists[value->best.lane].count == 0)
        value->best = next_cell(value, NULL);
}

/* --- a request ------------------------------------------------------------------------------- */

static void value_begin(struct larder_policy *policy)
{
    struct policy_value *value = policy->value;
    if (!value->base_known) {
        value->base_ms = policy->now_ms;
        value->base_known = true;
    }
    if (policy->now_ms > value->base_ms) {
        uint64_t ticks = (policy->now_ms - value->base_ms) / REUSE_TICK_MS;
        if (ticks > value->now_ticks)
            value->now_ticks = ticks < UINT32_MAX ? (uint32_t)ticks : UINT32_MAX;
    }
    open_span(policy);
    reuse_advance(value->reuse, value->now_ticks);
    value->came_back = false;
    value->branched = false;
    value->deepest = 0;
    value->deepest_turn = 0;
    value->best = no_cell;
}

static void wait_aside(struct larder_policy *policy, uint32_t id)
{
    struct policy_node *node = policy_node(policy, id);
    node->flags |= POLICY_PENDING;
    policy_list_append(policy, &policy->value->pending, id);
}

static void note_return(struct policy_value *value, uint32_t depth, uint32_t turn, bool branched)
{
    if (value->came_back && depth <= value->deepest)
        return;
    value->came_back = true;
    value->deepest = depth;
    value->deepest_turn = turn;
    value->branched = branched;
}

static void value_use(struct larder_policy *policy, uint32_t id)
{
    struct policy_node *node = policy_node(policy, id);
    if (node->flags & POLICY_PENDING)
        return;
    if (node->flags & POLICY_LISTED)
        cell_remove(policy, id);
    if (node->uses < UINT16_MAX)
        node->uses++;
    note_return(policy->value, node->depth, node->turn, (node->flags & POLICY_GREW) != 0);
    wait_aside(policy, id);
}

/* It is no leaf any more. */
static void hide_parent(struct larder_policy *policy, const struct policy_node *node)
{
    if (node->parent == LARDER_POLICY_NONE)
        return;
    const struct policy_node *above = policy_node(policy, node->parent);
    if ((above->flags & POLICY_LISTED) && !(above->flags & POLICY_PENDING))
        cell_remove(policy, node->parent);
}

static void value_insert(struct larder_policy *policy, uint32_t id)
{
    struct policy_value *value = policy->value;
    struct policy_node *node = policy_node(policy, id);
    hide_parent(policy, node);
    const struct reuse_sample *followed = reuse_find(value->reuse, node->key);
    if (followed)
        note_return(value, node->depth, followed->turn, false);
    node->flags |= POLICY_NEW;
    wait_aside(policy, id);
}

static bool is_tail(const struct larder_policy *policy, const struct policy_node *node)
{
    if (node->parent == LARDER_POLICY_NONE || !larder_policy_has(policy, node->parent))
        return node->token_count < policy->value->token_count_max;
    return node->token_count < policy_node(policy, node->parent)->token_count;
}

/* 0, 1, 2, 3, 4-5, 6-9, 10-15, 16-31, 32-63, 64-127, 128 and more. */
static uint32_t turn_level(uint32_t turn)
{
    static const uint8_t ends[] = {1, 2, 3, 4, 6, 10, 16, 32, 64, 128};
    uint32_t level = 0;
    while (level < sizeof(ends) && turn >= ends[level])
        level++;
    return level;
}

static uint32_t class_of(const struct larder_policy *policy, const struct policy_node *node)
{
    if (is_tail(policy, node))
        return CLASS_TAIL;
    if (node->flags & POLICY_SHARED)
        return CLASS_SHARED + (node->uses > 15 ? 3 : node->uses > 7 ? 2 : node->uses > 3 ? 1 : 0);
    uint32_t position = node->depth < 8 ? 0 : node->depth < 32 ? 1 : 2;
    return CLASS_TURN + turn_level(node->turn) * POSITIONS + position;
}

static uint32_t worth_level(struct policy_value *value, float worth)
{
    uint32_t bits;
    memcpy(&bits, &worth, sizeof(bits));
    int exponent = (int)(bits >> 23 & 0xFF);
    if (!value->worth_known) {
        value->worth_base = exponent - 1;
        value->worth_known = true;
    }
    int level = exponent - value->worth_base;
    return level < 0 ? 0 : level >= (int)WORTHS ? WORTHS - 1 : (uint32_t)level;
}

/* Of the conversation that the request goes on with, by what is known so far. */
static uint32_t turn_of(const struct policy_value *value)
{
    if (!value->came_back || value->branched)
        return 0;
    return value->deepest_turn < TURN_MAX ? value->deepest_turn + 1 : TURN_MAX;
}

static void value_end(struct larder_policy *policy)
{
    struct policy_value *value = policy->value;
    uint32_t turn = turn_of(value);
    while (value->pending.first != LARDER_POLICY_NONE) {
        uint32_t id = value->pending.first;
        struct policy_node *node = policy_node(policy, id);
        policy_list_remove(policy, &value->pending, id);
        node->flags &= (uint8_t)~POLICY_PENDING;
        if (node->token_count > value->token_count_max)
            value->token_count_max = node->token_count;
        if (!(node->flags & POLICY_NEW) && value->branched && node->depth <= value->deepest)
            node->flags |= POLICY_SHARED;
        node->turn = (uint8_t)turn;
        node->used_ticks = value->now_ticks;
        uint32_t class = class_of(policy, node);
        if ((node->flags & POLICY_NEW) && node->parent != LARDER_POLICY_NONE &&
            !is_tail(policy, node))
            policy_node(policy, node->parent)->flags |= POLICY_GREW;
        node->flags &= (uint8_t)~POLICY_NEW;
        node->lane = (uint8_t)(class * WORTHS + worth_level(value, node->worth));
        reuse_use(value->reuse, node->key, class, node->turn);
        if (node->child_count == 0)
            cell_add(policy, id);
    }
    value->best = no_cell;
}

static void value_bared(struct larder_policy *policy, uint32_t id)
{
    if (!(policy_node(policy, id)->flags & POLICY_LISTED))
        cell_add(policy, id);
}

static void value_leave(struct larder_policy *policy, uint32_t id, bool evicted)
{
    (void)evicted;
    const struct policy_node *node = policy_node(policy, id);
    if (node->flags & POLICY_PENDING)
        policy_list_remove(policy, &policy->value->pending, id);
    else if (node->flags & POLICY_LISTED)
        cell_remove(policy, id);
}

/* --- victims --------------------------------------------------------------------------------- */

static uint32_t last_that_may_go(const struct larder_policy *policy, const struct policy_list *list,
                                 bool (*may_go)(void *context, uint32_t id), void *context)
{
    uint32_t id = list->last;
    while (id != LARDER_POLICY_NONE && !policy_may_go(policy, id, may_go, context))
        id = policy_node(policy, id)->prev;
    return id;
}

static uint32_t value_victim(struct larder_policy *policy,
                             bool (*may_go)(void *context, uint32_t id), void *context)
{
    struct policy_value *value = policy->value;
    find_best(value);
    struct cell cell = value->best;
    while (cell.span < SPANS_MAX) {
        uint32_t id =
            last_that_may_go(policy, &value->spans[cell.span]->lists[cell.lane], may_go, context);
        if (id != LARDER_POLICY_NONE)
            return id;
        cell = next_cell(value, &cell);
    }
    return last_that_may_go(policy, &value->pending, may_go, context);
}

/* Worth more than the next victim? Its class is what is known of the request so far. */
static bool value_admits(struct larder_policy *policy, const struct larder_policy_entry *entry)
{
    struct policy_value *value = policy->value;
    const struct reuse_sample *followed = reuse_find(value->reuse, entry->key);
    if (followed)
        note_return(value, entry->depth, followed->turn, false);
    const struct policy_node node = {
        .parent = entry->parent,
        .token_count = policy_clamp_u16(entry->token_count),
        .depth = policy_clamp_u16(entry->depth),
        .turn = (uint8_t)turn_of(value),
    };
    uint32_t class = class_of(policy, &node);
    uint32_t worth = worth_level(value, policy_worth(entry));
    find_best(value);
    bool rooted = entry->parent == LARDER_POLICY_NONE || larder_policy_has(policy, entry->parent);
    if (rooted &&
        (value->best.span == SPANS_MAX ||
         reuse_density(value->reuse, class, 0) * (float)(1u << worth) >= value->best.value))
        return true;
    reuse_use(value->reuse, entry->key, class, node.turn);
    return false;
}

/* --- across a restart ------------------------------------------------------------------------ */

static size_t value_state_bytes_max(const struct larder_policy *policy)
{
    (void)policy;
    return sizeof(struct state_head) + REUSE_STATE_BYTES_MAX;
}

static size_t value_save(const struct larder_policy *policy, uint8_t *out)
{
    const struct policy_value *value = policy->value;
    const struct state_head head = {
        .magic = STATE_MAGIC,
        .base_ms = value->base_ms,
        .version = STATE_VERSION,
        .worth_base = value->worth_base,
        .token_count_max = value->token_count_max,
        .worth_known = value->worth_known,
    };
    memcpy(out, &head, sizeof(head));
    return sizeof(head) + reuse_save(value->reuse, out + sizeof(head));
}

static int value_load(struct larder_policy *policy, const uint8_t *in, size_t bytes)
{
    struct policy_value *value = policy->value;
    struct state_head head = {0};
    if (bytes >= sizeof(head))
        memcpy(&head, in, sizeof(head));
    if (head.magic != STATE_MAGIC || head.version != STATE_VERSION || head.worth_known > 1 ||
        head.worth_base < -1 || head.worth_base > 255)
        return larder_fail(LARDER_ECORRUPT, "eviction policy: the saved state is not one of this "
                                            "release; it starts to learn anew");
    LARDER_TRY(reuse_load(value->reuse, in + sizeof(head), bytes - sizeof(head)));
    value->base_ms = head.base_ms;
    value->base_known = true;
    value->worth_base = head.worth_base;
    value->worth_known = head.worth_known != 0;
    value->token_count_max = head.token_count_max;
    value->now_ticks = reuse_now(value->reuse);
    /* Spans for entries of all ages, every other class of age one. */
    for (uint32_t age = REUSE_AGES; age > 0; age -= 2) {
        uint32_t start = reuse_age_start(age - 1);
        if (start > value->now_ticks)
            continue;
        struct span *span = value->spans[value->span_count++];
        span->start_ticks = value->now_ticks - start;
        span->last_ticks = span->start_ticks;
    }
    return 0;
}

static uint64_t value_recall(const struct larder_policy *policy, uint32_t id)
{
    const struct policy_node *node = policy_node(policy, id);
    const struct recalled recalled = {
        .used_ticks = node->used_ticks,
        .uses = node->uses,
        .turn = node->turn,
        .flags = node->flags & (POLICY_GREW | POLICY_SHARED),
    };
    uint64_t bits;
    memcpy(&bits, &recalled, sizeof(bits));
    return bits;
}

static void value_restore(struct larder_policy *policy, uint32_t id, uint64_t bits)
{
    struct policy_value *value = policy->value;
    struct policy_node *node = policy_node(policy, id);
    struct recalled recalled;
    memcpy(&recalled, &bits, sizeof(recalled));
    if (value->span_count == 0)
        open_span(policy);
    node->used_ticks =
        recalled.used_ticks < value->now_ticks ? recalled.used_ticks : value->now_ticks;
    node->uses = recalled.uses;
    node->turn = recalled.turn < TURN_MAX ? recalled.turn : TURN_MAX;
    node->flags |= recalled.flags & (POLICY_GREW | POLICY_SHARED);
    node->lane = (uint8_t)(class_of(policy, node) * WORTHS + worth_level(value, node->worth));
    hide_parent(policy, node);
    if (node->child_count == 0)
        cell_add(policy, id);
}

static size_t value_bytes(const struct larder_policy *policy)
{
    return sizeof(struct policy_value) + SPANS_MAX * sizeof(struct span) +
           reuse_bytes(policy->value->reuse);
}

const struct policy_ops policy_value_ops = {
    .name = "value",
    .open = value_open,
    .close = value_close,
    .begin = value_begin,
    .end = value_end,
    .insert = value_insert,
    .use = value_use,
    .victim = value_victim,
    .leave = value_leave,
    .bared = value_bared,
    .bytes = value_bytes,
    .admits = value_admits,
    .state_bytes_max = value_state_bytes_max,
    .save = value_save,
    .load = value_load,
    .recall = value_recall,
    .restore = value_restore,
};
