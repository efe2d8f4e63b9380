/* SPDX-License-Identifier: Apache-2.0 */
/* config_demote.c - `demote [TENANT [MODEL]] = AGE:RECIPE[, AGE:RECIPE...]`: what becomes of a
 * block that nobody uses. */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"
#include "codec/codec.h"
#include "daemon/config.h"
#include "daemon/recipes.h"

/* --- sizes of recipes ------------------------------------------------------------------------- */

/* On which they are compared: noise in the shape of a small model, of at most so many tokens. */
#define NOISE_TOKENS_MAX 256u
#define NOISE_LAYERS     4u
#define NOISE_HEADS      4u
#define NOISE_DIMS       64u

static const struct larder_model_desc noise_model = {
    .name = "noise",
    .layers = NOISE_LAYERS,
    .kv_heads = NOISE_HEADS,
    .k_dims = NOISE_DIMS,
    .v_dims = NOISE_DIMS,
    .dtype = LARDER_BF16,
    .vocab = 1,
    .rope = {.kind = LARDER_ROPE_PLAIN, .rotary_dims = NOISE_DIMS, .theta = 10000, .factor = 1},
};

/* The sum of eight dice is a normal number, nearly; bf16 is the upper half of an f32. */
static void make_noise(uint16_t *out, uint64_t count)
{
    uint64_t state = 1;
    for (uint64_t i = 0; i < count; i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        float sum = -8 * 127.5f;
        for (uint32_t byte = 0; byte < 8; byte++)
            sum += (float)(uint8_t)((state ^ state >> 29) >> 8 * byte);
        sum /= 208.0f;
        uint32_t bits;
        memcpy(&bits, &sum, sizeof(bits));
        out[i] = (uint16_t)(bits >> 16);
    }
}

static uint32_t tokens_of(uint32_t block_tokens)
{
    return (uint32_t)larder_min_u64(block_tokens, NOISE_TOKENS_MAX);
}

static double bits_of(uint64_t bytes, uint32_t block_tokens)
{
    return 8 * (double)bytes /
           (2.0 * NOISE_LAYERS * NOISE_HEADS * NOISE_DIMS * tokens_of(block_tokens));
}

/* Memory for any section: its planes, its bytes, workspace; and tables. */
struct trial {
    uint64_t planes_bytes;
    uint64_t bound;
    uint64_t workspace_bytes;
    uint64_t tables_bytes;
};

static int encode_noise(const struct larder_recipe *recipe, const struct trial *trial,
                        uint32_t token_count, uint64_t *total)
{
    const uint64_t at_out = larder_round_up(trial->planes_bytes, 64);
    const uint64_t at_work = at_out + larder_round_up(trial->bound, 64);
    const uint64_t at_tables = at_work + larder_round_up(trial->workspace_bytes, 64);
    uint8_t *memory = larder_alloc_aligned(64, at_tables + trial->tables_bytes + 64);
    if (!memory)
        return larder_fail(-ENOMEM, "no memory to try a recipe");
    make_noise((uint16_t *)(void *)memory, trial->planes_bytes / sizeof(uint16_t));
    struct larder_block block = {
        .model = &noise_model, .token_count = token_count, .tables = memory + at_tables};
    int err = 0;
    if (trial->tables_bytes > 0)
        err = larder_recipe_fill_tables(recipe, memory + at_tables, &noise_model, 0, token_count);
    *total = 0;
    for (uint32_t i = 0; err == 0 && i < larder_recipe_section_count(recipe, &noise_model); i++) {
        struct larder_section_error error = {0};
        uint64_t bytes = 0;
        err = larder_recipe_encode(recipe, memory + at_out, trial->bound, &bytes, &error, &block, i,
                                   memory, memory + at_work, trial->workspace_bytes);
        *total += bytes;
    }
    larder_free(memory);
    return err;
}

/* *bytes is 0 when it cannot be told without a model. */
static int measure(const struct larder_recipe *recipe, uint32_t block_tokens, uint64_t *bytes)
{
    const uint32_t tokens = tokens_of(block_tokens);
    *bytes = 0;
    if (larder_recipe_needs_profile(recipe) || larder_recipe_fits(recipe, &noise_model) < 0)
        return 0;
    struct trial trial = {
        .workspace_bytes = larder_recipe_workspace_bytes(recipe, &noise_model, tokens),
        .tables_bytes = larder_recipe_tables_bytes(recipe, &noise_model, tokens),
    };
    for (uint32_t i = 0; i < larder_recipe_section_count(recipe, &noise_model); i++) {
        struct larder_slice slice;
        larder_recipe_slice(recipe, &slice, &noise_model, i);
        const uint64_t planes = larder_slice_raw_bytes(&noise_model, &slice, tokens);
        const uint64_t bound = larder_recipe_bound(recipe, &noise_model, i, tokens);
        trial.planes_bytes = planes > trial.planes_bytes ? planes : trial.planes_bytes;
        trial.bound = bound > trial.bound ? bound : trial.bound;
    }
    return encode_noise(recipe, &trial, tokens, bytes);
}

/* --- reading ---------------------------------------------------------------------------------- */

static int check_recipe(struct demote_step *step)
{
    struct larder_recipe *recipe;
    if (recipes_is_auto(step->recipe))
        return larder_fail(-EINVAL, "auto is no recipe to demote to: name one");
    LARDER_TRY(larder_recipe_open(&recipe, step->recipe, NULL));
    const uint32_t inputs =
        larder_recipe_needs(recipe) & (LARDER_INPUT_IMPORTANCE | LARDER_INPUT_Q_MAX);
    /* As records have it. */
    strcpy(step->recipe, larder_recipe_text(recipe));
    larder_recipe_close(recipe);
    return inputs ? larder_fail(-EINVAL,
                                "'%s' needs importance scores or q_max, which only a PUT brings",
                                step->recipe)
                  : 0;
}

/* "7d:kivi4" */
static int add_step(struct demote_rule *rule, char *text)
{
    char *colon = strchr(text, ':');
    if (rule->count == DEMOTE_STEPS_MAX)
        return larder_fail(-EINVAL, "more than %u steps", DEMOTE_STEPS_MAX);
    if (!colon)
        return larder_fail(-EINVAL, "'%s' is no AGE:RECIPE like 7d:kivi4", text);
    *colon = 0;
    struct demote_step *step = &rule->steps[rule->count];
    char *age = config_trim(text);
    const char *recipe = config_trim(colon + 1);
    LARDER_TRY(larder_parse_seconds(&step->age_s, age));
    if (rule->count > 0 && step->age_s <= step[-1].age_s)
        return larder_fail(-EINVAL, "age %s is not above the one before it", age);
    if (!*recipe || strlen(recipe) > LARDER_RECIPE_BYTES_MAX)
        return larder_fail(-EINVAL, "a recipe's text has 1 to %u bytes", LARDER_RECIPE_BYTES_MAX);
    strcpy(step->recipe, recipe);
    LARDER_TRY(check_recipe(step));
    rule->count++;
    return 0;
}

static int parse_steps(struct demote_rule *rule, char *value)
{
    if (strcmp(value, "off") == 0)
        return 0;
    if (!*value)
        return larder_fail(-EINVAL, "write AGE:RECIPE[, AGE:RECIPE...] or off");
    /* No recipe has a comma. */
    char *rest;
    for (char *step = strtok_r(value, ",", &rest); step; step = strtok_r(NULL, ",", &rest))
        LARDER_TRY(add_step(rule, step));
    return rule->count > 0 ? 0 : larder_fail(-EINVAL, "there is no step in it");
}

int config_add_demote(struct config *config, char *names, char *value)
{
    if (config->demote_count == LARDER_TENANTS_MAX)
        return larder_fail(-EINVAL, "more than %u demote lines", LARDER_TENANTS_MAX);
    struct demote_rule *rules =
        larder_realloc(config->demotes, (config->demote_count + 1) * sizeof(*rules));
    if (!rules)
        return larder_fail(-ENOMEM, "no memory for demote lines");
    config->demotes = rules;
    struct demote_rule *rule = &rules[config->demote_count];
    memset(rule, 0, sizeof(*rule));
    LARDER_TRY(config_parse_whom(&rule->whom, *names ? names : NULL, "demote"));
    LARDER_TRY(parse_steps(rule, value));
    for (uint32_t i = 0; i < config->demote_count; i++) {
        if (config_same_whom(&rules[i].whom, &rule->whom))
            return larder_fail(-EINVAL, "tenant %s and model %s have a demote line already",
                               rule->whom.tenant, rule->whom.model);
    }
    config->demote_count++;
    return 0;
}

static int check_sizes(const struct demote_rule *rule, uint32_t block_tokens)
{
    uint64_t before = 0;
    for (uint32_t i = 0; i < rule->count; i++) {
        struct larder_recipe *recipe;
        uint64_t bytes;
        LARDER_TRY(larder_recipe_open(&recipe, rule->steps[i].recipe, NULL));
        int err = measure(recipe, block_tokens, &bytes);
        larder_recipe_close(recipe);
        LARDER_TRY(err);
        if (bytes > 0 && before > 0 && bytes >= before)
            return larder_fail(
                LARDER_ECONFIG,
                "'%s' takes %.2f bits an element (of noise) and what comes before it "
                "%.2f; leave it out or change their order",
                rule->steps[i].recipe, bits_of(bytes, block_tokens), bits_of(before, block_tokens));
        before = bytes > 0 ? bytes : before;
    }
    return 0;
}

int config_check_demotes(const struct config *config, const char *name)
{
    for (uint32_t i = 0; i < config->demote_count; i++) {
        if (check_sizes(&config->demotes[i], config->block_tokens) < 0)
            return larder_fail(LARDER_ECONFIG, "%s: demote: %s", name, larder_error_message());
    }
    return 0;
}

const struct demote_rule *config_find_demote(const struct config *config, const char *tenant,
                                             const struct larder_model_desc *model,
                                             const struct larder_key *fingerprint)
{
    const struct demote_rule *found = NULL;
    int found_rank = -1;
    for (uint32_t i = 0; i < config->demote_count; i++) {
        const int rank = config_rank_whom(&config->demotes[i].whom, tenant, model, fingerprint);
        if (rank <= found_rank)
            continue;
        found = &config->demotes[i];
        found_rank = rank;
    }
    return found && found->count > 0 ? found : NULL;
}
