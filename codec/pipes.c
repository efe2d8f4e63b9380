/* SPDX-License-Identifier: Apache-2.0 */
/* pipes.c - names for the ways through a recipe: what the symbols of a leaf are like depends on all
 * stages above it, so tables made for a leaf belong to these. */
#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/limits.h"
#include "base/record.h"
#include "codec/recipe_tree.h"
#include "codec/text.h"

/* Names and numbers of a path: CODEC_DEPTH_MAX braces, transforms between them. */
#define PATH_BYTES_MAX 8192u

struct namer {
    struct recipe_tree *tree;
    char path[PATH_BYTES_MAX];
};

static void say_stage(struct text *text, const struct codec_node *node)
{
    text_say(text, " %s", node->ops->name);
    for (uint32_t i = 0; i < node->ops->param_count; i++)
        text_say(text, " %s=%.9g", node->ops->params[i].name, node->value[i]);
}

static int name_leaf(const struct namer *namer, const struct codec_node *leaf, size_t bytes)
{
    struct larder_key digest;
    LARDER_TRY(larder_sha256(&digest, namer->path, bytes));
    struct codec_node *own = &namer->tree->nodes[leaf - namer->tree->nodes];
    larder_hex(own->pipe, digest.bytes, (sizeof(own->pipe) - 1) / 2);
    return 0;
}

/* `text` ends with what stands above the node. */
static int name_below(struct namer *namer, const struct codec_node *node, struct text text)
{
    say_stage(&text, node);
    if (text.bytes >= text.room)
        return larder_fail(LARDER_ELIMIT,
                           "recipe '%.80s': more stages above each other than %u "
                           "bytes can name",
                           namer->tree->text, PATH_BYTES_MAX);
    if (!node->inner)
        return name_leaf(namer, node, text.bytes);
    uint32_t number = 0;
    for (const struct codec_node *inner = node->inner; inner; inner = inner->next, number++) {
        struct text below = text;
        text_say(&below, "{%u", number);
        LARDER_TRY(name_below(namer, inner, below));
    }
    return 0;
}

int recipe_name_pipes(struct recipe_tree *tree)
{
    struct namer namer = {.tree = tree};
    static const char *const sides[] = {[LARDER_SECTION_K] = "k", [LARDER_SECTION_V] = "v"};
    for (uint8_t kind = LARDER_SECTION_K; kind <= LARDER_SECTION_V; kind++) {
        struct text text = {.out = namer.path, .room = sizeof(namer.path)};
        text_say(&text, "%s", sides[kind]);
        LARDER_TRY(name_below(&namer, tree->side[kind], text));
    }
    return 0;
}
