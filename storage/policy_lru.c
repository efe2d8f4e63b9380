/* SPDX-License-Identifier: Apache-2.0 */
/* policy_lru.c - two policies that are one list: first in, first out; least recently used.
 *
 * What may not go now (a child in the tier, a lease) and stands first goes to the other end. By
 * recency a parent leaves the list instead, and stands first when its last child has gone: it was
 * used before all that are in the list. Where a prompt is one request this never happens, since its
 * uses go from its end to its start.
 */
#include <errno.h>
#include <math.h>

#include "base/error.h"
#include "base/mem.h"
#include "storage/policy_priv.h"

static int list_open(struct larder_policy *policy)
{
    policy->lists = larder_alloc_zero(policy->group_max, sizeof(*policy->lists));
    return policy->lists ? 0 : larder_fail(-ENOMEM, "eviction policy: no memory");
}

static void list_close(struct larder_policy *policy)
{
    larder_free(policy->lists);
}

static struct policy_list *list_of(struct larder_policy *policy, uint32_t id)
{
    return &policy->lists[policy_describe(policy, id).group];
}

static void lru_insert(struct larder_policy *policy, uint32_t id)
{
    policy_list_append_recent(policy, list_of(policy, id), id);
}

static void fifo_insert(struct larder_policy *policy, uint32_t id)
{
    policy_list_append(policy, list_of(policy, id), id);
}

static void fifo_use(struct larder_policy *policy, uint32_t id)
{
    (void)policy;
    (void)id;
}

static void list_hold(struct larder_policy *policy, uint32_t id)
{
    if (policy_node(policy, id)->flags & POLICY_LISTED)
        policy_list_remove(policy, list_of(policy, id), id);
}

static void lru_use(struct larder_policy *policy, uint32_t id)
{
    list_hold(policy, id);
    if (!(policy_node(policy, id)->flags & POLICY_HELD))
        policy_list_append(policy, list_of(policy, id), id);
}

/* As if it had been used now. */
static void list_release(struct larder_policy *policy, uint32_t id)
{
    policy_list_append(policy, list_of(policy, id), id);
    policy_node(policy, id)->used = policy->request;
}

static void lru_bared(struct larder_policy *policy, uint32_t id)
{
    if (!(policy_node(policy, id)->flags & (POLICY_LISTED | POLICY_HELD)))
        policy_list_prepend(policy, list_of(policy, id), id);
}

static double list_least(struct larder_policy *policy, uint32_t group)
{
    uint32_t id = policy->lists[group].first;
    return id == LARDER_POLICY_NONE ? HUGE_VAL : policy_node(policy, id)->used;
}

static double list_worth(const struct larder_policy *policy, uint32_t id)
{
    return policy_node(policy, id)->used;
}

static uint32_t fifo_victim_of(struct larder_policy *policy, uint32_t group,
                               bool (*may_go)(void *context, uint32_t id), void *context)
{
    return policy_list_victim(policy, &policy->lists[group], may_go, context);
}

static uint32_t lru_victim_of(struct larder_policy *policy, uint32_t group,
                              bool (*may_go)(void *context, uint32_t id), void *context)
{
    struct policy_list *list = &policy->lists[group];
    while (!policy->holes && list->first && *policy_child_count(policy, list->first) > 0)
        policy_list_remove(policy, list, list->first);
    uint32_t id = list->first;
    while (id != LARDER_POLICY_NONE && !policy_may_go(policy, id, may_go, context))
        id = policy_node(policy, id)->next;
    return id;
}

typedef uint32_t victim_of_fn(struct larder_policy *policy, uint32_t group,
                              bool (*may_go)(void *context, uint32_t id), void *context);

/* Requests are counted over all groups. */
static uint32_t oldest_victim(struct larder_policy *policy, uint32_t group, victim_of_fn *victim_of,
                              bool (*may_go)(void *context, uint32_t id), void *context)
{
    if (group != LARDER_POLICY_ALL)
        return victim_of(policy, group, may_go, context);
    uint32_t best = LARDER_POLICY_NONE;
    for (group = 0; group < policy->group_max; group++) {
        if (best && list_least(policy, group) >= policy_node(policy, best)->used)
            continue;
        uint32_t id = victim_of(policy, group, may_go, context);
        if (id && (!best || policy_node(policy, id)->used < policy_node(policy, best)->used))
            best = id;
    }
    return best;
}

static uint32_t fifo_victim(struct larder_policy *policy, uint32_t group,
                            bool (*may_go)(void *context, uint32_t id), void *context)
{
    return oldest_victim(policy, group, fifo_victim_of, may_go, context);
}

static uint32_t lru_victim(struct larder_policy *policy, uint32_t group,
                           bool (*may_go)(void *context, uint32_t id), void *context)
{
    return oldest_victim(policy, group, lru_victim_of, may_go, context);
}

static void list_leave(struct larder_policy *policy, uint32_t id, bool evicted)
{
    (void)evicted;
    list_hold(policy, id);
}

static size_t list_bytes(const struct larder_policy *policy)
{
    return policy->group_max * sizeof(*policy->lists);
}

const struct policy_ops policy_fifo_ops = {
    .name = "fifo",
    .knows_groups = true,
    .counts_requests = true,
    .open = list_open,
    .close = list_close,
    .insert = fifo_insert,
    .use = fifo_use,
    .victim = fifo_victim,
    .hold = list_hold,
    .release = list_release,
    .least = list_least,
    .worth = list_worth,
    .leave = list_leave,
    .bytes = list_bytes,
};

const struct policy_ops policy_lru_ops = {
    .name = "lru",
    .knows_groups = true,
    .counts_requests = true,
    .open = list_open,
    .close = list_close,
    .insert = lru_insert,
    .use = lru_use,
    .victim = lru_victim,
    .hold = list_hold,
    .release = list_release,
    .least = list_least,
    .worth = list_worth,
    .leave = list_leave,
    .bared = lru_bared,
    .bytes = list_bytes,
};
