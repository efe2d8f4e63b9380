/* SPDX-License-Identifier: Apache-2.0 */
/* coder.h - a recipe with the memory to take planes of a few tokens there and back.
 * Owns:    its workspace; the recipe and the model's description are the caller's.
 * Threads: belongs to one thread.
 */
#ifndef LARDER_TOOLS_EVAL_CODER_H
#define LARDER_TOOLS_EVAL_CODER_H

#include <stdint.h>

#include "codec/codec.h"

struct eval_coder;

/* For blocks of up to `tokens_max`. LARDER_EUNSUPPORTED for a recipe that wants scores or queries
 * with a PUT, and for one that does not fit the model. */
int eval_coder_open(struct eval_coder **out, const struct larder_recipe *recipe,
                    const struct larder_model_desc *model, uint32_t tokens_max);
void eval_coder_close(struct eval_coder *coder);

/* Planes (tools/eval/planes.h) of a block that begins a chain, encoded and decoded in place. */
int eval_coder_pass(struct eval_coder *coder, uint8_t *planes, uint32_t tokens);

#endif
