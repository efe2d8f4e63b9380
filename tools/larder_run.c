/* SPDX-License-Identifier: Apache-2.0 */
/* larder-run - the reference engine: a Llama-family forward on this machine's CPU that asks larder
 * for the KV of its prompt before it prefills, and stores what it had to compute.
 *
 * Tokens are bytes behind the model's start token, as the small models of this project are made.
 * Without a daemon it says so and prefills everything.
 */
#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/mem.h"
#include "client/cache_layout.h"
#include "client/larder.h"
#include "kernels/llama.h"
#include "kernels/sampler.h"
#include "tools/run_pieces.h"

#define TOKENS_DEFAULT     64u
#define CONTEXT_TOKENS_MAX (1u << 22)

const char *argp_program_version = "larder-run " LARDER_VERSION;

struct options {
    const char *model;
    const char *prompt;
    const char *prompt_file;
    const char *socket;
    const char *recipe;
    uint32_t tokens;
    uint32_t threads;
    uint32_t top_k;
    uint64_t seed;
    float temperature;
    float max_kl; /* 0: exact */
    bool no_store;
    bool durable;
    bool json;
    struct run_pieces *pieces;
};

/* What a run was like. */
struct report {
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
    char *text;
    size_t text_bytes;
};

struct engine {
    const struct options *options;
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

static double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

/* --- options --------------------------------------------------------------------------------- */

enum {
    OPTION_TEMPERATURE = 256,
    OPTION_SEED,
    OPTION_TOP_K,
    OPTION_NO_STORE,
    OPTION_RECIPE,
    OPTION_MAX_KL,
    OPTION_DURABLE,
    OPTION_JSON,
    OPTION_THREADS,
    OPTION_METHOD,
    OPTION_DEADLINE
};

static const struct argp_option option_list[] = {
    {"model", 'm', "DIR", 0, "Model directory: config.json and .safetensors files", 0},
    {"prompt", 'p', "TEXT", 0, "Prompt", 0},
    {"prompt-file", 'f', "FILE", 0, "Prompt from a file, - for stdin", 0},
    {"piece", 'i', "FILE", 0,
     "A piece of the prompt, before --prompt; may be repeated. Pieces are stored apart, and "
     "blended",
     0},
    {"method", OPTION_METHOD, "TEXT", 0,
     "How to blend pieces: \"link k=16\" (the worker's default)", 0},
    {"deadline-ms", OPTION_DEADLINE, "N", 0, "Of blending; then all is prefilled (60000)", 0},
    {"tokens", 'n', "N", 0, "Tokens to generate (64)", 0},
    {"temperature", OPTION_TEMPERATURE, "T", 0, "Sample at this temperature (0: greedy)", 0},
    {"top-k", OPTION_TOP_K, "K", 0, "Sample among the K likeliest (256)", 0},
    {"seed", OPTION_SEED, "N", 0, "Of the sampler (0)", 0},
    {"threads", OPTION_THREADS, "N", 0, "Threads (as many as there are cores)", 0},
    {"socket", 's', "PATH", 0, "The daemon's socket ($LARDER_SOCKET, " LARDER_SOCKET_DEFAULT ")",
     0},
    {"no-store", OPTION_NO_STORE, NULL, 0, "Neither load nor store KV", 0},
    {"recipe", OPTION_RECIPE, "TEXT", 0, "Store with this recipe (the daemon's default)", 0},
    {"max-kl", OPTION_MAX_KL, "NATS", 0,
     "Take lossy KV, too, whose recipe was measured to change predictions by at most so much; "
     "without --recipe, store with the smallest such recipe (0: exact only)",
     0},
    {"durable", OPTION_DURABLE, NULL, 0, "Wait until what is stored survives power loss", 0},
    {"json", OPTION_JSON, NULL, 0, "Print one JSON object", 0},
    {0},
};

static uint64_t parse_number(struct argp_state *state, const char *name, const char *text,
                             uint64_t most)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || end == text || *end || text[0] == '-' || value > most)
        argp_error(state, "--%s=%s is not a number from 0 to %llu", name, text,
                   (unsigned long long)most);
    return value;
}

static error_t parse_option(int key, char *text, struct argp_state *state)
{
    struct options *options = state->input;
    char *end;
    switch (key) {
    case 'm':
        options->model = text;
        return 0;
    case 'p':
        options->prompt = text;
        return 0;
    case 'f':
        options->prompt_file = text;
        return 0;
    case 'i':
        if (options->pieces->count == RUN_PIECES_MAX)
            argp_error(state, "more than %u pieces", RUN_PIECES_MAX);
        else
            options->pieces->paths[options->pieces->count++] = text;
        return 0;
    case OPTION_METHOD:
        options->pieces->method = text;
        return 0;
    case OPTION_DEADLINE:
        options->pieces->deadline_ms =
            (uint32_t)parse_number(state, "deadline-ms", text, UINT32_MAX);
        return 0;
    case 'n':
        options->tokens = (uint32_t)parse_number(state, "tokens", text, CONTEXT_TOKENS_MAX);
        return 0;
    case 's':
        options->socket = text;
        return 0;
    case OPTION_TEMPERATURE:
        options->temperature = strtof(text, &end);
        if (end == text || *end || !(options->temperature >= 0 && options->temperature <= 100))
            argp_error(state, "--temperature=%s is not a number from 0 to 100", text);
        return 0;
    case OPTION_TOP_K:
        options->top_k = (uint32_t)parse_number(state, "top-k", text, LARDER_TOP_K_MAX);
        return 0;
    case OPTION_SEED:
        options->seed = parse_number(state, "seed", text, UINT64_MAX);
        return 0;
    case OPTION_THREADS:
        options->threads = (uint32_t)parse_number(state, "threads", text, 1024);
        return 0;
    case OPTION_NO_STORE:
        options->no_store = true;
        return 0;
    case OPTION_RECIPE:
        options->recipe = text;
        return 0;
    case OPTION_MAX_KL:
        options->max_kl = strtof(text, &end);
        if (end == text || *end || !(options->max_kl >= 0 && options->max_kl <= 1000))
            argp_error(state, "--max-kl=%s is not a number from 0 to 1000", text);
        return 0;
    case OPTION_DURABLE:
        options->durable = true;
        return 0;
    case OPTION_JSON:
        options->json = true;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "unexpected argument: %s", text);
        return EINVAL;
    case ARGP_KEY_END:
        if (!options->model)
            argp_error(state, "--model is needed");
        if (!options->prompt == !options->prompt_file)
            argp_error(state, "one of --prompt and --prompt-file is needed");
        if (options->pieces->count == 0 && options->pieces->method)
            argp_error(state, "--method is of pieces: --piece FILE");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* --- the prompt ------------------------------------------------------------------------------ */

/* The start token, then a token a byte; room for what is generated. */
static int make_tokens(struct engine *engine, const char *text, size_t bytes)
{
    const struct larder_model_config *config = engine->config;
    const uint64_t count = bytes + (config->bos >= 0);
    const uint64_t room = count + engine->options->tokens;
    if (count == 0)
        return larder_fail(-EINVAL, "the prompt is empty, and the model has no start token");
    if (config->vocab < 256)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "the model's vocabulary of %u is smaller than a "
                           "byte's",
                           config->vocab);
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
static int connect_store(struct engine *engine)
{
    const struct options *options = engine->options;
    if (options->no_store)
        return 0;
    const struct larder_options connection = {
        .socket = options->socket,
        .threads = options->threads < 64 ? options->threads : 64,
    };
    int err = larder_connect(&engine->larder, &connection);
    if (err == LARDER_EDOWN || err == -EACCES) {
        fprintf(stderr, "larder-run: %s; going on without\n", larder_last_error());
        return 0;
    }
    if (err == 0)
        err = larder_model_open(engine->larder, &engine->stored_model, &engine->desc);
    /* The message is the client library's; the rest of this program has its own. */
    return err < 0 ? larder_fail(err, "%s", larder_last_error()) : 0;
}

static struct larder_prompt whole_prompt(const struct engine *engine)
{
    return (struct larder_prompt){.tokens = engine->tokens, .token_count = engine->prompt_tokens};
}

/* Fills the cache's first rows with what is stored; the last token is left to run: its logits are
 * needed. */
static void load_prompt(struct engine *engine, struct report *report)
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
        fprintf(stderr, "larder-run: loading: %s; prefilling all\n", larder_last_error());
    else if (report->loaded.stop_error < 0)
        fprintf(stderr, "larder-run: %" PRIu64 " tokens loaded, then: %s\n", report->loaded.tokens,
                larder_strerror(report->loaded.stop_error));
    report->daemon = err == 0;
    engine->cache->count = (uint32_t)report->loaded.tokens;
}

/* Stores the prompt's KV, what is not there yet. */
static void store_prompt(struct engine *engine, struct report *report)
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
        fprintf(stderr, "larder-run: storing ended after %" PRIu64 " of %u tokens: %s\n",
                report->stored.tokens, engine->prompt_tokens, larder_last_error());
}

/* --- generating ------------------------------------------------------------------------------ */

static bool is_end(const struct larder_model_config *config, uint32_t token)
{
    for (uint32_t i = 0; i < config->eos_count; i++)
        if (config->eos[i] == token)
            return true;
    return false;
}

static void add_text(struct engine *engine, struct report *report, uint32_t token)
{
    if (token >= 256)
        return;
    report->text[report->text_bytes++] = (char)token;
    if (!engine->options->json) {
        putchar((int)token);
        fflush(stdout);
    }
}

/* Stores the pieces that are not stored, and blends; false: all is still to be computed. */
static int try_blend(struct engine *engine, struct report *report, bool *done)
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

static int generate(struct engine *engine, struct report *report)
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
    while (report->generated < engine->options->tokens && !is_end(engine->config, token)) {
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

/* --- reporting ------------------------------------------------------------------------------- */

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
static json_t *text_json(const char *text, size_t bytes)
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

/* What was not measured is null. */
static json_t *kl_json(float kl)
{
    return isfinite(kl) ? json_real((double)kl) : json_null();
}

static int print_json(const struct engine *engine, const struct report *report)
{
    json_t *json = json_pack(
        "{s:o, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:o, s:s, "
        "s:o, "
        "s:b, s:b, s:s}",
        "text", text_json(report->text, report->text_bytes), "prompt_tokens",
        (json_int_t)report->prompt_tokens, "restored_tokens", (json_int_t)report->loaded.tokens,
        "forwarded_tokens", (json_int_t)report->forwarded_first, "forwarded_tokens_all",
        (json_int_t)report->forwarded_all, "generated_tokens", (json_int_t)report->generated,
        "ttft_ms", report->ttft_ms, "load_ms", report->load_ms, "generate_ms", report->generate_ms,
        "store_ms", report->store_ms, "loaded_bytes", (json_int_t)report->loaded.bytes,
        "loaded_bytes_ssd", (json_int_t)report->loaded.bytes_ssd, "stored_tokens",
        (json_int_t)report->stored.tokens, "stored_tokens_new",
        (json_int_t)report->stored.tokens_new, "stored_bytes",
        (json_int_t)report->stored.bytes_stored, "loaded_kl", kl_json(report->loaded.kl),
        "stored_recipe", report->stored.recipe, "stored_kl", kl_json(report->stored.kl),
        "stored_unmeasured", (int)report->stored.unmeasured, "daemon", (int)report->daemon,
        "device", larder_device_describe(engine->device));
    const struct run_pieces *pieces = engine->options->pieces;
    if (json && pieces->count > 0 &&
        json_object_set_new(json, "blend", run_pieces_json(pieces)) < 0) {
        json_decref(json);
        json = NULL;
    }
    if (!json)
        return larder_fail(-ENOMEM, "no memory for a report");
    int err = json_dumpf(json, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
    putchar('\n');
    json_decref(json);
    return err < 0 ? larder_fail(-EIO, "the report cannot be written") : 0;
}

static void print_report(const struct engine *engine, const struct report *report)
{
    putchar('\n');
    fflush(stdout);
    fprintf(stderr,
            "\nprompt           %u tokens: %" PRIu64 " restored, %" PRIu64 " forwarded\n"
            "first token in   %.1f ms",
            report->prompt_tokens, report->loaded.tokens, report->forwarded_first, report->ttft_ms);
    if (report->loaded.tokens > 0)
        fprintf(stderr, ", of that %.1f ms loading %" PRIu64 " bytes (%" PRIu64 " from SSD)",
                report->load_ms, report->loaded.bytes, report->loaded.bytes_ssd);
    fprintf(stderr, "\ngenerated        %u tokens in %.1f ms\n", report->generated,
            report->generate_ms);
    if (report->loaded.kl > 0 && isfinite(report->loaded.kl))
        fprintf(stderr, "restored at      a KL of %.3g nats a token, as measured of its recipes\n",
                (double)report->loaded.kl);
    run_pieces_print(engine->options->pieces);
    if (report->daemon && !engine->options->pieces->blended)
        fprintf(stderr,
                "stored           %" PRIu64 " tokens, %" PRIu64 " new: %" PRIu64
                " bytes in %.1f ms%s%s%s\n",
                report->stored.tokens, report->stored.tokens_new, report->stored.bytes_stored,
                report->store_ms, report->stored.tokens_new ? ", recipe " : "",
                report->stored.tokens_new ? report->stored.recipe : "",
                report->stored.unmeasured ? ": no recipe was measured to keep --max-kl" : "");
}

/* --- main ------------------------------------------------------------------------------------ */

static int open_engine(struct engine *engine, const char *text, size_t bytes)
{
    const struct options *options = engine->options;
    LARDER_TRY(larder_device_open(&engine->device, "cpu",
                                  &(struct larder_device_options){.threads = options->threads}));
    LARDER_TRY(larder_llama_open(&engine->model, engine->device, options->model));
    engine->config = larder_llama_config(engine->model);
    LARDER_TRY(make_tokens(engine, text, bytes));
    LARDER_TRY(larder_llama_describe(engine->model, &engine->desc, 0));
    LARDER_TRY(larder_llama_cache_open(engine->model, &engine->cache,
                                       engine->prompt_tokens + options->tokens, 0));
    engine->logits = larder_alloc(engine->config->vocab * sizeof(*engine->logits));
    if (!engine->logits)
        return larder_fail(-ENOMEM, "no memory for logits");
    engine->sampler = (struct larder_sampler){
        .temperature = options->temperature, .top_k = options->top_k, .state = options->seed};
    return connect_store(engine);
}

static void close_engine(struct engine *engine)
{
    larder_model_close(engine->stored_model);
    larder_close(engine->larder);
    larder_free(engine->logits);
    larder_kv_cache_close(engine->cache);
    larder_free(engine->tokens);
    larder_llama_close(engine->model);
    larder_device_close(engine->device);
}

static int run(const struct options *options, const char *text, size_t bytes)
{
    struct engine engine = {.options = options};
    struct report report = {0};
    report.text = larder_alloc(options->tokens + 1);
    int err = report.text ? 0 : larder_fail(-ENOMEM, "no memory for the text");
    if (err == 0)
        err = open_engine(&engine, text, bytes);
    if (err == 0) {
        report.prompt_tokens = engine.prompt_tokens;
        err = generate(&engine, &report);
    }
    if (err == 0 && options->json)
        err = print_json(&engine, &report);
    else if (err == 0)
        print_report(&engine, &report);
    close_engine(&engine);
    larder_free(report.text);
    return err;
}

int main(int argc, char **argv)
{
    static const struct argp argp = {
        .options = option_list,
        .parser = parse_option,
        .doc = "Generates text from a Llama-family model on the CPU; KV of prompts it has seen is "
               "restored from larder instead of computed.",
    };
    static struct run_pieces pieces;
    struct options options = {.tokens = TOKENS_DEFAULT, .pieces = &pieces};
    argp_parse(&argp, argc, argv, 0, NULL, &options);
    char *file_text = NULL;
    size_t bytes = options.prompt ? strlen(options.prompt) : 0;
    int err = options.prompt_file ? run_read_prompt(&file_text, &bytes, options.prompt_file) : 0;
    if (err == 0 && pieces.count > 0) {
        char *prompt = file_text ? file_text : larder_strdup(options.prompt);
        file_text = NULL;
        err = prompt ? run_pieces_read(&pieces, &file_text, &bytes, prompt)
                     : larder_fail(-ENOMEM, "no memory for a prompt");
    }
    if (err == 0)
        err = run(&options, file_text ? file_text : options.prompt, bytes);
    if (err < 0)
        fprintf(stderr, "larder-run: %s\n", larder_error_message());
    larder_free(file_text);
    run_pieces_close(&pieces);
    return err < 0 ? 1 : 0;
}
