/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/put_recipe.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/record.h"
#include "codec/codec.h"
#include "daemon/measures.h"
#include "daemon/profiles.h"
#include "daemon/recipes.h"
#include "daemon/session_priv.h"

/* What a choice is made from. */
struct asked {
    struct larderd *daemon;
    const struct larder_model_desc *model;
    const struct larder_key *fingerprint;
    uint32_t inputs; /* that come along: bits of enum larder_recipe_input */
};

static uint32_t inputs_of(const struct wire_put *wire)
{
    return (wire->flags & WIRE_PUT_IMPORTANCE ? LARDER_INPUT_IMPORTANCE : 0u) |
           (wire->flags & WIRE_PUT_Q_MAX ? LARDER_INPUT_Q_MAX : 0u);
}

static int check_inputs(const struct asked *asked, const struct larder_recipe *recipe)
{
    const uint32_t missing = larder_recipe_needs(recipe) & ~asked->inputs;
    const char *text = larder_recipe_text(recipe);
    if (missing & LARDER_INPUT_IMPORTANCE)
        return larder_fail(-EINVAL,
                           "'%s' needs importance scores with the PUT "
                           "(larder_put_options.importance)",
                           text);
    if (missing & LARDER_INPUT_Q_MAX)
        return larder_fail(-EINVAL,
                           "'%s' needs the largest |q| of each channel with the PUT "
                           "(larder_put_options.q_max)",
                           text);
    return 0;
}

/* Whether it can encode what comes. */
static int check_fits(const struct asked *asked, const struct larder_recipe *recipe)
{
    LARDER_TRY(check_inputs(asked, recipe));
    return larder_recipe_fits(recipe, asked->model);
}

static int no_profile(const struct asked *asked, const char *text)
{
    return larder_fail(LARDER_ENOPROFILE,
                       "'%s' needs a profile of model \"%.63s\", which has none: make one with "
                       "larder calibrate, then larder profile add --default FILE",
                       text, asked->model->name);
}

/* With this profile, or without one; given back when it cannot serve. */
static int take(const struct asked *asked, const struct larder_recipe **out, const char *text,
                const uint8_t *profile)
{
    LARDER_TRY(recipes_take(asked->daemon->recipes, out, text, profile));
    int err = 0;
    if (!profile && larder_recipe_needs_profile(*out))
        err = no_profile(asked, text);
    if (err == 0)
        err = check_fits(asked, *out);
    if (err < 0) {
        recipes_give(asked->daemon->recipes, *out);
        *out = NULL;
    }
    return err;
}

/* The default profile serves what needs one, and what is better with one. */
static int take_with_default(const struct asked *asked, const struct larder_recipe **out,
                             const char *text)
{
    struct recipes *recipes = asked->daemon->recipes;
    uint8_t profile[32];
    LARDER_TRY(recipes_take(recipes, out, text, NULL));
    const bool needs = larder_recipe_needs_profile(*out);
    const bool exact = larder_recipe_quality(*out) == LARDER_QUALITY_EXACT;
    recipes_give(recipes, *out);
    const bool has = !exact && profiles_default(asked->daemon->profiles, profile, asked->model);
    if (has) {
        int err = take(asked, out, text, profile);
        if (err == 0 || needs)
            return err;
    }
    return take(asked, out, text, NULL);
}

int put_recipe_take(const struct larder_recipe **out, struct larderd *daemon,
                    const struct larder_model_desc *model, const char *text)
{
    const struct asked asked = {.daemon = daemon, .model = model};
    return take_with_default(&asked, out, text);
}

/* For the table of what was measured. */
static bool may_be_used(void *context, const struct wire_measure *row)
{
    const struct asked *asked = context;
    const struct larder_recipe *recipe;
    const bool named = !larder_all_zero(row->profile, sizeof(row->profile));
    if (take(asked, &recipe, row->recipe, named ? row->profile : NULL) < 0)
        return false;
    recipes_give(asked->daemon->recipes, recipe);
    return true;
}

static int choose_measured(struct put_recipe *out, const struct asked *asked, float base_kl)
{
    struct wire_measure row;
    const float left = out->max_kl - base_kl;
    struct asked context = *asked;
    if (left >= 0 && measures_pick(asked->daemon->measures, &row, asked->fingerprint, left,
                                   may_be_used, &context)) {
        const bool named = !larder_all_zero(row.profile, sizeof(row.profile));
        if (take(asked, &out->recipe, row.recipe, named ? row.profile : NULL) == 0)
            return 0;
    }
    out->unmeasured = true;
    return take(asked, &out->recipe, "exact", NULL);
}

static int choose(struct put_recipe *out, const struct asked *asked, const struct wire_put *wire,
                  const char *text, float base_kl)
{
    const bool named = !larder_all_zero(wire->profile, sizeof(wire->profile));
    if (!recipes_is_auto(text)) {
        if (wire->max_kl > 0)
            return larder_fail(-EINVAL, "max_kl=%g with recipe '%s'; it goes with recipe auto",
                               (double)wire->max_kl, text);
        return named ? take(asked, &out->recipe, text, wire->profile)
                     : take_with_default(asked, &out->recipe, text);
    }
    LARDER_TRY(recipes_parse_auto(&out->max_kl, text));
    if (wire->max_kl > 0)
        out->max_kl = wire->max_kl;
    if (out->max_kl == 0)
        return larder_fail(-EINVAL, "recipe auto without max_kl: what is it to keep?");
    if (named)
        return larder_fail(-EINVAL, "recipe auto with a profile: it chooses that too");
    return choose_measured(out, asked, base_kl);
}

int put_recipe_choose(struct put_recipe *out, struct larderd *daemon,
                      const struct session_model *model, const struct wire_put *wire)
{
    char text[LARDER_RECIPE_BYTES_MAX + 1];
    const struct asked asked = {.daemon = daemon,
                                .model = &model->info.desc,
                                .fingerprint = &model->info.fingerprint,
                                .inputs = inputs_of(wire)};
    const float base_kl = larder_computed_on_kl((uint8_t)wire->computed_on,
                                                larder_computed_on_kl_bits(wire->computed_on_kl));
    *out = (struct put_recipe){.recipe = NULL};
    if (wire->recipe_bytes > 0) {
        memcpy(text, wire->recipe, wire->recipe_bytes);
        text[wire->recipe_bytes] = 0;
    } else {
        /* A default of "auto" keeps what the PUT asks for, if it does. */
        snprintf(text, sizeof(text), "%s", wire->max_kl > 0 ? "auto" : model->recipe);
    }
    LARDER_TRY(choose(out, &asked, wire, text, base_kl));
    uint8_t profile[32] = {0};
    (void)larder_recipe_profile_name(out->recipe, profile);
    const float own = larder_recipe_quality(out->recipe) == LARDER_QUALITY_EXACT
                          ? 0
                          : measures_kl(daemon->measures, asked.fingerprint,
                                        larder_recipe_text(out->recipe), profile);
    out->kl = wire->computed_on == LARDER_QUALITY_BLENDED ? INFINITY : own + base_kl;
    return 0;
}
