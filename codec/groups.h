/* SPDX-License-Identifier: Apache-2.0 */
/* groups.h - which elements of a section share a leaf's scale, and the tokens that fill no group.
 *
 * A group is `tokens` tokens of one channel (by channel), or `dims` channels of one token. A block
 * is what decoding loads at once: the groups of one token, or of one run of `tokens` tokens,
 * [head][group of the head].
 *
 * By channel, the tokens behind the last whole run stand raw at the end of the leaf's bytes,
 * [head][token][dim] in the model's dtype: a short group would cost more than it saves.
 */
#ifndef LARDER_CODEC_GROUPS_H
#define LARDER_CODEC_GROUPS_H

#include <stdbool.h>
#include <stdint.h>

#include "codec/node.h"

struct groups {
    bool by_channel;
    uint32_t tokens;       /* by channel: tokens of a group; else 1 */
    uint32_t dims;         /* channels of a group */
    uint32_t per_head;     /* groups of a head in a block; 0: one for all heads */
    uint32_t block_groups; /* groups of a block */
    uint32_t block_count;
    uint32_t whole_tokens; /* tokens in blocks */
    uint32_t tail_tokens;  /* the others */
};

/* `group` tokens or channels; 0: all tokens of a channel, or all heads and channels of a token. */
void groups_make(struct groups *out, const struct codec_size *size, bool by_channel,
                 uint32_t group);
/* Of a leaf's parameter `group`: -EINVAL with a message. */
int groups_check(const char *leaf, bool by_channel, uint32_t group);
/* 1 / scale, 0 where the scale is 0. False where one is so large or small that products with its
 * inverse would not be what a division gives, but for rounding. */
bool groups_invert(float *inverse, const float *scale, uint64_t count);
/* The part of a section that is in blocks. */
struct codec_size groups_whole(const struct groups *groups, const struct codec_size *size);

/* At most; for any dtype. */
uint64_t groups_tail_bound(const struct groups *groups, const struct codec_size *size);
/* Leaves in the numbers what decoding will give. */
void groups_append_tail(const struct groups *groups, struct codec_run *run,
                        struct codec_tile *tile);
/* LARDER_ECORRUPT with a message. */
int groups_take_tail(const struct groups *groups, const uint8_t **out, struct codec_run *run,
                     const struct codec_size *size);
/* Rows from token `first`, which is none of a block's. */
void groups_restore_tail(const struct groups *groups, const uint8_t *raw,
                         const struct codec_run *run, uint32_t first, struct codec_tile *tile);

#endif
