/* SPDX-License-Identifier: Apache-2.0 */
/* inputs.h - what an engine would send with a PUT beside K and V, from a prefix's queries: how much
 * attention each token gets, and the largest queries.
 * Owns:    its figures, of one prefix at a time.
 * Threads: one.
 *
 * Importance of a token for a KV head is the mean attention that it gets from those probe rows that
 * see it, summed over the query heads: the last twentieth of the prefix and every twentieth row
 * before, as ZipCache probes (its other rows are random).
 */
#ifndef LARDER_TOOLS_EVAL_INPUTS_H
#define LARDER_TOOLS_EVAL_INPUTS_H

#include <stdint.h>

#include "kernels/kernels.h"
#include "kernels/model_config.h"

struct eval_inputs;

int eval_inputs_open(struct eval_inputs **out, const struct larder_model_config *config);
void eval_inputs_close(struct eval_inputs *inputs);

/* Another prefix begins. */
void eval_inputs_clear(struct eval_inputs *inputs);
/* Queries of a layer, from position `first` on; what lies behind the prefix is passed over. */
void eval_inputs_take(struct eval_inputs *inputs, uint32_t layer, uint32_t first,
                      const struct larder_tensor *q);
/* When all queries were taken: `keys` are f32 [token of the block][dim] of each block. */
void eval_inputs_score(struct eval_inputs *inputs, uint32_t layer, uint32_t kv_head,
                       const float *const *keys);

/* As struct larder_block has them. */
const float *eval_inputs_importance(const struct eval_inputs *inputs, uint32_t block);
const float *eval_inputs_q_max(const struct eval_inputs *inputs);

#endif
