/* SPDX-License-Identifier: Apache-2.0 */
/* measure.c - what recipes cost, as the store's owner told it: a number for each recipe, profile
 * and model. The store itself knows no recipe.
 *
 * A record's own KL is that of its recipe, and what it was computed on comes on top: two small
 * changes of the same logits, one after the other.
 * Threads: under the store's lock.
 */
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/mem.h"
#include "storage/store_priv.h"

uint64_t measure_profile(const uint8_t *profile)
{
    uint64_t name = 0;
    if (profile)
        memcpy(&name, profile, sizeof(name));
    return name;
}

void measure_close(struct measures *measures)
{
    larder_free(measures->rows);
}

/* The first row of that recipe or a later one. */
static uint32_t find_row(const struct measures *measures, uint16_t recipe)
{
    uint32_t low = 0;
    uint32_t high = measures->count;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (measures->rows[middle].recipe < recipe)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static float measured(const struct larder_store *store, const struct entry *entry)
{
    const struct measures *measures = &store->measures;
    const struct larder_key *fingerprint = &store->models[entry->model]->info.fingerprint;
    const uint16_t recipe = entry->variant.recipe;
    for (uint32_t i = find_row(measures, recipe);
         i < measures->count && measures->rows[i].recipe == recipe; i++) {
        if (measures->rows[i].every_model ||
            larder_key_equal(&measures->rows[i].fingerprint, fingerprint))
            return measures->rows[i].kl;
    }
    return INFINITY;
}

float measure_kl_locked(const struct larder_store *store, const struct entry *entry)
{
    const struct entry_variant *variant = &entry->variant;
    if (variant->quality == LARDER_QUALITY_EXACT)
        return 0;
    /* What a blend left out is in no measure of a recipe. */
    if (variant->quality == LARDER_QUALITY_BLENDED)
        return INFINITY;
    return measured(store, entry) +
           larder_computed_on_kl(variant->computed_on, variant->computed_on_kl);
}

/* Where the row of this recipe and model stands; measures->count: nowhere. */
static uint32_t find_same(const struct measures *measures, uint16_t recipe,
                          const struct larder_key *fingerprint)
{
    for (uint32_t i = find_row(measures, recipe);
         i < measures->count && measures->rows[i].recipe == recipe; i++) {
        const struct measure *row = &measures->rows[i];
        if (fingerprint ? !row->every_model && larder_key_equal(&row->fingerprint, fingerprint)
                        : row->every_model)
            return i;
    }
    return measures->count;
}

static int set_row(struct measures *measures, uint16_t recipe, const struct larder_key *fingerprint,
                   float kl)
{
    uint32_t at = find_same(measures, recipe, fingerprint);
    if (at < measures->count) {
        measures->rows[at].kl = kl;
        return 0;
    }
    if (measures->count == TABLE_MEASURED_MAX)
        return larder_fail(LARDER_ELIMIT, "%u recipes were measured; that is the most",
                           TABLE_MEASURED_MAX);
    struct measure *rows =
        larder_realloc(measures->rows, (measures->count + 1) * sizeof(measures->rows[0]));
    if (!rows)
        return larder_fail(-ENOMEM, "no memory for what was measured of a recipe");
    measures->rows = rows;
    at = find_row(measures, recipe);
    memmove(&rows[at + 1], &rows[at], (measures->count - at) * sizeof(rows[0]));
    rows[at] = (struct measure){.recipe = recipe, .every_model = !fingerprint, .kl = kl};
    if (fingerprint)
        rows[at].fingerprint = *fingerprint;
    measures->count++;
    return 0;
}

int larder_store_set_kl(struct larder_store *store, const struct larder_key *fingerprint,
                        const char *recipe, const uint8_t *profile, float kl)
{
    assert(kl >= 0);
    pthread_mutex_lock(&store->lock);
    const uint16_t id = table_recipe_measured(&store->table, recipe, (uint32_t)strlen(recipe),
                                              measure_profile(profile));
    int err = id ? set_row(&store->measures, id, fingerprint, kl)
                 : larder_fail(LARDER_ELIMIT, "%u recipes are known; that is the most",
                               TABLE_RECIPES_MAX + TABLE_MEASURED_MAX);
    pthread_mutex_unlock(&store->lock);
    return err;
}

/* --- profiles --------------------------------------------------------------------------------- */

/* What is one recipe too many may need any. */
static bool needs(const struct larder_store *store, uint16_t recipe, uint64_t profile)
{
    return recipe == 0 || table_recipe_profile(&store->table, recipe) == profile;
}

uint64_t larder_store_profile_uses(struct larder_store *store, const uint8_t profile[32])
{
    /* The lock is given back now and then: what comes meanwhile is in the list of puts, or behind.
     */
    const uint32_t ids_max = 65536;
    const uint64_t name = measure_profile(profile);
    uint64_t uses = 0;
    uint32_t id = 1;
    bool more = true;
    while (more) {
        pthread_mutex_lock(&store->lock);
        const uint32_t stop =
            (uint32_t)larder_min_u64(store->table.entry_end, (uint64_t)id + ids_max);
        for (; id < stop; id++) {
            const struct entry *entry = table_entry(&store->table, id);
            uses += (entry->flags & ENTRY_USED) && !(entry->flags & ENTRY_ROOT) &&
                    needs(store, entry->variant.recipe, name);
        }
        more = id < store->table.entry_end;
        for (const struct larder_put *put = store->puts; put && !more; put = put->all_next)
            uses += needs(store, put->variant.recipe, name);
        pthread_mutex_unlock(&store->lock);
    }
    return uses;
}
