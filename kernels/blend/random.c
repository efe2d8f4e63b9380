/* SPDX-License-Identifier: Apache-2.0 */
/* random.c - a share of the tokens, any of them: the control that a choice of tokens has to beat.
 * */
#include "kernels/blend/method.h"

#include "base/bytes.h"
#include "kernels/blend/select.h"

enum { PARAM_R };

static const struct blend_param params[] = {
    [PARAM_R] = {.name = "r", .high = 1, .missing = 0.15},
};

/* splitmix64 */
static uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* Each token has as good a chance as any other, and the number is exact: of those that are left,
 * one is taken with the chance of what is still wanted among them. */
static int choose_random(struct larder_blend *blend)
{
    uint64_t state = blend->options.seed;
    uint32_t left = blend_moved_count(blend);
    uint32_t wanted = larder_blend_share_of(blend_number(&blend->setting, PARAM_R), left);
    for (uint32_t i = 0; i < blend->token_count; i++) {
        if (blend->source[i] != LARDER_BLEND_MOVED)
            continue;
        if (next_random(&state) % left < wanted) {
            blend->active[i] = 1;
            wanted--;
        }
        left--;
    }
    return 0;
}

const struct blend_method blend_random = {
    .known = {.name = "random",
              .form = "random r=.15",
              .summary = "tokens at random are computed again: a control"},
    .params = params,
    .param_count = LARDER_COUNT_OF(params),
    .choose = choose_random,
};
