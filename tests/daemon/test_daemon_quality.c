/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   what larderd says about the quality of what it stores is true: errors of sections, what
 *         was stored exact in place of a recipe, for each tenant alone.
 * Method: a real larderd, raw frames, KV whose error is known.
 */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/record.h"
#include "tests/daemon/fixture.h"
#include "tests/daemon/peer.h"

static struct fixture fixture;
static struct peer peer;
static struct peer control;
static struct answer answer;

static void start(const char *config)
{
    fixture_start(&fixture, config);
    peer_open(&peer, fixture.socket);
    peer_connect(&control, fixture.control_socket);
    peer_say_hello(&control);
}

static void stop(void)
{
    peer_close(&peer);
    peer_close(&control);
    ck_assert(fixture_alive(&fixture));
    fixture_stop(&fixture);
}

/* bf16 numbers near 1, with `bits` in place of one of V of layer 1. */
static uint8_t *make_kv(uint32_t seed, uint16_t bits)
{
    const uint64_t bytes = peer_kv_bytes(&peer, PEER_BLOCK_TOKENS);
    uint8_t *kv = malloc(bytes);
    ck_assert_ptr_nonnull(kv);
    peer_fill_kv(kv, bytes, seed);
    memcpy(kv + bytes - 2, &bits, sizeof(bits));
    return kv;
}

static const struct wire_admin_sections_ok *ask_sections(const struct block *block,
                                                         uint32_t variant)
{
    struct wire_admin_variant ask = {.variant = variant};
    memcpy(ask.key, block->key.bytes, sizeof(ask.key));
    uint64_t request = peer_send(&control, WIRE_ADMIN_SECTIONS, &ask, sizeof(ask), NULL, 0);
    return peer_expect(&control, &answer, WIRE_ADMIN_SECTIONS_OK, request);
}

static uint64_t tenant_fell_back(void)
{
    uint64_t request = peer_send(&peer, WIRE_STAT, NULL, 0, NULL, 0);
    const struct wire_stat_ok *stat = peer_expect(&peer, &answer, WIRE_STAT_OK, request);
    return stat->fell_back;
}

static uint64_t daemon_fell_back(void)
{
    uint64_t request = peer_send(&control, WIRE_ADMIN_STATUS, NULL, 0, NULL, 0);
    const struct wire_admin_status_ok *status =
        peer_expect(&control, &answer, WIRE_ADMIN_STATUS_OK, request);
    return status->fell_back;
}

START_TEST(errors_are_told)
{
    struct block blocks[2];
    start(NULL);
    peer_chain(&peer, blocks, 2, 1);
    uint8_t *kv = make_kv(1, 0x3f80);
    ck_assert_int_eq(peer_put(&peer, &blocks[0], kv, LARDER_DURABLE, "kivi4", NULL), 0);
    ck_assert_int_eq(peer_put(&peer, &blocks[1], kv, LARDER_DURABLE, NULL, NULL), 0);
    free(kv);
    for (int round = 0; round < 2; round++) {
        const struct wire_admin_sections_ok *ok = ask_sections(&blocks[0], 0);
        const struct wire_admin_section *sections = (const void *)(ok + 1);
        ck_assert_str_eq(ok->recipe, "kivi4");
        ck_assert_uint_eq(ok->section_count, 4);
        ck_assert_uint_eq(ok->token_count, PEER_BLOCK_TOKENS);
        ck_assert(ok->v_error > 0.001f && ok->v_error < 0.2f);
        for (uint32_t i = 0; i < 4; i++) {
            ck_assert_uint_eq(sections[i].layer_first, i / 2);
            ck_assert_uint_eq(sections[i].kind, i % 2);
            /* A group of K has 32 tokens, a block of this test 16: nothing is gained. */
            ck_assert_uint_eq(sections[i].flags,
                              i % 2 ? LARDER_SECTION_MEASURED
                                    : LARDER_SECTION_MEASURED | LARDER_SECTION_FELL_BACK);
            if (i % 2 == 0)
                ck_assert(sections[i].error == 0);
            else
                ck_assert(fabsf(sections[i].error / ok->v_error - 1) < 0.1f);
        }
        ok = ask_sections(&blocks[1], 0);
        sections = (const void *)(ok + 1);
        ck_assert_str_eq(ok->recipe, "exact");
        for (uint32_t i = 0; i < 4; i++) {
            ck_assert_uint_eq(sections[i].flags, LARDER_SECTION_MEASURED);
            ck_assert(sections[i].error == 0);
        }
        /* The same from SSD, where there is no host tier's copy. */
        peer_close(&control);
        peer_close(&peer);
        fixture_kill(&fixture);
        fixture_restart(&fixture);
        peer_open(&peer, fixture.socket);
        peer_connect(&control, fixture.control_socket);
        peer_say_hello(&control);
    }
    struct wire_admin_variant missing = {.variant = 3};
    memcpy(missing.key, blocks[0].key.bytes, 32);
    uint64_t request = peer_send(&control, WIRE_ADMIN_SECTIONS, &missing, sizeof(missing), NULL, 0);
    peer_expect_error(&control, request, LARDER_ENOTFOUND);
    missing.variant = 8;
    request = peer_send(&control, WIRE_ADMIN_SECTIONS, &missing, sizeof(missing), NULL, 0);
    peer_expect_error(&control, request, LARDER_EPROTO);
    peer_expect_close(&control);
    peer_close(&control);
    peer_connect(&control, fixture.control_socket);
    stop();
}
END_TEST

/* An operator who looks is no reader: the policies and the counters do not learn of it. */
START_TEST(looking_is_no_use)
{
    struct block block;
    start(NULL);
    peer_chain(&peer, &block, 1, 1);
    peer_put_chain(&peer, &block, 1, 1, LARDER_DURABLE);
    ask_sections(&block, 0);
    uint64_t request = peer_send(&control, WIRE_ADMIN_SHOW, block.key.bytes, 32, NULL, 0);
    const struct wire_admin_show_ok *show =
        peer_expect(&control, &answer, WIRE_ADMIN_SHOW_OK, request);
    ck_assert_uint_eq(show->entry.uses, 0);
    ck_assert_uint_eq(show->entry.lease_count, 0);
    request = peer_send(&peer, WIRE_STAT, NULL, 0, NULL, 0);
    const struct wire_stat_ok *stat = peer_expect(&peer, &answer, WIRE_STAT_OK, request);
    ck_assert_uint_eq(stat->gets, 0);
    ck_assert_uint_eq(stat->blocks_hit_host, 0);
    stop();
}
END_TEST

START_TEST(what_no_recipe_holds_is_counted)
{
    struct block blocks[3];
    char path[128];
    start("tenant red = socket DIR/red.sock\n");
    peer_chain(&peer, blocks, 3, 1);
    uint8_t *sound = make_kv(1, 0x3f80);
    uint8_t *nan = make_kv(1, 0x7fc1);
    ck_assert_int_eq(peer_put(&peer, &blocks[0], sound, LARDER_CACHED, "quant bits=4", NULL), 0);
    ck_assert_uint_eq(tenant_fell_back(), 0);
    ck_assert_int_eq(peer_put(&peer, &blocks[1], nan, LARDER_CACHED, "quant bits=4", NULL), 0);
    ck_assert_uint_eq(tenant_fell_back(), 1);
    /* The recipe that holds everything needs no other. */
    ck_assert_int_eq(peer_put(&peer, &blocks[2], nan, LARDER_CACHED, "exact", NULL), 0);
    ck_assert_uint_eq(tenant_fell_back(), 1);
    ck_assert_uint_eq(daemon_fell_back(), 1);
    const struct wire_admin_section *sections = (const void *)(ask_sections(&blocks[1], 0) + 1);
    for (uint32_t i = 0; i < 4; i++)
        ck_assert_uint_eq(sections[i].flags & LARDER_SECTION_FELL_BACK, i == 3 ? 2 : 0);
    ck_assert(sections[3].error == 0);
    peer_close(&peer);
    snprintf(path, sizeof(path), "%s/red.sock", fixture.directory);
    peer_open(&peer, path);
    ck_assert_uint_eq(tenant_fell_back(), 0);
    free(sound);
    free(nan);
    stop();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("daemon_quality");
    TCase *tests = tcase_create("quality");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, errors_are_told);
    tcase_add_test(tests, looking_is_no_use);
    tcase_add_test(tests, what_no_recipe_holds_is_counted);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
