/* SPDX-License-Identifier: Apache-2.0 */
/* blend.h - what planning and blending share: the request checked, and its prompt in one piece.
 * Owns:    a prompt owns its tokens; what the request points at is the caller's.
 * Threads: a prompt belongs to one call.
 */
#ifndef LARDER_CLIENT_BLEND_H
#define LARDER_CLIENT_BLEND_H

#include "client/connection.h"

struct blend_prompt {
    uint32_t *tokens;
    uint64_t *firsts; /* of each piece, and then of the suffix */
    uint32_t piece_count;
    uint32_t count; /* tokens */
};

/* Checks the request; -EINVAL, LARDER_ELIMIT with a message. */
int blend_prompt_open(struct blend_prompt *out, const struct larder_model *model,
                      const struct larder_blend_request *request);
void blend_prompt_close(struct blend_prompt *prompt);

/* What the daemon's worker says of itself. */
int blend_ask_worker(struct larder_model *model, struct wire_worker_ok *out);

#endif
