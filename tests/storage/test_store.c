/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: what is put is found and read back byte for byte, from both tiers and after a restart; what
 * the interface promises of errors, tails, qualities and removal holds.
 * Method: a store over real files with small tiers; entries whose bytes follow from a number. */
#include "storage/store.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/key.h"
#include "fixture.h"

static struct fixture f;

static void tell(void *context, int err)
{
    *(int *)context = err;
}

static struct block block_of(uint64_t seed, const struct larder_key *parent)
{
    return (struct block){.seed = seed,
                          .parent = *parent,
                          .token_count = 256,
                          .section_bytes = 10000,
                          .tenant = f.tenant.index};
}

START_TEST(put_get_reopen_get)
{
    int err;
    fixture_put_chain(&f, 1, 5, 20000, LARDER_DURABLE);
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 7, &err), 5);
    ck_assert_int_eq(err, 0);
    ck_assert_uint_eq(fixture_stats(&f).blocks_hit_host, 5);
    fixture_reopen(&f);
    ck_assert_uint_eq(fixture_stats(&f).recovered_entries, 5);
    ck_assert_uint_eq(fixture_stats(&f).entries_host, 0);
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 7, &err), 5);
    ck_assert_int_eq(err, 0);
    ck_assert_uint_eq(fixture_stats(&f).blocks_hit_ssd, 5);
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 7, &err), 5);
    ck_assert_uint_eq(fixture_stats(&f).blocks_hit_host, 5);
}
END_TEST

START_TEST(cached_becomes_durable)
{
    fixture_put_chain(&f, 1, 3, 5000, LARDER_CACHED);
    fixture_settle(&f, 3);
    struct larder_store_stats stats = fixture_stats(&f);
    ck_assert_uint_eq(stats.entries_durable, 3);
    ck_assert_uint_eq(stats.entries, 3);
}
END_TEST

START_TEST(refuses_what_is_there_or_has_no_parent)
{
    fixture_put_chain(&f, 1, 1, 5000, LARDER_CACHED);
    struct block again = block_of(1, &larder_key_root);
    ck_assert_int_eq(fixture_put(&f, &again, LARDER_CACHED), LARDER_EEXISTS);
    again.quality = LARDER_QUALITY_LOSSY;
    ck_assert_int_eq(fixture_put(&f, &again, LARDER_CACHED), LARDER_EEXISTS);
    struct larder_key nobody = block_key(99);
    struct block orphan = block_of(2, &nobody);
    ck_assert_int_eq(fixture_put(&f, &orphan, LARDER_CACHED), LARDER_ENOPARENT);
    struct block large = block_of(3, &larder_key_root);
    large.section_bytes = 1 << 20;
    ck_assert_int_eq(fixture_put(&f, &large, LARDER_CACHED), LARDER_EFULL);
    ck_assert_int_eq(fixture_when(&f, 99, LARDER_CACHED), LARDER_ENOTFOUND);
}
END_TEST

START_TEST(remove_takes_the_subtree)
{
    uint64_t removed;
    fixture_put_chain(&f, 1, 6, 5000, LARDER_DURABLE);
    ck_assert_int_eq(fixture_remove(&f, 3, &removed), 0);
    ck_assert_uint_eq(removed, 4);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 6, &err), 2);
    ck_assert_int_eq(fixture_remove(&f, 3, &removed), LARDER_ENOTFOUND);
    fixture_reopen(&f);
    ck_assert_uint_eq(fixture_stats(&f).entries, 2);
    fixture_close(&f);
    fixture_remove_index(&f);
    ck_assert_int_eq(fixture_open(&f), 0);
    ck_assert_uint_eq(fixture_stats(&f).index_rebuilt, 1);
    ck_assert_uint_eq(fixture_stats(&f).entries, 2);
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 6, &err), 2);
}
END_TEST

START_TEST(a_better_quality_replaces)
{
    fixture_put_chain(&f, 2, 1, 5000, LARDER_DURABLE);
    struct block block = block_of(1, &larder_key_root);
    block.quality = LARDER_QUALITY_BLENDED;
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    struct block child = block_of(3, &larder_key_root);
    child.parent = block_key(1);
    child.quality = LARDER_QUALITY_BLENDED;
    ck_assert_int_eq(fixture_put(&f, &child, LARDER_DURABLE), 0);
    block.quality = LARDER_QUALITY_LOSSY;
    block.section_bytes = 30000;
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    block.quality = LARDER_QUALITY_EXACT;
    block.section_bytes = 20000;
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    struct larder_key keys[2] = {block_key(1), block_key(3)};
    struct larder_match match;
    for (int round = 0; round < 3; round++) {
        ck_assert_int_eq(larder_store_lookup(f.store, &match,
                                             &(struct larder_want){.tenant = f.tenant.index,
                                                                   .keys = keys,
                                                                   .key_count = 2,
                                                                   .worst = LARDER_QUALITY_BLENDED},
                                             &larder_key_root, 256),
                         0);
        ck_assert_uint_eq(match.count, 2);
        ck_assert_uint_eq(match.quality, LARDER_QUALITY_BLENDED);
        ck_assert_int_eq(larder_store_lookup(f.store, &match,
                                             &(struct larder_want){.tenant = f.tenant.index,
                                                                   .keys = keys,
                                                                   .key_count = 2,
                                                                   .worst = LARDER_QUALITY_EXACT},
                                             &larder_key_root, 256),
                         0);
        ck_assert_uint_eq(match.count, 1);
        int err;
        ck_assert_uint_eq(fixture_get_chain(&f, 1, 1, &err), 1);
        ck_assert_uint_eq(fixture_stats(&f).entries, 3);
        struct larder_entry_info info;
        ck_assert_int_eq(larder_store_find(f.store, &info, &keys[0]), 0);
        ck_assert_uint_eq(info.raw_bytes, 40000);
        ck_assert_uint_eq(info.children, 1);
        fixture_check(&f);
        fixture_close(&f);
        if (round == 1)
            fixture_remove_index(&f);
        ck_assert_int_eq(fixture_open(&f), 0);
    }
}
END_TEST

/* Blocks of one family (seed / 1000) share their tokens, so a shorter one is a prefix. */
static void put_tail(uint64_t seed, uint32_t token_count)
{
    struct block block = block_of(seed, &larder_key_root);
    block.token_count = token_count;
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
}

static struct larder_match tails(void)
{
    struct larder_key none = block_key(424242);
    struct larder_match match;
    ck_assert_int_eq(larder_store_lookup(f.store, &match,
                                         &(struct larder_want){.tenant = f.tenant.index,
                                                               .keys = &none,
                                                               .key_count = 1,
                                                               .worst = LARDER_QUALITY_EXACT},
                                         &larder_key_root, 256),
                     0);
    ck_assert_uint_eq(match.count, 0);
    return match;
}

/* A removal that nobody waits for is done when another one is. */
static void wait_for_removals(void)
{
    uint64_t removed;
    put_tail(90000, 256);
    ck_assert_int_eq(fixture_remove(&f, 90000, &removed), 0);
}

START_TEST(a_longer_block_drops_the_tail_it_extends)
{
    bool from_ssd = _i;
    put_tail(1001, 50);
    put_tail(2001, 60); /* of another family: not a prefix */
    put_tail(3001, 256);
    struct larder_match match = tails();
    ck_assert_uint_eq(match.tail_count, 2);
    ck_assert_uint_eq(match.tails[0].token_count, 60);
    ck_assert_uint_eq(match.tails[1].token_count, 50);
    if (from_ssd)
        fixture_reopen(&f);
    put_tail(1002, 100);
    fixture_verify(&f, 1002); /* behind the check of the tail */
    wait_for_removals();
    match = tails();
    ck_assert_uint_eq(match.tail_count, 2);
    ck_assert_uint_eq(match.tails[0].token_count, 100);
    ck_assert_uint_eq(match.tails[1].token_count, 60);
    ck_assert(!fixture_has(&f, 1001));
    put_tail(1003, 256);
    fixture_verify(&f, 1003);
    wait_for_removals();
    ck_assert(!fixture_has(&f, 1002));
    ck_assert(fixture_has(&f, 2001));
    fixture_reopen(&f);
    ck_assert(!fixture_has(&f, 1001));
    ck_assert(!fixture_has(&f, 1002));
    ck_assert(fixture_has(&f, 1003));
    ck_assert_uint_eq(tails().tail_count, 1);
}
END_TEST

START_TEST(a_tail_with_children_stays)
{
    put_tail(1001, 50);
    struct block child = block_of(5, &larder_key_root);
    child.parent = block_key(1001);
    ck_assert_int_eq(fixture_put(&f, &child, LARDER_DURABLE), 0);
    put_tail(1002, 100);
    wait_for_removals();
    ck_assert(fixture_has(&f, 1001));
    ck_assert(fixture_has(&f, 1002));
}
END_TEST

START_TEST(opaque_blocks_have_no_tokens)
{
    struct block block = block_of(1, &larder_key_root);
    block.token_count = 0;
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    block = block_of(2, &larder_key_root);
    block.parent = block_key(1);
    block.token_count = 0;
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    fixture_reopen(&f);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 2, &err), 2);
}
END_TEST

START_TEST(keys_that_are_no_chain_are_refused)
{
    fixture_put_chain(&f, 1, 3, 5000, LARDER_CACHED);
    struct larder_key keys[3] = {block_key(2), block_key(1), block_key(3)};
    struct larder_match match;
    ck_assert_int_eq(larder_store_lookup(f.store, &match,
                                         &(struct larder_want){.tenant = f.tenant.index,
                                                               .keys = keys,
                                                               .key_count = 3,
                                                               .worst = LARDER_QUALITY_EXACT},
                                         &larder_key_root, 256),
                     LARDER_EPROTO);
    ck_assert_uint_eq(match.count, 0);
}
END_TEST

/* The event thread must not wait until a slab is made. */
START_TEST(a_lease_that_may_not_grow)
{
    fixture_put_chain(&f, 1, 1, 5000, LARDER_DURABLE);
    fixture_reopen(&f);
    struct larder_key key = block_key(1);
    struct larder_ref ref;
    struct larder_lease *lease;
    uint32_t count;
    bool ready;
    ck_assert_int_eq(larder_store_lease(f.store, &lease, &ref, &count, &ready,
                                        &(struct larder_want){.tenant = f.tenant.index,
                                                              .keys = &key,
                                                              .key_count = 1,
                                                              .worst = LARDER_QUALITY_EXACT,
                                                              .now = true},
                                        NULL, NULL),
                     -EAGAIN);
    ck_assert_ptr_null(lease);
    ck_assert_uint_eq(count, 0);
    ck_assert_uint_eq(fixture_stats(&f).slab_bytes_mapped, 0);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 1, &err), 1);
    ck_assert_int_eq(larder_store_lease(f.store, &lease, &ref, &count, &ready,
                                        &(struct larder_want){.tenant = f.tenant.index,
                                                              .keys = &key,
                                                              .key_count = 1,
                                                              .worst = LARDER_QUALITY_EXACT,
                                                              .now = true},
                                        NULL, NULL),
                     0);
    ck_assert(ready);
    larder_store_release(f.store, lease);
}
END_TEST

/* What a client gets wrong in the directory spoils its own PUT. */
START_TEST(a_bad_directory_is_refused)
{
    struct larder_put_desc desc = {.tenant = f.tenant.index,
                                   .model = f.model.index,
                                   .key = block_key(1),
                                   .recipe = "raw",
                                   .section_count_max = 2,
                                   .payload_bytes_max = 8192};
    for (int wrong = 0; wrong < 5; wrong++) {
        struct larder_put *put;
        ck_assert_int_eq(larder_store_put_reserve(f.store, &put, &desc), 0);
        struct larder_put *second;
        ck_assert_int_eq(larder_store_put_reserve(f.store, &second, &desc), LARDER_EEXISTS);
        uint64_t offset;
        larder_put_payload(put, &offset);
        struct larder_section *sections = larder_put_directory(put);
        sections[0] = (struct larder_section){
            .layer_count = 1, .head_count = 1, .offset = offset, .bytes = 100};
        sections[1] = (struct larder_section){
            .layer_count = 1, .head_count = 1, .offset = offset + 4096, .bytes = 100};
        uint64_t payload_bytes = 8192;
        uint32_t section_count = 2;
        if (wrong == 0)
            sections[1].offset = offset;
        if (wrong == 1)
            sections[1].bytes = 1ull << 40;
        if (wrong == 2)
            section_count = 3;
        if (wrong == 3)
            payload_bytes = 4096;
        if (wrong == 4)
            sections[0].offset = 0;
        int told = 1;
        larder_store_put_commit(f.store, put, section_count, payload_bytes, LARDER_CACHED, tell,
                                &told);
        ck_assert_int_eq(told, LARDER_EPROTO);
        ck_assert(!fixture_has(&f, 1));
        fixture_check(&f);
    }
    struct larder_put *put;
    ck_assert_int_eq(larder_store_put_reserve(f.store, &put, &desc), 0);
    larder_store_put_abort(f.store, put);
    fixture_put_chain(&f, 1, 1, 5000, LARDER_DURABLE);
}
END_TEST

START_TEST(a_parent_removed_under_a_put)
{
    fixture_put_chain(&f, 1, 1, 5000, LARDER_DURABLE);
    struct larder_put_desc desc = {.tenant = f.tenant.index,
                                   .model = f.model.index,
                                   .key = block_key(2),
                                   .parent = block_key(1),
                                   .recipe = "raw",
                                   .section_count_max = 1,
                                   .payload_bytes_max = 4096};
    struct larder_put *put;
    ck_assert_int_eq(larder_store_put_reserve(f.store, &put, &desc), 0);
    uint64_t offset, removed;
    larder_put_payload(put, &offset);
    *larder_put_directory(put) =
        (struct larder_section){.layer_count = 1, .head_count = 1, .offset = offset, .bytes = 100};
    ck_assert_int_eq(fixture_remove(&f, 1, &removed), 0);
    int told = 1;
    larder_store_put_commit(f.store, put, 1, 4096, LARDER_CACHED, tell, &told);
    ck_assert_int_eq(told, LARDER_ENOPARENT);
    ck_assert(!fixture_has(&f, 2));
    fixture_check(&f);
    /* And one that is still reserved when the store closes. */
    desc.parent = larder_key_root;
    ck_assert_int_eq(larder_store_put_reserve(f.store, &put, &desc), 0);
}
END_TEST

START_TEST(a_record_larger_than_a_slab_of_now)
{
    fixture_close(&f);
    struct larder_store_options small = f.options;
    f.options.slab_bytes = f.options.segment_bytes = 4 << 20;
    f.options.host_bytes = 8 << 20;
    ck_assert_int_eq(fixture_open(&f), 0);
    fixture_put_chain(&f, 1, 1, 700000, LARDER_DURABLE);
    fixture_put_chain(&f, 5, 1, 7000, LARDER_DURABLE);
    fixture_close(&f);
    f.options = small;
    ck_assert_int_eq(fixture_open(&f), 0);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 1, &err), 0);
    ck_assert_int_eq(err, LARDER_EFULL);
    ck_assert_uint_eq(fixture_get_chain(&f, 5, 1, &err), 1);
}
END_TEST

static int describe_model(uint32_t number, struct larder_model_info *out)
{
    struct larder_model_desc desc = f.model.desc;
    memcpy(desc.weights, &number, sizeof(number));
    desc.weights[31] = 1;
    return larder_store_model(f.store, out, &desc);
}

START_TEST(models_that_nobody_uses_give_way)
{
    struct larder_model_info info;
    fixture_put_chain(&f, 1, 2, 500, LARDER_DURABLE);
    larder_store_model_release(f.store, f.model.index);
    uint32_t count = 0;
    while (describe_model(count, &info) == 0)
        count++;
    ck_assert_uint_eq(count, LARDER_MODELS_MAX - 1);
    /* All but one are held, and that one has entries: told so again and again. */
    ck_assert_int_eq(describe_model(count, &info), LARDER_ELIMIT);
    ck_assert_int_eq(describe_model(7, &info), 0); /* known */
    larder_store_model_release(f.store, info.index);
    larder_store_model_release(f.store, info.index);
    sleep(1);
    uint32_t index = info.index;
    ck_assert_int_eq(describe_model(count, &info), 0);
    ck_assert_uint_eq(info.index, index);
    ck_assert_int_eq(describe_model(7, &info), LARDER_ELIMIT);
    /* Whose entries are stored is as it was. */
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 2, &err), 2);
    ck_assert_int_eq(larder_store_model_at(f.store, &info, f.model.index), 0);
    ck_assert_mem_eq(&info, &f.model, sizeof(info));
    fixture_reopen(&f);
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 2, &err), 2);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("store");
    TCase *tcase = tcase_create("store");
    fixture_add(tcase, &f);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, put_get_reopen_get);
    tcase_add_test(tcase, cached_becomes_durable);
    tcase_add_test(tcase, refuses_what_is_there_or_has_no_parent);
    tcase_add_test(tcase, remove_takes_the_subtree);
    tcase_add_test(tcase, a_better_quality_replaces);
    tcase_add_loop_test(tcase, a_longer_block_drops_the_tail_it_extends, 0, 2);
    tcase_add_test(tcase, a_tail_with_children_stays);
    tcase_add_test(tcase, opaque_blocks_have_no_tokens);
    tcase_add_test(tcase, keys_that_are_no_chain_are_refused);
    tcase_add_test(tcase, a_lease_that_may_not_grow);
    tcase_add_test(tcase, a_bad_directory_is_refused);
    tcase_add_test(tcase, a_parent_removed_under_a_put);
    tcase_add_test(tcase, a_record_larger_than_a_slab_of_now);
    tcase_add_test(tcase, models_that_nobody_uses_give_way);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
