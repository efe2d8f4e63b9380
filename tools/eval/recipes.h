/* SPDX-License-Identifier: Apache-2.0 */
/* recipes.h - what larder-eval measures when nobody names a recipe: each method at several sizes.
 * Threads: constant.
 *
 * The text of a method may have the mark '%' where `| rans` can stand: then it is measured both
 * with and without. docs/CODECS.md says what each follows.
 */
#ifndef LARDER_TOOLS_EVAL_RECIPES_H
#define LARDER_TOOLS_EVAL_RECIPES_H

#include <stdbool.h>
#include <stdint.h>

struct eval_method {
    const char *family;
    const char *label; /* of this size within the family */
    const char *text;  /* "budget=BITS": made from the model's profile (kvtuner.h) */
    bool is_quick;     /* stands for its family in a quick look */
};

extern const struct eval_method eval_methods[];
extern const uint32_t eval_method_count;

/* The families of the project's own recipe begin so; what else there is are the others. In
 * EVAL_HOUSE_EVEN the ends of blocks are no finer than the rest, which tells how much that does. */
#define EVAL_HOUSE      "larder"
#define EVAL_HOUSE_EVEN "larder-even"
bool eval_is_house(const char *family);

#endif
