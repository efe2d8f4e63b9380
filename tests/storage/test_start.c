/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: a large store starts fast and its table stays small; the numbers are printed.
 * Method: an index of chains of 100 blocks over one sparse segment file, made without a store. The
 * count is LARDER_START_ENTRIES, 100,000 by default (a second is promised for
 * 1,000,000). */
#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base/key.h"
#include "fixture.h"
#include "storage/index.h"
#include "storage/store.h"

#define CHAIN_BLOCKS     100u
#define TRANSACTION_PUTS 10000u
/* Whatever the count is: tables that double, LMDB's lists of pages, threads. */
#define FIXED_BYTES     (9u << 20)
#define PROMISED_BYTES  175u
#define SLOW_MACHINE_MS 20000u
#define COUNT_DEFAULT   100000u

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* Of this process and its children, among them the one that looks at the index before it is opened:
 * what the start would take with nothing running beside. */
static uint64_t cpu_us(void)
{
    uint64_t us = 0;
    const int who[] = {RUSAGE_SELF, RUSAGE_CHILDREN};
    for (int i = 0; i < 2; i++) {
        struct rusage usage;
        getrusage(who[i], &usage);
        us += (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000;
        us += (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    }
    return us;
}

/* Resident memory that is not a file's: LMDB's map does not count. */
static uint64_t anonymous_bytes(void)
{
    FILE *file = fopen("/proc/self/status", "r");
    ck_assert_ptr_nonnull(file);
    char line[128];
    unsigned long long kilobytes = 0;
    while (fgets(line, sizeof(line), file)) {
        if (sscanf(line, "RssAnon: %llu kB", &kilobytes) == 1)
            break;
    }
    fclose(file);
    return kilobytes * 1024;
}

static void make_index(struct fixture *f, uint32_t count)
{
    char path[SCRATCH_PATH_BYTES + 32];
    snprintf(path, sizeof(path), "%s/index", f->path);
    struct larder_index *index;
    bool created;
    ck_assert_int_eq(larder_index_open(&index, path, &created), 0);
    struct larder_key parent = larder_key_root;
    for (uint32_t first = 0; first < count; first += TRANSACTION_PUTS) {
        ck_assert_int_eq(larder_index_begin(index), 0);
        if (first == 0) {
            struct index_segment row = {.committed_bytes = (count + 1ull) * 4096};
            ck_assert_int_eq(larder_index_put_segment(index, 1, &row), 0);
            ck_assert_int_eq(larder_index_put_model(index, &f->model.fingerprint, &f->model.desc),
                             0);
        }
        for (uint32_t i = first; i < first + TRANSACTION_PUTS && i < count; i++) {
            if (i % CHAIN_BLOCKS == 0)
                parent = larder_key_root;
            struct larder_key key = block_key(i);
            struct index_entry entry = {.generation = i + 1,
                                        .record_bytes = 4096,
                                        .raw_bytes = 3000,
                                        .segment_id = 1,
                                        .segment_page = i + 1,
                                        .token_count = 256,
                                        .head_bytes = 2000,
                                        .recipe = "raw"};
            memcpy(entry.parent, parent.bytes, 32);
            memcpy(entry.tenant, f->tenant.id, 16);
            memcpy(entry.model, f->model.fingerprint.bytes, 32);
            ck_assert_int_eq(larder_index_put_entry(index, &key, 0, &entry), 0);
            parent = key;
        }
        ck_assert_int_eq(larder_index_commit(index, count + 1ull), 0);
    }
    larder_index_close(index);
    snprintf(path, sizeof(path), "%s/segments/00000001.seg", f->path);
    int fd = open(path, O_CREAT | O_RDWR, 0600);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(ftruncate(fd, (off_t)((count + 1ull) * 4096)), 0);
    close(fd);
}

START_TEST(start)
{
    const char *text = getenv("LARDER_START_ENTRIES");
    uint32_t count = text ? (uint32_t)strtoul(text, NULL, 10) : COUNT_DEFAULT;
    struct fixture f;
    fixture_begin(&f);
    ck_assert_int_eq(fixture_open(&f), 0);
    fixture_close(&f);
    make_index(&f, count);
    f.options.ssd_bytes = 64ull << 30;

    uint64_t before = anonymous_bytes();
    uint64_t began_us = now_us();
    uint64_t began_cpu_us = cpu_us();
    ck_assert_int_eq(fixture_open(&f), 0);
    uint64_t took_us = now_us() - began_us;
    uint64_t took_cpu_us = cpu_us() - began_cpu_us;
    uint64_t bytes = anonymous_bytes() - before;
    printf("start with %u entries: %.0f ms (%.0f ms of CPU), %.0f bytes of memory an entry\n",
           count, (double)took_us / 1000, (double)took_cpu_us / 1000, (double)bytes / count);
    fflush(stdout);
    ck_assert_uint_eq(fixture_stats(&f).entries, count);
    ck_assert_uint_eq(fixture_stats(&f).recovered_from_tail, 0);
    fixture_check(&f);
    struct larder_key keys[CHAIN_BLOCKS];
    for (uint32_t i = 0; i < CHAIN_BLOCKS; i++)
        keys[i] = block_key(i);
    struct larder_match match;
    ck_assert_int_eq(larder_store_lookup(f.store, &match,
                                         &(struct larder_want){.tenant = f.tenant.index,
                                                               .keys = keys,
                                                               .key_count = CHAIN_BLOCKS,
                                                               .worst = LARDER_QUALITY_EXACT},
                                         &larder_key_root, 256),
                     0);
    ck_assert_uint_eq(match.count, CHAIN_BLOCKS);
    /* Wide of the mark on purpose: other work runs beside tests. */
    ck_assert_uint_lt(took_us, SLOW_MACHINE_MS * 1000ull);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    ck_assert_uint_lt(bytes, (uint64_t)count * PROMISED_BYTES + FIXED_BYTES);
#endif
    fixture_end(&f);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("start");
    TCase *tcase = tcase_create("start");
    tcase_set_timeout(tcase, 240);
    tcase_add_test(tcase, start);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
