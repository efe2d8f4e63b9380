/* SPDX-License-Identifier: Apache-2.0 */
/* splice.h - a cached prompt that was edited (PIE): what stands before the first edit is still a
 * prefix, what stands behind it moves, only the new tokens are computed. With a method other than
 * "none" the moved tokens are repaired as those of a chunk are.
 * Threads: pure functions.
 *
 *     struct larder_blend_edit edit = {.first = 40, .removed = 3, .added = 5, .tokens = five};
 *     larder_blend_splice(&prompt, cached_tokens, cached_count, &edit, 1);
 *     larder_blend_open(&blend, model, cache, &prompt, &options);    and so on, blend.h
 *     larder_blend_splice_free(&prompt);
 * A span's `stored_first` is the token's place in the old prompt: fetch() finds its rows there.
 */
#ifndef LARDER_KERNELS_BLEND_SPLICE_H
#define LARDER_KERNELS_BLEND_SPLICE_H

#include <stdint.h>

#include "kernels/blend/blend.h"

/* `removed` tokens from `first` on give way to `added` ones. */
struct larder_blend_edit {
    uint32_t first; /* of the old prompt */
    uint32_t removed;
    uint32_t added;
    const uint32_t *tokens; /* added */
};

/* Tokens and spans of the prompt after the edits, which are in order and do not overlap; the piece
 * of a span is 0 for the old prompt's tokens and 1, 2, ... for those of an edit. -EINVAL for edits
 * outside the prompt, out of order, or that leave no token; LARDER_ELIMIT for too many tokens. */
int larder_blend_splice(struct larder_blend_prompt *out, const uint32_t *tokens, uint32_t count,
                        const struct larder_blend_edit *edits, uint32_t edit_count);
void larder_blend_splice_free(struct larder_blend_prompt *prompt);

#endif
