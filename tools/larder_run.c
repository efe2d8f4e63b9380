/* SPDX-License-Identifier: Apache-2.0 */
/* larder-run - the reference engine: a Llama-family forward on this machine's CPU that asks larder
 * for the KV of its prompt before it prefills, and stores what it had to compute.
 *
 * Tokens are bytes behind the model's start token, as the small models of this project are made.
 * Without a daemon it says so and prefills everything.
 */
#include <argp.h>
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "tools/run_engine.h"

const char *argp_program_version = "larder-run " LARDER_VERSION;

struct options {
    struct run_options run;
    const char *prompt;
    const char *prompt_file;
    bool json;
};

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
        options->run.model = text;
        return 0;
    case 'p':
        options->prompt = text;
        return 0;
    case 'f':
        options->prompt_file = text;
        return 0;
    case 'i':
        if (options->run.pieces->count == RUN_PIECES_MAX)
            argp_error(state, "more than %u pieces", RUN_PIECES_MAX);
        else
            options->run.pieces->paths[options->run.pieces->count++] = text;
        return 0;
    case OPTION_METHOD:
        options->run.pieces->method = text;
        return 0;
    case OPTION_DEADLINE:
        options->run.pieces->deadline_ms =
            (uint32_t)parse_number(state, "deadline-ms", text, UINT32_MAX);
        return 0;
    case 'n':
        options->run.tokens = (uint32_t)parse_number(state, "tokens", text, RUN_TOKENS_MAX);
        return 0;
    case 's':
        options->run.socket = text;
        return 0;
    case OPTION_TEMPERATURE:
        options->run.temperature = strtof(text, &end);
        if (end == text || *end ||
            !(options->run.temperature >= 0 && options->run.temperature <= 100))
            argp_error(state, "--temperature=%s is not a number from 0 to 100", text);
        return 0;
    case OPTION_TOP_K:
        options->run.top_k = (uint32_t)parse_number(state, "top-k", text, LARDER_TOP_K_MAX);
        return 0;
    case OPTION_SEED:
        options->run.seed = parse_number(state, "seed", text, UINT64_MAX);
        return 0;
    case OPTION_THREADS:
        options->run.threads = (uint32_t)parse_number(state, "threads", text, 1024);
        return 0;
    case OPTION_NO_STORE:
        options->run.no_store = true;
        return 0;
    case OPTION_RECIPE:
        options->run.recipe = text;
        return 0;
    case OPTION_MAX_KL:
        options->run.max_kl = strtof(text, &end);
        if (end == text || *end || !(options->run.max_kl >= 0 && options->run.max_kl <= 1000))
            argp_error(state, "--max-kl=%s is not a number from 0 to 1000", text);
        return 0;
    case OPTION_DURABLE:
        options->run.durable = true;
        return 0;
    case OPTION_JSON:
        options->json = true;
        options->run.silent = true;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "unexpected argument: %s", text);
        return EINVAL;
    case ARGP_KEY_END:
        if (!options->run.model)
            argp_error(state, "--model is needed");
        if (!options->prompt == !options->prompt_file)
            argp_error(state, "one of --prompt and --prompt-file is needed");
        if (options->run.pieces->count == 0 && options->run.pieces->method)
            argp_error(state, "--method is of pieces: --piece FILE");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* --- reporting ------------------------------------------------------------------------------- */

/* What was not measured is null. */
static json_t *kl_json(float kl)
{
    return isfinite(kl) ? json_real((double)kl) : json_null();
}

static int print_json(const struct run_engine *engine, const struct run_report *report)
{
    json_t *json = json_pack(
        "{s:o, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:o, s:s, "
        "s:o, "
        "s:b, s:b, s:s}",
        "text", run_text_json(report->text, report->text_bytes), "prompt_tokens",
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

static void print_report(const struct run_engine *engine, const struct run_report *report)
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

static int run(const struct options *options, const char *text, size_t bytes)
{
    struct run_engine engine;
    struct run_report report = {0};
    int err = run_open(&engine, &options->run);
    if (err == 0)
        err = run_answer(&engine, &report, text, bytes);
    if (err == 0 && options->json)
        err = print_json(&engine, &report);
    else if (err == 0)
        print_report(&engine, &report);
    run_close(&engine);
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
    struct options options = {.run = {.tokens = RUN_TOKENS_DEFAULT, .pieces = &pieces}};
    argp_parse(&argp, argc, argv, 0, NULL, &options);
    char *file_text = NULL;
    char *text = NULL;
    size_t bytes = options.prompt ? strlen(options.prompt) : 0;
    int err = options.prompt_file ? run_read_prompt(&file_text, &bytes, options.prompt_file) : 0;
    if (err == 0)
        err = run_pieces_read(&pieces);
    if (err == 0)
        err =
            run_pieces_join(&pieces, &text, &bytes, file_text ? file_text : options.prompt, bytes);
    larder_free(file_text);
    if (err == 0)
        err = run(&options, text, bytes);
    if (err < 0)
        fprintf(stderr, "larder-run: %s\n", larder_error_message());
    larder_free(text);
    run_pieces_close(&pieces);
    return err < 0 ? 1 : 0;
}
