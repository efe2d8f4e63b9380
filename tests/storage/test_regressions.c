/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: faults of the store that were found once do not come back.
 * Method: each as it was found, on a store over the simulated disk: the requests that met it, with
 * the disk's faults placed where they were. */
#include <check.h>
#include <errno.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "base/key.h"
#include "fixture.h"
#include "sim_disk.h"
#include "storage/store.h"

static struct fixture f;
static struct sim_disk *disk;

static void check(void)
{
    ck_assert_msg(larder_store_check(f.store) == 0, "%s", larder_error_message());
}

static void reopen(void)
{
    fixture_close(&f);
    f.options.io_override = sim_disk_open_io(disk);
    ck_assert_int_eq(fixture_open(&f), 0);
}

static void setup(void)
{
    fixture_begin(&f);
    /* The errors are on purpose here. */
    ck_assert_ptr_nonnull(freopen("/dev/null", "w", stderr));
    disk = sim_disk_create(1);
    reopen();
}

static void teardown(void)
{
    if (f.store)
        check();
    fixture_end(&f);
    sim_disk_destroy(disk);
}

/* --- keys -------------------------------------------------------------------------------------- */

static int lease_of(const struct larder_key *keys, uint32_t count)
{
    struct larder_ref refs[8];
    struct larder_lease *lease;
    uint32_t ref_count;
    bool ready;
    int err = larder_store_lease(f.store, &lease, refs, &ref_count, &ready, f.tenant.index, keys,
                                 count, LARDER_QUALITY_BLENDED, NULL, NULL);
    if (lease)
        larder_store_release(f.store, lease);
    return err < 0 ? err : (int)ref_count;
}

/* A root's key is all zeros; a run that reached the root took it for a block. */
START_TEST(a_key_of_zeros_is_no_block)
{
    fixture_put_chain(&f, 1, 2, 20000, LARDER_DURABLE);
    struct larder_key keys[5] = {[1] = block_key(1), [4] = block_key(2)};
    keys[3] = block_key(1);
    ck_assert_int_eq(lease_of(keys, 2), LARDER_EPROTO);
    ck_assert_int_eq(lease_of(keys + 2, 3), LARDER_EPROTO); /* 0, 1, 2 */
    struct larder_key zeros[4] = {[2] = block_key(1), [3] = block_key(2)};
    ck_assert_int_eq(lease_of(zeros, 4), LARDER_EPROTO);
    ck_assert_int_eq(lease_of(zeros, 3), 0);
    ck_assert_int_eq(lease_of(zeros, 1), 0);
    struct larder_match match;
    ck_assert_int_eq(larder_store_lookup(f.store, &match, f.tenant.index, &larder_key_root, keys, 2,
                                         LARDER_QUALITY_BLENDED, 256),
                     LARDER_EPROTO);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("regressions");
    TCase *tcase = tcase_create("all");
    tcase_set_timeout(tcase, 120);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, a_key_of_zeros_is_no_block);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
