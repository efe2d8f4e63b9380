/* SPDX-License-Identifier: Apache-2.0 */
/* larder-replay - a trace through a real store, and through larder-sim's code beside it.
 *
 *   larder-replay TRACE CAPACITY_BLOCKS POLICY...
 *
 * For each policy it prints both hit ratios, and how many entries the store held. The simulator is
 * given as many blocks as the store held on average, in both tiers, once it was full: segments,
 * watermarks and what is just being written take a part of ssd_bytes that cannot be counted in
 * blocks. Exits with 1 when the ratios lie further apart than TOLERANCE (docs/EVICTION.md).
 *
 * A block is one record of a page. The store's time is the trace's. A request leases what is there,
 * puts the rest behind it, and then lets go. The host tier is small, as it is beside an SSD.
*/
#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/key.h"
#include "base/mem.h"
#include "fixture.h"
#include "tools/sim/simulate.h"
#include "tools/sim/trace.h"

#define TOLERANCE          0.01
#define TRACE_BLOCK_TOKENS 512u
#define START_MS           1000000000000u
/* Of so many tokens of a block one is stored, for a record of a page. */
#define TOKENS_KEPT_OF 16u
#define SECTION_BYTES  64u
#define RECORD_BYTES   4096u
#define SEGMENT_BYTES  (1u << 20)
/* Longer than any prompt of the traces, with what is still being written. */
#define HOST_BYTES   (4u << 20)
#define WAIT_STEP_US 100u
#define WAIT_STEPS   100000u

struct replay {
    const struct trace *trace;
    struct fixture fixture;
    struct larder_key *keys; /* of each block */
    struct larder_key chain[LARDER_REQUEST_KEYS_MAX];
    struct larder_ref refs[LARDER_REQUEST_KEYS_MAX];
    uint64_t now_ms;
    uint64_t hits;
    uint64_t puts;
    uint64_t held_sum; /* of entries, at each request since the first eviction */
    uint64_t held_count;
};

static uint64_t time_of_trace(void *context)
{
    const struct replay *replay = context;
    return replay->now_ms;
}

static void lease_done(void *context, uint32_t loaded, int err)
{
    (void)loaded;
    (void)err;
    atomic_store((_Atomic bool *)context, true);
}

static void ignore_done(void *context, int err)
{
    (void)context;
    (void)err;
}

/* All of the chain that is there, *found blocks. Less of it fits while much is being written: then
 * again. NULL when nothing is there. */
static struct larder_lease *lease_found(struct replay *replay, uint32_t *found, uint32_t count)
{
    struct larder_store *store = replay->fixture.store;
    struct larder_want want = {.tenant = replay->fixture.tenant.index,
                               .keys = replay->chain,
                               .worst = LARDER_QUALITY_BLENDED};
    for (uint32_t step = 0; step < WAIT_STEPS; step++) {
        struct larder_match match;
        must(larder_store_lookup(store, &match,
                                 &(struct larder_want){.tenant = want.tenant,
                                                       .keys = want.keys,
                                                       .key_count = count,
                                                       .worst = LARDER_QUALITY_BLENDED},
                                 &larder_key_root, 1) == 0);
        *found = match.count;
        if (match.count == 0)
            return NULL;
        want.key_count = match.count;
        struct larder_lease *lease;
        uint32_t got;
        bool ready;
        _Atomic bool done = false;
        int err =
            larder_store_lease(store, &lease, replay->refs, &got, &ready, &want, lease_done, &done);
        must(err == 0 || err == -EBUSY);
        while (lease && !ready && !atomic_load(&done))
            usleep(WAIT_STEP_US);
        if (lease && got == match.count)
            return lease;
        if (lease)
            larder_store_release(store, lease);
        usleep(WAIT_STEP_US);
    }
    must(!"what is there can be leased");
    return NULL;
}

static int put(struct replay *replay, uint32_t id)
{
    const struct trace_block *block = &replay->trace->blocks[id];
    uint32_t tokens[LARDER_BLOCK_TOKENS_MAX];
    uint32_t token_count = (block->token_count + TOKENS_KEPT_OF - 1) / TOKENS_KEPT_OF;
    must(token_count > 0 && token_count <= LARDER_BLOCK_TOKENS_MAX);
    /* No block's tokens begin another's: a tail is not dropped for the block that extends it. */
    for (uint32_t i = 0; i < token_count; i++)
        tokens[i] = id;
    struct larder_put_desc desc = {
        .tenant = replay->fixture.tenant.index,
        .model = replay->fixture.model.index,
        .key = replay->keys[id],
        .parent = block->parent ? replay->keys[block->parent] : larder_key_root,
        .tokens = tokens,
        .token_count = token_count,
        .recipe = "raw",
        .raw_bytes = SECTION_BYTES,
        .section_count_max = 1,
        .payload_bytes_max = SECTION_BYTES,
    };
    struct larder_put *reserved;
    int err = -EBUSY;
    for (uint32_t step = 0; step < WAIT_STEPS && err == -EBUSY; step++) {
        err = larder_store_put_reserve(replay->fixture.store, &reserved, &desc);
        if (err == -EBUSY)
            usleep(WAIT_STEP_US);
    }
    if (err < 0)
        return err;
    uint64_t offset;
    memset(larder_put_payload(reserved, &offset), (int)id, SECTION_BYTES);
    *larder_put_directory(reserved) = (struct larder_section){
        .layer_count = 1, .head_count = 2, .offset = offset, .bytes = SECTION_BYTES};
    larder_store_put_commit(replay->fixture.store, reserved, 1, SECTION_BYTES, LARDER_CACHED,
                            ignore_done, NULL);
    return 0;
}

/* As in the simulator; but what its own blocks push out may end a chain: no more is put then. */
static void serve(struct replay *replay, const struct trace_request *request)
{
    const uint32_t *ids = &replay->trace->refs[request->first];
    must(request->count <= LARDER_REQUEST_KEYS_MAX);
    for (uint32_t i = 0; i < request->count; i++)
        replay->chain[i] = replay->keys[ids[i]];
    replay->now_ms = START_MS + request->time_ms;
    uint32_t found;
    struct larder_lease *lease = lease_found(replay, &found, request->count);
    replay->hits += found;
    int err = 0;
    for (uint32_t i = found; i < request->count && err != LARDER_ENOPARENT; i++) {
        err = put(replay, ids[i]);
        must(err == 0 || err == LARDER_EEXISTS || err == LARDER_ENOPARENT);
        replay->puts += err == 0;
    }
    if (lease)
        larder_store_release(replay->fixture.store, lease);
    struct larder_store_stats stats = fixture_stats(&replay->fixture);
    if (stats.evicted_ssd > 0) {
        replay->held_sum += stats.entries;
        replay->held_count++;
    }
}

static void run_store(struct replay *replay, const char *policy, uint32_t capacity)
{
    replay->hits = replay->puts = replay->held_sum = replay->held_count = 0;
    fixture_begin(&replay->fixture);
    struct larder_store_options *options = &replay->fixture.options;
    options->host_bytes = HOST_BYTES;
    options->segment_bytes = SEGMENT_BYTES;
    options->ssd_bytes = (uint64_t)capacity * RECORD_BYTES;
    options->eviction = policy;
    options->admits_all = true;
    options->now_ms = time_of_trace;
    options->now_ms_context = replay;
    replay->now_ms = START_MS;
    must(fixture_open(&replay->fixture) == 0);
    for (uint32_t i = 0; i < replay->trace->request_count; i++)
        serve(replay, &replay->trace->requests[i]);
    must(larder_store_check(replay->fixture.store) == 0);
    fixture_end(&replay->fixture);
}

static bool compare(struct replay *replay, const char *policy, uint32_t capacity)
{
    run_store(replay, policy, capacity);
    must(replay->held_count > 0); /* else nothing was compared */
    const struct simulation simulation = {
        .policy = policy, .capacity_blocks = (uint32_t)(replay->held_sum / replay->held_count)};
    struct simulation_result simulated;
    must(simulate(&simulated, replay->trace, &simulation, NULL, NULL) == 0);
    double store_ratio = (double)replay->hits / (double)simulated.refs;
    double sim_ratio = (double)simulated.hits / (double)simulated.refs;
    bool near = fabs(store_ratio - sim_ratio) <= TOLERANCE;
    printf("%-6s ssd_bytes / %u = %u, held %u: store %.4f, larder-sim %.4f, %+.4f; "
           "stored %llu and %llu%s\n",
           policy, RECORD_BYTES, capacity, simulation.capacity_blocks, store_ratio, sim_ratio,
           store_ratio - sim_ratio, (unsigned long long)replay->puts,
           (unsigned long long)simulated.written, near ? "" : " (TOO FAR)");
    fflush(stdout);
    return near;
}

int main(int argc, char **argv)
{
    uint32_t capacity = argc > 3 ? (uint32_t)strtoul(argv[2], NULL, 10) : 0;
    if (capacity == 0) {
        fprintf(stderr, "Usage: larder-replay TRACE CAPACITY_BLOCKS POLICY...\n");
        return 2;
    }
    struct trace trace;
    if (trace_load(&trace, argv[1], TRACE_BLOCK_TOKENS, 0) < 0) {
        fprintf(stderr, "larder-replay: %s\n", larder_error_message());
        return 2;
    }
    static struct replay replay;
    replay.trace = &trace;
    replay.keys = larder_alloc(sizeof(*replay.keys) * (trace.block_count + 1ul));
    must(replay.keys);
    for (uint32_t id = 1; id <= trace.block_count; id++)
        replay.keys[id] = block_key(trace.blocks[id].id);
    bool near = true;
    for (int i = 3; i < argc; i++)
        near = compare(&replay, argv[i], capacity) && near;
    larder_free(replay.keys);
    trace_free(&trace);
    return near ? EXIT_SUCCESS : EXIT_FAILURE;
}
