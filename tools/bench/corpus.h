/* SPDX-License-Identifier: Apache-2.0 */
/* corpus.h - a long prompt with its KV, to be stored and fetched, and the memory for both.
 * Threads: one.
 */
#ifndef LARDER_TOOLS_BENCH_CORPUS_H
#define LARDER_TOOLS_BENCH_CORPUS_H

#include <stdint.h>

#include "client/larder.h"
#include "tools/bench/process.h"

struct corpus {
    struct larder_model_desc model;
    uint32_t *tokens;
    uint64_t token_count;
    uint64_t kv_bytes;
    void *kv;      /* shared memory, as the daemon's slabs are */
    void *fetched; /* where an engine would keep it: [layer][K, V][token][head][dim] */
};

/* Of an 8B model's shape; `bytes` is a multiple of its 128 KiB a token. */
int corpus_open(struct corpus *out, uint64_t bytes, uint64_t seed);
void corpus_close(struct corpus *corpus);
/* Other tokens with the same KV: another prompt for the store, at no cost. */
void corpus_rename(struct corpus *corpus, uint64_t seed);

/* Stores all of it; waits when the daemon is busy. */
int corpus_put(const struct corpus *corpus, const struct bench_client *client, const char *recipe,
               enum larder_wait wait);
/* Fetches all of it; less is an error. */
int corpus_get(const struct corpus *corpus, const struct bench_client *client,
               struct larder_get_result *result);
/* Is what was fetched what was stored? */
int corpus_check(const struct corpus *corpus);
/* The plain way: memcpy. GB/s. */
double corpus_copy(const struct corpus *corpus);

#endif
