/* SPDX-License-Identifier: Apache-2.0 */
/* kvtuner.h - KVTuner's recipe for a model: bits for K and V of each layer, under a budget, from
 * the sensitivities in its profile.
 * Threads: pure functions.
 */
#ifndef LARDER_TOOLS_EVAL_KVTUNER_H
#define LARDER_TOOLS_EVAL_KVTUNER_H

#include <stddef.h>

#include "codec/profile.h"

/* `budget` of bits an element, before scales. The text has a '%' where an entropy coder may stand,
 * as those of recipes.h. LARDER_EUNSUPPORTED without a profile that knows. */
int eval_kvtuner(char *out, size_t out_bytes, const struct larder_profile *profile, double budget);

#endif
