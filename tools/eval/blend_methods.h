/* SPDX-License-Identifier: Apache-2.0 */
/* blend_methods.h - what `larder-eval blend` measures when it is not told: methods of
 * kernels/blend/blend.h at several ratios.
 * Threads: a const table.
 */
#ifndef LARDER_TOOLS_EVAL_BLEND_METHODS_H
#define LARDER_TOOLS_EVAL_BLEND_METHODS_H

#include <stdbool.h>
#include <stdint.h>

struct eval_blend_method {
    const char *family; /* a line in the picture */
    const char *text;   /* a '%' stands for the check layer that the profile names, if it does */
    bool is_main;       /* measured with other numbers of people and other recipes, too */
    bool is_quick;      /* part of a quick look */
};

extern const struct eval_blend_method eval_blend_methods[];
extern const uint32_t eval_blend_method_count;

#define EVAL_BLEND_TEXT_MAX 96u

/* The text with " layer=N" in place of its mark; below 0: with nothing. */
void eval_blend_fill(char out[EVAL_BLEND_TEXT_MAX], const char *text, int64_t layer);

/* Recipes that chunks go through besides: of the main methods. */
extern const char *const eval_blend_recipes[];
extern const uint32_t eval_blend_recipe_count;

#define EVAL_BLEND_RAW "raw"

/* What promises are made of. */
#define EVAL_BLEND_NONE       "none"
#define EVAL_BLEND_CACHEBLEND "cacheblend"
#define EVAL_BLEND_CONTROL    "random"
#define EVAL_BLEND_OWN        "probe" /* the project's own */
#define EVAL_BLEND_PEOPLE     6u
#define EVAL_BLEND_LOSSY      "kivi4"
#define EVAL_BLEND_LOSSY_MORE "kivi2"

#endif
