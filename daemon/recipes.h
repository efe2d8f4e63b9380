/* SPDX-License-Identifier: Apache-2.0 */
/* recipes.h - opened recipes, kept while they are used and for a while after: opening one takes its
 * profile apart.
 *
 * Owns:    the recipes; a hold on the profile of each.
 * Threads: workers. One lock of its own; the profiles' is taken under it.
 */
#ifndef LARDER_DAEMON_RECIPES_H
#define LARDER_DAEMON_RECIPES_H

#include <stdbool.h>
#include <stdint.h>

struct larder_recipe;
struct profiles;
struct recipes;

/* Those that nobody uses are kept, the one used last always, others while they are few and their
 * tables take at most so many bytes: whoever sends a PUT chooses its recipe, and may write one in
 * many ways. */
#define RECIPES_IDLE_BYTES (256ull << 20)
int recipes_open(struct recipes **out, struct profiles *profiles, uint64_t idle_bytes_max);
/* Nobody has one any more. */
void recipes_close(struct recipes *recipes);

/* The recipe of that text, with that profile (NULL: none), until it is given back. */
int recipes_take(struct recipes *recipes, const struct larder_recipe **out, const char *text,
                 const uint8_t *profile);
void recipes_give(struct recipes *recipes, const struct larder_recipe *recipe);
/* Closes what is kept of that profile and not used now. */
void recipes_forget(struct recipes *recipes, const uint8_t profile[32]);

/* "auto" or "auto max_kl=NUMBER" instead of a recipe: chosen by what was measured. *max_kl is 0
 * when the text does not say it. False: another text. -EINVAL for an auto that cannot be. */
bool recipes_is_auto(const char *text);
int recipes_parse_auto(float *max_kl, const char *text);

#endif
