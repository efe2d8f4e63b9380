/* SPDX-License-Identifier: Apache-2.0 */
/* blend_world.h - for tests of blending: a real larderd with a worker for the small model, and the
 * same model here, to say what the KV should be.
 *
 * Tokens are bytes of the held-out text, behind the model's start token where a chain begins.
 * Whatever fails is a bug of the test's world, and fails the test.
 */
#ifndef LARDER_TESTS_CLIENT_BLEND_WORLD_H
#define LARDER_TESTS_CLIENT_BLEND_WORLD_H

#include <sys/types.h>

#include "client/larder.h"
#include "kernels/llama.h"
#include "tests/daemon/fixture.h"

#define WORLD_TOKENS_MAX 1024u
#define WORLD_PIECES     3u
#define WORLD_BOS        256u

struct world {
    struct fixture fixture;
    struct larder *larder;
    struct larder_model *model;
    struct larder_device *device;
    struct larder_llama *llama;
    struct larder_model_desc desc;
    char text[8192]; /* of which pieces are made */
};

/* Opens the model, and a larderd that serves it as "tiny"; `config` is added to its configuration.
 * Returns when the worker is ready. */
void world_open(struct world *world, const char *config);
void world_close(struct world *world);
/* Waits until the worker is ready (again). */
void world_wait_ready(struct world *world);

/* Pid of the daemon's worker; 0: there is none now. */
pid_t world_worker(const struct world *world);

/* Bytes [first, first + count) of the text as tokens, the start token before them if wanted; how
 * many that are. */
uint32_t world_tokens(const struct world *world, uint32_t *out, uint32_t first, uint32_t count,
                      bool start);

/* The KV that a plain prefill makes, and its logits (vocab floats, or NULL). */
struct larder_kv_cache *world_prefill(struct world *world, const uint32_t *tokens, uint32_t count,
                                      float *logits);
/* Stores what a plain prefill makes of these tokens. */
void world_store(struct world *world, const uint32_t *tokens, uint32_t count);

/* Three pieces of the text and a question; the first piece begins with the start token. */
struct world_prompt {
    uint32_t tokens[WORLD_TOKENS_MAX];
    uint32_t count;
    uint32_t firsts[WORLD_PIECES + 1]; /* of the pieces and the suffix */
    struct larder_prompt pieces[WORLD_PIECES];
    struct larder_blend_request request;
};
void world_prompt(const struct world *world, struct world_prompt *out, const uint32_t *firsts,
                  const uint32_t *counts, uint32_t suffix);
/* Stores each piece as a chain of its own. */
void world_store_pieces(struct world *world, const struct world_prompt *prompt);

/* Are rows [first, end) of two caches the same bytes in all layers? */
bool world_same_rows(const struct larder_kv_cache *a, const struct larder_kv_cache *b,
                     uint32_t kinds, uint32_t first, uint32_t end);

#endif
