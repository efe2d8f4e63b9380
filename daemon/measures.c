/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/measures.h"

#include <errno.h>
#include <linux/limits.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/file.h"
#include "base/key.h"
#include "base/log.h"
#include "base/mem.h"
#include "codec/codec.h"
#include "storage/store.h"

#define FILE_NAME "measures"
#define FILE_HEAD "larder measures 1\n"
/* Of a row as it is written. */
#define LINE_BYTES_MAX (2 * 65 + 4 * 24 + LARDER_RECIPE_BYTES_MAX + 2)
#define FILE_BYTES_MAX (LARDER_MEASURES_MAX * LINE_BYTES_MAX + 256)

struct measures_table {
    struct larder_store *store;
    const char *directory;
    pthread_mutex_t lock;
    struct wire_measure *rows;
    uint32_t count;
};

/* --- rows ------------------------------------------------------------------------------------- */

static bool is_number(float number, float most)
{
    return isfinite(number) && number >= 0 && number <= most;
}

/* Checks it, and writes its recipe as records have it. */
static int check_row(struct wire_measure *row)
{
    if (!memchr(row->recipe, 0, sizeof(row->recipe)))
        return larder_fail(-EINVAL, "a recipe's text has no end");
    if (!is_number(row->kl, HUGE_VALF) || !is_number(row->kl_p99, HUGE_VALF) ||
        !is_number(row->top1, 1) || !is_number(row->bits_per_element, 64))
        return larder_fail(-EINVAL,
                           "'%.64s': kl=%g, kl_p99=%g, top1=%g, bits_per_element=%g cannot be",
                           row->recipe, (double)row->kl, (double)row->kl_p99, (double)row->top1,
                           (double)row->bits_per_element);
    if (larder_all_zero(row->fingerprint, sizeof(row->fingerprint)))
        return larder_fail(-EINVAL, "'%.64s' was measured on no model", row->recipe);
    struct larder_recipe *recipe;
    LARDER_TRY(larder_recipe_open(&recipe, row->recipe, NULL));
    const char *text = larder_recipe_text(recipe);
    const bool profile = !larder_all_zero(row->profile, sizeof(row->profile));
    int err = 0;
    if (larder_recipe_needs_profile(recipe) && !profile)
        err = larder_fail(-EINVAL, "'%.64s' reads a profile, and none is named", text);
    if (err == 0) {
        memset(row->recipe, 0, sizeof(row->recipe));
        memcpy(row->recipe, text, strlen(text));
    }
    larder_recipe_close(recipe);
    return err;
}

static const uint8_t *profile_of(const struct wire_measure *row)
{
    return larder_all_zero(row->profile, sizeof(row->profile)) ? NULL : row->profile;
}

static int tell_store(const struct measures_table *table, const struct wire_measure *row)
{
    struct larder_key fingerprint;
    memcpy(fingerprint.bytes, row->fingerprint, sizeof(fingerprint.bytes));
    return larder_store_set_kl(table->store, &fingerprint, row->recipe, profile_of(row), row->kl);
}

static uint32_t find(const struct wire_measure *rows, uint32_t count, const uint8_t fingerprint[32],
                     const char *recipe, const uint8_t profile[32])
{
    for (uint32_t i = 0; i < count; i++) {
        if (memcmp(rows[i].fingerprint, fingerprint, sizeof(rows[i].fingerprint)) == 0 &&
            memcmp(rows[i].profile, profile, sizeof(rows[i].profile)) == 0 &&
            strcmp(rows[i].recipe, recipe) == 0)
            return i;
    }
    return count;
}

/* --- the file --------------------------------------------------------------------------------- */

/* A line a row, then "sum" and XXH3-64 of all before it. */
static int write_rows(const char *directory, const struct wire_measure *rows, uint32_t count)
{
    const size_t room = sizeof(FILE_HEAD) + (size_t)count * LINE_BYTES_MAX + 64;
    char *text = larder_alloc(room);
    if (!text)
        return larder_fail(-ENOMEM, "no memory for %u measures", count);
    size_t used = (size_t)snprintf(text, room, FILE_HEAD);
    for (uint32_t i = 0; i < count; i++) {
        const struct wire_measure *row = &rows[i];
        char fingerprint[65], profile[65];
        larder_hex(fingerprint, row->fingerprint, 32);
        larder_hex(profile, row->profile, 32);
        used += (size_t)snprintf(text + used, room - used, "%s %s %.9g %.9g %.9g %.9g %s\n",
                                 fingerprint, profile, (double)row->kl, (double)row->kl_p99,
                                 (double)row->top1, (double)row->bits_per_element, row->recipe);
    }
    const unsigned long long sum = XXH3_64bits(text, used);
    used += (size_t)snprintf(text + used, room - used, "sum %016llx\n", sum);
    int err = larder_file_replace(directory, FILE_NAME, text, used);
    larder_free(text);
    return err;
}

static bool read_row(struct wire_measure *row, char *line)
{
    char *rest = line;
    memset(row, 0, sizeof(*row));
    const char *fingerprint = strsep(&rest, " ");
    const char *profile = strsep(&rest, " ");
    float *const numbers[] = {&row->kl, &row->kl_p99, &row->top1, &row->bits_per_element};
    for (size_t i = 0; i < LARDER_COUNT_OF(numbers) && rest; i++)
        *numbers[i] = strtof(strsep(&rest, " "), NULL);
    return rest && strlen(rest) <= LARDER_RECIPE_BYTES_MAX &&
           larder_unhex(row->fingerprint, 32, fingerprint) == 0 &&
           larder_unhex(row->profile, 32, profile) == 0 &&
           snprintf(row->recipe, sizeof(row->recipe), "%s", rest) > 0;
}

/* A recipe that this release does not know is no row any more. */
static bool read_rows(struct measures_table *table, char *text, size_t bytes)
{
    const size_t tail = strlen("sum 0123456789abcdef\n");
    char sum[32];
    if (bytes < strlen(FILE_HEAD) + tail || memcmp(text, FILE_HEAD, strlen(FILE_HEAD)) != 0)
        return false;
    char *end = text + bytes - tail;
    snprintf(sum, sizeof(sum), "sum %016llx\n",
             (unsigned long long)XXH3_64bits(text, bytes - tail));
    if (memcmp(end, sum, tail) != 0)
        return false;
    *end = 0;
    char *rest = text + strlen(FILE_HEAD);
    for (char *line; (line = strsep(&rest, "\n")) && *line;) {
        struct wire_measure row;
        if (table->count < LARDER_MEASURES_MAX && read_row(&row, line) && check_row(&row) == 0)
            table->rows[table->count++] = row;
        else
            larder_log(LARDER_LOG_WARN, FILE_NAME ": a row is not understood: %.64s", line);
    }
    return true;
}

static int load(struct measures_table *table)
{
    char path[PATH_MAX];
    void *text;
    size_t bytes;
    snprintf(path, sizeof(path), "%s/" FILE_NAME, table->directory);
    int err = larder_file_read(&text, &bytes, path, FILE_BYTES_MAX);
    if (err == -ENOENT)
        return 0;
    if (err == -ENOMEM)
        return err;
    if (err < 0 || !read_rows(table, text, bytes)) {
        larder_log(LARDER_LOG_WARN,
                   "%s cannot be read or is damaged: no recipe counts as measured until larder "
                   "quality load",
                   path);
        table->count = 0;
    }
    if (err == 0)
        larder_free(text);
    for (uint32_t i = 0; i < table->count; i++)
        LARDER_TRY(tell_store(table, &table->rows[i]));
    return 0;
}

/* --- questions -------------------------------------------------------------------------------- */

int measures_set(struct measures_table *table, const struct wire_measure *rows, uint32_t count)
{
    struct wire_measure *fresh = larder_alloc(LARDER_MEASURES_MAX * sizeof(*fresh));
    if (!fresh)
        return larder_fail(-ENOMEM, "no memory for measures");
    pthread_mutex_lock(&table->lock);
    memcpy(fresh, table->rows, table->count * sizeof(*fresh));
    uint32_t fresh_count = table->count;
    int err = 0;
    for (uint32_t i = 0; err == 0 && i < count; i++) {
        struct wire_measure row = rows[i];
        err = check_row(&row);
        const uint32_t at =
            err == 0 ? find(fresh, fresh_count, row.fingerprint, row.recipe, row.profile) : 0;
        if (err == 0 && at == LARDER_MEASURES_MAX)
            err = larder_fail(LARDER_ELIMIT, "%u recipes were measured; that is the most",
                              LARDER_MEASURES_MAX);
        if (err == 0)
            fresh[at] = row;
        fresh_count += err == 0 && at == fresh_count;
    }
    if (err == 0)
        err = write_rows(table->directory, fresh, fresh_count);
    if (err == 0) {
        memcpy(table->rows, fresh, fresh_count * sizeof(*fresh));
        table->count = fresh_count;
    }
    for (uint32_t i = 0; err == 0 && i < fresh_count; i++)
        err = tell_store(table, &fresh[i]);
    pthread_mutex_unlock(&table->lock);
    larder_free(fresh);
    return err;
}

bool measures_at(struct measures_table *table, struct wire_measure *out, uint32_t index)
{
    pthread_mutex_lock(&table->lock);
    const bool there = index < table->count;
    if (there)
        *out = table->rows[index];
    pthread_mutex_unlock(&table->lock);
    return there;
}

float measures_kl(struct measures_table *table, const struct larder_key *fingerprint,
                  const char *recipe, const uint8_t profile[32])
{
    pthread_mutex_lock(&table->lock);
    const uint32_t at = find(table->rows, table->count, fingerprint->bytes, recipe, profile);
    const float kl = at < table->count ? table->rows[at].kl : INFINITY;
    pthread_mutex_unlock(&table->lock);
    return kl;
}

bool measures_pick(struct measures_table *table, struct wire_measure *out,
                   const struct larder_key *fingerprint, float max_kl,
                   bool (*may)(void *context, const struct wire_measure *row), void *context)
{
    const struct wire_measure *best = NULL;
    pthread_mutex_lock(&table->lock);
    for (uint32_t i = 0; i < table->count; i++) {
        const struct wire_measure *row = &table->rows[i];
        if (memcmp(row->fingerprint, fingerprint->bytes, sizeof(row->fingerprint)) == 0 &&
            row->kl <= max_kl && (!best || row->bits_per_element < best->bits_per_element) &&
            may(context, row))
            best = row;
    }
    if (best)
        *out = *best;
    pthread_mutex_unlock(&table->lock);
    return best != NULL;
}

/* --- open and close --------------------------------------------------------------------------- */

/* What gives back every bit costs nothing, on any model; presets and the stages they are made of.
 */
static int tell_exact(struct larder_store *store)
{
    static const char *const exact[] = {"raw", "exact", "plain", "byteplanes"};
    for (size_t i = 0; i < LARDER_COUNT_OF(exact); i++)
        LARDER_TRY(larder_store_set_kl(store, NULL, exact[i], NULL, 0));
    return 0;
}

int measures_open(struct measures_table **out, struct larder_store *store,
                  const char *store_directory)
{
    *out = NULL;
    struct measures_table *table = larder_alloc_zero(1, sizeof(*table));
    if (!table)
        return larder_fail(-ENOMEM, "no memory for measures");
    table->store = store;
    table->directory = store_directory;
    pthread_mutex_init(&table->lock, NULL);
    table->rows = larder_alloc(LARDER_MEASURES_MAX * sizeof(table->rows[0]));
    int err = table->rows ? tell_exact(store) : larder_fail(-ENOMEM, "no memory for measures");
    if (err == 0)
        err = load(table);
    if (err < 0) {
        measures_close(table);
        return err;
    }
    *out = table;
    return 0;
}

void measures_close(struct measures_table *table)
{
    if (!table)
        return;
    pthread_mutex_destroy(&table->lock);
    larder_free(table->rows);
    larder_free(table);
}
