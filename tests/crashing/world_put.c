/* SPDX-License-Identifier: Apache-2.0 */
/* world_put.c - what an item holds, which follows from seed, number and version; and how it is put.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/larder_base.h"
#include "world_priv.h"

#define SECTIONS      4u
#define SMALL_BYTES   40u
#define BIG_BYTES_MAX (300u << 10)

/* --- what an item holds ----------------------------------------------------------------------- */

static const char *const recipes[WORLD_VARIANTS] = {"raw", "lossy"};

static uint64_t item_seed(const struct world *world, uint32_t item, uint32_t quality,
                          uint32_t version)
{
    uint64_t place = (uint64_t)item << 32 | quality << 24 | version;
    return world_mix(world->seed ^ world_mix(place));
}

static uint32_t token_count_of(uint32_t item)
{
    return 1 + item * 7 % 64;
}

static void fill_tokens(uint32_t item, uint32_t *tokens)
{
    tokens[0] = item; /* no item's tokens are the start of another's */
    for (uint32_t i = 1; i < token_count_of(item); i++)
        tokens[i] = (uint32_t)(world_mix(item * 1000ull + i) % 50000);
}

static uint32_t section_bytes_of(uint64_t seed, uint32_t quality, uint32_t section)
{
    if (quality != LARDER_QUALITY_EXACT)
        return SMALL_BYTES;
    uint64_t bits = world_mix(seed + section);
    uint32_t bytes_max = bits % 16 == 0 ? BIG_BYTES_MAX : 3000;
    return 1 + (uint32_t)(bits >> 8) % bytes_max;
}

static void fill_section(uint64_t seed, uint32_t section, uint8_t *out, uint32_t bytes)
{
    uint64_t state = world_mix(seed ^ (section + 77));
    uint32_t at = 0;
    for (; at + 8 <= bytes; at += 8) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        memcpy(out + at, &state, 8);
    }
    for (; at < bytes; at++)
        out[at] = (uint8_t)(state >> (at % 8 * 8));
}

bool item_is_right(const struct world *world, const struct larder_record *record, uint32_t item)
{
    if (record->quality >= WORLD_VARIANTS)
        return false;
    const struct item *of = &world->items[item];
    const struct larder_key *parent =
        of->parent == WORLD_NO_ITEM ? &larder_key_root : &world->items[of->parent].key;
    uint32_t version = of->variants[record->quality].version;
    uint64_t seed = item_seed(world, item, record->quality, version);
    uint32_t tokens[64];
    fill_tokens(item, tokens);
    if (record->type != LARDER_RECORD_ENTRY || record->token_count != token_count_of(item) ||
        record->section_count != SECTIONS || memcmp(record->key, of->key.bytes, 32) != 0 ||
        memcmp(record->parent, parent->bytes, 32) != 0 ||
        memcmp(record->model, world->model.fingerprint.bytes, 32) != 0 ||
        memcmp(larder_record_tokens(record), tokens, record->token_count * sizeof(*tokens)) != 0)
        return false;
    static uint8_t expected[BIG_BYTES_MAX];
    for (uint32_t i = 0; i < SECTIONS; i++) {
        const struct larder_section *section = &larder_record_directory(record)[i];
        uint32_t bytes = section_bytes_of(seed, record->quality, i);
        fill_section(seed, i, expected, bytes);
        if (section->bytes != bytes ||
            memcmp((const uint8_t *)record + section->offset, expected, bytes) != 0)
            return false;
    }
    return true;
}

/* --- puts ------------------------------------------------------------------------------------- */

struct put_wait {
    struct world *world;
    uint32_t item;
    uint32_t quality;
    uint32_t version;
};

static void on_durable(void *context, int err)
{
    struct put_wait *wait = context;
    struct world *world = wait->world;
    pthread_mutex_lock(&world->mutex);
    struct promise *promise = &world->items[wait->item].variants[wait->quality];
    if (err == 0 && !promise->removing && promise->version == wait->version)
        promise->must = true;
    world->outstanding--;
    pthread_cond_broadcast(&world->changed);
    pthread_mutex_unlock(&world->mutex);
    free(wait);
}

static void on_cached(void *context, int err)
{
    (void)context;
    (void)err;
}

static uint64_t write_payload(struct larder_put *put, uint64_t seed, uint32_t quality)
{
    uint64_t offset;
    uint8_t *payload = larder_put_payload(put, &offset);
    struct larder_section *directory = larder_put_directory(put);
    uint64_t at = 0;
    for (uint32_t i = 0; i < SECTIONS; i++) {
        uint32_t bytes = section_bytes_of(seed, quality, i);
        fill_section(seed, i, payload + at, bytes);
        directory[i] = (struct larder_section){
            .layer_first = (uint16_t)(i / 2),
            .layer_count = 1,
            .head_count = 1,
            .kind = i % 2 ? LARDER_SECTION_V : LARDER_SECTION_K,
            .offset = offset + at,
            .bytes = bytes,
        };
        at += larder_round_up(bytes, LARDER_SECTION_ALIGN);
    }
    return at;
}

static uint64_t payload_bytes_of(uint64_t seed, uint32_t quality)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < SECTIONS; i++)
        bytes += larder_round_up(section_bytes_of(seed, quality, i), LARDER_SECTION_ALIGN);
    return bytes;
}

bool world_may(const struct world *world, uint32_t number)
{
    const struct promise *variants = world->items[number].variants;
    return variants[LARDER_QUALITY_EXACT].may || variants[LARDER_QUALITY_LOSSY].may;
}

void item_forget_marks(struct item *item, bool fresh)
{
    item->pin = fresh ? PIN_NO : PIN_UNKNOWN;
    item->expires_s = item->priority = (struct marked){.known = fresh};
}

/* Starts a put of a variant that is not there as far as is known. One that is not put beside what
 * there is takes the place of a worse one, when it comes to that. */
static void start_put(struct world *world, uint32_t number, enum larder_quality quality,
                      enum larder_wait wait)
{
    struct item *item = &world->items[number];
    struct promise *promise = &item->variants[quality];
    struct promise *worse = &item->variants[LARDER_QUALITY_LOSSY];
    bool beside =
        quality != LARDER_QUALITY_EXACT || (worse->version > 0 && world_chance(world, 80));
    uint32_t version = promise->version + (promise->version == 0 || promise->removed);
    uint64_t seed = item_seed(world, number, quality, version);
    uint32_t tokens[64];
    fill_tokens(number, tokens);
    struct larder_put_desc desc = {
        .tenant = world->tenant.index,
        .model = world->model.index,
        .key = item->key,
        .parent = item->parent == WORLD_NO_ITEM ? larder_key_root : world->items[item->parent].key,
        .tokens = tokens,
        .token_count = token_count_of(number),
        .recipe = recipes[quality],
        .quality = quality,
        .raw_bytes = payload_bytes_of(seed, quality),
        .section_count_max = SECTIONS,
        .payload_bytes_max = payload_bytes_of(seed, quality),
        .beside = beside,
    };
    struct larder_put *put;
    world->put_error = larder_store_put_reserve(world->store, &put, &desc);
    if (world->put_error < 0)
        return;
    uint64_t bytes = write_payload(put, seed, quality);
    if (world_draw(world, 30) == 0) {
        larder_store_put_abort(world->store, put);
        return;
    }
    pthread_mutex_lock(&world->mutex);
    if (!world_may(world, number))
        item_forget_marks(item, promise->version == 0 || promise->removed);
    *promise = (struct promise){.version = version, .may = true};
    if (!beside) {
        worse->must = false;
        worse->removing = true;
        item->either = false;
    }
    if (wait == LARDER_DURABLE)
        world->outstanding++;
    pthread_mutex_unlock(&world->mutex);
    if (wait == LARDER_CACHED) {
        larder_store_put_commit(world->store, put, SECTIONS, bytes, wait, on_cached, NULL);
        return;
    }
    struct put_wait *context = malloc(sizeof(*context));
    assert(context);
    *context = (struct put_wait){world, number, quality, version};
    larder_store_put_commit(world->store, put, SECTIONS, bytes, wait, on_durable, context);
}

uint32_t world_put(struct world *world, uint32_t parent, enum larder_wait wait)
{
    if (world->item_count == WORLD_ITEMS_MAX)
        return WORLD_NO_ITEM;
    uint32_t number = world->item_count;
    struct item *item = &world->items[number];
    bool first = parent == WORLD_NO_ITEM;
    *item = (struct item){.parent = parent, .depth = first ? 0 : world->items[parent].depth + 1};
    assert(item->depth < DEPTH_MAX);
    uint32_t tokens[64];
    fill_tokens(number, tokens);
    int err = larder_hasher_block(world->hasher, &item->key,
                                  first ? &larder_key_root : &world->items[parent].key, NULL, 0,
                                  tokens, token_count_of(number));
    assert(err == 0);
    world->item_count++;
    start_put(world, number, LARDER_QUALITY_EXACT, wait);
    return number;
}

void world_put_again(struct world *world, uint32_t number, enum larder_quality quality,
                     enum larder_wait wait)
{
    if (!world->items[number].variants[quality].may)
        start_put(world, number, quality, wait);
}

int world_variant_number(struct world *world, uint32_t number, enum larder_quality quality)
{
    struct larder_entry_info infos[64];
    uint64_t cursor = 0;
    do {
        uint32_t count;
        larder_store_list(world->store, infos, &count, &cursor, LARDER_COUNT_OF(infos));
        for (uint32_t i = 0; i < count; i++) {
            if (infos[i].quality == quality &&
                larder_key_equal(&infos[i].key, &world->items[number].key))
                return infos[i].variant;
        }
    } while (cursor != 0);
    return -1;
}
