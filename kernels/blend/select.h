/* SPDX-License-Identifier: Apache-2.0 */
/* select.h - the parts of blending that need no model: spans, moves of K, scores, choices. For the
 * core (blend.c) and for engines that run their own layers.
 * Threads: pure functions. Tensors lie in the host's memory.
 */
#ifndef LARDER_KERNELS_BLEND_SELECT_H
#define LARDER_KERNELS_BLEND_SELECT_H

#include <stdint.h>

#include "base/larder_base.h"
#include "kernels/kernels.h"
#include "kernels/rope.h"

/* Do they cover `tokens` in order, PREFIX first and in place, nowhere behind `positions_max`?
 * -EINVAL or LARDER_ELIMIT with the span's number if not. */
int larder_blend_check_spans(const struct larder_blend_span *spans, uint32_t span_count,
                             uint64_t tokens, uint64_t positions_max);

/* Keys [rows, heads, dims], rotated for positions from, from + 1, ..., rotated for to, to + 1, ...
 * instead, in place. Positions are below the table's. */
void larder_blend_move_keys(const struct larder_rope_table *table, const struct larder_tensor *keys,
                            uint32_t from, uint32_t to);

/* scores[i] = sum over heads and dims of (fresh[i] - stored[positions[i]])^2; fresh f32 [rows,
 * heads, dims], stored of any dtype with as many heads and dims. What is no number counts as
 * infinite. */
void larder_blend_deviation(float *scores, const struct larder_tensor *fresh,
                            const struct larder_tensor *stored, const uint32_t *positions);

/* Clears flags[i] for all but `count` of the flagged ones: those of the highest scores stay; of
 * equals the first. -ENOMEM. */
int larder_blend_keep_highest(uint8_t *flags, const float *scores, uint32_t flag_count,
                              uint32_t count);

/* Tokens that a share of them makes: to the nearest, halves up. */
uint32_t larder_blend_share_of(double share, uint32_t count);

#endif
