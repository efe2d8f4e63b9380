/* SPDX-License-Identifier: Apache-2.0 */
/* policy_lru.c - two policies that are one list: first in, first out; least recently used.
 *
 * What may not go now (a child in the tier, a lease) and stands first goes to the other end. By
 * recency that never happens to a chain, since its uses go from its end to its start.
 */
#include "storage/policy_priv.h"

static void lru_insert(struct larder_policy *policy, uint32_t id)
{
    policy_list_append_recent(policy, &policy->list, id);
}

static void fifo_insert(struct larder_policy *policy, uint32_t id)
{
    policy_list_append(policy, &policy->list, id);
}

static void fifo_use(struct larder_policy *policy, uint32_t id)
{
    (void)policy;
    (void)id;
}

static void lru_use(struct larder_policy *policy, uint32_t id)
{
    policy_list_remove(policy, &policy->list, id);
    policy_list_append(policy, &policy->list, id);
}

static uint32_t list_victim(struct larder_policy *policy,
                            bool (*may_go)(void *context, uint32_t id), void *context)
{
    return policy_list_victim(policy, &policy->list, may_go, context);
}

static void list_leave(struct larder_policy *policy, uint32_t id, bool evicted)
{
    (void)evicted;
    policy_list_remove(policy, &policy->list, id);
}

const struct policy_ops policy_fifo_ops = {
    .name = "fifo",
    .insert = fifo_insert,
    .use = fifo_use,
    .victim = list_victim,
    .leave = list_leave,
};

const struct policy_ops policy_lru_ops = {
    .name = "lru",
    .insert = lru_insert,
    .use = lru_use,
    .victim = list_victim,
    .leave = list_leave,
};
