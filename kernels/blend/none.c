/* SPDX-License-Identifier: Apache-2.0 */
/* none.c - chunks merely moved: the floor that every repair is measured against. */
#include "kernels/blend/method.h"

static int choose_none(struct larder_blend *blend)
{
    (void)blend;
    return 0;
}

static double share_of(const struct blend_setting *setting, uint64_t count, uint32_t layers)
{
    (void)setting;
    (void)count;
    (void)layers;
    return 0;
}

const struct blend_method blend_none = {
    .known = {.name = "none", .form = "none", .summary = "nothing is computed again"},
    .share = share_of,
    .choose = choose_none,
};
