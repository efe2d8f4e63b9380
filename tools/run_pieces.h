/* SPDX-License-Identifier: Apache-2.0 */
/* run_pieces.h - prompts of larder-run and larder rag that are made of pieces: stored apart,
 * blended by larderd.
 * Owns:    the pieces' texts; what was said of the blend, until run_pieces_close().
 * Threads: one.
 */
#ifndef LARDER_TOOLS_RUN_PIECES_H
#define LARDER_TOOLS_RUN_PIECES_H

#include <jansson.h>
#include <stdbool.h>

#include "client/larder.h"
#include "kernels/llama.h"

#define RUN_PIECES_MAX 256u

struct run_pieces {
    /* the caller's */
    const char *paths[RUN_PIECES_MAX]; /* files, or names in messages */
    uint32_t count;
    const char *method; /* NULL: the worker's default */
    uint32_t deadline_ms;

    char *texts[RUN_PIECES_MAX];
    size_t bytes[RUN_PIECES_MAX];
    uint32_t stored; /* that were not, and are now */
    double store_ms;
    bool blended;
    double blend_ms; /* the call, whatever came of it */
    struct larder_blended result;
};

/* The text of a file, - for standard input; at most 4 MiB. */
int run_read_prompt(char **out, size_t *out_bytes, const char *path);
/* Reads the pieces' texts from their paths. */
int run_pieces_read(struct run_pieces *pieces);
/* They, and the prompt behind them; *out is for larder_free(). */
int run_pieces_join(const struct run_pieces *pieces, char **out, size_t *out_bytes,
                    const char *prompt, size_t bytes);

/* A text as a chunk: the start token, if the model has one, and each byte. *tokens: for
 * larder_free(). */
int run_chunk_tokens(struct larder_prompt *out, uint32_t **tokens, const char *text, size_t bytes,
                     const struct larder_model_config *config);
/* Computes and stores a chunk, as a chain of its own, unless it is stored: else *stored_now rises
 * by 1. */
int run_chunk_store(const char *text, size_t bytes, struct larder_model *stored,
                    struct larder_llama *llama, enum larder_wait wait, uint32_t *stored_now);
/* The same of all pieces. Trouble with the store is told on standard error, no failure. */
int run_pieces_store(struct run_pieces *pieces, struct larder_model *stored,
                     struct larder_llama *llama, enum larder_wait wait);
/* Fills the cache with the KV of `tokens`: the start token, the pieces, and a suffix behind them;
 * and `logits` with those of the last one. Not done, and told, when larderd cannot. */
bool run_pieces_blend(struct run_pieces *pieces, struct larder_model *stored,
                      struct larder_kv_cache *cache, float *logits, const uint32_t *tokens,
                      uint32_t token_count, const struct larder_llama *llama);
void run_pieces_print(const struct run_pieces *pieces);
json_t *run_pieces_json(const struct run_pieces *pieces);
void run_pieces_close(struct run_pieces *pieces);

/* Tokens whose KV came from there. */
uint64_t run_pieces_tokens(const struct run_pieces *pieces, enum larder_blend_source source);

#endif
