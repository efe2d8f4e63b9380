/* SPDX-License-Identifier: Apache-2.0 */
#include "storage/table.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <xxhash.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"

#define BUCKETS_MIN       1024u
#define RECIPE_BUCKETS    16384u
#define RECIPES_ROOM      (1u + TABLE_RECIPES_MAX + TABLE_MEASURED_MAX)
#define RECIPE_HASH_CHARS 9u /* "~" and 8 digits */

int table_open(struct table *table)
{
    memset(table, 0, sizeof(*table));
    if (getrandom(&table->hash_seed, sizeof(table->hash_seed), 0) != sizeof(table->hash_seed))
        return larder_fail(-EIO, "table: no random numbers from the system");
    table->bucket_count = BUCKETS_MIN;
    table->buckets = larder_alloc_zero(table->bucket_count, sizeof(*table->buckets));
    table->recipes = larder_alloc_zero(RECIPES_ROOM, sizeof(*table->recipes));
    table->recipe_buckets = larder_alloc_zero(RECIPE_BUCKETS, sizeof(*table->recipe_buckets));
    if (table->recipes)
        table->recipes[0].text = larder_strdup("(other)");
    table->recipe_count = 1;
    table->entry_end = 1; /* 0 is TABLE_NONE */
    if (!table->buckets || !table->recipes || !table->recipe_buckets || !table->recipes[0].text) {
        table_close(table);
        return larder_fail(-ENOMEM, "table: no memory");
    }
    return 0;
}

void table_close(struct table *table)
{
    for (uint32_t i = 0; i < table->chunk_count; i++)
        larder_free(table->chunks[i]);
    larder_free(table->chunks);
    larder_free(table->buckets);
    for (uint32_t i = 0; table->recipes && i < table->recipe_count; i++)
        larder_free(table->recipes[i].text);
    larder_free(table->recipes);
    larder_free(table->recipe_buckets);
    memset(table, 0, sizeof(*table));
}

/* --- hash ------------------------------------------------------------------------------------ */

static uint32_t *bucket_of(const struct table *table, const struct larder_key *key)
{
    uint64_t hash = XXH3_64bits_withSeed(key->bytes, sizeof(key->bytes), table->hash_seed);
    return &table->buckets[hash & (table->bucket_count - 1)];
}

uint32_t table_find(const struct table *table, const struct larder_key *key)
{
    uint32_t id = *bucket_of(table, key);
    while (id != TABLE_NONE) {
        const struct entry *entry = table_entry(table, id);
        if (memcmp(entry->key.bytes, key->bytes, sizeof(key->bytes)) == 0)
            return id;
        id = entry->next_hash;
    }
    return TABLE_NONE;
}

static void hash_insert(struct table *table, uint32_t id)
{
    struct entry *entry = table_entry(table, id);
    uint32_t *bucket = bucket_of(table, &entry->key);
    entry->next_hash = *bucket;
    *bucket = id;
    table->count++;
}

static void hash_remove(struct table *table, uint32_t id)
{
    struct entry *entry = table_entry(table, id);
    uint32_t *at = bucket_of(table, &entry->key);
    while (*at != id) {
        assert(*at != TABLE_NONE);
        at = &table_entry(table, *at)->next_hash;
    }
    *at = entry->next_hash;
    table->count--;
}

/* Without memory the chains get longer instead: slower, still right. */
static void hash_grow(struct table *table, uint32_t bucket_count)
{
    uint32_t old_count = table->bucket_count;
    uint32_t *old = table->buckets;
    uint32_t *fresh = larder_alloc_zero(bucket_count, sizeof(*fresh));
    if (!fresh)
        return;
    table->buckets = fresh;
    table->bucket_count = bucket_count;
    table->count = 0;
    for (uint32_t i = 0; i < old_count; i++) {
        for (uint32_t id = old[i]; id != TABLE_NONE;) {
            uint32_t next = table_entry(table, id)->next_hash;
            hash_insert(table, id);
            id = next;
        }
    }
    larder_free(old);
}

void table_expect(struct table *table, uint64_t count)
{
    uint32_t bucket_count = table->bucket_count;
    while (bucket_count < count && bucket_count < 1u << 30)
        bucket_count *= 2;
    if (bucket_count > table->bucket_count)
        hash_grow(table, bucket_count);
}

void table_prefetch(const struct table *table, const struct larder_key *key)
{
    __builtin_prefetch(bucket_of(table, key));
}

void table_prefetch_entry(const struct table *table, uint32_t id)
{
    enum { LINE_BYTES = 64 };
    const uint8_t *entry = (const uint8_t *)table_entry(table, id);
    for (size_t at = 0; at < sizeof(struct entry); at += LINE_BYTES)
        __builtin_prefetch(entry + at);
}

/* --- entries --------------------------------------------------------------------------------- */

static int add_chunk(struct table *table)
{
    struct entry **chunks =
        larder_realloc(table->chunks, sizeof(*chunks) * ((size_t)table->chunk_count + 1));
    if (!chunks)
        return -ENOMEM;
    table->chunks = chunks;
    chunks[table->chunk_count] = larder_alloc_zero(TABLE_CHUNK_ENTRIES, sizeof(struct entry));
    if (!chunks[table->chunk_count])
        return -ENOMEM;
    table->chunk_count++;
    return 0;
}

static uint32_t take_entry(struct table *table)
{
    uint32_t id = table->free_first;
    if (id != TABLE_NONE) {
        table->free_first = table_entry(table, id)->next_hash;
    } else {
        if (table->entry_end == UINT32_MAX)
            return TABLE_NONE;
        if (table->entry_end >= (uint64_t)table->chunk_count * TABLE_CHUNK_ENTRIES &&
            add_chunk(table) < 0)
            return TABLE_NONE;
        id = table->entry_end++;
    }
    struct entry *entry = table_entry(table, id);
    memset(entry, 0, sizeof(*entry));
    entry->flags = ENTRY_USED;
    return id;
}

uint32_t table_add_root(struct table *table, uint16_t tenant)
{
    uint32_t id = take_entry(table);
    if (id == TABLE_NONE)
        return TABLE_NONE;
    struct entry *entry = table_entry(table, id);
    entry->flags |= ENTRY_ROOT;
    entry->tenant = tenant;
    return id;
}

uint32_t table_add_unlinked(struct table *table, const struct larder_key *key, uint16_t tenant,
                            uint16_t token_count)
{
    uint32_t id = take_entry(table);
    if (id == TABLE_NONE)
        return TABLE_NONE;
    struct entry *entry = table_entry(table, id);
    entry->key = *key;
    entry->tenant = tenant;
    entry->token_count = token_count;
    hash_insert(table, id);
    if (table->count > table->bucket_count && table->bucket_count < 1u << 30)
        hash_grow(table, table->bucket_count * 2);
    return id;
}

/* Among its parent's children, behind `previous`; TABLE_NONE: the first. */
static void insert_child(struct table *table, uint32_t id, uint32_t previous)
{
    struct entry *entry = table_entry(table, id);
    struct entry *above = table_entry(table, entry->parent);
    entry->prev_sibling = previous;
    entry->next_sibling =
        previous == TABLE_NONE ? above->first_child : table_entry(table, previous)->next_sibling;
    if (previous == TABLE_NONE)
        above->first_child = id;
    else
        table_entry(table, previous)->next_sibling = id;
    if (entry->next_sibling == TABLE_NONE)
        above->last_child = id;
    else
        table_entry(table, entry->next_sibling)->prev_sibling = id;
}

/* Of the entry's children; TABLE_NONE when it has no variants. */
static uint32_t last_variant(const struct table *table, uint32_t id)
{
    uint32_t last = TABLE_NONE;
    for (uint32_t at = table_next_variant(table, id); at != TABLE_NONE;
         at = table_next_variant(table, at))
        last = at;
    return last;
}

void table_link(struct table *table, uint32_t id, uint32_t parent)
{
    struct entry *entry = table_entry(table, id);
    struct entry *above = table_entry(table, parent);
    assert(entry->parent == TABLE_NONE);
    assert(entry->tenant == above->tenant);
    entry->parent = parent;
    entry->depth = above->flags & ENTRY_ROOT ? 0 : above->depth + 1;
    above->child_count++;
    uint32_t last = above->last_child;
    bool is_short = last != TABLE_NONE && !(table_entry(table, last)->flags & ENTRY_VARIANT) &&
                    entry->token_count < table_entry(table, last)->token_count;
    insert_child(table, id, is_short ? last_variant(table, parent) : last);
}

uint32_t table_add(struct table *table, const struct larder_key *key, uint32_t parent,
                   uint16_t token_count)
{
    uint16_t tenant = table_entry(table, parent)->tenant;
    uint32_t id = table_add_unlinked(table, key, tenant, token_count);
    if (id != TABLE_NONE)
        table_link(table, id, parent);
    return id;
}

static void unlink_from_parent(struct table *table, uint32_t id)
{
    struct entry *entry = table_entry(table, id);
    if (entry->parent == TABLE_NONE)
        return;
    struct entry *above = table_entry(table, entry->parent);
    if (entry->prev_sibling != TABLE_NONE)
        table_entry(table, entry->prev_sibling)->next_sibling = entry->next_sibling;
    else
        above->first_child = entry->next_sibling;
    if (entry->next_sibling != TABLE_NONE)
        table_entry(table, entry->next_sibling)->prev_sibling = entry->prev_sibling;
    else
        above->last_child = entry->prev_sibling;
    above->child_count--;
    if ((entry->flags & ENTRY_VARIANT) && last_variant(table, entry->parent) == TABLE_NONE)
        above->flags &= (uint16_t)~ENTRY_VARIED;
}

void table_remove(struct table *table, uint32_t id)
{
    struct entry *entry = table_entry(table, id);
    assert(entry->flags & ENTRY_USED);
    assert(!(entry->flags & (ENTRY_ROOT | ENTRY_DURABLE | ENTRY_MARKED | ENTRY_HELD)));
    assert(entry->first_child == TABLE_NONE);
    assert(entry->ssd_node.flags == 0);
    if (!(entry->flags & ENTRY_VARIANT))
        hash_remove(table, id);
    unlink_from_parent(table, id);
    entry->flags = 0;
    entry->next_hash = table->free_first;
    table->free_first = id;
}

uint32_t table_next_below(const struct table *table, uint32_t id, uint32_t top)
{
    const struct entry *entry = table_entry(table, id);
    if (entry->first_child != TABLE_NONE)
        return entry->first_child;
    while (id != top) {
        entry = table_entry(table, id);
        if (entry->next_sibling != TABLE_NONE)
            return entry->next_sibling;
        id = entry->parent;
    }
    return TABLE_NONE;
}

/* --- variants -------------------------------------------------------------------------------- */

uint32_t table_next_variant(const struct table *table, uint32_t id)
{
    const struct entry *entry = table_entry(table, id);
    uint32_t next = TABLE_NONE;
    if (entry->flags & ENTRY_VARIANT)
        next = entry->next_sibling;
    else if (entry->flags & ENTRY_VARIED)
        next = entry->first_child;
    return next != TABLE_NONE && (table_entry(table, next)->flags & ENTRY_VARIANT) ? next
                                                                                   : TABLE_NONE;
}

uint32_t table_variant_count(const struct table *table, uint32_t primary)
{
    uint32_t count = 0;
    for (uint32_t id = primary; id != TABLE_NONE; id = table_next_variant(table, id))
        count++;
    return count;
}

uint32_t table_find_variant(const struct table *table, const struct larder_key *key,
                            uint32_t number)
{
    uint32_t id = table_find(table, key);
    while (id != TABLE_NONE && table_entry(table, id)->number != number)
        id = table_next_variant(table, id);
    return id;
}

uint32_t table_add_variant_as(struct table *table, uint32_t primary, uint8_t number)
{
    assert(!(table_entry(table, primary)->flags & (ENTRY_VARIANT | ENTRY_ROOT)));
    assert(number < LARDER_VARIANTS_MAX);
    uint32_t id = take_entry(table);
    if (id == TABLE_NONE)
        return TABLE_NONE;
    struct entry *entry = table_entry(table, id);
    struct entry *above = table_entry(table, primary);
    entry->key = above->key;
    entry->tenant = above->tenant;
    entry->model = above->model;
    entry->token_count = above->token_count;
    entry->depth = above->depth;
    entry->flags |= ENTRY_VARIANT;
    entry->number = number;
    entry->parent = primary;
    insert_child(table, id, last_variant(table, primary));
    above->flags |= ENTRY_VARIED;
    above->child_count++;
    return id;
}

uint32_t table_add_variant(struct table *table, uint32_t primary)
{
    uint32_t taken = 0;
    for (uint32_t id = primary; id != TABLE_NONE; id = table_next_variant(table, id))
        taken |= 1u << table_entry(table, id)->number;
    uint8_t number = 0;
    while (taken & 1u << number)
        number++;
    return table_add_variant_as(table, primary, number);
}

void table_swap_records(struct table *table, uint32_t primary, uint32_t other)
{
    struct entry *a = table_entry(table, primary);
    struct entry *b = table_entry(table, other);
    assert(b->parent == primary && (b->flags & ENTRY_VARIANT));
    struct entry was = *a;
    a->variant = b->variant;
    a->number = b->number;
    a->slot = b->slot;
    a->uses = b->uses;
    a->used_s = b->used_s;
    b->variant = was.variant;
    b->number = was.number;
    b->slot = was.slot;
    b->uses = was.uses;
    b->used_s = was.used_s;
}

bool table_is_better(const struct entry *a, const struct entry *b)
{
    if (a->variant.quality != b->variant.quality)
        return a->variant.quality < b->variant.quality;
    if (a->variant.computed_on != b->variant.computed_on)
        return a->variant.computed_on < b->variant.computed_on;
    return a->variant.generation > b->variant.generation;
}

uint32_t table_first_to_go(const struct table *table, uint32_t id)
{
    uint32_t worst = table_next_variant(table, id);
    if (worst == TABLE_NONE)
        return table_entry(table, id)->first_child;
    for (uint32_t at = worst; at != TABLE_NONE; at = table_next_variant(table, at)) {
        if (table_is_better(table_entry(table, worst), table_entry(table, at)))
            worst = at;
    }
    return worst;
}

/* --- recipes --------------------------------------------------------------------------------- */

void table_recipe_name(char out[TABLE_RECIPE_BYTES + 1], const char *text, uint32_t bytes)
{
    const bool is_long = bytes > TABLE_RECIPE_BYTES;
    const int kept = (int)(is_long ? TABLE_RECIPE_BYTES - RECIPE_HASH_CHARS : bytes);
    const int used = snprintf(out, TABLE_RECIPE_BYTES + 1, "%.*s", kept, text);
    if (is_long)
        snprintf(out + used, TABLE_RECIPE_BYTES + 1 - (size_t)used, "~%08x",
                 (uint32_t)XXH3_64bits(text, bytes));
}

static uint16_t recipe_of(struct table *table, const char *text, uint32_t bytes, uint64_t profile,
                          uint32_t count_max)
{
    char shorter[TABLE_RECIPE_BYTES + 1];
    if (bytes > TABLE_RECIPE_BYTES) {
        table_recipe_name(shorter, text, bytes);
        text = shorter;
        bytes = (uint32_t)strlen(shorter);
    }
    /* As rows of the index have those that were beyond. */
    const char *other = table->recipes[0].text;
    if (profile == 0 && strlen(other) == bytes && memcmp(other, text, bytes) == 0)
        return 0;
    uint32_t at = (uint32_t)XXH3_64bits_withSeed(text, bytes, profile) & (RECIPE_BUCKETS - 1);
    for (; table->recipe_buckets[at] != 0; at = (at + 1) & (RECIPE_BUCKETS - 1)) {
        const struct recipe_name *known = &table->recipes[table->recipe_buckets[at]];
        if (known->profile == profile && strlen(known->text) == bytes &&
            memcmp(known->text, text, bytes) == 0)
            return table->recipe_buckets[at];
    }
    if (table->recipe_count >= count_max)
        return 0;
    char *copy = larder_alloc(bytes + 1);
    if (!copy)
        return 0;
    for (uint32_t i = 0; i < bytes; i++)
        copy[i] = text[i] == '\0' ? '?' : text[i];
    copy[bytes] = '\0';
    table->recipes[table->recipe_count] = (struct recipe_name){.text = copy, .profile = profile};
    table->recipe_buckets[at] = (uint16_t)table->recipe_count;
    return (uint16_t)table->recipe_count++;
}

uint16_t table_recipe(struct table *table, const char *text, uint32_t bytes, uint64_t profile)
{
    return recipe_of(table, text, bytes, profile, 1 + TABLE_RECIPES_MAX);
}

uint16_t table_recipe_measured(struct table *table, const char *text, uint32_t bytes,
                               uint64_t profile)
{
    return recipe_of(table, text, bytes, profile, RECIPES_ROOM);
}

const char *table_recipe_text(const struct table *table, uint16_t recipe)
{
    assert(recipe < table->recipe_count);
    return table->recipes[recipe].text;
}

uint64_t table_recipe_profile(const struct table *table, uint16_t recipe)
{
    assert(recipe < table->recipe_count);
    return table->recipes[recipe].profile;
}

/* --- invariants ------------------------------------------------------------------------------ */

/* T4, of an entry whose family fits. */
static int check_variants(const struct table *table, uint32_t id)
{
    const struct entry *entry = table_entry(table, id);
    if (entry->flags & ENTRY_VARIANT) {
        const struct entry *previous = table_entry(table, entry->prev_sibling);
        if (entry->first_child != TABLE_NONE || (entry->flags & ENTRY_VARIED) ||
            (entry->prev_sibling != TABLE_NONE && !(previous->flags & ENTRY_VARIANT)))
            return larder_fail(LARDER_ECORRUPT, "table: variant %u is no leaf in front", id);
        return 0;
    }
    uint32_t numbers = 0;
    uint32_t count = 0;
    for (uint32_t at = id; at != TABLE_NONE; at = table_next_variant(table, at), count++)
        numbers |= 1u << table_entry(table, at)->number;
    if (count > LARDER_VARIANTS_MAX || (uint32_t)__builtin_popcount(numbers) != count ||
        (count > 1) != ((entry->flags & ENTRY_VARIED) != 0))
        return larder_fail(LARDER_ECORRUPT, "table: the variants of entry %u do not agree", id);
    return 0;
}

static int check_family(const struct table *table, uint32_t id)
{
    const struct entry *entry = table_entry(table, id);
    uint32_t children = 0;
    uint32_t previous = TABLE_NONE;
    for (uint32_t child = entry->first_child; child != TABLE_NONE;) {
        const struct entry *below = table_entry(table, child);
        if (!(below->flags & ENTRY_USED) || below->parent != id || below->prev_sibling != previous)
            return larder_fail(LARDER_ECORRUPT, "table: entry %u is not a child of %u", child, id);
        if (++children > entry->child_count)
            break;
        previous = child;
        child = below->next_sibling;
    }
    if (children != entry->child_count || entry->last_child != previous)
        return larder_fail(LARDER_ECORRUPT, "table: entry %u counts %u children, has %u", id,
                           entry->child_count, children);
    if (entry->flags & ENTRY_ROOT)
        return 0;
    if (entry->parent == TABLE_NONE)
        return larder_fail(LARDER_ECORRUPT, "table: entry %u has no parent", id);
    const struct entry *above = table_entry(table, entry->parent);
    if ((entry->flags & ENTRY_DURABLE) && !(above->flags & (ENTRY_DURABLE | ENTRY_ROOT)))
        return larder_fail(LARDER_ECORRUPT, "table: entry %u is durable, its parent is not", id);
    if ((entry->flags & ENTRY_VISIBLE) && !(entry->flags & ENTRY_DOOMED) &&
        !(above->flags & (ENTRY_VISIBLE | ENTRY_ROOT)))
        return larder_fail(LARDER_ECORRUPT, "table: entry %u is visible, its parent is not", id);
    if (table_find(table, &entry->key) != table_primary(table, id))
        return larder_fail(LARDER_ECORRUPT, "table: entry %u is not found by its key", id);
    return check_variants(table, id);
}

int table_check(const struct table *table)
{
    uint32_t count = 0;
    for (uint32_t id = 1; id < table->entry_end; id++) {
        const struct entry *entry = table_entry(table, id);
        if (!(entry->flags & ENTRY_USED))
            continue;
        LARDER_TRY(check_family(table, id));
        count += !(entry->flags & (ENTRY_ROOT | ENTRY_VARIANT));
    }
    if (count != table->count)
        return larder_fail(LARDER_ECORRUPT, "table: %u entries, counted %u", table->count, count);
    return 0;
}
