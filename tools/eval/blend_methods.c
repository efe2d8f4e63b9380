/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/eval/blend_methods.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"

/* Ratios of a family rise: a line is drawn through them, and KL is to fall along the main one. */
const struct eval_blend_method eval_blend_methods[] = {
    {"none", "none", true, true},
    {"full", "full", false, true},
    {"link", "link k=16", false, true},
    {"link", "link k=32", false, false},
    {"cacheblend", "cacheblend r=0%", false, true},
    {"cacheblend", "cacheblend r=.05%", false, false},
    {"cacheblend", "cacheblend r=.1%", false, false},
    {"cacheblend", "cacheblend r=.15%", true, true},
    {"cacheblend", "cacheblend r=.3%", false, true},
    {"cacheblend", "cacheblend r=.5%", false, false},
    {"cacheblend", "cacheblend r=1%", false, false},
    {"cacheblend, K", "cacheblend r=.15% score=k", false, false},
    {"check layer", "cacheblend r=.15 layer=1", false, true},
    {"check layer", "cacheblend r=.15 layer=2", false, false},
    {"check layer", "cacheblend r=.15 layer=4", false, false},
    {"check layer, r=0", "cacheblend r=0 layer=4", false, false},
    {"gradual", "cacheblend r=.7,.5,.15 layer=1 score=k", false, false},
    {"paper's form", "cacheblend r=.15 check=paper layer=1", false, false},
    {"paper's form", "cacheblend r=0% check=paper", false, false},
    {"probe", "probe r=.05", false, false},
    {"probe", "probe r=.1", false, false},
    {"probe", "probe r=.15", true, true},
    {"probe", "probe r=.3", false, false},
    {"random", "random r=.15", false, true},
    {"random", "random r=.6", false, true},
};
const uint32_t eval_blend_method_count = LARDER_COUNT_OF(eval_blend_methods);

const char *const eval_blend_recipes[] = {EVAL_BLEND_LOSSY, EVAL_BLEND_LOSSY_MORE};
const uint32_t eval_blend_recipe_count = LARDER_COUNT_OF(eval_blend_recipes);

void eval_blend_fill(char out[EVAL_BLEND_TEXT_MAX], const char *text, int64_t layer)
{
    const char *mark = strchr(text, '%');
    char named[32] = "";
    if (layer >= 0)
        snprintf(named, sizeof(named), " layer=%" PRId64, layer);
    int before = mark ? (int)(mark - text) : (int)strlen(text);
    int bytes = snprintf(out, EVAL_BLEND_TEXT_MAX, "%.*s%s%s", before, text, mark ? named : "",
                         mark ? mark + 1 : "");
    assert(bytes > 0);
    assert((size_t)bytes < EVAL_BLEND_TEXT_MAX);
}
