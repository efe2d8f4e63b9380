/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: the index gives back exactly what was committed, or says that it is damaged; never a wrong
 * value, never a crash, whatever happened to its file.
 * Method: random transactions against a list in memory; the process killed and the disk failing
 * during commits (fdatasync and pwrite of LMDB are interposed here); hundreds of bits, pages and
 * lengths of the file changed, after which the index must be refused, or be exact and go on. */
#include "storage/index.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/log.h"
#include "scratch.h"

/* --- LMDB's system calls ---------------------------------------------------------------------- */

static bool sync_fails;
static bool sync_skipped; /* where no power loss is at stake */
static bool write_fails;

__attribute__((visibility("default"))) int fdatasync(int fd)
{
    if (sync_fails) {
        errno = EIO;
        return -1;
    }
    return sync_skipped ? 0 : (int)syscall(SYS_fdatasync, fd);
}

__attribute__((visibility("default"))) ssize_t pwrite(int fd, const void *bytes, size_t count,
                                                      off_t offset)
{
    if (write_fails) {
        errno = ENOSPC;
        return -1;
    }
    return syscall(SYS_pwrite64, fd, bytes, count, offset);
}

/* --- a copy in memory ------------------------------------------------------------------------- */

#define ROWS_MAX 4096u

/* Row n is what the index has under the key made of n. */
struct model {
    bool there[ROWS_MAX];
    struct index_entry entries[ROWS_MAX];
    uint64_t generation;
};

static uint64_t random_state = 1;

static uint64_t draw(uint64_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % limit;
}

static struct larder_key key_of(uint32_t row)
{
    struct larder_key key;
    ck_assert_int_eq(larder_sha256(&key, &row, sizeof(row)), 0);
    memcpy(key.bytes, &row, sizeof(row));
    return key;
}

static struct index_entry entry_of(uint64_t number)
{
    struct index_entry entry = {
        .generation = number, .record_bytes = number * 4096, .segment_id = (uint32_t)number % 7};
    snprintf(entry.recipe, sizeof(entry.recipe), "recipe %u", (unsigned)number);
    return entry;
}

struct loaded {
    const struct model *model;
    uint32_t entries;
    uint32_t segments;
    uint32_t models;
    uint32_t marks;
    int wrong;
};

static int on_entry(void *context, const struct larder_key *key, uint32_t variant,
                    const struct index_entry *entry)
{
    struct loaded *loaded = context;
    uint32_t row;
    memcpy(&row, key->bytes, sizeof(row));
    loaded->entries++;
    struct larder_key whole = key_of(row);
    loaded->wrong += variant != 0 || !larder_key_equal(&whole, key);
    if (loaded->model)
        loaded->wrong += row >= ROWS_MAX || !loaded->model->there[row] ||
                         memcmp(entry, &loaded->model->entries[row], sizeof(*entry)) != 0;
    return 0;
}

static int on_segment(void *context, uint32_t segment_id, const struct index_segment *segment)
{
    struct loaded *loaded = context;
    loaded->segments++;
    loaded->wrong += segment->committed_bytes != segment_id * 4096ull;
    return 0;
}

/* The mark of row n says n; deleted ones must not be met. */
static int on_mark(void *context, const struct larder_key *key, const struct index_mark *mark)
{
    struct loaded *loaded = context;
    uint32_t row;
    memcpy(&row, key->bytes, sizeof(row));
    loaded->marks++;
    loaded->wrong += mark->value.expires_s != row || mark->segment_id != row + 1 || row % 2 == 0;
    return 0;
}

static int on_model(void *context, const struct larder_key *fingerprint,
                    const struct larder_model_desc *desc)
{
    struct loaded *loaded = context;
    struct larder_key key = key_of(desc->layers);
    loaded->models++;
    loaded->wrong += !larder_key_equal(&key, fingerprint);
    return 0;
}

static int load(struct index_visitor *visitor, struct loaded *loaded, struct larder_index *index,
                const struct model *model, uint64_t *generation)
{
    *loaded = (struct loaded){.model = model};
    *visitor = (struct index_visitor){.context = loaded,
                                      .entry = on_entry,
                                      .segment = on_segment,
                                      .mark = on_mark,
                                      .model = on_model};
    return larder_index_load(index, visitor, generation);
}

/* Does the index hold the model, no more and no less? */
static bool is_exact(struct larder_index *index, const struct model *model)
{
    struct index_visitor visitor;
    struct loaded loaded;
    uint64_t generation;
    uint32_t rows = 0;
    for (uint32_t i = 0; i < ROWS_MAX; i++)
        rows += model->there[i];
    return load(&visitor, &loaded, index, model, &generation) == 0 && loaded.wrong == 0 &&
           loaded.entries == rows && generation == model->generation;
}

/* Puts and deletes at random, in the index's live transaction and in the model. */
static int change(struct larder_index *index, struct model *model, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t row = (uint32_t)draw(ROWS_MAX);
        struct larder_key key = key_of(row);
        model->there[row] = draw(4) > 0;
        if (model->there[row]) {
            model->entries[row] = entry_of(draw(1u << 30));
            LARDER_TRY(larder_index_put_entry(index, &key, 0, &model->entries[row]));
        } else {
            LARDER_TRY(larder_index_delete_entry(index, &key, 0));
        }
    }
    model->generation++;
    return 0;
}

static int transaction(struct larder_index *index, struct model *model, uint32_t count)
{
    LARDER_TRY(larder_index_begin(index));
    LARDER_TRY(change(index, model, count));
    return larder_index_commit(index, model->generation);
}

struct fixture {
    char directory[SCRATCH_PATH_BYTES];
    char path[SCRATCH_PATH_BYTES + 16];
    char file[SCRATCH_PATH_BYTES + 32];
};

static void set_up(struct fixture *fixture)
{
    scratch_make(fixture->directory);
    snprintf(fixture->path, sizeof(fixture->path), "%s/index", fixture->directory);
    snprintf(fixture->file, sizeof(fixture->file), "%s/data.mdb", fixture->path);
}

static struct larder_index *open_good(const struct fixture *fixture, bool expect_created)
{
    struct larder_index *index;
    bool created;
    int err = larder_index_open(&index, fixture->path, &created);
    ck_assert_msg(err == 0, "%s", larder_error_message());
    ck_assert_int_eq(created, expect_created);
    return index;
}

static struct model *new_model(void)
{
    struct model *model = calloc(1, sizeof(*model));
    ck_assert_ptr_nonnull(model);
    return model;
}

/* --- what it is for --------------------------------------------------------------------------- */

START_TEST(commits)
{
    struct fixture fixture;
    set_up(&fixture);
    struct model *model = new_model();
    struct larder_index *index = open_good(&fixture, true);
    struct stat st;
    ck_assert_int_eq(stat(fixture.path, &st), 0);
    ck_assert_uint_eq(st.st_mode & 0777, 0700);
    larder_index_close(index);
    /* Never committed: still new. */
    index = open_good(&fixture, true);
    for (int round = 0; round < 30; round++) {
        ck_assert_int_eq(transaction(index, model, 200), 0);
        if (round % 10 == 0) {
            struct model *dropped = new_model();
            ck_assert_int_eq(larder_index_begin(index), 0);
            ck_assert_int_eq(change(index, dropped, 100), 0);
            larder_index_abort(index);
            free(dropped);
            larder_index_close(index);
            index = open_good(&fixture, false);
        }
        ck_assert(is_exact(index, model));
    }
    larder_index_close(index);
    free(model);
    scratch_remove(fixture.directory);
}
END_TEST

static bool disk_is_full;

int __wrap_fallocate(int fd, int mode, off_t offset, off_t bytes);
int __real_fallocate(int fd, int mode, off_t offset, off_t bytes);

int __wrap_fallocate(int fd, int mode, off_t offset, off_t bytes)
{
    if (disk_is_full) {
        errno = ENOSPC;
        return -1;
    }
    return __real_fallocate(fd, mode, offset, bytes);
}

static void put_many(struct larder_index *index, uint32_t first, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct larder_key key = {{0}};
        uint32_t number = __builtin_bswap32(first + i);
        memcpy(key.bytes, &number, sizeof(number));
        struct index_entry entry = entry_of(first + i);
        ck_assert_int_eq(larder_index_put_entry(index, &key, 0, &entry), 0);
    }
}

/* What was reserved before does for a few changes, which may give room back. */
START_TEST(a_full_disk_takes_few_changes)
{
    struct fixture fixture;
    set_up(&fixture);
    struct larder_index *index = open_good(&fixture, true);
    uint32_t count = 0;
    ck_assert_int_eq(larder_index_begin(index), 0);
    put_many(index, count++, 1);
    ck_assert_int_eq(larder_index_commit(index, 1000), 0);
    disk_is_full = true;
    /* Until less is left than many might take. */
    while (larder_index_reserve(index) == 0) {
        ck_assert_int_eq(larder_index_begin(index), 0);
        put_many(index, count, 2000);
        count += 2000;
        ck_assert_int_eq(larder_index_commit(index, 1000), 0);
    }
    ck_assert_int_eq(larder_index_begin(index), -ENOSPC);
    ck_assert_int_eq(larder_index_begin_few(index, 500), -ENOSPC);
    ck_assert_int_eq(larder_index_begin_few(index, 20), 0);
    put_many(index, count, 20);
    ck_assert_int_eq(larder_index_commit(index, 1000), 0);
    disk_is_full = false;
    ck_assert_int_eq(larder_index_begin(index), 0);
    larder_index_abort(index);
    larder_index_close(index);
    index = open_good(&fixture, false);
    ck_assert_uint_ge(larder_index_entry_count(index), count);
    larder_index_close(index);
    scratch_remove(fixture.directory);
}
END_TEST

START_TEST(segments_and_models)
{
    struct fixture fixture;
    set_up(&fixture);
    struct larder_index *index = open_good(&fixture, true);
    ck_assert_int_eq(larder_index_begin(index), 0);
    for (uint32_t i = 1; i <= 10; i++) {
        struct index_segment segment = {.committed_bytes = i * 4096ull};
        struct larder_model_desc desc = {.layers = i};
        struct larder_key key = key_of(i);
        ck_assert_int_eq(larder_index_put_segment(index, i, &segment), 0);
        ck_assert_int_eq(larder_index_put_model(index, &key, &desc), 0);
    }
    ck_assert_int_eq(larder_index_delete_segment(index, 4), 0);
    ck_assert_int_eq(larder_index_delete_segment(index, 400), 0);
    ck_assert_int_eq(larder_index_commit(index, 77), 0);
    larder_index_close(index);

    index = open_good(&fixture, false);
    struct index_visitor visitor;
    struct loaded loaded;
    uint64_t generation;
    ck_assert_int_eq(load(&visitor, &loaded, index, NULL, &generation), 0);
    ck_assert_uint_eq(generation, 77);
    ck_assert_uint_eq(loaded.segments, 9);
    ck_assert_uint_eq(loaded.models, 10);
    ck_assert_int_eq(loaded.wrong, 0);
    larder_index_close(index);
    scratch_remove(fixture.directory);
}
END_TEST

START_TEST(marks_are_kept_and_deleted)
{
    struct fixture fixture;
    set_up(&fixture);
    struct larder_index *index = open_good(&fixture, true);
    ck_assert_int_eq(larder_index_begin(index), 0);
    for (uint32_t i = 0; i < 100; i++) {
        struct larder_key key = key_of(i);
        struct index_mark mark = {.value.expires_s = i, .segment_id = i + 1};
        ck_assert_int_eq(larder_index_put_mark(index, &key, &mark), 0);
    }
    for (uint32_t i = 0; i < 200; i += 2) {
        struct larder_key key = key_of(i);
        ck_assert_int_eq(larder_index_delete_mark(index, &key), 0);
    }
    ck_assert_int_eq(larder_index_commit(index, 5), 0);
    larder_index_close(index);
    index = open_good(&fixture, false);
    struct index_visitor visitor;
    struct loaded loaded;
    uint64_t generation;
    ck_assert_int_eq(load(&visitor, &loaded, index, NULL, &generation), 0);
    ck_assert_uint_eq(loaded.marks, 50);
    ck_assert_int_eq(loaded.wrong, 0);
    larder_index_close(index);
    scratch_remove(fixture.directory);
}
END_TEST

START_TEST(small_map)
{
    struct fixture fixture;
    set_up(&fixture);
    larder_index_set_map_limit(1u << 20);
    struct larder_index *index = open_good(&fixture, true);
    /* 50,000 entries in one transaction are more than the map: it grows, and the caller repeats. */
    int again = 0;
    for (;;) {
        ck_assert_int_eq(larder_index_begin(index), 0);
        int err = 0;
        for (uint32_t i = 0; i < 50000 && err == 0; i++) {
            struct larder_key key = key_of(i);
            struct index_entry entry = entry_of(i);
            err = larder_index_put_entry(index, &key, 0, &entry);
        }
        if (err == 0)
            err = larder_index_commit(index, 5);
        if (err == 0)
            break;
        ck_assert_int_eq(err, -EAGAIN);
        larder_index_abort(index);
        ck_assert_int_lt(again++, 10);
    }
    ck_assert_int_ge(again, 1);
    larder_index_close(index);
    /* A file larger than the map that is asked for. */
    index = open_good(&fixture, false);
    struct index_visitor visitor;
    struct loaded loaded;
    uint64_t generation;
    ck_assert_int_eq(load(&visitor, &loaded, index, NULL, &generation), 0);
    ck_assert_uint_eq(loaded.entries, 50000);
    ck_assert_int_eq(loaded.wrong, 0);
    larder_index_close(index);
    larder_index_set_map_limit(0);
    scratch_remove(fixture.directory);
}
END_TEST

START_TEST(setting_aside)
{
    struct fixture fixture;
    set_up(&fixture);
    struct model *model = new_model();
    for (int i = 0; i < 3; i++) {
        struct larder_index *index = open_good(&fixture, true);
        ck_assert_int_eq(transaction(index, model, 10), 0);
        larder_index_close(index);
        ck_assert_int_eq(larder_index_destroy(fixture.path), 0);
    }
    char kept[SCRATCH_PATH_BYTES + 32];
    snprintf(kept, sizeof(kept), "%s.bad/data.mdb", fixture.path);
    ck_assert_int_eq(access(kept, R_OK), 0);
    ck_assert_int_eq(access(fixture.path, R_OK), -1);
    ck_assert_int_eq(larder_index_destroy(fixture.path), 0);
    free(model);
    scratch_remove(fixture.directory);
}
END_TEST

/* --- failing ---------------------------------------------------------------------------------- */

static int gate_closed(void *context)
{
    return *(int *)context;
}

START_TEST(gate)
{
    struct fixture fixture;
    set_up(&fixture);
    struct model *model = new_model();
    struct larder_index *index = open_good(&fixture, true);
    int answer = 0;
    larder_index_set_gate(index, gate_closed, &answer);
    ck_assert_int_eq(transaction(index, model, 100), 0);
    struct model *before = new_model();
    *before = *model;
    answer = -EIO;
    ck_assert_int_eq(transaction(index, model, 100), -EIO);
    answer = 0;
    ck_assert_int_eq(larder_index_begin(index), -EIO);
    larder_index_close(index);
    index = open_good(&fixture, false);
    ck_assert(is_exact(index, before));
    larder_index_close(index);
    free(before);
    free(model);
    scratch_remove(fixture.directory);
}
END_TEST

/* 0: the sync fails, 1: the write fails. No retry, and the file is as before or as after. */
START_TEST(failing_disk)
{
    struct fixture fixture;
    set_up(&fixture);
    struct model *model = new_model();
    struct larder_index *index = open_good(&fixture, true);
    ck_assert_int_eq(transaction(index, model, 100), 0);
    struct model *before = new_model();
    *before = *model;
    *(_i ? &write_fails : &sync_fails) = true;
    int err = transaction(index, model, 100);
    sync_fails = write_fails = false;
    ck_assert_int_eq(err, _i ? -ENOSPC : -EIO);
    ck_assert_int_eq(larder_index_begin(index), -EIO);
    larder_index_close(index);
    index = open_good(&fixture, false);
    ck_assert(is_exact(index, before) || is_exact(index, model));
    larder_index_close(index);
    free(before);
    free(model);
    scratch_remove(fixture.directory);
}
END_TEST

/* A child commits and acknowledges until it is killed; what was acknowledged is there, and at most
 * one transaction more. */
START_TEST(killed)
{
    struct fixture fixture;
    set_up(&fixture);
    uint64_t acknowledged = 0;
    for (int round = 0; round < 15; round++) {
        int pipe_fds[2];
        ck_assert_int_eq(pipe(pipe_fds), 0);
        pid_t child = fork();
        if (child == 0) {
            struct larder_index *index;
            bool created;
            if (larder_index_open(&index, fixture.path, &created) != 0)
                _exit(1);
            for (uint64_t number = acknowledged + 1;; number++) {
                if (larder_index_begin(index) != 0)
                    _exit(2);
                for (uint32_t row = 0; row < 64; row++) {
                    struct larder_key key = key_of(row);
                    struct index_entry entry = entry_of(number);
                    if (larder_index_put_entry(index, &key, 0, &entry) != 0)
                        _exit(3);
                }
                if (larder_index_commit(index, number) != 0 ||
                    write(pipe_fds[1], &number, sizeof(number)) != sizeof(number))
                    _exit(4);
            }
        }
        close(pipe_fds[1]);
        uint64_t number;
        if (read(pipe_fds[0], &number, sizeof(number)) == sizeof(number))
            acknowledged = number;
        usleep((useconds_t)draw(30000));
        kill(child, SIGKILL);
        int status;
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        ck_assert(WIFSIGNALED(status));
        while (read(pipe_fds[0], &number, sizeof(number)) == sizeof(number))
            acknowledged = number;
        close(pipe_fds[0]);

        struct larder_index *index = open_good(&fixture, false);
        struct index_visitor visitor;
        struct loaded loaded;
        uint64_t generation;
        ck_assert_int_eq(load(&visitor, &loaded, index, NULL, &generation), 0);
        ck_assert_uint_eq(loaded.entries, 64);
        ck_assert(generation == acknowledged || generation == acknowledged + 1);
        acknowledged = generation;
        larder_index_close(index);
    }
    scratch_remove(fixture.directory);
}
END_TEST

/* --- damage ----------------------------------------------------------------------------------- */

struct bytes {
    uint8_t *at;
    size_t count;
};

static struct bytes read_whole(const char *path)
{
    FILE *file = fopen(path, "rb");
    ck_assert_ptr_nonnull(file);
    struct stat st;
    ck_assert_int_eq(fstat(fileno(file), &st), 0);
    struct bytes bytes = {malloc((size_t)st.st_size), (size_t)st.st_size};
    ck_assert_uint_eq(fread(bytes.at, 1, bytes.count, file), bytes.count);
    fclose(file);
    return bytes;
}

static void write_whole(const char *path, const uint8_t *at, size_t count)
{
    FILE *file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(at, 1, count, file), count);
    fclose(file);
}

#define PAGE 4096u

/* Half of the flips go where the structure is: heads and offsets of pages, and the two metas. */
static void flip_bit(struct bytes bytes)
{
    size_t at = draw(bytes.count);
    switch (draw(4)) {
    case 0:
        at = at / PAGE * PAGE + draw(64);
        break;
    case 1:
        at = draw(2) * PAGE + draw(16 + 136);
        break;
    default:
        break;
    }
    bytes.at[at] ^= (uint8_t)(1u << draw(8));
}

static void damage_page(struct bytes bytes)
{
    size_t pages = bytes.count / PAGE;
    uint8_t *at = bytes.at + draw(pages) * PAGE;
    switch (draw(3)) {
    case 0:
        memset(at, 0, PAGE);
        break;
    case 1:
        memcpy(at, bytes.at + draw(pages) * PAGE, PAGE);
        break;
    default:
        for (size_t i = 0; i < 512; i++) /* one sector */
            at[i] = (uint8_t)draw(256);
        break;
    }
}

enum damage {
    DAMAGE_BIT,
    DAMAGE_PAGE,
    DAMAGE_LENGTH,
    DAMAGES,
};

/* Refused (true), or exact and good for more. */
static bool is_refused(const struct fixture *fixture, const struct model *model, int trial)
{
    struct larder_index *index;
    bool created;
    int err = larder_index_open(&index, fixture->path, &created);
    if (err < 0) {
        ck_assert_msg(err == LARDER_ECORRUPT, "trial %d: %d %s", trial, err,
                      larder_error_message());
        return true;
    }
    struct model *after = new_model();
    *after = *model;
    if (created) {
        /* The older of two metas, from before the first commit: it says that it knows nothing. */
        larder_index_close(index);
        free(after);
        return true;
    }
    ck_assert_msg(is_exact(index, after), "trial %d: wrong contents", trial);
    ck_assert_msg(transaction(index, after, 500) == 0, "trial %d: %s", trial,
                  larder_error_message());
    larder_index_close(index);
    ck_assert_msg(larder_index_open(&index, fixture->path, &created) == 0, "trial %d: %s", trial,
                  larder_error_message());
    ck_assert_msg(is_exact(index, after), "trial %d: wrong after more commits", trial);
    larder_index_close(index);
    free(after);
    return false;
}

START_TEST(damage)
{
    static const struct {
        const char *name;
        int trials;
        int refused_min;
    } kinds[DAMAGES] = {
        [DAMAGE_BIT] = {"bit flips", 600, 120},
        [DAMAGE_PAGE] = {"damaged pages", 150, 40},
        [DAMAGE_LENGTH] = {"truncations", 100, 80},
    };
    struct fixture fixture;
    set_up(&fixture);
    struct model *model = new_model();
    struct larder_index *index = open_good(&fixture, true);
    for (int i = 0; i < 20; i++)
        ck_assert_int_eq(transaction(index, model, 400), 0);
    larder_index_close(index);
    struct bytes good = read_whole(fixture.file);
    struct bytes trial = {malloc(good.count), good.count};

    sync_skipped = true;
    int refused = 0;
    const int trials = kinds[_i].trials;
    for (int i = 0; i < trials; i++) {
        memcpy(trial.at, good.at, good.count);
        size_t count = good.count;
        switch (_i) {
        case DAMAGE_BIT:
            flip_bit(trial);
            break;
        case DAMAGE_PAGE:
            damage_page(trial);
            break;
        default:
            count = draw(good.count / PAGE) * PAGE + draw(2) * draw(PAGE);
            break;
        }
        write_whole(fixture.file, trial.at, count);
        refused += is_refused(&fixture, model, i);
    }
    sync_skipped = false;
    fprintf(stderr, "index: %d %s of a file of %zu pages: %d refused, %d harmless, 0 wrong\n",
            trials, kinds[_i].name, good.count / PAGE, refused, trials - refused);
    ck_assert_int_ge(refused, kinds[_i].refused_min);
    free(trial.at);
    free(good.at);
    free(model);
    scratch_remove(fixture.directory);
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("index");
    TCase *use = tcase_create("use");
    tcase_set_timeout(use, 120);
    tcase_add_test(use, commits);
    tcase_add_test(use, a_full_disk_takes_few_changes);
    tcase_add_test(use, segments_and_models);
    tcase_add_test(use, marks_are_kept_and_deleted);
    tcase_add_test(use, small_map);
    tcase_add_test(use, setting_aside);
    suite_add_tcase(s, use);
    TCase *faults = tcase_create("faults");
    tcase_set_timeout(faults, 240);
    tcase_add_test(faults, gate);
    tcase_add_loop_test(faults, failing_disk, 0, 2);
    tcase_add_test(faults, killed);
    tcase_add_loop_test(faults, damage, 0, DAMAGES);
    suite_add_tcase(s, faults);
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
