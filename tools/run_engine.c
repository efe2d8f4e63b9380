/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/run_engine.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "base/mem.h"
#include "client/cache_layout.h"

static double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

/* --- the prompt ------------------------------------------------------------------------------ */

/* The start token, then a token a byte; room for what is generated. */
static int make_tokens(struct run_engine *engine, const char *text, size_t bytes)
{
    const struct larder_model_config *config = engine->config;
    const uint64_t count = bytes + (config->bos >= 0);
    const uint64_t room = count + engine->options->tokens;
    if (count == 0)
        return larder_fail(-EINVAL, "the prompt is empty, and the model has no start token");
    if (room > config->positions_max)
        return larder_fail(LARDER_ELIMIT,
                           "%" PRIu64 " prompt tokens and %u to generate are more than the "
                           "model's context of %u",
                           count, engine->options->tokens, config->positions_max);
    engine->tokens = larder_alloc(room * sizeof(*engine->tokens));
    if (!engine->tokens)
        return larder_fail(-ENOMEM, "no memory for %" PRIu64 " tokens", room);
    if (config->bos >= 0)
        engine->tokens[engine->prompt_tokens++] = (uint32_t)config->bos;
    for (size_t i = 0; i < bytes; i++)
        engine->tokens[engine->prompt_tokens++] = (unsigned char)text[i];
    return 0;
}

/* --- the store ------------------------------------------------------------------------------- */

/* Without a daemon the run goes on; a model that the daemon refuses is an error. */
static int connect_store(struct run_engine *engine)
{
    const struct run_options *options = engine->options;
    if (options->no_store)
        return 0;
    const struct larder_options connection = {
        .socket = options->socket,
        .threads = options->threads < 64 ? options->threads : 64,
    };
    int err = larder_connect(&engine->larder, &connection);
    if (!options->store_needed && (err == LARDER_EDOWN || err == -EACCES)) {
        fprintf(stderr, "%s: %s; going on without\n", program_invocation_short_name,
                larder_last_error());
        return 0;
    }
    if (err == 0)
        err = larder_model_open(engine->larder, &engine->stored_model, &engine->desc);
    /* The message is the client library's; the rest of this program has its own. */
    return err < 0 ? larder_fail(err, "%s", larder_last_error()) : 0;
}

static struct larder_prompt whole_prompt(const struct run_engine *engine)
{
    return (struct larder_prompt){.tokens = engine->tokens, .token_count = engine->prompt_tokens};
}

/* Fills the cache's first rows with what is stored; the last token is left to run: its logits are
 * needed. */
static void load_prompt(struct run_engine *engine, struct run_report *report)
{
    if (!engine->stored_model || engine->prompt_tokens < 2)
        return;
    const struct larder_prompt prompt = whole_prompt(engine);
    const struct larder_layout layout = larder_cache_layout(engine->cache);
    const double start = now_ms();
    int err = larder_get(engine->stored_model, &report->loaded, &prompt, &layout,
                         &(struct larder_get_options){.tokens_max = engine->prompt_tokens - 1,
                                                      .max_kl = engine->options->max_kl});
    report->load_ms = now_ms() - start;
    if (err < 0)
        fprintf(stderr, "%s: loading: %s; prefilling all\n", program_invocation_short_name,
                larder_last_error());
    else if (report->loaded.stop_error < 0)
        fprintf(stderr, "%s: %" PRIu64 " tokens loaded, then: %s\n", program_invocation_short_name,
                report->loaded.tokens, larder_strerror(report->loaded.stop_error));
    report->daemon = err == 0;
    engine->cache->count = (uint32_t)report->loaded.tokens;
}

/* Stores the prompt's KV, what is not there yet. */
static void store_prompt(struct run_engine *engine, struct run_report *report)
{
    if (!engine->stored_model)
        return;
    const struct larder_prompt prompt = whole_prompt(engine);
    const struct larder_layout layout = larder_cache_layout(engine->cache);
    const struct larder_put_options options = {
        .wait = engine->options->durable ? LARDER_DURABLE : LARDER_CACHED,
        .recipe = engine->options->recipe,
        .max_kl = engine->options->recipe ? 0 : engine->options->max_kl,
        .computed_on = (enum larder_quality)report->loaded.quality,
        .computed_on_kl = report->loaded.kl,
    };
    const double start = now_ms();
    int err = larder_put(engine->stored_model, &report->stored, &prompt, &layout, &options);
    report->store_ms = now_ms() - start;
    if (err < 0)
        fprintf(stderr, "%s: storing ended after %" PRIu64 " of %u tokens: %s\n",
                program_invocation_short_name, report->stored.tokens, engine->prompt_tokens,
                larder_last_error());
}

/* --- generating ------------------------------------------------------------------------------ */

static bool is_end(const struct run_engine *engine, uint32_t token)
{
    const struct larder_model_config *config = engine->config;
    if (engine->options->one_line && token == '\n')
        return true;
    for (uint32_t i = 0; i < config->eos_count; i++)
        if (config->eos[i] == token)
            return true;
    return false;
}

static void add_text(struct run_engine *engine, struct run_report *report, uint32_t token)
{
    if (token >= 256)
        return;
    report->text[report->text_bytes++] = (char)token;
    if (!engine->options->silent) {
        putchar((int)token);
        fflush(stdout);
    }
}

/* Stores the pieces that are not stored, and blends; false: all is still to be computed. */
static int try_blend(struct run_engine *engine, struct run_report *report, bool *done)
{
    struct run_pieces *pieces = engine->options->pieces;
    *done = false;
    if (pieces->count == 0 || !engine->stored_model)
        return 0;
    LARDER_TRY(run_pieces_store(pieces, engine->stored_model, engine->model,
                                engine->options->durable ? LARDER_DURABLE : LARDER_CACHED));
    report->forwarded_pieces = larder_llama_forwarded(engine->model);
    *done = run_pieces_blend(pieces, engine->stored_model, engine->cache, engine->logits,
                             engine->tokens, engine->prompt_tokens, engine->model);
    return 0;
}

static int generate(struct run_engine *engine, struct run_report *report)
{
    const uint32_t vocab = engine->config->vocab;
    const uint32_t count = engine->prompt_tokens;
    report->daemon = engine->stored_model != NULL;
    bool blended;
    LARDER_TRY(try_blend(engine, report, &blended));
    const double start = now_ms() - engine->options->pieces->blend_ms;
    if (!blended) {
        load_prompt(engine, report);
        const uint32_t restored = engine->cache->count;
        LARDER_TRY(larder_llama_forward(engine->model, engine->cache, engine->logits,
                                        LARDER_LOGITS_LAST, engine->tokens + restored,
                                        count - restored));
    }
    uint32_t token = larder_sampler_pick(&engine->sampler, engine->logits, vocab);
    const double first = now_ms();
    report->ttft_ms = first - start;
    report->forwarded_first = larder_llama_forwarded(engine->model) - report->forwarded_pieces;
    while (report->generated < engine->options->tokens && !is_end(engine, token)) {
        engine->tokens[count + report->generated++] = token;
        add_text(engine, report, token);
        if (report->generated == engine->options->tokens)
            break;
        LARDER_TRY(larder_llama_forward(engine->model, engine->cache, engine->logits,
                                        LARDER_LOGITS_LAST, &token, 1));
        token = larder_sampler_pick(&engine->sampler, engine->logits, vocab);
    }
    report->generate_ms = now_ms() - first;
    report->forwarded_all = larder_llama_forwarded(engine->model) - report->forwarded_pieces;
    /* Blended KV is not put as if it were computed. */
    if (!blended)
        store_prompt(engine, report);
    return 0;
}

/* --- the engine ------------------------------------------------------------------------------ */

int run_open(struct run_engine *engine, const struct run_options *options)
{
    *engine = (struct run_engine){.options = options};
    LARDER_TRY(larder_device_open(&engine->device, "cpu",
                                  &(struct larder_device_options){.threads = options->threads}));
    LARDER_TRY(larder_llama_open(&engine->model, engine->device, options->model));
    engine->config = larder_llama_config(engine->model);
    if (engine->config->vocab < 256)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "the model's vocabulary of %u is smaller than a byte's",
                           engine->config->vocab);
    LARDER_TRY(larder_llama_describe(engine->model, &engine->desc, 0));
    engine->sampler = (struct larder_sampler){
        .temperature = options->temperature, .top_k = options->top_k, .state = options->seed};
    return connect_store(engine);
}

int run_answer(struct run_engine *engine, struct run_report *report, const char *text, size_t bytes)
{
    *report = (struct run_report){0};
    LARDER_TRY(make_tokens(engine, text, bytes));
    LARDER_TRY(larder_llama_cache_open(engine->model, &engine->cache,
                                       engine->prompt_tokens + engine->options->tokens, 0));
    report->prompt_tokens = engine->prompt_tokens;
    engine->logits = larder_alloc(engine->config->vocab * sizeof(*engine->logits));
    report->text = larder_alloc(engine->options->tokens + 1);
    if (!engine->logits || !report->text)
        return larder_fail(-ENOMEM, "no memory for logits and a text");
    return generate(engine, report);
}

void run_close(struct run_engine *engine)
{
    larder_model_close(engine->stored_model);
    larder_close(engine->larder);
    larder_free(engine->logits);
    larder_kv_cache_close(engine->cache);
    larder_free(engine->tokens);
    larder_llama_close(engine->model);
    larder_device_close(engine->device);
}

/* --- JSON ------------------------------------------------------------------------------------ */

/* Bytes of a valid UTF-8 sequence at `text`, 0 when there is none. */
static size_t utf8_bytes(const unsigned char *text, size_t left)
{
    const unsigned char lead = text[0];
    const size_t bytes = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    if (bytes == 0 || lead > 0xf4 || bytes > left)
        return 0;
    for (size_t i = 1; i < bytes; i++)
        if ((text[i] & 0xc0) != 0x80)
            return 0;
    if ((lead == 0xe0 && text[1] < 0xa0) || (lead == 0xed && text[1] >= 0xa0) ||
        (lead == 0xf0 && text[1] < 0x90) || (lead == 0xf4 && text[1] >= 0x90))
        return 0;
    return bytes;
}

/* A JSON string is UTF-8; a model of bytes need not be: each bad byte becomes U+FFFD. */
json_t *run_text_json(const char *text, size_t bytes)
{
    char *valid = larder_alloc(3 * bytes + 1);
    if (!valid)
        return NULL;
    size_t count = 0;
    for (size_t i = 0; i < bytes;) {
        size_t length = utf8_bytes((const unsigned char *)text + i, bytes - i);
        memcpy(valid + count, length ? text + i : "\xef\xbf\xbd", length ? length : 3);
        count += length ? length : 3;
        i += length ? length : 1;
    }
    json_t *json = json_stringn(valid, count);
    larder_free(valid);
    return json;
}
