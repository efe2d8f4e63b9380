/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: whatever layers a client asks for, and whenever it lets go or dies, the daemon answers each
 * request once and serves the next client.
 * Method: a real larderd whose entries are on SSD only, and raw frames, read late or never. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/wire.h"
#include "tests/daemon/fixture.h"
#include "tests/daemon/peer.h"

#define BLOCKS 8u
#define LAYERS 2u

static struct fixture fixture;

/* A chain that is durable, and a daemon that has just started. */
static void start(void)
{
    struct peer peer;
    struct block blocks[BLOCKS];
    fixture_start(&fixture, "host_bytes = 8M\nrecipe = raw\n");
    peer_open(&peer, fixture.socket);
    peer_chain(&peer, blocks, BLOCKS, 1);
    peer_put_chain(&peer, blocks, BLOCKS, 1, LARDER_DURABLE);
    peer_close(&peer);
    fixture_kill(&fixture);
    fixture_restart(&fixture);
}

static uint64_t ask(struct peer *peer, uint16_t type, const struct block *blocks, uint32_t count,
                    uint16_t layer_first, uint16_t layer_count)
{
    struct larder_key keys[BLOCKS];
    struct wire_keys body = {.model = peer->model,
                             .key_count = count,
                             .layer_first = layer_first,
                             .layer_count = layer_count};
    memcpy(body.parent, blocks[0].parent.bytes, sizeof(body.parent));
    for (uint32_t i = 0; i < count; i++)
        keys[i] = blocks[i].key;
    return peer_send(peer, type, &body, sizeof(body), keys, count * sizeof(keys[0]));
}

static void release(struct peer *peer, uint64_t request)
{
    struct wire_release body = {.count = 1};
    peer_send(peer, WIRE_RELEASE, &body, sizeof(body), &request, sizeof(request));
}

START_TEST(layers_that_are_not_there)
{
    static const uint16_t ranges[][2] = {{LAYERS, 0}, {LAYERS, 1},  {1, 2},   {0, LAYERS + 1},
                                         {1023, 0},   {1023, 1024}, {0, 1024}};
    struct peer peer;
    struct block blocks[BLOCKS];
    struct answer answer;
    start();
    peer_open(&peer, fixture.socket);
    peer_chain(&peer, blocks, BLOCKS, 1);
    for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
        peer_expect_error(&peer, ask(&peer, WIRE_GET, blocks, BLOCKS, ranges[i][0], ranges[i][1]),
                          -EINVAL);
        peer_expect_error(
            &peer, ask(&peer, WIRE_PREFETCH, blocks, BLOCKS, ranges[i][0], ranges[i][1]), -EINVAL);
    }
    uint64_t request = ask(&peer, WIRE_PREFETCH, blocks, BLOCKS, 1, 1);
    const struct wire_prefetch_ok *ok = peer_expect(&peer, &answer, WIRE_PREFETCH_OK, request);
    ck_assert_uint_eq(ok->matched, BLOCKS);
    ck_assert_uint_eq(ok->coming, BLOCKS);
    peer_close(&peer);
    peer_check_served(fixture.socket, 1);
    fixture_stop(&fixture);
}
END_TEST

/* Lets go before the answer, between the answer and LOADED, after it, twice, or never; then dies
 * with requests in flight. Each GET is answered, by GET_OK or ECANCELED. */
START_TEST(letting_go_at_any_time)
{
    unsigned state = (unsigned)_i;
    start();
    for (uint32_t round = 0; round < 30; round++) {
        struct peer peer;
        struct block blocks[BLOCKS];
        struct answer answer;
        uint64_t requests[6];
        uint32_t count = 1 + (uint32_t)rand_r(&state) % 6;
        peer_open(&peer, fixture.socket);
        peer_chain(&peer, blocks, BLOCKS, 1);
        for (uint32_t i = 0; i < count; i++) {
            requests[i] = ask(&peer, rand_r(&state) % 4 ? WIRE_GET : WIRE_PREFETCH, blocks,
                              1 + (uint32_t)rand_r(&state) % BLOCKS,
                              (uint16_t)((uint32_t)rand_r(&state) % LAYERS), 0);
            for (int times = rand_r(&state) % 3; times > 0; times--)
                release(&peer, requests[(uint32_t)rand_r(&state) % (i + 1)]);
        }
        /* Some answers are read; the rest is left. */
        bool answered[6] = {0};
        uint32_t left = rand_r(&state) % 2 ? count : 0u;
        while (left > 0) {
            peer_receive(&peer, &answer);
            ck_assert_uint_gt(answer.byte_count, 0);
            if (answer.fd >= 0)
                close(answer.fd);
            const struct wire_frame *header = (const struct wire_frame *)answer.bytes;
            if (header->type == WIRE_SLAB || header->type == WIRE_LOADED)
                continue;
            uint32_t i = 0;
            while (i < count && requests[i] != header->request)
                i++;
            ck_assert_uint_lt(i, count);
            ck_assert(!answered[i]);
            answered[i] = true;
            left--;
            if (header->type == WIRE_ERROR)
                ck_assert_int_eq(((const struct wire_error *)(header + 1))->code, -ECANCELED);
            else
                ck_assert(header->type == WIRE_GET_OK || header->type == WIRE_PREFETCH_OK);
        }
        peer_close(&peer);
        if (round % 10 == 9) {
            fixture_kill(&fixture);
            fixture_restart(&fixture);
        }
    }
    peer_check_served(fixture.socket, 1);
    fixture_stop(&fixture);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("daemon_reads");
    TCase *tcase = tcase_create("reads");
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, layers_that_are_not_there);
    tcase_add_loop_test(tcase, letting_go_at_any_time, 1, 4);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
