/* SPDX-License-Identifier: Apache-2.0 */
/* larder_recipe.c - `larder recipe`, and how every command fails. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

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

static int recipe_ls(const struct command_options *options)
{
    const char *name;
    const char *summary;
    json_t *array = json_array();
    for (uint32_t i = 0; (name = larder_recipe_preset(i, &summary)); i++) {
        if (options->json)
            json_array_append_new(array, json_pack("{s:s, s:s}", "name", name, "summary", summary));
        else
            printf("%-16s %s\n", name, summary);
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
        json_t *json = json_pack("{s:s, s:s, s:s}", "recipe", larder_recipe_text(recipe), "quality",
                                 text_quality(larder_recipe_quality(recipe)), "stages", stages);
        json_dumpf(json, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
        putchar('\n');
        json_decref(json);
    } else if (err >= 0) {
        size_t length = strlen(stages);
        printf("%s%s", stages, length && stages[length - 1] == '\n' ? "" : "\n");
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
