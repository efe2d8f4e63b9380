/* SPDX-License-Identifier: Apache-2.0 */
/* deviation.h - choosing by deviation at a check layer, for the methods that do. Inside
 * kernels/blend/ only. Their params begin with BLEND_DEVIATION_PARAMS, which deviation.c reads.
 *
 * All MOVED tokens run through the layers before the check layer and keep what they get there. At
 * the check layer their K and V are computed and compared with the stored ones: sum over heads and
 * dims of the squared difference, of V (score=v, as CacheBlend's authors do) or of K at its new
 * place (score=k). The share r with the highest scores goes on through all layers; of the others
 *     check=strict   everything from the check layer on stays as stored;
 *     check=paper    K and V of the check layer are still the computed ones, as the authors' code
 *                    does; from the next layer on they stay as stored.
 * r=a,b,c filters gradually, as the paper describes: a goes on at the check layer, b of all MOVED
 * tokens at the next one, and so on; the last holds for the rest. Shares never rise.
 * Each token's score stays in blend->scores.
 */
#ifndef LARDER_KERNELS_BLEND_DEVIATION_H
#define LARDER_KERNELS_BLEND_DEVIATION_H

#include "kernels/blend/method.h"

enum { DEVIATION_R, DEVIATION_LAYER, DEVIATION_SCORE, DEVIATION_CHECK, DEVIATION_PARAMS };

#define BLEND_DEVIATION_PARAMS                                                                     \
    [DEVIATION_R] = {.name = "r", .high = 1, .missing = 0.15, .count_max = BLEND_VALUES_MAX},      \
    [DEVIATION_LAYER] = {.name = "layer", .high = UINT32_MAX - 1, .missing = 1, .whole = true},    \
    [DEVIATION_SCORE] = {.name = "score", .words = "v k"},                                         \
    [DEVIATION_CHECK] = {.name = "check", .words = "strict paper"}

int blend_deviation_check(const struct blend_setting *setting, uint32_t layers);
int blend_deviation_choose(struct larder_blend *blend);
int blend_deviation_filter(struct larder_blend *blend, uint32_t layer);

#endif
