/* SPDX-License-Identifier: Apache-2.0 */
/* policy.h - which entry of a full tier goes first. One object a tier; in memory only: it knows
 * entries by the caller's ids, their place in chains, what they cost and weigh, and the time.
 *
 * The caller keeps the entries, and in them a node each for the policy (`home`). It tells of each
 * request (a lease, a put, a prompt of a trace) what it used, from a chain's end to its start, and
 * then what it stored, from start to end. When it wants room it asks for a victim and says what
 * became of it. What is stored behind an entry that the request did not touch belongs to the
 * request that touched that one last: a client asks first, and stores what it had to compute later.
 *
 * Entries are of groups (tenants): a victim is asked for in one of them or in all; what is learned
 * is learned of all.
 *
 * Threads: none of its own; the caller's lock.
 * I1  Unless `holes` is set, a victim has no child in the tier.
 * I2  The same calls give the same victims, on every machine.
 * I3  Nothing is allocated but when a group is met first, and as its entries come to be of more
 *     ages than before.
 */
#ifndef LARDER_STORAGE_POLICY_H
#define LARDER_STORAGE_POLICY_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LARDER_POLICY_NONE 0u
#define LARDER_POLICY_ALL  UINT32_MAX /* every group */

struct larder_policy;

/* What a policy keeps of an entry; the caller only holds the memory. All zeros before the entry's
 * insertion, and the policy's until it has left. */
struct larder_policy_node {
    uint32_t prev; /* in its list; towards the first to go */
    uint32_t next;
    uint32_t used; /* last, by the policy's own clock: ticks, or the number of a request */
    uint8_t uses;
    uint8_t flags;
    uint8_t turn;
    uint8_t list; /* which list it is in */
};
static_assert(sizeof(struct larder_policy_node) == 16, "a million entries are to stay small");

struct larder_policy_entry {
    uint32_t parent; /* LARDER_POLICY_NONE: first of its chain */
    uint32_t group;
    uint64_t key;   /* uniform bits of its key: what was evicted is known again by them */
    uint32_t depth; /* blocks before it in its chain; its parent's: another form of the parent */
    uint32_t token_count;
    uint32_t bytes;
    float cost; /* of computing it again, in any unit that is the same for all entries */
};

/* Where the caller keeps entries. All of it is called with the caller's lock held. */
struct larder_policy_home {
    void *context;
    /* NULL: the entry has no node now, so it is not in the tier. */
    struct larder_policy_node *(*node)(void *context, uint32_t id);
    /* How many of its children are in the tier; the policy counts, whether or not the entry itself
     * is there. Zero when the entry is made. */
    uint32_t *(*child_count)(void *context, uint32_t id);
    /* The same answer as long as the entry is in the tier. */
    void (*describe)(void *context, uint32_t id, struct larder_policy_entry *out);
};

struct larder_policy_options {
    const char *name;          /* NULL: the default, "value" */
    uint32_t capacity_entries; /* about what the tier holds; lists of the lately evicted go by it */
    uint32_t group_max;        /* groups are 0 .. group_max - 1 */
    /* Textbook versions for comparison: chains may get holes. */
    bool holes;
    struct larder_policy_home home;
};

/* Names of all policies, the default first; NULL at the end. */
const char *larder_policy_name(uint32_t index);
/* Whether it knows more than one group: those that a store can use. */
bool larder_policy_knows_groups(const char *name);

/* -EINVAL for a name that is not there, a capacity of 0, or groups that it does not know. */
int larder_policy_open(struct larder_policy **out, const struct larder_policy_options *options);
void larder_policy_close(struct larder_policy *policy);
/* The tier turned out to hold so many, about. */
void larder_policy_resize(struct larder_policy *policy, uint32_t capacity_entries);
uint32_t larder_policy_capacity(const struct larder_policy *policy);

/* Entries of the group will come: after it larder_policy_begin() and larder_policy_restore() do not
 * fail for that group. -ENOMEM. */
int larder_policy_expect(struct larder_policy *policy, uint32_t group);
/* What follows, up to the end, belongs to one request of one group. Time never runs backwards; if
 * it does, it stands still. -ENOMEM: the request did not begin. */
int larder_policy_begin(struct larder_policy *policy, uint32_t group, uint64_t now_ms);
void larder_policy_end(struct larder_policy *policy);

/* Inside a request: the tier has it from now on. */
void larder_policy_insert(struct larder_policy *policy, uint32_t id);
/* Inside a request: it was asked for, and is in the tier. */
void larder_policy_use(struct larder_policy *policy, uint32_t id);

/* The entry of the group to give up next, among those that `may_go` allows (NULL: all);
 * LARDER_POLICY_NONE when there is none. It stays until one of the next two is called. What may not
 * go is passed one by one: it should be little, as what is leased or being written is. */
uint32_t larder_policy_victim(struct larder_policy *policy, uint32_t group,
                              bool (*may_go)(void *context, uint32_t id), void *context);
/* What the group's next victim is worth, beside other groups' by the same policy (also of another
 * tier, told of the same requests); infinite when it has none. */
double larder_policy_least(struct larder_policy *policy, uint32_t group);
/* How long ago it was used, in time that something ran; 0 by a policy that keeps no times. */
uint64_t larder_policy_idle_ms(const struct larder_policy *policy, uint32_t id);
/* What its stay is worth now, beside what larder_policy_least() says. */
double larder_policy_worth(const struct larder_policy *policy, uint32_t id);
/* It is no victim until it is released, and costs nothing meanwhile: for what must stay long. Both
 * may be said twice. */
void larder_policy_hold(struct larder_policy *policy, uint32_t id);
void larder_policy_release(struct larder_policy *policy, uint32_t id);
/* It went for want of room: it may be remembered, to learn whether that was wise. */
void larder_policy_evict(struct larder_policy *policy, uint32_t id);
/* It went for another reason. */
void larder_policy_remove(struct larder_policy *policy, uint32_t id);

/* Inside a request, when the tier is full: does an entry that is not in it deserve the place of the
 * next victim, and the writing? `rooted`: its parent, if it has one, is in the tier or on its way
 * there; nothing else is admitted. If not it is remembered like an evicted one, and the caller does
 * not insert it. */
bool larder_policy_admits(struct larder_policy *policy, uint32_t id, bool rooted);

/* --- across a restart ---
 * What was learned, as bytes that the caller keeps (it checks that they are whole), and eight bytes
 * for each entry. A policy that keeps nothing saves 0 bytes and recalls 0; the order in which its
 * entries are restored stands for that of their uses. */
size_t larder_policy_state_bytes_max(const struct larder_policy *policy);
size_t larder_policy_save(const struct larder_policy *policy, void *out);
/* Before anything else. The time in which nothing ran does not count: it goes on at `now_ms`.
 * LARDER_ECORRUPT when the bytes cannot be such a state: the policy is as new then. With 0 bytes it
 * has learned nothing, but can restore entries. */
int larder_policy_load(struct larder_policy *policy, const void *in, size_t bytes, uint64_t now_ms);
uint64_t larder_policy_recall(const struct larder_policy *policy, uint32_t id);
/* After a load, parents first: as if the entry had stayed; no part of a request. `recalled` 0:
 * nothing is known but that it was stored at `stored_ms`. -ENOMEM. */
int larder_policy_restore(struct larder_policy *policy, uint32_t id, uint64_t recalled,
                          uint64_t stored_ms);

/* Whether the tier has it, as far as the policy was told. */
bool larder_policy_has(const struct larder_policy *policy, uint32_t id);
uint32_t larder_policy_count(const struct larder_policy *policy);
/* Memory held, beside the nodes. */
size_t larder_policy_bytes(const struct larder_policy *policy);

#endif
