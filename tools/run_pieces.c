/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/run_pieces.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "base/mem.h"
#include "client/cache_layout.h"

#define PROMPT_BYTES_MAX (4u << 20)

static double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

/* --- reading --------------------------------------------------------------------------------- */

int run_read_prompt(char **out, size_t *out_bytes, const char *path)
{
    *out = NULL;
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
    if (!file)
        return larder_fail(-errno, "%s: %s", path, strerror(errno));
    char *text = larder_alloc(PROMPT_BYTES_MAX + 1);
    int err = text ? 0 : larder_fail(-ENOMEM, "no memory for a prompt");
    if (err == 0) {
        *out_bytes = fread(text, 1, PROMPT_BYTES_MAX + 1, file);
        if (ferror(file))
            err = larder_fail(-EIO, "%s: cannot be read", path);
        else if (*out_bytes > PROMPT_BYTES_MAX)
            err = larder_fail(LARDER_ELIMIT, "%s: a text is at most %u bytes", path,
                              PROMPT_BYTES_MAX);
    }
    if (file != stdin)
        fclose(file);
    if (err < 0) {
        larder_free(text);
        return err;
    }
    char *fitting = larder_realloc(text, *out_bytes + 1);
    *out = fitting ? fitting : text;
    return 0;
}

int run_pieces_read(struct run_pieces *pieces)
{
    for (uint32_t i = 0; i < pieces->count; i++)
        LARDER_TRY(run_read_prompt(&pieces->texts[i], &pieces->bytes[i], pieces->paths[i]));
    return 0;
}

int run_pieces_join(const struct run_pieces *pieces, char **out, size_t *out_bytes,
                    const char *prompt, size_t bytes)
{
    size_t at = 0;
    for (uint32_t i = 0; i < pieces->count; i++)
        at += pieces->bytes[i];
    *out_bytes = at + bytes;
    *out = larder_alloc(*out_bytes + 1);
    if (!*out)
        return larder_fail(-ENOMEM, "no memory for a prompt");
    at = 0;
    for (uint32_t i = 0; i < pieces->count; i++) {
        memcpy(*out + at, pieces->texts[i], pieces->bytes[i]);
        at += pieces->bytes[i];
    }
    memcpy(*out + at, prompt, bytes);
    return 0;
}

/* --- chunks ---------------------------------------------------------------------------------- */

static int prefill_and_put(struct larder_model *stored, struct larder_llama *llama,
                           const struct larder_prompt *chunk, enum larder_wait wait)
{
    struct larder_kv_cache *cache;
    struct larder_put_result result;
    const struct larder_put_options options = {.wait = wait};
    LARDER_TRY(larder_llama_cache_open(llama, &cache, (uint32_t)chunk->token_count, 0));
    int err = larder_llama_forward(llama, cache, NULL, LARDER_LOGITS_NONE, chunk->tokens,
                                   chunk->token_count);
    if (err == 0) {
        const struct larder_layout layout = larder_cache_layout(cache);
        err = larder_put(stored, &result, chunk, &layout, &options);
        if (err < 0)
            larder_fail(err, "%s", larder_last_error());
    }
    larder_kv_cache_close(cache);
    return err;
}

int run_chunk_tokens(struct larder_prompt *out, uint32_t **tokens, const char *text, size_t bytes,
                     const struct larder_model_config *config)
{
    const uint64_t room = (uint64_t)bytes + 1;
    *tokens = NULL;
    *out = (struct larder_prompt){0};
    if (room > config->positions_max)
        return larder_fail(LARDER_ELIMIT, "%" PRIu64 " tokens are more than the model's %u", room,
                           config->positions_max);
    *tokens = larder_alloc(room * sizeof(**tokens));
    if (!*tokens)
        return larder_fail(-ENOMEM, "no memory for %" PRIu64 " tokens", room);
    if (config->bos >= 0)
        (*tokens)[out->token_count++] = (uint32_t)config->bos;
    for (size_t i = 0; i < bytes; i++)
        (*tokens)[out->token_count++] = (unsigned char)text[i];
    out->tokens = *tokens;
    return 0;
}

int run_chunk_store(const char *text, size_t bytes, struct larder_model *stored,
                    struct larder_llama *llama, enum larder_wait wait, uint32_t *stored_now)
{
    uint32_t *tokens;
    struct larder_prompt chunk;
    struct larder_lookup_result found;
    LARDER_TRY(run_chunk_tokens(&chunk, &tokens, text, bytes, larder_llama_config(llama)));
    int err = larder_lookup(stored, &found, &chunk, LARDER_QUALITY_LOSSY);
    if (err < 0) {
        larder_fail(err, "%s", larder_last_error());
    } else if (found.tokens < chunk.token_count) {
        err = prefill_and_put(stored, llama, &chunk, wait);
        *stored_now += err == 0;
    }
    larder_free(tokens);
    return err;
}

int run_pieces_store(struct run_pieces *pieces, struct larder_model *stored,
                     struct larder_llama *llama, enum larder_wait wait)
{
    const double start = now_ms();
    for (uint32_t i = 0; i < pieces->count; i++) {
        int err = run_chunk_store(pieces->texts[i], pieces->bytes[i], stored, llama, wait,
                                  &pieces->stored);
        if (err == -ENOMEM)
            return err;
        if (err < 0)
            fprintf(stderr, "%s: storing %s: %s\n", program_invocation_short_name, pieces->paths[i],
                    larder_error_message());
    }
    pieces->store_ms = now_ms() - start;
    return 0;
}

/* --- the blend ------------------------------------------------------------------------------- */

bool run_pieces_blend(struct run_pieces *pieces, struct larder_model *stored,
                      struct larder_kv_cache *cache, float *logits, const uint32_t *tokens,
                      uint32_t token_count, const struct larder_llama *llama)
{
    const struct larder_model_config *config = larder_llama_config(llama);
    struct larder_prompt prompts[RUN_PIECES_MAX];
    const struct larder_layout layout = larder_cache_layout(cache);
    /* The start token is the first piece's. */
    uint32_t at = 0;
    for (uint32_t i = 0; i < pieces->count; i++) {
        const uint32_t count = (uint32_t)pieces->bytes[i] + (i == 0 && config->bos >= 0);
        prompts[i] = (struct larder_prompt){.tokens = tokens + at, .token_count = count};
        at += count;
    }
    const struct larder_blend_request request = {
        .pieces = prompts,
        .piece_count = pieces->count,
        .suffix = {.tokens = tokens + at, .token_count = token_count - at},
        .method = pieces->method,
        .worst = LARDER_QUALITY_LOSSY,
        .deadline_ms = pieces->deadline_ms,
    };
    const double start = now_ms();
    int err = larder_blend(stored, &pieces->result, &request, &layout);
    pieces->blend_ms = now_ms() - start;
    if (err < 0) {
        fprintf(stderr, "%s: blending: %s; prefilling all\n", program_invocation_short_name,
                larder_last_error());
        return false;
    }
    pieces->blended = true;
    cache->count = token_count;
    memcpy(logits, pieces->result.logits, config->vocab * sizeof(*logits));
    return true;
}

uint64_t run_pieces_tokens(const struct run_pieces *pieces, enum larder_blend_source source)
{
    uint64_t tokens = 0;
    for (uint32_t i = 0; i < pieces->result.span_count; i++) {
        if (pieces->result.spans[i].source == source)
            tokens += pieces->result.spans[i].count;
    }
    return tokens;
}

void run_pieces_print(const struct run_pieces *pieces)
{
    static const char *const qualities[] = {"exact", "lossy", "blended"};
    const struct larder_blended *result = &pieces->result;
    if (pieces->stored > 0)
        fprintf(stderr, "pieces stored    %u in %.1f ms\n", pieces->stored, pieces->store_ms);
    if (!pieces->blended)
        return;
    fprintf(stderr,
            "blended          %" PRIu64 " tokens a stored prefix, %" PRIu64 " moved, %" PRIu64
            " missing, %" PRIu64 " of the question\n"
            "computed         %.1f %% of the context, in %.1f ms; waited %.1f ms for stored KV, "
            "%.1f ms for the worker; %s%s\n",
            run_pieces_tokens(pieces, LARDER_BLEND_PREFIX),
            run_pieces_tokens(pieces, LARDER_BLEND_MOVED),
            run_pieces_tokens(pieces, LARDER_BLEND_MISSING),
            run_pieces_tokens(pieces, LARDER_BLEND_SUFFIX), 100 * result->share,
            (double)result->compute_us / 1e3, (double)result->load_us / 1e3,
            (double)result->wait_us / 1e3, qualities[result->quality],
            result->replanned ? "; something planned was gone" : "");
}

json_t *run_pieces_json(const struct run_pieces *pieces)
{
    const struct larder_blended *result = &pieces->result;
    return json_pack("{s:b, s:I, s:f, s:I, s:I, s:I, s:I, s:f, s:I, s:f, s:f, s:f, s:f}", "done",
                     (int)pieces->blended, "pieces_stored", (json_int_t)pieces->stored,
                     "pieces_store_ms", pieces->store_ms, "prefix_tokens",
                     (json_int_t)run_pieces_tokens(pieces, LARDER_BLEND_PREFIX), "moved_tokens",
                     (json_int_t)run_pieces_tokens(pieces, LARDER_BLEND_MOVED), "missing_tokens",
                     (json_int_t)run_pieces_tokens(pieces, LARDER_BLEND_MISSING), "suffix_tokens",
                     (json_int_t)run_pieces_tokens(pieces, LARDER_BLEND_SUFFIX), "share",
                     result->share, "quality", (json_int_t)result->quality, "wait_ms",
                     (double)result->wait_us / 1e3, "load_ms", (double)result->load_us / 1e3,
                     "compute_ms", (double)result->compute_us / 1e3, "blend_ms", pieces->blend_ms);
}

void run_pieces_close(struct run_pieces *pieces)
{
    for (uint32_t i = 0; i < pieces->count; i++)
        larder_free(pieces->texts[i]);
    larder_blended_free(&pieces->result);
}
