/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   of the records of a key that have one name (quality, recipe, what they were computed on)
 *         one lives, whatever puts meet, and whatever index and segments say at a start; when it is
 *         removed alone no older one of that name comes back from under another number, however
 *         often the index is lost; rows that do not belong are dropped.
 * Method: rows of a closed store's index taken out and put in. */
#include <check.h>
#include <errno.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/error.h"
#include "base/key.h"
#include "fixture.h"
#include "storage/index.h"

static struct fixture fixture;

static struct block block_of(uint64_t seed, const char *recipe)
{
    bool exact = strcmp(recipe, "raw") == 0;
    struct block block = {.seed = seed,
                          .token_count = 256,
                          .section_bytes = exact ? 9000 : 3000,
                          .quality = exact ? LARDER_QUALITY_EXACT : LARDER_QUALITY_LOSSY,
                          .recipe = recipe,
                          .beside = true,
                          .tenant = fixture.tenant.index};
    if (seed > 1)
        block.parent = block_key(seed - 1);
    return block;
}

/* "raw" is exact, all others are lossy; beside what there is. Block 1 begins the chain. */
static int put(uint64_t seed, const char *recipe)
{
    const struct block block = block_of(seed, recipe);
    return fixture_put(&fixture, &block, LARDER_DURABLE);
}

/* Of block 1's record with this recipe, of which there may be one; negative: there is none. */
static int number_of(const char *recipe)
{
    const struct larder_key key = block_key(1);
    struct larder_entry_info info;
    uint64_t cursor = 0;
    int number = -1;
    do {
        uint32_t count;
        ck_assert_int_eq(larder_store_list(fixture.store, &info, &count, &cursor, 1), 0);
        if (count == 1 && larder_key_equal(&info.key, &key) && strcmp(info.recipe, recipe) == 0) {
            ck_assert_int_eq(number, -1);
            number = info.variant;
        }
    } while (cursor != 0);
    return number;
}

static uint32_t variants_of(uint64_t seed)
{
    const struct larder_key key = block_key(seed);
    struct larder_entry_info info;
    return larder_store_find(fixture.store, &info, &key) < 0 ? 0 : info.variants;
}

/* --- rows of the index ------------------------------------------------------------------------ */

struct rows {
    struct larder_key key;
    uint32_t variant;
    struct index_entry value; /* of that variant of `key` */
    uint32_t count;
    uint32_t newest; /* segment */
};

static int note_row(void *context, const struct larder_key *key, uint32_t variant,
                    const struct index_entry *value)
{
    struct rows *rows = context;
    rows->count++;
    if (variant == rows->variant && larder_key_equal(key, &rows->key))
        rows->value = *value;
    return 0;
}

static int note_segment(void *context, uint32_t id, const struct index_segment *row)
{
    struct rows *rows = context;
    (void)row;
    rows->newest = id;
    return 0;
}

static int pass_model(void *context, const struct larder_key *fingerprint,
                      const struct larder_model_desc *desc)
{
    (void)context;
    (void)fingerprint;
    (void)desc;
    return 0;
}

static int pass_mark(void *context, const struct larder_key *key, const struct index_mark *mark)
{
    (void)context;
    (void)key;
    (void)mark;
    return 0;
}

static struct larder_index *open_index(struct rows *rows, uint64_t *generation)
{
    char path[SCRATCH_PATH_BYTES + 8];
    struct larder_index *index;
    bool created;
    const struct index_visitor visitor = {.context = rows,
                                          .entry = note_row,
                                          .segment = note_segment,
                                          .model = pass_model,
                                          .mark = pass_mark};
    snprintf(path, sizeof(path), "%s/index", fixture.path);
    rows->count = rows->newest = 0;
    ck_assert_int_eq(larder_index_open(&index, path, &created), 0);
    ck_assert_int_eq(larder_index_load(index, &visitor, generation), 0);
    return index;
}

static void put_row(struct larder_index *index, const struct larder_key *key, uint32_t variant,
                    struct index_entry value)
{
    ck_assert_int_eq(larder_index_put_entry(index, key, variant, &value), 0);
}

START_TEST(rows_that_do_not_belong_are_dropped)
{
    ck_assert_int_eq(put(1, "raw"), 0);
    ck_assert_int_eq(put(1, "two"), 0);
    ck_assert_int_eq(put(2, "raw"), 0);
    struct rows rows = {.key = block_key(1)};
    uint64_t generation;
    fixture_close(&fixture);
    struct larder_index *index = open_index(&rows, &generation);
    ck_assert_uint_eq(rows.count, 3);
    /* Numbers that nobody gives, another parent, other tokens; and one that no primary precedes. */
    ck_assert_int_eq(larder_index_begin(index), 0);
    put_row(index, &rows.key, LARDER_VARIANTS_MAX, rows.value);
    put_row(index, &rows.key, UINT32_MAX, rows.value);
    struct index_entry other = rows.value;
    other.parent[0] ^= 1;
    put_row(index, &rows.key, 3, other);
    other = rows.value;
    other.token_count--;
    put_row(index, &rows.key, 4, other);
    struct larder_key orphan = block_key(77);
    other = rows.value;
    memcpy(other.parent, block_key(76).bytes, 32);
    put_row(index, &orphan, 5, other);
    put_row(index, &orphan, 6, other);
    ck_assert_int_eq(larder_index_commit(index, generation), 0);
    larder_index_close(index);

    ck_assert_int_eq(fixture_open(&fixture), 0);
    ck_assert_uint_eq(fixture_stats(&fixture).index_rebuilt, 0);
    ck_assert_uint_eq(fixture_stats(&fixture).entries, 3);
    ck_assert_uint_eq(variants_of(1), 2);
    ck_assert(number_of("two") >= 0);
    fixture_check(&fixture);
    /* And the index has forgotten them. */
    fixture_close(&fixture);
    index = open_index(&rows, &generation);
    ck_assert_uint_eq(rows.count, 3);
    larder_index_close(index);
    ck_assert_int_eq(fixture_open(&fixture), 0);
}
END_TEST

/* --- one name, two numbers -------------------------------------------------------------------- */

/* Block 1 with "raw", "two" and "four", of which the index forgets those two, as a start may that
 * finds a hole in a chain; then "four" again, under the number that "two" had. `old`: its first
 * row, which has another number. */
static void put_twice(struct rows *old)
{
    ck_assert_int_eq(put(1, "raw"), 0);
    ck_assert_int_eq(put(1, "two"), 0);
    ck_assert_int_eq(put(1, "four"), 0);
    ck_assert_int_eq(put(2, "raw"), 0);
    *old = (struct rows){.key = block_key(1), .variant = (uint32_t)number_of("four")};
    uint32_t two = (uint32_t)number_of("two");
    uint64_t generation;
    fixture_close(&fixture);
    struct larder_index *index = open_index(old, &generation);
    ck_assert_int_eq(larder_index_begin(index), 0);
    ck_assert_int_eq(larder_index_delete_entry(index, &old->key, two), 0);
    ck_assert_int_eq(larder_index_delete_entry(index, &old->key, old->variant), 0);
    ck_assert_int_eq(larder_index_commit(index, generation), 0);
    larder_index_close(index);
    ck_assert_int_eq(fixture_open(&fixture), 0);
    ck_assert_uint_eq(variants_of(1), 1);
    ck_assert_int_eq(put(1, "four"), 0);
    ck_assert_int_eq(number_of("four"), (int)two);
}

static uint64_t generation_of(const char *recipe)
{
    struct rows rows = {.key = block_key(1), .variant = (uint32_t)number_of(recipe)};
    uint64_t generation;
    fixture_close(&fixture);
    larder_index_close(open_index(&rows, &generation));
    ck_assert_int_eq(fixture_open(&fixture), 0);
    return rows.value.generation;
}

/* Removed alone: both are gone, however often the index is made anew. */
static void remove_four(void)
{
    ck_assert_int_eq(fixture_remove_variant(&fixture, 1, (uint32_t)number_of("four")), 0);
    for (int round = 0; round < 4; round++) {
        ck_assert_int_eq(number_of("four"), -1);
        ck_assert(number_of("raw") >= 0);
        ck_assert_uint_eq(variants_of(2), 1);
        if (round % 2 == 0)
            fixture_rebuild(&fixture);
        else
            fixture_reopen(&fixture);
    }
}

START_TEST(a_removed_one_takes_its_older_name_along)
{
    struct rows old;
    put_twice(&old);
    remove_four();
    /* What it was may come again, and go again. */
    ck_assert_int_eq(put(1, "four"), 0);
    fixture_rebuild(&fixture);
    ck_assert(number_of("four") >= 0);
    remove_four();
}
END_TEST

START_TEST(a_rebuild_keeps_the_newer)
{
    struct rows old;
    put_twice(&old);
    for (int round = 0; round < 3; round++) {
        fixture_rebuild(&fixture);
        ck_assert_uint_eq(variants_of(1), 2);
        ck_assert_uint_gt(generation_of("four"), old.value.generation);
    }
    remove_four();
}
END_TEST

/* An older row beside the newer one; `tail`: and what stands for the newer is in the segment alone.
 */
static void start_with_both(bool tail)
{
    struct rows old;
    put_twice(&old);
    struct rows rows = {.key = block_key(1), .variant = (uint32_t)number_of("four")};
    uint64_t generation;
    fixture_close(&fixture);
    struct larder_index *index = open_index(&rows, &generation);
    uint32_t newest = rows.newest;
    ck_assert_int_eq(larder_index_begin(index), 0);
    put_row(index, &old.key, old.variant, old.value);
    if (tail) {
        ck_assert_int_eq(larder_index_delete_entry(index, &rows.key, rows.variant), 0);
        ck_assert_int_eq(larder_index_delete_segment(index, newest), 0);
    }
    ck_assert_int_eq(larder_index_commit(index, generation), 0);
    larder_index_close(index);
    ck_assert_int_eq(fixture_open(&fixture), 0);
    ck_assert_uint_eq(fixture_stats(&fixture).index_rebuilt, 0);
    ck_assert_uint_eq(fixture_stats(&fixture).recovered_from_tail, tail);
    ck_assert_int_eq(number_of("four"), (int)rows.variant);
    ck_assert_uint_eq(variants_of(1), 2);
    fixture_check(&fixture);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&fixture, 1, 1, &err), 1);
    /* And the index has forgotten it. */
    fixture_close(&fixture);
    larder_index_close(open_index(&rows, &generation));
    ck_assert_uint_eq(rows.count, 3);
    ck_assert_int_eq(fixture_open(&fixture), 0);
    remove_four();
}

START_TEST(an_index_with_both_keeps_the_newer)
{
    start_with_both(false);
}
END_TEST

START_TEST(a_tail_takes_the_older_ones_place)
{
    start_with_both(true);
}
END_TEST

/* --- puts that meet --------------------------------------------------------------------------- */

static struct larder_put *reserve(const char *recipe, bool beside, int expected)
{
    const struct block block = block_of(1, recipe);
    const struct larder_put_desc desc = {.tenant = block.tenant,
                                         .model = fixture.model.index,
                                         .key = block_key(1),
                                         .recipe = recipe,
                                         .quality = block.quality,
                                         .beside = beside,
                                         .section_count_max = 1,
                                         .payload_bytes_max = 4096};
    struct larder_put *put = NULL;
    ck_assert_int_eq(larder_store_put_reserve(fixture.store, &put, &desc), expected);
    return put;
}

START_TEST(one_that_replaces_has_its_name_at_once)
{
    ck_assert_int_eq(put(1, "four"), 0);
    struct larder_put *exact = reserve("raw", false, 0);
    reserve("raw", true, LARDER_EEXISTS);
    reserve("four", true, LARDER_EEXISTS);
    struct larder_put *two = reserve("two", true, 0);
    fixture_check(&fixture);
    larder_store_put_abort(fixture.store, exact);
    ck_assert_int_eq(put(1, "raw"), 0);
    larder_store_put_abort(fixture.store, two);
    ck_assert_uint_eq(variants_of(1), 2);
    fixture_check(&fixture);
}
END_TEST

static sem_t sync_begun, sync_may_end;
static atomic_bool hold_sync;

/* In place of the C library's. */
int fdatasync(int fd)
{
    if (atomic_exchange(&hold_sync, false)) {
        sem_post(&sync_begun);
        sem_wait(&sync_may_end);
    }
    return (int)syscall(SYS_fdatasync, fd);
}

/* Should the write of the one fail, the other is back: two of one name, had it been put again. */
START_TEST(what_is_being_replaced_is_not_put_again)
{
    fixture_close(&fixture);
    fixture.options.io = "threads";
    ck_assert_int_eq(fixture_open(&fixture), 0);
    ck_assert_int_eq(put(1, "four"), 0);
    fixture_commit(&fixture);
    sem_init(&sync_begun, 0, 0);
    sem_init(&sync_may_end, 0, 0);
    atomic_store(&hold_sync, true);
    struct block exact = block_of(1, "raw");
    exact.beside = false;
    ck_assert_int_eq(fixture_put(&fixture, &exact, LARDER_CACHED), 0);
    sem_wait(&sync_begun);
    ck_assert_int_eq(number_of("four"), -1);
    reserve("four", true, -EBUSY);
    reserve("raw", true, LARDER_EEXISTS);
    larder_store_put_abort(fixture.store, reserve("two", true, 0));
    fixture_check(&fixture);
    sem_post(&sync_may_end);
    fixture_settle(&fixture, 1);
    ck_assert_int_eq(put(1, "four"), 0);
    ck_assert_uint_eq(variants_of(1), 2);
}
END_TEST

/* A put that is to keep a KL passes over what does not: of those its own name gives way. */
START_TEST(its_own_name_is_what_it_replaces)
{
    struct block block = block_of(1, "two");
    block.computed_on = LARDER_QUALITY_LOSSY;
    block.computed_on_kl = 0.5f;
    ck_assert_int_eq(fixture_put(&fixture, &block, LARDER_DURABLE), 0);
    const struct larder_key *model = &fixture.model.fingerprint;
    ck_assert_int_eq(larder_store_set_kl(fixture.store, model, "two", NULL, 0.01f), 0);
    ck_assert_int_eq(larder_store_set_kl(fixture.store, model, "four", NULL, 0.5f), 0);
    struct block four = block_of(1, "four"); /* the best: computed on what is exact */
    ck_assert_int_eq(fixture_put(&fixture, &four, LARDER_DURABLE), 0);
    int number = number_of("two");
    block.beside = false;
    block.max_kl = 0.1f;
    block.computed_on_kl = 0.05f;
    ck_assert_int_eq(fixture_put(&fixture, &block, LARDER_DURABLE), 0);
    for (int round = 0; round < 3; round++) {
        ck_assert_uint_eq(variants_of(1), 2);
        ck_assert_int_eq(number_of("two"), number);
        ck_assert(number_of("four") >= 0);
        fixture_check(&fixture);
        if (round == 1)
            fixture_rebuild(&fixture);
        else
            fixture_reopen(&fixture);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("names");
    TCase *tcase = tcase_create("names");
    tcase_set_timeout(tcase, 120);
    fixture_add(tcase, &fixture);
    tcase_add_test(tcase, rows_that_do_not_belong_are_dropped);
    tcase_add_test(tcase, a_removed_one_takes_its_older_name_along);
    tcase_add_test(tcase, a_rebuild_keeps_the_newer);
    tcase_add_test(tcase, an_index_with_both_keeps_the_newer);
    tcase_add_test(tcase, a_tail_takes_the_older_ones_place);
    tcase_add_test(tcase, one_that_replaces_has_its_name_at_once);
    tcase_add_test(tcase, what_is_being_replaced_is_not_put_again);
    tcase_add_test(tcase, its_own_name_is_what_it_replaces);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
