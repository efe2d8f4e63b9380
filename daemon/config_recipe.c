/* SPDX-License-Identifier: Apache-2.0 */
/* config_recipe.c - `recipe = TEXT` and `recipe TENANT [MODEL] = TEXT`: how what is put without a
 * recipe is encoded. */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "codec/codec.h"
#include "daemon/config.h"
#include "daemon/recipes.h"

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
    struct recipe_rule rule;
    LARDER_TRY(config_parse_whom(&rule.whom, names, "recipe"));
    if (!*value || strlen(value) > LARDER_RECIPE_BYTES_MAX)
        return larder_fail(-EINVAL, "a recipe's text has 1 to %u bytes", LARDER_RECIPE_BYTES_MAX);
    strcpy(rule.choice.text, value);
    LARDER_TRY(config_check_recipe(&rule.choice));
    for (uint32_t i = 0; i < config->recipe_count; i++) {
        if (config_same_whom(&config->recipes[i].whom, &rule.whom))
            return larder_fail(-EINVAL, "tenant %s and model %s have a recipe already; remove one",
                               rule.whom.tenant, rule.whom.model);
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

const struct recipe_choice *config_find_recipe(const struct config *config, const char *tenant,
                                               const struct larder_model_desc *model,
                                               const struct larder_key *fingerprint)
{
    const struct recipe_choice *found = &config->recipe;
    int found_rank = 0;
    for (uint32_t i = 0; i < config->recipe_count; i++) {
        const struct recipe_rule *rule = &config->recipes[i];
        const int rank = config_rank_whom(&rule->whom, tenant, model, fingerprint);
        if (rank < found_rank)
            continue;
        found = &rule->choice;
        found_rank = rank;
    }
    return found;
}
