/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/recipe_tree.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/record.h"
#include "codec/grid.h"
#include "codec/stage.h"

#define NUMBER_BYTES_MAX 31u

static const struct codec_node_ops plain_node = {
    .name = "plain",
    .summary = "canonical planes as they are",
    .role = CODEC_PLANES,
    .planes = &codec_stage_plain,
};

static const struct codec_node_ops byteplanes_node = {
    .name = "byteplanes",
    .summary = "bit-exact: byte planes, Huffman-coded exponents",
    .role = CODEC_PLANES,
    .planes = &codec_stage_byteplanes,
};

static const struct codec_node_ops *const stages[] = {
    /* alone */
    &plain_node,
    &byteplanes_node,
    /* transforms */
    &codec_node_rope_off,
    &codec_node_hadamard,
    &codec_node_normalize,
    &codec_node_balance,
    &codec_node_join,
    &codec_node_reorder,
    &codec_node_rfft,
    &codec_node_klt,
    /* wrappers */
    &codec_node_sinks,
    &codec_node_outliers,
    &codec_node_residual,
    &codec_node_lowrank,
    &codec_node_split,
    &codec_node_choose,
    &codec_node_anchors,
    /* leaves, and what stands behind them */
    &codec_node_quant,
    &codec_node_codebook,
    &codec_node_keep,
    &codec_node_steps,
    &codec_node_lloyd.ops,
    &codec_node_ternary.ops,
    &codec_node_fp4.ops,
    &codec_node_fp8.ops,
    &codec_node_bfp.ops,
    &codec_node_qjl,
    &codec_node_rans,
};

const struct codec_node_ops *recipe_stage(uint32_t index)
{
    return index < LARDER_COUNT_OF(stages) ? stages[index] : NULL;
}

/* --- words ------------------------------------------------------------------------------------ */

struct word {
    const char *at;
    size_t bytes;
};

struct parser {
    struct recipe_tree *tree;
    const char *text;
    const char *at;
    size_t kept_bytes; /* of tree->text */
    bool keeps;        /* the words read are appended to tree->text */
    uint8_t kind;      /* the side whose tree is being made */
    uint32_t depth;    /* of braces */
    uint32_t around;   /* stages around this place */
    uint32_t broken;   /* by them, of enum codec_whole */
};

static int parse_pipe(struct parser *parser, struct codec_node **out);

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

/* Moves behind a word and keeps it, with a space before it where two words would touch. */
static int accept(struct parser *parser, struct word word)
{
    parser->at = word.at + word.bytes;
    if (!parser->keeps)
        return 0;
    char *text = parser->tree->text;
    bool touches = parser->kept_bytes == 0 || strchr("{(=", text[parser->kept_bytes - 1]) ||
                   strchr("{}()=", word.at[0]);
    size_t bytes = word.bytes + !touches;
    if (parser->kept_bytes + bytes > LARDER_RECIPE_BYTES_MAX)
        return larder_fail(-EINVAL, "recipe '%.80s' is longer than the limit of %u bytes",
                           parser->text, LARDER_RECIPE_BYTES_MAX);
    if (!touches)
        text[parser->kept_bytes] = ' ';
    memcpy(text + parser->kept_bytes + !touches, word.at, word.bytes);
    parser->kept_bytes += bytes;
    text[parser->kept_bytes] = 0;
    return 0;
}

static int accept_exactly(struct parser *parser, const char *text)
{
    struct word word = peek(parser);
    if (!word_is(word, text)) {
        char allowed[16];
        snprintf(allowed, sizeof(allowed), "'%s'", text);
        return unexpected(parser, word, allowed);
    }
    return accept(parser, word);
}

/* A number, whole if `whole`, or -1 where there is none such within the limits. */
static double read_number(struct word word, double low, double high, bool whole)
{
    char text[NUMBER_BYTES_MAX + 1];
    bool is_number = word.bytes > 0 && word.bytes <= NUMBER_BYTES_MAX &&
                     (isdigit((unsigned char)word.at[0]) || word.at[0] == '.');
    if (!is_number)
        return -1;
    memcpy(text, word.at, word.bytes);
    text[word.bytes] = 0;
    char *end;
    double value = strtod(text, &end);
    if (*end || !isfinite(value) || value < low || value > high || (whole && value != floor(value)))
        return -1;
    return value;
}

/* --- nodes ------------------------------------------------------------------------------------ */

static int new_node(struct parser *parser, struct codec_node **out,
                    const struct codec_node_ops *ops)
{
    *out = NULL;
    if (parser->tree->node_count == CODEC_NODES_MAX)
        return larder_fail(-EINVAL, "recipe '%.80s' has more than %u stages", parser->text,
                           CODEC_NODES_MAX);
    struct codec_node *node = &parser->tree->nodes[parser->tree->node_count++];
    *node = (struct codec_node){.ops = ops, .layer_last = UINT32_MAX};
    for (uint32_t i = 0; i < ops->param_count; i++)
        node->value[i] = ops->params[i].missing;
    *out = node;
    return 0;
}

static int parse_braces(struct parser *parser, struct codec_node **out)
{
    if (parser->depth == CODEC_DEPTH_MAX)
        return larder_fail(-EINVAL,
                           "recipe '%.80s', character %zu: braces are nested more than %u "
                           "deep",
                           parser->text, (size_t)(parser->at - parser->text) + 1, CODEC_DEPTH_MAX);
    LARDER_TRY(accept_exactly(parser, "{"));
    parser->depth++;
    LARDER_TRY(parse_pipe(parser, out));
    parser->depth--;
    return accept_exactly(parser, "}");
}

/* Both sides are read, the one that is asked for is kept. */
static int parse_sides(struct parser *parser, struct codec_node **out)
{
    static const char *const names[] = {[LARDER_SECTION_K] = "k", [LARDER_SECTION_V] = "v"};
    for (uint8_t kind = LARDER_SECTION_K; kind <= LARDER_SECTION_V; kind++) {
        LARDER_TRY(accept_exactly(parser, names[kind]));
        uint32_t node_count = parser->tree->node_count;
        struct codec_node *side;
        LARDER_TRY(parse_braces(parser, &side));
        if (kind == parser->kind)
            *out = side;
        else
            parser->tree->node_count = node_count;
    }
    return 0;
}

/* "0-9" or "3"; layers beyond the model's are allowed: the same recipe serves many models. */
static int parse_range(struct parser *parser, uint32_t *first, uint32_t *last)
{
    struct word word = peek(parser);
    const char *dash = memchr(word.at, '-', word.bytes);
    struct word left = {.at = word.at, .bytes = dash ? (size_t)(dash - word.at) : word.bytes};
    struct word right = left;
    if (dash)
        right = (struct word){.at = dash + 1, .bytes = word.bytes - left.bytes - 1};
    double from = read_number(left, 0, LARDER_LAYERS_MAX - 1, true);
    double to = read_number(right, 0, LARDER_LAYERS_MAX - 1, true);
    if (from < 0 || to < from)
        return unexpected(parser, word, "layers as FIRST-LAST");
    *first = (uint32_t)from;
    *last = (uint32_t)to;
    return accept(parser, word);
}

static int parse_layers(struct parser *parser, struct codec_node **out)
{
    LARDER_TRY(new_node(parser, out, &codec_node_cases));
    const struct codec_node **end = &(*out)->inner;
    parser->around++;
    bool rest = false;
    while (!rest) {
        uint32_t first = 0;
        uint32_t last = UINT32_MAX;
        rest = word_is(peek(parser), "else");
        if (rest) {
            LARDER_TRY(accept_exactly(parser, "else"));
        } else {
            LARDER_TRY(accept_exactly(parser, "layers"));
            LARDER_TRY(accept_exactly(parser, "("));
            LARDER_TRY(parse_range(parser, &first, &last));
            LARDER_TRY(accept_exactly(parser, ")"));
        }
        struct codec_node *inner;
        LARDER_TRY(parse_braces(parser, &inner));
        inner->layer_first = first;
        inner->layer_last = last;
        *end = inner;
        end = &inner->next;
    }
    parser->around--;
    return 0;
}

/* A preset's text is read into the same tree, without a trace in the text that is kept. */
static int parse_preset(struct parser *parser, struct codec_node **out, const char *text)
{
    struct parser inner = *parser;
    inner.text = text;
    inner.at = text;
    inner.keeps = false;
    LARDER_TRY(parse_pipe(&inner, out));
    struct word rest = peek(&inner);
    return rest.bytes ? unexpected(&inner, rest, "the end") : 0;
}

/* --- stages ----------------------------------------------------------------------------------- */

static int bad_value(const struct parser *parser, struct word word, const struct codec_param *param)
{
    char allowed[160];
    if (param->words)
        snprintf(allowed, sizeof(allowed), "%s=, one of: %s", param->name, param->words);
    else
        snprintf(allowed, sizeof(allowed), "%s=, a %snumber from %g to %g", param->name,
                 param->whole ? "whole " : "", param->low, param->high);
    return unexpected(parser, word, allowed);
}

/* The place of `word` among words separated by spaces; -1 when it is not there. */
static double find_word(struct word word, const char *words)
{
    double index = 0;
    for (const char *at = words; *at; index++) {
        size_t bytes = strcspn(at, " ");
        if (bytes == word.bytes && memcmp(at, word.at, bytes) == 0)
            return index;
        at += bytes;
        at += *at == ' ';
    }
    return -1;
}

static int parse_param(struct parser *parser, struct codec_node *node, uint32_t *seen)
{
    struct word name = peek(parser);
    uint32_t index = 0;
    while (index < node->ops->param_count && !word_is(name, node->ops->params[index].name))
        index++;
    if (index == node->ops->param_count || (*seen & 1u << index)) {
        char allowed[200];
        size_t used = 0;
        for (uint32_t i = 0; i < node->ops->param_count; i++)
            used += (size_t)snprintf(allowed + used, sizeof(allowed) - used, "%s%s",
                                     used ? ", " : "", node->ops->params[i].name);
        assert(used < sizeof(allowed));
        snprintf(allowed + used, sizeof(allowed) - used, "%s", used ? " (once each)" : "the end");
        return unexpected(parser, name, allowed);
    }
    *seen |= 1u << index;
    LARDER_TRY(accept(parser, name));
    LARDER_TRY(accept_exactly(parser, "="));
    const struct codec_param *param = &node->ops->params[index];
    struct word word = peek(parser);
    double value = param->words ? find_word(word, param->words)
                                : read_number(word, param->low, param->high, param->whole);
    if (value < 0)
        return bad_value(parser, word, param);
    node->value[index] = value;
    return accept(parser, word);
}

static int parse_coder(struct parser *parser, struct codec_node *leaf)
{
    if (!word_is(peek(parser), "|"))
        return 0;
    LARDER_TRY(accept_exactly(parser, "|"));
    leaf->entropy_coded = true;
    return accept_exactly(parser, codec_node_rans.name);
}

static int parse_inner(struct parser *parser, struct codec_node *node)
{
    if (node->ops->role == CODEC_LEAF)
        return parse_coder(parser, node);
    parser->around++;
    const struct codec_node **end = &node->inner;
    if (node->ops->role == CODEC_TRANSFORM) {
        LARDER_TRY(accept_exactly(parser, "|"));
        struct codec_node *rest;
        LARDER_TRY(parse_pipe(parser, &rest));
        *end = rest;
    }
    for (uint32_t i = 0;
         i < node->ops->inner_count || (node->ops->inner_more && word_is(peek(parser), "{")); i++) {
        struct codec_node *inner;
        LARDER_TRY(parse_braces(parser, &inner));
        *end = inner;
        end = &inner->next;
    }
    parser->around--;
    return 0;
}

static int parse_stage(struct parser *parser, struct codec_node **out,
                       const struct codec_node_ops *ops)
{
    struct word name = peek(parser);
    if (ops->role == CODEC_PLANES && parser->around > 0)
        return larder_fail(-EINVAL,
                           "recipe '%.80s', character %zu: %s keeps whole planes; no other stage "
                           "can stand around it",
                           parser->text, (size_t)(name.at - parser->text) + 1, ops->name);
    if (ops->role == CODEC_CODER)
        return larder_fail(-EINVAL,
                           "recipe '%.80s', character %zu: %s stands behind a quantizer, as in "
                           "'quant bits=4 | %s'",
                           parser->text, (size_t)(name.at - parser->text) + 1, ops->name,
                           ops->name);
    struct codec_node *node;
    LARDER_TRY(new_node(parser, &node, ops));
    LARDER_TRY(accept(parser, name));
    uint32_t seen = 0;
    while (is_word_char(peek(parser).at[0]))
        LARDER_TRY(parse_param(parser, node, &seen));
    if (ops->check)
        LARDER_TRY(ops->check(node));
    if (ops->wants && (ops->wants(node) & parser->broken))
        return larder_fail(-EINVAL,
                           "recipe '%.80s', character %zu: %s reads what is known of whole heads "
                           "or tokens; it cannot stand inside this split or join",
                           parser->text, (size_t)(name.at - parser->text) + 1, ops->name);
    *out = node;
    uint32_t broken = parser->broken;
    parser->broken |= ops->breaks ? ops->breaks(node) : 0;
    LARDER_TRY(parse_inner(parser, node));
    parser->broken = broken;
    return 0;
}

static int parse_pipe(struct parser *parser, struct codec_node **out)
{
    struct word word = peek(parser);
    if (word_is(word, "k"))
        return parse_sides(parser, out);
    if (word_is(word, "layers"))
        return parse_layers(parser, out);
    for (uint32_t i = 0; i < recipe_preset_count; i++) {
        if (!word_is(word, recipe_presets[i].name))
            continue;
        LARDER_TRY(accept(parser, word));
        return parse_preset(parser, out, recipe_presets[i].text);
    }
    for (uint32_t i = 0; i < LARDER_COUNT_OF(stages); i++) {
        if (word_is(word, stages[i]->name))
            return parse_stage(parser, out, stages[i]);
    }
    return unexpected(parser, word, "a preset or a stage ('larder recipe ls' names them)");
}

int recipe_parse(struct recipe_tree *out, const char *text)
{
    *out = (struct recipe_tree){0};
    if (strlen(text) > LARDER_RECIPE_BYTES_MAX)
        return larder_fail(-EINVAL, "recipe of %zu bytes; the limit is %u", strlen(text),
                           LARDER_RECIPE_BYTES_MAX);
    for (uint8_t kind = LARDER_SECTION_K; kind <= LARDER_SECTION_V; kind++) {
        struct parser parser = {
            .tree = out, .text = text, .at = text, .keeps = kind == LARDER_SECTION_K, .kind = kind};
        if (kind == LARDER_SECTION_V)
            out->v_node_first = out->node_count;
        struct codec_node *side;
        LARDER_TRY(parse_pipe(&parser, &side));
        struct word rest = peek(&parser);
        if (rest.bytes > 0)
            return unexpected(&parser, rest, "the end");
        out->side[kind] = side;
    }
    return recipe_name_pipes(out);
}
