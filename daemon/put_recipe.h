/* SPDX-License-Identifier: Apache-2.0 */
/* put_recipe.h - which recipe and profile a PUT is encoded with: its own, its model's default, or
 * what was measured to keep the KL that it asks for.
 * Threads: workers.
 */
#ifndef LARDER_DAEMON_PUT_RECIPE_H
#define LARDER_DAEMON_PUT_RECIPE_H

#include <stdbool.h>

#include "base/wire.h"

struct larder_model_desc;
struct larder_recipe;
struct larderd;
struct session_model;

struct put_recipe {
    const struct larder_recipe *recipe; /* to be given back: recipes_give() */
    float kl;                           /* of the record, as measured; infinity: unknown */
    float max_kl;                       /* that it was to keep; 0: nothing */
    bool unmeasured;                    /* to keep it nothing but exact is known */
};

/* -EINVAL with a message for texts that cannot be, and for inputs that the recipe needs and the PUT
 * does not bring; LARDER_ENOPROFILE. */
int put_recipe_choose(struct put_recipe *out, struct larderd *daemon,
                      const struct session_model *model, const struct wire_put *wire);

/* The recipe of that text, with the model's default profile where it needs one or is better with
 * it, for blocks that come without importance scores and q_max. Errors as above. */
int put_recipe_take(const struct larder_recipe **out, struct larderd *daemon,
                    const struct larder_model_desc *model, const char *text);

#endif
