/* SPDX-License-Identifier: Apache-2.0 */
/* larder_recipe.c - `larder recipe`, and how every command fails. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "codec/codec.h"
#include "tools/larder_commands.h"
#include "tools/larder_text.h"

#define DESCRIPTION_BYTES_MAX 16384

int command_failed(int err)
{
    fprintf(stderr, "larder: %s\n", larder_error_message());
    return err == LARDER_ENOTFOUND || err == LARDER_ECORRUPT || err == LARDER_EPINNED
               ? COMMAND_PROBLEM
               : COMMAND_USAGE;
}

/* "exact", or what a lossy one needs: "lossy; profile, importance". */
static const char *needs_text(char out[64], const struct larder_recipe *recipe)
{
    const uint32_t inputs = larder_recipe_needs(recipe);
    const char *const needs[] = {larder_recipe_needs_profile(recipe) ? "profile" : NULL,
                                 inputs & LARDER_INPUT_IMPORTANCE ? "importance" : NULL,
                                 inputs & LARDER_INPUT_Q_MAX ? "q_max" : NULL};
    int used = snprintf(out, 64, "%s", text_quality(larder_recipe_quality(recipe)));
    const char *before = "; ";
    for (size_t i = 0; i < LARDER_COUNT_OF(needs); i++) {
        if (!needs[i])
            continue;
        used += snprintf(out + used, 64 - (size_t)used, "%s%s", before, needs[i]);
        before = ", ";
    }
    return out;
}

static json_t *recipe_json(const struct larder_recipe *recipe)
{
    const uint32_t inputs = larder_recipe_needs(recipe);
    return json_pack("{s:s, s:b, s:b, s:b}", "quality", text_quality(larder_recipe_quality(recipe)),
                     "needs_profile", larder_recipe_needs_profile(recipe), "needs_importance",
                     (inputs & LARDER_INPUT_IMPORTANCE) != 0, "needs_q_max",
                     (inputs & LARDER_INPUT_Q_MAX) != 0);
}

static int ls_row(json_t *array, const char *name, const char *summary)
{
    struct larder_recipe *recipe;
    char needs[64];
    LARDER_TRY(larder_recipe_open(&recipe, name, NULL));
    if (array) {
        json_t *json = json_pack("{s:s, s:s}", "name", name, "summary", summary);
        json_t *more = recipe_json(recipe);
        json_object_update(json, more);
        json_decref(more);
        json_array_append_new(array, json);
    } else {
        printf("%-16s %s (%s)\n", name, summary, needs_text(needs, recipe));
    }
    larder_recipe_close(recipe);
    return 0;
}

static int recipe_ls(const struct command_options *options)
{
    const char *name;
    const char *summary;
    json_t *array = options->json ? json_array() : NULL;
    int err = 0;
    for (uint32_t i = 0; err == 0 && (name = larder_recipe_preset(i, &summary)); i++)
        err = ls_row(array, name, summary);
    if (err < 0) {
        json_decref(array);
        return command_failed(err);
    }
    if (options->json) {
        json_dumpf(array, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
        putchar('\n');
    } else {
        printf("\nStages, for recipes of your own (docs/CODECS.md):\n");
        for (uint32_t i = 0; (name = larder_recipe_stage(i, &summary)); i++)
            printf("%-16s %s\n", name, summary);
    }
    json_decref(array);
    return COMMAND_OK;
}

static int recipe_show(const struct command_options *options, const char *text)
{
    struct larder_recipe *recipe;
    char stages[DESCRIPTION_BYTES_MAX];
    int err = larder_recipe_open(&recipe, text, NULL);
    if (err < 0)
        return command_failed(err);
    err = larder_recipe_describe(recipe, stages, sizeof(stages));
    if (err >= 0 && options->json) {
        json_t *json = recipe_json(recipe);
        json_object_set_new(json, "recipe", json_string(larder_recipe_text(recipe)));
        json_object_set_new(json, "stages", json_string(stages));
        json_dumpf(json, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
        putchar('\n');
        json_decref(json);
    } else if (err >= 0) {
        size_t length = strlen(stages);
        char needs[64];
        printf("%s%s", stages, length && stages[length - 1] == '\n' ? "" : "\n");
        printf("gives, and needs: %s\n", needs_text(needs, recipe));
    }
    larder_recipe_close(recipe);
    return err < 0 ? command_failed(err) : COMMAND_OK;
}

int command_recipe(const struct command_options *options, int argc, char **argv)
{
    if (strcmp(argv[0], "ls") == 0 && argc == 1)
        return recipe_ls(options);
    if (strcmp(argv[0], "show") == 0 && argc == 2)
        return recipe_show(options, argv[1]);
    fprintf(stderr, "larder: usage: larder recipe ls, or larder recipe show RECIPE\n");
    return COMMAND_USAGE;
}
