/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/demote.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "base/bytes.h"
#include "base/key.h"
#include "base/log.h"
#include "daemon/larderd.h"

/* A pass that finds nothing is a walk over all entries. */
#define PAUSE_MAX_S 3600u
/* Of the youngest age that matters: so much later than it says may a block be looked at. */
#define PAUSE_SHARE 8u

bool demote_is_wanted(const struct larderd *daemon, uint32_t *pause_s)
{
    const struct config *config = &daemon->config;
    uint64_t least_s = UINT64_MAX;
    for (uint32_t i = 0; i < config->demote_count; i++) {
        const struct demote_rule *rule = &config->demotes[i];
        if (rule->count > 0 && rule->steps[0].age_s < least_s)
            least_s = rule->steps[0].age_s;
    }
    if (least_s == UINT64_MAX)
        return false;
    const uint64_t pause = larder_min_u64(least_s / PAUSE_SHARE, PAUSE_MAX_S);
    *pause_s = pause > 0 ? (uint32_t)pause : 1;
    return true;
}

void demote_begin_pass(struct demote *demote, struct larderd *daemon)
{
    demote->daemon = daemon;
    demote->demoted = demote->saved_bytes = 0;
    demote->told = false;
}

/* --- sizes ------------------------------------------------------------------------------------ */

static uint64_t hash_of(const char *recipe)
{
    const uint64_t hash = XXH3_64bits(recipe, strlen(recipe));
    return hash ? hash : 1;
}

static struct demote_size *find_size(struct demote *demote, const char *recipe, uint32_t model)
{
    const uint64_t hash = hash_of(recipe);
    for (uint32_t i = 0; i < DEMOTE_SIZES_MAX; i++) {
        if (demote->sizes[i].recipe == hash && demote->sizes[i].model == model)
            return &demote->sizes[i];
    }
    return NULL;
}

/* The smallest: what could not be encoded well says nothing of the next one. */
static void learn_size(struct demote *demote)
{
    const struct demotion *demotion = &demote->demotion;
    struct demote_size *size = find_size(demote, demotion->recipe, demotion->model);
    if (size) {
        size->share = demotion->made < size->share ? demotion->made : size->share;
        return;
    }
    demote->sizes[demote->size_next++ % DEMOTE_SIZES_MAX] = (struct demote_size){
        .recipe = hash_of(demotion->recipe), .model = demotion->model, .share = demotion->made};
}

/* --- which ------------------------------------------------------------------------------------ */

static uint64_t age_of(const struct demote_step *step, int priority)
{
    if (priority >= 0)
        return step->age_s << priority;
    const uint64_t age_s = step->age_s >> -priority;
    return age_s > 0 ? age_s : 1;
}

/* The last step whose age the entry has; NULL: it is too young, or of nobody whom a line names. */
static const struct demote_step *find_step(const struct demote *demote,
                                           const struct larder_entry_info *entry)
{
    const struct larderd *daemon = demote->daemon;
    struct larder_tenant_info tenant;
    struct larder_model_info model;
    if (larder_store_tenant_at(daemon->store, &tenant, entry->tenant) < 0 ||
        larder_store_model_at(daemon->store, &model, entry->model) < 0)
        return NULL;
    const struct demote_rule *rule =
        config_find_demote(&daemon->config, tenant.name, &model.desc, &model.fingerprint);
    const struct demote_step *found = NULL;
    for (uint32_t i = 0; rule && i < rule->count; i++) {
        if (entry->idle_s >= age_of(&rule->steps[i], entry->priority))
            found = &rule->steps[i];
    }
    return found;
}

bool demote_prepare(struct demote *demote, const struct larder_entry_info *entry)
{
    if (entry->held || !entry->durable || entry->token_count < demote->daemon->config.block_tokens)
        return false;
    const struct demote_step *step = find_step(demote, entry);
    if (!step || (entry->variants == 1 && larder_store_is_recipe(entry, step->recipe)))
        return false;
    struct demotion *demotion = &demote->demotion;
    *demotion = (struct demotion){.daemon = demote->daemon,
                                  .key = entry->key,
                                  .tenant = entry->tenant,
                                  .model = entry->model,
                                  .idle_s = age_of(step, entry->priority)};
    strcpy(demotion->recipe, step->recipe);
    const struct demote_size *size = find_size(demote, step->recipe, entry->model);
    demotion->expected = size ? size->share : 0;
    /* Of several variants the demotion itself sees which is meant. */
    return entry->variants > 1 || !demotion_is_small(entry, demotion->expected);
}

/* --- what came of it -------------------------------------------------------------------------- */

static void tell_failure(struct demote *demote, int err)
{
    const struct demotion *demotion = &demote->demotion;
    char digits[17];
    larder_hex(digits, demotion->key.bytes, 8);
    larder_log(demote->told ? LARDER_LOG_DEBUG : LARDER_LOG_WARN,
               "demote: %s... to '%.64s': %s (%d)", digits, demotion->recipe, demotion->message,
               err);
    demote->told = true;
    demote->failed_all++;
}

enum demote_outcome demote_note(struct demote *demote, int err)
{
    const struct demotion *demotion = &demote->demotion;
    if (demotion->made > 0)
        learn_size(demote);
    if (demotion->bytes_after < demotion->bytes_before) {
        const uint64_t saved = demotion->bytes_before - demotion->bytes_after;
        demote->demoted++;
        demote->demoted_all++;
        demote->saved_bytes += saved;
        demote->saved_bytes_all += saved;
    }
    switch (err) {
    case 0:
    case LARDER_ENOTFOUND: /* these two: removed meanwhile */
    case LARDER_ENOPARENT:
        return DEMOTE_DONE;
    case -EBUSY:
        return DEMOTE_BUSY;
    case -ENOSPC:
    case LARDER_EFULL:
    case LARDER_EREADONLY:
        tell_failure(demote, err);
        return DEMOTE_NO_ROOM;
    default:
        tell_failure(demote, err);
        return DEMOTE_FAILED;
    }
}
