/* SPDX-License-Identifier: Apache-2.0 */
#include "world.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/larder_base.h"
#include "lmdb_disk.h"

#define DEPTH_MAX     6u
#define SECTIONS      4u
#define TENANT        "crash"
#define HANG_SECONDS  60
#define SMALL_BYTES   40u
#define BIG_BYTES_MAX (300u << 10)
#define MESSAGES_MAX  30

static int messages_left = MESSAGES_MAX;

void world_say(const struct world *world, const char *format, ...)
{
    if (!world->verbose || messages_left-- <= 0)
        return;
    va_list args;
    va_start(args, format);
    fprintf(stderr, "seed %llu life %u: ", (unsigned long long)world->seed, world->life);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
}

uint64_t world_mix(uint64_t z)
{
    z += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

uint64_t world_draw(struct world *world, uint64_t limit)
{
    world->random += 0x9e3779b97f4a7c15ull;
    return world_mix(world->random) % limit;
}

bool world_chance(struct world *world, unsigned percent)
{
    return world_draw(world, 100) < percent;
}

bool world_power_failed(const struct world *world)
{
    return world->disk && sim_disk_power_failed(world->disk);
}

/* --- what an item holds: all from the seed, the item's number and its version ----------------- */

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

/* Is this record a variant of the item as it was put last? */
static bool is_right(const struct world *world, const struct larder_record *record, uint32_t item)
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

/* --- waiting ---------------------------------------------------------------------------------- */

/* A store that does not answer cannot be closed either: the program ends here. */
static void wait_for(struct world *world, const bool *flag, const uint32_t *count, const char *what)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += HANG_SECONDS;
    while (flag ? !*flag : *count > 0) {
        if (pthread_cond_timedwait(&world->changed, &world->mutex, &until) == ETIMEDOUT) {
            fprintf(stderr, "seed %llu life %u: %s did not end in %d s\n",
                    (unsigned long long)world->seed, world->life, what, HANG_SECONDS);
            abort();
        }
    }
}

/* --- put -------------------------------------------------------------------------------------- */

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

/* `fresh`: it is stored for the first time since it was removed, and has none. */
static void forget_marks(struct item *item, bool fresh)
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
        forget_marks(item, promise->version == 0 || promise->removed);
    *promise = (struct promise){.version = version, .may = true};
    if (!beside) {
        worse->must = false;
        worse->removing = true;
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

/* A new item behind one that is there, or a first one; or one again that is not there any more. */
static void put_something(struct world *world)
{
    enum larder_wait wait = world_chance(world, 60) ? LARDER_DURABLE : LARDER_CACHED;
    if (world->item_count > 0 && world_chance(world, 25)) {
        enum larder_quality quality =
            world_chance(world, 60) ? LARDER_QUALITY_EXACT : LARDER_QUALITY_LOSSY;
        world_put_again(world, (uint32_t)world_draw(world, world->item_count), quality, wait);
        return;
    }
    uint32_t parent = WORLD_NO_ITEM;
    if (world->item_count > 0 && world_chance(world, 65)) {
        parent = (uint32_t)world_draw(world, world->item_count);
        if (!world_may(world, parent) || world->items[parent].depth + 1 == DEPTH_MAX)
            parent = WORLD_NO_ITEM;
    }
    world_put(world, parent, wait);
}

void world_settle(struct world *world)
{
    pthread_mutex_lock(&world->mutex);
    wait_for(world, NULL, &world->outstanding, "a put");
    pthread_mutex_unlock(&world->mutex);
}

/* The number of a variant, as the store has it; negative: it has none. */
static int variant_number(struct world *world, uint32_t number, enum larder_quality quality)
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

/* --- get -------------------------------------------------------------------------------------- */

struct lease_wait {
    struct world *world;
    bool is_done;
    uint32_t loaded;
    int err;
};

static void on_loaded(void *context, uint32_t loaded, int err)
{
    struct lease_wait *wait = context;
    pthread_mutex_lock(&wait->world->mutex);
    wait->is_done = true;
    wait->loaded = loaded;
    wait->err = err;
    pthread_cond_broadcast(&wait->world->changed);
    pthread_mutex_unlock(&wait->world->mutex);
}

enum presence {
    ABSENT,
    PRESENT,
    WRONG,
    UNKNOWN, /* the store is busy, or the disk failed */
};

/* Reads what of the keys fits the host tier at once; *loaded of them are right, the last of them of
 * that quality. */
static enum presence read_run(struct world *world, const uint32_t *chain,
                              const struct larder_key *keys, uint32_t count, bool smallest,
                              uint32_t *loaded, uint32_t *quality)
{
    unsigned worst = LARDER_QUALITY_BLENDED | (smallest ? LARDER_QUALITY_SMALLEST : 0);
    struct larder_ref refs[DEPTH_MAX];
    struct lease_wait wait = {.world = world};
    struct larder_lease *lease;
    uint32_t ref_count;
    bool ready;
    *loaded = 0;
    int err = larder_store_lease(world->store, &lease, refs, &ref_count, &ready,
                                 &(struct larder_want){.tenant = world->tenant.index,
                                                       .keys = keys,
                                                       .key_count = count,
                                                       .worst = (enum larder_quality)worst},
                                 on_loaded, &wait);
    if (err < 0 || !lease)
        return err == -EBUSY ? UNKNOWN : ABSENT;
    if (ready) {
        wait.loaded = ref_count;
    } else {
        pthread_mutex_lock(&world->mutex);
        wait_for(world, &wait.is_done, NULL, "a read");
        pthread_mutex_unlock(&world->mutex);
    }
    enum presence found = wait.loaded > 0 ? PRESENT : wait.err == -EIO ? UNKNOWN : ABSENT;
    for (uint32_t i = 0; i < wait.loaded; i++) {
        const struct larder_record *record =
            larder_store_ref_record(world->store, world->tenant.index, &refs[i]);
        *quality = record->quality;
        if (!is_right(world, record, chain[i])) {
            world_say(world, "item %u quality %u: wrong bytes", chain[i], *quality);
            world->tally->wrong++;
            found = WRONG;
        }
    }
    *loaded = wait.loaded;
    larder_store_release(world->store, lease);
    return found;
}

/* Reads the chain that ends in an item: its best variants, or its smallest. */
static enum presence read_item(struct world *world, uint32_t number, bool smallest,
                               uint32_t *quality)
{
    uint32_t chain[DEPTH_MAX];
    struct larder_key keys[DEPTH_MAX];
    uint32_t count = world->items[number].depth + 1;
    for (uint32_t i = count, at = number; i-- > 0; at = world->items[at].parent) {
        chain[i] = at;
        keys[i] = world->items[at].key;
    }
    enum presence found = PRESENT;
    uint32_t loaded;
    for (uint32_t at = 0; at < count && found == PRESENT; at += loaded)
        found = read_run(world, chain + at, keys + at, count - at, smallest, &loaded, quality);
    return found;
}

/* Whether each variant of an item is there. The lossy one is always the smallest, but may take as
 * many pages as the exact one; then its bytes are not compared. */
static void read_variants(struct world *world, uint32_t number, enum presence *found)
{
    uint32_t quality = 0;
    enum presence best = read_item(world, number, false, &quality);
    found[LARDER_QUALITY_EXACT] = found[LARDER_QUALITY_LOSSY] = best;
    if (best != PRESENT)
        return;
    if (quality != LARDER_QUALITY_EXACT) {
        found[LARDER_QUALITY_EXACT] = ABSENT;
        return;
    }
    best = read_item(world, number, true, &quality);
    found[LARDER_QUALITY_LOSSY] = best;
    if (best == PRESENT && quality == LARDER_QUALITY_EXACT)
        found[LARDER_QUALITY_LOSSY] =
            variant_number(world, number, LARDER_QUALITY_LOSSY) < 0 ? ABSENT : PRESENT;
}

static bool is_removed(const struct world *world, uint32_t number)
{
    const struct promise *variants = world->items[number].variants;
    return !world_may(world, number) &&
           (variants[LARDER_QUALITY_EXACT].removed || variants[LARDER_QUALITY_LOSSY].removed);
}

void world_read(struct world *world, uint32_t number)
{
    pthread_mutex_lock(&world->mutex);
    const struct promise *variants = world->items[number].variants;
    bool must = variants[LARDER_QUALITY_EXACT].must || variants[LARDER_QUALITY_LOSSY].must;
    bool must_exact = variants[LARDER_QUALITY_EXACT].must;
    pthread_mutex_unlock(&world->mutex);
    uint32_t quality = LARDER_QUALITY_EXACT;
    enum presence found = read_item(world, number, false, &quality);
    if (world_power_failed(world))
        return;
    bool lost = (found == ABSENT && must) || (found == PRESENT && must_exact && quality > 0);
    if (lost && !world->evicts && !world->rotted) {
        world_say(world, "item %u: lost while running", number);
        world->tally->lost++;
    } else if (found == PRESENT && is_removed(world, number)) {
        world_say(world, "item %u: came back while running", number);
        world->tally->removed_back++;
    }
}

/* --- remove ----------------------------------------------------------------------------------- */

struct remove_wait {
    struct world *world;
    bool is_done;
    int err;
};

static void on_removed(void *context, int err, uint64_t removed)
{
    struct remove_wait *wait = context;
    (void)removed;
    pthread_mutex_lock(&wait->world->mutex);
    wait->is_done = true;
    wait->err = err;
    pthread_cond_broadcast(&wait->world->changed);
    pthread_mutex_unlock(&wait->world->mutex);
}

static bool is_below(const struct world *world, uint32_t item, uint32_t top)
{
    while (item != WORLD_NO_ITEM && item != top)
        item = world->items[item].parent;
    return item == top;
}

/* Nothing is promised any more of what a removal was asked for. Whether it was promised. */
static bool begin_removal(struct promise *promise)
{
    bool was_there = promise->must;
    promise->must = false;
    promise->removing = true;
    return was_there;
}

static void end_removal(struct promise *promise, int err)
{
    if (err == 0 || err == LARDER_ENOTFOUND)
        promise->may = false;
    if (err == 0 && promise->version > 0)
        promise->removed = true;
}

void world_remove(struct world *world, uint32_t top)
{
    pthread_mutex_lock(&world->mutex);
    bool was_there = false;
    for (uint32_t i = top; i < world->item_count; i++) {
        if (is_below(world, i, top))
            forget_marks(&world->items[i], false);
        for (uint32_t quality = 0; quality < WORLD_VARIANTS && is_below(world, i, top); quality++) {
            bool was_promised = begin_removal(&world->items[i].variants[quality]);
            was_there = was_there || (i == top && was_promised);
        }
    }
    pthread_mutex_unlock(&world->mutex);
    struct remove_wait wait = {.world = world};
    larder_store_remove(world->store, world->tenant.index, &world->items[top].key,
                        world_chance(world, 50) ? LARDER_KEEP_PINNED : LARDER_REMOVE_PINNED,
                        on_removed, &wait);
    pthread_mutex_lock(&world->mutex);
    wait_for(world, &wait.is_done, NULL, "a removal");
    if (wait.err == LARDER_ENOTFOUND && was_there && !world->evicts && !world->rotted) {
        world_say(world, "item %u: lost, says its removal", top);
        world->tally->lost++;
    }
    for (uint32_t i = top; i < world->item_count; i++) {
        for (uint32_t quality = 0; quality < WORLD_VARIANTS && is_below(world, i, top); quality++)
            end_removal(&world->items[i].variants[quality], wait.err);
    }
    pthread_mutex_unlock(&world->mutex);
}

void world_remove_variant(struct world *world, uint32_t number, enum larder_quality quality)
{
    int variant = variant_number(world, number, quality);
    if (variant < 0)
        return;
    struct promise *promise = &world->items[number].variants[quality];
    pthread_mutex_lock(&world->mutex);
    struct promise before = *promise;
    begin_removal(promise);
    pthread_mutex_unlock(&world->mutex);
    struct remove_wait wait = {.world = world};
    larder_store_remove_variant(world->store, world->tenant.index, &world->items[number].key,
                                (uint32_t)variant, on_removed, &wait);
    pthread_mutex_lock(&world->mutex);
    wait_for(world, &wait.is_done, NULL, "the removal of a variant");
    end_removal(promise, wait.err);
    if (wait.err == -EBUSY) {
        /* It was refused: what was promised holds, and what a put in flight says counts. */
        promise->must = promise->must || before.must;
        promise->removing = before.removing;
    }
    pthread_mutex_unlock(&world->mutex);
}

/* --- marks ------------------------------------------------------------------------------------ */

static void on_marked(void *context, int err)
{
    on_removed(context, err, 0);
}

static int mark_item(struct world *world, const struct item *item, const struct larder_mark *mark)
{
    struct remove_wait wait = {.world = world};
    larder_store_mark(world->store, world->tenant.index, &item->key, mark, on_marked, &wait);
    pthread_mutex_lock(&world->mutex);
    wait_for(world, &wait.is_done, NULL, "a mark");
    pthread_mutex_unlock(&world->mutex);
    return wait.err;
}

void world_pin(struct world *world, uint32_t number)
{
    struct item *item = &world->items[number];
    bool pins = item->pin != PIN_YES;
    const struct larder_mark mark = {.fields = pins ? LARDER_MARK_PIN : LARDER_MARK_UNPIN};
    item->pin = PIN_UNKNOWN;
    if (mark_item(world, item, &mark) == 0)
        item->pin = pins ? PIN_YES : PIN_NO;
}

#define YEAR_S 31536000u

/* When it ends is the store's clock's to say: what it says right after that must hold. */
static void end_item(struct world *world, struct item *item)
{
    const struct larder_mark mark = {.fields = LARDER_MARK_TTL,
                                     .ttl_s = world_draw(world, 4) * YEAR_S};
    struct larder_entry_info info;
    item->expires_s.known = false;
    if (mark_item(world, item, &mark) < 0 || larder_store_find(world->store, &info, &item->key) < 0)
        return;
    if ((info.expires_s != 0) != (mark.ttl_s != 0)) {
        world_say(world, "a time of %llu s is not there", (unsigned long long)mark.ttl_s);
        world->tally->unmarked++;
    }
    item->expires_s = (struct marked){.known = true, .value = (int64_t)info.expires_s};
}

static void weigh_item(struct world *world, struct item *item)
{
    const struct larder_mark mark = {.fields = LARDER_MARK_PRIORITY,
                                     .priority = (int32_t)world_draw(world, 17) - 8};
    item->priority.known = false;
    if (mark_item(world, item, &mark) == 0)
        item->priority = (struct marked){.known = true, .value = mark.priority};
}

void world_mark(struct world *world, uint32_t number)
{
    struct item *item = &world->items[number];
    switch (world_draw(world, 3)) {
    case 0:
        end_item(world, item);
        break;
    case 1:
        weigh_item(world, item);
        break;
    default:
        world_pin(world, number);
    }
}

/* --- what has to be cleared away -------------------------------------------------------------- */

void world_pile_up(struct world *world, uint32_t pages)
{
    for (; pages > 0 && !world_power_failed(world); pages--) {
        uint32_t number = (uint32_t)world_draw(world, world->item_count);
        if (world_may(world, number) && world_chance(world, 80)) {
            weigh_item(world, &world->items[number]);
            continue;
        }
        world_put_again(world, number, LARDER_QUALITY_LOSSY, LARDER_DURABLE);
        world_settle(world);
        world_remove_variant(world, number, LARDER_QUALITY_LOSSY);
    }
}

/* --- moving ----------------------------------------------------------------------------------- */

/* Whatever becomes of it, what was promised of the item holds. */
void world_move(struct world *world, uint32_t number)
{
    struct remove_wait wait = {.world = world};
    larder_store_move(world->store, &world->items[number].key,
                      (uint32_t)world_draw(world, WORLD_VARIANTS), 101, on_marked, &wait);
    pthread_mutex_lock(&world->mutex);
    wait_for(world, &wait.is_done, NULL, "a move");
    pthread_mutex_unlock(&world->mutex);
}

/* --- purge ------------------------------------------------------------------------------------ */

/* All of it goes, or nothing does. */
static void all_purged_locked(struct world *world)
{
    for (uint32_t i = 0; i < world->item_count; i++) {
        for (uint32_t v = 0; v < WORLD_VARIANTS; v++) {
            struct promise *promise = &world->items[i].variants[v];
            promise->must = promise->may = false;
            promise->removed = promise->purged = true;
        }
        forget_marks(&world->items[i], false);
    }
}

void world_purge(struct world *world)
{
    pthread_mutex_lock(&world->mutex);
    for (uint32_t i = 0; i < world->item_count; i++) {
        for (uint32_t v = 0; v < WORLD_VARIANTS; v++)
            world->items[i].variants[v].removing = true;
    }
    pthread_mutex_unlock(&world->mutex);
    world->purging = true;
    uint64_t removed;
    int err = larder_store_purge(world->store, world->tenant.index, &removed);
    if (err < 0)
        return; /* what the next start finds says which */
    struct larder_tenant_info before = world->tenant;
    larder_store_tenant_at(world->store, &world->tenant, before.index);
    if (memcmp(before.id, world->tenant.id, sizeof(before.id)) == 0 ||
        memcmp(before.key, world->tenant.key, sizeof(before.key)) == 0) {
        world_say(world, "a purged tenant has its old keys");
        world->tally->purged_back++;
    }
    pthread_mutex_lock(&world->mutex);
    all_purged_locked(world);
    world->purging = false;
    world->tally->purges++;
    pthread_mutex_unlock(&world->mutex);
}

/* Behind a start: which of the two a purge that was cut short has come to. */
static void judge_purge(struct world *world, const uint8_t id_before[16])
{
    if (memcmp(id_before, world->tenant.id, sizeof(world->tenant.id)) != 0) {
        if (!world->purging) {
            world_say(world, "the tenant has other keys, without a purge");
            world->tally->lost++;
        }
        pthread_mutex_lock(&world->mutex);
        all_purged_locked(world);
        pthread_mutex_unlock(&world->mutex);
    }
    world->purging = false;
}

void world_do_something(struct world *world)
{
    uint64_t what = world_draw(world, 100);
    if (world->piles && world->item_count > 0 && world_chance(world, 10))
        world_pile_up(world, 1 + (uint32_t)world_draw(world, 40));
    if (what < 70 || world->item_count == 0)
        put_something(world);
    else if (what < 88)
        world_read(world, (uint32_t)world_draw(world, world->item_count));
    else if (what < 92)
        world_remove(world, (uint32_t)world_draw(world, world->item_count));
    else if (what < 95)
        world_remove_variant(world, (uint32_t)world_draw(world, world->item_count),
                             world_chance(world, 50) ? LARDER_QUALITY_EXACT : LARDER_QUALITY_LOSSY);
    else if (what < 96)
        for (uint32_t i = 0; i < 8; i++)
            world_move(world, (uint32_t)world_draw(world, world->item_count));
    else if (what < 97)
        world_mark(world, (uint32_t)world_draw(world, world->item_count));
    else if (what == 97 && world_chance(world, 50))
        world_purge(world);
    else
        world_settle(world);
}

/* --- lives ------------------------------------------------------------------------------------ */

void world_draw_options(struct world *world)
{
    /* An SSD tier that is too small holds at least two segments. */
    static const char *const evictions[] = {"value", "lru", "fifo"};
    static const uint64_t host_mib[] = {4, 4, 6, 12};
    static const uint64_t segment_mib[] = {2, 2, 3, 5};
    static const uint32_t depths[] = {8, 1, 3, 64};
    world->options = (struct larder_store_options){
        .directory = world->directory,
        .io = "threads",
        .io_depth = depths[world_draw(world, LARDER_COUNT_OF(depths))],
        .host_bytes = host_mib[world_draw(world, LARDER_COUNT_OF(host_mib))] << 20,
        .slab_bytes = 2u << 20,
        .eviction = evictions[world_draw(world, LARDER_COUNT_OF(evictions))],
        .segment_bytes =
            segment_mib[world->evicts ? 0 : world_draw(world, LARDER_COUNT_OF(segment_mib))] << 20,
        .ssd_bytes = world->evicts ? world->options.ssd_bytes : 256u << 20,
        .ssd_high = world->evicts && world_chance(world, 50) ? 15 : 0,
        .key_file = world->key_file[0] ? world->key_file : NULL,
    };
    /* Room for all there can be, and in half of the lives so little more that the store begins to
     * clear at once what it did not mind before. */
    if (world->piles) {
        world->options.segment_bytes = 1u << 20;
        if (!world->evicts)
            world->options.ssd_bytes = world_chance(world, 50) ? 24u << 20 : 64u << 20;
    }
}

int world_open(struct world *world)
{
    struct larder_model_desc desc = {
        .name = "crash",
        .weights = {1},
        .layers = 2,
        .kv_heads = 1,
        .k_dims = 16,
        .v_dims = 16,
        .dtype = LARDER_BF16,
        .vocab = 65536,
    };
    world->corrupt_seen = world->cleared_seen = 0;
    world->options.io_override = world->disk ? sim_disk_open_io(world->disk) : NULL;
    struct larder_tenant_info before = world->tenant;
    LARDER_TRY(larder_store_open(&world->store, &world->options));
    int err = larder_store_tenant(world->store, &world->tenant, TENANT);
    if (err == 0 && before.name[0])
        judge_purge(world, before.id);
    if (err == 0)
        err = larder_store_model(world->store, &world->model, &desc);
    if (err == 0 && !world->hasher)
        err = larder_hasher_open(&world->hasher, world->tenant.key, &world->model.fingerprint);
    /* Also when power failed before the index's first commit of all; and a start that is cut short
     * leaves its index to the next one. */
    struct larder_store_stats stats;
    larder_store_stats(world->store, &stats);
    world->spoiled = world->spoiled || stats.index_rebuilt;
    if (err < 0) {
        larder_store_close(world->store);
        world->store = NULL;
    }
    return err;
}

void world_close(struct world *world)
{
    larder_store_close(world->store);
    world->store = NULL;
}

void world_index_path(const struct world *world, char *out, size_t bytes)
{
    snprintf(out, bytes, "%s/index/data.mdb", world->directory);
}

void world_crash(struct world *world)
{
    char path[SCRATCH_PATH_BYTES + 32];
    world_index_path(world, path, sizeof(path));
    sim_disk_crash(world->disk);
    lmdb_disk_crash(path);
}

void world_count_corrupt(struct world *world)
{
    if (larder_store_check(world->store) < 0) {
        world_say(world, "%s", larder_error_message());
        world->tally->disagreeing++;
    }
    struct larder_store_stats stats;
    larder_store_stats(world->store, &stats);
    world->tally->clearing_lives += stats.cleared > 0 && world->cleared_seen == 0;
    world->tally->cleared += stats.cleared - world->cleared_seen;
    world->cleared_seen = stats.cleared;
    if (stats.corrupt > world->corrupt_seen && !world->rotted && !world->spoiled) {
        world_say(world, "%llu records called corrupt", (unsigned long long)stats.corrupt);
        world->tally->corrupt += stats.corrupt - world->corrupt_seen;
    }
    world->corrupt_seen = stats.corrupt;
}

static void judge(struct world *world, uint32_t number, uint32_t quality, enum presence found)
{
    struct promise *promise = &world->items[number].variants[quality];
    struct tally *tally = world->tally;
    if (found == UNKNOWN)
        return;
    /* With the index lost, and the tombstone among the bytes that were changed, nothing is left
     * that says so. */
    if (found == PRESENT && promise->removed && !(world->rotted && world->spoiled)) {
        world_say(world, "item %u quality %u: came back", number, quality);
        tally->removed_back += !promise->purged;
        tally->purged_back += promise->purged;
    }
    if (found == ABSENT && promise->must) {
        if (world->rotted) {
            tally->missing++;
        } else if (!world->evicts) {
            world_say(world, "item %u quality %u at depth %u: lost", number, quality,
                      world->items[number].depth);
            tally->lost++;
        }
    }
    /* What is there after a start stays there. */
    promise->must = found == PRESENT;
    promise->may = found == PRESENT;
    promise->removing = false;
}

/* Each start reads two clocks in whole seconds. */
#define SLACK_S 2

static void judge_marked(struct world *world, uint32_t number, const char *what,
                         struct marked *marked, int64_t found, int64_t slack)
{
    if (!marked->known)
        return;
    bool right = llabs(marked->value - found) <= slack;
    marked->value = right ? found : marked->value;
    if (right)
        return;
    world_say(world, "item %u: %s %lld, and was promised %lld", number, what, (long long)found,
              (long long)marked->value);
    world->tally->unmarked++;
    marked->known = false;
}

static void judge_marks(struct world *world, uint32_t number)
{
    struct item *item = &world->items[number];
    struct larder_entry_info info;
    if (!world_may(world, number) || world->rotted)
        return;
    bool there = larder_store_find(world->store, &info, &item->key) == 0;
    if (there) {
        judge_marked(world, number, "ends at", &item->expires_s, (int64_t)info.expires_s, SLACK_S);
        judge_marked(world, number, "has priority", &item->priority, info.priority, 0);
    }
    if (item->pin == PIN_UNKNOWN)
        return;
    /* What is pinned must be there, however small the disk. */
    bool wrong = there ? info.pinned != (item->pin == PIN_YES) : item->pin == PIN_YES;
    if (wrong) {
        world_say(world, "item %u: %s", number,
                  !there        ? "pinned, and gone"
                  : info.pinned ? "pinned"
                                : "not pinned any more");
        world->tally->unmarked++;
        item->pin = PIN_UNKNOWN;
    }
}

bool world_verify(struct world *world)
{
    enum presence found[WORLD_ITEMS_MAX][WORLD_VARIANTS];
    for (uint32_t i = 0; i < world->item_count; i++)
        read_variants(world, i, found[i]);
    if (world_power_failed(world))
        return false;
    struct larder_store_stats stats;
    larder_store_stats(world->store, &stats);
    world->tally->rebuilds += stats.index_rebuilt;
    uint64_t promised = 0, verified = 0;
    bool excused = world->evicts || world->rotted;
    for (uint32_t i = 0; i < world->item_count * WORLD_VARIANTS; i++) {
        uint32_t number = i / WORLD_VARIANTS;
        uint32_t quality = i % WORLD_VARIANTS;
        bool must = world->items[number].variants[quality].must;
        bool there = found[number][quality] == PRESENT;
        promised += must && (there || !excused);
        verified += must && there;
        judge(world, number, quality, found[number][quality]);
    }
    for (uint32_t i = 0; i < world->item_count; i++)
        judge_marks(world, i);
    world_count_corrupt(world);
    world->tally->rounds++;
    world->tally->acknowledged += promised;
    world->tally->verified += verified;
    return true;
}

/* --- beginning and end ------------------------------------------------------------------------ */

/* Waiting for a store that never answers again, or that does not close. */
static void on_hang(int signal_number)
{
    static const char text[] = "\nthe store hangs: see the last seed\n";
    (void)signal_number;
    if (write(STDERR_FILENO, text, sizeof(text) - 1) < 0)
        _exit(4);
    _exit(3);
}

static void init_locks(struct world *world)
{
    pthread_mutex_init(&world->mutex, NULL);
    pthread_cond_init(&world->changed, NULL);
}

static void make_key(struct world *world)
{
    uint8_t key[32];
    for (size_t i = 0; i < sizeof(key); i++)
        key[i] = (uint8_t)world_draw(world, 256);
    snprintf(world->key_file, sizeof(world->key_file), "%s.key", world->directory);
    int fd = open(world->key_file, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, key, sizeof(key)) != (ssize_t)sizeof(key)) {
        perror(world->key_file);
        exit(2);
    }
    close(fd);
}

struct world *world_begin(struct tally *tally, uint64_t seed, bool on_disk, bool verbose)
{
    /* A child's work in it is the parent's too. */
    struct world *world =
        mmap(NULL, sizeof(*world), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert(world != MAP_FAILED);
    *world =
        (struct world){.tally = tally, .seed = seed, .random = world_mix(seed), .verbose = verbose};
    signal(SIGALRM, on_hang);
    alarm(2 * HANG_SECONDS);
    init_locks(world);
    scratch_make(world->directory);
    if (world_chance(world, 50))
        make_key(world);
    if (on_disk) {
        world->disk = sim_disk_create(world_mix(seed + 1));
        lmdb_disk_attach(world->disk, world_mix(seed + 2));
    }
    return world;
}

void world_adopt(struct world *world)
{
    world->store = NULL;
    world->hasher = NULL; /* opened again with the store */
    world->outstanding = 0;
    init_locks(world);
}

void world_end(struct world *world)
{
    assert(!world->store);
    larder_hasher_close(world->hasher);
    if (world->disk) {
        lmdb_disk_attach(NULL, 0);
        sim_disk_destroy(world->disk);
    }
    scratch_remove(world->directory);
    if (world->key_file[0])
        unlink(world->key_file);
    pthread_cond_destroy(&world->changed);
    pthread_mutex_destroy(&world->mutex);
    munmap(world, sizeof(*world));
    alarm(0);
}
