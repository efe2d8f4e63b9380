/* SPDX-License-Identifier: Apache-2.0 */
/* belady.c - what a tier could hit that knew the future: evicts the block whose next use is the
 * farthest away, of equals the deepest, so that chains lose their ends first.
 */
#include <errno.h>

#include "base/error.h"
#include "base/mem.h"
#include "tools/sim/simulate.h"

#define NEVER UINT32_MAX

struct belady {
    const struct trace *trace;
    uint32_t *next_use; /* by reference: the request that uses its block next */
    uint32_t *when;     /* by block: the same, as of now */
    uint32_t *heap;     /* blocks in the tier, farthest first */
    uint32_t *place;    /* by block: where in the heap, from 1; 0: not in the tier */
    uint32_t count;
};

static bool goes_before(const struct belady *belady, uint32_t a, uint32_t b)
{
    if (belady->when[a] != belady->when[b])
        return belady->when[a] > belady->when[b];
    return belady->trace->blocks[a].depth > belady->trace->blocks[b].depth;
}

static void put_at(struct belady *belady, uint32_t place, uint32_t id)
{
    belady->heap[place] = id;
    belady->place[id] = place;
}

static void sift(struct belady *belady, uint32_t place)
{
    uint32_t id = belady->heap[place];
    while (place > 1 && goes_before(belady, id, belady->heap[place / 2])) {
        put_at(belady, place, belady->heap[place / 2]);
        place /= 2;
    }
    for (;;) {
        uint32_t child = place * 2;
        if (child > belady->count)
            break;
        if (child < belady->count &&
            goes_before(belady, belady->heap[child + 1], belady->heap[child]))
            child++;
        if (!goes_before(belady, belady->heap[child], id))
            break;
        put_at(belady, place, belady->heap[child]);
        place = child;
    }
    put_at(belady, place, id);
}

static void take_farthest(struct belady *belady)
{
    belady->place[belady->heap[1]] = 0;
    uint32_t last = belady->heap[belady->count--];
    if (belady->count > 0) {
        put_at(belady, 1, last);
        sift(belady, 1);
    }
}

static void touch(struct belady *belady, uint32_t ref)
{
    uint32_t id = belady->trace->refs[ref];
    belady->when[id] = belady->next_use[ref];
    if (belady->place[id] == 0)
        put_at(belady, ++belady->count, id);
    sift(belady, belady->place[id]);
}

static void look_ahead(struct belady *belady)
{
    const struct trace *trace = belady->trace;
    for (uint32_t id = 1; id <= trace->block_count; id++)
        belady->when[id] = NEVER;
    for (uint32_t r = trace->request_count; r > 0; r--) {
        const struct trace_request *request = &trace->requests[r - 1];
        for (uint32_t i = 0; i < request->count; i++) {
            uint32_t ref = request->first + i;
            belady->next_use[ref] = belady->when[trace->refs[ref]];
            belady->when[trace->refs[ref]] = r - 1;
        }
    }
}

static void serve(struct belady *belady, struct simulation_result *out, uint32_t index,
                  const struct simulation *simulation)
{
    const struct trace_request *request = &belady->trace->requests[index];
    const uint32_t *ids = &belady->trace->refs[request->first];
    uint32_t hits = 0;
    while (hits < request->count && belady->place[ids[hits]])
        hits++;
    out->refs += request->count;
    out->hits += hits;
    if (index < simulation->mark)
        out->hits_marked += hits;
    if (index >= belady->trace->request_count / 2) {
        out->refs_late += request->count;
        out->hits_late += hits;
    }
    for (uint32_t i = request->count; i > 0; i--) {
        out->written += belady->place[ids[i - 1]] == 0;
        touch(belady, request->first + i - 1);
    }
    while (belady->count > simulation->capacity_blocks)
        take_farthest(belady);
}

int simulate_belady(struct simulation_result *out, const struct trace *trace,
                    const struct simulation *simulation)
{
    *out = (struct simulation_result){0};
    struct belady belady = {
        .trace = trace,
        .next_use = larder_alloc(trace->ref_count * sizeof(uint32_t)),
        .when = larder_alloc((trace->block_count + 1u) * sizeof(uint32_t)),
        .heap = larder_alloc((trace->block_count + 2u) * sizeof(uint32_t)),
        .place = larder_alloc_zero(trace->block_count + 1u, sizeof(uint32_t)),
    };
    int err = 0;
    if (!belady.next_use || !belady.when || !belady.heap || !belady.place) {
        err = larder_fail(-ENOMEM, "no memory to look ahead");
    } else {
        look_ahead(&belady);
        for (uint32_t i = 0; i < trace->request_count; i++)
            serve(&belady, out, i, simulation);
    }
    larder_free(belady.next_use);
    larder_free(belady.when);
    larder_free(belady.heap);
    larder_free(belady.place);
    return err;
}
