/* SPDX-License-Identifier: Apache-2.0 */
/* policy.h - which entry of a full tier goes first. One object a tier; in memory only: it knows
 * entries by the caller's ids, their place in chains, what they cost and weigh, and the time.
 *
 * The caller keeps the entries. It tells of each request (a lease, a put, a prompt of a trace) what
 * it used, from a chain's end to its start, and then what it stored, from start to end. When it
 * wants room it asks for a victim and says what became of it.
 *
 * Threads: none of its own; the caller's lock.
 * I1  Unless `holes` is set, a victim has no child in the tier.
 * I2  The same calls give the same victims, on every machine.
 * I3  Nothing is allocated but when ids beyond all earlier ones appear, 4,096 at a time.
 */
#ifndef LARDER_STORAGE_POLICY_H
#define LARDER_STORAGE_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LARDER_POLICY_NONE 0u

struct larder_policy;

struct larder_policy_options {
    const char *name;          /* NULL: the default, "value" */
    uint32_t capacity_entries; /* about what the tier holds; lists of the lately evicted go by it */
    /* Textbook versions for comparison: chains may get holes. */
    bool holes;
};

/* Names of all policies, the default first; NULL at the end. */
const char *larder_policy_name(uint32_t index);

/* -EINVAL for a name that is not there or a capacity of 0. */
int larder_policy_open(struct larder_policy **out, const struct larder_policy_options *options);
void larder_policy_close(struct larder_policy *policy);

/* What follows, up to the end, belongs to one request. Time never runs backwards; if it does, it
 * stands still. */
void larder_policy_begin(struct larder_policy *policy, uint64_t now_ms);
void larder_policy_end(struct larder_policy *policy);

struct larder_policy_entry {
    uint32_t id;     /* 1 .. LARDER_POLICY_ID_MAX, the caller's; free again after a removal */
    uint32_t parent; /* LARDER_POLICY_NONE: first of its chain */
    uint64_t key;    /* uniform bits of its key: what was evicted is known again by them */
    uint32_t depth;  /* blocks before it in its chain */
    uint32_t token_count;
    uint32_t bytes;
    float cost; /* of computing it again, in any unit that is the same for all entries */
};
#define LARDER_POLICY_ID_MAX (1u << 28)

/* Inside a request: the tier has it from now on. -ENOMEM. */
int larder_policy_insert(struct larder_policy *policy, const struct larder_policy_entry *entry);
/* Inside a request: it was asked for, and is in the tier. */
void larder_policy_use(struct larder_policy *policy, uint32_t id);

/* The entry to give up next, among those that `may_go` allows (NULL: all); LARDER_POLICY_NONE when
 * there is none. It stays until one of the next two is called. */
uint32_t larder_policy_victim(struct larder_policy *policy,
                              bool (*may_go)(void *context, uint32_t id), void *context);
/* It went for want of room: it may be remembered, to learn whether that was wise. */
void larder_policy_evict(struct larder_policy *policy, uint32_t id);
/* It went for another reason. */
void larder_policy_remove(struct larder_policy *policy, uint32_t id);

/* Inside a request, when the tier is full: does the entry deserve the place of the next victim, and
 * the writing? If not it is remembered like an evicted one, and the caller does not insert it; nor
 * does a block without its parent, which it asks about all the same. */
bool larder_policy_admits(struct larder_policy *policy, const struct larder_policy_entry *entry);

/* --- across a restart ---
 * What was learned, as bytes that the caller keeps (it checks that they are whole), and eight bytes
 * for each entry. A policy that keeps nothing saves 0 bytes; its entries are restored in the order
 * of their last uses. */
size_t larder_policy_state_bytes_max(const struct larder_policy *policy);
size_t larder_policy_save(const struct larder_policy *policy, void *out);
/* Before anything else. LARDER_ECORRUPT when the bytes cannot be such a state: the policy is as new
 * then. */
int larder_policy_load(struct larder_policy *policy, const void *in, size_t bytes);
uint64_t larder_policy_recall(const struct larder_policy *policy, uint32_t id);
/* Outside of requests, parents first: as if the entry had stayed. */
int larder_policy_restore(struct larder_policy *policy, const struct larder_policy_entry *entry,
                          uint64_t recalled);

/* Whether the tier has it, as far as the policy was told. */
bool larder_policy_has(const struct larder_policy *policy, uint32_t id);
uint32_t larder_policy_count(const struct larder_policy *policy);
/* Memory held. */
size_t larder_policy_bytes(const struct larder_policy *policy);

#endif
