/* SPDX-License-Identifier: Apache-2.0 */
/* policy_priv.h - what the policies share: lists of nodes, and the table of operations that each
 * policy is.
 *
 * Threads: see policy.h.
 */
#ifndef LARDER_STORAGE_POLICY_PRIV_H
#define LARDER_STORAGE_POLICY_PRIV_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "storage/policy.h"

enum policy_flag {
    POLICY_IN_TIER = 1 << 0,
    POLICY_LISTED = 1 << 1,  /* in a list */
    POLICY_PENDING = 1 << 2, /* of the request that has not ended */
    POLICY_NEW = 1 << 3,     /* inserted by that request */
    POLICY_GREW = 1 << 4,    /* a block as long as itself was stored behind it once */
    POLICY_SHARED = 1 << 5,  /* chains that differ went through it */
    POLICY_HELD = 1 << 6,
};

/* Ends of a list, linked through the nodes. */
struct policy_list {
    uint32_t first; /* goes first */
    uint32_t last;
    uint32_t count;
};

struct policy_ops {
    const char *name;
    bool knows_groups;
    /* A node's `used` is the number of the request that touched it last; else it is the policy's to
     * set. */
    bool counts_requests;
    int (*open)(struct larder_policy *policy);
    void (*close)(struct larder_policy *policy);
    /* Before a request or a restored entry of the group; the first time may give -ENOMEM. */
    int (*make_group)(struct larder_policy *policy, uint32_t group);
    void (*begin)(struct larder_policy *policy); /* may be NULL, like end */
    void (*end)(struct larder_policy *policy);
    void (*insert)(struct larder_policy *policy, uint32_t id);
    void (*use)(struct larder_policy *policy, uint32_t id);
    uint32_t (*victim)(struct larder_policy *policy, uint32_t group,
                       bool (*may_go)(void *context, uint32_t id), void *context);
    /* The node is HELD, or is so no more; both NULL for those that know one group. */
    void (*hold)(struct larder_policy *policy, uint32_t id);
    void (*release)(struct larder_policy *policy, uint32_t id);
    /* NULL: it knows one group, with nothing to compare. */
    double (*least)(struct larder_policy *policy, uint32_t group);
    double (*worth)(const struct larder_policy *policy, uint32_t id);
    /* Before the node is forgotten. */
    void (*leave)(struct larder_policy *policy, uint32_t id, bool evicted);
    /* The last child of a node left the tier; may be NULL. */
    void (*bared)(struct larder_policy *policy, uint32_t id);
    size_t (*bytes)(const struct larder_policy *policy);
    /* NULL: nothing hangs on the capacity. */
    void (*resize)(struct larder_policy *policy);
    /* NULL: admits all that is rooted. */
    bool (*admits)(struct larder_policy *policy, uint32_t id, bool rooted);
    /* All NULL: nothing is kept across a restart. */
    size_t (*state_bytes_max)(const struct larder_policy *policy);
    size_t (*save)(const struct larder_policy *policy, uint8_t *out);
    int (*load)(struct larder_policy *policy, const uint8_t *in, size_t bytes, uint64_t now_ms);
    uint64_t (*recall)(const struct larder_policy *policy, uint32_t id);
    uint64_t (*idle_ms)(const struct larder_policy *policy, uint32_t id);
    void (*restore)(struct larder_policy *policy, uint32_t id, uint64_t recalled,
                    uint64_t stored_ms);
};

extern const struct policy_ops policy_fifo_ops;
extern const struct policy_ops policy_lru_ops;
extern const struct policy_ops policy_lfu_ops;
extern const struct policy_ops policy_s3fifo_ops;
extern const struct policy_ops policy_arc_ops;
extern const struct policy_ops policy_value_ops;

struct policy_value;
struct policy_adaptive; /* lists and ghosts of S3-FIFO and ARC */

struct larder_policy {
    const struct policy_ops *ops;
    struct larder_policy_home home;
    uint32_t count; /* in the tier */
    uint32_t capacity_entries;
    uint32_t group_max;
    bool holes;
    bool in_request;
    uint32_t group; /* of the request */
    uint32_t request;
    uint64_t now_ms;
    union {
        struct policy_list *lists;        /* fifo, lru: of each group */
        struct policy_list by_uses[64];   /* lfu */
        struct policy_adaptive *adaptive; /* s3fifo, arc */
        struct policy_value *value;
    };
};

/* Of an entry that is in the tier. */
static inline struct larder_policy_node *policy_node(const struct larder_policy *policy,
                                                     uint32_t id)
{
    return policy->home.node(policy->home.context, id);
}

static inline uint32_t *policy_child_count(const struct larder_policy *policy, uint32_t id)
{
    return policy->home.child_count(policy->home.context, id);
}

static inline struct larder_policy_entry policy_describe(const struct larder_policy *policy,
                                                         uint32_t id)
{
    struct larder_policy_entry entry;
    policy->home.describe(policy->home.context, id, &entry);
    return entry;
}

static inline float policy_worth(const struct larder_policy_entry *entry)
{
    return entry->cost / (float)(entry->bytes ? entry->bytes : 1);
}

/* Nobody needs it: I1, and the caller's own reasons. */
static inline bool policy_may_go(const struct larder_policy *policy, uint32_t id,
                                 bool (*may_go)(void *context, uint32_t id), void *context)
{
    return (policy->holes || *policy_child_count(policy, id) == 0) &&
           (!may_go || may_go(context, id));
}

/* At the end that goes last. */
void policy_list_append(struct larder_policy *policy, struct policy_list *list, uint32_t id);
/* At the end that goes first. */
void policy_list_prepend(struct larder_policy *policy, struct policy_list *list, uint32_t id);
/* As an append, for what is new in a list by recency; but before its parent if that was touched by
 * the same request, as if the request had touched its chain from end to start. */
void policy_list_append_recent(struct larder_policy *policy, struct policy_list *list, uint32_t id);
void policy_list_remove(struct larder_policy *policy, struct policy_list *list, uint32_t id);
/* The first that may go. Those before it move to the other end, so that they are not passed again
 * and again. */
uint32_t policy_list_victim(struct larder_policy *policy, struct policy_list *list,
                            bool (*may_go)(void *context, uint32_t id), void *context);

#endif
