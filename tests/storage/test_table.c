/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: the table finds what was added and nothing else, keeps families, and reuses
 * ids without confusion.
 * Method: random additions, removals, touches against plain arrays; table_check() throughout. */
#include "storage/table.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/key.h"

#define NAMES 3000u

static uint64_t random_state = 7;

static uint64_t draw(uint64_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % limit;
}

static struct larder_key key_of(uint32_t name)
{
    struct larder_key key;
    ck_assert_int_eq(larder_sha256(&key, &name, sizeof(name)), 0);
    return key;
}

static void check(const struct table *table)
{
    ck_assert_msg(table_check(table) == 0, "%s", larder_error_message());
}

START_TEST(random_families)
{
    struct table table;
    ck_assert_int_eq(table_open(&table), 0);
    uint32_t root = table_add_root(&table, 3);
    static uint32_t ids[NAMES];
    memset(ids, 0, sizeof(ids));
    for (uint32_t step = 0; step < 30000; step++) {
        uint32_t name = (uint32_t)draw(NAMES);
        struct larder_key key = key_of(name);
        ck_assert_uint_eq(table_find(&table, &key), ids[name]);
        struct entry *entry = ids[name] ? table_entry(&table, ids[name]) : NULL;
        if (!entry) {
            uint32_t parent = ids[draw(NAMES)];
            if (parent == TABLE_NONE ||
                !(table_entry(&table, parent)->flags & (ENTRY_DURABLE | ENTRY_ROOT)))
                parent = root;
            ids[name] = table_add(&table, &key, parent, (uint16_t)draw(257));
            ck_assert_uint_ne(ids[name], TABLE_NONE);
            entry = table_entry(&table, ids[name]);
            entry->flags |= ENTRY_VISIBLE | ENTRY_DURABLE;
            ck_assert_uint_eq(entry->tenant, 3);
        } else if (entry->first_child == TABLE_NONE && draw(2)) {
            entry->flags &= (uint16_t)~ENTRY_DURABLE;
            table_remove(&table, ids[name]);
            ids[name] = TABLE_NONE;
        }
        if (step % 500 == 0)
            check(&table);
    }
    check(&table);
    /* A walk names every entry once, parents first. */
    uint32_t count = 0;
    for (uint32_t id = table_next_below(&table, root, root); id != TABLE_NONE;
         id = table_next_below(&table, id, root)) {
        const struct entry *entry = table_entry(&table, id);
        uint32_t depth = entry->parent == root ? 0 : table_entry(&table, entry->parent)->depth + 1;
        ck_assert_uint_eq(entry->depth, depth);
        count++;
    }
    ck_assert_uint_eq(count, table.count);
    table_close(&table);
}
END_TEST

START_TEST(short_blocks_come_first)
{
    struct table table;
    ck_assert_int_eq(table_open(&table), 0);
    uint32_t root = table_add_root(&table, 0);
    for (uint32_t name = 0; name < 500; name++) {
        struct larder_key key = key_of(name);
        table_add(&table, &key, root, name % 100 == 50 ? 17 : 256);
    }
    uint32_t child = table_entry(&table, root)->first_child;
    for (uint32_t i = 0; i < 5; i++) {
        ck_assert_uint_eq(table_entry(&table, child)->token_count, 17);
        child = table_entry(&table, child)->next_sibling;
    }
    ck_assert_uint_eq(table_entry(&table, child)->token_count, 256);
    table_close(&table);
}
END_TEST

START_TEST(recipes_are_shared_and_bounded)
{
    struct table table;
    ck_assert_int_eq(table_open(&table), 0);
    uint16_t raw = table_recipe(&table, "raw", 3, 0);
    ck_assert_uint_ne(raw, 0);
    ck_assert_uint_eq(table_recipe(&table, "rawer", 3, 0), raw);
    ck_assert_uint_ne(table_recipe(&table, "rawer", 5, 0), raw);
    ck_assert_str_eq(table_recipe_text(&table, raw), "raw");
    char text[100];
    for (int i = 0; i < 5000; i++) {
        int bytes = snprintf(text, sizeof(text), "kivi(%d)", i);
        table_recipe(&table, text, (uint32_t)bytes, 0);
    }
    ck_assert_str_eq(table_recipe_text(&table, table_recipe(&table, "one more", 8, 0)), "(other)");
    ck_assert_uint_eq(table_recipe(&table, "raw", 3, 0), raw);
    ck_assert_uint_eq(table_recipe(&table, "(other)", 7, 0), 0);
    /* What was measured has its own room. */
    for (uint32_t i = 0; i < TABLE_MEASURED_MAX; i++) {
        int bytes = snprintf(text, sizeof(text), "measured(%u)", i);
        ck_assert_uint_ne(table_recipe_measured(&table, text, (uint32_t)bytes, 1), 0);
    }
    ck_assert_uint_eq(table_recipe_measured(&table, "one more", 8, 0), 0);
    ck_assert_uint_ne(table_recipe(&table, "measured(7)", 11, 1), 0);
    /* Long ones that begin alike stay apart, also after the index cut them. */
    const char *one = "k{quant bits=2 axis=channel group=32} v{quant}";
    const char *two = "k{quant bits=2 axis=channel group=64} v{quant}";
    struct table other;
    ck_assert_int_eq(table_open(&other), 0);
    uint16_t first = table_recipe(&other, one, (uint32_t)strlen(one), 0);
    ck_assert_uint_ne(first, table_recipe(&other, two, (uint32_t)strlen(two), 0));
    snprintf(text, sizeof(text), "%s", table_recipe_text(&other, first));
    ck_assert_uint_eq(strlen(text), TABLE_RECIPE_BYTES);
    ck_assert_uint_eq(table_recipe(&other, text, TABLE_RECIPE_BYTES, 0), first);
    table_close(&other);
    memset(text, 'x', sizeof(text));
    ck_assert_uint_eq(strlen(table_recipe_text(&table, table_recipe(&table, "", 0, 0))), 7);
    table_close(&table);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("table");
    TCase *tcase = tcase_create("table");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, random_families);
    tcase_add_test(tcase, short_blocks_come_first);
    tcase_add_test(tcase, recipes_are_shared_and_bounded);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
