/* SPDX-License-Identifier: Apache-2.0 */
/* recipe.c - the text of a recipe, and the way from a section to its stage.
 *
 *   recipe := pipe | 'k' '{' pipe '}' 'v' '{' pipe '}'
 *   pipe   := preset | stage
 *
 * Spaces are allowed between words. A preset is a name for a pipe; the stored text keeps it.
 * Sections: one layer, all KV heads, K or V each.
 */
#include "codec/codec.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"
#include "base/record.h"
#include "codec/stage.h"

#define WORKSPACE_ALIGN 64u

static const struct codec_stage_ops *const stages[] = {
    &codec_stage_plain,
    &codec_stage_byteplanes,
};

static const struct preset {
    const char *name;
    const char *summary;
    const struct codec_stage_ops *stage;
} presets[] = {
    {"raw", "as the engine computed it, not compressed", &codec_stage_plain},
    {"exact", "bit-exact and smaller: byte planes, Huffman-coded exponents",
     &codec_stage_byteplanes},
};

struct larder_recipe {
    const struct codec_stage_ops *stage[2]; /* by enum larder_section_kind */
    char text[LARDER_RECIPE_BYTES_MAX + 1];
};

/* --- parsing --------------------------------------------------------------------------------- */

struct word {
    const char *at;
    size_t bytes;
};

struct parser {
    const char *text;
    const char *at;
    char *out; /* the text to store, as far as it is parsed */
    size_t out_bytes;
};

static bool is_word_char(char c)
{
    return isalnum((unsigned char)c) || c == '-' || c == '_' || c == '.';
}

static struct word peek(struct parser *parser)
{
    while (*parser->at == ' ')
        parser->at++;
    struct word word = {.at = parser->at};
    while (is_word_char(word.at[word.bytes]))
        word.bytes++;
    if (word.bytes == 0 && *word.at)
        word.bytes = 1;
    return word;
}

static bool word_is(struct word word, const char *text)
{
    return word.bytes == strlen(text) && memcmp(word.at, text, word.bytes) == 0;
}

static int unexpected(const struct parser *parser, struct word found, const char *allowed)
{
    int shown = (int)larder_min_u64(found.bytes, 40);
    const char *quote = found.bytes ? "'" : "";
    return larder_fail(-EINVAL, "recipe '%.80s', character %zu: found %s%.*s%s, allowed: %s",
                       parser->text, (size_t)(found.at - parser->text) + 1, quote,
                       found.bytes ? shown : 7, found.bytes ? found.at : "the end", quote, allowed);
}

/* Moves behind a word and appends it to the text to store. The stored text is never longer than
 * what was given and a space. */
static void accept(struct parser *parser, struct word word, const char *separator)
{
    parser->at = word.at + word.bytes;
    size_t room = LARDER_RECIPE_BYTES_MAX + 1 - parser->out_bytes;
    int written = snprintf(parser->out + parser->out_bytes, room, "%.*s%s", (int)word.bytes,
                           word.at, separator);
    assert(written >= 0);
    assert((size_t)written < room);
    parser->out_bytes += (size_t)written;
}

static int accept_exactly(struct parser *parser, const char *text, const char *separator)
{
    struct word word = peek(parser);
    if (!word_is(word, text)) {
        char allowed[16];
        snprintf(allowed, sizeof(allowed), "'%s'", text);
        return unexpected(parser, word, allowed);
    }
    accept(parser, word, separator);
    return 0;
}

static void list_names(char *out, size_t out_bytes)
{
    size_t used = 0;
    for (size_t i = 0; i < LARDER_COUNT_OF(presets) + LARDER_COUNT_OF(stages); i++) {
        const char *name = i < LARDER_COUNT_OF(presets)
                               ? presets[i].name
                               : stages[i - LARDER_COUNT_OF(presets)]->name;
        used += (size_t)snprintf(out + used, out_bytes - used, "%s%s", used ? ", " : "", name);
        assert(used < out_bytes);
    }
}

static int parse_pipe(struct parser *parser, const struct codec_stage_ops **out)
{
    struct word word = peek(parser);
    *out = NULL;
    for (size_t i = 0; i < LARDER_COUNT_OF(presets); i++) {
        if (word_is(word, presets[i].name))
            *out = presets[i].stage;
    }
    for (size_t i = 0; i < LARDER_COUNT_OF(stages); i++) {
        if (word_is(word, stages[i]->name))
            *out = stages[i];
    }
    if (!*out) {
        char names[200];
        list_names(names, sizeof(names));
        return unexpected(parser, word, names);
    }
    accept(parser, word, "");
    return 0;
}

static int parse_side(struct parser *parser, const char *name, const char *separator,
                      const struct codec_stage_ops **out)
{
    LARDER_TRY(accept_exactly(parser, name, ""));
    LARDER_TRY(accept_exactly(parser, "{", ""));
    LARDER_TRY(parse_pipe(parser, out));
    return accept_exactly(parser, "}", separator);
}

static int parse(struct larder_recipe *recipe, const char *text)
{
    struct parser parser = {.text = text, .at = text, .out = recipe->text};
    if (word_is(peek(&parser), "k")) {
        LARDER_TRY(parse_side(&parser, "k", " ", &recipe->stage[LARDER_SECTION_K]));
        LARDER_TRY(parse_side(&parser, "v", "", &recipe->stage[LARDER_SECTION_V]));
    } else {
        LARDER_TRY(parse_pipe(&parser, &recipe->stage[LARDER_SECTION_K]));
        recipe->stage[LARDER_SECTION_V] = recipe->stage[LARDER_SECTION_K];
    }
    struct word rest = peek(&parser);
    if (rest.bytes > 0)
        return unexpected(&parser, rest, "the end");
    return 0;
}

int larder_recipe_open(struct larder_recipe **out, const char *text)
{
    *out = NULL;
    /* One byte is kept for the space that the stored text has between k{} and v{}. */
    if (strlen(text) >= LARDER_RECIPE_BYTES_MAX)
        return larder_fail(-EINVAL, "recipe of %zu bytes; the limit is %u", strlen(text),
                           LARDER_RECIPE_BYTES_MAX - 1);
    struct larder_recipe *recipe = larder_alloc_zero(1, sizeof(*recipe));
    if (!recipe)
        return larder_fail(-ENOMEM, "no memory for a recipe");
    int err = parse(recipe, text);
    if (err < 0) {
        larder_free(recipe);
        return err;
    }
    *out = recipe;
    return 0;
}

void larder_recipe_close(struct larder_recipe *recipe)
{
    larder_free(recipe);
}

/* --- questions ------------------------------------------------------------------------------- */

const char *larder_recipe_text(const struct larder_recipe *recipe)
{
    return recipe->text;
}

enum larder_quality larder_recipe_quality(const struct larder_recipe *recipe)
{
    enum larder_quality k = recipe->stage[LARDER_SECTION_K]->quality;
    enum larder_quality v = recipe->stage[LARDER_SECTION_V]->quality;
    return k > v ? k : v;
}

bool larder_recipe_is_raw(const struct larder_recipe *recipe)
{
    return recipe->stage[LARDER_SECTION_K]->is_identity &&
           recipe->stage[LARDER_SECTION_V]->is_identity;
}

int larder_recipe_describe(const struct larder_recipe *recipe, char *out, size_t out_bytes)
{
    const struct codec_stage_ops *k = recipe->stage[LARDER_SECTION_K];
    const struct codec_stage_ops *v = recipe->stage[LARDER_SECTION_V];
    int wanted = k == v ? snprintf(out, out_bytes, "K, V: %s - %s\n", k->name, k->summary)
                        : snprintf(out, out_bytes, "K: %s - %s\nV: %s - %s\n", k->name, k->summary,
                                   v->name, v->summary);
    if (wanted < 0 || (size_t)wanted >= out_bytes)
        return larder_fail(-ENOSPC, "the description needs %d bytes, there are %zu", wanted + 1,
                           out_bytes);
    return 0;
}

const char *larder_recipe_preset(uint32_t index, const char **summary)
{
    if (index >= LARDER_COUNT_OF(presets))
        return NULL;
    if (summary)
        *summary = presets[index].summary;
    return presets[index].name;
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

static void shape_of_slice(struct codec_shape *out, const struct larder_model_desc *model,
                           const struct larder_slice *slice, uint32_t token_count)
{
    *out = (struct codec_shape){
        .group_count = (uint32_t)slice->layer_count * slice->head_count,
        .token_count = token_count,
        .dims = slice->kind == LARDER_SECTION_K ? model->k_dims : model->v_dims,
        .elem_bytes = (uint32_t)larder_dtype_bytes(model->dtype),
    };
}

uint64_t larder_slice_raw_bytes(const struct larder_model_desc *model,
                                const struct larder_slice *slice, uint32_t token_count)
{
    struct codec_shape shape;
    shape_of_slice(&shape, model, slice, token_count);
    return codec_shape_bytes(&shape);
}

static const struct codec_stage_ops *stage_of_section(const struct larder_recipe *recipe,
                                                      struct codec_shape *shape,
                                                      const struct larder_model_desc *model,
                                                      uint32_t section, uint32_t token_count)
{
    assert(token_count > 0);
    assert(token_count <= LARDER_BLOCK_TOKENS_MAX);
    struct larder_slice slice;
    larder_recipe_slice(recipe, &slice, model, section);
    shape_of_slice(shape, model, &slice, token_count);
    return recipe->stage[slice.kind];
}

uint64_t larder_recipe_bound(const struct larder_recipe *recipe,
                             const struct larder_model_desc *model, uint32_t section,
                             uint32_t token_count)
{
    struct codec_shape shape;
    const struct codec_stage_ops *stage =
        stage_of_section(recipe, &shape, model, section, token_count);
    return stage->bound(&shape);
}

uint64_t larder_recipe_workspace_bytes(const struct larder_recipe *recipe,
                                       const struct larder_model_desc *model, uint32_t token_count)
{
    /* All layers are alike: K and V of the first stand for them. */
    uint64_t most = 0;
    for (uint32_t section = 0; section < 2; section++) {
        struct codec_shape shape;
        const struct codec_stage_ops *stage =
            stage_of_section(recipe, &shape, model, section, token_count);
        uint64_t bytes = stage->workspace_bytes(&shape);
        most = bytes > most ? bytes : most;
    }
    return most;
}

/* Stages count in 32 bits; a section that no record can hold is refused. */
static int check_size(const struct codec_shape *shape)
{
    if (codec_shape_bytes(shape) > LARDER_RECORD_BYTES_MAX)
        return larder_fail(LARDER_ELIMIT, "a section of %llu bytes; the limit is %llu",
                           (unsigned long long)codec_shape_bytes(shape),
                           (unsigned long long)LARDER_RECORD_BYTES_MAX);
    return 0;
}

static int check_workspace(const struct codec_stage_ops *stage, const struct codec_shape *shape,
                           const void *workspace, uint64_t workspace_bytes)
{
    uint64_t need = stage->workspace_bytes(shape);
    if (workspace_bytes < need)
        return larder_fail(-EINVAL, "workspace of %llu bytes; '%s' needs %llu",
                           (unsigned long long)workspace_bytes, stage->name,
                           (unsigned long long)need);
    if (need > 0 && (uintptr_t)workspace % WORKSPACE_ALIGN != 0)
        return larder_fail(-EINVAL, "workspace is not aligned to %u bytes", WORKSPACE_ALIGN);
    return 0;
}

int larder_recipe_encode(const struct larder_recipe *recipe, void *out, uint64_t out_capacity,
                         uint64_t *out_bytes, struct larder_section_error *error,
                         const struct larder_model_desc *model, uint32_t section,
                         const void *planes, uint32_t token_count, void *workspace,
                         uint64_t workspace_bytes)
{
    *out_bytes = 0;
    *error = (struct larder_section_error){0};
    struct codec_shape shape;
    const struct codec_stage_ops *stage =
        stage_of_section(recipe, &shape, model, section, token_count);
    LARDER_TRY(check_size(&shape));
    uint64_t bound = stage->bound(&shape);
    if (out_capacity < bound)
        return larder_fail(-EINVAL, "room for %llu bytes; the section's bound is %llu",
                           (unsigned long long)out_capacity, (unsigned long long)bound);
    LARDER_TRY(check_workspace(stage, &shape, workspace, workspace_bytes));
    return stage->encode(out, out_capacity, out_bytes, error, &shape, planes, workspace);
}

int larder_recipe_decode(const struct larder_recipe *recipe, void *planes, uint64_t planes_bytes,
                         const struct larder_model_desc *model, uint32_t section,
                         const void *encoded, uint64_t encoded_bytes, uint32_t token_count,
                         void *workspace, uint64_t workspace_bytes)
{
    struct codec_shape shape;
    const struct codec_stage_ops *stage =
        stage_of_section(recipe, &shape, model, section, token_count);
    LARDER_TRY(check_size(&shape));
    if (planes_bytes != codec_shape_bytes(&shape))
        return larder_fail(-EINVAL, "room for %llu bytes; the section's planes are %llu",
                           (unsigned long long)planes_bytes,
                           (unsigned long long)codec_shape_bytes(&shape));
    LARDER_TRY(check_workspace(stage, &shape, workspace, workspace_bytes));
    return stage->decode(planes, &shape, encoded, encoded_bytes, workspace);
}
