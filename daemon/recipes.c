/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/recipes.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "codec/codec.h"
#include "daemon/profiles.h"

/* Not used now, but kept: a machine serves few models, each with a recipe or two. */
#define IDLE_MAX 32u

struct opened {
    struct opened *next;
    char *text; /* as it was asked for */
    uint8_t profile[32];
    bool has_profile;
    struct larder_recipe *recipe;
    uint32_t users;
};

struct recipes {
    struct profiles *profiles;
    uint64_t idle_bytes_max;
    pthread_mutex_t lock;
    struct opened *first; /* the latest used first */
};

static void close_opened(struct recipes *recipes, struct opened *opened)
{
    larder_recipe_close(opened->recipe);
    if (opened->has_profile)
        profiles_let_go(recipes->profiles, opened->profile);
    larder_free(opened->text);
    larder_free(opened);
}

/* Takes what is named out of the list; NULL: it is not there. */
static struct opened *unlink_named(struct recipes *recipes, const char *text,
                                   const uint8_t *profile)
{
    for (struct opened **at = &recipes->first; *at; at = &(*at)->next) {
        struct opened *opened = *at;
        if (strcmp(opened->text, text) == 0 && opened->has_profile == (profile != NULL) &&
            (!profile || memcmp(opened->profile, profile, sizeof(opened->profile)) == 0)) {
            *at = opened->next;
            return opened;
        }
    }
    return NULL;
}

static int open_one(struct recipes *recipes, struct opened **out, const char *text,
                    const uint8_t *profile)
{
    const struct larder_profile *held = NULL;
    struct opened *opened = larder_alloc_zero(1, sizeof(*opened));
    *out = NULL;
    if (opened)
        opened->text = larder_strdup(text);
    if (!opened || !opened->text) {
        larder_free(opened);
        return larder_fail(-ENOMEM, "no memory for a recipe");
    }
    int err = profile ? profiles_hold(recipes->profiles, &held, profile) : 0;
    if (err == 0 && profile) {
        opened->has_profile = true;
        memcpy(opened->profile, profile, sizeof(opened->profile));
    }
    if (err == 0)
        err = larder_recipe_open(&opened->recipe, text, held);
    if (err < 0) {
        close_opened(recipes, opened);
        return err;
    }
    *out = opened;
    return 0;
}

/* Those that were not used for longest. */
static void close_idle(struct recipes *recipes)
{
    uint32_t idle = 0;
    uint64_t bytes = 0;
    for (struct opened **at = &recipes->first; *at;) {
        struct opened *opened = *at;
        if (opened->users == 0) {
            idle++;
            bytes += larder_recipe_memory_bytes(opened->recipe);
        }
        if (opened->users > 0 || idle == 1 ||
            (idle <= IDLE_MAX && bytes <= recipes->idle_bytes_max)) {
            at = &opened->next;
            continue;
        }
        *at = opened->next;
        close_opened(recipes, opened);
    }
}

int recipes_take(struct recipes *recipes, const struct larder_recipe **out, const char *text,
                 const uint8_t *profile)
{
    int err = 0;
    *out = NULL;
    pthread_mutex_lock(&recipes->lock);
    struct opened *opened = unlink_named(recipes, text, profile);
    if (!opened)
        err = open_one(recipes, &opened, text, profile);
    if (err == 0) {
        opened->users++;
        opened->next = recipes->first;
        recipes->first = opened;
        *out = opened->recipe;
    }
    pthread_mutex_unlock(&recipes->lock);
    return err;
}

void recipes_give(struct recipes *recipes, const struct larder_recipe *recipe)
{
    pthread_mutex_lock(&recipes->lock);
    struct opened *opened = recipes->first;
    while (opened->recipe != recipe)
        opened = opened->next;
    assert(opened->users > 0);
    opened->users--;
    close_idle(recipes);
    pthread_mutex_unlock(&recipes->lock);
}

void recipes_forget(struct recipes *recipes, const uint8_t profile[32])
{
    pthread_mutex_lock(&recipes->lock);
    for (struct opened **at = &recipes->first; *at;) {
        struct opened *opened = *at;
        if (opened->users > 0 || !opened->has_profile ||
            memcmp(opened->profile, profile, sizeof(opened->profile)) != 0) {
            at = &opened->next;
            continue;
        }
        *at = opened->next;
        close_opened(recipes, opened);
    }
    pthread_mutex_unlock(&recipes->lock);
}

int recipes_open(struct recipes **out, struct profiles *profiles, uint64_t idle_bytes_max)
{
    *out = larder_alloc_zero(1, sizeof(**out));
    if (!*out)
        return larder_fail(-ENOMEM, "no memory for recipes");
    (*out)->profiles = profiles;
    (*out)->idle_bytes_max = idle_bytes_max;
    pthread_mutex_init(&(*out)->lock, NULL);
    return 0;
}

void recipes_close(struct recipes *recipes)
{
    if (!recipes)
        return;
    while (recipes->first) {
        struct opened *opened = recipes->first;
        assert(opened->users == 0);
        recipes->first = opened->next;
        close_opened(recipes, opened);
    }
    pthread_mutex_destroy(&recipes->lock);
    larder_free(recipes);
}

/* --- auto ------------------------------------------------------------------------------------- */

bool recipes_is_auto(const char *text)
{
    return strncmp(text, "auto", 4) == 0 && (text[4] == '\0' || text[4] == ' ');
}

int recipes_parse_auto(float *max_kl, const char *text)
{
    static const char name[] = "max_kl=";
    assert(recipes_is_auto(text));
    const char *at = text + 4 + strspn(text + 4, " ");
    *max_kl = 0;
    if (*at == '\0')
        return 0;
    char *end = NULL;
    if (strncmp(at, name, sizeof(name) - 1) == 0)
        *max_kl = strtof(at + sizeof(name) - 1, &end);
    if (!end || end == at + sizeof(name) - 1 || end[strspn(end, " ")] != '\0' ||
        !isfinite(*max_kl) || *max_kl <= 0)
        return larder_fail(-EINVAL,
                           "'%s' is neither 'auto' nor 'auto max_kl=NUMBER' with a number "
                           "above 0, in nats a token",
                           text);
    return 0;
}
