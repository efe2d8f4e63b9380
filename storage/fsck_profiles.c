/* SPDX-License-Identifier: Apache-2.0 */
/* fsck_profiles.c - entries whose recipe reads a profile that DIR/profiles does not hold, whole:
 * nobody can decode them.
 */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/file.h"
#include "base/mem.h"
#include "storage/fsck_priv.h"

#define NAME_BYTES 32u

/* Is this file's content what its name says? */
static bool is_sound(const char *directory, const char *file, const uint8_t name[NAME_BYTES])
{
    char path[PATH_MAX];
    void *bytes;
    size_t count;
    uint8_t sum[NAME_BYTES];
    if (snprintf(path, sizeof(path), "%s/%s", directory, file) >= (int)sizeof(path) ||
        larder_file_read(&bytes, &count, path, LARDER_PROFILE_BYTES_MAX) < 0)
        return false;
    const bool good = EVP_Q_digest(NULL, "SHA256", NULL, bytes, count, sum, NULL) == 1 &&
                      memcmp(sum, name, sizeof(sum)) == 0;
    larder_free(bytes);
    return good;
}

/* The profiles that are there, as the table knows them. */
static uint32_t list_sound(uint64_t out[LARDER_PROFILES_MAX], const char *directory)
{
    uint32_t count = 0;
    DIR *listing = opendir(directory);
    if (!listing)
        return 0;
    for (struct dirent *at; count < LARDER_PROFILES_MAX && (at = readdir(listing));) {
        uint8_t name[NAME_BYTES];
        char hex[2 * NAME_BYTES + 1];
        snprintf(hex, sizeof(hex), "%.*s", (int)sizeof(hex) - 1, at->d_name);
        if (strlen(at->d_name) > sizeof(hex) - 1 && larder_unhex(name, sizeof(name), hex) == 0 &&
            strcmp(at->d_name + sizeof(hex) - 1, ".safetensors") == 0 &&
            is_sound(directory, at->d_name, name))
            out[count++] = measure_profile(name);
    }
    closedir(listing);
    return count;
}

uint64_t fsck_count_unreadable(const struct larder_store *store, const char *store_directory)
{
    char directory[PATH_MAX];
    uint64_t sound[LARDER_PROFILES_MAX];
    uint64_t count = 0;
    if (snprintf(directory, sizeof(directory), "%s/profiles", store_directory) >=
        (int)sizeof(directory))
        return 0;
    const uint32_t sound_count = list_sound(sound, directory);
    for (uint32_t id = 1; id < store->table.entry_end; id++) {
        const struct entry *entry = table_entry(&store->table, id);
        if (!(entry->flags & ENTRY_USED) || (entry->flags & ENTRY_ROOT))
            continue;
        const uint64_t profile = table_recipe_profile(&store->table, entry->variant.recipe);
        bool there = profile == 0;
        for (uint32_t i = 0; i < sound_count && !there; i++)
            there = sound[i] == profile;
        count += !there;
    }
    return count;
}
