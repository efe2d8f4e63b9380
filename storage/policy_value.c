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
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "storage/policy_cells.h"
#include "storage/policy_priv.h"
#include "storage/policy_reuse.h"

#define TURN_MAX      200u
#define POSITIONS     3u
#define FOLLOW_FACTOR 16u /* capacities that pass through while an entry is followed */

enum {
    CLASS_TAIL = 0,
    CLASS_SHARED = 1, /* and the next three, by uses */
    CLASS_TURN = 5,   /* and the next, by turn and position */
};

struct policy_value {
    struct reuse *reuse;
    struct cells **groups;
    uint64_t base_ms; /* when ticks began */
    bool base_known;
    bool began;   /* a request was met: what is restored now is of this life */
    bool loaded;  /* entries of an earlier life may come */
    uint32_t now; /* of cells.h */
    int worth_base;
    bool worth_known;
    uint32_t token_count_max;
    uint32_t ticks_dropped; /* since the saved state: what entries recall is ahead by them */
    /* the request */
    struct policy_list pending;
    bool came_back; /* something of it was there, or was followed */
    uint32_t deepest;
    uint32_t deepest_turn;
    bool branched;  /* the deepest that was there had gone on otherwise before */
    bool continues; /* it stores behind an entry that another request touched last */
    uint32_t continued_turn;
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
    uint8_t flags; /* GREW, SHARED, and IN_TIER so that it is not 0 */
};
static_assert(sizeof(struct recalled) == 8, "saved size");
/* Where ticks stand in one that starts: longer ago than anything is told apart. */
#define START_TICKS (1u << 30)

static int value_open(struct larder_policy *policy)
{
    struct policy_value *value = larder_alloc_zero(1, sizeof(*value));
    if (!value)
        return larder_fail(-ENOMEM, "eviction policy: no memory");
    policy->value = value;
    value->groups = larder_alloc_zero(policy->group_max, sizeof(struct cells *));
    int err = value->groups ? 0 : larder_fail(-ENOMEM, "eviction policy: no memory");
    if (err == 0)
        err = reuse_open(&value->reuse, (uint64_t)policy->capacity_entries * FOLLOW_FACTOR);
    if (err < 0)
        policy_value_ops.close(policy);
    return err;
}

static void value_close(struct larder_policy *policy)
{
    struct policy_value *value = policy->value;
    for (uint32_t i = 0; value->groups && i < policy->group_max; i++)
        cells_close(value->groups[i]);
    larder_free(value->groups);
    reuse_close(value->reuse);
    larder_free(value);
}

static void value_resize(struct larder_policy *policy)
{
    reuse_follow(policy->value->reuse, (uint64_t)policy->capacity_entries * FOLLOW_FACTOR);
}

static struct cells *cells_of(const struct larder_policy *policy, uint32_t id)
{
    return policy->value->groups[policy_describe(policy, id).group];
}

/* --- a request ------------------------------------------------------------------------------- */

static int value_make_group(struct larder_policy *policy, uint32_t group)
{
    struct policy_value *value = policy->value;
    if (value->groups[group])
        return 0;
    struct cells *cells;
    LARDER_TRY(cells_open(&cells, value->reuse));
    int err = value->loaded && !value->began ? cells_spread(cells) : cells_open_span(policy, cells);
    if (err < 0)
        cells_close(cells);
    else
        value->groups[group] = cells;
    return err;
}

static uint32_t ticks_at(const struct policy_value *value, uint64_t ms)
{
    if (ms <= value->base_ms)
        return 0;
    uint64_t ticks = (ms - value->base_ms) / REUSE_TICK_MS;
    return ticks < UINT32_MAX ? (uint32_t)ticks : UINT32_MAX;
}

static void value_begin(struct larder_policy *policy)
{
    struct policy_value *value = policy->value;
    if (!value->base_known) {
        value->base_ms = policy->now_ms;
        value->base_known = true;
    }
    uint32_t ticks = ticks_at(value, policy->now_ms);
    if (ticks > reuse_now(value->reuse))
        reuse_advance(value->reuse, ticks);
    /* It has a span since it was made. */
    cells_open_span(policy, value->groups[policy->group]);
    value->began = true;
    value->came_back = false;
    value->branched = false;
    value->continues = false;
    value->deepest = 0;
    value->deepest_turn = 0;
    value->now++;
}

static void wait_aside(struct larder_policy *policy, uint32_t id)
{
    struct larder_policy_node *node = policy_node(policy, id);
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

/* Something is stored, or would be, behind `parent`. */
static void note_stored(const struct larder_policy *policy, const struct larder_policy_entry *entry)
{
    struct policy_value *value = policy->value;
    const struct reuse_sample *followed = reuse_find(value->reuse, entry->key);
    if (followed)
        note_return(value, entry->depth, followed->turn, false);
    if (entry->parent == LARDER_POLICY_NONE || !larder_policy_has(policy, entry->parent))
        return;
    const struct larder_policy_node *above = policy_node(policy, entry->parent);
    if (!(above->flags & POLICY_PENDING)) {
        value->continues = true;
        value->continued_turn = above->turn;
    }
}

static void value_use(struct larder_policy *policy, uint32_t id)
{
    struct larder_policy_node *node = policy_node(policy, id);
    if (node->flags & POLICY_PENDING)
        return;
    if (node->flags & POLICY_LISTED)
        cells_remove(policy, cells_of(policy, id), id);
    if (node->uses < UINT8_MAX)
        node->uses++;
    note_return(policy->value, policy_describe(policy, id).depth, node->turn,
                (node->flags & POLICY_GREW) != 0);
    wait_aside(policy, id);
}

/* It is no leaf any more. */
static void hide_parent(struct larder_policy *policy, uint32_t parent)
{
    if (parent == LARDER_POLICY_NONE || !larder_policy_has(policy, parent))
        return;
    const struct larder_policy_node *above = policy_node(policy, parent);
    if ((above->flags & POLICY_LISTED) && !(above->flags & POLICY_PENDING))
        cells_remove(policy, cells_of(policy, parent), parent);
}

static void value_insert(struct larder_policy *policy, uint32_t id)
{
    const struct larder_policy_entry entry = policy_describe(policy, id);
    hide_parent(policy, entry.parent);
    note_stored(policy, &entry);
    policy_node(policy, id)->flags |= POLICY_NEW;
    wait_aside(policy, id);
}

static bool is_tail(const struct larder_policy *policy, const struct larder_policy_entry *entry)
{
    if (entry->parent == LARDER_POLICY_NONE || !larder_policy_has(policy, entry->parent))
        return entry->token_count < policy->value->token_count_max;
    return entry->token_count < policy_describe(policy, entry->parent).token_count;
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

/* `node` need not be that of an entry in the tier. */
static uint32_t class_of(const struct larder_policy *policy, const struct larder_policy_node *node,
                         const struct larder_policy_entry *entry)
{
    if (is_tail(policy, entry))
        return CLASS_TAIL;
    if (node->flags & POLICY_SHARED)
        return CLASS_SHARED + (node->uses > 15 ? 3 : node->uses > 7 ? 2 : node->uses > 3 ? 1 : 0);
    uint32_t position = entry->depth < 8 ? 0 : entry->depth < 32 ? 1 : 2;
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
    return level < 0 ? 0 : level >= (int)CELLS_WORTHS ? CELLS_WORTHS - 1 : (uint32_t)level;
}

/* Of the conversation that the request goes on with, by what is known so far. */
static uint32_t turn_of(const struct policy_value *value)
{
    if (!value->came_back)
        return value->continues ? value->continued_turn : 0;
    if (value->branched)
        return 0;
    return value->deepest_turn < TURN_MAX ? value->deepest_turn + 1 : TURN_MAX;
}

static uint8_t lane_of(struct policy_value *value, uint32_t class, float worth)
{
    return (uint8_t)(class * CELLS_WORTHS + worth_level(value, worth));
}

/* Among the candidates, if it is one and is not there yet. */
static void show_leaf(struct larder_policy *policy, uint32_t id)
{
    const struct larder_policy_node *node = policy_node(policy, id);
    if (*policy_child_count(policy, id) == 0 && !(node->flags & (POLICY_LISTED | POLICY_HELD)))
        cells_add(policy, cells_of(policy, id), id, policy->value->now);
}

static void settle(struct larder_policy *policy, uint32_t id, uint32_t turn)
{
    struct policy_value *value = policy->value;
    struct larder_policy_node *node = policy_node(policy, id);
    const struct larder_policy_entry entry = policy_describe(policy, id);
    policy_list_remove(policy, &value->pending, id);
    node->flags &= (uint8_t)~POLICY_PENDING;
    if (entry.token_count > value->token_count_max)
        value->token_count_max = entry.token_count;
    if (!(node->flags & POLICY_NEW) && value->branched && entry.depth <= value->deepest)
        node->flags |= POLICY_SHARED;
    node->turn = (uint8_t)turn;
    node->used = reuse_now(value->reuse);
    uint32_t class = class_of(policy, node, &entry);
    if ((node->flags & POLICY_NEW) && entry.parent != LARDER_POLICY_NONE &&
        larder_policy_has(policy, entry.parent) && !is_tail(policy, &entry) &&
        policy_describe(policy, entry.parent).depth < entry.depth)
        policy_node(policy, entry.parent)->flags |= POLICY_GREW;
    node->flags &= (uint8_t)~POLICY_NEW;
    node->list = lane_of(value, class, policy_worth(&entry));
    reuse_use(value->reuse, entry.key, class, node->turn);
    show_leaf(policy, id);
}

static void value_end(struct larder_policy *policy)
{
    struct policy_value *value = policy->value;
    uint32_t turn = turn_of(value);
    while (value->pending.first != LARDER_POLICY_NONE)
        settle(policy, value->pending.first, turn);
    value->now++;
}

static void value_hold(struct larder_policy *policy, uint32_t id)
{
    const struct larder_policy_node *node = policy_node(policy, id);
    if ((node->flags & POLICY_LISTED) && !(node->flags & POLICY_PENDING))
        cells_remove(policy, cells_of(policy, id), id);
}

static void value_leave(struct larder_policy *policy, uint32_t id, bool evicted)
{
    (void)evicted;
    const struct larder_policy_node *node = policy_node(policy, id);
    if (node->flags & POLICY_PENDING)
        policy_list_remove(policy, &policy->value->pending, id);
    else if (node->flags & POLICY_LISTED)
        cells_remove(policy, cells_of(policy, id), id);
}

/* --- victims --------------------------------------------------------------------------------- */

/* The group whose next victim is worth least; group_max: none has any. */
static uint32_t least_group(const struct larder_policy *policy)
{
    struct policy_value *value = policy->value;
    uint32_t least = policy->group_max;
    float least_value = 0;
    for (uint32_t group = 0; group < policy->group_max; group++) {
        if (!value->groups[group] || value->groups[group]->leaf_count == 0)
            continue;
        float next = cells_best(value->groups[group], value->now)->value;
        if (least == policy->group_max || next < least_value) {
            least = group;
            least_value = next;
        }
    }
    return least;
}

static uint32_t victim_of_all(struct larder_policy *policy,
                              bool (*may_go)(void *context, uint32_t id), void *context)
{
    struct policy_value *value = policy->value;
    uint32_t least = least_group(policy);
    if (least == policy->group_max)
        return LARDER_POLICY_NONE;
    float best_value;
    struct cells *cells = value->groups[least];
    uint32_t best = cells_victim(policy, cells, value->now, &best_value, may_go, context);
    if (best != LARDER_POLICY_NONE && best_value == cells->best.value)
        return best;
    /* What is worth least may not go. */
    for (uint32_t group = 0; group < policy->group_max; group++) {
        cells = value->groups[group];
        if (group == least || !cells || cells->leaf_count == 0)
            continue;
        float other_value;
        uint32_t other = cells_victim(policy, cells, value->now, &other_value, may_go, context);
        if (other != LARDER_POLICY_NONE &&
            (best == LARDER_POLICY_NONE || other_value < best_value)) {
            best = other;
            best_value = other_value;
        }
    }
    return best;
}

static uint32_t value_victim(struct larder_policy *policy, uint32_t group,
                             bool (*may_go)(void *context, uint32_t id), void *context)
{
    struct policy_value *value = policy->value;
    uint32_t id = LARDER_POLICY_NONE;
    float unused;
    if (group == LARDER_POLICY_ALL)
        id = victim_of_all(policy, may_go, context);
    else if (value->groups[group])
        id = cells_victim(policy, value->groups[group], value->now, &unused, may_go, context);
    if (id == LARDER_POLICY_NONE && (group == LARDER_POLICY_ALL || group == policy->group))
        id = cells_last(policy, &value->pending, may_go, context);
    return id;
}

static double value_least(struct larder_policy *policy, uint32_t group)
{
    struct cells *cells = policy->value->groups[group];
    return cells && cells->leaf_count > 0 ? cells_best(cells, policy->value->now)->value : HUGE_VAL;
}

static double value_worth(const struct larder_policy *policy, uint32_t id)
{
    const struct reuse *reuse = policy->value->reuse;
    const struct larder_policy_node *node = policy_node(policy, id);
    uint32_t age = reuse_age(reuse_now(reuse) - node->used);
    return reuse_density(reuse, node->list / CELLS_WORTHS, age) *
           (float)(1u << node->list % CELLS_WORTHS);
}

/* Worth more than the next victim? Its class is what is known of the request so far. */
static bool value_admits(struct larder_policy *policy, uint32_t id, bool rooted)
{
    struct policy_value *value = policy->value;
    const struct larder_policy_entry entry = policy_describe(policy, id);
    note_stored(policy, &entry);
    const struct larder_policy_node node = {.turn = (uint8_t)turn_of(value)};
    uint32_t class = class_of(policy, &node, &entry);
    uint32_t worth = worth_level(value, policy_worth(&entry));
    uint32_t least = least_group(policy);
    if (rooted && (least == policy->group_max ||
                   reuse_density(value->reuse, class, 0) * (float)(1u << worth) >=
                       value->groups[least]->best.value))
        return true;
    reuse_use(value->reuse, entry.key, class, node.turn);
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

static int load_learned(struct policy_value *value, const uint8_t *in, size_t bytes)
{
    struct state_head head = {0};
    if (bytes >= sizeof(head))
        memcpy(&head, in, sizeof(head));
    if (head.magic != STATE_MAGIC || head.version != STATE_VERSION || head.worth_known > 1 ||
        head.worth_base < -1 || head.worth_base > 255)
        return larder_fail(LARDER_ECORRUPT, "eviction policy: the saved state is not one of this "
                                            "release; it starts to learn anew");
    LARDER_TRY(reuse_load(value->reuse, in + sizeof(head), bytes - sizeof(head)));
    if (reuse_now(value->reuse) > START_TICKS) {
        value->ticks_dropped = reuse_now(value->reuse) - START_TICKS;
        reuse_rewind(value->reuse, value->ticks_dropped);
    }
    value->worth_base = head.worth_base;
    value->worth_known = head.worth_known != 0;
    value->token_count_max = head.token_count_max;
    return 0;
}

static int value_load(struct larder_policy *policy, const uint8_t *in, size_t bytes,
                      uint64_t now_ms)
{
    struct policy_value *value = policy->value;
    int err = bytes > 0 ? load_learned(value, in, bytes) : 0;
    if (err == 0 && bytes == 0)
        reuse_advance(value->reuse, START_TICKS);
    if (err < 0)
        return err;
    uint64_t past_ms = (uint64_t)reuse_now(value->reuse) * REUSE_TICK_MS;
    value->base_ms = now_ms > past_ms ? now_ms - past_ms : 0;
    value->base_known = true;
    value->loaded = true;
    return 0;
}

static uint64_t value_recall(const struct larder_policy *policy, uint32_t id)
{
    const struct larder_policy_node *node = policy_node(policy, id);
    const struct recalled recalled = {
        .used_ticks = node->used,
        .uses = node->uses,
        .turn = node->turn,
        .flags = node->flags & (POLICY_IN_TIER | POLICY_GREW | POLICY_SHARED),
    };
    uint64_t bits;
    memcpy(&bits, &recalled, sizeof(bits));
    return bits;
}

static uint64_t value_idle_ms(const struct larder_policy *policy, uint32_t id)
{
    const uint32_t now = reuse_now(policy->value->reuse);
    const uint32_t used = policy_node(policy, id)->used;
    return used < now ? (uint64_t)(now - used) * REUSE_TICK_MS : 0;
}

static void value_restore(struct larder_policy *policy, uint32_t id, uint64_t bits,
                          uint64_t stored_ms)
{
    struct policy_value *value = policy->value;
    struct larder_policy_node *node = policy_node(policy, id);
    const struct larder_policy_entry entry = policy_describe(policy, id);
    struct recalled recalled;
    memcpy(&recalled, &bits, sizeof(recalled));
    uint32_t used = ticks_at(value, stored_ms);
    if (bits != 0)
        used = recalled.used_ticks > value->ticks_dropped
                   ? recalled.used_ticks - value->ticks_dropped
                   : 0;
    uint32_t now_ticks = reuse_now(value->reuse);
    node->used = used < now_ticks ? used : now_ticks;
    node->uses = recalled.uses < UINT8_MAX ? (uint8_t)recalled.uses : UINT8_MAX;
    node->turn = recalled.turn < TURN_MAX ? recalled.turn : TURN_MAX;
    node->flags |= recalled.flags & (POLICY_GREW | POLICY_SHARED);
    node->list = lane_of(value, class_of(policy, node, &entry), policy_worth(&entry));
    hide_parent(policy, entry.parent);
    show_leaf(policy, id);
}

static size_t value_bytes(const struct larder_policy *policy)
{
    size_t bytes = sizeof(struct policy_value) + reuse_bytes(policy->value->reuse);
    for (uint32_t i = 0; i < policy->group_max; i++) {
        bytes += sizeof(struct cells *);
        if (policy->value->groups[i])
            bytes += cells_bytes(policy->value->groups[i]);
    }
    return bytes;
}

const struct policy_ops policy_value_ops = {
    .name = "value",
    .knows_groups = true,
    .open = value_open,
    .close = value_close,
    .make_group = value_make_group,
    .begin = value_begin,
    .end = value_end,
    .insert = value_insert,
    .use = value_use,
    .victim = value_victim,
    .hold = value_hold,
    .release = show_leaf,
    .least = value_least,
    .worth = value_worth,
    .leave = value_leave,
    .bared = show_leaf,
    .bytes = value_bytes,
    .resize = value_resize,
    .admits = value_admits,
    .state_bytes_max = value_state_bytes_max,
    .save = value_save,
    .load = value_load,
    .recall = value_recall,
    .idle_ms = value_idle_ms,
    .restore = value_restore,
};
