/* SPDX-License-Identifier: Apache-2.0 */
/* run_engine.h - the reference engine behind larder-run and larder rag: a forward on this machine's
 * CPU that asks larderd for KV before it computes, and stores what it had to compute.
 * Owns:    the model, the connection, the prompt's tokens and KV, until run_close().
 * Threads: one.
 * Errors:  0 or negative with a message; trouble with the store is told on standard error and is no
 *          failure, unless store_needed.
 */
#ifndef LARDER_TOOLS_RUN_ENGINE_H
#define LARDER_TOOLS_RUN_ENGINE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/larder.h"
#include "kernels/llama.h"
#include "kernels/sampler.h"
#include "tools/run_pieces.h"

#define RUN_TOKENS_DEFAULT 64u
#define RUN_TOKENS_MAX     (1u << 22)

struct run_options {
    const char *model; /* its directory */
    const char *socket;
    const char *recipe;
    uint32_t tokens; /* to generate */
    uint32_t threads;
    uint32_t top_k;
    uint64_t seed;
    float temperature;
    float max_kl; /* 0: exact */
    bool no_store;
    bool store_needed; /* no daemon: an error */
    bool durable;
    bool silent;   /* text is not printed as it comes */
    bool one_line; /* the text ends before its first line end */
    struct run_pieces *pieces;
};

/* What a run was like. */
struct run_report {
    uint32_t prompt_tokens;
    uint64_t forwarded_first; /* before the first token */
    uint64_t forwarded_all;
    uint64_t forwarded_pieces; /* to store them: on top */
    uint32_t generated;
    double ttft_ms;
    double load_ms; /* of that, the GET */
    double generate_ms;
    double store_ms;
    bool daemon;
    struct larder_get_result loaded;
    struct larder_put_result stored;
    char *text; /* for larder_free() */
    size_t text_bytes;
};

struct run_engine {
    const struct run_options *options;
    struct larder_device *device;
    struct larder_llama *model;
    const struct larder_model_config *config;
    struct larder_model_desc desc;
    struct larder_kv_cache *cache;
    uint32_t *tokens; /* prompt, then what was generated */
    uint32_t prompt_tokens;
    float *logits;
    struct larder_sampler sampler;
    struct larder *larder; /* NULL: no daemon */
    struct larder_model *stored_model;
};

/* The model, and the daemon if there is one. The engine is to be closed whatever came of it. */
int run_open(struct run_engine *engine, const struct run_options *options);
void run_close(struct run_engine *engine);

/* Once: the prompt's tokens, the start token and then each byte of the text (the pieces' in front
 * of it included), and memory for their KV; then the text that follows. */
int run_answer(struct run_engine *engine, struct run_report *report, const char *text,
               size_t bytes);

/* JSON strings are UTF-8; what a model of bytes says need not be: each bad byte becomes U+FFFD. */
json_t *run_text_json(const char *text, size_t bytes);

#endif
