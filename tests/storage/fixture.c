/* SPDX-License-Identifier: Apache-2.0 */
#include "fixture.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/error.h"
#include "base/key.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/slab.h"
#include "sim_disk.h"

_Noreturn void must_fail(const char *condition, const char *file, int line)
{
    printf("%s:%d: %s: %s\n", file, line, condition, larder_error_message());
    fflush(stdout);
    abort();
}

static uint64_t mix(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdull;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ull;
    return x ^ (x >> 33);
}

static void fill(uint8_t *out, uint32_t bytes, uint64_t seed, uint32_t section)
{
    uint64_t state = mix(seed * 2 + section + 1);
    for (uint32_t i = 0; i < bytes; i += 8) {
        uint64_t word = mix(state + i);
        memcpy(out + i, &word, bytes - i < 8 ? bytes - i : 8);
    }
}

struct larder_key block_key(uint64_t seed)
{
    struct larder_key key;
    must(larder_sha256(&key, &seed, sizeof(seed)) == 0);
    return key;
}

uint32_t block_token(uint64_t seed, uint32_t index)
{
    return (uint32_t)mix(seed / 1000 * 7919 + index) & 0xffff;
}

/* --- the store -------------------------------------------------------------------------------- */

static struct larder_model_desc some_model(void)
{
    struct larder_model_desc desc = {
        .name = "some", .layers = 2, .kv_heads = 2, .k_dims = 16, .v_dims = 16, .vocab = 65536};
    desc.dtype = LARDER_BF16;
    desc.rope = (struct larder_rope){.kind = LARDER_ROPE_PLAIN,
                                     .rotary_dims = 16,
                                     .theta = 10000,
                                     .factor = 1,
                                     .attention_factor = 1};
    desc.weights[0] = 1;
    return desc;
}

void fixture_begin(struct fixture *fixture)
{
    memset(fixture, 0, sizeof(*fixture));
    scratch_make(fixture->path);
    larder_log_set_level(LARDER_LOG_ERROR);
    const char *key_file = getenv("LARDER_TEST_ENCRYPTED") ? fixture_make_key(fixture) : NULL;
    fixture->options = (struct larder_store_options){
        .directory = fixture->path,
        .io = "auto",
        .host_bytes = 4 << 20,
        .slab_bytes = 1 << 20,
        .ssd_bytes = 16 << 20,
        .segment_bytes = 1 << 20,
        .key_file = key_file,
    };
}

const char *fixture_make_key(struct fixture *fixture)
{
    snprintf(fixture->key_path, sizeof(fixture->key_path), "%s/test.key", fixture->path);
    int fd = open(fixture->key_path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    must(fd >= 0);
    uint8_t key[32];
    must(getrandom(key, sizeof(key), 0) == sizeof(key));
    must(write(fd, key, sizeof(key)) == sizeof(key));
    close(fd);
    return fixture->key_path;
}

struct sim_disk *fixture_use_disk(struct fixture *fixture)
{
    must(freopen("/dev/null", "w", stderr));
    fixture->disk = sim_disk_create(1);
    return fixture->disk;
}

int fixture_open(struct fixture *fixture)
{
    if (fixture->disk && !fixture->options.io_override)
        fixture->options.io_override = sim_disk_open_io(fixture->disk);
    int err = larder_store_open(&fixture->store, &fixture->options);
    if (err < 0) {
        fixture->options.io_override = NULL;
        return err;
    }
    struct larder_model_desc desc = some_model();
    must(larder_store_tenant(fixture->store, &fixture->tenant, "a") == 0);
    must(larder_store_model(fixture->store, &fixture->model, &desc) == 0);
    return 0;
}

void fixture_close(struct fixture *fixture)
{
    if (fixture->store)
        larder_store_close(fixture->store);
    fixture->store = NULL;
    fixture->options.io_override = NULL; /* it was the store's */
}

void fixture_reopen(struct fixture *fixture)
{
    fixture_close(fixture);
    must(fixture_open(fixture) == 0);
}

void fixture_check(const struct fixture *fixture)
{
    must(larder_store_check(fixture->store) == 0);
}

void fixture_end(struct fixture *fixture)
{
    if (fixture->store)
        fixture_check(fixture);
    fixture_close(fixture);
    if (fixture->disk)
        sim_disk_destroy(fixture->disk);
    fixture->disk = NULL;
    scratch_remove(fixture->path);
}

/* --- around each test ------------------------------------------------------------------------- */

static struct fixture *around;

static void begin_test(void)
{
    fixture_begin(around);
    must(fixture_open(around) == 0);
}

static void end_test(void)
{
    fixture_end(around);
}

void fixture_add(struct TCase *tcase, struct fixture *fixture)
{
    around = fixture;
    tcase_add_checked_fixture(tcase, begin_test, end_test);
}

/* --- the store's answers ---------------------------------------------------------------------- */

struct larder_store_stats fixture_stats(struct fixture *fixture)
{
    struct larder_store_stats stats;
    larder_store_stats(fixture->store, &stats);
    return stats;
}

/* --- waiting ---------------------------------------------------------------------------------- */

struct waiter {
    pthread_mutex_t lock;
    pthread_cond_t told;
    bool done;
    int err;
    uint64_t count;
};

static void waiter_begin(struct waiter *waiter)
{
    memset(waiter, 0, sizeof(*waiter));
    pthread_mutex_init(&waiter->lock, NULL);
    pthread_cond_init(&waiter->told, NULL);
}

static void waiter_tell(struct waiter *waiter, int err, uint64_t count)
{
    pthread_mutex_lock(&waiter->lock);
    must(!waiter->done);
    waiter->done = true;
    waiter->err = err;
    waiter->count = count;
    pthread_cond_signal(&waiter->told);
    pthread_mutex_unlock(&waiter->lock);
}

static int waiter_wait(struct waiter *waiter)
{
    pthread_mutex_lock(&waiter->lock);
    while (!waiter->done)
        pthread_cond_wait(&waiter->told, &waiter->lock);
    pthread_mutex_unlock(&waiter->lock);
    pthread_cond_destroy(&waiter->told);
    pthread_mutex_destroy(&waiter->lock);
    return waiter->err;
}

static void put_done(void *context, int err)
{
    waiter_tell(context, err, 0);
}

static void remove_done(void *context, int err, uint64_t removed)
{
    waiter_tell(context, err, removed);
}

static void lease_done(void *context, uint32_t loaded, int err)
{
    waiter_tell(context, err, loaded);
}

/* --- operations ------------------------------------------------------------------------------- */

int fixture_put(struct fixture *fixture, const struct block *block, enum larder_wait wait)
{
    uint32_t *tokens = malloc(sizeof(uint32_t) * (block->token_count + 1));
    must(tokens);
    for (uint32_t i = 0; i < block->token_count; i++)
        tokens[i] = block_token(block->seed, i);
    uint32_t stride = (block->section_bytes + 63) & ~63u;
    struct larder_put_desc desc = {
        .tenant = block->tenant,
        .model = fixture->model.index,
        .key = block_key(block->seed),
        .parent = block->parent,
        .tokens = tokens,
        .token_count = block->token_count,
        .position = block->seed,
        .recipe = block->recipe ? block->recipe : "raw",
        .beside = block->beside,
        .made_of = block->made_of,
        .idle_s = block->idle_s,
        .quality = block->quality,
        .computed_on = block->computed_on,
        .computed_on_kl = block->computed_on_kl,
        .max_kl = block->max_kl,
        .raw_bytes = 2ull * block->section_bytes,
        .section_count_max = 4,
        .payload_bytes_max = 2ull * stride + 8192,
        .mark = block->mark,
    };
    if (block->profile)
        memcpy(desc.profile, block->profile, sizeof(desc.profile));
    struct larder_put *put;
    int err = larder_store_put_reserve(fixture->store, &put, &desc);
    free(tokens);
    if (err < 0)
        return err;
    uint64_t offset;
    uint8_t *payload = larder_put_payload(put, &offset);
    struct larder_section *sections = larder_put_directory(put);
    for (uint32_t i = 0; i < 2; i++) {
        fill(payload + i * stride, block->section_bytes, block->seed, i);
        sections[i] = (struct larder_section){.layer_count = 1,
                                              .head_count = 2,
                                              .kind = (uint8_t)i,
                                              .offset = offset + i * stride,
                                              .bytes = block->section_bytes};
    }
    struct waiter waiter;
    waiter_begin(&waiter);
    larder_store_put_commit(fixture->store, put, 2, 2ull * stride, wait, put_done, &waiter);
    return waiter_wait(&waiter);
}

void fixture_put_chain(struct fixture *fixture, uint64_t first, uint32_t count,
                       uint32_t section_bytes, enum larder_wait wait)
{
    struct block block = {
        .token_count = 256, .section_bytes = section_bytes, .tenant = fixture->tenant.index};
    for (uint32_t i = 0; i < count; i++) {
        block.seed = first + i;
        must(fixture_put(fixture, &block, wait) == 0);
        block.parent = block_key(block.seed);
    }
}

bool record_is(const struct larder_record *record, uint64_t seed)
{
    if (larder_record_check(record, record->head_bytes) < 0 || record->position != seed ||
        record->section_count != 2)
        return false;
    const uint32_t *tokens = larder_record_tokens(record);
    for (uint32_t i = 0; i < record->token_count; i++) {
        if (tokens[i] != block_token(seed, i))
            return false;
    }
    const struct larder_section *sections = larder_record_directory(record);
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t bytes = (uint32_t)sections[i].bytes;
        uint8_t *expected = malloc(bytes + 8);
        fill(expected, bytes, seed, i);
        bool same = memcmp(expected, (const uint8_t *)record + sections[i].offset, bytes) == 0;
        free(expected);
        if (!same)
            return false;
    }
    return true;
}

uint32_t fixture_get_variants(struct fixture *fixture, struct larder_record *heads, uint64_t first,
                              uint32_t count, uint32_t worst, int *err)
{
    struct larder_key *keys = malloc(sizeof(*keys) * count);
    struct larder_ref *refs = malloc(sizeof(*refs) * count);
    for (uint32_t i = 0; i < count; i++)
        keys[i] = block_key(first + i);
    struct waiter waiter;
    waiter_begin(&waiter);
    struct larder_lease *lease;
    uint32_t ref_count;
    bool ready;
    *err = larder_store_lease(
        fixture->store, &lease, refs, &ref_count, &ready,
        &(struct larder_want){
            .tenant = fixture->tenant.index, .keys = keys, .key_count = count, .worst = worst},
        lease_done, &waiter);
    uint32_t good = ref_count;
    if (lease && !ready) {
        *err = waiter_wait(&waiter);
        good = (uint32_t)waiter.count;
    }
    for (uint32_t i = 0; i < good; i++) {
        const struct larder_record *record =
            larder_store_ref_record(fixture->store, fixture->tenant.index, &refs[i]);
        must(record_is(record, first + i));
        if (heads)
            heads[i] = *record;
    }
    if (lease)
        larder_store_release(fixture->store, lease);
    free(keys);
    free(refs);
    return good;
}

uint32_t fixture_get_chain(struct fixture *fixture, uint64_t first, uint32_t count, int *err)
{
    return fixture_get_variants(fixture, NULL, first, count, LARDER_QUALITY_BLENDED, err);
}

static int remove_one(struct fixture *fixture, uint64_t seed, enum larder_remove_pinned pinned,
                      uint64_t *removed)
{
    struct waiter waiter;
    waiter_begin(&waiter);
    struct larder_key key = block_key(seed);
    larder_store_remove(fixture->store, fixture->tenant.index, &key, pinned, remove_done, &waiter);
    int err = waiter_wait(&waiter);
    *removed = waiter.count;
    return err;
}

int fixture_remove(struct fixture *fixture, uint64_t seed, uint64_t *removed)
{
    return remove_one(fixture, seed, LARDER_KEEP_PINNED, removed);
}

int fixture_remove_pinned(struct fixture *fixture, uint64_t seed, uint64_t *removed)
{
    return remove_one(fixture, seed, LARDER_REMOVE_PINNED, removed);
}

int fixture_move(struct fixture *fixture, uint64_t seed, uint32_t live_percent)
{
    struct larder_key key = block_key(seed);
    struct waiter waiter;
    waiter_begin(&waiter);
    larder_store_move(fixture->store, &key, 0, live_percent, put_done, &waiter);
    return waiter_wait(&waiter);
}

int fixture_mark(struct fixture *fixture, uint64_t seed, const struct larder_mark *mark)
{
    struct waiter waiter;
    waiter_begin(&waiter);
    struct larder_key key = block_key(seed);
    larder_store_mark(fixture->store, fixture->tenant.index, &key, mark, put_done, &waiter);
    return waiter_wait(&waiter);
}

int fixture_remove_variant(struct fixture *fixture, uint64_t seed, uint32_t variant)
{
    struct waiter waiter;
    waiter_begin(&waiter);
    struct larder_key key = block_key(seed);
    larder_store_remove_variant(fixture->store, fixture->tenant.index, &key, variant, remove_done,
                                &waiter);
    return waiter_wait(&waiter);
}

int fixture_demote(struct fixture *fixture, uint64_t seed, uint32_t kept, uint64_t idle_s)
{
    struct waiter waiter;
    waiter_begin(&waiter);
    struct larder_key key = block_key(seed);
    larder_store_demote(fixture->store, fixture->tenant.index, &key, kept, idle_s, remove_done,
                        &waiter);
    return waiter_wait(&waiter);
}

int fixture_verify(struct fixture *fixture, uint64_t seed)
{
    return fixture_verify_variant(fixture, seed, 0);
}

int fixture_verify_variant(struct fixture *fixture, uint64_t seed, uint32_t variant)
{
    struct waiter waiter;
    waiter_begin(&waiter);
    struct larder_key key = block_key(seed);
    larder_store_verify(fixture->store, &key, variant, put_done, &waiter);
    return waiter_wait(&waiter);
}

int fixture_when(struct fixture *fixture, uint64_t seed, enum larder_wait wait)
{
    struct waiter waiter;
    waiter_begin(&waiter);
    struct larder_key key = block_key(seed);
    larder_store_when(fixture->store, fixture->tenant.index, &key, LARDER_QUALITY_BLENDED, wait,
                      put_done, &waiter);
    return waiter_wait(&waiter);
}

struct larder_entry_info fixture_info(struct fixture *fixture, uint64_t seed)
{
    struct larder_entry_info info;
    struct larder_key key = block_key(seed);
    must(larder_store_find(fixture->store, &info, &key) == 0);
    return info;
}

bool fixture_has(struct fixture *fixture, uint64_t seed)
{
    struct larder_key key = block_key(seed);
    struct larder_entry_info info;
    return larder_store_find(fixture->store, &info, &key) == 0;
}

void fixture_settle(struct fixture *fixture, uint64_t seed)
{
    must(fixture_when(fixture, seed, LARDER_DURABLE) == 0);
}

void fixture_commit(struct fixture *fixture)
{
    for (int i = 0; i < 1000 && fixture_stats(fixture).tail_bytes > 0; i++)
        usleep(10000);
    must(fixture_stats(fixture).tail_bytes == 0);
}

/* --- files ------------------------------------------------------------------------------------ */

static int open_segment(const struct fixture *fixture, uint32_t segment)
{
    char path[SCRATCH_PATH_BYTES + 32];
    snprintf(path, sizeof(path), "%s/segments/%08u.seg", fixture->path, segment);
    int fd = open(path, O_RDWR);
    must(fd >= 0);
    return fd;
}

void fixture_flip(const struct fixture *fixture, uint32_t segment, uint64_t offset)
{
    int fd = open_segment(fixture, segment);
    uint8_t byte;
    must(pread(fd, &byte, 1, (off_t)offset) == 1);
    byte ^= 0x10;
    must(pwrite(fd, &byte, 1, (off_t)offset) == 1);
    close(fd);
}

void fixture_truncate(const struct fixture *fixture, uint32_t segment, uint64_t bytes)
{
    int fd = open_segment(fixture, segment);
    must(ftruncate(fd, (off_t)bytes) == 0);
    close(fd);
}

void fixture_remove_index(const struct fixture *fixture)
{
    char path[SCRATCH_PATH_BYTES + 8];
    snprintf(path, sizeof(path), "%s/index", fixture->path);
    scratch_remove(path);
}

void fixture_rebuild(struct fixture *fixture)
{
    fixture_close(fixture);
    fixture_remove_index(fixture);
    must(fixture_open(fixture) == 0);
    must(fixture_stats(fixture).index_rebuilt == 1);
    fixture_check(fixture);
}
