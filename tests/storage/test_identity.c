/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: a store's directory is opened by one process, by a release that knows its format, and its
 * tenants' keys survive any crash and one bad file.
 * Method: files damaged and removed one by one; a child that dies before and in the middle of each
 * of its system calls in turn (they are interposed here), after which the store must open with
 * every tenant that was promised. */
#include "storage/identity.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "scratch.h"

/* --- system calls that change something ------------------------------------------------------- */

static int steps_left; /* the process ends at the step that makes it 0; never when it is 0 before */

static bool dies_now(void)
{
    return steps_left > 0 && --steps_left == 0;
}

#define INTERPOSED __attribute__((visibility("default")))

INTERPOSED ssize_t write(int fd, const void *bytes, size_t count)
{
    if (dies_now()) {
        if (syscall(SYS_write, fd, bytes, count / 2) < 0)
            _exit(10);
        _exit(9);
    }
    return syscall(SYS_write, fd, bytes, count);
}

INTERPOSED int fsync(int fd)
{
    if (dies_now())
        _exit(9);
    return (int)syscall(SYS_fsync, fd);
}

INTERPOSED int renameat(int from_fd, const char *from, int to_fd, const char *to)
{
    if (dies_now())
        _exit(9);
    return (int)syscall(SYS_renameat, from_fd, from, to_fd, to);
}

INTERPOSED int ftruncate(int fd, off_t bytes)
{
    if (dies_now())
        _exit(9);
    return (int)syscall(SYS_ftruncate, fd, bytes);
}

INTERPOSED int mkdir(const char *path, mode_t mode)
{
    if (dies_now())
        _exit(9);
    return (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}

/* --- helpers ---------------------------------------------------------------------------------- */

struct fixture {
    char scratch[SCRATCH_PATH_BYTES];
    char path[SCRATCH_PATH_BYTES + 16];
};

static void set_up(struct fixture *fixture)
{
    scratch_make(fixture->scratch);
    snprintf(fixture->path, sizeof(fixture->path), "%s/store", fixture->scratch);
}

static struct larder_identity *open_good(const struct fixture *fixture)
{
    struct larder_identity *identity;
    int err = larder_identity_open(&identity, fixture->path, false, NULL);
    ck_assert_msg(err == 0, "%s", larder_error_message());
    return identity;
}

static int open_bad(const struct fixture *fixture, bool must_exist)
{
    struct larder_identity *identity;
    int err = larder_identity_open(&identity, fixture->path, must_exist, NULL);
    ck_assert_int_lt(err, 0);
    ck_assert_ptr_null(identity);
    return err;
}

static struct larder_tenant_info add(struct larder_identity *identity, const char *name)
{
    uint32_t index;
    ck_assert_int_eq(larder_identity_add_tenant(identity, &index, name), 0);
    return *larder_identity_tenant(identity, index);
}

static void file_of(char out[SCRATCH_PATH_BYTES + 64], const struct fixture *fixture,
                    const char *name)
{
    snprintf(out, SCRATCH_PATH_BYTES + 64, "%s/%s", fixture->path, name);
}

static size_t read_bytes(const struct fixture *fixture, const char *name, uint8_t *out,
                         size_t capacity)
{
    char path[SCRATCH_PATH_BYTES + 64];
    file_of(path, fixture, name);
    FILE *file = fopen(path, "rb");
    ck_assert_ptr_nonnull(file);
    size_t bytes = fread(out, 1, capacity, file);
    fclose(file);
    return bytes;
}

static void write_bytes(const struct fixture *fixture, const char *name, const void *bytes,
                        size_t count)
{
    char path[SCRATCH_PATH_BYTES + 64];
    file_of(path, fixture, name);
    FILE *file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(bytes, 1, count, file), count);
    fclose(file);
}

static bool exists(const struct fixture *fixture, const char *name)
{
    char path[SCRATCH_PATH_BYTES + 64];
    file_of(path, fixture, name);
    return access(path, F_OK) == 0;
}

static void remove_file(const struct fixture *fixture, const char *name)
{
    char path[SCRATCH_PATH_BYTES + 64];
    file_of(path, fixture, name);
    ck_assert_int_eq(unlink(path), 0);
}

/* --- tests ------------------------------------------------------------------------------------ */

START_TEST(tenants_last)
{
    struct fixture fixture;
    set_up(&fixture);
    ck_assert_int_eq(open_bad(&fixture, true), LARDER_ENOTFOUND);
    struct larder_identity *identity = open_good(&fixture);
    struct stat st;
    ck_assert_int_eq(stat(fixture.path, &st), 0);
    ck_assert_uint_eq(st.st_mode & 0777, 0700);
    uint8_t store_id[16];
    memcpy(store_id, larder_identity_store_id(identity), 16);
    ck_assert_uint_eq(larder_identity_tenant_count(identity), 0);
    struct larder_tenant_info alice = add(identity, "alice");
    struct larder_tenant_info bob = add(identity, "bob.2_x-Y");
    ck_assert_mem_ne(alice.key, bob.key, 32);
    ck_assert_mem_ne(alice.id, bob.id, 16);
    struct larder_tenant_info again = add(identity, "alice");
    ck_assert_mem_eq(&again, &alice, sizeof(alice));
    ck_assert_uint_eq(larder_identity_tenant_count(identity), 2);
    larder_identity_close(identity);

    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(larder_identity_open(&identity, fixture.path, true, NULL), 0);
        ck_assert_mem_eq(larder_identity_store_id(identity), store_id, 16);
        again = add(identity, "bob.2_x-Y");
        ck_assert_mem_eq(&again, &bob, sizeof(bob));
        larder_identity_close(identity);
    }
    scratch_remove(fixture.scratch);
}
END_TEST

START_TEST(tenant_limits)
{
    struct fixture fixture;
    set_up(&fixture);
    struct larder_identity *identity = open_good(&fixture);
    uint32_t index;
    char name[LARDER_TENANT_NAME_MAX + 1];
    memset(name, 'a', sizeof(name));
    name[LARDER_TENANT_NAME_MAX] = '\0';
    static const char *const bad[] = {"", "a b", "a/b", "\xc3\xa4", "a\n"};
    for (size_t i = 0; i < LARDER_COUNT_OF(bad); i++)
        ck_assert_int_eq(larder_identity_add_tenant(identity, &index, bad[i]), -EINVAL);
    ck_assert_int_eq(larder_identity_add_tenant(identity, &index, name), -EINVAL);
    name[LARDER_TENANT_NAME_MAX - 1] = '\0';
    ck_assert_int_eq(larder_identity_add_tenant(identity, &index, name), 0);
    larder_identity_close(identity);
    scratch_remove(fixture.scratch);
}
END_TEST

START_TEST(locking)
{
    struct fixture fixture;
    set_up(&fixture);
    struct larder_identity *identity = open_good(&fixture);
    ck_assert_int_eq(open_bad(&fixture, false), LARDER_ELOCKED);
    char pid[32];
    snprintf(pid, sizeof(pid), "process %d", (int)getpid());
    ck_assert_ptr_nonnull(strstr(larder_error_message(), pid));
    pid_t child = fork();
    if (child == 0) {
        struct larder_identity *other;
        _exit(larder_identity_open(&other, fixture.path, false, NULL) == LARDER_ELOCKED ? 0 : 1);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
    larder_identity_close(identity);
    larder_identity_close(open_good(&fixture));
    scratch_remove(fixture.scratch);
}
END_TEST

START_TEST(unknown_formats)
{
    static const char *const texts[] = {
        "larder store 2\nid 00112233445566778899aabbccddeeff\n",
        "larder store 1\nid 00112233445566778899aabbccddee\n",
        "larder store 1\nid 00112233445566778899aabbccddeegg\n",
        "larder store 1\n",
        "larder store 10\nid 00112233445566778899aabbccddeeff\n",
        "",
        "\x1b[31mhello",
    };
    struct fixture fixture;
    set_up(&fixture);
    ck_assert_int_eq(mkdir(fixture.path, 0700), 0);
    for (size_t i = 0; i < LARDER_COUNT_OF(texts); i++) {
        write_bytes(&fixture, "format", texts[i], strlen(texts[i]));
        ck_assert_int_eq(open_bad(&fixture, false), LARDER_EVERSION);
        ck_assert_ptr_nonnull(strstr(larder_error_message(), fixture.path));
        ck_assert_ptr_null(strchr(larder_error_message(), '\x1b'));
        /* Untouched: not even a lock. */
        ck_assert(!exists(&fixture, "lock"));
        ck_assert(!exists(&fixture, "tenants"));
        uint8_t now[256];
        ck_assert_uint_eq(read_bytes(&fixture, "format", now, sizeof(now)), strlen(texts[i]));
        ck_assert_mem_eq(now, texts[i], strlen(texts[i]));
    }
    scratch_remove(fixture.scratch);
}
END_TEST

/* One copy damaged at any byte, shortened, lengthened or gone: repaired. Both: refused. */
START_TEST(bad_copies)
{
    static const char *const names[2] = {"tenants", "tenants.copy"};
    struct fixture fixture;
    set_up(&fixture);
    struct larder_identity *identity = open_good(&fixture);
    struct larder_tenant_info alice = add(identity, "alice");
    add(identity, "bob");
    larder_identity_close(identity);
    uint8_t good[1024], bytes[1024];
    size_t count = read_bytes(&fixture, "tenants", good, sizeof(good));

    for (size_t at = 0; at < count + 3; at++) {
        const char *name = names[at % 2];
        memcpy(bytes, good, count);
        bytes[count] = 0;
        if (at < count)
            bytes[at] ^= (uint8_t)(1u << at % 8);
        if (at == count + 2)
            remove_file(&fixture, name);
        else
            write_bytes(&fixture, name, bytes, at < count ? count : at == count ? at / 2 : at);
        identity = open_good(&fixture);
        struct larder_tenant_info found = add(identity, "alice");
        ck_assert_mem_eq(&found, &alice, sizeof(alice));
        ck_assert_uint_eq(larder_identity_tenant_count(identity), 2);
        larder_identity_close(identity);
        for (int i = 0; i < 2; i++) {
            ck_assert_uint_eq(read_bytes(&fixture, names[i], bytes, sizeof(bytes)), count);
            ck_assert_mem_eq(bytes, good, count);
        }
    }

    good[200] ^= 1;
    write_bytes(&fixture, names[0], good, count);
    write_bytes(&fixture, names[1], good, count);
    ck_assert_int_eq(open_bad(&fixture, false), LARDER_ECORRUPT);
    remove_file(&fixture, names[0]);
    remove_file(&fixture, names[1]);
    ck_assert_int_eq(open_bad(&fixture, false), LARDER_ECORRUPT);
    scratch_remove(fixture.scratch);
}
END_TEST

START_TEST(older_copy)
{
    struct fixture fixture;
    set_up(&fixture);
    struct larder_identity *identity = open_good(&fixture);
    add(identity, "alice");
    uint8_t older[1024];
    size_t count = read_bytes(&fixture, "tenants", older, sizeof(older));
    struct larder_tenant_info bob = add(identity, "bob");
    larder_identity_close(identity);
    /* A crash between the two copies leaves either one behind, or a restore from a backup does. */
    static const char *const names[2] = {"tenants", "tenants.copy"};
    for (int i = 0; i < 2; i++) {
        write_bytes(&fixture, names[i], older, count);
        identity = open_good(&fixture);
        struct larder_tenant_info found = add(identity, "bob");
        ck_assert_mem_eq(&found, &bob, sizeof(bob));
        larder_identity_close(identity);
    }
    /* Tenants of another store are nobody here. */
    struct fixture other;
    set_up(&other);
    larder_identity_close(open_good(&other));
    write_bytes(&other, "tenants", older, count);
    identity = open_good(&other);
    ck_assert_uint_eq(larder_identity_tenant_count(identity), 0);
    larder_identity_close(identity);
    /* Without `format`, tenants are not thrown away. */
    remove_file(&fixture, "format");
    ck_assert_int_eq(open_bad(&fixture, false), LARDER_ECORRUPT);
    scratch_remove(other.scratch);
    scratch_remove(fixture.scratch);
}
END_TEST

/* Makes the store and two tenants, telling each as it is durable. */
static void run_child(const struct fixture *fixture, int fd, int dies_at)
{
    static const char *const names[] = {"alice", "bob"};
    struct larder_identity *identity;
    steps_left = dies_at;
    if (larder_identity_open(&identity, fixture->path, false, NULL) != 0)
        _exit(1);
    for (int i = 0; i < 2; i++) {
        uint32_t index;
        if (larder_identity_add_tenant(identity, &index, names[i]) != 0)
            _exit(2);
        const struct larder_tenant_info *tenant = larder_identity_tenant(identity, index);
        if (syscall(SYS_write, fd, tenant, sizeof(*tenant)) != (long)sizeof(*tenant))
            _exit(3);
    }
    _exit(0);
}

START_TEST(dying_at_every_step)
{
    int steps = 0;
    for (bool finished = false; !finished; steps++) {
        struct fixture fixture;
        set_up(&fixture);
        struct larder_tenant_info told[2], found;
        uint32_t told_count = 0;
        int status = 0;
        /* Twice: the second process starts from what the first left, and dies too. */
        for (int life = 0; life < 2; life++) {
            int pipe_fds[2];
            ck_assert_int_eq(pipe(pipe_fds), 0);
            pid_t child = fork();
            if (child == 0)
                run_child(&fixture, pipe_fds[1], steps + 1);
            close(pipe_fds[1]);
            uint32_t lived = 0;
            while (read(pipe_fds[0], &found, sizeof(found)) == (ssize_t)sizeof(found)) {
                if (lived < told_count)
                    ck_assert_mem_eq(&found, &told[lived], sizeof(found));
                told[lived++] = found;
            }
            told_count = lived > told_count ? lived : told_count;
            close(pipe_fds[0]);
            ck_assert_int_eq(waitpid(child, &status, 0), child);
            ck_assert(WIFEXITED(status));
            ck_assert(WEXITSTATUS(status) == 9 || WEXITSTATUS(status) == 0);
            if (life == 0)
                finished = WEXITSTATUS(status) == 0;
        }
        struct larder_identity *identity = open_good(&fixture);
        ck_assert_uint_ge(larder_identity_tenant_count(identity), told_count);
        for (uint32_t i = 0; i < told_count; i++) {
            found = add(identity, told[i].name);
            ck_assert_mem_eq(&found, &told[i], sizeof(found));
        }
        add(identity, "carol");
        larder_identity_close(identity);
        scratch_remove(fixture.scratch);
        ck_assert_int_lt(steps, 200);
    }
    ck_assert_int_gt(steps, 20);
}
END_TEST

/* --- purge ------------------------------------------------------------------------------------ */

static pthread_mutex_t owner_lock = PTHREAD_MUTEX_INITIALIZER;

static int renew(struct larder_identity *identity, uint32_t index)
{
    bool unsure;
    return larder_identity_renew(identity, index, &owner_lock, &unsure);
}

static bool file_holds(const struct fixture *fixture, const char *name, const uint8_t key[32])
{
    uint8_t bytes[4096];
    size_t count = read_bytes(fixture, name, bytes, sizeof(bytes));
    return memmem(bytes, count, key, 32) != NULL;
}

static void renewing_child(const struct fixture *fixture, int fd, int dies_at)
{
    struct larder_identity *identity;
    if (larder_identity_open(&identity, fixture->path, true, NULL) != 0)
        _exit(1);
    steps_left = dies_at;
    if (renew(identity, 0) != 0)
        _exit(2);
    const struct larder_tenant_info *tenant = larder_identity_tenant(identity, 0);
    if (syscall(SYS_write, fd, tenant, sizeof(*tenant)) != (long)sizeof(*tenant))
        _exit(3);
    _exit(0);
}

/* The old keys or the new ones, whole; the new ones once they were promised, and then the old ones
 * are in no file. The other tenant is as before. */
START_TEST(dying_while_keys_are_replaced)
{
    int steps = 0;
    for (bool finished = false; !finished; steps++) {
        struct fixture fixture;
        set_up(&fixture);
        struct larder_identity *identity = open_good(&fixture);
        struct larder_tenant_info alice = add(identity, "alice"), bob = add(identity, "bob");
        larder_identity_close(identity);
        int pipe_fds[2], status;
        ck_assert_int_eq(pipe(pipe_fds), 0);
        pid_t child = fork();
        if (child == 0)
            renewing_child(&fixture, pipe_fds[1], steps + 1);
        close(pipe_fds[1]);
        struct larder_tenant_info told, found;
        bool promised = read(pipe_fds[0], &told, sizeof(told)) == (ssize_t)sizeof(told);
        close(pipe_fds[0]);
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        ck_assert(WIFEXITED(status));
        finished = WEXITSTATUS(status) == 0;
        ck_assert(finished || WEXITSTATUS(status) == 9);

        identity = open_good(&fixture);
        found = add(identity, "alice");
        bool is_old = memcmp(&found, &alice, sizeof(found)) == 0;
        ck_assert(!promised || memcmp(&found, &told, sizeof(found)) == 0);
        ck_assert(is_old || (memcmp(found.id, alice.id, sizeof(found.id)) != 0 &&
                             memcmp(found.key, alice.key, sizeof(found.key)) != 0));
        if (!is_old) {
            ck_assert(!file_holds(&fixture, "tenants", alice.key));
            ck_assert(!file_holds(&fixture, "tenants.copy", alice.key));
        }
        found = add(identity, "bob");
        ck_assert_mem_eq(&found, &bob, sizeof(bob));
        larder_identity_close(identity);
        scratch_remove(fixture.scratch);
        ck_assert_int_lt(steps, 100);
    }
    ck_assert_int_gt(steps, 8);
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("identity");
    TCase *tcase = tcase_create("identity");
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, tenants_last);
    tcase_add_test(tcase, tenant_limits);
    tcase_add_test(tcase, locking);
    tcase_add_test(tcase, unknown_formats);
    tcase_add_test(tcase, bad_copies);
    tcase_add_test(tcase, older_copy);
    tcase_add_test(tcase, dying_at_every_step);
    tcase_add_test(tcase, dying_while_keys_are_replaced);
    suite_add_tcase(s, tcase);
    return s;
}

int main(void)
{
    larder_log_set_level(LARDER_LOG_ERROR);
    SRunner *runner = srunner_create(suite());
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
