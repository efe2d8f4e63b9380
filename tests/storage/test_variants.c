/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: a key with several variants gives each reader the right one; a worse one never takes a
 * better one's place; what is removed, replaced or damaged goes alone or with its chain as it
 * should, over restarts with the index and without it; under pressure the worse ones go first.
 * Method: single cases, then random lives against a model. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/record.h"
#include "base/key.h"
#include "fixture.h"

static struct fixture fixture;

/* Kinds of variants: what they are, and how long their sections. */
static const struct kind {
    enum larder_quality quality;
    const char *recipe;
    uint32_t section_bytes;
} kinds[] = {
    {LARDER_QUALITY_EXACT, "raw", 9000},     {LARDER_QUALITY_EXACT, "exact", 7000},
    {LARDER_QUALITY_LOSSY, "kivi4", 4000},   {LARDER_QUALITY_LOSSY, "kivi2", 2000},
    {LARDER_QUALITY_BLENDED, "raw", 9000},   {LARDER_QUALITY_BLENDED, "kivi4", 4000},
    {LARDER_QUALITY_BLENDED, "kivi2", 2000}, {LARDER_QUALITY_LOSSY, "turbo", 3000},
    {LARDER_QUALITY_LOSSY, "one", 1000},     {LARDER_QUALITY_LOSSY, "two", 1500},
};
#define KINDS ((uint32_t)(sizeof(kinds) / sizeof(kinds[0])))
enum { RAW = 0, EXACT = 1, KIVI4 = 2, KIVI2 = 3, BLENDED = 4 };

/* Block `seed` as that kind; block 1 of a chain of tens begins it. */
static int put(uint64_t seed, uint32_t kind, bool beside, enum larder_wait wait)
{
    struct block block = {.seed = seed,
                          .token_count = 256,
                          .section_bytes = kinds[kind].section_bytes,
                          .quality = kinds[kind].quality,
                          .recipe = kinds[kind].recipe,
                          .beside = beside,
                          .tenant = fixture.tenant.index};
    if (seed % 10 != 1)
        block.parent = block_key(seed - 1);
    return fixture_put(&fixture, &block, wait);
}

/* The kind that a reader of the block gets at that quality; KINDS: none. */
static uint32_t got(uint64_t seed, uint32_t worst)
{
    struct larder_record head;
    int err;
    if (fixture_get_variants(&fixture, &head, seed, 1, worst, &err) == 0)
        return KINDS;
    struct larder_entry_info info;
    uint64_t cursor = 0;
    do {
        uint32_t count;
        larder_store_list(fixture.store, &info, &count, &cursor, 1);
        if (count == 1 && memcmp(info.key.bytes, head.key, 32) == 0 &&
            info.variant == head.variant) {
            for (uint32_t kind = 0; kind < KINDS; kind++) {
                if (kinds[kind].quality == info.quality &&
                    strcmp(kinds[kind].recipe, info.recipe) == 0)
                    return kind;
            }
        }
    } while (cursor != 0);
    ck_abort_msg("a record that is not listed");
}

static struct larder_entry_info find(uint64_t seed)
{
    struct larder_entry_info info = {0};
    struct larder_key key = block_key(seed);
    if (larder_store_find(fixture.store, &info, &key) < 0)
        memset(&info, 0, sizeof(info));
    return info;
}

START_TEST(each_reader_gets_its_variant)
{
    ck_assert_int_eq(put(1, RAW, false, LARDER_DURABLE), 0);
    ck_assert_int_eq(put(1, KIVI4, false, LARDER_DURABLE), LARDER_EEXISTS);
    ck_assert_int_eq(put(1, KIVI4, true, LARDER_DURABLE), 0);
    ck_assert_int_eq(put(1, KIVI4, true, LARDER_DURABLE), LARDER_EEXISTS);
    ck_assert_int_eq(put(1, KIVI2, true, LARDER_CACHED), 0);
    ck_assert_int_eq(put(1, BLENDED, true, LARDER_DURABLE), 0);
    fixture_settle(&fixture, 1);
    for (int round = 0; round < 3; round++) {
        ck_assert_uint_eq(got(1, LARDER_QUALITY_EXACT), RAW);
        ck_assert_uint_eq(got(1, LARDER_QUALITY_BLENDED), RAW);
        ck_assert_uint_eq(got(1, LARDER_QUALITY_EXACT | LARDER_QUALITY_SMALLEST), RAW);
        ck_assert_uint_eq(got(1, LARDER_QUALITY_LOSSY | LARDER_QUALITY_SMALLEST), KIVI2);
        ck_assert_uint_eq(got(1, LARDER_QUALITY_BLENDED | LARDER_QUALITY_SMALLEST), KIVI2);
        ck_assert_uint_eq(find(1).variants, 4);
        ck_assert_uint_eq(find(1).quality, LARDER_QUALITY_EXACT);
        ck_assert_uint_eq(find(1).children, 0);
        ck_assert_uint_eq(fixture_stats(&fixture).entries, 4);
        fixture_check(&fixture);
        if (round == 1) {
            fixture_close(&fixture);
            fixture_remove_index(&fixture);
        }
        fixture_reopen(&fixture);
    }
}
END_TEST

START_TEST(a_better_one_beside_takes_the_lead)
{
    ck_assert_int_eq(put(1, KIVI2, false, LARDER_DURABLE), 0);
    ck_assert_int_eq(put(2, RAW, false, LARDER_DURABLE), 0);
    ck_assert_int_eq(put(1, RAW, true, LARDER_DURABLE), 0);
    ck_assert_uint_eq(find(1).quality, LARDER_QUALITY_EXACT);
    ck_assert_uint_eq(find(1).children, 1);
    ck_assert_uint_eq(find(1).variants, 2);
    ck_assert_uint_eq(got(1, LARDER_QUALITY_EXACT), RAW);
    ck_assert_uint_eq(got(1, LARDER_QUALITY_LOSSY | LARDER_QUALITY_SMALLEST), KIVI2);
    /* Without the flag a better one takes the place of the best, and none is left of that. */
    ck_assert_int_eq(put(11, KIVI2, false, LARDER_DURABLE), 0);
    ck_assert_int_eq(put(11, RAW, false, LARDER_DURABLE), 0);
    ck_assert_uint_eq(find(11).variants, 1);
    int err;
    struct larder_record heads[2];
    ck_assert_uint_eq(fixture_get_variants(&fixture, heads, 1, 2, LARDER_QUALITY_EXACT, &err), 2);
    fixture_check(&fixture);
}
END_TEST

START_TEST(a_lookup_says_what_a_lease_gives)
{
    for (uint64_t seed = 1; seed <= 4; seed++) {
        ck_assert_int_eq(put(seed, RAW, false, LARDER_DURABLE), 0);
        ck_assert_int_eq(put(seed, KIVI2, true, LARDER_DURABLE), 0);
    }
    ck_assert_int_eq(put(5, KIVI4, false, LARDER_DURABLE), 0);
    struct larder_key keys[5];
    for (uint32_t i = 0; i < 5; i++)
        keys[i] = block_key(1 + i);
    struct larder_key root = {{0}};
    struct larder_match match;
    ck_assert_int_eq(larder_store_lookup(fixture.store, &match,
                                         &(struct larder_want){.tenant = fixture.tenant.index,
                                                               .keys = keys,
                                                               .key_count = 5,
                                                               .worst = LARDER_QUALITY_EXACT},
                                         &root, 256),
                     0);
    ck_assert_uint_eq(match.count, 4);
    ck_assert_uint_eq(match.quality, LARDER_QUALITY_EXACT);
    ck_assert_uint_eq(match.tail_count, 0);
    uint64_t large = match.bytes;
    ck_assert_int_eq(larder_store_lookup(fixture.store, &match,
                                         &(struct larder_want){.tenant = fixture.tenant.index,
                                                               .keys = keys,
                                                               .key_count = 5,
                                                               .worst = LARDER_QUALITY_LOSSY |
                                                                        LARDER_QUALITY_SMALLEST},
                                         &root, 300),
                     0);
    ck_assert_uint_eq(match.count, 5);
    ck_assert_uint_eq(match.quality, LARDER_QUALITY_LOSSY);
    ck_assert_uint_lt(match.bytes, large);
    ck_assert_uint_eq(match.tokens, 5 * 256);
    /* A variant is no tail of its own block. */
    ck_assert_uint_eq(match.tail_count, 0);
}
END_TEST

START_TEST(only_so_many)
{
    for (uint32_t kind = 0; kind < LARDER_VARIANTS_MAX; kind++)
        ck_assert_int_eq(put(1, kind, true, LARDER_CACHED), 0);
    ck_assert_int_eq(put(1, LARDER_VARIANTS_MAX, true, LARDER_CACHED), LARDER_ELIMIT);
    fixture_check(&fixture);
    struct larder_entry_info info = find(1);
    ck_assert_uint_eq(info.variants, LARDER_VARIANTS_MAX);
    fixture_settle(&fixture, 1);
    uint64_t removed;
    ck_assert_int_eq(fixture_remove(&fixture, 1, &removed), 0);
    ck_assert_uint_eq(removed, LARDER_VARIANTS_MAX);
    ck_assert_uint_eq(fixture_stats(&fixture).entries, 0);
    fixture_close(&fixture);
    fixture_remove_index(&fixture);
    ck_assert_int_eq(fixture_open(&fixture), 0);
    ck_assert_uint_eq(fixture_stats(&fixture).entries, 0);
}
END_TEST

START_TEST(one_is_removed_alone)
{
    ck_assert_int_eq(put(1, RAW, false, LARDER_DURABLE), 0);
    ck_assert_int_eq(put(1, KIVI2, true, LARDER_DURABLE), 0);
    ck_assert_int_eq(put(2, RAW, false, LARDER_DURABLE), 0);
    ck_assert_int_eq(fixture_remove_variant(&fixture, 1, 5), LARDER_ENOTFOUND);
    ck_assert_int_eq(fixture_remove_variant(&fixture, 2, 0), -EBUSY);
    /* The best one: a worse one on purpose. */
    ck_assert_int_eq(fixture_remove_variant(&fixture, 1, find(1).variant), 0);
    for (int round = 0; round < 3; round++) {
        ck_assert_uint_eq(got(1, LARDER_QUALITY_EXACT), KINDS);
        ck_assert_uint_eq(got(1, LARDER_QUALITY_LOSSY), KIVI2);
        int err;
        ck_assert_uint_eq(fixture_get_chain(&fixture, 1, 2, &err), 2);
        ck_assert_uint_eq(find(1).children, 1);
        fixture_check(&fixture);
        if (round == 1) {
            fixture_close(&fixture);
            fixture_remove_index(&fixture);
        }
        fixture_reopen(&fixture);
    }
    /* What it was may come again. */
    ck_assert_int_eq(put(1, RAW, true, LARDER_DURABLE), 0);
    ck_assert_uint_eq(got(1, LARDER_QUALITY_EXACT), RAW);
}
END_TEST

/* Byte 6,000 of a record lies in its sections. */
static void damage(struct larder_entry_info info)
{
    fixture_close(&fixture);
    fixture_flip(&fixture, info.segment_id, info.segment_page * 4096ull + 6000);
    ck_assert_int_eq(fixture_open(&fixture), 0);
}

START_TEST(a_damaged_one_leaves_the_others)
{
    ck_assert_int_eq(put(1, RAW, false, LARDER_DURABLE), 0);
    ck_assert_int_eq(put(1, EXACT, true, LARDER_DURABLE), 0);
    ck_assert_int_eq(put(1, KIVI4, true, LARDER_DURABLE), 0);
    ck_assert_int_eq(put(2, RAW, false, LARDER_DURABLE), 0);
    int err;
    /* One after the other, the one that leads first; the chain stays as long as one is left. */
    for (uint32_t left = 3; left > 0; left--) {
        struct larder_entry_info best = find(1);
        ck_assert_uint_eq(best.variants, left);
        damage(best);
        struct larder_record heads[2];
        uint32_t good = fixture_get_variants(&fixture, heads, 1, 2, best.quality, &err);
        ck_assert_uint_eq(good, 0);
        ck_assert_int_eq(err, LARDER_ECORRUPT);
        ck_assert_uint_eq(fixture_stats(&fixture).corrupt, 1);
        if (left > 1) {
            ck_assert_uint_eq(fixture_get_chain(&fixture, 1, 2, &err), 2);
            ck_assert_uint_eq(find(1).children, 1);
            uint32_t least = left == 3 ? LARDER_QUALITY_EXACT : LARDER_QUALITY_LOSSY;
            ck_assert_uint_eq(find(1).quality, least);
        }
        fixture_check(&fixture);
    }
    ck_assert(!fixture_has(&fixture, 1));
    ck_assert(!fixture_has(&fixture, 2));
}
END_TEST

START_TEST(verify_names_a_variant)
{
    ck_assert_int_eq(put(1, RAW, false, LARDER_DURABLE), 0);
    ck_assert_int_eq(put(1, KIVI4, true, LARDER_DURABLE), 0);
    struct larder_entry_info best = find(1);
    damage(best);
    ck_assert_int_eq(fixture_verify_variant(&fixture, 1, 1 - best.variant), 0);
    ck_assert_int_eq(fixture_verify_variant(&fixture, 1, best.variant), LARDER_ECORRUPT);
    ck_assert_int_eq(fixture_verify_variant(&fixture, 1, 7), LARDER_ENOTFOUND);
    ck_assert_uint_eq(got(1, LARDER_QUALITY_BLENDED), KIVI4);
}
END_TEST

static _Atomic uint64_t clock_now_ms;

static uint64_t read_clock(void *context)
{
    (void)context;
    return clock_now_ms;
}

START_TEST(the_worse_go_first)
{
    clock_now_ms = 1000;
    fixture.options.now_ms = read_clock;
    fixture_close(&fixture);
    fixture.options.ssd_bytes = 3 << 20;
    fixture.options.host_bytes = 2 << 20;
    ck_assert_int_eq(fixture_open(&fixture), 0);
    uint64_t last = 0;
    for (uint64_t chain = 0; chain < 60; chain++) {
        for (uint64_t seed = chain * 10 + 1; seed <= chain * 10 + 4; seed++, last = seed) {
            ck_assert_int_eq(put(seed, RAW, false, LARDER_DURABLE), 0);
            ck_assert_int_eq(put(seed, KIVI4, true, LARDER_DURABLE), 0);
            ck_assert_int_eq(put(seed, KIVI2, true, LARDER_DURABLE), 0);
            clock_now_ms += 1000;
        }
    }
    fixture_check(&fixture);
    ck_assert_uint_gt(fixture_stats(&fixture).evicted_ssd, 0);
    uint32_t left = 0;
    uint32_t more = 0;
    for (uint64_t seed = 1; seed < last; seed++) {
        struct larder_entry_info info = find(seed);
        if (info.variants == 0)
            continue;
        ck_assert_uint_eq(info.quality, LARDER_QUALITY_EXACT);
        left++;
        more += info.variants - 1u;
    }
    /* Of each three that were put one is exact; of what is left nearly all. */
    ck_assert_uint_gt(left, 50);
    ck_assert_uint_lt(more, left / 2);
    fixture_reopen(&fixture);
    fixture_check(&fixture);
}
END_TEST

/* --- lives ------------------------------------------------------------------------------------ */

#define SEEDS 40u

static uint64_t random_state;

static uint64_t draw(uint64_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % limit;
}

/* When each kind of each block was put; 0: it is not there. */
static uint64_t model[SEEDS][KINDS];
static uint64_t clock_now;

static bool stored(uint32_t seed)
{
    for (uint32_t kind = 0; kind < KINDS; kind++) {
        if (model[seed][kind])
            return true;
    }
    return false;
}

static uint32_t count_of(uint32_t seed)
{
    uint32_t count = 0;
    for (uint32_t kind = 0; kind < KINDS; kind++)
        count += model[seed][kind] != 0;
    return count;
}

/* The kind that leads: least quality lost, then the newest. */
static uint32_t leader(uint32_t seed)
{
    uint32_t best = KINDS;
    for (uint32_t kind = 0; kind < KINDS; kind++) {
        if (model[seed][kind] &&
            (best == KINDS || kinds[kind].quality < kinds[best].quality ||
             (kinds[kind].quality == kinds[best].quality && model[seed][kind] > model[seed][best])))
            best = kind;
    }
    return best;
}

static void life_put(uint32_t seed, uint32_t kind, bool beside)
{
    int err = put(seed, kind, beside, LARDER_DURABLE);
    if (seed % 10 != 1 && !stored(seed - 1)) {
        ck_assert_int_eq(err, LARDER_ENOPARENT);
        return;
    }
    uint32_t best = leader(seed);
    if (best != KINDS && !beside && kinds[best].quality <= kinds[kind].quality) {
        ck_assert_int_eq(err, LARDER_EEXISTS);
        return;
    }
    if (beside && model[seed][kind]) {
        ck_assert_int_eq(err, LARDER_EEXISTS);
        return;
    }
    if (beside && count_of(seed) == LARDER_VARIANTS_MAX) {
        ck_assert_int_eq(err, LARDER_ELIMIT);
        return;
    }
    ck_assert_msg(err == 0, "put %u as %u: %d %s", seed, kind, err, larder_error_message());
    if (best != KINDS && !beside)
        model[seed][best] = 0;
    model[seed][kind] = ++clock_now;
}

static void life_get(uint32_t seed, uint32_t worst, bool smallest)
{
    uint32_t kind = got(seed, worst | (smallest ? LARDER_QUALITY_SMALLEST : 0));
    uint32_t wanted = KINDS;
    for (uint32_t i = 0; i < KINDS; i++) {
        if (!model[seed][i] || kinds[i].quality > worst)
            continue;
        bool before =
            wanted == KINDS || (smallest ? kinds[i].section_bytes < kinds[wanted].section_bytes
                                         : kinds[i].quality < kinds[wanted].quality);
        wanted = before ? i : wanted;
    }
    if (wanted == KINDS || kind == KINDS)
        ck_assert_uint_eq(kind, wanted);
    else if (smallest)
        ck_assert_uint_eq((kinds[kind].section_bytes * 2 + 1500) / 4096,
                          (kinds[wanted].section_bytes * 2 + 1500) / 4096);
    else
        ck_assert_uint_eq(kinds[kind].quality, kinds[wanted].quality);
    if (kind != KINDS)
        ck_assert(model[seed][kind]);
}

static void life_remove(uint32_t seed)
{
    uint64_t removed;
    uint64_t expected = 0;
    bool there = stored(seed);
    int err = fixture_remove(&fixture, seed, &removed);
    for (uint32_t at = seed; there && (at == seed || at % 10 != 1) && at < SEEDS; at++) {
        expected += count_of(at);
        memset(model[at], 0, sizeof(model[at]));
    }
    ck_assert_int_eq(err, there ? 0 : LARDER_ENOTFOUND);
    ck_assert_uint_eq(removed, expected);
}

static void life_remove_variant(uint32_t seed)
{
    uint32_t best = leader(seed);
    struct larder_entry_info info = find(seed);
    int err = fixture_remove_variant(&fixture, seed, info.variant);
    if (best == KINDS) {
        ck_assert_int_eq(err, LARDER_ENOTFOUND);
    } else if (count_of(seed) == 1) {
        ck_assert_int_eq(err, -EBUSY);
    } else {
        ck_assert_msg(err == 0, "%s", larder_error_message());
        model[seed][best] = 0;
    }
}

static void life_restart(bool rebuild)
{
    fixture_close(&fixture);
    if (rebuild)
        fixture_remove_index(&fixture);
    ck_assert_msg(fixture_open(&fixture) == 0, "%s", larder_error_message());
    for (uint32_t seed = 1; seed < SEEDS; seed++) {
        ck_assert_uint_eq(find(seed).variants, count_of(seed));
        if (stored(seed))
            ck_assert_str_eq(find(seed).recipe, kinds[leader(seed)].recipe);
    }
}

START_TEST(lives)
{
    fixture_close(&fixture);
    fixture.options.ssd_bytes = 256 << 20;
    fixture.options.segment_bytes = 4 << 20;
    ck_assert_int_eq(fixture_open(&fixture), 0);
    random_state = 77 + (uint64_t)_i * 1000003;
    clock_now = 0;
    memset(model, 0, sizeof(model));
    for (uint32_t step = 0; step < 400; step++) {
        uint32_t seed = 1 + (uint32_t)draw(SEEDS - 1);
        uint64_t dice = draw(100);
        if (dice < 60)
            life_put(seed, (uint32_t)draw(KINDS), draw(4) != 0);
        else if (dice < 80)
            life_get(seed, (uint32_t)draw(3), draw(2));
        else if (dice < 84)
            life_remove(seed);
        else if (dice < 97)
            life_remove_variant(seed);
        else
            life_restart(dice == 99);
        fixture_check(&fixture);
    }
    life_restart(false);
    life_restart(true);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("variants");
    TCase *tcase = tcase_create("variants");
    tcase_set_timeout(tcase, 120);
    fixture_add(tcase, &fixture);
    tcase_add_test(tcase, each_reader_gets_its_variant);
    tcase_add_test(tcase, a_better_one_beside_takes_the_lead);
    tcase_add_test(tcase, a_lookup_says_what_a_lease_gives);
    tcase_add_test(tcase, only_so_many);
    tcase_add_test(tcase, one_is_removed_alone);
    tcase_add_test(tcase, a_damaged_one_leaves_the_others);
    tcase_add_test(tcase, verify_names_a_variant);
    tcase_add_test(tcase, the_worse_go_first);
    tcase_add_loop_test(tcase, lives, 0, 8);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
