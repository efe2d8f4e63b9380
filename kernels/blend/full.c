/* SPDX-License-Identifier: Apache-2.0 */
/* full.c - every token is computed: a prefill, by the way of a blend. */
#include "kernels/blend/method.h"

static int choose_all(struct larder_blend *blend)
{
    for (uint32_t i = 0; i < blend->token_count; i++)
        if (blend->source[i] == LARDER_BLEND_MOVED)
            blend->active[i] = 1;
    return 0;
}

const struct blend_method blend_full = {
    .known = {.name = "full", .form = "full", .summary = "every token is computed again"},
    .choose = choose_all,
};
