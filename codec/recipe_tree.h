/* SPDX-License-Identifier: Apache-2.0 */
/* recipe_tree.h - the text of a recipe read into trees of nodes, one for K and one for V.
 *
 *   pipe   := sides | layers | preset | stage { '|' pipe }
 *   sides  := 'k' '{' pipe '}' 'v' '{' pipe '}'
 *   layers := 'layers' '(' first '-' last ')' '{' pipe '}' ... 'else' '{' pipe '}'
 *   stage  := name { name '=' value } { '{' pipe '}' }
 *
 * A transform is followed by the rest of its pipe; a quantizer may be followed by `rans`; nothing
 * follows any other stage. A preset is a name for a recipe's text. Spaces are allowed between
 * words.
 *
 * Threads: pure functions.
 */
#ifndef LARDER_CODEC_RECIPE_TREE_H
#define LARDER_CODEC_RECIPE_TREE_H

#include <stdint.h>

#include "base/limits.h"
#include "codec/node.h"

struct recipe_tree {
    const struct codec_node *side[2]; /* by enum larder_section_kind */
    struct codec_node nodes[CODEC_NODES_MAX];
    uint32_t node_count;
    uint32_t v_node_first;                  /* nodes before it are K's */
    char text[LARDER_RECIPE_BYTES_MAX + 1]; /* what was read, spaces normalised */
};

struct recipe_preset {
    const char *name;
    const char *summary;
    const char *text;
};

/* What a preset's name means never changes once it is released: records keep the name alone. */
extern const struct recipe_preset recipe_presets[];
extern const uint32_t recipe_preset_count;

/* -EINVAL with a message that names the position, what was found and what is allowed. */
int recipe_parse(struct recipe_tree *out, const char *text);

/* Sets the `pipe` of each leaf: recipes whose stages down to a leaf are the same, with the same
 * parameters, name it alike, presets or not. */
int recipe_name_pipes(struct recipe_tree *tree);

/* Stages by index, for help; NULL at the end. */
const struct codec_node_ops *recipe_stage(uint32_t index);

#endif
