/* SPDX-License-Identifier: Apache-2.0 */
/* larder_calibrate.c - `larder calibrate`: makes a model's profile from a text. No larderd. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/limits.h"
#include "base/mem.h"
#include "tools/calibrate/calibrate.h"
#include "tools/larder_commands.h"
#include "tools/larder_text.h"
#include "tools/larder_tokens.h"

#define TEXT_BYTES_MAX (64u << 20)

struct tokens {
    uint32_t *ids;
    uint64_t count;
};

/* What is printed beside the profile's name. */
struct outcome {
    const char *path;
    uint64_t bytes;
    struct larder_key name;
    uint64_t tokens;
    char recipe[LARDER_RECIPE_BYTES_MAX + 1]; /* empty: none */
    double recipe_bits;
    double recipe_kl;
};

/* Each byte a token: how the small models of this project are made. */
static int read_bytes(struct tokens *out, FILE *file, const char *path)
{
    uint8_t buffer[65536];
    size_t got;
    while ((got = fread(buffer, 1, sizeof(buffer), file)) > 0) {
        if (out->count + got > TEXT_BYTES_MAX)
            return larder_fail(LARDER_ELIMIT, "%s is longer than %u bytes", path, TEXT_BYTES_MAX);
        uint32_t *ids = larder_realloc(out->ids, (out->count + got) * sizeof(*ids));
        if (!ids)
            return larder_fail(-ENOMEM, "no memory for a text");
        out->ids = ids;
        for (size_t i = 0; i < got; i++)
            ids[out->count++] = buffer[i];
    }
    return ferror(file) ? larder_fail(-EIO, "cannot read %s: %m", path) : 0;
}

static int read_tokens(struct tokens *out, const struct command_options *options)
{
    if (options->tokens) {
        size_t count;
        LARDER_TRY(tokens_read(options->tokens, &out->ids, &count));
        out->count = count;
        return 0;
    }
    FILE *file = fopen(options->text, "re");
    if (!file)
        return larder_fail(-errno, "cannot open %s: %m", options->text);
    int err = read_bytes(out, file, options->text);
    fclose(file);
    return err;
}

static void step(void *context, const char *what, uint64_t done, uint64_t all)
{
    progress_step(context, what, done, all);
}

static int put_origin(const struct calibration *c, struct larder_profile_writer *writer)
{
    char text[2 * sizeof(c->digest) + 1];
    larder_hex(text, c->digest, sizeof(c->digest));
    LARDER_TRY(larder_profile_put_text(writer, "text", text));
    snprintf(text, sizeof(text), "%llu",
             (unsigned long long)c->window_count * (c->options->window_tokens - 1));
    LARDER_TRY(larder_profile_put_text(writer, "tokens", text));
    snprintf(text, sizeof(text), "%u", c->options->window_tokens);
    LARDER_TRY(larder_profile_put_text(writer, "window", text));
    return larder_profile_put_text(writer, "made_by", "larder " LARDER_VERSION);
}

/* Layers in runs as short as the recipe's text allows. */
static int choose_bits(const struct calibration *c, const struct calibration_cost *costs,
                       struct larder_profile_writer *writer, struct outcome *outcome)
{
    uint32_t layers = c->model.layers;
    uint8_t *choice = larder_alloc_zero(2ul, layers);
    int err = choice ? -ENOSPC : larder_fail(-ENOMEM, "no memory for a bit map");
    for (uint32_t run = 1; run <= layers && err == -ENOSPC; run++) {
        err = calibration_choose_bits(choice, &outcome->recipe_kl, costs, layers, run,
                                      c->options->budget_bits);
        if (err == 0)
            err = calibration_bits_recipe(outcome->recipe, sizeof(outcome->recipe), choice, layers);
    }
    uint32_t bits = 0;
    for (uint32_t i = 0; i < 2 * layers && err == 0; i++)
        bits += calibration_widths[choice[i]];
    outcome->recipe_bits = (double)bits / (2.0 * layers);
    if (err == 0)
        err = larder_profile_put(writer, "map.kvtuner", LARDER_PROFILE_U8, (uint64_t[]){layers, 2},
                                 2, choice);
    larder_free(choice);
    return err;
}

static int fill(struct calibration *c, struct larder_profile_writer *writer,
                struct outcome *outcome)
{
    LARDER_TRY(put_origin(c, writer));
    LARDER_TRY(calibration_read(c, writer));
    LARDER_TRY(calibration_sort_weights(c, writer));
    if (c->options->kl_windows > 0) {
        struct calibration_cost *costs;
        LARDER_TRY(calibration_measure_costs(c, &costs, writer));
        int err = choose_bits(c, costs, writer, outcome);
        larder_free(costs);
        LARDER_TRY(err);
        LARDER_TRY(calibration_make_house(c, writer));
        LARDER_TRY(calibration_choose_check_layer(c, writer));
    }
    LARDER_TRY(calibration_choose_cachegen(c, writer));
    /* Whose symbols get tables; those of all others are coded with models fitted to a section. */
    static const char *const coded[] = {"cachegen1", "cachegen2", "cachegen3"};
    return calibration_count_symbols(c, coded, LARDER_COUNT_OF(coded), writer);
}

/* Whole or not at all: a file beside it takes its name. */
static int save(const char *path, const void *bytes, uint64_t count)
{
    char beside[4096];
    if (snprintf(beside, sizeof(beside), "%s.new", path) >= (int)sizeof(beside))
        return larder_fail(-ENAMETOOLONG, "the name %.60s... is too long", path);
    FILE *file = fopen(beside, "we");
    if (!file)
        return larder_fail(-errno, "cannot make %s: %m", beside);
    bool good =
        fwrite(bytes, 1, count, file) == count && fflush(file) == 0 && fsync(fileno(file)) == 0;
    int problem = errno;
    if (fclose(file) != 0 && good) {
        good = false;
        problem = errno;
    }
    if (good && rename(beside, path) == 0)
        return 0;
    problem = good ? errno : problem;
    unlink(beside);
    return larder_fail(-problem, "cannot write %s: %s", path, strerror(problem));
}

static int calibrate(struct calibration *c, struct outcome *outcome)
{
    struct larder_profile_writer *writer;
    LARDER_TRY(larder_profile_writer_open(&writer, &c->model));
    void *bytes = NULL;
    int err = fill(c, writer, outcome);
    if (err == 0)
        err = larder_profile_finish(writer, &bytes, &outcome->bytes);
    larder_profile_writer_close(writer);
    if (err == 0)
        err = larder_sha256(&outcome->name, bytes, outcome->bytes);
    if (err == 0)
        err = save(outcome->path, bytes, outcome->bytes);
    outcome->tokens = (uint64_t)c->window_count * (c->options->window_tokens - 1);
    larder_free(bytes);
    return err;
}

static void print_outcome(const struct command_options *options, const struct outcome *outcome)
{
    char name[2 * sizeof(outcome->name.bytes) + 1];
    larder_hex(name, outcome->name.bytes, sizeof(outcome->name.bytes));
    if (options->json) {
        json_t *json =
            json_pack("{s:s, s:s, s:I, s:I}", "file", outcome->path, "profile", name, "bytes",
                      (json_int_t)outcome->bytes, "tokens", (json_int_t)outcome->tokens);
        if (outcome->recipe[0])
            json_object_set_new(json, "kvtuner",
                                json_pack("{s:s, s:f, s:f}", "recipe", outcome->recipe, "bits",
                                          outcome->recipe_bits, "kl", outcome->recipe_kl));
        json_dumpf(json, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
        putchar('\n');
        json_decref(json);
        return;
    }
    printf("%s: %llu bytes from %llu tokens, profile %s\n", outcome->path,
           (unsigned long long)outcome->bytes, (unsigned long long)outcome->tokens, name);
    if (outcome->recipe[0])
        printf("%.2f bits before scales, sum of KL %.4f nats: %s\n", outcome->recipe_bits,
               outcome->recipe_kl, outcome->recipe);
}

int command_calibrate(const struct command_options *options, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    if (!options->model || !options->text == !options->tokens) {
        fprintf(stderr, "larder: usage: larder calibrate --model DIR --text FILE, or --tokens "
                        "FILE instead\n");
        return COMMAND_USAGE;
    }
    struct progress progress;
    struct calibration_options wanted = {
        .model = options->model,
        .window_tokens = options->window_tokens,
        .threads = options->threads,
        .kl_windows = options->kl_windows,
        .budget_bits = options->budget_bits,
        .progress = step,
        .context = &progress,
    };
    struct outcome outcome = {.path = options->output ? options->output : "profile.safetensors"};
    struct calibration *calibration = NULL;
    struct tokens tokens = {0};
    progress_start(&progress);
    int err = read_tokens(&tokens, options);
    wanted.tokens = tokens.ids;
    wanted.token_count = tokens.count;
    if (err == 0)
        err = calibration_open(&calibration, &wanted);
    if (err == 0)
        err = calibrate(calibration, &outcome);
    progress_end(&progress);
    if (err == 0)
        print_outcome(options, &outcome);
    calibration_close(calibration);
    larder_free(tokens.ids);
    return err < 0 ? command_failed(err) : COMMAND_OK;
}
