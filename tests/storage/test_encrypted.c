/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: an encrypted store opens with its key only, shows nothing of what is in it to who reads the
 * disk, believes nothing that was moved, and never uses a nonce twice.
 * Method: files compared, searched and exchanged; crypt_seal_begin() and crypt_set_key() are
 * wrapped by the linker, and every (key, nonce) of lives with failing writes is kept. The store's
 * other suites run with encryption too: see CMakeLists.txt. */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "fixture.h"
#include "sim_disk.h"
#include "storage/crypt.h"
#include "storage/io.h"

/* --- nonces ----------------------------------------------------------------------------------- */

struct use {
    uint8_t key[CRYPT_KEY_BYTES];
    uint8_t nonce[CRYPT_NONCE_BYTES];
};

#define USES_MAX 65536u
static struct use uses[USES_MAX];
static uint32_t use_count;
/* The key that each cipher has; there are few. */
static struct {
    const struct crypt *crypt;
    uint8_t key[CRYPT_KEY_BYTES];
} current[16];

bool __real_crypt_set_key(struct crypt *crypt, const uint8_t key[CRYPT_KEY_BYTES]);
bool __real_crypt_seal_begin(struct crypt *crypt, const uint8_t nonce[CRYPT_NONCE_BYTES]);
bool __wrap_crypt_set_key(struct crypt *crypt, const uint8_t key[CRYPT_KEY_BYTES]);
bool __wrap_crypt_seal_begin(struct crypt *crypt, const uint8_t nonce[CRYPT_NONCE_BYTES]);

static uint32_t place_of(const struct crypt *crypt)
{
    uint32_t i = 0;
    while (i + 1 < LARDER_COUNT_OF(current) && current[i].crypt && current[i].crypt != crypt)
        i++;
    current[i].crypt = crypt;
    return i;
}

bool __wrap_crypt_set_key(struct crypt *crypt, const uint8_t key[CRYPT_KEY_BYTES])
{
    memcpy(current[place_of(crypt)].key, key, CRYPT_KEY_BYTES);
    return __real_crypt_set_key(crypt, key);
}

bool __wrap_crypt_seal_begin(struct crypt *crypt, const uint8_t nonce[CRYPT_NONCE_BYTES])
{
    must(use_count < USES_MAX);
    memcpy(uses[use_count].key, current[place_of(crypt)].key, CRYPT_KEY_BYTES);
    memcpy(uses[use_count].nonce, nonce, CRYPT_NONCE_BYTES);
    use_count++;
    return __real_crypt_seal_begin(crypt, nonce);
}

static int compare_uses(const void *a, const void *b)
{
    return memcmp(a, b, sizeof(struct use));
}

static void expect_no_nonce_twice(void)
{
    qsort(uses, use_count, sizeof(uses[0]), compare_uses);
    for (uint32_t i = 1; i < use_count; i++)
        ck_assert_int_ne(compare_uses(&uses[i - 1], &uses[i]), 0);
}

/* Lives with failing writes and syncs, full disks, and power cuts. */
START_TEST(no_nonce_is_used_twice)
{
    struct fixture fixture;
    fixture_begin(&fixture);
    fixture.options.key_file = fixture_make_key(&fixture);
    struct sim_disk *disk = sim_disk_create(4711);
    use_count = 0;
    uint64_t seed = 0;
    uint32_t failed = 0;
    for (uint32_t life = 0; life < 24; life++) {
        struct sim_faults faults = {.error_op = SIM_ANY_OP};
        sim_disk_set_faults(disk, &faults);
        fixture.options.io_override = sim_disk_open_io(disk);
        if (life % 6 == 5)
            fixture_remove_index(&fixture); /* then a segment's number may come again */
        ck_assert_msg(fixture_open(&fixture) == 0, "%s", larder_error_message());
        faults.error_op = life % 3 == 2 ? (int)LARDER_IO_SYNC : (int)LARDER_IO_WRITE;
        for (uint32_t i = 0; i < 12; i++) {
            faults.error_at = i % 4 == 1 ? 1 + life % 5 : 0;
            sim_disk_set_faults(disk, &faults);
            struct block block = {.seed = ++seed * 1000,
                                  .token_count = 16,
                                  .section_bytes = i % 5 ? 3000 : 200000,
                                  .tenant = fixture.tenant.index};
            failed += fixture_put(&fixture, &block, LARDER_DURABLE) < 0;
        }
        if (life % 2)
            sim_disk_fail_power_at(disk, sim_disk_steps(disk) + 1);
        fixture_close(&fixture);
        sim_disk_crash(disk);
    }
    ck_assert_uint_gt(failed, 10);
    ck_assert_uint_gt(use_count, 300);
    expect_no_nonce_twice();
    sim_disk_destroy(disk);
    fixture_end(&fixture);
}
END_TEST

/* --- files ------------------------------------------------------------------------------------ */

/* Every file of the store but its lock and the test's key, one behind another with its name. */
static uint8_t *read_all(const char *path, size_t *bytes, bool with_index)
{
    static const char *const folders[] = {"", "segments", "index"};
    uint8_t *all = NULL;
    *bytes = 0;
    for (size_t i = 0; i < (with_index ? 3 : 2); i++) {
        char folder[SCRATCH_PATH_BYTES + 16];
        snprintf(folder, sizeof(folder), "%s/%s", path, folders[i]);
        struct dirent **names;
        int count = scandir(folder, &names, NULL, alphasort);
        for (int at = 0; at < count; at++) {
            char file[SCRATCH_PATH_BYTES + 300];
            snprintf(file, sizeof(file), "%s/%s", folder, names[at]->d_name);
            struct stat st;
            int fd = open(file, O_RDONLY);
            if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) &&
                strcmp(names[at]->d_name, "lock") != 0 && !strstr(names[at]->d_name, ".key")) {
                all = realloc(all, *bytes + (size_t)st.st_size + 256);
                memset(all + *bytes, 0, 256);
                memcpy(all + *bytes, names[at]->d_name, strlen(names[at]->d_name));
                *bytes += 256;
                ck_assert_int_eq(read(fd, all + *bytes, (size_t)st.st_size), st.st_size);
                *bytes += (size_t)st.st_size;
            }
            if (fd >= 0)
                close(fd);
            free(names[at]);
        }
        free(names);
    }
    return all;
}

static void write_key(const struct fixture *fixture, const char *name, uint8_t first,
                      char out[SCRATCH_PATH_BYTES + 16])
{
    uint8_t key[32] = {first};
    snprintf(out, SCRATCH_PATH_BYTES + 16, "%s/%s.key", fixture->path, name);
    unlink(out);
    int fd = open(out, O_WRONLY | O_CREAT, 0600);
    ck_assert_int_eq(write(fd, key, sizeof(key)), (ssize_t)sizeof(key));
    close(fd);
}

START_TEST(only_its_own_key_opens)
{
    struct fixture fixture;
    fixture_begin(&fixture);
    char right[SCRATCH_PATH_BYTES + 16], wrong[SCRATCH_PATH_BYTES + 16];
    write_key(&fixture, "right", 1, right);
    write_key(&fixture, "wrong", 2, wrong);
    const char *const kinds[] = {right, NULL};
    for (int i = 0; i < 2; i++) {
        const char *own = kinds[i];
        fixture.options.key_file = own;
        ck_assert_int_eq(fixture_open(&fixture), 0);
        fixture_put_chain(&fixture, 1, 5, 5000, LARDER_DURABLE);
        fixture_close(&fixture);
        size_t before_bytes, after_bytes;
        uint8_t *before = read_all(fixture.path, &before_bytes, true);
        const char *const others[] = {wrong, own ? NULL : right, "/nowhere/key"};
        for (size_t at = 0; at < LARDER_COUNT_OF(others); at++) {
            fixture.options.key_file = others[at];
            ck_assert_int_eq(fixture_open(&fixture), LARDER_ECONFIG);
            ck_assert_ptr_nonnull(strstr(larder_error_message(), "key_file"));
        }
        uint8_t *after = read_all(fixture.path, &after_bytes, true);
        ck_assert_uint_eq(after_bytes, before_bytes);
        ck_assert_mem_eq(after, before, before_bytes);
        free(before);
        free(after);
        fixture.options.key_file = own;
        ck_assert_int_eq(fixture_open(&fixture), 0);
        int err;
        ck_assert_uint_eq(fixture_get_chain(&fixture, 1, 5, &err), 5);
        fixture_end(&fixture);
        fixture_begin(&fixture);
        write_key(&fixture, "right", 1, right);
        write_key(&fixture, "wrong", 2, wrong);
    }
    fixture_end(&fixture);
}
END_TEST

static bool is_in(const uint8_t *all, size_t bytes, const void *what, size_t count)
{
    return memmem(all, bytes, what, count) != NULL;
}

/* What a plain store shows, and an encrypted one must not. */
START_TEST(nothing_of_it_is_in_the_files)
{
    for (int encrypted = 0; encrypted < 2; encrypted++) {
        struct fixture fixture;
        fixture_begin(&fixture);
        fixture.options.key_file = encrypted ? fixture_make_key(&fixture) : NULL;
        ck_assert_int_eq(fixture_open(&fixture), 0);
        fixture_put_chain(&fixture, 1, 8, 70000, LARDER_DURABLE);
        uint64_t removed;
        ck_assert_int_eq(fixture_remove(&fixture, 8, &removed), 0);

        struct larder_key key = block_key(1);
        struct larder_ref ref;
        struct larder_lease *lease;
        uint32_t count = 1;
        bool ready;
        const struct larder_want want = {.tenant = fixture.tenant.index,
                                         .keys = &key,
                                         .key_count = 1,
                                         .worst = LARDER_QUALITY_BLENDED};
        ck_assert_int_eq(
            larder_store_lease(fixture.store, &lease, &ref, &count, &ready, &want, NULL, NULL), 0);
        ck_assert(ready);
        const struct larder_record *record =
            larder_store_ref_record(fixture.store, fixture.tenant.index, &ref);
        uint8_t tokens[64], kv[3][64], directory[48];
        memcpy(tokens, larder_record_tokens(record) + 10, sizeof(tokens));
        const struct larder_section *sections = larder_record_directory(record);
        memcpy(directory, sections, 32); /* up to its tag */
        for (uint32_t i = 0; i < 3; i++)
            memcpy(kv[i], (const uint8_t *)record + sections[i % 2].offset + 20000ul * i, 64);
        larder_store_release(fixture.store, lease);
        fixture_close(&fixture);

        size_t bytes;
        uint8_t *all = read_all(fixture.path, &bytes, true);
        bool plain = !encrypted;
        ck_assert(is_in(all, bytes, tokens, sizeof(tokens)) == plain);
        ck_assert(is_in(all, bytes, directory, 32) == plain);
        for (uint32_t i = 0; i < 3; i++)
            ck_assert(is_in(all, bytes, kv[i], sizeof(kv[i])) == plain);
        ck_assert(is_in(all, bytes, fixture.tenant.key, sizeof(fixture.tenant.key)) == plain);
        free(all);
        fixture_end(&fixture);
    }
}
END_TEST

static void swap_pages(const struct fixture *fixture, uint64_t one, uint64_t two, size_t bytes)
{
    char path[SCRATCH_PATH_BYTES + 32];
    snprintf(path, sizeof(path), "%s/segments/00000001.seg", fixture->path);
    int fd = open(path, O_RDWR);
    uint8_t *a = malloc(bytes), *b = malloc(bytes);
    ck_assert_int_eq(pread(fd, a, bytes, (off_t)one), (ssize_t)bytes);
    ck_assert_int_eq(pread(fd, b, bytes, (off_t)two), (ssize_t)bytes);
    ck_assert_int_eq(pwrite(fd, a, bytes, (off_t)two), (ssize_t)bytes);
    ck_assert_int_eq(pwrite(fd, b, bytes, (off_t)one), (ssize_t)bytes);
    free(a);
    free(b);
    close(fd);
}

static struct larder_entry_info find(const struct fixture *fixture, uint64_t seed)
{
    struct larder_key key = block_key(seed);
    struct larder_entry_info info;
    ck_assert_int_eq(larder_store_find(fixture->store, &info, &key), 0);
    return info;
}

START_TEST(swapped_records_are_misses)
{
    struct fixture fixture;
    fixture_begin(&fixture);
    fixture.options.key_file = fixture_make_key(&fixture);
    ck_assert_int_eq(fixture_open(&fixture), 0);
    for (uint64_t seed = 1000; seed <= 3000; seed += 1000)
        fixture_put_chain(&fixture, seed, 1, 9000, LARDER_DURABLE);
    struct larder_entry_info one = find(&fixture, 1000);
    struct larder_entry_info two = find(&fixture, 2000);
    ck_assert_uint_eq(one.record_bytes, two.record_bytes);
    fixture_close(&fixture);
    swap_pages(&fixture, (uint64_t)one.segment_page * 4096, (uint64_t)two.segment_page * 4096,
               one.record_bytes);
    ck_assert_int_eq(fixture_open(&fixture), 0);
    int err;
    larder_log_set_level(LARDER_LOG_ERROR - 1);
    ck_assert_uint_eq(fixture_get_chain(&fixture, 1000, 1, &err), 0);
    ck_assert_uint_eq(fixture_get_chain(&fixture, 2000, 1, &err), 0);
    ck_assert_uint_eq(fixture_get_chain(&fixture, 3000, 1, &err), 1);
    larder_log_set_level(LARDER_LOG_ERROR);
    ck_assert_uint_eq(fixture_stats(&fixture).corrupt, 2);
    fixture_end(&fixture);
}
END_TEST

/* The salt is there twice; without it its segment is a miss and no more than that. */
START_TEST(a_lost_salt_is_a_miss)
{
    struct fixture fixture;
    fixture_begin(&fixture);
    fixture.options.key_file = fixture_make_key(&fixture);
    ck_assert_int_eq(fixture_open(&fixture), 0);
    fixture_put_chain(&fixture, 1, 4, 9000, LARDER_DURABLE);
    larder_log_set_level(LARDER_LOG_ERROR - 1);
    int err;
    for (int which = 0; which < 3; which++) {
        fixture_close(&fixture);
        if (which > 0)
            fixture_flip(&fixture, 1, which == 1 ? 40 : 2048 + 40);
        if (which == 1)
            fixture_remove_index(&fixture);
        ck_assert_int_eq(fixture_open(&fixture), 0);
        ck_assert_uint_eq(fixture_get_chain(&fixture, 1, 4, &err), which < 2 ? 4 : 0);
    }
    fixture_put_chain(&fixture, 11, 4, 9000, LARDER_DURABLE);
    fixture_reopen(&fixture);
    ck_assert_uint_eq(fixture_get_chain(&fixture, 11, 4, &err), 4);
    larder_log_set_level(LARDER_LOG_ERROR);
    fixture_end(&fixture);
}
END_TEST

/* --- another key ------------------------------------------------------------------------------ */

static void copy_file(const struct fixture *fixture, const char *from, const char *to)
{
    char command[3 * SCRATCH_PATH_BYTES];
    snprintf(command, sizeof(command), "cp %s/%s %s/%s", fixture->path, from, fixture->path, to);
    ck_assert_int_eq(system(command), 0);
}

START_TEST(the_key_can_be_changed)
{
    struct fixture fixture;
    fixture_begin(&fixture);
    char old[SCRATCH_PATH_BYTES + 16], new[SCRATCH_PATH_BYTES + 16];
    write_key(&fixture, "old", 1, old);
    write_key(&fixture, "new", 2, new);
    fixture.options.key_file = old;
    ck_assert_int_eq(fixture_open(&fixture), 0);
    fixture_put_chain(&fixture, 1, 3, 9000, LARDER_DURABLE);
    struct larder_tenant_info tenant = fixture.tenant;
    ck_assert_int_eq(larder_store_rewrap(fixture.path, old, new), LARDER_ELOCKED);
    fixture_close(&fixture);
    ck_assert_int_eq(larder_store_rewrap(fixture.path, new, old), LARDER_ECONFIG);
    ck_assert_int_eq(larder_store_rewrap(fixture.path, old, "/nowhere/key"), LARDER_ECONFIG);
    copy_file(&fixture, "tenants.copy", "before");
    ck_assert_int_eq(larder_store_rewrap(fixture.path, old, new), 0);
    ck_assert_int_eq(fixture_open(&fixture), LARDER_ECONFIG);

    /* Cut short, it leaves a file under each key: either opens, and then only that one does. */
    for (int i = 0; i < 2; i++) {
        copy_file(&fixture, "before", "tenants.copy");
        fixture.options.key_file = i ? old : new;
        ck_assert_int_eq(fixture_open(&fixture), 0);
        ck_assert_mem_eq(&fixture.tenant, &tenant, sizeof(tenant));
        int err;
        ck_assert_uint_eq(fixture_get_chain(&fixture, 1, 3, &err), 3);
        fixture_close(&fixture);
        fixture.options.key_file = i ? new : old;
        ck_assert_int_eq(fixture_open(&fixture), LARDER_ECONFIG);
    }
    fixture_end(&fixture);
}
END_TEST

int main(void)
{
    larder_log_set_level(LARDER_LOG_ERROR);
    Suite *suite = suite_create("encrypted");
    TCase *all = tcase_create("all");
    tcase_set_timeout(all, 120);
    tcase_add_test(all, only_its_own_key_opens);
    tcase_add_test(all, nothing_of_it_is_in_the_files);
    tcase_add_test(all, swapped_records_are_misses);
    tcase_add_test(all, a_lost_salt_is_a_miss);
    tcase_add_test(all, the_key_can_be_changed);
    tcase_add_test(all, no_nonce_is_used_twice);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
