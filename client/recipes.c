/* SPDX-License-Identifier: Apache-2.0 */
/* Recipes and profiles of a connection: opened when they are first met, kept until it is closed.
 *
 * I1  A profile is what its name says, and stays so: its bytes are hashed, and lie in memory that
 *     was sealed against writing before they were.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "client/chain.h"
#include "codec/codec.h"
#include "codec/profile.h"

/* --- profiles -------------------------------------------------------------------------------- */

static const struct larder_profile *find_profile_locked(const struct larder *larder,
                                                        const uint8_t name[32])
{
    for (uint32_t i = 0; i < larder->profile_count; i++) {
        if (memcmp(larder->profiles[i].name, name, sizeof(larder->profiles[i].name)) == 0)
            return larder->profiles[i].profile;
    }
    return NULL;
}

static void close_profile(struct client_profile *profile)
{
    larder_profile_close(profile->profile);
    munmap((void *)(uintptr_t)profile->map, profile->bytes);
}

static int map_profile(struct larder_link *link, struct client_profile *out, int fd, uint64_t bytes,
                       const uint8_t name[32])
{
    const int seals = fcntl(fd, F_GET_SEALS);
    if (bytes == 0 || bytes > LARDER_PROFILE_BYTES_MAX || seals < 0 || !(seals & F_SEAL_WRITE) ||
        client_check_sealed(fd, bytes) < 0)
        return client_malformed(link, "PROFILE");
    void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        return larder_fail(-errno, "mapping a profile of %llu bytes: %s; see ulimit -v",
                           (unsigned long long)bytes, strerror(errno));
    *out = (struct client_profile){.map = map, .bytes = bytes};
    int err = larder_profile_open(&out->profile, map, bytes);
    if (err == 0) {
        larder_profile_name(out->profile, out->name);
        if (memcmp(out->name, name, sizeof(out->name)) != 0)
            err = client_malformed(link, "PROFILE");
    }
    if (err < 0)
        close_profile(out);
    return err;
}

static int ask_for_profile(struct larder_link *link, struct client_profile *out,
                           const uint8_t name[32], const struct client_call *limits)
{
    struct wire_profile body;
    struct wire_profile_ok answer;
    const struct client_part part = {&body, sizeof(body)};
    struct client_call call = {
        .type = WIRE_PROFILE,
        .answer_type = WIRE_PROFILE_OK,
        .answer = &answer,
        .answer_capacity = sizeof(answer),
        .until_ns = limits ? limits->until_ns : 0,
        .cancel = limits ? limits->cancel : NULL,
    };
    memcpy(body.name, name, sizeof(body.name));
    LARDER_TRY(client_call(link, &call, NULL, &part, 1));
    int err = call.answer_bytes == sizeof(answer) && call.fd >= 0
                  ? map_profile(link, out, call.fd, answer.bytes, name)
                  : client_malformed(link, "PROFILE");
    if (call.fd >= 0)
        close(call.fd);
    return err;
}

/* Has it, once this returns 0. */
static int learn_profile(struct larder_link *link, const uint8_t name[32],
                         const struct client_call *limits)
{
    struct larder *larder = link->larder;
    struct client_profile fresh;
    pthread_mutex_lock(&larder->lock);
    bool known = find_profile_locked(larder, name) != NULL;
    pthread_mutex_unlock(&larder->lock);
    if (known)
        return 0;
    LARDER_TRY(ask_for_profile(link, &fresh, name, limits));
    int err = 0;
    pthread_mutex_lock(&larder->lock);
    /* Another thread may have asked for it, too. */
    known = find_profile_locked(larder, name) != NULL;
    if (!known && larder->profile_count == CLIENT_PROFILES_MAX)
        err = larder_fail(LARDER_ELIMIT, "more than %u profiles on one connection",
                          CLIENT_PROFILES_MAX);
    else if (!known)
        larder->profiles[larder->profile_count++] = fresh;
    pthread_mutex_unlock(&larder->lock);
    if (known || err < 0)
        close_profile(&fresh);
    return err;
}

/* --- recipes --------------------------------------------------------------------------------- */

static int open_recipe_locked(struct larder *larder, const struct larder_recipe **out,
                              const char *text, const uint8_t profile[32], bool has_profile)
{
    if (larder->recipe_count == CLIENT_RECIPES_MAX)
        return larder_fail(LARDER_ELIMIT, "more than %u recipes on one connection",
                           CLIENT_RECIPES_MAX);
    struct client_recipe_slot slot;
    const struct larder_profile *with = has_profile ? find_profile_locked(larder, profile) : NULL;
    LARDER_TRY(larder_recipe_open(&slot.recipe, text, with));
    memcpy(slot.profile, profile, sizeof(slot.profile));
    slot.text = larder_strdup(text);
    if (!slot.text) {
        larder_recipe_close(slot.recipe);
        return larder_fail(-ENOMEM, "no memory for a recipe's text");
    }
    larder->recipes[larder->recipe_count++] = slot;
    *out = slot.recipe;
    return 0;
}

int client_recipe(struct larder_link *link, const struct larder_recipe **out, const char *text,
                  size_t bytes, const uint8_t profile[32], const struct client_call *limits)
{
    struct larder *larder = link->larder;
    const bool has_profile = !larder_all_zero(profile, 32);
    *out = NULL;
    char name[LARDER_RECIPE_BYTES_MAX + 1];
    if (bytes > LARDER_RECIPE_BYTES_MAX || memchr(text, '\0', bytes))
        return larder_fail(LARDER_ECORRUPT, "a recipe's text is %zu bytes or holds a zero", bytes);
    memcpy(name, text, bytes);
    name[bytes] = '\0';
    if (has_profile)
        LARDER_TRY(learn_profile(link, profile, limits));

    int err = 0;
    pthread_mutex_lock(&larder->lock);
    for (uint32_t i = 0; i < larder->recipe_count && !*out; i++)
        if (strcmp(larder->recipes[i].text, name) == 0 &&
            memcmp(larder->recipes[i].profile, profile, 32) == 0)
            *out = larder->recipes[i].recipe;
    if (!*out)
        err = open_recipe_locked(larder, out, name, profile, has_profile);
    pthread_mutex_unlock(&larder->lock);
    return err;
}

void client_recipes_close(struct larder *larder)
{
    for (uint32_t i = 0; i < larder->recipe_count; i++) {
        larder_recipe_close(larder->recipes[i].recipe);
        larder_free(larder->recipes[i].text);
    }
    for (uint32_t i = 0; i < larder->profile_count; i++)
        close_profile(&larder->profiles[i]);
}
