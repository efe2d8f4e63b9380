/* SPDX-License-Identifier: Apache-2.0 */
/* recipe.c - questions to a recipe, and the way from a section to its tree.
 *
 * Sections: one layer, all KV heads, K or V each.
 */
#include "codec/codec.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"
#include "base/record.h"
#include "codec/profile.h"
#include "codec/recipe_tree.h"
#include "codec/section.h"
#include "codec/stage.h"
#include "codec/symbols_tables.h"
#include "codec/text.h"
#include "kernels/rope.h"

#define WORKSPACE_ALIGN 64u

struct larder_recipe {
    struct recipe_tree tree;
    const struct larder_profile *profile; /* NULL: no node reads one */
};

/* Sets recipe->profile when a node reads it. */
static int bind_nodes(struct larder_recipe *recipe, const struct larder_profile *profile)
{
    for (uint32_t i = 0; i < recipe->tree.node_count; i++) {
        struct codec_node *node = &recipe->tree.nodes[i];
        uint8_t kind = i < recipe->tree.v_node_first ? LARDER_SECTION_K : LARDER_SECTION_V;
        if (node->entropy_coded)
            LARDER_TRY(symbol_tables_bind(&node->tables, node->pipe, profile));
        if (node->ops->bind)
            LARDER_TRY(node->ops->bind(&node->bound, node, profile, kind));
        if (node->bound || node->tables)
            recipe->profile = profile;
    }
    return 0;
}

int larder_recipe_open(struct larder_recipe **out, const char *text,
                       const struct larder_profile *profile)
{
    *out = NULL;
    struct larder_recipe *recipe = larder_alloc_zero(1, sizeof(*recipe));
    if (!recipe)
        return larder_fail(-ENOMEM, "no memory for a recipe");
    int err = recipe_parse(&recipe->tree, text);
    if (err == 0 && profile)
        err = bind_nodes(recipe, profile);
    if (err < 0) {
        larder_recipe_close(recipe);
        return err;
    }
    *out = recipe;
    return 0;
}

void larder_recipe_close(struct larder_recipe *recipe)
{
    if (!recipe)
        return;
    for (uint32_t i = 0; i < recipe->tree.node_count; i++) {
        larder_free(recipe->tree.nodes[i].bound);
        larder_free(recipe->tree.nodes[i].tables);
    }
    larder_free(recipe);
}

/* --- questions ------------------------------------------------------------------------------- */

const char *larder_recipe_text(const struct larder_recipe *recipe)
{
    return recipe->tree.text;
}

/* The stage that keeps whole planes; NULL: the side is a tree over numbers. */
static const struct codec_stage_ops *planes_stage(const struct larder_recipe *recipe, uint8_t kind)
{
    return recipe->tree.side[kind]->ops->planes;
}

enum larder_quality larder_recipe_quality(const struct larder_recipe *recipe)
{
    bool exact = planes_stage(recipe, LARDER_SECTION_K) && planes_stage(recipe, LARDER_SECTION_V);
    return exact ? LARDER_QUALITY_EXACT : LARDER_QUALITY_LOSSY;
}

bool larder_recipe_is_raw(const struct larder_recipe *recipe)
{
    return planes_stage(recipe, LARDER_SECTION_K) == &codec_stage_plain &&
           planes_stage(recipe, LARDER_SECTION_V) == &codec_stage_plain;
}

uint32_t larder_recipe_needs(const struct larder_recipe *recipe)
{
    uint32_t needs = 0;
    for (uint32_t i = 0; i < recipe->tree.node_count; i++) {
        const struct codec_node *node = &recipe->tree.nodes[i];
        needs |= node->ops->needs ? node->ops->needs(node) : 0;
        needs |= node->ops->needs_profile ? (uint32_t)LARDER_INPUT_PROFILE : 0;
    }
    return needs;
}

bool larder_recipe_needs_profile(const struct larder_recipe *recipe)
{
    return (larder_recipe_needs(recipe) & LARDER_INPUT_PROFILE) != 0;
}

bool larder_recipe_profile_name(const struct larder_recipe *recipe, uint8_t out[32])
{
    if (recipe->profile)
        larder_profile_name(recipe->profile, out);
    else
        memset(out, 0, 32);
    return recipe->profile;
}

uint64_t larder_recipe_memory_bytes(const struct larder_recipe *recipe)
{
    uint64_t bytes = sizeof(*recipe);
    for (uint32_t i = 0; i < recipe->tree.node_count; i++)
        bytes += symbol_tables_bytes(recipe->tree.nodes[i].tables);
    return bytes;
}

/* --- for people ------------------------------------------------------------------------------ */

static void say_value(struct text *text, const struct codec_param *param, double value)
{
    if (!param->words) {
        text_say(text, " %s=%g", param->name, value);
        return;
    }
    const char *word = param->words;
    for (; value > 0; value--)
        word = strchr(word, ' ') + 1;
    text_say(text, " %s=%.*s", param->name, (int)strcspn(word, " "), word);
}

static void say_node(struct text *text, const struct codec_node *node, int indent)
{
    for (; node; node = node->next) {
        text_say(text, "%*s%s", indent, "", node->ops->name);
        for (uint32_t i = 0; i < node->ops->param_count; i++)
            say_value(text, &node->ops->params[i], node->value[i]);
        text_say(text, " - %s\n", node->ops->summary);
        if (node->entropy_coded)
            text_say(text, "%*s%s - %s\n", indent, "", codec_node_rans.name,
                     codec_node_rans.summary);
        if (node->ops->role == CODEC_TRANSFORM) {
            say_node(text, node->inner, indent);
            continue;
        }
        uint32_t place = 1;
        for (const struct codec_node *inner = node->inner; inner; inner = inner->next, place++) {
            if (node->ops->inner_count > 1)
                text_say(text, "%*spipe %u:\n", indent + 2, "", place);
            if (node->ops->role == CODEC_CASES && inner->layer_last == UINT32_MAX)
                text_say(text, "%*sall other layers:\n", indent + 2, "");
            else if (node->ops->role == CODEC_CASES)
                text_say(text, "%*slayers %u-%u:\n", indent + 2, "", inner->layer_first,
                         inner->layer_last);
            struct codec_node alone = *inner;
            alone.next = NULL;
            say_node(text, &alone, indent + 4);
        }
    }
}

int larder_recipe_describe(const struct larder_recipe *recipe, char *out, size_t out_bytes)
{
    struct text text = {.out = out, .room = out_bytes};
    static const char *const names[] = {[LARDER_SECTION_K] = "K:\n", [LARDER_SECTION_V] = "V:\n"};
    for (uint8_t kind = LARDER_SECTION_K; kind <= LARDER_SECTION_V; kind++) {
        text_say(&text, "%s", names[kind]);
        say_node(&text, recipe->tree.side[kind], 2);
    }
    if (text.bytes >= out_bytes)
        return larder_fail(-ENOSPC, "the description needs %zu bytes, there are %zu",
                           text.bytes + 1, out_bytes);
    return 0;
}

const char *larder_recipe_preset(uint32_t index, const char **summary)
{
    if (index >= recipe_preset_count)
        return NULL;
    if (summary)
        *summary = recipe_presets[index].summary;
    return recipe_presets[index].name;
}

const char *larder_recipe_stage(uint32_t index, const char **summary)
{
    const struct codec_node_ops *ops = recipe_stage(index);
    if (ops && summary)
        *summary = ops->summary;
    return ops ? ops->name : NULL;
}

/* --- sections -------------------------------------------------------------------------------- */

uint32_t larder_recipe_section_count(const struct larder_recipe *recipe,
                                     const struct larder_model_desc *model)
{
    (void)recipe;
    return 2 * model->layers;
}

void larder_recipe_slice(const struct larder_recipe *recipe, struct larder_slice *out,
                         const struct larder_model_desc *model, uint32_t section)
{
    assert(section < larder_recipe_section_count(recipe, model));
    *out = (struct larder_slice){
        .layer_first = (uint16_t)(section / 2),
        .layer_count = 1,
        .head_first = 0,
        .head_count = (uint16_t)model->kv_heads,
        .kind = section % 2 == 0 ? LARDER_SECTION_K : LARDER_SECTION_V,
    };
}

static uint32_t dims_of(const struct larder_model_desc *model, uint8_t kind)
{
    return kind == LARDER_SECTION_K ? model->k_dims : model->v_dims;
}

uint64_t larder_slice_raw_bytes(const struct larder_model_desc *model,
                                const struct larder_slice *slice, uint32_t token_count)
{
    return (uint64_t)slice->layer_count * slice->head_count * token_count *
           dims_of(model, slice->kind) * larder_dtype_bytes(model->dtype);
}

static struct codec_size size_of_side(const struct larder_model_desc *model, uint8_t kind,
                                      uint32_t token_count)
{
    return (struct codec_size){
        .heads = model->kv_heads, .tokens = token_count, .dims = dims_of(model, kind)};
}

static int check_profile(const struct larder_recipe *recipe, const struct larder_model_desc *model)
{
    if (recipe->profile)
        return larder_profile_fits(recipe->profile, model);
    if (larder_recipe_needs_profile(recipe))
        return larder_fail(LARDER_EUNSUPPORTED,
                           "recipe '%.80s' needs a profile of the model; `larder calibrate` makes "
                           "one",
                           larder_recipe_text(recipe));
    return 0;
}

int larder_recipe_fits(const struct larder_recipe *recipe, const struct larder_model_desc *model)
{
    LARDER_TRY(check_profile(recipe, model));
    for (uint8_t kind = LARDER_SECTION_K; kind <= LARDER_SECTION_V; kind++) {
        struct codec_size size = size_of_side(model, kind, CODEC_TILE_TOKENS);
        LARDER_TRY(codec_fits(recipe->tree.side[kind], &size));
    }
    return 0;
}

/* A section of one recipe, whichever way it is stored. */
struct job {
    const struct codec_stage_ops *planes; /* NULL: `tree` */
    struct codec_shape shape;
    struct section tree;
};

static void open_job(struct job *out, const struct larder_recipe *recipe,
                     const struct larder_block *block, uint32_t section)
{
    assert(block->token_count > 0);
    assert(block->token_count <= LARDER_BLOCK_TOKENS_MAX);
    assert(section < larder_recipe_section_count(recipe, block->model));
    uint8_t kind = section % 2 == 0 ? LARDER_SECTION_K : LARDER_SECTION_V;
    struct codec_size size = size_of_side(block->model, kind, block->token_count);
    *out = (struct job){
        .planes = planes_stage(recipe, kind),
        .shape = {.group_count = size.heads,
                  .token_count = size.tokens,
                  .dims = size.dims,
                  .elem_bytes = (uint32_t)larder_dtype_bytes(block->model->dtype)},
        .tree = {.tree = recipe->tree.side[kind],
                 .block = block,
                 .layer = section / 2,
                 .kind = kind,
                 .size = size},
    };
}

static uint64_t job_bound(const struct job *job)
{
    return job->planes ? job->planes->bound(&job->shape) : section_bound(&job->tree);
}

static uint64_t job_workspace_bytes(const struct job *job)
{
    return job->planes ? job->planes->workspace_bytes(&job->shape)
                       : section_workspace_bytes(&job->tree);
}

uint64_t larder_recipe_bound(const struct larder_recipe *recipe,
                             const struct larder_model_desc *model, uint32_t section,
                             uint32_t token_count)
{
    struct larder_block block = {.model = model, .token_count = token_count};
    struct job job;
    open_job(&job, recipe, &block, section);
    return job_bound(&job);
}

uint64_t larder_recipe_workspace_bytes(const struct larder_recipe *recipe,
                                       const struct larder_model_desc *model, uint32_t token_count)
{
    /* All layers are alike, or the largest of a recipe's cases: K and V of the first stand for
     * them. */
    struct larder_block block = {.model = model, .token_count = token_count};
    uint64_t most = 0;
    for (uint32_t section = 0; section < 2; section++) {
        struct job job;
        open_job(&job, recipe, &block, section);
        uint64_t bytes = job_workspace_bytes(&job);
        most = bytes > most ? bytes : most;
    }
    return most;
}

/* --- tables ----------------------------------------------------------------------------------- */

static bool needs_tables(const struct larder_recipe *recipe)
{
    for (uint32_t i = 0; i < recipe->tree.node_count; i++) {
        if (recipe->tree.nodes[i].ops->needs_tables)
            return true;
    }
    return false;
}

uint64_t larder_recipe_tables_bytes(const struct larder_recipe *recipe,
                                    const struct larder_model_desc *model, uint32_t token_count)
{
    if (!needs_tables(recipe) || model->rope.kind == LARDER_ROPE_NONE)
        return 0;
    return (uint64_t)token_count * model->rope.rotary_dims * sizeof(float);
}

int larder_recipe_fill_tables(const struct larder_recipe *recipe, void *tables,
                              const struct larder_model_desc *model, uint64_t position,
                              uint32_t token_count)
{
    if (larder_recipe_tables_bytes(recipe, model, token_count) == 0)
        return 0;
    LARDER_TRY(larder_rope_check(&model->rope, model->k_dims));
    if (position > LARDER_PROMPT_TOKENS_MAX - token_count)
        return larder_fail(LARDER_ELIMIT, "position=%llu; prompts have at most %u tokens",
                           (unsigned long long)position, LARDER_PROMPT_TOKENS_MAX);
    float *cosines = tables;
    float *sines = cosines + (uint64_t)token_count * (model->rope.rotary_dims / 2);
    larder_rope_rows(cosines, sines, &model->rope, (uint32_t)position, token_count);
    return 0;
}

/* --- encode and decode ------------------------------------------------------------------------ */

/* Stages count in 32 bits; a section that no record can hold is refused. */
static int check_job(const struct job *job, const struct larder_recipe *recipe,
                     const void *workspace, uint64_t workspace_bytes)
{
    uint64_t bytes = codec_shape_bytes(&job->shape);
    if (bytes > LARDER_RECORD_BYTES_MAX)
        return larder_fail(LARDER_ELIMIT, "a section of %llu bytes; the limit is %llu",
                           (unsigned long long)bytes, (unsigned long long)LARDER_RECORD_BYTES_MAX);
    const struct larder_block *block = job->tree.block;
    LARDER_TRY(check_profile(recipe, block->model));
    if (!job->planes)
        LARDER_TRY(codec_fits(job->tree.tree, &job->tree.size));
    if (!job->planes && !block->tables &&
        larder_recipe_tables_bytes(recipe, block->model, block->token_count) > 0)
        return larder_fail(-EINVAL,
                           "'%s' needs the tables of the block's positions; "
                           "larder_recipe_fill_tables() makes them",
                           larder_recipe_text(recipe));
    uint64_t need = job_workspace_bytes(job);
    if (workspace_bytes < need)
        return larder_fail(-EINVAL, "workspace of %llu bytes; '%s' needs %llu",
                           (unsigned long long)workspace_bytes, larder_recipe_text(recipe),
                           (unsigned long long)need);
    if (need > 0 && (uintptr_t)workspace % WORKSPACE_ALIGN != 0)
        return larder_fail(-EINVAL, "workspace is not aligned to %u bytes", WORKSPACE_ALIGN);
    return 0;
}

static int check_inputs(const struct larder_recipe *recipe, const struct larder_block *block)
{
    uint32_t needs = larder_recipe_needs(recipe);
    const char *text = larder_recipe_text(recipe);
    if ((needs & LARDER_INPUT_IMPORTANCE) && !block->importance)
        return larder_fail(-EINVAL,
                           "'%s' needs importance scores with the PUT "
                           "(larder_put_options.importance)",
                           text);
    if ((needs & LARDER_INPUT_Q_MAX) && !block->q_max)
        return larder_fail(-EINVAL,
                           "'%s' needs the largest |q| of each channel with the PUT "
                           "(larder_put_options.q_max)",
                           text);
    return 0;
}

int larder_recipe_encode(const struct larder_recipe *recipe, void *out, uint64_t out_capacity,
                         uint64_t *out_bytes, struct larder_section_error *error,
                         const struct larder_block *block, uint32_t section, const void *planes,
                         void *workspace, uint64_t workspace_bytes)
{
    *out_bytes = 0;
    *error = (struct larder_section_error){0};
    struct job job;
    open_job(&job, recipe, block, section);
    LARDER_TRY(check_job(&job, recipe, workspace, workspace_bytes));
    LARDER_TRY(check_inputs(recipe, block));
    uint64_t bound = job_bound(&job);
    if (out_capacity < bound)
        return larder_fail(-EINVAL, "room for %llu bytes; the section's bound is %llu",
                           (unsigned long long)out_capacity, (unsigned long long)bound);
    if (job.planes)
        return job.planes->encode(out, out_capacity, out_bytes, error, &job.shape, planes,
                                  workspace);
    return section_encode(&job.tree, out, out_bytes, error, planes, workspace, workspace_bytes);
}

int larder_recipe_decode(const struct larder_recipe *recipe, void *planes, uint64_t planes_bytes,
                         const struct larder_block *block, uint32_t section, const void *encoded,
                         uint64_t encoded_bytes, void *workspace, uint64_t workspace_bytes)
{
    struct job job;
    open_job(&job, recipe, block, section);
    LARDER_TRY(check_job(&job, recipe, workspace, workspace_bytes));
    if (planes_bytes != codec_shape_bytes(&job.shape))
        return larder_fail(-EINVAL, "room for %llu bytes; the section's planes are %llu",
                           (unsigned long long)planes_bytes,
                           (unsigned long long)codec_shape_bytes(&job.shape));
    if (job.planes)
        return job.planes->decode(planes, &job.shape, encoded, encoded_bytes, workspace);
    return section_decode(&job.tree, planes, encoded, encoded_bytes, workspace, workspace_bytes);
}
