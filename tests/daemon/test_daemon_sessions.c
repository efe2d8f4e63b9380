/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   what larderd promises to clients that behave: what was put comes back bit for bit,
 *         through either recipe and wait level; leases, slabs, tenants and limits are as
 *         PROTOCOL.md says.
 * Method: a real larderd on a fresh directory, raw frames, slabs mapped and decoded here.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "tests/daemon/fixture.h"
#include "tests/daemon/peer.h"

static struct fixture fixture;
static struct peer peer;

static void sleep_ms(int ms)
{
    struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
    nanosleep(&time, NULL);
}

static void start(const char *config)
{
    fixture_start(&fixture, config);
    peer_open(&peer, fixture.socket);
}

/* Whatever a test did: the daemon is there and serves somebody else. */
static void stop(void)
{
    peer_close(&peer);
    ck_assert(fixture_alive(&fixture));
    peer_check_served(fixture.socket, 4711);
    fixture_stop(&fixture);
}

static void check_chain(struct peer *from, const struct block *blocks, uint32_t count,
                        uint32_t seed)
{
    struct wire_get_ok ok;
    struct wire_ref refs[64];
    struct wire_loaded loaded;
    uint64_t request = peer_get(from, blocks, count, &ok, refs, &loaded);
    ck_assert_uint_eq(ok.matched, count);
    ck_assert_uint_eq(loaded.loaded, count);
    ck_assert_int_eq(loaded.error, 0);
    uint64_t bytes = peer_kv_bytes(from, PEER_BLOCK_TOKENS);
    uint8_t *wanted = malloc(bytes);
    uint8_t *got = malloc(bytes);
    for (uint32_t i = 0; i < count; i++) {
        peer_fill_kv(wanted, bytes, seed + i);
        ck_assert_int_eq(peer_read(from, &refs[i], &blocks[i], got, bytes), 0);
        ck_assert_mem_eq(wanted, got, bytes);
    }
    free(wanted);
    free(got);
    peer_release(from, request);
}

START_TEST(hello_tells_limits)
{
    start("recipe = raw\nlease_ms = 12345\nstaging_bytes_max = 4M\n");
    ck_assert_uint_eq(peer.hello.magic, WIRE_MAGIC);
    ck_assert_uint_eq(peer.hello.version, WIRE_VERSION);
    ck_assert_uint_eq(peer.hello.block_tokens, 16);
    ck_assert_uint_eq(peer.hello.lease_ms, 12345);
    ck_assert_uint_eq(peer.hello.staging_bytes_max, 4u << 20);
    ck_assert_str_eq(peer.hello.recipe, "raw");
    ck_assert_str_eq(peer.hello.daemon_version, LARDER_VERSION);
    char name[64];
    snprintf(name, sizeof(name), "uid-%u", getuid());
    ck_assert_str_eq(peer.hello.tenant_name, name);
    stop();
}
END_TEST

START_TEST(put_comes_back)
{
    static const char *const recipes[] = {"exact", "raw"};
    struct block blocks[8];
    start(NULL);
    uint64_t bytes = peer_kv_bytes(&peer, PEER_BLOCK_TOKENS);
    uint8_t *kv = malloc(bytes);
    for (uint32_t r = 0; r < 2; r++) {
        peer_chain(&peer, blocks, 8, 10 + r);
        for (uint32_t i = 0; i < 8; i++) {
            struct wire_put_ok ok;
            peer_fill_kv(kv, bytes, 100 * r + i);
            ck_assert_int_eq(peer_put(&peer, &blocks[i], kv, i % 2 ? LARDER_DURABLE : LARDER_CACHED,
                                      recipes[r], &ok),
                             0);
            ck_assert_uint_eq(ok.existed, 0);
            ck_assert_uint_gt(ok.stored_bytes, 0);
            ck_assert_uint_eq(ok.stored_bytes % 4096, 0);
        }
        check_chain(&peer, blocks, 8, 100 * r);
    }
    free(kv);
    ck_assert_uint_eq(peer.slab_count, 1);
    stop();
}
END_TEST

START_TEST(put_twice_is_one_write)
{
    struct block blocks[2];
    struct wire_put_ok ok;
    start(NULL);
    peer_chain(&peer, blocks, 2, 1);
    peer_put_chain(&peer, blocks, 2, 5, LARDER_CACHED);
    uint64_t bytes = peer_kv_bytes(&peer, PEER_BLOCK_TOKENS);
    uint8_t *kv = malloc(bytes);
    peer_fill_kv(kv, bytes, 99);
    for (int wait = LARDER_CACHED; wait <= LARDER_DURABLE; wait++) {
        ck_assert_int_eq(peer_put(&peer, &blocks[1], kv, (enum larder_wait)wait, NULL, &ok), 0);
        ck_assert_uint_eq(ok.existed, 1);
        ck_assert_uint_eq(ok.stored_bytes, 0);
    }
    free(kv);
    check_chain(&peer, blocks, 2, 5);
    stop();
}
END_TEST

/* A chain whose PUTs are all sent before the first answer: each finds its parent. */
START_TEST(puts_in_order)
{
    struct block blocks[32];
    struct answer answer;
    uint64_t requests[32];
    start("threads = 4\n");
    peer_chain(&peer, blocks, 32, 1);
    uint64_t bytes = peer_kv_bytes(&peer, PEER_BLOCK_TOKENS);
    uint8_t *kv = malloc(bytes);
    for (uint32_t i = 0; i < 32; i++) {
        struct wire_put put;
        peer_fill_kv(kv, bytes, 50 + i);
        peer_stage(&peer, &put, &blocks[i], kv, i * larder_round_up(bytes + 64, 64), LARDER_CACHED,
                   NULL);
        requests[i] = peer_send(&peer, WIRE_PUT, &put, sizeof(put), NULL, 0);
    }
    for (uint32_t i = 0; i < 32; i++)
        peer_expect(&peer, &answer, WIRE_PUT_OK, requests[i]);
    free(kv);
    check_chain(&peer, blocks, 32, 50);
    stop();
}
END_TEST

START_TEST(nan_is_kept)
{
    struct block block;
    struct wire_get_ok ok;
    struct wire_ref ref;
    struct wire_loaded loaded;
    static const uint16_t odd[] = {0x7fc0, 0xffc1, 0x7f81, 0x7f80, 0xff80, 0x8000, 0x0001, 0xffff};
    start(NULL);
    uint64_t bytes = peer_kv_bytes(&peer, PEER_BLOCK_TOKENS);
    uint8_t *kv = malloc(bytes);
    uint8_t *got = malloc(bytes);
    for (uint64_t i = 0; i < bytes; i += 2)
        memcpy(kv + i, &odd[i / 2 % LARDER_COUNT_OF(odd)], 2);
    peer_chain(&peer, &block, 1, 1);
    ck_assert_int_eq(peer_put(&peer, &block, kv, LARDER_DURABLE, "exact", NULL), 0);
    peer_get(&peer, &block, 1, &ok, &ref, &loaded);
    ck_assert_uint_eq(loaded.loaded, 1);
    ck_assert_uint_eq(ok.quality, LARDER_QUALITY_EXACT);
    ck_assert_int_eq(peer_read(&peer, &ref, &block, got, bytes), 0);
    ck_assert_mem_eq(kv, got, bytes);
    free(kv);
    free(got);
    stop();
}
END_TEST

START_TEST(misses_are_answers)
{
    struct block blocks[3];
    struct wire_get_ok ok;
    struct wire_ref refs[3];
    struct wire_loaded loaded;
    start(NULL);
    peer_chain(&peer, blocks, 3, 1);
    ck_assert_uint_eq(peer_lookup(&peer, blocks, 3), 0);
    peer_get(&peer, blocks, 3, &ok, refs, &loaded);
    ck_assert_uint_eq(ok.matched, 0);
    ck_assert_uint_eq(ok.ref_count, 0);
    ck_assert_uint_eq(ok.ready, 1);
    peer_put_chain(&peer, blocks, 2, 1, LARDER_CACHED);
    ck_assert_uint_eq(peer_lookup(&peer, blocks, 3), 2);
    stop();
}
END_TEST

START_TEST(put_says_why_not)
{
    struct block blocks[2];
    start(NULL);
    peer_chain(&peer, blocks, 2, 1);
    uint64_t bytes = peer_kv_bytes(&peer, PEER_BLOCK_TOKENS);
    uint8_t *kv = calloc(1, bytes);
    ck_assert_int_eq(peer_put(&peer, &blocks[1], kv, LARDER_CACHED, NULL, NULL), LARDER_ENOPARENT);
    ck_assert_int_eq(peer_put(&peer, &blocks[0], kv, LARDER_CACHED, "nonsense", NULL), -EINVAL);
    blocks[0].key.bytes[3] ^= 1;
    ck_assert_int_eq(peer_put(&peer, &blocks[0], kv, LARDER_CACHED, NULL, NULL), LARDER_EMISMATCH);
    blocks[0].key.bytes[3] ^= 1;
    blocks[0].tokens[5] = peer.desc.vocab;
    ck_assert_int_eq(peer_put(&peer, &blocks[0], kv, LARDER_CACHED, NULL, NULL), -EINVAL);
    peer_chain(&peer, blocks, 2, 1);
    blocks[0].position = 5000;
    ck_assert_int_eq(peer_put(&peer, &blocks[0], kv, LARDER_CACHED, NULL, NULL),
                     LARDER_EUNSUPPORTED);
    ck_assert_uint_eq(peer_lookup(&peer, blocks, 1), 0);
    blocks[0].position = 0;
    ck_assert_int_eq(peer_put(&peer, &blocks[0], kv, LARDER_CACHED, NULL, NULL), 0);
    blocks[1].position = 0;
    ck_assert_int_eq(peer_put(&peer, &blocks[1], kv, LARDER_CACHED, NULL, NULL),
                     LARDER_EUNSUPPORTED);
    blocks[1].position = PEER_BLOCK_TOKENS;
    ck_assert_int_eq(peer_put(&peer, &blocks[1], kv, LARDER_CACHED, NULL, NULL), 0);
    free(kv);
    stop();
}
END_TEST

START_TEST(wrong_model_is_refused)
{
    struct larder_model_desc desc;
    start(NULL);
    peer_model_desc(&desc);
    desc.layers = 0;
    uint64_t request = peer_send(&peer, WIRE_MODEL, &desc, sizeof(desc), NULL, 0);
    struct answer answer;
    const struct wire_error *error = peer_expect(&peer, &answer, WIRE_ERROR, request);
    ck_assert_int_lt(error->code, -1000);
    peer_model_desc(&desc);
    desc.rope.kind = 99;
    request = peer_send(&peer, WIRE_MODEL, &desc, sizeof(desc), NULL, 0);
    peer_expect_error(&peer, request, LARDER_EUNSUPPORTED);

    /* Another model never sees the first one's entries; the same one has its handle already. */
    struct block blocks[2];
    peer_chain(&peer, blocks, 2, 1);
    peer_put_chain(&peer, blocks, 2, 1, LARDER_CACHED);
    uint32_t first = peer.model;
    peer_open_model(&peer, &peer.desc);
    ck_assert_uint_eq(peer.model, first);
    desc = peer.desc;
    desc.weights[0] ^= 1;
    peer_open_model(&peer, &desc);
    ck_assert_uint_ne(peer.model, first);
    struct block other[2];
    peer_chain(&peer, other, 2, 1);
    ck_assert_mem_ne(other[0].key.bytes, blocks[0].key.bytes, 32);
    ck_assert_uint_eq(peer_lookup(&peer, other, 2), 0);
    stop();
}
END_TEST

START_TEST(remove_takes_the_subtree)
{
    struct block blocks[4];
    struct answer answer;
    start(NULL);
    peer_chain(&peer, blocks, 4, 1);
    peer_put_chain(&peer, blocks, 4, 1, LARDER_DURABLE);
    uint64_t request = peer_send(&peer, WIRE_REMOVE, blocks[1].key.bytes, 32, NULL, 0);
    const struct wire_remove_ok *ok = peer_expect(&peer, &answer, WIRE_REMOVE_OK, request);
    ck_assert_uint_eq(ok->removed, 3);
    ck_assert_uint_eq(peer_lookup(&peer, blocks, 4), 1);
    request = peer_send(&peer, WIRE_REMOVE, blocks[1].key.bytes, 32, NULL, 0);
    peer_expect_error(&peer, request, LARDER_ENOTFOUND);
    request = peer_send(&peer, WIRE_STAT, NULL, 0, NULL, 0);
    const struct wire_stat_ok *stat = peer_expect(&peer, &answer, WIRE_STAT_OK, request);
    ck_assert_uint_eq(stat->entries, 1);
    ck_assert_uint_eq(stat->puts, 4);
    stop();
}
END_TEST

static int mark_block(const struct block *block, struct larder_mark mark)
{
    struct wire_mark wire = {.mark = mark};
    struct answer answer;
    memcpy(wire.key, block->key.bytes, sizeof(wire.key));
    uint64_t request = peer_send(&peer, WIRE_MARK, &wire, sizeof(wire), NULL, 0);
    peer_receive(&peer, &answer);
    const struct wire_frame *header = (const struct wire_frame *)answer.bytes;
    ck_assert_uint_eq(header->request, request);
    if (header->type == WIRE_ERROR)
        return ((const struct wire_error *)(header + 1))->code;
    ck_assert_uint_eq(header->type, WIRE_MARK_OK);
    return 0;
}

START_TEST(marks_by_frame)
{
    struct block blocks[4];
    struct answer answer;
    start(NULL);
    peer_chain(&peer, blocks, 4, 1);
    peer_put_chain(&peer, blocks, 4, 1, LARDER_CACHED);
    const struct larder_mark pin = {.fields = LARDER_MARK_PIN};
    ck_assert_int_eq(mark_block(&blocks[2], pin), 0);
    uint64_t request = peer_send(&peer, WIRE_REMOVE, blocks[1].key.bytes, 32, NULL, 0);
    peer_expect_error(&peer, request, LARDER_EPINNED);
    /* Acknowledged: it survives a kill, as its entry does, which was only CACHED. */
    peer_close(&peer);
    fixture_kill(&fixture);
    fixture_restart(&fixture);
    peer_open(&peer, fixture.socket);
    ck_assert_uint_ge(peer_lookup(&peer, blocks, 4), 3);
    request = peer_send(&peer, WIRE_REMOVE, blocks[0].key.bytes, 32, NULL, 0);
    peer_expect_error(&peer, request, LARDER_EPINNED);
    ck_assert_int_eq(mark_block(&blocks[2], (struct larder_mark){.fields = LARDER_MARK_UNPIN}), 0);
    /* A time that is over soon: a miss, and the tick of the daemon removes it. */
    ck_assert_int_eq(
        mark_block(&blocks[1], (struct larder_mark){.fields = LARDER_MARK_TTL, .ttl_s = 1}), 0);
    for (int i = 0; i < 500 && peer_lookup(&peer, blocks, 4) > 1; i++)
        usleep(10000);
    ck_assert_uint_eq(peer_lookup(&peer, blocks, 4), 1);
    uint64_t entries = 4;
    for (int i = 0; i < 500 && entries > 1; i++) {
        request = peer_send(&peer, WIRE_STAT, NULL, 0, NULL, 0);
        const struct wire_stat_ok *stat = peer_expect(&peer, &answer, WIRE_STAT_OK, request);
        entries = stat->entries;
        usleep(10000);
    }
    ck_assert_uint_eq(entries, 1);
    ck_assert_int_eq(mark_block(&blocks[3], pin), LARDER_ENOTFOUND);
    ck_assert_int_eq(mark_block(&blocks[0], (struct larder_mark){.fields = 99}), -EINVAL);
    ck_assert_int_eq(mark_block(&blocks[0], (struct larder_mark){.fields = LARDER_MARK_PRIORITY,
                                                                 .priority = 100}),
                     LARDER_ELIMIT);
    stop();
}
END_TEST

/* PUT of this block with a mark: 0 or the error's code; it must say that the block was there. */
static int put_again(const struct block *block, const uint8_t *kv, enum larder_wait wait,
                     struct larder_mark mark)
{
    struct wire_put put;
    struct answer answer;
    peer_stage(&peer, &put, block, kv, 0, wait, NULL);
    put.mark = mark;
    peer_send(&peer, WIRE_PUT, &put, sizeof(put), NULL, 0);
    peer_receive(&peer, &answer);
    const struct wire_frame *header = (const void *)answer.bytes;
    if (header->type == WIRE_ERROR)
        return ((const struct wire_error *)(header + 1))->code;
    ck_assert_uint_eq(header->type, WIRE_PUT_OK);
    ck_assert_uint_eq(((const struct wire_put_ok *)(header + 1))->existed, 1);
    return 0;
}

/* Who puts what is there already has its mark changed all the same, durably. */
START_TEST(a_put_of_what_exists_marks_it)
{
    struct block blocks[3];
    start(NULL);
    peer_chain(&peer, blocks, 3, 1);
    peer_put_chain(&peer, blocks, 3, 1, LARDER_CACHED);
    const uint64_t bytes = peer_kv_bytes(&peer, PEER_BLOCK_TOKENS);
    uint8_t *kv = calloc(1, bytes);
    for (int wait = LARDER_CACHED; wait <= LARDER_DURABLE; wait++) {
        const struct larder_mark pin = {.fields = LARDER_MARK_PIN};
        ck_assert_int_eq(put_again(&blocks[1], kv, (enum larder_wait)wait, pin), 0);
        peer_close(&peer);
        fixture_kill(&fixture);
        fixture_restart(&fixture);
        peer_open(&peer, fixture.socket);
        uint64_t request = peer_send(&peer, WIRE_REMOVE, blocks[0].key.bytes, 32, NULL, 0);
        peer_expect_error(&peer, request, LARDER_EPINNED);
        ck_assert_int_eq(mark_block(&blocks[1], (struct larder_mark){.fields = LARDER_MARK_UNPIN}),
                         0);
    }
    /* A mark that cannot be: the block stays, and the answer says so. */
    const struct larder_mark bad = {.fields = LARDER_MARK_PRIORITY, .priority = 100};
    ck_assert_int_eq(put_again(&blocks[1], kv, LARDER_CACHED, bad), LARDER_ELIMIT);
    ck_assert_uint_ge(peer_lookup(&peer, blocks, 3), 2);
    free(kv);
    stop();
}
END_TEST

START_TEST(durable_survives_a_kill)
{
    struct block blocks[6];
    start(NULL);
    peer_chain(&peer, blocks, 6, 1);
    peer_put_chain(&peer, blocks, 6, 30, LARDER_DURABLE);
    peer_close(&peer);
    fixture_kill(&fixture);
    fixture_restart(&fixture);
    peer_open(&peer, fixture.socket);
    check_chain(&peer, blocks, 6, 30);
    stop();
}
END_TEST

START_TEST(cached_survives_a_stop)
{
    struct block blocks[6];
    start(NULL);
    peer_chain(&peer, blocks, 6, 1);
    peer_put_chain(&peer, blocks, 6, 30, LARDER_CACHED);
    peer_close(&peer);
    ck_assert_int_eq(fixture_terminate(&fixture), 0);
    ck_assert_int_ne(access(fixture.socket, F_OK), 0);
    ck_assert_int_ne(access(fixture.control_socket, F_OK), 0);
    fixture_restart(&fixture);
    peer_open(&peer, fixture.socket);
    check_chain(&peer, blocks, 6, 30);
    stop();
}
END_TEST

START_TEST(tenants_are_apart)
{
    struct block blocks[3];
    struct block theirs[3];
    struct peer other;
    start("tenant red = socket DIR/red.sock\ntenant blue = socket DIR/blue.sock\n");
    char path[128];
    peer_close(&peer);
    snprintf(path, sizeof(path), "%s/red.sock", fixture.directory);
    peer_open(&peer, path);
    ck_assert_str_eq(peer.hello.tenant_name, "red");
    snprintf(path, sizeof(path), "%s/blue.sock", fixture.directory);
    peer_open(&other, path);
    ck_assert_str_eq(other.hello.tenant_name, "blue");
    ck_assert_mem_ne(peer.hello.tenant_key, other.hello.tenant_key, 32);
    ck_assert_mem_ne(peer.hello.tenant_id, other.hello.tenant_id, 16);

    /* The same prompt has other keys; and red's keys, stolen, are nothing to blue. */
    peer_chain(&peer, blocks, 3, 1);
    peer_chain(&other, theirs, 3, 1);
    ck_assert_mem_ne(blocks[0].key.bytes, theirs[0].key.bytes, 32);
    peer_put_chain(&peer, blocks, 3, 20, LARDER_CACHED);
    ck_assert_uint_eq(peer_lookup(&other, theirs, 3), 0);
    ck_assert_uint_eq(peer_lookup(&other, blocks, 3), 0);
    struct wire_get_ok ok;
    struct wire_ref refs[3];
    struct wire_loaded loaded;
    peer_get(&other, blocks, 3, &ok, refs, &loaded);
    ck_assert_uint_eq(ok.ref_count, 0);
    uint64_t request = peer_send(&other, WIRE_REMOVE, blocks[0].key.bytes, 32, NULL, 0);
    peer_expect_error(&other, request, LARDER_ENOTFOUND);

    /* Each gets slabs of its own: no bytes of red in what blue may map. */
    peer_put_chain(&other, theirs, 3, 40, LARDER_CACHED);
    check_chain(&other, theirs, 3, 40);
    check_chain(&peer, blocks, 3, 20);
    struct stat red_file;
    struct stat blue_file;
    for (uint32_t i = 0; i < PEER_SLABS_MAX; i++) {
        for (uint32_t j = 0; j < PEER_SLABS_MAX; j++) {
            if (peer.slab_fds[i] < 0 || other.slab_fds[j] < 0)
                continue;
            ck_assert_int_eq(fstat(peer.slab_fds[i], &red_file), 0);
            ck_assert_int_eq(fstat(other.slab_fds[j], &blue_file), 0);
            ck_assert_uint_ne(red_file.st_ino, blue_file.st_ino);
        }
    }
    ck_assert_uint_gt(peer.slab_count, 0);
    ck_assert_uint_gt(other.slab_count, 0);
    peer_close(&other);
    stop();
}
END_TEST

/* Red leases blocks in every slab there is; blue is served all the same, long before lease_ms. */
START_TEST(leases_do_not_starve_others)
{
    enum { COUNT = 120 };
    static struct block blocks[COUNT];
    static struct wire_ref refs[COUNT];
    struct block theirs[1];
    struct peer other;
    struct wire_get_ok ok;
    struct wire_loaded loaded;
    start("tenant red = socket DIR/red.sock\ntenant blue = socket DIR/blue.sock\n"
          "host_bytes = 2M\nslab_bytes = 1M\nrecipe = raw\nlease_grace_ms = 300\n");
    char path[128];
    peer_close(&peer);
    snprintf(path, sizeof(path), "%s/red.sock", fixture.directory);
    peer_open(&peer, path);
    peer_chain(&peer, blocks, COUNT, 1);
    peer_put_chain(&peer, blocks, COUNT, 1, LARDER_DURABLE);
    peer_get(&peer, blocks, COUNT, &ok, refs, &loaded);
    ck_assert_uint_eq(ok.ref_count, COUNT);
    uint64_t bytes = peer_kv_bytes(&peer, PEER_BLOCK_TOKENS);
    uint8_t *kv = malloc(bytes);
    ck_assert_int_eq(peer_read(&peer, &refs[0], &blocks[0], kv, bytes), 0);

    snprintf(path, sizeof(path), "%s/blue.sock", fixture.directory);
    peer_open(&other, path);
    peer_chain(&other, theirs, 1, 1);
    peer_fill_kv(kv, bytes, 5);
    int err = -EBUSY;
    int tries = 0;
    for (; err == -EBUSY && tries < 500; tries++) {
        err = peer_put(&other, theirs, kv, LARDER_CACHED, NULL, NULL);
        usleep(20000);
    }
    ck_assert_int_eq(err, 0);
    ck_assert_int_gt(tries, 1);
    ck_assert(fixture_log_has(&fixture, "more than its share of host memory"));
    check_chain(&other, theirs, 1, 5);
    /* What red held and lost is a clean miss; the rest is what it was. */
    uint32_t stale = 0;
    for (uint32_t i = 0; i < COUNT; i++) {
        int result = peer_read(&peer, &refs[i], &blocks[i], kv, bytes);
        ck_assert(result == 0 || result == LARDER_ESTALE);
        stale += result == LARDER_ESTALE;
    }
    ck_assert_uint_gt(stale, 0);
    free(kv);
    peer_close(&other);
    stop();
}
END_TEST

START_TEST(quotas_of_tenants)
{
    static struct block blocks[200];
    struct answer answer;
    start("tenant red = socket DIR/red.sock\nquota red = ssd 1M host 8M\nquota * = host 16M\n"
          "recipe = raw\n");
    uint64_t request = peer_send(&peer, WIRE_STAT, NULL, 0, NULL, 0);
    const struct wire_stat_ok *stat = peer_expect(&peer, &answer, WIRE_STAT_OK, request);
    ck_assert_uint_eq(stat->ssd_bytes_max, 0);
    ck_assert_uint_eq(stat->host_bytes_max, 16 << 20);
    char path[128];
    peer_close(&peer);
    snprintf(path, sizeof(path), "%s/red.sock", fixture.directory);
    peer_open(&peer, path);
    peer_chain(&peer, blocks, 200, 1);
    peer_put_chain(&peer, blocks, 60, 1, LARDER_DURABLE);
    ck_assert_int_eq(mark_block(&blocks[59], (struct larder_mark){.fields = LARDER_MARK_PIN}), 0);
    request = peer_send(&peer, WIRE_STAT, NULL, 0, NULL, 0);
    stat = peer_expect(&peer, &answer, WIRE_STAT_OK, request);
    ck_assert_uint_eq(stat->ssd_bytes_max, 1 << 20);
    ck_assert_uint_eq(stat->bytes_pinned, stat->bytes_ssd);
    ck_assert_uint_le(stat->bytes_slabs, 8 << 20);
    /* More than fits: the new ones push out new ones, never what is pinned. */
    peer_put_chain(&peer, blocks + 60, 20, 61, LARDER_DURABLE);
    struct block more[60];
    peer_chain(&peer, more, 60, 2);
    peer_put_chain(&peer, more, 60, 2, LARDER_CACHED);
    request = peer_send(&peer, WIRE_STAT, NULL, 0, NULL, 0);
    stat = peer_expect(&peer, &answer, WIRE_STAT_OK, request);
    ck_assert_uint_le(stat->bytes_ssd, 1 << 20);
    ck_assert_uint_ge(peer_lookup(&peer, blocks, 60), 60);
    stop();
}
END_TEST

START_TEST(slabs_cannot_be_changed)
{
    struct block blocks[2];
    struct wire_get_ok ok;
    struct wire_ref refs[2];
    struct wire_loaded loaded;
    start(NULL);
    peer_chain(&peer, blocks, 2, 1);
    peer_put_chain(&peer, blocks, 2, 1, LARDER_CACHED);
    peer_get(&peer, blocks, 2, &ok, refs, &loaded);
    int fd = peer.slab_fds[refs[0].slab_id];
    size_t bytes = peer.slab_bytes[refs[0].slab_id];
    ck_assert_ptr_eq(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
    ck_assert_int_ne(
        mprotect((void *)(uintptr_t)peer.slabs[refs[0].slab_id], bytes, PROT_READ | PROT_WRITE), 0);
    ck_assert_int_eq(pwrite(fd, "x", 1, 0), -1);
    ck_assert_int_ne(ftruncate(fd, 4096), 0);
    ck_assert_int_ne(ftruncate(fd, (off_t)bytes + 4096), 0);
    ck_assert_int_ne(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 65536), 0);
    ck_assert_int_ne(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int again = open(path, O_RDWR | O_CLOEXEC);
    if (again >= 0) {
        ck_assert_ptr_eq(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0),
                         MAP_FAILED);
        ck_assert_int_eq(pwrite(again, "x", 1, 0), -1);
        ck_assert_int_ne(ftruncate(again, 4096), 0);
        ck_assert_int_ne(fallocate(again, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 65536), 0);
        close(again);
    }
    check_chain(&peer, blocks, 2, 1);
    stop();
}
END_TEST

/* Every mapping of staging that the daemon has: one at least. */
static bool staging_is_in_core_dumps(void)
{
    char path[64], line[4096];
    snprintf(path, sizeof(path), "/proc/%d/smaps", (int)fixture.pid);
    FILE *file = fopen(path, "r");
    ck_assert_ptr_nonnull(file);
    uint32_t mappings = 0, hidden = 0;
    bool ours = false;
    while (fgets(line, sizeof(line), file)) {
        if (strchr(line, '-') && strstr(line, "memfd:"))
            mappings += ours = strstr(line, "larder-staging") != NULL;
        else if (ours && strncmp(line, "VmFlags:", 8) == 0)
            hidden += strstr(line, " dd") != NULL, ours = false;
    }
    fclose(file);
    ck_assert_uint_gt(mappings, 0);
    return hidden < mappings;
}

START_TEST(staging_is_sealed)
{
    start(NULL);
    ck_assert(!staging_is_in_core_dumps());
    ck_assert_int_ne(ftruncate(peer.staging_fd, 0), 0);
    ck_assert_int_ne(ftruncate(peer.staging_fd, 1 << 28), 0);
    ck_assert_int_ne(fcntl(peer.staging_fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
    /* It can be punched: the daemon reads zeros, which is the client's own loss. */
    struct block block;
    peer_chain(&peer, &block, 1, 1);
    ck_assert_int_eq(fallocate(peer.staging_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                               (off_t)peer.staging_bytes),
                     0);
    peer_put_chain(&peer, &block, 1, 1, LARDER_CACHED);
    check_chain(&peer, &block, 1, 1);
    /* A larger one replaces it. */
    peer_open_staging(&peer, 2u << 20);
    struct block blocks[2];
    peer_chain(&peer, blocks, 2, 9);
    peer_put_chain(&peer, blocks, 2, 9, LARDER_CACHED);
    check_chain(&peer, blocks, 2, 9);
    stop();
}
END_TEST

START_TEST(leases_end_in_time)
{
    struct block blocks[2];
    struct wire_get_ok ok;
    struct wire_ref refs[2];
    struct wire_loaded loaded;
    start("lease_ms = 200\n");
    peer_chain(&peer, blocks, 2, 1);
    peer_put_chain(&peer, blocks, 2, 1, LARDER_CACHED);
    uint64_t request = peer_get(&peer, blocks, 2, &ok, refs, &loaded);
    for (int i = 0; i < 100 && !fixture_log_has(&fixture, "revoked"); i++)
        sleep_ms(50);
    ck_assert(fixture_log_has(&fixture, "revoked"));
    /* Letting go of what was taken is no error; the entries are still there. */
    peer_release(&peer, request);
    check_chain(&peer, blocks, 2, 1);
    stop();
}
END_TEST

/* GETs of what is only on SSD, many at once, some let go before they are loaded, some by
 * closing. */
START_TEST(ssd_gets)
{
    struct block blocks[40];
    struct answer answer;
    start(NULL);
    peer_chain(&peer, blocks, 40, 1);
    peer_put_chain(&peer, blocks, 40, 30, LARDER_DURABLE);
    for (int round = 0; round < 3; round++) {
        peer_close(&peer);
        ck_assert_int_eq(fixture_terminate(&fixture), 0);
        fixture_restart(&fixture);
        peer_open(&peer, fixture.socket);
        uint64_t requests[20];
        struct wire_keys keys = {
            .model = peer.model, .key_count = 2, .worst = LARDER_QUALITY_EXACT};
        for (uint32_t i = 0; i < 20; i++) {
            memcpy(keys.parent, blocks[2 * i].parent.bytes, 32);
            struct larder_key two[2] = {blocks[2 * i].key, blocks[2 * i + 1].key};
            requests[i] = peer_send(&peer, WIRE_GET, &keys, sizeof(keys), two, sizeof(two));
            if (i % 3 == 0)
                peer_release(&peer, requests[i]);
        }
        if (round == 1)
            continue;
        /* Every GET is answered; those that were not released are loaded. */
        uint32_t answered = 0;
        uint32_t loaded = 0;
        while (answered < 20 || loaded < 13) {
            peer_receive(&peer, &answer);
            ck_assert_uint_gt(answer.byte_count, 0);
            const struct wire_frame *frame = (const struct wire_frame *)answer.bytes;
            uint32_t index = 0;
            while (requests[index] != frame->request)
                index++;
            if (frame->type == WIRE_LOADED) {
                ck_assert_uint_eq(((const struct wire_loaded *)(frame + 1))->loaded, 2);
                loaded += index % 3 != 0;
                continue;
            }
            answered++;
            if (frame->type == WIRE_GET_OK) {
                const struct wire_get_ok *ok = (const struct wire_get_ok *)(frame + 1);
                ck_assert_uint_eq(ok->ref_count, 2);
                loaded += ok->ready && index % 3 != 0;
            } else {
                ck_assert_uint_eq(frame->type, WIRE_ERROR);
                ck_assert_uint_eq(index % 3, 0);
                ck_assert_int_eq(((const struct wire_error *)(frame + 1))->code, -ECANCELED);
            }
        }
        for (uint32_t i = 0; i < 20; i++)
            peer_release(&peer, requests[i]);
        check_chain(&peer, blocks, 40, 30);
    }
    stop();
}
END_TEST

START_TEST(limits_of_a_user)
{
    struct block blocks[1];
    struct wire_get_ok ok;
    struct wire_ref refs[1];
    struct wire_loaded loaded;
    struct answer answer;
    start("connections_max = 2\nleases_max = 3\nstaging_bytes_max = 2M\nstaging_bytes_all = 6M\n");
    struct peer second;
    struct peer third;
    peer_connect(&second, fixture.socket);
    peer_say_hello(&second);
    peer_connect(&third, fixture.socket);
    peer_expect_error(&third, 0, -EBUSY);
    peer_expect_close(&third);
    peer_close(&third);

    struct wire_staging staging = {3u << 20};
    uint64_t request = peer_send(&second, WIRE_STAGING, &staging, sizeof(staging), NULL, 0);
    peer_expect_error(&second, request, LARDER_ELIMIT);
    peer_open_staging(&second, 2u << 20);
    staging.bytes = 2u << 20;
    request = peer_send(&peer, WIRE_STAGING, &staging, sizeof(staging), NULL, 0);
    peer_expect_error(&peer, request, -EBUSY);
    peer_close(&second);

    peer_chain(&peer, blocks, 1, 1);
    peer_put_chain(&peer, blocks, 1, 1, LARDER_CACHED);
    uint64_t leases[3];
    for (int i = 0; i < 3; i++)
        leases[i] = peer_get(&peer, blocks, 1, &ok, refs, &loaded);
    struct wire_keys keys = {.model = peer.model, .key_count = 1, .worst = LARDER_QUALITY_BLENDED};
    request = peer_send(&peer, WIRE_GET, &keys, sizeof(keys), blocks[0].key.bytes, 32);
    peer_expect_error(&peer, request, -EBUSY);
    const struct wire_release release = {3, 0};
    peer_send(&peer, WIRE_RELEASE, &release, sizeof(release), leases, sizeof(leases));
    request = peer_send(&peer, WIRE_GET, &keys, sizeof(keys), blocks[0].key.bytes, 32);
    peer_expect(&peer, &answer, WIRE_GET_OK, request);
    stop();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("daemon_sessions");
    TCase *tests = tcase_create("sessions");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, hello_tells_limits);
    tcase_add_test(tests, put_comes_back);
    tcase_add_test(tests, put_twice_is_one_write);
    tcase_add_test(tests, puts_in_order);
    tcase_add_test(tests, nan_is_kept);
    tcase_add_test(tests, misses_are_answers);
    tcase_add_test(tests, put_says_why_not);
    tcase_add_test(tests, wrong_model_is_refused);
    tcase_add_test(tests, remove_takes_the_subtree);
    tcase_add_test(tests, marks_by_frame);
    tcase_add_test(tests, a_put_of_what_exists_marks_it);
    tcase_add_test(tests, durable_survives_a_kill);
    tcase_add_test(tests, cached_survives_a_stop);
    tcase_add_test(tests, tenants_are_apart);
    tcase_add_test(tests, leases_do_not_starve_others);
    tcase_add_test(tests, quotas_of_tenants);
    tcase_add_test(tests, slabs_cannot_be_changed);
    tcase_add_test(tests, staging_is_sealed);
    tcase_add_test(tests, leases_end_in_time);
    tcase_add_test(tests, ssd_gets);
    tcase_add_test(tests, limits_of_a_user);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
