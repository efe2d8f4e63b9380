/* SPDX-License-Identifier: Apache-2.0 */
/* kill_rounds.c - rounds of: load by several clients, SIGKILL, start, comparison.
 *
 * What is stored is families: a family is one long made-up prompt, of which clients store ever
 * longer prefixes, read what is there, or remove it whole and for good. Tokens and KV follow from
 * the family's number and the position, so any answer can be checked. Between kill and start some
 * rounds flip one byte of a record (its family may then be missing, never wrong), damage the index
 * or take it away (nothing may be missing). After STORE_ROUNDS the store ends with a clean stop and
 * a look at all of it, and the next begins empty: none grows until a start takes minutes.
 */
#include "kill_rounds.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/record.h"
#include "client/larder.h"
#include "damage.h"
#include "tests/daemon/fixture.h"

#define FAMILIES_MAX  100000u
#define FAMILY_TOKENS 128u
#define BLOCK_TOKENS  16u
#define LAYERS        2u
#define HEADS         2u
#define DIMS          32u
#define KV_ELEMENTS   (LAYERS * 2 * FAMILY_TOKENS * HEADS * DIMS)
#define CLIENTS_MAX   16u
#define OLDER_CHECKED 100u
#define LOAD_MS_MAX   20000
#define MESSAGES_MAX  30
#define STORE_ROUNDS  150u
/* A start that makes the index anew reads every record, beside whatever else keeps the machine
 * busy. */
#define START_MS_MAX 120000

struct family {
    uint32_t must_tokens; /* acknowledged durable */
    bool removed;         /* acknowledged: it does not come back */
    bool removing;        /* asked for: nothing is promised any more, and nobody puts it again */
    bool busy;            /* a client works on it */
    bool rotted;          /* a byte of a record of it was changed */
};

struct campaign {
    const struct kill_rounds_options *options;
    struct tally *tally;
    struct fixture fixture;
    struct larder_model_desc desc;
    uint64_t random;
    bool rotted_round;
    uint32_t rotted_family;
    int messages_left;
    /* any thread, under mutex */
    pthread_mutex_t mutex;
    struct family *families;
    uint32_t family_count;
    uint64_t acknowledged; /* blocks, in this round */
    bool stop;
};

struct client {
    struct campaign *campaign;
    pthread_t thread;
    uint64_t random;
};

static void __attribute__((format(printf, 2, 3)))
say(struct campaign *campaign, const char *format, ...)
{
    if (!campaign->options->verbose || campaign->messages_left-- <= 0)
        return;
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
}

static uint64_t mix(uint64_t z)
{
    z += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static uint64_t draw(uint64_t *random, uint64_t limit)
{
    *random += 0x9e3779b97f4a7c15ull;
    return mix(*random) % limit;
}

static void sleep_ms(uint64_t ms)
{
    struct timespec time = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};
    nanosleep(&time, NULL);
}

/* --- what a family holds ---------------------------------------------------------------------- */

static void fill_tokens(uint32_t family, uint32_t *tokens)
{
    for (uint32_t i = 0; i < FAMILY_TOKENS; i++)
        tokens[i] = family * FAMILY_TOKENS + i;
}

/* The plain layout, [layer][K/V][token][head][dim]: four elements at a time from one number. */
static void fill_kv(uint32_t family, uint16_t *kv)
{
    for (uint32_t i = 0; i < KV_ELEMENTS; i += 4) {
        uint64_t bits = mix((uint64_t)family << 32 | i);
        memcpy(kv + i, &bits, sizeof(bits));
    }
}

/* Are the first `tokens` tokens of all layers as they should be? */
static bool kv_equal(const uint16_t *a, const uint16_t *b, uint64_t tokens)
{
    const size_t row = FAMILY_TOKENS * HEADS * DIMS;
    for (uint32_t i = 0; i < LAYERS * 2; i++)
        if (memcmp(a + i * row, b + i * row, tokens * HEADS * DIMS * sizeof(*a)) != 0)
            return false;
    return true;
}

struct buffers {
    uint32_t tokens[FAMILY_TOKENS];
    uint16_t expected[KV_ELEMENTS];
    uint16_t got[KV_ELEMENTS];
};

static struct larder_layout layout_of(const struct campaign *campaign, void *kv)
{
    struct larder_layout layout;
    int err = larder_layout_plain(&layout, &campaign->desc, kv, FAMILY_TOKENS);
    assert(err == 0);
    return layout;
}

/* How many tokens are there and right; counts what is wrong. Negative when the daemon is gone. */
static int64_t read_family(struct campaign *campaign, struct larder_model *model,
                           struct buffers *buffers, uint32_t family)
{
    fill_tokens(family, buffers->tokens);
    memset(buffers->got, 0xa5, sizeof(buffers->got));
    struct larder_prompt prompt = {.tokens = buffers->tokens, .token_count = FAMILY_TOKENS};
    struct larder_layout layout = layout_of(campaign, buffers->got);
    struct larder_get_result result = {0};
    int err = larder_get(model, &result, &prompt, &layout, NULL);
    fill_kv(family, buffers->expected);
    if (result.tokens > FAMILY_TOKENS ||
        !kv_equal(buffers->got, buffers->expected, result.tokens)) {
        pthread_mutex_lock(&campaign->mutex);
        say(campaign, "family %u: %llu tokens with wrong bytes", family,
            (unsigned long long)result.tokens);
        campaign->tally->wrong++;
        pthread_mutex_unlock(&campaign->mutex);
    }
    if (err < 0)
        return err;
    /* A stop for another reason than a plain miss says nothing about what is stored. */
    if (result.stop_error == LARDER_EDOWN || result.stop_error == -ETIMEDOUT)
        return result.stop_error;
    return (int64_t)result.tokens;
}

/* --- load ------------------------------------------------------------------------------------- */

/* A family nobody else works on; a new one as often as not. */
static uint32_t take_family(struct client *client, bool *may_put)
{
    struct campaign *campaign = client->campaign;
    pthread_mutex_lock(&campaign->mutex);
    uint32_t family = campaign->family_count;
    if (family > 0 && (draw(&client->random, 2) || family == FAMILIES_MAX)) {
        /* Mostly a recent one. */
        uint64_t back = draw(&client->random, draw(&client->random, 4) ? 50 : family);
        family = family - 1 - (uint32_t)(back < family ? back : family - 1);
        if (campaign->families[family].busy)
            family = campaign->family_count;
    }
    if (family == campaign->family_count) {
        assert(family < FAMILIES_MAX);
        campaign->families[campaign->family_count++] = (struct family){0};
    }
    campaign->families[family].busy = true;
    *may_put = !campaign->families[family].removing;
    pthread_mutex_unlock(&campaign->mutex);
    return family;
}

static int put_family(struct client *client, struct larder_model *model, struct buffers *buffers,
                      uint32_t family)
{
    struct campaign *campaign = client->campaign;
    fill_tokens(family, buffers->tokens);
    fill_kv(family, buffers->expected);
    /* A whole block at least: of the many short first blocks there would be, a longer prompt finds
     * only some (larder_store_lookup() names few tails). */
    uint32_t tokens =
        BLOCK_TOKENS + (uint32_t)draw(&client->random, FAMILY_TOKENS - BLOCK_TOKENS + 1);
    struct larder_prompt prompt = {.tokens = buffers->tokens, .token_count = tokens};
    struct larder_layout layout = layout_of(campaign, buffers->expected);
    struct larder_put_options options = {.wait = draw(&client->random, 4) ? LARDER_DURABLE
                                                                          : LARDER_CACHED};
    struct larder_put_result result = {0};
    int err = larder_put(model, &result, &prompt, &layout, &options);
    if (options.wait == LARDER_DURABLE && err == 0) {
        pthread_mutex_lock(&campaign->mutex);
        struct family *state = &campaign->families[family];
        uint32_t before = state->must_tokens;
        if (result.tokens > before)
            state->must_tokens = (uint32_t)result.tokens;
        campaign->acknowledged += (state->must_tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS -
                                  (before + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
        pthread_mutex_unlock(&campaign->mutex);
    }
    return err;
}

static int remove_family(struct client *client, struct larder_model *model, struct buffers *buffers,
                         uint32_t family)
{
    struct campaign *campaign = client->campaign;
    struct family *state = &campaign->families[family];
    pthread_mutex_lock(&campaign->mutex);
    state->removing = true;
    state->must_tokens = 0;
    pthread_mutex_unlock(&campaign->mutex);
    fill_tokens(family, buffers->tokens);
    struct larder_prompt prompt = {.tokens = buffers->tokens, .token_count = FAMILY_TOKENS};
    uint64_t removed = 0;
    int err = larder_remove(model, &prompt, BLOCK_TOKENS, &removed);
    if (err == 0) {
        pthread_mutex_lock(&campaign->mutex);
        state->removed = true;
        pthread_mutex_unlock(&campaign->mutex);
    }
    return err == LARDER_ENOTFOUND ? 0 : err;
}

static int get_family(struct client *client, struct larder_model *model, struct buffers *buffers,
                      uint32_t family)
{
    struct campaign *campaign = client->campaign;
    int64_t found = read_family(campaign, model, buffers, family);
    if (found < 0)
        return (int)found;
    pthread_mutex_lock(&campaign->mutex);
    const struct family *state = &campaign->families[family];
    if (found < (int64_t)state->must_tokens && !state->rotted) {
        say(campaign, "family %u: %lld of %u tokens while running", family, (long long)found,
            state->must_tokens);
        campaign->tally->lost++;
    }
    if (found > 0 && state->removed) {
        say(campaign, "family %u: came back while running", family);
        campaign->tally->removed_back++;
    }
    pthread_mutex_unlock(&campaign->mutex);
    return 0;
}

static bool must_stop(struct campaign *campaign)
{
    pthread_mutex_lock(&campaign->mutex);
    bool stop = campaign->stop;
    pthread_mutex_unlock(&campaign->mutex);
    return stop;
}

static void *run_client(void *argument)
{
    struct client *client = argument;
    struct campaign *campaign = client->campaign;
    struct larder_options options = {.socket = campaign->fixture.socket};
    struct larder *larder = NULL;
    struct larder_model *model = NULL;
    struct buffers *buffers = malloc(sizeof(*buffers));
    assert(buffers);
    int err = larder_connect(&larder, &options);
    if (err == 0)
        err = larder_model_open(larder, &model, &campaign->desc);
    while (!must_stop(campaign) && (err == 0 || err == -EBUSY)) {
        if (err == -EBUSY)
            sleep_ms(1);
        bool may_put;
        uint32_t family = take_family(client, &may_put);
        struct family *state = &campaign->families[family];
        uint64_t what = draw(&client->random, 100);
        if (what < 60 && may_put)
            err = put_family(client, model, buffers, family);
        else if (what < 97)
            err = get_family(client, model, buffers, family);
        else
            err = remove_family(client, model, buffers, family);
        pthread_mutex_lock(&campaign->mutex);
        state->busy = false;
        pthread_mutex_unlock(&campaign->mutex);
    }
    if (!must_stop(campaign)) {
        pthread_mutex_lock(&campaign->mutex);
        say(campaign, "client: %s", larder_last_error());
        pthread_mutex_unlock(&campaign->mutex);
    }
    larder_model_close(model);
    larder_close(larder);
    free(buffers);
    return NULL;
}

/* Until enough was acknowledged, and then a random while longer. */
static void wait_for_load(struct campaign *campaign)
{
    for (int waited = 0; waited < LOAD_MS_MAX; waited += 2) {
        pthread_mutex_lock(&campaign->mutex);
        bool enough = campaign->acknowledged >= campaign->options->acknowledged_min;
        pthread_mutex_unlock(&campaign->mutex);
        if (enough)
            break;
        sleep_ms(2);
    }
    struct timespec time = {.tv_nsec = (long)draw(&campaign->random, 100000000)};
    nanosleep(&time, NULL);
}

static void run_load(struct campaign *campaign)
{
    struct client clients[CLIENTS_MAX];
    campaign->stop = false;
    campaign->acknowledged = 0;
    for (uint32_t i = 0; i < campaign->options->clients; i++) {
        clients[i] = (struct client){.campaign = campaign, .random = mix(campaign->random + i)};
        int rc = pthread_create(&clients[i].thread, NULL, run_client, &clients[i]);
        assert(rc == 0);
    }
    wait_for_load(campaign);
    pthread_mutex_lock(&campaign->mutex);
    campaign->stop = true;
    pthread_mutex_unlock(&campaign->mutex);
    fixture_kill(&campaign->fixture);
    for (uint32_t i = 0; i < campaign->options->clients; i++)
        pthread_join(clients[i].thread, NULL);
}

/* --- damage ----------------------------------------------------------------------------------- */

static void flip_byte(struct campaign *campaign, const char *path, off_t at)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    uint8_t byte;
    assert(fd >= 0);
    if (pread(fd, &byte, 1, at) == 1) {
        byte ^= (uint8_t)(1 + draw(&campaign->random, 255));
        if (pwrite(fd, &byte, 1, at) != 1)
            perror(path);
    }
    close(fd);
}

/* Picks a record of the file by chance; false when it has none. Sizes come from records that may
 * be torn: larder_record_check() looks at them first. */
static bool pick_record(struct campaign *campaign, const char *path, off_t *offset, uint64_t *bytes,
                        uint32_t *family)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0 || st.st_size == 0) {
        if (fd >= 0)
            close(fd);
        return false;
    }
    uint64_t file_bytes = (uint64_t)st.st_size;
    uint8_t *map = mmap(NULL, file_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    assert(map != MAP_FAILED);
    uint32_t met = 0;
    for (uint64_t at = LARDER_PAGE_BYTES; at + LARDER_PAGE_BYTES <= file_bytes;
         at += LARDER_PAGE_BYTES) {
        const struct larder_record *record = (const struct larder_record *)(map + at);
        if (record->magic != LARDER_RECORD_MAGIC || larder_record_check(record, file_bytes - at) ||
            record->type != LARDER_RECORD_ENTRY || record->record_bytes > file_bytes - at ||
            record->token_count == 0 || draw(&campaign->random, ++met) > 0)
            continue;
        *offset = (off_t)at;
        *bytes = record->record_bytes;
        *family = larder_record_tokens(record)[0] / FAMILY_TOKENS;
    }
    munmap(map, file_bytes);
    return met > 0;
}

/* One byte of one record of one segment. */
static void rot_record(struct campaign *campaign)
{
    char folder[128], chosen[512] = "";
    snprintf(folder, sizeof(folder), "%s/store/segments", campaign->fixture.directory);
    DIR *dir = opendir(folder);
    assert(dir);
    uint32_t met = 0;
    for (const struct dirent *entry; (entry = readdir(dir)) != NULL;)
        if (entry->d_name[0] != '.' && draw(&campaign->random, ++met) == 0)
            snprintf(chosen, sizeof(chosen), "%s/%s", folder, entry->d_name);
    closedir(dir);
    off_t at = 0;
    uint64_t bytes = 0;
    uint32_t family = 0;
    if (!chosen[0] || !pick_record(campaign, chosen, &at, &bytes, &family) ||
        family >= campaign->family_count)
        return;
    flip_byte(campaign, chosen, at + (off_t)draw(&campaign->random, bytes));
    campaign->families[family].rotted = true;
    campaign->rotted_round = true;
    campaign->rotted_family = family;
    campaign->tally->rotted++;
}

static void spoil_index(struct campaign *campaign, bool whole)
{
    char path[160];
    struct stat st;
    snprintf(path, sizeof(path), "%s/store/index/data.mdb", campaign->fixture.directory);
    if (whole)
        campaign->tally->rebuilds += unlink(path) == 0;
    else if (stat(path, &st) == 0 && st.st_size > 0)
        flip_byte(campaign, path, (off_t)draw(&campaign->random, (uint64_t)st.st_size));
}

/* Any file but `format`, which may be refused. What a segment held may be missing then. */
static void damage_a_file(struct campaign *campaign)
{
    char directory[80];
    struct damage damage;
    snprintf(directory, sizeof(directory), "%s/store", campaign->fixture.directory);
    if (!damage_store(&damage, directory, DAMAGE_BUT_FORMAT, &campaign->random))
        return;
    campaign->tally->trials++;
    if (damage.class != DAMAGE_SEGMENT)
        return;
    for (uint32_t i = 0; i < campaign->family_count; i++)
        campaign->families[i].rotted = true;
    campaign->rotted_round = true;
    campaign->tally->rotted++;
}

/* --- comparison ------------------------------------------------------------------------------- */

static void check_family(struct campaign *campaign, struct larder_model *model,
                         struct buffers *buffers, uint32_t number, uint64_t *verified)
{
    struct family *family = &campaign->families[number];
    struct tally *tally = campaign->tally;
    int64_t found = read_family(campaign, model, buffers, number);
    for (int again = 0; found == -EBUSY && again < 1000; again++) {
        sleep_ms(5);
        found = read_family(campaign, model, buffers, number);
    }
    if (found < 0) {
        say(campaign, "family %u: %s", number, larder_last_error());
        tally->failed_starts++;
        return;
    }
    if (found > 0 && family->removed) {
        say(campaign, "family %u: came back with %lld tokens", number, (long long)found);
        tally->removed_back++;
    }
    const uint64_t promised = (family->must_tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    if (found >= (int64_t)family->must_tokens) {
        tally->acknowledged += promised;
        tally->verified += promised;
        *verified += promised;
    } else if (family->rotted) {
        tally->missing++;
    } else {
        say(campaign, "family %u: %lld of %u tokens", number, (long long)found,
            family->must_tokens);
        tally->acknowledged += promised;
        tally->lost++;
    }
    family->rotted = false;
    if (!family->removed && !family->removing)
        family->must_tokens = (uint32_t)found;
}

/* Families from `first` on, and some older ones; all with `first` 0. */
static uint64_t check(struct campaign *campaign, uint32_t first)
{
    struct larder_options options = {.socket = campaign->fixture.socket};
    struct larder *larder = NULL;
    struct larder_model *model = NULL;
    struct buffers *buffers = malloc(sizeof(*buffers));
    assert(buffers);
    uint64_t verified = 0;
    if (larder_connect(&larder, &options) < 0 ||
        larder_model_open(larder, &model, &campaign->desc) < 0) {
        say(campaign, "after start: %s", larder_last_error());
        campaign->tally->failed_starts++;
        goto out;
    }
    for (uint32_t i = 0; i < OLDER_CHECKED && first > 0; i++)
        check_family(campaign, model, buffers, (uint32_t)draw(&campaign->random, first), &verified);
    for (uint32_t i = first; i < campaign->family_count; i++)
        check_family(campaign, model, buffers, i, &verified);
    /* So that the damage is met in this round and excused in no other. */
    if (campaign->rotted_round && campaign->rotted_family < campaign->family_count)
        check_family(campaign, model, buffers, campaign->rotted_family, &verified);
    struct larder_stat stat;
    if (larder_get_stat(larder, &stat) == 0 && stat.corrupt > 0 && !campaign->rotted_round) {
        say(campaign, "%llu records called corrupt", (unsigned long long)stat.corrupt);
        campaign->tally->corrupt += stat.corrupt;
    }
out:
    larder_model_close(model);
    larder_close(larder);
    free(buffers);
    return verified;
}

static void run_round(struct campaign *campaign)
{
    struct tally *tally = campaign->tally;
    /* What was stored in the round before is extended in this one. */
    uint32_t first = campaign->family_count > 60 ? campaign->family_count - 60 : 0;
    run_load(campaign);
    campaign->rotted_round = false;
    uint64_t damage = draw(&campaign->random, 100);
    if (campaign->options->damage_always)
        damage_a_file(campaign);
    else if (damage < 20)
        rot_record(campaign);
    else if (damage < 25)
        spoil_index(campaign, true);
    else if (damage < 35)
        spoil_index(campaign, false);
    fixture_restart(&campaign->fixture);
    if (campaign->options->damage_always)
        first = 0; /* whatever was damaged is met in this round */
    uint64_t verified = check(campaign, first);
    if (verified < tally->verified_min)
        tally->verified_min = verified;
    tally->rounds++;
}

/* The rounds of one store, the first of which is `from`; how many there were. */
static uint64_t run_store(struct campaign *campaign, uint64_t from)
{
    const struct kill_rounds_options *options = campaign->options;
    struct tally *tally = campaign->tally;
    struct fixture *fixture = &campaign->fixture;
    campaign->family_count = 0;
    fixture_prepare(fixture, "ssd_bytes = 8G\nsegment_bytes = 4M\nio = auto\n"
                             "log_level = warn\nhost_bytes = 32M\n");
    fixture->wait_ms = START_MS_MAX;
    fixture_restart(fixture);
    uint64_t done = 0;
    while (done < STORE_ROUNDS && from + done < options->rounds && tally->failed_starts == 0) {
        run_round(campaign);
        done++;
        if (options->progress)
            options->progress(from + done, options->rounds);
    }
    /* A clean stop at the end: everything once more. */
    campaign->rotted_round = true;
    if (fixture_terminate(fixture) != 0)
        tally->failed_starts++;
    fixture_restart(fixture);
    check(campaign, 0);
    fixture_stop(fixture);
    return done;
}

void kill_rounds(const struct kill_rounds_options *options, struct tally *tally)
{
    assert(options->clients > 0);
    assert(options->clients <= CLIENTS_MAX);
    struct campaign campaign = {
        .options = options,
        .tally = tally,
        .random = mix(options->seed),
        .messages_left = MESSAGES_MAX,
        .desc =
            {
                .name = "crash",
                .weights = {2},
                .layers = LAYERS,
                .kv_heads = HEADS,
                .k_dims = DIMS,
                .v_dims = DIMS,
                .dtype = LARDER_BF16,
                .vocab = FAMILIES_MAX * FAMILY_TOKENS,
            },
    };
    pthread_mutex_init(&campaign.mutex, NULL);
    campaign.families = calloc(FAMILIES_MAX, sizeof(*campaign.families));
    assert(campaign.families);
    for (uint64_t done = 0; done < options->rounds && tally->failed_starts == 0;)
        done += run_store(&campaign, done);
    free(campaign.families);
    pthread_mutex_destroy(&campaign.mutex);
}
