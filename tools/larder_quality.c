/* SPDX-License-Identifier: Apache-2.0 */
/* larder_quality.c - `larder quality`: what larder-eval measured of recipes, for larderd to choose
 * by. */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "tools/larder_commands.h"
#include "tools/larder_link.h"

/* --- load ------------------------------------------------------------------------------------- */

static int bad_row(const char *path, size_t index, const char *what)
{
    return larder_fail(LARDER_EFORMAT,
                       "%s: recipe %zu has no %s; give what larder-eval --json says", path, index,
                       what);
}

static int read_row(struct wire_measure *out, const char *path, const json_t *row, size_t index,
                    const uint8_t fingerprint[32])
{
    const char *recipe = json_string_value(json_object_get(row, "recipe"));
    const char *profile = json_string_value(json_object_get(row, "profile"));
    const struct {
        const char *name;
        float *to;
    } numbers[] = {{"kl", &out->kl},
                   {"kl_p99", &out->kl_p99},
                   {"top1", &out->top1},
                   {"bits_per_element", &out->bits_per_element}};
    memset(out, 0, sizeof(*out));
    memcpy(out->fingerprint, fingerprint, sizeof(out->fingerprint));
    if (!recipe || strlen(recipe) > LARDER_RECIPE_BYTES_MAX)
        return bad_row(path, index, "text \"recipe\"");
    memcpy(out->recipe, recipe, strlen(recipe));
    if (profile && larder_unhex(out->profile, sizeof(out->profile), profile) < 0)
        return bad_row(path, index, "\"profile\" of 64 hex digits");
    for (size_t i = 0; i < LARDER_COUNT_OF(numbers); i++) {
        const json_t *number = json_object_get(row, numbers[i].name);
        if (!json_is_number(number))
            return bad_row(path, index, numbers[i].name);
        *numbers[i].to = (float)json_number_value(number);
    }
    return 0;
}

static int read_rows(struct wire_measure **out, size_t *count, const char *path, const json_t *root)
{
    const json_t *recipes = json_object_get(root, "recipes");
    const char *digits = json_string_value(json_object_get(root, "fingerprint"));
    uint8_t fingerprint[32];
    *count = json_array_size(recipes);
    if (!json_is_array(recipes) || !digits ||
        larder_unhex(fingerprint, sizeof(fingerprint), digits) < 0)
        return larder_fail(LARDER_EFORMAT,
                           "%s is not what larder-eval --json says: it has no \"recipes\", or no "
                           "\"fingerprint\"",
                           path);
    *out = larder_alloc_zero(*count + 1, sizeof(**out));
    if (!*out)
        return larder_fail(-ENOMEM, "no memory for %zu recipes", *count);
    for (size_t i = 0; i < *count; i++)
        LARDER_TRY(read_row(*out + i, path, json_array_get(recipes, i), i, fingerprint));
    return 0;
}

static int send_rows(struct link *link, const struct wire_measure *rows, size_t count)
{
    struct {
        struct wire_admin_measure head;
        struct wire_measure rows[LARDER_ADMIN_MEASURES_MAX];
    } ask;
    for (size_t at = 0; at < count;) {
        const void *body;
        const size_t n = (size_t)larder_min_u64(count - at, LARDER_ADMIN_MEASURES_MAX);
        ask.head = (struct wire_admin_measure){.count = (uint32_t)n};
        memcpy(ask.rows, rows + at, n * sizeof(rows[0]));
        LARDER_TRY(link_request(link, &body, WIRE_ADMIN_MEASURE, &ask,
                                sizeof(ask.head) + n * sizeof(rows[0]), WIRE_ADMIN_MEASURE_OK, 0));
        at += n;
    }
    return 0;
}

static int load(const struct command_options *options, const char *path)
{
    json_error_t error;
    struct wire_measure *rows = NULL;
    size_t count = 0;
    struct link *link = NULL;
    json_t *root =
        strcmp(path, "-") == 0 ? json_loadf(stdin, 0, &error) : json_load_file(path, 0, &error);
    if (!root)
        return larder_fail(LARDER_EFORMAT, "%s: %s", path, error.text);
    int err = read_rows(&rows, &count, path, root);
    json_decref(root);
    if (err == 0)
        err = link_open(&link, options->socket);
    if (err == 0)
        err = send_rows(link, rows, count);
    link_close(link);
    larder_free(rows);
    LARDER_TRY(err);
    if (options->json)
        printf("{\"loaded\": %zu}\n", count);
    else
        printf("%zu recipes measured\n", count);
    return 0;
}

/* --- ls --------------------------------------------------------------------------------------- */

/* The model's name; its fingerprint's first digits when the store does not know it. */
static const char *model_name(struct link *link, char out[64], const uint8_t fingerprint[32])
{
    struct wire_admin_model_ok model;
    for (uint32_t i = 0; link_model(link, &model, i) == 0; i++) {
        if (memcmp(model.fingerprint, fingerprint, sizeof(model.fingerprint)) == 0) {
            snprintf(out, 64, "%.63s", model.desc.name);
            return out;
        }
    }
    larder_hex(out, fingerprint, 8);
    return out;
}

static json_t *row_json(const struct wire_measure *row, const char *model)
{
    char fingerprint[65], profile[65];
    larder_hex(fingerprint, row->fingerprint, sizeof(row->fingerprint));
    larder_hex(profile, row->profile, sizeof(row->profile));
    return json_pack("{s:s, s:s, s:s, s:o, s:f, s:f, s:f, s:f}", "model", model, "fingerprint",
                     fingerprint, "recipe", row->recipe, "profile",
                     larder_all_zero(row->profile, sizeof(row->profile)) ? json_null()
                                                                         : json_string(profile),
                     "kl", (double)row->kl, "kl_p99", (double)row->kl_p99, "top1",
                     (double)row->top1, "bits_per_element", (double)row->bits_per_element);
}

static int ls(const struct command_options *options)
{
    struct link *link;
    LARDER_TRY(link_open(&link, options->socket));
    json_t *array = options->json ? json_array() : NULL;
    if (!array)
        printf("%-16s %8s %10s %10s %7s %-12s %s\n", "MODEL", "BITS", "KL", "P99", "TOP1",
               "PROFILE", "RECIPE");
    int err = 0;
    for (struct wire_admin_index ask = {0}; err == 0; ask.index++) {
        const void *body;
        struct wire_measure row;
        char model[64], profile[13];
        err = link_request(link, &body, WIRE_ADMIN_MEASURES, &ask, sizeof(ask),
                           WIRE_ADMIN_MEASURES_OK, sizeof(row));
        if (err < 0)
            break;
        memcpy(&row, body, sizeof(row));
        row.recipe[sizeof(row.recipe) - 1] = '\0';
        const char *name = model_name(link, model, row.fingerprint);
        larder_hex(profile, row.profile, 6);
        if (array)
            json_array_append_new(array, row_json(&row, name));
        else
            printf("%-16.16s %8.3f %10.3g %10.3g %6.2f%% %-12s %s\n", name,
                   (double)row.bits_per_element, (double)row.kl, (double)row.kl_p99,
                   100 * (double)row.top1,
                   larder_all_zero(row.profile, sizeof(row.profile)) ? "-" : profile, row.recipe);
    }
    link_close(link);
    if (err == LARDER_ENOTFOUND && array) {
        json_dumpf(array, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
        putchar('\n');
    }
    json_decref(array);
    return err == LARDER_ENOTFOUND ? 0 : err;
}

int command_quality(const struct command_options *options, int argc, char **argv)
{
    int err;
    if (strcmp(argv[0], "load") == 0 && argc == 2) {
        err = load(options, argv[1]);
    } else if (strcmp(argv[0], "ls") == 0 && argc == 1) {
        err = ls(options);
    } else {
        fprintf(stderr, "larder: usage: larder quality load FILE.json, or larder quality ls\n");
        return COMMAND_USAGE;
    }
    return err < 0 ? command_failed(err) : COMMAND_OK;
}
