/* SPDX-License-Identifier: Apache-2.0 */
/* config_recipe.c - `recipe = TEXT` and `recipe TENANT [MODEL] = TEXT`: how what is put without a
 * recipe is encoded. */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/mem.h"
#include "codec/codec.h"
#include "daemon/config.h"
#include "daemon/recipes.h"

/* Digits of a fingerprint that name a model. */
#define DIGITS_MIN 8u

static bool is_any(const char *name)
{
    return strcmp(name, "*") == 0;
}

int config_check_recipe(struct recipe_choice *choice)
{
    choice->quality = LARDER_QUALITY_EXACT;
    choice->max_kl = 0;
    if (recipes_is_auto(choice->text)) {
        LARDER_TRY(recipes_parse_auto(&choice->max_kl, choice->text));
        if (choice->max_kl == 0)
            return larder_fail(-EINVAL, "auto as a default says what it keeps: auto max_kl=0.01");
        return 0;
    }
    struct larder_recipe *recipe;
    LARDER_TRY(larder_recipe_open(&recipe, choice->text, NULL));
    choice->quality = larder_recipe_quality(recipe);
    larder_recipe_close(recipe);
    return 0;
}

int config_add_recipe(struct config *config, char *names, const char *value)
{
    struct recipe_rule rule = {.tenant = "", .model = "*"};
    char *rest;
    const char *tenant = strtok_r(names, " \t", &rest);
    const char *model = strtok_r(NULL, " \t", &rest);
    if (!tenant || strtok_r(NULL, " \t", &rest))
        return larder_fail(-EINVAL, "a recipe is for a tenant, or a tenant and a model: recipe "
                                    "TENANT [MODEL] = TEXT");
    if (!is_any(tenant))
        LARDER_TRY(config_check_name(tenant));
    strcpy(rule.tenant, tenant);
    if (model && strlen(model) >= sizeof(rule.model))
        return larder_fail(-EINVAL, "a model's name of %zu bytes is longer than %zu", strlen(model),
                           sizeof(rule.model) - 1);
    if (model)
        strcpy(rule.model, model);
    if (!*value || strlen(value) > LARDER_RECIPE_BYTES_MAX)
        return larder_fail(-EINVAL, "a recipe's text has 1 to %u bytes", LARDER_RECIPE_BYTES_MAX);
    strcpy(rule.choice.text, value);
    LARDER_TRY(config_check_recipe(&rule.choice));
    for (uint32_t i = 0; i < config->recipe_count; i++) {
        if (strcmp(config->recipes[i].tenant, rule.tenant) == 0 &&
            strcmp(config->recipes[i].model, rule.model) == 0)
            return larder_fail(-EINVAL, "tenant %s and model %s have a recipe already; remove one",
                               rule.tenant, rule.model);
    }
    if (config->recipe_count == LARDER_TENANTS_MAX)
        return larder_fail(-EINVAL, "more than %u recipes", LARDER_TENANTS_MAX);
    struct recipe_rule *recipes =
        larder_realloc(config->recipes, (config->recipe_count + 1) * sizeof(*recipes));
    if (!recipes)
        return larder_fail(-ENOMEM, "no memory for recipes");
    recipes[config->recipe_count++] = rule;
    config->recipes = recipes;
    return 0;
}

/* By its name, or by digits that its fingerprint begins with. */
static bool is_model(const char *name, const struct larder_model_desc *model,
                     const struct larder_key *fingerprint)
{
    char digits[65];
    const size_t length = strlen(name);
    if (strcmp(name, model->name) == 0)
        return true;
    larder_hex(digits, fingerprint->bytes, sizeof(fingerprint->bytes));
    return length >= DIGITS_MIN && strncmp(digits, name, length) == 0;
}

const struct recipe_choice *config_find_recipe(const struct config *config, const char *tenant,
                                               const struct larder_model_desc *model,
                                               const struct larder_key *fingerprint)
{
    /* One that names both before one that names the tenant, that before one for the model. */
    const struct recipe_choice *found = &config->recipe;
    int found_rank = 0;
    for (uint32_t i = 0; i < config->recipe_count; i++) {
        const struct recipe_rule *rule = &config->recipes[i];
        const int rank = 2 * !is_any(rule->tenant) + !is_any(rule->model);
        if (rank < found_rank || (!is_any(rule->tenant) && strcmp(rule->tenant, tenant) != 0) ||
            (!is_any(rule->model) && !is_model(rule->model, model, fingerprint)))
            continue;
        found = &rule->choice;
        found_rank = rank;
    }
    return found;
}
