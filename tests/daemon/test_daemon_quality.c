/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   what larderd says about the quality of what it stores is true: errors of sections, what
 *         was stored exact in place of a recipe, for each tenant alone; profiles are kept while
 *         they are needed; recipe auto keeps what was measured; inputs come with a put.
 * Method: a real larderd, raw frames, KV whose error is known.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/key.h"
#include "base/mem.h"
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

static struct wire_admin_entry show(const struct block *block)
{
    uint64_t request = peer_send(&control, WIRE_ADMIN_SHOW, block->key.bytes, 32, NULL, 0);
    const struct wire_admin_show_ok *ok =
        peer_expect(&control, &answer, WIRE_ADMIN_SHOW_OK, request);
    return ok->entry;
}

/* An operator who looks is no reader: the policies and the counters do not learn of it. */
START_TEST(looking_is_no_use)
{
    struct block block;
    start(NULL);
    peer_chain(&peer, &block, 1, 1);
    peer_put_chain(&peer, &block, 1, 1, LARDER_DURABLE);
    ask_sections(&block, 0);
    ck_assert_uint_eq(show(&block).uses, 0);
    ck_assert_uint_eq(show(&block).lease_count, 0);
    uint64_t request = peer_send(&peer, WIRE_STAT, NULL, 0, NULL, 0);
    const struct wire_stat_ok *stat = peer_expect(&peer, &answer, WIRE_STAT_OK, request);
    ck_assert_uint_eq(stat->gets, 0);
    ck_assert_uint_eq(stat->blocks_hit_host, 0);
    stop();
}
END_TEST

/* What only SSD has is read from there, and what is damaged there is not told. */
START_TEST(what_is_on_ssd_is_told_too)
{
    struct block blocks[2];
    char segment[160];
    start(NULL);
    peer_chain(&peer, blocks, 2, 1);
    peer_put_chain(&peer, blocks, 2, 1, LARDER_DURABLE);
    peer_close(&peer);
    peer_close(&control);
    /* Not killed: what follows a kill may be moved while this test damages it (clear.c). */
    ck_assert_int_eq(fixture_terminate(&fixture), 0);
    fixture_restart(&fixture);
    peer_open(&peer, fixture.socket);
    peer_connect(&control, fixture.control_socket);
    peer_say_hello(&control);
    ck_assert_uint_eq(show(&blocks[0]).in_host, 0);
    ck_assert_uint_eq(ask_sections(&blocks[0], 0)->token_count, PEER_BLOCK_TOKENS);

    const struct wire_admin_entry entry = show(&blocks[1]);
    ck_assert_uint_eq(entry.in_host, 0);
    snprintf(segment, sizeof(segment), "%s/store/segments/%08u.seg", fixture.directory,
             entry.segment_id);
    int fd = open(segment, O_RDWR | O_CLOEXEC);
    ck_assert_int_ge(fd, 0);
    uint8_t byte;
    const off_t at = (off_t)entry.segment_page * 4096 + 100;
    ck_assert_int_eq(pread(fd, &byte, 1, at), 1);
    byte ^= 1;
    ck_assert_int_eq(pwrite(fd, &byte, 1, at), 1);
    close(fd);
    struct wire_admin_variant ask = {.variant = 0};
    memcpy(ask.key, blocks[1].key.bytes, sizeof(ask.key));
    uint64_t request = peer_send(&control, WIRE_ADMIN_SECTIONS, &ask, sizeof(ask), NULL, 0);
    peer_expect_error(&control, request, LARDER_ECORRUPT);
    request = peer_send(&control, WIRE_ADMIN_TOKENS, blocks[1].key.bytes, 32, NULL, 0);
    peer_expect_error(&control, request, LARDER_ENOTFOUND); /* it was dropped */
    request = peer_send(&control, WIRE_ADMIN_TOKENS, blocks[0].key.bytes, 32, NULL, 0);
    const struct wire_admin_tokens_ok *told =
        peer_expect(&control, &answer, WIRE_ADMIN_TOKENS_OK, request);
    ck_assert_uint_eq(told->token_count, PEER_BLOCK_TOKENS);
    ck_assert_mem_eq(told + 1, blocks[0].tokens, sizeof(blocks[0].tokens));
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

/* --- profiles --------------------------------------------------------------------------------- */

static int put_with(const struct block *block, const uint8_t *kv, const char *recipe,
                    const uint8_t *profile, struct wire_put_ok *ok)
{
    struct wire_put put;
    peer_stage(&peer, &put, block, kv, 0, LARDER_DURABLE, recipe);
    if (profile)
        memcpy(put.profile, profile, sizeof(put.profile));
    uint64_t request = peer_send(&peer, WIRE_PUT, &put, sizeof(put), NULL, 0);
    peer_receive(&peer, &answer);
    const struct wire_frame *header = (const struct wire_frame *)answer.bytes;
    ck_assert_uint_eq(header->request, request);
    if (header->type == WIRE_ERROR)
        return ((const struct wire_error *)(header + 1))->code;
    if (ok)
        *ok = *(const struct wire_put_ok *)(header + 1);
    return 0;
}

static void ask_profile(struct peer *from, const uint8_t name[32], int code)
{
    uint64_t request = peer_send(from, WIRE_PROFILE, name, 32, NULL, 0);
    if (code < 0)
        peer_expect_error(from, request, code);
    else
        peer_expect(from, &answer, WIRE_PROFILE_OK, request);
}

START_TEST(profiles_are_kept_and_served)
{
    struct block blocks[3];
    uint8_t name[32];
    uint64_t bytes;
    struct wire_put_ok ok;
    start("tenant red = socket DIR/red.sock\n");
    void *profile = peer_make_profile(&peer.desc, &bytes, name);
    peer_chain(&peer, blocks, 3, 1);
    uint8_t *kv = make_kv(1, 0x3f80);
    ask_profile(&peer, name, LARDER_ENOPROFILE);
    ck_assert_int_eq(put_with(&blocks[0], kv, "bfp4-ksort", NULL, NULL), LARDER_ENOPROFILE);
    ck_assert_int_eq(put_with(&blocks[0], kv, "bfp4-ksort", name, NULL), LARDER_ENOPROFILE);

    /* What is no profile, or not the one that it is said to be, is not kept. */
    peer_expect_error(&control, peer_upload_profile(&control, "junk", 4, name, false),
                      LARDER_EFORMAT);
    uint8_t other[32];
    memcpy(other, name, sizeof(other));
    other[31] ^= 1;
    peer_expect_error(&control, peer_upload_profile(&control, profile, bytes, other, false),
                      LARDER_ECORRUPT);
    struct wire_admin_profile_add add = {.is_default = 0};
    memcpy(add.name, name, sizeof(add.name));
    uint64_t request = peer_send(&control, WIRE_ADMIN_PROFILE_ADD, &add, sizeof(add), NULL, 0);
    peer_expect_error(&control, request, -EINVAL);
    const struct wire_staging huge = {.bytes = LARDER_PROFILE_BYTES_MAX + 1};
    request = peer_send(&control, WIRE_ADMIN_PROFILE_NEW, &huge, sizeof(huge), NULL, 0);
    peer_expect_error(&control, request, LARDER_ELIMIT);
    ask_profile(&peer, name, LARDER_ENOPROFILE);

    request = peer_upload_profile(&control, profile, bytes, name, false);
    const struct wire_admin_profile_add_ok *added =
        peer_expect(&control, &answer, WIRE_ADMIN_PROFILE_ADD_OK, request);
    ck_assert_uint_eq(added->existed, 0);
    ck_assert_int_eq(put_with(&blocks[0], kv, "bfp4-ksort", NULL, NULL), LARDER_ENOPROFILE);
    ck_assert_int_eq(put_with(&blocks[0], kv, "bfp4-ksort", name, &ok), 0);
    ck_assert_uint_eq(ok.quality, LARDER_QUALITY_LOSSY);
    ck_assert(isinf(ok.kl));
    ck_assert_str_eq(ok.recipe, "bfp4-ksort");
    ck_assert_int_eq(put_with(&blocks[1], kv, "kivi4", other, NULL), LARDER_ENOPROFILE);
    request = peer_upload_profile(&control, profile, bytes, name, true);
    added = peer_expect(&control, &answer, WIRE_ADMIN_PROFILE_ADD_OK, request);
    ck_assert_uint_eq(added->existed, 1);
    ck_assert_int_eq(put_with(&blocks[1], kv, "bfp4-ksort", NULL, NULL), 0);
    /* What does not read it does not name it. */
    ck_assert_int_eq(put_with(&blocks[2], kv, "exact", name, NULL), 0);
    ck_assert(larder_all_zero(ask_sections(&blocks[2], 0)->profile, 32));
    ck_assert_mem_eq(ask_sections(&blocks[1], 0)->profile, name, 32);

    for (int round = 0; round < 2; round++) {
        /* Whoever knows its name may read it, and nobody can change it. */
        struct peer red;
        char path[128];
        snprintf(path, sizeof(path), "%s/red.sock", fixture.directory);
        peer_open(&red, path);
        ask_profile(&red, name, 0);
        const struct wire_profile_ok *got =
            (const void *)(answer.bytes + sizeof(struct wire_frame));
        ck_assert_uint_eq(got->bytes, bytes);
        void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, answer.fd, 0);
        ck_assert_ptr_ne(map, MAP_FAILED);
        ck_assert_mem_eq(map, profile, bytes);
        munmap(map, bytes);
        ck_assert_ptr_eq(mmap(NULL, bytes, PROT_WRITE, MAP_SHARED, answer.fd, 0), MAP_FAILED);
        ck_assert_int_eq(pwrite(answer.fd, "x", 1, 0), -1);
        ck_assert_int_ne(ftruncate(answer.fd, 1), 0);
        close(answer.fd);
        ask_profile(&red, other, LARDER_ENOPROFILE);
        peer_close(&red);

        const struct wire_admin_index first = {0};
        request = peer_send(&control, WIRE_ADMIN_PROFILES, &first, sizeof(first), NULL, 0);
        const struct wire_admin_profile_ok *listed =
            peer_expect(&control, &answer, WIRE_ADMIN_PROFILES_OK, request);
        ck_assert_mem_eq(listed->name, name, 32);
        ck_assert_uint_eq(listed->uses, 2);
        ck_assert_uint_eq(listed->is_default, 1);
        request = peer_send(&control, WIRE_ADMIN_PROFILE_RM, name, 32, NULL, 0);
        peer_expect_error(&control, request, -EBUSY);
        peer_close(&peer);
        peer_close(&control);
        fixture_kill(&fixture);
        fixture_restart(&fixture);
        peer_open(&peer, fixture.socket);
        peer_connect(&control, fixture.control_socket);
        peer_say_hello(&control);
    }
    request = peer_send(&peer, WIRE_REMOVE, blocks[0].key.bytes, 32, NULL, 0);
    peer_expect(&peer, &answer, WIRE_REMOVE_OK, request);
    request = peer_send(&control, WIRE_ADMIN_PROFILE_RM, name, 32, NULL, 0);
    peer_expect(&control, &answer, WIRE_ADMIN_PROFILE_RM_OK, request);
    ask_profile(&peer, name, LARDER_ENOPROFILE);
    ck_assert_int_eq(put_with(&blocks[0], kv, "bfp4-ksort", NULL, NULL), LARDER_ENOPROFILE);
    free(kv);
    larder_free(profile);
    stop();
}
END_TEST

START_TEST(a_profile_of_another_model_is_refused)
{
    struct block block;
    uint8_t name[32];
    uint64_t bytes;
    start(NULL);
    struct larder_model_desc own = peer.desc;
    struct larder_model_desc stranger = own;
    stranger.weights[0] ^= 1;
    peer.desc = stranger;
    void *profile = peer_make_profile(&peer.desc, &bytes, name);
    peer.desc = own;
    peer_expect(&control, &answer, WIRE_ADMIN_PROFILE_ADD_OK,
                peer_upload_profile(&control, profile, bytes, name, true));
    peer_chain(&peer, &block, 1, 1);
    uint8_t *kv = make_kv(1, 0x3f80);
    ck_assert_int_eq(put_with(&block, kv, "bfp4-ksort", name, NULL), LARDER_EMODEL);
    ck_assert_int_eq(put_with(&block, kv, "bfp4-ksort", NULL, NULL), LARDER_ENOPROFILE);
    ck_assert_uint_eq(peer_lookup(&peer, &block, 1), 0);
    free(kv);
    larder_free(profile);
    stop();
}
END_TEST

/* --- what was measured ------------------------------------------------------------------------ */

static struct wire_measure row_of(const char *recipe, float kl, float bits)
{
    struct wire_measure row = {.kl = kl, .kl_p99 = kl, .top1 = 0.5f, .bits_per_element = bits};
    struct larder_key fingerprint;
    ck_assert_int_eq(larder_model_fingerprint(&fingerprint, &peer.desc), 0);
    memcpy(row.fingerprint, fingerprint.bytes, sizeof(row.fingerprint));
    snprintf(row.recipe, sizeof(row.recipe), "%s", recipe);
    return row;
}

static void measure(const struct wire_measure *row, int code)
{
    const struct wire_admin_measure head = {.count = 1};
    uint64_t request =
        peer_send(&control, WIRE_ADMIN_MEASURE, &head, sizeof(head), row, sizeof(*row));
    if (code < 0)
        peer_expect_error(&control, request, code);
    else
        peer_expect(&control, &answer, WIRE_ADMIN_MEASURE_OK, request);
}

START_TEST(measures_that_cannot_be)
{
    start(NULL);
    struct wire_measure row = row_of("kivi4", NAN, 5);
    measure(&row, -EINVAL);
    row = row_of("kivi4", INFINITY, 5);
    measure(&row, -EINVAL);
    row = row_of("kivi4", -1, 5);
    measure(&row, -EINVAL);
    row = row_of("kivi4", 0.1f, NAN);
    measure(&row, -EINVAL);
    row = row_of("kivi4", 0.1f, 5);
    row.top1 = 1.5f;
    measure(&row, -EINVAL);
    row = row_of("kivi99", 0.1f, 5);
    measure(&row, -EINVAL);
    row = row_of("auto max_kl=1", 0.1f, 5);
    measure(&row, -EINVAL);
    row = row_of("bfp4-ksort", 0.1f, 5); /* reads a profile, and names none */
    measure(&row, -EINVAL);
    row = row_of("kivi4", 0.1f, 5);
    memset(row.recipe, 'k', sizeof(row.recipe));
    measure(&row, -EINVAL);
    row = row_of("kivi4", 0.1f, 5);
    memset(row.fingerprint, 0, sizeof(row.fingerprint));
    measure(&row, -EINVAL);
    const struct wire_admin_index first = {0};
    uint64_t request = peer_send(&control, WIRE_ADMIN_MEASURES, &first, sizeof(first), NULL, 0);
    peer_expect_error(&control, request, LARDER_ENOTFOUND);
    /* The same recipe, however it is written, is one row. */
    row = row_of("kivi4", 0.1f, 5);
    measure(&row, 0);
    row = row_of("  kivi4 ", 0.2f, 5);
    measure(&row, 0);
    request = peer_send(&control, WIRE_ADMIN_MEASURES, &first, sizeof(first), NULL, 0);
    const struct wire_measure *listed =
        peer_expect(&control, &answer, WIRE_ADMIN_MEASURES_OK, request);
    ck_assert(listed->kl == 0.2f);
    ck_assert_str_eq(listed->recipe, "kivi4");
    const struct wire_admin_index second = {1, 0};
    request = peer_send(&control, WIRE_ADMIN_MEASURES, &second, sizeof(second), NULL, 0);
    peer_expect_error(&control, request, LARDER_ENOTFOUND);
    stop();
}
END_TEST

static int put_auto(const struct block *block, const uint8_t *kv, float max_kl, float base_kl,
                    const char *recipe, struct wire_put_ok *ok)
{
    struct wire_put put;
    peer_stage(&peer, &put, block, kv, 0, LARDER_CACHED, recipe);
    put.max_kl = max_kl;
    put.computed_on_kl = base_kl;
    put.computed_on = base_kl > 0 ? LARDER_QUALITY_LOSSY : LARDER_QUALITY_EXACT;
    uint64_t request = peer_send(&peer, WIRE_PUT, &put, sizeof(put), NULL, 0);
    peer_receive(&peer, &answer);
    const struct wire_frame *header = (const struct wire_frame *)answer.bytes;
    ck_assert_uint_eq(header->request, request);
    if (header->type == WIRE_ERROR)
        return ((const struct wire_error *)(header + 1))->code;
    *ok = *(const struct wire_put_ok *)(header + 1);
    return 0;
}

START_TEST(auto_takes_the_smallest_that_keeps_it)
{
    static const struct {
        float max_kl;
        float base_kl;
        const char *recipe;
        uint32_t unmeasured;
    } cases[] = {
        {1, 0, "quant bits=2", 0},    {0.5f, 0, "quant bits=2", 0},
        {0.4f, 0, "quant bits=4", 0}, {0.01f, 0, "quant bits=4", 0},
        {0.009f, 0, "exact", 1},      {0.5f, 0.1f, "quant bits=4", 0},
        {0.5f, 0.495f, "exact", 1},   {0.5f, 2, "exact", 1},
        {0.5f, INFINITY, "exact", 1},
    };
    struct block blocks[LARDER_COUNT_OF(cases)];
    struct wire_put_ok ok;
    start(NULL);
    uint8_t *kv = make_kv(1, 0x3f80);
    peer_chain(&peer, blocks, LARDER_COUNT_OF(cases), 1);
    struct wire_measure row = row_of("quant bits=2", 0.5f, 3);
    measure(&row, 0);
    row = row_of("quant bits=4", 0.01f, 5);
    measure(&row, 0);
    row = row_of("quant bits=4 group=64", 0.01f, 5.5f); /* as good, and larger */
    measure(&row, 0);
    row = row_of("zipcache", 0.001f, 1); /* its input does not come */
    measure(&row, 0);
    row = row_of("quant bits=1 mode=sym levels=3", 0.0001f, 1); /* of another model */
    row.fingerprint[0] ^= 1;
    measure(&row, 0);
    for (size_t i = 0; i < LARDER_COUNT_OF(cases); i++) {
        ck_assert_int_eq(put_auto(&blocks[i], kv, cases[i].max_kl, cases[i].base_kl, "auto", &ok),
                         0);
        ck_assert_str_eq(ok.recipe, cases[i].recipe);
        ck_assert_uint_eq(ok.unmeasured, cases[i].unmeasured);
        ck_assert(cases[i].unmeasured || ok.kl <= cases[i].max_kl);
    }
    struct block more;
    peer_chain(&peer, &more, 1, 2);
    ck_assert_int_eq(put_auto(&more, kv, 0, 0, "auto", &ok), -EINVAL);
    ck_assert_int_eq(put_auto(&more, kv, 0, 0, "auto max_kl=-1", &ok), -EINVAL);
    ck_assert_int_eq(put_auto(&more, kv, 0, 0, "auto max_kl=1e999", &ok), -EINVAL);
    ck_assert_int_eq(put_auto(&more, kv, 0, 0, "automatic", &ok), -EINVAL);
    ck_assert_int_eq(put_auto(&more, kv, 1, 0, "kivi4", &ok), -EINVAL);
    ck_assert_int_eq(put_auto(&more, kv, 0, 0, "auto max_kl=0.5", &ok), 0);
    ck_assert_str_eq(ok.recipe, "quant bits=2");
    /* Without a recipe what is asked for is kept, whatever the default. */
    peer_chain(&peer, &more, 1, 3);
    ck_assert_int_eq(put_auto(&more, kv, 0.01f, 0, NULL, &ok), 0);
    ck_assert_str_eq(ok.recipe, "quant bits=4");
    free(kv);
    stop();
}
END_TEST

/* --- inputs of a PUT -------------------------------------------------------------------------- */

/* A PUT of two tokens more bytes behind K and V: scores, then q_max. */
static int put_inputs(const struct block *block, const uint8_t *kv, const char *recipe,
                      const float *scores, const float *q_max)
{
    const uint64_t heads = (uint64_t)peer.desc.layers * peer.desc.kv_heads;
    struct wire_put put;
    peer_stage(&peer, &put, block, kv, 0, LARDER_CACHED, recipe);
    uint64_t at = put.staging_bytes;
    if (scores) {
        at = (at + 63) & ~63ull;
        memcpy(peer.staging + at, scores, heads * block->token_count * sizeof(float));
        at += heads * block->token_count * sizeof(float);
        put.flags |= WIRE_PUT_IMPORTANCE;
    }
    if (q_max) {
        at = (at + 63) & ~63ull;
        memcpy(peer.staging + at, q_max, heads * peer.desc.k_dims * sizeof(float));
        at += heads * peer.desc.k_dims * sizeof(float);
        put.flags |= WIRE_PUT_Q_MAX;
    }
    put.staging_bytes = at;
    uint64_t request = peer_send(&peer, WIRE_PUT, &put, sizeof(put), NULL, 0);
    peer_receive(&peer, &answer);
    const struct wire_frame *header = (const struct wire_frame *)answer.bytes;
    ck_assert_uint_eq(header->request, request);
    return header->type == WIRE_ERROR ? ((const struct wire_error *)(header + 1))->code : 0;
}

START_TEST(inputs_come_with_a_put)
{
    float scores[2 * 2 * PEER_BLOCK_TOKENS];
    float q_max[2 * 2 * 32];
    struct block blocks[4];
    start(NULL);
    for (size_t i = 0; i < LARDER_COUNT_OF(scores); i++)
        scores[i] = (float)(i * 7 % 13);
    for (size_t i = 0; i < LARDER_COUNT_OF(q_max); i++)
        q_max[i] = 1 + (float)(i % 5);
    peer_chain(&peer, blocks, 4, 1);
    uint8_t *kv = make_kv(1, 0x3f80);
    ck_assert_int_eq(put_inputs(&blocks[0], kv, "zipcache", NULL, NULL), -EINVAL);
    const struct wire_error *error = (const void *)(answer.bytes + sizeof(struct wire_frame));
    ck_assert_ptr_nonnull(strstr(error->message, "importance"));
    ck_assert_int_eq(put_inputs(&blocks[0], kv, "mikv-8-2", scores, NULL), -EINVAL);
    ck_assert_ptr_nonnull(strstr(error->message, "q_max"));
    scores[5] = NAN;
    ck_assert_int_eq(put_inputs(&blocks[0], kv, "zipcache", scores, NULL), -EINVAL);
    scores[5] = -1; /* scores may be negative, a largest |q| may not */
    q_max[3] = -1;
    ck_assert_int_eq(put_inputs(&blocks[0], kv, "mikv-8-2", scores, q_max), -EINVAL);
    q_max[3] = INFINITY;
    ck_assert_int_eq(put_inputs(&blocks[0], kv, "mikv-8-2", scores, q_max), -EINVAL);
    q_max[3] = 0;
    ck_assert_int_eq(put_inputs(&blocks[0], kv, "zipcache", scores, NULL), 0);
    ck_assert_int_eq(put_inputs(&blocks[1], kv, "mikv-8-2", scores, q_max), 0);
    /* What does not need them passes them over. */
    ck_assert_int_eq(put_inputs(&blocks[2], kv, "exact", scores, q_max), 0);
    /* A region that has no room for what the flags say. */
    struct wire_put put;
    peer_stage(&peer, &put, &blocks[3], kv, 0, LARDER_CACHED, "exact");
    put.flags = WIRE_PUT_IMPORTANCE;
    uint64_t request = peer_send(&peer, WIRE_PUT, &put, sizeof(put), NULL, 0);
    peer_expect_error(&peer, request, LARDER_EPROTO);
    peer_expect_close(&peer);
    free(kv);
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
    tcase_add_test(tests, what_is_on_ssd_is_told_too);
    tcase_add_test(tests, what_no_recipe_holds_is_counted);
    tcase_add_test(tests, profiles_are_kept_and_served);
    tcase_add_test(tests, a_profile_of_another_model_is_refused);
    tcase_add_test(tests, measures_that_cannot_be);
    tcase_add_test(tests, auto_takes_the_smallest_that_keeps_it);
    tcase_add_test(tests, inputs_come_with_a_put);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
