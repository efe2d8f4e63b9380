/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: what became of an entry can be told afterwards, in bounded memory, also after a restart; a
 * damaged history file is passed over and nothing else suffers.
 * Method: the ring alone; then entries leave a store in each way that this suite can force. */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fixture.h"
#include "storage/history.h"
#include "storage/store.h"

static struct fixture f;

static enum larder_event last_event(uint64_t seed)
{
    struct larder_key key = block_key(seed);
    struct larder_event_info info;
    return larder_store_history(f.store, &info, 1, &key) ? info.what : LARDER_EVENT_NONE;
}

START_TEST(the_ring_keeps_the_latest)
{
    struct history history;
    ck_assert_int_eq(history_open(&history), 0);
    struct larder_key key = block_key(1);
    struct history_event found[4];
    ck_assert_uint_eq(history_find(&history, found, 4, &key), 0);
    history_note(&history, &key, LARDER_EVENT_REFUSED);
    history_note(&history, &key, LARDER_EVENT_REFUSED); /* one event */
    history_note(&history, &key, LARDER_EVENT_REMOVED);
    ck_assert_uint_eq(history_find(&history, found, 4, &key), 2);
    ck_assert_uint_eq(found[0].what, LARDER_EVENT_REMOVED);
    ck_assert_uint_eq(found[1].what, LARDER_EVENT_REFUSED);
    ck_assert_uint_eq(history.counts[LARDER_EVENT_REFUSED], 2);
    for (uint64_t i = 0; i < HISTORY_EVENTS_MAX - 1; i++) {
        struct larder_key other = {{0}};
        memcpy(other.bytes, &i, sizeof(i));
        history_note(&history, &other, LARDER_EVENT_EVICTED_SSD);
    }
    ck_assert_uint_eq(history_find(&history, found, 4, &key), 1);
    history_note(&history, &(struct larder_key){{255}}, LARDER_EVENT_LOST);
    ck_assert_uint_eq(history_find(&history, found, 4, &key), 0);

    /* A ring that went round comes back in order. */
    char path[SCRATCH_PATH_BYTES];
    snprintf(path, sizeof(path), "%s", f.path);
    history_save(&history, path);
    struct history again;
    ck_assert_int_eq(history_open(&again), 0);
    history_load(&again, path);
    ck_assert_uint_eq(again.noted, HISTORY_EVENTS_MAX);
    ck_assert_uint_eq(again.events[HISTORY_EVENTS_MAX - 1].what, LARDER_EVENT_LOST);
    ck_assert_uint_eq(again.events[0].print, 0);
    history_close(&again);
    history_close(&history);
}
END_TEST

START_TEST(each_way_out_has_its_reason)
{
    ck_assert_int_eq(last_event(1), LARDER_EVENT_NONE);
    fixture_put_chain(&f, 1, 3, 6000, LARDER_DURABLE);
    uint64_t removed;
    ck_assert_int_eq(fixture_remove(&f, 2, &removed), 0);
    ck_assert_uint_eq(removed, 2);
    ck_assert_int_eq(last_event(1), LARDER_EVENT_NONE);
    ck_assert_int_eq(last_event(2), LARDER_EVENT_REMOVED);
    ck_assert_int_eq(last_event(3), LARDER_EVENT_REMOVED);

    /* Far more than the SSD tier holds. */
    for (uint64_t chain = 1; chain < 60; chain++)
        fixture_put_chain(&f, chain * 100, 6, 60000, LARDER_DURABLE);
    uint64_t counts[LARDER_EVENT_END];
    larder_store_event_counts(f.store, counts);
    ck_assert_uint_eq(counts[LARDER_EVENT_EVICTED_SSD], fixture_stats(&f).evicted_ssd);
    ck_assert_uint_eq(counts[LARDER_EVENT_REMOVED], 2);
    uint64_t evicted = 0;
    for (uint64_t chain = 1; chain < 60; chain++) {
        for (uint64_t i = 0; i < 6; i++) {
            bool there = fixture_has(&f, chain * 100 + i);
            enum larder_event event = last_event(chain * 100 + i);
            ck_assert(there || event == LARDER_EVENT_EVICTED_SSD ||
                      event == LARDER_EVENT_EVICTED_HOST);
            evicted += !there;
        }
    }
    ck_assert_uint_gt(evicted, 50);
}
END_TEST

START_TEST(damage_is_told)
{
    fixture_put_chain(&f, 1, 2, 6000, LARDER_DURABLE);
    fixture_close(&f);
    fixture_flip(&f, 1, 2 * LARDER_PAGE_BYTES + 3000); /* in the first record's sections */
    ck_assert_int_eq(fixture_open(&f), 0);
    ck_assert_int_eq(fixture_verify(&f, 1), LARDER_ECORRUPT);
    for (int i = 0; i < 1000 && last_event(2) == LARDER_EVENT_NONE; i++)
        usleep(10000);
    ck_assert_int_eq(last_event(1), LARDER_EVENT_CORRUPT);
    ck_assert_int_eq(last_event(2), LARDER_EVENT_CORRUPT);
}
END_TEST

static void read_file(const char *path, void *data, size_t bytes)
{
    int fd = open(path, O_RDONLY);
    struct stat status;
    ck_assert_int_eq(fstat(fd, &status), 0);
    ck_assert_uint_eq((size_t)status.st_size, bytes);
    ck_assert_uint_eq((size_t)read(fd, data, bytes), bytes);
    close(fd);
}

static void write_file(const char *path, const void *data, size_t bytes)
{
    int fd = open(path, O_WRONLY | O_TRUNC);
    ck_assert_uint_eq((size_t)write(fd, data, bytes), bytes);
    close(fd);
}

START_TEST(a_restart_keeps_it_and_damage_loses_only_it)
{
    fixture_put_chain(&f, 1, 2, 6000, LARDER_DURABLE);
    uint64_t removed;
    ck_assert_int_eq(fixture_remove(&f, 2, &removed), 0);
    fixture_reopen(&f);
    ck_assert_int_eq(last_event(2), LARDER_EVENT_REMOVED);
    fixture_close(&f);

    char path[SCRATCH_PATH_BYTES + 16];
    snprintf(path, sizeof(path), "%s/history", f.path);
    uint8_t sound[24 + 16];
    read_file(path, sound, sizeof(sound));
    for (size_t at = 0; at < sizeof(sound); at++) {
        uint8_t damaged[sizeof(sound)];
        memcpy(damaged, sound, sizeof(sound));
        damaged[at] ^= 1;
        write_file(path, damaged, sizeof(damaged));
        ck_assert_int_eq(fixture_open(&f), 0);
        ck_assert_int_eq(last_event(2), LARDER_EVENT_NONE);
        ck_assert(fixture_has(&f, 1));
        fixture_close(&f);
    }
    write_file(path, sound, sizeof(sound) - 1);
    ck_assert_int_eq(fixture_open(&f), 0);
    ck_assert_int_eq(last_event(2), LARDER_EVENT_NONE);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("history");
    TCase *tests = tcase_create("history");
    fixture_add(tests, &f);
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, the_ring_keeps_the_latest);
    tcase_add_test(tests, each_way_out_has_its_reason);
    tcase_add_test(tests, damage_is_told);
    tcase_add_test(tests, a_restart_keeps_it_and_damage_loses_only_it);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
