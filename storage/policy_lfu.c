/* SPDX-License-Identifier: Apache-2.0 */
/* policy_lfu.c - least frequently used: a list for each number of uses, the least recent of the
 * least used first. Counts stop at the last list and end with an entry's stay.
 */
#include "base/bytes.h"
#include "storage/policy_priv.h"

static struct policy_list *list_of(struct larder_policy *policy, uint32_t id)
{
    return &policy->by_uses[policy_node(policy, id)->list];
}

static void lfu_insert(struct larder_policy *policy, uint32_t id)
{
    policy_list_append_recent(policy, list_of(policy, id), id);
}

static void lfu_use(struct larder_policy *policy, uint32_t id)
{
    policy_list_remove(policy, list_of(policy, id), id);
    struct larder_policy_node *node = policy_node(policy, id);
    if (node->list + 1u < LARDER_COUNT_OF(policy->by_uses))
        node->list++;
    policy_list_append(policy, list_of(policy, id), id);
}

static uint32_t lfu_victim(struct larder_policy *policy, uint32_t group,
                           bool (*may_go)(void *context, uint32_t id), void *context)
{
    (void)group;
    for (size_t i = 0; i < LARDER_COUNT_OF(policy->by_uses); i++) {
        uint32_t id = policy_list_victim(policy, &policy->by_uses[i], may_go, context);
        if (id != LARDER_POLICY_NONE)
            return id;
    }
    return LARDER_POLICY_NONE;
}

static void lfu_leave(struct larder_policy *policy, uint32_t id, bool evicted)
{
    (void)evicted;
    policy_list_remove(policy, list_of(policy, id), id);
}

const struct policy_ops policy_lfu_ops = {
    .name = "lfu",
    .counts_requests = true,
    .insert = lfu_insert,
    .use = lfu_use,
    .victim = lfu_victim,
    .leave = lfu_leave,
};
