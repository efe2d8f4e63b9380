/* SPDX-License-Identifier: Apache-2.0 */
/* policy_s3fifo.c - S3-FIFO (Yang et al., SOSP 2023): a small queue for what is new, a main queue
 * for what was used again or came back soon, keys of what left the small queue unused.
 */
#include <errno.h>

#include "base/error.h"
#include "base/mem.h"
#include "storage/policy_ghost.h"
#include "storage/policy_priv.h"

#define USES_MAX 3

enum queue { SMALL, MAIN };

struct policy_adaptive {
    struct policy_list queues[2];
    struct ghost_list ghosts;
    uint32_t small_max;
};

static int s3fifo_open(struct larder_policy *policy)
{
    struct policy_adaptive *s3 = larder_alloc_zero(1, sizeof(*s3));
    if (!s3)
        return larder_fail(-ENOMEM, "eviction policy: no memory");
    s3->small_max = policy->capacity_entries / 10;
    int err = ghost_open(&s3->ghosts, policy->capacity_entries);
    if (err < 0) {
        larder_free(s3);
        return err;
    }
    policy->adaptive = s3;
    return 0;
}

static void s3fifo_close(struct larder_policy *policy)
{
    ghost_close(&policy->adaptive->ghosts);
    larder_free(policy->adaptive);
}

static void s3fifo_insert(struct larder_policy *policy, uint32_t id)
{
    struct policy_adaptive *s3 = policy->adaptive;
    struct larder_policy_node *node = policy_node(policy, id);
    bool known = ghost_take(&s3->ghosts, policy_describe(policy, id).key);
    node->list = known ? MAIN : SMALL;
    policy_list_append(policy, &s3->queues[node->list], id);
}

static void s3fifo_use(struct larder_policy *policy, uint32_t id)
{
    struct larder_policy_node *node = policy_node(policy, id);
    if (node->uses < USES_MAX)
        node->uses++;
}

static void requeue(struct larder_policy *policy, uint32_t id, enum queue queue)
{
    struct larder_policy_node *node = policy_node(policy, id);
    policy_list_remove(policy, &policy->adaptive->queues[node->list], id);
    node->list = (uint8_t)queue;
    policy_list_append(policy, &policy->adaptive->queues[queue], id);
}

/* Moves on what is not to go from the small queue. */
static uint32_t small_victim(struct larder_policy *policy, bool (*may_go)(void *, uint32_t),
                             void *context)
{
    struct policy_list *small = &policy->adaptive->queues[SMALL];
    for (uint32_t left = small->count; left > 0; left--) {
        uint32_t id = small->first;
        struct larder_policy_node *node = policy_node(policy, id);
        if (node->uses > 0) {
            node->uses = 0;
            requeue(policy, id, MAIN);
        } else if (policy_may_go(policy, id, may_go, context)) {
            return id;
        } else {
            requeue(policy, id, SMALL);
        }
    }
    return LARDER_POLICY_NONE;
}

static uint32_t main_victim(struct larder_policy *policy, bool (*may_go)(void *, uint32_t),
                            void *context)
{
    struct policy_list *main_queue = &policy->adaptive->queues[MAIN];
    uint32_t rounds = main_queue->count * (USES_MAX + 1);
    for (uint32_t left = rounds; left > 0; left--) {
        uint32_t id = main_queue->first;
        struct larder_policy_node *node = policy_node(policy, id);
        if (node->uses > 0)
            node->uses--;
        else if (policy_may_go(policy, id, may_go, context))
            return id;
        requeue(policy, id, MAIN);
    }
    return LARDER_POLICY_NONE;
}

static uint32_t s3fifo_victim(struct larder_policy *policy, uint32_t group,
                              bool (*may_go)(void *, uint32_t), void *context)
{
    (void)group;
    uint32_t id = LARDER_POLICY_NONE;
    if (policy->adaptive->queues[SMALL].count >= policy->adaptive->small_max)
        id = small_victim(policy, may_go, context);
    if (id == LARDER_POLICY_NONE)
        id = main_victim(policy, may_go, context);
    if (id == LARDER_POLICY_NONE)
        id = small_victim(policy, may_go, context);
    return id;
}

static void s3fifo_leave(struct larder_policy *policy, uint32_t id, bool evicted)
{
    const struct larder_policy_node *node = policy_node(policy, id);
    if (evicted && node->list == SMALL)
        ghost_add(&policy->adaptive->ghosts, policy_describe(policy, id).key);
    policy_list_remove(policy, &policy->adaptive->queues[node->list], id);
}

static size_t s3fifo_bytes(const struct larder_policy *policy)
{
    return sizeof(*policy->adaptive) + ghost_bytes(&policy->adaptive->ghosts);
}

const struct policy_ops policy_s3fifo_ops = {
    .name = "s3fifo",
    .counts_requests = true,
    .open = s3fifo_open,
    .close = s3fifo_close,
    .insert = s3fifo_insert,
    .use = s3fifo_use,
    .victim = s3fifo_victim,
    .leave = s3fifo_leave,
    .bytes = s3fifo_bytes,
};
