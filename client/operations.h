/* SPDX-License-Identifier: Apache-2.0 */
/* operations.h - get and put as jobs run them: with a flag that stops them.
 * Threads: any; `cancel` may be set by another thread meanwhile.
 */
#ifndef LARDER_CLIENT_OPERATIONS_H
#define LARDER_CLIENT_OPERATIONS_H

#include <stdatomic.h>
#include <stdbool.h>

#include "client/larder.h"

/* -ECANCELED once `cancel` (NULL: never) was seen set; what was done until then stays, and the
 * result says so. */
int client_get(struct larder_model *model, struct larder_get_result *result,
               const struct larder_prompt *prompt, const struct larder_layout *layout,
               const struct larder_get_options *options, const atomic_bool *cancel);
int client_put(struct larder_model *model, struct larder_put_result *result,
               const struct larder_prompt *prompt, const struct larder_layout *layout,
               const struct larder_put_options *options, const atomic_bool *cancel);

/* Changes the mark of the block of that key. */
struct larder_link;
int client_mark_key(struct larder_link *link, const struct larder_key *key,
                    const struct larder_mark *mark);

#endif
