/* SPDX-License-Identifier: Apache-2.0 */
/* policy.c - the bookkeeping that all policies share: who is in the tier, chains, lists. */
#include "storage/policy.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "storage/policy_priv.h"

static const struct policy_ops *const policies[] = {
    &policy_value_ops, &policy_lru_ops,    &policy_fifo_ops,
    &policy_lfu_ops,   &policy_s3fifo_ops, &policy_arc_ops,
};

const char *larder_policy_name(uint32_t index)
{
    return index < LARDER_COUNT_OF(policies) ? policies[index]->name : NULL;
}

static const struct policy_ops *find_ops(const char *name)
{
    if (!name)
        return policies[0];
    for (size_t i = 0; i < LARDER_COUNT_OF(policies); i++) {
        if (strcmp(name, policies[i]->name) == 0)
            return policies[i];
    }
    return NULL;
}

bool larder_policy_knows_groups(const char *name)
{
    const struct policy_ops *ops = find_ops(name);
    return ops && ops->knows_groups;
}

int larder_policy_open(struct larder_policy **out, const struct larder_policy_options *options)
{
    *out = NULL;
    if (options->capacity_entries == 0)
        return larder_fail(-EINVAL, "capacity_entries=0; a tier holds at least one entry");
    const struct policy_ops *ops = find_ops(options->name);
    if (!ops)
        return larder_fail(-EINVAL,
                           "policy \"%s\" is not known; use value, lru, fifo, lfu, s3fifo or arc",
                           options->name);
    if (options->group_max != 1 && !ops->knows_groups)
        return larder_fail(-EINVAL, "policy \"%s\" knows one group only; use value, lru or fifo",
                           ops->name);
    struct larder_policy *policy = larder_alloc_zero(1, sizeof(*policy));
    if (!policy)
        return larder_fail(-ENOMEM, "eviction policy: no memory");
    policy->ops = ops;
    policy->home = options->home;
    policy->capacity_entries = options->capacity_entries;
    policy->group_max = options->group_max;
    policy->holes = options->holes;
    int err = ops->open ? ops->open(policy) : 0;
    if (err < 0) {
        larder_free(policy);
        return err;
    }
    *out = policy;
    return 0;
}

void larder_policy_close(struct larder_policy *policy)
{
    if (!policy)
        return;
    if (policy->ops->close)
        policy->ops->close(policy);
    larder_free(policy);
}

void larder_policy_resize(struct larder_policy *policy, uint32_t capacity_entries)
{
    policy->capacity_entries = capacity_entries ? capacity_entries : 1;
    if (policy->ops->resize)
        policy->ops->resize(policy);
}

uint32_t larder_policy_capacity(const struct larder_policy *policy)
{
    return policy->capacity_entries;
}

int larder_policy_expect(struct larder_policy *policy, uint32_t group)
{
    assert(group < policy->group_max);
    return policy->ops->make_group ? policy->ops->make_group(policy, group) : 0;
}

int larder_policy_begin(struct larder_policy *policy, uint32_t group, uint64_t now_ms)
{
    assert(!policy->in_request);
    assert(group < policy->group_max);
    policy->request++;
    policy->group = group;
    if (now_ms > policy->now_ms)
        policy->now_ms = now_ms;
    LARDER_TRY(larder_policy_expect(policy, group));
    policy->in_request = true;
    if (policy->ops->begin)
        policy->ops->begin(policy);
    return 0;
}

void larder_policy_end(struct larder_policy *policy)
{
    assert(policy->in_request);
    policy->in_request = false;
    if (policy->ops->end)
        policy->ops->end(policy);
}

static void enter(struct larder_policy *policy, uint32_t id)
{
    assert(id != LARDER_POLICY_NONE);
    struct larder_policy_node *node = policy_node(policy, id);
    assert(!(node->flags & POLICY_IN_TIER));
    const struct larder_policy_entry entry = policy_describe(policy, id);
    assert(entry.group < policy->group_max);
    assert(entry.parent != id);
    *node = (struct larder_policy_node){.flags = POLICY_IN_TIER};
    if (policy->ops->counts_requests)
        node->used = policy->request;
    if (entry.parent != LARDER_POLICY_NONE)
        ++*policy_child_count(policy, entry.parent);
    policy->count++;
}

void larder_policy_insert(struct larder_policy *policy, uint32_t id)
{
    assert(policy->in_request);
    enter(policy, id);
    policy->ops->insert(policy, id);
}

bool larder_policy_admits(struct larder_policy *policy, uint32_t id, bool rooted)
{
    assert(policy->in_request);
    assert(!larder_policy_has(policy, id));
    return policy->ops->admits ? policy->ops->admits(policy, id, rooted) : rooted;
}

bool larder_policy_has(const struct larder_policy *policy, uint32_t id)
{
    const struct larder_policy_node *node = policy_node(policy, id);
    return node && (node->flags & POLICY_IN_TIER);
}

void larder_policy_use(struct larder_policy *policy, uint32_t id)
{
    assert(policy->in_request);
    assert(larder_policy_has(policy, id));
    policy->ops->use(policy, id);
    if (policy->ops->counts_requests)
        policy_node(policy, id)->used = policy->request;
}

uint32_t larder_policy_victim(struct larder_policy *policy, uint32_t group,
                              bool (*may_go)(void *context, uint32_t id), void *context)
{
    assert(group < policy->group_max || group == LARDER_POLICY_ALL);
    uint32_t id = policy->ops->victim(policy, group, may_go, context);
    assert(id == LARDER_POLICY_NONE || policy_may_go(policy, id, NULL, NULL));
    return id;
}

double larder_policy_least(struct larder_policy *policy, uint32_t group)
{
    assert(policy->ops->least);
    if (group != LARDER_POLICY_ALL)
        return policy->ops->least(policy, group);
    double least = HUGE_VAL;
    for (group = 0; group < policy->group_max; group++) {
        double next = policy->ops->least(policy, group);
        least = next < least ? next : least;
    }
    return least;
}

double larder_policy_worth(const struct larder_policy *policy, uint32_t id)
{
    assert(larder_policy_has(policy, id));
    assert(policy->ops->worth);
    return policy->ops->worth(policy, id);
}

void larder_policy_hold(struct larder_policy *policy, uint32_t id)
{
    assert(larder_policy_has(policy, id));
    struct larder_policy_node *node = policy_node(policy, id);
    if (node->flags & POLICY_HELD)
        return;
    node->flags |= POLICY_HELD;
    policy->ops->hold(policy, id);
}

void larder_policy_release(struct larder_policy *policy, uint32_t id)
{
    assert(larder_policy_has(policy, id));
    struct larder_policy_node *node = policy_node(policy, id);
    if (!(node->flags & POLICY_HELD))
        return;
    node->flags &= (uint8_t)~POLICY_HELD;
    policy->ops->release(policy, id);
}

static void leave(struct larder_policy *policy, uint32_t id, bool evicted)
{
    assert(larder_policy_has(policy, id));
    uint32_t parent = policy_describe(policy, id).parent;
    policy->ops->leave(policy, id, evicted);
    *policy_node(policy, id) = (struct larder_policy_node){0};
    policy->count--;
    if (parent == LARDER_POLICY_NONE)
        return;
    uint32_t *child_count = policy_child_count(policy, parent);
    assert(*child_count > 0);
    --*child_count;
    if (*child_count == 0 && larder_policy_has(policy, parent) && policy->ops->bared)
        policy->ops->bared(policy, parent);
}

void larder_policy_evict(struct larder_policy *policy, uint32_t id)
{
    leave(policy, id, true);
}

void larder_policy_remove(struct larder_policy *policy, uint32_t id)
{
    leave(policy, id, false);
}

uint32_t larder_policy_count(const struct larder_policy *policy)
{
    return policy->count;
}

size_t larder_policy_bytes(const struct larder_policy *policy)
{
    return sizeof(*policy) + (policy->ops->bytes ? policy->ops->bytes(policy) : 0);
}

/* --- across a restart ------------------------------------------------------------------------ */

size_t larder_policy_state_bytes_max(const struct larder_policy *policy)
{
    return policy->ops->save ? policy->ops->state_bytes_max(policy) : 0;
}

size_t larder_policy_save(const struct larder_policy *policy, void *out)
{
    return policy->ops->save ? policy->ops->save(policy, out) : 0;
}

int larder_policy_load(struct larder_policy *policy, const void *in, size_t bytes, uint64_t now_ms)
{
    assert(policy->count == 0);
    assert(policy->request == 0);
    policy->now_ms = now_ms;
    if (policy->ops->load)
        return policy->ops->load(policy, in, bytes, now_ms);
    return bytes == 0 ? 0
                      : larder_fail(LARDER_ECORRUPT, "eviction policy: %s keeps no state",
                                    policy->ops->name);
}

uint64_t larder_policy_recall(const struct larder_policy *policy, uint32_t id)
{
    assert(larder_policy_has(policy, id));
    return policy->ops->recall ? policy->ops->recall(policy, id) : 0;
}

uint64_t larder_policy_idle_ms(const struct larder_policy *policy, uint32_t id)
{
    assert(larder_policy_has(policy, id));
    return policy->ops->idle_ms ? policy->ops->idle_ms(policy, id) : 0;
}

int larder_policy_restore(struct larder_policy *policy, uint32_t id, uint64_t recalled,
                          uint64_t stored_ms)
{
    if (!policy->in_request)
        policy->request++; /* none of them is of the request of another */
    LARDER_TRY(larder_policy_expect(policy, policy_describe(policy, id).group));
    enter(policy, id);
    if (policy->ops->restore)
        policy->ops->restore(policy, id, recalled, stored_ms);
    else
        policy->ops->insert(policy, id);
    return 0;
}

/* --- lists ----------------------------------------------------------------------------------- */

static void insert_before(struct larder_policy *policy, struct policy_list *list, uint32_t id,
                          uint32_t next)
{
    struct larder_policy_node *node = policy_node(policy, id);
    assert(!(node->flags & POLICY_LISTED));
    node->flags |= POLICY_LISTED;
    node->next = next;
    node->prev = next ? policy_node(policy, next)->prev : list->last;
    if (node->prev == LARDER_POLICY_NONE)
        list->first = id;
    else
        policy_node(policy, node->prev)->next = id;
    if (next == LARDER_POLICY_NONE)
        list->last = id;
    else
        policy_node(policy, next)->prev = id;
    list->count++;
}

void policy_list_append(struct larder_policy *policy, struct policy_list *list, uint32_t id)
{
    insert_before(policy, list, id, LARDER_POLICY_NONE);
}

void policy_list_prepend(struct larder_policy *policy, struct policy_list *list, uint32_t id)
{
    insert_before(policy, list, id, list->first);
}

void policy_list_append_recent(struct larder_policy *policy, struct policy_list *list, uint32_t id)
{
    const struct larder_policy_node *node = policy_node(policy, id);
    uint32_t parent = policy_describe(policy, id).parent;
    bool behind = parent != LARDER_POLICY_NONE && larder_policy_has(policy, parent);
    if (behind) {
        const struct larder_policy_node *above = policy_node(policy, parent);
        behind = (above->flags & POLICY_LISTED) && above->used == node->used &&
                 above->list == node->list;
    }
    insert_before(policy, list, id, behind ? parent : LARDER_POLICY_NONE);
}

void policy_list_remove(struct larder_policy *policy, struct policy_list *list, uint32_t id)
{
    struct larder_policy_node *node = policy_node(policy, id);
    assert(node->flags & POLICY_LISTED);
    node->flags &= (uint8_t)~POLICY_LISTED;
    if (node->prev == LARDER_POLICY_NONE)
        list->first = node->next;
    else
        policy_node(policy, node->prev)->next = node->next;
    if (node->next == LARDER_POLICY_NONE)
        list->last = node->prev;
    else
        policy_node(policy, node->next)->prev = node->prev;
    list->count--;
}

uint32_t policy_list_victim(struct larder_policy *policy, struct policy_list *list,
                            bool (*may_go)(void *context, uint32_t id), void *context)
{
    for (uint32_t left = list->count; left > 0; left--) {
        uint32_t id = list->first;
        if (policy_may_go(policy, id, may_go, context))
            return id;
        policy_list_remove(policy, list, id);
        policy_list_append(policy, list, id);
    }
    return LARDER_POLICY_NONE;
}
