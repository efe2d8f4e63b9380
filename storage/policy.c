/* SPDX-License-Identifier: Apache-2.0 */
/* policy.c - the bookkeeping that all policies share: nodes by id, chains, lists. */
#include "storage/policy.h"

#include <assert.h>
#include <errno.h>
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

int larder_policy_open(struct larder_policy **out, const struct larder_policy_options *options)
{
    *out = NULL;
    if (options->capacity_entries == 0)
        return larder_fail(-EINVAL, "capacity_entries=0; a tier holds at least one entry");
    const struct policy_ops *ops = options->name ? NULL : policies[0];
    for (size_t i = 0; options->name && i < LARDER_COUNT_OF(policies); i++) {
        if (strcmp(options->name, policies[i]->name) == 0)
            ops = policies[i];
    }
    if (!ops)
        return larder_fail(-EINVAL,
                           "policy \"%s\" is not known; use value, lru, fifo, lfu, s3fifo or arc",
                           options->name);
    struct larder_policy *policy = larder_alloc_zero(1, sizeof(*policy));
    if (!policy)
        return larder_fail(-ENOMEM, "eviction policy: no memory");
    policy->ops = ops;
    policy->capacity_entries = options->capacity_entries;
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
    for (uint32_t i = 0; i < policy->chunk_count; i++)
        larder_free(policy->chunks[i]);
    larder_free(policy->chunks);
    larder_free(policy);
}

void larder_policy_begin(struct larder_policy *policy, uint64_t now_ms)
{
    assert(!policy->in_request);
    policy->in_request = true;
    policy->request++;
    if (now_ms > policy->now_ms)
        policy->now_ms = now_ms;
    if (policy->ops->begin)
        policy->ops->begin(policy);
}

void larder_policy_end(struct larder_policy *policy)
{
    assert(policy->in_request);
    policy->in_request = false;
    if (policy->ops->end)
        policy->ops->end(policy);
}

static int reach(struct larder_policy *policy, uint32_t id)
{
    assert(id <= LARDER_POLICY_ID_MAX);
    uint32_t chunk_count = id / POLICY_CHUNK_NODES + 1;
    if (chunk_count <= policy->chunk_count)
        return 0;
    struct policy_node **chunks =
        larder_realloc(policy->chunks, chunk_count * sizeof(struct policy_node *));
    if (!chunks)
        return larder_fail(-ENOMEM, "eviction policy: no memory for entry %u", id);
    policy->chunks = chunks;
    while (policy->chunk_count < chunk_count) {
        struct policy_node *nodes = larder_alloc_zero(POLICY_CHUNK_NODES, sizeof(*nodes));
        if (!nodes)
            return larder_fail(-ENOMEM, "eviction policy: no memory for entry %u", id);
        policy->chunks[policy->chunk_count++] = nodes;
    }
    return 0;
}

static int add_node(struct larder_policy *policy, const struct larder_policy_entry *entry)
{
    assert(entry->id != LARDER_POLICY_NONE);
    assert(entry->id != entry->parent);
    LARDER_TRY(reach(policy, entry->id));
    LARDER_TRY(reach(policy, entry->parent));
    struct policy_node *node = policy_node(policy, entry->id);
    assert(!(node->flags & POLICY_IN_TIER));
    uint32_t child_count = node->child_count; /* not 0 only where chains have holes */
    *node = (struct policy_node){
        .key = entry->key,
        .parent = entry->parent,
        .child_count = child_count,
        .request = policy->request,
        .worth = policy_worth(entry),
        .token_count = policy_clamp_u16(entry->token_count),
        .depth = policy_clamp_u16(entry->depth),
        .flags = POLICY_IN_TIER,
    };
    if (entry->parent != LARDER_POLICY_NONE)
        policy_node(policy, entry->parent)->child_count++;
    policy->count++;
    return 0;
}

int larder_policy_insert(struct larder_policy *policy, const struct larder_policy_entry *entry)
{
    assert(policy->in_request);
    LARDER_TRY(add_node(policy, entry));
    policy->ops->insert(policy, entry->id);
    return 0;
}

bool larder_policy_admits(struct larder_policy *policy, const struct larder_policy_entry *entry)
{
    assert(policy->in_request);
    if (policy->ops->admits)
        return policy->ops->admits(policy, entry);
    return entry->parent == LARDER_POLICY_NONE || larder_policy_has(policy, entry->parent);
}

bool larder_policy_has(const struct larder_policy *policy, uint32_t id)
{
    return id / POLICY_CHUNK_NODES < policy->chunk_count &&
           (policy_node(policy, id)->flags & POLICY_IN_TIER);
}

void larder_policy_use(struct larder_policy *policy, uint32_t id)
{
    assert(policy->in_request);
    assert(larder_policy_has(policy, id));
    policy->ops->use(policy, id);
    struct policy_node *node = policy_node(policy, id);
    node->request = policy->request;
}

uint32_t larder_policy_victim(struct larder_policy *policy,
                              bool (*may_go)(void *context, uint32_t id), void *context)
{
    uint32_t id = policy->ops->victim(policy, may_go, context);
    assert(id == LARDER_POLICY_NONE || policy_may_go(policy, id, NULL, NULL));
    return id;
}

static void leave(struct larder_policy *policy, uint32_t id, bool evicted)
{
    assert(larder_policy_has(policy, id));
    struct policy_node *node = policy_node(policy, id);
    policy->ops->leave(policy, id, evicted);
    node->flags = 0;
    policy->count--;
    uint32_t parent = node->parent;
    if (parent == LARDER_POLICY_NONE)
        return;
    struct policy_node *above = policy_node(policy, parent);
    assert(above->child_count > 0);
    above->child_count--;
    if (above->child_count == 0 && (above->flags & POLICY_IN_TIER) && policy->ops->bared)
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
    return sizeof(*policy) +
           policy->chunk_count *
               (sizeof(struct policy_node *) + POLICY_CHUNK_NODES * sizeof(struct policy_node)) +
           (policy->ops->bytes ? policy->ops->bytes(policy) : 0);
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

int larder_policy_load(struct larder_policy *policy, const void *in, size_t bytes)
{
    assert(policy->count == 0);
    assert(policy->request == 0);
    if (!policy->ops->load)
        return bytes == 0 ? 0
                          : larder_fail(LARDER_ECORRUPT, "eviction policy: %s keeps no state",
                                        policy->ops->name);
    return policy->ops->load(policy, in, bytes);
}

uint64_t larder_policy_recall(const struct larder_policy *policy, uint32_t id)
{
    assert(larder_policy_has(policy, id));
    return policy->ops->recall ? policy->ops->recall(policy, id) : 0;
}

int larder_policy_restore(struct larder_policy *policy, const struct larder_policy_entry *entry,
                          uint64_t recalled)
{
    assert(!policy->in_request);
    LARDER_TRY(add_node(policy, entry));
    if (policy->ops->restore) {
        policy->ops->restore(policy, entry->id, recalled);
        return 0;
    }
    policy->request++; /* none of them is of the request of another */
    policy_node(policy, entry->id)->request = policy->request;
    policy->ops->insert(policy, entry->id);
    return 0;
}

/* --- lists ----------------------------------------------------------------------------------- */

static void insert_before(struct larder_policy *policy, struct policy_list *list, uint32_t id,
                          uint32_t next)
{
    struct policy_node *node = policy_node(policy, id);
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

void policy_list_append_recent(struct larder_policy *policy, struct policy_list *list, uint32_t id)
{
    const struct policy_node *node = policy_node(policy, id);
    const struct policy_node *above = policy_node(policy, node->parent);
    bool behind = node->parent != LARDER_POLICY_NONE && (above->flags & POLICY_LISTED) &&
                  above->request == node->request && above->list == node->list;
    insert_before(policy, list, id, behind ? node->parent : LARDER_POLICY_NONE);
}

void policy_list_remove(struct larder_policy *policy, struct policy_list *list, uint32_t id)
{
    struct policy_node *node = policy_node(policy, id);
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
