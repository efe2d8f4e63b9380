/* SPDX-License-Identifier: Apache-2.0 */
/* policy_arc.c - ARC (Megiddo and Modha, FAST 2003): what was used once and what was used more than
 * once, in two lists by recency; keys of what left each say which of the two deserves more room.
 *
 * Unlike in the paper, room is made before it is known for what: a victim is chosen by the balance
 * as the last insertion left it.
 */
#include <errno.h>

#include "base/error.h"
#include "base/mem.h"
#include "storage/policy_ghost.h"
#include "storage/policy_priv.h"

enum list { ONCE, OFTEN };

struct policy_adaptive {
    struct policy_list lists[2];
    struct ghost_list ghosts[2];
    uint32_t once_target;
};

static int arc_open(struct larder_policy *policy)
{
    struct policy_adaptive *arc = larder_alloc_zero(1, sizeof(*arc));
    if (!arc)
        return larder_fail(-ENOMEM, "eviction policy: no memory");
    int err = ghost_open(&arc->ghosts[ONCE], policy->capacity_entries);
    if (err == 0)
        err = ghost_open(&arc->ghosts[OFTEN], policy->capacity_entries);
    if (err < 0) {
        ghost_close(&arc->ghosts[ONCE]);
        larder_free(arc);
        return err;
    }
    policy->adaptive = arc;
    return 0;
}

static void arc_close(struct larder_policy *policy)
{
    ghost_close(&policy->adaptive->ghosts[ONCE]);
    ghost_close(&policy->adaptive->ghosts[OFTEN]);
    larder_free(policy->adaptive);
}

static uint32_t at_least_one(uint32_t numerator, uint32_t denominator)
{
    return denominator && numerator > denominator ? numerator / denominator : 1;
}

static void arc_insert(struct larder_policy *policy, uint32_t id)
{
    struct policy_adaptive *arc = policy->adaptive;
    struct larder_policy_node *node = policy_node(policy, id);
    struct ghost_list *once = &arc->ghosts[ONCE];
    struct ghost_list *often = &arc->ghosts[OFTEN];
    uint64_t key = policy_describe(policy, id).key;
    node->list = OFTEN;
    if (ghost_has(once, key)) {
        uint32_t step = at_least_one(often->count, once->count);
        uint32_t room = policy->capacity_entries - arc->once_target;
        arc->once_target += step < room ? step : room;
        ghost_take(once, key);
    } else if (ghost_has(often, key)) {
        uint32_t step = at_least_one(once->count, often->count);
        arc->once_target -= step < arc->once_target ? step : arc->once_target;
        ghost_take(often, key);
    } else {
        node->list = ONCE;
    }
    policy_list_append_recent(policy, &arc->lists[node->list], id);
    while (arc->lists[ONCE].count + once->count > policy->capacity_entries && once->count)
        ghost_drop_oldest(once);
    while (policy->count + once->count + often->count > 2 * policy->capacity_entries &&
           often->count)
        ghost_drop_oldest(often);
}

static void arc_use(struct larder_policy *policy, uint32_t id)
{
    struct larder_policy_node *node = policy_node(policy, id);
    policy_list_remove(policy, &policy->adaptive->lists[node->list], id);
    node->list = OFTEN;
    policy_list_append(policy, &policy->adaptive->lists[OFTEN], id);
}

static uint32_t arc_victim(struct larder_policy *policy, uint32_t group,
                           bool (*may_go)(void *, uint32_t), void *context)
{
    (void)group;
    struct policy_adaptive *arc = policy->adaptive;
    enum list from = arc->lists[ONCE].count > arc->once_target ? ONCE : OFTEN;
    uint32_t id = policy_list_victim(policy, &arc->lists[from], may_go, context);
    if (id == LARDER_POLICY_NONE)
        id = policy_list_victim(policy, &arc->lists[!from], may_go, context);
    return id;
}

static void arc_leave(struct larder_policy *policy, uint32_t id, bool evicted)
{
    const struct larder_policy_node *node = policy_node(policy, id);
    if (evicted)
        ghost_add(&policy->adaptive->ghosts[node->list], policy_describe(policy, id).key);
    policy_list_remove(policy, &policy->adaptive->lists[node->list], id);
}

static size_t arc_bytes(const struct larder_policy *policy)
{
    return sizeof(*policy->adaptive) + ghost_bytes(&policy->adaptive->ghosts[ONCE]) +
           ghost_bytes(&policy->adaptive->ghosts[OFTEN]);
}

const struct policy_ops policy_arc_ops = {
    .name = "arc",
    .counts_requests = true,
    .open = arc_open,
    .close = arc_close,
    .insert = arc_insert,
    .use = arc_use,
    .victim = arc_victim,
    .leave = arc_leave,
    .bytes = arc_bytes,
};
