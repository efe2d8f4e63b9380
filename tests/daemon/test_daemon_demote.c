/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   what nobody uses is kept smaller, made of the best record, and says what it is; what is
 *         used, pinned, worth more, short or somebody else's stays; nothing is lost or comes back
 *         over kills, removals, full memory and a full disk.
 * Method: a real larderd with ages of seconds, raw frames, KV whose error is known.
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/key.h"
#include "base/record.h"
#include "tests/daemon/fixture.h"
#include "tests/daemon/peer.h"

#define Q5     "quant bits=5 axis=token group=32"
#define Q4     "quant bits=4 axis=token group=32"
#define Q2     "quant bits=2 axis=token group=32"
#define BLOCKS 24u

static struct fixture fixture;
static struct peer peer;
static struct peer control;
static struct answer answer;
static uint8_t *kv;
static uint64_t kv_bytes;

static void pause_ms(uint32_t ms)
{
    const struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000l};
    nanosleep(&pause, NULL);
}

/* Blocks of 64 KiB: records of different recipes are of different sizes. */
static void connect_all(void)
{
    struct larder_model_desc desc;
    peer_open(&peer, fixture.socket);
    peer_model_desc(&desc);
    desc.layers = 4;
    desc.k_dims = desc.v_dims = 128;
    peer_open_model(&peer, &desc);
    peer_open_staging(&peer, 1u << 20);
    peer_connect(&control, fixture.control_socket);
    peer_say_hello(&control);
    kv_bytes = peer_kv_bytes(&peer, PEER_BLOCK_TOKENS);
    free(kv);
    kv = malloc(kv_bytes);
    ck_assert_ptr_nonnull(kv);
}

static void disconnect_all(void)
{
    peer_close(&peer);
    peer_close(&control);
}

static void start(const char *config)
{
    fixture_start(&fixture, config);
    connect_all();
}

static void stop(void)
{
    disconnect_all();
    ck_assert(fixture_alive(&fixture));
    ck_assert_int_eq(fixture_terminate(&fixture), 0);
    fixture_stop(&fixture);
    free(kv);
    kv = NULL;
}

static void put_beside(const struct block *block, uint32_t seed, const char *recipe,
                       enum larder_quality computed_on)
{
    struct wire_put wire;
    peer_fill_kv(kv, kv_bytes, seed);
    peer_stage(&peer, &wire, block, kv, 0, LARDER_DURABLE, recipe);
    wire.flags = WIRE_PUT_BESIDE;
    wire.computed_on = computed_on;
    uint64_t request = peer_send(&peer, WIRE_PUT, &wire, sizeof(wire), NULL, 0);
    peer_expect(&peer, &answer, WIRE_PUT_OK, request);
}

static int put(const struct block *block, uint32_t seed, const char *recipe)
{
    peer_fill_kv(kv, kv_bytes, seed);
    return peer_put(&peer, block, kv, LARDER_DURABLE, recipe, NULL);
}

static void put_chain(const struct block *blocks, uint32_t count, const char *recipe)
{
    for (uint32_t i = 0; i < count; i++)
        ck_assert_int_eq(put(&blocks[i], i + 1, recipe), 0);
}

/* All variants of a block. */
static uint32_t list(const struct block *block, struct wire_admin_entry *out)
{
    struct wire_admin_list ask = {.count_max = LARDER_VARIANTS_MAX, .prefix_digits = 64};
    uint32_t count = 0;
    memcpy(ask.prefix, block->key.bytes, 32);
    do {
        uint64_t request = peer_send(&control, WIRE_ADMIN_LIST, &ask, sizeof(ask), NULL, 0);
        const struct wire_admin_list_ok *ok =
            peer_expect(&control, &answer, WIRE_ADMIN_LIST_OK, request);
        ck_assert_uint_le(count + ok->count, LARDER_VARIANTS_MAX);
        memcpy(&out[count], ok + 1, ok->count * sizeof(out[0]));
        count += ok->count;
        ask.cursor = ok->cursor;
    } while (ask.cursor != 0);
    return count;
}

static bool is_alone(const struct block *block, const char *recipe)
{
    struct wire_admin_entry all[LARDER_VARIANTS_MAX];
    return list(block, all) == 1 && strcmp(all[0].recipe, recipe) == 0 && all[0].durable;
}

static void wait_for(const struct block *block, const char *recipe)
{
    struct wire_admin_entry all[LARDER_VARIANTS_MAX];
    for (int i = 0; i < 600 && !is_alone(block, recipe); i++)
        pause_ms(50);
    uint32_t count = list(block, all);
    ck_assert_msg(is_alone(block, recipe), "%u records, the first by '%s', instead of '%s'", count,
                  count ? all[0].recipe : "", recipe);
}

static struct wire_lookup_ok lookup(const struct block *blocks, uint32_t count, uint32_t worst)
{
    struct wire_keys wire = {.model = peer.model, .key_count = count, .worst = (uint16_t)worst};
    struct larder_key keys[BLOCKS];
    memcpy(wire.parent, blocks[0].parent.bytes, 32);
    for (uint32_t i = 0; i < count; i++)
        keys[i] = blocks[i].key;
    uint64_t request =
        peer_send(&peer, WIRE_LOOKUP, &wire, sizeof(wire), keys, count * sizeof(keys[0]));
    return *(const struct wire_lookup_ok *)peer_expect(&peer, &answer, WIRE_LOOKUP_OK, request);
}

static struct wire_admin_demote_ok ask(enum wire_scrub_action action)
{
    const struct wire_admin_scrub wire = {.action = action};
    uint64_t request = peer_send(&control, WIRE_ADMIN_DEMOTE, &wire, sizeof(wire), NULL, 0);
    return *(const struct wire_admin_demote_ok *)peer_expect(&control, &answer,
                                                             WIRE_ADMIN_DEMOTE_OK, request);
}

/* A whole pass from its start. */
static struct wire_admin_demote_ok run_pass(void)
{
    struct wire_admin_demote_ok ok = ask(WIRE_SCRUB_CANCEL);
    while (ok.pass.running) {
        pause_ms(20);
        ok = ask(WIRE_SCRUB_ASK);
    }
    ok = ask(WIRE_SCRUB_START);
    while (ok.pass.running) {
        pause_ms(20);
        ok = ask(WIRE_SCRUB_ASK);
    }
    return ok;
}

/* Relative error of what a reader of the block gets, beside what was put with that seed. */
static double read_error(const struct block *block, uint32_t seed)
{
    struct wire_get_ok ok;
    struct wire_ref ref;
    struct wire_loaded loaded;
    uint8_t *got = malloc(kv_bytes);
    double error = 0;
    double signal = 0;
    uint64_t request = peer_get(&peer, block, 1, &ok, &ref, &loaded);
    ck_assert_uint_eq(loaded.loaded, 1);
    ck_assert_int_eq(peer_read(&peer, &ref, block, got, kv_bytes), 0);
    peer_release(&peer, request);
    peer_fill_kv(kv, kv_bytes, seed);
    for (uint64_t i = 0; i < kv_bytes; i += 2) {
        float a = 0;
        float b = 0;
        memcpy((uint8_t *)&a + 2, kv + i, 2);
        memcpy((uint8_t *)&b + 2, got + i, 2);
        error += (a - b) * (a - b);
        signal += a * a;
    }
    free(got);
    return sqrt(error / signal);
}

static void mark(const struct block *block, const struct larder_mark *mark)
{
    struct wire_mark wire = {.mark = *mark};
    memcpy(wire.key, block->key.bytes, 32);
    uint64_t request = peer_send(&control, WIRE_ADMIN_MARK, &wire, sizeof(wire), NULL, 0);
    peer_expect(&control, &answer, WIRE_ADMIN_MARK_OK, request);
}

static void measure(const char *recipe, float kl)
{
    const struct wire_admin_measure head = {.count = 1};
    struct wire_measure row = {.kl = kl, .kl_p99 = kl, .top1 = 1, .bits_per_element = 4};
    struct larder_key fingerprint;
    ck_assert_int_eq(larder_model_fingerprint(&fingerprint, &peer.desc), 0);
    memcpy(row.fingerprint, fingerprint.bytes, sizeof(row.fingerprint));
    snprintf(row.recipe, sizeof(row.recipe), "%s", recipe);
    uint64_t request =
        peer_send(&control, WIRE_ADMIN_MEASURE, &head, sizeof(head), &row, sizeof(row));
    peer_expect(&control, &answer, WIRE_ADMIN_MEASURE_OK, request);
}

/* --- what becomes of it ----------------------------------------------------------------------- */

START_TEST(steps_of_ages)
{
    struct block blocks[2];
    struct wire_admin_entry all[LARDER_VARIANTS_MAX];
    start("demote = 1s:exact, 6s:" Q5 ", 14s:" Q4 "\nrecipe = raw\n");
    measure(Q5, 0.25f);
    measure(Q4, 0.5f);
    peer_chain(&peer, blocks, 2, 1);
    put_chain(blocks, 2, NULL);
    wait_for(&blocks[0], "exact");
    ck_assert_uint_eq(lookup(blocks, 2, LARDER_QUALITY_EXACT).matched, 2);
    wait_for(&blocks[0], Q5);
    wait_for(&blocks[1], Q5);
    ck_assert_uint_eq(list(&blocks[0], all), 1);
    ck_assert_uint_eq(all[0].quality, LARDER_QUALITY_LOSSY);
    ck_assert_uint_eq(all[0].computed_on, LARDER_QUALITY_EXACT);
    ck_assert_uint_eq(all[0].children, 1);
    struct wire_lookup_ok found = lookup(blocks, 2, LARDER_QUALITY_LOSSY);
    ck_assert_uint_eq(found.matched, 2);
    ck_assert(found.kl == 0.25f);
    ck_assert_uint_eq(lookup(blocks, 2, LARDER_QUALITY_EXACT).matched, 0);
    wait_for(&blocks[0], Q4);
    wait_for(&blocks[1], Q4);
    /* Made of what was lossy: both losses count. */
    ck_assert_uint_eq(list(&blocks[0], all), 1);
    ck_assert_uint_eq(all[0].computed_on, LARDER_QUALITY_LOSSY);
    found = lookup(blocks, 2, LARDER_QUALITY_LOSSY);
    ck_assert_uint_eq(found.matched, 2);
    ck_assert(found.kl >= 0.75f && found.kl < 0.76f);
    const double error = read_error(&blocks[1], 2);
    ck_assert_msg(error > 0.01 && error < 0.15, "%g", error);
    struct wire_admin_demote_ok ok = ask(WIRE_SCRUB_ASK);
    ck_assert_uint_ge(ok.demoted_all, 4);
    ck_assert_uint_gt(ok.saved_bytes_all, 2 * (kv_bytes - kv_bytes / 2));
    ck_assert_uint_eq(ok.failed_all, 0);
    ck_assert_uint_eq(ok.lines, 1);
    /* Whoever wants it exact puts it again, and it begins anew. */
    ck_assert_int_eq(put(&blocks[0], 1, NULL), 0);
    ck_assert_uint_eq(lookup(blocks, 1, LARDER_QUALITY_EXACT).matched, 1);
    ck_assert(read_error(&blocks[0], 1) == 0);
    wait_for(&blocks[0], "exact");
    stop();
}
END_TEST

/* An old block skips steps: the last one is made of the exact record. */
START_TEST(of_the_best)
{
    struct block block;
    struct wire_admin_entry all[LARDER_VARIANTS_MAX];
    start("demote_rate_bytes = 1M\n");
    peer_chain(&peer, &block, 1, 1);
    put_chain(&block, 1, "exact");
    put_beside(&block, 1, Q5, LARDER_QUALITY_EXACT);
    ck_assert_uint_eq(list(&block, all), 2);
    const struct wire_admin_scrub begin = {.action = WIRE_SCRUB_START};
    uint64_t request = peer_send(&control, WIRE_ADMIN_DEMOTE, &begin, sizeof(begin), NULL, 0);
    peer_expect_error(&control, request, -EINVAL);
    FILE *file = fopen(fixture.config_path, "ae");
    ck_assert_ptr_nonnull(file);
    fprintf(file, "demote = 1s:" Q5 ", 2s:" Q2 "\n");
    fclose(file);
    pause_ms(3100);
    kill(fixture.pid, SIGHUP);
    wait_for(&block, Q2);
    ck_assert_uint_eq(list(&block, all), 1);
    ck_assert_uint_eq(all[0].computed_on, LARDER_QUALITY_EXACT);
    stop();
}
END_TEST

/* What was computed on blended KV, if by the step's recipe, is not as good as what the step makes:
 * readers that would take that find nothing in it. */
START_TEST(what_is_worse_does_not_stand_for_it)
{
    struct block block;
    struct wire_admin_entry all[LARDER_VARIANTS_MAX];
    start("demote = 2s:" Q4 "\n");
    peer_chain(&peer, &block, 1, 1);
    put_chain(&block, 1, "exact");
    put_beside(&block, 2, Q4, LARDER_QUALITY_BLENDED);
    bool is_there = true;
    for (int i = 0; i < 400 && is_there; i++) {
        const uint32_t count = list(&block, all);
        is_there = false;
        for (uint32_t at = 0; at < count; at++)
            is_there = is_there || strcmp(all[at].recipe, "exact") == 0;
        pause_ms(50);
    }
    ck_assert(!is_there);
    ck_assert_uint_eq(lookup(&block, 1, LARDER_QUALITY_LOSSY).matched, 1);
    ck_assert(read_error(&block, 1) < 0.15);
    ck_assert_uint_eq(ask(WIRE_SCRUB_ASK).failed_all, 0);
    stop();
}
END_TEST

START_TEST(what_stays)
{
    struct block blocks[5];
    struct block other;
    struct wire_admin_entry all[LARDER_VARIANTS_MAX];
    char path[128];
    start("tenant red = socket DIR/red.sock\ndemote = 1s:" Q4 "\ndemote red = off\n");
    const struct larder_mark pin = {.fields = LARDER_MARK_PIN};
    const struct larder_mark high = {.fields = LARDER_MARK_PRIORITY, .priority = 8};
    const struct larder_mark low = {.fields = LARDER_MARK_PRIORITY, .priority = -8};
    peer_chain(&peer, blocks, 5, 1);
    blocks[4].token_count = 7; /* shorter: always exact */
    struct larder_key key;
    ck_assert_int_eq(larder_hasher_block(peer.hasher, &key, &blocks[3].key, NULL, 0,
                                         blocks[4].tokens, blocks[4].token_count),
                     0);
    blocks[4].key = key;
    put_chain(blocks, 4, "exact");
    peer_fill_kv(kv, peer_kv_bytes(&peer, 7), 5);
    ck_assert_int_eq(peer_put(&peer, &blocks[4], kv, LARDER_DURABLE, "exact", NULL), 0);
    mark(&blocks[1], &pin);
    mark(&blocks[2], &high);
    mark(&blocks[3], &low);
    struct peer red = {.fd = -1};
    struct peer own = peer;
    snprintf(path, sizeof(path), "%s/red.sock", fixture.directory);
    peer_open(&red, path);
    peer_open_model(&red, &own.desc);
    peer_open_staging(&red, 1u << 20);
    peer_chain(&red, &other, 1, 1);
    peer_fill_kv(kv, kv_bytes, 9);
    ck_assert_int_eq(peer_put(&red, &other, kv, LARDER_DURABLE, "exact", NULL), 0);
    wait_for(&blocks[3], Q4);
    pause_ms(1500);
    run_pass();
    for (uint32_t i = 0; i < 5; i++) {
        if (i != 3)
            ck_assert_msg(is_alone(&blocks[i], "exact"), "block %u", i);
    }
    ck_assert(is_alone(&other, "exact"));
    ck_assert_uint_eq(list(&blocks[1], all), 1);
    ck_assert(all[0].pinned);
    const struct larder_mark unpin = {.fields = LARDER_MARK_UNPIN};
    mark(&blocks[1], &unpin);
    wait_for(&blocks[0], Q4);
    wait_for(&blocks[1], Q4);
    ck_assert(is_alone(&blocks[2], "exact"));
    peer_close(&red);
    stop();
}
END_TEST

/* Looked at again and again it is never old. */
START_TEST(what_is_used_stays)
{
    struct block blocks[2];
    start("demote = 4s:" Q4 "\n");
    peer_chain(&peer, blocks, 2, 1);
    put_chain(blocks, 2, "exact");
    for (int i = 0; i < 32; i++) {
        ck_assert(read_error(&blocks[0], 1) == 0);
        pause_ms(200);
    }
    ck_assert(is_alone(&blocks[0], "exact"));
    wait_for(&blocks[1], Q4);
    wait_for(&blocks[0], Q4);
    stop();
}
END_TEST

/* A recipe that gains nothing is tried, and then left alone. */
START_TEST(what_gains_nothing)
{
    struct block blocks[4];
    start("demote = 1s:" Q5 "\n");
    peer_chain(&peer, blocks, 4, 1);
    put_chain(blocks, 4, Q2);
    pause_ms(2200);
    struct wire_admin_demote_ok ok = run_pass();
    ok = run_pass();
    ck_assert_uint_eq(ok.pass.bytes_done, 0);
    ck_assert_uint_eq(ok.demoted_all, 0);
    ck_assert_uint_eq(ok.failed_all, 0);
    for (uint32_t i = 0; i < 4; i++)
        ck_assert(is_alone(&blocks[i], Q2));
    stop();
}
END_TEST

/* --- trouble ---------------------------------------------------------------------------------- */

/* Killed at any moment: each block is there, by one of the two recipes, and the next life ends
 * what was begun. */
START_TEST(kills)
{
    struct block blocks[BLOCKS];
    struct wire_admin_entry all[LARDER_VARIANTS_MAX];
    start("demote = 1s:" Q4 "\ndemote_rate_bytes = 2M\n");
    peer_chain(&peer, blocks, BLOCKS, 1);
    put_chain(blocks, BLOCKS, "exact");
    for (uint32_t life = 0; life < 6; life++) {
        pause_ms(1000 + life * 97);
        disconnect_all();
        fixture_kill(&fixture);
        fixture_restart(&fixture);
        connect_all();
        ck_assert_uint_eq(lookup(blocks, BLOCKS, LARDER_QUALITY_LOSSY).matched, BLOCKS);
        for (uint32_t i = 0; i < BLOCKS; i++) {
            const uint32_t count = list(&blocks[i], all);
            ck_assert(count == 1 || count == 2);
            for (uint32_t at = 0; at < count; at++)
                ck_assert(strcmp(all[at].recipe, "exact") == 0 || strcmp(all[at].recipe, Q4) == 0);
        }
    }
    for (uint32_t i = 0; i < BLOCKS; i++)
        wait_for(&blocks[i], Q4);
    for (uint32_t i = 0; i < BLOCKS; i++)
        ck_assert(read_error(&blocks[i], i + 1) < 0.15);
    stop();
}
END_TEST

/* What is removed while it is demoted stays away. */
START_TEST(removals)
{
    start("demote = 1s:" Q4 "\ndemote_rate_bytes = 4M\n");
    for (uint32_t round = 0; round < 3; round++) {
        struct block blocks[BLOCKS];
        peer_chain(&peer, blocks, BLOCKS, round + 1);
        put_chain(blocks, BLOCKS, "exact");
        pause_ms(1100 + round * 130);
        for (uint32_t i = BLOCKS; i-- > BLOCKS / 2;) {
            struct wire_admin_remove remove = {.variant = WIRE_VARIANT_ALL};
            memcpy(remove.key, blocks[i].key.bytes, 32);
            uint64_t request =
                peer_send(&control, WIRE_ADMIN_REMOVE, &remove, sizeof(remove), NULL, 0);
            peer_expect(&control, &answer, WIRE_ADMIN_REMOVE_OK, request);
            pause_ms(7);
        }
        for (uint32_t i = 0; i < BLOCKS / 2; i++)
            wait_for(&blocks[i], Q4);
        ck_assert_uint_eq(lookup(blocks, BLOCKS, LARDER_QUALITY_LOSSY).matched, BLOCKS / 2);
    }
    ck_assert_uint_eq(ask(WIRE_SCRUB_ASK).failed_all, 0);
    stop();
}
END_TEST

/* All memory is leased: it waits, and goes on when there is some. */
START_TEST(memory_short)
{
    struct block blocks[BLOCKS];
    struct wire_get_ok ok;
    struct wire_ref refs[BLOCKS];
    struct wire_loaded loaded;
    start("demote = 1s:" Q4 "\nhost_bytes = 1M\nslab_bytes = 1M\nsegment_bytes = 4M\n");
    peer_chain(&peer, blocks, BLOCKS, 1);
    put_chain(blocks, BLOCKS, "raw");
    /* As much as fits: some of it from SSD. */
    uint64_t request = peer_get(&peer, blocks, BLOCKS, &ok, refs, &loaded);
    ck_assert_uint_lt(loaded.loaded, BLOCKS);
    ck_assert_uint_gt(loaded.loaded, 4);
    /* On a busy machine the first of them may have been old before that. */
    uint8_t *before[BLOCKS];
    for (uint32_t i = 0; i < loaded.loaded; i++) {
        before[i] = malloc(kv_bytes);
        ck_assert_ptr_nonnull(before[i]);
        ck_assert_int_eq(peer_read(&peer, &refs[i], &blocks[i], before[i], kv_bytes), 0);
    }
    pause_ms(2500);
    ck_assert_uint_eq(ask(WIRE_SCRUB_ASK).failed_all, 0);
    /* A reader of what was demoted meanwhile keeps what it has. */
    for (uint32_t i = 0; i < loaded.loaded; i++) {
        ck_assert_int_eq(peer_read(&peer, &refs[i], &blocks[i], kv, kv_bytes), 0);
        ck_assert_mem_eq(kv, before[i], kv_bytes);
        free(before[i]);
    }
    peer_release(&peer, request);
    for (uint32_t i = 0; i < BLOCKS; i++)
        wait_for(&blocks[i], Q4);
    ck_assert_uint_eq(ask(WIRE_SCRUB_ASK).failed_all, 0);
    stop();
}
END_TEST

START_TEST(disk_full)
{
    struct block blocks[BLOCKS];
    char store[128];
    char filler[160];
    fixture_prepare(&fixture, "demote = 1s:" Q4 "\nssd_bytes = 64M\nsegment_bytes = 1M\n");
    snprintf(store, sizeof(store), "%s/store", fixture.directory);
    snprintf(filler, sizeof(filler), "%s/filler", store);
    ck_assert_int_eq(mkdir(store, 0700), 0);
    if (mount("larder", store, "tmpfs", 0, "size=24m,mode=0700") < 0) {
        fprintf(stderr, "disk_full: skipped, cannot mount a small disk: %s\n", strerror(errno));
        fixture_stop(&fixture);
        return;
    }
    fixture_restart(&fixture);
    connect_all();
    peer_chain(&peer, blocks, BLOCKS, 1);
    put_chain(blocks, BLOCKS, "raw");
    FILE *file = fopen(filler, "we");
    ck_assert_ptr_nonnull(file);
    for (int i = 0; i < 64 * 1024 && fwrite(store, 1, sizeof(store), file) == sizeof(store); i++)
        continue;
    fclose(file);
    pause_ms(3000);
    ck_assert(fixture_alive(&fixture));
    unlink(filler);
    /* What made room for others has gone; what is there is smaller now. */
    const uint32_t left = lookup(blocks, BLOCKS, LARDER_QUALITY_LOSSY).matched;
    for (uint32_t i = 0; i < left; i++)
        wait_for(&blocks[i], Q4);
    disconnect_all();
    ck_assert_int_eq(fixture_terminate(&fixture), 0);
    ck_assert_int_eq(umount(store), 0);
    fixture_stop(&fixture);
}
END_TEST

/* SIGTERM in the middle of a pass ends at once, and leaves nothing behind but the next life's work.
 */
START_TEST(stops)
{
    struct block blocks[BLOCKS];
    start("demote = 1s:" Q4 "\ndemote_rate_bytes = 1M\n");
    peer_chain(&peer, blocks, BLOCKS, 1);
    put_chain(blocks, BLOCKS, "raw");
    for (uint32_t life = 0; life < 3; life++) {
        pause_ms(1300 + life * 210);
        disconnect_all();
        ck_assert_int_eq(fixture_terminate(&fixture), 0);
        fixture_restart(&fixture);
        connect_all();
        ck_assert_uint_eq(lookup(blocks, BLOCKS, LARDER_QUALITY_LOSSY).matched, BLOCKS);
    }
    for (uint32_t i = 0; i < BLOCKS; i++)
        wait_for(&blocks[i], Q4);
    stop();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("daemon_demote");
    TCase *tests = tcase_create("demote");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, steps_of_ages);
    tcase_add_test(tests, of_the_best);
    tcase_add_test(tests, what_is_worse_does_not_stand_for_it);
    tcase_add_test(tests, what_stays);
    tcase_add_test(tests, what_is_used_stays);
    tcase_add_test(tests, what_gains_nothing);
    tcase_add_test(tests, kills);
    tcase_add_test(tests, removals);
    tcase_add_test(tests, memory_short);
    tcase_add_test(tests, disk_full);
    tcase_add_test(tests, stops);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
