/* SPDX-License-Identifier: Apache-2.0 */
/* simulate.c - a request at a time: count what hits, use it, last block to first, then store
 * what is not there, first to last, making room for each as a full tier must.
 */
#include "tools/sim/simulate.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "base/mem.h"
#include "storage/policy.h"

#define STEP_REQUESTS 256u

/* Every block weighs and costs the same: the hit ratio counts blocks. */
#define BLOCK_BYTES 65536u

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* As good as the leading bits of a SHA-256, and the same in every run. */
static uint64_t key_of(uint64_t id)
{
    id += 0x9E3779B97F4A7C15ull;
    id = (id ^ (id >> 30)) * 0xBF58476D1CE4E5B9ull;
    id = (id ^ (id >> 27)) * 0x94D049BB133111EBull;
    return id ^ (id >> 31);
}

/* A run of one policy over a trace. */
struct run {
    struct larder_policy *policy;
    const struct trace *trace;
    const struct simulation *simulation;
    uint32_t *request_of; /* the last that named the block */
    uint32_t request;
    uint32_t *missing; /* of the request, last first: known before room is made */
    struct larder_policy_node *nodes;
    uint32_t *child_counts;
};

static struct larder_policy_node *node_of(void *context, uint32_t id)
{
    const struct run *run = context;
    return &run->nodes[id];
}

static uint32_t *child_count_of(void *context, uint32_t id)
{
    const struct run *run = context;
    return &run->child_counts[id];
}

static void describe(void *context, uint32_t id, struct larder_policy_entry *out)
{
    const struct run *run = context;
    const struct trace_block *block = &run->trace->blocks[id];
    *out = (struct larder_policy_entry){
        .parent = block->parent,
        .key = key_of(block->id),
        .depth = block->depth,
        .token_count = block->token_count,
        .bytes = BLOCK_BYTES,
        .cost = 1,
    };
}

/* As leases would: what the request itself uses or stores stays until its end. */
static bool is_free(void *context, uint32_t id)
{
    const struct run *run = context;
    return run->request_of[id] != run->request;
}

/* False: no room for it, or not worth it. */
static bool store_block(struct run *run, uint32_t id)
{
    struct larder_policy *policy = run->policy;
    uint32_t parent = run->trace->blocks[id].parent;
    bool rooted = parent == 0 || larder_policy_has(policy, parent);
    if (run->simulation->admission &&
        larder_policy_count(policy) >= run->simulation->capacity_blocks &&
        !larder_policy_admits(policy, id, rooted))
        return false;
    while (larder_policy_count(policy) >= run->simulation->capacity_blocks) {
        uint32_t victim =
            larder_policy_victim(policy, 0, run->simulation->holes ? NULL : is_free, run);
        if (victim == LARDER_POLICY_NONE)
            return false;
        larder_policy_evict(policy, victim);
    }
    larder_policy_insert(policy, id);
    return true;
}

static int serve(struct run *run, struct simulation_result *out, uint32_t index)
{
    const struct trace_request *request = &run->trace->requests[index];
    struct larder_policy *policy = run->policy;
    const uint32_t *ids = &run->trace->refs[request->first];
    uint32_t hits = 0;
    while (hits < request->count && larder_policy_has(policy, ids[hits]))
        hits++;
    out->hits += hits;
    if (index < run->simulation->mark)
        out->hits_marked += hits;
    out->refs += request->count;
    if (index >= run->trace->request_count / 2) {
        out->hits_late += hits;
        out->refs_late += request->count;
    }
    run->request = index + 1;
    uint32_t missing_count = 0;
    LARDER_TRY(larder_policy_begin(policy, 0, request->time_ms));
    for (uint32_t i = request->count; i > 0; i--) {
        uint32_t id = ids[i - 1];
        run->request_of[id] = run->request;
        if (larder_policy_has(policy, id))
            larder_policy_use(policy, id);
        else
            run->missing[missing_count++] = id;
    }
    for (; missing_count > 0; missing_count--)
        out->written += store_block(run, run->missing[missing_count - 1]);
    larder_policy_end(policy);
    return 0;
}

static uint32_t longest_request(const struct trace *trace)
{
    uint32_t longest = 1;
    for (uint32_t i = 0; i < trace->request_count; i++) {
        if (trace->requests[i].count > longest)
            longest = trace->requests[i].count;
    }
    return longest;
}

static int run_trace(struct run *run, struct simulation_result *out,
                     void (*step)(void *context, uint64_t done), void *context)
{
    double start = now_s();
    for (uint32_t i = 0; i < run->trace->request_count; i++) {
        LARDER_TRY(serve(run, out, i));
        if (step && i % STEP_REQUESTS == 0)
            step(context, i);
    }
    out->seconds = now_s() - start;
    out->bytes_ram =
        larder_policy_bytes(run->policy) +
        larder_policy_count(run->policy) * (sizeof(struct larder_policy_node) + sizeof(uint32_t));
    return 0;
}

int simulate(struct simulation_result *out, const struct trace *trace,
             const struct simulation *simulation, void (*step)(void *context, uint64_t done),
             void *context)
{
    *out = (struct simulation_result){0};
    if (strcmp(simulation->policy, BELADY) == 0)
        return simulate_belady(out, trace, simulation);
    struct run run = {
        .trace = trace,
        .simulation = simulation,
        .request_of = larder_alloc_zero(trace->block_count + 1u, sizeof(uint32_t)),
        .missing = larder_alloc_zero(longest_request(trace), sizeof(uint32_t)),
        .nodes = larder_alloc_zero(trace->block_count + 1u, sizeof(struct larder_policy_node)),
        .child_counts = larder_alloc_zero(trace->block_count + 1u, sizeof(uint32_t)),
    };
    const struct larder_policy_options options = {
        .name = simulation->policy,
        .capacity_entries = simulation->capacity_blocks,
        .group_max = 1,
        .holes = simulation->holes,
        .home = {.context = &run,
                 .node = node_of,
                 .child_count = child_count_of,
                 .describe = describe},
    };
    int err = 0;
    if (!run.request_of || !run.missing || !run.nodes || !run.child_counts)
        err = larder_fail(-ENOMEM, "no memory for the simulation");
    if (err == 0)
        err = larder_policy_open(&run.policy, &options);
    if (err == 0)
        err = run_trace(&run, out, step, context);
    larder_policy_close(run.policy);
    larder_free(run.request_of);
    larder_free(run.missing);
    larder_free(run.nodes);
    larder_free(run.child_counts);
    return err;
}
